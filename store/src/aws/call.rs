//! The one layer that retries calls to AWS services (the SDK's own retries are off). Every call has a deadline; each attempt in it has its
//! own, and attempts are apart by exponential back-off with full jitter. What a service refuses for good is not tried again. Counts of
//! calls, repeats and throttling are kept, so that they can be seen from outside.

use aws_sdk_dynamodb::{
    config::http::HttpResponse,
    error::{DisplayErrorContext, ProvideErrorMetadata, SdkError},
};
use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};
use tokio::time::Instant;

/// First pause between two attempts; doubles each time.
const PAUSE_FIRST: Duration = Duration::from_millis(25);
/// Longest pause between two attempts.
const PAUSE_MAX: Duration = Duration::from_secs(1);

/// What has been asked of one call of one service.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct CallCounts {
    /// Requests sent, repeats included.
    pub sent: u64,
    /// Of those, repeats after a failure that may pass.
    pub repeated: u64,
    /// Of those sent, answered with "slow down".
    pub throttled: u64,
    /// Of those sent, failed in any way; a condition that does not hold is no failure.
    pub failed: u64,
}

/// Counts per service and call since the start. Calls are a fixed set of names, so that this cannot grow.
#[derive(Debug, Default)]
pub struct CallStats {
    counts: Mutex<BTreeMap<(&'static str, &'static str), CallCounts>>,
}

impl CallStats {
    /// All counts, by service and call.
    #[must_use]
    pub fn snapshot(&self) -> Vec<(&'static str, &'static str, CallCounts)> {
        let counts = self.counts.lock().unwrap_or_else(PoisonError::into_inner);
        counts.iter().map(|((service, call), counts)| (*service, *call, *counts)).collect()
    }

    /// Requests sent to all services together.
    #[must_use]
    pub fn sent(&self) -> u64 {
        self.snapshot().iter().map(|(_, _, counts)| counts.sent).sum()
    }

    fn add(&self, service: &'static str, call: &'static str, change: impl FnOnce(&mut CallCounts)) {
        change(self.counts.lock().unwrap_or_else(PoisonError::into_inner).entry((service, call)).or_default());
    }
}

/// Deadlines of a call.
#[derive(Debug, Clone, Copy)]
pub(super) struct Deadlines {
    /// Of the whole, repeats included.
    pub total: Duration,
    /// Of one attempt.
    pub attempt: Duration,
}

/// Why a call did not succeed.
#[derive(Debug)]
#[allow(clippy::large_enum_variant, reason = "it lives for one call and is never kept")]
pub(super) enum CallError<E> {
    /// The deadline of the attempt passed without an answer.
    Timeout(Duration),
    /// The SDK's words.
    Sdk(SdkError<E, HttpResponse>),
}

/// What a failure means for the next step.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Class {
    /// The service asks for patience.
    Throttled,
    /// It may or may not have happened; asking again may help.
    Unclear,
    /// The service has refused.
    Refused,
}

const THROTTLED: [&str; 9] = [
    "ThrottlingException",
    "Throttling",
    "ProvisionedThroughputExceededException",
    "RequestLimitExceeded",
    "RequestThrottled",
    "SlowDown",
    "TooManyRequestsException",
    "LimitExceededException",
    "ReplicatedWriteConflictException",
];
/// Codes of client errors that pass by themselves.
const PASSING: [&str; 6] = [
    "TransactionInProgressException",
    "TransactionConflictException",
    "ConditionalRequestConflict",
    "OperationAborted",
    "RequestTimeout",
    "InternalServerError",
];

impl<E: ProvideErrorMetadata> CallError<E> {
    /// The service's code of the error, where it sent one.
    pub fn code(&self) -> Option<&str> {
        match self {
            Self::Sdk(error) => error.code(),
            Self::Timeout(_) => None,
        }
    }

    /// HTTP status of the service's answer, where there was one.
    pub fn status(&self) -> Option<u16> {
        match self {
            Self::Sdk(error) => error.raw_response().map(|r| r.status().as_u16()),
            Self::Timeout(_) => None,
        }
    }

