//! Whole command lines and environments, from the operator's side.

use super::*;

fn asked(line: &str, environment: &[(&str, &str)]) -> Result<Asked, ConfigError> {
    Config::read(
        line.split_whitespace().map(OsString::from),
        environment.iter().map(|(name, value)| (OsString::from(name), OsString::from(value))),
    )
}

fn served(line: &str) -> (Config, Vec<Warning>) {
    match asked(line, &[]) {
        Ok(Asked::Serve(config, warnings)) => (*config, warnings),
        other => panic!("{line}: {other:?}"),
    }
}

fn served_with(line: &str, environment: &[(&str, &str)]) -> Config {
    match asked(line, environment) {
        Ok(Asked::Serve(config, _)) => *config,
        other => panic!("{line}: {other:?}"),
    }
}

fn error(line: &str) -> String {
    let text = asked(line, &[]).expect_err(line).to_string();
    assert!(!text.contains('\n'), "one line: {text}");
    text
}

fn warned(line: &str) -> Vec<String> {
    served(line).1.into_iter().map(|warning| warning.what).collect()
}

#[test]
fn without_flags_the_defaults_are_etcds_and_nothing_is_warned_of() {
    let (config, warnings) = served("");
    assert_eq!(warnings, []);
    assert_eq!(config.name, "default");
    let listen: Vec<String> = config.listen.iter().map(|listen| listen.address.to_string()).collect();
    assert_eq!(listen, ["127.0.0.1:2379", "[::1]:2379"]);
    assert_eq!(config.advertise_client_urls, ["http://localhost:2379"]);
    assert_eq!(config.data_dir, PathBuf::from("default.tarsier"));
    assert_eq!((config.wal_dir, config.fsync), (None, true));
    assert_eq!(config.quota_backend_bytes, Some(2_147_483_648));
    assert_eq!(config.auto_compaction, None);
    assert_eq!(config.request_bytes_max, 1_572_864);
    assert_eq!(config.txn_operations_max, 128);
    assert_eq!(config.concurrent_streams_max, 16_384);
    assert_eq!(config.keepalive_min_time, Duration::from_secs(5));
    let ping = KeepalivePing { interval: Duration::from_secs(7_200), timeout: Duration::from_secs(20) };
    assert_eq!(config.keepalive_ping, Some(ping));
    assert_eq!(config.watch_progress_interval, Duration::from_secs(600));
    assert_eq!((config.connections_max, config.connections_per_address_max), (None, None));
    assert_eq!(config.watch_limits, WatchLimits::default());
    assert_eq!(config.stalled_stream_timeout, Some(Duration::from_secs(600)));
    assert_eq!(config.scrub_interval, Some(Duration::from_secs(86_400)));
    assert!(!config.idle_buffers_are_kept);
    assert_eq!(config.shards, None);
    assert_eq!(config.history_bytes_max, 64 * 1024 * 1024);
    assert_eq!(config.memory_limit, Some(MemoryLimit::Percent(80)));
    assert_eq!(config.log, LogConfig { level: LogLevel::Info, format: LogFormat::Json, output: LogOutput::Stderr });
}

#[test]
fn a_flag_may_be_written_in_each_of_gos_ways_and_the_last_one_wins() {
    for line in
        ["--max-txn-ops 7", "--max-txn-ops=7", "-max-txn-ops 7", "-max-txn-ops=7", "--max-txn-ops 1 -max-txn-ops=7"]
    {
        assert_eq!(served(line).0.txn_operations_max, 7, "{line}");
    }
    for word in ["-odd", "--max-txn-ops", "a=b"] {
        assert_eq!(served(&format!("--name {word}")).0.name, word, "a word that looks like a flag is still the value");
    }
}

