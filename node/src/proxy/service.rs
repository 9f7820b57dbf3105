//! One request, from its head to its answer's head.

use super::{
    admit::{Gate, Permit, Refused},
    body::{FunctionBody, Held, RequestBody, ResponseBody, Upload},
    forward::{self, Exchange, SendError},
    metrics::Metrics,
    pause::PAUSE,
    respond,
    worker::{RATE_MIN_BYTES_PER_S, Worker},
};
use crate::{
    handler::{AcquireError, Lease, LiveContainer, Start},
    manage,
    uploads::Full,
};
use bytes::Bytes;
use hearth_edge::{
    headers, ids,
    link::AnswerBody,
    patience::Terms,
    serve::{self, ClientBody, Peer},
    upgrade,
};
use hearth_model::{
    Fault, FunctionPath, FunctionVersion, ProblemKind, header as names, limits,
    protocol::{CallHeader, ErrorReason},
};
use hearth_store::Servable;
use http::{HeaderValue, Method, Request, Response, StatusCode, header};
use http_body_util::{BodyExt, Limited};
use prometheus_client::metrics::gauge::Gauge;
use std::{
    fmt::Write,
    net::IpAddr,
    rc::Rc,
    sync::Arc,
    time::{Duration, Instant},
};
use tower::ServiceExt;

/// How long a broken connection waits for the news that its container has ended, to tell a crash from a defect of ours.
const EXIT_NEWS_TIMEOUT: Duration = Duration::from_secs(1);
/// Containers that one request may try; each but the last was gone before anything was sent.
const CONTAINERS_MAX: usize = 3;
/// The runtime's words about an error.
const ERROR_BODY_BYTES_MAX: usize = 64 * 1024;

/// Answers one request; never fails, since every failure is an answer.
pub(super) async fn answer(worker: Rc<Worker>, peer: &Peer, request: Request<ClientBody>) -> Response<ResponseBody> {
    let path = request.uri().path();
    let request_id = request_id(&worker, peer, &request);
    if worker.shared.refusing.is_cancelled() {
        return late(&request_id);
    }
    if path.starts_with("/run/") {
        let metrics = Arc::clone(&worker.shared.metrics);
        let in_flight = InFlight::new(&metrics);
        let response = match invoke(worker, peer, request, &request_id, in_flight).await {
            Ok(response) => response,
            Err(failure) => {
                metrics.answered(Some(failure.kind.fault()));
                let mut response = respond::problem(failure.kind, failure.component, failure.detail, &request_id);
                if let Some(start) = failure.start {
                    response.headers_mut().insert(names::START, HeaderValue::from_static(start_name(start)));
                }
                if failure.unsent {
                    response.headers_mut().insert(names::UNSENT, HeaderValue::from_static("1"));
                }
                if failure.close {
                    response.headers_mut().insert(header::CONNECTION, HeaderValue::from_static("close"));
                }
                response
            }
        };
        return response;
    }
    if path == "/v1" || path.starts_with("/v1/") {
        return manage_call(&worker, peer, request, request_id).await;
    }
    let detail = "functions are below /run/{tenant}/{container}/{function}, the management API below /v1";
    respond::problem(ProblemKind::NotFound, "proxy", detail, &request_id)
}

/// Counts a request until its answer's head is known, also one that its client gives up before.
struct InFlight(Gauge);

impl InFlight {
    fn new(metrics: &Metrics) -> Self {
        metrics.in_flight.inc();
        Self(metrics.in_flight.clone())
    }
}

impl Drop for InFlight {
    fn drop(&mut self) {
        self.0.dec();
    }
}

/// The answer to whoever comes although this node has said that it leaves: another one serves it, since nothing of it was used.
fn late(request_id: &str) -> Response<ResponseBody> {
    let mut response =
        respond::problem(ProblemKind::Draining, "proxy", "this node is leaving; another one serves this", request_id);
    response.headers_mut().insert(names::UNSENT, HeaderValue::from_static("1"));
    response.headers_mut().insert(header::CONNECTION, HeaderValue::from_static("close"));
    response
}

