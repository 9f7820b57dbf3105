# Builders: npm modules become artifacts. They can read the records but no code bundle, and open no secret: the role can make a data key, which
# the keyring does at its start, and decrypt nothing.

data "aws_iam_policy_document" "builder" {
  statement {
    sid = "Records"
    actions = [
      "dynamodb:BatchGetItem",
      "dynamodb:BatchWriteItem",
      "dynamodb:ConditionCheckItem",
      "dynamodb:DeleteItem",
      "dynamodb:DescribeTable",
      "dynamodb:GetItem",
      "dynamodb:PutItem",
      "dynamodb:Query",
      "dynamodb:UpdateItem",
    ]
    resources = [var.cluster.table.arn]
  }

  statement {
    sid       = "Bucket"
    actions   = ["s3:ListBucket"]
    resources = [var.cluster.artifacts_bucket.arn]
  }

  statement {
    sid       = "Artifacts"
    actions   = ["s3:AbortMultipartUpload", "s3:GetObject", "s3:PutObject"]
    resources = ["${var.cluster.artifacts_bucket.arn}/artifacts/*"]
  }

  # A version that is settled is copied to its live place, with its long document.
  statement {
    sid       = "Documents"
    actions   = ["s3:DeleteObject", "s3:GetObject", "s3:PutObject"]
    resources = ["${var.cluster.artifacts_bucket.arn}/documents/*"]
  }

  statement {
    sid       = "Marker"
    actions   = ["s3:GetObject", "s3:PutObject"]
    resources = ["${var.cluster.artifacts_bucket.arn}/hearth.json"]
  }

  statement {
    sid = "Builds"
    actions = [
      "sqs:ChangeMessageVisibility",
      "sqs:DeleteMessage",
      "sqs:GetQueueAttributes",
      "sqs:GetQueueUrl",
      "sqs:ReceiveMessage",
      "sqs:SendMessage",
    ]
    resources = [var.cluster.queue.arn]
  }

  statement {
    sid       = "FailedBuilds"
    actions   = ["sqs:DeleteMessage", "sqs:GetQueueUrl", "sqs:ReceiveMessage"]
    resources = [var.cluster.dead_letter_queue.arn]
  }

  statement {
    sid       = "KeyCheck"
    actions   = ["kms:GenerateDataKey"]
    resources = [var.cluster.secrets_key.arn]
  }
}

module "group" {
  source = "../group"

  name               = var.name
  role               = "builder"
  cluster            = var.cluster
  instance_types     = var.instance_types
  size               = var.size
  on_demand_base     = 0
  spot_share_percent = var.spot_share_percent
  disk_gib           = 60
  subnet_ids         = values(var.network.private_subnets)
  security_group_id  = var.network.security_group_ids["builder"]
  drain_timeout_s    = 720
  policies           = { builder = data.aws_iam_policy_document.builder.json }
  log_retention_days = var.log_retention_days
}

# How long the oldest build waits that nobody has begun is how long tenants wait; the number of builds is not, since one may take a second or
# ten minutes, and the age of the oldest message counts those under way.
resource "aws_autoscaling_policy" "more" {
  name                      = "queue-age"
  autoscaling_group_name    = module.group.group_name
  policy_type               = "StepScaling"
  adjustment_type           = "ChangeInCapacity"
  metric_aggregation_type   = "Maximum"
  estimated_instance_warmup = 180

  step_adjustment {
    scaling_adjustment          = 1
    metric_interval_lower_bound = 0
    metric_interval_upper_bound = 240
  }

  step_adjustment {
    scaling_adjustment          = 3
    metric_interval_lower_bound = 240
  }
}

resource "aws_autoscaling_policy" "fewer" {
  name                    = "queue-empty"
  autoscaling_group_name  = module.group.group_name
  policy_type             = "StepScaling"
  adjustment_type         = "ChangeInCapacity"
  metric_aggregation_type = "Maximum"

  step_adjustment {
    scaling_adjustment          = -1
    metric_interval_upper_bound = 0
  }
}

resource "aws_cloudwatch_metric_alarm" "age" {
  alarm_name          = "${var.name}-builder-queue-age"
  alarm_description   = "Builds wait more than a minute. Builders are being added; docs/operations/scaling.md"
  namespace           = "Hearth/${var.name}"
  metric_name         = "hearth_builder_oldest_wait_seconds"
  dimensions          = { Group = module.group.group_name }
  statistic           = "Maximum"
  comparison_operator = "GreaterThanOrEqualToThreshold"
  threshold           = 60
  period              = 60
  evaluation_periods  = 2
  treat_missing_data  = "notBreaching"
  alarm_actions       = [aws_autoscaling_policy.more.arn]
}

resource "aws_cloudwatch_metric_alarm" "empty" {
  alarm_name          = "${var.name}-builder-queue-empty"
  alarm_description   = "No build has waited or run for half an hour; a builder may go. No action by a person is needed."
  namespace           = "Hearth/${var.name}"
  metric_name         = "hearth_builder_queue_depth"
  dimensions          = { Group = module.group.group_name }
  statistic           = "Maximum"
  comparison_operator = "LessThanOrEqualToThreshold"
  threshold           = 0
  period              = 300
  evaluation_periods  = 6
  treat_missing_data  = "notBreaching"
  alarm_actions       = [aws_autoscaling_policy.fewer.arn]
}
