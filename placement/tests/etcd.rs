//! The coordinator, the table and the registration against a real etcd, which each test starts for itself; without etcd
//! installed these tests fail. What goes wrong is made to: stopped processes, connections that forward nothing, compaction.

use hearth_model::Timestamp;
use hearth_placement::{
    ChangeNotice, Config, Coordinator, EtcdConfig, EtcdCoordinator, LocalCoordinator, NodeRecord, NodeState, Notice, Notices,
    Registration, RegistrationError, RegistrationStatus, TableWatch, WatchConfig,
    coordinator::{Precondition, conformance},
    record::SCHEMA,
};
use std::{
    net::{SocketAddr, TcpListener as StdListener},
    process::{Child, Command, Stdio},
    sync::Arc,
    time::Duration,
};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpStream},
    sync::watch,
    time::{Instant, sleep},
};

const PATIENCE: Duration = Duration::from_secs(45);
const TTL: Duration = Duration::from_secs(3);

/// An etcd of one member. Ended with the test.
struct Etcd {
    child: Child,
    addr: SocketAddr,
    _data: tempfile::TempDir,
}

fn free_addr() -> SocketAddr {
    StdListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap()
}

impl Etcd {
    async fn start() -> Self {
        let data = tempfile::tempdir().unwrap();
        let (addr, peer) = (free_addr(), free_addr());
        let child = Command::new("etcd")
            .args(["--data-dir", data.path().join("etcd").to_str().unwrap(), "--logger", "zap", "--log-level", "error"])
            .args(["--listen-client-urls", &format!("http://{addr}"), "--advertise-client-urls", &format!("http://{addr}")])
            .args(["--listen-peer-urls", &format!("http://{peer}"), "--initial-advertise-peer-urls", &format!("http://{peer}")])
            .args(["--initial-cluster", &format!("default=http://{peer}")])
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .expect("etcd is needed: scripts/setup.sh test installs it");
        let etcd = Self { child, addr, _data: data };
        let until = Instant::now() + PATIENCE;
        while hearth_placement::connect(&config(etcd.addr)).await.is_err() {
            assert!(Instant::now() < until, "etcd did not start");
            sleep(Duration::from_millis(100)).await;
        }
        etcd
    }

    fn signal(&self, signal: &str) {
        assert!(Command::new("kill").args([signal, &self.child.id().to_string()]).status().unwrap().success());
    }
}

impl Drop for Etcd {
    fn drop(&mut self) {
        // A stopped process cannot be waited for before it goes on; SIGKILL ends it all the same.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn etcd_config(addr: SocketAddr) -> EtcdConfig {
    EtcdConfig { deadline: Duration::from_secs(2), ..EtcdConfig::new(vec![addr.to_string()]) }
}

fn config(addr: SocketAddr) -> Config {
    Config::Etcd(etcd_config(addr))
}

async fn client(addr: SocketAddr) -> Arc<dyn Coordinator> {
    Arc::new(EtcdCoordinator::new(&etcd_config(addr)).await.unwrap())
}

/// Connections through which nothing passes any more when it is told so, though nobody closes them.
struct Proxy {
    addr: SocketAddr,
    is_open: watch::Sender<bool>,
}

impl Proxy {
    async fn start(to: SocketAddr) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let addr = listener.local_addr().unwrap();
        let (is_open, gate) = watch::channel(true);
        tokio::spawn(async move {
            while let Ok((inward, _)) = listener.accept().await {
                if let Ok(outward) = TcpStream::connect(to).await {
                    let ((a, b), (c, d)) = (inward.into_split(), outward.into_split());
                    tokio::spawn(forward(a, d, gate.clone()));
                    tokio::spawn(forward(c, b, gate.clone()));
                }
            }
        });
        Self { addr, is_open }
    }

    fn set_open(&self, is_open: bool) {
        self.is_open.send_replace(is_open);
    }
}

async fn forward(
    mut from: impl AsyncReadExt + Unpin,
    mut to: impl AsyncWriteExt + Unpin,
    mut gate: watch::Receiver<bool>,
) -> std::io::Result<()> {
    let mut buffer = vec![0; 16 << 10];
    loop {
        let count = from.read(&mut buffer).await?;
        if count == 0 {
            return to.shutdown().await;
        }
        if gate.wait_for(|is_open| *is_open).await.is_err() {
            return Ok(());
        }
        to.write_all(&buffer[..count]).await?;
    }
}

fn record(name: &str, incarnation: u64, addr: SocketAddr) -> NodeRecord {
    NodeRecord {
        schema: SCHEMA,
        name: name.parse().unwrap(),
        incarnation,
        data_addr: addr,
        control_addr: addr,
        zone: "a".into(),
        capacity: 1,
        state: NodeState::Active,
        links: true,
        started_at: Timestamp(0),
    }
}

