#!/bin/sh
# Runs clients that nobody here wrote against a server, each on a server of its own with an empty directory, and prints a
# line for each of them.
#
#   bench/clients/run.sh                          # builds tarsier (release) and takes it
#   bench/clients/run.sh --server PATH            # takes this tarsier
#   bench/clients/run.sh --against /opt/etcd/etcd # takes a real etcd: a check of the programs themselves
#   ... --puts 5000                               # fewer puts than the 100,000 of the Go client
#
# It needs cargo, go, and for etcdctl either ETCDCTL, an etcdctl in the search path, or the network once: then
# real-etcd/build.sh builds it. What is missing is a failure, not a skip.
set -u
here=$(cd "$(dirname "$0")" && pwd)
root=$(cd "$here/../.." && pwd)
server='' kind=tarsier puts=100000
port=${PORT:-23590}
while [ $# -gt 0 ]; do
    case $1 in
    --server) server=$2 kind=tarsier && shift 2 ;;
    --against) server=$2 kind=etcd && shift 2 ;;
    --puts) puts=$2 && shift 2 ;;
    *) echo "unknown argument $1; see the head of $0" >&2 && exit 2 ;;
    esac
done
for tool in cargo go; do
    command -v $tool >/dev/null || { echo "clients: $tool is not installed" >&2; exit 1; }
done
work=$(mktemp -d)
pid=''
failures=0
stop() {
    [ -z "$pid" ] || { kill "$pid" 2>/dev/null; wait "$pid" 2>/dev/null; }
    pid=''
}
trap 'stop; rm -rf "$work"' EXIT
trap 'exit 1' INT TERM

endpoint=http://127.0.0.1:$port
# Runs a command line on an empty directory: $1 and what follows, with the command of the server behind it.
with_server() {
    rm -rf "$work/data"
    set -- "$@" "$server" --listen-client-urls "$endpoint" --advertise-client-urls "$endpoint" --data-dir "$work/data"
    if [ $kind = etcd ]; then
        peer=http://127.0.0.1:$((port + 1))
        set -- "$@" --listen-peer-urls $peer --initial-advertise-peer-urls $peer --initial-cluster default=$peer
    fi
    exec "$@"
}

start() {
    (with_server) >"$work/server.log" 2>&1 &
    pid=$!
    turns=0
    until "$etcdctl" --endpoints "$endpoint" get ready >/dev/null 2>&1; do
        turns=$((turns + 1))
        if [ $turns -gt 100 ] || ! kill -0 $pid 2>/dev/null; then
            echo "clients: $server does not start" >&2
            tail -n 20 "$work/server.log" >&2
            exit 1
        fi
        sleep 0.1
    done
}

# Tells how a program ended; its output is shown when it failed.
told() {
    if [ "$2" -eq 0 ]; then
        echo "ok      $1"
    else
        echo "FAILED  $1 (exit status $2)"
        tail -n 60 "$work/output"
        tail -n 20 "$work/server.log"
        failures=$((failures + 1))
    fi
}

must() {
    "$@" >"$work/output" 2>&1 || { cat "$work/output" >&2; echo "clients: failed: $*" >&2; exit 1; }
}

etcdctl=${ETCDCTL:-$(command -v etcdctl || echo "$here/real-etcd/bin/etcdctl")}
[ -x "$etcdctl" ] || must "$here/real-etcd/build.sh"
if [ -z "$server" ]; then
    must cargo build --release --package tarsier --bin tarsier --manifest-path "$root/Cargo.toml"
    server=${CARGO_TARGET_DIR:-$root/target}/release/tarsier
fi
[ -x "$server" ] || { echo "clients: $server is no program" >&2; exit 1; }
(cd "$here/go" && must go build -o "$work/watchday" .) || exit 1
# etcd-client compiles its .proto files with protoc; the one of this folder is enough for it.
must cargo build --manifest-path "$here/rust/Cargo.toml" --package protoc
rust_target=${CARGO_TARGET_DIR:-$here/rust/target}
must env PROTOC="$rust_target/debug/protoc" cargo build --manifest-path "$here/rust/Cargo.toml"

start
ETCDCTL=$etcdctl "$here/etcdctl/run.sh" "$endpoint" >"$work/output" 2>&1
told "etcdctl: a session of $(grep -c '^\$ etcdctl' "$here/etcdctl/session.txt") commands" $?
stop

start
"$rust_target/debug/rust-client" "$endpoint" >"$work/output" 2>&1
told "Rust client: a day over KV and Watch" $?
stop

start
"$work/watchday" -endpoint "$endpoint" -n "$puts" >"$work/output" 2>&1 &
watchday=$!
# It says when it has verified everything, and then leaves because the server does.
while kill -0 $watchday 2>/dev/null && ! grep -q '^verified$' "$work/output"; do sleep 0.2; done
stop
wait $watchday
told "Go client: 100 watches on one stream saw $puts puts, and ended with the server" $?

: >"$work/server.log"
(with_server "$work/watchday" -endpoint "$endpoint" -writers 10 -restarts 10 -log "$work/server.log" --) \
    >"$work/output" 2>&1 &
pid=$!
wait $pid
ended=$?
pid=''
told "Go client: 100 watches on one stream lived through ten restarts, five of them kill -9" $ended

exit $((failures > 0))
