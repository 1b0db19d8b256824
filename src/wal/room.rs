//! Whether there is room for a store that begins: without its first files it can answer nothing, not even that the disk is
//! full, because that answer is a record of the log.
//!
//! A store that has them starts on a full disk, and raises the alarm.

use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use super::checkpoint;
use super::checkpoint_thread::{RESERVE_BYTES, RESERVE_NAME};
use super::recovery::{Refused, cannot};
use super::segments::{first_bytes, is_spare, sequence_of};

/// The reserve, a checkpoint without rows (1.6 MB), and what the file system takes for both.
const DATA_BYTES: u64 = RESERVE_BYTES + (4 << 20);

/// A directory that is there or is still to be made, and what its file system has left for it.
#[derive(Clone, Copy, Debug)]
struct Place<'a> {
    path: &'a Path,
    file_system: u64,
    free_bytes: u64,
    /// What a start that was cut short has left of the files that are needed.
    begun_bytes: u64,
}

impl<'a> Place<'a> {
    /// One that is still to be made will lie where its parent does.
    fn of(path: &'a Path) -> io::Result<Place<'a>> {
        let there = path.ancestors().find(|path| path.exists()).map_or_else(|| PathBuf::from("."), Path::to_owned);
        let found = rustix::fs::statvfs(&there)?;
        let free_bytes = found.f_bavail.saturating_mul(found.f_frsize);
        Ok(Place { path, file_system: there.metadata()?.dev(), free_bytes, begun_bytes: 0 })
    }

    /// Only files that a store makes count; a directory for the log may be the one for the data, or hold what is somebody else's.
    fn with_begun(self, is_needed: fn(&str) -> bool) -> io::Result<Place<'a>> {
        let mut begun_bytes = 0;
        if self.path.exists() {
            for entry in std::fs::read_dir(self.path)? {
                let entry = entry?;
                if entry.file_name().to_str().is_some_and(is_needed) {
                    begun_bytes += entry.metadata()?.blocks() * 512;
                }
            }
        }
        Ok(Place { begun_bytes, ..self })
    }
}

/// Looks whether the first files of a store fit, those of them included that are there already.
///
/// # Errors
/// With what is needed and what is free, when they do not.
pub fn for_first_files(data: &Path, wal: &Path) -> Result<(), Refused> {
    let of = |path, is_needed| {
        let found = Place::of(path).and_then(|place| place.with_begun(is_needed));
        found.map_err(|error| cannot("read the free space of", path, &error))
    };
    judge(of(data, is_of_data)?, of(wal, is_of_log)?)
}

fn is_of_data(name: &str) -> bool {
    [RESERVE_NAME, checkpoint::FILE_NAME, checkpoint::NEW_FILE_NAME].contains(&name)
}

fn is_of_log(name: &str) -> bool {
    sequence_of(name).is_some() || is_spare(name)
}

/// What is free in the two directories.
pub fn in_words(data: &Path, wal: &Path) -> String {
    let free = |path: &Path| match Place::of(path) {
        Ok(Place { file_system, free_bytes, .. }) => {
            (Some(file_system), format!("{free_bytes} bytes are free in {}", path.display()))
        }
        Err(error) => (None, format!("the free space of {} cannot be read: {error}", path.display())),
    };
    let ((of_data, data), (of_wal, wal)) = (free(data), free(wal));
    if of_data == of_wal { data } else { format!("{data}, {wal}") }
}

fn judge(data: Place<'_>, wal: Place<'_>) -> Result<(), Refused> {
    let needed = [(data, DATA_BYTES), (wal, first_bytes(wal.free_bytes + wal.begun_bytes))];
    let missing = needed.map(|(place, bytes)| bytes.saturating_sub(place.begun_bytes));
    if data.file_system == wal.file_system {
        return fits(data, missing.iter().sum(), "a new store");
    }
    fits(data, missing[0], "a new store without its log")?;
    fits(wal, missing[1], "a new log")
}

