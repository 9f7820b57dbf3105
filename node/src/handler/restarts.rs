//! How often containers may end by their own fault and be replaced at once. Each replacement costs this machine a quarter of a second
//! of CPU, which one crashing function would take from all others; the algorithm is the generic cell rate algorithm (GCRA) of ATM's
//! traffic control.

use hearth_model::{ContainerPath, TenantName};
use parking_lot::Mutex;
use std::{
    collections::{HashMap, HashSet},
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

    fn owes(&self, key: &K, now: Instant) -> bool {
        self.until.get(key).is_some_and(|until| *until > now)
    }

    fn wait(&self, key: &K, now: Instant) -> Duration {
        let free = now + self.rate.interval * self.rate.burst;
        self.until.get(key).map_or(Duration::ZERO, |until| until.saturating_duration_since(free))
    }

    /// Until there is room for one more.
    fn wait_for_next(&self, key: &K, now: Instant) -> Duration {
        let Rate { burst, interval } = self.rate;
        self.until.get(key).map_or(Duration::ZERO, |until| (*until + interval).saturating_duration_since(now + interval * burst))
    }
}

/// Whose containers have ended lately.
pub(super) struct Restarts(Mutex<Ends>);

struct Ends {
    containers: Paid<ContainerPath>,
    /// Paid for when a container is replaced, since many may end at once.
    tenants: Paid<TenantName>,
    /// Ended by their own fault, and not asked for since.
    unreplaced: HashSet<ContainerPath>,
}

impl Ends {
    fn tenants_wait(&self, path: &ContainerPath, now: Instant) -> Duration {
        if !self.unreplaced.contains(path) {
            return Duration::ZERO;
        }
        self.tenants.wait_for_next(&path.tenant, now)
    }
}

impl Default for Restarts {
    fn default() -> Self {
        let (containers, tenants) = (Paid::new(OF_CONTAINER), Paid::new(OF_TENANT));
        Self(Mutex::new(Ends { containers, tenants, unreplaced: HashSet::new() }))
    }
}

impl Restarts {
    /// A container has ended by its own fault.
    pub fn note(&self, path: &ContainerPath, now: Instant) {
        let Ends { containers, unreplaced, .. } = &mut *self.0.lock();
        containers.note(path, now);
        if unreplaced.len() >= SWEEP_FROM {
            unreplaced.retain(|path| containers.owes(path, now));
        }
        unreplaced.insert(path.clone());
    }

    /// Whether it has ended lately by its own fault.
    pub fn owes(&self, path: &ContainerPath, now: Instant) -> bool {
        self.0.lock().containers.owes(path, now)
    }

    /// Whether one of the tenant's has.
    pub fn tenant_owes(&self, tenant: &TenantName, now: Instant) -> bool {
        self.0.lock().containers.until.iter().any(|(path, until)| path.tenant == *tenant && *until > now)
    }

    /// How long the next one has to wait.
    pub fn wait(&self, path: &ContainerPath, now: Instant) -> Option<Duration> {
        let ends = self.0.lock();
        let wait = ends.containers.wait(path, now).max(ends.tenants_wait(path, now));
        (!wait.is_zero()).then_some(wait)
    }

    /// The next one is made now.
    ///
    /// # Errors
    /// How long it has to wait, since others of its tenant's are made first.
    pub fn replace(&self, path: &ContainerPath, now: Instant) -> Result<(), Duration> {
        let mut ends = self.0.lock();
        let wait = ends.tenants_wait(path, now);
        if !wait.is_zero() {
            return Err(wait);
        }
        if ends.unreplaced.remove(path) {
            ends.tenants.note(&path.tenant, now);
        }
        Ok(())
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
        for path in &paths {
            restarts.note(path, start);
        }
        // All at once, as often as they like.
        let replaced = |now| {
            paths.iter().filter(|path| restarts.0.lock().unreplaced.contains(path) && restarts.replace(path, now).is_ok()).count()
        };
        assert_eq!((replaced(start), replaced(start)), (OF_TENANT.burst as usize, 0));
        let later = |n| start + n * OF_TENANT.interval;
        assert_eq!(
            (replaced(later(1)), replaced(later(1)), replaced(later(10))),
            (1, 0, 9),
            "though most have paid for themselves"
        );
        let (waits, never_ended) = (restarts.wait(&paths[99], later(10)), "bad/other".parse().unwrap());
        assert_eq!(waits, Some(OF_TENANT.interval));
        assert_eq!((restarts.wait(&never_ended, later(10)), restarts.replace(&never_ended, later(10))), (None, Ok(())));
        let good = "good/main".parse().unwrap();
        restarts.note(&good, start);
        assert_eq!(restarts.replace(&good, start), Ok(()), "another tenant's");
    }

    #[test]
    fn who_is_forgiven_is_forgotten() {
        let (restarts, start) = (Restarts::default(), Instant::now());
        for n in 0..SWEEP_FROM {
            restarts.note(&format!("t{n}/main").parse().unwrap(), start);
        }
        restarts.note(&"late/main".parse().unwrap(), start + INTERVAL);
        let ends = restarts.0.lock();
        assert_eq!((ends.containers.until.len(), ends.unreplaced.len()), (1, 1));
    }
}
