//! From the books to the result.

use super::{
    DeployResult, Generator, GroupResult, LatencySummary, NodeResult, Reason, RunResult, SeriesResult, Slice, fairness, metrics,
    recover,
};
use crate::{
    collect::{Gathered, Group},
    engine::{Fault, Outcome, Phase},
    latency::Latencies,
    series::Series,
};
use hdrhistogram::Histogram;
use std::collections::BTreeMap;

/// Reasons that are listed.
const REASONS_MAX: usize = 40;
/// Pieces of a run.
const SLICES_MAX: usize = 30;
/// Where percentile curves have points.
const QUANTILES: [f64; 26] = [
    0.0, 0.01, 0.05, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.75, 0.8, 0.85, 0.9, 0.925, 0.95, 0.975, 0.99, 0.995, 0.9975, 0.999,
    0.9995, 0.9999, 0.99995, 0.99999, 1.0,
];

impl LatencySummary {
    /// Of a histogram; none where nothing was counted.
    #[must_use]
    pub fn of(latencies: &Latencies) -> Option<Self> {
        if latencies.count() == 0 {
            return None;
        }
        let at = |quantile| latencies.at(quantile).unwrap_or(0.0);
        Some(Self {
            count: latencies.count(),
            mean_ms: latencies.mean().unwrap_or(0.0),
            p50_ms: at(0.5),
            p75_ms: at(0.75),
            p90_ms: at(0.9),
            p95_ms: at(0.95),
            p99_ms: at(0.99),
            p999_ms: at(0.999),
            max_ms: latencies.max().unwrap_or(0.0),
        })
    }
}

impl GroupResult {
    fn of(group: &Group, seconds: f64) -> Self {
        let latency =
            [("all", &group.all_latency), ("ok", &group.ok_latency), ("warm", &group.warm_latency), ("cold", &group.cold_latency)];
        Self {
            offered: group.offered,
            unsent: group.unsent,
            ok: group.ok,
            shed: group.shed,
            lost: group.lost,
            errors: Fault::ERRORS.iter().zip(group.errors).map(|(f, n)| (f.name().to_owned(), n)).collect(),
            seconds,
            goodput: if seconds > 0.0 { group.ok as f64 / seconds } else { 0.0 },
            latency: latency.into_iter().filter_map(|(name, l)| Some((name.to_owned(), LatencySummary::of(l)?))).collect(),
        }
    }
}

impl RunResult {
    /// Of the books. `started_at` is in UTC.
    #[must_use]
    pub fn of(books: &Gathered, started_at: String, in_flight_max: u64) -> Self {
        let layout = &books.layout;
        let sent_ns = layout.length_ns.min(books.elapsed.as_nanos() as u64);
        let seconds = (sent_ns.saturating_sub(layout.warm_up_ns)) as f64 / 1e9;
        let step_seconds = |stream: usize, step: usize| {
            let start: u64 = layout.step_lengths[stream][..step].iter().sum();
            let end = (start + layout.step_lengths[stream][step]).min(sent_ns);
            end.saturating_sub(start.max(layout.warm_up_ns)) as f64 / 1e9
        };
        let mut phases = BTreeMap::new();
        for (stream, groups) in books.phases.iter().enumerate() {
            for (step, group) in groups.iter().enumerate() {
                if let (Some(group), Some(name)) = (group, &layout.streams[stream].1[step]) {
                    phases.insert(name.clone(), GroupResult::of(group, step_seconds(stream, step)));
                }
            }
        }
        let named = |names: &mut dyn Iterator<Item = (String, &Group)>| -> BTreeMap<String, GroupResult> {
            names.map(|(name, group)| (name, GroupResult::of(group, seconds))).collect()
        };
        let mut result = Self {
            started_at,
            seconds,
            total: GroupResult::of(&books.total, seconds),
            streams: named(&mut layout.streams.iter().zip(&books.streams).map(|((name, _), g)| (name.clone(), g))),
            phases,
            kinds: named(
                &mut books
                    .kinds
                    .iter()
                    .enumerate()
                    .filter_map(|(kind, group)| Some(((*layout.population.kinds.get(kind)?).to_owned(), group.as_ref()?))),
            ),
            outcomes: Outcome::ALL.iter().zip(books.outcomes).map(|(o, n)| (o.name().to_owned(), n)).collect(),
            reasons: reasons(books),
            nodes: nodes(books),
            timing: timing(books),
            service: LatencySummary::of(&books.service_latency),
            head: LatencySummary::of(&books.head_latency),
            generator: Generator {
                lag: LatencySummary::of(&books.lag),
                unsent: books.total.unsent,
                in_flight_peak: books.in_flight_peak,
                in_flight_max,
            },
            fairness: fairness::of(books),
            faults: recover::faults(books),
            deploys: books.deploys.as_ref().map(|d| DeployResult {
                latency: LatencySummary::of(&d.latency),
                failed: d.failed,
                stale: d.stale,
                error: d.error.clone(),
            }),
            bytes: books.bytes,
            curves: curves(books),
            series: series(books),
            slices: slices(&books.series, layout.warm_up_ns, sent_ns),
            metrics: BTreeMap::new(),
        };
        result.metrics = metrics::of(&result);
        result
    }
}

