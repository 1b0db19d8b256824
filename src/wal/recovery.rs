//! From a data directory to a store that may be served: the order in which files are made, checked, read and joined.
//!
//! ```text
//! DATA/tarsier           format and ids; made first, and named so once the checkpoint is there
//! DATA/lock              held by the process that uses the directory
//! DATA/checkpoint.redb   rows up to a position of the log; made second
//! DATA/checkpoint.compacting  is there while the file above is compacted
//! DATA/wal/*.wal         the log; may lie elsewhere
//! DATA/wal/lock          held by the process that uses the log
//! DATA/reserve           space for a full disk
//! DATA/newest-*          which segment of the log must be there at the least
//! DATA/salvage.unfinished  is there while a salvage writes the directory
//! ```
//!
//! All of it happens before any shard starts, and it blocks. What is wrong ends the start in one line that says what to do;
//! nothing is ever cured by leaving something out. Nothing is written before the directory is known to be ours or empty.

use std::fmt;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use crate::shard::clock;
use crate::types::{ChangeId, Entry, Position, Row, StoredLease};

use super::checkpoint::{self, Checkpoint, Gathered};
use super::checkpoint_backend::CheckpointError;
use super::checkpoint_rows::Meta;
use super::checkpoint_thread::RESERVE_NAME;
use super::disk::Disk;
use super::identity::{self, Identity};
use super::newest;
use super::replay::{Replay, TornTail};
use super::segments::{self, Resume, segment_blocks};

const TELL_EVERY: Duration = Duration::from_secs(1);

/// Why there is no start: one line that says what to do.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Refused(pub String);

impl fmt::Display for Refused {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl From<CheckpointError> for Refused {
    fn from(error: CheckpointError) -> Refused {
        let advice = match &error {
            CheckpointError::Full(_) => "free some space and start again",
            CheckpointError::Disk(_) => "nothing was changed, so cure the disk and start again",
            CheckpointError::Damaged(_) => "look with tarsier check, and keep what is whole with tarsier salvage",
            CheckpointError::Version(_) => "start the version that wrote it",
        };
        Refused(format!("{error}; {advice}"))
    }
}

/// Whoever builds the store from what is found. An error of its own is what contradicts in it, in words.
pub trait Rebuild {
    fn begin(&mut self, meta: &Meta);
    /// The leases of the checkpoint, in front of its rows.
    ///
    /// # Errors
    /// When there is one twice.
    fn leases(&mut self, leases: Vec<StoredLease>) -> Result<(), String>;
    /// The rows of the checkpoint, in order.
    ///
    /// # Errors
    /// When the row cannot follow those before it.
    fn row(&mut self, row: Row) -> Result<(), String>;
    /// All rows were shown. Gives back those that nothing needs.
    ///
    /// # Errors
    /// When rows are missing.
    fn end_rows(&mut self) -> Result<Vec<ChangeId>, String>;
    /// The entries of the log behind the checkpoint, in order. Batches come without previous states.
    ///
    /// # Errors
    /// When the entry cannot follow those before it.
    fn entry(&mut self, entry: &Entry) -> Result<(), String>;
}

/// How far it is, told once a second.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Stage {
    /// Rows of the checkpoint.
    Rows { done: u64, total: u64, seconds_left: u64 },
    /// Bytes of the log.
    Log { done: u64, total: u64, seconds_left: u64 },
}

/// The two directories of one store, and whose they are.
#[derive(Debug)]
pub struct Files<D> {
    pub data: Arc<D>,
    pub wal: Arc<D>,
    pub identity: Identity,
    /// Where they lie, for messages.
    pub(super) path: PathBuf,
    pub(super) wal_path: PathBuf,
    /// The length of the segments of a log that has none yet.
    segment_blocks: u32,
    #[cfg(test)]
    pub(crate) planted: super::replay::Planted,
}

