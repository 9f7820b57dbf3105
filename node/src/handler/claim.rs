//! The cold path: a claim binds a container to a tenant for life, a load puts a function's version into it. And the ways out:
//! retire (finish what runs), kill, and what is cleaned up when a container has ended.

use super::{
    AcquireError, Handler, LoadTimes,
    adopt::Persisted,
    container::{LiveContainer, Settings, State},
    inbound::Owner,
    pool::{self, Waiting},
};
use futures_util::StreamExt;
use hearth_model::{
    BuildKey, CodeRef, Egress, FunctionVersion, limits,
    protocol::{ToRuntime, paths},
};
use hearth_sandbox::{Cpus, Exit, SandboxError};
use hearth_store::{ArtifactError, Servable};
use std::{
    collections::{BTreeMap, BTreeSet},
    fs, io,
    path::{Component, Path},
    sync::{Arc, atomic::Ordering::Relaxed},
    time::{Duration, Instant},
};

/// How long it may take until it is known how a container ended whose connection has broken.
const EXIT_KNOWN_TIMEOUT: Duration = Duration::from_secs(2);

impl Handler {
    /// A container of the tenant's own; all who ask at once get the same.
    pub(super) async fn claim(self: &Arc<Self>, servable: &Arc<Servable>) -> Result<Arc<LiveContainer>, AcquireError> {
        let path = servable.container.path();
        let work = || {
            let (handler, servable) = (Arc::clone(self), Arc::clone(servable));
            async move { handler.claim_now(&servable).await }
        };
        let on = (&self.tasks, &self.runtime);
        self.claims.join(&path, self.config.wait_queue_max, self.config.claim_timeout, on, work).await
    }

    async fn claim_now(self: Arc<Self>, servable: &Servable) -> Result<Arc<LiveContainer>, AcquireError> {
        let path = servable.container.path();
        // A flight that landed just before this one started may have left what is wanted.
        if let Some(container) = self.containers.get(&path).filter(|c| c.is_alive() && c.fits(servable)) {
            return Ok(container);
        }
        self.restarts.replace(&path, Instant::now()).map_err(|wait| AcquireError::CrashLoop { wait })?;
        let memory_mb = servable.container.memory_mb;
        // What is loaded ahead would not outlive a new start.
        let loaded = servable.live.iter().filter(|_| !pool::outgrows_pool(memory_mb));
        let wanted: BTreeSet<BuildKey> = loaded.flat_map(|v| &v.modules).map(|m| m.build.clone()).collect();
        // Containers wait for the installation's own runtime only: few tenants have another, and theirs start when they are called.
        let oci_runtime = servable.tenant.limits.oci_runtime.clone();
        let pooled = match &oci_runtime {
            None => {
                let spare = pool::take_spare(&self, &path, servable.container.node).await?;
                spare.or_else(|| self.pool.take(servable.container.node, &wanted))
            }
            Some(_) => None,
        };
        let waiting = match pooled {
            Some(waiting) => {
                self.counters.claims_pooled.fetch_add(1, Relaxed);
                waiting
            }
            None => {
                self.counters.claims_created.fetch_add(1, Relaxed);
                match oci_runtime.clone() {
                    None => pool::take_when_ready(&self, servable.container.node, &wanted).await?,
                    other => pool::create(&self, servable.container.node, other, memory_mb, Cpus::Any).await?,
                }
            }
        };
        // Who has just ended a container by its own fault is likely to keep a CPU busy until it ends the next.
        let cpus = if self.deps.cpu_split.is_some() && self.restarts.tenant_owes(&path.tenant, Instant::now()) {
            Cpus::Background
        } else {
            self.cpus_for_requests()
        };
        let waiting = pool::apply_limits(&self, waiting, memory_mb, cpus).await?;
        let egress = servable.tenant.limits.egress.clone();
        // Before any code of the tenant runs in it.
        if egress != Egress::Public
            && let Err(error) = self.deps.sandbox.restrict(&waiting.running.id, &egress).await
        {
            pool::discard(&self, waiting.running, waiting.slot).await;
            return Err(AcquireError::NoCapacity { detail: format!("setting what the container may reach: {error}") });
        }
        let Waiting { running, slot, control, .. } = waiting;
        let settings = Settings { memory_mb, egress, oci_runtime };
        let container = LiveContainer::new(path, running, slot, control, settings, cpus, self.now_ms());
        self.take_over(&container);
        Ok(container)
    }

