# A group of machines that run one role: launch template, auto-scaling group, the hook that drains, the machine's role. A new version of the
# template (another Hearth, another image) rolls the group one machine at a time, the new one first.

locals {
  full_name = "${var.name}-${var.role}"
  user_data = templatefile("${path.module}/user-data.sh.tftpl", {
    role      = var.role
    name      = var.name
    cluster   = var.cluster
    secret    = var.cluster.tls_secrets[var.role].name
    log_group = aws_cloudwatch_log_group.this.name
    hook      = "drain"
    drain_s   = var.drain_timeout_s
  })
}

resource "aws_cloudwatch_log_group" "this" {
  # checkov:skip=CKV_AWS_158:Neither payloads nor secrets are logged; the service's own encryption is enough.
  # checkov:skip=CKV_AWS_338:Kept as long as the operator says.
  name              = "/hearth/${var.name}/${var.role}"
  retention_in_days = var.log_retention_days
}

resource "aws_launch_template" "this" {
  name                   = local.full_name
  image_id               = var.cluster.ami_id
  instance_type          = var.instance_types[0]
  update_default_version = true
  user_data              = base64encode(local.user_data)

  iam_instance_profile {
    arn = aws_iam_instance_profile.this.arn
  }

  # Version 2 only, and one hop: a container is a hop further and gets no answer.
  metadata_options {
    http_endpoint               = "enabled"
    http_tokens                 = "required"
    http_put_response_hop_limit = 1
  }

  network_interfaces {
    associate_public_ip_address = false
    delete_on_termination       = true
    security_groups             = [var.security_group_id]
  }

  block_device_mappings {
    device_name = "/dev/xvda"

    ebs {
      volume_type           = "gp3"
      volume_size           = var.disk_gib
      encrypted             = true
      delete_on_termination = true
    }
  }

  monitoring {
    enabled = true
  }

  tag_specifications {
    resource_type = "instance"

    tags = {
      Name          = local.full_name
      HearthRole    = var.role
      HearthVersion = var.cluster.hearth_version
    }
  }
}

resource "aws_autoscaling_group" "this" {
  name                      = local.full_name
  min_size                  = var.size.min
  max_size                  = var.size.max
  vpc_zone_identifier       = var.subnet_ids
  target_group_arns         = var.target_group_arns
  health_check_type         = length(var.target_group_arns) > 0 ? "ELB" : "EC2"
  health_check_grace_period = 300
  default_instance_warmup   = 120
  capacity_rebalance        = var.spot_share_percent > 0
  wait_for_capacity_timeout = var.cluster.wait_for_roll ? "15m" : "0"
  enabled_metrics           = ["GroupDesiredCapacity", "GroupInServiceInstances", "GroupTerminatingInstances"]

  mixed_instances_policy {
    launch_template {
      launch_template_specification {
        launch_template_id = aws_launch_template.this.id
        version            = aws_launch_template.this.latest_version
      }

      dynamic "override" {
        for_each = var.instance_types

        content {
          instance_type = override.value
        }
      }
    }

    instances_distribution {
      on_demand_base_capacity                  = var.on_demand_base
      on_demand_percentage_above_base_capacity = 100 - var.spot_share_percent
      spot_allocation_strategy                 = "price-capacity-optimized"
    }
  }

  initial_lifecycle_hook {
    name                 = "drain"
    lifecycle_transition = "autoscaling:EC2_INSTANCE_TERMINATING"
    heartbeat_timeout    = var.drain_timeout_s
    default_result       = "CONTINUE"
  }

  # A machine says itself that it serves; one that never does is replaced, and the roll stops and goes back.
  initial_lifecycle_hook {
    name                 = "ready"
    lifecycle_transition = "autoscaling:EC2_INSTANCE_LAUNCHING"
    heartbeat_timeout    = 900
    default_result       = "ABANDON"
  }

  instance_refresh {
    strategy = "Rolling"

    preferences {
      min_healthy_percentage = 100
      max_healthy_percentage = 110
      instance_warmup        = 120
      skip_matching          = true
      auto_rollback          = true
    }
  }

  tag {
    key                 = "Name"
    value               = local.full_name
    propagate_at_launch = true
  }

  lifecycle {
    ignore_changes = [desired_capacity]
  }
}

# A change of the template starts a roll and does not wait for it. This does, so that the group after this one begins when this one is done.
resource "terraform_data" "rolled" {
  count = var.cluster.wait_for_roll ? 1 : 0

  triggers_replace = [aws_autoscaling_group.this.name, aws_launch_template.this.latest_version]

  provisioner "local-exec" {
    command = "${path.module}/await-roll.sh"

    environment = {
      GROUP  = aws_autoscaling_group.this.name
      REGION = var.cluster.region
    }
  }
}
