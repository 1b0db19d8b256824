//! What redb writes to its file while a start only reads it: held back until the start is not refused.
//!
//! redb notes in its file that it is open, repairs what a crash left, and notes when it is closed. A start that is refused
//! must not leave any of that: an operator who looks at damage, or puts an old file back, wants it as it was. The calls are
//! made later in their order, syncs among them, so that a power cut in between meets what redb itself would have left. They
//! must be made before anybody believes what the file shows: behind a failed sync it may show a commit that the disk lacks,
//! and it is these calls that write its pointer again.

use std::io;
use std::sync::{PoisonError, RwLock};

use super::disk::DiskFile;
use super::failed_sync;

#[derive(Debug, Default)]
pub struct Held(RwLock<Option<Vec<Call>>>);

#[derive(Debug)]
enum Call {
    Write { offset: u64, bytes: Vec<u8> },
    Sync,
}

impl Held {
    /// From here on until [`Held::release`], nothing is written.
    pub fn begin(&self) {
        self.0.write().unwrap_or_else(PoisonError::into_inner).get_or_insert_default();
    }

    pub fn is_holding(&self) -> bool {
        self.0.read().unwrap_or_else(PoisonError::into_inner).is_some()
    }

    /// Whether the write is kept for later.
    pub fn keeps_write(&self, offset: u64, bytes: &[u8]) -> bool {
        self.keeps(|| Call::Write { offset, bytes: bytes.to_vec() })
    }

    pub fn keeps_sync(&self) -> bool {
        self.keeps(|| Call::Sync)
    }

    fn keeps(&self, call: impl FnOnce() -> Call) -> bool {
        if !self.is_holding() {
            return false;
        }
        let mut held = self.0.write().unwrap_or_else(PoisonError::into_inner);
        held.as_mut().map(|calls| calls.push(call())).is_some()
    }

    /// Lays over what was read what is held of it.
    pub fn read(&self, offset: u64, into: &mut [u8]) {
        let held = self.0.read().unwrap_or_else(PoisonError::into_inner);
        for call in held.iter().flatten() {
            let Call::Write { offset: at, bytes } = call else { continue };
            let (start, end) = (offset.max(*at), (offset + into.len() as u64).min(at + bytes.len() as u64));
            if start < end {
                let from = &bytes[(start - at) as usize..(end - at) as usize];
                into[(start - offset) as usize..(end - offset) as usize].copy_from_slice(from);
            }
        }
    }

    /// Makes the calls that were held back. When one fails, all are held still, and may be made again from the first.
    ///
    /// # Errors
    /// What the disk says.
    pub fn release(&self, file: &impl DiskFile) -> io::Result<()> {
        let mut held = self.0.write().unwrap_or_else(PoisonError::into_inner);
        for call in held.iter().flatten() {
            match call {
                Call::Write { offset, bytes } => file.write_at(*offset, bytes)?,
                Call::Sync => file.sync_data().map_err(failed_sync)?,
            }
        }
        *held = None;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::random::Random;
    use crate::sim::disk::FakeDisk;
    use crate::wal::disk::Disk;

    #[test]
    fn what_is_held_reads_as_written_and_is_written_in_its_order() {
        for seed in 0..50 {
            let mut random = Random::new(seed);
            let disk = FakeDisk::new(seed);
            disk.plant("a", &[0; 1_000]);
            let (file, held, mut expected) = (disk.open("a").unwrap(), Held::default(), vec![0; 1_000]);
            assert!(!held.keeps_write(0, &[1]) && !held.keeps_sync(), "it was not asked to");
            held.begin();
            for _ in 0..20 {
                let start = random.below(1_000) as usize;
                let end = start + random.below(1_001 - start as u64) as usize;
                if random.one_in(2) {
                    expected[start..end].fill(random.next() as u8);
                    assert!(held.keeps_write(start as u64, &expected[start..end]) && held.keeps_sync());
                }
                let mut read = vec![9; end - start];
                file.read_at(start as u64, &mut read).unwrap();
                held.read(start as u64, &mut read);
                assert_eq!(read, expected[start..end], "seed {seed}");
            }
            assert_eq!(disk.contents("a"), [0; 1_000]);
            held.release(&file).unwrap();
            assert!(disk.contents("a") == expected && !held.is_holding(), "seed {seed}");
        }
    }
}
