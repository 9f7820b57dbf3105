//! TLS with certificates that are read again when their files change: the accepting side and the connecting side. Who the other
//! side is comes from the names in its certificate: `router` for routers, `node` for nodes. There is no fallback to plain text.

use arc_swap::ArcSwap;
use rustls::{
    ClientConfig, RootCertStore, ServerConfig,
    pki_types::{CertificateDer, PrivateKeyDer, ServerName, pem::PemObject},
    server::{ParsedCertificate, WebPkiClientVerifier},
};
use serde::{Deserialize, Serialize};
use std::{
    io,
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};
use tokio_util::sync::CancellationToken;

/// The name in a router's certificate.
pub const ROUTER: &str = "router";
/// The name in a node's certificate.
pub const NODE: &str = "node";

/// How often the files are looked at. A certificate is replaced days before it ends, so that seconds do not matter.
const RELOAD_EVERY: Duration = Duration::from_secs(5);
/// Far more than any chain; a larger file is something else.
const PEM_BYTES_MAX: u64 = 1024 * 1024;

/// Files of one side.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Files {
    /// Our certificate chain, PEM.
    pub cert: PathBuf,
    /// Its key, PEM.
    pub key: PathBuf,
    /// Who the other side's certificate must be signed by, PEM. On a listener: with it, clients must show a certificate; without it, none is asked for.
    #[serde(default)]
    pub ca: Option<PathBuf>,
}

/// Why TLS cannot be set up.
#[derive(Debug, thiserror::Error)]
pub enum TlsError {
    /// A file cannot be read or holds something else.
    #[error("{key} = {path}: {detail}")]
    File {
        /// The configuration key.
        key: String,
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        detail: String,
    },
    /// The files do not fit together.
    #[error("{key}: certificate, key and authority do not fit together: {source}")]
    Fit {
        /// The configuration section.
        key: String,
        /// The library's words.
        source: rustls::Error,
    },
    /// A connecting side without an authority would believe anybody.
    #[error("{key}.ca is missing; it says who the other side's certificate must be signed by")]
    NoAuthority {
        /// The configuration section.
        key: String,
    },
}

fn read(key: &str, field: &str, path: &Path) -> Result<Vec<u8>, TlsError> {
    let fail = |detail: String| TlsError::File { key: format!("{key}.{field}"), path: path.to_owned(), detail };
    match std::fs::metadata(path) {
        Ok(meta) if meta.len() > PEM_BYTES_MAX => return Err(fail(format!("has {} bytes and is no certificate", meta.len()))),
        _ => {}
    }
    std::fs::read(path).map_err(|error| fail(error.to_string()))
}

/// What the files hold at one moment; compared to see whether something changed.
#[derive(PartialEq, Eq)]
struct Contents {
    cert: Vec<u8>,
    key: Vec<u8>,
    ca: Option<Vec<u8>>,
}

impl Files {
    fn contents(&self, key: &str) -> Result<Contents, TlsError> {
        Ok(Contents {
            cert: read(key, "cert", &self.cert)?,
            key: read(key, "key", &self.key)?,
            ca: self.ca.as_deref().map(|ca| read(key, "ca", ca)).transpose()?,
        })
    }

    fn identity(&self, key: &str, contents: &Contents) -> Result<(Vec<CertificateDer<'static>>, PrivateKeyDer<'static>), TlsError> {
        let fail =
            |field: &str, path: &Path, detail: String| TlsError::File { key: format!("{key}.{field}"), path: path.into(), detail };
        let chain = CertificateDer::pem_slice_iter(&contents.cert)
            .collect::<Result<Vec<_>, _>>()
            .map_err(|error| fail("cert", &self.cert, format!("is no PEM: {error}")))?;
        if chain.is_empty() {
            return Err(fail("cert", &self.cert, "holds no certificate".into()));
        }
        let private = PrivateKeyDer::from_pem_slice(&contents.key)
            .map_err(|error| fail("key", &self.key, format!("holds no private key: {error}")))?;
        Ok((chain, private))
    }

    fn roots(&self, key: &str, contents: &Contents) -> Result<Option<Arc<RootCertStore>>, TlsError> {
        let (Some(path), Some(pem)) = (&self.ca, &contents.ca) else { return Ok(None) };
        let fail = |detail: String| TlsError::File { key: format!("{key}.ca"), path: path.clone(), detail };
        let mut roots = RootCertStore::empty();
        for cert in CertificateDer::pem_slice_iter(pem) {
            let cert = cert.map_err(|error| fail(format!("is no PEM: {error}")))?;
            roots.add(cert).map_err(|error| fail(error.to_string()))?;
        }
        if roots.is_empty() {
            return Err(fail("holds no certificate".into()));
        }
        Ok(Some(Arc::new(roots)))
    }
}

fn provider() -> Arc<rustls::crypto::CryptoProvider> {
    Arc::new(rustls::crypto::ring::default_provider())
}

