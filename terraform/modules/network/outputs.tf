output "vpc_id" {
  description = "The VPC."
  value       = aws_vpc.this.id
}

output "public_subnet_ids" {
  description = "Subnets of the load balancer."
  value       = [for zone in var.zones : aws_subnet.public[zone].id]
}

output "private_subnets" {
  description = "Subnets of everything else, by zone."
  value       = { for zone in var.zones : zone => aws_subnet.private[zone].id }
}

output "security_group_ids" {
  description = "Security groups by role."
  value       = { for role, group in aws_security_group.this : role => group.id }
}

output "ports" {
  description = "Ports by purpose."
  value       = local.ports
}

output "private_zone" {
  description = "The private DNS zone."
  value       = { id = aws_route53_zone.private.zone_id, name = aws_route53_zone.private.name }
}
