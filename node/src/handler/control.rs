//! The control connection to one container's runtime: questions with answers, one JSON message per line, both ways. What comes in is
//! hostile: lines are bounded, floods are slowed down, nonsense is counted and ends the container when there is too much of it.

use super::{budget::Budget, inbound::Owner, socket::SocketDir};
use bytes::{Buf, BytesMut};
use hearth_model::{
    Model,
    limits::CONTROL_MESSAGE_BYTES_MAX,
    protocol::{FromRuntime, ToRuntime, paths},
};
use parking_lot::Mutex;
use std::{
    collections::HashMap,
    io,
    sync::{
        Arc, OnceLock,
        atomic::{AtomicI64, AtomicU64, Ordering::Relaxed},
    },
    time::Duration,
};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{
        UnixStream,
        unix::{OwnedReadHalf, OwnedWriteHalf},
    },
    sync::{mpsc, oneshot, watch},
    time::{Instant, sleep, timeout},
};
use tokio_util::sync::CancellationToken;
use zeroize::Zeroizing;

/// Questions to one runtime that wait for an answer.
const PENDING_MAX: usize = 1_024;
/// Messages to one runtime that wait to be written.
const OUTGOING_MAX: usize = 64;
/// How long one message may take to be written: a runtime that does not read for so long is not well.
const WRITE_TIMEOUT: Duration = Duration::from_secs(30);
/// How long the greeting may take on a socket that is there.
const GREETING_TIMEOUT: Duration = Duration::from_secs(2);
/// How often the socket of a starting container is looked for.
const DIAL_PAUSE: Duration = Duration::from_millis(4);
/// What a runtime may send per second on average, and at once.
const INBOUND_BYTES_PER_S: f64 = 8.0 * 1024.0 * 1024.0;
const INBOUND_BYTES_BURST: f64 = 16.0 * 1024.0 * 1024.0;
/// Lines that are not messages: so many at once, and so many per second.
const NONSENSE_BURST: f64 = 100.0;
const NONSENSE_PER_S: f64 = 1.0;
/// Broken connections: so many at once, and one more every ten seconds.
const RECONNECTS_BURST: f64 = 5.0;
const RECONNECTS_PER_S: f64 = 0.1;
/// Pause before a broken connection is opened again.
const RECONNECT_PAUSE: Duration = Duration::from_millis(20);
/// A read buffer above this is given back once it is empty.
const READ_BUFFER_KEPT: usize = 64 * 1024;

/// Why a question got no answer.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub(super) enum ControlError {
    /// There is no connection, or it broke before the answer came.
    #[error("the connection to the container's runtime broke")]
    Broken,
    /// It did not answer in time.
    #[error("the container's runtime did not answer within {0:?}")]
    Deadline(Duration),
    /// Too many questions wait already.
    #[error("too many questions wait for the container's runtime")]
    Busy,
    /// A message that the protocol does not carry.
    #[error("the message has {0} bytes, more than the protocol carries")]
    TooLong(usize),
}

/// What the runtime said to a question.
#[derive(Debug, Clone, PartialEq)]
pub(super) enum Answer {
    /// A version is loaded, or `error` tells why not.
    Loaded { model: Option<Model>, error: Option<String> },
    /// The packages that could be loaded are; these could not.
    Preloaded { failed: Vec<String> },
    /// The event loop is alive.
    Pong,
}

/// What a runtime says of itself when it greets.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Greeting {
    /// `function@version` of what is loaded.
    pub loaded: Vec<String>,
}

/// The node's end. Cloning gives another handle on the same connection; it closes when the last one is dropped.
#[derive(Clone)]
pub(super) struct Control {
    outgoing: mpsc::Sender<Zeroizing<Vec<u8>>>,
    wire: Arc<Wire>,
}

