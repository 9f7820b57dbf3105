//! It measures truly: known distributions come back as they are, and a stall is seen by all who would have met it.

use crate::{
    call_urls,
    stub::{Reply, Stub},
};
use hearth_loadtest::{
    Ending,
    bench::{self, Load, Target},
};
use std::{
    sync::atomic::{AtomicBool, AtomicUsize, Ordering},
    time::{Duration, Instant},
};

/// Two parts in a hundred of a tenth of a second are two milliseconds: more than a busy machine adds to a median, and less than any
/// error of method would.
const TOLERANCE: f64 = 0.02;
const REQUESTS: usize = 3_000;

/// The delays of request 0, 1, ...: from 200 ms to 2 s, as many in each decade's part as in any other.
fn delay(n: usize) -> Duration {
    // Steps of the golden ratio visit the range evenly in every stretch of the run.
    let place = (n as f64 * 0.618_033_988_749_895).fract();
    Duration::from_secs_f64(0.2 * 10_f64.powf(place))
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn percentiles_of_a_known_distribution_are_met_within_two_percent() {
    let count = AtomicUsize::new(0);
    let stub = Stub::start(move |_| Reply::ok().after(delay(count.fetch_add(1, Ordering::Relaxed))));
    let dir = tempfile::tempdir().unwrap();
    let (ending, report) = call_urls(dir.path(), &[stub.url("/")], &["--rate", "600", "--duration", "5s", "--max-lag", "1s"]).await;
    assert_eq!(ending, Ending::Passed);
    let run = &report.runs[0];
    assert_eq!((run.total.offered, run.total.ok, run.total.lost), (REQUESTS as u64, REQUESTS as u64, 0));
    let mut known: Vec<f64> = (0..REQUESTS).map(|n| delay(n).as_secs_f64() * 1e3).collect();
    known.sort_by(f64::total_cmp);
    let latency = run.total.latency["ok"];
    for (name, quantile, measured) in [
        ("p50", 0.5, latency.p50_ms),
        ("p75", 0.75, latency.p75_ms),
        ("p90", 0.9, latency.p90_ms),
        ("p95", 0.95, latency.p95_ms),
        ("p99", 0.99, latency.p99_ms),
        ("p999", 0.999, latency.p999_ms),
    ] {
        let truth = known[(REQUESTS as f64 * quantile).ceil() as usize - 1];
        assert!((measured / truth - 1.0).abs() < TOLERANCE, "{name}: {measured} ms measured, {truth} ms true");
    }
    let mean = known.iter().sum::<f64>() / REQUESTS as f64;
    assert!((latency.mean_ms / mean - 1.0).abs() < TOLERANCE, "mean: {} ms measured, {mean} ms true", latency.mean_ms);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_stall_of_one_second_is_fully_visible() {
    // After a second everything stands still for a second: no answer, no accepted connection.
    let (began, stalled) = (Instant::now(), AtomicBool::new(false));
    let stub = Stub::start(move |_| {
        if began.elapsed() > Duration::from_secs(1) && !stalled.swap(true, Ordering::Relaxed) {
            std::thread::sleep(Duration::from_secs(1));
        }
        Reply::ok()
    });
    let dir = tempfile::tempdir().unwrap();
    let (_, report) = call_urls(dir.path(), &[stub.url("/")], &["--rate", "500", "--duration", "4s", "--max-lag", "1s"]).await;
    let run = &report.runs[0];
    assert_eq!((run.total.offered, run.total.ok), (2_000, 2_000), "nobody stopped sending");
    let latency = run.total.latency["ok"];
    // The one who met the beginning of the stall waited for all of it, and a quarter of all requests came during it.
    assert!(latency.max_ms >= 990.0, "the slowest: {} ms", latency.max_ms);
    let waited: u64 = run.slices.iter().flat_map(|s| &s.warm).filter(|(us, _)| *us > 100_000).map(|(_, n)| n).sum();
    assert!(waited >= 440, "{waited} of the 450 who came in the stall's first nine tenths waited for more than a tenth of it");
    let long: u64 = run.slices.iter().flat_map(|s| &s.warm).filter(|(us, _)| *us > 500_000).map(|(_, n)| n).sum();
    assert!(long >= 240, "{long} of the 250 who came in its first half waited for more than half of it");
    assert!(run.total.latency["ok"].p90_ms > 500.0, "p90: {} ms", latency.p90_ms);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_closed_loop_does_not_see_the_same_stall() {
    // What the open loop is for: with one connection that waits for its answers, one request of all meets the stall.
    let (began, stalled) = (Instant::now(), AtomicBool::new(false));
    let stub = Stub::start(move |_| {
        if began.elapsed() > Duration::from_secs(1) && !stalled.swap(true, Ordering::Relaxed) {
            std::thread::sleep(Duration::from_secs(1));
        }
        Reply::ok().after(Duration::from_millis(2))
    });
    let target = Target::url(&stub.url("/")).await.unwrap();
    let load = Load { warm_up: Duration::ZERO, ..Load::default() };
    let closed = bench::closed_loop_with(&target, 1, Duration::from_secs(4), load).await.unwrap();
    let slow = closed.latency.count_between(500_000_000, u64::MAX);
    assert_eq!(slow, 1, "{} requests, {} failed", closed.ok, closed.failed);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn memory_of_a_result_does_not_grow_with_the_number_of_requests() {
    let stub = Stub::start(|_| Reply::ok());
    let mut sizes = Vec::new();
    for rate in ["100", "1000"] {
        let dir = tempfile::tempdir().unwrap();
        let (_, report) = call_urls(dir.path(), &[stub.url("/")], &["--rate", rate, "--duration", "2s", "--max-lag", "10s"]).await;
        assert!(report.runs[0].series.offered.len() <= hearth_loadtest::series::INTERVALS_MAX);
        sizes.push(std::fs::metadata(dir.path().join("result.json")).unwrap().len());
    }
    assert!(sizes[1] < sizes[0] * 4, "ten times the requests: {sizes:?} bytes of result");
}