fn fits(Place { path, free_bytes, .. }: Place<'_>, missing_bytes: u64, what: &str) -> Result<(), Refused> {
    if free_bytes >= missing_bytes {
        return Ok(());
    }
    Err(Refused(format!(
        "{} has room for {free_bytes} bytes and {what} takes {missing_bytes}: make room, or name a directory on a larger disk",
        path.display()
    )))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sim::Folder;

    /// Each is a file system and what is free on it and begun.
    fn judged(data: (u64, u64, u64), wal: (u64, u64, u64)) -> Result<(), String> {
        let place = |path, (file_system, free_bytes, begun_bytes)| Place {
            path: Path::new(path),
            file_system,
            free_bytes,
            begun_bytes,
        };
        judge(place("/data", data), place("/log", wal)).map_err(|refused| refused.0)
    }

    #[test]
    fn what_is_needed_and_what_is_free_is_said_of_each_disk() {
        // Small segments for a small disk: 1 MiB, four times.
        let log = 4 << 20;
        let both = DATA_BYTES + log;
        assert_eq!(judged((1, both, 0), (1, both, 0)), Ok(()));
        assert_eq!(judged((1, DATA_BYTES, 0), (2, log, 0)), Ok(()));
        let line = judged((1, 20_000_000, 0), (1, 20_000_000, 0)).unwrap_err();
        let start = "/data has room for 20000000 bytes and a new store takes 25165824: make room";
        assert!(line.starts_with(start), "{line}");
        let line = judged((1, DATA_BYTES - 1, 0), (2, log, 0)).unwrap_err();
        assert!(line.starts_with("/data has room for 20971519 "), "{line}");
        let line = judged((1, DATA_BYTES, 0), (2, 5, 0)).unwrap_err();
        assert!(line.starts_with("/log has room for 5 bytes and a new log takes 4194304:"), "{line}");
    }

    #[test]
    fn what_a_start_that_was_cut_short_has_left_need_not_fit_again() {
        let (begun, log) = ((RESERVE_BYTES, 2 << 20), 4 << 20);
        let missing = DATA_BYTES + log - begun.0 - begun.1;
        assert_eq!(judged((1, missing, begun.0), (1, missing, begun.1)), Ok(()));
        let line = judged((1, missing - 1, begun.0), (1, missing - 1, begun.1)).unwrap_err();
        let end = format!("has room for {} bytes and a new store takes {missing}:", missing - 1);
        assert!(line.contains(&end), "{line}");
        assert_eq!(judged((1, 0, DATA_BYTES + 5), (2, log, 0)), Ok(()), "more than is needed is no room elsewhere");
        let data = Folder::new("room-begun");
        std::fs::create_dir_all(data.0.join("wal")).unwrap();
        std::fs::write(data.0.join("reserve"), vec![1; 1 << 20]).unwrap();
        let begun_bytes = |is_needed| Place::of(&data.0).unwrap().with_begun(is_needed).unwrap().begun_bytes;
        let reserve_bytes = begun_bytes(is_of_data);
        assert!((1 << 20..2 << 20).contains(&reserve_bytes), "{reserve_bytes}");
        // Where both lie in one directory, each file counts once; and what is not ours not at all.
        assert_eq!(begun_bytes(is_of_log), 0);
        std::fs::write(data.0.join("0000000000000001.wal"), [1; 9]).unwrap();
        std::fs::write(data.0.join("backup.wal"), vec![1; 1 << 20]).unwrap();
        assert!((9..1 << 20).contains(&begun_bytes(is_of_log)));
        assert_eq!(begun_bytes(is_of_data), reserve_bytes);
    }

    #[test]
    fn a_directory_that_is_still_to_be_made_lies_where_its_parent_does() {
        let here = Place::of(Path::new("/tmp")).unwrap().file_system;
        let below = Path::new("/tmp/tarsier-not-there/nor-this");
        assert_eq!(Place::of(below).unwrap().with_begun(is_of_data).unwrap().begun_bytes, 0);
        assert_eq!(here, Place::of(below).unwrap().file_system);
        assert!(Place::of(Path::new("tarsier-not-there")).is_ok(), "in the current directory");
    }
}
