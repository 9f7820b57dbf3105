//! TLS in front and behind: HTTP/2 by ALPN, certificates read again, roles told by certificates.

use crate::stub::*;
use bytes::Bytes;
use hearth_edge::tls::{Acceptor, Files, has_role};
use http_body_util::{BodyExt, Empty};
use hyper_util::rt::{TokioExecutor, TokioIo};
use rcgen::{BasicConstraints, CertificateParams, IsCa, Issuer, KeyPair};
use std::{path::Path, sync::Arc};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpStream},
};
use tokio_util::sync::CancellationToken;

pub struct Authority {
    issuer: Issuer<'static, KeyPair>,
    pem: String,
}

impl Authority {
    pub fn new() -> Self {
        let mut params = CertificateParams::new(Vec::new()).unwrap();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let key = KeyPair::generate().unwrap();
        let pem = params.self_signed(&key).unwrap().pem();
        Self { issuer: Issuer::new(params, key), pem }
    }

    /// Writes a certificate of that name.
    pub fn issue(&self, dir: &Path, name: &str) -> Files {
        let key = KeyPair::generate().unwrap();
        let cert = CertificateParams::new(vec![name.to_owned()]).unwrap().signed_by(&key, &self.issuer).unwrap();
        let at = |kind: &str| dir.join(format!("{name}.{kind}"));
        std::fs::write(at("ca"), &self.pem).unwrap();
        std::fs::write(at("key"), key.serialize_pem()).unwrap();
        std::fs::write(at("cert"), cert.pem()).unwrap();
        Files { cert: at("cert"), key: at("key"), ca: Some(at("ca")) }
    }

    fn client(&self, alpn: &[u8]) -> tokio_rustls::TlsConnector {
        use rustls::pki_types::{CertificateDer, pem::PemObject};
        let mut roots = rustls::RootCertStore::empty();
        roots.add(CertificateDer::from_pem_slice(self.pem.as_bytes()).unwrap()).unwrap();
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let builder = rustls::ClientConfig::builder_with_provider(provider).with_safe_default_protocol_versions().unwrap();
        let mut config = builder.with_root_certificates(roots).with_no_client_auth();
        config.alpn_protocols = vec![alpn.to_vec()];
        config.resumption = rustls::client::Resumption::disabled();
        tokio_rustls::TlsConnector::from(Arc::new(config))
    }
}

async fn connect(
    client: &tokio_rustls::TlsConnector,
    addr: std::net::SocketAddr,
) -> std::io::Result<tokio_rustls::client::TlsStream<TcpStream>> {
    client.connect("localhost".try_into().unwrap(), TcpStream::connect(addr).await?).await
}

#[tokio::test]
async fn http2_over_tls_and_certificates_are_read_again() {
    let dir = tempfile::tempdir().unwrap();
    let (first, second) = (Authority::new(), Authority::new());
    let mut files = first.issue(dir.path(), "localhost");
    files.ca = None;
    let node = Stub::start(|request| async move {
        let header = |name: &str| request.headers().get(name).map_or("-".into(), |v| v.to_str().unwrap().to_owned());
        text(format!("{} {} {}", header("x-forwarded-proto"), header("host"), header("cookie")))
    })
    .await;
    let router = router(hearth_router::Config { tls: Some(files), ..config() }, &[node.addr]).await;

    let stream = connect(&first.client(b"h2"), router.addr()).await.unwrap();
    assert_eq!(stream.get_ref().1.alpn_protocol(), Some(&b"h2"[..]));
    let (mut sender, connection) = hyper::client::conn::http2::handshake(TokioExecutor::new(), TokioIo::new(stream)).await.unwrap();
    tokio::spawn(connection);
    let ask = || {
        let request = http::Request::get(format!("https://localhost{TARGET}")).header("cookie", "a=1").header("cookie", "b=2");
        request.body(Empty::<Bytes>::new()).unwrap()
    };
    let answer = sender.send_request(ask()).await.unwrap().into_body().collect().await.unwrap().to_bytes();
    assert_eq!(answer, "https localhost a=1; b=2");

    second.issue(dir.path(), "localhost");
    until(|| async { connect(&second.client(b"h2"), router.addr()).await.is_ok() }).await;
    assert!(connect(&first.client(b"h2"), router.addr()).await.is_err(), "new connections get the new certificate");
    assert!(sender.send_request(ask()).await.unwrap().status().is_success(), "and old ones go on");

    std::fs::write(dir.path().join("localhost.cert"), "nonsense").unwrap();
    tokio::time::sleep(std::time::Duration::from_secs(6)).await;
    assert!(connect(&second.client(b"http/1.1"), router.addr()).await.is_ok(), "what cannot be used is not used");
}

/// A node that takes TLS with certificates, and says whether it takes the other side for a router.
async fn tls_node(files: Files) -> std::net::SocketAddr {
    let acceptor = Acceptor::start(files, "node.tls", &[b"http/1.1"], CancellationToken::new()).unwrap();
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let addr = listener.local_addr().unwrap();
    tokio::spawn(async move {
        loop {
            let (stream, _) = listener.accept().await.unwrap();
            let acceptor = acceptor.current();
            tokio::spawn(async move {
                let Ok(mut stream) = acceptor.accept(stream).await else { return };
                let is_router = has_role(stream.get_ref().1.peer_certificates(), hearth_edge::tls::ROUTER);
                let mut buf = vec![0; 16 * 1024];
                let _ = stream.read(&mut buf).await;
                let body = if is_router { "router" } else { "nobody" };
                let answer = format!("HTTP/1.1 200 OK\r\nconnection: close\r\ncontent-length: 6\r\n\r\n{body}");
                let _ = stream.write_all(answer.as_bytes()).await;
                let _ = stream.shutdown().await;
            });
        }
    });
    addr
}

#[tokio::test]
async fn router_and_node_know_each_other_by_their_certificates() {
    let dir = tempfile::tempdir().unwrap();
    let (ours, theirs) = (Authority::new(), Authority::new());
    let other = dir.path().join("other");
    std::fs::create_dir(&other).unwrap();
    let node = tls_node(ours.issue(dir.path(), "node")).await;
    let false_name = tls_node(ours.issue(dir.path(), "function")).await;
    let false_authority = tls_node(theirs.issue(&other, "node")).await;
    for (role, addr, expected) in [
        ("router", node, "router"),
        ("admin", node, "nobody"),
        ("router", false_name, "no-capacity"),
        ("router", false_authority, "no-capacity"),
    ] {
        let nodes_tls = Some(ours.issue(dir.path(), role));
        let router = router(hearth_router::Config { nodes_tls, ..config() }, &[addr]).await;
        let answer = call(router.addr(), "GET").await;
        let is_refusal = expected == "no-capacity" && answer.contains(expected);
        assert!(is_refusal || answer.ends_with(expected), "{role}: {answer}");
    }
}

#[tokio::test]
async fn files_that_do_not_do_are_refused_by_name() {
    let dir = tempfile::tempdir().unwrap();
    let good = Authority::new().issue(dir.path(), "localhost");
    let missing = Files { key: dir.path().join("nowhere"), ..good.clone() };
    let swapped = Files { cert: good.key.clone(), key: good.cert.clone(), ca: None };
    for (files, word) in [(missing, "router.tls.key"), (swapped, "router.tls.cert")] {
        let config = hearth_router::Config { tls: Some(files), ..config() };
        let refused = hearth_router::Router::start(config, hearth_router::Deps { routes: Arc::new(table(&[], 1)) }).await;
        let Err(error) = refused else { panic!("it started") };
        assert!(error.to_string().contains(word), "{error}");
    }
}
