//! The multi-version store: every key at every revision since the last compaction, and what each revision changed.
//!
//! It is values in, values out: [`Store::apply_with`] is the only way to change it, and the same writes in the same order give
//! the same store. It must not know the wire, the log, the clock, or which of its revisions are durable: whoever reads
//! says at which revision ("now" is the committed one, and newer writes may be applied already).
//!
//! Where what is kept:
//!
//! - `key_index`: key -> its versions, for reads at a revision;
//! - `history`: revision -> batch, for watchers that are behind; versions are shared between the two;
//! - `txn`, `range`, `sort`: the semantics of writes and reads, over the index alone;
//! - `hash`: one number over all that is stored, as etcd computes it;
//! - `quota`: what a write costs;
//! - `compact`: what a compaction made unreachable leaves in bounded turns;
//! - `restore`: a store from rows of changes, at a start; `bulk` makes the index of many versions at once.
//!
//! Invariants: the revision grows by exactly 1 with each write that changes something, and that write has exactly one
//! batch with at least one change; the compacted revision never lies above it, and what is removed was superseded at or
//! below the compacted one; reads at the removed revision and above are whole; the batch of the compacted revision stays.
//!
//! What it costs, in bytes (64-bit; a test holds the table true):
//!
//! | what | bytes |
//! | --- | --- |
//! | a key, its newest version's place included | 60 + the key |
//! | a version | 22 to 59, 28 in a store of millions of revisions, + key + value |
//! | a key with older versions, for their list | 32 |
//! | the place of an older version | 20 |
//! | a revision in history | 64 + 48 a change + the key of each delete |
//!
//! A version is one allocation, shared by index, history and every reader; it is counted with the index, or with its
//! batch when a later change of the same revision replaced it. What the allocator rounds up is not counted.

mod bulk;
pub mod command;
mod compact;
mod hash;
mod history;
mod key_index;
#[cfg(test)]
pub(crate) mod model;
pub mod quota;
#[cfg(test)]
mod random;
mod range;
pub mod restore;
#[cfg(test)]
mod script;
mod sort;
mod txn;

use std::collections::BTreeSet;
use std::sync::Arc;

use crate::types::{Alarm, AlarmKind, Batch, ChangeId, Entry, KeyRange, KeyValue, Revision, Time};

use self::command::{Answer, Error, Outcome, Range, Read, Write};
use self::compact::Removal;
use self::hash::HashJob;
use self::history::History;
use self::key_index::KeyIndex;
use self::range::{Budget, RangeJob, read_one};
use self::txn::{HasLease, Horizon, ReadTxnJob, Writing};

pub use self::compact::CompactProgress;
pub use self::txn::CHANGE_BYTES;

/// What a write did: the answer for whoever asked, the entry for the log and everyone else. A refused write and one that
/// changed nothing have none.
#[derive(Clone, Debug)]
pub struct Applied {
    pub answer: Result<Answer, Error>,
    pub entry: Option<Entry>,
}

/// History from this revision on is gone.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Compacted {
    pub asked: Revision,
    pub compacted: Revision,
}

/// What the store holds, in bytes, by class.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct StoreBytes {
    pub keys: usize,
    pub versions: usize,
    pub history: usize,
}

impl StoreBytes {
    pub fn total(&self) -> usize {
        self.keys + self.versions + self.history
    }
}

/// Faults that tests plant to see whether the checkers find them.
#[cfg(test)]
#[derive(Clone, Copy, Default, Debug)]
pub(crate) struct Planted {
    /// A batch at the compacted revision loses its deletes.
    pub lost_delete_at_compaction: bool,
}

#[derive(Debug)]
pub struct Store {
    index: KeyIndex,
    history: History,
    revision: Revision,
    compacted: Option<Revision>,
    removal: Removal,
    /// State like the keys: it is in the log, and while one is active it decides what is refused.
    alarms: BTreeSet<Alarm>,
    /// Keys that writes have looked at since somebody asked.
    visits: usize,
    /// What a further write may take in the log, about.
    log_bytes_max: usize,
    #[cfg(test)]
    pub(crate) planted: Planted,
}

impl Default for Store {
    fn default() -> Store {
        Store::new()
    }
}

impl Store {
    pub fn new() -> Store {
        Store {
            index: KeyIndex::default(),
            history: History::new(),
            revision: Revision::FIRST,
            compacted: None,
            removal: Removal::new(),
            alarms: BTreeSet::new(),
            visits: 0,
            log_bytes_max: usize::MAX,
            #[cfg(test)]
            planted: Planted::default(),
        }
    }

