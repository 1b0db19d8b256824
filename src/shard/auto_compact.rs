//! When history is forgotten although nobody asks: etcd's two modes, by its rules.
//!
//! *Periodic* keeps the history of a period. It notes the revision every tenth of the period (of an hour, when the period
//! is longer), so it knows which one was current a period ago. The first compaction comes after a whole period; further
//! ones come every period, or every hour when the period is longer. *Revision* keeps a number of revisions and looks every
//! five minutes.
//!
//! A compaction that fails is tried again at the next look. One that is refused because a client has compacted further is
//! as good as done. Nothing is compacted twice at the same revision.
//!
//! It reads no clock and compacts nothing: its owner comes by with time and revision, and says how the compaction ended.
//! While one is under way, nothing further is looked at.

use std::collections::VecDeque;
use std::time::{Duration, Instant};

use crate::config::AutoCompaction;
use crate::types::Revision;

const HOUR: Duration = Duration::from_secs(3_600);
/// How many looks a period, or an hour of a longer one, is divided into.
const LOOKS_PER_INTERVAL: u32 = 10;
const REVISION_INTERVAL: Duration = Duration::from_secs(300);

/// Decides when to compact, and at which revision.
#[derive(Debug)]
pub struct AutoCompact {
    mode: Mode,
    next_look: Instant,
    /// The compaction that its owner was told and has not come back from.
    under_way: Option<Revision>,
    /// The last one that was done.
    done: Revision,
}

#[derive(Debug)]
enum Mode {
    Periodic {
        period: Duration,
        /// The revision at each look, the oldest first: at most one period and one look of them.
        noted: VecDeque<Revision>,
        /// The last compaction that was done; before the first, the start.
        last: Instant,
        /// Until the first attempt a whole period has to pass.
        has_tried: bool,
    },
    Revision {
        retention: i64,
    },
}

impl AutoCompact {
    /// Begins at this moment: what was there before counts as if it had been written now.
    pub fn new(config: AutoCompaction, now: Instant, revision: Revision) -> AutoCompact {
        let mode = match config {
            AutoCompaction::Periodic(period) => {
                Mode::Periodic { period, noted: VecDeque::from([revision]), last: now, has_tried: false }
            }
            AutoCompaction::Revision(retention) => Mode::Revision { retention },
        };
        let next_look = now + mode.look_interval();
        AutoCompact { mode, next_look, under_way: None, done: Revision::ZERO }
    }

    /// When to call [`AutoCompact::look`] again; `None` while a compaction is under way. Coming later does no harm.
    pub fn next_deadline(&self) -> Option<Instant> {
        if self.under_way.is_some() { None } else { Some(self.next_look) }
    }

    /// The revision to compact at now, if it is time. Its owner compacts and then calls [`AutoCompact::finished`].
    pub fn look(&mut self, now: Instant, revision: Revision) -> Option<Revision> {
        if self.under_way.is_some() || now < self.next_look {
            return None;
        }
        self.under_way = self.due(now, revision);
        if self.under_way.is_none() {
            self.wait(now, revision);
        }
        self.under_way
    }

    /// The compaction is over. `is_done` when the history is forgotten, whether by this compaction or by one before it.
    ///
    /// # Panics
    /// When none is under way.
    pub fn finished(&mut self, now: Instant, revision: Revision, is_done: bool) {
        let compacted = self.under_way.take().expect("the owner was told of a compaction");
        if is_done {
            self.done = compacted;
            if let Mode::Periodic { last, .. } = &mut self.mode {
                *last = now;
            }
        }
        self.wait(now, revision);
    }

    fn due(&mut self, now: Instant, revision: Revision) -> Option<Revision> {
        match &mut self.mode {
            Mode::Periodic { period, noted, last, has_tried } => {
                let interval = if *has_tried { (*period).min(HOUR) } else { *period };
                let a_period_ago = *noted.front().expect("the revision of the start is noted");
                if now.saturating_duration_since(*last) < interval || a_period_ago == self.done {
                    return None;
                }
                *has_tried = true;
                Some(a_period_ago)
            }
            Mode::Revision { retention } => {
                let target = Revision(revision.0 - *retention);
                (target > Revision::ZERO && target != self.done).then_some(target)
            }
        }
    }

    fn wait(&mut self, now: Instant, revision: Revision) {
        self.next_look = now + self.mode.look_interval();
        if let Mode::Periodic { period, noted, .. } = &mut self.mode {
            noted.push_back(revision);
            if noted.len() as u128 > looks(*period) + 1 {
                noted.pop_front();
            }
        }
    }
}

impl Mode {
    fn look_interval(&self) -> Duration {
        match self {
            Mode::Periodic { period, .. } => look_interval(*period),
            Mode::Revision { .. } => REVISION_INTERVAL,
        }
    }
}

/// At least a nanosecond, so that the shortest period that can be written still has looks.
fn look_interval(period: Duration) -> Duration {
    (period.min(HOUR) / LOOKS_PER_INTERVAL).max(Duration::from_nanos(1))
}

