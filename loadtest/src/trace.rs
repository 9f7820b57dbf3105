//! Traces: invocations of functions per minute in the CSV form of the Azure Functions data set of 2019 (`HashOwner, HashApp, HashFunction, Trigger,
//! 1, 2, ... 1440`), read, replayed, and made by seed from the distributions published with it (Shahrad et al., "Serverless in the Wild",
//! USENIX ATC 2020): how many functions an application has, how often functions are called, by what they are triggered.

use crate::seeded::Seeded;
use anyhow::{Context as _, bail};
use std::{
    collections::HashMap,
    io::{BufRead, Write},
    path::Path,
    sync::Arc,
};

/// Functions of a trace; more are refused, so that a wrong file cannot fill the memory. The largest day published has 47,000.
pub const ROWS_MAX: usize = 500_000;
/// Minutes of a trace: one day.
pub const MINUTES_MAX: usize = 1_440;

/// Minutes with invocations, and how many.
pub type Counts = Vec<(u16, u32)>;

/// One function of a trace.
#[derive(Debug, Clone, PartialEq)]
pub struct TraceRow {
    /// Its owner, numbered in the order of appearance: a tenant.
    pub owner: u32,
    /// Which function of that owner, in the order of appearance.
    pub ordinal: u32,
    /// `http`, `timer`, `queue`, `event`, `storage`, `orchestration`, `others`.
    pub trigger: String,
    /// Minutes with invocations, and how many.
    pub counts: Counts,
}

impl TraceRow {
    /// All invocations.
    #[must_use]
    pub fn total(&self) -> u64 {
        self.counts.iter().map(|(_, n)| u64::from(*n)).sum()
    }
}

/// A trace.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Trace {
    /// Its functions.
    pub rows: Vec<TraceRow>,
    /// How many minutes it has.
    pub minutes: usize,
}

impl Trace {
    /// Reads a file.
    ///
    /// # Errors
    /// Not a readable file, or not of this form; the message names the line.
    pub fn open(path: &Path) -> anyhow::Result<Self> {
        let file = std::fs::File::open(path).with_context(|| format!("reading the trace {}", path.display()))?;
        Self::read(std::io::BufReader::new(file)).with_context(|| format!("in the trace {}", path.display()))
    }

    /// Reads CSV.
    ///
    /// # Errors
    /// Not of this form; the message names the line.
    pub fn read(input: impl BufRead) -> anyhow::Result<Self> {
        let mut lines = input.lines();
        let header = lines.next().context("it is empty")??;
        let minutes = header_minutes(&header)?;
        let (mut owners, mut per_owner) = (HashMap::<String, u32>::new(), HashMap::<u32, u32>::new());
        let mut rows = Vec::new();
        for (number, line) in lines.enumerate() {
            let line = line?;
            if line.trim().is_empty() {
                continue;
            }
            if rows.len() == ROWS_MAX {
                bail!("it has more than {ROWS_MAX} functions");
            }
            let (owner, trigger, counts) = read_row(&line, minutes).with_context(|| format!("line {}", number + 2))?;
            let next = owners.len() as u32;
            let owner = *owners.entry(owner).or_insert(next);
            let ordinal = per_owner.entry(owner).or_default();
            rows.push(TraceRow { owner, ordinal: *ordinal, trigger, counts });
            *ordinal += 1;
        }
        if rows.is_empty() {
            bail!("it has a header and no functions");
        }
        Ok(Self { rows, minutes })
    }

    /// Writes CSV.
    ///
    /// # Errors
    /// The output cannot be written.
    pub fn write(&self, mut out: impl Write) -> std::io::Result<()> {
        write!(out, "HashOwner,HashApp,HashFunction,Trigger")?;
        (1..=self.minutes).try_for_each(|minute| write!(out, ",{minute}"))?;
        writeln!(out)?;
        for row in &self.rows {
            write!(out, "owner{0:06},app{0:06},function{0:06}-{1},{2}", row.owner, row.ordinal, row.trigger)?;
            let mut counts = row.counts.iter().peekable();
            for minute in 0..self.minutes {
                let n = counts.next_if(|(m, _)| usize::from(*m) == minute).map_or(0, |(_, n)| *n);
                write!(out, ",{n}")?;
            }
            writeln!(out)?;
        }
        out.flush()
    }

