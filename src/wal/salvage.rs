//! `tarsier salvage DIR NEW`: writes what can be proven whole into a new directory, and prints what was left out.
//!
//! What is proven: rows and records whose checksums fit. Nothing is guessed, so a change that cannot be read is gone, and
//! what it superseded may show again where it still stands; each change that is lost is printed.
//!
//! The new directory tells no history with a hole. It is compacted at the first revision from which on every change of
//! every revision is there, up to its end; a batch that the checkpoint lacks is taken from the log, where it still is.
//! Groups of the log are taken behind the checkpoint as long as they continue it; from the first one that does not, the
//! rest is left out. The directory that is read is not changed.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write as _;
use std::io::{self, Write};
use std::path::Path;
use std::sync::Arc;

use crate::types::{Batch, Change, ChangeId, Entry, KeyValue, LeaseId, Position, Revision, Row, StoredLease};

use super::check::{Opened, Report, continues, follows, open};
use super::checkpoint::{self, Checkpoint};
use super::checkpoint_backend::CheckpointError;
use super::checkpoint_remains::{self, Remains};
use super::checkpoint_rows::Meta;
use super::claim::{claim_unfinished, is_empty};
use super::disk::Disk;
use super::examine::{Examined, Finding, examine};
use super::file_disk::FileDisk;
use super::identity::{self, Identity};
use super::newest;
use super::overlay::Overlay;
use super::recovery::{Refused, cannot};

/// Writes a new directory from what is whole in an old one. True: nothing was left out. `new_identity` is for a directory
/// of which nobody knows any more who it was.
///
/// # Errors
/// When nothing can be read, or the new directory cannot be written or holds something already.
pub fn salvage(
    data: &Path,
    wal: Option<&Path>,
    new: &Path,
    new_identity: impl FnOnce() -> Identity,
    out: &mut dyn Write,
) -> Result<bool, Refused> {
    // Before the long work; whoever makes it looks again.
    if FileDisk::open(new).and_then(|disk| disk.names()).is_ok_and(|names| !is_empty(&names)) {
        return Err(Refused(format!("{} is not empty: name a directory that does not exist yet", new.display())));
    }
    let read_from = data;
    let Opened { data, wal, wal_path, _locks } = open(data, wal)?;
    for directory in [read_from, &wal_path] {
        if lies_in(new, directory) {
            let (new, directory) = (new.display(), directory.display());
            return Err(Refused(format!(
                "{new} lies in {directory}, which must not change: name a directory outside of it"
            )));
        }
    }
    let mut report = Report { out, damages: 0, wal_path };
    let telling = |error: io::Error| Refused(format!("cannot say what is left out: {error}"));
    let saved = gather(&data, &*wal, &mut report).map_err(telling)??;
    let identity = saved.identity.unwrap_or_else(new_identity);
    let unfinished = claim_unfinished(new, || identity)?;
    saved.write(unfinished.0.files.data.clone(), identity)?;
    unfinished.end().map_err(|error| cannot("write to", new, &error))?;
    let history = saved.meta.compacted.map_or("all history".to_owned(), |at| format!("history from revision {at} on"));
    let said = report.say(&format!(
        "{}: {} changes up to revision {}, {history}",
        new.display(),
        saved.rows.len(),
        saved.meta.revision
    ));
    said.map_err(telling)?;
    Ok(report.damages == 0)
}

/// By what they are: a path may lead through links and dots. `new` need not exist yet.
fn lies_in(new: &Path, directory: &Path) -> bool {
    let Ok(directory) = directory.canonicalize() else { return false };
    let new = std::path::absolute(new).unwrap_or_else(|_| new.to_owned());
    let there = new.ancestors().find_map(|path| path.canonicalize().ok());
    there.is_some_and(|there| there.starts_with(directory))
}

/// What is whole.
#[derive(Debug)]
struct Saved {
    identity: Option<Identity>,
    meta: Meta,
    rows: BTreeMap<ChangeId, Row>,
    leases: BTreeMap<LeaseId, StoredLease>,
}

/// What the log holds that is whole.
#[derive(Default)]
struct FromLog {
    batches: BTreeMap<Revision, Arc<Batch>>,
    /// The groups, and how many places were damaged before each.
    groups: Vec<(Position, Vec<Entry>, usize)>,
    examined: Examined,
}

