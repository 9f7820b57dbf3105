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
    vpc_id             = string
    public_subnet_ids  = list(string)
    private_subnets    = map(string)
    security_group_ids = map(string)
    ports              = map(number)
  })
}

variable "certificate_arn" {
  description = "Certificate of the public name, from ACM, in the same region."
  type        = string

  validation {
    condition     = can(regex("^arn:aws[a-z-]*:acm:[a-z0-9-]+:[0-9]{12}:certificate/.+$", var.certificate_arn))
    error_message = "certificate_arn is missing or no certificate: request one with `aws acm request-certificate --domain-name hooks.example.com --validation-method DNS` and give its ARN."
  }
}

variable "instance_types" {
  description = "Types that will do, best first."
  type        = list(string)
  default     = ["c7i.large"]
}

variable "size" {
  description = "Fewest and most routers."
  type        = object({ min = number, max = number })
}

variable "request_timeout_max_s" {
  description = "The longest that a request may take; deregistration waits longer than this."
  type        = number
  default     = 900

  validation {
    condition     = var.request_timeout_max_s >= 30 && var.request_timeout_max_s <= 3540
    error_message = "request_timeout_max_s must be 30 to 3540: a load balancer waits an hour at most for a target that leaves."
  }
}

variable "log_retention_days" {
  description = "How long logs are kept."
  type        = number
}

variable "deletion_protection" {
  description = "Whether the load balancer refuses to be deleted: its name is in your DNS."
  type        = bool
  default     = true
}
