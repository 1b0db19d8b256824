//! Physical removal behind a compaction, in bounded turns.
//!
//! A compaction takes logical effect when it is applied: nothing below it can be asked for any more. What it made
//! unreachable is removed later, and only what it made unreachable is visited: each batch up to the compacted revision
//! names the keys whose older versions it superseded, so the work is that of the changes, not of all keys (etcd walks
//! its whole index).
//!
//! The states: *idle* when `removed` has reached the compacted revision and nothing is left to drop; else *busy* at one
//! change of one batch. Removal never passes the pinned revision: at `removed` and above every read is still right.

use crate::types::{Change, Revision};

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
    /// Changes of batches that left the window. They are dropped in turns too, since one batch may hold a million.
    dropping: Vec<Change>,
}

impl Removal {
    pub fn new() -> Removal {
        Removal { removed: Revision::FIRST, change_at: 0, dropping: Vec::new() }
    }

    pub fn removed(&self) -> Revision {
        self.removed
    }

    /// Nothing is left to do at the revision it stands at.
    pub fn is_idle(&self, history: &History) -> bool {
        let changes = history.get(self.removed).map_or(0, |batch| batch.changes.len());
        self.dropping.is_empty() && self.change_at >= changes
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
            if !self.dropping.is_empty() {
                let dropped = self.dropping.len().min(visits);
                self.dropping.truncate(self.dropping.len() - dropped);
                visits -= dropped;
                continue;
            }
            self.dropping = Vec::new();
            if let Some(batch) = history.get(self.removed)
                && let Some(change) = batch.changes.get(self.change_at)
            {
                index.prune(change.key(), self.removed);
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

    /// Moves on to the next revision; batches below it leave the window.
    fn pass_batch(&mut self, history: &mut History) {
        self.removed = self.removed.next();
        self.change_at = 0;
        while history.first() < self.removed {
            let Some(batch) = history.pop_first() else { break };
            // A watcher may still hold the batch; then the last holder drops it.
            if let Some(batch) = std::sync::Arc::into_inner(batch) {
                self.dropping.append(&mut Vec::from(batch.changes));
            }
        }
    }
}
