//! A connection that misbehaves by a seed, below the layer that retries and below every backend at once: requests fail before they are sent,
//! answers are lost after the service has done the work, come late, come cut short, or the request is sent twice. For tests only.

use aws_sdk_dynamodb::config::{RuntimeComponents, SharedHttpClient};
use aws_sdk_s3::primitives::ByteStream;
use aws_smithy_runtime_api::client::{
    http::{HttpClient, HttpConnector, HttpConnectorFuture, HttpConnectorSettings, SharedHttpConnector},
    orchestrator::{HttpRequest, HttpResponse},
    result::ConnectorError,
};
use rand::{Rng, SeedableRng, rngs::StdRng};
use std::{
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

/// Chances in a thousand of each fault.
#[derive(Debug, Clone, Copy)]
pub struct Faults {
    /// Fails before anything is sent.
    pub refuse: u32,
    /// Is done, but the answer is lost.
    pub lose_answer: u32,
    /// Is sent twice.
    pub duplicate: u32,
    /// The answer's body ends half-way.
    pub truncate: u32,
    /// Waits up to `delay_max` before it is sent.
    pub delay: u32,
    /// See `delay`.
    pub delay_max: Duration,
}

impl Faults {
    /// A third of all calls meet with something.
    pub const MANY: Self =
        Self { refuse: 80, lose_answer: 80, duplicate: 60, truncate: 60, delay: 60, delay_max: Duration::from_millis(50) };
}

/// A client whose connections misbehave. The same seed makes the same sequence of faults; which call meets which depends on their order.
#[derive(Debug, Clone)]
pub struct FaultyClient {
    inner: SharedHttpClient,
    dice: Dice,
}

impl FaultyClient {
    /// Faults over `inner`.
    #[must_use]
    pub fn new(inner: SharedHttpClient, faults: Faults, seed: u64) -> Self {
        Self { inner, dice: Dice::new(faults, seed) }
    }
}

impl HttpClient for FaultyClient {
    fn http_connector(&self, settings: &HttpConnectorSettings, components: &RuntimeComponents) -> SharedHttpConnector {
        SharedHttpConnector::new(FaultyConnector {
            inner: self.inner.http_connector(settings, components),
            dice: self.dice.clone(),
        })
    }
}

#[derive(Debug)]
struct FaultyConnector {
    inner: SharedHttpConnector,
    dice: Dice,
}

#[derive(Debug, Clone, Copy)]
pub(crate) enum Fault {
    None,
    Refuse,
    LoseAnswer,
    Duplicate,
    Truncate,
    Delay(Duration),
}

/// Says by its seed which fault the next call meets.
#[derive(Debug, Clone)]
pub(crate) struct Dice {
    faults: Faults,
    random: Arc<Mutex<StdRng>>,
}

impl Dice {
    pub fn new(faults: Faults, seed: u64) -> Self {
        Self { faults, random: Arc::new(Mutex::new(StdRng::seed_from_u64(seed))) }
    }

    pub fn throw(&self) -> Fault {
        let mut random = self.random.lock().unwrap_or_else(PoisonError::into_inner);
        let f = &self.faults;
        let mut roll = random.random_range(0..1_000_u32);
        for (chance, fault) in [
            (f.refuse, Fault::Refuse),
            (f.lose_answer, Fault::LoseAnswer),
            (f.duplicate, Fault::Duplicate),
            (f.truncate, Fault::Truncate),
        ] {
            if roll < chance {
                return fault;
            }
            roll -= chance;
        }
        if roll < f.delay { Fault::Delay(f.delay_max.mul_f64(random.random::<f64>())) } else { Fault::None }
    }
}

fn broken(words: &'static str) -> ConnectorError {
    ConnectorError::io(words.into())
}

async fn truncated(mut answer: HttpResponse) -> Result<HttpResponse, ConnectorError> {
    let body = ByteStream::new(answer.take_body()).collect().await.map_err(|_| broken("the body of the answer broke off"))?;
    let bytes = body.into_bytes();
    *answer.body_mut() = bytes.slice(..bytes.len() / 2).into();
    Ok(answer)
}

impl HttpConnector for FaultyConnector {
    fn call(&self, request: HttpRequest) -> HttpConnectorFuture {
        let (inner, fault) = (self.inner.clone(), self.dice.throw());
        HttpConnectorFuture::new(async move {
            match fault {
                Fault::None => inner.call(request).await,
                Fault::Refuse => Err(broken("the connection was refused (a fault of the test)")),
                Fault::LoseAnswer => {
                    // Read to its end, so that the service has surely done it.
                    truncated(inner.call(request).await?).await?;
                    Err(broken("the connection broke before the answer (a fault of the test)"))
                }
                Fault::Duplicate => {
                    if let Some(again) = request.try_clone() {
                        truncated(inner.call(again).await?).await?;
                    }
                    inner.call(request).await
                }
                Fault::Truncate => truncated(inner.call(request).await?).await,
                Fault::Delay(delay) => {
                    tokio::time::sleep(delay).await;
                    inner.call(request).await
                }
            }
        })
    }
}
