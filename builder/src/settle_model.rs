//! A small model of how a build is settled, searched exhaustively: two workers, a job that may be delivered twice, time-outs and deaths at
//! any point. It mirrors `worker.rs`: whoever receives a job raises the record's epoch, and only who has the latest epoch may write the
//! result; the job goes only after the record is written. Twins that lack one of the two must be caught.

use std::collections::{HashSet, VecDeque};

/// Deliveries in one run: enough for two workers to overtake each other twice.
const RECEIVES_MAX: u8 = 5;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Rules {
    /// As it is built.
    AsBuilt,
    /// A worker writes its result whatever the record says now.
    WithoutEpoch,
    /// A worker takes the job off the queue before it writes the result.
    SettlesFirst,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
enum Job {
    Gone,
    Visible,
    Hidden { receipt: u8 },
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
enum Worker {
    Idle,
    Received {
        job: usize,
        receipt: u8,
    },
    Building {
        job: usize,
        receipt: u8,
        epoch: u8,
    },
    /// Has taken the job off the queue and not yet written the result.
    Owing {
        epoch: u8,
    },
    Wrote {
        job: usize,
        receipt: u8,
    },
}

#[derive(Debug, Clone, PartialEq, Eq, Hash)]
struct World {
    epoch: u8,
    /// The epoch of the worker whose result stands.
    ready: Option<u8>,
    /// A result that stood was replaced.
    replaced: bool,
    jobs: [Job; 2],
    workers: [Worker; 2],
    receives: u8,
}

impl World {
    fn first() -> Self {
        Self { epoch: 0, ready: None, replaced: false, jobs: [Job::Visible, Job::Visible], workers: [Worker::Idle; 2], receives: 0 }
    }

    /// Nobody will ever build it: no result and no job.
    fn is_lost(&self) -> bool {
        let owed = self.workers.iter().any(|w| matches!(w, Worker::Owing { .. }));
        self.ready.is_none() && self.jobs == [Job::Gone; 2] && !owed
    }

    fn write(&mut self, epoch: u8, rules: Rules) -> bool {
        let mine = self.epoch == epoch && self.ready.is_none();
        if !mine && rules != Rules::WithoutEpoch {
            return false;
        }
        self.replaced |= self.ready.is_some();
        self.ready = Some(epoch);
        true
    }

    fn settle(&mut self, job: usize, receipt: u8) {
        if self.jobs[job] == (Job::Hidden { receipt }) {
            self.jobs[job] = Job::Gone;
        }
    }

    fn with(&self, change: impl FnOnce(&mut Self)) -> Self {
        let mut next = self.clone();
        change(&mut next);
        next
    }

    fn next(&self, rules: Rules) -> Vec<Self> {
        let mut all = Vec::new();
        for job in 0..self.jobs.len() {
            if matches!(self.jobs[job], Job::Hidden { .. }) {
                // The time-out passes, whether the worker lives or not.
                all.push(self.with(|w| w.jobs[job] = Job::Visible));
            }
        }
        for (n, worker) in self.workers.iter().enumerate() {
            if *worker != Worker::Idle {
                // It dies here, and another starts in its place.
                all.push(self.with(|w| w.workers[n] = Worker::Idle));
            }
            self.step(n, *worker, rules, &mut all);
        }
        all
    }

    fn step(&self, n: usize, worker: Worker, rules: Rules, all: &mut Vec<Self>) {
        match worker {
            Worker::Idle => {
                for job in (0..self.jobs.len()).filter(|j| self.jobs[*j] == Job::Visible && self.receives < RECEIVES_MAX) {
                    all.push(self.with(|w| {
                        w.receives += 1;
                        let receipt = w.receives;
                        w.jobs[job] = Job::Hidden { receipt };
                        w.workers[n] = Worker::Received { job, receipt };
                    }));
                }
            }
            Worker::Received { job, receipt } => all.push(self.with(|w| {
                w.workers[n] = if w.ready.is_some() {
                    Worker::Wrote { job, receipt }
                } else {
                    w.epoch += 1;
                    Worker::Building { job, receipt, epoch: w.epoch }
                };
            })),
            Worker::Building { job, receipt, epoch } => all.push(self.with(|w| {
                w.workers[n] = if rules == Rules::SettlesFirst {
                    w.settle(job, receipt);
                    Worker::Owing { epoch }
                } else if w.write(epoch, rules) {
                    Worker::Wrote { job, receipt }
                } else {
                    Worker::Idle
                };
            })),
            Worker::Owing { epoch } => all.push(self.with(|w| {
                w.write(epoch, rules);
                w.workers[n] = Worker::Idle;
            })),
            Worker::Wrote { job, receipt } => all.push(self.with(|w| {
                w.settle(job, receipt);
                w.workers[n] = Worker::Idle;
            })),
        }
    }
}

/// Visits every world that can come about; returns how many there are, or the first that must not be.
fn search(rules: Rules) -> Result<usize, World> {
    let mut seen = HashSet::from([World::first()]);
    let mut open = VecDeque::from([World::first()]);
    while let Some(world) = open.pop_front() {
        if world.replaced || world.is_lost() {
            return Err(world);
        }
        for next in world.next(rules) {
            if seen.insert(next.clone()) {
                open.push_back(next);
            }
        }
    }
    Ok(seen.len())
}

#[test]
fn nothing_is_lost_and_no_result_is_replaced() {
    let worlds = search(Rules::AsBuilt).expect("no world that must not be");
    assert!(worlds > 1_000, "only {worlds} were visited");
}

#[test]
fn a_twin_without_the_epoch_replaces_a_result() {
    assert!(search(Rules::WithoutEpoch).expect_err("a stale worker").replaced);
}

#[test]
fn a_twin_that_settles_first_loses_a_build() {
    assert!(search(Rules::SettlesFirst).expect_err("a death in between").is_lost());
}
