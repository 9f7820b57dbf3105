//! A function's files: where they come from, and how they get into a slot. What the store holds was checked when it was stored; it is
//! checked again here, because this process writes as root.

use super::{error::AcquireError, slot::make_dir};
use bytes::BytesMut;
use futures_util::StreamExt;
use hearth_model::{
    CodeRef,
    limits::{BUNDLE_BYTES_MAX, BUNDLE_FILES_MAX, BUNDLE_PATH_BYTES_MAX},
};
use hearth_store::ArtifactStore;
use quick_cache::{Weighter, sync::Cache};
use std::{
    collections::{BTreeMap, BTreeSet},
    fs::{OpenOptions, Permissions},
    io::{self, Write},
    os::unix::fs::{OpenOptionsExt, PermissionsExt},
    path::{Component, Path},
    sync::Arc,
    time::Duration,
};

/// A byte of text takes at most six in JSON (`\u0000`).
const JSON_BYTES_PER_BYTE_MAX: usize = 6;
/// Longest read of one bundle.
const FETCH_TIMEOUT: Duration = Duration::from_secs(10);
/// Bundles that the cache is laid out for.
const CACHED_BUNDLES_EXPECTED: usize = 256;

/// Text by relative path.
pub(super) type Files = BTreeMap<String, String>;

#[derive(Clone)]
struct ByBytes;

impl Weighter<String, Arc<Files>> for ByBytes {
    fn weight(&self, _: &String, files: &Arc<Files>) -> u64 {
        files.iter().map(|(path, text)| (path.len() + text.len() + 64) as u64).sum::<u64>().max(1)
    }
}

/// Reads bundles, and keeps recent ones in memory.
pub(super) struct Bundles {
    artifacts: Arc<dyn ArtifactStore>,
    cache: Cache<String, Arc<Files>, ByBytes>,
}

impl Bundles {
    /// `cache_bytes` bounds what is kept.
    pub(super) fn new(artifacts: Arc<dyn ArtifactStore>, cache_bytes: u64) -> Self {
        Self { artifacts, cache: Cache::with_weighter(CACHED_BUNDLES_EXPECTED, cache_bytes, ByBytes) }
    }

    /// The files of a version, checked.
    pub(super) async fn read(&self, code: &CodeRef) -> Result<Arc<Files>, AcquireError> {
        let fail = |detail: String| AcquireError::Fetch { what: "code", detail };
        match code {
            CodeRef::Inline(files) => {
                check(files).map_err(fail)?;
                Ok(Arc::new(files.clone()))
            }
            CodeRef::Artifact { sha256, bytes } => {
                if let Some(files) = self.cache.get(sha256) {
                    return Ok(files);
                }
                let text = tokio::time::timeout(FETCH_TIMEOUT, self.fetch(sha256, *bytes))
                    .await
                    .map_err(|_| fail(format!("no answer within {FETCH_TIMEOUT:?}")))?
                    .map_err(fail)?;
                let files: Files = serde_json::from_slice(&text).map_err(|e| fail(format!("artifact {sha256}: {e}")))?;
                check(&files).map_err(fail)?;
                let files = Arc::new(files);
                self.cache.insert(sha256.clone(), Arc::clone(&files));
                Ok(files)
            }
        }
    }

    async fn fetch(&self, sha256: &str, bytes: u64) -> Result<BytesMut, String> {
        let most = BUNDLE_BYTES_MAX * JSON_BYTES_PER_BYTE_MAX;
        let length = usize::try_from(bytes).ok().filter(|l| *l <= most).ok_or_else(|| format!("artifact {sha256} is too large"))?;
        let (_, mut chunks) = self.artifacts.get(sha256).await.map_err(|e| e.to_string())?;
        let mut text = BytesMut::with_capacity(length);
        while let Some(chunk) = chunks.next().await {
            let chunk = chunk.map_err(|e| e.to_string())?;
            if text.len() + chunk.len() > length {
                return Err(format!("artifact {sha256} is longer than its record says"));
            }
            text.extend_from_slice(&chunk);
        }
        Ok(text)
    }
}

/// Refuses paths that lead out of the function's directory, and what is over a limit.
fn check(files: &Files) -> Result<(), String> {
    if files.is_empty() || files.len() > BUNDLE_FILES_MAX {
        return Err(format!("{} files", files.len()));
    }
    if files.values().map(String::len).sum::<usize>() > BUNDLE_BYTES_MAX {
        return Err("the files are too large".into());
    }
    match files.keys().find(|path| !is_inside(path)) {
        Some(path) => Err(format!("{:?} is not a path inside the function", path.chars().take(80).collect::<String>())),
        None => Ok(()),
    }
}

fn is_inside(path: &str) -> bool {
    // Components hide `.` and doubled slashes; the comparison brings them to light.
    !path.is_empty()
        && path.len() <= BUNDLE_PATH_BYTES_MAX
        && !path.contains(['\0', '\\', '\n', '\r'])
        && Path::new(path).components().all(|c| matches!(c, Component::Normal(_)))
        && path.split('/').all(|part| !matches!(part, "" | "." | "..") && part.len() <= 255)
}

