//! Whether there is room for a store that begins: without its first files it can answer nothing, not even that the disk is
//! full, because that answer is a record of the log.
//!
//! A store that has them starts on a full disk, and raises the alarm.

use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use super::checkpoint_thread::RESERVE_BYTES;
use super::record::BLOCK_BYTES;
use super::recovery::{Refused, cannot};
use super::segments::SEGMENT_BLOCKS;

/// The reserve, a checkpoint without rows (1.6 MB), and what the file system takes for both.
const DATA_BYTES: u64 = RESERVE_BYTES + (4 << 20);
/// The segment in use and the one that lies ready.
const LOG_BYTES: u64 = 2 * SEGMENT_BLOCKS as u64 * BLOCK_BYTES as u64;

/// What a file system has left for us.
#[derive(Clone, Copy, Debug)]
struct FileSystem {
    id: u64,
    free_bytes: u64,
}

impl FileSystem {
    /// That on which a directory lies, or will lie once it is made.
    fn of(directory: &Path) -> io::Result<FileSystem> {
        let there = directory.ancestors().find(|path| path.exists()).map_or_else(|| PathBuf::from("."), Path::to_owned);
        let found = rustix::fs::statvfs(&there)?;
        Ok(FileSystem { id: there.metadata()?.dev(), free_bytes: found.f_bavail.saturating_mul(found.f_frsize) })
    }
}

/// Looks whether the first files of a store fit.
///
/// # Errors
/// With what is needed and what is free, when they do not.
pub fn for_first_files(data: &Path, wal: &Path) -> Result<(), Refused> {
    let of = |path: &Path| FileSystem::of(path).map_err(|error| cannot("read the free space of", path, &error));
    judge((data, of(data)?), (wal, of(wal)?))
}

/// What is free in the two directories.
pub fn in_words(data: &Path, wal: &Path) -> String {
    let free = |path: &Path| match FileSystem::of(path) {
        Ok(FileSystem { id, free_bytes }) => (Some(id), format!("{free_bytes} bytes are free in {}", path.display())),
        Err(error) => (None, format!("the free space of {} cannot be read: {error}", path.display())),
    };
    let ((of_data, data), (of_wal, wal)) = (free(data), free(wal));
    if of_data == of_wal { data } else { format!("{data}, {wal}") }
}

fn judge((data, of_data): (&Path, FileSystem), (wal, of_wal): (&Path, FileSystem)) -> Result<(), Refused> {
    if of_data.id == of_wal.id {
        return fits(data, of_data, DATA_BYTES + LOG_BYTES, "a new store");
    }
    fits(data, of_data, DATA_BYTES, "a new store without its log")?;
    fits(wal, of_wal, LOG_BYTES, "a new log")
}

fn fits(path: &Path, FileSystem { free_bytes, .. }: FileSystem, needed_bytes: u64, what: &str) -> Result<(), Refused> {
    if free_bytes >= needed_bytes {
        return Ok(());
    }
    Err(Refused(format!(
        "{} has room for {free_bytes} bytes and {what} takes {needed_bytes}: make room, or name a directory on a larger disk",
        path.display()
    )))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_needed_and_what_is_free_is_said_of_each_disk() {
        let judged = |(id, free_bytes), (of_wal, free_of_wal)| {
            let (data, wal) = (Path::new("/data"), Path::new("/log"));
            let of_wal = FileSystem { id: of_wal, free_bytes: free_of_wal };
            judge((data, FileSystem { id, free_bytes }), (wal, of_wal)).map_err(|refused| refused.0)
        };
        let both = DATA_BYTES + LOG_BYTES;
        assert_eq!(judged((1, both), (1, both)), Ok(()));
        assert_eq!(judged((1, DATA_BYTES), (2, LOG_BYTES)), Ok(()));
        let line = judged((1, 20_000_000), (1, 20_000_000)).unwrap_err();
        let start = "/data has room for 20000000 bytes and a new store takes 54525952: make room";
        assert!(line.starts_with(start), "{line}");
        assert!(judged((1, DATA_BYTES - 1), (2, LOG_BYTES)).unwrap_err().starts_with("/data has room for 20971519 "));
        assert!(
            judged((1, DATA_BYTES), (2, 5)).unwrap_err().starts_with("/log has room for 5 bytes and a new log takes")
        );
    }

    #[test]
    fn a_directory_that_is_still_to_be_made_lies_where_its_parent_does() {
        let here = FileSystem::of(&std::env::temp_dir()).unwrap();
        let below = FileSystem::of(&std::env::temp_dir().join("tarsier-not-there/nor-this")).unwrap();
        assert_eq!(here.id, below.id);
        assert!(FileSystem::of(Path::new("tarsier-not-there")).is_ok(), "in the current directory");
    }
}
