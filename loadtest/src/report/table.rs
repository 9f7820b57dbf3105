//! The table in the terminal.

use crate::{
    results::{GroupResult, LatencySummary, Report, RunResult, Spread},
    threshold::show,
    units::{show_count, show_ms, show_rate},
};
use std::fmt::Write as _;

/// The whole result, for a terminal.
#[must_use]
pub fn table(report: &Report) -> String {
    let mut text = String::new();
    let Some(run) = report.median_run() else {
        text.push_str("stopped before anything was sent\n");
        return text;
    };
    let _ = writeln!(text, "\n{} against {}, seed {}", report.scenario, report.target, report.seed);
    if !report.changes.is_empty() {
        let _ = writeln!(text, "changed: {}", report.changes.join(" "));
    }
    for reason in &report.void {
        let _ = writeln!(text, "\n!!! VOID: the generator was the bottleneck: {reason}");
    }
    if report.interrupted {
        text.push_str("\n!!! interrupted: this is what there was until then\n");
    }
    latencies(&mut text, run);
    counts(&mut text, run);
    groups(&mut text, "phase", &run.phases);
    if run.streams.len() > 1 {
        groups(&mut text, "stream", &run.streams);
    }
    if run.kinds.len() > 1 {
        groups(&mut text, "function", &run.kinds);
    }
    others(&mut text, run);
    if report.runs.len() > 1 {
        spreads(&mut text, report);
    }
    if !report.thresholds.is_empty() {
        text.push('\n');
        for threshold in &report.thresholds {
            let _ =
                writeln!(text, "{}  {:<28} {}", if threshold.met { "ok  " } else { "FAIL" }, threshold.threshold, threshold.words);
        }
    }
    text
}

fn latency_row(text: &mut String, name: &str, l: &LatencySummary) {
    let _ = write!(text, "{name:<18}{:>10}", show_count(l.count as f64));
    for ms in [l.p50_ms, l.p90_ms, l.p99_ms, l.p999_ms, l.max_ms] {
        let _ = write!(text, "{:>10}", show_ms(ms));
    }
    text.push('\n');
}

fn latencies(text: &mut String, run: &RunResult) {
    let _ =
        writeln!(text, "\n{:<18}{:>10}{:>10}{:>10}{:>10}{:>10}{:>10}", "latency", "requests", "p50", "p90", "p99", "p99.9", "max");
    let total = &run.total.latency;
    let split = total.contains_key("warm") || total.contains_key("cold");
    for name in ["warm", "cold", "ok", "all"] {
        // Where the platform says warm and cold, the sum of both says less than either.
        if let Some(l) = total.get(name).filter(|_| !(split && name == "ok")) {
            latency_row(text, name, l);
        }
    }
    for (start, phases) in &run.timing {
        for phase in ["route", "claim", "modules", "load", "run"] {
            phases.get(phase).into_iter().for_each(|l| latency_row(text, &format!("  {start} {phase}"), l));
        }
    }
    run.generator.lag.iter().for_each(|l| latency_row(text, "sent late by", l));
}

fn counts(text: &mut String, run: &RunResult) {
    let total = &run.total;
    let _ = writeln!(
        text,
        "\n{} requests in {:.1} s: {} ok ({}/s), {} lost, {} turned away, {} not sent",
        show_count(total.offered as f64),
        run.seconds,
        show_count(total.ok as f64),
        show_rate(total.goodput),
        show_count(total.lost as f64),
        show_count(total.shed as f64),
        show_count(total.unsent as f64)
    );
    if !run.reasons.is_empty() {
        let _ = writeln!(text, "\n{:<10} {:<10} {:>9}  reason", "fault of", "form", "requests");
        for reason in &run.reasons {
            let _ = writeln!(
                text,
                "{:<10} {:<10} {:>9}  {}",
                reason.fault,
                reason.outcome,
                show_count(reason.count as f64),
                reason.reason
            );
        }
    }
}

