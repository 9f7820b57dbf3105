//! Raw requests that try to smuggle a second one past a listener, and the check that one request in is one request out or a refusal.
//! It lies here, and not beside a test, because routers and nodes must both pass it.

use std::{io, net::SocketAddr, time::Duration};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
};

/// What must become of a case.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Expect {
    /// Nothing reaches the backend.
    Refused,
    /// Nothing reaches the backend; the only answer is 400, and the connection is closed.
    BadAndClosed,
    /// The first of two requests reaches the backend; the second is answered 400, and the connection is closed.
    OneThenBadAndClosed,
    /// One request reaches the backend, or none: the grammar allows either.
    AtMostOne,
    /// Exactly one request reaches the backend.
    One,
    /// Exactly two: these are two requests, honestly said.
    Two,
}

/// One case.
#[derive(Debug, Clone)]
pub struct Case {
    /// What it tries.
    pub name: &'static str,
    /// The bytes.
    pub bytes: Vec<u8>,
    /// What must become of it.
    pub expect: Expect,
}

/// A connection that says nothing for so long has said all.
const QUIET: Duration = Duration::from_millis(700);
const DEADLINE: Duration = Duration::from_secs(20);
/// Between two looks at the backend's count.
const SETTLE: Duration = Duration::from_millis(100);
/// No listener answers a case with more.
const ANSWER_BYTES_MAX: usize = 1024 * 1024;

