//! `/metrics` on the real binary: what etcd's boards and alerts name is there, and it moves with what happens.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::time::{Duration, Instant};

use prost::Message;
use tarsier_proto::etcdserverpb as pb;

use crate::client::Client;
use crate::pages::free_address;
use crate::server::{self, Server};

/// What the Grafana board and the alerts of etcd's `contrib/mixin` read of a member that has no peers. What they read beside
/// it speaks of traffic between members: `etcd_network_peer_*`.
const MIXIN: &[&str] = &[
    "etcd_disk_backend_commit_duration_seconds_bucket",
    "etcd_disk_wal_fsync_duration_seconds_bucket",
    "etcd_mvcc_db_total_size_in_bytes",
    "etcd_mvcc_db_total_size_in_use_in_bytes",
    "etcd_network_client_grpc_received_bytes_total",
    "etcd_network_client_grpc_sent_bytes_total",
    "etcd_server_has_leader",
    "etcd_server_leader_changes_seen_total",
    "etcd_server_proposals_applied_total",
    "etcd_server_proposals_committed_total",
    "etcd_server_proposals_failed_total",
    "etcd_server_proposals_pending",
    "etcd_server_quota_backend_bytes",
    "grpc_server_handled_total",
    "grpc_server_handling_seconds_bucket",
    "grpc_server_started_total",
    "process_resident_memory_bytes",
];

/// What else of etcd's is claimed, with the labels where there are some.
const MORE_OF_ETCD: &[&str] = &[
    "etcd_cluster_version{cluster_version=\"3.7\"}",
    "etcd_server_version{server_version=\"3.7.3\"}",
    "etcd_server_id{",
    "etcd_server_is_leader",
    "etcd_server_is_learner",
    "etcd_server_slow_apply_total",
    "etcd_server_slow_read_indexes_total",
    "etcd_server_read_indexes_failed_total",
    "etcd_server_heartbeat_send_failures_total",
    "etcd_server_health_success",
    "etcd_server_health_failures",
    "etcd_disk_wal_write_bytes_total",
    "etcd_disk_defrag_inflight",
    "etcd_mvcc_put_total",
    "etcd_mvcc_delete_total",
    "etcd_mvcc_range_total",
    "etcd_mvcc_txn_total",
    "etcd_debugging_mvcc_keys_total",
    "etcd_debugging_mvcc_current_revision",
    "etcd_debugging_mvcc_compact_revision",
    "etcd_debugging_mvcc_total_put_size_in_bytes",
    "etcd_debugging_mvcc_watch_stream_total",
    "etcd_debugging_mvcc_watcher_total",
    "etcd_debugging_mvcc_slow_watcher_total",
    "etcd_debugging_mvcc_events_total",
    "etcd_debugging_lease_granted_total",
    "etcd_debugging_lease_renewed_total",
    "etcd_debugging_lease_revoked_total",
    "etcd_debugging_lease_ttl_total_bucket{le=\"1\"}",
    "etcd_debugging_lease_ttl_total_bucket{le=\"524288\"}",
    "etcd_debugging_lease_ttl_total_bucket{le=\"1.048576e+06\"}",
    "etcd_debugging_lease_ttl_total_bucket{le=\"8.388608e+06\"}",
    "etcd_debugging_lease_ttl_total_bucket{le=\"+Inf\"}",
    "etcd_debugging_server_lease_expired_total",
    "process_cpu_seconds_total",
    "process_max_fds",
    "process_open_fds",
    "process_start_time_seconds",
    "process_virtual_memory_bytes",
    "os_fd_limit",
    "os_fd_used",
];

const OURS: &[&str] = &[
    "tarsier_build_info{version=",
    "tarsier_memory_bytes{class=\"base\"}",
    "tarsier_memory_bytes{class=\"watches\"}",
    "tarsier_watches{state=\"synced\"}",
    "tarsier_watches{state=\"behind\"}",
    "tarsier_watch_lag_revisions",
    "tarsier_watch_delivery_seconds_bucket{",
    "tarsier_commit_seconds_bucket{",
    "tarsier_history_window_seconds",
    "tarsier_refusals_total{reason=\"watch_limit\"}",
    "tarsier_refusals_total{reason=\"stalled_stream\"}",
    "tarsier_connections",
    "tarsier_connections_at_stream_limit_total",
    "tarsier_checkpoint_age_seconds",
    "tarsier_disk_short_of_space",
    "tarsier_log_bytes_since_checkpoint",
    "tarsier_shard_connections{shard=\"0\"}",
    "tarsier_shard_watches{shard=\"0\"}",
    "tarsier_shard_cpu_seconds_total{shard=\"0\"}",
];

