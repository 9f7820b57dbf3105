//! One configuration: defaults, then the file, then the environment (`HEARTH_SECTION__KEY`), then flags. Unknown keys are refused, and
//! what contradicts itself is refused before anything is touched.

use anyhow::{Context, Result, bail};
use clap::Args;
use figment::{
    Figment,
    providers::{Env, Format, Serialized, Toml},
};
use serde::{Deserialize, Serialize};
use std::{net::SocketAddr, path::PathBuf, time::Duration};

/// Flags of the roles; each is also a key of the configuration.
#[derive(Args, Debug, Default)]
pub struct Flags {
    /// Configuration file (TOML).
    #[arg(long)]
    config: Option<PathBuf>,
    /// Where functions and the management API are served.
    #[arg(long)]
    listen: Option<SocketAddr>,
    /// Where /healthz, /readyz and /metrics are served.
    #[arg(long)]
    ops_listen: Option<SocketAddr>,
    /// Where this process keeps its files.
    #[arg(long)]
    data_dir: Option<PathBuf>,
    /// Containers that wait, claimed by nobody.
    #[arg(long)]
    pool_size: Option<usize>,
    /// Destroy containers at the end instead of leaving them for the next process.
    #[arg(long, env = "HEARTH_DESTROY_CONTAINERS")]
    destroy_containers: bool,
    /// Write the addresses, once they serve, as JSON to this file.
    #[arg(long)]
    announce: Option<PathBuf>,
}

impl Flags {
    /// Only a file, if any.
    pub fn of_file(config: Option<PathBuf>) -> Self {
        Self { config, ..Self::default() }
    }
}

/// Which parts run in this process.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Role {
    /// All of them, on this machine alone.
    Up,
    /// The public edge of a cluster.
    Router,
    /// Proxy, management API, containers.
    Node,
    /// npm modules.
    Builder,
}

/// The file and the environment.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Settings {
    /// Where this process keeps its files.
    pub data_dir: PathBuf,
    /// How long requests may go on when this process leaves.
    #[serde(with = "humantime_serde")]
    pub grace: Duration,
    /// Durable state; where absent, embedded below the data directory.
    #[serde(default)]
    pub store: Option<hearth_store::Config>,
    /// Containers.
    #[serde(default)]
    pub docker: hearth_sandbox::docker::Config,
    /// The npm registry.
    #[serde(default)]
    pub registry: hearth_registry::Config,
    /// The node.
    #[serde(default)]
    pub node: hearth_node::Config,
    /// The builder.
    #[serde(default)]
    pub builder: hearth_builder::Config,
    /// Membership, routing table and news of changes.
    #[serde(default)]
    pub placement: hearth_placement::Config,
    /// How the routing table is kept; `ring` must be the same in the whole cluster.
    #[serde(default)]
    pub table: hearth_placement::WatchConfig,
    /// How the leader plans; the same for all routers, since any may lead.
    #[serde(default)]
    pub leader: hearth_placement::LeaderConfig,
    /// A node's place in the cluster.
    #[serde(default)]
    pub cluster: hearth_node::cluster::Config,
    /// The router.
    #[serde(default)]
    pub router: hearth_router::Config,
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            data_dir: PathBuf::from(".hearth"),
            grace: Duration::from_secs(30),
            store: None,
            docker: Default::default(),
            registry: Default::default(),
            node: Default::default(),
            builder: Default::default(),
            placement: Default::default(),
            table: Default::default(),
            leader: Default::default(),
            cluster: Default::default(),
            router: Default::default(),
        }
    }
}

/// What a process runs with.
pub struct Config {
    /// Which parts.
    pub role: Role,
    /// The settings, merged and checked.
    pub settings: Settings,
    /// Leave nothing behind at the end.
    pub destroy_containers: bool,
    /// Where to say that it serves.
    pub announce: Option<PathBuf>,
}

/// Environment variables of ours that are no keys of the configuration.
const NOT_KEYS: [&str; 6] = ["log", "log_format", "url", "token", "destroy_containers", "image_cache"];

