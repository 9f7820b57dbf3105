//! Measures the container handler over a real Docker engine: cold starts and where their time goes, thaws, warm acquires, refill rate.
//!
//! `cargo run --release -p hearth-node --example cold_start -- [starts]`

#![allow(clippy::print_stdout, clippy::print_stderr, reason = "it prints what it measures")]

#[path = "../tests/support/mod.rs"]
mod support;

use std::{
    sync::Arc,
    time::{Duration, Instant},
};
use support::{Bed, call, eventually, servable};

const POOL: u32 = 8;

fn percentiles(name: &str, mut samples: Vec<f64>) {
    samples.sort_by(f64::total_cmp);
    let at = |p: f64| samples[((samples.len() - 1) as f64 * p) as usize];
    println!(
        "{name:<34} p50 {:>8.3}  p90 {:>8.3}  p99 {:>8.3}  max {:>8.3} ms  ({})",
        at(0.5),
        at(0.9),
        at(0.99),
        at(1.0),
        samples.len()
    );
}

fn ms(since: Instant) -> f64 {
    since.elapsed().as_secs_f64() * 1_000.0
}

#[tokio::main(flavor = "multi_thread", worker_threads = 2)]
async fn main() {
    let starts: usize = std::env::args().nth(1).and_then(|n| n.parse().ok()).unwrap_or(60);
    let bed = Bed::new("measure").await;
    let filled = Instant::now();
    let handler = bed
        .handler(|config| {
            (config.pool_size, config.pool_max) = (POOL.into(), POOL.into());
            config.freeze_after = Duration::from_secs(2);
        })
        .await;
    let level = || serde_json::to_value(handler.status()).unwrap()["pool"]["level"].as_u64().unwrap_or(0);
    eventually("the pool is filled", || level() == u64::from(POOL)).await;
    println!("filling a pool of {POOL}: {:.1} containers/s", f64::from(POOL) / filled.elapsed().as_secs_f64());

    let (mut total, mut claim, mut modules, mut load, mut rest, mut answered) = (vec![], vec![], vec![], vec![], vec![], vec![]);
    let mut refilled = Vec::new();
    let mut kept = Vec::new();
    for n in 0..starts {
        eventually("the pool is filled", || level() == u64::from(POOL)).await;
        // What was just started has settled.
        tokio::time::sleep(Duration::from_millis(50)).await;
        let function = Arc::new(servable(&format!("t{n}/main/hello"), "module.exports = cb => cb(null, { hello: 'world' });"));
        let began = Instant::now();
        let lease = handler.acquire(&function).await.unwrap();
        let acquired = ms(began);
        total.push(acquired);
        assert_eq!(call(&lease, "hello@1").await.0, 200);
        answered.push(ms(began));
        let timings = lease.timings();
        claim.push(timings.claim_ms.into());
        modules.push(timings.modules_ms.into());
        load.push(timings.load_ms.into());
        rest.push(acquired - f64::from(timings.claim_ms + timings.modules_ms + timings.load_ms));
        let refilling = Instant::now();
        eventually("the pool is filled", || level() == u64::from(POOL)).await;
        refilled.push(ms(refilling));
        kept.push(function);
    }
    percentiles("cold start, acquire", total);
    percentiles("  claim", claim);
    percentiles("  files, secrets, modules, limits", modules);
    percentiles("  load in the runtime", load);
    percentiles("  the rest: tasks that wake tasks", rest);
    percentiles("cold start, first answer", answered);
    percentiles("one refill", refilled);

    let first = &kept[kept.len() - 1];
    let rounds = 1_000_000;
    let lease = handler.acquire(first).await.unwrap();
    let began = Instant::now();
    for _ in 0..rounds {
        drop(std::hint::black_box(handler.try_acquire(first).unwrap().unwrap()));
    }
    println!("{:<34} {:.0} ns", "warm acquire and release", began.elapsed().as_secs_f64() * 1e9 / f64::from(rounds));
    drop(lease);

    let frozen = || serde_json::to_value(handler.status()).unwrap()["counts"]["freezes"].as_u64().unwrap_or(0);
    eventually("containers are frozen", || frozen() >= starts as u64).await;
    let mut thawed = Vec::new();
    for function in &kept {
        let began = Instant::now();
        let lease = handler.acquire(function).await.unwrap();
        thawed.push(ms(began));
        assert_eq!(call(&lease, "hello@1").await.0, 200);
    }
    percentiles("thaw, acquire", thawed);
    let leaving = Instant::now();
    handler.shutdown(false).await;
    println!("destroying {} containers: {:.1} s", kept.len() + POOL as usize, leaving.elapsed().as_secs_f64());
    bed.assert_nothing_left().await;
}