/// A request keeps the id that a router gave it; a client's word is not taken.
fn request_id(worker: &Worker, peer: &Peer, request: &Request<ClientBody>) -> String {
    let given = request.headers().get(names::REQUEST_ID).filter(|id| peer.is_router && ids::is_request_id(id.as_bytes()));
    given.and_then(|id| id.to_str().ok()).map_or_else(|| worker.ids.next(), str::to_owned)
}

/// A request that ends in a problem.
struct Failure {
    kind: ProblemKind,
    component: &'static str,
    detail: String,
    start: Option<Start>,
    /// Whether another node may serve it: nothing reached a function, and the reason is this node's.
    unsent: bool,
    /// Whether the connection must not be used again, since its framing is in doubt.
    close: bool,
}

fn fail(kind: ProblemKind, component: &'static str, detail: impl Into<String>) -> Failure {
    Failure { kind, component, detail: detail.into(), start: None, unsent: false, close: false }
}

impl Failure {
    fn unsent(mut self) -> Self {
        self.unsent = true;
        self
    }

    fn closing(mut self) -> Self {
        self.close = true;
        self
    }

    fn after(mut self, start: Start) -> Self {
        self.start = Some(start);
        self
    }
}

async fn manage_call(worker: &Worker, peer: &Peer, request: Request<ClientBody>, request_id: String) -> Response<ResponseBody> {
    if let Err(failure) = check_head(&request) {
        let mut response = respond::problem(failure.kind, failure.component, failure.detail, &request_id);
        response.headers_mut().insert(header::CONNECTION, HeaderValue::from_static("close"));
        return response;
    }
    let mut request = request.map(axum::body::Body::new);
    let client = headers::client_ip(request.headers(), peer.addr.ip(), trusts(worker, peer));
    request.extensions_mut().insert(manage::RequestId(request_id.clone()));
    request.extensions_mut().insert(manage::ClientIp(client));
    let router = worker.shared.manage.clone();
    // On the main runtime, so that a large body to check never delays a request to a function. Dropping the set cancels it.
    let mut task = tokio::task::JoinSet::new();
    task.spawn_on(async move { router.oneshot(request).await }, &worker.shared.main);
    match task.join_next().await {
        Some(Ok(Ok(mut response))) => {
            if let Ok(id) = HeaderValue::from_str(&request_id) {
                response.headers_mut().insert(names::REQUEST_ID, id);
            }
            response.map(ResponseBody::Manage)
        }
        _ => respond::problem(
            ProblemKind::Internal,
            "manage",
            "the call failed; the log tells more under this request's id",
            &request_id,
        ),
    }
}

/// Whether the peer's word about the caller is taken.
fn trusts(worker: &Worker, peer: &Peer) -> bool {
    peer.is_router || worker.shared.config.trust_forwarded_for
}