/// How many looks a period has: ten, or ten an hour.
fn looks(period: Duration) -> u128 {
    period.as_nanos() / look_interval(period).as_nanos()
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: Duration = Duration::from_secs(1);
    const MINUTE: Duration = Duration::from_secs(60);

    /// A server whose revision grows by one a minute.
    struct Scene {
        compact: AutoCompact,
        start: Instant,
        /// Compactions: after how long, and at which revision.
        told: Vec<(Duration, i64)>,
        /// Whether the next ones are done.
        works: bool,
    }

    impl Scene {
        fn new(config: AutoCompaction) -> Scene {
            let start = Instant::now();
            Scene { compact: AutoCompact::new(config, start, Revision(1)), start, told: Vec::new(), works: true }
        }

        fn revision(after: Duration) -> Revision {
            Revision(1 + (after.as_secs() / 60) as i64)
        }

        /// Lets time pass in small steps up to this moment.
        fn run_until(&mut self, from: Duration, until: Duration, step: Duration) {
            let mut after = from;
            while after < until {
                after += step;
                self.look(after, Scene::revision(after));
            }
        }

        fn look(&mut self, after: Duration, revision: Revision) {
            if let Some(target) = self.compact.look(self.start + after, revision) {
                self.told.push((after, target.0));
                self.compact.finished(self.start + after, revision, self.works);
            }
        }
    }

    #[test]
    fn a_short_period_is_kept_and_compacted_every_period() {
        let mut scene = Scene::new(AutoCompaction::Periodic(10 * MINUTE));
        scene.run_until(Duration::ZERO, 45 * MINUTE, SECOND);
        // Once the window is full, what is compacted is a period and one look old.
        let expected = [(10, 1), (20, 10), (30, 20), (40, 30)];
        assert_eq!(scene.told, expected.map(|(after, revision)| (after * MINUTE, revision)));
    }

    #[test]
    fn a_long_period_is_kept_whole_and_then_compacted_every_hour() {
        let mut scene = Scene::new(AutoCompaction::Periodic(3 * HOUR));
        scene.run_until(Duration::ZERO, 6 * HOUR, SECOND);
        let expected = [(3, 1), (4, 55), (5, 115), (6, 175)];
        assert_eq!(scene.told, expected.map(|(after, revision)| (after * HOUR, revision)));
    }

    #[test]
    fn a_look_comes_every_tenth_of_a_period_or_of_an_hour() {
        for (period, interval) in [(10 * SECOND, SECOND), (59 * MINUTE, 354 * SECOND), (24 * HOUR, 6 * MINUTE)] {
            let scene = Scene::new(AutoCompaction::Periodic(period));
            assert_eq!(scene.compact.next_deadline(), Some(scene.start + interval), "{period:?}");
        }
        let scene = Scene::new(AutoCompaction::Revision(5));
        assert_eq!(scene.compact.next_deadline(), Some(scene.start + 5 * MINUTE));
    }

    #[test]
    fn a_periodic_compaction_that_fails_is_tried_again_at_the_next_look() {
        let mut scene = Scene::new(AutoCompaction::Periodic(10 * MINUTE));
        scene.works = false;
        scene.run_until(Duration::ZERO, 12 * MINUTE, SECOND);
        // The window moves on meanwhile.
        assert_eq!(scene.told, [(10 * MINUTE, 1), (11 * MINUTE, 1), (12 * MINUTE, 2)]);
        scene.works = true;
        scene.run_until(12 * MINUTE, 24 * MINUTE, SECOND);
        assert_eq!(scene.told[3..], [(13 * MINUTE, 3), (23 * MINUTE, 13)], "a period from the one that was done");
    }

    #[test]
    fn a_store_that_rests_is_compacted_once() {
        let mut scene = Scene::new(AutoCompaction::Periodic(10 * MINUTE));
        for minute in 1..60 {
            scene.look(minute * MINUTE, Revision(5));
        }
        assert_eq!(scene.told, [(10 * MINUTE, 1), (20 * MINUTE, 5)]);
    }

    #[test]
    fn revisions_are_counted_every_five_minutes() {
        let mut scene = Scene::new(AutoCompaction::Revision(8));
        scene.run_until(Duration::ZERO, 20 * MINUTE, SECOND);
        // At 5 minutes there are no more than are kept.
        assert_eq!(scene.told, [(10 * MINUTE, 3), (15 * MINUTE, 8), (20 * MINUTE, 13)]);
        for minute in 25..60 {
            scene.look(minute * MINUTE, Revision(21));
        }
        assert_eq!(scene.told.len(), 3, "nothing was written since");
        scene.works = false;
        for minute in [60, 65, 70] {
            scene.look(minute * MINUTE, Revision(30));
        }
        assert_eq!(scene.told[3..], [60, 65, 70].map(|minute| (minute * MINUTE, 22)), "each look tries again");
    }

    #[test]
    fn nothing_is_looked_at_while_a_compaction_is_under_way() {
        let mut scene = Scene::new(AutoCompaction::Revision(1));
        let at = |minutes: u32| scene.start + minutes * MINUTE;
        assert_eq!(scene.compact.look(at(5), Revision(9)), Some(Revision(8)));
        assert_eq!(scene.compact.next_deadline(), None);
        assert_eq!(scene.compact.look(at(30), Revision(99)), None);
        scene.compact.finished(at(31), Revision(99), true);
        assert_eq!(scene.compact.next_deadline(), Some(at(36)));
        assert_eq!(scene.compact.look(at(36), Revision(99)), Some(Revision(98)));
    }

    #[test]
    fn an_owner_that_comes_late_or_hardly_waits_does_no_harm() {
        let mut late = Scene::new(AutoCompaction::Periodic(MINUTE));
        late.run_until(Duration::ZERO, 10 * MINUTE, 90 * SECOND);
        assert!(late.told.iter().all(|(after, revision)| *revision <= Scene::revision(*after - MINUTE).0));
        assert!(!late.told.is_empty());
        let mut shortest = Scene::new(AutoCompaction::Periodic(Duration::from_nanos(1)));
        shortest.run_until(Duration::ZERO, 3 * MINUTE, MINUTE);
        assert_eq!(shortest.told, [(MINUTE, 1), (3 * MINUTE, 2)]);
    }
}
