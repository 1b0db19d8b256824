//! The numbers of one shard, and the page of all of them.
//!
//! Whoever is asked for the page asks all shards, waits for their next turns, which take microseconds, and writes what
//! they have written down. One that hangs is waited for as long as [`ANSWER_MAX`] and shown as it last was.

use std::sync::Arc;
use std::time::Duration;

use crate::metrics::{self, Facts, Number, Numbers, Page, Timing};
use crate::service::maintenance::CLUSTER_VERSION;
use crate::types::{AlarmKind, ETCD_API_VERSION, Time};
use crate::wal::meter::Meter as DiskMeter;

use super::{Core, Shard, clock, memory, process};

/// How long a shard may take to its next turn before the page is written without it.
const ANSWER_MAX: Duration = Duration::from_secs(1);
const LOOK_INTERVAL: Duration = Duration::from_millis(1);

/// What is true of the process, as far as the pages tell it.
#[derive(Clone, Debug)]
pub struct About {
    pub started_at: Time,
    pub member_id: u64,
    pub methods: Arc<[metrics::Method]>,
    /// On shard 0, which has the disk.
    pub disk: Option<Arc<DiskMeter>>,
}

impl Shard {
    /// The page, with the numbers of all shards.
    pub(super) async fn write_metrics(&self) -> String {
        let question = self.boards.ask();
        self.wake();
        for (index, bell) in self.bells.iter().enumerate() {
            if index != self.index {
                bell.ring();
            }
        }
        let begun = clock::now();
        while !self.boards.is_answered(question) && clock::now() - begun < ANSWER_MAX {
            clock::sleep(LOOK_INTERVAL).await;
        }
        let is_extensive = self.core.borrow().meter.is_extensive();
        Page::write(&self.facts(), &self.boards.numbers(), &self.about.methods, is_extensive)
    }

    /// A file of the kernel's that cannot be read leaves a zero; the page is worth more than one number of it.
    fn facts(&self) -> Facts {
        Facts {
            member_id: self.about.member_id,
            version: ETCD_API_VERSION,
            cluster_version: CLUSTER_VERSION,
            own_version: env!("CARGO_PKG_VERSION"),
            resident_bytes: memory::resident_bytes().unwrap_or_default() as u64,
            virtual_bytes: memory::virtual_bytes().unwrap_or_default() as u64,
            cpu_time: process::cpu_time(),
            descriptors_open: process::descriptors_open().unwrap_or_default(),
            descriptors_max: process::descriptors_max(),
            started_at: Duration::from_millis(self.about.started_at.0),
        }
    }

    /// What this shard has counted. Everything is counted as it happens; this only copies.
    pub(super) fn numbers(&self, core: &Core) -> Numbers {
        let mut numbers = Numbers::new(self.about.methods.len());
        core.meter.fill_in(&mut numbers);
        self.fill_in_memory(core, &mut numbers);
        self.fill_in_watches(core, &mut numbers);
        self.fill_in_connections(&mut numbers);
        self.fill_in_store(core, &mut numbers);
        numbers.set(Number::ShardTime, process::thread_cpu_time().as_nanos() as u64);
        numbers
    }

    fn fill_in_memory(&self, core: &Core, numbers: &mut Numbers) {
        let account = self.account(core);
        for (number, bytes) in [
            (Number::ConnectionBytes, account.connection_bytes),
            (Number::CallBytes, account.call_bytes),
            (Number::StreamBytes, account.stream_bytes),
            (Number::WatchBytes, account.watching_bytes),
            (Number::GroupBytes, account.group_bytes),
            (Number::BehindBytes, account.behind_bytes),
            (Number::BacklogBytes, account.backlog_bytes),
            (Number::HistoryBytes, account.history_bytes),
            (Number::StoreBytes, account.store_bytes),
            (Number::LeaseBytes, account.lease_bytes),
            (Number::ScratchBytes, account.scratch_bytes),
            (Number::SocketBytes, account.socket_bytes),
            (Number::Keys, account.store_keys),
        ] {
            numbers.set(number, bytes as u64);
        }
        if self.index == 0 {
            // What the shards share is told by one of them.
            for (number, bytes) in [
                (Number::BaseBytes, self.budget.base()),
                (Number::UncountedBytes, self.budget.uncounted()),
                (Number::MemoryUsed, self.budget.used()),
                (Number::MemoryLimit, self.budget.limit().unwrap_or(0)),
            ] {
                numbers.set(number, bytes as u64);
            }
        }
    }

