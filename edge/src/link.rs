//! Links: many requests at once over one connection, in the frames of [`hearth_model::protocol::link`]. A router has them to nodes, and a
//! node to runtimes.
//!
//! A [`Link`] is the end that calls, and lives on one thread. Its task reads and writes the socket; calls that are made in one turn of that
//! thread go out in one write, and answers that came together are read together. What comes from a runtime is hostile: an answer that
//! makes no sense breaks its own exchange, a frame that makes none breaks the link. [`serve`](serve::run) is the other end, on a node; a
//! runtime's own is part of its program.

mod parse;
pub(crate) mod serve;
#[cfg(test)]
mod tests;
mod wire;

use crate::{
    BoxError,
    headers::{said_length, settle_length},
};
use bytes::{BufMut, Bytes, BytesMut};
use hearth_model::protocol::link as frames;
use http::{Response, StatusCode, header};
use http_body::{Frame, SizeHint};
use hyper::body::Incoming;
pub use parse::AnswerLimits;
use parse::{Answer, Malformed, RawFrame, UNKNOWN, parse_answer};
use std::{
    cell::RefCell,
    collections::{HashMap, VecDeque},
    fmt, io,
    pin::Pin,
    rc::Rc,
    task::{Context, Poll, Waker},
    time::{Duration, Instant},
};
use tokio::io::{AsyncRead, AsyncWrite};
pub use wire::Fields;
use wire::{Inbox, Outbox};

/// Unwritten calls beyond which a link takes no more: the other end does not read.
const UNWRITTEN_BYTES_MAX: usize = 4 * 1024 * 1024;
/// Credit is given in pieces of at least this, so that small frames cost no frame of ours each.
const CREDIT_BYTES_MIN: usize = frames::WINDOW_BYTES / 4;
/// Exchanges that were given up and that the other end has not ended; more end the link. Each may still send its answer's head and one window.
const GIVEN_UP_MAX: usize = 4_096;
/// Unwritten bytes beyond which a link ends on which nobody waits for anything.
const UNREAD_BYTES_MAX: usize = 64 * 1024;
/// An answer of which all has come that its head promised may take so long to end.
const END_TIMEOUT: Duration = Duration::from_secs(10);

/// Why a call has no answer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum CallError {
    /// Nothing of it was sent.
    NotSent(String),
    /// Something of it may have reached the function.
    Broken(String),
}

impl fmt::Display for CallError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::NotSent(detail) => write!(f, "not sent: {detail}"),
            Self::Broken(detail) => write!(f, "broken: {detail}"),
        }
    }
}

/// One request on its way, or its answer.
struct Exchange {
    /// Where its call begins among all bytes that were ever put.
    start: u64,
    /// Whether its answer has begun.
    answered: bool,
    /// That beginning, until it is taken.
    head: Option<Answer>,
    /// Together, however small the frames were that it came in.
    data: BytesMut,
    /// Data that came and for which no credit was given yet, waiting here or passed on.
    uncredited: usize,
    end: Option<Result<(), CallError>>,
    /// Nobody waits for it here; it is known until the other end ends it.
    given_up: bool,
    /// Whether the other end was told so.
    told: bool,
    waker: Option<Waker>,
}

impl Exchange {
    fn wake(&mut self) {
        if let Some(waker) = self.waker.take() {
            waker.wake();
        }
    }

    fn wait<T>(&mut self, cx: &Context<'_>) -> Poll<T> {
        if !self.waker.as_ref().is_some_and(|w| w.will_wake(cx.waker())) {
            self.waker = Some(cx.waker().clone());
        }
        Poll::Pending
    }
}

type SharedExchange = Rc<RefCell<Exchange>>;

struct State {
    limits: AnswerLimits,
    out: Outbox,
    exchanges: HashMap<u32, SharedExchange>,
    next: u32,
    /// How many of the exchanges are given up.
    given_up: usize,
    /// Those of which the other end was not told, since all that was wanted of them had come; with the time.
    untold: VecDeque<(Instant, u32)>,
    /// Nothing can be written any more; what the other end had sent before is still read.
    unwritable: Option<String>,
    ended: Option<String>,
    /// The other end wants no more calls: the connection closes with its last exchange, as it does when nobody makes any.
    left: bool,
    /// Nobody makes calls any more.
    leaving: bool,
}

impl State {
    /// Nobody waits for the rest. The other end is told unless all that was wanted has come.
    fn give_up(&mut self, id: u32, tell: bool) {
        let Some(exchange) = self.exchanges.get(&id) else { return };
        {
            let mut exchange = exchange.borrow_mut();
            if exchange.given_up {
                return;
            }
            (exchange.given_up, exchange.told) = (true, tell);
            (exchange.data, exchange.head, exchange.waker) = (BytesMut::new(), None, None);
        }
        self.given_up += 1;
        if tell {
            self.out.frame(id, frames::CANCEL, |_| {});
        } else {
            self.untold.push_back((Instant::now(), id));
            self.out.wake();
        }
    }

