//! `tarsier check DIR`: reads everything that a start would read, changes nothing, and says what is whole.
//!
//! A start stops at the first damage; this goes on to the last, so that an operator sees how much there is. It judges what
//! a start judges: the identity, every page, row and record of the checkpoint, every frame of the log, and whether they
//! make one history.

use std::fs::File;
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use rustix::fs::FlockOperation;

use crate::types::{ChangeId, Entry, Position, Revision, Row};

use super::checkpoint::{self, Checkpoint};
use super::checkpoint_rows::{Meta, row_sum};
use super::claim::{LOCK_NAME, WAL_NAME, identity_refused, is_etcds, refuse_unfinished};
use super::disk::Disk;
use super::examine::{Examined, Finding, examine};
use super::file_disk::FileDisk;
use super::identity::{self, Identity, IdentityError};
use super::newest;
use super::overlay::Overlay;
use super::recovery::{Refused, cannot};
use super::replay::{ReplayError, missing_newest, missing_oldest};

/// More lines about one file tell nothing new.
const LINES_MAX: usize = 20;

/// Prints what is whole and what is not. True: all of it is.
///
/// # Errors
/// When there is nothing to check, or somebody writes to it.
pub fn check(data: &Path, wal: Option<&Path>, out: &mut dyn Write) -> Result<bool, Refused> {
    let Opened { data, wal, wal_path, _locks } = open(data, wal)?;
    let mut report = Report { out, damages: 0, wal_path };
    let result = check_disks(&data, &*wal, &mut report);
    result.map_err(|error| Refused(format!("cannot say what was found: {error}")))
}

/// A directory that is looked at. It stays locked for as long as this lives.
pub(super) struct Opened {
    pub data: Arc<FileDisk>,
    pub wal: Arc<FileDisk>,
    pub wal_path: PathBuf,
    pub _locks: [Option<File>; 2],
}

pub(super) fn open(data: &Path, wal: Option<&Path>) -> Result<Opened, Refused> {
    let disk = |path: &Path| FileDisk::open_to_read(path).map(Arc::new).map_err(|error| cannot("open", path, &error));
    let names = disk(data)?.names().map_err(|error| cannot("read", data, &error))?;
    if is_etcds(&names) {
        return Err(Refused(format!(
            "{} is a data directory of etcd itself: etcdutl looks at those, not tarsier",
            data.display()
        )));
    }
    refuse_unfinished(data, &names)?;
    let wal = wal.map_or_else(|| data.join(WAL_NAME), Path::to_owned);
    if !wal.exists() {
        return Err(Refused(format!(
            "{} is missing: put it back, name the log with --wal-dir, or make an empty directory there to go on without it",
            wal.display()
        )));
    }
    let locks = [lock(data)?, lock(&wal)?];
    let opened = Opened { data: disk(data)?, wal: disk(&wal)?, wal_path: wal, _locks: locks };
    // Another version is no damage, and what this one would make of it no truth.
    match Identity::read(&*opened.data) {
        Err(error @ IdentityError::Version(_)) => Err(identity_refused(data, &error)),
        _ => Ok(opened),
    }
}

/// A server that runs writes while we read.
fn lock(directory: &Path) -> Result<Option<File>, Refused> {
    let path = directory.join(LOCK_NAME);
    let file = match File::open(&path) {
        Ok(file) => file,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(cannot("open", &path, &error)),
    };
    match rustix::fs::flock(&file, FlockOperation::NonBlockingLockShared) {
        Ok(()) => Ok(Some(file)),
        Err(rustix::io::Errno::WOULDBLOCK) => Err(Refused(format!(
            "a process uses {}: stop it first, since it changes what is read",
            directory.display()
        ))),
        Err(error) => Err(cannot("lock", &path, &error.into())),
    }
}

pub(super) struct Report<'a> {
    pub out: &'a mut dyn Write,
    pub damages: usize,
    /// Where the log lies, for messages.
    pub wal_path: PathBuf,
}

