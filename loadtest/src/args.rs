//! The command line of `hearth loadtest`.

use crate::{
    arrivals::Spacing,
    kinds::Mix,
    net::Http,
    pick::Skew,
    threshold::Threshold,
    units::{Rate, Span},
};
use std::path::PathBuf;

/// Show what the platform does under load.
///
/// Runs a scenario: makes its tenants, sends requests at the scenario's moments whatever the answers do, counts, and takes the tenants away again.
///
/// Exit codes: 0 done and all thresholds hold, 1 failed, 2 wrong usage, 4 not allowed, 5 the target cannot be reached, 10 a threshold does not hold, 11 the
/// results are void because the generator was the bottleneck, 130 interrupted.
#[derive(Debug, Clone, clap::Args)]
#[command(args_conflicts_with_subcommands = true, subcommand_negates_reqs = true)]
pub struct Args {
    /// Something else than running a scenario.
    #[command(subcommand)]
    pub command: Option<Command>,
    /// A scenario's name (see `list`), or a TOML file (with a slash, or ending in .toml).
    pub scenario: Option<String>,
    /// Where it goes.
    #[command(flatten)]
    pub target: TargetArgs,
    /// What is changed in the scenario.
    #[command(flatten)]
    pub change: ChangeArgs,
    /// How it is sent.
    #[command(flatten)]
    pub sending: SendingArgs,
    /// What is made of it.
    #[command(flatten)]
    pub output: OutputArgs,
}

/// Other things to do.
#[derive(Debug, Clone, clap::Subcommand)]
pub enum Command {
    /// List the scenarios, and the kinds of functions for --mix.
    List,
    /// Print a scenario, to be changed and given as a file.
    Show {
        /// Its name.
        scenario: String,
        /// List what its thresholds can name instead.
        #[arg(long)]
        metrics: bool,
    },
    /// Compare two results written by --json=FILE: the difference and its uncertainty.
    Compare {
        /// The first.
        a: PathBuf,
        /// The second.
        b: PathBuf,
        /// For programs.
        #[arg(long)]
        json: bool,
    },
    /// Make the page of --report from a result written by --json=FILE.
    Render {
        /// The result.
        result: PathBuf,
        /// The page.
        page: PathBuf,
    },
    /// Write a trace by seed, in the CSV form of the Azure Functions data set of 2019 and with its published distributions.
    Trace {
        /// The file.
        file: PathBuf,
        /// How many functions.
        #[arg(long, default_value_t = 1_000)]
        functions: usize,
        /// How many minutes, up to a day.
        #[arg(long, default_value_t = 1_440)]
        minutes: usize,
        /// The seed.
        #[arg(long, default_value_t = 1)]
        seed: u64,
    },
    /// Take away tenants that earlier runs left behind.
    Clean {
        /// The platform.
        #[command(flatten)]
        target: TargetArgs,
        /// How the tenants' names start.
        #[arg(long, default_value = "loadtest")]
        prefix: String,
    },
}

/// Where it goes.
#[derive(Debug, Clone, clap::Args)]
pub struct TargetArgs {
    /// The platform.
    #[arg(long, env = "HEARTH_URL", default_value = "http://127.0.0.1:8080")]
    pub url: String,
    /// An admin token; where absent, that of a local `hearth up` (.hearth/admin.token).
    #[arg(long, env = "HEARTH_TOKEN", hide_env_values = true)]
    pub token: Option<String>,
    /// Take any certificate.
    #[arg(long)]
    pub insecure: bool,
    /// Certificate authorities, as PEM, instead of the machine's.
    #[arg(long, value_name = "FILE", conflicts_with = "insecure")]
    pub ca: Option<PathBuf>,
}

/// What is changed in the scenario.
#[derive(Debug, Clone, clap::Args)]
pub struct ChangeArgs {
    /// Call these URLs (one a line, with a method before it where it is not GET) instead of making tenants; measures anything that speaks HTTP.
    #[arg(long, value_name = "FILE")]
    pub url_list: Option<PathBuf>,
    /// How many tenants.
    #[arg(long)]
    pub tenants: Option<u32>,
    /// Functions of each tenant.
    #[arg(long)]
    pub functions_per_tenant: Option<u32>,
    /// How calls are spread over tenants: uniform, zipf:1.1, trace:FILE, each.
    #[arg(long)]
    pub skew: Option<Skew>,
    /// Which functions, with their shares: hello=0.9,cpu=0.1.
    #[arg(long)]
    pub mix: Option<Mix>,
    /// Requests per second, in a scenario with one load; 2x is a multiple of the capacity.
    #[arg(long)]
    pub rate: Option<Rate>,
    /// Multiply all rates and burst sizes.
    #[arg(long, value_name = "FACTOR")]
    pub rate_scale: Option<f64>,
    /// How long, in a scenario with one load per stream.
    #[arg(long)]
    pub duration: Option<Span>,
    /// Multiply all lengths and moments.
    #[arg(long, value_name = "FACTOR")]
    pub time_scale: Option<f64>,
    /// How arrivals lie in time: constant or poisson.
    #[arg(long, value_parser = spacing)]
    pub arrivals: Option<Spacing>,
    /// What the rates given as 2x are multiples of, instead of measuring it.
    #[arg(long, value_name = "RATE")]
    pub capacity: Option<f64>,
    /// The trace that is replayed, as CSV.
    #[arg(long, value_name = "FILE")]
    pub trace: Option<PathBuf>,
    /// A command that is run at a moment: at=10s,name=kill,cmd=... (cmd last; it takes the rest). For a fault that the scenario names, `at` may be left out.
    #[arg(long, value_name = "at=TIME,name=NAME,cmd=COMMAND")]
    pub fault: Vec<String>,
    /// Of the start of the load, so much is not measured.
    #[arg(long)]
    pub warm_up: Option<Span>,
    /// The seed of arrivals, tenants and choices.
    #[arg(long, default_value_t = 1)]
    pub seed: u64,
    /// A condition on the result: 'warm.p99<=20ms', 'lost==0'. Added to those of the scenario.
    #[arg(long)]
    pub threshold: Vec<Threshold>,
    /// Leave out the scenario's own conditions.
    #[arg(long)]
    pub no_scenario_thresholds: bool,
    /// How often it is run; results are medians with their spread.
    #[arg(long, default_value_t = 1)]
    pub runs: usize,
    /// How the tenants' names start.
    #[arg(long, default_value = "loadtest")]
    pub prefix: String,
    /// Leave the tenants there, for the next run or to look at.
    #[arg(long)]
    pub keep: bool,
    /// Management calls at once while tenants are made.
    #[arg(long, default_value_t = 16)]
    pub setup_concurrency: usize,
    /// How long one function may take to go live while tenants are made, its modules' builds included.
    #[arg(long, default_value = "20m")]
    pub setup_timeout: Span,
}

