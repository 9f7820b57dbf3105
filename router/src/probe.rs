//! Active probes, only where there is a doubt: of a node that has requests and says nothing, and of one that is out. Any HTTP answer to
//! a request on a fresh connection is a sign of life, since it takes the node's accept loop and a worker to give one.

use crate::{
    fleet::{Fleet, Node, Why},
    metrics::Metrics,
};
use bytes::Bytes;
use hearth_edge::tls;
use http_body_util::Empty;
use hyper_util::rt::TokioIo;
use std::{
    io,
    sync::{Arc, atomic::Ordering::Relaxed},
    time::Duration,
};
use tokio::{
    io::{AsyncRead, AsyncWrite},
    net::TcpStream,
};
use tokio_util::{sync::CancellationToken, task::TaskTracker};

/// How often nodes are looked at.
const TICK: Duration = Duration::from_millis(200);
/// A node with requests that has said nothing for so long is probed: a slow function is as silent as a dead node.
const SILENCE_MAX: Duration = Duration::from_millis(600);
/// For one probe. With the two above, and two probes before a node is out, a silent node is out in less than three seconds.
const PROBE_TIMEOUT: Duration = Duration::from_millis(900);
/// Probes that must fail before a node that was in is out.
const PROBES: u32 = 2;

pub(crate) async fn run(fleet: Arc<Fleet>, connector: Option<Arc<tls::Connector>>, metrics: Arc<Metrics>, stop: CancellationToken) {
    let probes = TaskTracker::new();
    let mut tick = tokio::time::interval(TICK);
    tick.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    loop {
        tokio::select! {
            () = stop.cancelled() => break,
            _ = tick.tick() => {}
        }
        for node in &fleet.view().nodes {
            let doubt = !node.is_out() && node.in_flight.load(Relaxed) > 0 && node.silence() > SILENCE_MAX;
            if (doubt || node.is_due()) && !node.probing.swap(true, Relaxed) {
                probes.spawn(settle(Arc::clone(node), connector.clone(), Arc::clone(&metrics)));
            }
        }
    }
    // Each has a deadline, so that this ends soon.
    probes.close();
    probes.wait().await;
}

/// Probes one node and acts on the outcome.
async fn settle(node: Arc<Node>, connector: Option<Arc<tls::Connector>>, metrics: Arc<Metrics>) {
    let was_out = node.is_out();
    let mut outcome = Ok(());
    for _ in 0..if was_out { 1 } else { PROBES } {
        outcome = match tokio::time::timeout(PROBE_TIMEOUT, probe(&node, connector.as_deref())).await {
            Ok(outcome) => outcome,
            Err(elapsed) => Err(elapsed.into()),
        };
        if outcome.is_ok() {
            break;
        }
    }
    match outcome {
        Ok(()) => {
            if node.readmit() {
                metrics.readmissions.inc();
                tracing::info!(node = node.name, "a node is back");
            }
        }
        Err(error) if was_out => {
            tracing::debug!(node = node.name, %error, "a node is still out");
            node.still_out();
        }
        Err(error) => {
            if node.eject(Why::Silent) {
                metrics.ejected(Why::Silent);
                tracing::warn!(node = node.name, %error, "a node is out: it has requests and says nothing");
            }
        }
    }
    node.probing.store(false, Relaxed);
}

async fn probe(node: &Node, connector: Option<&tls::Connector>) -> io::Result<()> {
    let stream = TcpStream::connect(node.addr).await?;
    match connector {
        Some(connector) => ask(connector.connect(tls::NODE, &[], stream).await?).await,
        None => ask(stream).await,
    }
}

async fn ask<T: AsyncRead + AsyncWrite + Unpin + Send + 'static>(stream: T) -> io::Result<()> {
    let (mut sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(stream)).await.map_err(io::Error::other)?;
    let request =
        http::Request::get("/").header(http::header::HOST, "node").header(http::header::USER_AGENT, "hearth-router-probe");
    let request = request.body(Empty::<Bytes>::new()).map_err(io::Error::other)?;
    // The connection is driven here and dropped with the answer: a probe leaves nothing behind.
    tokio::select! {
        answer = sender.send_request(request) => answer.map(|_| ()).map_err(io::Error::other),
        ended = connection => Err(ended.err().map_or_else(|| io::ErrorKind::UnexpectedEof.into(), io::Error::other)),
    }
}
