//! Admission per tenant: how many requests at once, how many per second, and how fast their answers. One gate per tenant and node, kept alive by the
//! cached records of the tenant's functions, so that a tenant nobody calls costs nothing.

use super::pause::Line;
use crate::{
    uploads::{Full, UploadPlace, Uploads},
    usage::{Usage, UsageBook},
};
use hearth_model::{TenantLimits, TenantName};
use parking_lot::Mutex;
use std::{
    collections::HashMap,
    sync::{
        Arc, Weak,
        atomic::{AtomicU32, AtomicU64, Ordering::Relaxed},
    },
    time::{Duration, Instant},
};

/// Bytes of a tenant's answers that are not slowed when none has come for a while.
const ANSWER_BURST_BYTES: u64 = 16 * 1024 * 1024;
/// How long an answer waits at most: what was sent beyond that is forgiven, since places are held meanwhile.
const ANSWER_WAIT_MAX: Duration = Duration::from_secs(5);

/// Why a request was not admitted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Refused {
    /// Too many at once.
    Concurrency {
        /// The limit.
        limit: u32,
    },
    /// Too many per second.
    Rate {
        /// The limit.
        limit_per_s: u32,
    },
}

/// One tenant's admission on this node.
#[derive(Debug)]
pub struct Gate {
    in_flight: AtomicU32,
    concurrency: AtomicU32,
    rate_per_s: AtomicU32,
    burst: AtomicU32,
    /// The generic cell rate algorithm's theoretical arrival time, in nanoseconds after `start` (ITU-T I.371).
    arrival_ns: AtomicU64,
    answer_bytes_per_s: AtomicU64,
    /// The same of the answers' bytes.
    answered_ns: AtomicU64,
    refusals: Line,
    start: Instant,
    usage: Arc<Usage>,
    uploads: Arc<Uploads>,
}

impl Gate {
    /// A gate with these limits and nothing in flight.
    #[must_use]
    pub fn new(limits: &TenantLimits, usage: Arc<Usage>) -> Self {
        let gate = Self {
            in_flight: AtomicU32::new(0),
            concurrency: AtomicU32::new(0),
            rate_per_s: AtomicU32::new(0),
            burst: AtomicU32::new(0),
            arrival_ns: AtomicU64::new(0),
            answer_bytes_per_s: AtomicU64::new(0),
            answered_ns: AtomicU64::new(0),
            refusals: Line::default(),
            start: Instant::now(),
            usage,
            uploads: Arc::default(),
        };
        gate.set(limits);
        gate
    }

    fn set(&self, limits: &TenantLimits) {
        self.concurrency.store(limits.concurrency, Relaxed);
        self.rate_per_s.store(limits.rate_per_s.max(1), Relaxed);
        self.burst.store(limits.burst.max(1), Relaxed);
        self.answer_bytes_per_s.store(u64::from(limits.answer_mb_per_s.max(1)) * 1024 * 1024, Relaxed);
    }

    /// Requests in flight.
    #[must_use]
    pub fn in_flight(&self) -> u32 {
        self.in_flight.load(Relaxed)
    }

    /// The tenant's counters.
    #[must_use]
    pub fn usage(&self) -> &Usage {
        &self.usage
    }

    /// Admits one request, until the permit is dropped. The tenant's limits are divided by `spread`, the number of nodes that its
    /// container runs on; rounded up, since a limit of one must not become none.
    ///
    /// # Errors
    /// [`Refused`] when a limit is reached; nothing is counted then.
    pub fn admit(self: &Arc<Self>, spread: u32) -> Result<Permit, Refused> {
        let admitted = self.admit_at(self.now_ns(), spread);
        let counter = if admitted.is_ok() { &self.usage.requests } else { &self.usage.refused };
        counter.fetch_add(1, Relaxed);
        admitted
    }

    /// Lets the body of an admitted request come, until what is returned is dropped; `spread` as above.
    ///
    /// # Errors
    /// [`Full`] while half of the tenant's places are held by such.
    pub fn admit_upload(&self, spread: u32) -> Result<UploadPlace, Full> {
        let admitted = self.uploads.take(share(self.concurrency.load(Relaxed), spread));
        if admitted.is_err() {
            self.usage.refused.fetch_add(1, Relaxed);
        }
        admitted
    }

    /// Takes a place in the line of the tenant's refusals; returns how long to wait for its turn.
    pub(super) fn take_refusal_turn(&self) -> Duration {
        self.refusals.take_at(self.now_ns())
    }

