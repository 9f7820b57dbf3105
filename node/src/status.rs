//! What a node says of itself: `GET /v1/status`, `hearth status`, and the gauges of `/metrics`.

use crate::{
    catalog::Catalog,
    handler::{Handler, HandlerStatus},
    modules::{ModuleCache, ModuleCacheStatus},
};
use hearth_sandbox::Description;
use serde::Serialize;
use std::{
    sync::{Arc, atomic::Ordering::Relaxed},
    time::Instant,
};

/// A node's state at one moment.
#[derive(Debug, Serialize)]
pub struct NodeStatus {
    /// This program's version.
    pub version: &'static str,
    /// Seconds since the start.
    pub uptime_s: u64,
    /// The container engine.
    pub engine: String,
    /// What an operator should know and mend.
    pub warnings: Vec<String>,
    /// The images' identities by purpose.
    pub images: std::collections::BTreeMap<String, String>,
    /// Containers and the pool.
    pub handler: HandlerStatus,
    /// Modules on this machine.
    pub modules: ModuleCacheStatus,
    /// Function records on this machine.
    pub catalog: CatalogStatus,
}

/// The record cache at one moment.
#[derive(Debug, Serialize)]
pub struct CatalogStatus {
    /// Functions known.
    pub functions: usize,
    /// Reads of the store because nothing was known.
    pub misses: u64,
    /// Reads of the store in the background.
    pub revalidations: u64,
    /// Reads that failed.
    pub failures: u64,
}

/// Where the state is read from.
pub struct Source {
    handler: Arc<Handler>,
    modules: Arc<ModuleCache>,
    catalog: Arc<Catalog>,
    description: Description,
    started: Instant,
}

impl Source {
    /// A source over the running parts.
    #[must_use]
    pub fn new(handler: Arc<Handler>, modules: Arc<ModuleCache>, catalog: Arc<Catalog>, description: Description) -> Self {
        Self { handler, modules, catalog, description, started: Instant::now() }
    }

    /// The state now.
    #[must_use]
    pub fn read(&self) -> NodeStatus {
        let counters = self.catalog.counters();
        NodeStatus {
            version: env!("CARGO_PKG_VERSION"),
            uptime_s: self.started.elapsed().as_secs(),
            engine: self.description.engine.clone(),
            warnings: self.description.warnings.clone(),
            images: self.description.images.clone(),
            handler: self.handler.status(),
            modules: self.modules.status(),
            catalog: CatalogStatus {
                functions: self.catalog.len(),
                misses: counters.misses.load(Relaxed),
                revalidations: counters.revalidations.load(Relaxed),
                failures: counters.failures.load(Relaxed),
            },
        }
    }
}
