//! What was acknowledged survives the sudden end of the process: a child writes and says so, is killed at a random moment, and
//! everything that it had said must be there.

use hearth_model::{Container, FunctionPath, Tenant, Timestamp, VersionNumber, VersionStatus};
use hearth_store::{FunctionStore, NewVersion, Precondition, sqlite::SqliteStore};
use std::{
    collections::BTreeMap,
    io::{BufRead, BufReader, Write},
    path::Path,
    process::{Command, Stdio},
    time::Duration,
};

const CHILD: &str = "HEARTH_TEST_CRASH_FILE";

fn path() -> FunctionPath {
    "acme/main/f".parse().unwrap()
}

fn version() -> NewVersion {
    NewVersion {
        status: VersionStatus::Ready,
        code: hearth_model::CodeRef::Inline(BTreeMap::from([("index.js".into(), "x".repeat(2_000))])),
        main: "index.js".into(),
        model: None,
        timeout_ms: 1_000,
        dependencies: BTreeMap::new(),
        modules: vec![],
        env: BTreeMap::new(),
        secrets: BTreeMap::new(),
    }
}

async fn write_until_killed(file: &Path) {
    let store = SqliteStore::open(file, 5).unwrap();
    let path = path();
    let tenant = Tenant::new(path.tenant.clone());
    store.put_tenant(tenant, Precondition::None).await.unwrap();
    store.put_container(Container::with_defaults(&path.container_path(), Timestamp(0)), Precondition::None).await.unwrap();
    loop {
        let (_, made) = store.create_version(&path, version(), Precondition::None).await.unwrap();
        let mut out = std::io::stdout().lock();
        writeln!(out, "made {}", made.version).unwrap();
        out.flush().unwrap();
    }
}

#[test]
fn what_was_acknowledged_is_there_after_a_kill() {
    let runtime = tokio::runtime::Runtime::new().unwrap();
    if let Some(file) = std::env::var_os(CHILD) {
        runtime.block_on(write_until_killed(Path::new(&file)));
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("hearth.db");
    let mut acknowledged = 0;
    for round in 0..6_u64 {
        let mut child = Command::new(std::env::current_exe().unwrap())
            .args(["--exact", "what_was_acknowledged_is_there_after_a_kill", "--nocapture"])
            .env(CHILD, &file)
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        let mut lines = BufReader::new(child.stdout.take().unwrap()).lines();
        // Killed after a few writes, at another moment each round.
        for line in lines.by_ref().map_while(Result::ok) {
            if let Some(number) = line.rsplit_once("made ").and_then(|(_, n)| n.parse::<u64>().ok()) {
                acknowledged = number;
                if number % 5 == round % 5 {
                    break;
                }
            }
        }
        std::thread::sleep(Duration::from_micros(700 * round));
        child.kill().unwrap();
        child.wait().unwrap();
        let late = lines.map_while(Result::ok).filter_map(|l| l.rsplit_once("made ")?.1.parse::<u64>().ok()).last();
        acknowledged = late.unwrap_or(acknowledged);
        runtime.block_on(async {
            let store = SqliteStore::open(&file, 5).unwrap();
            let function = store.get_function(&path()).await.unwrap().unwrap();
            assert!(
                function.latest.0 >= acknowledged,
                "round {round}: {} was acknowledged, {} is there",
                acknowledged,
                function.latest
            );
            let newest = store.get_version(&path(), VersionNumber(acknowledged)).await.unwrap();
            assert!(newest.is_some(), "round {round}: version {acknowledged} is gone");
        });
    }
    assert!(acknowledged > 6, "every round made progress");
}
