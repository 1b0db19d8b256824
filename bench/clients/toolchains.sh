#!/bin/sh
# Sees to the toolchains that the clients are built with.
#
#   bench/clients/toolchains.sh                        # installs what is missing, with apt-get, as root
#   bench/clients/toolchains.sh --check rust,python    # says what does not run for these, and fails
#
# Rust and Go are asked for but not installed: Debian's are too old for what is built here.
set -u
check=false languages=rust,go,python,node,java
[ "${1:-}" = --check ] && { check=true; languages=$2; }
wanted() { case ,$languages, in *,"$1",*) ;; *) return 1 ;; esac; }

missing='' packages=''
# $1 is the command that is tried, $2 the package that brings it, or nothing.
need() {
    sh -c "$1" >/dev/null 2>&1 && return
    missing="$missing${missing:+, }$1"
    packages="$packages ${2:-none-for-${1%% *}}"
}
look() {
    missing='' packages=''
    wanted rust && need 'cargo --version'
    # etcdctl is built with it too, unless there is one.
    wanted go && need 'go version'
    if wanted python; then
        need 'python3 --version' python3
        # Debian ships the module that fills a new environment apart.
        need 'python3 -c "import ensurepip, venv"' python3-venv
    fi
    wanted node && need 'node --version' nodejs && need 'npm --version' npm
    wanted java && need 'javac -version' default-jdk-headless && need 'mvn --version' maven
    [ -z "$missing" ]
}

look && exit 0
if $check; then
    echo "clients: these do not run: $missing; bench/clients/toolchains.sh installs what Debian has" >&2
    exit 1
fi
case $packages in *none-for-*) echo "clients: these do not run, and Debian does not bring all of them: $missing" >&2 && exit 1 ;; esac
echo "clients: apt-get install$packages"
export DEBIAN_FRONTEND=noninteractive
# shellcheck disable=SC2086 # The packages are words.
apt-get -qq update && apt-get -qq install --yes --no-install-recommends $packages >/dev/null || exit 1
look || { echo "clients: these still do not run: $missing" >&2; exit 1; }
