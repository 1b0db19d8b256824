//! The step between applying a group and telling anyone of it.

use crate::types::{ChangeId, Entry, Position};
use crate::wal::LogFailure;

/// Takes sealed groups in order and reports, later and in order, up to which position they are durable.
///
/// It is asynchronous: between [`Durability::append`] and [`Durability::completed`] the next groups gather, and nothing of
/// an unreported one is told.
pub trait Durability {
    fn append(&mut self, position: Position, entries: &[Entry]);

    /// The highest position that became durable since the last call, or why no further one will.
    fn completed(&mut self) -> Option<Result<Position, LogFailure>>;

    /// Changes that no read and no watch can reach any more, behind a durable compaction.
    fn removed(&mut self, changes: Vec<ChangeId>);

    /// The disk has no room for the log to grow into; what is set aside is for deletes and compactions.
    fn is_short_of_space(&self) -> bool;

    /// How long a further group may be to find its place whatever else becomes of the disk's room.
    fn room_bytes(&self) -> usize;

    /// There will be more room by itself, by what is under way.
    fn is_room_coming(&self) -> bool;

    /// Whether writes are held up until it has come.
    fn set_held_up(&mut self, is_held_up: bool);

    /// What is free on which disk, in words.
    fn disks(&self) -> String;

    /// Puts are refused for want of memory, or are taken again: what waits for the disk is worth writing soon.
    fn set_short_of_memory(&mut self, is_short: bool);

    /// Begins to give back the space of the disk that nothing uses any more. It is called again only after
    /// [`Durability::defragmented`] has told of the end.
    fn defragment(&mut self);

    /// Tells once that it is done, or why it was not.
    fn defragmented(&mut self) -> Option<Result<(), String>>;
}

/// State in memory only: what is applied is as durable as it will get.
#[cfg(test)]
#[derive(Default)]
pub struct InMemory {
    appended: Option<Position>,
    defragmented: bool,
}

#[cfg(test)]
impl Durability for InMemory {
    fn append(&mut self, position: Position, _entries: &[Entry]) {
        self.appended = Some(position);
    }

    fn completed(&mut self) -> Option<Result<Position, LogFailure>> {
        self.appended.take().map(Ok)
    }

    fn removed(&mut self, _changes: Vec<ChangeId>) {}

    fn is_short_of_space(&self) -> bool {
        false
    }

    fn room_bytes(&self) -> usize {
        usize::MAX
    }

    fn is_room_coming(&self) -> bool {
        false
    }

    fn set_held_up(&mut self, _is_held_up: bool) {}

    fn disks(&self) -> String {
        "there is no disk".to_owned()
    }

    fn set_short_of_memory(&mut self, _is_short: bool) {}

    /// Memory that is freed has been given back already.
    fn defragment(&mut self) {
        self.defragmented = true;
    }

    fn defragmented(&mut self) -> Option<Result<(), String>> {
        std::mem::take(&mut self.defragmented).then_some(Ok(()))
    }
}
