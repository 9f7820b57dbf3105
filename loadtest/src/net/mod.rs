//! The connection layer: dialling, pooled or fresh connections, HTTP/1.1 and HTTP/2, TLS, TCP and unix sockets. One [`Client`] belongs to one
//! single-threaded runtime. It never sends a request twice, except one that the connection gave back without having written any of it.

mod client;
mod dial;
mod failure;
mod payload;
mod tls;

pub use client::{Answer, Client};
pub use failure::{Failed, Failure};
pub use payload::Payload;
pub use tls::Trust;

use anyhow::{Context as _, bail};
use http::Uri;
use std::{net::SocketAddr, path::PathBuf, str::FromStr, sync::Arc, time::Duration};

/// Which version of HTTP is spoken.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Http {
    /// What TLS negotiates; 1.1 without TLS.
    #[default]
    Auto,
    /// HTTP/1.1.
    One,
    /// HTTP/2; without TLS, by prior knowledge.
    Two,
}

impl FromStr for Http {
    type Err = anyhow::Error;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        Ok(match text {
            "auto" => Self::Auto,
            "1" | "1.1" => Self::One,
            "2" => Self::Two,
            _ => bail!("{text:?} is not a version of HTTP: use auto, 1.1 or 2"),
        })
    }
}

/// Where requests go.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Address {
    /// A host and a port; the host is looked up once, before the load.
    Tcp(Vec<SocketAddr>),
    /// A unix socket.
    Unix(PathBuf),
}

/// One origin.
#[derive(Debug, Clone)]
pub struct Destination {
    /// Where it listens.
    pub address: Address,
    /// `host:port`, for the `host` header.
    pub authority: http::uri::Authority,
    /// The name that its certificate must carry; none without TLS.
    pub tls: Option<rustls::pki_types::ServerName<'static>>,
}

impl Destination {
    /// The origin of an `http` or `https` URL, looked up.
    ///
    /// # Errors
    /// Not such a URL, or the name does not resolve.
    pub async fn of(url: &Uri) -> anyhow::Result<Self> {
        let authority = url.authority().with_context(|| format!("{url} has no host"))?.clone();
        let host = authority.host().trim_start_matches('[').trim_end_matches(']').to_owned();
        let (secure, default_port) = match url.scheme_str() {
            Some("http") => (false, 80),
            Some("https") => (true, 443),
            other => bail!("{url}: the scheme is {}, http or https is expected", other.unwrap_or("missing")),
        };
        let port = authority.port_u16().unwrap_or(default_port);
        let lookup = tokio::time::timeout(Duration::from_secs(10), tokio::net::lookup_host((host.clone(), port)));
        let found = lookup.await.with_context(|| format!("looking up {host} took longer than 10 s"))?;
        let addresses: Vec<SocketAddr> = found.with_context(|| format!("looking up {host}"))?.collect();
        if addresses.is_empty() {
            bail!("{host} has no address");
        }
        let tls = if secure { Some(rustls::pki_types::ServerName::try_from(host)?) } else { None };
        Ok(Self { address: Address::Tcp(addresses), authority, tls })
    }

    /// A unix socket, whose `host` header says `localhost`.
    #[must_use]
    pub fn unix(path: impl Into<PathBuf>) -> Self {
        let authority = http::uri::Authority::from_static("localhost");
        Self { address: Address::Unix(path.into()), authority, tls: None }
    }

    /// `http://host:port` or `unix:path`, for messages.
    #[must_use]
    pub fn show(&self) -> String {
        match &self.address {
            Address::Unix(path) => format!("unix:{}", path.display()),
            Address::Tcp(_) if self.tls.is_some() => format!("https://{}", self.authority),
            Address::Tcp(_) => format!("http://{}", self.authority),
        }
    }
}

/// How connections are made.
#[derive(Debug, Clone)]
pub struct Options {
    /// Which HTTP.
    pub http: Http,
    /// A new connection for every request.
    pub fresh: bool,
    /// HTTP/2 connections per destination and thread; HTTP/1.1 opens as many as there are requests in flight.
    pub h2_connections: usize,
    /// Deadline of a dial, TLS included.
    pub dial_timeout: Duration,
    /// TLS; none where no destination uses it.
    pub tls: Option<Arc<rustls::ClientConfig>>,
}

impl Default for Options {
    fn default() -> Self {
        Self { http: Http::Auto, fresh: false, h2_connections: 1, dial_timeout: Duration::from_secs(5), tls: None }
    }
}
