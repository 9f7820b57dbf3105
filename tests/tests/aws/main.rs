//! Nodes and builders that share nothing but durable services: separate processes on the stand-in for AWS and real Docker.

mod apart;
mod kills;
