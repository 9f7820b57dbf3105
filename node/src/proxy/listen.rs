//! The listener: accepts, bounds the number of connections, deals them out to the workers, and drains.

use super::{Config, Metrics, Shared, worker};
use crate::{catalog::Catalog, handler::Handler};
use std::{io, net::SocketAddr, sync::Arc, thread::JoinHandle, time::Duration};
use tokio::{
    net::{TcpListener, TcpStream},
    sync::{OwnedSemaphorePermit, Semaphore, mpsc},
};
use tokio_util::sync::CancellationToken;

/// A connection on its way to a worker, with its place among the open ones.
pub(super) struct Accepted {
    pub stream: std::net::TcpStream,
    pub peer: SocketAddr,
    pub place: OwnedSemaphorePermit,
}

/// Connections that wait for one worker; few, since a worker only has to take them over.
const HANDOVER_MAX: usize = 64;

/// The running proxy.
pub struct Proxy {
    addr: SocketAddr,
    accepting: CancellationToken,
    draining: CancellationToken,
    accept_task: tokio::task::JoinHandle<()>,
    workers: Vec<JoinHandle<()>>,
    open: Arc<Semaphore>,
    connections_max: usize,
}

impl Proxy {
    /// Serves on `listener` until [`Proxy::shutdown`].
    ///
    /// # Errors
    /// When a worker thread cannot be started.
    pub fn start(
        listener: std::net::TcpListener,
        config: Config,
        catalog: Arc<Catalog>,
        handler: Arc<Handler>,
        metrics: Arc<Metrics>,
        manage: axum::Router,
    ) -> io::Result<Self> {
        listener.set_nonblocking(true)?;
        let listener = TcpListener::from_std(listener)?;
        let addr = listener.local_addr()?;
        let (accepting, draining) = (CancellationToken::new(), CancellationToken::new());
        let count = match config.workers {
            0 => std::thread::available_parallelism().map_or(1, usize::from),
            n => n,
        };
        let connections_max = config.connections_max;
        let open = Arc::new(Semaphore::new(connections_max));
        let main = tokio::runtime::Handle::current();
        let shared = Arc::new(Shared { config, catalog, handler, metrics, manage, main, draining: draining.clone() });
        let mut senders = Vec::with_capacity(count);
        let mut workers = Vec::with_capacity(count);
        for n in 0..count {
            let (sender, receiver) = mpsc::channel(HANDOVER_MAX);
            let shared = Arc::clone(&shared);
            workers.push(std::thread::Builder::new().name(format!("proxy-{n}")).spawn(move || worker::run(shared, receiver))?);
            senders.push(sender);
        }
        let accept_task = tokio::spawn(accept(listener, senders, Arc::clone(&open), accepting.clone()));
        Ok(Self { addr, accepting, draining, accept_task, workers, open, connections_max })
    }

    /// Where it listens.
    #[must_use]
    pub fn addr(&self) -> SocketAddr {
        self.addr
    }

    /// Stops accepting, lets every connection finish the request it is at, and returns when all are closed or `grace` is over.
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
        // Workers end when the accept task has dropped their senders and the grace is over; they hold no state to save.
        let _ = tokio::task::spawn_blocking(move || {
            for worker in workers {
                let _ = worker.join();
            }
        })
        .await;
        cut
    }
}

async fn accept(listener: TcpListener, workers: Vec<mpsc::Sender<Accepted>>, open: Arc<Semaphore>, stop: CancellationToken) {
    let mut next = 0_usize;
    loop {
        let accepted = tokio::select! {
            () = stop.cancelled() => return,
            accepted = accept_one(&listener, &open) => accepted,
        };
        let (stream, peer, place) = match accepted {
            Ok(accepted) => accepted,
            Err(error) => {
                // Out of descriptors or memory: the connection stays in the kernel's queue, and spinning would not help it.
                tracing::warn!(%error, "cannot accept; trying again shortly");
                tokio::time::sleep(Duration::from_millis(50)).await;
                continue;
            }
        };
        let Ok(stream) = stream.into_std() else { continue };
        next = (next + 1) % workers.len();
        let _ = workers[next].send(Accepted { stream, peer, place }).await;
    }
}

async fn accept_one(listener: &TcpListener, open: &Arc<Semaphore>) -> io::Result<(TcpStream, SocketAddr, OwnedSemaphorePermit)> {
    let place = Arc::clone(open).acquire_owned().await.map_err(io::Error::other)?;
    let (stream, peer) = listener.accept().await?;
    stream.set_nodelay(true)?;
    Ok((stream, peer, place))
}
