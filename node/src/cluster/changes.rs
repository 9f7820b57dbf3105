//! News between nodes: what a management call or a build has changed here is told to all nodes, and what others tell is applied here. News
//! only says where to look again; what holds is in the store. News that cannot be sent waits, bounded, and is sent when etcd is back;
//! meanwhile every node believes its records for some seconds only.

use crate::{
    catalog::{Catalog, Change},
    handler::Handler,
};
use hearth_model::{ContainerPath, TenantName};
use hearth_placement::{ChangeNotice, NodeName, Notice, Notices, TableWatch};
use hearth_store::FunctionStore;
use std::{
    collections::VecDeque,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
    time::Duration,
};
use tokio::sync::mpsc;

/// News that waits for etcd; what is more becomes one "everything may have changed".
const WAITING_MAX: usize = 1_024;
/// Stands for everything; no name looks like it.
const EVERYTHING: &str = "*";
/// How long news waits after it could not be sent.
const AGAIN_AFTER: Duration = Duration::from_millis(500);
/// News comes from where the table comes from: with a table this old, it may have been missed. Several times what an idle etcd lets pass.
const QUIET_MAX: Duration = Duration::from_secs(5);
/// How often it is looked whether news can come.
const LOOK_EVERY: Duration = Duration::from_millis(500);
/// Deadline of the look at a container's record after it was changed elsewhere.
const READ_TIMEOUT: Duration = Duration::from_secs(5);

/// What is done here when something was changed elsewhere.
pub(super) struct Applier {
    pub catalog: Arc<Catalog>,
    pub handler: Arc<Handler>,
    pub functions: Arc<dyn FunctionStore>,
}

impl Applier {
    /// Forgets what the change concerns, and looks at containers that run here and may have to go.
    pub async fn apply(&self, change: &Change) {
        self.catalog.forget(change);
        match change {
            Change::Function(_) => {}
            Change::Container(path) => self.reconcile(path).await,
            Change::Tenant(tenant) => self.reconcile_tenant(tenant).await,
        }
    }

    async fn reconcile_tenant(&self, tenant: &TenantName) {
        for load in self.handler.loads() {
            if load.path.tenant == *tenant {
                self.reconcile(&load.path).await;
            }
        }
    }

    async fn reconcile(&self, path: &ContainerPath) {
        if !self.handler.holds(path) {
            return;
        }
        match tokio::time::timeout(READ_TIMEOUT, self.functions.get_container(path)).await {
            Ok(Ok(record)) => self.handler.reconcile(path, record.as_ref()),
            Ok(Err(error)) => tracing::warn!(container = %path, %error, "changed elsewhere, and cannot be looked at"),
            Err(_) => tracing::warn!(container = %path, "changed elsewhere, and the store does not answer"),
        }
    }

    /// Anything may have changed: records are checked before they serve again, and every container here is looked at.
    async fn resync(&self) {
        self.catalog.doubt_all();
        for load in self.handler.loads() {
            self.reconcile(&load.path).await;
        }
    }
}

/// Counts since the start.
#[derive(Debug, Default)]
pub(super) struct Counters {
    pub told: AtomicU64,
    pub told_late: AtomicU64,
    pub heard: AtomicU64,
    pub resyncs: AtomicU64,
}

/// Tells the other nodes what is changed here, until the channel closes.
pub(super) async fn tell(
    notices: Notices,
    origin: NodeName,
    catalog: Arc<Catalog>,
    mut changes: mpsc::Receiver<Change>,
    counters: Arc<Counters>,
) {
    let mut waiting: VecDeque<String> = VecDeque::new();
    loop {
        if waiting.is_empty() {
            match changes.recv().await {
                Some(change) => waiting.push_back(change.to_string()),
                None => return,
            }
        }
        // What came meanwhile joins those that wait, once each.
        while let Ok(change) = changes.try_recv() {
            let path = change.to_string();
            if !waiting.contains(&path) {
                waiting.push_back(path);
            }
        }
        if waiting.len() > WAITING_MAX || catalog.take_untold() {
            waiting.clear();
            waiting.push_back(EVERYTHING.to_owned());
        }
        while let Some(path) = waiting.front() {
            match notices.publish(&ChangeNotice { path: path.clone(), origin: origin.to_string() }).await {
                Ok(()) => {
                    counters.told.fetch_add(1, Relaxed);
                    waiting.pop_front();
                }
                Err(error) => {
                    counters.told_late.fetch_add(1, Relaxed);
                    tracing::warn!(%path, %error, "other nodes cannot be told of a change; trying again");
                    tokio::time::sleep(AGAIN_AFTER).await;
                    break;
                }
            }
        }
    }
}

/// Applies what other nodes tell, until the channel closes.
pub(super) async fn hear(applier: Arc<Applier>, own: NodeName, mut notices: mpsc::Receiver<Notice>, counters: Arc<Counters>) {
    while let Some(notice) = notices.recv().await {
        match notice {
            Notice::Changed(change) if change.origin == own.as_str() => {}
            Notice::Changed(change) => match change.path.parse::<Change>() {
                Ok(change) => {
                    counters.heard.fetch_add(1, Relaxed);
                    applier.apply(&change).await;
                }
                Err(_) => {
                    counters.resyncs.fetch_add(1, Relaxed);
                    applier.resync().await;
                }
            },
            Notice::Resync { reason } => {
                tracing::info!(reason, "looking at everything again");
                counters.resyncs.fetch_add(1, Relaxed);
                applier.resync().await;
            }
        }
    }
}

/// Keeps the catalog informed of whether news can come.
pub(super) async fn watch_news(catalog: Arc<Catalog>, table: TableWatch) {
    loop {
        catalog.set_news(table.age() < QUIET_MAX);
        tokio::time::sleep(LOOK_EVERY).await;
    }
}
