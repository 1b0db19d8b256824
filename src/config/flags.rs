//! Every flag there is, in one table: those tarsier acts on, and the rest of etcd 3.7's, so that a unit file or a test
//! harness made for a single etcd starts tarsier unchanged.
//!
//! A flag of etcd that promises nothing a single server would miss is accepted with a warning. One that promises
//! something an operator relies on and that is not there (encryption, users, other members) ends the start. Either
//! kind given with etcd's own default asks for nothing and passes without a word.

/// How a flag is written on the command line.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Shape {
    /// `--flag value` or `--flag=value`.
    Value,
    /// `--flag` or `--flag=false`: as in Go, a switch never takes the next argument.
    Switch,
}

/// What tarsier does with a flag.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Meaning {
    /// It is acted on.
    Supported,
    /// It is accepted, has no effect, and a warning says why.
    Harmless(&'static str),
    /// Any value but the default ends the start, for this reason.
    Refused(&'static str),
}

/// One row of the table.
#[derive(Clone, Copy, Debug)]
pub struct Flag {
    pub name: &'static str,
    pub shape: Shape,
    pub meaning: Meaning,
    /// The value of a flag that is not given: tarsier's where it is supported, else etcd's. Empty: none, or computed.
    pub default: &'static str,
    /// One sentence for `--help`; only supported flags have one.
    pub help: &'static str,
}

/// The row of a flag.
pub fn find(name: &str) -> Option<&'static Flag> {
    FLAGS.iter().find(|flag| flag.name == name)
}

const fn supported(name: &'static str, default: &'static str, help: &'static str) -> Flag {
    Flag { name, shape: Shape::Value, meaning: Meaning::Supported, default, help }
}

const fn harmless(name: &'static str, default: &'static str, reason: &'static str) -> Flag {
    Flag { name, shape: Shape::Value, meaning: Meaning::Harmless(reason), default, help: "" }
}

const fn refused(name: &'static str, default: &'static str, reason: &'static str) -> Flag {
    Flag { name, shape: Shape::Value, meaning: Meaning::Refused(reason), default, help: "" }
}

const fn switch(flag: Flag) -> Flag {
    Flag { shape: Shape::Switch, ..flag }
}

pub const PEER_URLS_DEFAULT: &str = "http://localhost:2380";
const NO_PEERS: &str = "this is a single server, there are no peers";
const NO_RAFT: &str = "this is a single server, there is no raft";
const OWN_LOG: &str = "the log is as long as the checkpoint needs it, and its old files are used again";
const OWN_FILES: &str = "the files are of another kind than etcd's database";
const NO_GATEWAY: &str = "the JSON gateway is not built yet";
const NO_TRACING: &str = "distributed tracing is not built yet, no spans are sent";
const NO_ROTATION: &str = "logs go to stderr or stdout only, so there is no file to rotate";
const NO_TLS: &str = "TLS is not built yet, only http is served";
const NO_TLS_HARMLESS: &str = "TLS is not built yet, so there is nothing it would apply to";
const NO_AUTH: &str = "users and tokens are not built yet, so there is nothing it would apply to";
const NO_DISCOVERY: &str = "this is a single server, there is no cluster to discover";
const NO_CHECKS: &str = "there are no other members to compare data with";
const OWN_COMPACTION: &str = "compaction runs in bounded steps of its own";

