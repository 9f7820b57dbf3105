//! Workers against the embedded store and a sandbox that plays npm: failures that pass and those that do not, and a worker that is taken
//! for dead and comes back; stores that misbehave.

#![allow(clippy::print_stdout, reason = "seeds are for whoever runs the tests")]

use async_trait::async_trait;
use hearth_builder::{Builder, Config, Deps};
use hearth_model::{
    BuildKey, BuildState, CodeRef, Container, FunctionPath, ModuleRecord, ResolvedModule, Tenant, Timestamp, VersionNumber,
    VersionStatus, function::NodeVersion,
};
use hearth_registry::Registry;
use hearth_sandbox::{Description, Exit, Limits, Running, Sandbox, SandboxError, SandboxId, SandboxSpec, Usage};
use hearth_store::{
    ArtifactStore, BuildJob, BuildQueue, Delivery, NewVersion, Precondition, QueueError, Stores, aws::faulty::Faults,
    faulty::Faulty,
};
use serde_json::json;
use std::{
    collections::BTreeMap,
    fs,
    path::Path,
    sync::{
        Arc,
        atomic::{AtomicU32, Ordering::Relaxed},
    },
    time::{Duration, Instant},
};
use tokio::sync::Semaphore;

const KEY: &str = "some-build";
/// After so many deliveries a job is a dead letter.
const RECEIVES_MAX: u32 = 5;

/// What npm does.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Npm {
    Works,
    Fails,
    /// The container cannot be made.
    HasNoContainer,
}

struct Scripted {
    npm: Npm,
    /// Where what npm installs says who installed it.
    who: &'static str,
    /// A container ends when it gets one.
    may_end: Semaphore,
    created: AtomicU32,
}

impl Scripted {
    fn new(npm: Npm, who: &'static str, may_end: bool) -> Arc<Self> {
        let may_end = Semaphore::new(if may_end { 1_000 } else { 0 });
        Arc::new(Self { npm, who, may_end, created: AtomicU32::new(0) })
    }
}

fn install(out: &Path, who: &str) {
    let root = out.join("root");
    fs::create_dir_all(root.join("node_modules/x")).unwrap();
    fs::write(root.join("node_modules/x/index.js"), who).unwrap();
    let package = json!({ "version": "1.0.0", "resolved": "http://127.0.0.1:1/-/file/x/-/1.0.0.tgz", "integrity": "sha512-x" });
    let lock = json!({ "lockfileVersion": 3, "packages": { "node_modules/x": package } });
    fs::write(root.join("package-lock.json"), lock.to_string()).unwrap();
}

#[async_trait]
impl Sandbox for Scripted {
    async fn restrict(&self, _: &SandboxId, _: &hearth_model::Egress) -> Result<(), SandboxError> {
        unreachable!("a build is no tenant's")
    }
    async fn traffic(&self) -> Result<std::collections::HashMap<u32, hearth_sandbox::net::Traffic>, SandboxError> {
        Ok(Default::default())
    }
    async fn describe(&self) -> Result<Description, SandboxError> {
        Err(SandboxError::Failed { call: "describe", detail: "not asked for".into() })
    }
    async fn create(&self, spec: &SandboxSpec) -> Result<Running, SandboxError> {
        self.created.fetch_add(1, Relaxed);
        if self.npm == Npm::HasNoContainer {
            return Err(SandboxError::Failed { call: "create", detail: "no room".into() });
        }
        if self.npm == Npm::Works && spec.args[0].ends_with("build.js") {
            install(&spec.slot_dir.join("out"), self.who);
        }
        let id = SandboxId(format!("{}-{}", self.who, self.created.load(Relaxed)));
        Ok(Running { id, slot: spec.slot, pid: 1, purpose: spec.purpose, node: spec.node, image: String::new() })
    }
    async fn destroy(&self, _: &SandboxId) -> Result<(), SandboxError> {
        Ok(())
    }
    async fn freeze(&self, _: &SandboxId) -> Result<(), SandboxError> {
        Ok(())
    }
    async fn thaw(&self, _: &SandboxId) -> Result<(), SandboxError> {
        Ok(())
    }
    async fn resize(&self, _: &SandboxId, _: &Limits) -> Result<(), SandboxError> {
        Ok(())
    }
    async fn wait(&self, _: &SandboxId) -> Result<Exit, SandboxError> {
        self.may_end.acquire().await.unwrap().forget();
        Ok(Exit { code: Some(if self.npm == Npm::Fails { 1 } else { 0 }), out_of_memory: false })
    }
    async fn usage(&self, _: &SandboxId) -> Result<Usage, SandboxError> {
        Ok(Usage::default())
    }
    async fn output(&self, _: &SandboxId) -> Result<String, SandboxError> {
        Ok("npm error code E1\nnpm error it does not compile".into())
    }
    async fn list(&self) -> Result<Vec<Running>, SandboxError> {
        Ok(Vec::new())
    }
}

