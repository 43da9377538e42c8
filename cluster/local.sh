#!/usr/bin/env bash
# A Ray cluster on this machine, to try things out: a head and N nodes, all on the loopback interface.
#
#   cluster/local.sh [N]        start a head and N nodes (default 1); prints the address for m3dist submit
#   cluster/local.sh add N      start N further nodes, as a growing cluster would
#   cluster/local.sh remove N   end the N nodes that came last, as a provider that takes machines back would
#   cluster/local.sh --stop     stop exactly what was started
#   cluster/local.sh --status   the recorded processes that still run
#
# PORT (8265: the dashboard and job API; the cluster takes PORT+1, PORT+2 and free ports), CPUS (of each node: 2),
# GPUS (of each node: 0), MEMORY (bytes of each object store: 200 MB) and STATE (logs and pids) may be set in the
# environment. Clusters with different PORT and STATE do not touch each other. Ray's own variables apply, such as
# RAY_AUTH_MODE and RAY_AUTH_TOKEN_PATH; a token never appears on a command line.
set -euo pipefail

PORT=${PORT:-8265} CPUS=${CPUS:-2} GPUS=${GPUS:-0} MEMORY=${MEMORY:-200000000}
STATE=${STATE:-${TMPDIR:-/tmp}/m3dist-local-$(id -u)-$PORT}
export M3DIST_LOCAL_CLUSTER=$STATE             # every process of the cluster carries this mark
export RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER=0     # what makes Ray keep 127.0.0.1 and not look for a public address
export RAY_API_SERVER_ADDRESS=http://127.0.0.1:$PORT # Ray Train asks a dashboard, which must not be another Ray's
export RAY_DISABLE_IMPORT_WARNING=1 RAY_USAGE_STATS_ENABLED=${RAY_USAGE_STATS_ENABLED:-0}
export OMP_NUM_THREADS=${OMP_NUM_THREADS:-1}   # processes that share cores run one thread each

die() { echo "local.sh: $*" >&2; exit 2; }

HERE=$(cd "$(dirname "$0")" && pwd)/$(basename "$0") # so that what is printed works from anywhere

number() { # number N: N where it is a number above zero
  case ${1:-} in *[!0-9]* | "" | 0) die "expected how many nodes, got ${1:-nothing}" ;; esac
  echo "$1"
}

