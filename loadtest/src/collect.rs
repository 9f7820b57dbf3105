//! The books: one thread that counts what all requests came to. Its memory depends on the scenario's size, not on how long it runs.

use crate::{
    engine::{Fault, FaultEvent, Interner, Job, Outcome, Phase, Record, Start},
    latency::{Latencies, Sketch},
    live::{Second, View},
    population::Population,
    series::Series,
};
use std::{
    collections::HashMap,
    sync::{
        Arc,
        atomic::AtomicU64,
        mpsc::{Receiver, RecvTimeoutError},
    },
    time::{Duration, Instant},
};

/// Tenants whose latencies are kept apart; the others' requests are counted only.
const SKETCHES_MAX: usize = 20_000;
/// How often the gauges are read.
const TICK: Duration = Duration::from_millis(100);

/// What is told to the books.
#[derive(Debug)]
pub enum Message {
    /// Requests that ended.
    Records(Vec<Record>),
    /// A fault that began, or ended.
    Fault(FaultEvent),
    /// A deploy that ended.
    Deploy(DeployEvent),
}

/// A deploy that ended.
#[derive(Debug, Clone)]
pub struct DeployEvent {
    /// From the call to the answer.
    pub took: Duration,
    /// What went wrong.
    pub error: Option<String>,
    /// The first call after it was answered by the version before.
    pub stale: bool,
}

/// What the books need to know of a job.
#[derive(Debug)]
pub struct Layout {
    /// Who is called.
    pub population: Arc<Population>,
    /// Names of streams, and of their steps.
    pub streams: Vec<(String, Vec<Option<String>>)>,
    /// Length of every step of every stream.
    pub step_lengths: Vec<Vec<u64>>,
    /// Not counted before this moment.
    pub warm_up_ns: u64,
    /// The length of the load.
    pub length_ns: u64,
}

impl Layout {
    /// Of a job.
    #[must_use]
    pub fn of(job: &Job) -> Self {
        Self {
            population: Arc::clone(&job.population),
            streams: job.streams.iter().map(|s| (s.name.clone(), s.step_names.clone())).collect(),
            step_lengths: job.streams.iter().map(|s| s.steps.iter().map(|step| step.length_ns).collect()).collect(),
            warm_up_ns: job.warm_up.as_nanos() as u64,
            length_ns: job.length().as_nanos() as u64,
        }
    }
}

/// What can be read at any time.
#[derive(Debug, Clone)]
pub struct Gauges {
    /// Requests in flight, by thread.
    pub in_flight: Vec<Arc<AtomicU64>>,
    /// The start of the load.
    pub epoch: Instant,
}

/// Counts and latencies of one group of requests.
#[derive(Debug, Clone)]
pub struct Group {
    /// Requests that were to be sent.
    pub offered: u64,
    /// Not sent.
    pub unsent: u64,
    /// Answered.
    pub ok: u64,
    /// Turned away with the request to come back.
    pub shed: u64,
    /// Lost.
    pub lost: u64,
    /// Errors by [`Fault::ERRORS`].
    pub errors: [u64; 4],
    /// All that were sent, failures with the time until the failure.
    pub all_latency: Latencies,
    /// Answered.
    pub ok_latency: Latencies,
    /// Answered warm.
    pub warm_latency: Latencies,
    /// Answered cold.
    pub cold_latency: Latencies,
}

impl Group {
    fn new(latencies: fn() -> Latencies) -> Self {
        Self {
            offered: 0,
            unsent: 0,
            ok: 0,
            shed: 0,
            lost: 0,
            errors: [0; 4],
            all_latency: latencies(),
            ok_latency: latencies(),
            warm_latency: latencies(),
            cold_latency: latencies(),
        }
    }