/// The table. Supported flags first, in the order `--help` prints them.
pub const FLAGS: &[Flag] = &[
    supported("name", "default", "Human-readable name of this server."),
    supported(
        "listen-client-urls",
        "http://localhost:2379",
        "Comma-separated URLs to serve clients on: http, an IP address or localhost (both address families), a port.",
    ),
    supported(
        "advertise-client-urls",
        "",
        "Comma-separated URLs that clients are told. Default: those of --listen-client-urls.",
    ),
    supported(
        "listen-metrics-urls",
        "",
        "Comma-separated URLs to serve /metrics, /health, /livez and /readyz on, beside the URLs for clients.",
    ),
    supported("data-dir", "default.tarsier", "Directory of the log and the checkpoint. It is made if it is missing."),
    supported(
        "wal-dir",
        "",
        "Directory of the log alone, on a disk of its own for example. Default: wal in --data-dir.",
    ),
    switch(supported(
        "unsafe-no-fsync",
        "false",
        "Answer before the disk has confirmed: a power cut loses what was acknowledged, and may leave a directory that does \
         not start.",
    )),
    supported(
        "quota-backend-bytes",
        "0",
        "Bytes the store may hold before writes are refused with an alarm; 0 means 2147483648 (2 GiB), a negative number no \
         quota.",
    ),
    supported(
        "auto-compaction-mode",
        "periodic",
        "What --auto-compaction-retention counts: periodic (time) or revision (revisions).",
    ),
    supported(
        "auto-compaction-retention",
        "0",
        "History that is kept: hours or a duration such as 30m when periodic, else a number of revisions; 0 compacts never.",
    ),
    supported("max-request-bytes", "1572864", "Bytes of the largest request message accepted from a client."),
    supported("max-txn-ops", "128", "Operations permitted in one transaction."),
    supported(
        "max-concurrent-streams",
        "16384",
        "HTTP/2 streams (calls and watch streams) that one connection may have open at a time. etcd's default is 4294967295.",
    ),
    supported(
        "grpc-keepalive-min-time",
        "5s",
        "Least duration between pings of a client; one that pings more often is told to go. 0 means 5m.",
    ),
    supported(
        "grpc-keepalive-interval",
        "2h",
        "Duration of silence after which the server pings a client, at least 1s; 0 disables the pings.",
    ),
    supported(
        "grpc-keepalive-timeout",
        "20s",
        "Duration to wait for the answer to a ping before the connection is closed; 0 disables the pings.",
    ),
    supported(
        "watch-progress-notify-interval",
        "10m",
        "Duration between progress notifications to idle watches that asked for them, at least 100ms; 0 means 10m.",
    ),
    supported(
        "max-connections",
        "0",
        "Connections the server may have open at a time; 0 means as many as there are descriptors for.",
    ),
    supported(
        "max-connections-per-address",
        "0",
        "Connections one IPv4 address, or one /64 of IPv6, may have open at a time; 0 means no limit.",
    ),
    supported("max-watches-per-stream", "0", "Watches of one watch stream at a time; 0 means no limit."),
    supported(
        "max-watches-per-connection",
        "0",
        "Watches of all watch streams of one connection at a time; 0 means no limit.",
    ),
    supported(
        "stalled-stream-timeout",
        "10m",
        "Duration after which a stream that takes nothing of what is due to it is ended with UNAVAILABLE; 0 means never.",
    ),
    supported(
        "scrub-interval",
        "24h",
        "Duration between two readings of the whole checkpoint, in search of rows that the disk has damaged; 0 means never.",
    ),
    supported(
        "feature-gates",
        "",
        "Comma-separated features of etcd's by name: LeaseCheckpoint=true writes down what leases have left, and a restart \
         gives them no more than that.",
    ),
    supported(
        "lease-checkpoint-interval",
        "5m",
        "With LeaseCheckpoint: what a lease has left is written down once in so long, if that is more; at least 1s.",
    ),
    supported(
        "idle-buffers",
        "give-back",
        "Buffers of connections that are silent for seconds: give-back returns their memory, keep does not.",
    ),
    supported(
        "shards",
        "0",
        "Event-loop threads, at most 256; 0 means one for each core that affinity mask and CPU quota leave to the process.",
    ),
    supported(
        "history-limit",
        "67108864",
        "Bytes of recent changes kept in memory for watches that fall behind, at least 1048576 (1 MiB).",
    ),
    supported("metrics", "basic", "Detail of /metrics: basic, or extensive, which adds how long calls took by method."),
    supported(
        "warning-apply-duration",
        "100ms",
        "Duration after which a request is logged as slow: apply request took too long.",
    ),
    supported(
        "warning-unary-request-duration",
        "300ms",
        "The same for the line that etcd writes of a slow call; only the smaller of the two matters. 0 means 300ms.",
    ),
    supported(
        "memory-limit",
        "80%",
        "Memory that the server may hold, in bytes (at least 33554432) or in percent of what the machine or its cgroup has; at \
         it, what is new is refused and what is held goes on. 0 means no limit.",
    ),
    supported("log-level", "info", "Least severe level that is logged: debug, info, warn, error, panic or fatal."),
    supported("log-format", "json", "Format of log lines: json or console."),
    supported("log-outputs", "default", "Where log lines go: stderr (the default) or stdout."),
    supported("logger", "zap", "Only zap is accepted: log lines have the keys that etcd's have."),
    // Members and raft.
    harmless(
        "initial-advertise-peer-urls",
        PEER_URLS_DEFAULT,
        "this is a single server: its member is listed with these URLs, but nothing listens there",
    ),
    harmless("listen-peer-urls", "http://localhost:2380", NO_PEERS),
    harmless("initial-cluster", "", "this is a single server, and its only member is itself"),
    harmless("initial-cluster-token", "etcd-cluster", NO_PEERS),
    refused("initial-cluster-state", "new", "this is a single server, it cannot join an existing cluster"),
    switch(harmless("initial-election-tick-advance", "true", NO_RAFT)),
    harmless("heartbeat-interval", "100", NO_RAFT),
    harmless("election-timeout", "1000", NO_RAFT),
    switch(harmless("pre-vote", "true", NO_RAFT)),
    switch(harmless("strict-reconfig-check", "true", NO_RAFT)),
    harmless("max-learners", "1", NO_RAFT),
    harmless("raft-read-timeout", "5s", NO_RAFT),
    harmless("raft-write-timeout", "5s", NO_RAFT),
    harmless("downgrade-check-time", "5s", NO_RAFT),
    switch(refused("force-new-cluster", "false", "this is a single server, there are no other members to part from")),
    refused("discovery", "", NO_DISCOVERY),
    refused("discovery-token", "", NO_DISCOVERY),
    refused("discovery-endpoints", "", NO_DISCOVERY),
    refused("discovery-dial-timeout", "2s", NO_DISCOVERY),
    refused("discovery-request-timeout", "5s", NO_DISCOVERY),
    refused("discovery-keepalive-time", "2s", NO_DISCOVERY),
    refused("discovery-keepalive-timeout", "6s", NO_DISCOVERY),
    switch(refused("discovery-insecure-transport", "true", NO_DISCOVERY)),
    switch(refused("discovery-insecure-skip-tls-verify", "false", NO_DISCOVERY)),
    refused("discovery-cert", "", NO_DISCOVERY),
    refused("discovery-key", "", NO_DISCOVERY),
    refused("discovery-cacert", "", NO_DISCOVERY),
    refused("discovery-user", "", NO_DISCOVERY),
    refused("discovery-password", "", NO_DISCOVERY),
    refused("discovery-fallback", "exit", NO_DISCOVERY),
    refused("discovery-proxy", "", NO_DISCOVERY),
    refused("discovery-srv", "", NO_DISCOVERY),
    refused("discovery-srv-name", "", NO_DISCOVERY),
    // TLS towards clients: without it, traffic believed to be encrypted would travel in the clear.
    refused("cert-file", "", NO_TLS),
    refused("key-file", "", NO_TLS),
    switch(refused("client-cert-auth", "false", NO_TLS)),
    refused("trusted-ca-file", "", NO_TLS),
    switch(refused("auto-tls", "false", NO_TLS)),
    refused("client-crl-file", "", NO_TLS),
    refused("client-cert-allowed-hostname", "", NO_TLS),
    // etcd presents these two when it calls itself; nothing is called here, and no client sees the difference.
    harmless("client-cert-file", "", NO_TLS_HARMLESS),
    harmless("client-key-file", "", NO_TLS_HARMLESS),
    harmless("cipher-suites", "", NO_TLS_HARMLESS),
    harmless("tls-min-version", "TLS1.2", NO_TLS_HARMLESS),
    harmless("tls-max-version", "", NO_TLS_HARMLESS),
    harmless("self-signed-cert-validity", "1", NO_TLS_HARMLESS),
    // TLS towards peers: nothing travels there.
    harmless("peer-cert-file", "", NO_PEERS),
    harmless("peer-key-file", "", NO_PEERS),
    switch(harmless("peer-client-cert-auth", "false", NO_PEERS)),
    harmless("peer-client-cert-file", "", NO_PEERS),
    harmless("peer-client-key-file", "", NO_PEERS),
    harmless("peer-trusted-ca-file", "", NO_PEERS),
    harmless("peer-cert-allowed-cn", "", NO_PEERS),
    harmless("peer-cert-allowed-hostname", "", NO_PEERS),
    switch(harmless("peer-auto-tls", "false", NO_PEERS)),
    harmless("peer-crl-file", "", NO_PEERS),
    switch(harmless("peer-skip-client-san-verification", "false", NO_PEERS)),
    // Users.
    refused("auth-token", "simple", "users and tokens are not built yet, only simple is accepted"),
    harmless("auth-token-ttl", "300", NO_AUTH),
    harmless("bcrypt-cost", "10", NO_AUTH),
    // The disk.
    harmless("snapshot-count", "10000", "the checkpoint follows the log at a pace of its own"),
    harmless("snapshot-catchup-entries", "5000", NO_RAFT),
    harmless("max-snapshots", "5", OWN_LOG),
    harmless("max-wals", "5", OWN_LOG),
    switch(harmless("memory-mlock", "false", "memory is not locked")),
    harmless("backend-bbolt-freelist-type", "map", OWN_FILES),
    harmless("backend-batch-interval", "", OWN_FILES),
    harmless("backend-batch-limit", "0", OWN_FILES),
    harmless("bootstrap-defrag-threshold-megabytes", "0", OWN_FILES),
    harmless("v2-deprecation", "write-only", "there is no v2 store"),
    // Compaction and checks.
    harmless("compaction-batch-limit", "1000", OWN_COMPACTION),
    harmless("compaction-sleep-interval", "10ms", OWN_COMPACTION),
    harmless("corrupt-check-time", "0s", NO_CHECKS),
    harmless("compact-hash-check-time", "1m", NO_CHECKS),
    // Pages, metrics, tracing, log.
    harmless("listen-client-http-urls", "", "gRPC and plain HTTP share the URLs for clients"),
    switch(harmless("enable-grpc-gateway", "true", NO_GATEWAY)),
    switch(harmless("enable-pprof", "false", "there is no Go runtime to profile")),
    harmless("cors", "*", NO_GATEWAY),
    harmless("host-whitelist", "*", NO_GATEWAY),
    switch(harmless("enable-log-rotation", "false", NO_ROTATION)),
    harmless("log-rotation-config-json", "", NO_ROTATION),
    switch(harmless("enable-distributed-tracing", "false", NO_TRACING)),
    harmless("distributed-tracing-address", "localhost:4317", NO_TRACING),
    harmless("distributed-tracing-service-name", "etcd", NO_TRACING),
    harmless("distributed-tracing-instance-id", "", NO_TRACING),
    harmless("distributed-tracing-sampling-rate", "0", NO_TRACING),
    // Sockets.
    switch(harmless(
        "socket-reuse-port",
        "false",
        "the shards share the port among themselves, and a second server on it is refused",
    )),
    switch(harmless("socket-reuse-address", "false", "a port whose old connections linger can always be bound again")),
    refused("config-file", "", "configuration files are not supported yet, use flags or environment variables"),
];

