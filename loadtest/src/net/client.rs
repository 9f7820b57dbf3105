//! One request over one connection, and the pool of idle connections that it comes from and goes back to.

use super::{
    Destination, Failed, Failure, Http, Options, Payload,
    dial::{self, Sender},
};
use bytes::{Bytes, BytesMut};
use http::{HeaderMap, Request, Response, StatusCode, Uri};
use http_body::Body as _;
use http_body_util::BodyExt as _;
use hyper::{
    body::Incoming,
    client::conn::{http1, http2},
};
use std::{
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicUsize, Ordering},
    },
    time::Instant,
};
use tokio::sync::OnceCell;

/// A whole answer.
#[derive(Debug)]
pub struct Answer {
    /// Its status.
    pub status: StatusCode,
    /// Its headers.
    pub headers: HeaderMap,
    /// When its head was there.
    pub head_at: Instant,
    /// Bytes of its body.
    pub bytes: u64,
    /// The first bytes of its body, as many as the caller wanted to keep.
    pub kept: Bytes,
}

/// Connections to some destinations, for the tasks of one single-threaded runtime.
pub struct Client {
    places: Vec<Place>,
    options: Options,
}

struct Place {
    to: Destination,
    /// The last one used is the first one taken, so that few stay in use and the others age.
    idle: Mutex<Vec<http1::SendRequest<Payload>>>,
    shared: Vec<Mutex<Arc<OnceCell<Shared>>>>,
    turn: AtomicUsize,
}

/// A connection that carries many requests at once; none where the destination chose HTTP/1.1.
type Shared = Option<http2::SendRequest<Payload>>;

impl std::fmt::Debug for Client {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Client").field("destinations", &self.places.len()).finish_non_exhaustive()
    }
}

impl Client {
    /// A client; connects when the first request comes.
    #[must_use]
    pub fn new(destinations: Vec<Destination>, options: Options) -> Self {
        let slots = options.h2_connections.max(1);
        let place = |to| Place {
            to,
            idle: Mutex::default(),
            shared: (0..slots).map(|_| Mutex::default()).collect(),
            turn: AtomicUsize::new(0),
        };
        Self { places: destinations.into_iter().map(place).collect(), options }
    }

    /// Sends a request to the destination with this number and reads the whole answer, keeping up to `keep` bytes of it. The URI is the path alone. The
    /// caller sets the deadline: dropping the call closes its connection.
    ///
    /// # Errors
    /// There is no whole answer.
    pub async fn call(&self, place: usize, mut request: Request<Payload>, keep: usize) -> Result<Answer, Failed> {
        let place = &self.places[place];
        let secure = place.to.tls.is_some();
        if self.options.fresh {
            let sender = self.dial(place).await?;
            if matches!(sender, Sender::One(_)) {
                request.headers_mut().insert(http::header::CONNECTION, http::HeaderValue::from_static("close"));
            }
            return match sender {
                Sender::One(sender) => self.send_one(place, sender, request, keep).await.map_err(Unsent::into_failed),
                Sender::Two(sender) => send_two(place, sender, request, keep).await.map_err(Unsent::into_failed),
            };
        }
        if self.options.http == Http::Two || (secure && self.options.http == Http::Auto) {
            match self.call_shared(place, request, keep).await? {
                Ok(answer) => return Ok(answer),
                Err(back) => request = back,
            }
        }
        loop {
            let (sender, reused) = match take_idle(place).await {
                Some(sender) => (sender, true),
                None => match self.dial(place).await? {
                    Sender::One(sender) => (sender, false),
                    Sender::Two(sender) => return send_two(place, sender, request, keep).await.map_err(Unsent::into_failed),
                },
            };
            match self.send_one(place, sender, request, keep).await {
                Ok(answer) => return Ok(answer),
                // The pool's connection had been closed meanwhile and nothing was written: the next one takes it. Each round uses up
                // one idle connection, so it ends.
                Err(Unsent { request: Some(back), .. }) if reused => request = *back,
                Err(unsent) => return Err(unsent.failed),
            }
        }
    }

