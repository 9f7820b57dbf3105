//! `hearth admin`: what an operator does on the backends themselves, without a running Hearth; certificates, etcd's
//! access control and pins.

mod aws;
mod certs;
mod etcd;

use crate::config::{self, Flags, Role, Settings};
use anyhow::{Context, Result};
use clap::{Args, Subcommand};
use std::path::PathBuf;

/// Work on the backends.
#[derive(Subcommand)]
pub enum Command {
    /// Make table, bucket and queues for development, as the configuration names them; refused where one exists.
    InitAws(aws::InitArgs),
    /// Make certificates for the connections between routers, nodes and etcd, with an authority of their own.
    Certs(certs::Certs),
    /// Have etcd let each certificate do only what its holder needs: a node writes its own key, a router the plan.
    EtcdRoles(etcd::Roles),
    /// Have a container run on certain nodes, whatever the load is.
    Pin(etcd::Pin),
    /// Take a pin away.
    Unpin(etcd::Unpin),
    /// Make an operator's token directly in the store, as for the first login to a cluster.
    Token(TokenArgs),
}

/// Where the configuration is.
#[derive(Args)]
pub struct ConfigArgs {
    /// Configuration file (TOML); the environment (HEARTH_SECTION__KEY) goes over it.
    #[arg(long)]
    config: Option<PathBuf>,
}

impl ConfigArgs {
    fn load(self) -> Result<Settings> {
        // Of all roles the one that asks least: only stores are used, and a node's name and address come from its machine's environment.
        Ok(config::load(Flags::of_file(self.config), Role::Builder)?.settings)
    }
}

#[derive(Args)]
pub struct TokenArgs {
    #[command(flatten)]
    config: ConfigArgs,
    /// Where the token is written (mode 0600). When the file is there, its token is only checked.
    #[arg(long)]
    file: PathBuf,
}

impl Command {
    /// Does it.
    pub async fn run(self) -> Result<()> {
        match self {
            Self::InitAws(args) => aws::init(args).await,
            Self::Certs(certs) => certs.run(),
            Self::EtcdRoles(roles) => roles.run().await,
            Self::Pin(pin) => pin.run().await,
            Self::Unpin(unpin) => unpin.run().await,
            Self::Token(args) => token(args.config.load()?, &args.file).await,
        }
    }
}

async fn token(settings: Settings, file: &std::path::Path) -> Result<()> {
    let store = settings.store.unwrap_or_else(|| hearth_store::Config::embedded(&settings.data_dir));
    let stores = hearth_store::open(&store).await.context("opening the store")?;
    hearth_node::manage::bootstrap_admin_token(&*stores.functions, file).await?;
    eprintln!("admin token in {}", file.display());
    Ok(())
}
