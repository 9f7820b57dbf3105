//! One connection from its first byte to its last: TLS, the choice of the protocol, deadlines on every wait for the client, and the
//! orderly end when the process leaves. What a request means is the [`Service`]'s affair.

use crate::{
    BoxError,
    framing::{Strict, Switched},
    link,
    listen::{Accepted, end_when_silent},
    patience::{Patient, Terms},
    tls,
};
use bytes::Bytes;
use hearth_model::protocol::link as frames;
use http::{HeaderValue, Request, Response, StatusCode, Version, header};
use http_body::{Body, Frame, SizeHint};
use hyper::{
    body::Incoming,
    server::conn::{http1, http2},
    service::service_fn,
};
use hyper_util::rt::{TokioIo, TokioTimer};
use std::{
    cell::{Cell, RefCell},
    convert::Infallible,
    io,
    net::SocketAddr,
    pin::Pin,
    rc::{Rc, Weak},
    sync::Arc,
    task::{Context, Poll},
    time::Duration,
};
use tokio::{
    io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt},
    net::TcpStream,
    sync::{Semaphore, mpsc},
    task::LocalSet,
    time::Instant,
};
use tokio_util::sync::CancellationToken;

/// How often the service's idle things are looked through.
const SWEEP_EVERY: Duration = Duration::from_secs(5);
/// How often an HTTP/2 connection is looked at for idleness and for streams that the client does not take.
const LOOK_EVERY: Duration = Duration::from_secs(2);
/// How long an HTTP/1.1 connection without a request stays when this process leaves. One that was just made, or whose next request is on
/// its way, would lose it to a close at once, and its client could not know whether the request was done. Answers of this time say
/// `connection: close`. (nginx has it as `keepalive_min_timeout`.)
const LAST_REQUEST_WAIT: Duration = Duration::from_secs(1);
/// What every HTTP/2 connection begins with.
const PREFACE: &[u8; 24] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";

/// Bounds of HTTP/2; each answers a known attack.
#[derive(Debug, Clone, Copy)]
pub struct Http2 {
    /// Requests at once on one connection.
    pub streams_max: u32,
    /// Streams that the client reset before we looked at them (rapid reset, CVE-2023-44487).
    pub pending_resets_max: usize,
    /// Streams that we reset because of the client's errors.
    pub local_resets_max: usize,
}

impl Default for Http2 {
    fn default() -> Self {
        Self { streams_max: 100, pending_resets_max: 20, local_resets_max: 64 }
    }
}

/// How connections are served.
pub struct Protocol {
    /// From the connection (or the end of the hand-shake) to the end of the first headers, and from one request to the next.
    pub header_timeout: Duration,
    /// From the connection to its first byte, and for the TLS hand-shake.
    pub first_byte_timeout: Duration,
    /// How long the client may keep an answer waiting.
    pub write_terms: Terms,
    /// Longest head of a request; what is above the platform's limits but below this is answered with a problem.
    pub head_bytes_max: usize,
    /// As above, number of headers.
    pub headers_max: usize,
    /// TLS, if this listener has it.
    pub tls: Option<Arc<tls::Acceptor>>,
    /// HTTP/2, if this listener has it.
    pub http2: Option<Http2>,
    /// Whether routers may open links.
    pub links: bool,
    /// Whether a plain connection from this machine is a router's (development only).
    pub trust_loopback: bool,
    /// Cancelled when this process leaves: connections close after the requests they are at, or that were on their way.
    pub draining: CancellationToken,
}

/// The other side of a connection.
pub struct Peer {
    /// Its address.
    pub addr: SocketAddr,
    /// Whether it has proven to be a router.
    pub is_router: bool,
    /// Whether it came over TLS.
    pub tls: bool,
    streams: RefCell<Vec<Weak<Stream>>>,
    used: Cell<Instant>,
}

/// What answers requests on one worker thread.
pub trait Service: 'static {
    /// The answers' bodies.
    type Body: Body<Data = Bytes, Error = BoxError> + Unpin + 'static;
    /// Answers one request; never fails, since every failure is an answer.
    fn answer(self: Rc<Self>, peer: Rc<Peer>, request: Request<ClientBody>)
    -> impl Future<Output = Response<Self::Body>> + 'static;
    /// Drops what has been idle; called every few seconds.
    fn sweep(&self) {}
}

