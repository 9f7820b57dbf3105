//! The embedded backend of [`ArtifactStore`]: a directory in which each file is named by its SHA-256. A file appears under its name
//! only when it is whole and on disk.

use crate::{ArtifactError, ArtifactStore, Put, artifact::ArtifactStream};
use async_trait::async_trait;
use bytes::Bytes;
use futures_util::StreamExt;
use sha2::{Digest, Sha256};
use std::{
    fs::{self, File},
    io::{self, Read, Write},
    path::{Path, PathBuf},
    sync::atomic::{AtomicU64, Ordering::Relaxed},
};
use tokio_util::io::ReaderStream;

/// Bytes read at a time.
const CHUNK_BYTES: usize = 256 * 1024;

/// Files below one directory.
#[derive(Debug)]
pub struct DirectoryStore {
    root: PathBuf,
    next_temp: AtomicU64,
}

/// Whether a text can be the name of an artifact; nothing else ever becomes part of a path.
pub(crate) fn is_sha256(text: &str) -> bool {
    text.len() == 64 && text.bytes().all(|b| b.is_ascii_digit() || (b'a'..=b'f').contains(&b))
}

impl DirectoryStore {
    /// Opens or creates the directory, and removes what dead writers left unfinished.
    ///
    /// # Errors
    /// [`ArtifactError::Unavailable`] when the directory cannot be used.
    pub fn open(root: &Path) -> Result<Self, ArtifactError> {
        let store = Self { root: root.to_owned(), next_temp: AtomicU64::new(0) };
        let temp = root.join("tmp");
        fs::create_dir_all(&temp).map_err(|e| store.unavailable("create directory", &e))?;
        // One process owns the directory (the data directory's lock), so whatever lies here belongs to nobody.
        for entry in fs::read_dir(&temp).map_err(|e| store.unavailable("read directory", &e))?.flatten() {
            let _ = fs::remove_file(entry.path());
        }
        Ok(store)
    }

    fn unavailable(&self, call: &'static str, error: &io::Error) -> ArtifactError {
        ArtifactError::Unavailable { call, resource: self.root.display().to_string(), detail: error.to_string() }
    }

    fn path(&self, sha256: &str) -> Result<PathBuf, ArtifactError> {
        if !is_sha256(sha256) {
            return Err(ArtifactError::NotFound { sha256: sha256.chars().take(80).collect() });
        }
        Ok(self.root.join(&sha256[..2]).join(sha256))
    }

    fn put(&self, sha256: &str, source: &mut dyn Read) -> Result<Put, ArtifactError> {
        let target = self.path(sha256)?;
        if target.exists() {
            return Ok(Put::Exists);
        }
        let temp = self.root.join("tmp").join(format!("{}-{}", std::process::id(), self.next_temp.fetch_add(1, Relaxed)));
        let result = self.write(sha256, source, &temp, &target);
        if result.is_err() {
            let _ = fs::remove_file(&temp);
        }
        result
    }

    fn write(&self, sha256: &str, source: &mut dyn Read, temp: &Path, target: &Path) -> Result<Put, ArtifactError> {
        let io = |call| move |e: io::Error| self.unavailable(call, &e);
        let mut file = File::options().write(true).create_new(true).open(temp).map_err(io("create"))?;
        let mut hash = Sha256::new();
        let mut buffer = vec![0; CHUNK_BYTES];
        loop {
            let n = source.read(&mut buffer).map_err(io("read"))?;
            if n == 0 {
                break;
            }
            hash.update(&buffer[..n]);
            file.write_all(&buffer[..n]).map_err(io("write"))?;
        }
        let found = hex::encode(hash.finalize());
        if found != sha256 {
            return Err(ArtifactError::Mismatch { sha256: sha256.to_owned(), found });
        }
        file.sync_all().map_err(io("sync"))?;
        let dir = target.parent().unwrap_or(&self.root);
        fs::create_dir_all(dir).map_err(io("create directory"))?;
        // A hard link fails where the name exists: creation is create-only even between two writers.
        let put = match fs::hard_link(temp, target) {
            Ok(()) => Put::Created,
            Err(e) if e.kind() == io::ErrorKind::AlreadyExists => Put::Exists,
            Err(e) => return Err(self.unavailable("link", &e)),
        };
        fs::remove_file(temp).map_err(io("remove"))?;
        for dir in [dir, &self.root] {
            File::open(dir).and_then(|d| d.sync_all()).map_err(io("sync directory"))?;
        }
        Ok(put)
    }
}

