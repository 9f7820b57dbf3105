//! What was measured, row by row: told while it runs, kept as JSON for other programs and as a table for people.

use anyhow::{Context, Result};
use serde_json::{Value, json};
use std::{fs, path::Path};

/// What a figure is promised to be.
#[derive(Debug, Clone, Copy)]
pub enum Bound {
    /// No more than this.
    AtMost(f64),
    /// No less than this.
    AtLeast(f64),
    /// Nothing is promised.
    Open,
}

impl Bound {
    fn kept(self, value: f64) -> Option<bool> {
        match self {
            Self::AtMost(bound) => Some(value <= bound),
            Self::AtLeast(bound) => Some(value >= bound),
            Self::Open => None,
        }
    }

    fn show(self, unit: &str) -> String {
        let (sign, bound) = match self {
            Self::AtMost(bound) => ("<=", bound),
            Self::AtLeast(bound) => (">=", bound),
            Self::Open => return String::new(),
        };
        format!("{sign} {bound}{}{unit}", if unit.is_empty() { "" } else { " " })
    }
}

struct Row {
    part: &'static str,
    promise: String,
    value: f64,
    unit: String,
    bound: Bound,
    note: String,
}

/// All rows, and the parts that did not get to their end.
#[derive(Default)]
pub struct Report {
    part: &'static str,
    rows: Vec<Row>,
    failed: Vec<(&'static str, String)>,
}

/// As many digits as a reader needs.
fn show(value: f64, unit: &str) -> String {
    let digits = match value.abs() {
        _ if !value.is_finite() => return "not measured".into(),
        v if v >= 100.0 => 0,
        v if v >= 10.0 => 1,
        v if v >= 0.1 => 2,
        _ => 3,
    };
    format!("{value:.digits$}{}{unit}", if unit.is_empty() { "" } else { " " })
}

impl Report {
    /// Rows that follow belong to this part.
    pub fn begin(&mut self, part: &'static str) {
        eprintln!("== {part}");
        self.part = part;
    }

    /// The part that has begun did not get to its end.
    pub fn fail(&mut self, error: &anyhow::Error) {
        eprintln!("!! {} failed: {error:#}", self.part);
        self.failed.push((self.part, format!("{error:#}")));
    }

    /// One figure. What is not a number keeps no promise.
    pub fn add(&mut self, promise: &str, value: f64, unit: &str, bound: Bound, note: impl Into<String>) {
        let row = Row { part: self.part, promise: promise.into(), value, unit: unit.into(), bound, note: note.into() };
        let kept = bound.kept(value).map_or("", |kept| if kept { "kept" } else { "BROKEN" });
        eprintln!("{promise:<66} {:<14} {:<14} {kept}  {}", show(value, unit), bound.show(unit), row.note);
        self.rows.push(row);
    }

    fn json(&self, quick: bool) -> Value {
        let rows: Vec<Value> = self
            .rows
            .iter()
            .map(|r| {
                json!({
                    "part": r.part,
                    "promise": r.promise,
                    "value": r.value.is_finite().then_some(r.value),
                    "figure": show(r.value, &r.unit),
                    "unit": r.unit,
                    "target": r.bound.show(&r.unit),
                    "kept": r.bound.kept(r.value),
                    "note": r.note,
                    "command": format!("make bench ARGS={}", r.part),
                })
            })
            .collect();
        let failed: Vec<Value> = self.failed.iter().map(|(part, error)| json!({ "part": part, "error": error })).collect();
        let kernel = rustix::system::uname();
        json!({
            "format": "hearth-bench/1",
            "machine": {
                "cores": std::thread::available_parallelism().map_or(1, std::num::NonZero::get),
                "kernel": format!("{} {}", kernel.sysname().to_string_lossy(), kernel.release().to_string_lossy()),
            },
            "quick": quick,
            "rows": rows,
            "failed": failed,
        })
    }

    fn table(&self) -> String {
        let mut table = String::from("| promise | measured | target |\n| --- | --- | --- |\n");
        for row in &self.rows {
            let mark = if row.bound.kept(row.value) == Some(false) { " (**not kept**)" } else { "" };
            let note = if row.note.is_empty() { String::new() } else { format!(" ({})", row.note) };
            table.push_str(&format!(
                "| {} | {}{note}{mark} | {} |\n",
                row.promise,
                show(row.value, &row.unit),
                row.bound.show(&row.unit)
            ));
        }
        table
    }

    /// Whether every part got to its end.
    pub fn complete(&self) -> bool {
        self.failed.is_empty()
    }

    /// Writes the JSON, prints the table, and fails where a promise is broken or a part did not end.
    pub fn publish(&self, file: &Path, quick: bool) -> Result<()> {
        if let Some(dir) = file.parent() {
            fs::create_dir_all(dir).with_context(|| dir.display().to_string())?;
        }
        fs::write(file, serde_json::to_vec_pretty(&self.json(quick))?).with_context(|| file.display().to_string())?;
        println!("{}\nas JSON: {}", self.table(), file.display());
        for (part, error) in &self.failed {
            println!("{part} did not get to its end: {error}");
        }
        let broken = self.rows.iter().filter(|r| r.bound.kept(r.value) == Some(false)).count();
        anyhow::ensure!(self.failed.is_empty(), "{} parts did not get to their end", self.failed.len());
        anyhow::ensure!(broken == 0, "{broken} promises are not kept on this machine, now");
        Ok(())
    }
}
