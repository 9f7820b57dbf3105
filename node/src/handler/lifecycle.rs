//! The life of a claimed container as a table, and the one atomic word that holds it together with the count of its requests, so that
//! a container is never frozen or ended as idle while a request is on its way into it.

use std::sync::atomic::{AtomicU64, Ordering};

/// Where a claimed container is in its life.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[repr(u8)]
pub(super) enum Phase {
    /// Serves.
    Running = 0,
    /// Is being frozen.
    Freezing = 1,
    /// Its processes are stopped.
    Frozen = 2,
    /// Is being thawed.
    Thawing = 3,
    /// Finishes the requests that it has and takes no others.
    Retired = 4,
    /// Over. The end.
    Dead = 5,
}

/// What can happen to it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(super) enum Event {
    /// It was idle for long: freezing begins.
    Freeze,
    /// Freezing worked.
    Froze,
    /// Freezing did not work.
    FreezeFailed,
    /// A request wants it: thawing begins.
    Thaw,
    /// Thawing worked.
    Thawed,
    /// It is replaced, evicted, or no longer worth its memory.
    Retire,
    /// Its process ended or is being killed.
    Die,
}

impl Phase {
    const ALL: [Self; 6] = [Self::Running, Self::Freezing, Self::Frozen, Self::Thawing, Self::Retired, Self::Dead];

    /// The table. None where the event means nothing in this phase.
    pub(super) const fn after(self, event: Event) -> Option<Self> {
        Some(match (self, event) {
            (Self::Running, Event::Freeze) => Self::Freezing,
            (Self::Freezing, Event::Froze) => Self::Frozen,
            (Self::Freezing, Event::FreezeFailed) => Self::Running,
            (Self::Frozen, Event::Thaw) => Self::Thawing,
            (Self::Thawing, Event::Thawed) => Self::Running,
            (Self::Running | Self::Freezing | Self::Frozen | Self::Thawing, Event::Retire) => Self::Retired,
            (Self::Running | Self::Freezing | Self::Frozen | Self::Thawing | Self::Retired, Event::Die) => Self::Dead,
            _ => return None,
        })
    }

    /// As in a status.
    pub(super) const fn as_str(self) -> &'static str {
        match self {
            Self::Running => "running",
            Self::Freezing => "freezing",
            Self::Frozen => "frozen",
            Self::Thawing => "thawing",
            Self::Retired => "retired",
            Self::Dead => "dead",
        }
    }
}

/// The answer to a request that wants in.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Enter {
    /// It is counted, until [`Gate::leave`].
    Entered,
    /// So many are in that no more may.
    Full,
    /// Not in this phase.
    Closed(Phase),
}

/// Phase (8 bits), holds (24 bits) and requests (32 bits) in one word.
#[derive(Debug)]
pub(super) struct Gate(AtomicU64);

const HOLD: u64 = 1 << 32;
const PHASE_SHIFT: u32 = 56;

const fn phase_of(word: u64) -> Phase {
    Phase::ALL[(word >> PHASE_SHIFT) as usize]
}

const fn requests_of(word: u64) -> u32 {
    (word & 0xffff_ffff) as u32
}

const fn is_idle(word: u64) -> bool {
    word & ((1 << PHASE_SHIFT) - 1) == 0
}

const fn with_phase(word: u64, phase: Phase) -> u64 {
    (word & ((1 << PHASE_SHIFT) - 1)) | ((phase as u64) << PHASE_SHIFT)
}

impl Gate {
    /// Open, empty.
    pub(super) const fn new() -> Self {
        Self(AtomicU64::new(0))
    }

    /// Lets one request in, if the container runs and fewer than `limit` are in.
    pub(super) fn enter(&self, limit: u32) -> Enter {
        let mut word = self.0.load(Ordering::Relaxed);
        loop {
            match phase_of(word) {
                Phase::Running => {}
                phase => return Enter::Closed(phase),
            }
            if requests_of(word) >= limit {
                return Enter::Full;
            }
            match self.0.compare_exchange_weak(word, word + 1, Ordering::AcqRel, Ordering::Relaxed) {
                Ok(_) => return Enter::Entered,
                Err(now) => word = now,
            }
        }
    }

