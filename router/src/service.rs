//! One request, from its head to its answer's head.

use crate::{
    Choice, Shared,
    body::{self, Fell, NodeBody, ResponseBody, SharedUpload, Upload},
    fleet::{self, InFlight, Node, View, Why},
    forward::{self, Connections, Exchange, SendError},
    retry::{self, Broke},
};
use hearth_edge::{
    headers,
    ids::RequestIds,
    patience::Terms,
    respond,
    serve::{self, ClientBody, Peer},
    upgrade,
};
use hearth_model::{ProblemKind, header as names, limits};
use http::{HeaderValue, Method, Request, Response, StatusCode, Version, header, request::Parts};
use hyper::upgrade::OnUpgrade;
use std::{
    io,
    rc::Rc,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering::Relaxed},
    },
    time::Instant,
};

/// One worker's own state.
pub(crate) struct Worker {
    pub shared: Arc<Shared>,
    pub connections: Connections,
    pub ids: RequestIds,
}

/// A request that ends in a problem of the router's making.
struct Failure {
    kind: ProblemKind,
    detail: String,
    /// Whether the connection must not be used again, since its framing is in doubt or the rest of a body is unread.
    close: bool,
}

fn fail(kind: ProblemKind, detail: impl Into<String>) -> Failure {
    Failure { kind, detail: detail.into(), close: false }
}

impl Failure {
    fn closing(mut self) -> Self {
        self.close = true;
        self
    }
}

/// A place among the requests in flight.
pub(crate) struct Admitted(Arc<Shared>);

impl Admitted {
    fn new(shared: &Arc<Shared>) -> Option<Self> {
        let count: &AtomicUsize = &shared.in_flight;
        let admitted = Self(Arc::clone(shared));
        // Counted first, so that the bound holds; what is refused counts itself out when it is dropped.
        (count.fetch_add(1, Relaxed) < shared.config.limits.in_flight_max).then_some(admitted)
    }
}

impl Drop for Admitted {
    fn drop(&mut self) {
        self.0.in_flight.fetch_sub(1, Relaxed);
    }
}

impl serve::Service for Worker {
    type Body = ResponseBody;

    async fn answer(self: Rc<Self>, peer: Rc<Peer>, request: Request<ClientBody>) -> Response<ResponseBody> {
        let began = Instant::now();
        let shared = Arc::clone(&self.shared);
        let is_http1 = request.version() < Version::HTTP_2;
        let request_id = self.ids.next();
        match self.pass(&peer, request, &request_id).await {
            Ok(response) => {
                shared.metrics.passed(began.elapsed());
                response
            }
            Err(failure) => {
                shared.metrics.failed(failure.kind.fault());
                let response = respond::problem(failure.kind, "router", failure.detail, &request_id);
                let mut response = response.map(|body| ResponseBody::Own(Some(body)));
                if failure.close && is_http1 {
                    response.headers_mut().insert(header::CONNECTION, HeaderValue::from_static("close"));
                }
                response
            }
        }
    }

    fn sweep(&self) {
        self.connections.sweep();
    }
}

/// What stays the same however often a request is sent.
struct Call {
    parts: Parts,
    upload: SharedUpload,
    client_side: Option<OnUpgrade>,
    upgrade_to: Option<HeaderValue>,
    repeatable: bool,
    admitted: Admitted,
}

/// What became of one attempt.
enum Tried {
    Answer(forward::Sent),
    /// The node answered that nothing reached a function; its answer, in case there is nobody else to ask.
    Unsent(forward::Sent),
    Broke(Broke),
}

