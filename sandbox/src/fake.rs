//! A sandbox for tests, without any isolation. Its containers are either child processes that run the same program as a real
//! container would (`node main.js` in the slot's `run` directory), or exist in memory only and follow a [`Program`]. Failures and
//! delays are injected per call, in order, so that a test is the same each time.

use crate::{
    Description, Exit, Limits, Purpose, Running, Sandbox, SandboxError, SandboxId, SandboxSpec, Usage, docker::OUTPUT_BYTES_MAX,
};
use async_trait::async_trait;
use hearth_model::protocol::{RUNTIME_MAIN, runtime_node_options};
use parking_lot::Mutex;
use rustix::process::{Pid, Signal, kill_process, kill_process_group};
use std::{
    collections::{BTreeMap, HashMap, VecDeque},
    os::unix::process::ExitStatusExt,
    path::PathBuf,
    process::Stdio,
    sync::Arc,
    time::Duration,
};
use tokio::{
    io::{AsyncRead, AsyncReadExt},
    process::{Child, Command},
    sync::watch,
};

/// Injections that wait for their call; a test that needs more has lost count.
const INJECTIONS_MAX: usize = 10_000;
/// In-memory containers have process ids that no process of this machine has (Linux ends at 4,194,304).
const MEMORY_PIDS_FROM: u32 = 5_000_000;

/// A call of the trait, for injections and counts.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
#[allow(missing_docs)]
pub enum Call {
    Describe,
    Create,
    Destroy,
    Freeze,
    Thaw,
    Resize,
    Wait,
    Usage,
    Output,
    List,
}

/// How an injected call fails.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Failure {
    /// As when the engine does not answer.
    Deadline,
    /// As when the engine is stopped.
    Unreachable,
    /// As when the image is missing.
    ImageMissing,
    /// As when the engine refuses, in these words.
    Refused(String),
}

/// What happens to the next call of a kind.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Injection {
    /// Passes first, on tokio's clock.
    pub delay: Duration,
    /// Then this, or the call itself.
    pub failure: Option<Failure>,
}

/// What an in-memory container does.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Program {
    /// What it has printed.
    pub output: String,
    /// How it ends, at once; none for running until it is destroyed or [`FakeSandbox::exit`] ends it.
    pub exit: Option<Exit>,
}

/// A sandbox without isolation. Cloning gives another handle on the same containers, as a node sees them that restarts.
#[derive(Clone)]
pub struct FakeSandbox {
    inner: Arc<Inner>,
}

struct Inner {
    /// The Node.js program for real processes.
    node: Option<PathBuf>,
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    containers: HashMap<String, Arc<Container>>,
    injections: HashMap<Call, VecDeque<Injection>>,
    counts: BTreeMap<Call, u64>,
    programs: HashMap<u32, Program>,
    made: u32,
}

struct Container {
    running: Running,
    exit: watch::Sender<Option<Exit>>,
    inner: Mutex<ContainerState>,
}

struct ContainerState {
    frozen: bool,
    limits: Limits,
    output: Vec<u8>,
}

impl Container {
    fn is_process(&self) -> bool {
        self.running.pid < MEMORY_PIDS_FROM
    }

    fn pid(&self) -> Option<Pid> {
        if self.is_process() && self.exit.borrow().is_none() {
            i32::try_from(self.running.pid).ok().and_then(Pid::from_raw)
        } else {
            None
        }
    }

    fn end(&self, exit: Exit) {
        self.exit.send_if_modified(|current| {
            let first = current.is_none();
            if first {
                *current = Some(exit);
            }
            first
        });
    }
}

impl Drop for Container {
    /// The last handle of the sandbox is gone: its processes must not outlive the test.
    fn drop(&mut self) {
        if let Some(pid) = self.pid() {
            let _ = kill_process_group(pid, Signal::KILL);
        }
    }
}

impl FakeSandbox {
    /// Containers in memory.
    #[must_use]
    pub fn in_memory() -> Self {
        Self::new(None)
    }

    /// Containers are processes of `node`, with the permissions of this one. A runtime runs `<runtime_dir>/main.js` with
    /// `HEARTH_RUN_DIR` and `HEARTH_SLOT_DIR` set to the slot's `run` and `tree` on the host; a build runs its arguments in `out`.
    #[must_use]
    pub fn processes(node: PathBuf) -> Self {
        Self::new(Some(node))
    }