async fn invoke(
    worker: Rc<Worker>,
    peer: &Peer,
    request: Request<ClientBody>,
    request_id: &str,
    in_flight: InFlight,
) -> Result<Response<ResponseBody>, Failure> {
    check(&request, &worker)?;
    let (spread, upload) = (spread(peer, &request), Rc::new(Upload::default()));
    // Before anything is looked up: a client may take half a minute, and what is found then must be what is true then.
    let request = with_body(&worker, request, &upload).await?;
    let began = Instant::now();
    let target = request.uri().path_and_query().map_or("/", http::uri::PathAndQuery::as_str);
    let key = function_key(request.uri().path()).ok_or_else(not_found)?;
    let prefix_bytes = "/run/".len() + key.len();
    debug_assert!(target.len() >= prefix_bytes);
    let known = match worker.shared.catalog.peek(key) {
        Some(known) => known,
        None => {
            let path: FunctionPath = key.parse().map_err(|_| not_found())?;
            worker.shared.catalog.read(key, &path).await.map_err(|error| {
                tracing::warn!(function = %path, %error, "a function's record could not be read");
                fail(
                    ProblemKind::DependencyUnavailable,
                    "store",
                    "the function's record cannot be read now, and this node does not know it yet",
                )
                .unsent()
            })?
        }
    };
    let (Some(servable), Some(gate)) = (&known.servable, &known.gate) else { return Err(not_found()) };
    let Some(version) = &servable.live else {
        let detail = "no version of this function can run yet; GET its versions to see what they wait for";
        return Err(fail(ProblemKind::FunctionNotReady, "proxy", detail));
    };
    let permit = match gate.admit(spread) {
        Ok(permit) => permit,
        Err(why) => {
            // Who waits here is no load, which machines would be added for.
            drop((request, in_flight));
            wait_in_line(&worker, peer, gate).await;
            return Err(refused(why));
        }
    };
    if request.body().is_coming() {
        match gate.admit_upload(spread) {
            Ok(place) => upload.hold_of_tenant(place),
            Err(full) => {
                drop((request, permit, in_flight));
                wait_in_line(&worker, peer, gate).await;
                return Err(uploads_full(full));
            }
        }
    }
    let trusted = trusts(&worker, peer);
    let client = headers::client_ip(request.headers(), peer.addr.ip(), trusted);
    let proto = if peer.tls { "https" } else { "http" };
    let call = Call { servable, version, request_id, prefix_bytes, client, trusted, proto, began };
    let answered = forward_call(&worker, call, permit, request, upload).await;
    if let Err(failure) = &answered {
        gate.usage().failed(failure.kind.fault());
        if matches!(failure.kind, ProblemKind::ConcurrencyLimited | ProblemKind::FunctionCrashLoop) {
            drop(in_flight);
            wait_in_line(&worker, peer, gate).await;
        }
    }
    answered
}

/// On how many nodes the container runs, as the router says: this node admits its share of the tenant's limits.
fn spread(peer: &Peer, request: &Request<ClientBody>) -> u32 {
    let said = request.headers().get(names::SPREAD).filter(|_| peer.is_router).and_then(|v| v.to_str().ok());
    said.and_then(|v| v.parse().ok()).unwrap_or(1).max(1)
}

/// Waits until the next of the tenant's refusals may be told. What came through a router holds one of its places meanwhile, which it has for all
/// tenants: that is told soon.
async fn wait_in_line(worker: &Worker, peer: &Peer, gate: &Gate) {
    worker.pause.wait(|| if peer.is_router { PAUSE } else { gate.take_refusal_turn() }).await;
}

fn not_found() -> Failure {
    fail(ProblemKind::NotFound, "proxy", "there is no such function")
}

fn refused(refused: Refused) -> Failure {
    match refused {
        Refused::Concurrency { limit } => {
            fail(ProblemKind::ConcurrencyLimited, "proxy", format!("this tenant may have {limit} requests in flight on a node"))
        }
        Refused::Rate { limit_per_s } => {
            fail(ProblemKind::RateLimited, "proxy", format!("this tenant may make {limit_per_s} requests per second on a node"))
        }
    }
}

fn uploads_full(full: Full) -> Failure {
    let detail = format!("of the requests at once, {} may have bodies that are still on their way", full.limit);
    fail(ProblemKind::ConcurrencyLimited, "proxy", detail).closing()
}

/// `tenant/container/function` out of `/run/tenant/container/function[/...]`; percent-encoding never makes a name.
fn function_key(path: &str) -> Option<&str> {
    let rest = path.strip_prefix("/run/")?;
    let mut slashes = rest.bytes().enumerate().filter(|(_, b)| *b == b'/').map(|(i, _)| i);
    let (_, _) = (slashes.next()?, slashes.next()?);
    Some(&rest[..slashes.next().unwrap_or(rest.len())])
}

fn check(request: &Request<ClientBody>, worker: &Worker) -> Result<(), Failure> {
    check_head(request).map_err(Failure::closing)?;
    let limit = worker.shared.config.request_body_max.as_u64();
    match http_body::Body::size_hint(request.body()).exact() {
        Some(bytes) if bytes > limit => Err(body_too_large(limit)),
        _ => Ok(()),
    }
}

