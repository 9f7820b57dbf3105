//! Suites that every backend passes, as plain functions over the traits. Each takes an empty store.

use crate::{
    ArtifactError, ArtifactStore, BuildJob, BuildQueue, FunctionStore, NewVersion, Page, Precondition, Put, QueueError, StoreError,
};
use bytes::Bytes;
use futures_util::StreamExt;
use hearth_model::{
    ArtifactRef, BuildKey, BuildState, CodeRef, Container, FunctionPath, ModuleRecord, ResolvedModule, Scope, Tenant, Timestamp,
    Token, TokenHash, VersionNumber, VersionStatus, function::NodeVersion, limits,
};
use sha2::{Digest, Sha256};
use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
    time::Duration,
};

fn path(text: &str) -> FunctionPath {
    text.parse().expect("a path")
}

fn tenant(name: &str) -> Tenant {
    Tenant::new(name.parse().expect("a name"))
}

fn version(status: VersionStatus, modules: &[&str]) -> NewVersion {
    NewVersion {
        status,
        code: CodeRef::Inline(BTreeMap::from([("index.js".into(), "1".into())])),
        main: "index.js".into(),
        model: None,
        timeout_ms: 1_000,
        dependencies: BTreeMap::new(),
        modules: modules.iter().map(|m| module(m)).collect(),
        env: BTreeMap::new(),
        secrets: BTreeMap::new(),
    }
}

fn module(name: &str) -> ResolvedModule {
    ResolvedModule {
        spec: format!("{name}@1.0.0").parse().expect("a spec"),
        build: BuildKey(name.into()),
        peers: vec![],
        direct: true,
    }
}

fn record(name: &str) -> ModuleRecord {
    ModuleRecord {
        key: BuildKey(name.into()),
        spec: format!("{name}@1.0.0").parse().expect("a spec"),
        node: NodeVersion::V24,
        scripts: false,
        state: BuildState::Queued,
        epoch: 0,
        attempts: 0,
        created_at: Timestamp(1),
        integrity: None,
        log: String::new(),
    }
}

async fn with_container(store: &dyn FunctionStore, path: &FunctionPath) {
    store.put_tenant(tenant(path.tenant.as_str()), Precondition::None).await.expect("a tenant");
    let container = Container::with_defaults(&path.container_path(), Timestamp(0));
    store.put_container(container, Precondition::None).await.expect("a container");
}

/// All of [`FunctionStore`].
pub async fn functions(store: Arc<dyn FunctionStore>) {
    tenants_and_containers(&*store).await;
    versions(&*store).await;
    settling(&*store).await;
    concurrent_versions(Arc::clone(&store)).await;
    pruning(&*store).await;
    pages(&*store).await;
    tokens(&*store).await;
    modules(Arc::clone(&store)).await;
    documents(&*store).await;
}

async fn tenants_and_containers(store: &dyn FunctionStore) {
    store.ping().await.unwrap();
    let first = store.put_tenant(tenant("gen"), Precondition::Absent).await.unwrap();
    assert_eq!(first.generation, 1);
    assert!(matches!(
        store.put_tenant(tenant("gen"), Precondition::Absent).await,
        Err(StoreError::Precondition { actual: Some(1), .. })
    ));
    let second = store.put_tenant(tenant("gen"), Precondition::Generation(1)).await.unwrap();
    assert_eq!((second.generation, second.created_at), (2, first.created_at));
    assert!(matches!(
        store.put_tenant(tenant("gen"), Precondition::Generation(1)).await,
        Err(StoreError::Precondition { actual: Some(2), .. })
    ));
    assert_eq!(store.get_tenant(&first.name).await.unwrap(), Some(second));
    let orphan = Container::with_defaults(&path("nobody/main/x").container_path(), Timestamp(0));
    assert!(matches!(store.put_container(orphan, Precondition::None).await, Err(StoreError::NotFound { .. })));
    let function = path("gen/main/x");
    with_container(store, &function).await;
    assert!(matches!(store.delete_tenant(&first.name, Precondition::None).await, Err(StoreError::NotEmpty { .. })));
    store.create_version(&function, version(VersionStatus::Ready, &[]), Precondition::None).await.unwrap();
    assert!(matches!(
        store.delete_container(&function.container_path(), Precondition::None).await,
        Err(StoreError::NotEmpty { .. })
    ));
    let counts = store.count_tenant(&first.name).await.unwrap();
    assert_eq!((counts.containers, counts.functions), (1, 1));
    store.delete_function(&function, Precondition::None).await.unwrap();
    assert!(matches!(store.delete_function(&function, Precondition::None).await, Err(StoreError::NotFound { .. })));
    store.delete_container(&function.container_path(), Precondition::Generation(1)).await.unwrap();
    store.delete_tenant(&first.name, Precondition::None).await.unwrap();
    assert_eq!(store.get_tenant(&first.name).await.unwrap(), None);
}

