//! The AWS backends pass the suites that the embedded ones pass, once over a good connection and once over a bad one. They run against the
//! stand-in, which the tests start themselves and which ends with them; where it cannot be had they fail.

#![allow(clippy::print_stdout, clippy::print_stderr, reason = "figures and seeds are for whoever runs the tests")]

use aws_sdk_dynamodb::{config::Credentials, types::AttributeValue};
use futures_util::StreamExt;
use hearth_model::{CodeRef, Container, FunctionPath, Tenant, Timestamp, Token, TokenHash, VersionNumber, VersionStatus, limits};
use hearth_store::{
    ArtifactError, ArtifactStore, FunctionStore, Keyring, KeyringError, NewVersion, Precondition, Put, QueueError, StoreError,
    aws::{
        Connector, DynamoStore, KmsKeyring, Place, S3Store, SqsQueue, Timeouts,
        design::{self, Design},
        faulty::{Faults, FaultyClient},
        http_client,
        init::{self, InitError, Places},
        s3::PART_BYTES,
    },
    conformance,
};
use sha2::{Digest, Sha256};
use std::{
    collections::BTreeMap,
    path::Path,
    process::{Child, Command, Stdio},
    sync::{Arc, OnceLock},
    time::Duration,
};

/// The stand-in's URL. It ends when this process does, since its standard input does.
fn stand_in() -> &'static str {
    static SERVER: OnceLock<(String, Child)> = OnceLock::new();
    &SERVER
        .get_or_init(|| {
            let dir = tempfile::tempdir().unwrap();
            let announced = dir.path().join("url");
            let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("../scripts/aws-stand-in.sh");
            let mut child = Command::new(&script)
                .arg("--announce")
                .arg(&announced)
                .arg("--until-stdin-ends")
                .stdin(Stdio::piped())
                .spawn()
                .unwrap_or_else(|e| panic!("{}: {e}", script.display()));
            for _ in 0..600 {
                if let Ok(url) = std::fs::read_to_string(&announced) {
                    return (url, child);
                }
                if let Some(status) = child.try_wait().unwrap() {
                    panic!("the stand-in for AWS ended ({status}); scripts/setup.sh aws installs it");
                }
                std::thread::sleep(Duration::from_millis(100));
            }
            panic!("the stand-in for AWS does not answer after 60 s");
        })
        .0
}

fn place() -> Place {
    Place { region: Some("eu-central-1".into()), endpoint_url: Some(stand_in().to_owned()) }
}

fn connector() -> Connector {
    Connector::new(http_client(), Timeouts::default()).with_credentials(credentials())
}

fn credentials() -> Credentials {
    Credentials::new("stand-in", "stand-in", None, None, "tests")
}

/// A connection on which a third of all calls meet with a fault; the seed is printed and may be given again.
fn bad_connector(test: &str) -> Connector {
    let seed = std::env::var("HEARTH_TEST_SEED").ok().and_then(|s| s.parse().ok()).unwrap_or_else(rand::random::<u64>);
    eprintln!("{test}: HEARTH_TEST_SEED={seed}");
    let client = FaultyClient::new(http_client(), Faults::MANY, seed);
    let http = aws_sdk_dynamodb::config::IntoShared::into_shared(client);
    let timeouts = Timeouts { read: Duration::from_secs(30), write: Duration::from_secs(60), ..Timeouts::default() };
    Connector::new(http, timeouts).with_credentials(credentials())
}

struct World {
    connector: Connector,
    design: Design,
}

/// Fresh resources of their own for a test, made over a good connection.
async fn world(connector: Connector, name: &str, receives_max: u32) -> World {
    let name = format!("{name}-{}", hex::encode(rand::random::<[u8; 4]>()));
    let design = design::design(&name, &name, &name, &format!("{name}-dead"), receives_max);
    init::init(&self::connector(), &places(), &design).await.unwrap();
    World { connector, design }
}

fn places() -> Places {
    Places { table: place(), bucket: place(), queue: place() }
}