running() { # numbers of the recorded nodes, the oldest first
  for file in "$STATE"/node*.pid; do
    [ -e "$file" ] || continue
    file=${file##*/node}
    echo "${file%.pid}"
  done | sort -n
}

await() { # await N: wait until the cluster counts more than N nodes; Ray gives one 30 s, which a busy machine exceeds
  local i
  until [ "$(nodes)" -gt "$1" ]; do
    [ $SECONDS -lt 280 ] || die "only $(nodes) of $(($1 + 1)) nodes came up in 280 s; see $STATE/*.log"
    for i in $(running); do
      kill -0 "$(cat "$STATE/node$i.pid")" 2>/dev/null || join "$i"
    done
    sleep 0.5
  done
}

join() { # join I: node I, with a temporary folder of its own
  launch "node$1" --address "127.0.0.1:$((PORT + 1))" --temp-dir "$STATE/r$1"
}

family() { # pids of all processes of the cluster, this script's own not among them
  local pids next pid
  if [ -d /proc/self ]; then # by the mark, since workers may outlive a killed parent
    pids=$({ grep -lzxF "M3DIST_LOCAL_CLUSTER=$STATE" /proc/[0-9]*/environ 2>/dev/null || true; } | cut -d/ -f3)
  else # the recorded ones and all their descendants
    pids=$(cat "$STATE"/*.pid 2>/dev/null || true)
    next=$pids
    while [ -n "$next" ]; do
      next=$(for pid in $next; do pgrep -P "$pid" || true; done)
      pids="$pids $next"
    done
  fi
  for pid in $pids; do
    if [ "$pid" != $$ ] && kill -0 "$pid" 2>/dev/null && ! grep -qsF local.sh "/proc/$pid/cmdline"; then echo "$pid"; fi
  done
}

# Ray replaces 127.0.0.1 by the machine's public address when several nodes are wanted, and its services then listen
# there. This start of it does not.
START='
from ray._private import ray_constants, services
from ray.scripts.scripts import main
ray_constants.ENABLE_RAY_CLUSTER = True
services.node_ip_address_from_perspective = lambda address=None: "127.0.0.1"
main()'

launch() { # launch NAME OPTIONS...: a node in a session of its own, its pid recorded
  local name=$1 own=; shift
  if command -v setsid >/dev/null; then own=setsid; fi # macOS has none
  $own python -c "$START" start --block --node-ip-address 127.0.0.1 --num-cpus "$CPUS" --num-gpus "$GPUS" \
    --object-store-memory "$MEMORY" --dashboard-agent-listen-port 0 \
    --min-worker-port 0 --max-worker-port 0 --disable-usage-stats "$@" \
    >"$STATE/$name.log" 2>&1 </dev/null &
  echo $! >"$STATE/$name.pid"
}

listens() { (: <"/dev/tcp/127.0.0.1/$1") 2>/dev/null; }

nodes() { # how many nodes the cluster counts
  python - "127.0.0.1:$((PORT + 1))" <<'PY' 2>/dev/null || echo 0
import sys
from ray._raylet import GcsClient
print(sum(node.state == 0 for node in GcsClient(address=sys.argv[1]).get_all_node_info(timeout=5).values()))
PY
}

case ${1:-1} in
  --status)
    family ;;
  --stop)
    [ -d "$STATE" ] || die "nothing to stop: no $STATE"
    pids=$(family)
    if [ -n "$pids" ]; then
      kill -TERM $(cat "$STATE"/*.pid) 2>/dev/null || true # ray start ends its node
      for _ in $(seq 75); do
        [ -n "$(family)" ] || break
        sleep 0.2
      done
      pids=$(family)
      [ -z "$pids" ] || kill -KILL $pids 2>/dev/null || true
    fi
    rm -rf "$STATE"
    echo "stopped" ;;
  add)
    n=$(number "${2:-}")
    [ -d "$STATE" ] || die "no cluster to add to: $HERE starts one"
    before=$(nodes)
    last=$(for folder in "$STATE"/r[0-9]*; do echo "${folder##*/r}"; done | sort -n | tail -n 1) # of all there ever were
    for i in $(seq "$n"); do join $((last + i)); done
    await $((before + n - 1))
    echo "$n added: a head and $((before + n - 1)) nodes run" ;;
  remove)
    n=$(number "${2:-}")
    chosen=$(running | tail -n "$n")
    [ "$(echo "$chosen" | grep -c .)" = "$n" ] || die "there are $(running | grep -c .) nodes to remove, not $n"
    for i in $chosen; do
      kill -TERM "$(cat "$STATE/node$i.pid")" 2>/dev/null || true # ray start ends its node
      rm "$STATE/node$i.pid"
    done
    echo "removed: node $(echo $chosen)" ;;
  *[!0-9]* | "")
    die "expected a number of nodes, add N, remove N, --stop or --status, got ${1:-}" ;;
  *)
    n=${1:-1}
    command -v ray >/dev/null || die "ray is not installed here: pip install 'ray[default]'"
    [ ! -d "$STATE" ] || die "$STATE is there: a cluster runs, or its stop was forgotten; $HERE --stop"
    if listens "$PORT"; then die "port $PORT is taken; choose another: PORT=8365 $HERE"; fi
    mkdir -m 700 -p "$STATE"
    trap '[ "${ready:-}" ] || { tail -n 5 "$STATE"/*.log >&2; bash "$HERE" --stop >/dev/null; }' EXIT
    launch head --head --port $((PORT + 1)) --dashboard-host 127.0.0.1 --dashboard-port "$PORT" --temp-dir "$STATE/r0" \
      --ray-client-server-port $((PORT + 2))
    until listens $((PORT + 1)) && listens "$PORT"; do
      kill -0 "$(cat "$STATE/head.pid")" 2>/dev/null || die "the head ended; see above"
      [ $SECONDS -lt 90 ] || die "the head did not come up in 90 s"
      sleep 0.5
    done
    for i in $(seq "$n"); do join "$i"; done
    await "$n"
    ready=yes
    echo "a head and $n nodes run; logs: $STATE/*.log"
    echo "address: http://127.0.0.1:$PORT    stop: PORT=$PORT STATE=$STATE $HERE --stop" ;;
esac
