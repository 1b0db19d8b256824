//! Key -> the lease it goes with, and lease -> its keys: one row a key, in the list of its lease.

use std::hash::BuildHasher;

use hashbrown::DefaultHashBuilder;

use super::NONE;
use super::table::Table;
use crate::types::Key;
use crate::types::arena::Arena;

pub struct Row {
    key: Box<[u8]>,
    /// The row of its lease.
    lease: u32,
    previous: u32,
    next: u32,
}

pub struct Keys {
    rows: Arena<Row>,
    by_key: Table,
    key_bytes: usize,
}

impl Keys {
    pub fn new() -> Keys {
        Keys { rows: Arena::new(), by_key: Table::new(), key_bytes: 0 }
    }

    pub fn is_empty(&self) -> bool {
        self.rows.len() == 0
    }

    pub fn bytes(&self) -> usize {
        self.rows.bytes() + self.by_key.bytes() + self.key_bytes
    }

    pub fn find(&self, hash: u64, key: &[u8]) -> Option<u32> {
        self.by_key.find(hash, |at| *self.rows[at].key == *key)
    }

    pub fn owner(&self, at: u32) -> u32 {
        self.rows[at].lease
    }

    /// Puts a key in front of the list of a lease, whose first was `first`. The new first comes back.
    pub fn insert(&mut self, key: &[u8], hash: u64, lease: u32, first: u32, hasher: &DefaultHashBuilder) -> u32 {
        let at = self.rows.insert(Row { key: key.into(), lease, previous: NONE, next: first });
        if first != NONE {
            self.rows[first].previous = at;
        }
        self.key_bytes += key.len();
        self.by_key.insert(hash, at, |other| hasher.hash_one(&*self.rows[other].key));
        at
    }

    /// Takes a key out. When it was the first of its list, the new first comes back.
    pub fn remove(&mut self, at: u32, hash: u64, hasher: &DefaultHashBuilder) -> Option<u32> {
        let Row { previous, next, .. } = self.rows[at];
        if previous != NONE {
            self.rows[previous].next = next;
        }
        if next != NONE {
            self.rows[next].previous = previous;
        }
        self.by_key.remove(hash, at, |other| hasher.hash_one(&*self.rows[other].key));
        self.key_bytes -= self.rows.remove(at).key.len();
        (previous == NONE).then_some(next)
    }

    /// The keys of a list.
    pub fn list(&self, first: u32) -> impl Iterator<Item = &[u8]> {
        let next = |at: u32| (at != NONE).then_some(at);
        let rows = std::iter::successors(next(first), move |at| next(self.rows[*at].next));
        rows.map(|at| &*self.rows[at].key)
    }

    /// Takes a whole list out.
    pub fn take_list(&mut self, first: u32, hasher: &DefaultHashBuilder) -> Vec<Key> {
        let mut keys = Vec::new();
        let mut at = first;
        while at != NONE {
            let hash = hasher.hash_one(&*self.rows[at].key);
            self.by_key.remove(hash, at, |other| hasher.hash_one(&*self.rows[other].key));
            let row = self.rows.remove(at);
            self.key_bytes -= row.key.len();
            keys.push(row.key.into());
            at = row.next;
        }
        keys
    }
}

/// What a row takes.
#[cfg(test)]
pub const ROW_BYTES: usize = size_of::<Row>();
