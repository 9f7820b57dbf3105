//! Adoption: what is known of a claimed container lies beside it in its slot (mode 0600, without tenants' secrets), so that the next
//! process can take it over. What cannot be taken over is removed before the first request.

use super::{
    Handler, StartError,
    container::{LiveContainer, Made, Settings},
    control::{Control, parse_loaded},
    pool,
};
use hearth_model::{ContainerPath, Egress, FunctionName};
use hearth_sandbox::Cpus;
use serde::{Deserialize, Serialize};
use std::{
    collections::HashMap,
    fs, io,
    io::Write,
    os::unix::fs::OpenOptionsExt,
    path::Path,
    sync::{Arc, atomic::Ordering::Relaxed},
    time::Duration,
};

/// A runtime that lives answers in far less.
const GREETING_TIMEOUT: Duration = Duration::from_secs(2);

/// What the next process needs.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(super) struct Persisted {
    sandbox: String,
    path: ContainerPath,
    #[serde(flatten)]
    settings: Settings,
    control_secret: String,
    /// Versions that serve; the runtime may hold replaced ones beside them.
    loaded: Vec<(FunctionName, Made)>,
    /// Every version that was ever loaded.
    known: Vec<(FunctionName, Made)>,
}

impl Persisted {
    pub fn of(container: &LiveContainer) -> Self {
        Self {
            sandbox: container.running.id.0.clone(),
            path: container.path().clone(),
            settings: container.settings.clone(),
            control_secret: container.control.secret.clone(),
            loaded: container.loaded().iter().map(|(f, served)| (f.clone(), served.made)).collect(),
            known: container.known(),
        }
    }

    /// Written aside and renamed, so that it is whole or absent. Not synced: after a crash of the machine no container lives anyway.
    pub fn write(&self, file: &Path) -> io::Result<()> {
        let aside = file.with_extension("new");
        let _ = fs::remove_file(&aside);
        let mut new = fs::OpenOptions::new().write(true).create_new(true).mode(0o600).open(&aside)?;
        new.write_all(&serde_json::to_vec(self)?)?;
        fs::rename(aside, file)
    }

    fn read(file: &Path) -> Option<Self> {
        serde_json::from_slice(&fs::read(file).ok()?).ok()
    }
}

impl Handler {
    /// Takes over the containers of the process before this one; removes those that have no tenant or do not answer.
    pub(super) async fn adopt(self: &Arc<Self>) -> Result<(), StartError> {
        let mut taken = Vec::new();
        for running in self.deps.sandbox.list().await? {
            if running.purpose != hearth_sandbox::Purpose::Runtime {
                // A build of an earlier process: its job is in the queue again, or will be.
                let _ = self.deps.sandbox.destroy(&running.id).await;
                continue;
            }
            let Some(slot) = self.slots.take_number(running.slot) else {
                let _ = self.deps.sandbox.destroy(&running.id).await;
                continue;
            };
            let persisted = Persisted::read(&slot.state()).filter(|p| p.sandbox == running.id.0);
            let Some(persisted) = persisted else {
                pool::discard(self, running, slot).await;
                continue;
            };
            // It may have been frozen when it was left.
            let _ = self.deps.sandbox.thaw(&running.id).await;
            let greeting = tokio::time::timeout(GREETING_TIMEOUT, Control::open(&slot.run(), persisted.control_secret)).await;
            let Ok(Ok((control, loaded))) = greeting else {
                tracing::warn!(container = %persisted.path, "a container of an earlier process does not answer; removing it");
                pool::discard(self, running, slot).await;
                continue;
            };
            // The packet filter has kept its policy; this makes it follow the names of an allow list again.
            if persisted.settings.egress != Egress::Public
                && let Err(error) = self.deps.sandbox.restrict(&running.id, &persisted.settings.egress).await
            {
                tracing::warn!(container = %persisted.path, %error, "an adopted container's egress policy could not be set again; removing it");
                pool::discard(self, running, slot).await;
                continue;
            }
            self.deps.modules.adopt_slot(slot.number, &slot.tree()).await;
            taken.push(slot.number);
            // It may have been kept to CPUs, and others may be set aside now.
            let limits = pool::limits(&self.config, persisted.settings.memory_mb, pool::CLAIMED_CPU_SHARES, Cpus::Any);
            let resized = self.deps.sandbox.resize(&running.id, &limits).await;
            if let Err(error) = &resized {
                tracing::warn!(container = %persisted.path, %error, "the limits of an adopted container could not be set again");
            }
            // Then it is tried again, as of one that may go back to all CPUs.
            let cpus = if resized.is_err() && self.deps.cpu_split.is_some() { Cpus::Background } else { Cpus::Any };
            let container = LiveContainer::new(persisted.path, running, slot, control, persisted.settings, cpus, self.now_ms());
            let alive: HashMap<_, _> = loaded.iter().filter_map(|(text, linked)| Some((parse_loaded(text)?, *linked))).collect();
            for (function, made) in &persisted.known {
                container.expect(function, *made);
            }
            for (function, made) in &persisted.loaded {
                if let Some(linked) = alive.get(&(function.clone(), made.0)) {
                    container.note_loaded(function, *made, *linked);
                }
            }
            self.take_over(&container);
            self.counters.adopted.fetch_add(1, Relaxed);
        }
        for number in self.slots.existing() {
            if taken.contains(&number) {
                continue;
            }
            let Some(slot) = self.slots.take_number(number) else { continue };
            self.deps.modules.detach_slot(number, &slot.tree()).await;
            if let Err(error) = slot.clear() {
                tracing::warn!(slot = number, %error, "what an earlier container left could not be removed; the slot is not used");
                std::mem::forget(slot);
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use hearth_model::{Timestamp, VersionNumber};

    #[test]
    fn what_is_written_is_read_again_and_belongs_to_the_owner_alone() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("state.json");
        let state = Persisted {
            sandbox: "abc".into(),
            path: "acme/main".parse().unwrap(),
            settings: Settings { memory_mb: 256, egress: Egress::None, oci_runtime: Some("runsc".into()) },
            control_secret: "s".into(),
            loaded: vec![("hello".parse().unwrap(), (VersionNumber(3), Timestamp(7)))],
            known: vec![("hello".parse().unwrap(), (VersionNumber(2), Timestamp(6)))],
        };
        state.write(&file).unwrap();
        state.write(&file).unwrap();
        assert_eq!(Persisted::read(&file), Some(state));
        let mode = std::os::unix::fs::MetadataExt::mode(&fs::metadata(&file).unwrap());
        assert_eq!(mode & 0o777, 0o600);
        fs::write(&file, "{").unwrap();
        assert_eq!(Persisted::read(&file), None);
    }
}