    /// From here on the container belongs to its tenant, and somebody watches for its end.
    pub(super) fn take_over(self: &Arc<Self>, container: &Arc<LiveContainer>) {
        container.control.set_owner(Owner {
            path: container.path().clone(),
            container: Arc::downgrade(container),
            logs: Arc::clone(&self.deps.logs),
            functions: Arc::clone(&self.deps.functions),
            usage: self.deps.usage.of(&container.path().tenant),
            log_bytes_per_s: self.config.log_rate.as_u64(),
        });
        if let Err(error) = Persisted::of(container).write(&container.slot.state()) {
            tracing::warn!(container = %container.path(), %error, "the container could not be noted; a restart of this node will replace it");
        }
        self.containers.insert(Arc::clone(container));
        self.runtime.spawn(watch(Arc::clone(self), Arc::clone(container)));
    }

    /// Loads the live version; all who need it at once wait for the same load.
    pub(super) async fn load(
        self: &Arc<Self>,
        container: &Arc<LiveContainer>,
        servable: &Arc<Servable>,
    ) -> Result<LoadTimes, AcquireError> {
        let Some(version) = &servable.live else { return Err(AcquireError::Load { message: "no live version".into() }) };
        let key = (container.id(), servable.function.path.function.clone(), version.version);
        let work = || {
            let (handler, container, servable) = (Arc::clone(self), Arc::clone(container), Arc::clone(servable));
            async move {
                match &servable.live {
                    Some(version) => handler.load_now(&container, version).await,
                    None => Err(AcquireError::Load { message: "no live version".into() }),
                }
            }
        };
        let timeout = self.config.load_timeout + self.config.claim_timeout;
        self.loads.join(&key, self.config.wait_queue_max, timeout, (&self.tasks, &self.runtime), work).await
    }

    async fn load_now(
        self: Arc<Self>,
        container: &Arc<LiveContainer>,
        version: &FunctionVersion,
    ) -> Result<LoadTimes, AcquireError> {
        let function = &version.path.function;
        let made = (version.version, version.created_at);
        if container.serves(version) {
            return Ok(LoadTimes::default());
        }
        container.expect(function, made);
        let began = Instant::now();
        let name = format!("f/{function}@{}", version.version);
        let tree = container.slot.tree();
        let files = self.files(version).await?;
        // Small files on the page cache: quicker than handing them to another thread. Nothing is synced, since the store has them.
        write_files(&tree.join(&name), &files).map_err(|e| unavailable("this node's disk", e))?;
        if !version.modules.is_empty() {
            let attached = self.deps.modules.attach(container.slot.number, &tree, Path::new(&name), &version.modules).await;
            attached.map_err(|e| AcquireError::Unavailable { what: "a module of the function", detail: e.to_string() })?;
        }
        let secrets = self.secrets(version).await?;
        let modules_ms = began.elapsed().as_secs_f32() * 1_000.0;

        let loading = Instant::now();
        let load = |id| ToRuntime::Load {
            id,
            function: function.clone(),
            version: version.version,
            dir: format!("{}/{name}", paths::SLOT),
            main: version.main.clone(),
            model: version.model,
            env: version.env.clone(),
            secrets,
        };
        let outcome = tokio::select! {
            outcome = container.control.load(self.config.load_timeout, load) => outcome,
            exit = container.exited() => Err(AcquireError::Crashed { out_of_memory: exit.out_of_memory }),
        };
        let linked = match outcome {
            Ok(linked) => linked,
            Err(error @ AcquireError::LoadTimeout { .. }) => {
                if self.kill(container, "loading a function took too long") {
                    self.restarts.note(container.path(), Instant::now());
                }
                return Err(error);
            }
            Err(AcquireError::Crashed { .. }) => {
                let exit = tokio::time::timeout(EXIT_KNOWN_TIMEOUT, container.exited()).await.unwrap_or_default();
                return Err(AcquireError::Crashed { out_of_memory: exit.out_of_memory });
            }
            Err(error) => return Err(error),
        };
        let load_ms = loading.elapsed().as_secs_f32() * 1_000.0;
        container.note_loaded(function, made, linked);
        container.add_cold_cost(modules_ms + load_ms);
        if let Err(error) = Persisted::of(container).write(&container.slot.state()) {
            tracing::warn!(container = %container.path(), %error, "what is loaded could not be noted");
        }
        self.deps.modules.note_demand(&version.modules);
        Ok(LoadTimes { modules_ms, load_ms })
    }

