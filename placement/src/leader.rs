//! The leader: elected, it collects loads each interval, plans, and writes what changed.
//!
//! Each write is conditional on the revision that the plan was made from, and carries the epoch of the leadership: a
//! leader that slept through the end of its lease moves nothing back.

use crate::{
    coordinator::{Coordinator, CoordinatorError, KeyValue, Precondition},
    election::{Leadership, campaign},
    exception::{Exceptions, SHARD_BYTES_MAX},
    members::{MassRule, Members},
    planner::{PlanInput, PlannerConfig, plan},
    record::{NodeName, NodeRecord},
    ring::RingConfig,
    table::{RouteTable, TableNode},
};
use async_trait::async_trait;
use serde::{Deserialize, Serialize};
use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
    time::Duration,
};
use tokio::time::{Instant, sleep};
use tokio_util::sync::CancellationToken;

/// The load of one container on one node.
#[derive(Debug, Clone, PartialEq)]
pub struct ContainerLoad {
    /// `tenant/container`.
    pub path: String,
    /// Requests per second.
    pub request_rate: f64,
    /// Requests that it works on.
    pub in_flight: u32,
    /// What it takes in memory.
    pub memory_bytes: u64,
}

/// The load of one node.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct NodeStats {
    /// Requests per second, all containers together.
    pub request_rate: f64,
    /// Requests that it works on.
    pub in_flight: u32,
    /// What its containers take in memory.
    pub memory_bytes: u64,
    /// Its busiest containers.
    pub containers: Vec<ContainerLoad>,
}

/// A container that a node has though it is placed elsewhere: the node need not keep it any longer.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Eviction {
    /// The node that has it still.
    pub node: NodeName,
    /// `tenant/container`.
    pub path: String,
}

/// What the leader asks of nodes.
#[async_trait]
pub trait NodeCalls: Send + Sync + 'static {
    /// Asks all nodes for their loads, each within a deadline; those that did not answer are left out.
    async fn collect(&self, nodes: &[NodeRecord]) -> Vec<(NodeName, NodeStats)>;

    /// Tells nodes to let go of containers that the plan of this generation has elsewhere. Whom this does not reach lets go of them when
    /// they have been idle for long enough.
    async fn evict(&self, nodes: &[NodeRecord], evictions: &[Eviction], generation: u64);
}

/// How a leader leads.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct LeaderConfig {
    /// From plan to plan.
    #[serde(with = "humantime_serde")]
    pub interval: Duration,
    /// How long a leader that died keeps others from leading.
    #[serde(with = "humantime_serde")]
    pub ttl: Duration,
    /// How long a container must have been idle on a node where it is not placed until that node is told to let go of it. Nodes that some
    /// router cannot reach are stood in for by others, which must not begin cold with each request.
    #[serde(with = "humantime_serde")]
    pub stray_after: Duration,
    /// How much is planned.
    pub planner: PlannerConfig,
    /// The ring; the table's own.
    #[serde(skip)]
    pub ring: RingConfig,
}

impl Default for LeaderConfig {
    fn default() -> Self {
        Self {
            interval: Duration::from_secs(10),
            ttl: Duration::from_secs(10),
            stray_after: Duration::from_secs(120),
            planner: PlannerConfig::default(),
            ring: RingConfig::default(),
        }
    }
}

impl LeaderConfig {
    /// Refuses what cannot work, naming the key.
    ///
    /// # Errors
    /// The key, what is wrong, and what would do.
    pub fn validate(&self) -> Result<(), String> {
        let planner = &self.planner;
        if self.interval.is_zero() || self.ttl < Duration::from_secs(2) {
            return Err("leader.interval must be longer than nothing, and leader.ttl 2s at least".into());
        }
        if !(planner.bound > 0.0 && planner.bound <= 10.0) {
            return Err(format!(
                "leader.planner.bound is {}: a node carries the mean load times one plus this, as 0.25; from above 0 to 10",
                planner.bound
            ));
        }
        if planner.moves_max == 0 || planner.spread_max == 0 {
            return Err("leader.planner: moves_max and spread_max must be 1 at least".into());
        }
        if !(planner.load_min >= 0.0 && planner.load_min.is_finite()) {
            return Err("leader.planner.load_min must be 0 or more requests per second".into());
        }
        Ok(())
    }
}

