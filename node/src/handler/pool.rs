//! Containers that belong to nobody yet, and the requests that wait for one. A container leaves the pool by value: there is no way to
//! put one back that was claimed.

use super::{
    circuit::Circuit,
    config::Config,
    container::Parts,
    error::AcquireError,
    plan::{Demand, Kind, View},
    slot::Slot,
    status::PoolStatus,
};
use hearth_model::{BuildKey, ResolvedModule, function::NodeVersion};
use parking_lot::Mutex;
use std::{
    cmp::Reverse,
    collections::{HashSet, VecDeque},
    time::Duration,
};
use tokio::{
    sync::{Notify, oneshot},
    time::Instant,
};

/// When the container that is being made for longest is not there after this, requests need not begin to wait.
const STALLED_AFTER: Duration = Duration::from_secs(5);
/// Sets that could not be loaded ahead, and for how long they are not tried again.
const BAD_SETS_MAX: usize = 64;
const BAD_SET_FOR: Duration = Duration::from_secs(600);
/// Builds that are known to be for another Node.js than the default.
const OTHER_BUILDS_MAX: usize = 4_096;

/// A container that waits.
pub(super) struct Pooled {
    pub parts: Parts,
    pub kind: Kind,
}

/// What came of looking into the pool.
pub(super) enum Taken {
    /// Here it is.
    Ready(Box<Pooled>),
    /// One is to be made; it comes over the channel.
    Wait(oneshot::Receiver<Result<Box<Pooled>, AcquireError>>),
}

struct Waiter {
    node: NodeVersion,
    modules: Vec<ResolvedModule>,
    sender: oneshot::Sender<Result<Box<Pooled>, AcquireError>>,
}

struct Creating {
    id: u64,
    kind: Kind,
    since: Instant,
}

/// The pool.
pub(super) struct Pool {
    state: Mutex<State>,
    /// Wakes the one that refills.
    pub wake: Notify,
}

struct State {
    ready: Vec<Pooled>,
    creating: Vec<Creating>,
    next_id: u64,
    waiters: VecDeque<Waiter>,
    demand: Demand,
    circuit: Circuit,
    last_error: Option<String>,
    last_start: Duration,
    last_made: Option<Instant>,
    popular: Vec<Vec<ResolvedModule>>,
    bad_sets: Vec<(Vec<ResolvedModule>, Instant)>,
    other_builds: HashSet<BuildKey>,
    closed: bool,
}

impl State {
    fn view(&self, target: usize) -> View<'_> {
        View {
            target,
            ready: self.ready.iter().map(|p| &p.kind).collect(),
            creating: self.creating.iter().map(|c| &c.kind).collect(),
            waiting: self.waiters.iter().map(|w| w.node).collect(),
            popular: &self.popular,
        }
    }

    /// Containers that ended while they waited.
    fn take_dead(&mut self) -> Vec<Pooled> {
        let (dead, ready) = self.ready.drain(..).partition(|p| p.parts.control.is_closed());
        self.ready = ready;
        dead
    }
}

/// What the one that refills is to do.
#[derive(Debug, Default)]
pub(super) struct Orders {
    /// Make these.
    pub make: Vec<(u64, Kind, Slot)>,
    /// Look again after this, at the latest.
    pub again_in: Option<Duration>,
    /// Whether a slot was missing for a request that waits.
    pub out_of_slots: bool,
}

impl Pool {
    pub(super) fn new(config: &Config, now: Instant) -> Self {
        Self {
            state: Mutex::new(State {
                ready: Vec::new(),
                creating: Vec::new(),
                next_id: 0,
                waiters: VecDeque::new(),
                demand: Demand::new(now),
                circuit: Circuit::new(config.circuit_pause, config.circuit_pause_max),
                last_error: None,
                last_start: Duration::ZERO,
                last_made: None,
                popular: Vec::new(),
                bad_sets: Vec::new(),
                other_builds: HashSet::new(),
                closed: false,
            }),
            wake: Notify::new(),
        }
    }

