//! [`FunctionStore`]: tenants, containers, functions and their versions, tokens, module records, storage documents.

use async_trait::async_trait;
use hearth_model::{
    BuildKey, CodeRef, Container, ContainerPath, Function, FunctionPath, FunctionVersion, Model, ModuleRecord, ResolvedModule,
    Tenant, TenantName, Token, TokenHash, VersionNumber, VersionStatus, function::SealedSecret,
};
use std::collections::BTreeMap;

/// Why a call to the store did not do what was asked. Whatever it says, nothing is half-written.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    /// There is no such thing.
    #[error("{what} does not exist")]
    NotFound {
        /// Noun and name.
        what: String,
    },
    /// The precondition does not hold.
    #[error("{what} has changed: its generation is {actual:?}")]
    Precondition {
        /// Noun and name.
        what: String,
        /// What the generation is; none when the thing does not exist.
        actual: Option<u64>,
    },
    /// Still in use.
    #[error("{what} is not empty: delete what is in it first")]
    NotEmpty {
        /// Noun and name.
        what: String,
    },
    /// Stored by a newer Hearth.
    #[error("{what} was written in schema {found}, this program knows up to {known}: upgrade this program")]
    NewerSchema {
        /// Noun and name.
        what: String,
        /// Its schema.
        found: u64,
        /// Ours.
        known: u64,
    },
    /// Stored bytes that make no sense.
    #[error("{what} is damaged: {detail}")]
    Damaged {
        /// Noun and name.
        what: String,
        /// What does not fit.
        detail: String,
    },
    /// A list's cursor is not one that a list gave.
    #[error("{cursor:?} is not a cursor: pass the `next` of a page unchanged")]
    BadCursor {
        /// What was given, cut to 80 characters.
        cursor: String,
    },
    /// The backend did not answer, or refused.
    #[error("{call} on {resource}: {detail}")]
    Unavailable {
        /// The call that failed.
        call: &'static str,
        /// Which file or table.
        resource: String,
        /// The backend's words.
        detail: String,
    },
}

/// What must hold for a write to happen.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Precondition {
    /// Nothing.
    None,
    /// The thing must not exist (`If-None-Match: *`).
    Absent,
    /// The thing must exist at this generation (`If-Match`).
    Generation(u64),
}

impl Precondition {
    /// Holds it against a thing's generation; none when the thing does not exist. `what` is noun and name, for the error.
    ///
    /// # Errors
    /// [`StoreError::Precondition`] when it does not hold.
    pub fn check(self, what: &str, actual: Option<u64>) -> Result<(), StoreError> {
        let holds = match self {
            Self::None => true,
            Self::Absent => actual.is_none(),
            Self::Generation(wanted) => actual == Some(wanted),
        };
        if holds { Ok(()) } else { Err(StoreError::Precondition { what: what.to_owned(), actual }) }
    }
}

/// One page of a list, in the order of names.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Page<T> {
    /// The things.
    pub items: Vec<T>,
    /// Where the next page starts (an opaque text), when there is one.
    pub next: Option<String>,
}

/// What `create_version` stores; the store adds number, path and time of creation.
#[derive(Debug, Clone)]
pub struct NewVersion {
    /// `Ready`, or `Building` while modules build.
    pub status: VersionStatus,
    /// The files. Artifacts are put before.
    pub code: CodeRef,
    /// The file that is loaded.
    pub main: String,
    /// As asked for.
    pub model: Option<Model>,
    /// Deadline of one invocation.
    pub timeout_ms: u64,
    /// Ranges as asked for.
    pub dependencies: BTreeMap<String, String>,
    /// What they resolved to.
    pub modules: Vec<ResolvedModule>,
    /// Readable configuration.
    pub env: BTreeMap<String, String>,
    /// Sealed secrets.
    pub secrets: BTreeMap<String, SealedSecret>,
}

/// All that a node needs to serve a function, read at once.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Servable {
    /// The tenant.
    pub tenant: Tenant,
    /// The container.
    pub container: Container,
    /// The function.
    pub function: Function,
    /// Its live version; none while it has none.
    pub live: Option<FunctionVersion>,
}

