//! A disk that is read and never written: what is written to it stays in memory.
//!
//! redb notes in its file that it is open, and repairs what a crash left. Who only looks must change nothing, and who
//! looks at damage least of all.

use std::collections::BTreeMap;
use std::io;
use std::sync::{Arc, Mutex, PoisonError};

use super::disk::{Disk, DiskFile};

const PAGE_BYTES: u64 = 4_096;

#[derive(Debug)]
pub struct Overlay<D>(pub Arc<D>);

#[derive(Debug)]
pub struct OverlayFile<F> {
    below: F,
    written: Mutex<Written>,
}

#[derive(Debug)]
struct Written {
    length: u64,
    /// Up to here, what is not in `pages` is in the file below; behind it are zeros.
    below: u64,
    pages: BTreeMap<u64, Box<[u8]>>,
}

fn refused<T>() -> io::Result<T> {
    Err(io::ErrorKind::ReadOnlyFilesystem.into())
}

impl<D: Disk> Disk for Overlay<D> {
    type File = OverlayFile<D::File>;

    fn names(&self) -> io::Result<Vec<String>> {
        self.0.names()
    }

    fn open(&self, name: &str) -> io::Result<OverlayFile<D::File>> {
        let below = self.0.open(name)?;
        let length = below.len()?;
        Ok(OverlayFile { below, written: Mutex::new(Written { length, below: length, pages: BTreeMap::new() }) })
    }

    fn create(&self, _: &str) -> io::Result<OverlayFile<D::File>> {
        refused()
    }

    fn rename(&self, _: &str, _: &str) -> io::Result<()> {
        refused()
    }

    fn remove(&self, _: &str) -> io::Result<()> {
        refused()
    }

    fn free_bytes(&self) -> io::Result<u64> {
        self.0.free_bytes()
    }

    fn file_system(&self) -> io::Result<u64> {
        self.0.file_system()
    }

    fn fsync(&self) -> io::Result<()> {
        Ok(())
    }
}

/// The part of each page that `offset..offset + length` covers: the page, where in it, and where in the range.
fn pieces(offset: u64, length: usize) -> impl Iterator<Item = (u64, usize, std::ops::Range<usize>)> {
    let mut at = 0;
    std::iter::from_fn(move || {
        if at == length {
            return None;
        }
        let place = offset + at as u64;
        let start = (place % PAGE_BYTES) as usize;
        let end = (at + PAGE_BYTES as usize - start).min(length);
        let piece = (place / PAGE_BYTES, start, at..end);
        at = end;
        Some(piece)
    })
}

impl<F: DiskFile> OverlayFile<F> {
    fn page(&self, written: &Written, page: u64, into: &mut [u8]) -> io::Result<()> {
        into.fill(0);
        let start = page * PAGE_BYTES;
        let length = written.below.saturating_sub(start).min(into.len() as u64) as usize;
        if length == 0 { Ok(()) } else { self.below.read_at(start, &mut into[..length]) }
    }
}

impl<F: DiskFile> DiskFile for OverlayFile<F> {
    fn len(&self) -> io::Result<u64> {
        Ok(self.written.lock().unwrap_or_else(PoisonError::into_inner).length)
    }

    fn set_len(&self, bytes: u64) -> io::Result<()> {
        let mut written = self.written.lock().unwrap_or_else(PoisonError::into_inner);
        written.length = bytes;
        written.below = written.below.min(bytes);
        written.pages.retain(|page, _| page * PAGE_BYTES < bytes);
        let cut = (bytes % PAGE_BYTES) as usize;
        if let Some(last) = written.pages.get_mut(&(bytes / PAGE_BYTES)) {
            last[cut..].fill(0);
        }
        Ok(())
    }

    fn allocate(&self, bytes: u64) -> io::Result<()> {
        let mut written = self.written.lock().unwrap_or_else(PoisonError::into_inner);
        written.length = written.length.max(bytes);
        Ok(())
    }

    fn read_at(&self, offset: u64, into: &mut [u8]) -> io::Result<()> {
        let written = self.written.lock().unwrap_or_else(PoisonError::into_inner);
        if offset + into.len() as u64 > written.length {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        let mut whole = [0; PAGE_BYTES as usize];
        for (page, start, range) in pieces(offset, into.len()) {
            let into = &mut into[range];
            match written.pages.get(&page) {
                Some(page) => into.copy_from_slice(&page[start..start + into.len()]),
                None => {
                    self.page(&written, page, &mut whole)?;
                    into.copy_from_slice(&whole[start..start + into.len()]);
                }
            }
        }
        Ok(())
    }

    fn write_at(&self, offset: u64, bytes: &[u8]) -> io::Result<()> {
        let mut written = self.written.lock().unwrap_or_else(PoisonError::into_inner);
        for (page, start, range) in pieces(offset, bytes.len()) {
            if !written.pages.contains_key(&page) {
                let mut whole = vec![0; PAGE_BYTES as usize].into_boxed_slice();
                self.page(&written, page, &mut whole)?;
                written.pages.insert(page, whole);
            }
            let bytes = &bytes[range];
            let into = written.pages.get_mut(&page).expect("it has just been put there");
            into[start..start + bytes.len()].copy_from_slice(bytes);
        }
        written.length = written.length.max(offset + bytes.len() as u64);
        Ok(())
    }

    fn fdatasync(&self) -> io::Result<()> {
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::random::Random;
    use crate::sim::disk::FakeDisk;

    #[test]
    fn an_overlay_reads_like_a_file_and_leaves_the_one_below_alone() {
        let mut random = Random::new(1);
        for _ in 0..50 {
            let disk = Arc::new(FakeDisk::new(1));
            let contents: Vec<u8> = (0..random.below(20_000)).map(|_| random.next() as u8).collect();
            disk.plant("a", &contents);
            let file = Overlay(disk.clone()).open("a").unwrap();
            let mut expected = contents.clone();
            for _ in 0..50 {
                let (offset, length) = (random.below(25_000) as usize, random.below(9_000) as usize);
                match random.below(4) {
                    0 => {
                        expected.resize(offset, 0);
                        file.set_len(offset as u64).unwrap();
                    }
                    1 => {
                        let bytes: Vec<u8> = (0..length).map(|_| random.next() as u8).collect();
                        expected.resize(expected.len().max(offset + length), 0);
                        expected[offset..offset + length].copy_from_slice(&bytes);
                        file.write_at(offset as u64, &bytes).unwrap();
                    }
                    _ => {
                        let mut bytes = vec![9; length];
                        let read = file.read_at(offset as u64, &mut bytes);
                        match expected.get(offset..offset + length) {
                            Some(expected) => assert!(read.is_ok() && bytes == expected),
                            None => assert!(read.is_err()),
                        }
                    }
                }
                assert_eq!(file.len().unwrap(), expected.len() as u64);
            }
            assert_eq!(disk.contents("a"), contents);
        }
    }
}