impl<D: Disk> Files<D> {
    pub fn new((data, wal): (Arc<D>, Arc<D>), identity: Identity, path: &Path, wal_path: &Path) -> Files<D> {
        // The rows need room as well. A disk that does not say what it has free is taken for a large one.
        let free_bytes = [&data, &wal].map(|disk| disk.free_bytes().unwrap_or(u64::MAX));
        let segment_blocks = segment_blocks(free_bytes[0].min(free_bytes[1]));
        Files {
            data,
            wal,
            identity,
            path: path.to_owned(),
            wal_path: wal_path.to_owned(),
            segment_blocks,
            #[cfg(test)]
            planted: super::replay::Planted::default(),
        }
    }

    /// Segments so short that a simulated log goes through many.
    #[cfg(test)]
    pub(crate) fn with_segment_blocks(self, segment_blocks: u32) -> Files<D> {
        Files { segment_blocks, ..self }
    }
}

/// What a start goes on with.
#[derive(Debug)]
pub struct Recovered<D: Disk> {
    pub checkpoint: Checkpoint<D>,
    /// For the checkpoint thread: groups that the log has and the checkpoint lacks, and rows that nothing needs.
    pub gathered: Gathered,
    /// What is true now: revision, compaction, term of the last start, alarms, and the last position of the log.
    pub meta: Meta,
    /// Where the log goes on.
    pub resume: Resume,
    pub torn: Option<TornTail>,
}

pub(super) fn cannot(what: &str, path: &Path, error: &io::Error) -> Refused {
    use io::ErrorKind::{NotADirectory, NotFound, PermissionDenied, QuotaExceeded, ReadOnlyFilesystem, StorageFull};
    let advice = match error.kind() {
        PermissionDenied => "let the user of this process do so, or name another path",
        NotFound => "name a path that exists",
        NotADirectory => "name a directory",
        StorageFull | QuotaExceeded => "make room, or name another path",
        ReadOnlyFilesystem => "mount it so that it can be written, or name another path",
        _ => "cure the disk, or name another path",
    };
    Refused(format!("cannot {what} {}: {error}; {advice}", path.display()))
}

/// Reads everything and builds the store through `rebuild`.
///
/// # Errors
/// When anything is missing, damaged, or cannot be read.
pub fn recover<D: Disk>(
    files: &Files<D>,
    rebuild: &mut impl Rebuild,
    on_stage: &mut dyn FnMut(Stage),
) -> Result<Recovered<D>, Refused> {
    segments::await_earlier_writes(&*files.wal).map_err(|error| cannot("read the log beside", &files.path, &error))?;
    let checkpoint = open_checkpoint(files)?;
    let mut meta = checkpoint.meta().clone();
    let mut gathered = Gathered::default();
    rebuild.begin(&meta);
    rebuild.leases(checkpoint.leases()?).map_err(|what| Refused::from(CheckpointError::Damaged(what)))?;
    gathered.remove(load(&checkpoint, rebuild, on_stage)?);

    let mut refused = None;
    let mut replay = Replay::new(&*files.wal, files.identity.cluster_id, meta.position, files.segment_blocks);
    #[cfg(test)]
    {
        replay.planted = files.planted;
    }
    replay.newest = newest::read(&files.data.names().map_err(|error| cannot("read", &files.path, &error))?);
    let mut teller = Teller::new();
    let replayed = replay.run(
        &mut |position, entries| {
            if refused.is_none() {
                refused = take_group(&mut meta, rebuild, position, &entries).err();
                gathered.add(position, entries);
            }
        },
        &mut |done, total| {
            teller.tell(done, total, &mut |seconds_left| on_stage(Stage::Log { done, total, seconds_left }));
        },
    );
    let replayed = replayed.map_err(|error| Refused(error.under(&files.wal_path).to_string()))?;
    if let Some(what) = refused {
        return Err(Refused(format!(
            "the log does not continue the checkpoint: {what}; keep what is whole with tarsier salvage"
        )));
    }
    meta.position = meta.position.max(replayed.last);
    let torn = replayed.torn.map(|torn| torn.under(&files.wal_path));
    match checkpoint.release_held() {
        Err(CheckpointError::Full(_)) if files.data.remove(RESERVE_NAME).is_ok() => checkpoint.release_held()?,
        released => released?,
    }
    Ok(Recovered { checkpoint, gathered, meta, resume: replayed.resume, torn })
}

