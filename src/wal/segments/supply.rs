//! What the ring thread has of the segments: the ends of two queues, and some numbers that both threads share.

use std::collections::VecDeque;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, OnceLock};
use std::thread::Thread;

use super::{CHECKPOINT_SHARE, Closed, Ready};
use crate::types::Position;
use crate::wal::record::BLOCK_BYTES;

/// What the two threads share, beside the queues.
#[derive(Debug)]
pub(super) struct Shared {
    pub(super) is_short_of_space: AtomicBool,
    /// Writes are held up until there is more room.
    pub(super) is_held_up: AtomicBool,
    /// Segments that the checkpoint can take whatever comes behind them.
    pub(super) to_be_given_up: AtomicU64,
    /// The last group that is durable, and so can go to the checkpoint; and what it was when the thread last looked.
    pub(super) durable: AtomicU64,
    pub(super) looked: AtomicU64,
    /// What the disk of the log has for further segments, and that of the checkpoint for their rows, once the checkpoint has
    /// taken what is durable. One disk may be both.
    pub(super) log_room: AtomicU64,
    pub(super) rows_room: AtomicU64,
    pub(super) is_beside_data: bool,
    pub(super) thread: OnceLock<Thread>,
}

impl Shared {
    pub(super) fn new(durable: Position, is_beside_data: bool) -> Shared {
        let [log_room, rows_room, to_be_given_up] = Default::default();
        let [is_short_of_space, is_held_up] = Default::default();
        let [durable, looked] = [durable.0; 2].map(AtomicU64::new);
        let thread = OnceLock::new();
        Shared {
            is_short_of_space,
            is_held_up,
            to_be_given_up,
            durable,
            looked,
            log_room,
            rows_room,
            is_beside_data,
            thread,
        }
    }

    pub(super) fn wake(&self) {
        if let Some(thread) = self.thread.get() {
            thread.unpark();
        }
    }

    /// How many segments there is room for behind so many others, which the checkpoint takes before.
    pub(super) fn room_segments(&self, before: u64, segment_bytes: u64) -> u64 {
        let rows_bytes = CHECKPOINT_SHARE * segment_bytes;
        let log_room = self.log_room.load(Ordering::Relaxed);
        let rows_before = before.saturating_mul(rows_bytes);
        if self.is_beside_data {
            return log_room.saturating_sub(rows_before) / (segment_bytes + rows_bytes);
        }
        let rows_room = self.rows_room.load(Ordering::Relaxed).saturating_sub(rows_before);
        (log_room / segment_bytes).min(rows_room / rows_bytes)
    }
}

/// The end of the queues that the log holds.
pub struct Supply<S> {
    pub(super) ready: rtrb::Consumer<Ready<S>>,
    pub(super) closed: rtrb::Producer<Closed>,
    /// Closed segments that found the queue full.
    pub(super) waiting: VecDeque<Closed>,
    pub(super) shared: Arc<Shared>,
    pub(super) segment_bytes: usize,
    pub(super) resumed: Option<Resumed<S>>,
}

/// Where the log goes on, its segment open.
pub(crate) struct Resumed<S> {
    pub current: Option<(Ready<S>, u64)>,
    pub chain: u32,
    pub last: Position,
}

impl<S> Supply<S> {
    /// The next segment, or nothing yet.
    pub(crate) fn next(&mut self) -> Option<Ready<S>> {
        let next = self.ready.pop().ok()?;
        self.shared.wake();
        Some(next)
    }

    pub(crate) fn close(&mut self, closed: Closed) {
        self.waiting.push_back(closed);
        while let Some(&closed) = self.waiting.front() {
            if self.closed.push(closed).is_err() {
                break;
            }
            self.waiting.pop_front();
        }
        self.shared.wake();
    }

    pub(crate) fn is_short_of_space(&self) -> bool {
        self.shared.is_short_of_space.load(Ordering::Relaxed)
    }

    /// So much is durable now.
    pub(crate) fn note_durable(&self, position: Position) {
        self.shared.durable.store(position.0, Ordering::Release);
        if self.is_short_of_space() || self.shared.is_held_up.load(Ordering::Relaxed) {
            // The checkpoint can take more than it could when the thread last looked.
            self.shared.wake();
        }
    }

    /// The checkpoint has segments to take, and these will be room; or the thread has not looked yet at what is durable.
    pub(crate) fn is_to_be_given_more(&self) -> bool {
        let looked = self.shared.looked.load(Ordering::Acquire);
        let has_some = self.shared.to_be_given_up.load(Ordering::Acquire) > 0 && !self.is_short_of_space();
        has_some || looked < self.shared.durable.load(Ordering::Relaxed)
    }

    /// Whether writes wait for that: then everybody hurries.
    pub(crate) fn set_held_up(&self, is_held_up: bool) {
        if self.shared.is_held_up.swap(is_held_up, Ordering::Relaxed) != is_held_up && is_held_up {
            self.shared.wake();
        }
    }

    /// What there is room for in segments behind so many bytes that wait, of which `left` find their place in the one in use.
    /// Nothing is freed while it is written; what waits in front of it may be in the checkpoint by then.
    pub(crate) fn room_bytes(&self, left: usize, waiting: usize) -> usize {
        let body_bytes = self.segment_bytes - BLOCK_BYTES;
        let placed = self.ready.slots() * body_bytes + left;
        let before = waiting.saturating_sub(placed).div_ceil(body_bytes);
        let further = self.shared.room_segments(before as u64, self.segment_bytes as u64);
        let further = usize::try_from(further).unwrap_or(usize::MAX);
        placed.saturating_sub(waiting).saturating_add(further.saturating_mul(body_bytes))
    }

    pub(crate) fn segment_bytes(&self) -> usize {
        self.segment_bytes
    }

    pub(crate) fn take_resumed(&mut self) -> Resumed<S> {
        self.resumed.take().expect("one supply serves one log")
    }
}

impl<S> Drop for Supply<S> {
    fn drop(&mut self) {
        // The thread looks whether anybody is there to take segments.
        self.shared.wake();
    }
}
