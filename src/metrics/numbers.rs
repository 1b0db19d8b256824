//! The table of all numbers: what each is called, what it says, and how those of the shards become one.
//!
//! A shard fills in a [`Numbers`] when somebody asks; the page adds them up and writes them. A new metric is a row here and
//! a line where the shard fills in. Names that begin with `etcd_` are etcd's, with its help, kind and labels, because
//! boards and alerts read them; ours begin with `tarsier_`.

use super::histogram::{self, BOUNDS_MAX, Bounds, DISK, FINE, Histogram, TTL};

/// How the numbers of the shards become one.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Across {
    /// Also for what only shard 0 knows: the others say 0.
    Sum,
    Largest,
    Smallest,
    /// One series a shard.
    Apart,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Kind {
    Counter,
    Gauge,
    Histogram,
}

impl Kind {
    pub fn word(self) -> &'static str {
        match self {
            Kind::Counter => "counter",
            Kind::Gauge => "gauge",
            Kind::Histogram => "histogram",
        }
    }
}

/// What a number counts; the page is written in base units.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Unit {
    One,
    /// One as well, and it may be below zero.
    Signed,
    Milliseconds,
    Nanoseconds,
}

/// One series of the page, or one a shard.
#[derive(Clone, Copy, Debug)]
pub struct Row {
    pub number: Number,
    pub across: Across,
    pub kind: Kind,
    pub unit: Unit,
    pub name: &'static str,
    /// As they stand between the braces; empty when there are none.
    pub labels: &'static str,
    pub help: &'static str,
}

macro_rules! numbers {
    ($($number:ident $across:ident $kind:ident $unit:ident $name:literal $labels:literal $help:literal;)*) => {
        /// A number that a shard fills in.
        #[derive(Clone, Copy, PartialEq, Eq, Debug)]
        pub enum Number { $($number,)* }

        /// Rows of one name stand together.
        pub const ROWS: &[Row] = &[$(Row {
            number: Number::$number,
            across: Across::$across,
            kind: Kind::$kind,
            unit: Unit::$unit,
            name: $name,
            labels: $labels,
            help: $help,
        },)*];
    };
}

