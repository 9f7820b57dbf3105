//! The handler as a whole, over containers that are tasks of the test. Nothing sleeps: tests wait for what they expect.

mod adoption;
mod claims;
mod endings;
mod housekeeping;
mod hostile;
mod pools;
pub(super) mod scripted;

use super::{Config, Handler, LiveContainer, Parts};
use crate::logs::LogHub;
use hearth_model::{
    BuildKey, CodeRef, Container, Function, FunctionPath, FunctionVersion, ResolvedModule, Tenant, TenantLimits, Timestamp, VersionNumber,
    VersionStatus,
};
use hearth_store::{Servable, Stores};
use scripted::{Modules, Scripted};
use std::{collections::BTreeMap, path::Path, sync::Arc, time::Duration};

/// Longer than anything may take.
const LIMIT: Duration = Duration::from_secs(20);

struct Fixture {
    dir: tempfile::TempDir,
    sandbox: Scripted,
    modules: Arc<Modules>,
    stores: Stores,
    logs: Arc<LogHub>,
}

impl Fixture {
    async fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let stores = hearth_store::open(&hearth_store::Config::embedded(dir.path())).await.unwrap();
        Self { dir, sandbox: Scripted::new(), modules: Arc::default(), stores, logs: LogHub::new() }
    }

    async fn handler(&self, config: Config) -> Arc<Handler> {
        self.try_handler(config).await.unwrap()
    }

    async fn try_handler(&self, config: Config) -> Result<Arc<Handler>, super::StartError> {
        let parts = Parts {
            sandbox: Arc::new(self.sandbox.clone()),
            modules: Arc::clone(&self.modules) as _,
            functions: Arc::clone(&self.stores.functions),
            artifacts: Arc::clone(&self.stores.artifacts),
            keyring: Arc::clone(&self.stores.keyring),
            logs: Arc::clone(&self.logs),
            data_dir: self.dir.path().to_owned(),
            runtime_dir: self.dir.path().join("runtime"),
        };
        Handler::start_with(config, parts).await
    }

    fn slots(&self) -> Vec<String> {
        let entries = std::fs::read_dir(self.dir.path().join("slots")).unwrap();
        entries.map(|e| e.unwrap().file_name().into_string().unwrap()).collect()
    }

    fn slot(&self, container: &LiveContainer) -> std::path::PathBuf {
        self.dir.path().join("slots").join(container.slot.number.to_string())
    }
}

/// A pool that makes nothing by itself.
fn on_demand() -> Config {
    Config { pool_size: 0, pool_max: 0, ..Config::default() }
}

fn pool_of(size: u32) -> Config {
    Config { pool_size: size, pool_max: size, ..Config::default() }
}

/// Waits until something holds.
async fn eventually(what: &str, holds: impl Fn() -> bool) {
    let waited = tokio::time::timeout(LIMIT, async {
        while !holds() {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
    });
    assert!(waited.await.is_ok(), "not within {LIMIT:?}: {what}");
}

/// The record of a function as the catalog gives it.
struct Record(Servable);

fn record(path: &str) -> Record {
    let path: FunctionPath = path.parse().unwrap();
    let at = Timestamp(1_000);
    let tenant = Tenant { name: path.tenant.clone(), limits: TenantLimits::default(), generation: 1, created_at: at };
    let container = Container::with_defaults(&path.container_path(), at);
    let number = VersionNumber(1);
    let function = Function { path: path.clone(), live: Some(number), latest: number, generation: 1, created_at: at, updated_at: at };
    let live = FunctionVersion {
        path,
        version: number,
        status: VersionStatus::Ready,
        code: CodeRef::Inline(BTreeMap::from([("index.js".into(), "module.exports = cb => cb()".into())])),
        main: "index.js".into(),
        model: None,
        timeout_ms: 1_000,
        dependencies: BTreeMap::new(),
        modules: Vec::new(),
        env: BTreeMap::new(),
        secrets: BTreeMap::new(),
        created_at: at,
    };
    Record(Servable { tenant, container, function, live: Some(live) })
}

impl Record {
    fn version(mut self, number: u64, generation: u64) -> Self {
        self.0.function.live = Some(VersionNumber(number));
        self.0.function.generation = generation;
        self.live().version = VersionNumber(number);
        self
    }

    fn live(&mut self) -> &mut FunctionVersion {
        self.0.live.as_mut().unwrap()
    }

    fn concurrency(mut self, concurrency: u32) -> Self {
        self.0.container.concurrency = concurrency;
        self
    }

    fn memory(mut self, memory_mb: u64, generation: u64) -> Self {
        self.0.container.memory_mb = memory_mb;
        self.0.container.generation = generation;
        self
    }

    fn modules(mut self, names: &[&str]) -> Self {
        self.live().modules = modules(names);
        self
    }

    fn done(self) -> Arc<Servable> {
        Arc::new(self.0)
    }
}

fn modules(names: &[&str]) -> Vec<ResolvedModule> {
    let module = |name: &&str| ResolvedModule {
        spec: format!("{name}@1.0.0").parse().unwrap(),
        build: BuildKey((*name).into()),
        peers: Vec::new(),
        direct: true,
    };
    names.iter().map(module).collect()
}

fn files_of(dir: &Path) -> Vec<String> {
    let mut names: Vec<String> = std::fs::read_dir(dir).unwrap().map(|e| e.unwrap().file_name().into_string().unwrap()).collect();
    names.sort();
    names
}
