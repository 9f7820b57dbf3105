//! A node's place in its cluster.

use serde::{Deserialize, Serialize};
use std::{net::SocketAddr, path::PathBuf, time::Duration};

/// Section `cluster`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Config {
    /// This node's name, its own in the cluster and the same after a restart; `[a-z0-9][a-z0-9-]{0,62}`.
    pub node_name: Option<String>,
    /// What fails together: a rack, an availability zone. Candidates of a container are of different zones where they can be.
    pub zone: String,
    /// Share of the containers in proportion to other nodes' capacities: 1 to 64.
    pub capacity: u32,
    /// Where routers reach this node; where absent, the address that it listens on.
    pub advertise: Option<SocketAddr>,
    /// Where control calls (statistics, drain, log tails) are served. Behind `tls`, or on an address that only this cluster reaches.
    pub control_listen: SocketAddr,
    /// Where other nodes and the planner reach it; where absent, the address that it listens on.
    pub control_advertise: Option<SocketAddr>,
    /// Certificates of control calls, both ways; without them they are neither encrypted nor authenticated.
    pub tls: Option<Tls>,
    /// How long this node is believed to live after its last sign of life.
    #[serde(with = "humantime_serde")]
    pub lease_ttl: Duration,
    /// How long a node that leaves goes on serving after it has said so, so that every router hears of it.
    #[serde(with = "humantime_serde")]
    pub drain_lead: Duration,
    /// How long it then answers latecomers that another node is to serve them, before its port closes.
    #[serde(with = "humantime_serde")]
    pub drain_late: Duration,
}

/// Certificates in PEM, as `hearth admin certs` makes them.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Tls {
    /// The authority that both sides must have been signed by.
    pub ca: PathBuf,
    /// This node's certificate.
    pub cert: PathBuf,
    /// Its key.
    pub key: PathBuf,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            node_name: None,
            zone: "default".into(),
            capacity: 16,
            advertise: None,
            control_listen: SocketAddr::from(([127, 0, 0, 1], 0)),
            control_advertise: None,
            tls: None,
            lease_ttl: Duration::from_secs(10),
            drain_lead: Duration::from_secs(2),
            drain_late: Duration::from_secs(1),
        }
    }
}
