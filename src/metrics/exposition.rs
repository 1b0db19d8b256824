//! The page: numbers in the text format of Prometheus, version 0.0.4.
//!
//! A family is its help, its type, and then its series, all of one name together. Label values are escaped; numbers are
//! written in base units.

use std::fmt::{Display, Write};
use std::time::Duration;

use super::histogram::{BOUNDS_MAX, Bounds, HANDLING};
use super::numbers::{Across, CODES, Kind, Number, Numbers, ROWS, TIMINGS, Unit, totals};

/// One RPC, as go-grpc-prometheus labels it.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Method {
    pub service: &'static str,
    pub name: &'static str,
    /// `unary`, `server_stream`, `client_stream` or `bidi_stream`.
    pub kind: &'static str,
}

/// What is true of the process and is no shard's.
#[derive(Clone, PartialEq, Debug)]
pub struct Facts {
    pub member_id: u64,
    /// The release whose API is served, and the one that the cluster agreed on.
    pub version: &'static str,
    pub cluster_version: &'static str,
    pub own_version: &'static str,
    pub resident_bytes: u64,
    pub virtual_bytes: u64,
    pub cpu_time: Duration,
    pub descriptors_open: u64,
    pub descriptors_max: u64,
    /// When the process began, since 1970.
    pub started_at: Duration,
}

/// The page under construction.
#[derive(Default)]
pub struct Page(String);

impl Page {
    /// Everything. With `is_extensive`, how long unary calls took as well (`--metrics`).
    pub fn write(facts: &Facts, shards: &[Numbers], methods: &[Method], is_extensive: bool) -> String {
        // Some 900 lines of methods and codes of 120 bytes.
        let mut page = Page(String::with_capacity(256 << 10));
        let sum = Numbers::across(shards);
        page.facts(facts);
        page.alarms(facts.member_id, &sum);
        page.rows(shards, &sum);
        for row in TIMINGS {
            page.family(row.name, Kind::Histogram, row.help);
            page.histogram(row.name, "", row.bounds, row.unit, sum.timing(row.timing));
        }
        page.methods(&sum, methods, is_extensive);
        page.0
    }

    fn family(&mut self, name: &str, kind: Kind, help: &str) {
        debug_assert!(!help.contains(['\\', '\n']), "the help of {name} would have to be escaped");
        // `write!` to a string cannot fail, here and below.
        let _ = write!(self.0, "# HELP {name} {help}\n# TYPE {name} {}\n", kind.word());
    }

    fn series(&mut self, name: &str, labels: &str, value: impl Display) {
        let _ = match labels {
            "" => writeln!(self.0, "{name} {value}"),
            labels => writeln!(self.0, "{name}{{{labels}}} {value}"),
        };
    }

    fn alone(&mut self, name: &str, kind: Kind, help: &str, labels: &str, value: impl Display) {
        self.family(name, kind, help);
        self.series(name, labels, value);
    }

    fn rows(&mut self, shards: &[Numbers], sum: &Numbers) {
        for row in ROWS {
            if !row.help.is_empty() {
                self.family(row.name, row.kind, row.help);
            }
            if row.across == Across::Apart {
                for (shard, numbers) in shards.iter().enumerate() {
                    self.series(row.name, &format!("shard=\"{shard}\""), in_base(numbers.get(row.number), row.unit));
                }
            } else {
                self.series(row.name, row.labels, in_base(sum.get(row.number), row.unit));
            }
        }
    }

    fn histogram(&mut self, name: &str, labels: &str, bounds: Bounds, unit: Unit, words: &[u64]) {
        let comma = if labels.is_empty() { "" } else { "," };
        let mut below = 0;
        for (bound, count) in bounds.iter().zip(words) {
            below += count;
            let _ = writeln!(self.0, "{name}_bucket{{{labels}{comma}le=\"{}\"}} {below}", bound_text(*bound, unit));
        }
        let (count, sum) = totals(&words[..BOUNDS_MAX + 2]);
        let _ = writeln!(self.0, "{name}_bucket{{{labels}{comma}le=\"+Inf\"}} {count}");
        self.series(&format!("{name}_sum"), labels, in_base(sum, unit));
        self.series(&format!("{name}_count"), labels, count);
    }

