//! etcd's HashKV: one number over everything that is stored, in bounded turns.
//!
//! The number is the CRC32C of the word `key` (the bucket of etcd's file) and then, in the order of the changes, of each
//! stored change as etcd keeps it: its place (8 bytes of revision, `_`, 8 bytes of sub revision, `t` behind those of a
//! delete) and its `mvccpb.KeyValue` (of a delete, the key alone). Which changes count is etcd's rule, cited where it is
//! kept: all above the compaction, and below it those that a read at the hashed revision can see.
//!
//! Above the compaction the changes stand in history, in their order. Below it they stand in the index in the order of
//! keys, so they are gathered and sorted first: a handle of 16 bytes for each. Nothing is borrowed between two turns;
//! what the hash needs is as old as the compaction that it began under, and removal waits for it.
//!
//! The states: *gathering*, *merging* what was gathered in sorted runs, feeding those *rows*, feeding *history*.

use std::vec;

use crate::types::encode::{put_deleted, put_key_value};
use crate::types::{Change, ChangeId, Key, KeyRange, KeyValue, Revision};

use super::command::Hash;
use super::history::History;
use super::key_index::{KeyIndex, Versions};
use super::range::{Budget, keep_run};
use super::sort::{Merge, Order};

/// How many bytes are hashed in the time in which a row is visited, or little more.
const BYTES_PER_VISIT: usize = 2_048;

#[derive(Debug)]
pub struct HashJob {
    /// The last revision that counts.
    at: Revision,
    /// etcd's -1 stands for none.
    compacted: Revision,
    sum: Sum,
    /// Handles that were gathered and are held.
    held: usize,
    phase: Phase,
}

#[derive(Debug)]
enum Phase {
    Gathering(Gathering),
    Merging(Merge),
    Rows(vec::IntoIter<KeyValue>),
    /// The next change to feed.
    History(ChangeId),
}

/// A walk over all keys.
#[derive(Debug)]
struct Gathering {
    visited: Option<Key>,
    runs: Vec<Vec<KeyValue>>,
    /// No key is visible at the hashed revision. etcd's list of what to keep is empty then, which it takes for none at all,
    /// and all that is stored counts.
    counts_all: bool,
    /// Whether any key is visible at the hashed revision.
    has_visible: bool,
}

impl Gathering {
    fn new(counts_all: bool) -> Gathering {
        Gathering { visited: None, runs: Vec::new(), counts_all, has_visible: false }
    }

    /// The version of a key that counts below the compaction.
    fn counted<'a>(&mut self, versions: &'a Versions, at: Revision, compacted: Revision) -> Option<&'a KeyValue> {
        let visible = versions.at(at);
        self.has_visible |= visible.is_some();
        // A compaction leaves of a key what is visible at its revision.
        let stored = versions.at(compacted)?;
        let is_kept = self.counts_all || visible.is_some_and(|visible| visible.id() == stored.id());
        is_kept.then_some(stored)
    }
}

impl HashJob {
    pub fn new(at: Revision, compacted: Revision) -> HashJob {
        // A revision below 0 is no error and hashes nothing.
        let phase = if compacted > Revision::ZERO && at >= compacted {
            Phase::Gathering(Gathering::new(false))
        } else {
            Phase::History(above(compacted))
        };
        HashJob { at, compacted, sum: Sum::new(), held: 0, phase }
    }

    /// What a removal must not pass: versions at the compaction, and history above it.
    pub fn oldest(&self) -> Revision {
        self.compacted.max(Revision::FIRST)
    }

    /// What it holds beside the store: handles.
    pub fn scratch_bytes(&self) -> usize {
        self.held * size_of::<KeyValue>()
    }

