//! A whole cluster of real processes on this machine: three members of etcd, the AWS stand-in, routers, nodes with real containers. Each node has
//! a data directory, ports and a label of its own. Everything is removed at the end, and logs are kept when a test has failed.

use crate::{
    Answer, Docker, Etcd, Net, binary,
    process::{Process, free_port, inside},
    until,
};
use reqwest::Method;
use rustix::process::Signal;
use serde_json::{Value, json};
use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
    sync::atomic::{AtomicU32, Ordering::Relaxed},
    time::{Duration, Instant},
};

/// How long a process may take to leave.
pub const LEAVE_TIMEOUT: Duration = Duration::from_secs(40);
/// How long a process may take to serve; the first start on a machine imports the images.
const SERVE_TIMEOUT: Duration = Duration::from_secs(120);
static STARTED: AtomicU32 = AtomicU32::new(0);

/// How many of what.
#[derive(Debug, Clone, Copy)]
pub struct Size {
    /// Members of etcd.
    pub etcd: usize,
    /// Routers.
    pub routers: usize,
    /// Nodes.
    pub nodes: usize,
}

impl Default for Size {
    fn default() -> Self {
        Self { etcd: 3, routers: 2, nodes: 3 }
    }
}

/// One process of Hearth and what it announced.
pub struct Member {
    /// `router-0`, `node-1`.
    pub name: String,
    role: &'static str,
    dir: PathBuf,
    process: Option<Process>,
    announced: Value,
    /// Its network namespace, where it has one of its own.
    namespace: Option<String>,
}

impl Member {
    fn new(root: &Path, role: &'static str, name: String) -> Self {
        let dir = root.join(&name);
        fs::create_dir_all(&dir).expect("a directory");
        Self { name, role, dir, process: None, announced: Value::Null, namespace: None }
    }

    fn text(&self, key: &str) -> String {
        self.announced[key].as_str().unwrap_or_else(|| panic!("{} announces no {key}", self.name)).to_owned()
    }

    /// Where it serves.
    #[must_use]
    pub fn url(&self) -> String {
        self.text("url")
    }

    /// Where its health and metrics are.
    #[must_use]
    pub fn ops_url(&self) -> String {
        self.text("ops_url")
    }

    /// What it has logged.
    #[must_use]
    pub fn log(&self) -> String {
        fs::read_to_string(self.dir.join("log")).unwrap_or_default()
    }

    /// The file that it is configured by.
    #[must_use]
    pub fn config_file(&self) -> PathBuf {
        self.dir.join("hearth.toml")
    }

    /// The command that starts it.
    #[must_use]
    pub fn command(&self) -> Command {
        let mut command = inside(self.namespace.as_deref(), binary());
        command.arg(self.role).arg("--config").arg(self.config_file()).arg("--announce").arg(self.dir.join("announced.json"));
        command.current_dir(&self.dir);
        without_settings(&mut command);
        // Debian keeps runc under an old number.
        command.env("HEARTH_DOCKER__ACCEPT_UNSAFE", "true");
        command.env("HEARTH_LOG", "info,hearth_node=debug,hearth_router=debug,hearth_placement=debug");
        // The stand-in checks no signatures, but the SDK insists on having something to sign with.
        command.envs([("AWS_ACCESS_KEY_ID", "test"), ("AWS_SECRET_ACCESS_KEY", "test"), ("AWS_REGION", "us-east-1")]);
        if self.role == "node" {
            command.env("HEARTH_DESTROY_CONTAINERS", "true");
        }
        command
    }

    /// Starts the process without waiting for it.
    pub fn spawn(&mut self) {
        let _ = fs::remove_file(self.dir.join("announced.json"));
        self.process = Some(Process::start(&self.name, self.command(), &self.dir.join("log")));
    }

