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

pub use aws::{AwsWorld, Process, Role, StubService};
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

/// Small modules of the npm registry without native code, most without dependencies.
pub const SMALL_MODULES: [&str; 24] = [
    "is-number@7.0.0",
    "is-number@6.0.0",
    "ms@2.1.3",
    "ms@2.0.0",
    "left-pad@1.3.0",
    "isarray@2.0.5",
    "inherits@2.0.4",
    "once@1.4.0",
    "wrappy@1.0.2",
    "is-odd@3.0.1",
    "is-even@1.0.0",
    "escape-html@1.0.3",
    "depd@2.0.0",
    "etag@1.8.1",
    "fresh@0.5.2",
    "parseurl@1.3.3",
    "vary@1.1.2",
    "unpipe@1.0.0",
    "destroy@1.2.0",
    "statuses@2.0.1",
    "bytes@3.1.2",
    "cookie@0.6.0",
    "merge-descriptors@1.0.3",
    "array-flatten@3.0.0",
];

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
