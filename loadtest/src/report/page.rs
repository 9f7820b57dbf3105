//! The page: what an operator prints, mails, and keeps. One file without scripts, fonts or anything else from elsewhere.

use super::{
    plot::{Plot, Scale, escape},
    style::CSS,
};
use crate::{
    engine::Fault,
    results::{GroupResult, LatencySummary, Report, RunResult, SeriesResult},
    threshold::show,
    units::{show_count, show_ms, show_rate},
};
use std::{collections::BTreeMap, fmt::Write as _};

/// The page of a result; the plots show its median run.
#[must_use]
pub fn page(report: &Report) -> String {
    let title = format!("{} against {}", report.scenario, report.target);
    let mut html = format!(
        "<!doctype html>\n<html lang=en><meta charset=utf-8><meta name=viewport content='width=device-width,initial-scale=1'><title>{}</title><style>{CSS}</style>\n",
        escape(&title)
    );
    let _ = write!(html, "<h1>{}</h1><p>{}</p>", escape(&report.scenario), escape(&report.about));
    let Some(run) = report.median_run() else {
        html.push_str("<p>Stopped before anything was sent.</p>");
        return html;
    };
    head(&mut html, report, run);
    facts(&mut html, run);
    thresholds(&mut html, report);
    html.push_str("<h2>Latency</h2>");
    latency_table(&mut html, run);
    html.push_str(&latency_over_time(run));
    html.push_str(&percentile_curves(run));
    html.push_str(&cold_against_warm(run));
    html.push_str("<h2>Requests</h2>");
    html.push_str(&rate_over_time(run));
    html.push_str(&errors_over_time(run));
    reasons(&mut html, run);
    faults(&mut html, run);
    deploys(&mut html, run);
    for (what, groups, least) in [("Phases", &run.phases, 1), ("Streams", &run.streams, 2), ("Functions", &run.kinds, 2)] {
        if groups.len() >= least {
            group_table(&mut html, what, groups);
        }
    }
    nodes(&mut html, run);
    tenants(&mut html, run);
    html.push_str("<h2>The generator</h2>");
    html.push_str(&in_flight(run));
    runs(&mut html, report);
    let _ = writeln!(
        html,
        "<details><summary>The scenario</summary><pre>{}</pre></details><p class=soft>Made by hearth loadtest {} on {}, {} cores, {} sending threads.</p></html>",
        escape(&report.scenario_text),
        escape(&report.version),
        escape(&report.machine.kernel),
        report.machine.cores,
        report.machine.workers
    );
    html
}

fn head(html: &mut String, report: &Report, run: &RunResult) {
    let _ = write!(
        html,
        "<p class=soft>{} · {} · {:.0} s of load · seed {}{}{}</p>",
        escape(&report.target),
        escape(&run.started_at),
        run.seconds,
        report.seed,
        if report.runs.len() > 1 { format!(" · the median of {} runs", report.runs.len()) } else { String::new() },
        report.capacity.map_or_else(String::new, |c| format!(" · capacity {}/s", show_rate(c)))
    );
    if !report.changes.is_empty() {
        let _ = write!(html, "<p class=soft>Changed: {}</p>", escape(&report.changes.join(" ")));
    }
    if !report.void.is_empty() {
        let reasons: String = report.void.iter().map(|r| format!("<li>{}</li>", escape(r))).collect();
        let _ = write!(
            html,
            "<div class=void><b>Void: the generator was the bottleneck.</b> These figures are about it, not about the target.<ul>{reasons}</ul></div>"
        );
    }
    if report.interrupted {
        html.push_str("<div class=void><b>Interrupted.</b> This is what there was until then.</div>");
    }
    if !report.read.is_empty() {
        let _ = write!(html, "<p>{}</p>", escape(&report.read));
    }
}

