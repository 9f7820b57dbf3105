//! One call of the tool with a scenario: the population, the runs, and the end of the population.

use super::{Interrupt, options, platform, token, with_tls};
use crate::{
    args::{Args, SendingArgs},
    deploy::Deployer,
    engine::{self, ClosedLoop, Job},
    kinds::KINDS,
    live::View,
    manage::Api,
    net::{Destination, Options, Payload},
    plan::{self, Traces},
    population::{Population, Wish},
    results::RunResult,
    scenario::Scenario,
    setup::Setup,
    units::show_rate,
};
use anyhow::{Context as _, bail};
use http::HeaderMap;
use std::{
    io::Write as _,
    sync::Arc,
    time::{Duration, SystemTime, UNIX_EPOCH},
};

/// Deadline of a request where neither scenario nor flag says it.
const TIMEOUT_DEFAULT: Duration = Duration::from_secs(30);
/// Requests in flight where neither scenario nor flag says it.
const IN_FLIGHT_DEFAULT: u64 = 10_000;
/// With fewer no scenario is worth running.
const IN_FLIGHT_MIN: u64 = 256;
/// Descriptors for all that is not a request.
const DESCRIPTORS_ASIDE: u64 = 128;
/// Calls at once while functions are called for the first time.
const PRIME_AT_ONCE: usize = 8;

/// Everything that the runs of one call share.
pub(super) struct Session<'a> {
    args: &'a Args,
    pub scenario: Scenario,
    pub target: String,
    pub workers: usize,
    pub capacity: Option<f64>,
    platform: Option<(Destination, Arc<Api>)>,
    urls: Option<Arc<Population>>,
    options: Options,
    headers: HeaderMap,
    body: Payload,
    traces: Traces,
    in_flight_max: u64,
    interrupt: Interrupt,
}

impl<'a> Session<'a> {
    /// Checks all that can be checked without changing anything on the target.
    pub async fn prepare(args: &'a Args, scenario: Scenario, interrupt: Interrupt) -> anyhow::Result<Self> {
        let headers = plan::headers(&args.sending.header)?;
        let body = plan::body(&args.sending, &scenario)?;
        let traces = plan::read_traces(&scenario, args.change.trace.as_ref())?;
        let in_flight_max = scenario.max_in_flight.unwrap_or(IN_FLIGHT_DEFAULT).max(1);
        let in_flight_max = allow_descriptors(in_flight_max, args.sending.max_in_flight.is_some())?;
        let options = options(&args.sending, scenario.fresh_connections);
        let mut this = Self {
            args,
            target: args.target.url.clone(),
            workers: workers(&args.sending),
            capacity: args.change.capacity,
            platform: None,
            urls: None,
            options,
            headers,
            body,
            traces,
            in_flight_max,
            interrupt,
            scenario,
        };
        if let Some(file) = &args.change.url_list {
            this.prepare_urls(file).await?;
        } else {
            let (destination, options) = platform(&args.target, this.options.clone()).await?;
            let api = Api::new(&destination, &options, token(&args.target).as_deref())?;
            api.probe().await?;
            this.options = options;
            this.platform = Some((destination, Arc::new(api)));
        }
        this.rehearse()?;
        Ok(this)
    }

    /// Plans the whole load once, so that what cannot be planned is refused before a tenant is made for it.
    fn rehearse(&mut self) -> anyhow::Result<()> {
        let population = match (&self.urls, &self.platform) {
            (Some(urls), _) => Arc::clone(urls),
            (None, Some((destination, _))) => Arc::new(self.tenants(destination, 0)?),
            (None, None) => bail!("no target"),
        };
        let known = self.capacity;
        // Any value does for a capacity that is yet to be measured.
        self.capacity = known.or(self.scenario.calibrate.as_ref().map(|_| 1.0));
        let planned = self.job(&population, self.args.change.seed);
        self.capacity = known;
        planned.map(drop)
    }

    async fn prepare_urls(&mut self, file: &std::path::Path) -> anyhow::Result<()> {
        if self.scenario.deploy.is_some() {
            bail!("the scenario {} deploys functions, which a list of URLs does not have", self.scenario.name);
        }
        let population = Population::of_urls(file, &self.headers, &self.body).await?;
        let secure = population.destinations.iter().any(|d| d.tls.is_some());
        self.options = with_tls(&self.args.target, self.options.clone(), secure)?;
        self.target = match population.destinations.as_slice() {
            [only] => only.show(),
            many => format!("{} and {} more", many[0].show(), many.len() - 1),
        };
        self.urls = Some(Arc::new(population));
        Ok(())
    }

    /// All runs, or as many as there were until an interruption.
    pub async fn runs(&mut self) -> anyhow::Result<Vec<RunResult>> {
        let total = self.args.change.runs;
        if let Some(urls) = self.urls.clone() {
            let mut results = Vec::new();
            for index in 0..total {
                results.extend(self.one(&urls, index).await?);
            }
            return Ok(results);
        }
        // Tenants never seen are needed for every run anew; all others are made once.
        let per_setup = if self.scenario.population.fresh { 1 } else { total };
        let mut results = Vec::new();
        while results.len() < total && !self.interrupt.stop.is_cancelled() {
            results.extend(self.with_tenants(results.len(), per_setup).await?);
        }
        Ok(results)
    }

