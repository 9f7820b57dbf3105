//! Which function an arrival calls: some tenants are called all the time and most hardly ever.

use crate::seeded::Seeded;
use anyhow::{Context as _, bail};
use std::{path::PathBuf, str::FromStr, sync::Arc};

/// How calls are spread over tenants.
#[derive(Debug, Clone, PartialEq, Default)]
pub enum Skew {
    /// All alike.
    #[default]
    Uniform,
    /// The tenant of rank `r` gets a share of `1 / r^exponent`.
    Zipf(f64),
    /// As often as in a trace.
    Trace(PathBuf),
    /// Every function in turn, none twice before all were called once: for cold starts.
    Each,
}

impl std::fmt::Display for Skew {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Uniform => f.write_str("uniform"),
            Self::Zipf(exponent) => write!(f, "zipf:{exponent}"),
            Self::Trace(file) => write!(f, "trace:{}", file.display()),
            Self::Each => f.write_str("each"),
        }
    }
}

impl FromStr for Skew {
    type Err = anyhow::Error;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        Ok(match text.split_once(':') {
            None if text == "uniform" => Self::Uniform,
            None if text == "each" => Self::Each,
            Some(("zipf", exponent)) => {
                let exponent: f64 = exponent.parse().with_context(|| format!("{exponent:?} in {text:?} is not a number"))?;
                if !(0.0..=10.0).contains(&exponent) {
                    bail!("the exponent in {text:?} must lie between 0 and 10");
                }
                Self::Zipf(exponent)
            }
            Some(("trace", file)) if !file.is_empty() => Self::Trace(file.into()),
            _ => bail!("{text:?} is not a skew: use uniform, zipf:1.1, trace:FILE or each"),
        })
    }
}

impl<'de> serde::Deserialize<'de> for Skew {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        String::deserialize(deserializer)?.parse().map_err(serde::de::Error::custom)
    }
}

/// Picks functions, one after the other, by seed.
#[derive(Debug, Clone)]
pub enum Picker {
    /// By weight.
    Weighted {
        /// The table of weights, shared by all threads.
        table: Arc<Alias>,
        /// What table entry `i` stands for.
        functions: Arc<Vec<u32>>,
        /// Where the numbers come from.
        seeded: Seeded,
    },
    /// In turn.
    Each {
        /// The order.
        functions: Arc<Vec<u32>>,
        /// The next one.
        next: usize,
    },
}

impl Picker {
    /// All of `from..to` alike.
    #[must_use]
    pub fn uniform(from: u32, to: u32, seed: u64) -> Self {
        let functions: Vec<u32> = (from..to.max(from + 1)).collect();
        let weights = vec![1.0; functions.len()];
        Self::weighted(functions, &weights, seed)
    }

    /// Each as often as its weight.
    #[must_use]
    pub fn weighted(functions: Vec<u32>, weights: &[f64], seed: u64) -> Self {
        Self::Weighted {
            table: Arc::new(Alias::new(weights)),
            functions: Arc::new(functions),
            seeded: Seeded::new(seed, 0x7069_636b),
        }
    }

    /// In a shuffled order, each once before any comes again.
    #[must_use]
    pub fn each(mut functions: Vec<u32>, seed: u64) -> Self {
        Seeded::new(seed, 0x6561_6368).shuffle(&mut functions);
        Self::Each { functions: Arc::new(functions), next: 0 }
    }

    /// The next function.
    pub fn pick(&mut self) -> u32 {
        match self {
            Self::Weighted { table, functions, seeded } => functions[table.pick(seeded)],
            Self::Each { functions, next } => {
                let function = functions[*next];
                *next = (*next + 1) % functions.len();
                function
            }
        }
    }
}

/// Zipf's weights for `n` ranks.
#[must_use]
pub fn zipf_weights(n: usize, exponent: f64) -> Vec<f64> {
    (1..=n).map(|rank| (rank as f64).powf(-exponent)).collect()
}

/// Walker's alias table: one pick costs the same for ten functions and for a million.
#[derive(Debug)]
pub struct Alias {
    keep: Vec<f32>,
    other: Vec<u32>,
}

impl Alias {
    /// A table for these weights, of which one must be above zero; others count as zero.
    #[must_use]
    pub fn new(weights: &[f64]) -> Self {
        let n = weights.len().max(1);
        let weight = |i: usize| weights.get(i).copied().filter(|w| w.is_finite() && *w > 0.0).unwrap_or(0.0);
        let total: f64 = (0..n).map(weight).sum();
        let mut scaled: Vec<f64> = (0..n).map(|i| if total > 0.0 { weight(i) / total * n as f64 } else { 1.0 }).collect();
        let (mut keep, mut other) = (vec![1.0_f32; n], (0..n as u32).collect::<Vec<_>>());
        let (mut small, mut large): (Vec<usize>, Vec<usize>) = (0..n).partition(|i| scaled[*i] < 1.0);
        while let (Some(s), Some(l)) = (small.pop(), large.last().copied()) {
            keep[s] = scaled[s] as f32;
            other[s] = l as u32;
            scaled[l] -= 1.0 - scaled[s];
            if scaled[l] < 1.0 {
                large.pop();
                small.push(l);
            }
        }
        Self { keep, other }
    }

    /// An index, as often as its weight.
    pub fn pick(&self, seeded: &mut Seeded) -> usize {
        let i = seeded.below(self.keep.len() as u64) as usize;
        if (seeded.unit() as f32) < self.keep[i] { i } else { self.other[i] as usize }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn weights_are_kept() {
        let mut picker = Picker::weighted(vec![5, 6, 7], &[1.0, 0.0, 3.0], 1);
        let mut counts = [0; 3];
        for _ in 0..100_000 {
            counts[picker.pick() as usize - 5] += 1;
        }
        assert_eq!(counts[1], 0);
        assert!((f64::from(counts[2]) / f64::from(counts[0]) - 3.0).abs() < 0.1, "{counts:?}");
    }

    #[test]
    fn zipf_has_its_shares() {
        let weights = zipf_weights(1_000, 1.1);
        let total: f64 = weights.iter().sum();
        let mut picker = Picker::weighted((0..1_000).collect(), &weights, 2);
        let mut counts = vec![0_u32; 1_000];
        for _ in 0..1_000_000 {
            counts[picker.pick() as usize] += 1;
        }
        for rank in [0, 1, 9, 99] {
            let expected = weights[rank] / total * 1e6;
            assert!((f64::from(counts[rank]) / expected - 1.0).abs() < 0.1, "rank {rank}: {} of {expected}", counts[rank]);
        }
    }

    #[test]
    fn each_comes_once_before_any_comes_again() {
        let mut picker = Picker::each((0..50).collect(), 3);
        let mut first: Vec<u32> = (0..50).map(|_| picker.pick()).collect();
        assert_ne!(first, (0..50).collect::<Vec<_>>(), "the order is shuffled");
        let again = picker.pick();
        assert_eq!(again, first[0]);
        first.sort_unstable();
        assert_eq!(first, (0..50).collect::<Vec<_>>());
    }

    #[test]
    fn skews_are_read_as_written() {
        assert_eq!("zipf:1.1".parse::<Skew>().unwrap(), Skew::Zipf(1.1));
        assert_eq!("trace:a:b.csv".parse::<Skew>().unwrap(), Skew::Trace("a:b.csv".into()));
        for bad in ["zipf", "zipf:x", "zipf:-1", "trace:", "normal:3", ""] {
            assert!(bad.parse::<Skew>().is_err(), "{bad}");
        }
    }
}
