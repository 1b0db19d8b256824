//! Who waits for which key: it is shown every batch, and names the calls that one of its changes concerns.
//!
//! A call waits at a *place*: one key, or every key below a name. It knows the store up to some revision and is told of what
//! comes behind; what was written between that revision and the last batch shown here the call must find out by itself. A
//! change costs one look into a table, and its place alone is asked for its calls: on a lock with thousands of waiters each
//! waits for the key in front of it, so a deletion wakes one.
//!
//! A batch only notes which of its changes concern a place. Their calls are named by [`Awaited::next_told`], one at a time and in
//! the order of the changes, so that a leader with ten thousand observers stalls nobody.

use std::collections::{BTreeSet, VecDeque};
use std::sync::Arc;

use hashbrown::HashMap;
use slab::Slab;

use crate::types::{Batch, Change, Key, Revision};
use crate::watch::interval::{Bounds, Interval, Span};

use super::behind;

/// Changes that may wait for their calls to be named before no further batch should be shown.
const TOLD_MAX: usize = 256;
/// What the set of the calls of one place takes: one node of a tree.
const SET_BYTES: usize = 64;

#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Place {
    Key(Key),
    /// Every key that begins so: a name and the separator. Only what is put there is told.
    Below(Key),
}

impl Place {
    fn bytes(&self) -> usize {
        match self {
            // Its key is shared by the row and the table.
            Place::Key(key) => key.len() + SET_BYTES,
            Place::Below(start) => 2 * start.len() + SET_BYTES + size_of::<Name>(),
        }
    }
}

/// A change that a call is told of.
pub struct Told {
    pub handle: u32,
    pub batch: Arc<Batch>,
    /// Which of its changes it is.
    pub index: usize,
}

struct Row {
    place: Place,
    /// What was written up to here the call knows.
    at: Revision,
}

/// A change at a place, and how far its calls have been named.
struct Telling {
    batch: Arc<Batch>,
    index: usize,
    place: Place,
    next: u32,
}

struct Name {
    start: Key,
    end: Key,
    calls: BTreeSet<u32>,
}

impl Bounds for Slab<Name> {
    fn span(&self, group: u32) -> Span<'_> {
        let Name { start, end, .. } = &self[group as usize];
        Span { start, end: Some(end) }
    }
}

pub struct Awaited {
    rows: HashMap<u32, Row>,
    keys: HashMap<Key, BTreeSet<u32>>,
    names: Slab<Name>,
    by_start: HashMap<Key, u32>,
    spans: Interval,
    place_bytes: usize,
    shown: Revision,
    telling: VecDeque<Telling>,
}

impl Awaited {
    /// `at` is the revision behind which it is shown every batch.
    pub fn new(at: Revision) -> Awaited {
        Awaited {
            rows: HashMap::new(),
            keys: HashMap::new(),
            names: Slab::new(),
            by_start: HashMap::new(),
            spans: Interval::new(),
            place_bytes: 0,
            shown: at,
            telling: VecDeque::new(),
        }
    }

    /// The revision up to which it has been shown everything.
    pub fn shown(&self) -> Revision {
        self.shown
    }

    /// What the waiting calls take here, in bytes.
    pub fn bytes(&self) -> usize {
        let tables = self.rows.allocation_size() + self.keys.allocation_size() + self.by_start.allocation_size();
        tables + self.spans.bytes() + self.place_bytes
    }

    /// The call waits here from now on. It knows what was written up to `at`, and that is no less than what was shown.
    pub fn insert(&mut self, handle: u32, place: Place, at: Revision) {
        assert!(at >= self.shown, "a call that missed something has to read it first");
        self.calls_mut(&place).insert(handle);
        self.place_bytes += place.bytes();
        let before = self.rows.insert(handle, Row { place, at });
        assert!(before.is_none(), "a call waits at one place");
    }

    fn calls_mut(&mut self, place: &Place) -> &mut BTreeSet<u32> {
        let start = match place {
            Place::Key(key) => return self.keys.entry(key.clone()).or_default(),
            Place::Below(start) => start,
        };
        let name = *self.by_start.entry(start.clone()).or_insert_with(|| {
            let name = Name { start: start.clone(), end: behind(start), calls: BTreeSet::new() };
            let name = u32::try_from(self.names.insert(name)).expect("a shard has fewer than 4 G calls");
            self.spans.insert(&self.names, name);
            name
        });
        &mut self.names[name as usize].calls
    }

