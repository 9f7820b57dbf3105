# etcd: members with an address, a name and a data disk that outlive their machine. A machine is replaced by hand, one after another
# (docs/operations/etcd.md): nothing in an ordinary apply touches a running member, whatever changes around it.

locals {
  members = {
    for index in range(var.member_count) :
    substr("abcde", index, 1) => { zone = keys(var.network.private_subnets)[index % length(var.network.private_subnets)] }
  }
  hosts           = { for member in keys(local.members) : member => "etcd-${member}.${var.network.private_zone.name}" }
  initial_cluster = join(",", [for member, host in local.hosts : "${member}=https://${host}:2380"])
}

data "aws_subnet" "member" {
  for_each = local.members

  id = var.network.private_subnets[each.value.zone]
}

resource "aws_network_interface" "member" {
  for_each = local.members

  subnet_id       = var.network.private_subnets[each.value.zone]
  security_groups = [var.network.security_group_ids["etcd"]]

  tags = { Name = "${var.name}-etcd-${each.key}" }
}

resource "aws_route53_record" "member" {
  # checkov:skip=CKV2_AWS_23:The address is of the network interface above; the check knows addresses of load balancers and the like only.
  for_each = local.members

  zone_id = var.network.private_zone.id
  name    = local.hosts[each.key]
  type    = "A"
  ttl     = 60
  records = [aws_network_interface.member[each.key].private_ip]
}

resource "aws_ebs_volume" "member" {
  # checkov:skip=CKV_AWS_189:No secrets are in etcd; the service's own key encrypts.
  # checkov:skip=CKV2_AWS_9:Snapshots of etcd itself go to S3 each hour and can be restored anywhere; a disk's cannot be trusted to be consistent.
  for_each = local.members

  availability_zone = data.aws_subnet.member[each.key].availability_zone
  size              = var.disk_gib
  type              = "gp3"
  encrypted         = true
  final_snapshot    = true

  tags = { Name = "${var.name}-etcd-${each.key}" }
}

resource "aws_instance" "member" {
  for_each = local.members

  ami                     = var.ami_id
  instance_type           = var.instance_type
  iam_instance_profile    = aws_iam_instance_profile.this.name
  disable_api_termination = var.termination_protection
  ebs_optimized           = true
  monitoring              = true

  network_interface {
    device_index         = 0
    network_interface_id = aws_network_interface.member[each.key].id
  }

  metadata_options {
    http_endpoint               = "enabled"
    http_tokens                 = "required"
    http_put_response_hop_limit = 1
  }

  root_block_device {
    volume_type = "gp3"
    volume_size = 10
    encrypted   = true
  }

  user_data_base64 = base64gzip(templatefile("${path.module}/user-data.sh.tftpl", {
    member          = each.key
    host            = local.hosts[each.key]
    region          = var.region
    name            = var.name
    initial_cluster = local.initial_cluster
    initial_state   = contains(var.joining_members, each.key) ? "existing" : "new"
    endpoints       = join(",", [for host in local.hosts : "https://${host}:2379"])
    etcd_version    = var.etcd_version
    etcd_sha256     = var.etcd_sha256
    releases_bucket = var.releases_bucket.name
    backups_bucket  = var.backups_bucket.name
    secret          = var.tls_secret.name
    snapshot_script = file("${path.module}/etcd-snapshot.sh")
  }))

  tags = { Name = "${var.name}-etcd-${each.key}" }

  # A member is replaced with -replace, when the operator says so and one at a time.
  lifecycle {
    ignore_changes = [ami, user_data_base64, instance_type]
  }
}

resource "aws_volume_attachment" "member" {
  for_each = local.members

  device_name                    = "/dev/sdf"
  volume_id                      = aws_ebs_volume.member[each.key].id
  instance_id                    = aws_instance.member[each.key].id
  stop_instance_before_detaching = true
}
