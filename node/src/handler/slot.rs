//! Slots: numbered host directories, one per Docker container. A number decides the container's user id and network address, so it is
//! free again only when everything of the container before is gone.

use super::StartError;
use parking_lot::Mutex;
use std::{
    collections::BTreeSet,
    fs, io,
    os::unix::fs::MetadataExt,
    path::{Path, PathBuf},
    sync::Arc,
};

/// All slots of a node.
pub(super) struct Slots {
    root: PathBuf,
    free: Arc<Mutex<BTreeSet<u32>>>,
}

/// The right to one slot; free again when dropped.
#[derive(Debug)]
pub(super) struct Slot {
    pub number: u32,
    pub dir: PathBuf,
    free: Arc<Mutex<BTreeSet<u32>>>,
}

impl Drop for Slot {
    fn drop(&mut self) {
        self.free.lock().insert(self.number);
    }
}

impl Slot {
    /// What is mounted read-only at `/hearth`.
    pub fn tree(&self) -> PathBuf {
        self.dir.join("tree")
    }

    /// Where the sockets are.
    pub fn run(&self) -> PathBuf {
        self.dir.join("run")
    }

    /// What the next process needs to adopt the container.
    pub fn state(&self) -> PathBuf {
        self.dir.join("state.json")
    }

    /// Removes the files of the container before. Mounts below must be gone: what is still mounted is read-only, so that removing it
    /// fails and harms nothing.
    pub fn clear(&self) -> io::Result<()> {
        for name in ["state.json", "tree/f", "tree/m"] {
            let path = self.dir.join(name);
            let removed = if path.is_dir() { remove_tree(&path) } else { fs::remove_file(&path) };
            match removed {
                Err(e) if e.kind() != io::ErrorKind::NotFound => return Err(e),
                _ => {}
            }
        }
        Ok(())
    }
}

/// Removes a tree without crossing into another file system.
fn remove_tree(path: &Path) -> io::Result<()> {
    let device = fs::symlink_metadata(path)?.dev();
    for entry in fs::read_dir(path)? {
        let entry = entry?;
        let metadata = entry.metadata()?;
        if !metadata.is_dir() {
            fs::remove_file(entry.path())?;
        } else if metadata.dev() == device {
            remove_tree(&entry.path())?;
        } else {
            return Err(io::Error::other(format!("{} is still mounted", entry.path().display())));
        }
    }
    fs::remove_dir(path)
}

impl Slots {
    /// Opens the slots below the data directory, mounted such that later mounts reach running containers.
    pub fn open(data_dir: &Path, count: u32) -> Result<Self, StartError> {
        let root = data_dir.join("slots");
        let fail = |source| StartError::Slots { path: root.clone(), source };
        fs::create_dir_all(&root).map_err(fail)?;
        let root = root.canonicalize().map_err(fail)?;
        hearth_sandbox::docker::share_mounts(&root)?;
        Ok(Self { root, free: Arc::new(Mutex::new((0..count).collect())) })
    }

    /// A free slot with empty directories; none when all are in use.
    pub fn take(&self) -> io::Result<Option<Slot>> {
        let Some(number) = self.free.lock().pop_first() else { return Ok(None) };
        let slot = self.slot(number);
        slot.clear()?;
        for dir in [slot.run(), slot.tree().join("f"), slot.tree().join("m")] {
            fs::create_dir_all(dir)?;
        }
        Ok(Some(slot))
    }

    /// One particular slot, if it is free.
    pub fn take_number(&self, number: u32) -> Option<Slot> {
        self.free.lock().remove(&number).then(|| self.slot(number))
    }

    fn slot(&self, number: u32) -> Slot {
        Slot { number, dir: self.root.join(number.to_string()), free: Arc::clone(&self.free) }
    }

    /// Numbers of all slots that have a directory.
    pub fn existing(&self) -> Vec<u32> {
        let entries = fs::read_dir(&self.root).into_iter().flatten().flatten();
        entries.filter_map(|e| e.file_name().to_str()?.parse().ok()).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_unique_while_taken_and_bounded() {
        let dir = tempfile::tempdir().unwrap();
        let slots = Slots { root: dir.path().to_owned(), free: Arc::new(Mutex::new((0..2).collect())) };
        let first = slots.take().unwrap().unwrap();
        let second = slots.take().unwrap().unwrap();
        assert_ne!(first.number, second.number);
        assert!(slots.take().unwrap().is_none());
        fs::write(first.tree().join("f/x"), "left over").unwrap();
        drop(first);
        let again = slots.take().unwrap().unwrap();
        assert!(!again.tree().join("f/x").exists(), "nothing of the one before is left");
        assert!(slots.take_number(second.number).is_none());
    }
}
