//! redb over a [`Disk`], and what its errors mean.

use std::fmt;
use std::io;
use std::sync::{Arc, Mutex, PoisonError};

use redb::{Builder, Database, StorageBackend, StorageError};

use crate::metrics::Histogram;
use crate::shard::clock;

use super::checkpoint::FILE_NAME;
use super::checkpoint_pace::Pace;
use super::checkpoint_rows::FORMAT_VERSION;
use super::disk::{Disk, DiskFile};
use super::held::Held;
use super::is_refusal;

/// What redb may hold of the file. New rows go to one end of the tree, so that a larger cache gains nothing beyond what one
/// transaction writes.
const CACHE_BYTES: usize = 16 << 20;
#[derive(Debug)]
pub enum CheckpointError {
    /// The disk has no room. Nothing is lost: what was not written is in the log.
    Full(io::Error),
    /// The disk failed, and what it holds is unknown until the next start.
    Disk(io::Error),
    /// What was read is not what was written.
    Damaged(String),
    /// Another version of the format.
    Version(u32),
}

impl fmt::Display for CheckpointError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            CheckpointError::Full(error) => write!(f, "{FILE_NAME} cannot grow: {error}"),
            CheckpointError::Disk(error) => write!(f, "{FILE_NAME} cannot be read or written: {error}"),
            CheckpointError::Damaged(what) => write!(f, "{FILE_NAME} is damaged: {what}"),
            CheckpointError::Version(version) => {
                write!(f, "{FILE_NAME} has format version {version}, and this program knows {FORMAT_VERSION}")
            }
        }
    }
}

impl CheckpointError {
    pub fn io(error: io::Error) -> CheckpointError {
        match error.kind() {
            // The file itself says how long it is.
            io::ErrorKind::UnexpectedEof => CheckpointError::Damaged("it is cut short".to_owned()),
            _ if is_refusal(&error) => CheckpointError::Full(error),
            _ => CheckpointError::Disk(error),
        }
    }
}

/// redb's view of the file. It remembers the first error of the disk, which redb tells once and then as "previous error".
#[derive(Debug)]
struct Backend<F> {
    file: F,
    shared: Arc<Shared>,
}

#[derive(Debug)]
pub struct Shared {
    failure: Mutex<Option<io::Error>>,
    pub held: Held,
    pub pace: Arc<Pace>,
    /// How long the syncs took.
    pub syncs: Arc<Histogram>,
}

impl Shared {
    pub fn new(pace: Arc<Pace>, syncs: Arc<Histogram>) -> Shared {
        Shared { failure: Mutex::default(), held: Held::default(), pace, syncs }
    }

    fn note<T>(&self, result: io::Result<T>) -> io::Result<T> {
        if let Err(error) = &result {
            let mut failure = self.failure.lock().unwrap_or_else(PoisonError::into_inner);
            failure.get_or_insert(copy(error));
        }
        result
    }

    /// A failed sync stands above whatever failed before it.
    fn note_sync(&self, result: io::Result<()>) -> io::Result<()> {
        result.inspect_err(|error| {
            *self.failure.lock().unwrap_or_else(PoisonError::into_inner) = Some(copy(error));
        })
    }

    /// What an error has become once the file is closed: redb may sync it on the way, and tells nobody how that went.
    pub fn error_behind_close(&self, error: CheckpointError) -> CheckpointError {
        let failure = self.failure.lock().unwrap_or_else(PoisonError::into_inner);
        match &*failure {
            Some(failure) if !is_refusal(failure) => CheckpointError::io(copy(failure)),
            _ => error,
        }
    }

    pub fn error(&self, error: StorageError) -> CheckpointError {
        let failure = self.failure.lock().unwrap_or_else(PoisonError::into_inner);
        match (&*failure, error) {
            (Some(failure), _) => CheckpointError::io(copy(failure)),
            (None, StorageError::Io(error)) if error.kind() != io::ErrorKind::InvalidData => CheckpointError::io(error),
            (None, error) => CheckpointError::Damaged(error.to_string()),
        }
    }
}

