//! Every failure is counted once, as what it is, and blamed on whom it is to be blamed.

use crate::{
    call_urls,
    stub::{Reply, Stub},
};
use hearth_loadtest::Ending;
use std::collections::BTreeMap;

fn misbehave(path: &str) -> Reply {
    match path {
        "/reset" => Reply::Reset,
        "/close" => Reply::Close,
        "/truncate" => Reply::Truncate,
        "/garbage" => Reply::Garbage,
        "/hang" => Reply::Hang,
        "/client" => Reply::problem(429, "client", "rate-limited"),
        "/tenant" => Reply::problem(502, "tenant", "crashed"),
        "/platform" => Reply::problem(503, "platform", "no-capacity"),
        "/function" => Reply::status(500, "hearth-request-id: x\r\n"),
        "/plain" => Reply::status(502, ""),
        "/crossed" => Reply::status(200, "x-loadtest-id: somebody-else\r\nhearth-start: warm\r\n"),
        "/cold" => Reply::status(200, "hearth-start: cold\r\nserver-timing: claim;dur=2.5, load;dur=1.25\r\nhearth-node: n1\r\n"),
        "/warm" => Reply::status(200, "hearth-start: warm\r\nhearth-node: n2\r\n"),
        _ => Reply::ok(),
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_failure_is_counted_once_as_what_it_is() {
    let stub = Stub::start(|request| misbehave(&request.path));
    // A port that was free a moment ago and on which nobody listens.
    let closed = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    let paths = [
        "/ok",
        "/reset",
        "/close",
        "/truncate",
        "/garbage",
        "/hang",
        "/client",
        "/tenant",
        "/platform",
        "/function",
        "/plain",
        "/cold",
        "/warm",
    ];
    let mut urls: Vec<String> = paths.iter().map(|p| stub.url(p)).collect();
    urls.push(format!("http://{closed}/refused"));
    let dir = tempfile::tempdir().unwrap();
    // 14 URLs in turn, 280 requests a second for 2 s: 40 of each.
    let flags = ["--rate", "280", "--duration", "2s", "--timeout", "1s", "--max-lag", "1s"];
    let (ending, report) = call_urls(dir.path(), &urls, &flags).await;
    assert_eq!(ending, Ending::Passed, "failures of the target are no failure of the tool where no threshold names them");
    let run = &report.runs[0];
    let expected: BTreeMap<String, u64> = [
        ("ok", 120),
        ("dial", 40),
        ("reset", 80),
        ("truncated", 40),
        ("timeout", 40),
        ("protocol", 40),
        ("client", 40),
        ("tenant", 80),
        ("platform", 80),
        ("crossed", 0),
        ("generator", 0),
    ]
    .into_iter()
    .map(|(name, n)| (name.to_owned(), n))
    .collect();
    assert_eq!(run.outcomes, expected, "{:#?}", run.reasons);
    assert_eq!(run.total.lost, 40 + 80 + 40 + 40 + 40 + 80);
    let faults: BTreeMap<&str, u64> = run.total.errors.iter().map(|(n, c)| (n.as_str(), *c)).collect();
    assert_eq!(faults, BTreeMap::from([("transport", 240), ("client", 40), ("tenant", 80), ("platform", 80)]));
    let count = |name: &str| run.total.latency.get(name).map_or(0, |l| l.count);
    assert_eq!((count("cold"), count("warm"), count("ok"), count("all")), (40, 40, 120, 560));
    assert_eq!(run.timing["cold"]["claim"].count, 40);
    assert!((run.timing["cold"]["claim"].p50_ms - 2.5).abs() < 0.01);
    assert!((run.timing["cold"]["load"].p50_ms - 1.25).abs() < 0.01);
    assert_eq!((run.nodes["n1"].answers, run.nodes["n1"].cold, run.nodes["n2"].answers), (40, 40, 40));
    // Whoever never answers is waited for until the deadline that was given, not until the default of 30 s.
    let slowest = run.total.latency["all"].max_ms;
    assert!((1_000.0..10_000.0).contains(&slowest), "{slowest}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_answer_by_the_wrong_function_is_lost_and_is_the_platforms_fault() {
    let platform = crate::platform::Platform::start(crate::platform::Manners { crossed: true, ..Default::default() });
    let dir = tempfile::tempdir().unwrap();
    let json = format!("--json={}", dir.path().join("r.json").display());
    let url = platform.url();
    let who = ["warm", "--url", &url, "--token", "admin", "--tenants", "2", "--quiet"];
    let what = ["--rate", "50", "--duration", "1s", "--arrivals", "constant", "--max-lag", "1s", &json];
    let ending = crate::run(&[&who[..], &what].concat()).await.unwrap();
    assert_eq!(ending, Ending::ThresholdMissed, "lost==0 does not hold");
    let report = hearth_loadtest::results::Report::read(&dir.path().join("r.json")).unwrap();
    assert_eq!(report.runs[0].outcomes["crossed"], 50);
    assert_eq!(report.runs[0].total.errors["platform"], 50);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn fresh_connections_and_streamed_bodies_arrive_whole() {
    use std::sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    };
    let (whole, closing) = (Arc::new(AtomicUsize::new(0)), Arc::new(AtomicUsize::new(0)));
    let counters = (Arc::clone(&whole), Arc::clone(&closing));
    let stub = Stub::start(move |request| {
        counters.0.fetch_add(usize::from(request.method == "POST" && request.body.len() == 5_000), Ordering::Relaxed);
        counters.1.fetch_add(usize::from(request.head.contains("connection: close")), Ordering::Relaxed);
        Reply::ok()
    });
    let dir = tempfile::tempdir().unwrap();
    let urls = [format!("POST {}", stub.url("/"))];
    let flags = ["--rate", "100", "--duration", "1s", "--fresh-connections", "--body-size", "5000", "--max-lag", "1s"];
    let (_, report) = call_urls(dir.path(), &urls, &flags).await;
    assert_eq!(report.runs[0].total.ok, 100);
    assert_eq!((whole.load(Ordering::Relaxed), closing.load(Ordering::Relaxed)), (100, 100));
}