/// A queue that counts what it hands out, and towards which heartbeats may be lost on their way.
struct Watched {
    queue: Arc<dyn BuildQueue>,
    is_mute: bool,
    deliveries: AtomicU32,
}

impl Watched {
    fn new(queue: Arc<dyn BuildQueue>, is_mute: bool) -> Arc<Self> {
        Arc::new(Self { queue, is_mute, deliveries: AtomicU32::new(0) })
    }
}

#[async_trait]
impl BuildQueue for Watched {
    async fn ping(&self) -> Result<(), QueueError> {
        self.queue.ping().await
    }
    async fn send(&self, job: &BuildJob, delay: Duration) -> Result<(), QueueError> {
        self.queue.send(job, delay).await
    }
    async fn receive(&self, wait: Duration, visibility: Duration) -> Result<Option<Delivery>, QueueError> {
        let delivery = self.queue.receive(wait, visibility).await?;
        self.deliveries.fetch_add(u32::from(delivery.is_some()), Relaxed);
        Ok(delivery)
    }
    async fn extend(&self, delivery: &Delivery, visibility: Duration) -> Result<(), QueueError> {
        if !self.is_mute {
            return self.queue.extend(delivery, visibility).await;
        }
        Err(QueueError::Unavailable { call: "extend", resource: "queue".into(), detail: "lost on the way".into() })
    }
    async fn settle(&self, delivery: &Delivery) -> Result<(), QueueError> {
        self.queue.settle(delivery).await
    }
    async fn release(&self, delivery: &Delivery, delay: Duration) -> Result<(), QueueError> {
        self.queue.release(delivery, delay).await
    }
    async fn depth(&self) -> Result<u64, QueueError> {
        self.queue.depth().await
    }
    async fn receive_dead(&self, limit: usize, visibility: Duration) -> Result<Vec<Delivery>, QueueError> {
        self.queue.receive_dead(limit, visibility).await
    }
    async fn settle_dead(&self, delivery: &Delivery) -> Result<(), QueueError> {
        self.queue.settle_dead(delivery).await
    }
}

struct Bench {
    dir: tempfile::TempDir,
    stores: Stores,
    path: FunctionPath,
    attempts_max: u32,
}

