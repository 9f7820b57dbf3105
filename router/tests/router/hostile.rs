//! Clients that mean harm.

use crate::stub::*;
use http_body_util::BodyExt;
use std::time::{Duration, Instant};
use tokio::{
    io::{AsyncRead, AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
};

#[tokio::test]
async fn one_request_in_is_one_request_out_or_a_refusal() {
    let node = Stub::start(|request| async move {
        let _ = request.into_body().collect().await;
        text("ok")
    })
    .await;
    let router = router(config(), &[node.addr]).await;
    let wrong = hearth_edge::corpus::check(router.addr(), TARGET, async || node.count()).await.unwrap();
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

/// A frame of HTTP/2.
fn frame(kind: u8, flags: u8, stream: u32, payload: &[u8]) -> Vec<u8> {
    let len = u32::try_from(payload.len()).unwrap().to_be_bytes();
    let mut frame = vec![len[1], len[2], len[3], kind, flags];
    frame.extend(stream.to_be_bytes());
    frame.extend(payload);
    frame
}

/// The headers of a GET of [`TARGET`], in HPACK without tables or Huffman.
fn get() -> Vec<u8> {
    let mut block = vec![0x82, 0x86, 0x04, TARGET.len() as u8];
    block.extend(TARGET.as_bytes());
    block.extend([0x01, 1, b'a']);
    block
}

async fn http2(addr: std::net::SocketAddr, settings: &[u8]) -> TcpStream {
    let mut stream = TcpStream::connect(addr).await.unwrap();
    stream.write_all(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n").await.unwrap();
    stream.write_all(&frame(4, 0, 0, settings)).await.unwrap();
    stream
}

/// HTTP/2's word for a client that does too much of something.
const ENHANCE_YOUR_CALM: u32 = 11;

/// Reads until the other side ends; returns the reason if it said GOAWAY.
async fn goaway(mut stream: impl AsyncRead + Unpin) -> Option<u32> {
    let reading = async {
        loop {
            let mut head = [0; 9];
            if stream.read_exact(&mut head).await.is_err() {
                return None;
            }
            let mut payload = vec![0; u32::from_be_bytes([0, head[0], head[1], head[2]]) as usize];
            if stream.read_exact(&mut payload).await.is_err() {
                return None;
            }
            if head[3] == 7 {
                return payload.get(4..8).map(|code| u32::from_be_bytes([code[0], code[1], code[2], code[3]]));
            }
        }
    };
    tokio::time::timeout(DEADLINE, reading).await.expect("the connection was left open")
}

fn resident_kb() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap();
    let line = status.lines().find(|l| l.starts_with("VmRSS:")).unwrap();
    line.split_whitespace().nth(1).unwrap().parse().unwrap()
}

#[tokio::test]
async fn rapid_resets_end_the_connection_and_cost_no_memory() {
    let node = Stub::start(|_| std::future::pending()).await;
    let router = router(config(), &[node.addr]).await;
    let before = resident_kb();
    let stream = http2(router.addr(), &[]).await;
    let (read, mut write) = stream.into_split();
    let flood = tokio::spawn(async move {
        for n in 0..10_000_u32 {
            let id = 2 * n + 1;
            let pair = [frame(1, 5, id, &get()), frame(3, 0, id, &8_u32.to_be_bytes())].concat();
            if write.write_all(&pair).await.is_err() {
                return n;
            }
        }
        // Kept open, so that it is the other side that ends.
        std::future::pending().await
    });
    let reason = goaway(read).await;
    let written = tokio::time::timeout(Duration::from_secs(1), flood).await.map_or(10_000, |sent| sent.unwrap());
    assert!(reason == Some(ENHANCE_YOUR_CALM) || written < 10_000, "all of it was taken: {reason:?}");
    assert!(resident_kb().saturating_sub(before) < 50_000);
    until(|| async { metric(&router, "hearth_router_requests_in_flight").await == 0.0 }).await;
}

#[tokio::test]
async fn continuations_without_end_are_cut() {
    let node = Stub::named("n").await;
    let router = router(config(), &[node.addr]).await;
    let before = resident_kb();
    let mut stream = http2(router.addr(), &[]).await;
    stream.write_all(&frame(1, 0, 1, &get())).await.unwrap();
    // A literal header over and over, never the end of headers.
    let literal: Vec<u8> = [&[0x00, 3][..], b"x-a", &[100], &[b'v'; 100]].concat();
    let piece = frame(9, 0, 1, &literal.repeat(100));
    let mut sent = 0_usize;
    while sent < 100 * 1024 * 1024 && stream.write_all(&piece).await.is_ok() {
        sent += piece.len();
    }
    assert!(sent < 100 * 1024 * 1024, "all of it was taken");
    assert!(resident_kb().saturating_sub(before) < 50_000);
    assert_eq!(node.count(), 0);
}

#[tokio::test]
async fn a_window_that_stays_shut_ends_the_connection() {
    let node = Stub::named("some bytes that have nowhere to go").await;
    let stall_timeout = Duration::from_secs(1);
    let router = router(hearth_router::Config { stall_timeout, ..config() }, &[node.addr]).await;
    // SETTINGS_INITIAL_WINDOW_SIZE (4) = 0: no answer may send a byte of its body.
    let mut stream = http2(router.addr(), &[0, 4, 0, 0, 0, 0]).await;
    for n in 0..50_u32 {
        stream.write_all(&frame(1, 5, 2 * n + 1, &get())).await.unwrap();
    }
    let began = Instant::now();
    goaway(stream).await;
    // Sooner than a client is cut that answers no ping, which one that means harm does.
    assert!(began.elapsed() < Duration::from_secs(15), "it was ended after {:?}", began.elapsed());
    until(|| async { metric(&router, "hearth_router_requests_in_flight").await == 0.0 }).await;
}

#[tokio::test]
async fn clients_that_dawdle_are_cut() {
    let node = Stub::start(|request| async move {
        let _ = request.into_body().collect().await;
        text("ok")
    })
    .await;
    let short = Duration::from_millis(500);
    let dawdle = hearth_router::Config { first_byte_timeout: short, header_timeout: short, stall_timeout: short, ..config() };
    let router = router(dawdle, &[node.addr]).await;
    for begin in [
        String::new(),
        "PRI * HTTP".into(),
        "GET /run".into(),
        format!("GET {TARGET} HTTP/1.1\r\nhost: a\r\n"),
        format!("POST {TARGET} HTTP/1.1\r\nhost: a\r\ncontent-length: 10\r\n\r\nabc"),
        format!("POST {TARGET} HTTP/1.1\r\nhost: a\r\ntransfer-encoding: chunked\r\n\r\n3\r\nab"),
    ] {
        // `say` returns only when the router closes.
        let began = Instant::now();
        let answer = say(router.addr(), &begin).await;
        assert!(!answer.contains(" 200 "), "{begin:?} {answer}");
        // The libraries' own time-outs are half a minute.
        assert!(began.elapsed() < Duration::from_secs(15), "{begin:?} was cut after {:?}", began.elapsed());
    }
    // An HTTP/2 connection that idles.
    let began = Instant::now();
    goaway(http2(router.addr(), &[]).await).await;
    assert!(began.elapsed() < Duration::from_secs(15), "it was closed after {:?}", began.elapsed());
}

#[tokio::test]
async fn a_body_over_the_limit_is_413_whether_its_length_is_said_or_not() {
    let node = Stub::start(|request| async move {
        let _ = request.into_body().collect().await;
        text("ok")
    })
    .await;
    let request_body_max = bytesize::ByteSize::b(10);
    let router = router(hearth_router::Config { request_body_max, ..config() }, &[node.addr]).await;
    let send =
        |headers: &str, body: &str| format!("POST {TARGET} HTTP/1.1\r\nhost: a\r\nconnection: close\r\n{headers}\r\n\r\n{body}");
    for (request, expected) in [
        (send("content-length: 10", "0123456789"), 200),
        (send("content-length: 11", "0123456789x"), 413),
        (send("transfer-encoding: chunked", "a\r\n0123456789\r\n0\r\n\r\n"), 200),
        (send("transfer-encoding: chunked", "a\r\n0123456789\r\n1\r\nx\r\n0\r\n\r\n"), 413),
    ] {
        let answer = say(router.addr(), &request).await;
        assert_eq!(status(&answer), expected, "{answer}");
    }
}
