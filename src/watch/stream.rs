//! Watch streams: which watches each has, under which ids, and what it has to send.
//!
//! A watch is a row in the list of its stream: four bytes that name its group. As long as a stream uses nothing but
//! automatic ids and cancels none, the row *is* the watch id; a side table exists only for streams that do otherwise.
//!
//! A row is in one of three states. *Live*: the watch exists, and exactly one entry somewhere (a group's member, or one of
//! those that stand apart) stands for it. *Dead*: the watch is gone, its entry is not yet; whoever comes across the entry
//! removes it and frees the row. *Free*: nothing refers to it, and the next create takes it. So a row is never reused while
//! an old entry could be mistaken for the new watch, and the same holds for the row of a stream: it is freed when its last
//! entry and its last waiting request are gone.

use std::collections::VecDeque;

use bytes::Bytes;
use hashbrown::HashMap;

use super::members::grown;
use super::message::{Events, Head, Header, put_fragments, put_response};
use super::outbox::Outbox;
use crate::types::arena::Arena;

/// The events that a watch was sent since the last progress tick suppress its notification.
const TOLD: u32 = 1 << 31;
/// The watch is not among the members of its group: it is behind, or starts in the future.
const APART: u32 = 1 << 30;
const DEAD: u32 = u32::MAX;
const FREE: u32 = u32::MAX - 1;

/// The stream is to be named to the shard; and a progress tick of it waits or is under way.
const READY: u8 = 1;
const TICKING: u8 = 2;

/// What spare outboxes may take that are kept for the next streams: with them a put to three thousand streams, or to a few
/// that have much to send, allocates nothing. A hub tells no more streams before those it has told are sent.
const SPARE_BYTES_MAX: usize = 1 << 20;
/// Backlogs that a stream may have due at once which had nothing due before. They lie in one buffer of 128 KiB.
const UNSEEN_BACKLOGS: usize = 4;
/// The part of a backlog that events may fill behind what a stream has left due: its client does not read, or no faster than
/// it is told. Beyond it, a revision is as good and takes nothing. With the whole of it, 5,000 streams that read nothing kept
/// their shard busy for half a second before it was full; with this part, other watchers do not notice. None of the shapes of
/// streams that read took more of the CPU for an event.
const LEFT_DUE_SHARE: usize = 8;
/// Requests of one stream that may wait. Beyond it its client is slowed.
const PENDING_MAX: u32 = 256;

/// The states of a row.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Row {
    Live { group: u32, apart: bool },
    Dead,
    Free,
}

/// Ids that differ from their rows, and rows that can be used again.
struct Ids {
    next: i64,
    of_row: HashMap<u32, i64>,
    to_row: HashMap<i64, u32>,
    free: Vec<u32>,
}

impl Ids {
    fn bytes(&self) -> usize {
        let maps = self.of_row.allocation_size() + self.to_row.allocation_size();
        size_of::<Ids>() + maps + self.free.capacity() * 4
    }
}

#[derive(Clone, Copy, PartialEq, Eq, Default)]
enum Life {
    #[default]
    Open,
    /// The client is gone.
    Closed,
    /// And its rows have been looked through.
    Emptied,
}

#[derive(Default)]
pub struct Stream {
    pub token: u64,
    rows: Vec<u32>,
    ids: Option<Box<Ids>>,
    outbox: Option<Box<Outbox>>,
    /// Entries that stand for rows of this stream, anywhere.
    held: u32,
    live: u32,
    /// Live watches that are behind or start in the future.
    apart: u32,
    /// Live watches with periodic notifications.
    progress: u32,
    /// The weight of the requests that wait.
    pending: u32,
    life: Life,
    /// The lists in which it stands: [`READY`] and [`TICKING`].
    listed: u8,
    /// An event did not fit. Until little is left in the outbox, all events count as not fitting.
    full: bool,
    paused: Paused,
}

/// Whether the connection of a stream was told to hand over no more requests, and why.
#[derive(Clone, Copy, PartialEq, Eq, Default)]
enum Paused {
    #[default]
    No,
    /// Too much waits to be sent or answered.
    Behind,
    /// A watch was refused for want of memory. Whoever asks again at once would be refused as often as it can ask; so the
    /// next request is heard when the shard looks at its memory again, and not before.
    Refused,
}

