//! The link to a runtime: many requests at once over one connection, in the frames of [`hearth_model::protocol::link`].
//!
//! A [`Link`] lives on one thread. Its task reads and writes the socket; calls that are made in one turn of that thread go out in one write,
//! and answers that came together are read together. What comes from a runtime is hostile: an answer that makes no sense breaks its own
//! exchange, a frame that makes none breaks the link.

mod parse;
#[cfg(test)]
mod tests;

use bytes::{Buf, BufMut, Bytes, BytesMut};
use hearth_model::protocol::link as frames;
use http::{HeaderMap, Response, StatusCode, header};
use http_body::{Frame, SizeHint};
use parse::{Answer, Malformed, RawFrame, UNKNOWN, first_frame, parse_answer, said_length};
use std::{
    cell::RefCell,
    collections::HashMap,
    fmt, io,
    pin::Pin,
    rc::Rc,
    task::{Context, Poll, Waker},
};
use tokio::{io::AsyncWrite, net::UnixStream};

/// Room for what is read from the socket at once; more only while a larger frame comes.
const READ_BYTES: usize = 16 * 1024;
/// A larger buffer that is empty is given back: a node has links to thousands of containers.
const KEPT_BYTES: usize = 64 * 1024;
/// Unwritten calls beyond which a link takes no more: the runtime does not read.
const UNWRITTEN_BYTES_MAX: usize = 4 * 1024 * 1024;
/// Credit is given in pieces of at least this, so that small frames cost no frame of ours each.
const CREDIT_BYTES_MIN: usize = frames::WINDOW_BYTES / 4;

/// Of a cancelled exchange: an answer's head and a window, in frames however small.
const LATE_BYTES: usize = frames::PAYLOAD_BYTES_MAX + frames::WINDOW_BYTES * (frames::HEADER_BYTES + 1);

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
    head: Option<Answer>,
    /// Together, however small the frames were that it came in.
    data: BytesMut,
    /// Data that came and for which no credit was given yet, waiting here or passed on.
    uncredited: usize,
    end: Option<Result<(), CallError>>,
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

#[derive(Default)]
struct State {
    out: BytesMut,
    /// Of all bytes ever: put into `out`, and taken from it by the socket.
    put: u64,
    taken: u64,
    exchanges: HashMap<u32, SharedExchange>,
    next: u32,
    /// How much may still come for exchanges that were cancelled.
    late_bytes: usize,
    ended: Option<String>,
    /// Nobody makes calls any more: the connection closes with its last exchange.
    leaving: bool,
    task: Option<Waker>,
}

impl State {
    fn frame(&mut self, exchange: u32, kind: u8, payload: impl FnOnce(&mut BytesMut)) {
        let before = self.out.len();
        self.out.put_bytes(0, frames::HEADER_BYTES);
        payload(&mut self.out);
        let length = self.out.len() - before - frames::HEADER_BYTES;
        debug_assert!(length <= frames::PAYLOAD_BYTES_MAX);
        let mut header = &mut self.out[before..before + frames::HEADER_BYTES];
        header.put_u32_le(u32::try_from(length).unwrap_or(u32::MAX));
        header.put_u32_le(exchange);
        header.put_u8(kind);
        self.put += (self.out.len() - before) as u64;
        if let Some(task) = &self.task {
            task.wake_by_ref();
        }
    }

    fn cancel(&mut self, exchange: u32) {
        if self.exchanges.remove(&exchange).is_some() && self.ended.is_none() {
            self.frame(exchange, frames::CANCEL, |_| {});
            self.late_bytes = self.late_bytes.saturating_add(LATE_BYTES);
        }
    }

