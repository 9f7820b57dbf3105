//! A worker's connections to nodes: links, which take most requests, and HTTP connections for the others, kept while idle, opened when
//! needed, never shared between requests at once. All of them end together when their node is found silent.

use crate::{
    Config, Shared,
    body::{Attempt, SharedUpload},
    fleet::{InFlight, Node},
    service::{Admitted, Worker},
};
use bytes::BytesMut;
use hearth_edge::{
    link::{AnswerBody, AnswerLimits, CallError, Fields, Link},
    listen::end_when_silent,
    tls,
};
use hearth_model::protocol::link as frames;
use http::{Method, request::Parts};
use hyper::{
    Request, Response,
    client::conn::http1::{self, SendRequest},
};
use hyper_util::rt::TokioIo;
use std::{
    cell::RefCell,
    collections::HashMap,
    io,
    rc::Rc,
    sync::{Arc, atomic::Ordering::Relaxed},
    time::{Duration, Instant},
};
use tokio::{
    io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt},
    net::TcpStream,
};

/// Idle connections to one node that may turn out to be closed before a fresh one is opened.
const STALE_TRIES_MAX: usize = 3;
/// The platform's headers come on top of a function's.
const HEAD_BYTES_MAX: usize = hearth_model::limits::RESPONSE_HEADER_BYTES_MAX + 64 * 1024;
/// With so many calls on each of a worker's links to a node, another is opened: a link is one worker's affair there as well.
const CALLS_PER_LINK: usize = 64;
/// Links of one worker to one node.
const LINKS_MAX: usize = 8;
/// From a link that could not be opened to the next attempt.
const LINK_PAUSE: Duration = Duration::from_secs(1);

pub(crate) type Sender = SendRequest<Attempt>;

/// Connections by node.
pub(crate) struct Connections {
    open: RefCell<HashMap<u64, Open>>,
    idle_max: usize,
    idle_timeout: Duration,
}

#[derive(Default)]
struct Open {
    /// With the time of their latest call.
    links: Vec<(Rc<Link>, Instant)>,
    /// While one is being opened, and for a while when it could not be.
    no_link_before: Option<Instant>,
    idle: Vec<(Sender, Instant)>,
}

/// Why a request got no answer.
#[derive(Debug)]
pub(crate) enum SendError {
    /// No connection could be had.
    Connect(io::Error),
    /// The connection had ended before anything was sent.
    NotSent(String),
    /// Something of it may have reached the node.
    Broken(String),
}

impl Connections {
    pub fn new(config: &Config) -> Self {
        Self { open: RefCell::default(), idle_max: config.limits.idle_connections_max, idle_timeout: config.node_idle_timeout }
    }

    fn take(&self, node: &Node) -> Option<Sender> {
        let mut open = self.open.borrow_mut();
        let idle = &mut open.get_mut(&node.key)?.idle;
        // A connection whose last answer was just read may need its task to run once more before it is ready again.
        let at = idle.iter().rposition(|(sender, since)| sender.is_ready() && since.elapsed() < self.idle_timeout)?;
        Some(idle.swap_remove(at).0)
    }

    fn give(&self, node: &Node, sender: Sender) {
        if sender.is_closed() {
            return;
        }
        let mut open = self.open.borrow_mut();
        let idle = &mut open.entry(node.key).or_default().idle;
        if idle.len() < self.idle_max {
            idle.push((sender, Instant::now()));
        }
    }

    /// Drops connections that are closed or were idle for too long, and with them what is left of nodes that are gone.
    pub fn sweep(&self) {
        self.open.borrow_mut().retain(|_, open| {
            open.idle.retain(|(sender, since)| !sender.is_closed() && since.elapsed() < self.idle_timeout);
            open.links.retain(|(link, since)| link.is_open() && (link.in_flight() > 0 || since.elapsed() < self.idle_timeout));
            !open.idle.is_empty() || !open.links.is_empty() || open.no_link_before.is_some_and(|at| at > Instant::now())
        });
    }
}

impl Worker {
    /// The link for the next call, if there is one; where another would be good, it is opened meanwhile: no request waits for it, and
    /// none fails with it.
    fn link(self: &Rc<Self>, node: &Arc<Node>) -> Option<Rc<Link>> {
        let now = Instant::now();
        let mut open = self.connections.open.borrow_mut();
        let open = open.entry(node.key).or_default();
        open.links.retain(|(link, _)| link.is_open());
        let best = open.links.iter_mut().filter(|(link, _)| !link.is_full()).min_by_key(|(link, _)| link.in_flight());
        let best = best.map(|(link, used)| {
            *used = now;
            Rc::clone(link)
        });
        let is_busy = best.as_ref().is_none_or(|link| link.in_flight() >= CALLS_PER_LINK);
        if is_busy && open.links.len() < LINKS_MAX && open.no_link_before.is_none_or(|at| at <= now) {
            open.no_link_before = Some(now + self.shared.config.connect_timeout + LINK_PAUSE);
            tokio::task::spawn_local(Rc::clone(self).open_link(Arc::clone(node)));
        }
        best
    }

