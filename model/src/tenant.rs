//! A tenant: a customer of the SaaS, and what it may use.

use crate::{Egress, TenantName, Timestamp};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;

/// What a tenant may use at once. An operator sets it; the tenant cannot.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
#[serde(deny_unknown_fields, default)]
pub struct TenantLimits {
    /// Requests in flight on one node.
    pub concurrency: u32,
    /// Requests per second on one node, on average.
    pub rate_per_s: u32,
    /// Requests above the average that may come at once.
    pub burst: u32,
    /// Of its functions' answers, MiB per second on one node, all together; what is faster waits, for five seconds at most. A burst of 16 MiB
    /// passes at once. Of a container on several nodes each gives its share.
    pub answer_mb_per_s: u32,
    /// Functions that it may keep.
    pub functions_max: u32,
    /// Containers that it may keep.
    pub containers_max: u32,
    /// Memory that one of its containers may ask for, in MiB.
    pub memory_mb_max: u64,
    /// What its containers may reach.
    #[serde(deserialize_with = "crate::object::object")]
    pub egress: Egress,
    /// Builds of modules nobody has built before that it may ask one node for per hour.
    pub builds_per_hour: u32,
    /// OCI runtime of its containers, as `runsc`, among those that the operator has configured; none for the installation's own.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub oci_runtime: Option<String>,
}

impl Default for TenantLimits {
    fn default() -> Self {
        Self {
            concurrency: 2_000,
            rate_per_s: 20_000,
            burst: 20_000,
            answer_mb_per_s: 32,
            functions_max: 10_000,
            containers_max: 1_000,
            memory_mb_max: 1_024,
            egress: Egress::default(),
            builds_per_hour: 200,
            oci_runtime: None,
        }
    }
}

/// A customer of the SaaS.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Tenant {
    /// Its name, unique in the installation.
    pub name: TenantName,
    /// The operator's class that sets its limits; none where they are its own.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub class: Option<String>,
    /// What it may use, where it has no class.
    pub limits: TenantLimits,
    /// Grows by one with every change; the `ETag`.
    pub generation: u64,
    /// When it was created.
    pub created_at: Timestamp,
}

impl Tenant {
    /// A tenant with the default limits that is not stored yet.
    #[must_use]
    pub fn new(name: TenantName) -> Self {
        Self { name, class: None, limits: TenantLimits::default(), generation: 0, created_at: Timestamp(0) }
    }
}

/// An operator's classes of tenants, by name. A change of a class reaches its tenants as soon as nodes run with it.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Classes(pub BTreeMap<String, TenantLimits>);

impl Classes {
    /// Gives the tenant the limits of its class. A class that is not configured here (any more) means the default limits.
    #[must_use]
    pub fn apply(&self, mut tenant: Tenant) -> Tenant {
        if let Some(class) = &tenant.class {
            tenant.limits = self.0.get(class).cloned().unwrap_or_default();
        }
        tenant
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_class_sets_the_limits_of_its_tenants_alone() {
        let small = TenantLimits { concurrency: 5, ..TenantLimits::default() };
        let classes = Classes(BTreeMap::from([("small".to_owned(), small.clone())]));
        let own = TenantLimits { concurrency: 7, ..TenantLimits::default() };
        let tenant = |class: Option<&str>| Tenant {
            name: "acme".parse().unwrap(),
            class: class.map(str::to_owned),
            limits: own.clone(),
            generation: 1,
            created_at: Timestamp(0),
        };
        assert_eq!(classes.apply(tenant(Some("small"))).limits, small);
        assert_eq!(classes.apply(tenant(None)).limits, own);
        assert_eq!(classes.apply(tenant(Some("gone"))).limits, TenantLimits::default());
    }
}
