//! The number of the newest segment of the log, in the name of an empty file: `DATA/newest-000000000000001f`.
//!
//! The log ends where its files end. Were the newest of them lost, by a copy that missed them say, what is left would
//! look like a shorter log, and what was acknowledged would be gone without a word. So the name says which segment must
//! be there at the least. It is another name of the same file each time, which costs one entry of a directory for each
//! segment and no sync.
//!
//! It never says more than is true: a segment is noted once its own name is durable, and before a record goes into it. It
//! may say less: the rename is durable when the kernel gets to it, some seconds later, so that behind a power cut the last
//! segment may be missing in it until the next start. A directory of an earlier version has no note, and gets one.

use std::io;
use std::sync::Arc;

use super::disk::Disk;

const PREFIX: &str = "newest-";

fn name_of(sequence: u64) -> String {
    format!("{PREFIX}{sequence:016x}")
}

fn noted_in(name: &str) -> Option<u64> {
    let sequence = u64::from_str_radix(name.strip_prefix(PREFIX)?, 16).ok()?;
    (name_of(sequence) == name).then_some(sequence)
}

/// The segment that must be there at the least, by the names in the data directory.
pub fn read(names: &[String]) -> Option<u64> {
    names.iter().filter_map(|name| noted_in(name)).max()
}

/// Keeps the note.
#[derive(Debug)]
pub struct Newest<D> {
    data: Arc<D>,
    noted: Option<u64>,
}

impl<D: Disk> Newest<D> {
    /// # Errors
    /// When the data directory cannot be read.
    pub fn open(data: Arc<D>) -> io::Result<Newest<D>> {
        let noted = read(&data.names()?);
        Ok(Newest { data, noted })
    }

    /// The data directory, where the checkpoint lies too.
    pub fn disk(&self) -> &D {
        &self.data
    }

    /// This segment is there, and its name is durable.
    ///
    /// # Errors
    /// What the disk says.
    pub fn note(&mut self, sequence: u64) -> io::Result<()> {
        match self.noted {
            // Segments are counted from 1.
            noted if noted.unwrap_or(0) >= sequence => return Ok(()),
            Some(noted) => self.data.rename(&name_of(noted), &name_of(sequence))?,
            None => drop(self.data.create(&name_of(sequence))?),
        }
        self.noted = Some(sequence);
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sim::disk::FakeDisk;

    #[test]
    fn the_note_rises_and_is_found_again() {
        let disk = Arc::new(FakeDisk::new(1));
        for (sequence, expected) in [(1, 1), (3, 3), (2, 3), (0x1f, 0x1f)] {
            let mut newest = Newest::open(disk.clone()).unwrap();
            newest.note(sequence).unwrap();
            assert_eq!(disk.names().unwrap(), [name_of(expected)]);
            assert_eq!(read(&disk.names().unwrap()), Some(expected));
        }
        assert_eq!(read(&["newest-1".to_owned(), "newest-".to_owned(), "notes".to_owned()]), None);
    }
}
