//! CPUs that are set aside for background work. Alone in its program, since it is about what the machine's CPUs have to do.

use hearth_tests::{Hearth, Options, until};
use std::{fs, path::PathBuf, time::Duration};

const OK: &str = "module.exports = cb => cb(null, { ok: 1 });";
/// Works nine tenths of the time once it is told to, until it is called again.
const BUSY: &str = "let work; module.exports = (c, cb) => { clearInterval(work); if (c.query.on) work = setInterval(() => { const until = Date.now() + 45; while (Date.now() < until); }, 50); cb(null, 'ok'); };";

fn cpus_of(status: &str) -> String {
    let status = fs::read_to_string(status).unwrap_or_default();
    status.lines().find_map(|line| line.strip_prefix("Cpus_allowed_list:")).unwrap_or_default().trim().to_owned()
}

/// The first process of its container.
async fn pid_of(hearth: &Hearth, container: &str) -> u32 {
    let slot = hearth.container(container).await["slot"].as_u64().expect("a slot");
    hearth.docker().on_slot(slot).pid
}

fn of_process(pid: u32) -> String {
    cpus_of(&format!("/proc/{pid}/status"))
}

/// The CPUs of the threads of Hearth's own process, those of background work first.
fn of_threads(hearth: &Hearth) -> (Vec<String>, Vec<String>) {
    let tasks = fs::read_dir(format!("/proc/{}/task", hearth.pid())).expect("a running process");
    let threads = tasks.flatten().map(|task| task.path());
    let (background, others): (Vec<_>, Vec<_>) =
        threads.partition(|task| fs::read_to_string(task.join("comm")).is_ok_and(|name| name.starts_with("background")));
    let cpus = |tasks: Vec<PathBuf>| {
        let mut cpus: Vec<String> = tasks.iter().map(|task| cpus_of(&task.join("status").display().to_string())).collect();
        cpus.retain(|list| !list.is_empty());
        cpus.sort();
        cpus.dedup();
        cpus
    };
    (cpus(background), cpus(others))
}

/// Waits until `look` says so while requests are kept apart, or are not.
async fn while_apart(hearth: &Hearth, apart: bool, look: impl AsyncFn() -> bool) {
    until(&format!("requests kept apart: {apart}"), async || {
        // Who has had no request lately is left where it is.
        hearth.get("good/main/f").await.expect(200);
        let is_apart = async || hearth.status().await["handler"]["containers"]["requests_apart"] == apart;
        if is_apart().await && look().await && is_apart().await {
            return Some(());
        }
        // Calls make the CPUs busy, too.
        tokio::time::sleep(Duration::from_millis(200)).await;
        None
    })
    .await;
}

/// Who keeps a CPU busy leaves the others theirs until it is calm, and these keep off its own for as long.
#[tokio::test(flavor = "multi_thread")]
async fn a_busy_container_keeps_to_the_cpus_for_background_work_and_others_keep_off_them() {
    let hearth = Hearth::with(Options::default().set("docker__background_cpus", "0")).await;
    hearth.deploy_code("good/main/f", OK).await;
    hearth.get("good/main/f").await.expect(200);
    let good = pid_of(&hearth, "good/main").await;
    while_apart(&hearth, false, async || of_process(good).starts_with('0')).await;
    let all = of_process(good);
    assert_ne!(all, "0", "needs two CPUs");
    hearth.deploy_code("busy/main/f", BUSY).await;
    hearth.get("busy/main/f?on=1").await.expect(200);
    let busy = pid_of(&hearth, "busy/main").await;
    while_apart(&hearth, true, async || of_process(busy) == "0" && of_process(good) != all).await;
    let others = of_process(good);
    assert!(!others.starts_with('0'), "{others}");
    while_apart(&hearth, true, async || of_threads(&hearth) == (vec!["0".to_owned()], vec![others.clone()])).await;
    // Who comes now is kept there, too.
    hearth.deploy_code("late/main/f", OK).await;
    hearth.get("late/main/f").await.expect(200);
    let late = pid_of(&hearth, "late/main").await;
    while_apart(&hearth, true, async || {
        hearth.get("late/main/f").await.expect(200);
        of_process(late) == others
    })
    .await;

    hearth.get("busy/main/f").await.expect(200);
    while_apart(&hearth, false, async || of_process(busy) == all && of_process(good) == all).await;
    while_apart(&hearth, false, async || of_threads(&hearth) == (vec!["0".to_owned()], vec![all.clone()])).await;

    // One that has just ended by its own fault is not trusted at once.
    hearth.deploy_code("bad/main/f", "module.exports = (c, cb) => c.query.end ? process.exit(1) : cb(null, 'ok');").await;
    assert_eq!(hearth.get("bad/main/f?end=1").await.status, 502);
    until("a fresh container", async || (hearth.get("bad/main/f").await.status == 200).then_some(())).await;
    assert_eq!(of_process(pid_of(&hearth, "bad/main").await), "0");
}
