//! Which coordinator there is; each variant carries all that it needs.

use crate::coordinator::{Coordinator, etcd::EtcdCoordinator, local::LocalCoordinator};
use serde::{Deserialize, Serialize};
use std::{path::PathBuf, sync::Arc, time::Duration};

/// The coordinator of a cluster, or of one machine.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "backend", rename_all = "lowercase", deny_unknown_fields)]
#[allow(clippy::large_enum_variant, reason = "there is one in a process")]
pub enum Config {
    /// In this process: one machine is the whole cluster. With braces, since keys that belong to another backend would pass unseen without.
    Local {},
    /// etcd.
    Etcd(EtcdConfig),
}

impl Default for Config {
    fn default() -> Self {
        Self::Local {}
    }
}

/// How etcd is reached.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct EtcdConfig {
    /// `host:port` or URLs of the members.
    pub endpoints: Vec<String>,
    /// Below which key everything lies; several clusters can share one etcd.
    #[serde(default = "prefix")]
    pub prefix: String,
    /// How long connecting may take.
    #[serde(default = "connect_deadline", with = "humantime_serde")]
    pub connect_deadline: Duration,
    /// How long each call may take.
    #[serde(default = "deadline", with = "humantime_serde")]
    pub deadline: Duration,
    /// Certificates; without them connections are plain.
    #[serde(default)]
    pub tls: Option<EtcdTls>,
    /// A user of etcd's own access control.
    #[serde(default)]
    pub user: Option<EtcdUser>,
}

/// Certificates for etcd.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct EtcdTls {
    /// Who signed the members' certificates (PEM file).
    pub ca: PathBuf,
    /// Our certificate (PEM file), together with `key`.
    #[serde(default)]
    pub cert: Option<PathBuf>,
    /// Its key (PEM file).
    #[serde(default)]
    pub key: Option<PathBuf>,
    /// The name expected in the members' certificates, where it is not the endpoint's.
    #[serde(default)]
    pub server_name: Option<String>,
}

/// A user of etcd.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct EtcdUser {
    /// The user's name.
    pub name: String,
    /// A file with the password.
    pub password_file: PathBuf,
}

/// The prefix of all keys unless another is configured.
pub const PREFIX: &str = "/hearth";

fn prefix() -> String {
    PREFIX.into()
}

const fn connect_deadline() -> Duration {
    Duration::from_secs(3)
}

const fn deadline() -> Duration {
    Duration::from_secs(2)
}

/// Why there is no coordinator. Fails the start; the text names the key and the remedy.
#[derive(Debug, thiserror::Error)]
pub enum ConnectError {
    /// The configuration contradicts itself.
    #[error("{field}: {reason}")]
    Invalid {
        /// The key.
        field: &'static str,
        /// What is wrong, and what to do.
        reason: String,
    },
    /// A file could not be read.
    #[error("{field}: cannot read {path}: {source}; `hearth admin certs` makes certificates for development")]
    File {
        /// The key.
        field: &'static str,
        /// The file.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
    },
    /// Nobody answered.
    #[error(
        "placement.endpoints: etcd at {endpoints} cannot be reached: {reason}. Check that it runs (`etcdctl endpoint health`) and that placement.tls fits its certificates, or set placement.backend = \"local\" for a single machine"
    )]
    Unreachable {
        /// All that were tried.
        endpoints: String,
        /// The last reason known.
        reason: String,
    },
}

impl EtcdConfig {
    /// The configuration with all defaults.
    #[must_use]
    pub fn new(endpoints: Vec<String>) -> Self {
        Self { endpoints, prefix: prefix(), connect_deadline: connect_deadline(), deadline: deadline(), tls: None, user: None }
    }

    /// Refuses what cannot work.
    ///
    /// # Errors
    /// [`ConnectError::Invalid`].
    pub fn validate(&self) -> Result<(), ConnectError> {
        let invalid = |field, reason: &str| Err(ConnectError::Invalid { field, reason: reason.into() });
        if self.endpoints.is_empty() {
            return invalid("placement.endpoints", "is empty; name at least one etcd member, as \"10.0.0.1:2379\"");
        }
        if !self.prefix.starts_with('/') || self.prefix.ends_with('/') || self.prefix.len() > 200 {
            return invalid("placement.prefix", "must begin with a slash, not end with one, and have at most 200 bytes");
        }
        if self.deadline.is_zero() || self.connect_deadline.is_zero() {
            return invalid("placement.deadline", "must be longer than nothing, as must placement.connect_deadline");
        }
        match &self.tls {
            Some(tls) if tls.cert.is_some() != tls.key.is_some() => {
                invalid("placement.tls", "has one of cert and key; give both or none")
            }
            None if self.endpoints.iter().any(|endpoint| endpoint.starts_with("https:")) => {
                invalid("placement.tls", "is missing, but an endpoint begins with https; set placement.tls.ca")
            }
            Some(_) if self.endpoints.iter().any(|endpoint| endpoint.starts_with("http:")) => {
                invalid("placement.endpoints", "begin with http, but placement.tls is set; write https, or host:port alone")
            }
            _ => Ok(()),
        }
    }
}

impl Config {
    /// Below which key everything lies.
    #[must_use]
    pub fn prefix(&self) -> &str {
        match self {
            Self::Local {} => PREFIX,
            Self::Etcd(etcd) => &etcd.prefix,
        }
    }
}

/// A coordinator that has answered.
///
/// # Errors
/// [`ConnectError`], which names the key of the configuration and the remedy.
pub async fn connect(config: &Config) -> Result<Arc<dyn Coordinator>, ConnectError> {
    let coordinator = connect_lazy(config).await?;
    if let Config::Etcd(etcd) = config {
        let answer = coordinator.get(&format!("{}/nodes/", etcd.prefix)).await;
        answer.map_err(|error| ConnectError::Unreachable { endpoints: etcd.endpoints.join(", "), reason: error.to_string() })?;
    }
    Ok(coordinator)
}

/// A coordinator that need not answer yet: for routers, which can serve from the table on their disk.
///
/// # Errors
/// [`ConnectError`] when the configuration is wrong.
pub async fn connect_lazy(config: &Config) -> Result<Arc<dyn Coordinator>, ConnectError> {
    Ok(match config {
        Config::Local {} => Arc::new(LocalCoordinator::new()),
        Config::Etcd(etcd) => Arc::new(EtcdCoordinator::new(etcd).await?),
    })
}
