//! Requests whose framing can be read in two ways (RFC 9112, 6.3): both a length and a coding, a second length or coding, a length that is
//! no number. hyper resolves some of them silently, so that nobody after it can refuse them. [`Strict`] follows the bytes of an HTTP/1
//! connection as they are read, one request after the other, and turns the first byte that makes one ambiguous into a NUL, which no request may
//! have there: hyper answers 400 at that place in the order of requests, and closes.
//!
//! It refuses nothing that is merely malformed, since hyper does that, and it changes no byte of a request that has one meaning.

use std::{
    io,
    pin::Pin,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering::Relaxed},
    },
    task::{Context, Poll, ready},
};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

/// A header that frames a body.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Field {
    Length,
    Coding,
}

impl Field {
    const fn name(self) -> &'static [u8] {
        match self {
            Self::Length => b"content-length",
            Self::Coding => b"transfer-encoding",
        }
    }
}

/// What the next byte is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum At {
    /// The first of a request, or of an empty line before it.
    Between,
    /// Of a line that says nothing about framing.
    Line,
    /// The first of a header line.
    LineStart,
    /// Behind the CR of what should be the empty line.
    HeadLf,
    /// Of a header's name that so far is the first bytes of this one's.
    Name(Field, usize),
    /// Of a length, before its digits.
    LengthStart,
    LengthDigits(u64),
    LengthEnd(u64),
    /// Of a body, or of a chunk, with so many bytes to come.
    Body(u64),
    Chunk(u64),
    ChunkCr,
    ChunkLf,
    SizeStart,
    Size(u64),
    SizeSpace(u64),
    Extension(u64),
    SizeLf(u64),
    TrailerStart,
    Trailer,
    TrailerLf,
    EndLf,
    /// Of something that is not looked at: what follows a refusal, or a protocol switched to.
    Open,
}

/// Where a connection's bytes are.
#[derive(Debug)]
struct Scan {
    at: At,
    /// Of the head that is being read.
    length: Option<u64>,
    coded: bool,
}

impl Scan {
    const fn new() -> Self {
        Self { at: At::Between, length: None, coded: false }
    }

    /// Takes the next bytes of the connection. The verdict does not depend on how they are cut into pieces.
    fn feed(&mut self, bytes: &mut [u8]) {
        let mut n = 0;
        while n < bytes.len() {
            match self.at {
                At::Open => return,
                At::Line => match memchr::memchr(b'\n', &bytes[n..]) {
                    Some(end) => {
                        self.at = At::LineStart;
                        n += end + 1;
                    }
                    None => return,
                },
                At::Body(left) | At::Chunk(left) => {
                    let here = (bytes.len() - n).min(usize::try_from(left).unwrap_or(usize::MAX));
                    n += here;
                    self.at = match (self.at, left - here as u64) {
                        (At::Body(_), 0) => At::Between,
                        (At::Body(_), left) => At::Body(left),
                        (_, 0) => At::ChunkCr,
                        (_, left) => At::Chunk(left),
                    };
                }
                _ => {
                    match self.step(bytes[n]) {
                        Some(at) => self.at = at,
                        None => {
                            bytes[n] = 0;
                            self.at = At::Open;
                        }
                    }
                    n += 1;
                }
            }
        }
    }