/// Every series with its value.
fn scrape(address: SocketAddr) -> BTreeMap<String, f64> {
    let answer = Client::connect(address).request("GET", "/metrics");
    assert_eq!(answer.status, 200);
    let kind = answer.header("content-type").expect("it says what it is");
    assert!(kind.starts_with("text/plain; version=0.0.4"), "{kind}");
    let lines = answer.body.lines().filter(|line| !line.starts_with('#'));
    let series = lines.map(|line| {
        let (series, value) = line.rsplit_once(' ').expect("a series and its value");
        (series.to_owned(), value.parse().expect("a number"))
    });
    series.collect()
}

fn has(series: &BTreeMap<String, f64>, name: &str) -> bool {
    series.keys().any(|known| {
        known == name
            || (known.starts_with(name) && (name.ends_with(['{', '=']) || known[name.len()..].starts_with('{')))
    })
}

#[test]
fn every_metric_that_is_claimed_is_there_on_both_listeners() {
    let pages = free_address();
    let url = format!("--listen-metrics-urls=http://{pages}");
    let server = Server::start_with(&server::binary_under_test(), &["--metrics=extensive", &url]);
    let is_etcd = server::is_real_etcd(&server::binary_under_test());
    for address in [server.address(), pages] {
        let series = scrape(address);
        for name in MIXIN.iter().chain(MORE_OF_ETCD) {
            assert!(has(&series, name), "{name}");
        }
        for name in OURS.iter().filter(|_| !is_etcd) {
            assert!(has(&series, name), "{name}");
        }
    }
}

