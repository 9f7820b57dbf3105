//! A node's configuration: one section per part.

use serde::{Deserialize, Serialize};
use std::net::SocketAddr;

/// Everything that can be set about a node.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Config {
    /// Where functions and the management API are served.
    pub listen: SocketAddr,
    /// Where `/healthz`, `/readyz` and `/metrics` are served.
    pub ops_listen: SocketAddr,
    /// TLS on `listen`: with `ca`, whoever connects must show a certificate, and one with the name `router` is believed to be a
    /// router. Plain text without this section.
    pub tls: Option<hearth_edge::tls::Files>,
    /// The listener and the request path.
    pub proxy: crate::proxy::Config,
    /// Containers and the pool.
    pub handler: crate::handler::Config,
    /// The module cache.
    pub modules: crate::modules::Config,
    /// The management API.
    pub manage: crate::manage::Config,
    /// The cache of function records.
    pub catalog: crate::catalog::Config,
    /// Classes of tenants: limits by name, as `[node.classes.free] concurrency = 10`.
    pub classes: hearth_model::Classes,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            listen: SocketAddr::from(([127, 0, 0, 1], 8080)),
            ops_listen: SocketAddr::from(([127, 0, 0, 1], 9090)),
            tls: None,
            proxy: Default::default(),
            handler: Default::default(),
            modules: Default::default(),
            manage: Default::default(),
            catalog: Default::default(),
            classes: Default::default(),
        }
    }
}
