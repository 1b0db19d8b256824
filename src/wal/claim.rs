//! Whose a data directory is: it is locked, and made ours when it is empty. What belongs to somebody else is refused before
//! anything is written to it.

use std::fs::{DirBuilder, File};
use std::io;
use std::os::unix::fs::{DirBuilderExt, MetadataExt};
use std::path::Path;
use std::sync::Arc;

use rustix::fs::FlockOperation;

use super::checkpoint;
use super::disk::Disk;
use super::file_disk::FileDisk;
use super::identity::{self, Identity, IdentityError};
use super::recovery::{Files, Refused, cannot};
use super::room;
use super::segments::Resume;

/// Is there while a salvage writes into a new directory: a start would find nothing, and begin an empty store.
pub(super) const UNFINISHED_NAME: &str = "salvage.unfinished";
pub(super) const LOCK_NAME: &str = "lock";
pub(super) const WAL_NAME: &str = "wal";
/// The folder in which etcd keeps everything.
pub(super) const ETCD_NAME: &str = "member";
/// What fsck finds; ext4 makes it with the file system.
const LOST_NAME: &str = "lost+found";
/// What may lie in a directory that is still to become ours, beside the directory of the log: what a new file system has, and
/// what a start that was cut short leaves, first these and then those.
const EMPTY_NAMES: [&str; 3] = [LOCK_NAME, identity::NEW_FILE_NAME, LOST_NAME];
const BEGUN_NAMES: [&str; 3] = [WAL_NAME, checkpoint::NEW_FILE_NAME, checkpoint::FILE_NAME];

/// A directory that is ours, and locked for as long as this lives.
#[derive(Debug)]
pub struct Claimed {
    pub files: Files<FileDisk>,
    _locks: (File, Option<File>),
}

impl Claimed {
    /// Before the threads of a log that was never begun take what it needs: see [`room`].
    ///
    /// # Errors
    /// When there is no room for it.
    pub fn has_room_for(&self, resume: &Resume) -> Result<(), Refused> {
        if resume.next_sequence > 1 {
            return Ok(());
        }
        room::for_first_files(&self.files.path, &self.files.wal_path)
    }

    /// Says how much is free where, whenever it is asked.
    pub fn free_space(&self) -> Box<dyn Fn() -> String + Send> {
        let (data, wal) = (self.files.path.clone(), self.files.wal_path.clone());
        Box::new(move || room::in_words(&data, &wal))
    }
}

/// Makes the directory ours, or finds that it is. `new_identity` is asked when it is empty.
///
/// # Errors
/// When it is another program's, another process's, damaged, or of another version.
pub fn claim(data: &Path, wal: Option<&Path>, new_identity: impl FnOnce() -> Identity) -> Result<Claimed, Refused> {
    make_directory(data)?;
    let disk = open(data)?;
    let names = disk.names().map_err(|error| cannot("read", data, &error))?;
    refuse_unfinished(data, &names)?;
    claim_named(data, wal, disk, &names, new_identity)
}

/// # Errors
/// When a salvage that did not end has left these names.
pub(super) fn refuse_unfinished(data: &Path, names: &[String]) -> Result<(), Refused> {
    if names.iter().all(|name| name != UNFINISHED_NAME) {
        return Ok(());
    }
    Err(Refused(format!(
        "{0} is what a tarsier salvage has left that did not end: remove {0}, and salvage again",
        data.display()
    )))
}

/// Whether nothing lies in a directory but what a new file system has.
pub(super) fn is_empty(names: &[String]) -> bool {
    names.iter().all(|name| name == LOST_NAME)
}

/// Makes a directory ours that is empty or still to be made, and that no start may serve before [`Unfinished::end`].
///
/// # Errors
/// As [`claim`], and when the disk fails.
pub(super) fn claim_unfinished(new: &Path, new_identity: impl FnOnce() -> Identity) -> Result<Unfinished, Refused> {
    make_directory(new)?;
    let disk = open(new)?;
    let names = disk.names().map_err(|error| cannot("read", new, &error))?;
    if !is_empty(&names) {
        return Err(Refused(format!("{} is not empty: name a directory that does not exist yet", new.display())));
    }
    let marked = disk.create(UNFINISHED_NAME).and_then(|_| disk.sync_names());
    marked.map_err(|error| cannot("write to", new, &error))?;
    let claimed = claim_named(new, None, disk, &names, new_identity);
    // Where nothing was begun, for want of room say, nothing is left.
    claimed.map(Unfinished).inspect_err(|_| drop(std::fs::remove_file(new.join(UNFINISHED_NAME))))
}

