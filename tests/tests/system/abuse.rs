//! Hostile and broken functions: whoever sent the request gets the documented answer, the neighbour notices nothing, and the next
//! request works.

use hearth_tests::{Answer, Hearth, RawConnection, until};
use reqwest::Method;
use serde_json::json;
use std::{fs, time::Duration};

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
async fn a_huge_answer_and_a_flood_of_output_stay_outside_our_memory() {
    let hearth = with_neighbour().await;
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