    /// The newest applied revision.
    pub fn revision(&self) -> Revision {
        self.revision
    }

    /// The revision of the last compaction.
    pub fn compacted(&self) -> Option<Revision> {
        self.compacted
    }

    /// The active alarms, sorted by member.
    pub fn alarms(&self) -> impl ExactSizeIterator<Item = Alarm> {
        self.alarms.iter().copied()
    }

    pub fn has_alarm(&self, kind: AlarmKind) -> bool {
        self.alarms.iter().any(|alarm| alarm.kind == kind)
    }

    /// How many keys the compares, ranges and deletes of writes have looked at since the last call: what they took beyond
    /// what they changed.
    pub fn take_visits(&mut self) -> usize {
        std::mem::take(&mut self.visits)
    }

    /// What the writes from here on may take in the log together, about: one that would take more is refused.
    pub fn set_log_bytes_max(&mut self, bytes: usize) {
        self.log_bytes_max = bytes;
    }

    /// What is left of that.
    pub fn log_bytes_max(&self) -> usize {
        self.log_bytes_max
    }

    /// How many keys the index holds, those included that are deleted but not yet removed.
    pub fn keys(&self) -> usize {
        self.index.keys_held()
    }

    /// The newest applied version of every key that is there, in ascending order.
    pub fn live(&self) -> impl Iterator<Item = &KeyValue> {
        self.index.live()
    }

    pub fn bytes(&self) -> StoreBytes {
        StoreBytes {
            keys: self.index.keys_bytes(),
            versions: self.index.versions_bytes(),
            history: self.history.bytes(),
        }
    }

    /// As [`Store::apply_with`], where there is no lease.
    #[cfg(test)]
    pub fn apply(&mut self, write: &Write, time: Time) -> Applied {
        self.apply_with(write, time, &|_| false)
    }

    /// The only way to change the store. A refused write leaves no trace. Which leases there are, the lessor knows.
    pub fn apply_with(&mut self, write: &Write, time: Time, has_lease: HasLease<'_>) -> Applied {
        if let Write::Alarm { alarm, active } = write {
            return self.alarm(*alarm, *active);
        }
        if let Err(error) = self.check_alarms(write) {
            return Applied { answer: Err(error), entry: None };
        }
        if let Write::Compact(revision) = write {
            let answer = self.compact(*revision);
            let entry = answer.is_ok().then_some(Entry::Compaction(*revision));
            return Applied { answer, entry };
        }
        let horizon = self.horizon(self.revision);
        let mut writing = Writing::new(&mut self.index, has_lease, self.revision, self.log_bytes_max);
        let answer = writing.run(write, horizon);
        self.visits += writing.visits();
        let log_bytes = writing.log_bytes();
        let answer = match answer {
            Ok(answer) => answer,
            Err(error) => {
                writing.abandon();
                return Applied { answer: Err(error), entry: None };
            }
        };
        let (changes, unindexed_bytes) = writing.finish();
        // A write that changed nothing keeps the revision. Clients resume at revision + 1, and a number without events
        // would look to them like a lost event.
        if changes.is_empty() {
            return Applied { answer: Ok(answer), entry: None };
        }
        self.log_bytes_max = self.log_bytes_max.saturating_sub(log_bytes);
        self.revision = self.revision.next();
        let batch = Arc::new(Batch { revision: self.revision, time, changes: changes.into() });
        self.history.push(batch.clone(), unindexed_bytes);
        Applied { answer: Ok(answer), entry: Some(Entry::Batch(batch)) }
    }

    /// An alarm that is raised again is listed like a new one; one that is taken back without being active is not listed.
    fn alarm(&mut self, alarm: Alarm, active: bool) -> Applied {
        let has_changed = if active { self.alarms.insert(alarm) } else { self.alarms.remove(&alarm) };
        let listed = (active || has_changed).then_some(alarm);
        Applied {
            answer: Ok(Answer { revision: self.revision, result: Outcome::Alarm(listed) }),
            entry: has_changed.then_some(Entry::Alarm { alarm, active }),
        }
    }

