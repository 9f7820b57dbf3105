//! What a node and the runtime in a container say to each other.
//!
//! Three unix sockets lie in the container's `/run/hearth` (the slot's `run` directory on the host):
//!
//! - `link.sock`: many requests at once over one connection, in the frames of [`link`]. For functions of which [`FromRuntime::Loaded`] said
//!   `linked`, and requests whose body is there: nearly all. A frame costs both sides half of what HTTP does, and those that come
//!   together are read and written together.
//! - `http.sock`: HTTP/1.1, for everything else: functions that take Node's own request and response, bodies that are still coming, WebSockets.
//!   The node forwards a request with its original target and headers plus one `hearth-call` header
//!   ([`CallHeader`]); the runtime removes that header before the function sees anything. An answer that carries `hearth-error`
//!   ([`ErrorReason`]) is for the node, which answers with a problem whose detail is the (JSON) body's `message`.
//! - `control.sock`: JSON, one message per line, both ways, at most [`crate::limits::CONTROL_MESSAGE_BYTES_MAX`] each. The first
//!   message on a connection is [`ToRuntime::Hello`]; the secret of the first `hello` ever is the only one that is accepted
//!   afterwards, so that code inside the container cannot open a second control connection. A newer connection with the right
//!   secret replaces the older one (a node that restarted).
//!
//! The node treats everything that comes from a runtime as hostile.

use crate::{FunctionName, Model, VersionNumber, function::NodeVersion};
use serde::{Deserialize, Serialize};
use std::{collections::BTreeMap, fmt, str::FromStr};

/// Where the slot's directories are inside a container.
pub mod paths {
    /// Sockets, read-write for the runtime.
    pub const RUN: &str = "/run/hearth";
    /// Functions (`f/{function}@{version}/`) and modules (`m/{context}/`), read-only, mounts propagate into it.
    pub const SLOT: &str = "/hearth";
    /// The runtime's own program.
    pub const RUNTIME: &str = "/opt/hearth";
    /// In the run directory.
    pub const LINK_SOCKET: &str = "link.sock";
    /// In the run directory.
    pub const HTTP_SOCKET: &str = "http.sock";
    /// In the run directory.
    pub const CONTROL_SOCKET: &str = "control.sock";
}

/// The runtime's program, below its directory.
pub const RUNTIME_MAIN: &str = "main.js";
/// What Node.js gets before the program. With the first the runtime can leave the code behind `fetch` and `Request` unloaded until a
/// function needs it, which is a third of an idle container's memory. The second is how many threads help V8: more than a container has
/// CPUs only cost memory. With the third the helper compiles and does not collect garbage, for which it would have to share the
/// container's one CPU with the main thread; a container that has become idle gives back half a megabyte more. The last is how far, in
/// megabytes, the space for young objects may grow: where memory is short V8 would leave it at one, which loading modules fills nine times.
///
/// None of these makes V8 reject compiled code. Other options do, and Node.js's own compiled code with it, so that it needs a third longer
/// to start: `--semi-space-growth-factor` for one, and in Node.js 22 the last of these.
#[must_use]
pub const fn runtime_node_options(node: NodeVersion) -> &'static [&'static str] {
    match node {
        NodeVersion::V22 => &["--expose-internals", "--v8-pool-size=1", "--single-threaded-gc"],
        NodeVersion::V24 => &["--expose-internals", "--v8-pool-size=1", "--single-threaded-gc", "--max-semi-space-size=8"],
    }
}

/// The value of `hearth-call`: `{function}@{version} {request_id} {timeout_ms} {prefix_bytes} {client_ip}`, five fields with one
/// space between them. `prefix_bytes` is the length of the part of the target that names the function
/// (`/run/acme/main/hello`); what follows is the function's own URL.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CallHeader<'a> {
    /// Which function.
    pub function: &'a FunctionName,
    /// Which version.
    pub version: VersionNumber,
    /// The request's id.
    pub request_id: &'a str,
    /// How long the function has.
    pub timeout_ms: u64,
    /// Length of the target's prefix.
    pub prefix_bytes: usize,
    /// Who called, as the edge saw it.
    pub client_ip: &'a str,
}

impl fmt::Display for CallHeader<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "{}@{} {} {} {} {}",
            self.function, self.version, self.request_id, self.timeout_ms, self.prefix_bytes, self.client_ip
        )
    }
}

