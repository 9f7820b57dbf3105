//! Router to node and node to node with certificates of `hearth admin certs`; and what a certificate of another authority gets.

use super::{HELLO, ONE_AT_A_TIME};
use hearth_tests::{Cluster, Size, binary, free_port, until};
use std::{path::Path, process::Command};

fn make(out: &Path) -> std::process::Output {
    let mut command = Command::new(binary());
    command.args(["admin", "certs", "--router", "r", "--node", "node-0=127.0.0.1", "--out"]).arg(out);
    command.output().expect("hearth admin certs")
}

fn router(cluster: &Cluster, certs: &Path) -> String {
    let (certs, endpoints) = (certs.display(), serde_json::to_string(&cluster.etcd.endpoints()).expect("JSON"));
    format!(
        "data_dir = \"data\"\n[router]\nlisten = \"127.0.0.1:{}\"\nops_listen = \"127.0.0.1:0\"\ndrain_lead = \"0s\"\n\
         [router.nodes_tls]\nca = \"{certs}/ca.crt\"\ncert = \"{certs}/router-r.crt\"\nkey = \"{certs}/router-r.key\"\n\
         [placement]\nbackend = \"etcd\"\nendpoints = {endpoints}\n",
        free_port()
    )
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nodes_serve_routers_of_their_authority_and_nobody_else() {
    let _turn = ONE_AT_A_TIME.lock().await;
    let mut cluster = Cluster::start(Size { etcd: 1, routers: 0, nodes: 0 }).await;
    let (ours, theirs) = (cluster.scratch().join("ours"), cluster.scratch().join("theirs"));
    for out in [&ours, &theirs] {
        assert!(make(out).status.success());
    }
    let again = make(&ours);
    assert!(!again.status.success() && String::from_utf8_lossy(&again.stderr).contains("not overwritten"));

    let files = |prefix: &str| {
        let dir = ours.display();
        format!("[{prefix}.tls]\nca = \"{dir}/ca.crt\"\ncert = \"{dir}/node-node-0.crt\"\nkey = \"{dir}/node-node-0.key\"\n")
    };
    let node = cluster.node_config(0, "node-0") + &files("node") + &files("cluster");
    let mut node = cluster.another("node", "node-0", &node);
    node.start().await;
    let url = node.url();
    cluster.nodes.push(node);
    for (name, certs) in [("router-ours", &ours), ("router-theirs", &theirs)] {
        let mut router = cluster.another("router", name, &router(&cluster, certs));
        router.start().await;
        cluster.routers.push(router);
    }
    cluster.deploy("acme/main/f", HELLO).await;
    let urls = cluster.urls();
    cluster.get(&urls[0], "acme/main/f").await.expect(200);
    let status = until("the node to answer control calls with certificates", async || {
        let status = cluster.status(&urls[0]).await;
        (status["cluster"]["nodes"][0]["answers"] == true).then_some(status)
    })
    .await;
    assert_eq!(status["cluster"]["node"], "node-0");

    let refused = cluster.get(&urls[1], "acme/main/f").await;
    assert!(matches!(refused.status, 502 | 503) && refused.json()["fault"] == "platform", "{} {}", refused.status, refused.text);
    // In plain text the node speaks to nobody.
    let plain = hearth_tests::http_client().build().unwrap().get(format!("{url}/run/acme/main/f")).send().await;
    assert!(plain.is_err(), "{plain:?}");
}
