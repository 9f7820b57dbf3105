output "dashboard" {
  description = "Name of the dashboard."
  value       = aws_cloudwatch_dashboard.this.dashboard_name
}

output "alarms" {
  description = "Names of the alarms that call a person."
  value       = sort([for alarm in aws_cloudwatch_metric_alarm.promise : alarm.alarm_name])
}
