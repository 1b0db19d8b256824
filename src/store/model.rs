//! The slow, obvious store that the real one is held against: a full copy of all keys for every revision.
//!
//! Nothing is shared with the real store but the vocabulary. It never forgets; a compaction only makes it refuse.

use std::collections::BTreeMap;

use crate::types::{Alarm, AlarmKind, Batch, Change, Entry, Key, KeyRange, KeyValue, LeaseId, Revision, Time};

use super::command::*;

type State = BTreeMap<Key, KeyValue>;

#[derive(Debug)]
pub(crate) struct Model {
    /// The keys as they were at each revision; revisions 0 and 1 are empty.
    states: Vec<State>,
    batches: Vec<Batch>,
    compacted: i64,
    alarms: Vec<Alarm>,
}

/// A transaction at work: what it looks at, what it has made so far.
struct Attempt<'a> {
    model: &'a Model,
    has_lease: &'a dyn Fn(LeaseId) -> bool,
    before: &'a State,
    after: State,
    changes: Vec<Change>,
}

impl Model {
    pub(crate) fn new() -> Model {
        Model { states: vec![State::new(), State::new()], batches: Vec::new(), compacted: -1, alarms: Vec::new() }
    }

    pub(crate) fn revision(&self) -> Revision {
        Revision(self.states.len() as i64 - 1)
    }

    pub(crate) fn compacted(&self) -> Revision {
        Revision(self.compacted)
    }

    /// Back to what was true at this revision.
    pub(crate) fn take_back(&mut self, revision: Revision, compacted: Revision, alarms: Vec<Alarm>) {
        self.states.truncate(revision.0 as usize + 1);
        self.batches.retain(|batch| batch.revision <= revision);
        (self.compacted, self.alarms) = (compacted.0, alarms);
    }

    /// All batches there ever were, in order.
    pub(crate) fn batches(&self) -> &[Batch] {
        &self.batches
    }

    pub(crate) fn apply(&mut self, write: &Write, time: Time) -> (Result<Answer, Error>, Option<Entry>) {
        self.apply_with(write, time, &|_| false)
    }

    pub(crate) fn apply_with(
        &mut self,
        write: &Write,
        time: Time,
        has_lease: &dyn Fn(LeaseId) -> bool,
    ) -> (Result<Answer, Error>, Option<Entry>) {
        if let Write::Alarm { alarm, active } = write {
            return self.alarm(*alarm, *active);
        }
        if self.alarms.iter().any(|alarm| alarm.kind == AlarmKind::Corrupt) {
            return (Err(Error::Corrupt), None);
        }
        if self.alarms.iter().any(|alarm| alarm.kind == AlarmKind::NoSpace) && may_put(write) {
            return (Err(Error::NoSpace), None);
        }
        if let Write::Compact(revision) = write {
            let answer = self.compact(revision.0);
            let entry = answer.is_ok().then_some(Entry::Compaction(*revision));
            return (answer, entry);
        }
        let before = self.states.last().unwrap();
        let mut attempt = Attempt { model: self, has_lease, before, after: before.clone(), changes: Vec::new() };
        let result = match write {
            Write::Put(put) => attempt.check_put(put).and_then(|()| attempt.put(put)),
            Write::DeleteRange(delete) => Ok(attempt.delete(delete)),
            Write::Txn(txn) => attempt.check(txn).and_then(|()| attempt.txn(txn)),
            Write::Compact(_) | Write::Alarm { .. } => unreachable!(),
        };
        let Attempt { after, changes, .. } = attempt;
        let result = match result {
            Ok(result) => result,
            Err(error) => return (Err(error), None),
        };
        let mut batch = None;
        if !changes.is_empty() {
            self.states.push(after);
            batch = Some(Batch { revision: self.revision(), time, changes: changes.into() });
            self.batches.extend(batch.clone());
        }
        let entry = batch.map(|batch| Entry::Batch(batch.into()));
        (Ok(Answer { revision: self.revision(), result }), entry)
    }

