//! What each tenant has used on this node since the process started, for `GET /v1/tenants/{t}/usage`: counters that cost an atomic
//! addition. It keeps nothing durably and bills nobody; a tenant that nobody called takes no memory.

use hearth_model::{Fault, TenantName};
use parking_lot::Mutex;
use serde::Serialize;
use std::{
    collections::HashMap,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
    time::{Instant, SystemTime, UNIX_EPOCH},
};

/// Tenants whose use is kept; beyond it those that nothing refers to are forgotten.
const TENANTS_MAX: usize = 100_000;
const HOUR_S: u64 = 3_600;

/// One tenant's use.
#[derive(Debug, Default)]
pub struct Usage {
    /// Requests that were admitted.
    pub requests: AtomicU64,
    /// Requests over its rate or concurrency.
    pub refused: AtomicU64,
    /// Requests that its code failed.
    pub faults_tenant: AtomicU64,
    /// Requests that the platform failed.
    pub faults_platform: AtomicU64,
    /// CPU time of its containers.
    pub cpu_us: AtomicU64,
    /// Bytes that its containers sent into the network.
    pub sent_bytes: AtomicU64,
    /// Bytes that they received.
    pub received_bytes: AtomicU64,
    /// Connections that they opened.
    pub connections: AtomicU64,
    /// Bytes of output that were kept.
    pub log_bytes: AtomicU64,
    /// Lines of output that were dropped, being too many.
    pub log_lines_dropped: AtomicU64,
    /// Builds that it asked for and nobody had asked for before.
    pub builds: AtomicU64,
    /// Hour and count, for the quota of builds.
    builds_in_hour: Mutex<(u64, u32)>,
}

/// A tenant's use as it is shown.
#[derive(Debug, Serialize, utoipa::ToSchema)]
pub struct UsageView {
    /// Seconds that these figures cover: since this node's process started.
    pub period_s: u64,
    /// Requests that were admitted.
    pub requests: u64,
    /// Requests that were refused with 429.
    pub refused: u64,
    /// Requests that the tenant's code failed.
    pub faults_tenant: u64,
    /// Requests that the platform failed.
    pub faults_platform: u64,
    /// CPU time of its containers, in milliseconds.
    pub cpu_ms: u64,
    /// Bytes that its containers sent.
    pub sent_bytes: u64,
    /// Bytes that its containers received.
    pub received_bytes: u64,
    /// Connections that its containers opened.
    pub connections: u64,
    /// Bytes of output.
    pub log_bytes: u64,
    /// Lines of output that were dropped.
    pub log_lines_dropped: u64,
    /// Builds of modules that it was the first to ask for.
    pub builds: u64,
}

impl Usage {
    /// Notes how a request ended.
    pub fn failed(&self, fault: Fault) {
        match fault {
            Fault::Client => {}
            Fault::Tenant => drop(self.faults_tenant.fetch_add(1, Relaxed)),
            Fault::Platform => drop(self.faults_platform.fetch_add(1, Relaxed)),
        }
    }

    /// Whether the hour's quota of builds has room.
    pub fn may_build(&self, per_hour: u32) -> bool {
        self.may_build_at(per_hour, hour_now())
    }

    fn may_build_at(&self, per_hour: u32, hour: u64) -> bool {
        let count = self.builds_in_hour.lock();
        count.0 != hour || count.1 < per_hour
    }

    /// Counts one build against the hour's quota.
    pub fn note_build(&self) {
        self.note_build_at(hour_now());
    }

    fn note_build_at(&self, hour: u64) {
        let mut count = self.builds_in_hour.lock();
        if count.0 != hour {
            *count = (hour, 0);
        }
        count.1 += 1;
        self.builds.fetch_add(1, Relaxed);
    }

    fn view(&self, period_s: u64) -> UsageView {
        let read = |counter: &AtomicU64| counter.load(Relaxed);
        UsageView {
            period_s,
            requests: read(&self.requests),
            refused: read(&self.refused),
            faults_tenant: read(&self.faults_tenant),
            faults_platform: read(&self.faults_platform),
            cpu_ms: read(&self.cpu_us) / 1_000,
            sent_bytes: read(&self.sent_bytes),
            received_bytes: read(&self.received_bytes),
            connections: read(&self.connections),
            log_bytes: read(&self.log_bytes),
            log_lines_dropped: read(&self.log_lines_dropped),
            builds: read(&self.builds),
        }
    }
}

fn hour_now() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |d| d.as_secs()) / HOUR_S
}

/// The use of all tenants.
#[derive(Debug)]
pub struct UsageBook {
    tenants: Mutex<HashMap<TenantName, Arc<Usage>>>,
    started: Instant,
}

impl Default for UsageBook {
    fn default() -> Self {
        Self { tenants: Mutex::default(), started: Instant::now() }
    }
}

impl UsageBook {
    /// The tenant's counters.
    #[must_use]
    pub fn of(&self, tenant: &TenantName) -> Arc<Usage> {
        let mut tenants = self.tenants.lock();
        if let Some(usage) = tenants.get(tenant) {
            return Arc::clone(usage);
        }
        if tenants.len() >= TENANTS_MAX {
            tenants.retain(|_, usage| Arc::strong_count(usage) > 1);
        }
        let usage = Arc::<Usage>::default();
        // Where even those in use fill the book, a tenant's use is counted for as long as something refers to it.
        if tenants.len() < TENANTS_MAX {
            tenants.insert(tenant.clone(), Arc::clone(&usage));
        }
        usage
    }

    /// The tenant's figures; zeros for one that nobody has called.
    #[must_use]
    pub fn view(&self, tenant: &TenantName) -> UsageView {
        let usage = self.tenants.lock().get(tenant).cloned().unwrap_or_default();
        usage.view(self.started.elapsed().as_secs())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn builds_per_hour_at_the_bound_and_one_past_it() {
        let usage = Usage::default();
        for hour in [7, 7, 8] {
            assert!(usage.may_build_at(2, hour), "hour {hour}");
            usage.note_build_at(hour);
            assert_eq!(usage.may_build_at(2, 7), usage.builds.load(Relaxed) != 2, "two an hour");
        }
        assert_eq!(usage.view(1).builds, 3);
    }

    #[test]
    fn a_tenants_counters_are_one_and_those_of_nobody_are_zero() {
        let book = UsageBook::default();
        let acme: TenantName = "acme".parse().unwrap();
        book.of(&acme).requests.fetch_add(2, Relaxed);
        book.of(&acme).failed(Fault::Tenant);
        let view = book.view(&acme);
        assert_eq!((view.requests, view.faults_tenant), (2, 1));
        assert_eq!(book.view(&"other".parse().unwrap()).requests, 0);
        assert_eq!(book.tenants.lock().len(), 1, "looking makes no entry");
    }
}