/// All cases, for a function at `target` that echoes nothing of what it gets into a line of its own.
#[must_use]
pub fn cases(target: &str) -> Vec<Case> {
    use Expect::{AtMostOne, BadAndClosed, One, OneThenBadAndClosed, Refused, Two};
    let post = |headers: &str, body: &str| format!("POST {target} HTTP/1.1\r\nhost: a\r\n{headers}\r\n{body}").into_bytes();
    let get = |headers: &str| format!("GET {target} HTTP/1.1\r\nhost: a\r\n{headers}\r\n").into_bytes();
    let inner = format!("GET {target}/smuggled HTTP/1.1\r\nhost: a\r\n\r\n");
    let n = inner.len();
    let cl_te = post(&format!("content-length: {}\r\ntransfer-encoding: chunked\r\n", 5 + n), &format!("0\r\n\r\n{inner}"));
    let te_cl = post("transfer-encoding: chunked\r\ncontent-length: 4\r\n", &format!("{n:x}\r\n{inner}\r\n0\r\n\r\n"));
    let case = |name, bytes, expect| Case { name, bytes, expect };
    let mut cases = vec![
        case("plain", get(""), One),
        case("two requests in one write", [get(""), get("")].concat(), Two),
        case("content-length", post("content-length: 3\r\n", "abc"), One),
        case("chunked", post("transfer-encoding: chunked\r\n", "3\r\nabc\r\n0\r\n\r\n"), One),
        case("chunk extension", post("transfer-encoding: chunked\r\n", "3;a=b\r\nabc\r\n0\r\n\r\n"), AtMostOne),
        case(
            "chunk extension with a bare LF",
            post("transfer-encoding: chunked\r\n", &format!("3;a\nabc\r\n0\r\n\r\n{inner}")),
            AtMostOne,
        ),
        case("CL.TE", cl_te.clone(), BadAndClosed),
        case("TE.CL", te_cl.clone(), BadAndClosed),
        case("CL.TE behind a GET", [get(""), cl_te.clone()].concat(), OneThenBadAndClosed),
        case("TE.CL behind a length", [post("content-length: 3\r\n", "abc"), te_cl.clone()].concat(), OneThenBadAndClosed),
        case(
            "CL.TE behind chunks",
            [post("transfer-encoding: chunked\r\n", "3;a=b\r\nabc\r\n0\r\nx: y\r\n\r\n"), cl_te].concat(),
            OneThenBadAndClosed,
        ),
        case(
            "TE.CL behind a body that looks like heads",
            [post(&format!("content-length: {}\r\n", te_cl.len()), ""), te_cl.clone(), te_cl].concat(),
            OneThenBadAndClosed,
        ),
        case(
            "a body that looks like CL.TE",
            post("content-length: 49\r\n", "content-length: 1\r\ntransfer-encoding: chunked\r\n\r\n"),
            One,
        ),
        case("two codings", post("transfer-encoding: chunked\r\ntransfer-encoding: chunked\r\n", "0\r\n\r\n"), BadAndClosed),
        case("two lengths that differ", post(&format!("content-length: 0\r\ncontent-length: {n}\r\n"), &inner), BadAndClosed),
        case("two lengths that agree", post("content-length: 3\r\ncontent-length: 3\r\n", "abc"), BadAndClosed),
        case("a list of lengths", post(&format!("content-length: 0, {n}\r\n"), &inner), BadAndClosed),
        case("a signed length", post("content-length: +3\r\n", "abc"), Refused),
        case("a negative length", post("content-length: -1\r\n", "abc"), Refused),
        case("a hexadecimal length", post("content-length: 0x3\r\n", "abc"), Refused),
        case("an overflowing length", post("content-length: 99999999999999999999999\r\n", "abc"), Refused),
        case("an empty length", post("content-length: \r\n", &inner), Refused),
        case("TE identity", post("transfer-encoding: identity\r\n", &inner), Refused),
        case(
            "TE in capitals with a twin",
            post("Transfer-Encoding: chunked\r\nTransfer-Encoding: identity\r\n", &format!("0\r\n\r\n{inner}")),
            BadAndClosed,
        ),
        case("TE gzip, chunked", post("transfer-encoding: gzip, chunked\r\n", "0\r\n\r\n"), BadAndClosed),
        case("TE chunked, chunked", post("transfer-encoding: chunked, chunked\r\n", "0\r\n\r\n"), BadAndClosed),
        case("TE chunked, gzip", post("transfer-encoding: chunked, gzip\r\n", &format!("0\r\n\r\n{inner}")), Refused),
        case("TE xchunked", post("transfer-encoding: xchunked\r\n", &inner), Refused),
        case("TE with a vertical tab", post("transfer-encoding: \u{b}chunked\r\n", &format!("0\r\n\r\n{inner}")), Refused),
        case("space before the colon", post(&format!("content-length : {n}\r\n"), &inner), Refused),
        case("TE with a space before the colon", post("transfer-encoding : chunked\r\n", &format!("0\r\n\r\n{inner}")), Refused),
        case("a folded header", get("x-a: 1\r\n x-b: 2\r\n"), Refused),
        case("a folded TE", post("transfer-encoding:\r\n chunked\r\n", &format!("0\r\n\r\n{inner}")), Refused),
        case(
            "a header that begins with a space",
            format!("GET {target} HTTP/1.1\r\n x: y\r\nhost: a\r\n\r\n").into_bytes(),
            Refused,
        ),
        case("a bare CR in a header", get("x-a: 1\rx-b: 2\r\n"), Refused),
        case("a NUL in a header", get("x-a: 1\0\r\n"), Refused),
        case("a header without a colon", get("nonsense\r\n"), Refused),
        case("a header with an empty name", get(": x\r\n"), Refused),
        case("bare LF ends lines", format!("GET {target} HTTP/1.1\nhost: a\n\n").into_bytes(), AtMostOne),
        case(
            "a chunk size that overflows",
            post("transfer-encoding: chunked\r\n", "fffffffffffffffff1\r\nabc\r\n0\r\n\r\n"),
            AtMostOne,
        ),
        case("a chunk size with a sign", post("transfer-encoding: chunked\r\n", "+3\r\nabc\r\n0\r\n\r\n"), AtMostOne),
        case("a chunk size with 0x", post("transfer-encoding: chunked\r\n", "0x3\r\nabc\r\n0\r\n\r\n"), AtMostOne),
        case("a chunk without its end", post("transfer-encoding: chunked\r\n", &format!("3\r\nabcX0\r\n\r\n{inner}")), AtMostOne),
        case(
            "HTTP/1.0 with TE",
            format!("POST {target} HTTP/1.0\r\nhost: a\r\ntransfer-encoding: chunked\r\n\r\n0\r\n\r\n{inner}").into_bytes(),
            BadAndClosed,
        ),
        case("HTTP/1.0", format!("GET {target} HTTP/1.0\r\nhost: a\r\n\r\n").into_bytes(), One),
        case("HTTP/0.9", format!("GET {target}\r\n\r\n").into_bytes(), Refused),
        case("HTTP/1.2", format!("GET {target} HTTP/1.2\r\nhost: a\r\n\r\n").into_bytes(), Refused),
        case("no host", format!("GET {target} HTTP/1.1\r\n\r\n").into_bytes(), Refused),
        case("two hosts", get("host: b\r\n"), Refused),
        case("absolute form", format!("GET http://b{target} HTTP/1.1\r\nhost: a\r\n\r\n").into_bytes(), One),
        case("a space in the target", format!("GET {target} x HTTP/1.1\r\nhost: a\r\n\r\n").into_bytes(), Refused),
        case("a tab in the request line", format!("GET\t{target}\tHTTP/1.1\r\nhost: a\r\n\r\n").into_bytes(), Refused),
        case("CONNECT", b"CONNECT a:80 HTTP/1.1\r\nhost: a\r\n\r\n".to_vec(), Refused),
        case("an odd method", format!("FROBNICATE {target} HTTP/1.1\r\nhost: a\r\n\r\n").into_bytes(), AtMostOne),
        case("a method that is none", format!("G@T( {target} HTTP/1.1\r\nhost: a\r\n\r\n").into_bytes(), Refused),
        case("a body with GET", [get("content-length: 3\r\n"), b"abc".to_vec()].concat(), One),
        case(
            "upgrade with a request behind it",
            [get("connection: upgrade\r\nupgrade: websocket\r\n"), inner.clone().into_bytes()].concat(),
            AtMostOne,
        ),
        case("nominated headers", get("connection: hearth-request-id, x-forwarded-for, host, content-length\r\n"), One),
        case("a long target", format!("GET {target}?{} HTTP/1.1\r\nhost: a\r\n\r\n", "a".repeat(9_000)).into_bytes(), Refused),
        case("a long header", get(&format!("x: {}\r\n", "a".repeat(33_000))), Refused),
        case("a huge header", get(&format!("x: {}\r\n", "a".repeat(300_000))), Refused),
        case("many headers", get(&"x: a\r\n".repeat(150)), Refused),
        case("very many headers", get(&"x: a\r\n".repeat(2_000)), Refused),
    ];
    for path in [
        "/",
        "/metrics",
        "/healthz",
        "/readyz",
        "//v1/status",
        "/run/../v1/status",
        "/run/%2e%2e/v1",
        "/run/a/b",
        "/run/A/b/c",
        "/v1;/x",
        "*",
    ] {
        cases.push(case("a path that is not public", format!("GET {path} HTTP/1.1\r\nhost: a\r\n\r\n").into_bytes(), Refused));
    }
    cases
}

