//! The harness of the whole-system tests: starts the real `hearth` on real Docker with a data directory and a label of its own, speaks to
//! it as clients do, and removes everything afterwards. It sees nothing of the platform's insides.

// It speaks to whoever runs the tests.
#![allow(clippy::print_stdout, clippy::print_stderr)]

mod aws;
mod cluster;
mod docker;
mod etcd;
mod hearth;
mod http;
mod load;
mod net;
mod process;
mod registry;
mod socket_gate;

pub use aws::{AwsWorld, Process, Role};
pub use cluster::{Cluster, LEAVE_TIMEOUT, Member, Size};
pub use docker::{Container, Docker};
pub use etcd::{Etcd, EtcdTls};
pub use hearth::{Hearth, Options, binary, use_binary};
pub use http::{Answer, RawConnection};
pub use load::{Load, Outcome, Plan, Report, Sample};
pub use net::Net;
pub use process::free_port;
pub use registry::{Package, Registry};
pub use socket_gate::SocketGate;

use std::{
    future::Future,
    time::{Duration, Instant},
};

/// A client builder that speaks to this machine alone, whatever proxy the environment names.
pub fn http_client() -> reqwest::ClientBuilder {
    // Installed once for the process; a second time is refused, and that is as good.
    let _ = rustls::crypto::ring::default_provider().install_default();
    reqwest::Client::builder().no_proxy()
}

/// How long a test waits for a condition before it fails.
pub const PATIENCE: Duration = Duration::from_secs(30);

/// Waits until `look` gives a value, and fails with `what` when it takes longer than [`PATIENCE`].
pub async fn until<T, F: Future<Output = Option<T>>>(what: &str, mut look: impl FnMut() -> F) -> T {
    let began = Instant::now();
    loop {
        if let Some(value) = look().await {
            return value;
        }
        assert!(began.elapsed() < PATIENCE, "still waiting after {PATIENCE:?}: {what}");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}