#[test]
fn a_switch_takes_a_value_only_behind_an_equals_sign() {
    assert_eq!(warned("--enable-pprof"), ["--enable-pprof"]);
    assert_eq!(warned("-enable-pprof=true"), ["--enable-pprof"]);
    assert_eq!(warned("--enable-pprof=false"), Vec::<String>::new());
    assert_eq!(
        error("--enable-pprof false"),
        "\"false\" is neither a flag nor one of the commands check and salvage, see --help"
    );
    assert_eq!(error("--enable-pprof=maybe"), "--enable-pprof \"maybe\": expected true or false");
}

#[test]
fn the_environment_is_read_under_both_names_and_a_flag_wins() {
    let etcd = ("ETCD_MAX_TXN_OPS", "1");
    let ours = ("TARSIER_MAX_TXN_OPS", "2");
    assert_eq!(served_with("", &[etcd]).txn_operations_max, 1);
    assert_eq!(served_with("", &[ours, etcd]).txn_operations_max, 2);
    assert_eq!(served_with("--max-txn-ops 3", &[etcd, ours]).txn_operations_max, 3);
    assert_eq!(served_with("", &[("ETCD_NAME", "")]).name, "default", "an empty variable is not set");
    let unreadable = asked("", &[("ETCD_MAX_TXN_OPS", "x")]).unwrap_err().to_string();
    assert_eq!(unreadable, "ETCD_MAX_TXN_OPS \"x\": expected a whole number from 1 to 1000000");
}

#[test]
fn unknown_variables_are_warned_of_and_those_of_etcdctl_are_not_ours() {
    let environment =
        [("ETCD_FOO", "1"), ("ETCDCTL_API", "3"), ("PATH", "/bin"), ("TARSIER_PORT", "tcp://10.0.0.1:2379")];
    let Ok(Asked::Serve(_, warnings)) = asked("", &environment) else { panic!("refused") };
    let names: Vec<&str> = warnings.iter().map(|warning| warning.what.as_str()).collect();
    assert_eq!(names, ["ETCD_FOO", "TARSIER_PORT"]);
}

#[test]
fn a_misspelt_flag_is_refused_with_the_nearest_one() {
    assert_eq!(error("--max-txn-op=1"), "unknown flag --max-txn-op, did you mean --max-txn-ops?");
    assert_eq!(
        error("-listen-client-url http://[::1]:1"),
        "unknown flag --listen-client-url, did you mean --listen-client-urls?"
    );
    assert_eq!(
        error("--experimental-watch-progress-notify-interval=5s"),
        "unknown flag --experimental-watch-progress-notify-interval, did you mean --watch-progress-notify-interval?"
    );
    assert_eq!(error("--zzzzzz"), "unknown flag --zzzzzz, see --help");
    assert_eq!(error("-x"), "unknown flag -x, see --help");
    // Not --experimental-x's neighbour in the alphabet.
    assert_eq!(
        error("--experimental-enable-lease-checkpoint"),
        "unknown flag --experimental-enable-lease-checkpoint, see --help"
    );
    assert_eq!(error("gateway"), "\"gateway\" is neither a flag nor one of the commands check and salvage, see --help");
    assert_eq!(error("--name"), "--name needs a value");
}

#[test]
fn limits_of_zero_are_none_and_others_are_kept() {
    let read = |line: &str| served(line).0;
    let limited = read(
        "--max-connections=9 --max-connections-per-address=8 --max-watches-per-stream=7 --max-watches-per-connection=6 \
         --stalled-stream-timeout=5s --idle-buffers=keep",
    );
    assert_eq!((limited.connections_max, limited.connections_per_address_max), (Some(9), Some(8)));
    assert_eq!(limited.watch_limits, WatchLimits { per_stream: Some(7), per_connection: Some(6) });
    assert_eq!(limited.stalled_stream_timeout, Some(Duration::from_secs(5)));
    assert!(limited.idle_buffers_are_kept);
    let free = read("--max-connections=0 --max-watches-per-stream=0 --stalled-stream-timeout=0 --scrub-interval=0");
    assert_eq!((free.connections_max, free.watch_limits.per_stream), (None, None));
    assert_eq!((free.stalled_stream_timeout, free.scrub_interval), (None, None));
}