    /// Makes the tenants, runs, and takes the tenants away, whatever happened in between.
    async fn with_tenants(&mut self, first: usize, count: usize) -> anyhow::Result<Vec<RunResult>> {
        let (destination, api) = self.platform.clone().context("no platform")?;
        let population = Arc::new(self.tenants(&destination, first)?);
        let limits = self.scenario.population.limits.as_ref().map(serde_json::to_value).transpose()?;
        let change = &self.args.change;
        let setup = Setup::new(&api, &population, limits, change.setup_concurrency, change.setup_timeout.0, self.args.output.quiet);
        let result = self.run_between(&setup, &population, first, count).await;
        if self.args.change.keep {
            return result;
        }
        let left = setup.remove(&self.interrupt.abandon).await;
        if left > 0 {
            self.say(&format!(
                "{left} tenants are still there: `hearth loadtest clean --prefix {}` takes them away",
                self.args.change.prefix
            ));
        }
        result
    }

    async fn run_between(
        &mut self,
        setup: &Setup<'_>,
        population: &Arc<Population>,
        first: usize,
        count: usize,
    ) -> anyhow::Result<Vec<RunResult>> {
        setup.create(&self.interrupt.stop).await?;
        let mut results = Vec::new();
        for index in first..first + count {
            results.extend(self.one(population, index).await?);
        }
        Ok(results)
    }

