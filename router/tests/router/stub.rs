//! Stub nodes, routers in front of them, and a client that says exactly what it is told.

use bytes::Bytes;
use hearth_router::{Config, Deps, FixedTable, NodeInfo, Router, Table};
use http::{Request, Response};
use http_body_util::{BodyExt, Full, combinators::BoxBody};
use hyper::{body::Incoming, service::service_fn};
use hyper_util::rt::TokioIo;
use std::{
    convert::Infallible,
    io,
    net::SocketAddr,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering::SeqCst},
    },
    time::Duration,
};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpStream},
    task::JoinHandle,
};

pub type Answer = Response<BoxBody<Bytes, hyper::Error>>;
pub const TARGET: &str = "/run/acme/main/hello";
/// Far longer than anything here takes, even on a busy machine.
pub const DEADLINE: Duration = Duration::from_secs(60);

pub fn text(body: impl Into<Bytes>) -> Answer {
    Response::new(Full::new(body.into()).map_err(|never| match never {}).boxed())
}

/// A node that answers with a closure; requests to functions are counted, probes are not.
pub struct Stub {
    pub addr: SocketAddr,
    pub count: Arc<AtomicU64>,
    task: JoinHandle<()>,
}

impl Stub {
    pub async fn start<F>(answer: impl Fn(Request<Incoming>) -> F + Clone + Send + Sync + 'static) -> Self
    where
        F: Future<Output = Answer> + Send + 'static,
    {
        Self::on("127.0.0.1:0".parse().unwrap(), answer).await
    }

    pub async fn on<F>(addr: SocketAddr, answer: impl Fn(Request<Incoming>) -> F + Clone + Send + Sync + 'static) -> Self
    where
        F: Future<Output = Answer> + Send + 'static,
    {
        let listener = TcpListener::bind(addr).await.unwrap();
        let addr = listener.local_addr().unwrap();
        let count = Arc::new(AtomicU64::new(0));
        let counter = Arc::clone(&count);
        let task = tokio::spawn(async move {
            let mut connections = tokio::task::JoinSet::new();
            loop {
                let (stream, _) = listener.accept().await.unwrap();
                let (answer, counter) = (answer.clone(), Arc::clone(&counter));
                let service = service_fn(move |request: Request<Incoming>| {
                    if request.uri().path() != "/" {
                        counter.fetch_add(1, SeqCst);
                    }
                    let answer = answer(request);
                    async move { Ok::<_, Infallible>(answer.await) }
                });
                let server = hyper::server::conn::http1::Builder::new();
                connections.spawn(async move {
                    let _ = server.serve_connection(TokioIo::new(stream), service).with_upgrades().await;
                });
            }
        });
        Self { addr, count, task }
    }

    pub async fn named(name: &'static str) -> Self {
        Self::start(move |_| async move { text(name) }).await
    }

    pub fn count(&self) -> u64 {
        self.count.load(SeqCst)
    }

    /// Ends it with all its connections; its port refuses afterwards.
    pub async fn kill(self) -> SocketAddr {
        self.task.abort();
        let _ = self.task.await;
        self.addr
    }
}

/// A node below HTTP: `talk` gets each connection.
pub async fn raw<F>(talk: impl Fn(TcpStream) -> F + Send + 'static) -> SocketAddr
where
    F: Future<Output = ()> + Send + 'static,
{
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let addr = listener.local_addr().unwrap();
    tokio::spawn(async move {
        loop {
            let (stream, _) = listener.accept().await.unwrap();
            tokio::spawn(talk(stream));
        }
    });
    addr
}

/// Reads one request's head.
pub async fn head(stream: &mut TcpStream) -> String {
    let mut seen = Vec::new();
    while !seen.ends_with(b"\r\n\r\n") {
        match stream.read_u8().await {
            Ok(byte) => seen.push(byte),
            Err(_) => break,
        }
    }
    String::from_utf8_lossy(&seen).into_owned()
}

pub fn config() -> Config {
    Config {
        listen: "127.0.0.1:0".parse().unwrap(),
        ops_listen: "127.0.0.1:0".parse().unwrap(),
        workers: 1,
        drain_lead: Duration::from_millis(10),
        ..Config::default()
    }
}

/// The order in which the nodes at these addresses are tried for [`TARGET`] is the order given here.
pub fn table(addrs: &[SocketAddr], spread: usize) -> FixedTable {
    FixedTable::new(infos(addrs, spread), spread)
}

/// The nodes at these addresses, in that order.
pub fn infos(addrs: &[SocketAddr], spread: usize) -> Vec<NodeInfo> {
    let info = |n: usize, addr: SocketAddr| NodeInfo { name: format!("n{n}"), incarnation: 1, addr, draining: false, links: false };
    let infos: Vec<_> = addrs.iter().enumerate().map(|(n, addr)| info(n, *addr)).collect();
    let order = FixedTable::new(infos.clone(), spread).candidates("acme", "main", 0);
    let mut placed = infos.clone();
    for (n, index) in order.as_slice().iter().enumerate() {
        placed[usize::from(*index)] = infos[n].clone();
    }
    placed
}

pub async fn router(config: Config, addrs: &[SocketAddr]) -> Router {
    Router::start(config, Deps { routes: Arc::new(table(addrs, 1)) }).await.unwrap()
}

/// Says something and reads until the end.
pub async fn say(addr: SocketAddr, bytes: &str) -> String {
    let talk = async {
        let mut stream = TcpStream::connect(addr).await?;
        // A refusal may come, and the connection be reset, before all is written or read: what came before it is the answer.
        let _ = stream.write_all(bytes.as_bytes()).await;
        let mut answer = Vec::new();
        let _ = stream.read_to_end(&mut answer).await;
        Ok::<_, io::Error>(String::from_utf8_lossy(&answer).into_owned())
    };
    tokio::time::timeout(DEADLINE, talk).await.expect("no end within the deadline").unwrap()
}

pub async fn call(addr: SocketAddr, method: &str) -> String {
    say(addr, &format!("{method} {TARGET} HTTP/1.1\r\nhost: a\r\nconnection: close\r\ncontent-length: 0\r\n\r\n")).await
}

pub fn status(answer: &str) -> u16 {
    answer.get(9..12).and_then(|s| s.parse().ok()).unwrap_or(0)
}

pub async fn metric(router: &Router, name: &str) -> f64 {
    let text = say(router.ops_addr(), "GET /metrics HTTP/1.1\r\nhost: a\r\nconnection: close\r\n\r\n").await;
    let line = text.lines().find(|l| l.starts_with(name)).unwrap_or_else(|| panic!("no {name} in {text}"));
    line.rsplit(' ').next().unwrap().parse().unwrap()
}

/// Waits for a condition; never for a time.
pub async fn until<F: Future<Output = bool>>(condition: impl Fn() -> F) {
    let wait = async {
        while !condition().await {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    tokio::time::timeout(DEADLINE, wait).await.expect("the condition never held");
}
