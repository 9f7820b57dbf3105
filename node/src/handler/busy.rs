//! Keeps containers that keep a CPU busy to the CPUs that are set aside for background work, so that those who answer quickly find one
//! free. Without it a request waits for the scheduler: beside an endless loop its p99 is three times what it is alone.

use super::{
    Handler,
    container::{LiveContainer, State},
    pool,
};
use hearth_sandbox::SandboxError;
use std::{
    collections::HashMap,
    sync::Arc,
    time::{Duration, Instant},
};

/// How often those are looked at that have work or had it lately.
const LOOK_EVERY: Duration = Duration::from_millis(250);
/// Each so manyth look is at all of them, since a function may work when nobody has called it.
const LOOKS_AT_ALL: u32 = 8;
/// CPU time against wall time from which a container is busy.
const BUSY_FROM: f64 = 0.5;
/// The same below which one that was busy is calm, of what it could have had beside the others that are kept to these CPUs.
const CALM_BELOW: f64 = 0.25;
/// Idle time up to which a container is among those that have had work lately.
const AWAKE_MS: u64 = 1_000;
/// How long it has to stay calm.
const CALM_FOR: Duration = Duration::from_secs(5);

pub(super) async fn watch(handler: Arc<Handler>) {
    let cpus = handler.deps.background_cpus;
    if cpus == 0 {
        return;
    }
    let mut looks = Looks::default();
    loop {
        tokio::select! {
            () = handler.leaving.cancelled() => return,
            () = tokio::time::sleep(LOOK_EVERY) => {}
        }
        looks.look(&handler, cpus).await;
    }
}

/// What was seen of one container.
#[derive(Clone, Copy)]
struct Seen {
    cpu: Duration,
    at: Instant,
    busy_at: Instant,
}

#[derive(Default)]
struct Looks {
    seen: HashMap<u64, Seen>,
    number: u32,
}

impl Looks {
    async fn look(&mut self, handler: &Handler, cpus: usize) {
        self.number = self.number.wrapping_add(1);
        let (at_all, now_ms) = (self.number.is_multiple_of(LOOKS_AT_ALL), handler.now_ms());
        let containers: Vec<_> = handler.containers.all().into_iter().filter(|c| c.state() == State::Running).collect();
        let kept = containers.iter().filter(|c| c.is_background()).count();
        let mut seen = HashMap::with_capacity(containers.len());
        let mut busy = Vec::new();
        for container in &containers {
            let awake = container.in_flight() > 0 || container.idle_ms(now_ms) < AWAKE_MS;
            if !(at_all || awake || container.is_background()) {
                // Not busy, as far as is known; what was seen of it serves the next look at all.
                seen.extend(self.seen.get_key_value(&container.id()));
                busy.push((container, false, false));
                continue;
            }
            let Ok(usage) = handler.deps.sandbox.usage(&container.running.id).await else { continue };
            let now = Instant::now();
            let last = self.seen.get(&container.id()).copied().unwrap_or(Seen { cpu: usage.cpu, at: now, busy_at: now });
            let used = usage.cpu.saturating_sub(last.cpu).as_secs_f64() / now.duration_since(last.at).as_secs_f64().max(0.001);
            let is_busy = used >= if container.is_background() { CALM_BELOW * fair_share(cpus, kept) } else { BUSY_FROM };
            let busy_at = if is_busy { now } else { last.busy_at };
            seen.insert(container.id(), Seen { cpu: usage.cpu, at: now, busy_at });
            busy.push((container, is_busy, now.duration_since(busy_at) < CALM_FOR));
        }
        self.seen = seen;
        // With nobody beside them, the busy have the machine.
        let alone = busy.iter().all(|(_, is_busy, _)| *is_busy);
        for (container, is_busy, lately) in busy {
            let wanted = !alone && (is_busy || (container.is_background() && lately));
            if wanted != container.is_background() {
                place(handler, container, wanted).await;
            }
        }
    }
}

/// CPU time against wall time that each of `kept` containers can have on so many CPUs.
fn fair_share(cpus: usize, kept: usize) -> f64 {
    (cpus as f64 / kept.max(1) as f64).min(1.0)
}

async fn place(handler: &Handler, container: &LiveContainer, background: bool) {
    let limits = pool::limits(&handler.config, container.settings.memory_mb, pool::CLAIMED_CPU_SHARES, background);
    match handler.deps.sandbox.resize(&container.running.id, &limits).await {
        Ok(()) => container.set_background(background),
        // It is ending.
        Err(SandboxError::NotFound { .. }) => {}
        Err(error) => tracing::warn!(container = %container.path(), %error, "a container's CPUs could not be set"),
    }
}
