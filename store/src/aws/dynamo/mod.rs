//! [`FunctionStore`] on one DynamoDB table. Reads are strongly consistent; a write that touches several items is one transaction whose
//! conditions are the generations that were read, tried again when somebody else was quicker.

mod documents;
mod keys;
mod modules;
mod table;
mod tenants;
mod tokens;
mod versions;

use super::{
    Connector, Place, S3Store,
    call::{Deadlines, Pauses},
    design::{DOC_INLINE_BYTES_MAX, DOCUMENTS_PREFIX, PK, SK},
};
use crate::{FunctionStore, NewVersion, Page, Precondition, Servable, StoreError, function::TenantCounts};
use async_trait::async_trait;
use aws_sdk_dynamodb::types::{KeyType, TableStatus};
use hearth_model::{
    BuildKey, Container, ContainerPath, Function, FunctionPath, FunctionVersion, ModuleRecord, Tenant, TenantName, Timestamp,
    Token, TokenHash, VersionNumber, VersionStatus,
};
use serde::{Serialize, de::DeserializeOwned};
use std::{
    hash::{DefaultHasher, Hash, Hasher},
    sync::Arc,
    time::SystemTime,
};
use table::{Cond, Item, Table, Written};
use tokio::sync::{Mutex, MutexGuard};

/// Writers of one process to the same function take turns, so that they do not fail each other's conditions; functions share this many.
const TURNS: usize = 64;

/// Records in one DynamoDB table, with documents that are too long for an item in a bucket.
pub struct DynamoStore {
    table: Table,
    objects: Arc<S3Store>,
    turns: [Mutex<()>; TURNS],
}

fn now() -> Timestamp {
    SystemTime::now().into()
}

/// Tries of one write, apart by pauses, until the deadline.
struct Rounds {
    pauses: Pauses,
}

impl Rounds {
    /// Waits after a conflict; an error when there were too many.
    async fn again(&mut self, store: &DynamoStore, call: &'static str) -> Result<(), StoreError> {
        if self.pauses.wait().await {
            return Ok(());
        }
        Err(store.table.unclear(call, &"others keep changing the same thing; nothing was written, try again"))
    }
}

impl DynamoStore {
    /// Looks at the table and at the bucket's marker: they must have the expected form and belong together. The first to open an empty
    /// table names the installation.
    ///
    /// # Errors
    /// [`StoreError`] names the resource, the call, and what to do.
    pub async fn open(connector: &Connector, place: &Place, name: &str, objects: Arc<S3Store>) -> Result<Self, StoreError> {
        let timeouts = connector.timeouts;
        let table = Table {
            client: aws_sdk_dynamodb::Client::new(&connector.sdk(place).await),
            name: name.to_owned(),
            caller: connector.caller("dynamodb"),
            read: Deadlines { total: timeouts.read, attempt: timeouts.attempt },
            write: Deadlines { total: timeouts.write, attempt: timeouts.attempt },
        };
        let store = Self { table, objects, turns: std::array::from_fn(|_| Mutex::new(())) };
        store.check_form().await?;
        let installation = store.installation().await?;
        let owner = store.objects.claim(&installation).await.map_err(|e| store.table.unclear("open", &e))?;
        if owner != installation {
            let detail = format!(
                "it belongs to installation {installation}, but {} to installation {owner}: they hold different data; correct store.records.table or store.artifacts.bucket",
                store.objects.resource()
            );
            return Err(store.table.unclear("open", &detail));
        }
        Ok(store)
    }

    async fn check_form(&self) -> Result<(), StoreError> {
        let request = || self.table.client.describe_table().table_name(&self.table.name).send();
        let answer = self.table.caller.repeat("DescribeTable", self.table.read, request).await;
        let found = answer.map_err(|e| self.table.failed("DescribeTable", &e))?.table;
        let Some(found) = found else { return Err(self.table.unclear("DescribeTable", &"the answer has no table")) };
        let key = |kind: KeyType| found.key_schema().iter().find(|k| *k.key_type() == kind).map(|k| k.attribute_name().to_owned());
        if (key(KeyType::Hash).as_deref(), key(KeyType::Range).as_deref()) != (Some(PK), Some(SK)) {
            let detail = format!("its keys are not {PK} and {SK}: this is not a table of Hearth; correct store.records.table");
            return Err(self.table.unclear("DescribeTable", &detail));
        }
        match found.table_status() {
            Some(TableStatus::Active | TableStatus::Updating) | None => Ok(()),
            Some(other) => {
                Err(self.table.unclear("DescribeTable", &format!("its status is {}: wait until it is ACTIVE", other.as_str())))
            }
        }
    }