    fn tenants(&self, destination: &Destination, run: usize) -> anyhow::Result<Population> {
        let plan = &self.scenario.population;
        // Seconds of the clock keep the tenants of this call apart from those of earlier ones that were kept.
        let clock = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |t| t.as_secs() % 1_000_000);
        let wish = Wish {
            prefix: &self.args.change.prefix,
            round: if plan.fresh { (clock as u32).wrapping_add(run as u32) } else { 0 },
            tenants: plan.tenants,
            functions_per_tenant: plan.functions_per_tenant,
            mix: &plan.mix,
            seed: self.args.change.seed,
            headers: &self.headers,
            body: &self.body,
        };
        Population::of_tenants(&wish, destination)
    }

    /// One run; none after an interruption before it began.
    async fn one(&mut self, population: &Arc<Population>, index: usize) -> anyhow::Result<Option<RunResult>> {
        if self.interrupt.stop.is_cancelled() {
            return Ok(None);
        }
        if self.scenario.population.prime {
            self.prime(population).await?;
        }
        self.calibrate(population).await?;
        let seed = self.args.change.seed.wrapping_add(index as u64);
        let job = self.job(population, seed)?;
        let title = match self.args.change.runs {
            1 => self.scenario.name.clone(),
            runs => format!("{} {} of {runs}", self.scenario.name, index + 1),
        };
        let view = View::new(title, job.length(), self.args.output.quiet);
        let started_at = humantime::format_rfc3339_seconds(SystemTime::now()).to_string();
        let deployer = self.deployer(population);
        let books = engine::run(job, view, self.interrupt.stop.clone(), deployer).await?;
        Ok(Some(RunResult::of(&books, started_at, self.in_flight_max)))
    }

    fn job(&mut self, population: &Arc<Population>, seed: u64) -> anyhow::Result<Job> {
        let trace = self.args.change.trace.as_ref();
        let streams = plan::streams(&self.scenario, population, &mut self.traces, trace, self.capacity, seed)?;
        let job = Job {
            population: Arc::clone(population),
            streams,
            faults: plan::faults(&self.scenario),
            options: self.options.clone(),
            timeout: self.timeout(),
            in_flight_max: self.in_flight_max,
            workers: self.workers,
            seed,
            warm_up: self.scenario.warm_up.map_or(Duration::ZERO, |w| w.0),
            node_header: self.args.sending.node_header.clone(),
        };
        if job.warm_up >= job.length() {
            bail!("the warm-up of {} leaves nothing of the load to measure", crate::units::Span(job.warm_up));
        }
        Ok(job)
    }

    fn timeout(&self) -> Duration {
        self.scenario.timeout.map_or(TIMEOUT_DEFAULT, |t| t.0)
    }

    fn deployer(&self, population: &Arc<Population>) -> Option<Deployer> {
        let plan = self.scenario.deploy.as_ref()?;
        let (_, api) = self.platform.as_ref()?;
        Some(Deployer {
            api: Arc::clone(api),
            population: Arc::clone(population),
            rate: plan.rate,
            after: plan.after.0,
            deadline: self.args.change.setup_timeout.0,
            headers: self.headers.clone(),
        })
    }

    /// Calls every function once.
    async fn prime(&self, population: &Arc<Population>) -> anyhow::Result<()> {
        let job = ClosedLoop { once: true, ..self.closed(population, PRIME_AT_ONCE, Duration::ZERO) };
        let result = engine::closed_loop(job, self.interrupt.stop.clone()).await?;
        let faulty =
            population.calls.iter().filter(|c| self.urls.is_none() && KINDS[usize::from(c.kind)].name == "faulty").count() as u64;
        if result.failed > faulty {
            let worst = result.failures.iter().max_by_key(|(_, n)| **n).map_or_else(String::new, |(text, _)| text.clone());
            let words =
                format!("{} of {} functions could not be called before the load: {worst}", result.failed, population.calls.len());
            if result.ok == 0 {
                bail!("{words}");
            }
            self.say(&words);
        }
        Ok(())
    }

    /// Finds the capacity where the scenario wants to know it and nobody has said it.
    async fn calibrate(&mut self, population: &Arc<Population>) -> anyhow::Result<()> {
        let Some(plan) = self.scenario.calibrate.clone().filter(|_| self.capacity.is_none()) else { return Ok(()) };
        let job = self.closed(population, plan.connections, plan.length.0);
        let result = engine::closed_loop(job, self.interrupt.stop.clone()).await?;
        let capacity = result.ok as f64 / result.elapsed.as_secs_f64().max(1e-9);
        if result.ok == 0 && !self.interrupt.stop.is_cancelled() {
            bail!("the capacity could not be measured: no request was answered ({:?})", result.failures.keys().next());
        }
        self.say(&format!("capacity: {}/s over {} connections", show_rate(capacity), plan.connections));
        self.capacity = Some(capacity);
        Ok(())
    }

    fn closed(&self, population: &Arc<Population>, connections: usize, length: Duration) -> ClosedLoop {
        ClosedLoop {
            population: Arc::clone(population),
            options: self.options.clone(),
            connections,
            threads: self.workers,
            warm_up: Duration::ZERO,
            length,
            timeout: self.timeout(),
            once: false,
        }
    }

    /// Why the results would say more about the generator than about the target.
    pub fn void_reasons(&self, runs: &[RunResult]) -> Vec<String> {
        let max_lag_ms = self.args.sending.max_lag.0.as_secs_f64() * 1e3;
        let mut reasons = Vec::new();
        for (index, run) in runs.iter().enumerate() {
            let of_run = if runs.len() > 1 { format!("run {}: ", index + 1) } else { String::new() };
            if run.generator.unsent > 0 {
                let at_bound = run.generator.in_flight_peak + 1 >= self.in_flight_max / self.workers as u64;
                let why = if at_bound {
                    format!(
                        "{} were in flight, the bound is {} (--max-in-flight)",
                        run.generator.in_flight_peak, self.in_flight_max
                    )
                } else {
                    "the generator could not send them in time (--workers, a larger machine, or a lower rate)".to_owned()
                };
                reasons.push(format!("{of_run}{} of {} requests were not sent: {why}", run.generator.unsent, run.total.offered));
            }
            if let Some(lag) = run.generator.lag.filter(|l| l.p99_ms > max_lag_ms) {
                reasons.push(format!(
                    "{of_run}the latest hundredth of the requests was sent {} late or more, {} is allowed (--max-lag)",
                    crate::units::show_ms(lag.p99_ms),
                    self.args.sending.max_lag
                ));
            }
            let short = run.outcomes.get("generator").copied().unwrap_or(0).saturating_sub(run.generator.unsent);
            if short > 0 {
                reasons.push(format!("{of_run}{short} requests failed because this machine ran out of ports or descriptors"));
            }
        }
        reasons
    }

    fn say(&self, text: &str) {
        // A terminal that went away must not end the run.
        drop(writeln!(std::io::stderr(), "{text}"));
    }
}

fn workers(sending: &SendingArgs) -> usize {
    let cores = std::thread::available_parallelism().map_or(1, std::num::NonZero::get);
    sending.workers.unwrap_or(cores / 2).clamp(1, 256)
}

/// Every request in flight may need a connection of its own, so the limit of descriptors must allow as many. Gives how many may be in flight: what the caller
/// asked for by a flag or nothing, what a scenario asks for as far as this process can have it.
fn allow_descriptors(in_flight_max: u64, by_flag: bool) -> anyhow::Result<u64> {
    use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
    let limit = getrlimit(Resource::Nofile);
    let possible = limit.maximum.map_or(u64::MAX, |hard| hard.saturating_sub(DESCRIPTORS_ASIDE));
    if possible < in_flight_max && (by_flag || possible < IN_FLIGHT_MIN) {
        bail!(
            "up to {in_flight_max} requests may be in flight, but this process may only have {} descriptors: raise it (ulimit -Hn) or give a lower --max-in-flight",
            limit.maximum.unwrap_or(0)
        );
    }
    let in_flight_max = in_flight_max.min(possible);
    let needed = in_flight_max + DESCRIPTORS_ASIDE;
    if limit.current.is_some_and(|soft| soft < needed) {
        setrlimit(Resource::Nofile, Rlimit { current: Some(needed), maximum: limit.maximum })
            .context("raising the limit of descriptors")?;
    }
    Ok(in_flight_max)
}
