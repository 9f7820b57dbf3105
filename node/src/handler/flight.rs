//! One flight per key: the first who asks starts the work, all who ask meanwhile wait for its result, and the number of those who wait
//! is bounded. The work runs in a task of its own, so that it goes on when the first who asked goes away.

use super::AcquireError;
use parking_lot::Mutex;
use std::{
    collections::HashMap,
    future::Future,
    hash::Hash,
    sync::{
        Arc,
        atomic::{AtomicU32, Ordering::Relaxed},
    },
    time::Duration,
};
use tokio::sync::watch;
use tokio_util::task::TaskTracker;

type Outcome<T> = Option<Result<T, AcquireError>>;

struct Flight<T> {
    outcome: watch::Receiver<Outcome<T>>,
    waiting: AtomicU32,
}

/// Work under way, by key.
pub(super) struct Flights<K, T> {
    flights: Arc<Mutex<HashMap<K, Arc<Flight<T>>>>>,
}

impl<K, T> Default for Flights<K, T> {
    fn default() -> Self {
        Self { flights: Arc::default() }
    }
}

struct Waiting<'a>(&'a AtomicU32);

impl Drop for Waiting<'_> {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Relaxed);
    }
}

impl<K: Eq + Hash + Clone + Send + 'static, T: Clone + Send + Sync + 'static> Flights<K, T> {
    /// Joins the flight of `key`, or starts it with `work` on `runtime`.
    pub async fn join<F>(
        &self,
        key: &K,
        waiting_max: u32,
        timeout: Duration,
        (tasks, runtime): (&TaskTracker, &tokio::runtime::Handle),
        work: impl FnOnce() -> F,
    ) -> Result<T, AcquireError>
    where
        F: Future<Output = Result<T, AcquireError>> + Send + 'static,
    {
        let flight = {
            let mut flights = self.flights.lock();
            match flights.get(key) {
                Some(flight) => Arc::clone(flight),
                None => {
                    let (sender, outcome) = watch::channel(None);
                    let flight = Arc::new(Flight { outcome, waiting: AtomicU32::new(0) });
                    flights.insert(key.clone(), Arc::clone(&flight));
                    let (work, key, flights) = (work(), key.clone(), Arc::clone(&self.flights));
                    tasks.spawn_on(
                        async move {
                            // Dropped also when the work panics: those who wait see the channel close.
                            let _landed = Landed { flights, key };
                            let outcome = work.await;
                            let _ = sender.send(Some(outcome));
                        },
                        runtime,
                    );
                    flight
                }
            }
        };
        let waiting = flight.waiting.fetch_add(1, Relaxed);
        let _waiting = Waiting(&flight.waiting);
        if waiting >= waiting_max {
            return Err(AcquireError::QueueFull { waiting });
        }
        let mut outcome = flight.outcome.clone();
        let landed = tokio::time::timeout(timeout, outcome.wait_for(Option::is_some)).await;
        match landed {
            Ok(Ok(outcome)) => outcome.clone().unwrap_or(Err(AcquireError::Draining)),
            Ok(Err(_closed)) => {
                Err(AcquireError::NoCapacity { detail: "the work for this container ended without a result".into() })
            }
            Err(_elapsed) => Err(AcquireError::NoCapacity { detail: format!("nothing within {timeout:?}") }),
        }
    }

    /// Whether no work is under way.
    pub fn is_empty(&self) -> bool {
        self.flights.lock().is_empty()
    }

    /// Requests that wait.
    pub fn waiting(&self) -> u64 {
        self.flights.lock().values().map(|f| u64::from(f.waiting.load(Relaxed))).sum()
    }
}

struct Landed<K: Eq + Hash, T> {
    flights: Arc<Mutex<HashMap<K, Arc<Flight<T>>>>>,
    key: K,
}

impl<K: Eq + Hash, T> Drop for Landed<K, T> {
    fn drop(&mut self) {
        self.flights.lock().remove(&self.key);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::atomic::AtomicUsize;

    #[tokio::test(start_paused = true)]
    async fn a_thousand_wait_for_one_and_the_bound_holds() {
        let flights = Arc::new(Flights::<u8, u32>::default());
        let (tasks, runs) = (TaskTracker::new(), Arc::new(AtomicUsize::new(0)));
        let runtime = tokio::runtime::Handle::current();
        let mut joined = tokio::task::JoinSet::new();
        for _ in 0..1_001 {
            let (flights, tasks, runs, runtime) = (Arc::clone(&flights), tasks.clone(), Arc::clone(&runs), runtime.clone());
            joined.spawn(async move {
                flights
                    .join(&1, 1_000, Duration::from_secs(5), (&tasks, &runtime), || async move {
                        runs.fetch_add(1, Relaxed);
                        tokio::time::sleep(Duration::from_millis(100)).await;
                        Ok(7)
                    })
                    .await
            });
        }
        let outcomes = joined.join_all().await;
        assert_eq!(runs.load(Relaxed), 1);
        assert_eq!(outcomes.iter().filter(|o| matches!(o, Ok(7))).count(), 1_000);
        assert_eq!(outcomes.iter().filter(|o| matches!(o, Err(AcquireError::QueueFull { waiting: 1_000 }))).count(), 1);
        assert_eq!(flights.waiting(), 0);
    }

    #[tokio::test(start_paused = true)]
    async fn a_flight_that_fails_is_over_and_the_next_starts_anew() {
        let flights = Flights::<u8, u32>::default();
        let (tasks, runtime) = (TaskTracker::new(), tokio::runtime::Handle::current());
        let wait = Duration::from_secs(1);
        let failed = flights.join(&1, 10, wait, (&tasks, &runtime), || async { Err(AcquireError::Draining) }).await;
        assert!(matches!(failed, Err(AcquireError::Draining)));
        tokio::task::yield_now().await;
        assert_eq!(flights.join(&1, 10, wait, (&tasks, &runtime), || async { Ok(3) }).await.unwrap(), 3);
        let late = flights
            .join(&2, 10, wait, (&tasks, &runtime), || async {
                tokio::time::sleep(Duration::from_secs(9)).await;
                Ok(1)
            })
            .await;
        assert!(matches!(late, Err(AcquireError::NoCapacity { .. })));
    }
}
