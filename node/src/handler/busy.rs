//! Keeps containers that keep a CPU busy to the CPUs that are set aside for background work, so that those who answer quickly find one
//! free. Without it a request waits for the scheduler: beside an endless loop its p99 is three times what it is alone.

use super::{
    Handler,
    apart::Apart,
    container::{LiveContainer, State},
    pool,
};
use hearth_model::TenantName;
use hearth_sandbox::{Cpus, SandboxError, Usage};
use std::{
    collections::HashMap,
    sync::Arc,
    time::{Duration, Instant},
};

/// How often those are looked at that have work or had it lately.
const LOOK_EVERY: Duration = Duration::from_millis(250);
/// Each so manyth look is at all of them, since a function may work when nobody has called it.
const LOOKS_AT_ALL: u32 = 8;
/// Idle time up to which a container is among those that have had work lately.
const AWAKE_MS: u64 = 1_000;
/// CPU time against wall time from which a container is busy.
const BUSY_FROM: f64 = 0.5;
/// The same of a tenant's containers together, from which those of them are busy that are not calm.
const TENANT_BUSY_FROM: f64 = 1.0;
/// The same below which one is calm; of what it could have beside other busy ones, where it is kept to the same CPUs.
const CALM_BELOW: f64 = 0.25;
/// What it could have is not taken for less than this.
const SHARE_MIN: f64 = 0.2;
/// How long it has to stay calm.
const CALM_FOR: Duration = Duration::from_secs(5);
/// How long loading the first function is not held against a container.
const FIRST_LOAD: Duration = Duration::from_secs(1);
/// After a failure, until it is tried again.
const RETRY_AFTER: Duration = Duration::from_secs(15);

pub(super) async fn watch(handler: Arc<Handler>) {
    let Some(split) = &handler.deps.cpu_split else { return };
    let mut apart = Apart::new(split, Arc::clone(&handler.requests_apart));
    let mut looks = Looks::default();
    while handler.leaving.run_until_cancelled(tokio::time::sleep(LOOK_EVERY)).await.is_some() {
        looks.look(&handler, split.background.len(), apart.as_mut()).await;
    }
}

/// What was seen of one container.
#[derive(Clone, Copy)]
struct Seen {
    cpu: Duration,
    at: Instant,
    first: Instant,
    /// Of what it has loaded.
    cold_cost_us: u64,
    /// At the last look: what it used was loading.
    loads: bool,
    /// At the last look.
    busy: bool,
    busy_at: Option<Instant>,
    /// Its CPUs could not be set.
    failed_at: Option<Instant>,
}

/// One container at one look.
#[derive(Clone, Copy)]
struct Look<'a> {
    tenant: &'a TenantName,
    /// CPU time against wall time since the last look; what was used to load is not held against it.
    used: f64,
    background: bool,
    was_busy: bool,
}

#[derive(Default)]
struct Looks {
    seen: HashMap<u64, Seen>,
    number: u32,
}

