#!/usr/bin/env bash
# Makes, fills and deletes the two hosts: `tarsier-server`, as on etcd's page, and `tarsier-load`, with room for the client.
#
#   hosts.sh create | install TARSIER TARSIER_BENCH ETCD | delete
set -euo pipefail
here=$(cd "$(dirname "$0")" && pwd)

create() {
    local image=(--image-family=debian-12 --image-project=debian-cloud --boot-disk-type=pd-ssd --boot-disk-size=50GB)
    gcloud compute instances create tarsier-server --machine-type=n1-standard-2 "${image[@]}"
    # Four cores: the load must not be what is measured. Its 15 GB hold the client of 25 million watches.
    gcloud compute instances create tarsier-load --machine-type=n1-standard-4 "${image[@]}"
}

install_all() {
    local tarsier=$1 bench=$2 etcd=$3
    gcloud compute scp "$here/host.sh" "$here/etcd.service" "$here/../tarsier.service" "$tarsier" "$etcd" tarsier-server:
    gcloud compute scp "$here/host.sh" "$bench" tarsier-load:
    gcloud compute ssh tarsier-server --command='sudo bash host.sh server'
    gcloud compute ssh tarsier-load --command='sudo bash host.sh load'
}

case "${1-} $#" in
    'create 1') create ;;
    'install 4') install_all "$2" "$3" "$4" ;;
    'delete 1') gcloud compute instances delete tarsier-server tarsier-load ;;
    *) sed -n '2,4s/^# \{0,1\}//p' "$0" >&2; exit 2 ;;
esac
