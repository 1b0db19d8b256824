//! Recent history and the committed position: written by the writer's shard, read by all.
//!
//! This is everything that shards share. Batches hang in a chain of blocks; a slot is set once and never again, so a reader
//! needs no lock: it looks at the next slot, and finds a batch or nothing. Each reader holds the block it stands in and
//! thereby everything behind it; what every reader has passed is freed by the last of them to leave a block. The writer
//! never waits for a reader.
//!
//! The committed revision is the one point of linearization. The writer stores it (release) *after* the batches up to it
//! hang in the chain, so whoever loads it (acquire) finds them all. The compacted revision is stored before the committed
//! one, for the same reason.

use std::sync::atomic::{AtomicI64, Ordering};
use std::sync::{Arc, OnceLock};

use crate::types::{Batch, Revision};

/// Batches a block holds: 4 KiB of slots.
const BLOCK_SLOTS: usize = 256;
/// Bytes of batches that end a block early, previous versions included. A reader holds all of its block for as long as
/// nothing is written, whatever was compacted since: with values of a megabyte, 256 batches were more than a small server
/// may have, and so was one delete of many keys. A block that has ended is left by whoever has read its last batch.
const BLOCK_BYTES_MAX: usize = 1 << 20;

struct Block {
    slots: [OnceLock<Arc<Batch>>; BLOCK_SLOTS],
    next: OnceLock<Arc<Block>>,
}

impl Block {
    fn new() -> Arc<Block> {
        Arc::new(Block { slots: [const { OnceLock::new() }; BLOCK_SLOTS], next: OnceLock::new() })
    }
}

impl Drop for Block {
    /// Takes the chain apart in a loop: a reader that lags by millions of batches and goes would otherwise recurse once a
    /// block, and overflow its stack.
    fn drop(&mut self) {
        let mut next = self.next.take();
        while let Some(mut block) = next.and_then(Arc::into_inner) {
            next = block.next.take();
        }
    }
}

/// What every shard may see of the store's progress.
#[derive(Debug)]
pub struct Committed {
    revision: AtomicI64,
    compacted: AtomicI64,
}

/// Stands for "never compacted" (etcd's initial compact revision).
const NEVER: i64 = -1;

impl Committed {
    /// Every write up to this revision is durable and may be told.
    pub fn revision(&self) -> Revision {
        Revision(self.revision.load(Ordering::Acquire))
    }

    /// Reads and watches below this revision are refused.
    pub fn compacted(&self) -> Option<Revision> {
        match self.compacted.load(Ordering::Acquire) {
            NEVER => None,
            revision => Some(Revision(revision)),
        }
    }
}

/// The writing end. There is one, on shard 0.
pub struct Appender {
    block: Arc<Block>,
    at: usize,
    /// Of the batches in the block.
    block_bytes: usize,
    committed: Arc<Committed>,
}

impl Appender {
    /// A history that starts behind `revision`: the first batch to come is the one after it.
    pub fn new(revision: Revision, compacted: Option<Revision>) -> Appender {
        let committed = Committed {
            revision: AtomicI64::new(revision.0),
            compacted: AtomicI64::new(compacted.map_or(NEVER, |revision| revision.0)),
        };
        Appender { block: Block::new(), at: 0, block_bytes: 0, committed: Arc::new(committed) }
    }

    pub fn committed(&self) -> Arc<Committed> {
        Arc::clone(&self.committed)
    }

    /// A reader of everything appended from here on.
    pub fn reader(&self) -> Reader {
        Reader { block: Arc::clone(&self.block), at: self.at }
    }

    fn append(&mut self, batch: Arc<Batch>) {
        self.block_bytes += batch.bytes() + batch.previous_bytes();
        let set = self.block.slots[self.at].set(batch);
        assert!(set.is_ok(), "only this end sets slots, each once");
        self.at += 1;
        if self.at == BLOCK_SLOTS || self.block_bytes >= BLOCK_BYTES_MAX {
            let next = Block::new();
            let linked = self.block.next.set(Arc::clone(&next));
            assert!(linked.is_ok(), "only this end links blocks, each once");
            self.block = next;
            (self.at, self.block_bytes) = (0, 0);
        }
    }

    /// Makes durable batches visible, and with them the revision and the compaction that may now be told.
    pub fn publish(
        &mut self,
        batches: impl Iterator<Item = Arc<Batch>>,
        revision: Revision,
        compacted: Option<Revision>,
    ) {
        for batch in batches {
            self.append(batch);
        }
        debug_assert!(revision >= self.committed.revision());
        self.committed.compacted.store(compacted.map_or(NEVER, |revision| revision.0), Ordering::Release);
        self.committed.revision.store(revision.0, Ordering::Release);
    }
}

/// The cursor of one shard.
#[derive(Clone)]
pub struct Reader {
    block: Arc<Block>,
    at: usize,
}

