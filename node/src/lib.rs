//! One VM: the proxy that takes HTTP, the management API, the container handler with its pool, the module cache. It imports no
//! other role; it meets them in the store and over the wire.

pub mod catalog;
pub mod config;
pub mod handler;
pub mod logs;
pub mod manage;
pub mod modules;
pub mod ops;
pub mod proxy;
pub mod status;
