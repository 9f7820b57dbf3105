//! The ring: which node owns which arc of the hash space.
//!
//! The crate `consistent_hash` decides the owners; it is fed only bytes that we encode, hashed by [`crate::hash`]. Its look-up
//! allocates for each candidate, which a request must not, so the owner of every arc is asked for once when the ring is
//! built and kept in two plain arrays; `examples/size.rs` measures both.

use crate::{hash, record::NodeRecord};
use consistent_hash::{Node, RingHash, StaticHashRing};
use serde::{Deserialize, Serialize};
use std::hash::{Hash, Hasher};

/// How the ring is built. All members of a cluster need the same: it is part of the pure function that routes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct RingConfig {
    /// Points on the ring for each unit of capacity: more make the arcs more even, and the ring larger.
    pub points_per_capacity: u32,
}

/// The most points for each unit of capacity.
pub const POINTS_MAX: u32 = 1024;

impl Default for RingConfig {
    fn default() -> Self {
        // With 128 points the standard deviation of a node's share is about 9%; 1,000 nodes take 1.3 MB.
        Self { points_per_capacity: 128 }
    }
}

/// Feeds bytes to our hash, in the order in which they are written, and nothing else.
#[derive(Default)]
struct Bytes(Vec<u8>);

impl Hasher for Bytes {
    fn write(&mut self, bytes: &[u8]) {
        self.0.extend_from_slice(bytes);
    }
    fn finish(&self) -> u64 {
        hash::xxh64(&self.0, 0)
    }
}

/// A node's name; its `Hash` writes the bytes of the name alone, where std's for `str` adds one of its own.
#[derive(PartialEq, Eq, PartialOrd, Ord)]
struct Key<'a>(&'a str);

impl Hash for Key<'_> {
    fn hash<H: Hasher>(&self, state: &mut H) {
        state.write(self.0.as_bytes());
    }
}

/// A place on the ring that is known already.
struct Point(u64);

impl Hash for Point {
    fn hash<H: Hasher>(&self, state: &mut H) {
        state.write(&self.0.to_le_bytes());
    }
}

/// The hash of the crate's ring. Items are places already; nodes are hashed from their names.
struct OurHash;

impl RingHash for OurHash {
    fn hash_item<T: Hash>(&self, item: &T) -> u64 {
        let mut bytes = Bytes::default();
        item.hash(&mut bytes);
        bytes.0.try_into().map_or(0, u64::from_le_bytes)
    }
    fn hash_vnode<K: Hash>(&self, node_key: &K, vnode_seq: usize) -> u64 {
        let mut bytes = Bytes::default();
        node_key.hash(&mut bytes);
        hash::node_point(&bytes.0, vnode_seq as u32)
    }
}

/// The arcs of the hash space and their owners.
#[derive(Debug, Default)]
pub struct Ring {
    /// The ends of the arcs, ascending.
    points: Vec<u64>,
    /// The node that owns the arc which ends at the point of the same place, as an index into the table's nodes.
    owners: Vec<u16>,
    /// For each value of the highest bits of a hash, the first arc that can hold it: saves most of a binary search.
    starts: Vec<u32>,
    shift: u32,
    nodes: usize,
}

impl Ring {
    /// Builds the ring of the nodes for which `is_member` holds; owners are indexes into `nodes`.
    #[must_use]
    pub fn build(nodes: &[NodeRecord], config: RingConfig, is_member: impl Fn(&NodeRecord) -> bool) -> Self {
        let per_capacity = config.points_per_capacity.clamp(1, POINTS_MAX);
        let mut points = Vec::new();
        let mut members = Vec::new();
        for (index, node) in nodes.iter().enumerate().take(usize::from(u16::MAX)).filter(|(_, node)| is_member(node)) {
            let quantity = per_capacity * node.capacity.clamp(1, crate::record::CAPACITY_MAX);
            points.extend((0..quantity).map(|seq| hash::node_point(node.name.as_str().as_bytes(), seq)));
            members.push(Node::new(Key(node.name.as_str())).value(index as u16).quantity(quantity as usize));
        }
        let count = members.len();
        points.sort_unstable();
        points.dedup();
        let ring = StaticHashRing::new(OurHash, members.into_iter());
        let owners = points.iter().filter_map(|point| ring.calc_candidates(&Point(*point)).next()).map(|n| n.value).collect();
        let (starts, shift) = starts(&points);
        Self { points, owners, starts, shift, nodes: count }
    }

    /// How many nodes own arcs.
    #[must_use]
    pub const fn nodes(&self) -> usize {
        self.nodes
    }

    /// The owners of the arcs from `point` on, once around; nodes come many times.
    pub fn walk(&self, point: u64) -> impl Iterator<Item = u16> + '_ {
        let begin = self.begin(point);
        self.owners[begin..].iter().chain(&self.owners[..begin]).copied()
    }

    fn begin(&self, point: u64) -> usize {
        if self.points.is_empty() {
            return 0;
        }
        let mut at = self.starts[(point >> self.shift) as usize] as usize;
        while at < self.points.len() && self.points[at] < point {
            at += 1;
        }
        // Past the last point the first arc goes on.
        if at == self.points.len() { 0 } else { at }
    }

    /// What the ring takes in memory.
    #[must_use]
    pub const fn bytes(&self) -> usize {
        self.points.capacity() * 8 + self.owners.capacity() * 2 + self.starts.capacity() * 4
    }
}

/// About one entry for each point, so that a look-up steps over one or two points.
fn starts(points: &[u64]) -> (Vec<u32>, u32) {
    let bits = points.len().max(2).next_power_of_two().trailing_zeros();
    let shift = 64 - bits;
    let mut starts = Vec::with_capacity(1 << bits);
    let mut at = 0;
    for bucket in 0..1_u64 << bits {
        while at < points.len() && points[at] < bucket << shift {
            at += 1;
        }
        starts.push(at as u32);
    }
    (starts, shift)
}
