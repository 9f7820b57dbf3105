//! What `hearth loadtest` does, from the flags to the exit code. Everything that can be refused is refused before the target is touched, and whatever was made on the
//! target is taken away again, on errors and interruptions too.

mod other;
mod session;

use crate::{
    args::{Args, Command, TargetArgs},
    manage::Refusal,
    net::{Destination, Options, Trust},
    plan, report,
    results::{FORMAT, Machine, Report, summarise},
    scenario::Scenario,
    threshold::Threshold,
};
use anyhow::{Context as _, bail};
use session::Session;
use std::io::Write as _;
use tokio_util::sync::CancellationToken;

/// How a call of the tool ended, where it did not fail.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Ending {
    /// Done, and all thresholds hold.
    Passed,
    /// A threshold does not hold.
    ThresholdMissed,
    /// The generator was the bottleneck: the results say nothing about the target.
    Void,
    /// Somebody stopped it.
    Interrupted,
}

impl Ending {
    /// For the process.
    #[must_use]
    pub const fn exit_code(self) -> u8 {
        match self {
            Self::Passed => 0,
            Self::ThresholdMissed => 10,
            Self::Void => 11,
            Self::Interrupted => 130,
        }
    }
}

impl From<Ending> for std::process::ExitCode {
    fn from(ending: Ending) -> Self {
        Self::from(ending.exit_code())
    }
}

/// The exit code of an error that [`run`] returned, as the other client commands have it: 4 not allowed, 5 not reachable, 1 all else.
#[must_use]
pub fn exit_code(error: &anyhow::Error) -> u8 {
    match error.downcast_ref::<Refusal>() {
        Some(Refusal::NotAllowed(_)) => 4,
        Some(Refusal::Unreachable(_)) => 5,
        None => 1,
    }
}

/// Runs a call of the tool. Needs a runtime with several threads, since waiting for the generator's threads blocks one.
///
/// # Errors
/// Wrong input, a target that cannot be reached or refuses, or a machine that lacks something; nothing is left behind on the target.
pub async fn run(args: Args) -> anyhow::Result<Ending> {
    match args.command.clone() {
        None => scenario(args).await,
        Some(Command::List) => other::list(),
        Some(Command::Show { scenario, metrics }) => other::show(&scenario, metrics),
        Some(Command::Compare { a, b, json }) => other::compare(&a, &b, json),
        Some(Command::Render { result, page }) => other::render(&result, &page),
        Some(Command::Trace { file, functions, minutes, seed }) => other::trace(&file, functions, minutes, seed),
        Some(Command::Clean { target, prefix }) => other::clean(&target, &prefix).await,
    }
}

async fn scenario(args: Args) -> anyhow::Result<Ending> {
    let (mut scenario, text) = chosen(&args)?;
    let mut changes = plan::change(&mut scenario, &args.change, &args.sending)?;
    let thresholds = thresholds(&scenario, &args)?;
    if args.change.runs == 0 || args.change.runs > 1_000 {
        bail!("--runs must lie between 1 and 1000");
    }
    if args.change.no_scenario_thresholds {
        changes.push("--no-scenario-thresholds".into());
    }
    let interrupt = Interrupt::listen();
    let mut session = Session::prepare(&args, scenario, interrupt.clone()).await?;
    let runs = session.runs().await?;
    let mut result = Report {
        format: FORMAT.into(),
        version: env!("CARGO_PKG_VERSION").into(),
        scenario: session.scenario.name.clone(),
        about: session.scenario.about.clone(),
        read: session.scenario.read.clone(),
        scenario_text: text,
        changes,
        target: session.target.clone(),
        seed: args.change.seed,
        machine: machine(session.workers),
        capacity: session.capacity,
        summary: summarise(&runs),
        thresholds: Vec::new(),
        void: session.void_reasons(&runs),
        interrupted: interrupt.stop.is_cancelled(),
        runs,
    };
    result.thresholds = thresholds.iter().map(|t| t.judge(&result.runs, &result.summary)).collect();
    publish(&args, &result)?;
    Ok(ending(&result))
}

/// A named scenario, a file's, or plain traffic to a list of URLs.
fn chosen(args: &Args) -> anyhow::Result<(Scenario, String)> {
    match (&args.scenario, &args.change.url_list) {
        (Some(name), _) => Scenario::load(name),
        (None, Some(_)) => {
            let mut scenario = Scenario::plain(100.0, crate::units::Span::seconds(30));
            scenario.check()?;
            scenario.name = "url-list".into();
            Ok((scenario, "# 100 requests a second for 30 s, spread alike over the URLs, where flags say nothing else\n".into()))
        }
        (None, None) => {
            let names: Vec<&str> = crate::scenario::BUILT_IN.iter().map(|(n, _)| *n).collect();
            bail!("say which scenario: {}; or --url-list FILE for any other target", names.join(", "))
        }
    }
}

