//! Nodes and builders as processes of their own on a stand-in for AWS services, on real Docker. Everything ends, and goes, with it.

use crate::{Answer, Docker, hearth::binary};
use reqwest::{Method, RequestBuilder};
use rustix::process::{Pid, Signal, kill_process};
use serde_json::{Value, json};
use std::{
    fs::{self, File},
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    sync::atomic::{AtomicU32, Ordering::Relaxed},
    time::{Duration, Instant},
};

static STARTED: AtomicU32 = AtomicU32::new(0);
/// How long a process may take until it serves; the first start on a machine imports the images.
const START_TIMEOUT: Duration = Duration::from_secs(120);
const LEAVE_TIMEOUT: Duration = Duration::from_secs(40);

/// A stand-in server with table, bucket and queues in it.
pub struct AwsWorld {
    dir: tempfile::TempDir,
    id: String,
    server: Option<Child>,
    /// The stand-in's address.
    pub url: String,
    /// An operator's token.
    pub token: String,
}

/// Which role a process has.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Role {
    /// `hearth node`.
    Node,
    /// `hearth builder`.
    Builder,
}

/// A node or a builder.
pub struct Process {
    role: Role,
    name: String,
    instance: String,
    dir: PathBuf,
    config: PathBuf,
    env: Vec<(String, String)>,
    child: Option<Child>,
    http: reqwest::Client,
    token: String,
    /// Where it serves; empty for a builder.
    pub url: String,
    /// Where its metrics are.
    pub ops_url: String,
}

fn wait_for(file: &Path, child: &mut Child, what: &str, log: &Path) -> String {
    let began = Instant::now();
    loop {
        if let Ok(text) = fs::read_to_string(file) {
            return text;
        }
        let log = || fs::read_to_string(log).unwrap_or_default();
        if let Ok(Some(status)) = child.try_wait() {
            panic!("{what} ended at once with {status}:\n{}", log());
        }
        assert!(began.elapsed() < START_TIMEOUT, "{what} does not serve:\n{}", log());
        std::thread::sleep(Duration::from_millis(20));
    }
}

fn credentials(command: &mut Command) {
    for (name, _) in
        std::env::vars().filter(|(n, _)| (n.starts_with("HEARTH_") && n != "HEARTH_IMAGE_CACHE") || n.starts_with("AWS_"))
    {
        command.env_remove(name);
    }
    command.envs([("AWS_ACCESS_KEY_ID", "stand-in"), ("AWS_SECRET_ACCESS_KEY", "stand-in"), ("AWS_REGION", "eu-central-1")]);
    // The machine's own configuration has no say.
    command.envs([
        ("AWS_CONFIG_FILE", "/dev/null"),
        ("AWS_SHARED_CREDENTIALS_FILE", "/dev/null"),
        ("AWS_EC2_METADATA_DISABLED", "true"),
    ]);
}

/// Signatures are not checked; the service is read from it.
fn authorization(service: &str) -> String {
    format!("AWS4-HMAC-SHA256 Credential=stand-in/20260101/eu-central-1/{service}/aws4_request, SignedHeaders=host, Signature=0")
}

/// A service that answers every request alike.
pub struct StubService {
    /// Its address.
    pub url: String,
    task: tokio::task::JoinHandle<()>,
}

impl StubService {
    /// Answers with this status and body on a port of its own, until it is dropped.
    ///
    /// # Panics
    /// When there is no port.
    pub async fn start(status: u16, body: &'static str) -> Self {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.expect("a port");
        let url = format!("http://{}", listener.local_addr().expect("an address"));
        let task = tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                tokio::spawn(answer_alike(stream, status, body));
            }
        });
        Self { url, task }
    }
}

impl Drop for StubService {
    fn drop(&mut self) {
        self.task.abort();
    }
}

