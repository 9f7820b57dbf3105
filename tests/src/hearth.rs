//! One `hearth up`: a process on real Docker, on ports that the system chose, with a data directory that goes when it goes.

use crate::{Answer, Docker, until};
use reqwest::{Method, RequestBuilder};
use rustix::process::{Pid, Signal, kill_process};
use serde_json::{Value, json};
use std::{
    fs::{self, File},
    path::{Path, PathBuf},
    process::{Child, Command, ExitStatus},
    sync::atomic::{AtomicU32, Ordering::Relaxed},
    time::{Duration, Instant},
};

/// How long a process may take to leave before it is killed: a `grace` in a test is shorter.
const LEAVE_TIMEOUT: Duration = Duration::from_secs(30);
/// Names the instances of one test program apart from each other.
static STARTED: AtomicU32 = AtomicU32::new(0);

/// How to start it.
#[derive(Debug, Clone)]
pub struct Options {
    /// Containers that wait in the pool.
    pub pool_size: usize,
    /// Configuration as environment variables, without the `HEARTH_` in front.
    pub env: Vec<(String, String)>,
    /// Leave containers for a next process on the same data directory.
    pub keep_containers: bool,
    /// Use the npm registry that this machine is configured for; otherwise it has none.
    pub registry: bool,
}

impl Default for Options {
    fn default() -> Self {
        Self { pool_size: 2, env: Vec::new(), keep_containers: false, registry: false }
    }
}

impl Options {
    /// Sets a key of the configuration: `node__handler__freeze_after` to `1s`.
    #[must_use]
    pub fn set(mut self, key: &str, value: impl ToString) -> Self {
        self.env.push((key.to_uppercase(), value.to_string()));
        self
    }
}

/// A running Hearth.
pub struct Hearth {
    dir: tempfile::TempDir,
    instance: String,
    options: Options,
    child: Option<Child>,
    http: reqwest::Client,
    /// `http://127.0.0.1:port`, functions and management.
    pub url: String,
    /// `http://127.0.0.1:port`, health and metrics.
    pub ops_url: String,
    /// The admin token.
    pub token: String,
}

static BINARY: std::sync::OnceLock<PathBuf> = std::sync::OnceLock::new();

/// Another program under test than the one beside the test programs; the first call counts.
pub fn use_binary(path: PathBuf) {
    let _ = BINARY.set(path);
}

/// Where the program under test is: as [`use_binary`] or `BINARY_UNDER_TEST` says (an absolute path), or else beside the test programs.
///
/// # Panics
/// When it has not been built.
#[must_use]
pub fn binary() -> PathBuf {
    if let Some(path) = BINARY.get() {
        return path.clone();
    }
    if let Some(named) = std::env::var_os("BINARY_UNDER_TEST") {
        return named.into();
    }
    let tests = std::env::current_exe().expect("this program");
    let found = tests.ancestors().skip(1).map(|dir| dir.join("hearth")).find(|path| path.is_file());
    found.unwrap_or_else(|| {
        panic!("no `hearth` beside {}: run `make test`, or `cargo build --workspace --all-targets`", tests.display())
    })
}

impl Hearth {
    /// Starts with the defaults of [`Options`], and waits until it serves and its pool is full.
    pub async fn start() -> Self {
        Self::with(Options::default()).await
    }

    /// Starts, and waits until it serves and its pool is full.
    pub async fn with(options: Options) -> Self {
        let mut hearth = Self::stopped(options);
        hearth.run().await;
        hearth.pool_is_full().await;
        hearth
    }

    /// Prepares everything but the process.
    ///
    /// # Panics
    /// When there is no temporary directory.
    #[must_use]
    pub fn stopped(options: Options) -> Self {
        let dir = tempfile::Builder::new().prefix("hearth-test-").tempdir().expect("a temporary directory");
        let instance = format!("t{}-{}", std::process::id(), STARTED.fetch_add(1, Relaxed));
        // A connection is used for one request at a time and thrown away: no test depends on what another left behind.
        let http = crate::http_client().pool_max_idle_per_host(0).timeout(Duration::from_secs(60)).build().expect("a client");
        let (url, ops_url, token) = Default::default();
        Self { dir, instance, options, child: None, http, url, ops_url, token }
    }