/// Writes files into `dir`, which is there and holds none of them yet. Blocks; does not wait for the disk, since a lost slot is made
/// again.
pub(super) fn write(dir: &Path, files: &Files) -> io::Result<()> {
    let mut made = BTreeSet::new();
    for (path, text) in files {
        if !is_inside(path) {
            return Err(io::Error::new(io::ErrorKind::InvalidInput, "a path leads out of the function"));
        }
        let parents: Vec<&Path> = Path::new(path).ancestors().skip(1).filter(|p| !p.as_os_str().is_empty()).collect();
        for parent in parents.into_iter().rev() {
            if made.insert(parent) {
                make_dir(&dir.join(parent))?;
            }
        }
        let mut file = OpenOptions::new().write(true).create_new(true).mode(0o444).open(dir.join(path))?;
        file.write_all(text.as_bytes())?;
        file.set_permissions(Permissions::from_mode(0o444))?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;
    use hearth_store::directory::DirectoryStore;

    fn files(paths: &[&str]) -> Files {
        paths.iter().map(|p| ((*p).to_owned(), "x".to_owned())).collect()
    }

    #[test]
    fn paths_that_lead_out_are_refused() {
        for good in ["index.js", "lib/a.js", "a b/ü.js", "..a/b..js", ".env", "x/.y/z"] {
            assert!(check(&files(&[good])).is_ok(), "{good:?}");
        }
        for bad in [
            "", "/etc/passwd", "../x", "a/../../x", "a/..", ".", "./a", "a//b", "a/./b", "a/", "a\\b", "a\0b", "a\nb", &"x".repeat(256), &"x/".repeat(300),
        ] {
            assert!(check(&files(&[bad])).is_err(), "{bad:?}");
            let dir = tempfile::tempdir().unwrap();
            assert!(write(dir.path(), &files(&[bad])).is_err(), "{bad:?}");
        }
    }

    #[test]
    fn counts_and_sizes_are_bounded_at_the_bound_and_one_past() {
        let many = |n: usize| (0..n).map(|i| (format!("{i}.js"), String::new())).collect::<Files>();
        assert!(check(&many(BUNDLE_FILES_MAX)).is_ok() && check(&many(BUNDLE_FILES_MAX + 1)).is_err() && check(&many(0)).is_err());
        let large = |n: usize| Files::from([("a".into(), "x".repeat(n))]);
        assert!(check(&large(BUNDLE_BYTES_MAX)).is_ok() && check(&large(BUNDLE_BYTES_MAX + 1)).is_err());
    }

    #[test]
    fn files_are_written_for_reading_only() {
        let dir = tempfile::tempdir().unwrap();
        let at = dir.path();
        write(at, &files(&["index.js", "lib/deep/a.js", "lib/b.js"])).unwrap();
        assert_eq!(fs::read_to_string(at.join("lib/deep/a.js")).unwrap(), "x");
        assert_eq!(fs::metadata(at.join("index.js")).unwrap().permissions().mode() & 0o777, 0o444);
        assert_eq!(fs::metadata(at.join("lib/deep")).unwrap().permissions().mode() & 0o777, 0o755);
        assert!(write(at, &files(&["index.js"])).is_err(), "never over a file that is there");
        // A file and a directory of one name cannot both be.
        assert!(write(at, &files(&["a", "a/b"])).is_err());
    }

    #[tokio::test]
    async fn bundles_are_fetched_checked_and_kept() {
        let dir = tempfile::tempdir().unwrap();
        let store: Arc<dyn ArtifactStore> = Arc::new(DirectoryStore::open(dir.path()).unwrap());
        let put = async |text: &str| {
            let (sha256, _) = store.put_bytes(bytes::Bytes::copy_from_slice(text.as_bytes())).await.unwrap();
            CodeRef::Artifact { sha256, bytes: text.len() as u64 }
        };
        let good = put(r#"{"index.js": "code"}"#).await;
        let bad = put(r#"{"../index.js": "code"}"#).await;
        let bundles = Bundles::new(Arc::clone(&store), 1_000_000);
        assert_eq!(bundles.read(&good).await.unwrap()["index.js"], "code");
        assert!(bundles.read(&bad).await.is_err());
        let CodeRef::Artifact { sha256, bytes } = &good else { unreachable!() };
        store.delete(sha256).await.unwrap();
        assert!(bundles.read(&good).await.is_ok(), "from memory");
        let other = Bundles::new(store, 1_000_000);
        assert!(matches!(other.read(&good).await, Err(AcquireError::Fetch { .. })));
        let short = CodeRef::Artifact { sha256: sha256.clone(), bytes: bytes - 1 };
        assert!(other.read(&short).await.is_err());
    }
}
