//! From a scenario and the flags to a job: changes are applied and written down, rates resolved, traces read, and everything is checked before the
//! target is touched.

use crate::{
    args::{ChangeArgs, SendingArgs},
    arrivals::{LoadStep, Shape},
    engine::{FaultJob, StreamJob},
    net::Payload,
    pick::{Picker, Skew, zipf_weights},
    population::Population,
    results::Catalogue,
    scenario::{FaultPlan, LoadPlan, Part, Scenario, ShapePlan, StreamPlan},
    seeded::Seeded,
    trace::{Replay, Trace, TraceRow},
    units::{Rate, Span},
};
use anyhow::{Context as _, bail};
use http::{HeaderMap, HeaderName, HeaderValue};
use std::{collections::HashMap, path::Path, path::PathBuf, sync::Arc};

/// Applies the flags to a scenario and says which.
///
/// # Errors
/// A flag that does not fit the scenario.
pub fn change(scenario: &mut Scenario, change: &ChangeArgs, sending: &SendingArgs) -> anyhow::Result<Vec<String>> {
    let mut changes = Vec::new();
    let mut note = |text: String| changes.push(text);
    if let Some(tenants) = change.tenants {
        scenario.population.tenants = tenants;
        note(format!("--tenants {tenants}"));
    }
    if let Some(functions) = change.functions_per_tenant {
        scenario.population.functions_per_tenant = functions;
        note(format!("--functions-per-tenant {functions}"));
    }
    if let Some(mix) = &change.mix {
        scenario.population.mix = mix.clone();
        note(format!(
            "--mix {}",
            mix.0.iter().map(|(k, w)| format!("{}={w}", crate::kinds::KINDS[usize::from(*k)].name)).collect::<Vec<_>>().join(",")
        ));
    }
    for stream in &mut scenario.stream {
        if let Some(skew) = &change.skew {
            stream.skew = skew.clone();
        }
        if let Some(spacing) = change.arrivals {
            stream.arrivals = spacing;
        }
    }
    change.skew.iter().for_each(|skew| note(format!("--skew {skew}")));
    change.arrivals.iter().for_each(|spacing| note(format!("--arrivals {spacing:?}").to_lowercase()));
    loads(scenario, change, &mut note)?;
    if let Some(warm_up) = change.warm_up {
        scenario.warm_up = Some(warm_up);
        note(format!("--warm-up {warm_up}"));
    }
    if let Some(timeout) = sending.timeout {
        scenario.timeout = Some(timeout);
        note(format!("--timeout {timeout}"));
    }
    if let Some(max) = sending.max_in_flight {
        scenario.max_in_flight = Some(max);
        note(format!("--max-in-flight {max}"));
    }
    if sending.fresh_connections {
        scenario.fresh_connections = true;
        note("--fresh-connections".into());
    }
    for text in &change.fault {
        fault(scenario, text)?;
        note(format!("--fault {text}"));
    }
    if let Some(open) = scenario.fault.iter().find(|f| f.cmd.is_none() && !f.mark) {
        bail!(
            "the scenario {} leaves the command of its fault {:?} to you: --fault 'name={},cmd=...'",
            scenario.name,
            open.name,
            open.name
        );
    }
    scenario.check()?;
    Ok(changes)
}

