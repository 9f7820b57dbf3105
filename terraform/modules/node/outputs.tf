output "group_name" {
  description = "The auto-scaling group."
  value       = module.group.group_name
}

output "log_group_name" {
  description = "Where its logs are."
  value       = module.group.log_group_name
}
