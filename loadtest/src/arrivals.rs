//! When requests are to be sent, decided before any is sent: an iterator of intended moments that knows no clock and no server, so that
//! a slow answer can neither delay nor thin the requests after it. The same seed gives the same arrivals, however many
//! threads share them.

use crate::{pick::Picker, seeded::Seeded, trace::Replay};
use std::sync::Arc;

/// One request that is to be sent.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Arrival {
    /// When, in nanoseconds from the start of the load.
    pub at_ns: u64,
    /// Of which stream.
    pub stream: u16,
    /// In which step of that stream.
    pub step: u16,
    /// Which function of the population is called.
    pub function: u32,
}

/// How arrivals of one rate lie in time.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, serde::Deserialize, serde::Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Spacing {
    /// Evenly: for comparisons.
    Constant,
    /// Independent of each other, as requests of many callers are.
    #[default]
    Poisson,
}

/// What a stream does for a while.
#[derive(Debug, Clone)]
pub enum Shape {
    /// A rate that goes in a straight line from one value to another; equal ones are a constant rate, zeros a pause.
    Line {
        /// Requests per second at the start.
        from: f64,
        /// Requests per second at the end.
        to: f64,
    },
    /// Equal steps from one rate to another.
    Stairs {
        /// Requests per second of the first.
        from: f64,
        /// Requests per second of the last.
        to: f64,
        /// How many.
        steps: u32,
    },
    /// So many at the same instant, again and again.
    Burst {
        /// Requests of one burst.
        size: u32,
        /// From one to the next, in nanoseconds.
        every_ns: u64,
    },
    /// What a trace says.
    Replay(Arc<Replay>),
}

/// A shape and how long it lasts.
#[derive(Debug, Clone)]
pub struct LoadStep {
    /// What happens.
    pub shape: Shape,
    /// For how long, in nanoseconds.
    pub length_ns: u64,
}

/// The arrivals of one stream.
#[derive(Debug)]
pub struct StreamArrivals {
    steps: Vec<LoadStep>,
    spacing: Spacing,
    picker: Picker,
    stream: u16,
    seed: u64,
    step: usize,
    step_start_ns: u64,
    current: Option<StepArrivals>,
}

impl StreamArrivals {
    /// The arrivals of the stream with this number.
    #[must_use]
    pub fn new(stream: u16, steps: Vec<LoadStep>, spacing: Spacing, picker: Picker, seed: u64) -> Self {
        Self { steps, spacing, picker, stream, seed, step: 0, step_start_ns: 0, current: None }
    }
}

impl Iterator for StreamArrivals {
    type Item = Arrival;

    fn next(&mut self) -> Option<Arrival> {
        loop {
            let step = self.steps.get(self.step)?;
            let seed = Seeded::new(self.seed, (u64::from(self.stream) << 32) | self.step as u64);
            let current = self.current.get_or_insert_with(|| StepArrivals::new(step, self.spacing, seed));
            if let Some((offset_ns, function)) = current.next().filter(|(offset, _)| *offset < step.length_ns) {
                return Some(Arrival {
                    at_ns: self.step_start_ns + offset_ns,
                    stream: self.stream,
                    step: self.step as u16,
                    function: function.unwrap_or_else(|| self.picker.pick()),
                });
            }
            self.step_start_ns += step.length_ns;
            self.step += 1;
            self.current = None;
        }
    }
}

/// The arrivals of several streams, in the order of time.
#[derive(Debug)]
pub struct Merged {
    streams: Vec<(Option<Arrival>, StreamArrivals)>,
}

impl Merged {
    /// Merges.
    #[must_use]
    pub fn new(streams: Vec<StreamArrivals>) -> Self {
        Self { streams: streams.into_iter().map(|mut s| (s.next(), s)).collect() }
    }
}

impl Iterator for Merged {
    type Item = Arrival;

    fn next(&mut self) -> Option<Arrival> {
        let (next, stream) =
            self.streams.iter_mut().filter(|(next, _)| next.is_some()).min_by_key(|(next, _)| next.map(|a| a.at_ns))?;
        std::mem::replace(next, stream.next())
    }
}

