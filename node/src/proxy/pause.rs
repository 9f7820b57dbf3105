//! A pause before a refusal. Who calls again as soon as it is answered is slowed by it, and costs the others little.

use std::{
    cell::Cell,
    sync::atomic::{AtomicU64, Ordering::Relaxed},
    time::Duration,
};

/// How long a refusal waits at least: one connection that waits for its answers is refused twenty times a second.
pub(super) const PAUSE: Duration = Duration::from_millis(50);
/// From one of a tenant's refusals to the next, when many of its requests come at once.
const APART: Duration = Duration::from_millis(10);
/// How long one waits at most, however many came before it.
const PAUSE_MAX: Duration = Duration::from_secs(2);
/// So many wait at once, per worker, for all tenants; further ones are told at once. From half of them on none waits for longer than [`PAUSE`], so
/// that one tenant's do not fill it.
const WAITING_MAX: usize = 1_000;

/// A tenant's refusals, one behind the other.
#[derive(Debug, Default)]
pub(super) struct Line {
    /// When the next may be told.
    next_ns: AtomicU64,
}

impl Line {
    /// Takes the next place in the line; returns how long to wait for its turn.
    pub fn take_at(&self, now_ns: u64) -> Duration {
        let ns = |duration: Duration| duration.as_nanos() as u64;
        let turn = |next_ns: u64| next_ns.clamp(now_ns.saturating_add(ns(PAUSE)), now_ns.saturating_add(ns(PAUSE_MAX)));
        let before_ns = self.next_ns.fetch_update(Relaxed, Relaxed, |next_ns| Some(turn(next_ns).saturating_add(ns(APART))));
        Duration::from_nanos(turn(before_ns.unwrap_or_default()) - now_ns)
    }
}

/// A worker's refusals that wait.
#[derive(Debug, Default)]
pub(super) struct Pause {
    waiting: Cell<usize>,
}

struct Waiting<'a>(&'a Cell<usize>);

impl Pause {
    /// Returns when the refusal may be told: when its `turn` in line has come, or at once where too many wait.
    pub async fn wait(&self, turn: impl FnOnce() -> Duration) {
        let pause = match self.waiting.get() {
            WAITING_MAX.. => return,
            n if n < WAITING_MAX / 2 => turn(),
            _ => PAUSE,
        };
        self.waiting.update(|n| n + 1);
        // A client may leave meanwhile.
        let _waiting = Waiting(&self.waiting);
        tokio::time::sleep(pause).await;
    }
}

impl Drop for Waiting<'_> {
    fn drop(&mut self) {
        self.0.update(|n| n - 1);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use futures_util::future::{join_all, poll_immediate};

    #[test]
    fn refusals_stand_in_line_and_none_for_longer_than_two_seconds() {
        let line = Line::default();
        let ms = Duration::from_millis;
        let now_ns = 7_000_000_000;
        let waits: Vec<_> = (0..1_000).map(|_| line.take_at(now_ns)).collect();
        assert_eq!(waits[..3], [ms(50), ms(60), ms(70)]);
        assert!(waits.is_sorted());
        assert_eq!(waits[999], PAUSE_MAX);
        assert_eq!(line.take_at(now_ns + 500_000_000), ms(1_510), "what was over the longest wait is forgotten");
        assert_eq!(line.take_at(now_ns + 5_000_000_000), ms(50), "an empty line");
    }

    #[tokio::test(start_paused = true)]
    async fn so_many_refusals_wait_and_no_more() {
        let pause = Pause::default();
        let began = tokio::time::Instant::now();
        join_all((0..WAITING_MAX).map(|_| pause.wait(|| PAUSE))).await;
        assert!((PAUSE..PAUSE * 2).contains(&began.elapsed()), "{:?}", began.elapsed());
        let mut waiting: Vec<_> = (0..WAITING_MAX).map(|_| Box::pin(pause.wait(|| PAUSE))).collect();
        for one in &mut waiting {
            assert!(poll_immediate(one).await.is_none());
        }
        assert!(poll_immediate(pause.wait(|| PAUSE)).await.is_some(), "one past the bound");
        waiting.pop();
        assert!(poll_immediate(Box::pin(pause.wait(|| PAUSE))).await.is_none(), "who leaves makes room");
    }

    #[tokio::test(start_paused = true)]
    async fn one_tenants_line_does_not_fill_what_all_have() {
        let pause = Pause::default();
        let mut waiting: Vec<_> = (0..WAITING_MAX / 2).map(|_| Box::pin(pause.wait(|| PAUSE_MAX))).collect();
        for one in &mut waiting {
            assert!(poll_immediate(one).await.is_none());
        }
        let began = tokio::time::Instant::now();
        pause.wait(|| panic!("no place in the line is taken that nobody waits for")).await;
        assert!((PAUSE..PAUSE * 2).contains(&began.elapsed()), "{:?}", began.elapsed());
    }
}
