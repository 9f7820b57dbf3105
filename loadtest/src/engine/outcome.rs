//! What one request came to, and who is at fault for it. Taken from what any client sees: the status, the problem document, and the
//! platform's headers.

use crate::{
    kinds::ID_HEADER,
    net::{Answer, Failed, Failure},
    population::Call,
};
use http::{HeaderMap, HeaderName};
use std::{
    collections::HashMap,
    sync::{Mutex, PoisonError},
};

/// Distinct reasons and nodes that are told apart; what comes after them is called "other".
const NAMES_MAX: usize = 200;

/// What a request came to.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Outcome {
    /// Answered.
    Ok,
    /// No connection.
    Dial,
    /// Connection lost before the answer.
    Reset,
    /// Answer broke off.
    Truncated,
    /// No answer in time.
    Timeout,
    /// Not HTTP.
    Protocol,
    /// Answered with an error that is the client's fault.
    Client,
    /// Answered with an error that is the function's fault.
    Tenant,
    /// Answered with an error that is the platform's fault.
    Platform,
    /// Answered by the function of somebody else.
    Crossed,
    /// Not sent, or failed, for lack of something on this machine.
    Generator,
}

/// Who is at fault.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Fault {
    /// Nobody.
    None,
    /// The way to the platform, or the platform without a word.
    Transport,
    /// Whoever sent it.
    Client,
    /// Whoever wrote the function.
    Tenant,
    /// Whoever runs the platform.
    Platform,
    /// This program, or its machine.
    Generator,
}

impl Outcome {
    /// All, in the order of reports.
    pub const ALL: [Self; 11] = [
        Self::Ok,
        Self::Dial,
        Self::Reset,
        Self::Truncated,
        Self::Timeout,
        Self::Protocol,
        Self::Client,
        Self::Tenant,
        Self::Platform,
        Self::Crossed,
        Self::Generator,
    ];

    /// As it stands in results.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Ok => "ok",
            Self::Dial => "dial",
            Self::Reset => "reset",
            Self::Truncated => "truncated",
            Self::Timeout => "timeout",
            Self::Protocol => "protocol",
            Self::Client => "client",
            Self::Tenant => "tenant",
            Self::Platform => "platform",
            Self::Crossed => "crossed",
            Self::Generator => "generator",
        }
    }

    /// Who is at fault.
    #[must_use]
    pub const fn fault(self) -> Fault {
        match self {
            Self::Ok => Fault::None,
            Self::Dial | Self::Reset | Self::Truncated | Self::Timeout | Self::Protocol => Fault::Transport,
            Self::Client => Fault::Client,
            Self::Tenant => Fault::Tenant,
            Self::Platform | Self::Crossed => Fault::Platform,
            Self::Generator => Fault::Generator,
        }
    }

    /// Whether the request is lost, whatever the form: no connection, reset, time-out, or an error that is the platform's.
    #[must_use]
    pub const fn lost(self) -> bool {
        matches!(self.fault(), Fault::Transport | Fault::Platform)
    }
}

impl Fault {
    /// Those that count as errors, in the order of reports.
    pub const ERRORS: [Self; 4] = [Self::Transport, Self::Client, Self::Tenant, Self::Platform];

    /// As it stands in results.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::None => "none",
            Self::Transport => "transport",
            Self::Client => "client",
            Self::Tenant => "tenant",
            Self::Platform => "platform",
            Self::Generator => "generator",
        }
    }
}

/// What `hearth-start` says.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Start {
    /// Nothing.
    Unknown,
    /// `warm`.
    Warm,
    /// `cold`.
    Cold,
}

/// The platform's phases in `server-timing`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Phase {
    /// Choosing a node.
    Route,
    /// Taking a container.
    Claim,
    /// Attaching modules.
    Modules,
    /// Loading the code.
    Load,
    /// The function itself.
    Run,
}

impl Phase {
    /// All, in the order in which they happen.
    pub const ALL: [Self; 5] = [Self::Route, Self::Claim, Self::Modules, Self::Load, Self::Run];

    /// As in the header.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Route => "route",
            Self::Claim => "claim",
            Self::Modules => "modules",
            Self::Load => "load",
            Self::Run => "run",
        }
    }
}

