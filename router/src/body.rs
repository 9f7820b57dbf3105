//! Bodies in both directions. A request's is counted against its limit, its beginning is kept so that it can be said again, and a
//! client that trickles it is cut. An answer's gives back what its exchange holds when it ends.

use crate::forward::Exchange;
use bytes::Bytes;
use hearth_edge::{
    BoxError,
    link::AnswerBody,
    patience::{Patience, Terms},
    serve::ClientBody,
};
use http_body::{Body, Frame, SizeHint};
use std::{
    cell::RefCell,
    pin::Pin,
    rc::Rc,
    task::{Context, Poll, ready},
};

/// A body of up to so many bytes is read before its request is sent.
const READ_FIRST_BYTES_MAX: u64 = 16 * 1024;

/// Why a client's body did not come whole.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Fell {
    /// It is over its limit.
    TooLarge,
    /// It came too slowly.
    TooSlow,
    /// It broke off.
    Broken,
}

/// A client's body, shared by the attempts to send it; only the latest may read.
pub(crate) struct Upload {
    inner: ClientBody,
    patience: Patience,
    left: u64,
    /// What has been read, as long as it is little.
    kept: Vec<Bytes>,
    kept_left: usize,
    /// Something was read that is no longer kept.
    forgotten: bool,
    ended: bool,
    fell: Option<Fell>,
    attempt: u32,
}

pub(crate) type SharedUpload = Rc<RefCell<Upload>>;

impl Upload {
    pub fn new(inner: ClientBody, limit: u64, replay_max: usize, terms: Terms) -> SharedUpload {
        Rc::new(RefCell::new(Self {
            ended: inner.is_end_stream(),
            inner,
            patience: Patience::new(terms),
            left: limit,
            kept: Vec::new(),
            kept_left: replay_max,
            forgotten: false,
            fell: None,
            attempt: 0,
        }))
    }

    /// Whether another attempt could send all of it.
    pub fn is_replayable(&self) -> bool {
        !self.forgotten && self.fell.is_none()
    }

    /// Whether all of it has been read.
    pub fn is_whole(&self) -> bool {
        self.ended && self.fell.is_none()
    }

    /// All of it, if it was read and kept.
    pub fn whole(&self) -> Option<Bytes> {
        if !self.is_whole() || self.forgotten {
            return None;
        }
        match self.kept.as_slice() {
            [] => Some(Bytes::new()),
            [one] => Some(one.clone()),
            several => Some(several.concat().into()),
        }
    }

    pub fn fell(&self) -> Option<Fell> {
        self.fell
    }

    fn poll_inner(&mut self, cx: &mut Context<'_>) -> Poll<Option<Result<Bytes, BoxError>>> {
        if self.ended {
            return Poll::Ready(None);
        }
        let data = match Pin::new(&mut self.inner).poll_frame(cx) {
            // Trailers are hop-by-hop for us: they end here.
            Poll::Ready(Some(Ok(frame))) => frame.into_data().ok(),
            Poll::Ready(Some(Err(error))) => {
                self.fell.get_or_insert(Fell::Broken);
                return Poll::Ready(Some(Err(error)));
            }
            Poll::Ready(None) => None,
            Poll::Pending => {
                ready!(self.patience.poll_exhausted(cx));
                self.fell.get_or_insert(Fell::TooSlow);
                return Poll::Ready(Some(Err("the client sends its body too slowly".into())));
            }
        };
        let Some(data) = data else {
            self.ended = true;
            return Poll::Ready(None);
        };
        self.patience.progressed(data.len());
        let Some(left) = self.left.checked_sub(data.len() as u64) else {
            self.fell.get_or_insert(Fell::TooLarge);
            return Poll::Ready(Some(Err("the body is over its limit".into())));
        };
        self.left = left;
        match self.kept_left.checked_sub(data.len()) {
            Some(kept_left) if !self.forgotten => {
                self.kept_left = kept_left;
                self.kept.push(data.clone());
            }
            _ => {
                self.forgotten = true;
                self.kept = Vec::new();
            }
        }
        self.ended = self.inner.is_end_stream();
        Poll::Ready(Some(Ok(data)))
    }
}

