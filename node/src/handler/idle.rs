//! Housekeeping: one task looks at all containers once a second. What nobody calls is frozen, later ended, earlier when memory or slots
//! are short. There is no timer per container.

use super::{
    container::{EndReason, LiveContainer},
    lifecycle::{Event, Phase},
    shared::Shared,
    status::add,
};
use futures_util::StreamExt;
use hearth_sandbox::Purpose;
use std::{
    sync::{Arc, atomic::Ordering::Relaxed},
    time::Duration,
};
use tokio::time::{Instant, MissedTickBehavior, interval};

/// How often it looks.
const TICK: Duration = Duration::from_secs(1);
/// Containers whose memory is measured per tick, in turn.
const MEASURED_PER_TICK: usize = 100;
/// Containers that are frozen at once, and per tick.
const FREEZES_AT_ONCE: usize = 4;
const FREEZES_PER_TICK: usize = 256;
/// Containers that are ended per tick for want of memory.
const EVICTIONS_PER_TICK: usize = 32;
/// How often the engine is asked whether it has containers that nobody knows.
const RECONCILE_EVERY: Duration = Duration::from_secs(60);
/// A container that costs less than this to bring back counts as if it cost this.
const COST_FLOOR_MS: f64 = 5.0;

/// A container that may be ended.
#[derive(Debug, Clone, Copy, PartialEq)]
struct Candidate {
    idle: Duration,
    cost_ms: f64,
}

impl Candidate {
    /// How little it would be missed: idle for long, back quickly.
    fn score(&self) -> f64 {
        self.idle.as_secs_f64() / self.cost_ms.max(COST_FLOOR_MS)
    }
}

/// Indexes of candidates, those that would be missed least first.
fn eviction_order(candidates: &[Candidate]) -> Vec<usize> {
    let mut order: Vec<usize> = (0..candidates.len()).collect();
    order.sort_by(|a, b| candidates[*b].score().total_cmp(&candidates[*a].score()));
    order
}

impl Shared {
    /// Looks after containers until the handler stops.
    pub(super) async fn housekeep(self: Arc<Self>) {
        let mut ticks = interval(TICK);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let (mut measured_last, mut reconciled) = (0, Instant::now());
        loop {
            tokio::select! {
                _ = ticks.tick() => {}
                () = self.stop.cancelled() => return,
            }
            let now = Instant::now();
            self.measure(&mut measured_last).await;
            self.tick(now);
            if now.duration_since(reconciled) >= RECONCILE_EVERY {
                reconciled = now;
                self.reconcile().await;
            }
        }
    }

    /// One look at all containers.
    pub(super) fn tick(self: &Arc<Self>, now: Instant) {
        let config = &self.config;
        let mut to_freeze = Vec::new();
        for container in self.containers() {
            self.unload_superseded(&container);
            let idle = container.idle_for(now);
            match container.gate.phase() {
                Phase::Running | Phase::Frozen if idle >= config.destroy_after => {
                    self.end_idle(&container, EndReason::Idle);
                }
                Phase::Running if idle >= config.freeze_after && container.gate.is_idle() => to_freeze.push(container),
                _ => {}
            }
        }
        to_freeze.truncate(FREEZES_PER_TICK);
        if !to_freeze.is_empty() && !self.freezing.swap(true, Relaxed) {
            let shared = Arc::clone(self);
            self.spawn(async move {
                futures_util::stream::iter(to_freeze).for_each_concurrent(FREEZES_AT_ONCE, |c| shared.freeze(c)).await;
                shared.freezing.store(false, Relaxed);
            });
        }
        if self.memory_short() {
            self.end_least_missed(now, EVICTIONS_PER_TICK, |shared| shared.memory_short());
        }
        self.entries.forget_idle(now);
    }