    /// Takes one frame; an error ends the link.
    fn receive(&mut self, frame: &RawFrame<'_>) -> Result<(), Malformed> {
        if frame.kind == frames::LEAVE && frame.payload.is_empty() {
            self.left = true;
            return Ok(());
        }
        let shared = self.exchanges.get(&frame.exchange).ok_or(UNKNOWN)?;
        let mut exchange = shared.borrow_mut();
        let (mut last, mut unreadable) = (false, false);
        match frame.kind {
            frames::ANSWER if !exchange.answered => {
                exchange.answered = true;
                let (whole, answer) = parse_answer(frame.payload, &self.limits)?;
                last = whole;
                match answer {
                    Ok(_) if exchange.given_up => {}
                    Ok(answer) => exchange.head = Some(answer),
                    Err(error) => {
                        exchange.end = Some(Err(CallError::Broken(error.to_string())));
                        unreadable = !whole;
                    }
                }
                if whole {
                    exchange.end.get_or_insert(Ok(()));
                }
            }
            frames::DATA if exchange.answered && !frame.payload.is_empty() => {
                exchange.uncredited += frame.payload.len() + frames::FRAME_COST_BYTES;
                if exchange.uncredited > frames::WINDOW_BYTES {
                    return Err(Malformed::new("more data than its window takes"));
                }
                if !exchange.given_up {
                    exchange.data.extend_from_slice(frame.payload);
                } else if !exchange.told {
                    exchange.told = true;
                    self.out.frame(frame.exchange, frames::CANCEL, |_| {});
                }
            }
            frames::END if exchange.answered => {
                last = true;
                exchange.end.get_or_insert(Ok(()));
            }
            frames::BROKEN => {
                last = true;
                exchange.end.get_or_insert_with(|| Err(CallError::Broken("the answer broke off".into())));
            }
            _ => return Err(UNKNOWN),
        }
        exchange.wake();
        let given_up = exchange.given_up;
        drop(exchange);
        if last {
            self.exchanges.remove(&frame.exchange);
            self.given_up -= usize::from(given_up);
        } else if unreadable {
            self.give_up(frame.exchange, true);
        }
        Ok(())
    }

