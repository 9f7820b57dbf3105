//! The planner: a pure function from nodes, loads and the exceptions so far to the exceptions from now on.
//!
//! It calls nothing, reads no clock and draws no random numbers; the order of its input is irrelevant. Planning again with
//! the same loads changes nothing, unless the first plan had more to do than it may at once. It gives a container to
//! several nodes when its load is more than one should carry, moves containers away from nodes over the bound, and lets a
//! node that is over it by what cannot be named hand on a share of its containers.

use crate::{
    exception::{EXCEPTIONS_MAX, Exception, Exceptions},
    hash::container_point,
    leader::NodeStats,
    record::{NodeName, NodeRecord, NodeState, SCHEMA},
    ring::RingConfig,
    table::{RouteTable, TableNode},
};
use hearth_model::ContainerPath;
use serde::{Deserialize, Serialize};
use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
};

/// How much is planned.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct PlannerConfig {
    /// A node may carry the mean load times one plus this.
    pub bound: f64,
    /// At most so many containers change a node in one plan.
    pub moves_max: usize,
    /// At most so many nodes for one container.
    pub spread_max: u32,
    /// Below this mean load of a node (requests per second plus requests in flight) nothing is worth a move.
    pub load_min: f64,
}

impl Default for PlannerConfig {
    fn default() -> Self {
        Self { bound: 0.25, moves_max: 256, spread_max: 1024, load_min: 10.0 }
    }
}

/// All that a plan depends on.
#[derive(Debug, Clone)]
pub struct PlanInput {
    /// The nodes, in any order.
    pub nodes: Vec<NodeRecord>,
    /// Their loads; nodes that did not answer are absent, and count as carrying the mean.
    pub loads: BTreeMap<NodeName, NodeStats>,
    /// The exceptions in force.
    pub previous: Exceptions,
    /// The overflow that was in force when the loads were measured.
    pub measured_under: BTreeMap<NodeName, u16>,
    /// Which leadership plans.
    pub epoch: u64,
    /// How much is planned.
    pub config: PlannerConfig,
    /// The ring of the cluster.
    pub ring: RingConfig,
}

/// One container that changes a node.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Move {
    /// `tenant/container`.
    pub path: String,
    /// The node that loses it; `None` when it only gains one.
    pub from: Option<NodeName>,
    /// The node that gains it; `None` when it only loses one.
    pub to: Option<NodeName>,
}

/// What to do.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Plan {
    /// From now on; equal to the previous ones when nothing changes.
    pub exceptions: Exceptions,
    /// What changes its node.
    pub moves: Vec<Move>,
    /// Whether there is anything to write.
    pub is_changed: bool,
}

/// The share of a quantum by which a container must outgrow its nodes before it gets more.
const GROW_AT: f64 = 1.2;
/// Below this share of a quantum a container that was moved goes home.
const HOME_BELOW: f64 = 0.25;
/// An overflow is lowered only by so many thousandths at least.
const OVERFLOW_STEP: u16 = 100;
/// A node hands on at most so many thousandths.
const OVERFLOW_MAX: f64 = 900.0;

/// The load of a container or node: how often it is asked, and how much of that it still does.
fn load(request_rate: f64, in_flight: u32) -> f64 {
    if request_rate.is_finite() && request_rate > 0.0 { request_rate + f64::from(in_flight) } else { f64::from(in_flight) }
}

struct Assigned {
    path: String,
    point: u64,
    load: f64,
    pinned: Vec<NodeName>,
    spread_before: u32,
    nodes: Vec<u16>,
}

impl Assigned {
    fn share(&self) -> f64 {
        self.load / self.nodes.len().max(1) as f64
    }
}

struct Planning<'a> {
    input: &'a PlanInput,
    table: RouteTable,
    active: Vec<bool>,
    /// Active, and its load is known: others neither gain nor lose.
    eligible: Vec<bool>,
    /// The most that each node may carry.
    caps: Vec<f64>,
    /// What each node carries apart from the known containers, if it handed nothing on.
    cold: Vec<f64>,
    /// What it carries by this plan.
    carried: Vec<f64>,
    quantum: f64,
    is_complete: bool,
    assigned: Vec<Assigned>,
    moves: Vec<Move>,
}

/// Plans.
#[must_use]
pub fn plan(input: &PlanInput) -> Plan {
    let unchanged = || Plan { exceptions: input.previous.clone(), moves: vec![], is_changed: false };
    let Some(mut planning) = Planning::new(input) else { return unchanged() };
    planning.resize();
    planning.relieve();
    let overflow = planning.overflow();
    let containers = planning.exceptions(&overflow);
    if containers == input.previous.containers && overflow == input.previous.overflow {
        return Plan { moves: planning.moves, ..unchanged() };
    }
    let generation = input.previous.generation + 1;
    let exceptions = Exceptions { schema: SCHEMA, generation, epoch: input.epoch, containers, overflow };
    Plan { exceptions, moves: planning.moves, is_changed: true }
}

