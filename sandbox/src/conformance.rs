//! What every [`Sandbox`] must do, as plain functions over the trait object. A backend's tests call [`all`] with a [`Fixture`]; each
//! function panics with a sentence when the promise is broken, and leaves no container behind when it is kept.

use crate::{Exit, Limits, Running, Sandbox, SandboxError, SandboxId, SandboxSpec};
use std::{collections::HashSet, time::Duration};
use tokio::time::timeout;

/// Longer than any call may take.
const LIMIT: Duration = Duration::from_secs(60);
/// How long something is watched that must not happen.
const QUIET: Duration = Duration::from_millis(300);

/// What a container that the suite makes shall do.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Behaviour {
    /// Run until it is ended.
    Idle,
    /// End at once with this code.
    Exit(i64),
    /// Print this and end with code 0.
    Print(String),
}

/// What the suite needs of a backend's tests.
pub struct Fixture<'a> {
    /// The backend, with no container.
    pub sandbox: &'a dyn Sandbox,
    /// A spec for the runtime on this slot, with directories that exist and a program that behaves as told.
    pub spec: &'a (dyn Fn(u32, Behaviour) -> SandboxSpec + Sync),
}

impl Fixture<'_> {
    async fn create(&self, slot: u32, behaviour: Behaviour) -> Running {
        let spec = (self.spec)(slot, behaviour);
        within("create", self.sandbox.create(&spec)).await.expect("create")
    }

    async fn destroy(&self, id: &SandboxId) {
        within("destroy", self.sandbox.destroy(id)).await.expect("destroy");
    }

    async fn listed(&self) -> Vec<SandboxId> {
        within("list", self.sandbox.list()).await.expect("list").into_iter().map(|r| r.id).collect()
    }

    async fn wait(&self, id: &SandboxId) -> Exit {
        within("wait", self.sandbox.wait(id)).await.expect("wait")
    }
}

async fn within<T>(call: &str, future: impl Future<Output = T>) -> T {
    timeout(LIMIT, future).await.unwrap_or_else(|_| panic!("{call} has not ended after {LIMIT:?}"))
}

/// The whole suite, one after the other.
pub async fn all(fixture: &Fixture<'_>) {
    creates_lists_and_destroys(fixture).await;
    a_slot_has_one_container_and_is_free_afterwards(fixture).await;
    what_is_unknown_is_not_found(fixture).await;
    wait_tells_the_exit_code(fixture).await;
    wait_can_be_cancelled_and_shared(fixture).await;
    wait_ends_when_destroyed(fixture).await;
    list_removes_what_has_ended(fixture).await;
    frozen_and_thawed_twice_over(fixture).await;
    a_frozen_container_can_be_destroyed(fixture).await;
    resizes_while_running(fixture).await;
    tells_what_is_used(fixture).await;
    output_is_the_tail(fixture).await;
    many_are_made_simultaneously(fixture).await;
    a_failed_create_leaves_nothing(fixture).await;
    describes_itself(fixture).await;
    assert!(fixture.listed().await.is_empty(), "the suite left containers behind");
}

/// What `create` says is what `list` says, until it is destroyed; twice is no error.
pub async fn creates_lists_and_destroys(f: &Fixture<'_>) {
    let spec = (f.spec)(1, Behaviour::Idle);
    let made = f.create(1, Behaviour::Idle).await;
    assert_eq!((made.slot, made.purpose, made.node), (1, spec.purpose, spec.node));
    assert!(made.pid > 1 && !made.id.0.is_empty() && !made.image.is_empty(), "{made:?}");
    let listed = within("list", f.sandbox.list()).await.expect("list");
    let found = listed.iter().find(|r| r.id == made.id).expect("the container is listed");
    assert_eq!((found.slot, found.pid, &found.image), (made.slot, made.pid, &made.image));
    f.destroy(&made.id).await;
    assert!(!f.listed().await.contains(&made.id), "a destroyed container is listed");
    f.destroy(&made.id).await;
}

/// Two containers on one slot would share a user id.
pub async fn a_slot_has_one_container_and_is_free_afterwards(f: &Fixture<'_>) {
    let first = f.create(1, Behaviour::Idle).await;
    let second = within("create", f.sandbox.create(&(f.spec)(1, Behaviour::Idle))).await;
    assert!(matches!(second, Err(SandboxError::Failed { .. })), "a slot took a second container: {second:?}");
    assert_eq!(f.listed().await, std::slice::from_ref(&first.id), "the refused container changed something");
    f.destroy(&first.id).await;
    let again = f.create(1, Behaviour::Idle).await;
    assert_ne!(again.id, first.id);
    f.destroy(&again.id).await;
}

