//! Key -> the versions of that key, oldest first: what a read at any revision from the compacted one on needs.
//!
//! etcd keeps *generations*, each one life of a key that a tombstone ends. Here one list holds them all: a tombstone ends
//! a generation, whatever follows it begins the next. Of several changes of one key in one revision only the last is kept,
//! because no read can ask for the others; their events stand in the batch.
//!
//! It knows nothing of compaction's progress, of transactions or of the batches: callers give revisions, it keeps order.
//!
//! Invariants:
//! - the versions of a key strictly ascend by revision, the newest stands in `latest`;
//! - no list begins with a tombstone below the removed revision; a key without versions is not in the map;
//! - `bytes` is the sum over what is stored, kept with every change.

use std::collections::VecDeque;
use std::collections::btree_map::{BTreeMap, Range, RangeMut};
use std::ops::Bound;

use crate::types::{KeyRange, KeyValue, Revision};

use super::range::Budget;

/// What the tree itself takes for a key, in bytes: handle and entry, at the two thirds to which a B-tree node is filled.
pub const KEY_BYTES: usize = (size_of::<Box<[u8]>>() + size_of::<Versions>()) * 3 / 2;
/// What the list of older versions takes for a key that has one, in bytes.
pub const LIST_BYTES: usize = size_of::<VecDeque<Version>>();
/// What a version takes in that list, in bytes: a handle, and a quarter more for the room a list grows by.
pub const LISTED_BYTES: usize = size_of::<Version>() * 5 / 4;

/// A put is its own record of when it happened; a tombstone is only a revision. Both fit the 16 bytes of one handle.
#[derive(Clone, Debug)]
pub enum Version {
    Put(KeyValue),
    Tombstone(Revision),
}

impl Version {
    pub fn revision(&self) -> Revision {
        match self {
            Version::Put(kv) => kv.mod_revision(),
            Version::Tombstone(revision) => *revision,
        }
    }

    pub fn live(&self) -> Option<&KeyValue> {
        match self {
            Version::Put(kv) => Some(kv),
            Version::Tombstone(_) => None,
        }
    }

    fn into_live(self) -> Option<KeyValue> {
        match self {
            Version::Put(kv) => Some(kv),
            Version::Tombstone(_) => None,
        }
    }

    /// Beside its place, which is counted with the key or with the list.
    fn bytes(&self) -> usize {
        self.live().map_or(0, KeyValue::bytes)
    }
}

/// Most keys have one version once history is compacted, so the others live behind one pointer.
#[derive(Debug)]
pub struct Versions {
    latest: Version,
    /// Double-ended, because compaction takes the oldest away one by one while writes add the newest.
    #[expect(clippy::box_collection, reason = "a bare deque would cost each key 24 bytes more")]
    older: Option<Box<VecDeque<Version>>>,
}

impl Versions {
    /// The state of the key at a revision: its newest version at or below it, unless that is a tombstone.
    pub fn at(&self, revision: Revision) -> Option<&KeyValue> {
        if self.latest.revision() <= revision {
            return self.latest.live();
        }
        let older = self.older.as_deref()?;
        let newer_from = older.partition_point(|version| version.revision() <= revision);
        older.get(newer_from.checked_sub(1)?)?.live()
    }

    pub fn new(latest: Version) -> Versions {
        Versions { latest, older: None }
    }

    /// What they take beside the place of the key and of the newest one.
    pub fn bytes(&self) -> usize {
        let older = self.older.iter().flat_map(|older| older.iter());
        self.list_bytes() + self.latest.bytes() + older.map(Version::bytes).sum::<usize>()
    }

    /// The state before everything that a revision did.
    pub fn before(&self, revision: Revision) -> Option<&KeyValue> {
        if self.latest.revision() < revision {
            return self.latest.live();
        }
        self.older.as_deref()?.back()?.live()
    }

    /// Adds the newest version and gives back the one of the same revision that it replaces.
    pub fn push(&mut self, version: Version) -> Option<Version> {
        let before = std::mem::replace(&mut self.latest, version);
        debug_assert!(before.revision() <= self.latest.revision(), "versions of a key ascend");
        if before.revision() == self.latest.revision() {
            return Some(before);
        }
        // Room for one at first: most keys are written once or twice between two compactions. Then a quarter more at a
        // time, because doubling would leave a third of all places empty.
        let older = self.older.get_or_insert_with(|| Box::new(VecDeque::with_capacity(1)));
        if older.len() == older.capacity() {
            older.reserve_exact(older.len() / 4 + 1);
        }
        older.push_back(before);
        None
    }