    /// The data directory.
    #[must_use]
    pub fn data_dir(&self) -> PathBuf {
        self.dir.path().join("data")
    }

    /// A directory for a test's own files, which goes with this.
    #[must_use]
    pub fn scratch(&self) -> &Path {
        self.dir.path()
    }

    /// Its containers.
    #[must_use]
    pub fn docker(&self) -> Docker {
        Docker::of(&self.instance)
    }

    /// Everything it has logged so far, over all its processes.
    #[must_use]
    pub fn log(&self) -> String {
        fs::read_to_string(self.log_file()).unwrap_or_default()
    }

    /// Memory that the process has in use.
    ///
    /// # Panics
    /// When it does not run.
    #[must_use]
    pub fn resident_bytes(&self) -> u64 {
        let statm = fs::read_to_string(format!("/proc/{}/statm", self.pid())).expect("a running process");
        statm.split(' ').nth(1).and_then(|pages| pages.parse::<u64>().ok()).expect("pages") * 4_096
    }

    /// The process.
    ///
    /// # Panics
    /// When it does not run.
    #[must_use]
    pub fn pid(&self) -> u32 {
        self.child.as_ref().expect("a running process").id()
    }

    fn log_file(&self) -> PathBuf {
        self.dir.path().join("hearth.log")
    }

    fn announced(&self) -> PathBuf {
        self.dir.path().join("announced.json")
    }

    /// The command that starts it, for tests of starts that fail.
    ///
    /// # Panics
    /// When its log cannot be written.
    #[must_use]
    pub fn command(&self, keep_containers: bool) -> Command {
        let log = File::options().create(true).append(true).open(self.log_file()).expect("a log file");
        let mut command = Command::new(binary());
        command
            .args([
                "up",
                "--listen",
                "127.0.0.1:0",
                "--ops-listen",
                "127.0.0.1:0",
                "--pool-size",
                &self.options.pool_size.to_string(),
            ])
            .arg("--data-dir")
            .arg(self.data_dir())
            .arg("--announce")
            .arg(self.announced())
            .current_dir(self.dir.path())
            .stdin(std::process::Stdio::null())
            .stdout(log.try_clone().expect("a log file"))
            .stderr(log);
        for (name, _) in std::env::vars().filter(|(name, _)| name.starts_with("HEARTH_") && name != "HEARTH_IMAGE_CACHE") {
            command.env_remove(name);
        }
        command.env("HEARTH_LOG", "info,hearth_node=debug,hearth_sandbox=debug,hearth_builder=debug");
        command.env("HEARTH_DOCKER__INSTANCE", &self.instance);
        command.env("HEARTH_GRACE", "5s");
        if !self.options.registry {
            // The port of the discard service, where nothing listens: nothing in such a test may need it.
            command.env("HEARTH_REGISTRY__URL", "http://127.0.0.1:9/");
        }
        if !keep_containers {
            command.env("HEARTH_DESTROY_CONTAINERS", "true");
        }
        command.envs(self.options.env.iter().map(|(key, value)| (format!("HEARTH_{key}"), value)));
        command
    }

    /// Starts a process and waits until it serves.
    ///
    /// # Panics
    /// When it does not.
    pub async fn run(&mut self) {
        let _ = fs::remove_file(self.announced());
        self.child = Some(self.command(self.options.keep_containers).spawn().expect("a process"));
        let began = Instant::now();
        let announced: Value = loop {
            if let Ok(text) = fs::read_to_string(self.announced()) {
                break serde_json::from_str(&text).expect("JSON");
            }
            if let Ok(Some(status)) = self.child.as_mut().expect("a process").try_wait() {
                self.child = None;
                panic!("hearth ended at once with {status}:\n{}", self.log());
            }
            // The first start on a machine imports the images.
            assert!(began.elapsed() < Duration::from_secs(120), "hearth does not serve:\n{}", self.log());
            tokio::time::sleep(Duration::from_millis(20)).await;
        };
        let text = |key: &str| announced[key].as_str().unwrap_or_default().to_owned();
        (self.url, self.ops_url) = (text("url"), text("ops_url"));
        text("token_file").clone_into(&mut self.token);
        self.token = fs::read_to_string(&self.token).expect("the admin token").trim().to_owned();
    }