fn loads(scenario: &mut Scenario, change: &ChangeArgs, note: &mut impl FnMut(String)) -> anyhow::Result<()> {
    if let Some(rate) = change.rate {
        let mut rates: Vec<&mut Rate> =
            scenario.stream.iter_mut().flat_map(|s| &mut s.load).flat_map(LoadPlan::rates_mut).collect();
        match rates.as_mut_slice() {
            [only] => **only = rate,
            rates => bail!("--rate is for scenarios with one constant load, this one has {} rates: use --rate-scale", rates.len()),
        }
        note(format!("--rate {rate}"));
    }
    if let Some(length) = change.duration {
        for stream in &mut scenario.stream {
            match stream.load.as_mut_slice() {
                [only] if only.length.is_some() => only.length = Some(length),
                _ => bail!("--duration is for scenarios with one load per stream, {:?} has several: use --time-scale", stream.name),
            }
        }
        note(format!("--duration {length}"));
    }
    for (name, factor) in [("--rate-scale", change.rate_scale), ("--time-scale", change.time_scale)] {
        if let Some(factor) = factor {
            if !(factor > 0.0 && factor <= 1e6) {
                bail!("{name} must be above 0");
            }
            note(format!("{name} {factor}"));
        }
    }
    if let Some(factor) = change.rate_scale {
        for load in scenario.stream.iter_mut().flat_map(|s| &mut s.load) {
            for rate in load.rates_mut() {
                *rate = match *rate {
                    Rate::PerSecond(r) => Rate::PerSecond(r * factor),
                    Rate::Capacity(x) => Rate::Capacity(x * factor),
                };
            }
            match &mut load.shape {
                ShapePlan::Burst { size, .. } => *size = ((f64::from(*size) * factor).round() as u32).max(1),
                ShapePlan::Replay { scale, .. } => *scale *= factor,
                _ => {}
            }
        }
    }
    if let Some(factor) = change.time_scale {
        for load in scenario.stream.iter_mut().flat_map(|s| &mut s.load) {
            load.length = load.length.map(|l| l.scaled(factor));
            if let ShapePlan::Replay { speed, .. } = &mut load.shape {
                *speed /= factor;
            }
        }
        scenario.fault.iter_mut().for_each(|f| f.at = f.at.scaled(factor));
        scenario.deploy.iter_mut().for_each(|d| d.after = d.after.scaled(factor));
    }
    Ok(())
}

/// `at=10s,name=kill,cmd=...`: a new fault, or the command of one that the scenario names.
fn fault(scenario: &mut Scenario, text: &str) -> anyhow::Result<()> {
    let (before, cmd) = match text.split_once("cmd=") {
        Some((before, cmd)) if before.is_empty() || before.ends_with(',') => (before, cmd.trim()),
        _ => bail!("the fault {text:?} has no command: write at=10s,name=kill,cmd=..."),
    };
    if cmd.is_empty() {
        bail!("the fault {text:?} has an empty command");
    }
    let (mut at, mut name) = (None, None);
    for part in before.split(',').map(str::trim).filter(|p| !p.is_empty()) {
        match part.split_once('=') {
            Some(("at", value)) => at = Some(value.parse::<Span>()?),
            Some(("name", value)) if !value.is_empty() => name = Some(value.to_owned()),
            _ => bail!("in the fault {text:?}, {part:?} is neither at=, name= nor cmd="),
        }
    }
    let name = name.unwrap_or_else(|| "fault".to_owned());
    match (scenario.fault.iter_mut().find(|f| f.name == name && f.cmd.is_none() && !f.mark), at) {
        (Some(open), at) => {
            open.cmd = Some(cmd.to_owned());
            open.at = at.unwrap_or(open.at);
        }
        (None, Some(at)) => scenario.fault.push(FaultPlan { name, at, cmd: Some(cmd.to_owned()), mark: false }),
        (None, None) => bail!("the fault {text:?} needs a moment: at=10s"),
    }
    Ok(())
}

/// All that thresholds can name in a scenario.
#[must_use]
pub fn catalogue(scenario: &Scenario, urls: bool) -> Catalogue {
    let streams = scenario.stream.iter().map(|s| s.name.as_str());
    let phases = scenario.stream.iter().flat_map(|s| &s.load).filter_map(|l| l.name.as_deref());
    let kinds = scenario.population.mix.0.iter().map(|(kind, _)| crate::kinds::KINDS[usize::from(*kind)].name);
    let faults = scenario.fault.iter().map(|f| f.name.as_str());
    if urls {
        return Catalogue::new(streams, phases, ["url"], faults, false);
    }
    Catalogue::new(streams, phases, kinds, faults, scenario.deploy.is_some())
}