fn facts(html: &mut String, run: &RunResult) {
    let mut facts = vec![
        (show_count(run.total.offered as f64), "requests".to_owned()),
        (format!("{}/s", show_rate(run.total.goodput)), "answered".to_owned()),
    ];
    let latency = &run.total.latency;
    for (name, quantile) in [("warm", "p50"), ("warm", "p99"), ("cold", "p50"), ("cold", "p99")] {
        if let Some(l) = latency.get(name) {
            let ms = if quantile == "p50" { l.p50_ms } else { l.p99_ms };
            facts.push((show_ms(ms), format!("{name} {quantile}")));
        }
    }
    if let Some(l) = latency.get("ok").filter(|_| !latency.contains_key("warm") && !latency.contains_key("cold")) {
        facts.extend([(show_ms(l.p50_ms), "p50".to_owned()), (show_ms(l.p99_ms), "p99".to_owned())]);
    }
    facts.push((show_count(run.total.lost as f64), "lost".to_owned()));
    facts.push((show_count(run.total.errors.values().sum::<u64>() as f64), "errors in all".to_owned()));
    html.push_str("<div class=facts>");
    for (value, name) in facts {
        let _ = write!(html, "<div class=fact><b>{}</b><span>{}</span></div>", escape(&value), escape(&name));
    }
    html.push_str("</div>");
}

fn thresholds(html: &mut String, report: &Report) {
    if report.thresholds.is_empty() {
        return;
    }
    html.push_str("<div class=scroll><table><tr><th>Condition<th class=left>Measured<th>");
    for threshold in &report.thresholds {
        let (class, word) = if threshold.met { ("good", "holds") } else { ("bad", "does not hold") };
        let _ = write!(
            html,
            "<tr><td>{}<td class=left>{}<td class={class}>{word}",
            escape(&threshold.threshold),
            escape(&threshold.words)
        );
    }
    html.push_str("</table></div>");
}

fn latency_row(html: &mut String, name: &str, l: &LatencySummary) {
    let _ = write!(html, "<tr><td>{}<td>{}", escape(name), show_count(l.count as f64));
    for ms in [l.mean_ms, l.p50_ms, l.p90_ms, l.p99_ms, l.p999_ms, l.max_ms] {
        let _ = write!(html, "<td>{}", show_ms(ms));
    }
}

fn latency_table(html: &mut String, run: &RunResult) {
    html.push_str("<p>From the moment a request was to be sent until its whole answer was there, so that waiting for a stalled target counts.</p><div class=scroll><table><tr><th><th>requests<th>mean<th>p50<th>p90<th>p99<th>p99.9<th>max");
    for (key, name) in [("warm", "warm"), ("cold", "cold"), ("ok", "all answered"), ("all", "all, failures included")] {
        run.total.latency.get(key).into_iter().for_each(|l| latency_row(html, name, l));
    }
    run.service.iter().for_each(|l| latency_row(html, "from the real sending (flatters)", l));
    for (start, phases) in &run.timing {
        for phase in ["route", "claim", "modules", "load", "run"] {
            phases.get(phase).into_iter().for_each(|l| latency_row(html, &format!("{start}, platform's {phase}"), l));
        }
    }
    run.generator.lag.iter().for_each(|l| latency_row(html, "requests were sent late by", l));
    html.push_str("</table></div>");
}

/// Middles of the intervals, in seconds, of those within the load.
fn moments(series: &SeriesResult, seconds: f64) -> Vec<f64> {
    let n = series.offered.len().min((seconds / series.width_s).ceil() as usize + 1);
    (0..n).map(|i| (i as f64 + 0.5) * series.width_s).collect()
}

/// The axis of time and its labels.
fn time_axis(xs: &[f64], series: &SeriesResult) -> (Scale, fn(f64) -> String) {
    let end = xs.last().map_or(1.0, |x| x + series.width_s / 2.0);
    let label: fn(f64) -> String = if end > 7_200.0 {
        |s| format!("{:.1} h", s / 3_600.0)
    } else if end > 300.0 {
        |s| format!("{:.0} min", s / 60.0)
    } else {
        |s| format!("{s:.0} s")
    };
    (Scale::Linear(0.0, end.max(series.width_s)), label)
}

fn end_of(run: &RunResult) -> f64 {
    run.series.offered.len() as f64 * run.series.width_s
}

fn mark_faults(plot: &mut Plot, run: &RunResult) {
    run.faults.iter().for_each(|f| plot.mark(f.at_s, &f.name));
}

