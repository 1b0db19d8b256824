//! Transactions: compares judged on the state before, then one branch, all at one revision.
//!
//! The order is etcd's: first the whole path is decided (which branch of this transaction and of each one nested in the
//! chosen branch), then every operation on the path is checked against the state before, then all are executed at the
//! next revision. Only then can a failure leave no trace for free; the one that shows later is taken back.
//!
//! It knows nothing of the history: what a revision changed is handed back as a list.

use bytes::Bytes;

use crate::types::{Change, KeyRange, KeyValue, LeaseId, Revision};

use super::command::{
    Answer, Compare, DeleteRange, Error, Op, Operand, Outcome, Put, PutLease, PutValue, Range, Relation, Rows, Txn,
    TxnOutcome, Write,
};
use super::key_index::{Changed, KeyIndex};
use super::range::{Budget, RangeJob, Walk, read_one};

/// The revisions that checks look at.
#[derive(Clone, Copy, Debug)]
pub struct Horizon {
    pub current: Revision,
    /// -1 when nothing was ever compacted, as in etcd.
    pub compacted: Revision,
}

/// Which branch is taken, here and in the transactions nested in that branch, in their order.
#[derive(Debug)]
pub struct Path {
    succeeded: bool,
    nested: Vec<Path>,
}

impl Path {
    /// Decides the whole path on the state before, so that an inner compare cannot see an outer put.
    ///
    /// # Errors
    /// When the compares look at more than the budget.
    fn decide(index: &KeyIndex, txn: &Txn, at: Revision, budget: &mut Budget) -> Result<Path, Error> {
        let mut succeeded = true;
        for compare in &txn.compares {
            succeeded = CompareJob::new(compare, at).turn(index, compare, budget).ok_or(Error::NoMemory)?;
            if !succeeded {
                break;
            }
        }
        let nested = branch(txn, succeeded).iter().filter_map(|op| match op {
            Op::Txn(inner) => Some(Path::decide(index, inner, at, budget)),
            Op::Range(_) | Op::Put(_) | Op::DeleteRange(_) => None,
        });
        Ok(Path { succeeded, nested: nested.collect::<Result<_, _>>()? })
    }
}

pub fn branch(txn: &Txn, succeeded: bool) -> &[Op] {
    if succeeded { &txn.success } else { &txn.failure }
}

/// Judges one compare over its range, in bounded turns.
#[derive(Debug)]
pub struct CompareJob {
    walk: Walk,
    found: bool,
    holds: bool,
}

impl CompareJob {
    pub fn new(compare: &Compare, at: Revision) -> CompareJob {
        CompareJob { walk: Walk::new(compare.range.clone(), at, false), found: false, holds: true }
    }

    /// Every key of the range must satisfy it. An empty range is judged like one missing key: all numbers are 0, and a
    /// value compares with nothing, so that even "not equal" is false.
    pub fn turn(&mut self, index: &KeyIndex, compare: &Compare, budget: &mut Budget) -> Option<bool> {
        let (found, holds) = (&mut self.found, &mut self.holds);
        let over = self.walk.turn(index, budget, |kv| {
            *found = true;
            *holds = satisfies(compare, Some(kv));
            *holds
        });
        if !over {
            return None;
        }
        Some(if self.found { self.holds } else { satisfies(compare, None) })
    }
}

fn satisfies(compare: &Compare, kv: Option<&KeyValue>) -> bool {
    let number = |of: fn(&KeyValue) -> i64| kv.map_or(0, of);
    let ordering = match &compare.operand {
        Operand::Version(operand) => number(KeyValue::version).cmp(operand),
        Operand::Create(operand) => number(|kv| kv.create_revision().0).cmp(operand),
        Operand::Mod(operand) => number(|kv| kv.mod_revision().0).cmp(operand),
        Operand::Lease(operand) => number(|kv| kv.lease().0).cmp(operand),
        Operand::Value(operand) => match kv {
            Some(kv) => kv.value().cmp(operand),
            None => return false,
        },
        Operand::Unknown => std::cmp::Ordering::Equal,
    };
    match compare.relation {
        Relation::Equal => ordering.is_eq(),
        Relation::Greater => ordering.is_gt(),
        Relation::Less => ordering.is_lt(),
        Relation::NotEqual => ordering.is_ne(),
        Relation::Unknown => true,
    }
}

/// Whether there is a lease of that id.
pub type HasLease<'a> = &'a dyn Fn(LeaseId) -> bool;

