# A whole cluster in one zone, as cheap as it gets: one member of etcd, a router, a node, a builder. For trials: a lost zone or machine is an outage
# of minutes, data stays.

terraform {
  required_version = ">= 1.9"

  required_providers {
    aws = {
      source  = "hashicorp/aws"
      version = "~> 6.0"
    }
  }
}

provider "aws" {
  region              = var.region
  allowed_account_ids = [var.account_id]

  default_tags {
    tags = { Hearth = var.name }
  }
}

data "aws_ssm_parameter" "ami" {
  count = var.ami_id == "" ? 1 : 0

  name = "/aws/service/ami-amazon-linux-latest/al2023-ami-kernel-default-x86_64"
}

locals {
  ami_id             = var.ami_id != "" ? var.ami_id : nonsensitive(data.aws_ssm_parameter.ami[0].value)
  log_retention_days = 14
  cluster = {
    region            = var.region
    ami_id            = local.ami_id
    hearth_version    = var.hearth_version
    hearth_sha256     = var.hearth_sha256
    releases_bucket   = module.state.buckets["releases"]
    tls_secrets       = module.state.tls_secrets
    etcd_endpoints    = module.etcd.endpoints
    table             = module.state.table
    artifacts_bucket  = module.state.buckets["artifacts"]
    queue             = module.state.queue
    dead_letter_queue = module.state.dead_letter_queue
    secrets_key       = module.state.secrets_key
    npm_registry      = var.npm_registry
    wait_for_roll     = var.wait_for_roll
  }
}

module "network" {
  source = "../../modules/network"

  name               = var.name
  region             = var.region
  cidr               = "10.40.0.0/16"
  zones              = [var.zone]
  nat_per_zone       = false
  client_cidrs       = var.client_cidrs
  log_retention_days = local.log_retention_days
}

module "state" {
  source = "../../modules/state"

  name                = var.name
  account_id          = var.account_id
  data_loss_confirmed = var.data_loss_confirmed
}

module "etcd" {
  source = "../../modules/etcd"

  name                   = var.name
  region                 = var.region
  network                = module.network
  member_count           = 1
  instance_type          = "t3.small"
  ami_id                 = local.ami_id
  etcd_sha256            = var.etcd_sha256
  releases_bucket        = module.state.buckets["releases"]
  backups_bucket         = module.state.buckets["backups"]
  tls_secret             = module.state.tls_secrets["etcd"]
  termination_protection = var.data_loss_confirmed == ""
}

# Each group begins to roll when the one before it is done: builders make what nodes of the new version run, routers come last.

module "builder" {
  source = "../../modules/builder"

  name               = var.name
  cluster            = local.cluster
  network            = module.network
  size               = { min = 1, max = 2 }
  spot_share_percent = 100
  log_retention_days = local.log_retention_days
}

module "node" {
  source = "../../modules/node"

  name               = var.name
  cluster            = local.cluster
  network            = module.network
  size               = { min = 1, max = 3 }
  on_demand_base     = 1
  instance_types     = ["m7i.large", "m6i.large"]
  log_retention_days = local.log_retention_days

  depends_on = [module.builder]
}

module "router" {
  source = "../../modules/router"

  name                = var.name
  cluster             = local.cluster
  network             = module.network
  certificate_arn     = var.certificate_arn
  size                = { min = 1, max = 2 }
  deletion_protection = var.data_loss_confirmed == ""
  log_retention_days  = local.log_retention_days

  depends_on = [module.node]
}

module "observability" {
  source = "../../modules/observability"

  name              = var.name
  region            = var.region
  alarm_topic_arns  = var.alarm_topic_arns
  groups            = { router = module.router.group_name, node = module.node.group_name, builder = module.builder.group_name }
  node_log_group    = module.node.log_group_name
  balancer_suffixes = module.router.balancer_suffixes
  table_name        = module.state.table.name
  queue_names       = { builds = module.state.queue.name, dead = module.state.dead_letter_queue.name }
  etcd_members      = keys(module.etcd.hosts)
  router_count_min  = 1
}
