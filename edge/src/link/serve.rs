//! The end of a link that is called: a node's, for a router. Each call is a request to the service, on a task of its own.

#[cfg(test)]
mod tests;

use super::{
    parse::{Malformed, RawFrame, UNKNOWN, parse_call},
    wire::{Fields, Inbox, Outbox},
};
use crate::{
    BoxError,
    serve::{ClientBody, Peer, Service},
};
use bytes::{BufMut, Bytes, BytesMut};
use hearth_model::protocol::link as frames;
use http::{HeaderMap, Method, Response, StatusCode, header, response::Parts};
use http_body::{Body, Frame};
use std::{
    cell::RefCell,
    collections::HashMap,
    pin::Pin,
    rc::Rc,
    task::{Context, Poll, Waker, ready},
};
use tokio::{
    io::{AsyncRead, AsyncWrite},
    task::AbortHandle,
};

/// Calls at once; more than a router has in flight in all.
const CALLS_MAX: usize = 16 * 1024;
/// Unwritten answers beyond which others wait: the router does not read.
const UNWRITTEN_BYTES_MAX: usize = 4 * 1024 * 1024;
/// Unwritten answers beyond which the link ends.
const UNREAD_BYTES_MAX: usize = 64 * 1024 * 1024;
/// Of an answer, so much goes out as one with its head.
const WHOLE_BYTES_MAX: usize = 64 * 1024;

/// A call that is being answered.
struct Exchange {
    /// Data that the router has room for.
    window: usize,
    /// Who waits for more of it.
    waker: Option<Waker>,
    task: Option<AbortHandle>,
}

#[derive(Default)]
struct State {
    out: Outbox,
    exchanges: HashMap<u32, Exchange>,
    /// Answers that wait until the router has read what is there.
    waiting: Vec<Waker>,
    ended: bool,
}

impl State {
    fn frame(&mut self, exchange: u32, kind: u8, payload: impl FnOnce(&mut BytesMut)) {
        if !self.ended {
            self.out.frame(exchange, kind, payload);
        }
    }

    fn is_behind(&self, bytes: usize) -> bool {
        self.out.waiting() >= bytes
    }
}

/// Serves a link until it ends. When `leaving` ends, the router is told to make no more calls; those that come are answered all the same.
pub(crate) async fn run<S: Service, T>(
    service: Rc<S>,
    peer: Rc<Peer>,
    mut stream: T,
    leaving: impl Future<Output = ()>,
) -> Result<(), BoxError>
where
    T: AsyncRead + AsyncWrite + Unpin,
{
    let guard = Guard(Rc::default());
    let state = &guard.0;
    let (mut inbox, mut leaving, mut told) = (Inbox::default(), std::pin::pin!(leaving), false);
    let detail = std::future::poll_fn(|cx| {
        if !told && leaving.as_mut().poll(cx).is_ready() {
            told = true;
            state.borrow_mut().frame(0, frames::LEAVE, |_| {});
        }
        if let Poll::Ready(Err(error)) = state.borrow_mut().out.poll_write(cx, &mut stream) {
            return Poll::Ready(error.to_string());
        }
        if state.borrow().is_behind(UNREAD_BYTES_MAX) {
            return Poll::Ready("the router does not read".into());
        }
        if !state.borrow().is_behind(UNWRITTEN_BYTES_MAX) {
            state.borrow_mut().waiting.drain(..).for_each(Waker::wake);
        }
        inbox.poll_read(cx, &mut stream, |frame| receive(state, &service, &peer, frame))
    })
    .await;
    Err(detail.into())
}

/// With the link, what it was asked ends: nobody waits for it.
struct Guard(Rc<RefCell<State>>);

impl Drop for Guard {
    fn drop(&mut self) {
        let mut state = self.0.borrow_mut();
        state.ended = true;
        state.out.clear();
        state.exchanges.values().filter_map(|exchange| exchange.task.as_ref()).for_each(AbortHandle::abort);
    }
}

fn receive<S: Service>(
    state: &Rc<RefCell<State>>,
    service: &Rc<S>,
    peer: &Rc<Peer>,
    frame: &RawFrame<'_>,
) -> Result<(), Malformed> {
    match frame.kind {
        frames::CALL => {
            let request = parse_call(frame.payload)?.map(ClientBody::Whole);
            let exchange = Exchange { window: frames::WINDOW_BYTES, waker: None, task: None };
            {
                let exchanges = &mut state.borrow_mut().exchanges;
                if exchanges.len() >= CALLS_MAX {
                    return Err(Malformed::new("too many calls at once"));
                }
                if exchanges.insert(frame.exchange, exchange).is_some() {
                    return Err(UNKNOWN);
                }
            }
            let reply = Reply { state: Rc::clone(state), id: frame.exchange, ended: false };
            let bodiless = *request.method() == Method::HEAD;
            let answer = Rc::clone(service).answer(Rc::clone(peer), request);
            let task = tokio::task::spawn_local(async move { reply.send(answer.await, bodiless).await });
            if let Some(exchange) = state.borrow_mut().exchanges.get_mut(&frame.exchange) {
                exchange.task = Some(task.abort_handle());
            }
        }
        // What has ended meanwhile is not known any more.
        frames::CANCEL => {
            if let Some(exchange) = state.borrow_mut().exchanges.get(&frame.exchange)
                && let Some(task) = &exchange.task
            {
                task.abort();
            }
        }
        frames::CREDIT => {
            let bytes = frame.payload.try_into().map(u32::from_le_bytes).map_err(|_| UNKNOWN)? as usize;
            if let Some(exchange) = state.borrow_mut().exchanges.get_mut(&frame.exchange) {
                exchange.window = exchange.window.checked_add(bytes).filter(|w| *w <= frames::WINDOW_BYTES).ok_or(UNKNOWN)?;
                exchange.waker.take().into_iter().for_each(Waker::wake);
            }
        }
        _ => return Err(UNKNOWN),
    }
    Ok(())
}