impl Worker {
    async fn pass(
        self: Rc<Self>,
        peer: &Peer,
        mut request: Request<ClientBody>,
        id: &str,
    ) -> Result<Response<ResponseBody>, Failure> {
        let shared = Arc::clone(&self.shared);
        check(&request, shared.config.request_body_max.as_u64())?;
        let view = shared.fleet.view();
        let (choice, is_manage) = self.route(&view, request.uri().path())?;
        let Some(admitted) = Admitted::new(&shared) else {
            shared.metrics.shed.inc();
            let detail = format!("this router has {} requests in flight and takes no more", shared.config.limits.in_flight_max);
            return Err(fail(ProblemKind::NoCapacity, detail).closing());
        };
        shared.budget.earn();
        let upgrades = headers::wants_upgrade(request.headers()) && serve::may_upgrade(&request);
        let upgrade_to = upgrades.then(|| request.headers()[header::UPGRADE].clone());
        let client_side = upgrades.then(|| hyper::upgrade::on(&mut request));
        let (mut parts, incoming) = request.into_parts();
        // A management call that was written twice would make two versions, whatever its method promises.
        let repeatable = retry::is_idempotent(&parts.method) && (!is_manage || parts.method.is_safe());
        self.rewrite(&mut parts, peer, id, choice.spread(), upgrade_to.as_ref());
        let terms = Terms { wait_max: shared.config.stall_timeout, rate_min_bytes_per_s: shared.config.rate_min_bytes_per_s };
        let replay_max = usize::try_from(shared.config.limits.replay_max.as_u64()).unwrap_or(usize::MAX);
        let upload = Upload::new(incoming, shared.config.request_body_max.as_u64(), replay_max, terms);
        let call = Call { parts, upload, client_side, upgrade_to, repeatable, admitted };
        let view = arc_swap::Guard::into_inner(view);
        body::read_first(&call.upload).await;
        if let Some(fell) = call.upload.borrow().fell() {
            return Err(fallen(fell, shared.config.request_body_max.as_u64()));
        }
        self.send(&view, &choice, call).await
    }

    /// Which nodes may serve a path. The list of what is served is closed: functions and the management API.
    fn route(&self, view: &View, path: &str) -> Result<(Choice, bool), Failure> {
        if path == "/v1" || path.starts_with("/v1/") {
            let mut choice = Choice::default();
            let nodes = if view.active.is_empty() { (0..view.nodes.len() as u16).collect() } else { view.active.clone() };
            let first = rand::random::<u32>() as usize;
            for step in 0..nodes.len().min(crate::CANDIDATES_MAX) {
                choice.push(nodes[(first + step) % nodes.len()], true);
            }
            return Ok((choice, true));
        }
        let Some(rest) = path.strip_prefix("/run/") else {
            let detail = "functions are below /run/{tenant}/{container}/{function}, the management API below /v1";
            return Err(fail(ProblemKind::NotFound, detail));
        };
        let mut names = rest.splitn(4, '/');
        match (names.next(), names.next(), names.next()) {
            (Some(tenant), Some(container), Some(function)) if is_name(tenant) && is_name(container) && is_name(function) => {
                Ok((view.table.candidates(tenant, container, rand::random()), false))
            }
            _ => Err(fail(ProblemKind::NotFound, "there is no such function")),
        }
    }

    fn rewrite(&self, parts: &mut Parts, peer: &Peer, id: &str, spread: usize, upgrade_to: Option<&HeaderValue>) {
        let config = &self.shared.config;
        if parts.version == Version::HTTP_2 || parts.uri.authority().is_some() {
            headers::from_http2(&mut parts.headers, &parts.uri);
        }
        if let Some(target) = parts.uri.path_and_query().filter(|_| parts.uri.authority().is_some()) {
            parts.uri = http::Uri::from(target.clone());
        }
        parts.version = Version::HTTP_11;
        parts.extensions.clear();
        let client = headers::client_ip(&parts.headers, peer.addr.ip(), config.trust_forwarded_for);
        headers::strip(&mut parts.headers);
        let client = HeaderValue::try_from(client.to_string()).unwrap_or(HeaderValue::from_static("unknown"));
        let proto = if peer.tls { "https" } else { "http" };
        headers::add_forwarded(&mut parts.headers, &client, proto, config.trust_forwarded_for);
        self.ids.ensure_traceparent(&mut parts.headers);
        if let Ok(id) = HeaderValue::from_str(id) {
            parts.headers.insert(names::REQUEST_ID, id);
        }
        if spread > 1 {
            parts.headers.insert(names::SPREAD, HeaderValue::from(spread));
        }
        if let Some(protocol) = upgrade_to {
            parts.headers.insert(header::CONNECTION, HeaderValue::from_static("upgrade"));
            parts.headers.insert(header::UPGRADE, protocol.clone());
        }
    }

