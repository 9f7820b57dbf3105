//! The route table, kept up to date.
//!
//! A listing, then a watch from its revision; progress is asked for and waited for with a deadline, and a watch that is
//! silent or broken is built anew. Now and then everything is listed again, whatever the watch says. With the coordinator
//! away the last table stays, here and on disk. It never gives up, and never swaps a table with nodes for garbage.

use crate::{
    coordinator::{Batch, Coordinator, CoordinatorError, Watch, WatchError},
    exception::Exceptions,
    members::{MassRule, Members},
    record::NodeRecord,
    ring::{POINTS_MAX, RingConfig},
    snapshot,
    table::RouteTable,
};
use arc_swap::ArcSwap;
use async_trait::async_trait;
use serde::{Deserialize, Serialize};
use std::{
    collections::HashMap,
    path::PathBuf,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};
use tokio::{
    net::TcpStream,
    sync::watch,
    time::{Instant, sleep, sleep_until, timeout},
};
use tokio_util::{sync::CancellationToken, task::TaskTracker};

/// How the table is kept.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct WatchConfig {
    /// The ring; the same in the whole cluster.
    pub ring: RingConfig,
    /// How often the watch is asked how far it is.
    #[serde(with = "humantime_serde")]
    pub progress_interval: Duration,
    /// A watch that said nothing for so long is built anew.
    #[serde(with = "humantime_serde")]
    pub silence_deadline: Duration,
    /// How often everything is listed again.
    #[serde(with = "humantime_serde")]
    pub resync_interval: Duration,
    /// How long the first listing may take where no table is on disk.
    #[serde(with = "humantime_serde")]
    pub start_deadline: Duration,
    /// From what age on the table counts as stale.
    #[serde(with = "humantime_serde")]
    pub stale_after: Duration,
    /// When more than this share of the nodes vanish together, the coordinator is suspected.
    pub mass_share: f64,
    /// How close together.
    #[serde(with = "humantime_serde")]
    pub mass_window: Duration,
    /// How often suspects are probed.
    #[serde(with = "humantime_serde")]
    pub probe_interval: Duration,
    /// How long a probe may take.
    #[serde(with = "humantime_serde")]
    pub probe_deadline: Duration,
    /// After so many failed probes in a row a suspect is dead.
    pub probe_failures_max: u32,
}

impl Default for WatchConfig {
    fn default() -> Self {
        Self {
            ring: RingConfig::default(),
            progress_interval: Duration::from_secs(1),
            silence_deadline: Duration::from_secs(4),
            resync_interval: Duration::from_secs(60),
            start_deadline: Duration::from_secs(5),
            stale_after: Duration::from_secs(10),
            mass_share: 0.5,
            mass_window: Duration::from_secs(5),
            probe_interval: Duration::from_secs(1),
            probe_deadline: Duration::from_millis(500),
            probe_failures_max: 3,
        }
    }
}

impl WatchConfig {
    /// Refuses what cannot work, naming the key.
    ///
    /// # Errors
    /// The key, what is wrong, and what would do.
    pub fn validate(&self) -> Result<(), String> {
        let durations = [
            (self.progress_interval, "progress_interval"),
            (self.silence_deadline, "silence_deadline"),
            (self.resync_interval, "resync_interval"),
            (self.start_deadline, "start_deadline"),
            (self.stale_after, "stale_after"),
            (self.probe_interval, "probe_interval"),
            (self.probe_deadline, "probe_deadline"),
        ];
        if let Some((_, key)) = durations.iter().find(|(duration, _)| duration.is_zero()) {
            return Err(format!("table.{key} is zero; give a duration such as 5s"));
        }
        if self.silence_deadline < self.progress_interval * 2 {
            return Err(
                "table.silence_deadline must be twice table.progress_interval at least, or a live watch counts as silent".into()
            );
        }
        if !(self.mass_share > 0.0 && self.mass_share <= 1.0) {
            return Err(format!("table.mass_share is {}: a share of the nodes is above 0 and at most 1", self.mass_share));
        }
        if self.probe_failures_max == 0 {
            return Err("table.probe_failures_max is 0: a suspect must be probed once at least".into());
        }
        if !(1..=POINTS_MAX).contains(&self.ring.points_per_capacity) {
            return Err(format!(
                "table.ring.points_per_capacity must be from 1 to {POINTS_MAX}, and the same in the whole cluster"
            ));
        }
        Ok(())
    }
}

/// Between attempts to reach the coordinator.
const RETRY_MIN: Duration = Duration::from_millis(100);
const RETRY_MAX: Duration = Duration::from_secs(2);
/// So often a listing older than what was known is not believed.
const BEHIND_MAX: u32 = 5;
/// Changes that come together are built into one table.
const GATHER: Duration = Duration::from_millis(10);

