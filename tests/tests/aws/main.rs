//! Nodes and builders that share nothing but durable services: separate processes on the stand-in for AWS and real Docker.

#![allow(clippy::print_stdout, clippy::print_stderr, reason = "figures and seeds are for whoever runs the tests")]

mod apart;
mod kills;
mod refusals;
