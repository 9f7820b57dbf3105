//! Durations and numbers as people write them in flags and scenarios (`10s`, `1.5ms`, `2x`), and as reports show them.

use anyhow::{Context as _, bail};
use serde::{Deserialize, Deserializer, Serialize, Serializer, de::Error as _};
use std::{fmt, str::FromStr, time::Duration};

/// A duration written with its unit: `250us`, `20ms`, `1.5s`, `10m`, `1h`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Default)]
pub struct Span(pub Duration);

impl Span {
    /// Of so many seconds.
    #[must_use]
    pub const fn seconds(seconds: u64) -> Self {
        Self(Duration::from_secs(seconds))
    }

    /// In nanoseconds; more than 584 years are cut to that.
    #[must_use]
    pub fn nanos(self) -> u64 {
        u64::try_from(self.0.as_nanos()).unwrap_or(u64::MAX)
    }

    /// Longer or shorter by a factor.
    #[must_use]
    pub fn scaled(self, factor: f64) -> Self {
        Self(self.0.mul_f64(factor))
    }
}

/// Splits `12.5ms` into its number and its unit.
pub(crate) fn split_unit(text: &str) -> anyhow::Result<(f64, &str)> {
    let text = text.trim();
    let end = text.find(|c: char| !(c.is_ascii_digit() || c == '.')).unwrap_or(text.len());
    let number = text[..end].parse::<f64>().with_context(|| format!("{text:?} does not start with a number"))?;
    Ok((number, text[end..].trim()))
}

/// Seconds in a unit of time, none where it is not one.
pub(crate) fn unit_seconds(unit: &str) -> Option<f64> {
    Some(match unit {
        "ns" => 1e-9,
        "us" | "µs" => 1e-6,
        "ms" => 1e-3,
        "s" => 1.0,
        "m" | "min" => 60.0,
        "h" => 3_600.0,
        _ => return None,
    })
}

impl FromStr for Span {
    type Err = anyhow::Error;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let (number, unit) = split_unit(text)?;
        let Some(seconds) = unit_seconds(unit) else {
            bail!("{text:?} is not a duration: write a number and one of us, ms, s, m, h, as in 30s");
        };
        let seconds = number * seconds;
        if seconds > 400.0 * 86_400.0 {
            bail!("{text:?} is longer than 400 days");
        }
        Ok(Self(Duration::from_secs_f64(seconds)))
    }
}

/// As it is written: in the largest unit of which it is a whole number.
impl fmt::Display for Span {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let us = self.0.as_micros();
        let (size, unit) = [(3_600_000_000, "h"), (60_000_000, "m"), (1_000_000, "s"), (1_000, "ms")]
            .into_iter()
            .find(|(size, _)| us > 0 && us.is_multiple_of(*size))
            .unwrap_or((1, "us"));
        write!(f, "{}{unit}", us / size)
    }
}

impl<'de> Deserialize<'de> for Span {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        String::deserialize(deserializer)?.parse().map_err(D::Error::custom)
    }
}

impl Serialize for Span {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(&format!("{}us", self.0.as_micros()))
    }
}

/// Requests per second: a number, or a multiple of the capacity that was measured or given (`2x`).
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Rate {
    /// Requests per second.
    PerSecond(f64),
    /// Times the capacity.
    Capacity(f64),
}

impl Rate {
    /// In requests per second.
    ///
    /// # Errors
    /// A multiple of a capacity that nobody knows.
    pub fn resolve(self, capacity: Option<f64>) -> anyhow::Result<f64> {
        match self {
            Self::PerSecond(rate) => Ok(rate),
            Self::Capacity(factor) => capacity
                .map(|c| c * factor)
                .context("a rate is given as a multiple of the capacity: give --capacity, or a scenario with [calibrate]"),
        }
    }
}

impl fmt::Display for Rate {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::PerSecond(rate) => write!(f, "{rate}"),
            Self::Capacity(factor) => write!(f, "{factor}x"),
        }
    }
}

