//! The other nodes, as far as the management API needs them: what they do (status), their logs, and asking one to leave. Calls are few, each
//! has a deadline, and a node that does not answer is shown as such, never waited for.

use crate::logs::{LogItem, LogStream};
use futures_util::{FutureExt, Stream, StreamExt, future::join_all, stream};
use hearth_model::ContainerPath;
use hearth_placement::{
    Candidates, ControlClient, ControlTls, NodeName, NodeRecord, RouteTable, TableWatch,
    control::{LogLine, StatsResponse, TailLogsRequest},
};
use serde_json::{Value, json};
use std::{
    collections::{BTreeSet, HashMap},
    pin::Pin,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
    time::Duration,
};
use tokio::{sync::mpsc, task::JoinSet};
use tokio_stream::wrappers::ReceiverStream;

/// Nodes that are asked for one container's log or for their state; more are left out and said to be.
const ASKED_MAX: usize = 64;
/// Deadline of one call.
const CALL_TIMEOUT: Duration = Duration::from_secs(2);
/// How often a reader of logs looks for nodes that came, or came back.
const LOOK_EVERY: Duration = Duration::from_secs(2);
/// Lines of all nodes on their way to one reader.
const LINES_MAX: usize = 256;

/// Lines or losses of one container on one node, as they are sent to a reader.
#[derive(Debug, Clone, PartialEq)]
pub struct NodeLine {
    /// Which node.
    pub node: NodeName,
    /// What came.
    pub item: Tailed,
}

/// What comes out of a log.
#[derive(Debug, Clone, PartialEq)]
pub enum Tailed {
    /// A line as in [`crate::logs::LogLine`]'s JSON.
    Line(Value),
    /// So many lines were lost.
    Dropped(u64),
}

impl From<LogItem> for Tailed {
    fn from(item: LogItem) -> Self {
        match item {
            LogItem::Line(line) => Self::Line(serde_json::to_value(&*line).unwrap_or_default()),
            LogItem::Dropped(count) => Self::Dropped(count),
        }
    }
}

/// Why a node was not asked to leave.
#[derive(Debug, thiserror::Error)]
pub enum DrainError {
    /// The table has none of this name.
    #[error("there is no node {0}")]
    Unknown(NodeName),
    /// It did not take the call.
    #[error("node {node} does not answer: {reason}")]
    Call {
        /// Which.
        node: NodeName,
        /// How.
        reason: String,
    },
}

/// This node's view of the others.
pub struct Peers {
    own: NodeName,
    table: TableWatch,
    tls: Option<ControlTls>,
}

impl Peers {
    /// The nodes of `table`, without the one called `own`.
    #[must_use]
    pub fn new(own: NodeName, table: TableWatch, tls: Option<ControlTls>) -> Arc<Self> {
        Arc::new(Self { own, table, tls })
    }

    /// This node's name.
    #[must_use]
    pub fn own(&self) -> &NodeName {
        &self.own
    }

    fn client(&self, node: &NodeRecord) -> Result<ControlClient, String> {
        ControlClient::new(node.control_addr, self.tls.as_ref(), CALL_TIMEOUT)
    }

    async fn stats(&self, node: &NodeRecord) -> Result<StatsResponse, String> {
        self.client(node)?.stats(0).await.map_err(|status| status.message().to_owned())
    }

    /// The cluster as this node knows it, with what each node says of itself.
    pub async fn status(&self) -> Value {
        let table = self.table.table();
        let asked = table.nodes().iter().take(ASKED_MAX).map(|node| self.node_status(node.record.clone(), node.is_suspect));
        let nodes = join_all(asked).await;
        json!({
            "node": self.own.as_str(),
            "table": {
                "revision": table.revision(),
                "age_ms": u64::try_from(self.table.age().as_millis()).unwrap_or(u64::MAX),
                "stale": self.table.is_stale(),
                "exceptions": table.exceptions().containers.len(),
                "generation": table.exceptions().generation,
            },
            "nodes": nodes,
            "nodes_left_out": table.nodes().len().saturating_sub(ASKED_MAX),
            "placements": placements(&table),
        })
    }