/// One request, for the books.
#[derive(Debug, Clone, Copy)]
pub struct Record {
    /// When it was to be sent, from the start of the load.
    pub at_ns: u64,
    /// From that moment to the end of its answer, or to its failure.
    pub latency_ns: u64,
    /// The same from when it was really sent.
    pub service_ns: u64,
    /// From the intended moment to the answer's head; 0 without an answer.
    pub head_ns: u64,
    /// Which function.
    pub function: u32,
    /// Which stream.
    pub stream: u16,
    /// Which of its steps.
    pub step: u16,
    /// The status, or 0.
    pub status: u16,
    /// Numbered by the [`Interner`]; 0 is none.
    pub reason: u16,
    /// Numbered by the [`Interner`]; 0 is none.
    pub node: u16,
    /// What it came to.
    pub outcome: Outcome,
    /// Cold or warm.
    pub start: Start,
    /// Turned away with the request to come back.
    pub shed: bool,
    /// Whether it was sent at all.
    pub sent: bool,
    /// Bytes of the answer's body.
    pub bytes: u64,
    /// Milliseconds by [`Phase`]; negative where the header does not say.
    pub phases: [f32; 5],
}

/// Gives numbers to names of reasons and of nodes.
#[derive(Debug, Default)]
pub struct Interner {
    names: Mutex<(HashMap<String, u16>, Vec<String>)>,
}

impl Interner {
    /// The number of a name, from 1; those beyond the bound share the last one.
    pub fn number(&self, name: &str) -> u16 {
        let mut guard = self.names.lock().unwrap_or_else(PoisonError::into_inner);
        let (numbers, names) = &mut *guard;
        if let Some(number) = numbers.get(name) {
            return *number;
        }
        if names.len() >= NAMES_MAX {
            return names.len() as u16;
        }
        let mut name: String = name.chars().take(120).collect();
        if names.len() + 1 == NAMES_MAX {
            "other".clone_into(&mut name);
        }
        names.push(name.clone());
        numbers.insert(name, names.len() as u16);
        names.len() as u16
    }

    /// The name with this number.
    #[must_use]
    pub fn name(&self, number: u16) -> Option<String> {
        let guard = self.names.lock().unwrap_or_else(PoisonError::into_inner);
        guard.1.get(usize::from(number).checked_sub(1)?).cloned()
    }
}

/// How many bytes of an answer are kept: enough for a problem document. `is_problem` decides by its head alone.
pub(super) const KEEP_BYTES: usize = 4_096;

impl Record {
    /// Fills in what an answer says.
    pub(super) fn answered(&mut self, answer: &Answer, call: &Call, node_header: &HeaderName, interner: &Interner) {
        let headers = &answer.headers;
        self.status = answer.status.as_u16();
        self.bytes = answer.bytes;
        self.start = match headers.get("hearth-start").map(|v| v.as_bytes()) {
            Some(b"warm") => Start::Warm,
            Some(b"cold") => Start::Cold,
            _ => Start::Unknown,
        };
        if let Some(node) = text(headers, node_header.as_str()) {
            self.node = interner.number(node);
        }
        if let Some(timing) = text(headers, "server-timing") {
            self.phases = server_timing(timing);
        }
        if answer.status.as_u16() < 400 {
            let said = headers.get(ID_HEADER).map(|v| v.as_bytes());
            let crossed = matches!((&call.id, said), (Some(id), Some(said)) if !said.is_empty() && id.as_bytes() != said);
            self.outcome = if crossed { Outcome::Crossed } else { Outcome::Ok };
            if crossed {
                self.reason = interner.number("answered by another function");
            }
            return;
        }
        self.shed = matches!(self.status, 429 | 503) && headers.contains_key("retry-after");
        let (outcome, reason) = blame(answer);
        self.outcome = outcome;
        self.reason = interner.number(&reason);
    }

    /// Fills in why there is no answer.
    pub(super) fn failed(&mut self, failed: &Failed, interner: &Interner) {
        self.outcome = match failed.failure {
            Failure::Dial => Outcome::Dial,
            Failure::Reset => Outcome::Reset,
            Failure::Truncated => Outcome::Truncated,
            Failure::Timeout => Outcome::Timeout,
            Failure::Protocol => Outcome::Protocol,
            Failure::Generator => Outcome::Generator,
        };
        self.reason = interner.number(&failed.detail);
    }
}

fn text<'a>(headers: &'a HeaderMap, name: &str) -> Option<&'a str> {
    headers.get(name).and_then(|v| v.to_str().ok())
}

