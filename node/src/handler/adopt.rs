//! The first thing a handler does: take over the containers that an earlier process left running, and clear away everything else of it.

use super::{
    claim::VERSIONS_MAX,
    container::{LiveContainer, Parts},
    inbound::Owner,
    routes::Route,
    shared::{Shared, blocking},
    slot::Slot,
    state::Saved,
    status::add,
};
use futures_util::StreamExt;
use hearth_model::{VersionNumber, protocol::ToRuntime};
use hearth_sandbox::{Purpose, Running, SandboxError};
use std::{io, sync::Arc, time::Duration};

/// Containers that are looked at simultaneously.
const ADOPTIONS_AT_ONCE: usize = 16;
/// How long a container may take to answer a process that it does not know yet.
const GREETING_PATIENCE: Duration = Duration::from_secs(2);

impl Shared {
    /// Takes over what can be taken over. Returns when all that is left of an earlier process is known.
    pub(super) async fn adopt_all(self: &Arc<Self>) -> Result<(), SandboxError> {
        let listed = self.sandbox.list().await?;
        let runtimes = listed.into_iter().filter(|r| r.purpose == Purpose::Runtime);
        futures_util::stream::iter(runtimes).for_each_concurrent(ADOPTIONS_AT_ONCE, |running| self.adopt_or_doom(running)).await;
        let slots = Arc::clone(self);
        let existing = blocking(move || slots.slots.existing()).await;
        let existing = existing.map_err(|e| SandboxError::Failed { call: "read slots", detail: e.to_string() })?;
        // Directories without a container; those with one are taken by now.
        for slot in existing {
            if self.slots.take_number(slot.number).is_some() {
                self.doom(None, slot);
            } else if slot.number >= self.config.containers_max {
                let left = blocking(move || slot.clean()).await;
                if let Err(error) = left {
                    tracing::warn!(%error, "a slot beyond containers_max cannot be cleaned");
                }
            }
        }
        Ok(())
    }

    async fn adopt_or_doom(self: &Arc<Self>, running: Running) {
        let Some(slot) = self.slots.take_number(running.slot) else {
            // Beyond `containers_max`, which may have been higher once.
            let _ = self.sandbox.destroy(&running.id).await;
            self.modules.detach_slot(running.slot, &self.slots.slot(running.slot).tree()).await;
            return add(&self.counters.orphans);
        };
        match self.adopt(&running, &slot).await {
            Ok(container) => {
                add(&self.counters.adopted);
                tracing::debug!(container = %container.path(), slot = slot.number, "adopted a container");
            }
            Err(error) => {
                add(&self.counters.orphans);
                tracing::info!(slot = slot.number, %error, "a container of an earlier process is not taken over");
                self.doom(Some(running.id), slot);
            }
        }
    }

    async fn adopt(self: &Arc<Self>, running: &Running, slot: &Slot) -> io::Result<Arc<LiveContainer>> {
        let (at, id) = (slot.clone(), running.id.clone());
        let saved = blocking(move || Saved::read(&at, &id)).await?;
        let refuse = |why: &str| Err(io::Error::new(io::ErrorKind::InvalidData, why.to_owned()));
        if saved.shape().node != running.node {
            return refuse("it runs another Node.js than is written down");
        }
        // A frozen one cannot answer.
        self.sandbox.thaw(&running.id).await.map_err(io::Error::other)?;
        let (sockets, control, greeting) = self.reach(slot, saved.secret.clone(), GREETING_PATIENCE).await?;
        let parts = Parts {
            sandbox_id: running.id.clone(),
            slot: slot.clone(),
            secret: saved.secret.clone(),
            sockets,
            control: control.clone(),
            shape: saved.shape(),
        };
        let owner = Owner::new(saved.path.clone(), Arc::clone(&self.services), control);
        let Some(container) = LiveContainer::bind(parts, owner, saved.edition, self.epoch) else {
            return refuse("its connection belonged to somebody");
        };
        let entry = self.entry(saved.path.clone());
        if !entry.adopt(Arc::clone(&container)) {
            container.owner.close();
            return refuse("there is another container for the same tenant's container");
        }
        self.modules.adopt_slot(slot.number, &slot.tree()).await;
        let restored = container.restore(saved.versions(), &greeting);
        self.live.lock().insert(container.id(), Arc::clone(&container));
        self.keep(&container);
        for loaded in &restored {
            self.routes.set(saved.path.function(loaded.function.clone()), Route { container: Arc::clone(&container), loaded: Arc::clone(loaded) });
        }
        // What it has loaded without our knowing was being loaded when the process ended: it is loaded again when it is wanted.
        for name in greeting.loaded.iter().take(VERSIONS_MAX) {
            if let Some((function, version)) = name.split_once('@').and_then(|(f, v)| Some((f.parse().ok()?, v.parse().ok()?)))
                && !restored.iter().any(|l| l.function == function && l.version.0 == version)
            {
                container.control.try_send(ToRuntime::Unload { function, version: VersionNumber(version) });
            }
        }
        self.note_state(&container);
        Ok(container)
    }
}
