//! The judge: every watch got every event of its keys exactly once, in order, and nothing else.
//!
//! Of each watch it keeps two numbers: how many events came and the revision of the last. That is enough, because each
//! event is judged as it arrives: its key must be one that the watch asked for, its revision must be above the last one
//! of the watch, and all watches must agree which key a revision wrote. Revisions that rise cannot repeat, so when at
//! the end that agreement equals the acknowledged puts and each watch has as many events as puts fell into its keys, it
//! has exactly those. The checker knows no connection and no clock.

use std::sync::Arc;

use crate::keys::Plan;
use crate::wire::Event;

/// A put that the server acknowledged.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Put {
    pub key: u32,
    pub revision: i64,
}

/// How many differences are kept as text; all are counted.
const DIFFERENCES_SHOWN_MAX: usize = 8;
/// Revisions past this many beyond the base are taken for damage, not for a table to be made as long.
const REVISIONS_MAX: u32 = 1 << 26;
/// No event has told yet what this revision wrote.
const UNKNOWN: u32 = u32::MAX;

#[derive(Clone, Copy, Default)]
struct Seen {
    count: u32,
    /// Of the newest event, less the base revision; 0 before the first.
    last: u32,
}

/// What was found.
#[derive(Default, Debug, PartialEq, Eq)]
pub struct Verdict {
    pub expected: u64,
    pub received: u64,
    pub differences: u64,
    pub shown: Vec<String>,
}

impl Verdict {
    pub fn is_clean(&self) -> bool {
        self.differences == 0 && self.expected == self.received
    }

    pub fn add(&mut self, other: Verdict) {
        self.expected += other.expected;
        self.received += other.received;
        self.differences += other.differences;
        self.shown.extend(other.shown);
        self.shown.truncate(DIFFERENCES_SHOWN_MAX);
    }

    fn difference(&mut self, text: impl FnOnce() -> String) {
        self.differences += 1;
        if self.shown.len() < DIFFERENCES_SHOWN_MAX {
            self.shown.push(text());
        }
    }
}

/// Judges the events of the watches `first_watch .. first_watch + count`.
pub struct Checker {
    plan: Arc<Plan>,
    first_watch: u64,
    base_revision: i64,
    seen: Vec<Seen>,
    /// The key index that each revision above the base wrote, as the first event told.
    written: Vec<u32>,
    verdict: Verdict,
}

impl Checker {
    /// `base_revision` is the store's before the first put.
    pub fn new(plan: Arc<Plan>, first_watch: u64, count: u64, base_revision: i64) -> Checker {
        // The zeroed table comes from the kernel as untouched pages: a watch without events costs nothing.
        let seen = vec![Seen::default(); count as usize];
        Checker { plan, first_watch, base_revision, seen, written: Vec::new(), verdict: Verdict::default() }
    }

    /// One event that arrived for this watch.
    pub fn event(&mut self, watch: u64, event: &Event<'_>) {
        self.verdict.received += 1;
        if let Err(text) = self.judge(watch, event) {
            self.verdict.difference(|| text);
        }
    }

    fn judge(&mut self, watch: u64, event: &Event<'_>) -> Result<(), String> {
        let revision = event.mod_revision;
        let told = || format!("watch {watch} was told of key {:?} at revision {revision}", lossy(event.key));
        if event.deleted {
            return Err(format!("{}, a delete that nobody made", told()));
        }
        let (first, past) = self.plan.span(watch);
        let Some(key) = self.plan.key_index(event.key).filter(|key| (first..past).contains(key)) else {
            return Err(format!("{}, which it does not watch", told()));
        };
        let offset = revision.saturating_sub(self.base_revision);
        let Some(offset) = u32::try_from(offset).ok().filter(|offset| (1..REVISIONS_MAX).contains(offset)) else {
            return Err(format!("{}, though the store stood at {} before the first put", told(), self.base_revision));
        };
        let seen = &mut self.seen[(watch - self.first_watch) as usize];
        seen.count += 1;
        if offset <= seen.last {
            let last = self.base_revision + i64::from(seen.last);
            return Err(format!("{} after revision {last}", told()));
        }
        seen.last = offset;
        match self.written(offset) {
            written if *written == UNKNOWN => *written = key,
            written if *written != key => return Err(format!("{}, but another watch saw another key there", told())),
            _ => {}
        }
        Ok(())
    }

