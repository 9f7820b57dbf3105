# An alarm for each promise that can be broken in production, and one page to look at. An alarm means that a person must act; its description
# says what is broken and names the runbook.

locals {
  space = "Hearth/${var.name}"

  # One row per alarm. Metrics of ours are per group, sent each minute by the machines.
  alarms = {
    platform-errors = {
      why       = "The platform answers with errors of its own: no capacity, no live node, store away. docs/operations/scaling.md"
      namespace = local.space, metric = "requests_failed_by_platform", dimensions = { Group = var.groups.node }
      statistic = "Sum", compare = "GreaterThanThreshold", threshold = 10, periods = 3, missing = "notBreaching"
    }
    cold-starts-wait = {
      why       = "Requests wait for containers: pools are empty for longer than a new node takes. docs/operations/scaling.md"
      namespace = local.space, metric = "hearth_handler_waiting", dimensions = { Group = var.groups.node }
      statistic = "Maximum", compare = "GreaterThanThreshold", threshold = 50, periods = 10, missing = "notBreaching"
    }
    refills-fail = {
      why       = "Containers cannot be made: look at Docker on the nodes. docs/operations/scaling.md"
      namespace = local.space, metric = "hearth_handler_pool_refill_failures", dimensions = { Group = var.groups.node }
      statistic = "Maximum", compare = "GreaterThanThreshold", threshold = 20, periods = 5, missing = "notBreaching"
    }
    memory = {
      why       = "Nodes are short of memory, and the group is as large as it may be or does not grow. docs/operations/scaling.md"
      namespace = local.space, metric = "memory_used_percent", dimensions = { Group = var.groups.node }
      statistic = "Average", compare = "GreaterThanThreshold", threshold = 85, periods = 10, missing = "notBreaching"
    }
    nodes-silent = {
      why       = "No node reports: none runs, or none reaches CloudWatch. docs/operations/zone-loss.md"
      namespace = local.space, metric = "up", dimensions = { Group = var.groups.node }
      statistic = "Sum", compare = "LessThanThreshold", threshold = 1, periods = 5, missing = "breaching"
    }
    builders-silent = {
      why       = "No builder reports: new modules are not built, what is built goes on. docs/operations/scaling.md"
      namespace = local.space, metric = "up", dimensions = { Group = var.groups.builder }
      statistic = "Sum", compare = "LessThanThreshold", threshold = 1, periods = 10, missing = "breaching"
    }
    routers-unhealthy = {
      why        = "Fewer routers are healthy than there should be. docs/operations/zone-loss.md"
      namespace  = "AWS/NetworkELB", metric = "HealthyHostCount"
      dimensions = { LoadBalancer = var.balancer_suffixes.balancer, TargetGroup = var.balancer_suffixes.target_group }
      statistic  = "Maximum", compare = "LessThanThreshold", threshold = var.router_count_min, periods = 5, missing = "breaching"
    }
    builds-wait = {
      why       = "Builds wait more than ten minutes though builders were added. docs/operations/scaling.md"
      namespace = "AWS/SQS", metric = "ApproximateAgeOfOldestMessage", dimensions = { QueueName = var.queue_names.builds }
      statistic = "Maximum", compare = "GreaterThanThreshold", threshold = 600, periods = 3, missing = "notBreaching"
    }
    builds-dead = {
      why       = "Failed builds are not taken from the dead-letter queue: no builder does its rounds. docs/operations/scaling.md"
      namespace = "AWS/SQS", metric = "ApproximateAgeOfOldestMessage", dimensions = { QueueName = var.queue_names.dead }
      statistic = "Maximum", compare = "GreaterThanThreshold", threshold = 3600, periods = 1, missing = "notBreaching"
    }
    table-throttled = {
      why       = "DynamoDB throttles: one partition is too busy. docs/operations/growth.md"
      namespace = "AWS/DynamoDB", metric = "ThrottledRequests", dimensions = { TableName = var.table_name }
      statistic = "Sum", compare = "GreaterThanThreshold", threshold = 100, periods = 5, missing = "notBreaching"
    }
  }
}

resource "aws_cloudwatch_metric_alarm" "promise" {
  for_each = local.alarms

  alarm_name          = "${var.name}-${each.key}"
  alarm_description   = each.value.why
  namespace           = each.value.namespace
  metric_name         = each.value.metric
  dimensions          = each.value.dimensions
  statistic           = each.value.statistic
  comparison_operator = each.value.compare
  threshold           = each.value.threshold
  period              = 60
  evaluation_periods  = each.value.periods
  treat_missing_data  = each.value.missing
  alarm_actions       = var.alarm_topic_arns
  ok_actions          = var.alarm_topic_arns
}

resource "aws_cloudwatch_metric_alarm" "etcd" {
  for_each = toset(var.etcd_members)

  alarm_name          = "${var.name}-etcd-${each.key}"
  alarm_description   = "Member ${each.key} of etcd is not healthy; routers serve from the table they have. docs/operations/etcd.md"
  namespace           = local.space
  metric_name         = "etcd_healthy"
  dimensions          = { Member = each.key }
  statistic           = "Maximum"
  comparison_operator = "LessThanThreshold"
  threshold           = 1
  period              = 60
  evaluation_periods  = 3
  treat_missing_data  = "breaching"
  alarm_actions       = var.alarm_topic_arns
  ok_actions          = var.alarm_topic_arns
}

resource "aws_cloudwatch_metric_alarm" "snapshot" {
  for_each = toset(var.etcd_members)

  alarm_name          = "${var.name}-etcd-${each.key}-snapshot"
  alarm_description   = "Member ${each.key} of etcd has saved no snapshot for three hours. docs/operations/etcd.md"
  namespace           = local.space
  metric_name         = "etcd_snapshot_saved"
  dimensions          = { Member = each.key }
  statistic           = "Sum"
  comparison_operator = "LessThanThreshold"
  threshold           = 1
  period              = 3600
  evaluation_periods  = 3
  treat_missing_data  = "breaching"
  alarm_actions       = var.alarm_topic_arns
  ok_actions          = var.alarm_topic_arns
}

# Node logs are JSON lines; ERROR means that a person must act.
resource "aws_cloudwatch_log_metric_filter" "errors" {
  name           = "${var.name}-node-errors"
  log_group_name = var.node_log_group
  pattern        = "{ $.level = \"ERROR\" }"

  metric_transformation {
    name      = "logged_errors"
    namespace = local.space
    value     = "1"
  }
}

resource "aws_cloudwatch_metric_alarm" "errors" {
  alarm_name          = "${var.name}-node-errors"
  alarm_description   = "A node has logged an ERROR: read the log group ${var.node_log_group}."
  namespace           = local.space
  metric_name         = aws_cloudwatch_log_metric_filter.errors.metric_transformation[0].name
  statistic           = "Sum"
  comparison_operator = "GreaterThanThreshold"
  threshold           = 0
  period              = 300
  evaluation_periods  = 1
  treat_missing_data  = "notBreaching"
  alarm_actions       = var.alarm_topic_arns
}
