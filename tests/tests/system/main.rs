//! The real `hearth` on real Docker, as its users meet it.

mod abuse;
mod builds;
mod gvisor;
mod hostile;
mod journey;
mod lifecycle;
mod limits;
mod modules;
