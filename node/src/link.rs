//! The link to a runtime: many requests at once over one connection, in the frames of [`hearth_model::protocol::link`].
//!
//! A [`Link`] lives on one thread. Its task reads and writes the socket; calls that are made in one turn of that thread go out in one write,
//! and answers that came together are read together. What comes from a runtime is hostile: an answer that makes no sense breaks its own
//! exchange, a frame that makes none breaks the link.

use bytes::{Buf, BufMut, Bytes, BytesMut};
use hearth_model::{limits, protocol::link as frames};
use http::{HeaderMap, HeaderName, HeaderValue, Response, StatusCode, header};
use http_body::{Frame, SizeHint};
use std::{
    cell::RefCell,
    collections::{HashMap, VecDeque},
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

/// What a runtime may not send.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Malformed(&'static str);

impl fmt::Display for Malformed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.0)
    }
}

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

/// One frame from a runtime.
#[derive(Debug, PartialEq, Eq)]
pub struct RawFrame<'a> {
    exchange: u32,
    kind: u8,
    payload: &'a [u8],
}

/// The first frame of `bytes` and what it takes of them; none while it is not whole.
///
/// # Errors
/// A payload over its limit.
pub fn first_frame(bytes: &[u8]) -> Result<Option<(RawFrame<'_>, usize)>, Malformed> {
    let Some((mut header, rest)) = bytes.split_at_checked(frames::HEADER_BYTES) else { return Ok(None) };
    let length = header.get_u32_le() as usize;
    if length > frames::PAYLOAD_BYTES_MAX {
        return Err(Malformed("a frame over its limit"));
    }
    let Some(payload) = rest.get(..length) else { return Ok(None) };
    let (exchange, kind) = (header.get_u32_le(), header.get_u8());
    Ok(Some((RawFrame { exchange, kind, payload }, frames::HEADER_BYTES + length)))
}

/// The head of an answer and the body that came with it.
#[derive(Debug)]
pub struct Answer {
    status: StatusCode,
    headers: HeaderMap,
    whole: bool,
    body: Bytes,
}

/// Reads the payload of an answer: an error for the link, or one for its exchange alone.
///
/// # Errors
/// When the payload contradicts itself.
pub fn parse_answer(payload: &[u8]) -> Result<Result<Answer, Malformed>, Malformed> {
    const SHORT: Malformed = Malformed("an answer that is too short");
    let (mut fixed, rest) = payload.split_at_checked(7).ok_or(SHORT)?;
    let (status, whole, head) = (fixed.get_u16_le(), fixed.get_u8(), fixed.get_u32_le() as usize);
    // Copied, so that a small answer that waits for its client does not hold what was read with it.
    let mut body = Bytes::copy_from_slice(rest);
    if head > body.len() || whole > 1 {
        return Err(SHORT);
    }
    let head = body.split_to(head);
    Ok(parse_head(status, &head).map(|(status, headers)| Answer { status, headers, whole: whole == 1, body }))
}

fn parse_head(status: u16, head: &Bytes) -> Result<(StatusCode, HeaderMap), Malformed> {
    let status = StatusCode::from_u16(status).map_err(|_| Malformed("a status that is none"))?;
    if !(200..600).contains(&status.as_u16()) {
        return Err(Malformed("a status that is no answer's"));
    }
    let mut headers = HeaderMap::new();
    if head.is_empty() {
        return Ok((status, headers));
    }
    if head.len() > limits::RESPONSE_HEADER_BYTES_MAX {
        return Err(Malformed("headers over their limit"));
    }
    let mut fields = head.split(|b| *b == b'\n');
    while let Some(name) = fields.next() {
        let value = fields.next().ok_or(Malformed("a header without a value"))?;
        if headers.len() >= limits::RESPONSE_HEADERS_MAX {
            return Err(Malformed("too many headers"));
        }
        let name = HeaderName::from_bytes(name).map_err(|_| Malformed("a header's name that is none"))?;
        let value = HeaderValue::from_maybe_shared(head.slice_ref(value)).map_err(|_| Malformed("a header's value that is none"))?;
        headers.append(name, value);
    }
    Ok((status, headers))
}