impl Stream {
    pub fn is_closed(&self) -> bool {
        self.life != Life::Open
    }

    pub fn live(&self) -> u32 {
        self.live
    }

    pub fn progress(&self) -> u32 {
        self.progress
    }

    /// What its list of watches takes, and their ids.
    fn list_bytes(&self) -> usize {
        self.rows.capacity() * 4 + self.ids.as_ref().map_or(0, |ids| ids.bytes())
    }

    pub fn row_count(&self) -> usize {
        self.rows.len()
    }

    /// All its watches stand at the live edge.
    pub fn is_synced(&self) -> bool {
        self.apart == 0
    }

    pub fn backlog(&self) -> usize {
        self.outbox.as_ref().map_or(0, |outbox| outbox.bytes())
    }

    /// From where on events are to wait. A stream that has taken all it was told before may have more due until its
    /// connection has looked: what one put tells its many watches leaves at once, and none of them falls behind.
    fn event_bytes_max(&self, backlog_bytes_max: usize) -> usize {
        match &self.outbox {
            Some(outbox) if !outbox.is_unseen => left_due_max(backlog_bytes_max),
            _ => UNSEEN_BACKLOGS * backlog_bytes_max,
        }
    }

    pub fn row(&self, row: u32) -> Row {
        match self.rows[row as usize] {
            DEAD => Row::Dead,
            FREE => Row::Free,
            bits => Row::Live { group: bits & !(TOLD | APART), apart: bits & APART != 0 },
        }
    }

    /// The entry for this row stands for a watch that is gone.
    pub fn is_stale(&self, row: u32) -> bool {
        self.is_closed() || self.rows[row as usize] == DEAD
    }

    pub fn id_of(&self, row: u32) -> i64 {
        let exception = self.ids.as_ref().and_then(|ids| ids.of_row.get(&row));
        exception.copied().unwrap_or(i64::from(row))
    }

    /// The row of a live watch.
    pub fn row_of(&self, watch_id: i64) -> Option<u32> {
        if let Some(row) = self.ids.as_ref().and_then(|ids| ids.to_row.get(&watch_id)) {
            return Some(*row);
        }
        let row = u32::try_from(watch_id).ok().filter(|row| (*row as usize) < self.rows.len())?;
        (self.id_of(row) == watch_id && matches!(self.row(row), Row::Live { .. })).then_some(row)
    }

    /// The id that the next automatic create gets: counting from 0, without those in use, none given twice (etcd).
    fn next_id(&mut self) -> i64 {
        let Some(ids) = &self.ids else { return self.rows.len() as i64 };
        let mut id = ids.next;
        while self.row_of(id).is_some() {
            id += 1;
        }
        self.ids.as_mut().expect("looked at above").next = id + 1;
        id
    }

    fn ids(&mut self) -> &mut Ids {
        let next = self.rows.len() as i64;
        let new = || Box::new(Ids { next, of_row: HashMap::new(), to_row: HashMap::new(), free: Vec::new() });
        self.ids.get_or_insert_with(new)
    }

    /// A row for a new watch. `watch_id` is free, or 0 for an automatic one. Gives the row and the id.
    fn take_row(&mut self, watch_id: i64, bits: u32) -> (u32, i64) {
        if watch_id != 0 {
            self.ids();
        }
        let id = if watch_id == 0 { self.next_id() } else { watch_id };
        let row = match self.ids.as_mut().and_then(|ids| ids.free.pop()) {
            Some(row) => {
                debug_assert_eq!(self.rows[row as usize], FREE);
                self.rows[row as usize] = bits;
                row
            }
            None => {
                let row = self.rows.len();
                if row == self.rows.capacity() {
                    // The list holds entries of four bytes; its size classes lie where those of pairs do.
                    self.rows.reserve_exact(2 * grown(row.div_ceil(2)) - row);
                }
                self.rows.push(bits);
                row as u32
            }
        };
        if let Some(ids) = &mut self.ids
            && id != i64::from(row)
        {
            ids.of_row.insert(row, id);
            ids.to_row.insert(id, row);
        }
        (row, id)
    }

