# One security group per role. A rule is a row: who, to whom, on which port, and why. What is not here is refused.

locals {
  ports = {
    public  = 443
    router  = 8443
    node    = 8080
    control = 7070
    ops     = 9090
    etcd    = 2379
    peer    = 2380
  }

  groups = {
    balancer = "Load balancer"
    router   = "Routers"
    node     = "Nodes"
    builder  = "Builders"
    etcd     = "Members of etcd"
    endpoint = "Endpoints of AWS services"
  }

  flows = {
    balancer-router     = { from = "balancer", to = "router", port = local.ports.router, why = "Requests of clients" }
    balancer-router-ops = { from = "balancer", to = "router", port = local.ports.ops, why = "Health checks" }
    router-node         = { from = "router", to = "node", port = local.ports.node, why = "Requests" }
    router-control      = { from = "router", to = "node", port = local.ports.control, why = "Loads for the planner, drain" }
    node-control        = { from = "node", to = "node", port = local.ports.control, why = "Log tails of a container on another node" }
    router-etcd         = { from = "router", to = "etcd", port = local.ports.etcd, why = "Routing table" }
    node-etcd           = { from = "node", to = "etcd", port = local.ports.etcd, why = "Registration, news of changes" }
    builder-etcd        = { from = "builder", to = "etcd", port = local.ports.etcd, why = "News of versions that went live" }
    etcd-etcd           = { from = "etcd", to = "etcd", port = local.ports.etcd, why = "Snapshots and health of members" }
    etcd-peer           = { from = "etcd", to = "etcd", port = local.ports.peer, why = "Raft" }
  }

  machines = toset(["router", "node", "builder", "etcd"])
}

resource "aws_security_group" "this" {
  # checkov:skip=CKV2_AWS_5:Attached by the modules of the roles; the check does not look across modules.
  for_each = local.groups

  name        = "${var.name}-${each.key}"
  description = each.value
  vpc_id      = aws_vpc.this.id

  tags = { Name = "${var.name}-${each.key}" }
}

resource "aws_vpc_security_group_ingress_rule" "flow" {
  for_each = local.flows

  security_group_id            = aws_security_group.this[each.value.to].id
  referenced_security_group_id = aws_security_group.this[each.value.from].id
  ip_protocol                  = "tcp"
  from_port                    = each.value.port
  to_port                      = each.value.port
  description                  = each.value.why
}

resource "aws_vpc_security_group_egress_rule" "flow" {
  for_each = local.flows

  security_group_id            = aws_security_group.this[each.value.from].id
  referenced_security_group_id = aws_security_group.this[each.value.to].id
  ip_protocol                  = "tcp"
  from_port                    = each.value.port
  to_port                      = each.value.port
  description                  = each.value.why
}

resource "aws_vpc_security_group_ingress_rule" "clients" {
  for_each = toset(var.client_cidrs)

  security_group_id = aws_security_group.this["balancer"].id
  cidr_ipv4         = each.key
  ip_protocol       = "tcp"
  from_port         = local.ports.public
  to_port           = local.ports.public
  description       = "Clients"
}

resource "aws_vpc_security_group_ingress_rule" "endpoint" {
  for_each = local.machines

  security_group_id            = aws_security_group.this["endpoint"].id
  referenced_security_group_id = aws_security_group.this[each.key].id
  ip_protocol                  = "tcp"
  from_port                    = 443
  to_port                      = 443
  description                  = "AWS services"
}

# HTTPS of every machine: AWS services through gateways, endpoints or NAT. Nodes' functions may call anything public on any port (the node's own
# packet filter keeps them off private addresses), builders reach the npm registry over HTTPS.
resource "aws_vpc_security_group_egress_rule" "https" {
  for_each = setsubtract(local.machines, ["node"])

  security_group_id = aws_security_group.this[each.key].id
  cidr_ipv4         = "0.0.0.0/0"
  ip_protocol       = "tcp"
  from_port         = 443
  to_port           = 443
  description       = "AWS services, npm registry"
}

resource "aws_vpc_security_group_egress_rule" "functions" {
  # checkov:skip=CKV_AWS_382:Functions may call the whole public internet; private addresses are refused by the node's packet filter.
  security_group_id = aws_security_group.this["node"].id
  cidr_ipv4         = "0.0.0.0/0"
  ip_protocol       = "-1"
  description       = "Calls of functions to the public internet"
}