    fn new(node: Option<PathBuf>) -> Self {
        Self { inner: Arc::new(Inner { node, state: Mutex::new(State::default()) }) }
    }

    /// Lets the next call of this kind that has no injection yet fail or be late.
    ///
    /// # Panics
    /// Above [`INJECTIONS_MAX`] waiting injections.
    pub fn inject(&self, call: Call, injection: Injection) {
        let mut state = self.inner.state.lock();
        let queue = state.injections.entry(call).or_default();
        assert!(queue.len() < INJECTIONS_MAX, "too many injections of {call:?}");
        queue.push_back(injection);
    }

    /// Lets the next call of this kind fail.
    pub fn fail_next(&self, call: Call, failure: Failure) {
        self.inject(call, Injection { delay: Duration::ZERO, failure: Some(failure) });
    }

    /// What the next in-memory container on `slot` does.
    pub fn program(&self, slot: u32, program: Program) {
        self.inner.state.lock().programs.insert(slot, program);
    }

    /// Ends a container from outside its sandbox, as a crash does.
    pub fn exit(&self, id: &SandboxId, exit: Exit) -> Result<(), SandboxError> {
        let container = self.find(id)?;
        container.end(exit);
        if container.is_process()
            && let Ok(pid) = i32::try_from(container.running.pid)
            && let Some(pid) = Pid::from_raw(pid)
        {
            let _ = kill_process_group(pid, Signal::KILL);
        }
        Ok(())
    }

    /// How many calls of this kind there have been, failed ones included.
    #[must_use]
    pub fn count(&self, call: Call) -> u64 {
        self.inner.state.lock().counts.get(&call).copied().unwrap_or(0)
    }

    /// Whether a container is frozen.
    pub fn is_frozen(&self, id: &SandboxId) -> Result<bool, SandboxError> {
        Ok(self.find(id)?.inner.lock().frozen)
    }

    /// A container's limits, as made or last resized.
    pub fn limits(&self, id: &SandboxId) -> Result<Limits, SandboxError> {
        Ok(self.find(id)?.inner.lock().limits)
    }

    async fn enter(&self, call: Call) -> Result<(), SandboxError> {
        let injection = {
            let mut state = self.inner.state.lock();
            *state.counts.entry(call).or_default() += 1;
            state.injections.get_mut(&call).and_then(VecDeque::pop_front)
        };
        let Some(injection) = injection else {
            return Ok(());
        };
        if !injection.delay.is_zero() {
            tokio::time::sleep(injection.delay).await;
        }
        let call = "injected";
        match injection.failure {
            None => Ok(()),
            Some(Failure::Deadline) => Err(SandboxError::Deadline { call, deadline: injection.delay }),
            Some(Failure::Unreachable) => Err(SandboxError::Unreachable { call, detail: "connection refused".to_owned() }),
            Some(Failure::ImageMissing) => Err(SandboxError::ImageMissing { image: "fake".to_owned() }),
            Some(Failure::Refused(detail)) => Err(SandboxError::Failed { call, detail }),
        }
    }

    fn find(&self, id: &SandboxId) -> Result<Arc<Container>, SandboxError> {
        self.inner.state.lock().containers.get(&id.0).cloned().ok_or_else(|| SandboxError::NotFound { id: id.0.clone() })
    }

    fn register(&self, spec: &SandboxSpec, pid: Option<u32>, output: Vec<u8>) -> Result<Arc<Container>, SandboxError> {
        let mut state = self.inner.state.lock();
        if let Some(other) = state.containers.values().find(|c| c.running.slot == spec.slot) {
            return Err(refuse(format!("slot {} has container {}", spec.slot, other.running.id.0)));
        }
        state.made += 1;
        let id = SandboxId(format!("fake-{}", state.made));
        let running = Running {
            id: id.clone(),
            slot: spec.slot,
            pid: pid.unwrap_or(MEMORY_PIDS_FROM + state.made),
            purpose: spec.purpose,
            node: spec.node,
            image: "fake".to_owned(),
        };
        let inner = Mutex::new(ContainerState { frozen: false, limits: spec.limits, output });
        let container = Arc::new(Container { running, exit: watch::channel(None).0, inner });
        state.containers.insert(id.0, Arc::clone(&container));
        Ok(container)
    }

