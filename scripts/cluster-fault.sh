#!/usr/bin/env bash
# Faults for the load test's cluster scenarios, done to what `make up-cluster` has started below DIR.
#
#   cluster-fault.sh DIR kill NAME...       without a farewell
#   cluster-fault.sh DIR freeze NAME...     falls silent: connections stay, nothing answers
#   cluster-fault.sh DIR thaw NAME...       the end of that
#   cluster-fault.sh DIR start NAME...      what was killed comes back
#   cluster-fault.sh DIR restart NAME...    one after the other: asked to leave, waited for, started again
#
# NAME is a folder of DIR: node-a, router-1, etcd, ...
set -euo pipefail

LEAVE_S=60
here=$(cd "$(dirname "$0")" && pwd)

fail() { echo "cluster-fault: $*" >&2; exit 1; }

[ $# -ge 3 ] || fail 'usage: cluster-fault.sh DIR kill|freeze|thaw|start|restart NAME...'
dir=$(realpath "$1") verb=$2
shift 2

# The process of a member; a number that was given to another program meanwhile is not it.
pid_of() {
  local pid
  pid=$(cat "$dir/$1/pid" 2>/dev/null) || fail "there is no $1 below $dir"
  tr '\0' '\n' <"/proc/$pid/environ" 2>/dev/null | grep -xF "CLUSTER_MEMBER=$dir/$1" >/dev/null || fail "$1 does not run"
  echo "$pid"
}

# One that has ended and that nobody has asked about yet has ended all the same.
runs() { [ -e "/proc/$1" ] && ! grep -q '^State:[[:space:]]*Z' "/proc/$1/status" 2>/dev/null; }

for name in "$@"; do
  case "$verb" in
    kill | freeze | thaw)
      pid=$(pid_of "$name")
      case "$verb" in kill) signal=KILL ;; freeze) signal=STOP ;; thaw) signal=CONT ;; esac
      kill "-$signal" "$pid"
      ;;
    start) "$here/cluster.sh" start "$dir" "$name" ;;
    restart)
      pid=$(pid_of "$name")
      kill -TERM "$pid"
      for ((waited = 0; waited < LEAVE_S * 10; waited++)); do
        runs "$pid" || break
        sleep 0.1
      done
      ! runs "$pid" || fail "$name did not leave within $LEAVE_S s"
      "$here/cluster.sh" start "$dir" "$name"
      ;;
    *) fail "$verb is none of kill, freeze, thaw, start, restart" ;;
  esac
done