    /// One turn. `None`: the budget is spent and there is more to do.
    pub fn turn(&mut self, index: &KeyIndex, history: &History, budget: &mut Budget) -> Option<Hash> {
        loop {
            self.phase = match &mut self.phase {
                Phase::Gathering(gathering) => {
                    let is_over = gather(gathering, index, self.at, self.compacted, budget);
                    self.held = gathering.runs.iter().map(Vec::len).sum();
                    if !is_over {
                        return None;
                    }
                    if gathering.has_visible || gathering.counts_all {
                        let runs = std::mem::take(&mut gathering.runs);
                        Phase::Merging(Merge::new(runs, Order::Change, usize::MAX))
                    } else {
                        Phase::Gathering(Gathering::new(true))
                    }
                }
                Phase::Merging(merge) => Phase::Rows(merge.turn(budget)?.into_iter()),
                Phase::Rows(rows) => {
                    while let Some(kv) = rows.as_slice().first() {
                        if !budget.take_bytes(kv.bytes(), BYTES_PER_VISIT) {
                            return None;
                        }
                        self.sum.put(kv);
                        rows.next();
                    }
                    self.held = 0;
                    Phase::History(above(self.compacted))
                }
                Phase::History(next) => {
                    if !feed(&mut self.sum, next, self.at, history, budget) {
                        return None;
                    }
                    let compacted = self.compacted;
                    return Some(Hash { hash: self.sum.crc, revision: self.at, compacted });
                }
            }
        }
    }
}

fn above(compacted: Revision) -> ChangeId {
    ChangeId { revision: compacted.max(Revision::FIRST).next(), sub: 0 }
}

/// One turn of the walk; whether it is over.
fn gather(gathering: &mut Gathering, index: &KeyIndex, at: Revision, compacted: Revision, budget: &mut Budget) -> bool {
    let mut run = Vec::new();
    let mut last: Option<&[u8]> = None;
    let mut is_over = true;
    let visited = gathering.visited.take();
    for (key, versions) in index.scan(&KeyRange::From(Key::new()), visited.as_deref(), None) {
        if !budget.take() {
            is_over = false;
            break;
        }
        last = Some(key);
        run.extend(gathering.counted(versions, at, compacted).cloned());
    }
    keep_run(&mut gathering.runs, run, Order::Change, 0, usize::MAX);
    gathering.visited = last.map(Key::copy_from_slice);
    is_over
}

/// Feeds changes from `next` on; whether all were.
fn feed(sum: &mut Sum, next: &mut ChangeId, at: Revision, history: &History, budget: &mut Budget) -> bool {
    while next.revision <= at {
        let Some(batch) = history.get(next.revision) else {
            unreachable!("history above the compaction is whole up to every revision that can be named");
        };
        for change in &batch.changes[next.sub as usize..] {
            let bytes = change.key().len() + if let Change::Put { kv, .. } = change { kv.value().len() } else { 0 };
            if !budget.take_bytes(bytes, BYTES_PER_VISIT) {
                return false;
            }
            match change {
                Change::Put { kv, .. } => sum.put(kv),
                Change::Delete { key, .. } => sum.delete(*next, key),
            }
            next.sub += 1;
        }
        *next = ChangeId { revision: next.revision.next(), sub: 0 };
    }
    true
}

#[derive(Debug)]
struct Sum {
    crc: u32,
    /// What is being fed, in one piece: the checksum of many small ones takes longer.
    piece: Vec<u8>,
}

impl Sum {
    fn new() -> Sum {
        Sum { crc: crc32c::crc32c(b"key"), piece: Vec::new() }
    }

    fn place(&mut self, id: ChangeId) {
        self.piece.clear();
        self.piece.extend_from_slice(&id.revision.0.to_be_bytes());
        self.piece.push(b'_');
        self.piece.extend_from_slice(&i64::from(id.sub).to_be_bytes());
    }

    fn put(&mut self, kv: &KeyValue) {
        self.place(kv.id());
        put_key_value(&mut self.piece, kv);
        self.crc = crc32c::crc32c_append(self.crc, &self.piece);
    }

