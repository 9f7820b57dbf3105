//! A coordinator in this process: for one machine, and for tests. It models what etcd does to its clients: one line of
//! revisions, compaction, leases that end, watches that fall silent or break, calls that get no answer.
//!
//! It keeps nothing across a restart and is no consensus: the store is one lock. Time is tokio's, so that tests may turn it.

use super::{Batch, Coordinator, CoordinatorError, Event, KeyValue, LeaseId, Listing, Precondition, Watch, WatchError};
use async_trait::async_trait;
use parking_lot::Mutex;
use std::{
    collections::{BTreeMap, VecDeque},
    sync::Arc,
    time::Duration,
};
use tokio::{sync::watch, time::Instant};

/// Past so many remembered changes the older half is compacted.
const HISTORY_MAX: usize = 16_384;
/// The most changes in one batch.
const BATCH_MAX: usize = 1024;
/// How long a call to a store that does not answer waits.
const DEADLINE: Duration = Duration::from_secs(2);

#[derive(Debug)]
struct Entry {
    value: Vec<u8>,
    mod_revision: i64,
    create_revision: i64,
    lease: Option<LeaseId>,
}

#[derive(Debug)]
struct Lease {
    ttl: Duration,
    ends_at: Instant,
}

#[derive(Debug, Default)]
struct State {
    revision: i64,
    keys: BTreeMap<String, Entry>,
    history: VecDeque<(i64, Event)>,
    /// Changes at or before this revision are forgotten.
    compacted: i64,
    leases: BTreeMap<i64, Lease>,
    lease_last: i64,
}

impl State {
    fn record(&mut self, event: Event) {
        self.history.push_back((self.revision, event));
        if self.history.len() > HISTORY_MAX
            && let Some((revision, _)) = self.history.get(HISTORY_MAX / 2)
        {
            self.compact(*revision);
        }
    }

    fn compact(&mut self, revision: i64) {
        self.compacted = self.compacted.max(revision - 1);
        while self.history.front().is_some_and(|(at, _)| *at < revision) {
            self.history.pop_front();
        }
    }

    fn remove(&mut self, keys: Vec<String>) {
        if keys.is_empty() {
            return;
        }
        self.revision += 1;
        for key in keys {
            self.keys.remove(&key);
            self.record(Event::Delete { key, revision: self.revision });
        }
    }

    fn end_lease(&mut self, lease: i64) {
        if self.leases.remove(&lease).is_some() {
            let held = self.keys.iter().filter(|(_, entry)| entry.lease == Some(LeaseId(lease)));
            let keys = held.map(|(key, _)| key.clone()).collect();
            self.remove(keys);
        }
    }

    fn expire(&mut self, now: Instant) {
        let due: Vec<i64> = self.leases.iter().filter(|(_, lease)| lease.ends_at <= now).map(|(id, _)| *id).collect();
        for lease in due {
            self.end_lease(lease);
        }
    }

    fn check(&self, key: &str, precondition: Precondition) -> Result<(), CoordinatorError> {
        let found = self.keys.get(key).map(|entry| entry.mod_revision);
        let holds = match precondition {
            Precondition::Any => true,
            Precondition::Absent => found.is_none(),
            Precondition::ModRevision(revision) => found == Some(revision),
        };
        if holds { Ok(()) } else { Err(CoordinatorError::Conflict { key: key.to_owned() }) }
    }

    fn view(&self, key: &str, entry: &Entry) -> KeyValue {
        let (mod_revision, create_revision) = (entry.mod_revision, entry.create_revision);
        KeyValue { key: key.to_owned(), value: entry.value.clone(), mod_revision, create_revision }
    }
}

#[derive(Debug)]
struct Store {
    state: Mutex<State>,
    /// The revision, for those who wait for a change.
    changed: watch::Sender<i64>,
}

impl Store {
    /// Does something to the state once all that has expired is gone, and wakes those who wait.
    fn with<T>(&self, action: impl FnOnce(&mut State) -> T) -> T {
        let mut state = self.state.lock();
        state.expire(Instant::now());
        let result = action(&mut state);
        let revision = state.revision;
        drop(state);
        self.changed.send_if_modified(|known| std::mem::replace(known, revision) != revision);
        result
    }
}

/// How a client reaches the store.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
struct Link {
    is_cut: bool,
    is_silent: bool,
    latency: Duration,
    /// Grows with each disconnection.
    connection: u64,
}

/// A client of a store in this process. Clones share the connection; [`Self::client`] makes another one.
#[derive(Debug, Clone)]
pub struct LocalCoordinator {
    store: Arc<Store>,
    link: Arc<watch::Sender<Link>>,
}