    /// Waits until as many containers wait as should.
    pub async fn pool_is_full(&self) {
        let wanted = self.options.pool_size as u64;
        until("the pool to be full", async || {
            let pool = &self.status().await["handler"]["pool"];
            (pool["level"].as_u64()? >= wanted && pool["creating"] == 0).then_some(())
        })
        .await;
    }

    /// Containers that wait when the pool is full.
    #[must_use]
    pub fn pool_size(&self) -> usize {
        self.options.pool_size
    }

    /// Sends a signal to the process.
    ///
    /// # Panics
    /// When it does not run.
    pub fn signal(&self, signal: Signal) {
        let pid = Pid::from_raw(i32::try_from(self.pid()).expect("a pid")).expect("a pid");
        kill_process(pid, signal).expect("a running process");
    }

    /// Waits for the process to end.
    ///
    /// # Panics
    /// When it does not.
    pub async fn wait(&mut self) -> ExitStatus {
        let began = Instant::now();
        let child = self.child.as_mut().expect("a process");
        let status = loop {
            if let Some(status) = child.try_wait().expect("a child") {
                break status;
            }
            assert!(began.elapsed() < LEAVE_TIMEOUT, "hearth does not leave");
            tokio::time::sleep(Duration::from_millis(10)).await;
        };
        self.child = None;
        status
    }

    /// Asks it to leave, and waits until it has.
    pub async fn stop(&mut self) -> ExitStatus {
        self.signal(Signal::TERM);
        self.wait().await
    }

    /// Ends it as a loss of power would end it.
    pub async fn kill(&mut self) {
        self.signal(Signal::KILL);
        self.wait().await;
    }

    /// Settings of the next process.
    pub fn options(&mut self) -> &mut Options {
        &mut self.options
    }

    /// A management call with the admin token; `path` follows `/v1`.
    pub fn api(&self, method: Method, path: &str) -> RequestBuilder {
        self.http.request(method, format!("{}/v1{path}", self.url)).bearer_auth(&self.token)
    }

    /// A request without a token; `path` follows the server's address.
    pub fn request(&self, method: Method, path: &str) -> RequestBuilder {
        self.http.request(method, format!("{}{path}", self.url))
    }

    /// A request to the ops listener.
    pub fn ops(&self, path: &str) -> RequestBuilder {
        self.http.get(format!("{}{path}", self.ops_url))
    }

    /// A function's place in the management API.
    ///
    /// # Panics
    /// When `path` is not `tenant/container/function`.
    #[must_use]
    pub fn function(path: &str) -> String {
        let [tenant, container, function] = path.split('/').collect::<Vec<_>>()[..] else { panic!("{path} is no function's path") };
        format!("/tenants/{tenant}/containers/{container}/functions/{function}")
    }

    /// Puts a function, and waits until it serves.
    ///
    /// # Panics
    /// When it is refused.
    pub async fn deploy(&self, path: &str, body: Value) -> Value {
        let request = self.api(Method::PUT, &Self::function(path)).header("prefer", "wait=60").json(&body);
        let answer = Answer::of(request).await;
        assert!(matches!(answer.status, 200 | 201), "{path}: {} {}", answer.status, answer.text);
        answer.json()
    }

    /// Puts a function of one file.
    pub async fn deploy_code(&self, path: &str, code: &str) -> Value {
        self.deploy(path, json!({ "code": code })).await
    }

    /// Calls a function: `acme/main/hello?name=x`.
    pub async fn get(&self, target: &str) -> Answer {
        Answer::of(self.request(Method::GET, &format!("/run/{target}"))).await
    }

    /// Calls a function with a body.
    pub async fn post(&self, target: &str, body: impl Into<reqwest::Body>) -> Answer {
        Answer::of(self.request(Method::POST, &format!("/run/{target}")).body(body)).await
    }

    /// What the node says of itself.
    pub async fn status(&self) -> Value {
        Answer::of(self.api(Method::GET, "/status")).await.expect(200).json()
    }

