//! The checkpoint: rows of changes in one redb file, with what is true of them all in the same transaction.
//!
//! The log is the truth; the checkpoint is what lets the log be short. A commit takes whole groups and says up to which
//! position the rows hold them: whenever the power goes, rows and position are of one moment, and the log behind that
//! position has the rest. redb writes copies and turns one pointer, in two phases (what quick repair asks for), so that no
//! cut leaves it between two states.
//!
//! redb does not look for bits that rot: so each row carries its checksum, the record their number and sum, and whoever
//! loads them reads every one. Opening checks the sums of redb's own pages as well, because redb panics over pages that
//! contradict each other. Both are done on two cores ([`checkpoint_pages`](super::checkpoint_pages)) while the file is as
//! the last commit left it, and by redb itself otherwise.
//!
//! The file appears under its name only when its first record is durable, so one that is there is whole or damaged.

use std::collections::VecDeque;
use std::fmt;
use std::io;
use std::ops::Bound;
use std::sync::Arc;

use redb::{Database, ReadableDatabase, TableDefinition};

use crate::metrics::Histogram;
use crate::metrics::histogram::DISK;
use crate::types::{Batch, ChangeId, Entry, LeaseId, Position, Revision, Row, StoredLease};

use super::checkpoint_backend::{CheckpointError, RedbError, Shared, database};
use super::checkpoint_leases::{self, LEASES};
use super::checkpoint_load;
use super::checkpoint_pace::Pace;
use super::checkpoint_pages::{self, Page};
use super::checkpoint_rows::{Meta, decode_lease, decode_row, encode_lease, encode_row, is_whole, stored_crc};
use super::disk::{Disk, DiskFile};

pub const FILE_NAME: &str = "checkpoint.redb";
/// Is there while the file is compacted. redb does that in single steps: pages and the pointer to them in one sync. When it
/// fails and the process ends, as it must, the page cache may show a file that the disk lacks, and the kernel takes it for
/// clean; redb would open it and make the pointer alone durable. So the start behind such an end writes the file again.
pub const COMPACTING_NAME: &str = "checkpoint.compacting";
/// The file while it is being made.
pub const NEW_FILE_NAME: &str = "checkpoint.redb.new";

pub(super) const ROWS: TableDefinition<(u64, u32), &[u8]> = TableDefinition::new("rows");
pub(super) const META_TABLE: &str = "meta";
const META: TableDefinition<&str, &[u8]> = TableDefinition::new(META_TABLE);
pub(super) const META_KEY: &str = "state";
/// The rows of one transaction. redb writes a page twice that has to leave the cache before its transaction is committed:
/// 760 bytes a put of 256 bytes at 32 MiB a transaction, 385 at 4 MiB, and 400 at 1 MiB for the path to the end of the tree.
const TRANSACTION_BYTES: usize = 4 << 20;
/// What a batch that waits to be written may keep of previous versions.
const PREVIOUS_BYTES_MAX: usize = 64 << 10;
/// Rows that are forgotten in one transaction: each may lie on a page of its own.
const FORGET_ROWS: usize = 1_000;
/// Ids are sorted in pieces of so many comparisons, 50 us of them.
const COMPARISONS_AT_ONCE: u32 = 4_096;
/// A file that is written again goes through memory in pieces of this size.
const PIECE_BYTES: usize = 1 << 20;

/// What the thread was told and has not written yet.
#[derive(Debug, Default)]
pub struct Gathered {
    groups: VecDeque<Group>,
    /// Rows that nothing needs any more.
    removed: Vec<ChangeId>,
    bytes: usize,
}

#[derive(Debug)]
struct Group {
    position: Position,
    entries: Vec<Entry>,
    bytes: usize,
}

impl Gathered {
    /// A group that is durable in the log.
    pub fn add(&mut self, position: Position, mut entries: Vec<Entry>) {
        entries.iter_mut().for_each(let_go_of_previous);
        let bytes = entries.iter().map(entry_bytes).sum();
        self.bytes += bytes;
        self.groups.push_back(Group { position, entries, bytes });
    }

