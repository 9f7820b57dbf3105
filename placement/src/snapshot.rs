//! The table on disk, for a start without a coordinator. Written whole to another file, synced and renamed, so that a crash
//! leaves the old one. A file that cannot be read is treated as absent, and said.

use crate::{
    exception::Exceptions,
    record::{NodeRecord, SCHEMA, check_schema},
};
use serde::{Deserialize, Serialize};
use std::{fs, io, io::Write, path::Path};

/// A larger file is garbage.
const BYTES_MAX: u64 = 64 << 20;

/// What is kept.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Snapshot {
    /// The version of this file.
    pub schema: u32,
    /// The prefix of the cluster: another cluster's snapshot is not served.
    pub prefix: String,
    /// The coordinator's revision.
    pub revision: i64,
    /// All nodes.
    pub nodes: Vec<NodeRecord>,
    /// All exceptions.
    pub exceptions: Exceptions,
}

/// Reads a snapshot; `None` when there is none that can be used.
#[must_use]
pub fn load(path: &Path, prefix: &str) -> Option<Snapshot> {
    let unusable = |reason: String| {
        tracing::warn!(path = %path.display(), reason, "the table on disk cannot be used");
        None
    };
    match fs::metadata(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return None,
        Err(error) => return unusable(error.to_string()),
        Ok(meta) if meta.len() > BYTES_MAX => return unusable(format!("{} bytes are too many", meta.len())),
        Ok(_) => {}
    }
    let bytes = match fs::read(path) {
        Ok(bytes) => bytes,
        Err(error) => return unusable(error.to_string()),
    };
    let snapshot = check_schema(&bytes).and_then(|()| Ok(serde_json::from_slice::<Snapshot>(&bytes)?));
    match snapshot {
        Ok(snapshot) if snapshot.prefix != prefix => unusable(format!("it is of another cluster, {:?}", snapshot.prefix)),
        Ok(snapshot) if snapshot.nodes.is_empty() => unusable("it has no nodes".into()),
        Ok(snapshot) => Some(snapshot),
        Err(error) => unusable(error.to_string()),
    }
}

/// Writes a snapshot. Blocks.
///
/// # Errors
/// Those of the file system; the old snapshot is still there then.
pub fn store(path: &Path, prefix: &str, revision: i64, nodes: Vec<NodeRecord>, exceptions: Exceptions) -> io::Result<()> {
    let snapshot = Snapshot { schema: SCHEMA, prefix: prefix.to_owned(), revision, nodes, exceptions };
    let bytes = serde_json::to_vec(&snapshot)?;
    if let Some(parent) = path.parent() {
        fs::create_dir_all(parent)?;
    }
    let next = path.with_extension("next");
    let mut file = fs::File::create(&next)?;
    file.write_all(&bytes)?;
    file.sync_all()?;
    fs::rename(&next, path)
}
