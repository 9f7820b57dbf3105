//! When a request is sent again. Pure: what broke, what the method promises, what of the body can be said again, and what the budget
//! has left.

use http::Method;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

/// How an attempt came to nothing.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Broke {
    /// No connection, or one that had closed before anything was sent.
    NotSent,
    /// The node says that nothing reached a function.
    Unsent,
    /// Something was sent, and no answer came: a function may have seen it.
    Lost,
}

/// Whether a method may be repeated without changing what it means (RFC 9110, 9.2.2).
pub(crate) fn is_idempotent(method: &Method) -> bool {
    [Method::GET, Method::HEAD, Method::OPTIONS, Method::TRACE, Method::PUT, Method::DELETE].contains(method)
}

/// Whether the request may be sent again, the budget aside.
pub(crate) fn may_repeat(broke: Broke, idempotent: bool, replayable: bool) -> bool {
    replayable
        && match broke {
            Broke::NotSent | Broke::Unsent => true,
            Broke::Lost => idempotent,
        }
}

/// Retries are a tenth of the requests at most, so that a cluster in trouble is not given more to do. An attempt that sent nothing
/// costs nothing.
#[derive(Debug)]
pub(crate) struct Budget {
    /// In tenths of a retry.
    tenths: AtomicU64,
    tenths_max: u64,
}

impl Budget {
    /// Starts with all that may be saved up, so that a young router can retry, too.
    pub fn new(burst_max: u32) -> Self {
        let tenths_max = u64::from(burst_max) * 10;
        Self { tenths: AtomicU64::new(tenths_max), tenths_max }
    }

    /// A request came.
    pub fn earn(&self) {
        // Usually full: then there is only a read, of a line that no core writes to.
        if self.tenths.load(Relaxed) < self.tenths_max {
            self.tenths.fetch_add(1, Relaxed);
        }
    }

    /// Takes one retry; false if there is none.
    pub fn take(&self, broke: Broke) -> bool {
        broke == Broke::NotSent || self.tenths.fetch_update(Relaxed, Relaxed, |tenths| tenths.checked_sub(10)).is_ok()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_matrix() {
        for (broke, idempotent, replayable, again) in [
            (Broke::NotSent, false, true, true),
            (Broke::NotSent, false, false, false),
            (Broke::Unsent, false, true, true),
            (Broke::Unsent, true, false, false),
            (Broke::Lost, true, true, true),
            (Broke::Lost, true, false, false),
            (Broke::Lost, false, true, false),
        ] {
            assert_eq!(may_repeat(broke, idempotent, replayable), again, "{broke:?} {idempotent} {replayable}");
        }
        assert!(is_idempotent(&Method::GET) && is_idempotent(&Method::PUT));
        assert!(!is_idempotent(&Method::POST) && !is_idempotent(&Method::PATCH) && !is_idempotent(&"LOCK".parse().unwrap()));
    }

    #[test]
    fn a_tenth_of_the_requests_may_be_repeated() {
        let budget = Budget::new(2);
        assert!(budget.take(Broke::Lost) && budget.take(Broke::Unsent));
        assert!(!budget.take(Broke::Lost));
        assert!(budget.take(Broke::NotSent), "what sent nothing costs nothing");
        for _ in 0..9 {
            budget.earn();
        }
        assert!(!budget.take(Broke::Lost));
        budget.earn();
        assert!(budget.take(Broke::Lost));
        for _ in 0..1_000 {
            budget.earn();
        }
        assert!(
            budget.take(Broke::Lost) && budget.take(Broke::Lost) && !budget.take(Broke::Lost),
            "no more than the burst is saved"
        );
    }
}