    pub fn remove(&mut self, mut ids: Vec<ChangeId>) {
        self.removed.append(&mut ids);
    }

    /// What the log holds of it, about.
    pub fn bytes(&self) -> usize {
        self.bytes
    }

    pub fn removed(&self) -> usize {
        self.removed.len()
    }

    /// Brings the first of them, so many, into the order of the tree, so that a page is touched once. What supersedes a change
    /// is newer than it is, so that this order is also safe wherever a crash cuts it.
    pub fn sort_removed(&mut self, rows: usize, pace: &Pace) {
        let mut comparisons = 0;
        self.removed[..rows].sort_unstable_by(|one, other| {
            comparisons += 1;
            if comparisons % COMPARISONS_AT_ONCE == 0 {
                pace.rest();
            }
            one.cmp(other)
        });
    }

    /// The checkpoint has no row of the first of them any more.
    pub fn forgot(&mut self, rows: usize) {
        self.removed.drain(..rows);
    }

    /// Of the youngest group.
    pub fn last_position(&self) -> Option<Position> {
        self.groups.back().map(|group| group.position)
    }

    pub fn has_groups(&self) -> bool {
        !self.groups.is_empty()
    }

    /// How many groups from the front make one transaction.
    fn piece(&self) -> usize {
        let mut bytes = 0;
        let fit = self.groups.iter().take_while(|group| {
            bytes += group.bytes;
            bytes <= TRANSACTION_BYTES
        });
        fit.count().max(1).min(self.groups.len())
    }
}

/// What one transaction adds.
#[derive(Default)]
struct Additions {
    batches: Vec<Arc<Batch>>,
    /// What becomes of leases, in its order.
    leases: Vec<Entry>,
}

/// A row is written without the previous version, and until then nobody else may need that any more: a delete of many keys
/// and a compaction set all their values free, but for this batch.
fn let_go_of_previous(entry: &mut Entry) {
    if let Entry::Batch(batch) = entry
        && batch.previous_bytes() > PREVIOUS_BYTES_MAX
    {
        *batch = Arc::new(batch.without_previous());
    }
}

fn entry_bytes(entry: &Entry) -> usize {
    match entry {
        Entry::Batch(batch) => batch.bytes(),
        Entry::Compaction(_)
        | Entry::Alarm { .. }
        | Entry::Lease { .. }
        | Entry::Remaining { .. }
        | Entry::Start { .. }
        | Entry::Stop => size_of::<Entry>(),
    }
}

/// Faults that tests plant to see whether they are found.
#[cfg(test)]
#[derive(Clone, Copy, Default, Debug)]
pub(crate) struct Planted {
    /// The rows are committed in one transaction and the record in a second one.
    pub record_apart: bool,
    /// The revision is that of the newest row, and a compaction at a tombstone takes its row along.
    pub revision_of_newest_row: bool,
}

/// The open checkpoint.
pub struct Checkpoint<D: Disk> {
    disk: Arc<D>,
    /// None only between a failed commit and the next opening.
    database: Option<Database>,
    shared: Arc<Shared>,
    meta: Meta,
    /// The pages of the rows, in order, if they were found whole at the opening and nothing was written since.
    leaves: Option<Vec<Page>>,
    #[cfg(test)]
    pub(crate) planted: Planted,
}

impl<D: Disk> fmt::Debug for Checkpoint<D> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Checkpoint").field("meta", &self.meta).finish_non_exhaustive()
    }
}