    pub fn class(&self) -> Class {
        let Self::Sdk(error) = self else { return Class::Unclear };
        match error {
            SdkError::ConstructionFailure(_) => Class::Refused,
            // No region or no credentials will not get better by waiting.
            SdkError::DispatchFailure(failure) if failure.is_user() => Class::Refused,
            SdkError::DispatchFailure(_) | SdkError::TimeoutError(_) => Class::Unclear,
            _ => match (error.code(), self.status()) {
                (Some(code), _) if THROTTLED.contains(&code) => Class::Throttled,
                (Some(code), _) if PASSING.contains(&code) => Class::Unclear,
                (_, Some(429 | 503)) => Class::Throttled,
                (_, Some(status)) if status >= 500 => Class::Unclear,
                // An answer that could not be read to its end. An answer to HEAD has no body and no code, and is clear.
                (None, _) if matches!(error, SdkError::ResponseError(_)) || has_body(error) => Class::Unclear,
                _ => Class::Refused,
            },
        }
    }
}

fn has_body<E>(error: &SdkError<E, HttpResponse>) -> bool {
    error.raw_response().and_then(|r| r.body().bytes()).is_some_and(|body| !body.is_empty())
}

impl<E: ProvideErrorMetadata + std::error::Error + 'static> CallError<E> {
    /// What went wrong and what to do about it, in words.
    pub fn explain(&self, service: &str, call: &str, resource: &str) -> String {
        let words = match self {
            Self::Timeout(limit) => {
                return format!("no answer within {} ms; is the endpoint right and reachable?", limit.as_millis());
            }
            Self::Sdk(error) => match (error.code(), error.message()) {
                (Some(code), Some(message)) => format!("{code}: {message}"),
                (Some(code), None) => code.to_owned(),
                _ => DisplayErrorContext(error).to_string().chars().take(400).collect(),
            },
        };
        match remedy(self.code(), self.status(), service, call, resource) {
            Some(remedy) => format!("{words}; {remedy}"),
            None => words,
        }
    }
}

fn remedy(code: Option<&str>, status: Option<u16>, service: &str, call: &str, resource: &str) -> Option<String> {
    let text = match (code, status) {
        (
            Some(
                "ResourceNotFoundException"
                | "NoSuchBucket"
                | "NotFound"
                | "QueueDoesNotExist"
                | "AWS.SimpleQueueService.NonExistentQueue"
                | "NotFoundException",
            ),
            _,
        )
        | (None, Some(404)) => format!(
            "{resource} does not exist in this region and account: create it (Terraform, or `hearth admin init-aws` for development), or correct its name, region or endpoint_url in the configuration"
        ),
        (Some("PermanentRedirect" | "AuthorizationHeaderMalformed" | "IllegalLocationConstraintException"), _) | (_, Some(301)) => {
            format!("{resource} lies in another region: set `region` of its section to that one")
        }
        (Some("AccessDeniedException" | "AccessDenied" | "AccessDeniedForDependency"), _) | (None, Some(403)) => {
            format!("these credentials may not call {service}:{call} on {resource}: allow it in the role's policy (docs/store-aws.md lists what is needed)")
        }
        (
            Some(
                "UnrecognizedClientException"
                | "InvalidClientTokenId"
                | "InvalidAccessKeyId"
                | "SignatureDoesNotMatch"
                | "InvalidSignatureException"
                | "ExpiredTokenException"
                | "ExpiredToken",
            ),
            _,
        ) => "the credentials of the default chain (environment, profile, role) are not valid here: check them, and the machine's clock".to_owned(),
        _ => return None,
    };
    Some(text)
}

/// Makes the calls of one service.
#[derive(Debug, Clone)]
pub(super) struct Caller {
    pub service: &'static str,
    pub stats: Arc<CallStats>,
}

