//! One SQLite file: a writer thread that commits waiting writes together, and reader threads. Nothing here blocks an async thread.

use crate::StoreError;
use rusqlite::{Connection, OpenFlags};
use std::{
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};
use tokio::sync::{mpsc, oneshot};

/// Schema of the tables; stored in `user_version`.
pub(super) const SCHEMA: i64 = 1;
/// Calls that wait for a thread; more wait in their callers.
const WAITING_MAX: usize = 1_024;
/// Writes that share one commit.
const BATCH_MAX: usize = 128;
const READERS: usize = 2;

type Job = Box<dyn FnOnce(&Connection) + Send>;
type Done = Box<dyn FnOnce(Result<(), String>) + Send>;
type WriteJob = Box<dyn FnOnce(&Connection) -> (bool, Done) + Send>;

/// An open database. Its threads end when the last clone is dropped.
#[derive(Clone)]
pub(super) struct Db {
    writer: mpsc::Sender<WriteJob>,
    readers: Arc<[mpsc::Sender<Job>]>,
    path: Arc<Path>,
}

impl Db {
    /// Opens or creates the file, and brings an older schema up to date.
    pub fn open(path: &Path) -> Result<Self, StoreError> {
        let fail = |call, error: rusqlite::Error| StoreError::Unavailable {
            call,
            resource: path.display().to_string(),
            detail: error.to_string(),
        };
        if let Some(dir) = path.parent() {
            std::fs::create_dir_all(dir).map_err(|e| StoreError::Unavailable {
                call: "create directory",
                resource: dir.display().to_string(),
                detail: e.to_string(),
            })?;
        }
        let connection = Connection::open(path).map_err(|e| fail("open", e))?;
        let found: i64 = connection.query_row("PRAGMA user_version", [], |r| r.get(0)).map_err(|e| fail("read schema", e))?;
        if found > SCHEMA {
            return Err(StoreError::NewerSchema {
                what: format!("database {}", path.display()),
                found: found.unsigned_abs(),
                known: SCHEMA.unsigned_abs(),
            });
        }
        prepare(&connection).map_err(|e| fail("prepare", e))?;
        if found == 0 {
            let ddl = format!("BEGIN IMMEDIATE; {} PRAGMA user_version = {SCHEMA}; COMMIT;", include_str!("schema.sql"));
            connection.execute_batch(&ddl).map_err(|e| fail("create tables", e))?;
        }
        let (writer, jobs) = mpsc::channel(WAITING_MAX);
        std::thread::Builder::new().name("sqlite-writer".into()).spawn(move || write_loop(&connection, jobs)).map_err(|e| {
            StoreError::Unavailable { call: "start thread", resource: "sqlite-writer".into(), detail: e.to_string() }
        })?;
        let mut readers = Vec::with_capacity(READERS);
        for n in 0..READERS {
            let flags = OpenFlags::SQLITE_OPEN_READ_ONLY | OpenFlags::SQLITE_OPEN_NO_MUTEX;
            let connection = Connection::open_with_flags(path, flags).map_err(|e| fail("open for reading", e))?;
            prepare(&connection).map_err(|e| fail("prepare", e))?;
            let (sender, mut jobs) = mpsc::channel::<Job>(WAITING_MAX);
            std::thread::Builder::new()
                .name(format!("sqlite-reader-{n}"))
                .spawn(move || {
                    while let Some(job) = jobs.blocking_recv() {
                        job(&connection);
                    }
                })
                .map_err(|e| StoreError::Unavailable {
                    call: "start thread",
                    resource: "sqlite-reader".into(),
                    detail: e.to_string(),
                })?;
            readers.push(sender);
        }
        Ok(Self { writer, readers: readers.into(), path: path.into() })
    }

    fn gone(&self, call: &'static str) -> StoreError {
        StoreError::Unavailable { call, resource: self.path.display().to_string(), detail: "the database thread has ended".into() }
    }

    fn failed(&self, call: &'static str, error: &impl ToString) -> StoreError {
        StoreError::Unavailable { call, resource: self.path.display().to_string(), detail: error.to_string() }
    }

