//! What log, checkpoint and recovery ask of a disk: one directory of files.
//!
//! Everything that touches the data directory goes through these two traits, so that tests run the same code over a disk
//! that fails, tears, reorders and forgets. Only the log's own writes take another way, over the ring, since they must
//! not block their thread.

use std::fmt;
use std::io;

use super::failed_sync;

/// One directory. Names are plain file names.
pub trait Disk: Send + Sync + 'static {
    type File: DiskFile;

    /// The names in the directory, sorted.
    fn names(&self) -> io::Result<Vec<String>>;
    /// Opens a file that exists, to read and write.
    fn open(&self, name: &str) -> io::Result<Self::File>;
    /// Makes a file that does not exist.
    fn create(&self, name: &str) -> io::Result<Self::File>;
    /// Renames a file, replacing one of the new name.
    fn rename(&self, from: &str, to: &str) -> io::Result<()>;
    fn remove(&self, name: &str) -> io::Result<()>;
    /// What the file system has left for us.
    fn free_bytes(&self) -> io::Result<u64>;
    /// Tells file systems apart: directories of one share its room.
    fn file_system(&self) -> io::Result<u64>;
    /// The sync of the directory. Whoever needs it calls [`Disk::sync_names`].
    fn fsync(&self) -> io::Result<()>;

    /// Makes the names themselves durable. No error of it says that the disk refused: see `failed_sync`.
    fn sync_names(&self) -> io::Result<()> {
        self.fsync().map_err(failed_sync)
    }
}

/// One open file. Reads and writes are whole or fail.
#[expect(clippy::len_without_is_empty, reason = "nobody asks; an empty file is one that was cut short")]
pub trait DiskFile: fmt::Debug + Send + Sync + 'static {
    fn len(&self) -> io::Result<u64>;
    fn set_len(&self, bytes: u64) -> io::Result<()>;
    /// Reserves the blocks of `0..bytes`, so that writing there cannot run out of space.
    fn allocate(&self, bytes: u64) -> io::Result<()>;
    fn read_at(&self, offset: u64, into: &mut [u8]) -> io::Result<()>;
    fn write_at(&self, offset: u64, bytes: &[u8]) -> io::Result<()>;
    /// The sync itself. Whoever needs it calls [`DiskFile::sync_data`].
    fn fdatasync(&self) -> io::Result<()>;

    /// Waits for what a process that is gone has left under way: its direct writes go on in the kernel, and would land on
    /// whatever is written there now.
    fn await_earlier_writes(&self) -> io::Result<()> {
        Ok(())
    }

    /// Makes the contents durable. No error of it says that the disk refused: see `failed_sync`.
    fn sync_data(&self) -> io::Result<()> {
        self.fdatasync().map_err(failed_sync)
    }
}

/// A directory whose files the log can write without blocking its thread.
pub trait SegmentDisk: Disk {
    /// What the log's device writes through.
    type Segment: fmt::Debug + Send + 'static;

    /// Opens a file that exists, for the log's device.
    fn open_segment(&self, name: &str) -> io::Result<Self::Segment>;
}
