//! Runs a plan: threads that send (each with a single-threaded runtime of its own, so that a request never changes threads), one that
//! counts, and the commands that are run meanwhile.

mod clock;
mod closed;
mod fault;
mod outcome;
mod worker;

pub use closed::{ClosedLoop, ClosedResult, closed_loop};
pub use fault::{FaultEvent, FaultJob};
pub use outcome::{Fault, Interner, Outcome, Phase, Record, Start};

use crate::{
    arrivals::{LoadStep, Spacing, StreamArrivals},
    collect::{Collector, Gathered, Gauges, Layout, Message},
    live::View,
    net::Options,
    pacer::Bounds,
    pick::Picker,
    population::Population,
};
use anyhow::Context as _;
use std::{
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
        mpsc,
    },
    thread,
    time::{Duration, Instant},
};
use tokio_util::sync::CancellationToken;

/// Batches of records on their way to the thread that counts; when it is full, the senders wait, and are seen to be late.
const BATCHES_MAX: usize = 1_024;

/// One stream, ready to run.
#[derive(Debug, Clone)]
pub struct StreamJob {
    /// Its name.
    pub name: String,
    /// What it does.
    pub steps: Vec<LoadStep>,
    /// Names of the steps that are listed.
    pub step_names: Vec<Option<String>>,
    /// How arrivals lie in time.
    pub spacing: Spacing,
    /// Who is called.
    pub picker: Picker,
}

impl StreamJob {
    /// How long it lasts, in nanoseconds.
    #[must_use]
    pub fn length_ns(&self) -> u64 {
        self.steps.iter().map(|s| s.length_ns).sum()
    }
}

/// All that a run needs.
#[derive(Debug)]
pub struct Job {
    /// Who is called.
    pub population: Arc<Population>,
    /// What is sent.
    pub streams: Vec<StreamJob>,
    /// What is done meanwhile.
    pub faults: Vec<FaultJob>,
    /// How connections are made.
    pub options: Options,
    /// Deadline of one request.
    pub timeout: Duration,
    /// Requests in flight, in all.
    pub in_flight_max: u64,
    /// Threads that send.
    pub workers: usize,
    /// The seed.
    pub seed: u64,
    /// Of the start, so much is not measured.
    pub warm_up: Duration,
    /// The response header that names the node.
    pub node_header: http::HeaderName,
}

impl Job {
    /// How long the load lasts.
    #[must_use]
    pub fn length(&self) -> Duration {
        Duration::from_nanos(self.streams.iter().map(StreamJob::length_ns).max().unwrap_or(0))
    }
}

/// Runs a job to its end, or until `stop`: then nothing more is sent, and what is in flight gets its deadline.
///
/// # Errors
/// A thread cannot be made, or one has failed.
pub async fn run(
    job: Job,
    view: View,
    stop: CancellationToken,
    deploys: Option<crate::deploy::Deployer>,
) -> anyhow::Result<Gathered> {
    let job = Arc::new(job);
    let interner = Arc::new(Interner::default());
    let (sender, receiver) = mpsc::sync_channel::<Message>(BATCHES_MAX);
    let in_flight: Vec<Arc<AtomicU64>> = (0..job.workers.max(1)).map(|_| Arc::default()).collect();
    // A little later than now, so that every thread is there when the first request is due.
    let epoch = Instant::now() + Duration::from_millis(100);
    let gauges = Gauges { in_flight: in_flight.clone(), epoch };
    let collector = Collector::new(Layout::of(&job), Arc::clone(&interner), gauges, view);
    let counting = spawn("loadtest-count", move || collector.run(&receiver))?;
    let mut workers = Vec::new();
    for (index, in_flight) in in_flight.into_iter().enumerate() {
        let context = worker::Context {
            job: Arc::clone(&job),
            index,
            epoch,
            interner: Arc::clone(&interner),
            sender: sender.clone(),
            in_flight,
            stop: stop.clone(),
        };
        workers.push(spawn(&format!("loadtest-{index}"), move || worker::run(context))?);
    }
    let ended = CancellationToken::new();
    let mut beside = tokio::task::JoinSet::new();
    for fault in &job.faults {
        beside.spawn(fault::run(fault.clone(), epoch, sender.clone(), ended.clone()));
    }
    if let Some(deployer) = deploys {
        beside.spawn(deployer.run(epoch, job.length(), sender.clone(), ended.clone()));
    }
    drop(sender);
    let result = join_all(workers).await;
    ended.cancel();
    while beside.join_next().await.is_some() {}
    let gathered = join(counting).await?;
    result?;
    Ok(gathered)
}

fn spawn<T: Send + 'static>(name: &str, body: impl FnOnce() -> T + Send + 'static) -> anyhow::Result<thread::JoinHandle<T>> {
    thread::Builder::new().name(name.to_owned()).spawn(body).context("making a thread")
}

async fn join<T: Send + 'static>(handle: thread::JoinHandle<T>) -> anyhow::Result<T> {
    let joined = tokio::task::spawn_blocking(move || handle.join()).await.context("waiting for a thread")?;
    joined.map_err(|_| anyhow::anyhow!("a thread of the generator panicked: this is a defect"))
}

async fn join_all(handles: Vec<thread::JoinHandle<anyhow::Result<()>>>) -> anyhow::Result<()> {
    let mut result = Ok(());
    for handle in handles {
        result = result.and(join(handle).await?);
    }
    result
}

/// The arrivals of a job, all of them; thread `i` of `n` takes every `n`th.
fn arrivals(job: &Job) -> crate::arrivals::Merged {
    let streams = job.streams.iter().enumerate().map(|(number, stream)| {
        StreamArrivals::new(number as u16, stream.steps.clone(), stream.spacing, stream.picker.clone(), job.seed)
    });
    crate::arrivals::Merged::new(streams.collect())
}

/// The bounds of one thread of `workers`.
fn bounds(job: &Job) -> Bounds {
    Bounds {
        in_flight_max: (job.in_flight_max / job.workers.max(1) as u64).max(1),
        // Later than this, the load would be another one than the one asked for.
        late_max_ns: Duration::from_secs(5).as_nanos() as u64,
    }
}

/// The sum of what is in flight.
#[must_use]
pub fn in_flight(of: &[Arc<AtomicU64>]) -> u64 {
    of.iter().map(|n| n.load(Ordering::Relaxed)).sum()
}