    fn now_ns(&self) -> u64 {
        u64::try_from(self.start.elapsed().as_nanos()).unwrap_or(u64::MAX)
    }

    /// How long an answer that has just sent so many bytes must wait with the next ones; one that begins has sent none. Nothing is refused:
    /// what is over the rate has been sent, and makes all of the tenant's answers wait.
    fn answered_at(&self, now_ns: u64, bytes: usize, spread: u32) -> Option<Duration> {
        let rate = self.answer_bytes_per_s.load(Relaxed).div_ceil(u64::from(spread.max(1)));
        let ns = |bytes: u64| bytes.saturating_mul(1_000_000_000) / rate;
        let (taken_ns, burst_ns) = (ns(bytes as u64), ns(ANSWER_BURST_BYTES));
        let latest_ns = now_ns.saturating_add(burst_ns).saturating_add(ANSWER_WAIT_MAX.as_nanos() as u64);
        let after = |at: u64| at.max(now_ns).saturating_add(taken_ns).min(latest_ns);
        let before_ns = self.answered_ns.fetch_update(Relaxed, Relaxed, |at| Some(after(at))).unwrap_or_default();
        (after(before_ns) - now_ns).checked_sub(burst_ns).filter(|wait| *wait > 0).map(Duration::from_nanos)
    }

    fn admit_at(self: &Arc<Self>, now_ns: u64, spread: u32) -> Result<Permit, Refused> {
        let limit = share(self.concurrency.load(Relaxed), spread);
        if self.in_flight.fetch_add(1, Relaxed) >= limit {
            self.in_flight.fetch_sub(1, Relaxed);
            return Err(Refused::Concurrency { limit });
        }
        let permit = Permit { gate: Arc::clone(self), spread };
        let rate = share(self.rate_per_s.load(Relaxed), spread);
        let increment_ns = 1_000_000_000 / u64::from(rate);
        let tolerance_ns = increment_ns * u64::from(share(self.burst.load(Relaxed), spread) - 1);
        let admitted = self.arrival_ns.fetch_update(Relaxed, Relaxed, |arrival_ns| {
            (arrival_ns <= now_ns.saturating_add(tolerance_ns)).then(|| arrival_ns.max(now_ns) + increment_ns)
        });
        match admitted {
            Ok(_) => Ok(permit),
            Err(_) => Err(Refused::Rate { limit_per_s: rate }),
        }
    }
}

/// One node's share of a limit, rounded up.
fn share(limit: u32, spread: u32) -> u32 {
    limit.div_ceil(spread.max(1))
}

/// One admitted request.
#[derive(Debug)]
pub struct Permit {
    gate: Arc<Gate>,
    spread: u32,
}

impl Permit {
    /// Counts bytes of the answer; returns how long it must wait with the next ones, so that the tenant's answers keep to their rate.
    pub(super) fn answered(&self, bytes: usize) -> Option<Duration> {
        self.gate.answered_at(self.gate.now_ns(), bytes, self.spread)
    }
}

impl Drop for Permit {
    fn drop(&mut self) {
        self.gate.in_flight.fetch_sub(1, Relaxed);
    }
}

/// The gates of all tenants that have a cached record.
#[derive(Debug, Default)]
pub struct Gates {
    by_tenant: Mutex<HashMap<TenantName, Weak<Gate>>>,
    usage: Arc<UsageBook>,
}

impl Gates {
    /// No gates yet; what they admit and refuse is counted in `usage`.
    #[must_use]
    pub fn new(usage: Arc<UsageBook>) -> Self {
        Self { by_tenant: Mutex::default(), usage }
    }

