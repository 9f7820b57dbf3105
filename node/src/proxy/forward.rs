//! A worker's connections to containers: a link to each, which takes most requests, and HTTP connections for the others, kept while
//! idle, opened when needed, never shared between requests at once.

use super::{
    admit::Permit,
    body::{Held, RequestBody, Upload},
    worker::Worker,
};
use crate::handler::{Lease, LiveContainer};
use bytes::{BufMut, BytesMut};
use hearth_edge::link::{AnswerBody, AnswerLimits, CallError, Fields, Link};
use hearth_model::{
    header,
    protocol::{CallHeader, paths},
};
use http::{HeaderValue, Method};
use hyper::{
    Request, Response,
    client::conn::http1::{self, SendRequest},
};
use hyper_util::rt::TokioIo;
use std::{cell::RefCell, collections::HashMap, fmt::Write, io, rc::Rc, sync::Arc, time::Duration};
use tokio::net::UnixStream;

/// Connecting to a unix socket either works at once or the container is not well.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(2);
/// Connections to one container that may turn out to be dead before a fresh one is opened.
const STALE_TRIES_MAX: usize = 3;

type Sender = SendRequest<RequestBody>;

/// Connections by container.
pub(super) struct Connections {
    open: RefCell<HashMap<u64, Open>>,
    idle_max: usize,
}

struct Open {
    container: Arc<LiveContainer>,
    link: Option<Rc<Link>>,
    /// Those that carry nothing now.
    idle: Vec<Sender>,
    /// Whether a request took one since the last sweep.
    used: bool,
}

/// Why a request got no answer.
pub(super) enum SendError {
    /// Nothing of it was sent: it may go elsewhere.
    NotSent(Box<Request<RequestBody>>, String),
    /// Something of it may have reached the function.
    Broken(String),
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
        Self { open: RefCell::default(), idle_max }
    }

    fn of<T>(&self, container: &Arc<LiveContainer>, use_them: impl FnOnce(&mut Open) -> T) -> T {
        let mut open = self.open.borrow_mut();
        let open = open.entry(container.id()).or_insert_with(|| Open {
            container: Arc::clone(container),
            link: None,
            idle: Vec::new(),
            used: true,
        });
        open.used = true;
        use_them(open)
    }

    fn take(&self, container: u64) -> Option<Sender> {
        let mut open = self.open.borrow_mut();
        let open = open.get_mut(&container)?;
        open.used = true;
        // A connection whose last answer was just read may need its task to run once more before it is ready again.
        let at = open.idle.iter().rposition(SendRequest::is_ready)?;
        Some(open.idle.swap_remove(at))
    }

    fn give(&self, container: &Arc<LiveContainer>, sender: Sender) {
        if sender.is_closed() || !container.is_alive() {
            return;
        }
        self.of(container, |open| {
            if open.idle.len() < self.idle_max {
                open.idle.push(sender);
            }
        });
    }

    /// The link to a container, opened if there is none.
    async fn link(&self, container: &Arc<LiveContainer>) -> io::Result<Rc<Link>> {
        let known = || self.of(container, |open| open.link.as_ref().filter(|l| l.is_open()).map(Rc::clone));
        if let Some(link) = known() {
            return Ok(link);
        }
        let stream = connect(container, paths::LINK_SOCKET).await?;
        // Somebody else may have opened one meanwhile.
        if let Some(link) = known() {
            return Ok(link);
        }
        // A container's end shows as the end of its socket.
        let link = Rc::new(Link::open(stream, AnswerLimits::RUNTIME, std::future::pending()));
        self.of(container, |open| open.link = Some(Rc::clone(&link)));
        Ok(link)
    }

    /// Drops connections that are closed, those of containers that are gone, and those that nobody used since the last sweep.
    pub fn sweep(&self) {
        self.open.borrow_mut().retain(|_, open| {
            open.idle.retain(|s| !s.is_closed());
            open.link.take_if(|link| !link.is_open());
            let has_any = open.link.is_some() || !open.idle.is_empty();
            let used = open.used || open.link.as_ref().is_some_and(|link| link.in_flight() > 0);
            open.used = false;
            open.container.is_alive() && used && has_any
        });
    }
}

