//! etcd in trouble: the data path must not notice.

use super::{BUSY, HELLO, cluster, load, seconds};
use hearth_tests::{Size, until};
use serde_json::json;
use std::time::{Duration, Instant};

/// How long etcd stays away; the environment makes it minutes.
fn away_s() -> f64 {
    std::env::var("HEARTH_TEST_ETCD_AWAY_S").ok().and_then(|s| s.parse().ok()).unwrap_or(20.0)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn one_member_of_three_is_killed_and_then_all_are_away() {
    let (_turn, mut cluster, tenants) = cluster(Size::default(), 6).await;
    let first = load(&cluster, &tenants, 60, Some("once"));
    seconds(1.0).await;
    cluster.etcd.kill(0);
    seconds(4.0).await;
    cluster.etcd.run(0);
    let report = first.stop().await;
    report.print("one etcd member of three SIGKILL", json!({}));
    assert!(report.lost().is_empty(), "{}", report.explain());

    let second = load(&cluster, &tenants, 60, Some("once"));
    seconds(1.0).await;
    cluster.etcd.pause();
    let stopped = Instant::now();
    seconds(2.0).await;
    // A change goes to the store by one node; the others hear nothing of it, and must look for themselves.
    cluster.deploy(&tenants[0], "module.exports = (context, cb) => cb(null, { hello: 'changed' });").await;
    let changed = Instant::now();
    for node in &cluster.nodes {
        until(&format!("{} to serve the change", node.name), async || {
            cluster.get(&node.url(), &tenants[0]).await.text.contains("changed").then_some(())
        })
        .await;
    }
    let reached = changed.elapsed();
    let rest = Duration::from_secs_f64(away_s()).saturating_sub(stopped.elapsed());
    tokio::time::sleep(rest).await;
    cluster.etcd.resume();
    seconds(3.0).await;
    cluster.all_see(3).await;
    let report = second.stop().await;
    report.print(
        "all of etcd SIGSTOP",
        json!({ "away_s": away_s(), "change_reached_all_nodes_ms": reached.as_millis(), "by_node": report.by_node() }),
    );
    assert!(report.lost().is_empty(), "{}", report.explain());
    assert!(reached <= Duration::from_secs(10) * BUSY, "a change took {reached:?}");
    cluster.deploy("new/main/hello", HELLO).await;
    cluster.get(&cluster.urls()[0], "new/main/hello").await.expect(200);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_router_restarts_while_etcd_is_away() {
    let (_turn, mut cluster, tenants) = cluster(Size { etcd: 1, routers: 1, nodes: 2 }, 2).await;
    cluster.etcd.kill(0);
    cluster.routers[0].kill();
    let began = Instant::now();
    cluster.routers[0].start().await;
    until("the router to be ready", async || cluster.is_ready(&cluster.routers[0]).await.then_some(())).await;
    let ready = began.elapsed();
    for tenant in &tenants {
        cluster.get(&cluster.urls()[0], tenant).await.expect(200);
    }
    let load = load(&cluster, &tenants, 40, Some("once"));
    seconds(2.0).await;
    cluster.etcd.run(0);
    cluster.etcd.answers().await;
    seconds(4.0).await;
    let report = load.stop().await;
    report.print("router restart while etcd is down", json!({ "ready_ms": ready.as_millis() }));
    assert!(report.lost().is_empty(), "{}", report.explain());
    assert!(ready <= Duration::from_secs(2) * BUSY, "ready after {ready:?}");
    cluster.all_see(2).await;
}
