//! What is written down of a claimed container so that the next process can go on with it: whose it is, what it has loaded, and the
//! control connection's secret. No tenant's secret is in it.

use super::{
    container::{Edition, LiveContainer, Loaded, Shape},
    lifecycle::Gate,
    shared::{Shared, blocking},
    slot::Slot,
};
use hearth_model::{ContainerPath, FunctionName, Timestamp, VersionNumber, function::NodeVersion};
use hearth_sandbox::SandboxId;
use serde::{Deserialize, Serialize};
use std::{
    fs::{self, OpenOptions},
    io::{self, Read, Write},
    os::unix::fs::OpenOptionsExt,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
};

/// Grows when the meaning of what is written changes; what is older is not adopted.
const FORMAT: u32 = 1;
/// Longest file that is read.
const BYTES_MAX: u64 = 4 * 1024 * 1024;

/// A container as written down.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(super) struct Saved {
    format: u32,
    pub sandbox_id: String,
    pub path: ContainerPath,
    memory_mb: u64,
    node: NodeVersion,
    pub edition: Edition,
    pub secret: String,
    versions: Vec<SavedVersion>,
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
struct SavedVersion {
    function: FunctionName,
    version: VersionNumber,
    created_at: Timestamp,
    modules_ms: f32,
    load_ms: f32,
}

impl Saved {
    /// What is known of a container now.
    fn of(container: &LiveContainer) -> Self {
        let version = |l: &Arc<Loaded>| SavedVersion {
            function: l.function.clone(),
            version: l.version,
            created_at: l.created_at,
            modules_ms: l.modules_ms,
            load_ms: l.load_ms,
        };
        Self {
            format: FORMAT,
            sandbox_id: container.sandbox_id.0.clone(),
            path: container.path().clone(),
            memory_mb: container.shape.memory_mb,
            node: container.shape.node,
            edition: *container.edition.lock(),
            secret: container.secret.clone(),
            versions: container.versions.lock().loaded().map(version).collect(),
        }
    }

    /// The sizes that it has.
    pub(super) fn shape(&self) -> Shape {
        Shape { memory_mb: self.memory_mb, node: self.node }
    }

    /// Its versions, as far as they are still loaded.
    pub(super) fn versions(&self) -> Vec<Loaded> {
        let loaded = |v: &SavedVersion| Loaded {
            function: v.function.clone(),
            version: v.version,
            created_at: v.created_at,
            gate: Gate::new(),
            superseded: AtomicBool::new(false),
            modules_ms: v.modules_ms,
            load_ms: v.load_ms,
        };
        self.versions.iter().map(loaded).collect()
    }

    /// Replaces the slot's file in one step. Not waiting for the disk: after the machine has failed there is no container to adopt.
    fn write(&self, slot: &Slot) -> io::Result<()> {
        let path = slot.state();
        let fresh = path.with_extension("new");
        match fs::remove_file(&fresh) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
            _ => {}
        }
        let mut file = OpenOptions::new().write(true).create_new(true).mode(0o600).open(&fresh)?;
        file.write_all(&serde_json::to_vec(self)?)?;
        fs::rename(fresh, path)
    }

    /// What is written of the container in this slot, if it is this one. Blocks.
    pub(super) fn read(slot: &Slot, id: &SandboxId) -> io::Result<Self> {
        let mut text = Vec::new();
        fs::File::open(slot.state())?.take(BYTES_MAX).read_to_end(&mut text)?;
        let saved: Self = serde_json::from_slice(&text)?;
        let refuse = |why| Err(io::Error::new(io::ErrorKind::InvalidData, why));
        if saved.format != FORMAT {
            return refuse("it was written by another version of this program");
        }
        if saved.sandbox_id != id.0 {
            return refuse("it tells of another container");
        }
        Ok(saved)
    }
}

impl Shared {
    /// Writes down what has changed, in the background and off every request's path. One writer per container: changes while it
    /// writes make it write once more.
    pub(super) fn note_state(self: &Arc<Self>, container: &Arc<LiveContainer>) {
        container.state_dirty.store(true, Ordering::SeqCst);
        if container.state_writing.swap(true, Ordering::SeqCst) {
            return;
        }
        let container = Arc::clone(container);
        self.spawn(async move {
            loop {
                while container.state_dirty.swap(false, Ordering::SeqCst) {
                    if !container.is_alive() {
                        return;
                    }
                    let (saved, slot) = (Saved::of(&container), container.slot.clone());
                    if let Err(error) = blocking(move || saved.write(&slot)).await {
                        tracing::warn!(slot = container.slot.number, %error, "a container cannot be written down; a restart will not adopt it");
                    }
                }
                container.state_writing.store(false, Ordering::SeqCst);
                // Whoever came between the two stores saw a writer and left.
                if !container.state_dirty.load(Ordering::SeqCst) || container.state_writing.swap(true, Ordering::SeqCst) {
                    return;
                }
            }
        });
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::PermissionsExt;

    #[test]
    fn what_is_written_comes_back_and_only_for_its_container() {
        let dir = tempfile::tempdir().unwrap();
        let slot = Slot { number: 3, dir: dir.path().to_owned() };
        let saved = Saved {
            format: FORMAT,
            sandbox_id: "abc".into(),
            path: ContainerPath { tenant: "acme".parse().unwrap(), container: "main".parse().unwrap() },
            memory_mb: 128,
            node: NodeVersion::V22,
            edition: Edition { created_at: Timestamp(5), generation: 7 },
            secret: "s".into(),
            versions: vec![SavedVersion {
                function: "hello".parse().unwrap(),
                version: VersionNumber(3),
                created_at: Timestamp(6),
                modules_ms: 1.0,
                load_ms: 2.5,
            }],
        };
        saved.write(&slot).unwrap();
        saved.write(&slot).unwrap();
        assert_eq!(fs::metadata(slot.state()).unwrap().permissions().mode() & 0o777, 0o600);
        assert_eq!(Saved::read(&slot, &SandboxId("abc".into())).unwrap(), saved);
        assert!(Saved::read(&slot, &SandboxId("other".into())).is_err());
        Saved { format: FORMAT + 1, ..saved }.write(&slot).unwrap();
        assert!(Saved::read(&slot, &SandboxId("abc".into())).is_err());
        fs::write(slot.state(), "{").unwrap();
        assert!(Saved::read(&slot, &SandboxId("abc".into())).is_err());
    }
}