    async fn send(self: Rc<Self>, view: &View, choice: &Choice, call: Call) -> Result<Response<ResponseBody>, Failure> {
        let order = fleet::order(view, choice, rand::random());
        let tries = &order.as_slice()[..order.as_slice().len().min(self.shared.config.limits.tries_max)];
        let mut last = None;
        for (n, index) in tries.iter().enumerate() {
            let node = &view.nodes[usize::from(*index)];
            let in_flight = InFlight::new(node);
            let tried = self.attempt(node, &call).await;
            if let Some(fell) = call.upload.borrow().fell()
                && !matches!(tried, Tried::Answer(..))
            {
                return Err(fallen(fell, self.shared.config.request_body_max.as_u64()));
            }
            let broke = match &tried {
                Tried::Answer(..) => None,
                Tried::Unsent(..) => Some(Broke::Unsent),
                Tried::Broke(broke) => Some(*broke),
            };
            if let Some(broke) = broke
                && n + 1 < tries.len()
                && retry::may_repeat(broke, call.repeatable, call.upload.borrow().is_replayable())
            {
                if self.shared.budget.take(broke) {
                    self.shared.metrics.retries.inc();
                    last = Some(broke);
                    continue;
                }
                self.shared.metrics.budget_spent.inc();
            }
            return match tried {
                Tried::Answer(sent) | Tried::Unsent(sent) => self.finish(call, in_flight, sent),
                Tried::Broke(broke) => Err(no_answer(broke)),
            };
        }
        Err(last.map_or_else(|| fail(ProblemKind::NoCapacity, "no node is known to this router"), no_answer))
    }

    async fn attempt(self: &Rc<Self>, node: &Arc<Node>, call: &Call) -> Tried {
        let sending = forward::send(self, node, &call.parts, &call.upload, call.upgrade_to.is_some());
        let sent = tokio::time::timeout(self.shared.config.answer_timeout, sending).await;
        match sent {
            Ok(Ok(sent)) => {
                node.heard();
                match sent.0.headers().contains_key(names::UNSENT) {
                    true => Tried::Unsent(sent),
                    false => Tried::Answer(sent),
                }
            }
            Ok(Err(SendError::Connect(error))) => {
                if is_our_own(&error) {
                    tracing::error!(%error, "this router cannot open connections");
                    return Tried::Broke(Broke::NotSent);
                }
                // Whether refused, reset or unanswered: nothing was sent, and the next request need not find out again. A node to
                // which no connection can be made in time is silent, and what waits for it waits in vain.
                let why = if error.kind() == io::ErrorKind::TimedOut { Why::Silent } else { Why::Refused };
                if node.eject(why) {
                    self.shared.metrics.ejected(why);
                    tracing::warn!(node = node.name, %error, "a node is out: no connection to it");
                }
                Tried::Broke(Broke::NotSent)
            }
            Ok(Err(SendError::NotSent(error))) => {
                tracing::debug!(node = node.name, %error, "a connection to a node closed at once");
                Tried::Broke(Broke::NotSent)
            }
            Ok(Err(SendError::Broken(error))) => {
                tracing::debug!(node = node.name, %error, "a request broke off");
                Tried::Broke(Broke::Lost)
            }
            Err(_elapsed) => Tried::Broke(Broke::Lost),
        }
    }

    fn finish(
        self: Rc<Self>,
        call: Call,
        node: InFlight,
        (mut response, sender): forward::Sent,
    ) -> Result<Response<ResponseBody>, Failure> {
        let switched = response.status() == StatusCode::SWITCHING_PROTOCOLS;
        let node_side = (switched && call.client_side.is_some()).then(|| hyper::upgrade::on(&mut response));
        let gone = node.0.gone();
        let exchange = Exchange { worker: Rc::clone(&self), sender, node, upload: call.upload, _admitted: call.admitted };
        if response.status().is_informational() && node_side.is_none() {
            return Err(fail(ProblemKind::Internal, "the node switched protocols though the client did not ask for it").closing());
        }
        let (mut parts, incoming) = response.into_parts();
        let protocol = parts.headers.get(header::UPGRADE).cloned();
        headers::strip_hop(&mut parts.headers);
        parts.headers.remove(names::UNSENT);
        parts.extensions.clear();
        if let (Some(node_side), Some(client_side)) = (node_side, call.client_side) {
            parts.headers.insert(header::CONNECTION, HeaderValue::from_static("upgrade"));
            if let Some(protocol) = protocol {
                parts.headers.insert(header::UPGRADE, protocol);
            }
            let (idle_timeout, draining) = (self.shared.config.upgrade_idle_timeout, self.shared.draining.clone());
            upgrade::join(client_side, node_side, idle_timeout, draining, gone, move || exchange.finish(false));
            return Ok(Response::from_parts(parts, ResponseBody::Own(None)));
        }
        if call.upgrade_to.is_some() {
            // What the client has already sent after its request may not be HTTP: none of it is read as a request.
            parts.headers.insert(header::CONNECTION, HeaderValue::from_static("close"));
        }
        Ok(Response::from_parts(parts, ResponseBody::Node(Box::new(NodeBody::new(incoming, exchange)))))
    }
}

