//! What happened when: a bounded number of intervals that cover the whole run, however long it is. When they are full, each two become one.

use crate::{
    engine::{Fault, Record, Start},
    latency,
};
use hdrhistogram::Histogram;

/// Intervals of a run.
pub const INTERVALS_MAX: usize = 600;
/// Nodes that are shown over time.
pub const NODES_MAX: usize = 16;
/// The first width: fine enough to see a second's loss, for runs up to a minute.
const WIDTH_NS: u64 = 100_000_000;

/// One interval, by intended moments.
#[derive(Debug, Clone, Default)]
pub struct Interval {
    /// Requests that were to be sent.
    pub offered: u32,
    /// Answered.
    pub ok: u32,
    /// Of these, cold.
    pub cold: u32,
    /// Errors by [`Fault::ERRORS`].
    pub errors: [u32; 4],
    /// Lost.
    pub lost: u32,
    /// Not sent.
    pub unsent: u32,
    /// Most in flight, by the clock.
    pub in_flight: u32,
    /// Latencies of answers that were not cold.
    pub warm_latency: Option<Box<Histogram<u32>>>,
    /// Latencies of cold answers.
    pub cold_latency: Option<Box<Histogram<u32>>>,
    /// Requests by node.
    pub nodes: Vec<u32>,
}

impl Interval {
    fn absorb(&mut self, other: Self) {
        self.offered += other.offered;
        self.ok += other.ok;
        self.cold += other.cold;
        self.lost += other.lost;
        self.unsent += other.unsent;
        self.in_flight = self.in_flight.max(other.in_flight);
        for (mine, others) in self.errors.iter_mut().zip(other.errors) {
            *mine += others;
        }
        absorb_histogram(&mut self.warm_latency, other.warm_latency);
        absorb_histogram(&mut self.cold_latency, other.cold_latency);
        if self.nodes.len() < other.nodes.len() {
            self.nodes.resize(other.nodes.len(), 0);
        }
        for (mine, others) in self.nodes.iter_mut().zip(other.nodes) {
            *mine += others;
        }
    }
}

fn absorb_histogram(mine: &mut Option<Box<Histogram<u32>>>, other: Option<Box<Histogram<u32>>>) {
    match (mine.as_mut(), other) {
        // All have the same bounds, so adding cannot fail.
        (Some(mine), Some(other)) => {
            let _ = mine.add(&*other);
        }
        (None, other) => *mine = other,
        (Some(_), None) => {}
    }
}

/// The intervals of a run.
#[derive(Debug, Clone)]
pub struct Series {
    /// Width of each, in nanoseconds.
    pub width_ns: u64,
    /// From the start of the load on.
    pub intervals: Vec<Interval>,
}

impl Default for Series {
    fn default() -> Self {
        Self { width_ns: WIDTH_NS, intervals: Vec::new() }
    }
}

impl Series {
    /// The interval of a moment.
    pub fn at(&mut self, at_ns: u64) -> &mut Interval {
        while at_ns / self.width_ns >= INTERVALS_MAX as u64 {
            self.fold();
        }
        let index = (at_ns / self.width_ns) as usize;
        if index >= self.intervals.len() {
            self.intervals.resize_with(index + 1, Interval::default);
        }
        &mut self.intervals[index]
    }

    fn fold(&mut self) {
        let mut folded = Vec::with_capacity(self.intervals.len() / 2 + 1);
        let mut old = std::mem::take(&mut self.intervals).into_iter();
        while let Some(mut interval) = old.next() {
            if let Some(second) = old.next() {
                interval.absorb(second);
            }
            folded.push(interval);
        }
        self.intervals = folded;
        self.width_ns *= 2;
    }

    /// Counts a request.
    pub fn record(&mut self, record: &Record, node: Option<usize>) {
        let interval = self.at(record.at_ns);
        interval.offered += 1;
        if !record.sent {
            interval.unsent += 1;
            return;
        }
        let fault = record.outcome.fault();
        if fault == Fault::None {
            interval.ok += 1;
            let cold = record.start == Start::Cold;
            interval.cold += u32::from(cold);
            let latencies = if cold { &mut interval.cold_latency } else { &mut interval.warm_latency };
            latencies.get_or_insert_with(|| Box::new(latency::compact())).saturating_record(record.latency_ns);
        } else if let Some(index) = Fault::ERRORS.iter().position(|f| *f == fault) {
            interval.errors[index] += 1;
        }
        interval.lost += u32::from(record.outcome.lost());
        if let Some(node) = node.filter(|n| *n < NODES_MAX) {
            if interval.nodes.len() <= node {
                interval.nodes.resize(node + 1, 0);
            }
            interval.nodes[node] += 1;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn memory_is_bounded_and_nothing_is_lost_by_folding() {
        let mut series = Series::default();
        for second in 0..100_000_u64 {
            let interval = series.at(second * 1_000_000_000);
            interval.offered += 1;
            let latencies = interval.warm_latency.get_or_insert_with(|| Box::new(latency::compact()));
            latencies.saturating_record(1_000_000 + second);
        }
        assert!(series.intervals.len() <= INTERVALS_MAX);
        assert!(series.intervals.len() > INTERVALS_MAX / 4);
        assert_eq!(series.intervals.iter().map(|i| i.offered).sum::<u32>(), 100_000);
        let counted: u64 = series.intervals.iter().filter_map(|i| i.warm_latency.as_ref()).map(|h| h.len()).sum();
        assert_eq!(counted, 100_000);
    }

    #[test]
    fn at_the_bound_of_intervals_and_one_past_it() {
        let mut series = Series::default();
        series.at(WIDTH_NS * INTERVALS_MAX as u64 - 1).offered += 1;
        assert_eq!((series.width_ns, series.intervals.len()), (WIDTH_NS, INTERVALS_MAX));
        series.at(WIDTH_NS * INTERVALS_MAX as u64).offered += 1;
        assert_eq!((series.width_ns, series.intervals.len()), (2 * WIDTH_NS, INTERVALS_MAX / 2 + 1));
    }
}
