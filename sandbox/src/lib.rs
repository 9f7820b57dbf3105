//! Isolation of untrusted code. A [`Sandbox`] makes containers from constants and a [`SandboxSpec`] that holds nothing a tenant
//! can choose but sizes within limits, destroys them, freezes and thaws them, and finds those of an earlier life of this node.
//! It does not know tenants, functions or HTTP.

mod background;
mod cgroup;
pub mod conformance;
mod cpus;
pub mod docker;
pub mod fake;
pub mod image;
pub mod net;
pub mod own_threads;

pub use cpus::{CpuSet, CpuSplit, UsedTime};

use async_trait::async_trait;
use hearth_model::{Egress, function::NodeVersion};
use std::{
    collections::{BTreeMap, HashMap},
    path::PathBuf,
    time::Duration,
};

/// What a container is for; decides image, command and limits.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Purpose {
    /// Runs the runtime for one tenant.
    Runtime,
    /// Runs npm for one module.
    Build,
}

/// Which of a machine's CPUs something may use. Where none are set aside for background work all mean the same.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Cpus {
    /// All.
    #[default]
    Any,
    /// Those that are set aside for background work.
    Background,
    /// The others.
    Foreground,
}

/// Limits of one container.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Limits {
    /// Memory in MiB; swap is none.
    pub memory_mb: u64,
    /// CPU time per wall time, in thousandths of a core.
    pub cpu_millis: u32,
    /// Weight against other containers when the CPU is contended, 2 to 262144; 1024 is the usual.
    pub cpu_shares: u32,
    /// Which CPUs it may use.
    pub cpus: Cpus,
    /// Processes and threads.
    pub pids: u32,
    /// Open files per process.
    pub nofile: u64,
    /// Size of `/tmp`, which counts as memory, in MiB.
    pub tmp_mb: u64,
}

/// A container to be made. Slots are numbered; a number decides user id and network address and is free again when the
/// container is gone.
#[derive(Debug, Clone)]
pub struct SandboxSpec {
    /// The slot.
    pub slot: u32,
    /// What for.
    pub purpose: Purpose,
    /// Which Node.js.
    pub node: NodeVersion,
    /// Which of the configured OCI runtimes; none for the installation's own.
    pub oci_runtime: Option<String>,
    /// Host directory of the slot: `run/` and `tree/` below it exist. `run` is mounted read-write at `/run/hearth`, `tree` read-only
    /// and `rslave` at `/hearth`. For a build `out/` is mounted read-write at `/build`.
    pub slot_dir: PathBuf,
    /// Host directory with the runtime's program, mounted read-only at `/opt/hearth`.
    pub runtime_dir: PathBuf,
    /// Sizes.
    pub limits: Limits,
    /// Arguments of a build's command; must be empty for the runtime.
    pub args: Vec<String>,
}

/// Names a container towards its sandbox.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct SandboxId(pub String);

/// A running container.
#[derive(Debug, Clone)]
pub struct Running {
    /// Its name towards the sandbox.
    pub id: SandboxId,
    /// The slot that it was made for.
    pub slot: u32,
    /// Host process id of its first process.
    pub pid: u32,
    /// What for.
    pub purpose: Purpose,
    /// Which Node.js.
    pub node: NodeVersion,
    /// Which image it was made from.
    pub image: String,
}

/// How a container ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Exit {
    /// Exit code of the first process, where it is known.
    pub code: Option<i64>,
    /// Whether it was killed for memory.
    pub out_of_memory: bool,
}

/// What a container uses.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Usage {
    /// Bytes of memory charged to it.
    pub memory_bytes: u64,
    /// CPU time it has used.
    pub cpu: Duration,
    /// Processes and threads.
    pub pids: u64,
}

