//! A pause before a refusal. Who calls again as soon as it is answered, over few connections, is slowed by it and costs the others little: on
//! one connection that waits for its answers it is refused twenty times a second.

use std::{cell::Cell, time::Duration};

/// How long a refusal waits.
const PAUSE: Duration = Duration::from_millis(50);
/// So many wait at once, per worker; further ones are told at once.
const WAITING_MAX: usize = 1_000;

/// A worker's refusals that wait.
#[derive(Debug, Default)]
pub(super) struct Pause {
    waiting: Cell<usize>,
}

struct Waiting<'a>(&'a Cell<usize>);

impl Pause {
    /// Returns when the refusal may be told.
    pub async fn wait(&self) {
        if self.waiting.get() >= WAITING_MAX {
            return;
        }
        self.waiting.update(|n| n + 1);
        // A client may leave meanwhile.
        let _waiting = Waiting(&self.waiting);
        tokio::time::sleep(PAUSE).await;
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

    #[tokio::test(start_paused = true)]
    async fn so_many_refusals_wait_and_no_more() {
        let pause = Pause::default();
        let began = tokio::time::Instant::now();
        join_all((0..WAITING_MAX).map(|_| pause.wait())).await;
        assert!((PAUSE..PAUSE * 2).contains(&began.elapsed()), "{:?}", began.elapsed());
        let mut waiting: Vec<_> = (0..WAITING_MAX).map(|_| Box::pin(pause.wait())).collect();
        for one in &mut waiting {
            assert!(poll_immediate(one).await.is_none());
        }
        assert!(poll_immediate(pause.wait()).await.is_some(), "one past the bound");
        waiting.pop();
        assert!(poll_immediate(Box::pin(pause.wait())).await.is_none(), "who leaves makes room");
    }
}
