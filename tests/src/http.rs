//! Answers with their bodies, and a raw connection for what no HTTP client would send.

use serde_json::Value;
use std::time::{Duration, Instant};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
};

/// A response that has been read to its end.
#[derive(Debug)]
pub struct Answer {
    /// The status.
    pub status: u16,
    /// The headers.
    pub headers: reqwest::header::HeaderMap,
    /// The body as text.
    pub text: String,
    /// How long it took.
    pub took: Duration,
}

impl Answer {
    /// Sends the request and reads the answer.
    ///
    /// # Panics
    /// When there is no answer.
    pub async fn of(request: reqwest::RequestBuilder) -> Self {
        let began = Instant::now();
        let response = request.send().await.expect("an answer");
        let (status, headers) = (response.status().as_u16(), response.headers().clone());
        let text = response.text().await.expect("a whole answer");
        Self { status, headers, text, took: began.elapsed() }
    }

    /// A header's value, empty where absent.
    #[must_use]
    pub fn header(&self, name: &str) -> &str {
        self.headers.get(name).and_then(|v| v.to_str().ok()).unwrap_or_default()
    }

    /// The body as JSON; null when it is none.
    #[must_use]
    pub fn json(&self) -> Value {
        serde_json::from_str(&self.text).unwrap_or_default()
    }

    /// Checks the status, showing the body when it is another.
    ///
    /// # Panics
    /// When it is another.
    #[track_caller]
    pub fn expect(&self, status: u16) -> &Self {
        assert_eq!(self.status, status, "{}", self.text);
        self
    }

    /// Checks that this is a problem document (RFC 9457) of that status, fault and reason, complete and with the platform's headers.
    ///
    /// # Panics
    /// When it is not.
    #[track_caller]
    pub fn expect_problem(&self, status: u16, fault: &str, reason: &str) -> Value {
        assert_eq!(self.status, status, "{}", self.text);
        assert_eq!(self.header("content-type"), "application/problem+json", "{}", self.text);
        let problem = self.json();
        assert_eq!(problem["status"], status);
        assert_eq!(problem["fault"], fault, "{problem}");
        assert_eq!(problem["reason"], reason, "{problem}");
        assert_eq!(problem["type"], format!("urn:hearth:problem:{reason}"));
        assert_eq!(problem["instance"], self.header("hearth-request-id"), "{problem}");
        for text in ["title", "detail", "component"] {
            assert!(problem[text].as_str().is_some_and(|t| !t.is_empty()), "{text}: {problem}");
        }
        if matches!(status, 429 | 503) {
            assert!(self.header("retry-after").parse::<u32>().is_ok(), "retry-after: {:?}", self.headers);
        }
        problem
    }
}

/// A TCP connection on which a test writes bytes of its own making.
pub struct RawConnection(TcpStream);

impl RawConnection {
    /// Connects to `http://host:port`.
    ///
    /// # Panics
    /// When it cannot.
    pub async fn to(url: &str) -> Self {
        let address = url.strip_prefix("http://").expect("an http url").trim_end_matches('/');
        Self(TcpStream::connect(address).await.expect("a connection"))
    }

    /// Writes; a peer that has closed is no error here, since what it answered is what counts.
    pub async fn send(&mut self, bytes: impl AsRef<[u8]>) {
        let _ = self.0.write_all(bytes.as_ref()).await;
    }

    /// Reads until what came contains `end`, and gives all of it.
    ///
    /// # Panics
    /// When the connection ends before, or nothing comes for 20 s.
    pub async fn read_until(&mut self, end: &str) -> String {
        let mut got = Vec::new();
        while !String::from_utf8_lossy(&got).contains(end) {
            let mut chunk = [0; 4_096];
            let read = tokio::time::timeout(Duration::from_secs(20), self.0.read(&mut chunk)).await;
            let n = read.unwrap_or_else(|_| panic!("nothing more after {:?}", String::from_utf8_lossy(&got))).expect("bytes");
            assert!(n > 0, "ended after {:?}, before {end:?}", String::from_utf8_lossy(&got));
            got.extend_from_slice(&chunk[..n]);
        }
        String::from_utf8_lossy(&got).into_owned()
    }

    /// Reads until the peer closes, at most for `patience`; gives what came, and whether the peer closed.
    pub async fn read_to_end(&mut self, patience: Duration) -> (String, bool) {
        let mut got = Vec::new();
        let closed = tokio::time::timeout(patience, self.0.read_to_end(&mut got)).await.is_ok();
        (String::from_utf8_lossy(&got).into_owned(), closed)
    }

    /// Closes with a reset, as a client that crashed would.
    pub fn reset(self) {
        let _ = self.0.set_zero_linger();
    }
}
