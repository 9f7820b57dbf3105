//! The size simulation: 1,000 nodes and 1,000,000 containers under Zipf 1.1. Prints one JSON object of figures, and ends with
//! 1 when a promise is broken. `cargo run --release -p hearth-placement --example size [nodes] [containers]`

#![allow(clippy::print_stdout, reason = "a program whose output is the figures")]

use hdrhistogram::Histogram;
use hearth_model::Timestamp;
use hearth_placement::{
    Candidates, Exceptions, NodeRecord, NodeState, NodeStats, PlanInput, PlannerConfig, RingConfig, RouteTable, TableNode,
    leader::ContainerLoad, plan, record::SCHEMA,
};
use std::{collections::BTreeMap, process::ExitCode, sync::Arc, time::Instant};

fn record(index: usize) -> NodeRecord {
    let addr = format!("10.{}.{}.1:8000", index / 250, index % 250).parse().expect("an address");
    NodeRecord {
        schema: SCHEMA,
        name: format!("node-{index:04}").parse().expect("a name"),
        incarnation: 1,
        data_addr: addr,
        control_addr: addr,
        zone: format!("zone-{}", index % 3),
        capacity: 1,
        state: NodeState::Active,
        links: true,
        started_at: Timestamp(0),
    }
}

fn table(nodes: &[NodeRecord], exceptions: &Exceptions) -> RouteTable {
    let nodes = nodes.iter().map(|record| TableNode { record: record.clone(), is_suspect: false });
    RouteTable::build(nodes, &Arc::new(exceptions.clone()), 1, RingConfig::default())
}

/// What the nodes would tell the planner: all of their load, and their busiest containers.
fn measure(table: &RouteTable, tenants: &[String], weights: &[f64]) -> (Vec<f64>, BTreeMap<hearth_placement::NodeName, NodeStats>) {
    let mut nodes = vec![NodeStats::default(); table.nodes().len()];
    for (tenant, weight) in tenants.iter().zip(weights) {
        let spread = table.spread_of(tenant, "main");
        let request_rate = weight / spread.len() as f64;
        for node in &spread {
            let stats = &mut nodes[usize::from(*node)];
            stats.request_rate += request_rate;
            // Tenants come by weight, so the first are the busiest.
            if stats.containers.len() < 256 {
                let path = format!("{tenant}/main");
                stats.containers.push(ContainerLoad { path, request_rate, in_flight: 0, memory_bytes: 0 });
            }
        }
    }
    let rates = nodes.iter().map(|stats| stats.request_rate).collect();
    (rates, table.nodes().iter().map(|node| node.record.name.clone()).zip(nodes).collect())
}

fn max_over_mean(rates: &[f64]) -> f64 {
    rates.iter().copied().fold(0.0, f64::max) * rates.len() as f64 / rates.iter().sum::<f64>()
}

fn firsts(table: &RouteTable, tenants: &[String]) -> Vec<String> {
    let mut out = Candidates::new();
    let first = |tenant: &String| {
        table.candidates(tenant, "main", &mut out);
        table.node(out.as_slice()[0]).expect("its own index").record.name.to_string()
    };
    tenants.iter().map(first).collect()
}

fn moved(a: &[String], b: &[String]) -> usize {
    a.iter().zip(b).filter(|(a, b)| a != b).count()
}

/// Each decision is timed by itself; the clock's own cost, about 25 ns, is in the figures. The name is read before that, since a router has
/// just parsed it.
fn decide(table: &RouteTable, tenants: &[String]) -> Histogram<u64> {
    let mut histogram = Histogram::<u64>::new(3).expect("a histogram");
    let (mut out, mut name) = (Candidates::new(), String::with_capacity(64));
    // A step that is prime to the count visits tenants in no useful order, as requests do.
    for turn in 0..tenants.len().min(1_000_000) {
        let tenant = &tenants[turn * 7919 % tenants.len()];
        out.set_turn(turn as u64);
        name.clear();
        name.push_str(tenant);
        let begin = Instant::now();
        table.candidates(&name, "main", &mut out);
        let took = begin.elapsed();
        std::hint::black_box(&out);
        histogram.saturating_record(u64::try_from(took.as_nanos()).unwrap_or(u64::MAX));
    }
    histogram
}