fn gather<D: Disk, W: Disk>(data: &Arc<D>, wal: &W, report: &mut Report<'_>) -> io::Result<Result<Saved, Refused>> {
    let identity = match Identity::read(&**data) {
        Ok(identity) => Some(identity),
        Err(_) => {
            report.damage(&format!("{} cannot be read, and its ids are taken from elsewhere", identity::FILE_NAME))?;
            None
        }
    };
    let read = read_checkpoint(data, report)?;
    let checkpointed = read.as_ref().map(|(meta, ..)| meta.position);
    let of_checkpoint = read.as_ref().map(|(meta, ..)| meta.cluster_id);
    let log = read_log(wal, identity.map(|identity| identity.cluster_id).or(of_checkpoint), report)?;
    report.missing_ends(&log.examined, newest::read(&data.names()?), checkpointed)?;
    let (meta, rows, leases) = match read {
        Some(read) => read,
        None if log.batches.is_empty() => {
            return Ok(Err(Refused("neither the checkpoint nor the log holds anything that is whole".to_owned())));
        }
        None => (Meta::new(log.examined.cluster_id.unwrap_or_default(), 0), BTreeMap::new(), BTreeMap::new()),
    };
    // A checkpoint knows both ids, the log one.
    let identity = identity
        .or((meta.member_id != 0).then_some(Identity { cluster_id: meta.cluster_id, member_id: meta.member_id }));
    let mut saved = Saved { identity, meta, rows, leases };
    saved.fill_from(&log, report)?;
    saved.continue_with(&log, report)?;
    saved.leave_out_holes(report)?;
    Ok(if saved.rows.is_empty() && report.damages > 0 {
        Err(Refused("nothing that is whole is left".to_owned()))
    } else {
        Ok(saved)
    })
}

fn read_log<W: Disk>(wal: &W, cluster_id: Option<u64>, report: &mut Report<'_>) -> io::Result<FromLog> {
    let mut log = FromLog::default();
    let (mut told, mut damages) = (Ok(()), 0);
    let examined = examine(wal, cluster_id, &mut |finding| match finding {
        Finding::Damage(error) => {
            damages += 1;
            if told.is_ok() {
                told = report.log_damage(error);
            }
        }
        Finding::TornTail { .. } => {}
        Finding::Group { position, entries, .. } => {
            for entry in &entries {
                if let Entry::Batch(batch) = entry {
                    log.batches.insert(batch.revision, batch.clone());
                }
            }
            log.groups.push((position, entries, damages));
        }
    })?;
    told?;
    log.examined = examined;
    Ok(log)
}

/// What a checkpoint holds that is whole.
type FromCheckpoint = (Meta, BTreeMap<ChangeId, Row>, BTreeMap<LeaseId, StoredLease>);

fn read_checkpoint<D: Disk>(data: &Arc<D>, report: &mut Report<'_>) -> io::Result<Option<FromCheckpoint>> {
    let checkpoint = match Checkpoint::open(Arc::new(Overlay(data.clone()))) {
        Ok(checkpoint) => checkpoint,
        Err(error @ (CheckpointError::Damaged(_) | CheckpointError::Full(_))) => {
            report.damage(&error.to_string())?;
            return read_remains(data, report);
        }
        Err(error) => {
            report.damage(&error.to_string())?;
            return Ok(None);
        }
    };
    let (mut rows, mut lost) = (BTreeMap::new(), BTreeSet::new());
    let read = checkpoint.inspect(|id, row| match row {
        Some(row) => drop(rows.insert(id, row)),
        None => drop(lost.insert(id)),
    });
    if let Err(error) = read {
        report.damage(&format!("{error}; the changes behind it are left out"))?;
    }
    tell_lost(&rows, &lost, checkpoint.meta(), report)?;
    let leases = match checkpoint.leases() {
        Ok(leases) => leases.into_iter().map(|stored| (stored.lease.id, stored)).collect(),
        Err(error) => {
            report.damage(&format!("{error}; {LEASES_LEFT_OUT}"))?;
            BTreeMap::new()
        }
    };
    Ok(Some((checkpoint.meta().clone(), rows, leases)))
}