/// Every call but `destroy` says so.
pub async fn what_is_unknown_is_not_found(f: &Fixture<'_>) {
    let id = SandboxId("0123456789abcdef".to_owned());
    let limits = (f.spec)(1, Behaviour::Idle).limits;
    let is_not_found = |result: Result<(), SandboxError>, call: &str| {
        assert!(matches!(result, Err(SandboxError::NotFound { .. })), "{call}: {result:?}");
    };
    is_not_found(within("freeze", f.sandbox.freeze(&id)).await, "freeze");
    is_not_found(within("thaw", f.sandbox.thaw(&id)).await, "thaw");
    is_not_found(within("resize", f.sandbox.resize(&id, &limits)).await, "resize");
    is_not_found(within("wait", f.sandbox.wait(&id)).await.map(|_| ()), "wait");
    is_not_found(within("usage", f.sandbox.usage(&id)).await.map(|_| ()), "usage");
    is_not_found(within("output", f.sandbox.output(&id)).await.map(|_| ()), "output");
    f.destroy(&id).await;
}

/// Whether the container ends before or after the question.
pub async fn wait_tells_the_exit_code(f: &Fixture<'_>) {
    for code in [0, 7] {
        let made = f.create(1, Behaviour::Exit(code)).await;
        let expected = Exit { code: Some(code), out_of_memory: false };
        assert_eq!(f.wait(&made.id).await, expected);
        assert_eq!(f.wait(&made.id).await, expected, "the second time");
        f.destroy(&made.id).await;
    }
}

/// A cancelled wait loses nothing, and several may wait.
pub async fn wait_can_be_cancelled_and_shared(f: &Fixture<'_>) {
    let made = f.create(1, Behaviour::Idle).await;
    for _ in 0..2 {
        let early = timeout(QUIET, f.sandbox.wait(&made.id)).await;
        assert!(early.is_err(), "an idle container has ended: {early:?}");
    }
    let (a, b, ()) = within("wait", async {
        tokio::join!(f.sandbox.wait(&made.id), f.sandbox.wait(&made.id), async {
            tokio::time::sleep(QUIET / 10).await;
            f.destroy(&made.id).await;
        })
    })
    .await;
    a.expect("first waiter");
    b.expect("second waiter");
}

/// Nobody waits for ever for a container that was taken away.
pub async fn wait_ends_when_destroyed(f: &Fixture<'_>) {
    let made = f.create(1, Behaviour::Idle).await;
    let (exit, ()) = within("wait", async { tokio::join!(f.sandbox.wait(&made.id), f.destroy(&made.id)) }).await;
    let exit =
        exit.or_else(|e| if matches!(e, SandboxError::NotFound { .. }) { Ok(Exit::default()) } else { Err(e) }).expect("wait");
    assert!(!exit.out_of_memory);
    assert_ne!(exit.code, Some(0), "a kill is no success");
}

/// What has ended is no longer there, and its slot is free.
pub async fn list_removes_what_has_ended(f: &Fixture<'_>) {
    let made = f.create(1, Behaviour::Exit(0)).await;
    f.wait(&made.id).await;
    assert!(f.listed().await.is_empty());
    let again = f.create(1, Behaviour::Idle).await;
    assert_eq!(f.listed().await, std::slice::from_ref(&again.id));
    f.destroy(&again.id).await;
}

/// Freezing and thawing may be asked for in any order.
pub async fn frozen_and_thawed_twice_over(f: &Fixture<'_>) {
    let made = f.create(1, Behaviour::Idle).await;
    within("thaw", f.sandbox.thaw(&made.id)).await.expect("thaw what is not frozen");
    for _ in 0..2 {
        within("freeze", f.sandbox.freeze(&made.id)).await.expect("freeze");
        within("freeze", f.sandbox.freeze(&made.id)).await.expect("freeze what is frozen");
        assert_eq!(f.listed().await, std::slice::from_ref(&made.id), "a frozen container is still there");
        within("usage", f.sandbox.usage(&made.id)).await.expect("usage of what is frozen");
        within("thaw", f.sandbox.thaw(&made.id)).await.expect("thaw");
    }
    f.destroy(&made.id).await;
}

/// Without waiting for a thaw.
pub async fn a_frozen_container_can_be_destroyed(f: &Fixture<'_>) {
    let made = f.create(1, Behaviour::Idle).await;
    within("freeze", f.sandbox.freeze(&made.id)).await.expect("freeze");
    timeout(Duration::from_secs(8), f.destroy(&made.id)).await.expect("destroying a frozen container takes as long as any");
    assert!(f.listed().await.is_empty());
}

