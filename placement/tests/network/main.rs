//! The whole of a cluster's placement on a simulated network: each router, node and leader is a host of its own, whose every word to the
//! coordinator, to nodes and to what it probes is a TCP connection that can be cut in one direction or both, held up, slowed down or end
//! with its host. What goes wrong is drawn from a seed: `HEARTH_SIM_SEED=n` lets the same go wrong again, if not at the very same instant of
//! each task, and `HEARTH_SIM_SEEDS=n` runs so many.
//!
//! `simulation.rs` does the same without a network: there connections to the coordinator fail in the ways that etcd's do, and many more
//! seeds fit into the same time.

mod coordinator;
#[path = "../support/mod.rs"]
mod support;

use async_trait::async_trait;
use coordinator::Remote;
use hearth_placement::{
    Candidates, Coordinator, Eviction, Exceptions, Leader, LeaderConfig, LocalCoordinator, NodeCalls, NodeName, NodeRecord,
    NodeState, NodeStats, PlannerConfig, Probe, Registration, RouteTable, TableNode, TableWatch, WatchConfig,
};
use parking_lot::Mutex;
use rand::{Rng, SeedableRng, rngs::StdRng};
use std::{
    io,
    net::SocketAddr,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering::Relaxed},
    },
    time::Duration,
};
use support::{PREFIX, TENANTS, assert_bound, assert_moves, assert_same, loads, record, weights};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    time::{sleep, timeout},
};
use tokio_util::sync::CancellationToken;
use turmoil::{
    Sim,
    net::{TcpListener, TcpStream},
};

const NODES: usize = 6;
const ROUTERS: usize = 2;
const LEADERS: usize = 2;
const STEPS: usize = 60;
const SEEDS: u64 = 3;
const TTL: Duration = Duration::from_secs(5);
const PORT: u16 = 8080;
/// How long an attempt at one node may take.
const ATTEMPT: Duration = Duration::from_millis(1_500);
/// After so long without trouble between all who matter to it a request must be answered.
const CALM: Duration = Duration::from_secs(40);
const TICK: Duration = Duration::from_millis(10);

/// What goes on, for the one who watches from outside of the network.
#[derive(Default)]
struct Observed {
    tables: [Mutex<Option<TableWatch>>; ROUTERS],
    /// Requests that no node answered, and when they began, in simulated time.
    unanswered: [Mutex<Vec<(Duration, String)>>; ROUTERS],
    asked: AtomicU64,
    answered: AtomicU64,
    failed: AtomicU64,
    /// Generation and epoch of the plan.
    plan: Mutex<(u64, u64)>,
    incarnations: AtomicU64,
    drains: [AtomicBool; NODES],
    /// Whose leases are to end: prefixes of keys.
    ends: Mutex<Vec<String>>,
    compacts: AtomicBool,
    weights: Vec<f64>,
}

/// A request, which is answered with the name and the incarnation of the node.
async fn call(addr: SocketAddr) -> io::Result<String> {
    let exchange = async {
        let mut stream = TcpStream::connect(addr).await?;
        stream.write_all(b"?").await?;
        let mut who = String::new();
        stream.read_to_string(&mut who).await?;
        Ok(who)
    };
    timeout(ATTEMPT, exchange).await?
}

fn who_is(record: &NodeRecord) -> String {
    format!("{} {}", record.name, record.incarnation)
}

async fn is_answered(record: &NodeRecord) -> bool {
    call(record.data_addr).await.is_ok_and(|who| who == who_is(record))
}

struct CallProbe;

#[async_trait]
impl Probe for CallProbe {
    async fn is_alive(&self, node: &NodeRecord) -> bool {
        is_answered(node).await
    }
}

/// Loads as if every request went where the first router's table says, of the nodes that can be reached.
struct Loads(Arc<Observed>);

#[async_trait]
impl NodeCalls for Loads {
    async fn collect(&self, nodes: &[NodeRecord]) -> Vec<(NodeName, NodeStats)> {
        let Some(table) = self.0.tables[0].lock().as_ref().map(TableWatch::table) else { return vec![] };
        let stats = loads(&table, &self.0.weights);
        let reached = futures_util::future::join_all(nodes.iter().map(is_answered)).await;
        let of =
            |node: &NodeRecord| table.index_of(&node.name).map_or_else(NodeStats::default, |at| stats[usize::from(at)].clone());
        nodes.iter().zip(reached).filter(|(_, reached)| *reached).map(|(node, _)| (node.name.clone(), of(node))).collect()
    }