    /// The call waits no more, if it did.
    pub fn remove(&mut self, handle: u32) {
        let Some(Row { place, .. }) = self.rows.remove(&handle) else { return };
        self.place_bytes -= place.bytes();
        let calls = self.calls_mut(&place);
        calls.remove(&handle);
        if calls.is_empty() {
            self.forget(&place);
        }
        if self.rows.is_empty() {
            self.give_back();
        }
    }

    fn forget(&mut self, place: &Place) {
        match place {
            Place::Key(key) => drop(self.keys.remove(key)),
            Place::Below(start) => {
                let name = self.by_start.remove(start).expect("a name with calls is known");
                self.spans.remove(&self.names, name);
                self.names.remove(name as usize);
            }
        }
    }

    /// After a mass exit nobody waits, and the tables are as large as ever.
    fn give_back(&mut self) {
        self.rows = HashMap::new();
        self.keys = HashMap::new();
        self.names = Slab::new();
        self.by_start = HashMap::new();
        self.spans = Interval::new();
    }

    /// Whether the calls of earlier changes are to be named first.
    pub fn is_behind(&self) -> bool {
        self.telling.len() >= TOLD_MAX
    }

    pub fn has_next(&self) -> bool {
        !self.telling.is_empty()
    }

    pub fn batch(&mut self, batch: &Arc<Batch>) {
        assert_eq!(batch.revision, self.shown.next(), "every batch is shown once, and in order");
        self.shown = batch.revision;
        if self.rows.is_empty() {
            return;
        }
        let Awaited { keys, names, spans, telling, .. } = self;
        for (index, change) in batch.changes.iter().enumerate() {
            let mut tell = |place| telling.push_back(Telling { batch: batch.clone(), index, place, next: 0 });
            if let Some((key, _)) = keys.get_key_value(change.key()) {
                tell(Place::Key(key.clone()));
            }
            if matches!(change, Change::Put { .. }) {
                let mut found = |name: u32| {
                    tell(Place::Below(names[name as usize].start.clone()));
                    true
                };
                spans.stab(&*names, change.key(), None, &mut found);
            }
        }
    }