impl Bench {
    /// A store with one version that waits for one build, whose job is in the queue.
    async fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let stores = hearth_store::open(&hearth_store::Config::embedded(dir.path())).await.unwrap();
        let path: FunctionPath = "acme/main/f".parse().unwrap();
        let functions = &stores.functions;
        let tenant = Tenant::new(path.tenant.clone());
        functions.put_tenant(tenant, Precondition::None).await.unwrap();
        functions.put_container(Container::with_defaults(&path.container_path(), Timestamp(0)), Precondition::None).await.unwrap();
        let (key, spec) = (BuildKey(KEY.into()), "x@1.0.0".parse().unwrap());
        let record = ModuleRecord {
            key: key.clone(),
            spec,
            node: NodeVersion::V24,
            scripts: false,
            state: BuildState::Queued,
            epoch: 0,
            attempts: 0,
            created_at: Timestamp(0),
            integrity: None,
            log: String::new(),
        };
        functions.put_module(record.clone(), None).await.unwrap();
        let module = ResolvedModule { spec: record.spec.clone(), build: key.clone(), peers: Vec::new(), direct: true };
        let version = NewVersion {
            status: VersionStatus::Building,
            code: CodeRef::Inline(BTreeMap::from([("index.js".into(), String::new())])),
            main: "index.js".into(),
            model: None,
            timeout_ms: 1_000,
            dependencies: BTreeMap::new(),
            modules: vec![module],
            env: BTreeMap::new(),
            secrets: BTreeMap::new(),
        };
        functions.create_version(&path, version, Precondition::None).await.unwrap();
        let job = BuildJob { key, spec: record.spec, node: NodeVersion::V24, scripts: false };
        stores.queue.send(&job, Duration::ZERO).await.unwrap();
        Self { dir, stores, path, attempts_max: 3 }
    }

    fn builder(&self, name: &str, sandbox: Arc<Scripted>, queue: Arc<dyn BuildQueue>) -> Arc<Builder> {
        let code_cache_dir = self.dir.path().join("runtime");
        fs::create_dir_all(&code_cache_dir).unwrap();
        for file in ["code-cache.js", "cache-loader.js"] {
            fs::write(code_cache_dir.join(file), "").unwrap();
        }
        // Nothing listens there, and nothing asks it: this npm is played.
        let registry = hearth_registry::Config { url: Some("http://127.0.0.1:9/".into()), ..Default::default() };
        let deps = Deps {
            functions: Arc::clone(&self.stores.functions),
            artifacts: Arc::clone(&self.stores.artifacts),
            queue,
            sandbox,
            registry: Arc::new(Registry::new(registry).unwrap()),
            data_dir: self.dir.path().join(name),
            code_cache_dir,
            beside_requests: false,
            on_settled: Arc::new(|_| {}),
        };
        let config = Config {
            workers: 1,
            visibility: Duration::from_millis(600),
            attempts_max: self.attempts_max,
            retry_after: Duration::from_millis(200),
            ..Config::default()
        };
        Builder::start(config, deps).unwrap()
    }

    async fn record(&self) -> ModuleRecord {
        self.stores.functions.get_module(&BuildKey(KEY.into())).await.unwrap().unwrap()
    }

    async fn until(&self, what: &str, holds: impl Fn(&ModuleRecord) -> bool) -> ModuleRecord {
        let began = Instant::now();
        loop {
            let record = self.record().await;
            if holds(&record) {
                return record;
            }
            assert!(began.elapsed() < Duration::from_secs(60), "still waiting for {what}: {record:?}");
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    }

    async fn version(&self) -> VersionStatus {
        self.stores.functions.get_version(&self.path, VersionNumber(1)).await.unwrap().unwrap().status
    }

    async fn settled(&self, holds: impl Fn(&VersionStatus) -> bool) {
        let began = Instant::now();
        while !holds(&self.version().await) {
            assert!(began.elapsed() < Duration::from_secs(60), "the version stays {:?}", self.version().await);
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    }

    async fn queue_is_empty(&self) {
        let began = Instant::now();
        while self.stores.queue.depth().await.unwrap() > 0 {
            assert!(began.elapsed() < Duration::from_secs(60), "a job stays in the queue");
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    }
}

fn is_over(record: &ModuleRecord) -> bool {
    matches!(record.state, BuildState::Ready { .. } | BuildState::Failed { retry_at: None, .. })
}

#[tokio::test(flavor = "multi_thread")]
async fn a_build_makes_its_version_ready() {
    let bench = Bench::new().await;
    let builder = bench.builder("one", Scripted::new(Npm::Works, "one", true), Arc::clone(&bench.stores.queue));
    let record = bench.until("the build", is_over).await;
    let BuildState::Ready { artifact, .. } = record.state else { panic!("{record:?}") };
    assert_eq!((artifact.files, record.epoch, record.attempts), (1, 1, 1));
    bench.queue_is_empty().await;
    assert_eq!(bench.version().await, VersionStatus::Ready);
    assert_eq!(bench.stores.artifacts.head(&artifact.sha256).await.unwrap(), Some(artifact.bytes));
    builder.shutdown().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_npm_refuses_is_told_with_its_log_and_not_tried_again() {
    let bench = Bench::new().await;
    let sandbox = Scripted::new(Npm::Fails, "one", true);
    let builder = bench.builder("one", Arc::clone(&sandbox), Arc::clone(&bench.stores.queue));
    let record = bench.until("the end", is_over).await;
    assert!(
        matches!(&record.state, BuildState::Failed { reason, retry_at: None, .. } if reason.contains("does not compile")),
        "{record:?}"
    );
    assert!(record.log.contains("npm error"));
    bench.queue_is_empty().await;
    assert!(matches!(bench.version().await, VersionStatus::Failed { reason } if reason.contains("x@1.0.0")));
    assert_eq!(sandbox.created.load(Relaxed), 1);
    builder.shutdown().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_may_pass_is_tried_again_after_growing_waits_and_given_up_in_the_end() {
    let bench = Bench::new().await;
    let sandbox = Scripted::new(Npm::HasNoContainer, "one", true);
    let builder = bench.builder("one", Arc::clone(&sandbox), Arc::clone(&bench.stores.queue));
    for (attempt, wait_ms) in [(1, 200), (2, 400)] {
        let failed = |r: &ModuleRecord| r.attempts == attempt && matches!(r.state, BuildState::Failed { .. });
        let record = bench.until("a failure", failed).await;
        let BuildState::Failed { failed_at, retry_at: Some(retry_at), .. } = record.state else { panic!("{record:?}") };
        let wait = retry_at.0.saturating_sub(failed_at.0);
        assert!((wait_ms - 5..=wait_ms + 50).contains(&wait), "after try {attempt} a wait of {wait} ms");
        assert_eq!(bench.version().await, VersionStatus::Building, "it may become ready yet");
    }
    let record = bench.until("the end", is_over).await;
    assert_eq!((record.attempts, sandbox.created.load(Relaxed)), (3, 3));
    bench.queue_is_empty().await;
    assert!(matches!(bench.version().await, VersionStatus::Failed { .. }));
    builder.shutdown().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_job_that_the_queue_gives_up_says_what_failed_last() {
    let mut bench = Bench::new().await;
    bench.attempts_max = RECEIVES_MAX + 5;
    let sandbox = Scripted::new(Npm::HasNoContainer, "one", true);
    let builder = bench.builder("one", Arc::clone(&sandbox), Arc::clone(&bench.stores.queue));
    let record = bench.until("the end", is_over).await;
    assert_eq!((record.attempts, sandbox.created.load(Relaxed)), (RECEIVES_MAX, RECEIVES_MAX));
    let BuildState::Failed { reason, .. } = record.state else { panic!("{record:?}") };
    assert!(reason.contains("no room"), "{reason}");
    bench.settled(|status| matches!(status, VersionStatus::Failed { reason } if reason.contains("no room"))).await;
    bench.queue_is_empty().await;
    builder.shutdown().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_build_ends_well_over_a_queue_and_a_store_that_misbehave() {
    for seed in seeds(3) {
        let mut bench = Bench::new().await;
        let good = Arc::clone(&bench.stores.artifacts);
        let watched = Watched::new(Arc::clone(&bench.stores.queue), false);
        let queue: Arc<dyn BuildQueue> = Arc::clone(&watched) as Arc<dyn BuildQueue>;
        let queue = Arc::new(Faulty::<dyn BuildQueue>::new(queue, Faults::MANY, seed));
        bench.stores.artifacts = Arc::new(Faulty::<dyn ArtifactStore>::new(Arc::clone(&good), Faults::MANY, seed));
        let builder = bench.builder("one", Scripted::new(Npm::Works, "one", true), queue);
        // A failure that may pass is tried again; three tries that all fail are one possible end, and so are deliveries that are lost on
        // their way until the queue gives up. Either must be told like any other.
        let record = bench.until("the end", is_over).await;
        match record.state {
            BuildState::Ready { artifact, .. } => {
                assert_eq!(good.head(&artifact.sha256).await.unwrap(), Some(artifact.bytes), "seed {seed}: what is ready is there");
                bench.settled(|status| *status == VersionStatus::Ready).await;
            }
            _ => {
                let deliveries = watched.deliveries.load(Relaxed);
                assert!(record.attempts == 3 || deliveries >= RECEIVES_MAX, "seed {seed}: {deliveries} deliveries, {record:?}");
                bench.settled(|status| matches!(status, VersionStatus::Failed { .. })).await;
            }
        }
        bench.queue_is_empty().await;
        builder.shutdown().await;
    }
}

/// Seeds of one run, printed; `HEARTH_TEST_SEED` names the first.
fn seeds(count: u64) -> std::ops::Range<u64> {
    let first =
        std::env::var("HEARTH_TEST_SEED").ok().and_then(|s| s.parse().ok()).unwrap_or_else(|| u64::from(std::process::id()));
    println!("HEARTH_TEST_SEED={first}");
    first..first + count
}

#[tokio::test(flavor = "multi_thread")]
async fn a_worker_taken_for_dead_cannot_undo_what_the_next_one_did() {
    let bench = Bench::new().await;
    let slow = Scripted::new(Npm::Works, "slow", false);
    let first = bench.builder("first", Arc::clone(&slow), Watched::new(Arc::clone(&bench.stores.queue), true));
    bench.until("the first to build", |r| r.epoch == 1).await;
    // Its signs of life are lost: the second gets the job, while the first goes on.
    let second = bench.builder("second", Scripted::new(Npm::Works, "second", true), Arc::clone(&bench.stores.queue));
    let settled = bench.until("the second to build", is_over).await;
    assert_eq!((settled.epoch, settled.attempts), (2, 2));
    slow.may_end.add_permits(1_000);
    let began = Instant::now();
    // Both of its containers end, and it comes to where it would write.
    while slow.may_end.available_permits() > 998 && began.elapsed() < Duration::from_secs(30) {
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    tokio::time::sleep(Duration::from_millis(200)).await;
    first.shutdown().await;
    assert_eq!(bench.record().await, settled, "the first has changed nothing");
    bench.queue_is_empty().await;
    second.shutdown().await;
}
