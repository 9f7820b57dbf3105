//! A tenant: a customer of the SaaS, and what it may use.

use crate::{TenantName, Timestamp};
use serde::{Deserialize, Serialize};

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
    /// Functions that it may keep.
    pub functions_max: u32,
    /// Containers that it may keep.
    pub containers_max: u32,
    /// Memory that one of its containers may ask for, in MiB.
    pub memory_mb_max: u64,
}

impl Default for TenantLimits {
    fn default() -> Self {
        Self {
            concurrency: 2_000,
            rate_per_s: 20_000,
            burst: 20_000,
            functions_max: 10_000,
            containers_max: 1_000,
            memory_mb_max: 1_024,
        }
    }
}

/// A customer of the SaaS.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Tenant {
    /// Its name, unique in the installation.
    pub name: TenantName,
    /// What it may use.
    pub limits: TenantLimits,
    /// Grows by one with every change; the `ETag`.
    pub generation: u64,
    /// When it was created.
    pub created_at: Timestamp,
}