/// Checks every operation on the path, in order, against the state before. The first failure fails the transaction.
pub fn check(index: &KeyIndex, has_lease: HasLease<'_>, txn: &Txn, path: &Path, horizon: Horizon) -> Result<(), Error> {
    let mut nested = path.nested.iter();
    for op in branch(txn, path.succeeded) {
        match op {
            Op::Range(range) => check_range(range, horizon)?,
            Op::Put(put) => check_put(index, has_lease, put)?,
            Op::DeleteRange(_) => {}
            Op::Txn(inner) => check(index, has_lease, inner, nested.next().expect(ONE_PATH_EACH), horizon)?,
        }
    }
    Ok(())
}

const FEWER_CHANGES: &str = "memory holds fewer than 4 billion changes of one revision";
const ONE_PATH_EACH: &str = "a path is decided for each nested transaction of the branch";

/// Inside a transaction only 0 means "now": etcd holds any other revision against its bounds as it is, so a negative one
/// is "compacted" as soon as anything was compacted.
pub fn check_range(range: &Range, horizon: Horizon) -> Result<(), Error> {
    let asked = range.revision;
    if asked == 0 {
        return Ok(());
    }
    if asked > horizon.current.0 {
        return Err(Error::FutureRevision { asked, current: horizon.current });
    }
    if asked < horizon.compacted.0 {
        return Err(Error::Compacted { asked, compacted: horizon.compacted });
    }
    Ok(())
}

/// The lease is looked for before the key, as in etcd.
pub fn check_put(index: &KeyIndex, has_lease: HasLease<'_>, put: &Put) -> Result<(), Error> {
    if let PutLease::Set(lease) = put.lease
        && lease != LeaseId::NONE
        && !has_lease(lease)
    {
        return Err(Error::LeaseNotFound { lease });
    }
    if keeps(put) && index.latest(&put.key).is_none() {
        return Err(Error::KeyNotFound);
    }
    Ok(())
}

fn keeps(put: &Put) -> bool {
    matches!(put.value, PutValue::Keep) || matches!(put.lease, PutLease::Keep)
}

/// What the compares, ranges and deletes of one write may look at: this many keys, and all there are so many times. A write is
/// one step, and everybody else waits for it; etcd lets it take as long as it takes. A range looks at a key twice at most, and
/// one delete alone at each key once, so that only a transaction can be refused.
const VISITS: usize = 4_000_000;
const VISITS_PER_KEY: usize = 4;

/// What a change takes in the log beside key and value, at the most.
pub const CHANGE_BYTES: usize = 64;

/// The work on one new revision: everything it changes goes through here.
pub struct Writing<'a> {
    index: &'a mut KeyIndex,
    has_lease: HasLease<'a>,
    before: Revision,
    visits_max: usize,
    budget: Budget,
    changes: Vec<Change>,
    /// Versions that a later change of this same revision replaced: only the batch holds them.
    unindexed_bytes: usize,
    /// What the changes take in the log, about, and may take.
    log_bytes: usize,
    log_bytes_max: usize,
}

