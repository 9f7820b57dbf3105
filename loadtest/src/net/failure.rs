//! What can go wrong between sending a request and having its whole answer, told apart as an operator needs it.

use std::{error::Error, io};

/// Why there is no whole answer.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Failure {
    /// No connection: refused, unreachable, TLS failed, or the dial took too long.
    Dial,
    /// The connection was closed or reset before the answer's head.
    Reset,
    /// The answer broke off within its body.
    Truncated,
    /// No whole answer within the deadline.
    Timeout,
    /// What came is not HTTP.
    Protocol,
    /// This machine ran out of ports, descriptors or memory: the generator's fault, not the target's.
    Generator,
}

/// A failure and its words.
#[derive(Debug, Clone)]
pub struct Failed {
    /// Which.
    pub failure: Failure,
    /// For people; few distinct texts, no addresses or ports of single connections.
    pub detail: String,
}

impl Failed {
    /// A failure with these words.
    pub fn new(failure: Failure, detail: impl Into<String>) -> Self {
        Self { failure, detail: detail.into() }
    }

    /// From a dial.
    pub(crate) fn dialling(error: &io::Error) -> Self {
        // Ports (EADDRNOTAVAIL) and descriptors (EMFILE, ENFILE) are resources of the machine that generates the load.
        let ours = error.kind() == io::ErrorKind::AddrNotAvailable
            || error.raw_os_error().is_some_and(|code| {
                let (mfile, nfile) = (rustix::io::Errno::MFILE, rustix::io::Errno::NFILE);
                code == mfile.raw_os_error() || code == nfile.raw_os_error()
            });
        let failure = if ours { Failure::Generator } else { Failure::Dial };
        Self::new(failure, format!("dial: {}", os_text(error)))
    }

    /// From a connection, before the answer's head.
    pub(crate) fn waiting(error: &hyper::Error) -> Self {
        if let Some(io) = source_of::<io::Error>(error) {
            return Self::new(Failure::Reset, format!("connection lost before the answer: {}", os_text(io)));
        }
        if let Some(h2) = source_of::<h2::Error>(error) {
            let reset = h2.is_io() || h2.is_reset() || h2.is_go_away();
            let failure = if reset { Failure::Reset } else { Failure::Protocol };
            return Self::new(failure, format!("HTTP/2: {h2}"));
        }
        if error.is_parse() || error.is_parse_status() {
            return Self::new(Failure::Protocol, format!("not an HTTP answer: {error}"));
        }
        Self::new(Failure::Reset, format!("connection lost before the answer: {error}"))
    }

    /// From a connection, within the answer's body.
    pub(crate) fn reading(error: &hyper::Error) -> Self {
        Self::new(Failure::Truncated, format!("answer broke off: {error}"))
    }
}

/// The error without what differs from one connection to the next.
fn os_text(error: &io::Error) -> String {
    match error.raw_os_error() {
        Some(code) => io::Error::from_raw_os_error(code).to_string(),
        None => error.to_string(),
    }
}

fn source_of<'a, T: Error + 'static>(error: &'a (dyn Error + 'static)) -> Option<&'a T> {
    let mut next = error.source();
    while let Some(error) = next {
        if let Some(found) = error.downcast_ref() {
            return Some(found);
        }
        next = error.source();
    }
    None
}