#[cfg(test)]
mod tests {
    use super::*;

    /// The flags that `etcd --help` of release 3.7.3 prints.
    const ETCD_3_7: &str = "name data-dir wal-dir snapshot-count heartbeat-interval election-timeout \
        initial-election-tick-advance listen-peer-urls listen-client-urls listen-client-http-urls max-snapshots max-wals \
        memory-mlock quota-backend-bytes backend-bbolt-freelist-type backend-batch-interval backend-batch-limit max-txn-ops \
        max-request-bytes max-concurrent-streams grpc-keepalive-min-time grpc-keepalive-interval grpc-keepalive-timeout \
        socket-reuse-port socket-reuse-address enable-grpc-gateway raft-read-timeout raft-write-timeout feature-gates \
        initial-advertise-peer-urls initial-cluster initial-cluster-state initial-cluster-token advertise-client-urls \
        discovery discovery-token discovery-endpoints discovery-dial-timeout discovery-request-timeout \
        discovery-keepalive-time discovery-keepalive-timeout discovery-insecure-transport \
        discovery-insecure-skip-tls-verify discovery-cert discovery-key discovery-cacert discovery-user discovery-password \
        discovery-fallback discovery-proxy discovery-srv discovery-srv-name strict-reconfig-check pre-vote \
        auto-compaction-retention auto-compaction-mode v2-deprecation cert-file key-file client-cert-auth client-cert-file \
        client-key-file client-crl-file client-cert-allowed-hostname trusted-ca-file auto-tls peer-cert-file peer-key-file \
        peer-client-cert-auth peer-client-cert-file peer-client-key-file peer-trusted-ca-file peer-cert-allowed-cn \
        peer-cert-allowed-hostname peer-auto-tls self-signed-cert-validity peer-crl-file cipher-suites cors host-whitelist \
        tls-min-version tls-max-version auth-token bcrypt-cost auth-token-ttl enable-pprof metrics listen-metrics-urls \
        logger log-outputs log-level log-format enable-log-rotation log-rotation-config-json \
        warning-unary-request-duration enable-distributed-tracing distributed-tracing-address \
        distributed-tracing-service-name distributed-tracing-instance-id distributed-tracing-sampling-rate \
        corrupt-check-time compact-hash-check-time compaction-batch-limit peer-skip-client-san-verification \
        watch-progress-notify-interval warning-apply-duration bootstrap-defrag-threshold-megabytes max-learners \
        compaction-sleep-interval downgrade-check-time snapshot-catchup-entries force-new-cluster unsafe-no-fsync \
        config-file";