    fn record(&mut self, record: &Record) {
        self.offered += 1;
        if !record.sent {
            self.unsent += 1;
            return;
        }
        self.all_latency.record(record.latency_ns);
        self.shed += u64::from(record.shed);
        self.lost += u64::from(record.outcome.lost());
        let fault = record.outcome.fault();
        if let Some(index) = Fault::ERRORS.iter().position(|f| *f == fault) {
            self.errors[index] += 1;
        }
        if fault != Fault::None {
            return;
        }
        self.ok += 1;
        self.ok_latency.record(record.latency_ns);
        match record.start {
            Start::Warm => self.warm_latency.record(record.latency_ns),
            Start::Cold => self.cold_latency.record(record.latency_ns),
            Start::Unknown => {}
        }
    }
}

/// One tenant.
#[derive(Debug, Clone, Default)]
pub struct TenantBook {
    /// Requests that were to be sent.
    pub offered: u32,
    /// Answered, or failed by the tenant's own fault.
    pub served: u32,
    /// Latencies of its answers.
    pub latency: Option<Box<Sketch>>,
}

/// One node.
#[derive(Debug, Clone, Default)]
pub struct NodeBook {
    /// Answers of it.
    pub answers: u64,
    /// Cold ones.
    pub cold: u64,
    /// Errors that are the platform's.
    pub platform_errors: u64,
}

/// One fault.
#[derive(Debug, Clone)]
pub struct FaultBook {
    /// What was done.
    pub event: FaultEvent,
    /// Requests lost from it on, until the next fault.
    pub lost: u64,
    /// The intended moment of the last one.
    pub last_lost_ns: Option<u64>,
}

/// Deploys.
#[derive(Debug, Clone)]
pub struct DeployBook {
    /// Of the successful ones.
    pub latency: Latencies,
    /// Failed.
    pub failed: u64,
    /// Still answered by the version before.
    pub stale: u64,
    /// The first error.
    pub error: Option<String>,
}

/// Everything that was counted.
#[derive(Debug)]
pub struct Gathered {
    /// What it was about.
    pub layout: Layout,
    /// All requests.
    pub total: Group,
    /// By stream.
    pub streams: Vec<Group>,
    /// By step of a stream, where the step has a name.
    pub phases: Vec<Vec<Option<Group>>>,
    /// By kind of function.
    pub kinds: Vec<Option<Group>>,
    /// From sending instead of from the intended moment.
    pub service_latency: Latencies,
    /// To the answer's head, of the successful ones.
    pub head_latency: Latencies,
    /// How late requests were sent.
    pub lag: Latencies,
    /// The platform's phases: warm and cold.
    pub timing: [[Latencies; 5]; 2],
    /// By outcome.
    pub outcomes: [u64; Outcome::ALL.len()],
    /// By outcome and reason.
    pub reasons: HashMap<(Outcome, u16), u64>,
    /// By node.
    pub nodes: Vec<(u16, NodeBook)>,
    /// By tenant.
    pub tenants: Vec<TenantBook>,
    /// Over time.
    pub series: Series,
    /// What was done to the target.
    pub faults: Vec<FaultBook>,
    /// Deploys.
    pub deploys: Option<DeployBook>,
    /// Most in flight.
    pub in_flight_peak: u64,
    /// Bytes of answers' bodies.
    pub bytes: u64,
    /// Names of reasons and nodes.
    pub interner: Arc<Interner>,
    /// How long the load really lasted.
    pub elapsed: Duration,
}

/// The thread that counts.
#[derive(Debug)]
pub struct Collector {
    books: Gathered,
    gauges: Gauges,
    view: View,
    second: Second,
    second_end: Instant,
    tick_end: Instant,
    sketches: usize,
}

