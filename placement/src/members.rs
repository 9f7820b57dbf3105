//! Which nodes there are, from what the coordinator says and what it must not be believed at once.
//!
//! A pure state machine: no clock of its own, no calls. It never lets garbage remove a node, and when many nodes vanish
//! together it suspects the coordinator and keeps them until a probe says that they are dead.

use crate::{
    coordinator::{Event, KeyValue},
    exception::Exceptions,
    record::{NodeName, NodeRecord, NodeState, RecordError},
    table::TableNode,
};
use std::{
    collections::{BTreeMap, BTreeSet, VecDeque},
    time::Duration,
};
use tokio::time::Instant;

/// When a disappearance is a mass disappearance.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct MassRule {
    /// More than this share of the nodes, and at least two of them, ...
    pub share: f64,
    /// ... within this time.
    pub window: Duration,
}

/// Nodes and exceptions as they stand.
#[derive(Debug)]
pub struct Members {
    prefix: String,
    rule: MassRule,
    nodes: BTreeMap<NodeName, NodeRecord>,
    suspects: BTreeMap<NodeName, NodeRecord>,
    vanished: VecDeque<(Instant, NodeRecord)>,
    shards: BTreeMap<String, Exceptions>,
    /// Keys whose content was complained of already, so that each is logged once.
    bad: BTreeSet<String>,
    skipped: u64,
}

/// The most keys that are remembered as bad.
const BAD_MAX: usize = 1024;

impl Members {
    /// None yet. `prefix` is that of the cluster, without a slash at its end.
    #[must_use]
    pub fn new(prefix: &str, rule: MassRule) -> Self {
        Self {
            prefix: prefix.to_owned(),
            rule,
            nodes: BTreeMap::new(),
            suspects: BTreeMap::new(),
            vanished: VecDeque::new(),
            shards: BTreeMap::new(),
            bad: BTreeSet::new(),
            skipped: 0,
        }
    }

    /// What a snapshot remembers.
    pub fn restore(&mut self, nodes: Vec<NodeRecord>, exceptions: Exceptions) {
        self.nodes = nodes.into_iter().map(|node| (node.name.clone(), node)).collect();
        self.shards = BTreeMap::from([("snapshot".into(), exceptions)]);
    }

    /// Takes a whole listing: what it lacks is deleted. True when anything changed.
    pub fn replace(&mut self, items: &[KeyValue], now: Instant) -> bool {
        let before = (self.nodes.clone(), self.shards.clone(), self.suspects.clone());
        let names: BTreeSet<&str> = items.iter().filter_map(|item| self.node_name(&item.key)).collect();
        let gone: Vec<NodeName> = self.nodes.keys().filter(|name| !names.contains(name.as_str())).cloned().collect();
        for name in gone {
            self.vanish(&name, now);
        }
        let keys: BTreeSet<&str> = items.iter().map(|item| item.key.as_str()).collect();
        self.shards.retain(|key, _| keys.contains(key.as_str()));
        for item in items {
            self.put(item);
        }
        before != (self.nodes.clone(), self.shards.clone(), self.suspects.clone())
    }

    /// Takes one change. True when it concerns the table.
    pub fn apply(&mut self, event: &Event, now: Instant) -> bool {
        match event {
            Event::Put(item) => self.put(item),
            Event::Delete { key, .. } => {
                self.bad.remove(key);
                if let Some(name) = self.node_name(key).and_then(|name| name.parse().ok()) {
                    self.vanish(&name, now)
                } else {
                    self.shards.remove(key).is_some()
                }
            }
        }
    }

    /// Takes the exceptions of a listing, and nothing else of it.
    pub fn replace_plan(&mut self, items: &[KeyValue]) {
        self.shards.clear();
        for item in items {
            self.put(item);
        }
    }

