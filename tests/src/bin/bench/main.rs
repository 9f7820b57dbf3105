//! `make bench`: what the README promises, measured. Every figure is held against a reference in the same run where it can be, runs
//! take turns so that the machine's moods hit both, and medians are what is told. Ends with 1 when a promise is broken.

mod client;
mod platform;
mod reference;

use anyhow::{Context, Result};
use client::{Connection, Figures, Target, closed_loop, get, open_loop};
use platform::Platform;
use serde_json::json;
use std::{
    fs,
    path::{Path, PathBuf},
    time::{Duration, Instant},
};

const HELLO: &str = "export default () => new Response('hello world');";
const CALL: &str = "hello@1 bench 30000 18 127.0.0.1";
const PATH: &str = "/run/bench/m/hello";
/// Turns of each comparison.
const TURNS: usize = 3;
const TURN: Duration = Duration::from_secs(4);

struct Row {
    promise: String,
    figure: String,
    target: String,
    kept: Option<bool>,
}

#[derive(Default)]
struct Report(Vec<Row>);

impl Report {
    fn add(&mut self, promise: &str, figure: String, target: &str, kept: Option<bool>) {
        eprintln!("{:<62} {figure:<44} {target}  {}", promise, kept.map_or("", |k| if k { "kept" } else { "BROKEN" }));
        self.0.push(Row { promise: promise.into(), figure, target: target.into(), kept });
    }
}

fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    values[values.len() / 2]
}

fn main() -> Result<()> {
    let root = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("..").canonicalize()?;
    let dir = tempfile::tempdir()?;
    let packages = root.join("target/bench-references");
    let node = reference::packages(&packages)?;
    let runtime = tokio::runtime::Runtime::new()?;
    let mut report = Report::default();
    let only = std::env::args().nth(1);
    let wanted = |name: &str| only.as_deref().is_none_or(|o| o == name);
    let binary = root.join("target/release/hearth");
    anyhow::ensure!(binary.exists(), "{} is missing: `make bench` builds it", binary.display());

    if wanted("runtime") {
        runtime.block_on(runtime_alone(&mut report, &node, &packages, &root.join("runtime"), dir.path()))?;
    }
    if wanted("node") || wanted("cold") || wanted("modules") {
        let platform = runtime.block_on(Platform::start(&binary, dir.path(), 8))?;
        let outcome = runtime.block_on(async {
            if wanted("node") {
                node_hop(&mut report, &platform, dir.path()).await?;
            }
            if wanted("cold") {
                cold_starts(&mut report, &platform).await?;
                memory(&mut report, &platform).await?;
                refill(&mut report, &platform).await?;
            }
            if wanted("modules") {
                modules(&mut report, &platform).await?;
            }
            Ok::<_, anyhow::Error>(())
        });
        platform.stop();
        outcome?;
    }
    print(&report, &root)
}

fn print(report: &Report, root: &Path) -> Result<()> {
    let mut table = String::from("| promise | measured | target |\n| --- | --- | --- |\n");
    for row in &report.0 {
        let mark = if row.kept == Some(false) { " (**not kept**)" } else { "" };
        table.push_str(&format!("| {} | {}{mark} | {} |\n", row.promise, row.figure, row.target));
    }
    fs::write(root.join("target/bench.md"), &table)?;
    println!("{table}");
    let broken = report.0.iter().filter(|r| r.kept == Some(false)).count();
    anyhow::ensure!(broken == 0, "{broken} promises are not kept on this machine, now");
    Ok(())
}

