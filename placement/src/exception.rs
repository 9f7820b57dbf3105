//! What the planner decided against the ring's default, as it lies in the coordinator. Containers without an exception
//! appear nowhere, so that a million idle tenants weigh nothing.

use crate::{
    hash::container_point,
    record::{NodeName, RecordError, SCHEMA, check_schema},
};
use hearth_model::ContainerPath;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;

/// Into how many keys the exceptions are split, by the container's hash; each stays below what one value may hold.
pub const SHARDS: u32 = 16;
/// The most that one key holds. etcd refuses requests beyond 1.5 MiB.
pub const SHARD_BYTES_MAX: usize = 1 << 20;
/// More exceptions than this the planner drops, the coldest first.
pub const EXCEPTIONS_MAX: usize = 16_384;

/// How one container is placed other than by the ring alone.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Exception {
    /// On how many nodes the container may run; at least 1.
    pub spread: u32,
    /// Set by an operator: these nodes first, whatever they carry. The planner keeps them.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub pinned: Vec<NodeName>,
    /// Nodes that the container was planned onto; where they lack or are fewer than `spread`, the ring's order goes on.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub planned: Vec<NodeName>,
}

/// All exceptions, or those of one shard.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Exceptions {
    /// The version of this record.
    pub schema: u32,
    /// Grows with each plan that changed something.
    pub generation: u64,
    /// Which leadership wrote it; a leader that reads a later one than its own steps back.
    pub epoch: u64,
    /// By `tenant/container`.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub containers: BTreeMap<String, Exception>,
    /// Of nodes that are over the bound by what the planner cannot name: how many thousandths of the containers without an
    /// exception they hand on to the next in the ring's order.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub overflow: BTreeMap<NodeName, u16>,
}

/// The shard of a container, 0 to [`SHARDS`] - 1; `None` when the text is no container path.
#[must_use]
pub fn shard_of(path: &str) -> Option<u32> {
    let (tenant, container) = path.split_once('/')?;
    // The highest bits choose places on the ring; shards take the lowest.
    Some((container_point(tenant, container) % u64::from(SHARDS)) as u32)
}

impl Exceptions {
    /// No exceptions.
    #[must_use]
    pub fn none() -> Self {
        Self { schema: SCHEMA, ..Self::default() }
    }

    /// Reads one shard. Entries that are no container paths are left out, the rest stays.
    ///
    /// # Errors
    /// [`RecordError`] when nothing of it can be used.
    pub fn decode(bytes: &[u8]) -> Result<Self, RecordError> {
        if bytes.len() > SHARD_BYTES_MAX {
            return Err(RecordError::Size { bytes: bytes.len(), max: SHARD_BYTES_MAX });
        }
        check_schema(bytes)?;
        let mut shard: Self = serde_json::from_slice(bytes)?;
        shard.containers.retain(|path, exception| path.parse::<ContainerPath>().is_ok() && exception.spread > 0);
        shard.overflow.retain(|_, share| *share <= 1000);
        Ok(shard)
    }

    /// The bytes to be put under a key.
    #[must_use]
    pub fn encode(&self) -> Vec<u8> {
        // Text keys and plain fields always have a JSON form.
        serde_json::to_vec(self).unwrap_or_default()
    }

    /// Splits into shards, by number. Shard 0 is always there: it has the overflow, and keeps generation and epoch when there are
    /// no exceptions left; written first, it is also where a leader that is late fails. Other shards without content are left out.
    #[must_use]
    pub fn split(&self) -> BTreeMap<u32, Self> {
        let empty = || Self { schema: self.schema, generation: self.generation, epoch: self.epoch, ..Self::default() };
        let mut shards = BTreeMap::from([(0, Self { overflow: self.overflow.clone(), ..empty() })]);
        for (path, exception) in &self.containers {
            if let Some(number) = shard_of(path) {
                shards.entry(number).or_insert_with(empty).containers.insert(path.clone(), exception.clone());
            }
        }
        shards
    }

    /// Joins shards; the highest generation and epoch count.
    #[must_use]
    pub fn join<'a>(shards: impl IntoIterator<Item = &'a Self>) -> Self {
        let mut all = Self::none();
        for shard in shards {
            all.generation = all.generation.max(shard.generation);
            all.epoch = all.epoch.max(shard.epoch);
            all.containers.extend(shard.containers.iter().map(|(path, exception)| (path.clone(), exception.clone())));
            all.overflow.extend(shard.overflow.iter().map(|(name, share)| (name.clone(), *share)));
        }
        all
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn splitting_and_joining_gives_the_same() {
        let mut all = Exceptions { generation: 7, epoch: 3, ..Exceptions::none() };
        for index in 0..200_u32 {
            let exception = Exception { spread: index + 1, planned: vec!["a".parse().unwrap()], ..Exception::default() };
            all.containers.insert(format!("t{index}/main"), exception);
        }
        all.overflow.insert("b".parse().unwrap(), 250);
        let shards: Vec<_> = all.split().into_values().map(|s| Exceptions::decode(&s.encode()).unwrap()).collect();
        assert_eq!(shards.len(), SHARDS as usize);
        assert_eq!(Exceptions::join(&shards), all);
    }

    #[test]
    fn bad_entries_are_left_out_and_other_versions_refused() {
        let text = br#"{"schema":1,"generation":1,"epoch":1,"containers":{"no path":{"spread":1},"a/b":{"spread":2},"c/d":{"spread":0}},"overflow":{"n":1001,"m":5}}"#;
        let shard = Exceptions::decode(text).unwrap();
        assert_eq!(shard.containers.keys().collect::<Vec<_>>(), ["a/b"]);
        assert_eq!(shard.overflow.len(), 1);
        assert!(matches!(Exceptions::decode(br#"{"schema":2,"what":[]}"#), Err(RecordError::Schema { found: 2 })));
        assert!(matches!(Exceptions::decode(b"\x00\xff"), Err(RecordError::Json(_))));
    }
}
