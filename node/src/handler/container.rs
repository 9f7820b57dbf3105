//! A claimed container: its tenant for life, what is loaded in it, who uses it, and how it ends.

use super::{AcquireError, control::Control, slot::Slot};
use crate::uploads::{Full, UploadPlace, Uploads};
use arc_swap::ArcSwap;
use hearth_model::{
    Container, ContainerPath, Egress, FunctionName, FunctionVersion, Timestamp, VersionNumber, function::NodeVersion,
    protocol::ToRuntime,
};
use hearth_sandbox::{Cpus, Exit, Running};
use hearth_store::Servable;
use parking_lot::{Mutex, RwLock};
use serde::{Deserialize, Serialize};
use std::{
    collections::{BTreeMap, HashMap},
    fmt,
    hash::{BuildHasher, RandomState},
    io,
    path::Path,
    sync::{
        Arc,
        atomic::{
            AtomicBool, AtomicI64, AtomicU8, AtomicU32, AtomicU64,
            Ordering::{Relaxed, SeqCst},
        },
    },
    time::{Duration, Instant},
};
use tokio::{net::UnixStream, sync::watch};

/// Whether a request found its function loaded.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Start {
    /// It did.
    Warm,
    /// It needed a claim or a load.
    Cold,
}

/// What a cold start consisted of, in milliseconds; zero for what was not needed.
#[derive(Debug, Clone, Copy, Default)]
pub struct ColdTimings {
    /// Until a container of the tenant's own was there.
    pub claim_ms: f32,
    /// Until files and modules were in it.
    pub modules_ms: f32,
    /// Until the code had loaded.
    pub load_ms: f32,
}

/// A container's state. Every change is one compare-and-set; nothing leads out of `Dead`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub(super) enum State {
    Running = 0,
    Frozen = 1,
    /// Finishes what runs and takes no more.
    Leaving = 2,
    Dead = 3,
}

impl State {
    fn of(byte: u8) -> Self {
        match byte {
            0 => Self::Running,
            1 => Self::Frozen,
            2 => Self::Leaving,
            _ => Self::Dead,
        }
    }

    /// The lifecycle, as a table.
    pub fn may_become(self, next: Self) -> bool {
        matches!(
            (self, next),
            (Self::Running, Self::Frozen | Self::Leaving | Self::Dead)
                | (Self::Frozen, Self::Running | Self::Leaving | Self::Dead)
                | (Self::Leaving, Self::Dead)
        )
    }

    pub fn name(self) -> &'static str {
        match self {
            Self::Running => "running",
            Self::Frozen => "frozen",
            Self::Leaving => "leaving",
            Self::Dead => "dead",
        }
    }
}

/// A version and when it was made: a function that was deleted and made again counts its versions from 1 again.
pub(super) type Made = (VersionNumber, Timestamp);

/// The version that serves.
#[derive(Debug, Clone, Copy)]
pub(super) struct Served {
    pub made: Made,
    /// Whether it can be called over the link.
    pub linked: bool,
}

/// By function.
type Loaded = HashMap<FunctionName, Served>;

/// Versions that one container loads in its life. Node never forgets an ES module, so a container that has seen this many is
/// replaced.
const VERSIONS_MAX: usize = 1_000;

/// What a container was given at its claim and cannot change while it lives.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Settings {
    pub memory_mb: u64,
    #[serde(default)]
    pub egress: Egress,
    #[serde(default)]
    pub oci_runtime: Option<String>,
}