fn reasons(books: &Gathered) -> Vec<Reason> {
    let mut reasons: Vec<Reason> = books
        .reasons
        .iter()
        .map(|((outcome, reason), count)| Reason {
            outcome: outcome.name().to_owned(),
            fault: outcome.fault().name().to_owned(),
            reason: books.interner.name(*reason).unwrap_or_default(),
            count: *count,
        })
        .collect();
    reasons.sort_by(|a, b| b.count.cmp(&a.count).then_with(|| a.reason.cmp(&b.reason)));
    reasons.truncate(REASONS_MAX);
    reasons
}

fn nodes(books: &Gathered) -> BTreeMap<String, NodeResult> {
    books
        .nodes
        .iter()
        .map(|(name, n)| {
            let name = books.interner.name(*name).unwrap_or_default();
            (name, NodeResult { answers: n.answers, cold: n.cold, platform_errors: n.platform_errors })
        })
        .collect()
}

fn timing(books: &Gathered) -> BTreeMap<String, BTreeMap<String, LatencySummary>> {
    [("warm", false), ("cold", true)]
        .into_iter()
        .map(|(name, cold)| {
            let phases = Phase::ALL
                .iter()
                .filter_map(|p| Some((p.name().to_owned(), LatencySummary::of(books.phase(cold, *p))?)))
                .collect::<BTreeMap<_, _>>();
            (name.to_owned(), phases)
        })
        .filter(|(_, phases)| !phases.is_empty())
        .collect()
}

fn curves(books: &Gathered) -> BTreeMap<String, Vec<(f64, f64)>> {
    let all = [
        ("all", &books.total.all_latency),
        ("ok", &books.total.ok_latency),
        ("warm", &books.total.warm_latency),
        ("cold", &books.total.cold_latency),
        ("service", &books.service_latency),
    ];
    all.into_iter()
        .filter(|(_, l)| l.count() > 0)
        .map(|(name, l)| {
            // A quantile beyond the number of requests would only repeat the largest.
            let count = l.count() as f64;
            let points = QUANTILES.iter().filter(|q| count * (1.0 - **q) >= 1.0 || **q == 1.0);
            (name.to_owned(), points.map(|q| (*q, l.at(*q).unwrap_or(0.0))).collect())
        })
        .collect()
}

fn series(books: &Gathered) -> SeriesResult {
    let Series { width_ns, intervals } = &books.series;
    let ms = |h: &Option<Box<Histogram<u32>>>, q: f64| h.as_ref().map(|h| h.value_at_quantile(q) as f64 / 1e6);
    let mut nodes = BTreeMap::new();
    for (index, (name, _)) in books.nodes.iter().enumerate().take(crate::series::NODES_MAX) {
        let counts = intervals.iter().map(|i| i.nodes.get(index).copied().unwrap_or(0)).collect();
        nodes.insert(books.interner.name(*name).unwrap_or_default(), counts);
    }
    SeriesResult {
        width_s: *width_ns as f64 / 1e9,
        offered: intervals.iter().map(|i| i.offered).collect(),
        ok: intervals.iter().map(|i| i.ok).collect(),
        cold: intervals.iter().map(|i| i.cold).collect(),
        lost: intervals.iter().map(|i| i.lost).collect(),
        unsent: intervals.iter().map(|i| i.unsent).collect(),
        in_flight: intervals.iter().map(|i| i.in_flight).collect(),
        errors: Fault::ERRORS
            .iter()
            .enumerate()
            .map(|(index, fault)| (fault.name().to_owned(), intervals.iter().map(|i| i.errors[index]).collect()))
            .collect(),
        warm_p50_ms: intervals.iter().map(|i| ms(&i.warm_latency, 0.5)).collect(),
        warm_p99_ms: intervals.iter().map(|i| ms(&i.warm_latency, 0.99)).collect(),
        warm_max_ms: intervals.iter().map(|i| ms(&i.warm_latency, 1.0)).collect(),
        cold_p50_ms: intervals.iter().map(|i| ms(&i.cold_latency, 0.5)).collect(),
        cold_max_ms: intervals.iter().map(|i| ms(&i.cold_latency, 1.0)).collect(),
        nodes,
    }
}

/// Equal pieces of the measured time, each with its own distribution.
fn slices(series: &Series, from_ns: u64, to_ns: u64) -> Vec<Slice> {
    let first = (from_ns / series.width_ns) as usize;
    let last = (to_ns.div_ceil(series.width_ns) as usize).min(series.intervals.len());
    let Some(intervals) = series.intervals.get(first..last).filter(|i| !i.is_empty()) else { return Vec::new() };
    let per_slice = intervals.len().div_ceil(SLICES_MAX);
    intervals
        .chunks(per_slice)
        .map(|chunk| {
            let merged = |pick: fn(&crate::series::Interval) -> Option<&Histogram<u32>>| {
                let mut counts = BTreeMap::<u64, u64>::new();
                for value in chunk.iter().filter_map(pick).flat_map(|h| h.iter_recorded()) {
                    *counts.entry(value.value_iterated_to() / 1_000).or_default() += u64::from(value.count_at_value());
                }
                counts.into_iter().collect()
            };
            Slice {
                seconds: chunk.len() as f64 * series.width_ns as f64 / 1e9,
                offered: chunk.iter().map(|i| u64::from(i.offered)).sum(),
                ok: chunk.iter().map(|i| u64::from(i.ok)).sum(),
                lost: chunk.iter().map(|i| u64::from(i.lost)).sum(),
                warm: merged(|i| i.warm_latency.as_deref()),
                cold: merged(|i| i.cold_latency.as_deref()),
            }
        })
        .collect()
}
