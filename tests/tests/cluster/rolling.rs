//! A new version of Hearth: every process is replaced, one after the other, under load.

use super::{cluster, load, seconds};
use hearth_tests::Size;
use serde_json::json;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_process_is_restarted_in_turn_and_nothing_is_lost() {
    let (_turn, mut cluster, tenants) = cluster(Size::default(), 6).await;
    let load = load(&cluster, &tenants, 60, Some("once"));
    seconds(1.0).await;
    for n in 0..cluster.nodes.len() {
        cluster.nodes[n].stop().await;
        cluster.nodes[n].start().await;
        cluster.all_see(3).await;
    }
    for n in 0..cluster.etcd.endpoints().len() {
        cluster.etcd.kill(n);
        seconds(1.0).await;
        cluster.etcd.run(n);
        seconds(2.0).await;
        cluster.etcd.answers().await;
    }
    for n in 0..cluster.routers.len() {
        cluster.routers[n].stop().await;
        cluster.routers[n].start().await;
        cluster.all_see(3).await;
    }
    seconds(1.0).await;
    let report = load.stop().await;
    report.print("rolling restart of nodes, etcd and routers", json!({ "by_node": report.by_node() }));
    assert!(report.lost().is_empty(), "{}", report.explain());
}