/// Up, down, and back.
pub async fn resizes_while_running(f: &Fixture<'_>) {
    let made = f.create(1, Behaviour::Idle).await;
    let limits = (f.spec)(1, Behaviour::Idle).limits;
    for memory_mb in [limits.memory_mb * 2, limits.memory_mb / 2 + limits.memory_mb, limits.memory_mb] {
        let wanted = Limits { memory_mb, cpu_millis: limits.cpu_millis / 2 + 100, ..limits };
        within("resize", f.sandbox.resize(&made.id, &wanted)).await.expect("resize");
    }
    f.destroy(&made.id).await;
}

/// A living process uses memory and counts as one.
pub async fn tells_what_is_used(f: &Fixture<'_>) {
    let made = f.create(1, Behaviour::Idle).await;
    // A process that was just made may not have its memory yet.
    let mut usage = within("usage", f.sandbox.usage(&made.id)).await.expect("usage");
    for _ in 0..200 {
        if usage.memory_bytes > 0 {
            break;
        }
        tokio::time::sleep(std::time::Duration::from_millis(10)).await;
        usage = within("usage", f.sandbox.usage(&made.id)).await.expect("usage");
    }
    assert!(usage.memory_bytes > 0 && usage.pids >= 1, "{usage:?}");
    let later = within("usage", f.sandbox.usage(&made.id)).await.expect("usage");
    assert!(later.cpu >= usage.cpu, "CPU time ran backwards");
    f.destroy(&made.id).await;
    let ended = f.create(1, Behaviour::Exit(0)).await;
    f.wait(&ended.id).await;
    assert_eq!(within("usage", f.sandbox.usage(&ended.id)).await.expect("usage of what has ended").pids, 0);
    f.destroy(&ended.id).await;
}

/// Bounded, and the end of it rather than the beginning.
pub async fn output_is_the_tail(f: &Fixture<'_>) {
    let text = format!("{}the last line\n", "a line of forty characters, more or less\n".repeat(4_000));
    let made = f.create(1, Behaviour::Print(text.clone())).await;
    f.wait(&made.id).await;
    let output = within("output", f.sandbox.output(&made.id)).await.expect("output");
    assert!(output.len() <= 64 * 1024, "{} bytes", output.len());
    assert!(output.len() > 16 * 1024, "only {} bytes", output.len());
    assert!(text.ends_with(&output), "the output is not the end of what was printed");
    f.destroy(&made.id).await;
    let silent = f.create(1, Behaviour::Exit(0)).await;
    f.wait(&silent.id).await;
    assert_eq!(within("output", f.sandbox.output(&silent.id)).await.expect("output"), "");
    f.destroy(&silent.id).await;
}

/// Each gets its own.
pub async fn many_are_made_simultaneously(f: &Fixture<'_>) {
    let slots = [1, 2, 3, 4];
    let made = within("create", futures_util::future::join_all(slots.map(|slot| f.create(slot, Behaviour::Idle)))).await;
    let ids: HashSet<_> = made.iter().map(|r| r.id.clone()).collect();
    let pids: HashSet<_> = made.iter().map(|r| r.pid).collect();
    assert_eq!((ids.len(), pids.len()), (slots.len(), slots.len()));
    assert_eq!(f.listed().await.into_iter().collect::<HashSet<_>>(), ids);
    within("destroy", futures_util::future::join_all(made.iter().map(|r| f.destroy(&r.id)))).await;
}

/// Arguments for a runtime are refused, and the slot is as free as before.
pub async fn a_failed_create_leaves_nothing(f: &Fixture<'_>) {
    let mut spec = (f.spec)(1, Behaviour::Idle);
    spec.args.push("--inspect".to_owned());
    let refused = within("create", f.sandbox.create(&spec)).await;
    assert!(matches!(refused, Err(SandboxError::Failed { .. })), "{refused:?}");
    assert!(f.listed().await.is_empty());
    let made = f.create(1, Behaviour::Idle).await;
    f.destroy(&made.id).await;
}

/// An operator reads it.
pub async fn describes_itself(f: &Fixture<'_>) {
    let description = within("describe", f.sandbox.describe()).await.expect("describe");
    assert!(!description.engine.is_empty());
    assert!(
        description.warnings.iter().all(|w| w.contains(' ')),
        "a warning is a sentence with a remedy: {:?}",
        description.warnings
    );
}