    async fn open_link(self: Rc<Self>, node: Arc<Node>) {
        let opened = tokio::time::timeout(self.shared.config.connect_timeout, connect_link(&self.shared, &node)).await;
        let opened = opened.unwrap_or_else(|elapsed| Err(elapsed.into()));
        let mut open = self.connections.open.borrow_mut();
        let open = open.entry(node.key).or_default();
        match opened {
            Ok(link) => {
                open.links.push((Rc::new(link), Instant::now()));
                open.no_link_before = None;
            }
            Err(error) => {
                tracing::debug!(node = node.name, %error, "no link to a node");
                if error.kind() == io::ErrorKind::Unsupported {
                    node.links.store(false, Relaxed);
                }
                open.no_link_before = Some(Instant::now() + LINK_PAUSE);
            }
        }
    }
}

async fn dial(node: &Node) -> io::Result<TcpStream> {
    let stream = TcpStream::connect(node.addr).await?;
    stream.set_nodelay(true)?;
    Ok(stream)
}

async fn connect_link(shared: &Shared, node: &Node) -> io::Result<Link> {
    let mut stream = dial(node).await?;
    end_when_silent(&stream)?;
    let gone = node.gone().cancelled_owned();
    match &shared.connector {
        Some(connector) => {
            let stream = connector.connect(tls::NODE, &[frames::ALPN], stream).await?;
            if stream.get_ref().1.alpn_protocol() != Some(frames::ALPN) {
                return Err(io::ErrorKind::Unsupported.into());
            }
            Ok(Link::open(stream, AnswerLimits::NODE, gone))
        }
        None => {
            stream.write_all(frames::PREFACE).await?;
            let mut answer = [0; frames::PREFACE.len()];
            stream.read_exact(&mut answer).await?;
            if answer != *frames::PREFACE {
                return Err(io::ErrorKind::Unsupported.into());
            }
            Ok(Link::open(stream, AnswerLimits::NODE, gone))
        }
    }
}

async fn connect_http(shared: &Shared, node: &Node) -> io::Result<Sender> {
    let stream = dial(node).await?;
    match &shared.connector {
        Some(connector) => speak(connector.connect(tls::NODE, &[], stream).await?, node).await,
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

/// An answer's head, and the connection that it comes over, unless that is a link.
pub(crate) type Sent = (Response<AnswerBody>, Option<Sender>);

/// Sends one request: over a link if all of it is there and it asks for no other protocol, else over an HTTP connection of its own.
pub(crate) async fn send(
    worker: &Rc<Worker>,
    node: &Arc<Node>,
    parts: &Parts,
    upload: &SharedUpload,
    upgrades: bool,
) -> Result<Sent, SendError> {
    if node.links.load(Relaxed) && !upgrades {
        for _ in 0..STALE_TRIES_MAX {
            // Without a link, HTTP does as well.
            let (Some(link), Some(body)) = (worker.link(node), upload.borrow().whole()) else { break };
            match link.call(parts.method == Method::HEAD, |out| write_head(out, parts), &body).await {
                Ok(response) => {
                    worker.shared.metrics.linked.inc();
                    return Ok((response.map(AnswerBody::Link), None));
                }
                Err(CallError::NotSent(_)) => {}
                Err(CallError::Broken(detail)) => return Err(SendError::Broken(detail)),
            }
        }
    }
    send_http(worker, node, Request::from_parts(parts.clone(), Attempt::next(upload))).await
}

/// The head of a call.
fn write_head(out: &mut BytesMut, parts: &Parts) {
    let target = parts.uri.path_and_query().map_or("/", http::uri::PathAndQuery::as_str);
    let mut fields = Fields::new(out);
    fields.put(parts.method.as_str().as_bytes());
    fields.put(target.as_bytes());
    fields.put_headers(parts.headers.iter());
}

async fn send_http(worker: &Worker, node: &Node, mut request: Request<Attempt>) -> Result<Sent, SendError> {
    let broken = |error: hyper::Error| SendError::Broken(error.to_string());
    for _ in 0..STALE_TRIES_MAX {
        let Some(mut sender) = worker.connections.take(node) else { break };
        match sender.try_send_request(request).await {
            Ok(response) => return Ok((response.map(AnswerBody::Http), Some(sender))),
            Err(mut failed) => match failed.take_message() {
                Some(unsent) => request = unsent,
                None => return Err(broken(failed.into_error())),
            },
        }
    }
    let connecting = tokio::time::timeout(worker.shared.config.connect_timeout, connect_http(&worker.shared, node));
    let mut sender = match connecting.await {
        Ok(Ok(sender)) => sender,
        Ok(Err(error)) => return Err(SendError::Connect(error)),
        Err(elapsed) => return Err(SendError::Connect(elapsed.into())),
    };
    match sender.try_send_request(request).await {
        Ok(response) => Ok((response.map(AnswerBody::Http), Some(sender))),
        Err(mut failed) => match failed.take_message() {
            Some(_) => Err(SendError::NotSent(failed.into_error().to_string())),
            None => Err(broken(failed.into_error())),
        },
    }
}

/// What a request holds until its answer has ended.
pub(crate) struct Exchange {
    pub worker: Rc<Worker>,
    pub sender: Option<Sender>,
    pub node: InFlight,
    pub upload: SharedUpload,
    pub _admitted: Admitted,
}

impl Exchange {
    /// Gives everything back; the connection only if the answer was read to its end and the request was sent to its end: otherwise
    /// the next request's head would follow the rest of this one's body.
    pub fn finish(self, complete: bool) {
        if let Some(sender) = self.sender
            && complete
            && self.upload.borrow().is_whole()
        {
            self.worker.connections.give(&self.node.0, sender);
        }
    }
}