impl<'a> Planning<'a> {
    /// `None` when there is nothing to plan for.
    fn new(input: &'a PlanInput) -> Option<Self> {
        let nodes = input.nodes.iter().map(|record| TableNode { record: record.clone(), is_suspect: false });
        let table = RouteTable::build(nodes, &Arc::new(input.previous.clone()), 0, input.ring);
        let count = table.nodes().len();
        let active: Vec<bool> = table.nodes().iter().map(|node| node.record.state == NodeState::Active).collect();
        let capacity = |index: usize| if active[index] { f64::from(table.nodes()[index].record.capacity) } else { 0.0 };
        let capacities: f64 = (0..count).map(capacity).sum();
        let answered: Vec<Option<&NodeStats>> = table.nodes().iter().map(|node| input.loads.get(&node.record.name)).collect();
        let total: f64 = answered.iter().flatten().map(|stats| load(stats.request_rate, stats.in_flight)).sum();
        let answered_capacity: f64 = (0..count).filter(|i| answered[*i].is_some()).map(capacity).sum();
        if capacities <= 0.0 || answered_capacity <= 0.0 || total / answered_capacity < input.config.load_min {
            return None;
        }
        // Nodes that did not answer carry the mean, so that they neither lose nor gain.
        let is_complete = answered.iter().all(Option::is_some);
        let mean = total / if is_complete { capacities } else { answered_capacity };
        let least = (0..count).filter(|i| active[*i]).map(capacity).fold(f64::INFINITY, f64::min);
        let caps = (0..count).map(|i| (1.0 + input.config.bound) * mean * capacity(i)).collect();
        let quantum = input.config.bound * mean * least;
        let known = Self::known(&answered, input, HOME_BELOW * quantum);
        let mut cold = vec![0.0; count];
        for (index, stats) in answered.iter().enumerate() {
            let Some(stats) = stats else {
                cold[index] = mean * capacity(index);
                continue;
            };
            let named = stats.containers.iter().filter(|container| known.contains_key(container.path.as_str()));
            let named: f64 = named.map(|container| load(container.request_rate, container.in_flight)).sum();
            let rest = (load(stats.request_rate, stats.in_flight) - named).max(0.0);
            let handed_on = input.measured_under.get(&table.nodes()[index].record.name).copied().unwrap_or(0);
            cold[index] = rest / (1.0 - f64::from(handed_on).min(OVERFLOW_MAX) / 1000.0);
        }
        let assigned = known.into_iter().map(|(path, load)| Self::assign(&table, input, path, load)).collect();
        let eligible = (0..count).map(|index| active[index] && answered[index].is_some()).collect();
        let carried = vec![0.0; count];
        let mut this =
            Self { input, table, active, eligible, caps, cold, carried, quantum, is_complete, assigned, moves: Vec::new() };
        // The heaviest first, then by name: the same whatever the order of the input.
        this.assigned.sort_by(|a, b| b.load.total_cmp(&a.load).then_with(|| a.path.cmp(&b.path)));
        Some(this)
    }