/// Refuses heads over their limits and those that can be read in two ways.
fn check_head(request: &Request<ClientBody>) -> Result<(), Failure> {
    if *request.method() == Method::CONNECT {
        return Err(fail(ProblemKind::MethodNotAllowed, "proxy", "CONNECT is not forwarded"));
    }
    let target_bytes = request.uri().path_and_query().map_or(0, |t| t.as_str().len());
    if target_bytes > limits::REQUEST_TARGET_BYTES_MAX {
        let detail = format!("the request target has {target_bytes} bytes, {} are allowed", limits::REQUEST_TARGET_BYTES_MAX);
        return Err(fail(ProblemKind::TargetTooLong, "proxy", detail));
    }
    headers::check_size(request.headers()).map_err(|over| fail(ProblemKind::HeadersTooLarge, "proxy", over.to_string()))?;
    if headers::ambiguous_framing(request.headers(), request.version()) {
        return Err(fail(
            ProblemKind::Invalid,
            "proxy",
            "a request's body is framed by one content-length or by `transfer-encoding: chunked`",
        ));
    }
    if !headers::host_is_clear(request.headers(), request.uri(), request.version()) {
        return Err(fail(ProblemKind::Invalid, "proxy", "a request names its host exactly once"));
    }
    Ok(())
}

fn body_too_large(limit: u64) -> Failure {
    fail(ProblemKind::BodyTooLarge, "proxy", format!("a request's body may have {limit} bytes"))
}

fn body_too_slow() -> Failure {
    fail(ProblemKind::RequestTimeout, "proxy", "the request's body came too slowly").closing()
}

/// The request with its body counted and watched, and read already if it is small.
async fn with_body(worker: &Worker, request: Request<ClientBody>, upload: &Rc<Upload>) -> Result<Request<RequestBody>, Failure> {
    let config = &worker.shared.config;
    let terms = Terms { wait_max: config.header_timeout, rate_min_bytes_per_s: RATE_MIN_BYTES_PER_S };
    let (parts, incoming) = request.into_parts();
    let body = RequestBody::new(incoming, config.request_body_max.as_u64(), terms, Rc::clone(upload));
    match body.read_first().await {
        Some(body) => Ok(Request::from_parts(parts, body)),
        None if upload.slow.get() => Err(body_too_slow()),
        None => Err(fail(ProblemKind::Invalid, "proxy", "the request's body broke off").closing()),
    }
}

/// What stays the same however often a request is sent.
#[derive(Clone, Copy)]
struct Call<'a> {
    servable: &'a Arc<Servable>,
    version: &'a FunctionVersion,
    request_id: &'a str,
    prefix_bytes: usize,
    client: IpAddr,
    /// Whether the peer's forwarding headers are kept.
    trusted: bool,
    proto: &'static str,
    began: Instant,
}

