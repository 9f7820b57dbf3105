//! The attacks: what is deployed for each, and how it is carried out until it is told to stop.

use super::{TURNS, cpus::last_cpu, flood, is_named};
use crate::platform::Platform;
use anyhow::{Context, Result, anyhow, bail, ensure};
use serde_json::{Value, json};
use std::{
    collections::BTreeMap,
    fmt,
    path::Path,
    process::{Command, Stdio},
    sync::atomic::{AtomicU32, Ordering::Relaxed},
    time::Duration,
};
use tokio::{io::AsyncWriteExt, net::TcpStream, task::JoinSet};
use tokio_util::sync::CancellationToken;

/// Callers at once of a function that attacks.
const CALLERS: usize = 4;
/// Connections of an attack from outside.
const CONNECTIONS: usize = 1_000;
/// Requests per second of the flood's tenant.
const FLOOD_LIMIT: u32 = 100;
/// What it makes, against that.
const FLOOD_TIMES: f64 = 100.0;
/// Modules that nobody has asked for, a few each turn: each version is built once.
const STORM: [(&str, [&str; TURNS]); 4] = [
    ("is-number", ["7.0.0", "6.0.0", "5.0.0", "4.0.0", "3.0.0"]),
    ("kind-of", ["6.0.3", "6.0.2", "6.0.1", "5.1.0", "5.0.0"]),
    ("isobject", ["4.0.0", "3.0.1", "3.0.0", "2.1.0", "2.0.0"]),
    ("is-odd", ["3.0.1", "3.0.0", "2.0.0", "1.0.0", "0.1.2"]),
];
/// What its tenant may have built in an hour: fewer than it asks for, so that the last turns meet with it.
const STORM_MAX: usize = STORM.len() * TURNS - 6;