fn take_group(
    meta: &mut Meta,
    rebuild: &mut impl Rebuild,
    position: Position,
    entries: &[Entry],
) -> Result<(), String> {
    for entry in entries {
        rebuild.entry(entry).map_err(|what| format!("group {}: {what}", position.0))?;
        meta.note(entry);
    }
    meta.position = position;
    Ok(())
}

/// Opens the checkpoint, or makes that of a new directory.
fn open_checkpoint<D: Disk>(files: &Files<D>) -> Result<Checkpoint<D>, Refused> {
    let names = files.data.names().map_err(|error| cannot("read", &files.path, &error))?;
    let has = |name: &str| names.iter().any(|other| other == name);
    let checkpoint = find_checkpoint(files, &has)?;
    Identity::settle(&*files.data).map_err(|error| cannot("write to", &files.path, &error))?;
    Ok(checkpoint)
}

fn find_checkpoint<D: Disk>(files: &Files<D>, has: &dyn Fn(&str) -> bool) -> Result<Checkpoint<D>, Refused> {
    if has(checkpoint::FILE_NAME) {
        let open = || {
            Checkpoint::end_compaction(&*files.data)?;
            Checkpoint::open(files.data.clone())
        };
        let opened = match open() {
            // A full disk must not keep a server down that has a reserve for this.
            Err(CheckpointError::Full(_)) if files.data.remove(RESERVE_NAME).is_ok() => open()?,
            opened => opened?,
        };
        let Identity { cluster_id, member_id } = files.identity;
        if (opened.meta().cluster_id, opened.meta().member_id) != (cluster_id, member_id) {
            return Err(Refused(format!(
                "{} in {} belongs to another data directory: put the one back that belongs here",
                checkpoint::FILE_NAME,
                files.path.display()
            )));
        }
        return Ok(opened);
    }
    let segments = files.wal.names().map_err(|error| cannot("read the log beside", &files.path, &error))?;
    if segments.iter().any(|name| name.ends_with(".wal")) {
        return Err(Refused(format!(
            "{} is missing in {} and there is a log: put it back, or keep what is whole with tarsier salvage",
            checkpoint::FILE_NAME,
            files.path.display()
        )));
    }
    if has(identity::FILE_NAME) {
        return Err(Refused(format!(
            "{} and the log are missing in {}, which has been in use: put them back from a copy, or remove the directory to \
             begin with an empty store",
            checkpoint::FILE_NAME,
            files.path.display()
        )));
    }
    let meta = Meta::new(files.identity.cluster_id, files.identity.member_id);
    Ok(Checkpoint::create(files.data.clone(), meta)?)
}

fn load<D: Disk>(
    checkpoint: &Checkpoint<D>,
    rebuild: &mut impl Rebuild,
    on_stage: &mut dyn FnMut(Stage),
) -> Result<Vec<ChangeId>, Refused> {
    let damaged = |what| Refused::from(CheckpointError::Damaged(what));
    let (mut done, total) = (0, checkpoint.meta().rows);
    let mut teller = Teller::new();
    checkpoint.load(|row| {
        done += 1;
        // The clock is looked at now and then: a row takes less than a look.
        if done % 4_096 == 0 {
            teller.tell(done, total, &mut |seconds_left| on_stage(Stage::Rows { done, total, seconds_left }));
        }
        rebuild.row(row).map_err(damaged)
    })?;
    rebuild.end_rows().map_err(damaged)
}

/// Tells once a second, and guesses how long it takes yet.
struct Teller {
    start: Instant,
    told: Instant,
}

impl Teller {
    fn new() -> Teller {
        let now = clock::now();
        Teller { start: now, told: now }
    }

