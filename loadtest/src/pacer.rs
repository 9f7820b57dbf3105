//! What the generator does now: send, wait, or admit that it cannot. A pure function of the clock and of how much is in flight, so
//! that it is tested in virtual time.

use crate::arrivals::Arrival;
use std::iter::Peekable;

/// What an open loop may not exceed.
#[derive(Debug, Clone, Copy)]
pub struct Bounds {
    /// Requests in flight.
    pub in_flight_max: u64,
    /// How late a request may still be sent, in nanoseconds; after that it counts as unsent, so that a generator that cannot keep up ends all the same.
    pub late_max_ns: u64,
}

/// The next thing to do.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Action {
    /// Send this one now.
    Send(Arrival),
    /// This one cannot be sent, and counts as such.
    Unsent(Arrival),
    /// Nothing before this moment.
    WaitUntil(u64),
    /// All arrivals are past.
    Done,
}

/// Walks through arrivals as time passes.
#[derive(Debug)]
pub struct Pacer<I: Iterator<Item = Arrival>> {
    arrivals: Peekable<I>,
    bounds: Bounds,
}

impl<I: Iterator<Item = Arrival>> Pacer<I> {
    /// A pacer for these arrivals.
    pub fn new(arrivals: I, bounds: Bounds) -> Self {
        Self { arrivals: arrivals.peekable(), bounds }
    }

    /// What to do at this moment with so many requests in flight. An arrival that is due is taken: it is either sent or unsent, never put off because
    /// of the server.
    pub fn next(&mut self, now_ns: u64, in_flight: u64) -> Action {
        let Some(due) = self.arrivals.peek().map(|a| a.at_ns) else { return Action::Done };
        if due > now_ns {
            return Action::WaitUntil(due);
        }
        let late = now_ns - due > self.bounds.late_max_ns;
        match self.arrivals.next() {
            Some(arrival) if late || in_flight >= self.bounds.in_flight_max => Action::Unsent(arrival),
            Some(arrival) => Action::Send(arrival),
            None => Action::Done,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MS: u64 = 1_000_000;

    fn every_ms(count: u64) -> impl Iterator<Item = Arrival> {
        (0..count).map(|i| Arrival { at_ns: i * MS, stream: 0, step: 0, function: i as u32 })
    }

    /// Runs a schedule against a server in virtual time: `service` says how long a request that starts at a moment takes.
    fn simulate(count: u64, bounds: Bounds, service: impl Fn(u64) -> u64) -> (Vec<u64>, usize, usize) {
        let mut pacer = Pacer::new(every_ms(count), bounds);
        let (mut now, mut running, mut latencies, mut unsent) = (0_u64, Vec::<u64>::new(), Vec::new(), 0);
        let mut peak = 0;
        loop {
            running.retain(|end| *end > now);
            peak = peak.max(running.len());
            match pacer.next(now, running.len() as u64) {
                Action::Send(arrival) => {
                    let end = now + service(now);
                    running.push(end);
                    latencies.push(end - arrival.at_ns);
                }
                Action::Unsent(_) => unsent += 1,
                Action::WaitUntil(at) => now = at,
                Action::Done => return (latencies, unsent, peak),
            }
        }
    }

    #[test]
    fn a_stalled_server_delays_no_request_and_hides_nothing() {
        let bounds = Bounds { in_flight_max: 10_000, late_max_ns: 5_000 * MS };
        // The server answers in 1 ms, but stands still from 2 s to 3 s.
        let stall = |at: u64| if (2_000 * MS..3_000 * MS).contains(&at) { 3_000 * MS - at + MS } else { MS };
        let (latencies, unsent, peak) = simulate(10_000, bounds, stall);
        assert_eq!((latencies.len(), unsent), (10_000, 0));
        assert_eq!(latencies.iter().filter(|l| **l > 100 * MS).count(), 901, "all who came during the stall waited");
        assert_eq!(latencies.iter().max(), Some(&(1_001 * MS)));
        assert_eq!(peak, 1_001, "the generator went on sending");
    }

    #[test]
    fn at_the_bound_of_requests_in_flight_and_one_past_it() {
        let bounds = Bounds { in_flight_max: 5, late_max_ns: 5_000 * MS };
        let (sent, unsent, _) = simulate(5, bounds, |_| 1_000 * MS);
        assert_eq!((sent.len(), unsent), (5, 0));
        let (sent, unsent, peak) = simulate(6, bounds, |_| 1_000 * MS);
        assert_eq!((sent.len(), unsent, peak), (5, 1, 5));
    }

    #[test]
    fn a_late_generator_counts_its_lateness_as_latency_and_gives_up_at_the_bound() {
        let bounds = Bounds { in_flight_max: 1_000, late_max_ns: 10 * MS };
        let mut pacer = Pacer::new(every_ms(100), bounds);
        assert_eq!(pacer.next(0, 0), Action::Send(Arrival { at_ns: 0, stream: 0, step: 0, function: 0 }));
        assert_eq!(pacer.next(0, 0), Action::WaitUntil(MS));
        assert!(matches!(pacer.next(11 * MS, 0), Action::Send(a) if a.at_ns == MS), "10 ms late is within the bound");
        assert!(matches!(pacer.next(12 * MS + 1, 0), Action::Unsent(a) if a.at_ns == 2 * MS), "one past it is not");
        assert!(matches!(pacer.next(12 * MS + 1, 0), Action::Send(a) if a.at_ns == 3 * MS));
    }

    #[test]
    fn nothing_left_is_done() {
        let mut pacer = Pacer::new(every_ms(0), Bounds { in_flight_max: 1, late_max_ns: 1 });
        assert_eq!(pacer.next(0, 0), Action::Done);
    }
}