    /// Runs `work` on a reader.
    pub async fn read<T: Send + 'static>(
        &self,
        call: &'static str,
        work: impl FnOnce(&Connection) -> Result<T, Failure> + Send + 'static,
    ) -> Result<T, StoreError> {
        let (sender, receiver) = oneshot::channel();
        let job: Job = Box::new(move |connection| {
            let _ = sender.send(work(connection));
        });
        let reader = self.readers.iter().max_by_key(|r| r.capacity()).ok_or_else(|| self.gone(call))?;
        reader.send(job).await.map_err(|_| self.gone(call))?;
        receiver.await.map_err(|_| self.gone(call))?.map_err(|f| self.store_error(call, f))
    }

    /// Runs `work` in a transaction on the writer; returns once it is on disk. An error rolls back what `work` did.
    pub async fn write<T: Send + 'static>(
        &self,
        call: &'static str,
        work: impl FnOnce(&Connection) -> Result<T, Failure> + Send + 'static,
    ) -> Result<T, StoreError> {
        let (sender, receiver) = oneshot::channel::<Result<T, Failure>>();
        let job: WriteJob = Box::new(move |connection| {
            let result = work(connection);
            let keep = result.is_ok();
            let done: Done = Box::new(move |committed| {
                let _ = sender.send(match committed {
                    Ok(()) => result,
                    Err(detail) => result.and(Err(Failure::Commit(detail))),
                });
            });
            (keep, done)
        });
        self.writer.send(job).await.map_err(|_| self.gone(call))?;
        receiver.await.map_err(|_| self.gone(call))?.map_err(|f| self.store_error(call, f))
    }

    fn store_error(&self, call: &'static str, failure: Failure) -> StoreError {
        match failure {
            Failure::Store(error) => error,
            Failure::Sql(error) => self.failed(call, &error),
            Failure::Commit(detail) => self.failed(call, &detail),
        }
    }

    /// The file.
    pub fn path(&self) -> PathBuf {
        self.path.to_path_buf()
    }
}

fn prepare(connection: &Connection) -> rusqlite::Result<()> {
    connection.busy_timeout(Duration::from_secs(5))?;
    connection.set_prepared_statement_cache_capacity(64);
    // FULL: a commit is on disk when it is acknowledged, also when the machine loses power.
    connection.execute_batch(
        "PRAGMA journal_mode = WAL; PRAGMA synchronous = FULL; PRAGMA foreign_keys = OFF; PRAGMA cache_size = -8000;",
    )
}

fn write_loop(connection: &Connection, mut jobs: mpsc::Receiver<WriteJob>) {
    while let Some(first) = jobs.blocking_recv() {
        let mut done = Vec::new();
        let run = || -> rusqlite::Result<()> {
            connection.execute_batch("BEGIN IMMEDIATE")?;
            let mut next = Some(first);
            while let Some(job) = next {
                // A savepoint each, so that one refused write does not undo its neighbours in the batch.
                connection.execute_batch("SAVEPOINT job")?;
                let (keep, finish) = job(connection);
                done.push(finish);
                connection.execute_batch(if keep { "RELEASE job" } else { "ROLLBACK TO job; RELEASE job" })?;
                next = if done.len() < BATCH_MAX { jobs.try_recv().ok() } else { None };
            }
            connection.execute_batch("COMMIT")
        };
        let result = run().map_err(|error| {
            let _ = connection.execute_batch("ROLLBACK");
            error.to_string()
        });
        for finish in done {
            finish(result.clone());
        }
    }
}

/// Why a piece of work failed.
#[derive(Debug)]
pub(super) enum Failure {
    Store(StoreError),
    Sql(rusqlite::Error),
    Commit(String),
}

impl From<rusqlite::Error> for Failure {
    fn from(error: rusqlite::Error) -> Self {
        Self::Sql(error)
    }
}
impl From<StoreError> for Failure {
    fn from(error: StoreError) -> Self {
        Self::Store(error)
    }
}
