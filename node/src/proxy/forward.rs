//! A worker's connections to containers: kept while idle, opened when needed, never shared between requests at once.

use super::{
    admit::Permit,
    body::{Held, RequestBody, Upload},
    worker::Worker,
};
use crate::handler::{Lease, LiveContainer};
use hyper::{
    Request, Response,
    body::Incoming,
    client::conn::http1::{self, SendRequest},
};
use hyper_util::rt::TokioIo;
use std::{cell::RefCell, collections::HashMap, io, rc::Rc, sync::Arc, time::Duration};

/// Connecting to a unix socket either works at once or the container is not well.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(2);
/// Connections to one container that may turn out to be dead before a fresh one is opened.
const STALE_TRIES_MAX: usize = 3;

type Sender = SendRequest<RequestBody>;

/// Idle connections by container.
pub(super) struct Connections {
    idle: RefCell<HashMap<u64, Idle>>,
    idle_max: usize,
}

struct Idle {
    container: Arc<LiveContainer>,
    senders: Vec<Sender>,
    /// Whether a request took one since the last sweep.
    used: bool,
}

/// Why a request got no answer.
pub(super) enum SendError {
    /// Nothing of it was sent: it may go elsewhere.
    NotSent(Box<Request<RequestBody>>, String),
    /// Something of it may have reached the function.
    Broken(hyper::Error),
}

impl std::fmt::Debug for SendError {
    /// Without the request, which is the tenant's.
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::NotSent(_, detail) => write!(f, "not sent: {detail}"),
            Self::Broken(error) => write!(f, "broken: {error}"),
        }
    }
}

impl Connections {
    pub fn new(idle_max: usize) -> Self {
        Self { idle: RefCell::default(), idle_max }
    }

    fn take(&self, container: u64) -> Option<Sender> {
        let mut idle = self.idle.borrow_mut();
        let idle = idle.get_mut(&container)?;
        idle.used = true;
        // A connection whose last answer was just read may need its task to run once more before it is ready again.
        let at = idle.senders.iter().rposition(SendRequest::is_ready)?;
        Some(idle.senders.swap_remove(at))
    }

    fn give(&self, container: &Arc<LiveContainer>, sender: Sender) {
        if sender.is_closed() || !container.is_alive() {
            return;
        }
        let mut idle = self.idle.borrow_mut();
        let idle = idle.entry(container.id()).or_insert_with(|| Idle {
            container: Arc::clone(container),
            senders: Vec::new(),
            used: true,
        });
        if idle.senders.len() < self.idle_max {
            idle.senders.push(sender);
        }
    }

    /// Drops connections that are closed, those of containers that are gone, and those that nobody used since the last sweep.
    pub fn sweep(&self) {
        self.idle.borrow_mut().retain(|_, idle| {
            idle.senders.retain(|s| !s.is_closed());
            let keep = idle.container.is_alive() && idle.used && !idle.senders.is_empty();
            idle.used = false;
            keep
        });
    }
}

async fn connect(container: &LiveContainer) -> io::Result<Sender> {
    let stream = tokio::time::timeout(CONNECT_TIMEOUT, container.connect()).await.map_err(|_| io::ErrorKind::TimedOut)??;
    let (sender, connection) = http1::Builder::new()
        // `RESPONSE_HEADERS_MAX` is hyper's own bound: with any other it takes its tables of headers from the heap, for every answer.
        .max_buf_size(hearth_model::limits::RESPONSE_HEADER_BYTES_MAX + 16 * 1024)
        .handshake(TokioIo::new(stream))
        .await
        .map_err(io::Error::other)?;
    // The task lives as long as the connection, and the connection as long as its sender or the container.
    tokio::task::spawn_local(async move {
        if let Err(error) = connection.with_upgrades().await {
            tracing::debug!(%error, "connection to a container ended");
        }
    });
    Ok(sender)
}

/// Sends one request over an idle connection or a fresh one. Returns the answer's head and the connection that it comes over.
pub(super) async fn send(
    worker: &Worker,
    container: &Arc<LiveContainer>,
    mut request: Request<RequestBody>,
) -> Result<(Response<Incoming>, Sender), SendError> {
    for _ in 0..STALE_TRIES_MAX {
        let Some(mut sender) = worker.connections.take(container.id()) else { break };
        match sender.try_send_request(request).await {
            Ok(response) => return Ok((response, sender)),
            Err(mut failed) => match failed.take_message() {
                Some(unsent) => request = unsent,
                None => return Err(SendError::Broken(failed.into_error())),
            },
        }
    }
    let mut sender = match connect(container).await {
        Ok(sender) => sender,
        Err(error) => return Err(SendError::NotSent(Box::new(request), error.to_string())),
    };
    match sender.try_send_request(request).await {
        Ok(response) => Ok((response, sender)),
        Err(mut failed) => match failed.take_message() {
            Some(unsent) => Err(SendError::NotSent(Box::new(unsent), failed.into_error().to_string())),
            None => Err(SendError::Broken(failed.into_error())),
        },
    }
}

/// What a request holds until its answer has ended.
pub(super) struct Exchange {
    pub worker: Rc<Worker>,
    pub sender: Option<Sender>,
    pub lease: Lease,
    pub upload: Rc<Upload>,
    pub _held: Held,
    pub _permit: Permit,
}

impl Exchange {
    /// Gives everything back; the connection only if the answer was read to its end and the request was sent to its end.
    pub fn finish(mut self, complete: bool) {
        if let Some(sender) = self.sender.take()
            && complete
            && self.upload.whole.get()
        {
            self.worker.connections.give(self.lease.container(), sender);
        }
    }
}
