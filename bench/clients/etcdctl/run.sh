#!/bin/sh
# Types the commands of session.txt to a server with etcdctl, and fails if anything else comes back than stands there.
#
#   bench/clients/etcdctl/run.sh http://127.0.0.1:2379            # the server must be empty
#   RECORD=1 bench/clients/etcdctl/run.sh http://127.0.0.1:2379   # writes down what this server says: a real etcd
#
# ETCDCTL names the etcdctl to use, else the one in the search path is taken. In session.txt a line that begins with "$ "
# is a command, what follows is its output; an exit status other than 0 is written behind it. Beside etcdctl there are
#
#   follow NAME ARGUMENTS   etcdctl in the background, with a way to type to it
#   type NAME TEXT          types a line to it
#   heard NAME LINES        waits until it has printed so many lines, prints what is new
#   leave NAME              ends it, and prints what nobody has asked for
#   granted SECONDS         grants a lease, which is $lease from then on
#
# Not compared are cluster, member and term, ids of leases, how much time a lease has left, and the client's own log.
set -u
here=$(cd "$(dirname "$0")" && pwd)
endpoint=${1:?the endpoint of the server}
etcdctl=${ETCDCTL:-$(command -v etcdctl)} || { echo "etcdctl is not installed, and ETCDCTL is not set" >&2; exit 1; }
work=$(mktemp -d)
trap 'for pid in "$work"/*.pid; do [ -f "$pid" ] && kill "$(cat "$pid")" 2>/dev/null; done; rm -rf "$work"' EXIT

plain() {
    sed -u -E \
        -e '/^\{"level":/d' \
        -e 's/"(cluster_id|member_id|raft_term)":[0-9]+,?//g' \
        -e 's/,\}/}/g' \
        -e '/^"(ClusterID|MemberID|RaftTerm)" :/d' \
        -e 's/\<[0-9a-f]{12,16}\>/LEASE/g' \
        -e 's/remaining\([0-9]+s\)/remaining(TIME)/'
}

etcdctl() {
    "$etcdctl" --endpoints "$endpoint" --command-timeout 10s "$@" >"$work/output" 2>&1
    status=$?
    plain <"$work/output"
    [ $status -eq 0 ] || echo "exit status $status"
}

granted() {
    etcdctl lease grant "$1"
    lease=$(sed -n 's/^lease \([0-9a-f]*\) granted.*/\1/p' "$work/output")
}

follow() {
    name=$1
    shift
    : >"$work/$name.out"
    mkfifo "$work/$name.in" "$work/$name.raw"
    plain <"$work/$name.raw" >"$work/$name.out" &
    "$etcdctl" --endpoints "$endpoint" "$@" <"$work/$name.in" >"$work/$name.raw" 2>&1 &
    echo $! >"$work/$name.pid"
    # Each name keeps its pipe open for as long as it is followed: a closed one would end the client's input.
    sleep 1000 >"$work/$name.in" &
    echo $! >"$work/$name.input.pid"
    echo 0 >"$work/$name.lines"
}

type() {
    name=$1
    shift
    printf '%s\n' "$*" >"$work/$name.in"
}

heard() {
    told=$(cat "$work/$1.lines")
    wanted=$((told + $2))
    turns=0
    while [ "$(wc -l <"$work/$1.out")" -lt "$wanted" ] && [ $turns -lt 100 ]; do
        sleep 0.1
        turns=$((turns + 1))
    done
    head -n "$wanted" "$work/$1.out" | tail -n "+$((told + 1))"
    echo "$wanted" >"$work/$1.lines"
}

leave() {
    # What is too much has had time to come.
    sleep 0.3
    # Before the end: a client that loses its input ahead of its life complains of that.
    tail -n "+$(($(cat "$work/$1.lines") + 1))" "$work/$1.out"
    # A client that the server has refused is gone already.
    kill "$(cat "$work/$1.pid")" "$(cat "$work/$1.input.pid")" 2>/dev/null
    rm "$work/$1".*
}

while IFS= read -r line <&3; do
    case $line in
    '$ '*)
        printf '%s\n' "$line"
        eval "${line#??}"
        ;;
    '#'*) printf '%s\n' "$line" ;;
    esac
done 3<"$here/session.txt" >"$work/transcript"

if [ -n "${RECORD:-}" ]; then
    cp "$work/transcript" "$here/session.txt"
else
    diff -u --label expected --label "what came" "$here/session.txt" "$work/transcript"
fi
