use super::*;
use crate::handler::{AcquireError, Start};
use futures_util::future::join_all;
use hearth_model::function::NodeVersion;
use hearth_sandbox::fake::{Call, Injection};

#[tokio::test]
async fn the_first_request_is_cold_and_the_second_warm() {
    let f = Fixture::new().await;
    let handler = f.handler(pool_of(1)).await;
    let servable = record("acme/main/hello").memory(512, 1).done();
    eventually("the pool is filled", || handler.status().pool.level == 1).await;
    assert!(handler.try_acquire(&servable).unwrap().is_none());
    let lease = handler.acquire(&servable).await.unwrap();
    assert_eq!(lease.start(), Start::Cold);
    let container = Arc::clone(lease.container());
    assert_eq!(container.path().to_string(), "acme/main");
    let limits = f.sandbox.fake().limits(&container.sandbox_id).unwrap();
    assert_eq!((limits.memory_mb, limits.cpu_shares), (512, 1_024), "it has its tenant's limits");
    let dir = f.slot(&container).join("tree/f/hello@1");
    assert_eq!(std::fs::read_to_string(dir.join("index.js")).unwrap(), "module.exports = cb => cb()");
    container.connect().await.unwrap();
    drop(lease);
    let lease = handler.try_acquire(&servable).unwrap().unwrap();
    assert_eq!((lease.start(), lease.container().id()), (Start::Warm, container.id()));
    eventually("the pool is filled again", || handler.status().pool.level == 1).await;
    let counts = handler.status().counts;
    assert_eq!((counts.claims_from_pool, counts.claims_waited, counts.loads), (1, 0, 1));
}

#[tokio::test]
async fn a_thousand_first_requests_make_one_claim_and_one_load() {
    let f = Fixture::new().await;
    let handler = f.handler(on_demand()).await;
    let servable = record("acme/main/hello").done();
    let leases = join_all((0..1_000).map(|_| handler.acquire(&servable))).await;
    let ids: std::collections::HashSet<u64> = leases.iter().map(|l| l.as_ref().unwrap().container().id()).collect();
    assert_eq!(ids.len(), 1);
    assert_eq!((f.sandbox.count(Call::Create), handler.status().counts.loads), (1, 1));
    assert!(leases.iter().all(|l| l.as_ref().unwrap().start() == Start::Cold));
    assert_eq!(handler.status().waiting_requests, 0);
    assert_eq!(handler.status().containers[0].requests, 1_000);
    drop(leases);
    assert_eq!(handler.status().containers[0].requests, 0);
}

#[tokio::test]
async fn a_request_that_goes_away_takes_nothing_from_the_others() {
    let f = Fixture::new().await;
    let handler = f.handler(on_demand()).await;
    f.sandbox.fake().inject(Call::Create, Injection { delay: Duration::from_millis(20), failure: None });
    let servable = record("acme/main/hello").done();
    let mut first = Box::pin(handler.acquire(&servable));
    assert!(futures_util::poll!(&mut first).is_pending());
    let second = handler.acquire(&servable);
    drop(first);
    second.await.unwrap();
    assert_eq!(f.sandbox.count(Call::Create), 1);
}

#[tokio::test]
async fn waiting_requests_are_bounded_at_the_bound_and_one_past() {
    let f = Fixture::new().await;
    let handler = f.handler(Config { wait_queue_max: 3, ..on_demand() }).await;
    let hangs = record("acme/main/hangs").done();
    let mut waiting: Vec<_> = (0..3).map(|_| Box::pin(handler.acquire(&hangs))).collect();
    for request in &mut waiting {
        assert!(futures_util::poll!(request).is_pending());
    }
    assert_eq!(handler.status().waiting_requests, 3);
    assert!(matches!(handler.acquire(&hangs).await, Err(AcquireError::QueueFull { waiting: 3 })));
    waiting.pop();
    let mut again = Box::pin(handler.acquire(&hangs));
    assert!(futures_util::poll!(&mut again).is_pending(), "a place became free");
}

#[tokio::test]
async fn claims_that_wait_are_bounded_at_the_bound_and_one_past() {
    let f = Fixture::new().await;
    let handler = f.handler(Config { claims_waiting_max: 2, create_concurrency: 1, ..on_demand() }).await;
    f.sandbox.fake().inject(Call::Create, Injection { delay: LIMIT, failure: None });
    let servables: Vec<_> = (0..3).map(|n| record(&format!("t{n}/main/hello")).done()).collect();
    let (mut a, mut b) = (Box::pin(handler.acquire(&servables[0])), Box::pin(handler.acquire(&servables[1])));
    assert!(futures_util::poll!(&mut a).is_pending() && futures_util::poll!(&mut b).is_pending());
    eventually("both wait", || handler.status().waiting_claims == 2).await;
    assert!(matches!(handler.acquire(&servables[2]).await, Err(AcquireError::NoCapacity { .. })));
}

