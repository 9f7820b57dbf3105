//! Scenarios: what is done to whom, as TOML that a person can read. Those that are shipped lie in `scenarios/` and are inside the binary. A key that is
//! not known is refused, so that a typing error cannot quietly change what is measured.

use crate::{
    arrivals::Spacing,
    kinds::Mix,
    pick::Skew,
    units::{Rate, Span},
};
use anyhow::{Context as _, bail};
use serde::Deserialize;
use std::{path::PathBuf, str::FromStr};

/// The scenarios inside the binary: name and text.
pub static BUILT_IN: &[(&str, &str)] = &[
    ("warm", include_str!("../scenarios/warm.toml")),
    ("cold-burst", include_str!("../scenarios/cold-burst.toml")),
    ("mixed", include_str!("../scenarios/mixed.toml")),
    ("cold-steady", include_str!("../scenarios/cold-steady.toml")),
    ("noisy-neighbour", include_str!("../scenarios/noisy-neighbour.toml")),
    ("module-mix", include_str!("../scenarios/module-mix.toml")),
    ("deploy-under-load", include_str!("../scenarios/deploy-under-load.toml")),
    ("overload", include_str!("../scenarios/overload.toml")),
    ("soak", include_str!("../scenarios/soak.toml")),
    ("node-loss", include_str!("../scenarios/node-loss.toml")),
    ("rolling-restart", include_str!("../scenarios/rolling-restart.toml")),
    ("etcd-loss", include_str!("../scenarios/etcd-loss.toml")),
];

mod load;

/// Streams of one scenario, and load steps of one stream.
pub const STREAMS_MAX: usize = 32;
/// Steps of one stream.
pub const STEPS_MAX: usize = 64;
/// Faults of one scenario.
pub const FAULTS_MAX: usize = 64;

/// A scenario.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Scenario {
    /// Its name.
    pub name: String,
    /// One line about it.
    pub about: String,
    /// What to look at in its report.
    #[serde(default)]
    pub read: String,
    /// Conditions that decide the exit code.
    #[serde(default)]
    pub thresholds: Vec<String>,
    /// Deadline of one request.
    #[serde(default)]
    pub timeout: Option<Span>,
    /// Bound of requests in flight.
    #[serde(default)]
    pub max_in_flight: Option<u64>,
    /// A connection for every request.
    #[serde(default)]
    pub fresh_connections: bool,
    /// Of the start of the load, so much is not measured.
    #[serde(default)]
    pub warm_up: Option<Span>,
    /// Who is called.
    #[serde(default)]
    pub population: PopulationPlan,
    /// What is sent.
    pub stream: Vec<StreamPlan>,
    /// What is done to the target meanwhile.
    #[serde(default)]
    pub fault: Vec<FaultPlan>,
    /// Deploys meanwhile.
    #[serde(default)]
    pub deploy: Option<DeployPlan>,
    /// Measures the capacity first.
    #[serde(default)]
    pub calibrate: Option<CalibratePlan>,
}

/// Who is called.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct PopulationPlan {
    /// How many tenants.
    pub tenants: u32,
    /// How many functions each.
    pub functions_per_tenant: u32,
    /// Which functions.
    pub mix: Mix,
    /// Tenants that this target has never seen, for every run.
    pub fresh: bool,
    /// Call every function once before the load, so that all are warm.
    pub prime: bool,
    /// The tenants' limits, as the management API takes them.
    pub limits: Option<toml::Table>,
    /// Bytes sent to functions that take a body.
    pub body_bytes: u64,
}

impl Default for PopulationPlan {
    fn default() -> Self {
        Self {
            tenants: 10,
            functions_per_tenant: 1,
            mix: Mix::default(),
            fresh: false,
            prime: false,
            limits: None,
            body_bytes: 1_024,
        }
    }
}

/// One kind of traffic; all streams run at the same time.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct StreamPlan {
    /// Its name in results.
    pub name: String,
    /// Which tenants it calls.
    #[serde(default)]
    pub tenants: Part,
    /// How its calls are spread over them.
    #[serde(default)]
    pub skew: Skew,
    /// How its arrivals lie in time.
    #[serde(default)]
    pub arrivals: Spacing,
    /// What it does, one step after the other.
    pub load: Vec<LoadPlan>,
}

/// One step of a stream.
#[derive(Debug, Clone, Deserialize)]
#[serde(try_from = "load::Written")]
pub struct LoadPlan {
    /// Its name in results, as a phase; steps without one are not listed.
    pub name: Option<String>,
    /// How long it lasts; a replay knows that itself.
    pub length: Option<Span>,
    /// What happens.
    pub shape: ShapePlan,
}

