//! What the kernel counts of the block device under a directory.
//!
//! `/proc/PID/io` counts pages as they become dirty, which on some kernels is a megabyte for a record of 300 bytes; the
//! device's own counters say what was really written.

use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use crate::fault::{Fault, Result};

/// The kernel's sector in these counters, whatever the device's is.
const SECTOR_BYTES: u64 = 512;

/// A block device, by the file of its counters.
#[derive(Clone, Debug)]
pub struct Disk {
    stat: PathBuf,
    pub name: String,
}

/// Readings of a device since the machine's start.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct DiskCounts {
    pub reads: u64,
    pub writes: u64,
    pub written_bytes: u64,
    pub flushes: u64,
    pub in_flight: u64,
    /// The time in which something was under way.
    pub busy: Duration,
}

impl Disk {
    /// The device that holds a path. There is none under a tmpfs.
    pub fn under(path: &Path) -> Result<Disk> {
        let unreadable = |cause| Fault::Refused(format!("{} cannot be looked at: {cause}", path.display()));
        let device = fs::metadata(path).map_err(unreadable)?.dev();
        let name = format!("{}:{}", rustix::fs::major(device), rustix::fs::minor(device));
        let folder = Path::new("/sys/dev/block").join(&name);
        let disk = Disk { stat: folder.join("stat"), name: device_name(&folder).unwrap_or(name) };
        disk.counts().map(|_| disk)
    }

    pub fn counts(&self) -> Result<DiskCounts> {
        let shown = self.stat.display();
        let none = |cause| Fault::Refused(format!("no block device: {shown} cannot be read ({cause}); is it a tmpfs?"));
        let stat = fs::read_to_string(&self.stat).map_err(none)?;
        counts(&stat).ok_or_else(|| Fault::Refused(format!("{shown} is malformed")))
    }
}

impl DiskCounts {
    pub fn since(self, before: DiskCounts) -> DiskCounts {
        DiskCounts {
            reads: self.reads - before.reads,
            writes: self.writes - before.writes,
            written_bytes: self.written_bytes - before.written_bytes,
            flushes: self.flushes - before.flushes,
            in_flight: self.in_flight,
            busy: self.busy.saturating_sub(before.busy),
        }
    }
}

/// The folder is a link whose target ends with the name.
fn device_name(folder: &Path) -> Option<String> {
    Some(fs::canonicalize(folder).ok()?.file_name()?.to_string_lossy().into_owned())
}

/// Fields as in the kernel's Documentation/block/stat.rst.
fn counts(stat: &str) -> Option<DiskCounts> {
    let fields: Vec<u64> = stat.split_whitespace().flat_map(str::parse).collect();
    Some(DiskCounts {
        reads: *fields.first()?,
        writes: *fields.get(4)?,
        written_bytes: fields.get(6)? * SECTOR_BYTES,
        in_flight: *fields.get(8)?,
        busy: Duration::from_millis(*fields.get(9)?),
        // Kernels before 5.5 do not count them.
        flushes: fields.get(15).copied().unwrap_or(0),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_counters_are_read_from_their_fields() {
        let stat = "  1 2 3 4 5 6 7 8 9 10 11 12 13 14 15 16 17\n";
        let expected = DiskCounts {
            reads: 1,
            writes: 5,
            written_bytes: 7 * 512,
            flushes: 16,
            in_flight: 9,
            busy: Duration::from_millis(10),
        };
        assert_eq!(counts(stat), Some(expected));
        assert_eq!(counts("1 2 3"), None);
    }
}