async fn runtime_alone(report: &mut Report, node: &Path, packages: &Path, program: &Path, dir: &Path) -> Result<()> {
    let (_raw, raw) = reference::node_server(node, packages, dir, false).await?;
    let (_express, express) = reference::node_server(node, packages, dir, true).await?;
    let own = reference::runtime(node, program, dir, "index.mjs", HELLO).await?;
    let (mut of_raw, mut of_express, mut rates) = (vec![], vec![], vec![]);
    let call = get(PATH, &[("hearth-call", CALL)]);
    for turn in 0..=TURNS {
        let raw = closed_loop(&Target::Unix(raw.clone()), &get("/", &[]), 32, TURN)?.per_second;
        let own = closed_loop(&Target::Unix(own.socket.clone()), &call, 32, TURN)?.per_second;
        let express = closed_loop(&Target::Unix(express.clone()), &get("/", &[]), 32, TURN)?.per_second;
        // The first turn warms all three.
        if turn > 0 {
            of_raw.push(own / raw);
            of_express.push(own / express);
            rates.push(own);
        }
    }
    let (of_raw, of_express) = (median(of_raw), median(of_express));
    let figure = format!("{of_raw:.2} of raw node:http ({:.0}/s)", median(rates));
    report.add("runtime alone, hello world, 32 connections", figure, ">= 0.7", Some(of_raw >= 0.7));
    report.add("the same against an express hello", format!("{of_express:.1} times"), ">= 4", Some(of_express >= 4.0));
    Ok(())
}

/// The data socket of the container that serves `path`.
async fn socket_of(platform: &Platform, path: &str) -> Result<PathBuf> {
    let status = platform.status().await?;
    let list = status.pointer("/handler/list").and_then(|l| l.as_array()).context("no list")?;
    let slot = list.iter().find(|c| c["path"] == path).and_then(|c| c["slot"].as_u64()).context("no such container")?;
    Ok(platform.data_dir.join(format!("slots/{slot}/run/http.sock")))
}

async fn node_hop(report: &mut Report, platform: &Platform, dir: &Path) -> Result<()> {
    platform.deploy_code("bench/m/hello", HELLO).await?;
    let through = Target::Tcp(platform.url.trim_start_matches("http://").to_owned());
    let request = get(PATH, &[]);
    Connection::open(&through).await?.exchange(&request).await?;
    let socket = socket_of(platform, "bench/m").await?;
    let direct = Target::Unix(socket.clone());
    let direct_request = get(PATH, &[("hearth-call", CALL)]);
    let (_nginx, port) = reference::nginx(dir, &socket, ("hearth-call", CALL)).await?;
    let nginx = Target::Tcp(format!("127.0.0.1:{port}"));

    let (mut added_p50, mut p99, mut ratios, mut rates) = (vec![], vec![], vec![], vec![]);
    for turn in 0..=TURNS {
        let alone: Figures = open_loop(&direct, &direct_request, 1_000, TURN)?;
        let node = open_loop(&through, &request, 1_000, TURN)?;
        let own = closed_loop(&through, &request, 32, TURN)?.per_second;
        let reference = closed_loop(&nginx, &request, 32, TURN)?.per_second;
        if turn > 0 {
            added_p50.push(node.ms(0.5) - alone.ms(0.5));
            p99.push(node.ms(0.99) - alone.ms(0.99));
            ratios.push(own / reference);
            rates.push(own);
        }
    }
    let (p50, p99, ratio) = (median(added_p50), median(p99), median(ratios));
    report.add("warm request through the node, added p50 at 1,000/s", format!("{p50:.3} ms"), "<= 0.1 ms", Some(p50 <= 0.1));
    report.add("the same, added p99", format!("{p99:.3} ms"), "<= 2 ms", Some(p99 <= 2.0));
    let figure = format!("{ratio:.2} of nginx ({:.0}/s)", median(rates));
    report.add("requests/s through the node, 32 connections", figure, ">= 1.0", Some(ratio >= 1.0));
    Ok(())
}

/// First request of each of these functions, each with a connection of its own that is open already.
async fn first_requests(platform: &Platform, paths: &[String], pool: bool) -> Result<(Figures, Vec<String>)> {
    let target = Target::Tcp(platform.url.trim_start_matches("http://").to_owned());
    let (mut durations, mut heads) = (vec![], vec![]);
    for path in paths {
        if pool {
            platform.wait_for_pool(4).await?;
            // What made the pool full is over by then.
            tokio::time::sleep(Duration::from_millis(150)).await;
        }
        let mut connection = Connection::open(&target).await?;
        let request = get(&format!("/run/{path}"), &[]);
        let sent = Instant::now();
        let (status, head) = connection.exchange(&request).await?;
        durations.push(sent.elapsed());
        anyhow::ensure!(status == 200, "{path} answered with {status}: {head}");
        anyhow::ensure!(head.contains("hearth-start: cold"), "{path} was warm already");
        heads.push(head);
    }
    durations.sort_unstable();
    Ok((Figures { sorted: durations, per_second: f64::NAN }, heads))
}

