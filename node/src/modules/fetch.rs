//! Fetching: once per machine however many ask, checked while it streams, whole or not at all; and making room.

use super::{AttachError, ModuleCache, Present, UnpackError, share, unpack};
use futures_util::TryStreamExt;
use hearth_model::{ArtifactRef, BuildKey, BuildState, ModuleSpec};
use hearth_store::ArtifactError;
use std::{
    collections::{BTreeSet, HashMap},
    fs::{self, File},
    io::{self, Write},
    path::{Path, PathBuf},
    sync::{Arc, atomic::Ordering::Relaxed},
    time::Instant,
};
use tokio_util::io::{StreamReader, SyncIoBridge};

/// Beside the files, so that a restart need not measure them again.
const SIZE_FILE: &str = ".hearth-size";
/// The files of all artifacts, see [`share`].
pub(super) const FILES_DIR: &str = "files";

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
        let fail = |detail: String| AttachError::Fetch { module: spec.clone(), detail };
        let wanted = disk_bytes_at_most(artifact);
        let room = self.make_room(wanted).await.map_err(|full| fail(full.to_string()))?;
        let began = Instant::now();
        let mut fetched = self.fetch_in_time(artifact).await;
        if matches!(&fetched, Err(FetchError::Full(_))) && self.evict_unused().await > 0 {
            // The disk was fuller than the limit supposes: what nobody uses makes room once.
            fetched = self.fetch_in_time(artifact).await;
        }
        let bytes = match fetched {
            Ok(bytes) => bytes,
            Err(error) => {
                match &error {
                    FetchError::Refused(detail) => {
                        self.counters.refused.fetch_add(1, Relaxed);
                        tracing::error!(module = %spec, sha256 = artifact.sha256, detail, "an artifact was refused: it is not what was built");
                    }
                    FetchError::Full(_) | FetchError::Passing(_) => {
                        self.counters.failed.fetch_add(1, Relaxed);
                        tracing::warn!(module = %spec, sha256 = artifact.sha256, %error, "an artifact could not be fetched");
                    }
                }
                return Err(fail(error.to_string()));
            }
        };
        self.counters.fetches.fetch_add(1, Relaxed);
        self.counters.fetch_us.fetch_add(began.elapsed().as_micros() as u64, Relaxed);
        let mut present = self.present.lock();
        present.insert(artifact.sha256.clone(), Present { bytes, slots: BTreeSet::new(), last_used: Instant::now() });
        // Given back in the same step as it is counted for good.
        drop(room);
        Ok(())
    }

    async fn fetch_in_time(&self, artifact: &ArtifactRef) -> Result<u64, FetchError> {
        match tokio::time::timeout(self.config.fetch_timeout, self.fetch_now(artifact)).await {
            Ok(fetched) => fetched,
            Err(_) => Err(FetchError::Passing(format!("fetching took longer than {:?}", self.config.fetch_timeout))),
        }
    }

    async fn fetch_now(&self, artifact: &ArtifactRef) -> Result<u64, FetchError> {
        let sha256 = &artifact.sha256;
        let (length, chunks) = self.artifacts.get(sha256).await.map_err(FetchError::of_store)?;
        if length != artifact.bytes {
            return Err(FetchError::Refused(format!("it has {length} bytes instead of {}", artifact.bytes)));
        }
        let stream = StreamReader::new(chunks.map_err(io::Error::other));
        let reader = SyncIoBridge::new(stream);
        let temp = self.dir.join("tmp").join(format!("{sha256}-{:08x}", rand::random::<u32>()));
        let target = self.dir.join(sha256);
        let dir = self.dir.clone();
        let unpacking = move || -> Result<u64, FetchError> {
            let result = unpack_whole(reader, &temp, &target, &dir);
            if result.is_err() {
                let _ = fs::remove_dir_all(&temp);
            }
            result
        };
        tokio::task::spawn_blocking(unpacking).await.map_err(|e| FetchError::Passing(e.to_string()))?
    }

    /// Removes what nobody uses until so many more bytes fit, the one unused longest first, and holds that room.
    async fn make_room(&self, wanted: u64) -> Result<Room<'_>, NoRoom> {
        let (mut victims, limit) = (vec![], self.config.disk_limit.as_u64());
        let room = {
            let mut present = self.present.lock();
            loop {
                let used: u64 = present.values().map(|p| p.bytes).sum::<u64>() + self.reserved.load(Relaxed);
                if used + wanted <= limit {
                    self.reserved.fetch_add(wanted, Relaxed);
                    break Ok(Room { cache: self, bytes: wanted });
                }
                match self.take_unused(&mut present) {
                    Some(victim) => victims.push(victim),
                    None => break Err(NoRoom { used, wanted, limit }),
                }
            }
        };
        self.remove(victims).await;
        room
    }

    /// Removes all that nobody uses; returns how many that were.
    pub(super) async fn evict_unused(&self) -> usize {
        let mut victims = vec![];
        while let Some(victim) = self.take_unused(&mut self.present.lock()) {
            victims.push(victim);
        }
        let removed = victims.len();
        self.remove(victims).await;
        removed
    }

    /// Takes the one unused longest out of the count and out of its name in one step, so that whoever asks for it now fetches it anew.
    fn take_unused(&self, present: &mut HashMap<String, Present>) -> Option<PathBuf> {
        let unused = present.iter().filter(|(_, p)| p.slots.is_empty()).min_by_key(|(_, p)| p.last_used);
        let sha256 = unused.map(|(sha256, _)| sha256.clone())?;
        present.remove(&sha256);
        let aside = self.dir.join("tmp").join(format!("{sha256}-evicted-{:08x}", rand::random::<u32>()));
        if let Err(error) = fs::rename(self.dir.join(&sha256), &aside) {
            tracing::warn!(sha256, %error, "an unused module could not be taken out of its place");
        }
        self.counters.evictions.fetch_add(1, Relaxed);
        Some(aside)
    }

    async fn remove(&self, victims: Vec<PathBuf>) {
        if victims.is_empty() {
            return;
        }
        let index = self.dir.join(FILES_DIR);
        let removing = move || {
            for aside in victims {
                if let Err(error) = share::remove(&aside, &index) {
                    tracing::warn!(path = %aside.display(), %error, "an unused module could not be removed; the next start removes it");
                }
            }
        };
        if let Err(error) = tokio::task::spawn_blocking(removing).await {
            tracing::warn!(%error, "removing unused modules was broken off; the next start removes them");
        }
    }
}