    fn alarm(&mut self, alarm: Alarm, active: bool) -> (Result<Answer, Error>, Option<Entry>) {
        let was_active = self.alarms.contains(&alarm);
        self.alarms.retain(|other| *other != alarm);
        if active {
            self.alarms.push(alarm);
        }
        let listed = Some(alarm).filter(|_| active || was_active);
        let entry = if was_active == active { None } else { Some(Entry::Alarm { alarm, active }) };
        (Ok(Answer { revision: self.revision(), result: Outcome::Alarm(listed) }), entry)
    }

    pub(crate) fn alarms(&self) -> Vec<Alarm> {
        let mut alarms = self.alarms.clone();
        alarms.sort();
        alarms
    }

    fn compact(&mut self, revision: i64) -> Result<Answer, Error> {
        if revision <= self.compacted {
            return Err(Error::Compacted { asked: revision, compacted: Revision(self.compacted) });
        }
        if revision > self.revision().0 {
            return Err(Error::FutureRevision { asked: revision, current: self.revision() });
        }
        self.compacted = revision;
        Ok(Answer { revision: self.revision(), result: Outcome::Compact })
    }

    /// What a read at revision `now` answers.
    pub(crate) fn read(&self, read: &Read, now: Revision) -> Result<Answer, Error> {
        match read {
            Read::Range(range) => Ok(Answer { revision: now, result: Outcome::Range(self.range(range, now)?) }),
            Read::Txn(txn) => {
                let state = &self.states[now.0 as usize];
                let succeeded = txn.compares.iter().all(|compare| holds(state, compare));
                let ops = if succeeded { &txn.success } else { &txn.failure };
                let ranges: Vec<&Range> = ops
                    .iter()
                    .map(|op| match op {
                        Op::Range(range) => range,
                        other => panic!("not a read: {other:?}"),
                    })
                    .collect();
                for range in &ranges {
                    self.check_range(range, now)?;
                }
                let rows = ranges.iter().map(|range| rows(self.state_for(range, now), range));
                let answers = rows.map(|rows| Answer { revision: now, result: Outcome::Range(rows) }).collect();
                Ok(Answer { revision: now, result: Outcome::Txn(TxnOutcome { succeeded, answers }) })
            }
            Read::Part(_) => unreachable!("the tests of parts compare them with the range as a whole"),
            Read::Hash { .. } => unreachable!("the tests of the hash have a model of their own"),
        }
    }

    /// A plain range: a revision of 0 or below means `now`.
    pub(crate) fn range(&self, range: &Range, now: Revision) -> Result<Rows, Error> {
        if range.revision > 0 {
            self.check_range(range, now)?;
        }
        Ok(rows(self.state_for(range, now), range))
    }

    /// The events of a range from one revision to another, both included; `Err` is the compacted revision. An event at
    /// the compacted revision has lost its previous version.
    pub(crate) fn events(
        &self,
        range: &KeyRange,
        from: Revision,
        to: Revision,
    ) -> Result<Vec<(Revision, Change)>, Revision> {
        if from.0 < self.compacted {
            return Err(Revision(self.compacted));
        }
        let mut events = Vec::new();
        for batch in self.batches.iter().filter(|batch| from <= batch.revision && batch.revision <= to) {
            for change in batch.changes.iter().filter(|change| range.contains(change.key())) {
                let mut change = change.clone();
                if batch.revision.0 == self.compacted {
                    match &mut change {
                        Change::Put { previous, .. } | Change::Delete { previous, .. } => *previous = None,
                    }
                }
                events.push((batch.revision, change));
            }
        }
        Ok(events)
    }

    fn state_for(&self, range: &Range, now: Revision) -> &State {
        let at = if range.revision <= 0 { now.0 } else { range.revision };
        &self.states[at as usize]
    }

    fn check_range(&self, range: &Range, current: Revision) -> Result<(), Error> {
        let asked = range.revision;
        if asked == 0 {
            Ok(())
        } else if asked > current.0 {
            Err(Error::FutureRevision { asked, current })
        } else if asked < self.compacted {
            Err(Error::Compacted { asked, compacted: Revision(self.compacted) })
        } else {
            Ok(())
        }
    }
}