    async fn freeze(self: &Arc<Self>, container: Arc<LiveContainer>) {
        // A request that came meanwhile is in the gate, and then nothing happens here.
        if container.gate.happen(Event::Freeze).is_err() {
            return;
        }
        match self.sandbox.freeze(&container.sandbox_id).await {
            Ok(()) => {
                add(&self.counters.freezes);
                // Fails only when it was retired or has died meanwhile.
                let _ = container.gate.happen(Event::Froze);
            }
            Err(error) => {
                tracing::warn!(container = %container.path(), %error, "a container could not be frozen");
                let _ = container.gate.happen(Event::FreezeFailed);
                // Not again at once.
                container.touch();
            }
        }
        container.changed.notify_waiters();
    }

    /// Ends idle containers, those that would be missed least first, as long as `short` says so.
    pub(super) fn end_least_missed(self: &Arc<Self>, now: Instant, most: usize, short: impl Fn(&Self) -> bool) -> usize {
        let idle: Vec<_> = self.containers().into_iter().filter(|c| c.gate.is_idle()).collect();
        let candidate = |c: &Arc<LiveContainer>| Candidate { idle: c.idle_for(now), cost_ms: f64::from(c.cost_ms()) };
        let candidates: Vec<_> = idle.iter().map(candidate).collect();
        let mut ended = 0;
        for at in eviction_order(&candidates) {
            if ended >= most || !short(self) {
                break;
            }
            if self.end_idle(&idle[at], EndReason::Pressure) {
                ended += 1;
                let memory = idle[at].memory_bytes.load(Relaxed);
                let less = |sum: u64| Some(sum.saturating_sub(memory));
                let _ = self.memory_bytes.fetch_update(Relaxed, Relaxed, less);
            }
        }
        ended
    }

    /// Measures some containers' memory, going round.
    async fn measure(&self, last: &mut u64) {
        let mut containers = self.containers();
        containers.sort_by_key(|c| c.id());
        let from = containers.partition_point(|c| c.id() <= *last);
        containers.rotate_left(from);
        for container in containers.iter().take(MEASURED_PER_TICK) {
            *last = container.id();
            if let Ok(usage) = self.sandbox.usage(&container.sandbox_id).await {
                container.memory_bytes.store(usage.memory_bytes, Relaxed);
            }
        }
        self.memory_bytes.store(containers.iter().map(|c| c.memory_bytes.load(Relaxed)).sum(), Relaxed);
    }

    /// Destroys containers of this node that nobody knows: what a failed call to the engine may have left behind.
    pub(super) async fn reconcile(&self) {
        let Ok(listed) = self.sandbox.list().await else { return };
        for running in listed.into_iter().filter(|r| r.purpose == Purpose::Runtime) {
            // A slot that is taken belongs to whoever took it.
            if self.slots.is_free(running.slot) {
                tracing::warn!(slot = running.slot, sandbox_id = running.id.0, "destroying a container that nobody knows");
                add(&self.counters.orphans);
                let _ = self.sandbox.destroy(&running.id).await;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_oldest_and_cheapest_go_first() {
        let candidate = |idle_s, cost_ms| Candidate { idle: Duration::from_secs(idle_s), cost_ms };
        assert_eq!(eviction_order(&[candidate(10, 5.0), candidate(100, 5.0), candidate(50, 5.0)]), [1, 2, 0]);
        assert_eq!(eviction_order(&[candidate(100, 500.0), candidate(100, 10.0), candidate(100, 50.0)]), [1, 2, 0]);
        assert_eq!(eviction_order(&[candidate(100, 500.0), candidate(10, 5.0)]), [1, 0], "dear to bring back stays longer");
        assert_eq!(eviction_order(&[candidate(10_000, 500.0), candidate(10, 5.0)]), [0, 1], "but not for ever");
        assert_eq!(eviction_order(&[candidate(10, 0.0), candidate(11, 1.0)]), [1, 0], "differences that nobody feels do not count");
        assert!(eviction_order(&[]).is_empty());
    }
}