async fn connect(container: &LiveContainer, socket: &str) -> io::Result<UnixStream> {
    tokio::time::timeout(CONNECT_TIMEOUT, container.connect(socket)).await.map_err(|_| io::ErrorKind::TimedOut)?
}

async fn connect_http(container: &LiveContainer) -> io::Result<Sender> {
    let stream = connect(container, paths::HTTP_SOCKET).await?;
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

/// An answer's head, and the connection that it comes over, unless that is the link.
type Sent = (Response<AnswerBody>, Option<Sender>);

/// Sends one request. Over the link if the function can be called so and all of the request is there.
pub(super) async fn send(
    worker: &Worker,
    container: &Arc<LiveContainer>,
    request: Request<RequestBody>,
    call: &CallHeader<'_>,
    linked: bool,
) -> Result<Sent, SendError> {
    if linked && let Some(body) = request.body().whole() {
        for last in [false, true] {
            // Without a link that takes it, HTTP does as well.
            let Some(link) = worker.connections.link(container).await.ok().filter(|link| !link.is_full()) else { break };
            match link.call(request.method() == Method::HEAD, |out| write_head(out, call, &request), &body).await {
                Ok(response) => return Ok((response.map(AnswerBody::Link), None)),
                Err(CallError::NotSent(_)) if !last => {}
                Err(CallError::NotSent(detail)) => return Err(SendError::NotSent(Box::new(request), detail)),
                Err(CallError::Broken(detail)) => return Err(SendError::Broken(detail)),
            }
        }
    }
    send_http(worker, container, request, call).await
}

/// The head of a call over the link.
fn write_head(out: &mut BytesMut, call: &CallHeader<'_>, request: &Request<RequestBody>) {
    let target = request.uri().path_and_query().map_or("/", http::uri::PathAndQuery::as_str);
    let mut fields = Fields::new(out);
    // Writing to memory does not fail.
    let function = fields.begin();
    function.put_slice(call.function.as_str().as_bytes());
    let _ = write!(function, "@{}", call.version.0);
    fields.put(call.request_id.as_bytes());
    for number in [call.timeout_ms, call.prefix_bytes as u64] {
        let _ = write!(fields.begin(), "{number}");
    }
    for text in [call.client_ip, request.method().as_str(), target] {
        fields.put(text.as_bytes());
    }
    // A try over HTTP may have put the same into a header, which is not the function's.
    fields.put_headers(request.headers().iter().filter(|(name, _)| *name != header::CALL));
}

async fn send_http(
    worker: &Worker,
    container: &Arc<LiveContainer>,
    mut request: Request<RequestBody>,
    call: &CallHeader<'_>,
) -> Result<Sent, SendError> {
    let broken = |error: hyper::Error| SendError::Broken(error.to_string());
    match HeaderValue::try_from(call.to_string()) {
        Ok(value) => request.headers_mut().insert(header::CALL, value),
        Err(error) => return Err(SendError::Broken(error.to_string())),
    };
    for _ in 0..STALE_TRIES_MAX {
        let Some(mut sender) = worker.connections.take(container.id()) else { break };
        match sender.try_send_request(request).await {
            Ok(response) => return Ok((response.map(AnswerBody::Http), Some(sender))),
            Err(mut failed) => match failed.take_message() {
                Some(unsent) => request = unsent,
                None => return Err(broken(failed.into_error())),
            },
        }
    }
    let mut sender = match connect_http(container).await {
        Ok(sender) => sender,
        Err(error) => return Err(SendError::NotSent(Box::new(request), error.to_string())),
    };
    match sender.try_send_request(request).await {
        Ok(response) => Ok((response.map(AnswerBody::Http), Some(sender))),
        Err(mut failed) => match failed.take_message() {
            Some(unsent) => Err(SendError::NotSent(Box::new(unsent), failed.into_error().to_string())),
            None => Err(broken(failed.into_error())),
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
    pub permit: Permit,
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
