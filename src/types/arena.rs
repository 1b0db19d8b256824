//! Rows by index, in chunks.
//!
//! A chunk is allocated whole, never moves and never grows, so a table of many million rows has no moment at which it
//! needs twice its memory. A chunk whose last row goes is freed. Which index a new row gets depends on nothing but the
//! calls before, so a run can be replayed.

/// Rows a chunk holds.
const CHUNK_ROWS: usize = 512;
const NONE: u32 = u32::MAX;

enum Slot<T> {
    Used(T),
    Free { next: u32 },
}

struct Chunk<T> {
    /// Without memory while nothing is in it.
    slots: Vec<Slot<T>>,
    free: u32,
    used: u32,
    /// It stands in the list of chunks with room.
    listed: bool,
}

pub struct Arena<T> {
    chunks: Vec<Chunk<T>>,
    /// Chunks with room; the last one is filled first.
    with_room: Vec<u32>,
    len: usize,
    bytes: usize,
}

impl<T> Default for Arena<T> {
    fn default() -> Arena<T> {
        Arena::new()
    }
}

impl<T> Arena<T> {
    pub fn new() -> Arena<T> {
        Arena { chunks: Vec::new(), with_room: Vec::new(), len: 0, bytes: 0 }
    }

    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    pub fn len(&self) -> usize {
        self.len
    }

    /// What the rows take, used or not. Kept as chunks come and go.
    pub fn bytes(&self) -> usize {
        self.bytes
    }

    /// Above the index of every row.
    pub fn end(&self) -> u32 {
        (self.chunks.len() * CHUNK_ROWS) as u32
    }

    pub fn insert(&mut self, value: T) -> u32 {
        let at = self.chunk_with_room();
        let chunk = &mut self.chunks[at as usize];
        if chunk.slots.capacity() == 0 {
            chunk.slots.reserve_exact(CHUNK_ROWS);
            self.bytes += CHUNK_ROWS * size_of::<Slot<T>>();
        }
        let row = if chunk.free == NONE {
            chunk.slots.push(Slot::Used(value));
            chunk.slots.len() as u32 - 1
        } else {
            let row = chunk.free;
            let taken = std::mem::replace(&mut chunk.slots[row as usize], Slot::Used(value));
            let Slot::Free { next } = taken else { panic!("the free list holds free rows only") };
            chunk.free = next;
            row
        };
        chunk.used += 1;
        self.len += 1;
        if chunk.used as usize == CHUNK_ROWS {
            chunk.listed = false;
            self.with_room.pop();
        }
        at * CHUNK_ROWS as u32 + row
    }

    fn chunk_with_room(&mut self) -> u32 {
        if let Some(&at) = self.with_room.last() {
            return at;
        }
        let at = self.chunks.len() as u32;
        self.chunks.push(Chunk { slots: Vec::new(), free: NONE, used: 0, listed: true });
        self.with_room.push(at);
        at
    }

    /// # Panics
    /// When there is no such row: an index outlived what it named.
    pub fn remove(&mut self, index: u32) -> T {
        let (at, row) = (index as usize / CHUNK_ROWS, index as usize % CHUNK_ROWS);
        let chunk = &mut self.chunks[at];
        let taken = std::mem::replace(&mut chunk.slots[row], Slot::Free { next: chunk.free });
        let Slot::Used(value) = taken else { panic!("row {index} is removed twice") };
        chunk.free = row as u32;
        chunk.used -= 1;
        self.len -= 1;
        if !chunk.listed {
            chunk.listed = true;
            self.with_room.push(at as u32);
        }
        if chunk.used == 0 {
            chunk.slots = Vec::new();
            chunk.free = NONE;
            self.bytes -= CHUNK_ROWS * size_of::<Slot<T>>();
        }
        value
    }

    pub fn get(&self, index: u32) -> Option<&T> {
        let chunk = self.chunks.get(index as usize / CHUNK_ROWS)?;
        match chunk.slots.get(index as usize % CHUNK_ROWS)? {
            Slot::Used(value) => Some(value),
            Slot::Free { .. } => None,
        }
    }

    pub fn get_mut(&mut self, index: u32) -> Option<&mut T> {
        let chunk = self.chunks.get_mut(index as usize / CHUNK_ROWS)?;
        match chunk.slots.get_mut(index as usize % CHUNK_ROWS)? {
            Slot::Used(value) => Some(value),
            Slot::Free { .. } => None,
        }
    }
}

impl<T> std::ops::Index<u32> for Arena<T> {
    type Output = T;

    fn index(&self, index: u32) -> &T {
        self.get(index).expect("an index is dropped before its row")
    }
}

impl<T> std::ops::IndexMut<u32> for Arena<T> {
    fn index_mut(&mut self, index: u32) -> &mut T {
        self.get_mut(index).expect("an index is dropped before its row")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rows_are_reused_and_empty_chunks_are_freed() {
        let mut arena = Arena::new();
        let rows: Vec<u32> = (0..2_000).map(|number| arena.insert(Box::new(number))).collect();
        assert!(rows.iter().all(|row| *arena[*row] == *row));
        let full = arena.bytes();
        for row in &rows {
            arena.remove(*row);
        }
        assert_eq!((arena.len(), arena.bytes()), (0, 0));
        let again: Vec<u32> = (0..2_000).map(|number| arena.insert(Box::new(number))).collect();
        assert_eq!(arena.bytes(), full);
        assert!(again.iter().all(|row| (*row as usize) < 4 * CHUNK_ROWS), "no new chunk while old ones have room");
        assert!(arena.get(5_000).is_none());
    }
}