/// The arrivals of one step, as offsets from its start; a function where the shape itself says which.
#[derive(Debug)]
enum StepArrivals {
    Lines { segments: Vec<Segment>, index: usize, done: f64, unit: UnitProcess },
    Burst { size: u32, every_ns: u64, length_ns: u64, count: u64 },
    Replay(crate::trace::ReplayArrivals),
}

/// A piece of a rate that goes in a straight line.
#[derive(Debug, Clone, Copy)]
struct Segment {
    start_s: f64,
    length_s: f64,
    from: f64,
    to: f64,
}

/// Arrivals at rate 1; stretching its time by the wanted rate gives the wanted arrivals, whatever that rate does.
#[derive(Debug)]
struct UnitProcess {
    spacing: Spacing,
    seeded: Seeded,
    next: f64,
}

impl UnitProcess {
    fn new(spacing: Spacing, mut seeded: Seeded) -> Self {
        let next = match spacing {
            Spacing::Constant => 0.5,
            Spacing::Poisson => seeded.exponential(),
        };
        Self { spacing, seeded, next }
    }

    fn advance(&mut self) {
        self.next += match self.spacing {
            Spacing::Constant => 1.0,
            Spacing::Poisson => self.seeded.exponential(),
        };
    }
}

impl Segment {
    fn area(&self) -> f64 {
        (self.from + self.to) / 2.0 * self.length_s
    }

    /// When so many arrivals of this piece have passed.
    fn moment(&self, count: f64) -> f64 {
        let slope = (self.to - self.from) / self.length_s;
        let within = if slope.abs() < 1e-9 {
            count / self.from
        } else {
            ((self.from * self.from + 2.0 * slope * count).max(0.0).sqrt() - self.from) / slope
        };
        self.start_s + within.min(self.length_s)
    }
}

impl StepArrivals {
    fn new(step: &LoadStep, spacing: Spacing, seeded: Seeded) -> Self {
        let length_s = step.length_ns as f64 / 1e9;
        let segments = match &step.shape {
            Shape::Line { from, to } => vec![Segment { start_s: 0.0, length_s, from: *from, to: *to }],
            Shape::Stairs { from, to, steps } => {
                let steps = (*steps).max(1);
                let each = length_s / f64::from(steps);
                (0..steps)
                    .map(|i| {
                        let rate = from + (to - from) * f64::from(i) / f64::from((steps - 1).max(1));
                        Segment { start_s: each * f64::from(i), length_s: each, from: rate, to: rate }
                    })
                    .collect()
            }
            Shape::Burst { size, every_ns } => {
                return Self::Burst { size: *size, every_ns: (*every_ns).max(1), length_ns: step.length_ns, count: 0 };
            }
            Shape::Replay(replay) => return Self::Replay(replay.arrivals(seeded)),
        };
        Self::Lines { segments, index: 0, done: 0.0, unit: UnitProcess::new(spacing, seeded) }
    }

