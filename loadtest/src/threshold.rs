//! Conditions on what was measured, that decide the exit code: `warm.p99<=20ms`, `lost==0`, `lost-rate<0.1%`.

use crate::{
    results::{Catalogue, RunResult, Spread, ThresholdResult, Unit, judged_by_worst, unit},
    units::{show_ms, split_unit, unit_seconds},
};
use anyhow::{Context as _, bail};
use std::{collections::BTreeMap, fmt, str::FromStr};

/// How two values are compared.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Relation {
    AtMost,
    AtLeast,
    Below,
    Above,
    Equal,
    Unequal,
}

const RELATIONS: [(&str, Relation); 6] = [
    ("<=", Relation::AtMost),
    (">=", Relation::AtLeast),
    ("==", Relation::Equal),
    ("!=", Relation::Unequal),
    ("<", Relation::Below),
    (">", Relation::Above),
];

/// A condition.
#[derive(Debug, Clone, PartialEq)]
pub struct Threshold {
    text: String,
    metric: String,
    relation: Relation,
    bound: f64,
}

impl FromStr for Threshold {
    type Err = anyhow::Error;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let (symbol, relation) = RELATIONS
            .iter()
            .filter_map(|(symbol, relation)| Some((text.find(symbol)?, *symbol, *relation)))
            // The first in the text, and of two at the same place the longer one.
            .min_by_key(|(at, symbol, _)| (*at, usize::MAX - symbol.len()))
            .map(|(_, symbol, relation)| (symbol, relation))
            .with_context(|| format!("the threshold {text:?} compares nothing: write it as warm.p99<=20ms or lost==0"))?;
        let (metric, value) = text.split_once(symbol).unwrap_or((text, ""));
        let metric = metric.trim().to_owned();
        let (number, suffix) = split_unit(value).with_context(|| format!("in the threshold {text:?}"))?;
        let bound = match (unit(&metric), suffix) {
            (Unit::Milliseconds, suffix) => match unit_seconds(suffix) {
                Some(seconds) => number * seconds * 1e3,
                None => bail!("the threshold {text:?} needs a unit of time: us, ms or s"),
            },
            (Unit::Percent, "%") | (Unit::Number, "") => number,
            (Unit::Percent, _) => bail!("the threshold {text:?} is on a share: write it with %"),
            (Unit::Number, suffix) => bail!("the threshold {text:?} is on a plain number, which has no unit {suffix:?}"),
        };
        Ok(Self { text: text.trim().to_owned(), metric, relation, bound })
    }
}

impl fmt::Display for Threshold {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text)
    }
}

impl Threshold {
    /// Refuses a condition on something that this scenario does not measure, before anything is sent.
    ///
    /// # Errors
    /// The metric is not known.
    pub fn check(&self, catalogue: &Catalogue) -> anyhow::Result<()> {
        catalogue.check(&self.metric).with_context(|| format!("in the threshold {:?}", self.text))
    }

    /// Judges. What was not measured does not hold, whatever the condition: a check that nothing was looked at for is no check. Counts of what should not
    /// happen are judged by the worst of several runs, all else by the median.
    #[must_use]
    pub fn judge(&self, runs: &[RunResult], summary: &BTreeMap<String, Spread>) -> ThresholdResult {
        let spread = summary.get(&self.metric).filter(|s| s.runs == runs.len());
        let measured = spread.map(|s| {
            if !judged_by_worst(&self.metric) {
                return s.median;
            }
            match self.relation {
                Relation::AtLeast | Relation::Above => s.min,
                Relation::AtMost | Relation::Below => s.max,
                Relation::Equal | Relation::Unequal if self.holds(s.min) => s.max,
                Relation::Equal | Relation::Unequal => s.min,
            }
        });
        let met = measured.is_some_and(|value| self.holds(value));
        let words = match measured {
            Some(value) => format!("{} is {}", self.metric, show(&self.metric, value)),
            None if self.metric.starts_with("recover") || self.metric.starts_with("latency-back") => {
                format!("{}: it had not recovered by the end", self.metric)
            }
            None => format!("{}: nothing was measured", self.metric),
        };
        ThresholdResult { threshold: self.text.clone(), measured, met, words }
    }

