//! The one place that knows status, type, title, fault and retry policy of everything that the platform answers itself
//! (RFC 9457). Roles map their errors to a [`ProblemKind`] in one exhaustive `match` each.

use serde::{Deserialize, Serialize};

/// Who has to change something.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize, utoipa::ToSchema)]
#[serde(rename_all = "lowercase")]
pub enum Fault {
    /// Whoever sent the request.
    Client,
    /// Whoever wrote the function.
    Tenant,
    /// Whoever runs Hearth.
    Platform,
}

impl Fault {
    /// As it stands in JSON and in metric labels.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Client => "client",
            Self::Tenant => "tenant",
            Self::Platform => "platform",
        }
    }
}

macro_rules! kinds {
    ($($(#[$doc:meta])* $variant:ident = $slug:literal, $status:literal, $fault:ident, retry $retry:expr, $title:literal;)*) => {
        /// What went wrong, from the caller's point of view.
        #[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
        pub enum ProblemKind { $($(#[$doc])* $variant,)* }

        impl ProblemKind {
            /// Every kind, for tests and documentation.
            pub const ALL: &'static [Self] = &[$(Self::$variant,)*];
            /// The last part of the problem's `type`, also its `reason`.
            #[must_use]
            pub const fn slug(self) -> &'static str { match self { $(Self::$variant => $slug,)* } }
            /// The HTTP status.
            #[must_use]
            pub const fn status(self) -> u16 { match self { $(Self::$variant => $status,)* } }
            /// Who is at fault.
            #[must_use]
            pub const fn fault(self) -> Fault { match self { $(Self::$variant => Fault::$fault,)* } }
            /// Seconds for `retry-after`, where waiting helps.
            #[must_use]
            pub const fn retry_after_s(self) -> Option<u32> { match self { $(Self::$variant => $retry,)* } }
            /// A short text for people.
            #[must_use]
            pub const fn title(self) -> &'static str { match self { $(Self::$variant => $title,)* } }
        }
    };
}

kinds! {
    /// The request is malformed or breaks a rule.
    Invalid = "invalid-request", 400, Client, retry None, "The request is not valid";
    /// No token, or one that is not known or has expired.
    Unauthenticated = "unauthenticated", 401, Client, retry None, "A valid bearer token is required";
    /// The token does not carry the scope.
    Forbidden = "forbidden", 403, Client, retry None, "The token does not allow this";
    /// No such thing, or not yours to see.
    NotFound = "not-found", 404, Client, retry None, "Not found";
    /// The path exists, the method does not.
    MethodNotAllowed = "method-not-allowed", 405, Client, retry None, "Method not allowed";
    /// The client was too slow to send.
    RequestTimeout = "request-timeout", 408, Client, retry None, "The request was not received in time";
    /// Somebody else changed it meanwhile.
    Conflict = "conflict", 409, Client, retry None, "Conflict";
    /// `If-Match` does not hold.
    PreconditionFailed = "precondition-failed", 412, Client, retry None, "Precondition failed";
    /// The body is over its limit.
    BodyTooLarge = "body-too-large", 413, Client, retry None, "The body is too large";
    /// The request target is over its limit.
    TargetTooLong = "target-too-long", 414, Client, retry None, "The request target is too long";
    /// The body's type is not accepted.
    UnsupportedMediaType = "unsupported-media-type", 415, Client, retry None, "Unsupported media type";
    /// The headers are over their limit.
    HeadersTooLarge = "headers-too-large", 431, Client, retry None, "The headers are too large";
    /// The tenant is over its rate.
    RateLimited = "rate-limited", 429, Client, retry Some(1), "Too many requests";
    /// The tenant or container is over its concurrency.
    ConcurrencyLimited = "concurrency-limited", 429, Client, retry Some(1), "Too many requests at once";
    /// The tenant is over a count that it may keep.
    QuotaExceeded = "quota-exceeded", 403, Client, retry None, "Quota exceeded";
    /// The function's process ended while it answered.
    FunctionCrashed = "function-crashed", 502, Tenant, retry None, "The function's process ended";
    /// The function's process ran out of memory.
    FunctionOutOfMemory = "function-out-of-memory", 502, Tenant, retry None, "The function ran out of memory";
    /// The function's process ended by its own fault too often to be replaced at once.
    FunctionCrashLoop = "function-crash-loop", 503, Tenant, retry Some(5), "The function's process ends too often";
    /// The function's code did not load.
    FunctionLoadFailed = "function-load-failed", 502, Tenant, retry None, "The function did not load";
    /// The function threw or rejected.
    FunctionFailed = "function-failed", 502, Tenant, retry None, "The function failed";
    /// What the function answered is not an HTTP response.
    FunctionBadResponse = "function-bad-response", 502, Tenant, retry None, "The function's answer is not valid";
    /// The function has never had a version that can run.
    FunctionNotReady = "function-not-ready", 503, Tenant, retry Some(5), "The function is not ready";
    /// The function ran past its deadline.
    FunctionTimeout = "function-timeout", 504, Tenant, retry None, "The function ran past its deadline";
    /// No container, no room in the queue, or no live node.
    NoCapacity = "no-capacity", 503, Platform, retry Some(1), "No capacity";
    /// The node broke off after something may have reached the function; whether it ran is not known, so that it is not sent again.
    NodeLost = "node-lost", 502, Platform, retry None, "The node was lost before it answered";
    /// This process is leaving.
    Draining = "draining", 503, Platform, retry Some(1), "Draining";
    /// Something that is needed for this cannot be reached.
    DependencyUnavailable = "dependency-unavailable", 503, Platform, retry Some(2), "A service that is needed is unavailable";
    /// A defect of Hearth.
    Internal = "internal", 500, Platform, retry None, "Internal error";
}

/// An RFC 9457 problem document with Hearth's extension members.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
pub struct Problem {
    /// `urn:hearth:problem:{reason}`, stable.
    #[serde(rename = "type")]
    pub kind: String,
    /// A short text for people, the same for every occurrence.
    pub title: String,
    /// The HTTP status.
    pub status: u16,
    /// What happened here, and what to do.
    pub detail: String,
    /// The request's id.
    pub instance: String,
    /// Who has to change something.
    pub fault: Fault,
    /// Which part of Hearth answered: `proxy`, `manage`, `handler`, `runtime`, `router`.
    pub component: String,
    /// A stable word for programs.
    pub reason: String,
    /// The request's field that is wrong, where one is.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub field: Option<String>,
}

impl Problem {
    /// A problem document. `instance` is the request's id.
    #[must_use]
    pub fn new(kind: ProblemKind, component: &str, detail: impl Into<String>, instance: &str) -> Self {
        Self {
            kind: format!("urn:hearth:problem:{}", kind.slug()),
            title: kind.title().to_owned(),
            status: kind.status(),
            detail: detail.into(),
            instance: instance.to_owned(),
            fault: kind.fault(),
            component: component.to_owned(),
            reason: kind.slug().to_owned(),
            field: None,
        }
    }

    /// Names the request's field that is wrong.
    #[must_use]
    pub fn with_field(mut self, field: impl Into<String>) -> Self {
        self.field = Some(field.into());
        self
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::HashSet;

    #[test]
    fn slugs_are_unique_and_statuses_fit_faults() {
        let slugs: HashSet<_> = ProblemKind::ALL.iter().map(|k| k.slug()).collect();
        assert_eq!(slugs.len(), ProblemKind::ALL.len());
        for kind in ProblemKind::ALL {
            match kind.fault() {
                Fault::Client => assert!((400..500).contains(&kind.status()), "{kind:?}"),
                Fault::Tenant | Fault::Platform => assert!((500..600).contains(&kind.status()), "{kind:?}"),
            }
            if kind.status() == 503 || kind.status() == 429 {
                assert!(kind.retry_after_s().is_some(), "{kind:?}");
            }
        }
    }
}
