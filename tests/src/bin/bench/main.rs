//! `make bench`: what the README promises, measured. Every figure is held against a reference in the same run where it can be, runs
//! take turns so that the machine's moods hit both, and medians are what is told. Ends with 1 when a promise is broken.
//!
//!     bench [PART...] [--json FILE] [--hearth FILE] [--quick] [--list]
//!
//! Each part stands alone. `--quick` shortens everything, to see that it runs; its figures are no figures.

// Its figures are what it is for.
#![allow(clippy::print_stdout, clippy::print_stderr)]

mod client;
mod cold;
mod density;
mod generator;
mod halting;
mod hop;
mod modules;
mod neighbour;
mod placement;
mod platform;
mod reference;
mod report;
mod router;
mod runtime;
mod scenarios;

use anyhow::{Context, Result, bail};
use platform::Platform;
use report::Report;
use std::{path::PathBuf, process::ExitCode, time::Duration};

/// The function that most parts call.
pub const HELLO: &str = "export default () => new Response('hello world');";
/// Where it is called.
pub const PATH: &str = "/run/bench/m/hello";
/// The header by which the runtime knows what is called.
pub const CALL: &str = "hello@1 bench 30000 18 127.0.0.1";

/// A bound to two decimals, as it is shown.
pub fn rounded(bound: f64) -> f64 {
    (bound * 100.0).round() / 100.0
}

/// Limits that no closed loop reaches; a tenant's own would cut it at 20,000/s.
pub fn unlimited() -> serde_json::Value {
    serde_json::json!({ "limits": { "rate_per_s": 10_000_000, "burst": 10_000_000 } })
}

/// The parts and what they measure, in the order in which they run.
const PARTS: [(&str, &str); 12] = [
    ("runtime", "the runtime alone against raw node:http and express"),
    ("hop", "a warm request through the node against the same runtime directly, requests per second against nginx"),
    (
        "router",
        "a warm request through router and node against the runtime directly, requests per second against nginx before the node",
    ),
    ("placement", "routing decisions, loads and moves among 1,000 nodes and 1,000,000 containers, simulated"),
    ("cold", "cold starts without modules; what refilling costs warm requests"),
    ("refill", "containers that the pool gains per second"),
    ("memory", "memory of an idle container"),
    ("modules", "cold starts with modules, what the size of node_modules costs, creates with known modules"),
    ("disk", "bytes on disk for many tenants with the same modules"),
    ("generator", "the load generator's ceiling beside wrk and h2load"),
    ("neighbour", "what attacks of every kind cost the tenant beside them, and how fast all is back"),
    ("scenarios", "the load test's scenarios: neighbours, overload, bursts, deploys"),
];

/// What all parts share.
pub struct Bench {
    /// The repository.
    pub root: PathBuf,
    /// Files of this run.
    pub dir: PathBuf,
    /// The binary under test.
    pub hearth: PathBuf,
    /// Only to see that it runs.
    pub quick: bool,
}

impl Bench {
    /// Turns of each comparison, after a first one that warms everything.
    pub fn turns(&self) -> usize {
        if self.quick { 1 } else { 5 }
    }

    /// Length of a turn.
    pub fn turn(&self) -> Duration {
        if self.quick { Duration::from_secs(1) } else { Duration::from_secs(4) }
    }

    /// So many, or a few where it is only to be seen that it runs.
    pub fn many(&self, wanted: usize) -> usize {
        if self.quick { wanted.div_ceil(10).max(2) } else { wanted }
    }

    /// A fresh directory for a part.
    pub fn scratch(&self, name: &str) -> Result<PathBuf> {
        let dir = self.dir.join(name);
        std::fs::create_dir_all(&dir)?;
        Ok(dir)
    }

    /// A running platform for a part.
    pub async fn platform(&self, name: &str, pool_size: usize) -> Result<Platform> {
        Platform::start(&self.hearth, &self.scratch(name)?, pool_size).await
    }
}

/// The middle one.
pub fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    values.get(values.len() / 2).copied().unwrap_or(f64::NAN)
}

struct Wanted {
    parts: Vec<String>,
    json: Option<PathBuf>,
    hearth: Option<PathBuf>,
    quick: bool,
}

fn wanted() -> Result<Option<Wanted>> {
    let mut wanted = Wanted { parts: Vec::new(), json: None, hearth: None, quick: false };
    let mut words = std::env::args().skip(1);
    while let Some(word) = words.next() {
        match word.as_str() {
            "--list" => return Ok(None),
            "--quick" => wanted.quick = true,
            "--json" => wanted.json = Some(words.next().context("--json needs a file")?.into()),
            "--hearth" => wanted.hearth = Some(words.next().context("--hearth needs a file")?.into()),
            part if PARTS.iter().any(|(name, _)| *name == part) => wanted.parts.push(word),
            other => bail!("{other:?} is no part: there are {}", PARTS.map(|(name, _)| name).join(", ")),
        }
    }
    Ok(Some(wanted))
}

fn main() -> ExitCode {
    match run() {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("bench: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run() -> Result<()> {
    let Some(wanted) = wanted()? else {
        PARTS.iter().for_each(|(name, about)| println!("{name:<10} {about}"));
        return Ok(());
    };
    let root = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("..").canonicalize()?;
    let target = std::env::var_os("CARGO_TARGET_DIR").map_or_else(|| root.join("target"), PathBuf::from);
    let hearth = wanted.hearth.unwrap_or_else(|| target.join("release/hearth"));
    anyhow::ensure!(hearth.exists(), "{} is missing: `make bench` builds it", hearth.display());
    hearth_tests::use_binary(hearth.canonicalize()?);
    let scratch = tempfile::Builder::new().prefix("hearth-bench-").tempdir()?;
    let bench = Bench { root, dir: scratch.path().to_owned(), hearth: hearth.canonicalize()?, quick: wanted.quick };
    let mut report = Report::default();
    let tasks = tokio::runtime::Runtime::new()?;
    for (name, _) in PARTS {
        if wanted.parts.is_empty() || wanted.parts.iter().any(|p| p == name) {
            report.begin(name);
            if let Err(error) = tasks.block_on(part(name, &bench, &mut report)) {
                report.fail(&error);
            }
        }
    }
    let result = report.publish(&wanted.json.unwrap_or_else(|| target.join("bench.json")), wanted.quick);
    if !report.complete() {
        // Logs of what did not end are worth more than a tidy /tmp.
        eprintln!("files of this run: {}", scratch.keep().display());
    }
    result
}

async fn part(name: &str, bench: &Bench, report: &mut Report) -> Result<()> {
    match name {
        "runtime" => runtime::measure(bench, report).await,
        "hop" => hop::measure(bench, report).await,
        "router" => router::measure(bench, report).await,
        "placement" => placement::measure(bench, report),
        "cold" => cold::measure(bench, report).await,
        "refill" => density::refill(bench, report).await,
        "memory" => density::memory(bench, report).await,
        "modules" => modules::measure(bench, report).await,
        "disk" => density::disk(bench, report).await,
        "neighbour" => neighbour::measure(bench, report).await,
        "generator" => generator::measure(bench, report).await,
        _ => scenarios::measure(bench, report).await,
    }
}
