use super::*;
use crate::handler::{AcquireError, Start, container::EndReason};
use hearth_sandbox::fake::{Call, Failure};
use std::sync::atomic::Ordering::Relaxed;
use tokio::time::Instant;

const MINUTE: Duration = Duration::from_secs(60);

fn later(by: Duration) -> Instant {
    Instant::now() + by
}

fn state(handler: &Handler, name: &str) -> usize {
    handler.status().containers_by_state[name]
}

#[tokio::test]
async fn idle_containers_are_frozen_and_thawed_for_a_request() {
    let f = Fixture::new().await;
    let handler = f.handler(on_demand()).await;
    let servable = record("acme/main/hello").done();
    let id = handler.acquire(&servable).await.unwrap().container().sandbox_id.clone();
    handler.shared.tick(later(MINUTE - Duration::from_secs(2)));
    assert_eq!(f.sandbox.count(Call::Freeze), 0, "not yet");
    handler.shared.tick(later(MINUTE));
    eventually("it is frozen", || state(&handler, "frozen") == 1).await;
    assert!(f.sandbox.fake().is_frozen(&id).unwrap());
    assert!(handler.try_acquire(&servable).unwrap().is_none());
    let lease = handler.acquire(&servable).await.unwrap();
    assert_eq!((lease.start(), state(&handler, "running")), (Start::Warm, 1));
    assert!(!f.sandbox.fake().is_frozen(&id).unwrap());
    assert_eq!((handler.status().counts.freezes, handler.status().counts.thaws, handler.status().counts.loads), (1, 1, 1));
    // It was used just now.
    drop(lease);
    handler.shared.tick(later(MINUTE - Duration::from_secs(2)));
    assert_eq!(f.sandbox.count(Call::Freeze), 1);
}

#[tokio::test]
async fn a_frozen_container_is_thawed_once_for_many() {
    let f = Fixture::new().await;
    let handler = f.handler(on_demand()).await;
    let servable = record("acme/main/hello").done();
    drop(handler.acquire(&servable).await.unwrap());
    handler.shared.tick(later(MINUTE));
    eventually("it is frozen", || state(&handler, "frozen") == 1).await;
    let leases = futures_util::future::join_all((0..100).map(|_| handler.acquire(&servable))).await;
    assert!(leases.iter().all(Result::is_ok));
    assert_eq!(f.sandbox.count(Call::Thaw), 1);
}

#[tokio::test]
async fn what_is_in_use_is_neither_frozen_nor_ended() {
    let f = Fixture::new().await;
    let handler = f.handler(on_demand()).await;
    // An upgraded connection holds its lease just so.
    let lease = handler.acquire(&record("acme/main/hello").done()).await.unwrap();
    handler.shared.tick(later(MINUTE * 600));
    handler.shared.end_least_missed(later(MINUTE), 10, |_| true);
    assert!(lease.container().is_alive());
    assert_eq!((f.sandbox.count(Call::Freeze), state(&handler, "running")), (0, 1));
}

#[tokio::test]
async fn a_container_that_cannot_be_frozen_goes_on() {
    let f = Fixture::new().await;
    let handler = f.handler(on_demand()).await;
    let servable = record("acme/main/hello").done();
    drop(handler.acquire(&servable).await.unwrap());
    f.sandbox.fake().fail_next(Call::Freeze, Failure::Unreachable);
    handler.shared.tick(later(MINUTE));
    eventually("it was tried", || f.sandbox.count(Call::Freeze) == 1 && state(&handler, "running") == 1).await;
    handler.acquire(&servable).await.unwrap();
}

#[tokio::test]
async fn a_container_that_cannot_be_thawed_is_replaced() {
    let f = Fixture::new().await;
    let handler = f.handler(on_demand()).await;
    let servable = record("acme/main/hello").done();
    let id = handler.acquire(&servable).await.unwrap().container().id();
    handler.shared.tick(later(MINUTE));
    eventually("it is frozen", || state(&handler, "frozen") == 1).await;
    f.sandbox.fake().fail_next(Call::Thaw, Failure::Refused("no".into()));
    let lease = handler.acquire(&servable).await.unwrap();
    assert_ne!(lease.container().id(), id);
}

#[tokio::test]
async fn what_nobody_calls_is_ended_and_its_entry_forgotten() {
    let f = Fixture::new().await;
    let handler = f.handler(on_demand()).await;
    let servable = record("acme/main/hello").done();
    drop(handler.acquire(&servable).await.unwrap());
    handler.shared.tick(later(MINUTE * 29));
    assert_eq!(handler.status().containers.len(), 1);
    handler.shared.tick(later(MINUTE * 31));
    eventually("all of it is gone", || f.sandbox.running() == 0 && f.slots().is_empty()).await;
    assert_eq!(handler.status().counts.ended["idle"], 1);
    handler.shared.tick(later(MINUTE * 31));
    let left = (handler.shared.entries.len(), handler.shared.routes.len());
    assert_eq!(left, (0, 0), "a tenant whom nobody calls costs nothing");
    assert_eq!(f.modules.detached.lock().len(), 1);
    assert_eq!(handler.acquire(&servable).await.unwrap().start(), Start::Cold);
}