impl Looks {
    async fn look(&mut self, handler: &Handler, cpus: usize, apart: Option<&mut Apart>) {
        self.number = self.number.wrapping_add(1);
        let (at_all, now_ms) = (self.number.is_multiple_of(LOOKS_AT_ALL), handler.now_ms());
        let (containers, others): (Vec<_>, Vec<_>) =
            handler.containers.all().into_iter().partition(|container| container.state() == State::Running);
        let mut used = Vec::with_capacity(containers.len());
        let mut awake = Vec::with_capacity(containers.len());
        // What those use who answer quickly, loading included.
        let mut served = 0.0;
        let mut seen: HashMap<u64, Seen> = HashMap::with_capacity(containers.len());
        // What was seen of them serves the look after their thaw.
        let frozen = others.iter().filter(|container| container.state() == State::Frozen);
        seen.extend(frozen.filter_map(|container| {
            Some((container.id(), Seen { busy: false, loads: false, ..*self.seen.get(&container.id())? }))
        }));
        for container in &containers {
            let is_awake = container.in_flight() > 0 || container.idle_ms(now_ms) < AWAKE_MS;
            awake.push(is_awake);
            let before = self.seen.get(&container.id());
            if !(at_all || is_awake || container.is_background()) {
                // Not busy, as far as is known; what was seen of it serves the next look at all.
                seen.extend(before.map(|before| (container.id(), Seen { busy: false, ..*before })));
                used.push(0.0);
                continue;
            }
            let Ok(Usage { cpu, .. }) = handler.deps.sandbox.usage(&container.running.id).await else {
                seen.extend(before.map(|before| (container.id(), *before)));
                used.push(0.0);
                continue;
            };
            let now = Instant::now();
            let fresh =
                Seen { cpu, at: now, first: now, cold_cost_us: 0, loads: false, busy: false, busy_at: None, failed_at: None };
            let before = before.copied().unwrap_or(fresh);
            // Loading is work that nobody can do for it, and it is over soon; one that loads again and again works.
            let cold_cost_us = container.cold_cost_us();
            let loads =
                cold_cost_us != before.cold_cost_us && !before.loads || cold_cost_us == 0 && before.first.elapsed() < FIRST_LOAD;
            let since = now.duration_since(before.at).as_secs_f64().max(0.001);
            let all_used = if before.first == now {
                // What its loads took at most, since the rest is older.
                (cold_cost_us as f64 / 1e6 / LOOK_EVERY.as_secs_f64()).min(f64::from(handler.config.cpu_millis) / 1e3)
            } else {
                cpu.saturating_sub(before.cpu).as_secs_f64() / since
            };
            if !container.is_background() {
                served += all_used;
            }
            used.push(if loads || before.first == now { 0.0 } else { all_used });
            seen.insert(container.id(), Seen { cpu, at: now, cold_cost_us, loads, ..before });
        }
        let looks: Vec<_> = containers
            .iter()
            .zip(used)
            .map(|(container, used)| Look {
                tenant: &container.path().tenant,
                used,
                background: container.is_background(),
                was_busy: seen.get(&container.id()).is_some_and(|seen| seen.busy),
            })
            .collect();
        let busy = busy(&looks, cpus);
        let all_busy = !busy.is_empty() && busy.iter().all(|busy| *busy);
        if let Some(apart) = apart {
            apart.look(served, !all_busy).await;
        }
        for ((container, busy), awake) in containers.iter().zip(busy).zip(awake) {
            let Some(seen) = seen.get_mut(&container.id()) else { continue };
            seen.busy = busy;
            if busy {
                seen.busy_at = Some(seen.at);
            }
            let lately = seen.busy_at.unwrap_or(seen.first).elapsed() < CALM_FOR;
            let now = container.cpus();
            let standing = Standing { now, busy, lately_busy: lately, all_busy, awake };
            let wanted = standing.wanted(handler.cpus_for_requests());
            if wanted != now && seen.failed_at.is_none_or(|at| at.elapsed() >= RETRY_AFTER) {
                seen.failed_at = place(handler, container, wanted).await.err().map(|Failed| Instant::now());
            }
        }
        self.seen = seen;
    }
}

/// Which of them keep a CPU busy, where so many are set aside for those who do.
fn busy(looks: &[Look<'_>], cpus: usize) -> Vec<bool> {
    let kept = looks.iter().filter(|look| look.background && look.was_busy).count();
    let share = (cpus as f64 / kept.max(1) as f64).clamp(SHARE_MIN, 1.0);
    let mut tenants: HashMap<&TenantName, f64> = HashMap::new();
    for look in looks {
        *tenants.entry(look.tenant).or_default() += look.used;
    }
    let is_busy = |look: &Look<'_>| match look.background {
        true => look.used >= CALM_BELOW * share,
        false => look.used >= BUSY_FROM || look.used >= CALM_BELOW && tenants[look.tenant] >= TENANT_BUSY_FROM,
    };
    looks.iter().map(is_busy).collect()
}

/// What decides on which CPUs a container belongs.
struct Standing {
    /// Where it is.
    now: Cpus,
    busy: bool,
    lately_busy: bool,
    /// So are all.
    all_busy: bool,
    awake: bool,
}

