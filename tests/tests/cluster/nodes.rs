//! Nodes that die, fall silent, leave, or come and go.

use super::{BUSY, SLOW, cluster, load, seconds};
use hearth_tests::{Outcome, Size};
use rustix::process::Signal;
use serde_json::json;
use std::time::Duration;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_node_is_killed_and_no_more_is_lost_than_it_had_in_flight() {
    let (_turn, mut cluster, tenants) = cluster(Size::default(), 6).await;
    let victim = cluster.node_of(&tenants[0]).await;
    let load = load(&cluster, &tenants, 60, Some("once"));
    seconds(2.0).await;
    let fault = load.now();
    cluster.nodes[victim].kill();
    seconds(6.0).await;
    let report = load.stop().await;
    let disturbed = report.disturbed_for(fault, SLOW);
    report.print("node SIGKILL", json!({ "back_after_ms": disturbed.as_millis(), "by_node": report.by_node() }));
    // A POST that had reached the node cannot be sent again. At this rate and a few milliseconds each, few are under way.
    assert!(report.lost().len() <= 5, "{}", report.explain());
    assert!(report.lost().iter().all(|s| s.due + Duration::from_millis(500) > fault), "{}", report.explain());
    assert!(disturbed <= Duration::from_secs(1) * BUSY, "disturbed for {disturbed:?}: {}", report.explain());
    cluster.nodes[victim].start().await;
    cluster.all_see(3).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_node_falls_silent_and_others_serve_its_tenants() {
    let (_turn, cluster, tenants) = cluster(Size::default(), 6).await;
    let victim = cluster.node_of(&tenants[0]).await;
    let load = load(&cluster, &tenants, 60, None);
    seconds(2.0).await;
    let fault = load.now();
    cluster.nodes[victim].signal(Signal::STOP);
    seconds(10.0).await;
    cluster.nodes[victim].signal(Signal::CONT);
    seconds(3.0).await;
    let report = load.stop().await;
    let disturbed = report.disturbed_for(fault, SLOW);
    report.print("node SIGSTOP", json!({ "back_after_ms": disturbed.as_millis(), "by_node": report.by_node() }));
    // GETs may be sent again: those that hung are answered by another node.
    assert!(report.lost().is_empty(), "{}", report.explain());
    assert!(disturbed <= Duration::from_secs(3) * BUSY, "disturbed for {disturbed:?}: {}", report.explain());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_node_drains_by_command_and_nothing_is_lost() {
    let (_turn, mut cluster, tenants) = cluster(Size::default(), 6).await;
    let victim = cluster.node_of(&tenants[0]).await;
    let name = cluster.nodes[victim].name.clone();
    let load = load(&cluster, &tenants, 60, Some("once"));
    seconds(2.0).await;
    let output = cluster.client(&["drain", "--node", &name]).output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let began = std::time::Instant::now();
    cluster.nodes[victim].left().await;
    let took = began.elapsed();
    seconds(2.0).await;
    let report = load.stop().await;
    report.print("hearth drain", json!({ "left_after_ms": took.as_millis(), "by_node": report.by_node() }));
    assert!(report.lost().is_empty(), "{}", report.explain());
    let late = report.samples.iter().rev().take(60).filter(|s| s.node.as_deref() == Some(name.as_str()));
    assert_eq!(late.count(), 0, "it has left and answers nothing");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_node_that_comes_and_goes_moves_nobody_elses_tenants() {
    let (_turn, mut cluster, tenants) = cluster(Size::default(), 12).await;
    let mut before = Vec::new();
    for tenant in &tenants {
        before.push(cluster.node_of(tenant).await);
    }
    let flapping = before[0];
    let load = load(&cluster, &tenants, 40, None);
    for _ in 0..2 {
        cluster.nodes[flapping].kill();
        seconds(2.0).await;
        cluster.nodes[flapping].start().await;
        cluster.all_see(3).await;
    }
    let report = load.stop().await;
    let mut moved = 0;
    for (tenant, node) in tenants.iter().zip(&before).filter(|(_, node)| **node != flapping) {
        let now = cluster.node_of(tenant).await;
        moved += usize::from(now != *node);
        assert!(now == *node, "{tenant} was on node {node} and is on {now}, though only {flapping} came and went");
    }
    report.print("flapping node", json!({ "moved_of_others": moved, "tenants": tenants.len(), "by_node": report.by_node() }));
    // GETs in flight on a killed node are sent again elsewhere.
    assert!(report.lost().is_empty(), "{}", report.explain());
    assert!(report.samples.iter().all(|s| s.outcome == Outcome::Ok));
}
