//! Counts and durations of requests. Labels come from closed sets, so that no tenant can make the metrics grow.

use crate::handler::Start;
use hearth_model::Fault;
use prometheus_client::{
    encoding::EncodeLabelSet,
    metrics::{counter::Counter, family::Family, gauge::Gauge, histogram::Histogram},
    registry::Registry,
};
use std::time::Duration;

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Outcome {
    outcome: &'static str,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Phase {
    phase: &'static str,
}

/// What the proxy counts.
#[derive(Debug)]
pub struct Metrics {
    ok: Counter,
    client: Counter,
    tenant: Counter,
    platform: Counter,
    warm: Histogram,
    cold: Histogram,
    claim: Histogram,
    modules: Histogram,
    load: Histogram,
    /// Requests in flight.
    pub in_flight: Gauge,
    /// Requests that had to be sent to another container because the first was gone before anything was sent.
    pub resent: Counter,
}

/// Seconds: from a tenth of a millisecond to a minute.
const BUCKETS: [f64; 18] =
    [0.0001, 0.00025, 0.0005, 0.001, 0.0025, 0.005, 0.01, 0.015, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 10.0, 30.0, 60.0];

impl Metrics {
    /// Registers everything below `hearth_`.
    pub fn register(registry: &mut Registry) -> Self {
        let requests = Family::<Outcome, Counter>::default();
        registry.register("requests", "Invocations by outcome: ok, or whose fault", requests.clone());
        let start = Family::<Phase, Histogram>::new_with_constructor(|| Histogram::new(BUCKETS));
        registry.register("request_duration_seconds", "From the request's head to the answer's head", start.clone());
        let phases = Family::<Phase, Histogram>::new_with_constructor(|| Histogram::new(BUCKETS));
        registry.register("cold_phase_seconds", "What a cold start consists of", phases.clone());
        let (in_flight, resent) = (Gauge::default(), Counter::default());
        registry.register("requests_in_flight", "Invocations that are being answered", in_flight.clone());
        registry.register("requests_resent", "Invocations sent again, nothing of them having reached a function", resent.clone());
        let outcome = |outcome| requests.get_or_create_owned(&Outcome { outcome });
        let duration = |phase| start.get_or_create_owned(&Phase { phase });
        let phase = |phase| phases.get_or_create_owned(&Phase { phase });
        Self {
            ok: outcome("ok"),
            client: outcome("client"),
            tenant: outcome("tenant"),
            platform: outcome("platform"),
            warm: duration("warm"),
            cold: duration("cold"),
            claim: phase("claim"),
            modules: phase("modules"),
            load: phase("load"),
            in_flight,
            resent,
        }
    }

    pub(super) fn answered(&self, fault: Option<Fault>) {
        match fault {
            None => &self.ok,
            Some(Fault::Client) => &self.client,
            Some(Fault::Tenant) => &self.tenant,
            Some(Fault::Platform) => &self.platform,
        }
        .inc();
    }

    pub(super) fn started(&self, start: Start, duration: Duration) {
        match start {
            Start::Warm => &self.warm,
            Start::Cold => &self.cold,
        }
        .observe(duration.as_secs_f64());
    }

    pub(super) fn cold_phases(&self, claim_ms: f32, modules_ms: f32, load_ms: f32) {
        for (histogram, ms) in [(&self.claim, claim_ms), (&self.modules, modules_ms), (&self.load, load_ms)] {
            histogram.observe(f64::from(ms) / 1_000.0);
        }
    }
}
