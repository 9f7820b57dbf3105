//! A token bucket: so much at once, so much per second. It reads no clock.

use std::time::Duration;
use tokio::time::Instant;

/// What is left of an allowance.
#[derive(Debug, Clone)]
pub(super) struct Budget {
    left: f64,
    most: f64,
    per_second: f64,
    at: Instant,
}

impl Budget {
    /// A full bucket of `most`, filled by `per_second`.
    pub(super) fn new(most: f64, per_second: f64, now: Instant) -> Self {
        Self { left: most, most, per_second, at: now }
    }

    fn fill(&mut self, now: Instant) {
        let passed = now.saturating_duration_since(self.at).as_secs_f64();
        self.left = (self.left + passed * self.per_second).min(self.most);
        self.at = now;
    }

    /// Takes `amount` if it is there.
    pub(super) fn take(&mut self, amount: f64, now: Instant) -> bool {
        self.fill(now);
        let there = self.left >= amount;
        if there {
            self.left -= amount;
        }
        there
    }

    /// Gives back what was taken for nothing.
    pub(super) fn refund(&mut self, amount: f64) {
        self.left = (self.left + amount).min(self.most);
    }

    /// Takes `amount` in any case, and tells how long to wait until the debt is paid.
    pub(super) fn spend(&mut self, amount: f64, now: Instant) -> Option<Duration> {
        self.fill(now);
        self.left -= amount;
        (self.left < 0.0).then(|| Duration::from_secs_f64(-self.left / self.per_second))
    }

    /// Whether nothing is missing.
    pub(super) fn is_full(&mut self, now: Instant) -> bool {
        self.fill(now);
        self.left >= self.most
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_allowance_ends_and_comes_back() {
        let now = Instant::now();
        let mut budget = Budget::new(3.0, 2.0, now);
        assert!((0..3).all(|_| budget.take(1.0, now)) && !budget.take(1.0, now));
        assert!(!budget.take(1.0, now + Duration::from_millis(499)) && budget.take(1.0, now + Duration::from_millis(500)));
        assert!(!budget.is_full(now + Duration::from_millis(1_900)) && budget.is_full(now + Duration::from_secs(2)));
    }

    #[test]
    fn debts_tell_how_long_to_wait() {
        let now = Instant::now();
        let mut budget = Budget::new(10.0, 5.0, now);
        assert_eq!(budget.spend(10.0, now), None);
        assert_eq!(budget.spend(5.0, now), Some(Duration::from_secs(1)));
        assert!(!budget.take(0.1, now + Duration::from_secs(1)));
    }
}