impl Default for LocalCoordinator {
    fn default() -> Self {
        Self::new()
    }
}

impl LocalCoordinator {
    /// A new, empty store.
    #[must_use]
    pub fn new() -> Self {
        let state = State { revision: 1, ..State::default() };
        let store = Store { state: Mutex::new(state), changed: watch::Sender::new(1) };
        Self { store: Arc::new(store), link: Arc::new(watch::Sender::new(Link::default())) }
    }

    /// Another client of the same store, with a connection of its own.
    #[must_use]
    pub fn client(&self) -> Self {
        Self { store: self.store.clone(), link: Arc::new(watch::Sender::new(Link::default())) }
    }

    /// Cuts the connection: calls get no answer, watches say nothing. Mending it breaks the watches of before.
    pub fn set_cut(&self, is_cut: bool) {
        self.link.send_modify(|link| {
            link.is_cut = is_cut;
            if !is_cut {
                link.connection += 1;
            }
        });
    }

    /// Calls are answered, but watches say nothing any more and do not break.
    pub fn set_silent(&self, is_silent: bool) {
        self.link.send_modify(|link| link.is_silent = is_silent);
    }

    /// How long each call takes.
    pub fn set_latency(&self, latency: Duration) {
        self.link.send_modify(|link| link.latency = latency);
    }

    /// Breaks all watches.
    pub fn disconnect(&self) {
        self.link.send_modify(|link| link.connection += 1);
    }

    /// Ends the leases of all keys below a prefix, though their owners live: what a confused leader does to etcd's clients.
    pub fn end_leases_below(&self, prefix: &str) {
        self.store.with(|state| {
            let held = state.keys.range(prefix.to_owned()..).take_while(|(key, _)| key.starts_with(prefix));
            let leases: Vec<i64> = held.filter_map(|(_, entry)| entry.lease.map(|lease| lease.0)).collect();
            for lease in leases {
                state.end_lease(lease);
            }
        });
    }

    /// Takes its time, or fails as a call that gets no answer does.
    async fn reach(&self, attempt: &'static str) -> Result<(), CoordinatorError> {
        let mut link = self.link.subscribe();
        let latency = link.borrow_and_update().latency;
        if !latency.is_zero() {
            tokio::time::sleep(latency.min(DEADLINE)).await;
        }
        let is_reached = tokio::time::timeout(DEADLINE, link.wait_for(|link| !link.is_cut)).await;
        // The sender lives as long as this client, so only the deadline can fail.
        if matches!(is_reached, Ok(Ok(_))) { Ok(()) } else { Err(CoordinatorError::Deadline { attempt, deadline: DEADLINE }) }
    }
}

#[async_trait]
impl Coordinator for LocalCoordinator {
    async fn get(&self, key: &str) -> Result<Option<KeyValue>, CoordinatorError> {
        self.reach("get").await?;
        Ok(self.store.with(|state| state.keys.get(key).map(|entry| state.view(key, entry))))
    }

    async fn list(&self, prefix: &str) -> Result<Listing, CoordinatorError> {
        self.reach("list").await?;
        Ok(self.store.with(|state| {
            let below = state.keys.range(prefix.to_owned()..).take_while(|(key, _)| key.starts_with(prefix));
            Listing { revision: state.revision, items: below.map(|(key, entry)| state.view(key, entry)).collect() }
        }))
    }

    async fn put(
        &self,
        key: &str,
        value: Vec<u8>,
        precondition: Precondition,
        lease: Option<LeaseId>,
    ) -> Result<i64, CoordinatorError> {
        self.reach("put").await?;
        self.store.with(|state| {
            state.check(key, precondition)?;
            if lease.is_some_and(|lease| !state.leases.contains_key(&lease.0)) {
                return Err(CoordinatorError::LeaseGone);
            }
            state.revision += 1;
            let mod_revision = state.revision;
            let create_revision = state.keys.get(key).map_or(mod_revision, |entry| entry.create_revision);
            let entry = Entry { value, mod_revision, create_revision, lease };
            let event = Event::Put(state.view(key, &entry));
            state.keys.insert(key.to_owned(), entry);
            state.record(event);
            Ok(mod_revision)
        })
    }

    async fn delete(&self, key: &str, precondition: Precondition) -> Result<(), CoordinatorError> {
        self.reach("delete").await?;
        self.store.with(|state| {
            state.check(key, precondition)?;
            if state.keys.contains_key(key) {
                state.remove(vec![key.to_owned()]);
            }
            Ok(())
        })
    }

