//! When a request is sent again, and which nodes are out.

use crate::stub::*;
use hearth_router::Limits;
use tokio::io::AsyncWriteExt;

#[tokio::test]
async fn what_goes_to_a_node_is_what_the_platform_says() {
    let node = Stub::start(|request| async move {
        let headers: Vec<_> = request.headers().iter().map(|(n, v)| format!("{n}={}", v.to_str().unwrap())).collect();
        let mut answer = text(headers.join("\n"));
        answer.headers_mut().insert("hearth-node", "n0".parse().unwrap());
        answer.headers_mut().insert("server-timing", "route;dur=1".parse().unwrap());
        answer
    })
    .await;
    let router = router(config(), &[node.addr]).await;
    let answer = say(
        router.addr(),
        &format!(
            "GET {TARGET}/x?y=1 HTTP/1.1\r\nhost: a\r\nconnection: close, x-mine, x-forwarded-for, hearth-request-id\r\nx-mine: 1\r\nhearth-request-id: forged\r\nhearth-spread: 9\r\nx-forwarded-for: 6.6.6.6\r\nx-keep: 2\r\n\r\n"
        ),
    )
    .await;
    assert_eq!(status(&answer), 200, "{answer}");
    for there in [
        "hearth-node: n0",
        "server-timing: route;dur=1",
        "x-forwarded-for=127.0.0.1",
        "x-forwarded-proto=http",
        "traceparent=00-",
        "host=a",
        "x-keep=2",
    ] {
        assert!(answer.contains(there), "{there} is missing from {answer}");
    }
    for gone in ["x-mine", "forged", "6.6.6.6", "hearth-spread"] {
        assert!(!answer.contains(gone), "{gone} is in {answer}");
    }
    assert_eq!(answer.matches("hearth-request-id=").count(), 1);
}

/// A port that refuses.
async fn refusing() -> std::net::SocketAddr {
    Stub::named("gone").await.kill().await
}

#[tokio::test]
async fn a_request_is_repeated_only_where_it_may_be() {
    let breaks = raw(|mut stream| async move {
        head(&mut stream).await;
    })
    .await;
    let unsent = raw(|mut stream| async move {
        head(&mut stream).await;
        let _ = stream.write_all(b"HTTP/1.1 503 x\r\nhearth-unsent: 1\r\ncontent-length: 0\r\nconnection: close\r\n\r\n").await;
    })
    .await;
    for (first, method, expected, second) in [
        (refusing().await, "GET", 200, 1),
        (refusing().await, "POST", 200, 1),
        (breaks, "GET", 200, 1),
        (breaks, "PUT", 200, 1),
        (breaks, "POST", 502, 0),
        (breaks, "PATCH", 502, 0),
        (unsent, "GET", 200, 1),
        (unsent, "POST", 200, 1),
    ] {
        let other = Stub::named("other").await;
        let router = router(config(), &[first, other.addr]).await;
        let answer = call(router.addr(), method).await;
        assert_eq!((status(&answer), other.count()), (expected, second), "{method} {answer}");
        assert!(!answer.contains("hearth-unsent"), "{answer}");
        if expected == 502 {
            assert!(answer.contains("node-lost") && answer.contains("\"fault\":\"platform\""), "{answer}");
        }
    }
}

#[tokio::test]
async fn the_last_words_of_the_last_node_are_passed_on() {
    let unsent = raw(|mut stream| async move {
        head(&mut stream).await;
        let answer = b"HTTP/1.1 503 x\r\nhearth-unsent: 1\r\nretry-after: 7\r\ncontent-length: 0\r\nconnection: close\r\n\r\n";
        let _ = stream.write_all(answer).await;
    })
    .await;
    let router = router(config(), &[unsent]).await;
    let answer = call(router.addr(), "GET").await;
    assert!(status(&answer) == 503 && answer.contains("retry-after: 7") && !answer.contains("hearth-unsent"), "{answer}");
}

#[tokio::test]
async fn a_body_is_said_again_only_as_far_as_it_was_kept() {
    for (bytes, expected) in [(1_000, 200), (200_000, 503)] {
        let unsent = raw(move |mut stream| async move {
            head(&mut stream).await;
            let mut body = vec![0; bytes];
            tokio::io::AsyncReadExt::read_exact(&mut stream, &mut body).await.unwrap();
            let _ = stream.write_all(b"HTTP/1.1 503 x\r\nhearth-unsent: 1\r\ncontent-length: 0\r\nconnection: close\r\n\r\n").await;
        })
        .await;
        let other = Stub::start(|request| async move {
            let body = http_body_util::BodyExt::collect(request.into_body()).await.unwrap().to_bytes();
            text(format!("got {}", body.len()))
        })
        .await;
        let router = router(config(), &[unsent, other.addr]).await;
        let body = "x".repeat(bytes);
        let request = format!("POST {TARGET} HTTP/1.1\r\nhost: a\r\nconnection: close\r\ncontent-length: {bytes}\r\n\r\n{body}");
        let answer = say(router.addr(), &request).await;
        assert_eq!(status(&answer), expected, "{answer}");
        assert_eq!(answer.contains(&format!("got {bytes}")), expected == 200);
    }
}

