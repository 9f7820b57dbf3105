variable "name" {
  description = "Name of the installation; prefix of everything that it is made of."
  type        = string
}

variable "region" {
  description = "Region, part of the names of VPC endpoints."
  type        = string
}

variable "cidr" {
  description = "Addresses of the VPC."
  type        = string

  validation {
    condition     = can(cidrhost(var.cidr, 0)) && can(tonumber(split("/", var.cidr)[1]) <= 20) && try(tonumber(split("/", var.cidr)[1]) <= 20, false)
    error_message = "cidr is too small or no CIDR: each zone gets a public and a private sixteenth of it, so give a /20 or larger, as 10.40.0.0/16."
  }
}

variable "zones" {
  description = "Availability zones: one is cheap, three survive the loss of one."
  type        = list(string)

  validation {
    condition     = length(var.zones) >= 1 && length(var.zones) <= 6 && length(distinct(var.zones)) == length(var.zones)
    error_message = "zones must be one to six different availability zones, as [\"eu-central-1a\", \"eu-central-1b\", \"eu-central-1c\"]."
  }
}

variable "nat_per_zone" {
  description = "One NAT gateway in each zone, so that a zone's loss takes nobody else's way out; otherwise one for all."
  type        = bool
}

variable "interface_endpoints" {
  description = "AWS services that are reached without a NAT gateway, by their short names."
  type        = set(string)
  default     = []

  validation {
    condition     = alltrue([for service in var.interface_endpoints : contains(["autoscaling", "kms", "logs", "monitoring", "secretsmanager", "sqs", "ssm", "ssmmessages"], service)])
    error_message = "interface_endpoints knows autoscaling, kms, logs, monitoring, secretsmanager, sqs, ssm and ssmmessages; S3 and DynamoDB have gateways already."
  }
}

variable "client_cidrs" {
  description = "Who may call functions and the management API."
  type        = list(string)
  default     = ["0.0.0.0/0"]

  validation {
    condition     = length(var.client_cidrs) > 0 && alltrue([for cidr in var.client_cidrs : can(cidrhost(cidr, 0))])
    error_message = "client_cidrs must be CIDRs, as [\"0.0.0.0/0\"] for everybody or [\"203.0.113.0/24\"] for an office."
  }
}

variable "log_retention_days" {
  description = "How long flow logs are kept."
  type        = number
}