    async fn node_status(&self, node: NodeRecord, is_suspect: bool) -> Value {
        let mut value = serde_json::to_value(&node).unwrap_or_default();
        value["suspect"] = is_suspect.into();
        match self.stats(&node).await {
            Ok(stats) => {
                value["answers"] = (stats.node == node.name.as_str()).into();
                value["containers"] = stats.containers_running.into();
                value["in_flight"] = stats.in_flight.into();
                value["rate_per_s"] = ((stats.request_rate * 10.0).round() / 10.0).into();
                value["memory_bytes"] = stats.memory_bytes.into();
                value["pool"] = stats.pool_ready.into();
            }
            Err(reason) => {
                value["answers"] = false.into();
                value["error"] = reason.into();
            }
        }
        value
    }

    /// Asks a node to leave: it drains and ends, as on SIGTERM.
    ///
    /// # Errors
    /// [`DrainError`] when there is none of that name, or it does not answer.
    pub async fn drain(&self, name: &NodeName) -> Result<(), DrainError> {
        let table = self.table.table();
        let node =
            table.nodes().iter().map(|n| &n.record).find(|n| n.name == *name).ok_or_else(|| DrainError::Unknown(name.clone()))?;
        let failed = |reason: String| DrainError::Call { node: name.clone(), reason };
        let client = self.client(node).map_err(failed)?;
        // Its own configuration says how long requests may go on.
        client.drain(Duration::ZERO).await.map_err(|status| failed(status.message().to_owned()))?;
        Ok(())
    }

    /// The nodes to ask for a container's log: those where the table puts it first, since it rarely was elsewhere.
    fn holders(&self, path: &ContainerPath) -> Vec<NodeRecord> {
        let table = self.table.table();
        let mut candidates = Candidates::new();
        table.candidates(path.tenant.as_str(), path.container.as_str(), &mut candidates);
        let first = candidates.as_slice().iter().filter_map(|index| table.node(*index));
        let mut holders: Vec<NodeRecord> = first.map(|n| n.record.clone()).collect();
        for node in table.nodes() {
            if holders.len() >= ASKED_MAX {
                break;
            }
            if !holders.iter().any(|h| h.name == node.record.name) {
                holders.push(node.record.clone());
            }
        }
        holders.retain(|h| h.name != self.own);
        holders
    }

    /// What the nodes keep of a container's log, `local` being this node's, in the order of time.
    pub async fn kept(&self, path: &ContainerPath, mut local: LogStream) -> Vec<NodeLine> {
        let mut lines = Vec::new();
        while let Some(Some(item)) = local.next().now_or_never() {
            lines.push(NodeLine { node: self.own.clone(), item: item.into() });
        }
        let remote = self.holders(path).into_iter().map(async |node| {
            let mut lines = Vec::new();
            let read = async {
                let client = self.client(&node)?;
                let mut tail = client.tail_logs(asks(path, false)).await.map_err(|status| status.message().to_owned())?;
                while let Some(line) = tail.next().await {
                    let line = line.map_err(|status| status.message().to_owned())?;
                    lines.push(NodeLine { node: node.name.clone(), item: tailed(line) });
                }
                Ok::<_, String>(())
            };
            match tokio::time::timeout(CALL_TIMEOUT, read).await {
                Ok(Ok(())) => {}
                Ok(Err(reason)) => tracing::warn!(node = %node.name, container = %path, reason, "its log is missing here"),
                Err(_) => tracing::warn!(node = %node.name, container = %path, "its log is missing here: no answer in time"),
            }
            lines
        });
        lines.extend(join_all(remote).await.into_iter().flatten());
        // Stable, so that lines of one node keep their order.
        lines.sort_by_key(|line| at(&line.item));
        lines
    }