/// A container that belongs to one tenant.
pub struct LiveContainer {
    id: u64,
    path: ContainerPath,
    pub(super) running: Running,
    pub(super) slot: Slot,
    pub(super) control: Control,
    pub(super) settings: Settings,
    node: NodeVersion,
    state: AtomicU8,
    in_flight: AtomicU32,
    /// Of those, the ones whose bodies are still coming.
    uploads: Arc<Uploads>,
    /// Leases given, ever.
    served: AtomicU64,
    last_used_ms: AtomicU64,
    loaded: ArcSwap<Loaded>,
    /// What was ever loaded here, or is being: whose output this container may send, and what its version numbers mean here.
    known: Mutex<BTreeMap<FunctionName, BTreeMap<VersionNumber, Timestamp>>>,
    /// Versions that were replaced, and since when; the runtime forgets them once no request can be on its way to them.
    retired: Mutex<Vec<(Instant, FunctionName, VersionNumber)>>,
    /// One thaw or freeze at a time.
    pub(super) transition: tokio::sync::Mutex<()>,
    checking: AtomicBool,
    /// The code that the runtime announced before it ended; `i64::MIN` for none.
    exit_code: AtomicI64,
    exit: watch::Sender<Option<Exit>>,
    /// Cleaned up after: the slot is free.
    gone: watch::Sender<bool>,
    /// What its functions' loads took, to weigh whom to destroy first.
    cold_cost_us: AtomicU64,
    /// Something was loaded since it last gave back memory.
    untrimmed: AtomicBool,
    /// Those that it is kept to.
    cpus: Mutex<Cpus>,
}

impl fmt::Debug for LiveContainer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} #{} slot {} {}", self.path, self.id, self.slot.number, self.state().name())
    }
}

static NEXT_ID: AtomicU64 = AtomicU64::new(1);

impl LiveContainer {
    pub(super) fn new(
        path: ContainerPath,
        running: Running,
        slot: Slot,
        control: Control,
        settings: Settings,
        cpus: Cpus,
        now_ms: u64,
    ) -> Arc<Self> {
        Arc::new(Self {
            id: NEXT_ID.fetch_add(1, Relaxed),
            path,
            node: running.node,
            running,
            slot,
            control,
            settings,
            state: AtomicU8::new(State::Running as u8),
            in_flight: AtomicU32::new(0),
            uploads: Arc::default(),
            served: AtomicU64::new(0),
            last_used_ms: AtomicU64::new(now_ms),
            loaded: ArcSwap::default(),
            known: Mutex::default(),
            retired: Mutex::default(),
            transition: tokio::sync::Mutex::new(()),
            checking: AtomicBool::new(false),
            exit_code: AtomicI64::new(i64::MIN),
            exit: watch::Sender::new(None),
            gone: watch::Sender::new(false),
            cold_cost_us: AtomicU64::new(0),
            untrimmed: AtomicBool::new(true),
            cpus: Mutex::new(cpus),
        })
    }

    /// Unique in this process's life.
    #[must_use]
    pub fn id(&self) -> u64 {
        self.id
    }

    /// Whose container it is, for life.
    #[must_use]
    pub fn path(&self) -> &ContainerPath {
        &self.path
    }

    /// The CPUs that it is kept to.
    pub(super) fn cpus(&self) -> Cpus {
        *self.cpus.lock()
    }

    pub(super) fn set_cpus(&self, cpus: Cpus) {
        *self.cpus.lock() = cpus;
    }

    /// Whether it is kept to the CPUs for background work.
    pub(super) fn is_background(&self) -> bool {
        self.cpus() == Cpus::Background
    }

    /// Whether it takes requests, or would after a thaw.
    #[must_use]
    pub fn is_alive(&self) -> bool {
        matches!(self.state(), State::Running | State::Frozen)
    }

    /// A connection to one of its sockets for requests.
    ///
    /// # Errors
    /// When nothing listens there, or what is there is no socket: the directory is writable from inside.
    pub async fn connect(&self, socket: &str) -> io::Result<UnixStream> {
        connect(&self.slot.run(), socket).await
    }

    /// How it ended; none while it lives.
    #[must_use]
    pub fn exit(&self) -> Option<Exit> {
        *self.exit.borrow()
    }

    /// Waits until it has ended.
    pub async fn exited(&self) -> Exit {
        let mut exit = self.exit.subscribe();
        exit.wait_for(Option::is_some).await.ok().and_then(|e| *e).unwrap_or_default()
    }

