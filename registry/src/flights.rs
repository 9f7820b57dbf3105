//! One piece of work for all who want its outcome at the same time. It goes on when the one that began it goes away.

use futures_util::{
    FutureExt,
    future::{BoxFuture, Shared},
};
use parking_lot::Mutex;
use std::{collections::HashMap, future::Future, hash::Hash};

type Flight<V> = Shared<BoxFuture<'static, Option<V>>>;

/// Work under way, by what it is about. As many entries as there are callers waiting, at most.
pub(crate) struct Flights<K, V> {
    open: Mutex<HashMap<K, Flight<V>>>,
}

impl<K, V> Default for Flights<K, V> {
    fn default() -> Self {
        Self { open: Mutex::default() }
    }
}

impl<K: Hash + Eq + Clone, V: Clone + Send + Sync + 'static> Flights<K, V> {
    /// The outcome of the work under `key`, which is begun when nobody has. `work` must have a deadline of its own.
    pub async fn join(&self, key: &K, work: impl Future<Output = V> + Send + 'static) -> Option<V> {
        let flight = self.begin(key, work);
        let outcome = flight.clone().await;
        let mut open = self.open.lock();
        // Only this one: another may have begun since.
        if open.get(key).is_some_and(|other| other.ptr_eq(&flight)) {
            open.remove(key);
        }
        outcome
    }

    fn begin(&self, key: &K, work: impl Future<Output = V> + Send + 'static) -> Flight<V> {
        let mut open = self.open.lock();
        if let Some(flight) = open.get(key)
            && flight.peek().is_none()
        {
            return flight.clone();
        }
        let task = tokio::spawn(work);
        let flight = async move { task.await.ok() }.boxed().shared();
        open.insert(key.clone(), flight.clone());
        flight
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::{
        Arc,
        atomic::{AtomicU32, Ordering::Relaxed},
    };

    #[tokio::test(start_paused = true)]
    async fn many_callers_make_one_flight_which_outlives_its_first() {
        let flights = Arc::new(Flights::<u8, u32>::default());
        let runs = Arc::new(AtomicU32::new(0));
        let work = |runs: Arc<AtomicU32>| async move {
            tokio::time::sleep(std::time::Duration::from_secs(1)).await;
            runs.fetch_add(1, Relaxed)
        };
        // The first goes away before the end.
        let first = tokio::time::timeout(std::time::Duration::from_millis(10), flights.join(&1, work(Arc::clone(&runs)))).await;
        assert!(first.is_err());
        let all = futures_util::future::join_all((0..100).map(|_| flights.join(&1, work(Arc::clone(&runs))))).await;
        assert!(all.iter().all(|o| *o == Some(0)));
        assert_eq!((runs.load(Relaxed), flights.open.lock().len()), (1, 0));
        assert_eq!(flights.join(&1, work(Arc::clone(&runs))).await, Some(1));
    }
}