    /// Waits until it serves.
    ///
    /// # Panics
    /// When it ends instead, or takes too long.
    pub async fn serves(&mut self) {
        let began = Instant::now();
        loop {
            if let Ok(text) = fs::read_to_string(self.dir.join("announced.json")) {
                self.announced = serde_json::from_str(&text).expect("JSON");
                return;
            }
            assert!(self.process.as_mut().is_some_and(Process::runs), "{} ended at once:\n{}", self.name, self.log());
            assert!(began.elapsed() < SERVE_TIMEOUT, "{} does not serve:\n{}", self.name, self.log());
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    }

    /// Starts, and waits until it serves.
    pub async fn start(&mut self) {
        self.spawn();
        self.serves().await;
    }

    /// Sends a signal.
    pub fn signal(&self, signal: Signal) {
        self.process().signal(signal);
    }

    /// SIGKILL.
    pub fn kill(&mut self) {
        if let Some(mut process) = self.process.take() {
            process.kill();
        }
    }

    /// SIGTERM, and waits until it has left.
    pub async fn stop(&mut self) {
        self.signal(Signal::TERM);
        self.left().await;
    }

    /// Waits until it has left by itself.
    ///
    /// # Panics
    /// When it does not, or not cleanly.
    pub async fn left(&mut self) {
        let status = self.process.as_mut().expect("a process").ended(LEAVE_TIMEOUT).await;
        self.process = None;
        assert!(status.success(), "{} ended with {status}:\n{}", self.name, self.log());
    }

    fn process(&self) -> &Process {
        self.process.as_ref().unwrap_or_else(|| panic!("{} does not run", self.name))
    }
}

/// The whole.
pub struct Cluster {
    dir: tempfile::TempDir,
    tag: String,
    /// The members of etcd.
    pub etcd: Etcd,
    stand_in: Process,
    /// The public edges.
    pub routers: Vec<Member>,
    /// The machines with containers.
    pub nodes: Vec<Member>,
    /// The admin token.
    pub token: String,
    http: reqwest::Client,
    stores: String,
    /// Where each member has a network namespace of its own.
    pub net: Option<Net>,
}

impl Cluster {
    /// Starts all of it and waits until every router sees every node.
    ///
    /// # Panics
    /// When it cannot.
    pub async fn start(size: Size) -> Self {
        let dir = tempfile::Builder::new().prefix("hearth-cluster-").tempdir().expect("a temporary directory");
        let root = dir.path().to_owned();
        let tag = format!("c{}-{}", std::process::id(), STARTED.fetch_add(1, Relaxed));
        let (etcd, (stand_in, endpoint)) = tokio::join!(Etcd::start(&root, size.etcd), stand_in(&root, "127.0.0.1"));
        Self::with(dir, tag, size, etcd, stand_in, &endpoint, None).await
    }

    /// As [`Self::start`], with each member of etcd, router and node in a network namespace of its own, so that they can be cut off from
    /// each other.
    ///
    /// # Panics
    /// When it cannot.
    pub async fn start_apart(size: Size) -> Self {
        let dir = tempfile::Builder::new().prefix("hearth-cluster-").tempdir().expect("a temporary directory");
        let root = dir.path().to_owned();
        let tag = format!("c{}-{}", std::process::id(), STARTED.fetch_add(1, Relaxed));
        let mut net = Net::new(&tag);
        let names = |kind: &'static str, count: usize| (0..count).map(move |n| format!("{kind}-{n}"));
        for name in names("etcd", size.etcd).chain(names("router", size.routers)).chain(names("node", size.nodes)) {
            net.join(&name);
        }
        let places: Vec<_> = names("etcd", size.etcd).map(|name| (net.address(&name).to_string(), Some(net.file(&name)))).collect();
        let own = Net::own_address().to_string();
        let (etcd, (stand_in, endpoint)) = tokio::join!(Etcd::start_at(&root, &places, None), stand_in(&root, &own));
        Self::with(dir, tag, size, etcd, stand_in, &endpoint, Some(net)).await
    }