#[tokio::test]
async fn a_claim_has_a_deadline() {
    let f = Fixture::new().await;
    let handler = f.handler(Config { claim_timeout: Duration::from_millis(30), ..on_demand() }).await;
    f.sandbox.fake().inject(Call::Create, Injection { delay: Duration::from_millis(200), failure: None });
    let servable = record("acme/main/hello").done();
    assert!(matches!(handler.acquire(&servable).await, Err(AcquireError::NoCapacity { .. })));
    // What was made in vain serves the next.
    eventually("the container came all the same", || handler.status().counts.created == 1).await;
    handler.acquire(&servable).await.unwrap();
}

#[tokio::test]
async fn slots_are_bounded_and_an_idle_container_makes_room() {
    let f = Fixture::new().await;
    let handler = f.handler(Config { containers_max: 2, claim_timeout: Duration::from_millis(300), ..on_demand() }).await;
    let servables: Vec<_> = (0..3).map(|n| record(&format!("t{n}/main/hello")).done()).collect();
    let first = handler.acquire(&servables[0]).await.unwrap();
    let second = handler.acquire(&servables[1]).await.unwrap();
    assert!(matches!(handler.acquire(&servables[2]).await, Err(AcquireError::NoCapacity { .. })), "both are busy");
    let second_id = second.container().id();
    drop(second);
    let third = handler.acquire(&servables[2]).await.unwrap();
    assert_ne!(third.container().id(), second_id);
    assert!(first.container().is_alive() && f.sandbox.running() == 2);
    assert_eq!(handler.status().counts.ended["pressure"], 1);
}

#[tokio::test]
async fn concurrency_is_bounded_at_the_bound_and_one_past() {
    let f = Fixture::new().await;
    let handler = f.handler(on_demand()).await;
    let servable = record("acme/main/hello").concurrency(2).done();
    let first = handler.acquire(&servable).await.unwrap();
    let second = handler.try_acquire(&servable).unwrap().unwrap();
    assert!(matches!(handler.try_acquire(&servable), Err(AcquireError::Concurrency { limit: 2 })));
    assert!(matches!(handler.acquire(&servable).await, Err(AcquireError::Concurrency { limit: 2 })));
    // Another function of the container counts as well.
    let other = record("acme/main/other").concurrency(2).done();
    assert!(matches!(handler.acquire(&other).await, Err(AcquireError::Concurrency { limit: 2 })));
    drop(first);
    let _third = handler.try_acquire(&servable).unwrap().unwrap();
    drop(second);
}

#[tokio::test]
async fn functions_share_their_container_and_tenants_do_not() {
    let f = Fixture::new().await;
    let handler = f.handler(on_demand()).await;
    let id = async |path: &str| handler.acquire(&record(path).done()).await.unwrap().container().id();
    let a = id("acme/main/a").await;
    assert_eq!(id("acme/main/b").await, a);
    assert_ne!(id("acme/other/a").await, a);
    assert_ne!(id("evil/main/a").await, a);
    assert_eq!(handler.status().counts.loads, 4);
}

#[tokio::test]
async fn an_update_loads_beside_the_old_version_which_goes_when_it_is_done() {
    let f = Fixture::new().await;
    let handler = f.handler(on_demand()).await;
    let (one, two) = (record("acme/main/hello").done(), record("acme/main/hello").version(2, 2).done());
    let old = handler.acquire(&one).await.unwrap();
    let new = handler.acquire(&two).await.unwrap();
    assert_eq!(new.container().id(), old.container().id());
    let container = Arc::clone(new.container());
    let tree = f.slot(&container).join("tree/f");
    handler.shared.tick(tokio::time::Instant::now());
    assert_eq!(files_of(&tree), ["hello@1", "hello@2"], "a request of the old one runs");
    // A record that is older than what is live is served and changes nothing.
    let stale = handler.acquire(&one).await.unwrap();
    assert!(handler.try_acquire(&two).unwrap().is_some());
    drop((old, new, stale));
    handler.shared.tick(tokio::time::Instant::now());
    eventually("the old one is forgotten", || files_of(&tree) == ["hello@2"]).await;
    let told = f.sandbox.told();
    assert!(told.iter().any(|(_, t)| matches!(t, scripted::Told::Unload(_, VersionNumber(1)))), "{told:?}");
    // A rollback loads it again.
    let back = record("acme/main/hello").version(1, 3).done();
    assert_eq!(handler.acquire(&back).await.unwrap().container().id(), container.id());
    assert!(handler.try_acquire(&back).unwrap().is_some());
    handler.shared.tick(tokio::time::Instant::now());
    eventually("the other one is forgotten", || files_of(&tree) == ["hello@1"]).await;
}

