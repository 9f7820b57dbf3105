//! The control calls that this node answers (gRPC): what it does, that it is to leave, that a container's records changed, a container's
//! log. For routers, the planner and other nodes; with certificates only those that the cluster's authority has signed.

use crate::{
    handler::{ContainerLoad, Handler},
    logs::{LogHub, LogItem},
};
use futures_util::{FutureExt, Stream, StreamExt, stream};
use hearth_model::{ContainerPath, protocol::LogLevel};
use hearth_placement::{
    NodeName,
    control::{
        ContainerStats, DrainRequest, DrainResponse, EvictRequest, EvictResponse, LogLine, StatsRequest, StatsResponse,
        TailLogsRequest, control_server::Control,
    },
};
use parking_lot::Mutex;
use std::{
    collections::{HashMap, VecDeque},
    pin::Pin,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
    time::Instant,
};
use tokio_util::sync::CancellationToken;
use tonic::{Request, Response, Status};

/// Containers in one answer; the busiest. A node has no more by default.
const REPORTED_MAX: usize = 2_000;

/// The service.
pub(super) struct ControlService {
    pub handler: Arc<Handler>,
    pub logs: Arc<LogHub>,
    pub name: NodeName,
    pub incarnation: u64,
    /// The latest plan that asked for anything.
    pub generation: AtomicU64,
    /// Cancelled by the call to leave.
    pub asked_to_leave: CancellationToken,
    pub leaving: CancellationToken,
    pub rates: Rates,
}

/// Requests per second of each container, between one look and the next.
#[derive(Default)]
pub(super) struct Rates(Mutex<Option<(Instant, HashMap<u64, u64>)>>, Mutex<HashMap<u64, f64>>);

impl Rates {
    /// The least time between two looks: whoever asks in between gets the rates of the last.
    const LOOK_EVERY_S: f64 = 1.0;

    /// The rate of each container id.
    fn update(&self, served: impl Iterator<Item = (u64, u64)>) -> HashMap<u64, f64> {
        let mut last = self.0.lock();
        let now = Instant::now();
        let seconds = last.as_ref().map(|(at, _)| (now - *at).as_secs_f64());
        if seconds.is_some_and(|s| s < Self::LOOK_EVERY_S) {
            return self.1.lock().clone();
        }
        let current: HashMap<u64, u64> = served.collect();
        let rates: HashMap<u64, f64> = match (&*last, seconds) {
            (Some((_, before)), Some(seconds)) => current
                .iter()
                .map(|(id, count)| (*id, (count - before.get(id).copied().unwrap_or(0).min(*count)) as f64 / seconds))
                .collect(),
            _ => HashMap::new(),
        };
        *last = Some((now, current));
        (*self.1.lock()).clone_from(&rates);
        rates
    }
}

fn container_path(tenant: &str, container: &str) -> Result<ContainerPath, Status> {
    let invalid = |e: hearth_model::NameError| Status::invalid_argument(e.to_string());
    Ok(ContainerPath { tenant: tenant.parse().map_err(invalid)?, container: container.parse().map_err(invalid)? })
}

type Tail = Pin<Box<dyn Stream<Item = Result<LogLine, Status>> + Send>>;

#[tonic::async_trait]
impl Control for ControlService {
    type TailLogsStream = Tail;

    async fn stats(&self, request: Request<StatsRequest>) -> Result<Response<StatsResponse>, Status> {
        let max = REPORTED_MAX.min(usize::try_from(request.into_inner().containers_max).unwrap_or(REPORTED_MAX));
        let mut loads = self.handler.loads();
        let rates = self.rates.update(loads.iter().map(|l| (l.id, l.served)));
        let rate = |load: &ContainerLoad| rates.get(&load.id).copied().unwrap_or(0.0);
        let (running, in_flight) = (loads.len(), loads.iter().map(|l| l.in_flight).sum());
        let request_rate = loads.iter().map(rate).sum();
        loads.sort_by(|a, b| rate(b).total_cmp(&rate(a)).then(b.in_flight.cmp(&a.in_flight)));
        let containers = loads.iter().take(max).map(|load| ContainerStats {
            tenant: load.path.tenant.to_string(),
            container: load.path.container.to_string(),
            request_rate: rate(load),
            in_flight: load.in_flight,
            memory_bytes: load.memory_mb * 1024 * 1024,
        });
        Ok(Response::new(StatsResponse {
            node: self.name.to_string(),
            incarnation: self.incarnation,
            request_rate,
            in_flight,
            memory_bytes: self.handler.memory_bytes(),
            memory_max_bytes: self.handler.memory_max_bytes(),
            containers_running: u32::try_from(running).unwrap_or(u32::MAX),
            pool_ready: u32::try_from(self.handler.pool_level()).unwrap_or(u32::MAX),
            draining: self.asked_to_leave.is_cancelled(),
            containers: containers.collect(),
        }))
    }