/// Durable records. Every write is acknowledged only when it survives a crash; reads see all acknowledged writes.
#[async_trait]
pub trait FunctionStore: Send + Sync + 'static {
    /// A cheap call that fails when the backend is out of reach.
    async fn ping(&self) -> Result<(), StoreError>;

    /// Creates or replaces; `tenant.generation` and `created_at` of an existing one are ignored. Returns what is stored.
    async fn put_tenant(&self, tenant: Tenant, precondition: Precondition) -> Result<Tenant, StoreError>;
    /// None when there is no such tenant.
    async fn get_tenant(&self, tenant: &TenantName) -> Result<Option<Tenant>, StoreError>;
    /// Refused with `NotEmpty` while it has containers. Deletes its tokens as well.
    async fn delete_tenant(&self, tenant: &TenantName, precondition: Precondition) -> Result<(), StoreError>;
    /// In the order of names. `limit` is 1 to `PAGE_MAX`.
    async fn list_tenants(&self, cursor: Option<&str>, limit: usize) -> Result<Page<Tenant>, StoreError>;

    /// Creates or replaces; `NotFound` when the tenant does not exist.
    async fn put_container(&self, container: Container, precondition: Precondition) -> Result<Container, StoreError>;
    /// None when there is no such container.
    async fn get_container(&self, path: &ContainerPath) -> Result<Option<Container>, StoreError>;
    /// Refused with `NotEmpty` while it has functions.
    async fn delete_container(&self, path: &ContainerPath, precondition: Precondition) -> Result<(), StoreError>;
    /// In the order of names.
    async fn list_containers(&self, tenant: &TenantName, cursor: Option<&str>, limit: usize)
    -> Result<Page<Container>, StoreError>;

    /// Adds the next version in one step with the function's record (made when it is new). A `Ready` version goes live at
    /// once. Versions beyond `VERSIONS_KEPT_MAX` are dropped, the oldest first, never the live one. `NotFound` when the
    /// container does not exist.
    async fn create_version(
        &self,
        path: &FunctionPath,
        new: NewVersion,
        precondition: Precondition,
    ) -> Result<(Function, FunctionVersion), StoreError>;
    /// Ends `Building`. To `Ready`: the version goes live in the same step unless a newer version went live or was rolled
    /// back to meanwhile. Settling twice the same way changes nothing; settling what is not `Building` otherwise is ignored.
    async fn settle_version(
        &self,
        path: &FunctionPath,
        version: VersionNumber,
        status: VersionStatus,
    ) -> Result<Function, StoreError>;
    /// Makes an existing `Ready` version live (rollback). `NotFound` when there is none such that is ready.
    async fn set_live(
        &self,
        path: &FunctionPath,
        version: VersionNumber,
        precondition: Precondition,
    ) -> Result<Function, StoreError>;
    /// None when there is no such function.
    async fn get_function(&self, path: &FunctionPath) -> Result<Option<Function>, StoreError>;
    /// None when there is no such version.
    async fn get_version(&self, path: &FunctionPath, version: VersionNumber) -> Result<Option<FunctionVersion>, StoreError>;
    /// Tenant, container, function and live version in one consistent read; none when any of the first three is missing.
    async fn get_servable(&self, path: &FunctionPath) -> Result<Option<Servable>, StoreError>;
    /// With all its versions and its storage document.
    async fn delete_function(&self, path: &FunctionPath, precondition: Precondition) -> Result<(), StoreError>;
    /// In the order of names.
    async fn list_functions(&self, path: &ContainerPath, cursor: Option<&str>, limit: usize) -> Result<Page<Function>, StoreError>;
    /// The newest first.
    async fn list_versions(
        &self,
        path: &FunctionPath,
        cursor: Option<&str>,
        limit: usize,
    ) -> Result<Page<FunctionVersion>, StoreError>;
    /// How many containers and functions a tenant has.
    async fn count_tenant(&self, tenant: &TenantName) -> Result<TenantCounts, StoreError>;

    /// `Precondition` when the id or the hash is taken; `NotFound` when its tenant does not exist.
    async fn put_token(&self, hash: TokenHash, token: Token) -> Result<(), StoreError>;
    /// None when there is no such token. Expiry is the caller's business.
    async fn get_token(&self, hash: &TokenHash) -> Result<Option<Token>, StoreError>;
    /// All tokens, or those of one tenant, in the order of ids.
    async fn list_tokens(&self, tenant: Option<&TenantName>, cursor: Option<&str>, limit: usize)
    -> Result<Page<Token>, StoreError>;
    /// By id. `NotFound` when there is none.
    async fn delete_token(&self, id: &str) -> Result<Token, StoreError>;

    /// None when nobody asked for this build.
    async fn get_module(&self, key: &BuildKey) -> Result<Option<ModuleRecord>, StoreError>;
    /// Compare and set. `None` as `expected`: the record must not exist; otherwise its `(epoch, attempts, state)` must be those of
    /// `expected`. Returns whether it was written; when it was not, somebody else was quicker: read again.
    async fn put_module(&self, record: ModuleRecord, expected: Option<&ModuleRecord>) -> Result<bool, StoreError>;
    /// In the order of name and version.
    async fn list_modules(&self, cursor: Option<&str>, limit: usize) -> Result<Page<ModuleRecord>, StoreError>;
    /// All builds of modules with this name at this version.
    async fn find_modules(&self, name: &str, version: &str) -> Result<Vec<ModuleRecord>, StoreError>;
    /// Function versions that are still `Building` and wait for this build; at most `limit`. Empty once all are settled.
    async fn waiting_for(&self, key: &BuildKey, limit: usize) -> Result<Vec<(FunctionPath, VersionNumber)>, StoreError>;
    /// How many functions have a live version that uses this build.
    async fn count_users(&self, key: &BuildKey) -> Result<u64, StoreError>;

    /// The function's storage document and its etag.
    async fn get_document(&self, path: &FunctionPath) -> Result<Option<(serde_json::Value, u64)>, StoreError>;
    /// Writes (or with null deletes) the document; `Precondition` refers to its etag. Returns the new etag.
    async fn put_document(
        &self,
        path: &FunctionPath,
        data: serde_json::Value,
        precondition: Precondition,
    ) -> Result<u64, StoreError>;
}

/// What a tenant has.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct TenantCounts {
    /// Containers.
    pub containers: u64,
    /// Functions.
    pub functions: u64,
}

/// Noun and name for [`StoreError`].
#[must_use]
pub fn what(noun: &str, name: impl std::fmt::Display) -> String {
    format!("{noun} {name}")
}
