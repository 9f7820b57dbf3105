//! Durable state behind small traits: [`FunctionStore`] (tenants, containers, functions, tokens, module records, storage
//! documents), [`ArtifactStore`] (immutable bytes by hash), [`BuildQueue`] (at-least-once jobs), [`Keyring`] (sealing of secrets).
//! A backend is chosen by a tagged enum; every backend passes the same conformance suite. This crate does not know HTTP,
//! containers or npm.

pub mod artifact;
pub mod aws;
mod calls;
pub mod config;
#[cfg(any(test, feature = "conformance"))]
pub mod conformance;
pub mod directory;
#[cfg(test)]
mod embedded_tests;
#[cfg(feature = "conformance")]
pub mod faulty;
pub mod function;
pub mod keyring;
mod paging;
pub mod queue;
pub mod sqlite;

pub use artifact::{ArtifactError, ArtifactStore, Put};
pub use calls::CallsMetric;
pub use config::{Config, OpenError, Stores, open, open_over};
pub use function::{FunctionStore, NewVersion, Page, Precondition, Servable, StoreError};
pub use keyring::{Keyring, KeyringError};
pub use queue::{BuildJob, BuildQueue, Delivery, QueueError};