/// What came back on a connection.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Said {
    /// The statuses of the answers.
    pub statuses: Vec<u16>,
    /// Whether the other side ended the connection.
    pub closed: bool,
}

/// Sends bytes and reads until the other side has ended or said nothing for a while.
///
/// # Errors
/// When no connection can be made or nothing ends in time.
pub async fn say(addr: SocketAddr, bytes: &[u8]) -> io::Result<Said> {
    let talk = async {
        let mut stream = TcpStream::connect(addr).await?;
        // The other side may refuse and close before it has read all.
        let _ = stream.write_all(bytes).await;
        let (mut seen, mut buf) = (Vec::new(), vec![0; 16 * 1024]);
        let closed = loop {
            match tokio::time::timeout(QUIET, stream.read(&mut buf)).await {
                Ok(Ok(n)) if n > 0 && seen.len() < ANSWER_BYTES_MAX => seen.extend_from_slice(&buf[..n]),
                Ok(_) => break true,
                Err(_elapsed) => break false,
            }
        };
        let text = String::from_utf8_lossy(&seen);
        let statuses = text.match_indices("HTTP/1.").filter_map(|(at, _)| text.get(at + 9..at + 12)?.parse().ok()).collect();
        Ok(Said { statuses, closed })
    };
    tokio::time::timeout(DEADLINE, talk).await?
}

/// What reached the backend, once that does not grow any more: a refusal can be here before what was passed on is counted.
async fn settled(reached: &impl AsyncFn() -> u64) -> u64 {
    loop {
        let before = reached().await;
        tokio::time::sleep(SETTLE).await;
        if reached().await == before {
            return before;
        }
    }
}

/// Says every case to `addr` and compares what reached the backend, as `reached` counts it, with what may. Returns what went wrong.
///
/// # Errors
/// When `addr` cannot be reached.
pub async fn check(addr: SocketAddr, target: &str, reached: impl AsyncFn() -> u64) -> io::Result<Vec<String>> {
    let mut wrong = Vec::new();
    for Case { name, bytes, expect } in cases(target) {
        let before = reached().await;
        let Said { statuses, closed } = say(addr, &bytes).await?;
        let count = settled(&reached).await - before;
        let fits = match expect {
            Expect::Refused => count == 0,
            Expect::BadAndClosed => count == 0 && closed && statuses == [400],
            Expect::OneThenBadAndClosed => count == 1 && closed && matches!(statuses[..], [200..=299, 400]),
            Expect::AtMostOne => count <= 1,
            Expect::One => count == 1,
            Expect::Two => count == 2,
        };
        let accepted = statuses.iter().filter(|s| (200..300).contains(*s)).count() as u64;
        if !fits || accepted > count {
            wrong.push(format!("{name}: {expect:?}, but {count} reached the backend; answers {statuses:?}, closed: {closed}"));
        }
    }
    Ok(wrong)
}
