//! Durable state behind three small traits: [`FunctionStore`] (tenants, containers, functions, tokens, module records,
//! storage documents), [`ArtifactStore`] (immutable bytes by hash) and [`BuildQueue`] (at-least-once jobs).
//! A backend is chosen by a tagged enum; every backend passes the same conformance suite. This crate does not know HTTP,
//! containers or npm.

pub mod artifact;
pub mod function;
pub mod queue;

pub use artifact::{ArtifactError, ArtifactStore, Put};
pub use function::{FunctionStore, NewVersion, Page, Precondition, Servable, StoreError};
pub use queue::{BuildJob, BuildQueue, Delivery, QueueError};
