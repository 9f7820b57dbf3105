//! A link whose other end is played by the test.

use super::{
    parse::{first_frame, parse_answer, parse_call},
    wire::FRAMES_PER_TURN,
    *,
};
use hearth_model::limits;
use http::{HeaderName, HeaderValue};
use http_body_util::BodyExt;
use proptest::prelude::*;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::UnixStream,
    task::LocalSet,
};

/// A runtime that a test plays.
struct Peer(UnixStream);

impl Peer {
    async fn next(&mut self) -> (u32, u8, Vec<u8>) {
        let length = self.0.read_u32_le().await.unwrap();
        let (exchange, kind) = (self.0.read_u32_le().await.unwrap(), self.0.read_u8().await.unwrap());
        let mut payload = vec![0; length as usize];
        self.0.read_exact(&mut payload).await.unwrap();
        (exchange, kind, payload)
    }

    async fn send(&mut self, exchange: u32, kind: u8, payload: &[u8]) {
        self.0.write_all(&frame(exchange, kind, payload)).await.unwrap();
    }
}

fn frame(exchange: u32, kind: u8, payload: &[u8]) -> Vec<u8> {
    let mut bytes = u32::try_from(payload.len()).unwrap().to_le_bytes().to_vec();
    bytes.extend(exchange.to_le_bytes());
    bytes.push(kind);
    bytes.extend(payload);
    bytes
}

fn answer(status: u16, whole: bool, head: &str, body: &str) -> Vec<u8> {
    let mut payload = status.to_le_bytes().to_vec();
    payload.push(u8::from(whole));
    payload.extend(u32::try_from(head.len()).unwrap().to_le_bytes());
    payload.extend(head.as_bytes());
    payload.extend(body.as_bytes());
    payload
}

fn pair() -> (Link, Peer) {
    let (ours, theirs) = UnixStream::pair().unwrap();
    (Link::open(ours, AnswerLimits::RUNTIME, std::future::pending()), Peer(theirs))
}

fn call(link: &Link, head: &'static str) -> Call {
    link.call(false, |out| out.put_slice(head.as_bytes()), b"body")
}

async fn text(response: Response<LinkBody>) -> io::Result<String> {
    Ok(String::from_utf8(response.into_body().collect().await?.to_bytes().to_vec()).unwrap())
}

/// Runs a test on a thread as a worker's.
pub(super) fn local(test: impl Future<Output = ()>) {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let limit = std::time::Duration::from_secs(20);
    runtime.block_on(LocalSet::new().run_until(async { tokio::time::timeout(limit, test).await.unwrap() }));
}

#[test]
fn answers_find_their_calls_in_any_order() {
    local(async {
        let (link, mut peer) = pair();
        let (first, second) = (call(&link, "one"), call(&link, "two"));
        let (a, b) = (peer.next().await, peer.next().await);
        assert_eq!(a, (0, frames::CALL, b"\x03\0\0\0onebody".to_vec()));
        assert_eq!(b, (1, frames::CALL, b"\x03\0\0\0twobody".to_vec()));
        peer.send(1, frames::ANSWER, &answer(201, true, "content-length\n99\nx\ny\nx\nz", "second")).await;
        peer.send(0, frames::ANSWER, &answer(200, true, "", "first")).await;
        let second = second.await.unwrap();
        assert_eq!(second.status(), 201);
        assert_eq!(second.headers().get_all("x").iter().collect::<Vec<_>>(), ["y", "z"]);
        assert!(!second.headers().contains_key(header::CONTENT_LENGTH), "the framing is the node's");
        assert_eq!(text(second).await.unwrap(), "second");
        assert_eq!(text(first.await.unwrap()).await.unwrap(), "first");
        assert!(link.in_flight() == 0);
    });
}

#[test]
fn a_streamed_answer_gets_credit_for_what_was_passed_on() {
    local(async {
        let (link, mut peer) = pair();
        let streamed = call(&link, "");
        peer.next().await;
        peer.send(0, frames::ANSWER, &answer(200, false, "content-length\n65536", "")).await;
        let chunk = vec![b'x'; frames::WINDOW_BYTES / 2];
        let mut body = streamed.await.unwrap().into_body();
        assert_eq!(http_body::Body::size_hint(&body).exact(), Some(65_536));
        for _ in 0..2 {
            peer.send(0, frames::DATA, &chunk).await;
            assert_eq!(body.frame().await.unwrap().unwrap().into_data().unwrap().len(), chunk.len());
            let (exchange, kind, credit) = peer.next().await;
            let cost = u32::try_from(chunk.len() + frames::FRAME_COST_BYTES).unwrap();
            assert_eq!((exchange, kind, credit), (0, frames::CREDIT, cost.to_le_bytes().to_vec()));
        }
        peer.send(0, frames::END, b"").await;
        assert!(body.frame().await.is_none());
    });
}

