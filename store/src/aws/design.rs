//! The table's design as constants: the code, `hearth admin init-aws` and the Terraform test all read them from here.

use serde::Serialize;

/// Schema number written to every item; items with a higher one are refused, untouched.
pub const SCHEMA: u64 = 1;
/// Partition key (string).
pub const PK: &str = "pk";
/// Sort key (string).
pub const SK: &str = "sk";
/// Time of expiry in seconds since 1970, for DynamoDB's time to live.
pub const TTL: &str = "ttl";
/// Documents up to this length are kept in the item, longer ones in the bucket (an item ends at 400 KB, and each KB costs a write unit).
pub const DOC_INLINE_BYTES_MAX: usize = 200 * 1024;
/// Objects below this prefix are module artifacts, named by their SHA-256. Builders write them, nodes only read them.
pub const ARTIFACTS_PREFIX: &str = "artifacts/";
/// Objects below this prefix are code bundles of tenants, named by their SHA-256. Nodes write them.
pub const BUNDLES_PREFIX: &str = "bundles/";
/// Objects below this prefix are documents that are too long for an item.
pub const DOCUMENTS_PREFIX: &str = "documents/";
/// Says to which table's data the bucket belongs.
pub const MARKER_OBJECT: &str = "hearth.json";
/// Deliveries of one build before it goes to the dead-letter queue.
pub const RECEIVES_MAX: u32 = 5;
/// How long SQS keeps a message (its maximum).
pub const RETENTION_S: u32 = 14 * 24 * 3_600;
/// Visibility of a message when the receiver names none; Hearth's builders always do.
pub const VISIBILITY_S: u32 = 60;
/// Markers of writes are kept so long: longer than any process goes on repeating a write.
pub const WRITE_MARKER_S: u64 = 24 * 3_600;
/// An unfinished multipart upload is removed after so many days.
pub const UPLOAD_ABANDONED_DAYS: i32 = 1;
/// Expired tokens are removed from the table this long after their expiry.
pub const TOKEN_KEPT_S: u64 = 7 * 24 * 3_600;

/// The resources that a deployment needs, as `hearth admin init-aws --print` shows them.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Design {
    /// The table.
    pub table: TableDesign,
    /// The bucket.
    pub bucket: BucketDesign,
    /// The queue.
    pub queue: QueueDesign,
    /// Its dead-letter queue.
    pub dead_letter_queue: QueueDesign,
    /// What a node's and a builder's role must be allowed.
    pub permissions: Vec<Permission>,
}

/// A DynamoDB table.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct TableDesign {
    /// Its name.
    pub name: String,
    /// Its partition key.
    pub hash_key: &'static str,
    /// Its sort key.
    pub range_key: &'static str,
    /// Attributes that keys use, with their types.
    pub attributes: Vec<(&'static str, &'static str)>,
    /// Secondary indexes: none, since they are read only eventually.
    pub global_secondary_indexes: Vec<&'static str>,
    /// How it is paid.
    pub billing_mode: &'static str,
    /// The attribute of its time to live.
    pub ttl_attribute: &'static str,
    /// Whether it can be restored to any second.
    pub point_in_time_recovery: bool,
}

/// An S3 bucket.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct BucketDesign {
    /// Its name.
    pub name: String,
    /// All public access is blocked.
    pub public_access_blocked: bool,
    /// Unfinished uploads are removed after so many days.
    pub abort_incomplete_multipart_days: i32,
    /// Where module artifacts are.
    pub artifacts_prefix: &'static str,
    /// Where code bundles are.
    pub bundles_prefix: &'static str,
    /// Where long documents are.
    pub documents_prefix: &'static str,
}

/// An SQS queue.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct QueueDesign {
    /// Its name.
    pub name: String,
    /// Standard, not FIFO: a delay per message is needed.
    pub fifo: bool,
    /// Seconds that a message is kept.
    pub message_retention_seconds: u32,
    /// Default visibility.
    pub visibility_timeout_seconds: u32,
    /// Long polling.
    pub receive_wait_time_seconds: u32,
    /// Deliveries before the dead-letter queue; absent on that queue itself.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub max_receive_count: Option<u32>,
}

