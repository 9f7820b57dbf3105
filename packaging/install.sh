#!/usr/bin/env bash
# Installs a release on this machine for one role and starts it. Run again with another release it upgrades; with the one before, it goes back.
#
#   install.sh --role router|node|builder --from DIR --env FILE [--standalone] [--no-start]
#
# DIR has the release's SHA256SUMS and the files that the role needs (hearth-ARCH.tar.gz; images-ARCH.tar.gz for nodes and builders). FILE says
# which cluster this is (HEARTH_TABLE=..., as terraform writes it). --standalone is a node with its builder on the shared stores without routers
# and etcd. Nothing is fetched but the role's certificate and the machine's own metadata; nothing is started unless all of it is in place.
set -euo pipefail
umask 022

ROOT=/opt/hearth
ETC=/etc/hearth
IMAGES=/var/cache/hearth/images
here=$(cd "$(dirname "$0")" && pwd)

say() { echo "install: $*" >&2; }
fail() { say "$*"; exit 1; }

role='' from='' env_file='' standalone=no start=yes
while [ $# -gt 0 ]; do
  case "$1" in
    --role) role=${2:-} && shift ;;
    --from) from=${2:-} && shift ;;
    --env) env_file=${2:-} && shift ;;
    --standalone) standalone=yes ;;
    --no-start) start=no ;;
    *) fail "unknown argument $1; usage: install.sh --role router|node|builder --from DIR --env FILE [--standalone] [--no-start]" ;;
  esac
  shift
done
case "$role" in router | node | builder) ;; *) fail '--role must be router, node or builder' ;; esac
[ -d "$from" ] || fail '--from must be the folder with SHA256SUMS and the archives'
[ -f "$env_file" ] || fail '--env must be a file with HEARTH_TABLE=... and the like; terraform writes it to /etc/hearth/cluster.env'
[ "$(id -u)" = 0 ] || fail 'this needs root: it makes a user, units and /opt/hearth'
[ "$role-$standalone" != router-yes ] || fail 'a router cannot stand alone: it finds its nodes through etcd'
version=$(cat "$here/VERSION")
arch=$(uname -m)

verify() { # verify FILE: as SHA256SUMS says, whatever was verified before
  [ -f "$from/$1" ] || fail "$from/$1 is missing: fetch it from the release"
  grep -q "  $1\$" "$from/SHA256SUMS" || fail "SHA256SUMS has no line for $1: it is of another release"
  (cd "$from" && grep "  $1\$" SHA256SUMS | sha256sum --check --quiet --strict) || fail "$1 is not what SHA256SUMS says: fetch it again"
}

need() { # need PROGRAM WHY
  command -v "$1" >/dev/null || [ -x "/usr/sbin/$1" ] || fail "$1 is missing ($2): install it with this machine's package manager first"
}

value() { # value KEY: of the environment file
  sed -n "s/^HEARTH_$1=//p" "$env_file" | tail -n 1
}

