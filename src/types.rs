//! The words that all layers share.
//!
//! Everything here is plain data: no clock, no IO, no knowledge of the wire. Keys are raw bytes and compare as raw bytes.

pub mod arena;
pub mod encode;
mod key_value;
pub mod lines;

use std::fmt;
use std::sync::Arc;

use bytes::Bytes;

pub use self::key_value::KeyValue;

/// The release of etcd whose API and flags are kept.
pub const ETCD_API_VERSION: &str = "3.7.3";

/// A key as clients send it: any bytes, compared bytewise. Never empty once it is in the store.
pub type Key = Bytes;

/// The store's counter: an empty store is at 1, and each write that changes something adds exactly 1.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Default)]
pub struct Revision(pub i64);

impl Revision {
    /// Where an empty store stands (etcd: `currentRev: 1`).
    pub const FIRST: Revision = Revision(1);
    /// Older than every revision that a store can have.
    pub const ZERO: Revision = Revision(0);

    pub fn next(self) -> Revision {
        Revision(self.0 + 1)
    }

    pub fn previous(self) -> Revision {
        Revision(self.0 - 1)
    }
}

impl fmt::Display for Revision {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// Wall-clock time in milliseconds since the Unix epoch. The core takes it as an argument and never reads a clock.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Default)]
pub struct Time(pub u64);

/// Time of a clock that only goes forward, in milliseconds since some moment of this process. Leases expire by it, so that
/// no step of the wall clock can end one early.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug, Default)]
pub struct Uptime(pub u64);

/// The id of a lease; 0 on the wire means "none".
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Default)]
pub struct LeaseId(pub i64);

impl LeaseId {
    pub const NONE: LeaseId = LeaseId(0);
}

/// A lease as the log and the checkpoint keep it. Which keys it has stands in the keys.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Lease {
    pub id: LeaseId,
    /// What was granted, in seconds.
    pub ttl: i64,
}

/// A lease with what it had left when that was last written down, in seconds. `None`: that never was, or the lease has been
/// kept alive since, and a start gives it its whole time again.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct StoredLease {
    pub lease: Lease,
    pub remaining: Option<i64>,
}

/// Which keys a request speaks of.
///
/// etcd writes this as `key` and `range_end`; [`KeyRange::from_wire`] is the one place that knows the convention.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub enum KeyRange {
    /// Exactly this key.
    One(Key),
    /// Every key with `start <= key < end`; empty when `end <= start`.
    Span { start: Key, end: Key },
    /// Every key from this one on.
    From(Key),
}

impl KeyRange {
    /// The etcd convention: no `range_end` is one key, the single byte 0 is "every key from `key` on".
    pub fn from_wire(key: Key, range_end: Bytes) -> KeyRange {
        match &range_end[..] {
            [] => KeyRange::One(key),
            [0] => KeyRange::From(key),
            _ => KeyRange::Span { start: key, end: range_end },
        }
    }

    pub fn contains(&self, key: &[u8]) -> bool {
        match self {
            KeyRange::One(one) => one == key,
            KeyRange::Span { start, end } => start <= key && key < &end[..],
            KeyRange::From(start) => start <= key,
        }
    }

    /// A span whose end does not lie above its start holds no key. A read of it is legal and finds nothing.
    pub fn is_empty(&self) -> bool {
        matches!(self, KeyRange::Span { start, end } if end <= start)
    }

    /// Bytes of its keys.
    pub fn bytes(&self) -> usize {
        match self {
            KeyRange::One(key) | KeyRange::From(key) => key.len(),
            KeyRange::Span { start, end } => start.len() + end.len(),
        }
    }

    pub fn start(&self) -> &Key {
        match self {
            KeyRange::One(key) | KeyRange::From(key) => key,
            KeyRange::Span { start, .. } => start,
        }
    }
}

/// Names one change for ever: the revision it belongs to, and its index among the changes of that revision (etcd's main
/// and sub revision).
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct ChangeId {
    pub revision: Revision,
    pub sub: u32,
}

/// Counts the groups of the log from 1, over all starts of the server. The log reports how far it is durable.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug, Default)]
pub struct Position(pub u64);

impl Position {
    pub fn next(self) -> Position {
        Position(self.0 + 1)
    }
}