async fn versions(store: &dyn FunctionStore) {
    let path = path("v/main/f");
    assert!(matches!(
        store.create_version(&path, version(VersionStatus::Ready, &[]), Precondition::None).await,
        Err(StoreError::NotFound { .. })
    ));
    with_container(store, &path).await;
    assert_eq!(store.get_servable(&path).await.unwrap(), None);
    let (function, first) = store.create_version(&path, version(VersionStatus::Ready, &[]), Precondition::Absent).await.unwrap();
    assert_eq!((function.live, function.latest, function.generation), (Some(VersionNumber(1)), VersionNumber(1), 1));
    let stale = store.create_version(&path, version(VersionStatus::Ready, &[]), Precondition::Generation(9)).await;
    assert!(matches!(stale, Err(StoreError::Precondition { actual: Some(1), .. })));
    let (function, _) = store.create_version(&path, version(VersionStatus::Ready, &[]), Precondition::Generation(1)).await.unwrap();
    assert_eq!((function.live, function.generation), (Some(VersionNumber(2)), 2));
    assert_eq!(store.get_version(&path, VersionNumber(1)).await.unwrap(), Some(first), "versions are immutable");
    assert!(matches!(store.set_live(&path, VersionNumber(7), Precondition::None).await, Err(StoreError::NotFound { .. })));
    let rolled = store.set_live(&path, VersionNumber(1), Precondition::Generation(2)).await.unwrap();
    assert_eq!((rolled.live, rolled.latest, rolled.generation), (Some(VersionNumber(1)), VersionNumber(2), 3));
    let servable = store.get_servable(&path).await.unwrap().unwrap();
    assert_eq!(servable.live.unwrap().version, VersionNumber(1));
    assert_eq!(servable.container.path(), path.container_path());
}

async fn settling(store: &dyn FunctionStore) {
    let path = path("s/main/f");
    with_container(store, &path).await;
    let building = || version(VersionStatus::Building, &["wait"]);
    let (function, _) = store.create_version(&path, building(), Precondition::None).await.unwrap();
    assert_eq!(function.live, None);
    assert_eq!(store.waiting_for(&BuildKey("wait".into()), 10).await.unwrap(), [(path.clone(), VersionNumber(1))]);
    let settled = store.settle_version(&path, VersionNumber(1), VersionStatus::Ready).await.unwrap();
    assert_eq!(settled.live, Some(VersionNumber(1)));
    assert!(store.waiting_for(&BuildKey("wait".into()), 10).await.unwrap().is_empty());
    assert_eq!(store.count_users(&BuildKey("wait".into())).await.unwrap(), 1);
    let again = store.settle_version(&path, VersionNumber(1), VersionStatus::Failed { reason: "late".into() }).await.unwrap();
    assert_eq!(again.generation, settled.generation, "what is settled stays");
    // The second builds while the third goes live: the second must not take its place.
    store.create_version(&path, building(), Precondition::None).await.unwrap();
    store.create_version(&path, version(VersionStatus::Ready, &[]), Precondition::None).await.unwrap();
    assert_eq!(store.settle_version(&path, VersionNumber(2), VersionStatus::Ready).await.unwrap().live, Some(VersionNumber(3)));
    // The fourth builds while the tenant goes back to the first by hand.
    store.create_version(&path, building(), Precondition::None).await.unwrap();
    store.set_live(&path, VersionNumber(1), Precondition::None).await.unwrap();
    assert_eq!(store.settle_version(&path, VersionNumber(4), VersionStatus::Ready).await.unwrap().live, Some(VersionNumber(1)));
    // A later one goes live again.
    store.create_version(&path, building(), Precondition::None).await.unwrap();
    assert_eq!(store.settle_version(&path, VersionNumber(5), VersionStatus::Ready).await.unwrap().live, Some(VersionNumber(5)));
    store.create_version(&path, building(), Precondition::None).await.unwrap();
    let failed = store.settle_version(&path, VersionNumber(6), VersionStatus::Failed { reason: "no".into() }).await.unwrap();
    assert_eq!(failed.live, Some(VersionNumber(5)), "the one before serves on");
}

