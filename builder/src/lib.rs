//! The builder: takes one npm module at one version off the queue, builds it in a confined container, and stores the closure as one
//! immutable artifact. It knows no requests and no tenant's code.
//!
//! A worker may end at any point: the record's epoch says who has the build, the queue delivers it again, and artifacts are
//! create-only.

pub mod closure;
mod container;
mod ops;
pub mod pack;
mod settle;
#[cfg(test)]
mod settle_model;
mod worker;

use bytesize::ByteSize;
use hearth_model::FunctionPath;
use hearth_registry::Registry;
use hearth_sandbox::Sandbox;
use hearth_store::{ArtifactStore, BuildQueue, FunctionStore};
use serde::{Deserialize, Serialize};
use std::{io, net::SocketAddr, path::PathBuf, sync::Arc, time::Duration};
use tokio_util::{sync::CancellationToken, task::TaskTracker};

/// The builder.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Config {
    /// Where operators ask how a builder by itself does; inside `hearth up` nothing listens there.
    pub ops_listen: SocketAddr,
    /// Builds at the same time.
    pub workers: usize,
    /// How long a build may take.
    #[serde(with = "humantime_serde")]
    pub build_timeout: Duration,
    /// How long a job stays hidden from other workers without a sign of life.
    #[serde(with = "humantime_serde")]
    pub visibility: Duration,
    /// Tries of a build whose failure may pass (the registry was away).
    pub attempts_max: u32,
    /// Wait before the second try; doubled for each further one.
    #[serde(with = "humantime_serde")]
    pub retry_after: Duration,
    /// Memory of a build's container, in MiB; what it writes counts.
    pub memory_mb: u64,
    /// What a build may write, npm's own cache included.
    pub output_max: ByteSize,
    /// Files and directories that a build may make.
    pub output_files_max: u32,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            ops_listen: SocketAddr::from(([127, 0, 0, 1], 9090)),
            workers: 2,
            build_timeout: Duration::from_secs(600),
            visibility: Duration::from_secs(60),
            attempts_max: 4,
            retry_after: Duration::from_secs(15),
            memory_mb: 4_096,
            output_max: ByteSize::gib(3),
            output_files_max: 500_000,
        }
    }
}

/// What the builder needs.
pub struct Deps {
    /// Module records and waiting versions.
    pub functions: Arc<dyn FunctionStore>,
    /// Takes artifacts.
    pub artifacts: Arc<dyn ArtifactStore>,
    /// Builds to do.
    pub queue: Arc<dyn BuildQueue>,
    /// Containers.
    pub sandbox: Arc<dyn Sandbox>,
    /// The registry that builds see through the relay.
    pub registry: Arc<Registry>,
    /// This process's files.
    pub data_dir: PathBuf,
    /// The runtime's program, whose `code-cache.js` makes V8 code caches.
    pub code_cache_dir: PathBuf,
    /// Whether this machine serves requests, too, so that builds keep to the CPUs for background work.
    pub beside_requests: bool,
    /// Told of functions whose version went live.
    pub on_settled: Arc<dyn Fn(&FunctionPath) + Send + Sync>,
}

/// Why the builder did not start.
#[derive(Debug, thiserror::Error)]
#[error("preparing {path}: {source}")]
pub struct StartError {
    path: PathBuf,
    source: io::Error,
}

/// A running builder.
pub struct Builder {
    config: Config,
    deps: Deps,
    /// Names this process in records.
    name: String,
    program_dir: PathBuf,
    counts: ops::Counts,
    leaving: CancellationToken,
    /// Cancelled last.
    left: CancellationToken,
    tasks: TaskTracker,
}

impl Builder {
    /// Starts the workers.
    ///
    /// # Errors
    /// [`StartError`] when its directory cannot be used.
    pub fn start(config: Config, deps: Deps) -> Result<Arc<Self>, StartError> {
        let program_dir = container::write_program(&deps.data_dir, &deps.code_cache_dir)?;
        let builder = Arc::new(Self {
            name: format!("builder-{}-{:08x}", std::process::id(), rand::random::<u32>()),
            counts: ops::Counts::new(config.workers.max(1)),
            config,
            deps,
            program_dir,
            leaving: CancellationToken::new(),
            left: CancellationToken::new(),
            tasks: TaskTracker::new(),
        });
        for n in 0..builder.config.workers.max(1) {
            builder.tasks.spawn(worker::run(Arc::clone(&builder), n));
        }
        builder.tasks.spawn(settle::sweep(Arc::clone(&builder)));
        Ok(builder)
    }

    /// Takes no more jobs, hands back those under way, and returns when nothing of it is left.
    pub async fn shutdown(&self) {
        self.leaving.cancel();
        self.tasks.close();
        if tokio::time::timeout(Duration::from_secs(30), self.tasks.wait()).await.is_err() {
            tracing::warn!("a build did not end in time; its job will be delivered again");
        }
        self.left.cancel();
    }
}