numbers! {
    CommittedIndex Sum Gauge One "etcd_server_proposals_committed_total" "" "The total number of consensus proposals committed.";
    AppliedIndex Sum Gauge One "etcd_server_proposals_applied_total" "" "The total number of consensus proposals applied.";
    Pending Sum Gauge One "etcd_server_proposals_pending" "" "The current number of pending proposals to commit.";
    Failed Sum Counter One "etcd_server_proposals_failed_total" "" "The total number of failed proposals seen.";
    SlowApplies Sum Counter One "etcd_server_slow_apply_total" "" "The total number of slow apply requests (likely overloaded from slow disk).";
    QuotaBytes Sum Gauge Signed "etcd_server_quota_backend_bytes" "" "Current backend storage quota size in bytes.";
    HealthSuccesses Sum Counter One "etcd_server_health_success" "" "The total number of successful health checks";
    HealthFailures Sum Counter One "etcd_server_health_failures" "" "The total number of failed health checks";
    SizeBytes Sum Gauge One "etcd_mvcc_db_total_size_in_bytes" "" "Total size of the underlying database physically allocated in bytes.";
    UsedBytes Sum Gauge One "etcd_mvcc_db_total_size_in_use_in_bytes" "" "Total size of the underlying database logically in use in bytes.";
    Puts Sum Counter One "etcd_mvcc_put_total" "" "Total number of puts seen by this member.";
    Deletes Sum Counter One "etcd_mvcc_delete_total" "" "Total number of deletes seen by this member.";
    Ranges Sum Counter One "etcd_mvcc_range_total" "" "Total number of ranges seen by this member.";
    Txns Sum Counter One "etcd_mvcc_txn_total" "" "Total number of txns seen by this member.";
    Keys Sum Gauge One "etcd_debugging_mvcc_keys_total" "" "Total number of keys.";
    Revision Sum Gauge One "etcd_debugging_mvcc_current_revision" "" "The current revision of store.";
    Compacted Sum Gauge Signed "etcd_debugging_mvcc_compact_revision" "" "The revision of the last compaction in store.";
    PutBytes Sum Gauge One "etcd_debugging_mvcc_total_put_size_in_bytes" "" "The total size of put kv pairs seen by this member.";
    LeasesGranted Sum Counter One "etcd_debugging_lease_granted_total" "" "The total number of granted leases.";
    LeasesRevoked Sum Counter One "etcd_debugging_lease_revoked_total" "" "The total number of revoked leases.";
    LeasesRenewed Sum Counter One "etcd_debugging_lease_renewed_total" "" "The number of renewed leases seen by the leader.";
    LeasesExpired Sum Counter One "etcd_debugging_server_lease_expired_total" "" "The total number of expired leases.";
    WatchStreams Sum Gauge One "etcd_debugging_mvcc_watch_stream_total" "" "Total number of watch streams.";
    Watches Sum Gauge One "etcd_debugging_mvcc_watcher_total" "" "Total number of watchers.";
    SlowWatches Sum Gauge One "etcd_debugging_mvcc_slow_watcher_total" "" "Total number of unsynced slow watchers.";
    Events Sum Counter One "etcd_debugging_mvcc_events_total" "" "Total number of events sent by this member.";
    BytesIn Sum Counter One "etcd_network_client_grpc_received_bytes_total" "" "The total number of bytes received from grpc clients.";
    BytesOut Sum Counter One "etcd_network_client_grpc_sent_bytes_total" "" "The total number of bytes sent to grpc clients.";
    LogWrittenBytes Sum Gauge One "etcd_disk_wal_write_bytes_total" "" "Total number of bytes written in WAL.";
    Defragmenting Sum Gauge One "etcd_disk_defrag_inflight" "" "Whether or not defrag is active on the member. 1 means active, 0 means not.";

    NoSpaceAlarms Sum Gauge One "tarsier_alarms" "alarm=\"NOSPACE\"" "Active alarms, by kind.";
    CorruptAlarms Sum Gauge One "tarsier_alarms" "alarm=\"CORRUPT\"" "";
    DiskShort Sum Gauge One "tarsier_disk_short_of_space" "" "Whether the disk lacks room for the log or the checkpoint: while it is 1, puts are refused and raise the alarm.";

    BaseBytes Sum Gauge One "tarsier_memory_bytes" "class=\"base\"" "Memory held, by class, as the server counts it.";
    ConnectionBytes Sum Gauge One "tarsier_memory_bytes" "class=\"connections\"" "";
    CallBytes Sum Gauge One "tarsier_memory_bytes" "class=\"calls\"" "";
    StreamBytes Sum Gauge One "tarsier_memory_bytes" "class=\"watch_streams\"" "";
    WatchBytes Sum Gauge One "tarsier_memory_bytes" "class=\"watches\"" "";
    GroupBytes Sum Gauge One "tarsier_memory_bytes" "class=\"watch_groups\"" "";
    BehindBytes Sum Gauge One "tarsier_memory_bytes" "class=\"watches_behind\"" "";
    BacklogBytes Sum Gauge One "tarsier_memory_bytes" "class=\"backlog\"" "";
    HistoryBytes Sum Gauge One "tarsier_memory_bytes" "class=\"history\"" "";
    StoreBytes Sum Gauge One "tarsier_memory_bytes" "class=\"store\"" "";
    LeaseBytes Sum Gauge One "tarsier_memory_bytes" "class=\"leases\"" "";
    ScratchBytes Sum Gauge One "tarsier_memory_bytes" "class=\"scratch\"" "";
    SocketBytes Sum Gauge One "tarsier_memory_bytes" "class=\"sockets\"" "";
    UncountedBytes Sum Gauge One "tarsier_memory_bytes" "class=\"uncounted\"" "";
    MemoryUsed Sum Gauge One "tarsier_memory_used_bytes" "" "Memory held in all, what is resident and counted nowhere and the kernel's share for sockets included.";
    MemoryLimit Sum Gauge One "tarsier_memory_limit_bytes" "" "What it may hold; 0 means no limit.";

    SyncedWatches Sum Gauge One "tarsier_watches" "state=\"synced\"" "Watches, by whether they stand at the live edge or still read history.";
    BehindWatches Sum Gauge One "tarsier_watches" "state=\"behind\"" "";
    WatchGroups Sum Gauge One "tarsier_watch_groups" "" "Different ranges that are watched: equal watches are kept once.";
    FellBehind Sum Counter One "tarsier_watches_fell_behind_total" "" "How often a watch fell behind because its stream had no room.";
    LagRevisions Largest Gauge One "tarsier_watch_lag_revisions" "" "Committed revisions that the shard which lags most has not told its watches of.";
    HistorySeconds Smallest Gauge Milliseconds "tarsier_history_window_seconds" "" "How far back the changes reach that every shard has at hand for watches that fall behind.";

    Connections Sum Gauge One "tarsier_connections" "" "Open connections.";
    IdleConnections Sum Gauge One "tarsier_connections_idle" "" "Open connections that are silent and have given their buffers back.";
    Accepted Sum Counter One "tarsier_connections_accepted_total" "" "Connections that were accepted.";
    AtStreamLimit Sum Counter One "tarsier_connections_at_stream_limit_total" "" "Connections that have had as many streams at once as they may.";
    Streams Sum Gauge One "tarsier_streams" "" "Open HTTP/2 streams: calls and watch streams.";
    CallsReset Sum Counter One "tarsier_calls_reset_total" "" "Calls that ended without an answer, reset by their client or gone with it.";
    PageRequests Sum Counter One "tarsier_http1_requests_total" "" "Requests of HTTP/1.1: health checks, metrics and whatever else comes.";
    PageBytesIn Sum Counter One "tarsier_http1_received_bytes_total" "" "Bytes received from clients that speak HTTP/1.1.";
    PageBytesOut Sum Counter One "tarsier_http1_sent_bytes_total" "" "Bytes sent to clients that speak HTTP/1.1.";

    RefusedConnectionLimit Sum Counter One "tarsier_refusals_total" "reason=\"connection_limit\"" "What was refused or ended, by reason.";
    RefusedConnectionMemory Sum Counter One "tarsier_refusals_total" "reason=\"connection_memory\"" "";
    RefusedAccept Sum Counter One "tarsier_refusals_total" "reason=\"accept_failed\"" "";
    RefusedBroken Sum Counter One "tarsier_refusals_total" "reason=\"broken_connection\"" "";
    RefusedStalledStream Sum Counter One "tarsier_refusals_total" "reason=\"stalled_stream\"" "";
    RefusedStalledConnection Sum Counter One "tarsier_refusals_total" "reason=\"stalled_connection\"" "";
    RefusedPings Sum Counter One "tarsier_refusals_total" "reason=\"too_many_pings\"" "";
    RefusedDeadline Sum Counter One "tarsier_refusals_total" "reason=\"call_past_deadline\"" "";
    RefusedWatchLimit Sum Counter One "tarsier_refusals_total" "reason=\"watch_limit\"" "";
    RefusedWatchMemory Sum Counter One "tarsier_refusals_total" "reason=\"watch_memory\"" "";
    RefusedWatchRequest Sum Counter One "tarsier_refusals_total" "reason=\"watch_request\"" "";
    RefusedWatchCompacted Sum Counter One "tarsier_refusals_total" "reason=\"watch_compacted\"" "";
    RefusedRangeMemory Sum Counter One "tarsier_refusals_total" "reason=\"range_memory\"" "";
    RefusedSpace Sum Counter One "tarsier_refusals_total" "reason=\"no_space\"" "";

    CheckpointAge Sum Gauge Milliseconds "tarsier_checkpoint_age_seconds" "" "Time since the checkpoint last took over what the log holds.";
    LogBytes Sum Gauge One "tarsier_log_bytes_since_checkpoint" "" "Bytes in the log that the checkpoint does not hold yet: what a start replays.";
    ScrubsWhole Sum Counter One "tarsier_scrubs_total" "result=\"whole\"" "Readings of the whole checkpoint in search of damage, by what was found.";
    ScrubsDamaged Sum Counter One "tarsier_scrubs_total" "result=\"damaged\"" "";

    ShardConnections Apart Gauge One "tarsier_shard_connections" "" "Open connections of each shard.";
    ShardWatches Apart Gauge One "tarsier_shard_watches" "" "Watches of each shard.";
    ShardEvents Apart Counter One "tarsier_shard_events_total" "" "Responses with events that each shard has sent.";
    ShardTime Apart Counter Nanoseconds "tarsier_shard_cpu_seconds_total" "" "CPU time of each shard's thread.";
}

