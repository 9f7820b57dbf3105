//! A flood as many senders make it: each request at a moment of its own, by one sender after the other; one that still waits for an answer leaves its
//! turn out. Real senders are on other machines; so this one is as cheap for this machine as it can be, and reads of the answers no more
//! than their status. What it could not send in time, since somebody else had its CPU, it sends at once.

use anyhow::{Context, Result, ensure};
use hearth_loadtest::seeded::Seeded;
use rustix::thread::gettid;
use std::{
    collections::BTreeMap,
    io::{ErrorKind, Read, Write},
    net::TcpStream,
    process::Command,
    thread::sleep,
    time::{Duration, Instant},
};
use tokio_util::sync::CancellationToken;

/// For the last answers.
const LAST_MAX: Duration = Duration::from_secs(2);
/// Before the status of an answer.
const STATUS_LINE: &[u8] = b"HTTP/1.1 ";

/// One connection, on which a request follows the answer to the one before.
struct Sender {
    stream: TcpStream,
    is_waiting: bool,
    /// What was read and may hold the beginning of a status line.
    rest: Vec<u8>,
}

/// What came of it.
#[derive(Debug, Default)]
pub struct Flood {
    /// How often each status was answered.
    pub statuses: BTreeMap<String, u64>,
    /// Turns left out.
    pub unsent: u64,
}

/// Lets `count` senders make `rate` requests per second on average (a Poisson process) for `path` at `address` until `stop`.
pub fn flood(address: &str, path: &str, count: usize, rate: f64, stop: &CancellationToken) -> Result<Flood> {
    give_way()?;
    let request = format!("GET {path} HTTP/1.1\r\nhost: {address}\r\n\r\n");
    let mut senders = (0..count).map(|_| Sender::connect(address)).collect::<Result<Vec<_>>>()?;
    let mut random = Seeded::new(1, 0);
    let (began, mut due_s, mut sent) = (Instant::now(), 0.0, 0);
    let mut flood = Flood::default();
    for sender in (0..count).cycle() {
        if stop.is_cancelled() {
            break;
        }
        due_s += random.exponential() / rate;
        sleep(Duration::from_secs_f64(due_s).saturating_sub(began.elapsed()));
        let sender = &mut senders[sender];
        sender.read(&mut flood.statuses)?;
        if sender.is_waiting {
            flood.unsent += 1;
            continue;
        }
        sender.stream.write_all(request.as_bytes()).context("a request of the flood")?;
        sender.is_waiting = true;
        sent += 1;
    }
    let ended = Instant::now();
    while senders.iter().any(|sender| sender.is_waiting) && ended.elapsed() < LAST_MAX {
        sleep(Duration::from_millis(10));
        senders.iter_mut().try_for_each(|sender| sender.read(&mut flood.statuses))?;
    }
    let answered: u64 = flood.statuses.values().sum();
    ensure!(answered == sent, "{sent} requests of the flood, {answered} answers");
    Ok(flood)
}

/// Lets this thread run only when nobody else would.
fn give_way() -> Result<()> {
    let thread = gettid().as_raw_nonzero().to_string();
    ensure!(Command::new("chrt").args(["--idle", "--pid", "0", &thread]).status()?.success(), "chrt failed");
    Ok(())
}

impl Sender {
    fn connect(address: &str) -> Result<Self> {
        let stream = TcpStream::connect(address)?;
        stream.set_nodelay(true)?;
        stream.set_nonblocking(true)?;
        Ok(Self { stream, is_waiting: false, rest: Vec::new() })
    }

    /// Counts the answer that is there.
    fn read(&mut self, statuses: &mut BTreeMap<String, u64>) -> Result<()> {
        let mut buffer = [0; 16 * 1024];
        loop {
            match self.stream.read(&mut buffer) {
                Ok(0) => anyhow::bail!("a connection of the flood was closed"),
                Ok(n) => self.rest.extend_from_slice(&buffer[..n]),
                Err(error) if error.kind() == ErrorKind::WouldBlock => return Ok(()),
                Err(error) => return Err(error.into()),
            }
            let (mut at, length) = (0, STATUS_LINE.len() + 3);
            while let Some(line) = self.rest.get(at..at + length) {
                if line.starts_with(STATUS_LINE) {
                    self.is_waiting = false;
                    *statuses.entry(String::from_utf8_lossy(&line[STATUS_LINE.len()..]).into_owned()).or_default() += 1;
                    at += length;
                } else {
                    at += 1;
                }
            }
            self.rest.drain(..at);
        }
    }
}
