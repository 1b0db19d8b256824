//! Whose turn it is among connections that take much of their shard's time.
//!
//! The runtime runs tasks in the order in which they were woken. A put that comes while thirty connections create a thousand
//! watches each would wait behind thirty whole turns, and again at each of its steps: at the writer, for the log, with its
//! answer. So a connection that has lately taken more than its share, or that has more to do than fits into a turn, is
//! *heavy*, and the heavy ones have their turns one behind the other, as many as fit into a bounded time of each *pass*
//! through the ring. Everybody else runs when woken: calls of one request for a whole turn, and streams for a short one. Of the
//! heavy, those that have only begun stand in front, and those whose peer is gone behind all others: a fleet that leaves has
//! thousands of them, and nobody waits for their ends.
//!
//! While a light connection waits for an answer, the time of a pass is short. Behind a lone call the heavy even stay back for
//! the time that an answer usually takes; then they have their turns. Beside a load of light calls, whose passes are long,
//! the heavy together have as much of each pass as the light had of the one before. So nobody starves, and nobody waits for
//! an empty lane. When thousands of the light are woken at once, as by the end of a fleet, those with many calls that do not fit
//! into a pass have their turns in the lane too.
//!
//! What the shard does for many at once, its watch hub's turns, is heavy as well. While somebody light asks, a pass belongs to
//! either the hub or the connections, in turns: a call takes five or six passes, and would else wait for both in each.

use std::cell::{Cell, RefCell};
use std::collections::VecDeque;
use std::future::poll_fn;
use std::task::{Poll, Waker};
use std::time::{Duration, Instant};

use super::ring;

/// What one turn may take, and all heavy ones together of a pass.
pub const TURN_TIME_MAX: Duration = Duration::from_micros(200);
/// The same while somebody light asks from time to time: a put takes five or six passes, and may find a turn under way in
/// each. Still shorter ones cost too much, since a pass is some 4 us of work of its own.
const SHORT_TURN_TIME_MAX: Duration = Duration::from_micros(30);
/// What light turns may take of a pass beside somebody heavy.
const LIGHT_TIME_MAX: Duration = Duration::from_millis(2);
/// The same beside lone calls: a fleet that comes back is told what it missed over a thousand connections, and a put waits for
/// those of a pass in each of its five or six.
const SHORT_LIGHT_TIME_MAX: Duration = Duration::from_micros(20);
/// For how long turns are short behind a call of somebody light.
const CALLS_EXPECTED: Duration = Duration::from_millis(10);
/// For how long the heavy stay back behind a call of somebody light, and for how long at most between two turns.
const HELD_BACK_MAX: Duration = Duration::from_micros(250);
/// Light calls that come closer behind one another are a load: turns are short for them, and nobody stays back.
const LONE_CALL_GAP: Duration = Duration::from_millis(1);
/// Who has taken less since it last had nothing to do has only begun. It is more than a turn, since that is what a call takes
/// on the clock when something else had the core for a moment.
const BEGINNING: Duration = Duration::from_micros(400);
/// Turns that go to those in front in a row, as long as another waits.
const OVERTAKEN_MAX: u32 = 4;

/// Where in the lane a connection stands.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub enum Place {
    /// It has only begun: a newcomer's first calls, or a call that came behind a little more than fits into a turn, do not wait
    /// for a thousand that have very much to do.
    Beginning,
    /// It has very much to do.
    Working,
    /// Its peer is gone.
    Ending,
}

impl Place {
    /// Of a connection that has taken so much since it last had nothing to do.
    pub fn of(taken: Duration) -> Place {
        if taken < BEGINNING { Place::Beginning } else { Place::Working }
    }
}

/// Those in one place, by their slots, each at most once in all places.
#[derive(Default)]
struct Queue {
    connections: VecDeque<u32>,
    /// How many turns have gone to those in front since one went to these.
    overtaken: u32,
}

/// The lane of one shard.
#[derive(Default)]
pub struct Lane {
    /// By [`Place`].
    queues: RefCell<[Queue; 3]>,
    /// The one that was told to take its turn and has not had it yet.
    called: Cell<Option<u32>>,
    /// What heavy connections have taken of this pass.
    taken: Cell<Duration>,
    /// What light ones have taken of it.
    light: Cell<Duration>,
    /// What those of them had taken of it that served calls, and the same of the pass before.
    light_calls: Cell<Duration>,
    share: Cell<Duration>,
    /// When somebody light last asked for something here, or through here.
    called_at: Cell<Option<Instant>>,
    /// When somebody light last asked who was the only one for a while.
    lone_call_at: Cell<Option<Instant>>,
    passed_at: Cell<Option<Instant>>,
    /// The hub asked for time of this pass.
    has_hub_asked: Cell<bool>,
    /// The hub had more to do than fitted into this pass.
    has_hub_more: Cell<bool>,
    /// This pass belongs to the hub.
    is_hubs: Cell<bool>,
    /// When the last turn of a heavy connection ended.
    ended_at: Cell<Option<Instant>>,
    /// The next pass is to be told apart from this one.
    is_pass_due: Cell<bool>,
    sleeper: RefCell<Option<Waker>>,
}