/// One request of a connection: its head, its body by `content-length`, then the answer.
async fn answer_alike(mut stream: tokio::net::TcpStream, status: u16, body: &str) -> std::io::Result<()> {
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    let (mut read, mut head) = (Vec::new(), None);
    loop {
        if head.is_none() {
            head = read.windows(4).position(|w| w == b"\r\n\r\n").map(|at| at + 4);
        }
        if let Some(head) = head {
            let text = String::from_utf8_lossy(&read[..head]).to_ascii_lowercase();
            let length = text.lines().find_map(|l| l.strip_prefix("content-length: ")?.trim().parse::<usize>().ok());
            if read.len() >= head + length.unwrap_or(0) {
                let body = if text.starts_with("head ") { "" } else { body };
                let kind = if body.starts_with('<') { "application/xml" } else { "application/x-amz-json-1.0" };
                let answer = format!(
                    "HTTP/1.1 {status} Stub\r\ncontent-type: {kind}\r\ncontent-length: {}\r\nconnection: close\r\n\r\n{body}",
                    body.len()
                );
                return stream.write_all(answer.as_bytes()).await;
            }
        }
        if stream.read_buf(&mut read).await? == 0 || read.len() > 1 << 20 {
            return Ok(());
        }
    }
}

impl AwsWorld {
    /// Starts the stand-in and makes what `hearth admin init-aws` makes.
    ///
    /// # Panics
    /// When the stand-in cannot be had: nothing is skipped.
    #[must_use]
    pub fn start() -> Self {
        let dir = tempfile::Builder::new().prefix("hearth-aws-").tempdir().expect("a temporary directory");
        let id = format!("a{}-{}", std::process::id(), STARTED.fetch_add(1, Relaxed));
        let (announced, log) = (dir.path().join("aws.url"), dir.path().join("aws.log"));
        let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("../scripts/aws-stand-in.sh");
        let mut server = Command::new(script)
            .arg("--announce")
            .arg(&announced)
            .arg("--until-stdin-ends")
            .stdin(Stdio::piped())
            .stdout(Stdio::null())
            .stderr(File::create(&log).expect("a log file"))
            .spawn()
            .expect("the stand-in for AWS");
        let url = wait_for(&announced, &mut server, "the stand-in for AWS (scripts/setup.sh aws installs it)", &log);
        let mut world = Self { dir, id, server: Some(server), url, token: String::new() };
        world.init();
        world
    }

    fn init(&mut self) {
        let path = self.dir.path();
        let text = format!(
            "[store.records]\nbackend = \"dynamodb\"\ntable = \"hearth\"\nendpoint_url = \"{url}\"\n\
             [store.artifacts]\nbackend = \"s3\"\nbucket = \"hearth\"\nendpoint_url = \"{url}\"\n\
             [store.queue]\nbackend = \"sqs\"\nqueue = \"builds\"\ndead_letter_queue = \"builds-dead\"\nendpoint_url = \"{url}\"\n\
             [store.keys]\nbackend = \"file\"\npath = \"{}\"\n\
             [store.timeouts]\nread = \"2s\"\nwrite = \"3s\"\n",
            path.join("secrets.key").display(),
            url = self.url
        );
        fs::write(self.config(), text).expect("a configuration");
        let token_file = path.join("admin.token");
        let init = self.admin(&["init-aws", "--token-file", token_file.to_str().expect("a path")]);
        assert!(init.status.success(), "init-aws: {}", String::from_utf8_lossy(&init.stderr));
        fs::read_to_string(&token_file).expect("the token").trim().clone_into(&mut self.token);
    }

    fn config(&self) -> PathBuf {
        self.dir.path().join("hearth.toml")
    }

    /// Runs `hearth admin` with the configuration of this world.
    ///
    /// # Panics
    /// When it cannot be started.
    #[must_use]
    pub fn admin(&self, args: &[&str]) -> std::process::Output {
        let mut command = Command::new(binary());
        command.arg("admin").args(args).arg("--config").arg(self.config());
        credentials(&mut command);
        command.output().expect("a process")
    }

    /// Prepares a process of this role; nothing runs yet.
    ///
    /// # Panics
    /// When there is no HTTP client.
    #[must_use]
    pub fn process(&self, role: Role, name: &str) -> Process {
        let http = crate::http_client().pool_max_idle_per_host(0).timeout(Duration::from_secs(90)).build().expect("a client");
        Process {
            role,
            name: name.to_owned(),
            instance: format!("{}-{name}", self.id),
            dir: self.dir.path().to_owned(),
            config: self.config(),
            env: Vec::new(),
            child: None,
            http,
            token: self.token.clone(),
            url: String::new(),
            ops_url: String::new(),
        }
    }

    /// Ends the stand-in, as if all services were out of reach.
    pub fn end_services(&mut self) {
        if let Some(mut server) = self.server.take() {
            let _ = server.kill();
            let _ = server.wait();
        }
    }

