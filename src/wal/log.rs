//! The log: makes groups durable in the order in which they come.
//!
//! One frame is under way at a time: written, synced, and only then followed by the next, so that at most one frame is ever
//! in doubt and what lies behind a bad one tells a torn end from damage. Meanwhile groups gather, and the next frame takes
//! all that fit. It neither blocks nor reads a clock: a [`Device`] writes, and the segments it writes to come ready-made
//! out of a [`Supply`]. When none is ready it waits, and groups go on gathering.
//!
//! States: *idle* (nothing pending, nothing in flight), *writing* (one frame in flight), *waiting* (groups are pending and
//! no segment is ready), *failed* (nothing is written any more). Invariants: a segment counts as closed only once the first
//! frame of its successor is durable, so a log that ever held a group is never without a frame; a group is told to the
//! checkpoint once it is durable, and never before.

use std::collections::VecDeque;
use std::io;
use std::rc::Rc;
use std::sync::mpsc::Sender;

use crate::net::ring::AlignedBuffer;
use crate::types::{ChangeId, Entry, Position};
use crate::wal::record::{self, FRAME_HEADER_BYTES, FrameHeader, SegmentHeader};
use crate::wal::segments::{Closed, Supply};
use crate::wal::{LogFailure, Progress};

/// The longest body of a frame. What is longer than this is cut over several frames; what is shorter shares one.
pub const BODY_BYTES_MAX: usize = 1 << 20;
/// One part of so many is for what frames take beside their bodies, and for ends of segments that are too short for a group.
const FRAMES_IN_ROOM: usize = 8;
/// What an idle log keeps of its buffer.
const IDLE_BUFFER_BYTES_MAX: usize = 64 << 10;

/// Writes frames, one at a time.
pub trait Device {
    type Segment;

    /// Writes a frame and makes it durable. Nobody reads what lies behind its first `filled` bytes; what of that is written
    /// depends on the disk. Called only when nothing is in flight.
    fn submit(&mut self, segment: &Rc<Self::Segment>, offset: u64, frame: AlignedBuffer, filled: usize);

    /// The result of what was submitted, once, with the buffer. It alone knows whether a write or a sync failed.
    fn poll(&mut self) -> Option<(Result<(), LogFailure>, AlignedBuffer)>;
}

struct Group {
    position: Position,
    entries: Vec<Entry>,
    entries_bytes: usize,
}

/// A group that is too long for one frame, encoded.
struct Pieces {
    encoded: Vec<u8>,
    /// How much of it is in frames that are sealed.
    sealed_bytes: usize,
}

struct Current<S> {
    header: SegmentHeader,
    segment: Rc<S>,
    /// Where the next frame goes.
    offset: u64,
}

struct InFlight {
    crc: u32,
    /// What becomes durable with the frame; nothing, when it holds a piece that is not the last.
    groups: Vec<Group>,
}

pub struct Log<D: Device> {
    device: D,
    supply: Supply<D::Segment>,
    progress: Sender<Progress>,
    current: Option<Current<D::Segment>>,
    /// The segment before the current one, until the current one has a durable frame.
    closing: Option<Closed>,
    pending: VecDeque<Group>,
    /// What the groups that are pending take in frames of their own.
    pending_bytes: usize,
    pieces: Option<Pieces>,
    in_flight: Option<InFlight>,
    /// The checksum that the next frame chains to.
    chain: u32,
    /// The last group that is in a sealed frame.
    sealed: Position,
    /// The last group that was handed in.
    appended: Position,
    buffer: Option<AlignedBuffer>,
    durable: Option<Position>,
    failure: Option<LogFailure>,
    /// Why nothing is written any more.
    refused: Option<io::ErrorKind>,
    #[cfg(test)]
    pub(crate) planted: Planted,
}

/// Bugs that the simulator must find.
#[cfg(test)]
#[derive(Clone, Copy, Default)]
pub(crate) struct Planted {
    /// A group counts as durable as soon as it is handed to the device.
    pub ack_before_sync: bool,
    /// An error of the device is taken for success.
    pub ignore_sync_error: bool,
}

impl<D: Device> Log<D> {
    /// Goes on behind what recovery found. Groups that become durable are told to `progress`.
    pub fn new(device: D, mut supply: Supply<D::Segment>, progress: Sender<Progress>) -> Log<D> {
        let resumed = supply.take_resumed();
        let current = resumed.current.map(|(ready, offset)| Current {
            header: ready.header,
            segment: Rc::new(ready.segment),
            offset,
        });
        Log {
            device,
            supply,
            progress,
            current,
            closing: None,
            pending: VecDeque::new(),
            pending_bytes: 0,
            pieces: None,
            in_flight: None,
            chain: resumed.chain,
            sealed: resumed.last,
            appended: resumed.last,
            buffer: None,
            durable: None,
            failure: None,
            refused: None,
            #[cfg(test)]
            planted: Planted::default(),
        }
    }