    /// Placement never depends on it.
    async fn evict(&self, _: &[NodeRecord], _: &[Eviction], _: u64) {}
}

/// The coordinator's host, which knows the plan best and sees that it never goes back.
async fn etcd(observed: Arc<Observed>) -> turmoil::Result {
    let store = LocalCoordinator::new();
    tokio::spawn(coordinator::serve(store.clone()));
    loop {
        sleep(Duration::from_millis(50)).await;
        for prefix in observed.ends.lock().drain(..) {
            store.end_leases_below(&prefix);
        }
        if observed.compacts.swap(false, Relaxed) {
            store.compact(store.list(PREFIX).await?.revision).await?;
        }
        let item = store.get(&format!("{PREFIX}/plan/00")).await?;
        let now = item.map_or((0, 0), |item| {
            let shard = Exceptions::decode(&item.value).unwrap();
            (shard.generation, shard.epoch)
        });
        let before = std::mem::replace(&mut *observed.plan.lock(), now);
        assert!(now.0 >= before.0 && now.1 >= before.1, "the plan went back from {before:?} to {now:?}");
    }
}

async fn node(observed: Arc<Observed>, index: usize) -> turmoil::Result {
    let addr = SocketAddr::new(turmoil::lookup(format!("node-{index}")), PORT);
    let record = record(index, observed.incarnations.fetch_add(1, Relaxed) + 1, addr);
    let (listener, who) = (TcpListener::bind(("0.0.0.0", PORT)).await?, who_is(&record));
    tokio::spawn(async move {
        while let Ok((mut stream, _)) = listener.accept().await {
            let who = who.clone();
            tokio::spawn(async move {
                let mut asked = [0];
                if stream.read_exact(&mut asked).await.is_ok() {
                    // Who asked may be gone.
                    let _ = stream.write_all(who.as_bytes()).await;
                }
            });
        }
    });
    // A node that cannot register is started again by its operator.
    let registration = loop {
        match Registration::start(Arc::new(Remote), PREFIX, record.clone(), TTL).await {
            Ok(registration) => break registration,
            Err(_) => sleep(Duration::from_secs(1)).await,
        }
    };
    let mut said = NodeState::Active;
    loop {
        sleep(Duration::from_millis(100)).await;
        let state = if observed.drains[index].load(Relaxed) { NodeState::Draining } else { NodeState::Active };
        if state != said {
            // What could not be said now is said later, by the registration itself.
            let _ = registration.set_state(state).await;
            said = state;
        }
    }
}

async fn router(observed: Arc<Observed>, index: usize) -> turmoil::Result {
    let config = WatchConfig { resync_interval: Duration::from_secs(30), ..WatchConfig::default() };
    let table = TableWatch::start_with(Arc::new(Remote), PREFIX, config, None, Arc::new(CallProbe)).await?;
    *observed.tables[index].lock() = Some(table.clone());
    for tenant in (0..TENANTS).cycle() {
        sleep(Duration::from_millis(100)).await;
        let (observed, table, began) = (Arc::clone(&observed), table.table(), turmoil::sim_elapsed().unwrap());
        observed.asked.fetch_add(1, Relaxed);
        tokio::spawn(async move {
            let tenant = format!("tenant-{tenant}");
            let mut candidates = Candidates::new();
            table.candidates(&tenant, "main", &mut candidates);
            for candidate in candidates.as_slice() {
                if is_answered(&table.node(*candidate).unwrap().record).await {
                    observed.answered.fetch_add(1, Relaxed);
                    return;
                }
            }
            observed.failed.fetch_add(1, Relaxed);
            observed.unanswered[index].lock().push((began, format!("{tenant} by {:?}", table.nodes())));
        });
    }
    Ok(())
}

async fn leader(observed: Arc<Observed>, index: usize) -> turmoil::Result {
    let config = LeaderConfig { planner: PlannerConfig { moves_max: 64, ..PlannerConfig::default() }, ..LeaderConfig::default() };
    let leader = Leader::new(Arc::new(Remote), PREFIX, &format!("leader-{index}"), Arc::new(Loads(observed)), config);
    leader.run(CancellationToken::new()).await;
    Ok(())
}

