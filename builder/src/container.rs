//! One build in confined containers: npm in the first, which sees the relay and nothing else; the V8 code cache in a second, which sees
//! nothing at all. Each build has a slot of its own, whose output is a file system of bounded size.

use crate::{
    Builder, StartError,
    closure::{Closure, closure},
    pack::{Packed, pack},
};
use hearth_model::ArtifactRef;
use hearth_registry::relay::{self, Usage};
use hearth_sandbox::{Limits, Purpose, SandboxError, SandboxSpec};
use hearth_store::BuildJob;
use rustix::mount::{MountFlags, UnmountFlags, mount, unmount};
use std::{
    ffi::CString,
    fs, io,
    os::unix::fs::PermissionsExt,
    path::{Path, PathBuf},
    sync::{Arc, atomic::Ordering::Relaxed},
    time::Duration,
};
use tokio::net::UnixListener;

/// Slots of builds lie above all slots of tenants' containers (the image has user ids for 5,000).
const FIRST_SLOT: u32 = 4_900;
/// What a build may write, npm's cache included.
const OUTPUT_SIZE: &str = "3g";
const OUTPUT_INODES: u32 = 500_000;
/// Deadline of making the code cache; without one the module merely loads slower.
const CODE_CACHE_TIMEOUT: Duration = Duration::from_secs(60);
/// The end of the output that is kept.
const LOG_BYTES_MAX: usize = 32 * 1024;
/// What the lock file says of where packages came from.
const ORIGIN: &str = "http://127.0.0.1:";

const BUILD_JS: &str = include_str!("../in-container/build.js");

/// How a build ended.
pub(crate) enum Outcome {
    /// There is an artifact in the store.
    Built { artifact: ArtifactRef, integrity: Option<String>, log: String },
    /// It will not work another time either, unless the registry changes.
    Refused { reason: String, log: String },
    /// Something was away; another try may work.
    Passing { reason: String, log: String },
}

/// Writes the programs that run inside; returns their directory.
pub(crate) fn write_program(data_dir: &Path, code_cache_dir: &Path) -> Result<PathBuf, StartError> {
    let dir = data_dir.join("builds").join("program");
    let write = || -> io::Result<()> {
        fs::create_dir_all(&dir)?;
        fs::write(dir.join("build.js"), BUILD_JS)?;
        for file in ["code-cache.js", "cache-loader.js"] {
            fs::copy(code_cache_dir.join(file), dir.join(file))?;
        }
        Ok(())
    };
    write().map_err(|source| StartError { path: dir.clone(), source })?;
    Ok(dir)
}

/// A build's directories; unmounted and emptied when it is dropped.
struct BuildSlot {
    number: u32,
    dir: PathBuf,
}

impl BuildSlot {
    fn prepare(data_dir: &Path, worker: usize) -> io::Result<Self> {
        let slot = Self { number: FIRST_SLOT + worker as u32, dir: data_dir.join("builds").join(format!("slot-{worker}")) };
        slot.clear();
        for name in ["run", "tree", "out", "packed"] {
            fs::create_dir_all(slot.dir.join(name))?;
        }
        if rustix::process::geteuid().is_root() {
            let options = CString::new(format!("size={OUTPUT_SIZE},nr_inodes={OUTPUT_INODES},mode=0755"))?;
            mount("hearth-build", slot.out(), "tmpfs", MountFlags::NOSUID | MountFlags::NODEV, Some(options.as_c_str()))?;
        }
        Ok(slot)
    }

    fn out(&self) -> PathBuf {
        self.dir.join("out")
    }

    fn clear(&self) {
        // Until nothing is mounted there: an earlier process may have left one.
        while unmount(self.out(), UnmountFlags::DETACH | UnmountFlags::NOFOLLOW).is_ok() {}
        for name in ["tree", "out", "packed"] {
            let _ = fs::remove_dir_all(self.dir.join(name));
        }
    }
}

impl Drop for BuildSlot {
    fn drop(&mut self) {
        self.clear();
    }
}

