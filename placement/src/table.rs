//! The route table: nodes, ring and exceptions of one revision, and the pure function that routes by them.
//!
//! It refuses nothing and fails at nothing: as long as there is a node, every container has a candidate. Two tables built of
//! the same nodes and exceptions answer alike, wherever they were built.

use crate::{
    exception::{Exception, Exceptions},
    hash::{container_point, overflow_rank, xxh64},
    record::{NODES_MAX, NodeName, NodeRecord, NodeState},
    ring::{Ring, RingConfig},
};
use std::{
    collections::{BTreeMap, HashMap},
    hash::{BuildHasherDefault, Hasher},
    sync::Arc,
};

/// The most candidates of one answer: a router that failed at eight nodes stops trying.
pub const CANDIDATES_MAX: usize = 8;
/// Of how many distinct nodes, in the ring's order, the zones are compared.
const CONSIDERED_MAX: usize = 16;
/// How many arcs a look-up goes over at most; with very unequal capacities small nodes can lie far away.
const WALK_MAX: usize = 256;
/// Of a spread wider than this each answer shows a part: which, says the turn.
const WINDOW_MAX: usize = CANDIDATES_MAX - 2;

/// An answer: indexes of nodes, the best first, without allocation. Kept and reused by the caller.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Candidates {
    nodes: [u16; CANDIDATES_MAX],
    len: u8,
    spread: u8,
    turn: u64,
}

impl Candidates {
    /// An empty answer.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// A container that is spread over more nodes than one answer holds shows another part of them on another turn. Count it
    /// up with each request (any start will do), so that the load reaches all of them.
    pub const fn set_turn(&mut self, turn: u64) {
        self.turn = turn;
    }

    /// All candidates: those of the spread, then the fallbacks, draining nodes last.
    #[must_use]
    pub fn as_slice(&self) -> &[u16] {
        &self.nodes[..usize::from(self.len)]
    }

    /// The nodes that the container should run on; choose among these by load.
    #[must_use]
    pub fn spread(&self) -> &[u16] {
        &self.nodes[..usize::from(self.spread)]
    }

    /// The nodes to go to when none of the spread answers.
    #[must_use]
    pub fn fallbacks(&self) -> &[u16] {
        &self.nodes[usize::from(self.spread)..usize::from(self.len)]
    }

    const fn clear(&mut self) {
        self.len = 0;
        self.spread = 0;
    }

    fn push(&mut self, node: u16) {
        if usize::from(self.len) < CANDIDATES_MAX && !self.as_slice().contains(&node) {
            self.nodes[usize::from(self.len)] = node;
            self.len += 1;
        }
    }
}

/// A node in the table.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TableNode {
    /// What the node says of itself.
    pub record: NodeRecord,
    /// Gone from the coordinator together with many others, and kept until a probe says that it is dead.
    pub is_suspect: bool,
}

/// Keys are hashes already.
#[derive(Debug, Default, Clone, Copy)]
struct Identity(u64);

impl Hasher for Identity {
    fn write(&mut self, bytes: &[u8]) {
        self.0 = xxh64(bytes, self.0);
    }
    fn write_u64(&mut self, value: u64) {
        self.0 = value;
    }
    fn finish(&self) -> u64 {
        self.0
    }
}

/// An exception with its nodes found.
#[derive(Debug)]
struct Placed {
    path: Box<str>,
    nodes: Box<[u16]>,
}

/// Nodes, ring and exceptions of one revision.
#[derive(Debug)]
pub struct RouteTable {
    revision: i64,
    nodes: Vec<TableNode>,
    by_name: BTreeMap<NodeName, u16>,
    /// Per node, beside `nodes` so that a look-up touches little memory.
    zones: Vec<u16>,
    overflow: Vec<u16>,
    seeds: Vec<u64>,
    has_overflow: bool,
    draining: Vec<u16>,
    ring: Arc<Ring>,
    placed: HashMap<u64, Placed, BuildHasherDefault<Identity>>,
    exceptions: Arc<Exceptions>,
}

impl Default for RouteTable {
    fn default() -> Self {
        Self::build([], &Arc::new(Exceptions::none()), 0, RingConfig::default())
    }
}

impl RouteTable {
    /// Builds the table. The order of `nodes` is irrelevant; of two with one name the later counts; what is beyond
    /// [`NODES_MAX`] is left out.
    #[must_use]
    pub fn build(
        nodes: impl IntoIterator<Item = TableNode>,
        exceptions: &Arc<Exceptions>,
        revision: i64,
        config: RingConfig,
    ) -> Self {
        let sorted: BTreeMap<NodeName, TableNode> = nodes.into_iter().map(|node| (node.record.name.clone(), node)).collect();
        let nodes: Vec<TableNode> = sorted.into_values().take(NODES_MAX).collect();
        let records: Vec<NodeRecord> = nodes.iter().map(|node| node.record.clone()).collect();
        let is_active = |node: &NodeRecord| node.state == NodeState::Active;
        // A cluster in which all nodes drain still serves.
        let all_drain = !records.iter().any(is_active);
        let ring = Arc::new(Ring::build(&records, config, |node| all_drain || is_active(node)));
        Self::with_ring(nodes, exceptions, revision, ring, all_drain)
    }

