//! A toy disk beside the random store: it is told of batches, compactions and removals, takes them one by one and late,
//! and at any moment a store must come back out of it.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::sync::Arc;

use crate::sim::all_at;
use crate::types::{Batch, Change, ChangeId, KeyValue, Revision, Row};

use super::super::restore::Restore;
use super::super::{CompactProgress, Store};

#[derive(Clone)]
pub enum Told {
    Batch(Arc<Batch>),
    Compaction(Revision),
    Removed(ChangeId),
}

pub struct Kept {
    rows: BTreeMap<ChangeId, Row>,
    revision: Revision,
    compacted: Option<Revision>,
    /// What it was told and has not taken: the log behind the checkpoint.
    behind: VecDeque<Told>,
}

impl Default for Kept {
    fn default() -> Kept {
        Kept { rows: BTreeMap::new(), revision: Revision::FIRST, compacted: None, behind: VecDeque::new() }
    }
}

impl Kept {
    pub fn tell(&mut self, told: Told) {
        self.behind.push_back(told);
    }

    /// The compaction that a removal may follow: it is in the log, whether it is taken or not.
    pub fn compacted(&self) -> Revision {
        let mut told = self.behind.iter().rev().filter_map(|told| match told {
            Told::Compaction(revision) => Some(*revision),
            Told::Batch(_) | Told::Removed(_) => None,
        });
        told.next().or(self.compacted).unwrap_or_default()
    }

    /// Takes some of what it was told. A crash may come between any two.
    pub fn take(&mut self, count: usize) {
        for _ in 0..count {
            match self.behind.pop_front() {
                None => return,
                Some(Told::Batch(batch)) => {
                    self.revision = batch.revision;
                    self.rows.extend(rows_of(&batch).map(|row| (row.id, row)));
                }
                Some(Told::Compaction(revision)) => self.compacted = Some(revision),
                Some(Told::Removed(id)) => assert!(self.rows.remove(&id).is_some(), "{id:?} was never there"),
            }
        }
    }

    fn restored(&self) -> Store {
        let mut restore = Restore::new(self.revision, self.compacted, 0);
        for row in self.rows.values() {
            restore.row(row.clone()).unwrap();
        }
        let (mut store, superseded) = restore.finish().unwrap();
        let (revision, compacted) = (self.revision, self.compacted.unwrap_or_default());
        let needed = needed(&store, revision, compacted);
        let left: BTreeSet<ChangeId> = self.rows.keys().copied().filter(|id| !superseded.contains(id)).collect();
        assert_eq!(left, needed, "what is left behind a start at {compacted}");
        for told in &self.behind {
            match told {
                Told::Batch(batch) => {
                    let replayed = store.replay_batch(&without_previous(batch)).unwrap();
                    assert_eq!(&replayed, batch);
                }
                Told::Compaction(revision) => store.replay_compaction(*revision).unwrap(),
                Told::Removed(_) => {}
            }
        }
        store
    }

    /// A store that is brought back answers like the one that lives.
    pub fn check_restored(&self, live: &Store) {
        let mut store = self.restored();
        assert_eq!((store.revision(), store.compacted()), (live.revision(), live.compacted()));
        let is_compact = live.is_compact();
        for removed in [false, true] {
            assert_eq!(store.bytes().versions, store.index.recount().1);
            assert_eq!(store.bytes().keys, store.index.recount().0);
            let first = live.compacted().unwrap_or_default().max(Revision::FIRST);
            for revision in (first.0..=live.revision().0).rev().take(20).chain([first.0]) {
                assert_eq!(all_at(&store, Revision(revision)), all_at(live, Revision(revision)));
            }
            let history = |store: &Store| store.history(first, live.revision(), usize::MAX, usize::MAX);
            assert_eq!(history(&store), history(live));
            if removed && is_compact {
                assert_eq!((store.bytes(), store.keys()), (live.bytes(), live.keys()));
            }
            while store.compact_step(1, None) == CompactProgress::More {}
        }
        assert!(store.is_compact());
    }

    /// Behind a removal that is done, the rows are those that a start needs and no other.
    pub fn check_exact(&self, live: &Store) {
        let rows: BTreeSet<ChangeId> = self.rows.keys().copied().collect();
        assert_eq!(rows, needed(live, live.revision(), live.compacted().unwrap_or_default()));
    }
}

fn rows_of(batch: &Batch) -> impl Iterator<Item = Row> {
    let whole = without_previous(batch);
    let (revision, time, count) = (batch.revision, batch.time, batch.changes.len());
    whole.changes.into_iter().enumerate().map(move |(at, change)| Row {
        id: ChangeId { revision, sub: at as u32 },
        is_last: at + 1 == count,
        time,
        change,
    })
}

fn without_previous(batch: &Batch) -> Batch {
    let changes = batch.changes.iter().cloned().map(|mut change| {
        match &mut change {
            Change::Put { previous, .. } | Change::Delete { previous, .. } => *previous = None,
        }
        change
    });
    Batch { revision: batch.revision, time: batch.time, changes: changes.collect() }
}

/// The newest put of each key that lives at the compacted revision, and all changes from there on.
fn needed(store: &Store, revision: Revision, compacted: Revision) -> BTreeSet<ChangeId> {
    let first = compacted.max(Revision(2));
    let batches = store.history(first, revision, usize::MAX, usize::MAX).unwrap();
    let changes = batches.iter().flat_map(|batch| rows_of(batch).map(|row| row.id).collect::<Vec<_>>());
    let live = all_at(store, compacted.max(Revision::FIRST));
    changes.chain(live.rows.iter().map(KeyValue::id)).collect()
}
