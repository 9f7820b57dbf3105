//! The load generator's own ceiling: what one core of it produces against a trivial server on another, beside wrk and h2load.

use crate::{
    Bench, median,
    reference::{Process, start},
    report::{Bound, Report},
};
use anyhow::{Context, Result, bail, ensure};
use serde_json::Value;
use std::{
    path::Path,
    process::{Command, Output, Stdio},
    time::{Duration, Instant},
};

/// Rates of the open loop, in requests per second; the highest that is not void is the ceiling.
const RATES: [u32; 10] = [10_000, 20_000, 30_000, 40_000, 45_000, 50_000, 55_000, 60_000, 70_000, 80_000];

/// A machine that did something else for a moment is no ceiling: a rate counts if one of so many tries holds it.
const TRIES: usize = 5;

/// Measures it.
pub async fn measure(bench: &Bench, report: &mut Report) -> Result<()> {
    ensure!(
        std::thread::available_parallelism().is_ok_and(|n| n.get() >= 2),
        "one core for the server and one for the generator are needed"
    );
    let dir = bench.scratch("generator")?;
    let (_server, port) = server(&dir)?;
    let url = format!("http://127.0.0.1:{port}/");
    let seconds = bench.turn().as_secs().to_string();
    let (mut wrk, mut h2load, mut closed) = (vec![], vec![], vec![]);
    for _ in 0..bench.turns() {
        wrk.push(wrk_rate(&url, &seconds)?);
        h2load.push(h2load_rate(&url, &seconds)?);
        closed.push(closed_rate(bench, &dir, &url)?);
    }
    let mut ceiling = 0;
    'rates: for rate in RATES {
        for _ in 0..TRIES {
            if open_holds(bench, &dir, &url, rate)? {
                ceiling = rate;
                continue 'rates;
            }
        }
        break;
    }
    report.add("wrk, one thread, 32 connections", median(wrk), "requests/s", Bound::Open, "a closed loop");
    report.add("h2load --h1, one thread, 32 connections", median(h2load), "requests/s", Bound::Open, "a closed loop");
    report.add("hearth loadtest, closed loop, 32 connections", median(closed), "requests/s", Bound::Open, "its books included");
    let note = "the highest rate at which, in one of five tries, the latest hundredth is sent less than 10 ms late";
    report.add("hearth loadtest, open loop, one core", f64::from(ceiling), "requests/s", Bound::AtLeast(40_000.0), note);
    let note = "its latest hundredth, with nothing to send and as many cores busy: what no generator can do better here";
    report.add(
        "a bare loop that looks at the clock 40,000 times a second",
        bare_lateness_ms(bench.turn()),
        "ms late",
        Bound::Open,
        note,
    );
    Ok(())
}

/// How late the latest hundredth of moments is seen by a loop that does nothing else, while a second one keeps another core busy.
fn bare_lateness_ms(length: Duration) -> f64 {
    let spin = move || {
        let (began, every) = (Instant::now(), Duration::from_micros(25));
        let (mut due, mut late) = (every, vec![]);
        while due < length {
            let now = began.elapsed();
            while due <= now && due < length {
                late.push(now - due);
                due += every;
            }
            std::hint::spin_loop();
        }
        late.sort_unstable();
        late[late.len() * 99 / 100].as_secs_f64() * 1e3
    };
    let other = std::thread::spawn(spin);
    let mine = spin();
    other.join().map_or(mine, |other| other.max(mine))
}

