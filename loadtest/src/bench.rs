//! Small measurements for programs: a closed loop finds how many requests per second a target takes, an open loop how long requests take at a given rate. Against a
//! URL, or against a unix socket, which is how a node speaks to the runtime in a container.
//!
//! ```no_run
//! # async fn example() -> anyhow::Result<()> {
//! use hearth_loadtest::bench::{self, Load, Target};
//! use std::time::Duration;
//!
//! let direct = Target::unix("/run/hearth/http.sock", "/hello")?.header("hearth-call", "...")?;
//! let through = Target::url("http://127.0.0.1:8080/run/acme/main/hello").await?;
//! let capacity = bench::closed_loop(&through, 32, Duration::from_secs(5)).await?;
//! let a = bench::open_loop(&direct, 1_000.0, Duration::from_secs(10)).await?;
//! let b = bench::open_loop(&through, 1_000.0, Duration::from_secs(10)).await?;
//! println!("{:.0}/s; added p50 {:.3} ms", capacity.rps, b.p50_ms() - a.p50_ms());
//! # Ok(()) }
//! ```

use crate::{
    arrivals::{LoadStep, Shape, Spacing},
    engine::{self, ClosedLoop, Job, StreamJob},
    live::View,
    net::{Destination, Http, Options, Payload, Trust},
    pick::Picker,
    population::{Call, Form, Population},
};
use anyhow::Context as _;
use bytes::Bytes;
use hdrhistogram::Histogram;
use http::{HeaderMap, HeaderName, HeaderValue, Method, Uri, header};
use std::{collections::BTreeMap, path::PathBuf, sync::Arc, time::Duration};
use tokio_util::sync::CancellationToken;

/// What is called: one request, again and again, or several in turn.
#[derive(Debug, Clone)]
pub struct Target {
    place: Destination,
    uris: Vec<Uri>,
    method: Method,
    headers: HeaderMap,
    body: Payload,
    options: Options,
}

impl Target {
    /// A URL; its host is looked up now. Any certificate is taken, since this measures and does not trust.
    ///
    /// # Errors
    /// Not a URL, or the host is not found.
    pub async fn url(url: &str) -> anyhow::Result<Self> {
        let url: Uri = url.parse().with_context(|| format!("{url:?} is not a URL"))?;
        let place = Destination::of(&url).await?;
        let path = url.path_and_query().map_or("/", |p| p.as_str()).parse()?;
        Self::new(place, path)
    }

    /// A path at a unix socket.
    ///
    /// # Errors
    /// Not a path.
    pub fn unix(socket: impl Into<PathBuf>, path: &str) -> anyhow::Result<Self> {
        Self::new(Destination::unix(socket), path.parse().with_context(|| format!("{path:?} is not a path"))?)
    }

    fn new(place: Destination, path: Uri) -> anyhow::Result<Self> {
        let mut headers = HeaderMap::new();
        headers.insert(header::HOST, HeaderValue::from_str(place.authority.as_str())?);
        let tls = place.tls.is_some().then(|| Trust::Anything.config(Http::One)).transpose()?;
        let options = Options { http: Http::One, tls, ..Options::default() };
        Ok(Self { place, uris: vec![path], method: Method::GET, headers, body: Payload::Empty, options })
    }

    /// Calls this path as well, in turn with the others: one of many functions at the same place.
    ///
    /// # Errors
    /// Not a path.
    pub fn and_path(mut self, path: &str) -> anyhow::Result<Self> {
        self.uris.push(path.parse().with_context(|| format!("{path:?} is not a path"))?);
        Ok(self)
    }

    /// With a header; an earlier one of the same name is replaced.
    ///
    /// # Errors
    /// Not a header.
    pub fn header(mut self, name: &str, value: &str) -> anyhow::Result<Self> {
        self.headers.insert(name.parse::<HeaderName>()?, HeaderValue::from_str(value)?);
        Ok(self)
    }

    /// With this method.
    #[must_use]
    pub fn method(mut self, method: Method) -> Self {
        self.method = method;
        self
    }

    /// With a body.
    #[must_use]
    pub fn body(mut self, body: impl Into<Bytes>) -> Self {
        self.body = Payload::Whole(body.into());
        self
    }

    /// With this version of HTTP; 1.1 without it.
    ///
    /// # Errors
    /// TLS cannot be configured for it.
    pub fn http(mut self, http: Http) -> anyhow::Result<Self> {
        self.options.http = http;
        if self.place.tls.is_some() {
            self.options.tls = Some(Trust::Anything.config(http)?);
        }
        Ok(self)
    }

    /// A new connection for every request.
    #[must_use]
    pub fn fresh_connections(mut self) -> Self {
        self.options.fresh = true;
        self
    }

    fn population(&self) -> Arc<Population> {
        let form = Arc::new(Form { method: self.method.clone(), headers: self.headers.clone(), body: self.body.clone() });
        let call = |uri: &Uri| Call { place: 0, tenant: 0, kind: 0, uri: uri.clone(), form: Arc::clone(&form), id: None };
        Arc::new(Population {
            tenants: vec![self.place.show()],
            calls: self.uris.iter().map(call).collect(),
            functions_per_tenant: self.uris.len() as u32,
            destinations: vec![self.place.clone()],
            kinds: vec!["url"],
        })
    }
}