impl Lane {
    /// Somebody light waits for an answer from here on.
    pub fn call_came(&self, now: Instant) {
        if !is_within(self.called_at.replace(Some(now)), now, LONE_CALL_GAP) {
            self.lone_call_at.set(Some(now));
        }
    }

    /// Somebody, who may be heavy, waits for what has come to this shard from another.
    pub fn call_passed(&self, now: Instant) {
        self.passed_at.set(Some(now));
    }

    /// Somebody light has asked lately and is likely to ask again.
    fn expects_calls(&self, now: Instant) -> bool {
        [&self.called_at, &self.passed_at].iter().any(|at| is_within(at.get(), now, CALLS_EXPECTED))
    }

    /// What all heavy ones may take of a pass.
    pub fn pass_time_max(&self, now: Instant) -> Duration {
        let usual = if self.expects_calls(now) { SHORT_TURN_TIME_MAX } else { TURN_TIME_MAX };
        usual.max(self.share.get())
    }

    /// The hub has something to do: how long it may take, or nothing where this pass is not its own and it is to ask again
    /// in the next one.
    pub fn hub_time_max(&self, now: Instant) -> Option<Duration> {
        let is_alone = self.is_empty() && self.called.get().is_none() && self.taken.get().is_zero();
        let is_admitted = is_alone || !self.expects_calls(now) || {
            self.has_hub_asked.set(true);
            self.is_hubs.get()
        };
        is_admitted.then(|| self.pass_time_max(now))
    }

    /// The hub has more to do than fitted into its time: it asks again in the next pass, which is to be told from this one.
    pub fn hub_goes_on(&self) {
        self.has_hub_more.set(true);
        self.want_pass();
    }

    /// What the turn of a heavy connection may take.
    pub fn turn_time_max(&self, now: Instant) -> Duration {
        self.pass_time_max(now).min(TURN_TIME_MAX)
    }

    /// The turn of a light connection has ended. It counts while passes are followed: between two that are far apart, light
    /// calls take any time, and the heavy would have as much of one pass.
    pub fn light_ended(&self, taken: Duration, has_served_calls: bool) {
        if self.is_pass_due.get() {
            self.light.set(self.light.get() + taken);
            if has_served_calls {
                self.light_calls.set(self.light_calls.get() + taken);
            }
        }
    }

    /// A light connection with many calls has something to do: true when it may begin at once. Else it is to wait, and is called.
    pub fn admits_light(&self, now: Instant) -> bool {
        let is_lone_call_expected = is_within(self.lone_call_at.get(), now, CALLS_EXPECTED);
        let time_max = if is_lone_call_expected { SHORT_LIGHT_TIME_MAX } else { LIGHT_TIME_MAX };
        !self.is_pass_due.get() || self.light.get() < time_max
    }

    fn holds_back(&self, now: Instant) -> bool {
        is_within(self.lone_call_at.get(), now, HELD_BACK_MAX) && is_within(self.ended_at.get(), now, HELD_BACK_MAX)
    }

    /// A heavy connection has something to do: true when it may begin at once. Else it is to wait, and is called.
    pub fn admits(&self, now: Instant) -> bool {
        self.has_time(now) && self.called.get().is_none() && self.is_empty()
    }

    fn is_empty(&self) -> bool {
        self.queues.borrow().iter().all(|queue| queue.connections.is_empty())
    }

    /// The connection is called when its turn comes. It must not wait already.
    pub fn wait(&self, connection: u32, place: Place) {
        self.queues.borrow_mut()[place as usize].connections.push_back(connection);
        self.want_pass();
    }

    /// Whether the turn of a connection that waits has come.
    pub fn has_called(&self, connection: u32) -> bool {
        self.called.get() == Some(connection)
    }

    /// The turn of a heavy connection has ended. Gives the one that is called next, if there is time for it in this pass.
    pub fn ended(&self, connection: u32, taken: Duration, now: Instant) -> Option<u32> {
        if self.has_called(connection) {
            self.called.set(None);
        }
        self.taken.set(self.taken.get() + taken);
        self.ended_at.set(Some(now));
        self.want_pass();
        self.call_next(now)
    }