impl Reader {
    fn standing_at(&self) -> Option<&Arc<Batch>> {
        self.block.slots.get(self.at)?.get()
    }

    fn leave_ended(&mut self) {
        while self.standing_at().is_none()
            && let Some(next) = self.block.next.get().map(Arc::clone)
        {
            // It was linked behind everything that stands in this block, so a second look sees that.
            if self.standing_at().is_none() {
                self.block = next;
                self.at = 0;
            }
        }
    }
}

impl Iterator for Reader {
    type Item = Arc<Batch>;

    /// The next batch, if it hangs there already.
    fn next(&mut self) -> Option<Arc<Batch>> {
        self.leave_ended();
        let batch = self.standing_at().map(Arc::clone)?;
        self.at += 1;
        // What hangs in the block is held by it no longer than it takes to read it.
        self.leave_ended();
        Some(batch)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::types::{Change, KeyValue, LeaseId, Time};

    fn batch(revision: i64) -> Arc<Batch> {
        Arc::new(Batch { revision: Revision(revision), time: Time(0), changes: Box::new([]) })
    }

    fn publish(appender: &mut Appender, revision: i64) {
        appender.publish([batch(revision)].into_iter(), Revision(revision), None);
    }

    #[test]
    fn a_reader_sees_every_batch_published_after_it_began_and_none_before() {
        let mut appender = Appender::new(Revision::FIRST, None);
        publish(&mut appender, 2);
        let mut late = appender.reader();
        for revision in 3..2_000 {
            publish(&mut appender, revision);
        }
        let seen: Vec<i64> = late.by_ref().map(|batch| batch.revision.0).collect();
        assert_eq!(seen, (3..2_000).collect::<Vec<_>>());
        assert!(late.next().is_none(), "a reader at the edge waits");
        publish(&mut appender, 2_000);
        assert_eq!(late.next().map(|batch| batch.revision), Some(Revision(2_000)));
    }

    #[test]
    fn large_batches_are_let_go_although_nothing_is_written_behind_them() {
        let mut appender = Appender::new(Revision::FIRST, None);
        let mut reader = appender.reader();
        let value = vec![7; 100_000];
        let large: Vec<Arc<Batch>> = (2..102)
            .map(|revision| {
                let revision = Revision(revision);
                let kv = KeyValue::new(b"k", &value, revision, revision, 0, 1, LeaseId::NONE);
                Arc::new(Batch { revision, time: Time(0), changes: Box::new([Change::Put { kv, previous: None }]) })
            })
            .collect();
        for batch in &large {
            appender.publish([Arc::clone(batch)].into_iter(), batch.revision, None);
            assert_eq!(reader.next().map(|batch| batch.revision), Some(batch.revision));
            assert!(reader.next().is_none());
        }
        let held = large.iter().filter(|batch| Arc::strong_count(batch) > 1).count();
        assert!(held <= 11, "{held} batches of 100 kB are held");
        let kv = KeyValue::new(b"k", &vec![7; 2 << 20], Revision(101), Revision(101), 0, 1, LeaseId::NONE);
        let changes = Box::new([Change::Delete { key: "k".into(), previous: Some(kv) }]);
        let delete = Arc::new(Batch { revision: Revision(102), time: Time(0), changes });
        appender.publish([Arc::clone(&delete)].into_iter(), Revision(102), None);
        assert_eq!(reader.next().as_ref(), Some(&delete));
        assert_eq!(Arc::strong_count(&delete), 1, "a delete is large when what it deleted was");
    }

    #[test]
    fn whoever_sees_a_committed_revision_finds_its_batch() {
        let mut appender = Appender::new(Revision::FIRST, None);
        let (committed, mut reader) = (appender.committed(), appender.reader());
        let follower = std::thread::spawn(move || {
            let mut handled = Revision::FIRST;
            while handled < Revision(50_000) {
                let seen = committed.revision();
                while handled < seen {
                    handled = reader.next().expect("what is committed hangs in the chain").revision;
                }
                let compacted = committed.compacted();
                assert!(seen < Revision(25_000) || compacted == Some(Revision(9)), "the compaction is stored first");
            }
        });
        for revision in 2..=50_000 {
            let compacted = (revision >= 25_000).then_some(Revision(9));
            appender.publish([batch(revision)].into_iter(), Revision(revision), compacted);
        }
        follower.join().expect("the follower saw every batch");
    }

    #[test]
    fn a_long_chain_is_taken_apart_without_deep_recursion() {
        let mut appender = Appender::new(Revision::FIRST, None);
        let lagging = appender.reader();
        let shared = batch(2);
        for _ in 0..BLOCK_SLOTS * 20_000 {
            appender.append(Arc::clone(&shared));
        }
        drop(appender);
        drop(lagging);
        assert_eq!(Arc::strong_count(&shared), 1);
    }
}