/// Headers as they are given.
///
/// # Errors
/// Not a header.
pub fn headers(given: &[String]) -> anyhow::Result<HeaderMap> {
    let mut headers = HeaderMap::new();
    for text in given {
        let (name, value) = text.split_once(':').with_context(|| format!("the header {text:?} is not written as 'name: value'"))?;
        let name: HeaderName = name.trim().parse().with_context(|| format!("in the header {text:?}"))?;
        headers.append(name, HeaderValue::from_str(value.trim()).with_context(|| format!("in the header {text:?}"))?);
    }
    Ok(headers)
}

/// The body as it is given.
///
/// # Errors
/// The file cannot be read.
pub fn body(sending: &SendingArgs, scenario: &Scenario) -> anyhow::Result<Payload> {
    const BODY_BYTES_MAX: u64 = 10 * 1024 * 1024 * 1024;
    if let Some(path) = &sending.body_file {
        let bytes = std::fs::read(path).with_context(|| format!("reading the body {}", path.display()))?;
        let bytes = bytes::Bytes::from(bytes);
        let left = bytes.len() as u64;
        return Ok(if sending.stream_body { Payload::Stream { chunk: bytes, left } } else { Payload::Whole(bytes) });
    }
    let size = sending.body_size.unwrap_or(scenario.population.body_bytes);
    let whole_max = 64 * 1024 * 1024;
    if size > BODY_BYTES_MAX || (size > whole_max && !sending.stream_body) {
        bail!("a body of {size} bytes is too large: at most {whole_max}, or {BODY_BYTES_MAX} with --stream-body");
    }
    Ok(Payload::sized(size, sending.stream_body))
}

/// Traces, each read once.
#[derive(Debug, Default)]
pub struct Traces(HashMap<PathBuf, Arc<Trace>>);

impl Traces {
    fn get(&mut self, path: &Path) -> anyhow::Result<Arc<Trace>> {
        if let Some(trace) = self.0.get(path) {
            return Ok(Arc::clone(trace));
        }
        let trace = Arc::new(Trace::open(path)?);
        self.0.insert(path.to_owned(), Arc::clone(&trace));
        Ok(trace)
    }
}

/// Reads all traces that a scenario names, so that a bad one is refused before anything is made.
///
/// # Errors
/// A trace that cannot be read, or a replay without one.
pub fn read_traces(scenario: &Scenario, given: Option<&PathBuf>) -> anyhow::Result<Traces> {
    let mut traces = Traces::default();
    for stream in &scenario.stream {
        if let Skew::Trace(path) = &stream.skew {
            traces.get(path)?;
        }
        for load in &stream.load {
            if let ShapePlan::Replay { trace, .. } = &load.shape {
                traces.get(trace_path(trace.as_ref(), given)?)?;
            }
        }
    }
    Ok(traces)
}

fn trace_path<'a>(named: Option<&'a PathBuf>, given: Option<&'a PathBuf>) -> anyhow::Result<&'a PathBuf> {
    given.or(named).context("a replay needs a trace: --trace FILE; `trace` makes one")
}

