//! Bodies that stream, connections that change their protocol, clients that leave, routers that leave.

use crate::stub::*;
use bytes::Bytes;
use http_body_util::BodyExt;
use hyper_util::rt::TokioIo;
use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering::SeqCst},
    },
    time::Duration,
};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
};

/// Reads until `end` has been seen.
async fn read_to(stream: &mut TcpStream, end: &str) -> String {
    let mut seen = Vec::new();
    let reading = async {
        while !String::from_utf8_lossy(&seen).contains(end) {
            match stream.read_u8().await {
                Ok(byte) => seen.push(byte),
                Err(error) => panic!("{error} after {:?}", String::from_utf8_lossy(&seen)),
            }
        }
    };
    tokio::time::timeout(DEADLINE, reading).await.expect("it never came");
    String::from_utf8(seen).unwrap()
}

#[tokio::test]
async fn both_bodies_stream_piece_by_piece() {
    let node = Stub::start(|request| async move { http::Response::new(request.into_body().boxed()) }).await;
    let router = router(config(), &[node.addr]).await;
    let mut client = TcpStream::connect(router.addr()).await.unwrap();
    client.write_all(format!("POST {TARGET} HTTP/1.1\r\nhost: a\r\ntransfer-encoding: chunked\r\n\r\n").as_bytes()).await.unwrap();
    for piece in ["one", "two", "six"] {
        client.write_all(format!("3\r\n{piece}\r\n").as_bytes()).await.unwrap();
        // The next piece is not sent before this one is back: nothing waits for the whole.
        read_to(&mut client, piece).await;
    }
    client.write_all(b"0\r\n\r\n").await.unwrap();
    read_to(&mut client, "0\r\n\r\n").await;
}

#[tokio::test]
async fn a_slow_reader_holds_the_function_back() {
    let sent = Arc::new(std::sync::atomic::AtomicUsize::new(0));
    let counter = Arc::clone(&sent);
    let node = Stub::start(move |_| {
        let counter = Arc::clone(&counter);
        async move {
            let pieces = futures_util::stream::repeat_with(move || {
                counter.fetch_add(64 * 1024, SeqCst);
                Ok(http_body::Frame::data(Bytes::from_static(&[b'x'; 64 * 1024])))
            });
            http::Response::new(BodyExt::boxed(http_body_util::StreamBody::new(futures_util::StreamExt::take(pieces, 10_000))))
        }
    })
    .await;
    let router = router(config(), &[node.addr]).await;
    let mut client = TcpStream::connect(router.addr()).await.unwrap();
    client.write_all(format!("GET {TARGET} HTTP/1.1\r\nhost: a\r\n\r\n").as_bytes()).await.unwrap();
    read_to(&mut client, "\r\n\r\n").await;
    // When what was sent no longer grows, everything between is full.
    let mut before = usize::MAX;
    while sent.load(SeqCst) != before {
        before = sent.load(SeqCst);
        tokio::time::sleep(Duration::from_millis(500)).await;
    }
    let in_flight = metric(&router, "hearth_router_requests_in_flight").await;
    assert!(before < 64 * 1024 * 1024, "{before} bytes of 655,360,000 went out though nobody reads; {in_flight} in flight");
    drop(client);
}

#[tokio::test]
async fn a_websocket_passes_and_nothing_before_its_101() {
    let node = raw(|mut stream| async move {
        let head = head(&mut stream).await;
        if !head.to_ascii_lowercase().contains("upgrade: websocket") {
            return;
        }
        // Whatever the client has sent after its request must not be here yet.
        let early = tokio::time::timeout(Duration::from_millis(300), stream.read_u8()).await;
        let verdict = if early.is_err() { "clean" } else { "early" };
        let answer = format!("HTTP/1.1 101 x\r\nconnection: upgrade\r\nupgrade: websocket\r\nx-verdict: {verdict}\r\n\r\n");
        stream.write_all(answer.as_bytes()).await.unwrap();
        let mut buf = [0; 64];
        while let Ok(n) = stream.read(&mut buf).await {
            if n == 0 || stream.write_all(&buf[..n]).await.is_err() {
                break;
            }
        }
    })
    .await;
    let router = router(config(), &[node]).await;
    let mut client = TcpStream::connect(router.addr()).await.unwrap();
    let ask = format!("GET {TARGET} HTTP/1.1\r\nhost: a\r\nconnection: Upgrade\r\nupgrade: websocket\r\n\r\nhello");
    client.write_all(ask.as_bytes()).await.unwrap();
    let answer = read_to(&mut client, "hello").await;
    assert!(answer.starts_with("HTTP/1.1 101") && answer.contains("x-verdict: clean"), "{answer}");
    client.write_all(b"again").await.unwrap();
    read_to(&mut client, "again").await;
    drop(client);
    until(|| async { metric(&router, "hearth_router_requests_in_flight").await == 0.0 }).await;
}

