#!/usr/bin/env bash
# The fifteen rows for etcd and tarsier, one server at a time: rows.sh DIRECTORY
set -euo pipefail
[[ $# == 1 ]] || { sed -n '2s/^# //p' "$0" >&2; exit 2; }
directory=$1
mkdir -p "$directory"
# Seconds without anything to do before memory is read: tarsier gives a silent connection's buffers back after 8.
idle=10

# </dev/null: the load runs in the background and must not read the terminal.
on_server() { gcloud compute ssh tarsier-server --command="$1" < /dev/null; }
on_load() { gcloud compute ssh tarsier-load --command="$1" < /dev/null; }

# Prints "VmRSS in kB, the greatest memory of the cgroup in bytes, CPU in nanoseconds" or "killed".
usage() {
    on_server "
        process=\$(systemctl show --value --property=MainPID $1)
        if [[ \$process == 0 ]]; then echo killed; exit; fi
        resident=\$(awk '/^VmRSS/ { print \$2 }' /proc/\$process/status)
        group=/sys/fs/cgroup\$(systemctl show --value --property=ControlGroup $1)
        peak=\$(cat \$group/memory.peak 2>/dev/null || echo unknown)
        echo \$resident, \$peak, \$(systemctl show --value --property=CPUUsageNSec $1)"
}

row() {
    local unit=$1 clients=$2 streams=$3 watchings=$4 said load
    said=$directory/$unit-$clients-$streams-$watchings.txt
    on_server "sudo systemctl stop etcd tarsier; sudo rm -rf /var/lib/private/$unit; sudo systemctl reset-failed $unit 2>/dev/null
               sudo systemctl start $unit"
    # Memory is read while `hold` is idle, so it idles for longer than reading takes.
    on_load "tarsier-bench hold --endpoint tarsier-server:2379 --connections $clients --streams $streams \
             --watchings $watchings --idle $((idle + 30)) --puts 1000 --threads 2" > "$said" 2>&1 &
    load=$!
    # The client ends by itself when the server is gone or nothing moves for a minute.
    until grep -q '^created ' "$said" || ! kill -0 "$load" 2>/dev/null; do
        sleep 1
    done
    sleep "$idle"
    local figures outcome=proven
    figures=$(usage "$unit")
    wait "$load" || outcome='not proven'
    echo "| $unit | $clients x $streams x $watchings | $figures | $outcome |" | tee -a "$directory/rows.md"
}

{
    echo "| server | clients x streams x watchings | VmRSS in kB, cgroup peak in bytes, CPU in ns | delivery |"
    echo '| --- | --- | --- | --- |'
} > "$directory/rows.md"
for unit in etcd tarsier; do
    for shape in '1 1' '10 1' '50 1' '50 10' '50 100'; do
        for clients in 1000 2000 5000; do
            row "$unit" "$clients" "${shape% *}" "${shape#* }"
        done
    done
done
