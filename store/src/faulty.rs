//! A queue and an artifact store that misbehave by a seed, over any backend: calls fail before they are made, their results are lost, they are
//! made twice, come late, or what is read ends half-way. For tests of those who use them; the layer that repeats calls to AWS has its own faults,
//! one level below (`aws::faulty`).

use crate::{
    ArtifactError, ArtifactStore, BuildJob, BuildQueue, Delivery, Put, QueueError,
    artifact::ArtifactStream,
    aws::faulty::{Dice, Fault, Faults},
};
use async_trait::async_trait;
use bytes::Bytes;
use futures_util::{StreamExt, stream};
use std::{path::Path, sync::Arc, time::Duration};

/// What lies below, with faults above it.
pub struct Faulty<S: ?Sized> {
    inner: Arc<S>,
    dice: Dice,
}

impl<S: ?Sized> Faulty<S> {
    /// The same seed makes the same sequence of faults.
    #[must_use]
    pub fn new(inner: Arc<S>, faults: Faults, seed: u64) -> Self {
        Self { inner, dice: Dice::new(faults, seed) }
    }

    async fn around<T, E, F>(&self, broken: impl Fn(&'static str) -> E, call: impl Fn() -> F) -> Result<T, E>
    where
        F: Future<Output = Result<T, E>>,
    {
        match self.dice.throw() {
            Fault::Refuse => Err(broken("refused (a fault of the test)")),
            Fault::LoseAnswer => {
                let _ = call().await;
                Err(broken("the answer was lost (a fault of the test)"))
            }
            Fault::Duplicate => {
                let _ = call().await;
                call().await
            }
            Fault::Delay(delay) => {
                tokio::time::sleep(delay).await;
                call().await
            }
            Fault::Truncate | Fault::None => call().await,
        }
    }
}

fn queue_broken(detail: &'static str) -> QueueError {
    QueueError::Unavailable { call: "call", resource: "faulty queue".into(), detail: detail.into() }
}

fn store_broken(detail: &'static str) -> ArtifactError {
    ArtifactError::Unavailable { call: "call", resource: "faulty store".into(), detail: detail.into() }
}

#[async_trait]
impl BuildQueue for Faulty<dyn BuildQueue> {
    async fn ping(&self) -> Result<(), QueueError> {
        self.around(queue_broken, || self.inner.ping()).await
    }
    async fn send(&self, job: &BuildJob, delay: Duration) -> Result<(), QueueError> {
        self.around(queue_broken, || self.inner.send(job, delay)).await
    }
    async fn receive(&self, wait: Duration, visibility: Duration) -> Result<Option<Delivery>, QueueError> {
        self.around(queue_broken, || self.inner.receive(wait, visibility)).await
    }
    async fn extend(&self, delivery: &Delivery, visibility: Duration) -> Result<(), QueueError> {
        self.around(queue_broken, || self.inner.extend(delivery, visibility)).await
    }
    async fn settle(&self, delivery: &Delivery) -> Result<(), QueueError> {
        self.around(queue_broken, || self.inner.settle(delivery)).await
    }
    async fn release(&self, delivery: &Delivery, delay: Duration) -> Result<(), QueueError> {
        self.around(queue_broken, || self.inner.release(delivery, delay)).await
    }
    async fn depth(&self) -> Result<u64, QueueError> {
        self.around(queue_broken, || self.inner.depth()).await
    }
    async fn receive_dead(&self, limit: usize, visibility: Duration) -> Result<Vec<Delivery>, QueueError> {
        self.around(queue_broken, || self.inner.receive_dead(limit, visibility)).await
    }
    async fn settle_dead(&self, delivery: &Delivery) -> Result<(), QueueError> {
        self.around(queue_broken, || self.inner.settle_dead(delivery)).await
    }
}

#[async_trait]
impl ArtifactStore for Faulty<dyn ArtifactStore> {
    async fn ping(&self) -> Result<(), ArtifactError> {
        self.around(store_broken, || self.inner.ping()).await
    }
    async fn put_file(&self, sha256: &str, path: &Path) -> Result<Put, ArtifactError> {
        self.around(store_broken, || self.inner.put_file(sha256, path)).await
    }
    async fn put_bytes(&self, bytes: Bytes) -> Result<(String, Put), ArtifactError> {
        self.around(store_broken, || self.inner.put_bytes(bytes.clone())).await
    }
    async fn get(&self, sha256: &str) -> Result<(u64, ArtifactStream), ArtifactError> {
        let (length, chunks) = self.around(store_broken, || self.inner.get(sha256)).await?;
        if !matches!(self.dice.throw(), Fault::Truncate) {
            return Ok((length, chunks));
        }
        // Half of the first chunk, then the connection breaks.
        let half = |chunk: Result<Bytes, ArtifactError>| chunk.map(|bytes| bytes.slice(..bytes.len() / 2));
        let broken = stream::once(async { Err(store_broken("the stream broke off (a fault of the test)")) });
        Ok((length, chunks.take(1).map(half).chain(broken).boxed()))
    }
    async fn head(&self, sha256: &str) -> Result<Option<u64>, ArtifactError> {
        self.around(store_broken, || self.inner.head(sha256)).await
    }
    async fn delete(&self, sha256: &str) -> Result<(), ArtifactError> {
        self.around(store_broken, || self.inner.delete(sha256)).await
    }
}
