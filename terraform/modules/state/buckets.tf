# Three buckets: artifacts and long documents (named by the store), releases (read by every machine at its start), backups (written by etcd).

locals {
  buckets = {
    artifacts = aws_s3_bucket.artifacts.id
    releases  = aws_s3_bucket.releases.id
    backups   = aws_s3_bucket.backups.id
  }
  bucket_arns = {
    artifacts = aws_s3_bucket.artifacts.arn
    releases  = aws_s3_bucket.releases.arn
    backups   = aws_s3_bucket.backups.arn
  }
}

resource "aws_s3_bucket" "artifacts" {
  # checkov:skip=CKV_AWS_145:Public npm modules and sealed or public code; the service's own key encrypts.
  # checkov:skip=CKV_AWS_18:Each call is by a role of ours; CloudTrail data events are the account's choice.
  # checkov:skip=CKV2_AWS_62:Nobody would listen to notifications.
  # checkov:skip=CKV_AWS_144:Artifacts can be built again; a second region is the account's choice.
  bucket        = "${var.name}-${var.account_id}-artifacts"
  force_destroy = local.may_lose_data
}

resource "aws_s3_bucket" "releases" {
  # checkov:skip=CKV_AWS_145:Releases hold no secret; the service's own key encrypts.
  # checkov:skip=CKV_AWS_18:Each machine checks the SHA-256 that Terraform gave it.
  # checkov:skip=CKV2_AWS_62:Nobody would listen to notifications.
  # checkov:skip=CKV_AWS_144:A release can be built and put again at any time.
  bucket        = "${var.name}-${var.account_id}-releases"
  force_destroy = local.may_lose_data
}

resource "aws_s3_bucket" "backups" {
  # checkov:skip=CKV_AWS_145:etcd has no secrets: names, addresses, loads.
  # checkov:skip=CKV_AWS_18:Written by three machines, once an hour each.
  # checkov:skip=CKV2_AWS_62:Nobody would listen to notifications; an alarm watches the age of the last snapshot.
  # checkov:skip=CKV_AWS_144:The routing table of a region is of no use in another.
  bucket        = "${var.name}-${var.account_id}-backups"
  force_destroy = local.may_lose_data
}

resource "aws_s3_bucket_versioning" "this" {
  for_each = local.buckets

  bucket = each.value

  versioning_configuration {
    status = "Enabled"
  }
}

resource "aws_s3_bucket_public_access_block" "this" {
  for_each = local.buckets

  bucket                  = each.value
  block_public_acls       = true
  block_public_policy     = true
  ignore_public_acls      = true
  restrict_public_buckets = true
}

resource "aws_s3_bucket_ownership_controls" "this" {
  for_each = local.buckets

  bucket = each.value

  rule {
    object_ownership = "BucketOwnerEnforced"
  }
}

resource "aws_s3_bucket_server_side_encryption_configuration" "this" {
  for_each = local.buckets

  bucket = each.value

  rule {
    apply_server_side_encryption_by_default {
      sse_algorithm = "AES256"
    }
  }
}

# Artifacts live as long as a record names them: no rule expires a current object by its age. What was deleted or overwritten goes after a while,
# and so do uploads that nobody finished.
resource "aws_s3_bucket_lifecycle_configuration" "artifacts" {
  bucket = aws_s3_bucket.artifacts.id

  rule {
    id     = "abandoned"
    status = "Enabled"

    filter {}

    abort_incomplete_multipart_upload {
      days_after_initiation = 1
    }

    noncurrent_version_expiration {
      noncurrent_days = var.backup_retention_days
    }
  }

  depends_on = [aws_s3_bucket_versioning.this]
}

resource "aws_s3_bucket_lifecycle_configuration" "releases" {
  bucket = aws_s3_bucket.releases.id

  rule {
    id     = "abandoned"
    status = "Enabled"

    filter {}

    abort_incomplete_multipart_upload {
      days_after_initiation = 1
    }
  }

  depends_on = [aws_s3_bucket_versioning.this]
}

# Snapshots are copies, so that age is their root: the newest hours are what a restore needs.
resource "aws_s3_bucket_lifecycle_configuration" "backups" {
  bucket = aws_s3_bucket.backups.id

  rule {
    id     = "old"
    status = "Enabled"

    filter {}

    expiration {
      days = var.backup_retention_days
    }

    noncurrent_version_expiration {
      noncurrent_days = var.backup_retention_days
    }

    abort_incomplete_multipart_upload {
      days_after_initiation = 1
    }
  }

  depends_on = [aws_s3_bucket_versioning.this]
}

data "aws_iam_policy_document" "bucket" {
  for_each = local.bucket_arns

  statement {
    sid       = "TlsOnly"
    effect    = "Deny"
    actions   = ["s3:*"]
    resources = [each.value, "${each.value}/*"]

    principals {
      type        = "*"
      identifiers = ["*"]
    }

    condition {
      test     = "Bool"
      variable = "aws:SecureTransport"
      values   = ["false"]
    }
  }

  # Objects named by their hash are created and never overwritten, whoever asks. Parts of an upload create nothing and carry no condition.
  dynamic "statement" {
    for_each = each.key == "artifacts" ? ["CreateOnly"] : []

    content {
      sid       = statement.value
      effect    = "Deny"
      actions   = ["s3:PutObject"]
      resources = ["${each.value}/artifacts/*", "${each.value}/bundles/*", "${each.value}/hearth.json"]

      principals {
        type        = "*"
        identifiers = ["*"]
      }

      condition {
        test     = "Null"
        variable = "s3:if-none-match"
        values   = ["true"]
      }

      condition {
        test     = "Bool"
        variable = "s3:ObjectCreationOperation"
        values   = ["true"]
      }
    }
  }
}

resource "aws_s3_bucket_policy" "this" {
  for_each = local.buckets

  bucket = each.value
  policy = data.aws_iam_policy_document.bucket[each.key].json

  depends_on = [aws_s3_bucket_public_access_block.this]
}