    /// Waits until nothing of it is left.
    pub(super) async fn gone(&self) {
        let _ = self.gone.subscribe().wait_for(|gone| *gone).await;
    }

    pub(super) fn state(&self) -> State {
        State::of(self.state.load(SeqCst))
    }

    /// Changes the state if it is `from` and the table allows it.
    pub(super) fn change(&self, from: State, to: State) -> bool {
        from.may_become(to) && self.state.compare_exchange(from as u8, to as u8, SeqCst, SeqCst).is_ok()
    }

    /// Whether the settings that cannot change in place are still those of the record.
    pub(super) fn fits(&self, servable: &Servable) -> bool {
        let limits = &servable.tenant.limits;
        self.fits_settings(&servable.container)
            && self.settings.egress == limits.egress
            && self.settings.oci_runtime == limits.oci_runtime
    }

    /// Of the record of the container alone.
    pub(super) fn fits_settings(&self, container: &Container) -> bool {
        self.settings.memory_mb == container.memory_mb && self.node == container.node
    }

    /// Whether this very version is the one that serves here.
    pub(super) fn serves(&self, version: &FunctionVersion) -> bool {
        self.loaded.load().get(&version.path.function).is_some_and(|s| s.made == (version.version, version.created_at))
    }

    /// Whether this version can be called over the link.
    #[must_use]
    pub fn is_linked(&self, version: &FunctionVersion) -> bool {
        self.loaded.load().get(&version.path.function).is_some_and(|s| s.linked && s.made.0 == version.version)
    }

    /// Whether this version can be loaded here: not if another one of the same name and number was, since the runtime and Node's cache
    /// of ES modules know them by that, and not one more than [`VERSIONS_MAX`].
    pub(super) fn can_load(&self, version: &FunctionVersion) -> bool {
        let known = self.known.lock();
        match known.get(&version.path.function).and_then(|versions| versions.get(&version.version)) {
            Some(made) => *made == version.created_at,
            None => known.values().map(BTreeMap::len).sum::<usize>() < VERSIONS_MAX,
        }
    }

    /// A version is about to be loaded.
    pub(super) fn expect(&self, function: &FunctionName, (version, made): Made) {
        self.known.lock().entry(function.clone()).or_default().insert(version, made);
    }

    pub(super) fn knows(&self, function: &FunctionName) -> bool {
        self.known.lock().contains_key(function)
    }

    /// Every version that [`LiveContainer::expect`] was told of.
    pub(super) fn known(&self) -> Vec<(FunctionName, Made)> {
        let known = self.known.lock();
        known.iter().flat_map(|(f, versions)| versions.iter().map(|(v, made)| (f.clone(), (*v, *made)))).collect()
    }

    /// Notes the version that serves from now on; the one that it replaces is retired.
    pub(super) fn note_loaded(&self, function: &FunctionName, made: Made, linked: bool) {
        self.expect(function, made);
        let version = made.0;
        let mut retired = self.retired.lock();
        let mut loaded = Loaded::clone(&self.loaded.load());
        let replaced = loaded.insert(function.clone(), Served { made, linked }).map(|s| s.made.0).filter(|v| *v != version);
        retired.retain(|(_, f, v)| !(f == function && *v == version));
        retired.extend(replaced.map(|v| (Instant::now(), function.clone(), v)));
        self.loaded.store(Arc::new(loaded));
        self.untrimmed.store(true, Relaxed);
    }

    /// Has the runtime give back what loading left behind, once for each load; false where there is nothing to give.
    pub(super) fn trim(&self) -> bool {
        let due = self.untrimmed.swap(false, Relaxed);
        if due {
            self.control.tell(&ToRuntime::Trim);
        }
        due
    }

    /// Versions that were replaced at least `age` ago, once each.
    pub(super) fn take_retired(&self, age: Duration) -> Vec<(FunctionName, VersionNumber)> {
        let mut retired = self.retired.lock();
        let due = retired.iter().filter(|(since, ..)| since.elapsed() >= age).map(|(_, f, v)| (f.clone(), *v)).collect();
        retired.retain(|(since, ..)| since.elapsed() < age);
        due
    }

