//! Two results side by side, with the uncertainty of their difference. A run is cut into pieces; both runs are drawn anew from their pieces many times (a
//! block bootstrap, by runs first where there are several), and the middle 95% of the differences is the interval. Pieces, because neighbouring requests
//! resemble each other: requests drawn one by one would make every difference look certain.

use crate::{
    results::{Report, Slice},
    seeded::Seeded,
    threshold::show,
    units::show_rate,
};
use std::{collections::BTreeMap, fmt::Write as _};

/// Drawings of the bootstrap.
const DRAWS: usize = 1_000;
/// With fewer requests a percentile says nothing about a difference.
const REQUESTS_MIN: u64 = 20;

/// One line of a comparison.
#[derive(Debug, Clone, serde::Serialize)]
pub struct Difference {
    /// What is compared.
    pub metric: String,
    /// In the first result.
    pub a: f64,
    /// In the second.
    pub b: f64,
    /// From the first to the second, in percent of the first.
    pub percent: f64,
    /// The middle 95% of it.
    pub interval: (f64, f64),
    /// Whether the interval leaves out zero.
    pub certain: bool,
    /// Whether more is better.
    pub more_is_better: bool,
}

/// The quantities that are compared.
const QUANTITIES: [(&str, Quantity, bool); 9] = [
    ("warm.p50", Quantity::Warm(0.5), false),
    ("warm.p90", Quantity::Warm(0.9), false),
    ("warm.p99", Quantity::Warm(0.99), false),
    ("warm.p999", Quantity::Warm(0.999), false),
    ("cold.p50", Quantity::Cold(0.5), false),
    ("cold.p90", Quantity::Cold(0.9), false),
    ("cold.p99", Quantity::Cold(0.99), false),
    ("goodput", Quantity::Goodput, true),
    ("lost-rate", Quantity::LostShare, false),
];

#[derive(Debug, Clone, Copy)]
enum Quantity {
    Warm(f64),
    Cold(f64),
    Goodput,
    LostShare,
}

impl Quantity {
    /// Of some pieces together; none where they hold too little.
    fn of(self, slices: &[&Slice]) -> Option<f64> {
        match self {
            Self::Warm(q) => quantile(slices.iter().map(|s| s.warm.as_slice()), q),
            Self::Cold(q) => quantile(slices.iter().map(|s| s.cold.as_slice()), q),
            Self::Goodput => {
                let seconds: f64 = slices.iter().map(|s| s.seconds).sum();
                (seconds > 0.0).then(|| slices.iter().map(|s| s.ok).sum::<u64>() as f64 / seconds)
            }
            Self::LostShare => {
                let offered: u64 = slices.iter().map(|s| s.offered).sum();
                (offered > 0).then(|| slices.iter().map(|s| s.lost).sum::<u64>() as f64 / offered as f64 * 100.0)
            }
        }
    }
}

/// Milliseconds at a quantile of sparse histograms together.
fn quantile<'a>(parts: impl Iterator<Item = &'a [(u64, u64)]>, quantile: f64) -> Option<f64> {
    let mut counts = BTreeMap::<u64, u64>::new();
    for (us, n) in parts.flatten() {
        *counts.entry(*us).or_default() += n;
    }
    let total: u64 = counts.values().sum();
    // The tail beyond a percentile needs some requests of its own.
    if total < REQUESTS_MIN || (total as f64 * (1.0 - quantile)) < 2.0 {
        return None;
    }
    let rank = (total as f64 * quantile).ceil() as u64;
    let mut seen = 0;
    counts
        .into_iter()
        .find(|(_, n)| {
            seen += n;
            seen >= rank
        })
        .map(|(us, _)| us as f64 / 1e3)
}

/// Compares.
#[must_use]
pub fn compare(a: &Report, b: &Report) -> Vec<Difference> {
    let pieces = |r: &Report| -> Vec<Vec<Slice>> { r.runs.iter().map(|run| run.slices.clone()).collect() };
    let (runs_a, runs_b) = (pieces(a), pieces(b));
    QUANTITIES
        .iter()
        .enumerate()
        .filter_map(|(index, (name, quantity, more_is_better))| {
            let whole = |runs: &[Vec<Slice>]| quantity.of(&runs.iter().flatten().collect::<Vec<_>>());
            let (value_a, value_b) = (whole(&runs_a)?, whole(&runs_b)?);
            let mut seeded = Seeded::new(1, index as u64);
            let mut differences: Vec<f64> = (0..DRAWS)
                .filter_map(|_| Some(quantity.of(&draw(&runs_b, &mut seeded))? - quantity.of(&draw(&runs_a, &mut seeded))?))
                .collect();
            if differences.len() < DRAWS / 2 {
                return None;
            }
            differences.sort_by(f64::total_cmp);
            let at = |q: f64| differences[((differences.len() - 1) as f64 * q).round() as usize];
            // A share that is zero has no percentage of itself; its difference is given in points.
            let scale = if value_a > 0.0 && !matches!(quantity, Quantity::LostShare) { 100.0 / value_a } else { 1.0 };
            let interval = (at(0.025) * scale, at(0.975) * scale);
            Some(Difference {
                metric: (*name).to_owned(),
                a: value_a,
                b: value_b,
                percent: (value_b - value_a) * scale,
                interval,
                certain: interval.0 > 0.0 || interval.1 < 0.0,
                more_is_better: *more_is_better,
            })
        })
        .collect()
}

