//! What an attacker costs the tenant beside it: the same warm traffic with and without each attack, in turns, on one node. Besides the
//! neighbour's latency it is told what the attacker was answered, and how long it took until everything it had taken was back.

mod attack;
mod cpus;
mod flood;

use crate::{
    Bench, HELLO, PATH, median,
    platform::Platform,
    reference,
    report::{Bound, Report},
};
use anyhow::{Context, Result, ensure};
use attack::{ATTACKS, Answers, Attack};
use cpus::{Attackers, EngineCpus, KeptThreads};
use hearth_loadtest::bench::{self as load, Throughput};
use serde_json::Value;
use std::{
    collections::BTreeMap,
    sync::Arc,
    time::{Duration, Instant},
};
use tokio_util::sync::CancellationToken;

/// Requests per second of the neighbour.
const RATE: f64 = 250.0;
/// How often each attack is looked at.
const TURNS: usize = 5;
/// Containers in the pool.
const POOL: usize = 4;
/// From the end of an attack until the next thing begins, where nothing says that all is back.
const BACK_MAX: Duration = Duration::from_secs(60);
/// Descriptors that come and go by themselves.
const SLACK: usize = 64;

/// What is known of one attack after some turns.
#[derive(Default)]
struct Seen {
    alone: Vec<Throughput>,
    beside: Vec<Throughput>,
    errors: u64,
    back: Vec<f64>,
    answers: Answers,
}

/// Measures it.
pub async fn measure(bench: &Bench, report: &mut Report) -> Result<()> {
    let platform = Arc::new(bench.platform("neighbour", POOL).await?);
    let status = platform.status().await?;
    let engine = status["engine"].as_str().unwrap_or_default();
    let background = engine.split_once("background CPUs ").and_then(|(_, rest)| rest.split(' ').next());
    let result = match background.map(|list| list.trim_end_matches(',')) {
        Some(background) => {
            let _engine = EngineCpus::keep(background)?;
            let _services = KeptThreads::of_services(background, platform.pid())?;
            let _client = KeptThreads::of_client(background)?;
            against(bench, report, &platform).await
        }
        // A machine of one CPU has none to set aside.
        None => against(bench, report, &platform).await,
    };
    // After an error an attack may go on for a moment; then the last who holds it ends it.
    if let Some(platform) = Arc::into_inner(platform) {
        platform.stop();
    }
    result
}

/// Attacks to be run: all, or those that `BENCH_ATTACKS` names.
fn wanted() -> Vec<&'static Attack> {
    let named = std::env::var("BENCH_ATTACKS").unwrap_or_default();
    ATTACKS.iter().filter(|a| named.is_empty() || named.split(' ').any(|n| n == a.name)).collect()
}

