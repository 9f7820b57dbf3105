//! Both ends of a link, with a service that the test plays.

use super::super::{AnswerLimits, Call, CallError, Fields, Link, LinkBody, tests::local};
use super::*;
use http::{HeaderValue, Request};
use http_body_util::{BodyExt, Full, StreamBody, combinators::UnsyncBoxBody};
use std::{
    cell::Cell,
    convert::Infallible,
    io,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering::Relaxed},
    },
    time::Duration,
};
use tokio::{net::UnixStream, task::JoinHandle};
use tokio_util::sync::CancellationToken;

type TestBody = UnsyncBoxBody<Bytes, BoxError>;

#[derive(Default)]
struct Played {
    begun: Cell<usize>,
    dropped: Rc<Cell<usize>>,
    /// Pieces of the long answer that were asked for.
    pieces: Arc<AtomicUsize>,
}

struct Counted(Rc<Cell<usize>>);

impl Drop for Counted {
    fn drop(&mut self) {
        self.0.set(self.0.get() + 1);
    }
}

fn full(bytes: impl Into<Bytes>) -> TestBody {
    Full::new(bytes.into()).map_err(|never: Infallible| match never {}).boxed_unsync()
}

const PIECE: usize = 10_000;
const PIECES: usize = 100;

impl Service for Played {
    type Body = TestBody;

    async fn answer(self: Rc<Self>, peer: Rc<Peer>, request: Request<ClientBody>) -> Response<TestBody> {
        self.begun.set(self.begun.get() + 1);
        let _counted = Counted(Rc::clone(&self.dropped));
        assert!(peer.is_router);
        let path = request.uri().path().to_owned();
        let echo = request.headers().get("x-say").cloned().unwrap_or(HeaderValue::from_static(""));
        let body = request.into_body().collect().await.unwrap().to_bytes();
        let answer = match path.as_str() {
            "/echo" => full(body),
            "/slow" => {
                tokio::time::sleep(Duration::from_millis(50)).await;
                full(body)
            }
            "/never" => std::future::pending().await,
            "/panic" => panic!("as the test wants"),
            "/long" => {
                let pieces = Arc::clone(&self.pieces);
                StreamBody::new(futures_util::stream::iter((0..PIECES).map(move |n| {
                    pieces.store(n + 1, Relaxed);
                    Ok(Frame::data(Bytes::from(vec![b'a' + (n % 26) as u8; PIECE])))
                })))
                .boxed_unsync()
            }
            "/heads" => {
                return Response::builder().header("x", "y".repeat(60_000)).body(full("")).unwrap();
            }
            "/breaks" => {
                let frames = [Ok(Frame::data(Bytes::from_static(b"half"))), Err::<Frame<Bytes>, BoxError>("broke".into())];
                StreamBody::new(futures_util::stream::iter(frames)).boxed_unsync()
            }
            _ => full("?"),
        };
        Response::builder().status(201).header("x-said", echo).body(answer).unwrap()
    }
}

struct Both {
    link: Link,
    service: Rc<Played>,
    leaving: CancellationToken,
    served: JoinHandle<String>,
}

fn both() -> Both {
    let (ours, theirs) = UnixStream::pair().unwrap();
    let (service, leaving) = (Rc::<Played>::default(), CancellationToken::new());
    let peer = Rc::new(Peer::new(([127, 0, 0, 1], 1).into(), true, false));
    let served = tokio::task::spawn_local({
        let (service, leaving) = (Rc::clone(&service), leaving.clone());
        async move { run(service, peer, theirs, leaving.cancelled()).await.unwrap_err().to_string() }
    });
    Both { link: Link::open(ours, AnswerLimits::NODE, std::future::pending()), service, leaving, served }
}

impl Both {
    fn call(&self, method: &str, path: &str, body: &[u8]) -> Call {
        let head = |out: &mut BytesMut| {
            let mut fields = Fields::new(out);
            [method, path, "x-say", "well"].into_iter().for_each(|text| fields.put(text.as_bytes()));
        };
        self.link.call(method == "HEAD", head, body)
    }
}

async fn bytes(response: Response<LinkBody>) -> io::Result<Bytes> {
    Ok(response.into_body().collect().await?.to_bytes())
}

