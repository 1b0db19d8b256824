//! A log that becomes durable when the world says so.

use std::cell::RefCell;
use std::collections::VecDeque;
use std::rc::Rc;

use crate::random::Random;
use crate::shard::durability::Durability;
use crate::types::{ChangeId, Entry, Position};
use crate::wal::LogFailure;

#[derive(Clone, Default)]
pub struct LateLog(Rc<RefCell<LogState>>);

#[derive(Default)]
struct LogState {
    appended: VecDeque<Position>,
    completed: Option<Position>,
    /// What came with the last append, until somebody takes it.
    last: Vec<Entry>,
}

impl Durability for LateLog {
    fn append(&mut self, position: Position, entries: &[Entry]) {
        let mut state = self.0.borrow_mut();
        state.appended.push_back(position);
        state.last = entries.to_vec();
    }

    fn completed(&mut self) -> Option<Result<Position, LogFailure>> {
        self.0.borrow_mut().completed.take().map(Ok)
    }

    fn removed(&mut self, _changes: Vec<ChangeId>) {}

    fn room_bytes(&self) -> usize {
        usize::MAX
    }

    fn is_room_coming(&self) -> bool {
        false
    }

    fn set_held_up(&mut self, _is_held_up: bool) {}

    fn disks(&self) -> String {
        "5 bytes are free in /data".to_owned()
    }

    fn is_short_of_space(&self) -> bool {
        false
    }

    fn set_short_of_memory(&mut self, _is_short: bool) {}

    fn defragment(&mut self) {}

    fn defragmented(&mut self) -> Option<Result<(), String>> {
        None
    }
}

impl LateLog {
    /// The disk finishes some of what it was given.
    pub fn complete(&self, random: &mut Random) {
        let mut state = self.0.borrow_mut();
        let count = random.below(state.appended.len() as u64 + 1);
        for _ in 0..count {
            state.completed = state.appended.pop_front();
        }
    }

    /// The entries of the last append, unless they were taken.
    pub fn take_last(&self) -> Vec<Entry> {
        std::mem::take(&mut self.0.borrow_mut().last)
    }

    pub fn complete_all(&self) {
        let mut state = self.0.borrow_mut();
        let newest = state.appended.drain(..).next_back();
        state.completed = newest.or(state.completed);
    }
}