    fn list_bytes(&self) -> usize {
        self.older.as_deref().map_or(0, |older| LIST_BYTES + older.len() * LISTED_BYTES)
    }

    fn pop_newest(&mut self) -> Option<Version> {
        let older = self.older.as_deref_mut()?;
        let newest = older.pop_back();
        if older.is_empty() {
            self.older = None;
        }
        newest
    }

    fn pop_oldest(&mut self) -> Option<Version> {
        let older = self.older.as_deref_mut()?;
        let oldest = older.pop_front();
        if older.is_empty() {
            self.older = None;
        } else if older.len() * 4 < older.capacity() {
            older.shrink_to(older.len() * 2);
        }
        oldest
    }
}

/// What one change did to the index.
pub struct Changed {
    /// The state of the key before the whole revision.
    pub before_revision: Option<KeyValue>,
    /// A put of the same revision that no read can reach any more.
    pub replaced: Option<KeyValue>,
}

#[derive(Debug, Default)]
pub struct KeyIndex {
    keys: BTreeMap<Box<[u8]>, Versions>,
    keys_bytes: usize,
    versions_bytes: usize,
}

impl KeyIndex {
    /// An index built elsewhere, with its two sums.
    pub fn whole(keys: BTreeMap<Box<[u8]>, Versions>, keys_bytes: usize, versions_bytes: usize) -> KeyIndex {
        KeyIndex { keys, keys_bytes, versions_bytes }
    }

    pub fn keys_bytes(&self) -> usize {
        self.keys_bytes
    }

    pub fn versions_bytes(&self) -> usize {
        self.versions_bytes
    }

    /// How many keys it holds, those included of which only a tombstone is left.
    pub fn keys_held(&self) -> usize {
        self.keys.len()
    }

    pub fn at(&self, key: &[u8], revision: Revision) -> Option<&KeyValue> {
        self.keys.get(key)?.at(revision)
    }

    pub fn latest(&self, key: &[u8]) -> Option<&KeyValue> {
        self.keys.get(key)?.latest.live()
    }

    /// The newest version of every key that is there, in ascending order.
    pub fn live(&self) -> impl Iterator<Item = &KeyValue> {
        self.keys.values().filter_map(|versions| versions.latest.live())
    }

