//! etcd as the coordinator.
//!
//! Every call has a deadline of ours, since those of the client library end only some of them. A lease is kept alive over a
//! new stream each time: a keep-alive stream that has died stays dead however often it is written to, and one more stream
//! each second or two costs nothing. Watches do not reconnect; the library's would not either.

use super::{Batch, Coordinator, CoordinatorError, Event, KeyValue, LeaseId, Listing, Precondition, Watch, WatchError};
use crate::config::{ConnectError, EtcdConfig};
use async_trait::async_trait;
use etcd_client::{
    Certificate, Client, Compare, CompareOp, ConnectOptions, DeleteOptions, Error, EventType, GetOptions, Identity, PutOptions,
    TlsOptions, Txn, TxnOp, TxnOpResponse, WatchOptions,
};
use std::{path::Path, time::Duration};
use tokio::time::timeout;

/// How often the connections are tried while calls run, and for how long an answer may stay out.
const PING_INTERVAL: Duration = Duration::from_secs(2);
const PING_TIMEOUT: Duration = Duration::from_secs(2);
/// How many keys one list takes at a time.
const LIST_PAGE: i64 = 1000;

/// A client of an etcd cluster; connects by itself, again and again. Cheap to clone.
#[derive(Clone)]
pub struct EtcdCoordinator {
    client: Client,
    deadline: Duration,
}

fn unavailable(attempt: &'static str, error: &Error) -> CoordinatorError {
    if let Error::GRpcStatus(status) = error {
        use tonic::Code;
        let reason = status.message().to_owned();
        match status.code() {
            Code::NotFound if reason.contains("lease") => return CoordinatorError::LeaseGone,
            Code::InvalidArgument | Code::PermissionDenied | Code::Unauthenticated | Code::ResourceExhausted => {
                return CoordinatorError::Refused { attempt, reason };
            }
            _ => {}
        }
    }
    CoordinatorError::Unavailable { attempt, reason: error.to_string() }
}

fn read(field: &'static str, path: &Path) -> Result<Vec<u8>, ConnectError> {
    std::fs::read(path).map_err(|source| ConnectError::File { field, path: path.to_owned(), source })
}

fn options(config: &EtcdConfig) -> Result<ConnectOptions, ConnectError> {
    let mut options = ConnectOptions::new()
        .with_keep_alive(PING_INTERVAL, PING_TIMEOUT)
        .with_keep_alive_while_idle(true)
        .with_connect_timeout(config.connect_deadline);
    if let Some(user) = &config.user {
        let password = read("placement.password_file", &user.password_file)?;
        options = options.with_user(user.name.clone(), String::from_utf8_lossy(&password).trim().to_owned());
    }
    if let Some(tls) = &config.tls {
        let ca = read("placement.tls.ca", &tls.ca)?;
        let mut client_tls = TlsOptions::new().ca_certificate(Certificate::from_pem(ca));
        if let (Some(cert), Some(key)) = (&tls.cert, &tls.key) {
            let identity = Identity::from_pem(read("placement.tls.cert", cert)?, read("placement.tls.key", key)?);
            client_tls = client_tls.identity(identity);
        }
        if let Some(name) = &tls.server_name {
            client_tls = client_tls.domain_name(name.clone());
        }
        options = options.with_tls(client_tls);
    }
    Ok(options)
}

/// A client of the library's.
///
/// # Errors
/// As [`EtcdCoordinator::new`].
pub(crate) async fn connect(config: &EtcdConfig) -> Result<Client, ConnectError> {
    config.validate()?;
    let invalid = |error: &Error| ConnectError::Invalid { field: "placement.endpoints", reason: error.to_string() };
    let scheme = if config.tls.is_some() { "https" } else { "http" };
    let endpoints: Vec<String> =
        config.endpoints.iter().map(|e| if e.contains("://") { e.clone() } else { format!("{scheme}://{e}") }).collect();
    let connecting = Client::connect(endpoints, Some(options(config)?));
    let client = timeout(config.connect_deadline, connecting).await;
    let client = client.map_err(|_| ConnectError::Unreachable {
        endpoints: config.endpoints.join(", "),
        reason: format!("no answer within {:?}", config.connect_deadline),
    })?;
    client.map_err(|error| invalid(&error))
}