/// How an attack is carried out.
enum How {
    /// Its function is called, again and again; this is its code.
    Function(&'static str),
    /// The same, where what is answered costs the caller more than the platform.
    Answers(&'static str),
    /// More requests than its tenant may make, over so many connections.
    Flood(usize),
    /// Requests whose heads never end.
    Slow,
    /// Connections that say nothing.
    Hoard,
    /// Functions whose modules nobody has built.
    Builds,
    /// No attack: a script that is none of Hearth's, to tell what it alone costs on this machine.
    Outside(&'static str),
}

/// One attack.
pub struct Attack {
    /// Its tenant's name, too.
    pub name: &'static str,
    /// In a table.
    pub about: &'static str,
    how: How,
}

const fn function(name: &'static str, about: &'static str, code: &'static str) -> Attack {
    Attack { name, about, how: How::Function(code) }
}

/// All of them. Functions end by their deadline or by a limit; `?ok` asks them whether they live.
pub const ATTACKS: [Attack; 17] = [
    Attack {
        name: "nothing",
        about: "a program that sleeps, which tells how much two turns differ by themselves",
        how: How::Outside("exec sleep 3600"),
    },
    Attack { name: "outside", about: "a program outside Hearth that takes one CPU", how: How::Outside("while :; do :; done") },
    Attack {
        name: "starts",
        about: "one that starts Node.js again and again there",
        how: How::Outside("while :; do \"$NODE\" -e 0; done"),
    },
    function("loop", "an endless loop", "for (;;);"),
    function(
        "fork",
        "a fork bomb",
        "const { spawn } = require('child_process'); for (let i = 0; i < 200; i++) try { spawn(process.execPath, ['-e', 'for (;;);'], { stdio: 'ignore' }).on('error', () => {}); } catch {} for (;;);",
    ),
    function("heap", "a memory bomb (heap)", "const kept = []; for (;;) kept.push(new Array(1e5).fill(0).map((_, i) => ({ i })));"),
    function("buffers", "a memory bomb (Buffer)", "const kept = []; for (;;) kept.push(Buffer.alloc(1e6, 1));"),
    function(
        "disk",
        "a full disk",
        "const fs = require('fs'); const mb = Buffer.alloc(1e6, 1); fs.rmSync('/tmp/full', { force: true }); for (;;) fs.appendFileSync('/tmp/full', mb);",
    ),
    function(
        "inodes",
        "inodes used up",
        "const fs = require('fs'); fs.rmSync('/tmp/n', { recursive: true, force: true }); fs.mkdirSync('/tmp/n'); for (let i = 0; ; i++) fs.writeFileSync('/tmp/n/' + i, '');",
    ),
    function(
        "descriptors",
        "descriptors used up",
        "const fs = require('fs'); const open = []; try { for (;;) open.push(fs.openSync('/dev/null')); } catch (e) { for (const f of open) fs.closeSync(f); throw e; }",
    ),
    function(
        "output",
        "1 GB of output",
        "const line = 'x'.repeat(1e6); for (let i = 0; i < 1000; i++) console.log(line); cb(null, 'printed');",
    ),
    Attack {
        name: "answer",
        about: "answers of 1 GB",
        how: How::Answers(
            "let n = 0; const mb = Buffer.alloc(1e6, 1); const more = () => { while (n++ < 1000) if (!res.write(mb)) return res.once('drain', more); res.end(); }; more();",
        ),
    },
    Attack { name: "flood", about: "100 times its requests, by 50 senders", how: How::Flood(50) },
    Attack { name: "crowd", about: "100 times its requests, by 1,000 senders", how: How::Flood(1_000) },
    Attack { name: "slow", about: "1,000 heads that never end", how: How::Slow },
    Attack { name: "hoard", about: "1,000 silent connections", how: How::Hoard },
    Attack { name: "builds", about: "a storm of builds", how: How::Builds },
];

/// What the offender was answered.
#[derive(Default)]
pub struct Answers {
    statuses: BTreeMap<String, u64>,
    /// Answers of the platform's that do not say who refuses, and why; and statuses that no offender should see.
    pub nameless: u64,
}

impl Answers {
    fn note(&mut self, status: u16, body: &Value) {
        let reason = body["reason"].as_str().map_or_else(|| status.to_string(), |reason| format!("{status} {reason}"));
        *self.statuses.entry(reason).or_default() += 1;
        let documented = matches!(status, 429 | 502 | 503 | 504) && is_named(body);
        // A function that catches what its container refuses it (no space, no descriptors) answers for itself, as a webtask does with 500.
        let own = status == 500 && body["fault"].is_null();
        self.nameless += u64::from(status >= 400 && !documented && !own);
    }

    fn add_many(&mut self, status: &str, count: u64) {
        *self.statuses.entry(status.to_owned()).or_default() += count;
    }

    /// Adds another's.
    pub fn add(&mut self, other: Self) {
        for (status, count) in other.statuses {
            *self.statuses.entry(status).or_default() += count;
        }
        self.nameless += other.nameless;
    }
}

impl fmt::Display for Answers {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let said: Vec<String> = self.statuses.iter().map(|(status, count)| format!("{count} x {status}")).collect();
        f.write_str(&said.join(", "))
    }
}

impl Attack {
    fn path(&self) -> String {
        format!("/run/{}/main/f", self.name)
    }

    /// Deploys what it needs.
    pub async fn prepare(&self, platform: &Platform) -> Result<()> {
        let limits = match self.how {
            How::Flood(_) => json!({ "rate_per_s": FLOOD_LIMIT, "burst": FLOOD_LIMIT, "concurrency": 50 }),
            How::Builds => json!({ "builds_per_hour": STORM_MAX }),
            _ => json!({}),
        };
        platform.put(&format!("/tenants/{}", self.name), &json!({ "limits": limits })).await?;
        let attack = if let How::Function(code) | How::Answers(code) = self.how { code } else { "cb(null, 'ok');" };
        let code = format!(
            "module.exports = (context, req, res) => {{ const cb = (e, v) => res.end(String(v)); if (context.query.ok) return cb(null, 'ok'); {attack} }};"
        );
        let spec = json!({ "code": code, "model": "webtask", "timeout_ms": 1_000, "memory_mb": 96 });
        platform.deploy(&format!("{}/main/f", self.name), &spec).await?;
        ensure!(self.is_served(platform).await?, "{} is not served before it attacks", self.name);
        Ok(())
    }

    /// Whether its own function answers, or is refused for its own limits.
    pub async fn is_served(&self, platform: &Platform) -> Result<bool> {
        let (status, _) = platform.get(&format!("{}?ok=1", self.path())).await?;
        Ok(matches!(status, 200 | 429))
    }

    /// Whether something is promised beside it.
    pub fn is_hearths(&self) -> bool {
        !matches!(self.how, How::Outside(_))
    }

    /// Attacks until `stop`; `node` is the program.
    pub async fn run(&self, platform: &Platform, turn: usize, node: &Path, stop: &CancellationToken) -> Result<Answers> {
        match self.how {
            How::Function(_) => self.call(platform, stop).await,
            How::Answers(_) => self.download(platform, stop).await,
            How::Flood(senders) => self.flood(platform, senders, stop).await,
            How::Slow => connections(platform, stop, true).await,
            How::Hoard => connections(platform, stop, false).await,
            How::Builds => self.builds(platform, turn, stop).await,
            How::Outside(script) => outside(script, node, stop).await,
        }
    }

    async fn call(&self, platform: &Platform, stop: &CancellationToken) -> Result<Answers> {
        let callers = (0..CALLERS).map(|_| async {
            let mut answers = Answers::default();
            while !stop.is_cancelled() {
                let (status, body) = platform.get(&self.path()).await?;
                answers.note(status, &body);
                // As an attacker would who is told to wait a moment, and does not.
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
            anyhow::Ok(answers)
        });
        let mut all = Answers::default();
        for answers in futures_util::future::try_join_all(callers).await? {
            all.add(answers);
        }
        Ok(all)
    }

    /// A program of its own on a CPU for background work, where it runs when nobody else would: what calling costs this machine is not what is
    /// measured.
    fn caller(&self, platform: &Platform, options: &[&str]) -> Result<Command> {
        let mut command = Command::new("taskset");
        command.args(["-c", &last_cpu()?, "chrt", "--idle", "0", "h2load", "--h1", "-t1"]).args(options);
        command.arg(format!("{}{}", platform.url, self.path()));
        command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
        Ok(command)
    }

    async fn download(&self, platform: &Platform, stop: &CancellationToken) -> Result<Answers> {
        let callers = CALLERS.to_string();
        let mut answers = Answers::default();
        while !stop.is_cancelled() {
            let mut command = tokio::process::Command::from(self.caller(platform, &["-c", &callers, "-n", &callers])?);
            let done = command.stdout(Stdio::piped()).kill_on_drop(true).output();
            tokio::select! {
                () = stop.cancelled() => answers.add_many("answer under way", CALLERS as u64),
                done = done => {
                    let text = String::from_utf8_lossy(&done?.stdout).into_owned();
                    let whole = text.split("status codes: ").nth(1).and_then(|rest| rest.split(' ').next()?.parse::<u64>().ok());
                    answers.add_many("200", whole.with_context(|| format!("h2load says nothing of answers: {text}"))?);
                }
            }
        }
        Ok(answers)
    }

    /// Some of the answers are read whole.
    async fn flood(&self, platform: &Platform, senders: usize, stop: &CancellationToken) -> Result<Answers> {
        let (address, path, stopped) = (platform.url.trim_start_matches("http://").to_owned(), self.path(), stop.clone());
        let rate = f64::from(FLOOD_LIMIT) * FLOOD_TIMES;
        // A thread of its own, on a CPU for background work as this one.
        let flood = std::thread::spawn(move || flood::flood(&address, &path, senders, rate, &stopped));
        let mut answers = Answers::default();
        while !stop.is_cancelled() {
            let (status, body) = platform.get(&self.path()).await?;
            answers.note(status, &body);
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        let flood = tokio::task::spawn_blocking(|| flood.join()).await?.map_err(|_| anyhow!("the flood's thread panicked"))??;
        for (status, count) in flood.statuses {
            ensure!(matches!(status.as_str(), "200" | "429"), "the flood was answered {status}");
            answers.add_many(&format!("{status} (flood)"), count);
        }
        answers.add_many("sender still waiting", flood.unsent);
        Ok(answers)
    }

    async fn builds(&self, platform: &Platform, turn: usize, stop: &CancellationToken) -> Result<Answers> {
        static MADE: AtomicU32 = AtomicU32::new(0);
        let mut answers = Answers::default();
        for (module, versions) in STORM {
            let version = versions[turn];
            let body = json!({ "code": "module.exports = cb => cb(null, 1);", "dependencies": { module: version } });
            let function = format!("/tenants/{}/containers/main/functions/g{}", self.name, MADE.fetch_add(1, Relaxed));
            let (status, body) = platform.put_any(&function, &body).await?;
            answers.note(status, &body);
        }
        stop.cancelled().await;
        Ok(answers)
    }
}

/// On a CPU for background work.
async fn outside(script: &str, node: &Path, stop: &CancellationToken) -> Result<Answers> {
    let mut command = tokio::process::Command::new("taskset");
    command.args(["-c", &last_cpu()?, "sh", "-c", script]).env("NODE", node).kill_on_drop(true);
    let mut child = command.spawn()?;
    tokio::select! {
        () = stop.cancelled() => child.kill().await?,
        ended = child.wait() => bail!("it ended: {}", ended?),
    }
    Ok(Answers::default())
}

/// Connections that stay open, silent or with a byte of a head now and then.
async fn connections(platform: &Platform, stop: &CancellationToken, speaking: bool) -> Result<Answers> {
    let address = platform.url.trim_start_matches("http://").to_owned();
    let mut tasks = JoinSet::new();
    for n in 0..CONNECTIONS {
        let (address, stop) = (address.clone(), stop.clone());
        tasks.spawn(async move {
            let mut stream = TcpStream::connect(address).await?;
            if !speaking {
                stop.cancelled().await;
                return anyhow::Ok(());
            }
            stream.write_all(b"GET /run/slow/main/f HTTP/1.1\r\nhost: a\r\nx: ").await?;
            tokio::time::sleep(Duration::from_millis(n as u64 % 1_000)).await;
            while !stop.is_cancelled() && stream.write_all(b"a").await.is_ok() {
                tokio::time::sleep(Duration::from_secs(1)).await;
            }
            Ok(())
        });
    }
    while let Some(done) = tasks.join_next().await {
        done??;
    }
    Ok(Answers::default())
}
