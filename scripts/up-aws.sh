#!/usr/bin/env bash
# Runs two nodes and two builders as processes of their own against a stand-in for AWS services, in the foreground: an interrupt ends all of
# them. The stand-in keeps its state in memory, so that each start begins with nothing.
#
#   up-aws.sh HEARTH DIR
set -euo pipefail

hearth=$1 dir=$2
DEADLINE_S=60
mkdir -p "$dir"
dir=$(cd "$dir" && pwd)
rm -f "$dir"/aws.url "$dir"/admin.token "$dir"/secrets.key "$dir"/*.json
children=()

finish() {
  trap - EXIT INT TERM
  # Roles first: they hand back what they have while the stand-in still answers.
  for ((i = ${#children[@]} - 1; i >= 0; i--)); do
    kill "${children[$i]}" 2>/dev/null || true
    wait "${children[$i]}" 2>/dev/null || true
  done
}
trap finish EXIT
trap 'exit 0' INT TERM

wait_for() { # wait_for FILE PID LOG
  for ((waited = 0; waited < DEADLINE_S * 10; waited++)); do
    [ -e "$1" ] && return
    kill -0 "$2" 2>/dev/null || break
    sleep 0.1
  done
  tail -n 20 "$3" >&2
  echo "up-aws: it does not answer; its last words are above ($3)" >&2
  exit 1
}

setsid "$(dirname "$0")/aws-stand-in.sh" --announce "$dir/aws.url" >"$dir/aws.log" 2>&1 &
children+=($!)
wait_for "$dir/aws.url" $! "$dir/aws.log"
url=$(cat "$dir/aws.url")
# The store begins with nothing, so that no container has anything to wait for.
export HEARTH_DESTROY_CONTAINERS=true
# For trying on a machine of one's own, whatever `hearth doctor` finds there.
export HEARTH_DOCKER__ACCEPT_UNSAFE=true
export AWS_ACCESS_KEY_ID=stand-in AWS_SECRET_ACCESS_KEY=stand-in AWS_REGION=eu-central-1

cat >"$dir/hearth.toml" <<TOML
[store.records]
backend = "dynamodb"
table = "hearth"
endpoint_url = "$url"

[store.artifacts]
backend = "s3"
bucket = "hearth"
endpoint_url = "$url"

[store.queue]
backend = "sqs"
queue = "hearth-builds"
dead_letter_queue = "hearth-builds-dead"
endpoint_url = "$url"

[store.keys]
backend = "file"
path = "$dir/secrets.key"
TOML
"$hearth" admin init-aws --config "$dir/hearth.toml" --token-file "$dir/admin.token"

ports=(8081 8082)
for n in 1 2; do
  setsid "$hearth" node --config "$dir/hearth.toml" --data-dir "$dir/node$n" --listen "127.0.0.1:${ports[$((n - 1))]}" \
    --ops-listen "127.0.0.1:909$n" --announce "$dir/node$n.json" >"$dir/node$n.log" 2>&1 </dev/null &
  children+=($!)
  wait_for "$dir/node$n.json" $! "$dir/node$n.log"
done
for n in 1 2; do
  setsid "$hearth" builder --config "$dir/hearth.toml" --data-dir "$dir/builder$n" --ops-listen "127.0.0.1:909$((n + 2))" \
    --announce "$dir/builder$n.json" >"$dir/builder$n.log" 2>&1 </dev/null &
  children+=($!)
  wait_for "$dir/builder$n.json" $! "$dir/builder$n.log"
done

cat >&2 <<TEXT
node 1             http://127.0.0.1:8081
node 2             http://127.0.0.1:8082
metrics            http://127.0.0.1:909{1,2}/metrics (nodes), 909{3,4} (builders)
logs               $dir/*.log
admin token        $dir/admin.token

Deployed on one, called on the other:

  echo "module.exports = (context, cb) => cb(null, require('lodash').camelCase(context.query.text || 'it works'));" > hello.js
  HEARTH_URL=http://127.0.0.1:8081 HEARTH_TOKEN=\$(cat $dir/admin.token) $hearth deploy acme/main/hello hello.js --dependency 'lodash@^4'
  curl 'http://127.0.0.1:8082/run/acme/main/hello?text=another+node'

TEXT
wait -n "${children[@]}"
echo "up-aws: a process has ended by itself; see the logs" >&2
exit 1
