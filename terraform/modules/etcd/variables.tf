variable "name" {
  description = "Name of the installation."
  type        = string
}

variable "region" {
  description = "The region."
  type        = string
}

variable "network" {
  description = "Outputs of the module network."
  type = object({
    private_subnets    = map(string)
    security_group_ids = map(string)
    private_zone       = object({ id = string, name = string })
  })
}

variable "member_count" {
  description = "Members; they are spread over the zones."
  type        = number
  default     = 3

  validation {
    condition     = contains([1, 3, 5], var.member_count)
    error_message = "member_count must be 1, 3 or 5: an even number survives no more losses than the odd one below it. Use 3, or 1 for a trial."
  }
}

variable "joining_members" {
  description = "Members that have lost their disk and join the running cluster as new ones; docs/operations/etcd.md."
  type        = set(string)
  default     = []
}

variable "ami_id" {
  description = "An Amazon Linux 2023 image."
  type        = string
}

variable "instance_type" {
  description = "Type of the members; etcd needs steady disks more than cores."
  type        = string
  default     = "m7i.large"
}

variable "disk_gib" {
  description = "Size of the data disks."
  type        = number
  default     = 20
}

variable "etcd_version" {
  description = "Release of etcd."
  type        = string
  default     = "3.5.21"

  validation {
    condition     = can(regex("^3\\.[56]\\.[0-9]+$", var.etcd_version))
    error_message = "etcd_version must be a release of 3.5 or 3.6, as 3.5.21."
  }
}

variable "etcd_sha256" {
  description = "SHA-256 of etcd-v<version>-linux-amd64.tar.gz, from the release's SHA256SUMS."
  type        = string

  validation {
    condition     = can(regex("^[0-9a-f]{64}$", var.etcd_sha256))
    error_message = "etcd_sha256 is missing: take it from the SHA256SUMS of the etcd release, and put the archive into the releases bucket (docs/operations/first-apply.md)."
  }
}

variable "releases_bucket" {
  description = "Where the archive of etcd is."
  type        = object({ name = string, arn = string })
}

variable "backups_bucket" {
  description = "Where snapshots go."
  type        = object({ name = string, arn = string })
}

variable "tls_secret" {
  description = "The members' certificate."
  type        = object({ name = string, arn = string })
}

variable "termination_protection" {
  description = "Whether members refuse to be terminated by mistake."
  type        = bool
  default     = true
}
