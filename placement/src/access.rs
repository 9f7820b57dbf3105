//! Who may write what in etcd: users are the common names of certificates (`hearth admin certs`), and each gets a role of its own name with
//! the least that it needs. Everybody of the cluster reads everything below the prefix, since everybody keeps the table.
//!
//! A node writes its own key and news; what routes (the plan, the leader's key) it cannot touch. Who holds a stolen node's certificate can
//! therefore be that node and no other, and can move nobody's containers. A group's certificate, for machines that come and go under one
//! certificate, is worth less: it can be any node.

use crate::{config::EtcdConfig, coordinator::etcd};
use etcd_client::{AuthClient, Error, Permission, PermissionType, UserAddOptions};
use std::{collections::BTreeSet, time::Duration};
use tokio::time::timeout;

/// etcd's own role that may do everything, and the user that etcd insists on before it controls access.
const ROOT: &str = "root";

/// What the holder of a certificate is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Holder {
    /// One node, by its `cluster.node_name`.
    Node,
    /// Nodes that share one certificate.
    NodeGroup,
    /// A router, which may be elected to plan.
    Router,
    /// A builder.
    Builder,
    /// A person or program that may do everything.
    Operator,
    /// A member of etcd, whose own tools (snapshots) need everything.
    Member,
}

/// One holder of a certificate.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Grant {
    /// What it is.
    pub holder: Holder,
    /// The name that `hearth admin certs` was given.
    pub name: String,
}

/// A key, or all that begins with it.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Right {
    /// The key.
    pub key: String,
    /// Whether everything below it is meant.
    pub below: bool,
    /// Whether it may be written, too.
    pub write: bool,
}

impl Grant {
    /// The user in etcd: the certificate's common name.
    #[must_use]
    pub fn user(&self) -> String {
        let role = match self.holder {
            Holder::Node | Holder::NodeGroup => "node",
            Holder::Router => "router",
            Holder::Builder | Holder::Operator => "client",
            Holder::Member => "etcd",
        };
        format!("{role}-{}", self.name)
    }

    /// What it may do below `prefix`; `None` stands for everything.
    #[must_use]
    pub fn rights(&self, prefix: &str) -> Option<BTreeSet<Right>> {
        let write = |key: &str, below| Right { key: format!("{prefix}/{key}"), below, write: true };
        let news = write("changes/", true);
        let writes = match self.holder {
            Holder::Node => vec![write(&format!("nodes/{}", self.name), false), news],
            Holder::NodeGroup => vec![write("nodes/", true), news],
            Holder::Router => vec![write("plan/", true), write("leader", false)],
            Holder::Builder => vec![news],
            Holder::Operator | Holder::Member => return None,
        };
        let read = Right { key: format!("{prefix}/"), below: true, write: false };
        Some(writes.into_iter().chain([read]).collect())
    }
}

/// Why access could not be set.
#[derive(Debug, thiserror::Error)]
pub enum AccessError {
    /// There is no connection.
    #[error(transparent)]
    Connect(#[from] crate::ConnectError),
    /// etcd did not do it.
    #[error("etcd: {attempt}: {reason}")]
    Call {
        /// What was attempted.
        attempt: String,
        /// Its words.
        reason: String,
    },
    /// Nobody could change anything afterwards.
    #[error(
        "no operator: once etcd controls access nobody else can change it; name one whose certificate you hold (--operator NAME)"
    )]
    NoOperator,
}

/// Makes users and roles, or brings them to what is wanted, and then has etcd control access. Others are left as they are.
///
/// # Errors
/// [`AccessError`]; done again it goes on where it stopped.
pub async fn apply(config: &EtcdConfig, grants: &[Grant], enable: bool) -> Result<(), AccessError> {
    let client = etcd::connect(config).await?;
    let mut auth = Auth { client: client.auth_client(), deadline: config.deadline };
    let is_root = |grant: &Grant| grant.holder == Holder::Operator;
    let users = auth.users().await?;
    if enable && !grants.iter().any(is_root) && !auth.has_operator(&users).await? {
        return Err(AccessError::NoOperator);
    }
    for grant in grants {
        auth.grant(grant, &config.prefix, users.contains(&grant.user())).await?;
    }
    if enable {
        if !users.contains(ROOT) {
            auth.add_user(ROOT).await?;
        }
        auth.give_role(ROOT, ROOT).await?;
        let call = auth.client.auth_enable();
        within(auth.deadline, "enabling access control", call).await?;
    }
    Ok(())
}

/// Takes a user and its role away: a certificate that was stolen opens nothing any more.
///
/// # Errors
/// [`AccessError`].
pub async fn remove(config: &EtcdConfig, user: &str) -> Result<(), AccessError> {
    let client = etcd::connect(config).await?;
    let mut auth = Auth { client: client.auth_client(), deadline: config.deadline };
    let call = auth.client.user_delete(user);
    within(auth.deadline, &format!("removing user {user}"), call).await?;
    if auth.roles().await?.contains(user) {
        let call = auth.client.role_delete(user);
        within(auth.deadline, &format!("removing role {user}"), call).await?;
    }
    Ok(())
}

async fn within<T>(deadline: Duration, attempt: &str, call: impl Future<Output = Result<T, Error>>) -> Result<T, AccessError> {
    let failed = |reason: String| AccessError::Call { attempt: attempt.to_owned(), reason };
    match timeout(deadline, call).await {
        Ok(Ok(value)) => Ok(value),
        Ok(Err(Error::GRpcStatus(status))) => Err(failed(status.message().to_owned())),
        Ok(Err(error)) => Err(failed(error.to_string())),
        Err(_) => Err(failed(format!("no answer within {deadline:?}"))),
    }
}

