//! Upgraded connections (WebSocket): once the far side has answered 101, bytes pass both ways until one side ends or both are silent.

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

/// Joins the two sides in a task of its own, which calls `ended` when it is over. Either token cuts it: `draining` belongs to this
/// process, `gone` to the far side.
pub fn join(
    client: OnUpgrade,
    far: OnUpgrade,
    idle_timeout: Duration,
    draining: CancellationToken,
    gone: CancellationToken,
    ended: impl FnOnce() + 'static,
) {
    tokio::task::spawn_local(async move {
        if let Err(error) = joined(client, far, idle_timeout, draining, gone).await {
            tracing::debug!(%error, "an upgraded connection ended");
        }
        ended();
    });
}

async fn joined(
    client: OnUpgrade,
    far: OnUpgrade,
    idle_timeout: Duration,
    draining: CancellationToken,
    gone: CancellationToken,
) -> io::Result<()> {
    let (client, far) = tokio::try_join!(client, far).map_err(io::Error::other)?;
    let last = Rc::new(Cell::new(Instant::now()));
    let mut client = Watched { io: TokioIo::new(client), last: Rc::clone(&last) };
    let mut far = Watched { io: TokioIo::new(far), last: Rc::clone(&last) };
    tokio::select! {
        result = tokio::io::copy_bidirectional(&mut client, &mut far) => result.map(|_| ()),
        () = silent(&last, idle_timeout) => Err(io::ErrorKind::TimedOut.into()),
        // Leaving: both sides see their socket end.
        () = draining.cancelled() => Ok(()),
        () = gone.cancelled() => Err(io::ErrorKind::ConnectionReset.into()),
    }
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
