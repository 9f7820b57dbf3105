//! Request ids and trace contexts: made at the edge, believed only when a router says them.

use http::{HeaderMap, HeaderName, HeaderValue};
use std::cell::Cell;

const TRACEPARENT: HeaderName = HeaderName::from_static("traceparent");

/// A source of ids; one per worker, so that it needs no synchronisation.
#[derive(Debug)]
pub struct RequestIds {
    prefix: u64,
    next: Cell<u64>,
}

impl Default for RequestIds {
    fn default() -> Self {
        Self { prefix: rand::random(), next: Cell::new(rand::random()) }
    }
}

impl RequestIds {
    fn step(&self) -> u64 {
        let n = self.next.get();
        self.next.set(n.wrapping_add(0x9e37_79b9_7f4a_7c15));
        n
    }

    /// A request id: unique, 32 hexadecimal digits.
    #[must_use]
    pub fn next(&self) -> String {
        format!("{:016x}{:016x}", self.prefix, self.step())
    }

    /// Keeps a valid `traceparent` (W3C Trace Context, version 00) and puts a new one where there is none.
    pub fn ensure_traceparent(&self, headers: &mut HeaderMap) {
        let mut all = headers.get_all(&TRACEPARENT).iter();
        if matches!((all.next(), all.next()), (Some(one), None) if is_traceparent(one.as_bytes())) {
            return;
        }
        // The trace id must not be zero; the prefix is random and practically never is, and the last bit makes sure.
        let text = format!("00-{:016x}{:016x}-{:016x}-00", self.prefix, self.step(), self.prefix.rotate_left(32) ^ self.step() | 1);
        if let Ok(value) = HeaderValue::try_from(text) {
            headers.insert(TRACEPARENT, value);
        }
    }
}

/// Whether a text has the form of our ids; what a router sends is checked all the same.
#[must_use]
pub fn is_request_id(text: &[u8]) -> bool {
    text.len() == 32 && text.iter().all(|b| matches!(b, b'0'..=b'9' | b'a'..=b'f'))
}

fn is_traceparent(text: &[u8]) -> bool {
    let hex = |part: &[u8]| part.iter().all(|b| matches!(b, b'0'..=b'9' | b'a'..=b'f'));
    let some = |part: &[u8]| hex(part) && part.iter().any(|b| *b != b'0');
    text.len() == 55
        && (text[2], text[35], text[52]) == (b'-', b'-', b'-')
        && &text[..2] == b"00"
        && some(&text[3..35])
        && some(&text[36..52])
        && hex(&text[53..])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ids_have_their_form_and_differ() {
        let ids = RequestIds::default();
        let (a, b) = (ids.next(), ids.next());
        assert!(is_request_id(a.as_bytes()) && is_request_id(b.as_bytes()) && a != b);
        assert!(!is_request_id(b"x") && !is_request_id(&[b'g'; 32]));
    }

    #[test]
    fn a_trace_is_kept_or_begun() {
        let ids = RequestIds::default();
        let mut headers = HeaderMap::new();
        ids.ensure_traceparent(&mut headers);
        let made = headers["traceparent"].clone();
        assert!(is_traceparent(made.as_bytes()), "{made:?}");
        ids.ensure_traceparent(&mut headers);
        assert_eq!(headers["traceparent"], made);
        for bad in ["", "00-0-0-00", "00-00000000000000000000000000000000-1111111111111111-00", "zz"] {
            headers.insert("traceparent", HeaderValue::from_static(bad));
            ids.ensure_traceparent(&mut headers);
            assert!(is_traceparent(headers["traceparent"].as_bytes()));
        }
    }
}