    fn has_time(&self, now: Instant) -> bool {
        !self.is_hubs.get() && self.taken.get() < self.pass_time_max(now) && !self.holds_back(now)
    }

    fn call_next(&self, now: Instant) -> Option<u32> {
        if self.called.get().is_some() || !self.has_time(now) {
            return None;
        }
        let next = self.pop();
        self.called.set(next);
        next
    }

    fn pop(&self) -> Option<u32> {
        let mut queues = self.queues.borrow_mut();
        let waits = |queue: &Queue| !queue.connections.is_empty();
        let overtaken = queues.iter().rposition(|queue| waits(queue) && queue.overtaken >= OVERTAKEN_MAX);
        let place = overtaken.or_else(|| queues.iter().position(waits))?;
        let (queue, behind) = queues[place..].split_first_mut().expect("it is there");
        queue.overtaken = 0;
        behind.iter_mut().filter(|queue| waits(queue)).for_each(|queue| queue.overtaken += 1);
        queue.connections.pop_front()
    }

    fn want_pass(&self) {
        if self.is_pass_due.replace(true) {
            return;
        }
        // What light calls had of a pass long ago.
        self.share.set(Duration::ZERO);
        if let Some(sleeper) = self.sleeper.take() {
            sleeper.wake();
        }
    }

    /// Follows the passes for ever, and calls `wake` with the connection whose turn comes.
    pub async fn run(&self, now: fn() -> Instant, mut wake: impl FnMut(u32)) {
        loop {
            self.pass_due().await;
            ring::yield_through_ring().await;
            self.begin_pass(now()).into_iter().for_each(&mut wake);
        }
    }

    fn begin_pass(&self, now: Instant) -> Option<u32> {
        self.is_pass_due.set(self.has_hub_more.take() || !self.is_empty());
        self.is_hubs.set(self.has_hub_asked.take() && !self.is_hubs.get());
        self.taken.set(Duration::ZERO);
        self.light.set(Duration::ZERO);
        self.share.set(self.light_calls.take());
        self.call_next(now)
    }

    async fn pass_due(&self) {
        poll_fn(|context| {
            if self.is_pass_due.get() {
                return Poll::Ready(());
            }
            self.sleeper.replace(Some(context.waker().clone()));
            Poll::Pending
        })
        .await;
    }
}