impl Builder {
    /// Builds one module. Dropping the future leaves a container behind that the next build of this worker, or the next process,
    /// removes.
    pub(crate) async fn build(&self, job: &BuildJob, worker: usize) -> Outcome {
        let passing = |reason: String| Outcome::Passing { reason, log: String::new() };
        let slot = match BuildSlot::prepare(&self.deps.data_dir, worker) {
            Ok(slot) => slot,
            Err(error) => return passing(format!("preparing the build: {error}")),
        };
        let usage = Arc::new(Usage::default());
        let (code, log) = match self.install(job, &slot, &usage).await {
            Ok(ended) => ended,
            Err(error) => return passing(format!("running the build: {error}")),
        };
        if code != Some(0) {
            let reason = explain(&log, code, self.config.build_timeout);
            let was_away = usage.failed.load(Relaxed) > 0;
            return if was_away { Outcome::Passing { reason, log } } else { Outcome::Refused { reason, log } };
        }
        let root = slot.out().join("root");
        let name = job.spec.name.to_string();
        let closure = match read_closure(&root, &name) {
            Ok(closure) => closure,
            Err(reason) => return Outcome::Refused { reason, log },
        };
        // Unpacked so far by npm as the build's user; what the function provides itself must not be found by the cache either.
        for dropped in &closure.drop {
            let _ = fs::remove_dir_all(root.join(dropped));
        }
        let cache_log = self.make_code_cache(job, &slot).await;
        let log = format!("{log}\n{cache_log}");
        match self.store(job, &slot, &root, closure).await {
            Ok((artifact, integrity)) => Outcome::Built { artifact, integrity, log },
            Err(StoreFailure::Refused(reason)) => Outcome::Refused { reason, log },
            Err(StoreFailure::Passing(reason)) => Outcome::Passing { reason, log },
        }
    }

    async fn install(&self, job: &BuildJob, slot: &BuildSlot, usage: &Arc<Usage>) -> Result<(Option<i64>, String), SandboxError> {
        let socket = slot.dir.join("tree/registry.sock");
        let fail = |e: io::Error| SandboxError::Failed { call: "open the relay", detail: e.to_string() };
        let listener = UnixListener::bind(&socket).map_err(fail)?;
        // The build's user connects to it; nobody else can reach the slot's directory from inside a container.
        fs::set_permissions(&socket, fs::Permissions::from_mode(0o666)).map_err(fail)?;
        let args = ["/opt/hearth/build.js".to_owned(), job.spec.to_string(), job.scripts.to_string()];
        tokio::select! {
            () = relay::serve(Arc::clone(&self.deps.registry), listener, Arc::clone(usage)) => {
                Err(SandboxError::Failed { call: "serve the relay", detail: "it ended".into() })
            }
            ended = self.run_container(job, slot, args.to_vec(), self.config.build_timeout) => ended,
        }
    }

    async fn make_code_cache(&self, job: &BuildJob, slot: &BuildSlot) -> String {
        let _ = fs::remove_file(slot.dir.join("tree/registry.sock"));
        let args = ["/opt/hearth/code-cache.js", "/build/root", job.spec.name.as_str()].map(str::to_owned);
        match self.run_container(job, slot, args.to_vec(), CODE_CACHE_TIMEOUT).await {
            Ok((Some(0), log)) => log,
            Ok((code, log)) => format!("no code cache (exit {code:?}): {log}"),
            Err(error) => format!("no code cache: {error}"),
        }
    }