    /// Takes the container that saves most, or a place among those that wait for one.
    pub(super) fn take(&self, node: NodeVersion, modules: &[ResolvedModule], config: &Config, now: Instant) -> Result<Taken, AcquireError> {
        let mut state = self.state.lock();
        if state.closed {
            return Err(AcquireError::Draining);
        }
        state.demand.note(now);
        if node != NodeVersion::default() && state.other_builds.len() < OTHER_BUILDS_MAX {
            state.other_builds.extend(modules.iter().map(|m| m.build.clone()));
        }
        let fitting = state.ready.iter().enumerate().filter(|(_, p)| !p.parts.control.is_closed());
        let fitting = fitting.filter_map(|(at, p)| Some((p.kind.fits(node, modules)?, at)));
        // The oldest among equals.
        let taken = match fitting.max_by_key(|(saved, at)| (*saved, Reverse(*at))) {
            Some((_, at)) => Taken::Ready(Box::new(state.ready.remove(at))),
            None => Taken::Wait(Self::queue(&mut state, node, modules, config, now)?),
        };
        drop(state);
        self.wake.notify_one();
        Ok(taken)
    }

    fn queue(
        state: &mut State,
        node: NodeVersion,
        modules: &[ResolvedModule],
        config: &Config,
        now: Instant,
    ) -> Result<oneshot::Receiver<Result<Box<Pooled>, AcquireError>>, AcquireError> {
        let refuse = |detail: String| Err(AcquireError::NoCapacity { detail });
        state.waiters.retain(|w| !w.sender.is_closed());
        if state.waiters.len() >= config.claims_waiting_max as usize {
            return refuse(format!("{} containers are waited for already", config.claims_waiting_max));
        }
        if state.circuit.is_hopeless() {
            let last = state.last_error.as_deref().unwrap_or("unknown");
            return refuse(format!("containers cannot be made: {last}"));
        }
        if state.creating.iter().any(|c| now.saturating_duration_since(c.since) > STALLED_AFTER)
            && state.last_made.is_none_or(|made| now.saturating_duration_since(made) > STALLED_AFTER)
        {
            return refuse(format!("no container was made for {STALLED_AFTER:?}"));
        }
        let (sender, receiver) = oneshot::channel();
        state.waiters.push_back(Waiter { node, modules: modules.to_vec(), sender });
        Ok(receiver)
    }

    /// A container is ready: the first one that waits and may have it gets it. Returned when the pool is closed.
    pub(super) fn put(&self, id: u64, mut pooled: Box<Pooled>) -> Option<Box<Pooled>> {
        self.wake.notify_one();
        let mut state = self.state.lock();
        state.creating.retain(|c| c.id != id);
        if state.closed {
            return Some(pooled);
        }
        while let Some(at) = state.waiters.iter().position(|w| pooled.kind.fits(w.node, &w.modules).is_some()) {
            let Some(waiter) = state.waiters.remove(at) else { break };
            match waiter.sender.send(Ok(pooled)) {
                Ok(()) => return None,
                // It waits no longer.
                Err(back) => match back {
                    Ok(back) => pooled = back,
                    Err(_) => return None,
                },
            }
        }
        state.ready.push(*pooled);
        None
    }

    /// Decides what to make now. `take_slot` gives a slot while there are any.
    pub(super) fn orders(
        &self,
        config: &Config,
        now: Instant,
        busy: bool,
        memory_short: bool,
        mut take_slot: impl FnMut() -> Option<Slot>,
    ) -> Orders {
        let mut state = self.state.lock();
        let mut orders = Orders::default();
        if state.closed {
            return orders;
        }
        state.waiters.retain(|w| !w.sender.is_closed());
        if let Some(pause) = state.circuit.pause_left(now) {
            orders.again_in = Some(pause);
            return orders;
        }
        let waiting = !state.waiters.is_empty();
        let pace = super::plan::pace(config, waiting, state.circuit.is_cautious(), busy, state.last_start);
        if let Some(rest) = state.last_made.map(|made| (made + pace.pause).saturating_duration_since(now)).filter(|r| !r.is_zero()) {
            orders.again_in = Some(rest);
            return orders;
        }
        // While memory is short containers are made only for requests.
        let target = if memory_short { 0 } else { state.demand.target(now, config) };
        while state.creating.len() < pace.at_once {
            let Some(kind) = state.view(target).next() else { break };
            let Some(slot) = take_slot() else {
                orders.out_of_slots = waiting;
                break;
            };
            let id = state.next_id;
            state.next_id += 1;
            state.creating.push(Creating { id, kind: kind.clone(), since: now });
            orders.make.push((id, kind, slot));
        }
        orders
    }

