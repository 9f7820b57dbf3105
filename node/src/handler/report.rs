//! What the handler tells the rest of a cluster: which containers run here and how much they are used; and what it does when one of them
//! was changed on another node.

use super::{Handler, container::State};
use hearth_model::{Container, ContainerPath};
use std::sync::{Arc, atomic::Ordering::Relaxed};

/// How much a container is used.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ContainerLoad {
    /// Whose it is.
    pub path: ContainerPath,
    /// Distinguishes it from an earlier container of the same path.
    pub id: u64,
    /// Requests that it was given, ever.
    pub served: u64,
    /// Requests in flight.
    pub in_flight: u32,
    /// What it may use.
    pub memory_mb: u64,
}

impl Handler {
    /// The containers that take requests here.
    #[must_use]
    pub fn loads(&self) -> Vec<ContainerLoad> {
        let all = self.containers.all();
        let alive = all.iter().filter(|c| matches!(c.state(), State::Running | State::Frozen));
        alive
            .map(|c| ContainerLoad {
                path: c.path().clone(),
                id: c.id(),
                served: c.served(),
                in_flight: c.in_flight(),
                memory_mb: c.settings.memory_mb,
            })
            .collect()
    }

    /// Memory of the claimed containers as of the last look, in bytes.
    #[must_use]
    pub fn memory_bytes(&self) -> u64 {
        self.counters.memory_bytes.load(Relaxed)
    }

    /// Memory of the claimed containers above which idle ones are destroyed, in bytes.
    #[must_use]
    pub fn memory_max_bytes(&self) -> u64 {
        match self.config.memory_limit.as_u64() {
            0 => super::idle::machine_memory() / 10 * 6,
            bytes => bytes,
        }
    }

    /// Containers that wait in the pool.
    #[must_use]
    pub fn pool_level(&self) -> usize {
        self.pool.level()
    }

    /// Whether a container of this path runs here.
    #[must_use]
    pub fn holds(&self, path: &ContainerPath) -> bool {
        self.containers.get(path).is_some_and(|c| c.is_alive())
    }

    /// The container's record as it is now, none when it is gone: what runs here and no longer fits it finishes what it does and leaves.
    pub fn reconcile(self: &Arc<Self>, path: &ContainerPath, record: Option<&Container>) {
        if let Some(container) = self.containers.get(path)
            && !record.is_some_and(|record| container.fits_settings(record))
        {
            self.retire(&container);
        }
    }
}