    async fn grant(&self, ttl: Duration) -> Result<LeaseId, CoordinatorError> {
        self.reach("grant").await?;
        Ok(self.store.with(|state| {
            state.lease_last += 1;
            let ends_at = Instant::now() + ttl;
            state.leases.insert(state.lease_last, Lease { ttl, ends_at });
            LeaseId(state.lease_last)
        }))
    }

    async fn keep_alive(&self, lease: LeaseId) -> Result<Duration, CoordinatorError> {
        self.reach("keep alive").await?;
        self.store.with(|state| {
            let lease = state.leases.get_mut(&lease.0).ok_or(CoordinatorError::LeaseGone)?;
            lease.ends_at = Instant::now() + lease.ttl;
            Ok(lease.ttl)
        })
    }

    async fn revoke(&self, lease: LeaseId) -> Result<(), CoordinatorError> {
        self.reach("revoke").await?;
        self.store.with(|state| state.end_lease(lease.0));
        Ok(())
    }

    async fn watch(&self, prefix: &str, from: i64) -> Result<Box<dyn Watch>, CoordinatorError> {
        self.reach("watch").await?;
        let link = self.link.subscribe();
        let connection = link.borrow().connection;
        let changed = self.store.changed.subscribe();
        let prefix = prefix.to_owned();
        Ok(Box::new(LocalWatch { store: self.store.clone(), link, changed, connection, prefix, next: from, wants_progress: false }))
    }

    async fn compact(&self, revision: i64) -> Result<(), CoordinatorError> {
        self.reach("compact").await?;
        self.store.with(|state| state.compact(revision.min(state.revision)));
        Ok(())
    }
}

struct LocalWatch {
    store: Arc<Store>,
    link: watch::Receiver<Link>,
    changed: watch::Receiver<i64>,
    connection: u64,
    prefix: String,
    /// The revision of the first change that was not given yet.
    next: i64,
    wants_progress: bool,
}

impl LocalWatch {
    /// What there is to give now, and otherwise when the next lease ends.
    fn poll(&mut self) -> Result<Result<Batch, Option<Instant>>, WatchError> {
        let (from, prefix) = (self.next, self.prefix.as_str());
        let (revision, compacted, mut found, ends_at) = self.store.with(|state| {
            let since = state.history.partition_point(|(at, _)| *at < from);
            let matching = state.history.range(since..).filter(|(_, event)| event.key().starts_with(prefix));
            let found: Vec<(i64, Event)> = matching.take(BATCH_MAX + 1).cloned().collect();
            let ends_at = state.leases.values().map(|lease| lease.ends_at).min();
            (state.revision, state.compacted, found, ends_at)
        });
        if from <= compacted {
            return Err(WatchError::Compacted { oldest: compacted + 1 });
        }
        if found.len() > BATCH_MAX {
            // One revision is never torn apart.
            let last = found[BATCH_MAX].0;
            found.retain(|(at, _)| *at < last);
        } else if found.is_empty() && !self.wants_progress {
            return Ok(Err(ends_at));
        } else {
            self.wants_progress = false;
            self.next = revision + 1;
            return Ok(Ok(Batch { revision, events: found.into_iter().map(|(_, event)| event).collect() }));
        }
        let upto = found.last().map_or(from, |(at, _)| *at);
        self.next = upto + 1;
        Ok(Ok(Batch { revision: upto, events: found.into_iter().map(|(_, event)| event).collect() }))
    }
}

#[async_trait]
impl Watch for LocalWatch {
    async fn next(&mut self) -> Result<Batch, WatchError> {
        loop {
            let link = *self.link.borrow_and_update();
            self.changed.borrow_and_update();
            let mut ends_at = None;
            if !link.is_cut && !link.is_silent {
                if link.connection != self.connection {
                    return Err(WatchError::Broken("the connection was closed".into()));
                }
                match self.poll()? {
                    Ok(batch) => return Ok(batch),
                    Err(at) => ends_at = at,
                }
            }
            // Cancel-safe: all state changes on the way out only.
            tokio::select! {
                _ = self.changed.changed() => {}
                result = self.link.changed() => {
                    if result.is_err() {
                        return Err(WatchError::Broken("the client is gone".into()));
                    }
                }
                () = async { tokio::time::sleep_until(ends_at.unwrap_or_else(Instant::now)).await }, if ends_at.is_some() => {}
            }
        }
    }

    async fn request_progress(&mut self) -> Result<(), WatchError> {
        self.wants_progress = true;
        Ok(())
    }
}
