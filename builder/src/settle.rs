//! Versions that wait for a build: they go live when all their modules are ready, and fail when one of them cannot be built. A sweep
//! mends what a process that ended half-way left open.

use crate::Builder;
use hearth_model::{BuildState, FunctionPath, ModuleRecord, Timestamp, VersionNumber, VersionStatus};
use hearth_store::BuildJob;
use std::{
    sync::Arc,
    time::{Duration, SystemTime},
};

/// How often what was left open is looked for.
const SWEEP_EVERY: Duration = Duration::from_secs(20);
/// An open record without a job is taken for lost after so long.
const LOST_AFTER: Duration = Duration::from_secs(60);
/// A dead letter is looked at by nobody else for so long.
const DEAD_FOR: Duration = Duration::from_secs(30);
/// Versions settled at a time.
const VERSIONS_AT_ONCE: usize = 200;

pub(crate) fn now() -> Timestamp {
    SystemTime::now().into()
}

fn is_lost(open_since: Timestamp, after: Duration) -> bool {
    now().since(open_since) > after
}

impl Builder {
    /// Settles the versions that wait for this build, as far as their other modules allow.
    pub(crate) async fn settle_waiting(&self, record: &ModuleRecord) {
        loop {
            let waiting = match self.deps.functions.waiting_for(&record.key, VERSIONS_AT_ONCE).await {
                Ok(waiting) => waiting,
                Err(error) => {
                    tracing::warn!(module = %record.spec, %error, "versions that wait cannot be read; the sweep will settle them");
                    return;
                }
            };
            let mut settled = 0;
            for (path, version) in &waiting {
                match self.settle_version(path, *version).await {
                    Ok(true) => settled += 1,
                    Ok(false) => {}
                    Err(error) => {
                        tracing::warn!(function = %path, %error, "a version could not be settled; the sweep will try again")
                    }
                }
            }
            // Those that are left wait for another module as well.
            if settled == 0 || waiting.len() < VERSIONS_AT_ONCE {
                return;
            }
        }
    }

    async fn settle_version(&self, path: &FunctionPath, number: VersionNumber) -> Result<bool, hearth_store::StoreError> {
        let functions = &self.deps.functions;
        let Some(version) = functions.get_version(path, number).await? else { return Ok(false) };
        for module in &version.modules {
            match functions.get_module(&module.build).await?.map(|r| r.state) {
                Some(BuildState::Ready { .. }) => {}
                // One that is still tried again may become ready.
                Some(BuildState::Failed { reason, retry_at: None, .. }) => {
                    let reason = format!("{} could not be built: {reason}", module.spec);
                    functions.settle_version(path, number, VersionStatus::Failed { reason }).await?;
                    return Ok(true);
                }
                _ => return Ok(false),
            }
        }
        functions.settle_version(path, number, VersionStatus::Ready).await?;
        (self.deps.on_settled)(path);
        Ok(true)
    }

    /// A job among the dead letters: its builds failed or its workers ended every time, and whatever it does, it shall not go on doing it.
    /// Whether that is written down; a letter is taken off only then.
    async fn give_up(&self, job: &BuildJob) -> Result<bool, hearth_store::StoreError> {
        let functions = &self.deps.functions;
        let Some(found) = functions.get_module(&job.key).await? else { return Ok(true) };
        if matches!(found.state, BuildState::Ready { .. } | BuildState::Failed { retry_at: None, .. }) {
            return Ok(true);
        }
        let mut failed = found.clone();
        failed.epoch += 1;
        let reason = match &found.state {
            // The last try has said what is wrong.
            BuildState::Failed { reason, .. } => reason.clone(),
            _ => "the build ended its worker several times".to_owned(),
        };
        failed.state = BuildState::Failed { reason, failed_at: now(), retry_at: None };
        let written = functions.put_module(failed.clone(), Some(&found)).await?;
        if written {
            self.settle_waiting(&failed).await;
        }
        Ok(written)
    }

    async fn sweep_once(&self) -> Result<(), String> {
        let functions = &self.deps.functions;
        for dead in self.deps.queue.receive_dead(100, DEAD_FOR).await.map_err(|e| e.to_string())? {
            if self.give_up(&dead.job).await.map_err(|e| e.to_string())? {
                self.deps.queue.settle_dead(&dead).await.map_err(|e| e.to_string())?;
            }
        }
        // The queue's count of jobs is an estimate on some backends; a build that may still go on is not sent again on its word.
        let no_build_lasts = self.config.build_timeout + LOST_AFTER;
        let (mut cursor, mut oldest): (Option<String>, Option<Timestamp>) = (None, None);
        loop {
            let page = functions.list_modules(cursor.as_deref(), 500).await.map_err(|e| e.to_string())?;
            for record in page.items {
                if matches!(record.state, BuildState::Queued) {
                    oldest = Some(oldest.map_or(record.created_at, |o| o.min(record.created_at)));
                }
                match &record.state {
                    BuildState::Ready { .. } | BuildState::Failed { retry_at: None, .. } => self.settle_waiting(&record).await,
                    // Whoever should have sent or kept its job has ended in between.
                    BuildState::Queued if is_lost(record.created_at, LOST_AFTER) => self.send_again(&record).await?,
                    BuildState::Building { since, .. } if is_lost(*since, no_build_lasts) => self.send_again(&record).await?,
                    BuildState::Failed { retry_at: Some(at), .. } if is_lost(*at, LOST_AFTER) => self.send_again(&record).await?,
                    BuildState::Queued | BuildState::Building { .. } | BuildState::Failed { .. } => {}
                }
            }
            cursor = page.next;
            if cursor.is_none() {
                self.counts.oldest_waits(oldest.map(|since| now().since(since)).unwrap_or_default());
                return Ok(());
            }
        }
    }

    /// Sends a job for a build that has none, unless the queue still has something, which may be just that.
    async fn send_again(&self, record: &ModuleRecord) -> Result<(), String> {
        if !self.queue_is_empty().await {
            return Ok(());
        }
        let mut queued = record.clone();
        queued.epoch += 1;
        queued.state = BuildState::Queued;
        // As `Queued`, so that the new message is not taken for a second one. Of several sweeps one does it.
        if !self.deps.functions.put_module(queued, Some(record)).await.map_err(|e| e.to_string())? {
            return Ok(());
        }
        tracing::warn!(module = %record.spec, "a build that is open had no job; sending one");
        let job = BuildJob { key: record.key.clone(), spec: record.spec.clone(), node: record.node, scripts: record.scripts };
        self.deps.queue.send(&job, Duration::ZERO).await.map_err(|e| e.to_string())
    }

    async fn queue_is_empty(&self) -> bool {
        self.deps.queue.depth().await.is_ok_and(|depth| depth == 0)
    }
}

pub(crate) async fn sweep(builder: Arc<Builder>) {
    loop {
        tokio::select! {
            () = builder.leaving.cancelled() => return,
            () = tokio::time::sleep(SWEEP_EVERY) => {}
        }
        if let Err(detail) = builder.sweep_once().await {
            tracing::warn!(detail, "looking for builds left open failed; trying again later");
        }
    }
}