#[test]
fn unreadable_values_name_flag_value_and_what_was_expected() {
    for (line, text) in [
        ("--max-request-bytes 1MB", "--max-request-bytes \"1MB\": expected a whole number from 1 to 1073741824"),
        ("--max-concurrent-streams=0", "--max-concurrent-streams \"0\": expected a whole number from 1 to 4294967295"),
        ("--shards 257", "--shards \"257\": expected a whole number from 0 to 256"),
        ("--memory-limit 1000", "--memory-limit \"1000\": expected at least 33554432 bytes"),
        ("--memory-limit 101%", "--memory-limit \"101%\": expected a whole number from 1 to 100"),
        (
            "--memory-limit 1G",
            "--memory-limit \"1G\": expected bytes as a whole number without a unit, such as 4294967296, or percent of what there is, such as 80%",
        ),
        ("--history-limit 1", "--history-limit \"1\": expected a whole number from 1048576 to 9223372036854775807"),
        (
            "--grpc-keepalive-min-time 5",
            "--grpc-keepalive-min-time \"5\": expected a duration such as 100ms, 20s, 1m30s or 2h",
        ),
        ("--idle-buffers=drop", "--idle-buffers \"drop\": expected give-back or keep"),
        (
            "--max-watches-per-stream 4294967296",
            "--max-watches-per-stream \"4294967296\": expected a whole number from 0 to 4294967295",
        ),
        ("--log-level=loud", "--log-level \"loud\": expected debug, info, warn, error, panic or fatal"),
        ("--log-format=xml", "--log-format \"xml\": expected json or console"),
        (
            "--log-outputs=/var/log/x",
            "--log-outputs \"/var/log/x\": expected default, stderr or stdout; log files are not supported",
        ),
        ("--logger=capnslog", "--logger \"capnslog\": expected zap"),
        ("--name=", "--name \"\": expected a name"),
        (
            "--listen-client-urls=https://127.0.0.1:2379",
            "--listen-client-urls \"https://127.0.0.1:2379\": https://127.0.0.1:2379: TLS is not built yet, only http is served",
        ),
        (
            "--initial-advertise-peer-urls=http://10.0.0.1:2380,10.0.0.1:2381",
            "--initial-advertise-peer-urls \"http://10.0.0.1:2380,10.0.0.1:2381\": \"10.0.0.1:2381\": expected a URL such as http://127.0.0.1:2380",
        ),
    ] {
        assert_eq!(error(line), text);
    }
}

#[test]
fn intervals_are_raised_to_their_floor_and_zero_has_etcds_meaning() {
    assert_eq!(served("--watch-progress-notify-interval 1ms").0.watch_progress_interval, PROGRESS_INTERVAL_MIN);
    assert_eq!(served("--watch-progress-notify-interval 0").0.watch_progress_interval, PROGRESS_INTERVAL_DEFAULT);
    assert_eq!(served("--grpc-keepalive-interval 0").0.keepalive_ping, None);
    assert_eq!(served("--grpc-keepalive-timeout 0s").0.keepalive_ping, None);
    let ping = served("--grpc-keepalive-interval 10ms --grpc-keepalive-timeout 1m30s").0.keepalive_ping.unwrap();
    assert_eq!((ping.interval, ping.timeout), (Duration::from_secs(1), Duration::from_secs(90)));
    for (value, bytes) in
        [("0", Some(QUOTA_BACKEND_BYTES_DEFAULT)), ("1", Some(1)), ("-1", None), ("-2147483648", None)]
    {
        assert_eq!(served(&format!("--quota-backend-bytes {value}")).0.quota_backend_bytes, bytes, "{value}");
    }
}

