use super::*;
use crate::handler::AcquireError;
use hearth_sandbox::{Exit, fake::{Call, Failure}};

#[tokio::test]
async fn a_dead_container_is_replaced_and_tells_how_it_ended() {
    let f = Fixture::new().await;
    let handler = f.handler(on_demand()).await;
    let servable = record("acme/main/hello").done();
    let lease = handler.acquire(&servable).await.unwrap();
    let container = Arc::clone(lease.container());
    f.sandbox.crash(&container.sandbox_id, Exit { code: Some(7), out_of_memory: false });
    assert_eq!(container.exited().await, Exit { code: Some(7), out_of_memory: false });
    assert!(!container.is_alive() && handler.try_acquire(&servable).unwrap().is_none());
    let next = handler.acquire(&servable).await.unwrap();
    assert_ne!(next.container().id(), container.id());
    drop(lease);
    eventually("the old slot is free again", || handler.status().slots_dirty == 0).await;
    assert_eq!(f.slots().len(), 1);
    assert_eq!(handler.status().counts.ended["exited"], 1);
}

#[tokio::test]
async fn running_out_of_memory_is_told_apart() {
    let f = Fixture::new().await;
    let handler = f.handler(on_demand()).await;
    let lease = handler.acquire(&record("acme/main/hello").done()).await.unwrap();
    f.sandbox.crash(&lease.container().sandbox_id, Exit { code: Some(137), out_of_memory: true });
    assert!(lease.container().exited().await.out_of_memory);
    assert_eq!(handler.status().counts.ended["out-of-memory"], 1);
    match handler.acquire(&record("acme/main/bloats").done()).await {
        Err(AcquireError::Crashed { out_of_memory: true, .. }) => {}
        other => panic!("{other:?}"),
    }
}

#[tokio::test]
async fn code_that_does_not_load_is_the_tenants_fault_and_costs_no_container() {
    let f = Fixture::new().await;
    let handler = f.handler(Config { load_retry_after: Duration::from_secs(60), ..on_demand() }).await;
    let fails = record("acme/main/fails").done();
    for _ in 0..3 {
        match handler.acquire(&fails).await {
            Err(AcquireError::Load { message }) => assert!(message.contains("SyntaxError")),
            other => panic!("{other:?}"),
        }
    }
    assert_eq!(f.sandbox.told().len(), 1, "it is believed for a while");
    handler.acquire(&record("acme/main/good").done()).await.unwrap();
    assert_eq!(f.sandbox.count(Call::Create), 1);
}

#[tokio::test]
async fn a_failed_load_is_tried_again_after_a_while() {
    let f = Fixture::new().await;
    let handler = f.handler(Config { load_retry_after: Duration::ZERO, ..on_demand() }).await;
    let fails = record("acme/main/fails").done();
    for _ in 0..2 {
        assert!(matches!(handler.acquire(&fails).await, Err(AcquireError::Load { .. })));
    }
    assert_eq!(f.sandbox.told().len(), 2);
}

#[tokio::test]
async fn a_load_has_a_deadline_and_its_container_goes() {
    let f = Fixture::new().await;
    let handler = f.handler(Config { load_timeout: Duration::from_millis(50), ..on_demand() }).await;
    let hangs = record("acme/main/hangs").done();
    assert!(matches!(handler.acquire(&hangs).await, Err(AcquireError::Load { .. })));
    eventually("the container is gone", || f.sandbox.running() == 0 && f.slots().is_empty()).await;
    assert_eq!(handler.status().counts.ended["load-timeout"], 1);
}

#[tokio::test]
async fn a_request_whose_container_exits_over_it_uses_up_one_container() {
    let f = Fixture::new().await;
    let handler = f.handler(on_demand()).await;
    match handler.acquire(&record("acme/main/exits").done()).await {
        Err(AcquireError::Crashed { detail, out_of_memory: false }) => assert!(detail.contains("code 3"), "{detail}"),
        other => panic!("{other:?}"),
    }
    assert_eq!(f.sandbox.count(Call::Create), 1);
}

#[tokio::test]
async fn one_tenant_cannot_use_up_the_pool_by_crashing() {
    let f = Fixture::new().await;
    let handler = f.handler(Config { claim_burst: 3, claim_interval: Duration::from_secs(3_600), ..on_demand() }).await;
    let exits = record("acme/main/exits").done();
    for _ in 0..50 {
        assert!(matches!(handler.acquire(&exits).await, Err(AcquireError::Crashed { .. })));
    }
    assert_eq!(f.sandbox.count(Call::Create), 3);
    handler.acquire(&record("acme/other/hello").done()).await.unwrap();
}

