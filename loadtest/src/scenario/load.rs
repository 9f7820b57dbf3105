//! One `[[stream.load]]` as it is written, and which keys belong to which shape.

use super::{LoadPlan, ShapePlan, check_name};
use crate::units::{Rate, Span};
use anyhow::{Context as _, bail};
use serde::Deserialize;
use std::path::PathBuf;

/// All keys of all shapes.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Written {
    shape: String,
    name: Option<String>,
    #[serde(rename = "for")]
    length: Option<Span>,
    rate: Option<Rate>,
    from: Option<Rate>,
    to: Option<Rate>,
    steps: Option<u32>,
    size: Option<u32>,
    every: Option<Span>,
    trace: Option<PathBuf>,
    from_minute: Option<usize>,
    minutes: Option<usize>,
    speed: Option<f64>,
    scale: Option<f64>,
}

impl Written {
    /// Names a key that does not belong to this shape.
    fn only(&self, keys: &[&str]) -> anyhow::Result<()> {
        let present = [
            ("rate", self.rate.is_some()),
            ("from", self.from.is_some()),
            ("to", self.to.is_some()),
            ("steps", self.steps.is_some()),
            ("size", self.size.is_some()),
            ("every", self.every.is_some()),
            ("trace", self.trace.is_some()),
            ("from_minute", self.from_minute.is_some()),
            ("minutes", self.minutes.is_some()),
            ("speed", self.speed.is_some()),
            ("scale", self.scale.is_some()),
        ];
        if let Some((key, _)) = present.iter().find(|(key, present)| *present && !keys.contains(key)) {
            bail!("a load of shape {:?} has no {key}: it takes name, for, {}", self.shape, keys.join(", "));
        }
        Ok(())
    }

    fn shape(self) -> anyhow::Result<ShapePlan> {
        let shape = self.shape.clone();
        let need = |key: &str| format!("a load of shape {shape:?} needs {key}");
        Ok(match shape.as_str() {
            "pause" => {
                self.only(&[])?;
                ShapePlan::Pause
            }
            "constant" => {
                self.only(&["rate"])?;
                ShapePlan::Constant { rate: self.rate.with_context(|| need("rate"))? }
            }
            "ramp" => {
                self.only(&["from", "to"])?;
                ShapePlan::Ramp { from: self.from.with_context(|| need("from"))?, to: self.to.with_context(|| need("to"))? }
            }
            "step" => {
                self.only(&["from", "to", "steps"])?;
                let steps = self.steps.with_context(|| need("steps"))?;
                if !(1..=1_000).contains(&steps) {
                    bail!("steps must lie between 1 and 1000, not {steps}");
                }
                let from = self.from.with_context(|| need("from"))?;
                ShapePlan::Step { from, to: self.to.with_context(|| need("to"))?, steps }
            }
            "burst" => {
                self.only(&["size", "every"])?;
                let (size, every) = (self.size.with_context(|| need("size"))?, self.every.with_context(|| need("every"))?);
                if size == 0 || every.nanos() == 0 {
                    bail!("a burst's size and interval must be above 0");
                }
                ShapePlan::Burst { size, every }
            }
            "replay" => {
                self.only(&["trace", "from_minute", "minutes", "speed", "scale"])?;
                let (speed, scale) = (self.speed.unwrap_or(1.0), self.scale.unwrap_or(1.0));
                if !(speed > 0.0 && scale > 0.0) {
                    bail!("a replay's speed and scale must be above 0");
                }
                let from_minute = self.from_minute.unwrap_or(0);
                ShapePlan::Replay { trace: self.trace, from_minute, minutes: self.minutes, speed, scale }
            }
            other => bail!("{other:?} is not a shape: there are constant, ramp, step, burst, replay, pause"),
        })
    }
}

impl TryFrom<Written> for LoadPlan {
    type Error = anyhow::Error;

    fn try_from(written: Written) -> Result<Self, Self::Error> {
        if let Some(name) = &written.name {
            check_name(name)?;
        }
        let (name, length) = (written.name.clone(), written.length);
        let shape = written.shape()?;
        let replay = matches!(shape, ShapePlan::Replay { .. });
        match length {
            Some(_) if replay => bail!("a replay lasts as long as its minutes: leave out for"),
            None if !replay => bail!("a load needs a length: for = \"30s\""),
            Some(length) if length.nanos() == 0 => bail!("a load's length must be above 0"),
            _ => Ok(Self { name, length, shape }),
        }
    }
}

impl LoadPlan {
    /// Every rate that occurs.
    pub fn rates_mut(&mut self) -> Vec<&mut Rate> {
        match &mut self.shape {
            ShapePlan::Constant { rate } => vec![rate],
            ShapePlan::Ramp { from, to } | ShapePlan::Step { from, to, .. } => vec![from, to],
            _ => Vec::new(),
        }
    }
}
