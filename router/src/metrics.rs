//! What a router counts. Labels come from closed sets, so that neither tenants nor nodes can make the metrics grow.

use crate::fleet::Why;
use hearth_model::Fault;
use prometheus_client::{
    encoding::EncodeLabelSet,
    metrics::{counter::Counter, family::Family, histogram::Histogram},
    registry::Registry,
};
use std::time::Duration;

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Outcome {
    outcome: &'static str,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Reason {
    reason: &'static str,
}

/// Seconds: from a tenth of a millisecond to a minute.
const BUCKETS: [f64; 16] = [0.0001, 0.00025, 0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 10.0, 60.0];

/// The counters.
#[derive(Debug)]
pub(crate) struct Metrics {
    passed: Counter,
    client: Counter,
    tenant: Counter,
    platform: Counter,
    /// From a request's head to its answer's head.
    hop: Histogram,
    /// Answers that came over a link.
    pub linked: Counter,
    pub retries: Counter,
    /// Retries that were right but not in the budget.
    pub budget_spent: Counter,
    pub shed: Counter,
    refused: Counter,
    silent: Counter,
    pub readmissions: Counter,
}

impl Metrics {
    pub fn register(registry: &mut Registry) -> Self {
        let requests = Family::<Outcome, Counter>::default();
        registry.register(
            "requests",
            "Requests: passed on and answered by a node, or whose fault the router's own answer is",
            requests.clone(),
        );
        let hop = Histogram::new(BUCKETS);
        registry.register(
            "hop_duration_seconds",
            "From a request's head to its answer's head, the node's time included",
            hop.clone(),
        );
        let ejections = Family::<Reason, Counter>::default();
        registry.register("ejections", "Nodes taken out, by reason", ejections.clone());
        let plain = |registry: &mut Registry, name: &str, help: &str| {
            let counter = Counter::default();
            registry.register(name, help, counter.clone());
            counter
        };
        Self {
            passed: requests.get_or_create_owned(&Outcome { outcome: "passed" }),
            client: requests.get_or_create_owned(&Outcome { outcome: "client" }),
            tenant: requests.get_or_create_owned(&Outcome { outcome: "tenant" }),
            platform: requests.get_or_create_owned(&Outcome { outcome: "platform" }),
            hop,
            linked: plain(registry, "linked", "Requests answered by a node over a link"),
            retries: plain(registry, "retries", "Requests sent again"),
            budget_spent: plain(registry, "retries_over_budget", "Requests not sent again because the budget was spent"),
            shed: plain(registry, "shed", "Requests refused because too many were in flight"),
            refused: ejections.get_or_create_owned(&Reason { reason: "refused" }),
            silent: ejections.get_or_create_owned(&Reason { reason: "silent" }),
            readmissions: plain(registry, "readmissions", "Nodes taken back in"),
        }
    }

    pub fn passed(&self, duration: Duration) {
        self.passed.inc();
        self.hop.observe(duration.as_secs_f64());
    }

    pub fn failed(&self, fault: Fault) {
        match fault {
            Fault::Client => &self.client,
            Fault::Tenant => &self.tenant,
            Fault::Platform => &self.platform,
        }
        .inc();
    }

    pub fn ejected(&self, why: Why) {
        match why {
            Why::Refused => &self.refused,
            Why::Silent => &self.silent,
        }
        .inc();
    }
}