    /// The watch is gone, so its id is free again.
    fn forget_id(&mut self, row: u32) {
        let ids = self.ids();
        if let Some(id) = ids.of_row.remove(&row) {
            ids.to_row.remove(&id);
        }
    }
}

/// With no caches at all a message at a time goes on.
fn left_due_max(backlog_bytes_max: usize) -> usize {
    (backlog_bytes_max / LEFT_DUE_SHARE).max(1)
}

fn connection_of(token: u64) -> u32 {
    (token >> 32) as u32
}

/// All watch streams of a shard, and their outboxes.
pub struct Streams {
    arena: Arena<Stream>,
    /// Boxed, because the box itself moves between here and the streams.
    #[allow(clippy::vec_box)]
    spare: Vec<Box<Outbox>>,
    spare_bytes: usize,
    ready: VecDeque<u32>,
    backlog_bytes_max: usize,
    backlog_bytes: usize,
    /// The part of it that no two streams share.
    own_backlog_bytes: usize,
    /// Streams that are paused since a watch of theirs was refused.
    refused: Vec<u32>,
    list_bytes: usize,
    live: u64,
    open: u64,
    /// Live watches of each connection, kept only where they are limited.
    by_connection: Option<HashMap<u32, u32>>,
}

impl Streams {
    pub fn new(backlog_bytes_max: usize, counts_connections: bool) -> Streams {
        Streams {
            arena: Arena::new(),
            spare: Vec::new(),
            spare_bytes: 0,
            ready: VecDeque::new(),
            backlog_bytes_max,
            backlog_bytes: 0,
            own_backlog_bytes: 0,
            refused: Vec::new(),
            list_bytes: 0,
            live: 0,
            open: 0,
            by_connection: counts_connections.then(HashMap::new),
        }
    }

    /// Live watches of the connection that a stream belongs to; none where nobody counts them.
    pub fn live_of_connection(&self, stream: u32) -> u32 {
        let connection = connection_of(self.arena[stream].token);
        self.by_connection.as_ref().and_then(|counts| counts.get(&connection)).copied().unwrap_or(0)
    }

    fn discount(&mut self, token: u64, watches: u32) {
        let connection = connection_of(token);
        if let Some(counts) = &mut self.by_connection
            && let Some(count) = counts.get_mut(&connection)
        {
            *count -= watches;
            if *count == 0 {
                counts.remove(&connection);
            }
        }
    }

    /// False: a tick of the stream is not over.
    pub fn begin_tick(&mut self, stream: u32) -> bool {
        let entry = &mut self.arena[stream];
        let is_over = entry.listed & TICKING == 0;
        entry.listed |= TICKING;
        is_over
    }

    pub fn end_tick(&mut self, stream: u32) {
        if let Some(entry) = self.arena.get_mut(stream) {
            entry.listed &= !TICKING;
        }
    }

    /// Streams that are open.
    pub fn open_count(&self) -> u64 {
        self.open
    }

    /// Watches that exist.
    pub fn live_count(&self) -> u64 {
        self.live
    }

    pub fn bytes(&self) -> usize {
        self.arena.bytes()
    }

    pub fn list_bytes(&self) -> usize {
        self.list_bytes
    }

    /// What is queued and not shared by several streams.
    pub fn own_backlog_bytes(&self) -> usize {
        self.own_backlog_bytes
    }

    /// A stream that has more than this queued is heard no more from here on, and its events wait from less on.
    pub fn set_backlog_bytes_max(&mut self, bytes: usize) {
        self.backlog_bytes_max = bytes;
    }

    pub fn drop_spares(&mut self) {
        (self.spare, self.spare_bytes) = (Vec::new(), 0);
    }

    /// A watch was refused for want of memory: the stream is not heard before [`Streams::resume_refused`].
    pub fn pause_refused(&mut self, stream: u32) {
        let entry = &mut self.arena[stream];
        if entry.paused != Paused::Refused {
            entry.paused = Paused::Refused;
            self.refused.push(stream);
        }
    }

    pub fn resume_refused(&mut self) {
        for stream in std::mem::take(&mut self.refused) {
            // Its row may have been freed since, or be another's, which is then looked at in vain.
            let Some(entry) = self.arena.get_mut(stream) else { continue };
            if entry.paused == Paused::Refused {
                entry.paused = Paused::Behind;
                self.resume(stream);
            }
        }
    }