    /// Runs one container to its end; returns its exit code (none when it was ended at the deadline) and its output's end.
    async fn run_container(
        &self,
        job: &BuildJob,
        slot: &BuildSlot,
        args: Vec<String>,
        timeout: Duration,
    ) -> Result<(Option<i64>, String), SandboxError> {
        let spec = SandboxSpec {
            slot: slot.number,
            purpose: Purpose::Build,
            node: job.node,
            oci_runtime: None,
            slot_dir: slot.dir.clone(),
            runtime_dir: self.program_dir.clone(),
            limits: Limits {
                memory_mb: self.config.memory_mb,
                cpu_millis: 2_000,
                cpu_shares: 256,
                pids: 512,
                nofile: 4_096,
                tmp_mb: 256,
            },
            args,
        };
        for left in self.deps.sandbox.list().await?.into_iter().filter(|r| r.slot == slot.number && r.purpose == Purpose::Build) {
            self.deps.sandbox.destroy(&left.id).await?;
        }
        let running = self.deps.sandbox.create(&spec).await?;
        let ended = tokio::time::timeout(timeout, self.deps.sandbox.wait(&running.id)).await;
        let mut log = self.deps.sandbox.output(&running.id).await.unwrap_or_default();
        let code = match ended {
            Ok(Ok(exit)) if exit.out_of_memory => {
                log.push_str("\nthe build used more memory than it may");
                exit.code.or(Some(137))
            }
            Ok(Ok(exit)) => exit.code,
            Ok(Err(error)) => {
                let _ = self.deps.sandbox.destroy(&running.id).await;
                return Err(error);
            }
            Err(_elapsed) => None,
        };
        // Destroyed before anything of it is read: nothing changes under the reader's eyes.
        self.deps.sandbox.destroy(&running.id).await?;
        let start = log.len().saturating_sub(LOG_BYTES_MAX);
        Ok((code, log[log.ceil_char_boundary(start)..].to_owned()))
    }

    async fn store(
        &self,
        job: &BuildJob,
        slot: &BuildSlot,
        root: &Path,
        closure: Closure,
    ) -> Result<(ArtifactRef, Option<String>), StoreFailure> {
        let manifest = serde_json::json!({
            "module": job.spec, "node": job.node, "arch": std::env::consts::ARCH, "scripts": job.scripts,
            "lock_sha256": closure.lock_sha256, "integrity": closure.integrity,
        });
        let manifest = serde_json::to_vec_pretty(&manifest).unwrap_or_default();
        let (root, target) = (root.to_owned(), slot.dir.join("packed/artifact"));
        let packing = {
            let target = target.clone();
            tokio::task::spawn_blocking(move || pack(&root, &["node_modules", ".hearth-cache"], &manifest, &target))
        };
        let packed: Packed = match packing.await {
            Ok(Ok(packed)) => packed,
            Ok(Err(error)) => return Err(StoreFailure::Refused(error.to_string())),
            Err(error) => return Err(StoreFailure::Passing(error.to_string())),
        };
        let put = self.deps.artifacts.put_file(&packed.sha256, &target).await;
        put.map_err(|e| StoreFailure::Passing(format!("storing the artifact: {e}")))?;
        let artifact = ArtifactRef {
            sha256: packed.sha256,
            bytes: packed.bytes,
            unpacked_bytes: packed.unpacked_bytes,
            files: packed.files,
            lock_sha256: closure.lock_sha256,
        };
        Ok((artifact, closure.integrity))
    }
}

enum StoreFailure {
    Refused(String),
    Passing(String),
}

fn read_closure(root: &Path, name: &str) -> Result<Closure, String> {
    let path = root.join("package-lock.json");
    let metadata = fs::symlink_metadata(&path).map_err(|e| format!("npm left no lock file: {e}"))?;
    if !metadata.is_file() || metadata.len() > 64 * 1024 * 1024 {
        return Err("npm left no lock file that can be used".into());
    }
    let lock = fs::read(&path).map_err(|e| format!("npm's lock file: {e}"))?;
    closure(&lock, name, ORIGIN).map_err(|e| e.to_string())
}

/// The lines of npm's output that tell a person what is wrong.
fn explain(log: &str, code: Option<i64>, timeout: Duration) -> String {
    let Some(code) = code else { return format!("the build did not end within {timeout:?}") };
    let telling = log.lines().filter_map(|l| l.strip_prefix("npm error ").or_else(|| l.strip_prefix("npm ERR! ")));
    let lines: Vec<&str> =
        telling.filter(|l| !l.contains("complete log") && !l.trim().is_empty() && !l.contains("/build/")).take(8).collect();
    if lines.is_empty() {
        let last = log.lines().rev().find(|l| !l.trim().is_empty()).unwrap_or("no output");
        return format!("npm ended with code {code}: {}", last.chars().take(300).collect::<String>());
    }
    format!("npm: {}", lines.join("; ").chars().take(1_000).collect::<String>())
}
