//! Control calls to a node over gRPC: load, drain, eviction, log tails. The node implements
//! [`control_server::Control`](generated::control_server::Control); this is the other side.
//!
//! Every call has a deadline. A connection is made when it is first needed.

use crate::{
    leader::{ContainerLoad, Eviction, NodeCalls, NodeStats},
    record::{NodeName, NodeRecord},
};
use async_trait::async_trait;
use futures_util::{StreamExt, stream};
use std::{collections::HashMap, net::SocketAddr, path::PathBuf, time::Duration};
use tonic::{
    Request, Status, Streaming,
    transport::{Certificate, Channel, ClientTlsConfig, Endpoint, Identity},
};

/// What `control.proto` becomes.
#[allow(missing_docs, clippy::all, clippy::pedantic)]
pub mod generated {
    tonic::include_proto!("hearth.control.v1");
}

pub use generated::{
    ContainerStats, DrainRequest, DrainResponse, EvictRequest, EvictResponse, LogLine, StatsRequest, StatsResponse,
    TailLogsRequest, control_client, control_server,
};

/// How many nodes are asked at the same time.
const CONCURRENT_MAX: usize = 32;
/// How many containers a node tells of at most.
pub const CONTAINERS_MAX: u32 = 256;
/// The longest answer that is taken from a node.
const MESSAGE_BYTES_MAX: usize = 1 << 20;

/// Certificates for control calls.
#[derive(Debug, Clone)]
pub struct ControlTls {
    ca: Vec<u8>,
    cert: Vec<u8>,
    key: Vec<u8>,
    server_name: String,
}

impl ControlTls {
    /// Reads PEM files. `server_name` is the name expected in the nodes' certificates.
    ///
    /// # Errors
    /// The path and the error of the file that could not be read.
    pub fn read(ca: &PathBuf, cert: &PathBuf, key: &PathBuf, server_name: &str) -> Result<Self, (PathBuf, std::io::Error)> {
        let read = |path: &PathBuf| std::fs::read(path).map_err(|error| (path.clone(), error));
        Ok(Self { ca: read(ca)?, cert: read(cert)?, key: read(key)?, server_name: server_name.to_owned() })
    }

    fn client(&self) -> ClientTlsConfig {
        ClientTlsConfig::new()
            .ca_certificate(Certificate::from_pem(&self.ca))
            .identity(Identity::from_pem(&self.cert, &self.key))
            .domain_name(self.server_name.clone())
    }
}

/// Calls to one node. Cheap to clone.
#[derive(Debug, Clone)]
pub struct ControlClient {
    client: control_client::ControlClient<Channel>,
    deadline: Duration,
}

impl ControlClient {
    /// A client of the node at `addr`; does not connect yet.
    ///
    /// # Errors
    /// The text of what is wrong with the certificates.
    pub fn new(addr: SocketAddr, tls: Option<&ControlTls>, deadline: Duration) -> Result<Self, String> {
        let scheme = if tls.is_some() { "https" } else { "http" };
        let endpoint = Endpoint::from_shared(format!("{scheme}://{addr}")).map_err(|error| error.to_string())?;
        let mut endpoint = endpoint
            .connect_timeout(deadline)
            .http2_keep_alive_interval(Duration::from_secs(5))
            .keep_alive_timeout(deadline)
            .tcp_nodelay(true);
        if let Some(tls) = tls {
            endpoint = endpoint.tls_config(tls.client()).map_err(|error| error.to_string())?;
        }
        let client = control_client::ControlClient::new(endpoint.connect_lazy()).max_decoding_message_size(MESSAGE_BYTES_MAX);
        Ok(Self { client, deadline })
    }

    async fn within<T>(&self, call: impl Future<Output = Result<tonic::Response<T>, Status>>) -> Result<T, Status> {
        let late = |_| Status::deadline_exceeded(format!("no answer within {:?}", self.deadline));
        Ok(tokio::time::timeout(self.deadline, call).await.map_err(late)??.into_inner())
    }

    /// What the node carries now.
    ///
    /// # Errors
    /// The node's status, or that it did not answer in time.
    pub async fn stats(&self, containers_max: u32) -> Result<StatsResponse, Status> {
        let mut client = self.client.clone();
        self.within(client.stats(StatsRequest { containers_max })).await
    }

    /// Starts the drain.
    ///
    /// # Errors
    /// As [`Self::stats`].
    pub async fn drain(&self, grace: Duration) -> Result<DrainResponse, Status> {
        let mut client = self.client.clone();
        let grace_ms = u32::try_from(grace.as_millis()).unwrap_or(u32::MAX);
        self.within(client.drain(DrainRequest { grace_ms })).await
    }

