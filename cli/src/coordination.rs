//! How a role finds the others: etcd for the roles of a cluster, in process for a machine by itself.

use crate::config::{Role, Settings};
use anyhow::{Context, Result};
use hearth_node::cluster;
use hearth_placement::{self as placement, Coordinator, Notices, TableWatch, WatchConfig};
use std::{path::Path, sync::Arc};

/// Membership, routing table and news.
pub struct Coordination {
    coordinator: Arc<dyn Coordinator>,
    /// What routers see, fed in the background.
    pub table: TableWatch,
    /// News of changes.
    pub notices: Notices,
}

impl Coordination {
    /// Connects. A router may start while etcd is away, from the table that it has kept in its data directory; no other role may.
    ///
    /// # Errors
    /// When the backend cannot be reached, with its key and the remedy.
    pub async fn start(settings: &Settings, data_dir: &Path, role: Role) -> Result<Self> {
        let snapshot = data_dir.join("route-table.json");
        if let placement::Config::Etcd(etcd) = &settings.placement {
            etcd.validate()?;
        }
        let coordinator = match role {
            Role::Router if snapshot.exists() => placement::connect_lazy(&settings.placement).await,
            _ => placement::connect(&settings.placement).await,
        }?;
        let prefix = settings.placement.prefix();
        let kept = (role == Role::Router).then_some(snapshot);
        let table = TableWatch::start(Arc::clone(&coordinator), prefix, WatchConfig::default(), kept).await?;
        let notices = Notices::start(Arc::clone(&coordinator), prefix);
        Ok(Self { coordinator, table, notices })
    }

    /// A node's place among others; none on a machine by itself.
    ///
    /// # Errors
    /// When its name is none.
    pub fn link(&self, settings: &Settings) -> Result<Option<cluster::Link>> {
        if matches!(settings.placement, placement::Config::Local) {
            return Ok(None);
        }
        let config = settings.cluster.clone();
        let name = config.node_name.as_deref().context("cluster.node_name is not set")?.parse().context("cluster.node_name")?;
        Ok(Some(cluster::Link {
            config,
            name,
            prefix: settings.placement.prefix().to_owned(),
            coordinator: Arc::clone(&self.coordinator),
            table: self.table.clone(),
            notices: self.notices.clone(),
        }))
    }
}
