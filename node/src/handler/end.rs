//! How containers end: by themselves, because the node says so, or because they no longer answer. Whatever the way, requests learn of it
//! at once and the next one gets a fresh container.

use super::{
    container::{EndReason, LiveContainer},
    control::{Answer, ControlError},
    lifecycle::Event,
    shared::Shared,
    status::add,
};
use hearth_model::protocol::{LogLevel, ToRuntime};
use hearth_sandbox::{Exit, SandboxError};
use std::{
    sync::{Arc, atomic::Ordering::Relaxed},
    time::Duration,
};
use tokio::time::{sleep, timeout};

/// How long the engine may take to tell how a container ended whose connection broke.
const EXIT_NEWS_TIMEOUT: Duration = Duration::from_millis(500);
/// Pause before a container is asked again whose connection was being mended.
const MEND_PAUSE: Duration = Duration::from_millis(100);
/// Pause before the engine is asked again how a container is.
const WAIT_PAUSE: Duration = Duration::from_secs(1);
/// Exit code of a process that was killed, as shells write it.
const KILLED: i64 = 137;

impl Shared {
    /// Watches over a container until it ends.
    pub(super) fn keep(self: &Arc<Self>, container: &Arc<LiveContainer>) {
        let (shared, container) = (Arc::clone(self), Arc::clone(container));
        self.spawn(async move {
            // Each of these may be dropped at any moment: waiting changes nothing.
            tokio::select! {
                exit = shared.wait(&container) => shared.ended(&container, exit),
                reason = container.control.closed() => shared.lost(&container, &reason).await,
                _ = container.exited() => {}
                () = shared.stop.cancelled() => {}
            }
        });
    }

    async fn wait(&self, container: &LiveContainer) -> Exit {
        loop {
            match self.sandbox.wait(&container.sandbox_id).await {
                Ok(exit) => return exit,
                Err(SandboxError::NotFound { .. }) => return Exit::default(),
                // The engine may be away while the container lives on.
                Err(error) => tracing::debug!(container = %container.path(), %error, "waiting for a container's end failed"),
            }
            sleep(WAIT_PAUSE).await;
        }
    }

    fn ended(self: &Arc<Self>, container: &Arc<LiveContainer>, mut exit: Exit) {
        exit.code = exit.code.or_else(|| container.control.exit_code());
        let reason = if exit.out_of_memory { EndReason::OutOfMemory } else { EndReason::Exited };
        self.end(container, reason, Some(exit));
    }

    /// The control connection is over for good. Most often the process is, too, and how it ended matters to its requests.
    async fn lost(self: &Arc<Self>, container: &Arc<LiveContainer>, reason: &str) {
        match timeout(EXIT_NEWS_TIMEOUT, self.wait(container)).await {
            Ok(exit) => self.ended(container, exit),
            Err(_) => {
                container.owner.note(LogLevel::Error, format!("the container is replaced: {}", reason.chars().take(500).collect::<String>()));
                self.end(container, EndReason::Broken, None);
            }
        }
    }

    /// Ends a container now. Its requests learn it at once; the first reason counts. Without an `exit` it is killed.
    pub(super) fn end(self: &Arc<Self>, container: &Arc<LiveContainer>, reason: EndReason, exit: Option<Exit>) {
        if container.gate.happen(Event::Die).is_err() {
            return;
        }
        self.counters.ended(reason);
        container.publish_exit(exit.unwrap_or(Exit { code: Some(KILLED), out_of_memory: false }));
        self.unroute(container);
        container.changed.notify_waiters();
        if let Some(note) = note(reason, exit) {
            container.owner.note(LogLevel::Error, note);
        }
        tracing::debug!(container = %container.path(), reason = reason.as_str(), ?exit, "a container ended");
        container.owner.close();
        container.control.close();
        self.live.lock().remove(&container.id());
        self.doom(Some(container.sandbox_id.clone()), container.slot.clone());
    }

    /// Sends no more requests to a container.
    fn unroute(&self, container: &Arc<LiveContainer>) {
        if let Some(entry) = self.entries.get(container.path()) {
            entry.leave(container);
        }
        let functions = container.versions.lock().functions();
        for function in functions {
            self.routes.remove(&container.path().function(function), container);
        }
    }

    /// Lets a container finish its requests, then ends it.
    pub(super) fn retire(self: &Arc<Self>, container: &Arc<LiveContainer>, reason: EndReason) {
        if container.gate.happen(Event::Retire).is_err() {
            return;
        }
        self.unroute(container);
        container.changed.notify_waiters();
        let (shared, container) = (Arc::clone(self), Arc::clone(container));
        self.spawn(async move {
            tokio::select! {
                _ = timeout(shared.config.retire_timeout, container.emptied()) => {}
                _ = container.exited() => {}
                // What is kept for the next process must not be what was to be replaced.
                () = shared.stop.cancelled() => {}
            }
            shared.end(&container, reason, None);
        });
    }

    /// Ends a container if nothing is in it.
    pub(super) fn end_idle(self: &Arc<Self>, container: &Arc<LiveContainer>, reason: EndReason) -> bool {
        let idle = container.gate.retire_idle();
        if idle {
            self.end(container, reason, None);
        }
        idle
    }

    /// A request of it ran past its deadline or found no connection: asks for a sign of life.
    pub(super) fn suspect(self: &Arc<Self>, container: &Arc<LiveContainer>) {
        if container.suspected.swap(true, Relaxed) {
            return;
        }
        add(&self.counters.suspects);
        let (shared, container) = (Arc::clone(self), Arc::clone(container));
        self.spawn(async move {
            if container.gate.hold().is_ok() {
                if let Some(reason) = shared.examine(&container).await {
                    shared.end(&container, reason, None);
                }
                container.release();
            }
            container.suspected.store(false, Relaxed);
        });
    }

    /// What is wrong with it, if anything.
    async fn examine(&self, container: &LiveContainer) -> Option<EndReason> {
        let patience = self.config.ping_timeout;
        let ping = || container.control.ask(patience, |id| ToRuntime::Ping { id });
        let answer = match ping().await {
            Err(ControlError::Broken) => {
                // Either it is ending, and how will be known in a moment, or its connection is being mended.
                if timeout(MEND_PAUSE, container.exited()).await.is_ok() {
                    return None;
                }
                ping().await
            }
            answer => answer,
        };
        match answer {
            Ok(Answer::Pong) => {}
            Err(ControlError::Deadline(_) | ControlError::Busy) => return Some(EndReason::Stuck),
            Ok(_) | Err(ControlError::Broken | ControlError::TooLong(_)) => {
                return timeout(EXIT_NEWS_TIMEOUT, container.exited()).await.is_err().then_some(EndReason::Broken);
            }
        }
        // Its event loop lives; does it take requests?
        match timeout(patience, container.connect()).await {
            Ok(Ok(_)) => None,
            _ => Some(EndReason::Broken),
        }
    }
}

/// What the tenant reads about an end that it did not ask for.
fn note(reason: EndReason, exit: Option<Exit>) -> Option<String> {
    Some(match reason {
        EndReason::Exited => match exit.and_then(|e| e.code) {
            Some(code) => format!("the container's process ended with code {code}"),
            None => "the container's process ended".into(),
        },
        EndReason::OutOfMemory => "the container used more memory than it may and was ended".into(),
        EndReason::Stuck => "the container's event loop did not answer any more; the container was ended".into(),
        EndReason::LoadTimeout => "a function took too long to load; the container was ended".into(),
        EndReason::Idle | EndReason::Pressure | EndReason::Replaced | EndReason::Broken | EndReason::Shutdown => return None,
    })
}
