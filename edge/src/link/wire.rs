//! What both ends of a link do with its socket: frames out in few writes, frames in with few reads.

use super::parse::{Malformed, RawFrame, first_frame};
use bytes::{Buf, BufMut, BytesMut};
use hearth_model::protocol::link as frames;
use http::{HeaderName, HeaderValue};
use std::{
    io,
    pin::Pin,
    task::{Context, Poll, Waker, ready},
};
use tokio::io::{AsyncRead, AsyncWrite};

/// Room for what is read from the socket at once; more only while a larger frame comes.
const READ_BYTES: usize = 16 * 1024;
/// Handed over at once: one record of TLS, so that a write that fails has delivered nothing that could be read.
const WRITE_BYTES: usize = 16 * 1024;
/// A larger buffer that is empty is given back: a node has links to thousands of containers.
const KEPT_BYTES: usize = 64 * 1024;
/// Frames taken before others of this thread have their turn.
pub(super) const FRAMES_PER_TURN: usize = 256;

/// Frames on their way to the socket.
#[derive(Default)]
pub(super) struct Outbox {
    bytes: BytesMut,
    /// Of all bytes ever: put into `bytes`, and taken from it by the socket.
    put: u64,
    taken: u64,
    unflushed: bool,
    task: Option<Waker>,
}

impl Outbox {
    /// How many bytes were ever put.
    pub fn put(&self) -> u64 {
        self.put
    }

    /// How many of them the socket has.
    pub fn taken(&self) -> u64 {
        self.taken
    }

    /// How many wait.
    pub fn waiting(&self) -> usize {
        self.bytes.len()
    }

    pub fn frame(&mut self, exchange: u32, kind: u8, payload: impl FnOnce(&mut BytesMut)) {
        let before = self.bytes.len();
        self.bytes.put_bytes(0, frames::HEADER_BYTES);
        payload(&mut self.bytes);
        let length = self.bytes.len() - before - frames::HEADER_BYTES;
        debug_assert!(length <= frames::PAYLOAD_BYTES_MAX);
        let mut header = &mut self.bytes[before..before + frames::HEADER_BYTES];
        header.put_u32_le(u32::try_from(length).unwrap_or(u32::MAX));
        header.put_u32_le(exchange);
        header.put_u8(kind);
        self.put += (self.bytes.len() - before) as u64;
        self.wake();
    }

    /// Has the link's task look at things again.
    pub fn wake(&self) {
        if let Some(task) = &self.task {
            task.wake_by_ref();
        }
    }

    /// Writes what the socket takes; ready when all of it is written.
    pub fn poll_write<T: AsyncWrite + Unpin>(&mut self, cx: &mut Context<'_>, stream: &mut T) -> Poll<io::Result<()>> {
        if !self.task.as_ref().is_some_and(|w| w.will_wake(cx.waker())) {
            self.task = Some(cx.waker().clone());
        }
        while !self.bytes.is_empty() {
            let piece = &self.bytes[..self.bytes.len().min(WRITE_BYTES)];
            let bytes = ready!(Pin::new(&mut *stream).poll_write(cx, piece))?;
            if bytes == 0 {
                return Poll::Ready(Err(io::ErrorKind::WriteZero.into()));
            }
            self.bytes.advance(bytes);
            self.taken += bytes as u64;
            self.unflushed = true;
        }
        if self.bytes.capacity() > KEPT_BYTES {
            self.bytes = BytesMut::new();
        }
        if self.unflushed {
            ready!(Pin::new(&mut *stream).poll_flush(cx))?;
            self.unflushed = false;
        }
        Poll::Ready(Ok(()))
    }

    /// Forgets what waits: the link is at its end.
    pub fn clear(&mut self) {
        self.bytes = BytesMut::new();
    }
}

/// Writes the fields of a head: a line feed between one and the next.
pub struct Fields<'a> {
    out: &'a mut BytesMut,
    begun: bool,
}

impl<'a> Fields<'a> {
    /// Writes to the end of `out`.
    pub fn new(out: &'a mut BytesMut) -> Self {
        Self { out, begun: false }
    }

    /// Begins a field, whose text is for the caller to write.
    pub fn begin(&mut self) -> &mut BytesMut {
        if std::mem::replace(&mut self.begun, true) {
            self.out.put_u8(b'\n');
        }
        self.out
    }

    /// One field.
    pub fn put(&mut self, text: &[u8]) {
        self.begin().put_slice(text);
    }

    /// Two for each header.
    pub fn put_headers<'h>(&mut self, headers: impl Iterator<Item = (&'h HeaderName, &'h HeaderValue)>) {
        for (name, value) in headers {
            self.put(name.as_str().as_bytes());
            self.put(value.as_bytes());
        }
    }
}

/// Frames on their way from the socket.
#[derive(Default)]
pub(super) struct Inbox(BytesMut);

impl Inbox {
    /// Has `take` see every frame that is there. Ready, with the reason, when no more can come.
    pub fn poll_read<T: AsyncRead + Unpin>(
        &mut self,
        cx: &mut Context<'_>,
        stream: &mut T,
        mut take: impl FnMut(&RawFrame<'_>) -> Result<(), Malformed>,
    ) -> Poll<String> {
        let mut frames_left = FRAMES_PER_TURN;
        loop {
            loop {
                if frames_left == 0 {
                    cx.waker().wake_by_ref();
                    return Poll::Pending;
                }
                let first =
                    first_frame(&self.0).and_then(|first| first.map(|(frame, bytes)| take(&frame).map(|()| bytes)).transpose());
                match first {
                    Ok(Some(bytes)) => self.0.advance(bytes),
                    Ok(None) => break,
                    Err(malformed) => return Poll::Ready(malformed.to_string()),
                }
                frames_left -= 1;
            }
            if self.0.is_empty() && self.0.capacity() > KEPT_BYTES {
                self.0 = BytesMut::new();
            }
            self.0.reserve(READ_BYTES);
            match ready!(tokio_util::io::poll_read_buf(Pin::new(&mut *stream), cx, &mut self.0)) {
                Ok(0) => return Poll::Ready("the other end closed the link".into()),
                Ok(_) => {}
                Err(error) => return Poll::Ready(error.to_string()),
            }
        }
    }
}
