//! A node's own key: put under a lease, and put again whenever it is found gone while the node lives.
//!
//! A name belongs to one living process. Another that comes with it is refused, and says so; it takes over when the
//! lease of the first has ended, or at once when it listens on the very address of the first, which then cannot live.

use crate::{
    coordinator::{Coordinator, CoordinatorError, LeaseId, Precondition},
    record::{NodeRecord, NodeState},
};
use std::{sync::Arc, time::Duration};
use tokio::{
    sync::{Notify, watch},
    time::{Instant, sleep, timeout},
};
use tokio_util::{sync::CancellationToken, task::TaskTracker};

/// How long a lease is unless configured otherwise.
pub const TTL: Duration = Duration::from_secs(5);
/// How much longer than the lease is waited for a name to become free.
const MARGIN: Duration = Duration::from_secs(3);
/// How long a node that leaves waits for the coordinator to take note.
const LEAVE_DEADLINE: Duration = Duration::from_secs(3);

/// How the registration stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum RegistrationStatus {
    /// The key is there, in this state.
    Registered(NodeState),
    /// The key is not known to be there: the coordinator is away, or has lost it. It is being tried again.
    Unknown,
    /// Another process holds the name.
    NameHeld,
}

/// Why a node could not register.
#[derive(Debug, thiserror::Error)]
pub enum RegistrationError {
    /// Another process lives under this name.
    #[error(
        "cluster.node_name: {name} is taken by a living node at {holder} (incarnation {incarnation:x}). Give this node another name, or stop the other; a node that died frees its name when its lease ends"
    )]
    NameHeld {
        /// The name.
        name: String,
        /// Where the other listens.
        holder: String,
        /// The other's incarnation.
        incarnation: u64,
    },
    /// The coordinator did not take it.
    #[error(
        "the node could not be registered (placement.endpoints): {0}. Where etcd controls access, the certificate in placement.tls must be for this cluster.node_name (`hearth admin etcd-roles`)"
    )]
    Coordinator(#[from] CoordinatorError),
}

struct Shared {
    coordinator: Arc<dyn Coordinator>,
    key: String,
    ttl: Duration,
    wanted: watch::Sender<NodeRecord>,
    status: watch::Sender<RegistrationStatus>,
    held: tokio::sync::Mutex<Held>,
    wake: Notify,
}

/// What is known of the key. Only the holder of the lock writes the key.
#[derive(Default)]
struct Held {
    lease: Option<LeaseId>,
    revision: Option<i64>,
    state: Option<NodeState>,
    was_registered: bool,
}

/// A registered node. Dropping it stops the renewal, so that the lease ends; [`Self::leave`] is the polite way.
pub struct Registration {
    shared: Arc<Shared>,
    stop: CancellationToken,
    tasks: TaskTracker,
}

impl Drop for Registration {
    fn drop(&mut self) {
        self.stop.cancel();
    }
}

impl Registration {
    /// Registers, waiting for the name to become free for about as long as a lease lasts.
    ///
    /// # Errors
    /// [`RegistrationError`].
    pub async fn start(
        coordinator: Arc<dyn Coordinator>,
        prefix: &str,
        record: NodeRecord,
        ttl: Duration,
    ) -> Result<Self, RegistrationError> {
        let shared = Arc::new(Shared {
            coordinator,
            key: format!("{prefix}/nodes/{}", record.name),
            ttl,
            wanted: watch::Sender::new(record),
            status: watch::Sender::new(RegistrationStatus::Unknown),
            held: tokio::sync::Mutex::default(),
            wake: Notify::new(),
        });
        let give_up = Instant::now() + ttl + MARGIN;
        loop {
            match shared.ensure().await {
                Ok(()) => break,
                // Another's key, by a certificate that is not for it: waiting changes nothing.
                Err(error @ RegistrationError::Coordinator(CoordinatorError::Refused { .. })) => return Err(error),
                Err(error) if Instant::now() >= give_up => return Err(error),
                Err(error) => {
                    tracing::warn!(%error, "not registered yet");
                    sleep(Duration::from_millis(250)).await;
                }
            }
        }
        let (stop, tasks) = (CancellationToken::new(), TaskTracker::new());
        let (task, token) = (shared.clone(), stop.clone());
        tasks.spawn(async move {
            tokio::select! {
                // Cut off in the middle of a write, the key is as after a crash: the lease ends it.
                () = token.cancelled() => {}
                () = task.renew() => {}
            }
        });
        tasks.close();
        Ok(Self { shared, stop, tasks })
    }

    /// How it stands.
    #[must_use]
    pub fn status(&self) -> watch::Receiver<RegistrationStatus> {
        self.shared.status.subscribe()
    }