/// The streams of a scenario, ready to run.
///
/// # Errors
/// A part without tenants, a rate that nobody knows, or a replay that is not in its trace.
pub fn streams(
    scenario: &Scenario,
    population: &Population,
    traces: &mut Traces,
    given: Option<&PathBuf>,
    capacity: Option<f64>,
    seed: u64,
) -> anyhow::Result<Vec<StreamJob>> {
    let job = |(index, stream): (usize, &StreamPlan)| {
        let functions = population.functions_of(stream.tenants.from, stream.tenants.to);
        if functions.is_empty() {
            bail!("stream {:?} calls tenants {} and on, there are {}", stream.name, stream.tenants.from, population.tenants.len());
        }
        let seed = seed.wrapping_add(index as u64 * 7_919);
        let picker = picker(stream, population, functions, traces, seed)?;
        let steps = stream.load.iter().map(|load| step(load, population, stream.tenants, traces, given, capacity));
        Ok(StreamJob {
            name: stream.name.clone(),
            steps: steps.collect::<anyhow::Result<_>>()?,
            step_names: stream.load.iter().map(|l| l.name.clone()).collect(),
            spacing: stream.arrivals,
            picker,
        })
    };
    scenario.stream.iter().enumerate().map(job).collect()
}

fn picker(
    stream: &StreamPlan,
    population: &Population,
    functions: Vec<u32>,
    traces: &mut Traces,
    seed: u64,
) -> anyhow::Result<Picker> {
    let weights = match &stream.skew {
        Skew::Each => return Ok(Picker::each(functions, seed)),
        Skew::Uniform => vec![1.0; functions.len()],
        Skew::Zipf(exponent) => {
            // The skew is over tenants; a tenant's functions are called alike. Which tenant has which rank is drawn, so that it has nothing to do with
            // the order in which they were made.
            let mut tenants: Vec<u32> = functions.iter().map(|f| population.calls[*f as usize].tenant).collect();
            tenants.dedup();
            Seeded::new(seed, 0x7a69_7066).shuffle(&mut tenants);
            let by_rank = zipf_weights(tenants.len(), *exponent);
            let weights: HashMap<u32, f64> = tenants.into_iter().zip(by_rank).collect();
            functions.iter().map(|f| weights[&population.calls[*f as usize].tenant]).collect()
        }
        Skew::Trace(path) => {
            let trace = traces.get(path)?;
            let mut weights = HashMap::<u32, f64>::new();
            for row in &trace.rows {
                *weights.entry(function_of(row, population, stream.tenants)).or_default() += row.total() as f64;
            }
            functions.iter().map(|f| weights.get(f).copied().unwrap_or(0.0)).collect()
        }
    };
    Ok(Picker::weighted(functions, &weights, seed))
}

/// Which function stands for a trace's row: its owner is a tenant, in the order of appearance, and so are the owner's functions; more than there are begin again from
/// the first.
fn function_of(row: &TraceRow, population: &Population, part: Part) -> u32 {
    let to = part.to.unwrap_or(u32::MAX).min(population.tenants.len() as u32);
    let tenant = part.from + row.owner % (to - part.from).max(1);
    tenant * population.functions_per_tenant + row.ordinal % population.functions_per_tenant
}

fn step(
    load: &LoadPlan,
    population: &Population,
    part: Part,
    traces: &mut Traces,
    given: Option<&PathBuf>,
    capacity: Option<f64>,
) -> anyhow::Result<LoadStep> {
    let length_ns = load.length.map_or(0, Span::nanos);
    let shape = match &load.shape {
        ShapePlan::Pause => Shape::Line { from: 0.0, to: 0.0 },
        ShapePlan::Constant { rate } => {
            let rate = rate.resolve(capacity)?;
            Shape::Line { from: rate, to: rate }
        }
        ShapePlan::Ramp { from, to } => Shape::Line { from: from.resolve(capacity)?, to: to.resolve(capacity)? },
        ShapePlan::Step { from, to, steps } => {
            Shape::Stairs { from: from.resolve(capacity)?, to: to.resolve(capacity)?, steps: *steps }
        }
        ShapePlan::Burst { size, every } => Shape::Burst { size: *size, every_ns: every.nanos() },
        ShapePlan::Replay { trace, from_minute, minutes, speed, scale } => {
            let trace = traces.get(trace_path(trace.as_ref(), given)?)?;
            let count = minutes.unwrap_or_else(|| trace.minutes.saturating_sub(*from_minute));
            let replay = Replay::new(&trace, *from_minute, count, *speed, *scale, |row| function_of(row, population, part))?;
            return Ok(LoadStep { length_ns: replay.length_ns(), shape: Shape::Replay(replay) });
        }
    };
    Ok(LoadStep { shape, length_ns })
}

