//! A server that does to each request exactly what a test says, written on bare sockets so that it can also misbehave.

use std::{net::SocketAddr, sync::Arc, time::Duration};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpStream},
};

/// What a request said.
#[derive(Debug, Clone, Default)]
pub struct Request {
    pub method: String,
    pub path: String,
    /// The head, in lower case.
    pub head: String,
    pub body: Vec<u8>,
}

/// What is done to it.
#[derive(Debug, Clone)]
pub enum Reply {
    /// An answer; headers as lines that end in CR LF.
    Answer { status: u16, headers: String, body: Vec<u8> },
    /// The same after a while.
    After(Duration, Box<Reply>),
    /// The connection is reset.
    Reset,
    /// The connection is closed without a word.
    Close,
    /// Half of the promised body, then the end.
    Truncate,
    /// Something that is not HTTP.
    Garbage,
    /// Nothing, ever.
    Hang,
}

impl Reply {
    /// 200 with a small body.
    pub fn ok() -> Self {
        Self::status(200, "")
    }

    /// A status with headers.
    pub fn status(status: u16, headers: &str) -> Self {
        Self::Answer { status, headers: headers.into(), body: b"hello\n".to_vec() }
    }

    /// A problem document.
    pub fn problem(status: u16, fault: &str, reason: &str) -> Self {
        let body = format!(r#"{{"status":{status},"fault":"{fault}","reason":"{reason}","detail":"said by the stub"}}"#);
        Self::json(status, &body, "content-type: application/problem+json\r\n")
    }

    /// JSON.
    pub fn json(status: u16, body: &str, headers: &str) -> Self {
        Self::Answer { status, headers: headers.into(), body: body.as_bytes().to_vec() }
    }

    /// After a while.
    pub fn after(self, wait: Duration) -> Self {
        Self::After(wait, Box::new(self))
    }
}

/// A running server on one thread of its own, so that a behaviour that blocks stops all of it.
pub struct Stub {
    pub address: SocketAddr,
    runtime: Option<tokio::runtime::Runtime>,
}

impl Stub {
    /// Listens on a port that the system chooses.
    pub fn start(behaviour: impl Fn(&Request) -> Reply + Send + Sync + 'static) -> Self {
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().expect("a runtime");
        let listener = std::net::TcpListener::bind("127.0.0.1:0").expect("a port");
        listener.set_nonblocking(true).expect("a listener");
        let address = listener.local_addr().expect("an address");
        let behaviour: Arc<dyn Fn(&Request) -> Reply + Send + Sync> = Arc::new(behaviour);
        runtime.spawn(async move {
            let listener = TcpListener::from_std(listener).expect("a listener");
            while let Ok((stream, _)) = listener.accept().await {
                tokio::spawn(serve(stream, Arc::clone(&behaviour)));
            }
        });
        Self { address, runtime: Some(runtime) }
    }

    /// A URL of it.
    pub fn url(&self, path: &str) -> String {
        format!("http://{}{path}", self.address)
    }
}

impl Drop for Stub {
    fn drop(&mut self) {
        if let Some(runtime) = self.runtime.take() {
            runtime.shutdown_background();
        }
    }
}

async fn serve(mut stream: TcpStream, behaviour: Arc<dyn Fn(&Request) -> Reply + Send + Sync>) {
    let _ = stream.set_nodelay(true);
    let mut buffer = Vec::new();
    while let Some(request) = read(&mut stream, &mut buffer).await {
        let mut reply = behaviour(&request);
        while let Reply::After(wait, then) = reply {
            tokio::time::sleep(wait).await;
            reply = *then;
        }
        let close = request.head.contains("connection: close");
        let text = match reply {
            Reply::Answer { status, headers, body } => {
                let head = format!("HTTP/1.1 {status} Said\r\ncontent-length: {}\r\n{headers}\r\n", body.len());
                [head.as_bytes(), &body].concat()
            }
            Reply::Reset => {
                let _ = rustix::net::sockopt::set_socket_linger(&stream, Some(Duration::ZERO));
                return;
            }
            Reply::Close | Reply::After(..) => return,
            Reply::Truncate => {
                let _ = stream.write_all(b"HTTP/1.1 200 OK\r\ncontent-length: 100\r\n\r\nonly a part of it").await;
                return;
            }
            Reply::Garbage => {
                let _ = stream.write_all(b"220 mail.example ESMTP\r\n\r\n").await;
                return;
            }
            Reply::Hang => return std::future::pending().await,
        };
        if stream.write_all(&text).await.is_err() || close {
            return;
        }
    }
}

async fn read(stream: &mut TcpStream, buffer: &mut Vec<u8>) -> Option<Request> {
    let head_end = loop {
        if let Some(end) = buffer.windows(4).position(|w| w == b"\r\n\r\n") {
            break end + 4;
        }
        if stream.read_buf(buffer).await.ok()? == 0 {
            return None;
        }
    };
    let text = String::from_utf8_lossy(&buffer[..head_end]).into_owned();
    let mut words = text.split(' ');
    let (method, path) = (words.next()?.to_owned(), words.next()?.to_owned());
    let head = text.to_ascii_lowercase();
    let length = head.split("content-length: ").nth(1).and_then(|t| t.split("\r\n").next()?.parse().ok()).unwrap_or(0);
    while buffer.len() < head_end + length {
        if stream.read_buf(buffer).await.ok()? == 0 {
            return None;
        }
    }
    let body = buffer[head_end..head_end + length].to_vec();
    buffer.drain(..head_end + length);
    Some(Request { method, path, head, body })
}