/// As many pieces as there are, drawn with replacement: runs first, then pieces within them.
fn draw<'a>(runs: &'a [Vec<Slice>], seeded: &mut Seeded) -> Vec<&'a Slice> {
    let mut drawn = Vec::new();
    for _ in 0..runs.len() {
        let run = &runs[seeded.below(runs.len() as u64) as usize];
        for _ in 0..run.len() {
            drawn.push(&run[seeded.below(run.len() as u64) as usize]);
        }
    }
    drawn
}

/// What must be said before the numbers.
#[must_use]
pub fn warnings(a: &Report, b: &Report) -> Vec<String> {
    let mut warnings = Vec::new();
    for (name, report) in [("a", a), ("b", b)] {
        for reason in &report.void {
            warnings.push(format!("{name} is void: {reason}"));
        }
        if report.interrupted {
            warnings.push(format!("{name} was interrupted"));
        }
    }
    if a.scenario != b.scenario {
        warnings.push(format!("the scenarios differ: {} and {}", a.scenario, b.scenario));
    } else if a.scenario_text != b.scenario_text || a.changes != b.changes {
        warnings.push("the scenario was not the same in both".into());
    }
    if a.machine.cores != b.machine.cores || a.machine.kernel != b.machine.kernel {
        warnings.push("the load came from different machines".into());
    }
    warnings
}

/// As a table for people.
#[must_use]
pub fn table(a: &Report, b: &Report, differences: &[Difference]) -> String {
    let mut text = String::new();
    for warning in warnings(a, b) {
        let _ = writeln!(text, "! {warning}");
    }
    let _ = writeln!(text, "{:<11} {:>12} {:>12} {:>9}   {:<21} verdict", "", "a", "b", "change", "95% interval");
    for d in differences {
        let (value_a, value_b) = match d.metric.as_str() {
            "goodput" => (format!("{}/s", show_rate(d.a)), format!("{}/s", show_rate(d.b))),
            name => (show(name, d.a), show(name, d.b)),
        };
        let better = (d.percent > 0.0) == d.more_is_better;
        let verdict = match (d.certain, better) {
            (false, _) => "no difference shown",
            (true, true) => "better",
            (true, false) => "WORSE",
        };
        let sign = if d.metric == "lost-rate" { " pt" } else { "%" };
        let change = format!("{:+.1}{sign}", d.percent);
        let interval = format!("{:+.1}{sign} to {:+.1}{sign}", d.interval.0, d.interval.1);
        let _ = writeln!(text, "{:<11} {value_a:>12} {value_b:>12} {change:>9}   {interval:<21} {verdict}", d.metric);
    }
    if differences.is_empty() {
        text.push_str("too few requests in common to compare\n");
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tests_support::report_of;

    /// Slices whose requests lie around a latency with noise from one slice to the next, as real ones do.
    fn slices(mean_us: f64, noise: f64, seed: u64) -> Vec<Slice> {
        let mut seeded = Seeded::new(seed, 0);
        (0..30)
            .map(|_| {
                let centre = mean_us * (1.0 + noise * (seeded.unit() - 0.5));
                let warm = (0..200).map(|i| ((centre * (0.5 + f64::from(i) / 200.0)) as u64, 5)).collect();
                Slice { seconds: 1.0, offered: 1_000, ok: 1_000, lost: 0, warm, cold: Vec::new() }
            })
            .collect()
    }

    fn find<'a>(differences: &'a [Difference], name: &str) -> &'a Difference {
        differences.iter().find(|d| d.metric == name).unwrap()
    }

    #[test]
    fn a_real_difference_is_found_and_its_interval_holds_it() {
        let (a, b) = (report_of(vec![slices(1_000.0, 0.2, 1)]), report_of(vec![slices(1_200.0, 0.2, 2)]));
        let differences = compare(&a, &b);
        let p50 = find(&differences, "warm.p50");
        assert!(p50.certain && p50.interval.0 < 20.0 && p50.interval.1 > 20.0, "{p50:?}");
        assert!(table(&a, &b, &differences).contains("WORSE"));
        assert!(!differences.iter().any(|d| d.metric.starts_with("cold")), "nothing was cold");
    }

    #[test]
    fn noise_alone_is_hardly_ever_a_difference() {
        let wrong = (0..40)
            .filter(|i| {
                let (a, b) = (report_of(vec![slices(1_000.0, 0.6, 10 + i)]), report_of(vec![slices(1_000.0, 0.6, 900 + i)]));
                find(&compare(&a, &b), "warm.p50").certain
            })
            .count();
        assert!(wrong <= 6, "{wrong} of 40");
    }

    #[test]
    fn the_spread_between_runs_counts() {
        let runs = |means: [f64; 4], seed: u64| report_of(means.iter().map(|m| slices(*m, 0.05, seed)).collect());
        let (a, b) = (runs([900.0, 1_000.0, 1_100.0, 1_300.0], 1), runs([950.0, 1_050.0, 1_150.0, 1_350.0], 2));
        assert!(!find(&compare(&a, &b), "warm.p50").certain, "runs differ more among themselves than a and b do");
    }

    #[test]
    fn a_void_or_different_result_is_said() {
        let a = report_of(vec![slices(1.0, 0.0, 1)]);
        let mut b = a.clone();
        assert!(warnings(&a, &b).is_empty());
        b.void.push("the generator was the bottleneck".into());
        b.scenario = "other".into();
        assert_eq!(warnings(&a, &b).len(), 2);
    }
}
