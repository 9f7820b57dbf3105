# The public edge: a network load balancer that ends the public TLS, and routers behind it, each with a certificate of its own. Routers keep no
# state but the routing table, which they read from etcd; they call no AWS service themselves.

resource "aws_lb" "this" {
  # checkov:skip=CKV_AWS_91:Routers log each request with its id; the balancer's logs would hold TLS handshakes only.
  # checkov:skip=CKV_AWS_150:On unless the operator says otherwise; the check does not see through the variable.
  name                             = "${var.name}-edge"
  load_balancer_type               = "network"
  internal                         = false
  subnets                          = var.network.public_subnet_ids
  security_groups                  = [var.network.security_group_ids["balancer"]]
  enable_cross_zone_load_balancing = true
  enable_deletion_protection       = var.deletion_protection
}

resource "aws_lb_target_group" "router" {
  name                   = "${var.name}-router"
  vpc_id                 = var.network.vpc_id
  port                   = var.network.ports["router"]
  protocol               = "TLS"
  deregistration_delay   = var.request_timeout_max_s + 60
  connection_termination = true

  health_check {
    protocol            = "HTTP"
    port                = var.network.ports["ops"]
    path                = "/readyz"
    interval            = 5
    timeout             = 3
    healthy_threshold   = 2
    unhealthy_threshold = 2
  }
}

resource "aws_lb_listener" "tls" {
  load_balancer_arn = aws_lb.this.arn
  port              = var.network.ports["public"]
  protocol          = "TLS"
  ssl_policy        = "ELBSecurityPolicy-TLS13-1-2-2021-06"
  certificate_arn   = var.certificate_arn
  alpn_policy       = "HTTP2Preferred"

  default_action {
    type             = "forward"
    target_group_arn = aws_lb_target_group.router.arn
  }
}

module "group" {
  source = "../group"

  name               = var.name
  role               = "router"
  cluster            = var.cluster
  instance_types     = var.instance_types
  size               = var.size
  on_demand_base     = var.size.max
  disk_gib           = 16
  subnet_ids         = values(var.network.private_subnets)
  security_group_id  = var.network.security_group_ids["router"]
  target_group_arns  = [aws_lb_target_group.router.arn]
  drain_timeout_s    = var.request_timeout_max_s + 120
  policies           = {}
  log_retention_days = var.log_retention_days
}

resource "aws_autoscaling_policy" "cpu" {
  name                   = "cpu"
  autoscaling_group_name = module.group.group_name
  policy_type            = "TargetTrackingScaling"

  target_tracking_configuration {
    target_value = 50

    predefined_metric_specification {
      predefined_metric_type = "ASGAverageCPUUtilization"
    }
  }
}
