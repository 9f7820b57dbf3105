//! The ops listener: `/healthz` (this process lives), `/readyz` (it can serve), `/metrics` (Prometheus). For operators only; it has no
//! authentication and belongs on an address that tenants and clients cannot reach.

use crate::status::Source;
use axum::{Router, extract::State, http::StatusCode, response::IntoResponse, routing::get};
use hearth_store::FunctionStore;
use prometheus_client::{encoding::text::encode, registry::Registry};
use std::{fmt::Write, sync::Arc, time::Duration};
use tokio_util::sync::CancellationToken;

/// A readiness check must be quicker than the load balancer that asks.
const PING_TIMEOUT: Duration = Duration::from_secs(2);

struct Ops {
    registry: Registry,
    status: Arc<Source>,
    functions: Arc<dyn FunctionStore>,
    leaving: CancellationToken,
}

/// The routes.
pub fn router(registry: Registry, status: Arc<Source>, functions: Arc<dyn FunctionStore>, leaving: CancellationToken) -> Router {
    Router::new()
        .route("/healthz", get(|| async { "ok\n" }))
        .route("/readyz", get(ready))
        .route("/metrics", get(metrics))
        .with_state(Arc::new(Ops { registry, status, functions, leaving }))
}

async fn ready(State(ops): State<Arc<Ops>>) -> (StatusCode, String) {
    if ops.leaving.is_cancelled() {
        return (StatusCode::SERVICE_UNAVAILABLE, "draining\n".into());
    }
    // Without the store known functions still run, so that this node stays ready; the operator reads why it is degraded.
    match tokio::time::timeout(PING_TIMEOUT, ops.functions.ping()).await {
        Ok(Ok(())) => (StatusCode::OK, "ready\n".into()),
        Ok(Err(error)) => (StatusCode::OK, format!("ready, degraded: {error}\n")),
        Err(_) => (StatusCode::OK, format!("ready, degraded: the store did not answer within {PING_TIMEOUT:?}\n")),
    }
}

async fn metrics(State(ops): State<Arc<Ops>>) -> impl IntoResponse {
    let mut text = String::with_capacity(16 * 1024);
    let mut gauges = String::new();
    // The numbers of the status are a closed set of fields: each becomes a gauge by its path.
    if let Ok(value) = serde_json::to_value(ops.status.read()) {
        flatten("hearth", &value, &mut gauges);
    }
    if encode(&mut text, &ops.registry).is_err() {
        return (StatusCode::INTERNAL_SERVER_ERROR, [("content-type", "text/plain")], "encoding the metrics failed\n".to_owned());
    }
    // `encode` ends with the end-of-file mark, which must stay last.
    let mut text = text.trim_end_matches("# EOF\n").to_owned();
    text.push_str(&gauges);
    text.push_str("# EOF\n");
    (StatusCode::OK, [("content-type", "application/openmetrics-text; version=1.0.0; charset=utf-8")], text)
}

fn flatten(name: &str, value: &serde_json::Value, out: &mut String) {
    match value {
        serde_json::Value::Number(number) => {
            let _ = writeln!(out, "# TYPE {name} gauge\n{name} {number}");
        }
        serde_json::Value::Object(map) => {
            for (key, value) in map {
                flatten(&format!("{name}_{key}"), value, out);
            }
        }
        // Lists and texts are for `hearth status`; as labels they could grow without bound.
        _ => {}
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_numbers_of_the_status_become_gauges() {
        let mut out = String::new();
        flatten("hearth", &serde_json::json!({"pool": {"level": 4, "name": "x"}, "list": [1, 2]}), &mut out);
        assert_eq!(out, "# TYPE hearth_pool_level gauge\nhearth_pool_level 4\n");
    }
}
