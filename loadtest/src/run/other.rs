//! The small commands beside running a scenario.

use super::{Ending, Interrupt, options, platform, token, write_out};
use crate::{
    args::{SendingArgs, TargetArgs},
    compare,
    kinds::KINDS,
    manage::Api,
    population::check_prefix,
    report,
    results::Report,
    scenario::{BUILT_IN, Scenario},
    setup,
    trace::{MINUTES_MAX, ROWS_MAX, Trace},
};
use anyhow::{Context as _, bail};
use std::{fmt::Write as _, path::Path};

pub(super) fn list() -> anyhow::Result<Ending> {
    let mut text = String::from("Scenarios\n");
    for (name, source) in BUILT_IN {
        let scenario = Scenario::read(source)?;
        let _ = writeln!(text, "  {name:<18} {} ({})", scenario.about, scenario.length());
    }
    text.push_str("\nKinds of functions, for --mix\n");
    for kind in KINDS {
        let _ = writeln!(text, "  {:<18} {}", kind.name, kind.about);
    }
    write_out(text.as_bytes())?;
    Ok(Ending::Passed)
}

pub(super) fn show(name: &str, metrics: bool) -> anyhow::Result<Ending> {
    let (scenario, text) = Scenario::load(name)?;
    if metrics {
        let catalogue = crate::plan::catalogue(&scenario, false);
        let names: Vec<&str> = catalogue.names().collect();
        write_out(format!("{}\n", names.join("\n")).as_bytes())?;
    } else {
        write_out(text.as_bytes())?;
    }
    Ok(Ending::Passed)
}

pub(super) fn compare(a: &Path, b: &Path, json: bool) -> anyhow::Result<Ending> {
    let (a, b) = (Report::read(a)?, Report::read(b)?);
    let differences = compare::compare(&a, &b);
    if json {
        let value = serde_json::json!({ "warnings": compare::warnings(&a, &b), "differences": differences });
        write_out(&serde_json::to_vec(&value)?)?;
    } else {
        write_out(compare::table(&a, &b, &differences).as_bytes())?;
    }
    Ok(Ending::Passed)
}

pub(super) fn render(result: &Path, page: &Path) -> anyhow::Result<Ending> {
    let result = Report::read(result)?;
    std::fs::write(page, report::page(&result)).with_context(|| format!("writing {}", page.display()))?;
    Ok(Ending::Passed)
}

pub(super) fn trace(file: &Path, functions: usize, minutes: usize, seed: u64) -> anyhow::Result<Ending> {
    if !(1..=ROWS_MAX).contains(&functions) || !(1..=MINUTES_MAX).contains(&minutes) {
        bail!("a trace has between 1 and {ROWS_MAX} functions and between 1 and {MINUTES_MAX} minutes");
    }
    let trace = Trace::generate(functions, minutes, seed);
    let out = std::fs::File::create(file).with_context(|| format!("writing {}", file.display()))?;
    trace.write(std::io::BufWriter::new(out)).with_context(|| format!("writing {}", file.display()))?;
    Ok(Ending::Passed)
}

pub(super) async fn clean(target: &TargetArgs, prefix: &str) -> anyhow::Result<Ending> {
    check_prefix(prefix)?;
    let interrupt = Interrupt::listen();
    let (destination, options) = platform(target, options(&plain()?, false)).await?;
    let api = Api::new(&destination, &options, token(target).as_deref())?;
    api.probe().await?;
    let gone = setup::clean(&api, prefix, 16, &interrupt.stop).await?;
    write_out(format!("{gone} tenants taken away\n").as_bytes())?;
    Ok(Ending::Passed)
}

/// How things are sent where no flag says it.
fn plain() -> anyhow::Result<SendingArgs> {
    #[derive(clap::Parser)]
    struct Defaults {
        #[command(flatten)]
        sending: SendingArgs,
    }
    Ok(<Defaults as clap::Parser>::try_parse_from(["loadtest"])?.sending)
}