    /// Asks a service of the stand-in directly.
    ///
    /// # Panics
    /// When it does not answer.
    pub async fn ask(&self, service: &str, target: &str, body: Value) -> Value {
        let client = crate::http_client().timeout(Duration::from_secs(30)).build().expect("a client");
        let request = client
            .post(&self.url)
            .header("x-amz-target", target)
            .header("content-type", "application/x-amz-json-1.0")
            .header("authorization", authorization(service))
            .body(body.to_string());
        Answer::of(request).await.expect(200).json()
    }

    /// Puts an object past Hearth; `path` is bucket and key.
    ///
    /// # Panics
    /// When the stand-in refuses.
    pub async fn put_object(&self, path: &str, text: &str) {
        let client = crate::http_client().timeout(Duration::from_secs(30)).build().expect("a client");
        let request = client.put(format!("{}/{path}", self.url)).header("authorization", authorization("s3")).body(text.to_owned());
        Answer::of(request).await.expect(200);
    }

    /// Messages of a queue: waiting, delayed and in flight.
    pub async fn messages(&self, queue: &str) -> u64 {
        let url = format!("{}/123456789012/{queue}", self.url);
        let body = json!({ "QueueUrl": url, "AttributeNames": ["All"] });
        let answer = self.ask("sqs", "AmazonSQS.GetQueueAttributes", body).await;
        let count = |name: &str| answer["Attributes"][name].as_str().and_then(|n| n.parse::<u64>().ok()).unwrap_or(0);
        count("ApproximateNumberOfMessages")
            + count("ApproximateNumberOfMessagesNotVisible")
            + count("ApproximateNumberOfMessagesDelayed")
    }
}

/// A process leaves the mounts of its data directory to the next one on it; here there is none.
pub(crate) fn unmount_below(dir: &Path) {
    let mounts = fs::read_to_string("/proc/self/mounts").unwrap_or_default();
    let below = mounts.lines().filter_map(|line| line.split(' ').nth(1)).filter(|at| Path::new(at).starts_with(dir));
    // The innermost were mounted last.
    for at in below.collect::<Vec<_>>().into_iter().rev() {
        let _ = Command::new("umount").args(["--lazy", at]).status();
    }
}

impl Drop for AwsWorld {
    fn drop(&mut self) {
        self.end_services();
        unmount_below(self.dir.path());
        if std::thread::panicking() {
            let kept = binary().with_file_name("test-logs").join(&self.id);
            let _ = fs::create_dir_all(&kept);
            for entry in fs::read_dir(self.dir.path()).into_iter().flatten().flatten() {
                if entry.path().extension().is_some_and(|e| e == "log") {
                    let _ = fs::copy(entry.path(), kept.join(entry.file_name()));
                }
            }
            eprintln!("logs of all processes: {}", kept.display());
        }
    }
}

impl Process {
    /// Sets a key of the configuration.
    #[must_use]
    pub fn set(mut self, key: &str, value: impl ToString) -> Self {
        self.env.push((format!("HEARTH_{}", key.to_uppercase()), value.to_string()));
        self
    }

    fn log_file(&self) -> PathBuf {
        self.dir.join(format!("{}.log", self.name))
    }

    /// Everything that it has logged, over all its lives.
    #[must_use]
    pub fn log(&self) -> String {
        fs::read_to_string(self.log_file()).unwrap_or_default()
    }

    /// Starts it, and waits until it serves.
    ///
    /// # Panics
    /// When it does not start.
    pub fn run(&mut self) {
        let announced = self.announced();
        let _ = fs::remove_file(&announced);
        let mut child = self.spawn();
        let text = wait_for(&announced, &mut child, &self.name, &self.log_file());
        let announced: Value = serde_json::from_str(&text).expect("JSON");
        let text = |key: &str| announced[key].as_str().unwrap_or_default().to_owned();
        (self.url, self.ops_url) = (text("url"), text("ops_url"));
        self.child = Some(child);
    }

    fn announced(&self) -> PathBuf {
        self.dir.join(format!("{}.json", self.name))
    }

