//! The nodes as this router finds them: how many requests each has, when it last said anything, whether it is out. The table says
//! which nodes there are; what is known of a node outlives tables for as long as it is the same process.

use crate::routes::{Choice, Routes, Table};
use arc_swap::ArcSwap;
use parking_lot::Mutex;
use std::{
    net::SocketAddr,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering::Relaxed},
    },
    time::{Duration, Instant},
};
use tokio_util::sync::CancellationToken;

/// From an ejection to the first probe, and the longest time between probes.
const BACK_MIN: Duration = Duration::from_millis(250);
const BACK_MAX: Duration = Duration::from_secs(5);

/// Why a node is out.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) enum Why {
    /// It takes no connections. What runs on those it has may well finish.
    Refused,
    /// It does not say anything: what waits for it waits in vain.
    Silent,
}

/// One node.
#[derive(Debug)]
pub(crate) struct Node {
    /// Distinguishes nodes within this process.
    pub key: u64,
    pub name: String,
    pub incarnation: u64,
    pub addr: SocketAddr,
    /// Whether it takes links: its record says so, and nothing has shown the contrary.
    pub links: AtomicBool,
    pub in_flight: AtomicU32,
    /// When it last said something, in milliseconds since `born`.
    heard_ms: AtomicU64,
    born: Instant,
    out: AtomicBool,
    out_state: Mutex<OutState>,
    /// Whether a probe is on its way.
    pub probing: AtomicBool,
}

#[derive(Debug)]
struct OutState {
    next_probe: Instant,
    pause: Duration,
    /// Cancelled when the node is found silent; every connection to it ends then.
    gone: CancellationToken,
}

impl Node {
    fn new(key: u64, info: &crate::NodeInfo) -> Self {
        let now = Instant::now();
        Self {
            key,
            name: info.name.clone(),
            incarnation: info.incarnation,
            addr: info.addr,
            links: AtomicBool::new(info.links),
            in_flight: AtomicU32::new(0),
            heard_ms: AtomicU64::new(0),
            born: now,
            out: AtomicBool::new(false),
            out_state: Mutex::new(OutState { next_probe: now, pause: BACK_MIN, gone: CancellationToken::new() }),
            probing: AtomicBool::new(false),
        }
    }

    /// The node said something.
    pub fn heard(&self) {
        let ms = u64::try_from(self.born.elapsed().as_millis()).unwrap_or(u64::MAX);
        self.heard_ms.store(ms, Relaxed);
    }

    /// How long it has said nothing.
    pub fn silence(&self) -> Duration {
        self.born.elapsed().saturating_sub(Duration::from_millis(self.heard_ms.load(Relaxed)))
    }

    pub fn is_out(&self) -> bool {
        self.out.load(Relaxed)
    }

    /// Ends with the connections to this node.
    pub fn gone(&self) -> CancellationToken {
        self.out_state.lock().gone.clone()
    }

    /// Takes the node out; true if it was in.
    pub fn eject(&self, why: Why) -> bool {
        let mut state = self.out_state.lock();
        if why == Why::Silent {
            std::mem::take(&mut state.gone).cancel();
        }
        let was_in = !self.out.swap(true, Relaxed);
        if was_in {
            state.pause = BACK_MIN;
            state.next_probe = Instant::now() + BACK_MIN;
        }
        was_in
    }

    /// Whether it is out and time to see whether it is back.
    pub fn is_due(&self) -> bool {
        self.is_out() && self.out_state.lock().next_probe <= Instant::now()
    }

    /// A probe of a node that is out failed: the next comes later.
    pub fn still_out(&self) {
        let mut state = self.out_state.lock();
        state.pause = (state.pause * 2).min(BACK_MAX);
        state.next_probe = Instant::now() + state.pause;
    }

    /// The node answers; true if it was out.
    pub fn readmit(&self) -> bool {
        self.heard();
        self.out.swap(false, Relaxed)
    }
}

/// Counts one request of a node's, while it lives.
pub(crate) struct InFlight(pub Arc<Node>);

impl InFlight {
    pub fn new(node: &Arc<Node>) -> Self {
        // The silence of a node that had nothing to say begins with the first request.
        if node.in_flight.fetch_add(1, Relaxed) == 0 {
            node.heard();
        }
        Self(Arc::clone(node))
    }
}

impl Drop for InFlight {
    fn drop(&mut self) {
        self.0.in_flight.fetch_sub(1, Relaxed);
    }
}

/// A table and the nodes that its indexes mean.
pub(crate) struct View {
    pub table: Arc<dyn Table>,
    pub nodes: Vec<Arc<Node>>,
    /// Indexes of the nodes that are not leaving.
    pub active: Vec<u16>,
}

/// All nodes.
pub(crate) struct Fleet {
    pub routes: Arc<dyn Routes>,
    view: ArcSwap<View>,
    next_key: AtomicU64,
}

impl Fleet {
    pub fn new(routes: Arc<dyn Routes>) -> Arc<Self> {
        let next_key = AtomicU64::new(0);
        let view = build(routes.table(), &[], &next_key);
        Arc::new(Self { view: ArcSwap::from_pointee(view), routes, next_key })
    }

