//! What the process holds, in bytes by class.
//!
//! Our own memory is counted as it comes and goes. What h2, the runtime and the allocator add for a connection is a
//! measured constant, and `base` is what was resident when the server became ready. The sum lies within a tenth of the
//! resident memory; SIGUSR1 prints both. What the kernel holds for sockets is not resident, and so stands apart: a constant
//! each, and the cap where a peer does not take what is due to it. Each shard adds its numbers up in every turn, for
//! [`super::budget`].
//!
//! # Costs
//!
//! In bytes, allocator slack included. `costs` holds the lines of the core true by counting allocations; those of
//! connections are resident memory on two shards, huge pages off, and [`crate::net::Server::bytes`] has their constants.
//!
//! | what | bytes |
//! | --- | --- |
//! | the empty server, two shards | 9.3 MB, of which 2.3 MB are anonymous and the rest text and rings |
//! | a connection with one call, as long as it is busy | 18,600 |
//! | the same after some seconds of silence, unless `--idle-buffers=keep` | 10,400 |
//! | each further call it has had at once | 640 |
//! | a watch stream in the hub | 80 |
//! | its first watch, on a key of its own of 32 bytes | 112 |
//! | each of a hundred watches of a stream on keys of their own | 101 |
//! | each of a hundred watches of a stream on spans of their own, 32 bytes at either end | 173 |
//! | each of fifty watches on one key | 16, of which 10 in the group and 5 in the list of the stream |
//! | each of a hundred watches of a stream, all of 51,200 on one key | 14 |
//! | a span instead of a key | 24 more, and the bytes of its end |
//!
//! What is left of the opening of a connection with one silent stream, by the size classes of what the allocator gave:
//!
//! | what | bytes |
//! | --- | --- |
//! | a page of [`crate::heap`]: h2's decoder and tables of headers, its first places for events and frames, what its streams share | 4,096 |
//! | the note of that page | 56 |
//! | the task, with h2's connection inside | 1,792 |
//! | h2's first four places for streams | 1,536 |
//! | h2's pings and settings, and the block of headers that it encodes | 300 |
//! | ours: socket, meter and what is gathered for it | 540 |
//! | ours: the rows of its streams, four at first | 384 |
//!
//! The buffers that h2 reads to and writes from, 8 and 16 KiB of which a page each is touched, are those given back.

use std::fmt;

/// Bytes of one shard, or the sum over all of them.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Account {
    /// The process before its first client: text, stacks, rings, empty pools.
    pub base: usize,
    /// Open connections, and the bytes of theirs: tasks, h2's buffers and slabs at their high-water marks.
    pub connections: usize,
    pub connection_bytes: usize,
    /// Open calls of all kinds, and the bytes of their rows in connections and services.
    pub calls: usize,
    pub call_bytes: usize,
    /// Rows of watch streams in the hub.
    pub streams: usize,
    pub stream_bytes: usize,
    /// Watchings: their place in a group and in the list of their stream.
    pub watchings: usize,
    pub watching_bytes: usize,
    /// Groups of equal watchings with their keys and spans.
    pub groups: usize,
    pub group_bytes: usize,
    /// Watchings that are behind, with the revision each holds.
    pub behind: usize,
    pub behind_bytes: usize,
    /// Bytes queued for streams.
    pub backlog_bytes: usize,
    /// Uncompacted batches, versions aside. The store and the recent history of every shard share them.
    pub history_bytes: usize,
    /// Keys and their versions.
    pub store_keys: usize,
    pub store_bytes: usize,
    /// Leases, and the keys that go with them.
    pub leases: usize,
    pub lease_bytes: usize,
    /// Rows that reads have collected, and those of answers on their way out.
    pub scratch_bytes: usize,
    /// What the kernel holds for the sockets. Not part of the sum.
    pub socket_bytes: usize,
}

impl Account {
    pub fn sum(&self) -> usize {
        self.base
            + self.connection_bytes
            + self.call_bytes
            + self.stream_bytes
            + self.watching_bytes
            + self.group_bytes
            + self.behind_bytes
            + self.backlog_bytes
            + self.history_bytes
            + self.store_bytes
            + self.lease_bytes
            + self.scratch_bytes
    }

    pub fn add(&mut self, other: &Account) {
        self.base += other.base;
        self.connections += other.connections;
        self.connection_bytes += other.connection_bytes;
        self.calls += other.calls;
        self.call_bytes += other.call_bytes;
        self.streams += other.streams;
        self.stream_bytes += other.stream_bytes;
        self.watchings += other.watchings;
        self.watching_bytes += other.watching_bytes;
        self.groups += other.groups;
        self.group_bytes += other.group_bytes;
        self.behind += other.behind;
        self.behind_bytes += other.behind_bytes;
        self.backlog_bytes += other.backlog_bytes;
        self.history_bytes += other.history_bytes;
        self.store_keys += other.store_keys;
        self.store_bytes += other.store_bytes;
        self.leases += other.leases;
        self.lease_bytes += other.lease_bytes;
        self.scratch_bytes += other.scratch_bytes;
        self.socket_bytes += other.socket_bytes;
    }
}

impl fmt::Display for Account {
    /// The page that SIGUSR1 prints.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let rows = [
            ("base", None, self.base),
            ("connections", Some(self.connections), self.connection_bytes),
            ("calls", Some(self.calls), self.call_bytes),
            ("watch streams", Some(self.streams), self.stream_bytes),
            ("watchings", Some(self.watchings), self.watching_bytes),
            ("groups and keys", Some(self.groups), self.group_bytes),
            ("behind", Some(self.behind), self.behind_bytes),
            ("backlog", None, self.backlog_bytes),
            ("history", None, self.history_bytes),
            ("store", Some(self.store_keys), self.store_bytes),
            ("leases", Some(self.leases), self.lease_bytes),
            ("scratch", None, self.scratch_bytes),
        ];
        writeln!(f, "{:<16} {:>12} {:>16}", "class", "count", "bytes")?;
        for (class, count, bytes) in rows {
            let count = count.map(|count| count.to_string()).unwrap_or_default();
            writeln!(f, "{class:<16} {count:>12} {bytes:>16}")?;
        }
        writeln!(f, "{:<16} {:>12} {:>16}", "sum", "", self.sum())?;
        writeln!(f, "{:<16} {:>12} {:>16}", "sockets", self.connections, self.socket_bytes)
    }
}
