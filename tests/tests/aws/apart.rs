//! Nodes and a builder as processes of their own: what one makes another serves, and what runs goes on when the services are away.

use hearth_tests::{Answer, AwsWorld, Hearth, Process, Role, until};
use reqwest::Method;
use serde_json::{Value, json};
use std::time::{Duration, Instant};

const HELLO: &str = "module.exports = (context, cb) => cb(null, { hello: context.query.name });";
const NUMBER: &str = "const i = require('is-number'); module.exports = cb => cb(null, { yes: i(5) });";

/// The registry of this machine for those that need it, a closed port for the others.
fn without_registry(process: Process) -> Process {
    process.set("registry__url", "http://127.0.0.1:9/")
}

async fn deploy(node: &Process, path: &str, body: Value) -> Value {
    let request = node.api(Method::PUT, &Hearth::function(path)).header("prefer", "wait=60").json(&body);
    let answer = Answer::of(request).await;
    assert!(matches!(answer.status, 200 | 201), "{path}: {} {}\n{}", answer.status, answer.text, node.log());
    answer.json()
}

fn total(calls: &[(String, u64)]) -> u64 {
    calls.iter().map(|(_, count)| count).sum()
}

fn difference(after: &[(String, u64)], before: &[(String, u64)]) -> Vec<(String, u64)> {
    let count = |call: &str| before.iter().find(|(c, _)| c == call).map_or(0, |(_, n)| *n);
    after.iter().map(|(call, n)| (call.clone(), n - count(call))).filter(|(_, n)| *n > 0).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn what_one_node_is_told_another_serves_and_warm_requests_ask_nobody() {
    let world = AwsWorld::start();
    // Long, so that no revalidation falls into what is counted.
    let quiet = |process: Process| process.set("node__catalog__revalidate_after", "10m");
    let mut one = quiet(world.process(Role::Node, "one"));
    let mut other = quiet(without_registry(world.process(Role::Node, "other")));
    let mut builder = world.process(Role::Builder, "builder");
    one.run();
    other.run();
    builder.run();

    let before = one.store_calls().await;
    let began = Instant::now();
    deploy(&one, "acme/main/hello", json!({ "code": HELLO })).await;
    let first = difference(&one.store_calls().await, &before);
    let cold = other.store_calls().await;
    assert_eq!(other.get("acme/main/hello?name=x").await.expect(200).json(), json!({ "hello": "x" }));
    let servable = began.elapsed();
    let cold = difference(&other.store_calls().await, &cold);
    assert_eq!(cold, [("BatchGetItem".to_owned(), 1)], "one call for a cold start");

    let before = one.store_calls().await;
    deploy(&one, "acme/main/hello", json!({ "code": HELLO })).await;
    let again = difference(&one.store_calls().await, &before);

    let before = other.store_calls().await;
    for _ in 0..200 {
        other.get("acme/main/hello?name=x").await.expect(200);
    }
    assert_eq!(difference(&other.store_calls().await, &before), [], "a warm request asks nobody");

    // A node with a cold cache and no builder near it.
    let body = json!({ "code": NUMBER, "dependencies": { "is-number": "7.0.0" } });
    let made = deploy(&one, "acme/main/number", body).await;
    assert_eq!(made["modules"], json!(["is-number@7.0.0"]));
    let before = other.store_calls().await;
    assert_eq!(other.get("acme/main/number").await.expect(200).json(), json!({ "yes": true }), "{}", other.log());
    let module_cold = difference(&other.store_calls().await, &before);
    eprintln!("store calls: first create {} {first:?}", total(&first));
    eprintln!("store calls: create again {} {again:?}", total(&again));
    eprintln!("store calls: cold start {} {cold:?}; with a module {} {module_cold:?}", total(&cold), total(&module_cold));
    eprintln!("create on one node to answered by the other (stand-in): {servable:?}");

    assert!(builder.stop() && other.stop() && one.stop(), "all left by themselves");
}

#[tokio::test(flavor = "multi_thread")]
async fn without_the_services_warm_functions_run_and_the_rest_is_told_quickly() {
    let mut world = AwsWorld::start();
    let mut node = without_registry(world.process(Role::Node, "node")).set("node__catalog__revalidate_after", "200ms");
    node.run();
    deploy(&node, "acme/main/hello", json!({ "code": HELLO })).await;
    node.get("acme/main/hello?name=x").await.expect(200);
    world.end_services();
    let until_past = Instant::now() + Duration::from_secs(3);
    while Instant::now() < until_past {
        assert_eq!(node.get("acme/main/hello?name=y").await.expect(200).json(), json!({ "hello": "y" }));
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    let unknown = node.get("acme/main/unknown").await;
    assert_eq!(unknown.status, 503, "{}", unknown.text);
    assert_eq!(unknown.json()["fault"], "platform");
    let put = node.api(Method::PUT, &Hearth::function("acme/main/new")).json(&json!({ "code": HELLO }));
    let put = Answer::of(put).await;
    assert_eq!((put.status, put.header("retry-after").is_empty()), (503, false), "{}", put.text);
    // The deadlines of this world's configuration are 2 s and 3 s.
    assert!(unknown.took < Duration::from_secs(10) && put.took < Duration::from_secs(10), "{:?} {:?}", unknown.took, put.took);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_builder_that_leaves_hands_back_what_it_has() {
    let world = AwsWorld::start();
    let mut node = world.process(Role::Node, "node");
    let mut first = world.process(Role::Builder, "first").set("builder__visibility", "10m");
    node.run();
    first.run();
    let body = json!({ "code": NUMBER, "dependencies": { "is-number": "6.0.0" } });
    let put = node.api(Method::PUT, &Hearth::function("acme/main/number")).json(&body);
    assert_eq!(Answer::of(put).await.status, 202);
    until("the build to begin", async || first.log().contains("building").then_some(())).await;
    assert!(first.stop(), "it left by itself");
    // Handed back, since nobody could have it for ten minutes otherwise; or done, when the build was quicker than the signal.
    let mut second = world.process(Role::Builder, "second");
    second.run();
    until("the function to run", async || (node.get("acme/main/number").await.status == 200).then_some(())).await;
    assert_eq!(world.messages("builds").await, 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_configuration_that_does_not_fit_is_refused_with_the_remedy() {
    let world = AwsWorld::start();
    let again = world.admin(&["init-aws"]);
    assert!(!again.status.success() && String::from_utf8_lossy(&again.stderr).contains("exists already"));
    let print = world.admin(&["init-aws", "--print"]);
    let design: Value = serde_json::from_slice(&print.stdout).expect("JSON");
    assert_eq!((&design["table"]["hash_key"], &design["table"]["range_key"]), (&json!("pk"), &json!("sk")));
}
