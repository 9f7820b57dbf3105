//! How long a fault was felt: until the last lost request, and until latency was as before.

use super::FaultResult;
use crate::{collect::Gathered, series::Interval};

/// Losses within so long of the end mean that nobody knows when they would have stopped.
const STILL_LOSING_NS: u64 = 1_000_000_000;
/// Latency is back below so many times its p99 before the first fault,
const FACTOR: f64 = 2.0;
/// plus so many milliseconds, since twice very little is still very little.
const ALLOWANCE_MS: f64 = 5.0;

/// Of the books.
pub(super) fn faults(books: &Gathered) -> Vec<FaultResult> {
    let end_ns = books.layout.length_ns.min(books.elapsed.as_nanos() as u64);
    let first = books.faults.first().map_or(0, |f| f.event.at_ns);
    let limit = p99_before(books, first).map(|p99| p99 * FACTOR + ALLOWANCE_MS);
    books
        .faults
        .iter()
        .enumerate()
        .map(|(index, fault)| {
            let at_ns = fault.event.at_ns;
            let next_ns = books.faults.get(index + 1).map_or(end_ns, |next| next.event.at_ns);
            let recover_ms = match fault.last_lost_ns {
                None => Some(0.0),
                Some(last) if last + STILL_LOSING_NS >= next_ns => None,
                Some(last) => Some((last - at_ns) as f64 / 1e6),
            };
            FaultResult {
                name: fault.event.name.clone(),
                at_s: at_ns as f64 / 1e9,
                took_s: fault.event.took.map(|t| t.as_secs_f64()),
                error: fault.event.error.clone(),
                lost: fault.lost,
                recover_ms,
                latency_back_ms: limit.and_then(|limit| latency_back(books, at_ns, next_ns, limit)),
            }
        })
        .collect()
}

fn p99_before(books: &Gathered, at_ns: u64) -> Option<f64> {
    let mut merged = crate::latency::compact();
    let width = books.series.width_ns;
    let first = books.layout.warm_up_ns.div_ceil(width) as usize;
    let last = (at_ns / width) as usize;
    for histogram in books.series.intervals.get(first..last)?.iter().filter_map(|i| i.warm_latency.as_ref()) {
        merged.add(&**histogram).ok()?;
    }
    (!merged.is_empty()).then(|| merged.value_at_quantile(0.99) as f64 / 1e6)
}

/// From the fault to the end of the last interval above the limit; an interval in which requests were lost and none was answered is above every limit.
fn latency_back(books: &Gathered, at_ns: u64, next_ns: u64, limit_ms: f64) -> Option<f64> {
    let width = books.series.width_ns;
    let above = |i: &Interval| match &i.warm_latency {
        Some(latency) => latency.value_at_quantile(0.99) as f64 / 1e6 > limit_ms,
        None => i.lost > 0,
    };
    let (first, last) = ((at_ns / width) as usize, (next_ns / width) as usize);
    let intervals = books.series.intervals.get(first..last.min(books.series.intervals.len()))?;
    match intervals.iter().rposition(above) {
        None => Some(0.0),
        Some(index) if index + 1 == intervals.len() => None,
        Some(index) => Some((((first + index + 1) as u64 * width) - at_ns) as f64 / 1e6),
    }
}
