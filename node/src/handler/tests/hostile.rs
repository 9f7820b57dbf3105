use super::*;
use crate::logs::{LogItem, LogLine};
use bytesize::ByteSize;
use futures_util::StreamExt;
use hearth_model::protocol::ToRuntime;
use scripted::Told;
use serde_json::json;

async fn next_line(stream: &mut crate::logs::LogStream) -> Arc<LogLine> {
    match tokio::time::timeout(LIMIT, stream.next()).await.unwrap() {
        Some(LogItem::Line(line)) => line,
        other => panic!("{other:?}"),
    }
}

async fn answers(f: &Fixture, count: usize) -> Vec<ToRuntime> {
    let all = || f.sandbox.told().into_iter().filter_map(|(_, t)| if let Told::Storage(m) = t { Some(m) } else { None }).collect::<Vec<_>>();
    eventually("the storage answered", || all().len() >= count).await;
    all()
}

#[tokio::test]
async fn lines_are_attributed_only_to_functions_of_the_container() {
    let f = Fixture::new().await;
    let handler = f.handler(on_demand()).await;
    let lease = handler.acquire(&record("acme/main/hello").done()).await.unwrap();
    let id = &lease.container().sandbox_id;
    let mut stream = f.logs.subscribe(lease.container().path());
    let log = |function: &str, version: u64, request: &str| {
        json!({"t": "log", "function": function, "version": version, "request_id": request, "level": "info", "line": "x", "at": 0}).to_string()
    };
    for (function, version, request) in [("hello", 1, "r-1"), ("hello", 9, "r-2"), ("other", 1, "bad id")] {
        f.sandbox.say(id, log(function, version, request)).await;
    }
    let seen: Vec<_> = [next_line(&mut stream).await, next_line(&mut stream).await, next_line(&mut stream).await]
        .iter()
        .map(|l| (l.function.as_ref().map(|f| f.as_str().to_owned()), l.version.map(|v| v.0), l.request_id.clone()))
        .collect();
    assert_eq!(seen[0], (Some("hello".into()), Some(1), Some("r-1".into())));
    assert_eq!(seen[1], (Some("hello".into()), None, Some("r-2".into())));
    assert_eq!(seen[2], (None, None, None));
}

#[tokio::test]
async fn a_flood_of_lines_is_cut_and_counted() {
    let f = Fixture::new().await;
    let handler = f.handler(Config { log_rate: ByteSize::b(1), log_burst: ByteSize::b(1_000), ..on_demand() }).await;
    let lease = handler.acquire(&record("acme/main/hello").done()).await.unwrap();
    let line = json!({"t": "log", "level": "info", "line": "y".repeat(136), "at": 0}).to_string();
    for _ in 0..20 {
        f.sandbox.say(&lease.container().sandbox_id, line.clone()).await;
    }
    eventually("all have come", || {
        let counts = handler.status().counts;
        counts.log_lines + counts.log_lines_dropped == 20
    })
    .await;
    assert_eq!(handler.status().counts.log_lines, 5, "five lines of 200 bytes");
    assert_eq!(handler.status().containers[0].log_lines_dropped, 15);
}

