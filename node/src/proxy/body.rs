//! Bodies in both directions: a request's, counted against its limit; a response's, which gives back what the exchange holds when it
//! ends, and is cut when the function goes silent.

use super::forward::Exchange;
use crate::uploads;
use bytes::{Bytes, BytesMut};
use hearth_edge::{
    BoxError,
    link::AnswerBody,
    patience::{Patience, Terms},
    serve::ClientBody,
};
use http_body::{Body, Frame, SizeHint};
use http_body_util::BodyExt;
use std::{
    cell::{Cell, RefCell},
    io,
    pin::Pin,
    rc::Rc,
    task::{Context, Poll, ready},
    time::Duration,
};
use tokio::time::{Instant, Sleep};

/// A body of up to so many bytes is read before its request takes a place of its tenant's or container's: a client that trickles it holds
/// nothing but its connection. With all of `connections_max` at it, 20,000 by default, that is 320 MB.
const READ_FIRST_BYTES_MAX: u64 = 16 * 1024;

/// How far a client's body has come.
#[derive(Debug, Default)]
pub(super) struct Upload {
    /// The client sent more than it may; the answer is then 413, whatever the function says.
    pub over: Cell<bool>,
    /// The client kept us waiting for too long; the answer is then 408.
    pub slow: Cell<bool>,
    /// The client's next bytes are being waited for: what takes long is not the function.
    pub awaited: Cell<bool>,
    /// The function answers already: a conversation, in which the client may be silent.
    pub answered: Cell<bool>,
    /// All of it was sent on. Until then the connection must carry no other request: its head would follow the rest of this body.
    pub whole: Cell<bool>,
    /// Its places among the tenant's and the container's bodies that are coming. Here and not with the body, which a connection to a function
    /// may keep for longer than the request lasts.
    places: RefCell<[Option<uploads::UploadPlace>; 2]>,
}

impl Upload {
    /// Holds a place among its tenant's until all of it has come or the request is over.
    pub fn hold_of_tenant(&self, place: uploads::UploadPlace) {
        self.places.borrow_mut()[0] = Some(place);
    }

    /// Gives back the place that it held among a container's, and takes one among this one's.
    ///
    /// # Errors
    /// [`uploads::Full`].
    pub fn hold_of_container(
        &self,
        take: impl FnOnce() -> Result<uploads::UploadPlace, uploads::Full>,
    ) -> Result<(), uploads::Full> {
        let place = &mut self.places.borrow_mut()[1];
        *place = None;
        *place = Some(take()?);
        Ok(())
    }

    fn ended(&self) {
        self.whole.set(true);
        *self.places.borrow_mut() = [None, None];
    }
}

/// A request's hold on the places of its body: they are given back when the request is over, whoever keeps the body.
pub(super) struct Held(pub Rc<Upload>);

impl Drop for Held {
    fn drop(&mut self) {
        *self.0.places.borrow_mut() = [None, None];
    }
}

enum Source {
    Client(ClientBody),
    /// Read already.
    Memory(Bytes),
}

/// A client's body on its way to a function.
pub(super) struct RequestBody {
    source: Source,
    left: u64,
    patience: Patience,
    upload: Rc<Upload>,
}

impl RequestBody {
    pub fn new(inner: ClientBody, limit: u64, terms: Terms, upload: Rc<Upload>) -> Self {
        upload.whole.set(inner.is_end_stream());
        Self { source: Source::Client(inner), left: limit, patience: Patience::new(terms), upload }
    }

    /// Whether some of it is still on its way from the client.
    pub fn is_coming(&self) -> bool {
        matches!(&self.source, Source::Client(inner) if !inner.is_end_stream())
    }

    /// All of it, if it is there.
    pub fn whole(&self) -> Option<Bytes> {
        match &self.source {
            Source::Client(inner) => inner.is_end_stream().then(Bytes::new),
            Source::Memory(bytes) => Some(bytes.clone()),
        }
    }

    /// Reads all of a small body of known length; leaves any other as it is. None when the client broke off, or dawdled.
    pub async fn read_first(mut self) -> Option<Self> {
        if !self.size_hint().exact().is_some_and(|bytes| (1..=READ_FIRST_BYTES_MAX).contains(&bytes)) {
            return Some(self);
        }
        // Mostly all of it came with the head.
        let mut whole = match self.frame().await?.ok()?.into_data() {
            Ok(data) if self.is_end_stream() => data.into(),
            Ok(data) => BytesMut::from(data),
            Err(_) => return None,
        };
        while let Some(frame) = self.frame().await {
            whole.extend_from_slice(&frame.ok()?.into_data().ok()?);
        }
        self.source = Source::Memory(whole.freeze());
        self.upload.whole.set(false);
        Some(self)
    }
}