    fn start_in_memory(&self, spec: &SandboxSpec) -> Result<Running, SandboxError> {
        let program = self.inner.state.lock().programs.remove(&spec.slot).unwrap_or_default();
        let container = self.register(spec, None, program.output.into_bytes())?;
        if let Some(exit) = program.exit {
            container.end(exit);
        }
        Ok(container.running.clone())
    }

    fn start_process(&self, node: &PathBuf, spec: &SandboxSpec) -> Result<Running, SandboxError> {
        let mut command = Command::new(node);
        match spec.purpose {
            Purpose::Runtime => {
                command.args(runtime_node_options(spec.node)).arg(spec.runtime_dir.join(RUNTIME_MAIN)).current_dir(&spec.slot_dir)
            }
            Purpose::Build => command.args(&spec.args).current_dir(spec.slot_dir.join("out")),
        };
        command
            .env_clear()
            .env("PATH", "/usr/bin:/bin")
            .env("HOME", "/tmp")
            .env("HEARTH_RUN_DIR", spec.slot_dir.join("run"))
            .env("HEARTH_SLOT_DIR", spec.slot_dir.join("tree"))
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .process_group(0);
        let mut child = command.spawn().map_err(|e| refuse(format!("{}: {e}", node.display())))?;
        let container = match self.register(spec, child.id(), Vec::new()) {
            Ok(container) => container,
            Err(error) => {
                let _ = child.start_kill();
                return Err(error);
            }
        };
        let running = container.running.clone();
        tokio::spawn(attend(Arc::downgrade(&container), child));
        Ok(running)
    }
}

/// Keeps the output and notes the end. Holds the container weakly: dropping the sandbox must be able to end the process.
async fn attend(container: std::sync::Weak<Container>, mut child: Child) {
    let (stdout, stderr) = (child.stdout.take(), child.stderr.take());
    let status = tokio::join!(keep(&container, stdout), keep(&container, stderr), child.wait()).2;
    if let Some(container) = container.upgrade() {
        let status = status.ok();
        let code = status.and_then(|s| s.code().or_else(|| s.signal().map(|n| 128 + n)));
        container.end(Exit { code: code.map(i64::from), out_of_memory: false });
    }
}

async fn keep(container: &std::sync::Weak<Container>, stream: Option<impl AsyncRead + Unpin>) {
    let Some(mut stream) = stream else { return };
    let mut buffer = vec![0; 16 * 1024];
    while let Ok(read @ 1..) = stream.read(&mut buffer).await {
        let Some(container) = container.upgrade() else {
            return;
        };
        let output = &mut container.inner.lock().output;
        output.extend_from_slice(&buffer[..read]);
        let excess = output.len().saturating_sub(OUTPUT_BYTES_MAX);
        output.drain(..excess);
    }
}

fn refuse(detail: String) -> SandboxError {
    SandboxError::Failed { call: "create container", detail }
}

/// Resident memory and CPU time of one process, as Linux tells them.
fn usage_of(pid: u32) -> Option<Usage> {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    // The name in parentheses may contain anything; fields are counted from behind it.
    let fields: Vec<&str> = stat.rsplit_once(") ")?.1.split(' ').collect();
    let number = |index: usize| fields.get(index)?.parse::<u64>().ok();
    let ticks = number(11)? + number(12)?;
    let page = rustix::param::page_size() as u64;
    Some(Usage {
        memory_bytes: number(21)? * page,
        cpu: Duration::from_millis(ticks * 1000 / rustix::param::clock_ticks_per_second()),
        pids: 1,
    })
}

#[async_trait]
impl Sandbox for FakeSandbox {
    async fn describe(&self) -> Result<Description, SandboxError> {
        self.enter(Call::Describe).await?;
        Ok(Description {
            engine: "fake".to_owned(),
            cpu_split: None,
            mounts_propagate: false,
            warnings: vec!["nothing is isolated: this sandbox is for tests".to_owned()],
            findings: Vec::new(),
            images: BTreeMap::new(),
        })
    }

