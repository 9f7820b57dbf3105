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
  description = "Types that will do, best first."
  type        = list(string)
  default     = ["c7i.xlarge", "c6i.xlarge", "c7a.xlarge", "c6a.xlarge"]
}

variable "size" {
  description = "Fewest and most builders."
  type        = object({ min = number, max = number })
}

variable "spot_share_percent" {
  description = "Share of spot: a build whose builder goes is begun again by another."
  type        = number
  default     = 0
}

variable "log_retention_days" {
  description = "How long logs are kept."
  type        = number
}
