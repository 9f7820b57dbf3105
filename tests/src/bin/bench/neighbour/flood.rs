//! A flood as many senders make it: each request at a moment of its own, by one sender after the other; one that still waits for an answer leaves its
//! turn out. Real senders are on other machines; so this one is as cheap for this machine as it can be: it sleeps while nothing is to be sent,
//! and reads of the answers no more than their status. What it could not send in time, since somebody else had its CPU, it sends at once.

use anyhow::{Context, Result, ensure};
use hearth_loadtest::seeded::Seeded;
use rustix::{
    buffer::spare_capacity,
    event::{Timespec, epoll},
    io::Errno,
    thread::gettid,
};
use std::{
    collections::{BTreeMap, VecDeque},
    io::{ErrorKind, Read, Write},
    net::TcpStream,
    process::Command,
    thread::sleep,
    time::{Duration, Instant},
};
use tokio_util::sync::CancellationToken;

/// For the last answers.
const LAST_MAX: Duration = Duration::from_secs(5);
/// Between two looks at whether it is to stop.
const WAIT_MAX: Duration = Duration::from_millis(100);
/// Waiting for answers is no more precise than this; sleeping is.
const PRECISION: Duration = Duration::from_millis(1);
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

/// Whose turn it is, and when.
#[derive(Debug, Clone, Copy)]
struct Sending {
    due: Duration,
    sender: usize,
}

/// Lets `count` senders make `rate` requests per second on average (a Poisson process) for `path` at `address` until `stop`.
pub fn flood(address: &str, path: &str, count: usize, rate: f64, stop: &CancellationToken) -> Result<Flood> {
    give_way()?;
    let request = format!("GET {path} HTTP/1.1\r\nhost: {address}\r\n\r\n");
    let mut senders = (0..count).map(|_| Sender::connect(address)).collect::<Result<Vec<_>>>()?;
    let answers = epoll::create(epoll::CreateFlags::CLOEXEC)?;
    for (n, sender) in senders.iter().enumerate() {
        epoll::add(&answers, &sender.stream, epoll::EventData::new_u64(n as u64), epoll::EventFlags::IN)?;
    }
    let mut events = Vec::with_capacity(64);
    let mut random = Seeded::new(1, 0);
    let mut due_s = 0.0;
    let mut turns = (0..count).cycle().map(|sender| {
        due_s += random.exponential() / rate;
        Sending { due: Duration::from_secs_f64(due_s), sender }
    });
    // Each sender's next turn.
    let mut next: VecDeque<Sending> = turns.by_ref().take(count).collect();
    let (began, mut sent) = (Instant::now(), 0);
    let mut flood = Flood::default();
    while !stop.is_cancelled() {
        let now = began.elapsed();
        while let Some(turn) = next.pop_front_if(|turn| turn.due <= now) {
            next.extend(turns.next());
            let sender = &mut senders[turn.sender];
            if sender.is_waiting {
                flood.unsent += 1;
                continue;
            }
            sender.stream.write_all(request.as_bytes()).context("a request of the flood")?;
            sender.is_waiting = true;
            sent += 1;
        }
        // Turns of those who wait pass by themselves.
        let due = next.iter().find(|turn| !senders[turn.sender].is_waiting).map_or(WAIT_MAX, |turn| turn.due.saturating_sub(now));
        if due < PRECISION {
            sleep(due);
        }
        let wait = due.min(WAIT_MAX).as_millis() as i64;
        events.clear();
        match epoll::wait(&answers, spare_capacity(&mut events), Some(&Timespec { tv_sec: 0, tv_nsec: wait * 1_000_000 })) {
            // A child of this program has ended.
            Ok(_) | Err(Errno::INTR) => {}
            Err(error) => return Err(error.into()),
        }
        for event in &events {
            senders[event.data.u64() as usize].read(&mut flood.statuses)?;
        }
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
