output "dns_name" {
  description = "What the public name's CNAME or alias points to."
  value       = aws_lb.this.dns_name
}

output "balancer_suffixes" {
  description = "Dimensions of the balancer's metrics."
  value       = { balancer = aws_lb.this.arn_suffix, target_group = aws_lb_target_group.router.arn_suffix }
}

output "group_name" {
  description = "The auto-scaling group."
  value       = module.group.group_name
}

output "log_group_name" {
  description = "Where its logs are."
  value       = module.group.log_group_name
}
