//! Router to node and node to node with certificates of `hearth admin certs`; and what a certificate of another authority gets.

use super::{HELLO, ONE_AT_A_TIME};
use hearth_tests::{Cluster, Etcd, EtcdTls, Size, binary, free_port, until};
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
    // What only a router may say is believed of a router's certificate, and of no other that the authority has signed.
    let said = cluster.get(&urls[0], "acme/main/f").await.header("hearth-request-id").to_owned();
    let ask = async |who: &str| {
        let file = |extension: &str| std::fs::read(ours.join(format!("{who}.{extension}"))).unwrap();
        let identity = reqwest::Identity::from_pem(&[file("crt"), file("key")].concat()).unwrap();
        let http = hearth_tests::http_client().identity(identity).danger_accept_invalid_certs(true).build().unwrap();
        let target = format!("{}/run/acme/main/f", url.replace("http://", "https://"));
        let answer = http.get(target).header("hearth-request-id", &said).send().await.ok()?;
        Some(answer.headers()["hearth-request-id"].to_str().unwrap().to_owned())
    };
    assert_eq!(ask("router-r").await.as_ref(), Some(&said), "a router's word counts");
    assert_ne!(ask("node-node-0").await.as_ref(), Some(&said), "a node's does not");
    // In plain text the node speaks to nobody.
    let plain = hearth_tests::http_client().build().unwrap().get(format!("{url}/run/acme/main/f")).send().await;
    assert!(plain.is_err(), "{plain:?}");
}

/// Section `placement` with somebody's certificate.
fn placement(etcd: &Etcd, certs: &Path, who: &str) -> String {
    let (certs, endpoints) = (certs.display(), serde_json::to_string(&etcd.endpoints()).expect("JSON"));
    format!(
        "[placement]\nbackend = \"etcd\"\nendpoints = {endpoints}\n\
         [placement.tls]\nca = \"{certs}/ca.crt\"\ncert = \"{certs}/{who}.crt\"\nkey = \"{certs}/{who}.key\"\n"
    )
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_stolen_nodes_certificate_is_that_node_in_etcd_and_no_other() {
    let _turn = ONE_AT_A_TIME.lock().await;
    let mut cluster = Cluster::start(Size { etcd: 1, routers: 0, nodes: 0 }).await;
    let certs = cluster.scratch().join("certs");
    let mut command = Command::new(binary());
    command.args(["admin", "certs", "--etcd", "m=127.0.0.1", "--node", "node-0", "--node", "node-1", "--router", "r"]);
    command.args(["--client", "ops", "--client", "builder", "--out"]).arg(&certs);
    assert!(command.output().unwrap().status.success());
    let dir = cluster.scratch().join("guarded");
    std::fs::create_dir_all(&dir).unwrap();
    let place = [("127.0.0.1".to_owned(), None)];
    let etcd = Etcd::start_at(&dir, &place, Some(EtcdTls { certs: certs.clone() })).await;

    let config = dir.join("operator.toml");
    std::fs::write(&config, placement(&etcd, &certs, "client-ops")).unwrap();
    let roles = |args: &[&str]| {
        let mut command = Command::new(binary());
        command.args(["admin", "etcd-roles", "--config"]).arg(&config).args(args);
        let output = command.output().unwrap();
        (output.status.success(), String::from_utf8_lossy(&output.stderr).into_owned())
    };
    let all = ["--node", "node-0", "--node", "node-1", "--router", "r", "--builder", "builder", "--etcd", "m"];
    let (done, said) = roles(&all);
    assert!(!done && said.contains("--operator"), "nobody could ever change it again: {said}");
    etcd.try_ctl("node-node-0", &["put", "/hearth/nodes/node-1", "x"]).expect("without access control everybody may");
    let _ = etcd.ctl(&["del", "/hearth/nodes/node-1"]);
    // Twice: it is brought to what is wanted, whatever is there.
    for _ in 0..2 {
        let (done, said) = roles(&[&all[..], &["--operator", "ops"]].concat());
        assert!(done && said.contains("node-node-0: "), "{said}");
    }

    let denied = |who: &str, args: &[&str]| {
        let said = etcd.try_ctl(who, args).expect_err(&format!("{who} {args:?}"));
        assert!(said.contains("permission denied"), "{who} {args:?}: {said}");
    };
    for key in ["/hearth/nodes/node-1", "/hearth/nodes/node-00", "/hearth/nodes/", "/hearth/plan/00", "/hearth/leader", "/other"] {
        denied("node-node-0", &["put", key, "x"]);
        denied("node-node-0", &["del", key]);
    }
    denied("node-node-0", &["get", "/other"]);
    denied("node-node-0", &["user", "add", "x:y"]);
    denied("router-r", &["put", "/hearth/nodes/node-1", "x"]);
    denied("client-builder", &["put", "/hearth/plan/00", "x"]);
    for (who, key) in
        [("node-node-0", "/hearth/nodes/node-0"), ("node-node-0", "/hearth/changes/p/a"), ("router-r", "/hearth/plan/00")]
    {
        etcd.try_ctl(who, &["put", key, "x"]).unwrap_or_else(|said| panic!("{who} {key}: {said}"));
        let _ = etcd.ctl(&["del", key]);
    }

    // The real thing: under another's name it does not start; under its own it registers, and a router of the cluster serves through it.
    let node = |name: &str| {
        let text = cluster.node_config(0, name);
        let (head, tail) = text.split_once("[placement]").unwrap();
        let stores = &tail[tail.find("[store.").unwrap()..];
        format!("{head}{}{stores}", placement(&etcd, &certs, "node-node-0"))
    };
    let output = cluster.another("node", "thief", &node("node-1")).command().output().unwrap();
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(!output.status.success() && said.contains("permission denied"), "{said}");
    hearth_tests::Docker::of(&cluster.instance(0)).sweep();
    assert_eq!(etcd.ctl(&["get", "--prefix", "/hearth/nodes/"]), "", "nothing was registered");

    let mut honest = cluster.another("node", "node-0", &node("node-0"));
    honest.start().await;
    cluster.nodes.push(honest);
    let text = format!(
        "data_dir = \"data\"\n[router]\nlisten = \"127.0.0.1:{}\"\nops_listen = \"127.0.0.1:0\"\ndrain_lead = \"0s\"\n{}",
        free_port(),
        placement(&etcd, &certs, "router-r")
    );
    let mut router = cluster.another("router", "r", &text);
    router.start().await;
    cluster.routers.push(router);
    cluster.deploy("acme/main/f", HELLO).await;
    cluster.get(&cluster.urls()[0], "acme/main/f").await.expect(200);
    until("the router to lead", async || etcd.ctl(&["get", "/hearth/leader"]).contains("/hearth/leader").then_some(())).await;

    let (done, said) = roles(&["--remove", "node-node-0"]);
    assert!(done, "{said}");
    let said = etcd.try_ctl("node-node-0", &["get", "/hearth/leader"]).expect_err("it is nobody any more");
    assert!(!said.is_empty());
    cluster.get(&cluster.urls()[0], "acme/main/f").await.expect(200);
    // The node takes leave of etcd, which therefore ends last.
    drop(cluster);
    drop(etcd);
}