    pub fn open(&mut self, token: u64) -> u32 {
        self.open += 1;
        self.arena.insert(Stream { token, ..Stream::default() })
    }

    pub fn get(&self, stream: u32) -> &Stream {
        &self.arena[stream]
    }

    /// A row that may have been freed.
    pub fn try_get(&self, stream: u32) -> Option<&Stream> {
        self.arena.get(stream)
    }

    /// The client is gone: nothing is sent any more. Rows stay until their entries are gone.
    pub fn close(&mut self, stream: u32) {
        let entry = &mut self.arena[stream];
        assert!(!entry.is_closed(), "a stream is closed once");
        entry.life = Life::Closed;
        self.open -= 1;
        self.live -= u64::from(entry.live);
        let (token, live) = (entry.token, std::mem::take(&mut entry.live));
        if let Some(outbox) = entry.outbox.take() {
            self.backlog_bytes -= outbox.bytes();
            self.own_backlog_bytes -= outbox.own_bytes();
        }
        self.discount(token, live);
    }

    /// All rows of a closed stream have been looked at.
    pub fn emptied(&mut self, stream: u32) {
        let entry = &mut self.arena[stream];
        self.list_bytes -= entry.list_bytes();
        entry.rows = Vec::new();
        entry.ids = None;
        entry.life = Life::Emptied;
        self.free_if_unused(stream);
    }

    fn free_if_unused(&mut self, stream: u32) {
        let entry = &self.arena[stream];
        if entry.life == Life::Emptied && entry.held == 0 && entry.pending == 0 {
            self.arena.remove(stream);
        }
    }

    /// A new watch, with the entry that the caller makes for it. `watch_id` is free, or 0. Gives its row and its id.
    pub fn add(&mut self, stream: u32, watch_id: i64, group: u32, apart: bool, progress: bool) -> (u32, i64) {
        let entry = &mut self.arena[stream];
        let before = entry.list_bytes();
        let taken = entry.take_row(watch_id, group | if apart { APART } else { 0 });
        self.list_bytes = self.list_bytes + entry.list_bytes() - before;
        entry.held += 1;
        entry.live += 1;
        entry.apart += u32::from(apart);
        entry.progress += u32::from(progress);
        self.live += 1;
        if let Some(counts) = &mut self.by_connection {
            *counts.entry(connection_of(entry.token)).or_default() += 1;
        }
        taken
    }

    /// The watch ends. Its entry is still somewhere, so the row is dead.
    pub fn end(&mut self, stream: u32, row: u32, progress: bool) {
        let entry = &mut self.arena[stream];
        let Row::Live { apart, .. } = entry.row(row) else { panic!("a watch ends once") };
        let before = entry.list_bytes();
        entry.forget_id(row);
        self.list_bytes = self.list_bytes + entry.list_bytes() - before;
        entry.rows[row as usize] = DEAD;
        entry.live -= 1;
        entry.apart -= u32::from(apart);
        entry.progress -= u32::from(progress);
        self.live -= 1;
        let token = entry.token;
        self.discount(token, 1);
    }

    /// Marks a row of a closed stream, whose entry will be found and removed later. The counts of its watches are gone
    /// with the stream.
    pub fn mark_dead(&mut self, stream: u32, row: u32) {
        debug_assert!(self.arena[stream].is_closed());
        self.arena[stream].rows[row as usize] = DEAD;
    }

    /// The entry of a dead row, or of any row of a closed stream, has been removed. True when the row was counted as dead
    /// before.
    pub fn drop_entry(&mut self, stream: u32, row: u32) -> bool {
        let entry = &mut self.arena[stream];
        entry.held -= 1;
        let was_dead = match entry.rows.get_mut(row as usize) {
            Some(bits) => std::mem::replace(bits, FREE) == DEAD,
            None => true,
        };
        if !entry.is_closed() {
            let before = entry.list_bytes();
            entry.ids().free.push(row);
            self.list_bytes = self.list_bytes + entry.list_bytes() - before;
        }
        self.free_if_unused(stream);
        was_dead
    }