#[tokio::test]
async fn storage_serves_the_containers_own_functions_with_etags() {
    let f = Fixture::new().await;
    seed(&f).await;
    let handler = f.handler(on_demand()).await;
    let lease = handler.acquire(&record("acme/main/hello").done()).await.unwrap();
    let id = &lease.container().sandbox_id;
    let mut count = 0;
    let mut call = async |message: serde_json::Value| {
        f.sandbox.say(id, message.to_string()).await;
        count += 1;
        match answers(&f, count).await.pop().unwrap() {
            ToRuntime::Storage { data, etag, conflict, error, .. } => (data, etag, conflict, error),
            other => panic!("{other:?}"),
        }
    };
    assert_eq!(call(json!({"t": "storage_get", "id": 1, "function": "hello"})).await, (None, None, false, None));
    let (_, etag, conflict, error) = call(json!({"t": "storage_set", "id": 2, "function": "hello", "data": {"n": 1}})).await;
    assert!(etag.is_some() && !conflict && error.is_none(), "{error:?}");
    let stale = call(json!({"t": "storage_set", "id": 3, "function": "hello", "data": {"n": 2}})).await;
    assert_eq!((stale.0, stale.2), (Some(json!({"n": 1})), true), "who has read nothing overwrites nothing");
    let fresh = call(json!({"t": "storage_set", "id": 4, "function": "hello", "data": {"n": 2}, "etag": etag})).await;
    assert!(!fresh.2 && fresh.1 != etag);
    assert!(call(json!({"t": "storage_set", "id": 5, "function": "hello", "data": 1, "etag": "nonsense"})).await.2);
    assert!(!call(json!({"t": "storage_set", "id": 6, "function": "hello", "data": {"n": 3}, "force": true})).await.2);
    assert_eq!(call(json!({"t": "storage_get", "id": 7, "function": "hello"})).await.0, Some(json!({"n": 3})));
    let large = "x".repeat(hearth_model::limits::STORAGE_DOCUMENT_BYTES_MAX - 1);
    assert!(call(json!({"t": "storage_set", "id": 8, "function": "hello", "data": large, "force": true})).await.3.is_some(), "one past the bound");
    let largest = "x".repeat(hearth_model::limits::STORAGE_DOCUMENT_BYTES_MAX - 2);
    assert!(call(json!({"t": "storage_set", "id": 9, "function": "hello", "data": largest, "force": true})).await.3.is_none(), "at the bound");
    let deleted = call(json!({"t": "storage_set", "id": 10, "function": "hello", "data": null})).await;
    assert_eq!((deleted.1, deleted.2, deleted.3), (None, false, None));
    assert!(!call(json!({"t": "storage_set", "id": 11, "function": "hello", "data": 1})).await.2);
    assert!(call(json!({"t": "storage_get", "id": 12, "function": "other"})).await.3.is_some(), "not one of this container");
}

async fn seed(f: &Fixture) {
    let servable = record("acme/main/hello").0;
    let store = &f.stores.functions;
    let live = servable.live.unwrap();
    store.put_tenant(servable.tenant, hearth_store::Precondition::None).await.unwrap();
    store.put_container(servable.container, hearth_store::Precondition::None).await.unwrap();
    let new = hearth_store::NewVersion {
        status: live.status,
        code: live.code,
        main: live.main,
        model: None,
        timeout_ms: live.timeout_ms,
        dependencies: BTreeMap::new(),
        modules: Vec::new(),
        env: BTreeMap::new(),
        secrets: BTreeMap::new(),
    };
    store.create_version(&servable.function.path, new, hearth_store::Precondition::None).await.unwrap();
}

#[tokio::test]
async fn nonsense_is_borne_for_a_while_and_then_ends_the_container() {
    let f = Fixture::new().await;
    let handler = f.handler(on_demand()).await;
    let servable = record("acme/main/hello").done();
    let lease = handler.acquire(&servable).await.unwrap();
    let id = lease.container().sandbox_id.clone();
    for n in 0..20 {
        f.sandbox.say(&id, format!("{{nonsense {n}")).await;
    }
    eventually("it is counted", || handler.status().counts.control_nonsense == 20).await;
    handler.suspect(lease.container());
    eventually("it was asked", || !lease.container().suspected.load(std::sync::atomic::Ordering::Relaxed)).await;
    assert!(lease.container().is_alive());
    let sandbox = f.sandbox.clone();
    let talk = tokio::spawn(async move {
        for n in 0..200 {
            sandbox.say(&id, format!("{{nonsense {n}")).await;
        }
    });
    lease.container().exited().await;
    talk.abort();
    assert_eq!(handler.status().counts.ended["broken"], 1);
    assert_ne!(handler.acquire(&servable).await.unwrap().container().id(), lease.container().id());
}

#[tokio::test]
async fn a_line_without_end_ends_the_container() {
    let f = Fixture::new().await;
    let handler = f.handler(on_demand()).await;
    let lease = handler.acquire(&record("acme/main/hello").done()).await.unwrap();
    let long = "x".repeat(hearth_model::limits::CONTROL_MESSAGE_BYTES_MAX + 64 * 1024);
    f.sandbox.say(&lease.container().sandbox_id, long).await;
    lease.container().exited().await;
}

#[tokio::test]
async fn a_link_in_place_of_the_socket_is_not_followed() {
    let f = Fixture::new().await;
    let handler = f.handler(on_demand()).await;
    let lease = handler.acquire(&record("acme/main/hello").done()).await.unwrap();
    let elsewhere = f.dir.path().join("docker.sock");
    let _listener = tokio::net::UnixListener::bind(&elsewhere).unwrap();
    let socket = f.slot(lease.container()).join("run/http.sock");
    std::fs::remove_file(&socket).unwrap();
    std::os::unix::fs::symlink(&elsewhere, &socket).unwrap();
    assert!(lease.container().connect().await.is_err());
}