/// A candidate for the lead.
pub struct Leader {
    coordinator: Arc<dyn Coordinator>,
    prefix: String,
    name: String,
    calls: Arc<dyn NodeCalls>,
    config: LeaderConfig,
    /// What the last plan moved away: told to the nodes with the next, when all routers have long heard of the move.
    moved: parking_lot::Mutex<BTreeSet<Eviction>>,
    /// What nodes have reported, idle, though it is placed elsewhere, and since when: after a pin, after nodes came and went, after another
    /// leader. Nodes report their busiest, so that one with very many keeps its strays until it lets go of what idles.
    strays: parking_lot::Mutex<BTreeMap<Eviction, Instant>>,
}

/// Strays that are told of with one plan.
const STRAYS_TOLD_MAX: usize = 500;

impl Leader {
    /// A candidate called `name`, which is for people to read.
    #[must_use]
    pub fn new(
        coordinator: Arc<dyn Coordinator>,
        prefix: &str,
        name: &str,
        calls: Arc<dyn NodeCalls>,
        config: LeaderConfig,
    ) -> Self {
        let (moved, strays) = Default::default();
        Self { coordinator, prefix: prefix.to_owned(), name: name.to_owned(), calls, config, moved, strays }
    }

    /// Stands for election and leads when elected, until told to stop.
    pub async fn run(self, stop: CancellationToken) {
        let key = format!("{}/leader", self.prefix);
        loop {
            let elected = tokio::select! {
                // A campaign that is cut off leaves at most a lease that nobody renews.
                () = stop.cancelled() => return,
                elected = campaign(&self.coordinator, &key, &self.name, self.config.ttl) => elected,
            };
            match elected {
                Ok(Some(leadership)) => {
                    tracing::info!(name = self.name, epoch = leadership.epoch(), "leads");
                    self.lead(&leadership, &stop).await;
                    tracing::info!(name = self.name, "leads no more");
                    if let Err(error) = leadership.resign().await {
                        tracing::debug!(%error, "the lease ends by itself");
                    }
                }
                Ok(None) => {}
                Err(error) => tracing::debug!(%error, "no election"),
            }
            tokio::select! {
                () = stop.cancelled() => return,
                () = sleep(self.config.ttl / 3) => {}
            }
        }
    }

    async fn lead(&self, leadership: &Leadership, stop: &CancellationToken) {
        let mut renewed = Instant::now();
        let mut next_plan = renewed;
        loop {
            match leadership.renew().await {
                Ok(true) => renewed = Instant::now(),
                Ok(false) => return,
                Err(error) if renewed.elapsed() >= self.config.ttl => {
                    tracing::warn!(%error, "the lead could not be renewed");
                    return;
                }
                Err(_) => {}
            }
            if Instant::now() >= next_plan {
                next_plan = Instant::now() + self.config.interval;
                // Whatever a plan waits for must not outlast the lease, which nobody renews meanwhile.
                match tokio::time::timeout(self.config.ttl / 2, self.plan_once(leadership.epoch())).await {
                    Ok(Ok(true)) => {}
                    Ok(Ok(false)) => return,
                    Ok(Err(error)) => tracing::warn!(%error, "the plan was not written"),
                    Err(_) => tracing::warn!("planning took too long and was given up"),
                }
            }
            tokio::select! {
                () = stop.cancelled() => return,
                () = sleep((self.config.ttl / 3).min(self.config.interval)) => {}
            }
        }
    }

