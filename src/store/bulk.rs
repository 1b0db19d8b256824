//! A whole index at once, from versions in the order in which they were made.
//!
//! A start has all versions and no index yet. To put them in one by one costs a walk through the tree each, over memory
//! that is in no cache: 3 s for a GB of small values. Sorted by key first, they become a tree in one pass.
//!
//! The sort compares numbers, not keys: each entry carries the next seven bytes of its key beside a count, and only keys
//! that are equal in all of them are looked at again, for the next seven. What all keys have in common is passed over.
//! Two threads take the lower and the upper half of the keys. They only compute: the result is the same with one.
//!
//! Tombstones are versions like any other here: a version number of 0, which no put has, marks them.

use std::collections::BTreeMap;

use crate::types::{ChangeId, KeyValue, LeaseId, Revision};

use super::key_index::{KeyIndex, Version, Versions};

/// Below this many entries a second thread costs more than it saves.
const TWO_THREADS_MIN: usize = 10_000;
/// Key bytes that an entry shows at once.
const WINDOW_BYTES: usize = 7;
/// Entries whose keys are looked at in one go.
const LOOKED_AHEAD: usize = 64;
/// Marks a window behind which the key goes on.
const GOES_ON: u64 = 8;

#[derive(Debug)]
struct Entry {
    /// The bytes of the key from some depth on, then how many of them there are, or [`GOES_ON`].
    window: u64,
    /// The place in the order of arrival, which versions of one key keep; then a bit that says whether it is a tombstone.
    /// A look at the version itself is a look at memory that is in no cache.
    ordinal: usize,
    kv: KeyValue,
}

fn window(key: &[u8], depth: usize) -> u64 {
    let rest = key.get(depth..).unwrap_or_default();
    let mut bytes = [0; 8];
    let shown = rest.len().min(WINDOW_BYTES);
    bytes[..shown].copy_from_slice(&rest[..shown]);
    let count = if rest.len() > WINDOW_BYTES { GOES_ON } else { shown as u64 };
    u64::from_be_bytes(bytes) | count
}

/// The stand-in of a delete.
pub fn tombstone(key: &[u8], id: ChangeId) -> KeyValue {
    KeyValue::new(key, b"", Revision::ZERO, id.revision, id.sub, 0, LeaseId::NONE)
}

impl Entry {
    fn is_tombstone(&self) -> bool {
        self.ordinal & 1 == 1
    }

    fn has_key_of(&self, other: &Entry) -> bool {
        self.window == other.window && self.kv.key() == other.kv.key()
    }
}

/// Gathers versions, in ascending order of their changes.
#[derive(Debug, Default)]
pub struct Bulk {
    entries: Vec<Entry>,
    /// What all keys so far begin with.
    common: Vec<u8>,
    /// Entries before this one show their window at a depth that no longer holds.
    stale: usize,
    /// So many were made at the compacted revision or below.
    below: usize,
    compacted: Revision,
}

/// What became of the versions.
#[derive(Debug, Default)]
pub struct Folded {
    pub sorted: Sorted,
    /// The state of a key before a revision that changed it, for each change that tells it.
    pub previous: Vec<(ChangeId, KeyValue)>,
    /// Puts that a later change of the same revision replaced: only their batch holds them.
    pub unindexed: Vec<(Revision, usize)>,
    /// Changes below the compacted revision that nothing needs any more, in ascending order.
    pub superseded: Vec<ChangeId>,
}

/// The next of sorted entries. From time to time it looks at the keys of many that follow, one look right behind the
/// other: each is at a place in memory that no cache has, and processors wait for many such places at once, but not for
/// those that come a whole entry's work later.
fn next(entries: &mut std::vec::IntoIter<Entry>) -> Option<Entry> {
    if entries.len().is_multiple_of(LOOKED_AHEAD) {
        for entry in entries.as_slice().iter().take(LOOKED_AHEAD) {
            std::hint::black_box(entry.kv.key().first());
        }
    }
    entries.next()
}