    /// The versions that serve.
    pub(super) fn loaded(&self) -> Arc<Loaded> {
        self.loaded.load_full()
    }

    pub(super) fn in_flight(&self) -> u32 {
        self.in_flight.load(SeqCst)
    }

    /// Requests that it was given, ever.
    pub(super) fn served(&self) -> u64 {
        self.served.load(Relaxed)
    }

    pub(super) fn idle_ms(&self, now_ms: u64) -> u64 {
        if self.in_flight() > 0 { 0 } else { now_ms.saturating_sub(self.last_used_ms.load(Relaxed)) }
    }

    pub(super) fn add_cold_cost(&self, ms: f32) {
        self.cold_cost_us.fetch_add((ms.max(0.0) * 1_000.0) as u64, Relaxed);
    }

    pub(super) fn cold_cost_us(&self) -> u64 {
        self.cold_cost_us.load(Relaxed)
    }

    /// True for the first of those who suspect it at the same time.
    pub(super) fn begin_check(&self) -> bool {
        !self.checking.swap(true, SeqCst)
    }

    pub(super) fn end_check(&self) {
        self.checking.store(false, SeqCst);
    }

    pub(super) async fn ping(&self, timeout: Duration) -> Result<(), AcquireError> {
        self.control.ping(timeout).await
    }

    pub(super) fn announce_exit(&self, code: i32) {
        self.exit_code.store(i64::from(code), Relaxed);
    }

    /// Ends its life for everybody who looks.
    pub(super) fn mark_dead(&self, mut exit: Exit) {
        self.state.store(State::Dead as u8, SeqCst);
        let announced = self.exit_code.load(Relaxed);
        if exit.code.is_none() && announced != i64::MIN {
            exit.code = Some(announced);
        }
        self.exit.send_if_modified(|current| current.is_none() && current.replace(exit).is_none());
    }

    pub(super) fn mark_gone(&self) {
        self.gone.send_replace(true);
    }
}

/// The right to send one request to a container; given back when dropped.
#[derive(Debug)]
pub struct Lease {
    container: Arc<LiveContainer>,
    start: Start,
    timings: ColdTimings,
    /// The handler's clock when the lease was taken, and the moment, so that its end needs no handler.
    taken: (u64, Instant),
}

impl Lease {
    /// Takes a lease unless the container is full (an error) or no longer running (none).
    pub(super) fn take(container: Arc<LiveContainer>, concurrency: u32, now_ms: u64) -> Result<Option<Self>, AcquireError> {
        // Counted first and looked at second: whoever freezes or retires it does the same in the other order, so that one of the two
        // sees the other.
        let in_flight = container.in_flight.fetch_add(1, SeqCst);
        let lease = Self { container, start: Start::Warm, timings: ColdTimings::default(), taken: (now_ms, Instant::now()) };
        if lease.container.state() != State::Running {
            return Ok(None);
        }
        if in_flight >= concurrency {
            return Err(AcquireError::Concurrency { limit: concurrency });
        }
        lease.container.served.fetch_add(1, Relaxed);
        Ok(Some(lease))
    }

    pub(super) fn cold(mut self, start: Start, timings: ColdTimings) -> Self {
        (self.start, self.timings) = (start, timings);
        self
    }

    /// The container.
    #[must_use]
    pub fn container(&self) -> &Arc<LiveContainer> {
        &self.container
    }

    /// A place for a body that is still coming, among the container's so many places.
    ///
    /// # Errors
    /// [`Full`] when bodies hold as many as they may.
    pub fn upload(&self, places: u32) -> Result<UploadPlace, Full> {
        self.container.uploads.take(places)
    }

    /// Whether it was there already.
    #[must_use]
    pub fn start(&self) -> Start {
        self.start
    }

    /// What the start consisted of.
    #[must_use]
    pub fn timings(&self) -> ColdTimings {
        self.timings
    }
}