/// What took how long, or is to last how long.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Timing {
    LogSync,
    CheckpointSync,
    Commit,
    Delivery,
    LeaseTtl,
}

pub struct TimingRow {
    pub timing: Timing,
    pub name: &'static str,
    pub bounds: Bounds,
    /// Of the bounds.
    pub unit: Unit,
    pub help: &'static str,
}

pub const TIMINGS: &[TimingRow] = &[
    TimingRow {
        timing: Timing::LogSync,
        name: "etcd_disk_wal_fsync_duration_seconds",
        bounds: DISK,
        unit: Unit::Nanoseconds,
        help: "The latency distributions of fsync called by WAL.",
    },
    TimingRow {
        timing: Timing::CheckpointSync,
        name: "etcd_disk_backend_commit_duration_seconds",
        bounds: DISK,
        unit: Unit::Nanoseconds,
        help: "The latency distributions of commit called by backend.",
    },
    TimingRow {
        timing: Timing::Commit,
        name: "tarsier_commit_seconds",
        bounds: FINE,
        unit: Unit::Nanoseconds,
        help: "Time from the turn that takes writes to the moment at which they are durable and may be told.",
    },
    TimingRow {
        timing: Timing::Delivery,
        name: "tarsier_watch_delivery_seconds",
        bounds: FINE,
        unit: Unit::Nanoseconds,
        help: "Time from a write to the moment at which its events were handed to the sockets of a shard, for one write in some.",
    },
    TimingRow {
        timing: Timing::LeaseTtl,
        name: "etcd_debugging_lease_ttl_total",
        bounds: TTL,
        unit: Unit::One,
        help: "Bucketed histogram of lease TTLs.",
    },
];