    /// The containers that are planned one by one: those with an exception, and those that are heavy enough to matter. What is
    /// lighter counts as part of what its node carries anyway.
    fn known<'b>(answered: &[Option<&'b NodeStats>], input: &'b PlanInput, least: f64) -> BTreeMap<&'b str, f64> {
        let mut known: BTreeMap<&str, f64> = BTreeMap::new();
        for container in answered.iter().flatten().flat_map(|stats| &stats.containers) {
            if container.path.parse::<ContainerPath>().is_ok() {
                *known.entry(&container.path).or_default() += load(container.request_rate, container.in_flight);
            }
        }
        known.retain(|path, load| *load >= least || input.previous.containers.contains_key(*path));
        for path in input.previous.containers.keys() {
            known.entry(path).or_default();
        }
        known
    }

    fn assign(table: &RouteTable, input: &PlanInput, path: &str, load: f64) -> Assigned {
        let (tenant, container) = path.split_once('/').unwrap_or((path, ""));
        let before = input.previous.containers.get(path);
        Assigned {
            path: path.to_owned(),
            point: container_point(tenant, container),
            load,
            pinned: before.map(|exception| exception.pinned.clone()).unwrap_or_default(),
            spread_before: before.map_or(1, |exception| exception.spread),
            nodes: table.spread_of(tenant, container),
        }
    }

    fn name(&self, index: u16) -> NodeName {
        self.table.nodes()[usize::from(index)].record.name.clone()
    }

    fn handed_on(&self, index: usize) -> f64 {
        let share = self.input.previous.overflow.get(&self.table.nodes()[index].record.name).copied().unwrap_or(0);
        f64::from(share) / 1000.0
    }

    /// The first node in the container's order that has room for `share` more.
    fn room(&self, container: &Assigned, share: f64) -> Option<u16> {
        let mut seen = BTreeSet::new();
        let active = self.active.iter().filter(|is_active| **is_active).count();
        for index in self.table.ring().walk(container.point) {
            let at = usize::from(index);
            if !seen.insert(index) {
                continue;
            }
            if self.eligible[at] && !container.nodes.contains(&index) && self.carried[at] + share <= self.caps[at] {
                return Some(index);
            }
            if seen.len() >= active {
                return None;
            }
        }
        None
    }

    /// Gives containers more or fewer nodes by their load.
    fn resize(&mut self) {
        let active = self.active.iter().filter(|is_active| **is_active).count() as u32;
        let most = active.min(self.input.config.spread_max).max(1);
        let mut wanted = Vec::with_capacity(self.assigned.len());
        for container in &mut self.assigned {
            let now = container.nodes.len().max(1) as u32;
            let fits = ((container.load / self.quantum).ceil() as u32).clamp(1, most).max(container.pinned.len() as u32);
            let grows = fits > now && container.load / f64::from(now) > GROW_AT * self.quantum;
            let shrinks = self.is_complete && fits * 2 <= now;
            let want = if grows || shrinks { fits } else { now };
            while container.nodes.len() > want as usize
                && self.moves.len() < self.input.config.moves_max
                && let Some(index) = container.nodes.pop()
            {
                let from = self.table.nodes()[usize::from(index)].record.name.clone();
                self.moves.push(Move { path: container.path.clone(), from: Some(from), to: None });
            }
            wanted.push(want as usize);
        }
        self.carry();
        for (at, want) in wanted.into_iter().enumerate() {
            let share = self.assigned[at].load / want as f64;
            while self.assigned[at].nodes.len() < want && self.moves.len() < self.input.config.moves_max {
                let Some(index) = self.room(&self.assigned[at], share).or_else(|| self.emptiest(&self.assigned[at])) else { break };
                self.set_nodes(at, |nodes| nodes.push(index));
                let to = Some(self.name(index));
                self.moves.push(Move { path: self.assigned[at].path.clone(), from: None, to });
            }
        }
    }

    /// Where no node has room, the one that is fullest least; of equals the first by name.
    fn emptiest(&self, container: &Assigned) -> Option<u16> {
        let free = (0..self.eligible.len() as u16).filter(|i| self.eligible[usize::from(*i)] && !container.nodes.contains(i));
        let full = |index: u16| self.carried[usize::from(index)] / self.caps[usize::from(index)];
        free.min_by(|a, b| full(*a).total_cmp(&full(*b)))
    }

    /// Sums up what the nodes carry, from nothing.
    fn carry(&mut self) {
        self.carried = (0..self.cold.len()).map(|index| self.cold[index] * (1.0 - self.handed_on(index))).collect();
        for container in &self.assigned {
            for index in &container.nodes {
                self.carried[usize::from(*index)] += container.share();
            }
        }
    }

    fn set_nodes(&mut self, at: usize, change: impl FnOnce(&mut Vec<u16>)) {
        let container = &mut self.assigned[at];
        let before = container.share();
        for index in &container.nodes {
            self.carried[usize::from(*index)] -= before;
        }
        change(&mut container.nodes);
        let after = container.share();
        for index in &container.nodes {
            self.carried[usize::from(*index)] += after;
        }
    }

    /// Moves containers from nodes over the bound to the next in their order that has room. No node gets over the bound by
    /// it, so it ends.
    fn relieve(&mut self) {
        self.carry();
        let mut on: Vec<Vec<usize>> = vec![Vec::new(); self.carried.len()];
        for (at, container) in self.assigned.iter().enumerate() {
            for index in &container.nodes[container.pinned.len().min(container.nodes.len())..] {
                on[usize::from(*index)].push(at);
            }
        }
        for index in 0..self.carried.len() {
            while self.eligible[index]
                && self.carried[index] > self.caps[index] * (1.0 + 1e-9)
                && self.moves.len() < self.input.config.moves_max
            {
                let Some((at, to)) = self.relief(index, &on[index]) else { break };
                self.set_nodes(at, |nodes| {
                    if let Some(node) = nodes.iter_mut().find(|node| usize::from(**node) == index) {
                        *node = to;
                    }
                });
                on[index].retain(|other| *other != at);
                on[usize::from(to)].push(at);
                let (from, to) = (Some(self.name(index as u16)), Some(self.name(to)));
                self.moves.push(Move { path: self.assigned[at].path.clone(), from, to });
            }
        }
    }

    /// The lightest container that alone relieves the node, else the heaviest; one that finds room elsewhere.
    fn relief(&self, index: usize, on: &[usize]) -> Option<(usize, u16)> {
        let excess = self.carried[index] - self.caps[index];
        let mut by_share: Vec<usize> = on.iter().copied().filter(|at| self.assigned[*at].load > 0.0).collect();
        let share = |at: &usize| self.assigned[*at].share();
        by_share.sort_by(|a, b| share(a).total_cmp(&share(b)).then_with(|| self.assigned[*a].path.cmp(&self.assigned[*b].path)));
        let enough = by_share.partition_point(|at| share(at) < excess);
        let (less, more) = by_share.split_at(enough);
        more.iter().chain(less.iter().rev()).find_map(|at| Some((*at, self.room(&self.assigned[*at], share(at))?)))
    }

    /// The share of its unnamed containers that each node hands on.
    fn overflow(&self) -> BTreeMap<NodeName, u16> {
        let mut overflow = BTreeMap::new();
        for index in (0..self.cold.len()).filter(|index| self.active[*index]) {
            let name = self.name(index as u16);
            let before = self.input.previous.overflow.get(&name).copied().unwrap_or(0);
            if !self.eligible[index] {
                if before > 0 {
                    overflow.insert(name, before);
                }
                continue;
            }
            let hot = self.carried[index] - self.cold[index] * (1.0 - self.handed_on(index));
            let needed = if self.cold[index] > 0.0 { 1.0 - (self.caps[index] - hot) / self.cold[index] } else { 0.0 };
            let needed = (needed * 1000.0).ceil().clamp(0.0, OVERFLOW_MAX) as u16;
            let lowers = self.is_complete && (needed + OVERFLOW_STEP <= before || (needed == 0 && before < OVERFLOW_STEP));
            let now = if needed > before || lowers { needed } else { before };
            if now > 0 {
                overflow.insert(name, now);
            }
        }
        overflow
    }

    /// Only what the ring would not do by itself becomes an exception.
    fn exceptions(&mut self, overflow: &BTreeMap<NodeName, u16>) -> BTreeMap<String, Exception> {
        let plain = Exceptions { overflow: overflow.clone(), ..Exceptions::none() };
        let base = self.table.with_exceptions(&Arc::new(plain), 0);
        let mut exceptions = BTreeMap::new();
        for at in 0..self.assigned.len() {
            let container = &self.assigned[at];
            let home = base.place(container.point, &Exception { spread: 1, ..Exception::default() });
            let is_single = container.nodes.len() <= 1 && container.pinned.is_empty();
            if is_single && (*home == *container.nodes || self.goes_home(at, &home)) {
                continue;
            }
            let container = &self.assigned[at];
            // A wider spread than there are nodes now comes back with them.
            let lost = container.spread_before as usize > container.nodes.len() && !self.is_complete;
            let spread = if lost { container.spread_before } else { container.nodes.len().max(1) as u32 };
            let bare = Exception { spread, pinned: container.pinned.clone(), planned: Vec::new() };
            let planned = if *base.place(container.point, &bare) == *container.nodes {
                Vec::new()
            } else {
                container.nodes.iter().map(|index| self.name(*index)).filter(|name| !bare.pinned.contains(name)).collect()
            };
            // The heaviest come first, so that the bound cuts off the lightest.
            if exceptions.len() < EXCEPTIONS_MAX || !bare.pinned.is_empty() {
                exceptions.insert(container.path.clone(), Exception { planned, ..bare });
            }
        }
        exceptions
    }

    /// Whether a container that was moved, and carries little now, may go back to where the ring has it.
    fn goes_home(&mut self, at: usize, home: &[u16]) -> bool {
        let (Some(home), load) = (home.first().copied(), self.assigned[at].load) else { return false };
        let to = usize::from(home);
        let is_light = self.is_complete && load < HOME_BELOW * self.quantum;
        if !is_light || self.carried[to] + load > self.caps[to] || self.moves.len() >= self.input.config.moves_max {
            return false;
        }
        let from = self.assigned[at].nodes.first().map(|index| self.name(*index));
        if load > 0.0 {
            self.moves.push(Move { path: self.assigned[at].path.clone(), from, to: Some(self.name(home)) });
        }
        self.set_nodes(at, |nodes| *nodes = vec![home]);
        true
    }
}
