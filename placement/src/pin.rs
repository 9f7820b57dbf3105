//! An operator's word on where a container runs: pins lie among the planner's exceptions, which keeps them whatever the load is.

use crate::{
    coordinator::{Coordinator, CoordinatorError, KeyValue, Precondition},
    exception::{Exception, Exceptions, SHARD_BYTES_MAX, shard_of},
    record::{NodeName, RecordError},
};
use hearth_model::ContainerPath;

/// So often a pin is tried again when the planner writes at the same time.
const TRIES_MAX: u32 = 5;
/// More nodes than this no container is pinned to.
pub const PINNED_MAX: usize = 64;

/// Why a container was not pinned.
#[derive(Debug, thiserror::Error)]
pub enum PinError {
    /// There is no node of that name.
    #[error("there is no node {name}; there are {known}")]
    UnknownNode {
        /// The name.
        name: NodeName,
        /// Those that are registered.
        known: String,
    },
    /// Named twice, or too many.
    #[error("{0}")]
    Nodes(String),
    /// The exceptions that lie there are not ours to write.
    #[error("{key} cannot be read, and is left as it is: {source}")]
    Record {
        /// The key.
        key: String,
        /// Why.
        source: RecordError,
    },
    /// The key is full.
    #[error("{key} has no room for one more exception")]
    Full {
        /// The key.
        key: String,
    },
    /// The coordinator did not take it.
    #[error(transparent)]
    Coordinator(#[from] CoordinatorError),
}

/// Pins a container to nodes, the first first; an earlier pin is replaced.
///
/// # Errors
/// [`PinError`]; nothing was changed then.
pub async fn pin(coordinator: &dyn Coordinator, prefix: &str, path: &ContainerPath, nodes: &[NodeName]) -> Result<(), PinError> {
    if nodes.is_empty() || nodes.len() > PINNED_MAX {
        return Err(PinError::Nodes(format!("a container is pinned to 1 to {PINNED_MAX} nodes")));
    }
    if let Some(twice) = nodes.iter().enumerate().find(|(at, name)| nodes[..*at].contains(name)) {
        return Err(PinError::Nodes(format!("{} is named twice", twice.1)));
    }
    let root = format!("{prefix}/nodes/");
    let listing = coordinator.list(&root).await?;
    let known: Vec<&str> = listing.items.iter().filter_map(|item| item.key.strip_prefix(&root)).collect();
    if let Some(name) = nodes.iter().find(|name| !known.contains(&name.as_str())) {
        return Err(PinError::UnknownNode { name: name.clone(), known: known.join(", ") });
    }
    change(coordinator, prefix, path, |exceptions| {
        let exception =
            exceptions.containers.entry(path.to_string()).or_insert_with(|| Exception { spread: 1, ..Exception::default() });
        exception.pinned = nodes.to_vec();
        exception.planned.retain(|name| !nodes.contains(name));
        // A hot container keeps the nodes that its load needs.
        exception.spread = exception.spread.max(u32::try_from(nodes.len()).unwrap_or(u32::MAX));
        true
    })
    .await
    .map(drop)
}

/// Takes a pin away. Where the container then runs is the ring's and the planner's to say. False when it was not pinned.
///
/// # Errors
/// [`PinError`]; nothing was changed then.
pub async fn unpin(coordinator: &dyn Coordinator, prefix: &str, path: &ContainerPath) -> Result<bool, PinError> {
    change(coordinator, prefix, path, |exceptions| {
        let path = path.to_string();
        let was_pinned = exceptions.containers.get(&path).is_some_and(|exception| !exception.pinned.is_empty());
        if was_pinned {
            exceptions.containers.remove(&path);
        }
        was_pinned
    })
    .await
}

/// Changes the exceptions of one container's key, under the condition that nobody else has.
async fn change(
    coordinator: &dyn Coordinator,
    prefix: &str,
    path: &ContainerPath,
    edit: impl Fn(&mut Exceptions) -> bool,
) -> Result<bool, PinError> {
    let number = shard_of(&path.to_string()).unwrap_or_default();
    let key = format!("{prefix}/plan/{number:02x}");
    let mut tried = 0;
    loop {
        let listing = coordinator.list(&format!("{prefix}/plan/")).await?;
        let read =
            |item: &KeyValue| Exceptions::decode(&item.value).map_err(|source| PinError::Record { key: item.key.clone(), source });
        let found = listing.items.iter().find(|item| item.key == key);
        let mut shard = found.map(read).transpose()?.unwrap_or_else(Exceptions::none);
        if !edit(&mut shard) {
            return Ok(false);
        }
        // Of all shards the highest generation counts, so that a plan made before this one is seen to be older.
        let latest = listing.items.iter().filter_map(|item| Exceptions::decode(&item.value).ok());
        let (generation, epoch) = latest.fold((0, 0), |(g, e), shard| (g.max(shard.generation), e.max(shard.epoch)));
        (shard.generation, shard.epoch) = (generation + 1, epoch);
        let value = shard.encode();
        if value.len() > SHARD_BYTES_MAX {
            return Err(PinError::Full { key });
        }
        let precondition = found.map_or(Precondition::Absent, |item| Precondition::ModRevision(item.mod_revision));
        tried += 1;
        match coordinator.put(&key, value, precondition, None).await {
            Ok(_) => return Ok(true),
            Err(CoordinatorError::Conflict { .. }) if tried < TRIES_MAX => {}
            Err(error) => return Err(error.into()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::coordinator::local::LocalCoordinator;

    async fn shard(store: &LocalCoordinator, path: &ContainerPath) -> Exceptions {
        let number = shard_of(&path.to_string()).unwrap();
        let item = store.get(&format!("/x/plan/{number:02x}")).await.unwrap();
        item.map_or_else(Exceptions::none, |item| Exceptions::decode(&item.value).unwrap())
    }

    #[tokio::test]
    async fn pins_are_written_replaced_and_taken_away_and_nothing_else_changes() {
        let store = LocalCoordinator::new();
        let name = |text: &str| text.parse::<NodeName>().unwrap();
        for node in ["a", "b"] {
            store.put(&format!("/x/nodes/{node}"), vec![], Precondition::Absent, None).await.unwrap();
        }
        let (path, other): (ContainerPath, ContainerPath) = ("acme/main".parse().unwrap(), "acme/other".parse().unwrap());
        assert!(matches!(pin(&store, "/x", &path, &[name("c")]).await, Err(PinError::UnknownNode { .. })));
        assert!(matches!(pin(&store, "/x", &path, &[name("a"), name("a")]).await, Err(PinError::Nodes(_))));
        assert!(!unpin(&store, "/x", &path).await.unwrap());

        pin(&store, "/x", &other, &[name("a")]).await.unwrap();
        pin(&store, "/x", &path, &[name("b"), name("a")]).await.unwrap();
        let found = shard(&store, &path).await;
        assert_eq!(found.containers["acme/main"].pinned, [name("b"), name("a")]);
        assert_eq!((found.containers["acme/main"].spread, found.generation), (2, 2));
        pin(&store, "/x", &path, &[name("b")]).await.unwrap();
        assert!(unpin(&store, "/x", &path).await.unwrap());
        assert!(!shard(&store, &path).await.containers.contains_key("acme/main"));
        assert_eq!(shard(&store, &other).await.containers["acme/other"].pinned, [name("a")]);
    }

    #[tokio::test]
    async fn what_is_not_ours_is_left_as_it_is() {
        let store = LocalCoordinator::new();
        store.put("/x/nodes/a", vec![], Precondition::Absent, None).await.unwrap();
        let path: ContainerPath = "acme/main".parse().unwrap();
        let key = format!("/x/plan/{:02x}", shard_of("acme/main").unwrap());
        store.put(&key, br#"{"schema":99}"#.to_vec(), Precondition::Absent, None).await.unwrap();
        let error = pin(&store, "/x", &path, &["a".parse().unwrap()]).await.unwrap_err();
        assert!(matches!(error, PinError::Record { .. }), "{error}");
        assert_eq!(store.get(&key).await.unwrap().unwrap().value, br#"{"schema":99}"#);
    }
}