const LEASES_LEFT_OUT: &str = "all its leases are left out, and their keys stay until they are deleted";

/// What is left of a checkpoint whose pages contradict each other.
fn read_remains<D: Disk>(data: &Arc<D>, report: &mut Report<'_>) -> io::Result<Option<FromCheckpoint>> {
    let remains = match data.open(checkpoint::FILE_NAME).and_then(|file| checkpoint_remains::read(&file)) {
        Ok(Some(Remains { is_last_commit, meta, rows, lost, leases })) => {
            if !is_last_commit {
                report.damage(&format!(
                    "{} does not say any more which commit was its last: the newest that is found is taken, up to group {}",
                    checkpoint::FILE_NAME,
                    meta.position.0
                ))?;
            }
            tell_lost(&rows, &lost, &meta, report)?;
            if leases.is_none() {
                report
                    .damage(&format!("the leases of {} are not all there; {LEASES_LEFT_OUT}", checkpoint::FILE_NAME))?;
            }
            Some((meta, rows, leases.unwrap_or_default()))
        }
        Ok(None) => None,
        Err(error) => {
            report.damage(&CheckpointError::io(error).to_string())?;
            None
        }
    };
    Ok(remains)
}

/// Says what is missing of the changes that the record counts.
fn tell_lost(
    rows: &BTreeMap<ChangeId, Row>,
    lost: &BTreeSet<ChangeId>,
    meta: &Meta,
    report: &mut Report<'_>,
) -> io::Result<()> {
    for ChangeId { revision, sub } in lost {
        report.damage(&format!("change {sub} of revision {revision} does not fit its checksum and is left out"))?;
    }
    let found = rows.len() + lost.len();
    if found as u64 != meta.rows {
        report.damage(&format!("{} shows {found} of its {} changes", checkpoint::FILE_NAME, meta.rows))?;
    }
    Ok(())
}

impl Saved {
    fn first(&self) -> Revision {
        self.meta.compacted.unwrap_or_default().max(Revision::FIRST.next())
    }

    /// Takes from the log what the checkpoint should hold and does not.
    fn fill_from(&mut self, log: &FromLog, report: &mut Report<'_>) -> io::Result<()> {
        let mut found = String::new();
        let end = self.meta.revision;
        let held = log.batches.range(self.first()..).map(|(_, batch)| batch);
        for batch in held.take_while(|batch| batch.revision <= end) {
            if !is_complete(&self.rows, batch.revision) {
                self.insert(batch);
                let _ = write!(found, " {}", batch.revision);
            }
        }
        if found.is_empty() { Ok(()) } else { report.say(&format!("the log still holds revisions{found}")) }
    }

    fn insert(&mut self, batch: &Batch) {
        for (sub, change) in batch.changes.iter().enumerate() {
            let id = ChangeId { revision: batch.revision, sub: sub as u32 };
            let is_last = sub + 1 == batch.changes.len();
            self.rows.insert(id, Row { id, is_last, time: batch.time, change: change.clone() });
        }
    }

    /// Takes the groups behind the checkpoint, up to the first that does not continue it or that damage lies before.
    fn continue_with(&mut self, log: &FromLog, report: &mut Report<'_>) -> io::Result<()> {
        let is_known = |position: Position| position <= self.meta.position;
        // Damage in front of a group that the checkpoint holds as well took nothing away. Without any such group, number
        // and revisions tell whether the first one behind continues it; the revisions alone where there is no checkpoint.
        let known = log.groups.iter().rfind(|(position, ..)| is_known(*position));
        let damages_known = known.or(log.groups.first()).map_or(0, |(.., damages)| *damages);
        let behind: Vec<_> = log.groups.iter().filter(|(position, ..)| !is_known(*position)).collect();
        let mut left_out = 0;
        for (position, entries, damages) in behind {
            let mut revision = self.meta.revision;
            let at = self.meta.position;
            let is_next =
                (at == Position(0) || continues(at, *position).is_ok()) && follows(&mut revision, entries).is_ok();
            if left_out > 0 || *damages > damages_known || !is_next {
                left_out += 1;
                continue;
            }
            for entry in entries {
                match entry {
                    Entry::Batch(batch) => self.insert(batch),
                    Entry::Lease { lease, granted: true } => {
                        self.leases.insert(lease.id, StoredLease { lease: *lease, remaining: None });
                    }
                    Entry::Lease { lease, granted: false } => drop(self.leases.remove(&lease.id)),
                    // One whose lease was left out with the others has nothing to stand at.
                    Entry::Remaining { lease, seconds } => {
                        if let Some(stored) = self.leases.get_mut(lease) {
                            stored.remaining = *seconds;
                        }
                    }
                    Entry::Compaction(_) | Entry::Alarm { .. } | Entry::Start { .. } | Entry::Stop => {}
                }
                self.meta.note(entry);
            }
            self.meta.position = *position;
        }
        match left_out {
            0 => Ok(()),
            _ => report
                .damage(&format!("{left_out} groups of the log behind group {} are left out", self.meta.position.0)),
        }
    }

