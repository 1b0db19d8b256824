//! When each stream with progress watches is due for its next notification.
//!
//! etcd has one ticker a stream, with an interval drawn once: the configured one and up to a tenth of it more, so that the
//! streams of a fleet that connected together do not stay in step. Streams without a progress watch have no entry here.

use std::collections::{BTreeSet, HashMap};
use std::hash::{BuildHasher, RandomState};
use std::time::{Duration, Instant};

use crate::watch::hub::StreamId;

pub struct ProgressTimers {
    interval: Duration,
    random: RandomState,
    intervals: HashMap<StreamId, (Duration, Instant)>,
    due: BTreeSet<(Instant, StreamId)>,
}

impl ProgressTimers {
    pub fn new(interval: Duration) -> ProgressTimers {
        ProgressTimers { interval, random: RandomState::new(), intervals: HashMap::new(), due: BTreeSet::new() }
    }

    /// The stream has a progress watch. Its ticker starts with the first one.
    pub fn start(&mut self, stream: StreamId, time: Instant) {
        if self.intervals.contains_key(&stream) {
            return;
        }
        let share = self.random.hash_one((stream.0, self.due.len(), time)) % 1_000;
        let interval = self.interval + self.interval / 10 * share as u32 / 1_000;
        self.intervals.insert(stream, (interval, time + interval));
        self.due.insert((time + interval, stream));
    }

    pub fn stop(&mut self, stream: StreamId) {
        if let Some((_, at)) = self.intervals.remove(&stream) {
            self.due.remove(&(at, stream));
        }
    }

    /// A stream whose tick has come; its next one is an interval from now.
    pub fn next_due(&mut self, time: Instant) -> Option<StreamId> {
        let (at, stream) = *self.due.first()?;
        if at > time {
            return None;
        }
        self.due.remove(&(at, stream));
        let (interval, next) = self.intervals.get_mut(&stream).expect("every due stream has an interval");
        *next = time + *interval;
        self.due.insert((*next, stream));
        Some(stream)
    }

    /// How long nothing is due, looking at least twice an interval: a stream may start at any time.
    pub fn until_next(&self, time: Instant) -> Duration {
        let first = self.due.first().map(|(at, _)| at.saturating_duration_since(time));
        first.unwrap_or(self.interval).min(self.interval / 2)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_stream_ticks_once_an_interval_of_its_own_until_it_stops() {
        let start = Instant::now();
        let mut timers = ProgressTimers::new(Duration::from_secs(10));
        timers.start(StreamId(1), start);
        timers.start(StreamId(1), start + Duration::from_secs(5));
        assert_eq!(timers.next_due(start + Duration::from_millis(9_999)), None);
        let late = start + Duration::from_secs(11);
        assert_eq!(timers.next_due(late), Some(StreamId(1)));
        assert_eq!(timers.next_due(late), None, "one tick, although two watches asked");
        assert!(timers.until_next(late) <= Duration::from_secs(5));
        timers.stop(StreamId(1));
        assert_eq!(timers.next_due(late + Duration::from_secs(60)), None);
        assert!(timers.intervals.is_empty() && timers.due.is_empty());
    }
}
