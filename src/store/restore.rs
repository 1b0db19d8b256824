//! A store from what a disk kept: rows of a checkpoint, then the batches and compactions of the log behind it.
//!
//! The rows are changes in ascending order. From the compacted revision on, every change of every revision is there, and
//! the batches are built from them; below it, only the newest put of each key matters. A crash may have left rows that
//! were to be forgotten: they are passed over here and named, so that they go at last. What should be there and is not is
//! damage, and a damaged store is refused: clients would take it for the truth.
//!
//! What is restored answers like the store that wrote it, previous states included, once that store has removed what its
//! last compaction forgot.

use std::collections::BTreeSet;
use std::fmt;
use std::sync::Arc;

use crate::types::{Alarm, Batch, Change, ChangeId, KeyRange, KeyValue, Revision, Row};

use super::Store;
use super::bulk::{self, Bulk, Folded, tombstone};
use super::compact::Removal;
use super::history::History;
use super::key_index::Changed;
use super::range::Budget;

/// Why no store can be built from what was given.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Damage {
    /// A change that must be there is not.
    Missing(ChangeId),
    /// A change stands where none can: behind a newer one, twice, or above the newest revision.
    Misplaced(ChangeId),
    /// The revision exists and changed nothing, or was changed in a way that its keys do not allow.
    Impossible(Revision),
}

impl fmt::Display for Damage {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Damage::Missing(id) => write!(f, "change {} of revision {} is missing", id.sub, id.revision),
            Damage::Misplaced(id) => write!(f, "change {} of revision {} stands out of its order", id.sub, id.revision),
            Damage::Impossible(revision) => write!(f, "revision {revision} contradicts the ones before it"),
        }
    }
}

/// A store under construction.
#[derive(Debug)]
pub struct Restore {
    revision: Revision,
    compacted: Option<Revision>,
    /// The first revision whose changes must all be there.
    first: Revision,
    last: Option<ChangeId>,
    bulk: Bulk,
    batches: Vec<Arc<Batch>>,
    /// The changes so far of the revision behind the last batch.
    changes: Vec<Change>,
}

impl Restore {
    /// `rows` is a hint.
    pub fn new(revision: Revision, compacted: Option<Revision>, rows: usize) -> Restore {
        let first = compacted.unwrap_or_default().max(Revision::FIRST.next());
        let (bulk, batches, changes) = (Bulk::new(compacted.unwrap_or_default(), rows), Vec::new(), Vec::new());
        Restore { revision, compacted, first, last: None, bulk, batches, changes }
    }

    /// Takes the next row.
    pub fn row(&mut self, row: Row) -> Result<(), Damage> {
        let Row { id, is_last, time, change } = row;
        if self.last.is_some_and(|last| last >= id) || id.revision > self.revision {
            return Err(Damage::Misplaced(id));
        }
        self.last = Some(id);
        self.bulk.push(match &change {
            Change::Put { kv, .. } => kv.clone(),
            Change::Delete { key, .. } => tombstone(key, id),
        });
        if id.revision < self.first {
            return Ok(());
        }
        let expected = self.expected();
        if id != expected {
            return Err(if id < expected { Damage::Misplaced(id) } else { Damage::Missing(expected) });
        }
        self.changes.push(change);
        if is_last {
            // One revision has few changes mostly, and a box holds no more than they need.
            let changes = std::mem::take(&mut self.changes).into_boxed_slice();
            self.batches.push(Arc::new(Batch { revision: id.revision, time, changes }));
        }
        Ok(())
    }

    /// The change of history that has to come next.
    fn expected(&self) -> ChangeId {
        let revision = Revision(self.first.0 + self.batches.len() as i64);
        ChangeId { revision, sub: self.changes.len() as u32 }
    }