impl Caller {
    /// One attempt.
    pub async fn once<T, E, Fut>(&self, call: &'static str, limit: Duration, request: Fut) -> Result<T, CallError<E>>
    where
        E: ProvideErrorMetadata,
        Fut: Future<Output = Result<T, SdkError<E, HttpResponse>>>,
    {
        let result = match tokio::time::timeout(limit, request).await {
            Ok(Ok(answer)) => Ok(answer),
            Ok(Err(error)) => Err(CallError::Sdk(error)),
            Err(_) => Err(CallError::Timeout(limit)),
        };
        self.stats.add(self.service, call, |counts| {
            counts.sent += 1;
            if let Err(error) = &result {
                let condition = matches!(
                    error.code(),
                    Some("ConditionalCheckFailedException" | "TransactionCanceledException" | "PreconditionFailed")
                );
                counts.failed += u64::from(!condition);
                counts.throttled += u64::from(error.class() == Class::Throttled);
            }
        });
        result
    }

    /// Attempts until one succeeds, is refused, or the deadline has passed. Only for calls that may be repeated.
    pub async fn repeat<T, E, Fut>(
        &self,
        call: &'static str,
        deadlines: Deadlines,
        mut request: impl FnMut() -> Fut,
    ) -> Result<T, CallError<E>>
    where
        E: ProvideErrorMetadata,
        Fut: Future<Output = Result<T, SdkError<E, HttpResponse>>>,
    {
        let mut pauses = Pauses::within(deadlines.total);
        loop {
            match self.once(call, deadlines.attempt.min(pauses.left()), request()).await {
                Ok(answer) => return Ok(answer),
                Err(error) if error.class() == Class::Refused || !pauses.wait().await => return Err(error),
                Err(_) => self.repeated(call),
            }
        }
    }

    pub fn repeated(&self, call: &'static str) {
        self.stats.add(self.service, call, |counts| counts.repeated += 1);
    }

    /// Counts a throttling that is told in other ways than by an error.
    pub fn throttled(&self, call: &'static str) {
        self.stats.add(self.service, call, |counts| counts.throttled += 1);
    }
}

/// Pauses between attempts, all of them before one deadline.
pub(super) struct Pauses {
    until: Instant,
    next: Duration,
}

impl Pauses {
    pub fn within(total: Duration) -> Self {
        Self { until: Instant::now() + total, next: PAUSE_FIRST }
    }

    /// What is left; never quite nothing, so that a last attempt can fail by itself.
    pub fn left(&self) -> Duration {
        self.until.saturating_duration_since(Instant::now()).max(Duration::from_millis(1))
    }

    /// Waits before another attempt; false, at once, when that would be past the deadline.
    pub async fn wait(&mut self) -> bool {
        let pause = self.next.mul_f64(rand::random::<f64>());
        if Instant::now() + pause >= self.until {
            return false;
        }
        tokio::time::sleep(pause).await;
        self.next = (self.next * 2).min(PAUSE_MAX);
        true
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn pauses_grow_and_end_at_the_deadline() {
        let began = Instant::now();
        let mut pauses = Pauses::within(Duration::from_secs(5));
        let mut waits = 0;
        while pauses.wait().await {
            waits += 1;
            assert!(waits < 1_000, "full jitter still makes progress");
        }
        assert!(waits >= 5, "there were {waits} attempts");
        assert!(began.elapsed() < Duration::from_secs(5));
    }

    #[test]
    fn refusals_name_resource_call_and_remedy() {
        let missing = remedy(Some("ResourceNotFoundException"), Some(400), "dynamodb", "GetItem", "table hearth").unwrap();
        assert!(missing.contains("table hearth") && missing.contains("init-aws"), "{missing}");
        let denied = remedy(Some("AccessDeniedException"), Some(400), "dynamodb", "GetItem", "table hearth").unwrap();
        assert!(denied.contains("dynamodb:GetItem") && denied.contains("table hearth"), "{denied}");
        assert!(remedy(Some("PermanentRedirect"), Some(301), "s3", "PutObject", "bucket b").unwrap().contains("region"));
        assert!(remedy(Some("ValidationException"), Some(400), "dynamodb", "GetItem", "table hearth").is_none());
    }
}