    /// The same nodes with other exceptions: spares building the ring again.
    #[must_use]
    pub fn with_exceptions(&self, exceptions: &Arc<Exceptions>, revision: i64) -> Self {
        let all_drain = self.draining.is_empty();
        Self::with_ring(self.nodes.clone(), exceptions, revision, self.ring.clone(), all_drain)
    }

    fn with_ring(nodes: Vec<TableNode>, exceptions: &Arc<Exceptions>, revision: i64, ring: Arc<Ring>, all_drain: bool) -> Self {
        let zone_names: Vec<&str> = {
            let mut names: Vec<_> = nodes.iter().map(|node| node.record.zone.as_str()).collect();
            names.sort_unstable();
            names.dedup();
            names
        };
        let zone = |node: &TableNode| zone_names.binary_search(&node.record.zone.as_str()).unwrap_or(0) as u16;
        let by_name: BTreeMap<NodeName, u16> = nodes.iter().zip(0..).map(|(node, i)| (node.record.name.clone(), i)).collect();
        let overflow: Vec<u16> = nodes.iter().map(|n| exceptions.overflow.get(&n.record.name).copied().unwrap_or(0)).collect();
        let draining = nodes.iter().zip(0..).filter(|(n, _)| !all_drain && n.record.state == NodeState::Draining);
        let mut table = Self {
            revision,
            zones: nodes.iter().map(zone).collect(),
            seeds: nodes.iter().map(|node| xxh64(node.record.name.as_str().as_bytes(), 1)).collect(),
            has_overflow: overflow.iter().any(|share| *share > 0),
            overflow,
            draining: draining.map(|(_, index)| index).collect(),
            by_name,
            ring,
            placed: HashMap::default(),
            exceptions: exceptions.clone(),
            nodes,
        };
        for (path, exception) in &exceptions.containers {
            if let Some((tenant, container)) = path.split_once('/') {
                let point = container_point(tenant, container);
                let nodes = table.place(point, exception);
                table.placed.insert(point, Placed { path: path.as_str().into(), nodes });
            }
        }
        table
    }

    /// The nodes of an exception: pinned ones, planned ones, then the ring's order, up to the spread.
    pub(crate) fn place(&self, point: u64, exception: &Exception) -> Box<[u16]> {
        let is_active = |index: &u16| !self.draining.contains(index);
        let spread = (exception.spread as usize).clamp(1, self.ring.nodes().max(1)).max(exception.pinned.len());
        let mut seen = vec![false; self.nodes.len()];
        let named = exception.pinned.iter().chain(&exception.planned).filter_map(|name| self.by_name.get(name).copied());
        let mut nodes: Vec<u16> =
            named.filter(is_active).filter(|i| !std::mem::replace(&mut seen[usize::from(*i)], true)).collect();
        if nodes.len() < spread {
            // The order of an idle container comes first, so that an exception moves nothing by itself.
            let mut default = Candidates::new();
            self.by_ring(point, 1, &mut default);
            let order = default.as_slice().iter().copied().filter(is_active).chain(self.ring.walk(point));
            for index in order {
                if nodes.len() >= spread {
                    break;
                }
                if !std::mem::replace(&mut seen[usize::from(index)], true) {
                    nodes.push(index);
                }
            }
        }
        nodes.truncate(spread);
        nodes.into_boxed_slice()
    }

    /// The nodes for a container: first those of its spread, then the fallbacks, draining nodes last. Empty only when the
    /// table has no nodes. Takes no lock and allocates nothing.
    pub fn candidates(&self, tenant: &str, container: &str, out: &mut Candidates) {
        out.clear();
        if self.ring.nodes() == 0 {
            return;
        }
        let point = container_point(tenant, container);
        match self.placed.get(&point) {
            Some(placed) if placed.is(tenant, container) && !placed.nodes.is_empty() => self.by_exception(point, placed, out),
            _ => self.by_ring(point, 1, out),
        }
        if !self.draining.is_empty() {
            // A full answer gives up its last fallback for the last resort only if that is all there is to give.
            out.push(self.draining[(point % self.draining.len() as u64) as usize]);
        }
    }

    fn by_exception(&self, point: u64, placed: &Placed, out: &mut Candidates) {
        let count = placed.nodes.len();
        let shown = count.min(WINDOW_MAX);
        let begin = if count > WINDOW_MAX { (out.turn % count as u64) as usize } else { 0 };
        for step in 0..shown {
            out.push(placed.nodes[(begin + step) % count]);
        }
        let spread = out.len;
        self.by_ring(point, usize::from(spread) + 1, out);
        out.spread = spread;
    }

