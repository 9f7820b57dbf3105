//! How a role finds the others: etcd for the roles of a cluster, in process for a machine by itself.

use crate::config::{Role, Settings};
use anyhow::{Context, Result};
use hearth_node::cluster;
use hearth_placement::{
    self as placement, ControlTls, Coordinator, Leader, LeaderConfig, Notices, TableWatch, control::ControlCalls,
};
use std::{path::Path, sync::Arc, time::Duration};
use tokio_util::sync::CancellationToken;

/// How long the planner waits for one node to say what it carries.
const STATS_TIMEOUT: Duration = Duration::from_secs(2);

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
        let table = TableWatch::start(Arc::clone(&coordinator), prefix, settings.table.clone(), kept).await?;
        let notices = Notices::new(Arc::clone(&coordinator), prefix);
        Ok(Self { coordinator, table, notices })
    }

    /// Stands for election among the routers, and plans when elected, until told to stop.
    ///
    /// # Errors
    /// When the certificates for control calls cannot be read.
    pub fn planner(&self, settings: &Settings, stop: CancellationToken) -> Result<impl Future<Output = ()> + Send + 'static> {
        let tls = settings.router.nodes_tls.as_ref().map(|files| {
            let ca = files.ca.clone().context("router.nodes_tls.ca is missing")?;
            let read = ControlTls::read(&ca, &files.cert, &files.key, cluster::ROLE);
            read.map_err(|(path, source)| anyhow::Error::new(source).context(format!("router.nodes_tls: {}", path.display())))
        });
        let calls = Arc::new(ControlCalls::new(tls.transpose()?, STATS_TIMEOUT));
        let name = format!("{}:{}", rustix::system::uname().nodename().to_string_lossy(), std::process::id());
        let prefix = settings.placement.prefix();
        let config = LeaderConfig { ring: settings.table.ring, ..settings.leader.clone() };
        let leader = Leader::new(Arc::clone(&self.coordinator), prefix, &name, calls, config);
        Ok(leader.run(stop))
    }

    /// A node's place among others; none on a machine by itself.
    ///
    /// # Errors
    /// When its name is none.
    pub fn link(&self, settings: &Settings) -> Result<Option<cluster::Link>> {
        if matches!(settings.placement, placement::Config::Local {}) {
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
