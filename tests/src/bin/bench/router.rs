//! What router and node together add to a warm request, against the same container's socket spoken to directly; and how many requests the
//! router carries, against nginx in front of the same node. Real processes: etcd, the stand-in for AWS, one router, one node.

use crate::{
    Bench, CALL, HELLO, PATH,
    client::{Connection, Target, closed_loop, get},
    halting::{Polling, poll_ns},
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

/// What a request goes to.
struct Targets {
    /// The container's socket.
    direct: load::Target,
    /// The router.
    whole: load::Target,
    /// nginx before that socket.
    hop: load::Target,
}

/// What a turn shows, and all of them.
#[derive(Clone, Copy, Default)]
struct Added<T = Vec<f64>> {
    p50: T,
    p99: T,
    nginx: T,
}

impl Added {
    fn push(&mut self, turn: Added<f64>) {
        self.p50.push(turn.p50);
        self.p99.push(turn.p99);
        self.nginx.push(turn.nginx);
    }
}

impl Targets {
    /// Milliseconds that the way through router and node adds, and nginx.
    async fn added(&self, bench: &Bench) -> Result<Added<f64>> {
        let alone = load::open_loop(&self.direct, RATE, bench.turn()).await?;
        let whole = load::open_loop(&self.whole, RATE, bench.turn()).await?;
        let hop = load::open_loop(&self.hop, RATE, bench.turn()).await?;
        for (name, result) in [("the socket", &alone), ("the router", &whole), ("nginx", &hop)] {
            ensure!(result.failed == 0, "{name}: {} requests failed: {:?}", result.failed, result.failures);
        }
        Ok(Added {
            p50: whole.p50_ms() - alone.p50_ms(),
            p99: whole.p99_ms() - alone.p99_ms(),
            nginx: hop.p50_ms() - alone.p50_ms(),
        })
    }
}

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
    let targets = Targets { direct, whole, hop };
    // A machine whose CPUs poll already, or which has no such setting, is measured as it is.
    let poll_ns = poll_ns();
    let halts = poll_ns == Some(0);
    let (mut added, mut halting, mut ratios, mut rates) = (Added::default(), Added::default(), vec![], vec![]);
    for turn in 0..=bench.turns() {
        let as_it_is = targets.added(bench).await?;
        let own = closed_loop(&through, &request, 32, bench.turn())?.per_second;
        let reference = closed_loop(&nginx, &request, 32, bench.turn())?.per_second;
        let polling = if halts {
            let _polling = Polling::start()?;
            Some(targets.added(bench).await?)
        } else {
            None
        };
        if turn > 0 {
            added.push(polling.unwrap_or(as_it_is));
            halting.push(as_it_is);
            ratios.push(own / reference);
            rates.push(own);
        }
    }
    let name = "warm request through router and node, added p50 at 1,000/s";
    let (p50, nginx) = (median(added.p50), median(added.nginx));
    let mut notes = [format!("one nginx hop adds {nginx:.3} ms"), String::new(), String::new()];
    if halts {
        let (p50, p99, nginx) = (median(halting.p50), median(halting.p99), median(halting.nginx));
        notes[0] +=
            &format!("; CPUs poll and do not halt; where they halt at once, as on this machine, {p50:.2} ms and {nginx:.3} ms");
        notes[1] = format!("where CPUs halt at once {:.2} times", p50 / nginx);
        notes[2] = format!("where CPUs halt at once {p99:.2} ms");
    } else if let Some(ns) = poll_ns {
        notes[0] += &format!("; CPUs of this machine poll for {ns} ns before they halt");
    }
    let [first, second, third] = notes;
    report.add(name, p50, "ms", Bound::AtMost(0.15), first);
    let bound = Bound::AtMost(crate::rounded(0.15 / NGINX_HOP_MS));
    report.add("the two hops, against one nginx hop", p50 / nginx, "times", bound, second);
    report.add("the same, added p99", median(added.p99), "ms", Bound::AtMost(2.0), third);
    let note = format!("{:.0} requests/s", median(rates));
    let name = "requests/s through the router, 32 connections, against nginx in front of the same node";
    report.add(name, median(ratios), "times", Bound::AtLeast(1.0), note);
    Ok(())
}