impl EtcdCoordinator {
    /// A client that has not tried to connect.
    ///
    /// # Errors
    /// [`ConnectError`] when the configuration can lead to no connection, and, where a user is configured, when it could not
    /// log in.
    pub async fn new(config: &EtcdConfig) -> Result<Self, ConnectError> {
        Ok(Self { client: connect(config).await?, deadline: config.deadline })
    }

    async fn call<T>(
        &self,
        attempt: &'static str,
        call: impl Future<Output = Result<T, Error>> + Send,
    ) -> Result<T, CoordinatorError> {
        match timeout(self.deadline, call).await {
            Ok(result) => result.map_err(|error| unavailable(attempt, &error)),
            Err(_) => Err(CoordinatorError::Deadline { attempt, deadline: self.deadline }),
        }
    }
}

fn condition(key: &str, precondition: Precondition) -> Vec<Compare> {
    match precondition {
        Precondition::Any => vec![],
        // A key that does not exist has the create revision 0.
        Precondition::Absent => vec![Compare::create_revision(key, CompareOp::Equal, 0)],
        Precondition::ModRevision(revision) => vec![Compare::mod_revision(key, CompareOp::Equal, revision)],
    }
}

fn key_value(item: &etcd_client::KeyValue) -> KeyValue {
    KeyValue {
        // Keys that are no text are not ours; they match no name later on.
        key: String::from_utf8_lossy(item.key()).into_owned(),
        value: item.value().to_vec(),
        mod_revision: item.mod_revision(),
        create_revision: item.create_revision(),
    }
}

#[async_trait]
impl Coordinator for EtcdCoordinator {
    async fn get(&self, key: &str) -> Result<Option<KeyValue>, CoordinatorError> {
        let mut kv = self.client.kv_client();
        let response = self.call("get", kv.get(key, None)).await?;
        Ok(response.kvs().first().map(key_value))
    }

    async fn list(&self, prefix: &str) -> Result<Listing, CoordinatorError> {
        let mut kv = self.client.kv_client();
        let mut items: Vec<KeyValue> = Vec::new();
        let mut revision = 0;
        let end = prefix_end(prefix);
        loop {
            // Pages after the first are read at the revision of the first, so that the whole is of one moment.
            let begin = items.last().map_or_else(|| prefix.as_bytes().to_vec(), |last| [last.key.as_bytes(), &[0]].concat());
            let options = GetOptions::new().with_range(end.clone()).with_limit(LIST_PAGE).with_revision(revision);
            let response = self.call("list", kv.get(begin, Some(options))).await?;
            if revision == 0 {
                revision = response.header().map_or(0, etcd_client::ResponseHeader::revision);
            }
            items.extend(response.kvs().iter().map(key_value));
            if !response.more() || response.kvs().is_empty() {
                return Ok(Listing { revision, items });
            }
        }
    }

    async fn put(
        &self,
        key: &str,
        value: Vec<u8>,
        precondition: Precondition,
        lease: Option<LeaseId>,
    ) -> Result<i64, CoordinatorError> {
        let options = lease.map(|lease| PutOptions::new().with_lease(lease.0));
        let txn = Txn::new().when(condition(key, precondition)).and_then(vec![TxnOp::put(key, value, options)]);
        let mut kv = self.client.kv_client();
        let response = self.call("put", kv.txn(txn)).await?;
        if !response.succeeded() {
            return Err(CoordinatorError::Conflict { key: key.to_owned() });
        }
        Ok(response.header().map_or(0, etcd_client::ResponseHeader::revision))
    }

    async fn delete(&self, key: &str, precondition: Precondition) -> Result<(), CoordinatorError> {
        let txn = Txn::new().when(condition(key, precondition)).and_then(vec![TxnOp::delete(key, None::<DeleteOptions>)]);
        let mut kv = self.client.kv_client();
        let response = self.call("delete", kv.txn(txn)).await?;
        let deleted = response.op_responses().iter().any(|op| matches!(op, TxnOpResponse::Delete(d) if d.deleted() > 0));
        match precondition {
            Precondition::ModRevision(_) if !deleted => Err(CoordinatorError::Conflict { key: key.to_owned() }),
            _ if !response.succeeded() => Err(CoordinatorError::Conflict { key: key.to_owned() }),
            _ => Ok(()),
        }
    }

    async fn grant(&self, ttl: Duration) -> Result<LeaseId, CoordinatorError> {
        let mut leases = self.client.lease_client();
        let seconds = i64::try_from(ttl.as_secs().max(1)).unwrap_or(i64::MAX);
        let response = self.call("grant", leases.grant(seconds, None)).await?;
        Ok(LeaseId(response.id()))
    }

