//! All that the handler asks of the module cache, as a trait, so that its tests need neither archives nor mounts.

use crate::modules::{AttachError, ModuleCache};
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
    /// A cold start wanted these.
    fn note_demand(&self, modules: &[ResolvedModule]);
    /// The sets of modules most in demand, best first.
    fn popular(&self, max: usize) -> Vec<Vec<ResolvedModule>>;
}

#[async_trait]
impl ModuleAttach for ModuleCache {
    async fn attach(&self, slot: u32, tree: &Path, function_dir: &Path, modules: &[ResolvedModule]) -> Result<Vec<String>, AttachFailure> {
        match ModuleCache::attach(self, slot, tree, function_dir, modules).await {
            Ok(attached) => Ok(attached.packages),
            Err(error) => {
                let module = match &error {
                    AttachError::Record { module, .. } | AttachError::Fetch { module, .. } | AttachError::Mount { module, .. } => module.to_string(),
                    AttachError::NotRoot => modules.first().map_or_else(String::new, |m| m.spec.to_string()),
                };
                Err(AttachFailure { module, detail: error.to_string() })
            }
        }
    }

    async fn detach_slot(&self, slot: u32, tree: &Path) {
        ModuleCache::detach_slot(self, slot, tree).await;
    }

    async fn adopt_slot(&self, slot: u32, tree: &Path) {
        ModuleCache::adopt_slot(self, slot, tree).await;
    }

    fn note_demand(&self, modules: &[ResolvedModule]) {
        ModuleCache::note_demand(self, modules);
    }

    fn popular(&self, max: usize) -> Vec<Vec<ResolvedModule>> {
        ModuleCache::popular(self, max)
    }
}