    /// One plan. False when a later leader has written already.
    ///
    /// # Errors
    /// Those of the coordinator; [`CoordinatorError::Conflict`] when somebody else wrote meanwhile.
    pub async fn plan_once(&self, epoch: i64) -> Result<bool, CoordinatorError> {
        let nodes = self.coordinator.list(&format!("{}/nodes/", self.prefix)).await?;
        let shards = self.coordinator.list(&format!("{}/plan/", self.prefix)).await?;
        let mut members = Members::new(&self.prefix, MassRule { share: 1.0, window: Duration::ZERO });
        members.replace(&nodes.items, Instant::now());
        members.replace_plan(&shards.items);
        let previous = members.exceptions();
        let epoch = epoch.unsigned_abs();
        if previous.epoch > epoch {
            return Ok(false);
        }
        let nodes: Vec<NodeRecord> = members.table_nodes().into_iter().map(|node| node.record).collect();
        let loads: BTreeMap<_, _> = self.calls.collect(&nodes).await.into_iter().collect();
        let measured_under = previous.overflow.clone();
        let (config, ring) = (self.config.planner.clone(), self.config.ring);
        let input = PlanInput { nodes: nodes.clone(), loads, previous, measured_under, epoch, config, ring };
        // A large cluster's plan takes a while of pure computing.
        let planning = move || {
            let planned = plan(&input);
            let strays = gone(idle(&input.loads), &input.nodes, &planned.exceptions, ring);
            (planned, strays)
        };
        let planned = tokio::task::spawn_blocking(planning).await;
        let Ok((planned, strays)) = planned else {
            tracing::error!("the planner panicked; the exceptions stay as they are");
            return Ok(true);
        };
        if planned.is_changed {
            self.write(&planned.exceptions, &shards.items).await?;
            tracing::info!(
                generation = planned.exceptions.generation,
                moves = planned.moves.len(),
                exceptions = planned.exceptions.containers.len(),
                "planned"
            );
        }
        let moved = planned.moves.iter().filter_map(|m| Some(Eviction { node: m.from.clone()?, path: m.path.clone() }));
        let before = std::mem::replace(&mut *self.moved.lock(), moved.collect());
        let mut evictions = gone(before, &nodes, &planned.exceptions, ring);
        evictions.extend(self.told_of(strays));
        if !evictions.is_empty() {
            let evictions: Vec<Eviction> = evictions.into_iter().collect();
            self.calls.evict(&nodes, &evictions, planned.exceptions.generation).await;
        }
        Ok(true)
    }

    /// Those of the strays that have been seen for long enough; they are told of once, and anew if they stay.
    fn told_of(&self, strays: BTreeSet<Eviction>) -> Vec<Eviction> {
        let (mut since, now) = (self.strays.lock(), Instant::now());
        since.retain(|stray, _| strays.contains(stray));
        for stray in strays {
            since.entry(stray).or_insert(now);
        }
        let long = since.iter().filter(|(_, since)| **since < now && since.elapsed() >= self.config.stray_after);
        let told: Vec<Eviction> = long.map(|(stray, _)| stray.clone()).take(STRAYS_TOLD_MAX).collect();
        since.retain(|stray, _| !told.contains(stray));
        told
    }

    async fn write(&self, exceptions: &Exceptions, found: &[KeyValue]) -> Result<(), CoordinatorError> {
        let shards = exceptions.split();
        let revisions: BTreeMap<&str, i64> = found.iter().map(|item| (item.key.as_str(), item.mod_revision)).collect();
        let key = |number: u32| format!("{}/plan/{number:02x}", self.prefix);
        for (number, shard) in &shards {
            let (key, value) = (key(*number), shard.encode());
            if value.len() > SHARD_BYTES_MAX {
                tracing::error!(key, bytes = value.len(), "too many exceptions for one key; it stays as it is");
                continue;
            }
            let precondition = revisions.get(key.as_str()).map_or(Precondition::Absent, |at| Precondition::ModRevision(*at));
            self.coordinator.put(&key, value, precondition, None).await?;
        }
        for item in found.iter().filter(|item| !shards.keys().any(|number| key(*number) == item.key)) {
            self.coordinator.delete(&item.key, Precondition::ModRevision(item.mod_revision)).await?;
        }
        Ok(())
    }
}

/// Containers that nobody calls where they are.
fn idle(loads: &BTreeMap<NodeName, NodeStats>) -> BTreeSet<Eviction> {
    let of = |(node, stats): (&NodeName, &NodeStats)| {
        let idle = stats.containers.iter().filter(|c| c.in_flight == 0 && c.request_rate == 0.0);
        idle.map(|c| Eviction { node: node.clone(), path: c.path.clone() }).collect::<Vec<_>>()
    };
    loads.iter().flat_map(of).collect()
}

