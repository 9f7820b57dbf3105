//! Ticking tasks for all containers: one freezes the idle, destroys those idle for long, makes room when memory is short, and lets
//! runtimes forget versions that were replaced; the other has the idle give back memory.

use super::{
    Handler,
    container::{LiveContainer, State},
};
use hearth_model::protocol::ToRuntime;
use std::{
    fs,
    sync::{Arc, atomic::Ordering::Relaxed},
    time::Duration,
};

const TICK: Duration = Duration::from_secs(1);
/// Idle time after which a container gives back memory: a seventh of what an idle one has is what loading left behind.
const TRIM_AFTER: Duration = Duration::from_secs(5);
/// One at a time, since each takes some ten milliseconds of a core, which others want.
const TRIM_EVERY: Duration = Duration::from_millis(200);
/// Memory is looked at every so many ticks: it is one read of a file per container.
const MEMORY_TICKS: u32 = 5;
/// A request cannot be on its way to a replaced version for longer.
const FORGET_AFTER: Duration = Duration::from_secs(30);

pub(super) async fn watch(handler: Arc<Handler>) {
    let mut ticks = 0_u32;
    let limit = handler.memory_max_bytes();
    loop {
        tokio::select! {
            () = handler.leaving.cancelled() => return,
            () = tokio::time::sleep(TICK) => {}
        }
        let containers = handler.containers.all();
        let now_ms = handler.now_ms();
        for container in &containers {
            for (function, version) in container.take_retired(FORGET_AFTER) {
                container.control.tell(&ToRuntime::Unload { function, version });
            }
            let idle = Duration::from_millis(container.idle_ms(now_ms));
            if idle >= handler.config.destroy_after {
                destroy_idle(&handler, container, "idle");
            } else if idle >= handler.config.freeze_after && container.state() == State::Running {
                freeze(&handler, container).await;
            }
        }
        ticks += 1;
        if ticks.is_multiple_of(MEMORY_TICKS) {
            make_room(&handler, containers, limit).await;
        }
    }
}

/// Has idle containers give back memory, one after the other.
pub(super) async fn trim(handler: Arc<Handler>) {
    loop {
        tokio::select! {
            () = handler.leaving.cancelled() => return,
            () = tokio::time::sleep(TRIM_EVERY) => {}
        }
        let now_ms = handler.now_ms();
        let is_idle = |container: &Arc<LiveContainer>| {
            container.state() == State::Running && Duration::from_millis(container.idle_ms(now_ms)) >= TRIM_AFTER
        };
        let _ = handler.containers.all().iter().filter(|container| is_idle(container)).find(|container| container.trim());
    }
}

async fn freeze(handler: &Arc<Handler>, container: &Arc<LiveContainer>) {
    let _one = container.transition.lock().await;
    if !container.change(State::Running, State::Frozen) {
        return;
    }
    // A request may have come between the look and the change: it has counted itself, so it is seen here.
    if container.in_flight() > 0 {
        container.change(State::Frozen, State::Running);
        return;
    }
    match handler.deps.sandbox.freeze(&container.running.id).await {
        Ok(()) => {
            handler.counters.freezes.fetch_add(1, Relaxed);
        }
        Err(error) => {
            tracing::warn!(container = %container.path(), %error, "an idle container could not be frozen");
            container.change(State::Frozen, State::Running);
        }
    }
}

/// Destroys a container unless a request has come meanwhile.
fn destroy_idle(handler: &Arc<Handler>, container: &Arc<LiveContainer>, reason: &'static str) -> bool {
    let from = container.state();
    if !container.change(from, State::Leaving) {
        return false;
    }
    handler.containers.remove(container);
    handler.counters.idle_destroyed.fetch_add(1, Relaxed);
    // A request that has counted itself since sees that the container is leaving, gives its place back, and finds another.
    handler.kill(container, reason);
    true
}

/// Destroys idle containers while all together use more than they may: oldest first among those of equal cost, where the cost of
/// bringing one back is halved for every minute that nobody needed it.
async fn make_room(handler: &Arc<Handler>, containers: Vec<Arc<LiveContainer>>, limit: u64) {
    let mut used = 0_u64;
    let mut sized = Vec::with_capacity(containers.len());
    for container in containers {
        let bytes = handler.deps.sandbox.usage(&container.running.id).await.map_or(0, |u| u.memory_bytes);
        used += bytes;
        sized.push((container, bytes));
    }
    handler.counters.memory_bytes.store(used, Relaxed);
    if used <= limit {
        return;
    }
    let now_ms = handler.now_ms();
    sized.retain(|(c, _)| c.in_flight() == 0);
    sized.sort_by(|(a, _), (b, _)| {
        worth(a.cold_cost_us(), a.idle_ms(now_ms)).total_cmp(&worth(b.cold_cost_us(), b.idle_ms(now_ms)))
    });
    for (container, bytes) in sized {
        if used <= limit {
            return;
        }
        if destroy_idle(handler, &container, "memory is short") {
            handler.counters.memory_destroyed.fetch_add(1, Relaxed);
            used -= bytes;
        }
    }
}

fn worth(cold_cost_us: u64, idle_ms: u64) -> f64 {
    (cold_cost_us as f64 + 1_000.0) * 0.5_f64.powf(idle_ms as f64 / 60_000.0)
}

pub(super) fn machine_memory() -> u64 {
    let text = fs::read_to_string("/proc/meminfo").unwrap_or_default();
    let kib =
        text.lines().find_map(|l| l.strip_prefix("MemTotal:")).and_then(|l| l.trim().trim_end_matches(" kB").parse::<u64>().ok());
    // Without the figure a small machine is assumed, since too early a destruction only costs a cold start.
    kib.unwrap_or(2 * 1024 * 1024) * 1024
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_oldest_and_cheapest_go_first() {
        assert!(worth(1_000, 60_000) < worth(1_000, 0), "older first");
        assert!(worth(1_000, 1_000) < worth(500_000, 1_000), "cheaper first");
        assert!(worth(500_000, 3_600_000) < worth(1_000, 0), "age wins in the end");
        assert!(machine_memory() > 100 * 1024 * 1024);
    }
}
