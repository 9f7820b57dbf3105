//! What one hop costs: the same requests to a stub node directly, through nginx, and through the router, each a process of its own.
//! Prints one JSON line per way and number of connections. `cargo run --release -p hearth-router --example hop [seconds]`; needs nginx.

use bytes::Bytes;
use hearth_router::{Config, Deps, FixedTable, NodeInfo, Router};
use http::{Request, Response};
use http_body_util::{BodyExt, Empty, Full};
use hyper::{client::conn::http1, service::service_fn};
use hyper_util::rt::TokioIo;
use std::{
    convert::Infallible,
    io::{BufRead, BufReader, Write},
    net::SocketAddr,
    path::Path,
    process::{Child, Command, Stdio},
    sync::Arc,
    time::{Duration, Instant},
};
use tokio::net::{TcpListener, TcpStream};

type Result<T> = std::result::Result<T, Box<dyn std::error::Error + Send + Sync>>;

const TARGET: &str = "/run/acme/main/hello";
const SECONDS_DEFAULT: u64 = 10;
/// Not counted: connections, pools and branch predictors settle.
const WARM_UP: Duration = Duration::from_secs(1);

fn main() -> Result<()> {
    let args: Vec<String> = std::env::args().skip(1).collect();
    match args.first().map(String::as_str) {
        Some("stub") => stub(),
        Some("router") => router(args.get(1).ok_or("router needs the node's address")?.parse()?),
        seconds => measure(seconds.map_or(Ok(SECONDS_DEFAULT), str::parse)?),
    }
}

/// A child that ends with this process's interest in it.
struct Part(Child, SocketAddr);

impl Drop for Part {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// Starts this program in another role; it says where it listens.
fn part(args: &[&str]) -> Result<Part> {
    let mut child = Command::new(std::env::current_exe()?).args(args).stdout(Stdio::piped()).spawn()?;
    let mut line = String::new();
    BufReader::new(child.stdout.take().ok_or("no output")?).read_line(&mut line)?;
    Ok(Part(child, line.trim().parse()?))
}

fn nginx(dir: &Path, node: SocketAddr) -> Result<Part> {
    let addr = std::net::TcpListener::bind("127.0.0.1:0")?.local_addr()?;
    let workers = std::thread::available_parallelism().map_or(1, usize::from);
    let config = format!(
        "worker_processes {workers}; daemon off; pid {dir}/pid; error_log /dev/null;
         events {{ worker_connections 4096; }}
         http {{ access_log off; keepalive_requests 100000000;
           upstream node {{ server {node}; keepalive 256; keepalive_requests 100000000; }}
           server {{ listen {addr}; location / {{ proxy_pass http://node; proxy_http_version 1.1;
             proxy_set_header Connection \"\"; proxy_set_header X-Forwarded-For $remote_addr; proxy_buffering off; }} }} }}",
        dir = dir.display()
    );
    std::fs::write(dir.join("nginx.conf"), config)?;
    let child = Command::new("nginx").arg("-p").arg(dir).arg("-c").arg(dir.join("nginx.conf")).stderr(Stdio::null()).spawn();
    let part = Part(child.map_err(|error| format!("nginx cannot be started ({error}); install nginx-light"))?, addr);
    for _ in 0..100 {
        if std::net::TcpStream::connect(addr).is_ok() {
            return Ok(part);
        }
        std::thread::sleep(Duration::from_millis(50));
    }
    Err("nginx does not listen".into())
}

fn announce(addr: SocketAddr) -> Result<()> {
    writeln!(std::io::stdout(), "{addr}")?;
    Ok(())
}

#[tokio::main(flavor = "current_thread")]
async fn stub() -> Result<()> {
    let listener = TcpListener::bind("127.0.0.1:0").await?;
    announce(listener.local_addr()?)?;
    loop {
        let (stream, _) = listener.accept().await?;
        stream.set_nodelay(true)?;
        tokio::spawn(async move {
            let answer = |_| async { Ok::<_, Infallible>(Response::new(Full::new(Bytes::from_static(b"hello, world")))) };
            let _ = hyper::server::conn::http1::Builder::new()
                .pipeline_flush(true)
                .serve_connection(TokioIo::new(stream), service_fn(answer))
                .await;
        });
    }
}

#[tokio::main(flavor = "current_thread")]
async fn router(node: SocketAddr) -> Result<()> {
    let any: SocketAddr = "127.0.0.1:0".parse()?;
    let config = Config { listen: any, ops_listen: any, ..Config::default() };
    let info = NodeInfo { name: "stub".into(), incarnation: 1, addr: node, draining: false, links: false };
    let router = Router::start(config, Deps { routes: Arc::new(FixedTable::new(vec![info], 1)) }).await?;
    announce(router.addr())?;
    std::future::pending().await
}

fn measure(seconds: u64) -> Result<()> {
    let dir = tempfile::tempdir()?;
    let node = part(&["stub"])?;
    let nginx = nginx(dir.path(), node.1)?;
    let router = part(&["router", &node.1.to_string()])?;
    for connections in [1, 32] {
        for (way, addr) in [("direct", node.1), ("nginx", nginx.1), ("router", router.1)] {
            let line = load(way, addr, connections, Duration::from_secs(seconds))?;
            writeln!(std::io::stdout(), "{line}")?;
        }
    }
    Ok(())
}

#[tokio::main(flavor = "current_thread")]
async fn load(way: &str, addr: SocketAddr, connections: usize, duration: Duration) -> Result<String> {
    let begin = Instant::now() + WARM_UP;
    let mut clients = tokio::task::JoinSet::new();
    for _ in 0..connections {
        clients.spawn(client(addr, begin, begin + duration));
    }
    let mut micros = Vec::new();
    while let Some(client) = clients.join_next().await {
        micros.extend(client??);
    }
    micros.sort_unstable();
    let at = |share: f64| micros.get((micros.len() as f64 * share) as usize).copied().unwrap_or(0);
    Ok(serde_json::json!({
        "way": way, "connections": connections, "requests_per_s": micros.len() as f64 / duration.as_secs_f64(),
        "p50_us": at(0.5), "p99_us": at(0.99),
    })
    .to_string())
}

/// One connection, one request after the other; the microseconds of each.
async fn client(addr: SocketAddr, begin: Instant, end: Instant) -> Result<Vec<u32>> {
    let stream = TcpStream::connect(addr).await?;
    stream.set_nodelay(true)?;
    let (mut sender, connection) = http1::handshake(TokioIo::new(stream)).await?;
    let connection = tokio::spawn(connection);
    let mut micros = Vec::new();
    while Instant::now() < end {
        let request = Request::get(TARGET).header("host", "bench").body(Empty::<Bytes>::new())?;
        let asked = Instant::now();
        sender.ready().await?;
        let answer = sender.send_request(request).await?;
        if !answer.status().is_success() {
            return Err(format!("{addr} answered {}", answer.status()).into());
        }
        answer.into_body().collect().await?;
        if asked >= begin {
            micros.push(u32::try_from(asked.elapsed().as_micros()).unwrap_or(u32::MAX));
        }
    }
    connection.abort();
    Ok(micros)
}