/// Waits until something is so; on a thread whose tasks have work it soon is.
async fn until(is_so: impl Fn() -> bool) {
    while !is_so() {
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
}

#[test]
fn calls_are_answered_side_by_side() {
    local(async {
        let both = both();
        let (slow, quick) = (both.call("POST", "/slow", b"late"), both.call("POST", "/echo", b"soon"));
        let quick = quick.await.unwrap();
        assert_eq!((quick.status().as_u16(), &quick.headers()["x-said"]), (201, &HeaderValue::from_static("well")));
        assert_eq!(bytes(quick).await.unwrap(), "soon");
        assert_eq!(both.link.in_flight(), 1);
        assert_eq!(bytes(slow.await.unwrap()).await.unwrap(), "late");
        let none = both.call("GET", "/echo", b"").await.unwrap();
        assert_eq!(bytes(none).await.unwrap(), "");
        let head = both.call("HEAD", "/echo", b"of no answer").await.unwrap();
        assert_eq!(head.headers()[header::CONTENT_LENGTH], "12", "as HTTP says it");
        assert_eq!(bytes(head).await.unwrap(), "");
        assert_eq!((both.link.in_flight(), both.service.dropped.get()), (0, 4));
    });
}

#[test]
fn a_long_answer_waits_for_who_reads_it() {
    local(async {
        let both = both();
        let long = both.call("GET", "/long", b"").await.unwrap();
        tokio::time::sleep(Duration::from_millis(20)).await;
        let ahead = both.service.pieces.load(Relaxed);
        assert!((1..=1 + frames::WINDOW_BYTES / PIECE).contains(&ahead), "{ahead}");
        // Meanwhile nobody else waits.
        assert_eq!(bytes(both.call("POST", "/echo", b"x").await.unwrap()).await.unwrap(), "x");
        let all = bytes(long).await.unwrap();
        assert_eq!(all.len(), PIECE * PIECES);
        assert!(all.chunks(PIECE).enumerate().all(|(n, piece)| piece.iter().all(|b| *b == b'a' + (n % 26) as u8)));
        until(|| both.link.in_flight() == 0).await;
    });
}

#[test]
fn who_gives_up_ends_the_call() {
    local(async {
        let both = both();
        let call = both.call("GET", "/never", b"");
        until(|| both.service.begun.get() == 1).await;
        drop(call);
        until(|| both.service.dropped.get() == 1).await;
        let long = both.call("GET", "/long", b"").await.unwrap();
        drop(long);
        until(|| both.link.in_flight() == 0).await;
        assert!(both.service.pieces.load(Relaxed) < PIECES);
        assert_eq!(bytes(both.call("POST", "/echo", b"x").await.unwrap()).await.unwrap(), "x");
    });
}

#[test]
fn an_answer_that_breaks_off_is_not_taken_for_whole() {
    local(async {
        let both = both();
        let breaks = both.call("GET", "/breaks", b"").await.unwrap();
        assert!(bytes(breaks).await.is_err());
        assert!(matches!(both.call("GET", "/panic", b"").await, Err(CallError::Broken(_))));
        assert_eq!(bytes(both.call("POST", "/echo", b"x").await.unwrap()).await.unwrap(), "x");
    });
}

#[test]
fn who_leaves_answers_what_comes_and_waits_to_be_left() {
    local(async {
        let both = both();
        let slow = both.call("POST", "/slow", b"a");
        until(|| both.service.begun.get() == 1).await;
        both.leaving.cancel();
        // Made before the news has come.
        let late = both.call("POST", "/slow", b"b");
        until(|| !both.link.is_open()).await;
        assert_eq!(bytes(slow.await.unwrap()).await.unwrap(), "a");
        assert_eq!(bytes(late.await.unwrap()).await.unwrap(), "b");
        // Nobody has to notice: it closes with its last answer.
        assert_eq!(both.served.await.unwrap(), "the other end closed the link");
    });
}

#[test]
fn with_the_link_its_calls_end_on_both_sides() {
    local(async {
        let both = both();
        let call = both.call("GET", "/never", b"");
        until(|| both.service.begun.get() == 1).await;
        both.served.abort();
        assert!(matches!(call.await, Err(CallError::Broken(_))));
        until(|| both.service.dropped.get() == 1).await;
        assert!(matches!(both.call("GET", "/echo", b"").await, Err(CallError::NotSent(_))));
    });
}

/// Heads have no window, and a router that reads late is no reason to end what others wait for as well.
#[test]
fn heads_wait_until_they_are_read() {
    const CALLS: u32 = (UNREAD_BYTES_MAX / 60_000) as u32 + 100;
    local(async {
        let (mut ours, theirs) = UnixStream::pair().unwrap();
        let service = Rc::<Played>::default();
        let peer = Rc::new(Peer::new(([127, 0, 0, 1], 1).into(), true, false));
        let served = tokio::task::spawn_local(run(Rc::clone(&service), peer, theirs, std::future::pending()));
        let mut out = Outbox::default();
        for id in 0..CALLS {
            out.frame(id, frames::CALL, |out| out.put_slice(b"\x0a\0\0\0GET\n/heads"));
        }
        std::future::poll_fn(|cx| out.poll_write(cx, &mut ours)).await.unwrap();
        until(|| service.dropped.get() == CALLS as usize).await;
        let (mut inbox, mut answers) = (Inbox::default(), 0);
        std::future::poll_fn(|cx| {
            let polled = inbox.poll_read(cx, &mut ours, |frame| {
                answers += u32::from(frame.kind == frames::ANSWER);
                Ok(())
            });
            if answers == CALLS { Poll::Ready(()) } else { polled.map(|ended| panic!("{ended}")) }
        })
        .await;
        assert!(!served.is_finished());
    });
}

#[test]
fn a_link_ends_when_its_other_end_is_known_to_be_gone() {
    local(async {
        let (ours, _theirs) = UnixStream::pair().unwrap();
        let gone = CancellationToken::new();
        let link = Link::open(ours, AnswerLimits::NODE, gone.clone().cancelled_owned());
        let call = link.call(false, |out| out.put_slice(b"GET\n/"), b"");
        tokio::task::yield_now().await;
        gone.cancel();
        assert!(matches!(call.await, Err(CallError::Broken(_))));
        assert!(!link.is_open());
    });
}