    /// Takes a sealed group. A group without entries is durable together with those before it, and when there are none
    /// under way it is so at once: the disk learns nothing of it.
    ///
    /// # Panics
    /// When positions do not rise: two groups of one position would be one after a restart.
    pub fn append(&mut self, position: Position, entries: Vec<Entry>) {
        assert!(self.appended < position, "positions rise");
        self.appended = position;
        if let Some(kind) = self.refused {
            self.failure = Some(LogFailure::Refused(kind.into()));
            return;
        }
        if entries.is_empty() && self.is_idle() {
            self.durable = Some(position);
            return;
        }
        let entries_bytes = record::entries_len(&entries);
        self.pending_bytes += record::frame_bytes(entries_bytes);
        self.pending.push_back(Group { position, entries, entries_bytes });
        self.submit();
    }

    /// The highest position that became durable since the last call, or why none ever will again. Ask until there is
    /// nothing more, in each turn: this is what drives the log on.
    pub fn completed(&mut self) -> Option<Result<Position, LogFailure>> {
        if let Some((result, buffer)) = self.device.poll() {
            self.settle(result, buffer);
        }
        self.submit();
        match self.durable.take() {
            Some(position) => Some(Ok(position)),
            None => self.failure.take().map(Err),
        }
    }

    /// No next segment could be prepared for want of space, and the one in use is half full: what is left of it takes deletes and
    /// compactions. Until then the checkpoint has time to take what the last one held, which gives room back.
    pub fn is_short_of_space(&self) -> bool {
        let is_half_full = |current: &Current<_>| current.offset * 2 >= current.header.bytes();
        self.supply.is_short_of_space() && self.current.as_ref().is_none_or(is_half_full)
    }

    /// How long a group may be that comes behind those that wait, so that all of it finds a place. Of a group in pieces the
    /// checkpoint can take nothing before the last one is durable, while what is in front of it may make room.
    pub fn room_bytes(&self) -> usize {
        let left = self.current.as_ref().map_or(0, |current| current.header.bytes() - current.offset) as usize;
        let sealed = self.pieces.as_ref().map_or(0, |pieces| pieces.sealed_bytes);
        let frames = self.supply.room_bytes(left, self.pending_bytes.saturating_sub(sealed));
        frames / FRAMES_IN_ROOM * (FRAMES_IN_ROOM - 1)
    }

    /// There will be more room by itself, or there may be: something is under way, or the checkpoint has segments to take, or
    /// nobody has looked since the last group was durable.
    pub fn is_room_coming(&self) -> bool {
        let may_go_on = !self.pending.is_empty() && !self.supply.is_short_of_space();
        self.refused.is_none() && (self.in_flight.is_some() || may_go_on || self.supply.is_to_be_given_more())
    }

    /// Whether writes wait for that.
    pub fn set_held_up(&mut self, is_held_up: bool) {
        self.supply.set_held_up(is_held_up);
    }

    /// Passes on which changes nobody can reach any more, behind the groups that are durable so far.
    pub fn removed(&mut self, rows: Vec<ChangeId>) {
        self.tell(Progress::Removed(rows));
    }

    /// Nothing is pending and nothing in flight: everything that was appended is durable.
    pub fn is_idle(&self) -> bool {
        self.pending.is_empty() && self.in_flight.is_none()
    }

    fn tell(&self, progress: Progress) {
        // The checkpoint ends before the log only when the process ends, and then nothing is owed to it: it reads the
        // log at the next start.
        let _ = self.progress.send(progress);
    }

    fn settle(&mut self, result: Result<(), LogFailure>, buffer: AlignedBuffer) {
        let in_flight = self.in_flight.take().expect("the device answers what was submitted");
        if self.pending.is_empty() && buffer.capacity() > IDLE_BUFFER_BYTES_MAX {
            self.buffer = None;
        } else {
            self.buffer = Some(buffer);
        }
        #[cfg(test)]
        let result = if self.planted.ignore_sync_error { Ok(()) } else { result };
        if let Err(failure) = result {
            self.fail(failure);
            return;
        }
        self.chain = in_flight.crc;
        if let Some(closed) = self.closing.take() {
            self.supply.close(closed);
        }
        if let Some(last) = in_flight.groups.last() {
            self.supply.note_durable(last.position);
        }
        for group in in_flight.groups {
            self.durable = Some(group.position);
            self.tell(Progress::Durable { position: group.position, entries: group.entries });
        }
    }

    fn fail(&mut self, failure: LogFailure) {
        let (LogFailure::Refused(error) | LogFailure::Broken(error)) = &failure;
        self.pending.clear();
        (self.pending_bytes, self.pieces) = (0, None);
        self.refused = Some(error.kind());
        self.failure = Some(failure);
    }

    /// Sends out the next frame when there is something to write and a place for it.
    fn submit(&mut self) {
        if self.in_flight.is_some() || self.refused.is_some() {
            return;
        }
        let Some(room) = self.room() else { return };
        let body_bytes_max = room.min(BODY_BYTES_MAX);
        if let Some(pieces) = &self.pieces {
            let bytes = (pieces.encoded.len() - pieces.sealed_bytes).min(body_bytes_max);
            self.submit_piece(bytes);
        } else {
            self.submit_groups(body_bytes_max);
        }
    }