impl<D: Disk> Checkpoint<D> {
    /// Makes the file, with a record and no rows. One that was being made when the power went is made anew.
    ///
    /// # Errors
    /// What the disk says.
    pub fn create(disk: Arc<D>, meta: Meta) -> Result<Checkpoint<D>, CheckpointError> {
        let names = disk.names().map_err(CheckpointError::io)?;
        if names.iter().any(|name| name == NEW_FILE_NAME) {
            disk.remove(NEW_FILE_NAME).map_err(CheckpointError::io)?;
        }
        drop(disk.create(NEW_FILE_NAME).map_err(CheckpointError::io)?);
        let shared = Arc::new(Shared::new(Arc::new(Pace::new()), Arc::new(Histogram::new(DISK))));
        let database = database(&*disk, NEW_FILE_NAME, &shared, false)?;
        let mut checkpoint = Checkpoint {
            disk,
            database: Some(database),
            shared,
            meta,
            leaves: None,
            #[cfg(test)]
            planted: Planted::default(),
        };
        let meta = checkpoint.meta.clone();
        checkpoint.write(&Additions::default(), &[], meta)?;
        checkpoint.disk.rename(NEW_FILE_NAME, FILE_NAME).map_err(CheckpointError::io)?;
        checkpoint.disk.sync_names().map_err(CheckpointError::io)?;
        Ok(checkpoint)
    }

    /// Before the file is opened for the first time: makes what it shows durable, when a compaction may have left it a mere
    /// show.
    ///
    /// # Errors
    /// What the disk says.
    pub fn end_compaction(disk: &D) -> Result<(), CheckpointError> {
        let cured = (|| {
            if !disk.names()?.iter().any(|name| name == COMPACTING_NAME) {
                return Ok(());
            }
            let file = disk.open(FILE_NAME)?;
            let length = file.len()?;
            let mut bytes = vec![0; PIECE_BYTES];
            let mut offset = 0;
            while offset < length {
                let piece = &mut bytes[..PIECE_BYTES.min((length - offset) as usize)];
                file.read_at(offset, piece)?;
                file.write_at(offset, piece)?;
                offset += piece.len() as u64;
            }
            file.sync_data()?;
            forget_compaction(disk)
        })();
        cured.map_err(CheckpointError::io)
    }

    /// Opens the file that is there and checks the structure of all of it. Nothing is written until
    /// [`Checkpoint::release_held`].
    ///
    /// # Errors
    /// When the disk fails or the file is damaged. The rows are looked at by [`Checkpoint::load`].
    pub fn open(disk: Arc<D>) -> Result<Checkpoint<D>, CheckpointError> {
        let file = disk.open(FILE_NAME).map_err(CheckpointError::io)?;
        let leaves = checkpoint_pages::check(&file)?;
        let is_known = leaves.is_some();
        Checkpoint::open_as(disk, leaves, !is_known)
    }

    /// `check` lets redb look at all pages.
    fn open_as(disk: Arc<D>, leaves: Option<Vec<Page>>, check: bool) -> Result<Checkpoint<D>, CheckpointError> {
        let shared = Arc::new(Shared::new(Arc::new(Pace::new()), Arc::new(Histogram::new(DISK))));
        // An empty file would be taken for a new one.
        let length = disk.open(FILE_NAME).and_then(|file| file.len()).map_err(CheckpointError::io)?;
        if length == 0 {
            return Err(CheckpointError::Damaged("it is empty".into()));
        }
        shared.held.begin(length);
        let database = database(&*disk, FILE_NAME, &shared, check)?;
        let meta = read_meta(&database).map_err(|error| error.into_checkpoint(&shared))?;
        Ok(Checkpoint {
            disk,
            database: Some(database),
            shared,
            meta,
            leaves,
            #[cfg(test)]
            planted: Planted::default(),
        })
    }

    /// False from an error on until the next commit.
    pub fn is_open(&self) -> bool {
        self.database.is_some()
    }

    /// Behind a page that could not be read: redb would take the next commit for one that failed.
    pub fn close(&mut self) {
        self.database = None;
    }

    pub fn meta(&self) -> &Meta {
        &self.meta
    }

    pub fn file_bytes(&self) -> Result<u64, CheckpointError> {
        self.disk.open(FILE_NAME).and_then(|file| file.len()).map_err(CheckpointError::io)
    }

