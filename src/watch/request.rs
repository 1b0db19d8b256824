//! What a watch stream is asked, and the answers: create, cancel, progress.
//!
//! Everything here runs between two batches, at one revision of the hub, so an answer's header says exactly which events
//! stand before it.

use super::group::{Member, Options};
use super::hub::{Create, Hub, Request};
use super::message::{Events, Head};
use super::refusal::Why;
use super::stream::Row;
use crate::types::Revision;

/// etcd's words, each with the prefix that it has there: clients look for them in the text.
const COMPACTED: &str = "etcdserver: mvcc: required revision has been compacted";
const EMPTY_RANGE: &str = "mvcc: watcher range is empty";
const DUPLICATE_ID: &str = "mvcc: duplicate watch ID provided on the WatchStream";
/// Ours: a shard names groups in 30 bits.
const TOO_MANY: &str = "tarsier: too many different watches";
/// Ours: the memory budget. The client is told so rather than the stream ended, so that its other watches go on.
const NO_MEMORY: &str = "tarsier: no memory for a further watch";
/// Ours: the limits that an operator may set.
const STREAM_FULL: &str = "tarsier: too many watches on this stream";
const CONNECTION_FULL: &str = "tarsier: too many watches on this connection";

/// In what is not about one watch, and in failed creates, the id is -1 (etcd: `InvalidWatchID`).
const NO_WATCH: i64 = -1;

impl Hub {
    pub(super) fn answer(&mut self, stream: u32, request: Request) {
        match request {
            Request::Create(create) => self.create(stream, &create),
            Request::Cancel { watch_id } => self.cancel(stream, watch_id),
            Request::Progress => self.tell_progress(stream),
        }
    }

    fn send_head(&mut self, stream: u32, head: Head<'_>) {
        self.streams.send(stream, &self.header, &head, Events::NONE);
    }

    fn create(&mut self, stream: u32, create: &Create) {
        if create.start < 0 {
            return self.refuse(stream, Why::Request(COMPACTED));
        }
        if create.range.is_empty() {
            return self.refuse(stream, Why::Request(EMPTY_RANGE));
        }
        if create.watch_id != 0 && self.streams.get(stream).row_of(create.watch_id).is_some() {
            return self.refuse(stream, Why::Request(DUPLICATE_ID));
        }
        if let Some(reason) = self.limit_reached(stream) {
            return self.refuse(stream, Why::Limit(reason));
        }
        if !self.has_room_for(create.range.bytes()) {
            self.streams.pause_refused(stream);
            return self.refuse(stream, Why::Memory(NO_MEMORY));
        }
        let Some(group) = self.groups.intern(&create.range, create.options()) else {
            return self.refuse(stream, Why::Limit(TOO_MANY));
        };
        let start = if create.start == 0 { self.revision.next() } else { Revision(create.start) };
        self.register(stream, create, group, start);
    }

    fn refuse(&mut self, stream: u32, why: Why) {
        let cancel_reason = why.text();
        self.send_head(
            stream,
            Head { watch_id: NO_WATCH, created: true, canceled: true, cancel_reason, ..Head::default() },
        );
        self.refused(stream, why);
    }

