//! Stores and a queue that misbehave by a seed, over any backend: calls fail before they are made, their results are lost, they are
//! made twice, come late, or what is read ends half-way. For tests of those who use them; the layer that repeats calls to AWS has its own faults,
//! one level below (`aws::faulty`).

use crate::{
    ArtifactError, ArtifactStore, BuildJob, BuildQueue, Delivery, FunctionStore, NewVersion, Page, Precondition, Put, QueueError,
    Servable, StoreError,
    artifact::ArtifactStream,
    aws::faulty::{Dice, Fault, Faults},
    function::TenantCounts,
};
use async_trait::async_trait;
use bytes::Bytes;
use futures_util::{StreamExt, stream};
use hearth_model::{
    BuildKey, Container, ContainerPath, Function, FunctionPath, FunctionVersion, ModuleRecord, Tenant, TenantName, Token,
    TokenHash, VersionNumber, VersionStatus,
};
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

fn records_broken(detail: &'static str) -> StoreError {
    StoreError::Unavailable { call: "call", resource: "faulty records".into(), detail: detail.into() }
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

#[async_trait]
impl FunctionStore for Faulty<dyn FunctionStore> {
    async fn ping(&self) -> Result<(), StoreError> {
        self.around(records_broken, || self.inner.ping()).await
    }
    async fn put_tenant(&self, tenant: Tenant, precondition: Precondition) -> Result<Tenant, StoreError> {
        self.around(records_broken, || self.inner.put_tenant(tenant.clone(), precondition)).await
    }
    async fn get_tenant(&self, tenant: &TenantName) -> Result<Option<Tenant>, StoreError> {
        self.around(records_broken, || self.inner.get_tenant(tenant)).await
    }
    async fn delete_tenant(&self, tenant: &TenantName, precondition: Precondition) -> Result<(), StoreError> {
        self.around(records_broken, || self.inner.delete_tenant(tenant, precondition)).await
    }
    async fn list_tenants(&self, cursor: Option<&str>, limit: usize) -> Result<Page<Tenant>, StoreError> {
        self.around(records_broken, || self.inner.list_tenants(cursor, limit)).await
    }
    async fn put_container(&self, container: Container, precondition: Precondition) -> Result<Container, StoreError> {
        self.around(records_broken, || self.inner.put_container(container.clone(), precondition)).await
    }
    async fn get_container(&self, path: &ContainerPath) -> Result<Option<Container>, StoreError> {
        self.around(records_broken, || self.inner.get_container(path)).await
    }
    async fn delete_container(&self, path: &ContainerPath, precondition: Precondition) -> Result<(), StoreError> {
        self.around(records_broken, || self.inner.delete_container(path, precondition)).await
    }
    async fn list_containers(
        &self,
        tenant: &TenantName,
        cursor: Option<&str>,
        limit: usize,
    ) -> Result<Page<Container>, StoreError> {
        self.around(records_broken, || self.inner.list_containers(tenant, cursor, limit)).await
    }
    async fn create_version(
        &self,
        path: &FunctionPath,
        new: NewVersion,
        precondition: Precondition,
    ) -> Result<(Function, FunctionVersion), StoreError> {
        self.around(records_broken, || self.inner.create_version(path, new.clone(), precondition)).await
    }
    async fn settle_version(
        &self,
        path: &FunctionPath,
        version: VersionNumber,
        status: VersionStatus,
    ) -> Result<Function, StoreError> {
        self.around(records_broken, || self.inner.settle_version(path, version, status.clone())).await
    }
    async fn set_live(
        &self,
        path: &FunctionPath,
        version: VersionNumber,
        precondition: Precondition,
    ) -> Result<Function, StoreError> {
        self.around(records_broken, || self.inner.set_live(path, version, precondition)).await
    }
    async fn get_function(&self, path: &FunctionPath) -> Result<Option<Function>, StoreError> {
        self.around(records_broken, || self.inner.get_function(path)).await
    }
    async fn get_version(&self, path: &FunctionPath, version: VersionNumber) -> Result<Option<FunctionVersion>, StoreError> {
        self.around(records_broken, || self.inner.get_version(path, version)).await
    }
    async fn get_servable(&self, path: &FunctionPath) -> Result<Option<Servable>, StoreError> {
        self.around(records_broken, || self.inner.get_servable(path)).await
    }
    async fn delete_function(&self, path: &FunctionPath, precondition: Precondition) -> Result<(), StoreError> {
        self.around(records_broken, || self.inner.delete_function(path, precondition)).await
    }
    async fn list_functions(&self, path: &ContainerPath, cursor: Option<&str>, limit: usize) -> Result<Page<Function>, StoreError> {
        self.around(records_broken, || self.inner.list_functions(path, cursor, limit)).await
    }
    async fn list_versions(
        &self,
        path: &FunctionPath,
        cursor: Option<&str>,
        limit: usize,
    ) -> Result<Page<FunctionVersion>, StoreError> {
        self.around(records_broken, || self.inner.list_versions(path, cursor, limit)).await
    }
    async fn count_tenant(&self, tenant: &TenantName) -> Result<TenantCounts, StoreError> {
        self.around(records_broken, || self.inner.count_tenant(tenant)).await
    }
    async fn put_token(&self, hash: TokenHash, token: Token) -> Result<(), StoreError> {
        self.around(records_broken, || self.inner.put_token(hash, token.clone())).await
    }
    async fn get_token(&self, hash: &TokenHash) -> Result<Option<Token>, StoreError> {
        self.around(records_broken, || self.inner.get_token(hash)).await
    }
    async fn list_tokens(
        &self,
        tenant: Option<&TenantName>,
        cursor: Option<&str>,
        limit: usize,
    ) -> Result<Page<Token>, StoreError> {
        self.around(records_broken, || self.inner.list_tokens(tenant, cursor, limit)).await
    }
    async fn delete_token(&self, id: &str) -> Result<Token, StoreError> {
        self.around(records_broken, || self.inner.delete_token(id)).await
    }
    async fn get_module(&self, key: &BuildKey) -> Result<Option<ModuleRecord>, StoreError> {
        self.around(records_broken, || self.inner.get_module(key)).await
    }
    async fn put_module(&self, record: ModuleRecord, expected: Option<&ModuleRecord>) -> Result<bool, StoreError> {
        self.around(records_broken, || self.inner.put_module(record.clone(), expected)).await
    }
    async fn list_modules(&self, cursor: Option<&str>, limit: usize) -> Result<Page<ModuleRecord>, StoreError> {
        self.around(records_broken, || self.inner.list_modules(cursor, limit)).await
    }
    async fn find_modules(&self, name: &str, version: &str) -> Result<Vec<ModuleRecord>, StoreError> {
        self.around(records_broken, || self.inner.find_modules(name, version)).await
    }
    async fn waiting_for(&self, key: &BuildKey, limit: usize) -> Result<Vec<(FunctionPath, VersionNumber)>, StoreError> {
        self.around(records_broken, || self.inner.waiting_for(key, limit)).await
    }
    async fn count_users(&self, key: &BuildKey) -> Result<u64, StoreError> {
        self.around(records_broken, || self.inner.count_users(key)).await
    }
    async fn get_document(&self, path: &FunctionPath) -> Result<Option<(serde_json::Value, u64)>, StoreError> {
        self.around(records_broken, || self.inner.get_document(path)).await
    }
    async fn put_document(
        &self,
        path: &FunctionPath,
        data: serde_json::Value,
        precondition: Precondition,
    ) -> Result<u64, StoreError> {
        self.around(records_broken, || self.inner.put_document(path, data.clone(), precondition)).await
    }
}
