//! Which backends hold the state; each variant carries all that it needs.

use crate::{
    ArtifactStore, BuildQueue, FunctionStore, QueueError,
    aws::{CallStats, Connector, DynamoStore, KmsKeyring, Place, S3Store, SqsQueue, Timeouts},
    directory::DirectoryStore,
    keyring::{FileKeyring, Keyring},
    sqlite::SqliteStore,
};
use serde::{Deserialize, Serialize};
use std::{
    path::{Path, PathBuf},
    sync::Arc,
};

/// Where functions, tenants, tokens and module records are.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "backend", rename_all = "lowercase", deny_unknown_fields)]
pub enum RecordsConfig {
    /// One SQLite file, which holds the build queue as well.
    Sqlite {
        /// The file.
        path: PathBuf,
        /// Deliveries of one build before it is given up.
        #[serde(default = "receives_max")]
        receives_max: u32,
    },
    /// One DynamoDB table. Needs `artifacts` in S3, where documents go that are too long for an item, and a `queue`.
    Dynamodb {
        /// The table.
        table: String,
        /// Its region; from the default chain where absent.
        #[serde(default)]
        region: Option<String>,
        /// Another address than the region's own.
        #[serde(default)]
        endpoint_url: Option<String>,
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
    /// An S3 bucket.
    S3 {
        /// The bucket.
        bucket: String,
        /// The account that must own it.
        #[serde(default)]
        bucket_owner: Option<String>,
        /// Its region; from the default chain where absent.
        #[serde(default)]
        region: Option<String>,
        /// Another address than the region's own.
        #[serde(default)]
        endpoint_url: Option<String>,
    },
}

/// Where builds wait.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "backend", rename_all = "lowercase", deny_unknown_fields)]
pub enum QueueConfig {
    /// An SQS queue with a dead-letter queue.
    Sqs {
        /// The queue's name.
        queue: String,
        /// Its dead-letter queue's name.
        dead_letter_queue: String,
        /// Their region; from the default chain where absent.
        #[serde(default)]
        region: Option<String>,
        /// Another address than the region's own.
        #[serde(default)]
        endpoint_url: Option<String>,
    },
}

/// What seals secrets.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "backend", rename_all = "lowercase", deny_unknown_fields)]
pub enum KeysConfig {
    /// Data keys in a file of mode 0600. Nodes that share their records share its content: it is made only where records are embedded.
    File {
        /// The file.
        path: PathBuf,
    },
    /// A master key in KMS.
    Kms {
        /// Its id, ARN or alias.
        key_id: String,
        /// Its region; from the default chain where absent.
        #[serde(default)]
        region: Option<String>,
        /// Another address than the region's own.
        #[serde(default)]
        endpoint_url: Option<String>,
    },
}

const fn receives_max() -> u32 {
    5
}

/// All durable state.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Config {
    /// Records, and the build queue where they are embedded.
    pub records: RecordsConfig,
    /// Artifacts.
    pub artifacts: ArtifactsConfig,
    /// The build queue, where records are shared.
    #[serde(default)]
    pub queue: Option<QueueConfig>,
    /// Keys.
    pub keys: KeysConfig,
    /// Deadlines of calls to AWS services.
    #[serde(default)]
    pub timeouts: Timeouts,
}

impl Config {
    /// Everything below one directory.
    #[must_use]
    pub fn embedded(data_dir: &Path) -> Self {
        Self {
            records: RecordsConfig::Sqlite { path: data_dir.join("hearth.db"), receives_max: receives_max() },
            artifacts: ArtifactsConfig::Directory { path: data_dir.join("artifacts") },
            queue: None,
            keys: KeysConfig::File { path: data_dir.join("secrets.key") },
            timeouts: Timeouts::default(),
        }
    }

    /// Whether several processes may use this state at once.
    #[must_use]
    pub fn is_shared(&self) -> bool {
        matches!(self.records, RecordsConfig::Dynamodb { .. })
    }

    /// Refuses what contradicts itself, with the remedy.
    ///
    /// # Errors
    /// [`OpenError::Contradiction`].
    pub fn validate(&self) -> Result<(), OpenError> {
        let refuse = |text: &str| Err(OpenError::Contradiction(text.to_owned()));
        match (&self.records, &self.artifacts, &self.queue) {
            (RecordsConfig::Dynamodb { .. }, ArtifactsConfig::Directory { .. }, _) => refuse(
                "store.records is dynamodb, but store.artifacts is a directory, which other machines do not see: set store.artifacts.backend = \"s3\"",
            ),
            (RecordsConfig::Dynamodb { .. }, _, None) => {
                refuse("store.records is dynamodb, but there is no store.queue: set store.queue.backend = \"sqs\" and its queues")
            }
            (RecordsConfig::Sqlite { .. }, _, Some(_)) => refuse(
                "store.records is sqlite, which holds the build queue as well: remove store.queue, or set store.records.backend = \"dynamodb\"",
            ),
            _ => Ok(()),
        }
    }
}

/// Opened backends.
#[derive(Clone)]
pub struct Stores {
    /// Records.
    pub functions: Arc<dyn FunctionStore>,
    /// Artifacts of modules.
    pub artifacts: Arc<dyn ArtifactStore>,
    /// Code bundles of functions.
    pub bundles: Arc<dyn ArtifactStore>,
    /// Builds to do.
    pub queue: Arc<dyn BuildQueue>,
    /// Keys.
    pub keyring: Arc<dyn Keyring>,
    /// Counts of calls to AWS services; all zero where everything is embedded.
    pub calls: Arc<CallStats>,
}

