//! Links to nodes that serve as real ones do, with functions that the test plays.

use crate::stub::{DEADLINE, Stub, TARGET, call, config, infos, metric, say, status, until};
use bytes::Bytes;
use hearth_edge::{
    BoxError,
    listen::{Listener, Options},
    patience::Terms,
    serve::{self, ClientBody, Peer, Protocol, Service},
    tls,
};
use hearth_router::{Config, Deps, FixedTable, Router};
use http::{Request, Response};
use http_body_util::{BodyExt, Full, combinators::UnsyncBoxBody};
use std::{
    net::SocketAddr,
    rc::Rc,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering::SeqCst},
    },
    time::Duration,
};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
    sync::Notify,
};
use tokio_util::sync::CancellationToken;

/// What its functions have seen.
#[derive(Default)]
struct Seen {
    begun: AtomicU64,
    given_up: AtomicU64,
    gate: Notify,
}

/// Says how it came and what with; waits at the gate where it is asked to.
struct Function(Arc<Seen>);

struct Begun(Arc<Seen>);

impl Drop for Begun {
    fn drop(&mut self) {
        self.0.given_up.fetch_add(1, SeqCst);
    }
}

impl Service for Function {
    type Body = UnsyncBoxBody<Bytes, BoxError>;

    async fn answer(self: Rc<Self>, peer: Rc<Peer>, request: Request<ClientBody>) -> Response<Self::Body> {
        let way = if matches!(request.body(), ClientBody::Whole(_)) { "link" } else { "http" };
        let begun = Begun(Arc::clone(&self.0));
        self.0.begun.fetch_add(u64::from(request.uri().path() != "/"), SeqCst);
        if request.uri().query() == Some("gate") {
            self.0.gate.notified().await;
        }
        let said = format!(
            "{} {} {} {} {}",
            request.method(),
            request.uri(),
            request.headers().get("x-custom").map_or("-", |v| v.to_str().unwrap()),
            request.headers().get("x-forwarded-for").map_or("-", |v| v.to_str().unwrap()),
            peer.is_router,
        );
        let body = request.into_body().collect().await.map_or(0, |body| body.to_bytes().len());
        std::mem::forget(begun);
        let answer = Full::new(Bytes::from(format!("{way} {said} {body}"))).map_err(|never| match never {});
        Response::builder().header("x-way", way).body(answer.boxed_unsync()).unwrap()
    }
}

struct Node {
    addr: SocketAddr,
    seen: Arc<Seen>,
    listener: Listener,
}

impl Node {
    async fn start(tls: Option<Arc<tls::Acceptor>>) -> Self {
        let (seen, draining) = (Arc::<Seen>::default(), CancellationToken::new());
        let protocol = Arc::new(Protocol {
            header_timeout: DEADLINE,
            first_byte_timeout: DEADLINE,
            write_terms: Terms { wait_max: DEADLINE, rate_min_bytes_per_s: 1 },
            head_bytes_max: 128 * 1024,
            headers_max: 200,
            tls,
            http2: None,
            links: true,
            trust_loopback: true,
            draining: draining.clone(),
        });
        let options = Options { name: "node", workers: 1, connections_max: 100, connections_per_address_max: 100 };
        let socket = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let functions = Arc::clone(&seen);
        let listener = Listener::start(socket, options, draining, move |connections| {
            serve::run(&protocol, connections, || Function(Arc::clone(&functions)));
        })
        .unwrap();
        Self { addr: listener.addr(), seen, listener }
    }

    fn begun(&self) -> u64 {
        self.seen.begun.load(SeqCst)
    }
}

/// A router whose first choice is a node that takes links, and has one to it.
async fn linked(config: Config, node: SocketAddr, others: &[SocketAddr]) -> Router {
    let addrs: Vec<_> = [node].iter().chain(others).copied().collect();
    let mut nodes = infos(&addrs, 1);
    nodes.iter_mut().filter(|info| info.addr == node).for_each(|info| info.links = true);
    let router = Router::start(config, Deps { routes: Arc::new(FixedTable::new(nodes, 1)) }).await.unwrap();
    // The first requests go over HTTP while the link is being opened.
    until(|| async { call(router.addr(), "GET").await.contains("x-way: link") }).await;
    router
}

