//! Control calls over real connections: load is taken only from the node that it is asked of, and within a deadline.

use hearth_model::Timestamp;
use hearth_placement::{
    ControlClient, Eviction, NodeCalls, NodeRecord, NodeState,
    control::{
        ContainerStats, ControlCalls, DrainRequest, DrainResponse, EvictRequest, EvictResponse, LogLine, StatsRequest,
        StatsResponse, TailLogsRequest,
        control_server::{Control, ControlServer},
    },
    record::SCHEMA,
};
use std::{net::SocketAddr, pin::Pin, time::Duration};
use tokio::net::TcpListener;
use tonic::{
    Request, Response, Status,
    transport::{Server, server::TcpIncoming},
};

const DEADLINE: Duration = Duration::from_millis(700);

struct Node(&'static str);

#[tonic::async_trait]
impl Control for Node {
    async fn stats(&self, request: Request<StatsRequest>) -> Result<Response<StatsResponse>, Status> {
        let container =
            |index| ContainerStats { tenant: format!("t{index}"), container: "main".into(), ..ContainerStats::default() };
        let containers = (0..request.into_inner().containers_max + 10).map(container).collect();
        let node = self.0.to_owned();
        Ok(Response::new(StatsResponse { node, incarnation: 1, request_rate: 5.0, containers, ..StatsResponse::default() }))
    }

    async fn drain(&self, request: Request<DrainRequest>) -> Result<Response<DrainResponse>, Status> {
        Ok(Response::new(DrainResponse { started: true, in_flight: request.into_inner().grace_ms }))
    }

    async fn evict(&self, _: Request<EvictRequest>) -> Result<Response<EvictResponse>, Status> {
        Err(Status::failed_precondition("an older plan"))
    }

    type TailLogsStream = Pin<Box<dyn futures_util::Stream<Item = Result<LogLine, Status>> + Send>>;

    async fn tail_logs(&self, request: Request<TailLogsRequest>) -> Result<Response<Self::TailLogsStream>, Status> {
        let count = request.into_inner().lines_max;
        let line = |index| Ok(LogLine { text: format!("line {index}"), ..LogLine::default() });
        Ok(Response::new(Box::pin(futures_util::stream::iter((0..count).map(line)))))
    }
}

async fn serve(name: &'static str) -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let addr = listener.local_addr().unwrap();
    let serving = Server::builder().add_service(ControlServer::new(Node(name)));
    tokio::spawn(serving.serve_with_incoming(TcpIncoming::from(listener)));
    addr
}

fn record(name: &str, incarnation: u64, addr: SocketAddr) -> NodeRecord {
    NodeRecord {
        schema: SCHEMA,
        name: name.parse().unwrap(),
        incarnation,
        data_addr: addr,
        control_addr: addr,
        zone: String::new(),
        capacity: 1,
        state: NodeState::Active,
        links: true,
        started_at: Timestamp(0),
    }
}

#[tokio::test]
async fn load_comes_only_from_living_nodes_that_are_who_they_should_be() {
    let silent = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let closed = TcpListener::bind("127.0.0.1:0").await.unwrap().local_addr().unwrap();
    let nodes = [
        record("good", 1, serve("good").await),
        record("restarted", 2, serve("restarted").await),
        record("moved", 1, serve("another").await),
        record("silent", 1, silent.local_addr().unwrap()),
        record("closed", 1, closed),
    ];
    let source = ControlCalls::new(None, DEADLINE);
    for _ in 0..2 {
        let loads = source.collect(&nodes).await;
        assert_eq!(loads.len(), 1);
        assert_eq!(loads[0].0.as_str(), "good");
        assert_eq!(loads[0].1.containers.len(), hearth_placement::control::CONTAINERS_MAX as usize);
        assert_eq!(loads[0].1.containers[3].path, "t3/main");
    }
}

#[tokio::test]
async fn a_node_that_cannot_be_told_to_let_go_holds_nobody_up() {
    let closed = TcpListener::bind("127.0.0.1:0").await.unwrap().local_addr().unwrap();
    let nodes = [record("good", 1, serve("good").await), record("closed", 1, closed)];
    let eviction = |node: &str, path: &str| Eviction { node: node.parse().unwrap(), path: path.to_owned() };
    // The node that answers refuses, as one that has seen a later plan does; one is gone, one is unknown.
    let evictions = [eviction("good", "a/main"), eviction("closed", "b/main"), eviction("unknown", "c/main")];
    let calls = ControlCalls::new(None, DEADLINE);
    tokio::time::timeout(Duration::from_secs(20), calls.evict(&nodes, &evictions, 3)).await.expect("each call has a deadline");
}

#[tokio::test]
async fn calls_reach_the_node_and_end_at_their_deadline() {
    let client = ControlClient::new(serve("good").await, None, DEADLINE).unwrap();
    let drain = client.drain(Duration::from_secs(7)).await.unwrap();
    assert_eq!((drain.started, drain.in_flight), (true, 7000));
    let refused = client.evict(EvictRequest::default()).await.unwrap_err();
    assert_eq!(refused.code(), tonic::Code::FailedPrecondition);
    let mut lines = client.tail_logs(TailLogsRequest { lines_max: 3, ..TailLogsRequest::default() }).await.unwrap();
    let mut texts = Vec::new();
    while let Some(line) = lines.message().await.unwrap() {
        texts.push(line.text);
    }
    assert_eq!(texts, ["line 0", "line 1", "line 2"]);
    let silent = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let client = ControlClient::new(silent.local_addr().unwrap(), None, DEADLINE).unwrap();
    let late = tokio::time::timeout(Duration::from_secs(20), client.stats(1)).await.expect("its own deadline ends it");
    assert!(late.is_err());
}
