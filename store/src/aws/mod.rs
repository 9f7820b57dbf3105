//! The shared backends: records in one DynamoDB table, artifacts in an S3 bucket, builds in an SQS queue with a dead-letter queue, data
//! keys from KMS. `docs/store-aws.md` has the table's design and what a call costs. This module refuses to create anything but items and
//! objects: tables, buckets and queues are made by Terraform, or for development by [`init`].
//!
//! The order of trust: DynamoDB decides (conditions, transactions); S3 holds bytes that are named before they are referred to; SQS only
//! says that there may be something to do.

mod call;
pub mod design;
pub mod dynamo;
#[cfg(feature = "conformance")]
pub mod faulty;
pub mod init;
pub mod kms;
pub mod s3;
pub mod sqs;

pub use call::{CallCounts, CallStats};
pub use dynamo::DynamoStore;
pub use kms::KmsKeyring;
pub use s3::S3Store;
pub use sqs::SqsQueue;

use aws_config::{BehaviorVersion, Region, SdkConfig, retry::RetryConfig, timeout::TimeoutConfig};
use aws_sdk_dynamodb::config::{Credentials, SharedCredentialsProvider, SharedHttpClient};
use aws_smithy_http_client::tls;
use serde::{Deserialize, Serialize};
use std::{sync::Arc, time::Duration};

/// Where a service is. Credentials come from the SDK's default chain (environment, profile, web identity, container or machine role).
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Place {
    /// Region; from the default chain where absent.
    pub region: Option<String>,
    /// Another address than the region's own: a VPC endpoint, or a stand-in.
    pub endpoint_url: Option<String>,
}

/// Deadlines of calls. A request that needs a record waits at most `read`; the platform answers 503 then.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Timeouts {
    /// To connect.
    #[serde(with = "humantime_serde")]
    pub connect: Duration,
    /// One attempt of a small call.
    #[serde(with = "humantime_serde")]
    pub attempt: Duration,
    /// A read, repeats included.
    #[serde(with = "humantime_serde")]
    pub read: Duration,
    /// A write, repeats included.
    #[serde(with = "humantime_serde")]
    pub write: Duration,
    /// Sending or receiving one part (8 MiB) of an object.
    #[serde(with = "humantime_serde")]
    pub part: Duration,
}

impl Default for Timeouts {
    fn default() -> Self {
        Self {
            connect: Duration::from_secs(1),
            attempt: Duration::from_secs(1),
            read: Duration::from_millis(2_500),
            write: Duration::from_secs(8),
            part: Duration::from_secs(60),
        }
    }
}

/// The client that all services share: rustls with ring, plain HTTP where an endpoint says so.
#[must_use]
pub fn http_client() -> SharedHttpClient {
    aws_smithy_http_client::Builder::new().tls_provider(tls::Provider::Rustls(tls::rustls_provider::CryptoMode::Ring)).build_https()
}

/// What the clients of all services have in common.
#[derive(Clone)]
pub struct Connector {
    http: SharedHttpClient,
    timeouts: Timeouts,
    stats: Arc<CallStats>,
    credentials: Option<SharedCredentialsProvider>,
}

impl Connector {
    /// Calls go through `http` and are counted in [`Connector::stats`].
    #[must_use]
    pub fn new(http: SharedHttpClient, timeouts: Timeouts) -> Self {
        Self { http, timeouts, stats: Arc::default(), credentials: None }
    }

    /// With these credentials instead of the default chain's.
    #[must_use]
    pub fn with_credentials(mut self, credentials: Credentials) -> Self {
        self.credentials = Some(SharedCredentialsProvider::new(credentials));
        self
    }

    /// Counts of the calls made.
    #[must_use]
    pub fn stats(&self) -> &Arc<CallStats> {
        &self.stats
    }

    fn caller(&self, service: &'static str) -> call::Caller {
        call::Caller { service, stats: Arc::clone(&self.stats) }
    }

    /// Resolves region and credentials of one service.
    pub async fn sdk(&self, place: &Place) -> SdkConfig {
        let mut loader = aws_config::defaults(BehaviorVersion::latest())
            .http_client(self.http.clone())
            // `call` repeats; two layers would multiply.
            .retry_config(RetryConfig::disabled())
            .timeout_config(TimeoutConfig::builder().connect_timeout(self.timeouts.connect).build());
        if let Some(region) = &place.region {
            loader = loader.region(Region::new(region.clone()));
        }
        if let Some(url) = &place.endpoint_url {
            loader = loader.endpoint_url(url);
        }
        if let Some(credentials) = &self.credentials {
            loader = loader.credentials_provider(credentials.clone());
        }
        loader.load().await
    }
}
