#!/usr/bin/env bash
# Installs what is missing for one purpose, and says what it does. Instant when nothing is missing.
#
#   setup.sh up       what building and running need
#   setup.sh test     that, and what the tests need
#   setup.sh bench    that, and what the references of the bench need
#   setup.sh aws      a stand-in for the AWS services
#   setup.sh etcd     etcd
#   setup.sh terraform  what checks the infrastructure's code
#   setup.sh attack   programs that attack a listener or an API
#
# Packages are installed with apt on Debian and its kin, as root. Elsewhere it names what is missing and ends with 1.
set -euo pipefail
cd "$(dirname "$0")/.."

say() { echo "setup: $*" >&2; }
fail() { say "$*"; exit 1; }

# What is looked for (a program, or @ and a file), the Debian package that has it, and what it is for.
UP=(
  'cc|gcc libc6-dev|links programs, compiles SQLite and zstd'
  'mold|mold|links several times faster than ld'
  'protoc|protobuf-compiler|compiles the definitions of control calls'
  '@/usr/include/google/protobuf/descriptor.proto|libprotobuf-dev|has the definitions that those include'
  'dockerd|docker.io|runs the containers'
  'docker|docker-cli|speaks to Docker from the command line'
  'nft|nftables|keeps containers away from private networks'
  'npm|npm|fetches Node.js for the container image, knows the registry'
  'mmdebstrap|mmdebstrap|assembles the container image from Debian packages'
  'openssl|openssl|checks what goes into the container image'
  '@/etc/ssl/certs/ca-certificates.crt|ca-certificates|trusts the registry'
)
ETCD=('etcd|etcd-server|coordinates the nodes of a cluster' 'etcdctl|etcd-client|looks into etcd')
TEST=("${UP[@]}" "${ETCD[@]}" 'ip|iproute2|makes network namespaces in tests' 'runsc|runsc|gVisor, a runtime with a kernel of its own')
BENCH=(
  "${TEST[@]}" 'nginx|nginx-light|a reference' 'wrk|wrk|a load generator to compare with' 'h2load|nghttp2-client|another one'
  'taskset|util-linux|gives generator and server a core each'
)

has() {
  case "$1" in
    @*) [ -e "${1#@}" ] ;;
    *) command -v "$1" >/dev/null || [ -x "/usr/sbin/$1" ] ;;
  esac
}

is_debian() { command -v apt-get >/dev/null && command -v dpkg >/dev/null; }
is_available() { apt-cache show --no-all-versions "$1" >/dev/null 2>&1; }

# Services that a package would start by itself (a web server on port 80) stay off; docker.io is started by dockerd.sh.
without_services() {
  if [ -e /usr/sbin/policy-rc.d ]; then
    "$@"
    return
  fi
  printf '#!/bin/sh\nexit 101\n' >/usr/sbin/policy-rc.d
  chmod +x /usr/sbin/policy-rc.d
  trap 'rm -f /usr/sbin/policy-rc.d' EXIT
  "$@"
  rm -f /usr/sbin/policy-rc.d
  trap - EXIT
}

apt_install() {
  DEBIAN_FRONTEND=noninteractive apt-get install --yes --quiet --no-install-recommends "$@" >"$LOG" 2>&1
}

# The lists of packages are fetched only when a package is not in them or has moved since.
install() {
  local package fresh=no
  for package in "$@"; do is_available "$package" || fresh=needed; done
  LOG=$(mktemp /tmp/hearth-setup.XXXXXX)
  if [ "$fresh" = needed ]; then
    say 'fetching the lists of packages (apt-get update)'
    apt-get update --quiet >"$LOG" 2>&1 || { tail -n 20 "$LOG" >&2; fail "apt-get update failed; its last words are above ($LOG)"; }
  fi
  # Where Docker's command line has no package of its own it comes with docker.io.
  local wanted=()
  for package in "$@"; do
    if [ "$package" != docker-cli ] || is_available docker-cli; then wanted+=("$package"); fi
  done
  say "installing: ${wanted[*]}"
  if ! without_services apt_install "${wanted[@]}"; then
    if [ "$fresh" = needed ] || ! apt-get update --quiet >>"$LOG" 2>&1 || ! without_services apt_install "${wanted[@]}"; then
      tail -n 20 "$LOG" >&2
      fail "apt-get install failed; its last words are above ($LOG)"
    fi
  fi
  rm -f "$LOG"
}

