//! What a run came to, as it stands in `--json`, from which everything else is made: the table, the page, thresholds, comparisons.

mod build;
mod fairness;
mod metrics;
mod recover;

pub use metrics::{Catalogue, Unit, judged_by_worst, unit};

use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;

/// The form of the JSON; another major number is refused by `compare`.
pub const FORMAT: &str = "hearth-loadtest/1";

/// Everything about one call of the tool.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Report {
    /// [`FORMAT`].
    pub format: String,
    /// The tool's version.
    pub version: String,
    /// The scenario's name.
    pub scenario: String,
    /// What it is about.
    pub about: String,
    /// What to look at.
    pub read: String,
    /// The scenario as it was run.
    pub scenario_text: String,
    /// Changes to it by flags.
    pub changes: Vec<String>,
    /// Where requests went.
    pub target: String,
    /// The seed.
    pub seed: u64,
    /// The machine that generated the load.
    pub machine: Machine,
    /// The capacity that rates were multiples of, in requests per second.
    pub capacity: Option<f64>,
    /// Every run.
    pub runs: Vec<RunResult>,
    /// Every metric over the runs.
    pub summary: BTreeMap<String, Spread>,
    /// The conditions and whether they hold.
    pub thresholds: Vec<ThresholdResult>,
    /// Why the results are void, if they are.
    pub void: Vec<String>,
    /// Whether somebody stopped it before its end.
    pub interrupted: bool,
}

/// The machine that generated the load.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Machine {
    /// Its cores.
    pub cores: usize,
    /// Threads that sent.
    pub workers: usize,
    /// Its kernel.
    pub kernel: String,
}

/// One metric over the runs.
#[derive(Debug, Clone, Copy, Serialize, Deserialize)]
pub struct Spread {
    /// The median run's.
    pub median: f64,
    /// The least.
    pub min: f64,
    /// The greatest.
    pub max: f64,
    /// In how many runs there was a value.
    pub runs: usize,
}

/// A condition.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct ThresholdResult {
    /// As it was written.
    pub threshold: String,
    /// What was measured; none where nothing was.
    pub measured: Option<f64>,
    /// Whether it holds.
    pub met: bool,
    /// In words.
    pub words: String,
}

/// One run.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct RunResult {
    /// When it began, in UTC.
    pub started_at: String,
    /// How long load was sent, without the warm-up.
    pub seconds: f64,
    /// All requests.
    pub total: GroupResult,
    /// By stream.
    pub streams: BTreeMap<String, GroupResult>,
    /// By named step.
    pub phases: BTreeMap<String, GroupResult>,
    /// By kind of function.
    pub kinds: BTreeMap<String, GroupResult>,
    /// By outcome.
    pub outcomes: BTreeMap<String, u64>,
    /// What went wrong, by outcome and reason; the most frequent first.
    pub reasons: Vec<Reason>,
    /// By node, where the answers name it.
    pub nodes: BTreeMap<String, NodeResult>,
    /// The platform's phases, in milliseconds: `warm` and `cold`, then the phase.
    pub timing: BTreeMap<String, BTreeMap<String, LatencySummary>>,
    /// From sending to the end of the answer, of the successful ones: what a tool that waits for its turn would report.
    pub service: Option<LatencySummary>,
    /// To the answer's head, of the successful ones.
    pub head: Option<LatencySummary>,
    /// How the load was generated.
    pub generator: Generator,
    /// Fairness between tenants.
    pub fairness: Fairness,
    /// What was done to the target.
    pub faults: Vec<FaultResult>,
    /// Deploys under load.
    pub deploys: Option<DeployResult>,
    /// Bytes of answers' bodies.
    pub bytes: u64,
    /// Percentile curves: share of requests, milliseconds.
    pub curves: BTreeMap<String, Vec<(f64, f64)>>,
    /// Over time.
    pub series: SeriesResult,
    /// The run in pieces, for the uncertainty of comparisons.
    pub slices: Vec<Slice>,
    /// Everything that thresholds and comparisons can name. Times are in milliseconds.
    pub metrics: BTreeMap<String, f64>,
}

/// One group of requests.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct GroupResult {
    /// Requests that were to be sent.
    pub offered: u64,
    /// Not sent.
    pub unsent: u64,
    /// Answered.
    pub ok: u64,
    /// Turned away with the request to come back.
    pub shed: u64,
    /// Lost.
    pub lost: u64,
    /// By fault.
    pub errors: BTreeMap<String, u64>,
    /// Over so many seconds.
    pub seconds: f64,
    /// Answered per second.
    pub goodput: f64,
    /// `all`, `ok`, `warm`, `cold`, where there were any.
    pub latency: BTreeMap<String, LatencySummary>,
}

/// A distribution.
#[derive(Debug, Clone, Copy, Serialize, Deserialize)]
#[allow(missing_docs)]
pub struct LatencySummary {
    pub count: u64,
    pub mean_ms: f64,
    pub p50_ms: f64,
    pub p75_ms: f64,
    pub p90_ms: f64,
    pub p95_ms: f64,
    pub p99_ms: f64,
    pub p999_ms: f64,
    pub max_ms: f64,
}

/// How often something went wrong for one reason.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Reason {
    /// The outcome's name.
    pub outcome: String,
    /// Who is at fault.
    pub fault: String,
    /// In words.
    pub reason: String,
    /// How often.
    pub count: u64,
}