#[tokio::test]
async fn a_budget_that_is_spent_ends_repetition() {
    let breaks = raw(|mut stream| async move {
        head(&mut stream).await;
    })
    .await;
    let other = Stub::named("other").await;
    let limits = Limits { retry_burst_max: 2, ..Limits::default() };
    let router = router(hearth_router::Config { limits, ..config() }, &[breaks, other.addr]).await;
    let mut statuses = Vec::new();
    for _ in 0..4 {
        statuses.push(status(&call(router.addr(), "GET").await));
    }
    assert_eq!(statuses, [200, 200, 502, 502]);
    assert!(metric(&router, "hearth_router_retries_over_budget").await >= 2.0);
}

#[tokio::test]
async fn a_node_that_refuses_is_out_at_once_and_comes_back() {
    let (first, other) = (Stub::named("first").await, Stub::named("other").await);
    let router = router(config(), &[first.addr, other.addr]).await;
    assert!(call(router.addr(), "GET").await.ends_with("first"));
    let addr = first.kill().await;
    for _ in 0..10 {
        assert!(call(router.addr(), "POST").await.ends_with("other"), "nothing is lost");
    }
    assert_eq!(metric(&router, "hearth_router_ejections_total{reason=\"refused\"}").await, 1.0);
    assert_eq!(metric(&router, "hearth_router_nodes_out").await, 1.0);
    let _back = Stub::on(addr, |_| async { text("first") }).await;
    until(|| async { call(router.addr(), "GET").await.ends_with("first") }).await;
    assert_eq!(metric(&router, "hearth_router_nodes_out").await, 0.0);
}

#[tokio::test]
async fn a_node_that_says_nothing_is_out_and_what_waits_for_it_is_told() {
    // The kernel takes connections for a process that has stopped.
    let stopped = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let other = Stub::named("other").await;
    let router = router(config(), &[stopped.local_addr().unwrap(), other.addr]).await;
    let (get, post) = tokio::join!(call(router.addr(), "GET"), call(router.addr(), "POST"));
    assert!(get.ends_with("other"), "{get}");
    assert!(status(&post) == 502 && post.contains("node-lost"), "{post}");
    assert_eq!(metric(&router, "hearth_router_ejections_total{reason=\"silent\"}").await, 1.0);
}

#[tokio::test]
async fn a_slow_function_is_not_a_silent_node() {
    let node = Stub::start(|request| async move {
        if request.uri().path() != "/" {
            tokio::time::sleep(std::time::Duration::from_secs(3)).await;
        }
        text("slow")
    })
    .await;
    let router = router(config(), &[node.addr]).await;
    assert!(call(router.addr(), "POST").await.ends_with("slow"));
    assert_eq!(metric(&router, "hearth_router_ejections_total{reason=\"silent\"}").await, 0.0);
}

#[tokio::test]
async fn the_only_candidate_is_tried_even_when_it_is_out() {
    let addr = refusing().await;
    let router = router(config(), &[addr]).await;
    let answer = call(router.addr(), "GET").await;
    assert!(status(&answer) == 503 && answer.contains("retry-after") && answer.contains("no-capacity"), "{answer}");
    let _node = Stub::on(addr, |_| async { text("here") }).await;
    assert!(call(router.addr(), "GET").await.ends_with("here"));
}

#[tokio::test]
async fn management_calls_go_to_any_node_and_unsafe_ones_once() {
    let breaks = raw(|mut stream| async move {
        head(&mut stream).await;
    })
    .await;
    let node = Stub::named("managed").await;
    let router = router(config(), &[breaks, node.addr]).await;
    for _ in 0..10 {
        let answer = say(router.addr(), "GET /v1/status HTTP/1.1\r\nhost: a\r\nconnection: close\r\n\r\n").await;
        assert!(answer.ends_with("managed"), "{answer}");
    }
    let mut lost = 0;
    for _ in 0..40 {
        let answer =
            say(router.addr(), "PUT /v1/tenants/a HTTP/1.1\r\nhost: a\r\nconnection: close\r\ncontent-length: 0\r\n\r\n").await;
        lost += u32::from(status(&answer) == 502);
    }
    assert!(lost > 0, "of 40 calls some went to the node that breaks off, and were not repeated");
}

#[tokio::test]
async fn more_than_may_be_in_flight_is_refused_at_once() {
    let node = Stub::start(|_| std::future::pending()).await;
    let limits = Limits { in_flight_max: 1, ..Limits::default() };
    let router = router(hearth_router::Config { limits, ..config() }, &[node.addr]).await;
    let waiting = tokio::spawn(call(router.addr(), "GET"));
    until(|| async { node.count() == 1 }).await;
    let answer = call(router.addr(), "GET").await;
    assert!(status(&answer) == 503 && answer.contains("retry-after"), "{answer}");
    waiting.abort();
    let _ = waiting.await;
    until(|| async { metric(&router, "hearth_router_requests_in_flight").await == 0.0 }).await;
}