/// How it is measured, where the defaults do not fit.
#[derive(Debug, Clone, Copy)]
pub struct Load {
    /// Threads that send; 1.
    pub threads: usize,
    /// Not measured at the start; half a second.
    pub warm_up: Duration,
    /// Deadline of one request; 30 s.
    pub timeout: Duration,
    /// How arrivals of an open loop lie in time; evenly.
    pub spacing: Spacing,
}

impl Default for Load {
    fn default() -> Self {
        Self { threads: 1, warm_up: Duration::from_millis(500), timeout: Duration::from_secs(30), spacing: Spacing::Constant }
    }
}

/// What was measured.
#[derive(Debug, Clone)]
pub struct Throughput {
    /// Answers with a status below 400.
    pub ok: u64,
    /// All else.
    pub failed: u64,
    /// Successful answers per second.
    pub rps: f64,
    /// Nanoseconds, of the successful ones: from sending in a closed loop, from the intended moment in an open one.
    pub latency: Histogram<u64>,
    /// Of these, answered warm, by `hearth-start`; empty in a closed loop.
    pub warm: Histogram<u64>,
    /// Of these, answered cold; empty in a closed loop.
    pub cold: Histogram<u64>,
    /// What failed, and how often.
    pub failures: BTreeMap<String, u64>,
    /// Requests that an open loop could not send; above 0 the measurement is void.
    pub unsent: u64,
    /// How late the latest hundredth was sent, in milliseconds; 0 in a closed loop.
    pub lag_p99_ms: f64,
}

impl Throughput {
    /// The median latency in milliseconds.
    #[must_use]
    pub fn p50_ms(&self) -> f64 {
        self.quantile_ms(0.5)
    }

    /// The 99th percentile in milliseconds.
    #[must_use]
    pub fn p99_ms(&self) -> f64 {
        self.quantile_ms(0.99)
    }

    /// Any quantile between 0 and 1, in milliseconds.
    #[must_use]
    pub fn quantile_ms(&self, quantile: f64) -> f64 {
        self.latency.value_at_quantile(quantile) as f64 / 1e6
    }
}

/// So many connections, each sending its next request when it has the answer to the last: how many requests per second the target takes. One thread; see
/// [`closed_loop_with`].
///
/// # Errors
/// A thread cannot be made.
pub async fn closed_loop(target: &Target, connections: usize, duration: Duration) -> anyhow::Result<Throughput> {
    closed_loop_with(target, connections, duration, Load::default()).await
}

/// The same, with settings.
///
/// # Errors
/// A thread cannot be made.
pub async fn closed_loop_with(target: &Target, connections: usize, duration: Duration, load: Load) -> anyhow::Result<Throughput> {
    let job = ClosedLoop {
        population: target.population(),
        options: target.options.clone(),
        connections: connections.max(1),
        threads: load.threads,
        warm_up: load.warm_up,
        length: duration,
        timeout: load.timeout,
        once: false,
    };
    let result = engine::closed_loop(job, CancellationToken::new()).await?;
    Ok(Throughput {
        ok: result.ok,
        failed: result.failed,
        rps: result.ok as f64 / result.elapsed.as_secs_f64().max(1e-9),
        latency: result.latency,
        warm: crate::latency::histogram(),
        cold: crate::latency::histogram(),
        failures: result.failures,
        unsent: 0,
        lag_p99_ms: 0.0,
    })
}

/// A fixed rate, whatever the answers do: how long requests take. One thread, evenly spaced; see [`open_loop_with`].
///
/// # Errors
/// A thread or a timer cannot be made.
pub async fn open_loop(target: &Target, rate: f64, duration: Duration) -> anyhow::Result<Throughput> {
    open_loop_with(target, rate, duration, Load::default()).await
}

/// The same, with settings.
///
/// # Errors
/// A thread or a timer cannot be made.
pub async fn open_loop_with(target: &Target, rate: f64, duration: Duration, load: Load) -> anyhow::Result<Throughput> {
    let population = target.population();
    let functions = population.functions_of(0, None);
    let step = LoadStep { shape: Shape::Line { from: rate, to: rate }, length_ns: (load.warm_up + duration).as_nanos() as u64 };
    let stream = StreamJob {
        name: "bench".into(),
        steps: vec![step],
        step_names: vec![None],
        spacing: load.spacing,
        picker: Picker::each(functions, 1),
    };
    let job = Job {
        population,
        streams: vec![stream],
        faults: Vec::new(),
        options: target.options.clone(),
        timeout: load.timeout,
        in_flight_max: 10_000,
        workers: load.threads,
        seed: 1,
        warm_up: load.warm_up,
        node_header: HeaderName::from_static("hearth-node"),
    };
    let books = engine::run(job, View::silent(), CancellationToken::new(), None).await?;
    let fine = |latencies: &crate::latency::Latencies| match latencies {
        crate::latency::Latencies::Fine(Some(histogram)) => (**histogram).clone(),
        _ => crate::latency::histogram(),
    };
    let failures = books
        .reasons
        .iter()
        .map(|((outcome, reason), count)| (books.interner.name(*reason).unwrap_or_else(|| outcome.name().to_owned()), *count))
        .collect();
    Ok(Throughput {
        ok: books.total.ok,
        failed: books.total.offered - books.total.ok - books.total.unsent,
        rps: books.total.ok as f64 / duration.as_secs_f64().max(1e-9),
        latency: fine(&books.total.ok_latency),
        warm: fine(&books.total.warm_latency),
        cold: fine(&books.total.cold_latency),
        failures,
        unsent: books.total.unsent,
        lag_p99_ms: books.lag.at(0.99).unwrap_or(0.0),
    })
}