async fn concurrent_versions(store: Arc<dyn FunctionStore>) {
    let path = path("c/main/f");
    with_container(&*store, &path).await;
    let mut tasks = tokio::task::JoinSet::new();
    for _ in 0..32 {
        let (store, path) = (Arc::clone(&store), path.clone());
        tasks.spawn(async move {
            store.create_version(&path, version(VersionStatus::Ready, &[]), Precondition::None).await.unwrap().1.version.0
        });
    }
    let numbers: BTreeSet<u64> = tasks.join_all().await.into_iter().collect();
    assert_eq!(numbers, (1..=32).collect());
    assert_eq!(store.get_function(&path).await.unwrap().unwrap().latest, VersionNumber(32));
}

async fn pruning(store: &dyn FunctionStore) {
    let path = path("p/main/f");
    with_container(store, &path).await;
    store.create_version(&path, version(VersionStatus::Ready, &[]), Precondition::None).await.unwrap();
    for _ in 0..limits::VERSIONS_KEPT_MAX + 4 {
        store.create_version(&path, version(VersionStatus::Building, &["x"]), Precondition::None).await.unwrap();
    }
    let all = store.list_versions(&path, None, limits::PAGE_MAX).await.unwrap();
    assert_eq!(all.items.len(), limits::VERSIONS_KEPT_MAX);
    assert!(all.items.iter().any(|v| v.version == VersionNumber(1)), "the live one is never dropped");
    assert_eq!(all.items[0].version.0, limits::VERSIONS_KEPT_MAX as u64 + 5, "the newest come first");
}

async fn pages(store: &dyn FunctionStore) {
    let base = path("l/main/f");
    with_container(store, &base).await;
    for n in 0..7 {
        let path = path(&format!("l/main/f{n}"));
        store.create_version(&path, version(VersionStatus::Ready, &[]), Precondition::None).await.unwrap();
    }
    let (mut names, mut cursor) = (Vec::new(), None);
    loop {
        let page: Page<_> = store.list_functions(&base.container_path(), cursor.as_deref(), 3).await.unwrap();
        assert!(page.items.len() <= 3);
        names.extend(page.items.into_iter().map(|f| f.path.function.to_string()));
        cursor = page.next;
        if cursor.is_none() {
            break;
        }
    }
    assert_eq!(names, ["f0", "f1", "f2", "f3", "f4", "f5", "f6"]);
    let whole = store.list_functions(&base.container_path(), None, 7).await.unwrap();
    assert_eq!((whole.items.len(), whole.next), (7, None), "a page that is just full is the last");
    for bad in ["!", "not base64 %"] {
        assert!(matches!(store.list_tenants(Some(bad), 10).await, Err(StoreError::BadCursor { .. })), "{bad}");
    }
}

