//! The HTTP client of everything that is asked of the registry: its certificates, its proxy, its deadlines, few tries.

use crate::{Config, HostNpm, RegistryError, config::Required};
use bytes::Bytes;
use futures_util::StreamExt;
use http::{HeaderMap, header};
use rustls::pki_types::{CertificateDer, pem::PemObject};
use std::{fs, sync::Arc, time::Duration};
use tokio::sync::Semaphore;

/// Waits before the second and the third try.
const RETRY_AFTER: [Duration; 2] = [Duration::from_millis(200), Duration::from_millis(1_000)];
const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);

/// What came instead of an answer that can be used. Never holds an address, which may name what a tenant need not know.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Trouble {
    /// It knows nothing of this.
    Unknown,
    /// It does not want to tell.
    Refused(u16),
    /// It did not answer, or not well; another try may help.
    Away(String),
}

pub(crate) struct Client {
    http: reqwest::Client,
    npm: HostNpm,
    permits: Semaphore,
    request_timeout: Duration,
}

impl Client {
    pub fn new(config: &Config, npm: HostNpm) -> Result<Self, RegistryError> {
        for url in [&npm.url].into_iter().chain(npm.scopes.values()) {
            let bad = |detail: String| RegistryError::Url { url: url.clone(), detail };
            let parsed = reqwest::Url::parse(url).map_err(|e| bad(e.to_string()))?;
            if !matches!(parsed.scheme(), "http" | "https") {
                return Err(bad("it must start with https:// or http://".into()));
            }
        }
        let failed = |e: reqwest::Error| RegistryError::Client(e.to_string());
        let tls = rustls::ClientConfig::builder_with_provider(Arc::new(rustls::crypto::ring::default_provider()))
            .with_safe_default_protocol_versions()
            .map_err(|e| RegistryError::Client(e.to_string()))?
            .with_root_certificates(roots(&npm)?)
            .with_no_client_auth();
        let mut builder = reqwest::Client::builder()
            .tls_backend_preconfigured(tls)
            .connect_timeout(CONNECT_TIMEOUT)
            .redirect(reqwest::redirect::Policy::limited(3))
            .user_agent(concat!("hearth/", env!("CARGO_PKG_VERSION")));
        if let Some(proxy) = &npm.proxy {
            let except = npm.no_proxy.as_deref().and_then(reqwest::NoProxy::from_string);
            builder = builder.proxy(reqwest::Proxy::all(proxy).map_err(failed)?.no_proxy(except));
        }
        Ok(Self { http: builder.build().map_err(failed)?, npm, permits: Semaphore::new(config.requests_max.max(1)), request_timeout: config.request_timeout })
    }

    pub fn npm(&self) -> &HostNpm {
        &self.npm
    }

    /// The whole of a description, at most `limit` bytes, with its tag. None for the bytes when it is still the one of `known`.
    pub async fn description(&self, name: &str, accept: &str, known: Option<&str>, limit: usize) -> Result<(Option<Vec<u8>>, Option<String>), Trouble> {
        // The slash of a scoped name is encoded.
        let url = format!("{}{}", self.npm.base(name), name.replacen('/', "%2f", 1));
        let mut headers = HeaderMap::new();
        for (key, value) in [(header::ACCEPT, Some(accept)), (header::IF_NONE_MATCH, known)] {
            if let Some(value) = value.and_then(|v| v.parse().ok()) {
                headers.insert(key, value);
            }
        }
        let _permit = self.permits.acquire().await;
        let response = self.send(&url, headers, self.request_timeout).await?;
        let tag = response.headers().get(header::ETAG).and_then(|v| v.to_str().ok()).map(str::to_owned);
        if response.status() == 304 {
            return Ok((None, tag.or_else(|| known.map(str::to_owned))));
        }
        let mut body = Vec::new();
        let mut chunks = response.bytes_stream();
        while let Some(chunk) = chunks.next().await {
            let chunk = chunk.map_err(|e| Trouble::Away(plain(&e)))?;
            if body.len() + chunk.len() > limit {
                return Err(Trouble::Away(format!("its description has more than {limit} bytes")));
            }
            body.extend_from_slice(&chunk);
        }
        Ok((Some(body), tag))
    }

    /// A file's bytes as they come, in whatever size: counting is the caller's.
    pub async fn file(&self, url: &str, timeout: Duration, mut take: impl FnMut(Bytes) -> Result<(), Trouble>) -> Result<(), Trouble> {
        let _permit = self.permits.acquire().await;
        let response = self.send(url, HeaderMap::new(), timeout).await?;
        let mut chunks = response.bytes_stream();
        while let Some(chunk) = chunks.next().await {
            take(chunk.map_err(|e| Trouble::Away(plain(&e)))?)?;
        }
        Ok(())
    }

    /// Up to three tries; what is no success is trouble.
    async fn send(&self, url: &str, headers: HeaderMap, timeout: Duration) -> Result<reqwest::Response, Trouble> {
        let mut waits = RETRY_AFTER.iter();
        loop {
            let mut request = self.http.get(url).headers(headers.clone()).timeout(timeout);
            if let Some(value) = self.npm.authorization(url) {
                request = request.header(header::AUTHORIZATION, value);
            }
            let (detail, again) = match request.send().await {
                Ok(response) => match response.status().as_u16() {
                    200 | 304 => return Ok(response),
                    404 | 405 | 410 => return Err(Trouble::Unknown),
                    status @ (401 | 402 | 403 | 451) => return Err(Trouble::Refused(status)),
                    status => (format!("it answered {status}"), status == 429 || status >= 500),
                },
                // Who did not answer in time would hardly do so now.
                Err(error) => (plain(&error), !error.is_timeout()),
            };
            match waits.next() {
                Some(wait) if again => tokio::time::sleep(*wait).await,
                _ => return Err(Trouble::Away(detail)),
            }
        }
    }
}

fn plain(error: &reqwest::Error) -> String {
    if error.is_timeout() {
        "it did not answer in time".into()
    } else if error.is_connect() {
        "it cannot be reached".into()
    } else {
        "its answer broke off".into()
    }
}

fn roots(npm: &HostNpm) -> Result<rustls::RootCertStore, RegistryError> {
    let mut roots = rustls::RootCertStore::empty();
    let mut add = |pem: &[u8]| roots.add_parsable_certificates(CertificateDer::pem_slice_iter(pem).filter_map(Result::ok)).0;
    for (file, required) in &npm.ca_files {
        let fail = |detail: String| RegistryError::Ca { path: file.display().to_string(), detail };
        match (fs::read(file), required) {
            (Ok(pem), required) => {
                if add(&pem) == 0 && *required == Required::Yes {
                    return Err(fail("it holds no certificate that can be used".into()));
                }
            }
            (Err(e), Required::Yes) => return Err(fail(e.to_string())),
            (Err(_), Required::No) => {}
        }
    }
    for pem in &npm.ca {
        if add(pem.as_bytes()) == 0 {
            return Err(RegistryError::Ca { path: "npm's `ca`".into(), detail: "it is no certificate that can be used".into() });
        }
    }
    Ok(roots)
}