    #[test]
    fn every_flag_of_etcd_has_a_row_and_the_others_are_ours() {
        let mut ours: Vec<&str> = FLAGS.iter().map(|flag| flag.name).collect();
        for name in ETCD_3_7.split_whitespace() {
            let at = ours.iter().position(|known| *known == name).unwrap_or_else(|| panic!("--{name} has no row"));
            ours.remove(at);
        }
        let expected = "max-connections max-connections-per-address max-watches-per-stream max-watches-per-connection \
            stalled-stream-timeout scrub-interval lease-checkpoint-interval idle-buffers shards history-limit memory-limit";
        assert_eq!(ours, expected.split_whitespace().collect::<Vec<_>>(), "also catches a row that stands twice");
    }

    #[test]
    fn supported_flags_have_help_and_the_others_a_reason() {
        for flag in FLAGS {
            match flag.meaning {
                Meaning::Supported => assert!(flag.help.ends_with('.'), "--{}", flag.name),
                Meaning::Harmless(reason) | Meaning::Refused(reason) => {
                    assert!(!reason.is_empty() && !reason.ends_with('.') && flag.help.is_empty(), "--{}", flag.name);
                }
            }
        }
    }

    #[test]
    fn the_readme_lists_every_supported_flag_with_its_default() {
        let readme = include_str!("../../README.md");
        for flag in FLAGS.iter().filter(|flag| flag.meaning == Meaning::Supported && flag.name != "logger") {
            let row = readme.lines().find(|line| line.starts_with(&format!("| `--{}` |", flag.name)));
            let row = row.unwrap_or_else(|| panic!("--{} has no row in the README", flag.name));
            let default = row.split('|').nth(2).unwrap();
            assert!(default.contains(flag.default), "--{}: {default}", flag.name);
        }
    }
}