/// Merges and checks.
pub fn load(flags: Flags, role: Role) -> Result<Config> {
    let mut figment = Figment::from(Serialized::defaults(Settings::default()));
    if let Some(file) = &flags.config {
        if !file.exists() {
            bail!("--config {}: there is no such file", file.display());
        }
        figment = figment.merge(Toml::file_exact(file));
    }
    let environment = Env::prefixed("HEARTH_").ignore(&NOT_KEYS).split("__");
    let mut settings: Settings = figment.merge(environment).extract().context("the configuration is not valid")?;
    let (listen, ops_listen) = match role {
        Role::Router => (&mut settings.router.listen, &mut settings.router.ops_listen),
        // A builder serves nothing else.
        Role::Builder => (&mut settings.node.listen, &mut settings.builder.ops_listen),
        Role::Up | Role::Node => (&mut settings.node.listen, &mut settings.node.ops_listen),
    };
    *listen = flags.listen.unwrap_or(*listen);
    *ops_listen = flags.ops_listen.unwrap_or(*ops_listen);
    if let Some(dir) = flags.data_dir {
        settings.data_dir = dir;
    }
    if let Some(size) = flags.pool_size {
        settings.node.handler.pool_size = size;
    }
    check(&settings)?;
    check_cluster(&settings, role)?;
    Ok(Config { role, settings, destroy_containers: flags.destroy_containers, announce: flags.announce })
}

fn check(settings: &Settings) -> Result<()> {
    let handler = &settings.node.handler;
    if settings.node.listen == settings.node.ops_listen && settings.node.listen.port() != 0 {
        bail!("node.listen and node.ops_listen are both {}: metrics must not be where clients are", settings.node.listen);
    }
    if handler.pool_size as u64 >= u64::from(handler.containers_max) {
        bail!("node.handler.pool_size ({}) leaves no room below containers_max ({})", handler.pool_size, handler.containers_max);
    }
    if handler.freeze_after > handler.destroy_after {
        bail!("node.handler.freeze_after is longer than destroy_after: containers would be destroyed before they are frozen");
    }
    settings.docker.validate().context("section docker")?;
    settings.table.validate().map_err(anyhow::Error::msg)?;
    settings.leader.validate().map_err(anyhow::Error::msg)?;
    if let Some(store) = &settings.store {
        store.validate()?;
    }
    Ok(())
}