impl<'a> Writing<'a> {
    pub fn new(
        index: &'a mut KeyIndex,
        has_lease: HasLease<'a>,
        before: Revision,
        log_bytes_max: usize,
    ) -> Writing<'a> {
        let visits_max = VISITS + VISITS_PER_KEY * index.keys_held();
        let budget = Budget::new(visits_max);
        let (changes, unindexed_bytes, log_bytes) = (Vec::new(), 0, 0);
        Writing { index, has_lease, before, visits_max, budget, changes, unindexed_bytes, log_bytes, log_bytes_max }
    }

    pub fn log_bytes(&self) -> usize {
        self.log_bytes
    }

    /// A write of which the log could not take all would stand in its way for ever: neither it nor what comes behind it would
    /// be durable, and so give no room back.
    fn check_room(&self) -> Result<(), Error> {
        if self.log_bytes > self.log_bytes_max { Err(Error::NoSpace) } else { Ok(()) }
    }

    /// How many keys were looked at.
    pub fn visits(&self) -> usize {
        self.visits_max - self.budget.left()
    }

    /// What the revision changed. Nothing: there is no such revision.
    pub fn finish(self) -> (Vec<Change>, usize) {
        (self.changes, self.unindexed_bytes)
    }

    /// Takes everything back, newest first.
    pub fn abandon(self) {
        let revision = self.before.next();
        for change in self.changes.iter().rev() {
            self.index.undo(change.key(), revision);
        }
    }

    /// The revision that a header carries now: the new one only once something changed.
    fn revision(&self) -> Revision {
        if self.changes.is_empty() { self.before } else { self.before.next() }
    }

    fn answer(&self, result: Outcome) -> Answer {
        Answer { revision: self.revision(), result }
    }

    /// Runs one write against the state before. On an error the caller abandons the revision.
    pub fn run(&mut self, write: &Write, horizon: Horizon) -> Result<Answer, Error> {
        match write {
            Write::Put(put) => {
                check_put(self.index, self.has_lease, put)?;
                self.put(put)
            }
            Write::DeleteRange(delete) => self.delete_range(delete),
            Write::Txn(txn) => {
                let path = Path::decide(self.index, txn, self.before, &mut self.budget)?;
                check(self.index, self.has_lease, txn, &path, horizon)?;
                let outcome = self.txn(txn, &path)?;
                Ok(self.answer(Outcome::Txn(outcome)))
            }
            Write::Compact(_) | Write::Alarm { .. } => unreachable!("neither compactions nor alarms make a revision"),
        }
    }

    fn put(&mut self, put: &Put) -> Result<Answer, Error> {
        let revision = self.before.next();
        let until_now = self.index.latest(&put.key);
        // A delete earlier in the same transaction may have taken the key whose value was to be kept.
        if keeps(put) && until_now.is_none() {
            return Err(Error::KeyNotFound);
        }
        let value = match (&put.value, until_now) {
            (PutValue::Set(value), _) => &value[..],
            (PutValue::Keep, Some(kv)) => kv.value(),
            (PutValue::Keep, None) => &[],
        };
        let lease = match (put.lease, until_now) {
            (PutLease::Set(lease), _) => lease,
            (PutLease::Keep, Some(kv)) => kv.lease(),
            (PutLease::Keep, None) => LeaseId::NONE,
        };
        let (create, version) = until_now.map_or((revision, 1), |kv| (kv.create_revision(), kv.version() + 1));
        let previous = if put.prev_kv { until_now.cloned() } else { None };
        self.log_bytes += put.key.len() + value.len() + CHANGE_BYTES;
        self.check_room()?;
        let sub = u32::try_from(self.changes.len()).expect(FEWER_CHANGES);
        let kv = KeyValue::new(&put.key, value, create, revision, sub, version, lease);
        let Changed { before_revision, replaced } = self.index.put(kv.clone());
        self.unindexed_bytes += replaced.as_ref().map_or(0, KeyValue::bytes);
        // A key that was deleted earlier in this transaction is created anew, and a creation has no previous state.
        let previous_told = before_revision.filter(|_| kv.create_revision() != kv.mod_revision());
        self.changes.push(Change::Put { kv, previous: previous_told });
        Ok(self.answer(Outcome::Put { previous }))
    }

    fn delete_range(&mut self, delete: &DeleteRange) -> Result<Answer, Error> {
        let revision = self.before.next();
        let (mut deleted, mut previous) = (0, Vec::new());
        let (changes, unindexed_bytes, log_bytes) = (&mut self.changes, &mut self.unindexed_bytes, &mut self.log_bytes);
        let is_over = self.index.delete_range(&delete.range, revision, &mut self.budget, |key, until_now, changed| {
            deleted += 1;
            *log_bytes += key.len() + CHANGE_BYTES;
            *unindexed_bytes += changed.replaced.as_ref().map_or(0, KeyValue::bytes);
            if delete.prev_kv {
                previous.push(until_now);
            }
            // A copy: the request's bytes would keep the whole request alive as long as history.
            changes.push(Change::Delete { key: Bytes::copy_from_slice(key), previous: changed.before_revision });
        });
        if !is_over {
            return Err(Error::NoMemory);
        }
        self.check_room()?;
        Ok(self.answer(Outcome::DeleteRange { deleted, previous }))
    }

    /// Executes the chosen branch. It has been checked; an error here is one that only the earlier operations of the
    /// same transaction brought about, and the caller abandons the revision.
    fn txn(&mut self, txn: &Txn, path: &Path) -> Result<TxnOutcome, Error> {
        let mut nested = path.nested.iter();
        let ops = branch(txn, path.succeeded);
        let mut answers = Vec::with_capacity(ops.len());
        for op in ops {
            answers.push(match op {
                Op::Range(range) => {
                    let rows = self.range(range)?;
                    self.answer(Outcome::Range(rows))
                }
                Op::Put(put) => self.put(put)?,
                Op::DeleteRange(delete) => self.delete_range(delete)?,
                Op::Txn(inner) => {
                    let outcome = self.txn(inner, nested.next().expect(ONE_PATH_EACH))?;
                    // etcd leaves the header of a nested transaction empty.
                    Answer { revision: Revision::ZERO, result: Outcome::Txn(outcome) }
                }
            });
        }
        Ok(TxnOutcome { succeeded: path.succeeded, answers })
    }

    /// Sees what the transaction has done so far, unless it asks for an older revision.
    fn range(&mut self, range: &Range) -> Result<Rows, Error> {
        let at = if range.revision <= 0 { self.before.next() } else { Revision(range.revision) };
        if let KeyRange::One(key) = &range.range {
            return Ok(read_one(self.index, range, key, at));
        }
        RangeJob::new(range, at).turn(self.index, &mut self.budget).ok_or(Error::NoMemory)
    }
}

