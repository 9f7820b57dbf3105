variable "name" {
  description = "Name of the installation."
  type        = string
}

variable "role" {
  description = "Role of the binary that these machines run."
  type        = string

  validation {
    condition     = contains(["router", "node", "builder"], var.role)
    error_message = "role must be router, node or builder, as the subcommands of hearth."
  }
}

variable "cluster" {
  description = "What all groups have in common; the root module fills it once."
  type = object({
    region            = string
    ami_id            = string
    hearth_version    = string
    hearth_sha256     = string
    releases_bucket   = object({ name = string, arn = string })
    tls_secrets       = map(object({ name = string, arn = string }))
    etcd_endpoints    = list(string)
    table             = object({ name = string, arn = string })
    artifacts_bucket  = object({ name = string, arn = string })
    queue             = object({ name = string, arn = string })
    dead_letter_queue = object({ name = string, arn = string })
    secrets_key       = object({ alias = string, arn = string })
    npm_registry      = string
    wait_for_roll     = bool
  })

  validation {
    condition     = can(regex("^[0-9]+\\.[0-9]+\\.[0-9]+([-+][0-9A-Za-z.-]+)?$", var.cluster.hearth_version))
    error_message = "hearth_version must be a version as `make release` printed it, as 0.1.0."
  }

  validation {
    condition     = can(regex("^[0-9a-f]{64}$", var.cluster.hearth_sha256))
    error_message = "hearth_sha256 must be the SHA-256 of the release's SHA256SUMS: `make release` prints it, and `sha256sum SHA256SUMS` does again."
  }

  validation {
    condition     = can(regex("^https://[^\"\\s]+$", var.cluster.npm_registry))
    error_message = "npm_registry must be the address of the npm registry that modules come from, as `npm config get registry` prints it, beginning with https://."
  }

  validation {
    condition     = can(regex("^ami-[0-9a-f]+$", var.cluster.ami_id))
    error_message = "ami_id must be an Amazon Linux 2023 image of the instances' architecture; the examples look it up."
  }
}

variable "instance_types" {
  description = "Types that will do, best first; several let spot requests be met."
  type        = list(string)

  validation {
    condition     = length(var.instance_types) > 0
    error_message = "instance_types must name at least one type, as [\"m7i.large\"]."
  }
}

variable "size" {
  description = "Fewest and most machines."
  type        = object({ min = number, max = number })

  validation {
    condition     = var.size.min >= 1 && var.size.max > var.size.min
    error_message = "size.max must be above size.min, which must be 1 or more: a roll starts a new machine before it ends an old one."
  }
}

variable "on_demand_base" {
  description = "Machines that are never spot."
  type        = number
}

variable "spot_share_percent" {
  description = "Share of the machines above the base that are spot."
  type        = number
  default     = 0

  validation {
    condition     = var.spot_share_percent >= 0 && var.spot_share_percent <= 100
    error_message = "spot_share_percent must be 0 to 100."
  }
}

variable "disk_gib" {
  description = "Size of the root disk."
  type        = number
}

variable "subnet_ids" {
  description = "Private subnets."
  type        = list(string)
}

variable "security_group_id" {
  description = "Security group of the role."
  type        = string
}

variable "target_group_arns" {
  description = "Target groups of the load balancer."
  type        = list(string)
  default     = []
}

variable "drain_timeout_s" {
  description = "How long a machine may take to leave."
  type        = number

  validation {
    condition     = var.drain_timeout_s >= 60 && var.drain_timeout_s <= 7200
    error_message = "drain_timeout_s must be 60 to 7200: above the longest request, below what a lifecycle hook allows."
  }
}

variable "policies" {
  description = "What the role may do beyond installing itself: policies by name."
  type        = map(string)
}

variable "log_retention_days" {
  description = "How long logs are kept."
  type        = number
}