impl Collector {
    /// Empty books.
    #[must_use]
    pub fn new(layout: Layout, interner: Arc<Interner>, gauges: Gauges, view: View) -> Self {
        let phases = layout
            .streams
            .iter()
            .map(|(_, steps)| steps.iter().map(|name| name.as_ref().map(|_| Group::new(Latencies::coarse))).collect())
            .collect();
        let books = Gathered {
            total: Group::new(Latencies::fine),
            streams: layout.streams.iter().map(|_| Group::new(Latencies::fine)).collect(),
            phases,
            kinds: vec![None; layout.population.kinds.len()],
            service_latency: Latencies::fine(),
            head_latency: Latencies::fine(),
            lag: Latencies::fine(),
            timing: std::array::from_fn(|_| std::array::from_fn(|_| Latencies::fine())),
            outcomes: [0; Outcome::ALL.len()],
            reasons: HashMap::new(),
            nodes: Vec::new(),
            tenants: vec![TenantBook::default(); layout.population.tenants.len()],
            series: Series::default(),
            faults: Vec::new(),
            deploys: None,
            in_flight_peak: 0,
            bytes: 0,
            elapsed: Duration::ZERO,
            interner,
            layout,
        };
        let (second_end, tick_end) = (gauges.epoch + Duration::from_secs(1), gauges.epoch);
        Self { books, gauges, view, second: Second::default(), second_end, tick_end, sketches: 0 }
    }

    /// Counts until all senders are gone.
    #[must_use]
    pub fn run(mut self, receiver: &Receiver<Message>) -> Gathered {
        loop {
            let message = match receiver.recv_timeout(TICK) {
                Ok(message) => Some(message),
                Err(RecvTimeoutError::Timeout) => None,
                Err(RecvTimeoutError::Disconnected) => break,
            };
            match message {
                Some(Message::Records(records)) => records.iter().for_each(|r| self.record(r)),
                Some(Message::Fault(event)) => self.fault(event),
                Some(Message::Deploy(event)) => self.books.deploy(&event),
                None => {}
            }
            self.tick();
        }
        self.books.elapsed = Instant::now().saturating_duration_since(self.gauges.epoch);
        self.view.finish();
        self.books
    }

    fn tick(&mut self) {
        let now = Instant::now();
        if now < self.tick_end {
            return;
        }
        self.tick_end = now + TICK;
        let in_flight = crate::engine::in_flight(&self.gauges.in_flight);
        self.books.in_flight_peak = self.books.in_flight_peak.max(in_flight);
        let elapsed = now.saturating_duration_since(self.gauges.epoch);
        let interval = self.books.series.at(elapsed.as_nanos() as u64);
        interval.in_flight = interval.in_flight.max(in_flight as u32);
        if now >= self.second_end {
            self.second_end += Duration::from_secs(1);
            if self.second_end < now {
                self.second_end = now + Duration::from_secs(1);
            }
            self.second.in_flight = in_flight;
            self.view.second(elapsed, &self.second, &self.books);
            self.second = Second::default();
        }
    }

    fn fault(&mut self, event: FaultEvent) {
        match self.books.faults.iter_mut().find(|f| f.event.name == event.name && f.event.at_ns == event.at_ns) {
            Some(known) => known.event = event,
            None => {
                self.view.fault(&event);
                self.books.faults.push(FaultBook { event, lost: 0, last_lost_ns: None });
                self.books.faults.sort_by_key(|f| f.event.at_ns);
            }
        }
    }

    fn record(&mut self, record: &Record) {
        self.second.record(record);
        if record.at_ns < self.books.layout.warm_up_ns {
            return;
        }
        if record.outcome.lost() {
            self.books.blame_fault(record);
        }
        self.books.record(record, &mut self.sketches);
    }
}

