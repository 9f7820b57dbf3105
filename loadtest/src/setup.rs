//! Makes the tenants and functions of a population, and takes them away again. Names follow from what they are, so that a set-up that was broken off is taken up
//! where it stopped: what is there and ready is left alone. Only tenants whose name this tool gives are ever deleted.

use crate::{
    kinds::{ID_VARIABLE, KINDS},
    manage::Api,
    population::{CONTAINER, Population, function_name},
};
use anyhow::bail;
use futures_util::{StreamExt as _, TryStreamExt as _};
use serde_json::{Value, json};
use std::{
    io::{IsTerminal as _, Write as _},
    sync::{
        Mutex, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
    time::{Duration, Instant},
};
use tokio_util::sync::CancellationToken;

/// The variable by which a function knows which version it is.
pub const VERSION_VARIABLE: &str = "LOADTEST_VERSION";

/// How a population is made.
#[derive(Debug)]
pub struct Setup<'a> {
    /// The platform.
    pub api: &'a Api,
    /// Who.
    pub population: &'a Population,
    /// The tenants' limits, where they are not the platform's own.
    pub limits: Option<Value>,
    /// Calls at once.
    pub at_once: usize,
    /// For one function, its modules' builds included.
    pub deadline: Duration,
    /// Whether to stay silent.
    pub quiet: bool,
    touched: Vec<AtomicBool>,
}

impl<'a> Setup<'a> {
    /// Nothing made yet.
    #[must_use]
    pub fn new(
        api: &'a Api,
        population: &'a Population,
        limits: Option<Value>,
        at_once: usize,
        deadline: Duration,
        quiet: bool,
    ) -> Self {
        let touched = population.tenants.iter().map(|_| AtomicBool::new(false)).collect();
        Self { api, population, limits, at_once: at_once.max(1), deadline, quiet, touched }
    }

    /// Makes all that is missing. Stops early, without an error, when `stop` is cancelled.
    ///
    /// # Errors
    /// The platform refuses something; the first refusal ends the set-up.
    pub async fn create(&self, stop: &CancellationToken) -> anyhow::Result<()> {
        let total = self.population.tenants.len();
        let progress = Progress::new("making tenants", total, self.quiet);
        // The first alone: a wrong token must not be tried hundreds of times.
        self.tenant(0).await?;
        progress.one();
        let others = futures_util::stream::iter(1..total).map(|index| async move { self.tenant(index).await });
        let work = others.buffer_unordered(self.at_once).try_for_each(|()| {
            progress.one();
            std::future::ready(Ok(()))
        });
        let result = tokio::select! {
            result = work => result,
            () = stop.cancelled() => Ok(()),
        };
        progress.end();
        result
    }

    async fn tenant(&self, index: usize) -> anyhow::Result<()> {
        let name = &self.population.tenants[index];
        let known = self.api.has_tenant(name).await?;
        self.touched[index].store(true, Ordering::Relaxed);
        if !known {
            self.api.put_tenant(name, self.limits.as_ref()).await?;
        }
        let per_tenant = self.population.functions_per_tenant as usize;
        for ordinal in 0..per_tenant {
            let path = function_path(name, ordinal);
            if known && self.api.function(&path).await?.is_some_and(|f| f.get("status").and_then(Value::as_str) == Some("ready")) {
                continue;
            }
            let call = &self.population.calls[index * per_tenant + ordinal];
            let spec = function_spec(usize::from(call.kind), call.id.as_deref().unwrap_or_default(), None);
            self.api.deploy(&path, &spec, self.deadline).await?;
        }
        Ok(())
    }

    /// Takes away every tenant that was made or found, and says how many could not be.
    pub async fn remove(&self, abandon: &CancellationToken) -> usize {
        let names: Vec<&str> = self
            .touched
            .iter()
            .zip(&self.population.tenants)
            .filter(|(touched, _)| touched.load(Ordering::Relaxed))
            .map(|(_, name)| name.as_str())
            .collect();
        remove(self.api, &names, self.at_once, abandon, self.quiet).await
    }
}

