//! The references that figures are held against, started for the time of one comparison: raw `node:http`, express, nginx, and the
//! runtime outside any container.

use anyhow::{Context, Result, bail};
use hearth_model::{
    function::NodeVersion,
    protocol::{FromRuntime, RUNTIME_MAIN, ToRuntime, paths, runtime_node_options},
};
use std::{
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    time::{Duration, Instant},
};
use tokio::{
    io::{AsyncBufReadExt, AsyncWriteExt, BufReader},
    net::UnixStream,
};

/// A child process that ends with its owner.
pub struct Process(Child);

impl Process {
    /// Its process id.
    pub fn id(&self) -> u32 {
        self.0.id()
    }

    /// Asks it to leave, and waits.
    pub fn terminate(mut self) {
        self.leave(Duration::from_secs(60));
    }

    fn leave(&mut self, patience: Duration) {
        if matches!(self.0.try_wait(), Ok(None)) {
            let _ = Command::new("kill").arg(self.0.id().to_string()).status();
        }
        let until = Instant::now() + patience;
        while Instant::now() < until && matches!(self.0.try_wait(), Ok(None)) {
            std::thread::sleep(Duration::from_millis(10));
        }
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        // Asked first, since nginx's workers would outlive it.
        self.leave(Duration::from_secs(5));
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// Starts a program whose output goes to a file below `dir`.
pub fn start(dir: &Path, name: &str, command: &mut Command) -> Result<Process> {
    let log = std::fs::File::create(dir.join(format!("{name}.log")))?;
    let child =
        command.stdin(Stdio::null()).stdout(log.try_clone()?).stderr(log).spawn().with_context(|| format!("starting {name}"))?;
    Ok(Process(child))
}

/// Waits until something accepts on a unix socket.
pub async fn wait_for_socket(path: &Path) -> Result<()> {
    let until = Instant::now() + Duration::from_secs(10);
    while UnixStream::connect(path).await.is_err() {
        if Instant::now() > until {
            bail!("nothing listens on {} after 10 s", path.display());
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    Ok(())
}

/// The npm packages of the references: Node.js as containers run it, and express. Fetched once into `dir`.
pub fn packages(dir: &Path) -> Result<PathBuf> {
    let node = dir.join("node_modules").join(format!("node-linux-{}", npm_arch())).join("bin/node");
    if !node.exists() || !dir.join("node_modules/express").exists() {
        std::fs::create_dir_all(dir)?;
        std::fs::write(dir.join("package.json"), r#"{"private": true}"#)?;
        let status = Command::new("npm")
            .args(["install", "--no-audit", "--no-fund", "--no-package-lock", "--ignore-scripts", "express@4.21.2"])
            .arg(format!("node-linux-{}@24", npm_arch()))
            .current_dir(dir)
            .stdout(Stdio::null())
            .status()
            .context("npm")?;
        if !status.success() {
            bail!("npm install of the references failed in {}", dir.display());
        }
    }
    Ok(node)
}

/// A folder with a plain `npm install` of these modules, as whoever does without the platform has it.
pub fn install(dir: &Path, modules: &[(&str, &str)]) -> Result<PathBuf> {
    std::fs::create_dir_all(dir)?;
    std::fs::write(dir.join("package.json"), r#"{"private": true}"#)?;
    let status = Command::new("npm")
        .args(["install", "--no-audit", "--no-fund", "--ignore-scripts"])
        .args(modules.iter().map(|(name, version)| format!("{name}@{version}")))
        .current_dir(dir)
        .stdout(Stdio::null())
        .status()
        .context("npm")?;
    if !status.success() {
        bail!("npm install failed in {}", dir.display());
    }
    Ok(dir.to_owned())
}

fn npm_arch() -> &'static str {
    if cfg!(target_arch = "aarch64") { "arm64" } else { "x64" }
}

const RAW: &str = r#"
require('node:http').createServer((req, res) => {
  res.setHeader('content-type', 'text/plain;charset=UTF-8');
  res.end('hello world');
}).listen(process.argv[2]);
"#;

const EXPRESS: &str = r#"
const app = require('express')();
app.use((req, res) => res.type('text/plain').send('hello world'));
app.listen(process.argv[2]);
"#;

/// What a cold start cannot be quicker than on this machine: a bare Node.js that waits, and imports the function for its first request.
const FLOOR: &str = r#"
require('node:http').createServer(async (req, res) => {
  const { default: run } = await import(process.argv[3]);
  res.end(await run().text());
}).listen(process.argv[2]);
"#;

/// As many of them as sockets are returned.
pub async fn waiting(node: &Path, dir: &Path, source: &str, count: usize) -> Result<Vec<(Process, PathBuf)>> {
    let (script, function) = (dir.join("floor.js"), dir.join("function.mjs"));
    std::fs::write(&script, FLOOR)?;
    std::fs::write(&function, source)?;
    let mut all = vec![];
    for n in 0..count {
        let socket = dir.join(format!("floor{n}.sock"));
        let process = start(dir, &format!("floor{n}"), Command::new(node).arg(&script).arg(&socket).arg(&function))?;
        wait_for_socket(&socket).await?;
        all.push((process, socket));
    }
    Ok(all)
}

/// Raw `node:http` or express on a unix socket.
pub async fn node_server(node: &Path, packages: &Path, dir: &Path, express: bool) -> Result<(Process, PathBuf)> {
    let name = if express { "express" } else { "raw" };
    let script = packages.join(format!("{name}.js"));
    std::fs::write(&script, if express { EXPRESS } else { RAW })?;
    let socket = dir.join(format!("{name}.sock"));
    let process = start(dir, name, Command::new(node).arg(&script).arg(&socket).env("NODE_ENV", "production"))?;
    wait_for_socket(&socket).await?;
    Ok((process, socket))
}

/// The runtime with one loaded function, outside any container.
pub struct Runtime {
    _process: Process,
    _control: BufReader<UnixStream>,
    /// Where it takes requests over HTTP.
    pub http: PathBuf,
    /// Where it takes them as a node sends nearly all.
    pub link: PathBuf,
}

/// Starts the runtime and loads `source` as `hello@1`.
pub async fn runtime(node: &Path, program: &Path, dir: &Path, file: &str, source: &str) -> Result<Runtime> {
    let run = dir.join("run");
    let code = dir.join("code");
    std::fs::create_dir_all(&run)?;
    std::fs::create_dir_all(&code)?;
    std::fs::write(code.join(file), source)?;
    let process = start(
        dir,
        "runtime",
        Command::new(node)
            .args(runtime_node_options(NodeVersion::default()))
            .arg(program.join(RUNTIME_MAIN))
            .env_clear()
            .env("HEARTH_RUN_DIR", &run),
    )?;
    let [control, http, link] = [paths::CONTROL_SOCKET, paths::HTTP_SOCKET, paths::LINK_SOCKET].map(|name| run.join(name));
    for socket in [&control, &http, &link] {
        wait_for_socket(socket).await?;
    }
    let mut control = BufReader::new(UnixStream::connect(control).await?);
    let load = ToRuntime::Load {
        id: 1,
        function: "hello".parse()?,
        version: hearth_model::VersionNumber(1),
        dir: code.to_string_lossy().into_owned(),
        main: file.into(),
        model: None,
        env: Default::default(),
        secrets: Default::default(),
    };
    for message in [ToRuntime::Hello { secret: "0".repeat(64) }, load] {
        let line = serde_json::to_string(&message)? + "\n";
        control.get_mut().write_all(line.as_bytes()).await?;
    }
    let mut line = String::new();
    loop {
        line.clear();
        if tokio::time::timeout(Duration::from_secs(10), control.read_line(&mut line)).await?? == 0 {
            bail!("the runtime closed its control connection");
        }
        match serde_json::from_str(&line)? {
            FromRuntime::Loaded { error: Some(error), .. } => bail!("the function did not load: {error}"),
            FromRuntime::Loaded { .. } => break,
            _ => {}
        }
    }
    Ok(Runtime { _process: process, _control: control, http, link })
}

/// nginx in front of a unix socket, adding one header to each request as the node does. Returns its port.
pub async fn nginx(dir: &Path, upstream: &Path, header: (&str, &str)) -> Result<(Process, u16)> {
    nginx_to(dir, &format!("unix:{}", upstream.display()), header).await
}

/// As [`nginx`], in front of an address.
pub async fn nginx_to(dir: &Path, upstream: &str, header: (&str, &str)) -> Result<(Process, u16)> {
    let port = std::net::TcpListener::bind("127.0.0.1:0")?.local_addr()?.port();
    let (name, value) = header;
    let config = format!(
        "user root; worker_processes auto; daemon off; pid {dir}/nginx.pid; error_log {dir}/nginx-error.log;
         events {{ worker_connections 4096; }}
         http {{
           access_log off; client_body_temp_path {dir}/b; proxy_temp_path {dir}/p; fastcgi_temp_path {dir}/f; uwsgi_temp_path {dir}/u; scgi_temp_path {dir}/s;
           keepalive_requests 1000000000;
           upstream runtime {{ server {upstream}; keepalive 128; keepalive_requests 1000000000; }}
           server {{ listen 127.0.0.1:{port} backlog=8192; location / {{
             proxy_pass http://runtime; proxy_http_version 1.1; proxy_set_header Connection \"\"; proxy_set_header {name} \"{value}\";
           }} }}
         }}",
        dir = dir.display(),
    );
    let file = dir.join("nginx.conf");
    std::fs::write(&file, config)?;
    let process = start(dir, "nginx", Command::new("nginx").arg("-c").arg(&file).arg("-p").arg(dir))?;
    let until = Instant::now() + Duration::from_secs(5);
    while tokio::net::TcpStream::connect(("127.0.0.1", port)).await.is_err() {
        if Instant::now() > until {
            bail!("nginx did not come up; see {}/nginx.log", dir.display());
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    Ok((process, port))
}