fn copy(error: &io::Error) -> io::Error {
    match error.raw_os_error() {
        Some(code) => io::Error::from_raw_os_error(code),
        None => io::Error::new(error.kind(), error.to_string()),
    }
}

impl<F: DiskFile> StorageBackend for Backend<F> {
    fn len(&self) -> io::Result<u64> {
        self.shared.note(self.shared.held.len(&self.file))
    }

    fn read(&self, offset: u64, out: &mut [u8]) -> io::Result<()> {
        self.shared.pace.rest();
        self.shared.note(self.shared.held.read(&self.file, offset, out))
    }

    fn set_len(&self, len: u64) -> io::Result<()> {
        if self.shared.held.keeps_set_len(len) {
            return Ok(());
        }
        self.shared.note(self.file.set_len(len))
    }

    fn sync_data(&self) -> io::Result<()> {
        if self.shared.held.keeps_sync() {
            return Ok(());
        }
        let begun = clock::now();
        let synced = self.file.sync_data();
        self.shared.syncs.observe(clock::now() - begun);
        self.shared.note_sync(synced)
    }

    fn write(&self, offset: u64, data: &[u8]) -> io::Result<()> {
        if self.shared.held.keeps_write(offset, data) {
            return Ok(());
        }
        self.shared.pace.rest();
        self.shared.note(self.file.write_at(offset, data))?;
        if self.shared.pace.wrote(data.len() as u64) {
            self.sync_data()?;
            self.shared.pace.synced();
        }
        Ok(())
    }
}

/// redb has an error for each kind of call; here only what is behind them counts.
pub enum RedbError {
    Storage(StorageError),
    Ours(CheckpointError),
}

impl RedbError {
    pub fn into_checkpoint(self, shared: &Shared) -> CheckpointError {
        match self {
            RedbError::Storage(error) => shared.error(error),
            RedbError::Ours(error) => error,
        }
    }
}

impl From<CheckpointError> for RedbError {
    fn from(error: CheckpointError) -> RedbError {
        RedbError::Ours(error)
    }
}

impl From<StorageError> for RedbError {
    fn from(error: StorageError) -> RedbError {
        RedbError::Storage(error)
    }
}

impl From<redb::TransactionError> for RedbError {
    fn from(error: redb::TransactionError) -> RedbError {
        match error {
            redb::TransactionError::Storage(error) => RedbError::Storage(error),
            error => RedbError::Ours(CheckpointError::Damaged(error.to_string())),
        }
    }
}

impl From<redb::TableError> for RedbError {
    fn from(error: redb::TableError) -> RedbError {
        match error {
            redb::TableError::Storage(error) => RedbError::Storage(error),
            error => RedbError::Ours(CheckpointError::Damaged(error.to_string())),
        }
    }
}

impl From<redb::CommitError> for RedbError {
    fn from(error: redb::CommitError) -> RedbError {
        match error {
            redb::CommitError::Storage(error) => RedbError::Storage(error),
            error => RedbError::Ours(CheckpointError::Damaged(error.to_string())),
        }
    }
}

/// Opens the file, or makes a database of an empty one. `check` looks at the sums of all pages.
pub fn database<D: Disk>(disk: &D, name: &str, shared: &Arc<Shared>, check: bool) -> Result<Database, CheckpointError> {
    let file = disk.open(name).map_err(CheckpointError::io)?;
    let backend = Backend { file, shared: shared.clone() };
    let mut builder = Builder::new();
    builder.set_cache_size(CACHE_BYTES).set_check_integrity_on_open(check);
    builder.create_with_backend(backend).map_err(|error| match error {
        redb::DatabaseError::Storage(error) => shared.error(error),
        error => CheckpointError::Damaged(error.to_string()),
    })
}
