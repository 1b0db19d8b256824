//! What the store is asked and what it answers: the vocabulary of KV, free of the wire.
//!
//! `service/kv` has already refused what etcd refuses before it proposes (empty keys, too many operations, keys put twice
//! in one transaction, unknown sort orders); what depends on the state is judged here.

use bytes::Bytes;

use crate::types::{Alarm, Key, KeyRange, KeyValue, LeaseId, Revision};

/// A request that may change the store. It is ordered by the writer and applied once.
#[derive(Clone, Debug)]
pub enum Write {
    Put(Put),
    DeleteRange(DeleteRange),
    Txn(Txn),
    /// Forget history below the revision (etcd-style: the newest version at or below it stays readable).
    Compact(Revision),
    /// Raises an alarm or takes it back. It is never refused.
    Alarm {
        alarm: Alarm,
        active: bool,
    },
}

/// A request that only looks. It is served at the committed revision of the moment it starts.
#[derive(Clone, Debug)]
pub enum Read {
    Range(Range),
    /// The first rows of a range in key order, as many as its limit says and no walk behind them: `more` tells whether there
    /// are further ones, and the count is that of the rows.
    Part(Range),
    /// A transaction whose both branches only range, and that nests none.
    Txn(Txn),
    /// etcd's hash over what is stored up to a revision. 0 is the newest; below 0 nothing is hashed.
    Hash {
        revision: i64,
    },
}

#[derive(Clone, Debug)]
pub struct Put {
    pub key: Key,
    pub value: PutValue,
    pub lease: PutLease,
    pub prev_kv: bool,
}

#[derive(Clone, Debug)]
pub enum PutValue {
    Set(Bytes),
    /// `ignore_value`: keep the value; the key must exist.
    Keep,
}

#[derive(Clone, Copy, Debug)]
pub enum PutLease {
    /// 0 detaches the key from any lease.
    Set(LeaseId),
    /// `ignore_lease`: keep the lease; the key must exist.
    Keep,
}

#[derive(Clone, Debug)]
pub struct DeleteRange {
    pub range: KeyRange,
    pub prev_kv: bool,
}

#[derive(Clone, Debug)]
pub struct Range {
    pub range: KeyRange,
    /// As it came: outside a transaction 0 and below mean "now"; inside one, only 0 does (a quirk of etcd's).
    pub revision: i64,
    /// 0 is unlimited.
    pub limit: usize,
    pub order: SortOrder,
    pub target: SortTarget,
    pub keys_only: bool,
    pub count_only: bool,
    /// Inclusive bounds; 0 is off.
    pub min_mod_revision: i64,
    pub max_mod_revision: i64,
    pub min_create_revision: i64,
    pub max_create_revision: i64,
}

impl Range {
    pub fn has_revision_bounds(&self) -> bool {
        let bounds = [self.min_mod_revision, self.max_mod_revision, self.min_create_revision, self.max_create_revision];
        bounds != [0; 4]
    }
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum SortOrder {
    None,
    Ascend,
    Descend,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum SortTarget {
    Key,
    Version,
    Create,
    Mod,
    Value,
}

#[derive(Clone, Debug)]
pub struct Txn {
    pub compares: Vec<Compare>,
    pub success: Vec<Op>,
    pub failure: Vec<Op>,
}

#[derive(Clone, Debug)]
pub enum Op {
    Range(Range),
    Put(Put),
    DeleteRange(DeleteRange),
    Txn(Txn),
}

#[derive(Clone, Debug)]
pub struct Compare {
    pub range: KeyRange,
    pub relation: Relation,
    pub operand: Operand,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Relation {
    Equal,
    Greater,
    Less,
    NotEqual,
    /// An enum value that etcd does not know: always true there.
    Unknown,
}

/// The target with the operand that the request carries for it; a request whose union member is another one than its
/// target compares with 0 or with empty bytes.
#[derive(Clone, Debug)]
pub enum Operand {
    Version(i64),
    Create(i64),
    Mod(i64),
    Value(Bytes),
    Lease(i64),
    /// A target that etcd does not know: every key compares as equal to it.
    Unknown,
}

/// The answer to one request, with the revision that its header carries.
#[derive(Clone, PartialEq, Debug)]
pub struct Answer {
    pub revision: Revision,
    pub result: Outcome,
}

#[derive(Clone, PartialEq, Debug)]
pub enum Outcome {
    Range(Rows),
    Put {
        previous: Option<KeyValue>,
    },
    /// `previous` is empty unless `prev_kv` was asked.
    DeleteRange {
        deleted: u64,
        previous: Vec<KeyValue>,
    },
    Txn(TxnOutcome),
    Compact,
    Hash(Hash),
    /// The alarm that was raised, also when it was active before; or the one that was taken back, if it was active.
    Alarm(Option<Alarm>),
}

/// What was hashed, and under which compaction: two hashes compare only if both are the same.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Hash {
    pub hash: u32,
    pub revision: Revision,
    /// -1 before the first compaction.
    pub compacted: Revision,
}

/// What a range found.
#[derive(Clone, PartialEq, Debug, Default)]
pub struct Rows {
    pub rows: Vec<KeyValue>,
    /// How the rows are to be shown: etcd 3.7 answers a keys-only range from its index, and then the lease is missing too,
    /// unless it had to sort by value.
    pub show: Show,
    pub more: bool,
    pub count: u64,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub enum Show {
    #[default]
    All,
    WithoutValue,
    WithoutValueAndLease,
}

#[derive(Clone, PartialEq, Debug)]
pub struct TxnOutcome {
    pub succeeded: bool,
    /// One for each operation of the chosen branch. Each answer's revision is that of its own header; a nested
    /// transaction's header is present and empty, so its revision is 0.
    pub answers: Vec<Answer>,
}

/// Why the store refused. Each is one row of etcd's error table; `service/errors` has the words.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Error {
    /// The revision asked for lies below the compacted one.
    Compacted { asked: i64, compacted: Revision },
    /// The revision asked for lies above the current one.
    FutureRevision { asked: i64, current: Revision },
    /// `ignore_value` or `ignore_lease` on a key that is not there.
    KeyNotFound,
    /// A put names a lease that does not exist.
    LeaseNotFound { lease: LeaseId },
    /// A grant names a lease that there is already.
    LeaseExists,
    /// A grant asks for more time than etcd gives.
    LeaseTtlTooLarge,
    /// A write with a put while there is an alarm for want of space.
    NoSpace,
    /// A write while there is an alarm that the state may be corrupt.
    Corrupt,
    /// There is no memory for so large a read, says whoever knows the memory of the process; and the store of a write that
    /// reads more than one step may.
    NoMemory,
    /// An alarm is raised for yet another member.
    TooManyAlarms,
    /// The disk takes no further changes; the store itself never says so, only whoever keeps its log.
    LogRefused,
}
