//! What whoever calls it meets: exit codes, thresholds, bad input that is refused in words, and a target on which nothing stays behind.

use crate::{
    call_urls,
    platform::{Manners, Platform},
    run,
    stub::{Reply, Stub},
};
use hearth_loadtest::{Ending, exit_code, results::Report};
use std::{
    path::PathBuf,
    process::{Command, Stdio},
    time::{Duration, Instant},
};

/// A short run of `warm` against the stand-in, with more flags.
async fn warm(platform: &Platform, more: &[&str]) -> anyhow::Result<Ending> {
    let url = platform.url();
    let who = ["warm", "--url", &url, "--token", "admin", "--tenants", "3", "--quiet"];
    let what = ["--rate", "50", "--duration", "1s", "--arrivals", "constant", "--max-lag", "5s"];
    run(&[&who[..], &what, more].concat()).await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn tenants_are_made_called_and_taken_away() {
    let platform = Platform::start(Manners::default());
    let dir = tempfile::tempdir().unwrap();
    let json = format!("--json={}", dir.path().join("r.json").display());
    assert_eq!(warm(&platform, &["--functions-per-tenant", "2", &json]).await.unwrap(), Ending::Passed);
    let state = platform.state.lock().unwrap();
    assert_eq!((state.tenants.len(), state.tenants_made, state.puts), (0, 3, 6));
    assert_eq!(state.calls, 6 + 50, "each once before the load, and the load");
    let report = Report::read(&dir.path().join("r.json")).unwrap();
    assert_eq!(report.runs[0].total.latency["warm"].count, 50);
    assert_eq!(report.runs[0].fairness.called, 3);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn kept_tenants_are_found_again_and_cleaned_by_name() {
    let platform = Platform::start(Manners::default());
    platform.state.lock().unwrap().tenants.insert("loadtest-of-somebody".into());
    warm(&platform, &["--keep"]).await.unwrap();
    assert_eq!(platform.tenants(), 4);
    warm(&platform, &["--keep"]).await.unwrap();
    assert_eq!(platform.state.lock().unwrap().puts, 3, "the second set-up found everything there");
    run(&["clean", "--url", &platform.url(), "--token", "admin"]).await.unwrap();
    let left: Vec<String> = platform.state.lock().unwrap().tenants.iter().cloned().collect();
    assert_eq!(left, ["loadtest-of-somebody"], "a tenant that only starts alike is not the tool's");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn thresholds_decide_the_exit_code() {
    let platform = Platform::start(Manners::default());
    let missed = warm(&platform, &["--threshold", "warm.count>=1000000"]).await.unwrap();
    assert_eq!((missed, missed.exit_code()), (Ending::ThresholdMissed, 10));
    let held = warm(&platform, &["--threshold", "warm.count==50", "--threshold", "warm.p99<=1h"]).await.unwrap();
    assert_eq!((held, held.exit_code()), (Ending::Passed, 0));
    let unknown = warm(&platform, &["--threshold", "warm.p98<=1"]).await.unwrap_err();
    assert!(format!("{unknown:#}").contains("warm.p99"), "{unknown:#}");
    let absent = warm(&platform, &["--threshold", "cold.p99<=1s"]).await.unwrap();
    assert_eq!(absent, Ending::ThresholdMissed, "what was not measured does not hold");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn runs_give_medians_and_spread_and_compare_says_what_differs() {
    let platform = Platform::start(Manners::default());
    let dir = tempfile::tempdir().unwrap();
    let file = |name: &str| dir.path().join(name);
    let json = |name: &str| format!("--json={}", file(name).display());
    warm(&platform, &["--runs", "3", &json("a.json")]).await.unwrap();
    let a = Report::read(&file("a.json")).unwrap();
    assert_eq!((a.runs.len(), a.summary["warm.p50"].runs), (3, 3));
    let spread = &a.summary["warm.p50"];
    assert!(spread.min <= spread.median && spread.median <= spread.max);
    assert_eq!(platform.state.lock().unwrap().tenants_made, 3, "made once for all runs");
    let slow = Platform::start(Manners { slow: Duration::from_millis(200), ..Default::default() });
    warm(&slow, &["--runs", "3", &json("b.json")]).await.unwrap();
    let b = Report::read(&file("b.json")).unwrap();
    let differences = hearth_loadtest::compare::compare(&a, &b);
    let p50 = differences.iter().find(|d| d.metric == "warm.p50").unwrap();
    assert!(p50.certain && p50.percent > 0.0, "{p50:?}");
    let words = [file("a.json").display().to_string(), file("b.json").display().to_string()];
    assert_eq!(run(&["compare", &words[0], &words[1]]).await.unwrap(), Ending::Passed);
    assert!(run(&["compare", &words[0], "/nowhere.json"]).await.is_err());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_rate_that_cannot_be_produced_makes_the_results_void() {
    let stub = Stub::start(|_| Reply::ok().after(Duration::from_millis(500)));
    let dir = tempfile::tempdir().unwrap();
    let (ending, report) =
        call_urls(dir.path(), &[stub.url("/")], &["--rate", "500", "--duration", "1s", "--max-in-flight", "20"]).await;
    assert_eq!((ending, ending.exit_code()), (Ending::Void, 11));
    assert!(report.void.iter().any(|r| r.contains("--max-in-flight")), "{:?}", report.void);
    let run = &report.runs[0];
    assert_eq!(run.total.offered, 500, "what could not be sent is counted");
    assert_eq!(run.total.unsent + run.total.ok, 500);
    assert!(hearth_loadtest::report::table(&report).contains("VOID"));
    assert!(hearth_loadtest::report::page(&report).contains("Void: the generator was the bottleneck"));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_cannot_work_is_refused_in_words_before_anything_is_made() {
    let closed = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    let error = run(&["warm", "--url", &format!("http://{closed}"), "--token", "admin"]).await.unwrap_err();
    assert_eq!(exit_code(&error), 5);
    assert!(format!("{error:#}").contains("cannot be reached"), "{error:#}");

    let platform = Platform::start(Manners::default());
    let error = run(&["warm", "--url", &platform.url(), "--token", "wrong"]).await.unwrap_err();
    assert_eq!(exit_code(&error), 4);
    let forbidding = Platform::start(Manners { forbids: true, ..Default::default() });
    let error = warm(&forbidding, &[]).await.unwrap_err();
    assert_eq!(exit_code(&error), 4);
    assert!(format!("{error:#}").contains("admin token"), "{error:#}");

    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("typo.toml");
    std::fs::write(&file, "name='x'\nabout='x'\n[[stream]]\nname='s'\n[[stream.load]]\nshape='constant'\nrate=1\nfro='1s'\n")
        .unwrap();
    let file = file.display().to_string();
    let url = platform.url();
    for (words, said) in [
        (&["warmth"][..], "noisy-neighbour"),
        (&[&file], "fro"),
        (&["warm", "--runs", "0"], "--runs"),
        (&["overload", "--rate", "5"], "--rate-scale"),
        (&["warm", "--rate", "2x"], "--capacity"),
        (&["warm", "--tenants", "0"], "0 tenants"),
        (&["warm", "--prefix", "Load Test"], "prefix"),
        (&["warm", "--warm-up", "1h"], "warm-up"),
        (&["warm", "--header", "nothing"], "header"),
        (&["warm", "--skew", "trace:/nowhere.csv"], "/nowhere.csv"),
        (&["node-loss"], "name=kill"),
        (&["warm", "--ca", "/nowhere.pem"], "https"),
        (&["warm", "--body-size", "99999999999"], "too large"),
    ] {
        let error = run(&[words, &["--url", &url, "--token", "admin"]].concat()).await.unwrap_err();
        assert!(format!("{error:#}").contains(said), "{words:?}: {error:#}");
    }
    let state = platform.state.lock().unwrap();
    assert_eq!((state.tenants_made, state.puts), (0, 0), "nothing was made for any of these");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_set_up_that_fails_leaves_nothing_behind() {
    let platform = Platform::start(Manners { refuses_function: Some(2), ..Default::default() });
    let error = warm(&platform, &[]).await.unwrap_err();
    assert!(format!("{error:#}").contains("said by the stub"), "{error:#}");
    assert!(platform.state.lock().unwrap().tenants_made > 0);
    assert_eq!(platform.tenants(), 0);
    let broken = Platform::start(Manners { broken: true, ..Default::default() });
    let error = warm(&broken, &[]).await.unwrap_err();
    assert!(format!("{error:#}").contains("could not be called"), "{error:#}");
    assert_eq!(broken.tenants(), 0);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn faults_are_run_timed_and_blamed_for_what_was_lost_from_them_on() {
    // The command makes the target break, and mend itself half a second later.
    let dir = tempfile::tempdir().unwrap();
    let flag = dir.path().join("broken");
    let seen = flag.clone();
    let stub = Stub::start(move |_| {
        let age = std::fs::metadata(&seen).ok().and_then(|m| m.modified().ok()?.elapsed().ok());
        match age {
            Some(age) if age < Duration::from_millis(500) => Reply::Reset,
            _ => Reply::ok(),
        }
    });
    let fault = format!("at=1s,name=break,cmd=touch {}", flag.display());
    let flags = ["--rate", "100", "--duration", "4s", "--fault", &fault, "--max-lag", "5s", "--threshold", "recover<=1m"];
    let (ending, report) = call_urls(dir.path(), &[stub.url("/")], &flags).await;
    assert_eq!(ending, Ending::Passed);
    let (run, fault) = (&report.runs[0], &report.runs[0].faults[0]);
    assert_eq!((fault.name.as_str(), fault.error.as_deref()), ("break", None));
    assert_eq!(fault.lost, run.total.lost);
    assert!((20..=90).contains(&fault.lost), "{} lost in half a second at 100 a second", fault.lost);
    assert!(fault.recover_ms.is_some_and(|ms| ms >= 300.0), "{:?}", fault.recover_ms);
    assert_eq!(report.summary["lost.break"].median, fault.lost as f64);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_command_that_fails_is_told_with_its_words() {
    let stub = Stub::start(|_| Reply::ok());
    let dir = tempfile::tempdir().unwrap();
    let flags = ["--rate", "50", "--duration", "2s", "--fault", "at=100ms,name=f,cmd=echo broken pipe wrench >&2; exit 3"];
    let (_, report) = call_urls(dir.path(), &[stub.url("/")], &flags).await;
    let error = report.runs[0].faults[0].error.as_deref().unwrap();
    assert!(error.contains("exit status: 3") && error.contains("broken pipe wrench"), "{error}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn deploys_under_load_are_counted_and_each_function_gets_its_versions_in_order() {
    let platform = Platform::start(Manners::default());
    let dir = tempfile::tempdir().unwrap();
    let scenario = dir.path().join("deploys.toml");
    let text = hearth_loadtest::scenario::BUILT_IN.iter().find(|(name, _)| *name == "deploy-under-load").unwrap().1;
    std::fs::write(&scenario, text.replace("rate = 2\n", "rate = 20\n").replace("after = \"5s\"", "after = \"100ms\"")).unwrap();
    let (scenario, url) = (scenario.display().to_string(), platform.url());
    let json = format!("--json={}", dir.path().join("r.json").display());
    let flags = [
        &*scenario,
        "--url",
        &url,
        "--token",
        "admin",
        "--tenants",
        "2",
        "--duration",
        "2s",
        "--rate",
        "50",
        "--max-lag",
        "5s",
        &json,
    ];
    assert_eq!(run(&flags).await.unwrap(), Ending::Passed);
    let report = Report::read(&dir.path().join("r.json")).unwrap();
    let deploys = report.runs[0].deploys.as_ref().unwrap();
    assert_eq!((deploys.failed, deploys.stale), (0, 0));
    assert_eq!(deploys.latency.unwrap().count, 38, "20 a second from 0.1 s to 2 s");
    assert_eq!(platform.tenants(), 0);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_trace_is_made_and_replayed() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("trace.csv").display().to_string();
    run(&["trace", &file, "--functions", "40", "--minutes", "3", "--seed", "4"]).await.unwrap();
    let trace = hearth_loadtest::trace::Trace::open(file.as_ref()).unwrap();
    let total: u64 = trace.rows.iter().map(hearth_loadtest::trace::TraceRow::total).sum();
    let platform = Platform::start(Manners::default());
    let scenario = dir.path().join("replay.toml");
    let text = format!(
        "name='replay'\nabout='x'\n[population]\ntenants=10\nfunctions_per_tenant=4\n[[stream]]\nname='s'\n[[stream.load]]\nshape='replay'\nspeed=180.0\nscale={}\n",
        (100.0 / total as f64).min(1.0)
    );
    std::fs::write(&scenario, text).unwrap();
    let (scenario, url) = (scenario.display().to_string(), platform.url());
    let json = format!("--json={}", dir.path().join("r.json").display());
    let flags = [&*scenario, "--url", &url, "--token", "admin", "--trace", &file, "--max-lag", "5s", &json];
    assert_eq!(run(&flags).await.unwrap(), Ending::Passed);
    let report = Report::read(&dir.path().join("r.json")).unwrap();
    let offered = report.runs[0].total.offered;
    assert!((50..=150).contains(&offered), "about 100 of {total} invocations: {offered}");
    assert_eq!(report.runs[0].total.ok, offered);
}

/// The program beside the test programs.
fn program() -> PathBuf {
    let tests = std::env::current_exe().unwrap();
    let found = tests.ancestors().skip(1).map(|dir| dir.join("examples/loadtest")).find(|path| path.is_file());
    found.expect("the example `loadtest`, which `cargo test` builds")
}

#[test]
fn an_interrupted_run_takes_its_tenants_away_and_says_what_there_was() {
    let platform = Platform::start(Manners::default());
    let child = Command::new(program())
        .args([
            "warm",
            "--url",
            &platform.url(),
            "--token",
            "admin",
            "--tenants",
            "3",
            "--rate",
            "50",
            "--duration",
            "60s",
            "--quiet",
        ])
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let until = Instant::now() + Duration::from_secs(30);
    while platform.state.lock().unwrap().calls < 20 {
        assert!(Instant::now() < until, "the load did not begin");
        std::thread::sleep(Duration::from_millis(20));
    }
    assert_eq!(platform.tenants(), 3);
    let pid = rustix::process::Pid::from_raw(child.id() as i32).unwrap();
    rustix::process::kill_process(pid, rustix::process::Signal::TERM).unwrap();
    let output = child.wait_with_output().unwrap();
    assert_eq!(output.status.code(), Some(130));
    assert!(String::from_utf8_lossy(&output.stdout).contains("interrupted"));
    assert_eq!(platform.tenants(), 0);
}

#[test]
fn exit_codes_reach_the_shell_and_errors_are_one_message() {
    let output = Command::new(program()).args(["warm", "--url", "http://127.0.0.1:9", "--token", "x"]).output().unwrap();
    assert_eq!(output.status.code(), Some(5));
    assert!(output.stdout.is_empty(), "nothing but results goes to standard output");
    let output = Command::new(program()).args(["warm", "--no-such-flag"]).output().unwrap();
    assert_eq!(output.status.code(), Some(2));
}
