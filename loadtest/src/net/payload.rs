//! Bodies of requests: nothing, some bytes, or a stream of chunks that is made while it is sent, however long it is.

use bytes::Bytes;
use http_body::{Body, Frame, SizeHint};
use std::{
    convert::Infallible,
    pin::Pin,
    task::{Context, Poll},
};

/// A request's body. A clone is cheap: the bytes are shared.
#[derive(Debug, Clone, Default)]
pub enum Payload {
    /// None.
    #[default]
    Empty,
    /// Sent at once, with `content-length`.
    Whole(Bytes),
    /// Sent chunk by chunk without a declared length, as a client that streams does.
    Stream {
        /// One chunk.
        chunk: Bytes,
        /// Bytes left to send.
        left: u64,
    },
}

impl Payload {
    /// So many bytes of text; streamed in pieces of 16 KiB where asked for.
    #[must_use]
    pub fn sized(bytes: u64, streamed: bool) -> Self {
        const CHUNK: u64 = 16 * 1024;
        let text = |n: u64| Bytes::from((0..n).map(|i| b'a' + (i % 26) as u8).collect::<Vec<u8>>());
        match bytes {
            0 => Self::Empty,
            _ if streamed => Self::Stream { chunk: text(CHUNK.min(bytes)), left: bytes },
            _ => Self::Whole(text(bytes)),
        }
    }

    /// All bytes that it sends.
    #[must_use]
    pub fn len(&self) -> u64 {
        match self {
            Self::Empty => 0,
            Self::Whole(bytes) => bytes.len() as u64,
            Self::Stream { left, .. } => *left,
        }
    }

    /// Whether it sends nothing.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }
}

impl Body for Payload {
    type Data = Bytes;
    type Error = Infallible;

    fn poll_frame(mut self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Infallible>>> {
        let next = match &mut *self {
            Self::Empty => None,
            Self::Whole(bytes) => Some(std::mem::take(bytes)),
            Self::Stream { chunk, left } => {
                let n = (*left).min(chunk.len() as u64);
                *left -= n;
                Some(chunk.slice(..n as usize))
            }
        };
        if matches!(&*self, Self::Whole(bytes) if bytes.is_empty()) || matches!(&*self, Self::Stream { left: 0, .. }) {
            *self = Self::Empty;
        }
        Poll::Ready(next.filter(|bytes| !bytes.is_empty()).map(|bytes| Ok(Frame::data(bytes))))
    }

    fn is_end_stream(&self) -> bool {
        self.is_empty()
    }

    fn size_hint(&self) -> SizeHint {
        match self {
            Self::Empty => SizeHint::with_exact(0),
            Self::Whole(bytes) => SizeHint::with_exact(bytes.len() as u64),
            Self::Stream { .. } => SizeHint::new(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use http_body_util::BodyExt as _;

    #[tokio::test]
    async fn every_form_sends_its_bytes() {
        for (bytes, streamed) in [(0, false), (0, true), (1, false), (16_384, true), (16_385, true), (100_000, true)] {
            let payload = Payload::sized(bytes, streamed);
            assert_eq!(payload.len(), bytes);
            assert_eq!(payload.size_hint().exact().is_some(), !streamed || bytes == 0);
            assert_eq!(payload.collect().await.unwrap().to_bytes().len() as u64, bytes);
        }
    }
}