#[test]
fn auto_compaction_counts_hours_durations_or_revisions() {
    let compaction = |line: &str| served(line).0.auto_compaction;
    let hours = |hours: u64| Some(AutoCompaction::Periodic(Duration::from_secs(hours * 3_600)));
    assert_eq!(compaction("--auto-compaction-retention=8"), hours(8));
    assert_eq!(
        compaction("--auto-compaction-retention 30m"),
        Some(AutoCompaction::Periodic(Duration::from_secs(1_800)))
    );
    assert_eq!(compaction("--auto-compaction-mode=periodic --auto-compaction-retention=24h"), hours(24));
    let revision = "--auto-compaction-mode revision --auto-compaction-retention";
    assert_eq!(compaction(&format!("{revision} 1000")), Some(AutoCompaction::Revision(1_000)));
    for line in ["--auto-compaction-retention 0", "--auto-compaction-retention 0s", &format!("{revision} 0")] {
        assert_eq!(compaction(line), None, "{line}");
    }
    assert_eq!(
        error("--auto-compaction-retention -1h"),
        "--auto-compaction-retention \"-1h\": expected a number of hours, or a duration such as 30m or 12h"
    );
    // etcd reads the duration as so many nanoseconds and keeps as many revisions.
    assert_eq!(
        error(&format!("{revision} 5m")),
        "--auto-compaction-retention \"5m\": expected a whole number from 0 to 9223372036854775807"
    );
    assert_eq!(
        error("--auto-compaction-mode daily"),
        "--auto-compaction-mode \"daily\": expected periodic or revision"
    );
}

#[test]
fn where_the_data_goes_and_whether_it_is_waited_for_can_be_chosen() {
    let (config, warnings) = served("--data-dir /var/lib/t --wal-dir=/fast/t --unsafe-no-fsync");
    assert_eq!((config.data_dir, config.wal_dir), (PathBuf::from("/var/lib/t"), Some(PathBuf::from("/fast/t"))));
    assert!(!config.fsync && warnings.is_empty());
    assert!(served("--unsafe-no-fsync=false").0.fsync);
    assert_eq!(served("--wal-dir=").0.wal_dir, None);
    assert_eq!(error("--data-dir="), "--data-dir \"\": expected a directory");
    assert_eq!(warned("--snapshot-count 5000"), ["--snapshot-count"], "a hint, and the only one of them");
    assert_eq!(warned("--snapshot-count 10000"), Vec::<String>::new());
}

#[test]
fn the_two_words_that_do_not_serve_are_read_before_any_setting() {
    let check = Asked::Check { dir: "/a".into(), wal_dir: None };
    assert_eq!(asked("check /a", &[("ETCD_MAX_TXN_OPS", "x")]), Ok(check));
    let salvage = Asked::Salvage { dir: "/a".into(), new: "/b".into(), wal_dir: Some("/w".into()) };
    assert_eq!(asked("salvage /a /b --wal-dir /w", &[]), Ok(salvage));
    assert_eq!(error("check"), "check takes one directory, not 0; usage: tarsier check DIR [--wal-dir WAL]");
    let Ok(Asked::Help(help)) = asked("--help", &[]) else { panic!("no help") };
    assert!(help.contains("tarsier check DIR") && help.contains("tarsier salvage DIR NEW"), "{help}");
}

