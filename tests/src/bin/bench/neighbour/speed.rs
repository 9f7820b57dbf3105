//! How fast the machine is just now. A virtual CPU that shares a core with somebody else's has half of its speed while that one is busy, for parts of a
//! millisecond or for minutes, whatever runs here; two turns can be compared when it was as fast in both. What is looked at is arithmetic alone, with
//! the CPU time that it takes: who takes the CPU, its caches or the memory away meanwhile does not make it slower. An attack on a sibling of this CPU would, which
//! the report tells: how long a look took beside it, against before.

use rustix::time::{ClockId, clock_gettime};
use std::{
    hint::black_box,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering::Relaxed},
    },
    thread::JoinHandle,
    time::Duration,
};

/// Between two looks.
const EVERY: Duration = Duration::from_millis(10);
/// Steps of arithmetic in one look: ten to twenty microseconds.
const STEPS: u64 = 20_000;

/// Looks at it now and then, on the CPUs that this thread may use.
pub struct Speed {
    stop: Arc<AtomicBool>,
    thread: JoinHandle<f64>,
}

impl Speed {
    /// Begins.
    pub fn watch() -> Self {
        let stop = Arc::new(AtomicBool::new(false));
        let stopped = Arc::clone(&stop);
        let thread = std::thread::spawn(move || {
            let (mut spent_ns, mut looks) = (0, 0_u32);
            while !stopped.load(Relaxed) {
                std::thread::sleep(EVERY);
                let before = cpu_ns();
                let mut sum = 0_u64;
                for n in 0..STEPS {
                    sum = black_box(sum + n);
                }
                spent_ns += cpu_ns() - before;
                looks += 1;
            }
            spent_ns as f64 / f64::from(looks.max(1))
        });
        Self { stop, thread }
    }

    /// Nanoseconds that a look took of a CPU, on average.
    pub fn mean_ns(self) -> f64 {
        self.stop.store(true, Relaxed);
        self.thread.join().unwrap_or(f64::NAN)
    }
}

/// What this thread has used of a CPU: who takes it away meanwhile does not count.
fn cpu_ns() -> i64 {
    let used = clock_gettime(ClockId::ThreadCPUTime);
    used.tv_sec * 1_000_000_000 + used.tv_nsec
}
