//! How much of its shard's time a connection takes: what its turn may take, and whether it waits in the [`lane`](super::lane)
//! before the next one.

use std::time::{Duration, Instant};

use super::lane::{Lane, Place, TURN_TIME_MAX};

/// A connection's share of its shard's time without being heavy is one part in so many.
const LIGHT_SHARE: u32 = 16;
/// What it may take at once beyond that share.
const OWED_MAX: Duration = Duration::from_micros(200);
/// A newcomer is heavy for 60 ms; an idle server makes nobody wait for that.
const NEWCOMER_OWES: Duration = Duration::from_millis(4);
/// Whatever a connection has taken, after a second of silence it is light.
const OWED_COUNTED_MAX: Duration = Duration::from_millis(60);

/// Calls that a connection ends at once, and with which it is always admitted while it is light. One with more waits for its
/// turn in the lane: of a fleet that leaves, each has many, and the end is what wakes it.
const CALLS_ENDED_AT_ONCE: usize = 4;

/// What a connection has taken of its shard's time beyond its share.
struct Weight {
    owed: Duration,
    at: Instant,
}

impl Weight {
    /// A newcomer is heavy at first: of a fleet that comes back at once, each is new.
    fn new(now: Instant) -> Weight {
        Weight { owed: NEWCOMER_OWES, at: now }
    }

    fn is_heavy(&mut self, now: Instant) -> bool {
        self.owed = self.owed.saturating_sub(now.saturating_duration_since(self.at) / LIGHT_SHARE);
        self.at = now;
        self.owed > OWED_MAX
    }

    fn add(&mut self, taken: Duration) {
        self.owed = (self.owed + taken).min(OWED_COUNTED_MAX);
    }
}

/// The turns of one connection.
pub struct Pace {
    weight: Weight,
    /// It takes its turn in the lane, or waits there for one.
    is_heavy: bool,
    /// It takes no turn before the lane calls it.
    waits: bool,
    begun: Instant,
    /// The end of this turn, and that of one that serves streams of requests.
    until: Instant,
    streams_until: Instant,
    has_served_calls: bool,
    /// What it has taken since it last had nothing to do, and where it stands for that.
    taken: Duration,
    place: Place,
}

/// What a turn has left to do.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Left {
    Nothing,
    Work,
    /// The calls of a peer that is gone: long work, for which nobody waits.
    Ends,
}

impl Pace {
    pub fn new(now: Instant) -> Pace {
        Pace {
            weight: Weight::new(now),
            is_heavy: false,
            waits: false,
            begun: now,
            until: now,
            streams_until: now,
            has_served_calls: false,
            taken: Duration::ZERO,
            place: Place::Beginning,
        }
    }

    /// The connection, which has so many calls, was woken: true when its turn begins now. Else it waits in the lane, and is
    /// called.
    pub fn begins(&mut self, lane: &Lane, connection: u32, calls: usize, now: Instant) -> bool {
        self.is_heavy = self.waits || self.weight.is_heavy(now);
        let begins = match self.waits {
            true => lane.has_called(connection),
            false if self.is_heavy => lane.admits(now),
            false => calls <= CALLS_ENDED_AT_ONCE || lane.admits_light(now),
        };
        if !begins {
            if !std::mem::replace(&mut self.waits, true) {
                lane.wait(connection, if self.is_heavy { self.place } else { Place::Working });
            }
            return false;
        }
        self.waits = false;
        self.begun = now;
        self.streams_until = now + lane.turn_time_max(now);
        self.until = if self.is_heavy { self.streams_until } else { now + TURN_TIME_MAX };
        self.has_served_calls = false;
        true
    }

    /// A call of one request is served next, for which somebody waits, or a stream.
    pub fn serves(&mut self, is_call: bool) {
        if is_call {
            self.has_served_calls = true;
        } else {
            self.until = self.until.min(self.streams_until);
        }
    }