    /// What the node says of one container (`tenant/container`); null when it has none.
    pub async fn container(&self, path: &str) -> Value {
        let status = self.status().await;
        let list = status["handler"]["list"].as_array().cloned().unwrap_or_default();
        list.into_iter().find(|c| c["path"] == path).unwrap_or_default()
    }

    /// The lines that a container has logged, as far as they are kept.
    pub async fn logs(&self, container: &str) -> Vec<Value> {
        let (tenant, name) = container.split_once('/').unwrap_or_else(|| panic!("{container} is no container's path"));
        let answer = Answer::of(self.api(Method::GET, &format!("/tenants/{tenant}/containers/{name}/logs?follow=false"))).await;
        answer
            .expect(200)
            .text
            .lines()
            .filter_map(|l| l.strip_prefix("data:"))
            .filter_map(|l| serde_json::from_str(l).ok())
            .collect()
    }

    /// Waits until a container has logged a line that contains `text`.
    pub async fn logged(&self, container: &str, text: &str) -> Value {
        until(&format!("the line {text:?}"), async || {
            self.logs(container).await.into_iter().find(|line| line["line"].as_str().is_some_and(|l| l.contains(text)))
        })
        .await
    }

    /// `hearth` as a client of this server, in the scratch directory.
    #[must_use]
    pub fn client(&self, args: &[&str]) -> Command {
        let mut command = Command::new(binary());
        command.args(args).current_dir(self.dir.path()).env("HEARTH_URL", &self.url).env("HEARTH_TOKEN", &self.token);
        command
    }

    fn leave(&mut self) {
        let Some(child) = &mut self.child else { return };
        if let Some(pid) = i32::try_from(child.id()).ok().and_then(Pid::from_raw) {
            let _ = kill_process(pid, Signal::TERM);
            let _ = kill_process(pid, Signal::CONT);
        }
        let began = Instant::now();
        while began.elapsed() < LEAVE_TIMEOUT {
            if !matches!(child.try_wait(), Ok(None)) {
                self.child = None;
                return;
            }
            std::thread::sleep(Duration::from_millis(10));
        }
        eprintln!("hearth (process {}) did not leave within {LEAVE_TIMEOUT:?} and is killed", child.id());
        let _ = child.kill();
        let _ = child.wait();
        self.child = None;
    }

    /// The directories of slots and modules are mounts, which stay for containers that outlive a process. With the containers gone they
    /// would keep the data directory from being removed, and each one makes every later start of a container slower.
    fn unmount(&self) {
        let Ok(dir) = self.dir.path().canonicalize() else { return };
        let mounts = fs::read_to_string("/proc/self/mountinfo").unwrap_or_default();
        let points = mounts.lines().filter_map(|line| line.split(' ').nth(4)).map(PathBuf::from);
        let ours: Vec<PathBuf> = points.filter(|point| point.starts_with(&dir)).collect();
        for point in ours.iter().rev() {
            let _ = rustix::mount::unmount(point, rustix::mount::UnmountFlags::DETACH);
        }
    }

    /// One more process, which removes what the ones before have left.
    fn sweep(&mut self) {
        let _ = fs::remove_file(self.announced());
        self.options.env.clear();
        self.child = self.command(false).spawn().ok();
        let began = Instant::now();
        while !self.announced().exists() && began.elapsed() < LEAVE_TIMEOUT {
            std::thread::sleep(Duration::from_millis(20));
        }
        self.leave();
    }
}

impl Drop for Hearth {
    /// Lets it leave, checks that nothing is left, and keeps its log when the test has failed.
    fn drop(&mut self) {
        let failed = std::thread::panicking();
        self.leave();
        let docker = self.docker();
        if docker.count() > 0 {
            self.sweep();
        }
        let left = docker.count();
        docker.remove_all();
        self.unmount();
        if failed {
            let name = std::thread::current().name().unwrap_or("test").replace("::", "-");
            let dir = binary().with_file_name("test-logs");
            let kept = dir.join(format!("{name}.log"));
            let _ = fs::create_dir_all(&dir).and_then(|()| fs::copy(self.log_file(), &kept));
            eprintln!("hearth's log: {}", kept.display());
        } else {
            assert_eq!(left, 0, "containers were left behind; hearth's log:\n{}", self.log());
        }
    }
}