#[tokio::test]
async fn a_stuck_event_loop_is_replaced_and_a_slow_function_is_not() {
    let f = Fixture::new().await;
    let handler = f.handler(Config { ping_timeout: Duration::from_millis(60), ..on_demand() }).await;
    let servable = record("acme/main/hello").done();
    let lease = handler.acquire(&servable).await.unwrap();
    handler.suspect(lease.container());
    handler.suspect(lease.container());
    eventually("it answered", || !lease.container().suspected.load(std::sync::atomic::Ordering::Relaxed)).await;
    assert!(lease.container().is_alive());
    assert_eq!(handler.status().counts.suspects, 1, "two suspicions, one question");
    f.sandbox.get_stuck(&lease.container().sandbox_id);
    handler.suspect(lease.container());
    assert_eq!(lease.container().exited().await.code, Some(137));
    assert_ne!(handler.acquire(&servable).await.unwrap().container().id(), lease.container().id());
    assert_eq!(handler.status().counts.ended["stuck"], 1);
}

#[tokio::test]
async fn a_container_that_takes_no_connections_is_replaced() {
    let f = Fixture::new().await;
    let handler = f.handler(on_demand()).await;
    let lease = handler.acquire(&record("acme/main/hello").done()).await.unwrap();
    std::fs::remove_file(f.slot(lease.container()).join("run/http.sock")).unwrap();
    handler.suspect(lease.container());
    lease.container().exited().await;
    assert_eq!(handler.status().counts.ended["broken"], 1);
}

#[tokio::test]
async fn a_broken_control_connection_is_opened_again() {
    let f = Fixture::new().await;
    let handler = f.handler(on_demand()).await;
    let lease = handler.acquire(&record("acme/main/hello").done()).await.unwrap();
    f.sandbox.say(&lease.container().sandbox_id, "BREAK").await;
    // Whether it breaks before, under, or after the question: loading twice is loading once.
    let again = handler.acquire(&record("acme/main/again").done()).await.unwrap();
    assert_eq!(again.container().id(), lease.container().id());
}

#[tokio::test]
async fn an_evicted_container_finishes_its_requests() {
    let f = Fixture::new().await;
    let handler = f.handler(on_demand()).await;
    let servable = record("acme/main/hello").done();
    let lease = handler.acquire(&servable).await.unwrap();
    handler.evict(lease.container().path());
    assert!(lease.container().is_alive() && handler.try_acquire(&servable).unwrap().is_none());
    let next = handler.acquire(&servable).await.unwrap();
    assert_ne!(next.container().id(), lease.container().id());
    let container = Arc::clone(lease.container());
    drop(lease);
    container.exited().await;
    assert!(next.container().is_alive());
    handler.evict(&"evil/none/x".parse::<FunctionPath>().unwrap().container_path());
}

#[tokio::test]
async fn an_eviction_during_a_claim_counts_for_what_is_claimed() {
    let f = Fixture::new().await;
    let handler = f.handler(on_demand()).await;
    let servable = record("acme/main/hello").done();
    let mut request = Box::pin(handler.acquire(&servable));
    assert!(futures_util::poll!(&mut request).is_pending());
    handler.evict(&servable.container.path());
    let lease = request.await.unwrap();
    assert_eq!(handler.status().counts.claims_waited + handler.status().counts.claims_from_pool, 2, "the first was for an older state");
    assert!(lease.container().is_alive());
}

#[tokio::test]
async fn retired_containers_do_not_wait_for_ever() {
    let f = Fixture::new().await;
    let handler = f.handler(Config { retire_timeout: Duration::from_millis(20), ..on_demand() }).await;
    let lease = handler.acquire(&record("acme/main/hello").done()).await.unwrap();
    handler.evict(lease.container().path());
    lease.container().exited().await;
}

#[tokio::test]
async fn a_slot_is_free_only_when_its_container_is_gone() {
    let f = Fixture::new().await;
    let handler = f.handler(Config { containers_max: 1, claim_timeout: Duration::from_millis(300), ..on_demand() }).await;
    let lease = handler.acquire(&record("acme/main/hello").done()).await.unwrap();
    for _ in 0..2 {
        f.sandbox.fake().fail_next(Call::Destroy, Failure::Unreachable);
    }
    f.sandbox.crash(&lease.container().sandbox_id, Exit::default());
    lease.container().exited().await;
    eventually("the first try failed", || f.sandbox.count(Call::Destroy) >= 1).await;
    let other = record("evil/main/hello").done();
    assert!(matches!(handler.acquire(&other).await, Err(AcquireError::NoCapacity { .. })));
    assert_eq!((handler.status().slots_free, handler.status().slots_dirty), (0, 1));
    eventually("it is tried again", || handler.status().slots_dirty == 0).await;
    handler.acquire(&other).await.unwrap();
}

#[tokio::test]
async fn a_shutdown_leaves_nothing_behind() {
    let f = Fixture::new().await;
    let handler = f.handler(pool_of(2)).await;
    let servable = record("acme/main/hello").done();
    let lease = handler.acquire(&servable).await.unwrap();
    handler.shutdown(false).await;
    assert_eq!((f.sandbox.running(), f.slots().len()), (0, 0));
    assert!(!lease.container().is_alive());
    assert!(matches!(handler.try_acquire(&servable), Err(AcquireError::Draining)));
    assert!(matches!(handler.acquire(&servable).await, Err(AcquireError::Draining)));
}
