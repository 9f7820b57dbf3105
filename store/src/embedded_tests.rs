//! The embedded backends pass the suites, and refuse what they should.

use crate::{Config, StoreError, conformance, sqlite::SqliteStore};

#[tokio::test]
async fn functions() {
    let dir = tempfile::tempdir().unwrap();
    conformance::functions(crate::open(&Config::embedded(dir.path())).await.unwrap().functions).await;
}

#[tokio::test]
async fn artifacts() {
    let dir = tempfile::tempdir().unwrap();
    let stores = crate::open(&Config::embedded(dir.path())).await.unwrap();
    conformance::artifacts(stores.artifacts).await;
    assert_eq!(std::fs::read_dir(dir.path().join("artifacts/tmp")).unwrap().count(), 0, "no temporary file is left");
}

#[tokio::test]
async fn an_altered_artifact_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    let store = crate::open(&Config::embedded(dir.path())).await.unwrap().artifacts;
    let (name, _) = store.put_bytes("hello".into()).await.unwrap();
    let file = dir.path().join("artifacts").join(&name[..2]).join(&name);
    for altered in ["hellO", "hell"] {
        std::fs::write(&file, altered).unwrap();
        let (_, chunks) = store.get(&name).await.unwrap();
        let read: Vec<_> = futures_util::StreamExt::collect(chunks).await;
        assert!(matches!(read.last(), Some(Err(crate::ArtifactError::Mismatch { .. }))), "{altered}");
    }
}

#[tokio::test]
async fn queue() {
    let dir = tempfile::tempdir().unwrap();
    let store = SqliteStore::open(&dir.path().join("q.db"), 3).unwrap();
    conformance::queue(std::sync::Arc::new(store), 3).await;
}

#[test]
fn a_file_of_a_newer_schema_is_refused_untouched() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("hearth.db");
    let connection = rusqlite::Connection::open(&file).unwrap();
    connection.execute_batch("PRAGMA user_version = 999").unwrap();
    drop(connection);
    let before = std::fs::read(&file).unwrap();
    assert!(matches!(SqliteStore::open(&file, 5), Err(StoreError::NewerSchema { found: 999, .. })));
    assert_eq!(std::fs::read(&file).unwrap(), before);
}
