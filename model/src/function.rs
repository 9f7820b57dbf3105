//! Functions, their immutable versions, and the containers that they share.

use crate::{
    ContainerPath, FunctionPath, ResolvedModule, Timestamp, limits,
    name::{ContainerName, TenantName},
};
use serde::{Deserialize, Serialize};
use std::{collections::BTreeMap, fmt};

/// Counts a function's versions from 1.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize, utoipa::ToSchema)]
#[serde(transparent)]
pub struct VersionNumber(pub u64);

impl fmt::Display for VersionNumber {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// How a function is called; PROGRAMMING-MODEL in the documentation has the details.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize, utoipa::ToSchema)]
#[serde(rename_all = "lowercase")]
pub enum Model {
    /// `module.exports = function (cb)`, `(context, cb)`, `(context, req, res)`.
    Webtask,
    /// `export default async (request, context) => new Response(...)`.
    Fetch,
    /// `(req, res)`.
    Node,
    /// `exports.handler = async (event, context)`.
    Lambda,
}

/// Which Node.js a container runs.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default, Serialize, Deserialize, utoipa::ToSchema)]
pub enum NodeVersion {
    /// Node.js 22.
    #[serde(rename = "22")]
    V22,
    /// Node.js 24, the default.
    #[default]
    #[serde(rename = "24")]
    V24,
}

impl NodeVersion {
    /// The major version, as `24`.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::V22 => "22",
            Self::V24 => "24",
        }
    }

    /// `process.versions.modules`: what native addons are built against.
    #[must_use]
    pub const fn abi(self) -> &'static str {
        match self {
            Self::V22 => "127",
            Self::V24 => "137",
        }
    }
}

/// The body of `PUT .../functions/{f}`.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize, utoipa::ToSchema)]
#[serde(deny_unknown_fields)]
pub struct FunctionSpec {
    /// One file of JavaScript; stands for `files: {"index.js": ...}` (`index.mjs` for an ES module).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub code: Option<String>,
    /// Several files, by relative path.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub files: Option<BTreeMap<String, String>>,
    /// npm modules by name, as version ranges.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub dependencies: BTreeMap<String, String>,
    /// Seen as `process.env` and `context`; readable again.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub env: BTreeMap<String, String>,
    /// Like `env`, but values never come back. A `null` keeps the live version's value under that name.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub secrets: BTreeMap<String, Option<String>>,
    /// How the function is called; found from its exports where not given.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub model: Option<Model>,
    /// Deadline of one invocation, in milliseconds.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub timeout_ms: Option<u64>,
    /// Memory of the function's container, in MiB; changes the container.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub memory_mb: Option<u64>,
    /// Requests that the function's container serves at once; changes the container.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub concurrency: Option<u32>,
}

/// A container: an isolation boundary that groups functions of one tenant.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Container {
    /// Whose it is.
    pub tenant: TenantName,
    /// Its name.
    pub name: ContainerName,
    /// Memory, in MiB.
    pub memory_mb: u64,
    /// Requests at once.
    pub concurrency: u32,
    /// Which Node.js.
    pub node: NodeVersion,
    /// Grows by one with every change; the `ETag`.
    pub generation: u64,
    /// When it was created.
    pub created_at: Timestamp,
}

impl Container {
    /// A container with default settings, as the first function of it makes one.
    #[must_use]
    pub fn with_defaults(path: &ContainerPath, created_at: Timestamp) -> Self {
        Self {
            tenant: path.tenant.clone(),
            name: path.container.clone(),
            memory_mb: limits::MEMORY_MB_DEFAULT,
            concurrency: limits::CONCURRENCY_DEFAULT,
            node: NodeVersion::default(),
            generation: 1,
            created_at,
        }
    }

    /// Where it is.
    #[must_use]
    pub fn path(&self) -> ContainerPath {
        ContainerPath { tenant: self.tenant.clone(), container: self.name.clone() }
    }
}

/// A function: a name whose `live` version answers.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Function {
    /// Where it is.
    pub path: FunctionPath,
    /// The version that serves; none until the first is ready.
    pub live: Option<VersionNumber>,
    /// The newest version, whatever its status.
    pub latest: VersionNumber,
    /// Grows by one with every change; the `ETag`.
    pub generation: u64,
    /// When it was created.
    pub created_at: Timestamp,
    /// When it changed last.
    pub updated_at: Timestamp,
}

/// Whether a version can serve.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
#[serde(tag = "status", rename_all = "lowercase")]
pub enum VersionStatus {
    /// Waits for its modules.
    Building,
    /// Can serve.
    Ready,
    /// Will never serve.
    Failed {
        /// Which module and why, for the tenant.
        reason: String,
    },
}

/// Where a version's files are.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum CodeRef {
    /// Inside the record: at most [`limits::CODE_INLINE_BYTES_MAX`] together.
    Inline(BTreeMap<String, String>),
    /// An artifact: the JSON object of path to text, named by its SHA-256 in hexadecimal.
    Artifact {
        /// `sha256` of the object.
        sha256: String,
        /// Its length in bytes.
        bytes: u64,
    },
}

/// One immutable version of a function. Only `status` ever changes, and only away from `Building`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct FunctionVersion {
    /// Of which function.
    pub path: FunctionPath,
    /// Which one.
    pub version: VersionNumber,
    /// Whether it can serve.
    #[serde(flatten)]
    pub status: VersionStatus,
    /// Its files.
    pub code: CodeRef,
    /// The file that is loaded, a key of the files.
    pub main: String,
    /// As asked for.
    pub model: Option<Model>,
    /// Deadline of one invocation.
    pub timeout_ms: u64,
    /// The ranges that were asked for.
    pub dependencies: BTreeMap<String, String>,
    /// What they resolved to, peers that nobody listed included.
    pub modules: Vec<ResolvedModule>,
    /// Readable configuration.
    pub env: BTreeMap<String, String>,
    /// Values sealed by the store's key, bound to this function's path; never in the clear outside a node's memory.
    pub secrets: BTreeMap<String, SealedSecret>,
    /// When it was made.
    pub created_at: Timestamp,
}

/// A secret's value under encryption: an opaque text that only the store's keyring opens.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(transparent)]
pub struct SealedSecret(pub String);

impl fmt::Debug for SealedSecret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("SealedSecret(..)")
    }
}