/// What the connection's task and its handles share.
struct Wire {
    pending: Mutex<HashMap<u64, oneshot::Sender<Answer>>>,
    next_id: AtomicU64,
    /// Whose container this is; set once.
    owner: OnceLock<Arc<Owner>>,
    /// Why the connection is over for good.
    closed: watch::Sender<Option<String>>,
    /// The code that the process is about to end with, [`i64::MIN`] while it said none.
    exit_code: AtomicI64,
    stop: CancellationToken,
}

impl Control {
    /// Connects, greets, and serves the connection in a task of its own on the current runtime until the handles are gone or
    /// `stop` is cancelled. Tries for `patience`, since the socket of a starting container is not there at once.
    pub(super) async fn connect(
        dir: Arc<SocketDir>,
        secret: String,
        patience: Duration,
        stop: CancellationToken,
    ) -> io::Result<(Self, Greeting)> {
        let (link, greeting) = timeout(patience, dial(&dir, &secret)).await.map_err(|_| {
            io::Error::new(io::ErrorKind::TimedOut, format!("the runtime did not come up within {patience:?}"))
        })?;
        let (outgoing, messages) = mpsc::channel(OUTGOING_MAX);
        let wire = Arc::new(Wire {
            pending: Mutex::default(),
            next_id: AtomicU64::new(1),
            owner: OnceLock::new(),
            closed: watch::channel(None).0,
            exit_code: AtomicI64::new(i64::MIN),
            stop: stop.clone(),
        });
        let served = serve(Arc::clone(&wire), link, messages, dir, secret);
        // Owned by its handles and by the token.
        tokio::spawn(async move { stop.run_until_cancelled_owned(served).await });
        Ok((Self { outgoing, wire }, greeting))
    }

    /// Closes the connection, whoever else has a handle on it.
    pub(super) fn close(&self) {
        self.wire.stop.cancel();
        self.wire.pending.lock().clear();
    }

    /// Says whose container this is. Returns false when that was said before.
    pub(super) fn bind(&self, owner: Arc<Owner>) -> bool {
        self.wire.owner.set(owner).is_ok()
    }

    /// Asks, and waits for the answer.
    pub(super) async fn ask(&self, deadline: Duration, question: impl FnOnce(u64) -> ToRuntime) -> Result<Answer, ControlError> {
        let id = self.wire.next_id.fetch_add(1, Relaxed);
        let (sender, receiver) = oneshot::channel();
        {
            let mut pending = self.wire.pending.lock();
            if pending.len() >= PENDING_MAX {
                return Err(ControlError::Busy);
            }
            pending.insert(id, sender);
        }
        let _forget = Forget { wire: &self.wire, id };
        let answered = async {
            self.send(question(id)).await?;
            receiver.await.map_err(|_| ControlError::Broken)
        };
        timeout(deadline, answered).await.map_err(|_| ControlError::Deadline(deadline))?
    }

    /// Sends what has no answer.
    pub(super) async fn send(&self, message: ToRuntime) -> Result<(), ControlError> {
        self.outgoing.send(encode(message)?).await.map_err(|_| ControlError::Broken)
    }

    /// Sends what has no answer if that takes no waiting.
    pub(super) fn try_send(&self, message: ToRuntime) {
        if let Ok(line) = encode(message) {
            let _ = self.outgoing.try_send(line);
        }
    }

    /// Why the connection is over for good, once it is.
    pub(super) async fn closed(&self) -> String {
        let mut closed = self.wire.closed.subscribe();
        let reason = closed.wait_for(Option::is_some).await.ok().and_then(|r| r.clone());
        reason.unwrap_or_else(|| "the connection's task ended".into())
    }

    /// Whether the connection is over for good.
    pub(super) fn is_closed(&self) -> bool {
        self.wire.closed.borrow().is_some() || self.outgoing.is_closed()
    }

    /// The code that a function asked the process to end with.
    pub(super) fn exit_code(&self) -> Option<i64> {
        Some(self.wire.exit_code.load(Relaxed)).filter(|code| *code != i64::MIN)
    }
}

struct Forget<'a> {
    wire: &'a Wire,
    id: u64,
}