    /// What etcd asks before anything else about a write that has reached the store. Alarms of any member count. A read
    /// asks nothing: etcd serves it beside either alarm.
    fn check_alarms(&self, write: &Write) -> Result<(), Error> {
        if self.has_alarm(AlarmKind::Corrupt) {
            return Err(Error::Corrupt);
        }
        if self.has_alarm(AlarmKind::NoSpace) && quota::cost_bytes(write) > 0 {
            return Err(Error::NoSpace);
        }
        Ok(())
    }

    /// The logical half of a compaction: at once, nothing below the revision can be asked for.
    fn compact(&mut self, revision: Revision) -> Result<Answer, Error> {
        let compacted = self.compacted_or_none();
        if revision <= compacted {
            return Err(Error::Compacted { asked: revision.0, compacted });
        }
        if revision > self.revision {
            return Err(Error::FutureRevision { asked: revision.0, current: self.revision });
        }
        self.compacted = Some(revision);
        self.history.strip_previous(revision);
        #[cfg(test)]
        if self.planted.lost_delete_at_compaction {
            self.history.lose_deletes(revision);
        }
        Ok(Answer { revision: self.revision, result: Outcome::Compact })
    }

    /// A compaction that the log has refused was told to nobody, and nothing has been removed for it: what it would have
    /// forgotten may be asked for again. The previous versions at its revision are not told any more, as behind a compaction.
    pub fn take_back_compaction(&mut self, committed: Option<Revision>) {
        let has_kept = committed.is_none_or(|committed| self.removal.removed() <= committed);
        debug_assert!(has_kept, "only a committed compaction removes anything");
        self.compacted = committed;
    }

    /// etcd starts with -1, so that the first compaction may name 0.
    fn compacted_or_none(&self) -> Revision {
        self.compacted.unwrap_or(Revision(-1))
    }

    fn horizon(&self, current: Revision) -> Horizon {
        Horizon { current, compacted: self.compacted_or_none() }
    }

    /// Starts a read at revision `now`: the committed one, which may lie below [`Store::revision`]. What it names is
    /// judged here; [`Store::step`] does the work. Until the job is done, its [`ReadJob::oldest`] must not be removed.
    pub fn read(&self, read: &Read, now: Revision) -> Result<ReadJob, Error> {
        let horizon = self.horizon(now);
        match read {
            Read::Range(range) => self.read_range(range, horizon, RangeJob::new),
            Read::Part(range) => self.read_range(range, horizon, RangeJob::part),
            Read::Hash { revision } => self.read_hash(*revision, horizon),
            Read::Txn(txn) => {
                let job = ReadTxnJob::new(txn, horizon);
                Ok(ReadJob { now, oldest: job.oldest(), work: Work::Txn(Box::new(job)) })
            }
        }
    }

    fn read_range(
        &self,
        range: &Range,
        horizon: Horizon,
        job: impl Fn(&Range, Revision) -> RangeJob,
    ) -> Result<ReadJob, Error> {
        let now = horizon.current;
        // Outside a transaction 0 and below mean "now". A compaction that is applied but not committed may already lie
        // above "now"; what it forgets is still there, so only a revision that was named is refused.
        let at = if range.revision <= 0 { now } else { Revision(range.revision) };
        if range.revision > 0 {
            txn::check_range(range, horizon)?;
        }
        self.check_not_removed(at)?;
        let work = match &range.range {
            KeyRange::One(key) => Work::Ready(Outcome::Range(read_one(&self.index, range, key, at))),
            KeyRange::Span { .. } | KeyRange::From(_) => Work::Range(Box::new(job(range, at))),
        };
        Ok(ReadJob { now, oldest: at, work })
    }

    fn read_hash(&self, revision: i64, Horizon { current, compacted }: Horizon) -> Result<ReadJob, Error> {
        if revision > 0 && Revision(revision) < compacted {
            return Err(Error::Compacted { asked: revision, compacted });
        }
        if Revision(revision) > current {
            return Err(Error::FutureRevision { asked: revision, current });
        }
        let at = if revision == 0 { current } else { Revision(revision) };
        let job = HashJob::new(at, compacted);
        Ok(ReadJob { now: current, oldest: job.oldest(), work: Work::Hash(Box::new(job)) })
    }

    /// Removal passes a reader only when its pin was given up; then it is told so instead of shown a hole.
    fn check_not_removed(&self, at: Revision) -> Result<(), Error> {
        if at < self.removal.removed() {
            return Err(Error::Compacted { asked: at.0, compacted: self.compacted_or_none() });
        }
        Ok(())
    }

