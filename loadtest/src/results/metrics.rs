//! The names under which everything measured can be asked for, in thresholds and comparisons, and the units of their values.

use super::{GroupResult, LatencySummary, RunResult};
use crate::engine::{Fault, Outcome, Phase};
use anyhow::bail;
use std::collections::{BTreeMap, BTreeSet};

/// What a value is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Unit {
    /// Milliseconds.
    Milliseconds,
    /// Percent.
    Percent,
    /// A plain number.
    Number,
}

const STATISTICS: [&str; 8] = ["mean", "p50", "p75", "p90", "p95", "p99", "p999", "max"];
const LATENCIES: [&str; 4] = ["all", "ok", "warm", "cold"];
const GROUP_COUNTS: [&str; 7] = ["offered", "unsent", "answered", "shed", "lost", "errors", "goodput"];

/// What is counted that should not be: judged by the worst run, not by the median one.
#[must_use]
pub fn judged_by_worst(name: &str) -> bool {
    let last = name.rsplit('.').next().unwrap_or(name);
    ["lost", "unsent", "shed", "errors", "failed", "stale", "starved"].contains(&last)
        || ["lost", "errors", "outcome", "recover", "latency-back"].iter().any(|p| name == *p || name.starts_with(&format!("{p}.")))
}

/// The unit of a metric.
#[must_use]
pub fn unit(name: &str) -> Unit {
    let last = name.rsplit('.').next().unwrap_or(name);
    if name.ends_with("-rate") || name.ends_with("-share") {
        Unit::Percent
    } else if name == "deploy.failed" || name == "deploy.stale" {
        Unit::Number
    } else if STATISTICS.contains(&last)
        || name.starts_with("recover")
        || name.starts_with("latency-back")
        || name.starts_with("tenant-p99.")
    {
        Unit::Milliseconds
    } else {
        Unit::Number
    }
}

/// Every metric of a run that has a value.
pub(super) fn of(run: &RunResult) -> BTreeMap<String, f64> {
    let mut metrics = BTreeMap::new();
    let mut put = |name: String, value: f64| {
        if value.is_finite() {
            metrics.insert(name, value);
        }
    };
    group(&mut put, "", &run.total);
    for (prefix, groups) in [("stream", &run.streams), ("phase", &run.phases), ("kind", &run.kinds)] {
        for (name, of) in groups {
            group(&mut put, &format!("{prefix}.{name}."), of);
        }
    }
    for (name, latency) in [("service", &run.service), ("head", &run.head), ("lag", &run.generator.lag)] {
        latency.iter().for_each(|l| statistics(&mut put, name, l));
    }
    for (start, phases) in &run.timing {
        for (phase, latency) in phases {
            statistics(&mut put, &format!("timing.{start}.{phase}"), latency);
        }
    }
    for (fault, count) in &run.total.errors {
        put(format!("errors.{fault}"), *count as f64);
    }
    for (outcome, count) in &run.outcomes {
        put(format!("outcome.{outcome}"), *count as f64);
    }
    let offered = run.total.offered.max(1) as f64;
    let errors: u64 = run.total.errors.values().sum();
    put("error-rate".into(), errors as f64 / offered * 100.0);
    put("lost-rate".into(), run.total.lost as f64 / offered * 100.0);
    let cold = run.total.latency.get("cold").map_or(0, |l| l.count);
    put("cold-share".into(), cold as f64 / run.total.ok.max(1) as f64 * 100.0);
    if run.seconds > 0.0 {
        put("rate".into(), (run.total.offered - run.total.unsent) as f64 / run.seconds);
    }
    put("in-flight-peak".into(), run.generator.in_flight_peak as f64);
    put("fairness".into(), run.fairness.jain);
    put("starved".into(), run.fairness.starved as f64);
    run.fairness.p99_median_ms.iter().for_each(|ms| put("tenant-p99.median".into(), *ms));
    run.fairness.p99_worst_ms.iter().for_each(|ms| put("tenant-p99.worst".into(), *ms));
    faults(&mut put, run);
    if let Some(deploys) = &run.deploys {
        deploys.latency.iter().for_each(|l| statistics(&mut put, "deploy", l));
        put("deploy.failed".into(), deploys.failed as f64);
        put("deploy.stale".into(), deploys.stale as f64);
    }
    metrics
}