ensure() {
  local entry what packages why missing=() names=()
  for entry in "$@"; do
    IFS='|' read -r what packages why <<<"$entry"
    has "$what" && continue
    missing+=("  ${what#@} ($why): Debian package $packages")
    read -ra packages <<<"$packages"
    names+=("${packages[@]}")
  done
  [ ${#missing[@]} -gt 0 ] || return 0
  say 'missing:'
  printf '%s\n' "${missing[@]}" >&2
  is_debian || fail 'this machine has no apt: install these with its own package manager, then run this again'
  [ "$(id -u)" = 0 ] || fail "this needs root: sudo apt-get install ${names[*]}"
  install "${names[@]}"
  for entry in "$@"; do
    IFS='|' read -r what packages why <<<"$entry"
    has "$what" || fail "${what#@} is still missing after installing $packages"
  done
}

has_moto() { command -v "$1" >/dev/null && "$1" -c 'import moto.server' 2>/dev/null; }

# Below target, so that it goes with `make clean`. Run by the Node.js of the container image, since it needs a new one.
ensure_registry() {
  cmp --silent tests/registry/package-lock.json target/registry/node_modules/.installed && return
  say 'installing a local npm registry (verdaccio) into target/registry'
  mkdir -p target/registry
  cp tests/registry/package.json tests/registry/package-lock.json target/registry/
  (cd target/registry && npm ci --omit=dev --no-audit --no-fund --ignore-scripts --engine-strict=false --loglevel=error)
  cp tests/registry/package-lock.json target/registry/node_modules/.installed
}

# In a virtual environment, which no other program of this machine sees.
ensure_aws() {
  has_moto target/aws-stand-in/bin/python && return
  has_moto python3 && return
  if ! python3 -c 'import ensurepip, venv' 2>/dev/null; then
    say 'missing: python3-venv (makes virtual environments)'
    is_debian || fail 'this machine has no apt: install venv and pip for Python, then run this again'
    [ "$(id -u)" = 0 ] || fail 'this needs root: sudo apt-get install python3-venv'
    install python3-venv
  fi
  say 'installing the stand-in for AWS services (moto) into target/aws-stand-in'
  mkdir -p target
  python3 -m venv target/aws-stand-in
  target/aws-stand-in/bin/pip install --quiet 'moto[server]>=5.1,<6'
  has_moto target/aws-stand-in/bin/python || fail 'the stand-in for AWS services does not load after its installation'
}

# What reads and checks the infrastructure's code: two virtual environments, since checkov brings an HCL reader of its own under the same name,
# and the AWS provider's schema as its npm package publishes it.
ensure_terraform() {
  local dir=target/terraform-test
  mkdir -p "$dir"
  if [ ! -x "$dir/hcl/bin/python" ] || ! "$dir/hcl/bin/python" -c 'import hcl2' 2>/dev/null; then
    say 'installing python-hcl2 into target/terraform-test'
    python3 -m venv "$dir/hcl"
    "$dir/hcl/bin/pip" install --quiet 'python-hcl2==8.1.4'
  fi
  if [ ! -x "$dir/checkov/bin/checkov" ]; then
    say 'installing checkov into target/terraform-test'
    python3 -m venv "$dir/checkov"
    "$dir/checkov/bin/pip" install --quiet 'checkov==3.3.30'
  fi
  if [ ! -f "$dir/cdktf-provider-aws-21.22.1.tgz" ]; then
    say "fetching the AWS provider's schema into target/terraform-test"
    (cd "$dir" && npm pack --silent --ignore-scripts @cdktf/provider-aws@21.22.1 >/dev/null)
  fi
}

ensure_attack() {
  ensure 'slowhttptest|slowhttptest|slow clients' 'h2load|nghttp2-client|a flood' 'curl|curl|speaks HTTP'
  if [ ! -x target/attack/bin/schemathesis ]; then
    say 'installing schemathesis into target/attack'
    mkdir -p target
    python3 -m venv target/attack
    target/attack/bin/pip install --quiet 'schemathesis==4.32.5'
  fi
}

if ! command -v cargo >/dev/null; then
  fail 'Rust is missing: install it with rustup (stable, 1.94 or newer), then run this again'
fi
if ! command -v python3 >/dev/null; then
  ensure 'python3|python3|helps scripts'
fi
case "${1:-}" in
  up) ensure "${UP[@]}" ;;
  test)
    ensure "${TEST[@]}"
    ensure_aws
    ensure_registry
    ;;
  bench) ensure "${BENCH[@]}" ;;
  etcd) ensure "${ETCD[@]}" ;;
  aws) ensure_aws ;;
  terraform) ensure_terraform ;;
  attack) ensure_attack ;;
  *) fail 'usage: setup.sh up|test|bench|aws|etcd|terraform|attack' ;;
esac
