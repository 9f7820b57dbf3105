//! The npm registry as Hearth uses it: ranges become exact versions under a minimum age, install scripts are a matter of an allow list, and
//! builds see the registry only through a relay. It does not know containers or stores.

mod client;
pub mod config;
#[cfg(feature = "fake")]
pub mod fake;
mod flights;
mod packument;
mod pick;
pub mod relay;
mod resolve;
mod scripts;

pub use config::{Config, HostNpm};
pub use resolve::{ResolveError, Resolved};
pub use scripts::ScriptPolicy;

use client::Client;
use flights::Flights;
use hearth_model::Timestamp;
use packument::{Cached, Packument, WeighPackument};
use quick_cache::{OptionsBuilder, sync::Cache};
use std::sync::Arc;

/// Why the registry cannot be used at all.
#[derive(Debug, thiserror::Error)]
pub enum RegistryError {
    /// The host's npm configuration cannot be read.
    #[error("reading the npm configuration of this machine: {0}; install npm, or set registry.url")]
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
    /// The token cannot be used.
    #[error("registry.token_file {path}: {detail}")]
    Token {
        /// Which file.
        path: String,
        /// Why.
        detail: String,
    },
    /// The client cannot be built.
    #[error("preparing the registry client: {0}")]
    Client(String),
}

/// Packages whose descriptions are remembered, at most.
const PACKUMENTS_MAX: usize = 4_000;

/// The registry that this machine's npm is configured for.
pub struct Registry {
    inner: Arc<Inner>,
}

struct Inner {
    config: Config,
    client: Client,
    scripts: ScriptPolicy,
    packuments: Cache<String, Cached, WeighPackument>,
    fetching: Flights<String, Result<Arc<Packument>, ResolveError>>,
}

impl Registry {
    /// A client by the configuration; what it leaves open comes from this machine's npm, which is run for it.
    ///
    /// # Errors
    /// [`RegistryError`] when the two together make no usable client.
    pub fn new(config: Config) -> Result<Self, RegistryError> {
        let npm = HostNpm::read(&config)?;
        let client = Client::new(&config, npm)?;
        let scripts = ScriptPolicy::new(&config.scripts_allow);
        // In one piece: a description of several megabytes has to fit.
        let options = OptionsBuilder::new().shards(1).estimated_items_capacity(PACKUMENTS_MAX).weight_capacity(config.cache_size.as_u64()).build();
        let options = options.map_err(|e| RegistryError::Client(e.to_string()))?;
        let packuments = Cache::with_options(options, WeighPackument, Default::default(), Default::default());
        Ok(Self { inner: Arc::new(Inner { config, client, scripts, packuments, fetching: Flights::default() }) })
    }

    /// Which modules may run their install scripts.
    #[must_use]
    pub fn scripts(&self) -> &ScriptPolicy {
        &self.inner.scripts
    }

    /// What can be set.
    #[must_use]
    pub fn config(&self) -> &Config {
        &self.inner.config
    }
}

/// From when on versions of a module are old enough.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Gate {
    pub now_s: u64,
    pub min_age_s: u64,
}

impl Inner {
    pub(crate) fn gate(&self, name: &str, now: Timestamp) -> Gate {
        let excepted = self.config.min_release_age_except.contains(name);
        Gate { now_s: now.0 / 1_000, min_age_s: if excepted { 0 } else { self.config.min_release_age.as_secs() } }
    }
}