/// Why there is no table to start with.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// No answer, and nothing on disk.
    #[error(
        "the coordinator (placement.endpoints) gave no table within {deadline:?} and there is none on disk{on_disk}: {reason}. Start etcd first, or keep the data directory of the last run"
    )]
    NoTable {
        /// How long was waited.
        deadline: Duration,
        /// Where a table on disk was looked for.
        on_disk: String,
        /// The last reason known.
        reason: String,
    },
}

/// Finds out whether a node lives that has vanished from the coordinator together with many others.
#[async_trait]
pub trait Probe: Send + Sync + 'static {
    /// Whether the node answers. Bounded by a deadline of its own.
    async fn is_alive(&self, node: &NodeRecord) -> bool;
}

/// A node that takes a connection at its data address lives.
struct ConnectProbe {
    deadline: Duration,
}

#[async_trait]
impl Probe for ConnectProbe {
    async fn is_alive(&self, node: &NodeRecord) -> bool {
        matches!(timeout(self.deadline, TcpStream::connect(node.data_addr)).await, Ok(Ok(_)))
    }
}

struct Shared {
    table: ArcSwap<RouteTable>,
    /// When the coordinator was last known to agree, as milliseconds since `started`, plus one; 0 means never.
    confirmed_ms: AtomicU64,
    started: Instant,
    stale_after: Duration,
    changed: watch::Sender<i64>,
    skipped: AtomicU64,
    rebuilt: AtomicU64,
}

/// A table that follows the coordinator. Clones share it; it stops when [`Self::stop`] is called or the last clone is gone.
#[derive(Clone)]
pub struct TableWatch {
    shared: Arc<Shared>,
    owner: Arc<Owner>,
}

struct Owner {
    stop: CancellationToken,
    tasks: TaskTracker,
}

impl Drop for Owner {
    fn drop(&mut self) {
        self.stop.cancel();
    }
}

impl TableWatch {
    /// Starts to follow. With a usable table on disk it returns at once, and the table counts as stale until the coordinator
    /// has answered.
    ///
    /// # Errors
    /// [`StartError`] when there is neither a table on disk nor an answer in time.
    pub async fn start(
        coordinator: Arc<dyn Coordinator>,
        prefix: &str,
        config: WatchConfig,
        snapshot_path: Option<PathBuf>,
    ) -> Result<Self, StartError> {
        let probe = Arc::new(ConnectProbe { deadline: config.probe_deadline });
        Self::start_with(coordinator, prefix, config, snapshot_path, probe).await
    }

    /// As [`Self::start`], with another way to find out whether a suspect lives.
    ///
    /// # Errors
    /// As [`Self::start`].
    pub async fn start_with(
        coordinator: Arc<dyn Coordinator>,
        prefix: &str,
        config: WatchConfig,
        snapshot_path: Option<PathBuf>,
        probe: Arc<dyn Probe>,
    ) -> Result<Self, StartError> {
        let rule = MassRule { share: config.mass_share, window: config.mass_window };
        let mut members = Members::new(prefix, rule);
        let on_disk = snapshot_path.as_deref().and_then(|path| snapshot::load(path, prefix));
        let mut revision = 0;
        if let Some(snapshot) = on_disk {
            revision = snapshot.revision;
            members.restore(snapshot.nodes, snapshot.exceptions);
        }
        let table = RouteTable::build(members.table_nodes(), &Arc::new(members.exceptions()), revision, config.ring);
        let shared = Arc::new(Shared {
            table: ArcSwap::from_pointee(table),
            confirmed_ms: AtomicU64::new(0),
            started: Instant::now(),
            stale_after: config.stale_after,
            changed: watch::Sender::new(revision),
            skipped: AtomicU64::new(0),
            rebuilt: AtomicU64::new(0),
        });
        let owner = Arc::new(Owner { stop: CancellationToken::new(), tasks: TaskTracker::new() });
        let deadline = config.start_deadline;
        let place = snapshot_path.as_ref().map_or_else(String::new, |path| format!(" at {}", path.display()));
        let (reason_out, reason) = watch::channel(String::new());
        let follower = Follower {
            coordinator,
            root: format!("{prefix}/"),
            prefix: prefix.to_owned(),
            config,
            snapshot_path,
            members,
            revision,
            listed: 0,
            shared: shared.clone(),
            reason: reason_out,
            failures: HashMap::new(),
            behind: 0,
            probe,
        };
        let stop = owner.stop.clone();
        owner.tasks.spawn(async move {
            // Dropping the follower in the middle is harmless: the snapshot is written to a file of its own and renamed.
            tokio::select! {
                () = stop.cancelled() => {}
                () = follower.run() => {}
            }
        });
        owner.tasks.close();
        let this = Self { shared, owner };
        if revision == 0 && timeout(deadline, this.confirmed()).await.is_err() {
            let reason = reason.borrow().clone();
            return Err(StartError::NoTable { deadline, on_disk: place, reason });
        }
        Ok(this)
    }