    /// Takes one frame; an error ends the link.
    fn receive(&mut self, frame: &RawFrame<'_>) -> Result<(), Malformed> {
        let Some(exchange) = self.exchanges.get(&frame.exchange) else {
            // It was cancelled, and this was on its way; else a runtime could keep a worker busy with frames for nobody.
            let bytes = frames::HEADER_BYTES + frame.payload.len();
            let left = self.late_bytes.checked_sub(bytes).filter(|_| (frames::ANSWER..=frames::BROKEN).contains(&frame.kind));
            self.late_bytes = left.ok_or(UNKNOWN)?;
            return Ok(());
        };
        let end = {
            let mut exchange = exchange.borrow_mut();
            match frame.kind {
                frames::ANSWER if exchange.head.is_none() && exchange.end.is_none() => match parse_answer(frame.payload)? {
                    Ok(answer) => {
                        if answer.whole {
                            exchange.end = Some(Ok(()));
                        } else if !answer.body.is_empty() {
                            return Err(Malformed::new("a body before its window"));
                        }
                        exchange.head = Some(answer);
                    }
                    Err(error) => exchange.end = Some(Err(CallError::Broken(error.to_string()))),
                },
                frames::DATA if exchange.head.is_some() && !frame.payload.is_empty() => {
                    exchange.uncredited += frame.payload.len();
                    if exchange.uncredited > frames::WINDOW_BYTES {
                        return Err(Malformed::new("more data than its window takes"));
                    }
                    exchange.data.extend_from_slice(frame.payload);
                }
                frames::END if exchange.head.is_some() => exchange.end = Some(Ok(())),
                frames::BROKEN => exchange.end = Some(Err(CallError::Broken("the answer broke off".into()))),
                _ => return Err(UNKNOWN),
            }
            exchange.wake();
            exchange.end.as_ref().map(Result::is_ok)
        };
        match (end, frame.kind) {
            (None, _) => {}
            // The rest of such an answer may follow.
            (Some(false), frames::ANSWER) => self.cancel(frame.exchange),
            (Some(_), _) => {
                self.exchanges.remove(&frame.exchange);
            }
        }
        Ok(())
    }

    fn poll(&mut self, cx: &Context<'_>, stream: &mut UnixStream, read: &mut BytesMut) -> Poll<String> {
        // Tokio's own budget makes this end when others wait.
        let cx = &mut Context::from_waker(cx.waker());
        loop {
            while !self.out.is_empty() {
                match Pin::new(&mut *stream).poll_write(cx, &self.out) {
                    Poll::Ready(Ok(0)) => return Poll::Ready("the socket takes nothing".into()),
                    Poll::Ready(Ok(bytes)) => {
                        self.out.advance(bytes);
                        self.taken += bytes as u64;
                    }
                    Poll::Ready(Err(error)) => return Poll::Ready(error.to_string()),
                    Poll::Pending => break,
                }
            }
            if self.out.len() > 2 * UNWRITTEN_BYTES_MAX {
                return Poll::Ready("the runtime does not read".into());
            }
            if self.out.is_empty() && self.out.capacity() > KEPT_BYTES {
                self.out = BytesMut::new();
            }
            if self.leaving && self.exchanges.is_empty() {
                return Poll::Ready("left".into());
            }
            if read.is_empty() && read.capacity() > KEPT_BYTES {
                *read = BytesMut::new();
            }
            read.reserve(READ_BYTES);
            match tokio_util::io::poll_read_buf(Pin::new(&mut *stream), cx, read) {
                Poll::Ready(Ok(0)) => return Poll::Ready("the runtime closed the link".into()),
                Poll::Ready(Ok(_)) => {}
                Poll::Ready(Err(error)) => return Poll::Ready(error.to_string()),
                Poll::Pending => break,
            }
            loop {
                match first_frame(read)
                    .and_then(|first| first.map(|(frame, bytes)| self.receive(&frame).map(|()| bytes)).transpose())
                {
                    Ok(Some(bytes)) => read.advance(bytes),
                    Ok(None) => break,
                    Err(malformed) => return Poll::Ready(malformed.to_string()),
                }
            }
        }
        if !self.task.as_ref().is_some_and(|w| w.will_wake(cx.waker())) {
            self.task = Some(cx.waker().clone());
        }
        Poll::Pending
    }

    fn end(&mut self, detail: &str) {
        let taken = self.taken;
        for (_, exchange) in self.exchanges.drain() {
            let mut exchange = exchange.borrow_mut();
            let detail = detail.to_owned();
            let error = if exchange.start >= taken { CallError::NotSent(detail) } else { CallError::Broken(detail) };
            exchange.end.get_or_insert(Err(error));
            exchange.wake();
        }
        self.ended = Some(detail.to_owned());
    }
}

