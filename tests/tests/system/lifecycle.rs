//! An operator: bursts of first requests, restarts, idle containers, settings, a container engine that stalls.

use futures_util::future::join_all;
use hearth_tests::{Answer, Hearth, Options, SocketGate, until};
use reqwest::Method;
use rustix::process::Signal;
use serde_json::json;
use std::{collections::BTreeSet, path::Path, time::Duration};

#[tokio::test(flavor = "multi_thread")]
async fn a_thousand_first_requests_make_one_container() {
    let hearth = Hearth::start().await;
    hearth.deploy_code("acme/main/f", "const id = Math.random(); module.exports = cb => cb(null, { id });").await;
    let answers = join_all((0..1_000).map(|_| hearth.get("acme/main/f"))).await;
    let ids: BTreeSet<String> = answers.iter().map(|a| a.expect(200).text.clone()).collect();
    assert_eq!(ids.len(), 1, "all were answered by one process");
    let claims = &hearth.status().await["handler"]["claims"];
    assert_eq!(claims["pooled"].as_u64().unwrap() + claims["created"].as_u64().unwrap(), 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn more_waiting_requests_than_allowed_get_a_quick_answer() {
    let hearth = Hearth::with(Options::default().set("node__handler__wait_queue_max", 5)).await;
    hearth
        .deploy_code(
            "acme/main/f",
            "const until = Date.now() + 700; while (Date.now() < until); module.exports = cb => cb(null, {});",
        )
        .await;
    let answers = join_all((0..20).map(|_| hearth.get("acme/main/f"))).await;
    let served = answers.iter().filter(|a| a.status == 200).count();
    assert!((5..20).contains(&served), "{served} were served");
    for refused in answers.iter().filter(|a| a.status != 200) {
        refused.expect_problem(503, "platform", "no-capacity");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn make_down_stops_what_runs_on_a_data_directory() {
    let mut hearth = Hearth::start().await;
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("../scripts/down.sh");
    let mut down = tokio::process::Command::new("bash");
    down.arg(script).arg(hearth.data_dir());
    let pid = hearth.pid();
    // Together, since a process that has ended is there until somebody asks how.
    let (output, status) = tokio::join!(down.output(), hearth.wait());
    let output = String::from_utf8(output.unwrap().stderr).unwrap();
    assert!(status.success() && output.contains(&format!("process {pid} has left")), "{output}");
    let again = String::from_utf8(down.output().await.unwrap().stderr).unwrap();
    assert!(again.contains("nothing runs"), "{again}");
}

/// Not while the pool is being filled, since that takes a tenth of what making a container does.
#[tokio::test(flavor = "multi_thread")]
async fn containers_of_a_full_pool_prepare_themselves() {
    let hearth = Hearth::start().await;
    until("all waiting containers to be prepared", async || {
        (hearth.status().await["handler"]["pool"]["prepared"] == hearth.pool_size()).then_some(())
    })
    .await;
    let has_taken_memory = |pid: u32| {
        let status = std::fs::read_to_string(format!("/proc/{pid}/status")).expect("it runs");
        let kb = status.lines().find_map(|line| line.strip_prefix("RssAnon:")?.trim().strip_suffix(" kB")?.parse::<u64>().ok());
        kb.expect("Linux says it") > 24 * 1024
    };
    for container in hearth.docker().running() {
        until("it to have taken its memory", async || has_taken_memory(container.pid).then_some(())).await;
    }
    // One with little memory has given it back before its function is there.
    let small = json!({ "code": "module.exports = cb => cb(null, {});", "memory_mb": 64 });
    hearth.deploy("acme/small/f", small).await;
    hearth.get("acme/small/f").await.expect(200);
    let slot = hearth.container("acme/small").await["slot"].as_u64().expect("it runs");
    assert!(!has_taken_memory(hearth.docker().on_slot(slot).pid));
    until("the pool to be prepared again", async || {
        (hearth.status().await["handler"]["pool"]["prepared"] == hearth.pool_size()).then_some(())
    })
    .await;
    // Its first tenant gets one of them, and another takes its place.
    hearth.deploy_code("acme/main/f", "module.exports = cb => cb(null, {});").await;
    hearth.get("acme/main/f").await.expect(200);
    until("the new one to be prepared, too", async || {
        let pool = &hearth.status().await["handler"]["pool"];
        (pool["prepared"] == hearth.pool_size() && pool["refills"].as_u64()? > hearth.pool_size() as u64 + 1).then_some(())
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_killed_process_is_followed_by_one_that_adopts_its_containers() {
    let mut hearth = Hearth::with(Options { keep_containers: true, ..Options::default() }).await;
    hearth.deploy_code("acme/main/f", "let n = 0; module.exports = cb => cb(null, { n: ++n });").await;
    assert_eq!(hearth.get("acme/main/f").await.json()["n"], 1);
    hearth.kill().await;
    hearth.run().await;
    let answer = hearth.get("acme/main/f").await;
    assert_eq!((answer.header("hearth-start"), &answer.json()["n"]), ("warm", &json!(2)), "the same process answers");
    assert_eq!(hearth.status().await["handler"]["adopted"], 1);
    hearth.pool_is_full().await;
    assert_eq!(hearth.docker().count(), 3, "one adopted and two of the new pool; the old pool is gone");
    // A second restart, this time in order.
    assert!(hearth.stop().await.success());
    hearth.run().await;
    assert_eq!(hearth.get("acme/main/f").await.json()["n"], 3);
    hearth.options().keep_containers = false;
    assert!(hearth.stop().await.success());
    hearth.run().await;
    assert!(hearth.stop().await.success());
    assert_eq!(hearth.docker().count(), 0, "nothing is left behind");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_graceful_stop_finishes_what_runs() {
    let mut hearth = Hearth::start().await;
    hearth.deploy_code("acme/main/slow", "module.exports = cb => setTimeout(cb, 1500, null, { done: 1 });").await;
    hearth.deploy_code("acme/main/warm", "module.exports = cb => cb(null, {});").await;
    hearth.get("acme/main/warm").await.expect(200);
    let slow = {
        let request = hearth.request(Method::GET, "/run/acme/main/slow");
        tokio::spawn(Answer::of(request))
    };
    tokio::time::sleep(Duration::from_millis(500)).await;
    hearth.signal(Signal::TERM);
    let answer = slow.await.unwrap();
    assert_eq!(answer.expect(200).json()["done"], 1);
    assert!(hearth.wait().await.success());
}

#[tokio::test(flavor = "multi_thread")]
async fn idle_containers_are_frozen_then_destroyed_and_come_back() {
    let options = Options::default().set("node__handler__freeze_after", "1s").set("node__handler__destroy_after", "6s");
    let hearth = Hearth::with(options).await;
    hearth.deploy_code("acme/main/f", "let n = 0; module.exports = cb => cb(null, { n: ++n });").await;
    hearth.get("acme/main/f").await.expect(200);
    until("the container to be frozen", async || (hearth.container("acme/main").await["state"] == "frozen").then_some(())).await;
    let thawed = hearth.get("acme/main/f").await;
    assert_eq!((thawed.header("hearth-start"), &thawed.json()["n"]), ("warm", &json!(2)));
    until("the container to be destroyed", async || hearth.container("acme/main").await.is_null().then_some(())).await;
    let fresh = hearth.get("acme/main/f").await;
    assert_eq!((fresh.header("hearth-start"), &fresh.json()["n"]), ("cold", &json!(1)));
}

#[tokio::test(flavor = "multi_thread")]
async fn an_idle_container_gives_back_what_its_load_left_behind() {
    let hearth = Hearth::with(Options::default()).await;
    let code = "let left = []; for (let i = 0; i < 300000; i++) left.push({ i }); left = null; let n = 0;
        module.exports = cb => cb(null, { n: ++n, mb: process.memoryUsage.rss() / 1e6, gc: typeof gc });";
    hearth.deploy_code("acme/main/f", code).await;
    let before = hearth.get("acme/main/f").await.expect(200).json();
    // A call would make it busy again, so that there is nothing to wait for but time.
    tokio::time::sleep(Duration::from_secs(10)).await;
    let after = hearth.get("acme/main/f").await.expect(200).json();
    assert_eq!((&after["n"], &after["gc"]), (&json!(2), &json!("undefined")));
    let freed = before["mb"].as_f64().unwrap() - after["mb"].as_f64().unwrap();
    assert!(freed > 5.0, "{before} {after}");
}

#[tokio::test(flavor = "multi_thread")]
async fn while_docker_stalls_warm_requests_go_on_and_cold_ones_are_refused_quickly() {
    let gate_dir = tempfile::tempdir().unwrap();
    let gate = SocketGate::start(&gate_dir.path().join("docker.sock"), Path::new("/var/run/docker.sock")).unwrap();
    let options = Options { pool_size: 1, ..Options::default() }
        .set("docker__socket", gate.path().display())
        .set("docker__call_timeout", "2s")
        .set("docker__create_timeout", "2s")
        .set("node__handler__pool_max", 1)
        .set("node__handler__claim_timeout", "3s");
    let hearth = Hearth::with(options).await;
    hearth.deploy_code("acme/warm/f", "module.exports = cb => cb(null, { ok: 1 });").await;
    hearth.deploy_code("acme/cold/f", "module.exports = cb => cb(null, { ok: 1 });").await;
    hearth.deploy_code("acme/cold2/f", "module.exports = cb => cb(null, { ok: 1 });").await;
    hearth.get("acme/warm/f").await.expect(200);
    hearth.pool_is_full().await;
    gate.close();
    hearth.get("acme/cold/f").await.expect(200);
    for _ in 0..20 {
        hearth.get("acme/warm/f").await.expect(200);
    }
    let refused = hearth.get("acme/cold2/f").await;
    refused.expect_problem(503, "platform", "no-capacity");
    assert!(refused.took < Duration::from_secs(6), "{:?}", refused.took);
    gate.open();
    until("cold starts to work again", async || (hearth.get("acme/cold2/f").await.status == 200).then_some(())).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn without_docker_the_start_says_what_to_do() {
    let hearth = Hearth::stopped(Options::default().set("docker__socket", "/nonexistent/docker.sock"));
    let status = hearth.command(false).status().unwrap();
    assert_eq!(status.code(), Some(1));
    let log = hearth.log();
    assert!(log.contains("Docker") && log.contains("make up"), "{log}");
}

#[tokio::test(flavor = "multi_thread")]
async fn health_and_metrics_are_on_a_listener_of_their_own() {
    let hearth = Hearth::with(Options::default().set("node__handler__pool_max", 2)).await;
    hearth.deploy_code("acme/main/f", "module.exports = cb => cb(null, {});").await;
    hearth.get("acme/main/f").await.expect(200);
    let ops = async |path: &str| {
        hearth_tests::http_client()
            .build()
            .unwrap()
            .get(format!("{}{path}", hearth.ops_url))
            .send()
            .await
            .unwrap()
            .text()
            .await
            .unwrap()
    };
    assert_eq!(ops("/healthz").await, "ok\n");
    assert_eq!(ops("/readyz").await, "ready\n");
    let metrics = ops("/metrics").await;
    for line in ["hearth_requests_total{outcome=\"ok\"} 1", "hearth_handler_pool_target 2", "hearth_handler_claims_pooled 1"] {
        assert!(metrics.contains(line), "{line} is not in\n{metrics}");
    }
    hearth.get("../healthz").await.expect_problem(404, "client", "not-found");
    for inside in ["/metrics", "/healthz", "/run/acme/main/..%2f..%2fmetrics", "//metrics"] {
        Answer::of(hearth.request(Method::GET, inside)).await.expect(404);
    }
}
