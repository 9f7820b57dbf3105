//! How often a container may end by its own fault and be replaced at once. Each replacement costs this machine a quarter of a second
//! of CPU, which one crashing function would take from all others; the algorithm is the generic cell rate algorithm (GCRA) of ATM's
//! traffic control.

use hearth_model::{ContainerPath, TenantName};
use parking_lot::Mutex;
use std::{
    collections::HashMap,
    time::{Duration, Instant},
};

/// Ends in a row after which the next container is made at once all the same.
const BURST: u32 = 5;
/// Time between two replacements from then on; what `retry-after` says.
const INTERVAL: Duration = Duration::from_secs(3);
/// Containers that are remembered before those that are forgiven are looked for.
const SWEEP_FROM: usize = 1_024;

/// Until when the ends of each container are paid off.
#[derive(Default)]
pub(super) struct Restarts {
    paid: Mutex<HashMap<ContainerPath, Instant>>,
}

impl Restarts {
    /// A container has ended by its own fault.
    pub fn note(&self, path: &ContainerPath, now: Instant) {
        let mut paid = self.paid.lock();
        if paid.len() >= SWEEP_FROM {
            paid.retain(|_, until| *until > now);
        }
        let until = paid.entry(path.clone()).or_insert(now);
        // Many ends at once do not close it for longer than one interval.
        let latest = now + INTERVAL * (BURST + 1);
        *until = ((*until).max(now) + INTERVAL).min(latest);
    }

    /// Whether one of the tenant's has ended lately by its own fault.
    pub fn owes(&self, tenant: &TenantName, now: Instant) -> bool {
        self.paid.lock().iter().any(|(path, until)| path.tenant == *tenant && *until > now)
    }

    /// How long the next one has to wait.
    pub fn wait(&self, path: &ContainerPath, now: Instant) -> Option<Duration> {
        let until = *self.paid.lock().get(path)?;
        let wait = until.saturating_duration_since(now + INTERVAL * BURST);
        (!wait.is_zero()).then_some(wait)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_burst_is_replaced_at_once_and_then_one_each_interval() {
        let (restarts, start) = (Restarts::default(), Instant::now());
        let [bad, good]: [ContainerPath; 2] = ["bad/main", "good/main"].map(|p| p.parse().unwrap());
        assert_eq!(restarts.wait(&bad, start), None);
        for _ in 0..BURST {
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
        assert!(restarts.owes(&bad.tenant, start + 2 * INTERVAL) && !restarts.owes(&good.tenant, start));
        assert!(!restarts.owes(&bad.tenant, start + INTERVAL * (BURST + 3)), "it has paid");
    }

    #[test]
    fn who_is_forgiven_is_forgotten() {
        let (restarts, start) = (Restarts::default(), Instant::now());
        for n in 0..SWEEP_FROM {
            restarts.note(&format!("t{n}/main").parse().unwrap(), start);
        }
        restarts.note(&"late/main".parse().unwrap(), start + INTERVAL);
        assert_eq!(restarts.paid.lock().len(), 1);
    }
}
