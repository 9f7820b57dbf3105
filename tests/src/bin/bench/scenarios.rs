//! Promises about a platform under a kind of day, measured by the load test's own scenarios against a running `hearth up`.

use crate::{
    Bench,
    platform::Platform,
    report::{Bound, Report},
};
use anyhow::{Context, Result, bail};
use serde_json::Value;
use std::process::Command;

/// Runs them.
pub async fn measure(bench: &Bench, report: &mut Report) -> Result<()> {
    let platform = bench.platform("scenarios", 8).await?;
    let result = all(bench, report, &platform);
    platform.stop();
    result
}

fn all(bench: &Bench, report: &mut Report, platform: &Platform) -> Result<()> {
    let mixed = Run::of(bench, platform, "mixed", 0.1)?;
    report.add("a mixed day: requests lost", mixed.get("lost")?, "", mixed.bound(Bound::AtMost(0.0)), mixed.note());
    report.add("the same, fairness between tenants", mixed.get("fairness")?, "", mixed.bound(Bound::AtLeast(0.99)), mixed.note());

    let noisy = Run::of(bench, platform, "noisy-neighbour", 0.2)?;
    let ratio = noisy.get("phase.noise.p99")? / noisy.get("phase.calm.p99")?;
    report.add(
        "p99 of quiet tenants beside a noisy one, against calm",
        ratio,
        "times",
        noisy.bound(Bound::AtMost(1.5)),
        noisy.note(),
    );
    report.add("their errors", noisy.get("stream.quiet.errors")?, "", noisy.bound(Bound::AtMost(0.0)), noisy.note());

    let burst = Run::of(bench, platform, "cold-burst", 1.0)?;
    report.add("100 tenants never seen, at once: lost", burst.get("lost")?, "", burst.bound(Bound::AtMost(0.0)), burst.note());
    report.add("the same, the slowest", burst.get("cold.max")? / 1e3, "s", Bound::Open, burst.note());

    let deploys = Run::of(bench, platform, "deploy-under-load", 0.2)?;
    report.add("deploys under load: requests lost", deploys.get("lost")?, "", deploys.bound(Bound::AtMost(0.0)), deploys.note());
    report.add(
        "the same, calls answered by the version before",
        deploys.get("deploy.stale")?,
        "",
        deploys.bound(Bound::AtMost(0.0)),
        deploys.note(),
    );

    let overload = Run::of(bench, platform, "overload", 0.2)?;
    let share = overload.get("phase.10x.goodput")? / overload.get("phase.half.goodput")? / 2.0 * 100.0;
    report.add(
        "goodput at ten times the capacity, of the capacity",
        share,
        "%",
        overload.bound(Bound::AtLeast(80.0)),
        overload.note(),
    );
    let recover = overload.get("latency-back.overload ends").unwrap_or(f64::NAN) / 1e3;
    report.add("the same, latency back after the end", recover, "s", overload.bound(Bound::AtMost(10.0)), overload.note());
    Ok(())
}

/// One scenario's result.
struct Run {
    metrics: Value,
    void: bool,
}

impl Run {
    /// Runs it; where it is only to be seen that it runs, shortened to `quick` of its length.
    fn of(bench: &Bench, platform: &Platform, scenario: &str, quick: f64) -> Result<Self> {
        let json = bench.scratch("scenarios")?.join(format!("{scenario}.json"));
        let mut command = Command::new(&bench.hearth);
        command.args([
            "loadtest",
            scenario,
            "--quiet",
            "--no-scenario-thresholds",
            // The generator shares its two cores with the platform and all of its containers.
            "--max-lag",
            "50ms",
            "--url",
            &platform.url,
            "--token",
            platform.token(),
        ]);
        command.arg(format!("--json={}", json.display()));
        command.arg(format!("--report={}", json.with_extension("html").display()));
        if bench.quick && quick < 1.0 {
            command.args(["--time-scale", &quick.to_string()]);
        }
        let output = command.output().context("hearth loadtest")?;
        let void = match output.status.code() {
            Some(0) => false,
            // Generator and platform share this machine: what it could not send is said beside the figure.
            Some(11) => true,
            code => bail!("{scenario} ended with {code:?}: {}", String::from_utf8_lossy(&output.stderr)),
        };
        let mut result: Value = serde_json::from_slice(&std::fs::read(&json).context("no result")?)?;
        let metrics = result.pointer_mut("/runs/0/metrics").map(Value::take).context("no metrics")?;
        Ok(Self { metrics, void })
    }

    fn get(&self, metric: &str) -> Result<f64> {
        self.metrics.get(metric).and_then(Value::as_f64).with_context(|| format!("{metric} was not measured"))
    }

    /// A void result is about the generator: it neither keeps a promise nor breaks one.
    fn bound(&self, bound: Bound) -> Bound {
        if self.void { Bound::Open } else { bound }
    }

    fn note(&self) -> String {
        if self.void { "void: the generator shares the machine and was the bottleneck".into() } else { String::new() }
    }
}
