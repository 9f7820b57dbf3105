//! The running proxy, and its workers: one thread, one single-threaded runtime, the client connections dealt to it, and its own
//! connections to containers.

use super::{Config, Metrics, Shared, body::ResponseBody, forward::Connections, pause::Pause, service};
use crate::{catalog::Catalog, handler::Handler};
use hearth_edge::{
    ids::RequestIds,
    listen::{Listener, Options},
    patience::Terms,
    serve::{self, ClientBody, Peer, Protocol},
    tls,
};
use hearth_model::limits;
use http::{HeaderValue, Request, Response};
use std::{io, net::SocketAddr, rc::Rc, sync::Arc, time::Duration};
use tokio_util::sync::CancellationToken;

/// A client that reads an answer, or sends a body, more slowly than this is cut (after the header time-out, with what it earned).
pub(super) const RATE_MIN_BYTES_PER_S: u64 = 1_024;

/// The running proxy.
pub struct Proxy {
    listener: Listener,
    refusing: CancellationToken,
}

impl Proxy {
    /// Serves on `listener` until [`Proxy::shutdown`].
    ///
    /// # Errors
    /// When a worker thread cannot be started.
    pub fn start(
        listener: std::net::TcpListener,
        config: Config,
        tls: Option<Arc<tls::Acceptor>>,
        catalog: Arc<Catalog>,
        handler: Arc<Handler>,
        metrics: Arc<Metrics>,
        manage: axum::Router,
    ) -> io::Result<Self> {
        let (draining, refusing) = (CancellationToken::new(), CancellationToken::new());
        let options = Options {
            name: "proxy",
            workers: config.workers,
            connections_max: config.connections_max,
            connections_per_address_max: config.connections_per_address_max,
        };
        let protocol = Arc::new(Protocol {
            header_timeout: config.header_timeout,
            first_byte_timeout: config.header_timeout,
            write_terms: Terms { wait_max: config.header_timeout, rate_min_bytes_per_s: RATE_MIN_BYTES_PER_S },
            head_bytes_max: limits::REQUEST_HEADER_BYTES_MAX + limits::REQUEST_TARGET_BYTES_MAX + 32 * 1024,
            headers_max: limits::REQUEST_HEADERS_MAX * 2,
            tls,
            http2: None,
            links: true,
            trust_loopback: config.trust_router,
            draining: draining.clone(),
        });
        let node_name = config.node_name.as_deref().and_then(|name| HeaderValue::from_str(name).ok());
        let main = tokio::runtime::Handle::current();
        let shared = Arc::new(Shared {
            config,
            catalog,
            handler,
            metrics,
            manage,
            main,
            node_name,
            refusing: refusing.clone(),
            draining: draining.clone(),
        });
        let listener = Listener::start(listener, options, draining, move |connections| {
            serve::run(&protocol, connections, || Worker {
                connections: Connections::new(shared.config.idle_connections_max),
                shared: Arc::clone(&shared),
                ids: RequestIds::default(),
                pause: Pause::default(),
            });
        })?;
        Ok(Self { listener, refusing })
    }

    /// Where it listens.
    #[must_use]
    pub fn addr(&self) -> SocketAddr {
        self.listener.addr()
    }

    /// From now on new requests are sent elsewhere, on connections that then close; those under way go on.
    pub fn refuse(&self) {
        self.refusing.cancel();
    }

    /// Stops accepting, lets every connection finish the request it is at, and returns when all are closed or `grace` is over.
    /// Returns the number of connections that were cut.
    pub async fn shutdown(self, grace: Duration) -> usize {
        self.listener.shutdown(grace).await
    }
}

/// One worker's own state.
pub(super) struct Worker {
    pub shared: Arc<Shared>,
    pub connections: Connections,
    pub ids: RequestIds,
    pub pause: Pause,
}

impl serve::Service for Worker {
    type Body = ResponseBody;

    async fn answer(self: Rc<Self>, peer: Rc<Peer>, request: Request<ClientBody>) -> Response<ResponseBody> {
        let node_name = self.shared.node_name.clone();
        let mut response = service::answer(self, &peer, request).await;
        if let Some(name) = node_name {
            response.headers_mut().insert(hearth_model::header::NODE, name);
        }
        response
    }

    fn sweep(&self) {
        self.connections.sweep();
    }
}
