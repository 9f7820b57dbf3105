//! The container handler over a real Docker engine and the real runtime. Fails without an engine; builds the image where it is missing.

#![allow(clippy::print_stderr, reason = "building the image takes a while and says so")]

mod support;

use hearth_model::VersionNumber;
use hearth_node::handler::Start;
use std::{sync::Arc, time::Duration};
use support::{Bed, call, eventually, servable};

const HELLO: &str = "module.exports = (context, cb) => cb(null, { hello: context.secrets.WHO });";

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_function_answers_is_updated_and_keeps_its_secrets() {
    let bed = Bed::new("serves").await;
    let handler = bed.handler(|config| (config.pool_size, config.pool_max) = (1, 1)).await;
    let mut one = servable("acme/main/hello", HELLO);
    let path = one.function.path.clone();
    let live = one.live.as_mut().unwrap();
    live.secrets.insert("WHO".into(), bed.stores.keyring.seal(&path, "WHO", "canary-4711").await.unwrap());
    let one = Arc::new(one);
    let lease = handler.acquire(&one).await.unwrap();
    assert_eq!(lease.start(), Start::Cold);
    assert_eq!(call(&lease, "hello@1").await, (200, r#"{"hello":"canary-4711"}"#.to_owned()));
    let slot = bed.slot_of("acme/main", &handler);
    eventually("the state is written", || slot.join("state.json").exists()).await;
    for secret_free in [slot.join("state.json"), slot.join("tree/f/hello@1/index.js")] {
        assert!(!std::fs::read_to_string(secret_free).unwrap().contains("canary-4711"));
    }
    drop(lease);

    let mut two = servable("acme/main/hello", "module.exports = cb => cb(null, 2);");
    two.function.generation = 2;
    two.function.live = Some(VersionNumber(2));
    two.live.as_mut().unwrap().version = VersionNumber(2);
    let lease = handler.acquire(&Arc::new(two)).await.unwrap();
    assert_eq!(call(&lease, "hello@2").await, (200, "2".to_owned()));
    assert_eq!(call(&lease, "hello@1").await.0, 200, "the old version is there until nobody uses it");
    handler.shutdown(false).await;
    bed.assert_nothing_left().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn ends_of_every_kind_are_told_and_mended() {
    let bed = Bed::new("ends").await;
    let handler = bed.handler(|config| (config.pool_size, config.pool_max) = (2, 2)).await;
    let exits = Arc::new(servable("acme/exits/f", "module.exports = cb => process.exit(7);"));
    let loops = Arc::new(servable("acme/loops/f", "module.exports = cb => { for (;;); };"));
    let bloats = "module.exports = cb => { const all = []; for (;;) all.push(Buffer.alloc(1 << 20, 1)); };";
    let mut bloats = servable("acme/bloats/f", bloats);
    bloats.container.memory_mb = 96;
    let bloats = Arc::new(bloats);

    let lease = handler.acquire(&loops).await.unwrap();
    let container = Arc::clone(lease.container());
    let asked = tokio::spawn(async move { call(&lease, "f@1").await });
    // The loop begins when the request has arrived; until then the container answers, and is asked again.
    eventually("it was replaced", || {
        handler.suspect(&container);
        !container.is_alive()
    })
    .await;
    assert_eq!(asked.await.unwrap().0, 0, "its caller learns it");
    assert_ne!(handler.acquire(&loops).await.unwrap().container().id(), container.id());

    let lease = handler.acquire(&bloats).await.unwrap();
    call(&lease, "f@1").await;
    assert!(lease.container().exited().await.out_of_memory);

    let lease = handler.acquire(&exits).await.unwrap();
    call(&lease, "f@1").await;
    // Where the runtime turns the call into an answer of its own, the process may live on.
    if let Ok(exit) = tokio::time::timeout(Duration::from_secs(5), lease.container().exited()).await {
        assert_eq!(exit.code, Some(7));
    }
    handler.shutdown(false).await;
    bed.assert_nothing_left().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_idle_container_is_frozen_and_thaws_for_a_request() {
    let bed = Bed::new("freezes").await;
    let handler = bed
        .handler(|config| {
            (config.pool_size, config.pool_max) = (1, 1);
            config.freeze_after = Duration::from_millis(50);
        })
        .await;
    let hello = Arc::new(servable("acme/main/hello", "module.exports = cb => cb(null, 1);"));
    drop(handler.acquire(&hello).await.unwrap());
    let state = || serde_json::to_value(handler.status()).unwrap()["containers"][0]["state"].clone();
    eventually("it is frozen", || state() == "frozen").await;
    assert!(handler.try_acquire(&hello).unwrap().is_none());
    let lease = handler.acquire(&hello).await.unwrap();
    assert_eq!((lease.start(), call(&lease, "hello@1").await.0), (Start::Warm, 200));
    drop(lease);
    handler.shutdown(false).await;
    bed.assert_nothing_left().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_next_process_goes_on_with_living_containers() {
    let bed = Bed::new("adopts").await;
    let small = |config: &mut hearth_node::handler::Config| (config.pool_size, config.pool_max) = (1, 1);
    let first = bed.handler(small).await;
    let counts = Arc::new(servable("acme/main/counts", "let n = 0; module.exports = cb => cb(null, ++n);"));
    let lease = first.acquire(&counts).await.unwrap();
    assert_eq!(call(&lease, "counts@1").await.1, "1");
    let slot = bed.slot_of("acme/main", &first);
    eventually("the state is written", || std::fs::read_to_string(slot.join("state.json")).is_ok_and(|s| s.contains("counts")))
        .await;
    drop(lease);
    first.shutdown(true).await;
    drop(first);
    assert_eq!(bed.containers().await, 1);

    let second = bed.handler(small).await;
    let lease = second.try_acquire(&counts).unwrap().expect("warm from the first request on");
    assert_eq!(call(&lease, "counts@1").await.1, "2", "it is the same process");
    drop(lease);
    second.shutdown(false).await;
    bed.assert_nothing_left().await;
}