    fn delete(&mut self, id: ChangeId, key: &[u8]) {
        self.place(id);
        self.piece.push(b't');
        put_deleted(&mut self.piece, key);
        self.crc = crc32c::crc32c_append(self.crc, &self.piece);
    }
}

#[cfg(test)]
mod tests {
    use std::collections::{BTreeMap, BTreeSet};

    use prost::Message;

    use super::*;
    use crate::pb::mvccpb;
    use crate::random::Random;
    use crate::store::command::{DeleteRange, Error, Op, Outcome, Put, PutLease, PutValue, Read, Txn, Write};
    use crate::store::{CompactProgress, Store};
    use crate::types::{Batch, Entry, LeaseId, Time};

    /// etcd's recipe, word for word, over everything that was ever stored and not deleted by a compaction.
    #[derive(Default)]
    struct Recipe {
        /// `None` is a tombstone.
        stored: BTreeMap<ChangeId, (Vec<u8>, Option<KeyValue>)>,
        compacted: Option<Revision>,
    }

    impl Recipe {
        fn tell(&mut self, batch: &Batch) {
            for (sub, change) in batch.changes.iter().enumerate() {
                let id = ChangeId { revision: batch.revision, sub: sub as u32 };
                let kv = if let Change::Put { kv, .. } = change { Some(kv.clone()) } else { None };
                self.stored.insert(id, (change.key().to_vec(), kv));
            }
        }

        fn keep(&self, at: Revision, with_tombstones: bool) -> BTreeSet<ChangeId> {
            let mut generations: BTreeMap<&[u8], Vec<Vec<ChangeId>>> = BTreeMap::new();
            for (id, (key, kv)) in &self.stored {
                let generations = generations.entry(key).or_insert_with(|| vec![Vec::new()]);
                generations.last_mut().unwrap().push(*id);
                if kv.is_none() {
                    generations.push(Vec::new());
                }
            }
            let mut keep = BTreeSet::new();
            for generations in generations.values() {
                let last = generations.len() - 1;
                let closes = |generation: &Vec<ChangeId>| generation.last().is_some_and(|id| id.revision >= at);
                let chosen = generations[..last].iter().position(closes).unwrap_or(last);
                let Some(id) = generations[chosen].iter().rev().find(|id| id.revision <= at) else { continue };
                let is_tombstone = self.stored[id].1.is_none();
                if !is_tombstone || with_tombstones {
                    keep.insert(*id);
                }
            }
            keep
        }

        fn compact(&mut self, revision: Revision) {
            let keep = self.keep(revision, true);
            self.stored.retain(|id, _| id.revision > revision || keep.contains(id));
            self.compacted = Some(revision);
        }

        fn hash(&self, at: Revision) -> u32 {
            let compacted = self.compacted.unwrap_or(Revision(-1));
            let keep = self.keep(at, false);
            let mut bytes = b"key".to_vec();
            for (id, (key, kv)) in &self.stored {
                let is_forgotten = id.revision <= compacted && !keep.is_empty() && !keep.contains(id);
                if id.revision > at || is_forgotten || (id.revision == compacted && kv.is_none()) {
                    continue;
                }
                bytes.extend(id.revision.0.to_be_bytes());
                bytes.push(b'_');
                bytes.extend(u64::from(id.sub).to_be_bytes());
                let mut message = mvccpb::KeyValue { key: key.clone().into(), ..Default::default() };
                match kv {
                    None => bytes.push(b't'),
                    Some(kv) => {
                        message.create_revision = kv.create_revision().0;
                        message.mod_revision = kv.mod_revision().0;
                        message.version = kv.version();
                        message.value = kv.value().to_vec().into();
                        message.lease = kv.lease().0;
                    }
                }
                bytes.extend(message.encode_to_vec());
            }
            crc32c::crc32c(&bytes)
        }
    }

