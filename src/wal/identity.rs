//! The small text file that makes a directory ours: `DATA/tarsier`.
//!
//! ```text
//! tarsier data directory
//! format 2
//! cluster cdf818194e3a8c32
//! member 8e9e05c52164694d
//! checksum 1b2c3d4e
//! ```
//!
//! The checksum is the CRC32C of the lines above it. The file is written under the name `tarsier.new` before anything else
//! is put into the directory, and gets its own once the checkpoint is there. So a directory with `tarsier` and without a
//! checkpoint has lost it, and one with `tarsier.new` has never been served.

use std::io;

use super::disk::{Disk, DiskFile};
use super::file_disk::random_salt;

pub const FILE_NAME: &str = "tarsier";
pub const NEW_FILE_NAME: &str = "tarsier.new";
/// Of the directory as a whole: it rises with that of any file in it, so that all programs hear of it first, and alike.
pub const FORMAT_VERSION: u32 = 2;

const TITLE: &str = "tarsier data directory";
/// No version of this file will be longer.
const BYTES_MAX: u64 = 4_096;

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Identity {
    pub cluster_id: u64,
    pub member_id: u64,
}

#[derive(Debug)]
pub enum IdentityError {
    Io(io::Error),
    Damaged,
    Version(u32),
}

impl Identity {
    /// Ids of a store that begins. Clients detect by a new cluster id that the data is not what they knew, so they are
    /// drawn, not derived from names that every server has by default. 0 means "none" on the wire.
    pub fn random() -> Identity {
        let id = || random_salt().max(1);
        Identity { cluster_id: id(), member_id: id() }
    }

    pub fn encode(&self) -> String {
        let Identity { cluster_id, member_id } = self;
        let lines = format!("{TITLE}\nformat {FORMAT_VERSION}\ncluster {cluster_id:016x}\nmember {member_id:016x}\n");
        format!("{lines}checksum {:08x}\n", crc32c::crc32c(lines.as_bytes()))
    }

    /// # Errors
    /// When the text is not what was written, or of another version.
    pub fn decode(text: &str) -> Result<Identity, IdentityError> {
        let decoded = (|| {
            let (lines, checksum) = text.split_at(text.rfind("checksum ")?);
            let checksum = checksum.strip_prefix("checksum ")?.strip_suffix('\n')?;
            if u32::from_str_radix(checksum, 16).ok()? != crc32c::crc32c(lines.as_bytes()) || checksum.len() != 8 {
                return None;
            }
            let mut lines = lines.lines();
            if lines.next()? != TITLE {
                return None;
            }
            let version: u32 = lines.next()?.strip_prefix("format ")?.parse().ok()?;
            if version != FORMAT_VERSION {
                return Some(Err(IdentityError::Version(version)));
            }
            let cluster_id = u64::from_str_radix(lines.next()?.strip_prefix("cluster ")?, 16).ok()?;
            let member_id = u64::from_str_radix(lines.next()?.strip_prefix("member ")?, 16).ok()?;
            Some(Ok(Identity { cluster_id, member_id }))
        })();
        decoded.unwrap_or(Err(IdentityError::Damaged))
    }

    /// # Errors
    /// When it cannot be read or is not whole.
    pub fn read<D: Disk>(disk: &D) -> Result<Identity, IdentityError> {
        Identity::of(&disk.open(FILE_NAME).map_err(IdentityError::Io)?)
    }

    fn of(file: &impl DiskFile) -> Result<Identity, IdentityError> {
        let length = file.len().map_err(IdentityError::Io)?;
        let mut bytes = vec![0; length.min(BYTES_MAX) as usize];
        file.read_at(0, &mut bytes).map_err(IdentityError::Io)?;
        Identity::decode(std::str::from_utf8(&bytes).map_err(|_| IdentityError::Damaged)?)
    }

    /// Begins a directory. One that a start began and did not end goes on with its ids, which a checkpoint may have.
    ///
    /// # Errors
    /// What the disk says.
    pub fn begin<D: Disk>(disk: &D, new: impl FnOnce() -> Identity) -> io::Result<Identity> {
        if disk.names()?.iter().any(|name| name == NEW_FILE_NAME) {
            let file = disk.open(NEW_FILE_NAME)?;
            if let Ok(identity) = Identity::of(&file) {
                // It is what the page cache shows, and may have missed the medium.
                file.write_at(0, identity.encode().as_bytes())?;
                file.sync_data()?;
                disk.sync_names()?;
                return Ok(identity);
            }
            disk.remove(NEW_FILE_NAME)?;
        }
        let identity = new();
        let file = disk.create(NEW_FILE_NAME)?;
        file.write_at(0, identity.encode().as_bytes())?;
        file.sync_data()?;
        disk.sync_names()?;
        Ok(identity)
    }

    /// The directory holds its checkpoint, and can be served from here on.
    ///
    /// # Errors
    /// What the disk says.
    pub fn settle<D: Disk>(disk: &D) -> io::Result<()> {
        if !disk.names()?.iter().any(|name| name == NEW_FILE_NAME) {
            return Ok(());
        }
        disk.rename(NEW_FILE_NAME, FILE_NAME)?;
        disk.sync_names()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_identity_comes_back_and_a_flipped_bit_is_found() {
        let identity = Identity { cluster_id: 0xcdf8_1819_4e3a_8c32, member_id: 7 };
        let text = identity.encode();
        assert_eq!(Identity::decode(&text).unwrap(), identity);
        for bit in 0..text.len() * 8 {
            let mut bytes = text.clone().into_bytes();
            bytes[bit / 8] ^= 1 << (bit % 8);
            let Ok(flipped) = String::from_utf8(bytes) else { continue };
            let decoded = Identity::decode(&flipped);
            // A letter of the checksum in capitals is the same number.
            assert!(decoded.is_err() || flipped.eq_ignore_ascii_case(&text), "{flipped}");
        }
    }

    #[test]
    fn another_format_is_named() {
        let lines = format!("{TITLE}\nformat 3\nsomething new\n");
        let text = format!("{lines}checksum {:08x}\n", crc32c::crc32c(lines.as_bytes()));
        assert!(matches!(Identity::decode(&text), Err(IdentityError::Version(3))));
    }
}