    pub fn syncs(&self) -> Arc<Histogram> {
        self.shared.syncs.clone()
    }

    /// How many bytes were written to the file since it was opened.
    pub fn written_bytes(&self) -> u64 {
        self.shared.pace.written_bytes()
    }

    /// Slows commits down, so that the log and the event loops hardly feel them.
    pub fn pace(&self) -> &Pace {
        &self.shared.pace
    }

    /// All of what was gathered, and then what is removed is forgotten when `forget` says so.
    #[cfg(test)]
    pub(crate) fn commit(&mut self, gathered: &mut Gathered, forget: bool) -> Result<(), CheckpointError> {
        while gathered.has_groups() {
            self.commit_piece(gathered)?;
        }
        let rows = if forget { gathered.removed() } else { 0 };
        gathered.sort_removed(rows, &self.shared.pace);
        let mut done = 0;
        while done < rows {
            done = self.forget(gathered, done, rows)?;
        }
        gathered.forgot(done);
        Ok(())
    }

    /// Writes as many groups as make one transaction, the oldest first. On an error `gathered` keeps them; after one that is
    /// [`CheckpointError::Full`] it may be tried again.
    ///
    /// # Errors
    /// What the disk says.
    pub fn commit_piece(&mut self, gathered: &mut Gathered) -> Result<(), CheckpointError> {
        let piece = gathered.piece();
        let mut meta = self.meta.clone();
        let mut additions = Additions::default();
        for group in gathered.groups.range(..piece) {
            meta.position = group.position;
            for entry in &group.entries {
                meta.note(entry);
                match entry {
                    Entry::Batch(batch) => additions.batches.push(batch.clone()),
                    Entry::Lease { .. } | Entry::Remaining { .. } => additions.leases.push(entry.clone()),
                    Entry::Compaction(_) | Entry::Alarm { .. } | Entry::Start { .. } | Entry::Stop => {}
                }
            }
        }
        self.write_or_close(&additions, &[], meta)?;
        gathered.bytes -= gathered.groups.drain(..piece).map(|group| group.bytes).sum::<usize>();
        Ok(())
    }

    /// Takes out rows that were removed, in one transaction: of the first `rows` some that are behind `done`. Gives how many of
    /// the first are out with them.
    ///
    /// # Errors
    /// What the disk says.
    pub fn forget(&mut self, gathered: &Gathered, done: usize, rows: usize) -> Result<usize, CheckpointError> {
        let upto = rows.min(done + FORGET_ROWS);
        self.write_or_close(&Additions::default(), &gathered.removed[done..upto], self.meta.clone())?;
        Ok(upto)
    }

    /// redb refuses everything after an error of the disk. Opened anew it stands where it stood before.
    fn write_or_close(
        &mut self,
        additions: &Additions,
        removed: &[ChangeId],
        meta: Meta,
    ) -> Result<(), CheckpointError> {
        self.reopen()?;
        let result = self.write(additions, removed, meta);
        result.map_err(|error| self.close_over(error))
    }

    fn reopen(&mut self) -> Result<(), CheckpointError> {
        if self.database.is_none() {
            self.shared = Arc::new(Shared::new(self.shared.pace.clone(), self.shared.syncs.clone()));
            self.database = Some(database(&*self.disk, FILE_NAME, &self.shared, false)?);
        }
        Ok(())
    }

    /// Writes what opening the file had to. It comes before anything else that is written, and before the log may give up
    /// what the file shows.
    ///
    /// # Errors
    /// What the disk says; it may be tried again.
    pub fn release_held(&self) -> Result<(), CheckpointError> {
        if !self.shared.held.is_holding() {
            return Ok(());
        }
        let file = self.disk.open(FILE_NAME).map_err(CheckpointError::io)?;
        self.shared.held.release(&file).map_err(CheckpointError::io)
    }

    fn close_over(&mut self, error: CheckpointError) -> CheckpointError {
        self.database = None;
        self.shared.error_behind_close(error)
    }