    async fn files(&self, version: &FunctionVersion) -> Result<BTreeMap<String, String>, AcquireError> {
        let (sha256, bytes) = match &version.code {
            CodeRef::Inline(files) => return Ok(files.clone()),
            CodeRef::Artifact { sha256, bytes } => (sha256, *bytes),
        };
        let fail = |e: ArtifactError| unavailable("the function's code", e);
        if bytes > 2 * limits::BUNDLE_BYTES_MAX as u64 {
            return Err(unavailable("the function's code", "its bundle is over the limit"));
        }
        let (_, mut chunks) = self.deps.bundles.get(sha256).await.map_err(fail)?;
        let mut bundle = Vec::new();
        while let Some(chunk) = chunks.next().await {
            bundle.extend_from_slice(&chunk.map_err(fail)?);
        }
        serde_json::from_slice(&bundle).map_err(|e| unavailable("the function's code", e))
    }

    async fn secrets(&self, version: &FunctionVersion) -> Result<BTreeMap<String, String>, AcquireError> {
        let mut secrets = BTreeMap::new();
        for (name, sealed) in &version.secrets {
            let value = self
                .deps
                .keyring
                .open(&version.path, name, sealed)
                .await
                .map_err(|e| unavailable("a secret of the function", e))?;
            secrets.insert(name.clone(), value.to_string());
        }
        Ok(secrets)
    }

    /// Takes it off the map: it finishes what runs and is destroyed, new requests get another one.
    pub(super) fn retire(self: &Arc<Self>, container: &Arc<LiveContainer>) {
        self.containers.remove(container);
        let was_frozen = container.state() == State::Frozen;
        if container.change(State::Running, State::Leaving) || container.change(State::Frozen, State::Leaving) {
            self.counters.retired.fetch_add(1, Relaxed);
            let (handler, container) = (Arc::clone(self), Arc::clone(container));
            self.runtime.spawn(async move {
                let until = Instant::now() + Duration::from_millis(limits::TIMEOUT_MS_MAX);
                while !was_frozen && container.in_flight() > 0 && Instant::now() < until && container.exit().is_none() {
                    tokio::time::sleep(Duration::from_millis(50)).await;
                }
                handler.kill(&container, "retired");
            });
        }
    }

    /// Ends it now. Its requests see their connections break and learn why. False if it was ending already.
    pub(super) fn kill(self: &Arc<Self>, container: &Arc<LiveContainer>, reason: &'static str) -> bool {
        self.containers.remove(container);
        let first = container.change(State::Running, State::Leaving) || container.change(State::Frozen, State::Leaving);
        tracing::debug!(container = %container.path(), reason, "ending a container");
        let (handler, container) = (Arc::clone(self), Arc::clone(container));
        self.runtime.spawn(async move {
            if let Err(error) = handler.deps.sandbox.destroy(&container.running.id).await {
                tracing::warn!(container = %container.path(), %error, "a container could not be destroyed at once");
            }
        });
        first
    }

