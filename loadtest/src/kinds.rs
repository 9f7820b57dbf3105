//! The functions that a load test brings along: their source, what they depend on, and how they are called.

use anyhow::{Context as _, bail};
use http::Method;
use std::{collections::BTreeMap, str::FromStr};

/// The header in which these functions say which one they are, so that an answer of another tenant's function is noticed.
pub const ID_HEADER: &str = "x-loadtest-id";
/// The variable that tells them.
pub const ID_VARIABLE: &str = "LOADTEST_ID";

/// A function that is deployed and called.
#[derive(Debug)]
pub struct Kind {
    /// Its name, as in `--mix`.
    pub name: &'static str,
    /// What it does, for people.
    pub about: &'static str,
    /// Its source.
    pub source: &'static str,
    /// npm modules, by range.
    pub dependencies: &'static [(&'static str, &'static str)],
    /// How it is called.
    pub method: Method,
    /// The query that it is called with.
    pub query: &'static str,
    /// Whether the scenario's body is sent.
    pub takes_body: bool,
    /// Deadline of one call on the platform, where the default is too long.
    pub timeout_ms: Option<u64>,
}

macro_rules! kind {
    ($name:literal, $about:literal, $deps:expr, $method:ident, $query:literal, $body:literal, $timeout:expr) => {
        Kind {
            name: $name,
            about: $about,
            source: include_str!(concat!("../functions/", $name, ".js")),
            dependencies: $deps,
            method: Method::$method,
            query: $query,
            takes_body: $body,
            timeout_ms: $timeout,
        }
    };
}

/// All of them. The order is part of what a seed means: new ones go to the end.
pub static KINDS: &[Kind] = &[
    kind!("hello", "answers at once", &[], GET, "", false, None),
    kind!("cpu", "10 ms of one core", &[], GET, "?ms=10", false, None),
    kind!("sleep", "waits 50 ms", &[], GET, "?ms=50", false, None),
    kind!("echo", "sends the body back", &[], POST, "", true, None),
    kind!("stream", "10 chunks of 1 KiB, 10 ms apart", &[], GET, "?chunks=10&bytes=1024&ms=10", false, None),
    kind!("modules-small", "ms: kilobytes", &[("ms", "2.1.3")], GET, "", false, None),
    kind!("modules-medium", "express and lodash: 4 MB", &[("express", "4.21.2"), ("lodash", "4.17.21")], GET, "", false, None),
    kind!("modules-large", "an AWS client: 20 MB", &[("@aws-sdk/client-s3", "3.726.1")], GET, "", false, None),
    kind!("modules-huge", "googleapis: 120 MB", &[("googleapis", "144.0.0")], GET, "", false, None),
    kind!("faulty", "throws, rejects, exits or hangs", &[], GET, "", false, Some(1_000)),
];

/// Which kinds a population has, and their shares of its functions.
#[derive(Debug, Clone, PartialEq)]
pub struct Mix(pub Vec<(u8, f64)>);

impl Mix {
    /// From names and weights.
    ///
    /// # Errors
    /// A name that is no kind, a weight that is none, or nothing at all.
    pub fn new<'a>(parts: impl IntoIterator<Item = (&'a str, f64)>) -> anyhow::Result<Self> {
        let mut mix = Vec::new();
        for (name, weight) in parts {
            let kind = KINDS.iter().position(|k| k.name == name).with_context(|| {
                let names: Vec<&str> = KINDS.iter().map(|k| k.name).collect();
                format!("{name:?} is not a kind of function: there are {}", names.join(", "))
            })?;
            if !(weight.is_finite() && weight > 0.0) {
                bail!("the share of {name} must be above 0");
            }
            mix.push((kind as u8, weight));
        }
        if mix.is_empty() {
            bail!("a mix needs a kind of function");
        }
        Ok(Self(mix))
    }

    /// One kind for each of `n` functions: the shares are met as exactly as whole functions allow.
    #[must_use]
    pub fn assign(&self, n: usize, seed: u64) -> Vec<u8> {
        let total: f64 = self.0.iter().map(|(_, w)| w).sum();
        let mut kinds = Vec::with_capacity(n);
        let mut due = 0.0;
        for (kind, weight) in &self.0 {
            due += weight / total * n as f64;
            kinds.resize((due.round() as usize).min(n), *kind);
        }
        kinds.resize(n, self.0[self.0.len() - 1].0);
        crate::seeded::Seeded::new(seed, 0x6b69_6e64).shuffle(&mut kinds);
        kinds
    }
}

impl Default for Mix {
    fn default() -> Self {
        Self(vec![(0, 1.0)])
    }
}

impl FromStr for Mix {
    type Err = anyhow::Error;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let parts = text.split(',').map(|part| {
            let (name, weight) = part.trim().split_once('=').unwrap_or((part.trim(), "1"));
            let weight = weight.parse::<f64>().with_context(|| format!("{weight:?} in the mix is not a number"))?;
            Ok((name, weight))
        });
        Self::new(parts.collect::<anyhow::Result<Vec<_>>>()?)
    }
}

impl<'de> serde::Deserialize<'de> for Mix {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let parts = BTreeMap::<String, f64>::deserialize(deserializer)?;
        Self::new(parts.iter().map(|(name, weight)| (name.as_str(), *weight))).map_err(serde::de::Error::custom)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn shares_are_met_in_whole_functions() {
        let mix: Mix = "hello=0.7,cpu=0.2,faulty=0.1".parse().unwrap();
        let kinds = mix.assign(10, 1);
        assert_eq!([0, 1, 9].map(|k| kinds.iter().filter(|x| **x == k).count()), [7, 2, 1]);
        assert_eq!(kinds, mix.assign(10, 1));
        assert_eq!(mix.assign(1, 1).len(), 1);
        assert!(mix.assign(0, 1).is_empty());
    }

    #[test]
    fn bad_mixes_are_refused_with_the_names_that_there_are() {
        let error = "hallo=1".parse::<Mix>().unwrap_err().to_string();
        assert!(error.contains("modules-medium"), "{error}");
        for bad in ["", "hello=0", "hello=x", "hello=-1"] {
            assert!(bad.parse::<Mix>().is_err(), "{bad}");
        }
    }

    #[test]
    fn sources_name_their_modules() {
        for kind in KINDS {
            for (module, _) in kind.dependencies {
                assert!(kind.source.contains(&format!("require('{module}')")), "{}", kind.name);
            }
            assert!(kind.source.contains("module.exports"), "{}", kind.name);
            assert!(kind.name == "faulty" || kind.source.contains(ID_HEADER), "{}", kind.name);
        }
    }
}
