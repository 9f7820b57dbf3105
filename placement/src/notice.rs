//! Notices that a function changed, from the node that changed it to all others: keys that a short lease ends.
//!
//! A notice is a hint to look at the store, never the change itself. Whoever may have missed one is told to look at
//! everything: after a gap, and when notices come faster than they are taken.

use crate::coordinator::{Coordinator, CoordinatorError, Event, KeyValue, LeaseId, Precondition, WatchError};
use serde::{Deserialize, Serialize};
use std::{collections::BTreeSet, sync::Arc, time::Duration};
use tokio::{
    sync::mpsc,
    time::{Instant, sleep, sleep_until},
};

/// How long a notice lies there. Much longer than a watch takes to be built again.
const TTL: Duration = Duration::from_secs(60);
/// A lease serves for notices for so long; then a new one is taken, so that the oldest notice ends in time.
const LEASE_AGE_MAX: Duration = Duration::from_secs(20);
/// More paths than this under one lease become one notice that stands for all.
pub const PATHS_MAX: usize = 1024;
/// How many notices wait for a subscriber.
pub const WAITING_MAX: usize = 1024;
/// As for the table: how often progress is asked for, and how long a watch may be silent.
const PROGRESS_INTERVAL: Duration = Duration::from_secs(1);
const SILENCE_DEADLINE: Duration = Duration::from_secs(4);
const RETRY: Duration = Duration::from_millis(500);
/// The key of a notice that stands for all.
const ALL: &str = "all";

/// Something changed.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ChangeNotice {
    /// `tenant`, `tenant/container` or `tenant/container/function`.
    pub path: String,
    /// The node that changed it, by name; a node may skip its own.
    pub origin: String,
}

/// What a subscriber gets.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Notice {
    /// This changed.
    Changed(ChangeNotice),
    /// Anything may have changed.
    Resync {
        /// Why, for the log.
        reason: &'static str,
    },
}

/// Publishes and subscribes. Cheap to clone.
#[derive(Clone)]
pub struct Notices {
    coordinator: Arc<dyn Coordinator>,
    root: String,
    own: Arc<tokio::sync::Mutex<Own>>,
}

#[derive(Default)]
struct Own {
    lease: Option<(LeaseId, Instant)>,
    paths: BTreeSet<String>,
}

impl Notices {
    /// Notices of the cluster of this prefix.
    #[must_use]
    pub fn new(coordinator: Arc<dyn Coordinator>, prefix: &str) -> Self {
        Self { coordinator, root: format!("{prefix}/changes/"), own: Arc::default() }
    }

    /// Tells everyone. Notices of one path that come together are one.
    ///
    /// # Errors
    /// Those of the coordinator; nodes then find out by looking at the store now and then.
    pub async fn publish(&self, notice: &ChangeNotice) -> Result<(), CoordinatorError> {
        let mut own = self.own.lock().await;
        match self.put(&mut own, notice).await {
            // The lease was ended by others; once more with a new one.
            Err(CoordinatorError::LeaseGone) => {
                *own = Own::default();
                self.put(&mut own, notice).await
            }
            result => result,
        }
    }

    async fn put(&self, own: &mut Own, notice: &ChangeNotice) -> Result<(), CoordinatorError> {
        let lease = match own.lease {
            Some((lease, since)) if since.elapsed() < LEASE_AGE_MAX => lease,
            _ => {
                let lease = self.coordinator.grant(TTL).await?;
                *own = Own { lease: Some((lease, Instant::now())), paths: BTreeSet::new() };
                lease
            }
        };
        let is_known = own.paths.contains(&notice.path);
        let path = if is_known || own.paths.len() < PATHS_MAX { notice.path.as_str() } else { ALL };
        // "all" is no tenant's path here, since a tenant's notice has a slash in front of its name.
        let key = if path == ALL && path != notice.path { format!("{}{ALL}", self.root) } else { format!("{}p/{path}", self.root) };
        // A notice is plain text fields, which always have a JSON form.
        let value = serde_json::to_vec(notice).unwrap_or_default();
        self.coordinator.put(&key, value, Precondition::Any, Some(lease)).await?;
        if !is_known && own.paths.len() < PATHS_MAX {
            own.paths.insert(notice.path.clone());
        }
        Ok(())
    }

