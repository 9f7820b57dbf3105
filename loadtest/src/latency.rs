//! Histograms of latencies in nanoseconds, whose memory does not grow with what they count.

use hdrhistogram::Histogram;

/// The longest latency that is told apart from longer ones: one hour.
pub const LONGEST_NS: u64 = 3_600_000_000_000;
/// The shortest one. A larger one would make the precision below a millisecond that of its power of two, for a quarter less memory.
const SHORTEST_NS: u64 = 1;

/// Exact to one part in a thousand; about 250 KB.
///
/// # Panics
/// Never: the bounds are constants that a test checks.
#[must_use]
#[allow(clippy::missing_panics_doc, clippy::expect_used)]
pub fn histogram() -> Histogram<u64> {
    Histogram::new_with_bounds(SHORTEST_NS, LONGEST_NS, 3).expect("constant bounds are valid")
}

/// Exact to one part in a hundred; about 18 KB.
#[must_use]
#[allow(clippy::expect_used)]
pub fn compact() -> Histogram<u32> {
    Histogram::new_with_bounds(SHORTEST_NS, LONGEST_NS, 2).expect("constant bounds are valid")
}

/// A histogram that takes no memory before its first value.
#[derive(Debug, Clone)]
pub enum Latencies {
    /// Exact to one part in a thousand.
    Fine(Option<Box<Histogram<u64>>>),
    /// Exact to one part in a hundred.
    Coarse(Option<Box<Histogram<u32>>>),
}

impl Latencies {
    /// For totals.
    #[must_use]
    pub const fn fine() -> Self {
        Self::Fine(None)
    }

    /// For things of which there are many.
    #[must_use]
    pub const fn coarse() -> Self {
        Self::Coarse(None)
    }

    /// Counts a latency.
    pub fn record(&mut self, ns: u64) {
        match self {
            Self::Fine(h) => h.get_or_insert_with(|| Box::new(histogram())).saturating_record(ns),
            Self::Coarse(h) => h.get_or_insert_with(|| Box::new(compact())).saturating_record(ns),
        }
    }

    /// How many.
    #[must_use]
    pub fn count(&self) -> u64 {
        match self {
            Self::Fine(h) => h.as_ref().map_or(0, |h| h.len()),
            Self::Coarse(h) => h.as_ref().map_or(0, |h| h.len()),
        }
    }

    /// Milliseconds at a quantile between 0 and 1; none where nothing was counted.
    #[must_use]
    pub fn at(&self, quantile: f64) -> Option<f64> {
        match self {
            Self::Fine(h) => h.as_ref().map(|h| h.value_at_quantile(quantile) as f64 / 1e6),
            Self::Coarse(h) => h.as_ref().map(|h| h.value_at_quantile(quantile) as f64 / 1e6),
        }
    }

    /// Its mean, in milliseconds.
    #[must_use]
    pub fn mean(&self) -> Option<f64> {
        match self {
            Self::Fine(h) => h.as_ref().map(|h| h.mean() / 1e6),
            Self::Coarse(h) => h.as_ref().map(|h| h.mean() / 1e6),
        }
    }

    /// The largest, in milliseconds.
    #[must_use]
    pub fn max(&self) -> Option<f64> {
        match self {
            Self::Fine(h) => h.as_ref().map(|h| h.max() as f64 / 1e6),
            Self::Coarse(h) => h.as_ref().map(|h| h.max() as f64 / 1e6),
        }
    }
}

/// Buckets of a [`Sketch`].
const BUCKETS: usize = 80;
/// From one bucket of a [`Sketch`] to the next.
const RATIO: f64 = 1.25;

/// A latency distribution in 320 bytes, exact to an eighth: for each of thousands of tenants.
#[derive(Debug, Clone)]
pub struct Sketch([u32; BUCKETS]);

impl Default for Sketch {
    fn default() -> Self {
        Self([0; BUCKETS])
    }
}

impl Sketch {
    /// Counts a latency.
    pub fn record(&mut self, ns: u64) {
        let bucket = (ns as f64 / 10_000.0).max(1.0).ln() / RATIO.ln();
        let bucket = (bucket as usize).min(BUCKETS - 1);
        self.0[bucket] = self.0[bucket].saturating_add(1);
    }

    /// Milliseconds at a quantile; none where nothing was counted.
    #[must_use]
    pub fn at(&self, quantile: f64) -> Option<f64> {
        let total: u64 = self.0.iter().map(|n| u64::from(*n)).sum();
        let rank = (total as f64 * quantile).ceil().max(1.0) as u64;
        let mut seen = 0;
        self.0
            .iter()
            .position(|n| {
                seen += u64::from(*n);
                total > 0 && seen >= rank
            })
            .map(|bucket| 0.01 * RATIO.powf(bucket as f64 + 0.5))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn precision_is_as_promised_over_the_whole_range() {
        let (mut fine, mut coarse) = (Latencies::fine(), Latencies::coarse());
        for ns in [1_000_u64, 45_000, 999_999, 1_234_567, 20_000_000, 1_001_000_000, 59_999_999_999] {
            fine.record(ns);
            coarse.record(ns);
            let ms = ns as f64 / 1e6;
            assert!((fine.max().unwrap() / ms - 1.0).abs() < 0.001, "{ns}: {:?}", fine.max());
        }
        assert!((fine.at(0.5).unwrap() / 1.234_567 - 1.0).abs() < 0.001);
        assert!((coarse.at(0.5).unwrap() / 1.234_567 - 1.0).abs() < 0.01);
        fine.record(u64::MAX);
        assert_eq!(fine.count(), 8);
        assert!(fine.max().unwrap() >= 3_600_000.0);
        assert_eq!(Latencies::fine().at(0.5), None);
    }

    #[test]
    fn a_sketch_is_exact_to_an_eighth() {
        let mut sketch = Sketch::default();
        (1..=1_000).for_each(|i| sketch.record(i * 100_000));
        assert!((sketch.at(0.5).unwrap() / 50.0 - 1.0).abs() < 0.13, "{:?}", sketch.at(0.5));
        assert!((sketch.at(0.99).unwrap() / 99.0 - 1.0).abs() < 0.13, "{:?}", sketch.at(0.99));
        sketch.record(u64::MAX);
        sketch.record(0);
        assert_eq!(Sketch::default().at(0.5), None);
    }
}
