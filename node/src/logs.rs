//! The last lines of each container's log, for whoever looks: a bounded ring per container, read by any number of readers at their
//! own pace. It keeps nothing durably, and it never waits for a reader: who is too slow is told how many lines it missed.

use futures_util::{Stream, StreamExt, stream, stream::BoxStream};
use hearth_model::{ContainerPath, FunctionName, Timestamp, VersionNumber, limits::LOG_LINE_BYTES_MAX, protocol::LogLevel};
use parking_lot::Mutex;
use serde::Serialize;
use std::{
    collections::{HashMap, VecDeque},
    pin::Pin,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
    task::{Context, Poll},
};
use tokio::sync::watch;

/// Bytes of one container's lines, each counted with [`LINE_OVERHEAD_BYTES`].
const RING_BYTES_MAX: usize = 256 * 1024;
/// What a line costs beside its text, so that empty lines are not free.
const LINE_OVERHEAD_BYTES: usize = 128;
/// Containers whose lines are kept. The one that printed longest ago goes first, unless somebody reads it.
const RINGS_MAX: usize = 1_024;

/// One line of a container's log. Tenant and container are known from where it is read.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct LogLine {
    /// When the node got it.
    pub at: Timestamp,
    /// Which function, where it is known.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub function: Option<FunctionName>,
    /// Which version.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub version: Option<VersionNumber>,
    /// During which request.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub request_id: Option<String>,
    /// How bad.
    pub level: LogLevel,
    /// The text, without the line's end; at most `LOG_LINE_BYTES_MAX`.
    pub line: String,
}

/// What a reader gets.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum LogItem {
    /// A line.
    Line(Arc<LogLine>),
    /// So many lines went by before this reader came to them.
    Dropped(u64),
}