    /// One byte onwards, or none if it cannot be here.
    fn step(&mut self, byte: u8) -> Option<At> {
        Some(match (self.at, byte) {
            (At::Between, b'\r' | b'\n') => At::Between,
            (At::Between, _) => At::Line,
            (At::LineStart, b'\n') | (At::HeadLf, b'\n') => self.body(),
            (At::LineStart, b'\r') => At::HeadLf,
            (At::LineStart, b'c' | b'C') => At::Name(Field::Length, 1),
            (At::LineStart, b't' | b'T') => At::Name(Field::Coding, 1),
            (At::LineStart, _) => At::Line,
            (At::Name(..), b'\n') => At::LineStart,
            (At::Name(field, n), b':') if n == field.name().len() => return self.framed_by(field),
            (At::Name(field, n), _) if field.name().get(n) == Some(&byte.to_ascii_lowercase()) => At::Name(field, n + 1),
            (At::Name(..), _) => At::Line,
            (At::LengthStart, b' ' | b'\t') => At::LengthStart,
            (At::LengthStart, b'0'..=b'9') => At::LengthDigits(u64::from(byte - b'0')),
            (At::LengthDigits(value), b'0'..=b'9') => At::LengthDigits(value.checked_mul(10)?.checked_add(u64::from(byte - b'0'))?),
            (At::LengthDigits(value) | At::LengthEnd(value), b'\n') => {
                self.length = Some(value);
                At::LineStart
            }
            (At::LengthDigits(value) | At::LengthEnd(value), b' ' | b'\t' | b'\r') => At::LengthEnd(value),
            _ => return Self::step_chunked(self.at, byte),
        })
    }

    fn step_chunked(at: At, byte: u8) -> Option<At> {
        Some(match (at, byte) {
            (At::SizeStart, _) => At::Size(hex(byte)?),
            (At::Size(size) | At::SizeSpace(size), b' ' | b'\t') => At::SizeSpace(size),
            (At::Size(size) | At::SizeSpace(size), b';') => At::Extension(size),
            (At::Size(size) | At::SizeSpace(size) | At::Extension(size), b'\r') => At::SizeLf(size),
            (At::Size(size), _) => At::Size(size.checked_mul(16)?.checked_add(hex(byte)?)?),
            (At::Extension(size), byte) if byte != b'\n' => At::Extension(size),
            (At::SizeLf(0), b'\n') => At::TrailerStart,
            (At::SizeLf(size), b'\n') => At::Chunk(size),
            (At::ChunkCr, b'\r') => At::ChunkLf,
            (At::ChunkLf, b'\n') => At::SizeStart,
            (At::TrailerStart, b'\r') => At::EndLf,
            (At::Trailer, b'\r') => At::TrailerLf,
            (At::TrailerStart | At::Trailer, byte) if byte != b'\n' => At::Trailer,
            (At::TrailerLf, b'\n') => At::TrailerStart,
            (At::EndLf, b'\n') => At::Between,
            _ => return None,
        })
    }

    /// What follows the name of a framing header: nothing may if there is one already.
    fn framed_by(&mut self, field: Field) -> Option<At> {
        if self.coded || self.length.is_some() {
            return None;
        }
        self.coded = field == Field::Coding;
        // hyper takes no coding but one that ends with `chunked`, and the services none but `chunked` itself.
        Some(if self.coded { At::Line } else { At::LengthStart })
    }

    /// What follows a head.
    fn body(&mut self) -> At {
        match (std::mem::take(&mut self.coded), self.length.take()) {
            (true, _) => At::SizeStart,
            (false, Some(length)) if length > 0 => At::Body(length),
            _ => At::Between,
        }
    }
}

fn hex(byte: u8) -> Option<u64> {
    char::from(byte).to_digit(16).map(u64::from)
}

/// Said when a connection is no longer HTTP/1, so that its bytes are left alone.
#[derive(Debug, Clone, Default)]
pub(crate) struct Switched(Arc<AtomicBool>);

impl Switched {
    /// From the next read on.
    pub fn set(&self) {
        self.0.store(true, Relaxed);
    }
}

/// An HTTP/1 connection on which no ambiguous request can be read.
pub(crate) struct Strict<T> {
    io: T,
    scan: Scan,
    switched: Switched,
}

impl<T> Strict<T> {
    /// Wraps `io` before anything was read from it.
    pub fn new(io: T, switched: Switched) -> Self {
        Self { io, scan: Scan::new(), switched }
    }
}