impl Drop for Forget<'_> {
    fn drop(&mut self) {
        self.wire.pending.lock().remove(&self.id);
    }
}

fn encode(message: ToRuntime) -> Result<Zeroizing<Vec<u8>>, ControlError> {
    // Room from the start, so that growing does not leave copies of secrets behind.
    let size = match &message {
        ToRuntime::Load { env, secrets, .. } => 1_024 + env.iter().chain(secrets).map(|(k, v)| 2 * (k.len() + v.len()) + 8).sum::<usize>(),
        _ => 256,
    };
    let mut line = Zeroizing::new(Vec::with_capacity(size));
    // Serialising to memory fails only for maps whose keys are no strings, and there are none.
    serde_json::to_writer(&mut *line, &message).map_err(|_| ControlError::TooLong(0))?;
    line.push(b'\n');
    if let ToRuntime::Load { secrets, .. } = message {
        secrets.into_values().for_each(|value| drop(Zeroizing::new(value)));
    }
    if line.len() > CONTROL_MESSAGE_BYTES_MAX { Err(ControlError::TooLong(line.len())) } else { Ok(line) }
}

/// One connection with what was read of it.
struct Link {
    lines: Lines,
    writer: OwnedWriteHalf,
}

async fn dial(dir: &SocketDir, secret: &str) -> (Link, Greeting) {
    loop {
        match greet(dir, secret).await {
            Ok(greeted) => return greeted,
            // Not there yet, or not listening yet.
            Err(_) => sleep(DIAL_PAUSE).await,
        }
    }
}

async fn greet(dir: &SocketDir, secret: &str) -> io::Result<(Link, Greeting)> {
    let stream: UnixStream = dir.connect(paths::CONTROL_SOCKET).await?;
    let (reader, mut writer) = stream.into_split();
    let hello = encode(ToRuntime::Hello { secret: secret.to_owned() }).map_err(io::Error::other)?;
    let mut lines = Lines { reader, buffer: BytesMut::new(), scanned: 0, budget: Budget::new(INBOUND_BYTES_BURST, INBOUND_BYTES_PER_S, Instant::now()) };
    let greeted = async {
        writer.write_all(&hello).await?;
        match lines.next().await? {
            Some(line) => serde_json::from_slice::<FromRuntime>(&line).map_err(io::Error::from),
            None => Err(io::ErrorKind::UnexpectedEof.into()),
        }
    };
    match timeout(GREETING_TIMEOUT, greeted).await?? {
        FromRuntime::Ready { loaded, .. } => Ok((Link { lines, writer }, Greeting { loaded })),
        other => Err(io::Error::new(io::ErrorKind::InvalidData, format!("greeted with {other:?}"))),
    }
}

/// Lines of bounded length, read no faster than the budget allows.
struct Lines {
    reader: OwnedReadHalf,
    buffer: BytesMut,
    /// Bytes of the buffer that hold no end of line.
    scanned: usize,
    budget: Budget,
}

impl Lines {
    /// The next line without its end; none at the end of the stream.
    async fn next(&mut self) -> io::Result<Option<BytesMut>> {
        loop {
            if let Some(at) = self.buffer[self.scanned..].iter().position(|b| *b == b'\n') {
                let mut line = self.buffer.split_to(self.scanned + at);
                self.buffer.advance(1);
                self.scanned = 0;
                if self.buffer.is_empty() && self.buffer.capacity() > READ_BUFFER_KEPT {
                    self.buffer = BytesMut::new();
                }
                if line.last() == Some(&b'\r') {
                    line.truncate(line.len() - 1);
                }
                return Ok(Some(line));
            }
            self.scanned = self.buffer.len();
            if self.buffer.len() > CONTROL_MESSAGE_BYTES_MAX {
                return Err(io::Error::new(io::ErrorKind::InvalidData, "a line is too long"));
            }
            self.buffer.reserve(4 * 1024);
            let read = self.reader.read_buf(&mut self.buffer).await?;
            if read == 0 {
                return Ok(None);
            }
            if let Some(pause) = self.budget.spend(read as f64, Instant::now()) {
                sleep(pause).await;
            }
        }
    }
}