async fn tokens(store: &dyn FunctionStore) {
    store.put_tenant(tenant("tok"), Precondition::None).await.unwrap();
    let token = |id: &str, tenant: Option<&str>| Token {
        id: id.into(),
        tenant: tenant.map(|t| t.parse().expect("a name")),
        scope: Scope::Read,
        created_at: Timestamp(1),
        expires_at: None,
        note: String::new(),
    };
    let hash = TokenHash::of("secret");
    assert!(matches!(store.put_token(hash, token("a", Some("nobody"))).await, Err(StoreError::NotFound { .. })));
    store.put_token(hash, token("a", Some("tok"))).await.unwrap();
    assert!(matches!(store.put_token(hash, token("b", None)).await, Err(StoreError::Precondition { .. })));
    assert!(matches!(store.put_token(TokenHash::of("x"), token("a", None)).await, Err(StoreError::Precondition { .. })));
    assert_eq!(store.get_token(&hash).await.unwrap().unwrap().id, "a");
    assert_eq!(store.get_token(&TokenHash::of("other")).await.unwrap(), None);
    store.put_token(TokenHash::of("op"), token("z", None)).await.unwrap();
    let own = store.list_tokens(Some(&"tok".parse().unwrap()), None, 10).await.unwrap();
    assert_eq!(own.items.iter().map(|t| t.id.as_str()).collect::<Vec<_>>(), ["a"]);
    store.delete_tenant(&"tok".parse().unwrap(), Precondition::None).await.unwrap();
    assert_eq!(store.get_token(&hash).await.unwrap(), None, "a tenant's tokens go with it");
    store.delete_token("z").await.unwrap();
    assert!(matches!(store.delete_token("z").await, Err(StoreError::NotFound { .. })));
}

async fn modules(store: Arc<dyn FunctionStore>) {
    let first = record("mod-a");
    assert!(store.put_module(first.clone(), None).await.unwrap());
    assert!(!store.put_module(first.clone(), None).await.unwrap(), "the record exists");
    let mut tasks = tokio::task::JoinSet::new();
    for n in 0..16 {
        let (store, first) = (Arc::clone(&store), first.clone());
        tasks.spawn(async move {
            let state = BuildState::Building { worker: format!("w{n}"), since: Timestamp(2) };
            store.put_module(ModuleRecord { epoch: 1, state, ..first.clone() }, Some(&first)).await.unwrap()
        });
    }
    let winners = tasks.join_all().await.into_iter().filter(|won| *won).count();
    assert_eq!(winners, 1, "one worker takes a build");
    let mine = store.get_module(&first.key).await.unwrap().unwrap();
    let artifact = ArtifactRef { sha256: "0".repeat(64), bytes: 1, unpacked_bytes: 2, files: 3, lock_sha256: "1".repeat(64) };
    let ready = ModuleRecord { state: BuildState::Ready { artifact, finished_at: Timestamp(3), build_ms: 4 }, ..mine.clone() };
    assert!(!store.put_module(ready.clone(), Some(&first)).await.unwrap(), "a stale worker cannot settle");
    assert!(store.put_module(ready.clone(), Some(&mine)).await.unwrap());
    store.put_module(record("mod-b"), None).await.unwrap();
    let page = store.list_modules(None, 1).await.unwrap();
    assert_eq!(page.items, [ready]);
    let rest = store.list_modules(page.next.as_deref(), 10).await.unwrap();
    assert_eq!((rest.items.len(), rest.next), (1, None));
    assert_eq!(store.find_modules("mod-b", "1.0.0").await.unwrap().len(), 1);
    assert!(store.find_modules("mod-b", "2.0.0").await.unwrap().is_empty());
}

async fn documents(store: &dyn FunctionStore) {
    let path = path("d/main/f");
    with_container(store, &path).await;
    assert!(matches!(store.put_document(&path, 1.into(), Precondition::None).await, Err(StoreError::NotFound { .. })));
    store.create_version(&path, version(VersionStatus::Ready, &[]), Precondition::None).await.unwrap();
    assert_eq!(store.get_document(&path).await.unwrap(), None);
    let first = store.put_document(&path, serde_json::json!({ "n": 1 }), Precondition::Absent).await.unwrap();
    assert!(matches!(store.put_document(&path, 2.into(), Precondition::Absent).await, Err(StoreError::Precondition { .. })));
    let second = store.put_document(&path, 2.into(), Precondition::Generation(first)).await.unwrap();
    assert_eq!(store.get_document(&path).await.unwrap(), Some((2.into(), second)));
    let deleted = store.put_document(&path, serde_json::Value::Null, Precondition::None).await.unwrap();
    assert_eq!(store.get_document(&path).await.unwrap(), None);
    let reborn = store.put_document(&path, 3.into(), Precondition::Absent).await.unwrap();
    assert!(reborn > deleted, "an etag never comes back");
}

