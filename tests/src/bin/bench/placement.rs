//! Placement at its full size: 1,000 nodes and 1,000,000 containers, simulated by `placement/examples/size.rs`, whose figures these are.

use crate::{
    Bench,
    report::{Bound, Report},
};
use anyhow::{Context, Result};
use serde_json::Value;
use std::process::{Command, Stdio};

/// Measures it.
pub fn measure(bench: &Bench, report: &mut Report) -> Result<()> {
    let mut command = Command::new("cargo");
    command.args(["run", "--release", "--locked", "--quiet", "--package", "hearth-placement", "--example", "size", "--"]);
    if bench.quick {
        command.args(["100", "50000"]);
    }
    // It ends with 1 when a promise is broken, as this program does; its figures are there all the same.
    let output = command.current_dir(&bench.root).stderr(Stdio::inherit()).output().context("starting cargo")?;
    let figures: Value = serde_json::from_slice(&output.stdout).context("the simulation gave no figures")?;
    let get = |name: &str| figures[name].as_f64().with_context(|| format!("no {name} in {figures}"));
    let size = format!("{} nodes, {} containers, Zipf 1.1", figures["nodes"], figures["containers"]);
    report.add("routing decision, p99", get("decision_ns_p99")? / 1e3, "us", Bound::AtMost(1.0), size.clone());
    report.add("the fullest node against the mean", get("max_over_mean")?, "times", Bound::AtMost(1.25), size);
    let n = "in parts of 1/N";
    report.add("containers that move when a node joins", get("moved_on_join_times_n")?, "/N", Bound::AtMost(1.2), n);
    report.add("containers that move when a node leaves", get("moved_on_leave_times_n")?, "/N", Bound::AtMost(1.2), n);
    let note = format!("the whole table takes {:.1} MB", get("table_bytes")? / 1e6);
    report.add("router's memory per known exception", get("bytes_per_exception")?, "bytes", Bound::AtMost(1_024.0), note);
    let note = format!("the slowest of {} plans", figures["plans"]);
    report.add("one plan", get("plan_ms_max")?, "ms", Bound::Open, note);
    Ok(())
}
