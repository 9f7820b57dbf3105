# Nodes: where tenants' code runs. The machine's role can reach records, bundles, the queue and the key that opens secrets; containers cannot reach
# the machine's role (metadata one hop, packet filter).

data "aws_iam_policy_document" "node" {
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

  # Modules are built elsewhere: a node that was taken over cannot write what other nodes will run.
  statement {
    sid       = "Artifacts"
    actions   = ["s3:GetObject"]
    resources = ["${var.cluster.artifacts_bucket.arn}/artifacts/*"]
  }

  # Objects by hash like artifacts; the bucket's policy lets nobody overwrite one, and nobody deletes them.
  statement {
    sid       = "Bundles"
    actions   = ["s3:GetObject", "s3:PutObject"]
    resources = ["${var.cluster.artifacts_bucket.arn}/bundles/*"]
  }

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
    sid       = "AskForBuilds"
    actions   = ["sqs:GetQueueAttributes", "sqs:GetQueueUrl", "sqs:SendMessage"]
    resources = [var.cluster.queue.arn]
  }

  statement {
    sid       = "FailedBuilds"
    actions   = ["sqs:GetQueueUrl"]
    resources = [var.cluster.dead_letter_queue.arn]
  }

  statement {
    sid       = "Secrets"
    actions   = ["kms:Decrypt", "kms:GenerateDataKey"]
    resources = [var.cluster.secrets_key.arn]
  }
}

module "group" {
  source = "../group"

  name               = var.name
  role               = "node"
  cluster            = var.cluster
  instance_types     = var.instance_types
  size               = var.size
  on_demand_base     = var.on_demand_base
  spot_share_percent = var.spot_share_percent
  disk_gib           = var.disk_gib
  subnet_ids         = values(var.network.private_subnets)
  security_group_id  = var.network.security_group_ids["node"]
  drain_timeout_s    = var.request_timeout_max_s + 120
  policies           = { node = data.aws_iam_policy_document.node.json }
  log_retention_days = var.log_retention_days
}

# Each metric by itself adds nodes; nodes leave only when all agree.
resource "aws_autoscaling_policy" "target" {
  for_each = {
    in-flight = { metric = "hearth_requests_in_flight", target = var.in_flight_target }
    memory    = { metric = "memory_used_percent", target = var.memory_target_percent }
  }

  name                   = each.key
  autoscaling_group_name = module.group.group_name
  policy_type            = "TargetTrackingScaling"

  target_tracking_configuration {
    target_value = each.value.target

    customized_metric_specification {
      namespace   = "Hearth/${var.name}"
      metric_name = each.value.metric
      statistic   = "Average"

      metric_dimension {
        name  = "Group"
        value = module.group.group_name
      }
    }
  }
}

# An empty pool means that cold starts wait: two nodes at once, without waiting for an average to move.
resource "aws_autoscaling_policy" "pool" {
  name                      = "pool"
  autoscaling_group_name    = module.group.group_name
  policy_type               = "StepScaling"
  adjustment_type           = "ChangeInCapacity"
  metric_aggregation_type   = "Average"
  estimated_instance_warmup = 120

  step_adjustment {
    scaling_adjustment          = 2
    metric_interval_upper_bound = 0
  }
}

resource "aws_cloudwatch_metric_alarm" "pool" {
  alarm_name          = "${var.name}-node-pool-empty"
  alarm_description   = "Pools are nearly empty: cold starts wait for containers. Nodes are being added; docs/operations/scaling.md"
  namespace           = "Hearth/${var.name}"
  metric_name         = "hearth_handler_pool_level"
  dimensions          = { Group = module.group.group_name }
  statistic           = "Average"
  comparison_operator = "LessThanThreshold"
  threshold           = 1
  period              = 60
  evaluation_periods  = 3
  treat_missing_data  = "notBreaching"
  alarm_actions       = [aws_autoscaling_policy.pool.arn]
}
