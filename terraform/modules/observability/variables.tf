variable "name" {
  description = "Name of the installation."
  type        = string
}

variable "region" {
  description = "The region."
  type        = string
}

variable "alarm_topic_arns" {
  description = "SNS topics that a person or a pager listens to."
  type        = list(string)
  default     = []
}

variable "groups" {
  description = "Auto-scaling groups by role."
  type        = object({ router = string, node = string, builder = string })
}

variable "node_log_group" {
  description = "Where nodes log."
  type        = string
}

variable "balancer_suffixes" {
  description = "Dimensions of the load balancer's metrics."
  type        = object({ balancer = string, target_group = string })
}

variable "table_name" {
  description = "The records."
  type        = string
}

variable "queue_names" {
  description = "Builds that wait, and builds that failed too often."
  type        = object({ builds = string, dead = string })
}

variable "etcd_members" {
  description = "Names of the members."
  type        = list(string)
}

variable "router_count_min" {
  description = "Fewest routers that should be healthy."
  type        = number
}