    /// Notices from now on, until the receiver is dropped. The first is always a resync, once the watch stands, so that what
    /// changed before is not missed.
    #[must_use]
    pub fn subscribe(&self) -> mpsc::Receiver<Notice> {
        let (sender, receiver) = mpsc::channel(WAITING_MAX);
        let (this, closed) = (self.clone(), sender.clone());
        // The task belongs to the receiver: it ends when that is dropped.
        tokio::spawn(async move {
            tokio::select! {
                () = closed.closed() => {}
                () = this.follow(sender) => {}
            }
        });
        receiver
    }

    async fn follow(self, sender: mpsc::Sender<Notice>) {
        let mut outlet = Outlet { sender, owes: Some("the watch begins") };
        loop {
            let reason = self.follow_once(&mut outlet).await;
            tracing::warn!(reason = %reason, "change notices are not followed; trying again");
            outlet.owes.get_or_insert("the watch was interrupted");
            sleep(RETRY).await;
        }
    }

    async fn follow_once(&self, outlet: &mut Outlet) -> String {
        // The listing only tells where to begin; what it holds is covered by the resync.
        let listing = match self.coordinator.list(&self.root).await {
            Ok(listing) => listing,
            Err(error) => return error.to_string(),
        };
        let mut stream = match self.coordinator.watch(&self.root, listing.revision + 1).await {
            Ok(stream) => stream,
            Err(error) => return error.to_string(),
        };
        let mut heard = Instant::now();
        let mut ask = heard + PROGRESS_INTERVAL;
        outlet.settle();
        loop {
            // Cancel-safe: a batch is taken whole or not at all.
            tokio::select! {
                batch = stream.next() => match batch {
                    Ok(batch) => {
                        heard = Instant::now();
                        outlet.settle();
                        for event in batch.events {
                            if let Event::Put(item) = event {
                                outlet.give(self.read(&item));
                            }
                        }
                    }
                    Err(error @ WatchError::Compacted { .. }) => return error.to_string(),
                    Err(error) => return error.to_string(),
                },
                () = sleep_until(ask) => {
                    outlet.settle();
                    if let Err(error) = stream.request_progress().await {
                        return error.to_string();
                    }
                    ask = Instant::now() + PROGRESS_INTERVAL;
                }
                () = sleep_until(heard + SILENCE_DEADLINE) => return format!("silent for {SILENCE_DEADLINE:?}"),
            }
        }
    }

    fn read(&self, item: &KeyValue) -> Notice {
        let path = item.key.strip_prefix(&self.root).and_then(|rest| rest.strip_prefix("p/"));
        match (path, serde_json::from_slice::<ChangeNotice>(&item.value)) {
            (Some(path), Ok(notice)) if notice.path == path => Notice::Changed(notice),
            // Garbage under a key that was written for a reason: better look at all than miss it.
            _ => Notice::Resync { reason: "a notice that stands for all" },
        }
    }
}

/// The way to one subscriber.
struct Outlet {
    sender: mpsc::Sender<Notice>,
    /// A resync that the subscriber must get before anything else counts.
    owes: Option<&'static str>,
}

impl Outlet {
    fn settle(&mut self) {
        if let Some(reason) = self.owes
            && self.sender.try_send(Notice::Resync { reason }).is_ok()
        {
            self.owes = None;
        }
    }

    /// What finds no room is dropped, and owed as a resync.
    fn give(&mut self, notice: Notice) {
        if self.owes.is_none() && self.sender.try_send(notice).is_err() {
            self.owes = Some("notices came faster than they were taken");
        }
    }
}