#[test]
fn whoever_does_not_wait_any_more_says_so_once() {
    local(async {
        let (link, mut peer) = pair();
        let mut dropped = call(&link, "");
        peer.next().await;
        assert!(futures_util::poll!(&mut dropped).is_pending());
        drop(dropped);
        assert_eq!(peer.next().await, (0, frames::CANCEL, vec![]));
        // What was on its way is ignored, and the link goes on.
        peer.send(0, frames::ANSWER, &answer(200, true, "", "")).await;
        let streamed = call(&link, "");
        peer.next().await;
        peer.send(1, frames::ANSWER, &answer(200, false, "", "")).await;
        drop(streamed.await.unwrap());
        assert_eq!(peer.next().await, (1, frames::CANCEL, vec![]));
        let answered = call(&link, "");
        peer.next().await;
        peer.send(2, frames::ANSWER, &answer(200, true, "", "ok")).await;
        assert_eq!(text(answered.await.unwrap()).await.unwrap(), "ok");
        drop(link);
        assert_eq!(peer.0.read(&mut [0; 16]).await.unwrap(), 0, "the connection closes with its last call");
    });
}

#[test]
fn what_comes_for_a_cancelled_call_is_bounded_and_small_frames_are_joined() {
    local(async {
        let (link, mut peer) = pair();
        drop(call(&link, ""));
        assert_eq!((peer.next().await.1, peer.next().await.1), (frames::CALL, frames::CANCEL));
        let streamed = call(&link, "");
        peer.next().await;
        peer.send(0, frames::ANSWER, &answer(200, false, "", "")).await;
        peer.send(1, frames::ANSWER, &answer(200, false, "", "")).await;
        let mut body = streamed.await.unwrap().into_body();
        for _ in 0..900 {
            peer.send(0, frames::DATA, b"late").await;
            peer.send(1, frames::DATA, b"12").await;
        }
        peer.send(1, frames::END, b"").await;
        while link.in_flight() > 0 {
            tokio::task::yield_now().await;
        }
        assert_eq!(body.frame().await.unwrap().unwrap().into_data().unwrap().len(), 1_800);
        assert!(body.frame().await.is_none());
        assert!(link.is_open());
        // More than its window: nobody reads it, and nobody will.
        for _ in 0..200 {
            let _ = peer.0.write_all(&frame(0, frames::DATA, b"more")).await;
        }
        while link.is_open() {
            tokio::task::yield_now().await;
        }
    });
}

#[test]
fn a_runtime_that_ends_nothing_loses_its_link() {
    local(async {
        let (link, mut peer) = pair();
        for given_up in 1..=GIVEN_UP_MAX + 1 {
            drop(call(&link, ""));
            // Well before that others take over.
            assert_eq!((link.is_open(), link.is_full()), (true, given_up > GIVEN_UP_MAX / 2));
            assert_eq!((peer.next().await.1, peer.next().await.1), (frames::CALL, frames::CANCEL));
        }
        assert!(link.in_flight() == 0);
        while link.is_open() {
            tokio::task::yield_now().await;
        }
    });
}

#[test]
fn others_of_the_thread_have_their_turn_between_many_frames() {
    local(async {
        let (link, mut peer) = pair();
        let calls: Vec<_> = (0..4 * FRAMES_PER_TURN).map(|_| call(&link, "")).collect();
        let mut answers = Vec::new();
        for _ in &calls {
            answers.extend(frame(peer.next().await.0, frames::ANSWER, &answer(200, true, "", "")));
        }
        peer.0.write_all(&answers).await.unwrap();
        // In the queue of the same thread, and back at its end after every turn.
        let other = tokio::task::spawn_local(async move {
            let mut turns = 0;
            std::future::poll_fn(|cx| {
                turns += 1;
                cx.waker().wake_by_ref();
                if link.in_flight() > 0 { Poll::Pending } else { Poll::Ready(()) }
            })
            .await;
            turns
        });
        assert!(other.await.unwrap() > 4);
    });
}

