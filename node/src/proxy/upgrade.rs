//! Upgraded connections (WebSocket): once the function has answered 101, bytes pass both ways until one side ends or both are silent.

use super::forward::Exchange;
use hyper::upgrade::OnUpgrade;
use hyper_util::rt::TokioIo;
use std::{
    cell::Cell,
    io,
    pin::Pin,
    rc::Rc,
    task::{Context, Poll},
    time::Duration,
};
use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    time::Instant,
};
use tokio_util::sync::CancellationToken;

/// Joins the two sides in a task of its own, which holds the exchange (and with it the container) until the end.
pub(super) fn join(
    client: OnUpgrade,
    function: OnUpgrade,
    exchange: Exchange,
    idle_timeout: Duration,
    draining: CancellationToken,
) {
    tokio::task::spawn_local(async move {
        let (client, function) = match tokio::try_join!(client, function) {
            Ok(sides) => sides,
            Err(error) => {
                tracing::debug!(%error, "an upgrade did not come about");
                return exchange.finish(false);
            }
        };
        let last = Rc::new(Cell::new(Instant::now()));
        let mut client = Watched { io: TokioIo::new(client), last: Rc::clone(&last) };
        let mut function = Watched { io: TokioIo::new(function), last: Rc::clone(&last) };
        let result = tokio::select! {
            result = tokio::io::copy_bidirectional(&mut client, &mut function) => result.map(|_| ()),
            () = silent(&last, idle_timeout) => Err(io::ErrorKind::TimedOut.into()),
            // Leaving: the function sees its socket end, and so does the client.
            () = draining.cancelled() => Ok(()),
        };
        if let Err(error) = result {
            tracing::debug!(%error, "an upgraded connection ended");
        }
        exchange.finish(false);
    });
}

async fn silent(last: &Cell<Instant>, idle_timeout: Duration) {
    loop {
        let until = last.get() + idle_timeout;
        if until <= Instant::now() {
            return;
        }
        tokio::time::sleep_until(until).await;
    }
}

/// Notes when something last passed.
struct Watched<T> {
    io: T,
    last: Rc<Cell<Instant>>,
}

impl<T: AsyncRead + Unpin> AsyncRead for Watched<T> {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let polled = Pin::new(&mut self.io).poll_read(cx, buf);
        if polled.is_ready() {
            self.last.set(Instant::now());
        }
        polled
    }
}

impl<T: AsyncWrite + Unpin> AsyncWrite for Watched<T> {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.io).poll_write(cx, buf)
    }
    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.io).poll_flush(cx)
    }
    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.io).poll_shutdown(cx)
    }
}