/// The frames of links: `link.sock`, and those from routers to nodes. Here whoever calls is the caller (a node, a router), and whoever is
/// called the callee (a runtime, a node).
///
/// A frame is nine bytes and a payload: the payload's length (4 bytes, little-endian), the exchange (4 bytes, little-endian), the kind (1 byte).
/// An exchange is one request and its answer; the caller numbers them, each number once while it is in use. The last frame of every exchange
/// comes from the callee, also of a cancelled one: a whole answer, an end, or a break. What fits no rule ends the connection: among it a
/// frame after the last, data that is empty or before its answer, and a body in an answer that is not whole.
///
/// From the caller:
///
/// | kind | | payload |
/// | --- | --- | --- |
/// | 1 | call | length of the head (4 bytes), head, all of the body |
/// | 2 | cancel | nobody waits for the answer any more; unless it has ended, a break is the reply |
/// | 3 | credit | how much of the window is free again (4 bytes) |
///
/// A call's head is text in Latin-1, its fields separated by line feeds: for a runtime the first five are those of [`CallHeader`]; then method,
/// target, and name and value of every header.
///
/// From the callee:
///
/// | kind | | payload |
/// | --- | --- | --- |
/// | 1 | answer | status (2 bytes), 1 if this is all of it and 0 if not (1 byte), length of the head (4 bytes), head, body if all of it |
/// | 2 | data | more of the body |
/// | 3 | end | the body is whole |
/// | 4 | broken | nothing follows, and the answer is not whole, or there is none |
/// | 5 | leave | of no exchange (0): the callee wants no more calls; it answers those that come, and the caller closes the connection |
///
/// An answer's head is name and value of every header, as above. Of an answer's data at most [`link::WINDOW_BYTES`](WINDOW_BYTES) may be on
/// their way, each frame counting [`link::FRAME_COST_BYTES`](FRAME_COST_BYTES) more than it has: without credit for them the callee waits.
pub mod link {
    /// The first bytes of a router's plain connection that is a link, and the node's answer to them (development only: elsewhere TLS agrees on
    /// it, by [`ALPN`]). Who knows no links, or not from that router, answers in HTTP.
    pub const PREFACE: &[u8; 16] = b"HEARTH-LINK/1\r\n\r";
    /// The protocol's name in TLS.
    pub const ALPN: &[u8] = b"hearth-link/1";

    /// In front of every payload.
    pub const HEADER_BYTES: usize = 9;
    /// Of one payload.
    pub const PAYLOAD_BYTES_MAX: usize = 192 * 1024;
    /// Of one answer's data that the caller has not given credit for.
    pub const WINDOW_BYTES: usize = 64 * 1024;
    /// What a frame of data takes of the window besides its bytes, so that small frames are bounded in number.
    pub const FRAME_COST_BYTES: usize = 64;

    /// A request.
    pub const CALL: u8 = 1;
    /// The request is over.
    pub const CANCEL: u8 = 2;
    /// Room for more.
    pub const CREDIT: u8 = 3;

    /// An answer, or its beginning.
    pub const ANSWER: u8 = 1;
    /// More of it.
    pub const DATA: u8 = 2;
    /// Its end.
    pub const END: u8 = 3;
    /// Its end, too early.
    pub const BROKEN: u8 = 4;
    /// No more calls, please.
    pub const LEAVE: u8 = 5;
}

/// The value of `hearth-error`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ErrorReason {
    /// The code did not load.
    Load,
    /// The function threw or rejected before it answered.
    Failed,
    /// What it returned is not a response.
    BadResponse,
    /// It asked the process to exit.
    Exit,
    /// The runtime does not have that function at that version.
    Unknown,
}

impl ErrorReason {
    /// As it stands in the header.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Load => "load",
            Self::Failed => "failed",
            Self::BadResponse => "bad-response",
            Self::Exit => "exit",
            Self::Unknown => "unknown",
        }
    }
}

impl FromStr for ErrorReason {
    type Err = ();
    fn from_str(text: &str) -> Result<Self, ()> {
        [Self::Load, Self::Failed, Self::BadResponse, Self::Exit, Self::Unknown].into_iter().find(|r| r.as_str() == text).ok_or(())
    }
}