/// Reads all of a small body of known length, so that it can go over a link; leaves any other as it is. One that falls says so itself.
pub(crate) async fn read_first(upload: &SharedUpload) {
    let is_small = {
        let upload = upload.borrow();
        let bytes = upload.inner.size_hint().exact().unwrap_or(u64::MAX);
        bytes <= READ_FIRST_BYTES_MAX.min(upload.kept_left as u64)
    };
    while is_small && let Some(Ok(_)) = std::future::poll_fn(|cx| upload.borrow_mut().poll_inner(cx)).await {}
}

/// One attempt to send a body, from its beginning.
pub(crate) struct Attempt {
    upload: SharedUpload,
    number: u32,
    at: usize,
}

impl Attempt {
    /// The next attempt; those before it fall silent.
    pub fn next(upload: &SharedUpload) -> Self {
        let mut shared = upload.borrow_mut();
        shared.attempt += 1;
        Self { upload: Rc::clone(upload), number: shared.attempt, at: 0 }
    }
}

impl Body for Attempt {
    type Data = Bytes;
    type Error = BoxError;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, BoxError>>> {
        let this = &mut *self;
        let mut upload = this.upload.borrow_mut();
        if upload.attempt != this.number {
            return Poll::Ready(Some(Err("the request is being sent elsewhere".into())));
        }
        if let Some(kept) = upload.kept.get(this.at) {
            this.at += 1;
            return Poll::Ready(Some(Ok(Frame::data(kept.clone()))));
        }
        let polled = ready!(upload.poll_inner(cx));
        this.at = upload.kept.len();
        Poll::Ready(polled.map(|data| data.map(Frame::data)))
    }

    fn is_end_stream(&self) -> bool {
        let upload = self.upload.borrow();
        upload.ended && self.at >= upload.kept.len() && upload.attempt == self.number
    }

    fn size_hint(&self) -> SizeHint {
        let upload = self.upload.borrow();
        let kept: u64 = upload.kept.iter().skip(self.at).map(|b| b.len() as u64).sum();
        match (upload.ended, upload.inner.size_hint().exact()) {
            (true, _) => SizeHint::with_exact(kept),
            (false, Some(rest)) => SizeHint::with_exact(kept + rest),
            (false, None) => SizeHint::default(),
        }
    }
}

/// An answer's body.
pub(crate) enum ResponseBody {
    /// Made by the router.
    Own(Option<Bytes>),
    /// From a node.
    Node(Box<NodeBody>),
}

/// A node's answer on its way to the client.
pub(crate) struct NodeBody {
    inner: AnswerBody,
    ended: bool,
    exchange: Option<Exchange>,
}

impl NodeBody {
    pub fn new(inner: AnswerBody, exchange: Exchange) -> Self {
        Self { inner, ended: false, exchange: Some(exchange) }
    }

    fn poll(&mut self, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, BoxError>>> {
        let frame = ready!(Pin::new(&mut self.inner).poll_frame(cx));
        match frame {
            Some(Ok(frame)) if frame.is_data() => {
                if let Some(exchange) = &self.exchange {
                    exchange.node.0.heard();
                }
                Poll::Ready(Some(Ok(frame)))
            }
            Some(Ok(_)) | None => {
                self.ended = true;
                Poll::Ready(None)
            }
            // An error, not an end: the client must see that the answer is not whole.
            Some(Err(error)) => Poll::Ready(Some(Err(error))),
        }
    }
}

impl Drop for NodeBody {
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
            Self::Node(body) => body.poll(cx),
        }
    }

    fn is_end_stream(&self) -> bool {
        match self {
            Self::Own(bytes) => bytes.is_none(),
            Self::Node(body) => body.ended || body.inner.is_end_stream(),
        }
    }

    fn size_hint(&self) -> SizeHint {
        match self {
            Self::Own(bytes) => SizeHint::with_exact(bytes.as_ref().map_or(0, |b| b.len() as u64)),
            Self::Node(body) => body.inner.size_hint(),
        }
    }
}
