//! Deploys while a load runs: new versions of functions that are being called, one after the other, and whether the first call after each is
//! answered by the new one.

use crate::{
    collect::{DeployEvent, Message},
    manage::Api,
    population::Population,
    setup::{function_path, function_spec},
};
use http::HeaderMap;
use std::{
    sync::{Arc, mpsc::SyncSender},
    time::{Duration, Instant},
};
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

/// Deploys at once; when so many are under way the next one waits, and its time counts from its intended moment.
const AT_ONCE: usize = 32;
/// The header in which a function says which version it is.
const VERSION_HEADER: &str = "x-loadtest-version";

/// Deploys at a rate.
#[derive(Debug)]
pub struct Deployer {
    /// The platform.
    pub api: Arc<Api>,
    /// Whose functions.
    pub population: Arc<Population>,
    /// Deploys per second.
    pub rate: f64,
    /// When they begin.
    pub after: Duration,
    /// For one deploy.
    pub deadline: Duration,
    /// Headers of the calls that look for the new version.
    pub headers: HeaderMap,
}

impl Deployer {
    /// Deploys until the load ends, one function after the other. A function whose last deploy is still under way is waited for, so that its versions come in
    /// order; its time counts from its intended moment all the same.
    pub(crate) async fn run(self, epoch: Instant, length: Duration, sender: SyncSender<Message>, ended: CancellationToken) {
        let this = Arc::new(self);
        let mut running = JoinSet::new();
        let mut busy = std::collections::HashSet::new();
        for number in 0_u64.. {
            let offset = this.after + Duration::from_secs_f64(number as f64 / this.rate);
            if offset >= length {
                break;
            }
            let due = epoch + offset;
            tokio::select! {
                () = ended.cancelled() => break,
                () = tokio::time::sleep_until(due.into()) => {}
            }
            let function = number % this.population.calls.len() as u64;
            while running.len() >= AT_ONCE || busy.contains(&function) {
                let Some(ended) = running.join_next().await else { break };
                // A task that panicked is a defect that must not make its function busy for ever: it ends the deploys.
                let Ok(ended) = ended else { return };
                busy.remove(&ended);
            }
            busy.insert(function);
            let (this, sender) = (Arc::clone(&this), sender.clone());
            running.spawn(async move {
                let event = this.one(number, due).await;
                drop(tokio::task::spawn_blocking(move || sender.send(Message::Deploy(event))).await);
                function
            });
        }
        while running.join_next().await.is_some() {}
    }

    async fn one(&self, number: u64, due: Instant) -> DeployEvent {
        let index = (number % self.population.calls.len() as u64) as usize;
        let call = &self.population.calls[index];
        let tenant = &self.population.tenants[call.tenant as usize];
        let path = function_path(tenant, index % self.population.functions_per_tenant as usize);
        let version = number + 2;
        let spec = function_spec(usize::from(call.kind), call.id.as_deref().unwrap_or_default(), Some(version));
        let deployed = self.api.deploy(&path, &spec, self.deadline).await;
        let took = due.elapsed();
        if let Err(error) = deployed {
            return DeployEvent { took, error: Some(format!("{error:#}")), stale: false };
        }
        let stale = match self.api.invoke(&call.uri.to_string(), VERSION_HEADER, &self.headers).await {
            // A function of a kind that does not say its version proves nothing.
            Ok((status, Some(said))) => status.is_success() && said != version.to_string(),
            _ => false,
        };
        DeployEvent { took, error: None, stale }
    }
}
