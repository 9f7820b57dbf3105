//! The ops listener of a builder by itself: `/healthz` (this process lives), `/readyz` (it can take builds), `/metrics` (Prometheus). For
//! operators only.

use crate::{Builder, container::Outcome};
use axum::{Router, extract::State, http::StatusCode, response::IntoResponse, routing::get};
use hearth_store::{CallsMetric, aws::CallStats};
use prometheus_client::{
    encoding::{EncodeLabelSet, text::encode},
    metrics::{
        counter::Counter,
        family::Family,
        gauge::Gauge,
        histogram::{Histogram, exponential_buckets},
    },
    registry::{Registry, Unit},
};
use std::{
    fmt::Write,
    io,
    net::SocketAddr,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};
use tokio::net::TcpListener;

/// A check must be quicker than who asks.
const PING_TIMEOUT: Duration = Duration::from_secs(2);

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Ended {
    outcome: &'static str,
}

/// What the workers count.
pub(crate) struct Counts {
    registry: Mutex<Registry>,
    builds: Family<Ended, Counter>,
    seconds: Histogram,
    pub running: Gauge,
    oldest_wait: Gauge,
}

impl Counts {
    pub fn new(workers: usize) -> Self {
        let counts = Self {
            registry: Mutex::new(Registry::with_prefix("hearth_builder")),
            builds: Family::default(),
            seconds: Histogram::new(exponential_buckets(0.5, 2.0, 11)),
            running: Gauge::default(),
            oldest_wait: Gauge::default(),
        };
        let all = Gauge::<i64>::default();
        all.set(i64::try_from(workers).unwrap_or(i64::MAX));
        let mut registry = counts.registry.lock().unwrap_or_else(PoisonError::into_inner);
        registry.register("builds", "Builds that ended here, by how", counts.builds.clone());
        registry.register_with_unit("build", "How long a build took", Unit::Seconds, counts.seconds.clone());
        registry.register("running", "Builds under way in this process", counts.running.clone());
        registry.register("workers", "Builds that this process makes at once", all);
        let help = "How long the oldest build waits that nobody has begun, as of the last look through all records";
        registry.register_with_unit("oldest_wait", help, Unit::Seconds, counts.oldest_wait.clone());
        drop(registry);
        counts
    }

    pub fn ended(&self, outcome: &Outcome, took: Duration) {
        let outcome = match outcome {
            Outcome::Built { .. } => "built",
            Outcome::Refused { .. } => "refused",
            Outcome::Passing { .. } => "passing",
        };
        self.builds.get_or_create(&Ended { outcome }).inc();
        self.seconds.observe(took.as_secs_f64());
    }

    pub fn oldest_waits(&self, wait: Duration) {
        self.oldest_wait.set(i64::try_from(wait.as_secs()).unwrap_or(i64::MAX));
    }
}

impl Builder {
    /// Answers operators on this listener until the builder has left; `calls` become metrics as well. Returns its address.
    ///
    /// # Errors
    /// When the listener has none.
    pub fn serve_ops(self: &Arc<Self>, listener: TcpListener, calls: &Arc<CallStats>) -> io::Result<SocketAddr> {
        let addr = listener.local_addr()?;
        let mut store_calls = Registry::with_prefix("hearth");
        store_calls.register_collector(Box::new(CallsMetric(Arc::clone(calls))));
        let routes = Router::new()
            .route("/healthz", get(|| async { "ok\n" }))
            .route("/readyz", get(ready))
            .route("/metrics", get(metrics))
            .with_state(Arc::new(Ops { builder: Arc::clone(self), store_calls }));
        let left = self.left.clone();
        // Until all have left, so that an operator can watch it leave.
        tokio::spawn(async move {
            tokio::select! {
                result = async { axum::serve(listener, routes).await } => if let Err(error) = result {
                    tracing::error!(%error, "the ops listener ended");
                },
                () = left.cancelled() => {}
            }
        });
        Ok(addr)
    }

    /// Why no build can be taken, if none can.
    async fn obstacle(&self) -> Option<String> {
        if self.leaving.is_cancelled() {
            return Some("draining".into());
        }
        let pings = async {
            self.deps.queue.ping().await.map_err(|e| e.to_string())?;
            self.deps.functions.ping().await.map_err(|e| e.to_string())
        };
        match tokio::time::timeout(PING_TIMEOUT, pings).await {
            Ok(result) => result.err(),
            Err(_) => Some(format!("the stores did not answer within {PING_TIMEOUT:?}")),
        }
    }
}

struct Ops {
    builder: Arc<Builder>,
    store_calls: Registry,
}

async fn ready(State(ops): State<Arc<Ops>>) -> (StatusCode, String) {
    match ops.builder.obstacle().await {
        None => (StatusCode::OK, "ready\n".into()),
        Some(obstacle) => (StatusCode::SERVICE_UNAVAILABLE, format!("{obstacle}\n")),
    }
}

async fn metrics(State(ops): State<Arc<Ops>>) -> impl IntoResponse {
    let mut text = String::with_capacity(4 * 1024);
    let depth = tokio::time::timeout(PING_TIMEOUT, ops.builder.deps.queue.depth()).await;
    let counted = encode(&mut text, &ops.builder.counts.registry.lock().unwrap_or_else(PoisonError::into_inner));
    let mut text = text.trim_end_matches("# EOF\n").to_owned();
    // Absent while the queue does not answer: a zero would end builders that are needed.
    if let Ok(Ok(depth)) = depth {
        let _ = writeln!(text, "# TYPE hearth_builder_queue_depth gauge\nhearth_builder_queue_depth {depth}");
    }
    if counted.is_err() || encode(&mut text, &ops.store_calls).is_err() {
        return (StatusCode::INTERNAL_SERVER_ERROR, [("content-type", "text/plain")], "encoding the metrics failed\n".to_owned());
    }
    (StatusCode::OK, [("content-type", "application/openmetrics-text; version=1.0.0; charset=utf-8")], text)
}