fn is_within(at: Option<Instant>, now: Instant, time: Duration) -> bool {
    at.is_some_and(|at| now.saturating_duration_since(at) < time)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_heavy_have_their_turns_in_order_and_a_bounded_time_of_each_pass() {
        let (lane, now) = (Lane::default(), Instant::now());
        assert!(lane.admits(now), "nobody waits for an empty lane");
        assert_eq!(lane.ended(1, TURN_TIME_MAX / 2, now), None);
        assert!(lane.admits(now), "there is time left");
        assert_eq!(lane.ended(2, TURN_TIME_MAX / 2, now), None);
        assert!(!lane.admits(now), "the time of this pass is over");
        [3, 4, 5].iter().for_each(|&connection| lane.wait(connection, Place::Working));
        assert_eq!(lane.begin_pass(now), Some(3));
        assert!(lane.has_called(3) && !lane.has_called(4));
        assert!(!lane.admits(now), "others are in front of it");
        lane.wait(1, Place::Working);
        assert_eq!(lane.ended(3, TURN_TIME_MAX / 2, now), Some(4), "there is time for one more");
        lane.wait(3, Place::Working);
        assert_eq!(lane.ended(4, TURN_TIME_MAX, now), None);
        let order = std::iter::from_fn(|| {
            let called = lane.begin_pass(now)?;
            assert_eq!(lane.ended(called, TURN_TIME_MAX, now), None);
            Some(called)
        });
        assert_eq!(order.collect::<Vec<_>>(), [5, 1, 3]);
        assert!(!lane.is_pass_due.get(), "passes are followed only while somebody is heavy");
    }

    #[test]
    fn who_has_taken_little_stands_in_front_and_not_for_ever() {
        let (lane, now) = (Lane::default(), Instant::now());
        lane.wait(1, Place::Working);
        (10..20).for_each(|connection| lane.wait(connection, Place::Beginning));
        let order: Vec<u32> = std::iter::from_fn(|| lane.pop()).collect();
        assert_eq!(order, [10, 11, 12, 13, 1, 14, 15, 16, 17, 18, 19]);
        lane.wait(1, Place::Working);
        lane.wait(2, Place::Beginning);
        assert_eq!(lane.pop(), Some(2));
        assert!(!lane.is_empty() && lane.begin_pass(now) == Some(1));
    }

    #[test]
    fn beside_a_load_of_calls_the_heavy_have_as_much_time() {
        let (lane, now) = (Lane::default(), Instant::now());
        lane.call_came(now - LONE_CALL_GAP / 2);
        lane.call_came(now);
        lane.wait(1, Place::Working);
        lane.wait(2, Place::Working);
        lane.light_ended(TURN_TIME_MAX * 3, true);
        let later = now + HELD_BACK_MAX;
        assert_eq!(lane.begin_pass(later), Some(1));
        assert_eq!((lane.pass_time_max(later), lane.turn_time_max(later)), (TURN_TIME_MAX * 3, TURN_TIME_MAX));
        assert_eq!(lane.ended(1, TURN_TIME_MAX, later), Some(2));
        lane.wait(1, Place::Working);
        assert_eq!(lane.ended(2, TURN_TIME_MAX * 2, later), None, "that was as much");
        assert_eq!(lane.begin_pass(later), Some(1));
        assert_eq!(lane.pass_time_max(later), SHORT_TURN_TIME_MAX, "there was no call in that pass");
    }

    #[test]
    fn while_somebody_light_asks_a_pass_is_the_hubs_or_the_connections() {
        let (lane, now) = (Lane::default(), Instant::now());
        let admits_hub = || lane.hub_time_max(now).is_some();
        assert_eq!([lane.hub_time_max(now); 2], [Some(TURN_TIME_MAX); 2], "nobody is heavy");
        lane.wait(1, Place::Working);
        assert!(admits_hub() && lane.begin_pass(now) == Some(1), "nobody light asks, and both have their time");
        lane.wait(1, Place::Working);
        lane.ended(1, TURN_TIME_MAX, now);
        lane.call_passed(now);
        let mut passes = Vec::new();
        for _ in 0..6 {
            let called = lane.begin_pass(now);
            passes.push((called.is_some(), admits_hub()));
            if let Some(called) = called {
                lane.wait(called, Place::Working);
                lane.ended(called, TURN_TIME_MAX, now);
            }
        }
        assert_eq!(passes, [(true, false), (false, true), (true, false), (false, true), (true, false), (false, true)]);
        assert_eq!(lane.begin_pass(now), Some(1));
        lane.wait(1, Place::Working);
        lane.ended(1, TURN_TIME_MAX, now);
        assert_eq!(lane.begin_pass(now), Some(1), "the hub has nothing to do");
    }

    #[test]
    fn what_light_calls_took_while_nobody_was_heavy_gives_the_heavy_no_time() {
        let (lane, now) = (Lane::default(), Instant::now());
        lane.call_came(now);
        lane.light_ended(TURN_TIME_MAX * 1_000, true);
        lane.wait(1, Place::Working);
        lane.light_ended(TURN_TIME_MAX, true);
        assert_eq!(lane.begin_pass(now), Some(1));
        assert_eq!(lane.pass_time_max(now), TURN_TIME_MAX, "somebody was heavy for this one alone");
        assert_eq!(lane.ended(1, TURN_TIME_MAX, now), None);
        lane.light_ended(TURN_TIME_MAX * 5, true);
        assert_eq!((lane.begin_pass(now), lane.pass_time_max(now)), (None, TURN_TIME_MAX * 5));
        lane.light_ended(TURN_TIME_MAX * 1_000, true);
        lane.wait(1, Place::Working);
        assert_eq!(lane.pass_time_max(now), SHORT_TURN_TIME_MAX, "that was another pass, long ago");
    }

    #[test]
    fn a_hub_that_goes_on_has_as_much_of_a_pass_as_light_calls_had() {
        let (lane, now) = (Lane::default(), Instant::now());
        lane.call_came(now);
        lane.light_ended(TURN_TIME_MAX * 1_000, true);
        assert_eq!(lane.hub_time_max(now), Some(SHORT_TURN_TIME_MAX));
        lane.hub_goes_on();
        let times: Vec<_> = (0..3)
            .map(|_| {
                lane.light_ended(TURN_TIME_MAX * 2, true);
                assert_eq!(lane.begin_pass(now), None);
                lane.light_ended(TURN_TIME_MAX, true);
                let time = lane.hub_time_max(now);
                lane.hub_goes_on();
                time
            })
            .collect();
        assert_eq!(times, [2, 3, 3].map(|turns| Some(TURN_TIME_MAX * turns)), "in front of it and behind it");
        assert_eq!((lane.begin_pass(now), lane.hub_time_max(now)), (None, Some(TURN_TIME_MAX)));
        lane.light_ended(TURN_TIME_MAX * 1_000, true);
        assert!(lane.begin_pass(now).is_none() && !lane.is_pass_due.get(), "it has not gone on");
    }

    #[test]
    fn beside_the_heavy_the_light_have_a_bounded_time_of_each_pass() {
        let (lane, now) = (Lane::default(), Instant::now());
        lane.light_ended(LIGHT_TIME_MAX, true);
        assert!(lane.admits_light(now), "nobody is heavy");
        lane.wait(1, Place::Ending);
        lane.light_ended(LIGHT_TIME_MAX / 2, false);
        assert!(lane.admits_light(now));
        lane.light_ended(LIGHT_TIME_MAX / 2, false);
        assert!(!lane.admits_light(now));
        lane.wait(2, Place::Beginning);
        assert_eq!(lane.begin_pass(now), Some(2), "in front of whoever ends");
        assert!(lane.admits_light(now));
        assert_eq!(lane.pass_time_max(now), TURN_TIME_MAX, "nobody called");
    }

    #[test]
    fn beside_a_lone_call_the_light_with_many_calls_have_less_of_a_pass_than_beside_a_load() {
        let (lane, now) = (Lane::default(), Instant::now());
        lane.wait(1, Place::Ending);
        lane.light_ended(SHORT_LIGHT_TIME_MAX, false);
        assert!(lane.admits_light(now), "nobody calls");
        lane.call_came(now);
        assert!(!lane.admits_light(now) && lane.admits_light(now + CALLS_EXPECTED));
        let load: Vec<_> = (0..=20).map(|calls| now + CALLS_EXPECTED + LONE_CALL_GAP / 2 * calls).collect();
        load.iter().for_each(|&at| lane.call_came(at));
        assert!(!lane.admits_light(load[19]), "the first of them was alone");
        assert!(lane.admits_light(load[20]));
    }

    #[test]
    fn who_ends_stands_behind_all_others_and_not_for_ever() {
        let lane = Lane::default();
        (30..33).for_each(|connection| lane.wait(connection, Place::Ending));
        (20..26).for_each(|connection| lane.wait(connection, Place::of(BEGINNING)));
        (10..13).for_each(|connection| lane.wait(connection, Place::of(TURN_TIME_MAX)));
        let order: Vec<u32> = std::iter::from_fn(|| lane.pop()).collect();
        assert_eq!(order, [10, 11, 12, 20, 30, 21, 22, 23, 24, 31, 25, 32]);
    }

    /// Turns that a lane with something to do gives in a quarter of a second of passes of 25 us, with a light call every `gap`.
    fn turns_beside_calls_every(gap: Duration) -> usize {
        let (lane, start) = (Lane::default(), Instant::now());
        lane.wait(1, Place::Working);
        let (mut turns, mut next_call) = (0, start);
        for pass in 0..10_000 {
            let now = start + HELD_BACK_MAX / 10 * pass;
            while next_call <= now {
                lane.call_came(next_call);
                next_call += gap;
            }
            let Some(called) = lane.begin_pass(now) else {
                assert!(lane.is_pass_due.get(), "it is looked at again");
                continue;
            };
            turns += 1;
            lane.wait(called, Place::Working);
            assert_eq!(lane.ended(called, lane.turn_time_max(now), now), None, "one turn in a pass");
        }
        turns
    }

    #[test]
    fn the_heavy_stay_back_behind_a_lone_call_and_do_not_starve() {
        let (lane, start) = (Lane::default(), Instant::now());
        assert!(lane.admits(start));
        assert_eq!(lane.ended(1, TURN_TIME_MAX, start), None);
        lane.wait(1, Place::Working);
        lane.wait(2, Place::Working);
        lane.call_came(start);
        assert_eq!(lane.turn_time_max(start), SHORT_TURN_TIME_MAX);
        assert_eq!(lane.begin_pass(start), None);
        assert!(lane.is_pass_due.get(), "it is looked at again");
        assert!(lane.begin_pass(start + HELD_BACK_MAX).is_some(), "though it is called upon again");
        let later = start + Duration::from_secs(1);
        assert_eq!(lane.turn_time_max(later), TURN_TIME_MAX);
        // However often somebody light calls, and calls that come close behind one another hold nobody back.
        for (gap_us, turns_min) in [(20, 9_900), (200, 9_900), (990, 9_900), (1_000, 7_500), (10_000, 9_700)] {
            let turns = turns_beside_calls_every(Duration::from_micros(gap_us));
            assert!(turns >= turns_min, "{turns} turns with a call every {gap_us} us");
        }
        assert!(turns_beside_calls_every(LONE_CALL_GAP) < 8_000, "they do stay back");
    }
}
