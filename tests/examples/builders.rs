//! How many modules a minute builders make: small ones of the npm registry, each new to the system, all asked for at once; first by one builder,
//! then by two, each on a fresh AWS stand-in. The figures are in docs/store-aws.md.
//!
//! `cargo build --release --package hearth-cli && BINARY_UNDER_TEST=$PWD/target/release/hearth cargo run --package hearth-tests --example builders`

#![allow(clippy::print_stdout, reason = "figures are for whoever runs it")]

use hearth_tests::{Answer, AwsWorld, Hearth, Role, SMALL_MODULES};
use reqwest::Method;
use serde_json::json;
use std::time::{Duration, Instant};

const DEADLINE: Duration = Duration::from_secs(600);

#[tokio::main]
async fn main() {
    for builders in [1, 2] {
        let took = build_all(builders).await;
        let per_minute = 60.0 * SMALL_MODULES.len() as f64 / took.as_secs_f64();
        println!("{builders} builder(s): {} modules in {:.1} s, {per_minute:.0} a minute", SMALL_MODULES.len(), took.as_secs_f64());
    }
}

/// From the first request until the last function can run.
async fn build_all(builders: usize) -> Duration {
    let world = AwsWorld::start();
    let mut node = world.process(Role::Node, "node");
    node.run();
    let mut running: Vec<_> = (0..builders).map(|n| world.process(Role::Builder, &format!("builder{n}"))).collect();
    running.iter_mut().for_each(|builder| builder.run());
    let began = Instant::now();
    for (n, spec) in SMALL_MODULES.iter().enumerate() {
        let (name, version) = spec.rsplit_once('@').expect("name@version");
        let body = json!({ "code": format!("require('{name}'); module.exports = cb => cb(null, {n});"), "dependencies": { name: version } });
        let made = Answer::of(node.api(Method::PUT, &Hearth::function(&format!("t{n}/main/f"))).json(&body)).await;
        assert!(matches!(made.status, 200..=202), "{spec}: {} {}", made.status, made.text);
    }
    for (n, spec) in SMALL_MODULES.iter().enumerate() {
        while node.get(&format!("t{n}/main/f")).await.status != 200 {
            assert!(began.elapsed() < DEADLINE, "{spec} is not built");
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
    }
    began.elapsed()
}
