//! How long the other side may keep us waiting: a fixed time, and more for each byte that it takes or gives. A client that sends (or
//! reads) one byte now and then runs out of it; a slow but honest one does not. Time in which the other side owes us nothing is free.

use std::{
    io,
    pin::Pin,
    task::{Context, Poll},
    time::Duration,
};
use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    time::{Instant, Sleep},
};

/// How patient to be.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Terms {
    /// The fixed time.
    pub wait_max: Duration,
    /// Bytes that earn one more second.
    pub rate_min_bytes_per_s: u64,
}

/// Time earned by bytes is kept only up to this many times the fixed one, so that a fast start does not buy an hour of silence.
const EARNED_MAX: u32 = 4;

/// One direction of one exchange.
#[derive(Debug)]
pub struct Patience {
    terms: Terms,
    /// What is left while nobody is being waited for.
    left: Duration,
    since: Option<Instant>,
    timer: Option<Pin<Box<Sleep>>>,
}

impl Patience {
    /// All of the fixed time left.
    #[must_use]
    pub fn new(terms: Terms) -> Self {
        Self { terms, left: terms.wait_max, since: None, timer: None }
    }

    /// The other side moved `bytes`.
    pub fn progressed(&mut self, bytes: usize) {
        if let Some(since) = self.since.take() {
            self.left = self.left.saturating_sub(since.elapsed());
        }
        let full = self.terms.wait_max * EARNED_MAX;
        if self.left < full {
            let earned_us = (bytes as u64).saturating_mul(1_000_000) / self.terms.rate_min_bytes_per_s.max(1);
            self.left = full.min(self.left.saturating_add(Duration::from_micros(earned_us)));
        }
    }

    /// We wait for the other side. Ready when it has kept us waiting for too long.
    pub fn poll_exhausted(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        let left = self.left;
        let deadline = *self.since.get_or_insert_with(Instant::now) + left;
        let timer = self.timer.get_or_insert_with(|| Box::pin(tokio::time::sleep_until(deadline)));
        if timer.deadline() != deadline {
            timer.as_mut().reset(deadline);
        }
        timer.as_mut().poll(cx)
    }
}

/// A connection that fails when its other side does not take what is written.
pub struct Patient<T> {
    io: T,
    writing: Patience,
}

impl<T> Patient<T> {
    /// Wraps `io`.
    pub fn new(io: T, terms: Terms) -> Self {
        Self { io, writing: Patience::new(terms) }
    }
}

impl<T: AsyncRead + Unpin> AsyncRead for Patient<T> {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.io).poll_read(cx, buf)
    }
}

impl<T: AsyncWrite + Unpin> Patient<T> {
    fn watch(&mut self, cx: &mut Context<'_>, written: Poll<io::Result<usize>>) -> Poll<io::Result<usize>> {
        match written {
            Poll::Ready(Ok(bytes)) => {
                if self.writing.since.is_some() {
                    self.writing.progressed(bytes);
                }
                Poll::Ready(Ok(bytes))
            }
            Poll::Pending => self.writing.poll_exhausted(cx).map(|()| Err(io::ErrorKind::TimedOut.into())),
            error => error,
        }
    }
}

impl<T: AsyncWrite + Unpin> AsyncWrite for Patient<T> {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        let written = Pin::new(&mut self.io).poll_write(cx, buf);
        self.watch(cx, written)
    }
    fn poll_write_vectored(mut self: Pin<&mut Self>, cx: &mut Context<'_>, bufs: &[io::IoSlice<'_>]) -> Poll<io::Result<usize>> {
        let written = Pin::new(&mut self.io).poll_write_vectored(cx, bufs);
        self.watch(cx, written)
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
    use std::future::poll_fn;
    use tokio::io::{AsyncReadExt, AsyncWriteExt};

    const TERMS: Terms = Terms { wait_max: Duration::from_secs(20), rate_min_bytes_per_s: 1_000 };

    #[tokio::test(start_paused = true)]
    async fn a_trickle_runs_out_and_an_honest_rate_does_not() {
        let mut trickle = Patience::new(TERMS);
        let began = Instant::now();
        loop {
            let waited = tokio::time::timeout(Duration::from_secs(5), poll_fn(|cx| trickle.poll_exhausted(cx))).await;
            if waited.is_ok() {
                break;
            }
            trickle.progressed(10);
        }
        assert!((20..22).contains(&began.elapsed().as_secs()), "{:?}", began.elapsed());

        let mut honest = Patience::new(TERMS);
        for _ in 0..1_000 {
            let waited = tokio::time::timeout(Duration::from_secs(5), poll_fn(|cx| honest.poll_exhausted(cx))).await;
            assert!(waited.is_err());
            honest.progressed(5_000);
        }
    }

    #[tokio::test(start_paused = true)]
    async fn time_in_which_nothing_is_owed_is_free() {
        let mut patience = Patience::new(TERMS);
        tokio::time::sleep(Duration::from_secs(1_000)).await;
        let waited = tokio::time::timeout(Duration::from_secs(19), poll_fn(|cx| patience.poll_exhausted(cx))).await;
        assert!(waited.is_err());
    }

    #[tokio::test(start_paused = true)]
    async fn a_reader_that_stopped_ends_the_writer() {
        let (client, server) = tokio::io::duplex(64);
        let mut server = Patient::new(server, TERMS);
        let error = server.write_all(&[0; 1_000]).await.unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::TimedOut);
        let mut client = client;
        let mut buf = [0; 64];
        assert_eq!(client.read(&mut buf).await.unwrap(), 64);
    }
}
