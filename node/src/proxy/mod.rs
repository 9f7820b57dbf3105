//! The request path of a node, top to bottom: listen, resolve, admit, acquire a container, forward, stream the answer back.
//!
//! One thread accepts and deals connections out to worker threads (`hearth_edge`), each with a single-threaded runtime and connections
//! of its own to every container, so that a warm request never changes threads. The proxy knows nothing of Docker, modules or SQL.

pub mod admit;
mod body;
mod forward;
mod metrics;
mod pause;
mod respond;
mod service;
mod worker;

pub use metrics::Metrics;
pub use worker::Proxy;

use crate::{catalog::Catalog, handler::Handler};
use bytesize::ByteSize;
use serde::{Deserialize, Serialize};
use std::{sync::Arc, time::Duration};
use tokio_util::sync::CancellationToken;

/// The listener and the request path.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Config {
    /// Worker threads; 0 means one more than there are cores.
    pub workers: usize,
    /// Open client connections; beyond it new ones wait in the listener's queue.
    pub connections_max: usize,
    /// Of those, from one address (of IPv6: from one /64) that is not this machine's own; more are closed at once. By default somewhat
    /// more than the 10,000 requests that one router may have in flight.
    pub connections_per_address_max: usize,
    /// How long a client may take to send its headers, how long a connection may be idle, and how long in all a client may keep us waiting for
    /// its body before the function answers (each KiB of it earns a second more).
    #[serde(with = "humantime_serde")]
    pub header_timeout: Duration,
    /// Largest body of an invocation.
    pub request_body_max: ByteSize,
    /// How long an upgraded connection (WebSocket) may be silent.
    #[serde(with = "humantime_serde")]
    pub upgrade_idle_timeout: Duration,
    /// Idle connections that one worker keeps to one container.
    pub idle_connections_max: usize,
    /// Whether the last address of a client's `x-forwarded-for` is believed to be the caller (behind a load balancer).
    pub trust_forwarded_for: bool,
    /// Whether a plain connection from this machine is a router's, whose word about a request's id and caller is taken. For
    /// development; elsewhere routers show a certificate.
    pub trust_router: bool,
    /// This node's name, in every answer's `hearth-node`; without one the header is left out.
    pub node_name: Option<String>,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            workers: 0,
            connections_max: 20_000,
            connections_per_address_max: 12_000,
            header_timeout: Duration::from_secs(30),
            request_body_max: ByteSize::b(hearth_model::limits::REQUEST_BODY_BYTES_DEFAULT),
            upgrade_idle_timeout: Duration::from_secs(600),
            idle_connections_max: 128,
            trust_forwarded_for: false,
            trust_router: false,
            node_name: None,
        }
    }
}

/// What all workers share.
pub(crate) struct Shared {
    pub config: Config,
    pub catalog: Arc<Catalog>,
    pub handler: Arc<Handler>,
    pub metrics: Arc<Metrics>,
    /// The management API; its requests run on `main`, away from the workers.
    pub manage: axum::Router,
    pub main: tokio::runtime::Handle,
    /// This node's name, as a header.
    pub node_name: Option<http::HeaderValue>,
    /// Cancelled when this node has told the routers that it leaves, and they had time to hear it: who still comes is sent elsewhere.
    pub refusing: CancellationToken,
    /// Cancelled when this process leaves: connections close after the request they are at.
    pub draining: CancellationToken,
}
