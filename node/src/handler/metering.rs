//! Reads what containers use now and then, and adds it to their tenants' accounts.

use super::Handler;
use crate::usage::UsageBook;
use hearth_sandbox::net::Traffic;
use std::{
    collections::HashMap,
    sync::{Arc, atomic::Ordering::Relaxed},
    time::Duration,
};

/// A container that lives for less may go uncounted.
const INTERVAL: Duration = Duration::from_secs(5);

/// What was read of a container before.
#[derive(Clone, Copy, Default)]
struct Before {
    cpu: Duration,
    traffic: Traffic,
}

pub(super) async fn watch(handler: Arc<Handler>) {
    let mut meter = Meter::default();
    // What adopted containers used in an earlier process is not this one's to count.
    let adopted = UsageBook::default();
    meter.read(&handler, &adopted).await;
    loop {
        tokio::select! {
            () = handler.leaving.cancelled() => return,
            () = tokio::time::sleep(INTERVAL) => {}
        }
        meter.read(&handler, &handler.deps.usage).await;
    }
}

#[derive(Default)]
struct Meter {
    before: HashMap<u64, Before>,
    /// The kernel counts connections by address: what a slot's container before has opened is subtracted.
    opened: HashMap<u32, u64>,
}

impl Meter {
    async fn read(&mut self, handler: &Handler, book: &UsageBook) {
        let traffic = match handler.deps.sandbox.traffic().await {
            Ok(traffic) => traffic,
            Err(error) => {
                tracing::debug!(%error, "traffic of containers could not be read");
                HashMap::new()
            }
        };
        let containers = handler.containers.all();
        let mut now = HashMap::with_capacity(containers.len());
        for container in containers {
            let usage = book.of(&container.path().tenant);
            let last = self.before.get(&container.id()).copied().unwrap_or_default();
            let mut read = last;
            if let Ok(used) = handler.deps.sandbox.usage(&container.running.id).await {
                usage.cpu_us.fetch_add(u64::try_from(used.cpu.saturating_sub(last.cpu).as_micros()).unwrap_or(0), Relaxed);
                read.cpu = used.cpu;
            }
            if let Some(seen) = traffic.get(&container.slot.number) {
                usage.sent_bytes.fetch_add(seen.sent_bytes.saturating_sub(last.traffic.sent_bytes), Relaxed);
                usage.received_bytes.fetch_add(seen.received_bytes.saturating_sub(last.traffic.received_bytes), Relaxed);
                let so_far = self.opened.insert(container.slot.number, seen.connections).unwrap_or(0);
                usage.connections.fetch_add(seen.connections.saturating_sub(so_far), Relaxed);
                read.traffic = *seen;
            }
            now.insert(container.id(), read);
        }
        self.before = now;
    }
}