    /// The turn has ended. Gives the connection whose turn in the lane comes next; it may be this one.
    pub fn ended(&mut self, lane: &Lane, connection: u32, left: Left, now: Instant) -> Option<u32> {
        let taken = now.saturating_duration_since(self.begun);
        self.weight.add(taken);
        (self.taken, self.place) = match left {
            Left::Nothing => (Duration::ZERO, Place::Beginning),
            Left::Work => (self.taken + taken, self.place.max(Place::of(self.taken + taken))),
            Left::Ends => (self.taken + taken, Place::Ending),
        };
        if left != Left::Nothing {
            self.waits = true;
            lane.wait(connection, self.place);
        }
        if self.is_heavy {
            return lane.ended(connection, taken, now);
        }
        lane.light_ended(taken, self.has_served_calls);
        None
    }

    pub fn is_heavy(&self) -> bool {
        self.is_heavy
    }

    /// Whether a connection with so many calls may end in this turn: with many, only in one that it has waited for where those
    /// stand that end.
    pub fn may_end(&self, calls: usize) -> bool {
        self.place == Place::Ending || calls <= CALLS_ENDED_AT_ONCE
    }

    pub fn until(&self) -> Instant {
        self.until
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn streams_have_short_turns_beside_calls_and_calls_have_whole_ones() {
        let (lane, start) = (Lane::default(), Instant::now());
        let now = start + Duration::from_secs(1);
        let (mut calls, mut streams) = (Pace::new(start), Pace::new(start));
        lane.call_came(now);
        assert!(calls.begins(&lane, 1, 1, now) && streams.begins(&lane, 2, 1, now), "both are light by now");
        calls.serves(true);
        streams.serves(false);
        assert_eq!((calls.until() - now, streams.until() - now), (TURN_TIME_MAX, lane.turn_time_max(now)));
        assert!(streams.until() < calls.until());
        assert_eq!(calls.ended(&lane, 1, Left::Nothing, now), None);
        assert_eq!(streams.ended(&lane, 2, Left::Work, now), None);
        assert!(calls.begins(&lane, 1, 1, now), "nobody light waits");
        assert!(!streams.begins(&lane, 2, 1, now) && streams.is_heavy(), "it is not called yet");
    }

    #[test]
    fn of_light_connections_those_with_few_calls_begin_in_a_full_pass_too() {
        let (lane, start) = (Lane::default(), Instant::now());
        let now = start + Duration::from_secs(1);
        lane.wait(9, Place::Ending);
        let begin = |connection, calls| Pace::new(start).begins(&lane, connection, calls, now);
        assert!(begin(1, 50));
        lane.light_ended(Duration::from_millis(2), false);
        assert!(begin(2, CALLS_ENDED_AT_ONCE) && !begin(3, CALLS_ENDED_AT_ONCE + 1));
    }

    #[test]
    fn a_connection_that_was_about_to_end_and_has_more_to_do_stays_behind_the_others() {
        let (lane, now) = (Lane::default(), Instant::now() + Duration::from_secs(1));
        let mut pace = Pace::new(now);
        assert!(pace.begins(&lane, 1, 1, now) && pace.may_end(4) && !pace.may_end(50));
        let turns = [
            (Left::Work, Place::Beginning),
            (Left::Work, Place::Working),
            (Left::Ends, Place::Ending),
            (Left::Work, Place::Ending),
            (Left::Nothing, Place::Beginning),
            (Left::Work, Place::Beginning),
        ];
        for (connection, (left, place)) in (1..).zip(turns) {
            pace.ended(&lane, connection, left, now + TURN_TIME_MAX);
            assert_eq!((pace.place, pace.may_end(50)), (place, place == Place::Ending), "{connection}");
        }
    }

    #[test]
    fn a_connection_is_heavy_when_it_takes_more_than_its_share_and_light_again_after_a_silence() {
        let start = Instant::now();
        let mut weight = Weight::new(start);
        assert!(weight.is_heavy(start), "a newcomer");
        let mut now = start + Duration::from_secs(1);
        // A put of 40 us, 500 times a second.
        for _ in 0..5_000 {
            now += Duration::from_millis(2);
            assert!(!weight.is_heavy(now));
            weight.add(Duration::from_micros(40));
        }
        weight.add(OWED_MAX * 2);
        assert!(weight.is_heavy(now));
        weight.add(OWED_COUNTED_MAX * 100);
        assert!(weight.is_heavy(now + Duration::from_millis(100)));
        assert!(!weight.is_heavy(now + Duration::from_millis(1_100)));
    }
}