async fn post(router: &Router, body: &str) -> String {
    let head =
        format!("POST {TARGET} HTTP/1.1\r\nhost: a\r\nconnection: close\r\nx-custom: x\r\ncontent-length: {}\r\n\r\n", body.len());
    say(router.addr(), &(head + body)).await
}

#[tokio::test]
async fn what_is_there_goes_over_a_link_and_the_rest_over_http() {
    let node = Node::start(None).await;
    let router = linked(config(), node.addr, &[]).await;
    let small = post(&router, "0123456789").await;
    assert!(small.ends_with(&format!("link POST {TARGET} x 127.0.0.1 true 10")), "{small}");
    let large = post(&router, &"x".repeat(100_000)).await;
    assert!(large.ends_with(&format!("http POST {TARGET} x 127.0.0.1 true 100000")), "{large}");
    let chunked =
        format!("PUT {TARGET} HTTP/1.1\r\nhost: a\r\nconnection: close\r\ntransfer-encoding: chunked\r\n\r\n3\r\nabc\r\n0\r\n\r\n");
    assert!(say(router.addr(), &chunked).await.ends_with("http PUT /run/acme/main/hello - 127.0.0.1 true 3"));
    let head = call(router.addr(), "HEAD").await;
    assert!(status(&head) == 200 && head.contains("x-way: link") && head.ends_with("\r\n\r\n"), "{head}");
    assert!(metric(&router, "hearth_router_linked_total").await >= 3.0);
}

