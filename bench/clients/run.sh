#!/bin/sh
# Runs clients that nobody here wrote against a server, each on a server of its own with an empty directory, and prints a
# line for each of them.
#
#   bench/clients/run.sh                          # builds tarsier (release) and takes it
#   bench/clients/run.sh --server PATH            # takes this tarsier
#   bench/clients/run.sh --against /opt/etcd/etcd # takes a real etcd: a check of the programs themselves
#   ... --only python,java                        # some of: etcdctl rust go python node java
#   ... --puts 5000                               # fewer puts than the 100,000 of the Go client
#
# It needs cargo, go, python3, node, npm, java and mvn (toolchains.sh installs what is missing of these on Debian), the
# network once, and for etcdctl either ETCDCTL, an etcdctl in the search path, or again the network once: then
# real-etcd/build.sh builds it. What is missing is a failure, not a skip. Nothing is written outside of this folder but to
# the caches of the package tools.
#
# A program asks for a restart of its server by the line "restart TERM" or "restart KILL" on its standard output, and reads
# "serving" when the server is back on its data directory. When it prints "verified" the server is stopped for good.
set -u
here=$(cd "$(dirname "$0")" && pwd)
root=$(cd "$here/../.." && pwd)
server='' kind=tarsier puts=100000 only=etcdctl,rust,go,python,node,java
port=${PORT:-23590}
while [ $# -gt 0 ]; do
    case $1 in
    --server) server=$2 kind=tarsier && shift 2 ;;
    --against) server=$2 kind=etcd && shift 2 ;;
    --only) only=$2 && shift 2 ;;
    --puts) puts=$2 && shift 2 ;;
    *) echo "unknown argument $1; see the head of $0" >&2 && exit 2 ;;
    esac
done
wanted() { case ,$only, in *,"$1",*) ;; *) return 1 ;; esac; }

# Seconds that one program may take.
limit=300
work=$(mktemp -d)
pid='' program=''
failures=0
stop() {
    [ -z "$pid" ] || { kill "$pid" 2>/dev/null; wait "$pid" 2>/dev/null; }
    pid=''
}
trap '[ -z "$program" ] || kill "$program" 2>/dev/null; stop; rm -rf "$work"' EXIT
trap 'exit 1' INT TERM

endpoint=http://127.0.0.1:$port
serve() {
    set -- "$server" --listen-client-urls "$endpoint" --advertise-client-urls "$endpoint" --data-dir "$work/data"
    if [ $kind = etcd ]; then
        peer=http://127.0.0.1:$((port + 1))
        set -- "$@" --listen-peer-urls $peer --initial-advertise-peer-urls $peer --initial-cluster default=$peer
    fi
    "$@" >>"$work/server.log" 2>&1 &
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

# Serves from an empty directory.
start() {
    rm -rf "$work/data"
    : >"$work/server.log"
    serve
}

restart() {
    kill -s "$1" $pid
    wait $pid 2>/dev/null
    ended=$?
    # A real etcd ends itself by the signal that it was sent, tarsier with 0.
    case $1,$ended in
    KILL,137 | TERM,0 | TERM,143) ;;
    *)
        echo "clients: the server ended with $ended on SIG$1" >&2
        tail -n 20 "$work/server.log" >&2
        exit 1
        ;;
    esac
    serve
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

# Runs the program that follows its name on a new server, and does what it asks for.
run() {
    name=$1
    shift
    start
    rm -f "$work/said" "$work/answers"
    mkfifo "$work/said" "$work/answers"
    # Open in both directions: opening waits for nobody, and writing finds a reader though the program has ended.
    exec 7<>"$work/answers"
    timeout --kill-after 10 $limit "$@" <"$work/answers" >"$work/said" 2>"$work/output" 7>&- &
    program=$!
    while IFS= read -r line; do
        case $line in
        'restart '*) restart "${line#restart }" && echo serving >&7 ;;
        verified) stop ;;
        *) printf '%s\n' "$line" >>"$work/output" ;;
        esac
    done <"$work/said"
    wait $program
    told "$name" $?
    program=''
    exec 7>&-
    stop
}

must() {
    "$@" >"$work/build" 2>&1 || { cat "$work/build" >&2; echo "clients: failed: $*" >&2; exit 1; }
}

# Runs a command unless it has been run since its inputs changed: $1 keeps them, $2 is the file that lists them.
once() {
    stamp=$1 inputs=$2
    shift 2
    cmp -s "$inputs" "$stamp" && return
    must "$@"
    cp "$inputs" "$stamp"
}

"$here/toolchains.sh" --check "$only" || exit 1
etcdctl=${ETCDCTL:-$(command -v etcdctl || echo "$here/real-etcd/bin/etcdctl")}
[ -x "$etcdctl" ] || must "$here/real-etcd/build.sh"
if [ -z "$server" ]; then
    must cargo build --release --package tarsier --bin tarsier --manifest-path "$root/Cargo.toml"
    server=${CARGO_TARGET_DIR:-$root/target}/release/tarsier
fi
[ -x "$server" ] || { echo "clients: $server is no program" >&2; exit 1; }

if wanted etcdctl; then
    start
    ETCDCTL=$etcdctl "$here/etcdctl/run.sh" "$endpoint" >"$work/output" 2>&1
    told "etcdctl: a session of $(grep -c '^\$ etcdctl' "$here/etcdctl/session.txt") commands" $?
    stop
fi

if wanted rust; then
    # etcd-client compiles its .proto files with protoc; the one of this folder is enough for it.
    must cargo build --manifest-path "$here/rust/Cargo.toml" --package protoc
    rust_target=${CARGO_TARGET_DIR:-$here/rust/target}
    must env PROTOC="$rust_target/debug/protoc" cargo build --manifest-path "$here/rust/Cargo.toml"
    run "Rust etcd-client: a day" "$rust_target/debug/rust-client" "$endpoint"
fi

if wanted go; then
    (cd "$here/go" && must go build -o "$work/watchday" .) || exit 1
    run "Go clientv3: a day with 100 watches on one stream and $puts puts" \
        "$work/watchday" -endpoint "$endpoint" -n "$puts"
    run "Go clientv3: 100 watches on one stream through ten restarts, five of them kill -9" \
        "$work/watchday" -endpoint "$endpoint" -writers 10 -restarts 10
fi

if wanted python; then
    packages=$here/python/.venv
    [ -x "$packages/bin/python" ] || must python3 -m venv "$packages"
    once "$packages/installed" "$here/python/requirements.txt" \
        "$packages/bin/pip" install --quiet --no-deps --requirement "$here/python/requirements.txt"
    for library in pyetcd aetcd; do
        run "Python $library: a day" "$packages/bin/python" "$here/python/day_$library.py" 127.0.0.1 "$port"
    done
fi

if wanted node; then
    once "$here/node/node_modules/.installed" "$here/node/package-lock.json" npm ci --prefix "$here/node"
    run "Node etcd3: a day" node "$here/node/day.mjs" "127.0.0.1:$port"
fi

if wanted java; then
    built=$here/java/target
    if [ ! -e "$built/whole" ] || [ -n "$(find "$here/java/pom.xml" "$here/java/src" -newer "$built/whole")" ]; then
        rm -rf "$built"
        must mvn --batch-mode --quiet --file "$here/java/pom.xml" package
        touch "$built/whole"
    fi
    run "Java jetcd: a day" java -cp "$built/classes:$built/lib/*" tarsier.test.Day "$endpoint"
fi

exit $((failures > 0))