/// Takes tenants away and says how many could not be.
pub async fn remove(api: &Api, names: &[&str], at_once: usize, abandon: &CancellationToken, quiet: bool) -> usize {
    if names.is_empty() {
        return 0;
    }
    let progress = Progress::new("taking tenants away", names.len(), quiet);
    let left = Mutex::new(names.len());
    let work = futures_util::stream::iter(names).for_each_concurrent(at_once, |name| {
        let (progress, left) = (&progress, &left);
        async move {
            match api.delete_tenant(name).await {
                Ok(()) => *left.lock().unwrap_or_else(PoisonError::into_inner) -= 1,
                Err(error) => progress.say(&format!("{name} could not be taken away: {error:#}")),
            }
            progress.one();
        }
    });
    tokio::select! {
        () = work => {}
        () = abandon.cancelled() => {}
    }
    progress.end();
    *left.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Takes away what earlier runs with this prefix left behind.
///
/// # Errors
/// The tenants cannot be listed, or not all be taken away.
pub async fn clean(api: &Api, prefix: &str, at_once: usize, abandon: &CancellationToken) -> anyhow::Result<usize> {
    let found = api.tenants(&format!("{prefix}-")).await?;
    let names: Vec<&str> = found.iter().map(String::as_str).filter(|name| is_ours(name, prefix)).collect();
    let left = remove(api, &names, at_once, abandon, false).await;
    if left > 0 {
        bail!("{left} of {} tenants are still there", names.len());
    }
    Ok(names.len())
}

/// `{prefix}-{6 hexadecimal}-{number}-{number}`: what this tool names, and nothing that merely starts alike.
fn is_ours(name: &str, prefix: &str) -> bool {
    let Some(rest) = name.strip_prefix(prefix).and_then(|r| r.strip_prefix('-')) else { return false };
    let parts: Vec<&str> = rest.split('-').collect();
    let number = |text: &str| !text.is_empty() && text.bytes().all(|b| b.is_ascii_digit());
    matches!(parts.as_slice(), [digest, round, index]
        if digest.len() == 6 && digest.bytes().all(|b| b.is_ascii_hexdigit()) && number(round) && number(index))
}

/// Where a function is managed.
#[must_use]
pub fn function_path(tenant: &str, ordinal: usize) -> String {
    format!("/v1/tenants/{tenant}/containers/{CONTAINER}/functions/{}", function_name(ordinal))
}

/// What is put there.
#[must_use]
pub fn function_spec(kind: usize, id: &str, version: Option<u64>) -> Value {
    let kind = &KINDS[kind];
    let mut env = serde_json::Map::new();
    env.insert(ID_VARIABLE.into(), id.into());
    if let Some(version) = version {
        env.insert(VERSION_VARIABLE.into(), version.to_string().into());
    }
    let dependencies: serde_json::Map<String, Value> =
        kind.dependencies.iter().map(|(name, range)| ((*name).to_owned(), (*range).into())).collect();
    let mut spec = json!({ "code": kind.source, "dependencies": dependencies, "env": env });
    if let Some(ms) = kind.timeout_ms {
        spec["timeout_ms"] = ms.into();
    }
    spec
}

/// A bar on a terminal, a line now and then elsewhere.
#[derive(Debug)]
pub struct Progress {
    what: &'static str,
    total: usize,
    quiet: bool,
    terminal: bool,
    state: Mutex<(usize, Instant)>,
}

impl Progress {
    /// At nothing.
    #[must_use]
    pub fn new(what: &'static str, total: usize, quiet: bool) -> Self {
        Self { what, total, quiet, terminal: std::io::stderr().is_terminal(), state: Mutex::new((0, Instant::now())) }
    }

    /// One more is done.
    pub fn one(&self) {
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        state.0 += 1;
        let due = state.1.elapsed() >= if self.terminal { Duration::from_millis(100) } else { Duration::from_secs(5) };
        if due {
            state.1 = Instant::now();
            self.show(state.0);
        }
    }

    /// A line in between.
    fn say(&self, text: &str) {
        if !self.quiet {
            drop(writeln!(std::io::stderr(), "{}{text}", if self.terminal { "\r\x1b[K" } else { "" }));
        }
    }

    fn end(&self) {
        self.show(self.state.lock().unwrap_or_else(PoisonError::into_inner).0);
        if self.terminal && !self.quiet {
            drop(writeln!(std::io::stderr()));
        }
    }

    fn show(&self, done: usize) {
        if self.quiet {
            return;
        }
        let filled = done * 30 / self.total.max(1);
        let bar = format!("{:<20} [{}{}] {done} of {}", self.what, "=".repeat(filled), " ".repeat(30 - filled.min(30)), self.total);
        let text = if self.terminal { format!("\r\x1b[K{bar}") } else { format!("{bar}\n") };
        let mut stderr = std::io::stderr();
        drop(stderr.write_all(text.as_bytes()).and_then(|()| stderr.flush()));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_names_that_this_tool_gives_are_ours() {
        assert!(is_ours("loadtest-0a1b2c-0-17", "loadtest"));
        for other in [
            "loadtest",
            "loadtest-acme",
            "loadtest-0a1b2c-0",
            "loadtest-0a1b2c-0-x",
            "loadtest-0a1b2cd-0-1",
            "loadtests-0a1b2c-0-1",
            "acme",
            "loadtest-0a1b2c-0-1-2",
            "loadtest-zzzzzz-0-1",
        ] {
            assert!(!is_ours(other, "loadtest"), "{other}");
        }
    }

    #[test]
    fn a_function_carries_its_source_modules_and_name() {
        let medium = KINDS.iter().position(|k| k.name == "modules-medium").unwrap();
        let spec = function_spec(medium, "a/main/f0", Some(3));
        assert_eq!(spec["dependencies"]["lodash"], "4.17.21");
        assert_eq!(spec["env"][ID_VARIABLE], "a/main/f0");
        assert_eq!(spec["env"][VERSION_VARIABLE], "3");
        assert!(spec.get("timeout_ms").is_none());
    }
}