    async fn keep_alive(&self, lease: LeaseId) -> Result<Duration, CoordinatorError> {
        let mut leases = self.client.lease_client();
        let call = async {
            let (mut keeper, mut answers) = leases.keep_alive(lease.0).await?;
            // Opening the stream sent the first request already where the library does so; one more is harmless.
            keeper.keep_alive().await?;
            answers.message().await
        };
        let lasts_s = match timeout(self.deadline, call).await {
            Err(_) => return Err(CoordinatorError::Deadline { attempt: "keep alive", deadline: self.deadline }),
            // The library turns the answer for an unknown lease into an error of its own.
            Ok(Err(Error::LeaseKeepAliveError(_))) => return Err(CoordinatorError::LeaseGone),
            Ok(Err(error)) => return Err(unavailable("keep alive", &error)),
            Ok(Ok(answer)) => answer.map_or(0, |answer| answer.ttl()),
        };
        if lasts_s > 0 { Ok(Duration::from_secs(lasts_s.unsigned_abs())) } else { Err(CoordinatorError::LeaseGone) }
    }

    async fn revoke(&self, lease: LeaseId) -> Result<(), CoordinatorError> {
        let mut leases = self.client.lease_client();
        match self.call("revoke", leases.revoke(lease.0)).await {
            Ok(_) | Err(CoordinatorError::LeaseGone) => Ok(()),
            Err(error) => Err(error),
        }
    }

    async fn watch(&self, prefix: &str, from: i64) -> Result<Box<dyn Watch>, CoordinatorError> {
        let mut watches = self.client.watch_client();
        let options = WatchOptions::new().with_prefix().with_start_revision(from).with_progress_notify();
        let stream = self.call("watch", watches.watch(prefix, Some(options))).await?;
        Ok(Box::new(EtcdWatch { stream, upto: from - 1, deadline: self.deadline }))
    }

    async fn compact(&self, revision: i64) -> Result<(), CoordinatorError> {
        let mut kv = self.client.kv_client();
        self.call("compact", kv.compact(revision, None)).await.map(drop)
    }
}

/// The first key after all that begin with `prefix`; ours end in `/`, so the last byte can always grow.
pub(crate) fn prefix_end(prefix: &str) -> Vec<u8> {
    let mut end = prefix.as_bytes().to_vec();
    if let Some(last) = end.last_mut() {
        *last = last.saturating_add(1);
    }
    end
}

struct EtcdWatch {
    stream: etcd_client::WatchStream,
    /// All changes up to here have been given.
    upto: i64,
    deadline: Duration,
}

#[async_trait]
impl Watch for EtcdWatch {
    async fn next(&mut self) -> Result<Batch, WatchError> {
        loop {
            // Cancel-safe: a message is taken whole or not at all.
            let message = self.stream.message().await.map_err(|error| WatchError::Broken(error.to_string()))?;
            let Some(message) = message else { return Err(WatchError::Broken("the stream ended".into())) };
            if message.compact_revision() > 0 {
                return Err(WatchError::Compacted { oldest: message.compact_revision() });
            }
            if message.canceled() {
                return Err(WatchError::Broken(format!("cancelled: {}", message.cancel_reason())));
            }
            let mut events = Vec::with_capacity(message.events().len());
            for event in message.events() {
                let Some(kv) = event.kv() else { continue };
                let item = key_value(kv);
                self.upto = self.upto.max(item.mod_revision);
                events.push(match event.event_type() {
                    EventType::Put => Event::Put(item),
                    EventType::Delete => Event::Delete { key: item.key, revision: item.mod_revision },
                });
            }
            if events.is_empty() {
                if message.created() {
                    continue;
                }
                // A progress notice; its revision says that all before it was sent.
                self.upto = self.upto.max(message.header().map_or(0, etcd_client::ResponseHeader::revision));
            }
            return Ok(Batch { revision: self.upto, events });
        }
    }

    async fn request_progress(&mut self) -> Result<(), WatchError> {
        match timeout(self.deadline, self.stream.request_progress()).await {
            Ok(result) => result.map_err(|error| WatchError::Broken(error.to_string())),
            Err(_) => Err(WatchError::Broken(format!("could not be written to within {:?}", self.deadline))),
        }
    }
}