#[test]
fn a_stream_whose_length_has_come_is_not_called_off() {
    local(async {
        let (link, mut peer) = pair();
        let streamed = call(&link, "");
        peer.next().await;
        peer.send(0, frames::ANSWER, &answer(200, false, "content-length\n2", "")).await;
        peer.send(0, frames::DATA, b"ok").await;
        let mut body = streamed.await.unwrap().into_body();
        assert_eq!(body.frame().await.unwrap().unwrap().into_data().unwrap(), "ok");
        drop(body);
        assert!(link.in_flight() == 0);
        let next = call(&link, "");
        assert_eq!(peer.next().await.1, frames::CALL, "and no cancel before it");
        peer.send(0, frames::END, b"").await;
        peer.send(1, frames::ANSWER, &answer(200, true, "content-length\n2\ncontent-length\n2\nx\n \ty ", "ok")).await;
        let next = next.await.unwrap();
        assert_eq!(next.headers()["x"], "y");
        assert_eq!(text(next).await.unwrap(), "ok");
    });
}

#[test]
fn a_stream_that_goes_on_after_its_length_is_called_off_once() {
    local(async {
        let (link, mut peer) = pair();
        let streamed = call(&link, "");
        peer.next().await;
        peer.send(0, frames::ANSWER, &answer(200, false, "content-length\n0", "")).await;
        assert_eq!(text(streamed.await.unwrap()).await.unwrap(), "");
        for _ in 0..2 {
            peer.send(0, frames::DATA, b"more").await;
        }
        assert_eq!(peer.next().await, (0, frames::CANCEL, vec![]));
        peer.send(0, frames::BROKEN, b"").await;
        let next = call(&link, "");
        assert_eq!(peer.next().await.1, frames::CALL);
        peer.send(1, frames::ANSWER, &answer(200, true, "", "ok")).await;
        assert_eq!(text(next.await.unwrap()).await.unwrap(), "ok");
        assert!(link.state.borrow().exchanges.is_empty());
    });
}

#[test]
fn of_a_call_that_was_given_up_nothing_is_kept() {
    local(async {
        let (link, mut peer) = pair();
        let given_up = call(&link, "");
        peer.next().await;
        drop(given_up);
        peer.send(0, frames::ANSWER, &answer(200, false, &format!("a\n{}", "b".repeat(60_000)), "")).await;
        let next = call(&link, "");
        assert_eq!((peer.next().await.1, peer.next().await.1), (frames::CANCEL, frames::CALL));
        peer.send(1, frames::ANSWER, &answer(200, true, "", "ok")).await;
        assert_eq!(text(next.await.unwrap()).await.unwrap(), "ok");
        let state = link.state.borrow();
        let exchange = state.exchanges[&0].borrow();
        assert!(exchange.answered && exchange.head.is_none() && exchange.waker.is_none());
    });
}

#[test]
fn what_was_answered_is_read_although_nothing_can_be_written() {
    local(async {
        let (link, mut peer) = pair();
        let answered = call(&link, "");
        peer.next().await;
        let unsent = call(&link, "");
        peer.send(0, frames::ANSWER, &answer(200, true, "", "done")).await;
        drop(peer);
        assert_eq!(text(answered.await.unwrap()).await.unwrap(), "done");
        assert!(matches!(unsent.await, Err(CallError::NotSent(_))));
    });
}

#[test]
fn calls_that_nobody_reads_and_nobody_waits_for_end_the_link() {
    local(async {
        let (link, _peer) = pair();
        while link.is_open() {
            drop(link.call(false, |out| out.put_slice(&[b'x'; 10_000]), b""));
            tokio::task::yield_now().await;
            assert!(!link.is_full());
        }
    });
}

#[test]
fn what_was_not_sent_is_told_from_what_broke() {
    local(async {
        let (link, mut peer) = pair();
        let sent = call(&link, "");
        peer.next().await;
        let unsent = call(&link, "");
        drop(peer);
        assert!(matches!(sent.await, Err(CallError::Broken(_))));
        assert!(matches!(unsent.await, Err(CallError::NotSent(_))));
        assert!(!link.is_open());
        assert!(matches!(call(&link, "").await, Err(CallError::NotSent(_))));
    });
}

