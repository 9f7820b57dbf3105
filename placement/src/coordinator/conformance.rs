//! The suite that every coordinator passes, as plain functions over the trait. Each takes an empty prefix of its own, so that
//! one etcd serves them all.

use super::{Batch, Coordinator, CoordinatorError, Event, Precondition, Watch, WatchError};
use std::{sync::Arc, time::Duration};
use tokio::time::{Instant, sleep, timeout};

/// Nothing here takes longer, on the slowest machine.
const PATIENCE: Duration = Duration::from_secs(30);

async fn next(watch: &mut Box<dyn Watch>) -> Result<Batch, WatchError> {
    timeout(PATIENCE, watch.next()).await.expect("a batch in time")
}

/// The next batch with changes.
async fn changes(watch: &mut Box<dyn Watch>) -> Vec<Event> {
    loop {
        let batch = next(watch).await.expect("a living watch");
        if !batch.events.is_empty() {
            return batch.events;
        }
    }
}

fn key(event: &Event) -> (&str, bool) {
    (event.key(), matches!(event, Event::Put(_)))
}

/// Writes happen only when their precondition holds.
pub async fn preconditions(c: Arc<dyn Coordinator>, prefix: &str) {
    let key = format!("{prefix}k");
    let conflict = |result: Result<i64, CoordinatorError>| matches!(result, Err(CoordinatorError::Conflict { .. }));
    assert_eq!(c.get(&key).await.unwrap(), None);
    assert!(conflict(c.put(&key, b"0".into(), Precondition::ModRevision(1), None).await));
    let first = c.put(&key, b"1".into(), Precondition::Absent, None).await.unwrap();
    assert!(conflict(c.put(&key, b"2".into(), Precondition::Absent, None).await));
    let second = c.put(&key, b"2".into(), Precondition::ModRevision(first), None).await.unwrap();
    assert!(second > first);
    assert!(conflict(c.put(&key, b"3".into(), Precondition::ModRevision(first), None).await));
    let item = c.get(&key).await.unwrap().unwrap();
    assert_eq!((item.value.as_slice(), item.mod_revision, item.create_revision), (&b"2"[..], second, first));
    assert!(matches!(c.delete(&key, Precondition::ModRevision(first)).await, Err(CoordinatorError::Conflict { .. })));
    c.delete(&key, Precondition::ModRevision(second)).await.unwrap();
    assert!(matches!(c.delete(&key, Precondition::ModRevision(second)).await, Err(CoordinatorError::Conflict { .. })));
    c.delete(&key, Precondition::Any).await.unwrap();
    assert_eq!(c.get(&key).await.unwrap(), None);
}

/// A listing holds exactly the prefix, sorted, at a revision no older than the last write, beyond one page.
pub async fn listing(c: Arc<dyn Coordinator>, prefix: &str) {
    let mut last = 0;
    for index in 0..1_100 {
        last = c.put(&format!("{prefix}in/{index:04}"), vec![1], Precondition::Any, None).await.unwrap();
    }
    for outside in ["in", "in0", "im/1"] {
        last = c.put(&format!("{prefix}{outside}"), vec![2], Precondition::Any, None).await.unwrap();
    }
    let found = c.list(&format!("{prefix}in/")).await.unwrap();
    assert!(found.revision >= last);
    assert_eq!(found.items.len(), 1_100);
    assert!(found.items.iter().enumerate().all(|(at, item)| item.key == format!("{prefix}in/{at:04}")));
}

/// A watch gives every change from its revision on, also those of before it began, in order, and nothing else.
pub async fn watching(c: Arc<dyn Coordinator>, prefix: &str) {
    let start = c.list(prefix).await.unwrap().revision;
    let a = format!("{prefix}w/a");
    c.put(&a, b"1".into(), Precondition::Any, None).await.unwrap();
    c.put(&format!("{prefix}x"), b"1".into(), Precondition::Any, None).await.unwrap();
    let mut watch = c.watch(&format!("{prefix}w/"), start + 1).await.unwrap();
    c.put(&a, b"2".into(), Precondition::Any, None).await.unwrap();
    c.delete(&a, Precondition::Any).await.unwrap();
    let mut seen = Vec::new();
    while seen.len() < 3 {
        seen.extend(changes(&mut watch).await);
    }
    assert_eq!(seen.iter().map(key).collect::<Vec<_>>(), [(a.as_str(), true), (a.as_str(), true), (a.as_str(), false)]);
    assert!(matches!(&seen[1], Event::Put(item) if item.value == b"2"));
}

/// Asked for progress, an idle watch says how far it is, though what changed is not its concern.
pub async fn progress(c: Arc<dyn Coordinator>, prefix: &str) {
    let start = c.list(prefix).await.unwrap().revision;
    let mut watch = c.watch(&format!("{prefix}w/"), start + 1).await.unwrap();
    let elsewhere = c.put(&format!("{prefix}x"), b"1".into(), Precondition::Any, None).await.unwrap();
    let until = Instant::now() + PATIENCE;
    loop {
        watch.request_progress().await.unwrap();
        // An answer may be of before the write reached the watcher; then it is asked again.
        if let Ok(batch) = timeout(Duration::from_millis(500), watch.next()).await {
            let batch = batch.unwrap();
            assert!(batch.events.is_empty());
            if batch.revision >= elsewhere {
                return;
            }
        }
        assert!(Instant::now() < until, "no progress in time");
    }
}

