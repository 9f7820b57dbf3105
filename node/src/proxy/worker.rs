//! A worker: one thread, one single-threaded runtime, the client connections dealt to it, and its own connections to containers.

use super::{Shared, forward::Connections, listen::Accepted, service};
use hearth_model::limits;
use hyper::{server::conn::http1, service::service_fn};
use hyper_util::rt::{TokioIo, TokioTimer};
use std::{cell::Cell, rc::Rc, sync::Arc, time::Duration};
use tokio::{net::TcpStream, sync::mpsc, task::LocalSet};

/// How often idle connections to containers are looked through.
const SWEEP_EVERY: Duration = Duration::from_secs(5);

/// One worker's own state.
pub(super) struct Worker {
    pub shared: Arc<Shared>,
    pub connections: Connections,
    id_prefix: u64,
    id_next: Cell<u64>,
}

impl Worker {
    /// A request id: unique, 32 hexadecimal digits.
    pub fn request_id(&self) -> String {
        let n = self.id_next.get();
        self.id_next.set(n.wrapping_add(0x9e37_79b9_7f4a_7c15));
        format!("{:016x}{n:016x}", self.id_prefix)
    }
}

/// Runs until the listener is gone and, after that, until the process's grace is over.
pub(super) fn run(shared: Arc<Shared>, receiver: mpsc::Receiver<Accepted>) {
    let runtime = match tokio::runtime::Builder::new_current_thread().enable_all().build() {
        Ok(runtime) => runtime,
        Err(error) => {
            tracing::error!(%error, "a proxy worker cannot start; its connections are refused");
            return;
        }
    };
    let worker = Rc::new(Worker {
        connections: Connections::new(shared.config.idle_connections_max),
        shared,
        id_prefix: rand::random(),
        id_next: Cell::new(rand::random()),
    });
    LocalSet::new().block_on(&runtime, serve(worker, receiver));
}

async fn serve(worker: Rc<Worker>, mut receiver: mpsc::Receiver<Accepted>) {
    let mut sweep = tokio::time::interval(SWEEP_EVERY);
    let mut tasks = tokio::task::JoinSet::new();
    loop {
        tokio::select! {
            accepted = receiver.recv() => match accepted {
                Some(accepted) => { tasks.spawn_local(connection(Rc::clone(&worker), accepted)); }
                None => break,
            },
            Some(_) = tasks.join_next() => {}
            _ = sweep.tick() => worker.connections.sweep(),
        }
    }
    // The listener is gone: what is left ends by itself, or is cut when its place among the open ones is taken away.
    while tasks.join_next().await.is_some() {}
}

async fn connection(worker: Rc<Worker>, Accepted { stream, peer, place }: Accepted) {
    let Ok(stream) = TcpStream::from_std(stream) else { return };
    let semaphore = Arc::clone(place.semaphore());
    let mut builder = http1::Builder::new();
    builder
        .timer(TokioTimer::new())
        .header_read_timeout(worker.shared.config.header_timeout)
        .max_buf_size(limits::REQUEST_HEADER_BYTES_MAX + limits::REQUEST_TARGET_BYTES_MAX + 32 * 1024)
        .max_headers(limits::REQUEST_HEADERS_MAX * 2)
        .pipeline_flush(true);
    let service = {
        let worker = Rc::clone(&worker);
        service_fn(move |request| {
            let worker = Rc::clone(&worker);
            async move { Ok::<_, std::convert::Infallible>(service::answer(worker, peer, request).await) }
        })
    };
    let connection = builder.serve_connection(TokioIo::new(stream), service).with_upgrades();
    tokio::pin!(connection);
    let draining = worker.shared.draining.clone();
    let result = tokio::select! {
        result = connection.as_mut() => result,
        () = draining.cancelled() => {
            connection.as_mut().graceful_shutdown();
            tokio::select! {
                result = connection.as_mut() => result,
                () = closed(&semaphore) => Ok(()),
            }
        }
    };
    if let Err(error) = result {
        tracing::debug!(%peer, %error, "client connection ended");
    }
    drop(place);
}

/// Waits until the listener has given up on the connections that are still open.
async fn closed(semaphore: &tokio::sync::Semaphore) {
    while !semaphore.is_closed() {
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}
