//! A runtime for what no request waits for: its threads, and the programs that they start, keep to the CPUs for background work.

use crate::cpus::CpuSet;
use std::io;
use tokio::runtime::{Builder, Handle, Runtime};

/// Threads that it has at most for tasks; what blocks has others.
const THREADS_MAX: usize = 4;

/// Ends with this value, whatever still runs in it.
pub(crate) struct Background(Option<Runtime>);

impl Background {
    pub(crate) fn start(cpus: &CpuSet) -> io::Result<Self> {
        let threads = cpus.len().min(THREADS_MAX);
        let affinity = cpus.affinity();
        let runtime = Builder::new_multi_thread()
            .worker_threads(threads)
            .thread_name("background")
            .enable_all()
            // Where this process may not use them its threads run where the others do.
            .on_thread_start(move || {
                let _ = rustix::thread::sched_setaffinity(None, &affinity);
            })
            .build()?;
        Ok(Self(Some(runtime)))
    }

    pub(crate) fn handle(&self) -> Option<&Handle> {
        self.0.as_ref().map(Runtime::handle)
    }
}

impl Drop for Background {
    fn drop(&mut self) {
        // Without waiting, which is not allowed in another runtime.
        if let Some(runtime) = self.0.take() {
            runtime.shutdown_background();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn its_threads_and_what_they_start_keep_to_its_cpus() {
        let allowed = |status: &str| {
            let line = status.lines().find_map(|line| line.strip_prefix("Cpus_allowed_list:")).expect("Linux says which");
            line.trim().to_owned()
        };
        let own = std::fs::read_to_string("/proc/thread-self/status").unwrap();
        let last = CpuSet::parse(&allowed(&own)).unwrap().to_string().rsplit(',').next().unwrap().to_owned();
        let background = Background::start(&CpuSet::parse(&last).unwrap()).unwrap();
        let work = async {
            let child = tokio::process::Command::new("cat").arg("/proc/self/status").output().await.unwrap();
            let thread = tokio::task::spawn_blocking(|| std::fs::read_to_string("/proc/thread-self/status").unwrap());
            (String::from_utf8(child.stdout).unwrap(), thread.await.unwrap())
        };
        let (child, blocking) = background.handle().unwrap().spawn(work).await.unwrap();
        assert_eq!((allowed(&child), allowed(&blocking)), (last.clone(), last));
        assert_eq!(allowed(&std::fs::read_to_string("/proc/thread-self/status").unwrap()), allowed(&own), "no other thread does");
    }
}