/// Those of `held` that this plan does not have on their node.
fn gone(held: BTreeSet<Eviction>, nodes: &[NodeRecord], exceptions: &Exceptions, ring: RingConfig) -> BTreeSet<Eviction> {
    if held.is_empty() {
        return held;
    }
    let nodes = nodes.iter().map(|record| TableNode { record: record.clone(), is_suspect: false });
    let table = RouteTable::build(nodes, &Arc::new(exceptions.clone()), 0, ring);
    let is_gone = |eviction: &Eviction| {
        let (Some((tenant, container)), Some(node)) = (eviction.path.split_once('/'), table.index_of(&eviction.node)) else {
            return false;
        };
        !table.spread_of(tenant, container).contains(&node)
    };
    held.into_iter().filter(is_gone).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        coordinator::local::LocalCoordinator,
        record::{NodeState, SCHEMA},
    };
    use hearth_model::Timestamp;
    use parking_lot::Mutex;

    /// Ten containers of equal load, on the node that the table names; remembers who was told to let go of what.
    struct Calls {
        coordinator: LocalCoordinator,
        told: Mutex<Vec<(Eviction, u64)>>,
    }

    async fn exceptions(coordinator: &LocalCoordinator) -> Exceptions {
        let shards = coordinator.list("/x/plan/").await.unwrap();
        let shards: Vec<_> = shards.items.iter().map(|item| Exceptions::decode(&item.value).unwrap()).collect();
        Exceptions::join(&shards)
    }

    fn record(name: &str) -> NodeRecord {
        let addr = "10.0.0.1:1".parse().unwrap();
        NodeRecord {
            schema: SCHEMA,
            name: name.parse().unwrap(),
            incarnation: 1,
            data_addr: addr,
            control_addr: addr,
            zone: String::new(),
            capacity: 1,
            state: NodeState::Active,
            links: true,
            started_at: Timestamp(0),
        }
    }

    fn table(nodes: &[NodeRecord], exceptions: Exceptions) -> RouteTable {
        let nodes = nodes.iter().map(|record| TableNode { record: record.clone(), is_suspect: false });
        RouteTable::build(nodes, &Arc::new(exceptions), 0, RingConfig::default())
    }

    #[async_trait]
    impl NodeCalls for Calls {
        async fn collect(&self, nodes: &[NodeRecord]) -> Vec<(NodeName, NodeStats)> {
            let table = table(nodes, exceptions(&self.coordinator).await);
            let mut stats = vec![NodeStats::default(); nodes.len()];
            // None is heavy enough to be spread, so that a node over its bound can only give some of them away.
            for tenant in 0..40 {
                let of = table.spread_of(&format!("t{tenant}"), "main");
                let on = &mut stats[usize::from(of[0])];
                on.request_rate += 12.5;
                let path = format!("t{tenant}/main");
                on.containers.push(ContainerLoad { path, request_rate: 12.5, in_flight: 0, memory_bytes: 0 });
            }
            table.nodes().iter().map(|node| node.record.name.clone()).zip(stats).collect()
        }

        async fn evict(&self, _: &[NodeRecord], evictions: &[Eviction], generation: u64) {
            self.told.lock().extend(evictions.iter().map(|eviction| (eviction.clone(), generation)));
        }
    }

    #[tokio::test]
    async fn a_node_is_told_to_let_go_of_what_was_moved_one_plan_later_and_of_nothing_else() {
        let coordinator = LocalCoordinator::new();
        for name in ["a", "b", "c", "d"] {
            coordinator.put(&format!("/x/nodes/{name}"), record(name).encode(), Precondition::Absent, None).await.unwrap();
        }
        let calls = Arc::new(Calls { coordinator: coordinator.clone(), told: Mutex::default() });
        let leader = Leader::new(Arc::new(coordinator.clone()), "/x", "l", Arc::clone(&calls) as _, LeaderConfig::default());
        assert!(leader.plan_once(1).await.unwrap());
        let moved = leader.moved.lock().clone();
        assert!(!moved.is_empty(), "forty containers do not fall evenly on four nodes by themselves");
        assert!(calls.told.lock().is_empty(), "routers must hear of a move before its node lets go");

        assert!(leader.plan_once(1).await.unwrap());
        let told: BTreeSet<Eviction> = calls.told.lock().iter().map(|(eviction, _)| eviction.clone()).collect();
        let nodes = coordinator.list("/x/nodes/").await.unwrap().items;
        let nodes: Vec<_> =
            nodes.iter().map(|i| NodeRecord::decode(i.key.rsplit('/').next().unwrap(), &i.value).unwrap()).collect();
        let table = table(&nodes, exceptions(&coordinator).await);
        for Eviction { node, path } in &moved {
            let (tenant, container) = path.split_once('/').unwrap();
            let stays = table.spread_of(tenant, container).contains(&table.index_of(node).unwrap());
            assert_eq!(told.contains(&Eviction { node: node.clone(), path: path.clone() }), !stays, "{path} on {node}");
        }
        assert!(told.is_subset(&moved) && !told.is_empty());
        let count = calls.told.lock().len();
        assert!(leader.plan_once(1).await.unwrap());
        assert_eq!(calls.told.lock().len(), count, "told once");
    }

    #[tokio::test(start_paused = true)]
    async fn what_idles_where_it_is_not_placed_goes_after_a_while() {
        let nodes: Vec<NodeRecord> = ["a", "b", "c"].map(record).to_vec();
        let table = table(&nodes, Exceptions::default());
        let own = table.nodes()[usize::from(table.spread_of("t", "main")[0])].record.name.clone();
        let other = nodes.iter().map(|n| &n.name).find(|name| **name != own).unwrap().clone();
        let load = |request_rate| ContainerLoad { path: "t/main".into(), request_rate, in_flight: 0, memory_bytes: 0 };
        let loads = |at: &NodeName, rate| {
            BTreeMap::from([(at.clone(), NodeStats { containers: vec![load(rate)], ..NodeStats::default() })])
        };
        let strays = |loads| gone(idle(&loads), &nodes, &Exceptions::default(), RingConfig::default());
        let stray = Eviction { node: other.clone(), path: "t/main".into() };
        assert_eq!(strays(loads(&other, 0.0)), BTreeSet::from([stray.clone()]));
        assert!(strays(loads(&other, 1.0)).is_empty(), "somebody calls it there");
        assert!(strays(loads(&own, 0.0)).is_empty(), "it is where it belongs");

        let coordinator = LocalCoordinator::new();
        for node in &nodes {
            coordinator.put(&format!("/x/nodes/{}", node.name), node.encode(), Precondition::Absent, None).await.unwrap();
        }
        let calls = Arc::new(Idle { loads: loads(&other, 0.0), told: Mutex::default() });
        let leader = Leader::new(Arc::new(coordinator), "/x", "l", Arc::clone(&calls) as _, LeaderConfig::default());
        assert!(leader.plan_once(1).await.unwrap());
        tokio::time::sleep(Duration::from_secs(119)).await;
        assert!(leader.plan_once(1).await.unwrap());
        assert!(calls.told.lock().is_empty(), "not long enough");
        tokio::time::sleep(Duration::from_secs(1)).await;
        assert!(leader.plan_once(1).await.unwrap());
        assert_eq!(*calls.told.lock(), std::slice::from_ref(&stray));
        assert!(leader.plan_once(1).await.unwrap());
        assert_eq!(*calls.told.lock(), [stray], "told once, not with every plan");
    }

    /// Nodes with these loads whatever they are told.
    struct Idle {
        loads: BTreeMap<NodeName, NodeStats>,
        told: Mutex<Vec<Eviction>>,
    }

    #[async_trait]
    impl NodeCalls for Idle {
        async fn collect(&self, _: &[NodeRecord]) -> Vec<(NodeName, NodeStats)> {
            self.loads.clone().into_iter().collect()
        }

        async fn evict(&self, _: &[NodeRecord], evictions: &[Eviction], _: u64) {
            self.told.lock().extend(evictions.iter().cloned());
        }
    }

    #[test]
    fn settings_that_cannot_work_are_refused_by_key() {
        LeaderConfig::default().validate().unwrap();
        let with = |planner| LeaderConfig { planner, ..LeaderConfig::default() }.validate().unwrap_err();
        assert!(with(PlannerConfig { bound: 0.0, ..PlannerConfig::default() }).contains("leader.planner.bound"));
        assert!(with(PlannerConfig { bound: f64::NAN, ..PlannerConfig::default() }).contains("leader.planner.bound"));
        assert!(with(PlannerConfig { moves_max: 0, ..PlannerConfig::default() }).contains("moves_max"));
        assert!(LeaderConfig { ttl: Duration::ZERO, ..LeaderConfig::default() }.validate().unwrap_err().contains("leader.ttl"));
    }
}