impl<T: AsyncRead + Unpin> AsyncRead for Strict<T> {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let before = buf.filled().len();
        ready!(Pin::new(&mut self.io).poll_read(cx, buf))?;
        if !self.switched.0.load(Relaxed) {
            self.scan.feed(&mut buf.filled_mut()[before..]);
        }
        Poll::Ready(Ok(()))
    }
}

impl<T: AsyncWrite + Unpin> AsyncWrite for Strict<T> {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.io).poll_write(cx, buf)
    }
    fn poll_write_vectored(mut self: Pin<&mut Self>, cx: &mut Context<'_>, bufs: &[io::IoSlice<'_>]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.io).poll_write_vectored(cx, bufs)
    }
    fn is_write_vectored(&self) -> bool {
        self.io.is_write_vectored()
    }
    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.io).poll_flush(cx)
    }
    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.io).poll_shutdown(cx)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::{collection::vec, prelude::*, sample::select};
    use tokio::io::{AsyncReadExt, AsyncWriteExt};

    /// What comes out of `bytes`, read in pieces that end at `cuts`.
    fn scanned(bytes: &[u8], cuts: &[usize]) -> Vec<u8> {
        let mut scan = Scan::new();
        let mut out = bytes.to_vec();
        let mut rest = out.as_mut_slice();
        for cut in cuts {
            let (piece, after) = rest.split_at_mut(cut % (rest.len() + 1));
            scan.feed(piece);
            rest = after;
        }
        scan.feed(rest);
        out
    }

    /// The offset of the byte that was refused.
    fn refused_at(bytes: &[u8]) -> Option<usize> {
        let out = scanned(bytes, &[]);
        let at = out.iter().zip(bytes).position(|(a, b)| a != b)?;
        assert_eq!((out[at], &out[at + 1..]), (0, &bytes[at + 1..]), "one byte changes, and becomes NUL");
        Some(at)
    }

    #[test]
    fn ambiguous_framing_is_refused_where_it_shows() {
        for (headers, offender) in [
            ("content-length: 3\r\ntransfer-encoding: chunked\r\n", "transfer-encoding"),
            ("Transfer-Encoding: chunked\r\nx: y\r\nCONTENT-length: 3\r\n", "CONTENT-length"),
            ("content-length: 3\r\nContent-Length: 3\r\n", "Content-Length"),
            ("content-length: 0\r\nx: y\nContent-Length: 3\r\n", "Content-Length"),
            ("transfer-encoding: chunked\r\nTransfer-Encoding: chunked\r\n", "Transfer-Encoding"),
            ("content-length: 3,3\r\n", "content-length: 3"),
            ("content-length: 3 3\r\n", "content-length: 3 "),
            ("content-length: +3\r\n", "content-length: "),
            ("content-length:\r\n", "content-length:"),
            ("content-length: 99999999999999999999\r\n", "content-length: 9999999999999999999"),
        ] {
            let head = format!("POST / HTTP/1.1\r\nhost: a\r\n{headers}\r\nabc");
            let expected = head.rfind(offender).unwrap() + offender.len();
            assert_eq!(refused_at(head.as_bytes()), Some(expected), "{head}");
            // Behind another request, however that one is framed.
            for first in [
                "GET / HTTP/1.1\r\nhost: a\r\n\r\n",
                "POST / HTTP/1.1\ncontent-length:\t18  \n\ncontent-length: 1\n",
                "POST / HTTP/1.1\r\ntransfer-encoding: chunked\r\n\r\n2;a=b\r\n\r\n\r\n0001 \r\nx\r\n0\r\ncontent-length: 1\r\ncontent-length: 1\r\n\r\n",
            ] {
                let both = format!("{first}\r\n{head}");
                assert_eq!(refused_at(both.as_bytes()), Some(first.len() + 2 + expected), "{both}");
            }
        }
    }

    #[test]
    fn chunks_that_hyper_refuses_are_refused() {
        for body in
            ["x", "\r", "fffffffffffffffff", "1\n", "1 1", "1;\n", "1\r\nxy", "1\r\nx\ry", "0\r\n\n", "0\r\na\n", "0\r\n\rx"]
        {
            let request = format!("POST / HTTP/1.1\r\ntransfer-encoding: chunked\r\n\r\n{body}");
            assert_eq!(refused_at(request.as_bytes()), Some(request.len() - 1), "{body:?}");
        }
    }

    #[tokio::test]
    async fn a_protocol_that_was_switched_to_is_left_alone() {
        let bytes = b"content-length: 1\r\ncontent-length: 1\r\n";
        let (mut client, server) = tokio::io::duplex(1024);
        let switched = Switched::default();
        let mut server = Strict::new(server, switched.clone());
        let head = b"GET / HTTP/1.1\r\nupgrade: x\r\n\r\n";
        client.write_all(head).await.unwrap();
        let mut seen = vec![0; head.len()];
        server.read_exact(&mut seen).await.unwrap();
        switched.set();
        client.write_all(&bytes.repeat(2)).await.unwrap();
        drop(client);
        let mut rest = Vec::new();
        server.read_to_end(&mut rest).await.unwrap();
        assert_eq!((seen.as_slice(), rest), (&head[..], bytes.repeat(2)));
    }

    /// One honest request.
    fn request() -> impl Strategy<Value = Vec<u8>> {
        let other =
            select(vec!["", "x: content-length: 1\r\n", "content-lengths: 1\r\ntransfer-encodin: chunked\r\n", "c: 1\r\nt: 2\r\n"]);
        let name = select(vec!["content-length", "Content-Length", "CONTENT-LENGTH"]);
        let body = vec(select(b"a:\r\n0content-length: 1\r\n".to_vec()), 0..40);
        let chunked = vec((vec(any::<u8>(), 1..20), select(vec!["", ";a=b", " ", ";\"content-length: 1\""])), 0..4);
        let trailers = select(vec!["", "content-length: 3\r\ncontent-length: 4\r\n", "x:y\r\n"]);
        prop_oneof![
            other.clone().prop_map(|o| format!("GET / HTTP/1.1\r\nhost: a\r\n{o}\r\n").into_bytes()),
            (other.clone(), name, body).prop_map(|(other, name, body)| {
                let head = format!("POST / HTTP/1.1\r\n{other}{name}: {}\r\n{other}\r\n", body.len());
                [head.into_bytes(), body].concat()
            }),
            (other, chunked, trailers).prop_map(|(other, chunks, trailers)| {
                let mut request = format!("POST / HTTP/1.1\r\n{other}transfer-encoding: chunked\r\n\r\n").into_bytes();
                for (data, extension) in chunks {
                    request.extend(format!("{:x}{extension}\r\n", data.len()).into_bytes());
                    request.extend(data);
                    request.extend(b"\r\n");
                }
                request.extend(format!("0\r\n{trailers}\r\n").into_bytes());
                request
            }),
        ]
    }

    proptest! {
        #[test]
        fn honest_requests_pass_unchanged(requests in vec(request(), 1..6), cuts in vec(any::<usize>(), 0..12)) {
            let bytes = requests.concat();
            prop_assert_eq!(scanned(&bytes, &cuts), bytes);
        }

        #[test]
        fn any_cut_gives_the_same_verdict(
            requests in vec(request(), 0..4),
            tail in vec(select(b"content-length: 1\r\ntransfer-encoding: chunked\r\n\r\n;0".to_vec()), 0..80),
            swaps in vec((any::<usize>(), any::<u8>()), 0..3),
            cuts in vec(any::<usize>(), 0..12),
        ) {
            let mut bytes = [requests.concat(), tail].concat();
            for (at, byte) in swaps {
                let len = bytes.len().max(1);
                if let Some(place) = bytes.get_mut(at % len) {
                    *place = byte;
                }
            }
            prop_assert_eq!(scanned(&bytes, &cuts), scanned(&bytes, &[]));
        }
    }
}
