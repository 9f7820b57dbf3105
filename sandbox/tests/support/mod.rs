//! Directories of slots, and a program for containers that runs the JavaScript that a test sends it.

#![allow(dead_code, reason = "each test program uses its own part of this")]

use hearth_model::function::NodeVersion;
use hearth_sandbox::{Cpus, Limits, Purpose, SandboxSpec, conformance::Behaviour};
use std::{
    os::unix::fs::PermissionsExt,
    path::{Path, PathBuf},
    time::Duration,
};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::UnixStream,
};

/// Listens on `eval.sock` in the run directory: reads one function body per connection, answers with its result as JSON.
const EVAL: &str = r#"
const net = require('node:net'), path = require('node:path');
const server = net.createServer({ allowHalfOpen: true }, (socket) => {
  let code = '';
  socket.on('error', () => {});
  socket.on('data', (d) => (code += d));
  socket.on('end', async () => {
    let answer;
    try {
      const run = new (Object.getPrototypeOf(async () => {}).constructor)('require', code);
      answer = { ok: await run(require) };
    } catch (e) {
      answer = { error: String(e.code || e) };
    }
    socket.end(JSON.stringify(answer) ?? '{}');
  });
});
const at = path.join(process.env.HEARTH_RUN_DIR, 'eval.sock');
// Some runtimes let nobody change the mode of a socket; root on the host needs no permission.
server.listen(at, () => require('node:fs').chmod(at, 0o777, () => {}));
"#;

/// Slots below a temporary directory.
pub struct Slots {
    root: tempfile::TempDir,
}

impl Slots {
    pub fn new() -> Self {
        let root = tempfile::tempdir().unwrap();
        // Containers run as users that are not this one.
        std::fs::set_permissions(root.path(), std::fs::Permissions::from_mode(0o755)).unwrap();
        Self { root }
    }

    pub fn dir(&self, slot: u32) -> PathBuf {
        self.root.path().join(slot.to_string())
    }

    pub fn root(&self) -> &Path {
        self.root.path()
    }

    /// A runtime's spec with a program that behaves as told.
    pub fn spec(&self, slot: u32, behaviour: &Behaviour) -> SandboxSpec {
        let program = match behaviour {
            Behaviour::Idle => "setInterval(() => {}, 1 << 30);".to_owned(),
            Behaviour::Exit(code) => format!("process.exit({code});"),
            Behaviour::Print(text) => format!("process.stdout.write({});", serde_json::to_string(text).unwrap()),
        };
        self.with_program(slot, &program)
    }

    /// A runtime's spec with a program that runs what [`eval`] sends.
    pub fn eval_spec(&self, slot: u32) -> SandboxSpec {
        self.with_program(slot, EVAL)
    }

    fn with_program(&self, slot: u32, program: &str) -> SandboxSpec {
        let slot_dir = self.dir(slot);
        for dir in ["run", "tree", "out", "runtime"] {
            std::fs::create_dir_all(slot_dir.join(dir)).unwrap();
        }
        let runtime_dir = slot_dir.join("runtime");
        std::fs::write(runtime_dir.join("main.js"), program).unwrap();
        SandboxSpec {
            slot,
            purpose: Purpose::Runtime,
            node: NodeVersion::V24,
            oci_runtime: None,
            slot_dir,
            runtime_dir,
            limits: Limits {
                memory_mb: 128,
                cpu_millis: 1_000,
                cpu_shares: 1_024,
                cpus: Cpus::Any,
                pids: 32,
                nofile: 256,
                tmp_mb: 8,
            },
            args: Vec::new(),
        }
    }
}

/// Runs a function body in the container on `slot_dir`: `return` gives the value.
pub async fn eval(slot_dir: &Path, code: &str) -> Result<serde_json::Value, String> {
    let path = slot_dir.join("run/eval.sock");
    let work = async {
        let mut stream = loop {
            match UnixStream::connect(&path).await {
                Ok(stream) => break stream,
                Err(_) => tokio::time::sleep(Duration::from_millis(10)).await,
            }
        };
        stream.write_all(code.as_bytes()).await.map_err(|e| e.to_string())?;
        stream.shutdown().await.map_err(|e| e.to_string())?;
        let mut text = String::new();
        stream.read_to_string(&mut text).await.map_err(|e| e.to_string())?;
        let answer: serde_json::Value = serde_json::from_str(&text).map_err(|e| format!("{e}: {text:?}"))?;
        match answer.get("error") {
            Some(error) => Err(error.as_str().unwrap_or_default().to_owned()),
            None => Ok(answer.get("ok").cloned().unwrap_or_default()),
        }
    };
    tokio::time::timeout(Duration::from_secs(20), work).await.map_err(|_| format!("no answer from {}", path.display()))?
}

/// Runs a program of this machine that must succeed, and gives back what it printed.
pub fn run(program: &str, args: &[&str]) -> String {
    let output = std::process::Command::new(program).args(args).output().unwrap_or_else(|e| panic!("{program}: {e}"));
    assert!(output.status.success(), "{program} {args:?}: {}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8_lossy(&output.stdout).into_owned()
}

/// Removes an instance's containers when a test fails before it does so itself.
pub struct Cleanup {
    instance: String,
}

impl Cleanup {
    pub fn new(instance: &str) -> Self {
        Self { instance: instance.to_owned() }
    }
}

impl Drop for Cleanup {
    fn drop(&mut self) {
        if std::thread::panicking() {
            let label = format!("label=hearth.instance={}", self.instance);
            let listed = std::process::Command::new("docker").args(["ps", "-aq", "--filter", &label]).output();
            let ids = listed.map(|o| String::from_utf8_lossy(&o.stdout).into_owned()).unwrap_or_default();
            for id in ids.split_whitespace() {
                let _ = std::process::Command::new("docker").args(["rm", "-f", id]).output();
            }
        }
    }
}

impl Drop for Slots {
    fn drop(&mut self) {
        // What a failed test left mounted would keep the directory from being removed.
        let mounts = std::fs::read_to_string("/proc/self/mounts").unwrap_or_default();
        let mut points: Vec<&str> =
            mounts.lines().filter_map(|l| l.split(' ').nth(1)).filter(|p| Path::new(p).starts_with(self.root.path())).collect();
        points.reverse();
        for point in points {
            let _ = std::process::Command::new("umount").args(["-l", point]).output();
        }
    }
}