    /// One transaction.
    fn write(&mut self, additions: &Additions, removed: &[ChangeId], mut meta: Meta) -> Result<(), CheckpointError> {
        self.leaves = None;
        self.release_held()?;
        let Some(database) = &self.database else { return Err(CheckpointError::Damaged("it is closed".into())) };
        let shared = &self.shared;
        let result = (|| -> Result<(), RedbError> {
            let mut transaction = database.begin_write()?;
            transaction.set_quick_repair(true);
            {
                let mut rows = transaction.open_table(ROWS)?;
                let mut bytes = Vec::new();
                for batch in &additions.batches {
                    insert(&mut rows, batch, &mut meta, &mut bytes, &shared.pace)?;
                }
                for id in removed {
                    shared.pace.rest();
                    if let Some(row) = rows.remove(row_key(*id))? {
                        meta.rows = meta.rows.wrapping_sub(1);
                        meta.sum = meta.sum.wrapping_sub(u64::from(stored_crc(row.value())));
                    }
                }
            }
            if !additions.leases.is_empty() {
                checkpoint_leases::write(&transaction, &additions.leases)?;
            }
            #[cfg(test)]
            if self.planted.revision_of_newest_row && !removed.is_empty() {
                tests::take_revision_of_newest_row(&mut transaction.open_table(ROWS)?, &mut meta);
            }
            #[cfg(test)]
            if self.planted.record_apart {
                transaction.commit()?;
                transaction = database.begin_write()?;
                transaction.set_quick_repair(true);
            }
            transaction.open_table(META)?.insert(META_KEY, &meta.encode()[..])?;
            transaction.commit()?;
            Ok(())
        })();
        result.map_err(|error| error.into_checkpoint(shared))?;
        self.meta = meta;
        Ok(())
    }

    /// Reads every row, in order, and shows those that are whole. Other threads read and check; this one builds.
    ///
    /// # Errors
    /// At the first row that is not what was written, or when their number or sum is not; or what `show` refuses with.
    pub fn load<E: From<CheckpointError>>(&self, show: impl FnMut(Row) -> Result<(), E>) -> Result<(), E> {
        let Some(database) = &self.database else {
            return Err(CheckpointError::Damaged("it is closed".into()).into());
        };
        let read = match &self.leaves {
            Some(leaves) => {
                let file = self.disk.open(FILE_NAME).map_err(CheckpointError::io)?;
                checkpoint_load::from_pages(&file, leaves, show)?
            }
            None => checkpoint_load::from_table(database, &self.shared, show)?,
        };
        if (read.rows, read.sum) != (self.meta.rows, self.meta.sum) {
            let what = format!("table rows holds {} rows, and not the {} that were written", read.rows, self.meta.rows);
            return Err(CheckpointError::Damaged(what).into());
        }
        Ok(())
    }

    /// Reads every lease.
    ///
    /// # Errors
    /// When one is not what was written, or when their number or sum is not.
    pub fn leases(&self) -> Result<Vec<StoredLease>, CheckpointError> {
        let Some(database) = &self.database else { return Err(CheckpointError::Damaged("it is closed".into())) };
        let result = (|| -> Result<Vec<StoredLease>, RedbError> {
            let table = match database.begin_read()?.open_table(LEASES) {
                Err(redb::TableError::TableDoesNotExist(_)) => return Ok(Vec::new()),
                table => table?,
            };
            let mut leases = Vec::new();
            for row in table.range::<u64>(..)? {
                let (key, row) = row?;
                let id = LeaseId(key.value() as i64);
                leases.push(decode_lease(id, row.value()).ok_or_else(|| {
                    CheckpointError::Damaged(format!(
                        "the checksum of lease {:016x} in table leases does not fit",
                        id.0
                    ))
                })?);
            }
            Ok(leases)
        })();
        let leases = result.map_err(|error| error.into_checkpoint(&self.shared))?;
        let mut counted = Meta::new(0, 0);
        leases.iter().for_each(|stored| counted.add_lease(stored.lease));
        if (counted.leases, counted.lease_sum) != (self.meta.leases, self.meta.lease_sum) {
            let (found, expected) = (leases.len(), self.meta.leases);
            let what = format!("table leases holds {found} leases, and not the {expected} that were written");
            return Err(CheckpointError::Damaged(what));
        }
        Ok(leases)
    }