    async fn drain(&self, _request: Request<DrainRequest>) -> Result<Response<DrainResponse>, Status> {
        let started = !self.asked_to_leave.is_cancelled();
        tracing::info!(started, "asked to leave by a control call");
        self.asked_to_leave.cancel();
        let in_flight = self.handler.loads().iter().map(|l| l.in_flight).sum();
        Ok(Response::new(DrainResponse { started, in_flight }))
    }

    async fn evict(&self, request: Request<EvictRequest>) -> Result<Response<EvictResponse>, Status> {
        let EvictRequest { tenant, container, generation } = request.into_inner();
        let path = container_path(&tenant, &container)?;
        if self.generation.fetch_max(generation, Relaxed) > generation {
            return Err(Status::failed_precondition("this node has seen a later plan"));
        }
        let evicted = self.handler.holds(&path);
        self.handler.evict(&path);
        Ok(Response::new(EvictResponse { evicted }))
    }

    async fn tail_logs(&self, request: Request<TailLogsRequest>) -> Result<Response<Tail>, Status> {
        let TailLogsRequest { tenant, container, function, lines_max, follow } = request.into_inner();
        let path = container_path(&tenant, &container)?;
        let node = self.name.clone();
        let lines = self.logs.subscribe(&path);
        let lines = lines.filter(move |item| {
            let is_wanted = match item {
                LogItem::Line(line) => function.is_empty() || line.function.as_ref().is_some_and(|f| f.as_str() == function),
                LogItem::Dropped(_) => true,
            };
            std::future::ready(is_wanted)
        });
        let mut lines = Box::pin(lines.map(move |item| Ok(line_of(&node, item))));
        let mut kept = VecDeque::new();
        while let Some(Some(line)) = lines.next().now_or_never() {
            kept.push_back(line);
        }
        if lines_max > 0 {
            kept.drain(..kept.len().saturating_sub(usize::try_from(lines_max).unwrap_or(usize::MAX)));
        }
        let kept = stream::iter(kept);
        let leaving = self.leaving.clone();
        Ok(Response::new(if follow { kept.chain(lines.take_until(leaving.cancelled_owned())).boxed() } else { kept.boxed() }))
    }
}

const fn level(level: LogLevel) -> &'static str {
    match level {
        LogLevel::Debug => "debug",
        LogLevel::Info => "info",
        LogLevel::Warn => "warn",
        LogLevel::Error => "error",
    }
}

/// A line on its way to another node.
fn line_of(node: &NodeName, item: LogItem) -> LogLine {
    let node = node.to_string();
    match item {
        LogItem::Line(line) => LogLine {
            time_ms: line.at.0,
            node,
            function: line.function.as_ref().map(ToString::to_string).unwrap_or_default(),
            stream: level(line.level).to_owned(),
            request_id: line.request_id.clone().unwrap_or_default(),
            text: line.line.clone(),
            lost: false,
            version: line.version.map_or(0, |v| v.0),
        },
        LogItem::Dropped(count) => LogLine { node, text: count.to_string(), lost: true, ..LogLine::default() },
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rates_are_of_the_time_between_two_looks_and_new_containers_count_from_nothing() {
        let rates = Rates::default();
        assert!(rates.update([(1, 100)].into_iter()).is_empty(), "nothing to compare with yet");
        *rates.0.lock() = Some((Instant::now() - std::time::Duration::from_secs(10), HashMap::from([(1, 100)])));
        let now = rates.update([(1, 600), (2, 10)].into_iter());
        assert!((now[&1] - 50.0).abs() < 1.0 && (now[&2] - 1.0).abs() < 0.1, "{now:?}");
        assert_eq!(rates.update([(1, 9_999)].into_iter()), now, "too soon for another look");
    }
}
