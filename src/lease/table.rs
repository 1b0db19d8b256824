//! Rows by a hash: which of them is meant, the caller says.

use hashbrown::HashTable;

/// It is cut, so that growing a part never takes longer than a turn may, nor the whole memory twice.
const PARTS: usize = 256;

pub struct Table {
    parts: Box<[HashTable<u32>]>,
    bytes: usize,
}

impl Table {
    pub fn new() -> Table {
        Table { parts: (0..PARTS).map(|_| HashTable::new()).collect(), bytes: 0 }
    }

    pub fn bytes(&self) -> usize {
        self.bytes
    }

    pub fn find(&self, hash: u64, is: impl Fn(u32) -> bool) -> Option<u32> {
        self.parts[part(hash)].find(hash, |row| is(*row)).copied()
    }

    /// `hash_of` names the hash of a row that is in the table.
    pub fn insert(&mut self, hash: u64, row: u32, hash_of: impl Fn(u32) -> u64) {
        let table = &mut self.parts[part(hash)];
        let before = table.allocation_size();
        table.insert_unique(hash, row, |other| hash_of(*other));
        self.bytes += table.allocation_size() - before;
    }

    /// # Panics
    /// When the row is not there.
    pub fn remove(&mut self, hash: u64, row: u32, hash_of: impl Fn(u32) -> u64) {
        let table = &mut self.parts[part(hash)];
        let before = table.allocation_size();
        match table.find_entry(hash, |other| *other == row) {
            Ok(entry) => drop(entry.remove()),
            Err(_) => panic!("row {row} leaves the table before it is removed"),
        }
        // A table shrinks when three quarters of it are empty, so that a mass expiry gives its memory back.
        if table.len() * 4 < table.capacity() {
            table.shrink_to(table.len() * 2, |other| hash_of(*other));
        }
        self.bytes = self.bytes + table.allocation_size() - before;
    }
}

/// By bits that a part itself does not look at first: it takes its position from the lowest and its tags from the highest.
fn part(hash: u64) -> usize {
    (hash >> 40) as usize % PARTS
}