/// A directory that a start refuses.
pub(super) struct Unfinished(pub Claimed);

impl Unfinished {
    /// It holds its checkpoint, and can be served from here on.
    pub fn end(self) -> io::Result<()> {
        let data = &*self.0.files.data;
        Identity::settle(data)?;
        data.remove(UNFINISHED_NAME)?;
        data.sync_names()
    }
}

fn open(directory: &Path) -> Result<FileDisk, Refused> {
    FileDisk::open(directory).map_err(|error| cannot("open", directory, &error))
}

fn claim_named(
    data: &Path,
    wal: Option<&Path>,
    disk: FileDisk,
    names: &[String],
    new_identity: impl FnOnce() -> Identity,
) -> Result<Claimed, Refused> {
    let wal_path = wal.map_or_else(|| data.join(WAL_NAME), Path::to_owned);
    let shown = data.display();
    let has = |name: &str| names.iter().any(|other| other == name);
    if is_etcds(names) {
        return Err(Refused(format!(
            "{shown} is a data directory of etcd itself: name another with --data-dir; etcdctl and a client copy the keys"
        )));
    }
    let is_begun = has(identity::NEW_FILE_NAME);
    let is_ours = |name: &str| {
        let is_of_log = || is_log_of(&data.join(name), &wal_path, is_begun);
        EMPTY_NAMES.contains(&name) || (is_begun && BEGUN_NAMES.contains(&name)) || is_of_log()
    };
    if !has(identity::FILE_NAME)
        && let Some(foreign) = names.iter().find(|name| !is_ours(name))
    {
        let advice = if [checkpoint::FILE_NAME, WAL_NAME].contains(&&**foreign) {
            format!(
                "the file {} is missing in {shown}: put it back, or keep the rest with tarsier salvage",
                identity::FILE_NAME
            )
        } else {
            format!("{shown} holds {foreign}, which is not tarsier's: name an empty directory with --data-dir")
        };
        return Err(Refused(advice));
    }
    if !has(identity::FILE_NAME) {
        room::for_first_files(data, &wal_path)?;
    }
    let data_lock = lock(data, "--data-dir")?;
    let identity = identify(&disk, data, new_identity)?;
    make_directory(&wal_path)?;
    // A copy of the data directory with the same log beside it, or a log by another path, would be two servers with one log.
    let is_beside = !is_same_directory(data, &wal_path)?;
    let log_lock = is_beside.then(|| lock(&wal_path, "--wal-dir")).transpose()?;
    let wal = open(&wal_path)?;
    let files = Files::new((Arc::new(disk), Arc::new(wal)), identity, data, &wal_path);
    Ok(Claimed { files, _locks: (data_lock, log_lock) })
}

/// Whether a directory in one that is not ours yet is that of the log: it may be there before the first start, as the mount
/// point of its disk, and then it is empty. A start that was cut short has begun to fill it.
fn is_log_of(path: &Path, wal: &Path, is_begun: bool) -> bool {
    if !is_same_directory(path, wal).unwrap_or(false) {
        return false;
    }
    let is_empty = || open(path).and_then(|disk| disk.names().map_err(|error| cannot("read", path, &error)));
    is_begun || is_empty().is_ok_and(|names| names.iter().all(|name| EMPTY_NAMES.contains(&&**name)))
}

/// By what they are: paths of one directory may differ, and a second lock of one's own file is refused.
fn is_same_directory(one: &Path, other: &Path) -> Result<bool, Refused> {
    let inode = |path: &Path| -> Result<(u64, u64), Refused> {
        let found = path.metadata().map_err(|error| cannot("read", path, &error))?;
        Ok((found.dev(), found.ino()))
    };
    Ok(inode(one)? == inode(other)?)
}

pub(super) fn is_etcds(names: &[String]) -> bool {
    let has = |name: &str| names.iter().any(|other| other == name);
    has(ETCD_NAME) && !has(identity::FILE_NAME)
}

/// Reads whose directory it is, or makes it ours.
///
/// # Errors
/// When the file that says so is damaged or of another version, or the disk fails.
pub(crate) fn identify<D: Disk>(
    disk: &D,
    path: &Path,
    new_identity: impl FnOnce() -> Identity,
) -> Result<Identity, Refused> {
    let names = disk.names().map_err(|error| cannot("read", path, &error))?;
    if names.iter().any(|name| name == identity::FILE_NAME) {
        return Identity::read(disk).map_err(|error| identity_refused(path, &error));
    }
    Identity::begin(disk, new_identity).map_err(|error| cannot("write to", path, &error))
}

