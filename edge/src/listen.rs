//! The listener: accepts, bounds the number of connections, deals them out to worker threads, and drains. It reads no byte.

use crate::addresses::{self, Addresses};
use futures_util::FutureExt;
use std::{io, net::SocketAddr, sync::Arc, thread::JoinHandle, time::Duration};
use tokio::{
    net::{TcpListener, TcpStream},
    sync::{OwnedSemaphorePermit, Semaphore, mpsc},
};
use tokio_util::sync::CancellationToken;

/// A connection on its way to a worker, with its place among the open ones.
pub struct Accepted {
    /// The connection.
    pub stream: std::net::TcpStream,
    /// The other side.
    pub peer: SocketAddr,
    /// Its place; given back when it is dropped.
    pub place: Place,
}

/// An open connection's place among all and among those of its address.
pub struct Place {
    permit: OwnedSemaphorePermit,
    _of_address: addresses::Place,
}

impl Place {
    /// All places of the listener.
    #[must_use]
    pub fn all(&self) -> &Arc<Semaphore> {
        self.permit.semaphore()
    }
}

/// Between machines of ours: when nothing has come for so long the other is asked whether it is there, this often, so many times.
const ASK_AFTER: Duration = Duration::from_secs(5);
const ASK_EVERY: Duration = Duration::from_secs(2);
const ASK_TIMES: u32 = 3;
/// What is sent must be acknowledged, and taken, within this.
const TAKE_TIMEOUT: Duration = Duration::from_secs(10);

/// Has the kernel end a connection whose other machine is gone without a word. Not for those on which an honest peer may stop reading.
///
/// # Errors
/// The kernel's.
pub fn end_when_silent(stream: &TcpStream) -> io::Result<()> {
    use rustix::net::sockopt;
    sockopt::set_socket_keepalive(stream, true)?;
    sockopt::set_tcp_keepidle(stream, ASK_AFTER)?;
    sockopt::set_tcp_keepintvl(stream, ASK_EVERY)?;
    sockopt::set_tcp_keepcnt(stream, ASK_TIMES)?;
    sockopt::set_tcp_user_timeout(stream, u32::try_from(TAKE_TIMEOUT.as_millis()).unwrap_or(u32::MAX))?;
    Ok(())
}

/// Connections that wait for one worker; few, since a worker only has to take them over.
const HANDOVER_MAX: usize = 64;
/// How long accepting waits after an error such as too many open files.
const ACCEPT_PAUSE: Duration = Duration::from_millis(50);
/// How long workers may take to close what was cut.
const CUT_TIMEOUT: Duration = Duration::from_secs(5);

/// How a listener is set up.
#[derive(Debug, Clone, Copy)]
pub struct Options {
    /// The threads' name.
    pub name: &'static str,
    /// Worker threads; 0 means one more than there are cores.
    pub workers: usize,
    /// Open connections; beyond it new ones wait in the kernel's queue.
    pub connections_max: usize,
    /// Open connections from one address that is not this machine's own; those beyond it are closed at once.
    pub connections_per_address_max: usize,
}

/// A running listener.
pub struct Listener {
    addr: SocketAddr,
    accepting: CancellationToken,
    draining: CancellationToken,
    accept_task: tokio::task::JoinHandle<()>,
    workers: Vec<JoinHandle<()>>,
    open: Arc<Semaphore>,
    connections_max: usize,
}

impl Listener {
    /// Accepts on `listener` until [`Listener::shutdown`]. Each worker thread calls `run` with the connections dealt to it; it must
    /// return once they are closed and the channel has ended. `draining` is cancelled when connections should come to their end.
    ///
    /// # Errors
    /// When a worker thread cannot be started.
    pub fn start(
        listener: std::net::TcpListener,
        options: Options,
        draining: CancellationToken,
        run: impl Fn(mpsc::Receiver<Accepted>) + Clone + Send + 'static,
    ) -> io::Result<Self> {
        listener.set_nonblocking(true)?;
        let listener = TcpListener::from_std(listener)?;
        let addr = listener.local_addr()?;
        let accepting = CancellationToken::new();
        let count = match options.workers {
            // One more than there are cores: workers sleep together while a runtime or node works through what all have sent it.
            0 => std::thread::available_parallelism().map_or(1, usize::from) + 1,
            n => n,
        };
        // The semaphore is drained by one acquisition of all places, whose number is 32 bits wide.
        let connections_max = options.connections_max.clamp(1, u32::MAX as usize >> 4);
        let open = Arc::new(Semaphore::new(connections_max));
        let mut senders = Vec::with_capacity(count);
        let mut workers = Vec::with_capacity(count);
        for n in 0..count {
            let (sender, receiver) = mpsc::channel(HANDOVER_MAX);
            let run = run.clone();
            workers.push(std::thread::Builder::new().name(format!("{}-{n}", options.name)).spawn(move || run(receiver))?);
            senders.push(sender);
        }
        let addresses = Arc::new(Addresses::new(options.connections_per_address_max));
        let accept_task = tokio::spawn(accept(listener, senders, Arc::clone(&open), addresses, accepting.clone()));
        Ok(Self { addr, accepting, draining, accept_task, workers, open, connections_max })
    }

