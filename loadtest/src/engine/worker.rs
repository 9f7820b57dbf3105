//! One sending thread: walks through its share of the arrivals and starts a request for each at its moment, whatever became of those before.

use super::{
    Job,
    clock::Timer,
    outcome::{Interner, KEEP_BYTES, Outcome, Record, Start},
};
use crate::{
    arrivals::Arrival,
    collect::Message,
    net::{Client, Failed, Failure},
    pacer::{Action, Pacer},
    population::Call,
};
use anyhow::Context as _;
use std::{
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicU64, Ordering},
        mpsc::SyncSender,
    },
    time::{Duration, Instant},
};
use tokio_util::{sync::CancellationToken, task::TaskTracker};

/// Records of one batch.
const BATCH: usize = 512;
/// How long a record may wait in its batch.
const BATCH_AGE: Duration = Duration::from_millis(50);
/// After an interruption, what is in flight gets this long.
const STOP_GRACE: Duration = Duration::from_secs(2);
/// A wait this short is spent looking for answers: arming the kernel's timer and being woken by it costs more than that, on a virtual machine
/// most of all (48 us a request at 20,000/s, where a request alone costs 14).
const SPIN_MAX: Duration = Duration::from_micros(60);

/// What a thread is given.
pub(super) struct Context {
    pub job: Arc<Job>,
    pub index: usize,
    pub epoch: Instant,
    pub interner: Arc<Interner>,
    pub sender: SyncSender<Message>,
    pub in_flight: Arc<AtomicU64>,
    pub stop: CancellationToken,
}

/// What the requests of one thread share.
struct Shared {
    client: Client,
    job: Arc<Job>,
    epoch: Instant,
    interner: Arc<Interner>,
    batch: Mutex<Vec<Record>>,
    sender: SyncSender<Message>,
    in_flight: Arc<AtomicU64>,
}

/// Runs a thread to the end of its arrivals and of the requests that it started.
pub(super) fn run(context: Context) -> anyhow::Result<()> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().context("making a runtime")?;
    runtime.block_on(send_all(context))
}

async fn send_all(context: Context) -> anyhow::Result<()> {
    let job = context.job;
    let shared = Arc::new(Shared {
        client: Client::new(job.population.destinations.clone(), job.options.clone()),
        job: Arc::clone(&job),
        epoch: context.epoch,
        interner: context.interner,
        batch: Mutex::new(Vec::with_capacity(BATCH)),
        sender: context.sender,
        in_flight: context.in_flight,
    });
    let flusher = tokio::spawn({
        let shared = Arc::clone(&shared);
        async move {
            loop {
                tokio::time::sleep(BATCH_AGE).await;
                shared.flush();
            }
        }
    });
    let mine = super::arrivals(&job).skip(context.index).step_by(job.workers.max(1));
    let requests = TaskTracker::new();
    let walked = walk(&shared, Pacer::new(mine, super::bounds(&job)), &requests, &context.stop).await;
    requests.close();
    // Each has its deadline, so this ends; whoever interrupts the run does not want to wait for it.
    tokio::select! {
        () = requests.wait() => {}
        () = async { context.stop.cancelled().await; tokio::time::sleep(STOP_GRACE).await } => {}
    }
    flusher.abort();
    shared.flush();
    walked
}