/// The flags of the static unit in etcd's own guide for a single machine, and what packagers add to it.
#[test]
fn the_unit_of_a_single_etcd_starts_unchanged() {
    let line = "--name infra0 --data-dir /var/lib/etcd --initial-advertise-peer-urls http://10.0.1.10:2380 \
        --listen-peer-urls http://10.0.1.10:2380 --listen-client-urls http://10.0.1.10:2379,http://127.0.0.1:2379 \
        --advertise-client-urls http://10.0.1.10:2379 --initial-cluster-token etcd-cluster-1 \
        --initial-cluster infra0=http://10.0.1.10:2380 --initial-cluster-state new --snapshot-count=10000 \
        --heartbeat-interval=250 --election-timeout=1250 --max-snapshots 3 --max-wals 3 --auto-compaction-retention=8 \
        --auto-compaction-mode periodic --quota-backend-bytes=8589934592 --pre-vote --strict-reconfig-check=true \
        --socket-reuse-port --socket-reuse-address --unsafe-no-fsync --listen-metrics-urls=http://127.0.0.1:2381 \
        --logger=zap --log-level=warn --log-format console --enable-pprof --metrics extensive";
    let (config, warnings) = served(line);
    assert_eq!(config.name, "infra0");
    assert_eq!((config.listen.len(), config.listen_metrics.len()), (2, 1));
    assert!(config.metrics_are_extensive);
    assert_eq!(config.advertise_client_urls, ["http://10.0.1.10:2379"]);
    assert_eq!(config.log.level, LogLevel::Warn);
    assert_eq!((config.fsync, config.quota_backend_bytes), (false, Some(8 << 30)));
    assert_eq!(config.auto_compaction, Some(AutoCompaction::Periodic(Duration::from_secs(8 * 3_600))));
    let mut names: Vec<&str> = warnings.iter().map(|warning| warning.what.as_str()).collect();
    names.sort_unstable();
    // Values that are etcd's defaults (state, snapshot count, pre-vote) are passed over.
    assert_eq!(
        names,
        [
            "--election-timeout",
            "--enable-pprof",
            "--heartbeat-interval",
            "--initial-advertise-peer-urls",
            "--initial-cluster",
            "--initial-cluster-token",
            "--listen-peer-urls",
            "--max-snapshots",
            "--max-wals",
            "--socket-reuse-address",
            "--socket-reuse-port",
        ]
    );
}

/// What kubeadm writes into etcd's static pod; every URL is https there.
#[test]
fn kubeadms_line_is_refused_for_its_tls_and_starts_once_that_is_taken_out() {
    let peers = "--data-dir=/var/lib/etcd --initial-advertise-peer-urls=https://10.0.0.2:2380 \
        --initial-cluster=node1=https://10.0.0.2:2380 --listen-peer-urls=https://10.0.0.2:2380 --name=node1 \
        --peer-cert-file=/etc/kubernetes/pki/etcd/peer.crt --peer-client-cert-auth=true \
        --peer-key-file=/etc/kubernetes/pki/etcd/peer.key --peer-trusted-ca-file=/etc/kubernetes/pki/etcd/ca.crt \
        --listen-metrics-urls=http://127.0.0.1:2381 --snapshot-count=10000 --feature-gates=InitialCorruptCheck=true \
        --watch-progress-notify-interval=5s";
    let tls = "--advertise-client-urls=https://10.0.0.2:2379 --cert-file=/etc/kubernetes/pki/etcd/server.crt \
        --client-cert-auth=true --key-file=/etc/kubernetes/pki/etcd/server.key \
        --listen-client-urls=https://127.0.0.1:2379,https://10.0.0.2:2379 \
        --trusted-ca-file=/etc/kubernetes/pki/etcd/ca.crt";
    assert!(error(&format!("{tls} {peers}")).contains("TLS is not built yet, only http is served"));
    let plain =
        "--advertise-client-urls=http://10.0.0.2:2379 --listen-client-urls=http://127.0.0.1:2379,http://10.0.0.2:2379";
    let (config, warnings) = served(&format!("{plain} {peers}"));
    assert_eq!(config.watch_progress_interval, Duration::from_secs(5));
    assert_eq!(warnings.len(), 8, "{warnings:?}");
}