/// Why one connection ended.
enum End {
    /// Every handle is gone.
    Dropped,
    /// The connection broke; another may work.
    Broken(String),
    /// The runtime broke the protocol: no other.
    Refused(String),
}

async fn serve(wire: Arc<Wire>, mut link: Link, mut messages: mpsc::Receiver<Zeroizing<Vec<u8>>>, dir: Arc<SocketDir>, secret: String) {
    let mut reconnects = Budget::new(RECONNECTS_BURST, RECONNECTS_PER_S, Instant::now());
    let mut nonsense = Budget::new(NONSENSE_BURST, NONSENSE_PER_S, Instant::now());
    let reason = loop {
        let Link { lines, writer } = &mut link;
        // Both sides go on by themselves, so that a runtime which does not read cannot keep us from reading.
        let end = tokio::select! {
            end = read(&wire, lines, &mut nonsense) => end,
            end = write(writer, &mut messages) => end,
        };
        wire.pending.lock().clear();
        match end {
            End::Dropped => return,
            End::Refused(reason) => break reason,
            // A container in the pool that loses its connection is not worth another try.
            End::Broken(reason) if wire.owner.get().is_none() || !reconnects.take(1.0, Instant::now()) => break reason,
            End::Broken(_) => sleep(RECONNECT_PAUSE).await,
        }
        match timeout(GREETING_TIMEOUT, dial(&dir, &secret)).await {
            Ok((again, _)) => link = again,
            Err(_) => break "the connection broke and could not be opened again".into(),
        }
    };
    wire.closed.send_replace(Some(reason));
}

async fn write(writer: &mut OwnedWriteHalf, messages: &mut mpsc::Receiver<Zeroizing<Vec<u8>>>) -> End {
    while let Some(message) = messages.recv().await {
        match timeout(WRITE_TIMEOUT, writer.write_all(&message)).await {
            Ok(Ok(())) => {}
            Ok(Err(error)) => return End::Broken(error.to_string()),
            Err(_) => return End::Refused(format!("the runtime read nothing for {WRITE_TIMEOUT:?}")),
        }
    }
    End::Dropped
}

async fn read(wire: &Wire, lines: &mut Lines, nonsense: &mut Budget) -> End {
    loop {
        let line = match lines.next().await {
            Ok(Some(line)) => line,
            Ok(None) => return End::Broken("the runtime closed the connection".into()),
            Err(error) if error.kind() == io::ErrorKind::InvalidData => return End::Refused(error.to_string()),
            Err(error) => return End::Broken(error.to_string()),
        };
        match serde_json::from_slice::<FromRuntime>(&line) {
            Ok(message) => receive(wire, message),
            Err(_) if nonsense.take(1.0, Instant::now()) => {
                if let Some(owner) = wire.owner.get() {
                    owner.nonsense();
                }
            }
            Err(error) => return End::Refused(format!("too many lines that are no messages, the last: {error}")),
        }
    }
}

fn receive(wire: &Wire, message: FromRuntime) {
    let (id, answer) = match message {
        FromRuntime::Loaded { id, model, error, .. } => (id, Answer::Loaded { model, error }),
        FromRuntime::Preloaded { id, failed } => (id, Answer::Preloaded { failed }),
        FromRuntime::Pong { id } => (id, Answer::Pong),
        FromRuntime::Exit { code, .. } => return wire.exit_code.store(i64::from(code), Relaxed),
        FromRuntime::Ready { .. } => return,
        other => {
            if let Some(owner) = wire.owner.get() {
                owner.receive(other);
            }
            return;
        }
    };
    // An answer to what nobody asked, or no longer waits for, is dropped.
    if let Some(waiting) = wire.pending.lock().remove(&id) {
        let _ = waiting.send(answer);
    }
}

#[cfg(test)]
#[path = "control_tests.rs"]
mod tests;