/// What happens in a step.
#[derive(Debug, Clone)]
pub enum ShapePlan {
    /// Nothing.
    Pause,
    /// Always the same rate.
    Constant {
        /// Requests per second.
        rate: Rate,
    },
    /// In a straight line from one rate to another.
    Ramp {
        /// Requests per second at the start.
        from: Rate,
        /// Requests per second at the end.
        to: Rate,
    },
    /// In equal steps from one rate to another.
    Step {
        /// Requests per second of the first step.
        from: Rate,
        /// Requests per second of the last step.
        to: Rate,
        /// How many.
        steps: u32,
    },
    /// So many at once, again and again.
    Burst {
        /// How many.
        size: u32,
        /// From one to the next.
        every: Span,
    },
    /// What a trace says; from `--trace` where no file is named.
    Replay {
        /// The CSV file.
        trace: Option<PathBuf>,
        /// The first minute that is replayed, from 0.
        from_minute: usize,
        /// How many minutes; all by default.
        minutes: Option<usize>,
        /// How many times faster than it happened.
        speed: f64,
        /// Which share of the invocations.
        scale: f64,
    },
}

/// A command, or a mark, at a moment of the load.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct FaultPlan {
    /// Its name in results.
    pub name: String,
    /// When, from the start of the load.
    pub at: Span,
    /// What is run, by `sh -c`. A scenario may leave it open, to be given by a flag.
    #[serde(default)]
    pub cmd: Option<String>,
    /// Nothing is run: the moment is marked, and recovery is counted from it.
    #[serde(default)]
    pub mark: bool,
}

/// Deploys of new versions meanwhile.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct DeployPlan {
    /// Deploys per second.
    pub rate: f64,
    /// When they begin.
    #[serde(default)]
    pub after: Span,
}

/// A closed loop that measures the capacity, for rates given as multiples of it.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct CalibratePlan {
    /// Requests at once.
    pub connections: usize,
    /// For how long.
    #[serde(rename = "for")]
    pub length: Span,
}

/// A part of the tenants: `0..20`, `20..`, or all.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Part {
    /// The first.
    pub from: u32,
    /// One after the last; none is all that there are.
    pub to: Option<u32>,
}

impl FromStr for Part {
    type Err = anyhow::Error;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let wrong = || format!("{text:?} is not a part of the tenants: write 0..20, 20.. or all");
        if text == "all" {
            return Ok(Self::default());
        }
        let (from, to) = text.split_once("..").with_context(wrong)?;
        let from = from.parse().with_context(wrong)?;
        let to = if to.is_empty() { None } else { Some(to.parse::<u32>().with_context(wrong)?) };
        if to.is_some_and(|to| to <= from) {
            bail!("{text:?} has no tenant in it");
        }
        Ok(Self { from, to })
    }
}

impl<'de> Deserialize<'de> for Part {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        String::deserialize(deserializer)?.parse().map_err(serde::de::Error::custom)
    }
}

impl Scenario {
    /// A scenario by name, or from a file where the name has a slash or ends in `.toml`. Gives its text too, for the report.
    ///
    /// # Errors
    /// No such scenario, not readable, or not valid; the message names the key.
    pub fn load(name: &str) -> anyhow::Result<(Self, String)> {
        let text = if name.contains('/') || name.ends_with(".toml") {
            std::fs::read_to_string(name).with_context(|| format!("reading the scenario {name}"))?
        } else {
            let built_in = BUILT_IN.iter().find(|(n, _)| *n == name).map(|(_, text)| (*text).to_owned());
            built_in.with_context(|| {
                let names: Vec<&str> = BUILT_IN.iter().map(|(n, _)| *n).collect();
                format!(
                    "there is no scenario {name:?}: there are {}; a file is named with a slash, as ./{name}.toml",
                    names.join(", ")
                )
            })?
        };
        Ok((Self::read(&text).with_context(|| format!("in the scenario {name}"))?, text))
    }

    /// A scenario from TOML.
    ///
    /// # Errors
    /// Not TOML, an unknown key, or values that contradict each other.
    pub fn read(text: &str) -> anyhow::Result<Self> {
        let scenario: Self = toml::from_str(text).map_err(|e| anyhow::anyhow!("{e}"))?;
        scenario.check()?;
        Ok(scenario)
    }

    /// Constant traffic at a rate, for lists of URLs.
    #[must_use]
    pub fn plain(rate: f64, length: Span) -> Self {
        let load = LoadPlan { name: None, length: Some(length), shape: ShapePlan::Constant { rate: Rate::PerSecond(rate) } };
        let stream = StreamPlan {
            name: "main".into(),
            tenants: Part::default(),
            skew: Skew::Uniform,
            arrivals: Spacing::Poisson,
            load: vec![load],
        };
        Self {
            name: "url-list".into(),
            about: "Requests to a list of URLs.".into(),
            read: String::new(),
            thresholds: Vec::new(),
            timeout: None,
            max_in_flight: None,
            fresh_connections: false,
            warm_up: None,
            population: PopulationPlan::default(),
            stream: vec![stream],
            fault: Vec::new(),
            deploy: None,
            calibrate: None,
        }
    }

