//! What router and node together add to a warm request, against the same container's socket spoken to directly; and how many requests the
//! router carries, against nginx in front of the same node. Real processes: etcd, the stand-in for AWS, one router, one node.

use crate::{
    Bench, CALL, HELLO, PATH,
    client::{Connection, Target, closed_loop, get},
    hop::NGINX_HOP_MS,
    median, reference,
    report::{Bound, Report},
};
use anyhow::{Context, Result, ensure};
use hearth_loadtest::bench as load;
use hearth_tests::{Cluster, Size};
use reqwest::Method;

/// Requests per second at which latency is measured.
const RATE: f64 = 1_000.0;

/// Measures it.
pub async fn measure(bench: &Bench, report: &mut Report) -> Result<()> {
    let cluster = Cluster::start(Size { etcd: 1, routers: 1, nodes: 1 }).await;
    let answer = cluster.api(&cluster.urls()[0], Method::PUT, "/tenants/bench", Some(crate::unlimited())).await;
    ensure!(answer.status == 201, "{}", answer.text);
    cluster.deploy("bench/m/hello", HELLO).await;
    let (router_url, node_url) = (cluster.urls().remove(0), cluster.nodes[0].url());
    let at = |url: &str| url.trim_start_matches("http://").to_owned();
    let request = get(PATH, &[]);
    let through = Target::Tcp(at(&router_url));
    Connection::open(&through).await?.exchange(&request).await?;
    let status = cluster.status(&node_url).await;
    let list = status["handler"]["list"].as_array().context("no list")?;
    let slot = list.iter().find(|c| c["path"] == "bench/m").and_then(|c| c["slot"].as_u64()).context("no such container")?;
    let socket = cluster.scratch().join(format!("node-0/data/slots/{slot}/run/http.sock"));
    let (_nginx, port) = reference::nginx_to(&bench.scratch("router")?, &at(&node_url), ("x-forwarded-proto", "http")).await?;
    let nginx = Target::Tcp(format!("127.0.0.1:{port}"));

    let direct = load::Target::unix(&socket, PATH)?.header("hearth-call", CALL)?;
    let whole = load::Target::url(&format!("{router_url}{PATH}")).await?;
    let (_hop, hop_port) = reference::nginx(&bench.scratch("hop")?, &socket, ("hearth-call", CALL)).await?;
    let hop = load::Target::url(&format!("http://127.0.0.1:{hop_port}{PATH}")).await?;
    let (mut added_p50, mut added_p99, mut nginx_p50, mut ratios, mut rates) = (vec![], vec![], vec![], vec![], vec![]);
    for turn in 0..=bench.turns() {
        let alone = load::open_loop(&direct, RATE, bench.turn()).await?;
        let whole = load::open_loop(&whole, RATE, bench.turn()).await?;
        let hop = load::open_loop(&hop, RATE, bench.turn()).await?;
        for (name, result) in [("the socket", &alone), ("the router", &whole), ("nginx", &hop)] {
            ensure!(result.failed == 0, "{name}: {} requests failed: {:?}", result.failed, result.failures);
        }
        let own = closed_loop(&through, &request, 32, bench.turn())?.per_second;
        let reference = closed_loop(&nginx, &request, 32, bench.turn())?.per_second;
        if turn > 0 {
            added_p50.push(whole.p50_ms() - alone.p50_ms());
            added_p99.push(whole.p99_ms() - alone.p99_ms());
            nginx_p50.push(hop.p50_ms() - alone.p50_ms());
            ratios.push(own / reference);
            rates.push(own);
        }
    }
    let (added, nginx) = (median(added_p50), median(nginx_p50));
    let note = format!("one nginx hop adds {nginx:.3} ms");
    report.add("warm request through router and node, added p50 at 1,000/s", added, "ms", Bound::AtMost(0.15), note);
    report.add(
        "the two hops, against one nginx hop",
        added / nginx,
        "times",
        Bound::AtMost(crate::rounded(0.15 / NGINX_HOP_MS)),
        "",
    );
    report.add("the same, added p99", median(added_p99), "ms", Bound::AtMost(2.0), "");
    let note = format!("{:.0} requests/s", median(rates));
    let name = "requests/s through the router, 32 connections, against nginx in front of the same node";
    report.add(name, median(ratios), "times", Bound::AtLeast(1.0), note);
    Ok(())
}