/// What the index is made of.
#[derive(Debug, Default)]
pub struct Sorted {
    keys: Vec<(Box<[u8]>, Versions)>,
    keys_bytes: usize,
    versions_bytes: usize,
}

impl Sorted {
    pub fn into_index(self) -> KeyIndex {
        // From what is sorted already, the tree is built without a search.
        KeyIndex::whole(BTreeMap::from_iter(self.keys), self.keys_bytes, self.versions_bytes)
    }
}

/// Does two things that share nothing, on two threads if they are about enough entries.
pub fn both<L: Send, R>(entries: usize, left: impl FnOnce() -> L + Send, right: impl FnOnce() -> R) -> (L, R) {
    if entries < TWO_THREADS_MIN {
        return (left(), right());
    }
    std::thread::scope(|scope| {
        let left = scope.spawn(left);
        let right = right();
        (left.join().expect("a panic of ours stops the process"), right)
    })
}

impl Bulk {
    /// The index is to stand at `compacted` and above. `versions` is a hint.
    pub fn new(compacted: Revision, versions: usize) -> Bulk {
        Bulk { entries: Vec::with_capacity(versions), compacted, ..Bulk::default() }
    }

    pub fn push(&mut self, kv: KeyValue) {
        let key = kv.key();
        if self.entries.is_empty() {
            self.common = key.to_vec();
        } else if !key.starts_with(&self.common) {
            let common = self.common.iter().zip(key).take_while(|(left, right)| left == right).count();
            self.common.truncate(common);
            self.stale = self.entries.len();
        }
        let ordinal = self.entries.len() << 1 | usize::from(kv.version() == 0);
        if kv.mod_revision() <= self.compacted {
            self.below = self.entries.len() + 1;
        }
        self.entries.push(Entry { window: window(key, self.common.len()), ordinal, kv });
    }

    /// How many versions were pushed.
    pub fn versions(&self) -> usize {
        self.entries.len()
    }

    pub fn fold(mut self) -> Folded {
        let depth = self.common.len();
        for entry in &mut self.entries[..self.stale] {
            entry.window = window(entry.kv.key(), depth);
        }
        let (below, compacted) = (self.below, self.compacted);
        let half = |entries| Half::new(below, compacted).fold(entries, depth);
        let count = self.entries.len();
        if count < TWO_THREADS_MIN {
            return half(self.entries).into_folded();
        }
        let split = self.median();
        let split = partition(&mut self.entries, split);
        let upper = self.entries.split_off(split);
        let lower = self.entries;
        let (upper, lower) = both(count, || half(upper), || half(lower));
        lower.join(upper).into_folded()
    }

    fn median(&self) -> u64 {
        let step = (self.entries.len() / 1_000).max(1);
        let mut sample: Vec<u64> = self.entries.iter().step_by(step).map(|entry| entry.window).collect();
        sample.sort_unstable();
        sample[sample.len() / 2]
    }
}

/// Moves the entries below the pivot to the front and returns how many they are.
fn partition(entries: &mut [Entry], pivot: u64) -> usize {
    let (mut at, mut end) = (0, entries.len());
    while at < end {
        if entries[at].window < pivot {
            at += 1;
        } else {
            end -= 1;
            entries.swap(at, end);
        }
    }
    at
}

/// Sorts by key, then by arrival. The windows stand at `depth`. What is left to do stands in a list and not on the stack: keys
/// may be as long as a request, and many may begin alike.
fn sort(entries: &mut [Entry], depth: usize) {
    let mut left = vec![(0..entries.len(), depth)];
    while let Some((range, depth)) = left.pop() {
        let mut start = range.start;
        let some = &mut entries[range];
        some.sort_unstable_by_key(|entry| (entry.window, entry.ordinal));
        for equal in some.chunk_by_mut(|left, right| left.window == right.window) {
            let end = start + equal.len();
            // Keys that end in their window are equal.
            if equal.len() > 1 && equal[0].window & 0xff == GOES_ON {
                let depth = common(equal, depth + WINDOW_BYTES);
                for entry in equal {
                    entry.window = window(entry.kv.key(), depth);
                }
                left.push((start..end, depth));
            }
            start = end;
        }
    }
}

