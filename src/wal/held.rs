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

#[derive(Debug, Default)]
pub struct Held(RwLock<Option<Calls>>);

#[derive(Debug)]
struct Calls {
    calls: Vec<Call>,
    /// The length of the file once they are made.
    length: u64,
}

#[derive(Debug)]
enum Call {
    Write { offset: u64, bytes: Vec<u8> },
    SetLen(u64),
    Sync,
}

impl Held {
    /// From here on until [`Held::release`], nothing is written to a file of this length.
    pub fn begin(&self, length: u64) {
        let mut held = self.0.write().unwrap_or_else(PoisonError::into_inner);
        held.get_or_insert(Calls { calls: Vec::new(), length });
    }

    pub fn is_holding(&self) -> bool {
        self.0.read().unwrap_or_else(PoisonError::into_inner).is_some()
    }

    /// Whether the write is kept for later.
    pub fn keeps_write(&self, offset: u64, bytes: &[u8]) -> bool {
        self.keeps(|length| {
            *length = (*length).max(offset + bytes.len() as u64);
            Call::Write { offset, bytes: bytes.to_vec() }
        })
    }

    pub fn keeps_set_len(&self, bytes: u64) -> bool {
        self.keeps(|length| {
            *length = bytes;
            Call::SetLen(bytes)
        })
    }

    pub fn keeps_sync(&self) -> bool {
        self.keeps(|_| Call::Sync)
    }

    fn keeps(&self, call: impl FnOnce(&mut u64) -> Call) -> bool {
        if !self.is_holding() {
            return false;
        }
        let mut held = self.0.write().unwrap_or_else(PoisonError::into_inner);
        let Some(Calls { calls, length }) = &mut *held else { return false };
        calls.push(call(length));
        true
    }

    /// The length of the file as if nothing were held.
    ///
    /// # Errors
    /// What the disk says.
    pub fn len(&self, file: &impl DiskFile) -> io::Result<u64> {
        match &*self.0.read().unwrap_or_else(PoisonError::into_inner) {
            Some(held) => Ok(held.length),
            None => file.len(),
        }
    }

    /// Reads the file as if nothing were held.
    ///
    /// # Errors
    /// What the disk says.
    pub fn read(&self, file: &impl DiskFile, offset: u64, into: &mut [u8]) -> io::Result<()> {
        let held = self.0.read().unwrap_or_else(PoisonError::into_inner);
        let Some(Calls { calls, length }) = &*held else { return file.read_at(offset, into) };
        if offset + into.len() as u64 > *length {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        let below = file.len()?.saturating_sub(offset).min(into.len() as u64) as usize;
        if below > 0 {
            file.read_at(offset, &mut into[..below])?;
        }
        into[below..].fill(0);
        for call in calls {
            match call {
                Call::Write { offset: at, bytes } => {
                    let (start, end) = (offset.max(*at), (offset + into.len() as u64).min(at + bytes.len() as u64));
                    if start < end {
                        let from = &bytes[(start - at) as usize..(end - at) as usize];
                        into[(start - offset) as usize..(end - offset) as usize].copy_from_slice(from);
                    }
                }
                // What the file grows by later is zeros.
                Call::SetLen(bytes) => {
                    let kept = bytes.saturating_sub(offset).min(into.len() as u64);
                    into[kept as usize..].fill(0);
                }
                Call::Sync => {}
            }
        }
        Ok(())
    }

    /// Makes the calls that were held back. When one fails, all are held still, and may be made again from the first.
    ///
    /// # Errors
    /// What the disk says.
    pub fn release(&self, file: &impl DiskFile) -> io::Result<()> {
        let mut held = self.0.write().unwrap_or_else(PoisonError::into_inner);
        for call in held.iter().flat_map(|held| &held.calls) {
            match call {
                Call::Write { offset, bytes } => file.write_at(*offset, bytes)?,
                Call::SetLen(bytes) => file.set_len(*bytes)?,
                Call::Sync => file.sync_data()?,
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
            assert!(!held.keeps_write(0, &[1]) && !held.keeps_set_len(1) && !held.keeps_sync(), "it was not asked to");
            held.begin(1_000);
            for _ in 0..40 {
                let start = random.below(1_200) as usize;
                let end = start + random.below(400) as usize;
                match random.below(4) {
                    0 => {
                        expected.resize(end, 0);
                        assert!(held.keeps_set_len(end as u64) && held.keeps_sync());
                    }
                    1 => {
                        let bytes = vec![random.next() as u8; end - start];
                        expected.resize(expected.len().max(end), 0);
                        expected[start..end].copy_from_slice(&bytes);
                        assert!(held.keeps_write(start as u64, &bytes));
                    }
                    _ => {
                        let mut read = vec![9; end - start];
                        let result = held.read(&file, start as u64, &mut read);
                        match expected.get(start..end) {
                            Some(expected) => assert!(result.is_ok() && read == expected, "seed {seed}"),
                            None => assert!(result.is_err(), "seed {seed}"),
                        }
                    }
                }
                assert_eq!(held.len(&file).unwrap(), expected.len() as u64, "seed {seed}");
            }
            assert_eq!(disk.contents("a"), [0; 1_000]);
            held.release(&file).unwrap();
            assert!(disk.contents("a") == expected && !held.is_holding(), "seed {seed}");
        }
    }
}