/// What a role may call on one resource.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Permission {
    /// The roles of the binary that need it.
    pub roles: &'static [&'static str],
    /// On what; objects of the bucket by their prefix.
    pub resource: &'static str,
    /// IAM actions.
    pub actions: &'static [&'static str],
}

const BOTH: &[&str] = &["node", "builder"];

/// The permissions that nodes and builders need. A node cannot write a module artifact, and a builder opens no secret and sees no bundle.
pub const PERMISSIONS: [Permission; 13] = [
    Permission {
        roles: BOTH,
        resource: "table",
        actions: &[
            "dynamodb:DescribeTable",
            "dynamodb:GetItem",
            "dynamodb:BatchGetItem",
            "dynamodb:Query",
            "dynamodb:PutItem",
            "dynamodb:UpdateItem",
            "dynamodb:DeleteItem",
            "dynamodb:BatchWriteItem",
            "dynamodb:ConditionCheckItem",
        ],
    },
    Permission { roles: BOTH, resource: "bucket", actions: &["s3:ListBucket"] },
    Permission { roles: BOTH, resource: "bucket/hearth.json", actions: &["s3:GetObject", "s3:PutObject"] },
    Permission { roles: BOTH, resource: "bucket/documents/*", actions: &["s3:GetObject", "s3:PutObject", "s3:DeleteObject"] },
    Permission { roles: &["node"], resource: "bucket/bundles/*", actions: &["s3:GetObject", "s3:PutObject"] },
    Permission { roles: &["node"], resource: "bucket/artifacts/*", actions: &["s3:GetObject"] },
    Permission {
        roles: &["builder"],
        resource: "bucket/artifacts/*",
        actions: &["s3:GetObject", "s3:PutObject", "s3:AbortMultipartUpload"],
    },
    Permission { roles: &["node"], resource: "queue", actions: &["sqs:GetQueueUrl", "sqs:GetQueueAttributes", "sqs:SendMessage"] },
    Permission {
        roles: &["builder"],
        resource: "queue",
        actions: &[
            "sqs:GetQueueUrl",
            "sqs:GetQueueAttributes",
            "sqs:SendMessage",
            "sqs:ReceiveMessage",
            "sqs:DeleteMessage",
            "sqs:ChangeMessageVisibility",
        ],
    },
    Permission { roles: &["node"], resource: "dead_letter_queue", actions: &["sqs:GetQueueUrl"] },
    Permission {
        roles: &["builder"],
        resource: "dead_letter_queue",
        actions: &["sqs:GetQueueUrl", "sqs:ReceiveMessage", "sqs:DeleteMessage"],
    },
    // Only where store.keys.backend is kms. A data key is made at each start, to see that the key is there.
    Permission { roles: &["node"], resource: "key", actions: &["kms:GenerateDataKey", "kms:Decrypt"] },
    Permission { roles: &["builder"], resource: "key", actions: &["kms:GenerateDataKey"] },
];

/// The design for resources of these names.
#[must_use]
pub fn design(table: &str, bucket: &str, queue: &str, dead_queue: &str, receives_max: u32) -> Design {
    let queue_of = |name: &str, max_receive_count| QueueDesign {
        name: name.to_owned(),
        fifo: false,
        message_retention_seconds: RETENTION_S,
        visibility_timeout_seconds: VISIBILITY_S,
        receive_wait_time_seconds: 0,
        max_receive_count,
    };
    Design {
        table: TableDesign {
            name: table.to_owned(),
            hash_key: PK,
            range_key: SK,
            attributes: vec![(PK, "S"), (SK, "S")],
            global_secondary_indexes: vec![],
            billing_mode: "PAY_PER_REQUEST",
            ttl_attribute: TTL,
            point_in_time_recovery: true,
        },
        bucket: BucketDesign {
            name: bucket.to_owned(),
            public_access_blocked: true,
            abort_incomplete_multipart_days: UPLOAD_ABANDONED_DAYS,
            artifacts_prefix: ARTIFACTS_PREFIX,
            bundles_prefix: BUNDLES_PREFIX,
            documents_prefix: DOCUMENTS_PREFIX,
        },
        queue: queue_of(queue, Some(receives_max)),
        dead_letter_queue: queue_of(dead_queue, None),
        permissions: PERMISSIONS.to_vec(),
    }
}
