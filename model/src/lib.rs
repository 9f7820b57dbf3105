//! The nouns and rules of Hearth: ids, functions, modules, limits, problems, the protocol between a node and the runtime
//! in a container. No input or output, no async, nothing that knows a backend.

pub mod egress;
pub mod function;
pub mod header;
pub mod limits;
pub mod module;
pub mod name;
pub mod object;
pub mod problem;
pub mod protocol;
pub mod tenant;
pub mod time;
pub mod token;

pub use egress::{Destination, Egress};
pub use function::{CodeRef, Container, Function, FunctionSpec, FunctionVersion, Model, VersionNumber, VersionStatus};
pub use module::{ArtifactRef, BuildKey, BuildState, ModuleName, ModuleRecord, ModuleSpec, ResolvedModule};
pub use name::{ContainerName, ContainerPath, FunctionName, FunctionPath, NameError, TenantName};
pub use problem::{Fault, Problem, ProblemKind};
pub use tenant::{Classes, Tenant, TenantLimits};
pub use time::Timestamp;
pub use token::{Scope, Token, TokenHash};
