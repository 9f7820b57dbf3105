//! One leader at a time, mostly: a key under a lease, written only where it is absent.
//!
//! It is no lock. A leader whose lease ended may not know it yet, so everything that it writes carries its epoch and the
//! revision that it read; a later leader's writes make its own fail.

use crate::coordinator::{Coordinator, CoordinatorError, LeaseId, Precondition};
use std::{sync::Arc, time::Duration};

/// A leadership, until it is lost or given up.
pub struct Leadership {
    coordinator: Arc<dyn Coordinator>,
    key: String,
    lease: LeaseId,
    epoch: i64,
}

/// Tries once to become the leader; `None` when another is.
///
/// # Errors
/// Those of the coordinator.
pub async fn campaign(
    coordinator: &Arc<dyn Coordinator>,
    key: &str,
    name: &str,
    ttl: Duration,
) -> Result<Option<Leadership>, CoordinatorError> {
    if coordinator.get(key).await?.is_some() {
        return Ok(None);
    }
    let lease = coordinator.grant(ttl).await?;
    match coordinator.put(key, name.as_bytes().to_vec(), Precondition::Absent, Some(lease)).await {
        Ok(epoch) => Ok(Some(Leadership { coordinator: coordinator.clone(), key: key.to_owned(), lease, epoch })),
        Err(error) => {
            // Were the write to have happened without our knowing, this ends it too.
            coordinator.revoke(lease).await?;
            if matches!(error, CoordinatorError::Conflict { .. }) { Ok(None) } else { Err(error) }
        }
    }
}

impl Leadership {
    /// Grows from leader to leader: the revision at which it won.
    #[must_use]
    pub const fn epoch(&self) -> i64 {
        self.epoch
    }

    /// Renews, and sees that the key is still ours. False when the leadership is lost.
    ///
    /// # Errors
    /// Those of the coordinator; the caller stops leading when they last as long as the lease.
    pub async fn renew(&self) -> Result<bool, CoordinatorError> {
        match self.coordinator.keep_alive(self.lease).await {
            Ok(_) => {}
            Err(CoordinatorError::LeaseGone) => return Ok(false),
            Err(error) => return Err(error),
        }
        Ok(self.coordinator.get(&self.key).await?.is_some_and(|item| item.mod_revision == self.epoch))
    }

    /// Gives up, so that the next need not wait for the lease to end.
    ///
    /// # Errors
    /// Those of the coordinator.
    pub async fn resign(self) -> Result<(), CoordinatorError> {
        self.coordinator.revoke(self.lease).await
    }
}