    /// The tenant's gate, with these limits from now on.
    #[must_use]
    pub fn gate(&self, tenant: &TenantName, limits: &TenantLimits) -> Arc<Gate> {
        let mut gates = self.by_tenant.lock();
        if let Some(gate) = gates.get(tenant).and_then(Weak::upgrade) {
            gate.set(limits);
            return gate;
        }
        // Gates that died are dropped when the table would otherwise grow, which keeps it within twice the live ones.
        if gates.len() == gates.capacity() {
            gates.retain(|_, gate| gate.strong_count() > 0);
        }
        let gate = Arc::new(Gate::new(limits, self.usage.of(tenant)));
        gates.insert(tenant.clone(), Arc::downgrade(&gate));
        gate
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn limits(concurrency: u32, rate_per_s: u32, burst: u32) -> TenantLimits {
        TenantLimits { concurrency, rate_per_s, burst, ..TenantLimits::default() }
    }

    #[test]
    fn concurrency_at_the_bound_and_one_past_it() {
        let gate = Arc::new(Gate::new(&limits(2, 1_000_000, 1_000_000), Arc::default()));
        let first = gate.admit(1).unwrap();
        let _second = gate.admit(1).unwrap();
        assert_eq!(gate.admit(1).unwrap_err(), Refused::Concurrency { limit: 2 });
        drop(first);
        assert!(gate.admit(1).is_ok());
    }

    #[test]
    fn bodies_that_are_coming_hold_half_of_the_places_at_most() {
        let gate = Arc::new(Gate::new(&limits(4, 1_000_000, 1_000_000), Arc::default()));
        let _first = gate.admit_upload(1).unwrap();
        let second = gate.admit_upload(1).unwrap();
        assert_eq!(gate.admit_upload(1).unwrap_err(), Full { limit: 2 });
        assert_eq!(gate.usage().refused.load(Relaxed), 1);
        drop(second);
        assert!(gate.admit_upload(1).is_ok());
    }

    #[test]
    fn the_rate_lets_a_burst_pass_and_then_its_average() {
        let gate = Arc::new(Gate::new(&limits(1_000, 10, 3), Arc::default()));
        for _ in 0..3 {
            assert!(gate.admit_at(0, 1).is_ok());
        }
        assert_eq!(gate.admit_at(0, 1).unwrap_err(), Refused::Rate { limit_per_s: 10 });
        assert!(gate.admit_at(99_000_000, 1).is_err());
        assert!(gate.admit_at(100_000_000, 1).is_ok());
        assert!(gate.admit_at(100_000_000, 1).is_err());
        assert_eq!(gate.in_flight(), 0, "refused and finished requests count no longer");
    }

    #[test]
    fn answers_pass_in_a_burst_and_then_at_their_rate_together() {
        let gate = Gate::new(&TenantLimits { answer_mb_per_s: 2, ..TenantLimits::default() }, Arc::default());
        let mb = 1024 * 1024;
        for _ in 0..16 {
            assert_eq!(gate.answered_at(0, mb, 1), None);
        }
        assert_eq!(gate.answered_at(0, mb, 1), Some(Duration::from_millis(500)));
        assert_eq!(gate.answered_at(0, mb, 1), Some(Duration::from_secs(1)), "another answer waits for the first, too");
        assert_eq!(gate.answered_at(1_000_000_000, 0, 1), None, "and then no longer");
        assert_eq!(gate.answered_at(1_000_000_000, mb, 1), Some(Duration::from_millis(500)));
        assert_eq!(gate.answered_at(100_000_000_000, 16 * mb, 1), None, "after a pause the burst is back");
        for _ in 0..100 {
            gate.answered_at(200_000_000_000, 16 * mb, 1);
        }
        assert_eq!(
            gate.answered_at(200_000_000_000, 0, 1),
            Some(ANSWER_WAIT_MAX),
            "one that begins waits, too, and never for longer"
        );
        let half = Gate::new(&TenantLimits { answer_mb_per_s: 2, ..TenantLimits::default() }, Arc::default());
        assert_eq!(half.answered_at(0, 17 * mb, 2), Some(Duration::from_secs(1)), "one of two nodes sends half of it");
    }

    #[test]
    fn a_node_admits_its_share_of_what_is_spread() {
        let gate = Arc::new(Gate::new(&limits(3, 1_000_000, 1_000_000), Arc::default()));
        let _permits = (gate.admit(2).unwrap(), gate.admit(2).unwrap());
        assert_eq!(gate.admit(2).unwrap_err(), Refused::Concurrency { limit: 2 });
        let gate = Arc::new(Gate::new(&limits(1_000, 1, 1), Arc::default()));
        assert!(gate.admit_at(0, 8).is_ok(), "a limit of one is not divided into none");
        assert!(gate.admit_at(0, 8).is_err());
    }

    #[test]
    fn gates_are_shared_by_a_tenant_and_die_with_their_users() {
        let gates = Gates::default();
        let tenant: TenantName = "acme".parse().unwrap();
        let a = gates.gate(&tenant, &limits(1, 1, 1));
        let b = gates.gate(&tenant, &limits(5, 1, 1));
        assert!(Arc::ptr_eq(&a, &b));
        drop((a, b));
        for n in 0..1_000 {
            drop(gates.gate(&format!("t{n}").parse().unwrap(), &limits(1, 1, 1)));
        }
        assert!(gates.by_tenant.lock().len() < 100);
    }
}
