//! Which backends hold the state; each variant carries all that it needs.

use crate::{
    ArtifactStore, BuildQueue, FunctionStore,
    directory::DirectoryStore,
    keyring::{FileKeyring, Keyring},
    sqlite::SqliteStore,
};
use serde::{Deserialize, Serialize};
use std::{
    path::{Path, PathBuf},
    sync::Arc,
};

/// Where functions, tenants, tokens, module records and the build queue are.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "backend", rename_all = "lowercase", deny_unknown_fields)]
pub enum RecordsConfig {
    /// One SQLite file.
    Sqlite {
        /// The file.
        path: PathBuf,
        /// Deliveries of one build before it is given up.
        #[serde(default = "receives_max")]
        receives_max: u32,
    },
}

/// Where code bundles and module artifacts are.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "backend", rename_all = "lowercase", deny_unknown_fields)]
pub enum ArtifactsConfig {
    /// A directory of files by hash.
    Directory {
        /// The directory.
        path: PathBuf,
    },
}

/// What seals secrets.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "backend", rename_all = "lowercase", deny_unknown_fields)]
pub enum KeysConfig {
    /// Data keys in a file of mode 0600.
    File {
        /// The file.
        path: PathBuf,
    },
}

const fn receives_max() -> u32 {
    5
}

/// All durable state.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Config {
    /// Records and the build queue.
    pub records: RecordsConfig,
    /// Artifacts.
    pub artifacts: ArtifactsConfig,
    /// Keys.
    pub keys: KeysConfig,
}

impl Config {
    /// Everything below one directory.
    #[must_use]
    pub fn embedded(data_dir: &Path) -> Self {
        Self {
            records: RecordsConfig::Sqlite { path: data_dir.join("hearth.db"), receives_max: receives_max() },
            artifacts: ArtifactsConfig::Directory { path: data_dir.join("artifacts") },
            keys: KeysConfig::File { path: data_dir.join("secrets.key") },
        }
    }
}

/// Opened backends.
#[derive(Clone)]
pub struct Stores {
    /// Records.
    pub functions: Arc<dyn FunctionStore>,
    /// Artifacts.
    pub artifacts: Arc<dyn ArtifactStore>,
    /// Builds to do.
    pub queue: Arc<dyn BuildQueue>,
    /// Keys.
    pub keyring: Arc<dyn Keyring>,
}

/// Which backend could not be opened.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    /// Records.
    #[error("opening store.records")]
    Records(#[from] crate::StoreError),
    /// Artifacts.
    #[error("opening store.artifacts")]
    Artifacts(#[from] crate::ArtifactError),
    /// Keys.
    #[error("opening store.keys")]
    Keys(#[from] crate::keyring::KeyringError),
}

/// Opens every backend; none falls back to another.
///
/// # Errors
/// [`OpenError`] names the section of the configuration.
pub async fn open(config: &Config) -> Result<Stores, OpenError> {
    let RecordsConfig::Sqlite { path, receives_max } = &config.records;
    let records = Arc::new(SqliteStore::open(path, *receives_max)?);
    let ArtifactsConfig::Directory { path } = &config.artifacts;
    let artifacts = Arc::new(DirectoryStore::open(path)?);
    let KeysConfig::File { path } = &config.keys;
    let keyring = Arc::new(FileKeyring::open_or_create(path)?);
    Ok(Stores { functions: Arc::clone(&records) as _, artifacts, queue: records, keyring })
}