impl Body for RequestBody {
    type Data = Bytes;
    type Error = BoxError;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, BoxError>>> {
        let this = &mut *self;
        let inner = match &mut this.source {
            Source::Client(inner) => inner,
            Source::Memory(bytes) => {
                this.upload.whole.set(true);
                let bytes = std::mem::take(bytes);
                return Poll::Ready((!bytes.is_empty()).then(|| Ok(Frame::data(bytes))));
            }
        };
        let frame = match Pin::new(&mut *inner).poll_frame(cx) {
            Poll::Ready(Some(Ok(frame))) => frame,
            Poll::Ready(Some(Err(error))) => return Poll::Ready(Some(Err(error))),
            Poll::Ready(None) => {
                this.upload.awaited.set(false);
                this.upload.ended();
                return Poll::Ready(None);
            }
            Poll::Pending if this.upload.answered.get() => return Poll::Pending,
            Poll::Pending => {
                this.upload.awaited.set(true);
                ready!(this.patience.poll_exhausted(cx));
                this.upload.slow.set(true);
                return Poll::Ready(Some(Err("the client sends its body too slowly".into())));
            }
        };
        let Ok(data) = frame.into_data() else {
            this.upload.ended();
            return Poll::Ready(None);
        };
        this.upload.awaited.set(false);
        this.patience.progressed(data.len());
        match this.left.checked_sub(data.len() as u64) {
            Some(left) => {
                this.left = left;
                if inner.is_end_stream() {
                    this.upload.ended();
                }
                Poll::Ready(Some(Ok(Frame::data(data))))
            }
            None => {
                this.upload.over.set(true);
                Poll::Ready(Some(Err("the body is over its limit".into())))
            }
        }
    }

    fn is_end_stream(&self) -> bool {
        match &self.source {
            Source::Client(inner) => inner.is_end_stream(),
            Source::Memory(bytes) => bytes.is_empty(),
        }
    }

    fn size_hint(&self) -> SizeHint {
        match &self.source {
            Source::Client(inner) => inner.size_hint(),
            Source::Memory(bytes) => SizeHint::with_exact(bytes.len() as u64),
        }
    }
}

/// An answer's body.
pub(super) enum ResponseBody {
    /// Made by the platform.
    Own(Option<Bytes>),
    /// From the management API.
    Manage(axum::body::Body),
    /// From a function.
    Function(Box<FunctionBody>),
}

/// A function's answer on its way to the client.
pub(super) struct FunctionBody {
    inner: AnswerBody,
    /// How long the function may be silent, and the timer for it, made when it first is.
    silence_max: Duration,
    silence: Option<Pin<Box<Sleep>>>,
    /// Until when its tenant's answers are over their rate.
    pause: Option<Pin<Box<Sleep>>>,
    ended: bool,
    exchange: Option<Exchange>,
}

impl FunctionBody {
    pub fn new(inner: AnswerBody, silence_max: Duration, exchange: Exchange) -> Self {
        let pause = exchange.permit.answered(0).map(|wait| Box::pin(tokio::time::sleep(wait)));
        Self { inner, silence_max, silence: None, pause, ended: false, exchange: Some(exchange) }
    }

    /// The function has said something, or could not.
    fn heard(&mut self) {
        if let Some(silence) = &mut self.silence {
            silence.as_mut().reset(Instant::now() + self.silence_max);
        }
    }

    fn poll(&mut self, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, BoxError>>> {
        if let Some(pause) = &mut self.pause {
            ready!(pause.as_mut().poll(cx));
            self.pause = None;
            self.heard();
        }
        match Pin::new(&mut self.inner).poll_frame(cx) {
            Poll::Ready(frame) => {
                self.heard();
                match frame {
                    // Trailers are hop-by-hop for us: they end here.
                    Some(Ok(frame)) if frame.is_data() => {
                        let bytes = frame.data_ref().map_or(0, Bytes::len);
                        let wait = self.exchange.as_ref().and_then(|exchange| exchange.permit.answered(bytes));
                        // The last of it has been sent: only what follows can wait.
                        let wait = wait.filter(|_| !self.inner.is_end_stream());
                        self.pause = wait.map(|wait| Box::pin(tokio::time::sleep(wait)));
                        Poll::Ready(Some(Ok(frame)))
                    }
                    Some(Ok(_)) | None => {
                        self.ended = true;
                        Poll::Ready(None)
                    }
                    Some(Err(error)) => Poll::Ready(Some(Err(error))),
                }
            }
            Poll::Pending => {
                let silence_max = self.silence_max;
                let silence = self.silence.get_or_insert_with(|| Box::pin(tokio::time::sleep(silence_max)));
                ready!(silence.as_mut().poll(cx));
                // An error, not an end: the client must see that the answer is not whole.
                Poll::Ready(Some(Err(io::Error::from(io::ErrorKind::TimedOut).into())))
            }
        }
    }
}

impl Drop for FunctionBody {
    fn drop(&mut self) {
        if let Some(exchange) = self.exchange.take() {
            exchange.finish(self.ended || self.inner.is_end_stream());
        }
    }
}

impl Body for ResponseBody {
    type Data = Bytes;
    type Error = BoxError;

    fn poll_frame(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, BoxError>>> {
        match self.get_mut() {
            Self::Own(bytes) => Poll::Ready(bytes.take().map(|b| Ok(Frame::data(b)))),
            Self::Manage(body) => Pin::new(body).poll_frame(cx).map_err(Into::into),
            Self::Function(body) => body.poll(cx),
        }
    }

    fn is_end_stream(&self) -> bool {
        match self {
            Self::Own(bytes) => bytes.is_none(),
            Self::Manage(body) => body.is_end_stream(),
            Self::Function(body) => body.ended || body.inner.is_end_stream(),
        }
    }

    fn size_hint(&self) -> SizeHint {
        match self {
            Self::Own(bytes) => SizeHint::with_exact(bytes.as_ref().map_or(0, |b| b.len() as u64)),
            Self::Manage(body) => body.size_hint(),
            Self::Function(body) => body.inner.size_hint(),
        }
    }
}