    /// Makes a trace of so many functions.
    #[must_use]
    pub fn generate(functions: usize, minutes: usize, seed: u64) -> Self {
        let minutes = minutes.clamp(1, MINUTES_MAX);
        let mut seeded = Seeded::new(seed, 0x7472_6163);
        let mut rows = Vec::with_capacity(functions.min(ROWS_MAX));
        let mut owner = 0;
        while rows.len() < functions.min(ROWS_MAX) {
            let size = functions_of_an_app(&mut seeded).min(functions - rows.len());
            for ordinal in 0..size as u32 {
                let trigger = trigger(&mut seeded);
                let per_minute = invocations_per_day(&mut seeded) / 1_440.0;
                let counts = minute_counts(trigger, per_minute, minutes, &mut seeded);
                rows.push(TraceRow { owner, ordinal, trigger: trigger.to_owned(), counts });
            }
            owner += 1;
        }
        Self { rows, minutes }
    }
}

fn header_minutes(header: &str) -> anyhow::Result<usize> {
    let mut columns = header.trim_end().split(',');
    for expected in ["HashOwner", "HashApp", "HashFunction", "Trigger"] {
        let column = columns.next().unwrap_or("");
        if column != expected {
            bail!(
                "line 1: the column {expected} is expected where {column:?} stands: is this a file of invocations per function and minute?"
            );
        }
    }
    let minutes = columns.clone().count();
    if minutes == 0 || minutes > MINUTES_MAX {
        bail!("line 1: it has {minutes} minutes, between 1 and {MINUTES_MAX} are expected");
    }
    for (i, column) in columns.enumerate() {
        if column.parse() != Ok(i + 1) {
            bail!("line 1: minute {} is expected where {column:?} stands", i + 1);
        }
    }
    Ok(minutes)
}

fn read_row(line: &str, minutes: usize) -> anyhow::Result<(String, String, Counts)> {
    let mut fields = line.trim_end().split(',');
    let mut text = |name: &str| fields.next().filter(|f| !f.is_empty()).with_context(|| format!("{name} is missing"));
    let owner = text("HashOwner")?.to_owned();
    text("HashApp")?;
    text("HashFunction")?;
    let trigger = text("Trigger")?.to_owned();
    let mut counts = Vec::new();
    let mut seen = 0;
    for field in fields {
        let count: u32 =
            field.parse().ok().with_context(|| format!("minute {}: {field:?} is not a number of invocations", seen + 1))?;
        if count > 0 {
            counts.push((seen as u16, count));
        }
        seen += 1;
        if seen > minutes {
            break;
        }
    }
    if seen != minutes {
        bail!(
            "it has {} minutes where the header has {minutes}",
            if seen > minutes { "more".to_owned() } else { seen.to_string() }
        );
    }
    Ok((owner, trigger, counts))
}

/// 54% of applications have one function, 95% at most ten.
fn functions_of_an_app(seeded: &mut Seeded) -> usize {
    let (from, to) = match seeded.unit() {
        u if u < 0.54 => (1, 1),
        u if u < 0.70 => (2, 2),
        u if u < 0.80 => (3, 3),
        u if u < 0.88 => (4, 5),
        u if u < 0.95 => (6, 10),
        u if u < 0.9996 => (11, 100),
        _ => (101, 500),
    };
    (from + seeded.below(to - from + 1)) as usize
}

/// Shares of functions by trigger.
fn trigger(seeded: &mut Seeded) -> &'static str {
    match seeded.unit() {
        u if u < 0.550 => "http",
        u if u < 0.706 => "timer",
        u if u < 0.858 => "queue",
        u if u < 0.927 => "orchestration",
        u if u < 0.955 => "storage",
        u if u < 0.978 => "event",
        _ => "others",
    }
}

/// Points of the published distribution of average rates, as (share of functions, decimal logarithm of invocations a day): 45% run once an hour or less,
/// 81% once a minute or less, and the range is eight orders of magnitude. Between the points the logarithm is interpolated; the tail
/// beyond one a second is chosen so that the functions above one a minute make more than 99% of all invocations, as published.
const RATES: [(f64, f64); 7] = [(0.0, 0.0), (0.20, 0.6), (0.45, 1.38), (0.81, 3.158), (0.96, 4.94), (0.995, 6.0), (1.0, 8.0)];

