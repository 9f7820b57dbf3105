//! Makes table, bucket and queues for development, from the same constants that the code uses. Refused where one of them exists: what is in
//! use is never touched. Production uses Terraform, whose test compares itself with [`design`](super::design::design).

use super::{
    Connector, Place,
    design::{DOCUMENTS_PREFIX, Design, PK, SK, TTL},
};
use aws_sdk_dynamodb::{
    error::DisplayErrorContext,
    types::{
        AttributeDefinition, BillingMode, KeySchemaElement, KeyType, PointInTimeRecoverySpecification, ScalarAttributeType,
        TimeToLiveSpecification,
    },
};
use aws_sdk_s3::types::{
    AbortIncompleteMultipartUpload, BucketLifecycleConfiguration, BucketLocationConstraint, CreateBucketConfiguration,
    ExpirationStatus, LifecycleRule, LifecycleRuleFilter, PublicAccessBlockConfiguration,
};
use aws_sdk_sqs::types::QueueAttributeName;
use std::{collections::HashMap, time::Duration};

/// Where each service is.
#[derive(Debug, Clone)]
pub struct Places {
    /// DynamoDB.
    pub table: Place,
    /// S3.
    pub bucket: Place,
    /// SQS.
    pub queue: Place,
}

/// Why the resources were not made.
#[derive(Debug, thiserror::Error)]
pub enum InitError {
    /// Something is there; nothing was made.
    #[error("{resource} exists already: init-aws only makes what is not there; delete it, or choose another name")]
    Exists {
        /// What.
        resource: String,
    },
    /// A call failed.
    #[error("{call} on {resource}: {detail}")]
    Failed {
        /// Which call.
        call: &'static str,
        /// On what.
        resource: String,
        /// The service's words.
        detail: String,
    },
}

/// How long a new table may take to become active.
const ACTIVE_WITHIN: Duration = Duration::from_secs(60);
/// Deadline of one call.
const CALL_WITHIN: Duration = Duration::from_secs(15);

async fn step<T, E: std::error::Error + Send + Sync + 'static>(
    call: &'static str,
    resource: &str,
    request: impl Future<Output = Result<T, E>>,
) -> Result<T, InitError> {
    let failed = |detail: String| InitError::Failed { call, resource: resource.to_owned(), detail };
    match tokio::time::timeout(CALL_WITHIN, request).await {
        Ok(Ok(answer)) => Ok(answer),
        Ok(Err(error)) => Err(failed(DisplayErrorContext(error).to_string().chars().take(600).collect())),
        Err(_) => Err(failed(format!("no answer within {} s", CALL_WITHIN.as_secs()))),
    }
}

/// Makes everything of `design`.
///
/// # Errors
/// [`InitError::Exists`] before anything is made; [`InitError::Failed`] names call and resource, and what was made until then stays.
pub async fn init(connector: &Connector, places: &Places, design: &Design) -> Result<(), InitError> {
    let dynamo = aws_sdk_dynamodb::Client::new(&connector.sdk(&places.table).await);
    let s3 = aws_sdk_s3::Client::from_conf(
        aws_sdk_s3::config::Builder::from(&connector.sdk(&places.bucket).await)
            .force_path_style(places.bucket.endpoint_url.is_some())
            .build(),
    );
    let sqs = aws_sdk_sqs::Client::new(&connector.sdk(&places.queue).await);
    refuse_existing(&dynamo, &s3, &sqs, design).await?;
    make_table(&dynamo, design).await?;
    make_bucket(&s3, design).await?;
    make_queues(&sqs, design).await
}

async fn refuse_existing(
    dynamo: &aws_sdk_dynamodb::Client,
    s3: &aws_sdk_s3::Client,
    sqs: &aws_sdk_sqs::Client,
    design: &Design,
) -> Result<(), InitError> {
    let table = format!("table {}", design.table.name);
    let exists = |resource: String| Err(InitError::Exists { resource });
    match tokio::time::timeout(CALL_WITHIN, dynamo.describe_table().table_name(&design.table.name).send()).await {
        Ok(Ok(_)) => return exists(table),
        Ok(Err(error)) if error.as_service_error().is_some_and(|e| e.is_resource_not_found_exception()) => {}
        Ok(Err(error)) => return step("DescribeTable", &table, async { Err(error) }).await,
        Err(_) => return step("DescribeTable", &table, std::future::pending::<Result<(), std::fmt::Error>>()).await,
    }
    let bucket = format!("bucket {}", design.bucket.name);
    // 403 means that somebody else has it.
    match step("HeadBucket", &bucket, s3.head_bucket().bucket(&design.bucket.name).send()).await {
        Ok(_) => return exists(bucket),
        Err(InitError::Failed { detail, .. }) if detail.contains("NotFound") || detail.contains("404") => {}
        Err(error) => return Err(error),
    }
    for queue in [&design.queue.name, &design.dead_letter_queue.name] {
        if let Ok(Ok(_)) = tokio::time::timeout(CALL_WITHIN, sqs.get_queue_url().queue_name(queue).send()).await {
            return exists(format!("queue {queue}"));
        }
    }
    Ok(())
}