/// What a look-up costs in the crate that decides the ring, for eight candidates: why its owners are asked for only once.
fn crate_lookup_ns(count: usize, tenants: &[String]) -> f64 {
    let members = (0..count).map(|index| consistent_hash::Node::new(format!("node-{index:04}")).quantity(128));
    let ring = consistent_hash::StaticHashRing::new(consistent_hash::DefaultHash, members);
    let asked = tenants.len().min(20_000);
    let begin = Instant::now();
    for tenant in &tenants[..asked] {
        std::hint::black_box(ring.calc_candidates(tenant).take(8).count());
    }
    begin.elapsed().as_nanos() as f64 / asked as f64
}

fn main() -> ExitCode {
    let mut arguments = std::env::args().skip(1).filter_map(|argument| argument.parse::<usize>().ok());
    let (count, containers) = (arguments.next().unwrap_or(1_000), arguments.next().unwrap_or(1_000_000));
    let nodes: Vec<NodeRecord> = (0..=count).map(record).collect();
    let tenants: Vec<String> = (0..containers).map(|index| format!("tenant-{index}")).collect();
    let weights: Vec<f64> = (1..=containers).map(|rank| (rank as f64).powf(-1.1)).collect();
    let sum: f64 = weights.iter().sum();
    // 100 requests per second on each node, in the mean.
    let weights: Vec<f64> = weights.into_iter().map(|weight| weight / sum * count as f64 * 100.0).collect();

    let begin = Instant::now();
    let bare = table(&nodes[..count], &Exceptions::none());
    let build_ms = begin.elapsed().as_secs_f64() * 1e3;
    let (rates, _) = measure(&bare, &tenants, &weights);
    let unplanned = max_over_mean(&rates);

    let mut exceptions = Exceptions::none();
    let (mut plan_ms_max, mut plans, mut moves) = (0_f64, 0, 0);
    loop {
        let (_, loads) = measure(&table(&nodes[..count], &exceptions), &tenants, &weights);
        let input = PlanInput {
            nodes: nodes[..count].to_vec(),
            loads,
            measured_under: exceptions.overflow.clone(),
            previous: exceptions.clone(),
            epoch: 1,
            config: PlannerConfig { moves_max: usize::MAX, ..PlannerConfig::default() },
            ring: RingConfig::default(),
        };
        let begin = Instant::now();
        let planned = plan(&input);
        plan_ms_max = plan_ms_max.max(begin.elapsed().as_secs_f64() * 1e3);
        plans += 1;
        moves += planned.moves.len();
        exceptions = planned.exceptions;
        if !planned.is_changed || plans == 20 {
            break;
        }
    }
    let planned = table(&nodes[..count], &exceptions);
    let (rates, _) = measure(&planned, &tenants, &weights);
    let ratio = max_over_mean(&rates);
    let before = firsts(&planned, &tenants);
    let joined = moved(&before, &firsts(&table(&nodes, &exceptions), &tenants));
    let left = moved(&before, &firsts(&table(&nodes[1..count], &exceptions), &tenants));
    let (table_bytes, exception_bytes) = planned.bytes();
    let per_exception = exception_bytes as f64 / exceptions.containers.len().max(1) as f64;
    let decisions = decide(&planned, &tenants);
    let share = |moved: usize| moved as f64 / containers as f64 * count as f64;
    let figures = serde_json::json!({
        "nodes": count,
        "containers": containers,
        "max_over_mean_unplanned": unplanned,
        "max_over_mean": ratio,
        "moved_on_join_times_n": share(joined),
        "moved_on_leave_times_n": share(left),
        "exceptions": exceptions.containers.len(),
        "overflowing_nodes": exceptions.overflow.len(),
        "table_bytes": table_bytes,
        "bytes_per_exception": per_exception,
        "bytes_per_idle_container": 0,
        "plan_bytes_in_etcd": exceptions.split().values().map(|shard| shard.encode().len()).sum::<usize>(),
        "plan_ms_max": plan_ms_max,
        "plans": plans,
        "moves": moves,
        "table_build_ms": build_ms,
        "crate_lookup_ns_mean": crate_lookup_ns(count, &tenants),
        "decision_ns_p50": decisions.value_at_quantile(0.5),
        "decision_ns_p99": decisions.value_at_quantile(0.99),
    });
    println!("{figures:#}");
    let holds = ratio <= 1.25 && share(joined) <= 1.2 && share(left) <= 1.2 && per_exception <= 1024.0;
    if holds && decisions.value_at_quantile(0.99) <= 1_000 { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}