    /// The keys of a range in ascending order, those without a live version included: the caller counts its visits.
    /// `after` resumes an ascending walk behind a key, `before` a descending one.
    pub fn scan<'a>(
        &'a self,
        range: &KeyRange,
        after: Option<&[u8]>,
        before: Option<&[u8]>,
    ) -> Range<'a, Box<[u8]>, Versions> {
        self.keys.range::<[u8], _>(bounds(range, after, before))
    }

    /// Makes a version the newest of its key.
    pub fn put(&mut self, kv: KeyValue) -> Changed {
        self.versions_bytes += kv.bytes();
        let revision = kv.mod_revision();
        // Looked up twice when the key is new: an entry would copy the key for every put to an old one.
        let Some(versions) = self.keys.get_mut(kv.key()) else {
            self.keys_bytes += KEY_BYTES + kv.key().len();
            self.keys.insert(kv.key().into(), Versions::new(Version::Put(kv)));
            return Changed { before_revision: None, replaced: None };
        };
        let before_revision = versions.before(revision).cloned();
        let list_bytes = versions.list_bytes();
        let replaced = versions.push(Version::Put(kv)).and_then(Version::into_live);
        self.versions_bytes += versions.list_bytes() - list_bytes;
        self.versions_bytes -= replaced.as_ref().map_or(0, KeyValue::bytes);
        Changed { before_revision, replaced }
    }

    /// Ends the life of every key of the range that is alive, in ascending order. `found` hears of each: its key, its state
    /// until now, and what the change did. False: the budget was spent before the end, and what was done is to be undone.
    pub fn delete_range(
        &mut self,
        range: &KeyRange,
        revision: Revision,
        budget: &mut Budget,
        mut found: impl FnMut(&[u8], KeyValue, Changed),
    ) -> bool {
        let (mut added_bytes, mut replaced_bytes, mut is_over) = (0, 0, true);
        let walk: RangeMut<'_, Box<[u8]>, Versions> = self.keys.range_mut::<[u8], _>(bounds(range, None, None));
        for (key, versions) in walk {
            // Tombstones are looked at as well, and nothing else of them is seen.
            if !budget.take() {
                is_over = false;
                break;
            }
            let Some(until_now) = versions.latest.live().cloned() else { continue };
            let before_revision = versions.before(revision).cloned();
            let list_bytes = versions.list_bytes();
            let replaced = versions.push(Version::Tombstone(revision)).and_then(Version::into_live);
            added_bytes += versions.list_bytes() - list_bytes;
            replaced_bytes += replaced.as_ref().map_or(0, KeyValue::bytes);
            found(key, until_now, Changed { before_revision, replaced });
        }
        self.versions_bytes = self.versions_bytes + added_bytes - replaced_bytes;
        is_over
    }

    /// Takes back what an unfinished revision did to a key. Harmless when there is nothing to take back.
    pub fn undo(&mut self, key: &[u8], revision: Revision) {
        let Some(versions) = self.keys.get_mut(key) else { return };
        if versions.latest.revision() != revision {
            return;
        }
        let bytes = versions.latest.bytes() + versions.list_bytes();
        match versions.pop_newest() {
            Some(before) => {
                versions.latest = before;
                self.versions_bytes += versions.list_bytes();
            }
            None => self.remove(key),
        }
        self.versions_bytes -= bytes;
    }

    /// Removes what a change of this key at `revision` superseded, as compaction up to it allows: every version below,
    /// and the version itself when it is a tombstone. `gone` hears of each put that went.
    ///
    /// etcd keeps a tombstone exactly at the compacted revision for the watch that starts there. Here that watch reads
    /// the batch, and no read can tell a tombstone from a key that was never there.
    pub fn prune(&mut self, key: &[u8], revision: Revision, mut gone: impl FnMut(&KeyValue)) {
        let Some(versions) = self.keys.get_mut(key) else { return };
        while let Some(oldest) = versions.older.as_deref().and_then(VecDeque::front) {
            let superseded = oldest.revision() < revision;
            let dead = oldest.revision() == revision && oldest.live().is_none();
            if !superseded && !dead {
                return;
            }
            let list_bytes = versions.list_bytes();
            if let Some(oldest) = versions.pop_oldest() {
                self.versions_bytes -= list_bytes - versions.list_bytes() + oldest.bytes();
                oldest.live().map(&mut gone);
            }
        }
        if versions.latest.live().is_none() && versions.latest.revision() <= revision {
            // A tombstone, and nothing older: its place goes with the key.
            self.remove(key);
        }
    }

    fn remove(&mut self, key: &[u8]) {
        if let Some((key, _)) = self.keys.remove_entry(key) {
            self.keys_bytes -= KEY_BYTES + key.len();
        }
    }

    /// The two sums, counted anew.
    #[cfg(test)]
    pub fn recount(&self) -> (usize, usize) {
        let keys = self.keys.keys().map(|key| KEY_BYTES + key.len()).sum();
        (keys, self.keys.values().map(Versions::bytes).sum())
    }
}

/// An empty span becomes bounds that hold nothing: the map panics on an inverted range, and etcd answers it with no keys.
fn bounds<'a>(
    range: &'a KeyRange,
    after: Option<&'a [u8]>,
    before: Option<&'a [u8]>,
) -> (Bound<&'a [u8]>, Bound<&'a [u8]>) {
    if range.is_empty() {
        return (Bound::Included(&[]), Bound::Excluded(&[]));
    }
    let start = match after {
        Some(key) => Bound::Excluded(key),
        None => Bound::Included(&range.start()[..]),
    };
    let end = match (before, range) {
        (Some(key), _) => Bound::Excluded(key),
        (None, KeyRange::One(key)) => Bound::Included(&key[..]),
        (None, KeyRange::Span { end, .. }) => Bound::Excluded(&end[..]),
        (None, KeyRange::From(_)) => Bound::Unbounded,
    };
    (start, end)
}
