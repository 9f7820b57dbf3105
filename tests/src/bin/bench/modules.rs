//! Cold starts of functions with npm modules: plain, popular, and against the size of their node_modules; what creating them costs.

use crate::{
    Bench, HELLO,
    client::Figures,
    cold::first_requests,
    median,
    platform::Platform,
    reference,
    report::{Bound, Report},
};
use anyhow::{Context, Result};
use serde_json::{Value, json};
use std::{
    path::PathBuf,
    process::Stdio,
    time::{Duration, Instant},
};
use tokio::io::AsyncWriteExt;

const CODE: &str = "const e = require('express'), _ = require('lodash'); const app = e(); app.use((req, res) => res.json({ v: _.VERSION })); module.exports = app;";
/// Containers in the pool.
const POOL: usize = 8;
const EXPRESS: &str = "4.21.2";
/// One file of the same size, within a hundredth (4.17.16 is six hundred small ones).
const LODASH: [&str; 9] = ["4.17.21", "4.17.20", "4.17.19", "4.17.18", "4.17.17", "4.17.15", "4.17.14", "4.17.13", "4.17.12"];
/// Others of it that load as much, so that no set shares a module with another, which would be popular alone.
const OTHER_EXPRESS: [&str; LODASH.len() - 1] = ["4.21.1", "4.21.0", "4.20.0", "4.22.1", "4.22.0", "4.19.2", "4.19.1", "4.18.3"];
/// The fraction of a size's functions that only warm up the machine's caches.
const FIRST: usize = 1;

/// What the two requires took on the machine whose milliseconds the promises are in (56 to 65 ms): the ratio to it holds on any machine.
const PLAIN_MS: f64 = 60.0;
const REQUIRES: &str = "process.stdin.once('data', () => { const began = process.hrtime.bigint(); require('express'); require('lodash'); console.log(Number(process.hrtime.bigint() - began) / 1e6); process.exit(); });";

/// A bare Node.js that has waited like a container of the pool, with both modules installed as npm does.
struct PlainNode {
    node: PathBuf,
    dir: PathBuf,
}

impl PlainNode {
    fn new(bench: &Bench) -> Result<Self> {
        let node = reference::packages(&bench.root.join("target/bench-references"))?;
        let dir = reference::install(&bench.scratch("plain")?, &[("express", EXPRESS), ("lodash", LODASH[0])])?;
        Ok(Self { node, dir })
    }

    /// Milliseconds that it needs for both.
    async fn requires(&self) -> Result<f64> {
        let mut command = tokio::process::Command::new(&self.node);
        command.args(["-e", REQUIRES]).current_dir(&self.dir).stdin(Stdio::piped()).stdout(Stdio::piped()).kill_on_drop(true);
        let mut child = command.spawn()?;
        tokio::time::sleep(Duration::from_secs(1)).await;
        child.stdin.take().context("a pipe")?.write_all(b"go").await?;
        let output = child.wait_with_output().await?;
        Ok(String::from_utf8(output.stdout)?.trim().parse()?)
    }
}

/// Measures all of it.
pub async fn measure(bench: &Bench, report: &mut Report) -> Result<()> {
    let platform = bench.platform("modules", POOL).await?;
    let result = async {
        let function = function(CODE, json!({ "express": EXPRESS, "lodash": LODASH[0] }));
        let began = Instant::now();
        platform.deploy("first/main/f", &function).await?;
        report.add(
            "first create with express and lodash, their builds included",
            began.elapsed().as_secs_f64(),
            "s",
            Bound::Open,
            "",
        );
        popular(bench, report, &platform).await?;
        not_popular(bench, report, &platform).await?;
        sizes(bench, report, &platform).await
    }
    .await;
    platform.stop();
    result
}

/// Milliseconds of a phase in the head of an answer.
fn phase(head: &str, name: &str) -> f64 {
    let timing = head.lines().find(|l| l.starts_with("server-timing:")).unwrap_or_default();
    timing.split(&format!("{name};dur=")).nth(1).and_then(|t| t.split([',', ' ']).next()?.trim().parse().ok()).unwrap_or(f64::NAN)
}

fn function(code: &str, dependencies: Value) -> Value {
    json!({ "code": code, "dependencies": dependencies })
}

async fn popular(bench: &Bench, report: &mut Report, platform: &Platform) -> Result<()> {
    let function = function(CODE, json!({ "express": EXPRESS, "lodash": LODASH[0] }));
    let paths: Vec<String> = (0..bench.many(20) + 3).map(|n| format!("mod{n}/main/f")).collect();
    let mut creates = vec![];
    for path in &paths {
        let began = Instant::now();
        platform.deploy(path, &function).await?;
        creates.push(began.elapsed());
    }
    creates.sort_unstable();
    let creates = Figures { sorted: creates, per_second: f64::NAN };
    let of = format!("of {}", paths.len());
    report.add("another tenant's create with known modules, p99", creates.ms(0.99), "ms", Bound::AtMost(500.0), of);
    let (first, heads) = first_requests(platform, &paths[..1], true).await?;
    let note = format!("{:.0} ms of it fetching, unpacking and mounting", phase(&heads[0], "modules"));
    report.add("first start on a node that has not express and lodash yet", first.ms(0.5), "ms", Bound::Open, note);
    first_requests(platform, &paths[1..3], true).await?;
    // By now the node knows that they are popular, and has them loaded in waiting containers.
    let plain = PlainNode::new(bench)?;
    let (mut times, mut bare) = (vec![], vec![]);
    for path in &paths[3..] {
        platform.wait_for_preloaded().await?;
        platform.wait_until_quiet(POOL).await?;
        times.push(first_requests(platform, std::slice::from_ref(path), true).await?.0.ms(0.5));
        bare.push(plain.requires().await?);
    }
    let of = format!("of {}", times.len());
    let ratio = median(times.iter().zip(&bare).map(|(time, bare)| time / bare).collect());
    report.add("cold start with express and lodash once popular, p50", median(times), "ms", Bound::AtMost(10.0), of);
    report.add(
        "once popular, against a bare Node.js that loads them",
        ratio,
        "times",
        Bound::AtMost(crate::rounded(10.0 / PLAIN_MS)),
        "",
    );
    Ok(())
}