#[tokio::test]
async fn an_answer_before_the_body_has_come_leaves_no_connection_behind() {
    // Answers on the head alone; whatever follows on the same connection it takes for a request.
    let node = raw(|mut stream| async move {
        loop {
            let head = head(&mut stream).await;
            if head.is_empty() {
                return;
            }
            let clean = head.starts_with("POST /run/") || head.starts_with("GET /run/");
            let body = if clean { "clean" } else { "dirty" };
            let answer = format!("HTTP/1.1 200 OK\r\ncontent-length: 5\r\n\r\n{body}");
            if stream.write_all(answer.as_bytes()).await.is_err() {
                return;
            }
        }
    })
    .await;
    let router = router(config(), &[node]).await;
    let mut owing = Vec::new();
    for n in 0..1_000 {
        let mut client = TcpStream::connect(router.addr()).await.unwrap();
        let ask = format!("POST {TARGET} HTTP/1.1\r\nhost: a\r\ncontent-length: 100000\r\n\r\nGET /smuggled HTTP/1.1\r\n");
        client.write_all(ask.as_bytes()).await.unwrap();
        assert!(read_to(&mut client, "\r\n\r\n").await.starts_with("HTTP/1.1 200"));
        // Every tenth client stays, and never sends the rest.
        if n % 10 == 0 {
            owing.push(client);
        } else {
            drop(client);
        }
        let next = tokio::time::timeout(Duration::from_secs(5), call(router.addr(), "GET")).await;
        let next = next.expect("the next request waits for nobody's body");
        assert!(next.ends_with("clean"), "{next}");
    }
}

#[tokio::test]
async fn a_client_that_leaves_ends_its_request_at_the_node() {
    struct Dropped(Arc<AtomicBool>);
    impl Drop for Dropped {
        fn drop(&mut self) {
            self.0.store(true, SeqCst);
        }
    }
    let ended = Arc::new(AtomicBool::new(false));
    let flag = Arc::clone(&ended);
    let node = Stub::start(move |request| {
        let dropped = (request.uri().path() != "/").then(|| Dropped(Arc::clone(&flag)));
        async move {
            if dropped.is_some() {
                std::future::pending::<()>().await;
            }
            text("probe")
        }
    })
    .await;
    let router = router(config(), &[node.addr]).await;
    let mut client = TcpStream::connect(router.addr()).await.unwrap();
    client.write_all(format!("GET {TARGET} HTTP/1.1\r\nhost: a\r\n\r\n").as_bytes()).await.unwrap();
    until(|| async { node.count() == 1 }).await;
    assert!(!ended.load(SeqCst));
    drop(client);
    until(|| async { ended.load(SeqCst) }).await;
}

#[tokio::test]
async fn an_answer_that_breaks_off_is_seen_to() {
    let node = raw(|mut stream| async move {
        head(&mut stream).await;
        let _ = stream.write_all(b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n3\r\nabc\r\n").await;
    })
    .await;
    let router = router(config(), &[node]).await;
    let answer = call(router.addr(), "GET").await;
    assert!(answer.contains("abc") && !answer.ends_with("0\r\n\r\n"), "{answer}");
}

#[tokio::test]
async fn a_router_that_leaves_finishes_what_it_has() {
    let go = Arc::new(tokio::sync::Notify::new());
    let gate = Arc::clone(&go);
    let node = Stub::start(move |request| {
        let gate = Arc::clone(&gate);
        async move {
            if request.uri().path() != "/" {
                gate.notified().await;
            }
            text("finished")
        }
    })
    .await;
    let drain_lead = Duration::from_millis(1_500);
    let router = router(hearth_router::Config { drain_lead, ..config() }, &[node.addr]).await;
    let (addr, ops) = (router.addr(), router.ops_addr());
    // An HTTP/2 connection that is idle, which must be told.
    let stream = TcpStream::connect(addr).await.unwrap();
    let (mut h2, connection) = hyper::client::conn::http2::handshake::<_, _, http_body_util::Empty<Bytes>>(
        hyper_util::rt::TokioExecutor::new(),
        TokioIo::new(stream),
    )
    .await
    .unwrap();
    let told = tokio::spawn(connection);
    h2.ready().await.unwrap();
    let waiting = tokio::spawn(async move { call(addr, "GET").await });
    until(|| async { node.count() == 1 }).await;
    let leaving = tokio::spawn(router.shutdown(DEADLINE));
    let ready = || say(ops, "GET /readyz HTTP/1.1\r\nhost: a\r\nconnection: close\r\n\r\n");
    until(|| async { status(&ready().await) == 503 }).await;
    go.notify_waiters();
    assert!(waiting.await.unwrap().ends_with("finished"));
    assert_eq!(tokio::time::timeout(DEADLINE, leaving).await.unwrap().unwrap(), 0, "nothing was cut");
    assert!(tokio::time::timeout(DEADLINE, told).await.unwrap().unwrap().is_ok(), "GOAWAY, and no reset");
    assert!(TcpStream::connect(addr).await.is_err());
}

#[tokio::test]
async fn a_router_that_leaves_answers_what_was_on_its_way() {
    const REQUEST: &[u8] = b"GET /run/acme/shop/a HTTP/1.1\r\nhost: a\r\n\r\n";
    let node = Stub::start(|_| async { text("finished") }).await;
    let router = router(config(), &[node.addr]).await;
    let addr = router.addr();
    // One connection is kept from a request before, one was made and has not said a word.
    let mut kept = TcpStream::connect(addr).await.unwrap();
    kept.write_all(REQUEST).await.unwrap();
    assert!(!read_to(&mut kept, "finished").await.contains("connection: close"));
    let fresh = TcpStream::connect(addr).await.unwrap();
    // The listener is closed first, then connections are told.
    let leaving = tokio::spawn(router.shutdown(DEADLINE));
    until(|| async { TcpStream::connect(addr).await.is_err() }).await;
    tokio::time::sleep(Duration::from_millis(100)).await;
    for mut stream in [kept, fresh] {
        stream.write_all(REQUEST).await.unwrap();
        let mut answer = String::new();
        tokio::time::timeout(DEADLINE, stream.read_to_string(&mut answer)).await.unwrap().unwrap();
        assert!(answer.contains("connection: close") && answer.ends_with("finished"), "{answer}");
    }
    assert_eq!(tokio::time::timeout(DEADLINE, leaving).await.unwrap().unwrap(), 0, "nothing was cut");
}