#[test]
fn flags_that_promise_what_is_not_there_end_the_start() {
    for (line, text) in [
        ("--cert-file=/x.crt", "--cert-file cannot be kept: TLS is not built yet, only http is served"),
        ("--auto-tls", "--auto-tls cannot be kept: TLS is not built yet, only http is served"),
        ("--client-cert-auth", "--client-cert-auth cannot be kept: TLS is not built yet, only http is served"),
        (
            "--auth-token jwt,pub-key=a",
            "--auth-token cannot be kept: users and tokens are not built yet, only simple is accepted",
        ),
        (
            "--initial-cluster-state existing",
            "--initial-cluster-state cannot be kept: this is a single server, it cannot join an existing cluster",
        ),
        (
            "--initial-cluster default=http://a:1,b=http://b:1",
            "--initial-cluster cannot be kept: it lists 2 members, and this is a single server",
        ),
        (
            "--initial-cluster a=http://a:1",
            "--initial-cluster cannot be kept: its only member is \"a\", but --name is \"default\"",
        ),
        (
            "--discovery https://discovery.etcd.io/x",
            "--discovery cannot be kept: this is a single server, there is no cluster to discover",
        ),
        (
            "--force-new-cluster",
            "--force-new-cluster cannot be kept: this is a single server, there are no other members to part from",
        ),
        (
            "--config-file a.yaml",
            "--config-file cannot be kept: configuration files are not supported yet, use flags or environment variables",
        ),
    ] {
        assert_eq!(error(line), text);
    }
    let refused = asked("", &[("ETCD_CERT_FILE", "/x")]).unwrap_err().to_string();
    assert_eq!(refused, "ETCD_CERT_FILE cannot be kept: TLS is not built yet, only http is served");
}

#[test]
fn a_refused_flag_with_etcds_default_asks_for_nothing() {
    let line = "--cert-file= --client-cert-auth=false --auto-tls=0 --auth-token=simple --initial-cluster-state=new \
        --force-new-cluster=false --discovery-dial-timeout=2000ms --initial-cluster default=http://a:1,default=http://b:1";
    assert_eq!(warned(line), ["--initial-cluster"]);
    assert_eq!(warned("--auto-compaction-retention=0h"), Vec::<String>::new());
}

#[test]
fn help_names_every_flag_with_its_default_and_version_names_both_versions() {
    let Ok(Asked::Help(help)) = asked("-h", &[]) else { panic!("no help") };
    // Wrapping may have broken a line anywhere.
    let help = help.split_whitespace().collect::<Vec<_>>().join(" ");
    for flag in FLAGS {
        assert!(help.contains(&format!("--{}", flag.name)), "--{}", flag.name);
        if flag.meaning == Meaning::Supported && !flag.default.is_empty() {
            assert!(help.contains(&format!("[default: {}]", flag.default)), "--{}", flag.name);
        }
    }
    for line in ["--help", "-help", "--help --cert-file=x"] {
        assert!(matches!(asked(line, &[]), Ok(Asked::Help(_))), "{line}");
    }
    let Ok(Asked::Version(version)) = asked("--version", &[]) else { panic!("no version") };
    assert!(version.starts_with("tarsier Version: 0.") && version.contains("etcd API Version: 3.7.3"), "{version}");
}

#[test]
fn garbled_arguments_are_answered_with_one_line() {
    use std::os::unix::ffi::OsStringExt;
    let bytes = OsString::from_vec(vec![b'-', b'-', b'n', b'a', b'm', b'e', b'=', 0xff]);
    let error = Config::read([bytes], []).unwrap_err().to_string();
    assert!(error.contains("not valid UTF-8") && !error.contains('\n'), "{error}");
    let variable = (OsString::from("ETCD_NAME"), OsString::from_vec(vec![0xff]));
    assert_eq!(Config::read([], [variable]).unwrap_err().to_string(), "ETCD_NAME is not valid UTF-8");
    for line in ["-", "--", "---", "--=", "-=", "--name=a=b", "--help=x", "--version=1"] {
        if let Err(error) = asked(line, &[]) {
            assert!(!error.to_string().contains('\n'), "{line}: {error}");
        }
    }
}