    /// Series of every method are there from the start: what has not happened yet is 0 and not absent.
    fn methods(&mut self, sum: &Numbers, methods: &[Method], is_extensive: bool) {
        let labels = |method: &Method| {
            format!("grpc_method=\"{}\",grpc_service=\"{}\",grpc_type=\"{}\"", method.name, method.service, method.kind)
        };
        let name = "grpc_server_started_total";
        self.family(name, Kind::Counter, "Total number of RPCs started on the server.");
        for (at, method) in methods.iter().enumerate() {
            self.series(name, &labels(method), sum.started(at));
        }
        let name = "grpc_server_handled_total";
        let help = "Total number of RPCs completed on the server, regardless of success or failure.";
        self.family(name, Kind::Counter, help);
        for (at, method) in methods.iter().enumerate() {
            for (code, count) in CODES.iter().zip(sum.handled(at)) {
                self.series(name, &format!("grpc_code=\"{code}\",{}", labels(method)), count);
            }
        }
        if !is_extensive {
            return;
        }
        let name = "grpc_server_handling_seconds";
        let help =
            "Histogram of response latency (seconds) of gRPC that had been application-level handled by the server.";
        self.family(name, Kind::Histogram, help);
        for (at, method) in methods.iter().enumerate().filter(|(_, method)| method.kind == "unary") {
            self.histogram(name, &labels(method), HANDLING, Unit::Nanoseconds, sum.handling(at));
        }
    }

    fn facts(&mut self, facts: &Facts) {
        let member = facts.member_id;
        let version = facts.version;
        let cluster = facts.cluster_version;
        self.alone(
            "etcd_cluster_version",
            Kind::Gauge,
            "Which version is running. 1 for 'cluster_version' label with current cluster version",
            &format!("cluster_version=\"{}\"", escaped(cluster)),
            1,
        );
        self.alone(
            "etcd_server_version",
            Kind::Gauge,
            "Which version is running. 1 for 'server_version' label with current version.",
            &format!("server_version=\"{}\"", escaped(version)),
            1,
        );
        self.alone(
            "etcd_server_id",
            Kind::Gauge,
            "Server or member ID in hexadecimal format. 1 for 'server_id' label with current ID.",
            &format!("server_id=\"{member:x}\""),
            1,
        );
        self.alone(
            "tarsier_build_info",
            Kind::Gauge,
            "Which release of tarsier is running.",
            &format!("version=\"{}\"", escaped(facts.own_version)),
            1,
        );
        for (name, kind, value, help) in SINGLE_MEMBER {
            self.alone(name, *kind, help, "", value);
        }
        self.process(facts);
    }

    /// There are series for active alarms alone, as in etcd.
    fn alarms(&mut self, member: u64, sum: &Numbers) {
        let name = "etcd_debugging_server_alarms";
        let alarms = [(Number::NoSpaceAlarms, "NOSPACE"), (Number::CorruptAlarms, "CORRUPT")];
        let active: Vec<_> = alarms.into_iter().filter(|(number, _)| sum.get(*number) > 0).collect();
        if !active.is_empty() {
            self.family(
                name,
                Kind::Gauge,
                "Alarms for every member in cluster. 1 for 'server_id' label with current ID.",
            );
        }
        for (_, alarm) in active {
            self.series(name, &format!("alarm_type=\"{alarm}\",server_id=\"{member:x}\""), 1);
        }
    }

    fn process(&mut self, facts: &Facts) {
        let gauges = [
            ("process_resident_memory_bytes", "Resident memory size in bytes.", facts.resident_bytes),
            ("process_virtual_memory_bytes", "Virtual memory size in bytes.", facts.virtual_bytes),
            ("process_open_fds", "Number of open file descriptors.", facts.descriptors_open),
            ("process_max_fds", "Maximum number of open file descriptors.", facts.descriptors_max),
            ("os_fd_used", "The number of used file descriptors.", facts.descriptors_open),
            ("os_fd_limit", "The file descriptor limit.", facts.descriptors_max),
        ];
        for (name, help, value) in gauges {
            self.alone(name, Kind::Gauge, help, "", value);
        }
        let help = "Total user and system CPU time spent in seconds.";
        self.alone("process_cpu_seconds_total", Kind::Counter, help, "", facts.cpu_time.as_secs_f64());
        let help = "Start time of the process since unix epoch in seconds.";
        self.alone("process_start_time_seconds", Kind::Gauge, help, "", facts.started_at.as_secs_f64());
    }
}

