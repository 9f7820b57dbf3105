//! A coordinator that is reached over the simulated network: the store of this process at one end, a line of JSON for each question and
//! answer between, a connection for each call and each watch.

use async_trait::async_trait;
use hearth_placement::{
    Coordinator, CoordinatorError, LocalCoordinator,
    coordinator::{Batch, Event, KeyValue, LeaseId, Listing, Precondition, Watch, WatchError},
};
use serde::{Deserialize, Serialize, de::DeserializeOwned};
use std::{io, time::Duration};
use tokio::{
    io::{AsyncBufReadExt, AsyncWriteExt, BufReader},
    time::timeout,
};
use turmoil::net::{TcpListener, TcpStream};

pub const HOST: &str = "etcd";
const PORT: u16 = 2379;
/// As for etcd.
const DEADLINE: Duration = Duration::from_secs(2);

#[derive(Serialize, Deserialize)]
enum Question {
    Get {
        key: String,
    },
    List {
        prefix: String,
    },
    Put {
        key: String,
        value: Vec<u8>,
        expected: Expected,
        lease: Option<i64>,
    },
    Delete {
        key: String,
        expected: Expected,
    },
    Grant {
        ttl: Duration,
    },
    KeepAlive {
        lease: i64,
    },
    Revoke {
        lease: i64,
    },
    Compact {
        revision: i64,
    },
    Watch {
        prefix: String,
        from: i64,
    },
    /// On a watch's connection.
    Progress,
}

#[derive(Serialize, Deserialize)]
enum Expected {
    Any,
    Absent,
    ModRevision(i64),
}

#[derive(Serialize, Deserialize)]
struct Item {
    key: String,
    value: Vec<u8>,
    mod_revision: i64,
    create_revision: i64,
}

#[derive(Serialize, Deserialize)]
enum Change {
    Put(Item),
    Delete(String, i64),
}

#[derive(Serialize, Deserialize)]
enum Answer {
    Item(Option<Item>),
    Listing(i64, Vec<Item>),
    /// Of a write, or a lease's number.
    Number(i64),
    Lasts(Duration),
    Done,
    Conflict(String),
    LeaseGone,
    Failed(String),
    Batch(i64, Vec<Change>),
    Compacted(i64),
}

impl From<KeyValue> for Item {
    fn from(KeyValue { key, value, mod_revision, create_revision }: KeyValue) -> Self {
        Self { key, value, mod_revision, create_revision }
    }
}

impl From<Item> for KeyValue {
    fn from(Item { key, value, mod_revision, create_revision }: Item) -> Self {
        Self { key, value, mod_revision, create_revision }
    }
}

impl From<Precondition> for Expected {
    fn from(precondition: Precondition) -> Self {
        match precondition {
            Precondition::Any => Self::Any,
            Precondition::Absent => Self::Absent,
            Precondition::ModRevision(revision) => Self::ModRevision(revision),
        }
    }
}

impl From<Expected> for Precondition {
    fn from(expected: Expected) -> Self {
        match expected {
            Expected::Any => Self::Any,
            Expected::Absent => Self::Absent,
            Expected::ModRevision(revision) => Self::ModRevision(revision),
        }
    }
}

impl From<CoordinatorError> for Answer {
    fn from(error: CoordinatorError) -> Self {
        match error {
            CoordinatorError::Conflict { key } => Self::Conflict(key),
            CoordinatorError::LeaseGone => Self::LeaseGone,
            other => Self::Failed(other.to_string()),
        }
    }
}

/// Sends and receives lines.
struct Connection(BufReader<TcpStream>);

impl Connection {
    async fn send(&mut self, message: &impl Serialize) -> io::Result<()> {
        let mut line = serde_json::to_vec(message)?;
        line.push(b'\n');
        self.0.get_mut().write_all(&line).await
    }

    /// Cancel-safe with `line` kept: what has come of a line stays in it.
    async fn receive<T: DeserializeOwned>(&mut self, line: &mut Vec<u8>) -> io::Result<T> {
        self.0.read_until(b'\n', line).await?;
        let message = serde_json::from_slice(line).map_err(|_| io::ErrorKind::UnexpectedEof)?;
        line.clear();
        Ok(message)
    }
}