    async fn create(&self, spec: &SandboxSpec) -> Result<Running, SandboxError> {
        self.enter(Call::Create).await?;
        if (spec.purpose == Purpose::Runtime) != spec.args.is_empty() {
            return Err(refuse("a build needs arguments and a runtime takes none".to_owned()));
        }
        match &self.inner.node {
            None => self.start_in_memory(spec),
            Some(_) if !spec.runtime_dir.is_dir() => Err(refuse(format!("{} is no directory", spec.runtime_dir.display()))),
            Some(node) => self.start_process(node, spec),
        }
    }

    async fn destroy(&self, id: &SandboxId) -> Result<(), SandboxError> {
        self.enter(Call::Destroy).await?;
        let Ok(container) = self.find(id) else {
            return Ok(());
        };
        if let Some(pid) = container.pid() {
            let _ = kill_process_group(pid, Signal::KILL);
            let _ = container.exit.subscribe().wait_for(Option::is_some).await;
        }
        container.end(Exit { code: Some(137), out_of_memory: false });
        self.inner.state.lock().containers.remove(&id.0);
        Ok(())
    }

    async fn freeze(&self, id: &SandboxId) -> Result<(), SandboxError> {
        self.enter(Call::Freeze).await?;
        let container = self.find(id)?;
        if let Some(pid) = container.pid() {
            let _ = kill_process(pid, Signal::STOP);
        }
        container.inner.lock().frozen = true;
        Ok(())
    }

    async fn thaw(&self, id: &SandboxId) -> Result<(), SandboxError> {
        self.enter(Call::Thaw).await?;
        let container = self.find(id)?;
        if let Some(pid) = container.pid() {
            let _ = kill_process(pid, Signal::CONT);
        }
        container.inner.lock().frozen = false;
        Ok(())
    }

    async fn resize(&self, id: &SandboxId, limits: &Limits) -> Result<(), SandboxError> {
        self.enter(Call::Resize).await?;
        let container = self.find(id)?;
        let kept = container.inner.lock().limits;
        container.inner.lock().limits = Limits { nofile: kept.nofile, tmp_mb: kept.tmp_mb, ..*limits };
        Ok(())
    }

    async fn wait(&self, id: &SandboxId) -> Result<Exit, SandboxError> {
        self.enter(Call::Wait).await?;
        let mut exit = self.find(id)?.exit.subscribe();
        let ended = exit.wait_for(Option::is_some).await.map(|e| *e);
        Ok(ended.ok().flatten().unwrap_or_default())
    }

    async fn restrict(&self, id: &SandboxId, _: &hearth_model::Egress) -> Result<(), SandboxError> {
        self.find(id).map(|_| ())
    }

    async fn traffic(&self) -> Result<HashMap<u32, crate::net::Traffic>, SandboxError> {
        Ok(HashMap::new())
    }

    async fn usage(&self, id: &SandboxId) -> Result<Usage, SandboxError> {
        self.enter(Call::Usage).await?;
        let container = self.find(id)?;
        if container.exit.borrow().is_some() {
            return Ok(Usage::default());
        }
        if container.is_process() {
            return Ok(usage_of(container.running.pid).unwrap_or_default());
        }
        Ok(Usage { memory_bytes: 12 * 1024 * 1024, cpu: Duration::from_millis(40), pids: 1 })
    }

    async fn output(&self, id: &SandboxId) -> Result<String, SandboxError> {
        self.enter(Call::Output).await?;
        let container = self.find(id)?;
        let output = &container.inner.lock().output;
        Ok(String::from_utf8_lossy(&output[output.len().saturating_sub(OUTPUT_BYTES_MAX)..]).into_owned())
    }

    async fn list(&self) -> Result<Vec<Running>, SandboxError> {
        self.enter(Call::List).await?;
        let mut state = self.inner.state.lock();
        state.containers.retain(|_, container| container.exit.borrow().is_none());
        let mut running: Vec<Running> = state.containers.values().map(|c| c.running.clone()).collect();
        running.sort_by_key(|r| r.slot);
        Ok(running)
    }
}
