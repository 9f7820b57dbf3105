//! What an attacker costs the tenant beside it: the same warm traffic with and without each attack, in turns, on one node. Besides the
//! neighbour's latency it is told what the attacker was answered, and how long it took until everything it had taken was back.
//!
//! A turn beside an attack is compared with those without one in which the machine was most nearly as fast (see [`speed`]): on a shared machine two
//! turns without any attack differ by half, most of which is the machine's. With few attacks there are few such turns to choose from.

mod attack;
mod cpus;
mod flood;
mod speed;

use crate::{
    Bench, HELLO, PATH,
    halting::{Polling, poll_ns},
    median,
    platform::Platform,
    reference,
    report::{Bound, Report},
};
use anyhow::{Context, Result, ensure};
use attack::{ATTACKS, Answers, Attack};
use cpus::{EngineCpus, KeptThreads};
use hearth_loadtest::bench::{self as load, Throughput};
use rustix::thread::CpuSet;
use serde_json::Value;
use speed::Speed;
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
/// Turns without an attack that one beside it is compared with: those in which the machine was most nearly as fast.
const LIKE: usize = 5;

/// The neighbour in one turn.
struct Turn {
    load: Throughput,
    p99_ms: f64,
    /// See [`Speed`].
    look_ns: f64,
}

/// What is known of one attack after some turns.
#[derive(Default)]
struct Seen {
    /// Of each turn just before one beside it, its p99.
    before: Vec<f64>,
    /// How long a look at the machine took beside it, against just before.
    looks: Vec<f64>,
    beside: Vec<Turn>,
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
            let foreground = cpus::foreground(background)?;
            let _this = KeptThreads::of_this(background)?;
            let _polling = (poll_ns() == Some(0)).then(Polling::start).transpose()?;
            against(bench, report, &platform, Some(foreground)).await
        }
        // A machine of one CPU has none to set aside.
        None => against(bench, report, &platform, None).await,
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

async fn against(bench: &Bench, report: &mut Report, platform: &Arc<Platform>, client_cpus: Option<CpuSet>) -> Result<()> {
    platform.deploy_code("bench/m/hello", HELLO).await?;
    let target = Arc::new(load::Target::url(&format!("{}{PATH}", platform.url)).await?);
    let look = || cpus::on(client_cpus, look(Arc::clone(&target), bench.turn()));
    load::open_loop(&target, RATE, Duration::from_secs(1)).await?;
    let node = reference::packages(&bench.root.join("target/bench-references"))?;
    let attacks = wanted();
    for attack in &attacks {
        attack.prepare(platform).await.with_context(|| attack.name)?;
    }
    let mut alone: Vec<Turn> = Vec::new();
    let mut seen: BTreeMap<&str, Seen> = BTreeMap::new();
    let turns = if bench.quick { 1 } else { TURNS };
    for turn in 0..turns {
        for attack in attacks.iter().copied() {
            until_not_apart(platform).await?;
            let before = look().await?;
            ensure!(before.load.failed == 0, "the neighbour alone: {:?}", before.load.failures);
            let descriptors = platform.descriptors();
            let stop = CancellationToken::new();
            let attacking = tokio::spawn({
                let (platform, node, stop) = (Arc::clone(platform), node.clone(), stop.clone());
                async move { attack.run(&platform, turn, &node, &stop).await }
            });
            // The attack is at its height when the neighbour is looked at.
            tokio::time::sleep(Duration::from_millis(300)).await;
            let beside = look().await;
            stop.cancel();
            let (beside, answers) = (beside?, attacking.await?.with_context(|| attack.name)?);
            let back = all_back(platform, attack, descriptors).await.with_context(|| format!("after {}", attack.name))?;
            println!(
                "turn {} of {turns}, {}: p99 {:.2} ms, before it {:.2} ms",
                turn + 1,
                attack.about,
                beside.p99_ms,
                before.p99_ms
            );
            let seen = seen.entry(attack.name).or_default();
            seen.errors += beside.load.failed + beside.load.unsent;
            seen.answers.add(answers);
            seen.before.push(before.p99_ms);
            seen.looks.push(beside.look_ns / before.look_ns);
            seen.beside.push(beside);
            seen.back.push(back.as_secs_f64());
            alone.push(before);
        }
    }
    for attack in &attacks {
        let seen = seen.remove(attack.name).unwrap_or_default();
        let what = attack.about;
        let times = median(seen.beside.iter().map(|turn| turn.p99_ms / p99_ms_like(&alone, turn.look_ns)).collect());
        let p99_ms = |turns: &[Turn]| median(turns.iter().map(|turn| turn.p99_ms).collect());
        let (beside, before) = (p99_ms(&seen.beside), median(seen.before));
        let promise = format!("p99 beside {what}, against without");
        let note = format!(
            "{beside:.2} ms, without any {:.2} ms, medians of turns; {:.2} times those just before, when a look at the machine took 1 to {:.2}",
            p99_ms(&alone),
            beside / before,
            median(seen.looks)
        );
        if !attack.is_hearths() {
            report.add(&promise, times, "times", Bound::Open, note);
            continue;
        }
        report.add(&promise, times, "times", Bound::AtMost(1.2), format!("{note}; the offender: {}", seen.answers));
        report.add("its errors", seen.errors as f64, "", Bound::AtMost(0.0), "");
        let nameless = seen.answers.nameless as f64;
        report.add("the offender's answers without component and reason", nameless, "", Bound::AtMost(0.0), "");
        report.add("everything back after", median(seen.back), "s", Bound::AtMost(5.0), "");
    }
    Ok(())
}

/// Looks at the neighbour, and at the machine meanwhile.
async fn look(target: Arc<load::Target>, duration: Duration) -> Result<Turn> {
    let speed = Speed::watch();
    let load = load::open_loop(&target, RATE, duration).await;
    let look_ns = speed.mean_ns();
    let load = load?;
    Ok(Turn { p99_ms: load.latency.value_at_quantile(0.99) as f64 / 1e6, load, look_ns })
}

/// What it is where the machine is so fast and nobody attacks: the median of turns, since the host of a virtual machine takes it away for some
/// milliseconds now and then.
fn p99_ms_like(alone: &[Turn], look_ns: f64) -> f64 {
    let mut alone: Vec<&Turn> = alone.iter().collect();
    alone.sort_by(|a, b| (a.look_ns - look_ns).abs().total_cmp(&(b.look_ns - look_ns).abs()));
    median(alone.iter().take(LIKE).map(|turn| turn.p99_ms).collect())
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
