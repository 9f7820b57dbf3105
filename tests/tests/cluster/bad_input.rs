//! What an operator may get wrong, and what may lie in etcd: refused with a reason, or tolerated; never a panic or an empty table.

use super::cluster;
use hearth_tests::{Size, free_port, until};
use std::{fs, process::Command};

/// Runs a role that must not start, and gives what it says.
fn refused(mut command: Command) -> String {
    let output = command.output().expect("hearth");
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(!output.status.success(), "it started and left: {said}");
    assert!(!said.contains("panicked"), "{said}");
    said
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn garbage_in_etcd_another_nodes_name_and_an_etcd_that_is_not_there() {
    let (_turn, cluster, tenants) = cluster(Size { etcd: 1, routers: 1, nodes: 2 }, 2).await;
    // Keys of other versions and of nobody.
    for (key, value) in [
        ("/hearth/nodes/garbage", "{"),
        ("/hearth/nodes/newer", r#"{"schema":9999,"name":"newer"}"#),
        ("/hearth/nodes/node-9", r#"{"schema":1,"name":"another"}"#),
        ("/hearth/nodes/", "x"),
        ("/hearth/exceptions/0", "not json"),
        ("/hearth/changes/x", "\u{1}"),
    ] {
        let _ = cluster.etcd.ctl(&["put", key, value]);
    }
    for _ in 0..20 {
        for tenant in &tenants {
            cluster.get(&cluster.urls()[0], tenant).await.expect(200);
        }
    }
    cluster.all_see(2).await;

    // A second process with the name of a living node.
    let instance = format!("{}-twin", cluster.instance(0));
    let text = fs::read_to_string(cluster.nodes[0].config_file()).unwrap().replace(&cluster.instance(0), &instance);
    let said = refused(cluster.another("node", "twin", &text).command());
    assert!(said.contains("node-0"), "it names the name that is taken: {said}");
    hearth_tests::Docker::of(&instance).sweep();
    cluster.get(&cluster.urls()[0], &tenants[0]).await.expect(200);

    // An etcd that is not there.
    let nowhere = format!("http://127.0.0.1:{}", free_port());
    let text = text.replace(&cluster.etcd.endpoints()[0], &nowhere);
    let said = refused(cluster.another("node", "lost", &text).command());
    assert!(said.contains("placement.endpoints") && said.contains(&nowhere), "it names key and address: {said}");
    let said = refused(
        cluster
            .another("router", "lost-router", &format!("[placement]\nbackend = \"etcd\"\nendpoints = [\"{nowhere}\"]\n"))
            .command(),
    );
    assert!(said.contains("placement.endpoints"), "without a table on disk a router needs etcd, too: {said}");
    until("the cluster to be as before", async || (cluster.get(&cluster.urls()[0], &tenants[1]).await.status == 200).then_some(()))
        .await;
}
