//! A unix socket in front of another, which a test can close like a gate: a daemon that hangs, without touching the machine's daemon.

use std::{
    io,
    path::{Path, PathBuf},
};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{
        UnixListener, UnixStream,
        unix::{OwnedReadHalf, OwnedWriteHalf},
    },
    sync::watch,
    task::JoinHandle,
};

/// The gate; open at first. What was let in ends with it.
pub struct SocketGate {
    path: PathBuf,
    open: watch::Sender<bool>,
    accepting: JoinHandle<()>,
}

impl SocketGate {
    /// Listens on `path` and passes everything on to `behind`.
    ///
    /// # Errors
    /// When it cannot listen.
    pub fn start(path: &Path, behind: &Path) -> io::Result<Self> {
        let listener = UnixListener::bind(path)?;
        let behind = behind.to_owned();
        let (open, watching) = watch::channel(true);
        let accepting = tokio::spawn(async move {
            let mut connections = tokio::task::JoinSet::new();
            while let Ok((front, _)) = listener.accept().await {
                let (behind, watching) = (behind.clone(), watching.clone());
                connections.spawn(async move {
                    // A closed gate accepts, as a stopped daemon's socket does, and then nothing happens.
                    let mut gate = watching.clone();
                    let _ = gate.wait_for(|open| *open).await;
                    let Ok(back) = UnixStream::connect(behind).await else { return };
                    let ((front_read, front_write), (back_read, back_write)) = (front.into_split(), back.into_split());
                    tokio::join!(pass(front_read, back_write, watching.clone()), pass(back_read, front_write, watching));
                });
            }
        });
        Ok(Self { path: path.to_owned(), open, accepting })
    }

    /// Where it listens.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// From now on nothing passes, in either direction; connections stay.
    pub fn close(&self) {
        self.open.send_replace(false);
    }

    /// Everything passes again, what was held back first.
    pub fn open(&self) {
        self.open.send_replace(true);
    }
}

impl Drop for SocketGate {
    fn drop(&mut self) {
        self.accepting.abort();
    }
}

async fn pass(mut from: OwnedReadHalf, mut to: OwnedWriteHalf, mut gate: watch::Receiver<bool>) {
    let mut buffer = vec![0; 64 * 1024];
    while let Ok(n @ 1..) = from.read(&mut buffer).await {
        if gate.wait_for(|open| *open).await.is_err() || to.write_all(&buffer[..n]).await.is_err() {
            break;
        }
    }
    let _ = to.shutdown().await;
}