    fn next(&mut self) -> Option<(u64, Option<u32>)> {
        match self {
            Self::Lines { segments, index, done, unit } => loop {
                let segment = segments.get(*index)?;
                let area = segment.area();
                if unit.next < *done + area {
                    let moment = segment.moment(unit.next - *done);
                    unit.advance();
                    return Some(((moment * 1e9) as u64, None));
                }
                *done += area;
                *index += 1;
            },
            Self::Burst { size, every_ns, length_ns, count } => {
                if *size == 0 {
                    return None;
                }
                let at = (*count / u64::from(*size)).saturating_mul(*every_ns);
                *count += 1;
                (at < *length_ns).then_some((at, None))
            }
            Self::Replay(replay) => replay.next().map(|(at, function)| (at, Some(function))),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: u64 = 1_000_000_000;

    fn arrivals(shape: Shape, seconds: u64, spacing: Spacing) -> Vec<u64> {
        let step = LoadStep { shape, length_ns: seconds * SECOND };
        StreamArrivals::new(0, vec![step], spacing, Picker::uniform(0, 10, 1), 1).map(|a| a.at_ns).collect()
    }

    #[test]
    fn a_constant_rate_is_even_and_exact() {
        let at = arrivals(Shape::Line { from: 100.0, to: 100.0 }, 10, Spacing::Constant);
        assert_eq!(at.len(), 1_000);
        assert_eq!(at[0], 5_000_000);
        assert!(at.windows(2).all(|w| (w[1] - w[0]).abs_diff(10_000_000) <= 2));
    }

    #[test]
    fn poisson_has_its_rate_and_the_spread_of_independence() {
        let at = arrivals(Shape::Line { from: 1_000.0, to: 1_000.0 }, 60, Spacing::Poisson);
        assert!((at.len() as f64 - 60_000.0).abs() < 1_000.0, "{}", at.len());
        let gaps: Vec<f64> = at.windows(2).map(|w| (w[1] - w[0]) as f64 / 1e6).collect();
        let mean = gaps.iter().sum::<f64>() / gaps.len() as f64;
        let deviation = (gaps.iter().map(|g| (g - mean).powi(2)).sum::<f64>() / gaps.len() as f64).sqrt();
        assert!((deviation / mean - 1.0).abs() < 0.03, "{}", deviation / mean);
    }

    #[test]
    fn a_ramp_has_the_area_below_its_line() {
        let at = arrivals(Shape::Line { from: 0.0, to: 200.0 }, 10, Spacing::Constant);
        assert_eq!(at.len(), 1_000);
        let first_half = at.iter().filter(|t| **t < 5 * SECOND).count();
        assert_eq!(first_half, 250);
        assert!(at.is_sorted());
        let down = arrivals(Shape::Line { from: 200.0, to: 0.0 }, 10, Spacing::Constant);
        assert_eq!(down.iter().filter(|t| **t < 5 * SECOND).count(), 750);
    }

    #[test]
    fn stairs_climb_in_equal_steps() {
        let at = arrivals(Shape::Stairs { from: 100.0, to: 300.0, steps: 3 }, 30, Spacing::Constant);
        let per_step: Vec<usize> =
            (0..3).map(|s| at.iter().filter(|t| (s * 10 * SECOND..(s + 1) * 10 * SECOND).contains(t)).count()).collect();
        assert_eq!(per_step, [1_000, 2_000, 3_000]);
    }

    #[test]
    fn bursts_come_at_once_and_on_time() {
        let at = arrivals(Shape::Burst { size: 5, every_ns: 2 * SECOND }, 5, Spacing::Poisson);
        assert_eq!(at, [vec![0; 5], vec![2 * SECOND; 5], vec![4 * SECOND; 5]].concat());
    }

    #[test]
    fn a_pause_has_none_and_steps_follow_each_other() {
        let steps = vec![
            LoadStep { shape: Shape::Line { from: 10.0, to: 10.0 }, length_ns: SECOND },
            LoadStep { shape: Shape::Line { from: 0.0, to: 0.0 }, length_ns: SECOND },
            LoadStep { shape: Shape::Line { from: 20.0, to: 20.0 }, length_ns: SECOND },
        ];
        let all: Vec<Arrival> = StreamArrivals::new(3, steps, Spacing::Constant, Picker::uniform(0, 4, 1), 1).collect();
        assert_eq!(all.iter().filter(|a| a.step == 0).count(), 10);
        assert_eq!(all.iter().filter(|a| a.step == 1).count(), 0);
        assert!(all.iter().filter(|a| a.step == 2).all(|a| a.at_ns >= 2 * SECOND && a.at_ns < 3 * SECOND));
        assert_eq!(all.len(), 30);
    }

    #[test]
    fn streams_are_merged_in_order_and_a_seed_repeats() {
        let make = || {
            let stream = |n| {
                let steps = vec![LoadStep { shape: Shape::Line { from: 50.0, to: 500.0 }, length_ns: 3 * SECOND }];
                StreamArrivals::new(n, steps, Spacing::Poisson, Picker::uniform(0, 100, u64::from(n)), 9)
            };
            Merged::new(vec![stream(0), stream(1)]).collect::<Vec<_>>()
        };
        let all = make();
        assert!(all.is_sorted_by_key(|a| a.at_ns));
        assert_eq!(all, make());
        assert!(all.iter().any(|a| a.stream == 0) && all.iter().any(|a| a.stream == 1));
    }
}