fn watch_config() -> WatchConfig {
    WatchConfig {
        progress_interval: Duration::from_millis(300),
        silence_deadline: Duration::from_millis(1500),
        stale_after: Duration::from_secs(2),
        ..WatchConfig::default()
    }
}

async fn table(c: Arc<dyn Coordinator>) -> TableWatch {
    TableWatch::start(c, "/hearth", watch_config(), None).await.unwrap()
}

fn names(table: &TableWatch) -> Vec<String> {
    table.table().nodes().iter().map(|node| node.record.name.to_string()).collect()
}

async fn until(what: &str, mut holds: impl FnMut() -> bool) {
    let end = Instant::now() + PATIENCE;
    while !holds() {
        assert!(Instant::now() < end, "not in time: {what}");
        sleep(Duration::from_millis(20)).await;
    }
}

/// A node with a real listener, so that probes find it alive.
async fn node(c: &Arc<dyn Coordinator>, name: &str) -> (StdListener, Registration) {
    let listener = StdListener::bind("127.0.0.1:0").unwrap();
    let record = record(name, 1, listener.local_addr().unwrap());
    (listener, Registration::start(c.clone(), "/hearth", record, TTL).await.unwrap())
}

#[tokio::test(start_paused = true)]
async fn the_local_coordinator_passes_the_suite() {
    conformance::all(Arc::new(LocalCoordinator::new())).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn etcd_passes_the_suite() {
    let etcd = Etcd::start().await;
    conformance::all(client(etcd.addr).await).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_silent_watch_is_noticed_and_compaction_meanwhile_leaves_no_ghosts() {
    let etcd = Etcd::start().await;
    let (direct, proxy) = (client(etcd.addr).await, Proxy::start(etcd.addr).await);
    let (_a, a) = node(&direct, "a").await;
    let (_b, _b_registered) = node(&direct, "b").await;
    let table = table(client(proxy.addr).await).await;
    assert_eq!(names(&table), ["a", "b"]);
    proxy.set_open(false);
    until("stale", || table.is_stale()).await;
    assert_eq!(names(&table), ["a", "b"], "the last table stays");
    a.leave().await;
    let (_c, _c_registered) = node(&direct, "c").await;
    let revision = direct.list("/hearth/").await.unwrap().revision;
    direct.compact(revision).await.unwrap();
    proxy.set_open(true);
    until("the table caught up", || names(&table) == ["b", "c"] && !table.is_stale()).await;
    let listed = direct.list("/hearth/nodes/").await.unwrap().items;
    assert_eq!(names(&table).len(), listed.len());
}

#[tokio::test(flavor = "multi_thread")]
async fn leases_revoked_under_living_nodes_come_back_and_all_at_once_are_never_dropped() {
    let etcd = Etcd::start().await;
    let direct = client(etcd.addr).await;
    let (_a, _ra) = node(&direct, "a").await;
    let (_b, _rb) = node(&direct, "b").await;
    let (_c, _rc) = node(&direct, "c").await;
    let table = table(direct.clone()).await;
    let mut raw = etcd_client::Client::connect([etcd.addr.to_string()], None).await.unwrap();
    let before = direct.list("/hearth/nodes/").await.unwrap().items;
    for lease in raw.leases().await.unwrap().leases() {
        raw.lease_revoke(lease.id()).await.unwrap();
    }
    let mut fewest = 3;
    let end = Instant::now() + PATIENCE;
    loop {
        fewest = fewest.min(names(&table).len());
        let now = direct.list("/hearth/nodes/").await.unwrap().items;
        if now.len() == 3 && now.iter().zip(&before).all(|(a, b)| a.mod_revision > b.mod_revision) {
            break;
        }
        assert!(Instant::now() < end, "the nodes did not come back");
        sleep(Duration::from_millis(5)).await;
    }
    until("nobody is suspect", || {
        let table = table.table();
        table.nodes().len() == 3 && table.nodes().iter().all(|node| !node.is_suspect)
    })
    .await;
    assert!(fewest >= 2, "at most the first of them was believed to be gone");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stopped_etcd_changes_no_table_and_routes_stay_answerable() {
    let etcd = Etcd::start().await;
    let direct = client(etcd.addr).await;
    let (_a, registration) = node(&direct, "a").await;
    let table = table(direct.clone()).await;
    etcd.signal("-STOP");
    until("stale", || table.is_stale()).await;
    let status = registration.status();
    until("the node knows", || *status.borrow() == RegistrationStatus::Unknown).await;
    let mut out = hearth_placement::Candidates::new();
    table.table().candidates("acme", "main", &mut out);
    assert_eq!(out.as_slice().len(), 1);
    assert!(direct.get("/hearth/x").await.is_err(), "a call to a stopped etcd ends at its deadline");
    etcd.signal("-CONT");
    until("fresh", || !table.is_stale()).await;
    until("registered", || *status.borrow() == RegistrationStatus::Registered(NodeState::Active)).await;
    assert_eq!(names(&table), ["a"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_name_held_by_a_living_node_is_refused_and_free_when_its_lease_ended() {
    let etcd = Etcd::start().await;
    let direct = client(etcd.addr).await;
    let (_a, first) = node(&direct, "a").await;
    let other = record("a", 2, free_addr());
    let refused = Registration::start(direct.clone(), "/hearth", other.clone(), TTL).await;
    let Err(RegistrationError::NameHeld { name, incarnation: 1, .. }) = refused else { panic!("not refused") };
    assert_eq!(name, "a");
    // Dropped, not left: as after a crash.
    drop(first);
    let second = Registration::start(direct.clone(), "/hearth", other, Duration::from_secs(10)).await.unwrap();
    let item = direct.get("/hearth/nodes/a").await.unwrap().unwrap();
    assert_eq!(NodeRecord::decode("a", &item.value).unwrap().incarnation, 2);
    second.set_state(NodeState::Draining).await.unwrap();
    let item = direct.get("/hearth/nodes/a").await.unwrap().unwrap();
    assert_eq!(NodeRecord::decode("a", &item.value).unwrap().state, NodeState::Draining);
    second.leave().await;
    assert!(direct.get("/hearth/nodes/a").await.unwrap().is_none());
}

#[tokio::test(flavor = "multi_thread")]
async fn garbage_in_keys_is_left_out_and_the_table_on_disk_serves_without_etcd() {
    let etcd = Etcd::start().await;
    let direct = client(etcd.addr).await;
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("table.json");
    let (_a, _registered) = node(&direct, "a").await;
    let garbage: [(&str, &[u8]); 4] =
        [("nodes/b", b"\xff\xfe"), ("nodes/UPPER", b"{}"), ("nodes/c", br#"{"schema":7,"name":"c"}"#), ("plan/00", b"[1]")];
    for (key, value) in garbage {
        direct.put(&format!("/hearth/{key}"), value.to_vec(), Precondition::Any, None).await.unwrap();
    }
    let table = TableWatch::start(direct.clone(), "/hearth", watch_config(), Some(path.clone())).await.unwrap();
    assert_eq!(names(&table), ["a"]);
    assert_eq!(table.keys_skipped(), 4);
    direct.put("/hearth/nodes/a", b"garbage".to_vec(), Precondition::Any, None).await.unwrap();
    until("the fifth is counted", || table.keys_skipped() == 5).await;
    assert_eq!(names(&table), ["a"], "garbage does not remove a node");
    table.stop().await;

    let nowhere = free_addr();
    let refused = hearth_placement::connect(&config(nowhere)).await.err().unwrap().to_string();
    assert!(refused.contains("placement.endpoints") && refused.contains(&nowhere.to_string()), "{refused}");
    let lazy = hearth_placement::connect_lazy(&config(nowhere)).await.unwrap();
    let stale = TableWatch::start(lazy.clone(), "/hearth", watch_config(), Some(path)).await.unwrap();
    assert_eq!(names(&stale), ["a"]);
    assert!(stale.is_stale());
    let config = WatchConfig { start_deadline: Duration::from_millis(300), ..watch_config() };
    let none = TableWatch::start(lazy, "/hearth", config, Some(dir.path().join("other"))).await.err().unwrap();
    assert!(none.to_string().contains("placement.endpoints"), "{none}");
}

#[tokio::test(flavor = "multi_thread")]
async fn notices_reach_subscribers_and_a_gap_is_a_resync() {
    let etcd = Etcd::start().await;
    let (direct, proxy) = (client(etcd.addr).await, Proxy::start(etcd.addr).await);
    let mut heard = Notices::new(client(proxy.addr).await, "/hearth").subscribe();
    assert!(matches!(heard.recv().await.unwrap(), Notice::Resync { .. }));
    let publisher = Notices::new(direct, "/hearth");
    let notice = ChangeNotice { path: "acme/main/hello".into(), origin: "a".into() };
    publisher.publish(&notice).await.unwrap();
    assert_eq!(heard.recv().await.unwrap(), Notice::Changed(notice.clone()));
    proxy.set_open(false);
    publisher.publish(&notice).await.unwrap();
    // Longer than the watch may be silent, so that it is built again.
    sleep(Duration::from_secs(5)).await;
    proxy.set_open(true);
    let resync = async { while !matches!(heard.recv().await.unwrap(), Notice::Resync { .. }) {} };
    tokio::time::timeout(PATIENCE, resync).await.expect("a resync after the gap");
}
