//! What the node adds to a warm request, and how many it carries, against the same container's socket spoken to directly and through nginx.

use crate::{
    Bench, CALL, HELLO, PATH,
    client::{Connection, Target, closed_loop, get},
    median,
    platform::Platform,
    reference,
    report::{Bound, Report},
};
use anyhow::{Context, Result, ensure};
use hearth_loadtest::bench as load;
use std::path::PathBuf;

/// Requests per second at which latency is measured.
const RATE: f64 = 1_000.0;

/// What one nginx hop added on the machine whose milliseconds the promises are in: the ratio to it holds on any machine.
pub const NGINX_HOP_MS: f64 = 0.045;

/// The data socket of the container that serves `path`.
async fn socket_of(platform: &Platform, path: &str) -> Result<PathBuf> {
    let status = platform.status().await?;
    let list = status.pointer("/handler/list").and_then(|l| l.as_array()).context("no list")?;
    let slot = list.iter().find(|c| c["path"] == path).and_then(|c| c["slot"].as_u64()).context("no such container")?;
    Ok(platform.data_dir.join(format!("slots/{slot}/run/http.sock")))
}

/// Measures it.
pub async fn measure(bench: &Bench, report: &mut Report) -> Result<()> {
    let platform = bench.platform("hop", 2).await?;
    let result = against(bench, report, &platform).await;
    platform.stop();
    result
}

async fn against(bench: &Bench, report: &mut Report, platform: &Platform) -> Result<()> {
    platform.put("/tenants/bench", &crate::unlimited()).await?;
    platform.deploy_code("bench/m/hello", HELLO).await?;
    let through = Target::Tcp(platform.url.trim_start_matches("http://").to_owned());
    let request = get(PATH, &[]);
    Connection::open(&through).await?.exchange(&request).await?;
    let socket = socket_of(platform, "bench/m").await?;
    let dir = bench.scratch("hop")?;
    let (_nginx, port) = reference::nginx(&dir, &socket, ("hearth-call", CALL)).await?;
    let nginx = Target::Tcp(format!("127.0.0.1:{port}"));
    let direct = load::Target::unix(&socket, PATH)?.header("hearth-call", CALL)?;
    let node = load::Target::url(&format!("{}{PATH}", platform.url)).await?;
    let hop = load::Target::url(&format!("http://127.0.0.1:{port}{PATH}")).await?;

    let (mut added_p50, mut added_p99, mut nginx_p50, mut ratios, mut rates) = (vec![], vec![], vec![], vec![], vec![]);
    for turn in 0..=bench.turns() {
        let alone = load::open_loop(&direct, RATE, bench.turn()).await?;
        let node = load::open_loop(&node, RATE, bench.turn()).await?;
        let hop = load::open_loop(&hop, RATE, bench.turn()).await?;
        for (name, result) in [("the socket", &alone), ("the node", &node), ("nginx", &hop)] {
            ensure!(result.failed == 0, "{name}: {} requests failed: {:?}", result.failed, result.failures);
        }
        let own = closed_loop(&through, &request, 32, bench.turn())?.per_second;
        let reference = closed_loop(&nginx, &request, 32, bench.turn())?.per_second;
        if turn > 0 {
            added_p50.push(node.p50_ms() - alone.p50_ms());
            added_p99.push(node.p99_ms() - alone.p99_ms());
            nginx_p50.push(hop.p50_ms() - alone.p50_ms());
            ratios.push(own / reference);
            rates.push(own);
        }
    }
    let (added, nginx) = (median(added_p50), median(nginx_p50));
    report.add(
        "warm request through the node, added p50 at 1,000/s",
        added,
        "ms",
        Bound::AtMost(0.1),
        format!("one nginx hop adds {nginx:.3} ms"),
    );
    report.add("the same, against one nginx hop", added / nginx, "times", Bound::AtMost(crate::rounded(0.1 / NGINX_HOP_MS)), "");
    report.add("the same, added p99", median(added_p99), "ms", Bound::AtMost(2.0), "");
    let note = format!("{:.0} requests/s", median(rates));
    report.add("requests/s through the node, 32 connections, against nginx", median(ratios), "times", Bound::AtLeast(1.0), note);
    Ok(())
}
