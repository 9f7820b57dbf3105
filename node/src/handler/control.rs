//! The node's end of a container's control socket. Whatever comes from the other end is hostile: it is bounded in length and rate,
//! attributed only to functions that are loaded there, and a line that makes no sense ends the container.

use super::{AcquireError, container::connect, inbound};
use hearth_model::{
    FunctionName, VersionNumber, limits,
    protocol::{FromRuntime, ToRuntime, paths},
};
use parking_lot::Mutex;
use std::{
    collections::{HashMap, HashSet},
    path::Path,
    sync::{
        Arc, OnceLock,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
    time::Duration,
};
use tokio::{
    io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader},
    net::unix::{OwnedReadHalf, OwnedWriteHalf},
    sync::{Semaphore, mpsc, oneshot},
    time::Instant,
};
use tokio_util::sync::{CancellationToken, DropGuard};

/// Messages that wait to be written.
const UNWRITTEN_MAX: usize = 256;
/// Bytes that are skipped before the next ones are left where they are for a moment: reading them costs the others' requests. What a runtime
/// says of its own accord comes later by that, up to half a second behind all that it keeps; for an answer nothing is left.
const SKIPPED_MAX: usize = 512 * 1024;
/// Such a moment, in steps after which it is looked whether an answer is due.
const SKIP_PAUSE: (u32, Duration) = (5, Duration::from_millis(10));
/// Questions to one runtime at a time.
const QUESTIONS_MAX: usize = 1_024;
/// Storage calls of one container at a time.
const STORAGE_CALLS_MAX: usize = 16;

pub(super) struct Shared {
    pub to_runtime: mpsc::Sender<String>,
    questions: Mutex<HashMap<u64, oneshot::Sender<FromRuntime>>>,
    next_id: AtomicU64,
    pub owner: OnceLock<inbound::Owner>,
    pub storage_calls: Arc<Semaphore>,
    broken: CancellationToken,
}

/// A control connection; it closes when this is dropped.
pub(super) struct Control {
    shared: Arc<Shared>,
    pub secret: String,
    _close: DropGuard,
}

impl Control {
    /// Connects, presents the secret, and waits for the runtime to accept it. Returns what is loaded already, and whether each of it can be
    /// called over the link.
    pub async fn open(run_dir: &Path, secret: String) -> Result<(Self, Vec<(String, bool)>), String> {
        let stream = connect(run_dir, paths::CONTROL_SOCKET).await.map_err(|e| e.to_string())?;
        let (reader, mut writer) = stream.into_split();
        let hello = encode(&ToRuntime::Hello { secret: secret.clone() });
        writer.write_all(hello.as_bytes()).await.map_err(|e| e.to_string())?;
        let mut lines = Lines { reader: BufReader::with_capacity(64 * 1024, reader), line: Vec::new(), skipped_bytes: 0 };
        let loaded = match lines.next().await? {
            Some(FromRuntime::Ready { loaded, linked, .. }) => {
                let linked: HashSet<String> = linked.into_iter().collect();
                loaded.into_iter().map(|key| (linked.contains(&key), key)).map(|(linked, key)| (key, linked)).collect()
            }
            _ => return Err("the runtime did not accept the connection".into()),
        };
        let (to_runtime, unwritten) = mpsc::channel(UNWRITTEN_MAX);
        let closing = CancellationToken::new();
        let shared = Arc::new(Shared {
            to_runtime,
            questions: Mutex::default(),
            next_id: AtomicU64::new(1),
            owner: OnceLock::new(),
            storage_calls: Arc::new(Semaphore::new(STORAGE_CALLS_MAX)),
            broken: CancellationToken::new(),
        });
        // Both tasks end with the connection, which ends with this value or the container.
        tokio::spawn(closing.clone().run_until_cancelled_owned(write(writer, unwritten)));
        tokio::spawn({
            let (shared, closing) = (Arc::clone(&shared), closing.clone());
            async move {
                if let Some(Err(error)) = closing.run_until_cancelled_owned(read(Arc::clone(&shared), lines)).await {
                    tracing::debug!(error, "control connection ended");
                }
                shared.questions.lock().clear();
                shared.broken.cancel();
            }
        });
        Ok((Self { shared, secret, _close: closing.drop_guard() }, loaded))
    }