fn invocations_per_day(seeded: &mut Seeded) -> f64 {
    let share = seeded.unit();
    let above = RATES.iter().position(|(s, _)| share < *s).unwrap_or(RATES.len() - 1).max(1);
    let ((s0, r0), (s1, r1)) = (RATES[above - 1], RATES[above]);
    10_f64.powf(r0 + (r1 - r0) * (share - s0) / (s1 - s0))
}

/// A timer's minutes come at even distances; the others' are random around a day's slow wave of one half up and down.
fn minute_counts(trigger: &str, per_minute: f64, minutes: usize, seeded: &mut Seeded) -> Vec<(u16, u32)> {
    let phase = seeded.unit();
    let mut due = phase;
    let mut counts = Vec::new();
    for minute in 0..minutes {
        let n = if trigger == "timer" {
            due += per_minute;
            let whole = due.floor();
            due -= whole;
            whole as u64
        } else {
            let wave = 1.0 + 0.5 * (std::f64::consts::TAU * (minute as f64 / 1_440.0 + phase * 0.1)).sin();
            seeded.poisson(per_minute * wave)
        };
        if n > 0 {
            counts.push((minute as u16, n.min(u64::from(u32::MAX)) as u32));
        }
    }
    counts
}

/// A part of a trace, made ready to be replayed.
#[derive(Debug)]
pub struct Replay {
    /// For each minute: functions of the population, and how often each.
    minutes: Vec<Vec<(u32, u32)>>,
    minute_ns: u64,
    scale: f64,
}

impl Replay {
    /// Minutes `from..from + count` of a trace, each squeezed by `speed`, keeping the share `scale` of the invocations. `function` says which function
    /// of the population stands for a row.
    ///
    /// # Errors
    /// The trace has no such minutes, or nothing happens in them.
    pub fn new(
        trace: &Trace,
        from: usize,
        count: usize,
        speed: f64,
        scale: f64,
        function: impl Fn(&TraceRow) -> u32,
    ) -> anyhow::Result<Arc<Self>> {
        if from + count > trace.minutes || count == 0 {
            bail!("minutes {from} to {} are asked for, the trace has {}", from + count, trace.minutes);
        }
        if !(speed > 0.0 && speed <= 86_400.0 && scale > 0.0 && scale <= 1_000.0) {
            bail!("a replay's speed and scale must be above 0");
        }
        let mut minutes = vec![Vec::new(); count];
        for row in &trace.rows {
            let function = function(row);
            for (minute, n) in &row.counts {
                if let Some(slot) = usize::from(*minute).checked_sub(from).and_then(|m| minutes.get_mut(m)) {
                    slot.push((function, *n));
                }
            }
        }
        if minutes.iter().all(Vec::is_empty) {
            bail!("nothing is invoked in minutes {from} to {} of the trace", from + count);
        }
        Ok(Arc::new(Self { minutes, minute_ns: (60e9 / speed) as u64, scale }))
    }

    /// How long it lasts, in nanoseconds.
    #[must_use]
    pub fn length_ns(&self) -> u64 {
        self.minute_ns * self.minutes.len() as u64
    }

    /// Its arrivals.
    #[must_use]
    pub fn arrivals(self: &Arc<Self>, seeded: Seeded) -> ReplayArrivals {
        ReplayArrivals { replay: Arc::clone(self), seeded, minute: 0, pending: Vec::new() }
    }
}

/// The arrivals of a replay: within a minute they are independent of each other. One minute is in memory at a time.
#[derive(Debug)]
pub struct ReplayArrivals {
    replay: Arc<Replay>,
    seeded: Seeded,
    minute: usize,
    /// Of the current minute, the next one last.
    pending: Vec<(u64, u32)>,
}

impl Iterator for ReplayArrivals {
    type Item = (u64, u32);

