//! A worker's connections to nodes: kept while idle, opened when needed, never shared between requests at once, and ended together
//! when their node is found silent.

use crate::{
    Config, Shared,
    body::{Attempt, SharedUpload},
    fleet::{InFlight, Node},
    service::{Admitted, Worker},
};
use hearth_edge::tls;
use hyper::{
    Request, Response,
    body::Incoming,
    client::conn::http1::{self, SendRequest},
};
use hyper_util::rt::TokioIo;
use std::{
    cell::RefCell,
    collections::HashMap,
    io,
    rc::Rc,
    time::{Duration, Instant},
};
use tokio::{
    io::{AsyncRead, AsyncWrite},
    net::TcpStream,
};

/// Idle connections to one node that may turn out to be closed before a fresh one is opened.
const STALE_TRIES_MAX: usize = 3;
/// The platform's headers come on top of a function's.
const HEAD_BYTES_MAX: usize = hearth_model::limits::RESPONSE_HEADER_BYTES_MAX + 64 * 1024;

pub(crate) type Sender = SendRequest<Attempt>;

/// Idle connections by node.
pub(crate) struct Connections {
    idle: RefCell<HashMap<u64, Vec<(Sender, Instant)>>>,
    idle_max: usize,
    idle_timeout: Duration,
}

/// Why a request got no answer.
#[derive(Debug)]
pub(crate) enum SendError {
    /// No connection could be had.
    Connect(io::Error),
    /// The connection had ended before anything was sent.
    NotSent(hyper::Error),
    /// Something of it may have reached the node.
    Broken(hyper::Error),
}

impl Connections {
    pub fn new(config: &Config) -> Self {
        Self { idle: RefCell::default(), idle_max: config.limits.idle_connections_max, idle_timeout: config.node_idle_timeout }
    }

    fn take(&self, node: &Node) -> Option<Sender> {
        let mut idle = self.idle.borrow_mut();
        let senders = idle.get_mut(&node.key)?;
        // A connection whose last answer was just read may need its task to run once more before it is ready again.
        let at = senders.iter().rposition(|(sender, since)| sender.is_ready() && since.elapsed() < self.idle_timeout)?;
        Some(senders.swap_remove(at).0)
    }

    fn give(&self, node: &Node, sender: Sender) {
        if sender.is_closed() {
            return;
        }
        let mut idle = self.idle.borrow_mut();
        let senders = idle.entry(node.key).or_default();
        if senders.len() < self.idle_max {
            senders.push((sender, Instant::now()));
        }
    }

    /// Drops connections that are closed or were idle for too long, and with them what is left of nodes that are gone.
    pub fn sweep(&self) {
        self.idle.borrow_mut().retain(|_, senders| {
            senders.retain(|(sender, since)| !sender.is_closed() && since.elapsed() < self.idle_timeout);
            !senders.is_empty()
        });
    }
}

async fn connect(shared: &Shared, node: &Node) -> io::Result<Sender> {
    let stream = TcpStream::connect(node.addr).await?;
    stream.set_nodelay(true)?;
    match &shared.connector {
        Some(connector) => speak(connector.connect(tls::NODE, stream).await?, node).await,
        None => speak(stream, node).await,
    }
}

async fn speak<T: AsyncRead + AsyncWrite + Unpin + Send + 'static>(stream: T, node: &Node) -> io::Result<Sender> {
    let (sender, connection) = http1::Builder::new()
        .max_headers(256)
        .max_buf_size(HEAD_BYTES_MAX)
        .handshake(TokioIo::new(stream))
        .await
        .map_err(io::Error::other)?;
    let gone = node.gone();
    // The task lives as long as the connection, and the connection as long as its sender or the node.
    tokio::task::spawn_local(async move {
        tokio::select! {
            result = connection.with_upgrades() => if let Err(error) = result {
                tracing::debug!(%error, "a connection to a node ended");
            },
            () = gone.cancelled() => {}
        }
    });
    Ok(sender)
}

/// Sends one request over an idle connection or a fresh one. Returns the answer's head and the connection that it comes over.
pub(crate) async fn send(
    worker: &Worker,
    node: &Node,
    mut request: Request<Attempt>,
) -> Result<(Response<Incoming>, Sender), SendError> {
    for _ in 0..STALE_TRIES_MAX {
        let Some(mut sender) = worker.connections.take(node) else { break };
        match sender.try_send_request(request).await {
            Ok(response) => return Ok((response, sender)),
            Err(mut failed) => match failed.take_message() {
                Some(unsent) => request = unsent,
                None => return Err(SendError::Broken(failed.into_error())),
            },
        }
    }
    let connecting = tokio::time::timeout(worker.shared.config.connect_timeout, connect(&worker.shared, node));
    let mut sender = match connecting.await {
        Ok(Ok(sender)) => sender,
        Ok(Err(error)) => return Err(SendError::Connect(error)),
        Err(elapsed) => return Err(SendError::Connect(elapsed.into())),
    };
    match sender.try_send_request(request).await {
        Ok(response) => Ok((response, sender)),
        Err(mut failed) => match failed.take_message() {
            Some(_) => Err(SendError::NotSent(failed.into_error())),
            None => Err(SendError::Broken(failed.into_error())),
        },
    }
}

/// What a request holds until its answer has ended.
pub(crate) struct Exchange {
    pub worker: Rc<Worker>,
    pub sender: Sender,
    pub node: InFlight,
    pub upload: SharedUpload,
    pub _admitted: Admitted,
}

impl Exchange {
    /// Gives everything back; the connection only if the answer was read to its end and the request was sent to its end: otherwise
    /// the next request's head would follow the rest of this one's body.
    pub fn finish(self, complete: bool) {
        if complete && self.upload.borrow().is_whole() {
            self.worker.connections.give(&self.node.0, self.sender);
        }
    }
}