    fn fill_in_watches(&self, core: &Core, numbers: &mut Numbers) {
        let counters = core.hub.counters();
        let lag = core.intake.committed().0 - core.hub.revision().0;
        let window = core.hub.oldest_at_hand().map_or(0, |oldest| clock::wall().0.saturating_sub(oldest.0));
        for (number, value) in [
            (Number::WatchStreams, counters.streams),
            (Number::Watches, counters.watches),
            (Number::SlowWatches, counters.behind),
            (Number::Events, counters.events_sent),
            (Number::SyncedWatches, counters.watches.saturating_sub(counters.behind)),
            (Number::BehindWatches, counters.behind),
            (Number::WatchGroups, counters.groups),
            (Number::FellBehind, counters.slow_events),
            (Number::LagRevisions, lag.max(0) as u64),
            (Number::HistorySeconds, window),
            (Number::RefusedWatchLimit, counters.refused.limit),
            (Number::RefusedWatchMemory, counters.refused.memory),
            (Number::RefusedWatchRequest, counters.refused.request),
            (Number::RefusedWatchCompacted, counters.refused.compacted),
            (Number::ShardWatches, counters.watches),
            (Number::ShardEvents, counters.events_sent),
        ] {
            numbers.set(number, value);
        }
    }

    fn fill_in_connections(&self, numbers: &mut Numbers) {
        let Some(server) = self.server.borrow().upgrade() else { return };
        let counters = server.counters();
        for (number, count) in [
            (Number::BytesIn, &counters.bytes_in),
            (Number::BytesOut, &counters.bytes_out),
            (Number::Connections, &counters.connections_open),
            (Number::IdleConnections, &counters.idle_connections),
            (Number::Accepted, &counters.connections_accepted),
            (Number::AtStreamLimit, &counters.at_stream_limit),
            (Number::Streams, &counters.streams_open),
            (Number::CallsReset, &counters.calls_reset),
            (Number::PageRequests, &counters.pages),
            (Number::PageBytesIn, &counters.http1_bytes_in),
            (Number::PageBytesOut, &counters.http1_bytes_out),
            (Number::RefusedConnectionLimit, &counters.connections_over_limit),
            (Number::RefusedConnectionMemory, &counters.connections_without_memory),
            (Number::RefusedAccept, &counters.connections_refused),
            (Number::RefusedBroken, &counters.connections_broken),
            (Number::RefusedStalledStream, &counters.streams_stalled),
            (Number::RefusedStalledConnection, &counters.connections_stalled),
            (Number::RefusedPings, &counters.connections_pinging),
            (Number::RefusedDeadline, &counters.calls_past_deadline),
            (Number::ShardConnections, &counters.connections_open),
        ] {
            numbers.set(number, count.get());
        }
        for (method, counts) in counters.methods.iter().enumerate().take(self.about.methods.len()) {
            numbers.set_method(method, counts.started.get(), &counts.handled.each_ref().map(|count| count.get()));
        }
    }

    /// On shard 0: the store, the log and the checkpoint.
    fn fill_in_store(&self, core: &Core, numbers: &mut Numbers) {
        let Some(embedded) = &core.embedded else { return };
        let (status, leases) = (embedded.writer().status(), embedded.writer().lease_counts());
        let alarms = |kind| status.alarms.iter().filter(|alarm| alarm.kind == kind).count() as u64;
        for (number, value) in [
            (Number::CommittedIndex, status.position),
            (Number::AppliedIndex, status.position),
            (Number::Pending, embedded.writer().groups_under_way() as u64),
            // etcd's is what the flag says, which is below 0 without a quota. An alert on its share would fire over a 0.
            (Number::QuotaBytes, status.quota_bytes.unwrap_or(-1_i64 as u64)),
            (Number::SizeBytes, status.size_bytes),
            (Number::UsedBytes, status.used_bytes),
            (Number::Revision, status.revision.0 as u64),
            // etcd's is -1 as long as nothing was compacted.
            (Number::Compacted, core.intake.compacted().map_or(-1, |revision| revision.0) as u64),
            (Number::PutBytes, embedded.put_bytes()),
            (Number::LeasesGranted, leases.granted),
            (Number::LeasesRevoked, leases.revoked),
            (Number::LeasesRenewed, leases.renewed),
            (Number::LeasesExpired, leases.expired),
            (Number::Defragmenting, u64::from(embedded.is_defragmenting())),
            (Number::NoSpaceAlarms, alarms(AlarmKind::NoSpace)),
            (Number::CorruptAlarms, alarms(AlarmKind::Corrupt)),
            (Number::DiskShort, u64::from(embedded.writer().is_short_of_space())),
        ] {
            numbers.set(number, value);
        }
        // Beside those that clients of this shard have asked for.
        for (number, value) in [(Number::Deletes, leases.deletes), (Number::Txns, leases.txns)] {
            numbers.set(number, numbers.get(number) + value);
        }
        numbers.set_timing(Timing::LeaseTtl, embedded.writer().lease_ttls());
        if let Some(disk) = &self.about.disk {
            numbers.set(Number::LogWrittenBytes, disk.log_written_bytes());
            numbers.set(Number::CheckpointAge, clock::wall().0.saturating_sub(disk.checkpointed_at().0));
            numbers.set(Number::LogBytes, disk.log_bytes());
            let (whole, damaged) = disk.scrubs();
            numbers.set(Number::ScrubsWhole, whole);
            numbers.set(Number::ScrubsDamaged, damaged);
            numbers.set_timing(Timing::LogSync, &disk.log_syncs);
            numbers.set_timing(Timing::CheckpointSync, &disk.checkpoint_syncs);
        }
    }
}