/// Whether a put stands anywhere in it, in a branch that is not taken as well.
fn may_put(write: &Write) -> bool {
    fn any(ops: &[Op]) -> bool {
        ops.iter().any(|op| match op {
            Op::Put(_) => true,
            Op::Txn(txn) => any(&txn.success) || any(&txn.failure),
            Op::Range(_) | Op::DeleteRange(_) => false,
        })
    }
    match write {
        Write::Put(_) => true,
        Write::Txn(txn) => any(&txn.success) || any(&txn.failure),
        Write::DeleteRange(_) | Write::Compact(_) | Write::Alarm { .. } => false,
    }
}

impl Attempt<'_> {
    fn new_revision(&self) -> Revision {
        self.model.revision().next()
    }

    fn chosen<'t>(&self, txn: &'t Txn) -> (bool, &'t [Op]) {
        let succeeded = txn.compares.iter().all(|compare| holds(self.before, compare));
        (succeeded, if succeeded { &txn.success } else { &txn.failure })
    }

    fn check(&self, txn: &Txn) -> Result<(), Error> {
        for op in self.chosen(txn).1 {
            match op {
                Op::Range(range) => self.model.check_range(range, self.model.revision())?,
                Op::Put(put) => self.check_put(put)?,
                Op::DeleteRange(_) => {}
                Op::Txn(inner) => self.check(inner)?,
            }
        }
        Ok(())
    }

    fn check_put(&self, put: &Put) -> Result<(), Error> {
        match put.lease {
            PutLease::Set(lease) if lease.0 != 0 && !(self.has_lease)(lease) => {
                return Err(Error::LeaseNotFound { lease });
            }
            _ => {}
        }
        let keeps = matches!(put.value, PutValue::Keep) || matches!(put.lease, PutLease::Keep);
        if keeps && !self.before.contains_key(&put.key) { Err(Error::KeyNotFound) } else { Ok(()) }
    }

    fn txn(&mut self, txn: &Txn) -> Result<Outcome, Error> {
        let (succeeded, ops) = self.chosen(txn);
        let mut answers = Vec::new();
        for op in ops {
            let result = match op {
                Op::Range(range) if range.revision > 0 => {
                    Outcome::Range(rows(&self.model.states[range.revision as usize], range))
                }
                Op::Range(range) => Outcome::Range(rows(&self.after, range)),
                Op::Put(put) => self.put(put)?,
                Op::DeleteRange(delete) => self.delete(delete),
                Op::Txn(inner) => self.txn(inner)?,
            };
            let revision = match (op, self.changes.is_empty()) {
                (Op::Txn(_), _) => Revision(0),
                (_, true) => self.model.revision(),
                (_, false) => self.new_revision(),
            };
            answers.push(Answer { revision, result });
        }
        Ok(Outcome::Txn(TxnOutcome { succeeded, answers }))
    }

    fn put(&mut self, put: &Put) -> Result<Outcome, Error> {
        let old = self.after.get(&put.key).cloned();
        let value = match (&put.value, &old) {
            (PutValue::Set(value), _) => value.to_vec(),
            (PutValue::Keep, Some(old)) => old.value().to_vec(),
            (PutValue::Keep, None) => return Err(Error::KeyNotFound),
        };
        let lease = match (put.lease, &old) {
            (PutLease::Set(lease), _) => lease,
            (PutLease::Keep, Some(old)) => old.lease(),
            (PutLease::Keep, None) => return Err(Error::KeyNotFound),
        };
        let revision = self.new_revision();
        let create = old.as_ref().map_or(revision, KeyValue::create_revision);
        let version = old.as_ref().map_or(1, |old| old.version() + 1);
        let kv = KeyValue::new(&put.key, &value, create, revision, self.changes.len() as u32, version, lease);
        self.after.insert(put.key.clone(), kv.clone());
        let before = self.before.get(&put.key).cloned().filter(|_| kv.create_revision() != kv.mod_revision());
        self.changes.push(Change::Put { kv, previous: before });
        Ok(Outcome::Put { previous: old.filter(|_| put.prev_kv) })
    }

    fn delete(&mut self, delete: &DeleteRange) -> Outcome {
        let doomed: Vec<KeyValue> =
            self.after.iter().filter(|(key, _)| delete.range.contains(key)).map(|(_, kv)| kv.clone()).collect();
        for kv in &doomed {
            let key = Key::copy_from_slice(kv.key());
            self.after.remove(&key);
            self.changes.push(Change::Delete { previous: self.before.get(&key).cloned(), key });
        }
        let deleted = doomed.len() as u64;
        Outcome::DeleteRange { deleted, previous: if delete.prev_kv { doomed } else { Vec::new() } }
    }
}

