#!/usr/bin/env bash
# A cluster on this machine to play with: etcd, the AWS stand-in, two routers, three nodes, a builder; each with a data folder and ports of its
# own below DIR. State of the stand-in is in memory: every start begins with nothing.
#
#   cluster.sh up DIR HEARTH      start all of it in the background, and say how to use it
#   cluster.sh down DIR           stop what `up` has started
#   cluster.sh start DIR NAME     start one process again that was killed
set -euo pipefail
cd "$(dirname "$0")/.."

READY_S=120
LEAVE_S=60
NODES=(node-a node-b node-c)
ROUTERS=(router-1 router-2)
# The first router's; the second has the next.
ROUTER_PORT=${ROUTER_PORT:-8080}
ROUTER_OPS_PORT=${ROUTER_OPS_PORT:-9090}
# The order in which they start; they stop in the other.
ALL=(etcd stand-in "${NODES[@]}" builder "${ROUTERS[@]}")

say() { echo "cluster: $*" >&2; }
fail() { say "$*"; exit 1; }

verb=${1:-} dir=${2:-}
[ -n "$dir" ] || fail 'usage: cluster.sh up DIR HEARTH | down DIR | start DIR NAME'
mkdir -p "$dir"
dir=$(realpath "$dir")

pid_of() { cat "$dir/$1/pid" 2>/dev/null || true; }

# A process id may have been given to another program since: what runs must be what was started. All is read, since `tr` would fail with
# a grep that ends first.
lives() {
  local pid
  pid=$(pid_of "$1")
  [ -n "$pid" ] && [ -e "/proc/$pid" ] && { tr "\\0" "\\n" <"/proc/$pid/environ"; } 2>/dev/null | grep -xF "CLUSTER_MEMBER=$dir/$1" >/dev/null
}

free_ports() { # as many as are asked for, at once, so that they differ
  python3 -c 'import socket, sys
held = [socket.create_server(("127.0.0.1", 0)) for _ in range(int(sys.argv[1]))]
print(*[s.getsockname()[1] for s in held])' "$1"
}

# What a role is started with was written down by `up`, so that `start` can do it again.
start() {
  local name=$1
  lives "$name" && return
  rm -f "$dir/$name/announced.json"
  local command=()
  mapfile -t command <"$dir/$name/command"
  # What the stand-in knew is gone with it, so that no container is worth being kept for a next start.
  CLUSTER_MEMBER=$dir/$name HEARTH_DESTROY_CONTAINERS=true HEARTH_DOCKER__ACCEPT_UNSAFE=true AWS_ACCESS_KEY_ID=test AWS_SECRET_ACCESS_KEY=test AWS_REGION=us-east-1 \
    setsid "${command[@]}" >>"$dir/$name/log" 2>&1 </dev/null &
  echo $! >"$dir/$name/pid"
}

wait_for() { # NAME FILE
  local waited
  for ((waited = 0; waited < READY_S * 10; waited++)); do
    [ -s "$2" ] && return
    # Asked twice: a process that becomes another program has no environment for a moment.
    if ! lives "$1" && sleep 0.2 && ! lives "$1"; then
      tail -n 20 "$dir/$1/log" >&2
      fail "$1 ended; its last words are above ($dir/$1/log)"
    fi
    sleep 0.1
  done
  tail -n 20 "$dir/$1/log" >&2
  fail "$1 does not serve after $READY_S s; its last words are above ($dir/$1/log)"
}

# NAME COMMAND...
define() {
  local name=$1
  shift
  mkdir -p "$dir/$name"
  printf '%s\n' "$@" >"$dir/$name/command"
}

field() { python3 -c 'import json, sys; print(json.load(open(sys.argv[1]))[sys.argv[2]])' "$dir/$1/announced.json" "$2"; }

configure() { # NAME ROLE, the rest of the configuration on standard input
  local name=$1 role=$2
  define "$name" "$hearth" "$role" --config "$dir/$name/hearth.toml" --announce "$dir/$name/announced.json"
  {
    printf 'data_dir = "%s"\n' "$dir/$name/data"
    cat
    printf '[placement]\nbackend = "etcd"\nendpoints = ["http://127.0.0.1:%s"]\n' "$etcd_port"
    [ "$role" = router ] || cat "$dir/stores.toml"
  } >"$dir/$name/hearth.toml"
}

stores() {
  local at
  at=$(printf 'region = "us-east-1"\nendpoint_url = "%s"' "$1")
  cat <<END
[store.records]
backend = "dynamodb"
table = "hearth"
$at
[store.artifacts]
backend = "s3"
bucket = "hearth"
$at
[store.queue]
backend = "sqs"
queue = "hearth-builds"
dead_letter_queue = "hearth-builds-dead"
$at
[store.keys]
backend = "file"
path = "$dir/secrets.key"
END
}