impl Gathered {
    fn record(&mut self, record: &Record, sketches: &mut usize) {
        let call = &self.layout.population.calls[record.function as usize];
        let (tenant, kind) = (call.tenant as usize, usize::from(call.kind));
        self.total.record(record);
        if let Some(stream) = self.streams.get_mut(usize::from(record.stream)) {
            stream.record(record);
        }
        let phase = self.phases.get_mut(usize::from(record.stream)).and_then(|p| p.get_mut(usize::from(record.step)));
        if let Some(Some(phase)) = phase {
            phase.record(record);
        }
        if let Some(kind) = self.kinds.get_mut(kind) {
            kind.get_or_insert_with(|| Group::new(Latencies::coarse)).record(record);
        }
        let node = (record.node > 0).then(|| self.node(record));
        self.series.record(record, node);
        if let Some(index) = Outcome::ALL.iter().position(|o| *o == record.outcome) {
            self.outcomes[index] += 1;
        }
        if record.outcome != Outcome::Ok {
            *self.reasons.entry((record.outcome, record.reason)).or_default() += 1;
        }
        self.tenant(record, tenant, sketches);
        if !record.sent {
            return;
        }
        self.bytes += record.bytes;
        self.lag.record(record.latency_ns.saturating_sub(record.service_ns));
        if record.outcome == Outcome::Ok {
            self.service_latency.record(record.service_ns);
            self.head_latency.record(record.head_ns);
            let cold = usize::from(record.start == Start::Cold);
            for (ms, latencies) in record.phases.iter().zip(&mut self.timing[cold]) {
                if *ms >= 0.0 {
                    latencies.record((f64::from(*ms) * 1e6) as u64);
                }
            }
        }
    }

    fn tenant(&mut self, record: &Record, tenant: usize, sketches: &mut usize) {
        let Some(book) = self.tenants.get_mut(tenant) else { return };
        book.offered = book.offered.saturating_add(1);
        if matches!(record.outcome.fault(), Fault::None | Fault::Tenant) {
            book.served = book.served.saturating_add(1);
        }
        if record.outcome == Outcome::Ok {
            if book.latency.is_none() && *sketches < SKETCHES_MAX {
                *sketches += 1;
                book.latency = Some(Box::default());
            }
            if let Some(latency) = &mut book.latency {
                latency.record(record.latency_ns);
            }
        }
    }

    fn node(&mut self, record: &Record) -> usize {
        let index = match self.nodes.iter().position(|(n, _)| *n == record.node) {
            Some(index) => index,
            None => {
                self.nodes.push((record.node, NodeBook::default()));
                self.nodes.len() - 1
            }
        };
        let book = &mut self.nodes[index].1;
        book.answers += 1;
        book.cold += u64::from(record.start == Start::Cold);
        book.platform_errors += u64::from(record.outcome.fault() == Fault::Platform);
        index
    }

    /// Counts a lost request for the fault that it is to be blamed on: the one that struck while it was in flight, or the last one before it. A
    /// time-out ends so long after its cause that only its beginning says anything.
    fn blame_fault(&mut self, record: &Record) {
        let end_ns = record.at_ns + record.latency_ns;
        let before = self.faults.iter().rposition(|f| f.event.at_ns <= record.at_ns);
        let during = self.faults.iter().position(|f| (record.at_ns + 1..=end_ns).contains(&f.event.at_ns));
        let index = if record.outcome == Outcome::Timeout { before.or(during) } else { during.or(before) };
        if let Some(fault) = index.and_then(|i| self.faults.get_mut(i)) {
            fault.lost += 1;
            let at_ns = record.at_ns.max(fault.event.at_ns);
            fault.last_lost_ns = Some(fault.last_lost_ns.map_or(at_ns, |last| last.max(at_ns)));
        }
    }

    fn deploy(&mut self, event: &DeployEvent) {
        let book = self.deploys.get_or_insert_with(|| DeployBook { latency: Latencies::fine(), failed: 0, stale: 0, error: None });
        book.stale += u64::from(event.stale);
        match &event.error {
            None => book.latency.record(event.took.as_nanos() as u64),
            Some(error) => {
                book.failed += 1;
                book.error.get_or_insert_with(|| error.clone());
            }
        }
    }

    /// Milliseconds of a phase of the platform.
    #[must_use]
    pub fn phase(&self, cold: bool, phase: Phase) -> &Latencies {
        let index = Phase::ALL.iter().position(|p| *p == phase).unwrap_or(0);
        &self.timing[usize::from(cold)][index]
    }
}
