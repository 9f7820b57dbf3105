//! This node as one of many: its registration under a lease, news of changes to and from the others, the control calls that it answers, and
//! its view of the others for the management API. The path of a request knows nothing of it: with etcd away, this node serves on.

mod changes;
mod config;
mod control;
mod peers;

pub use config::{Config, Tls};
pub use peers::{DrainError, NodeLine, Peers, Tailed};

use crate::{catalog::Catalog, handler::Handler, logs::LogHub};
use changes::Applier;
use hearth_model::Timestamp;
use hearth_placement::{
    ControlTls, Coordinator, NodeName, NodeRecord, NodeState, Notices, Registration, RegistrationError, TableWatch,
    control::control_server::ControlServer, record::SCHEMA,
};
use hearth_store::FunctionStore;
use std::{
    io,
    net::SocketAddr,
    path::PathBuf,
    sync::Arc,
    time::{Duration, SystemTime},
};
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;
use tonic::transport::{Certificate, Identity, Server, ServerTlsConfig, server::TcpIncoming};

/// The name in every node's certificate, by which those who call a node know that it is one.
pub const ROLE: &str = "node";

/// What the composition root gives a node that is to be one of many.
pub struct Link {
    /// This node's place.
    pub config: Config,
    /// Its name; the configuration's, or one that the composition root chose.
    pub name: NodeName,
    /// Below which key the cluster's lie.
    pub prefix: String,
    /// Membership and news.
    pub coordinator: Arc<dyn Coordinator>,
    /// What routers see.
    pub table: TableWatch,
    /// News of changes.
    pub notices: Notices,
}

impl Link {
    /// The other nodes, for the management API.
    ///
    /// # Errors
    /// When the certificates cannot be used.
    pub(crate) fn peers(&self) -> Result<Arc<Peers>, JoinError> {
        Ok(Peers::new(self.name.clone(), self.table.clone(), self.config.control_tls()?))
    }
}

impl Config {
    fn control_tls(&self) -> Result<Option<ControlTls>, JoinError> {
        let read =
            |t: &Tls| ControlTls::read(&t.ca, &t.cert, &t.key, ROLE).map_err(|(path, source)| JoinError::File { path, source });
        self.tls.as_ref().map(read).transpose()
    }

    /// A server that lets in only whom the authority has signed; anybody, without certificates.
    fn server(&self) -> Result<Server, JoinError> {
        let mut server = Server::builder().http2_keepalive_interval(Some(Duration::from_secs(10)));
        if let Some(tls) = &self.tls {
            let read = |path: &PathBuf| std::fs::read(path).map_err(|source| JoinError::File { path: path.clone(), source });
            let identity = Identity::from_pem(read(&tls.cert)?, read(&tls.key)?);
            let authority = Certificate::from_pem(read(&tls.ca)?);
            server = server.tls_config(ServerTlsConfig::new().identity(identity).client_ca_root(authority))?;
        }
        Ok(server)
    }
}