/// A transaction that only ranges and nests none, judged and read at one revision in bounded turns.
#[derive(Debug)]
pub struct ReadTxnJob {
    txn: Txn,
    /// As it was when the read began: a compaction that comes later waits for it, or ends it as a whole.
    horizon: Horizon,
    state: ReadTxnState,
}

#[derive(Debug)]
enum ReadTxnState {
    /// The compares before `at` hold.
    Comparing {
        at: usize,
        job: Option<CompareJob>,
    },
    Reading {
        succeeded: bool,
        answers: Vec<Answer>,
        job: Option<Box<RangeJob>>,
    },
}

impl ReadTxnJob {
    pub fn new(txn: &Txn, horizon: Horizon) -> ReadTxnJob {
        ReadTxnJob { txn: txn.clone(), horizon, state: ReadTxnState::Comparing { at: 0, job: None } }
    }

    /// What its rows take, as far as they are collected.
    pub fn scratch_bytes(&self) -> usize {
        let ReadTxnState::Reading { answers, job, .. } = &self.state else { return 0 };
        let answered = answers.iter().map(|answer| match &answer.result {
            Outcome::Range(found) => found.rows.len() * size_of::<KeyValue>(),
            _ => 0,
        });
        answered.sum::<usize>() + job.as_ref().map_or(0, |job| job.scratch_bytes())
    }

    /// # Panics
    /// When the transaction holds anything but ranges; such a one is a write.
    pub fn turn(&mut self, index: &KeyIndex, budget: &mut Budget) -> Option<Result<TxnOutcome, Error>> {
        let now = self.horizon.current;
        if let ReadTxnState::Comparing { at, job } = &mut self.state {
            let mut succeeded = true;
            while succeeded && let Some(compare) = self.txn.compares.get(*at) {
                let current = job.get_or_insert_with(|| CompareJob::new(compare, now));
                succeeded = current.turn(index, compare, budget)?;
                *job = None;
                *at += 1;
            }
            for op in branch(&self.txn, succeeded) {
                if let Op::Range(range) = op
                    && let Err(error) = check_range(range, self.horizon)
                {
                    return Some(Err(error));
                }
            }
            self.state = ReadTxnState::Reading { succeeded, answers: Vec::new(), job: None };
        }
        let ReadTxnState::Reading { succeeded, answers, job } = &mut self.state else { return None };
        let ops = branch(&self.txn, *succeeded);
        while let Some(op) = ops.get(answers.len()) {
            if budget.is_spent() {
                return None;
            }
            let Op::Range(range) = op else { unreachable!("a read transaction holds only ranges") };
            let at = if range.revision <= 0 { now } else { Revision(range.revision) };
            let current = job.get_or_insert_with(|| Box::new(RangeJob::new(range, at)));
            let rows = current.turn(index, budget)?;
            *job = None;
            answers.push(Answer { revision: now, result: Outcome::Range(rows) });
        }
        Some(Ok(TxnOutcome { succeeded: *succeeded, answers: std::mem::take(answers) }))
    }

    /// The oldest revision that it still reads at. An operation may name one below "now".
    pub fn oldest(&self) -> Revision {
        let ops = self.txn.success.iter().chain(&self.txn.failure);
        let named = ops.filter_map(|op| match op {
            Op::Range(range) if range.revision > 0 => Some(Revision(range.revision)),
            _ => None,
        });
        // What lies below the compacted revision is refused, not read.
        named.filter(|revision| *revision >= self.horizon.compacted).fold(self.horizon.current, Revision::min)
    }
}