async fn cold_starts(report: &mut Report, platform: &Platform) -> Result<()> {
    let paths: Vec<String> = (0..60).map(|n| format!("cold{n}/main/f")).collect();
    for path in &paths {
        platform.deploy_code(path, HELLO).await?;
    }
    let (figures, _) = first_requests(platform, &paths, true).await?;
    let (p50, p99) = (figures.ms(0.5), figures.ms(0.99));
    report.add("cold start, no dependencies, pool not empty, p50", format!("{p50:.1} ms"), "<= 5 ms", Some(p50 <= 5.0));
    report.add("the same, p99 (of 60)", format!("{p99:.1} ms"), "<= 15 ms", Some(p99 <= 15.0));
    Ok(())
}

/// Proportional memory of every process of every claimed container, their shims included.
async fn memory(report: &mut Report, platform: &Platform) -> Result<()> {
    let status = platform.status().await?;
    let containers = status.pointer("/handler/containers/running").and_then(serde_json::Value::as_u64).unwrap_or(0)
        + status.pointer("/handler/pool/level").and_then(serde_json::Value::as_u64).unwrap_or(0);
    let instance = fs::read_to_string(platform.data_dir.join("instance"))?;
    let label = format!("label=hearth.instance={}", instance.trim());
    let ids = std::process::Command::new("docker").args(["ps", "-q", "--no-trunc", "--filter", &label]).output()?;
    let ids: Vec<String> = String::from_utf8(ids.stdout)?.lines().map(str::to_owned).collect();
    let mut kib = 0_u64;
    for entry in fs::read_dir("/proc")?.flatten() {
        let dir = entry.path();
        let cgroup = fs::read_to_string(dir.join("cgroup")).unwrap_or_default();
        let command = fs::read_to_string(dir.join("cmdline")).unwrap_or_default();
        let ours = ids
            .iter()
            .any(|id| cgroup.contains(id.as_str()) || (command.contains("containerd-shim") && command.contains(id.as_str())));
        if ours {
            let rollup = fs::read_to_string(dir.join("smaps_rollup")).unwrap_or_default();
            kib += rollup
                .lines()
                .find_map(|l| l.strip_prefix("Pss:")?.trim().trim_end_matches(" kB").parse::<u64>().ok())
                .unwrap_or(0);
        }
    }
    let mib = kib as f64 / 1_024.0 / ids.len().max(1) as f64;
    let figure = format!("{mib:.1} MB ({} containers, {containers} known)", ids.len());
    report.add("memory of an idle container, shim included", figure, "<= 14 MB", Some(mib <= 14.0));
    Ok(())
}

async fn refill(report: &mut Report, platform: &Platform) -> Result<()> {
    platform.wait_for_pool(8).await?;
    let made =
        |status: &serde_json::Value| status.pointer("/handler/pool/refills").and_then(serde_json::Value::as_u64).unwrap_or(0);
    let before = made(&platform.status().await?);
    let paths: Vec<String> = (0..8).map(|n| format!("refill{n}/main/f")).collect();
    for path in &paths {
        platform.deploy_code(path, HELLO).await?;
    }
    let began = Instant::now();
    first_requests(platform, &paths, false).await?;
    platform.wait_for_pool(8).await?;
    let elapsed = began.elapsed().as_secs_f64();
    let per_s = (made(&platform.status().await?) - before) as f64 / elapsed;
    report.add("pool refill", format!("{per_s:.1} containers/s"), ">= 10/s", Some(per_s >= 10.0));
    Ok(())
}