    /// Reads every row that can be read, whole or not, for whoever wants to know what is left.
    ///
    /// # Errors
    /// What the disk or the tree says. Rows that were shown until then stay true.
    pub fn inspect(&self, mut show: impl FnMut(ChangeId, Option<Row>)) -> Result<(), CheckpointError> {
        let Some(database) = &self.database else { return Ok(()) };
        let result = (|| -> Result<(), RedbError> {
            let rows = database.begin_read()?.open_table(ROWS)?;
            for row in rows.range::<(u64, u32)>(..)? {
                let (key, row) = row?;
                let (id, row) = (row_id(key.value()), row.value());
                show(id, is_whole(id, row).then(|| decode_row(id, row)).flatten());
            }
            Ok(())
        })();
        result.map_err(|error| error.into_checkpoint(&self.shared))
    }

    /// Writes rows as they are, all in one transaction, with a record for them whose number and sum are counted here. It is
    /// for a file that has none yet.
    ///
    /// # Errors
    /// What the disk says.
    pub fn fill(
        &mut self,
        mut meta: Meta,
        rows: impl Iterator<Item = Row>,
        leases: impl Iterator<Item = StoredLease>,
    ) -> Result<(), CheckpointError> {
        self.leaves = None;
        let Some(database) = &self.database else { return Err(CheckpointError::Damaged("it is closed".into())) };
        self.release_held()?;
        (meta.rows, meta.sum, meta.leases, meta.lease_sum) = (0, 0, 0, 0);
        let result = (|| -> Result<(), RedbError> {
            let mut transaction = database.begin_write()?;
            transaction.set_quick_repair(true);
            {
                let mut table = transaction.open_table(ROWS)?;
                let mut bytes = Vec::new();
                for row in rows {
                    let crc = encode_row(row.id, row.is_last, row.time, &row.change, &mut bytes);
                    table.insert(row_key(row.id), &bytes[..])?;
                    (meta.rows, meta.sum) = (meta.rows + 1, meta.sum.wrapping_add(u64::from(crc)));
                }
                let mut table = transaction.open_table(LEASES)?;
                for stored in leases {
                    table.insert(stored.lease.id.0 as u64, &encode_lease(stored)[..])?;
                    meta.add_lease(stored.lease);
                }
            }
            transaction.open_table(META)?.insert(META_KEY, &meta.encode()[..])?;
            transaction.commit()?;
            Ok(())
        })();
        result.map_err(|error| error.into_checkpoint(&self.shared))?;
        self.meta = meta;
        Ok(())
    }

    /// Looks at so many rows behind `cursor` and moves it on; at the end it is none. Returns the bytes that were read.
    ///
    /// # Errors
    /// When a row is not what was written.
    pub fn scrub(&self, cursor: &mut Option<ChangeId>, rows_max: usize) -> Result<u64, CheckpointError> {
        let Some(database) = &self.database else { return Ok(0) };
        let result = (|| -> Result<u64, RedbError> {
            let rows = database.begin_read()?.open_table(ROWS)?;
            let from = cursor.map_or(Bound::Unbounded, |last| Bound::Excluded(row_key(last)));
            let mut bytes = 0;
            let mut last = None;
            let mut count = 0;
            for row in rows.range::<(u64, u32)>((from, Bound::Unbounded))?.take(rows_max) {
                self.shared.pace.rest();
                let (key, row) = row?;
                let id = row_id(key.value());
                if !is_whole(id, row.value()) {
                    return Err(bad_row(id).into());
                }
                (last, count, bytes) = (Some(id), count + 1, bytes + row.value().len() as u64);
            }
            *cursor = last.filter(|_| count == rows_max);
            Ok(bytes)
        })();
        result.map_err(|error| error.into_checkpoint(&self.shared))
    }