/// Room on the disk for one artifact, until it is counted itself.
struct Room<'a> {
    cache: &'a ModuleCache,
    bytes: u64,
}

impl Drop for Room<'_> {
    fn drop(&mut self) {
        self.cache.reserved.fetch_sub(self.bytes, Relaxed);
    }
}

/// Everything that is here is in use.
#[derive(Debug, thiserror::Error)]
#[error(
    "this node's module cache is full: containers use {used} of {limit} bytes and {wanted} more are needed; raise node.modules.disk_limit or add nodes"
)]
struct NoRoom {
    used: u64,
    wanted: u64,
    limit: u64,
}

/// Why an artifact did not come.
#[derive(Debug, thiserror::Error)]
enum FetchError {
    /// It is not what was built: somebody altered it.
    #[error("{0}")]
    Refused(String),
    /// No space on the disk.
    #[error("this node's disk is full: {0}")]
    Full(String),
    /// Another time it may work.
    #[error("{0}")]
    Passing(String),
}

impl FetchError {
    fn of_store(error: ArtifactError) -> Self {
        match error {
            ArtifactError::Unavailable { .. } => Self::Passing(error.to_string()),
            ArtifactError::NotFound { .. } | ArtifactError::Mismatch { .. } => Self::Refused(error.to_string()),
        }
    }

    fn of_io(error: io::Error) -> Self {
        if matches!(error.kind(), io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded) {
            return Self::Full(error.to_string());
        }
        // What the stream ended with is inside.
        match error.downcast::<ArtifactError>() {
            Ok(error) => Self::of_store(error),
            Err(error) if matches!(error.kind(), io::ErrorKind::PermissionDenied | io::ErrorKind::ReadOnlyFilesystem) => {
                Self::Passing(error.to_string())
            }
            Err(error) => Self::Refused(error.to_string()),
        }
    }
}

impl From<UnpackError> for FetchError {
    fn from(error: UnpackError) -> Self {
        match error {
            UnpackError::Io(error) => Self::of_io(error),
            UnpackError::Forbidden { .. } | UnpackError::TooMuch { .. } => Self::Refused(error.to_string()),
        }
    }
}

/// Files begin on a block of their own: a module of many small ones takes more than their lengths.
const BLOCK_BYTES: u64 = 4_096;

fn disk_bytes_at_most(artifact: &ArtifactRef) -> u64 {
    artifact.unpacked_bytes.saturating_add(artifact.files.saturating_mul(BLOCK_BYTES))
}

fn unpack_whole(reader: impl io::Read, temp: &Path, target: &Path, dir: &Path) -> Result<u64, FetchError> {
    unpack(io::BufReader::with_capacity(256 * 1024, reader), temp)?;
    let here = |e: io::Error| {
        if e.kind() == io::ErrorKind::StorageFull { FetchError::of_io(e) } else { FetchError::Passing(e.to_string()) }
    };
    let bytes = disk_usage(temp).map_err(here)?;
    // New, so that it is never another file's other name: no artifact of ours brings it along.
    let mut size = File::create_new(temp.join(SIZE_FILE)).map_err(|e| match e.kind() {
        io::ErrorKind::AlreadyExists => FetchError::Refused(format!("the archive holds {SIZE_FILE}")),
        _ => here(e),
    })?;
    size.write_all(bytes.to_string().as_bytes()).map_err(here)?;
    if let Err(error) = share::share(temp, &dir.join(FILES_DIR)) {
        tracing::warn!(path = %temp.display(), %error, "files that other modules have too could not be shared: they take room twice");
    }
    // One call for all files of the tree: syncing each would take seconds.
    let handle = File::open(temp).map_err(here)?;
    rustix::fs::syncfs(&handle).map_err(|e| here(e.into()))?;
    match fs::rename(temp, target) {
        Ok(()) => {}
        // Left there by an earlier process that ended before it could count it: as good as ours.
        Err(_) if size_of(target).is_some() => fs::remove_dir_all(temp).map_err(here)?,
        Err(e) => return Err(here(e)),
    }
    File::open(dir).and_then(|d| d.sync_all()).map_err(here)?;
    Ok(bytes)
}

/// Bytes that a tree takes on the disk, directories included.
fn disk_usage(dir: &Path) -> io::Result<u64> {
    use std::os::unix::fs::MetadataExt;
    let mut bytes = 0;
    let mut open = vec![dir.to_owned()];
    while let Some(dir) = open.pop() {
        bytes += BLOCK_BYTES;
        for entry in fs::read_dir(&dir)? {
            let entry = entry?;
            let metadata = entry.metadata()?;
            if metadata.is_dir() {
                open.push(entry.path());
            } else {
                // Blocks may not be counted yet for what was just written, lengths are.
                bytes += metadata.size().next_multiple_of(BLOCK_BYTES);
            }
        }
    }
    Ok(bytes)
}