/// One request on its way, or its answer.
struct Exchange {
    /// Where its call begins among all bytes that were ever put.
    start: u64,
    head: Option<Answer>,
    chunks: VecDeque<Bytes>,
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
        }
    }

    /// Takes one frame; an error ends the link.
    fn receive(&mut self, frame: &RawFrame<'_>) -> Result<(), Malformed> {
        let Some(exchange) = self.exchanges.get(&frame.exchange) else {
            // It was cancelled, and this was on its way.
            return if (frames::ANSWER..=frames::BROKEN).contains(&frame.kind) { Ok(()) } else { Err(UNKNOWN) };
        };
        let over = {
            let mut exchange = exchange.borrow_mut();
            match frame.kind {
                frames::ANSWER if exchange.head.is_none() && exchange.end.is_none() => match parse_answer(frame.payload)? {
                    Ok(answer) => {
                        if answer.whole {
                            exchange.end = Some(Ok(()));
                        } else if !answer.body.is_empty() {
                            return Err(Malformed("a body before its window"));
                        }
                        exchange.head = Some(answer);
                    }
                    Err(error) => exchange.end = Some(Err(CallError::Broken(error.0.into()))),
                },
                frames::DATA if exchange.head.is_some() => {
                    exchange.uncredited += frame.payload.len();
                    if exchange.uncredited > frames::WINDOW_BYTES {
                        return Err(Malformed("more data than its window takes"));
                    }
                    exchange.chunks.push_back(Bytes::copy_from_slice(frame.payload));
                }
                frames::END if exchange.head.is_some() => exchange.end = Some(Ok(())),
                frames::BROKEN => exchange.end = Some(Err(CallError::Broken("the answer broke off".into()))),
                _ => return Err(UNKNOWN),
            }
            exchange.wake();
            exchange.end.is_some()
        };
        if over {
            self.exchanges.remove(&frame.exchange);
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
                match first_frame(read).and_then(|first| first.map(|(frame, bytes)| self.receive(&frame).map(|()| bytes)).transpose()) {
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

const UNKNOWN: Malformed = Malformed("a frame that fits no rule");

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
            chunks: VecDeque::new(),
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
                        exchange.head = Some(Answer {
                            status: answer.status,
                            headers: HeaderMap::new(),
                            whole: false,
                            body: Bytes::new(),
                        });
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
    let said = said_length(&headers).map_err(|error| CallError::Broken(error.0.into()))?;
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

fn said_length(headers: &HeaderMap) -> Result<Option<u64>, Malformed> {
    let mut said = headers.get_all(header::CONTENT_LENGTH).iter();
    let Some(first) = said.next() else { return Ok(None) };
    let digits = first.to_str().ok().filter(|text| !text.is_empty() && text.bytes().all(|b| b.is_ascii_digit()));
    match (digits.and_then(|text| text.parse().ok()), said.next()) {
        (Some(bytes), None) => Ok(Some(bytes)),
        _ => Err(Malformed("a content-length that is none")),
    }
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
        let Some(chunk) = exchange.chunks.pop_front() else {
            let result = match &exchange.end {
                None => return exchange.wait(cx),
                Some(Ok(())) if self.left.unwrap_or(0) > 0 => Err(CallError::Broken("less than its content-length".into())),
                Some(result) => result.clone(),
            };
            self.ended = true;
            return Poll::Ready(result.err().map(Err));
        };
        if let Some(left) = &mut self.left {
            let Some(rest) = left.checked_sub(chunk.len() as u64) else {
                self.ended = true;
                return Poll::Ready(Some(Err(CallError::Broken("more than its content-length".into()))));
            };
            *left = rest;
        }
        let waiting = exchange.chunks.iter().map(Bytes::len).sum::<usize>();
        let passed = exchange.uncredited - waiting;
        if passed >= CREDIT_BYTES_MIN && exchange.end.is_none() {
            exchange.uncredited = waiting;
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

#[cfg(test)]
mod tests {
    use super::*;
    use http_body_util::BodyExt;
    use proptest::prelude::*;
    use tokio::{
        io::{AsyncReadExt, AsyncWriteExt},
        task::LocalSet,
    };

    /// A runtime that a test plays.
    struct Peer(UnixStream);

    impl Peer {
        async fn next(&mut self) -> (u32, u8, Vec<u8>) {
            let length = self.0.read_u32_le().await.unwrap();
            let (exchange, kind) = (self.0.read_u32_le().await.unwrap(), self.0.read_u8().await.unwrap());
            let mut payload = vec![0; length as usize];
            self.0.read_exact(&mut payload).await.unwrap();
            (exchange, kind, payload)
        }

        async fn send(&mut self, exchange: u32, kind: u8, payload: &[u8]) {
            self.0.write_all(&frame(exchange, kind, payload)).await.unwrap();
        }
    }

    fn frame(exchange: u32, kind: u8, payload: &[u8]) -> Vec<u8> {
        let mut bytes = u32::try_from(payload.len()).unwrap().to_le_bytes().to_vec();
        bytes.extend(exchange.to_le_bytes());
        bytes.push(kind);
        bytes.extend(payload);
        bytes
    }

    fn answer(status: u16, whole: bool, head: &str, body: &str) -> Vec<u8> {
        let mut payload = status.to_le_bytes().to_vec();
        payload.push(u8::from(whole));
        payload.extend(u32::try_from(head.len()).unwrap().to_le_bytes());
        payload.extend(head.as_bytes());
        payload.extend(body.as_bytes());
        payload
    }

    fn pair() -> (Link, Peer) {
        let (ours, theirs) = UnixStream::pair().unwrap();
        (Link::open(ours), Peer(theirs))
    }

    fn call(link: &Link, head: &'static str) -> Call {
        link.call(false, |out| out.put_slice(head.as_bytes()), b"body")
    }

    async fn text(response: Response<LinkBody>) -> io::Result<String> {
        Ok(String::from_utf8(response.into_body().collect().await?.to_bytes().to_vec()).unwrap())
    }

    /// Runs a test on a thread as a worker's.
    fn local(test: impl Future<Output = ()>) {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        let limit = std::time::Duration::from_secs(20);
        runtime.block_on(LocalSet::new().run_until(async { tokio::time::timeout(limit, test).await.unwrap() }));
    }

    #[test]
    fn answers_find_their_calls_in_any_order() {
        local(async {
            let (link, mut peer) = pair();
            let (first, second) = (call(&link, "one"), call(&link, "two"));
            let (a, b) = (peer.next().await, peer.next().await);
            assert_eq!(a, (0, frames::CALL, b"\x03\0\0\0onebody".to_vec()));
            assert_eq!(b, (1, frames::CALL, b"\x03\0\0\0twobody".to_vec()));
            peer.send(1, frames::ANSWER, &answer(201, true, "content-length\n99\nx\ny\nx\nz", "second")).await;
            peer.send(0, frames::ANSWER, &answer(200, true, "", "first")).await;
            let second = second.await.unwrap();
            assert_eq!(second.status(), 201);
            assert_eq!(second.headers().get_all("x").iter().collect::<Vec<_>>(), ["y", "z"]);
            assert!(!second.headers().contains_key(header::CONTENT_LENGTH), "the framing is the node's");
            assert_eq!(text(second).await.unwrap(), "second");
            assert_eq!(text(first.await.unwrap()).await.unwrap(), "first");
            assert!(!link.is_used());
        });
    }

    #[test]
    fn a_streamed_answer_gets_credit_for_what_was_passed_on() {
        local(async {
            let (link, mut peer) = pair();
            let streamed = call(&link, "");
            peer.next().await;
            peer.send(0, frames::ANSWER, &answer(200, false, "content-length\n65536", "")).await;
            let chunk = vec![b'x'; frames::WINDOW_BYTES / 2];
            peer.send(0, frames::DATA, &chunk).await;
            peer.send(0, frames::DATA, &chunk).await;
            let mut body = streamed.await.unwrap().into_body();
            assert_eq!(http_body::Body::size_hint(&body).exact(), Some(65_536));
            for _ in 0..2 {
                assert_eq!(body.frame().await.unwrap().unwrap().into_data().unwrap().len(), chunk.len());
                let (exchange, kind, credit) = peer.next().await;
                assert_eq!((exchange, kind, credit), (0, frames::CREDIT, 32_768u32.to_le_bytes().to_vec()));
            }
            peer.send(0, frames::END, b"").await;
            assert!(body.frame().await.is_none());
        });
    }

    #[test]
    fn whoever_does_not_wait_any_more_says_so_once() {
        local(async {
            let (link, mut peer) = pair();
            let mut dropped = call(&link, "");
            peer.next().await;
            assert!(futures_util::poll!(&mut dropped).is_pending());
            drop(dropped);
            assert_eq!(peer.next().await, (0, frames::CANCEL, vec![]));
            // What was on its way is ignored, and the link goes on.
            peer.send(0, frames::ANSWER, &answer(200, true, "", "")).await;
            let streamed = call(&link, "");
            peer.next().await;
            peer.send(1, frames::ANSWER, &answer(200, false, "", "")).await;
            drop(streamed.await.unwrap());
            assert_eq!(peer.next().await, (1, frames::CANCEL, vec![]));
            let answered = call(&link, "");
            peer.next().await;
            peer.send(2, frames::ANSWER, &answer(200, true, "", "ok")).await;
            assert_eq!(text(answered.await.unwrap()).await.unwrap(), "ok");
            drop(link);
            assert_eq!(peer.0.read(&mut [0; 16]).await.unwrap(), 0, "the connection closes with its last call");
        });
    }

    #[test]
    fn what_was_not_sent_is_told_from_what_broke() {
        local(async {
            let (link, mut peer) = pair();
            let sent = call(&link, "");
            peer.next().await;
            let unsent = call(&link, "");
            drop(peer);
            assert!(matches!(sent.await, Err(CallError::Broken(_))));
            assert!(matches!(unsent.await, Err(CallError::NotSent(_))));
            assert!(!link.is_open());
            assert!(matches!(call(&link, "").await, Err(CallError::NotSent(_))));
        });
    }

    #[test]
    fn an_answer_without_sense_breaks_itself_alone() {
        local(async {
            let (link, mut peer) = pair();
            let many = vec!["a\nb"; limits::RESPONSE_HEADERS_MAX + 1].join("\n");
            let large = format!("a\n{}", "b".repeat(limits::RESPONSE_HEADER_BYTES_MAX));
            let bad = [
                answer(99, true, "", ""),
                answer(101, true, "", ""),
                answer(600, true, "", ""),
                answer(200, true, "name", ""),
                answer(200, true, "na me\nvalue", ""),
                answer(200, true, "a\nb\r", ""),
                answer(200, true, &many, ""),
                answer(200, true, &large, ""),
                answer(200, false, "content-length\n-1", ""),
                answer(200, false, "content-length\n1\ncontent-length\n1", ""),
            ];
            for (i, payload) in (0u32..).zip(&bad) {
                let broken = call(&link, "");
                peer.next().await;
                peer.send(i, frames::ANSWER, payload).await;
                assert!(matches!(broken.await, Err(CallError::Broken(_))), "{i}");
                assert!(link.is_open(), "{i}");
                // Of an answer that came in part the rest is not wanted.
                if payload[2] == 0 {
                    assert_eq!(peer.next().await.1, frames::CANCEL);
                }
            }
        });
    }

    #[test]
    fn bodies_are_as_long_as_their_heads_say() {
        local(async {
            let (link, mut peer) = pair();
            for (i, sent) in [(0, "123"), (1, "12345")] {
                let call = call(&link, "");
                peer.next().await;
                peer.send(i, frames::ANSWER, &answer(200, false, "content-length\n4", "")).await;
                peer.send(i, frames::DATA, sent.as_bytes()).await;
                peer.send(i, frames::END, b"").await;
                assert!(text(call.await.unwrap()).await.is_err(), "{sent}");
            }
            let broken = call(&link, "");
            peer.next().await;
            peer.send(2, frames::ANSWER, &answer(200, false, "", "")).await;
            peer.send(2, frames::BROKEN, b"").await;
            assert!(text(broken.await.unwrap()).await.is_err());
            let head = link.call(true, |_| {}, b"");
            peer.next().await;
            peer.send(3, frames::ANSWER, &answer(200, true, "content-length\n4", "")).await;
            let head = head.await.unwrap();
            assert_eq!(head.headers()[header::CONTENT_LENGTH], "4");
            assert_eq!(text(head).await.unwrap(), "");
        });
    }

    #[test]
    fn a_frame_that_fits_no_rule_ends_the_link() {
        let bad: [Vec<u8>; 8] = [
            frame(0, 9, b""),
            frame(77, 0, b""),
            frame(0, frames::DATA, b"before its answer"),
            frame(0, frames::END, b""),
            frame(0, frames::ANSWER, b"short"),
            frame(0, frames::ANSWER, &answer(200, false, "", "a body before its window")),
            [frame(0, frames::ANSWER, &answer(200, false, "", "")), frame(0, frames::DATA, &vec![0; frames::WINDOW_BYTES + 1])].concat(),
            [&u32::MAX.to_le_bytes()[..], &[0; 5]].concat(),
        ];
        for bytes in bad {
            local(async {
                let (link, mut peer) = pair();
                let first = call(&link, "");
                let other = call(&link, "");
                (peer.next().await, peer.next().await);
                peer.0.write_all(&bytes).await.unwrap();
                assert!(matches!(other.await, Err(CallError::Broken(_))), "{bytes:?}");
                if let Ok(started) = first.await {
                    assert!(text(started).await.is_err());
                }
                assert!(!link.is_open());
            });
        }
    }

    proptest! {
        /// Whatever a runtime sends is read without a panic, within limits, and a frame takes what its length says.
        #[test]
        fn whatever_a_runtime_sends_is_bounded(bytes in proptest::collection::vec(any::<u8>(), 0..400), length in 0u32..300) {
            let framed = [&length.to_le_bytes()[..], &bytes].concat();
            for bytes in [&bytes, &framed] {
                if let Ok(Some((frame, taken))) = first_frame(bytes) {
                    prop_assert_eq!(taken, frames::HEADER_BYTES + frame.payload.len());
                    prop_assert!(taken <= bytes.len());
                }
                if let Ok(Ok(answer)) = parse_answer(bytes) {
                    prop_assert!(answer.headers.len() <= limits::RESPONSE_HEADERS_MAX);
                    prop_assert!((200..600).contains(&answer.status.as_u16()));
                }
            }
        }

        /// Whatever headers an answer has, those that come out are those that went in.
        #[test]
        fn whatever_is_well_formed_is_read_as_it_is(
            headers in proptest::collection::vec(("[a-z][a-z0-9-]{0,20}", "[ -~]{0,40}"), 0..20),
            status in 200u16..600, body in ".{0,80}", whole: bool,
        ) {
            let head = headers.iter().map(|(n, v)| format!("{n}\n{v}")).collect::<Vec<_>>().join("\n");
            let read = parse_answer(&answer(status, whole, &head, &body)).unwrap().unwrap();
            prop_assert_eq!((read.status.as_u16(), read.whole, &read.body[..]), (status, whole, body.as_bytes()));
            let mut expected: Vec<_> = headers.iter().map(|(n, v)| (n.as_str(), v.as_str())).collect();
            let mut came: Vec<_> = read.headers.iter().map(|(n, v)| (n.as_str(), v.to_str().unwrap())).collect();
            expected.sort_unstable();
            came.sort_unstable();
            prop_assert_eq!(came, expected);
        }
    }
}