fill() { # fill TEMPLATE: with the cluster's values; a value that is missing is named
  local text key
  text=$(cat "$1")
  for key in $(grep -o '@[A-Z_]*@' "$1" | tr -d @ | sort -u); do
    if [ "$key" = ENDPOINT_URL ]; then
      # Only where a stand-in or an endpoint of another address is used.
      local url
      url=$(value AWS_ENDPOINT_URL)
      text=${text//@ENDPOINT_URL@/${url:+endpoint_url = \"$url\"}}
      continue
    fi
    [ -n "$(value "$key")" ] || fail "HEARTH_$key is not in $env_file, and $(basename "$1") needs it"
    text=${text//@"$key"@/$(value "$key")}
  done
  printf '%s\n' "$text"
}

configuration() {
  [ "$role" = router ] || fill "$here/config/store.toml"
  fill "$here/config/$role.toml"
  if [ "$standalone" = no ]; then
    local endpoints
    endpoints=$(value ETCD_ENDPOINTS)
    [ -n "$endpoints" ] || fail "HEARTH_ETCD_ENDPOINTS is not in $env_file: name etcd's members, or install with --standalone"
    fill "$here/config/$role-cluster.toml"
    printf '\n[placement]\nbackend = "etcd"\nendpoints = ["%s"]\n' "${endpoints//,/\", \"}"
    case "$endpoints" in
      https:*) printf '\n[placement.tls]\nca = "%s/tls/ca.crt"\ncert = "%s/tls/tls.crt"\nkey = "%s/tls/tls.key"\n' "$ETC" "$ETC" "$ETC" ;;
    esac
  fi
}

place_files() {
  local dir=$ROOT/$version
  install -d -m 0755 "$ROOT" "$dir" "$ETC" /var/log/hearth
  # Beside its place, then into it: a process that starts now finds the old release or the new one.
  install -d "$dir/bin"
  install -m 0755 "$here/hearth" "$dir/hearth.new"
  mv "$dir/hearth.new" "$dir/hearth"
  install -m 0755 "$here"/bin/* "$dir/bin/"
  cp -r "$here/docs" "$dir/"
  ln -sfn "$version" "$ROOT/current.new"
  mv -T "$ROOT/current.new" "$ROOT/current"
  ln -sfn "$ROOT/current/hearth" /usr/local/bin/hearth
  install -m 0644 "$here"/systemd/*.service "$here"/systemd/*.timer /etc/systemd/system/
  [ ! -d /etc/logrotate.d ] || install -m 0644 "$here/logrotate.conf" /etc/logrotate.d/hearth
}

place_images() {
  install -d -m 0755 "$IMAGES"
  tar -xzf "$from/images-$arch.tar.gz" -C "$IMAGES" --no-same-owner
}

certificates() {
  id hearth >/dev/null 2>&1 || useradd --system --home-dir /var/lib/hearth --no-create-home --shell /usr/sbin/nologin hearth
  install -d -o root -g hearth -m 0750 "$ETC/tls"
  local secret
  secret=$(value TLS_SECRET)
  if [ -n "$secret" ] && [ "$standalone" = no ]; then
    AWS_DEFAULT_REGION=$(value AWS_REGION) "$here/bin/hearth-certificates" "$secret" "$ETC/tls"
    chown root:hearth "$ETC"/tls/*
  fi
}

start_units() {
  systemctl daemon-reload
  systemctl enable --quiet "hearth-$role.service"
  systemctl restart "hearth-$role.service"
  if [ -n "$(value GROUP)" ]; then
    systemctl enable --quiet --now hearth-lifecycle.service hearth-metrics.timer
  fi
  local agent=/opt/aws/amazon-cloudwatch-agent/bin/amazon-cloudwatch-agent-ctl
  if [ -x "$agent" ] && [ -n "$(value LOG_GROUP)" ]; then
    fill "$here/cloudwatch-agent.json" >"$ETC/cloudwatch-agent.json"
    "$agent" -a fetch-config -m ec2 -s -c "file:$ETC/cloudwatch-agent.json" >/dev/null
  fi
}

verify "hearth-$arch.tar.gz"
need systemctl 'starts and stops the role'
need python3 'runs the helpers'
if [ "$role" != router ]; then
  need dockerd 'runs the containers'
  need nft 'keeps containers away from private networks'
  verify "images-$arch.tar.gz"
fi
configuration >"$from/hearth.toml.new"
place_files
[ "$role" = router ] || place_images
certificates
install -m 0644 "$from/hearth.toml.new" "$ETC/hearth.toml"
rm "$from/hearth.toml.new"
{ grep -v '^HEARTH_ROLE=' "$env_file" || true; echo "HEARTH_ROLE=$role"; } >"$ETC/cluster.env.new"
mv "$ETC/cluster.env.new" "$ETC/cluster.env"
if [ "$standalone" = yes ]; then : >"$ETC/instance.env"; else "$here/bin/hearth-instance" "$ETC/instance.env"; fi
# Credentials of a machine that has no role of its own (a trial, a test).
[ ! -f "$ETC/credentials.env" ] || cat "$ETC/credentials.env" >>"$ETC/instance.env"
[ "$start" = no ] || start_units
say "hearth $version is installed as $role"