/// Which backend could not be opened.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    /// The configuration contradicts itself.
    #[error("{0}")]
    Contradiction(String),
    /// Records.
    #[error("opening store.records")]
    Records(#[from] crate::StoreError),
    /// Artifacts.
    #[error("opening store.artifacts")]
    Artifacts(#[from] crate::ArtifactError),
    /// The queue.
    #[error("opening store.queue")]
    Queue(#[from] QueueError),
    /// Keys.
    #[error("opening store.keys")]
    Keys(#[from] crate::keyring::KeyringError),
}

fn place(region: Option<&String>, endpoint_url: Option<&String>) -> Place {
    Place { region: region.cloned(), endpoint_url: endpoint_url.cloned() }
}

/// Opens every backend; none falls back to another.
///
/// # Errors
/// [`OpenError`] names the section of the configuration.
pub async fn open(config: &Config) -> Result<Stores, OpenError> {
    open_over(config, &Connector::new(crate::aws::http_client(), config.timeouts)).await
}

/// [`open`], with the AWS services behind this connector.
///
/// # Errors
/// [`OpenError`] names the section of the configuration.
pub async fn open_over(config: &Config, connector: &Connector) -> Result<Stores, OpenError> {
    config.validate()?;
    let (artifacts, bundles, objects): (Arc<dyn ArtifactStore>, Arc<dyn ArtifactStore>, _) = match &config.artifacts {
        ArtifactsConfig::Directory { path } => {
            (Arc::new(DirectoryStore::open(path)?), Arc::new(DirectoryStore::open(&path.join("bundles"))?), None)
        }
        ArtifactsConfig::S3 { bucket, bucket_owner, region, endpoint_url } => {
            let place = place(region.as_ref(), endpoint_url.as_ref());
            let store = Arc::new(S3Store::new(connector, &place, bucket, bucket_owner.clone()).await);
            store.ping().await?;
            (Arc::clone(&store) as _, Arc::new(store.bundles()), Some(store))
        }
    };
    let (functions, queue): (Arc<dyn FunctionStore>, Arc<dyn BuildQueue>) = match (&config.records, &config.queue, objects) {
        (RecordsConfig::Sqlite { path, receives_max }, None, _) => {
            let records = Arc::new(SqliteStore::open(path, *receives_max)?);
            (Arc::clone(&records) as _, records)
        }
        (
            RecordsConfig::Dynamodb { table, region, endpoint_url },
            Some(QueueConfig::Sqs { queue, dead_letter_queue, region: queue_region, endpoint_url: queue_url }),
            Some(objects),
        ) => {
            let records_place = place(region.as_ref(), endpoint_url.as_ref());
            let records = DynamoStore::open(connector, &records_place, table, objects).await?;
            let queue_place = place(queue_region.as_ref(), queue_url.as_ref());
            (Arc::new(records), Arc::new(SqsQueue::open(connector, &queue_place, queue, dead_letter_queue).await?))
        }
        _ => return Err(OpenError::Contradiction("store.records, store.artifacts and store.queue do not fit together".into())),
    };
    let keyring: Arc<dyn Keyring> = match &config.keys {
        KeysConfig::File { path } if config.is_shared() => Arc::new(FileKeyring::open_existing(path)?),
        KeysConfig::File { path } => Arc::new(FileKeyring::open_or_create(path)?),
        KeysConfig::Kms { key_id, region, endpoint_url } => {
            let place = place(region.as_ref(), endpoint_url.as_ref());
            Arc::new(KmsKeyring::open(connector, &place, key_id).await?)
        }
    };
    Ok(Stores { functions, artifacts, bundles, queue, keyring, calls: Arc::clone(connector.stats()) })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(text: &str) -> Result<Config, String> {
        let value: serde_json::Value = serde_json::from_str(text).map_err(|e| e.to_string())?;
        serde_json::from_value(value).map_err(|e| e.to_string())
    }

    #[test]
    fn shared_records_need_shared_artifacts_and_a_queue() {
        let records = r#""records": {"backend": "dynamodb", "table": "t", "endpoint_url": "http://127.0.0.1:1"}"#;
        let keys = r#""keys": {"backend": "kms", "key_id": "alias/hearth"}"#;
        let s3 = r#""artifacts": {"backend": "s3", "bucket": "b"}"#;
        let sqs = r#""queue": {"backend": "sqs", "queue": "q", "dead_letter_queue": "d"}"#;
        assert!(parse(&format!("{{{records}, {s3}, {sqs}, {keys}}}")).unwrap().validate().is_ok());
        let directory = r#""artifacts": {"backend": "directory", "path": "x"}"#;
        let refused = parse(&format!("{{{records}, {directory}, {sqs}, {keys}}}")).unwrap().validate().unwrap_err();
        assert!(refused.to_string().contains("s3"), "{refused}");
        assert!(parse(&format!("{{{records}, {s3}, {keys}}}")).unwrap().validate().is_err());
        let sqlite = r#""records": {"backend": "sqlite", "path": "x"}"#;
        assert!(parse(&format!("{{{sqlite}, {s3}, {sqs}, {keys}}}")).unwrap().validate().is_err());
        assert!(parse(&format!("{{{records}, {s3}, {sqs}, {keys}, \"tabel\": 1}}")).unwrap_err().contains("tabel"));
    }
}
