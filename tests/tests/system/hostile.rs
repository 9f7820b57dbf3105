//! One tenant attacks the machine, another goes on working: bombs of every kind against the neighbour's answers, and what the
//! attacker's account says afterwards. Counts and outcomes are asserted; how much slower the neighbour gets is the bench's business.

use hearth_tests::{Answer, Hearth, Options, until};
use reqwest::Method;
use serde_json::json;
use std::{
    cell::Cell,
    fs,
    time::{Duration, Instant},
};

const OK: &str = "module.exports = cb => cb(null, { ok: 1 });";

/// Free bytes and inodes of the file system that data directories are on.
fn free() -> (u64, u64) {
    let stat = rustix::fs::statvfs(std::env::temp_dir()).expect("statvfs");
    (stat.f_bavail * stat.f_frsize, stat.f_favail)
}

/// Calls the neighbour until `attack` has ended, at least ten times; every call must be answered, and warm.
async fn beside<T>(hearth: &Hearth, attack: impl Future<Output = T>) -> T {
    let ended = Cell::new(false);
    let attack = async {
        let value = attack.await;
        ended.set(true);
        value
    };
    let calls = async {
        let mut count = 0;
        while count < 10 || !ended.get() {
            count += 1;
            let answer = hearth.get("good/main/f").await;
            assert_eq!((answer.status, answer.header("hearth-start")), (200, "warm"), "the neighbour: {}", answer.text);
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    tokio::join!(attack, calls).0
}

#[tokio::test(flavor = "multi_thread")]
async fn bombs_harm_their_own_container_only() {
    let hearth = Hearth::start().await;
    hearth.deploy_code("good/main/f", OK).await;
    hearth.get("good/main/f").await.expect(200);
    let (bytes_before, inodes_before) = free();
    // Each answers with how far it got, so that a bomb that was none fails the test.
    let bombs = [
        (
            "processes",
            "const { spawn } = require('child_process'); module.exports = cb => { let made = 0, refused = 0; const all = []; for (let i = 0; i < 400; i++) { try { const c = spawn(process.execPath, ['-e', 'setTimeout(() => {}, 60000)'], { stdio: 'ignore' }); c.on('error', () => {}); if (c.pid) made++; else refused++; all.push(c); } catch { refused++; } } for (const c of all) c.kill('SIGKILL'); cb(null, { made, refused }); };",
        ),
        (
            "descriptors",
            "const fs = require('fs'); module.exports = cb => { let made = 0, refused = 0; const all = []; try { for (; made < 100000; made++) all.push(fs.openSync('/dev/null')); } catch { refused = 1; } for (const f of all) fs.closeSync(f); cb(null, { made, refused }); };",
        ),
        (
            "disk",
            "const fs = require('fs'); module.exports = cb => { let made = 0, refused = 0; const mb = Buffer.alloc(1e6, 1); try { for (; made < 2000; made++) fs.appendFileSync('/tmp/full', mb); } catch { refused = 1; } fs.rmSync('/tmp/full', { force: true }); cb(null, { made, refused }); };",
        ),
        (
            "inodes",
            "const fs = require('fs'); module.exports = cb => { let made = 0, refused = 0; try { fs.mkdirSync('/tmp/n'); for (; made < 400000; made++) fs.writeFileSync('/tmp/n/' + made, ''); } catch { refused = 1; } cb(null, { made, refused }); };",
        ),
    ];
    for (name, code) in bombs {
        hearth.deploy(&format!("bad/{name}/f"), json!({ "code": code, "timeout_ms": 60_000 })).await;
        let answer = beside(&hearth, hearth.get(&format!("bad/{name}/f"))).await;
        // Memory may end it first, since files in /tmp count as memory: that is an answer of the platform's, too.
        if answer.status == 200 {
            assert!(answer.json()["refused"].as_u64().unwrap() >= 1, "{name} met no limit: {}", answer.text);
        } else {
            assert_eq!((answer.status, &answer.json()["fault"]), (502, &json!("tenant")), "{name}: {}", answer.text);
        }
        until("the attacker to be served again", async || (hearth.get(&format!("bad/{name}/f")).await.status < 503).then_some(()))
            .await;
    }
    let (bytes, inodes) = free();
    // Other tests write beside this one; a bomb that got out would be gigabytes and hundreds of thousands.
    assert!(bytes_before.saturating_sub(bytes) < 1_000_000_000, "the disk lost {} bytes", bytes_before.saturating_sub(bytes));
    assert!(inodes_before.saturating_sub(inodes) < 100_000, "the disk lost {} inodes", inodes_before.saturating_sub(inodes));
}

/// At full speed two answers of a gigabyte keep node and machine busy for everybody.
#[tokio::test(flavor = "multi_thread")]
async fn answers_keep_to_their_tenants_rate() {
    let hearth = Hearth::start().await;
    let write = "let n = Number(req.url.split('mb=')[1]); const mb = Buffer.alloc(1 << 20, 'x'); const more = () => { while (n-- > 0) if (!res.write(mb)) return res.once('drain', more); res.end(); }; more();";
    // One model answers over the link, the other over HTTP.
    let models = [
        ("link", json!({ "code": format!("module.exports = (context, req, res) => {{ {write} }};") })),
        ("http", json!({ "code": format!("module.exports = (req, res) => {{ {write} }};"), "model": "node" })),
    ];
    for (tenant, function) in models {
        let limits = json!({ "limits": { "answer_mb_per_s": 8 } });
        Answer::of(hearth.api(Method::PUT, &format!("/tenants/{tenant}")).json(&limits)).await.expect(201);
        hearth.deploy(&format!("{tenant}/main/large"), function).await;
        let small = format!("{tenant}/main/small");
        hearth.deploy_code(&small, "module.exports = cb => cb(null, { x: 'x'.repeat(1 << 14) });").await;
        let answer = async |mb: usize| {
            let answer = hearth.get(&format!("{tenant}/main/large?mb={mb}")).await;
            assert_eq!(answer.expect(200).text.len(), mb << 20, "{tenant}: nothing is lost");
        };
        hearth.get(&small).await.expect(200);
        answer(0).await;
        // Its tenant owes nothing yet: only a pause between its own pieces can slow it. What is not slowed is 16 MiB.
        let began = Instant::now();
        answer(32).await;
        assert!(began.elapsed().as_secs_f64() > 1.9, "{tenant}: 32 MiB took {:?}", began.elapsed());
        // Two at once have the rate together.
        let began = Instant::now();
        tokio::join!(answer(12), answer(12));
        assert!(began.elapsed().as_secs_f64() > 1.9, "{tenant}: 24 MiB took {:?}", began.elapsed());
        // Many small ones, each of one piece, are no way around it: what they are over the rate the next one waits for.
        let began = Instant::now();
        for _ in 0..8 {
            for answer in futures_util::future::join_all((0..100).map(|_| hearth.get(&small))).await {
                answer.expect(200);
            }
        }
        hearth.get(&small).await.expect(200);
        assert!(began.elapsed().as_secs_f64() > 1.1, "{tenant}: 12.5 MiB took {:?}", began.elapsed());
    }
    hearth.deploy_code("good/main/f", OK).await;
    hearth.get("good/main/f").await.expect(200);
    let refused = hearth.api(Method::PUT, "/tenants/none").json(&json!({ "limits": { "answer_mb_per_s": 0 } }));
    assert!(Answer::of(refused).await.expect(400).text.contains("answer_mb_per_s"));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_flood_of_requests_is_the_floods_problem() {
    let hearth = Hearth::start().await;
    Answer::of(
        hearth.api(Method::PUT, "/tenants/bad").json(&json!({ "limits": { "rate_per_s": 20, "burst": 20, "concurrency": 10 } })),
    )
    .await
    .expect(201);
    for tenant in ["good", "bad"] {
        hearth.deploy_code(&format!("{tenant}/main/f"), OK).await;
        hearth.get(&format!("{tenant}/main/f")).await.expect(200);
    }
    let flood = async {
        let (began, mut refused) = (Instant::now(), 0);
        for _ in 0..40 {
            let calls = (0..25).map(async |_| {
                let called = Instant::now();
                (hearth.get("bad/main/f").await, called.elapsed())
            });
            for (answer, took) in futures_util::future::join_all(calls).await {
                match answer.status {
                    200 => {}
                    429 => {
                        assert!(!answer.header("retry-after").is_empty());
                        assert!(took >= Duration::from_millis(50), "refused after {took:?}: who calls again at once is not slowed");
                        refused += 1;
                    }
                    status => panic!("{status}: {}", answer.text),
                }
            }
        }
        let in_line = Duration::from_millis(10 * (refused - 1));
        assert!(began.elapsed() >= in_line, "{refused} refusals in {:?}", began.elapsed());
        refused
    };
    let refused = beside(&hearth, flood).await;
    assert!(refused > 500, "{refused} of 1000 were refused");
    let usage =
        async |tenant: &str| Answer::of(hearth.api(Method::GET, &format!("/tenants/{tenant}/usage"))).await.expect(200).json();
    let (bad, good) = (usage("bad").await, usage("good").await);
    assert!(bad["refused"].as_u64().unwrap() >= refused, "{bad}");
    assert_eq!((&good["refused"], &good["faults_platform"]), (&json!(0), &json!(0)), "{good}");
}

/// The node's own listener, which routers and `hearth up` give the world, takes nothing that a router would not.
#[tokio::test(flavor = "multi_thread")]
async fn one_request_in_is_one_request_out_or_a_refusal() {
    let hearth = Hearth::start().await;
    let code = "let n = 0; export default async (r) => { if (r.url.endsWith('?count')) return Response.json({ n }); n++; await r.text(); return new Response('ok'); }";
    hearth.deploy_code("acme/main/f", code).await;
    let addr = hearth.url.strip_prefix("http://").unwrap().parse().unwrap();
    let count = async || hearth.get("acme/main/f?count").await.expect(200).json()["n"].as_u64().unwrap();
    let wrong = hearth_edge::corpus::check(addr, "/run/acme/main/f", count).await.unwrap();
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
    // The management API reads bodies, too.
    let both = "POST /v1/tokens HTTP/1.1\r\nhost: a\r\ncontent-length: 2\r\ntransfer-encoding: chunked\r\n\r\n0\r\n\r\n";
    let coded = "POST /v1/tokens HTTP/1.1\r\nhost: a\r\ntransfer-encoding: gzip, chunked\r\n\r\n0\r\n\r\n";
    for request in [both, coded] {
        let said = hearth_edge::corpus::say(addr, request.as_bytes()).await.unwrap();
        assert_eq!((said.statuses, said.closed), (vec![400], true), "{request}");
    }
}

/// Containers come and go while tenants take turns: none finds what another has left, on disk or in memory, and none has anything of the
/// machine in sight but its own directories.
#[tokio::test(flavor = "multi_thread")]
async fn no_container_serves_two_tenants_or_sees_the_machine() {
    let options = Options::default().set("node__handler__freeze_after", "300ms").set("node__handler__destroy_after", "1s");
    let hearth = Hearth::with(options).await;
    let code = "const fs = require('fs'); module.exports = (c, cb) => { const seen = [...fs.readdirSync('/tmp'), ...Object.keys(globalThis)].filter(k => k.startsWith('mark')); fs.writeFileSync('/tmp/mark-' + c.query.me, ''); globalThis['mark-' + c.query.me] = 1; cb(null, { seen }); };";
    let tenants: Vec<String> = (0..6).map(|n| format!("t{n}")).collect();
    for tenant in &tenants {
        hearth.deploy_code(&format!("{tenant}/main/f"), code).await;
    }
    let mut cold = 0;
    for round in 0..4 {
        for tenant in &tenants {
            let answer = hearth.get(&format!("{tenant}/main/f?me={tenant}")).await;
            let seen = answer.expect(200).json()["seen"].clone();
            let own = json!(format!("mark-{tenant}"));
            assert!(seen.as_array().unwrap().iter().all(|mark| *mark == own), "{tenant} has seen {seen}");
            if answer.header("hearth-start") == "cold" {
                cold += 1;
                assert_eq!(seen, json!([]), "{tenant} got a container that was not fresh");
            }
        }
        // The third round finds all containers gone; the others find them as they were left, or frozen.
        match round {
            1 => {
                for tenant in &tenants {
                    let container = format!("{tenant}/main");
                    until("an idle container to be destroyed", async || hearth.container(&container).await.is_null().then_some(()))
                        .await;
                }
            }
            3 => {}
            _ => tokio::time::sleep(Duration::from_millis(600)).await,
        }
    }
    assert!(cold >= 2 * tenants.len(), "{cold} containers, {} wanted: two of each tenant", 2 * tenants.len());
    let data = hearth.data_dir().canonicalize().unwrap();
    let running = hearth.docker().running();
    assert!(!running.is_empty(), "the pool at least");
    for container in running {
        let inspected = &container.inspected;
        let binds = inspected.pointer("/HostConfig/Binds").unwrap_or(&json!(null));
        assert!(
            binds.is_null() && inspected.pointer("/HostConfig/Devices").is_none_or(|d| d.is_null() || *d == json!([])),
            "{binds}"
        );
        for mount in inspected["Mounts"].as_array().unwrap().iter().filter(|m| m["Type"] == "bind") {
            let (source, target) = (mount["Source"].as_str().unwrap(), mount["Destination"].as_str().unwrap());
            let known = ["/run/hearth", "/hearth", "/opt/hearth", "/etc/resolv.conf", "/etc/hosts"].contains(&target);
            assert!(known && std::path::Path::new(source).starts_with(&data), "{source} is mounted at {target}");
            assert_eq!(mount["RW"], json!(target == "/run/hearth"), "{target}");
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn tenants_have_users_of_their_own_and_their_use_is_counted() {
    let hearth = Hearth::start().await;
    let code = "module.exports = cb => { const until = Date.now() + 300; while (Date.now() < until); console.log('x'.repeat(1000)); cb(null, { uid: process.getuid() }); };";
    let mut uids = Vec::new();
    for tenant in ["a", "b"] {
        hearth.deploy_code(&format!("{tenant}/main/f"), code).await;
        uids.push(hearth.get(&format!("{tenant}/main/f")).await.expect(200).json()["uid"].clone());
    }
    assert_ne!(uids[0], uids[1], "two tenants share a user id");
    until("the use to be counted", async || {
        let usage = Answer::of(hearth.api(Method::GET, "/tenants/a/usage")).await.expect(200).json();
        (usage["requests"] == 1 && usage["cpu_ms"].as_u64()? >= 250 && usage["log_bytes"].as_u64()? >= 1_000).then_some(())
    })
    .await;
}

/// Nothing that is written anywhere holds a secret: not the store's file, not logs, not metrics, not the audit, not the engine.
#[tokio::test(flavor = "multi_thread")]
async fn a_canary_is_nowhere_but_in_memory() {
    let hearth = Hearth::start().await;
    let canary = format!("canary-{:032x}", u128::from(std::process::id()) << 64 | 0x5eed);
    let code = "module.exports = cb => cb(null, { has: process.env.KEY.length });";
    hearth.deploy("acme/main/f", json!({ "code": code, "secrets": { "KEY": canary } })).await;
    assert_eq!(hearth.get("acme/main/f").await.expect(200).json()["has"], canary.len());
    hearth.deploy_code("acme/main/broken", "module.exports = cb => { throw new Error('boom') };").await;
    hearth.get("acme/main/broken").await;
    let metrics = Answer::of(hearth.ops("/metrics")).await.text;
    assert!(!metrics.contains(&canary) && !hearth.log().contains(&canary) && !hearth.status().await.to_string().contains(&canary));
    let mut looked_at = 0;
    let mut stack = vec![hearth.data_dir()];
    while let Some(path) = stack.pop() {
        let Ok(metadata) = fs::symlink_metadata(&path) else { continue };
        if metadata.is_dir() {
            stack.extend(fs::read_dir(&path).into_iter().flatten().flatten().map(|e| e.path()));
        } else if metadata.is_file() {
            let bytes = fs::read(&path).unwrap_or_default();
            looked_at += 1;
            assert!(!bytes.windows(canary.len()).any(|w| w == canary.as_bytes()), "{} holds a secret", path.display());
        }
    }
    assert!(looked_at > 3, "only {looked_at} files were looked at");
}