impl FromStr for Rate {
    type Err = anyhow::Error;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let (number, unit) = split_unit(text)?;
        let rate = match unit {
            "" | "/s" => Self::PerSecond(number),
            "x" => Self::Capacity(number),
            _ => bail!("{text:?} is not a rate: write requests per second, as 500, or a multiple of the capacity, as 2x"),
        };
        if number > 1e8 {
            bail!("{text:?} is not a rate that any machine can produce");
        }
        Ok(rate)
    }
}

impl<'de> Deserialize<'de> for Rate {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        #[derive(Deserialize)]
        #[serde(untagged)]
        enum Written {
            Number(f64),
            Text(String),
        }
        match Written::deserialize(deserializer)? {
            Written::Number(n) if (0.0..=1e8).contains(&n) => Ok(Self::PerSecond(n)),
            Written::Number(n) => Err(D::Error::custom(format!("{n} is not a rate"))),
            Written::Text(text) => text.parse().map_err(D::Error::custom),
        }
    }
}

/// Milliseconds, as a person reads them: `43 us`, `1.25 ms`, `3.10 s`.
#[must_use]
pub fn show_ms(ms: f64) -> String {
    if !ms.is_finite() {
        "-".to_owned()
    } else if ms < 0.0995 {
        format!("{:.0} us", ms * 1e3)
    } else if ms < 9.995 {
        format!("{ms:.2} ms")
    } else if ms < 99.95 {
        format!("{ms:.1} ms")
    } else if ms < 999.5 {
        format!("{ms:.0} ms")
    } else if ms < 120_000.0 {
        format!("{:.2} s", ms / 1e3)
    } else {
        format!("{:.1} min", ms / 60_000.0)
    }
}

/// A count, with a thin gap between thousands.
#[must_use]
pub fn show_count(count: f64) -> String {
    let digits = format!("{:.0}", count.abs());
    let mut shown = String::new();
    for (i, c) in digits.chars().enumerate() {
        if i > 0 && (digits.len() - i) % 3 == 0 {
            shown.push('\u{202f}');
        }
        shown.push(c);
    }
    if count < 0.0 && digits != "0" { format!("-{shown}") } else { shown }
}

/// A rate per second: whole where large, with digits where small.
#[must_use]
pub fn show_rate(rate: f64) -> String {
    if rate >= 100.0 { show_count(rate) } else { format!("{rate:.1}") }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations_and_rates_are_read_as_written() {
        assert_eq!("1.5ms".parse::<Span>().unwrap().nanos(), 1_500_000);
        assert_eq!("10m".parse::<Span>().unwrap(), Span::seconds(600));
        assert_eq!("2x".parse::<Rate>().unwrap(), Rate::Capacity(2.0));
        for text in ["250us", "20ms", "1500ms", "90s", "10m", "4h"] {
            assert_eq!(text.parse::<Span>().unwrap().to_string(), text);
        }
        assert_eq!((Rate::Capacity(2.0).to_string(), Rate::PerSecond(300.0).to_string()), ("2x".into(), "300".into()));
        assert_eq!("500".parse::<Rate>().unwrap(), Rate::PerSecond(500.0));
        for bad in ["", "10", "s", "-1s", "10 days", "1e9h"] {
            assert!(bad.parse::<Span>().is_err(), "{bad}");
        }
        for bad in ["fast", "-1", "5y", "1000000000"] {
            assert!(bad.parse::<Rate>().is_err(), "{bad}");
        }
        assert!(Rate::Capacity(2.0).resolve(None).is_err());
    }

    #[test]
    fn numbers_are_shown_for_people() {
        assert_eq!(show_ms(0.043), "43 us");
        assert_eq!(show_ms(12.34), "12.3 ms");
        assert_eq!(show_ms(3_100.0), "3.10 s");
        assert_eq!(show_count(1_234_567.0), "1\u{202f}234\u{202f}567");
    }
}