#[test]
fn an_answer_without_sense_breaks_itself_alone() {
    local(async {
        let (link, mut peer) = pair();
        let many = vec!["a\nb"; limits::RESPONSE_HEADERS_MAX + 1].join("\n");
        let large = format!("a\n{}", "b".repeat(limits::RESPONSE_HEADER_BYTES_MAX));
        let bad = [
            answer(99, true, "", ""),
            answer(101, true, "", ""),
            answer(600, true, "", ""),
            answer(200, true, "name", ""),
            answer(200, true, "na me\nvalue", ""),
            answer(200, true, "a\nb\r", ""),
            answer(200, true, &many, ""),
            answer(200, true, &large, ""),
            answer(200, false, &many, ""),
            answer(200, false, "content-length\n-1", ""),
            answer(200, false, "content-length\n1\ncontent-length\n2", ""),
        ];
        for (i, payload) in (0u32..).zip(&bad) {
            let broken = call(&link, "");
            peer.next().await;
            peer.send(i, frames::ANSWER, payload).await;
            assert!(matches!(broken.await, Err(CallError::Broken(_))), "{i}");
            // The rest of it is not wanted, and does no harm.
            if payload[2] == 0 {
                assert_eq!(peer.next().await, (i, frames::CANCEL, vec![]));
                peer.send(i, frames::DATA, b"rest").await;
                peer.send(i, frames::END, b"").await;
            }
        }
        let next = call(&link, "");
        let (exchange, ..) = peer.next().await;
        peer.send(exchange, frames::ANSWER, &answer(200, true, "", "ok")).await;
        assert_eq!(text(next.await.unwrap()).await.unwrap(), "ok");
    });
}

#[test]
fn bodies_are_as_long_as_their_heads_say() {
    local(async {
        let (link, mut peer) = pair();
        for (i, sent, passed) in [(0, "123", None), (1, "12345", Some("1234"))] {
            let call = call(&link, "");
            peer.next().await;
            peer.send(i, frames::ANSWER, &answer(200, false, "content-length\n4", "")).await;
            peer.send(i, frames::DATA, sent.as_bytes()).await;
            peer.send(i, frames::END, b"").await;
            assert_eq!(text(call.await.unwrap()).await.ok().as_deref(), passed, "{sent}");
        }
        let broken = call(&link, "");
        peer.next().await;
        peer.send(2, frames::ANSWER, &answer(200, false, "", "")).await;
        peer.send(2, frames::BROKEN, b"").await;
        assert!(text(broken.await.unwrap()).await.is_err());
        let head = link.call(true, |_| {}, b"");
        peer.next().await;
        peer.send(3, frames::ANSWER, &answer(200, true, "content-length\n4", "")).await;
        let head = head.await.unwrap();
        assert_eq!(head.headers()[header::CONTENT_LENGTH], "4");
        assert_eq!(text(head).await.unwrap(), "");
        // Nor does a stream have a body where there is none, and 204 not even a length (RFC 9110, 8.6).
        let none = call(&link, "");
        peer.next().await;
        peer.send(4, frames::ANSWER, &answer(204, false, "content-length\n4", "")).await;
        let none = none.await.unwrap();
        assert!(!none.headers().contains_key(header::CONTENT_LENGTH));
        assert_eq!(text(none).await.unwrap(), "");
        assert_eq!(peer.next().await, (4, frames::CANCEL, vec![]));
    });
}

#[test]
fn a_frame_that_fits_no_rule_ends_the_link() {
    let bad: [Vec<u8>; 10] = [
        frame(0, 9, b""),
        frame(77, 0, b""),
        frame(77, frames::ANSWER, &answer(200, true, "", "for nobody, who was not cancelled")),
        [frame(0, frames::ANSWER, &answer(200, false, "", "")), frame(0, frames::DATA, b"")].concat(),
        frame(0, frames::DATA, b"before its answer"),
        frame(0, frames::END, b""),
        frame(0, frames::ANSWER, b"short"),
        frame(0, frames::ANSWER, &answer(200, false, "", "a body before its window")),
        [frame(0, frames::ANSWER, &answer(200, false, "", "")), frame(0, frames::DATA, &vec![0; frames::WINDOW_BYTES + 1])]
            .concat(),
        [&u32::MAX.to_le_bytes()[..], &[0; 5]].concat(),
    ];
    for bytes in bad {
        local(async {
            let (link, mut peer) = pair();
            let first = call(&link, "");
            let other = call(&link, "");
            for _ in 0..2 {
                peer.next().await;
            }
            peer.0.write_all(&bytes).await.unwrap();
            assert!(matches!(other.await, Err(CallError::Broken(_))), "{bytes:?}");
            if let Ok(started) = first.await {
                assert!(text(started).await.is_err());
            }
            assert!(!link.is_open());
        });
    }
}