fn warm_name(run: &RunResult) -> &'static str {
    if run.total.latency.contains_key("warm") { "warm" } else { "answered" }
}

fn latency_over_time(run: &RunResult) -> String {
    let series = &run.series;
    let xs = moments(series, end_of(run));
    let (x, label) = time_axis(&xs, series);
    let all = [&series.warm_p50_ms, &series.warm_p99_ms, &series.warm_max_ms, &series.cold_p50_ms, &series.cold_max_ms];
    let y = Scale::around(all.iter().flat_map(|s| s.iter().flatten().copied()));
    let mut plot = Plot::new(330.0, x, y, label, show_ms).titles("when the request was to be sent", "latency");
    let name = warm_name(run);
    let lines = [
        (format!("{name}, slowest"), 7, true, &series.warm_max_ms),
        (format!("{name} p99"), 1, false, &series.warm_p99_ms),
        (format!("{name} p50"), 0, false, &series.warm_p50_ms),
        ("cold, slowest".to_owned(), 4, true, &series.cold_max_ms),
        ("cold p50".to_owned(), 3, false, &series.cold_p50_ms),
    ];
    for (name, colour, dashed, values) in lines {
        plot.line(&name, colour, dashed, xs.iter().copied().zip(values.iter().copied()));
    }
    mark_faults(&mut plot, run);
    plot.figure("Latency over time.", &format!("Intervals of {}.", show_ms(series.width_s * 1e3)))
}

/// Where shares lie on the axis of a percentile curve: equal steps for each further nine.
fn nines(share: f64) -> f64 {
    1.0 / (1.0 - share).max(1e-6)
}

fn percentile_curves(run: &RunResult) -> String {
    let split = run.curves.contains_key("warm") || run.curves.contains_key("cold");
    let shown: Vec<(&str, &str, usize, bool)> = [
        ("warm", "warm", 0, false),
        ("cold", "cold", 3, false),
        ("ok", if split { "answered" } else { "from the intended moment" }, 2, false),
        ("service", "from the real sending (flatters)", 7, true),
    ]
    .into_iter()
    .filter(|(key, ..)| run.curves.contains_key(*key) && !(split && *key == "ok"))
    .collect();
    let points = || shown.iter().filter_map(|(key, ..)| run.curves.get(*key)).flatten();
    let deepest = points().map(|(q, _)| *q).filter(|q| *q < 1.0).fold(0.9, f64::max);
    let x = Scale::Log(1.0, nines(deepest) * 2.0);
    let y = Scale::around(points().map(|(_, ms)| *ms));
    let mut plot = Plot::without_x_ticks(330.0, x, y, show_ms).titles("share of the requests", "latency");
    for (share, text) in
        [(0.0, "0%"), (0.5, "50%"), (0.9, "90%"), (0.99, "99%"), (0.999, "99.9%"), (0.9999, "99.99%"), (0.99999, "99.999%")]
    {
        if share <= deepest {
            plot.x_label(nines(share), text);
        }
    }
    for (key, name, colour, dashed) in &shown {
        let curve = &run.curves[*key];
        // The slowest one stands where the axis ends.
        let points = curve.iter().map(|(q, ms)| (if *q >= 1.0 { nines(deepest) * 2.0 } else { nines(*q) }, Some(*ms)));
        plot.line(name, *colour, *dashed, points);
    }
    plot.figure("Percentiles.", "How many requests were at least this fast; the right end is the slowest.")
}

/// Bars of a distribution on a logarithmic axis.
fn density(run: &RunResult, cold: bool, low: f64, ratio: f64, bins: usize) -> (Vec<u64>, u64) {
    let mut counts = vec![0; bins];
    for slice in &run.slices {
        for (us, n) in if cold { &slice.cold } else { &slice.warm } {
            let bin = ((*us as f64 / 1e3 / low).max(1.0).ln() / ratio.ln()) as usize;
            counts[bin.min(bins - 1)] += n;
        }
    }
    let total = counts.iter().sum();
    (counts, total)
}

