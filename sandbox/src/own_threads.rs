//! The threads of this process that serve requests: what CPU time they use, and keeping them to the CPUs that are not for background work.

use crate::cpus::{Affinity, CpuSet, CpuSplit};
use parking_lot::Mutex;
use rustix::{
    io::Errno,
    thread::{Pid, sched_getaffinity, sched_setaffinity},
};
use std::{
    collections::HashMap,
    fs, io,
    sync::atomic::{AtomicBool, Ordering::Relaxed},
    time::Duration,
};

/// The threads of this process but for those of background work.
#[derive(Debug)]
pub struct OwnThreads {
    /// What this process may use when nobody is kept anywhere.
    all: Mutex<Affinity>,
    foreground: Affinity,
    background: Affinity,
    /// Some may be kept to the foreground CPUs.
    kept: AtomicBool,
}

impl OwnThreads {
    /// None where this process has no CPU that is left to requests.
    pub fn new(split: &CpuSplit) -> io::Result<Option<Self>> {
        let Some(foreground) = split.foreground.as_ref().map(CpuSet::affinity) else { return Ok(None) };
        let all = sched_getaffinity(Some(rustix::process::getpid()))?;
        let background = split.background.affinity();
        let threads = Self { all: Mutex::new(all), foreground, background, kept: AtomicBool::new(false) };
        Ok((both(&all, &threads.foreground).count() > 0).then_some(threads))
    }

    /// CPU time by thread. What ended ones have used is not in it, nor what those of background work have.
    pub fn used(&self) -> io::Result<HashMap<i32, Duration>> {
        let mut used = HashMap::new();
        for thread in own_threads()? {
            let Some(affinity) = gone_is_none(sched_getaffinity(Some(thread)))? else { continue };
            if is_within(&affinity, &self.background) {
                continue;
            }
            let id = thread.as_raw_nonzero().get();
            match fs::read_to_string(format!("/proc/self/task/{id}/schedstat")) {
                Ok(text) => used.insert(id, on_cpu(&text)?),
                Err(error) if error.kind() == io::ErrorKind::NotFound && fs::exists("/proc/self/schedstat")? => None,
                Err(error) if error.raw_os_error() == Some(Errno::SRCH.raw_os_error()) => None,
                Err(error) => return Err(error),
            };
        }
        Ok(used)
    }

    /// Keeps them to the CPUs that are not for background work, or gives them all again. Threads that start later have what the one had that
    /// started them, so this is to be called again and again. Goes on after an error, and gives the first.
    pub fn keep(&self, foreground: bool) -> io::Result<()> {
        if !foreground && !self.kept.load(Relaxed) {
            // What is kept to some CPUs was so by somebody else.
            return Ok(());
        }
        if foreground {
            // The operator may have given it others meanwhile.
            let now = sched_getaffinity(Some(rustix::process::getpid()))?;
            if !is_within(&now, &self.foreground) {
                *self.all.lock() = now;
            }
        }
        self.kept.fetch_or(foreground, Relaxed);
        let changed = self.keep_these(own_threads()?, foreground)?;
        self.kept.store(foreground || changed > 0, Relaxed);
        Ok(())
    }

    /// How many were not where they belong.
    fn keep_these(&self, threads: impl IntoIterator<Item = Pid>, foreground: bool) -> io::Result<usize> {
        let all = *self.all.lock();
        let (mut changed, mut first_error) = (0, Ok(()));
        for thread in threads {
            let now = match gone_is_none(sched_getaffinity(Some(thread))) {
                Ok(Some(now)) => now,
                Ok(None) => continue,
                Err(error) => {
                    first_error = first_error.and(Err(error));
                    continue;
                }
            };
            let wanted = match foreground {
                true => both(&now, &self.foreground),
                false if is_within(&now, &self.foreground) => all,
                false => now,
            };
            if !is_within(&now, &self.background) && wanted != now && wanted.count() > 0 {
                changed += 1;
                first_error = first_error.and(gone_is_none(sched_setaffinity(Some(thread), &wanted)).map(|_| ()));
            }
        }
        first_error.map(|()| changed)
    }
}