    /// Why the stream may have no further watch now. A watch that is cancelled makes room for another at once.
    fn limit_reached(&self, stream: u32) -> Option<&'static str> {
        let limits = self.config.watches;
        if limits.per_stream.is_some_and(|max| self.streams.get(stream).live() >= max) {
            return Some(STREAM_FULL);
        }
        let is_full = limits.per_connection.is_some_and(|max| self.streams.live_of_connection(stream) >= max);
        is_full.then_some(CONNECTION_FULL)
    }

    fn register(&mut self, stream: u32, create: &Create, group: u32, start: Revision) {
        #[cfg(test)]
        let start = if self.planted.resumes_too_early && start <= self.revision { start.previous() } else { start };
        // A start above the hub's revision that was named is in the future, even when the next batch has it (etcd).
        let synced = create.start == 0;
        #[cfg(test)]
        let synced = synced || (self.planted.future_sees_present && start > self.revision);
        let progress = create.progress_notify;
        let (row, watch_id) = self.streams.add(stream, create.watch_id, group, !synced, progress);
        self.send_head(stream, Head { watch_id, created: true, ..Head::default() });
        let member = Member { stream, row };
        if synced {
            self.groups.add(group, member);
        } else {
            self.groups.set_apart(group);
            if start > self.revision {
                self.future.insert((start, stream, row), group);
                self.starts.insert((stream, row), start);
            } else {
                // No write has the first revision, so nobody has a batch of it to wait for.
                let next = if self.compacted > Revision::FIRST { start } else { start.max(Revision::FIRST.next()) };
                self.catch_up.insert(member, group, next, self.compacted);
            }
        }
        if progress && self.streams.get(stream).progress() == 1 {
            self.with_progress.push_back(stream);
        }
    }

    /// One watch whose start the next batch is becomes a member of its group.
    pub(super) fn join_from_future(&mut self) {
        let ((_, stream, row), group) = self.future.pop_first().expect("asked only when there is one");
        self.starts.remove(&(stream, row));
        self.join(Member { stream, row }, group);
    }

    /// An unknown id gets no answer (etcd).
    fn cancel(&mut self, stream: u32, watch_id: i64) {
        let Some(row) = self.streams.get(stream).row_of(watch_id) else { return };
        let Row::Live { group, apart } = self.streams.get(stream).row(row) else {
            panic!("an id in use names a live row")
        };
        let member = Member { stream, row };
        self.end_watch(member, group);
        if !apart {
            self.remove_or_bury(member, group);
        } else if self.leave_future(stream, row) {
            self.drop_apart(member, group);
        }
        self.send_head(stream, Head { watch_id, canceled: true, ..Head::default() });
    }

    /// The watch is gone, its entry not yet.
    pub(super) fn end_watch(&mut self, member: Member, group: u32) {
        let options = self.groups.get(group).expect("a group lives while a watch is in it").options();
        self.streams.end(member.stream, member.row, options.has(Options::PROGRESS));
    }

    pub(super) fn leave_future(&mut self, stream: u32, row: u32) -> bool {
        let Some(start) = self.starts.remove(&(stream, row)) else { return false };
        self.future.remove(&(start, stream, row)).expect("both maps know a watch, or none");
        true
    }

    /// For a planted bug: at once, whatever stands between.
    #[cfg(test)]
    pub(super) fn tell_progress_at(&mut self, stream: u32, revision: Revision) {
        if self.streams.get(stream).live() > 0 {
            let head = Head { watch_id: NO_WATCH, ..Head::default() };
            self.streams.send(stream, &self.config.identity.header(revision), &head, Events::NONE);
        }
    }

    /// Manual progress: only when every watch of the stream stands at the live edge, else nothing. Never put off.
    fn tell_progress(&mut self, stream: u32) {
        let entry = self.streams.get(stream);
        if entry.live() > 0 && entry.is_synced() && self.streams.has_room(stream) {
            self.send_head(stream, Head { watch_id: NO_WATCH, ..Head::default() });
        }
    }

    /// Goes through the rows of a stream whose tick has come. A watch that was sent events since the last tick is passed
    /// over, and so is one that is late or starts in the future (etcd).
    pub(super) fn tick(&mut self, stream: u32, budget: usize) -> usize {
        let rows = match self.streams.try_get(stream) {
            Some(entry) if !entry.is_closed() => entry.row_count(),
            _ => 0,
        };
        let end = rows.min(self.tick_row + budget);
        let used = end.saturating_sub(self.tick_row) + 1;
        for row in self.tick_row as u32..end as u32 {
            let Row::Live { group, apart } = self.streams.get(stream).row(row) else { continue };
            let told = self.streams.take_told(stream, row);
            let options = self.groups.get(group).expect("a group lives while a watch is in it").options();
            if !told && !apart && options.has(Options::PROGRESS) && self.streams.has_room(stream) {
                let watch_id = self.streams.get(stream).id_of(row);
                self.send_head(stream, Head { watch_id, ..Head::default() });
            }
        }
        self.tick_row = end;
        if end == rows {
            self.tick_row = 0;
            self.ticks.pop_front();
            self.streams.end_tick(stream);
        }
        used
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::super::hub::HubConfig;
    use super::*;
    use crate::types::{Batch, Change, KeyRange, KeyValue, LeaseId, Time};

    #[test]
    fn ticks_that_come_faster_than_a_stream_can_be_gone_through_leave_late_watchers_their_turn() {
        let mut hub = Hub::new(HubConfig::default(), Revision::FIRST);
        let (ticking, late) = (hub.open_stream(1), hub.open_stream(2));
        let revision = Revision::FIRST.next();
        let kv = KeyValue::new(b"late", b"v", revision, revision, 0, 1, LeaseId::NONE);
        let changes = vec![Change::Put { kv, previous: None }].into();
        hub.handle_batch(Arc::new(Batch { revision, time: Time(0), changes }));
        let create = |key: &'static str| Create::plain(KeyRange::One(key.into()));
        for _ in 0..20_000 {
            let asked = Create { progress_notify: true, ..create("ticking") };
            hub.request(ticking, revision, Request::Create(asked));
        }
        while hub.turn(1_000) {}
        hub.request(late, revision, Request::Create(Create { start: revision.0, ..create("late") }));
        let mut told = Vec::new();
        // One is gone through in some forty turns.
        for _ in 0..20 {
            assert!(hub.progress_due(ticking));
            hub.turn(1_000);
            while hub.take_output(ticking, 1 << 20).is_some() {}
            told.extend(std::iter::from_fn(|| hub.take_output(late, 1 << 20)).flatten());
        }
        assert!(told.ends_with(b"v"), "the answer alone: {told:?}");
        assert_eq!(hub.ticks.len(), 1, "one of a stream waits, however often it comes");
    }
}
