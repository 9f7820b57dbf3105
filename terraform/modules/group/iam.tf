# What every machine may do: fetch its release and its own certificate, say that it is ready or has drained, write logs and metrics, be
# reached through Session Manager. What its role may do besides comes from the role's module.

data "aws_iam_policy_document" "assume" {
  statement {
    actions = ["sts:AssumeRole"]

    principals {
      type        = "Service"
      identifiers = ["ec2.amazonaws.com"]
    }
  }
}

data "aws_iam_policy_document" "machine" {
  # checkov:skip=CKV_AWS_111:PutMetricData and Session Manager's channels take no resource; the namespace is a condition.
  # checkov:skip=CKV_AWS_356:PutMetricData and Session Manager know no narrower resource than all.
  statement {
    sid       = "Release"
    actions   = ["s3:GetObject"]
    resources = ["${var.cluster.releases_bucket.arn}/hearth/*"]
  }

  statement {
    sid       = "OwnCertificate"
    actions   = ["secretsmanager:GetSecretValue"]
    resources = [var.cluster.tls_secrets[var.role].arn]
  }

  statement {
    sid       = "Lifecycle"
    actions   = ["autoscaling:CompleteLifecycleAction"]
    resources = ["arn:aws:autoscaling:${var.cluster.region}:*:autoScalingGroup:*:autoScalingGroupName/${local.full_name}"]
  }

  statement {
    sid       = "Logs"
    actions   = ["logs:CreateLogStream", "logs:PutLogEvents", "logs:DescribeLogStreams"]
    resources = ["${aws_cloudwatch_log_group.this.arn}:*"]
  }

  statement {
    sid       = "Metrics"
    actions   = ["cloudwatch:PutMetricData"]
    resources = ["*"]

    condition {
      test     = "StringEquals"
      variable = "cloudwatch:namespace"
      values   = ["Hearth/${var.name}"]
    }
  }

  statement {
    sid = "SessionManager"
    actions = [
      "ssm:UpdateInstanceInformation",
      "ssmmessages:CreateControlChannel",
      "ssmmessages:CreateDataChannel",
      "ssmmessages:OpenControlChannel",
      "ssmmessages:OpenDataChannel",
    ]
    resources = ["*"]
  }
}

resource "aws_iam_role" "this" {
  name               = local.full_name
  assume_role_policy = data.aws_iam_policy_document.assume.json
}

resource "aws_iam_role_policy" "machine" {
  name   = "machine"
  role   = aws_iam_role.this.id
  policy = data.aws_iam_policy_document.machine.json
}

resource "aws_iam_role_policy" "role" {
  for_each = var.policies

  name   = each.key
  role   = aws_iam_role.this.id
  policy = each.value
}

resource "aws_iam_instance_profile" "this" {
  name = local.full_name
  role = aws_iam_role.this.name
}
