//! The load that throughputs are made with: connections that each send one request after another, over TCP or a unix socket, with as little
//! of their own as possible. A generator that is slower than its target would make every target look alike, and these share the
//! machine with what they measure. Latencies are measured by the load test's open loop instead.

use anyhow::{Context, Result, bail};
use hearth_edge::link::{AnswerLimits, Link};
use http_body_util::BodyExt;
use std::{
    path::{Path, PathBuf},
    rc::Rc,
    sync::Arc,
    time::{Duration, Instant},
};
use tokio::{
    io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt},
    net::{TcpStream, UnixStream},
    task::LocalSet,
};

/// Where requests go.
#[derive(Clone, Debug)]
pub enum Target {
    /// `127.0.0.1:port`.
    Tcp(String),
    /// A unix socket.
    Unix(PathBuf),
}

/// Durations, sorted.
pub struct Figures {
    /// One per request.
    pub sorted: Vec<Duration>,
    /// Over the whole run.
    pub per_second: f64,
}

impl Figures {
    fn of(mut durations: Vec<Duration>, elapsed: Duration) -> Self {
        durations.sort_unstable();
        let per_second = durations.len() as f64 / elapsed.as_secs_f64();
        Self { sorted: durations, per_second }
    }

    /// Milliseconds at a share of all, 0.5 for the median.
    pub fn ms(&self, share: f64) -> f64 {
        let at = ((self.sorted.len() as f64 * share).ceil() as usize).clamp(1, self.sorted.len().max(1)) - 1;
        self.sorted.get(at).map_or(f64::NAN, |d| d.as_secs_f64() * 1_000.0)
    }
}

trait Stream: AsyncRead + AsyncWrite + Unpin {}
impl<T: AsyncRead + AsyncWrite + Unpin> Stream for T {}

/// One keep-alive connection.
pub struct Connection {
    stream: Box<dyn Stream>,
    buffer: Vec<u8>,
}

impl Connection {
    /// Connects.
    pub async fn open(target: &Target) -> Result<Self> {
        let stream: Box<dyn Stream> = match target {
            Target::Tcp(address) => {
                let stream = TcpStream::connect(address).await.with_context(|| address.clone())?;
                stream.set_nodelay(true)?;
                Box::new(stream)
            }
            Target::Unix(path) => Box::new(UnixStream::connect(path).await.with_context(|| path.display().to_string())?),
        };
        Ok(Self { stream, buffer: vec![0; 64 * 1024] })
    }

    /// Sends one request and reads the whole answer; returns its status and head.
    pub async fn exchange(&mut self, request: &[u8]) -> Result<(u16, String)> {
        self.stream.write_all(request).await?;
        let mut filled = 0;
        let (head, body) = loop {
            let n = self.stream.read(&mut self.buffer[filled..]).await?;
            if n == 0 {
                bail!("the connection ended");
            }
            filled += n;
            if let Some(end) = self.buffer[..filled].windows(4).position(|w| w == b"\r\n\r\n") {
                break (end, filled - end - 4);
            }
        };
        let text = String::from_utf8_lossy(&self.buffer[..head]).to_ascii_lowercase();
        let status: u16 = text.get(9..12).and_then(|s| s.parse().ok()).context("no status")?;
        let length = text.split("content-length: ").nth(1).and_then(|t| t.split("\r\n").next()?.trim().parse::<usize>().ok());
        match length {
            Some(length) => {
                let mut left = length.saturating_sub(body);
                while left > 0 {
                    let n = self.stream.read(&mut self.buffer).await?;
                    if n == 0 {
                        bail!("the answer broke off");
                    }
                    left = left.saturating_sub(n);
                }
            }
            None => {
                let mut tail = self.buffer[head + 4..filled].to_vec();
                while !tail.ends_with(b"0\r\n\r\n") {
                    let n = self.stream.read(&mut self.buffer).await?;
                    if n == 0 {
                        bail!("the answer broke off");
                    }
                    tail.extend_from_slice(&self.buffer[..n]);
                }
            }
        }
        Ok((status, text))
    }
}

/// A GET request.
pub fn get(path: &str, headers: &[(&str, &str)]) -> Vec<u8> {
    let mut text = format!("GET {path} HTTP/1.1\r\nhost: bench.test\r\n");
    for (name, value) in headers {
        text.push_str(&format!("{name}: {value}\r\n"));
    }
    text.push_str("\r\n");
    text.into_bytes()
}

/// So many connections, each with its next request as soon as it has its answer, on a thread of its own.
pub fn closed_loop(target: &Target, request: &[u8], connections: usize, duration: Duration) -> Result<Figures> {
    let (target, request) = (target.clone(), Arc::<[u8]>::from(request));
    on_thread(move || async move {
        let began = Instant::now();
        let mut tasks = tokio::task::JoinSet::new();
        for _ in 0..connections {
            let (target, request) = (target.clone(), Arc::clone(&request));
            tasks.spawn_local(async move {
                let mut connection = Connection::open(&target).await?;
                let mut durations = Vec::with_capacity(100_000);
                while began.elapsed() < duration {
                    let sent = Instant::now();
                    let (status, _) = connection.exchange(&request).await?;
                    if status != 200 {
                        bail!("answered with {status}");
                    }
                    durations.push(sent.elapsed());
                }
                Ok(durations)
            });
        }
        collect(tasks, began).await
    })
}

/// So many calls at a time over one link to a runtime, as a worker of a node makes them.
pub fn closed_loop_link(socket: &Path, head: &str, calls: usize, duration: Duration) -> Result<Figures> {
    let (socket, head) = (socket.to_owned(), Arc::<str>::from(head));
    on_thread(move || async move {
        let link = Rc::new(Link::open(UnixStream::connect(socket).await?, AnswerLimits::RUNTIME, std::future::pending()));
        let began = Instant::now();
        let mut tasks = tokio::task::JoinSet::new();
        for _ in 0..calls {
            let (link, head) = (Rc::clone(&link), Arc::clone(&head));
            tasks.spawn_local(async move {
                let mut durations = Vec::with_capacity(100_000);
                while began.elapsed() < duration {
                    let sent = Instant::now();
                    let call = link.call(false, |out| out.extend_from_slice(head.as_bytes()), b"");
                    let response = call.await.map_err(|error| anyhow::anyhow!("{error}"))?;
                    if response.status() != 200 || response.into_body().collect().await?.to_bytes().is_empty() {
                        bail!("not the answer that was expected");
                    }
                    durations.push(sent.elapsed());
                }
                Ok(durations)
            });
        }
        collect(tasks, began).await
    })
}

async fn collect(mut tasks: tokio::task::JoinSet<Result<Vec<Duration>>>, began: Instant) -> Result<Figures> {
    let mut all = Vec::new();
    while let Some(done) = tasks.join_next().await {
        all.extend(done??);
    }
    Ok(Figures::of(all, began.elapsed()))
}

fn on_thread<T: Send + 'static, F: Future<Output = Result<T>>>(work: impl FnOnce() -> F + Send + 'static) -> Result<T> {
    let thread = std::thread::spawn(move || {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        LocalSet::new().block_on(&runtime, work())
    });
    thread.join().map_err(|_| anyhow::anyhow!("the load's thread panicked"))?
}