    fn tell(&mut self, done: u64, total: u64, told: &mut dyn FnMut(u64)) {
        let now = clock::now();
        if now < self.told + TELL_EVERY || done == 0 {
            return;
        }
        self.told = now;
        let left = (now - self.start).as_secs_f64() * total.saturating_sub(done) as f64 / done as f64;
        told(left.ceil() as u64);
    }
}

#[cfg(test)]
mod tests {
    use std::fs::File;
    use std::os::unix::fs::PermissionsExt;

    use super::*;
    use crate::sim::Folder;
    use crate::sim::disk::{FakeDisk, Faults};
    use crate::wal::claim::{Claimed, ETCD_NAME, WAL_NAME, claim, identify};
    use crate::wal::disk::DiskFile;
    use crate::wal::file_disk::FileDisk;
    use crate::wal::record::SegmentHeader;

    const IDENTITY: Identity = Identity { cluster_id: 5, member_id: 6 };

    #[derive(Default)]
    struct Nothing;

    impl Rebuild for Nothing {
        fn begin(&mut self, _: &Meta) {}

        fn leases(&mut self, _: Vec<StoredLease>) -> Result<(), String> {
            Ok(())
        }

        fn row(&mut self, _: Row) -> Result<(), String> {
            Ok(())
        }

        fn end_rows(&mut self) -> Result<Vec<ChangeId>, String> {
            Ok(Vec::new())
        }

        fn entry(&mut self, _: &Entry) -> Result<(), String> {
            Ok(())
        }
    }

    fn refusal(data: &Path) -> String {
        let recovered = claim(data, None, || IDENTITY)
            .and_then(|claimed| recover(&claimed.files, &mut Nothing, &mut |_| {}).map(drop));
        recovered.unwrap_err().0
    }

    fn start(data: &Path) -> (Claimed, Recovered<FileDisk>) {
        let claimed = claim(data, None, || IDENTITY).unwrap();
        let recovered = recover(&claimed.files, &mut Nothing, &mut |_| {}).unwrap();
        (claimed, recovered)
    }

