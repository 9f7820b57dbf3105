variable "name" {
  description = "Name of the installation; prefix of everything that it is made of."
  type        = string
}

variable "account_id" {
  description = "The AWS account, part of the buckets' names, which are world-wide."
  type        = string

  validation {
    condition     = can(regex("^[0-9]{12}$", var.account_id))
    error_message = "account_id must be the twelve digits of the account: aws sts get-caller-identity --query Account."
  }
}

variable "data_loss_confirmed" {
  description = "The name of the installation, to let a destroy delete its data; applied first, then destroyed."
  type        = string
  default     = ""

  validation {
    condition     = contains(["", var.name], var.data_loss_confirmed)
    error_message = "data_loss_confirmed must be empty, or exactly the installation's name to let the next destroy delete all functions, secrets and artifacts."
  }
}

variable "backup_retention_days" {
  description = "How long snapshots of etcd and overwritten or deleted objects are kept."
  type        = number
  default     = 30

  validation {
    condition     = var.backup_retention_days >= 1 && var.backup_retention_days <= 3650
    error_message = "backup_retention_days must be 1 to 3650."
  }
}