fn phase(head: &str, name: &str) -> f64 {
    let timing = head.lines().find(|l| l.starts_with("server-timing:")).unwrap_or_default();
    timing.split(&format!("{name};dur=")).nth(1).and_then(|t| t.split([',', ' ']).next()?.trim().parse().ok()).unwrap_or(f64::NAN)
}

async fn modules(report: &mut Report, platform: &Platform) -> Result<()> {
    let both = json!({ "express": "4.21.2", "lodash": "4.17.21" });
    let code = "const e = require('express'), _ = require('lodash'); const app = e(); app.use((req, res) => res.json({ v: _.VERSION })); module.exports = app;";
    let function = json!({ "code": code, "dependencies": both });
    platform.deploy("mod0/main/f", &function).await?;
    let known = |n: usize| format!("mod{n}/main/f");
    let (mut creates, paths) = (vec![], (1..=40).map(known).collect::<Vec<_>>());
    for path in &paths {
        let began = Instant::now();
        platform.deploy(path, &function).await?;
        creates.push(began.elapsed());
    }
    let (first, heads) = first_requests(platform, &["mod0/main/f".into()], true).await?;
    let figure = format!("{:.0} ms in all, {:.0} of it fetching and mounting", first.ms(0.5), phase(&heads[0], "modules"));
    report.add("first start on a node that has not express and lodash yet", figure, "", None);
    let (plain, heads) = first_requests(platform, &paths[..3], true).await?;
    let attach = median(heads.iter().map(|h| phase(h, "modules")).collect());
    report.add(
        "cold start with express and lodash, p50 of the first 3",
        format!("{:.1} ms", plain.ms(0.5)),
        "<= 30 ms",
        Some(plain.ms(0.5) <= 30.0),
    );
    report.add("of it files and two mounts", format!("{attach:.2} ms"), "", None);
    // By now the node knows that they are popular, and has them loaded in waiting containers.
    platform.wait_for_preloaded().await?;
    let mut popular = vec![];
    for path in &paths[3..23] {
        platform.wait_for_preloaded().await?;
        popular.extend(first_requests(platform, std::slice::from_ref(path), true).await?.0.sorted);
    }
    popular.sort_unstable();
    let popular = Figures { sorted: popular, per_second: f64::NAN };
    report.add("the same once popular, p50 of 20", format!("{:.1} ms", popular.ms(0.5)), "<= 10 ms", Some(popular.ms(0.5) <= 10.0));
    creates.sort_unstable();
    let creates = Figures { sorted: creates, per_second: f64::NAN };
    report.add(
        "create with known modules, p99 of 40",
        format!("{:.0} ms", creates.ms(0.99)),
        "<= 500 ms",
        Some(creates.ms(0.99) <= 500.0),
    );
    slope(report, platform).await
}

/// Functions that have modules but do not load them: what remains is what their size costs.
async fn slope(report: &mut Report, platform: &Platform) -> Result<()> {
    let sets = [("0 MB", json!({})), ("5 MB", json!({ "stripe": "17.5.0" })), ("120 MB", json!({ "googleapis": "144.0.0" }))];
    let mut medians = vec![];
    for (n, (size, dependencies)) in sets.iter().enumerate() {
        let function = json!({ "code": HELLO, "dependencies": dependencies });
        let paths: Vec<String> = (0..8).map(|i| format!("size{n}x{i}/main/f")).collect();
        for path in &paths {
            platform.deploy(path, &function).await?;
        }
        first_requests(platform, &paths[..1], true).await?;
        let (figures, _) = first_requests(platform, &paths[1..], true).await?;
        report.add(
            &format!("cold start with {size} of node_modules on the node, p50"),
            format!("{:.1} ms", figures.ms(0.5)),
            "",
            None,
        );
        medians.push(figures.ms(0.5));
    }
    let slope = medians[2] - medians[0];
    report.add("slope of the cold start from 0 to 120 MB", format!("{slope:.1} ms"), "<= 10 ms", Some(slope <= 10.0));
    Ok(())
}
