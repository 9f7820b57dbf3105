output "dns_name" {
  description = "What the public name's CNAME or alias points to."
  value       = module.router.dns_name
}

output "releases_bucket" {
  description = "Where releases go before they are applied."
  value       = module.state.buckets["releases"].name
}

output "tls_secrets" {
  description = "Where the roles' certificates go, by role."
  value       = { for role, secret in module.state.tls_secrets : role => secret.name }
}

output "etcd_hosts" {
  description = "Names for the certificate of etcd's members."
  value       = module.etcd.hosts
}