fn cold_against_warm(run: &RunResult) -> String {
    const BINS: usize = 70;
    let values = run.slices.iter().flat_map(|s| s.warm.iter().chain(&s.cold)).map(|(us, _)| *us as f64 / 1e3);
    let axis = Scale::around(values);
    let Scale::Log(low, high) = axis else { return String::new() };
    let ratio = (high / low).powf(1.0 / BINS as f64);
    let (warm, cold) = (density(run, false, low, ratio, BINS), density(run, true, low, ratio, BINS));
    let share = |(counts, total): &(Vec<u64>, u64), bin: usize| counts[bin] as f64 / (*total).max(1) as f64 * 100.0;
    let peak = (0..BINS).map(|b| share(&warm, b).max(share(&cold, b))).fold(0.0, f64::max);
    if peak <= 0.0 {
        return String::new();
    }
    let mut plot = Plot::new(260.0, axis, Scale::from_zero(peak), show_ms, |v| format!("{v:.0}%")).titles("latency", "share");
    for (colour, name, distribution) in [(0, warm_name(run), &warm), (1, "cold", &cold)] {
        if distribution.1 == 0 {
            continue;
        }
        for bin in 0..BINS {
            let height = share(distribution, bin);
            if height > 0.0 {
                let from = low * ratio.powi(bin as i32);
                let title = format!("{name}: {height:.2}% at {} to {}", show_ms(from), show_ms(from * ratio));
                plot.bar(colour, from, from * ratio, height, 0.7, &title);
            }
        }
        plot.name(name, colour);
    }
    let title = if cold.1 > 0 { "Cold against warm." } else { "Distribution." };
    plot.figure(title, "Share of the requests of each sort at each latency.")
}

fn per_second(counts: &[u32], width: f64) -> impl Iterator<Item = f64> + '_ {
    counts.iter().map(move |n| f64::from(*n) / width)
}

fn rate_over_time(run: &RunResult) -> String {
    let series = &run.series;
    let xs = moments(series, end_of(run));
    let (x, label) = time_axis(&xs, series);
    let peak = per_second(&series.offered, series.width_s).fold(0.0, f64::max);
    let mut plot = Plot::new(240.0, x, Scale::from_zero(peak), label, show_rate)
        .titles("when the request was to be sent", "requests per second");
    let lines =
        [("to be sent", 7, true, &series.offered), ("answered", 2, false, &series.ok), ("of these cold", 1, false, &series.cold)];
    for (name, colour, dashed, counts) in lines {
        if name != "of these cold" || counts.iter().any(|n| *n > 0) {
            plot.line(name, colour, dashed, xs.iter().copied().zip(per_second(counts, series.width_s).map(Some)));
        }
    }
    mark_faults(&mut plot, run);
    plot.figure("Rate.", "What was to be sent, and what of it was answered.")
}

fn errors_over_time(run: &RunResult) -> String {
    let series = &run.series;
    if run.total.errors.values().all(|n| *n == 0) && run.generator.unsent == 0 {
        return "<p>No request failed.</p>".to_owned();
    }
    let xs = moments(series, end_of(run));
    let (x, label) = time_axis(&xs, series);
    let rates = |counts: &[u32]| per_second(counts, series.width_s).take(xs.len()).collect::<Vec<f64>>();
    let none = Vec::new();
    let mut areas: Vec<(&str, usize, Vec<f64>)> = Fault::ERRORS
        .iter()
        .zip([4, 5, 3, 1])
        .map(|(fault, colour)| (fault.name(), colour, rates(series.errors.get(fault.name()).unwrap_or(&none))))
        .collect();
    areas.push(("not sent", 7, rates(&series.unsent)));
    let peak = (0..xs.len()).map(|i| areas.iter().map(|a| a.2.get(i).copied().unwrap_or(0.0)).sum()).fold(0.0, f64::max);
    let mut plot = Plot::new(220.0, x, Scale::from_zero(peak), label, show_rate)
        .titles("when the request was to be sent", "errors per second");
    let mut base = vec![0.0; xs.len()];
    for (name, colour, add) in &areas {
        if add.len() == xs.len() {
            base = plot.area(name, *colour, &xs, &base, add);
        }
    }
    mark_faults(&mut plot, run);
    plot.figure("Errors.", "By who is at fault, on top of each other.")
}

