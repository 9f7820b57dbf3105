//! Whole-system tests of a cluster: real etcd, the AWS stand-in, routers and nodes as processes, real containers, under open-loop load. Each
//! case prints its figures as a line `FIGURE {json}`. Counts and outcomes are asserted; times only by generous multiples of what is
//! promised, since the machine may be busy with other tests.

#![allow(clippy::print_stdout, clippy::print_stderr, reason = "figures and seeds are for whoever runs the tests")]

mod bad_input;
mod certificates;
mod changes;
mod etcd;
mod nodes;
mod partitions;
mod placement;
mod rolling;
mod routers;

use hearth_tests::{Cluster, Load, Plan, Size};
use std::time::Duration;

/// One cluster at a time: three nodes with containers are all that two cores carry.
static ONE_AT_A_TIME: tokio::sync::Mutex<()> = tokio::sync::Mutex::const_new(());

/// Answers with the time that it takes to build a string.
const HELLO: &str = "module.exports = (context, cb) => cb(null, { hello: context.query.name || 'world' });";

/// A request that takes longer than this is counted as disturbed.
const SLOW: Duration = Duration::from_millis(1_000);
/// How many times what is promised a busy machine may take.
const BUSY: u32 = 4;

/// The turn of this test and its cluster, with so many warm tenants.
async fn cluster(size: Size, tenants: usize) -> (tokio::sync::MutexGuard<'static, ()>, Cluster, Vec<String>) {
    let turn = ONE_AT_A_TIME.lock().await;
    let cluster = Cluster::start(size).await;
    let paths = cluster.warm_tenants(tenants, HELLO).await;
    (turn, cluster, paths)
}

fn load(cluster: &Cluster, targets: &[String], rate: u32, body: Option<&'static str>) -> Load {
    Load::start(Plan { routers: cluster.urls(), targets: targets.to_vec(), rate, body })
}

async fn seconds(n: f64) {
    tokio::time::sleep(Duration::from_secs_f64(n)).await;
}