/// What holds of a member that is alone, for as long as it serves: it was elected once, leads, and has nobody to send to or
/// to wait for.
const SINGLE_MEMBER: &[(&str, Kind, u64, &str)] = &[
    ("etcd_server_has_leader", Kind::Gauge, 1, "Whether or not a leader exists. 1 is existence, 0 is not."),
    ("etcd_server_is_leader", Kind::Gauge, 1, "Whether or not this member is a leader. 1 if is, 0 otherwise."),
    ("etcd_server_is_learner", Kind::Gauge, 0, "Whether or not this member is a learner. 1 if is, 0 otherwise."),
    ("etcd_server_leader_changes_seen_total", Kind::Counter, 1, "The number of leader changes seen."),
    (
        "etcd_server_heartbeat_send_failures_total",
        Kind::Counter,
        0,
        "The total number of leader heartbeat send failures (likely overloaded from slow disk).",
    ),
    (
        "etcd_server_slow_read_indexes_total",
        Kind::Counter,
        0,
        "The total number of pending read indexes not in sync with leader's or timed out read index requests.",
    ),
    ("etcd_server_read_indexes_failed_total", Kind::Counter, 0, "The total number of failed read indexes seen."),
];

fn in_base(value: u64, unit: Unit) -> String {
    match unit {
        Unit::One => value.to_string(),
        Unit::Signed => (value as i64).to_string(),
        Unit::Milliseconds => (value as f64 / 1e3).to_string(),
        Unit::Nanoseconds => seconds(value).to_string(),
    }
}

/// A bound as Go's client writes it, since a label is compared letter by letter: from a million on with an exponent.
fn bound_text(bound: u64, unit: Unit) -> String {
    if unit == Unit::One && bound >= 1_000_000 {
        format!("{:e}", bound as f64).replace('e', "e+0")
    } else {
        in_base(bound, unit)
    }
}

fn seconds(nanoseconds: u64) -> f64 {
    nanoseconds as f64 / 1e9
}

/// In a label value, these three are written with a backslash.
fn escaped(value: &str) -> String {
    value.replace('\\', "\\\\").replace('"', "\\\"").replace('\n', "\\n")
}

#[cfg(test)]
mod tests {
    use std::collections::{BTreeMap, BTreeSet};

    use super::*;
    use crate::metrics::histogram::{DISK, FINE, TTL};
    use crate::metrics::{Histogram, Timing};

    const METHODS: &[Method] = &[
        Method { service: "etcdserverpb.KV", name: "Put", kind: "unary" },
        Method { service: "etcdserverpb.Watch", name: "Watch", kind: "bidi_stream" },
    ];

    fn facts() -> Facts {
        Facts {
            member_id: 0x8e9e_05c5_2164_694d,
            version: "3.7.3",
            cluster_version: "3.7",
            own_version: "0.1.0",
            resident_bytes: 10 << 20,
            virtual_bytes: 100 << 20,
            cpu_time: Duration::from_millis(1_500),
            descriptors_open: 17,
            descriptors_max: 20_000,
            started_at: Duration::from_millis(1_795_467_600_042),
        }
    }

    fn shard(number: u64) -> Numbers {
        let mut numbers = Numbers::new(METHODS.len());
        for row in ROWS {
            numbers.set(row.number, 1_000 * (number + 1) + row.number as u64);
        }
        let mut handled = [0; CODES.len()];
        (handled[0], handled[14]) = (5, number);
        numbers.set_method(0, 7, &handled);
        let histogram = Histogram::new(DISK);
        for milliseconds in [1, 2, 3, 9_000] {
            histogram.observe(Duration::from_millis(milliseconds));
        }
        numbers.set_timing(Timing::LogSync, &histogram);
        let ttls = Histogram::new(TTL);
        [2, 60, 2_000_000].into_iter().for_each(|seconds| ttls.count(seconds));
        numbers.set_timing(Timing::LeaseTtl, &ttls);
        numbers
    }

    /// The page taken apart by the rules of the format: families with their kinds, and each series with its value.
    struct Parsed {
        kinds: BTreeMap<String, String>,
        series: BTreeMap<String, f64>,
    }