    /// Over one of the shared HTTP/2 connections; the request comes back where the destination turned out to speak HTTP/1.1.
    async fn call_shared(
        &self,
        place: &Place,
        mut request: Request<Payload>,
        keep: usize,
    ) -> Result<Result<Answer, Request<Payload>>, Failed> {
        // A connection that is going away gives the request back unsent; twice in a row is a failure of the target.
        for last in [false, true] {
            let slot = &place.shared[place.turn.fetch_add(1, Ordering::Relaxed) % place.shared.len()];
            let cell = {
                let mut cell = slot.lock().unwrap_or_else(PoisonError::into_inner);
                if matches!(cell.get(), Some(Some(sender)) if sender.is_closed()) {
                    *cell = Arc::default();
                }
                Arc::clone(&cell)
            };
            let shared = cell
                .get_or_try_init(async || match self.dial(place).await? {
                    Sender::Two(sender) => Ok(Some(sender)),
                    Sender::One(sender) => {
                        put_idle(place, sender);
                        Ok(None)
                    }
                })
                .await?;
            let Some(sender) = shared else { return Ok(Err(request)) };
            match send_two(place, sender.clone(), request, keep).await {
                Ok(answer) => return Ok(Ok(answer)),
                Err(Unsent { request: Some(back), .. }) if !last => request = *back,
                Err(unsent) => return Err(unsent.failed),
            }
        }
        Err(Failed::new(Failure::Reset, "connection lost before the answer"))
    }

    async fn dial(&self, place: &Place) -> Result<Sender, Failed> {
        dial::dial(&place.to, &self.options, place.turn.fetch_add(1, Ordering::Relaxed)).await
    }

    async fn send_one(
        &self,
        place: &Place,
        mut sender: http1::SendRequest<Payload>,
        request: Request<Payload>,
        keep: usize,
    ) -> Result<Answer, Unsent> {
        match sender.try_send_request(request).await {
            Ok(response) => {
                let answer = read(response, keep).await?;
                if !self.options.fresh {
                    put_idle(place, sender);
                }
                Ok(answer)
            }
            Err(mut error) => {
                let request = error.take_message().map(Box::new);
                Err(Unsent { request, failed: Failed::waiting(error.error()) })
            }
        }
    }
}

/// A failed sending; with the request where none of it was written.
struct Unsent {
    request: Option<Box<Request<Payload>>>,
    failed: Failed,
}

impl Unsent {
    fn into_failed(self) -> Failed {
        self.failed
    }
}

impl From<Failed> for Unsent {
    fn from(failed: Failed) -> Self {
        Self { request: None, failed }
    }
}

fn put_idle(place: &Place, sender: http1::SendRequest<Payload>) {
    if !sender.is_closed() {
        place.idle.lock().unwrap_or_else(PoisonError::into_inner).push(sender);
    }
}

async fn take_idle(place: &Place) -> Option<http1::SendRequest<Payload>> {
    loop {
        let mut sender = place.idle.lock().unwrap_or_else(PoisonError::into_inner).pop()?;
        if sender.is_ready() || sender.ready().await.is_ok() {
            return Some(sender);
        }
    }
}

async fn send_two(
    place: &Place,
    mut sender: http2::SendRequest<Payload>,
    mut request: Request<Payload>,
    keep: usize,
) -> Result<Answer, Unsent> {
    let mut parts = http::uri::Parts::default();
    parts.scheme = Some(if place.to.tls.is_some() { http::uri::Scheme::HTTPS } else { http::uri::Scheme::HTTP });
    parts.authority = Some(place.to.authority.clone());
    parts.path_and_query = request.uri().path_and_query().cloned();
    if let Ok(uri) = Uri::from_parts(parts) {
        *request.uri_mut() = uri;
    }
    request.headers_mut().remove(http::header::HOST);
    match sender.try_send_request(request).await {
        Ok(response) => Ok(read(response, keep).await?),
        Err(mut error) => {
            let request = error.take_message().map(Box::new);
            Err(Unsent { request, failed: Failed::waiting(error.error()) })
        }
    }
}

async fn read(response: Response<Incoming>, keep: usize) -> Result<Answer, Failed> {
    let head_at = Instant::now();
    let (head, mut body) = response.into_parts();
    let (mut bytes, mut kept) = (0, BytesMut::new());
    while !body.is_end_stream() {
        let Some(frame) = body.frame().await else { break };
        let frame = frame.map_err(|e| Failed::reading(&e))?;
        if let Some(data) = frame.data_ref() {
            bytes += data.len() as u64;
            if kept.len() < keep {
                kept.extend_from_slice(&data[..data.len().min(keep - kept.len())]);
            }
        }
    }
    Ok(Answer { status: head.status, headers: head.headers, head_at, bytes, kept: kept.freeze() })
}