/// How it is sent.
#[derive(Debug, Clone, clap::Args)]
pub struct SendingArgs {
    /// auto, 1.1 or 2 (without TLS by prior knowledge).
    #[arg(long, default_value = "auto")]
    pub http: Http,
    /// A new connection for every request.
    #[arg(long)]
    pub fresh_connections: bool,
    /// HTTP/2 connections of each thread.
    #[arg(long, default_value_t = 1)]
    pub h2_connections: usize,
    /// Deadline of one request.
    #[arg(long)]
    pub timeout: Option<Span>,
    /// Deadline of a dial.
    #[arg(long, default_value = "5s")]
    pub dial_timeout: Span,
    /// Requests in flight, at most; what does not fit is not sent, and makes the results void.
    #[arg(long)]
    pub max_in_flight: Option<u64>,
    /// Threads that send; by default half the cores.
    #[arg(long)]
    pub workers: Option<usize>,
    /// How late the latest hundredth of the requests may be sent before the results are void.
    #[arg(long, default_value = "10ms")]
    pub max_lag: Span,
    /// A header of every call, as 'name: value'.
    #[arg(long, value_name = "NAME: VALUE")]
    pub header: Vec<String>,
    /// What is sent to functions (or URLs by POST, PUT, PATCH) that take a body.
    #[arg(long, value_name = "FILE")]
    pub body_file: Option<PathBuf>,
    /// The same, as so many bytes of text.
    #[arg(long, value_name = "BYTES", conflicts_with = "body_file")]
    pub body_size: Option<u64>,
    /// Send that in chunks, without a declared length.
    #[arg(long)]
    pub stream_body: bool,
    /// The response header that names the node.
    #[arg(long, default_value = "hearth-node")]
    pub node_header: http::HeaderName,
}

/// What is made of it.
#[derive(Debug, Clone, clap::Args)]
pub struct OutputArgs {
    /// The result as JSON: on standard output instead of the table, or into a file.
    #[arg(long, value_name = "FILE", num_args = 0..=1, require_equals = true, default_missing_value = "-")]
    pub json: Option<String>,
    /// The result as one page of HTML that needs nothing else.
    #[arg(long, value_name = "FILE")]
    pub report: Option<PathBuf>,
    /// Say nothing while it runs.
    #[arg(long, short)]
    pub quiet: bool,
}

fn spacing(text: &str) -> Result<Spacing, String> {
    match text {
        "constant" => Ok(Spacing::Constant),
        "poisson" => Ok(Spacing::Poisson),
        _ => Err("use constant or poisson".into()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::Parser;

    #[derive(Debug, Parser)]
    struct Cli {
        #[command(flatten)]
        args: Args,
    }

    #[test]
    fn a_scenario_and_a_command_are_told_apart() {
        let parse = |words: &[&str]| Cli::try_parse_from([&["loadtest"], words].concat()).map(|c| c.args);
        let args = parse(&["warm", "--rate", "500", "--json", "--threshold", "warm.p99<=20ms", "--threshold", "lost==0"]).unwrap();
        assert_eq!(args.scenario.as_deref(), Some("warm"));
        assert_eq!((args.output.json.as_deref(), args.change.threshold.len()), (Some("-"), 2));
        assert_eq!(parse(&["warm", "--json=a.json"]).unwrap().output.json.as_deref(), Some("a.json"));
        assert!(matches!(parse(&["compare", "a.json", "b.json"]).unwrap().command, Some(Command::Compare { .. })));
        assert!(matches!(parse(&["list"]).unwrap().command, Some(Command::List)));
        for bad in [
            &["warm", "--rate", "fast"][..],
            &["warm", "--threshold", "lost"],
            &["warm", "--mix", "hallo=1"],
            &["compare", "a.json"],
        ] {
            assert!(parse(bad).is_err(), "{bad:?}");
        }
        Cli::command_for_update_checked();
    }

    impl Cli {
        fn command_for_update_checked() {
            use clap::CommandFactory as _;
            Self::command().debug_assert();
        }
    }
}
