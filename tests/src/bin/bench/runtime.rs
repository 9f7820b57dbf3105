//! The runtime alone, outside any container, against what its users would write without it: raw `node:http` and express.

use crate::{
    Bench, CALL, HELLO, PATH,
    client::{Target, closed_loop, get},
    median, reference,
    report::{Bound, Report},
};
use anyhow::Result;

/// Measures it.
pub async fn measure(bench: &Bench, report: &mut Report) -> Result<()> {
    let packages = bench.root.join("target/bench-references");
    let node = reference::packages(&packages)?;
    let dir = bench.scratch("runtime")?;
    let (_raw, raw) = reference::node_server(&node, &packages, &dir, false).await?;
    let (_express, express) = reference::node_server(&node, &packages, &dir, true).await?;
    let own = reference::runtime(&node, &bench.root.join("runtime"), &dir, "index.mjs", HELLO).await?;
    let (mut of_raw, mut of_express, mut rates) = (vec![], vec![], vec![]);
    let call = get(PATH, &[("hearth-call", CALL)]);
    for turn in 0..=bench.turns() {
        let raw = closed_loop(&Target::Unix(raw.clone()), &get("/", &[]), 32, bench.turn())?.per_second;
        let own = closed_loop(&Target::Unix(own.socket.clone()), &call, 32, bench.turn())?.per_second;
        let express = closed_loop(&Target::Unix(express.clone()), &get("/", &[]), 32, bench.turn())?.per_second;
        if turn > 0 {
            of_raw.push(own / raw);
            of_express.push(own / express);
            rates.push(own);
        }
    }
    let note = format!("{:.0} requests/s", median(rates));
    report.add(
        "the runtime alone, hello world, 32 connections, against raw node:http",
        median(of_raw),
        "times",
        Bound::AtLeast(0.7),
        note,
    );
    report.add("the same against an express hello", median(of_express), "times", Bound::AtLeast(4.0), "");
    Ok(())
}