    fn poll<T>(&mut self, cx: &mut Context<'_>, stream: &mut T, inbox: &mut Inbox) -> Poll<String>
    where
        T: AsyncRead + AsyncWrite + Unpin,
    {
        while let Some((_, id)) = self.untold.front().copied().filter(|(since, _)| since.elapsed() >= END_TIMEOUT) {
            self.untold.pop_front();
            if let Some(exchange) = self.exchanges.get(&id)
                && !std::mem::replace(&mut exchange.borrow_mut().told, true)
            {
                self.out.frame(id, frames::CANCEL, |_| {});
            }
        }
        if self.unwritable.is_none()
            && let Poll::Ready(Err(error)) = self.out.poll_write(cx, stream)
        {
            self.unwritable = Some(error.to_string());
        }
        let is_unread = self.out.waiting() > UNREAD_BYTES_MAX && self.exchanges.len() == self.given_up;
        if is_unread || self.out.waiting() > 2 * UNWRITTEN_BYTES_MAX {
            return Poll::Ready("the other end does not read".into());
        }
        let polled = inbox.poll_read(cx, stream, |frame| self.receive(frame));
        if self.given_up > GIVEN_UP_MAX {
            return Poll::Ready("the other end does not end what was cancelled".into());
        }
        if (self.leaving || self.left) && self.exchanges.len() == self.given_up {
            return Poll::Ready("left".into());
        }
        polled
    }

    fn end(&mut self, detail: &str) {
        let taken = self.out.taken();
        for (_, exchange) in self.exchanges.drain() {
            let mut exchange = exchange.borrow_mut();
            let detail = detail.to_owned();
            let error = if exchange.start >= taken { CallError::NotSent(detail) } else { CallError::Broken(detail) };
            exchange.end.get_or_insert(Err(error));
            exchange.wake();
        }
        self.out.clear();
        self.given_up = 0;
        self.ended = Some(detail.to_owned());
    }
}

/// One connection. Dropping it closes the connection once the calls that were made are over.
pub struct Link {
    state: Rc<RefCell<State>>,
}

impl Link {
    /// Takes the connection over, on the `LocalSet` that it is called on, until it ends or `gone` does: the other end is known to be dead.
    #[must_use]
    pub fn open<T>(mut stream: T, limits: AnswerLimits, gone: impl Future<Output = ()> + 'static) -> Self
    where
        T: AsyncRead + AsyncWrite + Unpin + 'static,
    {
        let state = Rc::new(RefCell::new(State {
            limits,
            out: Outbox::default(),
            exchanges: HashMap::new(),
            next: 0,
            given_up: 0,
            untold: VecDeque::new(),
            unwritable: None,
            ended: None,
            left: false,
            leaving: false,
        }));
        tokio::task::spawn_local({
            let state = Rc::clone(&state);
            async move {
                let mut inbox = Inbox::default();
                let detail = tokio::select! {
                    biased;
                    detail = std::future::poll_fn(|cx| state.borrow_mut().poll(cx, &mut stream, &mut inbox)) => detail,
                    () = gone => "the other end is gone".into(),
                };
                tracing::debug!(detail, "a link ended");
                state.borrow_mut().end(&detail);
            }
        });
        Self { state }
    }

    /// Whether calls can be made on it.
    #[must_use]
    pub fn is_open(&self) -> bool {
        let state = self.state.borrow();
        state.ended.is_none() && state.unwritable.is_none() && !state.left
    }

    /// Whether so much waits to be sent, or to be ended by the other end, that a call should go another way.
    #[must_use]
    pub fn is_full(&self) -> bool {
        let state = self.state.borrow();
        state.out.waiting() > UNWRITTEN_BYTES_MAX || state.given_up > GIVEN_UP_MAX / 2
    }

    /// How many calls are under way.
    #[must_use]
    pub fn in_flight(&self) -> usize {
        let state = self.state.borrow();
        state.exchanges.len() - state.given_up
    }

    /// Makes a call whose head is written by `head`. `bodiless` says that the answer to it has no body (`HEAD`).
    pub fn call(&self, bodiless: bool, head: impl FnOnce(&mut BytesMut), body: &[u8]) -> Call {
        let mut state = self.state.borrow_mut();
        let exchange = SharedExchange::new(RefCell::new(Exchange {
            start: state.out.put(),
            answered: false,
            head: None,
            data: BytesMut::new(),
            uncredited: 0,
            end: state.ended.clone().map(|detail| Err(CallError::NotSent(detail))),
            given_up: false,
            told: false,
            waker: None,
        }));
        let mut id = state.next;
        while state.exchanges.contains_key(&id) {
            id = id.wrapping_add(1);
        }
        state.next = id.wrapping_add(1);
        if state.ended.is_none() {
            state.exchanges.insert(id, Rc::clone(&exchange));
            state.out.frame(id, frames::CALL, |out| {
                let before = out.len();
                out.put_u32_le(0);
                head(out);
                let bytes = u32::try_from(out.len() - before - 4).unwrap_or(u32::MAX);
                out[before..before + 4].copy_from_slice(&bytes.to_le_bytes());
                out.extend_from_slice(body);
            });
        }
        Call { part: Some(Part { link: Rc::clone(&self.state), id, exchange }), bodiless }
    }
}

impl Drop for Link {
    fn drop(&mut self) {
        let mut state = self.state.borrow_mut();
        state.leaving = true;
        state.out.wake();
    }
}

/// One's part in an exchange. Dropping it tells the other end that nobody waits any more, if that is news to it.
struct Part {
    link: Rc<RefCell<State>>,
    id: u32,
    exchange: SharedExchange,
}

impl Drop for Part {
    fn drop(&mut self) {
        if self.exchange.borrow().end.is_none() {
            self.link.borrow_mut().give_up(self.id, true);
        }
    }
}

/// A call on its way to its answer's head. Dropping it cancels the call.
#[must_use = "a call that is dropped is cancelled"]
pub struct Call {
    part: Option<Part>,
    bodiless: bool,
}

impl Future for Call {
    type Output = Result<Response<LinkBody>, CallError>;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        let part = self.part.take().expect("polled after it was ready");
        let answer = {
            let mut exchange = part.exchange.borrow_mut();
            match (exchange.head.take(), &exchange.end) {
                (Some(answer), _) => Ok(answer),
                (None, Some(Err(error))) => Err(error.clone()),
                (None, _) => {
                    let _: Poll<()> = exchange.wait(cx);
                    drop(exchange);
                    self.part = Some(part);
                    return Poll::Pending;
                }
            }
        };
        Poll::Ready(answer.and_then(|answer| respond(answer, part, self.bodiless)))
    }
}

/// The answer as HTTP: its framing is ours, whatever its headers say of it.
fn respond(answer: Answer, part: Part, bodiless: bool) -> Result<Response<LinkBody>, CallError> {
    let Answer { status, mut headers, whole, body } = answer;
    headers.remove(header::TRANSFER_ENCODING);
    let bodiless = bodiless || status == StatusCode::NO_CONTENT || status == StatusCode::NOT_MODIFIED;
    if whole && !bodiless || status == StatusCode::NO_CONTENT {
        headers.remove(header::CONTENT_LENGTH);
    }
    // Of a body that does not come, a length that makes no sense is worth no more than none.
    let said = if bodiless {
        None
    } else {
        said_length(&headers).map_err(|_| CallError::Broken("a content-length that is none".into()))?
    };
    settle_length(&mut headers);
    let body = match (whole, bodiless) {
        // Whatever else comes is not waited for.
        (_, true) => LinkBody(Source::Whole(Bytes::new())),
        (true, false) => LinkBody(Source::Whole(body)),
        (false, false) => LinkBody(Source::Stream(Stream { part, left: said, ended: false })),
    };
    let mut response = Response::new(body);
    (*response.status_mut(), *response.headers_mut()) = (status, headers);
    Ok(response)
}

/// The body of an answer.
pub struct LinkBody(Source);

enum Source {
    Whole(Bytes),
    Stream(Stream),
}

struct Stream {
    part: Part,
    /// What is missing of the length that the answer's head says.
    left: Option<u64>,
    ended: bool,
}

impl Stream {
    fn is_over(&self) -> bool {
        self.ended || self.left == Some(0)
    }

