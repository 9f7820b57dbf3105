//! A closed loop: so many connections, each sending its next request when it has the answer to the last. It finds a target's capacity. It cannot
//! measure latency under a load: a slow answer delays the requests after it, and so hides itself.

use super::{outcome::KEEP_BYTES, worker::request};
use crate::{
    net::{Client, Failed, Failure, Options},
    population::Population,
};
use anyhow::Context as _;
use hdrhistogram::Histogram;
use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex, PoisonError},
    time::{Duration, Instant},
};
use tokio_util::sync::CancellationToken;

/// Distinct failures that are told apart.
const FAILURES_MAX: usize = 32;

/// What is to be done.
#[derive(Debug, Clone)]
pub struct ClosedLoop {
    /// Who is called, in turn.
    pub population: Arc<Population>,
    /// How connections are made.
    pub options: Options,
    /// Requests at once, over all threads.
    pub connections: usize,
    /// Threads that send.
    pub threads: usize,
    /// Not measured at the start.
    pub warm_up: Duration,
    /// Measured.
    pub length: Duration,
    /// Deadline of one request.
    pub timeout: Duration,
    /// Every function once, and then the end, instead of a length.
    pub once: bool,
}

/// What came of it.
#[derive(Debug, Clone)]
pub struct ClosedResult {
    /// Answers with a status below 400, within the measured time.
    pub ok: u64,
    /// Everything else, within the measured time.
    pub failed: u64,
    /// The measured time.
    pub elapsed: Duration,
    /// Nanoseconds from sending to the whole answer, of the successful ones.
    pub latency: Histogram<u64>,
    /// What failed, and how often.
    pub failures: BTreeMap<String, u64>,
}

impl ClosedResult {
    fn new() -> Self {
        Self { ok: 0, failed: 0, elapsed: Duration::ZERO, latency: crate::latency::histogram(), failures: BTreeMap::new() }
    }

    fn add(&mut self, other: &Self) {
        self.ok += other.ok;
        self.failed += other.failed;
        self.elapsed = self.elapsed.max(other.elapsed);
        // Both have the same bounds, so nothing can be out of them.
        let _ = self.latency.add(&other.latency);
        for (text, count) in &other.failures {
            *self.failures.entry(text.clone()).or_default() += count;
        }
    }

    fn fail(&mut self, text: &str) {
        self.failed += 1;
        if let Some(count) = self.failures.get_mut(text) {
            *count += 1;
        } else if self.failures.len() < FAILURES_MAX {
            self.failures.insert(text.to_owned(), 1);
        }
    }
}

/// Runs it.
///
/// # Errors
/// A thread cannot be made.
pub async fn closed_loop(job: ClosedLoop, stop: CancellationToken) -> anyhow::Result<ClosedResult> {
    let threads = job.threads.clamp(1, job.connections.max(1));
    let mut handles = Vec::new();
    for index in 0..threads {
        let (job, stop) = (job.clone(), stop.clone());
        handles.push(super::spawn(&format!("loadtest-closed-{index}"), move || -> anyhow::Result<ClosedResult> {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().context("making a runtime")?;
            runtime.block_on(one_thread(job, index, threads, stop))
        })?);
    }
    let mut total = ClosedResult::new();
    for handle in handles {
        total.add(&super::join(handle).await??);
    }
    Ok(total)
}

async fn one_thread(job: ClosedLoop, index: usize, threads: usize, stop: CancellationToken) -> anyhow::Result<ClosedResult> {
    let mine = (job.connections + threads - 1 - index) / threads;
    let client = Arc::new(Client::new(job.population.destinations.clone(), job.options.clone()));
    let total = Arc::new(Mutex::new(ClosedResult::new()));
    let begin = Instant::now() + job.warm_up;
    let mut tasks = tokio::task::JoinSet::new();
    for lane in 0..mine {
        let lane = Lane { first: index + lane * threads, step: job.connections.max(1), begin, stop: stop.clone() };
        tasks.spawn(one_connection(job.clone(), lane, Arc::clone(&client), Arc::clone(&total)));
    }
    while let Some(ended) = tasks.join_next().await {
        ended.context("a connection's task failed")?;
    }
    let mut total = total.lock().unwrap_or_else(PoisonError::into_inner).clone();
    // What ended after the measured time is not counted, so the time beyond it is not either.
    total.elapsed = if job.once { begin.elapsed() } else { begin.elapsed().min(job.length) };
    Ok(total)
}

struct Lane {
    first: usize,
    step: usize,
    begin: Instant,
    stop: CancellationToken,
}

async fn one_connection(job: ClosedLoop, lane: Lane, client: Arc<Client>, total: Arc<Mutex<ClosedResult>>) {
    let end = lane.begin + job.length;
    let calls = &job.population.calls;
    let mut index = lane.first;
    loop {
        let sent = Instant::now();
        if lane.stop.is_cancelled() || (job.once && index >= calls.len()) || (!job.once && sent >= end) {
            return;
        }
        let call = &calls[index % calls.len()];
        index += lane.step;
        let result = tokio::time::timeout(job.timeout, client.call(usize::from(call.place), request(call), KEEP_BYTES)).await;
        let ended = Instant::now();
        let failure = match result {
            Ok(Ok(answer)) if answer.status.as_u16() < 400 => None,
            Ok(Ok(answer)) => Some(Failed::new(Failure::Protocol, format!("{}", answer.status))),
            Ok(Err(failed)) => Some(failed),
            Err(_) => Some(Failed::new(Failure::Timeout, "no whole answer in time")),
        };
        if failure.is_some() && !job.once {
            // A target that refuses everything is not to be hammered as fast as it refuses.
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
        if job.once || (sent >= lane.begin && ended <= end) {
            let mut total = total.lock().unwrap_or_else(PoisonError::into_inner);
            match failure {
                None => {
                    total.ok += 1;
                    total.latency.saturating_record(ended.duration_since(sent).as_nanos() as u64);
                }
                Some(failed) => total.fail(&failed.detail),
            }
        }
    }
}