/// Why the sandbox did not do what was asked.
#[derive(Debug, thiserror::Error)]
pub enum SandboxError {
    /// There is no such container (any more).
    #[error("container {id} does not exist")]
    NotFound {
        /// Which.
        id: String,
    },
    /// The engine did not answer in time.
    #[error("{call}: no answer from the container engine within {deadline:?}")]
    Deadline {
        /// The call.
        call: &'static str,
        /// Its deadline.
        deadline: Duration,
    },
    /// The engine cannot be reached.
    #[error("{call}: the container engine cannot be reached: {detail}")]
    Unreachable {
        /// The call.
        call: &'static str,
        /// The client's words.
        detail: String,
    },
    /// The image is missing.
    #[error("image {image} is missing: run `make image`")]
    ImageMissing {
        /// Its tag.
        image: String,
    },
    /// The engine refused, or the host did.
    #[error("{call}: {detail}")]
    Failed {
        /// The call.
        call: &'static str,
        /// Its words.
        detail: String,
    },
}

/// What a sandbox says of itself at start-up, for `hearth status`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Description {
    /// As `docker 20.10.24, API 1.41, runc 1.1.5, cgroup v1`.
    pub engine: String,
    /// Which CPUs are set aside for background work; none where all containers may use all.
    pub cpu_split: Option<CpuSplit>,
    /// Whether mounts propagate into running containers (needs root); otherwise the module cache must be mounted whole.
    pub mounts_propagate: bool,
    /// Weaknesses that an operator should know, each with its remedy.
    pub warnings: Vec<String>,
    /// Everything that was checked about engine and machine, for `hearth doctor`.
    pub findings: Vec<Finding>,
    /// Images by purpose: the digest of what went in.
    pub images: BTreeMap<String, String>,
}

/// One thing that was checked about the machine that untrusted code runs on.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize)]
pub struct Finding {
    /// Stable, for scripts and suppressions, as `engine.seccomp`.
    pub id: &'static str,
    /// What should hold.
    pub title: &'static str,
    /// How bad it is where it does not hold.
    pub severity: Severity,
    /// Whether it holds.
    pub passed: bool,
    /// What is and what to do about it, where it does not hold.
    pub detail: String,
}

/// How bad a finding is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, serde::Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Severity {
    /// One wall of several is missing.
    Weak,
    /// There is a known way through: no untrusted code should run here. A node refuses to start unless told otherwise.
    Unsafe,
}

/// Makes and unmakes containers. Every call has a deadline of its own.
#[async_trait]
pub trait Sandbox: Send + Sync + 'static {
    /// What this is and what is weak about it.
    async fn describe(&self) -> Result<Description, SandboxError>;
    /// Creates and starts. When it fails nothing is left behind.
    async fn create(&self, spec: &SandboxSpec) -> Result<Running, SandboxError>;
    /// Kills and removes. Destroying what is gone is no error.
    async fn destroy(&self, id: &SandboxId) -> Result<(), SandboxError>;
    /// Stops every process of it until `thaw`.
    async fn freeze(&self, id: &SandboxId) -> Result<(), SandboxError>;
    /// Lets it run again. Thawing what is not frozen is no error.
    async fn thaw(&self, id: &SandboxId) -> Result<(), SandboxError>;
    /// Gives it other limits of memory and CPU while it runs.
    async fn resize(&self, id: &SandboxId, limits: &Limits) -> Result<(), SandboxError>;
    /// Waits until its first process has ended. Cancel-safe.
    async fn wait(&self, id: &SandboxId) -> Result<Exit, SandboxError>;
    /// Restricts what it may reach to less than the public internet. For a container that has run nothing of its tenant yet; where this
    /// machine gives containers no way out at all there is nothing to do.
    async fn restrict(&self, id: &SandboxId, egress: &Egress) -> Result<(), SandboxError>;
    /// What went through the network interface of each slot's container; empty where containers have none.
    async fn traffic(&self) -> Result<HashMap<u32, net::Traffic>, SandboxError>;
    /// What it uses now.
    async fn usage(&self, id: &SandboxId) -> Result<Usage, SandboxError>;
    /// The last bytes of its output (at most 64 KiB), for a build's log or a runtime that did not come up.
    async fn output(&self, id: &SandboxId) -> Result<String, SandboxError>;
    /// Containers of this node that run, from this life or an earlier one. Those that have stopped are removed.
    async fn list(&self) -> Result<Vec<Running>, SandboxError>;
}