    /// A container was made; it is put once its modules are loaded, where it is to have any.
    pub(super) fn made(&self, id: u64, now: Instant) {
        let mut state = self.state.lock();
        if let Some(since) = state.creating.iter().find(|c| c.id == id).map(|c| c.since) {
            state.last_start = now.saturating_duration_since(since);
        }
        state.last_made = Some(now);
        state.circuit.succeeded();
        state.last_error = None;
    }

    /// A container could not be made. When that has happened too often, nobody goes on waiting.
    pub(super) fn not_made(&self, id: u64, error: String, now: Instant, jitter: f64) {
        let mut state = self.state.lock();
        state.creating.retain(|c| c.id != id);
        state.circuit.failed(now, jitter);
        let failed = if state.circuit.is_hopeless() { std::mem::take(&mut state.waiters) } else { VecDeque::new() };
        state.last_error = Some(error.clone());
        drop(state);
        for waiter in failed {
            let _ = waiter.sender.send(Err(AcquireError::NoCapacity { detail: error.clone() }));
        }
        self.wake.notify_one();
    }

    /// The set could not be loaded ahead: not again soon.
    pub(super) fn bad_set(&self, id: u64, set: Vec<ResolvedModule>, now: Instant) {
        self.wake.notify_one();
        let mut state = self.state.lock();
        state.creating.retain(|c| c.id != id);
        if state.bad_sets.len() >= BAD_SETS_MAX {
            state.bad_sets.remove(0);
        }
        state.popular.retain(|s| *s != set);
        state.bad_sets.push((set, now));
    }

    /// Tells which sets are in demand. Returns containers to be given up: those that have ended, and at most one too many.
    pub(super) fn refresh(&self, config: &Config, popular: Vec<Vec<ResolvedModule>>, shrink: bool, now: Instant) -> Vec<Pooled> {
        let mut state = self.state.lock();
        state.bad_sets.retain(|(_, at)| now.saturating_duration_since(*at) < BAD_SET_FOR);
        let wanted = |set: &Vec<ResolvedModule>| {
            !set.is_empty() && !state.bad_sets.iter().any(|(bad, _)| bad == set) && !set.iter().any(|m| state.other_builds.contains(&m.build))
        };
        let popular = popular.into_iter().filter(wanted).collect();
        state.popular = popular;
        let mut given_up = state.take_dead();
        let target = state.demand.target(now, config);
        if shrink && let Some(at) = state.view(target).surplus() {
            given_up.push(state.ready.remove(at));
        }
        drop(state);
        self.wake.notify_one();
        given_up
    }

    /// Ends the pool. Returns what is in it; whoever waits is told.
    pub(super) fn close(&self) -> Vec<Pooled> {
        let mut state = self.state.lock();
        state.closed = true;
        let waiters = std::mem::take(&mut state.waiters);
        let ready = std::mem::take(&mut state.ready);
        drop(state);
        for waiter in waiters {
            let _ = waiter.sender.send(Err(AcquireError::Draining));
        }
        ready
    }

    /// How many claims wait.
    pub(super) fn waiting(&self) -> usize {
        self.state.lock().waiters.iter().filter(|w| !w.sender.is_closed()).count()
    }

    pub(super) fn status(&self, config: &Config, now: Instant) -> PoolStatus {
        let state = self.state.lock();
        PoolStatus {
            level: state.ready.len(),
            preloaded: state.ready.iter().filter(|p| matches!(p.kind, Kind::Preloaded(_))).count(),
            creating: state.creating.len(),
            target: state.demand.target(now, config),
            circuit_open: state.circuit.pause_left(now).is_some(),
            last_error: state.last_error.clone(),
        }
    }
}