    pub fn view(&self) -> arc_swap::Guard<Arc<View>> {
        self.view.load()
    }

    fn refresh(&self) {
        let old = self.view.load();
        self.view.store(Arc::new(build(self.routes.table(), &old.nodes, &self.next_key)));
    }
}

fn build(table: Arc<dyn Table>, known: &[Arc<Node>], next_key: &AtomicU64) -> View {
    let infos = table.nodes();
    let same = |info: &crate::NodeInfo| {
        known.iter().find(|n| n.name == info.name && n.incarnation == info.incarnation && n.addr == info.addr).cloned()
    };
    let nodes = infos.iter().map(|i| same(i).unwrap_or_else(|| Arc::new(Node::new(next_key.fetch_add(1, Relaxed), i)))).collect();
    let active = infos.iter().zip(0_u16..).filter(|(info, _)| !info.draining).map(|(_, n)| n).collect();
    View { table, nodes, active }
}

/// Keeps the view at the table's revision.
pub(crate) async fn follow(fleet: Arc<Fleet>, stop: CancellationToken) {
    let mut changed = fleet.routes.changed();
    // What came between the first look and this subscription.
    fleet.refresh();
    loop {
        tokio::select! {
            () = stop.cancelled() => return,
            result = changed.changed() => match result {
                Ok(()) => fleet.refresh(),
                // The source has ended; its last table stays.
                Err(_) => return stop.cancelled().await,
            },
        }
    }
}

/// The order in which nodes are tried: two choices by load among those of the spread that are in, then the others that are in, then
/// those that are out, since a node that seems dead is better than none.
pub(crate) fn order(view: &View, choice: &Choice, random: u64) -> Choice {
    let all = choice.as_slice();
    let node = |index: u16| &view.nodes[usize::from(index)];
    let (spread, _) = all.split_at(choice.spread());
    let mut healthy = [0_u16; crate::CANDIDATES_MAX];
    let mut count = 0;
    for index in spread.iter().copied().filter(|i| !node(*i).is_out()) {
        healthy[count] = index;
        count += 1;
    }
    let first = (count > 1).then(|| {
        let a = (random as u32 as usize) % count;
        let b = (a + 1 + ((random >> 32) as usize) % (count - 1)) % count;
        let (a, b) = (healthy[a], healthy[b]);
        if node(b).in_flight.load(Relaxed) < node(a).in_flight.load(Relaxed) { b } else { a }
    });
    let mut ordered = Choice::default();
    if let Some(first) = first {
        ordered.push(first, true);
    }
    for is_out in [false, true] {
        for index in all.iter().copied().filter(|i| node(*i).is_out() == is_out && Some(*i) != first) {
            ordered.push(index, false);
        }
    }
    ordered
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{FixedTable, NodeInfo};

    fn fleet(count: u16, spread: usize) -> Arc<Fleet> {
        let node = |n: u16| NodeInfo {
            name: format!("n{n}"),
            incarnation: 0,
            addr: ([127, 0, 0, 1], n).into(),
            draining: false,
            links: false,
        };
        Fleet::new(Arc::new(FixedTable::new((0..count).map(node).collect(), spread)))
    }

    #[test]
    fn of_two_choices_the_one_with_less_to_do_is_first() {
        let fleet = fleet(2, 2);
        let view = fleet.view();
        let _busy = InFlight::new(&view.nodes[1]);
        let choice = view.table.candidates("acme", "main", 0);
        for random in 0..100_u64 {
            assert_eq!(order(&view, &choice, random.wrapping_mul(0x9e37_79b9_7f4a_7c15)).as_slice(), [0, 1]);
        }
    }

    #[test]
    fn nodes_that_are_out_come_last_but_come() {
        let fleet = fleet(3, 1);
        let view = fleet.view();
        let choice = view.table.candidates("acme", "main", 0);
        let best = choice.as_slice()[0];
        assert!(view.nodes[usize::from(best)].eject(Why::Refused));
        assert!(!view.nodes[usize::from(best)].eject(Why::Refused), "it is out already");
        assert_eq!(order(&view, &choice, 0).as_slice().last(), Some(&best));
        for node in &view.nodes {
            node.eject(Why::Silent);
        }
        assert_eq!(order(&view, &choice, 0).as_slice(), choice.as_slice(), "the last candidate is never ejected");
        assert!(view.nodes[usize::from(best)].readmit());
        assert_eq!(order(&view, &choice, 0).as_slice()[0], best);
    }

    #[test]
    fn silence_ends_connections_and_refusal_does_not() {
        let fleet = fleet(1, 1);
        let node = Arc::clone(&fleet.view().nodes[0]);
        let before = node.gone();
        node.eject(Why::Refused);
        assert!(!before.is_cancelled());
        node.eject(Why::Silent);
        assert!(before.is_cancelled() && !node.gone().is_cancelled());
    }

    #[test]
    fn what_is_known_of_a_node_outlives_a_table() {
        let fleet = fleet(2, 1);
        let before = Arc::clone(&fleet.view().nodes[0]);
        before.eject(Why::Refused);
        fleet.refresh();
        assert!(Arc::ptr_eq(&before, &fleet.view().nodes[0]) && fleet.view().nodes[0].is_out());
    }
}
