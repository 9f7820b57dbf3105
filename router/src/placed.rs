//! The cluster's watched table as a source of routes.

use crate::routes::{Choice, NodeInfo, Routes, Table};
use hearth_placement::{Candidates, NodeState, RouteTable, TableWatch};
use std::{sync::Arc, time::Duration};
use tokio::sync::watch;

impl Table for RouteTable {
    fn revision(&self) -> i64 {
        Self::revision(self)
    }

    fn nodes(&self) -> Vec<NodeInfo> {
        let info = |record: &hearth_placement::NodeRecord| NodeInfo {
            name: record.name.as_str().to_owned(),
            incarnation: record.incarnation,
            addr: record.data_addr,
            draining: record.state == NodeState::Draining,
            links: record.links,
        };
        Self::nodes(self).iter().map(|node| info(&node.record)).collect()
    }

    fn candidates(&self, tenant: &str, container: &str, turn: u64) -> Choice {
        let mut found = Candidates::new();
        found.set_turn(turn);
        Self::candidates(self, tenant, container, &mut found);
        let mut choice = Choice::default();
        for (nodes, in_spread) in [(found.spread(), true), (found.fallbacks(), false)] {
            for node in nodes {
                choice.push(*node, in_spread);
            }
        }
        choice
    }
}

impl Routes for TableWatch {
    fn table(&self) -> Arc<dyn Table> {
        Self::table(self)
    }
    fn age(&self) -> Duration {
        Self::age(self)
    }
    fn is_stale(&self) -> bool {
        Self::is_stale(self)
    }
    fn changed(&self) -> watch::Receiver<i64> {
        Self::changed(self)
    }
}