async fn blocking<T: Send + 'static>(work: impl FnOnce() -> Result<T, ArtifactError> + Send + 'static) -> Result<T, ArtifactError> {
    tokio::task::spawn_blocking(work).await.unwrap_or_else(|e| {
        Err(ArtifactError::Unavailable { call: "run", resource: "a blocking thread".into(), detail: e.to_string() })
    })
}

impl DirectoryStore {
    fn clone_for_thread(&self) -> Self {
        // A range of its own for temporary names, since the counter is not shared.
        Self { root: self.root.clone(), next_temp: AtomicU64::new((self.next_temp.fetch_add(1, Relaxed) + 1) << 32) }
    }
}

#[async_trait]
impl ArtifactStore for DirectoryStore {
    async fn ping(&self) -> Result<(), ArtifactError> {
        tokio::fs::metadata(&self.root).await.map(|_| ()).map_err(|e| self.unavailable("stat", &e))
    }

    async fn put_file(&self, sha256: &str, path: &Path) -> Result<Put, ArtifactError> {
        let (store, sha256, path) = (self.clone_for_thread(), sha256.to_owned(), path.to_owned());
        blocking(move || {
            let mut file = File::open(&path).map_err(|e| store.unavailable("open source", &e))?;
            store.put(&sha256, &mut file)
        })
        .await
    }

    async fn put_bytes(&self, bytes: Bytes) -> Result<(String, Put), ArtifactError> {
        let store = self.clone_for_thread();
        blocking(move || {
            let sha256 = hex::encode(Sha256::digest(&bytes));
            let put = store.put(&sha256, &mut bytes.as_ref())?;
            Ok((sha256, put))
        })
        .await
    }

    async fn get(&self, sha256: &str) -> Result<(u64, ArtifactStream), ArtifactError> {
        let path = self.path(sha256)?;
        let file = match tokio::fs::File::open(&path).await {
            Ok(file) => file,
            Err(e) if e.kind() == io::ErrorKind::NotFound => return Err(ArtifactError::NotFound { sha256: sha256.to_owned() }),
            Err(e) => return Err(self.unavailable("open", &e)),
        };
        let bytes = file.metadata().await.map_err(|e| self.unavailable("stat", &e))?.len();
        let resource = self.root.display().to_string();
        let chunks = ReaderStream::with_capacity(file, CHUNK_BYTES).map(move |chunk| {
            chunk.map_err(|e| ArtifactError::Unavailable { call: "read", resource: resource.clone(), detail: e.to_string() })
        });
        Ok((bytes, crate::artifact::verified(sha256.to_owned(), chunks.boxed())))
    }

    async fn head(&self, sha256: &str) -> Result<Option<u64>, ArtifactError> {
        let Ok(path) = self.path(sha256) else { return Ok(None) };
        match tokio::fs::metadata(&path).await {
            Ok(metadata) => Ok(Some(metadata.len())),
            Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(e) => Err(self.unavailable("stat", &e)),
        }
    }

    async fn delete(&self, sha256: &str) -> Result<(), ArtifactError> {
        let Ok(path) = self.path(sha256) else { return Ok(()) };
        match tokio::fs::remove_file(&path).await {
            Err(e) if e.kind() != io::ErrorKind::NotFound => Err(self.unavailable("remove", &e)),
            _ => Ok(()),
        }
    }
}