struct Auth {
    client: AuthClient,
    deadline: Duration,
}

impl Auth {
    async fn users(&mut self) -> Result<BTreeSet<String>, AccessError> {
        let answer = within(self.deadline, "listing users", self.client.user_list()).await?;
        Ok(answer.users().iter().cloned().collect())
    }

    async fn roles(&mut self) -> Result<BTreeSet<String>, AccessError> {
        let answer = within(self.deadline, "listing roles", self.client.role_list()).await?;
        Ok(answer.roles().iter().cloned().collect())
    }

    async fn roles_of(&mut self, user: &str) -> Result<Vec<String>, AccessError> {
        let answer = within(self.deadline, &format!("reading user {user}"), self.client.user_get(user)).await?;
        Ok(answer.roles().to_vec())
    }

    /// Whether some client's certificate may do everything already.
    async fn has_operator(&mut self, users: &BTreeSet<String>) -> Result<bool, AccessError> {
        for user in users.iter().filter(|user| user.starts_with("client-")) {
            if self.roles_of(user).await?.iter().any(|role| role == ROOT) {
                return Ok(true);
            }
        }
        Ok(false)
    }

    async fn add_user(&mut self, user: &str) -> Result<(), AccessError> {
        // Without a password only the certificate opens.
        let options = UserAddOptions::new().with_no_pwd();
        within(self.deadline, &format!("adding user {user}"), self.client.user_add(user, "", Some(options))).await.map(drop)
    }

    async fn give_role(&mut self, user: &str, role: &str) -> Result<(), AccessError> {
        if self.roles_of(user).await?.iter().any(|has| has == role) {
            return Ok(());
        }
        let attempt = format!("giving {user} the role {role}");
        within(self.deadline, &attempt, self.client.user_grant_role(user, role)).await.map(drop)
    }

    async fn grant(&mut self, grant: &Grant, prefix: &str, is_known: bool) -> Result<(), AccessError> {
        let user = grant.user();
        if !is_known {
            self.add_user(&user).await?;
        }
        let role = match grant.rights(prefix) {
            None => ROOT.to_owned(),
            Some(rights) => {
                self.role(&user, &rights).await?;
                user.clone()
            }
        };
        self.give_role(&user, &role).await?;
        // What it was before counts no more.
        for other in self.roles_of(&user).await?.into_iter().filter(|other| *other != role) {
            let attempt = format!("taking the role {other} from {user}");
            within(self.deadline, &attempt, self.client.user_revoke_role(user.as_str(), other)).await?;
        }
        Ok(())
    }

    /// Makes a role what it should be: what is missing is given before what is too much is taken.
    async fn role(&mut self, name: &str, wanted: &BTreeSet<Right>) -> Result<(), AccessError> {
        if !self.roles().await?.contains(name) {
            within(self.deadline, &format!("adding role {name}"), self.client.role_add(name)).await?;
        }
        let found = within(self.deadline, &format!("reading role {name}"), self.client.role_get(name)).await?.permissions();
        for right in wanted {
            let attempt = format!("giving {name} {}", right.key);
            within(self.deadline, &attempt, self.client.role_grant_permission(name, right.permission())).await?;
        }
        let range = |permission: &Permission| (permission.key().to_vec(), permission.range_end().to_vec());
        let ranges: Vec<_> = wanted.iter().map(|right| range(&right.permission())).collect();
        for permission in found.into_iter().filter(|permission| !ranges.contains(&range(permission))) {
            let (key, end) = range(&permission);
            let attempt = format!("taking {} from {name}", String::from_utf8_lossy(&key));
            let options = etcd_client::RoleRevokePermissionOptions::new().with_range_end(end);
            within(self.deadline, &attempt, self.client.role_revoke_permission(name, key, Some(options))).await?;
        }
        Ok(())
    }
}

impl Right {
    fn permission(&self) -> Permission {
        let kind = if self.write { PermissionType::Readwrite } else { PermissionType::Read };
        let permission = Permission::new(kind, self.key.as_str());
        // Written out, so that it can be compared with what etcd has.
        if self.below { permission.with_range_end(etcd::prefix_end(&self.key)) } else { permission }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn writable(holder: Holder) -> Vec<String> {
        let rights = Grant { holder, name: "a".into() }.rights("/hearth").unwrap();
        rights.into_iter().filter(|right| right.write).map(|r| format!("{}{}", r.key, if r.below { "*" } else { "" })).collect()
    }

    #[test]
    fn nobody_writes_more_than_its_own() {
        assert_eq!(writable(Holder::Node), ["/hearth/changes/*", "/hearth/nodes/a"]);
        assert_eq!(writable(Holder::NodeGroup), ["/hearth/changes/*", "/hearth/nodes/*"]);
        assert_eq!(writable(Holder::Router), ["/hearth/leader", "/hearth/plan/*"]);
        assert_eq!(writable(Holder::Builder), ["/hearth/changes/*"]);
        for holder in [Holder::Operator, Holder::Member] {
            assert_eq!(Grant { holder, name: "a".into() }.rights("/hearth"), None);
        }
        assert_eq!(Grant { holder: Holder::Operator, name: "ops".into() }.user(), "client-ops");
    }
}
