//! What each shard shows of itself to the others: when it last turned, and its numbers.
//!
//! Each board is written by its own shard and read by all, so nothing is locked, and a shard that hangs is seen by those
//! that do not. Whoever wants the numbers of all asks by [`Boards::ask`]; a shard that finds the question in its next turn
//! writes its numbers down and answers. They are plain words, each right by itself: no two of them are of exactly one
//! moment, which nobody who reads metrics relies on.
//!
//! The writer also shows one write in some, by which each shard measures how long events take to its sockets.

use std::sync::Arc;
use std::sync::atomic::{AtomicI64, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use crate::metrics::Numbers;
use crate::types::Revision;

/// A shard looks at its clock once a second, so one that has not for so long hangs.
const HANGS_AFTER: Duration = Duration::from_secs(5);
/// The least time between two writes that are followed to the sockets: each costs every shard a turn.
const FOLLOW_INTERVAL: Duration = Duration::from_millis(10);

#[derive(Debug)]
pub struct Boards {
    start: Instant,
    boards: Box<[Board]>,
    /// Counts the questions for numbers.
    asked: AtomicU64,
    followed_revision: AtomicI64,
    /// When it came to the writer, in nanoseconds from the start.
    followed_at: AtomicU64,
}

/// Cache lines of its own, or the shards would slow each other down.
#[derive(Debug)]
#[repr(align(64))]
struct Board {
    /// Milliseconds from the start to the last turn.
    turned_at: AtomicU64,
    /// The last question that the numbers are an answer to.
    answered: AtomicU64,
    numbers: Box<[AtomicU64]>,
}

impl Boards {
    pub fn new(shards: usize, methods: usize, now: Instant) -> Arc<Boards> {
        let board = || Board {
            turned_at: AtomicU64::new(0),
            answered: AtomicU64::new(0),
            numbers: (0..Numbers::words(methods)).map(|_| AtomicU64::new(0)).collect(),
        };
        Arc::new(Boards {
            start: now,
            boards: (0..shards).map(|_| board()).collect(),
            asked: AtomicU64::new(0),
            followed_revision: AtomicI64::new(0),
            followed_at: AtomicU64::new(0),
        })
    }

    /// This shard turns.
    pub fn turned(&self, shard: usize, now: Instant) {
        self.boards[shard].turned_at.store(self.milliseconds(now), Ordering::Relaxed);
    }

    /// The shard that has not turned for the longest time, if that is too long.
    pub fn hanging(&self, now: Instant) -> Option<(usize, Duration)> {
        let ages = (0..self.boards.len()).map(|shard| (shard, self.age(shard, now)));
        ages.max_by_key(|(_, age)| *age).filter(|(_, age)| *age > HANGS_AFTER)
    }

    /// Nobody need wait for this shard.
    pub fn hangs(&self, shard: usize, now: Instant) -> bool {
        self.age(shard, now) > HANGS_AFTER
    }

    fn age(&self, shard: usize, now: Instant) -> Duration {
        let turned_at = self.boards[shard].turned_at.load(Ordering::Relaxed);
        Duration::from_millis(self.milliseconds(now).saturating_sub(turned_at))
    }

    fn milliseconds(&self, now: Instant) -> u64 {
        now.saturating_duration_since(self.start).as_millis() as u64
    }

    /// Asks every shard for its numbers. Their turns are to be brought about by who asks.
    pub fn ask(&self) -> u64 {
        self.asked.fetch_add(1, Ordering::AcqRel) + 1
    }

    /// The question that this shard has yet to answer.
    pub fn question(&self, shard: usize) -> Option<u64> {
        let asked = self.asked.load(Ordering::Acquire);
        (asked > self.boards[shard].answered.load(Ordering::Relaxed)).then_some(asked)
    }

    /// This shard's numbers, in answer to a question.
    pub fn answer(&self, shard: usize, question: u64, numbers: &Numbers) {
        let board = &self.boards[shard];
        for (word, value) in board.numbers.iter().zip(numbers.as_words()) {
            word.store(*value, Ordering::Relaxed);
        }
        board.answered.store(question, Ordering::Release);
    }

    pub fn is_answered(&self, question: u64) -> bool {
        self.boards.iter().all(|board| board.answered.load(Ordering::Acquire) >= question)
    }

    /// The numbers of all shards as they were last written down.
    pub fn numbers(&self) -> Vec<Numbers> {
        let words = |board: &Board| board.numbers.iter().map(|word| word.load(Ordering::Relaxed)).collect();
        self.boards.iter().map(|board| Numbers::from_words(words(board))).collect()
    }

    /// The writer tells of a revision that is committed and came at that time; it is followed if it is time for one.
    pub fn committed(&self, revision: Revision, came_at: Instant) {
        let at = came_at.saturating_duration_since(self.start).as_nanos() as u64;
        let is_time = at >= self.followed_at.load(Ordering::Relaxed) + FOLLOW_INTERVAL.as_nanos() as u64;
        if is_time && revision.0 > self.followed_revision.load(Ordering::Relaxed) {
            self.followed_at.store(at, Ordering::Relaxed);
            self.followed_revision.store(revision.0, Ordering::Release);
        }
    }

    /// The last revision that is followed, and when it came.
    pub fn followed(&self) -> (Revision, Instant) {
        let revision = self.followed_revision.load(Ordering::Acquire);
        (Revision(revision), self.start + Duration::from_nanos(self.followed_at.load(Ordering::Relaxed)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::metrics::Number;

    #[test]
    fn a_shard_that_has_not_turned_for_five_seconds_hangs() {
        let start = crate::shard::clock::now();
        let boards = Boards::new(3, 1, start);
        let at = |seconds| start + Duration::from_secs(seconds);
        assert_eq!(boards.hanging(at(5)), None);
        boards.turned(0, at(5));
        boards.turned(2, at(7));
        assert_eq!(boards.hanging(at(8)), Some((1, Duration::from_secs(8))));
        assert!(boards.hangs(1, at(8)) && !boards.hangs(0, at(8)));
        boards.turned(1, at(8));
        assert_eq!(boards.hanging(at(10)), None);
        assert_eq!(boards.hanging(at(11)), Some((0, Duration::from_secs(6))));
    }

    #[test]
    fn a_question_is_answered_once_by_each_shard() {
        let boards = Boards::new(2, 1, crate::shard::clock::now());
        assert_eq!(boards.question(0), None);
        let question = boards.ask();
        let mut numbers = Numbers::new(1);
        numbers.set(Number::Watches, 7);
        boards.answer(0, boards.question(0).expect("it was asked"), &numbers);
        assert!(boards.question(0).is_none() && !boards.is_answered(question));
        boards.answer(1, question, &numbers);
        assert!(boards.is_answered(question));
        let told: Vec<u64> = boards.numbers().iter().map(|numbers| numbers.get(Number::Watches)).collect();
        assert_eq!(told, [7, 7]);
    }

    #[test]
    fn one_write_in_ten_milliseconds_is_followed() {
        let start = crate::shard::clock::now();
        let boards = Boards::new(1, 1, start);
        let at = |milliseconds| start + Duration::from_millis(milliseconds);
        for (revision, milliseconds, followed) in [(2, 10, 2), (3, 19, 2), (4, 20, 4), (4, 40, 4), (9, 40, 9)] {
            boards.committed(Revision(revision), at(milliseconds));
            assert_eq!(boards.followed().0, Revision(followed));
        }
        assert_eq!(boards.followed(), (Revision(9), at(40)));
    }
}