fn thresholds(scenario: &Scenario, args: &Args) -> anyhow::Result<Vec<Threshold>> {
    let own = if args.change.no_scenario_thresholds { &[][..] } else { &scenario.thresholds[..] };
    let mut all = own.iter().map(|t| t.parse()).collect::<anyhow::Result<Vec<Threshold>>>()?;
    all.extend(args.change.threshold.iter().cloned());
    let catalogue = plan::catalogue(scenario, args.change.url_list.is_some());
    all.iter().try_for_each(|t| t.check(&catalogue))?;
    Ok(all)
}

fn machine(workers: usize) -> Machine {
    let kernel = rustix::system::uname();
    Machine {
        cores: std::thread::available_parallelism().map_or(1, std::num::NonZero::get),
        workers,
        kernel: format!("{} {}", kernel.sysname().to_string_lossy(), kernel.release().to_string_lossy()),
    }
}

/// The table or JSON on standard output, and the files that were asked for.
fn publish(args: &Args, result: &Report) -> anyhow::Result<()> {
    let json = || serde_json::to_vec(result).context("writing JSON");
    match args.output.json.as_deref() {
        Some("-") => write_out(&json()?)?,
        Some(file) => {
            std::fs::write(file, json()?).with_context(|| format!("writing {file}"))?;
            write_out(report::table(result).as_bytes())?;
        }
        None => write_out(report::table(result).as_bytes())?,
    }
    if let Some(file) = &args.output.report {
        std::fs::write(file, report::page(result)).with_context(|| format!("writing {}", file.display()))?;
    }
    Ok(())
}

/// Writes to standard output; a reader that went away, as `head` does, is no failure.
fn write_out(bytes: &[u8]) -> anyhow::Result<()> {
    let mut out = std::io::stdout().lock();
    match out.write_all(bytes).and_then(|()| out.flush()) {
        Err(e) if e.kind() == std::io::ErrorKind::BrokenPipe => Ok(()),
        result => result.context("writing to standard output"),
    }
}

fn ending(result: &Report) -> Ending {
    if result.interrupted {
        Ending::Interrupted
    } else if !result.void.is_empty() {
        Ending::Void
    } else if result.thresholds.iter().any(|t| !t.met) {
        Ending::ThresholdMissed
    } else {
        Ending::Passed
    }
}

/// The first interruption ends the load and cleans up; the second ends the cleaning too.
#[derive(Debug, Clone)]
struct Interrupt {
    stop: CancellationToken,
    abandon: CancellationToken,
}

impl Interrupt {
    fn listen() -> Self {
        let this = Self { stop: CancellationToken::new(), abandon: CancellationToken::new() };
        let tokens = this.clone();
        // Ends with the runtime; there is nothing to wait for in it.
        tokio::spawn(async move {
            for token in [&tokens.stop, &tokens.abandon] {
                if signalled().await.is_err() {
                    return;
                }
                token.cancel();
            }
        });
        this
    }
}

async fn signalled() -> std::io::Result<()> {
    let mut terminate = tokio::signal::unix::signal(tokio::signal::unix::SignalKind::terminate())?;
    tokio::select! {
        result = tokio::signal::ctrl_c() => result,
        _ = terminate.recv() => Ok(()),
    }
}

/// The platform's origin and how to connect to it.
async fn platform(target: &TargetArgs, options: Options) -> anyhow::Result<(Destination, Options)> {
    let url: http::Uri = target.url.parse().with_context(|| format!("{:?} is not a URL", target.url))?;
    if !matches!(url.path(), "" | "/") || url.query().is_some() {
        bail!("--url is where the platform is, without a path: {}", target.url);
    }
    let destination = Destination::of(&url).await.map_err(|e| Refusal::Unreachable(format!("{e:#}")))?;
    let options = with_tls(target, options, destination.tls.is_some())?;
    Ok((destination, options))
}

fn with_tls(target: &TargetArgs, mut options: Options, needed: bool) -> anyhow::Result<Options> {
    if needed {
        let trust = match (&target.ca, target.insecure) {
            (_, true) => Trust::Anything,
            (Some(file), _) => Trust::Authority(file.clone()),
            (None, false) => Trust::System,
        };
        options.tls = Some(trust.config(options.http)?);
    } else if target.ca.is_some() || target.insecure {
        bail!("--ca and --insecure are for https targets");
    }
    Ok(options)
}

/// The token that is given, or that of a local `hearth up`.
fn token(target: &TargetArgs) -> Option<String> {
    let given = target.token.clone().filter(|t| !t.is_empty());
    given.or_else(|| std::fs::read_to_string(".hearth/admin.token").ok().map(|t| t.trim().to_owned()))
}

/// What of the flags is about connections.
fn options(sending: &crate::args::SendingArgs, fresh: bool) -> Options {
    Options {
        http: sending.http,
        fresh,
        h2_connections: sending.h2_connections.clamp(1, 1_000),
        dial_timeout: sending.dial_timeout.0,
        tls: None,
    }
}
