//! `hearth loadtest`: shows an operator what the platform does under load, and measures the promises that the project makes.
//!
//! - **An open loop.** [`arrivals`] decides when each request is to be sent before any is sent; [`pacer`] walks through that schedule; latency counts from the
//!   intended moment. A target that stalls is seen to stall.
//! - **A connection layer of its own.** [`net`] speaks HTTP/1.1 and HTTP/2, pooled or fresh, over TCP, TLS and unix sockets, from threads that have a
//!   single-threaded runtime each.
//! - **Many tenants.** [`population`] and `setup` make them through the management API and take them away again; [`pick`] and [`trace`] say who is called.
//! - **Books of bounded memory.** [`collect`] counts; [`results`] is what a run came to; [`report`] makes a table and a page of it; [`threshold`] judges it;
//!   [`compare`] sets two results side by side.
//!
//! It sees of the platform only what any client sees: statuses, headers, problem documents. It depends on no other part of the project.
//!
//! # As a library
//! The binary calls [`run`] with [`Args`], and turns an error into an exit code by [`exit_code`]. The project's bench program uses [`bench`]: closed and open
//! loops against a URL or a unix socket, without tenants or reports.

mod args;
pub mod arrivals;
pub mod bench;
pub mod collect;
pub mod compare;
mod deploy;
pub mod engine;
pub mod kinds;
pub mod latency;
pub mod live;
mod manage;
pub mod net;
pub mod pacer;
pub mod pick;
mod plan;
pub mod population;
pub mod report;
pub mod results;
mod run;
pub mod scenario;
pub mod seeded;
pub mod series;
mod setup;
#[cfg(test)]
mod tests_support;
pub mod threshold;
pub mod trace;
pub mod units;

pub use args::{Args, ChangeArgs, Command, OutputArgs, SendingArgs, TargetArgs};
pub use run::{Ending, exit_code, run};