async fn forward_call(
    worker: &Rc<Worker>,
    call: Call<'_>,
    permit: Permit,
    mut request: Request<RequestBody>,
    upload: Rc<Upload>,
) -> Result<Response<ResponseBody>, Failure> {
    let upgrades = headers::wants_upgrade(request.headers()) && serve::may_upgrade(&request);
    let upgrade_to = upgrades.then(|| request.headers()[header::UPGRADE].clone());
    let client_side = upgrade_to.as_ref().map(|_| hyper::upgrade::on(&mut request));
    let (mut parts, body) = request.into_parts();
    parts.uri = origin_form(&parts.uri);
    parts.version = http::Version::HTTP_11;
    parts.extensions.clear();
    headers::strip(&mut parts.headers);
    let client = call.client.to_string();
    let call_header = CallHeader {
        function: &call.servable.function.path.function,
        version: call.version.version,
        request_id: call.request_id,
        timeout_ms: call.version.timeout_ms,
        prefix_bytes: call.prefix_bytes,
        client_ip: &client,
    };
    let forwarded_for = HeaderValue::try_from(client.as_str()).unwrap_or(HeaderValue::from_static("unknown"));
    headers::add_forwarded(&mut parts.headers, &forwarded_for, call.proto, call.trusted);
    worker.ids.ensure_traceparent(&mut parts.headers);
    if let Some(protocol) = upgrade_to {
        parts.headers.insert(header::CONNECTION, HeaderValue::from_static("upgrade"));
        parts.headers.insert(header::UPGRADE, protocol);
    }
    let mut outgoing = Request::from_parts(parts, body);
    let held = Held(Rc::clone(&upload));
    let timeout = Duration::from_millis(call.version.timeout_ms);

    for last in (0..CONTAINERS_MAX).rev() {
        let routed = Instant::now();
        let lease = acquire(worker, call.servable).await?;
        let (start, forwarded) = (lease.start(), Instant::now());
        let container = Arc::clone(lease.container());
        if outgoing.body().is_coming() {
            upload.hold_of_container(|| lease.upload(call.servable.container.concurrency)).map_err(uploads_full)?;
        }
        let linked = !upgrades && container.is_linked(call.version);
        match tokio::time::timeout(timeout, forward::send(worker, &container, outgoing, &call_header, linked)).await {
            Ok(Ok((response, sender))) => {
                let exchange = Exchange { worker: Rc::clone(worker), sender, lease, upload, _held: held, permit };
                let times = Times { began: call.began, routed, forwarded };
                return finish(worker, call, times, exchange, response, client_side).await.map_err(|f| f.after(start));
            }
            Ok(Err(_)) if upload.over.get() => {
                return Err(body_too_large(worker.shared.config.request_body_max.as_u64()).after(start));
            }
            Ok(Err(_)) if upload.slow.get() => return Err(body_too_slow().after(start)),
            Ok(Err(SendError::NotSent(unsent, error))) if last > 0 => {
                // Nothing reached a function: a fresh container serves the request as if nothing had been.
                tracing::debug!(container = %container.path(), error, "sending elsewhere");
                worker.shared.metrics.resent.inc();
                worker.shared.handler.suspect(&container);
                let _ = tokio::time::timeout(EXIT_NEWS_TIMEOUT, container.exited()).await;
                outgoing = *unsent;
            }
            Ok(Err(error)) => return Err(ended(&container, &error).await.after(start)),
            Err(_elapsed) if upload.awaited.get() => return Err(body_too_slow().after(start)),
            Err(_elapsed) => {
                worker.shared.handler.suspect(&container);
                let detail = format!("the function did not answer within {} ms", call.version.timeout_ms);
                return Err(fail(ProblemKind::FunctionTimeout, "handler", detail).after(start));
            }
        }
    }
    Err(fail(ProblemKind::NoCapacity, "proxy", "several containers ended before the request could be sent").unsent())
}

fn origin_form(uri: &http::Uri) -> http::Uri {
    match uri.path_and_query() {
        Some(target) if uri.authority().is_some() => http::Uri::from(target.clone()),
        _ => uri.clone(),
    }
}

async fn acquire(worker: &Worker, servable: &Arc<Servable>) -> Result<Lease, Failure> {
    let handler = &worker.shared.handler;
    match handler.try_acquire(servable) {
        Ok(Some(lease)) => Ok(lease),
        Ok(None) => handler.acquire(servable).await.map_err(not_acquired),
        Err(error) => Err(not_acquired(error)),
    }
}

/// The one mapping from the handler's errors to answers.
fn not_acquired(error: AcquireError) -> Failure {
    let kind = error.problem_kind();
    let failure = fail(kind, "handler", error.public_detail());
    if kind.fault() != Fault::Platform {
        return failure;
    }
    tracing::warn!(%error, "no container for a request");
    failure.unsent()
}

/// Tells what a broken connection means: the container ended, or it answered nonsense.
async fn ended(container: &Arc<LiveContainer>, error: &SendError) -> Failure {
    let exit = match container.exit() {
        Some(exit) => Some(exit),
        None => tokio::time::timeout(EXIT_NEWS_TIMEOUT, container.exited()).await.ok(),
    };
    tracing::debug!(container = %container.path(), ?error, ?exit, "a request broke");
    match exit {
        Some(exit) if exit.out_of_memory => {
            let detail = "the function's container used more memory than it may; a fresh one serves the next request";
            fail(ProblemKind::FunctionOutOfMemory, "handler", detail)
        }
        Some(exit) => {
            let code = exit.code.map_or_else(|| "without a code".into(), |code| format!("with code {code}"));
            fail(
                ProblemKind::FunctionCrashed,
                "handler",
                format!("the function's process ended {code}; a fresh one serves the next request"),
            )
        }
        None => {
            let detail =
                format!("the function's answer broke off, is not HTTP, or has more than {} headers", limits::RESPONSE_HEADERS_MAX);
            fail(ProblemKind::FunctionBadResponse, "runtime", detail)
        }
    }
}

