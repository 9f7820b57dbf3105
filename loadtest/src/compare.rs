//! Two results side by side, with the uncertainty of their difference. A run is cut into pieces; both runs are drawn anew from their pieces many times (a
//! block bootstrap, by runs first where there are several), and the middle 95% of the differences is the interval. Pieces, because neighbouring requests
//! resemble each other: requests drawn one by one would make every difference look certain.

use crate::{
    results::{Report, Slice},
    seeded::Seeded,
    threshold::show,
    units::show_rate,
};
use std::{collections::BTreeSet, fmt::Write as _};

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

/// The quantities that are compared, and whether more is better.
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

/// One distribution of every piece of a result, over the same latencies, so that pieces are added up by index.
struct Table {
    us: Vec<u64>,
    /// Of each piece: places in `us`, and how often.
    pieces: Vec<Vec<(u32, u64)>>,
}

impl Table {
    fn of(slices: &[&Slice], pick: fn(&Slice) -> &[(u64, u64)]) -> Self {
        let all: BTreeSet<u64> = slices.iter().flat_map(|s| pick(s)).map(|(us, _)| *us).collect();
        let us: Vec<u64> = all.into_iter().collect();
        let place = |value: &u64| us.partition_point(|known| known < value) as u32;
        let pieces = slices.iter().map(|s| pick(s).iter().map(|(us, n)| (place(us), *n)).collect()).collect();
        Self { us, pieces }
    }

    /// Counts by latency of pieces that are each taken so many times.
    fn counts(&self, times: &[u64]) -> Vec<u64> {
        let mut counts = vec![0; self.us.len()];
        for (piece, times) in self.pieces.iter().zip(times).filter(|(_, times)| **times > 0) {
            for (place, n) in piece {
                counts[*place as usize] += n * times;
            }
        }
        counts
    }

    /// Milliseconds at a quantile; none where there are too few requests to say.
    fn quantile(&self, counts: &[u64], quantile: f64) -> Option<f64> {
        let total: u64 = counts.iter().sum();
        // The tail beyond a percentile needs some requests of its own.
        if total < REQUESTS_MIN || (total as f64 * (1.0 - quantile)) < 2.0 {
            return None;
        }
        let rank = (total as f64 * quantile).ceil() as u64;
        let mut seen = 0;
        let place = counts.iter().position(|n| {
            seen += n;
            seen >= rank
        })?;
        Some(self.us[place] as f64 / 1e3)
    }
}

/// A result, ready to be drawn from.
struct Pieces<'a> {
    slices: Vec<&'a Slice>,
    /// Where each run's pieces lie.
    runs: Vec<std::ops::Range<usize>>,
    warm: Table,
    cold: Table,
}

impl<'a> Pieces<'a> {
    fn of(report: &'a Report) -> Self {
        let (mut slices, mut runs) = (Vec::<&Slice>::new(), Vec::new());
        for run in &report.runs {
            let from = slices.len();
            slices.extend(&run.slices);
            runs.push(from..slices.len());
        }
        let (warm, cold) = (Table::of(&slices, |s| &s.warm), Table::of(&slices, |s| &s.cold));
        Self { slices, runs, warm, cold }
    }

    /// How often each piece is taken when as many as there are are drawn with replacement: runs first, then pieces within them.
    fn draw(&self, seeded: &mut Seeded) -> Vec<u64> {
        let mut times = vec![0; self.slices.len()];
        for _ in 0..self.runs.len() {
            let run = &self.runs[seeded.below(self.runs.len() as u64) as usize];
            for _ in run.clone() {
                times[run.start + seeded.below(run.len() as u64) as usize] += 1;
            }
        }
        times
    }

    /// Every quantity of pieces that are each taken so many times; none where they hold too little.
    fn values(&self, times: &[u64]) -> [Option<f64>; QUANTITIES.len()] {
        let (warm, cold) = (self.warm.counts(times), self.cold.counts(times));
        let sum = |pick: fn(&Slice) -> f64| self.slices.iter().zip(times).map(|(s, n)| pick(s) * *n as f64).sum::<f64>();
        QUANTITIES.map(|(_, quantity, _)| match quantity {
            Quantity::Warm(q) => self.warm.quantile(&warm, q),
            Quantity::Cold(q) => self.cold.quantile(&cold, q),
            Quantity::Goodput => Some(sum(|s| s.seconds)).filter(|s| *s > 0.0).map(|s| sum(|s| s.ok as f64) / s),
            Quantity::LostShare => Some(sum(|s| s.offered as f64)).filter(|n| *n > 0.0).map(|n| sum(|s| s.lost as f64) / n * 100.0),
        })
    }
}

/// Compares.
#[must_use]
pub fn compare(a: &Report, b: &Report) -> Vec<Difference> {
    let (a, b) = (Pieces::of(a), Pieces::of(b));
    let whole = |pieces: &Pieces<'_>| pieces.values(&vec![1; pieces.slices.len()]);
    let (whole_a, whole_b) = (whole(&a), whole(&b));
    let mut seeded = Seeded::new(1, 0);
    let mut drawn: [Vec<f64>; QUANTITIES.len()] = Default::default();
    for _ in 0..DRAWS {
        let (values_a, values_b) = (a.values(&a.draw(&mut seeded)), b.values(&b.draw(&mut seeded)));
        for ((differences, a), b) in drawn.iter_mut().zip(values_a).zip(values_b) {
            differences.extend(b.zip(a).map(|(b, a)| b - a));
        }
    }
    QUANTITIES
        .iter()
        .zip(drawn)
        .zip(whole_a.into_iter().zip(whole_b))
        .filter_map(|(((name, quantity, more_is_better), mut differences), (value_a, value_b))| {
            let (value_a, value_b) = (value_a?, value_b?);
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