async fn read(store: &dyn ArtifactStore, sha256: &str) -> Result<Vec<u8>, ArtifactError> {
    let (_, mut chunks) = store.get(sha256).await?;
    let mut bytes = Vec::new();
    while let Some(chunk) = chunks.next().await {
        bytes.extend_from_slice(&chunk?);
    }
    Ok(bytes)
}

/// All of [`ArtifactStore`].
pub async fn artifacts(store: Arc<dyn ArtifactStore>) {
    store.ping().await.unwrap();
    let (name, put) = store.put_bytes(Bytes::from_static(b"hello")).await.unwrap();
    assert_eq!((name.as_str(), put), (hex::encode(Sha256::digest(b"hello")).as_str(), Put::Created));
    assert_eq!(store.put_bytes(Bytes::from_static(b"hello")).await.unwrap().1, Put::Exists);
    assert_eq!(read(&*store, &name).await.unwrap(), b"hello");
    assert_eq!(store.head(&name).await.unwrap(), Some(5));
    for bad in ["", "../../etc/passwd", "0", &"Z".repeat(64), &"0".repeat(63), &"0".repeat(64)] {
        assert!(matches!(store.get(bad).await, Err(ArtifactError::NotFound { .. })), "{bad:?}");
        assert_eq!(store.head(bad).await.unwrap(), None);
    }
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("large");
    let large: Vec<u8> = (0..3_000_000_u32).map(|n| (n / 7) as u8).collect();
    std::fs::write(&file, &large).unwrap();
    let large_name = hex::encode(Sha256::digest(&large));
    assert!(matches!(store.put_file(&name.replace('2', "3"), &file).await, Err(ArtifactError::Mismatch { .. })));
    let mut tasks = tokio::task::JoinSet::new();
    for _ in 0..8 {
        let (store, name, file) = (Arc::clone(&store), large_name.clone(), file.clone());
        tasks.spawn(async move { store.put_file(&name, &file).await.unwrap() });
    }
    let created = tasks.join_all().await.into_iter().filter(|p| *p == Put::Created).count();
    assert_eq!(created, 1, "of many who put the same one creates it");
    assert_eq!(read(&*store, &large_name).await.unwrap(), large);
    store.delete(&large_name).await.unwrap();
    store.delete(&large_name).await.unwrap();
    assert_eq!(store.head(&large_name).await.unwrap(), None);
}

fn job(name: &str) -> BuildJob {
    BuildJob {
        key: BuildKey(name.into()),
        spec: format!("{name}@1.0.0").parse().expect("a spec"),
        node: NodeVersion::V24,
        scripts: false,
    }
}

const NO_WAIT: Duration = Duration::ZERO;
const LONG: Duration = Duration::from_secs(60);
const SHORT: Duration = Duration::from_millis(300);

