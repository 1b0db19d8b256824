//! Revision -> batch: the window of changes that a watcher who is behind can still read.
//!
//! Every revision that changed something has exactly one batch, and every revision changes something, so the window is a
//! plain queue: the batch of revision `r` stands at `r - first`. The queue is cut into blocks, because one ring buffer
//! would move a million places in a single turn when it grows or shrinks: 20 ms in which nobody is served. It begins at the compacted revision, whose own batch
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
    batches: Blocks,
    /// The revision of the first batch, or the one that the first batch will have.
    first: Revision,
    bytes: usize,
}

/// Batches in a block: 16 KiB of places.
const BLOCK_BATCHES: usize = 1_024;

/// A queue in blocks. All but the first and the last are full; the places that are gone from the first one count for the
/// place of all others, and no block is empty.
#[derive(Debug, Default)]
struct Blocks {
    blocks: VecDeque<VecDeque<Kept>>,
    /// How many have left the first block.
    gone: usize,
    length: usize,
}

impl Blocks {
    fn push(&mut self, kept: Kept) {
        if (self.gone + self.length).is_multiple_of(BLOCK_BATCHES) || self.blocks.is_empty() {
            // The first block grows as it fills: most windows are short after each compaction.
            let capacity = if self.blocks.is_empty() { 0 } else { BLOCK_BATCHES };
            self.blocks.push_back(VecDeque::with_capacity(capacity));
        }
        self.blocks.back_mut().expect("it has just been put there").push_back(kept);
        self.length += 1;
    }

    fn pop(&mut self) -> Option<Kept> {
        let first = self.blocks.front_mut()?;
        let kept = first.pop_front()?;
        self.gone += 1;
        self.length -= 1;
        if first.is_empty() {
            self.blocks.pop_front();
            self.gone = 0;
        }
        Some(kept)
    }

    /// Which block, and which place in it.
    fn place(&self, at: usize) -> (usize, usize) {
        let at = at + self.gone;
        let (block, place) = (at / BLOCK_BATCHES, at % BLOCK_BATCHES);
        (block, if block == 0 { place - self.gone } else { place })
    }

    fn get(&self, at: usize) -> Option<&Kept> {
        let (block, place) = self.place(at);
        self.blocks.get(block)?.get(place)
    }

    fn get_mut(&mut self, at: usize) -> Option<&mut Kept> {
        let (block, place) = self.place(at);
        self.blocks.get_mut(block)?.get_mut(place)
    }

    fn iter_from(&self, at: usize) -> impl Iterator<Item = &Kept> {
        let (block, place) = self.place(at.min(self.length));
        self.blocks.iter().skip(block).flatten().skip(place)
    }
}

impl History {
    pub fn new() -> History {
        History::from(Revision::FIRST.next())
    }

    /// An empty window that will begin with this revision.
    pub fn from(first: Revision) -> History {
        History { batches: Blocks::default(), first, bytes: 0 }
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
        assert_eq!(batch.revision.0, self.first.0 + self.batches.length as i64, "every revision has one batch");
        let deleted_keys = batch.changes.iter().map(|change| match change {
            Change::Put { .. } => 0,
            Change::Delete { key, .. } => key.len(),
        });
        let bytes = BATCH_BYTES + size_of_val(&*batch.changes) + deleted_keys.sum::<usize>() + unindexed_bytes;
        self.bytes += bytes;
        self.batches.push(Kept { batch, bytes });
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
        for kept in self.batches.iter_from(skip).take(batches_max) {
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
        kept.batch = Arc::new(kept.batch.without_previous());
    }

    /// The sum, counted anew.
    #[cfg(test)]
    pub fn recount(&self) -> usize {
        self.batches.iter_from(0).map(|kept| kept.bytes).sum()
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
        let kept = self.batches.pop()?;
        self.first = self.first.next();
        self.bytes -= kept.bytes;
        Some(kept.batch)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::types::Time;

    #[test]
    fn a_window_over_many_blocks_finds_every_batch_wherever_it_begins() {
        let mut history = History::new();
        let push = |history: &mut History, revision| {
            history.push(Arc::new(Batch { revision: Revision(revision), time: Time(0), changes: Box::new([]) }), 0);
        };
        let blocks = BLOCK_BATCHES as i64;
        let mut next = 2;
        // Window lengths around the edges of blocks, each reached from the one before.
        for length in [1, 0, blocks, blocks - 1, 3 * blocks + 1, 2 * blocks, 1, 0, blocks + 1, 0] {
            while next - history.first().0 < length {
                push(&mut history, next);
                next += 1;
            }
            while next - history.first().0 > length {
                let first = history.first();
                assert_eq!(history.pop_first().map(|batch| batch.revision), Some(first));
            }
            let first = history.first().0;
            for revision in first..next {
                assert_eq!(history.get(Revision(revision)).map(|batch| batch.revision.0), Some(revision));
            }
            assert!(history.get(Revision(first - 1)).is_none() && history.get(Revision(next)).is_none());
            for from in [first, first + length / 3, next - 1, next, next + 5] {
                let read = history.read(Revision(from), Revision(i64::MAX), usize::MAX, usize::MAX);
                assert!(
                    read.iter().map(|batch| batch.revision.0).eq(from.max(first)..next),
                    "{from} in {first}..{next}"
                );
            }
            assert_eq!(history.bytes(), history.recount());
        }
        assert!(history.pop_first().is_none());
    }
}
