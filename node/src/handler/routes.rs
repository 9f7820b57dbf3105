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

    /// Sends a function's requests here from now on.
    pub(super) fn set(&self, path: FunctionPath, route: Route) {
        self.shard(&path).write().insert(path, route);
    }

    /// Ends a function's route if it leads into this container.
    pub(super) fn remove(&self, path: &FunctionPath, container: &LiveContainer) {
        let mut shard = self.shard(path).write();
        if shard.get(path).is_some_and(|route| route.container.id() == container.id()) {
            shard.remove(path);
        }
    }
}
