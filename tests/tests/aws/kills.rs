//! Two nodes and two builders are killed at random moments while functions with new modules are created. Afterwards nothing that was
//! acknowledged is lost, no module was built twice, no message is left, and every state is what it should be.
//!
//! `HEARTH_TEST_SECONDS` says how long the killing goes on (30 by default), `HEARTH_TEST_SEED` which moments and victims.

use hearth_tests::{AwsWorld, Hearth, Process, Role, SMALL_MODULES as MODULES};
use reqwest::Method;
use serde_json::{Value, json};
use std::{
    collections::BTreeMap,
    time::{Duration, Instant},
};

/// How long everything may take to settle when the killing is over: a lost job is found by a builder's sweep after a minute and more.
const SETTLE: Duration = Duration::from_secs(150);

/// SplitMix64: the same seed gives the same victims and pauses.
struct Random(u64);

impl Random {
    fn below(&mut self, bound: u64) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        (z ^ (z >> 31)) % bound
    }
}

fn from_env(name: &str, default: u64) -> u64 {
    std::env::var(name).ok().and_then(|text| text.parse().ok()).unwrap_or(default)
}

fn split(spec: &str) -> (&str, &str) {
    spec.rsplit_once('@').expect("name@version")
}

/// Creates a function that uses the module; whether that was acknowledged.
async fn create(node: &Process, n: usize, spec: &str) -> bool {
    let (name, version) = split(spec);
    let code = format!("require('{name}'); module.exports = cb => cb(null, {{ n: {n} }});");
    let body = json!({ "code": code, "dependencies": { name: version } });
    let request = node.api(Method::PUT, &Hearth::function(&format!("t{}/main/f{n}", n % 5))).json(&body);
    match request.timeout(Duration::from_secs(10)).send().await {
        Ok(answer) => matches!(answer.status().as_u16(), 200..=202),
        Err(_) => false,
    }
}

struct Cluster {
    nodes: [Process; 2],
    builders: [Process; 2],
}

impl Cluster {
    fn of(world: &AwsWorld) -> Self {
        let node = |name: &str| world.process(Role::Node, name);
        // A dead builder's job comes again after visibility and wait, 6 s and 5 s.
        let builder = |name: &str| world.process(Role::Builder, name).set("builder__visibility", "6s");
        Self { nodes: [node("one"), node("two")], builders: [builder("first"), builder("second")] }
    }

    fn all(&mut self) -> [&mut Process; 4] {
        let ([a, b], [c, d]) = (&mut self.nodes, &mut self.builders);
        [a, b, c, d]
    }

    async fn module(&self, spec: &str) -> Value {
        let request = self.nodes[0].api(Method::GET, &format!("/modules/{spec}"));
        match request.send().await {
            Ok(answer) => answer.json().await.unwrap_or_default(),
            Err(_) => Value::Null,
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn nothing_is_lost_or_done_twice_while_any_of_them_is_killed() {
    let seed = from_env("HEARTH_TEST_SEED", u64::from(std::process::id()));
    let seconds = from_env("HEARTH_TEST_SECONDS", 30);
    eprintln!("HEARTH_TEST_SEED={seed} HEARTH_TEST_SECONDS={seconds}");
    let mut random = Random(seed);
    let world = AwsWorld::start();
    let mut cluster = Cluster::of(&world);
    cluster.all().into_iter().for_each(Process::run);

    let (mut acknowledged, mut kills, mut created) = (BTreeMap::new(), 0, 0_usize);
    let began = Instant::now();
    let mut next_kill = Duration::from_millis(1_000 + random.below(2_000));
    while began.elapsed() < Duration::from_secs(seconds) {
        let spec = MODULES[created % MODULES.len()];
        let node = &cluster.nodes[random.below(2) as usize];
        if create(node, created, spec).await {
            acknowledged.insert(created, spec);
        }
        created += 1;
        if began.elapsed() > next_kill {
            let victim = random.below(4) as usize;
            let victim = &mut *cluster.all()[victim];
            victim.kill();
            victim.run();
            kills += 1;
            next_kill = began.elapsed() + Duration::from_millis(1_000 + random.below(3_000));
        }
        tokio::time::sleep(Duration::from_millis(random.below(600))).await;
    }
    eprintln!("{created} creations, {} acknowledged, {kills} kills in {:?}", acknowledged.len(), began.elapsed());
    assert!(kills >= 3 && acknowledged.len() >= 5, "enough has happened to tell anything");
    settled(&cluster, &world, &acknowledged).await;
}

/// Waits until all is done, then looks at everything.
async fn settled(cluster: &Cluster, world: &AwsWorld, acknowledged: &BTreeMap<usize, &str>) {
    let began = Instant::now();
    // Every acknowledged function runs, on either node.
    for (n, spec) in acknowledged {
        for node in &cluster.nodes {
            let target = format!("t{}/main/f{n}", n % 5);
            loop {
                let answer = node.get(&target).await;
                if answer.status == 200 {
                    assert_eq!(answer.json(), json!({ "n": n }), "{target}");
                    break;
                }
                let module = cluster.module(spec).await;
                assert!(
                    began.elapsed() < SETTLE,
                    "{target} was acknowledged and does not run: {} {}; {module}",
                    answer.status,
                    answer.text
                );
                tokio::time::sleep(Duration::from_millis(250)).await;
            }
        }
    }
    let ran = began.elapsed();
    while world.messages("builds").await > 0 {
        assert!(began.elapsed() < SETTLE, "messages are left: {}", world.messages("builds").await);
        tokio::time::sleep(Duration::from_millis(250)).await;
    }
    assert_eq!(world.messages("builds-dead").await, 0, "nothing was poisonous");
    let logs: Vec<String> = cluster.builders.iter().map(Process::log).collect();
    let (mut built, mut attempts) = (0, 0);
    for spec in acknowledged.values().collect::<std::collections::BTreeSet<_>>() {
        let records = cluster.module(spec).await;
        let record = &records[0];
        assert_eq!((records.as_array().map(Vec::len), &record["state"]), (Some(1), &json!("ready")), "{spec}: {records}");
        let lines =
            |words: &str| logs.iter().flat_map(|log| log.lines()).filter(|l| l.contains(words) && l.contains(*spec)).count();
        let times = lines("the build's record is durable ");
        assert!(times <= 1, "{spec} was built {times} times");
        built += 1;
        attempts += record["attempts"].as_u64().unwrap_or(0);
    }
    eprintln!(
        "settled: all run after {ran:?}, queue empty after {:?}; {built} modules built in {attempts} attempts",
        began.elapsed()
    );
}