    async fn confirmed(&self) {
        let mut changed = self.shared.changed.subscribe();
        while self.shared.confirmed_ms.load(Ordering::Acquire) == 0 {
            if changed.changed().await.is_err() {
                return;
            }
        }
    }

    /// The table now.
    #[must_use]
    pub fn table(&self) -> Arc<RouteTable> {
        self.shared.table.load_full()
    }

    /// How long ago the coordinator was last known to agree; since the start when it never was.
    #[must_use]
    pub fn age(&self) -> Duration {
        let confirmed = Duration::from_millis(self.shared.confirmed_ms.load(Ordering::Acquire).saturating_sub(1));
        self.shared.started.elapsed().saturating_sub(confirmed)
    }

    /// Whether the table may be behind: too old, or from disk and never confirmed.
    #[must_use]
    pub fn is_stale(&self) -> bool {
        self.shared.confirmed_ms.load(Ordering::Acquire) == 0 || self.age() > self.shared.stale_after
    }

    /// Tells of each new table, by its revision.
    #[must_use]
    pub fn changed(&self) -> watch::Receiver<i64> {
        self.shared.changed.subscribe()
    }

    /// Unreadable keys met so far, for a metric.
    #[must_use]
    pub fn keys_skipped(&self) -> u64 {
        self.shared.skipped.load(Ordering::Relaxed)
    }

    /// How often the watch was built, for a metric.
    #[must_use]
    pub fn watches_built(&self) -> u64 {
        self.shared.rebuilt.load(Ordering::Relaxed)
    }

    /// Ends the task. The table stays as it is.
    pub async fn stop(&self) {
        self.owner.stop.cancel();
        self.owner.tasks.wait().await;
    }
}

struct Follower {
    coordinator: Arc<dyn Coordinator>,
    root: String,
    prefix: String,
    config: WatchConfig,
    snapshot_path: Option<PathBuf>,
    members: Members,
    revision: i64,
    /// The revision of the last listing.
    listed: i64,
    shared: Arc<Shared>,
    reason: watch::Sender<String>,
    failures: HashMap<NodeRecord, u32>,
    behind: u32,
    probe: Arc<dyn Probe>,
}

impl Follower {
    async fn run(mut self) {
        let mut pause = RETRY_MIN;
        loop {
            let reason = match self.list().await {
                Ok(()) => {
                    pause = RETRY_MIN;
                    self.follow().await
                }
                Err(error) => error.to_string(),
            };
            tracing::warn!(reason, age = ?self.shared.started.elapsed(), "the table is not followed; trying again");
            self.reason.send_replace(reason);
            sleep(pause).await;
            pause = (pause * 2).min(RETRY_MAX);
            self.probe().await;
        }
    }

    /// Everything anew. What the coordinator no longer has is deleted here, which covers compaction and any gap.
    async fn list(&mut self) -> Result<(), CoordinatorError> {
        let listing = self.coordinator.list(&self.root).await?;
        if listing.revision < self.revision {
            // A member that is behind soon catches up; an etcd restored from a backup stays so and is believed in the end.
            self.behind += 1;
            if self.behind <= BEHIND_MAX {
                let reason = format!("it is at revision {}, behind {} that was known of it", listing.revision, self.revision);
                return Err(CoordinatorError::Unavailable { attempt: "list", reason });
            }
            tracing::error!(known = self.revision, found = listing.revision, "the coordinator went back; its word is taken");
        }
        self.behind = 0;
        let is_changed = self.members.replace(&listing.items, Instant::now());
        let is_first = self.shared.confirmed_ms.load(Ordering::Acquire) == 0;
        self.revision = listing.revision;
        self.listed = listing.revision;
        if is_changed || is_first {
            self.publish().await;
        }
        self.confirm();
        Ok(())
    }

    /// Follows until something breaks; says what.
    async fn follow(&mut self) -> String {
        let mut next_list = Instant::now() + self.config.resync_interval;
        let mut stream = match self.coordinator.watch(&self.root, self.revision + 1).await {
            Ok(stream) => stream,
            Err(error) => return error.to_string(),
        };
        self.shared.rebuilt.fetch_add(1, Ordering::Relaxed);
        let mut heard = Instant::now();
        let mut ask = heard + self.config.progress_interval;
        let mut probe = heard + self.config.probe_interval;
        loop {
            // Cancel-safe: a batch is taken whole or not at all.
            tokio::select! {
                batch = stream.next() => match self.take(batch, &mut stream).await {
                    Ok(()) => heard = Instant::now(),
                    Err(reason) => return reason,
                },
                () = sleep_until(ask) => {
                    if let Err(error) = stream.request_progress().await {
                        return error.to_string();
                    }
                    ask = Instant::now() + self.config.progress_interval;
                }
                () = sleep_until(heard + self.config.silence_deadline) => {
                    return format!("the watch was silent for {:?}", self.config.silence_deadline);
                }
                () = sleep_until(next_list) => {
                    if let Err(error) = self.list().await {
                        return error.to_string();
                    }
                    // The watch goes on; what it still brings from before the listing is only newer than nothing, so it is
                    // skipped by revision.
                    next_list = Instant::now() + self.config.resync_interval;
                }
                () = sleep_until(probe) => {
                    self.probe().await;
                    probe = Instant::now() + self.config.probe_interval;
                }
            }
        }
    }