fn reasons(html: &mut String, run: &RunResult) {
    if run.reasons.is_empty() {
        return;
    }
    html.push_str("<div class=scroll><table><tr><th>Fault of<th class=left>Form<th>Requests<th class=left>Reason");
    for reason in &run.reasons {
        let _ = write!(
            html,
            "<tr><td>{}<td class=left>{}<td>{}<td class='left wrap'>{}",
            escape(&reason.fault),
            escape(&reason.outcome),
            show_count(reason.count as f64),
            escape(&reason.reason)
        );
    }
    html.push_str("</table></div>");
}

fn faults(html: &mut String, run: &RunResult) {
    if run.faults.is_empty() {
        return;
    }
    html.push_str("<h2>Faults</h2><div class=scroll><table><tr><th>Fault<th>At<th>Lost<th>Losses ended after<th>Latency back after<th class=left>Command");
    let shown = |ms: Option<f64>| ms.map_or_else(|| "<span class=bad>not by the end</span>".to_owned(), show_ms);
    for fault in &run.faults {
        let command = match (&fault.error, fault.took_s) {
            (Some(error), _) => format!("<span class=bad>failed: {}</span>", escape(error)),
            (None, Some(s)) => format!("took {}", show_ms(s * 1e3)),
            (None, None) => "still ran".to_owned(),
        };
        let _ = write!(
            html,
            "<tr><td>{}<td>{:.1} s<td>{}<td>{}<td>{}<td class='left wrap'>{command}",
            escape(&fault.name),
            fault.at_s,
            show_count(fault.lost as f64),
            shown(fault.recover_ms),
            shown(fault.latency_back_ms)
        );
    }
    html.push_str("</table></div>");
}

fn deploys(html: &mut String, run: &RunResult) {
    let Some(deploys) = &run.deploys else { return };
    let l = deploys.latency;
    let _ = write!(
        html,
        "<h2>Deploys</h2><div class=scroll><table><tr><th>done<th>p50<th>p99<th>slowest<th>failed<th>answered by the version before<tr><td>{}",
        l.map_or(0, |l| l.count)
    );
    for ms in l.map_or([f64::NAN; 3], |l| [l.p50_ms, l.p99_ms, l.max_ms]) {
        let _ = write!(html, "<td>{}", show_ms(ms));
    }
    let _ = write!(html, "<td>{}<td>{}</table></div>", deploys.failed, deploys.stale);
    if let Some(error) = &deploys.error {
        let _ = write!(html, "<p>The first that failed: {}</p>", escape(error));
    }
}

fn group_table(html: &mut String, what: &str, groups: &BTreeMap<String, GroupResult>) {
    let _ = write!(
        html,
        "<h2>{what}</h2><div class=scroll><table><tr><th><th>offered/s<th>answered/s<th>lost<th>turned away<th>warm p50<th>warm p99<th>cold p50<th>cold p99"
    );
    for (name, group) in groups {
        let offered = group.offered as f64 / group.seconds.max(1e-9);
        let _ = write!(
            html,
            "<tr><td>{}<td>{}<td>{}<td>{}<td>{}",
            escape(name),
            show_rate(offered),
            show_rate(group.goodput),
            show_count(group.lost as f64),
            show_count(group.shed as f64)
        );
        let warm = group.latency.get("warm").or_else(|| group.latency.get("ok").filter(|_| !group.latency.contains_key("cold")));
        for l in [warm, group.latency.get("cold")] {
            let cell = |pick: fn(&LatencySummary) -> f64| l.map_or_else(|| "-".to_owned(), |l| show_ms(pick(l)));
            let _ = write!(html, "<td>{}<td>{}", cell(|l| l.p50_ms), cell(|l| l.p99_ms));
        }
    }
    html.push_str("</table></div>");
}