    /// How long a body may be where the next frame goes. None when there is nothing to write, or no place.
    fn room(&mut self) -> Option<usize> {
        let first = self.pending.front()?;
        let first_bytes = record::group_len(self.sealed, first.position, first.entries_bytes);
        let longest = self.supply.segment_bytes() - (record::BLOCK_BYTES + FRAME_HEADER_BYTES);
        if self.pieces.is_none() && first_bytes > longest.min(BODY_BYTES_MAX) {
            let mut encoded = Vec::with_capacity(first_bytes);
            record::put_group(&mut encoded, self.sealed, first.position, &first.entries, first.entries_bytes);
            self.pieces = Some(Pieces { encoded, sealed_bytes: 0 });
        }
        // A piece takes what room there is, if only a block; a group wants to be whole.
        let needed = if self.pieces.is_some() { 1 } else { first_bytes };
        let left = |current: &Current<_>| {
            let bytes = (current.header.bytes() - current.offset) as usize;
            bytes.checked_sub(FRAME_HEADER_BYTES).filter(|&room| room >= needed)
        };
        if let Some(room) = self.current.as_ref().and_then(left) {
            return Some(room);
        }
        self.next_segment();
        self.current.as_ref().and_then(left)
    }

    fn next_segment(&mut self) {
        let Some(ready) = self.supply.next() else { return };
        let (header, segment) = (ready.header, Rc::new(ready.segment));
        let next = Current { header, segment, offset: record::BLOCK_BYTES as u64 };
        if let Some(full) = self.current.replace(next) {
            assert!(full.header.sequence + 1 == header.sequence, "segments come in the order of their numbers");
            assert!(self.closing.is_none(), "a segment is longer than any frame");
            let piece_of = self.pieces.as_ref().filter(|pieces| pieces.sealed_bytes > 0).and(self.pending.front());
            let last = piece_of.map_or(self.sealed, |group| group.position);
            self.closing = Some(Closed { sequence: full.header.sequence, last });
        }
    }

    fn submit_groups(&mut self, body_bytes_max: usize) {
        let (mut bytes, mut after, mut count) = (0, self.sealed, 0);
        for group in &self.pending {
            let with_group = bytes + record::group_len(after, group.position, group.entries_bytes);
            if with_group > body_bytes_max {
                break;
            }
            (bytes, after, count) = (with_group, group.position, count + 1);
        }
        let groups: Vec<Group> = self.pending.drain(..count).collect();
        self.pending_bytes -= groups.iter().map(|group| record::frame_bytes(group.entries_bytes)).sum::<usize>();
        let mut frame = self.start_frame(bytes);
        let mut last = self.sealed;
        for group in &groups {
            record::put_group(&mut frame, last, group.position, &group.entries, group.entries_bytes);
            last = group.position;
        }
        self.send(frame, bytes, (true, true), last, groups);
        self.sealed = last;
    }

    fn submit_piece(&mut self, bytes: usize) {
        let mut frame = self.start_frame(bytes);
        let mut pieces = self.pieces.take().expect("the caller has looked");
        let (from, to) = (pieces.sealed_bytes, pieces.sealed_bytes + bytes);
        frame.extend_from_slice(&pieces.encoded[from..to]);
        let ends = to == pieces.encoded.len();
        pieces.sealed_bytes = to;
        let position = self.pending.front().expect("its pieces were made of it").position;
        let groups: Vec<Group> = if ends { self.pending.pop_front().into_iter().collect() } else { Vec::new() };
        self.pending_bytes -= groups.iter().map(|group| record::frame_bytes(group.entries_bytes)).sum::<usize>();
        self.send(frame, bytes, (from == 0, ends), position, groups);
        if ends {
            self.sealed = position;
        } else {
            self.pieces = Some(pieces);
        }
    }

    /// An empty buffer with room for the frame, and in it zeros where its header goes.
    fn start_frame(&mut self, body_bytes: usize) -> AlignedBuffer {
        let bytes = record::frame_bytes(body_bytes);
        let buffer = self.buffer.take().filter(|buffer| buffer.capacity() >= bytes);
        let mut frame = buffer.unwrap_or_else(|| AlignedBuffer::with_capacity(bytes.next_power_of_two()));
        frame.clear();
        frame.resize(FRAME_HEADER_BYTES);
        frame
    }

    fn send(
        &mut self,
        mut frame: AlignedBuffer,
        body_bytes: usize,
        (begins_group, ends_group): (bool, bool),
        last: Position,
        groups: Vec<Group>,
    ) {
        let current = self.current.as_mut().expect("there is room only in a segment");
        let bytes = record::frame_bytes(body_bytes);
        frame.resize(bytes);
        let header = FrameHeader { after: self.sealed, last, previous_crc: self.chain, begins_group, ends_group };
        let crc = record::seal(&mut frame, body_bytes, &header, &current.header, current.offset);
        #[cfg(test)]
        if self.planted.ack_before_sync {
            self.durable = groups.last().map(|group| group.position).or(self.durable);
        }
        self.device.submit(&current.segment, current.offset, frame, record::filled_bytes(body_bytes));
        current.offset += bytes as u64;
        self.in_flight = Some(InFlight { crc, groups });
    }
}