/// Serves a store to whoever connects, for ever.
pub async fn serve(store: LocalCoordinator) -> io::Result<()> {
    let listener = TcpListener::bind(("0.0.0.0", PORT)).await?;
    loop {
        let (stream, _) = listener.accept().await?;
        let store = store.client();
        tokio::spawn(async move {
            let mut connection = Connection(BufReader::new(stream));
            // A client that is gone is no error here.
            let _ = converse(&store, &mut connection).await;
        });
    }
}

async fn converse(store: &LocalCoordinator, connection: &mut Connection) -> io::Result<()> {
    let answer = match connection.receive(&mut vec![]).await? {
        Question::Watch { prefix, from } => return watch(store, connection, &prefix, from).await,
        Question::Get { key } => store.get(&key).await.map(|item| Answer::Item(item.map(Item::from))),
        Question::List { prefix } => {
            let listing = store.list(&prefix).await;
            listing.map(|listing| Answer::Listing(listing.revision, listing.items.into_iter().map(Item::from).collect()))
        }
        Question::Put { key, value, expected, lease } => {
            store.put(&key, value, expected.into(), lease.map(LeaseId)).await.map(Answer::Number)
        }
        Question::Delete { key, expected } => store.delete(&key, expected.into()).await.map(|()| Answer::Done),
        Question::Grant { ttl } => store.grant(ttl).await.map(|lease| Answer::Number(lease.0)),
        Question::KeepAlive { lease } => store.keep_alive(LeaseId(lease)).await.map(Answer::Lasts),
        Question::Revoke { lease } => store.revoke(LeaseId(lease)).await.map(|()| Answer::Done),
        Question::Compact { revision } => store.compact(revision).await.map(|()| Answer::Done),
        Question::Progress => return Err(io::ErrorKind::InvalidData.into()),
    };
    connection.send(&answer.unwrap_or_else(Answer::from)).await
}

async fn watch(store: &LocalCoordinator, connection: &mut Connection, prefix: &str, from: i64) -> io::Result<()> {
    let mut watch = store.watch(prefix, from).await.map_err(io::Error::other)?;
    connection.send(&Answer::Done).await?;
    let mut line = vec![];
    loop {
        tokio::select! {
            batch = watch.next() => {
                let answer = match batch {
                    Ok(Batch { revision, events }) => Answer::Batch(revision, events.into_iter().map(|event| match event {
                        Event::Put(item) => Change::Put(item.into()),
                        Event::Delete { key, revision } => Change::Delete(key, revision),
                    }).collect()),
                    Err(WatchError::Compacted { oldest }) => Answer::Compacted(oldest),
                    Err(WatchError::Broken(_)) => return Ok(()),
                };
                connection.send(&answer).await?;
            }
            question = connection.receive::<Question>(&mut line) => {
                question?;
                watch.request_progress().await.map_err(io::Error::other)?;
            }
        }
    }
}

/// A client, which knows the coordinator by its name alone.
pub struct Remote;

impl Remote {
    async fn ask(&self, attempt: &'static str, question: Question) -> Result<(Answer, Connection), CoordinatorError> {
        let answered = timeout(DEADLINE, async {
            let mut connection = Connection(BufReader::new(TcpStream::connect((HOST, PORT)).await?));
            connection.send(&question).await?;
            let answer = connection.receive(&mut vec![]).await?;
            Ok::<_, io::Error>((answer, connection))
        });
        match answered.await {
            Err(_) => Err(CoordinatorError::Deadline { attempt, deadline: DEADLINE }),
            Ok(Err(error)) => Err(CoordinatorError::Unavailable { attempt, reason: error.to_string() }),
            Ok(Ok((Answer::Conflict(key), _))) => Err(CoordinatorError::Conflict { key }),
            Ok(Ok((Answer::LeaseGone, _))) => Err(CoordinatorError::LeaseGone),
            Ok(Ok((Answer::Failed(reason), _))) => Err(CoordinatorError::Unavailable { attempt, reason }),
            Ok(Ok(answer)) => Ok(answer),
        }
    }
}

