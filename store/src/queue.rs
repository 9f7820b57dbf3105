//! [`BuildQueue`]: builds to be done, delivered at least once, hidden while a worker has them, dead-lettered in the end.

use async_trait::async_trait;
use hearth_model::{BuildKey, ModuleSpec, function::NodeVersion};
use serde::{Deserialize, Serialize};
use std::time::Duration;

/// One build to do. The module record under `key` says whether it is still wanted.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct BuildJob {
    /// Which build.
    pub key: BuildKey,
    /// Of what.
    pub spec: ModuleSpec,
    /// For which Node.js.
    pub node: NodeVersion,
    /// Whether its lifecycle scripts run.
    pub scripts: bool,
}

/// A job in the hands of a worker, until its visibility time-out.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Delivery {
    /// What to do.
    pub job: BuildJob,
    /// Names this delivery; worthless once the time-out has passed and another worker has the job.
    pub receipt: String,
    /// How often the job has been delivered, this time included.
    pub attempt: u32,
}

/// Why a call to the queue failed.
#[derive(Debug, thiserror::Error)]
pub enum QueueError {
    /// The delivery is no longer this worker's.
    #[error("this delivery has timed out and belongs to another worker")]
    Stale,
    /// The backend did not answer, or refused.
    #[error("{call} on {resource}: {detail}")]
    Unavailable {
        /// The call that failed.
        call: &'static str,
        /// Which file or queue.
        resource: String,
        /// The backend's words.
        detail: String,
    },
}

/// Builds to be done. At least once, in no promised order.
#[async_trait]
pub trait BuildQueue: Send + Sync + 'static {
    /// A cheap call that fails when the backend is out of reach.
    async fn ping(&self) -> Result<(), QueueError>;
    /// Adds a job, to be delivered after `delay` at the earliest. Adding a job twice delivers it twice.
    async fn send(&self, job: &BuildJob, delay: Duration) -> Result<(), QueueError>;
    /// Waits at most `wait` for a job; it stays hidden from others for `visibility`. A job delivered more often than the
    /// queue's maximum goes to the dead letters instead.
    async fn receive(&self, wait: Duration, visibility: Duration) -> Result<Option<Delivery>, QueueError>;
    /// Hides the job for another `visibility` from now.
    async fn extend(&self, delivery: &Delivery, visibility: Duration) -> Result<(), QueueError>;
    /// The job is done: never deliver it again. Settling what is gone already is no error.
    async fn settle(&self, delivery: &Delivery) -> Result<(), QueueError>;
    /// Hands the job back, to be delivered after `delay`.
    async fn release(&self, delivery: &Delivery, delay: Duration) -> Result<(), QueueError>;
    /// Jobs waiting or in flight; on some backends an estimate.
    async fn depth(&self) -> Result<u64, QueueError>;
    /// Up to `limit` jobs of the dead letters, so that their records can be settled. Each comes again after `visibility` (at once, where
    /// this process alone has the queue), until `settle_dead`.
    async fn receive_dead(&self, limit: usize, visibility: Duration) -> Result<Vec<Delivery>, QueueError>;
    /// What the dead letter meant is written down: never deliver it again. Settling what is gone already is no error.
    async fn settle_dead(&self, delivery: &Delivery) -> Result<(), QueueError>;
}
