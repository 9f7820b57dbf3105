//! Empty results for unit tests.

use crate::results::{FORMAT, Fairness, Generator, GroupResult, Machine, Report, RunResult, SeriesResult, Slice};

/// A run in which nothing happened.
pub fn empty_run() -> RunResult {
    let total = GroupResult {
        offered: 0,
        unsent: 0,
        ok: 0,
        shed: 0,
        lost: 0,
        errors: Default::default(),
        seconds: 0.0,
        goodput: 0.0,
        latency: Default::default(),
    };
    RunResult {
        started_at: String::new(),
        seconds: 0.0,
        total,
        streams: Default::default(),
        phases: Default::default(),
        kinds: Default::default(),
        outcomes: Default::default(),
        reasons: Vec::new(),
        nodes: Default::default(),
        timing: Default::default(),
        service: None,
        head: None,
        generator: Generator { lag: None, unsent: 0, in_flight_peak: 0, in_flight_max: 0 },
        fairness: Fairness::default(),
        faults: Vec::new(),
        deploys: None,
        bytes: 0,
        curves: Default::default(),
        series: SeriesResult::default(),
        slices: Vec::new(),
        metrics: Default::default(),
    }
}

/// A report of runs that consist of these slices.
pub fn report_of(runs: Vec<Vec<Slice>>) -> Report {
    Report {
        format: FORMAT.into(),
        version: String::new(),
        scenario: "warm".into(),
        about: String::new(),
        read: String::new(),
        scenario_text: String::new(),
        changes: Vec::new(),
        target: String::new(),
        seed: 1,
        machine: Machine { cores: 1, workers: 1, kernel: String::new() },
        capacity: None,
        runs: runs.into_iter().map(|slices| RunResult { slices, ..empty_run() }).collect(),
        summary: Default::default(),
        thresholds: Vec::new(),
        void: Vec::new(),
        interrupted: false,
    }
}