    async fn with(
        dir: tempfile::TempDir,
        tag: String,
        size: Size,
        etcd: Etcd,
        stand_in: Process,
        endpoint: &str,
        net: Option<Net>,
    ) -> Self {
        let root = dir.path().to_owned();
        let http = crate::http_client().pool_max_idle_per_host(0).timeout(Duration::from_secs(60)).build().expect("a client");
        let stores = stores(endpoint, &root);
        let token = init_aws(&root, &stores);
        let member = |role: &'static str, n: usize| {
            let mut member = Member::new(&root, role, format!("{role}-{n}"));
            member.namespace = net.as_ref().map(|net| net.file(&member.name));
            member
        };
        let routers = (0..size.routers).map(|n| member("router", n)).collect();
        let nodes = (0..size.nodes).map(|n| member("node", n)).collect();
        let mut cluster = Self { dir, tag, etcd, stand_in, routers, nodes, token, http, stores, net };
        cluster.configure();
        for member in cluster.nodes.iter_mut().chain(&mut cluster.routers) {
            member.spawn();
        }
        for member in cluster.nodes.iter_mut().chain(&mut cluster.routers) {
            member.serves().await;
        }
        cluster.all_see(size.nodes).await;
        cluster
    }

    fn configure(&self) {
        for (n, node) in self.nodes.iter().enumerate() {
            fs::write(node.config_file(), self.node_config(n, &node.name)).expect("a file");
        }
        for router in &self.routers {
            let text = format!(
                "data_dir = \"data\"\ngrace = \"10s\"\n[leader]\nstray_after = \"5s\"\n\
                 [router]\nlisten = \"{0}:{1}\"\nops_listen = \"{0}:0\"\ndrain_lead = \"1s\"\n{2}",
                self.host(&router.name),
                free_port(),
                self.placement()
            );
            fs::write(router.config_file(), text).expect("a file");
        }
    }

    fn placement(&self) -> String {
        let endpoints = serde_json::to_string(&self.etcd.endpoints()).expect("JSON");
        format!("[placement]\nbackend = \"etcd\"\nendpoints = {endpoints}\n")
    }

    fn host(&self, name: &str) -> String {
        self.net.as_ref().map_or_else(|| "127.0.0.1".to_owned(), |net| net.address(name).to_string())
    }

    /// What a node in a namespace of its own needs: control calls are beyond the loopback there, so they take certificates; and containers
    /// have no way out, which would begin in that namespace and lead nowhere.
    fn apart(&self, host: &str) -> String {
        if self.net.is_none() {
            return String::new();
        }
        let certs = self.dir.path().join("certs");
        if !certs.exists() {
            let mut command = Command::new(binary());
            command.args(["admin", "certs", "--node", "all", "--out"]).arg(&certs);
            assert!(command.output().expect("hearth admin certs").status.success());
        }
        let certs = certs.display();
        format!(
            "control_listen = \"{host}:0\"\nlease_ttl = \"5s\"\n[docker.egress]\nmode = \"none\"\n\
             [cluster.tls]\nca = \"{certs}/ca.crt\"\ncert = \"{certs}/node-all.crt\"\nkey = \"{certs}/node-all.key\"\n"
        )
    }

    /// The configuration of the node with this number and name.
    #[must_use]
    pub fn node_config(&self, n: usize, name: &str) -> String {
        let host = self.host(name);
        format!(
            "data_dir = \"data\"\ngrace = \"10s\"\n\
             [docker]\ninstance = \"{}\"\n\
             [registry]\nurl = \"http://127.0.0.1:9/\"\n\
             [node]\nlisten = \"{host}:0\"\nops_listen = \"{host}:0\"\n\
             [node.proxy]\ntrust_router = true\n\
             [node.handler]\npool_size = 2\npool_max = 4\n\
             [cluster]\nnode_name = \"{name}\"\nzone = \"z{n}\"\n{}{}{}",
            self.instance(n),
            self.apart(&host),
            self.placement(),
            self.stores
        )
    }

    /// One more process of a role, configured but not started.
    #[must_use]
    pub fn another(&self, role: &'static str, name: &str, config: &str) -> Member {
        let member = Member::new(self.dir.path(), role, name.to_owned());
        fs::write(member.config_file(), config).expect("a file");
        member
    }

