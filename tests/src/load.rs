//! An open-loop load: requests are due at fixed moments, whatever became of those before, and each counts from when it was due. Every dial
//! error, reset, time-out and 5xx of the platform is a lost request.

use serde::Serialize;
use std::{
    collections::BTreeMap,
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, AtomicUsize, Ordering::Relaxed},
    },
    time::{Duration, Instant},
};

/// What became of a request.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Outcome {
    /// 2xx with the body that was expected.
    Ok,
    /// The function's own 4xx or 5xx, or a body that is not its.
    Wrong,
    /// No connection.
    Dial,
    /// The connection broke before the answer was whole.
    Reset,
    /// No whole answer in time.
    Timeout,
    /// A 429.
    Limited,
    /// A 5xx of the platform.
    Platform,
}

/// One request.
#[derive(Debug, Clone)]
pub struct Sample {
    /// Its place in the load.
    pub number: u32,
    /// When it was due, after the load's start.
    pub due: Duration,
    /// From when it was due to the end of its answer.
    pub took: Duration,
    /// What became of it.
    pub outcome: Outcome,
    /// The node that answered.
    pub node: Option<String>,
    /// How it failed, in words.
    pub detail: String,
}

/// What to send.
#[derive(Clone)]
pub struct Plan {
    /// Base addresses; requests go to them in turn. One that refuses connections is passed over, as a load balancer would.
    pub routers: Vec<String>,
    /// Paths after `/run/`, in turn.
    pub targets: Vec<String>,
    /// Requests per second.
    pub rate: u32,
    /// A body makes every request a POST, which must not be sent twice; `?once={body}-{number}` tells them apart.
    pub body: Option<&'static str>,
}

/// After so long an answer is not waited for.
const TIMEOUT: Duration = Duration::from_secs(15);

/// A load that runs.
pub struct Load {
    began: Instant,
    stop: Arc<AtomicBool>,
    task: tokio::task::JoinHandle<()>,
    samples: Arc<Mutex<Vec<Sample>>>,
}

impl Load {
    /// Starts sending.
    ///
    /// # Panics
    /// Without routers or targets.
    #[must_use]
    pub fn start(plan: Plan) -> Self {
        assert!(!plan.routers.is_empty() && !plan.targets.is_empty() && plan.rate > 0);
        let (began, stop, samples) = (Instant::now(), Arc::new(AtomicBool::new(false)), Arc::new(Mutex::new(Vec::new())));
        let task = tokio::spawn(send(plan, began, Arc::clone(&stop), Arc::clone(&samples)));
        Self { began, stop, task, samples }
    }

    /// The moment now, on the samples' clock.
    #[must_use]
    pub fn now(&self) -> Duration {
        self.began.elapsed()
    }

    /// Stops sending, waits for what is under way, and gives all samples.
    pub async fn stop(self) -> Report {
        self.stop.store(true, Relaxed);
        let _ = self.task.await;
        let mut samples = std::mem::take(&mut *self.samples.lock().unwrap_or_else(std::sync::PoisonError::into_inner));
        samples.sort_by_key(|s| s.due);
        Report { samples }
    }
}

async fn send(plan: Plan, began: Instant, stop: Arc<AtomicBool>, samples: Arc<Mutex<Vec<Sample>>>) {
    let http = crate::http_client().timeout(TIMEOUT).connect_timeout(Duration::from_secs(2)).build().expect("a client");
    let (plan, turn) = (Arc::new(plan), Arc::new(AtomicUsize::new(0)));
    let gap = Duration::from_secs(1) / plan.rate;
    let mut tasks = tokio::task::JoinSet::new();
    for n in 0_u32.. {
        if stop.load(Relaxed) {
            break;
        }
        let due = gap * n;
        tokio::time::sleep_until((began + due).into()).await;
        let (http, plan, turn, samples) = (http.clone(), Arc::clone(&plan), Arc::clone(&turn), Arc::clone(&samples));
        tasks.spawn(async move {
            let target = &plan.targets[n as usize % plan.targets.len()];
            let target = plan.body.map_or_else(|| target.clone(), |body| format!("{target}?once={body}-{n}"));
            let (outcome, node, detail) = one(&http, &plan, &target, &turn).await;
            let sample = Sample { number: n, due, took: began.elapsed().saturating_sub(due), outcome, node, detail };
            samples.lock().unwrap_or_else(std::sync::PoisonError::into_inner).push(sample);
        });
        while tasks.try_join_next().is_some() {}
    }
    while tasks.join_next().await.is_some() {}
}