struct Times {
    began: Instant,
    routed: Instant,
    forwarded: Instant,
}

async fn finish(
    worker: &Rc<Worker>,
    call: Call<'_>,
    times: Times,
    exchange: Exchange,
    mut response: Response<AnswerBody>,
    client_side: Option<hyper::upgrade::OnUpgrade>,
) -> Result<Response<ResponseBody>, Failure> {
    if let Some(reason) = response.headers().get(names::ERROR) {
        let reason = reason.to_str().ok().and_then(|r| r.parse::<ErrorReason>().ok());
        return Err(runtime_error(reason, response, exchange).await);
    }
    let answered = Instant::now();
    exchange.upload.answered.set(true);
    let switched = response.status() == StatusCode::SWITCHING_PROTOCOLS;
    let function_side = (switched && client_side.is_some()).then(|| hyper::upgrade::on(&mut response));
    if switched && function_side.is_none() || response.status().is_informational() && !switched {
        exchange.finish(false);
        return Err(fail(
            ProblemKind::FunctionBadResponse,
            "runtime",
            "the function switched protocols though the client did not ask for it",
        ));
    }
    if response.status().as_u16() >= 600 {
        exchange.finish(false);
        let detail = format!("the function answered with status {}; 599 is the highest", response.status().as_u16());
        return Err(fail(ProblemKind::FunctionBadResponse, "runtime", detail));
    }
    let (mut parts, incoming) = response.into_parts();
    headers::settle_length(&mut parts.headers);
    let by_tenant = parts.headers.get(names::FAULT).is_some();
    let protocol = parts.headers.get(header::UPGRADE).cloned();
    headers::strip(&mut parts.headers);
    parts.extensions.clear();
    stamp(&mut parts.headers, call, &times, answered, &exchange.lease, by_tenant);
    let metrics = &worker.shared.metrics;
    metrics.answered(by_tenant.then_some(Fault::Tenant));
    metrics.started(exchange.lease.start(), answered - times.began);
    if exchange.lease.start() == Start::Cold {
        let cold = exchange.lease.timings();
        metrics.cold_phases(cold.claim_ms, cold.modules_ms, cold.load_ms);
    }
    let asked_to_switch = client_side.is_some();
    if let (Some(function_side), Some(client_side)) = (function_side, client_side) {
        parts.headers.insert(header::CONNECTION, HeaderValue::from_static("upgrade"));
        if let Some(protocol) = protocol {
            parts.headers.insert(header::UPGRADE, protocol);
        }
        let idle_timeout = worker.shared.config.upgrade_idle_timeout;
        // Its container's end shows as the end of its socket.
        let gone = tokio_util::sync::CancellationToken::new();
        let ended = move || exchange.finish(false);
        upgrade::join(client_side, function_side, idle_timeout, worker.shared.draining.clone(), gone, ended);
        return Ok(Response::from_parts(parts, ResponseBody::Own(None)));
    }
    if asked_to_switch {
        // What the client has already sent after its request may not be HTTP: none of it is read as a request.
        parts.headers.insert(header::CONNECTION, HeaderValue::from_static("close"));
    }
    let silence_max = Duration::from_millis(call.version.timeout_ms);
    let body = ResponseBody::Function(Box::new(FunctionBody::new(incoming, silence_max, exchange)));
    Ok(Response::from_parts(parts, body))
}