fn groups(text: &mut String, what: &str, groups: &std::collections::BTreeMap<String, GroupResult>) {
    if groups.is_empty() {
        return;
    }
    let _ = writeln!(
        text,
        "\n{what:<18}{:>10}{:>10}{:>8}{:>8}{:>10}{:>10}{:>10}{:>10}",
        "offered/s", "ok/s", "lost", "shed", "warm p50", "warm p99", "cold p50", "cold p99"
    );
    for (name, group) in groups {
        let offered = if group.seconds > 0.0 { group.offered as f64 / group.seconds } else { 0.0 };
        let ms = |latency: &str, pick: fn(&LatencySummary) -> f64| {
            let fallback =
                if latency == "warm" { group.latency.get("ok").filter(|_| !group.latency.contains_key("cold")) } else { None };
            group.latency.get(latency).or(fallback).map_or_else(|| "-".to_owned(), |l| show_ms(pick(l)))
        };
        let _ = writeln!(
            text,
            "{name:<18}{:>10}{:>10}{:>8}{:>8}{:>10}{:>10}{:>10}{:>10}",
            show_rate(offered),
            show_rate(group.goodput),
            show_count(group.lost as f64),
            show_count(group.shed as f64),
            ms("warm", |l| l.p50_ms),
            ms("warm", |l| l.p99_ms),
            ms("cold", |l| l.p50_ms),
            ms("cold", |l| l.p99_ms)
        );
    }
}

fn others(text: &mut String, run: &RunResult) {
    if run.fairness.called > 1 {
        let _ = write!(
            text,
            "\n{} tenants called, fairness {:.4}, {} starved",
            run.fairness.called, run.fairness.jain, run.fairness.starved
        );
        if let (Some(median), Some(worst)) = (run.fairness.p99_median_ms, run.fairness.p99_worst_ms) {
            let _ = write!(text, "; p99 of the median tenant {}, of the worst {}", show_ms(median), show_ms(worst));
        }
        text.push('\n');
    }
    for (name, node) in &run.nodes {
        let _ = writeln!(text, "node {name}: {} answers, {} cold, {} errors", node.answers, node.cold, node.platform_errors);
    }
    for fault in &run.faults {
        let shown = |ms: Option<f64>| ms.map_or_else(|| "not by the end".to_owned(), show_ms);
        let _ = writeln!(
            text,
            "\nfault {} at {:.1} s: {} lost, losses ended after {}, latency was back after {}",
            fault.name,
            fault.at_s,
            fault.lost,
            shown(fault.recover_ms),
            shown(fault.latency_back_ms)
        );
        if let Some(error) = &fault.error {
            let _ = writeln!(text, "  its command failed: {error}");
        }
    }
    if let Some(deploys) = &run.deploys {
        let _ = write!(text, "\ndeploys: {} done", deploys.latency.map_or(0, |l| l.count));
        if let Some(l) = deploys.latency {
            let _ = write!(text, " (p50 {}, p99 {})", show_ms(l.p50_ms), show_ms(l.p99_ms));
        }
        let _ = writeln!(text, ", {} failed, {} answered by the version before", deploys.failed, deploys.stale);
        if let Some(error) = &deploys.error {
            let _ = writeln!(text, "  first failure: {error}");
        }
    }
}

/// Metrics whose spread over the runs is shown.
const SHOWN: [&str; 10] =
    ["warm.p50", "warm.p99", "cold.p50", "cold.p99", "ok.p50", "ok.p99", "goodput", "lost", "recover", "deploy.p99"];

fn spreads(text: &mut String, report: &Report) {
    let _ = writeln!(text, "\nover {} runs   {:>12}{:>12}{:>12}", report.runs.len(), "median", "least", "most");
    for name in SHOWN {
        if let Some(Spread { median, min, max, .. }) = report.summary.get(name) {
            let cells = [median, min, max].map(|v| show(name, *v));
            let _ = writeln!(text, "{name:<14}{:>12}{:>12}{:>12}", cells[0], cells[1], cells[2]);
        }
    }
}
