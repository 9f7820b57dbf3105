//! A tenant's developer: every model, updates, rollback, logs, streams, the client commands.

use hearth_tests::{Answer, Hearth, RawConnection};
use reqwest::Method;
use serde_json::json;
use std::{fs, process::Stdio};

#[tokio::test(flavor = "multi_thread")]
async fn every_model_answers_cold_then_warm() {
    let hearth = Hearth::start().await;
    let cases = [
        (
            "webtask",
            json!({ "code": "module.exports = (context, cb) => cb(null, { hello: context.query.name });" }),
            "{\"hello\":\"x\"}",
        ),
        (
            "fetch",
            json!({ "code": "export default async (r) => new Response('hi ' + new URL(r.url).searchParams.get('name'))" }),
            "hi x",
        ),
        (
            "lambda",
            json!({ "code": "exports.handler = async (e) => ({ statusCode: 200, body: e.queryStringParameters.name })" }),
            "x",
        ),
        ("node", json!({ "code": "module.exports = (req, res) => res.end(req.url)", "model": "node" }), "/?name=x"),
        (
            "files",
            json!({ "files": { "index.js": "const a = require('./lib/a'); module.exports = cb => cb(null, a);", "lib/a.js": "module.exports = {a: 1};" } }),
            "{\"a\":1}",
        ),
    ];
    for (name, body, expected) in cases {
        let path = format!("acme/{name}/f");
        hearth.deploy(&path, body).await;
        hearth.pool_is_full().await;
        for start in ["cold", "warm"] {
            let answer = hearth.get(&format!("{path}?name=x")).await;
            answer.expect(200);
            assert_eq!((answer.text.as_str(), answer.header("hearth-start")), (expected, start), "{name}");
            assert_eq!(answer.header("hearth-request-id").len(), 32);
            assert!(answer.header("server-timing").contains("run;dur="));
        }
    }
    assert_eq!(hearth.status().await["handler"]["claims"]["created"], 0, "all came out of the pool");
}

