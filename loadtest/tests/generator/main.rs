//! The load generator against stub servers whose behaviour is known exactly: what it reports must be that behaviour. Everything runs on
//! loopback; no platform is needed.

mod accuracy;
mod failures;
mod page;
mod platform;
mod stub;
mod usage;

use clap::Parser as _;
use hearth_loadtest::{Ending, results::Report};
use std::path::Path;

#[derive(Debug, clap::Parser)]
struct Cli {
    #[command(flatten)]
    args: hearth_loadtest::Args,
}

/// Runs the tool as its command line does.
async fn run(words: &[&str]) -> anyhow::Result<Ending> {
    let args = Cli::try_parse_from([&["loadtest"], words].concat())?.args;
    hearth_loadtest::run(args).await
}

/// The same, for a list of URLs, each called in turn at even distances; gives the result too.
async fn call_urls(dir: &Path, urls: &[String], more: &[&str]) -> (Ending, Report) {
    let (list, json) = (dir.join("urls"), dir.join("result.json"));
    std::fs::write(&list, urls.join("\n")).expect("writing the list");
    let (list, json_flag) = (list.display().to_string(), format!("--json={}", json.display()));
    let words = [&["--url-list", &list, &json_flag, "--skew", "each", "--arrivals", "constant", "--quiet"], more].concat();
    let ending = run(&words).await.expect("a run");
    (ending, Report::read(&json).expect("the result"))
}
