//! What the log and the checkpoint count of themselves: each number is written by one thread and read by others.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use crate::metrics::Histogram;
use crate::metrics::histogram::DISK;
use crate::types::Time;

#[derive(Debug)]
pub struct Meter {
    /// Written by the thread of the log: how long its syncs took, and what it has written.
    pub log_syncs: Histogram,
    log_written_bytes: AtomicU64,
    /// Written by the thread of the checkpoint: when it last took over everything, and what it has not taken over yet.
    checkpointed_at: AtomicU64,
    log_bytes: AtomicU64,
    /// Readings of the whole checkpoint that found it whole, and that found damage.
    scrubs_whole: AtomicU64,
    scrubs_damaged: AtomicU64,
    /// How long the syncs of the checkpoint's file took. A whole commit is slowed down on purpose, so its length would
    /// tell nothing of the disk.
    pub checkpoint_syncs: Arc<Histogram>,
}

impl Meter {
    pub fn new(checkpoint_syncs: Arc<Histogram>, now: Time) -> Meter {
        Meter {
            log_syncs: Histogram::new(DISK),
            log_written_bytes: AtomicU64::new(0),
            checkpointed_at: AtomicU64::new(now.0),
            log_bytes: AtomicU64::new(0),
            scrubs_whole: AtomicU64::new(0),
            scrubs_damaged: AtomicU64::new(0),
            checkpoint_syncs,
        }
    }

    pub fn log_wrote(&self, bytes: usize) {
        let written = self.log_written_bytes.load(Ordering::Relaxed) + bytes as u64;
        self.log_written_bytes.store(written, Ordering::Relaxed);
    }

    pub fn log_written_bytes(&self) -> u64 {
        self.log_written_bytes.load(Ordering::Relaxed)
    }

    /// The checkpoint holds everything up to now but so many bytes.
    pub fn checkpointed(&self, now: Time, left_bytes: usize) {
        self.checkpointed_at.store(now.0, Ordering::Relaxed);
        self.checkpoint_lacks(left_bytes);
    }

    pub fn checkpoint_lacks(&self, bytes: usize) {
        self.log_bytes.store(bytes as u64, Ordering::Relaxed);
    }

    pub fn scrubbed(&self, is_whole: bool) {
        let count = if is_whole { &self.scrubs_whole } else { &self.scrubs_damaged };
        count.fetch_add(1, Ordering::Relaxed);
    }

    /// How many readings of the checkpoint found it whole, and how many did not.
    pub fn scrubs(&self) -> (u64, u64) {
        (self.scrubs_whole.load(Ordering::Relaxed), self.scrubs_damaged.load(Ordering::Relaxed))
    }

    pub fn checkpointed_at(&self) -> Time {
        Time(self.checkpointed_at.load(Ordering::Relaxed))
    }

    pub fn log_bytes(&self) -> u64 {
        self.log_bytes.load(Ordering::Relaxed)
    }
}