/// What is wrong with a member, as etcd's alarms name it.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub enum AlarmKind {
    NoSpace,
    Corrupt,
}

#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct Alarm {
    /// The member it was raised for; a client may name any.
    pub member: u64,
    pub kind: AlarmKind,
}

/// What one command changed, as the log keeps it: the change, not the command, so that a later version replays the same
/// history.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Entry {
    Batch(Arc<Batch>),
    /// History below the revision is forgotten.
    Compaction(Revision),
    Alarm {
        alarm: Alarm,
        active: bool,
    },
    /// A lease is there from here on, or is no more. Its keys leave with the batch before.
    Lease {
        lease: Lease,
        granted: bool,
    },
    /// What a lease has left, in seconds; `None` takes back what was written before.
    Remaining {
        lease: LeaseId,
        seconds: Option<i64>,
    },
    /// The server has started; each start has its own term (etcd's raft term).
    Start {
        term: u64,
    },
    /// The server has stopped in order, and nothing follows but the next start.
    Stop,
}

/// What the store did to one key.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Change {
    /// `previous` is the state of the key before the whole *revision*, not before this change: etcd reads `prev_kv` at
    /// `mod_revision - 1`. A creation has none, even of a key that the same revision deleted before.
    Put {
        kv: KeyValue,
        previous: Option<KeyValue>,
    },
    Delete {
        key: Key,
        previous: Option<KeyValue>,
    },
}

impl Change {
    pub fn key(&self) -> &[u8] {
        match self {
            Change::Put { kv, .. } => kv.key(),
            Change::Delete { key, .. } => key,
        }
    }

    pub fn previous(&self) -> Option<&KeyValue> {
        match self {
            Change::Put { previous, .. } | Change::Delete { previous, .. } => previous.as_ref(),
        }
    }
}

/// One change as the checkpoint keeps it. Its previous state is left out: the rows before it tell it.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Row {
    pub id: ChangeId,
    /// The last change of its revision, so that a missing one shows.
    pub is_last: bool,
    /// Of the whole revision.
    pub time: Time,
    pub change: Change,
}

/// All changes of one revision, in the order in which they were made (the sub revision is the index).
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Batch {
    pub revision: Revision,
    pub time: Time,
    pub changes: Box<[Change]>,
}

impl Batch {
    /// What this batch keeps in memory, in bytes, previous versions not counted: they belong to the batch that wrote them.
    pub fn bytes(&self) -> usize {
        let changes = self.changes.iter().map(|change| match change {
            Change::Put { kv, .. } => kv.bytes(),
            Change::Delete { key, .. } => key.len(),
        });
        size_of::<Batch>() + 16 + size_of_val(&*self.changes) + changes.sum::<usize>()
    }

    /// The previous versions that it keeps, in bytes. They are its alone once a compaction has forgotten them elsewhere.
    pub fn previous_bytes(&self) -> usize {
        self.changes.iter().filter_map(Change::previous).map(KeyValue::bytes).sum()
    }

    pub fn without_previous(&self) -> Batch {
        let changes = self.changes.iter().map(|change| match change {
            Change::Put { kv, .. } => Change::Put { kv: kv.clone(), previous: None },
            Change::Delete { key, .. } => Change::Delete { key: key.clone(), previous: None },
        });
        Batch { revision: self.revision, time: self.time, changes: changes.collect() }
    }
}

/// How many watches a client may have; `None` is no limit.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct WatchLimits {
    pub per_stream: Option<u32>,
    pub per_connection: Option<u32>,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_range_end_of_one_zero_byte_means_every_key_from_here_on() {
        let range = |key: &'static [u8], end: &'static [u8]| KeyRange::from_wire(Bytes::from(key), Bytes::from(end));
        assert_eq!(range(b"a", b""), KeyRange::One("a".into()));
        assert_eq!(range(b"a", b"\0"), KeyRange::From("a".into()));
        assert!(range(b"a", b"\0").contains(b"\xff\xff"));
        assert!(range(b"a", b"c").contains(b"b") && !range(b"a", b"c").contains(b"c"));
        assert!(range(b"b", b"a").is_empty() && range(b"b", b"b").is_empty() && !range(b"b", b"b\0").is_empty());
    }
}