    /// One bounded turn of a read: about `rows_max` keys are visited. `None`: come again. After an answer the job is
    /// spent.
    pub fn step(&self, job: &mut ReadJob, rows_max: usize) -> Option<Result<Answer, Error>> {
        let revision = job.now;
        let answer = |result| Answer { revision, result };
        if let Work::Ready(outcome) = &mut job.work {
            return Some(Ok(answer(std::mem::replace(outcome, Outcome::Compact))));
        }
        if let Err(error) = self.check_not_removed(job.oldest) {
            return Some(Err(error));
        }
        let mut budget = Budget::new(rows_max);
        match &mut job.work {
            Work::Ready(_) => None,
            Work::Range(range) => range.turn(&self.index, &mut budget).map(|rows| Ok(answer(Outcome::Range(rows)))),
            Work::Hash(job) => {
                let hash = job.turn(&self.index, &self.history, &mut budget)?;
                Some(Ok(answer(Outcome::Hash(hash))))
            }
            Work::Txn(txn) => {
                let outcome = txn.turn(&self.index, &mut budget)?;
                Some(outcome.map(|outcome| answer(Outcome::Txn(outcome))))
            }
        }
    }

    /// One bounded turn of the removal behind a compaction. `pinned` is the oldest revision that anyone may still read
    /// at: that of every running read, and the committed one, at which the next read will begin. Where rows are forgotten by
    /// what this removes, it is also the compaction that is durable: what an older start would need must stay.
    pub fn compact_step(&mut self, visits_max: usize, pinned: Option<Revision>) -> CompactProgress {
        let Some(compacted) = self.compacted else { return CompactProgress::Done };
        let target = pinned.map_or(compacted, |pinned| pinned.min(compacted));
        self.removal.step(&mut self.index, &mut self.history, target, visits_max)
    }

    /// Names the changes that no read and no history needs any more since the last call, in an order that is safe to
    /// forget them in. Whoever calls [`Store::compact_step`] takes them after each turn: at most about two a visit.
    pub fn take_removed(&mut self) -> Vec<ChangeId> {
        self.removal.take_gone()
    }

    /// True once everything that the last compaction forgot has left memory.
    pub fn is_compact(&self) -> bool {
        self.compacted.is_none_or(|compacted| self.removal.removed() >= compacted)
            && self.removal.is_idle(&self.history)
    }

    /// The batches of `from..=upto`, in order and without gaps, as many as fit.
    pub fn history(
        &self,
        from: Revision,
        upto: Revision,
        batches_max: usize,
        bytes_max: usize,
    ) -> Result<Vec<Arc<Batch>>, Compacted> {
        match self.compacted {
            Some(compacted) if from < compacted => Err(Compacted { asked: from, compacted }),
            _ => Ok(self.history.read(from, upto, batches_max, bytes_max)),
        }
    }
}

/// A read under way. It holds no borrow of the store.
#[derive(Debug)]
pub struct ReadJob {
    now: Revision,
    oldest: Revision,
    work: Work,
}

#[derive(Debug)]
enum Work {
    /// A read of one key is done as soon as it is judged.
    Ready(Outcome),
    Range(Box<RangeJob>),
    Txn(Box<ReadTxnJob>),
    Hash(Box<HashJob>),
}

impl ReadJob {
    /// What a removal must not pass while this read runs.
    pub fn oldest(&self) -> Revision {
        self.oldest
    }