/// What a role needs of its cluster, and what would split one.
fn check_cluster(settings: &Settings, role: Role) -> Result<()> {
    let cluster = &settings.cluster;
    let is_shared = !matches!(settings.placement, hearth_placement::Config::Local {});
    match role {
        Role::Up if is_shared => bail!(
            "placement.backend is etcd, but `hearth up` is a machine by itself: run `hearth node` and `hearth router`, or take section \
             placement out"
        ),
        Role::Router if !is_shared => bail!(
            "a router finds its nodes through etcd: set placement.backend = \"etcd\" and placement.endpoints = [\"http://...:2379\"]"
        ),
        Role::Node if is_shared && cluster.node_name.is_none() => {
            bail!("cluster.node_name is not set: give this node a name of its own ([a-z0-9-], the same after a restart)")
        }
        Role::Node if is_shared && settings.store.is_none() => bail!(
            "placement.backend is etcd, but section store is absent, so that other nodes would not see this node's functions: set store \
             (DynamoDB, S3, SQS) to what all nodes share"
        ),
        Role::Node if !is_shared && cluster.node_name.is_some() => bail!(
            "cluster.node_name is set, but placement.backend is local: set placement.backend = \"etcd\" with its endpoints, or take \
             node_name out"
        ),
        _ => {}
    }
    if role == Role::Node && is_shared {
        if settings.node.listen.ip().is_unspecified() && cluster.advertise.is_none() {
            bail!(
                "node.listen is {}, which routers cannot dial: set cluster.advertise to this node's address",
                settings.node.listen
            );
        }
        if cluster.control_listen.ip().is_unspecified() && cluster.control_advertise.is_none() {
            bail!(
                "cluster.control_listen is {}, which other nodes cannot dial: set cluster.control_advertise",
                cluster.control_listen
            );
        }
        if !cluster.control_listen.ip().is_loopback() && cluster.tls.is_none() {
            bail!(
                "cluster.control_listen is {}, where others than this machine reach it, without cluster.tls: control calls end nodes and \
                 show logs; `hearth admin certs` makes certificates",
                cluster.control_listen
            );
        }
        if cluster.capacity == 0 {
            bail!("cluster.capacity is 0: such a node would get no containers; `hearth drain` takes a node out");
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_would_split_a_cluster_is_refused_with_the_remedy() {
        let etcd = "[placement]\nbackend = \"etcd\"\nendpoints = [\"http://127.0.0.1:2379\"]\n";
        let store = "[store.records]\nbackend = \"sqlite\"\npath = \"a\"\n[store.artifacts]\nbackend = \"directory\"\npath = \"b\"\n\
                     [store.keys]\nbackend = \"file\"\npath = \"c\"\n";
        let parse = |text: &str| -> Settings {
            Figment::from(Serialized::defaults(Settings::default())).merge(Toml::string(text)).extract().unwrap()
        };
        let refused = |role: Role, text: &str, remedy: &str| {
            let error = check_cluster(&parse(text), role).unwrap_err().to_string();
            assert!(error.contains(remedy), "{role:?} {text}: {error}");
        };
        refused(Role::Up, etcd, "hearth node");
        refused(Role::Router, "", "placement.endpoints");
        refused(Role::Node, &format!("{etcd}{store}"), "cluster.node_name");
        let named = format!("{etcd}[cluster]\nnode_name = \"a\"\n");
        refused(Role::Node, &named, "section store");
        refused(Role::Node, "[cluster]\nnode_name = \"a\"\n", "placement.backend");
        refused(Role::Node, &format!("{named}control_listen = \"10.0.0.1:1\"\n{store}"), "cluster.tls");
        refused(Role::Node, &format!("{named}capacity = 0\n{store}"), "capacity");
        refused(Role::Node, &format!("{named}{store}[node]\nlisten = \"0.0.0.0:1\"\n"), "cluster.advertise");
        check_cluster(&parse(&format!("{named}{store}")), Role::Node).unwrap();
        check_cluster(&parse(etcd), Role::Router).unwrap();
        check_cluster(&parse(""), Role::Up).unwrap();
        check_cluster(&parse(""), Role::Node).unwrap();
    }

    #[test]
    fn the_defaults_are_valid_and_contradictions_are_not() {
        check(&Settings::default()).unwrap();
        let mut settings = Settings::default();
        settings.node.ops_listen = settings.node.listen;
        assert!(check(&settings).unwrap_err().to_string().contains("ops_listen"));
        let mut settings = Settings::default();
        settings.node.handler.pool_size = 5_000;
        assert!(check(&settings).is_err());
    }

    #[test]
    fn unknown_keys_are_refused_by_name() {
        let parsed: Result<Settings, _> =
            Figment::from(Serialized::defaults(Settings::default())).merge(Toml::string("[node]\nlissen = 1")).extract();
        assert!(parsed.unwrap_err().to_string().contains("lissen"));
    }

    /// The keys of a value, with those of the tables in it, as paths.
    fn tables(value: &serde_json::Value, at: &str, found: &mut Vec<String>) {
        if let Some(object) = value.as_object() {
            found.push(at.to_owned());
            for (key, value) in object {
                tables(value, &if at.is_empty() { key.clone() } else { format!("{at}.{key}") }, found);
            }
        }
    }

    #[test]
    fn an_unknown_key_is_refused_in_every_section() {
        let mut sections = Vec::new();
        tables(&serde_json::to_value(Settings::default()).unwrap(), "", &mut sections);
        assert!(sections.len() > 8, "{sections:?}");
        // Of the operator's own naming: classes and the like.
        for section in sections.iter().filter(|s| !s.ends_with("classes")) {
            let line = if section.is_empty() { "no_such_key = 1\n".to_owned() } else { format!("[{section}]\nno_such_key = 1\n") };
            let parsed: Result<Settings, _> =
                Figment::from(Serialized::defaults(Settings::default())).merge(Toml::string(&line)).extract();
            assert!(parsed.is_err(), "{section} takes any key");
        }
    }

    proptest::proptest! {
        /// Text that looks like a configuration is one, or an error that a person can read; never a panic.
        #[test]
        fn any_text_is_a_configuration_or_an_error(
            text in "(\\[(store|docker|node|router|placement|cluster|registry|builder)(\\.[a-z]{1,8})?\\]\n|[a-z_]{1,12} = ([-0-9e.]{1,9}|\"[ -~]{0,12}\"|true|\\[\\]|\\{\\})\n|.{0,20}\n){0,8}",
        ) {
            let parsed: Result<Settings, _> = Figment::from(Serialized::defaults(Settings::default())).merge(Toml::string(&text)).extract();
            match parsed {
                Ok(settings) => { let _ = check(&settings); let _ = check_cluster(&settings, Role::Node); }
                Err(error) => proptest::prop_assert!(!error.to_string().is_empty()),
            }
        }
    }
}
