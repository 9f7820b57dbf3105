//! Cold starts out of the pool, and what refilling the pool costs those who are warm.

use crate::{
    Bench, HELLO, PATH,
    client::{Connection, Figures, Target, get},
    median,
    platform::Platform,
    reference,
    report::{Bound, Report},
};
use anyhow::{Result, ensure};
use hearth_loadtest::bench as load;
use std::time::{Duration, Instant};

/// The pool's size.
const POOL: usize = 8;
/// Warm requests per second while the pool refills.
const RATE: f64 = 300.0;

/// First request of each of these functions, each over a connection of its own that is open already. Gives the answers' heads too.
pub async fn first_requests(platform: &Platform, paths: &[String], pool: bool) -> Result<(Figures, Vec<String>)> {
    let target = Target::Tcp(platform.url.trim_start_matches("http://").to_owned());
    let (mut durations, mut heads) = (vec![], vec![]);
    for path in paths {
        if pool {
            platform.wait_for_pool(POOL / 2).await?;
            // What made the pool full is over by then.
            tokio::time::sleep(Duration::from_millis(150)).await;
        }
        let mut connection = Connection::open(&target).await?;
        let request = get(&format!("/run/{path}"), &[]);
        let sent = Instant::now();
        let (status, head) = connection.exchange(&request).await?;
        durations.push(sent.elapsed());
        ensure!(status == 200, "{path} answered with {status}: {head}");
        ensure!(head.contains("hearth-start: cold"), "{path} was warm already");
        heads.push(head);
    }
    durations.sort_unstable();
    Ok((Figures { sorted: durations, per_second: f64::NAN }, heads))
}

/// Functions of so many tenants, none called yet.
pub async fn tenants(platform: &Platform, prefix: &str, count: usize) -> Result<Vec<String>> {
    let paths: Vec<String> = (0..count).map(|n| format!("{prefix}{n}/main/f")).collect();
    for path in &paths {
        platform.deploy_code(path, HELLO).await?;
    }
    Ok(paths)
}

/// Measures both.
pub async fn measure(bench: &Bench, report: &mut Report) -> Result<()> {
    let platform = bench.platform("cold", POOL).await?;
    let result = async {
        starts(bench, report, &platform).await?;
        while_refilling(bench, report, &platform).await
    }
    .await;
    platform.stop();
    result
}

async fn starts(bench: &Bench, report: &mut Report, platform: &Platform) -> Result<()> {
    let paths = tenants(platform, "cold", bench.many(100)).await?;
    let floor = floor(bench).await?;
    let (figures, _) = first_requests(platform, &paths, true).await?;
    let of = format!(
        "of {}; a bare Node.js that waited as long needs {:.1} ms, p99 {:.1} ms",
        paths.len(),
        floor.ms(0.5),
        floor.ms(0.99)
    );
    report.add("cold start, no dependencies, pool not empty, p50", figures.ms(0.5), "ms", Bound::AtMost(5.0), of);
    report.add("the same, p99", figures.ms(0.99), "ms", Bound::AtMost(15.0), "");
    Ok(())
}

/// First requests to bare processes that have waited like containers of the pool: what this machine asks for the import alone.
async fn floor(bench: &Bench) -> Result<Figures> {
    let node = reference::packages(&bench.root.join("target/bench-references"))?;
    let waiting = reference::waiting(&node, &bench.scratch("floor")?, HELLO, bench.many(40)).await?;
    tokio::time::sleep(Duration::from_secs(1)).await;
    let mut durations = vec![];
    for (_, socket) in &waiting {
        let mut connection = Connection::open(&Target::Unix(socket.clone())).await?;
        tokio::time::sleep(Duration::from_millis(150)).await;
        let sent = Instant::now();
        connection.exchange(&get("/", &[])).await?;
        durations.push(sent.elapsed());
    }
    durations.sort_unstable();
    Ok(Figures { sorted: durations, per_second: f64::NAN })
}

/// A new tenant every quarter of a second keeps the refill at work; the same warm traffic with and without it, in turns.
async fn while_refilling(bench: &Bench, report: &mut Report, platform: &Platform) -> Result<()> {
    platform.deploy_code("bench/m/hello", HELLO).await?;
    let warm = load::Target::url(&format!("{}{PATH}", platform.url)).await?;
    let each = bench.turn().as_millis() as usize / 250;
    let turns = bench.turns() + 1;
    let paths = tenants(platform, "refilling", each * turns).await?;
    let (mut ratios, mut idle_ms) = (vec![], vec![]);
    for turn in 0..turns {
        platform.wait_for_pool(POOL).await?;
        let idle = load::open_loop(&warm, RATE, bench.turn()).await?;
        let new = async {
            let mut at = tokio::time::interval(Duration::from_millis(250));
            for path in &paths[turn * each..(turn + 1) * each] {
                at.tick().await;
                first_requests(platform, std::slice::from_ref(path), false).await?;
            }
            anyhow::Ok(())
        };
        let (busy, new) = tokio::join!(load::open_loop(&warm, RATE, bench.turn()), new);
        new?;
        let busy = busy?;
        ensure!(idle.failed + busy.failed == 0, "warm requests failed: {:?} {:?}", idle.failures, busy.failures);
        if turn > 0 {
            ratios.push(busy.p99_ms() / idle.p99_ms());
            idle_ms.push(idle.p99_ms());
        }
    }
    let note = format!("idle: {:.2} ms; 4 new tenants/s", median(idle_ms));
    report.add("warm p99 while the pool refills, against idle", median(ratios), "times", Bound::AtMost(2.0), note);
    Ok(())
}