/// Each pair of versions makes a set of modules of its own, which is not popular yet when it is started for the second time. A bare
/// Node.js takes turns with them.
async fn not_popular(bench: &Bench, report: &mut Report, platform: &Platform) -> Result<()> {
    let plain = PlainNode::new(bench)?;
    let (mut times, mut bare, mut attach) = (vec![], vec![], vec![]);
    for (express, version) in OTHER_EXPRESS.iter().zip(&LODASH[1..]).take(bench.many(OTHER_EXPRESS.len())) {
        let function = function(CODE, json!({ "express": express, "lodash": version }));
        let of = |n: usize| vec![format!("set{n}x{}/main/f", version.replace('.', "-"))];
        for n in 0..2 {
            platform.deploy(&of(n)[0], &function).await?;
        }
        first_requests(platform, &of(0), true).await?;
        platform.wait_until_quiet(POOL).await?;
        let (figures, heads) = first_requests(platform, &of(1), true).await?;
        times.push(figures.ms(0.5));
        attach.push(phase(&heads[0], "modules") / 2.0);
        bare.push(plain.requires().await?);
    }
    let of = format!("of {}, a set of modules each", times.len());
    let ratio = median(times.iter().zip(&bare).map(|(time, bare)| time / bare).collect());
    report.add("cold start with express and lodash, not popular, p50", median(times), "ms", Bound::AtMost(30.0), of);
    let note = format!("a bare Node.js that waited as long needs {:.1} ms for the two requires", median(bare));
    report.add(
        "the same, against a bare Node.js that loads them",
        ratio,
        "times",
        Bound::AtMost(crate::rounded(30.0 / PLAIN_MS)),
        note,
    );
    report.add("attaching one module to a running container", median(attach), "ms", Bound::Open, "files of the function included");
    Ok(())
}

/// Functions that have modules but do not load them: what remains is what their size costs. What loading costs stands beside it.
async fn sizes(bench: &Bench, report: &mut Report, platform: &Platform) -> Result<()> {
    let sets = [
        ("0 MB", "", json!({})),
        ("5 MB", "stripe", json!({ "stripe": "17.5.0" })),
        ("25 MB", "@aws-sdk/client-s3", json!({ "@aws-sdk/client-s3": "3.726.1" })),
        ("120 MB", "googleapis", json!({ "googleapis": "144.0.0" })),
    ];
    let each = bench.many(20);
    // All are there and fetched before the first is measured, and sizes take turns.
    let mut paths = vec![];
    for (n, (_, _, dependencies)) in sets.iter().enumerate() {
        let of_size: Vec<String> = (0..each + FIRST).map(|i| format!("size{n}x{i}/main/f")).collect();
        for path in &of_size {
            platform.deploy(path, &function(HELLO, dependencies.clone())).await?;
        }
        first_requests(platform, &of_size[..FIRST], true).await?;
        paths.push(of_size);
    }
    let mut times = vec![vec![]; sets.len()];
    for i in FIRST..each + FIRST {
        for (of_size, times) in paths.iter().zip(&mut times) {
            platform.wait_until_quiet(POOL).await?;
            times.push(first_requests(platform, &of_size[i..=i], true).await?.0.ms(0.5));
        }
    }
    let medians: Vec<f64> = times.into_iter().map(median).collect();
    for ((size, name, dependencies), ms) in sets.iter().zip(&medians) {
        let note = if name.is_empty() { String::new() } else { loading(platform, name, dependencies).await? };
        report.add(&format!("cold start with {size} of node_modules on the node, p50"), *ms, "ms", Bound::Open, note);
    }
    let slope = medians[sets.len() - 1] - medians[0];
    report.add(
        "slope of the cold start from 0 to 120 MB of node_modules",
        slope,
        "ms",
        Bound::AtMost(10.0),
        "without loading them",
    );
    Ok(())
}

/// What it takes to load the module, for the note: that time is the module's own.
async fn loading(platform: &Platform, name: &str, dependencies: &Value) -> Result<String> {
    let code = format!("const m = require('{name}'); module.exports = cb => cb(null, typeof m);");
    let path = format!("loads{}/main/f", name.len());
    platform.deploy(&path, &function(&code, dependencies.clone())).await?;
    let (_, heads) = first_requests(platform, &[path], true).await?;
    Ok(format!("loading {name} takes {:.0} ms more", phase(&heads[0], "load")))
}