/// What is owed for a call: dropped before its end, it is a break.
struct Reply {
    state: Rc<RefCell<State>>,
    id: u32,
    ended: bool,
}

impl Drop for Reply {
    fn drop(&mut self) {
        if !self.ended {
            self.end(frames::BROKEN, |_| {});
        }
    }
}

impl Reply {
    fn end(&mut self, kind: u8, payload: impl FnOnce(&mut BytesMut)) {
        self.ended = true;
        let mut state = self.state.borrow_mut();
        state.exchanges.remove(&self.id);
        state.frame(self.id, kind, payload);
    }

    async fn send<B>(mut self, answer: Response<B>, bodiless: bool)
    where
        B: Body<Data = Bytes, Error = BoxError> + Unpin,
    {
        let (Parts { status, mut headers, .. }, mut body) = answer.into_parts();
        // Heads have no window: they wait for the router to read.
        std::future::poll_fn(|cx| self.poll_written(cx)).await;
        // What HTTP would say by itself.
        let length =
            body.size_hint().exact().filter(|bytes| !headers.contains_key(header::CONTENT_LENGTH) && (*bytes > 0 || !bodiless));
        let is_empty = bodiless || matches!(status, StatusCode::NO_CONTENT | StatusCode::NOT_MODIFIED) || body.is_end_stream();
        if is_empty {
            headers.extend(length.filter(|_| bodiless).map(|bytes| (header::CONTENT_LENGTH, bytes.into())));
            return self.end(frames::ANSWER, |out| put_answer(out, status, &headers, &[], true));
        }
        let mut next = match std::future::poll_fn(|cx| Poll::Ready(poll_data(&mut body, cx))).await {
            Poll::Ready(None) => return self.end(frames::ANSWER, |out| put_answer(out, status, &headers, &[], true)),
            Poll::Ready(Some(Ok(data))) if body.is_end_stream() && data.len() <= WHOLE_BYTES_MAX => {
                return self.end(frames::ANSWER, |out| put_answer(out, status, &headers, &data, true));
            }
            Poll::Ready(begun) => begun,
            Poll::Pending => Some(Ok(Bytes::new())),
        };
        headers.extend(length.map(|bytes| (header::CONTENT_LENGTH, bytes.into())));
        self.state.borrow_mut().frame(self.id, frames::ANSWER, |out| put_answer(out, status, &headers, &[], false));
        drop(headers);
        while let Some(data) = next {
            // Without an end, the router sees that the answer is not whole.
            let Ok(mut data) = data else { return };
            while !data.is_empty() {
                let room = std::future::poll_fn(|cx| self.poll_room(cx)).await;
                let piece = data.split_to(room.min(data.len()));
                self.put_data(&piece);
            }
            next = if body.is_end_stream() { None } else { std::future::poll_fn(|cx| poll_data(&mut body, cx)).await };
        }
        self.end(frames::END, |_| {});
    }

    /// Waits until the router has read most of what there is for it.
    fn poll_written(&self, cx: &Context<'_>) -> Poll<()> {
        let mut state = self.state.borrow_mut();
        if !state.is_behind(UNWRITTEN_BYTES_MAX) {
            return Poll::Ready(());
        }
        state.waiting.push(cx.waker().clone());
        Poll::Pending
    }

    /// Waits until some data may be sent; how much.
    fn poll_room(&self, cx: &mut Context<'_>) -> Poll<usize> {
        ready!(self.poll_written(cx));
        let mut state = self.state.borrow_mut();
        let Some(exchange) = state.exchanges.get_mut(&self.id) else { return Poll::Pending };
        match exchange.window.checked_sub(frames::FRAME_COST_BYTES) {
            Some(room) if room > 0 => Poll::Ready(room),
            _ => {
                exchange.waker = Some(cx.waker().clone());
                Poll::Pending
            }
        }
    }

    fn put_data(&self, data: &[u8]) {
        let mut state = self.state.borrow_mut();
        if let Some(exchange) = state.exchanges.get_mut(&self.id) {
            exchange.window -= data.len() + frames::FRAME_COST_BYTES;
        }
        state.frame(self.id, frames::DATA, |out| out.put_slice(data));
    }
}

/// The next data of a body; trailers end it.
fn poll_data<B>(body: &mut B, cx: &mut Context<'_>) -> Poll<Option<Result<Bytes, BoxError>>>
where
    B: Body<Data = Bytes, Error = BoxError> + Unpin,
{
    Pin::new(body).poll_frame(cx).map(|frame| frame.and_then(|frame| frame.map(Frame::into_data).map(Result::ok).transpose()))
}

fn put_answer(out: &mut BytesMut, status: StatusCode, headers: &HeaderMap, body: &[u8], whole: bool) {
    out.put_u16_le(status.as_u16());
    out.put_u8(u8::from(whole));
    let before = out.len();
    out.put_u32_le(0);
    Fields::new(out).put_headers(headers.iter());
    let bytes = u32::try_from(out.len() - before - 4).unwrap_or(u32::MAX);
    (&mut out[before..]).put_u32_le(bytes);
    out.put_slice(body);
}