    /// Compacts where history has no hole any more, or ends where it begins to have one that nothing follows.
    fn leave_out_holes(&mut self, report: &mut Report<'_>) -> io::Result<()> {
        let first = self.first();
        let told = self.meta.revision;
        while self.meta.revision >= first && !is_complete(&self.rows, self.meta.revision) {
            self.meta.revision = self.meta.revision.previous();
        }
        if self.meta.revision < first {
            return self.keep_newest(told, report);
        }
        if self.meta.revision < told {
            let end = self.meta.revision;
            self.rows.retain(|id, _| id.revision <= end);
            report.damage(&format!("the revisions behind {end}, up to {told}, are not whole and left out"))?;
        }
        let mut from = self.meta.revision;
        while from > first && is_complete(&self.rows, from.previous()) {
            from = from.previous();
        }
        if from > first {
            self.meta.compacted = Some(from);
            report
                .damage(&format!("history before revision {from} has holes: the new directory is compacted there"))?;
        }
        Ok(())
    }

    /// No revision of history is whole. What is left becomes the state at the newest one that is known.
    fn keep_newest(&mut self, told: Revision, report: &mut Report<'_>) -> io::Result<()> {
        let Some(newest) = self.rows.keys().next_back().map(|id| id.revision) else { return Ok(()) };
        let changes: Vec<Row> = self.rows.split_off(&ChangeId { revision: newest, sub: 0 }).into_values().collect();
        let time = changes[0].time;
        let changes = changes.into_iter().enumerate().map(|(sub, row)| renumbered(row, sub as u32));
        let batch = Batch { revision: newest, time, changes: changes.collect() };
        self.insert(&batch);
        (self.meta.revision, self.meta.compacted) = (newest, Some(newest));
        report
            .damage(&format!("no revision up to {told} is whole: the new directory ends at {newest}, without history"))
    }

    fn write<D: Disk>(&self, data: Arc<D>, identity: Identity) -> Result<(), Refused> {
        let Identity { cluster_id, member_id } = identity;
        // The new log begins with its first group.
        let meta = Meta { cluster_id, member_id, position: Position(0), ..self.meta.clone() };
        let mut checkpoint = Checkpoint::create(data, Meta::new(cluster_id, member_id))?;
        checkpoint.fill(meta, self.rows.values().cloned(), self.leases.values().copied())?;
        Ok(())
    }
}

/// A change that has become another one of its revision.
fn renumbered(row: Row, sub: u32) -> Change {
    match row.change {
        Change::Put { kv, previous } => {
            let kv = KeyValue::new(
                kv.key(),
                kv.value(),
                kv.create_revision(),
                kv.mod_revision(),
                sub,
                kv.version(),
                kv.lease(),
            );
            Change::Put { kv, previous }
        }
        delete @ Change::Delete { .. } => delete,
    }
}

/// Whether every change of a revision is there.
fn is_complete(rows: &BTreeMap<ChangeId, Row>, revision: Revision) -> bool {
    let all = ChangeId { revision, sub: 0 }..=ChangeId { revision, sub: u32::MAX };
    let mut expected = 0;
    let mut is_over = false;
    for (id, row) in rows.range(all) {
        if id.sub != expected || is_over {
            return false;
        }
        (expected, is_over) = (expected + 1, row.is_last);
    }
    is_over
}
