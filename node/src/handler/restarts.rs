//! How often the containers of one tenant may end by their own fault and be replaced at once. Each replacement costs this machine a
//! quarter of a second of CPU, which one crashing function would take from all others; the algorithm is the generic cell rate
//! algorithm (GCRA) of ATM's traffic control.

use hearth_model::ContainerPath;
use parking_lot::Mutex;
use std::{
    collections::HashMap,
    time::{Duration, Instant},
};

/// Containers that are remembered before those that are forgiven are looked for.
const SWEEP_FROM: usize = 1_024;

/// Until when the ends of each container are paid off.
pub(super) struct Restarts {
    burst: u32,
    interval: Duration,
    paid: Mutex<HashMap<ContainerPath, Instant>>,
}

impl Restarts {
    /// `burst` ends in a row are replaced at once, after them one each `interval`.
    pub fn new(burst: u32, interval: Duration) -> Self {
        Self { burst, interval, paid: Mutex::default() }
    }

    /// A container has ended by its own fault.
    pub fn note(&self, path: &ContainerPath, now: Instant) {
        let mut paid = self.paid.lock();
        if paid.len() >= SWEEP_FROM {
            paid.retain(|_, until| *until > now);
        }
        let until = paid.entry(path.clone()).or_insert(now);
        // Many ends at once do not close it for longer than one interval.
        let latest = now + self.interval * (self.burst + 1);
        *until = ((*until).max(now) + self.interval).min(latest);
    }

    /// How long the next one has to wait.
    pub fn wait(&self, path: &ContainerPath, now: Instant) -> Option<Duration> {
        let until = *self.paid.lock().get(path)?;
        let wait = until.saturating_duration_since(now + self.interval * self.burst);
        (!wait.is_zero()).then_some(wait)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_burst_is_replaced_at_once_and_then_one_each_interval() {
        let (second, start) = (Duration::from_secs(1), Instant::now());
        let restarts = Restarts::new(2, second);
        let [bad, good]: [ContainerPath; 2] = ["bad/main", "good/main"].map(|p| p.parse().unwrap());
        assert_eq!(restarts.wait(&bad, start), None);
        for _ in 0..2 {
            restarts.note(&bad, start);
            assert_eq!(restarts.wait(&bad, start), None);
        }
        for _ in 0..100 {
            restarts.note(&bad, start);
        }
        assert_eq!(restarts.wait(&bad, start), Some(second));
        assert_eq!(restarts.wait(&good, start), None, "another tenant's are none of its business");
        assert_eq!(restarts.wait(&bad, start + second), None);
        restarts.note(&bad, start + second);
        assert_eq!(restarts.wait(&bad, start + second), Some(second));
        assert_eq!(restarts.wait(&bad, start + 4 * second), None);
    }

    #[test]
    fn who_is_forgiven_is_forgotten() {
        let (restarts, start) = (Restarts::new(2, Duration::from_secs(1)), Instant::now());
        for n in 0..SWEEP_FROM {
            restarts.note(&format!("t{n}/main").parse().unwrap(), start);
        }
        restarts.note(&"late/main".parse().unwrap(), start + Duration::from_secs(2));
        assert_eq!(restarts.paid.lock().len(), 1);
    }
}
