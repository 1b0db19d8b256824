//! What each shard shows of itself to the others: when it last turned.
//!
//! Each board is written by its own shard and read by all, so nothing is locked, and a shard that hangs is seen by those
//! that do not.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

/// A shard looks at its clock once a second, so one that has not for so long hangs.
const HANGS_AFTER: Duration = Duration::from_secs(5);

#[derive(Debug)]
pub struct Boards {
    start: Instant,
    boards: Box<[Board]>,
}

/// A cache line of its own, or the shards would slow each other down.
#[derive(Debug, Default)]
#[repr(align(64))]
struct Board {
    /// Milliseconds from the start to the last turn.
    turned_at: AtomicU64,
}

impl Boards {
    pub fn new(shards: usize, now: Instant) -> Arc<Boards> {
        Arc::new(Boards { start: now, boards: (0..shards).map(|_| Board::default()).collect() })
    }

    /// This shard turns.
    pub fn turned(&self, shard: usize, now: Instant) {
        self.boards[shard].turned_at.store(self.milliseconds(now), Ordering::Relaxed);
    }

    /// The shard that has not turned for the longest time, if that is too long.
    pub fn hanging(&self, now: Instant) -> Option<(usize, Duration)> {
        let now = self.milliseconds(now);
        let ages = self.boards.iter().map(|board| now.saturating_sub(board.turned_at.load(Ordering::Relaxed)));
        let ages = ages.map(Duration::from_millis).enumerate();
        ages.max_by_key(|(_, age)| *age).filter(|(_, age)| *age > HANGS_AFTER)
    }

    fn milliseconds(&self, now: Instant) -> u64 {
        now.saturating_duration_since(self.start).as_millis() as u64
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_shard_that_has_not_turned_for_five_seconds_hangs() {
        let start = crate::shard::clock::now();
        let boards = Boards::new(3, start);
        let at = |seconds| start + Duration::from_secs(seconds);
        assert_eq!(boards.hanging(at(5)), None);
        boards.turned(0, at(5));
        boards.turned(2, at(7));
        assert_eq!(boards.hanging(at(8)), Some((1, Duration::from_secs(8))));
        boards.turned(1, at(8));
        assert_eq!(boards.hanging(at(10)), None);
        assert_eq!(boards.hanging(at(11)), Some((0, Duration::from_secs(6))));
    }
}