/// A watch that would begin before what is kept says so; a listing then is the way on.
pub async fn compaction(c: Arc<dyn Coordinator>, prefix: &str) {
    let key = format!("{prefix}w/a");
    let first = c.put(&key, b"1".into(), Precondition::Any, None).await.unwrap();
    c.put(&key, b"2".into(), Precondition::Any, None).await.unwrap();
    let last = c.put(&key, b"3".into(), Precondition::Any, None).await.unwrap();
    c.compact(last).await.unwrap();
    let mut watch = c.watch(&format!("{prefix}w/"), first).await.unwrap();
    assert!(matches!(next(&mut watch).await, Err(WatchError::Compacted { oldest }) if oldest > first));
    let listing = c.list(&format!("{prefix}w/")).await.unwrap();
    assert_eq!(listing.items[0].value, b"3");
    let mut watch = c.watch(&format!("{prefix}w/"), listing.revision + 1).await.unwrap();
    c.delete(&key, Precondition::Any).await.unwrap();
    assert_eq!(key_of(&changes(&mut watch).await), [(key.clone(), false)]);
}

fn key_of(events: &[Event]) -> Vec<(String, bool)> {
    events.iter().map(|event| (event.key().to_owned(), matches!(event, Event::Put(_)))).collect()
}

/// A key goes with its lease, and whoever watches sees it; a lease that is renewed lives.
pub async fn leases(c: Arc<dyn Coordinator>, prefix: &str) {
    let start = c.list(prefix).await.unwrap().revision;
    let mut watch = c.watch(&format!("{prefix}l/"), start + 1).await.unwrap();
    let (kept, left) = (c.grant(Duration::from_secs(2)).await.unwrap(), c.grant(Duration::from_secs(2)).await.unwrap());
    c.put(&format!("{prefix}l/kept"), vec![], Precondition::Absent, Some(kept)).await.unwrap();
    c.put(&format!("{prefix}l/left"), vec![], Precondition::Absent, Some(left)).await.unwrap();
    let gone = async {
        loop {
            let events = changes(&mut watch).await;
            if let Some(event) = events.iter().find(|event| matches!(event, Event::Delete { .. })) {
                return event.key().to_owned();
            }
        }
    };
    let renew = async {
        loop {
            assert!(c.keep_alive(kept).await.unwrap() > Duration::ZERO);
            sleep(Duration::from_millis(300)).await;
        }
    };
    let first_gone = tokio::select! { key = gone => key, () = renew => unreachable!("renews for ever") };
    assert_eq!(first_gone, format!("{prefix}l/left"));
    assert!(matches!(c.keep_alive(left).await, Err(CoordinatorError::LeaseGone)));
    let late = c.put(&format!("{prefix}l/late"), vec![], Precondition::Absent, Some(left)).await;
    assert!(matches!(late, Err(CoordinatorError::LeaseGone)), "{late:?}");
    assert!(c.get(&format!("{prefix}l/kept")).await.unwrap().is_some());
    c.revoke(kept).await.unwrap();
    c.revoke(kept).await.unwrap();
    assert_eq!(c.get(&format!("{prefix}l/kept")).await.unwrap(), None);
}

/// A key that was put again without a lease, or under another, does not go with the first.
pub async fn leases_changing_hands(c: Arc<dyn Coordinator>, prefix: &str) {
    let (first, second) = (c.grant(Duration::from_secs(60)).await.unwrap(), c.grant(Duration::from_secs(60)).await.unwrap());
    let key = format!("{prefix}k");
    c.put(&key, vec![], Precondition::Any, Some(first)).await.unwrap();
    c.put(&key, vec![], Precondition::Any, Some(second)).await.unwrap();
    c.revoke(first).await.unwrap();
    assert!(c.get(&key).await.unwrap().is_some());
    c.put(&key, vec![], Precondition::Any, None).await.unwrap();
    c.revoke(second).await.unwrap();
    assert!(c.get(&key).await.unwrap().is_some());
}

/// Of many that campaign at once one leads; when it resigns another can, with a later epoch.
pub async fn election(c: Arc<dyn Coordinator>, prefix: &str) {
    let (key, ttl) = (format!("{prefix}leader"), Duration::from_secs(10));
    let names: Vec<String> = (0..8).map(|index| format!("n{index}")).collect();
    let campaigns = names.iter().map(|name| crate::election::campaign(&c, &key, name, ttl));
    let elected = futures_util::future::join_all(campaigns).await;
    let mut leaders: Vec<_> = elected.into_iter().filter_map(|result| result.unwrap()).collect();
    assert_eq!(leaders.len(), 1);
    let first = leaders.remove(0);
    assert!(first.renew().await.unwrap());
    let epoch = first.epoch();
    first.resign().await.unwrap();
    let second = crate::election::campaign(&c, &key, "later", ttl).await.unwrap().unwrap();
    assert!(second.epoch() > epoch);
    c.delete(&key, Precondition::Any).await.unwrap();
    assert!(!second.renew().await.unwrap(), "a leader whose key is gone leads no more");
}

/// All of the above.
pub async fn all(c: Arc<dyn Coordinator>) {
    preconditions(c.clone(), "/suite/preconditions/").await;
    listing(c.clone(), "/suite/listing/").await;
    watching(c.clone(), "/suite/watching/").await;
    progress(c.clone(), "/suite/progress/").await;
    leases(c.clone(), "/suite/leases/").await;
    leases_changing_hands(c.clone(), "/suite/hands/").await;
    election(c.clone(), "/suite/election/").await;
    compaction(c, "/suite/compaction/").await;
}