    /// All rows were given. Beside the store stand the changes that nothing needs, in an order that is safe to forget
    /// them in.
    pub fn finish(self) -> Result<(Store, Vec<ChangeId>), Damage> {
        let expected = self.expected();
        if self.compacted > Some(self.revision) {
            return Err(Damage::Impossible(self.revision));
        }
        if expected.revision <= self.revision {
            return Err(Damage::Missing(expected));
        }
        let compacted = self.compacted.unwrap_or_default();
        let at_compacted = self.batches.first().filter(|batch| Some(batch.revision) == self.compacted);
        let removal =
            Removal::done(compacted.max(Revision::FIRST), at_compacted.map_or(0, |batch| batch.changes.len()));
        let versions = self.bulk.versions();
        let Folded { sorted, previous, unindexed, superseded } = self.bulk.fold();
        let (first, batches) = (self.first, self.batches);
        let history = || history(first, batches, previous, unindexed);
        let (index, history) = bulk::both(versions, || sorted.into_index(), history);
        let (revision, compacted) = (self.revision, self.compacted);
        let store = Store {
            index,
            history,
            revision,
            compacted,
            removal,
            alarms: BTreeSet::new(),
            visits: 0,
            log_bytes_max: usize::MAX,
            #[cfg(test)]
            planted: super::Planted::default(),
        };
        Ok((store, superseded))
    }
}

/// The batches with the states before them, and with the bytes that they alone hold.
fn history(
    first: Revision,
    mut batches: Vec<Arc<Batch>>,
    previous: Vec<(ChangeId, KeyValue)>,
    mut unindexed: Vec<(Revision, usize)>,
) -> History {
    for (id, before) in previous {
        let batch = Arc::get_mut(&mut batches[(id.revision.0 - first.0) as usize]);
        match &mut batch.expect("nobody else has the batch yet").changes[id.sub as usize] {
            Change::Put { previous, .. } | Change::Delete { previous, .. } => *previous = Some(before),
        }
    }
    unindexed.sort_unstable();
    let mut unindexed = unindexed.into_iter().peekable();
    let mut history = History::from(first);
    for batch in batches {
        let mut bytes = 0;
        while let Some((_, more)) = unindexed.next_if(|(revision, _)| *revision == batch.revision) {
            bytes += more;
        }
        history.push(batch, bytes);
    }
    history
}

impl Store {
    /// Takes the batch of the next revision from the log, whose changes carry no previous states, and gives it back with
    /// them.
    pub fn replay_batch(&mut self, batch: &Batch) -> Result<Arc<Batch>, Damage> {
        let revision = self.revision.next();
        if batch.revision != revision {
            let found = ChangeId { revision: batch.revision, sub: 0 };
            let missing = ChangeId { revision, sub: 0 };
            return Err(if found < missing { Damage::Misplaced(found) } else { Damage::Missing(missing) });
        }
        if batch.changes.is_empty() {
            return Err(Damage::Impossible(revision));
        }
        let mut unindexed_bytes = 0;
        let mut changes = Vec::with_capacity(batch.changes.len());
        for change in &batch.changes {
            let (change, replaced) = self.replay_change(change, revision).ok_or(Damage::Impossible(revision))?;
            unindexed_bytes += replaced.as_ref().map_or(0, KeyValue::bytes);
            changes.push(change);
        }
        self.revision = revision;
        let batch = Arc::new(Batch { revision, time: batch.time, changes: changes.into() });
        self.history.push(batch.clone(), unindexed_bytes);
        Ok(batch)
    }

    fn replay_change(&mut self, change: &Change, revision: Revision) -> Option<(Change, Option<KeyValue>)> {
        match change {
            Change::Put { kv, .. } if kv.mod_revision() == revision => {
                let Changed { before_revision, replaced } = self.index.put(kv.clone());
                let previous = before_revision.filter(|_| kv.create_revision() != revision);
                Some((Change::Put { kv: kv.clone(), previous }, replaced))
            }
            Change::Put { .. } => None,
            Change::Delete { key, .. } => {
                let (one, mut budget, mut done) = (KeyRange::One(key.clone()), Budget::new(1), None);
                self.index.delete_range(&one, revision, &mut budget, |_, _, changed| done = Some(changed));
                let Changed { before_revision, replaced } = done?;
                Some((Change::Delete { key: key.clone(), previous: before_revision }, replaced))
            }
        }
    }

    /// Takes an alarm that was active, or was raised or taken back in the log.
    pub fn replay_alarm(&mut self, alarm: Alarm, active: bool) {
        if active {
            self.alarms.insert(alarm);
        } else {
            self.alarms.remove(&alarm);
        }
    }

    /// Takes a compaction from the log.
    pub fn replay_compaction(&mut self, revision: Revision) -> Result<(), Damage> {
        self.compact(revision).map(drop).map_err(|_| Damage::Impossible(revision))
    }
}
