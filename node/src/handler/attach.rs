//! All that the handler asks of the module cache, as a trait, so that its tests need neither archives nor mounts.

use crate::modules::ModuleCache;
use async_trait::async_trait;
use hearth_model::ResolvedModule;
use std::path::Path;

/// A module could not be had.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct AttachFailure {
    /// Which.
    pub module: String,
    /// Why.
    pub detail: String,
}

/// The module cache as the handler sees it.
#[async_trait]
pub(super) trait ModuleAttach: Send + Sync + 'static {
    /// Makes a function's modules visible in a slot. Returns their directories inside the container.
    async fn attach(&self, slot: u32, tree: &Path, function_dir: &Path, modules: &[ResolvedModule]) -> Result<Vec<String>, AttachFailure>;
    /// The slot's container is gone.
    async fn detach_slot(&self, slot: u32, tree: &Path);
    /// The slot's container is of an earlier process and lives on.
    async fn adopt_slot(&self, slot: u32, tree: &Path);
    /// The sets of modules most in demand, best first.
    fn popular(&self, max: usize) -> Vec<Vec<ResolvedModule>>;
}
