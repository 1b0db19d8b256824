//! The disk's edge: the log that is the truth, the checkpoint that keeps it short, and what brings both back.
//!
//! It knows the words of `types` and nothing of the store: what a group of commands changed comes in as [`Entry`] values,
//! and recovery hands the same values back.

pub mod check;
pub mod checkpoint;
pub mod checkpoint_backend;
mod checkpoint_leases;
pub mod checkpoint_load;
mod checkpoint_pace;
pub mod checkpoint_pages;
mod checkpoint_remains;
pub mod checkpoint_rows;
pub mod checkpoint_thread;
pub mod claim;
pub mod disk;
pub mod examine;
pub mod file_disk;
mod held;
pub mod identity;
pub mod log;
pub mod meter;
pub mod newest;
mod overlay;
pub mod record;
pub mod recovery;
pub mod replay;
pub mod ring_device;
pub mod room;
pub mod salvage;
pub mod segments;

use std::fmt;
use std::io;
use std::sync::mpsc::Sender;

use crate::types::{ChangeId, Entry, Position};

/// Why the log could not make a group durable.
#[derive(Debug)]
pub enum LogFailure {
    /// The disk took nothing of the group, for want of space or because it became read-only. What is held stays readable;
    /// writes are refused until the next start.
    Refused(io::Error),
    /// A write or a sync failed in a way that leaves open what the disk holds. The process must end: after a failed sync
    /// the page cache may show what the disk lacks.
    Broken(io::Error),
}

impl LogFailure {
    /// What a failed write means. A failed sync is always [`LogFailure::Broken`].
    pub fn of_write(error: io::Error) -> LogFailure {
        if is_refusal(&error) { LogFailure::Refused(error) } else { LogFailure::Broken(error) }
    }
}

/// Whether a write failed for want of space or of permission, and so took nothing.
fn is_refusal(error: &io::Error) -> bool {
    use io::ErrorKind::{QuotaExceeded, ReadOnlyFilesystem, StorageFull};
    matches!(error.kind(), StorageFull | QuotaExceeded | ReadOnlyFilesystem)
}

/// A sync that failed, for whatever reason: nobody knows what it left, and the page cache may show what the disk lacks. Want
/// of space would be taken for a call that did nothing and can be tried again.
fn failed_sync(error: io::Error) -> io::Error {
    io::Error::other(format!("a sync failed: {error}"))
}

impl fmt::Display for LogFailure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            LogFailure::Refused(error) => write!(f, "the disk refuses the log: {error}"),
            LogFailure::Broken(error) => write!(f, "the log cannot be written: {error}"),
        }
    }
}

/// What the checkpoint thread is told, in this order: a group once it is durable in the log, and which changes no read
/// and no watch can reach any more, behind the compaction that forgot them.
#[derive(Debug)]
pub enum Progress {
    Durable {
        position: Position,
        entries: Vec<Entry>,
    },
    Removed(Vec<ChangeId>),
    /// Give free space of the file back to the file system, and say how it went. What came before is in the file then.
    Defragment(Sender<Result<(), String>>),
    /// Write what came before, close the file, and end.
    Stop,
}
