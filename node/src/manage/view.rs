//! How things look from outside. What is not in a view cannot leak: secrets come back as names.

use hearth_model::{
    BuildState, CodeRef, Container, ContainerName, Function, FunctionName, FunctionVersion, Model, ModuleRecord, Tenant,
    TenantLimits, TenantName, Timestamp, VersionNumber, VersionStatus, function::NodeVersion,
};
use serde::Serialize;
use std::collections::BTreeMap;

/// A tenant.
#[derive(Debug, Serialize, utoipa::ToSchema)]
pub(crate) struct TenantView {
    name: TenantName,
    /// The operator's class that sets its limits, where it has one.
    #[serde(skip_serializing_if = "Option::is_none")]
    class: Option<String>,
    /// What holds for it.
    limits: TenantLimits,
    generation: u64,
    created_at: Timestamp,
}

impl TenantView {
    pub fn of(tenant: Tenant) -> Self {
        Self {
            name: tenant.name,
            class: tenant.class,
            limits: tenant.limits,
            generation: tenant.generation,
            created_at: tenant.created_at,
        }
    }
}

/// A container.
#[derive(Debug, Serialize, utoipa::ToSchema)]
pub(crate) struct ContainerView {
    tenant: TenantName,
    name: ContainerName,
    memory_mb: u64,
    concurrency: u32,
    node: NodeVersion,
    generation: u64,
    created_at: Timestamp,
}

impl ContainerView {
    pub fn of(c: Container) -> Self {
        Self {
            tenant: c.tenant,
            name: c.name,
            memory_mb: c.memory_mb,
            concurrency: c.concurrency,
            node: c.node,
            generation: c.generation,
            created_at: c.created_at,
        }
    }
}

/// A version of a function.
#[derive(Debug, Serialize, utoipa::ToSchema)]
pub(crate) struct VersionView {
    version: VersionNumber,
    #[serde(flatten)]
    status: VersionStatus,
    /// Whether it serves; absent inside a function, which names its live version itself.
    #[serde(skip_serializing_if = "Option::is_none")]
    live: Option<bool>,
    main: String,
    model: Option<Model>,
    timeout_ms: u64,
    /// Ranges, as asked for.
    dependencies: BTreeMap<String, String>,
    /// What they resolved to, as `name@version`; peers that nobody listed included.
    modules: Vec<String>,
    env: BTreeMap<String, String>,
    /// Names only.
    secrets: Vec<String>,
    /// The files by path, where asked for.
    #[serde(skip_serializing_if = "Option::is_none")]
    files: Option<BTreeMap<String, String>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    created_at: Option<Timestamp>,
}

impl VersionView {
    pub fn of(v: FunctionVersion, live: Option<VersionNumber>, files: Option<BTreeMap<String, String>>) -> Self {
        Self {
            live: Some(live == Some(v.version)),
            version: v.version,
            status: v.status,
            main: v.main,
            model: v.model,
            timeout_ms: v.timeout_ms,
            dependencies: v.dependencies,
            modules: v.modules.iter().map(|m| m.spec.to_string()).collect(),
            env: v.env,
            secrets: v.secrets.into_keys().collect(),
            files,
            created_at: Some(v.created_at),
        }
    }
}

/// The files of a version whose code is inside its record.
pub(crate) fn inline_files(version: &FunctionVersion) -> Option<BTreeMap<String, String>> {
    match &version.code {
        CodeRef::Inline(files) => Some(files.clone()),
        CodeRef::Artifact { .. } => None,
    }
}

/// A function. `status` is the newest version's.
#[derive(Debug, Serialize, utoipa::ToSchema)]
pub(crate) struct FunctionView {
    tenant: TenantName,
    container: ContainerName,
    name: FunctionName,
    /// Where it is called, below this server's address.
    url: String,
    /// The version that serves; absent until one can.
    live: Option<VersionNumber>,
    /// The newest version.
    latest: VersionNumber,
    generation: u64,
    created_at: Timestamp,
    updated_at: Timestamp,
    /// The newest version whole; absent in lists.
    #[serde(flatten, skip_serializing_if = "Option::is_none")]
    version: Option<VersionView>,
}

impl FunctionView {
    pub fn of(f: Function, version: Option<VersionView>) -> Self {
        Self {
            url: format!("/run/{}", f.path),
            tenant: f.path.tenant,
            container: f.path.container,
            name: f.path.function,
            live: f.live,
            latest: f.latest,
            generation: f.generation,
            created_at: f.created_at,
            updated_at: f.updated_at,
            // The function has members of the same names.
            version: version.map(|v| VersionView { live: None, created_at: None, ..v }),
        }
    }
}

/// A build of a module.
#[derive(Debug, Serialize, utoipa::ToSchema)]
pub(crate) struct ModuleView {
    /// `name@version`.
    module: String,
    /// Which build.
    key: String,
    node: NodeVersion,
    /// Whether its lifecycle scripts run.
    scripts: bool,
    #[serde(flatten)]
    state: BuildState,
    /// Attempts so far.
    attempts: u32,
    created_at: Timestamp,
    /// As the registry gives it.
    integrity: Option<String>,
    /// Functions whose live version uses it.
    functions: u64,
    /// Unpacked bytes that sharing saves: one copy serves all of them.
    saved_bytes: u64,
    /// The end of the build's output; absent in lists.
    #[serde(skip_serializing_if = "Option::is_none")]
    log: Option<String>,
}

impl ModuleView {
    pub fn of(record: ModuleRecord, functions: u64, with_log: bool) -> Self {
        let bytes = match &record.state {
            BuildState::Ready { artifact, .. } => artifact.unpacked_bytes,
            _ => 0,
        };
        Self {
            module: record.spec.to_string(),
            key: record.key.0,
            node: record.node,
            scripts: record.scripts,
            state: record.state,
            attempts: record.attempts,
            created_at: record.created_at,
            integrity: record.integrity,
            functions,
            saved_bytes: bytes * functions.saturating_sub(1),
            log: with_log.then_some(record.log),
        }
    }
}