    fn node_name<'a>(&self, key: &'a str) -> Option<&'a str> {
        key.strip_prefix(self.prefix.as_str())?.strip_prefix("/nodes/")
    }

    fn is_plan(&self, key: &str) -> bool {
        key.strip_prefix(self.prefix.as_str()).is_some_and(|rest| rest.starts_with("/plan/"))
    }

    fn put(&mut self, item: &KeyValue) -> bool {
        if let Some(name) = self.node_name(&item.key) {
            match NodeRecord::decode(name, &item.value) {
                Ok(record) => {
                    self.bad.remove(&item.key);
                    let was_suspect = self.suspects.remove(&record.name).is_some();
                    self.vanished.retain(|(_, gone)| gone.name != record.name);
                    self.nodes.insert(record.name.clone(), record.clone()).as_ref() != Some(&record) || was_suspect
                }
                Err(error) => self.skip(&item.key, &error),
            }
        } else if self.is_plan(&item.key) {
            match Exceptions::decode(&item.value) {
                Ok(shard) => {
                    self.bad.remove(&item.key);
                    self.shards.insert(item.key.clone(), shard.clone()).as_ref() != Some(&shard)
                }
                Err(error) => self.skip(&item.key, &error),
            }
        } else {
            false
        }
    }

    /// What was known under the key stays.
    fn skip(&mut self, key: &str, error: &RecordError) -> bool {
        self.skipped += 1;
        if self.bad.len() < BAD_MAX && self.bad.insert(key.to_owned()) {
            tracing::error!(key, %error, "a key of the cluster cannot be read and is left out; what was known before stays");
        }
        false
    }

    fn vanish(&mut self, name: &NodeName, now: Instant) -> bool {
        let Some(record) = self.nodes.remove(name) else { return false };
        while self.vanished.front().is_some_and(|(at, _)| now.duration_since(*at) > self.rule.window) {
            self.vanished.pop_front();
        }
        // A node that said it would leave leaves, and raises no suspicion.
        if record.state == NodeState::Active {
            self.vanished.push_back((now, record.clone()));
        }
        let together = self.vanished.len() + self.suspects.len();
        let known = self.nodes.len() + together;
        // The last of all never goes on the coordinator's word alone: an empty table answers nothing.
        let is_last = self.nodes.is_empty() && self.suspects.is_empty();
        if is_last || (together >= 2 && together as f64 > self.rule.share * known as f64) {
            tracing::error!(
                vanished = together,
                known,
                "most nodes vanished from the coordinator at once: it is suspected, not they; they are kept until probes say that they are dead"
            );
            self.suspects.extend(self.vanished.drain(..).map(|(_, record)| (record.name.clone(), record)));
            if is_last {
                self.suspects.insert(record.name.clone(), record);
            }
        }
        true
    }

    /// Nodes to be probed.
    #[must_use]
    pub fn suspects(&self) -> Vec<NodeRecord> {
        self.suspects.values().cloned().collect()
    }

    /// A probe said that a suspect is dead. True if it was still one.
    pub fn bury(&mut self, suspect: &NodeRecord) -> bool {
        if self.suspects.get(&suspect.name) != Some(suspect) {
            return false;
        }
        tracing::warn!(node = %suspect.name, "a node that vanished does not answer either: removed");
        self.suspects.remove(&suspect.name).is_some()
    }

    /// Nodes for a table.
    #[must_use]
    pub fn table_nodes(&self) -> Vec<TableNode> {
        let suspects = self.suspects.values().map(|record| TableNode { record: record.clone(), is_suspect: true });
        suspects.chain(self.nodes.values().map(|record| TableNode { record: record.clone(), is_suspect: false })).collect()
    }

    /// Exceptions for a table.
    #[must_use]
    pub fn exceptions(&self) -> Exceptions {
        Exceptions::join(self.shards.values())
    }

    /// How many keys were found unreadable, ever.
    #[must_use]
    pub const fn skipped(&self) -> u64 {
        self.skipped
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::record::SCHEMA;
    use hearth_model::Timestamp;

    const RULE: MassRule = MassRule { share: 0.5, window: Duration::from_secs(5) };

    fn node(name: &str) -> NodeRecord {
        let addr = "127.0.0.1:1000".parse().unwrap();
        NodeRecord {
            schema: SCHEMA,
            name: name.parse().unwrap(),
            incarnation: 1,
            data_addr: addr,
            control_addr: addr,
            zone: "a".into(),
            capacity: 1,
            state: NodeState::Active,
            links: true,
            started_at: Timestamp(0),
        }
    }

    fn item(record: &NodeRecord) -> KeyValue {
        KeyValue { key: format!("/h/nodes/{}", record.name), value: record.encode(), mod_revision: 1, create_revision: 1 }
    }

    fn gone(name: &str) -> Event {
        Event::Delete { key: format!("/h/nodes/{name}"), revision: 9 }
    }

    fn names(members: &Members) -> Vec<(String, bool)> {
        let mut names: Vec<_> = members.table_nodes().into_iter().map(|n| (n.record.name.to_string(), n.is_suspect)).collect();
        names.sort();
        names
    }

    #[test]
    fn one_of_three_goes_but_two_are_kept_until_probed() {
        let mut members = Members::new("/h", RULE);
        let now = Instant::now();
        members.replace(&["a", "b", "c"].map(|n| item(&node(n))), now);
        assert!(members.apply(&gone("a"), now));
        assert_eq!(names(&members), [("b".into(), false), ("c".into(), false)]);
        assert!(members.apply(&gone("b"), now));
        assert_eq!(names(&members), [("a".into(), true), ("b".into(), true), ("c".into(), false)]);
        assert!(members.bury(&node("a")));
        assert!(!members.bury(&node("a")));
        assert!(members.apply(&Event::Put(item(&node("b"))), now));
        assert_eq!(names(&members), [("b".into(), false), ("c".into(), false)]);
    }

    #[test]
    fn nodes_that_go_one_after_another_go() {
        let mut members = Members::new("/h", RULE);
        let now = Instant::now();
        members.replace(&["a", "b", "c"].map(|n| item(&node(n))), now);
        members.apply(&gone("a"), now);
        members.apply(&gone("b"), now + Duration::from_secs(6));
        assert_eq!(names(&members), [("c".into(), false)]);
    }

    #[test]
    fn an_empty_listing_is_suspected_and_garbage_changes_nothing() {
        let mut members = Members::new("/h", RULE);
        let now = Instant::now();
        members.replace(&["a", "b"].map(|n| item(&node(n))), now);
        for value in [&b"\xff"[..], b"{}", br#"{"schema":9}"#, item(&node("z")).value.as_slice()] {
            let bad = KeyValue { key: "/h/nodes/a".into(), value: value.to_vec(), mod_revision: 2, create_revision: 1 };
            assert!(!members.apply(&Event::Put(bad), now));
        }
        assert_eq!(members.skipped(), 4);
        assert_eq!(names(&members), [("a".into(), false), ("b".into(), false)]);
        members.replace(&[], now);
        assert_eq!(names(&members), [("a".into(), true), ("b".into(), true)]);
    }

    #[test]
    fn nodes_that_drained_leave_without_suspicion() {
        let mut members = Members::new("/h", RULE);
        let now = Instant::now();
        let draining = |n| NodeRecord { state: NodeState::Draining, ..node(n) };
        members.replace(&["a", "b", "c"].map(|n| item(&draining(n))), now);
        for name in ["a", "b", "c"] {
            members.apply(&gone(name), now);
        }
        // All but the last, without which there would be no route.
        assert_eq!(names(&members), [("c".into(), true)]);
        assert!(members.bury(&draining("c")));
        assert!(names(&members).is_empty());
    }
}