    fn holds(&self, value: f64) -> bool {
        match self.relation {
            Relation::AtMost => value <= self.bound,
            Relation::AtLeast => value >= self.bound,
            Relation::Below => value < self.bound,
            Relation::Above => value > self.bound,
            Relation::Equal => (value - self.bound).abs() < f64::EPSILON,
            Relation::Unequal => (value - self.bound).abs() >= f64::EPSILON,
        }
    }
}

/// A metric's value with its unit.
#[must_use]
pub fn show(metric: &str, value: f64) -> String {
    match unit(metric) {
        Unit::Milliseconds => show_ms(value),
        Unit::Percent => format!("{value:.3}%"),
        Unit::Number if value.fract().abs() < 1e-9 => crate::units::show_count(value),
        Unit::Number => format!("{value:.3}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn judged(text: &str, values: &[(&str, &[f64])], runs: usize) -> bool {
        let summary = values
            .iter()
            .map(|(name, v)| {
                let mut v = v.to_vec();
                v.sort_by(f64::total_cmp);
                ((*name).to_owned(), Spread { median: v[v.len() / 2], min: v[0], max: v[v.len() - 1], runs: v.len() })
            })
            .collect();
        let threshold: Threshold = text.parse().unwrap();
        let spread = summary;
        threshold.judge_counted(runs, &spread).met
    }

    impl Threshold {
        fn judge_counted(&self, runs: usize, summary: &BTreeMap<String, Spread>) -> ThresholdResult {
            let runs: Vec<RunResult> = (0..runs).map(|_| crate::tests_support::empty_run()).collect();
            self.judge(&runs, summary)
        }
    }

    #[test]
    fn conditions_hold_and_fail_at_their_bound() {
        assert!(judged("warm.p99<=20ms", &[("warm.p99", &[20.0])], 1));
        assert!(!judged("warm.p99<20ms", &[("warm.p99", &[20.0])], 1));
        assert!(judged("warm.p99 <= 0.02s", &[("warm.p99", &[20.0])], 1));
        assert!(!judged("warm.p99<=20ms", &[("warm.p99", &[20.1])], 1));
        assert!(judged("lost==0", &[("lost", &[0.0])], 1));
        assert!(!judged("lost==0", &[("lost", &[1.0])], 1));
        assert!(judged("phase.10x.goodput>=100", &[("phase.10x.goodput", &[100.0])], 1));
        assert!(judged("lost-rate<0.1%", &[("lost-rate", &[0.09])], 1));
        assert!(judged("warm.count!=0", &[("warm.count", &[1.0])], 1));
    }

    #[test]
    fn what_was_not_measured_does_not_hold() {
        for text in ["cold.p99<=1s", "cold.p99>=0ms", "recover<=1s"] {
            assert!(!judged(text, &[("warm.p99", &[1.0])], 1), "{text}");
        }
        assert!(!judged("cold.p99<=1s", &[("cold.p99", &[1.0, 1.0])], 3), "in each of the runs");
    }

    #[test]
    fn counts_are_judged_by_the_worst_run_and_latencies_by_the_median() {
        assert!(!judged("lost==0", &[("lost", &[0.0, 0.0, 1.0])], 3));
        assert!(!judged("lost<=0", &[("lost", &[0.0, 0.0, 1.0])], 3));
        assert!(judged("warm.p99<=20ms", &[("warm.p99", &[10.0, 15.0, 50.0])], 3));
    }

    #[test]
    fn malformed_conditions_are_refused() {
        for bad in ["", "lost", "lost=0", "warm.p99<=20", "lost<=20ms", "lost-rate<1", "warm.p99<=fast", "warm.p99<=20%", "<=3"] {
            assert!(bad.parse::<Threshold>().is_err() || bad == "<=3", "{bad}");
        }
        let names = Catalogue::new([], [], [], [], false);
        assert!("<=3".parse::<Threshold>().unwrap().check(&names).is_err());
    }
}