    /// A watch leaves its group's members, or joins them.
    pub fn set_apart(&mut self, stream: u32, row: u32, apart: bool) {
        let entry = &mut self.arena[stream];
        let bits = &mut entry.rows[row as usize];
        debug_assert!(*bits < FREE && (*bits & APART != 0) != apart);
        *bits ^= APART;
        if apart {
            entry.apart += 1;
        } else {
            entry.apart -= 1;
        }
    }

    /// Notes that a watch was sent an event.
    pub fn set_told(&mut self, stream: u32, row: u32) {
        self.arena[stream].rows[row as usize] |= TOLD;
    }

    /// A progress tick looks at a watch: whether it was sent an event since the last one.
    pub fn take_told(&mut self, stream: u32, row: u32) -> bool {
        let bits = &mut self.arena[stream].rows[row as usize];
        let told = *bits & TOLD != 0;
        *bits &= !TOLD;
        told
    }

    /// Whether events for this stream are to wait as a revision. Once they are, they do until little is left due.
    pub fn refuses(&mut self, stream: u32) -> bool {
        let entry = &mut self.arena[stream];
        entry.full |= entry.backlog() >= entry.event_bytes_max(self.backlog_bytes_max);
        entry.full
    }

    /// As [`Streams::refuses`], for messages that are dropped when there is no room.
    pub fn has_room(&self, stream: u32) -> bool {
        let entry = &self.arena[stream];
        !entry.full && entry.backlog() < self.backlog_bytes_max
    }

    pub fn send(&mut self, stream: u32, header: &Header, head: &Head<'_>, events: Events<'_>) {
        self.write(stream, |outbox| put_response(outbox, header, head, events));
    }

    pub fn send_fragments(
        &mut self,
        stream: u32,
        header: &Header,
        watch_id: i64,
        events: Events<'_>,
        bytes_max: usize,
    ) {
        self.write(stream, |outbox| put_fragments(outbox, header, watch_id, events, bytes_max));
    }

    fn write(&mut self, stream: u32, put: impl FnOnce(&mut Outbox)) {
        let entry = &mut self.arena[stream];
        if entry.is_closed() {
            return;
        }
        let is_first = entry.outbox.is_none();
        let outbox = entry.outbox.get_or_insert_with(|| {
            let spare = self.spare.pop();
            self.spare_bytes -= spare.as_ref().map_or(0, |outbox| outbox.spare_bytes());
            let mut outbox = spare.unwrap_or_default();
            outbox.is_unseen = true;
            outbox
        });
        let (before, own_before) = (outbox.bytes(), outbox.own_bytes());
        put(outbox);
        self.backlog_bytes += outbox.bytes() - before;
        self.own_backlog_bytes += outbox.own_bytes() - own_before;
        // A connection that has not taken everything comes again by itself. It is not asked to look at a closed window once
        // more with each event that waits for it.
        if is_first {
            self.announce(stream);
        }
    }

    fn announce(&mut self, stream: u32) {
        let entry = &mut self.arena[stream];
        if entry.listed & READY == 0 {
            entry.listed |= READY;
            self.ready.push_back(stream);
        }
    }

    /// A stream that got something to send and had nothing before, or can take requests again.
    pub fn next_ready(&mut self) -> Option<u32> {
        while let Some(stream) = self.ready.pop_front() {
            // The row may have been freed, and taken by another stream, since it was announced.
            if let Some(entry) = self.arena.get_mut(stream)
                && entry.listed & READY != 0
            {
                entry.listed &= !READY;
                if let Some(outbox) = &mut entry.outbox {
                    outbox.is_unseen = false;
                }
                if !entry.is_closed() {
                    return Some(stream);
                }
            }
        }
        None
    }

    pub fn has_ready(&self) -> bool {
        !self.ready.is_empty()
    }