    /// The name of the installation, made up by whoever asks first.
    async fn installation(&self) -> Result<String, StoreError> {
        loop {
            if let Some(meta) = self.table.get(&keys::meta()).await? {
                let name = table::text(&meta, "installation").map(str::to_owned);
                return name.ok_or_else(|| self.damaged("the table's META item", "it names no installation"));
            }
            let mut meta = table::item(&keys::meta());
            meta.insert("installation".into(), table::s(hex::encode(rand::random::<[u8; 8]>())));
            let mut tx = self.table.tx();
            tx.put(meta, Cond::Absent);
            self.table.commit(tx).await?;
        }
    }

    fn rounds(&self) -> Rounds {
        Rounds { pauses: Pauses::within(self.table.write.total) }
    }

    async fn turn(&self, path: &FunctionPath) -> MutexGuard<'_, ()> {
        // Which ones share a turn may differ from run to run; nothing is stored by it.
        let mut hash = DefaultHasher::new();
        path.to_string().hash(&mut hash);
        self.turns[hash.finish() as usize % TURNS].lock().await
    }

    fn damaged(&self, what: &str, detail: impl std::fmt::Display) -> StoreError {
        StoreError::Damaged { what: what.to_owned(), detail: detail.to_string() }
    }

    fn encode<T: Serialize>(&self, what: &str, value: &T) -> Result<String, StoreError> {
        serde_json::to_string(value).map_err(|e| self.damaged(what, e))
    }

    /// The document of an item that is always short enough to be inside it.
    fn decode<T: DeserializeOwned>(&self, what: &str, item: &Item) -> Result<T, StoreError> {
        let doc = table::text(item, "doc").ok_or_else(|| self.damaged(what, "its item has no document"))?;
        serde_json::from_str(doc).map_err(|e| self.damaged(what, e))
    }

    /// Puts a document into its item, or when it is long into the bucket and a reference into the item. Returns the object's name then.
    async fn attach(&self, item: &mut Item, name: &str, doc: String) -> Result<Option<String>, StoreError> {
        if doc.len() <= DOC_INLINE_BYTES_MAX {
            item.insert("doc".into(), table::s(doc));
            return Ok(None);
        }
        let object = format!("{DOCUMENTS_PREFIX}{name}/{}", hex::encode(rand::random::<[u8; 12]>()));
        self.objects.put_object(&object, doc.into()).await.map_err(|e| self.table.unclear("PutObject", &e))?;
        item.insert("object".into(), table::s(&object));
        Ok(Some(object))
    }

    /// The text of an item's document, wherever it is. None when its object has been replaced since the item was read.
    async fn fetch(&self, what: &str, item: &Item) -> Result<Option<String>, StoreError> {
        if let Some(doc) = table::text(item, "doc") {
            return Ok(Some(doc.to_owned()));
        }
        let object = table::text(item, "object").ok_or_else(|| self.damaged(what, "its item has no document"))?;
        let bytes = self.objects.get_object(object).await.map_err(|e| self.table.unclear("GetObject", &e))?;
        bytes.map(|bytes| String::from_utf8(bytes.to_vec()).map_err(|e| self.damaged(what, e))).transpose()
    }

    /// Removes an object that nothing refers to any more. When that fails it stays, and harms nobody.
    async fn discard(&self, object: Option<String>) {
        let Some(object) = object else { return };
        if let Err(error) = self.objects.delete_object(&object).await {
            tracing::warn!(%error, object, "an object that nothing refers to stays in the bucket");
        }
    }
}