fn group(put: &mut dyn FnMut(String, f64), prefix: &str, group: &GroupResult) {
    for (name, latency) in &group.latency {
        statistics(put, &format!("{prefix}{name}"), latency);
        if name == "ok" && !prefix.is_empty() {
            statistics(put, prefix.trim_end_matches('.'), latency);
        }
    }
    put(format!("{prefix}offered"), group.offered as f64);
    put(format!("{prefix}unsent"), group.unsent as f64);
    put(format!("{prefix}answered"), group.ok as f64);
    put(format!("{prefix}shed"), group.shed as f64);
    put(format!("{prefix}lost"), group.lost as f64);
    put(format!("{prefix}errors"), group.errors.values().sum::<u64>() as f64);
    put(format!("{prefix}goodput"), group.goodput);
}

fn statistics(put: &mut dyn FnMut(String, f64), prefix: &str, l: &LatencySummary) {
    let values = [l.mean_ms, l.p50_ms, l.p75_ms, l.p90_ms, l.p95_ms, l.p99_ms, l.p999_ms, l.max_ms];
    for (name, value) in STATISTICS.iter().zip(values) {
        put(format!("{prefix}.{name}"), value);
    }
    put(format!("{prefix}.count"), l.count as f64);
}

/// The worst of each, and each by name. What has not recovered has no value, so that no condition on it holds.
fn faults(put: &mut dyn FnMut(String, f64), run: &RunResult) {
    let mut worst: [Option<f64>; 2] = [Some(0.0); 2];
    for fault in &run.faults {
        put(format!("lost.{}", fault.name), fault.lost as f64);
        for (slot, (name, value)) in
            [("recover", fault.recover_ms), ("latency-back", fault.latency_back_ms)].into_iter().enumerate()
        {
            if let Some(ms) = value {
                put(format!("{name}.{}", fault.name), ms);
            }
            worst[slot] = worst[slot].zip(value).map(|(a, b)| a.max(b));
        }
    }
    if !run.faults.is_empty() {
        for (name, value) in ["recover", "latency-back"].iter().zip(worst) {
            value.iter().for_each(|ms| put((*name).to_owned(), *ms));
        }
    }
}

/// All names that a scenario can give values to.
#[derive(Debug, Clone)]
pub struct Catalogue(BTreeSet<String>);

