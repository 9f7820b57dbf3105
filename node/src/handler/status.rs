//! What the handler says of itself.

use super::{Handler, container::State};
use hearth_model::ContainerPath;
use serde::Serialize;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

/// Containers that a status lists; the busiest and youngest of them.
const LISTED_MAX: usize = 200;

/// Counts since the start.
#[derive(Debug, Default)]
pub(super) struct Counters {
    pub claims_pooled: AtomicU64,
    pub claims_created: AtomicU64,
    pub refills: AtomicU64,
    pub refill_failures: AtomicU64,
    pub adopted: AtomicU64,
    pub freezes: AtomicU64,
    pub idle_destroyed: AtomicU64,
    pub memory_destroyed: AtomicU64,
    pub crashed: AtomicU64,
    pub out_of_memory: AtomicU64,
    pub stuck: AtomicU64,
    pub retired: AtomicU64,
    pub memory_bytes: AtomicU64,
}

/// The handler at one moment.
#[derive(Debug, Serialize)]
pub struct HandlerStatus {
    /// The pool.
    pub pool: PoolStatus,
    /// Claimed containers by state.
    pub containers: ContainerCounts,
    /// Claims since the start.
    pub claims: ClaimCounts,
    /// Containers that ended since the start, by cause.
    pub ended: EndCounts,
    /// Requests that wait for a container or a load.
    pub waiting: u64,
    /// Memory of claimed containers, as of the last look.
    pub memory_bytes: u64,
    /// Containers frozen since the start.
    pub freezes: u64,
    /// Containers of an earlier process that were taken over.
    pub adopted: u64,
    /// The containers, at most 200.
    pub list: Vec<ContainerStatus>,
}

/// The pool at one moment.
#[derive(Debug, Serialize)]
pub struct PoolStatus {
    /// Containers that wait.
    pub level: usize,
    /// Of them with popular modules loaded.
    pub preloaded: usize,
    /// Of them prepared: their runtimes have the memory that a load needs.
    pub prepared: usize,
    /// What the level should be.
    pub target: usize,
    /// Containers being made.
    pub creating: usize,
    /// Containers added since the start.
    pub refills: u64,
    /// Creations that failed since the start.
    pub refill_failures: u64,
}

/// Claimed containers by state.
#[derive(Debug, Default, Serialize)]
pub struct ContainerCounts {
    /// Take requests.
    pub running: usize,
    /// Take requests after a thaw.
    pub frozen: usize,
    /// Of the running, kept to the CPUs for background work: they keep one busy, or have just ended by their own fault.
    pub background: usize,
    /// Whether the others that have work, and this node's own threads, are kept to the other CPUs at the moment.
    pub requests_apart: bool,
}

/// Claims since the start.
#[derive(Debug, Serialize)]
pub struct ClaimCounts {
    /// Out of the pool.
    pub pooled: u64,
    /// The pool had none: made while the request waited.
    pub created: u64,
}

/// Ends since the start.
#[derive(Debug, Serialize)]
pub struct EndCounts {
    /// Nobody used it for long.
    pub idle: u64,
    /// Of the idle, to make room.
    pub memory: u64,
    /// Its process ended by itself.
    pub crashed: u64,
    /// It used more memory than it may.
    pub out_of_memory: u64,
    /// Its event loop did not answer.
    pub stuck: u64,
    /// Its settings changed, or it was deleted.
    pub retired: u64,
}

/// One container.
#[derive(Debug, Serialize)]
pub struct ContainerStatus {
    /// Whose it is, as `tenant/container`.
    pub path: String,
    /// Its slot.
    pub slot: u32,
    /// `running` or `frozen`.
    pub state: &'static str,
    /// Requests in flight.
    pub in_flight: u32,
    /// Milliseconds since its last request.
    pub idle_ms: u64,
    /// `function@version` of what is loaded.
    pub loaded: Vec<String>,
}

impl Handler {
    /// The state now.
    #[must_use]
    pub fn status(&self) -> HandlerStatus {
        let read = |counter: &AtomicU64| counter.load(Relaxed);
        let c = &self.counters;
        let (all, now_ms) = (self.containers.all(), self.now_ms());
        let mut containers = ContainerCounts { requests_apart: self.requests_apart.load(Relaxed), ..ContainerCounts::default() };
        let mut list = Vec::new();
        for container in &all {
            match container.state() {
                State::Running => {
                    containers.running += 1;
                    containers.background += usize::from(container.is_background());
                }
                State::Frozen => containers.frozen += 1,
                State::Leaving | State::Dead => continue,
            }
            list.push(ContainerStatus {
                path: ContainerPath::to_string(container.path()),
                slot: container.slot.number,
                state: container.state().name(),
                in_flight: container.in_flight(),
                idle_ms: container.idle_ms(now_ms),
                loaded: container.loaded().iter().map(|(f, served)| format!("{f}@{}", served.made.0)).collect(),
            });
        }
        list.sort_by(|a, b| (b.in_flight, a.idle_ms).cmp(&(a.in_flight, b.idle_ms)));
        list.truncate(LISTED_MAX);
        HandlerStatus {
            pool: PoolStatus {
                level: self.pool.level(),
                preloaded: self.pool.preloaded(),
                prepared: self.pool.prepared(),
                target: self.pool.target(),
                creating: self.pool.creating(),
                refills: read(&c.refills),
                refill_failures: read(&c.refill_failures),
            },
            containers,
            claims: ClaimCounts { pooled: read(&c.claims_pooled), created: read(&c.claims_created) },
            ended: EndCounts {
                idle: read(&c.idle_destroyed),
                memory: read(&c.memory_destroyed),
                crashed: read(&c.crashed),
                out_of_memory: read(&c.out_of_memory),
                stuck: read(&c.stuck),
                retired: read(&c.retired),
            },
            waiting: self.claims.waiting() + self.loads.waiting(),
            memory_bytes: read(&c.memory_bytes),
            freezes: read(&c.freezes),
            adopted: read(&c.adopted),
            list,
        }
    }
}
