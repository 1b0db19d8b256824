//! The rows of the checkpoint on their way from the file to whoever builds a store of them.
//!
//! The thread that builds is the one that calls. Others read, check and decode before it, each a few pieces ahead: what
//! waits between them is bounded by [`PIECES_AHEAD`] pieces a thread.
//!
//! There are two ways. [`from_pages`] takes the pages of a file that was found whole, and two threads take turns at them.
//! [`from_table`] asks redb, with one thread; that is the way behind a commit, and for a file that only redb could judge.

use std::sync::mpsc::{Receiver, SyncSender, sync_channel};

use redb::{Database, ReadableDatabase};

use crate::types::{ChangeId, Row};

use super::checkpoint::{ROWS, bad_row, row_id};
use super::checkpoint_backend::{CheckpointError, RedbError, Shared};
use super::checkpoint_pages::{self, Page};
use super::checkpoint_rows::{decode_row, is_whole, stored_crc};
use super::disk::DiskFile;

/// Threads that read pages. The building one has the rest of two cores.
const THREADS: usize = 2;
/// The bytes of pages, or of rows, that make a piece; one that is larger makes one alone.
const PIECE_BYTES: u64 = 256 << 10;
const PIECES_AHEAD: usize = 4;

/// What was read: how many rows, and the sum of their checksums.
#[derive(Clone, Copy, Default)]
pub struct Read {
    pub rows: u64,
    pub sum: u64,
}

/// Rows that follow each other.
#[derive(Default)]
struct Piece {
    rows: Vec<Row>,
    sum: u64,
    bytes: u64,
}

impl Piece {
    fn take(&mut self, id: ChangeId, row: &[u8]) -> Result<(), CheckpointError> {
        let decoded = if is_whole(id, row) { decode_row(id, row) } else { None };
        self.rows.push(decoded.ok_or_else(|| bad_row(id))?);
        self.sum = self.sum.wrapping_add(u64::from(stored_crc(row)));
        self.bytes += row.len() as u64;
        Ok(())
    }

    fn show<E>(self, read: &mut Read, show: &mut impl FnMut(Row) -> Result<(), E>) -> Result<(), E> {
        read.rows += self.rows.len() as u64;
        read.sum = read.sum.wrapping_add(self.sum);
        self.rows.into_iter().try_for_each(show)
    }
}

type Pieces = SyncSender<Result<Piece, CheckpointError>>;

/// Shows the rows of these leaves.
///
/// # Errors
/// At the first row that is not what was written, or what `show` refuses with.
pub fn from_pages<F: DiskFile, E: From<CheckpointError>>(
    file: &F,
    leaves: &[Page],
    mut show: impl FnMut(Row) -> Result<(), E>,
) -> Result<Read, E> {
    let leaves: Vec<&[Page]> = checkpoint_pages::pieces(leaves, PIECE_BYTES).collect();
    let leaves = &*leaves;
    std::thread::scope(|scope| {
        // Each reads every second piece, so that their order needs no more than to ask them by turns.
        let readers: Vec<Receiver<_>> = (0..THREADS)
            .map(|first| {
                let (sender, pieces) = sync_channel(PIECES_AHEAD);
                scope.spawn(move || read_pages(file, leaves, first, &sender));
                pieces
            })
            .collect();
        let mut read = Read::default();
        for at in 0..leaves.len() {
            let piece = readers[at % THREADS].recv().expect("a reader sends all its pieces, or an error last");
            piece?.show(&mut read, &mut show)?;
        }
        // Without receivers the readers end, also behind an error.
        Ok(read)
    })
}

fn read_pages<F: DiskFile>(file: &F, leaves: &[&[Page]], first: usize, pieces: &Pieces) {
    let mut buffer = Vec::new();
    for leaves in leaves.iter().skip(first).step_by(THREADS) {
        let mut piece = Piece::default();
        let read = checkpoint_pages::rows(file, leaves, &mut buffer, |id, row| piece.take(id, row));
        let is_last = read.is_err();
        // Whoever builds may have given up; it knows why.
        if pieces.send(read.map(|()| piece)).is_err() || is_last {
            return;
        }
    }
}

/// Shows the rows that redb finds in their table.
///
/// # Errors
/// At the first row that is not what was written, or what `show` refuses with.
pub fn from_table<E: From<CheckpointError>>(
    database: &Database,
    shared: &Shared,
    mut show: impl FnMut(Row) -> Result<(), E>,
) -> Result<Read, E> {
    let (sender, pieces) = sync_channel(PIECES_AHEAD);
    std::thread::scope(|scope| {
        scope.spawn(move || {
            let read = read_table(database, &sender).map_err(|error| error.into_checkpoint(shared));
            if let Err(error) = read {
                // Whoever builds may have given up; it knows why.
                let _ = sender.send(Err(error));
            }
        });
        let mut read = Read::default();
        for piece in pieces {
            piece?.show(&mut read, &mut show)?;
        }
        Ok(read)
    })
}

fn read_table(database: &Database, pieces: &Pieces) -> Result<(), RedbError> {
    let rows = match database.begin_read()?.open_table(ROWS) {
        Err(redb::TableError::TableDoesNotExist(_)) => return Ok(()),
        rows => rows?,
    };
    let mut piece = Piece::default();
    for row in rows.range::<(u64, u32)>(..)? {
        let (key, row) = row?;
        piece.take(row_id(key.value()), row.value())?;
        if piece.bytes >= PIECE_BYTES && pieces.send(Ok(std::mem::take(&mut piece))).is_err() {
            return Ok(());
        }
    }
    // As above.
    let _ = pieces.send(Ok(piece));
    Ok(())
}
