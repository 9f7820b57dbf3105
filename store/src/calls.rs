//! Calls to the shared backends as a metric, so that an operator sees throttling, repeats, and that warm requests make no calls at all.

use crate::aws::{CallCounts, CallStats};
use prometheus_client::{
    collector::Collector,
    encoding::{DescriptorEncoder, NoLabelSet},
    metrics::MetricType,
};
use std::sync::Arc;

/// Encodes the counts of one process at each scrape. Labels are the fixed names of services and calls.
#[derive(Debug)]
pub struct CallsMetric(pub Arc<CallStats>);

type Outcome = (&'static str, fn(&CallCounts) -> u64);

const OUTCOMES: [Outcome; 4] =
    [("sent", |c| c.sent), ("repeated", |c| c.repeated), ("throttled", |c| c.throttled), ("failed", |c| c.failed)];

impl Collector for CallsMetric {
    fn encode(&self, mut encoder: DescriptorEncoder) -> Result<(), std::fmt::Error> {
        let help = "Calls to shared backends: sent (repeats included), and of those repeated, throttled, failed";
        let mut metric = encoder.encode_descriptor("store_calls", help, None, MetricType::Counter)?;
        for (service, call, counts) in self.0.snapshot() {
            for (outcome, count) in OUTCOMES {
                let labels = [("service", service), ("call", call), ("outcome", outcome)];
                metric.encode_family(&labels)?.encode_counter::<NoLabelSet, u64, u64>(&count(&counts), None)?;
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_calls_make_no_lines() {
        let mut registry = prometheus_client::registry::Registry::with_prefix("hearth");
        registry.register_collector(Box::new(CallsMetric(Arc::default())));
        let mut text = String::new();
        prometheus_client::encoding::text::encode(&mut text, &registry).unwrap();
        assert!(text.contains("# TYPE hearth_store_calls counter") && !text.contains("service="), "{text}");
    }
}