    /// The next call that a change concerns. It goes on waiting, unless it is removed.
    pub fn next_told(&mut self) -> Option<Told> {
        while let Some(telling) = self.telling.front_mut() {
            let calls = match &telling.place {
                Place::Key(key) => self.keys.get(key),
                Place::Below(start) => self.by_start.get(start).map(|name| &self.names[*name as usize].calls),
            };
            let Some(&handle) = calls.and_then(|calls| calls.range(telling.next..).next()) else {
                self.telling.pop_front();
                continue;
            };
            telling.next = handle + 1;
            // One that came since has read what was written.
            if self.rows[&handle].at < telling.batch.revision {
                return Some(Told { handle, batch: telling.batch.clone(), index: telling.index });
            }
        }
        // After a revision that deleted very many keys the queue would stay as large as ever.
        if self.telling.capacity() > TOLD_MAX {
            self.telling = VecDeque::new();
        }
        None
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::*;
    use crate::service::random::Random;
    use crate::types::{KeyValue, LeaseId, Time};

    fn key(random: &mut Random) -> Key {
        let keys = ["a", "a/1", "a/2", "a/b/1", "a/b/", "b/1", "a0", "a/b0"];
        Key::from_static(keys[random.below(keys.len())].as_bytes())
    }

    fn place(random: &mut Random) -> Place {
        match random.below(6) {
            0 => Place::Below("a/".into()),
            1 => Place::Below("a/b/".into()),
            _ => Place::Key(key(random)),
        }
    }

    fn change(random: &mut Random, revision: Revision) -> Change {
        let key = key(random);
        if random.one_in(2) {
            return Change::Delete { key, previous: None };
        }
        Change::Put { kv: KeyValue::new(&key, b"", revision, revision, 0, 1, LeaseId::NONE), previous: None }
    }

    fn concerns(place: &Place, change: &Change) -> bool {
        match place {
            Place::Key(key) => change.key() == key,
            Place::Below(start) => matches!(change, Change::Put { .. }) && change.key().starts_with(start),
        }
    }

    /// The model keeps every batch, and finds what concerns a call by going through all of them.
    #[test]
    fn each_call_is_told_of_every_change_at_its_place_once_and_in_order() {
        for seed in 0..30 {
            let random = &mut Random::new(seed);
            let mut awaited = Awaited::new(Revision(7));
            let mut waiting: BTreeMap<u32, (Place, Revision)> = BTreeMap::new();
            let mut batches: Vec<Arc<Batch>> = Vec::new();
            // What a call is still to be told: as many of the changes behind its revision as are named already.
            let mut named: BTreeMap<u32, usize> = BTreeMap::new();
            let mut told_in_all = 0;
            for _ in 0..2_000 {
                match random.below(5) {
                    0 => {
                        let handle = random.below(40) as u32;
                        awaited.remove(handle);
                        let row = (place(random), Revision(awaited.shown().0 + random.below(3) as i64));
                        awaited.insert(handle, row.0.clone(), row.1);
                        waiting.insert(handle, row);
                        named.insert(handle, 0);
                    }
                    1 => {
                        let handle = random.below(40) as u32;
                        awaited.remove(handle);
                        waiting.remove(&handle);
                    }
                    2 if !awaited.is_behind() => {
                        let revision = awaited.shown().next();
                        let changes = (0..=random.below(3)).map(|_| change(random, revision)).collect();
                        let batch = Arc::new(Batch { revision, time: Time(0), changes });
                        awaited.batch(&batch);
                        batches.push(batch);
                    }
                    _ => {
                        let Some(told) = awaited.next_told() else { continue };
                        let (place, at) = &waiting[&told.handle];
                        let later = batches.iter().filter(|batch| batch.revision > *at);
                        let changes = later.flat_map(|batch| {
                            (0..batch.changes.len()).map(move |index| (batch.revision, index, &batch.changes[index]))
                        });
                        let at = named.get_mut(&told.handle).expect("it waits");
                        let expected = changes.filter(|(_, _, change)| concerns(place, change)).nth(*at);
                        let expected = expected.map(|(revision, index, _)| (revision, index));
                        assert_eq!(Some((told.batch.revision, told.index)), expected, "seed {seed}");
                        *at += 1;
                        told_in_all += 1;
                    }
                }
            }
            while let Some(told) = awaited.next_told() {
                *named.get_mut(&told.handle).expect("it waits") += 1;
            }
            for (handle, (place, at)) in &waiting {
                let later = batches.iter().filter(|batch| batch.revision > *at);
                let all = later.flat_map(|batch| batch.changes.iter()).filter(|change| concerns(place, change)).count();
                assert_eq!(named[handle], all, "seed {seed}: nothing was lost");
                awaited.remove(*handle);
            }
            assert_eq!(awaited.bytes(), 0, "nothing is held for nobody");
            assert!(told_in_all > 300, "seed {seed}: {told_in_all}");
        }
    }

    #[test]
    fn of_five_thousand_waiters_a_deletion_names_the_one_behind() {
        let mut awaited = Awaited::new(Revision(1));
        for handle in 0..5_000 {
            awaited.insert(handle, Place::Key(format!("l/{handle}").into()), Revision(1));
        }
        let changes = Box::new([Change::Delete { key: "l/77".into(), previous: None }]);
        awaited.batch(&Arc::new(Batch { revision: Revision(2), time: Time(0), changes }));
        assert_eq!(awaited.next_told().map(|told| (told.handle, told.index)), Some((77, 0)));
        assert!(awaited.next_told().is_none() && !awaited.has_next());
        let changes =
            (0..5_000).map(|number| Change::Delete { key: format!("l/{number}").into(), previous: None }).collect();
        awaited.batch(&Arc::new(Batch { revision: Revision(3), time: Time(0), changes }));
        assert!(std::iter::from_fn(|| awaited.next_told()).map(|told| told.handle).eq(0..5_000));
        assert!(awaited.telling.capacity() <= TOLD_MAX, "{} places are kept", awaited.telling.capacity());
    }
}
