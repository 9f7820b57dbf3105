#!/usr/bin/env bash
# Starts dockerd if no daemon answers, says so, and waits until it does. A daemon that answers is left as it is.
set -euo pipefail

SOCKET=${HEARTH_DOCKER__SOCKET:-/var/run/docker.sock}
LOG=${HEARTH_DOCKERD_LOG:-/var/log/hearth-dockerd.log}
DEADLINE_S=60

say() { echo "dockerd: $*" >&2; }
fail() { say "$*"; exit 1; }
answers() { timeout 5 docker --host "unix://$SOCKET" version --format '{{.Server.Version}}' 2>/dev/null; }

version=$(answers) && exit 0
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
    exit 0
  fi
  if [ -n "$child" ] && ! kill -0 "$child" 2>/dev/null; then
    tail -n 20 "$LOG" >&2
    fail "it ended at once; its last words are above ($LOG)"
  fi
  sleep 0.2
done
fail "no answer within $DEADLINE_S s; $LOG may tell why"