    /// A request that entered is through. Returns whether a retired container became idle by this.
    pub(super) fn leave(&self) -> bool {
        let before = self.0.fetch_sub(1, Ordering::AcqRel);
        debug_assert!(requests_of(before) > 0, "left without entering");
        phase_of(before) == Phase::Retired && is_idle(before - 1)
    }

    /// Keeps a running container from being frozen, without counting as a request.
    pub(super) fn hold(&self) -> Result<(), Phase> {
        self.0
            .fetch_update(Ordering::AcqRel, Ordering::Acquire, |word| (phase_of(word) == Phase::Running).then_some(word + HOLD))
            .map(|_| ())
            .map_err(phase_of)
    }

    /// Ends a hold. Returns whether a retired container became idle by this.
    pub(super) fn unhold(&self) -> bool {
        let before = self.0.fetch_sub(HOLD, Ordering::AcqRel);
        debug_assert!((before >> 32) & 0xff_ffff > 0, "no hold to end");
        phase_of(before) == Phase::Retired && is_idle(before - HOLD)
    }

    /// Lets an event happen. Freezing needs an idle container. Returns the phase before, or the phase that the event means nothing in.
    pub(super) fn happen(&self, event: Event) -> Result<Phase, Phase> {
        self.0
            .fetch_update(Ordering::AcqRel, Ordering::Acquire, |word| {
                if event == Event::Freeze && !is_idle(word) {
                    return None;
                }
                phase_of(word).after(event).map(|next| with_phase(word, next))
            })
            .map(phase_of)
            .map_err(phase_of)
    }

    /// Retires a container if nothing is in it.
    pub(super) fn retire_idle(&self) -> bool {
        self.0
            .fetch_update(Ordering::AcqRel, Ordering::Acquire, |word| {
                let next = phase_of(word).after(Event::Retire)?;
                is_idle(word).then(|| with_phase(word, next))
            })
            .is_ok()
    }

    pub(super) fn phase(&self) -> Phase {
        phase_of(self.0.load(Ordering::Acquire))
    }

    /// Requests that are in.
    pub(super) fn requests(&self) -> u32 {
        requests_of(self.0.load(Ordering::Acquire))
    }