    /// Where it listens.
    #[must_use]
    pub fn addr(&self) -> SocketAddr {
        self.addr
    }

    /// Stops accepting, lets every connection finish the requests it is at, and returns when all are closed or `grace` is over.
    /// Returns the number of connections that were cut.
    pub async fn shutdown(self, grace: Duration) -> usize {
        self.accepting.cancel();
        let _ = self.accept_task.await;
        self.draining.cancel();
        let all = u32::try_from(self.connections_max).unwrap_or(u32::MAX);
        let finished = tokio::time::timeout(grace, self.open.acquire_many(all)).await.is_ok();
        let cut = if finished { 0 } else { self.connections_max - self.open.available_permits() };
        self.open.close();
        let workers = self.workers;
        // Workers end when the accept task has dropped their senders and the grace is over; they hold no state to save, so that one
        // that hangs is left to the end of the process.
        let joined = tokio::task::spawn_blocking(move || {
            for worker in workers {
                let _ = worker.join();
            }
        });
        let _ = tokio::time::timeout(CUT_TIMEOUT, joined).await;
        cut
    }
}

async fn accept(
    listener: TcpListener,
    workers: Vec<mpsc::Sender<Accepted>>,
    open: Arc<Semaphore>,
    addresses: Arc<Addresses>,
    stop: CancellationToken,
) {
    let mut next = 0_usize;
    loop {
        // Both branches are cancel-safe: a connection that was not returned stays in the kernel's queue.
        let accepted = tokio::select! {
            () = stop.cancelled() => break,
            accepted = accept_one(&listener, &open) => accepted,
        };
        match accepted {
            Ok(accepted) => deal(accepted, &addresses, &workers, &mut next).await,
            Err(error) => {
                // Out of descriptors or memory: the connection stays in the kernel's queue, and spinning would not help it.
                tracing::warn!(%error, "cannot accept; trying again shortly");
                tokio::time::sleep(ACCEPT_PAUSE).await;
            }
        }
    }
    // Closing the socket resets what still waits in its queue, so that it is emptied first.
    while let Some(Ok(accepted)) = accept_one(&listener, &open).now_or_never() {
        deal(accepted, &addresses, &workers, &mut next).await;
    }
}

async fn deal(
    (stream, peer, permit): (TcpStream, SocketAddr, OwnedSemaphorePermit),
    addresses: &Arc<Addresses>,
    workers: &[mpsc::Sender<Accepted>],
    next: &mut usize,
) {
    let Some(of_address) = addresses.take(peer.ip()) else { return };
    let Ok(stream) = stream.into_std() else { return };
    let place = Place { permit, _of_address: of_address };
    *next = (*next + 1) % workers.len();
    let _ = workers[*next].send(Accepted { stream, peer, place }).await;
}

async fn accept_one(listener: &TcpListener, open: &Arc<Semaphore>) -> io::Result<(TcpStream, SocketAddr, OwnedSemaphorePermit)> {
    let place = Arc::clone(open).acquire_owned().await.map_err(io::Error::other)?;
    let (stream, peer) = listener.accept().await?;
    stream.set_nodelay(true)?;
    Ok((stream, peer, place))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn the_kernel_is_told_to_watch_a_connection() {
        use rustix::net::sockopt;
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let stream = TcpStream::connect(listener.local_addr().unwrap()).await.unwrap();
        end_when_silent(&stream).unwrap();
        assert_eq!(sockopt::tcp_user_timeout(&stream).unwrap(), 10_000);
        assert!(sockopt::socket_keepalive(&stream).unwrap());
        assert_eq!(sockopt::tcp_keepidle(&stream).unwrap(), ASK_AFTER);
    }
}
