//! A router that dies.

use super::{cluster, load, seconds};
use hearth_tests::{Outcome, Size};
use serde_json::json;
use std::time::Duration;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_router_is_killed_and_the_other_serves() {
    let (_turn, mut cluster, tenants) = cluster(Size { etcd: 1, routers: 2, nodes: 2 }, 4).await;
    let load = load(&cluster, &tenants, 60, Some("once"));
    seconds(2.0).await;
    let fault = load.now();
    cluster.routers[0].kill();
    seconds(4.0).await;
    cluster.routers[0].start().await;
    seconds(2.0).await;
    let report = load.stop().await;
    report.print("router SIGKILL", json!({ "by_node": report.by_node() }));
    assert!(report.lost().len() <= 5, "{}", report.explain());
    let in_flight = |s: &&hearth_tests::Sample| s.outcome == Outcome::Reset && s.due + Duration::from_millis(500) > fault;
    assert!(report.lost().iter().all(in_flight), "only what was in flight on it: {}", report.explain());
}