    #[test]
    fn a_directory_is_made_for_its_owner_alone_and_keeps_its_ids() {
        let data = Folder::new("recovery-new");
        drop(start(&data.0));
        let mode = std::fs::metadata(&data.0).unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o700);
        let claimed = claim(&data.0, None, || panic!("it has ids")).unwrap();
        assert_eq!(claimed.files.identity, IDENTITY);
        let recovered = recover(&claimed.files, &mut Nothing, &mut |_| {}).unwrap();
        assert_eq!((recovered.meta.position, recovered.resume.last), (Position(0), Position(0)));
    }

    #[test]
    fn a_second_process_with_the_same_log_is_refused_though_its_data_directory_is_a_copy() {
        let (data, copy, log) = (Folder::new("log-locked"), Folder::new("log-copy"), Folder::new("log-log"));
        let first = claim(&data.0, Some(&log.0), || IDENTITY).unwrap();
        let refused = claim(&copy.0, Some(&log.0), || IDENTITY).unwrap_err().0;
        assert!(refused.starts_with("another process uses ") && refused.ends_with("with --wal-dir"), "{refused}");
        drop(first);
        assert!(claim(&copy.0, Some(&log.0), || IDENTITY).is_ok());
    }

    #[test]
    fn a_log_is_locked_wherever_it_lies_and_by_whatever_path_it_is_named() {
        let (data, other, link) = (Folder::new("log-inside"), Folder::new("log-named"), Folder::new("log-link"));
        let first = claim(&data.0, None, || IDENTITY).unwrap();
        std::os::unix::fs::symlink(data.0.join(WAL_NAME), &link.0).unwrap();
        for log in [data.0.join(WAL_NAME), link.0.clone()] {
            let refused = claim(&other.0, Some(&log), || IDENTITY).unwrap_err().0;
            assert!(refused.starts_with("another process uses ") && refused.ends_with("with --wal-dir"), "{refused}");
        }
        drop(first);
        // The log may lie beside the rest, by whatever path.
        for log in [data.0.clone(), data.0.join(WAL_NAME).join("..")] {
            claim(&data.0, Some(&log), || IDENTITY).unwrap();
        }
        std::fs::remove_file(&link.0).unwrap();
    }

    #[test]
    fn a_second_process_is_refused() {
        let data = Folder::new("recovery-locked");
        let first = start(&data.0);
        assert!(refusal(&data.0).contains("another process uses"), "{}", refusal(&data.0));
        drop(first);
        start(&data.0);
    }

    #[test]
    fn what_is_not_ours_is_named_and_left_alone() {
        let data = Folder::new("recovery-foreign");
        std::fs::create_dir_all(data.0.join(ETCD_NAME)).unwrap();
        assert!(refusal(&data.0).contains("is a data directory of etcd itself"));
        std::fs::remove_dir(data.0.join(ETCD_NAME)).unwrap();
        std::fs::write(data.0.join("notes.txt"), "mine").unwrap();
        assert!(refusal(&data.0).contains("holds notes.txt, which is not tarsier's"));
        let names: Vec<_> = std::fs::read_dir(&data.0).unwrap().collect();
        assert_eq!(names.len(), 1, "nothing was made beside it");
    }

    #[test]
    fn a_path_that_cannot_be_a_directory_is_named_with_what_to_do() {
        let data = Folder::new("recovery-path");
        std::fs::create_dir_all(&data.0).unwrap();
        let file = data.0.join("file");
        std::fs::write(&file, "mine").unwrap();
        assert!(refusal(&file).ends_with("/file is a file: name a directory"), "{}", refusal(&file));
        let below = refusal(&file.join("data"));
        assert!(below.ends_with("name a directory"), "{below}");
        let missing = cannot("open", &file, &io::ErrorKind::NotFound.into());
        assert!(missing.0.ends_with("name a path that exists"), "{missing}");
    }

    #[test]
    fn each_missing_or_damaged_file_is_named() {
        let data = Folder::new("recovery-damaged");
        drop(start(&data.0));
        let identity = std::fs::read(data.0.join(identity::FILE_NAME)).unwrap();
        std::fs::remove_file(data.0.join(identity::FILE_NAME)).unwrap();
        let line = refusal(&data.0);
        assert!(line.contains("the file tarsier is missing") && line.ends_with("tarsier salvage"), "{line}");
        std::fs::write(data.0.join(identity::FILE_NAME), &identity[..40]).unwrap();
        assert!(refusal(&data.0).contains("tarsier is damaged"));
        std::fs::write(data.0.join(identity::FILE_NAME), &identity).unwrap();

        let checkpoint = data.0.join(checkpoint::FILE_NAME);
        let whole = std::fs::read(&checkpoint).unwrap();
        std::fs::write(&checkpoint, b"").unwrap();
        assert!(refusal(&data.0).contains("checkpoint.redb is damaged: it is empty"));
        for length in [1, 100, 5_000, whole.len() / 2, whole.len() - 1] {
            std::fs::write(&checkpoint, &whole[..length]).unwrap();
            let line = refusal(&data.0);
            assert!(
                line.contains("checkpoint.redb is damaged") && line.contains("tarsier salvage"),
                "{length}: {line}"
            );
        }
        std::fs::write(&checkpoint, [b'#'; 9_000]).unwrap();
        assert!(refusal(&data.0).contains("checkpoint.redb is damaged"));
        std::fs::remove_file(&checkpoint).unwrap();
        std::fs::write(data.0.join(WAL_NAME).join("0000000000000001.wal"), b"log").unwrap();
        assert!(refusal(&data.0).contains("checkpoint.redb is missing"));
        std::fs::remove_file(data.0.join(WAL_NAME).join("0000000000000001.wal")).unwrap();
        // What it held was told to somebody, so an empty store is no answer.
        assert!(refusal(&data.0).contains("checkpoint.redb and the log are missing"), "{}", refusal(&data.0));
    }

    #[test]
    fn a_first_start_that_was_cut_short_anywhere_is_begun_again() {
        let start = |disk: &Arc<FakeDisk>| {
            let identity = identify(&**disk, Path::new("data"), || IDENTITY)?;
            let files = Files::new((disk.clone(), disk.clone()), identity, Path::new("data"), Path::new("wal"));
            recover(&files, &mut Nothing, &mut |_| {}).map(drop)
        };
        for call in 1.. {
            let disk = Arc::new(FakeDisk::new(call));
            disk.set_faults(Faults { cut_call: Some(call), ..Faults::default() });
            let is_cut = start(&disk).is_err();
            disk.power_cut();
            start(&disk).unwrap_or_else(|refused| panic!("cut at call {call}: {refused}"));
            assert_eq!(disk.names().unwrap(), [checkpoint::FILE_NAME, identity::FILE_NAME]);
            if !is_cut {
                break;
            }
        }
    }

    #[test]
    fn a_directory_that_was_begun_and_not_served_is_ours() {
        let data = Folder::new("recovery-begun");
        drop(claim(&data.0, None, || IDENTITY).unwrap());
        std::fs::write(data.0.join(checkpoint::NEW_FILE_NAME), b"half").unwrap();
        let claimed = claim(&data.0, None, || panic!("it has ids")).unwrap();
        recover(&claimed.files, &mut Nothing, &mut |_| {}).unwrap();
    }

    #[test]
    fn the_newest_file_of_the_log_is_missed_and_named() {
        let data = Folder::new("recovery-newest");
        drop(start(&data.0));
        File::create(data.0.join("newest-0000000000000002")).unwrap();
        let before = std::fs::read(data.0.join(checkpoint::FILE_NAME)).unwrap();
        assert!(refusal(&data.0).contains("wal/0000000000000002.wal is missing"), "{}", refusal(&data.0));
        assert!(std::fs::read(data.0.join(checkpoint::FILE_NAME)).unwrap() == before, "and nothing is written");
        // The one before it too, though this one holds nothing yet: the checkpoint has taken nothing.
        let header = SegmentHeader { cluster_id: IDENTITY.cluster_id, sequence: 2, salt: 1, blocks: 256 };
        let mut segment = header.encode().to_vec();
        segment.resize(header.bytes() as usize, 0);
        std::fs::write(data.0.join(WAL_NAME).join("0000000000000002.wal"), segment).unwrap();
        assert!(refusal(&data.0).contains("wal/0000000000000001.wal is missing"), "{}", refusal(&data.0));
    }

    #[test]
    fn a_compaction_that_was_cut_short_is_ended_on_a_full_disk_with_the_space_of_the_reserve() {
        let disk = Arc::new(FakeDisk::new(1));
        let files = Files::new((disk.clone(), disk.clone()), IDENTITY, Path::new("data"), Path::new("wal"));
        let start = || recover(&files, &mut Nothing, &mut |_| {}).map(drop);
        start().unwrap();
        disk.create(checkpoint::COMPACTING_NAME).unwrap();
        disk.create(RESERVE_NAME).unwrap().allocate(16 << 20).unwrap();
        // The file has holes, and what was never written needs space now.
        disk.set_faults(Faults { capacity_bytes: Some(disk.used_bytes()), ..Faults::default() });
        start().unwrap();
        assert_eq!(disk.names().unwrap(), [checkpoint::FILE_NAME]);
    }

    #[test]
    fn a_checkpoint_of_another_directory_is_refused() {
        let (data, other) = (Folder::new("recovery-mine"), Folder::new("recovery-other"));
        drop(start(&data.0));
        drop(claim(&other.0, None, || Identity { cluster_id: 7, member_id: 8 }).unwrap());
        std::fs::copy(data.0.join(checkpoint::FILE_NAME), other.0.join(checkpoint::FILE_NAME)).unwrap();
        assert!(refusal(&other.0).contains("belongs to another data directory"));
    }
}