/// nginx that answers by itself, on the first core alone.
fn server(dir: &Path) -> Result<(Process, u16)> {
    let port = std::net::TcpListener::bind("127.0.0.1:0")?.local_addr()?.port();
    let config = format!(
        "user root; worker_processes 1; daemon off; pid {dir}/trivial.pid; error_log {dir}/trivial-error.log;
         events {{ worker_connections 16384; }}
         http {{ access_log off; keepalive_requests 1000000000; client_body_temp_path {dir}/tb; proxy_temp_path {dir}/tp;
           fastcgi_temp_path {dir}/tf; uwsgi_temp_path {dir}/tu; scgi_temp_path {dir}/ts;
           server {{ listen 127.0.0.1:{port} backlog=8192; location / {{ return 200 'hello'; }} }} }}",
        dir = dir.display()
    );
    let file = dir.join("trivial.conf");
    std::fs::write(&file, config)?;
    let mut command = Command::new("taskset");
    command.args(["--cpu-list", "0", "nginx", "-c"]).arg(&file).arg("-p").arg(dir);
    let process = start(dir, "trivial", &mut command)?;
    let until = Instant::now() + Duration::from_secs(5);
    while std::net::TcpStream::connect(("127.0.0.1", port)).is_err() {
        ensure!(Instant::now() < until, "nginx did not come up; see {}/trivial.log", dir.display());
        std::thread::sleep(Duration::from_millis(20));
    }
    Ok((process, port))
}

/// A program on the second core alone.
fn pinned(program: &str) -> Command {
    let mut command = Command::new("taskset");
    command.args(["--cpu-list", "1", program]).stdin(Stdio::null());
    command
}

fn run(command: &mut Command) -> Result<Output> {
    command.output().with_context(|| format!("running {command:?}"))
}

fn wrk_rate(url: &str, seconds: &str) -> Result<f64> {
    let output = run(pinned("wrk").args(["-t1", "-c32", &format!("-d{seconds}s"), url]))?;
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    let rate = text.lines().find_map(|l| l.trim().strip_prefix("Requests/sec:")?.trim().parse().ok());
    rate.with_context(|| format!("wrk said {text:?}"))
}

fn h2load_rate(url: &str, seconds: &str) -> Result<f64> {
    let output = run(pinned("h2load").args(["--h1", "-t1", "-c32", &format!("-D{seconds}"), url]))?;
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    let rate = text.lines().find_map(|l| l.strip_prefix("finished in ")?.split(", ").nth(1)?.strip_suffix(" req/s")?.parse().ok());
    rate.with_context(|| format!("h2load said {text:?}"))
}

/// The open loop at a rate far beyond all, with as many requests in flight as the others have connections: what is sent is what can be.
fn closed_rate(bench: &Bench, dir: &Path, url: &str) -> Result<f64> {
    let result = open(bench, dir, url, 200_000, &["--max-in-flight", "32"])?.1;
    result.pointer("/runs/0/metrics/goodput").and_then(Value::as_f64).context("no goodput")
}

fn open_holds(bench: &Bench, dir: &Path, url: &str, rate: u32) -> Result<bool> {
    let (code, result) = open(bench, dir, url, rate, &[])?;
    match code {
        0 => Ok(result.pointer("/runs/0/metrics/errors").and_then(Value::as_f64) == Some(0.0)),
        11 => Ok(false),
        other => bail!("hearth loadtest ended with {other}; see {}", dir.display()),
    }
}

fn open(bench: &Bench, dir: &Path, url: &str, rate: u32, more: &[&str]) -> Result<(i32, Value)> {
    let (list, json) = (dir.join("urls"), dir.join("open.json"));
    std::fs::write(&list, format!("{url}\n"))?;
    let mut command = pinned(bench.hearth.to_str().context("the binary's path")?);
    command
        .args(["loadtest", "--quiet", "--workers", "1", "--arrivals", "constant", "--warm-up", "500ms", "--url-list"])
        .arg(&list)
        .arg(format!("--json={}", json.display()))
        .args(["--rate", &rate.to_string(), "--duration", &format!("{}ms", bench.turn().as_millis() + 500)])
        .args(more);
    let output = run(&mut command)?;
    let code = output.status.code().unwrap_or(-1);
    let text = std::fs::read(&json).with_context(|| format!("no result: {}", String::from_utf8_lossy(&output.stderr)))?;
    Ok((code, serde_json::from_slice(&text)?))
}