    fn parse(page: &str) -> Parsed {
        let mut parsed = Parsed { kinds: BTreeMap::new(), series: BTreeMap::new() };
        let (mut family, mut helped) = (String::new(), BTreeSet::new());
        assert!(page.ends_with('\n'));
        for line in page.lines() {
            if let Some(help) = line.strip_prefix("# HELP ") {
                let (name, text) = help.split_once(' ').expect("a name and a text");
                assert!(!text.is_empty() && helped.insert(name.to_owned()), "the help of {name} stands once");
                family = name.to_owned();
            } else if let Some(kind) = line.strip_prefix("# TYPE ") {
                let (name, kind) = kind.split_once(' ').expect("a name and a kind");
                assert_eq!(name, family, "the type follows the help");
                parsed.kinds.insert(name.to_owned(), kind.to_owned());
            } else {
                let (series, value) = line.rsplit_once(' ').expect("a series and its value");
                let name = series.split('{').next().expect("there is a first part");
                assert!(name.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'_'), "{line}");
                let of_histogram =
                    ["_bucket", "_sum", "_count"].iter().any(|end| name.strip_suffix(end) == Some(&family));
                assert!(name == family || (of_histogram && parsed.kinds[&family] == "histogram"), "{line} in {family}");
                assert!(series.contains('{') == series.ends_with('}'), "{line}");
                let value: f64 = value.parse().unwrap_or_else(|_| panic!("a number: {line}"));
                assert!(parsed.series.insert(series.to_owned(), value).is_none(), "{series} stands twice");
            }
        }
        parsed
    }

    #[test]
    fn the_page_can_be_taken_apart_and_holds_what_the_shards_said() {
        let Parsed { kinds, series } = parse(&Page::write(&facts(), &[shard(0), shard(1)], METHODS, true));
        let watches = 3_000 + 2 * Number::Watches as u64;
        assert_eq!(series["etcd_debugging_mvcc_watcher_total"], watches as f64);
        assert_eq!(series["tarsier_watch_lag_revisions"], (2_000 + Number::LagRevisions as u64) as f64);
        assert_eq!(series["tarsier_history_window_seconds"], (1_000 + Number::HistorySeconds as u64) as f64 / 1e3);
        assert_eq!(series["tarsier_shard_watches{shard=\"1\"}"], (2_000 + Number::ShardWatches as u64) as f64);
        assert_eq!(series["process_cpu_seconds_total"], 1.5);
        assert_eq!(series["process_start_time_seconds"], 1_795_467_600.042);
        assert_eq!(series["etcd_server_id{server_id=\"8e9e05c52164694d\"}"], 1.0);
        let put = "grpc_method=\"Put\",grpc_service=\"etcdserverpb.KV\",grpc_type=\"unary\"";
        assert_eq!(series[&format!("grpc_server_started_total{{{put}}}")], 14.0);
        assert_eq!(series[&format!("grpc_server_handled_total{{grpc_code=\"OK\",{put}}}")], 10.0);
        assert_eq!(series[&format!("grpc_server_handled_total{{grpc_code=\"Unavailable\",{put}}}")], 1.0);
        assert_eq!(series[&format!("grpc_server_handling_seconds_count{{{put}}}")], 0.0);
        assert_eq!(series["etcd_debugging_server_alarms{alarm_type=\"CORRUPT\",server_id=\"8e9e05c52164694d\"}"], 1.0);
        for (name, kind) in [
            ("etcd_server_proposals_committed_total", "gauge"),
            ("etcd_server_health_success", "counter"),
            ("etcd_disk_wal_fsync_duration_seconds", "histogram"),
            ("grpc_server_handling_seconds", "histogram"),
        ] {
            assert_eq!(kinds[name], kind, "etcd has it so");
        }
    }

    #[test]
    fn a_histogram_counts_upwards_from_bucket_to_bucket() {
        let Parsed { series, .. } = parse(&Page::write(&facts(), &[shard(0), shard(1)], METHODS, false));
        let bucket = |bound: &str| series[&format!("etcd_disk_wal_fsync_duration_seconds_bucket{{le=\"{bound}\"}}")];
        let counts = ["0.001", "0.002", "0.004", "0.008", "8.192", "+Inf"].map(bucket);
        assert_eq!(counts, [2.0, 4.0, 6.0, 6.0, 6.0, 8.0]);
        assert_eq!(series["etcd_disk_wal_fsync_duration_seconds_count"], 8.0);
        assert_eq!(series["etcd_disk_wal_fsync_duration_seconds_sum"], 18.012);
        assert!(!series.keys().any(|name| name.starts_with("grpc_server_handling_seconds")), "that is extensive");
        let lived = |bound: &str| series[&format!("etcd_debugging_lease_ttl_total_bucket{{le=\"{bound}\"}}")];
        assert_eq!(["1", "2", "64", "1.048576e+06", "2.097152e+06", "+Inf"].map(lived), [0.0, 2.0, 4.0, 4.0, 6.0, 6.0]);
        assert_eq!(series["etcd_debugging_lease_ttl_total_sum"], 2.0 * 2_000_062.0, "in seconds");
        let fine = series.keys().filter(|name| name.starts_with("tarsier_commit_seconds_bucket")).count();
        assert_eq!(fine, FINE.len() + 1);
    }

    #[test]
    fn alarms_that_are_not_active_have_no_series() {
        let page = Page::write(&facts(), &[Numbers::new(METHODS.len())], METHODS, false);
        assert!(!page.contains("etcd_debugging_server_alarms"));
        assert_eq!(escaped("a\"b\\c\nd"), "a\\\"b\\\\c\\nd");
    }
}
