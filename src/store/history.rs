//! Revision -> batch: the window of changes that a watcher who is behind can still read.
//!
//! Every revision that changed something has exactly one batch, and every revision changes something, so the window is a
//! plain queue: the batch of revision `r` stands at `r - first`. It begins at the compacted revision, whose own batch
//! stays (etcd since 3.5.16): a watch may start exactly there and must see its deletions too.
//!
//! It knows nothing of keys at a revision; `key_index` does.

use std::collections::VecDeque;
use std::sync::Arc;

use crate::types::{Batch, Change, Revision};

/// What the window takes for a batch besides the batch itself, in bytes: a place in the queue and the shared counts.
pub const BATCH_BYTES: usize = size_of::<Kept>() + 16 + size_of::<Batch>();

#[derive(Debug)]
struct Kept {
    batch: Arc<Batch>,
    /// What it keeps in memory that the index does not count already: 8 bytes here, since it is not a function of the
    /// batch alone.
    bytes: usize,
}

#[derive(Debug)]
pub struct History {
    batches: VecDeque<Kept>,
    /// The revision of the first batch, or the one that the first batch will have.
    first: Revision,
    bytes: usize,
}

impl History {
    pub fn new() -> History {
        History { batches: VecDeque::new(), first: Revision::FIRST.next(), bytes: 0 }
    }

    pub fn bytes(&self) -> usize {
        self.bytes
    }

    pub fn first(&self) -> Revision {
        self.first
    }

    /// `unindexed_bytes` are versions that only this batch holds, because a later change of the same revision replaced
    /// them.
    pub fn push(&mut self, batch: Arc<Batch>, unindexed_bytes: usize) {
        assert_eq!(batch.revision.0, self.first.0 + self.batches.len() as i64, "every revision has one batch");
        let deleted_keys = batch.changes.iter().map(|change| match change {
            Change::Put { .. } => 0,
            Change::Delete { key, .. } => key.len(),
        });
        let bytes = BATCH_BYTES + size_of_val(&*batch.changes) + deleted_keys.sum::<usize>() + unindexed_bytes;
        self.bytes += bytes;
        self.batches.push_back(Kept { batch, bytes });
    }

    pub fn get(&self, revision: Revision) -> Option<&Arc<Batch>> {
        let at = usize::try_from(revision.0.checked_sub(self.first.0)?).ok()?;
        Some(&self.batches.get(at)?.batch)
    }

    /// The batches of `from..=upto` in order, at most so many, and no further one once `bytes_max` is reached: a single
    /// batch larger than that is still given, or its reader would never get on.
    pub fn read(&self, from: Revision, upto: Revision, batches_max: usize, bytes_max: usize) -> Vec<Arc<Batch>> {
        let skip = usize::try_from(from.0.saturating_sub(self.first.0)).unwrap_or(0);
        let mut bytes = 0;
        let mut read = Vec::new();
        for kept in self.batches.iter().skip(skip).take(batches_max) {
            if kept.batch.revision > upto || (bytes >= bytes_max && !read.is_empty()) {
                break;
            }
            bytes += kept.batch.bytes();
            read.push(kept.batch.clone());
        }
        read
    }

    /// Drops the previous versions from a batch. etcd reads `prev_kv` one revision below the event, and there the
    /// compacted revision itself finds nothing any more.
    pub fn strip_previous(&mut self, revision: Revision) {
        let Some(at) = revision.0.checked_sub(self.first.0).and_then(|at| usize::try_from(at).ok()) else { return };
        let Some(kept) = self.batches.get_mut(at) else { return };
        let changes = kept.batch.changes.iter().map(|change| match change {
            Change::Put { kv, .. } => Change::Put { kv: kv.clone(), previous: None },
            Change::Delete { key, .. } => Change::Delete { key: key.clone(), previous: None },
        });
        let changes = changes.collect();
        kept.batch = Arc::new(Batch { revision: kept.batch.revision, time: kept.batch.time, changes });
    }

    /// The sum, counted anew.
    #[cfg(test)]
    pub fn recount(&self) -> usize {
        self.batches.iter().map(|kept| kept.bytes).sum()
    }

    /// The planted fault behind [`super::Planted::lost_delete_at_compaction`].
    #[cfg(test)]
    pub fn lose_deletes(&mut self, revision: Revision) {
        let Some(at) = revision.0.checked_sub(self.first.0).and_then(|at| usize::try_from(at).ok()) else { return };
        let Some(kept) = self.batches.get_mut(at) else { return };
        let left = kept.batch.changes.iter().filter(|change| matches!(change, Change::Put { .. })).cloned();
        let changes = left.collect();
        kept.batch = Arc::new(Batch { revision: kept.batch.revision, time: kept.batch.time, changes });
    }

    /// Takes the oldest batch out of the window.
    pub fn pop_first(&mut self) -> Option<Arc<Batch>> {
        let kept = self.batches.pop_front()?;
        self.first = self.first.next();
        self.bytes -= kept.bytes;
        if self.batches.len() * 4 < self.batches.capacity() && self.batches.capacity() > 1024 {
            self.batches.shrink_to(self.batches.len() * 2);
        }
        Some(kept.batch)
    }
}