#[tokio::test]
async fn a_function_made_anew_never_meets_code_of_the_one_before() {
    let f = Fixture::new().await;
    let handler = f.handler(on_demand()).await;
    let old = record("acme/main/hello").done();
    let id = handler.acquire(&old).await.unwrap().container().id();
    let mut again = record("acme/main/hello");
    again.0.function.created_at = Timestamp(2_000);
    again.live().created_at = Timestamp(2_000);
    let again = again.done();
    assert!(handler.try_acquire(&again).unwrap().is_none());
    assert_ne!(handler.acquire(&again).await.unwrap().container().id(), id);
    assert!(handler.acquire(&old).await.is_err(), "what somebody has not yet forgotten changes nothing");
    assert!(handler.try_acquire(&again).unwrap().is_some());
}

#[tokio::test]
async fn other_settings_mean_another_container_and_the_old_one_finishes() {
    let f = Fixture::new().await;
    let handler = f.handler(on_demand()).await;
    let small = record("acme/main/hello").memory(128, 1).done();
    let large = record("acme/main/hello").memory(256, 2).done();
    let old = handler.acquire(&small).await.unwrap();
    let new = handler.acquire(&large).await.unwrap();
    assert_ne!(old.container().id(), new.container().id());
    assert!(old.container().is_alive(), "it finishes");
    // A stale record is served by what there is, and does not bring the old settings back.
    assert_eq!(handler.acquire(&small).await.unwrap().container().id(), new.container().id());
    let before = Arc::clone(old.container());
    drop(old);
    before.exited().await;
    assert_eq!(handler.status().counts.ended["replaced"], 1);
    let mut node = record("acme/main/hello").memory(256, 3);
    node.0.container.node = NodeVersion::V22;
    let node = handler.acquire(&node.done()).await.unwrap();
    assert_eq!(node.container().shape.node, NodeVersion::V22);
}

#[tokio::test]
async fn another_concurrency_needs_no_other_container() {
    let f = Fixture::new().await;
    let handler = f.handler(on_demand()).await;
    let one = handler.acquire(&record("acme/main/hello").done()).await.unwrap();
    let mut other = record("acme/main/hello").concurrency(7);
    other.0.container.generation = 2;
    assert_eq!(handler.acquire(&other.done()).await.unwrap().container().id(), one.container().id());
}

#[tokio::test]
async fn secrets_are_opened_for_the_runtime_and_written_nowhere() {
    let f = Fixture::new().await;
    let handler = f.handler(on_demand()).await;
    let mut with = record("acme/main/hello");
    let path = with.0.function.path.clone();
    let sealed = f.stores.keyring.seal(&path, "KEY", "canary-7319").await.unwrap();
    with.live().secrets.insert("KEY".into(), sealed.clone());
    let lease = handler.acquire(&with.done()).await.unwrap();
    let told = f.sandbox.told();
    assert!(told.iter().any(|(_, t)| matches!(t, scripted::Told::Load(_, _, s) if s["KEY"] == "canary-7319")), "{told:?}");
    let slot = f.slot(lease.container());
    eventually("the state is written", || slot.join("state.json").exists()).await;
    for file in ["state.json", "tree/f/hello@1/index.js"] {
        assert!(!std::fs::read_to_string(slot.join(file)).unwrap().contains("canary-7319"), "{file}");
    }
    // A value sealed for another function does not open here.
    let mut moved = record("acme/main/other");
    moved.live().secrets.insert("KEY".into(), sealed);
    assert!(matches!(handler.acquire(&moved.done()).await, Err(AcquireError::Fetch { what: "secrets", .. })));
}

#[tokio::test]
async fn a_missing_module_fails_the_function_and_not_its_container() {
    let f = Fixture::new().await;
    let handler = f.handler(on_demand()).await;
    let bad = record("acme/main/bad").modules(&["lodash", "missing"]).done();
    match handler.acquire(&bad).await {
        Err(AcquireError::Modules { module, .. }) => assert_eq!(module, "missing@1.0.0"),
        other => panic!("{other:?}"),
    }
    let good = record("acme/main/good").modules(&["lodash"]).done();
    let lease = handler.acquire(&good).await.unwrap();
    assert_eq!(f.sandbox.count(Call::Create), 1);
    assert!(f.modules.attached.lock().contains(&(lease.container().slot.number, "f/good@1".into(), vec!["lodash".into()])));
}

#[tokio::test]
async fn a_function_without_a_version_is_not_ready() {
    let f = Fixture::new().await;
    let handler = f.handler(on_demand()).await;
    let mut none = record("acme/main/hello").0;
    none.live = None;
    assert!(matches!(handler.acquire(&Arc::new(none)).await, Err(AcquireError::NotReady)));
    assert_eq!(f.sandbox.count(Call::Create), 0);
}
