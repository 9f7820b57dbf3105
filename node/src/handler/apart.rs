//! Keeps who serves requests, containers and this process's own threads, to the CPUs that are not for background work, as long as they
//! have room there and the others are busy. Linux wakes a thread where it ran last, though somebody else runs there and another CPU
//! idles: beside a program that starts others again and again a request's p99 is three times what it is alone.

use hearth_sandbox::{CpuSet, CpuSplit, UsedTime, own_threads::OwnThreads};
use std::{
    collections::HashMap,
    io,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering::Relaxed},
    },
    time::{Duration, Instant},
};

/// Part of the background CPUs that is used at least, wherever requests ran, from which requests leave them to who uses them.
const BUSY_FROM: f64 = 0.5;
/// The same below which they are shared again.
const CALM_BELOW: f64 = 0.25;
/// For so long.
const CALM_FOR: Duration = Duration::from_secs(2);
/// Part of the foreground CPUs that may be used once requests are kept there.
const ROOM_BELOW: f64 = 0.6;
/// The same from which they are let go, when it is so at two looks in a row.
const FULL_FROM: f64 = 0.75;
/// After that, or after a failure, until they may be kept there again.
const AGAIN_AFTER: Duration = Duration::from_secs(10);

/// Watches the CPUs and keeps this process's own threads where they belong. Dropped, it lets them run anywhere.
pub(super) struct Apart {
    split: Arc<CpuSplit>,
    threads: Arc<OwnThreads>,
    before: Option<Sample>,
    decision: Decision,
    /// For whoever claims a container.
    told: Arc<AtomicBool>,
    has_warned: bool,
}

struct Sample {
    at: Instant,
    all: UsedTime,
    threads: HashMap<i32, Duration>,
}

impl Apart {
    /// None where no CPU is left to requests, where this machine does not tell what its CPUs do, or where this process may not say itself
    /// where containers run: through the engine it would take too long.
    pub(super) fn new(split: &CpuSplit, told: Arc<AtomicBool>) -> Option<Self> {
        if !rustix::process::geteuid().is_root() {
            return None;
        }
        let threads = OwnThreads::new(split).and_then(|threads| {
            let Some(threads) = threads else { return Ok(None) };
            sample(split, &threads)?;
            Ok(Some(threads))
        });
        let threads = threads.unwrap_or_else(|error| {
            tracing::warn!(%error, "requests are not kept apart from background work: this machine does not say what its CPUs do");
            None
        })?;
        let (split, threads) = (Arc::new(split.clone()), Arc::new(threads));
        Some(Self { split, threads, before: None, decision: Decision::default(), told, has_warned: false })
    }

    /// Decides anew whether requests keep to the foreground CPUs, if there is anybody `to_keep` there; `served` is what containers have used for
    /// requests since the last look, in CPUs.
    pub(super) async fn look(&mut self, served: f64, to_keep: bool) {
        let (split, threads) = (Arc::clone(&self.split), Arc::clone(&self.threads));
        match blocking(move || sample(&split, &threads)).await {
            Ok(sample) => {
                if let Some(before) = &self.before {
                    let used = sample.since(before, served);
                    if self.decision.look(&used, &Capacity::of(&self.split), to_keep, sample.at) {
                        tracing::debug!(?used, apart = self.decision.apart, "requests and background work");
                    }
                }
                (self.before, self.has_warned) = (Some(sample), false);
            }
            Err(error) => {
                if !self.has_warned {
                    tracing::warn!(%error, "what the CPUs do could not be read: requests are not kept apart from background work");
                }
                (self.before, self.has_warned) = (None, true);
                self.decision = Decision::after_failure(Instant::now());
            }
        }
        self.told.store(self.decision.apart, Relaxed);
        let (apart, threads) = (self.decision.apart, Arc::clone(&self.threads));
        if let Err(error) = blocking(move || threads.keep(apart)).await {
            tracing::debug!(%error, "not all threads of this process could be kept to CPUs");
        }
    }
}

impl Drop for Apart {
    fn drop(&mut self) {
        // At the end of this process, or at one that nobody thought of.
        self.told.store(false, Relaxed);
        let _ = self.threads.keep(false);
    }
}

async fn blocking<T: Send + 'static>(work: impl FnOnce() -> io::Result<T> + Send + 'static) -> io::Result<T> {
    tokio::task::spawn_blocking(work).await.map_err(io::Error::other)?
}

fn sample(split: &CpuSplit, threads: &OwnThreads) -> io::Result<Sample> {
    let all = split.used()?;
    Ok(Sample { at: Instant::now(), all, threads: threads.used()? })
}

impl Sample {
    fn since(&self, before: &Self, served: f64) -> Used {
        let wall = self.at.duration_since(before.at).as_secs_f64().max(0.001);
        let own = |(id, used): (&i32, &Duration)| used.saturating_sub(before.threads.get(id).copied().unwrap_or_default());
        let of = |now: Duration, then: Duration| now.saturating_sub(then).as_secs_f64() / wall;
        Used {
            background: of(self.all.background, before.all.background),
            foreground: of(self.all.foreground, before.all.foreground),
            requests: served + self.threads.iter().map(own).sum::<Duration>().as_secs_f64() / wall,
        }
    }
}

/// How many CPUs there are.
struct Capacity {
    background: f64,
    foreground: f64,
}

impl Capacity {
    fn of(split: &CpuSplit) -> Self {
        let foreground = split.foreground.as_ref().map_or(0, CpuSet::len) as f64;
        Self { background: split.background.len() as f64, foreground }
    }
}