/// Calls of one method that ended, by code.
pub const CODES: [&str; 17] = [
    "OK",
    "Canceled",
    "Unknown",
    "InvalidArgument",
    "DeadlineExceeded",
    "NotFound",
    "AlreadyExists",
    "PermissionDenied",
    "ResourceExhausted",
    "FailedPrecondition",
    "Aborted",
    "OutOfRange",
    "Unimplemented",
    "Internal",
    "Unavailable",
    "DataLoss",
    "Unauthenticated",
];

/// What is counted of one method: calls begun, calls ended by code, and how long unary ones took.
const METHOD_WORDS: usize = 1 + CODES.len() + histogram::WORDS;

/// Everything that one shard has counted, at one moment: words in a fixed order, so that they go from shard to shard
/// without a lock.
#[derive(Clone, Debug)]
pub struct Numbers(Vec<u64>);

impl Numbers {
    pub fn words(methods: usize) -> usize {
        ROWS.len() + TIMINGS.len() * histogram::WORDS + methods * METHOD_WORDS
    }

    pub fn new(methods: usize) -> Numbers {
        Numbers(vec![0; Numbers::words(methods)])
    }

    pub fn as_words(&self) -> &[u64] {
        &self.0
    }

    pub fn from_words(words: Vec<u64>) -> Numbers {
        Numbers(words)
    }

    pub fn set(&mut self, number: Number, value: u64) {
        self.0[number as usize] = value;
    }

    pub fn get(&self, number: Number) -> u64 {
        self.0[number as usize]
    }

    fn timing_at(timing: Timing) -> usize {
        ROWS.len() + timing as usize * histogram::WORDS
    }

    pub fn set_timing(&mut self, timing: Timing, histogram: &Histogram) {
        let at = Numbers::timing_at(timing);
        histogram.read(&mut self.0[at..at + histogram::WORDS]);
    }

    pub fn timing(&self, timing: Timing) -> &[u64] {
        let at = Numbers::timing_at(timing);
        &self.0[at..at + histogram::WORDS]
    }

