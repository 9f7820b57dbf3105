#!/usr/bin/env bash
# Starts dockerd if no daemon answers, says so, and waits until it does. A daemon that answers is left as it is.
#
#   dockerd.sh          that
#   dockerd.sh gvisor   and tells it about gVisor as the runtime `runsc`, if it does not know it yet
#   dockerd.sh cpus 1   and keeps it and containerd to these CPUs (a list as 2-3,5) until it ends or is told `cpus all`; containers are not concerned
set -euo pipefail

SOCKET=${HEARTH_DOCKER__SOCKET:-/var/run/docker.sock}
LOG=${HEARTH_DOCKERD_LOG:-/var/log/hearth-dockerd.log}
DEADLINE_S=60

say() { echo "dockerd: $*" >&2; }
fail() { say "$*"; exit 1; }
answers() { timeout 5 docker --host "unix://$SOCKET" version --format '{{.Server.Version}}' 2>/dev/null; }

# gVisor's flags: sockets that a container makes are seen by the host, nothing lies between a container and the mounts that reach it while it
# runs, and its connections are the kernel's, in the container's own network namespace, where the packet filter sees them.
runtimes() {
  cat <<JSON
{
  "runtimes": {
    "runsc": {
      "path": "$(command -v runsc)",
      "runtimeArgs": ["--platform=ptrace", "--network=host", "--host-uds=create", "--overlay2=none", "--file-access-mounts=shared"]
    }
  }
}
JSON
}

knows_gvisor() { timeout 5 docker --host "unix://$SOCKET" info --format '{{range $name, $_ := .Runtimes}}{{$name}} {{end}}' 2>/dev/null | grep -w runsc >/dev/null; }

# Runtimes are among the settings that a running daemon reads again.
gvisor() {
  local config=/etc/docker/daemon.json
  knows_gvisor && return
  command -v runsc >/dev/null || fail 'runsc is missing: scripts/setup.sh test installs it'
  if [ -e "$config" ]; then
    say "$config exists and is left alone; this belongs into it, and then the daemon needs a reload:"
    runtimes >&2
    exit 1
  fi
  [ "$(id -u)" = 0 ] || fail "this needs root: write $config"
  say "writing gVisor's runtime into $config"
  mkdir -p /etc/docker
  runtimes >"$config"
  if [ -d /run/systemd/system ] && systemctl is-active --quiet docker.service; then
    systemctl reload docker.service
  else
    kill -HUP "$(cat /var/run/docker.pid)" || fail 'the daemon could not be told to read it'
  fi
  for ((waited = 0; waited < 50; waited++)); do
    knows_gvisor && return
    sleep 0.2
  done
  fail 'the daemon does not know runsc after it was told'
}

# By a control group of their own: an affinity would be inherited by every container.
cpus() {
  local list=$1 root=/sys/fs/cgroup/cpuset engine group pid
  [ "$(id -u)" = 0 ] || fail 'this needs root: control groups are written'
  if [ "$list" = all ]; then list=$(cat /sys/devices/system/cpu/online); fi
  if [ -d /run/systemd/system ] && systemctl is-active --quiet docker.service; then
    [ ! -d "$root" ] || fail 'systemd keeps services to CPUs by version 2 of control groups only'
    systemctl set-property --runtime docker.service "AllowedCPUs=$list"
    if systemctl is-active --quiet containerd.service; then systemctl set-property --runtime containerd.service "AllowedCPUs=$list"; fi
    return
  fi
  if [ ! -d "$root" ]; then
    root=/sys/fs/cgroup
    echo +cpuset >"$root/cgroup.subtree_control" || fail 'the kernel has no cpuset controller'
  fi
  group=$root/hearth-engine
  mkdir -p "$group"
  if [ -e "$root/cpuset.mems" ]; then cat "$root/cpuset.mems" >"$group/cpuset.mems"; fi
  echo "$list" >"$group/cpuset.cpus" || fail "these are not CPUs of this machine: $list"
  engine=$(cat /var/run/docker.pid) || fail 'the daemon was not started here: its process is not known'
  for pid in "$engine" $(pgrep -P "$engine" -x containerd); do
    echo "$pid" >"$group/cgroup.procs"
  done
}

finish() {
  case $wanted in
    gvisor) gvisor ;;
    cpus) cpus "$list" ;;
  esac
  exit 0
}

wanted=${1:-}
list=${2:-}
case $wanted in
  '' | gvisor) ;;
  cpus) [ -n "$list" ] || fail 'which CPUs? dockerd.sh cpus 2-3, or dockerd.sh cpus all' ;;
  *) fail "unknown: $wanted; the head of this file lists what there is" ;;
esac
version=$(answers) && finish
if [ "$(id -u)" != 0 ]; then
  fail "nothing answers on $SOCKET as $(id -un): start Docker (systemctl start docker), or have yourself added to the group docker"
fi

PATH=$PATH:/usr/sbin:/sbin
if [ -d /run/systemd/system ] && systemctl cat docker.service >/dev/null 2>&1; then
  say 'starting the service docker'
  systemctl start docker.service || fail 'it does not start: journalctl -u docker tells why'
  child=
else
  # Machines without an init system mount no control groups either.
  if ! mountpoint -q /sys/fs/cgroup && [ -z "$(ls -A /sys/fs/cgroup 2>/dev/null)" ]; then
    say 'mounting the control groups'
    mount -t cgroup2 none /sys/fs/cgroup || fail 'control groups cannot be mounted, and containers need them'
  fi
  say "starting dockerd (its log is $LOG)"
  # Of a session of its own, so that a Ctrl-C here is not its end.
  setsid dockerd --host "unix://$SOCKET" >>"$LOG" 2>&1 </dev/null &
  child=$!
fi

for ((waited = 0; waited < DEADLINE_S * 5; waited++)); do
  if version=$(answers); then
    say "version $version answers"
    finish
  fi
  if [ -n "$child" ] && ! kill -0 "$child" 2>/dev/null; then
    tail -n 20 "$LOG" >&2
    fail "it ended at once; its last words are above ($LOG)"
  fi
  sleep 0.2
done
fail "no answer within $DEADLINE_S s; $LOG may tell why"
