//! A worker: takes a job, takes the module's record by its epoch, builds with a heartbeat, and writes down what came of it. At every
//! step another worker may have been quicker; then this one lets go.

use crate::{Builder, container::Outcome, settle::now};
use hearth_model::{BuildState, ModuleRecord};
use hearth_store::{Delivery, QueueError};
use prometheus_client::metrics::gauge::Gauge;
use std::{
    sync::Arc,
    time::{Duration, Instant},
};

/// How long one look at the queue waits.
const RECEIVE_WAIT: Duration = Duration::from_secs(5);
/// Pause when the queue or the store cannot be reached.
const PAUSE: Duration = Duration::from_secs(2);

pub(crate) async fn run(builder: Arc<Builder>, worker: usize) {
    abandon(&builder, worker).await;
    while !builder.leaving.is_cancelled() {
        let mut receive = builder.deps.queue.receive(RECEIVE_WAIT, builder.config.visibility);
        let received = tokio::select! {
            received = &mut receive => received,
            () = builder.leaving.cancelled() => {
                // A call that is dropped may still be given a job, which nobody would see until its time-out.
                if let Ok(Some(delivery)) = receive.await {
                    hand_back(&builder, &delivery, Duration::ZERO).await;
                }
                return;
            }
        };
        match received {
            Ok(Some(delivery)) => handle(&builder, &delivery, worker).await,
            Ok(None) => {}
            Err(error) => {
                tracing::warn!(%error, "the build queue cannot be read; trying again");
                tokio::time::sleep(PAUSE).await;
            }
        }
    }
}

async fn handle(builder: &Arc<Builder>, delivery: &Delivery, worker: usize) {
    let job = &delivery.job;
    let record = match take(builder, delivery).await {
        Ok(Some(record)) => record,
        // Done already, or nobody wants it: the job has served its purpose.
        Ok(None) => return settle_job(builder, delivery).await,
        Err(detail) => {
            tracing::warn!(module = %job.spec, detail, "a module's record cannot be read; the job comes again");
            return hand_back(builder, delivery, PAUSE).await;
        }
    };
    tracing::info!(module = %job.spec, attempt = record.attempts, "building");
    let began = Instant::now();
    let _running = Running::new(&builder.counts.running);
    let outcome = tokio::select! {
        outcome = builder.build(job, worker) => outcome,
        lost = heartbeat(builder, delivery) => {
            tracing::warn!(module = %job.spec, %lost, "another worker has this build now");
            return abandon(builder, worker).await;
        }
        () = builder.leaving.cancelled() => {
            abandon(builder, worker).await;
            let mut queued = record.clone();
            queued.state = BuildState::Queued;
            let _ = builder.deps.functions.put_module(queued, Some(&record)).await;
            return hand_back(builder, delivery, Duration::ZERO).await;
        }
    };
    builder.counts.ended(&outcome, began.elapsed());
    finish(builder, delivery, record, outcome, began.elapsed()).await;
}

/// Counts a build as under way for as long as it lives.
struct Running<'a>(&'a Gauge);

impl<'a> Running<'a> {
    fn new(gauge: &'a Gauge) -> Self {
        gauge.inc();
        Self(gauge)
    }
}

impl Drop for Running<'_> {
    fn drop(&mut self) {
        self.0.dec();
    }
}

/// Ends what is left of a build that this worker no longer follows.
async fn abandon(builder: &Builder, worker: usize) {
    if let Err(error) = builder.abandon(worker).await {
        tracing::warn!(worker, %error, "a container of an abandoned build could not be removed; the next build removes it");
    }
}

