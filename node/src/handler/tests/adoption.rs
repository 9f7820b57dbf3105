use super::*;
use crate::handler::Start;
use hearth_sandbox::Sandbox;

async fn state_written(f: &Fixture, container: &LiveContainer, text: &str) {
    let path = f.slot(container).join("state.json");
    eventually("the state is written", || std::fs::read_to_string(&path).is_ok_and(|s| s.contains(text))).await;
}

#[tokio::test]
async fn claimed_containers_live_on_and_all_else_goes() {
    let f = Fixture::new().await;
    let first = f.handler(pool_of(2)).await;
    let servable = record("acme/main/hello").done();
    let lease = first.acquire(&servable).await.unwrap();
    let id = lease.container().sandbox_id.clone();
    state_written(&f, lease.container(), "hello").await;
    drop(lease);
    eventually("the pool is filled", || first.status().pool.level == 2).await;
    first.shutdown(true).await;
    assert_eq!(f.sandbox.running(), 1, "what nobody claimed went at once");
    std::fs::create_dir_all(f.dir.path().join("slots/1999/tree")).unwrap();
    drop(first);

    let second = f.handler(on_demand()).await;
    assert_eq!(second.status().counts.adopted, 1);
    let lease = second.try_acquire(&servable).unwrap().expect("warm from the first request on");
    assert_eq!((lease.container().sandbox_id.clone(), lease.start()), (id, Start::Warm));
    assert_eq!(*f.modules.adopted.lock(), [lease.container().slot.number]);
    eventually("the dead slot is cleaned", || f.slots().len() == 1).await;
    // It is kept by the new process as by the old one.
    let other = second.acquire(&record("acme/main/other").done()).await.unwrap();
    assert_eq!(other.container().id(), lease.container().id());
    f.sandbox.crash(&lease.container().sandbox_id, hearth_sandbox::Exit { code: Some(5), out_of_memory: false });
    assert_eq!(lease.container().exited().await.code, Some(5));
    assert_ne!(second.acquire(&servable).await.unwrap().container().id(), lease.container().id());
}

#[tokio::test]
async fn a_process_that_was_killed_leaves_no_orphans() {
    let f = Fixture::new().await;
    let first = f.handler(pool_of(2)).await;
    let lease = first.acquire(&record("acme/main/hello").done()).await.unwrap();
    state_written(&f, lease.container(), "hello").await;
    let sandbox_id = lease.container().sandbox_id.clone();
    eventually("the pool is filled", || first.status().pool.level == 2).await;
    first.shared.stop.cancel();
    eventually("its tasks have ended", || first.shared.tasks.is_empty() || first.shared.stop.is_cancelled()).await;
    f.sandbox.fake().freeze(&sandbox_id).await.unwrap();

    let second = f.handler(on_demand()).await;
    let counts = second.status().counts;
    assert_eq!((counts.adopted, counts.orphans), (1, 2), "the pool's are orphans");
    assert!(!f.sandbox.fake().is_frozen(&sandbox_id).unwrap());
    eventually("they are gone", || f.sandbox.running() == 1 && f.slots().len() == 1).await;
}

#[tokio::test]
async fn a_container_that_does_not_know_us_or_is_not_written_down_is_not_adopted() {
    let f = Fixture::new().await;
    let first = f.handler(on_demand()).await;
    let mut slots = Vec::new();
    for tenant in ["forged", "unwritten", "mute", "good"] {
        let lease = first.acquire(&record(&format!("{tenant}/main/hello")).done()).await.unwrap();
        state_written(&f, lease.container(), "hello").await;
        slots.push((f.slot(lease.container()), lease.container().sandbox_id.clone()));
    }
    first.shutdown(true).await;
    // Another secret, as if somebody else sat behind the socket.
    let state = slots[0].0.join("state.json");
    let mut saved: serde_json::Value = serde_json::from_slice(&std::fs::read(&state).unwrap()).unwrap();
    saved["secret"] = "0".repeat(64).into();
    std::fs::write(&state, saved.to_string()).unwrap();
    std::fs::remove_file(slots[1].0.join("state.json")).unwrap();
    f.sandbox.get_stuck(&slots[2].1);

    let second = f.handler(on_demand()).await;
    assert_eq!((second.status().counts.adopted, second.status().counts.orphans), (1, 3));
    eventually("they are gone", || f.sandbox.running() == 1).await;
    assert!(second.try_acquire(&record("good/main/hello").done()).unwrap().is_some());
    assert!(second.try_acquire(&record("mute/main/hello").done()).unwrap().is_none());
}

#[tokio::test]
async fn what_was_being_loaded_when_the_process_ended_is_loaded_again() {
    let f = Fixture::new().await;
    let first = f.handler(on_demand()).await;
    let lease = first.acquire(&record("acme/main/hello").done()).await.unwrap();
    state_written(&f, lease.container(), "hello").await;
    let state = f.slot(lease.container()).join("state.json");
    let before = std::fs::read(&state).unwrap();
    first.acquire(&record("acme/main/later").done()).await.unwrap();
    state_written(&f, lease.container(), "later").await;
    first.shutdown(true).await;
    std::fs::write(&state, before).unwrap();

    let second = f.handler(on_demand()).await;
    let later = record("acme/main/later").done();
    assert!(second.try_acquire(&later).unwrap().is_none());
    let again = second.acquire(&later).await.unwrap();
    assert_eq!(again.container().slot.number, f.sandbox.slot_of(&again.container().sandbox_id));
    assert_eq!(second.status().counts.adopted, 1);
    let told = f.sandbox.told();
    assert!(told.iter().any(|(_, t)| matches!(t, scripted::Told::Unload(name, _) if name.as_str() == "later")), "{told:?}");
}

#[tokio::test]
async fn start_up_fails_without_an_engine_and_with_a_contradiction() {
    let f = Fixture::new().await;
    f.sandbox.fake().fail_next(hearth_sandbox::fake::Call::Describe, hearth_sandbox::fake::Failure::Unreachable);
    assert!(matches!(f.try_handler(on_demand()).await, Err(crate::handler::StartError::Sandbox(_))));
    f.sandbox.fake().fail_next(hearth_sandbox::fake::Call::List, hearth_sandbox::fake::Failure::Unreachable);
    assert!(matches!(f.try_handler(on_demand()).await, Err(crate::handler::StartError::Sandbox(_))));
    let bad = Config { pool_size: 9, pool_max: 3, ..Config::default() };
    assert!(matches!(f.try_handler(bad).await, Err(crate::handler::StartError::Config { .. })));
}
