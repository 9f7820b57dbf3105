#!/usr/bin/env bash
# Stops the hearth that runs on a data directory, by the process id in its lock file, and waits until it has left.
#
#   down.sh DIR
set -euo pipefail

lock=$1/lock
DEADLINE_S=60
pid=$(cat "$lock" 2>/dev/null || true)
if [ -z "$pid" ] || ! grep -qs hearth "/proc/$pid/comm"; then
  echo "down: nothing runs on $1" >&2
  exit 0
fi
kill -TERM "$pid"
for ((waited = 0; waited < DEADLINE_S * 10; waited++)); do
  if [ ! -e "/proc/$pid" ]; then
    echo "down: process $pid has left" >&2
    exit 0
  fi
  sleep 0.1
done
echo "down: process $pid still runs after $DEADLINE_S s; it finishes requests for as long as its \`grace\` allows" >&2
exit 1