proptest! {
    /// Whatever a runtime sends is read without a panic, within limits, and a frame takes what its length says.
    #[test]
    fn whatever_a_runtime_sends_is_bounded(bytes in proptest::collection::vec(any::<u8>(), 0..400), length in 0u32..300) {
        let framed = [&length.to_le_bytes()[..], &bytes].concat();
        for bytes in [&bytes, &framed] {
            if let Ok(Some((frame, taken))) = first_frame(bytes) {
                prop_assert_eq!(taken, frames::HEADER_BYTES + frame.payload.len());
                prop_assert!(taken <= bytes.len());
            }
            if let Ok((_, Ok(answer))) = parse_answer(bytes, &AnswerLimits::RUNTIME) {
                prop_assert!(answer.headers.len() <= limits::RESPONSE_HEADERS_MAX);
                prop_assert!((200..600).contains(&answer.status.as_u16()));
            }
        }
    }

    /// Whatever headers an answer has, those that come out are those that went in.
    #[test]
    fn whatever_is_well_formed_is_read_as_it_is(
        headers in proptest::collection::vec(("[a-z][a-z0-9-]{0,20}", "[ -~]{0,40}"), 0..20),
        status in 200u16..600, body in ".{0,80}", whole: bool,
    ) {
        let head = headers.iter().map(|(n, v)| format!("{n}\n{v}")).collect::<Vec<_>>().join("\n");
        let body = if whole { body } else { String::new() };
        let read = parse_answer(&answer(status, whole, &head, &body), &AnswerLimits::RUNTIME).unwrap().1.unwrap();
        prop_assert_eq!((read.status.as_u16(), read.whole, &read.body[..]), (status, whole, body.as_bytes()));
        let mut expected: Vec<_> = headers.iter().map(|(n, v)| (n.as_str(), v.trim_matches(' '))).collect();
        let mut came: Vec<_> = read.headers.iter().map(|(n, v)| (n.as_str(), v.to_str().unwrap())).collect();
        expected.sort_unstable();
        came.sort_unstable();
        prop_assert_eq!(came, expected);
    }
}

proptest! {
    /// A router's call is the request that was sent.
    #[test]
    fn a_call_is_read_as_it_was_written(
        headers in proptest::collection::vec(("[a-z][a-z0-9-]{0,20}", "([!-~]([ -~]{0,40}[!-~])?)?"), 0..20),
        target in "/[a-z0-9/%]{0,40}(\\?[a-z=&]{0,10})?", body in ".{0,80}",
    ) {
        let mut head = BytesMut::new();
        let mut fields = Fields::new(&mut head);
        [b"POST", target.as_bytes()].into_iter().for_each(|text| fields.put(text));
        let sent: Vec<(HeaderName, HeaderValue)> =
            headers.iter().map(|(n, v)| (n.parse().unwrap(), v.parse().unwrap())).collect();
        fields.put_headers(sent.iter().map(|(n, v)| (n, v)));
        let payload = [&u32::try_from(head.len()).unwrap().to_le_bytes()[..], &head, body.as_bytes()].concat();
        let request = parse_call(&payload).unwrap();
        prop_assert_eq!((request.method().as_str(), request.uri().to_string()), ("POST", target));
        prop_assert_eq!(&request.body()[..], body.as_bytes());
        let mut came: Vec<_> = request.headers().iter().map(|(n, v)| (n.clone(), v.clone())).collect();
        let mut sent = sent;
        let key = |(n, v): &(HeaderName, HeaderValue)| (n.as_str().to_owned(), v.as_bytes().to_vec());
        sent.sort_by_key(key);
        came.sort_by_key(key);
        prop_assert_eq!(came, sent);
    }

    /// Whatever comes instead of a call is read without a panic.
    #[test]
    fn whatever_comes_as_a_call_is_bounded(bytes in proptest::collection::vec(any::<u8>(), 0..400), head in 0u32..100) {
        for bytes in [&bytes, &[&head.to_le_bytes()[..], &bytes].concat()] {
            if let Ok(request) = parse_call(bytes) {
                prop_assert!(request.body().len() < bytes.len());
            }
        }
    }
}