fn server(files: &Files, key: &str, contents: &Contents, alpn: &[&[u8]]) -> Result<ServerConfig, TlsError> {
    let fit = |source| TlsError::Fit { key: key.into(), source };
    let (chain, private) = files.identity(key, contents)?;
    let builder = ServerConfig::builder_with_provider(provider()).with_safe_default_protocol_versions().map_err(fit)?;
    let builder = match files.roots(key, contents)? {
        Some(roots) => {
            let verifier = WebPkiClientVerifier::builder_with_provider(roots, provider())
                .build()
                .map_err(|error| fit(rustls::Error::General(error.to_string())))?;
            builder.with_client_cert_verifier(verifier)
        }
        None => builder.with_no_client_auth(),
    };
    let mut config = builder.with_single_cert(chain, private).map_err(fit)?;
    config.alpn_protocols = alpn.iter().map(|p| p.to_vec()).collect();
    Ok(config)
}

fn client(files: &Files, key: &str, contents: &Contents) -> Result<ClientConfig, TlsError> {
    let fit = |source| TlsError::Fit { key: key.into(), source };
    let (chain, private) = files.identity(key, contents)?;
    let roots = files.roots(key, contents)?.ok_or_else(|| TlsError::NoAuthority { key: key.into() })?;
    ClientConfig::builder_with_provider(provider())
        .with_safe_default_protocol_versions()
        .map_err(fit)?
        .with_root_certificates(roots)
        .with_client_auth_cert(chain, private)
        .map_err(fit)
}

/// The accepting side.
#[derive(Debug)]
pub struct Acceptor {
    current: ArcSwap<ServerConfig>,
}

impl Acceptor {
    /// Reads the files, and reads them again when they change until `stop`. `key` is the configuration section, for messages.
    ///
    /// # Errors
    /// [`TlsError`] when the files do not do at first; later ones that do not do are reported in the log, and the earlier stay.
    pub fn start(
        files: Files,
        key: &'static str,
        alpn: &'static [&'static [u8]],
        stop: CancellationToken,
    ) -> Result<Arc<Self>, TlsError> {
        let contents = files.contents(key)?;
        let acceptor = Arc::new(Self { current: ArcSwap::from_pointee(server(&files, key, &contents, alpn)?) });
        let shared = Arc::clone(&acceptor);
        tokio::spawn(watch(files, key, contents, stop, move |files, contents| {
            shared.current.store(Arc::new(server(files, key, contents, alpn)?));
            Ok(())
        }));
        Ok(acceptor)
    }

    /// Whether the other side must show a certificate, and the hand-shake with it.
    #[must_use]
    pub fn current(&self) -> tokio_rustls::TlsAcceptor {
        self.current.load_full().into()
    }
}

/// The connecting side.
#[derive(Debug)]
pub struct Connector {
    current: ArcSwap<ClientConfig>,
}

impl Connector {
    /// As [`Acceptor::start`].
    ///
    /// # Errors
    /// As [`Acceptor::start`]; also without an authority.
    pub fn start(files: Files, key: &'static str, stop: CancellationToken) -> Result<Arc<Self>, TlsError> {
        let contents = files.contents(key)?;
        let connector = Arc::new(Self { current: ArcSwap::from_pointee(client(&files, key, &contents)?) });
        let shared = Arc::clone(&connector);
        tokio::spawn(watch(files, key, contents, stop, move |files, contents| {
            shared.current.store(Arc::new(client(files, key, contents)?));
            Ok(())
        }));
        Ok(connector)
    }

    /// Connects; the other side's certificate must carry `name`. It is offered the protocols of `alpn`.
    ///
    /// # Errors
    /// The hand-shake's.
    pub async fn connect<T>(&self, name: &'static str, alpn: &[&[u8]], stream: T) -> io::Result<tokio_rustls::client::TlsStream<T>>
    where
        T: tokio::io::AsyncRead + tokio::io::AsyncWrite + Unpin,
    {
        let name = ServerName::try_from(name).map_err(io::Error::other)?;
        let connector = tokio_rustls::TlsConnector::from(self.current.load_full());
        connector.with_alpn(alpn.iter().map(|p| p.to_vec()).collect()).connect(name, stream).await
    }
}

async fn watch(
    files: Files,
    key: &'static str,
    mut known: Contents,
    stop: CancellationToken,
    apply: impl Fn(&Files, &Contents) -> Result<(), TlsError> + Send,
) {
    loop {
        tokio::select! {
            () = stop.cancelled() => return,
            () = tokio::time::sleep(RELOAD_EVERY) => {}
        }
        // Small files, rarely: reading them here holds nobody up.
        let outcome = match files.contents(key) {
            Ok(contents) if contents == known => continue,
            Ok(contents) => apply(&files, &contents).map(|()| known = contents),
            Err(error) => Err(error),
        };
        match outcome {
            Ok(()) => tracing::info!(key, "certificates were read again"),
            Err(error) => tracing::error!(key, %error, "new certificates cannot be used; the earlier ones stay"),
        }
    }
}

/// Whether a verified certificate carries this role's name.
#[must_use]
pub fn has_role(chain: Option<&[CertificateDer<'_>]>, role: &'static str) -> bool {
    let Some(leaf) = chain.and_then(<[_]>::first) else { return false };
    let (Ok(parsed), Ok(name)) = (ParsedCertificate::try_from(leaf), ServerName::try_from(role)) else { return false };
    rustls::client::verify_server_name(&parsed, &name).is_ok()
}
