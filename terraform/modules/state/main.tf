# Durable state, as `hearth admin init-aws --print` describes it; a test compares the two. A destroy without `data_loss_confirmed` fails at the
# table and at the buckets: that is told once; the second time is the destroy itself. The table depends on all that its records are worthless
# without, so that a destroy comes to those only when the table is gone.

locals {
  may_lose_data = var.data_loss_confirmed == var.name
}

resource "aws_dynamodb_table" "records" {
  # checkov:skip=CKV_AWS_119:Secrets are sealed by Hearth under a KMS key of their own before they reach the table; records use the service's key.
  name                        = var.name
  billing_mode                = "PAY_PER_REQUEST"
  hash_key                    = "pk"
  range_key                   = "sk"
  deletion_protection_enabled = !local.may_lose_data

  attribute {
    name = "pk"
    type = "S"
  }

  attribute {
    name = "sk"
    type = "S"
  }

  ttl {
    attribute_name = "ttl"
    enabled        = true
  }

  point_in_time_recovery {
    enabled = true
  }

  server_side_encryption {
    enabled = true
  }

  depends_on = [aws_kms_key.secrets, aws_kms_alias.secrets, aws_secretsmanager_secret.tls]
}

resource "aws_sqs_queue" "builds_dead" {
  name                       = "${var.name}-builds-dead"
  message_retention_seconds  = 1209600
  visibility_timeout_seconds = 60
  sqs_managed_sse_enabled    = true
}

resource "aws_sqs_queue" "builds" {
  name                       = "${var.name}-builds"
  message_retention_seconds  = 1209600
  visibility_timeout_seconds = 60
  sqs_managed_sse_enabled    = true

  redrive_policy = jsonencode({
    deadLetterTargetArn = aws_sqs_queue.builds_dead.arn
    maxReceiveCount     = 5
  })
}

resource "aws_sqs_queue_redrive_allow_policy" "builds_dead" {
  queue_url = aws_sqs_queue.builds_dead.url

  redrive_allow_policy = jsonencode({
    redrivePermission = "byQueue"
    sourceQueueArns   = [aws_sqs_queue.builds.arn]
  })
}

data "aws_iam_policy_document" "key" {
  # checkov:skip=CKV_AWS_109:The account's administrators administer the key through their own policies, as for every key; roles get two actions.
  # checkov:skip=CKV_AWS_111:The administrators of the account, as said; a key policy applies to its own key only.
  # checkov:skip=CKV_AWS_356:In a key policy, * means this key.
  statement {
    sid       = "Administration"
    actions   = ["kms:*"]
    resources = ["*"]

    principals {
      type        = "AWS"
      identifiers = ["arn:aws:iam::${var.account_id}:root"]
    }
  }
}

# Seals tenants' secrets: nodes open them, builders cannot.
resource "aws_kms_key" "secrets" {
  description             = "Secrets of tenants of ${var.name}"
  enable_key_rotation     = true
  deletion_window_in_days = 30
  policy                  = data.aws_iam_policy_document.key.json
}

resource "aws_kms_alias" "secrets" {
  name          = "alias/${var.name}"
  target_key_id = aws_kms_key.secrets.key_id
}

# Certificates and keys of the roles. Their values are put by the operator, so that no private key is ever in Terraform's state.
resource "aws_secretsmanager_secret" "tls" {
  # checkov:skip=CKV_AWS_149:Who may read is said by the roles' policies; the service's own key encrypts.
  # checkov:skip=CKV2_AWS_57:Certificates are rotated by the runbook, which rolls the roles; a rotation function would hold the authority's key.
  for_each = toset(["router", "node", "builder", "etcd"])

  name                    = "${var.name}/tls/${each.key}"
  description             = "ca.crt, tls.crt and tls.key of ${each.key} as one JSON object"
  recovery_window_in_days = local.may_lose_data ? 7 : 30
}