/// A request's body.
pub enum ClientBody {
    /// On its way.
    Http(Incoming),
    /// All of it.
    Whole(Bytes),
}

impl Body for ClientBody {
    type Data = Bytes;
    type Error = BoxError;

    fn poll_frame(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, BoxError>>> {
        match self.get_mut() {
            Self::Http(body) => Pin::new(body).poll_frame(cx).map_err(Into::into),
            Self::Whole(bytes) => {
                let bytes = std::mem::take(bytes);
                Poll::Ready((!bytes.is_empty()).then(|| Ok(Frame::data(bytes))))
            }
        }
    }

    fn is_end_stream(&self) -> bool {
        match self {
            Self::Http(body) => body.is_end_stream(),
            Self::Whole(bytes) => bytes.is_empty(),
        }
    }

    fn size_hint(&self) -> SizeHint {
        match self {
            Self::Http(body) => body.size_hint(),
            Self::Whole(bytes) => SizeHint::with_exact(bytes.len() as u64),
        }
    }
}

/// Runs one worker: a single-threaded runtime and the connections dealt to it, until the listener and its grace are over.
pub fn run<S: Service>(protocol: &Arc<Protocol>, receiver: mpsc::Receiver<Accepted>, make: impl FnOnce() -> S) {
    let runtime = match tokio::runtime::Builder::new_current_thread().enable_all().build() {
        Ok(runtime) => runtime,
        Err(error) => {
            tracing::error!(%error, "a worker cannot start; its connections are refused");
            return;
        }
    };
    let local = LocalSet::new();
    local.block_on(&runtime, async { serve(Rc::new(make()), Arc::clone(protocol), receiver).await });
}

async fn serve<S: Service>(service: Rc<S>, protocol: Arc<Protocol>, mut receiver: mpsc::Receiver<Accepted>) {
    let mut sweep = tokio::time::interval(SWEEP_EVERY);
    let mut tasks = tokio::task::JoinSet::new();
    loop {
        // Each branch is cancel-safe.
        tokio::select! {
            accepted = receiver.recv() => match accepted {
                Some(accepted) => { tasks.spawn_local(connection(Rc::clone(&service), Arc::clone(&protocol), accepted)); }
                None => break,
            },
            Some(_) = tasks.join_next() => {}
            _ = sweep.tick() => service.sweep(),
        }
    }
    // The listener is gone: what is left ends by itself, or is cut when its place among the open ones is taken away.
    while tasks.join_next().await.is_some() {}
}

async fn connection<S: Service>(service: Rc<S>, protocol: Arc<Protocol>, Accepted { stream, peer: addr, place }: Accepted) {
    let Ok(stream) = TcpStream::from_std(stream) else { return };
    let open = Arc::clone(place.all());
    let served = async {
        match &protocol.tls {
            None => {
                let is_router = protocol.trust_loopback && addr.ip().is_loopback();
                let speech = tokio::time::timeout(protocol.first_byte_timeout, protocol.first_words(&stream, is_router));
                let speech = speech.await.map_err(io::Error::from)??;
                let mut stream = stream;
                if speech == Speech::Link {
                    end_when_silent(&stream)?;
                    // It was seen, so that it is there.
                    stream.read_exact(&mut [0; frames::PREFACE.len()]).await?;
                    stream.write_all(frames::PREFACE).await?;
                }
                protocol.speak(service, Peer::new(addr, is_router, false), stream, speech, &open).await
            }
            Some(acceptor) => {
                let shaken = tokio::time::timeout(protocol.first_byte_timeout, acceptor.current().accept(stream));
                let stream = shaken.await.map_err(io::Error::from)??;
                let (tcp, session) = stream.get_ref();
                let is_router = tls::has_role(session.peer_certificates(), tls::ROUTER);
                let speech = match session.alpn_protocol() {
                    Some(b"h2") => Speech::Http2,
                    Some(frames::ALPN) if is_router && protocol.links => {
                        end_when_silent(tcp)?;
                        Speech::Link
                    }
                    Some(frames::ALPN) => return Err("links are for routers".into()),
                    _ => Speech::Http1,
                };
                protocol.speak(service, Peer::new(addr, is_router, true), stream, speech, &open).await
            }
        }
    };
    if let Err(error) = served.await {
        tracing::debug!(peer = %addr, %error, "a client connection ended");
    }
    drop(place);
}

/// What a connection speaks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Speech {
    Http1,
    Http2,
    Link,
}