up() {
  hearth=$(realpath "$1")
  local name n ports
  for name in "${ALL[@]}"; do
    lives "$name" && fail "$name runs already: \`make down-cluster\` stops it"
  done
  rm -rf "${dir:?}/etcd" "$dir/stand-in" "$dir/secrets.key"
  read -ra ports <<<"$(free_ports 2)"
  etcd_port=${ports[0]}
  local client=http://127.0.0.1:${ports[0]} peer=http://127.0.0.1:${ports[1]}
  define etcd etcd --name etcd --data-dir "$dir/etcd/data" --initial-cluster "etcd=$peer" --logger zap \
    --listen-client-urls "$client" --advertise-client-urls "$client" --listen-peer-urls "$peer" --initial-advertise-peer-urls "$peer"
  define stand-in scripts/aws-stand-in.sh --announce "$dir/stand-in/url"
  start etcd
  start stand-in
  wait_for stand-in "$dir/stand-in/url"
  stores "$(cat "$dir/stand-in/url")" >"$dir/stores.toml"
  rm -f "$dir/admin.token"
  AWS_ACCESS_KEY_ID=test AWS_SECRET_ACCESS_KEY=test AWS_REGION=us-east-1 \
    "$hearth" admin init-aws --config "$dir/stores.toml" --token-file "$dir/admin.token" 2>/dev/null ||
    fail 'table, bucket and queues cannot be made'

  for n in "${!NODES[@]}"; do
    configure "${NODES[n]}" node <<END
[node]
listen = "127.0.0.1:0"
ops_listen = "127.0.0.1:0"
[node.proxy]
trust_router = true
[node.handler]
pool_size = 2
[cluster]
node_name = "${NODES[n]}"
zone = "zone-$n"
END
  done
  configure builder builder <<END
[builder]
ops_listen = "127.0.0.1:0"
END
  for n in "${!ROUTERS[@]}"; do
    configure "${ROUTERS[n]}" router <<END
[router]
listen = "127.0.0.1:$((ROUTER_PORT + n))"
ops_listen = "127.0.0.1:$((ROUTER_OPS_PORT + n))"
END
  done
  for name in "${NODES[@]}" builder "${ROUTERS[@]}"; do start "$name"; done
  for name in "${NODES[@]}" builder "${ROUTERS[@]}"; do wait_for "$name" "$dir/$name/announced.json"; done
  tell
}

tell() {
  local name url
  url=$(field "${ROUTERS[0]}" url)
  {
    echo
    for name in "${ROUTERS[@]}" "${NODES[@]}"; do
      printf '%-10s %s  (process %s, log %s)\n' "$name" "$(field "$name" url)" "$(pid_of "$name")" "$dir/$name/log"
    done
    printf '%-10s %s\n\n' 'token' "$dir/admin.token"
    echo 'A first function, and what the cluster does:'
    echo
    echo "  export HEARTH_URL=$url HEARTH_TOKEN=\$(cat $dir/admin.token)"
    echo "  echo 'module.exports = (context, cb) => cb(null, { hello: context.query.name });' > hello.js"
    echo "  $hearth deploy acme/main/hello hello.js"
    echo "  curl -i '$url/run/acme/main/hello?name=world'      # hearth-node names the node"
    echo "  $hearth status"
    echo
    echo 'Kill a node and call again; then start it; or let one leave without losing a request:'
    echo
    echo "  kill -9 \$(cat $dir/node-a/pid)"
    echo "  scripts/cluster.sh start $dir node-a"
    echo "  $hearth drain --node node-b"
    echo
    echo '`make down-cluster` stops all of it.'
  } >&2
}

down() {
  local at name waited
  for ((at = ${#ALL[@]} - 1; at >= 0; at--)); do
    name=${ALL[at]}
    lives "$name" || continue
    kill -TERM "$(pid_of "$name")"
    # One that a fault has stopped hears it only when it goes on.
    kill -CONT "$(pid_of "$name")"
    # All of a kind leave side by side: the routers first, then what they sent requests to.
    case $name in router-1 | node-a | builder | etcd | stand-in) ;; *) continue ;; esac
    for ((waited = 0; waited < LEAVE_S * 10; waited++)); do
      lives "$name" || break
      sleep 0.1
    done
  done
  for name in "${ALL[@]}"; do
    ! lives "$name" || fail "$name (process $(pid_of "$name")) has not left"
  done
  say 'stopped'
}

case $verb in
  up) up "${3:?the hearth binary}" ;;
  down) down ;;
  start)
    start "${3:?which}"
    wait_for "$3" "$dir/$3/announced.json"
    say "$3 serves (process $(pid_of "$3"))"
    ;;
  *) fail 'usage: cluster.sh up DIR HEARTH | down DIR | start DIR NAME' ;;
esac