    /// A container's log from all nodes, this one's being `local`: what they keep, then what comes. It goes on when nodes go and come.
    pub fn follow(self: &Arc<Self>, path: ContainerPath, local: LogStream) -> Pin<Box<dyn Stream<Item = NodeLine> + Send>> {
        let own = self.own.clone();
        let local = local.map(move |item| NodeLine { node: own.clone(), item: item.into() });
        let (sender, receiver) = mpsc::channel(LINES_MAX);
        let peers = Arc::clone(self);
        // Ends when the reader is gone, whose end of the channel closes.
        tokio::spawn(async move { peers.gather(path, sender).await });
        stream::select(local, ReceiverStream::new(receiver)).boxed()
    }

    async fn gather(&self, path: ContainerPath, sender: mpsc::Sender<NodeLine>) {
        let mut tails: JoinSet<NodeName> = JoinSet::new();
        // When each node's last line was printed, since one that is asked again begins with what it keeps.
        let mut seen: HashMap<NodeName, Arc<AtomicU64>> = HashMap::new();
        let mut open: BTreeSet<NodeName> = BTreeSet::new();
        let mut look = tokio::time::interval(LOOK_EVERY);
        loop {
            tokio::select! {
                () = sender.closed() => return,
                Some(Ok(ended)) = tails.join_next() => { open.remove(&ended); }
                _ = look.tick() => {
                    for node in self.holders(&path) {
                        let Ok(client) = self.client(&node) else { continue };
                        if open.insert(node.name.clone()) {
                            let last = Arc::clone(seen.entry(node.name.clone()).or_default());
                            tails.spawn(tail(client, node.name, path.clone(), last, sender.clone()));
                        }
                    }
                }
            }
        }
    }
}

fn tailed(line: LogLine) -> Tailed {
    if line.lost {
        return Tailed::Dropped(line.text.parse().unwrap_or(1));
    }
    let mut value = json!({ "at": line.time_ms, "level": line.stream, "line": line.text });
    if !line.function.is_empty() {
        value["function"] = line.function.into();
    }
    if !line.request_id.is_empty() {
        value["request_id"] = line.request_id.into();
    }
    if line.version > 0 {
        value["version"] = line.version.into();
    }
    Tailed::Line(value)
}

fn asks(path: &ContainerPath, follow: bool) -> TailLogsRequest {
    let (tenant, container) = (path.tenant.to_string(), path.container.to_string());
    TailLogsRequest { tenant, container, follow, ..TailLogsRequest::default() }
}

fn at(item: &Tailed) -> u64 {
    match item {
        Tailed::Line(line) => line["at"].as_u64().unwrap_or(0),
        Tailed::Dropped(_) => 0,
    }
}

/// Reads one node's lines until it ends or the reader is gone.
async fn tail(
    client: ControlClient,
    node: NodeName,
    path: ContainerPath,
    last: Arc<AtomicU64>,
    sender: mpsc::Sender<NodeLine>,
) -> NodeName {
    let before = last.load(Relaxed);
    let Ok(mut items) = client.tail_logs(asks(&path, true)).await else { return node };
    while let Some(Ok(item)) = items.next().await {
        let item = tailed(item);
        if matches!(item, Tailed::Line(_)) {
            if at(&item) <= before {
                continue;
            }
            last.store(at(&item), Relaxed);
        }
        if sender.send(NodeLine { node: node.clone(), item }).await.is_err() {
            break;
        }
    }
    node
}

/// What the planner has put elsewhere than the ring does, at most so many.
fn placements(table: &RouteTable) -> Value {
    const LISTED_MAX: usize = 200;
    let listed = table.exceptions().containers.iter().take(LISTED_MAX);
    listed.map(|(path, exception)| json!({ "container": path, "exception": exception })).collect()
}
