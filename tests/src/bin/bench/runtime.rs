//! The runtime alone, outside any container, against what its users would write without it: raw `node:http` and express.

use crate::{
    Bench, CALL, HELLO, PATH,
    client::{Target, closed_loop, closed_loop_link, get},
    median, reference,
    report::{Bound, Report},
};
use anyhow::Result;

/// [`CALL`] as the head of a call over the link.
const LINK_CALL: &str = "hello@1\nbench\n30000\n18\n127.0.0.1\nGET\n/run/bench/m/hello\nhost\nbench";

/// Measures it.
pub async fn measure(bench: &Bench, report: &mut Report) -> Result<()> {
    let packages = bench.root.join("target/bench-references");
    let node = reference::packages(&packages)?;
    let dir = bench.scratch("runtime")?;
    let (_raw, raw) = reference::node_server(&node, &packages, &dir, false).await?;
    let (_express, express) = reference::node_server(&node, &packages, &dir, true).await?;
    let own = reference::runtime(&node, &bench.root.join("runtime"), &dir, "index.mjs", HELLO).await?;
    let mut found = [vec![], vec![], vec![], vec![]];
    let call = get(PATH, &[("hearth-call", CALL)]);
    for turn in 0..=bench.turns() {
        let raw = closed_loop(&Target::Unix(raw.clone()), &get("/", &[]), 32, bench.turn())?.per_second;
        let http = closed_loop(&Target::Unix(own.http.clone()), &call, 32, bench.turn())?.per_second;
        let link = closed_loop_link(&own.link, LINK_CALL, 32, bench.turn())?.per_second;
        let express = closed_loop(&Target::Unix(express.clone()), &get("/", &[]), 32, bench.turn())?.per_second;
        if turn > 0 {
            for (list, value) in found.iter_mut().zip([http / raw, link / raw, link / express, link]) {
                list.push(value);
            }
        }
    }
    let [http, of_raw, of_express, rate] = found.map(median);
    let name = "the runtime alone, hello world, 32 requests at once over its link, against raw node:http";
    report.add(name, of_raw, "times", Bound::AtLeast(0.7), format!("{rate:.0} requests/s"));
    report.add("the same against an express hello", of_express, "times", Bound::AtLeast(4.0), "");
    report.add("the runtime alone over HTTP, 32 connections, against raw node:http", http, "times", Bound::AtLeast(0.7), "");
    Ok(())
}