fn nodes(html: &mut String, run: &RunResult) {
    if run.nodes.is_empty() {
        return;
    }
    html.push_str("<h2>Nodes</h2>");
    let series = &run.series;
    if run.nodes.len() > 1 {
        let xs = moments(series, end_of(run));
        let (x, label) = time_axis(&xs, series);
        let peak = series.nodes.values().flat_map(|c| per_second(c, series.width_s)).fold(0.0, f64::max);
        let mut plot = Plot::new(230.0, x, Scale::from_zero(peak), label, show_rate)
            .titles("when the request was to be sent", "answers per second");
        for (index, (name, counts)) in series.nodes.iter().enumerate() {
            plot.line(name, index, index >= 8, xs.iter().copied().zip(per_second(counts, series.width_s).map(Some)));
        }
        mark_faults(&mut plot, run);
        html.push_str(&plot.figure("Load by node.", "Who answered."));
    }
    html.push_str("<div class=scroll><table><tr><th>Node<th>answers<th>share<th>cold<th>errors of the platform");
    let total: u64 = run.nodes.values().map(|n| n.answers).sum();
    for (name, node) in &run.nodes {
        let _ = write!(
            html,
            "<tr><td>{}<td>{}<td>{:.1}%<td>{}<td>{}",
            escape(name),
            show_count(node.answers as f64),
            node.answers as f64 / total.max(1) as f64 * 100.0,
            show_count(node.cold as f64),
            show_count(node.platform_errors as f64)
        );
    }
    html.push_str("</table></div>");
}

fn tenants(html: &mut String, run: &RunResult) {
    let fairness = &run.fairness;
    if fairness.called < 2 {
        return;
    }
    let _ = write!(
        html,
        "<h2>Tenants</h2><p>{} were called. Fairness {:.4}: 1 when all had the same share of their requests served. {} starved.</p>",
        show_count(fairness.called as f64),
        fairness.jain,
        fairness.starved
    );
    if fairness.p99_curve_ms.len() > 1 {
        let last = (fairness.p99_curve_ms.len() - 1) as f64;
        let y = Scale::around(fairness.p99_curve_ms.iter().copied());
        let mut plot = Plot::new(200.0, Scale::Linear(0.0, 100.0), y, |v| format!("{v:.0}%"), show_ms)
            .titles("share of the tenants", "p99 of a tenant");
        let points = fairness.p99_curve_ms.iter().enumerate().map(|(i, ms)| (i as f64 / last * 100.0, Some(*ms)));
        plot.line("p99", 0, false, points);
        html.push_str(&plot.figure("Each tenant's p99, in order.", "Of tenants with 20 answers or more, exact to an eighth."));
    }
    html.push_str("<div class=scroll><table><tr><th>Served worst<th>calls<th>served<th>p99");
    for tenant in fairness.worst.iter().take(5) {
        let _ = write!(
            html,
            "<tr><td>{}<td>{}<td>{}<td>{}",
            escape(&tenant.tenant),
            tenant.offered,
            tenant.served,
            tenant.p99_ms.map_or_else(|| "-".to_owned(), show_ms)
        );
    }
    html.push_str("</table></div>");
}

fn in_flight(run: &RunResult) -> String {
    let series = &run.series;
    let xs = moments(series, end_of(run));
    let (x, label) = time_axis(&xs, series);
    let peak = series.in_flight.iter().copied().max().unwrap_or(0);
    let mut plot = Plot::new(190.0, x, Scale::from_zero(f64::from(peak)), label, show_rate).titles("time", "requests in flight");
    plot.line("in flight", 6, false, xs.iter().copied().zip(series.in_flight.iter().map(|n| Some(f64::from(*n)))));
    mark_faults(&mut plot, run);
    let caption = format!(
        "At most {}, the bound is {}.",
        show_count(run.generator.in_flight_peak as f64),
        show_count(run.generator.in_flight_max as f64)
    );
    plot.figure("In flight.", &caption)
}

fn runs(html: &mut String, report: &Report) {
    if report.runs.len() < 2 {
        return;
    }
    let _ = write!(html, "<h2>Over {} runs</h2><div class=scroll><table><tr><th><th>median<th>least<th>most", report.runs.len());
    for name in ["warm.p50", "warm.p99", "cold.p50", "cold.p99", "ok.p50", "ok.p99", "goodput", "lost", "recover", "deploy.p99"] {
        if let Some(spread) = report.summary.get(name) {
            let _ = write!(html, "<tr><td>{name}");
            for value in [spread.median, spread.min, spread.max] {
                let _ = write!(html, "<td>{}", show(name, value));
            }
        }
    }
    html.push_str("</table></div>");
}