/// Whether a connection begins with `preface`; looks at its first bytes without taking them.
async fn begins_with<const N: usize>(stream: &TcpStream, preface: &[u8; N]) -> io::Result<bool> {
    let mut seen = [0_u8; N];
    loop {
        let n = stream.peek(&mut seen).await?;
        if n == 0 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        if seen[..n] != preface[..n] {
            return Ok(false);
        }
        if n == N {
            return Ok(true);
        }
        // A peek returns at once as long as anything is there; the rest of a few bytes is not worth more than a look now and then.
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

impl Protocol {
    /// What a plain connection speaks.
    async fn first_words(&self, stream: &TcpStream, is_router: bool) -> io::Result<Speech> {
        if self.http2.is_some() && begins_with(stream, PREFACE).await? {
            return Ok(Speech::Http2);
        }
        if self.links && is_router && begins_with(stream, frames::PREFACE).await? {
            return Ok(Speech::Link);
        }
        Ok(Speech::Http1)
    }

    async fn speak<S: Service, T>(
        &self,
        service: Rc<S>,
        peer: Peer,
        stream: T,
        speech: Speech,
        open: &Semaphore,
    ) -> Result<(), BoxError>
    where
        T: AsyncRead + AsyncWrite + Unpin + Send + 'static,
    {
        let peer = Rc::new(peer);
        let io = Patient::new(stream, self.write_terms);
        match (speech, self.http2) {
            (Speech::Http2, Some(bounds)) => self.http2(service, peer, TokioIo::new(io), bounds, open).await,
            (Speech::Link, _) => {
                tokio::select! {
                    result = link::serve::run(service, peer, io, self.draining.cancelled()) => result,
                    () = async { self.draining.cancelled().await; closed(open).await } => Ok(()),
                }
            }
            _ => self.http1(service, peer, io, open).await,
        }
    }

    async fn http1<S: Service, T>(&self, service: Rc<S>, peer: Rc<Peer>, io: Patient<T>, open: &Semaphore) -> Result<(), BoxError>
    where
        T: AsyncRead + AsyncWrite + Unpin + Send + 'static,
    {
        let switched = Switched::default();
        let io = TokioIo::new(Strict::new(io, switched.clone()));
        let mut builder = http1::Builder::new();
        builder
            .timer(TokioTimer::new())
            .header_read_timeout(self.header_timeout)
            .max_buf_size(self.head_bytes_max)
            .max_headers(self.headers_max);
        // Not `pipeline_flush`: with it a client that sends on after asking for an upgrade never sees the 101.
        let service = service_fn(move |request: Request<Incoming>| {
            let answer = Rc::clone(&service).answer(Rc::clone(&peer), request.map(ClientBody::Http));
            let (switched, draining) = (switched.clone(), self.draining.clone());
            async move {
                let mut answer = answer.await;
                if answer.status() == StatusCode::SWITCHING_PROTOCOLS {
                    switched.set();
                } else if draining.is_cancelled() {
                    answer.headers_mut().insert(header::CONNECTION, HeaderValue::from_static("close"));
                }
                Ok::<_, Infallible>(answer)
            }
        });
        let connection = builder.serve_connection(io, service).with_upgrades();
        tokio::pin!(connection);
        tokio::select! {
            result = connection.as_mut() => return result.map_err(Into::into),
            () = self.draining.cancelled() => {}
        }
        let cut = closed(open);
        tokio::pin!(cut);
        tokio::select! {
            result = connection.as_mut() => return result.map_err(Into::into),
            () = tokio::time::sleep(LAST_REQUEST_WAIT) => connection.as_mut().graceful_shutdown(),
            () = cut.as_mut() => return Ok(()),
        }
        tokio::select! {
            result = connection => result.map_err(Into::into),
            () = cut => Ok(()),
        }
    }

    async fn http2<S: Service, T>(
        &self,
        service: Rc<S>,
        peer: Rc<Peer>,
        io: TokioIo<Patient<T>>,
        bounds: Http2,
        open: &Semaphore,
    ) -> Result<(), BoxError>
    where
        T: AsyncRead + AsyncWrite + Unpin + Send + 'static,
    {
        let mut builder = http2::Builder::new(LocalExecutor);
        builder
            .timer(TokioTimer::new())
            .max_concurrent_streams(bounds.streams_max)
            .max_pending_accept_reset_streams(bounds.pending_resets_max)
            .max_local_error_reset_streams(bounds.local_resets_max)
            .max_header_list_size(u32::try_from(self.head_bytes_max).unwrap_or(u32::MAX))
            .initial_stream_window_size(256 * 1024)
            .initial_connection_window_size(1024 * 1024)
            .max_send_buf_size(128 * 1024)
            .keep_alive_interval(self.header_timeout)
            .keep_alive_timeout(self.first_byte_timeout);
        let seen = Rc::clone(&peer);
        let service = service_fn(move |request: Request<Incoming>| {
            let stream = seen.open_stream();
            let answer = Rc::clone(&service).answer(Rc::clone(&seen), request.map(ClientBody::Http));
            async move { Ok::<_, Infallible>(answer.await.map(|body| StreamBody { body, stream })) }
        });
        let connection = builder.serve_connection(io, service);
        tokio::pin!(connection);
        let mut leaving = false;
        loop {
            tokio::select! {
                result = connection.as_mut() => return result.map_err(Into::into),
                () = self.draining.cancelled(), if !leaving => {
                    leaving = true;
                    connection.as_mut().graceful_shutdown();
                }
                () = closed(open), if leaving => return Ok(()),
                () = tokio::time::sleep(LOOK_EVERY) => match peer.look(self) {
                    Look::Busy => {}
                    Look::Idle => return Ok(()),
                    Look::Stuck => return Err("the client does not take the answers it asked for".into()),
                },
            }
        }
    }
}

/// Waits until the listener has given up on the connections that are still open.
async fn closed(open: &Semaphore) {
    while !open.is_closed() {
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

enum Look {
    Busy,
    Idle,
    Stuck,
}

impl Peer {
    pub(crate) fn new(addr: SocketAddr, is_router: bool, tls: bool) -> Self {
        Self { addr, is_router, tls, streams: RefCell::default(), used: Cell::new(Instant::now()) }
    }

    fn open_stream(&self) -> Rc<Stream> {
        let stream = Rc::new(Stream { owed_since: Cell::new(None) });
        self.used.set(Instant::now());
        let mut streams = self.streams.borrow_mut();
        // Those that ended go before the list grows, which keeps it within twice the open ones.
        if streams.len() == streams.capacity() {
            streams.retain(|s| s.strong_count() > 0);
        }
        streams.push(Rc::downgrade(&stream));
        stream
    }

    fn look(&self, protocol: &Protocol) -> Look {
        let mut streams = self.streams.borrow_mut();
        streams.retain(|s| s.strong_count() > 0);
        if streams.is_empty() {
            return if self.used.get().elapsed() > protocol.header_timeout { Look::Idle } else { Look::Busy };
        }
        self.used.set(Instant::now());
        let stuck = |s: &Weak<Stream>| {
            s.upgrade().and_then(|s| s.owed_since.get()).is_some_and(|since| since.elapsed() > protocol.write_terms.wait_max)
        };
        if streams.iter().any(stuck) { Look::Stuck } else { Look::Busy }
    }
}

/// One HTTP/2 request.
struct Stream {
    /// Since when there has been something that the client gives no window for.
    owed_since: Cell<Option<Instant>>,
}

/// An answer's body that notes when it is not asked for more.
struct StreamBody<B> {
    body: B,
    stream: Rc<Stream>,
}

impl<B: Body<Data = Bytes, Error = BoxError> + Unpin> Body for StreamBody<B> {
    type Data = Bytes;
    type Error = BoxError;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, BoxError>>> {
        let polled = Pin::new(&mut self.body).poll_frame(cx);
        self.stream.owed_since.set(matches!(polled, Poll::Ready(Some(Ok(_)))).then(Instant::now));
        polled
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

/// Runs HTTP/2's tasks on the worker's own thread.
#[derive(Clone, Copy)]
struct LocalExecutor;

impl<F> hyper::rt::Executor<F> for LocalExecutor
where
    F: Future + 'static,
    F::Output: 'static,
{
    fn execute(&self, future: F) {
        tokio::task::spawn_local(future);
    }
}

/// Whether a request is one that may change the connection's protocol: HTTP/1.1, `GET`, nothing in its body.
#[must_use]
pub fn may_upgrade<B: http_body::Body>(request: &Request<B>) -> bool {
    request.version() == Version::HTTP_11 && request.method() == http::Method::GET && request.body().is_end_stream()
}