    /// The next bytes to send. True beside them when events that waited for room may come now.
    pub fn take(&mut self, stream: u32, bytes_max: usize) -> (Option<Bytes>, bool) {
        let entry = &mut self.arena[stream];
        let Some(outbox) = &mut entry.outbox else { return (None, false) };
        let own_before = outbox.own_bytes();
        let taken = outbox.take(bytes_max);
        self.backlog_bytes -= taken.as_ref().map_or(0, Bytes::len);
        self.own_backlog_bytes -= own_before - outbox.own_bytes();
        if outbox.bytes() == 0
            && let Some(outbox) = entry.outbox.take()
            && outbox.is_spare()
            && self.spare_bytes + outbox.spare_bytes() <= SPARE_BYTES_MAX
        {
            self.spare_bytes += outbox.spare_bytes();
            self.spare.push(outbox);
        }
        let drained = entry.full && entry.backlog() <= left_due_max(self.backlog_bytes_max) / 2;
        entry.full &= !drained;
        self.resume(stream);
        (taken, drained)
    }

    /// A request of this weight waits.
    pub fn hold(&mut self, stream: u32, weight: u32) {
        self.arena[stream].pending += weight;
    }

    /// A request that waited is done with.
    pub fn unhold(&mut self, stream: u32, weight: u32) {
        self.arena[stream].pending -= weight;
        self.resume(stream);
        self.free_if_unused(stream);
    }

    /// False makes the connection stop; the stream is announced when it can go on.
    pub fn can_take_requests(&mut self, stream: u32) -> bool {
        let backlog_bytes_max = self.backlog_bytes_max;
        let entry = &mut self.arena[stream];
        if entry.paused != Paused::Refused {
            let is_behind = entry.backlog() >= backlog_bytes_max || entry.pending >= PENDING_MAX;
            entry.paused = if is_behind { Paused::Behind } else { Paused::No };
        }
        entry.paused == Paused::No
    }

    fn resume(&mut self, stream: u32) {
        let entry = &mut self.arena[stream];
        if entry.paused == Paused::Behind
            && entry.backlog() <= self.backlog_bytes_max / 2
            && entry.pending <= PENDING_MAX / 2
        {
            entry.paused = Paused::No;
            self.announce(stream);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_idle_stream_takes_72_bytes() {
        assert_eq!(size_of::<Stream>(), 72);
    }

    #[test]
    fn automatic_ids_count_up_skip_those_in_use_and_never_come_back() {
        let mut streams = Streams::new(1_000, false);
        let stream = streams.open(0);
        let add = |streams: &mut Streams, id| streams.add(stream, id, 7, false, false);
        assert_eq!(add(&mut streams, 0), (0, 0));
        assert_eq!(add(&mut streams, 0), (1, 1));
        assert_eq!(add(&mut streams, 3), (2, 3));
        assert_eq!(add(&mut streams, 0), (3, 2));
        assert_eq!(add(&mut streams, 0), (4, 4), "3 is in use");
        let row = streams.get(stream).row_of(1).unwrap();
        streams.end(stream, row, false);
        assert_eq!(streams.get(stream).row_of(1), None);
        assert_eq!(add(&mut streams, 0), (5, 5), "a dead row is not reused");
        assert!(streams.drop_entry(stream, row));
        assert_eq!(add(&mut streams, 0), (1, 6), "a free row is, under a new id");
        assert_eq!(streams.get(stream).row_of(6), Some(1));
        assert_eq!(streams.get(stream).row_of(1), None);
        assert_eq!(add(&mut streams, 1), (6, 1), "a chosen id may come back");
        for (id, row) in [(0, 0), (3, 2), (2, 3), (4, 4), (5, 5)] {
            assert_eq!((streams.get(stream).row_of(id), streams.get(stream).id_of(row)), (Some(row), id));
        }
    }

    #[test]
    fn a_long_life_of_creates_and_cancels_takes_no_more_room() {
        let mut streams = Streams::new(1_000, false);
        let stream = streams.open(0);
        for _ in 0..10_000 {
            let (row, _) = streams.add(stream, 0, 7, false, false);
            streams.end(stream, row, false);
            streams.drop_entry(stream, row);
        }
        assert_eq!(streams.get(stream).rows.len(), 1);
        assert_eq!(streams.get(stream).next_free_ids(), (0, 1));
    }

    impl Stream {
        /// How many ids differ from their rows, and how many rows are free.
        fn next_free_ids(&self) -> (usize, usize) {
            self.ids.as_ref().map_or((0, 0), |ids| (ids.of_row.len(), ids.free.len()))
        }
    }
}