    /// Lets a frozen container run again.
    pub(super) async fn thaw(&self, container: &LiveContainer) -> Result<(), SandboxError> {
        if container.state() != State::Frozen {
            return Ok(());
        }
        let _one = container.transition.lock().await;
        if container.state() == State::Frozen {
            self.deps.sandbox.thaw(&container.running.id).await?;
            container.change(State::Frozen, State::Running);
        }
        Ok(())
    }
}

fn unavailable(what: &'static str, error: impl std::fmt::Display) -> AcquireError {
    AcquireError::Unavailable { what, detail: error.to_string() }
}

/// Watches over one container until it has ended, and cleans up after it.
async fn watch(handler: Arc<Handler>, container: Arc<LiveContainer>) {
    let id = container.running.id.clone();
    let exit = tokio::select! {
        exit = handler.deps.sandbox.wait(&id) => exit.unwrap_or_default(),
        () = container.control.broken() => {
            // Either it is ending just now, or it has broken the protocol and must end.
            match tokio::time::timeout(EXIT_KNOWN_TIMEOUT, handler.deps.sandbox.wait(&id)).await {
                Ok(exit) => exit.unwrap_or_default(),
                Err(_) => {
                    tracing::warn!(container = %container.path(), "its control connection broke; replacing the container");
                    Exit::default()
                }
            }
        }
    };
    let expected = container.state() == State::Leaving;
    if !expected {
        // Before anybody can ask for the next one.
        handler.restarts.note(container.path(), Instant::now());
    }
    container.mark_dead(exit);
    handler.containers.remove(&container);
    if !expected {
        let counter = if exit.out_of_memory { &handler.counters.out_of_memory } else { &handler.counters.crashed };
        counter.fetch_add(1, Relaxed);
        tracing::info!(container = %container.path(), ?exit, "a container ended by itself");
    }
    clean_up(&handler, &container).await;
    container.mark_gone();
}

async fn clean_up(handler: &Handler, container: &LiveContainer) {
    let mut wait = Duration::from_millis(100);
    // The slot must not be used again before the container is gone for certain, so this goes on for as long as it takes.
    while let Err(error) = handler.deps.sandbox.destroy(&container.running.id).await {
        tracing::warn!(container = %container.path(), %error, "a dead container could not be removed; trying again");
        tokio::time::sleep(wait).await;
        wait = (wait * 2).min(Duration::from_secs(30));
    }
    handler.deps.modules.detach_slot(container.slot.number, &container.slot.tree()).await;
    if let Err(error) = container.slot.clear() {
        tracing::warn!(slot = container.slot.number, %error, "a slot's files could not be removed");
    }
}

/// Writes a version's files below a fresh directory. Paths were checked when the version was made and are checked again, since what
/// is written here is written as root.
fn write_files(dir: &Path, files: &BTreeMap<String, String>) -> io::Result<()> {
    match fs::remove_dir_all(dir) {
        Err(e) if e.kind() != io::ErrorKind::NotFound => return Err(e),
        _ => {}
    }
    fs::create_dir_all(dir)?;
    for (name, text) in files {
        let name = Path::new(name);
        let plain = name.components().all(|c| matches!(c, Component::Normal(_))) && name.components().next().is_some();
        if !plain {
            return Err(io::Error::new(io::ErrorKind::InvalidInput, format!("{} is not a path inside a function", name.display())));
        }
        let path = dir.join(name);
        if let Some(parent) = path.parent().filter(|p| *p != dir) {
            fs::create_dir_all(parent)?;
        }
        fs::write(path, text)?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn files_stay_inside_their_directory() {
        let root = tempfile::tempdir().unwrap();
        let dir = root.path().join("f");
        let files = |name: &str| BTreeMap::from([(name.to_owned(), "x".to_owned())]);
        assert!(write_files(&dir, &files("lib/a.js")).is_ok());
        assert_eq!(fs::read_to_string(dir.join("lib/a.js")).unwrap(), "x");
        for bad in ["../x", "/etc/x", "a/../../x", "", "."] {
            assert!(write_files(&dir, &files(bad)).is_err(), "{bad:?}");
        }
        assert!(!root.path().join("x").exists());
    }
}
