//! What is changed on one node is seen on all: versions, settings, deletions; and what containers print is read from all.

use super::{BUSY, cluster};
use hearth_tests::{Size, until};
use reqwest::Method;
use serde_json::json;
use std::time::{Duration, Instant};

fn says(text: &str) -> String {
    format!("module.exports = (context, cb) => {{ console.log('line of {text}'); cb(null, {{ hello: '{text}' }}); }};")
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_new_version_serves_on_all_nodes_and_logs_come_from_all_of_them() {
    let (_turn, cluster, _) = cluster(Size { etcd: 1, routers: 1, nodes: 3 }, 1).await;
    cluster.deploy("acme/main/f", &says("one")).await;
    // Every node has it warm, as after a hot container was spread.
    for node in &cluster.nodes {
        cluster.get(&node.url(), "acme/main/f").await.expect(200);
    }
    let mut slowest = Duration::ZERO;
    for version in ["two", "three", "four"] {
        cluster.deploy("acme/main/f", &says(version)).await;
        let deployed = Instant::now();
        for node in &cluster.nodes {
            until(&format!("{version} on {}", node.name), async || {
                cluster.get(&node.url(), "acme/main/f").await.text.contains(version).then_some(())
            })
            .await;
        }
        slowest = slowest.max(deployed.elapsed());
    }
    println!(
        "FIGURE {}",
        json!({ "case": "new version on all nodes", "figures": { "slowest_ms": slowest.as_millis(), "nodes": 3 } })
    );
    assert!(slowest <= Duration::from_secs(1) * BUSY, "a version took {slowest:?}");

    let url = &cluster.urls()[0];
    let logs = until("lines of all nodes", async || {
        let text = cluster.api(url, Method::GET, "/tenants/acme/containers/main/logs?follow=false", None).await.text;
        cluster.nodes.iter().all(|n| text.contains(&format!("\"node\":\"{}\"", n.name))).then_some(text)
    })
    .await;
    assert!(logs.contains("line of four"), "{logs}");

    // A deleted function is gone everywhere.
    cluster.api(url, Method::DELETE, "/tenants/acme/containers/main/functions/f", None).await.expect(204);
    for node in &cluster.nodes {
        until(&format!("404 by {}", node.name), async || {
            (cluster.get(&node.url(), "acme/main/f").await.status == 404).then_some(())
        })
        .await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_container_that_is_deleted_on_one_node_ends_on_the_others() {
    let (_turn, cluster, _) = cluster(Size { etcd: 1, routers: 1, nodes: 2 }, 1).await;
    cluster.deploy("acme/main/f", &says("one")).await;
    for node in &cluster.nodes {
        cluster.get(&node.url(), "acme/main/f").await.expect(200);
    }
    let holds = async |url: String| {
        let status = cluster.status(&url).await;
        status["handler"]["list"].as_array().is_some_and(|l| l.iter().any(|c| c["path"] == "acme/main"))
    };
    for node in &cluster.nodes {
        assert!(holds(node.url()).await, "{}", node.name);
    }
    let url = &cluster.urls()[0];
    cluster.api(url, Method::DELETE, "/tenants/acme/containers/main?recursive=true", None).await.expect(204);
    for node in &cluster.nodes {
        until(&format!("the container to end on {}", node.name), async || (!holds(node.url()).await).then_some(())).await;
    }
}
