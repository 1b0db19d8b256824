//! What leases have left, written down now and then so that a start need not give each its whole time again: etcd's feature
//! `LeaseCheckpoint`, off unless an interval is given.
//!
//! - A lease that has more left than the interval is due one interval later. What it has left then is written down, in whole
//!   seconds and rounded up, so that no start ends it early.
//! - One that was kept alive just now has its whole time left, and that is what a start gives it anyhow: nothing is written,
//!   and it is due again.
//! - The first keep-alive behind that takes back what was written, whether or not the feature is still on: what is on the
//!   disk must not end a lease that somebody keeps alive.
//! - Due times are whole half seconds, as etcd looks twice a second: leases of one moment become one write.
//!
//! Only leases that have to do with it stand here: the trees cost nothing while the feature is off. They are trees because a
//! table of a million would be rehashed in one turn of the writer.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use crate::types::{LeaseId, Uptime};

/// How finely due times are cut.
const GRAIN_MILLISECONDS: u64 = 500;
/// What a lease takes in each of the two trees: a node is filled to two thirds, as ids come in any order.
const NOTE_BYTES: usize = 60;
const DUE_BYTES: usize = 24;

#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
struct Note {
    /// In seconds.
    written: Option<i64>,
    due: Option<Uptime>,
}

#[derive(Default)]
pub struct Remaining {
    interval: Option<Duration>,
    notes: BTreeMap<LeaseId, Note>,
    due: BTreeSet<(Uptime, LeaseId)>,
}

impl Remaining {
    pub fn bytes(&self) -> usize {
        self.notes.len() * NOTE_BYTES + self.due.len() * DUE_BYTES
    }

    /// What a lease has left is written down once in so long.
    pub fn set_interval(&mut self, interval: Option<Duration>) {
        self.interval = interval;
    }

    /// The seconds that were written down and not taken back.
    pub fn written(&self, id: LeaseId) -> Option<i64> {
        self.notes.get(&id).and_then(|note| note.written)
    }

    /// True: that is not what was written before.
    pub fn write(&mut self, id: LeaseId, seconds: Option<i64>) -> bool {
        let mut note = self.notes.get(&id).copied().unwrap_or_default();
        let is_new = note.written != seconds;
        note.written = seconds;
        self.put(id, note);
        is_new
    }

    fn put(&mut self, id: LeaseId, note: Note) {
        if note == Note::default() {
            self.notes.remove(&id);
        } else {
            self.notes.insert(id, note);
        }
    }

    /// A lease has so many seconds left. Unless it is due already, it will be.
    pub fn plan(&mut self, id: LeaseId, seconds: i64, now: Uptime) {
        let Some(interval) = self.interval else { return };
        let mut note = self.notes.get(&id).copied().unwrap_or_default();
        if note.due.is_some() || u128::from(seconds.unsigned_abs()) * 1_000 <= interval.as_millis() {
            return;
        }
        let interval = u64::try_from(interval.as_millis()).unwrap_or(u64::MAX);
        let due =
            Uptime(now.0.saturating_add(interval).checked_next_multiple_of(GRAIN_MILLISECONDS).unwrap_or(u64::MAX));
        self.due.insert((due, id));
        note.due = Some(due);
        self.put(id, note);
    }

    /// Nothing is due any more; what was written stays.
    pub fn forget_plans(&mut self) {
        self.due.clear();
        self.notes.retain(|_, note| {
            note.due = None;
            note.written.is_some()
        });
    }

    pub fn forget(&mut self, id: LeaseId) {
        if let Some(Note { due: Some(due), .. }) = self.notes.remove(&id) {
            self.due.remove(&(due, id));
        }
    }

    /// A lease that is due, which is so no more.
    pub fn take_due(&mut self, now: Uptime) -> Option<LeaseId> {
        let (due, id) = *self.due.first()?;
        if due > now {
            return None;
        }
        self.due.pop_first();
        let note = Note { due: None, ..self.notes.get(&id).copied().unwrap_or_default() };
        self.put(id, note);
        Some(id)
    }

    pub fn next_due(&self) -> Option<Uptime> {
        self.due.first().map(|(due, _)| *due)
    }
}