async fn walk(
    shared: &Arc<Shared>,
    mut pacer: Pacer<impl Iterator<Item = Arrival>>,
    requests: &TaskTracker,
    stop: &CancellationToken,
) -> anyhow::Result<()> {
    let timer = Timer::new().context("making a timer")?;
    loop {
        let now = Instant::now();
        let early = shared.epoch.saturating_duration_since(now);
        if !early.is_zero() {
            timer.wait(early).await?;
            continue;
        }
        let now_ns = now.duration_since(shared.epoch).as_nanos() as u64;
        match pacer.next(now_ns, shared.in_flight.load(Ordering::Relaxed)) {
            Action::Send(arrival) => {
                shared.in_flight.fetch_add(1, Ordering::Relaxed);
                requests.spawn(perform(Arc::clone(shared), arrival));
                // Answers that are there go first: a generator that is late would otherwise fill up with requests that only it keeps waiting,
                // each on a connection of its own, and never catch up.
                tokio::task::yield_now().await;
            }
            Action::Unsent(arrival) => {
                let mut record = blank(arrival);
                record.reason = shared.interner.number("unsent: the generator was at its bound or too late");
                shared.put(record);
                tokio::task::yield_now().await;
            }
            Action::WaitUntil(at_ns) => {
                let wait = Duration::from_nanos(at_ns.saturating_sub(now_ns));
                if wait <= SPIN_MAX {
                    tokio::task::yield_now().await;
                } else {
                    // Both arms may be dropped at any time without losing anything.
                    tokio::select! {
                        biased;
                        () = stop.cancelled() => return Ok(()),
                        waited = timer.wait(wait) => waited.context("waiting for the next request's moment")?,
                    }
                }
            }
            Action::Done => return Ok(()),
        }
        if stop.is_cancelled() {
            return Ok(());
        }
    }
}

async fn perform(shared: Arc<Shared>, arrival: Arrival) {
    let sent_at = Instant::now();
    let call = &shared.job.population.calls[arrival.function as usize];
    let exchange = shared.client.call(usize::from(call.place), request(call), KEEP_BYTES);
    let result = match tokio::time::timeout(shared.job.timeout, exchange).await {
        Ok(result) => result,
        Err(_) => Err(Failed::new(Failure::Timeout, "no whole answer in time")),
    };
    let ended_at = Instant::now();
    let since_start = |at: Instant| at.duration_since(shared.epoch).as_nanos() as u64;
    let mut record = blank(arrival);
    record.sent = true;
    record.latency_ns = since_start(ended_at).saturating_sub(arrival.at_ns);
    record.service_ns = ended_at.duration_since(sent_at).as_nanos() as u64;
    match &result {
        Ok(answer) => {
            record.head_ns = since_start(answer.head_at).saturating_sub(arrival.at_ns);
            record.answered(answer, call, &shared.job.node_header, &shared.interner);
        }
        Err(failed) => record.failed(failed, &shared.interner),
    }
    shared.in_flight.fetch_sub(1, Ordering::Relaxed);
    shared.put(record);
}

/// The request of a prepared call.
pub(super) fn request(call: &Call) -> http::Request<crate::net::Payload> {
    let mut request = http::Request::new(call.form.body.clone());
    *request.method_mut() = call.form.method.clone();
    *request.uri_mut() = call.uri.clone();
    request.headers_mut().clone_from(&call.form.headers);
    request
}

fn blank(arrival: Arrival) -> Record {
    Record {
        at_ns: arrival.at_ns,
        latency_ns: 0,
        service_ns: 0,
        head_ns: 0,
        function: arrival.function,
        stream: arrival.stream,
        step: arrival.step,
        status: 0,
        reason: 0,
        node: 0,
        outcome: Outcome::Generator,
        start: Start::Unknown,
        shed: false,
        sent: false,
        bytes: 0,
        phases: [-1.0; 5],
    }
}

impl Shared {
    fn put(&self, record: Record) {
        let full = {
            let mut batch = self.batch.lock().unwrap_or_else(PoisonError::into_inner);
            batch.push(record);
            (batch.len() >= BATCH).then(|| std::mem::replace(&mut *batch, Vec::with_capacity(BATCH)))
        };
        if let Some(batch) = full {
            self.hand_over(batch);
        }
    }

    fn flush(&self) {
        let batch = std::mem::take(&mut *self.batch.lock().unwrap_or_else(PoisonError::into_inner));
        if !batch.is_empty() {
            self.hand_over(batch);
        }
    }

    /// Waits where the counting thread is that far behind. That it has ended can only mean that it failed, which its join reports.
    fn hand_over(&self, batch: Vec<Record>) {
        drop(self.sender.send(Message::Records(batch)));
    }
}
