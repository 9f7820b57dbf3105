//! The public edge of a cluster: takes HTTP, chooses a node by the route table, passes the request on and streams the answer back.
//! It knows no function, no container and no store; it keeps nothing per tenant; and its data path asks no control plane.

mod body;
mod config;
mod fleet;
mod forward;
mod metrics;
mod ops;
mod placed;
mod probe;
mod retry;
mod routes;
mod service;

pub use config::{Config, Limits};
pub use routes::{CANDIDATES_MAX, Choice, FixedTable, NodeInfo, Routes, Table};

use fleet::Fleet;
use forward::Connections;
use hearth_edge::{
    ids::RequestIds,
    listen::{Listener, Options},
    patience::Terms,
    serve::{self, Http2, Protocol},
    tls,
};
use hearth_model::limits;
use metrics::Metrics;
use std::{
    io,
    net::SocketAddr,
    sync::{Arc, atomic::AtomicUsize},
    time::Duration,
};
use tokio_util::{sync::CancellationToken, task::TaskTracker};

/// What a router is made of.
pub struct Deps {
    /// Where the route table comes from.
    pub routes: Arc<dyn Routes>,
}

/// Why a router did not start.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// A port cannot be had.
    #[error("cannot listen on {addr} ({key}): {source}; choose another address or end the process that has it")]
    Listen {
        /// Which address.
        addr: SocketAddr,
        /// The configuration key.
        key: &'static str,
        /// The system's words.
        source: io::Error,
    },
    /// Certificates do not do.
    #[error(transparent)]
    Tls(#[from] tls::TlsError),
    /// A setting contradicts another.
    #[error("{0}")]
    Config(String),
    /// A thread cannot be started.
    #[error("starting the listener")]
    Listener(#[source] io::Error),
}

/// What all workers share.
pub(crate) struct Shared {
    pub config: Config,
    pub fleet: Arc<Fleet>,
    pub budget: retry::Budget,
    pub metrics: Arc<Metrics>,
    pub connector: Option<Arc<tls::Connector>>,
    pub in_flight: AtomicUsize,
    /// Cancelled when this process leaves: connections close after the request they are at.
    pub draining: CancellationToken,
}

/// A running router.
pub struct Router {
    listener: Listener,
    ops_addr: SocketAddr,
    drain_lead: Duration,
    /// Cancelled first: no longer ready, still serving.
    leaving: CancellationToken,
    /// Cancelled last: probes, the ops listener, certificates' watches.
    stop: CancellationToken,
    tasks: TaskTracker,
}

async fn bind(addr: SocketAddr, key: &'static str) -> Result<std::net::TcpListener, StartError> {
    let listen = |source| StartError::Listen { addr, key, source };
    let socket = if addr.is_ipv4() { tokio::net::TcpSocket::new_v4() } else { tokio::net::TcpSocket::new_v6() }.map_err(listen)?;
    socket.set_reuseaddr(true).map_err(listen)?;
    socket.bind(addr).map_err(listen)?;
    // Deep, since a burst of connections must not be refused before shedding has had a say.
    socket.listen(8_192).and_then(tokio::net::TcpListener::into_std).map_err(listen)
}

impl Router {
    /// Starts everything and serves.
    ///
    /// # Errors
    /// [`StartError`]; nothing keeps running then.
    pub async fn start(config: Config, deps: Deps) -> Result<Self, StartError> {
        config.validate().map_err(StartError::Config)?;
        let listener = bind(config.listen, "router.listen").await?;
        let ops_listener = bind(config.ops_listen, "router.ops_listen").await?;
        let (stop, leaving, draining) = (CancellationToken::new(), CancellationToken::new(), CancellationToken::new());
        let guard = stop.clone().drop_guard();
        let acceptor =
            config.tls.clone().map(|files| tls::Acceptor::start(files, "router.tls", &[b"h2", b"http/1.1"], stop.clone()));
        let connector = config.nodes_tls.clone().map(|files| tls::Connector::start(files, "router.nodes_tls", stop.clone()));
        let (acceptor, connector) = (acceptor.transpose()?, connector.transpose()?);

        let mut registry = prometheus_client::registry::Registry::with_prefix("hearth_router");
        let metrics = Arc::new(Metrics::register(&mut registry));
        let fleet = Fleet::new(deps.routes);
        let protocol = Arc::new(protocol(&config, acceptor, draining.clone()));
        let options = Options {
            name: "router",
            workers: config.workers,
            connections_max: config.connections_max,
            connections_per_address_max: config.connections_per_address_max,
        };
        let drain_lead = config.drain_lead;
        let shared = Arc::new(Shared {
            budget: retry::Budget::new(config.limits.retry_burst_max),
            fleet: Arc::clone(&fleet),
            metrics: Arc::clone(&metrics),
            connector: connector.clone(),
            in_flight: AtomicUsize::new(0),
            draining: draining.clone(),
            config,
        });

        let tasks = TaskTracker::new();
        tasks.spawn(fleet::follow(Arc::clone(&fleet), stop.clone()));
        tasks.spawn(probe::run(Arc::clone(&fleet), connector, Arc::clone(&metrics), stop.clone()));
        let (ops_addr, ops) =
            ops::serve(ops_listener, registry, fleet, leaving.clone(), stop.clone()).map_err(StartError::Listener)?;
        tasks.spawn(ops);
        tasks.close();
        let listener = Listener::start(listener, options, draining, move |connections| {
            serve::run(&protocol, connections, || service::Worker {
                connections: Connections::new(&shared.config),
                shared: Arc::clone(&shared),
                ids: RequestIds::default(),
            });
        })
        .map_err(StartError::Listener)?;
        guard.disarm();
        Ok(Self { listener, ops_addr, drain_lead, leaving, stop, tasks })
    }

    /// Where requests are taken.
    #[must_use]
    pub fn addr(&self) -> SocketAddr {
        self.listener.addr()
    }

    /// Where health and metrics are served.
    #[must_use]
    pub fn ops_addr(&self) -> SocketAddr {
        self.ops_addr
    }

    /// Leaves: not ready any more, serving on for `drain_lead` so that load balancers notice, then no new connections, and every
    /// connection ends after what it is at (HTTP/2 clients are told). What is open after `grace` is cut. Returns how many were.
    pub async fn shutdown(self, grace: Duration) -> usize {
        self.leaving.cancel();
        tokio::time::sleep(self.drain_lead).await;
        let cut = self.listener.shutdown(grace).await;
        self.stop.cancel();
        self.tasks.wait().await;
        cut
    }
}

fn protocol(config: &Config, tls: Option<Arc<tls::Acceptor>>, draining: CancellationToken) -> Protocol {
    Protocol {
        header_timeout: config.header_timeout,
        first_byte_timeout: config.first_byte_timeout,
        write_terms: Terms { wait_max: config.stall_timeout, rate_min_bytes_per_s: config.rate_min_bytes_per_s },
        head_bytes_max: limits::REQUEST_HEADER_BYTES_MAX + limits::REQUEST_TARGET_BYTES_MAX + 32 * 1024,
        headers_max: limits::REQUEST_HEADERS_MAX * 2,
        tls,
        http2: Some(Http2 { streams_max: config.limits.http2_streams_max, ..Http2::default() }),
        links: false,
        trust_loopback: false,
        draining,
    }
}