/// One node.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[allow(missing_docs)]
pub struct NodeResult {
    pub answers: u64,
    pub cold: u64,
    pub platform_errors: u64,
}

/// How the load was generated.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Generator {
    /// How late requests were sent.
    pub lag: Option<LatencySummary>,
    /// Not sent at all.
    pub unsent: u64,
    /// Most in flight.
    pub in_flight_peak: u64,
    /// The bound.
    pub in_flight_max: u64,
}

/// Fairness between tenants.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
pub struct Fairness {
    /// Jain's index over the tenants' shares of served requests: 1 when all are served alike, 1/n when one alone is.
    pub jain: f64,
    /// Tenants that were called.
    pub called: usize,
    /// Tenants with five calls or more of which none was served.
    pub starved: usize,
    /// The median tenant's p99, to an eighth.
    pub p99_median_ms: Option<f64>,
    /// The worst tenant's p99 among those with 20 answers or more, to an eighth.
    pub p99_worst_ms: Option<f64>,
    /// The tenants that fared worst.
    pub worst: Vec<TenantResult>,
    /// p99 of tenants in order, at equal distances.
    pub p99_curve_ms: Vec<f64>,
}

/// One tenant.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[allow(missing_docs)]
pub struct TenantResult {
    pub tenant: String,
    pub offered: u32,
    pub served: u32,
    pub p99_ms: Option<f64>,
}

/// One fault.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct FaultResult {
    /// Its name.
    pub name: String,
    /// When, from the start of the load.
    pub at_s: f64,
    /// How long its command ran.
    pub took_s: Option<f64>,
    /// What went wrong with the command.
    pub error: Option<String>,
    /// Requests lost because of it.
    pub lost: u64,
    /// From the fault to the last lost request; none while requests were still lost at the end.
    pub recover_ms: Option<f64>,
    /// From the fault until p99 was back below twice its value before; none where it was not, or nothing was there to compare with.
    pub latency_back_ms: Option<f64>,
}

/// Deploys under load.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[allow(missing_docs)]
pub struct DeployResult {
    pub latency: Option<LatencySummary>,
    pub failed: u64,
    pub stale: u64,
    pub error: Option<String>,
}

/// A run over time; all lists have one entry per interval.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
#[allow(missing_docs)]
pub struct SeriesResult {
    pub width_s: f64,
    pub offered: Vec<u32>,
    pub ok: Vec<u32>,
    pub cold: Vec<u32>,
    pub lost: Vec<u32>,
    pub unsent: Vec<u32>,
    pub in_flight: Vec<u32>,
    pub errors: BTreeMap<String, Vec<u32>>,
    pub warm_p50_ms: Vec<Option<f64>>,
    pub warm_p99_ms: Vec<Option<f64>>,
    pub warm_max_ms: Vec<Option<f64>>,
    pub cold_p50_ms: Vec<Option<f64>>,
    pub cold_max_ms: Vec<Option<f64>>,
    pub nodes: BTreeMap<String, Vec<u32>>,
}

/// A piece of a run.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
pub struct Slice {
    /// Its length.
    pub seconds: f64,
    /// Requests that were to be sent.
    pub offered: u64,
    /// Answered.
    pub ok: u64,
    /// Lost.
    pub lost: u64,
    /// Microseconds and how often, of answers that were not cold.
    pub warm: Vec<(u64, u64)>,
    /// The same of cold ones.
    pub cold: Vec<(u64, u64)>,
}

impl Report {
    /// Reads what `--json` wrote.
    ///
    /// # Errors
    /// Not such a file, or of a form that this version does not know.
    pub fn read(path: &std::path::Path) -> anyhow::Result<Self> {
        use anyhow::Context as _;
        let text = std::fs::read(path).with_context(|| format!("reading {}", path.display()))?;
        let value: serde_json::Value = serde_json::from_slice(&text).with_context(|| format!("{} is not JSON", path.display()))?;
        let format = value.get("format").and_then(|f| f.as_str()).unwrap_or("nothing");
        if format != FORMAT {
            anyhow::bail!("{} has the format {format:?}, this version reads {FORMAT:?}", path.display());
        }
        serde_json::from_value(value).with_context(|| format!("{} is damaged", path.display()))
    }

    /// The median run, by p99 of all requests: the one that the plots show.
    #[must_use]
    pub fn median_run(&self) -> Option<&RunResult> {
        let mut order: Vec<&RunResult> = self.runs.iter().collect();
        order.sort_by(|a, b| {
            let p99 = |r: &RunResult| r.metrics.get("all.p99").copied().unwrap_or(0.0);
            p99(a).total_cmp(&p99(b))
        });
        order.get(order.len().saturating_sub(1) / 2).copied()
    }
}

/// Every metric over the runs.
#[must_use]
pub fn summarise(runs: &[RunResult]) -> BTreeMap<String, Spread> {
    let names: std::collections::BTreeSet<&String> = runs.iter().flat_map(|r| r.metrics.keys()).collect();
    names
        .into_iter()
        .map(|name| {
            let mut values: Vec<f64> = runs.iter().filter_map(|r| r.metrics.get(name).copied()).collect();
            values.sort_by(f64::total_cmp);
            let middle = values.len() / 2;
            let median = if values.len() % 2 == 1 { values[middle] } else { (values[middle - 1] + values[middle]) / 2.0 };
            (name.clone(), Spread { median, min: values[0], max: values[values.len() - 1], runs: values.len() })
        })
        .collect()
}