    /// Lets go of a container.
    ///
    /// # Errors
    /// As [`Self::stats`].
    pub async fn evict(&self, request: EvictRequest) -> Result<EvictResponse, Status> {
        let mut client = self.client.clone();
        self.within(client.evict(request)).await
    }

    /// Log lines; the deadline is for the first answer, not for the stream.
    ///
    /// # Errors
    /// As [`Self::stats`].
    pub async fn tail_logs(&self, request: TailLogsRequest) -> Result<Streaming<LogLine>, Status> {
        let mut client = self.client.clone();
        self.within(client.tail_logs(Request::new(request))).await
    }
}

/// The leader's calls over gRPC.
pub struct ControlCalls {
    tls: Option<ControlTls>,
    deadline: Duration,
    clients: parking_lot::Mutex<HashMap<SocketAddr, ControlClient>>,
}

impl ControlCalls {
    /// A source that waits `deadline` for each node.
    #[must_use]
    pub fn new(tls: Option<ControlTls>, deadline: Duration) -> Self {
        Self { tls, deadline, clients: parking_lot::Mutex::default() }
    }

    fn client(&self, addr: SocketAddr) -> Result<ControlClient, String> {
        let mut clients = self.clients.lock();
        if let Some(client) = clients.get(&addr) {
            return Ok(client.clone());
        }
        let client = ControlClient::new(addr, self.tls.as_ref(), self.deadline)?;
        clients.insert(addr, client.clone());
        Ok(client)
    }
}

#[async_trait]
impl NodeCalls for ControlCalls {
    async fn collect(&self, nodes: &[NodeRecord]) -> Vec<(NodeName, NodeStats)> {
        // Connections to nodes that are gone are let go, so that the map never outgrows the cluster.
        self.clients.lock().retain(|addr, _| nodes.iter().any(|node| node.control_addr == *addr));
        let asked = nodes.iter().map(|node| (node.name.clone(), node.incarnation, node.control_addr));
        let asked: Vec<_> = asked.map(|(name, incarnation, addr)| (name, incarnation, self.client(addr))).collect();
        let calls = stream::iter(asked).map(|(name, incarnation, client)| async move {
            let stats = match client {
                Ok(client) => client.stats(CONTAINERS_MAX).await.map_err(|status| status.to_string()),
                Err(reason) => Err(reason),
            };
            match stats {
                Ok(stats) if stats.node == name.as_str() && stats.incarnation == incarnation => Some((name, stats.into())),
                Ok(stats) => {
                    tracing::warn!(node = %name, answered = %stats.node, "another node answers at this node's control address");
                    None
                }
                Err(reason) => {
                    tracing::debug!(node = %name, reason, "no load from this node");
                    None
                }
            }
        });
        calls.buffer_unordered(CONCURRENT_MAX).filter_map(|answer| async { answer }).collect().await
    }

    async fn evict(&self, nodes: &[NodeRecord], evictions: &[Eviction], generation: u64) {
        let mut asked = Vec::new();
        for Eviction { node, path } in evictions {
            let of = nodes.iter().find(|record| record.name == *node);
            if let (Some(record), Some((tenant, container))) = (of, path.split_once('/')) {
                let request = EvictRequest { tenant: tenant.to_owned(), container: container.to_owned(), generation };
                asked.push((node.clone(), path.clone(), self.client(record.control_addr), request));
            }
        }
        let calls = stream::iter(asked).map(|(node, container, client, request)| async move {
            let answer = match client {
                Ok(client) => client.evict(request).await.map_err(|status| status.to_string()),
                Err(reason) => Err(reason),
            };
            match answer {
                Ok(answer) => tracing::info!(%node, container, had_it = answer.evicted, "moved away"),
                Err(reason) => tracing::debug!(%node, container, reason, "keeps it until it is idle"),
            }
        });
        calls.buffer_unordered(CONCURRENT_MAX).collect::<Vec<()>>().await;
    }
}

impl From<StatsResponse> for NodeStats {
    fn from(stats: StatsResponse) -> Self {
        let containers = stats.containers.into_iter().take(CONTAINERS_MAX as usize);
        Self {
            request_rate: stats.request_rate,
            in_flight: stats.in_flight,
            memory_bytes: stats.memory_bytes,
            containers: containers
                .map(|c| ContainerLoad {
                    path: format!("{}/{}", c.tenant, c.container),
                    request_rate: c.request_rate,
                    in_flight: c.in_flight,
                    memory_bytes: c.memory_bytes,
                })
                .collect(),
        }
    }
}