    /// Neither requests nor holds.
    pub(super) fn is_idle(&self) -> bool {
        is_idle(self.0.load(Ordering::Acquire))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::collections::{HashSet, VecDeque};

    const EVENTS: [Event; 7] =
        [Event::Freeze, Event::Froze, Event::FreezeFailed, Event::Thaw, Event::Thawed, Event::Retire, Event::Die];

    #[test]
    fn every_phase_is_reached_and_there_is_no_way_back_from_the_end() {
        let mut seen = HashSet::from([Phase::Running]);
        let mut open = VecDeque::from([Phase::Running]);
        while let Some(phase) = open.pop_front() {
            for next in EVENTS.iter().filter_map(|e| phase.after(*e)) {
                if seen.insert(next) {
                    open.push_back(next);
                }
            }
        }
        assert_eq!(seen.len(), Phase::ALL.len());
        for event in EVENTS {
            assert_eq!(Phase::Dead.after(event), None, "{event:?}");
            assert!(matches!(Phase::Retired.after(event), None | Some(Phase::Dead)), "{event:?}");
        }
        for phase in Phase::ALL.iter().filter(|p| **p != Phase::Dead) {
            assert_eq!(phase.after(Event::Die), Some(Phase::Dead), "whatever it does, a process may end");
        }
    }

    /// What the gate does, written plainly.
    #[derive(Debug, Clone, PartialEq)]
    struct Plain {
        phase: Phase,
        requests: u32,
        holds: u32,
    }

    #[derive(Debug, Clone, Copy)]
    enum Step {
        Enter(u32),
        Leave,
        Hold,
        Unhold,
        Happen(usize),
        RetireIdle,
    }

    fn step() -> impl Strategy<Value = Step> {
        prop_oneof![
            4 => (0u32..4).prop_map(Step::Enter),
            4 => Just(Step::Leave),
            1 => Just(Step::Hold),
            1 => Just(Step::Unhold),
            4 => (0..EVENTS.len()).prop_map(Step::Happen),
            1 => Just(Step::RetireIdle),
        ]
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(2_000))]
        #[test]
        fn the_gate_is_the_plain_model(steps in prop::collection::vec(step(), 0..60)) {
            let gate = Gate::new();
            let mut plain = Plain { phase: Phase::Running, requests: 0, holds: 0 };
            for step in steps {
                match step {
                    Step::Enter(limit) => {
                        let expected = if plain.phase != Phase::Running {
                            Enter::Closed(plain.phase)
                        } else if plain.requests >= limit {
                            Enter::Full
                        } else {
                            plain.requests += 1;
                            Enter::Entered
                        };
                        prop_assert_eq!(gate.enter(limit), expected);
                    }
                    Step::Leave if plain.requests > 0 => {
                        plain.requests -= 1;
                        let last = plain.phase == Phase::Retired && plain.requests + plain.holds == 0;
                        prop_assert_eq!(gate.leave(), last);
                    }
                    Step::Hold => {
                        let expected = if plain.phase == Phase::Running { plain.holds += 1; Ok(()) } else { Err(plain.phase) };
                        prop_assert_eq!(gate.hold(), expected);
                    }
                    Step::Unhold if plain.holds > 0 => {
                        plain.holds -= 1;
                        let last = plain.phase == Phase::Retired && plain.requests + plain.holds == 0;
                        prop_assert_eq!(gate.unhold(), last);
                    }
                    Step::Happen(event) => {
                        let idle = plain.requests + plain.holds == 0;
                        let next = plain.phase.after(EVENTS[event]).filter(|_| EVENTS[event] != Event::Freeze || idle);
                        let before = plain.phase;
                        prop_assert_eq!(gate.happen(EVENTS[event]), next.map(|_| before).ok_or(before));
                        plain.phase = next.unwrap_or(before);
                    }
                    Step::RetireIdle => {
                        let next = plain.phase.after(Event::Retire).filter(|_| plain.requests + plain.holds == 0);
                        prop_assert_eq!(gate.retire_idle(), next.is_some());
                        plain.phase = next.unwrap_or(plain.phase);
                    }
                    Step::Leave | Step::Unhold => {}
                }
                prop_assert_eq!((gate.phase(), gate.requests()), (plain.phase, plain.requests));
                prop_assert!(!matches!(gate.phase(), Phase::Freezing | Phase::Frozen | Phase::Thawing) || gate.is_idle());
            }
        }
    }

    #[test]
    fn the_limit_holds_at_the_bound_and_one_past() {
        let gate = Gate::new();
        for _ in 0..3 {
            assert_eq!(gate.enter(3), Enter::Entered);
        }
        assert_eq!(gate.enter(3), Enter::Full);
        gate.leave();
        assert_eq!(gate.enter(3), Enter::Entered);
    }

    #[test]
    fn requests_and_a_freeze_exclude_each_other_from_several_threads() {
        let gate = Gate::new();
        let inside = AtomicU64::new(0);
        std::thread::scope(|scope| {
            for _ in 0..2 {
                scope.spawn(|| {
                    for _ in 0..20_000 {
                        if gate.enter(10) == Enter::Entered {
                            inside.fetch_add(1, Ordering::SeqCst);
                            inside.fetch_sub(1, Ordering::SeqCst);
                            gate.leave();
                        }
                    }
                });
            }
            scope.spawn(|| {
                for _ in 0..20_000 {
                    if gate.happen(Event::Freeze).is_ok() {
                        assert_eq!(inside.load(Ordering::SeqCst), 0);
                        gate.happen(Event::Froze).unwrap();
                        gate.happen(Event::Thaw).unwrap();
                        gate.happen(Event::Thawed).unwrap();
                    }
                }
            });
        });
        assert!(gate.is_idle());
    }
}