    /// The label of a node's containers.
    #[must_use]
    pub fn instance(&self, node: usize) -> String {
        format!("{}-{node}", self.tag)
    }

    /// A directory that goes with the cluster.
    #[must_use]
    pub fn scratch(&self) -> &Path {
        self.dir.path()
    }

    /// Section `store` of every node.
    #[must_use]
    pub fn stores(&self) -> &str {
        &self.stores
    }

    /// The routers' addresses.
    #[must_use]
    pub fn urls(&self) -> Vec<String> {
        self.routers.iter().map(Member::url).collect()
    }

    /// A management call with the admin token, by a router or node at `url`; `path` follows `/v1`.
    pub async fn api(&self, url: &str, method: Method, path: &str, body: Option<Value>) -> Answer {
        let mut request = self.http.request(method, format!("{url}/v1{path}")).bearer_auth(&self.token).header("prefer", "wait=30");
        if let Some(body) = body {
            request = request.json(&body);
        }
        Answer::of(request).await
    }

    /// Puts a function of one file through the first router.
    ///
    /// # Panics
    /// When it is refused.
    pub async fn deploy(&self, path: &str, code: &str) {
        let [tenant, container, function] = path.split('/').collect::<Vec<_>>()[..] else { panic!("{path} is no function's path") };
        let place = format!("/tenants/{tenant}/containers/{container}/functions/{function}");
        let answer = self.api(&self.urls()[0], Method::PUT, &place, Some(json!({ "code": code }))).await;
        assert!(matches!(answer.status, 200 | 201), "{path}: {} {}", answer.status, answer.text);
    }

    /// Calls a function through a router or node.
    pub async fn get(&self, url: &str, target: &str) -> Answer {
        Answer::of(self.http.get(format!("{url}/run/{target}"))).await
    }

    /// What a node says of itself and the cluster.
    pub async fn status(&self, url: &str) -> Value {
        self.api(url, Method::GET, "/status", None).await.expect(200).json()
    }

    /// Waits until every node's table has so many living nodes, and every router is ready.
    pub async fn all_see(&self, nodes: usize) {
        for node in self.nodes.iter().filter(|n| n.process.is_some()) {
            until(&format!("{} to see {nodes} nodes", node.name), async || {
                let status = self.status(&node.url()).await;
                let seen = status["cluster"]["nodes"].as_array()?.iter().filter(|n| n["answers"] == true).count();
                (seen == nodes).then_some(())
            })
            .await;
        }
        for router in self.routers.iter().filter(|r| r.process.is_some()) {
            until(&format!("{} to be ready", router.name), async || self.is_ready(router).await.then_some(())).await;
        }
    }

    /// Whether `readyz` says so.
    pub async fn is_ready(&self, member: &Member) -> bool {
        let answer = self.http.get(format!("{}/readyz", member.ops_url())).timeout(Duration::from_secs(2)).send().await;
        answer.is_ok_and(|a| a.status().is_success())
    }

    /// Whether a router's table has not been confirmed for too long.
    pub async fn is_stale(&self, router: &Member) -> bool {
        let metrics = Answer::of(self.http.get(format!("{}/metrics", router.ops_url()))).await;
        metrics.expect(200).text.contains("hearth_router_table_stale 1")
    }

    /// `hearth` as a client of the first router.
    #[must_use]
    pub fn client(&self, args: &[&str]) -> Command {
        let mut command = Command::new(binary());
        command.args(args).current_dir(self.dir.path()).env("HEARTH_URL", &self.urls()[0]).env("HEARTH_TOKEN", &self.token);
        command
    }

    /// Deploys so many tenants with a function each and calls each through every router until it is warm: their paths.
    pub async fn warm_tenants(&self, count: usize, code: &str) -> Vec<String> {
        let paths: Vec<String> = (0..count).map(|n| format!("t{n}/main/hello")).collect();
        for path in &paths {
            self.deploy(path, code).await;
            for url in self.urls() {
                self.get(&url, path).await.expect(200);
            }
        }
        paths
    }