    fn written(&mut self, offset: u32) -> &mut u32 {
        let at = offset as usize;
        if self.written.len() <= at {
            self.written.resize(at + 1, UNKNOWN);
        }
        &mut self.written[at]
    }

    /// Compares what came with what was put, and starts anew at `base_revision`: nothing more of the old puts is due.
    pub fn finish(&mut self, puts: &[Put], base_revision: i64) -> Verdict {
        self.check_revisions(puts);
        self.check_counts(puts);
        self.base_revision = base_revision;
        self.written.clear();
        std::mem::take(&mut self.verdict)
    }

    /// Each revision that an event told of must be one that was put, with that key.
    fn check_revisions(&mut self, puts: &[Put]) {
        let mut put_at: Vec<_> = puts.iter().map(|put| (put.revision - self.base_revision, put.key)).collect();
        put_at.sort_unstable();
        for (offset, &key) in self.written.iter().enumerate().filter(|&(_, &key)| key != UNKNOWN) {
            let offset = offset as i64;
            if put_at.binary_search(&(offset, key)).is_err() {
                let revision = self.base_revision + offset;
                self.verdict.difference(|| format!("events told of key {key} at revision {revision}; nobody put that"));
            }
        }
    }

    /// Each watch must have as many events as puts fell into its keys.
    fn check_counts(&mut self, puts: &[Put]) {
        let mut keys: Vec<u32> = puts.iter().map(|put| put.key).collect();
        keys.sort_unstable();
        for (at, seen) in self.seen.iter_mut().enumerate() {
            let watch = self.first_watch + at as u64;
            let (first, past) = self.plan.span(watch);
            let due = keys.partition_point(|&key| key < past) - keys.partition_point(|&key| key < first);
            self.verdict.expected += due as u64;
            if seen.count as usize != due {
                let count = seen.count;
                self.verdict
                    .difference(|| format!("watch {watch} of keys {first}..{past} got {count} of {due} events"));
            }
            // Only a watch that was told something is written to, so that the others' pages stay untouched.
            if seen.count != 0 {
                *seen = Seen::default();
            }
        }
    }
}

/// How many events these puts must cause over all watches of the plan.
pub fn events_due(plan: &Plan, puts: &[u32]) -> u64 {
    let mut keys = puts.to_vec();
    keys.sort_unstable();
    let due = |watch| {
        let (first, past) = plan.span(watch);
        (keys.partition_point(|&key| key < past) - keys.partition_point(|&key| key < first)) as u64
    };
    (0..plan.watches()).map(due).sum()
}