#[tokio::test(flavor = "multi_thread")]
async fn versions_replace_each_other_in_the_same_container() {
    let hearth = Hearth::start().await;
    for n in 1..=3 {
        hearth.deploy_code("acme/main/f", &format!("let n = 0; module.exports = cb => cb(null, {{ v: {n}, n: ++n }});")).await;
        assert_eq!(hearth.get("acme/main/f").await.json(), json!({ "v": n, "n": 1 }));
    }
    let slot = hearth.container("acme/main").await["slot"].clone();
    let body = json!({ "version": 1 });
    Answer::of(hearth.api(Method::POST, &format!("{}/rollback", Hearth::function("acme/main/f"))).json(&body)).await.expect(200);
    assert_eq!(hearth.get("acme/main/f").await.json()["v"], 1);
    assert_eq!(hearth.container("acme/main").await["slot"], slot, "one container, for life");
    Answer::of(hearth.api(Method::DELETE, &Hearth::function("acme/main/f"))).await.expect(204);
    hearth.get("acme/main/f").await.expect_problem(404, "client", "not-found");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_function_that_is_deleted_and_made_again_runs_its_new_code() {
    let hearth = Hearth::start().await;
    for (name, one, two) in [
        ("js", "module.exports = cb => cb(null, 'one')", "module.exports = cb => cb(null, 'two')"),
        ("mjs", "export default () => new Response('\"one\"')", "export default () => new Response('\"two\"')"),
    ] {
        let path = format!("acme/{name}/f");
        for (code, expected) in [(one, "\"one\""), (two, "\"two\"")] {
            let made = hearth.deploy_code(&path, code).await;
            assert_eq!(made["live"], 1, "versions are counted from 1 again");
            let answer = hearth.get(&path).await;
            assert_eq!((answer.expect(200).text.as_str(), answer.header("hearth-start")), (expected, "cold"));
            Answer::of(hearth.api(Method::DELETE, &Hearth::function(&path))).await.expect(204);
            hearth.get(&path).await.expect_problem(404, "client", "not-found");
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn output_and_errors_carry_function_version_and_request() {
    let hearth = Hearth::start().await;
    let code =
        "module.exports = (c, cb) => { console.log('said', c.query.x); setTimeout(() => { throw new Error('late'); }, 5); };";
    hearth.deploy_code("acme/main/f", code).await;
    let answer = hearth.get("acme/main/f?x=5").await;
    assert_eq!((answer.status, answer.header("hearth-fault")), (500, "tenant"), "{}", answer.text);
    let line = hearth.logged("acme/main", "said 5").await;
    assert_eq!((&line["function"], &line["version"], &line["level"]), (&json!("f"), &json!(1), &json!("info")));
    assert_eq!(line["request_id"], answer.header("hearth-request-id"));
    assert_eq!(hearth.logged("acme/main", "late").await["level"], "error");
    // Lines that look like the platform's own, or that a terminal would act on, are the function's text in one record each.
    let forged = "module.exports = cb => { console.log('forged \\u001b[2J\\r\\u0000\\u2028 0\\n{\"function\":\"admin\",\"level\":\"error\",\"line\":\"forged 1\"}\\n\"} forged 2'); console.log('end of it'); cb(null, {}); };";
    hearth.deploy_code("acme/main/forger", forged).await;
    hearth.get("acme/main/forger").await.expect(200);
    hearth.logged("acme/main", "end of it").await;
    let lines: Vec<_> =
        hearth.logs("acme/main").await.into_iter().filter(|line| line["line"].to_string().contains("forged")).collect();
    assert_eq!(lines.len(), 3, "{lines:?}");
    for (n, line) in lines.iter().enumerate() {
        assert!(line["line"].as_str().unwrap().contains(&n.to_string()), "{line}");
        assert_eq!((&line["function"], &line["level"]), (&json!("forger"), &json!("info")), "{line}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn bodies_stream_both_ways_and_events_pass() {
    let hearth = Hearth::start().await;
    hearth.deploy_code("acme/main/echo", "export default (r) => new Response(r.body, { headers: { 'x-len': 'streamed' } })").await;
    let large = "0123456789".repeat(300_000);
    let answer = hearth.post("acme/main/echo", large.clone()).await;
    assert!(answer.text == large, "{} bytes came back", answer.text.len());
    let events = "export default () => new Response(new ReadableStream({ async start(c) { for (let i = 0; i < 3; i++) { c.enqueue(new TextEncoder().encode(`data: ${i}\\n\\n`)); await new Promise(r => setTimeout(r, 30)); } c.close(); } }), { headers: { 'content-type': 'text/event-stream' } })";
    hearth.deploy_code("acme/main/events", events).await;
    let mut connection = RawConnection::to(&hearth.url).await;
    connection.send("GET /run/acme/main/events HTTP/1.1\r\nhost: x\r\n\r\n").await;
    let head = connection.read_until("data: 0").await;
    assert!(!head.contains("data: 2"), "the first event came before the last was made");
    connection.read_until("data: 2").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_upgraded_connection_passes_bytes() {
    let hearth = Hearth::start().await;
    let code = "module.exports = (req, res) => res.end('plain'); module.exports.upgrade = (req, socket) => { socket.write('HTTP/1.1 101 Switching Protocols\\r\\nconnection: upgrade\\r\\nupgrade: echo\\r\\n\\r\\n'); socket.pipe(socket); };";
    hearth.deploy("acme/main/ws", json!({ "code": code, "model": "node" })).await;
    let mut connection = RawConnection::to(&hearth.url).await;
    connection.send("GET /run/acme/main/ws HTTP/1.1\r\nhost: x\r\nconnection: upgrade\r\nupgrade: echo\r\n\r\n").await;
    assert!(connection.read_until("\r\n\r\n").await.starts_with("HTTP/1.1 101"));
    connection.send("ping!").await;
    connection.read_until("ping!").await;
    assert_eq!(hearth.get("acme/main/ws").await.text, "plain");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_functions_storage_outlives_its_container() {
    let hearth = Hearth::start().await;
    let code = "module.exports = (c, cb) => c.query.set ? c.storage.set({ n: c.query.set }, { force: true }, e => cb(e, { ok: !e })) : c.storage.get((e, d) => cb(e, d || { none: 1 }));";
    hearth.deploy_code("acme/main/f", code).await;
    assert_eq!(hearth.get("acme/main/f").await.json(), json!({ "none": 1 }));
    assert_eq!(hearth.get("acme/main/f?set=7").await.json(), json!({ "ok": true }));
    let bigger = json!({ "memory_mb": 300 });
    Answer::of(hearth.api(Method::PUT, "/tenants/acme/containers/main").json(&bigger)).await.expect(200);
    let answer = hearth.get("acme/main/f").await;
    assert_eq!(
        (answer.header("hearth-start"), answer.json()),
        ("cold", json!({ "n": "7" })),
        "another memory is another container"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn the_client_commands_do_what_they_say() {
    let hearth = Hearth::start().await;
    let run = |args: &[&str]| {
        let output = hearth.client(args).stdin(Stdio::null()).output().expect("hearth");
        let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
        (output.status.code(), text(&output.stdout), text(&output.stderr))
    };
    fs::write(hearth.scratch().join("hello.js"), "module.exports = cb => cb(null, { k: process.env.K, e: process.env.E });")
        .unwrap();
    let (code, out, err) = run(&["deploy", "acme/main/hello", "hello.js", "--secret", "K=s3cret", "--env", "E=1"]);
    assert_eq!(code, Some(0), "{err}");
    assert!(out.contains("serves version 1"), "{out}");
    assert_eq!(run(&["invoke", "acme/main/hello"]).1.trim(), r#"{"k":"s3cret","e":"1"}"#);
    assert!(run(&["ls", "acme/main"]).1.contains("hello"));
    assert!(!run(&["get", "acme/main/hello", "--code"]).1.contains("s3cret"));
    assert!(run(&["versions", "acme/main/hello"]).1.contains("ready"));
    let versions: serde_json::Value = serde_json::from_str(&run(&["versions", "acme/main/hello", "--json"]).1).unwrap();
    assert_eq!(versions[0]["version"], 1);
    assert!(run(&["status"]).1.contains("pool"));
    assert!(run(&["token", "create", "--tenant", "acme", "--scope", "read"]).1.starts_with("hth_"));
    fs::write(hearth.scratch().join("bad.js"), "module.exports = (").unwrap();
    let (code, _, err) = run(&["deploy", "acme/main/hello", "bad.js"]);
    assert_eq!(code, Some(1));
    assert!(err.contains("code") && err.contains("line 1"), "{err}");
    assert_eq!(run(&["get", "acme/main/none"]).0, Some(3));
    assert_eq!(run(&["ls", "--token", "hth_wrong"]).0, Some(4));
    let (code, _, err) = run(&["ls", "--url", "http://127.0.0.1:9"]);
    assert_eq!(code, Some(5));
    assert!(err.contains("hearth up"), "{err}");
    assert_eq!(run(&["rm", "acme/main/hello"]).0, Some(0));
}