    fn next(&mut self) -> Option<(u64, u32)> {
        while self.pending.is_empty() {
            let functions = self.replay.minutes.get(self.minute)?;
            let start = self.replay.minute_ns * self.minute as u64;
            for (function, n) in functions {
                let wanted = f64::from(*n) * self.replay.scale;
                let mut whole = wanted.floor() as u64;
                whole += u64::from(self.seeded.unit() < wanted.fract());
                for _ in 0..whole {
                    self.pending.push((start + self.seeded.below(self.replay.minute_ns), *function));
                }
            }
            self.pending.sort_unstable_by(|a, b| b.cmp(a));
            self.minute += 1;
        }
        self.pending.pop()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const CSV: &str =
        "HashOwner,HashApp,HashFunction,Trigger,1,2,3\no1,a,f1,http,0,5,0\no2,b,f2,timer,1,1,1\no1,a,f3,queue,0,0,7\n";

    #[test]
    fn reads_the_published_form() {
        let trace = Trace::read(CSV.as_bytes()).unwrap();
        assert_eq!(trace.minutes, 3);
        assert_eq!(trace.rows[0], TraceRow { owner: 0, ordinal: 0, trigger: "http".into(), counts: vec![(1, 5)] });
        assert_eq!((trace.rows[2].owner, trace.rows[2].ordinal, trace.rows[2].total()), (0, 1, 7));
        let mut written = Vec::new();
        trace.write(&mut written).unwrap();
        assert_eq!(Trace::read(written.as_slice()).unwrap(), trace);
        assert!(Trace::read(CSV.replace('\n', "\r\n").as_bytes()).is_ok(), "other line ends too");
    }

    #[test]
    fn bad_files_are_named_by_line() {
        for (csv, word) in [
            ("", "empty"),
            ("HashOwner,HashApp,HashFunction,Trigger,1\n", "no functions"),
            ("HashOwner,HashApp,Average,Count\n", "HashFunction"),
            ("HashOwner,HashApp,HashFunction,Trigger,2\n", "minute 1"),
            ("HashOwner,HashApp,HashFunction,Trigger,1,2\no,a,f,http,1\n", "line 2"),
            ("HashOwner,HashApp,HashFunction,Trigger,1,2\no,a,f,http,1,2,3\n", "more minutes"),
            ("HashOwner,HashApp,HashFunction,Trigger,1\no,a,f,http,-3\n", "\"-3\""),
            ("HashOwner,HashApp,HashFunction,Trigger,1\n,a,f,http,3\n", "HashOwner is missing"),
        ] {
            let error = format!("{:#}", Trace::read(csv.as_bytes()).unwrap_err());
            assert!(error.contains(word), "{error}");
        }
    }

    #[test]
    fn a_generated_trace_has_the_published_shares() {
        let trace = Trace::generate(20_000, 1_440, 1);
        assert_eq!(trace, Trace::generate(20_000, 1_440, 1), "a seed repeats");
        assert_ne!(trace, Trace::generate(20_000, 1_440, 2));
        let total = trace.rows.iter().map(TraceRow::total).sum::<u64>() as f64;
        let share = |at_most: u64| trace.rows.iter().filter(|r| r.total() <= at_most).count() as f64 / 20_000.0;
        assert!((share(24) - 0.45).abs() < 0.03, "{}", share(24));
        assert!((share(1_440) - 0.81).abs() < 0.03, "{}", share(1_440));
        let busy = trace.rows.iter().map(TraceRow::total).filter(|n| *n > 1_440).sum::<u64>() as f64 / total;
        assert!(busy > 0.99, "{busy}");
        let owners = trace.rows.last().unwrap().owner as usize + 1;
        let single = trace.rows.iter().fold(vec![0_u32; owners], |mut n, r| {
            n[r.owner as usize] += 1;
            n
        });
        let single = single.iter().filter(|n| **n == 1).count() as f64 / owners as f64;
        assert!((single - 0.54).abs() < 0.03, "{single}");
    }

    #[test]
    fn a_replay_keeps_counts_order_and_minutes() {
        let trace = Trace::read(CSV.as_bytes()).unwrap();
        let replay = Replay::new(&trace, 0, 3, 60.0, 1.0, |row| row.owner * 10 + row.ordinal).unwrap();
        assert_eq!(replay.length_ns(), 3_000_000_000);
        let all: Vec<(u64, u32)> = replay.arrivals(Seeded::new(1, 1)).collect();
        assert!(all.is_sorted_by_key(|a| a.0));
        assert_eq!(all.len(), 15);
        assert_eq!(all.iter().filter(|(at, f)| *f == 0 && (1_000_000_000..2_000_000_000).contains(at)).count(), 5);
        assert_eq!(all.iter().filter(|(at, f)| *f == 1 && *at >= 2_000_000_000).count(), 7);
        let half = Replay::new(&trace, 0, 3, 60.0, 0.5, |_| 0).unwrap();
        let n = half.arrivals(Seeded::new(1, 1)).count();
        assert!((5..=10).contains(&n), "{n}");
        assert!(Replay::new(&trace, 2, 2, 1.0, 1.0, |_| 0).is_err());
    }
}