    /// Says whom the container belongs to from now on.
    pub fn set_owner(&self, owner: inbound::Owner) {
        let set = self.shared.owner.set(owner);
        assert!(set.is_ok(), "a container is claimed once");
    }

    /// Waits until the connection has ended.
    pub async fn broken(&self) {
        self.shared.broken.cancelled().await;
    }

    /// Starts the runtime again in place, which lets go of this connection, and connects to it anew.
    pub async fn restart(self, run_dir: &Path, timeout: Duration) -> Result<Self, String> {
        self.tell(&ToRuntime::Restart);
        let restarted = async {
            self.broken().await;
            open_when_ready(run_dir, new_secret(), timeout).await
        };
        let late = |_| Err(format!("the runtime did not start again within {timeout:?}"));
        tokio::time::timeout(timeout, restarted).await.unwrap_or_else(late)
    }

    /// Sends without waiting for an answer; not at all to a runtime that does not read.
    pub fn tell(&self, message: &ToRuntime) {
        let _ = self.shared.to_runtime.try_send(encode(message));
    }

    async fn send(&self, message: &ToRuntime) -> Result<(), AcquireError> {
        self.shared.to_runtime.send(encode(message)).await.map_err(|_| AcquireError::Crashed { out_of_memory: false })
    }

    async fn ask(&self, timeout: Duration, question: impl FnOnce(u64) -> ToRuntime) -> Result<FromRuntime, AcquireError> {
        let id = self.shared.next_id.fetch_add(1, Relaxed);
        let (sender, answer) = oneshot::channel();
        {
            let mut questions = self.shared.questions.lock();
            if questions.len() >= QUESTIONS_MAX {
                return Err(AcquireError::NoCapacity { detail: "too many questions to one runtime".into() });
            }
            questions.insert(id, sender);
        }
        let ended = || AcquireError::Crashed { out_of_memory: false };
        let outcome = tokio::time::timeout(timeout, async {
            self.send(&question(id)).await?;
            answer.await.map_err(|_| ended())
        })
        .await;
        self.shared.questions.lock().remove(&id);
        match outcome {
            Ok(outcome) => outcome,
            Err(_elapsed) => Err(AcquireError::LoadTimeout { limit: timeout }),
        }
    }

    /// Loads a version; returns whether it can be called over the link.
    pub async fn load(&self, timeout: Duration, load: impl FnOnce(u64) -> ToRuntime) -> Result<bool, AcquireError> {
        match self.ask(timeout, load).await? {
            FromRuntime::Loaded { error: Some(message), .. } => {
                Err(AcquireError::Load { message: message.chars().take(8_192).collect() })
            }
            FromRuntime::Loaded { linked, .. } => Ok(linked),
            _ => Err(AcquireError::Load { message: "the runtime gave no sensible answer".into() }),
        }
    }

    /// Requires modules ahead of a claim; returns those that could not be.
    pub async fn preload(&self, timeout: Duration, modules: Vec<String>) -> Result<Vec<String>, AcquireError> {
        match self.ask(timeout, |id| ToRuntime::Preload { id, modules }).await? {
            FromRuntime::Preloaded { failed, .. } => Ok(failed),
            _ => Err(AcquireError::Load { message: "the runtime gave no sensible answer".into() }),
        }
    }

    /// Whether the event loop answers in time.
    pub async fn ping(&self, timeout: Duration) -> Result<(), AcquireError> {
        self.ask(timeout, |id| ToRuntime::Ping { id }).await.map(|_| ())
    }
}

pub(super) fn encode(message: &ToRuntime) -> String {
    let mut line = serde_json::to_string(message).unwrap_or_default();
    line.push('\n');
    line
}

async fn write(mut writer: OwnedWriteHalf, mut unwritten: mpsc::Receiver<String>) {
    while let Some(line) = unwritten.recv().await {
        if writer.write_all(line.as_bytes()).await.is_err() {
            return;
        }
    }
}