/// Lines of one container: first those that are kept, then those that come. It never ends by itself, but for one case: it ends at
/// once when the hub has no room for one more container that is being read.
pub struct LogStream(BoxStream<'static, LogItem>);

impl Stream for LogStream {
    type Item = LogItem;
    fn poll_next(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<LogItem>> {
        self.0.poll_next_unpin(cx)
    }
}

/// All rings of a node.
pub struct LogHub {
    ring_bytes_max: usize,
    rings_max: usize,
    rings: Mutex<HashMap<ContainerPath, Arc<Ring>>>,
    clock: AtomicU64,
    refused: AtomicU64,
}

struct Ring {
    lines: Mutex<Lines>,
    /// The number of the next line, for readers to wait on.
    written: watch::Sender<u64>,
    /// By the hub's count of lines.
    last_used: AtomicU64,
}

#[derive(Default)]
struct Lines {
    kept: VecDeque<Arc<LogLine>>,
    bytes: usize,
    /// The number of `kept`'s first line.
    first: u64,
}

impl LogHub {
    /// An empty hub.
    #[must_use]
    pub fn new() -> Arc<Self> {
        Self::bounded(RINGS_MAX, RING_BYTES_MAX)
    }

    fn bounded(rings_max: usize, ring_bytes_max: usize) -> Arc<Self> {
        Arc::new(Self { ring_bytes_max, rings_max, rings: Mutex::default(), clock: AtomicU64::new(0), refused: AtomicU64::new(0) })
    }

    /// Adds a line, dropping the oldest ones where it has no room.
    pub fn publish(&self, path: &ContainerPath, mut line: LogLine) {
        cut(&mut line.line, LOG_LINE_BYTES_MAX);
        let Some(ring) = self.ring(path) else {
            self.refused.fetch_add(1, Relaxed);
            return;
        };
        ring.last_used.store(self.clock.fetch_add(1, Relaxed), Relaxed);
        let next = {
            let mut lines = ring.lines.lock();
            lines.bytes += cost(&line);
            lines.kept.push_back(Arc::new(line));
            while lines.bytes > self.ring_bytes_max && lines.kept.len() > 1 {
                if let Some(oldest) = lines.kept.pop_front() {
                    lines.bytes -= cost(&oldest);
                    lines.first += 1;
                }
            }
            lines.first + lines.kept.len() as u64
        };
        // Two publishers may come here in the other order: readers only need to know that there is more.
        ring.written.send_modify(|written| *written = (*written).max(next));
    }

    /// Reads a container's log from the oldest line that is kept.
    #[must_use]
    pub fn subscribe(&self, path: &ContainerPath) -> LogStream {
        let Some(ring) = self.ring(path) else { return LogStream(stream::empty().boxed()) };
        let cursor = ring.lines.lock().first;
        let wait = ring.written.subscribe();
        LogStream(stream::unfold((ring, wait, cursor), next_item).boxed())
    }

    /// Lines that found no ring, because all of them were being read.
    #[must_use]
    pub fn refused(&self) -> u64 {
        self.refused.load(Relaxed)
    }

    fn ring(&self, path: &ContainerPath) -> Option<Arc<Ring>> {
        let mut rings = self.rings.lock();
        if let Some(ring) = rings.get(path) {
            return Some(Arc::clone(ring));
        }
        if rings.len() >= self.rings_max {
            // A ring that somebody reads is held by the reader as well.
            let unread = rings.iter().filter(|(_, r)| Arc::strong_count(r) == 1);
            let oldest = unread.min_by_key(|(_, r)| r.last_used.load(Relaxed)).map(|(p, _)| p.clone())?;
            rings.remove(&oldest);
        }
        let last_used = AtomicU64::new(self.clock.load(Relaxed));
        let ring = Arc::new(Ring { lines: Mutex::default(), written: watch::channel(0).0, last_used });
        rings.insert(path.clone(), Arc::clone(&ring));
        Some(ring)
    }
}

type Reader = (Arc<Ring>, watch::Receiver<u64>, u64);

async fn next_item((ring, mut wait, mut cursor): Reader) -> Option<(LogItem, Reader)> {
    loop {
        wait.borrow_and_update();
        let found = {
            let lines = ring.lines.lock();
            if cursor < lines.first {
                let missed = lines.first - cursor;
                cursor = lines.first;
                Some(LogItem::Dropped(missed))
            } else {
                let at = usize::try_from(cursor - lines.first).unwrap_or(usize::MAX);
                lines.kept.get(at).map(|line| LogItem::Line(Arc::clone(line)))
            }
        };
        match found {
            Some(LogItem::Line(line)) => return Some((LogItem::Line(line), (ring, wait, cursor + 1))),
            Some(dropped) => return Some((dropped, (ring, wait, cursor))),
            None => wait.changed().await.ok()?,
        }
    }
}

fn cost(line: &LogLine) -> usize {
    line.line.len() + line.request_id.as_ref().map_or(0, String::len) + LINE_OVERHEAD_BYTES
}

/// Cuts a text to at most `max` bytes, between characters.
fn cut(text: &mut String, max: usize) {
    if text.len() > max {
        let end = (0..=max).rev().find(|at| text.is_char_boundary(*at)).unwrap_or(0);
        text.truncate(end);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use futures_util::FutureExt;

    fn path(name: &str) -> ContainerPath {
        ContainerPath { tenant: "acme".parse().unwrap(), container: name.parse().unwrap() }
    }

    fn line(text: &str) -> LogLine {
        LogLine { at: Timestamp(1), function: None, version: None, request_id: None, level: LogLevel::Info, line: text.into() }
    }

    fn now(stream: &mut LogStream) -> Option<LogItem> {
        stream.next().now_or_never().flatten()
    }

    fn text(item: Option<LogItem>) -> String {
        match item {
            Some(LogItem::Line(line)) => line.line.clone(),
            other => panic!("not a line: {other:?}"),
        }
    }

    #[tokio::test]
    async fn recent_lines_come_first_then_live_ones() {
        let hub = LogHub::new();
        hub.publish(&path("a"), line("one"));
        hub.publish(&path("b"), line("of another container"));
        let mut stream = hub.subscribe(&path("a"));
        assert_eq!(text(now(&mut stream)), "one");
        assert_eq!(now(&mut stream), None);
        let (got, ()) = tokio::join!(stream.next(), async { hub.publish(&path("a"), line("two")) });
        assert_eq!(text(got), "two");
    }

    #[tokio::test]
    async fn a_slow_reader_learns_how_many_it_missed() {
        let hub = LogHub::bounded(4, 3 * (LINE_OVERHEAD_BYTES + 1));
        let mut stream = hub.subscribe(&path("a"));
        for text in ["1", "2", "3"] {
            hub.publish(&path("a"), line(text));
        }
        assert_eq!(text(now(&mut stream)), "1");
        for text in ["4", "5", "6"] {
            hub.publish(&path("a"), line(text));
        }
        assert_eq!(now(&mut stream), Some(LogItem::Dropped(2)));
        assert_eq!([text(now(&mut stream)), text(now(&mut stream)), text(now(&mut stream))], ["4", "5", "6"]);
        assert_eq!(now(&mut stream), None);
    }

    #[test]
    fn bytes_per_ring_are_bounded_at_the_bound_and_one_past() {
        let hub = LogHub::bounded(4, 2 * LINE_OVERHEAD_BYTES + 10);
        hub.publish(&path("a"), line("12345"));
        hub.publish(&path("a"), line("12345"));
        let kept = |hub: &LogHub| hub.rings.lock()[&path("a")].lines.lock().kept.len();
        assert_eq!(kept(&hub), 2);
        hub.publish(&path("a"), line(""));
        assert_eq!(kept(&hub), 2, "one byte too many drops the oldest");
        hub.publish(&path("a"), line(&"x".repeat(2 * LOG_LINE_BYTES_MAX)));
        assert_eq!(kept(&hub), 1);
        assert_eq!(hub.rings.lock()[&path("a")].lines.lock().kept[0].line.len(), LOG_LINE_BYTES_MAX);
    }

    #[test]
    fn lines_are_cut_between_characters() {
        let mut text = "aé".repeat(10);
        cut(&mut text, 3);
        assert_eq!(text, "aé");
        cut(&mut text, 2);
        assert_eq!(text, "a");
    }

    #[test]
    fn rings_are_bounded_and_those_that_are_read_stay() {
        let hub = LogHub::bounded(2, 1_000);
        hub.publish(&path("a"), line("a"));
        hub.publish(&path("b"), line("b"));
        hub.publish(&path("a"), line("a"));
        hub.publish(&path("c"), line("c"));
        let known = |hub: &LogHub, name: &str| hub.rings.lock().contains_key(&path(name));
        assert!(known(&hub, "a") && known(&hub, "c") && !known(&hub, "b"), "the one that printed longest ago goes");

        let readers = (hub.subscribe(&path("a")), hub.subscribe(&path("c")));
        hub.publish(&path("d"), line("d"));
        assert!(!known(&hub, "d") && hub.refused() == 1);
        let mut refused = hub.subscribe(&path("e"));
        assert_eq!(refused.next().now_or_never(), Some(None), "ends at once");
        drop(readers);
        hub.publish(&path("d"), line("d"));
        assert!(known(&hub, "d") && hub.rings.lock().len() == 2);
    }

    #[test]
    fn serialised_without_what_is_not_known() {
        let json = serde_json::to_value(line("x")).unwrap();
        assert_eq!(json, serde_json::json!({"at": 1, "level": "info", "line": "x"}));
    }
}