fn own_threads() -> io::Result<Vec<Pid>> {
    let mut ids = Vec::new();
    for entry in fs::read_dir("/proc/self/task")? {
        ids.extend(entry?.file_name().to_str().and_then(|name| name.parse().ok()).and_then(Pid::from_raw));
    }
    Ok(ids)
}

/// A thread may end at any moment.
fn gone_is_none<T>(result: Result<T, Errno>) -> io::Result<Option<T>> {
    match result {
        Err(Errno::SRCH) => Ok(None),
        other => Ok(Some(other?)),
    }
}

fn both(some: &Affinity, others: &Affinity) -> Affinity {
    let mut both = Affinity::new();
    (0..Affinity::MAX_CPU).filter(|cpu| some.is_set(*cpu) && others.is_set(*cpu)).for_each(|cpu| both.set(cpu));
    both
}

fn is_within(some: &Affinity, others: &Affinity) -> bool {
    both(some, others) == *some
}

/// From `/proc/PID/schedstat`: nanoseconds on a CPU come first.
fn on_cpu(text: &str) -> io::Result<Duration> {
    let first = text.split_ascii_whitespace().next().and_then(|field| field.parse().ok());
    let malformed = || io::Error::new(io::ErrorKind::InvalidData, format!("schedstat: {text:?} is not what Linux writes"));
    first.map(Duration::from_nanos).ok_or_else(malformed)
}

#[cfg(test)]
mod tests {
    use super::*;
    use rustix::{
        thread::gettid,
        time::{ClockId, clock_gettime},
    };
    use std::sync::mpsc;

    fn split(background: &str, foreground: &str) -> CpuSplit {
        CpuSplit { background: CpuSet::parse(background).unwrap(), foreground: CpuSet::parse(foreground).ok() }
    }

    /// A thread that lives until the sender is gone, kept to some CPUs if that is asked for.
    fn thread(cpus: Option<Affinity>) -> (Pid, mpsc::Sender<()>) {
        let (id, ids) = mpsc::channel();
        let (alive, ended) = mpsc::channel();
        std::thread::spawn(move || {
            if let Some(cpus) = cpus {
                sched_setaffinity(None, &cpus).unwrap();
            }
            let on_cpu = || clock_gettime(ClockId::ThreadCPUTime).tv_nsec;
            let began = on_cpu();
            while on_cpu() - began < 20_000_000 {}
            id.send(gettid()).unwrap();
            let _ = ended.recv();
        });
        (ids.recv().unwrap(), alive)
    }

    #[test]
    fn threads_are_kept_and_let_go_but_for_those_of_background_work() {
        let all = sched_getaffinity(None).unwrap();
        let own: Vec<usize> = (0..Affinity::MAX_CPU).filter(|cpu| all.is_set(*cpu)).collect();
        let (first, last) = (own[0].to_string(), own[own.len() - 1].to_string());
        if first == last {
            return;
        }
        let split = split(&last, &first);
        let threads = OwnThreads::new(&split).unwrap().unwrap();
        let (serving, _serves) = thread(None);
        let (background, _works) = thread(Some(split.background.affinity()));
        let of = |thread| sched_getaffinity(Some(thread)).unwrap();
        for (foreground, wanted) in [(true, split.foreground.as_ref().unwrap().affinity()), (false, all), (false, all)] {
            threads.keep_these([serving, background], foreground).unwrap();
            assert_eq!((of(serving), of(background)), (wanted, split.background.affinity()));
        }
        let used = threads.used().unwrap();
        assert!(used[&serving.as_raw_nonzero().get()] >= Duration::from_millis(10), "{used:?}");
        assert!(!used.contains_key(&background.as_raw_nonzero().get()));
        assert_eq!(of(gettid()), all, "nobody else's");
    }

    #[test]
    fn where_no_cpu_is_left_nothing_is_kept() {
        let none = CpuSplit { foreground: None, ..split("0", "0") };
        assert!(OwnThreads::new(&none).unwrap().is_none());
        assert!(OwnThreads::new(&split("0", "8191")).unwrap().is_none(), "not one of this process");
    }

    #[test]
    fn time_on_a_cpu_comes_first() {
        assert_eq!(on_cpu("53094447 2939591 124\n").unwrap(), Duration::from_nanos(53_094_447));
        assert!(on_cpu("").is_err());
    }
}
