//! The npm registry as Hearth uses it: ranges become exact versions under a minimum age, install scripts are a matter of an allow list, and
//! builds see the registry only through a relay. It does not know containers or stores.

pub mod config;
mod packument;
pub mod relay;
mod resolve;
mod scripts;

pub use config::{Config, HostNpm};
pub use resolve::{ResolveError, Resolved};
pub use scripts::ScriptPolicy;

use packument::Packument;
use quick_cache::sync::Cache;
use std::{
    sync::Arc,
    time::{Duration, Instant},
};

/// Why the registry cannot be used at all.
#[derive(Debug, thiserror::Error)]
pub enum RegistryError {
    /// The host's npm configuration cannot be read.
    #[error("reading the npm configuration of this machine: {0}; is npm installed?")]
    Npm(String),
    /// An address makes no sense.
    #[error("registry.url {url:?}: {detail}")]
    Url {
        /// Which.
        url: String,
        /// Why.
        detail: String,
    },
    /// A certificate cannot be used.
    #[error("CA certificates in {path}: {detail}")]
    Ca {
        /// Which file.
        path: String,
        /// Why.
        detail: String,
    },
    /// The client cannot be built.
    #[error("preparing the registry client: {0}")]
    Client(String),
}

/// Packages whose descriptions are remembered.
const PACKUMENTS_MAX: usize = 2_000;
/// How long a description is taken for current.
const FRESH_FOR: Duration = Duration::from_secs(60);
/// Requests to the registry at a time.
const REQUESTS_MAX: usize = 16;

/// The registry that this machine's npm is configured for.
pub struct Registry {
    config: Config,
    npm: HostNpm,
    http: reqwest::Client,
    scripts: ScriptPolicy,
    packuments: Cache<String, (Arc<Packument>, Instant)>,
    requests: tokio::sync::Semaphore,
    /// Who asks for a package's description; the others wait and find it known.
    turns: [tokio::sync::Mutex<()>; REQUESTS_MAX],
}

impl Registry {
    /// A client by the configuration; what it leaves open comes from this machine's npm.
    ///
    /// # Errors
    /// [`RegistryError`] when the two together make no usable client.
    pub fn new(config: Config) -> Result<Self, RegistryError> {
        let npm = config::HostNpm::read(&config)?;
        let http = config::client(&config, &npm)?;
        let scripts = ScriptPolicy::new(&config.scripts_allow);
        Ok(Self {
            config,
            npm,
            http,
            scripts,
            packuments: Cache::new(PACKUMENTS_MAX),
            requests: tokio::sync::Semaphore::new(REQUESTS_MAX),
            turns: Default::default(),
        })
    }

    /// Which modules may run their install scripts.
    #[must_use]
    pub fn scripts(&self) -> &ScriptPolicy {
        &self.scripts
    }

    /// What can be set.
    #[must_use]
    pub fn config(&self) -> &Config {
        &self.config
    }
}