pub(super) fn identity_refused(data: &Path, error: &IdentityError) -> Refused {
    let path = data.join(identity::FILE_NAME);
    match error {
        IdentityError::Io(error) => cannot("read", &path, error),
        IdentityError::Damaged => Refused(format!(
            "{} is damaged: put it back from a copy, or keep the rest with tarsier salvage",
            path.display()
        )),
        IdentityError::Version(version) => Refused(format!(
            "{} has format {version} and this tarsier reads {}: start the version that wrote it",
            path.display(),
            identity::FORMAT_VERSION
        )),
    }
}

/// A directory of one's own is for its owner alone, as etcd makes it. Its name is durable before anything is in it.
fn make_directory(path: &Path) -> Result<(), Refused> {
    if path.is_dir() {
        return Ok(());
    }
    if path.exists() {
        return Err(Refused(format!("{} is a file: name a directory", path.display())));
    }
    DirBuilder::new().recursive(true).mode(0o700).create(path).map_err(|error| cannot("make", path, &error))?;
    let parent = path.parent().filter(|parent| !parent.as_os_str().is_empty()).unwrap_or(Path::new("."));
    File::open(parent).and_then(|parent| parent.sync_all()).map_err(|error| cannot("sync", parent, &error))
}

/// `flag` is the one that names another directory.
fn lock(directory: &Path, flag: &str) -> Result<File, Refused> {
    let path = directory.join(LOCK_NAME);
    let file = File::options().read(true).write(true).create(true).truncate(false).open(&path);
    let file = file.map_err(|error| cannot("write to", &path, &error))?;
    match rustix::fs::flock(&file, FlockOperation::NonBlockingLockExclusive) {
        Ok(()) => Ok(file),
        Err(rustix::io::Errno::WOULDBLOCK) => Err(Refused(format!(
            "another process uses {}: stop it, or name another directory with {flag}",
            directory.display()
        ))),
        Err(error) => Err(cannot("lock", &path, &error.into())),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sim::Folder;

    const IDENTITY: Identity = Identity { cluster_id: 1, member_id: 2 };

    fn refusal(data: &Path, wal: Option<&Path>) -> String {
        claim(data, wal, || IDENTITY).map(drop).unwrap_err().to_string()
    }

    #[test]
    fn the_directory_of_the_log_may_be_there_before_the_first_start_if_it_is_empty() {
        for (log, flag) in [("wal", false), ("wal", true), ("log", true)] {
            let data = Folder::new("claim-mounted");
            let wal = data.0.join(log);
            let named = flag.then_some(&*wal);
            std::fs::create_dir_all(wal.join("lost+found")).unwrap();
            drop(claim(&data.0, named, || IDENTITY).unwrap());
            // The start was cut short behind its first segment.
            std::fs::write(wal.join("0000000000000001.wal"), b"").unwrap();
            drop(claim(&data.0, named, || panic!("it has ids")).unwrap());
            std::fs::remove_file(data.0.join(identity::NEW_FILE_NAME)).unwrap();
            let line = refusal(&data.0, named);
            let expected =
                if log == "wal" { "the file tarsier is missing" } else { "holds log, which is not tarsier's" };
            assert!(line.contains(expected), "{line}");
        }
        let data = Folder::new("claim-elsewhere");
        std::fs::create_dir_all(data.0.join("log")).unwrap();
        assert!(refusal(&data.0, None).contains("holds log, which is not tarsier's"), "it is not named");
    }

    #[test]
    fn what_a_salvage_has_not_ended_is_not_served() {
        let new = Folder::new("claim-unfinished");
        std::fs::create_dir_all(new.0.join(LOST_NAME)).unwrap();
        let unfinished = claim_unfinished(&new.0, || IDENTITY).unwrap();
        let files: Vec<String> = unfinished.0.files.data.names().unwrap();
        drop(unfinished);
        assert!(refusal(&new.0, None).ends_with("and salvage again"), "{}", refusal(&new.0, None));
        for left in files.iter().filter(|name| !["wal", LOST_NAME, UNFINISHED_NAME].contains(&&***name)) {
            std::fs::remove_file(new.0.join(left)).unwrap();
            assert!(refusal(&new.0, None).ends_with("and salvage again"), "without {left}");
        }
        assert!(claim_unfinished(&new.0, || IDENTITY).is_err(), "it holds something");
        std::fs::remove_dir_all(&new.0).unwrap();
        claim_unfinished(&new.0, || IDENTITY).unwrap().end().unwrap();
        drop(claim(&new.0, None, || panic!("it has ids")).unwrap());
    }
}