    fn spawn(&self) -> Child {
        let log = File::options().create(true).append(true).open(self.log_file()).expect("a log file");
        let role = if self.role == Role::Node { "node" } else { "builder" };
        let mut command = Command::new(binary());
        command
            .arg(role)
            .args(["--listen", "127.0.0.1:0", "--ops-listen", "127.0.0.1:0", "--pool-size", "1"])
            .arg("--config")
            .arg(&self.config)
            .arg("--data-dir")
            .arg(self.dir.join(&self.name))
            .arg("--announce")
            .arg(self.announced())
            .stdin(Stdio::null())
            .stdout(log.try_clone().expect("a log file"))
            .stderr(log);
        credentials(&mut command);
        command.env("HEARTH_DOCKER__INSTANCE", &self.instance).env("HEARTH_GRACE", "5s").env("HEARTH_DESTROY_CONTAINERS", "true");
        // Debian keeps runc under an old number.
        command.env("HEARTH_DOCKER__ACCEPT_UNSAFE", "true");
        command.env("HEARTH_LOG", "info,hearth_store=debug,hearth_builder=debug").envs(self.env.iter().cloned());
        command.spawn().expect("a process")
    }

    /// With this section of the configuration in the place of the world's `[store.keys]`.
    ///
    /// # Panics
    /// When the file cannot be written.
    #[must_use]
    pub fn with_keys(mut self, keys: &str) -> Self {
        let text = fs::read_to_string(&self.config).expect("the configuration");
        let (before, rest) = text.split_once("[store.keys]").expect("a section");
        let after = rest.find("\n[").map_or("", |at| &rest[at..]);
        self.config = self.dir.join(format!("{}.toml", self.name));
        fs::write(&self.config, format!("{before}{keys}{after}")).expect("a configuration");
        self
    }

    /// Starts it, which must not succeed; what it says.
    ///
    /// # Panics
    /// When it serves, or does not end.
    pub fn refused(&mut self) -> String {
        let _ = fs::remove_file(self.log_file());
        let mut child = self.spawn();
        let began = Instant::now();
        let status = loop {
            if let Some(status) = child.try_wait().expect("a process") {
                break status;
            }
            if began.elapsed() > LEAVE_TIMEOUT {
                let _ = child.kill();
                panic!("{} does not end:\n{}", self.name, self.log());
            }
            std::thread::sleep(Duration::from_millis(20));
        };
        assert!(!status.success(), "{} started and left:\n{}", self.name, self.log());
        self.log()
    }

    fn signal(&self, signal: Signal) {
        let pid = self.child.as_ref().and_then(|c| Pid::from_raw(i32::try_from(c.id()).ok()?));
        if let Some(pid) = pid {
            let _ = kill_process(pid, signal);
        }
    }

    /// Ends it as a loss of power would end it.
    pub fn kill(&mut self) {
        if let Some(mut child) = self.child.take() {
            let _ = child.kill();
            let _ = child.wait();
        }
    }

    /// Asks it to leave, and waits until it has. Whether it left by itself.
    pub fn stop(&mut self) -> bool {
        self.signal(Signal::TERM);
        let Some(mut child) = self.child.take() else { return true };
        let began = Instant::now();
        while began.elapsed() < LEAVE_TIMEOUT {
            if let Ok(Some(status)) = child.try_wait() {
                return status.success();
            }
            std::thread::sleep(Duration::from_millis(10));
        }
        let _ = child.kill();
        let _ = child.wait();
        false
    }

    /// A management call with the operator's token; `path` follows `/v1`.
    pub fn api(&self, method: Method, path: &str) -> RequestBuilder {
        self.http.request(method, format!("{}/v1{path}", self.url)).bearer_auth(&self.token)
    }

    /// Calls a function.
    pub async fn get(&self, target: &str) -> Answer {
        Answer::of(self.http.get(format!("{}/run/{target}", self.url))).await
    }

    /// Calls to the services that this node has made, by service and call.
    ///
    /// # Panics
    /// When its metrics cannot be read.
    pub async fn store_calls(&self) -> Vec<(String, u64)> {
        let text = Answer::of(self.http.get(format!("{}/metrics", self.ops_url))).await.expect(200).text.clone();
        let sent = text.lines().filter(|l| l.starts_with("hearth_store_calls_total") && l.contains("outcome=\"sent\""));
        let mut calls: Vec<(String, u64)> = sent
            .filter_map(|line| {
                let (labels, count) = line.rsplit_once(' ')?;
                let call = labels.split("call=\"").nth(1)?.split('"').next()?;
                Some((call.to_owned(), count.parse().ok()?))
            })
            .collect();
        calls.sort();
        calls
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        self.stop();
        let docker = Docker::of(&self.instance);
        docker.remove_all();
    }
}