/// Takes the record for this worker: one more attempt, a higher epoch. None when there is nothing to do.
async fn take(builder: &Builder, delivery: &Delivery) -> Result<Option<ModuleRecord>, String> {
    let (functions, job) = (&builder.deps.functions, &delivery.job);
    loop {
        let Some(found) = functions.get_module(&job.key).await.map_err(|e| e.to_string())? else { return Ok(None) };
        match &found.state {
            // A message that nobody has had before finds somebody at work: it is a second one for the same build, since a queue may double
            // what it is given. The first one comes again if that worker dies.
            BuildState::Building { .. } if delivery.attempt <= 1 => return Ok(None),
            BuildState::Ready { .. } => return Ok(None),
            BuildState::Failed { retry_at: None, .. } => return Ok(None),
            // The queue has given the job to us: whoever had it is gone, or slower than it said.
            BuildState::Queued | BuildState::Building { .. } | BuildState::Failed { .. } => {}
        }
        let mut mine = found.clone();
        mine.epoch += 1;
        mine.attempts += 1;
        mine.state = BuildState::Building { worker: builder.name.clone(), since: now() };
        if functions.put_module(mine.clone(), Some(&found)).await.map_err(|e| e.to_string())? {
            return Ok(Some(mine));
        }
    }
}

/// Keeps the job hidden from others; returns only when it is no longer ours.
async fn heartbeat(builder: &Builder, delivery: &Delivery) -> QueueError {
    loop {
        tokio::time::sleep(builder.config.visibility / 3).await;
        if let Err(error @ QueueError::Stale) = builder.deps.queue.extend(delivery, builder.config.visibility).await {
            return error;
        }
    }
}

async fn finish(builder: &Builder, delivery: &Delivery, mine: ModuleRecord, outcome: Outcome, took: Duration) {
    let job = &delivery.job;
    let mut record = mine.clone();
    let mut retry = None;
    match outcome {
        Outcome::Built { artifact, integrity, log } => {
            tracing::info!(module = %job.spec, bytes = artifact.bytes, ms = took.as_millis() as u64, "built");
            record.state = BuildState::Ready { artifact, finished_at: now(), build_ms: took.as_millis() as u64 };
            (record.integrity, record.log) = (integrity, log);
        }
        Outcome::Refused { reason, log } => {
            tracing::warn!(module = %job.spec, reason, "cannot be built");
            record.state = BuildState::Failed { reason, failed_at: now(), retry_at: None };
            record.log = log;
        }
        Outcome::Passing { reason, log } => {
            tracing::warn!(module = %job.spec, reason, attempt = mine.attempts, "a build failed");
            record.log = log;
            let again = mine.attempts < builder.config.attempts_max;
            retry = again.then(|| builder.config.retry_after * 2_u32.pow(mine.attempts.saturating_sub(1).min(10)));
            record.state = BuildState::Failed { reason, failed_at: now(), retry_at: retry.map(|wait| now().plus(wait)) };
        }
    }
    // The epoch decides: a worker that was taken for dead must not undo what the next one did.
    match builder.deps.functions.put_module(record.clone(), Some(&mine)).await {
        Ok(true) => {
            tracing::debug!(module = %job.spec, epoch = record.epoch, ready = retry.is_none(), "the build's record is durable")
        }
        Ok(false) => {
            tracing::warn!(module = %job.spec, "another worker has settled this build; dropping what this one made");
            return;
        }
        Err(error) => {
            tracing::warn!(module = %job.spec, %error, "the record cannot be written; the job comes again");
            return hand_back(builder, delivery, PAUSE).await;
        }
    }
    match retry {
        Some(wait) => hand_back(builder, delivery, wait).await,
        None => {
            builder.settle_waiting(&record).await;
            settle_job(builder, delivery).await;
        }
    }
}

async fn settle_job(builder: &Builder, delivery: &Delivery) {
    if let Err(error) = builder.deps.queue.settle(delivery).await {
        // It comes again and finds the record settled.
        tracing::warn!(module = %delivery.job.spec, %error, "a finished job could not be taken off the queue");
    }
}

async fn hand_back(builder: &Builder, delivery: &Delivery, wait: Duration) {
    if let Err(error) = builder.deps.queue.release(delivery, wait).await {
        tracing::debug!(module = %delivery.job.spec, %error, "a job could not be handed back; it comes again by itself");
    }
}