/// Whether a connection failed for want of something on this machine, which says nothing about the node.
fn is_our_own(error: &io::Error) -> bool {
    use rustix::io::Errno;
    let ours = [Errno::MFILE, Errno::NFILE, Errno::NOMEM, Errno::NOBUFS, Errno::ADDRNOTAVAIL];
    error.raw_os_error().is_some_and(|code| ours.iter().any(|e| e.raw_os_error() == code))
}

/// The one mapping from attempts that came to nothing to answers.
fn no_answer(broke: Broke) -> Failure {
    match broke {
        Broke::NotSent | Broke::Unsent => fail(ProblemKind::NoCapacity, "no node could take the request; nothing of it was sent"),
        Broke::Lost => fail(ProblemKind::NodeLost, "the node broke off before it answered; whether the function ran is not known"),
    }
}

fn fallen(fell: Fell, body_max: u64) -> Failure {
    match fell {
        Fell::TooLarge => body_too_large(body_max),
        Fell::TooSlow => fail(ProblemKind::RequestTimeout, "the request's body came too slowly").closing(),
        Fell::Broken => fail(ProblemKind::Invalid, "the request's body broke off").closing(),
    }
}

fn body_too_large(limit: u64) -> Failure {
    fail(ProblemKind::BodyTooLarge, format!("a request's body may have {limit} bytes")).closing()
}

/// As [`hearth_model`]'s names, without making one: what is no name is nobody's, and is not looked up.
fn is_name(text: &str) -> bool {
    let bytes = text.as_bytes();
    matches!(bytes.len(), 1..=63) && bytes[0] != b'-' && bytes.iter().all(|b| matches!(b, b'a'..=b'z' | b'0'..=b'9' | b'-'))
}

fn check(request: &Request<ClientBody>, body_max: u64) -> Result<(), Failure> {
    if *request.method() == Method::CONNECT {
        return Err(fail(ProblemKind::MethodNotAllowed, "CONNECT is not forwarded").closing());
    }
    let target_bytes = request.uri().path_and_query().map_or(0, |t| t.as_str().len());
    if target_bytes > limits::REQUEST_TARGET_BYTES_MAX {
        let detail = format!("the request target has {target_bytes} bytes, {} are allowed", limits::REQUEST_TARGET_BYTES_MAX);
        return Err(fail(ProblemKind::TargetTooLong, detail).closing());
    }
    headers::check_size(request.headers()).map_err(|over| fail(ProblemKind::HeadersTooLarge, over.to_string()).closing())?;
    if headers::ambiguous_framing(request.headers(), request.version()) {
        return Err(fail(
            ProblemKind::Invalid,
            "a request's body is framed by one content-length or by `transfer-encoding: chunked`",
        )
        .closing());
    }
    if !headers::host_is_clear(request.headers(), request.uri(), request.version()) {
        return Err(fail(ProblemKind::Invalid, "a request names its host exactly once").closing());
    }
    match http_body::Body::size_hint(request.body()).exact() {
        Some(bytes) if bytes > body_max => Err(body_too_large(body_max)),
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use hearth_model::ContainerPath;

    #[test]
    fn a_router_without_descriptors_blames_no_node() {
        let of = |errno: rustix::io::Errno| io::Error::from_raw_os_error(errno.raw_os_error());
        assert!(is_our_own(&of(rustix::io::Errno::MFILE)));
        assert!(!is_our_own(&of(rustix::io::Errno::CONNREFUSED)) && !is_our_own(&io::ErrorKind::TimedOut.into()));
    }

    #[test]
    fn names_are_those_of_the_model() {
        for text in ["a", "a-b", "0", "", "-a", "A", "a_b", "a%2fb", "..", &"a".repeat(63), &"a".repeat(64)] {
            assert_eq!(is_name(text), format!("{text}/x").parse::<ContainerPath>().is_ok(), "{text}");
        }
    }
}
