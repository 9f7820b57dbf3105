//! Which container serves a function: the one look-up of a warm request. Sharded, so that the proxy's threads seldom meet.

use super::container::{LiveContainer, Loaded};
use hearth_model::FunctionPath;
use parking_lot::RwLock;
use std::{collections::HashMap, sync::Arc};

/// A power of two, well above the number of the proxy's threads.
const SHARDS: usize = 64;

/// A loaded version in its container.
#[derive(Clone)]
pub(super) struct Route {
    pub container: Arc<LiveContainer>,
    pub loaded: Arc<Loaded>,
}

/// Routes by function. A route may lead to a container that has just died: its gate says so.
pub(super) struct Routes {
    shards: Box<[RwLock<HashMap<FunctionPath, Route>>]>,
}

impl Default for Routes {
    fn default() -> Self {
        Self { shards: (0..SHARDS).map(|_| RwLock::default()).collect() }
    }
}

impl Routes {
    /// Need not resist anybody: whoever makes all names fall into one shard slows down a lock that is held for nanoseconds.
    fn shard(&self, path: &FunctionPath) -> &RwLock<HashMap<FunctionPath, Route>> {
        let mix = |sum: u32, bytes: &str| bytes.bytes().fold(sum, |sum, b| sum.wrapping_mul(31).wrapping_add(u32::from(b)));
        let sum = mix(mix(17, path.tenant.as_str()), path.function.as_str());
        &self.shards[(sum ^ (sum >> 16)) as usize % SHARDS]
    }

    /// The function's route, if `wanted` takes it.
    pub(super) fn get(&self, path: &FunctionPath, wanted: impl FnOnce(&Route) -> bool) -> Option<Route> {
        self.shard(path).read().get(path).filter(|route| wanted(route)).cloned()
    }

    /// Sends a function's requests here from now on, unless the container has just died: nothing would take the route away again.
    pub(super) fn set(&self, path: FunctionPath, route: Route) {
        let container = Arc::clone(&route.container);
        self.shard(&path).write().insert(path.clone(), route);
        if !container.is_alive() {
            self.remove(&path, &container);
        }
    }

    /// Ends a function's route if it leads into this container.
    pub(super) fn remove(&self, path: &FunctionPath, container: &LiveContainer) {
        self.remove_if(path, |route| route.container.id() == container.id());
    }

    /// Ends a function's route if it leads to this version in its container.
    pub(super) fn remove_version(&self, path: &FunctionPath, loaded: &Arc<Loaded>) {
        self.remove_if(path, |route| Arc::ptr_eq(&route.loaded, loaded));
    }

    fn remove_if(&self, path: &FunctionPath, is_it: impl FnOnce(&Route) -> bool) {
        let mut shard = self.shard(path).write();
        if shard.get(path).is_some_and(is_it) {
            shard.remove(path);
        }
    }

    #[cfg(test)]
    pub(super) fn len(&self) -> usize {
        self.shards.iter().map(|shard| shard.read().len()).sum()
    }
}