impl Drop for Lease {
    fn drop(&mut self) {
        let (taken_ms, taken) = self.taken;
        let now_ms = taken_ms.saturating_add(u64::try_from(taken.elapsed().as_millis()).unwrap_or(0));
        self.container.last_used_ms.fetch_max(now_ms, Relaxed);
        self.container.in_flight.fetch_sub(1, SeqCst);
    }
}

/// Connects to a socket in a directory that tenant code can write to: what is there must be a socket itself, never a link to one
/// elsewhere, so it is opened without following and connected to through that very descriptor.
pub(super) async fn connect(dir: &Path, name: &str) -> io::Result<UnixStream> {
    use rustix::fs::{CWD, FileType, Mode, OFlags};
    let flags = OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let dir = rustix::fs::openat(CWD, dir, flags | OFlags::DIRECTORY, Mode::empty())?;
    let socket = rustix::fs::openat(&dir, name, flags, Mode::empty())?;
    if FileType::from_raw_mode(rustix::fs::fstat(&socket)?.st_mode) != FileType::Socket {
        return Err(io::Error::new(io::ErrorKind::InvalidData, format!("{name} is not a socket")));
    }
    let path = format!("/proc/self/fd/{}", std::os::fd::AsRawFd::as_raw_fd(&socket));
    UnixStream::connect(path).await
}

const SHARDS: usize = 16;

/// The containers that are claimed, by path; in shards, since every request looks.
pub(super) struct Registered {
    shards: [RwLock<HashMap<ContainerPath, Arc<LiveContainer>>>; SHARDS],
    hasher: RandomState,
}

impl Default for Registered {
    fn default() -> Self {
        Self { shards: std::array::from_fn(|_| RwLock::default()), hasher: RandomState::new() }
    }
}

impl Registered {
    fn shard(&self, path: &ContainerPath) -> &RwLock<HashMap<ContainerPath, Arc<LiveContainer>>> {
        &self.shards[self.hasher.hash_one(path) as usize % SHARDS]
    }

    pub fn get(&self, path: &ContainerPath) -> Option<Arc<LiveContainer>> {
        self.shard(path).read().get(path).cloned()
    }

    pub fn insert(&self, container: Arc<LiveContainer>) {
        self.shard(&container.path).write().insert(container.path.clone(), container);
    }

    /// Removes this container; a newer one under the same path stays.
    pub fn remove(&self, container: &LiveContainer) {
        let mut shard = self.shard(&container.path).write();
        if shard.get(&container.path).is_some_and(|c| c.id == container.id) {
            shard.remove(&container.path);
        }
    }

    pub fn all(&self) -> Vec<Arc<LiveContainer>> {
        self.shards.iter().flat_map(|s| s.read().values().cloned().collect::<Vec<_>>()).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_lifecycle_has_no_way_back_from_leaving_or_dead() {
        let states = [State::Running, State::Frozen, State::Leaving, State::Dead];
        for from in states {
            assert_eq!(State::of(from as u8), from);
            assert!(!from.may_become(from));
            for to in states {
                if matches!(from, State::Leaving | State::Dead) {
                    assert_eq!(from.may_become(to), from == State::Leaving && to == State::Dead);
                }
            }
            assert!(from == State::Dead || from.may_become(State::Dead), "everything can die");
        }
    }

    #[tokio::test]
    async fn a_link_to_a_socket_elsewhere_is_not_followed() {
        let dir = tempfile::tempdir().unwrap();
        let real = dir.path().join("real.sock");
        let _listener = tokio::net::UnixListener::bind(&real).unwrap();
        assert!(connect(dir.path(), "real.sock").await.is_ok());
        std::os::unix::fs::symlink(&real, dir.path().join("http.sock")).unwrap();
        assert!(connect(dir.path(), "http.sock").await.is_err());
        std::fs::write(dir.path().join("file"), "").unwrap();
        assert!(connect(dir.path(), "file").await.is_err());
        assert!(connect(dir.path(), "none").await.is_err());
    }
}
