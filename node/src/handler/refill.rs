//! The task that keeps the pool filled.

use super::shared::Shared;
use std::{
    sync::{Arc, atomic::Ordering::Relaxed},
    time::Duration,
};
use tokio::time::{Instant, sleep};

/// How often it looks when nothing wakes it.
const LOOK_EVERY: Duration = Duration::from_secs(1);
/// How often the load of requests is reckoned, at most.
const RECKON_EVERY: Duration = Duration::from_millis(200);
/// How often one container too many is given up.
const SHRINK_EVERY: Duration = Duration::from_secs(10);

impl Shared {
    /// Keeps the pool filled and slots clean until the handler stops.
    pub(super) async fn refill(self: Arc<Self>) {
        let (mut refreshed, mut shrunk) = (Instant::now() - LOOK_EVERY, Instant::now());
        let mut load = Load::new();
        loop {
            let now = Instant::now();
            self.clean_up(now).await;
            if now.duration_since(refreshed) >= LOOK_EVERY {
                refreshed = now;
                let shrink = now.duration_since(shrunk) >= SHRINK_EVERY;
                if shrink {
                    shrunk = now;
                }
                self.refresh_pool(shrink, now);
            }
            let orders = self.pool.orders(&self.config, now, load.is_high(&self, now), self.memory_short(), || self.slots.take());
            for (id, kind, slot) in orders.make {
                self.spawn(Arc::clone(&self).fill(id, kind, slot));
            }
            if orders.out_of_slots {
                // Those that are being taken away already will do for some.
                let wanted = self.pool.waiting().saturating_sub(self.removing.load(Relaxed));
                self.end_least_missed(now, wanted, |shared| shared.slots.free() == 0);
            }
            let again_in = orders.again_in.unwrap_or(LOOK_EVERY).min(LOOK_EVERY);
            tokio::select! {
                () = self.pool.wake.notified() => {}
                () = sleep(again_in) => {}
                () = self.stop.cancelled() => return,
            }
        }
    }

    fn refresh_pool(&self, shrink: bool, now: Instant) {
        let most = if self.config.preload { self.config.pool_max as usize / 2 } else { 0 };
        let popular = if most > 0 { self.modules.popular(most) } else { Vec::new() };
        for pooled in self.pool.refresh(&self.config, popular, shrink, now) {
            self.discard(pooled.parts);
        }
    }
}

/// How busy containers are: requests per second since it was last reckoned, and requests that run.
struct Load {
    total: u64,
    at: Instant,
    per_s: f64,
    running: u32,
}

impl Load {
    fn new() -> Self {
        Self { total: 0, at: Instant::now(), per_s: 0.0, running: 0 }
    }

    /// Whether making containers would be felt: many requests come, or more run than there are processors.
    fn is_high(&mut self, shared: &Shared, now: Instant) -> bool {
        let passed = now.saturating_duration_since(self.at);
        if passed >= RECKON_EVERY {
            let containers = shared.containers();
            let total = containers.iter().map(|c| c.leases.load(Relaxed)).sum::<u64>();
            // Containers that ended take their requests with them; then this sees too few.
            self.per_s = total.saturating_sub(self.total) as f64 / passed.as_secs_f64();
            self.running = containers.iter().map(|c| c.gate.requests()).sum();
            (self.total, self.at) = (total, now);
        }
        let processors = std::thread::available_parallelism().map_or(1, |n| u32::try_from(n.get()).unwrap_or(u32::MAX));
        self.per_s > f64::from(shared.config.refill_busy_rate) || self.running > processors
    }
}