impl World {
    async fn objects(&self) -> Arc<S3Store> {
        Arc::new(S3Store::new(&self.connector, &place(), &self.design.bucket.name, None).await)
    }

    async fn records(&self) -> Arc<DynamoStore> {
        let objects = self.objects().await;
        Arc::new(DynamoStore::open(&self.connector, &place(), &self.design.table.name, objects).await.unwrap())
    }

    async fn queue(&self) -> Arc<SqsQueue> {
        let (queue, dead) = (&self.design.queue.name, &self.design.dead_letter_queue.name);
        Arc::new(SqsQueue::open(&self.connector, &place(), queue, dead).await.unwrap())
    }

    fn faults_met(&self) -> u64 {
        self.connector.stats().snapshot().iter().map(|(_, _, counts)| counts.failed).sum()
    }
}

fn path(text: &str) -> FunctionPath {
    text.parse().unwrap()
}

fn version(code: &str) -> NewVersion {
    NewVersion {
        status: VersionStatus::Ready,
        code: CodeRef::Inline(BTreeMap::from([("index.js".into(), code.into())])),
        main: "index.js".into(),
        model: None,
        timeout_ms: 1_000,
        dependencies: BTreeMap::new(),
        modules: vec![],
        env: BTreeMap::new(),
        secrets: BTreeMap::new(),
    }
}

async fn with_function(store: &dyn FunctionStore, path: &FunctionPath) {
    let tenant = Tenant::new(path.tenant.clone());
    store.put_tenant(tenant, Precondition::None).await.unwrap();
    store.put_container(Container::with_defaults(&path.container_path(), Timestamp(0)), Precondition::None).await.unwrap();
    store.create_version(path, version("1"), Precondition::None).await.unwrap();
}