/// The faults of a scenario, ready to run.
#[must_use]
pub fn faults(scenario: &Scenario) -> Vec<FaultJob> {
    let job = |f: &FaultPlan| FaultJob { name: f.name.clone(), at: f.at.0, cmd: f.cmd.clone() };
    scenario.fault.iter().map(job).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::scenario::BUILT_IN;
    use clap::Parser;

    #[derive(Debug, Parser)]
    struct Cli {
        #[command(flatten)]
        args: crate::Args,
    }

    fn changed(name: &str, flags: &[&str]) -> anyhow::Result<(Scenario, Vec<String>)> {
        let args = Cli::try_parse_from([&["loadtest", name], flags].concat())?.args;
        let (mut scenario, _) = Scenario::load(name)?;
        let changes = change(&mut scenario, &args.change, &args.sending)?;
        Ok((scenario, changes))
    }

    #[test]
    fn flags_change_what_they_name() {
        let (scenario, changes) = changed("warm", &["--rate", "50", "--duration", "2s", "--tenants", "3"]).unwrap();
        assert_eq!((scenario.length(), scenario.population.tenants), (Span::seconds(2), 3));
        assert_eq!(changes.len(), 3);
        assert!(changed("overload", &["--rate", "50"]).is_err(), "several rates");
        assert!(changed("overload", &["--duration", "5s"]).is_err(), "several loads");
        let (scenario, _) = changed("overload", &["--time-scale", "0.1"]).unwrap();
        assert_eq!(scenario.length(), Span::seconds(6));
        assert_eq!(scenario.fault[1].at, Span::seconds(4));
        let (scenario, _) = changed("cold-burst", &["--rate-scale", "0.1"]).unwrap();
        assert!(matches!(scenario.stream[0].load[0].shape, ShapePlan::Burst { size: 10, .. }));
    }

    #[test]
    fn faults_are_given_or_filled_in() {
        assert!(changed("node-loss", &[]).unwrap_err().to_string().contains("name=kill"));
        let (scenario, _) = changed("node-loss", &["--fault", "name=kill,cmd=docker kill a, b"]).unwrap();
        assert_eq!(scenario.fault[0].cmd.as_deref(), Some("docker kill a, b"));
        assert_eq!(scenario.fault[0].at, Span::seconds(20));
        let (scenario, _) = changed("warm", &["--fault", "at=5s,name=stop,cmd=kill -STOP 1"]).unwrap();
        assert_eq!((scenario.fault[0].at, scenario.fault[0].name.as_str()), (Span::seconds(5), "stop"));
        for bad in ["at=5s", "cmd=", "at=soon,cmd=x", "name=x,cmd=y", "when=5s,cmd=x"] {
            assert!(changed("warm", &["--fault", bad]).is_err(), "{bad}");
        }
    }

    #[test]
    fn the_thresholds_that_are_shipped_name_what_their_scenarios_measure() {
        for (name, text) in BUILT_IN {
            let scenario = Scenario::read(text).unwrap();
            for threshold in &scenario.thresholds {
                let threshold: crate::threshold::Threshold = threshold.parse().unwrap();
                threshold.check(&catalogue(&scenario, false)).unwrap_or_else(|e| panic!("{name}: {e:#}"));
            }
        }
    }

    #[test]
    fn headers_are_read_as_written() {
        let headers = headers(&["x-a: 1".into(), "X-A:2".into()]).unwrap();
        assert_eq!(headers.get_all("x-a").iter().count(), 2);
        assert!(super::headers(&["nothing".into()]).is_err());
        assert!(super::headers(&["a b: c".into()]).is_err());
    }
}
