//! The real disk: a directory of the file system.

use std::fs::{File, OpenOptions};
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::fs::{FileExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};

use rustix::fs::{AtFlags, FallocateFlags, Mode, OFlags, StatxFlags, openat, statx};
use rustix::io::Errno;

use crate::wal::disk::{Disk, DiskFile, SegmentDisk};
use crate::wal::record::BLOCK_BYTES;

#[derive(Debug)]
pub struct FileDisk {
    path: PathBuf,
    /// The directory, held open so that its names can be synced.
    directory: File,
    /// How a file that exists is opened.
    existing: OpenOptions,
    refuses_direct: AtomicBool,
}

impl FileDisk {
    /// Opens a directory that exists.
    ///
    /// # Errors
    /// When it cannot be read.
    pub fn open(path: &Path) -> io::Result<FileDisk> {
        FileDisk::with(path, true)
    }

    /// The same to look at what must not change, or may not be changed by us: no file is opened to write, and none is made.
    ///
    /// # Errors
    /// When it cannot be read.
    pub fn open_to_read(path: &Path) -> io::Result<FileDisk> {
        FileDisk::with(path, false)
    }

    /// What the length of a direct write must be a multiple of: a sector of the disk, 512 bytes of most. A block of 4 KiB where
    /// the kernel does not say (before Linux 6.1), and where writes go through the page cache, which writes whole pages.
    pub fn write_unit(&self) -> usize {
        self.direct_alignment().filter(|unit| (512..=BLOCK_BYTES).contains(unit)).unwrap_or(BLOCK_BYTES)
    }

    /// Asked of a file without a name, since a directory has none.
    fn direct_alignment(&self) -> Option<usize> {
        let flags = OFlags::TMPFILE | OFlags::RDWR | OFlags::CLOEXEC;
        let file = openat(&self.directory, c".", flags, Mode::RUSR | Mode::WUSR).ok()?;
        let about = statx(file, c"", AtFlags::EMPTY_PATH, StatxFlags::DIOALIGN).ok()?;
        let says = about.stx_mask & StatxFlags::DIOALIGN.bits() != 0 && about.stx_dio_mem_align as usize <= BLOCK_BYTES;
        (says && about.stx_dio_offset_align.is_power_of_two()).then_some(about.stx_dio_offset_align as usize)
    }

    fn with(path: &Path, may_write: bool) -> io::Result<FileDisk> {
        let directory = File::open(path)?;
        if !directory.metadata()?.is_dir() {
            return Err(Errno::NOTDIR.into());
        }
        let mut existing = OpenOptions::new();
        existing.read(true).write(may_write);
        Ok(FileDisk { path: path.to_owned(), directory, existing, refuses_direct: AtomicBool::new(false) })
    }
}

impl Disk for FileDisk {
    type File = File;

    fn names(&self) -> io::Result<Vec<String>> {
        let names = std::fs::read_dir(&self.path)?;
        // A name that is no text is none of ours.
        let names = names.filter_map(|entry| entry.map(|entry| entry.file_name().into_string().ok()).transpose());
        let mut names: Vec<String> = names.collect::<io::Result<_>>()?;
        names.sort_unstable();
        Ok(names)
    }

    fn open(&self, name: &str) -> io::Result<File> {
        self.existing.open(self.path.join(name))
    }

    fn create(&self, name: &str) -> io::Result<File> {
        // What a store keeps is nobody else's to read.
        self.existing.clone().create_new(true).mode(0o600).open(self.path.join(name))
    }

    fn rename(&self, from: &str, to: &str) -> io::Result<()> {
        std::fs::rename(self.path.join(from), self.path.join(to))
    }

    fn remove(&self, name: &str) -> io::Result<()> {
        std::fs::remove_file(self.path.join(name))
    }

    fn free_bytes(&self) -> io::Result<u64> {
        let found = rustix::fs::fstatvfs(&self.directory)?;
        Ok(found.f_bavail.saturating_mul(found.f_frsize))
    }

    fn file_system(&self) -> io::Result<u64> {
        Ok(self.directory.metadata()?.dev())
    }

    fn fsync(&self) -> io::Result<()> {
        self.directory.sync_all()
    }
}

impl SegmentDisk for FileDisk {
    type Segment = OwnedFd;

    /// Past the page cache where the file system lets us: a small write into a large cached folio costs the kernel several
    /// times the work, and what the cache holds of the log nobody reads.
    fn open_segment(&self, name: &str) -> io::Result<OwnedFd> {
        let path = self.path.join(name);
        let direct = self.existing.clone().custom_flags(OFlags::DIRECT.bits() as i32).open(&path);
        match direct {
            Err(error) if Errno::from_io_error(&error) == Some(Errno::INVAL) => {
                if !self.refuses_direct.swap(true, Ordering::Relaxed) {
                    let directory = self.path.display();
                    tracing::warn!(%directory, "the file system refuses direct writes; the log goes through the page cache");
                }
                self.existing.open(&path).map(OwnedFd::from)
            }
            direct => direct.map(OwnedFd::from),
        }
    }
}

impl DiskFile for File {
    fn len(&self) -> io::Result<u64> {
        Ok(self.metadata()?.len())
    }

    fn set_len(&self, bytes: u64) -> io::Result<()> {
        File::set_len(self, bytes)
    }

    fn allocate(&self, bytes: u64) -> io::Result<()> {
        match rustix::fs::fallocate(self, FallocateFlags::empty(), 0, bytes) {
            // Some file systems cannot reserve. Zeros behind the end take the space as well.
            Err(Errno::OPNOTSUPP) => {
                let zeros = vec![0; 64 << 10];
                let mut offset = DiskFile::len(self)?;
                while offset < bytes {
                    let length = (bytes - offset).min(zeros.len() as u64);
                    self.write_all_at(&zeros[..length as usize], offset)?;
                    offset += length;
                }
                Ok(())
            }
            result => Ok(result?),
        }
    }

    /// Reserving the first block, which every file of the log has, changes nothing, and ext4, XFS and btrfs wait for the direct writes of the file first
    /// (`inode_dio_wait`), which neither reading nor syncing does.
    fn await_earlier_writes(&self) -> io::Result<()> {
        match rustix::fs::fallocate(self, FallocateFlags::empty(), 0, BLOCK_BYTES as u64) {
            Err(Errno::OPNOTSUPP) => Ok(()),
            result => Ok(result?),
        }
    }

    fn read_at(&self, offset: u64, into: &mut [u8]) -> io::Result<()> {
        self.read_exact_at(into, offset)
    }

    fn write_at(&self, offset: u64, bytes: &[u8]) -> io::Result<()> {
        self.write_all_at(bytes, offset)
    }

    fn fdatasync(&self) -> io::Result<()> {
        File::sync_data(self)
    }
}

/// A number that nobody can guess, for the salt of a segment.
///
/// # Panics
/// When the kernel has no random numbers.
pub fn random_salt() -> u64 {
    let mut bytes = [0; 8];
    let filled = rustix::rand::getrandom(&mut bytes, rustix::rand::GetRandomFlags::empty());
    assert_eq!(filled, Ok(8), "getrandom of at most 256 bytes is whole and is not interrupted");
    u64::from_le_bytes(bytes)
}