#[tokio::test]
async fn functions() {
    conformance::functions(world(connector(), "functions", 5).await.records().await).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn functions_over_a_bad_connection() {
    let world = world(bad_connector("functions"), "bad-functions", 5).await;
    conformance::functions(world.records().await).await;
    assert!(world.faults_met() > 50, "the connection was bad: {} faults", world.faults_met());
}

#[tokio::test]
async fn artifacts() {
    conformance::artifacts(world(connector(), "artifacts", 5).await.objects().await).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn artifacts_over_a_bad_connection() {
    let world = world(bad_connector("artifacts"), "bad-artifacts", 5).await;
    conformance::artifacts(world.objects().await).await;
    assert!(world.faults_met() > 3, "the connection was bad: {} faults", world.faults_met());
}

#[tokio::test]
async fn queue() {
    conformance::queue(world(connector(), "queue", 3).await.queue().await, 3).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn queue_over_a_bad_connection() {
    let world = world(bad_connector("queue"), "bad-queue", 1_000).await;
    conformance::queue_at_least_once(world.queue().await).await;
    assert!(world.faults_met() > 10, "the connection was bad: {} faults", world.faults_met());
}

#[tokio::test]
async fn large_artifacts_go_in_parts_and_are_created_once() {
    let world = world(connector(), "large", 5).await;
    let store = world.objects().await;
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("large");
    // A few bytes beyond two parts.
    let bytes: Vec<u8> = (0..2 * PART_BYTES as u32 + 11).map(|n| (n / 5) as u8).collect();
    std::fs::write(&file, &bytes).unwrap();
    let name = hex::encode(Sha256::digest(&bytes));
    assert_eq!(store.put_file(&name, &file).await.unwrap(), Put::Created);
    assert_eq!(store.put_file(&name, &file).await.unwrap(), Put::Exists);
    assert_eq!(store.head(&name).await.unwrap(), Some(bytes.len() as u64));
    let (_, mut chunks) = store.get(&name).await.unwrap();
    let mut read = Vec::new();
    while let Some(chunk) = chunks.next().await {
        read.extend_from_slice(&chunk.unwrap());
    }
    assert!(read == bytes, "{} bytes came back", read.len());
    let parts = world.connector.stats().snapshot().iter().find(|(_, call, _)| *call == "UploadPart").unwrap().2;
    assert_eq!(parts.sent, 3);
}

#[tokio::test]
async fn an_object_that_is_not_what_its_name_says_is_refused() {
    let world = world(connector(), "altered", 5).await;
    let store = world.objects().await;
    let name = hex::encode(Sha256::digest(b"hello"));
    let key = format!("artifacts/{}/{name}", &name[..2]);
    let body = aws_sdk_s3::primitives::ByteStream::from_static(b"hellO");
    s3(&world.connector).await.put_object().bucket(&world.design.bucket.name).key(key).body(body).send().await.unwrap();
    assert!(matches!(store.put_bytes("hello".into()).await, Err(ArtifactError::Mismatch { .. })));
    let (_, chunks) = store.get(&name).await.unwrap();
    let read: Vec<_> = chunks.collect().await;
    assert!(matches!(read.last(), Some(Err(ArtifactError::Mismatch { .. }))));
}

#[tokio::test]
async fn documents_longer_than_an_item_go_to_the_bucket_and_leave_it_again() {
    let world = world(connector(), "long", 5).await;
    let store = world.records().await;
    let path = path("long/main/f");
    with_function(&*store, &path).await;
    let long = serde_json::Value::String("x".repeat(limits::STORAGE_DOCUMENT_BYTES_MAX - 2));
    let etag = store.put_document(&path, long.clone(), Precondition::Absent).await.unwrap();
    assert_eq!(store.get_document(&path).await.unwrap(), Some((long.clone(), etag)));
    let objects = |world: &World| count_objects(world.connector.clone(), world.design.bucket.name.clone());
    assert_eq!(objects(&world).await, 1);
    store.put_document(&path, long, Precondition::Generation(etag)).await.unwrap();
    assert_eq!(objects(&world).await, 1, "what was replaced is gone");
    // A version whose code takes four times its length as JSON.
    let code: String = "\u{1}".repeat(limits::CODE_INLINE_BYTES_MAX);
    let (_, made) = store.create_version(&path, version(&code), Precondition::None).await.unwrap();
    assert_eq!(store.get_servable(&path).await.unwrap().unwrap().live, Some(made.clone()));
    assert_eq!(store.get_version(&path, made.version).await.unwrap(), Some(made));
    assert_eq!(objects(&world).await, 2);
    store.delete_function(&path, Precondition::None).await.unwrap();
    assert_eq!(objects(&world).await, 0, "a function takes all of its objects with it");
}

async fn s3(connector: &Connector) -> aws_sdk_s3::Client {
    let config = aws_sdk_s3::config::Builder::from(&connector.sdk(&place()).await).force_path_style(true).build();
    aws_sdk_s3::Client::from_conf(config)
}

async fn count_objects(connector: Connector, bucket: String) -> i32 {
    let listed = s3(&connector).await.list_objects_v2().bucket(bucket).prefix(design::DOCUMENTS_PREFIX).send().await.unwrap();
    listed.key_count().unwrap_or(0)
}

#[tokio::test]
async fn a_function_made_again_does_not_see_what_an_unfinished_deletion_left() {
    let world = world(connector(), "again", 5).await;
    let store = world.records().await;
    let path = path("again/main/f");
    with_function(&*store, &path).await;
    store.create_version(&path, version("2"), Precondition::None).await.unwrap();
    // The head alone is deleted, as by a process that was killed after the transaction.
    let client = aws_sdk_dynamodb::Client::new(&world.connector.sdk(&place()).await);
    let key = |sk: &str| [("pk".to_owned(), format!("F#{path}")), ("sk".to_owned(), sk.to_owned())];
    let mut delete = client.delete_item().table_name(&world.design.table.name);
    for (name, value) in key("H") {
        delete = delete.key(name, AttributeValue::S(value));
    }
    delete.send().await.unwrap();
    assert_eq!(store.get_version(&path, VersionNumber(2)).await.unwrap(), None);
    let (function, _) = store.create_version(&path, version("new"), Precondition::Absent).await.unwrap();
    assert_eq!(function.latest, VersionNumber(1));
    assert_eq!(store.get_version(&path, VersionNumber(2)).await.unwrap(), None, "the old second version is not of this function");
    assert_eq!(store.list_versions(&path, None, 10).await.unwrap().items.len(), 1);
}

#[tokio::test]
async fn what_a_newer_hearth_wrote_is_refused_untouched() {
    let world = world(connector(), "newer", 5).await;
    let store = world.records().await;
    let path = path("newer/main/f");
    with_function(&*store, &path).await;
    let client = aws_sdk_dynamodb::Client::new(&world.connector.sdk(&place()).await);
    let table = &world.design.table.name;
    let get =
        client.get_item().table_name(table).key("pk", AttributeValue::S("T#newer".into())).key("sk", AttributeValue::S("#".into()));
    let mut item = get.clone().send().await.unwrap().item.unwrap();
    item.insert("schema".into(), AttributeValue::N("2".into()));
    client.put_item().table_name(table).set_item(Some(item.clone())).send().await.unwrap();
    let newer = |r: Result<(), StoreError>| matches!(r, Err(StoreError::NewerSchema { found: 2, known: 1, .. }));
    assert!(newer(store.get_tenant(&path.tenant).await.map(|_| ())));
    assert!(newer(store.get_servable(&path).await.map(|_| ())));
    let tenant = Tenant::new(path.tenant.clone());
    assert!(newer(store.put_tenant(tenant, Precondition::None).await.map(|_| ())));
    assert!(newer(store.delete_tenant(&path.tenant, Precondition::None).await));
    assert_eq!(get.send().await.unwrap().item.unwrap(), item);
}

#[tokio::test]
async fn a_tenant_with_very_many_tokens_takes_them_with_it() {
    let store = world(connector(), "tokens", 5).await.records().await;
    let tenant = Tenant::new("many".parse().unwrap());
    store.put_tenant(tenant.clone(), Precondition::None).await.unwrap();
    for n in 0..40 {
        let token = Token {
            id: format!("t{n:02}"),
            tenant: Some(tenant.name.clone()),
            scope: hearth_model::Scope::Read,
            created_at: Timestamp(1),
            expires_at: Some(Timestamp(2)),
            note: String::new(),
        };
        store.put_token(TokenHash::of(&format!("s{n}")), token).await.unwrap();
    }
    store.delete_tenant(&tenant.name, Precondition::None).await.unwrap();
    assert!(store.list_tokens(None, None, 100).await.unwrap().items.is_empty());
    assert_eq!(store.get_token(&TokenHash::of("s39")).await.unwrap(), None);
}

#[tokio::test]
async fn secrets_under_kms_open_only_in_their_place() {
    let connector = connector();
    let client = aws_sdk_kms::Client::new(&connector.sdk(&place()).await);
    let key = client.create_key().send().await.unwrap().key_metadata.unwrap().key_id;
    let keyring = KmsKeyring::open(&connector, &place(), &key).await.unwrap();
    let (a, b) = (path("acme/main/a"), path("other/main/a"));
    let sealed = keyring.seal(&a, "KEY", "canary").await.unwrap();
    assert!(!sealed.0.contains("canary"));
    assert_eq!(keyring.open(&a, "KEY", &sealed).await.unwrap().as_str(), "canary");
    assert!(matches!(keyring.open(&b, "KEY", &sealed).await, Err(KeyringError::Refused { .. })), "another tenant");
    assert!(keyring.open(&a, "OTHER", &sealed).await.is_err(), "another name");
    let second = keyring.seal(&a, "SECOND", "too").await.unwrap();
    assert_eq!(keyring.open(&a, "SECOND", &second).await.unwrap().as_str(), "too");
    let calls = connector.stats().snapshot();
    let sent = |call: &str| calls.iter().find(|(_, c, _)| *c == call).unwrap().2.sent;
    // One at the start, one for both secrets of the function; one opened, one refused.
    assert_eq!((sent("GenerateDataKey"), sent("Decrypt")), (2, 2), "secrets of a function share a data key");
    let missing = KmsKeyring::open(&connector, &place(), "alias/nobody").await.err().unwrap().to_string();
    assert!(missing.contains("alias/nobody") && missing.contains("GenerateDataKey"), "{missing}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn secrets_under_kms_over_a_bad_connection() {
    let good = connector();
    let client = aws_sdk_kms::Client::new(&good.sdk(&place()).await);
    let key = client.create_key().send().await.unwrap().key_metadata.unwrap().key_id;
    let bad = bad_connector("kms");
    // Each seals for functions of its own and opens what the other has sealed, so that nothing is remembered.
    let (one, other) =
        (KmsKeyring::open(&bad, &place(), &key).await.unwrap(), KmsKeyring::open(&bad, &place(), &key).await.unwrap());
    for n in 0..30 {
        let (here, elsewhere) = (path(&format!("acme/main/f{n}")), path(&format!("other/main/f{n}")));
        let sealed = one.seal(&here, "KEY", &format!("canary{n}")).await.unwrap();
        assert_eq!(other.open(&here, "KEY", &sealed).await.unwrap().as_str(), format!("canary{n}"));
        assert!(matches!(other.open(&elsewhere, "KEY", &sealed).await, Err(KeyringError::Refused { .. })), "another tenant");
    }
    let faults: u64 = bad.stats().snapshot().iter().map(|(_, _, counts)| counts.failed).sum();
    // Each of the refusals counts as failed, too.
    assert!(faults > 30 + 10, "the connection was bad: {faults} faults");
}

#[tokio::test]
async fn what_is_missing_is_named_with_what_to_do() {
    let connector = connector();
    let objects = Arc::new(S3Store::new(&connector, &place(), "no-such-bucket", None).await);
    let bucket = objects.put_bytes("x".into()).await.unwrap_err().to_string();
    assert!(bucket.contains("no-such-bucket") && bucket.contains("PutObject") && bucket.contains("init-aws"), "{bucket}");
    let table = DynamoStore::open(&connector, &place(), "no-such-table", objects).await.err().unwrap().to_string();
    assert!(table.contains("no-such-table") && table.contains("DescribeTable") && table.contains("init-aws"), "{table}");
    let queue = SqsQueue::open(&connector, &place(), "no-such-queue", "x").await.err().unwrap().to_string();
    assert!(queue.contains("no-such-queue") && queue.contains("GetQueueUrl") && queue.contains("init-aws"), "{queue}");
    let world = world(connector, "there", 5).await;
    let again = init::init(&world.connector, &places(), &world.design).await;
    assert!(matches!(again, Err(InitError::Exists { .. })), "{again:?}");
}

#[tokio::test]
async fn a_bucket_of_another_installation_is_refused() {
    let (one, other) = (world(connector(), "one", 5).await, world(connector(), "other", 5).await);
    one.records().await;
    let refused = DynamoStore::open(&one.connector, &place(), &other.design.table.name, one.objects().await).await;
    let refused = refused.err().unwrap().to_string();
    assert!(refused.contains(&one.design.bucket.name) && refused.contains("installation"), "{refused}");
}

#[tokio::test]
async fn out_of_reach_is_said_within_the_deadline() {
    let timeouts = Timeouts { read: Duration::from_millis(600), write: Duration::from_millis(600), ..Timeouts::default() };
    let good = world(connector(), "reach", 5).await;
    let table = good.records().await;
    drop(table);
    // Nobody listens on port 1.
    let nowhere = Place { region: Some("eu-central-1".into()), endpoint_url: Some("http://127.0.0.1:1".into()) };
    let connector = Connector::new(http_client(), timeouts).with_credentials(credentials());
    let queue = SqsQueue::open(&connector, &nowhere, "q", "d").await;
    assert!(matches!(queue, Err(QueueError::Unavailable { call: "GetQueueUrl", .. })));
    let objects = S3Store::new(&connector, &nowhere, "b", None).await;
    assert!(matches!(objects.ping().await, Err(ArtifactError::Unavailable { call: "HeadBucket", .. })));
    let counts = connector.stats().snapshot();
    assert!(counts.iter().all(|(_, _, c)| c.failed >= 2 && c.repeated >= 1), "it was tried again: {counts:?}");
}