impl Standing {
    fn wanted(&self, for_requests: Cpus) -> Cpus {
        if self.all_busy {
            // Nobody is slowed who is not busy, too.
            Cpus::Any
        } else if self.busy || self.now == Cpus::Background && self.lately_busy {
            Cpus::Background
        } else if for_requests == Cpus::Foreground && !self.awake && self.now == Cpus::Any {
            // It disturbs nobody, and nobody it; the look after its next request is soon enough.
            Cpus::Any
        } else {
            for_requests
        }
    }
}

/// A container's CPUs could not be set; it has been said why.
struct Failed;

async fn place(handler: &Handler, container: &LiveContainer, cpus: Cpus) -> Result<(), Failed> {
    let limits = pool::limits(&handler.config, container.settings.memory_mb, pool::CLAIMED_CPU_SHARES, cpus);
    match handler.deps.sandbox.resize(&container.running.id, &limits).await {
        Ok(()) => container.set_cpus(cpus),
        // It is ending.
        Err(SandboxError::NotFound { .. }) => {}
        Err(error) => {
            tracing::warn!(container = %container.path(), %error, "a container's CPUs could not be set; trying again in {RETRY_AFTER:?}");
            return Err(Failed);
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn seen(looks: &[(&str, f64, bool, bool)], cpus: usize) -> Vec<bool> {
        let tenants: Vec<TenantName> = looks.iter().map(|(tenant, ..)| tenant.parse().unwrap()).collect();
        let look = |(tenant, (_, used, background, was_busy)): (_, &(&str, f64, bool, bool))| Look {
            tenant,
            used: *used,
            background: *background,
            was_busy: *was_busy,
        };
        busy(&tenants.iter().zip(looks).map(look).collect::<Vec<_>>(), cpus)
    }

    #[test]
    fn a_container_or_a_tenant_is_busy() {
        assert_eq!(seen(&[("a", 0.49, false, false), ("b", 0.5, false, false)], 1), [false, true]);
        let spread = [("a", 0.45, false, false), ("a", 0.45, false, false), ("a", 0.2, false, false), ("b", 0.45, false, false)];
        assert_eq!(seen(&spread, 1), [true, true, false, false], "what one tenant uses in several containers");
    }

    #[test]
    fn who_shares_a_cpu_is_calm_by_its_share_of_it() {
        assert_eq!(seen(&[("a", 0.3, true, true), ("b", 0.2, true, true)], 2), [true, false]);
        // Four loops on one CPU have a quarter each.
        let four = [("a", 0.25, true, true), ("b", 0.25, true, true), ("c", 0.25, true, true), ("d", 0.25, true, true)];
        assert_eq!(seen(&four, 1), [true; 4]);
        // Others that are kept there and calm do not make a little use busy.
        let mut calm = vec![("a", 0.06, true, false); 20];
        assert_eq!(seen(&calm, 1), [false; 20]);
        calm.extend(vec![("b", 0.01, true, true); 50]);
        assert!(!seen(&[calm, vec![("c", 0.04, true, true)]].concat(), 1)[70], "many loops do not hold who is calm");
    }

    #[test]
    fn who_is_busy_has_the_background_cpus_and_others_what_requests_have() {
        let at = |now, busy| Standing { now, busy, lately_busy: busy, all_busy: false, awake: true };
        for requests in [Cpus::Any, Cpus::Foreground] {
            for now in [Cpus::Any, Cpus::Foreground, Cpus::Background] {
                assert_eq!(at(now, true).wanted(requests), Cpus::Background);
                assert_eq!(at(now, false).wanted(requests), requests);
                assert_eq!(Standing { all_busy: true, ..at(now, true) }.wanted(requests), Cpus::Any);
            }
            let calm = Standing { lately_busy: true, ..at(Cpus::Background, false) };
            assert_eq!(calm.wanted(requests), Cpus::Background, "for a while");
        }
        let asleep = |now| Standing { awake: false, ..at(now, false) }.wanted(Cpus::Foreground);
        assert_eq!(
            (asleep(Cpus::Any), asleep(Cpus::Foreground), asleep(Cpus::Background)),
            (Cpus::Any, Cpus::Foreground, Cpus::Foreground)
        );
    }
}
