variable "name" {
  description = "Name of the installation."
  type        = string
  default     = "hearth"

  validation {
    condition     = can(regex("^[a-z][a-z0-9-]{0,18}[a-z0-9]$", var.name))
    error_message = "name must be 2 to 20 of a-z, 0-9 and -, beginning with a letter: it is part of bucket and load balancer names."
  }
}

variable "region" {
  description = "AWS region."
  type        = string
}

variable "account_id" {
  description = "The AWS account."
  type        = string
}

variable "ami_id" {
  description = "An Amazon Linux 2023 image; empty for the region's newest, which rolls the machines whenever there is a newer one."
  type        = string
  default     = ""
}

variable "certificate_arn" {
  description = "ACM certificate of the public name."
  type        = string
}

variable "hearth_version" {
  description = "The release that runs; another one rolls builders, nodes and routers."
  type        = string
}

variable "hearth_sha256" {
  description = "SHA-256 of the release's SHA256SUMS."
  type        = string
}

variable "etcd_sha256" {
  description = "SHA-256 of the archive of etcd."
  type        = string
}

variable "npm_registry" {
  description = "Address of the npm registry that modules come from, as `npm config get registry` prints it."
  type        = string
}

variable "client_cidrs" {
  description = "Who may call."
  type        = list(string)
  default     = ["0.0.0.0/0"]
}

variable "alarm_topic_arns" {
  description = "SNS topics that are told of alarms."
  type        = list(string)
  default     = []
}

variable "data_loss_confirmed" {
  description = "The installation's name, applied before a destroy that is to delete its data."
  type        = string
  default     = ""
}

variable "wait_for_roll" {
  description = "Whether an apply waits for each group's roll; needs the AWS command line."
  type        = bool
  default     = true
}

variable "zones" {
  description = "Three availability zones."
  type        = list(string)

  validation {
    condition     = length(var.zones) == 3
    error_message = "zones must be three, so that one can be lost and etcd keeps its majority; for one zone see examples/small."
  }
}

variable "node_size" {
  description = "Fewest and most nodes."
  type        = object({ min = number, max = number })
  default     = { min = 3, max = 30 }
}