impl Report<'_> {
    pub fn say(&mut self, line: &str) -> io::Result<()> {
        writeln!(self.out, "{line}")
    }

    pub fn log_damage(&mut self, error: ReplayError) -> io::Result<()> {
        let error = error.under(&self.wal_path);
        self.damage(&error.to_string())
    }

    /// Segments that must be there in front of the first or behind the last one. Of a checkpoint that cannot be read nobody
    /// knows what it had taken.
    pub fn missing_ends(
        &mut self,
        examined: &Examined,
        noted: Option<u64>,
        checkpointed: Option<Position>,
    ) -> io::Result<()> {
        // The first group that was told of is there, or what there is of groups was told to nobody.
        let is_late = examined.frames == 0 || examined.first.is_some_and(|first| first > Position(1));
        let ends = examined.oldest.filter(|_| is_late).zip(checkpointed);
        let oldest = ends.and_then(|(oldest, checkpointed)| missing_oldest(oldest, checkpointed));
        let missing = oldest.into_iter().chain(missing_newest(examined.newest, noted));
        missing.map(|file| ReplayError::Missing { file }).try_for_each(|error| self.log_damage(error))
    }

    pub fn damage(&mut self, line: &str) -> io::Result<()> {
        self.damages += 1;
        match self.damages {
            ..=LINES_MAX => writeln!(self.out, "DAMAGED: {line}"),
            _ => Ok(()),
        }
    }
}

fn check_disks<D: Disk, W: Disk>(data: &Arc<D>, wal: &W, report: &mut Report<'_>) -> io::Result<bool> {
    let identity = match Identity::read(&**data) {
        Ok(identity) => {
            let Identity { cluster_id, member_id } = identity;
            report.say(&format!("{}: whole, cluster {cluster_id:x}, member {member_id:x}", identity::FILE_NAME))?;
            Some(identity)
        }
        Err(error) => {
            report.damage(&identity_refused(Path::new(""), &error).0)?;
            None
        }
    };
    let meta = check_checkpoint(data, report)?;
    if let (Some(identity), Some(meta)) = (identity, &meta)
        && (identity.cluster_id, identity.member_id) != (meta.cluster_id, meta.member_id)
    {
        report.damage(&format!("{} belongs to another data directory", checkpoint::FILE_NAME))?;
    }
    check_log(wal, identity, meta, newest::read(&data.names()?), report)?;
    if report.damages == 0 {
        report.say("everything is whole")?;
    } else {
        let more = report.damages.saturating_sub(LINES_MAX);
        let others = if more > 0 { format!(", {more} of them not shown") } else { String::new() };
        let count = report.damages;
        report.say(&format!(
            "damages found: {count}{others}; tarsier salvage writes what is whole into a new directory"
        ))?;
    }
    Ok(report.damages == 0)
}

fn check_checkpoint<D: Disk>(data: &Arc<D>, report: &mut Report<'_>) -> io::Result<Option<Meta>> {
    let checkpoint = match Checkpoint::open(Arc::new(Overlay(data.clone()))) {
        Ok(checkpoint) => checkpoint,
        Err(error) => {
            report.damage(&error.to_string())?;
            return Ok(None);
        }
    };
    let meta = checkpoint.meta().clone();
    let damages = report.damages;
    let mut sequence = Sequence::new(&meta);
    let (mut rows, mut sum, mut told) = (0, 0_u64, Ok(()));
    let read = checkpoint.inspect(|id, row| {
        if told.is_err() {
            return;
        }
        let name = format!("row {}.{} of {}", id.revision, id.sub, checkpoint::FILE_NAME);
        if let Some(row) = &row {
            (rows, sum) = (rows + 1, sum.wrapping_add(row_sum(row)));
        }
        told = match (&row, sequence.next(id, row.as_ref())) {
            (None, _) => report.damage(&format!("{name} does not fit its checksum")),
            (Some(_), Err(what)) => report.damage(&format!("{name}: {what}")),
            (Some(_), Ok(())) => Ok(()),
        };
    });
    told?;
    if let Err(error) = read {
        report.damage(&error.to_string())?;
    }
    if let Err(what) = sequence.end() {
        report.damage(&format!("{}: {what}", checkpoint::FILE_NAME))?;
    }
    if damages == report.damages && (rows, sum) != (meta.rows, meta.sum) {
        report.damage(&format!(
            "{} holds {rows} rows, and not the {} of its record",
            checkpoint::FILE_NAME,
            meta.rows
        ))?;
    }
    if let Err(error) = checkpoint.leases() {
        report.damage(&error.to_string())?;
    }
    if damages == report.damages {
        let compacted = meta.compacted.map_or("never compacted".to_owned(), |at| format!("compacted at {at}"));
        report.say(&format!(
            "{}: whole, {rows} rows up to revision {}, {compacted}, {} leases, up to group {} of the log",
            checkpoint::FILE_NAME,
            meta.revision,
            meta.leases,
            meta.position.0
        ))?;
    }
    Ok(Some(meta))
}

