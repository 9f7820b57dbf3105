data "aws_iam_policy_document" "assume" {
  statement {
    actions = ["sts:AssumeRole"]

    principals {
      type        = "Service"
      identifiers = ["ec2.amazonaws.com"]
    }
  }
}

data "aws_iam_policy_document" "etcd" {
  # checkov:skip=CKV_AWS_111:PutMetricData and Session Manager's channels take no resource; the namespace is a condition.
  # checkov:skip=CKV_AWS_356:PutMetricData and Session Manager know no narrower resource than all.
  statement {
    sid       = "Release"
    actions   = ["s3:GetObject"]
    resources = ["${var.releases_bucket.arn}/etcd/*"]
  }

  statement {
    sid       = "Snapshots"
    actions   = ["s3:GetObject", "s3:PutObject"]
    resources = ["${var.backups_bucket.arn}/etcd/*"]
  }

  statement {
    sid       = "OwnCertificate"
    actions   = ["secretsmanager:GetSecretValue"]
    resources = [var.tls_secret.arn]
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
  name               = "${var.name}-etcd"
  assume_role_policy = data.aws_iam_policy_document.assume.json
}

resource "aws_iam_role_policy" "this" {
  name   = "etcd"
  role   = aws_iam_role.this.id
  policy = data.aws_iam_policy_document.etcd.json
}

resource "aws_iam_instance_profile" "this" {
  name = "${var.name}-etcd"
  role = aws_iam_role.this.name
}
