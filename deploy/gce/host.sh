#!/usr/bin/env bash
# Prepares this host, as root: `host.sh server` or `host.sh load`. What it installs lies in the directory it is started in.
set -euo pipefail

common() {
    cat > /etc/sysctl.d/90-tarsier.conf <<-END
	# Thousands of clients connect at once.
	net.core.somaxconn = 65535
	net.ipv4.tcp_max_syn_backlog = 65535
	# One client address reaches one server port through at most so many ports of its own.
	net.ipv4.ip_local_port_range = 1024 65535
	fs.file-max = 4194304
	fs.nr_open = 4194304
	END
    sysctl --system > /dev/null
    # For the load, which is started from a login.
    printf '* %s nofile 1048576\n' soft hard > /etc/security/limits.d/90-tarsier.conf
}

server() {
    # Without swap, memory that does not fit ends in a kill and not in an hour of paging.
    swapoff --all
    install -m 755 tarsier etcd /usr/local/bin/
    install -m 644 tarsier.service etcd.service /etc/systemd/system/
    mkdir -p /etc/systemd/system/tarsier.service.d
    cat > /etc/systemd/system/tarsier.service.d/90-rows.conf <<-'END'
	[Service]
	# A shard for each of the two cores, pinned there.
	CPUAffinity=0 1
	Environment=TARSIER_LISTEN_CLIENT_URLS=http://0.0.0.0:2379
	# A killed server is the result of its row.
	Restart=no
	END
    systemctl daemon-reload
}

common
case ${1-} in
    server) server ;;
    load) install -m 755 tarsier-bench /usr/local/bin/ ;;
    *) echo 'host.sh server | load' >&2; exit 2 ;;
esac
