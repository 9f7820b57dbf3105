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
};
use async_trait::async_trait;
use serde::{Deserialize, Serialize};
use std::{collections::BTreeMap, sync::Arc, time::Duration};
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

/// Where the planner's loads come from.
#[async_trait]
pub trait StatsSource: Send + Sync + 'static {
    /// Asks all nodes, each within a deadline; those that did not answer are left out.
    async fn collect(&self, nodes: &[NodeRecord]) -> Vec<(NodeName, NodeStats)>;
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
    /// How much is planned.
    pub planner: PlannerConfig,
    /// The ring; the same in the whole cluster.
    pub ring: RingConfig,
}

impl Default for LeaderConfig {
    fn default() -> Self {
        Self {
            interval: Duration::from_secs(10),
            ttl: Duration::from_secs(10),
            planner: PlannerConfig::default(),
            ring: RingConfig::default(),
        }
    }
}

/// A candidate for the lead.
pub struct Leader {
    coordinator: Arc<dyn Coordinator>,
    prefix: String,
    name: String,
    stats: Arc<dyn StatsSource>,
    config: LeaderConfig,
}

impl Leader {
    /// A candidate called `name`, which is for people to read.
    #[must_use]
    pub fn new(
        coordinator: Arc<dyn Coordinator>,
        prefix: &str,
        name: &str,
        stats: Arc<dyn StatsSource>,
        config: LeaderConfig,
    ) -> Self {
        Self { coordinator, prefix: prefix.to_owned(), name: name.to_owned(), stats, config }
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
        let loads: BTreeMap<_, _> = self.stats.collect(&nodes).await.into_iter().collect();
        let measured_under = previous.overflow.clone();
        let (config, ring) = (self.config.planner.clone(), self.config.ring);
        let input = PlanInput { nodes, loads, previous, measured_under, epoch, config, ring };
        // A large cluster's plan takes a while of pure computing.
        let planned = tokio::task::spawn_blocking(move || plan(&input)).await;
        let Ok(planned) = planned else {
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
        Ok(true)
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
