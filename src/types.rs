//! The words that all layers share.
//!
//! Everything here is plain data: no clock, no IO, no knowledge of the wire. Keys are raw bytes and compare as raw bytes.

pub mod encode;
pub mod lines;

use std::fmt;
use std::sync::Arc;

use bytes::Bytes;

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

/// The id of a lease; 0 on the wire means "none".
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Default)]
pub struct LeaseId(pub i64);

impl LeaseId {
    pub const NONE: LeaseId = LeaseId(0);
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

/// One version of a key. Cloning copies a handle; the bytes are shared between the store, history and every reader.
///
/// One allocation holds a fixed head and then key and value, because a separate allocation each for key, value and
/// numbers would cost 50 bytes more a stored version.
#[derive(Clone, PartialEq, Eq)]
pub struct KeyValue(Arc<[u8]>);

/// create_revision, mod_revision, version, lease: 8 bytes each; then 4 bytes of key length and 4 of sub revision.
const HEAD_BYTES: usize = 40;

impl KeyValue {
    /// `mod_revision` and `sub` together name the change that wrote this version.
    ///
    /// # Panics
    /// When the key is longer than 4 GiB; request limits keep it far below.
    pub fn new(
        key: &[u8],
        value: &[u8],
        create_revision: Revision,
        mod_revision: Revision,
        sub: u32,
        version: i64,
        lease: LeaseId,
    ) -> KeyValue {
        let key_len = u32::try_from(key.len()).expect("request limits keep a key below 4 GiB");
        // Filled in place: a vector that becomes an `Arc` is allocated and copied twice, on the path of every put.
        let mut shared: Arc<[u8]> = std::iter::repeat_n(0, HEAD_BYTES + key.len() + value.len()).collect();
        let bytes = Arc::get_mut(&mut shared).expect("nobody else has the handle yet");
        for (at, number) in [create_revision.0, mod_revision.0, version, lease.0].into_iter().enumerate() {
            bytes[at * 8..at * 8 + 8].copy_from_slice(&number.to_le_bytes());
        }
        bytes[32..36].copy_from_slice(&key_len.to_le_bytes());
        bytes[36..HEAD_BYTES].copy_from_slice(&sub.to_le_bytes());
        let (key_bytes, value_bytes) = bytes[HEAD_BYTES..].split_at_mut(key.len());
        key_bytes.copy_from_slice(key);
        value_bytes.copy_from_slice(value);
        KeyValue(shared)
    }

    fn number(&self, at: usize) -> i64 {
        i64::from_le_bytes(self.0[at * 8..at * 8 + 8].try_into().expect("the slice has 8 bytes"))
    }

    fn key_end(&self) -> usize {
        let key_len = u32::from_le_bytes(self.0[32..36].try_into().expect("the slice has 4 bytes"));
        HEAD_BYTES + key_len as usize
    }

    pub fn key(&self) -> &[u8] {
        &self.0[HEAD_BYTES..self.key_end()]
    }

    pub fn value(&self) -> &[u8] {
        &self.0[self.key_end()..]
    }

    /// The revision of the put that created the key or created it anew.
    pub fn create_revision(&self) -> Revision {
        Revision(self.number(0))
    }

    /// The revision of the put that wrote this version.
    pub fn mod_revision(&self) -> Revision {
        Revision(self.number(1))
    }

    /// The index of that put among the changes of its revision.
    pub fn sub(&self) -> u32 {
        u32::from_le_bytes(self.0[36..HEAD_BYTES].try_into().expect("the slice has 4 bytes"))
    }

    /// The change that wrote this version.
    pub fn id(&self) -> ChangeId {
        ChangeId { revision: self.mod_revision(), sub: self.sub() }
    }

    /// 1 at creation, one more with each put.
    pub fn version(&self) -> i64 {
        self.number(2)
    }

    pub fn lease(&self) -> LeaseId {
        LeaseId(self.number(3))
    }

    /// What one stored version takes, in bytes: the two reference counts, the head, key and value.
    pub fn bytes(&self) -> usize {
        16 + self.0.len()
    }
}

impl fmt::Debug for KeyValue {
    /// Values stay out of logs; the key and the numbers tell which version it is.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("KeyValue")
            .field("key", &Bytes::copy_from_slice(self.key()))
            .field("create_revision", &self.create_revision().0)
            .field("mod_revision", &self.mod_revision().0)
            .field("sub", &self.sub())
            .field("version", &self.version())
            .field("lease", &self.lease().0)
            .field("value_bytes", &self.value().len())
            .finish()
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
    fn a_key_value_gives_back_what_went_in() {
        let kv = KeyValue::new(b"key", b"value", Revision(2), Revision(9), 3, 4, LeaseId(-7));
        assert_eq!((kv.key(), kv.value()), (&b"key"[..], &b"value"[..]));
        assert_eq!((kv.create_revision(), kv.mod_revision()), (Revision(2), Revision(9)));
        assert_eq!((kv.version(), kv.lease()), (4, LeaseId(-7)));
        assert_eq!(kv.id(), ChangeId { revision: Revision(9), sub: 3 });
        let empty = KeyValue::new(b"k", b"", Revision(2), Revision(2), 0, 1, LeaseId::NONE);
        assert_eq!((empty.key(), empty.value()), (&b"k"[..], &b""[..]));
    }

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
