//! Networks that are cut in two: every member of etcd, router and node has a network namespace of its own, and packets between some of
//! them are dropped without a word. What was executed is counted by the functions themselves.

use super::{BUSY, ONE_AT_A_TIME, SLOW, load, seconds};
use hearth_tests::{Cluster, Outcome, Report, Size, until};
use serde_json::json;
use std::{collections::BTreeMap, time::Duration};

/// Counts each request that is to be done once, for as long as its container lives.
const COUNTS: &str = "const done = {};
    module.exports = (context, cb) => {
        if (context.query.done) return cb(null, done);
        const id = context.query.once;
        if (id) done[id] = (done[id] || 0) + 1;
        cb(null, { ok: true });
    };";

/// How often each request was executed, over all nodes and tenants.
async fn executions(cluster: &Cluster, tenants: &[String]) -> BTreeMap<String, u64> {
    let mut all = BTreeMap::new();
    for node in &cluster.nodes {
        for tenant in tenants {
            let done = cluster.get(&node.url(), &format!("{tenant}?done=yes")).await.expect(200).json();
            for (id, count) in done.as_object().expect("counts") {
                *all.entry(id.clone()).or_default() += count.as_u64().expect("a count");
            }
        }
    }
    all
}

/// A POST that was answered was executed once, and none was executed twice.
fn done_once(report: &Report, label: &str, executed: &BTreeMap<String, u64>) {
    let twice: Vec<_> = executed.iter().filter(|(id, count)| id.starts_with(label) && **count > 1).collect();
    assert!(twice.is_empty(), "executed more than once: {twice:?}");
    for sample in report.samples.iter().filter(|s| s.outcome == Outcome::Ok) {
        let id = format!("{label}-{}", sample.number);
        assert_eq!(executed.get(&id), Some(&1), "{id} was answered");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_network_is_cut_between_nodes_routers_and_etcd() {
    let _turn = ONE_AT_A_TIME.lock().await;
    let cluster = Cluster::start_apart(Size::default()).await;
    let tenants = cluster.warm_tenants(4, COUNTS).await;
    let net = cluster.net.as_ref().expect("a network");
    let victim = cluster.nodes[cluster.node_of(&tenants[0]).await].name.clone();
    let etcd = ["etcd-0", "etcd-1", "etcd-2"];

    // A node is cut off from the routers and not from etcd, so that its lease goes on and only its silence tells.
    let (gets, posts) = (load(&cluster, &tenants, 30, None), load(&cluster, &tenants, 30, Some("routers")));
    seconds(2.0).await;
    let fault = posts.now();
    net.cut(&victim, &["router-0", "router-1"]);
    seconds(8.0).await;
    net.heal();
    seconds(8.0).await;
    let (gets, posts) = (gets.stop().await, posts.stop().await);
    let executed = executions(&cluster, &tenants).await;
    let disturbed = gets.disturbed_for(fault, SLOW).max(posts.disturbed_for(fault, SLOW));
    let figures = json!({ "back_after_ms": disturbed.as_millis(), "by_node": posts.by_node() });
    gets.print("node cut off from the routers: GET", json!({}));
    posts.print("node cut off from the routers: POST", figures);
    assert!(gets.lost().is_empty(), "a GET may be sent again: {}", gets.explain());
    // A POST that was sent into the silence may have been executed, so that it is not sent again; later ones are not sent there.
    let late = |s: &&hearth_tests::Sample| s.due > fault + Duration::from_secs(3) * BUSY || s.due + Duration::from_secs(1) < fault;
    assert!(!posts.lost().iter().any(late), "{}", posts.explain());
    assert!(disturbed <= Duration::from_secs(3) * BUSY, "disturbed for {disturbed:?}");
    done_once(&posts, "routers", &executed);
    assert!(
        posts.samples.iter().rev().take(60).any(|s| s.node.as_deref() == Some(&victim)),
        "it is asked again: {:?}",
        posts.by_node()
    );

    // A node is cut off from etcd and not from the routers: it leaves the table when its lease ends, and comes back.
    let (gets, posts) = (load(&cluster, &tenants, 30, None), load(&cluster, &tenants, 30, Some("etcd")));
    seconds(1.0).await;
    net.cut(&victim, &etcd);
    seconds(10.0).await;
    net.heal();
    cluster.all_see(3).await;
    let (gets, posts) = (gets.stop().await, posts.stop().await);
    gets.print("node cut off from etcd: GET", json!({ "by_node": gets.by_node() }));
    posts.print("node cut off from etcd: POST", json!({ "by_node": posts.by_node() }));
    assert!(gets.lost().is_empty() && posts.lost().is_empty(), "{}\n{}", gets.explain(), posts.explain());

    // A router is cut off from etcd and not from the nodes: it serves by the table that it has, and catches up.
    let (gets, posts2) = (load(&cluster, &tenants, 30, None), load(&cluster, &tenants, 30, Some("table")));
    seconds(1.0).await;
    net.cut("router-0", &etcd);
    seconds(12.0).await;
    let stale = cluster.is_stale(&cluster.routers[0]).await;
    net.heal();
    until("the router to catch up", async || (!cluster.is_stale(&cluster.routers[0]).await).then_some(())).await;
    let (gets, posts2) = (gets.stop().await, posts2.stop().await);
    gets.print("router cut off from etcd: GET", json!({}));
    posts2.print("router cut off from etcd: POST", json!({}));
    assert!(stale, "a table that nobody has confirmed for ten seconds says so");
    assert!(gets.lost().is_empty() && posts2.lost().is_empty(), "{}\n{}", gets.explain(), posts2.explain());

    let executed = executions(&cluster, &tenants).await;
    done_once(&posts, "etcd", &executed);
    done_once(&posts2, "table", &executed);
}
