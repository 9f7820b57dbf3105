//! What the handler counts, and what it says of itself.

use super::container::EndReason;
use serde::Serialize;
use std::{
    collections::BTreeMap,
    sync::atomic::{AtomicU64, Ordering::Relaxed},
};

/// Containers that a status lists by name; the counts cover all.
pub(super) const CONTAINERS_LISTED_MAX: usize = 200;

macro_rules! counters {
    ($($(#[$doc:meta])* $name:ident,)*) => {
        /// Counts since the start.
        #[derive(Debug, Default)]
        pub(super) struct Counters {
            $($(#[$doc])* pub $name: AtomicU64,)*
            ended: [AtomicU64; EndReason::ALL.len()],
        }

        /// Counts since the start.
        #[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
        pub struct HandlerCounts {
            $($(#[$doc])* pub $name: u64,)*
            /// Claimed containers that ended, by reason.
            pub ended: BTreeMap<&'static str, u64>,
        }

        impl Counters {
            pub(super) fn read(&self) -> HandlerCounts {
                let ended = EndReason::ALL.iter().zip(&self.ended).map(|(reason, n)| (reason.as_str(), n.load(Relaxed))).collect();
                HandlerCounts { $($name: self.$name.load(Relaxed),)* ended }
            }
        }
    };
}

counters! {
    /// Claims that found a container in the pool.
    claims_from_pool,
    /// Of those, claims that found one with their modules loaded ahead.
    claims_preloaded,
    /// Claims that waited for a container to be made.
    claims_waited,
    /// Claims that got none.
    claims_failed,
    /// Containers made.
    created,
    /// Containers that could not be made or did not come up.
    create_failures,
    /// Containers in the pool that ended or were given up before a claim.
    pool_discarded,
    /// Versions loaded.
    loads,
    /// Versions that did not load.
    load_failures,
    /// Containers frozen.
    freezes,
    /// Containers thawed.
    thaws,
    /// Containers of an earlier process taken over.
    adopted,
    /// Containers of an earlier process destroyed.
    orphans,
    /// Times that a container was asked for a sign of life.
    suspects,
    /// Lines from containers that were no messages.
    control_nonsense,
    /// Lines of log that were kept.
    log_lines,
    /// Lines of log that were dropped because there were too many.
    log_lines_dropped,
    /// Calls of functions' storage.
    storage_calls,
}

impl Counters {
    pub(super) fn ended(&self, reason: EndReason) {
        if let Some(at) = EndReason::ALL.iter().position(|r| *r == reason) {
            self.ended[at].fetch_add(1, Relaxed);
        }
    }
}

pub(super) fn add(counter: &AtomicU64) {
    counter.fetch_add(1, Relaxed);
}

/// The handler at one moment.
#[derive(Debug, Clone, Serialize)]
pub struct HandlerStatus {
    /// The pool.
    pub pool: PoolStatus,
    /// Claimed containers by state: `running`, `freezing`, `frozen`, `thawing`, `retired`.
    pub containers_by_state: BTreeMap<&'static str, usize>,
    /// Requests that wait for a container to start, thaw or load.
    pub waiting_requests: usize,
    /// Containers that requests wait for.
    pub waiting_claims: usize,
    /// Slots that are free.
    pub slots_free: usize,
    /// Slots whose last container is not yet gone altogether.
    pub slots_dirty: usize,
    /// Memory of all claimed containers as last measured, in bytes.
    pub memory_bytes: u64,
    /// The bound on it, in bytes.
    pub memory_limit_bytes: u64,
    /// Counts since the start.
    pub counts: HandlerCounts,
    /// Claimed containers, the most recently used first, at most 200.
    pub containers: Vec<ContainerStatus>,
}

/// The pool at one moment.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct PoolStatus {
    /// Containers that wait.
    pub level: usize,
    /// Of those, the ones with modules loaded ahead.
    pub preloaded: usize,
    /// Containers that are being made.
    pub creating: usize,
    /// How many should wait.
    pub target: usize,
    /// Whether making containers is paused because it failed.
    pub circuit_open: bool,
    /// The last failure, where there was one.
    pub last_error: Option<String>,
}

/// One claimed container at one moment.
#[derive(Debug, Clone, Serialize)]
pub struct ContainerStatus {
    /// Whose.
    pub tenant: String,
    /// Its name.
    pub container: String,
    /// Its slot.
    pub slot: u32,
    /// Its name towards the container engine.
    pub sandbox_id: String,
    /// Which Node.js.
    pub node: &'static str,
    /// Where it is in its life.
    pub state: &'static str,
    /// Requests that it serves.
    pub requests: u32,
    /// Requests that it has had.
    pub requests_total: u64,
    /// Versions that it has loaded, as `function@version`.
    pub versions: Vec<String>,
    /// How long it was not used, in milliseconds.
    pub idle_ms: u64,
    /// Its age since the claim, in milliseconds.
    pub age_ms: u64,
    /// Memory as last measured, in bytes.
    pub memory_bytes: u64,
    /// Memory that it may use, in MiB.
    pub memory_mb: u64,
    /// Lines of log that were dropped because there were too many.
    pub log_lines_dropped: u64,
}
