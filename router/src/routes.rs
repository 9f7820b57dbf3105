//! Where the route table comes from: the watched one of a cluster (`placed.rs`), or a fixed list of nodes.

use std::{net::SocketAddr, sync::Arc, time::Duration};
use tokio::sync::watch;

/// The most candidates of one answer.
pub const CANDIDATES_MAX: usize = 8;

/// A node as the table knows it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NodeInfo {
    /// Its name.
    pub name: String,
    /// Tells one process of that name from the next.
    pub incarnation: u64,
    /// Where it takes requests.
    pub addr: SocketAddr,
    /// Whether it is leaving.
    pub draining: bool,
    /// Whether it takes links.
    pub links: bool,
}

/// Candidates for one request: indexes into the table's nodes, the best first.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Choice {
    nodes: [u16; CANDIDATES_MAX],
    len: usize,
    spread: usize,
}

impl Choice {
    /// Adds a candidate; those that belong to the container's spread come first. What is beyond [`CANDIDATES_MAX`] is left out.
    pub fn push(&mut self, node: u16, in_spread: bool) {
        if self.len < CANDIDATES_MAX {
            self.nodes[self.len] = node;
            self.len += 1;
            self.spread += usize::from(in_spread && self.spread + 1 == self.len);
        }
    }

    /// All candidates.
    #[must_use]
    pub fn as_slice(&self) -> &[u16] {
        &self.nodes[..self.len]
    }

    /// How many of them the container should run on.
    #[must_use]
    pub fn spread(&self) -> usize {
        self.spread
    }
}

/// One revision of the table.
pub trait Table: Send + Sync {
    /// The revision.
    fn revision(&self) -> i64;
    /// All nodes, in the order that candidates are indexes into.
    fn nodes(&self) -> Vec<NodeInfo>;
    /// The nodes for a container. `turn` rotates through spreads that are wider than an answer.
    fn candidates(&self, tenant: &str, container: &str, turn: u64) -> Choice;
}

/// A source of tables.
pub trait Routes: Send + Sync + 'static {
    /// The table now.
    fn table(&self) -> Arc<dyn Table>;
    /// How long ago the source was last known to agree.
    fn age(&self) -> Duration;
    /// Whether that is too long ago.
    fn is_stale(&self) -> bool;
    /// Tells of each new table.
    fn changed(&self) -> watch::Receiver<i64>;
}

/// A fixed list of nodes, each container on `spread` of them, in an order that its name rotates: for a fleet without a coordinator.
#[derive(Debug, Clone)]
pub struct FixedTable {
    nodes: Vec<NodeInfo>,
    spread: usize,
    changed: watch::Sender<i64>,
}

impl FixedTable {
    /// A table of these nodes.
    #[must_use]
    pub fn new(nodes: Vec<NodeInfo>, spread: usize) -> Self {
        Self { nodes, spread, changed: watch::Sender::new(1) }
    }
}

/// FNV-1a over names: stable, and good enough to rotate a short list.
fn rotate(tenant: &str, container: &str) -> u64 {
    let bytes = tenant.bytes().chain([b'/']).chain(container.bytes());
    bytes.fold(0xcbf2_9ce4_8422_2325, |hash, b| (hash ^ u64::from(b)).wrapping_mul(0x0100_0000_01b3))
}

impl Table for FixedTable {
    fn revision(&self) -> i64 {
        1
    }

    fn nodes(&self) -> Vec<NodeInfo> {
        self.nodes.clone()
    }

    fn candidates(&self, tenant: &str, container: &str, _turn: u64) -> Choice {
        let mut choice = Choice::default();
        let n = self.nodes.len();
        if n > 0 {
            let first = (rotate(tenant, container) % n as u64) as usize;
            for step in 0..n.min(CANDIDATES_MAX) {
                choice.push(((first + step) % n) as u16, step < self.spread);
            }
        }
        choice
    }
}

impl Routes for FixedTable {
    fn table(&self) -> Arc<dyn Table> {
        Arc::new(self.clone())
    }
    fn age(&self) -> Duration {
        Duration::ZERO
    }
    fn is_stale(&self) -> bool {
        false
    }
    fn changed(&self) -> watch::Receiver<i64> {
        self.changed.subscribe()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_fixed_table_names_each_node_once_and_its_spread_first() {
        let node = |n: u16| NodeInfo {
            name: format!("n{n}"),
            incarnation: 0,
            addr: ([127, 0, 0, 1], n).into(),
            draining: false,
            links: false,
        };
        let table = FixedTable::new((0..5).map(node).collect(), 2);
        let choice = table.candidates("acme", "main", 0);
        assert_eq!((choice.as_slice().len(), choice.spread()), (5, 2));
        let mut all = choice.as_slice().to_vec();
        all.sort_unstable();
        assert_eq!(all, [0, 1, 2, 3, 4]);
        assert_eq!(choice, table.candidates("acme", "main", 7));
        assert!(FixedTable::new(Vec::new(), 1).candidates("a", "b", 0).as_slice().is_empty());
    }
}