    /// The node that answers a function now.
    pub async fn node_of(&self, target: &str) -> usize {
        let answer = self.get(&self.urls()[0], target).await;
        let name = answer.expect(200).header("hearth-node").to_owned();
        self.nodes.iter().position(|n| n.name == name).unwrap_or_else(|| panic!("hearth-node: {name:?}"))
    }
}

impl Drop for Cluster {
    fn drop(&mut self) {
        for member in self.routers.iter_mut().chain(&mut self.nodes) {
            if let Some(process) = &member.process
                && process.pid() > 0
            {
                process.signal(Signal::CONT);
                process.signal(Signal::TERM);
            }
        }
        for member in self.routers.iter_mut().chain(&mut self.nodes) {
            if let Some(mut process) = member.process.take() {
                process.leave(LEAVE_TIMEOUT);
            }
        }
        for n in 0..self.nodes.len() {
            Docker::of(&self.instance(n)).remove_all();
        }
        crate::aws::unmount_below(self.dir.path());
        self.stand_in.kill();
        if std::thread::panicking() {
            let test = std::thread::current().name().unwrap_or("test").replace("::", "-");
            let kept = binary().with_file_name("test-logs").join(test);
            let _ = fs::create_dir_all(&kept);
            for member in self.routers.iter().chain(&self.nodes) {
                let _ = fs::copy(member.dir.join("log"), kept.join(format!("{}.log", member.name)));
            }
            eprintln!("logs of routers and nodes: {}", kept.display());
        }
    }
}

/// What the environment of the tests says of Hearth is not meant for the processes under test.
fn without_settings(command: &mut Command) {
    for (name, _) in std::env::vars().filter(|(name, _)| name.starts_with("HEARTH_") && name != "HEARTH_IMAGE_CACHE") {
        command.env_remove(name);
    }
}

/// The AWS stand-in and its address.
async fn stand_in(root: &Path, host: &str) -> (Process, String) {
    let announced = root.join("stand-in.url");
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("../scripts/aws-stand-in.sh");
    let mut command = Command::new("bash");
    command.arg(script).args(["--host", host]).arg("--announce").arg(&announced);
    let log = root.join("stand-in.log");
    let process = Process::start("the AWS stand-in", command, &log);
    let url = until("the AWS stand-in", async || fs::read_to_string(&announced).ok().filter(|u| !u.trim().is_empty())).await;
    (process, url.trim().to_owned())
}

/// Section `store`, shared by all nodes.
fn stores(endpoint: &str, root: &Path) -> String {
    let at = format!("region = \"us-east-1\"\nendpoint_url = \"{endpoint}\"\n");
    let keys = root.join("secrets.key");
    format!(
        "[store.records]\nbackend = \"dynamodb\"\ntable = \"hearth\"\n{at}\
         [store.artifacts]\nbackend = \"s3\"\nbucket = \"hearth\"\n{at}\
         [store.queue]\nbackend = \"sqs\"\nqueue = \"hearth-builds\"\ndead_letter_queue = \"hearth-builds-dead\"\n{at}\
         [store.keys]\nbackend = \"file\"\npath = \"{}\"\n",
        keys.display()
    )
}

/// Makes table, bucket, queues and the first admin token.
fn init_aws(root: &Path, stores: &str) -> String {
    let config = root.join("admin.toml");
    fs::write(&config, stores).expect("a file");
    let token = root.join("admin.token");
    let mut command = Command::new(binary());
    without_settings(&mut command);
    let output = command
        .args(["admin", "init-aws", "--config"])
        .arg(&config)
        .arg("--token-file")
        .arg(&token)
        .envs([("AWS_ACCESS_KEY_ID", "test"), ("AWS_SECRET_ACCESS_KEY", "test"), ("AWS_REGION", "us-east-1")])
        .current_dir(root)
        .output()
        .expect("hearth admin init-aws");
    assert!(output.status.success(), "init-aws: {}", String::from_utf8_lossy(&output.stderr));
    fs::read_to_string(token).expect("the admin token").trim().to_owned()
}