async fn against(bench: &Bench, report: &mut Report, platform: &Arc<Platform>) -> Result<()> {
    platform.deploy_code("bench/m/hello", HELLO).await?;
    let target = load::Target::url(&format!("{}{PATH}", platform.url)).await?;
    load::open_loop(&target, RATE, Duration::from_secs(1)).await?;
    let node = reference::packages(&bench.root.join("target/bench-references"))?;
    let attacks = wanted();
    for attack in &attacks {
        attack.prepare(platform).await.with_context(|| attack.name)?;
    }
    let attackers = Attackers::new()?;
    let mut seen: BTreeMap<&str, Seen> = BTreeMap::new();
    let turns = if bench.quick { 1 } else { TURNS };
    for turn in 0..turns {
        for attack in attacks.iter().copied() {
            until_not_apart(platform).await?;
            let alone = load::open_loop(&target, RATE, bench.turn()).await?;
            ensure!(alone.failed == 0, "the neighbour alone: {:?}", alone.failures);
            let descriptors = platform.descriptors();
            let stop = CancellationToken::new();
            let attacking = attackers.spawn({
                let (platform, node, stop) = (Arc::clone(platform), node.clone(), stop.clone());
                async move { attack.run(&platform, turn, &node, &stop).await }
            });
            // The attack is at its height when the neighbour is looked at.
            tokio::time::sleep(Duration::from_millis(300)).await;
            let beside = load::open_loop(&target, RATE, bench.turn()).await;
            stop.cancel();
            let (beside, answers) = (beside?, attacking.await?.with_context(|| attack.name)?);
            let back = all_back(platform, attack, descriptors).await.with_context(|| format!("after {}", attack.name))?;
            let seen = seen.entry(attack.name).or_default();
            seen.errors += beside.failed + beside.unsent;
            seen.answers.add(answers);
            seen.alone.push(alone);
            seen.beside.push(beside);
            seen.back.push(back.as_secs_f64());
        }
    }
    for attack in &attacks {
        let seen = seen.remove(attack.name).unwrap_or_default();
        let what = attack.about;
        let (alone, beside) = (p99_ms(&seen.alone), p99_ms(&seen.beside));
        let together = p99_together_ms(&seen.beside)? / p99_together_ms(&seen.alone)?;
        let promise = format!("p99 beside {what}, against without");
        let note = format!("{beside:.2} ms, without it {alone:.2} ms, medians of turns; {together:.2} times of all turns together");
        if !attack.is_hearths() {
            report.add(&promise, beside / alone, "times", Bound::Open, note);
            continue;
        }
        report.add(&promise, beside / alone, "times", Bound::AtMost(1.2), format!("{note}; the offender: {}", seen.answers));
        report.add("its errors", seen.errors as f64, "", Bound::AtMost(0.0), "");
        let nameless = seen.answers.nameless as f64;
        report.add("the offender's answers without component and reason", nameless, "", Bound::AtMost(0.0), "");
        report.add("everything back after", median(seen.back), "s", Bound::AtMost(5.0), "");
    }
    Ok(())
}

/// The median of turns: the host of a virtual machine takes it away for some milliseconds now and then, and for all of some turns.
fn p99_ms(turns: &[Throughput]) -> f64 {
    median(turns.iter().map(|turn| turn.latency.value_at_quantile(0.99) as f64 / 1e6).collect())
}

/// Where a turn has ten requests in its slowest hundredth, all of them together have more.
fn p99_together_ms(turns: &[Throughput]) -> Result<f64> {
    let (first, others) = turns.split_first().context("no turns")?;
    let mut latency = first.latency.clone();
    for turn in others {
        latency.add(&turn.latency)?;
    }
    Ok(latency.value_at_quantile(0.99) as f64 / 1e6)
}

/// Waits until the pool is full, the attacker is served again or refused for its limits alone, and the node holds what it held before.
async fn all_back(platform: &Platform, attack: &Attack, descriptors: usize) -> Result<Duration> {
    let ended = Instant::now();
    loop {
        let pool = platform.pool_level().await? >= POOL;
        let served = attack.is_served(platform).await?;
        let now = platform.descriptors();
        if pool && served && now <= descriptors + SLACK {
            return Ok(ended.elapsed());
        }
        ensure!(
            ended.elapsed() < BACK_MAX,
            "not all was back: pool full {pool}, attacker served {served}, {now} descriptors of {descriptors} before"
        );
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}

/// Waits until requests may run anywhere again: for two seconds after an attack they keep to the foreground CPUs, which is no turn without it.
async fn until_not_apart(platform: &Platform) -> Result<()> {
    let ended = Instant::now();
    while platform.status().await?["handler"]["containers"]["requests_apart"] == true {
        ensure!(ended.elapsed() < BACK_MAX, "requests are still kept to some CPUs, though nobody attacks");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    Ok(())
}

/// Whether a problem document names what the offender needs to know.
pub fn is_named(problem: &Value) -> bool {
    ["component", "reason", "detail"].iter().all(|key| problem[key].as_str().is_some_and(|text| !text.is_empty()))
}
