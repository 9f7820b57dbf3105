//! One VM: the proxy that takes HTTP, the management API, the container handler with its pool, the module cache. It imports no
//! other role; it meets them in the store and over the wire.

pub mod catalog;
pub mod cluster;
pub mod config;
pub mod handler;
pub mod logs;
pub mod manage;
pub mod modules;
pub mod ops;
pub mod proxy;
pub mod status;
pub mod uploads;
pub mod usage;

pub use config::Config;

use catalog::Catalog;
use handler::Handler;
use hearth_registry::Registry;
use hearth_sandbox::{Description, Sandbox};
use hearth_store::Stores;
use logs::LogHub;
use modules::ModuleCache;
use prometheus_client::registry::Registry as MetricsRegistry;
use std::{io, net::SocketAddr, path::PathBuf, sync::Arc, time::Duration};
use tokio_util::sync::CancellationToken;
use usage::UsageBook;

/// What a node is made of; the composition root chooses the backends.
pub struct Deps {
    /// Durable state.
    pub stores: Stores,
    /// Containers.
    pub sandbox: Arc<dyn Sandbox>,
    /// What the sandbox says of itself.
    pub description: Description,
    /// The npm registry.
    pub registry: Arc<Registry>,
    /// Where this node keeps its files; one process at a time.
    pub data_dir: PathBuf,
    /// The runtime's program, mounted into containers.
    pub runtime_dir: PathBuf,
    /// Identity of the image that modules are built in.
    pub build_image: String,
    /// OCI runtimes that a tenant may be given, beside the installation's own.
    pub oci_runtimes: Vec<String>,
    /// Its place among other nodes; none for a machine by itself.
    pub cluster: Option<cluster::Link>,
}

