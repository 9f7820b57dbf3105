//! Measures what containers cost on this machine: creations per second by how many are made simultaneously, egress, freezing,
//! memory. Run with `cargo run --release -p hearth-sandbox --example measure`; prints one JSON object.

#![allow(clippy::print_stdout, clippy::print_stderr, reason = "a program for people")]

use anyhow::{Context, Result, bail};
use futures_util::{StreamExt, TryStreamExt, stream};
use hearth_model::function::NodeVersion;
use hearth_sandbox::{
    Cpus, Limits, Purpose, Running, Sandbox, SandboxSpec,
    docker::{Config, DockerSandbox},
    image, net,
};
use serde_json::json;
use std::{
    collections::BTreeMap,
    path::Path,
    time::{Duration, Instant},
};

const CONTAINERS: u32 = 24;

fn config(name: &str, mode: net::Mode) -> Config {
    let instance = format!("measure-{name}-{}", std::process::id());
    Config { instance, egress: net::Config { mode, ..net::Config::default() }, ..Config::default() }
}

fn spec(root: &Path, slot: u32) -> Result<SandboxSpec> {
    let slot_dir = root.join(slot.to_string());
    for dir in ["run", "tree"] {
        std::fs::create_dir_all(slot_dir.join(dir))?;
    }
    Ok(SandboxSpec {
        slot,
        purpose: Purpose::Runtime,
        node: NodeVersion::V24,
        oci_runtime: None,
        slot_dir,
        runtime_dir: root.join("runtime"),
        limits: Limits {
            memory_mb: 256,
            cpu_millis: 2_000,
            cpu_shares: 1_024,
            cpus: Cpus::Any,
            pids: 64,
            nofile: 1_024,
            tmp_mb: 32,
        },
        args: Vec::new(),
    })
}

async fn create(sandbox: &DockerSandbox, root: &Path, at_once: usize) -> Result<(Vec<Running>, f64)> {
    let start = Instant::now();
    let specs: Vec<SandboxSpec> = (0..CONTAINERS).map(|slot| spec(root, slot)).collect::<Result<_>>()?;
    let made = stream::iter(&specs).map(|spec| sandbox.create(spec)).buffer_unordered(at_once).try_collect::<Vec<_>>().await?;
    Ok((made, f64::from(CONTAINERS) / start.elapsed().as_secs_f64()))
}

async fn destroy(sandbox: &DockerSandbox, made: &[Running]) -> Result<f64> {
    let start = Instant::now();
    stream::iter(made).map(|r| sandbox.destroy(&r.id)).buffer_unordered(4).try_collect::<Vec<_>>().await?;
    Ok(f64::from(CONTAINERS) / start.elapsed().as_secs_f64())
}

fn millis(times: &mut [Duration]) -> serde_json::Value {
    times.sort_unstable();
    let ms = |d: Duration| (d.as_secs_f64() * 1e5).round() / 100.0;
    json!({ "p50_ms": ms(times[times.len() / 2]), "max_ms": ms(times[times.len() - 1]) })
}

fn proportional_memory(pid: u32) -> Result<u64> {
    let text = std::fs::read_to_string(format!("/proc/{pid}/smaps_rollup"))?;
    let line = text.lines().find_map(|l| l.strip_prefix("Pss:")).context("no Pss")?;
    Ok(line.trim().trim_end_matches(" kB").parse()?)
}

#[tokio::main]
async fn main() -> Result<()> {
    let dir = tempfile::tempdir()?;
    let root = dir.path();
    std::fs::create_dir(root.join("runtime"))?;
    std::fs::write(root.join("runtime/main.js"), "setInterval(() => {}, 1 << 30);")?;
    let mut rates = BTreeMap::new();
    let mut destroyed = BTreeMap::new();
    for (name, mode) in [("none", net::Mode::None), ("public", net::Mode::Public)] {
        let sandbox = DockerSandbox::connect(config(name, mode)).await?;
        sandbox.ensure_image(&image::default_cache_dir(), Purpose::Runtime, &|line| eprintln!("{line}")).await?;
        for at_once in [1, 2, 4] {
            let (made, rate) = create(&sandbox, root, at_once).await?;
            rates.insert(format!("egress_{name}_{at_once}_at_once"), (rate * 10.0).round() / 10.0);
            let rate = destroy(&sandbox, &made).await?;
            destroyed.insert(format!("egress_{name}"), (rate * 10.0).round() / 10.0);
        }
        sandbox.close().await?;
    }

    let sandbox = DockerSandbox::connect(config("calls", net::Mode::None)).await?;
    let (made, _) = create(&sandbox, root, 2).await?;
    let instance = config("attach", net::Mode::Public).instance;
    let net::Start::Running(egress, _) =
        net::Egress::start(&net::Config::default(), &instance, tokio::runtime::Handle::current()).await?
    else {
        bail!("egress does not work on this machine");
    };
    let (mut attach, mut freeze, mut thaw, mut memory) = (Vec::new(), Vec::new(), Vec::new(), Vec::new());
    for running in &made {
        let start = Instant::now();
        egress.attach(running.slot, running.pid).await?;
        attach.push(start.elapsed());
        let start = Instant::now();
        sandbox.freeze(&running.id).await?;
        freeze.push(start.elapsed());
        let start = Instant::now();
        sandbox.thaw(&running.id).await?;
        thaw.push(start.elapsed());
        memory.push(proportional_memory(running.pid)?);
    }
    let group: u64 = sandbox.usage(&made[made.len() - 1].id).await?.memory_bytes / 1024;
    destroy(&sandbox, &made).await?;
    egress.close().await?;
    memory.sort_unstable();
    let result = json!({
        "containers": CONTAINERS,
        "created_per_s": rates,
        "destroyed_per_s_4_at_once": destroyed,
        "attach": millis(&mut attach),
        "freeze": millis(&mut freeze),
        "thaw": millis(&mut thaw),
        "bare_node_pss_kb_p50": memory[memory.len() / 2],
        "bare_node_cgroup_kb": group,
    });
    println!("{}", serde_json::to_string_pretty(&result)?);
    // The directory was made a mount of its own for the containers' sake.
    let _ = std::process::Command::new("umount").args(["-R", "-l"]).arg(root).output();
    Ok(())
}