#[async_trait]
impl FunctionStore for DynamoStore {
    async fn ping(&self) -> Result<(), StoreError> {
        self.table.get(&keys::meta()).await.map(|_| ())
    }
    async fn put_tenant(&self, tenant: Tenant, precondition: Precondition) -> Result<Tenant, StoreError> {
        self.write_tenant(tenant, precondition).await
    }
    async fn get_tenant(&self, tenant: &TenantName) -> Result<Option<Tenant>, StoreError> {
        self.read_tenant(tenant).await
    }
    async fn delete_tenant(&self, tenant: &TenantName, precondition: Precondition) -> Result<(), StoreError> {
        self.remove_tenant(tenant, precondition).await
    }
    async fn list_tenants(&self, cursor: Option<&str>, limit: usize) -> Result<Page<Tenant>, StoreError> {
        self.page_of_tenants(cursor, limit).await
    }
    async fn put_container(&self, container: Container, precondition: Precondition) -> Result<Container, StoreError> {
        self.write_container(container, precondition).await
    }
    async fn get_container(&self, path: &ContainerPath) -> Result<Option<Container>, StoreError> {
        self.read_container(path).await
    }
    async fn delete_container(&self, path: &ContainerPath, precondition: Precondition) -> Result<(), StoreError> {
        self.remove_container(path, precondition).await
    }
    async fn list_containers(
        &self,
        tenant: &TenantName,
        cursor: Option<&str>,
        limit: usize,
    ) -> Result<Page<Container>, StoreError> {
        self.page_of_containers(tenant, cursor, limit).await
    }
    async fn create_version(
        &self,
        path: &FunctionPath,
        new: NewVersion,
        precondition: Precondition,
    ) -> Result<(Function, FunctionVersion), StoreError> {
        self.add_version(path, new, precondition).await
    }
    async fn settle_version(
        &self,
        path: &FunctionPath,
        version: VersionNumber,
        status: VersionStatus,
    ) -> Result<Function, StoreError> {
        self.end_building(path, version, status).await
    }
    async fn set_live(
        &self,
        path: &FunctionPath,
        version: VersionNumber,
        precondition: Precondition,
    ) -> Result<Function, StoreError> {
        self.choose_live(path, version, precondition).await
    }
    async fn get_function(&self, path: &FunctionPath) -> Result<Option<Function>, StoreError> {
        Ok(self.read_head(path).await?.map(|head| head.function))
    }
    async fn get_version(&self, path: &FunctionPath, version: VersionNumber) -> Result<Option<FunctionVersion>, StoreError> {
        self.read_version(path, version).await
    }
    async fn get_servable(&self, path: &FunctionPath) -> Result<Option<Servable>, StoreError> {
        self.read_servable(path).await
    }
    async fn delete_function(&self, path: &FunctionPath, precondition: Precondition) -> Result<(), StoreError> {
        self.remove_function(path, precondition).await
    }
    async fn list_functions(&self, path: &ContainerPath, cursor: Option<&str>, limit: usize) -> Result<Page<Function>, StoreError> {
        self.page_of_functions(path, cursor, limit).await
    }
    async fn list_versions(
        &self,
        path: &FunctionPath,
        cursor: Option<&str>,
        limit: usize,
    ) -> Result<Page<FunctionVersion>, StoreError> {
        self.page_of_versions(path, cursor, limit).await
    }
    async fn count_tenant(&self, tenant: &TenantName) -> Result<TenantCounts, StoreError> {
        self.count_of_tenant(tenant).await
    }
    async fn put_token(&self, hash: TokenHash, token: Token) -> Result<(), StoreError> {
        self.write_token(hash, token).await
    }
    async fn get_token(&self, hash: &TokenHash) -> Result<Option<Token>, StoreError> {
        self.read_token(hash).await
    }
    async fn list_tokens(
        &self,
        tenant: Option<&TenantName>,
        cursor: Option<&str>,
        limit: usize,
    ) -> Result<Page<Token>, StoreError> {
        self.page_of_tokens(tenant, cursor, limit).await
    }
    async fn delete_token(&self, id: &str) -> Result<Token, StoreError> {
        self.remove_token(id).await
    }
    async fn get_module(&self, key: &BuildKey) -> Result<Option<ModuleRecord>, StoreError> {
        self.read_module(key).await
    }
    async fn put_module(&self, record: ModuleRecord, expected: Option<&ModuleRecord>) -> Result<bool, StoreError> {
        self.write_module(record, expected).await
    }
    async fn list_modules(&self, cursor: Option<&str>, limit: usize) -> Result<Page<ModuleRecord>, StoreError> {
        self.page_of_modules(cursor, limit).await
    }
    async fn find_modules(&self, name: &str, version: &str) -> Result<Vec<ModuleRecord>, StoreError> {
        self.modules_named(name, version).await
    }
    async fn waiting_for(&self, key: &BuildKey, limit: usize) -> Result<Vec<(FunctionPath, VersionNumber)>, StoreError> {
        self.versions_waiting(key, limit).await
    }
    async fn count_users(&self, key: &BuildKey) -> Result<u64, StoreError> {
        self.count_live_users(key).await
    }
    async fn get_document(&self, path: &FunctionPath) -> Result<Option<(serde_json::Value, u64)>, StoreError> {
        self.read_document(path).await
    }
    async fn put_document(
        &self,
        path: &FunctionPath,
        data: serde_json::Value,
        precondition: Precondition,
    ) -> Result<u64, StoreError> {
        self.write_document(path, data, precondition).await
    }
}
