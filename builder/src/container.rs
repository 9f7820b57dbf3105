//! One build in confined containers: npm in the first, which sees the relay and nothing else; the V8 code cache in a second, which sees
//! nothing at all. Each build has a slot of its own, whose output is a file system of bounded size.

use crate::{
    Builder, Config, StartError,
    closure::{Closure, closure},
    pack::{PackError, Packed, Packer, is_real_dir},
};
use hearth_model::ArtifactRef;
use hearth_registry::relay::{self, Usage};
use hearth_sandbox::{Cpus, Limits, Purpose, SandboxError, SandboxSpec};
use hearth_store::BuildJob;
use rustix::mount::{MountFlags, UnmountFlags, mount, unmount};
use std::{
    collections::BTreeSet,
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
/// Deadline of making the code cache; without one the module merely loads slower.
const CODE_CACHE_TIMEOUT: Duration = Duration::from_secs(60);
const OUT_OF_MEMORY: &str = "the build used more memory than it may";
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
    fn prepare(data_dir: &Path, worker: usize, config: &Config) -> io::Result<Self> {
        let slot = Self { number: FIRST_SLOT + worker as u32, dir: data_dir.join("builds").join(format!("slot-{worker}")) };
        slot.clear();
        for name in ["run", "tree", "out", "packed"] {
            fs::create_dir_all(slot.dir.join(name))?;
        }
        if rustix::process::geteuid().is_root() {
            let (bytes, inodes) = (config.output_max.as_u64(), config.output_files_max);
            let options = CString::new(format!("size={bytes},nr_inodes={inodes},mode=0755"))?;
            mount("hearth-build", slot.out(), "tmpfs", MountFlags::NOSUID | MountFlags::NODEV, Some(options.as_c_str()))?;
        }
        Ok(slot)
    }

    fn artifact(&self) -> PathBuf {
        self.dir.join("packed/artifact")
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
    /// Builds one module. Dropping the future leaves a container behind: [`Builder::abandon`] ends it.
    pub(crate) async fn build(&self, job: &BuildJob, worker: usize) -> Outcome {
        let passing = |reason: String| Outcome::Passing { reason, log: String::new() };
        let slot = match BuildSlot::prepare(&self.deps.data_dir, worker, &self.config) {
            Ok(slot) => slot,
            Err(error) => return passing(format!("preparing the build: {error}")),
        };
        let usage = Arc::new(Usage::default());
        let (code, log) = match self.install(job, &slot, &usage).await {
            Ok(ended) => ended,
            Err(error) => return passing(format!("running the build: {error}")),
        };
        if code != Some(0) {
            let reason = format!("{}{}", explain(&log, code, &self.config), explain_age(&log, &usage));
            let was_away = usage.failed.load(Relaxed) > 0;
            return if was_away { Outcome::Passing { reason, log } } else { Outcome::Refused { reason, log } };
        }
        let root = slot.out().join("root");
        let closure = match read_closure(&root, job.spec.name.as_str()) {
            Ok(closure) => closure,
            Err(reason) => return Outcome::Refused { reason, log },
        };
        let (log, packed) = match self.finish_tree(job, &slot, &root, &closure, log).await {
            Ok(done) => done,
            Err((failure, log)) => return failure.outcome(log),
        };
        match self.deps.artifacts.put_file(&packed.sha256, &slot.artifact()).await {
            Ok(_) => {
                let artifact = ArtifactRef {
                    sha256: packed.sha256,
                    bytes: packed.bytes,
                    unpacked_bytes: packed.unpacked_bytes,
                    files: packed.files,
                    lock_sha256: closure.lock_sha256,
                };
                Outcome::Built { artifact, integrity: closure.integrity, log }
            }
            Err(error) => Outcome::Passing { reason: format!("storing the artifact: {error}"), log },
        }
    }

    /// Packs what npm installed, then lets the module be loaded for its code cache, then packs that: what the module does to its own files
    /// while it loads is not in the artifact.
    async fn finish_tree(
        &self,
        job: &BuildJob,
        slot: &BuildSlot,
        root: &Path,
        closure: &Closure,
        log: String,
    ) -> Result<(String, Packed), (Failure, String)> {
        let begun = {
            let (root, drop, target) = (root.to_owned(), closure.drop.clone(), slot.artifact());
            let (beside, manifest) = (slot.out().join("node_modules"), manifest(job, closure));
            blocking(move || {
                set_peers_aside(&root, &drop, &beside)?;
                let mut packer = Packer::create(&target, &manifest)?;
                packer.add(&root, "node_modules")?;
                Ok(packer)
            })
        };
        let mut packer = match begun.await {
            Ok(packer) => packer,
            Err(failure) => return Err((failure, log)),
        };
        let log = format!("{log}\n{}", self.make_code_cache(job, slot).await);
        let root = root.to_owned();
        let ended = blocking(move || {
            packer.add(&root, ".hearth-cache")?;
            packer.finish()
        });
        match ended.await {
            Ok(packed) => Ok((log, packed)),
            Err(failure) => Err((failure, log)),
        }
    }

    /// Ends what a build of this worker has left running, now or in an earlier process.
    pub(crate) async fn abandon(&self, worker: usize) -> Result<(), SandboxError> {
        let slot = FIRST_SLOT + worker as u32;
        for left in self.deps.sandbox.list().await?.into_iter().filter(|r| r.slot == slot && r.purpose == Purpose::Build) {
            self.deps.sandbox.destroy(&left.id).await?;
        }
        Ok(())
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
                cpus: if self.deps.beside_requests { Cpus::Background } else { Cpus::Any },
                pids: 512,
                nofile: 4_096,
                tmp_mb: 256,
            },
            args,
        };
        self.abandon((slot.number - FIRST_SLOT) as usize).await?;
        let running = self.deps.sandbox.create(&spec).await?;
        let ended = tokio::time::timeout(timeout, self.deps.sandbox.wait(&running.id)).await;
        let mut log = self.deps.sandbox.output(&running.id).await.unwrap_or_default();
        let code = match ended {
            Ok(Ok(exit)) if exit.out_of_memory => {
                log.push_str(&format!("\n{OUT_OF_MEMORY}"));
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
}

fn manifest(job: &BuildJob, closure: &Closure) -> Vec<u8> {
    let manifest = serde_json::json!({
        "module": job.spec, "node": job.node, "arch": std::env::consts::ARCH, "scripts": job.scripts,
        "lock_sha256": closure.lock_sha256, "integrity": closure.integrity,
    });
    serde_json::to_vec_pretty(&manifest).unwrap_or_default()
}

/// Why a tree did not become an artifact.
enum Failure {
    Refused(String),
    Passing(String),
}

impl Failure {
    fn outcome(self, log: String) -> Outcome {
        match self {
            Self::Refused(reason) => Outcome::Refused { reason, log },
            Self::Passing(reason) => Outcome::Passing { reason, log },
        }
    }
}

async fn blocking<T: Send + 'static>(work: impl FnOnce() -> Result<T, PackError> + Send + 'static) -> Result<T, Failure> {
    match tokio::task::spawn_blocking(work).await {
        Ok(Ok(done)) => Ok(done),
        // This machine's disk, not the module.
        Ok(Err(error @ PackError::Io(_))) => Err(Failure::Passing(error.to_string())),
        Ok(Err(error)) => Err(Failure::Refused(error.to_string())),
        Err(error) => Err(Failure::Passing(error.to_string())),
    }
}

/// Moves what the function provides itself out of the artifact's tree, to where Node's search finds it as it will in a tenant's container:
/// above the tree. What lies deeper in the tree is in nobody's way there and goes. Nothing that is moved or removed is reached
/// through a link.
fn set_peers_aside(root: &Path, dropped: &BTreeSet<String>, beside: &Path) -> io::Result<()> {
    // The later ones first, so that what lies inside another is gone before it.
    for at in dropped.iter().rev() {
        let path = root.join(at);
        let parents = path.ancestors().skip(1).take_while(|parent| parent.starts_with(root));
        if !is_real_dir(&path) || !parents.into_iter().all(is_real_dir) {
            continue;
        }
        let name = at.strip_prefix("node_modules/").unwrap_or(at);
        if name.contains("/node_modules/") {
            fs::remove_dir_all(&path)?;
            continue;
        }
        let target = beside.join(name);
        if let Some(parent) = target.parent() {
            fs::create_dir_all(parent)?;
        }
        fs::rename(&path, &target)?;
    }
    Ok(())
}

fn read_closure(root: &Path, name: &str) -> Result<Closure, String> {
    if !is_real_dir(root) {
        return Err("the build left something else in the place of its output".into());
    }
    let path = root.join("package-lock.json");
    let metadata = fs::symlink_metadata(&path).map_err(|e| format!("npm left no lock file: {e}"))?;
    if !metadata.is_file() || metadata.len() > 64 * 1024 * 1024 {
        return Err("npm left no lock file that can be used".into());
    }
    let lock = fs::read(&path).map_err(|e| format!("npm's lock file: {e}"))?;
    closure(&lock, name, ORIGIN).map_err(|e| e.to_string())
}

/// The lines of npm's output that tell a person what is wrong.
fn explain(log: &str, code: Option<i64>, config: &Config) -> String {
    let Some(code) = code else { return format!("the build did not end within {:?}", config.build_timeout) };
    if log.contains("ENOSPC") || log.contains("No space left on device") {
        return format!("the build wrote more than {} or more than {} files", config.output_max, config.output_files_max);
    }
    if log.contains(OUT_OF_MEMORY) {
        return OUT_OF_MEMORY.to_owned();
    }
    let telling = log.lines().filter_map(|l| l.strip_prefix("npm error ").or_else(|| l.strip_prefix("npm ERR! ")));
    let lines: Vec<&str> =
        telling.filter(|l| !l.contains("complete log") && !l.trim().is_empty() && !l.contains("/build/")).take(8).collect();
    if lines.is_empty() {
        let last = log.lines().rev().find(|l| !l.trim().is_empty()).unwrap_or("no output");
        return format!("npm ended with code {code}: {}", last.chars().take(300).collect::<String>());
    }
    format!("npm: {}", lines.join("; ").chars().take(1_000).collect::<String>())
}

/// npm does not know why it does not see a version; this does.
fn explain_age(log: &str, usage: &Usage) -> String {
    let young = usage.young.lock();
    // ETARGET where no version fits the range, ENOVERSIONS where none is left at all.
    let names =
        |name: &str| log.contains(&format!("for {name}@")) || log.lines().any(|l| l.trim_end().ends_with(&format!(" for {name}")));
    let missed: Vec<&str> = young.iter().map(String::as_str).filter(|name| names(name)).collect();
    if !(log.contains("ETARGET") || log.contains("ENOVERSIONS")) || missed.is_empty() {
        return String::new();
    }
    format!("; versions of {} that are younger than the minimum release age are not used", missed.join(", "))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::symlink;

    #[test]
    fn peers_are_set_aside_and_links_lead_nowhere() {
        let (dir, host) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        let (root, beside) = (dir.path().join("root"), dir.path().join("node_modules"));
        for at in ["node_modules/react/lib", "node_modules/@s/p", "node_modules/a/node_modules/b"] {
            fs::create_dir_all(root.join(at)).unwrap();
        }
        fs::create_dir_all(host.path().join("precious")).unwrap();
        symlink(host.path(), root.join("node_modules/evil")).unwrap();
        let dropped = [
            "node_modules/react",
            "node_modules/@s/p",
            "node_modules/a/node_modules/b",
            "node_modules/evil/precious",
            "node_modules/evil",
        ];
        set_peers_aside(&root, &dropped.map(str::to_owned).into(), &beside).unwrap();
        assert!(beside.join("react/lib").is_dir() && beside.join("@s/p").is_dir());
        assert!(!root.join("node_modules/a/node_modules/b").exists() && root.join("node_modules/a").exists());
        assert!(host.path().join("precious").is_dir(), "nothing outside was touched");
        // A root that has become a link is refused before anything is read through it.
        let link = dir.path().join("link");
        symlink(host.path(), &link).unwrap();
        fs::write(host.path().join("package-lock.json"), "{}").unwrap();
        assert!(read_closure(&link, "x").unwrap_err().contains("in the place"));
    }

    #[test]
    fn the_reason_is_what_npm_says_or_better() {
        let config = Config::default();
        let log =
            "npm http fetch GET 200\nnpm error code E404\nnpm error 404 Not Found - GET x\nnpm error A complete log of this run";
        assert_eq!(explain(log, Some(1), &config), "npm: code E404; 404 Not Found - GET x");
        assert!(explain("npm error code ENOSPC", Some(1), &config).contains("wrote more than"));
        assert!(explain("", None, &config).contains("did not end within"));
        assert!(explain("boom\n", Some(7), &config).contains("code 7: boom"));
        let usage = Usage::default();
        usage.young.lock().insert("dep".into());
        assert!(
            explain_age("npm error code ETARGET\nnpm error notarget No matching version found for dep@^2.0.0.", &usage)
                .contains("versions of dep")
        );
        assert_eq!(explain_age("npm error code ETARGET\nnpm error notarget No matching version found for other@^2.", &usage), "");
    }
}