/// Why a node did not start.
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
    /// The module cache cannot be opened.
    #[error("opening the module cache")]
    Modules(#[from] modules::OpenError),
    /// The container handler cannot start.
    #[error("starting the container handler")]
    Handler(#[from] handler::StartError),
    /// Certificates do not do.
    #[error(transparent)]
    Tls(#[from] hearth_edge::tls::TlsError),
    /// A thread cannot be started.
    #[error("starting the proxy")]
    Proxy(#[from] io::Error),
    /// It cannot be one of many.
    #[error("joining the cluster")]
    Join(#[from] cluster::JoinError),
}

/// A running node.
pub struct Node {
    proxy: proxy::Proxy,
    ops_addr: SocketAddr,
    ops_task: tokio::task::JoinHandle<()>,
    handler: Arc<Handler>,
    catalog: Arc<Catalog>,
    leaving: CancellationToken,
    membership: Option<cluster::Membership>,
}

async fn bind(addr: SocketAddr, key: &'static str) -> Result<std::net::TcpListener, StartError> {
    let listen = |source| StartError::Listen { addr, key, source };
    let socket = if addr.is_ipv4() { tokio::net::TcpSocket::new_v4() } else { tokio::net::TcpSocket::new_v6() }.map_err(listen)?;
    socket.set_reuseaddr(true).map_err(listen)?;
    socket.bind(addr).map_err(listen)?;
    // Deep, since a burst of first requests must not be refused before admission has had a say.
    socket.listen(8_192).and_then(tokio::net::TcpListener::into_std).map_err(listen)
}

impl Node {
    /// Starts everything and serves. Containers of an earlier process are adopted before the first request is taken.
    ///
    /// # Errors
    /// [`StartError`]; nothing keeps running then.
    pub async fn start(config: Config, deps: Deps) -> Result<Self, StartError> {
        let listener = bind(config.listen, "listen").await?;
        let ops_listener = bind(config.ops_listen, "ops_listen").await?;
        let Deps { stores, sandbox, description, registry, data_dir, runtime_dir, build_image, oci_runtimes, cluster } = deps;

        let modules =
            ModuleCache::open(config.modules, &data_dir, Arc::clone(&stores.functions), Arc::clone(&stores.artifacts)).await?;
        let logs = LogHub::new();
        let (classes, usage) = (Arc::new(config.classes), Arc::<UsageBook>::default());
        let handler = Handler::start(
            config.handler,
            handler::Deps {
                sandbox,
                modules: Arc::clone(&modules),
                functions: Arc::clone(&stores.functions),
                bundles: Arc::clone(&stores.bundles),
                keyring: Arc::clone(&stores.keyring),
                logs: Arc::clone(&logs),
                usage: Arc::clone(&usage),
                data_dir: data_dir.clone(),
                runtime_dir,
                cpu_split: description.cpu_split.clone(),
            },
        )
        .await?;
        let catalog = Catalog::new(Arc::clone(&stores.functions), config.catalog, Arc::clone(&classes), Arc::clone(&usage));

        let leaving = CancellationToken::new();
        let mut metrics_registry = MetricsRegistry::with_prefix("hearth");
        let metrics = Arc::new(proxy::Metrics::register(&mut metrics_registry));
        metrics_registry.register_collector(Box::new(hearth_store::CallsMetric(Arc::clone(&stores.calls))));
        let status = Arc::new(status::Source::new(Arc::clone(&handler), Arc::clone(&modules), Arc::clone(&catalog), description));
        let manage = manage::router(
            config.manage,
            manage::Deps {
                functions: Arc::clone(&stores.functions),
                bundles: Arc::clone(&stores.bundles),
                queue: Arc::clone(&stores.queue),
                keyring: Arc::clone(&stores.keyring),
                registry,
                catalog: Arc::clone(&catalog),
                classes,
                oci_runtimes,
                usage,
                handler_evict: {
                    let handler = Arc::clone(&handler);
                    Arc::new(move |path| handler.evict(path))
                },
                logs: Arc::clone(&logs),
                peers: cluster.as_ref().map(cluster::Link::peers).transpose().map_err(StartError::Join)?,
                status: {
                    let status = Arc::clone(&status);
                    Arc::new(move || serde_json::to_value(status.read()).unwrap_or_default())
                },
                build_image,
                arch: std::env::consts::ARCH,
                data_dir,
            },
        );
        let tls = config.tls.map(|files| {
            hearth_edge::tls::Acceptor::start(
                files,
                "node.tls",
                &[hearth_model::protocol::link::ALPN, b"http/1.1"],
                leaving.clone(),
            )
        });
        let tls = tls.transpose()?;
        let mut proxy_config = config.proxy;
        if let Some(link) = &cluster {
            proxy_config.node_name = Some(link.name.to_string());
        }
        let proxy = proxy::Proxy::start(listener, proxy_config, tls, Arc::clone(&catalog), Arc::clone(&handler), metrics, manage)?;

        let ops = ops::router(metrics_registry, status, Arc::clone(&stores.functions), leaving.clone());
        ops_listener.set_nonblocking(true)?;
        let ops_listener = tokio::net::TcpListener::from_std(ops_listener)?;
        let ops_addr = ops_listener.local_addr()?;
        let ops_task = tokio::spawn(async move {
            if let Err(error) = axum::serve(ops_listener, ops).await {
                tracing::error!(%error, "the ops listener ended");
            }
        });
        let mut node = Self { proxy, ops_addr, ops_task, handler, catalog, leaving, membership: None };
        if let Some(link) = cluster {
            // Last, since from now on routers send requests.
            match cluster::Membership::join(link, node.parts(logs, stores.functions)).await {
                Ok(membership) => node.membership = Some(membership),
                Err(error) => {
                    node.shutdown(Duration::ZERO, true).await;
                    return Err(error.into());
                }
            }
        }
        Ok(node)
    }

    fn parts(&self, logs: Arc<LogHub>, functions: Arc<dyn hearth_store::FunctionStore>) -> cluster::Parts {
        let (catalog, handler) = (Arc::clone(&self.catalog), Arc::clone(&self.handler));
        cluster::Parts { catalog, handler, logs, functions, addr: self.addr() }
    }

    /// Where functions and the management API are served.
    #[must_use]
    pub fn addr(&self) -> SocketAddr {
        self.proxy.addr()
    }

    /// Where health and metrics are served.
    #[must_use]
    pub fn ops_addr(&self) -> SocketAddr {
        self.ops_addr
    }

    /// The cache of function records, to be told of changes made elsewhere.
    #[must_use]
    pub fn catalog(&self) -> &Arc<Catalog> {
        &self.catalog
    }

    /// Where control calls are answered; none on a machine by itself.
    #[must_use]
    pub fn control_addr(&self) -> Option<SocketAddr> {
        self.membership.as_ref().map(cluster::Membership::control_addr)
    }

    /// Cancelled when a control call asks this node to leave; never on a machine by itself.
    #[must_use]
    pub fn asked_to_leave(&self) -> CancellationToken {
        self.membership.as_ref().map(cluster::Membership::asked_to_leave).unwrap_or_default()
    }

    /// One of many, it first tells the routers, and sends elsewhere whoever still comes. Stops taking requests, finishes those that run
    /// within `grace`, and leaves; with `keep_containers` the next process on the
    /// same data directory adopts them.
    pub async fn shutdown(self, grace: Duration, keep_containers: bool) {
        self.leaving.cancel();
        if let Some(membership) = &self.membership {
            membership.announce_leaving().await;
            self.proxy.refuse();
            tokio::time::sleep(membership.late()).await;
        }
        let cut = self.proxy.shutdown(grace).await;
        if cut > 0 {
            tracing::warn!(connections = cut, "connections were cut, since they did not end within the grace");
        }
        self.handler.shutdown(keep_containers).await;
        if let Some(membership) = self.membership {
            membership.leave().await;
        }
        self.ops_task.abort();
    }
}