/// One connection to a runtime. Dropping it closes the connection once the calls that were made are over.
pub struct Link {
    state: Rc<RefCell<State>>,
}

impl Link {
    /// Takes the connection over; on the `LocalSet` that it is called on, for good.
    #[must_use]
    pub fn open(mut stream: UnixStream) -> Self {
        let state = Rc::<RefCell<State>>::default();
        tokio::task::spawn_local({
            let state = Rc::clone(&state);
            async move {
                let mut read = BytesMut::new();
                let detail = std::future::poll_fn(|cx| state.borrow_mut().poll(cx, &mut stream, &mut read)).await;
                tracing::debug!(detail, "a link ended");
                state.borrow_mut().end(&detail);
            }
        });
        Self { state }
    }

    /// Whether calls can be made on it.
    #[must_use]
    pub fn is_open(&self) -> bool {
        self.state.borrow().ended.is_none()
    }

    /// Whether so much waits to be sent that a call should go another way.
    #[must_use]
    pub fn is_full(&self) -> bool {
        self.state.borrow().out.len() > UNWRITTEN_BYTES_MAX
    }

    /// Whether any call is under way.
    #[must_use]
    pub fn is_used(&self) -> bool {
        !self.state.borrow().exchanges.is_empty()
    }

    /// Makes a call whose head is written by `head`. `bodiless` says that the answer to it has no body (`HEAD`).
    pub fn call(&self, bodiless: bool, head: impl FnOnce(&mut BytesMut), body: &[u8]) -> Call {
        let mut state = self.state.borrow_mut();
        let exchange = SharedExchange::new(RefCell::new(Exchange {
            start: state.put,
            head: None,
            data: BytesMut::new(),
            uncredited: 0,
            end: state.ended.clone().map(|detail| Err(CallError::NotSent(detail))),
            waker: None,
        }));
        let mut id = state.next;
        while state.exchanges.contains_key(&id) {
            id = id.wrapping_add(1);
        }
        state.next = id.wrapping_add(1);
        if state.ended.is_none() {
            state.exchanges.insert(id, Rc::clone(&exchange));
            state.frame(id, frames::CALL, |out| {
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
        if let Some(task) = &state.task {
            task.wake_by_ref();
        }
    }
}

/// One's part in an exchange. Dropping it tells the runtime that nobody waits any more, if that is news to it.
struct Part {
    link: Rc<RefCell<State>>,
    id: u32,
    exchange: SharedExchange,
}

impl Drop for Part {
    fn drop(&mut self) {
        if self.exchange.borrow().end.is_none() {
            self.link.borrow_mut().cancel(self.id);
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
                (Some(answer), _) => {
                    if !answer.whole {
                        // Kept for the rule that data follows an answer.
                        exchange.head =
                            Some(Answer { status: answer.status, headers: HeaderMap::new(), whole: false, body: Bytes::new() });
                    }
                    Ok(answer)
                }
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
    let said = said_length(&headers).map_err(|error| CallError::Broken(error.to_string()))?;
    let body = match (whole, bodiless) {
        (true, true) => LinkBody(Source::Whole(Bytes::new())),
        (true, false) => {
            headers.remove(header::CONTENT_LENGTH);
            LinkBody(Source::Whole(body))
        }
        (false, _) => LinkBody(Source::Stream(Stream { part, left: said.filter(|_| !bodiless), ended: false })),
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
    fn poll(&mut self, cx: &Context<'_>) -> Poll<Option<Result<Bytes, CallError>>> {
        if self.ended {
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
        let chunk = exchange.data.split().freeze();
        if let Some(left) = &mut self.left {
            let Some(rest) = left.checked_sub(chunk.len() as u64) else {
                self.ended = true;
                return Poll::Ready(Some(Err(CallError::Broken("more than its content-length".into()))));
            };
            *left = rest;
        }
        let passed = exchange.uncredited;
        if passed >= CREDIT_BYTES_MIN && exchange.end.is_none() {
            exchange.uncredited = 0;
            let passed = u32::try_from(passed).unwrap_or(u32::MAX);
            self.part.link.borrow_mut().frame(self.part.id, frames::CREDIT, |out| out.put_u32_le(passed));
        }
        Poll::Ready(Some(Ok(chunk)))
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
            Source::Stream(stream) => stream.ended,
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
