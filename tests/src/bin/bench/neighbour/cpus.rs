//! Who runs where while a neighbour is measured: as on a machine whose operator has read docs/operations/latency.md, with a client elsewhere.

use anyhow::{Result, anyhow, ensure};
use rustix::{
    io::Errno,
    process::getpid,
    thread::{CpuSet, Pid, sched_getaffinity, sched_setaffinity},
};
use std::{fs, path::Path, process::Command};
use tokio::runtime::Builder;

/// Threads of the kernel that tidy memory, a millisecond or more at a time. They may run anywhere.
const TIDYING: [&str; 4] = ["khugepaged", "kcompactd", "kdamond", "kswapd"];

/// While it lives, the container engine has the CPUs for background work only, as an operator is told to set it; then all again.
pub struct EngineCpus;

impl EngineCpus {
    /// By its control group, which containers do not inherit.
    pub fn keep(background: &str) -> Result<Self> {
        Self::set(background)?;
        Ok(Self)
    }

    fn set(list: &str) -> Result<()> {
        let script = concat!(env!("CARGO_MANIFEST_DIR"), "/../scripts/dockerd.sh");
        ensure!(Command::new(script).args(["cpus", list]).status()?.success(), "the engine could not be kept to the CPUs {list}");
        Ok(())
    }
}

impl Drop for EngineCpus {
    fn drop(&mut self) {
        if let Err(error) = Self::set("all") {
            eprintln!("bench: {error}");
        }
    }
}

/// Processes whose threads are kept to some CPUs while it lives, with those that each thread had before.
#[derive(Default)]
pub struct KeptThreads(Vec<(Pid, Vec<(Pid, CpuSet)>)>);

impl KeptThreads {
    /// This program's, on the CPUs for background work: of it only the client that measures belongs on the others, see [`on`].
    pub fn of_this(background: &str) -> Result<Self> {
        let mut kept = Self::default();
        kept.keep(getpid(), &parsed(background)?)?;
        Ok(kept)
    }

    /// Those of the machine's own services and of the kernel's that tidy memory, on the CPUs for background work, as an operator is told to
    /// set it. The engine has to be there already: containers would inherit an affinity.
    pub fn of_services(background: &str, hearth: u32) -> Result<Self> {
        let cpus = parsed(background)?;
        let own_namespace = fs::read_link("/proc/self/ns/pid")?;
        let mut kept = Self::default();
        for process in numbered(Path::new("/proc"))? {
            let dir = format!("/proc/{process}");
            let is_container = fs::read_link(format!("{dir}/ns/pid")).is_ok_and(|namespace| namespace != own_namespace);
            let is_kernel = fs::read(format!("{dir}/cmdline")).is_ok_and(|line| line.is_empty());
            let name = fs::read_to_string(format!("{dir}/comm")).unwrap_or_default();
            let is_left = is_kernel && !TIDYING.iter().any(|tidying| name.starts_with(tidying));
            if process != getpid() && process.as_raw_nonzero().get().unsigned_abs() != hearth && !is_container && !is_left {
                kept.keep(process, &cpus)?;
            }
        }
        Ok(kept)
    }

    /// Leaves alone who is there already.
    fn keep(&mut self, process: Pid, cpus: &CpuSet) -> Result<()> {
        let mut kept = Vec::new();
        for thread in threads_of(process) {
            let Some(before) = unless_gone(sched_getaffinity(Some(thread)))? else { continue };
            let is_there = (0..CpuSet::MAX_CPU).all(|cpu| cpus.is_set(cpu) || !before.is_set(cpu));
            if is_there {
                continue;
            }
            match sched_setaffinity(Some(thread), cpus) {
                Ok(()) => kept.push((thread, before)),
                // Gone, or bound by the kernel.
                Err(Errno::SRCH | Errno::INVAL) => {}
                Err(error) => return Err(error.into()),
            }
        }
        self.0.push((process, kept));
        Ok(())
    }
}

impl Drop for KeptThreads {
    fn drop(&mut self) {
        for (process, kept) in &self.0 {
            let Some((_, first)) = kept.first() else { continue };
            for thread in threads_of(*process) {
                // Those that were started meanwhile have inherited.
                let before = kept.iter().find(|(id, _)| *id == thread).map_or(first, |(_, before)| before);
                if let Err(error) = unless_gone(sched_setaffinity(Some(thread), before)) {
                    eprintln!("bench: a thread could not be given its CPUs back: {error}");
                }
            }
        }
    }
}

/// Of the machine's, since this program has fewer while it measures. It is among those for background work.
pub fn last_cpu() -> Result<String> {
    let online = fs::read_to_string("/sys/devices/system/cpu/online")?;
    Ok(online.trim().rsplit([',', '-']).next().unwrap_or_default().to_owned())
}

/// The CPUs that this program may use now and that are not for background work.
pub fn foreground(background: &str) -> Result<CpuSet> {
    let (mut cpus, background) = (sched_getaffinity(None)?, parsed(background)?);
    (0..CpuSet::MAX_CPU).filter(|cpu| background.is_set(*cpu)).for_each(|cpu| cpus.unset(cpu));
    Ok(cpus)
}

/// Runs `work` on a thread of its own, which keeps to these CPUs, with those that it starts.
pub async fn on<T: Send + 'static>(cpus: Option<CpuSet>, work: impl Future<Output = Result<T>> + Send + 'static) -> Result<T> {
    let thread = std::thread::spawn(move || {
        cpus.map(|cpus| sched_setaffinity(None, &cpus)).transpose()?;
        Builder::new_current_thread().enable_all().build()?.block_on(work)
    });
    tokio::task::spawn_blocking(|| thread.join()).await?.map_err(|_| anyhow!("the thread panicked"))?
}

fn parsed(list: &str) -> Result<CpuSet> {
    let mut cpus = CpuSet::new();
    for cpu in list.split(',') {
        cpus.set(cpu.parse()?);
    }
    Ok(cpus)
}

fn threads_of(process: Pid) -> Vec<Pid> {
    numbered(Path::new(&format!("/proc/{process}/task"))).unwrap_or_default()
}

fn numbered(dir: &Path) -> Result<Vec<Pid>> {
    let mut found = Vec::new();
    for entry in fs::read_dir(dir)? {
        found.extend(entry?.file_name().to_str().and_then(|id| id.parse().ok()).and_then(Pid::from_raw));
    }
    Ok(found)
}

fn unless_gone<T>(result: Result<T, Errno>) -> Result<Option<T>, Errno> {
    match result {
        Ok(value) => Ok(Some(value)),
        Err(Errno::SRCH) => Ok(None),
        Err(error) => Err(error),
    }
}