    /// Says the state to the cluster. When the coordinator is away it is said as soon as it is back.
    ///
    /// # Errors
    /// [`RegistrationError`] when it could not be said now.
    pub async fn set_state(&self, state: NodeState) -> Result<(), RegistrationError> {
        self.shared.wanted.send_modify(|record| record.state = state);
        let result = self.shared.ensure().await;
        self.shared.wake.notify_one();
        result
    }

    /// Deletes the key. A node that drained leaves at once; otherwise the state is said first, so that nobody suspects.
    pub async fn leave(self) {
        let leaving = async {
            if let Err(error) = self.set_state(NodeState::Draining).await {
                tracing::warn!(%error, "leaving without having said so");
            }
            self.stop.cancel();
            self.tasks.wait().await;
            let held = std::mem::take(&mut *self.shared.held.lock().await);
            if let Some(lease) = held.lease
                && let Err(error) = self.shared.coordinator.revoke(lease).await
            {
                tracing::warn!(%error, "the lease ends by itself");
            }
        };
        if timeout(LEAVE_DEADLINE, leaving).await.is_err() {
            tracing::warn!("the coordinator took no note; the lease ends by itself");
        }
    }
}

impl Shared {
    /// Renews at a third of the lease, or when woken, for ever.
    async fn renew(&self) {
        loop {
            let pause = if matches!(*self.status.borrow(), RegistrationStatus::Registered(_)) {
                self.ttl / 3
            } else {
                (self.ttl / 10).max(Duration::from_millis(200))
            };
            tokio::select! {
                () = sleep(pause) => {}
                () = self.wake.notified() => {}
            }
            if let Err(error) = self.ensure().await {
                match error {
                    RegistrationError::NameHeld { .. } => tracing::error!(%error, "another node took this node's name"),
                    RegistrationError::Coordinator(error) => tracing::warn!(%error, "the registration was not renewed"),
                }
            }
        }
    }

    /// Makes the key what it should be: a living lease, our record, the wanted state.
    async fn ensure(&self) -> Result<(), RegistrationError> {
        let mut held = self.held.lock().await;
        let result = self.ensure_held(&mut held).await;
        let status = match (&result, held.state) {
            (Ok(()), Some(state)) => RegistrationStatus::Registered(state),
            (Err(RegistrationError::NameHeld { .. }), _) => RegistrationStatus::NameHeld,
            _ => RegistrationStatus::Unknown,
        };
        drop(held);
        self.status.send_if_modified(|known| std::mem::replace(known, status) != status);
        result
    }

    async fn ensure_held(&self, held: &mut Held) -> Result<(), RegistrationError> {
        if let Some(lease) = held.lease {
            match self.coordinator.keep_alive(lease).await {
                Ok(_) => {}
                // Everything that the lease held is gone with it.
                Err(CoordinatorError::LeaseGone) => *held = Held { was_registered: held.was_registered, ..Held::default() },
                Err(error) => return Err(error.into()),
            }
        }
        let lease = match held.lease {
            Some(lease) => lease,
            None => *held.lease.insert(self.coordinator.grant(self.ttl).await?),
        };
        let wanted = self.wanted.borrow().clone();
        let found = self.coordinator.get(&self.key).await?;
        let precondition = match &found {
            None => Precondition::Absent,
            Some(item) if Some(item.mod_revision) == held.revision && held.state == Some(wanted.state) => return Ok(()),
            Some(item) => {
                self.check_holder(&wanted, &item.value, held.was_registered)?;
                Precondition::ModRevision(item.mod_revision)
            }
        };
        if found.is_none() && held.was_registered {
            tracing::warn!(key = self.key, "the key was gone while the node lives; it is put again");
        }
        let revision = self.coordinator.put(&self.key, wanted.encode(), precondition, Some(lease)).await?;
        held.revision = Some(revision);
        held.state = Some(wanted.state);
        held.was_registered = true;
        Ok(())
    }

    /// Our own record, garbage, and the record of a process that cannot live any more may be replaced.
    fn check_holder(&self, wanted: &NodeRecord, found: &[u8], was_registered: bool) -> Result<(), RegistrationError> {
        let Ok(found) = NodeRecord::decode(wanted.name.as_str(), found) else {
            tracing::error!(key = self.key, "garbage under this node's key is replaced");
            return Ok(());
        };
        // Who listens on an address that another had knows that the other is dead. Only at the start: two living
        // processes that claim one address must not take turns.
        let has_its_place = found.data_addr == wanted.data_addr && found.control_addr == wanted.control_addr;
        if found.incarnation == wanted.incarnation || (has_its_place && !was_registered) {
            return Ok(());
        }
        let name = wanted.name.to_string();
        Err(RegistrationError::NameHeld { name, holder: found.data_addr.to_string(), incarnation: found.incarnation })
    }
}
