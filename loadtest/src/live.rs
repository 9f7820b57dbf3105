//! The terminal while a run goes on: redrawn in place where there is a terminal, one line a second elsewhere. Goes to standard error, so that standard output
//! is the result's alone.

use crate::{
    collect::Gathered,
    engine::{Fault, FaultEvent, Record, Start},
    latency::Latencies,
    units::{show_count, show_ms, show_rate},
};
use std::{
    fmt::Write as _,
    io::{IsTerminal as _, Write as _},
    time::Duration,
};

/// What ended in the last second.
#[derive(Debug)]
pub struct Second {
    offered: u64,
    ok: u64,
    cold: u64,
    lost: u64,
    unsent: u64,
    errors: [u64; 4],
    warm: Latencies,
    cold_latency: Latencies,
    /// Now in flight.
    pub in_flight: u64,
}

impl Default for Second {
    fn default() -> Self {
        Self {
            offered: 0,
            ok: 0,
            cold: 0,
            lost: 0,
            unsent: 0,
            errors: [0; 4],
            warm: Latencies::coarse(),
            cold_latency: Latencies::coarse(),
            in_flight: 0,
        }
    }
}

impl Second {
    /// Counts a request.
    pub fn record(&mut self, record: &Record) {
        self.offered += 1;
        self.unsent += u64::from(!record.sent);
        self.lost += u64::from(record.outcome.lost());
        let fault = record.outcome.fault();
        if let Some(index) = Fault::ERRORS.iter().position(|f| *f == fault) {
            self.errors[index] += 1;
        }
        if fault == Fault::None {
            self.ok += 1;
            if record.start == Start::Cold {
                self.cold += 1;
                self.cold_latency.record(record.latency_ns);
            } else {
                self.warm.record(record.latency_ns);
            }
        }
    }
}

/// How it is shown.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Style {
    Silent,
    Lines,
    Redraw,
}

/// A place to show it.
#[derive(Debug, Clone)]
pub struct View {
    style: Style,
    title: String,
    length: Duration,
    drawn: usize,
}

impl View {
    /// On standard error, or nowhere.
    #[must_use]
    pub fn new(title: impl Into<String>, length: Duration, quiet: bool) -> Self {
        let style = match (quiet, std::io::stderr().is_terminal()) {
            (true, _) => Style::Silent,
            (false, true) => Style::Redraw,
            (false, false) => Style::Lines,
        };
        Self { style, title: title.into(), length, drawn: 0 }
    }

    /// Nowhere.
    #[must_use]
    pub fn silent() -> Self {
        Self { style: Style::Silent, title: String::new(), length: Duration::ZERO, drawn: 0 }
    }

    /// One second is over.
    pub fn second(&mut self, elapsed: Duration, second: &Second, books: &Gathered) {
        let text = match self.style {
            Style::Silent => return,
            Style::Lines => format!("{}\n", line(elapsed, second)),
            Style::Redraw => self.screen(elapsed, second, books),
        };
        let text = if self.drawn > 0 { format!("\x1b[{}A\x1b[J{text}", self.drawn) } else { text };
        if self.style == Style::Redraw {
            self.drawn = text.matches('\n').count();
        }
        // A terminal that went away must not end the run.
        drop(std::io::stderr().write_all(text.as_bytes()));
    }

    /// A fault has begun.
    pub fn fault(&mut self, event: &FaultEvent) {
        if self.style == Style::Silent {
            return;
        }
        self.drawn = 0;
        drop(writeln!(std::io::stderr(), "{:>5.0}s  >>> {}", event.at_ns as f64 / 1e9, event.name));
    }

    /// The run is over.
    pub fn finish(&mut self) {
        self.drawn = 0;
    }

    fn screen(&self, elapsed: Duration, second: &Second, books: &Gathered) -> String {
        let total = self.length.as_secs_f64().max(0.001);
        let part = (elapsed.as_secs_f64() / total).min(1.0);
        let filled = (part * 30.0) as usize;
        let mut text = format!(
            "{}  [{}{}]  {:.0} of {:.0} s\n",
            self.title,
            "=".repeat(filled),
            " ".repeat(30 - filled),
            elapsed.as_secs_f64(),
            total
        );
        let warm = &books.total.warm_latency;
        let (name, steady) = if warm.count() > 0 { ("warm", warm) } else { ("ok", &books.total.ok_latency) };
        let cells = |l: &Latencies| [0.5, 0.9, 0.99].map(|q| l.at(q).map_or_else(|| "-".to_owned(), show_ms));
        let row = |name: &str, now: &Latencies, all: &Latencies| {
            let (now, all) = (cells(now), cells(all));
            format!(
                "  {name:<5} now p50 {:>8}  p90 {:>8}  p99 {:>8}   so far p50 {:>8}  p90 {:>8}  p99 {:>8}\n",
                now[0], now[1], now[2], all[0], all[1], all[2]
            )
        };
        let _ = writeln!(
            text,
            "  rate  {}/s ended, {}/s ok, {} cold, {} in flight",
            show_rate(second.offered as f64),
            show_rate(second.ok as f64),
            second.cold,
            show_count(second.in_flight as f64)
        );
        text.push_str(&row(name, &second.warm, steady));
        if books.total.cold_latency.count() > 0 {
            text.push_str(&row("cold", &second.cold_latency, &books.total.cold_latency));
        }
        let sums = books.total.errors;
        let _ = writeln!(
            text,
            "  errors  transport {}  client {}  tenant {}  platform {}   lost {}  unsent {}",
            sums[0], sums[1], sums[2], sums[3], books.total.lost, books.total.unsent
        );
        text
    }
}

fn line(elapsed: Duration, second: &Second) -> String {
    let ms = |l: &Latencies, q| l.at(q).map_or_else(|| "-".to_owned(), show_ms);
    let mut text = format!(
        "{:>5.0}s  {:>8}/s ok  p50 {:>8}  p99 {:>8}  in flight {:>5}",
        elapsed.as_secs_f64(),
        show_rate(second.ok as f64),
        ms(&second.warm, 0.5),
        ms(&second.warm, 0.99),
        second.in_flight
    );
    if second.cold > 0 {
        let _ = write!(text, "  cold {} p50 {}", second.cold, ms(&second.cold_latency, 0.5));
    }
    for (fault, count) in Fault::ERRORS.iter().zip(second.errors) {
        if count > 0 {
            let _ = write!(text, "  {} {count}", fault.name());
        }
    }
    if second.lost > 0 {
        let _ = write!(text, "  LOST {}", second.lost);
    }
    if second.unsent > 0 {
        let _ = write!(text, "  UNSENT {}", second.unsent);
    }
    text
}