fn unexpected<T>(attempt: &'static str) -> Result<T, CoordinatorError> {
    Err(CoordinatorError::Unavailable { attempt, reason: "an answer to something else".into() })
}

#[async_trait]
impl Coordinator for Remote {
    async fn get(&self, key: &str) -> Result<Option<KeyValue>, CoordinatorError> {
        match self.ask("get", Question::Get { key: key.to_owned() }).await?.0 {
            Answer::Item(item) => Ok(item.map(KeyValue::from)),
            _ => unexpected("get"),
        }
    }

    async fn list(&self, prefix: &str) -> Result<Listing, CoordinatorError> {
        match self.ask("list", Question::List { prefix: prefix.to_owned() }).await?.0 {
            Answer::Listing(revision, items) => Ok(Listing { revision, items: items.into_iter().map(KeyValue::from).collect() }),
            _ => unexpected("list"),
        }
    }

    async fn put(
        &self,
        key: &str,
        value: Vec<u8>,
        precondition: Precondition,
        lease: Option<LeaseId>,
    ) -> Result<i64, CoordinatorError> {
        let (key, expected, lease) = (key.to_owned(), precondition.into(), lease.map(|lease| lease.0));
        match self.ask("put", Question::Put { key, value, expected, lease }).await?.0 {
            Answer::Number(revision) => Ok(revision),
            _ => unexpected("put"),
        }
    }

    async fn delete(&self, key: &str, precondition: Precondition) -> Result<(), CoordinatorError> {
        let question = Question::Delete { key: key.to_owned(), expected: precondition.into() };
        self.ask("delete", question).await.map(|_| ())
    }

    async fn grant(&self, ttl: Duration) -> Result<LeaseId, CoordinatorError> {
        match self.ask("grant", Question::Grant { ttl }).await?.0 {
            Answer::Number(lease) => Ok(LeaseId(lease)),
            _ => unexpected("grant"),
        }
    }

    async fn keep_alive(&self, lease: LeaseId) -> Result<Duration, CoordinatorError> {
        match self.ask("keep alive", Question::KeepAlive { lease: lease.0 }).await?.0 {
            Answer::Lasts(ttl) => Ok(ttl),
            _ => unexpected("keep alive"),
        }
    }

    async fn revoke(&self, lease: LeaseId) -> Result<(), CoordinatorError> {
        self.ask("revoke", Question::Revoke { lease: lease.0 }).await.map(|_| ())
    }

    async fn watch(&self, prefix: &str, from: i64) -> Result<Box<dyn Watch>, CoordinatorError> {
        let (_, connection) = self.ask("watch", Question::Watch { prefix: prefix.to_owned(), from }).await?;
        Ok(Box::new(RemoteWatch { connection, line: vec![] }))
    }

    async fn compact(&self, revision: i64) -> Result<(), CoordinatorError> {
        self.ask("compact", Question::Compact { revision }).await.map(|_| ())
    }
}

struct RemoteWatch {
    connection: Connection,
    line: Vec<u8>,
}

#[async_trait]
impl Watch for RemoteWatch {
    async fn next(&mut self) -> Result<Batch, WatchError> {
        let broken = |error: io::Error| WatchError::Broken(error.to_string());
        match self.connection.receive(&mut self.line).await.map_err(broken)? {
            Answer::Batch(revision, changes) => {
                let events = changes.into_iter().map(|change| match change {
                    Change::Put(item) => Event::Put(item.into()),
                    Change::Delete(key, revision) => Event::Delete { key, revision },
                });
                Ok(Batch { revision, events: events.collect() })
            }
            Answer::Compacted(oldest) => Err(WatchError::Compacted { oldest }),
            _ => Err(WatchError::Broken("an answer to something else".into())),
        }
    }

    async fn request_progress(&mut self) -> Result<(), WatchError> {
        self.connection.send(&Question::Progress).await.map_err(|error| WatchError::Broken(error.to_string()))
    }
}