/// How far all keys are the same; up to `depth` they are known to be.
fn common(entries: &[Entry], depth: usize) -> usize {
    let first = entries[0].kv.key();
    entries[1..].iter().map(|entry| entry.kv.key()).fold(first.len(), |common, key| {
        if key.len() >= common && key[depth..common] == first[depth..common] {
            return common;
        }
        let same = key[depth..].iter().zip(&first[depth..common]).take_while(|(left, right)| left == right);
        depth + same.count()
    })
}

/// The work on some of the keys.
struct Half {
    below: usize,
    compacted: Revision,
    keys: Vec<(Box<[u8]>, Versions)>,
    keys_bytes: usize,
    versions_bytes: usize,
    previous: Vec<(ChangeId, KeyValue)>,
    unindexed: Vec<(Revision, usize)>,
    superseded: Vec<ChangeId>,
}

impl Half {
    fn new(below: usize, compacted: Revision) -> Half {
        Half {
            below,
            compacted,
            keys: Vec::new(),
            keys_bytes: 0,
            versions_bytes: 0,
            previous: Vec::new(),
            unindexed: Vec::new(),
            superseded: Vec::new(),
        }
    }

    fn fold(mut self, mut entries: Vec<Entry>, depth: usize) -> Half {
        sort(&mut entries, depth);
        self.keys.reserve(entries.len());
        let mut entries = entries.into_iter();
        let mut of_key = Vec::new();
        while let Some(first) = next(&mut entries) {
            let key: Box<[u8]> = first.kv.key().into();
            while entries.as_slice().first().is_some_and(|follower| follower.has_key_of(&first)) {
                of_key.extend(next(&mut entries));
            }
            if let Some(versions) = self.versions(first, &mut of_key) {
                self.keys_bytes += super::key_index::KEY_BYTES + key.len();
                self.versions_bytes += versions.bytes();
                self.keys.push((key, versions));
            }
        }
        self
    }

    /// The versions of one key, oldest first, as far as reads at the compacted revision and above can see them. They are
    /// moved, not cloned: a count of references is one more look at memory that is in no cache.
    fn versions(&mut self, first: Entry, later: &mut Vec<Entry>) -> Option<Versions> {
        let mut versions = None;
        let mut base: Option<Entry> = None;
        for entry in std::iter::once(first).chain(later.drain(..)) {
            if entry.ordinal >> 1 < self.below {
                if let Some(older) = base.replace(entry) {
                    self.superseded(&older);
                }
                continue;
            }
            if let Some(base) = base.take() {
                versions = self.base(base);
            }
            self.add(&mut versions, entry);
        }
        match base {
            Some(base) => self.base(base),
            None => versions,
        }
    }

    /// A change at the compacted revision stays in its batch; one below it goes.
    fn superseded(&mut self, entry: &Entry) {
        if entry.kv.mod_revision() < self.compacted {
            self.superseded.push(entry.kv.id());
        } else if !entry.is_tombstone() {
            self.unindexed.push((self.compacted, entry.kv.bytes()));
        }
    }

    /// The state at the compacted revision.
    fn base(&mut self, entry: Entry) -> Option<Versions> {
        if entry.is_tombstone() {
            self.superseded(&entry);
            return None;
        }
        Some(Versions::new(Version::Put(entry.kv)))
    }

