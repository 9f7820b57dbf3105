//! What tenants cost when nobody calls them: memory of idle containers, bytes of modules on disk; and how fast the pool refills.

use crate::{
    Bench,
    cold::{first_requests, tenants},
    platform::Platform,
    reference,
    report::{Bound, Report},
};
use anyhow::{Context, Result, ensure};
use serde_json::{Value, json};
use std::{fs, path::Path, process::Command, time::Instant};

/// Modules that every tenant of the disk's comparison uses.
const MODULES: [(&str, &str); 10] = [
    ("lodash", "4.17.21"),
    ("express", "4.21.2"),
    ("axios", "1.7.9"),
    ("zod", "3.24.1"),
    ("stripe", "17.5.0"),
    ("uuid", "11.0.3"),
    ("dayjs", "1.11.13"),
    ("jsonwebtoken", "9.0.2"),
    ("react", "18.3.1"),
    ("moment", "2.30.1"),
];
/// Tenants of that comparison.
const TENANTS: usize = 20;

/// Containers that the pool gains per second while it is emptied.
pub async fn refill(bench: &Bench, report: &mut Report) -> Result<()> {
    let platform = bench.platform("refill", 12).await?;
    let result = async {
        let made = |status: &Value| status.pointer("/handler/pool/refills").and_then(Value::as_u64).context("no refills");
        let mut rates = vec![];
        for turn in 0..bench.turns().min(3) {
            let paths = tenants(&platform, &format!("refill{turn}x"), 12).await?;
            platform.wait_for_pool(12).await?;
            let before = made(&platform.status().await?)?;
            let began = Instant::now();
            first_requests(&platform, &paths, false).await?;
            platform.wait_for_pool(12).await?;
            rates.push((made(&platform.status().await?)? - before) as f64 / began.elapsed().as_secs_f64());
        }
        report.add("pool refill", crate::median(rates), "containers/s", Bound::AtLeast(10.0), "Docker; the claims included");
        Ok(())
    }
    .await;
    platform.stop();
    result
}

/// Proportional memory of every process of every container that a tenant has, their shims included.
pub async fn memory(bench: &Bench, report: &mut Report) -> Result<()> {
    let platform = bench.platform("memory", 0).await?;
    let result = async {
        let paths = tenants(&platform, "idle", bench.many(40)).await?;
        first_requests(&platform, &paths, false).await?;
        tokio::time::sleep(std::time::Duration::from_secs(if bench.quick { 1 } else { 20 })).await;
        let (kib, count) = resident(&platform).await?;
        ensure!(count >= paths.len(), "{count} containers for {} tenants", paths.len());
        let mb = kib as f64 * 1_024.0 / 1e6 / count as f64;
        report.add("memory of an idle claimed container, shim included", mb, "MB", Bound::AtMost(14.0), format!("{count} of them"));
        Ok(())
    }
    .await;
    platform.stop();
    result
}

/// KiB of all containers that have an owner, and how many they are.
async fn resident(platform: &Platform) -> Result<(u64, usize)> {
    let instance = fs::read_to_string(platform.data_dir.join("instance")).context("the instance's name")?;
    let label = format!("label=hearth.instance={}", instance.trim());
    let status = platform.status().await?;
    let list = status["handler"]["list"].as_array().context("no list of containers")?;
    let claimed: Vec<String> = list.iter().map(|container| container["slot"].to_string()).collect();
    let format = "{{.ID}} {{.Label \"hearth.slot\"}}";
    let ids =
        Command::new("docker").args(["ps", "--no-trunc", "--filter", &label, "--format", format]).output().context("docker ps")?;
    let ids = String::from_utf8(ids.stdout)?;
    let with_slots = ids.lines().filter_map(|line| line.split_once(' '));
    let ids: Vec<String> = with_slots.filter(|(_, slot)| claimed.iter().any(|s| s == slot)).map(|(id, _)| id.to_owned()).collect();
    let mut kib = 0_u64;
    for entry in fs::read_dir("/proc")?.flatten() {
        let dir = entry.path();
        let cgroup = fs::read_to_string(dir.join("cgroup")).unwrap_or_default();
        let command = fs::read_to_string(dir.join("cmdline")).unwrap_or_default();
        let of =
            |id: &String| cgroup.contains(id.as_str()) || (command.contains("containerd-shim") && command.contains(id.as_str()));
        if ids.iter().any(of) {
            let rollup = fs::read_to_string(dir.join("smaps_rollup")).unwrap_or_default();
            let pss = rollup.lines().find_map(|l| l.strip_prefix("Pss:")?.trim().trim_end_matches(" kB").parse::<u64>().ok());
            kib += pss.unwrap_or(0);
        }
    }
    Ok((kib, ids.len()))
}

/// Bytes on disk for many tenants with the same ten modules, against as many folders with an `npm install` of their own.
pub async fn disk(bench: &Bench, report: &mut Report) -> Result<()> {
    let dir = bench.scratch("disk")?;
    let (platform, tenants) = (bench.platform("disk", 2).await?, bench.many(TENANTS));
    let result = async {
        let dependencies: serde_json::Map<String, Value> =
            MODULES.iter().map(|(name, version)| ((*name).to_owned(), json!(version))).collect();
        let function = json!({ "code": crate::HELLO, "dependencies": dependencies });
        let paths: Vec<String> = (0..tenants).map(|n| format!("disk{n}/main/f")).collect();
        let before = bytes_below(&platform.data_dir)?;
        for path in &paths {
            platform.deploy(path, &function).await?;
        }
        first_requests(&platform, &paths, false).await?;
        Ok::<_, anyhow::Error>(before)
    }
    .await;
    let data_dir = platform.data_dir.clone();
    platform.stop();
    // Only now: while containers run, their mounts show the same bytes once more each.
    let own = bytes_below(&data_dir)?.saturating_sub(result?);
    let separate = reference::install(&dir.join("separate"), &MODULES)?;
    let each = bytes_below(&separate)?;
    let ratio = (each * tenants as u64) as f64 / own as f64;
    let note = format!("{:.1} MB in all, archives included; one install has {:.1} MB", own as f64 / 1e6, each as f64 / 1e6);
    let promise = format!("disk for {tenants} tenants with the same ten modules: separate installs against it");
    report.add(&promise, ratio, "times", Bound::AtLeast(15.0), note);
    Ok(())
}

/// What `du` says.
fn bytes_below(dir: &Path) -> Result<u64> {
    let output = Command::new("du").args(["--summarize", "--one-file-system", "--block-size=1"]).arg(dir).output().context("du")?;
    let text = String::from_utf8(output.stdout)?;
    text.split_whitespace().next().and_then(|n| n.parse().ok()).with_context(|| format!("du said {text:?}"))
}