    /// Adds nodes in the ring's order, each time the next whose zone has the fewest so far. The spread becomes `spread`.
    fn by_ring(&self, point: u64, spread: usize, out: &mut Candidates) {
        // Compared whole, which the compiler makes one comparison of vectors; no node has the index of an empty place.
        let mut considered = [u16::MAX; CONSIDERED_MAX];
        let mut passed = [u16::MAX; CONSIDERED_MAX];
        let (mut count, mut passed_count) = (0, 0);
        let enough = CONSIDERED_MAX.min(self.ring.nodes());
        for index in self.ring.walk(point).take(WALK_MAX) {
            if is_any(&considered, index) || (self.has_overflow && is_any(&passed, index)) {
                continue;
            }
            let hands_on =
                self.has_overflow && overflow_rank(point, self.seeds[usize::from(index)]) < self.overflow[usize::from(index)];
            // A node over the bound is a fallback for the containers that it hands on.
            if hands_on && passed_count < CONSIDERED_MAX {
                passed[passed_count] = index;
                passed_count += 1;
            } else {
                considered[count] = index;
                count += 1;
            }
            if count == CONSIDERED_MAX || count + passed_count >= enough {
                break;
            }
        }
        self.by_zone(&considered[..count], out);
        for index in &passed[..passed_count] {
            out.push(*index);
        }
        out.spread = (spread.min(usize::from(out.len))) as u8;
    }

    fn by_zone(&self, considered: &[u16], out: &mut Candidates) {
        // For each the place of the first of its zone, so that the zones are counted in a small array.
        let (mut groups, mut used) = ([0_usize; CONSIDERED_MAX], [0_u8; CONSIDERED_MAX]);
        for (place, index) in considered.iter().enumerate() {
            let zone = self.zones[usize::from(*index)];
            groups[place] = considered[..place].iter().position(|i| self.zones[usize::from(*i)] == zone).unwrap_or(place);
            // What is a candidate already, by an exception, counts; most containers have none.
            if groups[place] == place && out.len > 0 {
                used[place] = out.as_slice().iter().filter(|i| self.zones[usize::from(**i)] == zone).count() as u8;
            }
        }
        let mut left: u32 = (1_u32 << considered.len()) - 1;
        while left != 0 && usize::from(out.len) < CANDIDATES_MAX {
            let (mut best, mut fewest) = (0, u8::MAX);
            let mut rest = left;
            while rest != 0 && fewest != 0 {
                let place = rest.trailing_zeros() as usize;
                rest &= rest - 1;
                if used[groups[place]] < fewest {
                    (best, fewest) = (place, used[groups[place]]);
                }
            }
            left &= !(1 << best);
            let before = out.len;
            out.push(considered[best]);
            used[groups[best]] += u8::from(out.len > before);
        }
    }

    /// All nodes that a container is spread over, where that is more than one answer shows.
    #[must_use]
    pub fn spread_of(&self, tenant: &str, container: &str) -> Vec<u16> {
        let placed = self.placed.get(&container_point(tenant, container)).filter(|placed| placed.is(tenant, container));
        placed.map_or_else(
            || {
                let mut out = Candidates::new();
                self.candidates(tenant, container, &mut out);
                out.spread().to_vec()
            },
            |placed| placed.nodes.to_vec(),
        )
    }

    /// The coordinator's revision that the table was built at.
    #[must_use]
    pub const fn revision(&self) -> i64 {
        self.revision
    }

    /// All nodes, by name; candidates are indexes into these.
    #[must_use]
    pub fn nodes(&self) -> &[TableNode] {
        &self.nodes
    }

    /// The node of an index that [`Self::candidates`] of this same table gave.
    #[must_use]
    pub fn node(&self, index: u16) -> Option<&TableNode> {
        self.nodes.get(usize::from(index))
    }

    /// The index of a node.
    #[must_use]
    pub fn index_of(&self, name: &NodeName) -> Option<u16> {
        self.by_name.get(name).copied()
    }

    /// What the planner decided.
    #[must_use]
    pub fn exceptions(&self) -> &Arc<Exceptions> {
        &self.exceptions
    }

    pub(crate) fn ring(&self) -> &Ring {
        &self.ring
    }

    /// About what the table takes in memory: the ring and nodes, and the exceptions.
    #[must_use]
    pub fn bytes(&self) -> (usize, usize) {
        let node = size_of::<TableNode>() + 2 * size_of::<NodeName>() + 80 + 2 + 2 + 8;
        let placed = self.placed.values().map(|p| p.path.len() + p.nodes.len() * 2 + size_of::<(u64, Placed)>() + 1);
        (self.ring.bytes() + self.nodes.len() * node, placed.sum::<usize>())
    }
}

fn is_any(nodes: &[u16; CONSIDERED_MAX], index: u16) -> bool {
    nodes.iter().fold(false, |found, node| found | (*node == index))
}

impl Placed {
    fn is(&self, tenant: &str, container: &str) -> bool {
        self.path.len() == tenant.len() + 1 + container.len()
            && self.path.starts_with(tenant)
            && self.path.as_bytes()[tenant.len()] == b'/'
            && self.path.ends_with(container)
    }
}