fn lossy(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::keys::{KeyChoice, tests::plan};

    /// What each watch is told, watch by watch; a right server's tellings.
    fn right(plan: &Plan, puts: &[Put]) -> Vec<Vec<(u32, i64)>> {
        let told = |watch| {
            let (first, past) = plan.span(watch);
            let mut told: Vec<_> =
                puts.iter().filter(|put| (first..past).contains(&put.key)).map(|put| (put.key, put.revision)).collect();
            told.sort_unstable_by_key(|&(_, revision)| revision);
            told
        };
        (0..plan.watches()).map(told).collect()
    }

    fn verdict(plan: &Plan, puts: &[Put], told: &[Vec<(u32, i64)>]) -> Verdict {
        let mut checker = Checker::new(Arc::new(plan.clone()), 0, plan.watches(), 10);
        let mut bytes = Vec::new();
        for (watch, events) in told.iter().enumerate() {
            for &(key, mod_revision) in events {
                plan.write_key(key, &mut bytes);
                let event = Event { deleted: false, key: &bytes, mod_revision, value_bytes: 1 };
                checker.event(watch as u64, &event);
            }
        }
        checker.finish(puts, 1_000)
    }

    fn puts(plan: &Plan, count: u32) -> Vec<Put> {
        plan.put_keys(count).into_iter().zip(11..).map(|(key, revision)| Put { key, revision }).collect()
    }

    /// Runs every choice of keys with what `spoil` did to a right telling; it gets a watch with two events or more.
    fn spoiled(spoil: impl Fn(&mut Vec<(u32, i64)>), expected: &str) {
        for choice in [KeyChoice::One, KeyChoice::Range] {
            let plan = plan(choice);
            let puts = puts(&plan, 40);
            let mut told = right(&plan, &puts);
            spoil(told.iter_mut().rfind(|events| events.len() > 1).unwrap());
            let verdict = verdict(&plan, &puts, &told);
            assert!(!verdict.is_clean(), "{choice:?}");
            assert!(verdict.shown.iter().any(|text| text.contains(expected)), "{choice:?}: {:?}", verdict.shown);
        }
    }

    #[test]
    fn a_right_telling_is_clean_and_counts_what_is_due() {
        for choice in [KeyChoice::Pool, KeyChoice::Own, KeyChoice::One, KeyChoice::Range] {
            let plan = plan(choice);
            let puts = puts(&plan, 40);
            let verdict = verdict(&plan, &puts, &right(&plan, &puts));
            assert!(verdict.is_clean(), "{choice:?}: {:?}", verdict.shown);
            let keys: Vec<u32> = puts.iter().map(|put| put.key).collect();
            assert_eq!(verdict.expected, events_due(&plan, &keys));
            assert!(verdict.expected > 0);
        }
    }

    #[test]
    fn a_lost_event_is_found() {
        spoiled(|events| _ = events.remove(0), "got ");
        spoiled(|events| _ = events.pop(), "got ");
    }

    #[test]
    fn an_event_told_twice_is_found() {
        spoiled(|events| events.push(*events.last().unwrap()), "after revision");
        spoiled(|events| events.insert(0, events[0]), "after revision");
    }

    #[test]
    fn events_out_of_order_are_found() {
        spoiled(|events| events.swap(0, 1), "after revision");
    }

    #[test]
    fn a_lost_event_made_up_for_by_an_invented_one_is_found() {
        spoiled(|events| events.last_mut().unwrap().1 = 500, "nobody put that");
        spoiled(|events| events[0].1 = 3, "before the first put");
        spoiled(|events| events[0].1 = i64::MAX, "before the first put");
    }

    #[test]
    fn an_event_of_a_foreign_key_is_found() {
        let plan = plan(KeyChoice::Own);
        let puts = puts(&plan, 40);
        let mut told = right(&plan, &puts);
        let idle = told.iter().position(Vec::is_empty).unwrap();
        told[idle].push((puts[0].key, puts[0].revision));
        let verdict = verdict(&plan, &puts, &told);
        assert_eq!((verdict.differences, verdict.received), (1, 41));
        assert!(verdict.shown[0].contains("does not watch"));
    }

    #[test]
    fn a_right_key_under_the_revision_of_another_is_found() {
        let plan = plan(KeyChoice::Own);
        let puts = puts(&plan, 40);
        let mut told = right(&plan, &puts);
        let (here, there) = (puts[0].key as usize, puts[1].key as usize);
        (told[here][0].1, told[there][0].1) = (told[there][0].1, told[here][0].1);
        let verdict = verdict(&plan, &puts, &told);
        assert_eq!(verdict.received, verdict.expected, "the counts alone would not tell");
        assert_eq!(verdict.differences, 2);
    }

    #[test]
    fn a_delete_is_found() {
        let plan = plan(KeyChoice::One);
        let mut checker = Checker::new(Arc::new(plan.clone()), 0, plan.watches(), 10);
        let mut key = Vec::new();
        plan.write_key(0, &mut key);
        checker.event(0, &Event { deleted: true, key: &key, mod_revision: 11, value_bytes: 0 });
        assert!(!checker.finish(&[], 11).is_clean());
    }

    #[test]
    fn a_second_pass_starts_clean() {
        let plan = Arc::new(plan(KeyChoice::One));
        let mut checker = Checker::new(plan.clone(), 0, plan.watches(), 10);
        let mut key = Vec::new();
        plan.write_key(0, &mut key);
        for pass in 0..3 {
            let mod_revision = 11 + pass;
            for watch in 0..plan.watches() {
                checker.event(watch, &Event { deleted: false, key: &key, mod_revision, value_bytes: 1 });
            }
            let verdict = checker.finish(&[Put { key: 0, revision: mod_revision }], mod_revision);
            assert!(verdict.is_clean(), "{:?}", verdict.shown);
            assert_eq!(verdict.expected, plan.watches());
        }
    }
}