#[tokio::test]
async fn memory_pressure_ends_the_oldest_first_and_only_as_many_as_needed() {
    let f = Fixture::new().await;
    let mib = 1024 * 1024;
    // The sandbox says 12 MiB each.
    let handler = f.handler(Config { memory_limit: Some(bytesize::ByteSize::b(30 * mib)), ..on_demand() }).await;
    let mut paths = Vec::new();
    for n in 0..4 {
        let lease = handler.acquire(&record(&format!("t{n}/main/hello")).done()).await.unwrap();
        paths.push(Arc::clone(lease.container()));
        lease.container().memory_bytes.store(12 * mib, Relaxed);
        drop(lease);
        // One after the other, as far as the clock of their last use can tell.
        tokio::time::sleep(Duration::from_millis(3)).await;
    }
    handler.shared.memory_bytes.store(48 * mib, Relaxed);
    handler.shared.tick(Instant::now());
    let alive: Vec<bool> = paths.iter().map(|c| c.is_alive()).collect();
    assert_eq!(alive, [false, false, true, true]);
    assert_eq!(handler.status().counts.ended["pressure"], 2);
}

#[tokio::test]
async fn containers_that_nobody_knows_are_destroyed() {
    let f = Fixture::new().await;
    let handler = f.handler(pool_of(1)).await;
    eventually("the pool is filled", || handler.status().pool.level == 1).await;
    let lost = hearth_sandbox::SandboxSpec {
        slot: 77,
        purpose: hearth_sandbox::Purpose::Runtime,
        node: Default::default(),
        slot_dir: f.dir.path().into(),
        runtime_dir: f.dir.path().into(),
        limits: handler.shared.limits(64, false),
        args: Vec::new(),
    };
    hearth_sandbox::Sandbox::create(f.sandbox.fake(), &lost).await.unwrap();
    let build = hearth_sandbox::SandboxSpec { slot: 4_500, purpose: hearth_sandbox::Purpose::Build, args: vec!["x".into()], ..lost };
    hearth_sandbox::Sandbox::create(f.sandbox.fake(), &build).await.unwrap();
    handler.shared.reconcile().await;
    let left: Vec<u32> = hearth_sandbox::Sandbox::list(f.sandbox.fake()).await.unwrap().iter().map(|r| r.slot).collect();
    assert_eq!(left, [0, 4_500], "builds are the builder's");
}

/// However containers are claimed, crash, are evicted, frozen, and ended: none ever serves two owners.
#[tokio::test]
async fn no_container_ever_serves_two_tenants() {
    use rand::{Rng, SeedableRng};
    let seed: u64 = rand::random();
    println_seed(seed);
    let mut rng = rand::rngs::StdRng::seed_from_u64(seed);
    let f = Fixture::new().await;
    let config = Config {
        containers_max: 24,
        claim_burst: 1_000_000,
        create_concurrency: 8,
        refill_concurrency: 8,
        refill_busy_rate: u32::MAX,
        claim_timeout: LIMIT,
        ..pool_of(8)
    };
    let handler = f.handler(config).await;
    let mut owners: std::collections::HashMap<String, String> = std::collections::HashMap::new();
    let mut assigned = 0;
    while assigned < 10_000 {
        let path = format!("t{}/c{}/f{}", rng.random_range(0..8), rng.random_range(0..2), rng.random_range(0..2));
        let servable = record(&path).done();
        match handler.acquire(&servable).await {
            Ok(lease) => {
                assigned += 1;
                let owner = lease.container().path().to_string();
                assert_eq!(owner, servable.container.path().to_string());
                let known = owners.entry(lease.container().sandbox_id.0.clone()).or_insert_with(|| owner.clone());
                assert_eq!(*known, owner, "seed {seed}");
                match rng.random_range(0..30) {
                    0 => f.sandbox.crash(&lease.container().sandbox_id, hearth_sandbox::Exit::default()),
                    1 => handler.evict(lease.container().path()),
                    2 => handler.shared.end(lease.container(), EndReason::Broken, None),
                    3 => handler.shared.tick(later(MINUTE)),
                    4 if assigned % 16 == 0 => handler.shared.tick(later(MINUTE * 40)),
                    _ => {}
                }
            }
            Err(AcquireError::NoCapacity { .. } | AcquireError::Crashed { .. }) => tokio::task::yield_now().await,
            Err(other) => panic!("{other:?}"),
        }
    }
    assert!(owners.len() > 500, "{} containers were used", owners.len());
    // What the runtimes were told agrees.
    for (id, told) in f.sandbox.told() {
        if let scripted::Told::Load(..) = told {
            assert!(owners.contains_key(&id), "a container loaded code and was never handed out");
        }
    }
}

/// So that a failure can be replayed.
#[allow(clippy::print_stdout)]
fn println_seed(seed: u64) {
    println!("seed {seed}");
}
