//! How often containers may end by their own fault and be replaced at once. Each replacement costs this machine a quarter of a second
//! of CPU, which one crashing function would take from all others; the algorithm is the generic cell rate algorithm (GCRA) of ATM's
//! traffic control.

use hearth_model::{ContainerPath, TenantName};
use parking_lot::Mutex;
use std::{
    collections::HashMap,
    hash::Hash,
    time::{Duration, Instant},
};

/// How many are replaced at once, and how often from then on.
#[derive(Clone, Copy)]
struct Rate {
    burst: u32,
    interval: Duration,
}

/// Of one container; its interval is what `retry-after` of `function-crash-loop` says.
const OF_CONTAINER: Rate = Rate { burst: 2, interval: Duration::from_secs(5) };
/// Of all of a tenant together.
const OF_TENANT: Rate = Rate { burst: 12, interval: Duration::from_secs(1) };
/// Entries before those that are forgiven are looked for.
const SWEEP_FROM: usize = 1_024;

/// Until when the ends of each are paid off.
struct Paid<K> {
    rate: Rate,
    until: HashMap<K, Instant>,
}

impl<K: Hash + Eq + Clone> Paid<K> {
    fn new(rate: Rate) -> Self {
        Self { rate, until: HashMap::new() }
    }

    fn note(&mut self, key: &K, now: Instant) {
        if self.until.len() >= SWEEP_FROM {
            self.until.retain(|_, until| *until > now);
        }
        let Rate { burst, interval } = self.rate;
        let until = self.until.entry(key.clone()).or_insert(now);
        // Many ends at once do not close it for longer than one interval.
        *until = ((*until).max(now) + interval).min(now + interval * (burst + 1));
    }

    fn wait(&self, key: &K, now: Instant) -> Duration {
        let free = now + self.rate.interval * self.rate.burst;
        self.until.get(key).map_or(Duration::ZERO, |until| until.saturating_duration_since(free))
    }
}

/// Whose containers have ended lately.
pub(super) struct Restarts(Mutex<Ends>);

struct Ends {
    containers: Paid<ContainerPath>,
    tenants: Paid<TenantName>,
}

impl Default for Restarts {
    fn default() -> Self {
        Self(Mutex::new(Ends { containers: Paid::new(OF_CONTAINER), tenants: Paid::new(OF_TENANT) }))
    }
}

impl Restarts {
    /// A container has ended by its own fault.
    pub fn note(&self, path: &ContainerPath, now: Instant) {
        let mut ends = self.0.lock();
        ends.containers.note(path, now);
        ends.tenants.note(&path.tenant, now);
    }

    /// Whether it has ended lately by its own fault.
    pub fn owes(&self, path: &ContainerPath, now: Instant) -> bool {
        self.0.lock().containers.until.get(path).is_some_and(|until| *until > now)
    }

    /// Whether one of the tenant's has.
    pub fn tenant_owes(&self, tenant: &TenantName, now: Instant) -> bool {
        self.0.lock().containers.until.iter().any(|(path, until)| path.tenant == *tenant && *until > now)
    }

    /// How long the next one has to wait.
    pub fn wait(&self, path: &ContainerPath, now: Instant) -> Option<Duration> {
        let ends = self.0.lock();
        let wait = ends.containers.wait(path, now).max(ends.tenants.wait(&path.tenant, now));
        (!wait.is_zero()).then_some(wait)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const INTERVAL: Duration = OF_CONTAINER.interval;

    #[test]
    fn a_burst_is_replaced_at_once_and_then_one_each_interval() {
        let (restarts, start) = (Restarts::default(), Instant::now());
        let [bad, good]: [ContainerPath; 2] = ["bad/main", "good/main"].map(|p| p.parse().unwrap());
        assert_eq!(restarts.wait(&bad, start), None);
        for _ in 0..OF_CONTAINER.burst {
            restarts.note(&bad, start);
            assert_eq!(restarts.wait(&bad, start), None);
        }
        for _ in 0..100 {
            restarts.note(&bad, start);
        }
        assert_eq!(restarts.wait(&bad, start), Some(INTERVAL));
        assert_eq!(restarts.wait(&good, start), None, "another's are none of its business");
        assert_eq!(restarts.wait(&bad, start + INTERVAL), None);
        restarts.note(&bad, start + INTERVAL);
        assert_eq!(restarts.wait(&bad, start + INTERVAL), Some(INTERVAL));
        assert_eq!(restarts.wait(&bad, start + 2 * INTERVAL), None);
        assert!(restarts.owes(&bad, start + 2 * INTERVAL) && restarts.tenant_owes(&bad.tenant, start + 2 * INTERVAL));
        assert!(!restarts.owes(&good, start) && !restarts.tenant_owes(&good.tenant, start));
        let later = start + INTERVAL * (OF_CONTAINER.burst + 3);
        assert!(!restarts.owes(&bad, later) && !restarts.tenant_owes(&bad.tenant, later), "it has paid");
    }

    #[test]
    fn a_tenants_containers_have_a_rate_together() {
        let (restarts, start) = (Restarts::default(), Instant::now());
        let paths: Vec<ContainerPath> = (0..100).map(|n| format!("bad/c{n}").parse().unwrap()).collect();
        let ended = paths.iter().take_while(|path| {
            restarts.note(path, start);
            restarts.wait(path, start).is_none()
        });
        assert_eq!(ended.count(), OF_TENANT.burst as usize);
        assert_eq!(restarts.wait(&paths[99], start), Some(OF_TENANT.interval), "though it has not ended yet");
        assert_eq!(restarts.wait(&paths[99], start + OF_TENANT.interval), None);
        assert_eq!(restarts.wait(&"good/main".parse().unwrap(), start), None);
    }

    #[test]
    fn who_is_forgiven_is_forgotten() {
        let (restarts, start) = (Restarts::default(), Instant::now());
        for n in 0..SWEEP_FROM {
            restarts.note(&format!("t{n}/main").parse().unwrap(), start);
        }
        restarts.note(&"late/main".parse().unwrap(), start + INTERVAL);
        let ends = restarts.0.lock();
        assert_eq!((ends.containers.until.len(), ends.tenants.until.len()), (1, 1));
    }
}