async fn one(http: &reqwest::Client, plan: &Plan, target: &str, turn: &AtomicUsize) -> (Outcome, Option<String>, String) {
    let mut last = (Outcome::Dial, None, String::new());
    // One turn for each request: those that are under way at once must not take each other's other address.
    let first = turn.fetch_add(1, Relaxed);
    for n in 0..plan.routers.len() {
        let router = &plan.routers[(first + n) % plan.routers.len()];
        let url = format!("{router}/run/{target}");
        let request = match plan.body {
            Some(body) => http.post(url).body(body),
            None => http.get(url),
        };
        let response = match request.send().await {
            Ok(response) => response,
            Err(error) if error.is_connect() => {
                last = (Outcome::Dial, None, format!("{error:?}"));
                continue;
            }
            Err(error) if error.is_timeout() => return (Outcome::Timeout, None, format!("{error:?}")),
            Err(error) => return (Outcome::Reset, None, format!("{error:?}")),
        };
        let status = response.status();
        let header = |name: &str| response.headers().get(name).and_then(|v| v.to_str().ok()).map(str::to_owned);
        let (node, problem) = (header("hearth-node"), header("content-type").is_some_and(|t| t == "application/problem+json"));
        return match response.text().await {
            Ok(_) if status.is_success() => (Outcome::Ok, node, String::new()),
            Ok(text) if status.as_u16() == 429 => (Outcome::Limited, node, text),
            Ok(text) if status.is_server_error() && problem && text.contains("\"fault\":\"platform\"") => {
                (Outcome::Platform, node, text)
            }
            Ok(text) => (Outcome::Wrong, node, format!("{status} {text}")),
            Err(error) if error.is_timeout() => (Outcome::Timeout, node, format!("{error:?}")),
            Err(error) => (Outcome::Reset, node, format!("{error:?}")),
        };
    }
    last
}

/// What a load came to.
pub struct Report {
    /// Every request, in the order in which they were due.
    pub samples: Vec<Sample>,
}

impl Report {
    /// Requests that were lost, or answered wrongly.
    #[must_use]
    pub fn lost(&self) -> Vec<&Sample> {
        self.samples.iter().filter(|s| s.outcome != Outcome::Ok).collect()
    }

    /// How many of each outcome.
    #[must_use]
    pub fn outcomes(&self) -> BTreeMap<Outcome, usize> {
        self.samples.iter().fold(BTreeMap::new(), |mut counts, s| {
            *counts.entry(s.outcome).or_default() += 1;
            counts
        })
    }

    /// How long after `fault` requests were still lost, or took longer than `slow`: by when the last of them was due.
    #[must_use]
    pub fn disturbed_for(&self, fault: Duration, slow: Duration) -> Duration {
        let disturbed = self.samples.iter().filter(|s| s.due >= fault && (s.outcome != Outcome::Ok || s.took > slow));
        disturbed.map(|s| s.due - fault).max().unwrap_or_default()
    }

    /// The share `q` of requests took no longer than this.
    #[must_use]
    pub fn quantile(&self, q: f64) -> Duration {
        let mut took: Vec<Duration> = self.samples.iter().map(|s| s.took).collect();
        took.sort_unstable();
        let at = ((took.len() as f64 - 1.0) * q).round() as usize;
        took.get(at).copied().unwrap_or_default()
    }

    /// Answers by node.
    #[must_use]
    pub fn by_node(&self) -> BTreeMap<String, usize> {
        self.samples.iter().filter_map(|s| s.node.clone()).fold(BTreeMap::new(), |mut counts, node| {
            *counts.entry(node).or_default() += 1;
            counts
        })
    }

    /// One JSON line with the figures of a case, for whoever collects them.
    pub fn print(&self, case: &str, figures: serde_json::Value) {
        let ms = |d: Duration| (d.as_secs_f64() * 1e5).round() / 100.0;
        let line = serde_json::json!({
            "case": case, "requests": self.samples.len(), "lost": self.lost().len(), "outcomes": self.outcomes(),
            "p50_ms": ms(self.quantile(0.5)), "p99_ms": ms(self.quantile(0.99)), "max_ms": ms(self.quantile(1.0)), "figures": figures,
        });
        println!("FIGURE {line}");
    }

    /// The first few that were lost, to be read in a failed test.
    #[must_use]
    pub fn explain(&self) -> String {
        let lines =
            self.lost().into_iter().take(10).map(|s| format!("{:?} {:?} {:?} {:?} {}", s.due, s.took, s.outcome, s.node, s.detail));
        format!("{:?}\n{}", self.outcomes(), lines.collect::<Vec<_>>().join("\n"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use tokio::io::{AsyncReadExt, AsyncWriteExt};

    #[tokio::test(flavor = "multi_thread", worker_threads = 4)]
    async fn no_request_is_lost_to_an_address_that_refuses_while_another_serves() {
        let refusing = format!("http://127.0.0.1:{}", crate::process::free_port());
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let serving = format!("http://{}", listener.local_addr().unwrap());
        tokio::spawn(async move {
            while let Ok((mut stream, _)) = listener.accept().await {
                tokio::spawn(async move {
                    let mut head = [0; 4_096];
                    while stream.read(&mut head).await.is_ok_and(|n| n > 0) {
                        stream.write_all(b"HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n").await.unwrap();
                    }
                });
            }
        });
        let plan = Plan { routers: vec![refusing, serving], targets: vec!["t/c/f".to_owned()], rate: 1, body: None };
        let (plan, turn, http) = (Arc::new(plan), Arc::new(AtomicUsize::new(0)), crate::http_client().build().unwrap());
        let mut all = tokio::task::JoinSet::new();
        for _ in 0..200 {
            let (plan, turn, http) = (Arc::clone(&plan), Arc::clone(&turn), http.clone());
            all.spawn(async move { one(&http, &plan, "t/c/f", &turn).await });
        }
        for (outcome, _, detail) in all.join_all().await {
            assert_eq!(outcome, Outcome::Ok, "{detail}");
        }
    }
}
