//! Fetching: once per machine however many ask, checked while it streams, whole or not at all; and making room.

use super::{AttachError, ModuleCache, Present, unpack};
use futures_util::TryStreamExt;
use hearth_model::{ArtifactRef, BuildKey, BuildState, ModuleSpec};
use std::{
    collections::BTreeSet,
    fs::{self, File},
    io,
    path::Path,
    sync::{Arc, atomic::Ordering::Relaxed},
    time::Instant,
};
use tokio_util::io::{StreamReader, SyncIoBridge};

/// Beside the files, so that a restart need not measure them again.
const SIZE_FILE: &str = ".hearth-size";

/// Size of an unpacked artifact; none for what is no artifact.
pub(super) fn size_of(dir: &Path) -> Option<u64> {
    fs::read_to_string(dir.join(SIZE_FILE)).ok()?.trim().parse().ok()
}

impl ModuleCache {
    /// The artifact of a build.
    pub(super) async fn artifact(&self, spec: &ModuleSpec, build: &BuildKey) -> Result<Arc<ArtifactRef>, AttachError> {
        if let Some(artifact) = self.ready.get(build) {
            return Ok(artifact);
        }
        let record = self
            .functions
            .get_module(build)
            .await
            .map_err(|e| AttachError::Record { module: spec.clone(), detail: e.to_string() })?;
        match record.map(|r| r.state) {
            Some(BuildState::Ready { artifact, .. }) => {
                let artifact = Arc::new(artifact);
                self.ready.insert(build.clone(), Arc::clone(&artifact));
                Ok(artifact)
            }
            _ => Err(AttachError::Record { module: spec.clone(), detail: "it is not built".into() }),
        }
    }

    /// Makes the artifact present on this machine, and counts the slot among its users.
    pub(super) async fn ensure(&self, spec: &ModuleSpec, artifact: &ArtifactRef, slot: u32) -> Result<(), AttachError> {
        let sha256 = &artifact.sha256;
        loop {
            // Counted in the same step as it is seen to be there, so that making room cannot take it away in between.
            if let Some(present) = self.present.lock().get_mut(sha256) {
                present.slots.insert(slot);
                present.last_used = Instant::now();
                return Ok(());
            }
            let cell = Arc::clone(self.fetching.lock().entry(sha256.clone()).or_default());
            let fetched = cell.get_or_try_init(|| self.fetch(spec, artifact)).await.map(|_| ());
            self.fetching.lock().remove(sha256);
            fetched?;
        }
    }

    async fn fetch(&self, spec: &ModuleSpec, artifact: &ArtifactRef) -> Result<(), AttachError> {
        let _permit = self.fetch_permits.acquire().await;
        if self.present.lock().contains_key(&artifact.sha256) {
            return Ok(());
        }
        self.make_room(artifact.unpacked_bytes);
        let fail = |detail: String| AttachError::Fetch { module: spec.clone(), detail };
        let work = self.fetch_now(&artifact.sha256);
        let bytes = match tokio::time::timeout(self.config.fetch_timeout, work).await {
            Ok(Ok(bytes)) => bytes,
            Ok(Err(detail)) => {
                self.counters.refused.fetch_add(1, Relaxed);
                tracing::error!(module = %spec, sha256 = artifact.sha256, detail, "an artifact was refused");
                return Err(fail(detail));
            }
            Err(_) => return Err(fail(format!("fetching took longer than {:?}", self.config.fetch_timeout))),
        };
        self.counters.fetches.fetch_add(1, Relaxed);
        let present = Present { bytes, slots: BTreeSet::new(), last_used: Instant::now() };
        self.present.lock().insert(artifact.sha256.clone(), present);
        Ok(())
    }

    async fn fetch_now(&self, sha256: &str) -> Result<u64, String> {
        let (_, chunks) = self.artifacts.get(sha256).await.map_err(|e| e.to_string())?;
        let stream = StreamReader::new(chunks.map_err(io::Error::other));
        let reader = SyncIoBridge::new(stream);
        let temp = self.dir.join("tmp").join(format!("{sha256}-{:08x}", rand::random::<u32>()));
        let target = self.dir.join(sha256);
        let dir = self.dir.clone();
        let unpacking = move || -> Result<u64, String> {
            let result = unpack_whole(reader, &temp, &target, &dir);
            if result.is_err() {
                let _ = fs::remove_dir_all(&temp);
            }
            result
        };
        tokio::task::spawn_blocking(unpacking).await.map_err(|e| e.to_string())?
    }

    /// Removes what nobody uses until so many more bytes fit, the one unused longest first.
    fn make_room(&self, wanted: u64) {
        let limit = self.config.disk_limit.as_u64();
        loop {
            let victim = {
                let mut present = self.present.lock();
                let used: u64 = present.values().map(|p| p.bytes).sum();
                if used + wanted <= limit {
                    return;
                }
                let unused = present.iter().filter(|(_, p)| p.slots.is_empty()).min_by_key(|(_, p)| p.last_used);
                let Some(sha256) = unused.map(|(sha256, _)| sha256.clone()) else { return };
                present.remove(&sha256);
                sha256
            };
            // Out of its name first: whoever asks for it now fetches it anew.
            let aside = self.dir.join("tmp").join(format!("{victim}-evicted-{:08x}", rand::random::<u32>()));
            if fs::rename(self.dir.join(&victim), &aside).and_then(|()| fs::remove_dir_all(&aside)).is_err() {
                tracing::warn!(sha256 = victim, "an unused module could not be removed");
            }
            self.counters.evictions.fetch_add(1, Relaxed);
        }
    }
}

fn unpack_whole(reader: impl io::Read, temp: &Path, target: &Path, dir: &Path) -> Result<u64, String> {
    let text = |e: io::Error| e.to_string();
    let bytes = unpack(io::BufReader::with_capacity(256 * 1024, reader), temp).map_err(|e| e.to_string())?;
    fs::write(temp.join(SIZE_FILE), bytes.to_string()).map_err(text)?;
    // One call for all files of the tree: syncing each would take seconds.
    let handle = File::open(temp).map_err(text)?;
    rustix::fs::syncfs(&handle).map_err(|e| e.to_string())?;
    match fs::rename(temp, target) {
        Ok(()) => {}
        // Left there by an earlier process that ended before it could count it: as good as ours.
        Err(_) if size_of(target).is_some() => fs::remove_dir_all(temp).map_err(text)?,
        Err(e) => return Err(text(e)),
    }
    File::open(dir).and_then(|d| d.sync_all()).map_err(text)?;
    Ok(bytes)
}