/// Who is at fault for an answer with an error status, and why. The platform's own answers are problem documents that say so; a function's own
/// errors carry `hearth-fault`, or pass through the platform as they are; another server's are its own.
fn blame(answer: &Answer) -> (Outcome, String) {
    let status = answer.status.as_u16();
    let headers = &answer.headers;
    if text(headers, "hearth-fault") == Some("tenant") {
        return (Outcome::Tenant, format!("{status} of the function"));
    }
    if text(headers, "content-type").is_some_and(|t| t.starts_with("application/problem+json"))
        && let Ok(problem) = serde_json::from_slice::<serde_json::Value>(&answer.kept)
    {
        let said = problem.get("fault").and_then(|f| f.as_str());
        let outcome = match said {
            Some("client") => Some(Outcome::Client),
            Some("tenant") => Some(Outcome::Tenant),
            Some("platform") => Some(Outcome::Platform),
            _ => None,
        };
        if let Some(outcome) = outcome {
            let reason = problem.get("reason").and_then(|r| r.as_str()).unwrap_or("");
            return (outcome, format!("{status} {reason}"));
        }
    }
    if status < 500 {
        (Outcome::Client, format!("{status}"))
    } else if headers.contains_key("hearth-request-id") {
        (Outcome::Tenant, format!("{status} of the function"))
    } else {
        (Outcome::Platform, format!("{status}"))
    }
}

/// Milliseconds of the phases that are known, in `claim;dur=1.2, load;desc="x";dur=3`.
pub(super) fn server_timing(text: &str) -> [f32; 5] {
    let mut phases = [-1.0; 5];
    for entry in text.split(',') {
        let mut parts = entry.split(';').map(str::trim);
        let name = parts.next().unwrap_or("");
        let Some(index) = Phase::ALL.iter().position(|p| p.name() == name) else { continue };
        let duration = parts.find_map(|p| p.strip_prefix("dur=")?.parse::<f32>().ok());
        if let Some(ms) = duration.filter(|ms| ms.is_finite() && *ms >= 0.0) {
            phases[index] = ms;
        }
    }
    phases
}

#[cfg(test)]
mod tests {
    use super::*;
    use http::StatusCode;

    fn answer(status: u16, headers: &[(&'static str, &'static str)], body: &'static str) -> Answer {
        let headers = headers.iter().map(|(n, v)| (n.parse().unwrap(), v.parse().unwrap())).collect();
        let kept = bytes::Bytes::from_static(body.as_bytes());
        let status = StatusCode::from_u16(status).unwrap();
        Answer { status, headers, head_at: std::time::Instant::now(), bytes: kept.len() as u64, kept }
    }

    #[test]
    fn blame_goes_to_whom_the_answer_names() {
        const PROBLEM: (&str, &str) = ("content-type", "application/problem+json");
        for (status, headers, body, outcome, reason) in [
            (503, vec![PROBLEM], r#"{"fault":"platform","reason":"no-capacity"}"#, Outcome::Platform, "503 no-capacity"),
            (503, vec![PROBLEM], r#"{"fault":"tenant","reason":"function-not-ready"}"#, Outcome::Tenant, "503 function-not-ready"),
            (429, vec![PROBLEM], r#"{"fault":"client","reason":"rate-limited"}"#, Outcome::Client, "429 rate-limited"),
            (500, vec![("hearth-fault", "tenant"), ("hearth-request-id", "x")], "{}", Outcome::Tenant, "500 of the function"),
            (500, vec![("hearth-request-id", "x")], "oops", Outcome::Tenant, "500 of the function"),
            (502, vec![], "bad gateway", Outcome::Platform, "502"),
            (404, vec![], "", Outcome::Client, "404"),
            (500, vec![PROBLEM], "not json", Outcome::Platform, "500"),
        ] {
            assert_eq!(blame(&answer(status, &headers, body)), (outcome, reason.to_owned()), "{status} {headers:?}");
        }
    }

    #[test]
    fn server_timing_is_read_in_every_written_form() {
        assert_eq!(
            server_timing("route;dur=0.1, claim;dur=2,modules;desc=\"x\";dur=3.5,load, run;dur=-1"),
            [0.1, 2.0, 3.5, -1.0, -1.0]
        );
        assert_eq!(server_timing(""), [-1.0; 5]);
        assert_eq!(server_timing("db;dur=9, run;dur=NaN"), [-1.0; 5]);
    }

    #[test]
    fn names_are_bounded() {
        let interner = Interner::default();
        assert_eq!((interner.number("a"), interner.number("b"), interner.number("a")), (1, 2, 1));
        let last = (0..1_000).map(|i| interner.number(&format!("n{i}"))).max().unwrap();
        assert_eq!(usize::from(last), NAMES_MAX);
        assert_eq!(interner.name(last).unwrap(), "other");
        assert_eq!(interner.name(0), None);
    }

    #[test]
    fn lost_is_what_nobody_but_the_platform_and_its_wires_could_prevent() {
        let lost: Vec<&str> = Outcome::ALL.iter().filter(|o| o.lost()).map(|o| o.name()).collect();
        assert_eq!(lost, ["dial", "reset", "truncated", "timeout", "protocol", "platform", "crossed"]);
    }
}
