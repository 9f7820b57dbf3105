use super::*;
use tokio::{
    io::{AsyncBufReadExt, BufReader},
    net::UnixListener,
};

/// The other end, by hand.
struct Peer {
    listener: UnixListener,
    dir: tempfile::TempDir,
}

struct Line {
    reader: tokio::io::Lines<BufReader<tokio::net::unix::OwnedReadHalf>>,
    writer: OwnedWriteHalf,
}

impl Peer {
    fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        Self { listener: UnixListener::bind(dir.path().join(paths::CONTROL_SOCKET)).unwrap(), dir }
    }

    async fn accept(&self) -> Line {
        let (reader, writer) = self.listener.accept().await.unwrap().0.into_split();
        Line { reader: BufReader::new(reader).lines(), writer }
    }

    /// Accepts, and greets as a runtime does.
    async fn greeted(&self) -> Line {
        let mut line = self.accept().await;
        assert_eq!(line.hear().await, ToRuntime::Hello { secret: "s".into() });
        line.say(r#"{"t":"ready","node":"v24","loaded":["a@1"]}"#).await;
        line
    }

    fn connect(&self) -> impl Future<Output = io::Result<(Control, Greeting)>> {
        let dir = Arc::new(SocketDir::open(self.dir.path()).unwrap());
        Control::connect(dir, "s".into(), Duration::from_secs(10), CancellationToken::new())
    }
}

impl Line {
    async fn hear(&mut self) -> ToRuntime {
        serde_json::from_str(&self.reader.next_line().await.unwrap().unwrap()).unwrap()
    }

    async fn say(&mut self, text: &str) {
        self.writer.write_all(format!("{text}\n").as_bytes()).await.unwrap();
    }
}

const PATIENCE: Duration = Duration::from_secs(10);

fn ping(id: u64) -> ToRuntime {
    ToRuntime::Ping { id }
}

#[tokio::test]
async fn questions_find_their_answers_in_any_order() {
    let peer = Peer::new();
    let (connected, mut line) = tokio::join!(peer.connect(), peer.greeted());
    let (control, greeting) = connected.unwrap();
    assert_eq!(greeting.loaded, ["a@1"]);
    let both = async { tokio::join!(control.ask(PATIENCE, ping), control.ask(PATIENCE, |id| ToRuntime::Preload { id, modules: Vec::new() })) };
    let peer = async {
        let (ToRuntime::Ping { id: first }, ToRuntime::Preload { id: second, .. }) = (line.hear().await, line.hear().await) else {
            panic!("not what was asked");
        };
        line.say(r#"{"t":"pong","id":999}"#).await;
        line.say("not a message").await;
        line.say(&format!(r#"{{"t":"preloaded","id":{second},"failed":["x"]}}"#)).await;
        line.say(&format!(r#"{{"t":"pong","id":{first}}}"#)).await;
    };
    let ((pong, preloaded), ()) = tokio::join!(both, peer);
    assert_eq!((pong, preloaded), (Ok(Answer::Pong), Ok(Answer::Preloaded { failed: vec!["x".into()] })));
    assert!(control.wire.pending.lock().is_empty());
}

#[tokio::test]
async fn who_greets_with_something_else_is_not_the_runtime() {
    let peer = Peer::new();
    let mut connecting = Box::pin(peer.connect());
    let answered = async {
        let mut line = peer.accept().await;
        line.hear().await;
        line.say(r#"{"t":"pong","id":1}"#).await;
        peer.greeted().await
    };
    let (connected, _line) = tokio::join!(&mut connecting, answered);
    assert!(connected.is_ok(), "it tried again");
}

#[tokio::test]
async fn an_answer_has_a_deadline_and_is_forgotten_after_it() {
    let peer = Peer::new();
    let (connected, _line) = tokio::join!(peer.connect(), peer.greeted());
    let (control, _) = connected.unwrap();
    let patience = Duration::from_millis(5);
    assert_eq!(control.ask(patience, ping).await, Err(ControlError::Deadline(patience)));
    assert!(control.wire.pending.lock().is_empty());
}

#[tokio::test]
async fn questions_are_bounded_at_the_bound_and_one_past() {
    let peer = Peer::new();
    let (connected, _line) = tokio::join!(peer.connect(), peer.greeted());
    let (control, _) = connected.unwrap();
    let mut asked: Vec<_> = (0..PENDING_MAX).map(|_| Box::pin(control.ask(PATIENCE, ping))).collect();
    for question in &mut asked {
        assert!(futures_util::poll!(question).is_pending());
    }
    assert_eq!(control.ask(PATIENCE, ping).await, Err(ControlError::Busy));
    asked.pop();
    assert!(futures_util::poll!(Box::pin(control.ask(PATIENCE, ping))).is_pending());
}

#[tokio::test]
async fn a_message_that_is_too_long_is_not_sent() {
    let env = |bytes: usize| std::collections::BTreeMap::from([("K".to_owned(), "v".repeat(bytes))]);
    let load = |bytes| ToRuntime::Load {
        id: 1,
        function: "f".parse().unwrap(),
        version: hearth_model::VersionNumber(1),
        dir: String::new(),
        main: String::new(),
        model: None,
        env: env(bytes),
        secrets: Default::default(),
    };
    let around = encode(load(0)).unwrap().len();
    assert_eq!(encode(load(CONTROL_MESSAGE_BYTES_MAX - around)).unwrap().len(), CONTROL_MESSAGE_BYTES_MAX);
    assert_eq!(encode(load(CONTROL_MESSAGE_BYTES_MAX - around + 1)), Err(ControlError::TooLong(CONTROL_MESSAGE_BYTES_MAX + 1)));
}

#[tokio::test]
async fn lines_are_bounded_at_the_bound_and_one_past() {
    let (ours, mut theirs) = UnixStream::pair().unwrap();
    let (reader, _writer) = ours.into_split();
    let budget = Budget::new(1e9, 1e9, Instant::now());
    let mut lines = Lines { reader, buffer: BytesMut::new(), scanned: 0, budget };
    let write = async {
        theirs.write_all(&[b"x".repeat(CONTROL_MESSAGE_BYTES_MAX), b"\nshort\n".to_vec()].concat()).await.unwrap();
        theirs.write_all(&b"y".repeat(CONTROL_MESSAGE_BYTES_MAX + 8 * 1024)).await.unwrap();
        theirs
    };
    let read = async {
        assert_eq!(lines.next().await.unwrap().unwrap().len(), CONTROL_MESSAGE_BYTES_MAX);
        assert_eq!(lines.next().await.unwrap().unwrap(), "short");
        assert_eq!(lines.next().await.unwrap_err().kind(), io::ErrorKind::InvalidData);
        lines
    };
    tokio::join!(write, read);
}

#[tokio::test]
async fn a_connection_in_the_pool_is_not_mended() {
    let peer = Peer::new();
    let (connected, line) = tokio::join!(peer.connect(), peer.greeted());
    let (control, _) = connected.unwrap();
    drop(line);
    control.closed().await;
    assert!(control.is_closed());
    assert_eq!(control.ask(PATIENCE, ping).await, Err(ControlError::Broken));
}

#[tokio::test]
async fn it_closes_with_its_last_handle() {
    let peer = Peer::new();
    let (connected, mut line) = tokio::join!(peer.connect(), peer.greeted());
    let (control, _) = connected.unwrap();
    let other = control.clone();
    drop(control);
    assert!(!other.is_closed());
    drop(other);
    assert_eq!(line.reader.next_line().await.unwrap(), None);
}