    fn key(random: &mut Random) -> Key {
        Key::from(vec![b'a' + random.below(6) as u8])
    }

    fn put(random: &mut Random) -> Put {
        let value = PutValue::Set(vec![b'v'; random.below(5_000) as usize].into());
        Put { key: key(random), value, lease: PutLease::Set(LeaseId::NONE), prev_kv: false }
    }

    fn write(random: &mut Random) -> Write {
        match random.below(8) {
            0..4 => Write::Put(put(random)),
            4..6 => Write::DeleteRange(DeleteRange { range: KeyRange::One(key(random)), prev_kv: false }),
            // All keys go, so that nothing is visible any more.
            6 if random.one_in(4) => {
                Write::DeleteRange(DeleteRange { range: KeyRange::From(Key::from("a")), prev_kv: false })
            }
            _ => {
                let puts: BTreeMap<Key, Put> = (0..4).map(|_| put(random)).map(|put| (put.key.clone(), put)).collect();
                let success = puts.into_values().map(Op::Put).collect();
                Write::Txn(Txn { compares: Vec::new(), success, failure: Vec::new() })
            }
        }
    }

    /// In turns of so many visits, beside writes and removals.
    fn hash(store: &mut Store, random: &mut Random, revision: i64) -> Result<Hash, Error> {
        let mut job = store.read(&Read::Hash { revision }, store.revision())?;
        loop {
            match store.step(&mut job, random.below(5) as usize) {
                Some(answer) => {
                    let Outcome::Hash(hash) = answer?.result else { panic!("a hash was asked") };
                    return Ok(hash);
                }
                None => drop(store.compact_step(1, Some(job.oldest()))),
            }
        }
    }

    #[test]
    fn the_hash_is_that_of_etcds_recipe_at_every_revision() {
        for seed in 0..60 {
            let mut random = Random::new(seed);
            let (mut store, mut recipe) = (Store::new(), Recipe::default());
            for _ in 0..150 {
                if let Some(Entry::Batch(batch)) = store.apply(&write(&mut random), Time(0)).entry {
                    recipe.tell(&batch);
                }
                if random.one_in(20) {
                    let revision = Revision(random.below(store.revision().0 as u64 + 1) as i64);
                    if store.apply(&Write::Compact(revision), Time(0)).answer.is_ok() {
                        recipe.compact(revision);
                    }
                }
                let compacted = recipe.compacted.unwrap_or(Revision(-1));
                let revision = compacted.0.max(0) + random.below(12) as i64;
                let told = hash(&mut store, &mut random, revision);
                let at = if revision == 0 { store.revision() } else { Revision(revision) };
                if at > store.revision() {
                    let current = store.revision();
                    assert_eq!(told, Err(Error::FutureRevision { asked: revision, current }));
                    continue;
                }
                assert_eq!(told, Ok(Hash { hash: recipe.hash(at), revision: at, compacted }), "seed {seed}");
            }
            while store.compact_step(100, None) == CompactProgress::More {}
            let hash = hash(&mut store, &mut random, 0).unwrap();
            assert_eq!(hash.hash, recipe.hash(store.revision()), "behind the removal, seed {seed}");
        }
    }

    #[test]
    fn a_revision_below_the_compaction_is_refused_and_one_below_zero_hashes_nothing() {
        let mut store = Store::new();
        let mut random = Random::new(1);
        for _ in 0..4 {
            store.apply(&Write::Put(put(&mut random)), Time(0)).answer.unwrap();
        }
        store.apply(&Write::Compact(Revision(4)), Time(0)).answer.unwrap();
        let refused = Error::Compacted { asked: 3, compacted: Revision(4) };
        assert_eq!(hash(&mut store, &mut random, 3), Err(refused));
        let nothing = Hash { hash: crc32c::crc32c(b"key"), revision: Revision(-7), compacted: Revision(4) };
        assert_eq!(hash(&mut store, &mut random, -7), Ok(nothing));
    }
}
