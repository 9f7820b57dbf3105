locals {
  widgets = [
    { title = "Requests in flight per node", space = local.space, metrics = [["hearth_requests_in_flight", "Group", var.groups.node]], stat = "Average" },
    { title = "Failed by the platform", space = local.space, metrics = [["requests_failed_by_platform", "Group", var.groups.node]], stat = "Sum" },
    { title = "Pool level", space = local.space, metrics = [["hearth_handler_pool_level", "Group", var.groups.node], ["hearth_handler_pool_target", "Group", var.groups.node]], stat = "Average" },
    { title = "Waiting for a container", space = local.space, metrics = [["hearth_handler_waiting", "Group", var.groups.node]], stat = "Maximum" },
    { title = "Containers per node", space = local.space, metrics = [["hearth_handler_containers_running", "Group", var.groups.node], ["hearth_handler_containers_frozen", "Group", var.groups.node]], stat = "Average" },
    { title = "Memory in use, percent", space = local.space, metrics = [["memory_used_percent", "Group", var.groups.node]], stat = "Average" },
    { title = "Machines that report", space = local.space, metrics = [for role, group in var.groups : ["up", "Group", group]], stat = "Sum" },
    { title = "Oldest build that waits, seconds", space = local.space, metrics = [["hearth_builder_oldest_wait_seconds", "Group", var.groups.builder]], stat = "Maximum" },
    { title = "Builds that wait or run", space = local.space, metrics = [["hearth_builder_queue_depth", "Group", var.groups.builder]], stat = "Maximum" },
    { title = "DynamoDB units", space = "AWS/DynamoDB", metrics = [["ConsumedReadCapacityUnits", "TableName", var.table_name], ["ConsumedWriteCapacityUnits", "TableName", var.table_name]], stat = "Sum" },
    { title = "Healthy routers", space = "AWS/NetworkELB", metrics = [["HealthyHostCount", "LoadBalancer", var.balancer_suffixes.balancer, "TargetGroup", var.balancer_suffixes.target_group]], stat = "Minimum" },
    { title = "New connections", space = "AWS/NetworkELB", metrics = [["NewFlowCount", "LoadBalancer", var.balancer_suffixes.balancer]], stat = "Sum" },
    { title = "Members of etcd that are healthy", space = local.space, metrics = [for member in var.etcd_members : ["etcd_healthy", "Member", member]], stat = "Maximum" },
  ]
}

resource "aws_cloudwatch_dashboard" "this" {
  dashboard_name = var.name

  dashboard_body = jsonencode({
    widgets = [
      for index, widget in local.widgets : {
        type   = "metric"
        x      = (index % 3) * 8
        y      = floor(index / 3) * 6
        width  = 8
        height = 6
        properties = {
          title   = widget.title
          region  = var.region
          stat    = widget.stat
          period  = 60
          metrics = [for metric in widget.metrics : concat([widget.space], metric)]
        }
      }
    ]
  })
}
