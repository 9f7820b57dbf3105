output "table" {
  description = "The records."
  value       = { name = aws_dynamodb_table.records.name, arn = aws_dynamodb_table.records.arn }
}

output "buckets" {
  description = "Buckets by purpose."
  value       = { for purpose, name in local.buckets : purpose => { name = name, arn = local.bucket_arns[purpose] } }
}

output "queue" {
  description = "Builds that wait."
  value       = { name = aws_sqs_queue.builds.name, arn = aws_sqs_queue.builds.arn }
}

output "dead_letter_queue" {
  description = "Builds that failed too often."
  value       = { name = aws_sqs_queue.builds_dead.name, arn = aws_sqs_queue.builds_dead.arn }
}

output "secrets_key" {
  description = "The key that seals tenants' secrets."
  value       = { alias = aws_kms_alias.secrets.name, arn = aws_kms_key.secrets.arn }
}

output "tls_secrets" {
  description = "Secrets with the roles' certificates, by role."
  value       = { for role, secret in aws_secretsmanager_secret.tls : role => { name = secret.name, arn = secret.arn } }
}