async fn make_table(client: &aws_sdk_dynamodb::Client, design: &Design) -> Result<(), InitError> {
    let (name, resource) = (&design.table.name, format!("table {}", design.table.name));
    let attribute = |name| AttributeDefinition::builder().attribute_name(name).attribute_type(ScalarAttributeType::S).build();
    let key = |name, kind| KeySchemaElement::builder().attribute_name(name).key_type(kind).build();
    let built = (|| {
        Ok::<_, aws_sdk_dynamodb::error::BuildError>((
            [attribute(PK)?, attribute(SK)?],
            [key(PK, KeyType::Hash)?, key(SK, KeyType::Range)?],
            TimeToLiveSpecification::builder().attribute_name(TTL).enabled(true).build()?,
            PointInTimeRecoverySpecification::builder().point_in_time_recovery_enabled(true).build()?,
        ))
    })();
    let (attributes, keys, ttl, recovery) = step("CreateTable", &resource, async { built }).await?;
    let create = client
        .create_table()
        .table_name(name)
        .set_attribute_definitions(Some(attributes.to_vec()))
        .set_key_schema(Some(keys.to_vec()))
        .billing_mode(BillingMode::PayPerRequest);
    step("CreateTable", &resource, create.send()).await?;
    let until = tokio::time::Instant::now() + ACTIVE_WITHIN;
    loop {
        let found = step("DescribeTable", &resource, client.describe_table().table_name(name).send()).await?;
        if found.table().and_then(|t| t.table_status()).is_some_and(|s| s.as_str() == "ACTIVE") {
            break;
        }
        if tokio::time::Instant::now() > until {
            return step("DescribeTable", &resource, std::future::pending::<Result<(), std::fmt::Error>>()).await;
        }
        tokio::time::sleep(Duration::from_millis(500)).await;
    }
    let live = client.update_time_to_live().table_name(name).time_to_live_specification(ttl);
    step("UpdateTimeToLive", &resource, live.send()).await?;
    let recover = client.update_continuous_backups().table_name(name).point_in_time_recovery_specification(recovery);
    step("UpdateContinuousBackups", &resource, recover.send()).await?;
    Ok(())
}

async fn make_bucket(client: &aws_sdk_s3::Client, design: &Design) -> Result<(), InitError> {
    let (name, resource) = (&design.bucket.name, format!("bucket {}", design.bucket.name));
    let region = client.config().region().map(ToString::to_string).unwrap_or_default();
    let mut create = client.create_bucket().bucket(name);
    // us-east-1 is the one region that may not be named.
    if region != "us-east-1" {
        let place = CreateBucketConfiguration::builder().location_constraint(BucketLocationConstraint::from(region.as_str()));
        create = create.create_bucket_configuration(place.build());
    }
    step("CreateBucket", &resource, create.send()).await?;
    let block = PublicAccessBlockConfiguration::builder()
        .block_public_acls(true)
        .ignore_public_acls(true)
        .block_public_policy(true)
        .restrict_public_buckets(true)
        .build();
    let block = client.put_public_access_block().bucket(name).public_access_block_configuration(block);
    step("PutPublicAccessBlock", &resource, block.send()).await?;
    let abort = AbortIncompleteMultipartUpload::builder().days_after_initiation(design.bucket.abort_incomplete_multipart_days);
    let rule = LifecycleRule::builder()
        .id("abandoned-uploads")
        .status(ExpirationStatus::Enabled)
        .filter(LifecycleRuleFilter::builder().prefix("").build())
        .abort_incomplete_multipart_upload(abort.build());
    let rules = step("PutBucketLifecycleConfiguration", &resource, async { rule.build() }).await?;
    let rules = BucketLifecycleConfiguration::builder().rules(rules).build();
    let rules = step("PutBucketLifecycleConfiguration", &resource, async { rules }).await?;
    let put = client.put_bucket_lifecycle_configuration().bucket(name).lifecycle_configuration(rules);
    step("PutBucketLifecycleConfiguration", &resource, put.send()).await?;
    tracing::debug!(prefix = DOCUMENTS_PREFIX, "documents and artifacts share the bucket");
    Ok(())
}

async fn make_queues(client: &aws_sdk_sqs::Client, design: &Design) -> Result<(), InitError> {
    let dead = format!("queue {}", design.dead_letter_queue.name);
    let attributes = |queue: &super::design::QueueDesign| {
        HashMap::from([
            (QueueAttributeName::MessageRetentionPeriod, queue.message_retention_seconds.to_string()),
            (QueueAttributeName::VisibilityTimeout, queue.visibility_timeout_seconds.to_string()),
        ])
    };
    let create = client.create_queue().queue_name(&design.dead_letter_queue.name);
    let create = create.set_attributes(Some(attributes(&design.dead_letter_queue)));
    let made = step("CreateQueue", &dead, create.send()).await?;
    let ask = client.get_queue_attributes().queue_url(made.queue_url().unwrap_or_default());
    let found = step("GetQueueAttributes", &dead, ask.attribute_names(QueueAttributeName::QueueArn).send()).await?;
    let arn = found.attributes().and_then(|a| a.get(&QueueAttributeName::QueueArn)).cloned().unwrap_or_default();
    let redrive = serde_json::json!({
        "deadLetterTargetArn": arn,
        "maxReceiveCount": design.queue.max_receive_count.unwrap_or(super::design::RECEIVES_MAX),
    });
    let mut of_queue = attributes(&design.queue);
    of_queue.insert(QueueAttributeName::RedrivePolicy, redrive.to_string());
    let create = client.create_queue().queue_name(&design.queue.name).set_attributes(Some(of_queue));
    step("CreateQueue", &format!("queue {}", design.queue.name), create.send()).await?;
    Ok(())
}
