//! A handler over Docker for tests and measurements, and requests to its containers.

#![allow(dead_code, reason = "each program uses its own part of this")]

use hearth_model::{
    CodeRef, Container, Function, FunctionPath, FunctionVersion, Tenant, TenantLimits, Timestamp, VersionNumber, VersionStatus,
};
use hearth_node::{
    handler::{Config, Deps, Handler, Lease},
    logs::LogHub,
    modules::{self, ModuleCache},
};
use hearth_sandbox::{
    Purpose, Sandbox,
    docker::{self, DockerSandbox},
    image, net,
};
use hearth_store::{Servable, Stores};
use std::{
    collections::BTreeMap,
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};
use tokio::io::{AsyncReadExt, AsyncWriteExt};

/// Longer than anything may take.
const LIMIT: Duration = Duration::from_secs(60);

/// Directories, stores and a Docker instance of its own.
pub struct Bed {
    instance: String,
    pub dir: tempfile::TempDir,
    pub sandbox: Arc<DockerSandbox>,
    pub stores: Stores,
    pub logs: Arc<LogHub>,
}

impl Bed {
    pub async fn new(name: &str) -> Self {
        let instance = format!("h{}-{name}", std::process::id());
        let egress = net::Config { mode: net::Mode::None, ..net::Config::default() };
        let sandbox = DockerSandbox::connect(docker::Config { instance: instance.clone(), egress, ..docker::Config::default() });
        let sandbox = Arc::new(sandbox.await.expect("a Docker engine"));
        let say = |line: &str| eprintln!("{line}");
        sandbox.ensure_image(&image::default_cache_dir(), Purpose::Runtime, &say).await.expect("the runtime's image");
        let dir = tempfile::tempdir().unwrap();
        let stores = hearth_store::open(&hearth_store::Config::embedded(dir.path())).await.unwrap();
        Self { instance, dir, sandbox, stores, logs: LogHub::new() }
    }

    pub async fn handler(&self, adjust: impl FnOnce(&mut Config)) -> Arc<Handler> {
        let mut config = Config::default();
        adjust(&mut config);
        let (functions, artifacts) = (Arc::clone(&self.stores.functions), Arc::clone(&self.stores.artifacts));
        let cache = ModuleCache::open(modules::Config::default(), self.dir.path(), Arc::clone(&functions), Arc::clone(&artifacts));
        let deps = Deps {
            sandbox: Arc::clone(&self.sandbox) as Arc<dyn Sandbox>,
            modules: cache.await.unwrap(),
            functions,
            artifacts,
            keyring: Arc::clone(&self.stores.keyring),
            logs: Arc::clone(&self.logs),
            data_dir: self.dir.path().to_owned(),
            runtime_dir: Path::new(env!("CARGO_MANIFEST_DIR")).join("../runtime").canonicalize().unwrap(),
        };
        Handler::start(config, deps).await.unwrap()
    }

    /// The slot's directory of a tenant's container.
    pub fn slot_of(&self, path: &str, handler: &Handler) -> PathBuf {
        let status = handler.status();
        let container = status.containers.iter().find(|c| format!("{}/{}", c.tenant, c.container) == path).unwrap();
        self.dir.path().join("slots").join(container.slot.to_string())
    }

    pub async fn containers(&self) -> usize {
        self.sandbox.list().await.unwrap().len()
    }

    /// Neither containers nor slots nor mounts.
    pub async fn assert_nothing_left(&self) {
        assert_eq!(self.containers().await, 0);
        assert_eq!(std::fs::read_dir(self.dir.path().join("slots")).unwrap().count(), 0);
        let slots = self.dir.path().join("slots");
        let mounts = std::fs::read_to_string("/proc/self/mounts").unwrap();
        let left: Vec<_> = mounts
            .lines()
            .filter_map(|l| l.split(' ').nth(1))
            .map(Path::new)
            .filter(|p| p.starts_with(&slots) && *p != slots)
            .collect();
        assert!(left.is_empty(), "{left:?}");
    }
}

impl Drop for Bed {
    fn drop(&mut self) {
        // Whatever a failed test left: its containers, and what is mounted below its directory.
        let run = |program: &str, args: &[&str]| std::process::Command::new(program).args(args).output();
        let label = format!("label=hearth.instance={}", self.instance);
        let ids = run("docker", &["ps", "-aq", "--filter", &label])
            .map(|o| String::from_utf8_lossy(&o.stdout).into_owned())
            .unwrap_or_default();
        for id in ids.split_whitespace() {
            let _ = run("docker", &["rm", "-f", id]);
        }
        let mounts = std::fs::read_to_string("/proc/self/mounts").unwrap_or_default();
        let points: Vec<&str> =
            mounts.lines().filter_map(|l| l.split(' ').nth(1)).filter(|p| Path::new(p).starts_with(self.dir.path())).collect();
        for point in points.into_iter().rev() {
            let _ = run("umount", &["-l", point]);
        }
    }
}

/// The record of a function as the catalog gives it.
pub fn servable(path: &str, code: &str) -> Servable {
    let path: FunctionPath = path.parse().unwrap();
    let at = Timestamp(1_000);
    let number = VersionNumber(1);
    let live = FunctionVersion {
        path: path.clone(),
        version: number,
        status: VersionStatus::Ready,
        code: CodeRef::Inline(BTreeMap::from([("index.js".to_owned(), code.to_owned())])),
        main: "index.js".into(),
        model: None,
        timeout_ms: 10_000,
        dependencies: BTreeMap::new(),
        modules: Vec::new(),
        env: BTreeMap::new(),
        secrets: BTreeMap::new(),
        created_at: at,
    };
    Servable {
        tenant: Tenant { name: path.tenant.clone(), limits: TenantLimits::default(), generation: 1, created_at: at },
        container: Container::with_defaults(&path.container_path(), at),
        function: Function { path, live: Some(number), latest: number, generation: 1, created_at: at, updated_at: at },
        live: Some(live),
    }
}

/// Calls a function in its container: status and body, status 0 when the connection broke.
pub async fn call(lease: &Lease, function: &str) -> (u16, String) {
    let talk = async {
        let mut stream = lease.container().connect().await?;
        let request =
            format!("GET /run HTTP/1.1\r\nhost: x\r\nconnection: close\r\nhearth-call: {function} r-1 10000 4 127.0.0.1\r\n\r\n");
        stream.write_all(request.as_bytes()).await?;
        let mut answer = String::new();
        stream.read_to_string(&mut answer).await?;
        Ok::<_, std::io::Error>(answer)
    };
    let answer = tokio::time::timeout(LIMIT, talk).await.expect("an answer in time").unwrap_or_default();
    let status = answer.split(' ').nth(1).and_then(|s| s.parse().ok()).unwrap_or(0);
    let body = answer.split_once("\r\n\r\n").map(|(_, body)| body.to_owned()).unwrap_or_default();
    // A chunked body of one chunk.
    let body = if answer.to_ascii_lowercase().contains("transfer-encoding: chunked") {
        body.lines().nth(1).unwrap_or_default().to_owned()
    } else {
        body
    };
    (status, body)
}

/// Waits until something holds.
pub async fn eventually(what: &str, holds: impl Fn() -> bool) {
    let waited = tokio::time::timeout(LIMIT, async {
        while !holds() {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    });
    assert!(waited.await.is_ok(), "not within {LIMIT:?}: {what}");
}