    /// What it holds beside what the store holds, in bytes.
    pub fn scratch_bytes(&self) -> usize {
        match &self.work {
            Work::Ready(_) => 0,
            Work::Range(range) => range.scratch_bytes(),
            Work::Txn(txn) => txn.scratch_bytes(),
            Work::Hash(hash) => hash.scratch_bytes(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::command::{DeleteRange, Op, Put, PutLease, PutValue, SortOrder, SortTarget, Txn};
    use super::*;
    use crate::sim::all_keys;
    use crate::types::{Change, Key, KeyRange, KeyValue, LeaseId};

    fn put(key: &str, value: &str) -> Write {
        let (key, value) = (Key::from(key.to_owned()), PutValue::Set(value.to_owned().into()));
        Write::Put(Put { key, value, lease: PutLease::Set(LeaseId::NONE), prev_kv: false })
    }

    fn filled(keys: usize) -> Store {
        let mut store = Store::new();
        for at in 0..keys {
            // The order of the values is not that of the keys.
            store.apply(&put(&format!("{at:06}"), &format!("{:06}", at * 7919 % keys)), Time(0)).answer.unwrap();
        }
        store
    }

    #[test]
    fn a_write_for_which_the_log_has_no_room_is_refused_and_leaves_nothing() {
        let mut store = filled(1_000);
        let (before, revision) = (store.bytes(), store.revision());
        let delete = |range| Write::DeleteRange(DeleteRange { range, prev_kv: false });
        store.set_log_bytes_max(20_000);
        let Applied { answer, entry } = store.apply(&delete(all_keys().range), Time(0));
        assert!(matches!(answer, Err(Error::NoSpace)) && entry.is_none());
        let large = "v".repeat(20_000);
        assert!(matches!(store.apply(&put("new", &large), Time(0)).answer, Err(Error::NoSpace)));
        assert_eq!((store.bytes(), store.revision(), store.log_bytes_max()), (before, revision, 20_000));
        let hundred = KeyRange::Span { start: "000000".into(), end: "000100".into() };
        assert!(store.apply(&delete(hundred.clone()), Time(0)).answer.is_ok());
        assert!((10_000..15_000).contains(&store.log_bytes_max()), "{}", store.log_bytes_max());
        store.set_log_bytes_max(usize::MAX);
        assert!(store.apply(&delete(all_keys().range), Time(0)).answer.is_ok());
    }

    #[test]
    fn a_write_that_reads_more_than_one_step_may_is_refused_and_leaves_nothing() {
        let mut store = filled(1_000);
        let (before, revision) = (store.bytes(), store.revision());
        let with_ranges = |count: usize| {
            let Write::Put(put) = put("new", "v") else { unreachable!("it makes puts") };
            let mut success = vec![Op::Put(put)];
            success.extend(std::iter::repeat_with(|| Op::Range(all_keys())).take(count));
            Write::Txn(Txn { compares: Vec::new(), success, failure: Vec::new() })
        };
        let Applied { answer, entry } = store.apply(&with_ranges(4_100), Time(0));
        assert!(matches!(answer, Err(Error::NoMemory)) && entry.is_none());
        assert_eq!((store.bytes(), store.revision()), (before, revision));
        let Outcome::Txn(outcome) = store.apply(&with_ranges(100), Time(0)).answer.unwrap().result else {
            panic!("a transaction")
        };
        assert_eq!(outcome.answers.len(), 101);
    }

    /// Each of its deletes finds nothing and looks at every tombstone.
    #[test]
    fn deletes_that_look_at_more_than_one_step_may_are_refused_as_well() {
        let mut store = filled(1_000);
        let all = || DeleteRange { range: all_keys().range, prev_kv: false };
        assert_eq!(store.apply(&Write::DeleteRange(all()), Time(0)).answer.unwrap().revision, store.revision());
        let (before, revision) = (store.bytes(), store.revision());
        let with_deletes = |count: usize| {
            let Write::Put(put) = put("new", "v") else { unreachable!("it makes puts") };
            let mut success = vec![Op::Put(put)];
            success.extend(std::iter::repeat_with(|| Op::DeleteRange(all())).take(count));
            Write::Txn(Txn { compares: Vec::new(), success, failure: Vec::new() })
        };
        store.take_visits();
        let Applied { answer, entry } = store.apply(&with_deletes(4_100), Time(0));
        assert!(matches!(answer, Err(Error::NoMemory)) && entry.is_none());
        assert_eq!((store.bytes(), store.revision()), (before, revision));
        assert_eq!((store.take_visits(), store.take_visits()), (4_004_000, 0));
        assert!(store.apply(&with_deletes(100), Time(0)).answer.is_ok());
        // The put of the transaction is a key like the others.
        assert_eq!(store.take_visits(), 100 * 1_001);
    }

    fn rows(answer: Answer) -> Vec<KeyValue> {
        match answer.result {
            Outcome::Range(rows) => rows.rows,
            other => panic!("not rows: {other:?}"),
        }
    }

    #[test]
    fn the_cost_table_is_true() {
        assert_eq!(key_index::KEY_BYTES, 60);
        assert_eq!((key_index::LIST_BYTES, key_index::LISTED_BYTES), (32, 20));
        assert_eq!(size_of::<key_index::Version>(), 16);
        let bytes = |create, revision, sub, version, lease| {
            KeyValue::new(b"k", b"", Revision(create), Revision(revision), sub, version, LeaseId(lease)).bytes() - 1
        };
        assert_eq!(bytes(2, 2, 0, 1, 0), 22);
        assert_eq!(bytes(9_000_000, 17_000_000, 0, 200, 0), 28);
        // And 3 more for a key that is longer than 16 MiB, which no request is.
        assert_eq!(bytes(2, i64::MAX, u32::MAX, i64::MAX, -1), 56);
        assert_eq!((history::BATCH_BYTES, size_of::<Change>()), (64, 48));
        let mut store = Store::new();
        store.apply(&put("key", "value"), Time(0)).answer.unwrap();
        assert_eq!(store.bytes(), StoreBytes { keys: 63, versions: 22 + 8, history: 112 });
        store.apply(&put("key", "value"), Time(0)).answer.unwrap();
        assert_eq!(store.bytes(), StoreBytes { keys: 63, versions: 22 + 23 + 2 * 8 + 32 + 20, history: 224 });
    }

    #[test]
    fn no_turn_of_a_sorted_read_visits_more_than_it_was_allowed() {
        let store = filled(1_000);
        let request = Range { target: SortTarget::Value, order: SortOrder::Descend, ..all_keys() };
        let mut job = store.read(&Read::Range(request), store.revision()).unwrap();
        let mut turns = 1;
        let answer = loop {
            match store.step(&mut job, 10) {
                Some(answer) => break answer.unwrap(),
                None => turns += 1,
            }
        };
        // A hundred to walk and a hundred to merge, and none that ends early.
        assert!((200..=202).contains(&turns), "{turns} turns");
        let values: Vec<_> = rows(answer).iter().map(|kv| kv.value().to_vec()).collect();
        assert!(values.len() == 1_000 && values.is_sorted_by(|left, right| left > right));
    }

    #[test]
    fn a_read_whose_pin_is_given_up_is_refused_instead_of_incomplete() {
        let mut store = filled(100);
        let pinned = store.revision();
        let read = Read::Range(all_keys());
        let mut jobs: Vec<ReadJob> = (0..2).map(|_| store.read(&read, pinned).unwrap()).collect();
        assert!(store.step(&mut jobs[0], 50).is_none());
        for key in 0..100 {
            store.apply(&put(&format!("{key:06}"), "new"), Time(0)).answer.unwrap();
        }
        let head = store.revision();
        store.apply(&Write::Compact(head), Time(0)).answer.unwrap();
        while store.compact_step(7, Some(pinned)) == CompactProgress::More {}
        assert!(!store.is_compact());
        let kept = rows(store.step(&mut jobs[0], 1_000).unwrap().unwrap());
        assert!(kept.len() == 100 && kept.iter().all(|kv| kv.value() != b"new"));
        // "Now" is still below the compaction, which nobody has committed: a new read at it finds everything.
        assert!(store.read(&read, pinned).is_ok());
        while store.compact_step(7, None) == CompactProgress::More {}
        assert!(store.is_compact());
        let refused = Error::Compacted { asked: pinned.0, compacted: head };
        assert_eq!(store.step(&mut jobs[1], 1_000), Some(Err(refused)));
        assert_eq!(store.read(&read, pinned).unwrap_err(), refused);
    }

    #[test]
    fn removal_visits_what_changed_and_no_more_than_its_turn_allows() {
        let mut store = filled(1_000);
        store.apply(&Write::Compact(Revision(1_001)), Time(0)).answer.unwrap();
        while store.compact_step(1_000, None) == CompactProgress::More {}
        store.apply(&put("000001", "again"), Time(0)).answer.unwrap();
        store.apply(&Write::Compact(Revision(1_002)), Time(0)).answer.unwrap();
        // One revision passed, one change dropped with its batch, one key visited.
        assert_eq!(store.compact_step(2, None), CompactProgress::More);
        assert_eq!(store.compact_step(2, None), CompactProgress::Done);
        assert_eq!(store.bytes().history, 112);
    }

    #[test]
    fn history_gives_one_batch_even_when_it_is_larger_than_asked() {
        let store = filled(10);
        let read =
            |batches_max, bytes_max| store.history(Revision(3), Revision(9), batches_max, bytes_max).unwrap().len();
        assert_eq!((read(100, 0), read(100, 1), read(3, usize::MAX), read(100, usize::MAX)), (1, 1, 3, 7));
        assert_eq!(store.history(Revision(12), Revision(99), 9, 9), Ok(Vec::new()));
    }
}
