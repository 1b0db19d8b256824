//! How long things took, or are to last: counts in fixed buckets.
//!
//! One thread observes and any may read, so nothing is locked: an observation is two loads and two stores of plain words.
//! The bounds are chosen when the program is written, since those of a histogram cannot be changed without breaking the
//! queries over it.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

/// No histogram here has more bounds.
pub const BOUNDS_MAX: usize = 24;
/// Words that one takes in a copy: its buckets, one for what is above the last bound, and the sum.
pub const WORDS: usize = BOUNDS_MAX + 2;

/// The upper bounds of the buckets, rising: nanoseconds, but for the times to live.
pub type Bounds = &'static [u64];

const fn doubling<const COUNT: usize>(first: u64) -> [u64; COUNT] {
    let mut bounds = [first; COUNT];
    let mut at = 1;
    while at < COUNT {
        bounds[at] = bounds[at - 1] * 2;
        at += 1;
    }
    bounds
}

/// etcd's for all that touches the disk: 1 ms to 8.192 s.
pub const DISK: Bounds = &doubling::<14>(1_000_000);
/// 50 us to 26 s: where a put on a good disk takes 200 us, the first bound of etcd's says nothing.
pub const FINE: Bounds = &doubling::<20>(50_000);
/// etcd's for the time to live of leases, in seconds: 1 s to 97 days.
pub const TTL: Bounds = &doubling::<24>(1);
/// Those of go-grpc-prometheus, which the boards of etcd were made for: 5 ms to 10 s.
pub const HANDLING: Bounds = &[
    5_000_000,
    10_000_000,
    25_000_000,
    50_000_000,
    100_000_000,
    250_000_000,
    500_000_000,
    1_000_000_000,
    2_500_000_000,
    5_000_000_000,
    10_000_000_000,
];

#[derive(Debug)]
pub struct Histogram {
    bounds: Bounds,
    /// By bucket; the one behind the last bound has the rest.
    counts: [AtomicU64; BOUNDS_MAX + 1],
    sum: AtomicU64,
}

impl Histogram {
    pub const fn new(bounds: Bounds) -> Histogram {
        assert!(bounds.len() <= BOUNDS_MAX);
        Histogram { bounds, counts: [const { AtomicU64::new(0) }; BOUNDS_MAX + 1], sum: AtomicU64::new(0) }
    }

    /// Only ever called on one thread.
    pub fn observe(&self, took: Duration) {
        self.count(took.as_nanos() as u64);
    }

    /// As [`Histogram::observe`], in the unit of the bounds.
    pub fn count(&self, value: u64) {
        let bucket = self.bounds.partition_point(|bound| *bound < value);
        add(&self.counts[bucket], 1);
        add(&self.sum, value);
    }

    /// Copies it out, on any thread. What is observed at that moment may be counted and not yet summed.
    pub fn read(&self, words: &mut [u64]) {
        let (counts, sum) = words.split_at_mut(BOUNDS_MAX + 1);
        for (word, count) in counts.iter_mut().zip(&self.counts) {
            *word = count.load(Ordering::Relaxed);
        }
        sum[0] = self.sum.load(Ordering::Relaxed);
    }
}

/// Not a read-modify-write: there is one writer.
fn add(word: &AtomicU64, more: u64) {
    word.store(word.load(Ordering::Relaxed).wrapping_add(more), Ordering::Relaxed);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_exactly_at_a_bound_belongs_to_it() {
        let histogram = Histogram::new(DISK);
        for nanoseconds in [0, 1_000_000, 1_000_001, 2_000_000, 8_192_000_000, 8_192_000_001, u64::MAX / 2] {
            histogram.observe(Duration::from_nanos(nanoseconds));
        }
        let mut words = [0; WORDS];
        histogram.read(&mut words);
        assert_eq!((words[0], words[1], words[13], words[14]), (2, 2, 1, 2));
        assert_eq!(words[..=BOUNDS_MAX].iter().sum::<u64>(), 7);
        assert_eq!(words[BOUNDS_MAX + 1], 1_000_000 + 1_000_001 + 2_000_000 + 2 * 8_192_000_000 + 1 + u64::MAX / 2);
    }

    #[test]
    fn bounds_rise() {
        for bounds in [DISK, FINE, HANDLING, TTL] {
            assert!(bounds.is_sorted_by(|a, b| a < b) && bounds.len() <= BOUNDS_MAX);
        }
    }
}