struct Lines {
    reader: BufReader<OwnedReadHalf>,
    line: Vec<u8>,
    skipped_bytes: usize,
}

impl Lines {
    /// The next message; none at the end. Longer lines than allowed and lines that are no message are errors.
    async fn next(&mut self) -> Result<Option<FromRuntime>, String> {
        self.next_unless(|_| false, || true).await
    }

    /// The same, without those that `skipped` says of before they are read; of many it takes its time, unless `hurried`.
    async fn next_unless(
        &mut self,
        mut skipped: impl FnMut(&[u8]) -> bool,
        hurried: impl Fn() -> bool,
    ) -> Result<Option<FromRuntime>, String> {
        while self.fill().await? {
            if skipped(&self.line) {
                self.skipped_bytes += self.line.len();
                if self.skipped_bytes >= SKIPPED_MAX {
                    self.skipped_bytes = 0;
                    for _ in 0..SKIP_PAUSE.0 {
                        if hurried() {
                            break;
                        }
                        tokio::time::sleep(SKIP_PAUSE.1).await;
                    }
                }
            } else {
                return serde_json::from_slice(&self.line).map(Some).map_err(|e| format!("a line that is no message: {e}"));
            }
        }
        Ok(None)
    }

    /// Whether there is another line.
    async fn fill(&mut self) -> Result<bool, String> {
        self.line.clear();
        let limit = limits::CONTROL_MESSAGE_BYTES_MAX as u64;
        let n = (&mut self.reader).take(limit).read_until(b'\n', &mut self.line).await.map_err(|e| e.to_string())?;
        if n > 0 && self.line.last() != Some(&b'\n') {
            return Err(format!("a message is longer than {limit} bytes, or cut"));
        }
        Ok(n > 0)
    }
}

async fn read(shared: Arc<Shared>, mut lines: Lines) -> Result<(), String> {
    let mut allowance = inbound::Allowance::new();
    let asked = || !shared.questions.lock().is_empty();
    while let Some(message) = lines.next_unless(|line| inbound::is_over(&shared, &mut allowance, line), asked).await? {
        match message {
            FromRuntime::Loaded { id, .. } | FromRuntime::Preloaded { id, .. } | FromRuntime::Pong { id } => {
                // An answer to a question that nobody asked, or no longer waits for, is nobody's.
                if let Some(asker) = shared.questions.lock().remove(&id) {
                    let _ = asker.send(message);
                }
            }
            FromRuntime::Ready { .. } => {}
            other => inbound::receive(&shared, &mut allowance, other),
        }
    }
    Ok(())
}

/// Waits until the runtime of a new container accepts its first control connection.
pub(super) async fn open_when_ready(run_dir: &Path, secret: String, timeout: Duration) -> Result<Control, String> {
    let until = Instant::now() + timeout;
    loop {
        let last = match Control::open(run_dir, secret.clone()).await {
            Ok((control, _)) => return Ok(control),
            Err(error) => error,
        };
        if Instant::now() >= until {
            return Err(format!("the runtime did not come up within {timeout:?}: {last}"));
        }
        tokio::time::sleep(Duration::from_millis(4)).await;
    }
}

/// 32 random bytes in hexadecimal.
pub(super) fn new_secret() -> String {
    hex::encode(rand::random::<[u8; 32]>())
}

/// A loaded `function@version` as the runtime names it.
pub(super) fn parse_loaded(text: &str) -> Option<(FunctionName, VersionNumber)> {
    let (function, version) = text.split_once('@')?;
    Some((function.parse().ok()?, VersionNumber(version.parse().ok()?)))
}

#[cfg(test)]
mod tests {
    use super::*;
    use tokio::net::{UnixListener, UnixStream};

