//! Commands that are run against the target at a moment of the load, by `sh -c`, with a deadline, in a process group of their own.

use crate::collect::Message;
use std::{
    process::Stdio,
    sync::mpsc::SyncSender,
    time::{Duration, Instant},
};
use tokio_util::sync::CancellationToken;

/// A command of a fault has this long; what it started in the background may live on.
const COMMAND_TIMEOUT: Duration = Duration::from_secs(120);
/// How much of a command's output is kept for the report.
const OUTPUT_BYTES_MAX: usize = 2_000;

/// What is done, and when.
#[derive(Debug, Clone)]
pub struct FaultJob {
    /// Its name.
    pub name: String,
    /// From the start of the load.
    pub at: Duration,
    /// The command; none only marks the moment.
    pub cmd: Option<String>,
}

/// What was done, and what came of it.
#[derive(Debug, Clone)]
pub struct FaultEvent {
    /// Its name.
    pub name: String,
    /// When its command was started.
    pub at_ns: u64,
    /// How long its command ran, none as long as it runs.
    pub took: Option<Duration>,
    /// What went wrong with the command itself.
    pub error: Option<String>,
}

/// Waits for the moment, runs the command, and tells the books; the moment first, so that recovery is counted from it and not from the command's
/// end. Ends early when the load has ended before the moment came.
pub(super) async fn run(job: FaultJob, epoch: Instant, sender: SyncSender<Message>, ended: CancellationToken) {
    tokio::select! {
        () = ended.cancelled() => return,
        () = tokio::time::sleep_until((epoch + job.at).into()) => {}
    }
    let started = Instant::now();
    let at_ns = started.saturating_duration_since(epoch).as_nanos() as u64;
    let mut event = FaultEvent { name: job.name.clone(), at_ns, took: None, error: None };
    tell(&sender, event.clone()).await;
    if let Some(cmd) = &job.cmd {
        event.error = execute(cmd).await.err().map(|e| format!("{e:#}"));
    }
    event.took = Some(started.elapsed());
    tell(&sender, event).await;
}

async fn tell(sender: &SyncSender<Message>, event: FaultEvent) {
    let sender = sender.clone();
    // The channel of the books blocks where it is full, and this is not one of the sending threads.
    drop(tokio::task::spawn_blocking(move || sender.send(Message::Fault(event))).await);
}

async fn execute(cmd: &str) -> anyhow::Result<()> {
    let mut command = tokio::process::Command::new("sh");
    command.arg("-c").arg(cmd).stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::piped()).kill_on_drop(true);
    let mut child = command.process_group(0).spawn()?;
    let stderr = child.stderr.take();
    let ended = tokio::time::timeout(COMMAND_TIMEOUT, child.wait()).await;
    let Ok(status) = ended else { anyhow::bail!("the command ran longer than {} s and was killed", COMMAND_TIMEOUT.as_secs()) };
    let status = status?;
    if status.success() {
        return Ok(());
    }
    let mut words = Vec::new();
    if let Some(stderr) = stderr {
        use tokio::io::AsyncReadExt as _;
        // What the command left in the background may hold the pipe open: a moment must do.
        let mut limited = stderr.take(OUTPUT_BYTES_MAX as u64);
        drop(tokio::time::timeout(Duration::from_millis(200), limited.read_to_end(&mut words)).await);
    }
    anyhow::bail!("{status}: {}", String::from_utf8_lossy(&words).trim())
}
