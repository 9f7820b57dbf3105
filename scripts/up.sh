#!/usr/bin/env bash
# Starts `hearth up`: in the foreground, or with DETACH=1 in the background, where it returns once it serves.
#
#   up.sh HEARTH --data-dir DIR [flags of `hearth up`]
set -euo pipefail

hearth=$1 data_dir=$3
shift
DEADLINE_S=60

if [ -z "${DETACH:-}" ]; then
  exec "$hearth" up "$@"
fi

mkdir -p "$data_dir"
log=$data_dir/hearth.log announced=$data_dir/announced.json
rm -f "$announced"
: >"$log"
setsid "$hearth" up "$@" --announce "$announced" >>"$log" 2>&1 </dev/null &
child=$!
for ((waited = 0; waited < DEADLINE_S * 10; waited++)); do
  if [ -e "$announced" ]; then
    sed -n '/^hearth serves/,$p' "$log" >&2
    echo "It runs in the background (process $child, log $log); \`make down\` stops it." >&2
    exit 0
  fi
  if ! kill -0 "$child" 2>/dev/null; then
    tail -n 20 "$log" >&2
    exit 1
  fi
  sleep 0.1
done
tail -n 20 "$log" >&2
echo "up: it does not serve after $DEADLINE_S s; its last words are above ($log)" >&2
exit 1