    /// Gives the file's free space back to the file system. It blocks for as long as it takes to move the rows.
    ///
    /// # Errors
    /// What the disk says.
    pub fn compact(&mut self) -> Result<(), CheckpointError> {
        self.leaves = None;
        self.reopen()?;
        if let Err(error) = self.release_held() {
            return Err(self.close_over(error));
        }
        let Some(database) = &mut self.database else { return Err(CheckpointError::Damaged("it is closed".into())) };
        note_compaction(&*self.disk).map_err(CheckpointError::io)?;
        let result = database.compact().map_err(|error| match error {
            redb::CompactionError::Storage(error) => self.shared.error(error),
            error => CheckpointError::Damaged(error.to_string()),
        });
        let meta = self.meta.clone();
        // A compaction leaves a file that a crash would have repaired in full; a commit makes the next start quick again.
        let result = match result {
            Ok(_) => self.write_or_close(&Additions::default(), &[], meta),
            Err(error) => Err(self.close_over(error)),
        };
        // Where there was only no space, no sync has failed: the page cache shows nothing as clean that the disk lacks.
        if let Ok(()) | Err(CheckpointError::Full(_)) = result {
            forget_compaction(&*self.disk).map_err(CheckpointError::io)?;
        }
        result
    }
}

/// An earlier compaction may have left its note, when the disk let nobody remove it.
fn note_compaction<D: Disk>(disk: &D) -> io::Result<()> {
    match disk.create(COMPACTING_NAME) {
        Err(error) if error.kind() != io::ErrorKind::AlreadyExists => Err(error),
        Ok(_) | Err(_) => disk.sync_names(),
    }
}

fn forget_compaction<D: Disk>(disk: &D) -> io::Result<()> {
    disk.remove(COMPACTING_NAME)?;
    disk.sync_names()
}

fn row_key(id: ChangeId) -> (u64, u32) {
    (id.revision.0 as u64, id.sub)
}

pub(super) fn row_id((revision, sub): (u64, u32)) -> ChangeId {
    ChangeId { revision: Revision(revision as i64), sub }
}

pub(super) fn bad_row(id: ChangeId) -> CheckpointError {
    CheckpointError::Damaged(format!("the checksum of row {}.{} in table rows does not fit", id.revision, id.sub))
}

fn insert(
    rows: &mut redb::Table<(u64, u32), &[u8]>,
    batch: &Batch,
    meta: &mut Meta,
    bytes: &mut Vec<u8>,
    pace: &Pace,
) -> Result<(), RedbError> {
    for (sub, change) in batch.changes.iter().enumerate() {
        pace.rest();
        let id = ChangeId { revision: batch.revision, sub: sub as u32 };
        let crc = encode_row(id, sub + 1 == batch.changes.len(), batch.time, change, bytes);
        if rows.insert(row_key(id), &bytes[..])?.is_some() {
            return Err(
                CheckpointError::Damaged(format!("row {}.{sub} was there before it was made", id.revision)).into()
            );
        }
        meta.rows += 1;
        meta.sum = meta.sum.wrapping_add(u64::from(crc));
    }
    Ok(())
}

fn read_meta(database: &Database) -> Result<Meta, RedbError> {
    let table = database.begin_read()?.open_table(META)?;
    let record = table.get(META_KEY)?;
    let Some(record) = record else {
        return Err(CheckpointError::Damaged("table meta has no record".into()).into());
    };
    Ok(Meta::decode(record.value()).map_err(|version| match version {
        None => CheckpointError::Damaged("the checksum of the record in table meta does not fit".into()),
        Some(version) => CheckpointError::Version(version),
    })?)
}

#[cfg(test)]
mod measure;
#[cfg(test)]
mod tests;
