//! The router against stub nodes: real sockets on loopback, one process.

mod hostile;
mod link;
mod retry;
mod streams;
mod stub;
mod tls;