#[tokio::test]
async fn a_node_that_takes_no_links_after_all_is_spoken_to_over_http() {
    let node = Stub::named("plain").await;
    let mut nodes = infos(&[node.addr], 1);
    nodes[0].links = true;
    let router = Router::start(config(), Deps { routes: Arc::new(FixedTable::new(nodes, 1)) }).await.unwrap();
    for _ in 0..20 {
        let answer = call(router.addr(), "POST").await;
        assert!(answer.ends_with("plain"), "{answer}");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    assert_eq!(metric(&router, "hearth_router_linked_total").await, 0.0);
}

#[tokio::test]
async fn who_breaks_off_an_upload_reaches_no_node() {
    let node = Node::start(None).await;
    let router = linked(config(), node.addr, &[]).await;
    let before = node.begun();
    let mut client = TcpStream::connect(router.addr()).await.unwrap();
    client.write_all(format!("POST {TARGET} HTTP/1.1\r\nhost: a\r\ncontent-length: 10\r\n\r\nhalf").as_bytes()).await.unwrap();
    client.shutdown().await.unwrap();
    let mut answer = String::new();
    let _ = client.read_to_string(&mut answer).await;
    assert!(answer.is_empty() || status(&answer) == 400, "{answer}");
    assert_eq!(node.begun(), before);
}

#[tokio::test]
async fn a_client_that_leaves_ends_its_call() {
    let node = Node::start(None).await;
    let router = linked(config(), node.addr, &[]).await;
    let before = node.begun();
    let mut client = TcpStream::connect(router.addr()).await.unwrap();
    client.write_all(format!("GET {TARGET}?gate HTTP/1.1\r\nhost: a\r\n\r\n").as_bytes()).await.unwrap();
    until(|| async { node.begun() == before + 1 }).await;
    assert_eq!(node.seen.given_up.load(SeqCst), 0);
    drop(client);
    until(|| async { node.seen.given_up.load(SeqCst) == 1 }).await;
}

fn gated(router: &Router, method: &str) -> tokio::task::JoinHandle<String> {
    let request = format!("{method} {TARGET}?gate HTTP/1.1\r\nhost: a\r\nconnection: close\r\ncontent-length: 0\r\n\r\n");
    let addr = router.addr();
    tokio::spawn(async move { say(addr, &request).await })
}

#[tokio::test]
async fn a_node_that_leaves_answers_what_it_has_and_nothing_is_lost() {
    let (node, other) = (Node::start(None).await, Stub::named("other").await);
    let router = linked(config(), node.addr, &[other.addr]).await;
    let before = node.begun();
    let waiting: Vec<_> = (0..5).map(|_| gated(&router, "POST")).collect();
    until(|| async { node.begun() == before + 5 }).await;
    let Node { seen, listener, .. } = node;
    let leaving = tokio::spawn(listener.shutdown(DEADLINE));
    // It takes no connections any more, and no more calls on the link.
    until(|| async { call(router.addr(), "POST").await.ends_with("other") }).await;
    seen.gate.notify_waiters();
    for answer in waiting {
        let answer = answer.await.unwrap();
        assert!(answer.contains("x-way: link") && status(&answer) == 200, "{answer}");
    }
    assert_eq!(leaving.await.unwrap(), 0, "connections that were cut");
}

#[tokio::test]
async fn a_node_that_dies_loses_only_what_may_not_be_repeated() {
    let (node, other) = (Node::start(None).await, Stub::named("other").await);
    let router = linked(config(), node.addr, &[other.addr]).await;
    let before = node.begun();
    let (get, post) = (gated(&router, "GET"), gated(&router, "POST"));
    until(|| async { node.begun() == before + 2 }).await;
    assert!(node.listener.shutdown(Duration::ZERO).await > 0);
    assert!(get.await.unwrap().ends_with("other"));
    let post = post.await.unwrap();
    assert!(status(&post) == 502 && post.contains("node-lost"), "{post}");
    assert!(call(router.addr(), "POST").await.ends_with("other"));
}

/// Takes connections, as the kernel does for a process that has stopped, and answers nothing once it is told to.
async fn stopping(silent: CancellationToken, to: SocketAddr) -> SocketAddr {
    crate::stub::raw(move |mut client| {
        let silent = silent.clone();
        async move {
            let Ok(mut node) = TcpStream::connect(to).await else { return };
            tokio::select! {
                _ = tokio::io::copy_bidirectional(&mut client, &mut node) => {}
                () = silent.cancelled() => std::future::pending().await,
            }
        }
    })
    .await
}

#[tokio::test]
async fn calls_that_wait_for_a_silent_node_are_told() {
    let (node, other, silent) = (Node::start(None).await, Stub::named("other").await, CancellationToken::new());
    let front = stopping(silent.clone(), node.addr).await;
    let router = linked(config(), front, &[other.addr]).await;
    silent.cancel();
    let (get, post) = tokio::join!(call(router.addr(), "GET"), call(router.addr(), "POST"));
    assert!(get.ends_with("other"), "{get}");
    assert!(status(&post) == 502 && post.contains("node-lost"), "{post}");
}

#[tokio::test]
async fn only_routers_may_open_links() {
    use hearth_model::protocol::link as frames;
    let dir = tempfile::tempdir().unwrap();
    let authority = crate::tls::Authority::new();
    let files = authority.issue(dir.path(), "node");
    let stop = CancellationToken::new();
    let acceptor = tls::Acceptor::start(files, "node.tls", &[frames::ALPN, b"http/1.1"], stop.clone()).unwrap();
    let node = Node::start(Some(acceptor)).await;
    let nodes_tls = Some(authority.issue(dir.path(), "router"));
    let router = linked(Config { nodes_tls, ..config() }, node.addr, &[]).await;
    assert!(post(&router, "ok").await.ends_with("x 127.0.0.1 true 2"));
    let other = tls::Connector::start(authority.issue(dir.path(), "admin"), "other", stop.clone()).unwrap();
    let stream = TcpStream::connect(node.addr).await.unwrap();
    let mut stream = other.connect(tls::NODE, &[frames::ALPN], stream).await.unwrap();
    let before = node.begun();
    let _ = stream.write_all(&[21, 0, 0, 0, 0, 0, 0, 0, 1]).await;
    let _ = stream.write_all(b"\x11\0\0\0GET\n/run/a/b/c").await;
    assert!(matches!(stream.read(&mut [0; 16]).await, Ok(0) | Err(_)));
    assert_eq!(node.begun(), before);
}
