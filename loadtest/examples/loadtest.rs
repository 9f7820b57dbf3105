//! The load test as a program of its own, for working on it without the whole binary.

use clap::Parser as _;
use std::process::ExitCode;

#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

#[derive(clap::Parser)]
struct Cli {
    #[command(flatten)]
    args: hearth_loadtest::Args,
}

#[tokio::main]
#[allow(clippy::print_stderr)]
async fn main() -> ExitCode {
    match hearth_loadtest::run(Cli::parse().args).await {
        Ok(ending) => ending.into(),
        Err(error) => {
            eprintln!("loadtest: {error:#}");
            hearth_loadtest::exit_code(&error).into()
        }
    }
}