fn holds(state: &State, compare: &Compare) -> bool {
    let keys: Vec<&KeyValue> = state.iter().filter(|(key, _)| compare.range.contains(key)).map(|(_, kv)| kv).collect();
    if keys.is_empty() {
        if matches!(compare.operand, Operand::Value(_)) {
            return false;
        }
        let nothing = KeyValue::new(b"", b"", Revision(0), Revision(0), 0, 0, LeaseId(0));
        return holds_for(&nothing, compare);
    }
    keys.into_iter().all(|kv| holds_for(kv, compare))
}

fn holds_for(kv: &KeyValue, compare: &Compare) -> bool {
    let sign = match &compare.operand {
        Operand::Version(operand) => (kv.version() - operand).signum(),
        Operand::Create(operand) => (kv.create_revision().0 - operand).signum(),
        Operand::Mod(operand) => (kv.mod_revision().0 - operand).signum(),
        Operand::Lease(operand) => (kv.lease().0 - operand).signum(),
        Operand::Value(operand) => kv.value().cmp(operand) as i64,
        Operand::Unknown => 0,
    };
    match compare.relation {
        Relation::Equal => sign == 0,
        Relation::NotEqual => sign != 0,
        Relation::Greater => sign > 0,
        Relation::Less => sign < 0,
        Relation::Unknown => true,
    }
}

/// The phases of etcd's range, one after the other, on whole lists.
fn rows(state: &State, range: &Range) -> Rows {
    let mut rows: Vec<KeyValue> =
        state.iter().filter(|(key, _)| range.range.contains(key)).map(|(_, kv)| kv.clone()).collect();
    let count = rows.len() as u64;
    let mut show = Show::All;
    if range.keys_only {
        show = if range.target == SortTarget::Value { Show::WithoutValue } else { Show::WithoutValueAndLease };
    }
    if range.count_only {
        return Rows { rows: Vec::new(), show, more: false, count };
    }
    let filters =
        [range.min_mod_revision, range.max_mod_revision, range.min_create_revision, range.max_create_revision];
    let filtered = filters.iter().any(|bound| *bound != 0);
    if range.limit > 0 && !filtered && range.order == SortOrder::None {
        rows.truncate(range.limit.saturating_add(1));
    }
    rows.retain(|kv| filters[0] == 0 || kv.mod_revision().0 >= filters[0]);
    rows.retain(|kv| filters[1] == 0 || kv.mod_revision().0 <= filters[1]);
    rows.retain(|kv| filters[2] == 0 || kv.create_revision().0 >= filters[2]);
    rows.retain(|kv| filters[3] == 0 || kv.create_revision().0 <= filters[3]);
    // The sort is stable and the list ascends by key, so equal rows stay in key order.
    let sign = if range.order == SortOrder::Descend { -1 } else { 1 };
    match range.target {
        SortTarget::Key if sign < 0 => rows.reverse(),
        SortTarget::Key => {}
        SortTarget::Version => rows.sort_by_key(|kv| sign * kv.version()),
        SortTarget::Create => rows.sort_by_key(|kv| sign * kv.create_revision().0),
        SortTarget::Mod => rows.sort_by_key(|kv| sign * kv.mod_revision().0),
        SortTarget::Value if sign < 0 => rows.sort_by(|left, right| right.value().cmp(left.value())),
        SortTarget::Value => rows.sort_by(|left, right| left.value().cmp(right.value())),
    }
    let more = range.limit > 0 && rows.len() > range.limit;
    if more {
        rows.truncate(range.limit);
    }
    Rows { rows, show, more, count }
}
