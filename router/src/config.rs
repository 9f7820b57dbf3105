//! A router's configuration.

use bytesize::ByteSize;
use hearth_edge::tls::Files;
use serde::{Deserialize, Serialize};
use std::{net::SocketAddr, time::Duration};

/// Everything that can be set about a router.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Config {
    /// Where requests are taken.
    pub listen: SocketAddr,
    /// Where `/healthz`, `/readyz` and `/metrics` are served.
    pub ops_listen: SocketAddr,
    /// TLS on `listen`; plain text without this section.
    pub tls: Option<Files>,
    /// TLS to nodes, with this router's own certificate (which carries the name `router`); plain text without this section.
    pub nodes_tls: Option<Files>,
    /// Worker threads; 0 means one more than there are cores.
    pub workers: usize,
    /// Open client connections; beyond it new ones wait in the listener's queue.
    pub connections_max: usize,
    /// Of those, from one address (of IPv6: from one /64) that is not this machine's own; more are closed at once. Raise it to
    /// `connections_max` behind a load balancer that connects from an address of its own. One that became a WebSocket counts no longer
    /// here but among the requests in flight.
    pub connections_per_address_max: usize,
    /// From a connection to its first byte; also for the TLS hand-shake.
    #[serde(with = "humantime_serde")]
    pub first_byte_timeout: Duration,
    /// For the headers of a request, and how long a connection may be idle.
    #[serde(with = "humantime_serde")]
    pub header_timeout: Duration,
    /// How long a client may keep us waiting for its body, or for it to take an answer; bytes earn it more time.
    #[serde(with = "humantime_serde")]
    pub stall_timeout: Duration,
    /// So many bytes earn a second.
    pub rate_min_bytes_per_s: u64,
    /// Largest body of a request.
    pub request_body_max: ByteSize,
    /// For a connection to a node.
    #[serde(with = "humantime_serde")]
    pub connect_timeout: Duration,
    /// From a request to the head of its answer; longer than any function's own deadline.
    #[serde(with = "humantime_serde")]
    pub answer_timeout: Duration,
    /// How long an upgraded connection (WebSocket) may be silent.
    #[serde(with = "humantime_serde")]
    pub upgrade_idle_timeout: Duration,
    /// How long an idle connection to a node is kept; shorter than the node keeps it, so that no request meets its closing.
    #[serde(with = "humantime_serde")]
    pub node_idle_timeout: Duration,
    /// How long to serve on after `/readyz` has turned, before the listener closes.
    #[serde(with = "humantime_serde")]
    pub drain_lead: Duration,
    /// Whether the last address of a client's `x-forwarded-for` is believed to be the caller (behind a load balancer).
    pub trust_forwarded_for: bool,
    /// Bounds.
    pub limits: Limits,
}

/// Bounds of a router.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Limits {
    /// Requests in flight; what comes above is answered 503 at once.
    pub in_flight_max: usize,
    /// Requests at once on one HTTP/2 connection.
    pub http2_streams_max: u32,
    /// Idle connections that one worker keeps to one node.
    pub idle_connections_max: usize,
    /// Nodes that one request may try.
    pub tries_max: usize,
    /// Of a request's body, so much is kept to send it again.
    pub replay_max: ByteSize,
    /// Retries that may be saved up; each request earns a tenth.
    pub retry_burst_max: u32,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            listen: SocketAddr::from(([127, 0, 0, 1], 8080)),
            ops_listen: SocketAddr::from(([127, 0, 0, 1], 9090)),
            tls: None,
            nodes_tls: None,
            workers: 0,
            connections_max: 20_000,
            connections_per_address_max: 5_000,
            first_byte_timeout: Duration::from_secs(10),
            header_timeout: Duration::from_secs(30),
            stall_timeout: Duration::from_secs(20),
            rate_min_bytes_per_s: 1_024,
            request_body_max: ByteSize::b(hearth_model::limits::REQUEST_BODY_BYTES_DEFAULT),
            connect_timeout: Duration::from_secs(1),
            answer_timeout: Duration::from_millis(hearth_model::limits::TIMEOUT_MS_MAX + 10_000),
            upgrade_idle_timeout: Duration::from_secs(600),
            node_idle_timeout: Duration::from_secs(10),
            drain_lead: Duration::from_secs(5),
            trust_forwarded_for: false,
            limits: Limits::default(),
        }
    }
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            in_flight_max: 10_000,
            http2_streams_max: 100,
            idle_connections_max: 256,
            tries_max: 3,
            replay_max: ByteSize::kib(64),
            retry_burst_max: 500,
        }
    }
}

impl Config {
    /// Refuses what cannot work, naming the key.
    pub(crate) fn validate(&self) -> Result<(), String> {
        if self.connections_per_address_max == 0 {
            return Err("router.connections_per_address_max is 0, which would let nobody in; for no bound of its own set it to router.connections_max".into());
        }
        let zero = [
            (self.first_byte_timeout, "first_byte_timeout"),
            (self.header_timeout, "header_timeout"),
            (self.stall_timeout, "stall_timeout"),
            (self.connect_timeout, "connect_timeout"),
            (self.answer_timeout, "answer_timeout"),
        ];
        if let Some((_, key)) = zero.iter().find(|(d, _)| d.is_zero()) {
            return Err(format!("router.{key} is zero, and nothing would ever be in time; give a duration such as 10s"));
        }
        if self.limits.tries_max == 0 || self.limits.in_flight_max == 0 || self.limits.http2_streams_max == 0 {
            return Err("router.limits: tries_max, in_flight_max and http2_streams_max must be at least 1".into());
        }
        if self.nodes_tls.as_ref().is_some_and(|files| files.ca.is_none()) {
            return Err("router.nodes_tls.ca is missing; it says who nodes' certificates must be signed by".into());
        }
        Ok(())
    }
}