    async fn take(&mut self, batch: Result<Batch, WatchError>, stream: &mut Box<dyn Watch>) -> Result<(), String> {
        let is_changed = self.apply(batch.map_err(|error| error.to_string())?);
        // Nodes often come and go together; one table for all of them.
        if is_changed {
            let until = Instant::now() + GATHER;
            while let Ok(batch) = tokio::time::timeout_at(until, stream.next()).await {
                match batch {
                    Ok(batch) => {
                        self.apply(batch);
                    }
                    Err(error) => {
                        self.publish().await;
                        return Err(error.to_string());
                    }
                }
            }
            self.publish().await;
        }
        self.confirm();
        Ok(())
    }

    fn apply(&mut self, batch: Batch) -> bool {
        let now = Instant::now();
        let mut is_changed = false;
        for event in &batch.events {
            let at = match event {
                crate::coordinator::Event::Put(item) => item.mod_revision,
                crate::coordinator::Event::Delete { revision, .. } => *revision,
            };
            // A listing while the watch went on holds what the watch brings later. Progress says nothing here: etcd before
            // 3.4.25 lets it overtake changes.
            if at > self.listed {
                is_changed |= self.members.apply(event, now);
                self.revision = self.revision.max(at);
            }
        }
        is_changed
    }

    async fn publish(&mut self) {
        self.shared.skipped.store(self.members.skipped(), Ordering::Relaxed);
        let old = self.shared.table.load_full();
        let mut nodes = self.members.table_nodes();
        nodes.sort_by(|a, b| a.record.name.cmp(&b.record.name));
        let exceptions = Arc::new(self.members.exceptions());
        let table = if old.nodes() == nodes.as_slice() {
            old.with_exceptions(&exceptions, self.revision)
        } else {
            RouteTable::build(nodes, &exceptions, self.revision, self.config.ring)
        };
        tracing::info!(revision = self.revision, nodes = table.nodes().len(), "a new table");
        self.shared.table.store(Arc::new(table));
        self.shared.changed.send_replace(self.revision);
        self.save(exceptions).await;
    }

    async fn save(&self, exceptions: Arc<Exceptions>) {
        let Some(path) = self.snapshot_path.clone() else { return };
        let nodes: Vec<_> = self.members.table_nodes().into_iter().map(|node| node.record).collect();
        if nodes.is_empty() {
            return;
        }
        let (prefix, revision) = (self.prefix.clone(), self.revision);
        let file = path.clone();
        // Waited for, so that two writers never race for the file.
        let stored =
            tokio::task::spawn_blocking(move || snapshot::store(&file, &prefix, revision, nodes, Arc::unwrap_or_clone(exceptions)));
        if let Err(error) = stored.await.unwrap_or_else(|panic| Err(std::io::Error::other(panic))) {
            tracing::error!(path = %path.display(), %error, "the table could not be written to disk; a restart without the coordinator would serve an old one");
        }
    }

    fn confirm(&self) {
        self.shared.skipped.store(self.members.skipped(), Ordering::Relaxed);
        let now_ms = u64::try_from(self.shared.started.elapsed().as_millis()).unwrap_or(u64::MAX);
        if self.shared.confirmed_ms.swap(now_ms.saturating_add(1), Ordering::AcqRel) == 0 {
            self.shared.changed.send_replace(self.revision);
        }
    }

    async fn probe(&mut self) {
        let suspects = self.members.suspects();
        self.failures.retain(|node, _| suspects.contains(node));
        let probe = self.probe.clone();
        let probes = suspects.into_iter().map(|node| async { (probe.is_alive(&node).await, node) });
        let mut is_changed = false;
        for (is_alive, node) in futures_util::future::join_all(probes).await {
            let failures = self.failures.entry(node.clone()).or_default();
            *failures = if is_alive { 0 } else { *failures + 1 };
            if *failures >= self.config.probe_failures_max {
                is_changed |= self.members.bury(&node);
            }
        }
        if is_changed {
            self.publish().await;
        }
    }
}