    fn method_at(method: usize) -> usize {
        ROWS.len() + TIMINGS.len() * histogram::WORDS + method * METHOD_WORDS
    }

    pub fn set_method(&mut self, method: usize, started: u64, handled: &[u64; CODES.len()]) {
        let at = Numbers::method_at(method);
        self.0[at] = started;
        self.0[at + 1..at + 1 + CODES.len()].copy_from_slice(handled);
    }

    pub fn set_handling(&mut self, method: usize, histogram: &Histogram) {
        let at = Numbers::method_at(method) + 1 + CODES.len();
        histogram.read(&mut self.0[at..at + histogram::WORDS]);
    }

    pub fn started(&self, method: usize) -> u64 {
        self.0[Numbers::method_at(method)]
    }

    pub fn handled(&self, method: usize) -> &[u64] {
        let at = Numbers::method_at(method) + 1;
        &self.0[at..at + CODES.len()]
    }

    pub fn handling(&self, method: usize) -> &[u64] {
        let at = Numbers::method_at(method) + 1 + CODES.len();
        &self.0[at..at + histogram::WORDS]
    }

    /// Those of all shards in one, each by its rule. Series that stay apart are of no meaning in it.
    pub fn across(shards: &[Numbers]) -> Numbers {
        let mut sum = Numbers(vec![0; shards.first().map_or(0, |numbers| numbers.0.len())]);
        for (at, word) in sum.0.iter_mut().enumerate() {
            let words = shards.iter().map(|numbers| numbers.0[at]);
            *word = match ROWS.get(at).map(|row| row.across) {
                Some(Across::Largest) => words.max().unwrap_or(0),
                Some(Across::Smallest) => words.min().unwrap_or(0),
                Some(Across::Sum | Across::Apart) | None => words.fold(0, u64::wrapping_add),
            };
        }
        sum
    }
}

/// How many observations a copied histogram has, and their sum in the unit of its bounds.
pub fn totals(words: &[u64]) -> (u64, u64) {
    (words[..=BOUNDS_MAX].iter().sum(), words[BOUNDS_MAX + 1])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rows_stand_in_the_order_of_their_numbers_and_those_of_one_name_together() {
        let mut names: Vec<&str> = Vec::new();
        for (at, row) in ROWS.iter().enumerate() {
            assert_eq!(row.number as usize, at);
            if names.last() != Some(&row.name) {
                assert!(!names.contains(&row.name), "{} stands in two places", row.name);
                assert!(!row.help.is_empty(), "{} has no help", row.name);
                names.push(row.name);
            } else {
                assert!(row.help.is_empty() && !row.labels.is_empty(), "{}: the first row has the help", row.name);
                assert!((row.kind, row.unit) == (ROWS[at - 1].kind, ROWS[at - 1].unit), "{}", row.name);
            }
        }
        for (at, row) in TIMINGS.iter().enumerate() {
            assert_eq!(row.timing as usize, at);
        }
    }

    #[test]
    fn shards_are_added_up_each_number_by_its_rule() {
        let shard = |sum: u64, lag: u64, window: u64| {
            let mut numbers = Numbers::new(2);
            numbers.set(Number::Watches, sum);
            numbers.set(Number::LagRevisions, lag);
            numbers.set(Number::HistorySeconds, window);
            let mut handled = [0; CODES.len()];
            handled[14] = sum;
            numbers.set_method(1, sum + 1, &handled);
            let histogram = Histogram::new(FINE);
            histogram.observe(std::time::Duration::from_nanos(sum));
            numbers.set_timing(Timing::Delivery, &histogram);
            numbers
        };
        let sum = Numbers::across(&[shard(3, 9, 70), shard(4, 2, 50)]);
        assert_eq!(
            (sum.get(Number::Watches), sum.get(Number::LagRevisions), sum.get(Number::HistorySeconds)),
            (7, 9, 50)
        );
        assert_eq!((sum.started(0), sum.started(1), sum.handled(1)[14]), (0, 9, 7));
        assert_eq!(totals(sum.timing(Timing::Delivery)), (2, 7));
    }
}
