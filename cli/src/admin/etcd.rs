//! `hearth admin etcd-roles`, `pin` and `unpin`: what an operator does in etcd itself. The configuration is a router's, or any file whose
//! section `placement` names etcd.

use crate::config::{self, Flags, Role};
use anyhow::{Context, Result, bail};
use clap::Args;
use hearth_placement::{
    Config, EtcdConfig, NodeName,
    access::{self, Grant, Holder},
    connect, pin,
};
use std::path::PathBuf;

/// Where etcd is.
#[derive(Args)]
pub struct EtcdArgs {
    /// A router's configuration file (TOML); the environment (HEARTH_PLACEMENT__KEY) goes over it.
    #[arg(long)]
    config: Option<PathBuf>,
}

impl EtcdArgs {
    fn placement(self) -> Result<Config> {
        Ok(config::load(Flags::of_file(self.config), Role::Router)?.settings.placement)
    }

    fn etcd(self) -> Result<EtcdConfig> {
        match self.placement()? {
            Config::Etcd(etcd) => Ok(etcd),
            Config::Local {} => bail!("placement.backend is local: there is no etcd to work on"),
        }
    }
}

/// Arguments; each name is the one that `hearth admin certs` was given.
#[derive(Args)]
pub struct Roles {
    #[command(flatten)]
    etcd: EtcdArgs,
    /// A node with a certificate of its own: writes its own key and news.
    #[arg(long = "node", value_name = "NAME")]
    nodes: Vec<String>,
    /// Nodes that share a certificate: each may write every node's key.
    #[arg(long = "node-group", value_name = "NAME")]
    node_groups: Vec<String>,
    /// A router, or routers that share a certificate: writes the plan.
    #[arg(long = "router", value_name = "NAME")]
    routers: Vec<String>,
    /// A builder (`--client` of the certificates): writes news.
    #[arg(long = "builder", value_name = "NAME")]
    builders: Vec<String>,
    /// A member of etcd, for the tools on its machine: may do everything.
    #[arg(long = "etcd", value_name = "NAME")]
    members: Vec<String>,
    /// Whoever calls this command the next time (`--client` of the certificates): may do everything.
    #[arg(long = "operator", value_name = "NAME")]
    operators: Vec<String>,
    /// Take away a user, such as `node-a`, whose certificate was stolen or whose machine is gone.
    #[arg(long, value_name = "USER")]
    remove: Vec<String>,
    /// Only make users and roles; etcd goes on letting everybody in whom its authority has signed.
    #[arg(long)]
    no_enable: bool,
}

impl Roles {
    /// Makes users and roles and turns access control on.
    pub async fn run(self) -> Result<()> {
        let all = [
            (Holder::Node, &self.nodes),
            (Holder::NodeGroup, &self.node_groups),
            (Holder::Router, &self.routers),
            (Holder::Builder, &self.builders),
            (Holder::Member, &self.members),
            (Holder::Operator, &self.operators),
        ];
        let mut grants = Vec::new();
        for (holder, names) in all {
            for name in names {
                name.parse::<NodeName>().with_context(|| format!("{name:?} is no name of a certificate"))?;
                grants.push(Grant { holder, name: name.clone() });
            }
        }
        for (at, grant) in grants.iter().enumerate() {
            if grants[..at].iter().any(|before| before.user() == grant.user()) {
                bail!("{} is named twice: one certificate has one role", grant.user());
            }
        }
        if grants.is_empty() && self.remove.is_empty() {
            bail!("nobody is named: give --node, --node-group, --router, --builder, --etcd, --operator or --remove");
        }
        let etcd = self.etcd.etcd()?;
        if etcd.tls.as_ref().is_none_or(|tls| tls.cert.is_none()) {
            bail!("placement.tls.cert is missing: users are certificates here, and this command must have one, too");
        }
        if !grants.is_empty() {
            access::apply(&etcd, &grants, !self.no_enable).await?;
        }
        for grant in &grants {
            eprintln!("{}: {}", grant.user(), describe(grant, &etcd.prefix));
        }
        for user in &self.remove {
            access::remove(&etcd, user).await?;
            eprintln!("{user}: removed");
        }
        if self.no_enable {
            eprintln!("access is not controlled yet: the same command without --no-enable does it");
        }
        Ok(())
    }
}

fn describe(grant: &Grant, prefix: &str) -> String {
    let Some(rights) = grant.rights(prefix) else { return "everything".to_owned() };
    let said = rights.iter().map(|right| {
        let (verb, below) = (if right.write { "writes" } else { "reads" }, if right.below { "..." } else { "" });
        format!("{verb} {}{below}", right.key)
    });
    said.collect::<Vec<_>>().join(", ")
}

/// Arguments of `pin`.
#[derive(Args)]
pub struct Pin {
    #[command(flatten)]
    etcd: EtcdArgs,
    /// `tenant/container`.
    container: String,
    /// The nodes that it is to run on, the first first.
    #[arg(required = true)]
    nodes: Vec<NodeName>,
}

/// Arguments of `unpin`.
#[derive(Args)]
pub struct Unpin {
    #[command(flatten)]
    etcd: EtcdArgs,
    /// `tenant/container`.
    container: String,
}

impl Pin {
    /// Pins.
    pub async fn run(self) -> Result<()> {
        let path = self.container.parse().with_context(|| format!("{:?} is no tenant/container", self.container))?;
        let placement = self.etcd.placement()?;
        let coordinator = connect(&placement).await?;
        pin::pin(&*coordinator, placement.prefix(), &path, &self.nodes).await?;
        eprintln!("{path} runs on {}", self.nodes.iter().map(ToString::to_string).collect::<Vec<_>>().join(", "));
        Ok(())
    }
}

impl Unpin {
    /// Gives the container back to the ring and the planner.
    pub async fn run(self) -> Result<()> {
        let path = self.container.parse().with_context(|| format!("{:?} is no tenant/container", self.container))?;
        let placement = self.etcd.placement()?;
        let coordinator = connect(&placement).await?;
        if pin::unpin(&*coordinator, placement.prefix(), &path).await? {
            eprintln!("{path} is placed like any other");
        } else {
            eprintln!("{path} was not pinned");
        }
        Ok(())
    }
}
