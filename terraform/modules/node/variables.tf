variable "name" {
  description = "Name of the installation."
  type        = string
}

variable "cluster" {
  description = "What all groups have in common."
  type        = any
}

variable "network" {
  description = "Outputs of the module network."
  type = object({
    private_subnets    = map(string)
    security_group_ids = map(string)
  })
}

variable "instance_types" {
  description = "Types that will do, best first; memory decides how many tenants are warm."
  type        = list(string)
  default     = ["m7i.xlarge", "m6i.xlarge", "m7a.xlarge", "m6a.xlarge"]
}

variable "size" {
  description = "Fewest and most nodes."
  type        = object({ min = number, max = number })
}

variable "on_demand_base" {
  description = "Nodes that are never spot."
  type        = number
}

variable "spot_share_percent" {
  description = "Share of the nodes above the base that are spot."
  type        = number
  default     = 0
}

variable "disk_gib" {
  description = "Root disk: images, the module cache, logs."
  type        = number
  default     = 100

  validation {
    condition     = var.disk_gib >= 40
    error_message = "disk_gib must be 40 or more: images take 2 GB, the module cache what it is given."
  }
}

variable "in_flight_target" {
  description = "Requests in flight per node that scaling aims at."
  type        = number
  default     = 200
}

variable "memory_target_percent" {
  description = "Memory in use per node that scaling aims at."
  type        = number
  default     = 70

  validation {
    condition     = var.memory_target_percent >= 20 && var.memory_target_percent <= 85
    error_message = "memory_target_percent must be 20 to 85: above that containers of idle tenants are destroyed before a new node helps."
  }
}

variable "request_timeout_max_s" {
  description = "The longest that a request may take."
  type        = number
  default     = 900
}

variable "log_retention_days" {
  description = "How long logs are kept."
  type        = number
}
