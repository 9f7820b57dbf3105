use super::*;
use crate::handler::AcquireError;
use hearth_model::function::NodeVersion;
use hearth_sandbox::fake::{Call, Failure};
use scripted::Told;

#[tokio::test]
async fn the_pool_is_filled_and_its_containers_weigh_little() {
    let f = Fixture::new().await;
    let handler = f.handler(pool_of(3)).await;
    eventually("the pool is filled", || handler.status().pool.level == 3).await;
    let listed = hearth_sandbox::Sandbox::list(f.sandbox.fake()).await.unwrap();
    for running in listed {
        assert_eq!(f.sandbox.fake().limits(&running.id).unwrap().cpu_shares, 64);
    }
    assert_eq!(f.sandbox.running(), 3);
}

#[tokio::test]
async fn a_container_that_ends_in_the_pool_is_replaced_and_never_claimed() {
    let f = Fixture::new().await;
    let handler = f.handler(pool_of(1)).await;
    eventually("the pool is filled", || handler.status().pool.level == 1).await;
    let dead = hearth_sandbox::Sandbox::list(f.sandbox.fake()).await.unwrap()[0].id.clone();
    f.sandbox.crash(&dead, hearth_sandbox::Exit::default());
    let lease = handler.acquire(&record("acme/main/hello").done()).await;
    // The claim may have come before the end was known; then it ended with it.
    if let Ok(lease) = &lease {
        assert_ne!(lease.container().sandbox_id, dead);
    }
    eventually("another is there", || handler.status().pool.level == 1 && handler.status().slots_dirty == 0).await;
    handler.acquire(&record("acme/main/hello").done()).await.unwrap();
}

#[tokio::test]
async fn failures_open_the_circuit_and_nobody_waits_in_vain() {
    let f = Fixture::new().await;
    for _ in 0..1_000 {
        f.sandbox.fake().fail_next(Call::Create, Failure::Unreachable);
    }
    let config = Config { circuit_pause: Duration::from_millis(40), circuit_pause_max: Duration::from_secs(60), ..pool_of(2) };
    let handler = f.handler(config).await;
    let servable = record("acme/main/hello").done();
    let began = std::time::Instant::now();
    while began.elapsed() < Duration::from_millis(500) {
        match handler.acquire(&servable).await {
            Err(AcquireError::NoCapacity { .. }) => {}
            other => panic!("{other:?}"),
        }
    }
    assert!(f.sandbox.count(Call::Create) <= 8, "{} calls in half a second", f.sandbox.count(Call::Create));
    assert!(handler.status().pool.circuit_open && handler.status().pool.last_error.is_some());
    eventually("slots are clean", || handler.status().slots_dirty == 0).await;
}

#[tokio::test]
async fn after_a_failure_it_goes_on() {
    let f = Fixture::new().await;
    f.sandbox.fake().fail_next(Call::Create, Failure::Refused("busy".into()));
    let handler = f.handler(Config { circuit_pause: Duration::from_millis(5), ..on_demand() }).await;
    handler.acquire(&record("acme/main/hello").done()).await.unwrap();
    assert!(!handler.status().pool.circuit_open);
}

#[tokio::test]
async fn another_node_is_made_on_demand() {
    let f = Fixture::new().await;
    let handler = f.handler(pool_of(1)).await;
    let mut old = record("acme/main/hello");
    old.0.container.node = NodeVersion::V22;
    let lease = handler.acquire(&old.done()).await.unwrap();
    let listed = hearth_sandbox::Sandbox::list(f.sandbox.fake()).await.unwrap();
    let running = listed.iter().find(|r| r.id == lease.container().sandbox_id).unwrap();
    assert_eq!(running.node, NodeVersion::V22);
    assert_eq!(handler.status().counts.claims_waited, 1);
}

#[tokio::test]
async fn popular_modules_are_loaded_ahead_and_only_for_those_who_have_them() {
    let f = Fixture::new().await;
    *f.modules.popular.lock() = vec![modules(&["express", "lodash"]), modules(&["axios"]), modules(&["third"])];
    let handler = f.handler(pool_of(4)).await;
    eventually("half of the pool is preloaded", || handler.status().pool.level == 4 && handler.status().pool.preloaded == 2).await;
    let preloaded_with = |id: &str| {
        let told = f.sandbox.told();
        told.iter().any(|(i, t)| i == id && matches!(t, Told::Preload(m) if m == &["/hearth/m/express", "/hearth/m/lodash"]))
    };
    let lease = handler.acquire(&record("acme/main/shop").modules(&["lodash", "stripe", "express"]).done()).await.unwrap();
    assert!(preloaded_with(&lease.container().sandbox_id.0));
    assert_eq!(files_of(&f.slot(lease.container()).join("tree/f")), ["shop@1"], "what stood for a function is gone");
    let other = handler.acquire(&record("evil/main/plain").modules(&["lodash"]).done()).await.unwrap();
    assert!(!f.sandbox.told().iter().any(|(i, t)| *i == other.container().sandbox_id.0 && matches!(t, Told::Preload(_))));
    assert_eq!(handler.status().counts.claims_preloaded, 1);
    eventually("the set is there again", || handler.status().pool.preloaded == 2).await;
}

#[tokio::test]
async fn a_set_that_cannot_be_loaded_ahead_is_left_alone() {
    let f = Fixture::new().await;
    *f.modules.popular.lock() = vec![modules(&["broken"]), modules(&["missing"])];
    let handler = f.handler(pool_of(4)).await;
    eventually("the pool is filled with others", || handler.status().pool.level == 4 && handler.status().slots_dirty == 0).await;
    assert_eq!(handler.status().pool.preloaded, 0);
    assert_eq!(f.sandbox.running(), 4);
    assert_eq!(handler.status().counts.pool_discarded, 2);
}

#[tokio::test]
async fn the_pool_holds_more_while_there_is_demand() {
    let f = Fixture::new().await;
    let handler = f.handler(Config { pool_size: 1, pool_max: 6, refill_busy_rate: 1_000_000, ..Config::default() }).await;
    for n in 0..30 {
        handler.acquire(&record(&format!("t{n}/main/hello")).done()).await.unwrap();
    }
    assert!(handler.status().pool.target > 3, "{}", handler.status().pool.target);
    eventually("it follows", || handler.status().pool.level > 3).await;
}