/// Puts the platform's own headers on a function's answer.
fn stamp(headers: &mut http::HeaderMap, call: Call<'_>, times: &Times, answered: Instant, lease: &Lease, by_tenant: bool) {
    if let Ok(id) = HeaderValue::from_str(call.request_id) {
        headers.insert(names::REQUEST_ID, id);
    }
    headers.insert(names::START, HeaderValue::from_static(start_name(lease.start())));
    if by_tenant {
        headers.insert(names::FAULT, HeaderValue::from_static("tenant"));
    }
    let (route, run) = (Ms(times.routed - times.began), Ms(answered - times.forwarded));
    let mut timing = String::with_capacity(96);
    let _ = match lease.start() {
        Start::Warm => write!(timing, "route;dur={route}, run;dur={run}"),
        Start::Cold => {
            let cold = lease.timings();
            write!(
                timing,
                "route;dur={route}, claim;dur={:.3}, modules;dur={:.3}, load;dur={:.3}, run;dur={run}",
                cold.claim_ms, cold.modules_ms, cold.load_ms
            )
        }
    };
    if let Ok(value) = HeaderValue::try_from(timing) {
        headers.append(names::SERVER_TIMING, value);
    }
}

/// A duration in milliseconds, to the microsecond. In whole numbers, since text of a fraction costs three times as much.
struct Ms(Duration);

impl std::fmt::Display for Ms {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let micros = self.0.as_micros();
        write!(f, "{}.{:03}", micros / 1_000, micros % 1_000)
    }
}

const fn start_name(start: Start) -> &'static str {
    match start {
        Start::Warm => "warm",
        Start::Cold => "cold",
    }
}

/// The runtime says that the function failed: its words become the problem's detail.
async fn runtime_error(reason: Option<ErrorReason>, response: Response<AnswerBody>, exchange: Exchange) -> Failure {
    let body = Limited::new(response.into_body(), ERROR_BODY_BYTES_MAX).collect();
    let body: Option<Bytes> = match tokio::time::timeout(Duration::from_secs(1), body).await {
        Ok(Ok(collected)) => Some(collected.to_bytes()),
        _ => None,
    };
    let message = body
        .as_deref()
        .and_then(|b| serde_json::from_slice::<serde_json::Value>(b).ok())
        .and_then(|v| v.get("message").and_then(|m| m.as_str()).map(|m| m.chars().take(4_096).collect::<String>()))
        .unwrap_or_else(|| "the function gave no reason".into());
    exchange.finish(body.is_some());
    let kind = match reason {
        Some(ErrorReason::Load) => ProblemKind::FunctionLoadFailed,
        Some(ErrorReason::Failed) => ProblemKind::FunctionFailed,
        Some(ErrorReason::BadResponse) | None => ProblemKind::FunctionBadResponse,
        Some(ErrorReason::Exit) => ProblemKind::FunctionCrashed,
        Some(ErrorReason::Unknown) => ProblemKind::NoCapacity,
    };
    fail(kind, "runtime", message)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_are_cut_out_of_paths() {
        assert_eq!(function_key("/run/a/b/c"), Some("a/b/c"));
        assert_eq!(function_key("/run/a/b/c/"), Some("a/b/c"));
        assert_eq!(function_key("/run/a/b/c/d/e"), Some("a/b/c"));
        assert_eq!(function_key("/run/a/b"), None);
        assert_eq!(function_key("/run/a"), None);
        assert_eq!(function_key("/runs/a/b/c"), None);
        // Encoded or empty parts make keys that are no names: the lookup refuses them.
        assert_eq!(function_key("/run//b/c"), Some("/b/c"));
        assert!("/b/c".parse::<FunctionPath>().is_err());
        assert_eq!(function_key("/run/a/b/%2e%2e"), Some("a/b/%2e%2e"));
        assert!("a/b/%2e%2e".parse::<FunctionPath>().is_err());
    }

    proptest::proptest! {
        /// Whatever the path, the function that it names is the one at its beginning, byte for byte: nothing is decoded, joined or skipped.
        #[test]
        fn any_path_names_what_it_begins_with(path in "(/run)?(/?([a-z0-9-]{1,3}|%2[ef]|\\.\\.|[^a]|/|run|;)){0,9}") {
            if let Some(key) = function_key(&path)
                && let Ok(function) = key.parse::<FunctionPath>()
            {
                let rest = path.strip_prefix(&format!("/run/{function}"));
                proptest::prop_assert!(rest.is_some_and(|rest| rest.is_empty() || rest.starts_with('/')), "{}", path);
            }
        }
    }
}
