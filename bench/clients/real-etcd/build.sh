#!/bin/sh
# Builds etcd, etcdctl and etcdutl 3.7.3 from their Go modules into a directory (./bin when none is given):
#
#   bench/clients/real-etcd/build.sh /opt/etcd
#
# What is built already stays. etcd is what tarsier is compared with, etcdctl is one of the clients.
set -eu
here=$(cd "$(dirname "$0")" && pwd)
target=${1:-$here/bin}
command -v go >/dev/null || { echo "real-etcd: go is not installed" >&2; exit 1; }
mkdir -p "$target"
target=$(cd "$target" && pwd)
cd "$here"
build() {
    [ -x "$target/$1" ] || CGO_ENABLED=0 go build -trimpath -buildvcs=false -o "$target/$1" "$2"
    "$target/$1" "$3" | head -n 1
}
build etcd go.etcd.io/etcd/server/v3 --version
build etcdctl go.etcd.io/etcd/etcdctl/v3 version
build etcdutl go.etcd.io/etcd/etcdutl/v3 version