    fn poll(&mut self, cx: &Context<'_>) -> Poll<Option<Result<Bytes, CallError>>> {
        if self.is_over() {
            return Poll::Ready(None);
        }
        let mut exchange = self.part.exchange.borrow_mut();
        if exchange.data.is_empty() {
            let result = match &exchange.end {
                None => return exchange.wait(cx),
                Some(Ok(())) if self.left.unwrap_or(0) > 0 => Err(CallError::Broken("less than its content-length".into())),
                Some(result) => result.clone(),
            };
            self.ended = true;
            return Poll::Ready(result.err().map(Err));
        }
        let mut chunk = exchange.data.split();
        if let Some(left) = &mut self.left {
            // What is more than the head promised is not passed on.
            chunk.truncate(usize::try_from(*left).unwrap_or(usize::MAX));
            *left -= chunk.len() as u64;
        }
        let passed = exchange.uncredited;
        if passed >= CREDIT_BYTES_MIN && exchange.end.is_none() {
            exchange.uncredited = 0;
            let passed = u32::try_from(passed).unwrap_or(u32::MAX);
            self.part.link.borrow_mut().out.frame(self.part.id, frames::CREDIT, |out| out.put_u32_le(passed));
        }
        Poll::Ready(Some(Ok(chunk.freeze())))
    }
}

impl Drop for Stream {
    fn drop(&mut self) {
        // All that the head promised has come: what the function does after it is not a matter of the client's.
        if self.left == Some(0) && self.part.exchange.borrow().end.is_none() {
            self.part.link.borrow_mut().give_up(self.part.id, false);
        }
    }
}

impl http_body::Body for LinkBody {
    type Data = Bytes;
    type Error = io::Error;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<io::Result<Frame<Bytes>>>> {
        match &mut self.0 {
            Source::Whole(bytes) => {
                let bytes = std::mem::take(bytes);
                Poll::Ready((!bytes.is_empty()).then(|| Ok(Frame::data(bytes))))
            }
            Source::Stream(stream) => {
                stream.poll(cx).map(|next| next.map(|next| next.map(Frame::data).map_err(|e| io::Error::other(e.to_string()))))
            }
        }
    }

    fn is_end_stream(&self) -> bool {
        match &self.0 {
            Source::Whole(bytes) => bytes.is_empty(),
            Source::Stream(stream) => stream.is_over(),
        }
    }

    fn size_hint(&self) -> SizeHint {
        match &self.0 {
            Source::Whole(bytes) => SizeHint::with_exact(bytes.len() as u64),
            Source::Stream(Stream { left: Some(left), .. }) => SizeHint::with_exact(*left),
            Source::Stream(_) => SizeHint::default(),
        }
    }
}

/// An answer's body that came over a link or over HTTP.
pub enum AnswerBody {
    /// Over HTTP.
    Http(Incoming),
    /// Over a link.
    Link(LinkBody),
}

impl http_body::Body for AnswerBody {
    type Data = Bytes;
    type Error = BoxError;

    fn poll_frame(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, BoxError>>> {
        match self.get_mut() {
            Self::Http(body) => Pin::new(body).poll_frame(cx).map_err(Into::into),
            Self::Link(body) => Pin::new(body).poll_frame(cx).map_err(Into::into),
        }
    }

    fn is_end_stream(&self) -> bool {
        match self {
            Self::Http(body) => body.is_end_stream(),
            Self::Link(body) => body.is_end_stream(),
        }
    }

    fn size_hint(&self) -> SizeHint {
        match self {
            Self::Http(body) => body.size_hint(),
            Self::Link(body) => body.size_hint(),
        }
    }
}
