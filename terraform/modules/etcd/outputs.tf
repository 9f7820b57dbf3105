output "endpoints" {
  description = "Where clients reach etcd."
  value       = [for host in local.hosts : "https://${host}:2379"]

  depends_on = [aws_volume_attachment.member]
}

output "hosts" {
  description = "Names that the members' certificate must hold, by member."
  value       = local.hosts
}