#[test]
fn numbers_move_with_what_happens() {
    let server = Server::start(&server::binary_under_test());
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build();
    runtime.expect("a runtime starts").block_on(async {
        let client = crate::grpc::Client::connect(server.address(), crate::grpc::WIDE).await;
        let range = crate::grpc::on_key("x");
        let mut watch =
            client.start(crate::grpc::WATCH, crate::grpc::create(range), false).await.expect("a watch begins");
        assert!(watch.next().await.created);
        let before = scrape(server.address());
        for _ in 0..20 {
            client.put("x", &[7; 100]).await;
            watch.next().await;
            tokio::time::sleep(Duration::from_millis(15)).await;
        }
        let after = scrape(server.address());
        let moved = |name: &str| after[name] - before[name];
        let labels =
            |method: &str, kind: &str| format!("grpc_method=\"{method}\",grpc_service=\"etcdserverpb.{kind}\"");
        let put = labels("Put", "KV");
        assert_eq!(moved("etcd_mvcc_put_total"), 20.0);
        assert_eq!(moved("etcd_debugging_mvcc_total_put_size_in_bytes"), 20.0 * 101.0);
        assert_eq!(moved("etcd_debugging_mvcc_current_revision"), 20.0);
        assert_eq!(moved("etcd_debugging_mvcc_events_total"), 20.0);
        assert_eq!(moved("etcd_server_proposals_applied_total"), 20.0);
        assert_eq!(moved(&format!("grpc_server_started_total{{{put},grpc_type=\"unary\"}}")), 20.0);
        assert_eq!(moved(&format!("grpc_server_handled_total{{grpc_code=\"OK\",{put},grpc_type=\"unary\"}}")), 20.0);
        let watch_of = labels("Watch", "Watch");
        assert_eq!(after[&format!("grpc_server_started_total{{{watch_of},grpc_type=\"bidi_stream\"}}")], 1.0);
        assert_eq!((after["etcd_debugging_mvcc_watcher_total"], after["etcd_debugging_mvcc_keys_total"]), (1.0, 1.0));
        assert!(moved("etcd_network_client_grpc_received_bytes_total") > 20.0 * 100.0);
        if !server::is_real_etcd(&server::binary_under_test()) {
            assert_eq!(moved("etcd_disk_wal_fsync_duration_seconds_count"), 20.0, "they came one by one");
            assert_eq!(moved("tarsier_commit_seconds_count"), 20.0);
            assert!(moved("tarsier_watch_delivery_seconds_count") >= 10.0, "most of them are followed");
            assert_eq!(after["tarsier_watches{state=\"synced\"}"], 1.0);
            let request = "GET /metrics HTTP/1.1\r\nHost: test\r\n\r\n".len();
            assert_eq!(moved("tarsier_http1_received_bytes_total"), request as f64);
        }
        watch.reset();
        drop((watch, client));
        let canceled =
            format!("grpc_server_handled_total{{grpc_code=\"Canceled\",{watch_of},grpc_type=\"bidi_stream\"}}");
        let deadline = Instant::now() + Duration::from_secs(20);
        while scrape(server.address())[&canceled] < 1.0 {
            assert!(Instant::now() < deadline, "the stream ends as canceled");
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    });
}

#[test]
fn the_lives_of_leases_are_counted() {
    let server = Server::start(&server::binary_under_test());
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build();
    runtime.expect("a runtime starts").block_on(async {
        let client = crate::grpc::Client::connect(server.address(), crate::grpc::WIDE).await;
        let before = scrape(server.address());
        let call = async |name: &str, body: Vec<u8>| {
            let path = format!("/etcdserverpb.Lease/{name}");
            let answered = client.call(&path, crate::grpc::framed(&body)).await.expect("an answer");
            assert_eq!(answered.1, 0, "{name}");
        };
        // The first is raised to the least there is, and expires.
        for (id, ttl) in [(7, 1), (8, 60), (9, 5_000_000)] {
            call("LeaseGrant", pb::LeaseGrantRequest { id, ttl }.encode_to_vec()).await;
        }
        call("LeaseKeepAlive", pb::LeaseKeepAliveRequest { id: 8 }.encode_to_vec()).await;
        call("LeaseRevoke", pb::LeaseRevokeRequest { id: 8 }.encode_to_vec()).await;
        let deadline = Instant::now() + Duration::from_secs(20);
        while scrape(server.address())["etcd_debugging_lease_revoked_total"] < 2.0 {
            assert!(Instant::now() < deadline, "the first lease expires");
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        let after = scrape(server.address());
        let moved = |name: &str| after[name] - before[name];
        assert_eq!(moved("etcd_debugging_lease_granted_total"), 3.0);
        assert_eq!(moved("etcd_debugging_lease_renewed_total"), 1.0);
        assert_eq!(moved("etcd_debugging_server_lease_expired_total"), 1.0);
        let lived = |bound: &str| moved(&format!("etcd_debugging_lease_ttl_total_bucket{{le=\"{bound}\"}}"));
        let counted = ["1", "2", "32", "64", "4.194304e+06", "8.388608e+06", "+Inf"].map(lived);
        assert_eq!(counted, [0.0, 1.0, 1.0, 2.0, 2.0, 3.0, 3.0]);
        assert_eq!(moved("etcd_debugging_lease_ttl_total_sum"), 5_000_062.0);
    });
}

#[test]
fn refused_watches_and_slow_requests_are_counted_and_logged_with_their_peer_and_no_key() {
    if server::is_real_etcd(&server::binary_under_test()) {
        return;
    }
    let settings = ["--max-watches-per-stream=1", "--warning-apply-duration=1ns"];
    let server = Server::start_with(&server::binary_under_test(), &settings);
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build();
    runtime.expect("a runtime starts").block_on(async {
        let client = crate::grpc::Client::connect(server.address(), crate::grpc::WIDE).await;
        let create = || crate::grpc::create(crate::grpc::on_key("a-secret-key"));
        let mut watch = client.start(crate::grpc::WATCH, create(), false).await.expect("a watch begins");
        assert!(watch.next().await.created);
        for _ in 0..50 {
            watch.send(create());
            assert!(watch.next().await.canceled);
        }
        for _ in 0..50 {
            client.put("a-secret-key", b"a-secret-value").await;
        }
        let series = scrape(server.address());
        assert_eq!(series["tarsier_refusals_total{reason=\"watch_limit\"}"], 50.0);
        assert!(series["etcd_server_slow_apply_total"] >= 50.0);
        let log = server.log();
        let lines = |text: &str| log.lines().filter(|line| line.contains(text)).count();
        assert_eq!((lines("watch refused"), lines("apply request took too long")), (10, 10), "{log}");
        let peer = "\"remote\":\"127.0.0.1:";
        assert!(log.lines().filter(|line| line.contains("watch refused")).all(
            |line| line.contains(peer) && line.contains("\"reason\":\"tarsier: too many watches on this stream\"")
        ));
        assert!(log.lines().any(|line| line.contains("took too long") && line.contains("/etcdserverpb.KV/Put")));
        assert_eq!(lines("secret"), 0);
    });
}
