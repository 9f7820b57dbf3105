//! Where containers are placed by an operator's word, and what a tenant's limits are worth when its container is on several nodes.

use super::{HELLO, cluster, load, seconds};
use hearth_tests::{Cluster, Outcome, Size, binary, until};
use reqwest::Method;
use serde_json::json;
use std::{
    process::{Command, Output},
    time::{Duration, Instant},
};

fn admin(cluster: &Cluster, args: &[&str]) -> Output {
    let mut command = Command::new(binary());
    command.arg("admin").args(args).arg("--config").arg(cluster.routers[0].config_file());
    command.output().expect("hearth admin")
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_container_is_pinned_and_a_tenants_rate_holds_across_routers_and_nodes() {
    let (_turn, cluster, tenants) = cluster(Size { etcd: 1, routers: 2, nodes: 3 }, 1).await;
    let path = "t0/main";
    // To each node in turn; the routers hear of it by themselves.
    for node in &cluster.nodes {
        let output = admin(&cluster, &["pin", path, &node.name]);
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        for url in cluster.urls() {
            until(&format!("{path} on {}", node.name), async || {
                (cluster.get(&url, &tenants[0]).await.expect(200).header("hearth-node") == node.name).then_some(())
            })
            .await;
        }
    }
    // The nodes that had it before are told to let go, once it has been idle there for a while.
    let began = Instant::now();
    loop {
        let status = cluster.status(&cluster.urls()[0]).await;
        let running: Vec<_> =
            status["cluster"]["nodes"].as_array().unwrap().iter().map(|node| node["containers"].as_u64().unwrap_or(9)).collect();
        if running.iter().sum::<u64>() == 1 {
            break;
        }
        assert!(began.elapsed() < Duration::from_secs(60), "the other nodes keep it: {running:?}");
        seconds(0.5).await;
    }
    for (args, reason) in [(["pin", path, "node-9"], "node-9"), (["pin", "nonsense", "node-0"], "nonsense")] {
        let output = admin(&cluster, &args);
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        assert!(!output.status.success() && said.contains(reason), "{said}");
    }

    // On two nodes, with a rate: each node admits half of it, whatever router a request comes by.
    assert!(admin(&cluster, &["pin", path, "node-0", "node-1"]).status.success());
    let limits = json!({ "limits": { "rate_per_s": 20, "burst": 20 } });
    cluster.api(&cluster.urls()[0], Method::PUT, "/tenants/t0", Some(limits)).await.expect(200);
    seconds(2.0).await;
    let offered = load(&cluster, &tenants, 120, None);
    seconds(8.0).await;
    let report = offered.stop().await;
    let count = |outcome| report.outcomes().get(&outcome).copied().unwrap_or(0);
    let (ok, limited) = (count(Outcome::Ok), count(Outcome::Limited));
    report.print(
        "a rate of 20/s with a burst of 20, offered 120/s over two routers and two nodes",
        json!({ "by_node": report.by_node() }),
    );
    assert_eq!(ok + limited, report.samples.len(), "{}", report.explain());
    // 20/s for 8 s and the burst make 180; the refill of a busy machine's clock is allowed a fifth.
    assert!((140..=220).contains(&ok), "{ok} were admitted: {:?}", report.outcomes());
    assert!(report.by_node().keys().all(|node| node == "node-0" || node == "node-1"), "{:?}", report.by_node());

    let output = admin(&cluster, &["unpin", path]);
    assert!(String::from_utf8_lossy(&output.stderr).contains("like any other"));
    assert!(String::from_utf8_lossy(&admin(&cluster, &["unpin", path]).stderr).contains("was not pinned"));
    cluster.deploy("other/main/f", HELLO).await;
    cluster.get(&cluster.urls()[1], "other/main/f").await.expect(200);
}