    /// What TOML alone cannot say.
    ///
    /// # Errors
    /// Values that contradict each other; the message names them.
    pub fn check(&self) -> anyhow::Result<()> {
        if self.stream.is_empty() || self.stream.len() > STREAMS_MAX {
            bail!("a scenario has between 1 and {STREAMS_MAX} [[stream]], this one has {}", self.stream.len());
        }
        let mut names = std::collections::HashSet::new();
        for stream in &self.stream {
            check_name(&stream.name)?;
            if !names.insert(&stream.name) {
                bail!("two streams are named {:?}", stream.name);
            }
            if stream.load.is_empty() || stream.load.len() > STEPS_MAX {
                bail!("stream {:?} has {} [[stream.load]], between 1 and {STEPS_MAX} are possible", stream.name, stream.load.len());
            }
        }
        if self.fault.len() > FAULTS_MAX {
            bail!("{} faults, at most {FAULTS_MAX} are possible", self.fault.len());
        }
        if self.population.limits.is_some() && self.population.tenants == 0 {
            bail!("limits for no tenants");
        }
        if let Some(deploy) = &self.deploy
            && !(deploy.rate > 0.0 && deploy.rate <= 1_000.0)
        {
            bail!("deploys per second must lie between 0 and 1000, not {}", deploy.rate);
        }
        if let Some(calibrate) = &self.calibrate
            && (calibrate.connections == 0 || calibrate.connections > 10_000 || calibrate.length.nanos() == 0)
        {
            bail!("[calibrate] needs between 1 and 10,000 connections and some time");
        }
        Ok(())
    }

    /// How long the load lasts, as far as it is known before traces are read.
    #[must_use]
    pub fn length(&self) -> Span {
        let of_stream = |s: &StreamPlan| s.load.iter().filter_map(|l| l.length).map(|l| l.0).sum();
        Span(self.stream.iter().map(of_stream).max().unwrap_or_default())
    }
}

fn check_name(name: &str) -> anyhow::Result<()> {
    let fine = (1..=40).contains(&name.len()) && name.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-');
    if !fine {
        bail!("the name {name:?} must be 1 to 40 characters of a-z, 0-9 and -");
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn all_that_are_shipped_are_valid_and_carry_their_name() {
        for (name, text) in BUILT_IN {
            let scenario = Scenario::read(text).unwrap_or_else(|e| panic!("{name}: {e:#}"));
            assert_eq!(scenario.name, *name);
            assert!(!scenario.about.is_empty() && !scenario.read.is_empty(), "{name}");
            for fault in &scenario.fault {
                assert!(fault.at < scenario.length(), "{name}: the fault {} comes after the end", fault.name);
            }
        }
    }

    #[test]
    fn unknown_keys_are_refused_wherever_they_stand() {
        let good = "name='x'\nabout='x'\n[population]\ntenants=1\n[[stream]]\nname='s'\n[[stream.load]]\nshape='constant'\nrate=1\nfor='1s'\n";
        Scenario::read(good).unwrap();
        for (from, to) in [
            ("about=", "abuot="),
            ("tenants=1", "tenants=1\ntenant=1"),
            ("name='s'", "name='s'\nskwe='uniform'"),
            ("rate=1", "rate=1\nrato=2"),
            ("rate=1", "rate=1\nsize=2"),
            ("shape='constant'", "shape='sawtooth'"),
        ] {
            let bad = good.replace(from, to);
            assert_ne!(bad, good);
            assert!(Scenario::read(&bad).is_err(), "{bad}");
        }
        let error = format!("{:#}", Scenario::read(&good.replace("tenants=1", "tenants=1\ntenant=1")).unwrap_err());
        assert!(error.contains("tenant"), "{error}");
    }

    #[test]
    fn contradictions_are_refused() {
        let with = |load: &str| Scenario::read(&format!("name='x'\nabout='x'\n[[stream]]\nname='s'\n[[stream.load]]\n{load}\n"));
        assert!(with("shape='constant'\nrate=1").is_err(), "no length");
        assert!(with("shape='constant'\nrate=-1\nfor='1s'").is_err());
        assert!(with("shape='burst'\nsize=0\nevery='1s'\nfor='1s'").is_err());
        assert!(with("shape='pause'\nfor='1s'\nname='A b'").is_err());
        assert!(with("shape='replay'\nspeed=0.0").is_err());
        assert!(with("shape='replay'").is_ok());
        assert!("5..5".parse::<Part>().is_err());
        assert_eq!("5..".parse::<Part>().unwrap(), Part { from: 5, to: None });
        assert!(Scenario::load("no-such").is_err());
    }
}
