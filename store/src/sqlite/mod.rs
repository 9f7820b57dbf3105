//! The embedded backend of [`crate::FunctionStore`] and [`crate::BuildQueue`]: one SQLite file in WAL mode.

mod db;
mod functions;
mod queue;
mod records;

use crate::StoreError;
use db::Db;
use std::path::Path;

/// One SQLite file that holds all records and the build queue.
#[derive(Clone)]
pub struct SqliteStore {
    db: Db,
    /// Deliveries of one job before it goes to the dead letters.
    receives_max: u32,
}

impl SqliteStore {
    /// Opens or creates the file.
    ///
    /// # Errors
    /// [`StoreError::NewerSchema`] for a file of a newer Hearth, which stays untouched; [`StoreError::Unavailable`] otherwise.
    pub fn open(path: &Path, receives_max: u32) -> Result<Self, StoreError> {
        Ok(Self { db: Db::open(path)?, receives_max })
    }

    /// The file.
    #[must_use]
    pub fn path(&self) -> std::path::PathBuf {
        self.db.path()
    }
}