fn hosts(kind: &str, count: usize) -> impl Iterator<Item = String> {
    (0..count).map(move |index| format!("{kind}-{index}"))
}

struct World<'a> {
    sim: Sim<'a>,
    rng: StdRng,
    observed: Arc<Observed>,
    /// Nodes that run.
    living: [bool; NODES],
    /// When trouble last was possible between a router and a node, one of them and the coordinator, or the node itself: until then.
    troubled: [[Duration; NODES]; ROUTERS],
    /// Pairs of hosts between which something is wrong.
    wrong: Vec<(String, String)>,
    trace: String,
}

impl World<'_> {
    fn new(seed: u64) -> Self {
        let mut rng = StdRng::seed_from_u64(seed);
        let observed = Arc::new(Observed { weights: weights(&mut rng), ..Observed::default() });
        let mut sim = turmoil::Builder::new()
            .rng_seed(seed)
            .tick_duration(TICK)
            .min_message_latency(Duration::from_millis(1))
            .max_message_latency(Duration::from_millis(20))
            .tcp_capacity(1_024)
            .simulation_duration(Duration::from_secs(3_600))
            .build();
        let of = |observed: &Arc<Observed>| Arc::clone(observed);
        sim.host(coordinator::HOST, {
            let observed = of(&observed);
            move || etcd(of(&observed))
        });
        for index in 0..NODES {
            let observed = of(&observed);
            sim.host(format!("node-{index}"), move || node(of(&observed), index));
        }
        for index in 0..ROUTERS {
            let observed = of(&observed);
            sim.host(format!("router-{index}"), move || router(of(&observed), index));
        }
        for index in 0..LEADERS {
            let observed = of(&observed);
            sim.host(format!("leader-{index}"), move || leader(of(&observed), index));
        }
        let trace = format!("seed {seed}, replay with HEARTH_SIM_SEED={seed}\n");
        let (living, troubled) = ([true; NODES], [[Duration::ZERO; NODES]; ROUTERS]);
        Self { sim, rng, observed, living, troubled, wrong: vec![], trace }
    }

    /// Lets time pass, and looks at all that must hold at any time.
    fn run(&mut self, time: Duration) {
        let end = self.sim.elapsed() + time;
        while self.sim.elapsed() < end {
            if let Err(error) = self.sim.step() {
                panic!("{error}\n{}", self.trace);
            }
            self.take_note();
        }
        self.check();
    }

    /// Who is in trouble now.
    fn take_note(&mut self) {
        let now = self.sim.elapsed();
        let is_wrong = |a: &str, b: &str| self.wrong.iter().any(|(x, y)| x == a && y == b || x == b && y == a);
        for (r, troubled) in self.troubled.iter_mut().enumerate() {
            for (n, troubled) in troubled.iter_mut().enumerate() {
                let (router, node) = (format!("router-{r}"), format!("node-{n}"));
                let apart = is_wrong(&router, &node) || is_wrong(&router, coordinator::HOST) || is_wrong(&node, coordinator::HOST);
                if apart || !self.living[n] {
                    *troubled = now;
                }
            }
        }
    }

    fn tables(&self) -> Vec<Arc<RouteTable>> {
        self.observed.tables.iter().filter_map(|table| table.lock().as_ref().map(TableWatch::table)).collect()
    }

    fn check(&mut self) {
        let (tables, trace) = (self.tables(), &self.trace);
        for table in &tables {
            let mut out = Candidates::new();
            for index in 0..TENANTS {
                table.candidates(&format!("tenant-{index}"), "main", &mut out);
                assert!(!out.as_slice().is_empty(), "no route\n{trace}");
            }
        }
        // Suspects are each router's own knowledge; without them a revision is one table.
        let has_suspects = |table: &RouteTable| table.nodes().iter().any(|node| node.is_suspect);
        if let [a, b] = tables.as_slice()
            && a.revision() == b.revision()
            && !has_suspects(a)
            && !has_suspects(b)
        {
            assert_same(a, b, trace);
        }
        for (router, troubled) in self.troubled.iter().enumerate() {
            for (began, what) in self.observed.unanswered[router].lock().drain(..) {
                let sound = troubled.iter().position(|until| began.saturating_sub(*until) >= CALM);
                assert!(
                    sound.is_none(),
                    "router-{router}, at {began:?}: nobody answered {what}, though node-{} had no trouble for long\n{trace}",
                    sound.unwrap()
                );
            }
        }
    }

    fn disturb(&mut self) {
        let which = self.rng.random_range(0..NODES);
        let (router, node) = (format!("router-{}", self.rng.random_range(0..ROUTERS)), format!("node-{which}"));
        let leader = format!("leader-{}", self.rng.random_range(0..LEADERS));
        let etcd = coordinator::HOST.to_owned();
        let living = self.living.iter().filter(|living| **living).count();
        let what = match self.rng.random_range(0..100) {
            0..12 if self.living[which] && living > 2 => {
                self.crash(which);
                format!("{node} crashes")
            }
            0..30 if !self.living[which] => {
                self.start(which);
                format!("{node} starts")
            }
            30..36 => {
                let drains = self.rng.random_bool(0.5);
                self.observed.drains[which].store(drains, Relaxed);
                format!("{node} drains: {drains}")
            }
            36..46 => self.come_between(router, node),
            46..54 => self.come_between(router, etcd),
            54..62 => self.come_between(node, etcd),
            62..68 => self.come_between(leader, etcd),
            68..72 => self.come_between(leader, node),
            72..77 => {
                self.cut_the_coordinator_off();
                "the coordinator is cut off".into()
            }
            77..83 => {
                self.observed.ends.lock().push(format!("{PREFIX}/nodes/{node}"));
                format!("the lease of {node} ends")
            }
            83..85 => {
                self.observed.ends.lock().push(format!("{PREFIX}/nodes/"));
                "all nodes' leases end".into()
            }
            85..88 => {
                self.observed.ends.lock().push(format!("{PREFIX}/leader"));
                "the leader's lease ends".into()
            }
            88..91 => {
                self.observed.compacts.store(true, Relaxed);
                "compact".into()
            }
            91..95 => {
                self.sim.bounce(leader.as_str());
                format!("{leader} starts anew")
            }
            _ => {
                self.mend();
                "all links mend".into()
            }
        };
        self.trace += &format!("{:?}: {what}\n", self.sim.elapsed());
    }

    fn crash(&mut self, which: usize) {
        self.living[which] = false;
        self.sim.crash(format!("node-{which}"));
    }

    fn start(&mut self, which: usize) {
        self.living[which] = true;
        self.sim.bounce(format!("node-{which}"));
    }

    fn part(&mut self, a: String, b: String) {
        self.sim.partition(a.as_str(), b.as_str());
        self.wrong.push((a, b));
    }

    /// Something happens to the network between two hosts.
    fn come_between(&mut self, a: String, b: String) -> String {
        // Questions and answers go in different directions.
        let (a, b) = if self.rng.random_bool(0.5) { (a, b) } else { (b, a) };
        let what = match self.rng.random_range(0..4) {
            0 => {
                self.sim.partition_oneway(a.as_str(), b.as_str());
                format!("nothing gets from {a} to {b}")
            }
            1 => {
                self.sim.hold(a.as_str(), b.as_str());
                format!("all is held up between {a} and {b}")
            }
            2 => {
                let latency = Duration::from_millis(self.rng.random_range(20..900));
                self.sim.set_link_latency(a.as_str(), b.as_str(), latency);
                format!("{a} and {b} are {latency:?} apart")
            }
            _ => {
                self.sim.partition(a.as_str(), b.as_str());
                format!("{a} and {b} are cut off from each other")
            }
        };
        self.wrong.push((a, b));
        what
    }

    fn mend(&mut self) {
        for (a, b) in self.wrong.drain(..) {
            self.sim.release(a.as_str(), b.as_str());
            self.sim.repair(a.as_str(), b.as_str());
            self.sim.set_link_latency(a.as_str(), b.as_str(), Duration::from_millis(2));
        }
    }

    /// Once nothing goes wrong any more, everybody agrees on what is, and the bound is kept.
    fn settle(&mut self) {
        self.mend();
        for which in 0..NODES {
            self.observed.drains[which].store(false, Relaxed);
            if !self.living[which] {
                self.start(which);
            }
        }
        self.run(Duration::from_secs(180));
        let (tables, trace) = (self.tables(), &self.trace);
        for table in &tables {
            assert_eq!(table.nodes().len(), NODES, "not all nodes are back: {:?}\n{trace}", table.nodes());
            let sound = |node: &TableNode| !node.is_suspect && node.record.state == NodeState::Active;
            assert!(table.nodes().iter().all(sound), "{:?}\n{trace}", table.nodes());
        }
        for table in &self.observed.tables {
            assert!(!table.lock().as_ref().is_some_and(TableWatch::is_stale), "stale\n{trace}");
        }
        assert_same(&tables[0], &tables[1], trace);
        assert_bound(&tables[0], &self.observed.weights, trace);
        let planned = self.observed.plan.lock().0;
        assert_eq!(planned, tables[0].exceptions().generation, "the table lags behind the plan\n{trace}");
        self.run(Duration::from_secs(60));
        assert_eq!(planned, self.observed.plan.lock().0, "the plan does not come to rest\n{}", self.trace);
    }

    /// Without the coordinator, for longer than any deadline, every request is answered by who was there before.
    fn coordinator_goes(&mut self) {
        let failed = self.observed.failed.load(Relaxed);
        self.cut_the_coordinator_off();
        self.run(Duration::from_secs(60));
        assert_eq!(self.observed.failed.load(Relaxed), failed, "requests failed without the coordinator\n{}", self.trace);
        self.mend();
        self.run(Duration::from_secs(30));
        assert_eq!(self.observed.failed.load(Relaxed), failed, "requests failed when the coordinator came back\n{}", self.trace);
        let asked = self.observed.asked.load(Relaxed);
        assert!(asked <= self.observed.answered.load(Relaxed) + failed + 100, "requests got lost\n{}", self.trace);
    }

    fn cut_the_coordinator_off(&mut self) {
        for host in hosts("node", NODES).chain(hosts("router", ROUTERS)).chain(hosts("leader", LEADERS)) {
            self.part(host, coordinator::HOST.to_owned());
        }
    }

    /// When one node goes only what it had moves, and when it comes back only what it gets. What is compared is of one plan.
    /// Gives how often there was something to compare.
    fn one_goes_and_comes(&mut self) -> usize {
        let mut compared = 0;
        let which = self.rng.random_range(0..NODES);
        let name: NodeName = format!("node-{which}").parse().unwrap();
        for comes in [false, true] {
            let mut before = self.tables().swap_remove(0);
            if comes {
                self.start(which);
            } else {
                self.crash(which);
            }
            for waited in 0.. {
                let table = self.tables().swap_remove(0);
                if table.index_of(&name).is_some() == comes {
                    break;
                }
                assert!(waited < 1_000, "{name} comes: {comes}, and the table does not see it\n{}", self.trace);
                before = table;
                self.run(Duration::from_millis(100));
            }
            let after = self.tables().swap_remove(0);
            // A plan is written shard by shard, and each change is seen alone.
            if after.exceptions() == before.exceptions() {
                assert_moves(&before, &after, name.as_str(), comes, &self.trace);
                compared += 1;
            }
        }
        compared
    }
}

#[test]
#[allow(clippy::print_stdout, reason = "the seed of a failure is what replays it")]
fn whatever_the_network_does_requests_find_a_node_and_all_agree_in_the_end() {
    let mut compared = 0;
    for seed in support::seeds(SEEDS) {
        let mut world = World::new(seed);
        world.run(Duration::from_secs(20));
        for _ in 0..STEPS {
            if world.rng.random_bool(0.5) {
                world.disturb();
            }
            let pause = world.rng.random_range(10..4_000);
            world.run(Duration::from_millis(pause));
        }
        world.settle();
        world.coordinator_goes();
        compared += world.one_goes_and_comes();
        let (answered, simulated) = (world.observed.answered.load(Relaxed), world.sim.elapsed());
        assert!(answered > 1_000, "only {answered} requests were answered\n{}", world.trace);
        println!("simulation with seed {seed}: {answered} requests answered in {simulated:?}");
    }
    assert!(compared > 0, "no plan stood still while a node went or came");
}