    fn add(&mut self, versions: &mut Option<Versions>, entry: Entry) {
        let (id, is_creation) = (entry.kv.id(), entry.kv.create_revision() == entry.kv.mod_revision());
        let version = if entry.is_tombstone() { Version::Tombstone(id.revision) } else { Version::Put(entry.kv) };
        let Some(versions) = versions else {
            *versions = Some(Versions::new(version));
            return;
        };
        if let Some(before) = versions.before(id.revision).filter(|_| !is_creation) {
            self.previous.push((id, before.clone()));
        }
        if let Some(Version::Put(replaced)) = versions.push(version) {
            self.unindexed.push((id.revision, replaced.bytes()));
        }
    }

    fn join(mut self, mut upper: Half) -> Half {
        self.keys.append(&mut upper.keys);
        self.keys_bytes += upper.keys_bytes;
        self.versions_bytes += upper.versions_bytes;
        self.previous.append(&mut upper.previous);
        self.unindexed.append(&mut upper.unindexed);
        self.superseded.append(&mut upper.superseded);
        self
    }

    fn into_folded(mut self) -> Folded {
        self.superseded.sort_unstable();
        let Half { keys, keys_bytes, versions_bytes, previous, unindexed, superseded, .. } = self;
        Folded { sorted: Sorted { keys, keys_bytes, versions_bytes }, previous, unindexed, superseded }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::random::Random;

    #[test]
    fn entries_are_sorted_as_their_keys_are() {
        let mut random = Random::new(1);
        for round in 0..200 {
            let alphabet: &[u8] = if round % 2 == 0 { b"\0a" } else { b"\0\x01ab\xff" };
            let mut bulk = Bulk::default();
            for ordinal in 0..300 {
                let length_bound = *random.pick(&[3, 9, 30]);
                let length = random.below(length_bound) as usize;
                let mut key = if round % 3 == 0 { b"/registry/".to_vec() } else { vec![b'k'; 1] };
                key.extend((0..length).map(|_| *random.pick(alphabet)));
                bulk.push(KeyValue::new(&key, b"", Revision(2), Revision(2), ordinal, 1, LeaseId::NONE));
            }
            let mut expected: Vec<_> = bulk.entries.iter().map(|e| (e.kv.key().to_vec(), e.ordinal)).collect();
            expected.sort();
            let depth = bulk.common.len();
            for entry in &mut bulk.entries[..bulk.stale] {
                entry.window = window(entry.kv.key(), depth);
            }
            let median = bulk.median();
            let split = partition(&mut bulk.entries, median);
            let (lower, upper) = bulk.entries.split_at_mut(split);
            sort(lower, depth);
            sort(upper, depth);
            let sorted: Vec<_> = bulk.entries.iter().map(|e| (e.kv.key().to_vec(), e.ordinal)).collect();
            assert_eq!(sorted, expected, "round {round}");
        }
    }

    /// A client may put such keys, and no start may fail over them.
    #[test]
    fn keys_as_long_as_a_request_need_no_stack() {
        let sorts = || {
            let mut bulk = Bulk::default();
            let mut push = |key: &[u8]| {
                let ordinal = bulk.versions() as u32;
                bulk.push(KeyValue::new(key, b"", Revision(2), Revision(2), ordinal, 1, LeaseId::NONE));
            };
            let long = vec![b'k'; 1_500_000];
            push(b"z");
            (0..3).for_each(|_| push(&long));
            // Each is the beginning of the next, and no two end in the same window.
            (1..2_000).for_each(|count| push(&long[..count * WINDOW_BYTES]));
            let mut expected: Vec<_> =
                bulk.entries.iter().map(|entry| (entry.kv.key().to_vec(), entry.ordinal)).collect();
            expected.sort();
            for entry in &mut bulk.entries[..bulk.stale] {
                entry.window = window(entry.kv.key(), 0);
            }
            sort(&mut bulk.entries, 0);
            let sorted: Vec<_> = bulk.entries.iter().map(|entry| (entry.kv.key().to_vec(), entry.ordinal)).collect();
            assert!(sorted == expected);
        };
        let thread = std::thread::Builder::new().stack_size(64 << 10).spawn(sorts);
        thread.expect("a thread").join().expect("they are sorted");
    }
}
