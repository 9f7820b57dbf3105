//! `hearth`: every role and the client commands in one binary. This file says what there is; `compose` builds a role out of its parts,
//! `client` speaks to a running one.

#![allow(clippy::print_stdout, clippy::print_stderr, reason = "a command line speaks to people")]

mod admin;
mod client;
mod compose;
mod config;
mod coordination;
mod doctor;
mod image;
mod loadtest;
mod runtime_files;

use anyhow::Result;
use clap::{Args, Parser, Subcommand};
use config::Flags;
use std::{path::PathBuf, process::ExitCode};
use tracing_subscriber::{EnvFilter, fmt, prelude::*};

#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

/// Self-hosted, multi-tenant serverless webhooks.
///
/// Exit codes: 0 done, 1 failed, 2 wrong usage, 3 not found, 4 not allowed, 5 the server cannot be reached.
#[derive(Parser)]
#[command(version, max_term_width = 100)]
struct Cli {
    #[command(subcommand)]
    command: Command,
    /// What to log, as `info` or `hearth_node=debug,info`.
    #[arg(long, env = "HEARTH_LOG", default_value = "info", global = true)]
    log: String,
    /// How to log.
    #[arg(long, env = "HEARTH_LOG_FORMAT", default_value = "text", global = true)]
    log_format: LogFormat,
}

#[derive(Clone, Copy, clap::ValueEnum)]
enum LogFormat {
    Text,
    Json,
}

#[derive(Subcommand)]
enum Command {
    /// Run everything in one process on embedded backends.
    Up(Flags),
    /// Run one router: the public edge of a cluster.
    Router(Flags),
    /// Run one node (proxy, management API, containers) on configured backends.
    Node(Flags),
    /// Run one builder (npm modules) on configured backends.
    Builder(Flags),
    /// Check whether this machine is fit to run untrusted code; ends with 1 where it is not.
    Doctor(doctor::Args),
    /// Make the container images, or say that they are there.
    Image(ImageArgs),
    Loadtest(Box<hearth_loadtest::Args>),
    /// What an operator does beside the running roles: resources for development, the first token, certificates.
    #[command(subcommand)]
    Admin(admin::Command),
    #[command(flatten)]
    Client(client::Command),
}

#[derive(Args)]
struct ImageArgs {
    /// Where assembled archives are kept.
    #[arg(long, env = "HEARTH_IMAGE_CACHE")]
    cache_dir: Option<PathBuf>,
}

fn main() -> ExitCode {
    let cli = Cli::parse();
    let filter = EnvFilter::try_new(&cli.log).unwrap_or_else(|_| EnvFilter::new("info"));
    let layer = match cli.log_format {
        LogFormat::Text => {
            let colours = std::io::IsTerminal::is_terminal(&std::io::stderr());
            fmt::layer().with_writer(std::io::stderr).with_target(false).with_ansi(colours).boxed()
        }
        LogFormat::Json => fmt::layer().json().with_writer(std::io::stderr).boxed(),
    };
    tracing_subscriber::registry().with(layer.with_filter(filter)).init();
    let is_client = matches!(cli.command, Command::Client(_));
    match run(cli.command) {
        Ok(code) => code,
        // Who reads the output has seen enough, as `head` does.
        Err(error)
            if is_client && error.downcast_ref().is_some_and(|e: &std::io::Error| e.kind() == std::io::ErrorKind::BrokenPipe) =>
        {
            ExitCode::SUCCESS
        }
        Err(error) => {
            // What it says may hold words of a function or of an npm module.
            eprintln!("hearth: {}", client::printable(&format!("{error:#}")));
            ExitCode::from(client::exit_code(&error))
        }
    }
}

fn run(command: Command) -> Result<ExitCode> {
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build()?;
    let result = runtime.block_on(async {
        match command {
            Command::Up(flags) => compose::run(config::load(flags, config::Role::Up)?).await.map(|()| ExitCode::SUCCESS),
            Command::Router(flags) => compose::run(config::load(flags, config::Role::Router)?).await.map(|()| ExitCode::SUCCESS),
            Command::Node(flags) => compose::run(config::load(flags, config::Role::Node)?).await.map(|()| ExitCode::SUCCESS),
            Command::Builder(flags) => compose::run(config::load(flags, config::Role::Builder)?).await.map(|()| ExitCode::SUCCESS),
            Command::Doctor(args) => doctor::run(args).await,
            Command::Image(args) => image::ensure(args.cache_dir).await.map(|()| ExitCode::SUCCESS),
            Command::Loadtest(args) => loadtest::run(*args).await,
            Command::Admin(command) => command.run().await.map(|()| ExitCode::SUCCESS),
            Command::Client(command) => command.run().await,
        }
    });
    // What still blocks a thread (a read of a terminal, a store that is closing) must not keep the process.
    runtime.shutdown_timeout(std::time::Duration::from_secs(2));
    result
}