/// Node to runtime.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "t", rename_all = "snake_case")]
pub enum ToRuntime {
    /// First on every connection. Answered by [`FromRuntime::Ready`].
    Hello {
        /// 32 random bytes in hexadecimal, one per container.
        secret: String,
    },
    /// Load a version; what is loaded already stays. Answered by [`FromRuntime::Loaded`].
    Load {
        /// Matches the answer.
        id: u64,
        /// Which function.
        function: FunctionName,
        /// Which version.
        version: VersionNumber,
        /// Its directory inside the container.
        dir: String,
        /// The file to load, relative to `dir`.
        main: String,
        /// How it is called; found from the exports where absent.
        model: Option<Model>,
        /// Readable configuration.
        env: BTreeMap<String, String>,
        /// Secrets in the clear.
        secrets: BTreeMap<String, String>,
    },
    /// Forget a version once no request of it runs.
    Unload {
        /// Which function.
        function: FunctionName,
        /// Which version.
        version: VersionNumber,
    },
    /// Give back memory: nobody has asked for anything for a while.
    Trim,
    /// Do ahead of a claim what makes a later load quicker and takes too long for a container that is waited for.
    Prepare,
    /// Start the program again in the same process, so that it sees the memory that its container has now. The runtime closes the
    /// connection and has no functions afterwards; it is no answer to one that has some.
    Restart,
    /// Require modules ahead of a claim. Answered by [`FromRuntime::Preloaded`].
    Preload {
        /// Matches the answer.
        id: u64,
        /// Absolute directories of packages inside the container.
        modules: Vec<String>,
    },
    /// Is the event loop alive? Answered by [`FromRuntime::Pong`].
    Ping {
        /// Matches the answer.
        id: u64,
    },
    /// Answers [`FromRuntime::StorageGet`] and [`FromRuntime::StorageSet`].
    Storage {
        /// Matches the question.
        id: u64,
        /// The document, on success of a get.
        #[serde(default)]
        data: Option<serde_json::Value>,
        /// The document's etag.
        #[serde(default)]
        etag: Option<String>,
        /// Whether the write was stale.
        #[serde(default)]
        conflict: bool,
        /// What went wrong, for the function.
        #[serde(default)]
        error: Option<String>,
    },
}

/// Runtime to node.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(tag = "t", rename_all = "snake_case")]
pub enum FromRuntime {
    /// The secret was right.
    Ready {
        /// `process.version`.
        node: String,
        /// `function@version` of what is loaded already (after the node restarted).
        #[serde(default)]
        loaded: Vec<String>,
        /// Of them, those that can be called over the link.
        #[serde(default)]
        linked: Vec<String>,
    },
    /// A version is loaded, or cannot be. A webtask that cannot be loaded answers its callers itself and counts as loaded.
    Loaded {
        /// Of which question.
        id: u64,
        /// How it is called.
        #[serde(default)]
        model: Option<Model>,
        /// Whether it can be called over the link.
        #[serde(default)]
        linked: bool,
        /// Why it did not load, for the tenant.
        #[serde(default)]
        error: Option<String>,
        /// How long loading took, in milliseconds.
        ms: f64,
    },
    /// The modules that could be loaded are.
    Preloaded {
        /// Of which question.
        id: u64,
        /// Those that could not.
        #[serde(default)]
        failed: Vec<String>,
    },
    /// The event loop is alive.
    Pong {
        /// Of which question.
        id: u64,
    },
    /// One line of output, or an uncaught error.
    Log {
        /// Which function, where it is known.
        #[serde(default)]
        function: Option<FunctionName>,
        /// Which version.
        #[serde(default)]
        version: Option<VersionNumber>,
        /// During which request.
        #[serde(default)]
        request_id: Option<String>,
        /// How bad.
        level: LogLevel,
        /// The text, without the line's end.
        line: String,
        /// Milliseconds since the epoch, by the container's clock.
        at: u64,
    },
    /// `context.storage.get`. Answered by [`ToRuntime::Storage`].
    StorageGet {
        /// Matches the answer.
        id: u64,
        /// Whose document.
        function: FunctionName,
    },
    /// `context.storage.set`. Answered by [`ToRuntime::Storage`].
    StorageSet {
        /// Matches the answer.
        id: u64,
        /// Whose document.
        function: FunctionName,
        /// The new document; null deletes.
        data: serde_json::Value,
        /// What the caller read; a stale one is a conflict.
        #[serde(default)]
        etag: Option<String>,
        /// Write whatever is there.
        #[serde(default)]
        force: bool,
    },
    /// The process is about to end because a function asked for it.
    Exit {
        /// Which function, where it is known.
        #[serde(default)]
        function: Option<FunctionName>,
        /// The code.
        code: i32,
    },
}

/// How bad a line of log is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize, utoipa::ToSchema)]
#[serde(rename_all = "lowercase")]
pub enum LogLevel {
    /// `console.debug`.
    Debug,
    /// `console.log`, `console.info`, standard output.
    Info,
    /// `console.warn`.
    Warn,
    /// `console.error`, standard error, uncaught errors.
    Error,
}

impl fmt::Debug for ToRuntime {
    /// Without secrets.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Hello { .. } => f.write_str("Hello"),
            Self::Load { id, function, version, .. } => write!(f, "Load({id} {function}@{version})"),
            Self::Unload { function, version } => write!(f, "Unload({function}@{version})"),
            Self::Trim => f.write_str("Trim"),
            Self::Prepare => f.write_str("Prepare"),
            Self::Restart => f.write_str("Restart"),
            Self::Preload { id, modules } => write!(f, "Preload({id} {} modules)", modules.len()),
            Self::Ping { id } => write!(f, "Ping({id})"),
            Self::Storage { id, .. } => write!(f, "Storage({id})"),
        }
    }
}
