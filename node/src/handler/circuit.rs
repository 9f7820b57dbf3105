//! When to try again what has failed: pauses that double, with jitter, one attempt at a time until one works. It reads no clock.

use std::time::Duration;
use tokio::time::Instant;

/// From so many failures in a row on, waiting for the next attempt is pointless.
const HOPELESS_FROM: u32 = 2;

/// Pauses between attempts.
#[derive(Debug)]
pub(super) struct Circuit {
    pause: Duration,
    pause_max: Duration,
    failures: u32,
    open_until: Option<Instant>,
}

impl Circuit {
    /// Closed: attempts are free.
    pub(super) fn new(pause: Duration, pause_max: Duration) -> Self {
        Self { pause, pause_max, failures: 0, open_until: None }
    }

    /// How long no attempt is to be made.
    pub(super) fn pause_left(&self, now: Instant) -> Option<Duration> {
        self.open_until.map(|until| until.saturating_duration_since(now)).filter(|left| !left.is_zero())
    }

    /// Whether only one attempt at a time is to be made.
    pub(super) fn is_cautious(&self) -> bool {
        self.failures > 0
    }

    /// Whether it has failed so often that nobody should wait for the next attempt.
    pub(super) fn is_hopeless(&self) -> bool {
        self.failures >= HOPELESS_FROM
    }

    /// It worked.
    pub(super) fn succeeded(&mut self) {
        (self.failures, self.open_until) = (0, None);
    }

    /// It failed. `jitter` is between 0 and 1. Failures of attempts that began before the pause did do not prolong it.
    pub(super) fn failed(&mut self, now: Instant, jitter: f64) {
        if self.pause_left(now).is_some() {
            return;
        }
        let pause = self.pause.saturating_mul(1 << self.failures.min(16)).min(self.pause_max);
        self.failures = self.failures.saturating_add(1);
        self.open_until = Some(now + pause.mul_f64(0.5 + jitter.clamp(0.0, 1.0) / 2.0));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const S: Duration = Duration::from_secs(1);

    #[test]
    fn pauses_double_up_to_their_bound_and_end_with_a_success() {
        let mut circuit = Circuit::new(S, 8 * S);
        let mut now = Instant::now();
        assert_eq!(circuit.pause_left(now), None);
        for expected in [1, 2, 4, 8, 8, 8] {
            circuit.failed(now, 1.0);
            assert_eq!(circuit.pause_left(now), Some(expected * S));
            circuit.failed(now, 1.0);
            assert_eq!(circuit.pause_left(now), Some(expected * S), "attempts that began before count once");
            now += expected * S;
            assert_eq!(circuit.pause_left(now), None);
            assert!(circuit.is_cautious());
        }
        assert!(circuit.is_hopeless());
        circuit.succeeded();
        assert!(!circuit.is_cautious() && !circuit.is_hopeless());
    }

    #[test]
    fn one_failure_is_not_hopeless_and_jitter_halves_at_most() {
        let mut circuit = Circuit::new(S, 8 * S);
        let now = Instant::now();
        circuit.failed(now, 0.0);
        assert_eq!((circuit.pause_left(now), circuit.is_hopeless()), (Some(S / 2), false));
    }

    #[test]
    fn an_hour_of_failures_makes_few_attempts() {
        let mut circuit = Circuit::new(S / 2, 30 * S);
        let start = Instant::now();
        let (mut now, mut attempts) = (start, 0);
        while now < start + 3_600 * S {
            match circuit.pause_left(now) {
                Some(left) => now += left,
                None => {
                    attempts += 1;
                    circuit.failed(now, 0.5);
                }
            }
        }
        assert!(attempts < 180, "{attempts}");
    }
}
