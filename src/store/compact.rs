//! Physical removal behind a compaction, in bounded turns.
//!
//! A compaction takes logical effect when it is applied: nothing below it can be asked for any more. What it made
//! unreachable is removed later, and only what it made unreachable is visited: each batch up to the compacted revision
//! names the keys whose older versions it superseded, so the work is that of the changes, not of all keys (etcd walks
//! its whole index).
//!
//! What leaves is also named, so that whoever keeps rows of the changes elsewhere can forget them too. Named are exactly
//! the changes that a store built anew at the compacted revision does without: every put that another change superseded
//! at or below it, and every delete below it. A put is named before the delete that superseded it: rows that are
//! forgotten in this order never bring a deleted key back, wherever a crash cuts the forgetting.
//!
//! The states: *idle* when `removed` has reached the compacted revision and nothing is left to drop; else *busy* at one
//! change of one batch. Removal never passes the pinned revision: at `removed` and above every read is still right.

use std::sync::Arc;

use crate::types::{Batch, Change, ChangeId, Revision};

use super::history::History;
use super::key_index::KeyIndex;

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum CompactProgress {
    /// Nothing is left to remove, or nothing that the pinned revision allows.
    Done,
    More,
}

#[derive(Debug)]
pub struct Removal {
    /// Reads below this revision may miss versions; reads at it or above are whole.
    removed: Revision,
    /// The next change to look at in the batch of `removed`.
    change_at: usize,
    /// The batch that left the window last. Its changes go in turns too, since one batch may hold a million.
    leaving: Option<Leaving>,
    /// What left and has not been told yet.
    gone: Vec<ChangeId>,
}

#[derive(Debug)]
struct Leaving {
    revision: Revision,
    /// The next change to let go.
    sub: u32,
    /// A batch of one change replaced nothing of its own, which spares most changes a look at the index.
    is_alone: bool,
    changes: Changes,
}

#[derive(Debug)]
enum Changes {
    Ours(std::vec::IntoIter<Change>),
    /// A watcher still holds the batch; then the last holder drops it.
    Shared(Arc<Batch>),
}

impl Leaving {
    fn new(batch: Arc<Batch>) -> Leaving {
        let (revision, is_alone) = (batch.revision, batch.changes.len() == 1);
        let changes = match Arc::try_unwrap(batch) {
            Ok(batch) => Changes::Ours(Vec::from(batch.changes).into_iter()),
            Err(shared) => Changes::Shared(shared),
        };
        Leaving { revision, sub: 0, is_alone, changes }
    }

    /// Lets one change go, and names it unless the index still holds it. False: there was none left.
    fn step(&mut self, index: &KeyIndex, gone: &mut Vec<ChangeId>) -> bool {
        let ours;
        let change = match &mut self.changes {
            Changes::Ours(changes) => {
                ours = changes.next();
                ours.as_ref()
            }
            Changes::Shared(batch) => batch.changes.get(self.sub as usize),
        };
        let Some(change) = change else { return false };
        let id = ChangeId { revision: self.revision, sub: self.sub };
        self.sub += 1;
        let is_gone = match change {
            Change::Delete { .. } => true,
            // What older changes of the key left is pruned by now, and what newer ones will prune is not: what the index
            // shows at this revision is what its last change of the key wrote.
            Change::Put { kv, .. } => {
                !self.is_alone && index.at(kv.key(), self.revision).is_none_or(|last| last.id() != id)
            }
        };
        if is_gone {
            gone.push(id);
        }
        true
    }
}

impl Removal {
    pub fn new() -> Removal {
        Removal { removed: Revision::FIRST, change_at: 0, leaving: None, gone: Vec::new() }
    }

    /// A store that was built anew at this revision, whose batch has so many changes, has nothing to remove below it.
    pub fn done(removed: Revision, changes: usize) -> Removal {
        Removal { removed, change_at: changes, leaving: None, gone: Vec::new() }
    }

    /// What left since the last call.
    pub fn take_gone(&mut self) -> Vec<ChangeId> {
        std::mem::take(&mut self.gone)
    }

    pub fn removed(&self) -> Revision {
        self.removed
    }

    /// Nothing is left to do at the revision it stands at.
    pub fn is_idle(&self, history: &History) -> bool {
        let changes = history.get(self.removed).map_or(0, |batch| batch.changes.len());
        self.leaving.is_none() && self.change_at >= changes
    }

    /// Removes what is superseded at or below `target`. Bounded by `visits_max`: one visit a change.
    pub fn step(
        &mut self,
        index: &mut KeyIndex,
        history: &mut History,
        target: Revision,
        visits_max: usize,
    ) -> CompactProgress {
        let mut visits = visits_max.max(1);
        while visits > 0 {
            if let Some(leaving) = &mut self.leaving {
                if leaving.step(index, &mut self.gone) {
                    visits -= 1;
                } else {
                    self.leaving = None;
                }
                continue;
            }
            if let Some(batch) = history.get(self.removed)
                && let Some(change) = batch.changes.get(self.change_at)
            {
                index.prune(change.key(), self.removed, |kv| self.gone.push(kv.id()));
                self.change_at += 1;
                visits -= 1;
                continue;
            }
            if self.removed >= target {
                return CompactProgress::Done;
            }
            self.pass_batch(history);
            visits -= 1;
        }
        CompactProgress::More
    }

    /// Moves on to the next revision; the batch below it leaves the window.
    fn pass_batch(&mut self, history: &mut History) {
        self.removed = self.removed.next();
        self.change_at = 0;
        if history.first() < self.removed {
            self.leaving = history.pop_first().map(Leaving::new);
        }
    }
}