/// Why a node could not join.
#[derive(Debug, thiserror::Error)]
pub enum JoinError {
    /// The port of control calls cannot be had.
    #[error("cannot listen on {addr} (cluster.control_listen): {source}; choose another address or end the process that has it")]
    Listen {
        /// Which address.
        addr: SocketAddr,
        /// The system's words.
        source: io::Error,
    },
    /// A certificate cannot be read.
    #[error("section cluster.tls: {path}: {source}; `hearth admin certs` makes what is needed")]
    File {
        /// Which file.
        path: PathBuf,
        /// The system's words.
        source: io::Error,
    },
    /// The certificates cannot be used.
    #[error("section cluster.tls: {0}; `hearth admin certs` makes what is needed")]
    Tls(#[from] tonic::transport::Error),
    /// The name is taken, or etcd does not let us.
    #[error("registering this node")]
    Register(#[from] RegistrationError),
}

/// The parts of the node that it works on.
pub(crate) struct Parts {
    pub catalog: Arc<Catalog>,
    pub handler: Arc<Handler>,
    pub logs: Arc<LogHub>,
    pub functions: Arc<dyn FunctionStore>,
    /// Where the proxy listens.
    pub addr: SocketAddr,
}

/// The running membership.
pub(crate) struct Membership {
    registration: Registration,
    config: Config,
    asked_to_leave: CancellationToken,
    leaving: CancellationToken,
    control_addr: SocketAddr,
    tasks: JoinSet<()>,
}

impl Membership {
    /// Serves control calls, begins to hear and tell news, and then says to the cluster that this node is there.
    ///
    /// # Errors
    /// [`JoinError`]; nothing keeps running then.
    pub async fn join(link: Link, parts: Parts) -> Result<Self, JoinError> {
        let Link { config, name, prefix, coordinator, table, notices } = link;
        let listen = |source| JoinError::Listen { addr: config.control_listen, source };
        let listener = tokio::net::TcpListener::bind(config.control_listen).await.map_err(listen)?;
        let bound = listener.local_addr().map_err(listen)?;
        let (asked_to_leave, leaving) = (CancellationToken::new(), CancellationToken::new());
        let applier = Arc::new(Applier {
            catalog: Arc::clone(&parts.catalog),
            handler: Arc::clone(&parts.handler),
            functions: parts.functions,
        });
        let incarnation = rand::random();
        let service = ControlServer::new(control::ControlService {
            handler: parts.handler,
            logs: parts.logs,
            name: name.clone(),
            incarnation,
            generation: Default::default(),
            asked_to_leave: asked_to_leave.clone(),
            leaving: leaving.clone(),
            rates: Default::default(),
        });
        let server = config.server()?.add_service(service);
        let counters = Arc::new(changes::Counters::default());
        let mut tasks = JoinSet::new();
        let stop = leaving.clone();
        tasks.spawn(async move {
            let incoming = TcpIncoming::from(listener).with_nodelay(Some(true));
            if let Err(error) = server.serve_with_incoming_shutdown(incoming, stop.cancelled_owned()).await {
                tracing::error!(%error, "control calls are no longer answered");
            }
        });
        let (changes, heard) = (parts.catalog.changes(), notices.subscribe());
        tasks.spawn(changes::tell(notices, name.clone(), Arc::clone(&parts.catalog), changes, Arc::clone(&counters)));
        tasks.spawn(changes::hear(applier, name.clone(), heard, counters));
        tasks.spawn(changes::watch_news(parts.catalog, table));
        let record = NodeRecord {
            schema: SCHEMA,
            name,
            incarnation,
            started_at: Timestamp::from_system(SystemTime::now()),
            data_addr: config.advertise.unwrap_or(parts.addr),
            control_addr: config.control_advertise.unwrap_or(bound),
            zone: config.zone.clone(),
            capacity: config.capacity,
            state: NodeState::Active,
            links: true,
        };
        let registration = Registration::start(coordinator, &prefix, record, config.lease_ttl).await?;
        Ok(Self { registration, config, asked_to_leave, leaving, control_addr: bound, tasks })
    }

    /// Where control calls are answered.
    pub fn control_addr(&self) -> SocketAddr {
        self.control_addr
    }

    /// Waits until a control call asks this node to leave.
    pub fn asked_to_leave(&self) -> CancellationToken {
        self.asked_to_leave.clone()
    }

    /// Says that this node leaves, and waits until the routers have had time to hear it. Requests are served meanwhile.
    pub async fn announce_leaving(&self) {
        let said = tokio::time::timeout(self.config.drain_lead, self.registration.set_state(NodeState::Draining)).await;
        if !matches!(said, Ok(Ok(()))) {
            tracing::warn!("the routers cannot be told that this node leaves; they will learn it from its answers");
        }
        tokio::time::sleep(self.config.drain_lead).await;
    }

    /// How long latecomers are sent elsewhere before the port closes.
    pub fn late(&self) -> Duration {
        self.config.drain_late
    }

    /// Takes this node's name off the list and ends.
    pub async fn leave(mut self) {
        self.leaving.cancel();
        self.registration.leave().await;
        self.tasks.shutdown().await;
    }
}
