//! Hostile and broken functions: whoever sent the request gets the documented answer, the neighbour notices nothing, and the next
//! request works.

use hearth_tests::{Answer, Hearth, Options, RawConnection, until};
use reqwest::Method;
use serde_json::{Value, json};
use std::{
    fs,
    time::{Duration, Instant},
};
use tokio_util::sync::CancellationToken;

const OK: &str = "module.exports = cb => cb(null, { ok: 1 });";

async fn with_neighbour() -> Hearth {
    let hearth = Hearth::start().await;
    hearth.deploy_code("good/main/f", OK).await;
    hearth.get("good/main/f").await.expect(200);
    hearth
}

async fn unharmed(hearth: &Hearth) {
    let neighbour = hearth.get("good/main/f").await;
    assert_eq!((neighbour.expect(200).header("hearth-start"), neighbour.json()["ok"].as_u64()), ("warm", Some(1)), "the neighbour");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_function_that_ends_its_process_gets_a_fresh_container() {
    let hearth = with_neighbour().await;
    let code = "export default (r) => { if (r.url.includes('die')) process.exit(3); return new Response('alive'); }";
    hearth.deploy_code("bad/main/f", code).await;
    hearth.get("bad/main/f").await.expect(200);
    hearth.get("bad/main/f?die").await.expect_problem(502, "tenant", "function-crashed");
    unharmed(&hearth).await;
    until("a fresh container", async || (hearth.get("bad/main/f").await.text == "alive").then_some(())).await;
    // Not through the runtime's own door either: V8 breaks off by an illegal instruction. (SIGKILL is no way out: the kernel keeps the first
    // process of a process id namespace from killing itself.)
    let trap = "const v8 = require('v8'), vm = require('vm'); module.exports = (req, res) => { v8.setFlagsFromString('--allow-natives-syntax'); vm.runInThisContext('%SystemBreak()'); };";
    hearth.deploy("bad/main/trap", json!({ "code": trap, "model": "node" })).await;
    hearth.get("bad/main/trap").await.expect_problem(502, "tenant", "function-crashed");
    unharmed(&hearth).await;
    until("a fresh container", async || (hearth.get("bad/main/f").await.text == "alive").then_some(())).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_endless_loop_is_ended_and_replaced() {
    let hearth = with_neighbour().await;
    let code = "export default (r) => { if (r.url.includes('spin')) for (;;); return new Response('ok'); }";
    hearth.deploy("bad/main/f", json!({ "code": code, "timeout_ms": 1000 })).await;
    hearth.get("bad/main/f").await.expect(200);
    let answer = hearth.get("bad/main/f?spin").await;
    answer.expect_problem(504, "tenant", "function-timeout");
    assert!((Duration::from_millis(950)..Duration::from_millis(1_700)).contains(&answer.took), "{:?}", answer.took);
    unharmed(&hearth).await;
    until("a fresh container", async || (hearth.get("bad/main/f").await.status == 200).then_some(())).await;
    assert_eq!(hearth.status().await["handler"]["ended"]["stuck"], 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_function_that_never_answers_keeps_its_container() {
    let hearth = with_neighbour().await;
    let code = "export default (r) => r.url.includes('hang') ? new Promise(() => {}) : new Response('ok')";
    hearth.deploy("bad/main/f", json!({ "code": code, "timeout_ms": 500 })).await;
    hearth.get("bad/main/f?hang").await.expect_problem(504, "tenant", "function-timeout");
    assert_eq!(hearth.get("bad/main/f").await.header("hearth-start"), "warm", "its event loop was alive");
}

#[tokio::test(flavor = "multi_thread")]
async fn memory_beyond_the_limit_ends_one_container() {
    let hearth = with_neighbour().await;
    for (name, code) in [
        ("buffers", "export default () => { const a = []; for (;;) a.push(Buffer.alloc(10e6, 1)); }"),
        ("heap", "export default () => { const a = []; for (;;) a.push(new Array(1e6).fill({}).map((_, i) => ({ i }))); }"),
    ] {
        hearth.deploy(&format!("bad/{name}/f"), json!({ "code": code, "memory_mb": 96 })).await;
        let answer = hearth.get(&format!("bad/{name}/f")).await;
        assert_eq!((answer.status, &answer.json()["fault"]), (502, &json!("tenant")), "{name}: {}", answer.text);
        unharmed(&hearth).await;
    }
    let ended = &hearth.status().await["handler"]["ended"];
    assert!(ended["out_of_memory"].as_u64().unwrap() >= 1, "{ended}");
}

#[tokio::test(flavor = "multi_thread")]
async fn nonsense_answers_are_the_tenants_fault() {
    let hearth = with_neighbour().await;
    let cases = [
        ("throws", "export default () => { throw new Error('boom') }", "function-failed"),
        ("rejects", "export default async () => { throw new Error('boom') }", "function-failed"),
        ("number", "export default () => 5", "function-bad-response"),
        ("status", "exports.handler = async () => ({ statusCode: 99999 })", "function-bad-response"),
        (
            "header",
            "exports.handler = async () => ({ statusCode: 200, headers: { 'x-a': 'a\\r\\nb: c' } })",
            "function-bad-response",
        ),
        (
            "headers",
            "module.exports = (c, req, res) => { for (let i = 0; i < 101; i++) res.setHeader('x-' + i, 'y'); res.end(); }",
            "function-bad-response",
        ),
    ];
    for (name, code, reason) in cases {
        hearth.deploy_code(&format!("bad/main/{name}"), code).await;
        hearth.get(&format!("bad/main/{name}")).await.expect_problem(502, "tenant", reason);
    }
    hearth.deploy_code("bad/main/load", "export default 1; throw new Error('at load')").await;
    let problem = hearth.get("bad/main/load").await.expect_problem(502, "tenant", "function-load-failed");
    assert!(problem["detail"].as_str().unwrap().contains("at load"));
    let twice = "module.exports = (c, req, res) => { res.end('once'); setImmediate(() => { try { res.writeHead(500) } catch {} res.end('twice') }); }";
    hearth.deploy_code("bad/main/twice", twice).await;
    for _ in 0..5 {
        assert_eq!(hearth.get("bad/main/twice").await.expect(200).text, "once");
    }
    hearth.deploy_code("bad/main/internal", "module.exports = (c, req, res) => { res.setHeader('hearth-request-id', 'forged'); res.setHeader('hearth-start', 'hot'); res.end(); }").await;
    for start in ["cold", "warm"] {
        let answer = hearth.get("bad/main/internal").await;
        assert_eq!((answer.header("hearth-request-id").len(), answer.header("hearth-start")), (32, start));
        assert_eq!(answer.headers.get_all("hearth-start").iter().count(), 1);
    }
    unharmed(&hearth).await;
}

/// What ends again and again is replaced at a bounded rate, since each replacement costs the others.
#[tokio::test(flavor = "multi_thread")]
async fn a_container_that_ends_too_often_waits_for_the_next() {
    let hearth = Hearth::with(Options { pool_size: 4, ..Options::default() }).await;
    hearth.deploy_code("good/main/f", OK).await;
    hearth.get("good/main/f").await.expect(200);
    hearth.pool_is_full().await;
    let code = "module.exports = (c, cb) => c.query.end ? process.exit(1) : cb(null, 'ok');";
    for name in ["f", "same"] {
        hearth.deploy_code(&format!("bad/main/{name}"), code).await;
    }
    let mut ends = 0;
    let refused = loop {
        let answer = hearth.get("bad/main/f?end=1").await;
        if answer.status != 502 {
            break answer;
        }
        ends += 1;
        assert!(ends < 20, "each of its ends was answered with a fresh container");
    };
    refused.expect_problem(503, "tenant", "function-crash-loop");
    assert_eq!(refused.header("retry-after"), "5");
    assert!(ends >= 2, "{ends} ends in a row are too few to say so");
    let called = Instant::now();
    hearth.get("bad/main/same").await.expect_problem(503, "tenant", "function-crash-loop");
    assert!(called.elapsed() >= Duration::from_millis(50), "refused at once, it would be called again at once");
    unharmed(&hearth).await;
    tokio::time::sleep(Duration::from_secs(6)).await;
    hearth.get("bad/main/same").await.expect(200);
}

/// While one tenant's containers are replaced that have crashed, another tenant's start finds one in the pool.
#[tokio::test(flavor = "multi_thread")]
async fn containers_that_end_leave_half_of_the_pool_to_others() {
    const POOL: u64 = 4;
    let hearth = Hearth::with(Options { pool_size: POOL as usize, ..Options::default() }).await;
    let code = "module.exports = (c, cb) => c.query.end ? process.exit(1) : cb(null, 'ok');";
    let containers: Vec<String> = (0..2).map(|n| format!("bad/c{n}/f")).collect();
    for function in &containers {
        hearth.deploy_code(function, code).await;
        hearth.get(function).await.expect(200);
        hearth.pool_is_full().await;
    }
    let claims = |status: &Value, how: &str| status["handler"]["claims"][how].as_u64().unwrap();
    let before = hearth.status().await;
    let hearth_ref = &hearth;
    let ends = containers.iter().map(|function| async move {
        loop {
            let answer = hearth_ref.get(&format!("{function}?end=1")).await;
            if answer.status != 502 {
                break answer.expect_problem(503, "tenant", "function-crash-loop");
            }
        }
    });
    let over = CancellationToken::new();
    let ((), lowest) = tokio::join!(
        async {
            futures_util::future::join_all(ends).await;
            over.cancel();
        },
        async {
            let mut lowest = POOL;
            while !over.is_cancelled() {
                lowest = lowest.min(hearth.status().await["handler"]["pool"]["level"].as_u64().unwrap());
            }
            lowest
        }
    );
    let after = hearth.status().await;
    let replaced = claims(&after, "pooled") - claims(&before, "pooled");
    assert!(replaced >= POOL, "{replaced} replacements are too few to say so");
    assert_eq!(claims(&after, "created"), claims(&before, "created"), "made at once, as if somebody were in a hurry");
    assert!(lowest >= POOL / 2, "the pool was down to {lowest}");
}

/// Node.js sizes its heap when it starts, before a container of the pool has a tenant and the tenant's memory.
#[tokio::test(flavor = "multi_thread")]
async fn a_function_with_much_memory_can_use_it_and_a_full_heap_has_a_name() {
    let hearth = Hearth::start().await;
    let code = "module.exports = (c, cb) => { const kept = []; for (let i = 0; i < c.query.mb; i++) kept.push(new Array(131072).fill(i)); cb(null, { mb: kept.length, e: process.env.E, v: require('v8').getHeapStatistics().heap_size_limit >> 20 }); }";
    for (tenant, memory_mb, fits, too_much) in [("usual", 256, 100, 400), ("half", 512, 150, 450), ("big", 1_024, 380, 800)] {
        let function = json!({ "code": code, "memory_mb": memory_mb, "env": { "E": "its own" } });
        hearth.deploy(&format!("{tenant}/main/f"), function).await;
        let answer = hearth.get(&format!("{tenant}/main/f?mb={fits}")).await;
        assert_eq!(answer.expect(200).json()["mb"], fits, "{tenant}: {}", answer.text);
        assert_eq!(answer.json()["e"], "its own", "{tenant}: {}", answer.text);
        hearth.get(&format!("{tenant}/main/f?mb={too_much}")).await.expect_problem(502, "tenant", "function-out-of-memory");
        hearth.get(&format!("{tenant}/main/f?mb=1")).await.expect(200);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_huge_answer_and_a_flood_of_output_stay_outside_our_memory() {
    let hearth = with_neighbour().await;
    let limits = json!({ "limits": { "answer_mb_per_s": 1_000 } });
    Answer::of(hearth.api(Method::PUT, "/tenants/bad").json(&limits)).await.expect(201);
    let code = "export default () => { let n = 0; return new Response(new ReadableStream({ pull(c) { if (n++ == 4000) c.close(); else c.enqueue(new Uint8Array(262144)); } })) }";
    hearth.deploy_code("bad/main/huge", code).await;
    let before = hearth.resident_bytes();
    let mut response = hearth.request(Method::GET, "/run/bad/main/huge").send().await.unwrap();
    let mut bytes = 0_u64;
    while let Some(chunk) = response.chunk().await.unwrap() {
        bytes += chunk.len() as u64;
    }
    assert_eq!(bytes, 4_000 * 262_144);
    hearth.deploy_code("bad/main/print", "module.exports = cb => { const s = 'x'.repeat(1e6); for (let i = 0; i < 300; i++) console.log(s); cb(null, { done: 1 }) }").await;
    assert_eq!(hearth.get("bad/main/print").await.expect(200).json()["done"], 1);
    let grown = hearth.resident_bytes().saturating_sub(before);
    assert!(grown < 100_000_000, "the process grew by {grown} bytes");
    unharmed(&hearth).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_client_that_leaves_gives_its_place_back() {
    let hearth = with_neighbour().await;
    hearth.deploy_code("bad/main/f", "export default (r) => new Promise(done => r.signal.addEventListener('abort', () => { console.log('aborted'); done(new Response()) }))").await;
    for _ in 0..20 {
        let mut connection = RawConnection::to(&hearth.url).await;
        connection.send("GET /run/bad/main/f HTTP/1.1\r\nhost: x\r\n\r\n").await;
        tokio::time::sleep(Duration::from_millis(20)).await;
        connection.reset();
    }
    hearth.logged("bad/main", "aborted").await;
    until("no request in flight", async || (hearth.container("bad/main").await["in_flight"] == 0).then_some(())).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn oversized_and_ambiguous_requests_are_refused() {
    let hearth = with_neighbour().await;
    let send = async |head: String| {
        let mut connection = RawConnection::to(&hearth.url).await;
        connection.send(head).await;
        connection.read_until("\r\n\r\n").await.split(' ').nth(1).unwrap_or_default().to_owned()
    };
    let get = |target: &str, headers: &str| format!("GET {target} HTTP/1.1\r\nhost: x\r\n{headers}\r\n");
    assert_eq!(send(get(&format!("/run/good/main/f?{}", "a".repeat(9_000)), "")).await, "414");
    assert_eq!(send(get("/run/good/main/f", &format!("x-a: {}\r\n", "a".repeat(33_000)))).await, "431");
    assert_eq!(send(get("/run/good/main/f", &"x-a: 1\r\n".repeat(101))).await, "431");
    assert_eq!(send(get("/run/good/main/f", "content-length: 200000000\r\n")).await, "413");
    assert_eq!(send(get("/run/good/main/f", "content-length: 1\r\ncontent-length: 2\r\n")).await, "400");
    assert_eq!(send(get("/run/good/main/f", "transfer-encoding: gzip\r\n")).await, "400");
    hearth.deploy_code("good/main/headers", "module.exports = (c, req, res) => res.end(JSON.stringify(req.rawHeaders))").await;
    both_framings_are_refused(&hearth).await;
    let smuggled = hearth
        .request(Method::GET, "/run/good/main/headers")
        .header("hearth-call", "other@1 x 1 1 1")
        .header("connection", "x-forwarded-for, hearth-call");
    let seen = Answer::of(smuggled).await;
    assert!(!seen.text.contains("hearth-") && seen.text.contains("x-forwarded-for"), "{}", seen.text);
    // Nothing is ever decompressed on the way: what a bomb would become is its function's own affair.
    hearth
        .deploy_code("good/main/length", "export default async (r) => Response.json({ n: (await r.arrayBuffer()).byteLength })")
        .await;
    let bomb = b"\x1f\x8b\x08 that would be a bomb".to_vec();
    let packed = hearth.request(Method::POST, "/run/good/main/length").header("content-encoding", "gzip").body(bomb.clone());
    assert_eq!(Answer::of(packed).await.expect(200).json()["n"], bomb.len());
    unharmed(&hearth).await;
}

/// Both framings at once are refused, whatever lies behind them, and nothing more is read from the connection (RFC 9112, 6.1).
async fn both_framings_are_refused(hearth: &Hearth) {
    for framing in ["content-length: 5\r\ntransfer-encoding: chunked", "transfer-encoding: chunked\r\ncontent-length: 5"] {
        for smuggled in ["", "GET /run/good/main/f HTTP/1.1\r\nhost: x\r\n\r\n"] {
            let mut connection = RawConnection::to(&hearth.url).await;
            let request = format!("POST /run/good/main/headers HTTP/1.1\r\nhost: x\r\n{framing}\r\n\r\n0\r\n\r\n{smuggled}");
            connection.send(request).await;
            let (answers, closed) = connection.read_to_end(Duration::from_secs(10)).await;
            assert!(closed && answers.starts_with("HTTP/1.1 400"), "{framing}: {answers}");
            assert_eq!(answers.matches("HTTP/1.1 ").count(), 1, "{framing}: {answers}");
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn limits_per_tenant_answer_429() {
    let hearth = with_neighbour().await;
    let limits = json!({ "limits": { "concurrency": 2, "rate_per_s": 1000, "burst": 1000 } });
    Answer::of(hearth.api(Method::PUT, "/tenants/bad").json(&limits)).await.expect(201);
    hearth.deploy_code("bad/main/f", "module.exports = cb => setTimeout(cb, 300, null, {})").await;
    let answers = futures_util::future::join_all((0..6).map(|_| hearth.get("bad/main/f"))).await;
    assert_eq!(answers.iter().filter(|a| a.status == 200).count(), 2);
    answers.iter().find(|a| a.status != 200).unwrap().expect_problem(429, "client", "concurrency-limited");
    unharmed(&hearth).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_container_is_confined_and_knows_no_secret_but_in_memory() {
    let hearth = with_neighbour().await;
    let canary = "canary-7c1e";
    let probe = r#"
        const fs = require('fs'), net = require('net'), cp = require('child_process');
        const attempt = (f) => { try { return String(f()) } catch (e) { return e.code || e.message } };
        module.exports = (c, cb) => {
          const out = {
            secret: process.env.KEY, uid: process.getuid(),
            root: attempt(() => fs.writeFileSync('/x', '1')), code: attempt(() => fs.writeFileSync(__filename, '1')),
            docker: attempt(() => fs.readdirSync('/var/run/docker.sock')), environ: fs.readFileSync('/proc/1/environ', 'utf8'),
            capabilities: fs.readFileSync('/proc/self/status', 'utf8').match(/CapEff:\s*(\w+)/)[1],
            privileges: fs.readFileSync('/proc/self/status', 'utf8').match(/NoNewPrivs:\s*(\d)/)[1],
            shell: attempt(() => cp.execSync('id')), modules: attempt(() => fs.readdirSync('/hearth/m')),
          };
          const socket = net.connect('/run/hearth/control.sock', () => socket.write('{"t":"hello","secret":"guess"}\n'));
          socket.on('close', () => cb(null, { ...out, control: 'closed' })); socket.on('error', () => {});
        };"#;
    hearth.deploy("bad/main/f", json!({ "code": probe, "secrets": { "KEY": canary } })).await;
    let seen = hearth.get("bad/main/f").await.expect(200).json();
    assert_eq!((&seen["secret"], &seen["control"]), (&json!(canary), &json!("closed")));
    assert_eq!((&seen["root"], &seen["code"]), (&json!("EROFS"), &json!("EROFS")), "{seen}");
    assert_eq!((&seen["capabilities"], &seen["privileges"]), (&json!("0000000000000000"), &json!("1")));
    assert!(seen["uid"].as_u64().unwrap() >= 60_000 && !seen["environ"].as_str().unwrap().contains(canary), "{seen}");
    assert_eq!((&seen["docker"], &seen["shell"], &seen["modules"]), (&json!("ENOENT"), &json!("ENOENT"), &json!("")), "{seen}");
    let other = hearth.deploy_code("good/main/uid", "module.exports = cb => cb(null, { uid: process.getuid() })").await;
    assert_eq!(other["live"], 1);
    assert_ne!(hearth.get("good/main/uid").await.json()["uid"], seen["uid"], "two tenants, two user ids");
    let running = hearth.docker().running();
    assert!(running.len() >= 2, "both tenants' containers run");
    for container in running {
        assert!(!container.inspected.to_string().contains(canary), "docker inspect shows the secret");
        for file in ["environ", "cmdline"] {
            let bytes = fs::read(format!("/proc/{}/{file}", container.pid)).unwrap_or_default();
            assert!(!String::from_utf8_lossy(&bytes).contains(canary), "/proc/{}/{file} shows the secret", container.pid);
        }
    }
    assert!(!hearth.log().contains(canary), "the log shows the secret");
}