    async fn pair() -> (Control, BufReader<OwnedReadHalf>, OwnedWriteHalf, tempfile::TempDir) {
        let dir = tempfile::tempdir().unwrap();
        let listener = UnixListener::bind(dir.path().join(paths::CONTROL_SOCKET)).unwrap();
        let runtime = tokio::spawn(async move {
            let (reader, mut writer) = listener.accept().await.unwrap().0.into_split();
            let mut reader = BufReader::new(reader);
            let mut line = String::new();
            reader.read_line(&mut line).await.unwrap();
            assert!(line.contains("hello"));
            writer.write_all(b"{\"t\":\"ready\",\"node\":\"v24\"}\n").await.unwrap();
            (reader, writer)
        });
        let (control, _) = Control::open(dir.path(), new_secret()).await.unwrap();
        let (reader, writer) = runtime.await.unwrap();
        (control, reader, writer, dir)
    }

    #[tokio::test]
    async fn an_answer_finds_its_question_and_silence_times_out() {
        let (control, mut reader, mut writer, _dir) = pair().await;
        let ping = tokio::spawn(async move { (control.ping(Duration::from_secs(5)).await.is_ok(), control) });
        let mut line = String::new();
        reader.read_line(&mut line).await.unwrap();
        assert_eq!(line, "{\"t\":\"ping\",\"id\":1}\n");
        writer.write_all(b"{\"t\":\"pong\",\"id\":999}\n{\"t\":\"pong\",\"id\":1}\n").await.unwrap();
        let (answered, control) = ping.await.unwrap();
        assert!(answered);
        assert!(control.ping(Duration::from_millis(20)).await.is_err());
    }

    #[tokio::test]
    async fn nonsense_and_endless_lines_break_the_connection() {
        for hostile in [b"nonsense\n".to_vec(), vec![b'x'; limits::CONTROL_MESSAGE_BYTES_MAX + 1]] {
            let (control, _reader, mut writer, _dir) = pair().await;
            let _ = writer.write_all(&hostile).await;
            tokio::time::timeout(Duration::from_secs(5), control.broken()).await.unwrap();
            assert!(control.ping(Duration::from_secs(1)).await.is_err());
        }
    }

    #[tokio::test]
    async fn what_is_skipped_is_read_in_pieces_unless_an_answer_is_due() {
        let (ours, theirs) = UnixStream::pair().unwrap();
        let mut lines = Lines { reader: BufReader::new(ours.into_split().0), line: Vec::new(), skipped_bytes: 0 };
        let flood = [vec![b'x'; 16 * 1024 - 1], vec![b'\n']].concat().repeat(4 * SKIPPED_MAX / (16 * 1024));
        let (_reader, mut writer) = theirs.into_split();
        let writing = tokio::spawn(async move {
            writer.write_all(&flood).await.unwrap();
            writer.write_all(b"{\"t\":\"pong\",\"id\":1}\n").await.unwrap();
        });
        let began = Instant::now();
        let message = lines.next_unless(|line| line.starts_with(b"x"), || false).await.unwrap();
        assert!(matches!(message, Some(FromRuntime::Pong { id: 1 })));
        assert!(began.elapsed() >= 4 * SKIP_PAUSE.0 * SKIP_PAUSE.1, "{:?}", began.elapsed());
        writing.await.unwrap();
    }

    #[tokio::test(start_paused = true)]
    async fn an_answer_behind_much_output_comes_at_once() {
        let (ours, theirs) = UnixStream::pair().unwrap();
        let mut lines = Lines { reader: BufReader::new(ours.into_split().0), line: Vec::new(), skipped_bytes: 0 };
        let (_reader, mut writer) = theirs.into_split();
        let writing = tokio::spawn(async move {
            for _ in 0..8 * SKIPPED_MAX / 1024 {
                writer.write_all(&[&[b'x'; 1023][..], b"\n"].concat()).await.unwrap();
            }
            writer.write_all(b"{\"t\":\"pong\",\"id\":1}\n").await.unwrap();
        });
        let (began, asked) = (Instant::now(), Mutex::new(HashMap::from([(1, ())])));
        let message = lines.next_unless(|line| line.starts_with(b"x"), || !asked.lock().is_empty()).await.unwrap();
        assert!(matches!(message, Some(FromRuntime::Pong { id: 1 })));
        assert_eq!(began.elapsed(), Duration::ZERO, "no pause, by a clock that moves in pauses alone");
        writing.await.unwrap();
    }
}