fn check_log<W: Disk>(
    wal: &W,
    identity: Option<Identity>,
    meta: Option<Meta>,
    noted: Option<u64>,
    report: &mut Report<'_>,
) -> io::Result<()> {
    let damages = report.damages;
    let mut end = meta.as_ref().map(|meta| (meta.position, meta.revision));
    let (mut told, mut torn) = (Ok(()), None);
    let cluster_id = identity.map(|identity| identity.cluster_id);
    let examined = examine(wal, cluster_id.or(meta.as_ref().map(|meta| meta.cluster_id)), &mut |finding| {
        if told.is_err() {
            return;
        }
        match finding {
            Finding::Damage(error) => told = report.log_damage(error),
            Finding::TornTail { file, offset } => torn = Some((file, offset)),
            Finding::Group { file, offset, position, entries } => {
                let Some((last, revision)) = &mut end else { return };
                if position > *last
                    && let Err(what) = continues(*last, position).and_then(|()| follows(revision, &entries))
                {
                    told = report.damage(&format!("{file} at offset {offset}: group {}: {what}", position.0));
                    // One hole is one damage: what lies behind it is judged by itself.
                    *revision = newest(&entries).unwrap_or(*revision);
                }
                *last = position.max(*last);
            }
        }
    })?;
    told?;
    report.missing_ends(&examined, noted, meta.as_ref().map(|meta| meta.position))?;
    if let Some(meta) = meta
        && examined.last.unwrap_or_default() < meta.position
    {
        let (last, position) = (examined.last.unwrap_or_default().0, meta.position.0);
        report.damage(&format!("the log ends at group {last} and the checkpoint at group {position}"))?;
    }
    if damages == report.damages {
        let (segments, frames) = (examined.segments, examined.frames);
        let last = examined.last.unwrap_or_default().0;
        report.say(&format!("the log: whole, {segments} segments, {frames} records up to group {last}"))?;
    }
    if let Some((file, offset)) = torn {
        report.say(&format!(
            "the log ends in {file} at offset {offset} with a record that a crash interrupted; a start cuts it off"
        ))?;
    }
    Ok(())
}

fn newest(entries: &[Entry]) -> Option<Revision> {
    entries.iter().rev().find_map(|entry| match entry {
        Entry::Batch(batch) => Some(batch.revision),
        _ => None,
    })
}

/// Whether a group is the next one. What lies between may be leases and alarms alone, which no revision misses.
pub(super) fn continues(last: Position, position: Position) -> Result<(), String> {
    if position == last.next() { Ok(()) } else { Err(format!("it follows group {}", last.0)) }
}

/// Whether the batches of a group continue the revisions before them.
pub(super) fn follows(revision: &mut Revision, entries: &[Entry]) -> Result<(), String> {
    for entry in entries {
        if let Entry::Batch(batch) = entry {
            if batch.revision != revision.next() {
                return Err(format!("revision {} follows {revision}", batch.revision));
            }
            *revision = batch.revision;
        }
    }
    Ok(())
}

/// Whether rows are all changes of all revisions from the compacted one on.
pub(super) struct Sequence {
    first: Revision,
    revision: Revision,
    last: Option<ChangeId>,
    /// None behind a row that could not be read, which may have been the last of its revision or not.
    expected: Option<ChangeId>,
}

impl Sequence {
    pub fn new(meta: &Meta) -> Sequence {
        let first = meta.compacted.unwrap_or_default().max(Revision::FIRST.next());
        let expected = Some(ChangeId { revision: first, sub: 0 });
        Sequence { first, revision: meta.revision, last: None, expected }
    }

    pub fn next(&mut self, id: ChangeId, row: Option<&Row>) -> Result<(), String> {
        let is_in_order = self.last.is_none_or(|last| last < id) && id.revision <= self.revision;
        self.last = Some(id);
        if !is_in_order {
            return Err("it stands out of its order".to_owned());
        }
        if id.revision < self.first {
            return Ok(());
        }
        let expected = self.expected.replace(match row {
            Some(row) if row.is_last => ChangeId { revision: id.revision.next(), sub: 0 },
            _ => ChangeId { revision: id.revision, sub: id.sub + 1 },
        });
        if row.is_none() {
            self.expected = None;
        }
        match expected {
            Some(expected) if expected != id => {
                Err(format!("change {} of revision {} is missing before it", expected.sub, expected.revision))
            }
            _ => Ok(()),
        }
    }

    pub fn end(&self) -> Result<(), String> {
        match self.expected {
            Some(expected) if expected.revision <= self.revision => {
                Err(format!("change {} of revision {} is missing", expected.sub, expected.revision))
            }
            _ => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests;
