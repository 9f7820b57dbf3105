//! The ops listener: `/healthz` (this process lives), `/readyz` (it can serve), `/metrics` (Prometheus). For operators only.

use crate::fleet::Fleet;
use axum::{Router, extract::State, http::StatusCode, response::IntoResponse, routing::get};
use prometheus_client::{encoding::text::encode, registry::Registry};
use std::{
    fmt::Write,
    io,
    net::SocketAddr,
    sync::{Arc, atomic::Ordering::Relaxed},
};
use tokio_util::sync::CancellationToken;

struct Ops {
    registry: Registry,
    fleet: Arc<Fleet>,
    leaving: CancellationToken,
}

/// Binds what is to be run; the future ends with `stop`.
pub(crate) fn serve(
    listener: std::net::TcpListener,
    registry: Registry,
    fleet: Arc<Fleet>,
    leaving: CancellationToken,
    stop: CancellationToken,
) -> io::Result<(SocketAddr, impl Future<Output = ()>)> {
    listener.set_nonblocking(true)?;
    let listener = tokio::net::TcpListener::from_std(listener)?;
    let addr = listener.local_addr()?;
    let routes = Router::new()
        .route("/healthz", get(|| async { "ok\n" }))
        .route("/readyz", get(ready))
        .route("/metrics", get(metrics))
        .with_state(Arc::new(Ops { registry, fleet, leaving }));
    let serve = async move {
        tokio::select! {
            result = async { axum::serve(listener, routes).await } => if let Err(error) = result {
                tracing::error!(%error, "the ops listener ended");
            },
            () = stop.cancelled() => {}
        }
    };
    Ok((addr, serve))
}

async fn ready(State(ops): State<Arc<Ops>>) -> (StatusCode, String) {
    let view = ops.fleet.view();
    if ops.leaving.is_cancelled() {
        return (StatusCode::SERVICE_UNAVAILABLE, "draining\n".into());
    }
    if view.nodes.is_empty() {
        return (StatusCode::SERVICE_UNAVAILABLE, "no node is known\n".into());
    }
    // A stale table still routes; the operator reads why it is degraded.
    let text = match ops.fleet.routes.is_stale() {
        true => format!("ready, degraded: the route table is {:?} old\n", ops.fleet.routes.age()),
        false => "ready\n".into(),
    };
    (StatusCode::OK, text)
}

async fn metrics(State(ops): State<Arc<Ops>>) -> impl IntoResponse {
    let mut text = String::with_capacity(8 * 1024);
    if encode(&mut text, &ops.registry).is_err() {
        return (StatusCode::INTERNAL_SERVER_ERROR, [("content-type", "text/plain")], "encoding the metrics failed\n".to_owned());
    }
    // `encode` ends with the end-of-file mark, which must stay last.
    let mut text = text.trim_end_matches("# EOF\n").to_owned();
    let view = ops.fleet.view();
    let (routes, nodes) = (&ops.fleet.routes, &view.nodes);
    let out = nodes.iter().filter(|n| n.is_out()).count();
    let in_flight: u32 = nodes.iter().map(|n| n.in_flight.load(Relaxed)).sum();
    let gauges = [
        ("table_revision", view.table.revision().to_string()),
        ("table_age_seconds", format!("{:.3}", routes.age().as_secs_f64())),
        ("table_stale", u8::from(routes.is_stale()).to_string()),
        ("requests_in_flight", in_flight.to_string()),
        ("nodes_draining", (nodes.len() - view.active.len()).to_string()),
        ("nodes_out", out.to_string()),
        ("nodes_in", (nodes.len() - out).to_string()),
    ];
    for (name, value) in gauges {
        let _ = writeln!(text, "# TYPE hearth_router_{name} gauge\nhearth_router_{name} {value}");
    }
    text.push_str("# EOF\n");
    (StatusCode::OK, [("content-type", "application/openmetrics-text; version=1.0.0; charset=utf-8")], text)
}
