//! `hearth loadtest`: hands the command line over to the load generator, and its ending to the shell. Nothing of it happens here.

use anyhow::Result;
use std::process::ExitCode;

/// Runs the tool. Its errors have exit codes of their own, which say more than those of the client commands, so that they are told here.
pub async fn run(args: hearth_loadtest::Args) -> Result<ExitCode> {
    match hearth_loadtest::run(args).await {
        Ok(ending) => Ok(ending.into()),
        Err(error) => {
            eprintln!("hearth: {error:#}");
            Ok(ExitCode::from(hearth_loadtest::exit_code(&error)))
        }
    }
}