/// What was used from one look to the next, in CPUs.
#[derive(Debug)]
struct Used {
    /// Of the background CPUs, by anybody.
    background: f64,
    /// Of the foreground CPUs, by anybody.
    foreground: f64,
    /// Of all, by this process and by containers that are not kept to the background CPUs.
    requests: f64,
}

#[derive(Default)]
struct Decision {
    apart: bool,
    calm_since: Option<Instant>,
    was_full: bool,
    not_before: Option<Instant>,
}

impl Decision {
    /// True when it has changed.
    fn look(&mut self, used: &Used, cpus: &Capacity, to_keep: bool, now: Instant) -> bool {
        let was = self.apart;
        if !to_keep {
            self.apart = false;
        } else if self.apart {
            let (full, calm) = (used.foreground >= FULL_FROM * cpus.foreground, used.background < CALM_BELOW * cpus.background);
            self.calm_since = calm.then(|| self.calm_since.unwrap_or(now));
            if full && self.was_full {
                self.not_before = Some(now + AGAIN_AFTER);
                self.apart = false;
            } else if self.calm_since.is_some_and(|since| now.duration_since(since) >= CALM_FOR) {
                self.apart = false;
            }
            self.was_full = full;
        } else if self.not_before.is_none_or(|at| now >= at) {
            // As much as others use at least, if all requests ran there; and what it comes to at most, if none ran here.
            let (others, together) = (used.background - used.requests, used.foreground + used.requests);
            self.apart = others >= BUSY_FROM * cpus.background && together < ROOM_BELOW * cpus.foreground;
            (self.calm_since, self.was_full) = (None, false);
        }
        was != self.apart
    }

    fn after_failure(now: Instant) -> Self {
        Self { not_before: Some(now + AGAIN_AFTER), ..Self::default() }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const TWO_AND_TWO: Capacity = Capacity { background: 2.0, foreground: 2.0 };

    fn used(background: f64, foreground: f64, requests: f64) -> Used {
        Used { background, foreground, requests }
    }

    /// After looks a quarter of a second apart.
    fn after(looks: &[(f64, f64, f64)]) -> (Vec<bool>, Instant, Decision) {
        let (mut now, mut decision) = (Instant::now(), Decision::default());
        let mut apart = Vec::new();
        for (background, foreground, requests) in looks {
            now += Duration::from_millis(250);
            decision.look(&used(*background, *foreground, *requests), &TWO_AND_TWO, true, now);
            apart.push(decision.apart);
        }
        (apart, now, decision)
    }

    #[test]
    fn requests_leave_background_cpus_to_those_who_keep_them_busy() {
        assert_eq!(after(&[(0.9, 0.2, 0.1), (1.2, 0.2, 0.1), (0.6, 0.4, 0.4)]).0, [false, true, true]);
    }

    #[test]
    fn what_requests_do_themselves_is_no_background_work() {
        assert_eq!(after(&[(1.1, 0.1, 0.9), (1.0, 0.0, 0.9)]).0, [false, false]);
    }

    #[test]
    fn requests_are_not_kept_where_there_is_no_room() {
        assert_eq!(after(&[(2.0, 0.4, 0.8)]).0, [false], "they need more");
        assert_eq!(after(&[(2.0, 1.1, 0.2)]).0, [false], "others use it");
    }

    #[test]
    fn they_are_let_go_when_it_is_full_and_kept_again_later() {
        let (free, full) = ((2.0, 0.5, 0.5), (2.0, 1.5, 1.4));
        assert_eq!(after(&[free, full, free, full, free]).0, [true; 5], "for a moment");
        let (apart, since, mut decision) = after(&[free, full, full, free]);
        assert_eq!(apart, [true, true, false, false]);
        let again = |decision: &mut Decision, at| decision.look(&used(2.0, 0.3, 0.3), &TWO_AND_TWO, true, at);
        assert!(!again(&mut decision, since + AGAIN_AFTER / 2));
        assert!(again(&mut decision, since + AGAIN_AFTER));
    }

    #[test]
    fn they_are_let_go_when_background_work_has_been_calm_for_a_while() {
        let (busy, calm) = ((2.0, 0.3, 0.3), (0.4, 0.3, 0.3));
        let looks: Vec<_> = [busy].into_iter().chain([calm; 9]).collect();
        assert_eq!(after(&looks[..9]).0, [true; 9]);
        assert!(!after(&looks).0[9]);
        let pause: Vec<_> = looks[..9].iter().chain(&looks[..9]).copied().collect();
        assert_eq!(after(&pause).0, [true; 18], "a pause is no calm");
    }

    #[test]
    fn nobody_is_kept_where_all_are_busy() {
        let (_, now, mut decision) = after(&[(2.0, 0.3, 0.3)]);
        assert!(decision.look(&used(2.0, 0.3, 0.3), &TWO_AND_TWO, false, now));
        assert!(!decision.apart);
        assert!(!decision.look(&used(2.0, 0.3, 0.3), &TWO_AND_TWO, false, now));
    }

    #[test]
    fn after_a_failure_they_run_anywhere_for_a_while() {
        let now = Instant::now();
        let mut decision = Decision::after_failure(now);
        assert!(!decision.look(&used(2.0, 0.3, 0.3), &TWO_AND_TWO, true, now + AGAIN_AFTER / 2));
        assert!(decision.look(&used(2.0, 0.3, 0.3), &TWO_AND_TWO, true, now + AGAIN_AFTER));
    }
}
