#!/usr/bin/env bash
# Attacks a `hearth up` of its own with programs that others have written, and says what each found: schemathesis against the OpenAPI document,
# slowhttptest (slow heads, slow bodies, slow reading) with honest traffic beside it, h2load as a flood, and guesses at tokens by the clock.
# Everything goes to 127.0.0.1. Ends with 1 when an attack shows.
#
#   attack.sh [HEARTH] [PART...]    parts: api slow flood guess; all without any
#   ATTACK_SECONDS                  how long the API is tried (120), and each slow attack and the flood a sixth of it
set -euo pipefail
cd "$(dirname "$0")/.."

hearth=$(realpath "${1:-target/release/hearth}")
shift || true
parts=${*:-api slow flood guess}
seconds=${ATTACK_SECONDS:-120}
short=$((seconds / 6))
connections=${ATTACK_CONNECTIONS:-1000}
dir=$(mktemp -d /tmp/hearth-attack.XXXXXX)
found=()

say() { echo "attack: $*" >&2; }
found() { say "FOUND: $*"; found+=("$*"); }

scripts/setup.sh attack
ulimit -n 65536 2>/dev/null || ulimit -n "$(ulimit -Hn)"

HEARTH_DOCKER__INSTANCE=attack-$$ HEARTH_DESTROY_CONTAINERS=true HEARTH_LOG=warn HEARTH_NODE__MANAGE__WRONG_TOKENS_PER_MINUTE=100000000 \
  "$hearth" up --listen 127.0.0.1:0 --ops-listen 127.0.0.1:0 --data-dir "$dir/data" --pool-size 2 --announce "$dir/announced" >"$dir/log" 2>&1 &
pid=$!
finish() {
  kill "$pid" 2>/dev/null || true
  wait "$pid" 2>/dev/null || true
  # What was mounted into its own directories goes with it.
  awk -v at="$dir/" 'index($5, at) == 1 { print $5 }' /proc/self/mountinfo | sort -r | xargs -r -n1 umount --lazy 2>/dev/null || true
  if [ ${#found[@]} = 0 ]; then rm -rf "$dir"; else say "its files are in $dir"; fi
}
trap finish EXIT
for ((i = 0; i < 300; i++)); do [ -s "$dir/announced" ] && break; sleep 0.2; done
url=$(python3 -c 'import json, sys; print(json.load(open(sys.argv[1]))["url"])' "$dir/announced")
token=$(cat "$dir/data/admin.token")
function=$url/run/attacked/main/hello
curl --silent --fail --output /dev/null --request PUT --header "authorization: Bearer $token" --header 'content-type: application/json' \
  --header 'prefer: wait=30' --data '{"code": "export default async (r) => { await r.text(); return new Response(\"x\".repeat(100000)) }"}' \
  "$url/v1/tenants/attacked/containers/main/functions/hello"
curl --silent --fail --output /dev/null "$function"

resident_mb() { awk '/VmRSS/ { print int($2 / 1024) }' "/proc/$pid/status"; }

alive() {
  kill -0 "$pid" 2>/dev/null || found "the process ended during $1"
  curl --silent --fail --max-time 5 --output /dev/null "$function" || found "no answer after $1"
  if grep -q 'panicked at' "$dir/log"; then found "a panic during $1: $(grep -m1 'panicked at' "$dir/log")"; fi
}

api() {
  local checks=not_a_server_error,status_code_conformance,content_type_conformance,response_schema_conformance,negative_data_rejection
  checks+=,missing_required_header,unsupported_method,use_after_free,ignored_auth
  say "schemathesis for $seconds s"
  # Logs are a stream that ends when the client leaves.
  if ! ATTACK_TOKEN=$token target/attack/bin/schemathesis --config-file tests/attack/schemathesis.toml run "$url/v1/openapi.json" --checks "$checks" \
    --phases examples,coverage,fuzzing,stateful --continue-on-failure --max-time "$seconds" --request-timeout 35 \
    --exclude-path-regex '/logs$|/drain$' >"$dir/schemathesis.log" 2>&1; then
    tail -n 150 "$dir/schemathesis.log" >&2
    found 'schemathesis: see above'
  fi
  tail -n 12 "$dir/schemathesis.log" >&2
  alive schemathesis
}

# Honest traffic: 50 requests a second on one connection.
honest() { h2load --h1 --threads 1 --clients 1 --rps 50 --duration "$1" "$function" >"$dir/honest.log" 2>&1 || true; }

slow() {
  local mode before after
  say "honest traffic alone for $short s"
  honest "$short"
  grep -E 'time for request' "$dir/honest.log" >&2 || true
  for mode in -H -B -X; do
    say "slowhttptest $mode, $connections connections, beside the same"
    before=$(resident_mb)
    slowhttptest "$mode" -c "$connections" -r 500 -i 5 -l "$short" -p 5 -k 3 -u "$function" -t POST >"$dir/slow$mode.log" 2>&1 &
    local slow=$!
    honest "$short"
    wait "$slow" || true
    after=$(resident_mb)
    grep -E 'time for request' "$dir/honest.log" >&2 || true
    say "memory $before MB before, $after MB after"
    grep -q ' 0 failed, 0 errored, 0 timeout' "$dir/honest.log" || found "honest requests failed beside slowhttptest $mode: $(grep '^requests:' "$dir/honest.log")"
    if grep -q 'service available: *NO' "$dir/slow$mode.log"; then found "slowhttptest $mode says that the service was not available"; fi
    [ "$after" -lt $((before + 200)) ] || found "slowhttptest $mode cost $((after - before)) MB"
    alive "slowhttptest $mode"
  done
}

flood() {
  local before after
  say "h2load as a flood for $short s"
  before=$(resident_mb)
  h2load --h1 --threads 1 --clients 200 --duration "$short" "$function" >"$dir/flood.log" 2>&1 || true
  after=$(resident_mb)
  grep -E '^(finished|requests|status)' "$dir/flood.log" >&2
  [ "$after" -lt $((before + 200)) ] || found "a flood cost $((after - before)) MB"
  alive 'the flood'
}

# A token that is wrong at its end must not take longer to refuse than one that is wrong at its beginning.
guess() {
  say 'guessing tokens by the clock'
  python3 tests/attack/guess.py "$url" "$token" >&2 || found 'refusals of wrong tokens tell how much of a guess was right'
  alive guessing
}

for part in $parts; do "$part"; done
if [ ${#found[@]} -gt 0 ]; then
  printf 'attack: FOUND: %s\n' "${found[@]}" >&2
  exit 1
fi
say 'nothing was found'