impl Catalogue {
    /// For a scenario with these streams, phases, kinds and faults.
    #[must_use]
    pub fn new<'a>(
        streams: impl IntoIterator<Item = &'a str>,
        phases: impl IntoIterator<Item = &'a str>,
        kinds: impl IntoIterator<Item = &'a str>,
        faults: impl IntoIterator<Item = &'a str>,
        deploys: bool,
    ) -> Self {
        let mut names = BTreeSet::new();
        let mut groups = vec![String::new()];
        groups.extend(streams.into_iter().map(|n| format!("stream.{n}.")));
        groups.extend(phases.into_iter().map(|n| format!("phase.{n}.")));
        groups.extend(kinds.into_iter().map(|n| format!("kind.{n}.")));
        let mut distributions: Vec<String> = ["service", "head", "lag"].map(String::from).to_vec();
        for group in &groups {
            distributions.extend(LATENCIES.iter().map(|l| format!("{group}{l}")));
            if !group.is_empty() {
                distributions.push(group.trim_end_matches('.').to_owned());
            }
            names.extend(GROUP_COUNTS.iter().map(|c| format!("{group}{c}")));
        }
        for start in ["warm", "cold"] {
            distributions.extend(Phase::ALL.iter().map(|p| format!("timing.{start}.{}", p.name())));
        }
        if deploys {
            distributions.push("deploy".into());
            names.extend(["deploy.failed".to_owned(), "deploy.stale".to_owned()]);
        }
        names.extend(distributions.iter().flat_map(|d| STATISTICS.iter().chain(&["count"]).map(move |s| format!("{d}.{s}"))));
        names.extend(Fault::ERRORS.iter().map(|f| format!("errors.{}", f.name())));
        names.extend(Outcome::ALL.iter().map(|o| format!("outcome.{}", o.name())));
        for plain in [
            "rate",
            "error-rate",
            "lost-rate",
            "cold-share",
            "in-flight-peak",
            "fairness",
            "starved",
            "tenant-p99.median",
            "tenant-p99.worst",
        ] {
            names.insert(plain.to_owned());
        }
        let mut any_fault = false;
        for fault in faults {
            any_fault = true;
            names.extend(["lost", "recover", "latency-back"].map(|n| format!("{n}.{fault}")));
        }
        if any_fault {
            names.extend(["recover".to_owned(), "latency-back".to_owned()]);
        }
        Self(names)
    }

    /// Refuses a name that nothing can have.
    ///
    /// # Errors
    /// The name is not known; the message lists those that start alike.
    pub fn check(&self, name: &str) -> anyhow::Result<()> {
        if self.0.contains(name) {
            return Ok(());
        }
        let start = name.split('.').next().unwrap_or(name);
        let alike: Vec<&str> = self.0.iter().map(String::as_str).filter(|n| n.starts_with(start)).take(12).collect();
        if alike.is_empty() {
            let firsts: BTreeSet<&str> = self.0.iter().map(|n| n.split('.').next().unwrap_or(n)).collect();
            bail!("nothing is measured as {name:?}: metrics start with {}", firsts.into_iter().collect::<Vec<_>>().join(", "));
        }
        bail!("nothing is measured as {name:?} in this scenario: there are {}", alike.join(", "));
    }

    /// All of them.
    pub fn names(&self) -> impl Iterator<Item = &str> {
        self.0.iter().map(String::as_str)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn units_follow_from_names() {
        for (name, expected) in [
            ("warm.p99", Unit::Milliseconds),
            ("stream.quiet.p50", Unit::Milliseconds),
            ("warm.count", Unit::Number),
            ("lost", Unit::Number),
            ("lost-rate", Unit::Percent),
            ("cold-share", Unit::Percent),
            ("recover.kill", Unit::Milliseconds),
            ("tenant-p99.worst", Unit::Milliseconds),
            ("phase.10x.goodput", Unit::Number),
            ("deploy.stale", Unit::Number),
        ] {
            assert_eq!(unit(name), expected, "{name}");
        }
    }

    #[test]
    fn the_catalogue_knows_its_scenario() {
        let names = Catalogue::new(["quiet"], ["10x"], ["hello"], ["kill"], true);
        for good in [
            "warm.p99",
            "stream.quiet.warm.p50",
            "stream.quiet.p50",
            "phase.10x.goodput",
            "recover.kill",
            "recover",
            "deploy.stale",
            "timing.cold.load.p50",
            "outcome.reset",
        ] {
            names.check(good).unwrap();
        }
        for bad in ["warm.p98", "stream.loud.p50", "latency", "recover.other", ""] {
            assert!(names.check(bad).is_err(), "{bad}");
        }
        assert!(Catalogue::new([], [], [], [], false).check("recover").is_err(), "without a fault there is no recovery");
        assert!(judged_by_worst("lost") && judged_by_worst("stream.quiet.lost") && judged_by_worst("outcome.reset"));
        assert!(!judged_by_worst("warm.p99") && !judged_by_worst("lost-rate"));
    }
}