/// All of [`BuildQueue`]; it must dead-letter after `receives_max` deliveries.
pub async fn queue(queue: Arc<dyn BuildQueue>, receives_max: u32) {
    queue.ping().await.unwrap();
    assert_eq!(queue.receive(NO_WAIT, LONG).await.unwrap(), None);
    queue.send(&job("a"), NO_WAIT).await.unwrap();
    let first = queue.receive(SHORT, LONG).await.unwrap().unwrap();
    assert_eq!((&first.job, first.attempt), (&job("a"), 1));
    assert_eq!(queue.receive(NO_WAIT, LONG).await.unwrap(), None, "it is hidden while somebody has it");
    queue.settle(&first).await.unwrap();
    queue.settle(&first).await.unwrap();

    queue.send(&job("slow"), NO_WAIT).await.unwrap();
    let lost = queue.receive(SHORT, SHORT).await.unwrap().unwrap();
    queue.extend(&lost, SHORT).await.unwrap();
    let again = queue.receive(Duration::from_secs(3), LONG).await.unwrap().unwrap();
    assert_eq!((again.job.clone(), again.attempt), (job("slow"), 2));
    assert!(matches!(queue.extend(&lost, LONG).await, Err(QueueError::Stale)), "it belongs to another worker now");
    queue.settle(&lost).await.unwrap();
    assert_eq!(queue.depth().await.unwrap(), 1, "a stale worker settles nothing");
    queue.release(&again, NO_WAIT).await.unwrap();
    let third = queue.receive(SHORT, LONG).await.unwrap().unwrap();
    assert_eq!(third.attempt, 3);
    queue.settle(&third).await.unwrap();

    queue.send(&job("later"), SHORT).await.unwrap();
    assert_eq!(queue.receive(NO_WAIT, LONG).await.unwrap(), None);
    let later = queue.receive(Duration::from_secs(3), LONG).await.unwrap().unwrap();
    queue.settle(&later).await.unwrap();

    queue.send(&job("poison"), NO_WAIT).await.unwrap();
    for _ in 0..receives_max {
        let delivery = queue.receive(SHORT, LONG).await.unwrap().expect("a delivery");
        queue.release(&delivery, NO_WAIT).await.unwrap();
    }
    assert_eq!(queue.receive(SHORT, LONG).await.unwrap(), None);
    dead_letters_come_until_they_are_settled(&*queue).await;

    for n in 0..20 {
        queue.send(&job(&format!("many{n}")), NO_WAIT).await.unwrap();
    }
    let mut workers = tokio::task::JoinSet::new();
    for _ in 0..4 {
        let queue = Arc::clone(&queue);
        workers.spawn(async move {
            let mut seen = Vec::new();
            while let Some(delivery) = queue.receive(SHORT, LONG).await.unwrap() {
                queue.settle(&delivery).await.unwrap();
                seen.push(delivery.job.key.0);
            }
            seen
        });
    }
    let seen: Vec<String> = workers.join_all().await.into_iter().flatten().collect();
    assert_eq!(
        (seen.len(), seen.iter().collect::<BTreeSet<_>>().len()),
        (20, 20),
        "each is delivered once to a worker that is quick"
    );
}

/// The dead letters hold `poison` and nothing else.
async fn dead_letters_come_until_they_are_settled(queue: &dyn BuildQueue) {
    let (mut dead, began) = (Vec::new(), std::time::Instant::now());
    // Twice: whoever had it first ended before it settled it.
    for _ in 0..2 {
        dead.clear();
        while dead.is_empty() && began.elapsed() < LONG {
            dead = queue.receive_dead(10, Duration::from_secs(1)).await.unwrap();
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
        assert_eq!(dead.iter().map(|d| d.job.clone()).collect::<Vec<_>>(), [job("poison")]);
    }
    for _ in 0..2 {
        queue.settle_dead(&dead[0]).await.unwrap();
    }
    assert!(queue.receive_dead(10, SHORT).await.unwrap().is_empty());
}

/// What remains of [`queue`] where sends and deliveries may be doubled or lost on the way: every job that was sent is delivered and can be
/// settled, in the end nothing is left.
pub async fn queue_at_least_once(queue: Arc<dyn BuildQueue>) {
    let sent: BTreeSet<String> = (0..30).map(|n| format!("job{n}")).collect();
    for name in &sent {
        queue.send(&job(name), NO_WAIT).await.unwrap();
    }
    let mut workers = tokio::task::JoinSet::new();
    for _ in 0..3 {
        let queue = Arc::clone(&queue);
        workers.spawn(async move {
            let mut seen = BTreeSet::new();
            // A delivery that was lost on the way comes again after its time-out, which may be wait and visibility together; so nothing for
            // longer than that means that nothing is left.
            let mut idle = 0;
            while idle < 4 {
                let Some(delivery) = queue.receive(Duration::from_secs(2), Duration::from_secs(3)).await.unwrap() else {
                    idle += 1;
                    continue;
                };
                idle = 0;
                match queue.extend(&delivery, Duration::from_secs(3)).await {
                    Ok(()) | Err(QueueError::Stale) => {}
                    Err(error) => panic!("{error}"),
                }
                queue.settle(&delivery).await.unwrap();
                seen.insert(delivery.job.key.0);
            }
            seen
        });
    }
    let seen: BTreeSet<String> = workers.join_all().await.into_iter().flatten().collect();
    assert_eq!(seen, sent, "every job was delivered");
}
