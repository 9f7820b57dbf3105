//! What the simulations share: a cluster's nodes, the load that its tenants make, and what must be so when nothing goes wrong any more.

use hearth_model::Timestamp;
use hearth_placement::{Candidates, NodeRecord, NodeState, NodeStats, RouteTable, leader::ContainerLoad, record::SCHEMA};
use rand::{Rng, rngs::StdRng};
use std::net::SocketAddr;

/// Tenants of a simulated cluster, with a container each.
pub const TENANTS: usize = 300;
pub const PREFIX: &str = "/sim";

/// Requests per second of each tenant: Zipf, with noise.
pub fn weights(rng: &mut StdRng) -> Vec<f64> {
    (1..=TENANTS).map(|rank| 3000.0 / rank as f64 * rng.random_range(0.5..1.5)).collect()
}

/// What each node carries when all requests go where the table says.
pub fn loads(table: &RouteTable, weights: &[f64]) -> Vec<NodeStats> {
    let mut nodes = vec![NodeStats::default(); table.nodes().len()];
    for (index, weight) in weights.iter().enumerate() {
        let tenant = format!("tenant-{index}");
        let spread = table.spread_of(&tenant, "main");
        for node in &spread {
            let request_rate = weight / spread.len() as f64;
            let stats = &mut nodes[usize::from(*node)];
            stats.request_rate += request_rate;
            let path = format!("{tenant}/main");
            stats.containers.push(ContainerLoad { path, request_rate, in_flight: 0, memory_bytes: 0 });
        }
    }
    nodes
}

/// A node of three zones.
pub fn record(index: usize, incarnation: u64, addr: SocketAddr) -> NodeRecord {
    NodeRecord {
        schema: SCHEMA,
        name: format!("node-{index}").parse().unwrap(),
        incarnation,
        data_addr: addr,
        control_addr: addr,
        zone: format!("zone-{}", index % 3),
        capacity: 1,
        state: NodeState::Active,
        links: true,
        started_at: Timestamp(0),
    }
}

/// Two routers at one revision have one table.
pub fn assert_same(a: &RouteTable, b: &RouteTable, trace: &str) {
    assert_eq!(a.nodes(), b.nodes(), "two routers differ in nodes\n{trace}");
    assert_eq!(a.exceptions(), b.exceptions(), "two routers differ in exceptions\n{trace}");
    let (mut x, mut y) = (Candidates::new(), Candidates::new());
    for index in 0..TENANTS {
        let tenant = format!("tenant-{index}");
        a.candidates(&tenant, "main", &mut x);
        b.candidates(&tenant, "main", &mut y);
        assert_eq!(x, y, "two routers route {tenant} differently\n{trace}");
    }
}

/// The nodes of each container, by name.
pub fn placed(table: &RouteTable) -> Vec<Vec<String>> {
    let name = |index: &u16| table.node(*index).expect("its own index").record.name.to_string();
    (0..TENANTS).map(|tenant| table.spread_of(&format!("tenant-{tenant}"), "main").iter().map(name).collect()).collect()
}

/// No node carries more than its share and a quarter.
pub fn assert_bound(table: &RouteTable, weights: &[f64], trace: &str) {
    let rates: Vec<f64> = loads(table, weights).iter().map(|stats| stats.request_rate).collect();
    let mean = rates.iter().sum::<f64>() / rates.len() as f64;
    assert!(rates.iter().all(|rate| *rate <= 1.25 * mean * 1.001), "over the bound: {rates:?}\n{trace}");
}

/// What was elsewhere when a node came or went has not moved.
pub fn assert_moves(before: &RouteTable, after: &RouteTable, name: &str, comes: bool, trace: &str) {
    for (tenant, (before, after)) in placed(before).iter().zip(placed(after)).enumerate() {
        let with = if comes { &after } else { before };
        let is_its = with.iter().any(|node| node == name);
        assert!(
            is_its || *before == after,
            "tenant-{tenant} moved from {before:?} to {after:?} though {name} was elsewhere\n{trace}"
        );
    }
}

/// Seeds to run: `HEARTH_SIM_SEED=n` replays one, `HEARTH_SIM_SEEDS=n` runs so many.
pub fn seeds(unless_said: u64) -> std::ops::RangeInclusive<u64> {
    let number = |name: &str| std::env::var(name).ok().and_then(|text| text.parse::<u64>().ok());
    number("HEARTH_SIM_SEED").map_or(1..=number("HEARTH_SIM_SEEDS").unwrap_or(unless_said), |seed| seed..=seed)
}
