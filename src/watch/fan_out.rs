//! One batch to all synced watchers that it concerns.
//!
//! First every change is held against the groups; then each group that was hit has its events encoded once, large ones that
//! the next group is told alike for both, and each of its members is sent them behind a head of its own. All of it goes in bounded pieces, at a cursor. While a batch is under way no
//! watch is created and none canceled (requests wait), so the only one to take members out of a group is the cursor itself:
//! the last member comes to the cursor's place, and the cursor stays there, or it would pass that member by.

use std::sync::Arc;

use bytes::Bytes;
use hashbrown::HashMap;

use super::group::{Groups, Member, Options};
use super::hub::Hub;
use super::message::{EVENTS, Events, Head, Header, SHARED_BYTES_MIN};
use super::shared::Shared;
use crate::types::encode::{Sink, event_len, put_event};
use crate::types::{Batch, Change, Revision};

const NONE: u32 = u32::MAX;
/// Groups that one batch concerns, beyond which their places are given back.
const HITS_KEPT: usize = 4_096;
/// A buffer for events that grew beyond this is given back.
const ENCODED_BYTES_KEPT: usize = 64 << 10;

/// The batch under way. Its buffers are kept for the next one.
#[derive(Default)]
pub(super) struct FanOut {
    batch: Option<Arc<Batch>>,
    /// The next change to hold against the groups.
    change: usize,
    /// The last span that it was held against.
    stabbed: Option<u32>,
    /// The groups that are concerned, each once, in the order in which the changes came across them.
    hits: Vec<Hit>,
    /// What concerns them beside their first changes in a row.
    further: Vec<Changes>,
    /// The hit of each group, while a batch of several changes is held against them.
    hit_of: HashMap<u32, u32>,
    /// The group in turn.
    at: usize,
    run: Option<Run>,
    encoded: Vec<u8>,
    /// The large events that were encoded last, without previous versions and with them: a large value that a thousand groups
    /// watch is in memory once.
    same: [Option<Same>; 2],
    /// Events of earlier runs that some stream still has to send, and those of history.
    pub(super) shared: Shared,
}

/// Changes in a row that concern a group. A range that is deleted has its changes in the order of keys, so that there are few
/// of these, however many its keys and those who watch them.
#[derive(Clone, Copy)]
struct Changes {
    start: u32,
    /// Behind the last one.
    end: u32,
    /// The next ones of the same group, among the further ones.
    next: u32,
}

/// Changes in a row, encoded for one group, that concern the next one as well.
struct Same {
    changes: (u32, u32),
    bytes: Bytes,
}

/// A group that is concerned.
struct Hit {
    group: u32,
    changes: Changes,
    /// Its last ones among the further ones.
    last: u32,
}

/// A group in delivery.
struct Run {
    group: u32,
    /// What is still to be encoded. None: nothing.
    changes: Option<Changes>,
    /// All of it, where that is in a row.
    in_a_row: Option<(u32, u32)>,
    /// The next member.
    member: usize,
    options: Options,
    with_previous: bool,
    header: Header,
    shared: Option<Bytes>,
}

impl FanOut {
    pub(super) fn is_active(&self) -> bool {
        self.batch.is_some()
    }

    /// What the batch under way takes, and what earlier ones have left with streams.
    pub(super) fn bytes(&self) -> usize {
        let Some(_) = &self.batch else { return self.shared.bytes() };
        let further = self.further.capacity() * size_of::<Changes>();
        let hits = self.hits.capacity() * size_of::<Hit>() + further + self.hit_of.allocation_size();
        let of_run = self.run.as_ref().filter(|run| run.in_a_row.is_none());
        let of_run = of_run.and_then(|run| run.shared.as_ref()).map_or(0, Bytes::len);
        let same = self.same.iter().flatten().map(|same| same.bytes.len()).sum::<usize>();
        self.shared.bytes() + hits + self.encoded.capacity() + of_run + same
    }

    pub(super) fn start(&mut self, batch: Arc<Batch>) {
        assert!(self.batch.is_none(), "one batch at a time");
        self.batch = Some(batch);
        (self.change, self.stabbed) = (0, None);
        self.at = 0;
    }

    /// A change of the batch concerns this group.
    fn hit(&mut self, group: u32, change: u32, is_only_one: bool) {
        let changes = Changes { start: change, end: change + 1, next: NONE };
        let (hits, further) = (self.hits.len() as u32, self.further.len() as u32);
        let at = if is_only_one { hits } else { *self.hit_of.entry(group).or_insert(hits) };
        let Some(hit) = self.hits.get_mut(at as usize) else {
            return self.hits.push(Hit { group, changes, last: NONE });
        };
        let last = self.further.get_mut(hit.last as usize).unwrap_or(&mut hit.changes);
        if last.end == change {
            last.end += 1;
        } else {
            last.next = further;
            hit.last = further;
            self.further.push(changes);
        }
    }

    /// The batch is told. What grew beyond the usual is given back.
    fn end(&mut self) {
        for shared in std::mem::take(&mut self.same).into_iter().flatten() {
            self.end_of_shared(shared.bytes);
        }
        self.batch = None;
        self.hits.clear();
        self.hits.shrink_to(HITS_KEPT);
        self.further.clear();
        self.further.shrink_to(HITS_KEPT);
        self.hit_of.clear();
        self.hit_of.shrink_to(HITS_KEPT);
        self.encoded.clear();
        self.encoded.shrink_to(ENCODED_BYTES_KEPT);
    }
}

impl FanOut {
    /// A buffer is taken back for the next run, unless a stream still holds a piece of it.
    fn end_of_shared(&mut self, shared: Bytes) {
        match shared.try_into_mut() {
            Ok(encoded) => self.encoded = encoded.into(),
            Err(shared) => self.shared.keep(shared),
        }
    }

    /// The large events of the group in turn may be what the next one is told.
    fn keep_same(&mut self, with_previous: bool, changes: (u32, u32), bytes: &Bytes) {
        let same = Same { changes, bytes: bytes.clone() };
        if let Some(before) = self.same[usize::from(with_previous)].replace(same) {
            self.end_of_shared(before.bytes);
        }
    }

    fn same(&self, with_previous: bool, changes: (u32, u32)) -> Option<Bytes> {
        let same = self.same[usize::from(with_previous)].as_ref().filter(|same| same.changes == changes);
        same.map(|same| same.bytes.clone())
    }
}

/// Tag and length of an event that is shorter than 4 GiB.
pub(super) const EVENT_HEAD_BYTES_MAX: usize = 1 + 5;

/// Appends an event with its tag, so that it can stand behind any head.
pub(super) fn put_tagged(out: &mut Vec<u8>, revision: Revision, change: &Change, with_previous: bool) {
    out.put_byte(EVENTS);
    out.put_varint(event_len(revision, change, with_previous) as u64);
    put_event(out, revision, change, with_previous);
}

/// Whether what was there before the revision may still be told (etcd reads it at the revision before).
pub(super) fn previous_is_kept(revision: Revision, compacted: Revision) -> bool {
    revision.previous() >= compacted
}

impl Hub {
    /// A piece of the batch under way, of at most about `budget` changes or members. Gives how much it was.
    pub(super) fn fan_out_step(&mut self, budget: usize) -> usize {
        let batch = Arc::clone(self.fan_out.batch.as_ref().expect("asked only while a batch is under way"));
        if self.fan_out.change < batch.changes.len() {
            return self.hold_against_groups(&batch, budget);
        }
        let mut used = 0;
        while used < budget {
            used += 1;
            let left = (budget - used).max(1);
            match self.fan_out.run.take() {
                Some(run) => {
                    used += match run.changes {
                        Some(changes) => self.encode(&batch, run, changes, left),
                        None => self.deliver(&batch, run, left),
                    }
                }
                None if self.fan_out.at < self.fan_out.hits.len() => self.start_run(&batch),
                None => {
                    self.fan_out.end();
                    self.handled(batch);
                    break;
                }
            }
        }
        used
    }

    fn hold_against_groups(&mut self, batch: &Batch, budget: usize) -> usize {
        let Hub { fan_out, groups, .. } = self;
        let is_only_one = batch.changes.len() == 1;
        let mut used = 0;
        while fan_out.change < batch.changes.len() && used < budget {
            let number = fan_out.change;
            let change = &batch.changes[number];
            // Groups stay while a batch is under way, so the next piece goes on behind the last span of this one.
            fan_out.stabbed = groups.stab(change.key(), fan_out.stabbed, budget - used, &mut |group, options| {
                used += 1;
                if options.let_through(change) {
                    fan_out.hit(group, number as u32, is_only_one);
                }
            });
            used += 1;
            fan_out.change += usize::from(fan_out.stabbed.is_none());
        }
        used
    }

    /// The next group is in turn.
    fn start_run(&mut self, batch: &Batch) {
        let Hit { group, changes, .. } = self.fan_out.hits[self.fan_out.at];
        let options = self.groups.get(group).expect("groups stay while a batch is under way").options();
        let with_previous = options.has(Options::PREV_KV) && previous_is_kept(batch.revision, self.compacted);
        let header = self.config.identity.header(batch.revision);
        let in_a_row = (changes.next == NONE).then_some((changes.start, changes.end));
        let shared = in_a_row.and_then(|changes| self.fan_out.same(with_previous, changes));
        let changes = if shared.is_none() { Some(changes) } else { None };
        self.fan_out.encoded.clear();
        self.fan_out.run = Some(Run { group, changes, in_a_row, member: 0, options, with_previous, header, shared });
    }

    /// Encodes events of the group in turn. Gives how many.
    fn encode(&mut self, batch: &Batch, mut run: Run, mut changes: Changes, budget: usize) -> usize {
        let FanOut { further, encoded, .. } = &mut self.fan_out;
        let count = ((changes.end - changes.start) as usize).min(budget);
        let start = changes.start as usize;
        for change in &batch.changes[start..start + count] {
            put_tagged(encoded, batch.revision, change, run.with_previous);
        }
        changes.start += count as u32;
        run.changes =
            if changes.start < changes.end { Some(changes) } else { further.get(changes.next as usize).copied() };
        if run.changes.is_none() && encoded.len() >= SHARED_BYTES_MIN {
            // It may lie for long with a stream that does not read, in a buffer that was made for a far larger one.
            if encoded.capacity() > 2 * encoded.len() {
                encoded.shrink_to_fit();
            }
            let shared = Bytes::from(std::mem::take(encoded));
            if let Some(changes) = run.in_a_row {
                self.fan_out.keep_same(run.with_previous, changes, &shared);
            }
            run.shared = Some(shared);
        }
        self.fan_out.run = Some(run);
        count
    }

    /// Sends the events of a group to its members from the cursor on.
    fn deliver(&mut self, batch: &Batch, mut run: Run, budget: usize) -> usize {
        let mut used = 0;
        while let Some(member) = member_at(&self.groups, run.group, run.member) {
            if used >= budget {
                self.fan_out.run = Some(run);
                return used;
            }
            used += 1;
            // The list of the stream is looked into only where some member is dead: it is one cache line more an event.
            let some_dead = self.groups.get(run.group).is_some_and(|group| group.dead() > 0);
            let stream = self.streams.get(member.stream);
            if stream.is_closed() || (some_dead && stream.is_stale(member.row)) {
                self.remove_stale_member(run.group, run.member);
            } else if self.streams.refuses(member.stream) {
                self.fall_behind(&mut run, member, batch.revision);
            } else {
                self.deliver_to(&run, member);
                run.member += 1;
            }
        }
        self.fan_out.at += 1;
        // The next group may be told the same; what is kept for that is given up at the end of the batch.
        if let Some(shared) = run.shared.filter(|_| run.in_a_row.is_none()) {
            self.fan_out.end_of_shared(shared);
        }
        self.groups.release(run.group);
        used
    }

    fn deliver_to(&mut self, run: &Run, member: Member) {
        let shared = run.shared.as_ref();
        let bytes = shared.map_or(&self.fan_out.encoded[..], |shared| shared);
        let watch_id = self.streams.get(member.stream).id_of(member.row);
        let events = Events { bytes, shared, ..Events::NONE };
        self.events_sent += 1;
        #[cfg(test)]
        if self.planted.splits_transactions
            && let Some(first) = super::message::first_of_several(bytes)
        {
            let head = Head { watch_id, ..Head::default() };
            self.streams.send(member.stream, &run.header, &head, Events { bytes: &bytes[..first], ..events });
            self.streams.send(member.stream, &run.header, &head, Events { bytes: &bytes[first..], ..events });
            return;
        }
        if run.options.has(Options::FRAGMENT) {
            let bytes_max = self.config.fragment_bytes;
            self.streams.send_fragments(member.stream, &run.header, watch_id, events, bytes_max);
        } else {
            let head = Head { watch_id, ..Head::default() };
            self.streams.send(member.stream, &run.header, &head, events);
        }
        if run.options.has(Options::PROGRESS) {
            self.streams.set_told(member.stream, member.row);
        }
    }

    /// The stream has no room: the watcher remembers the revision instead of the events, and leaves the synced.
    fn fall_behind(&mut self, run: &mut Run, member: Member, revision: Revision) {
        self.slow_events += 1;
        #[cfg(test)]
        if self.planted.drops_when_slow {
            run.member += 1;
            return;
        }
        #[cfg(test)]
        let revision = if self.planted.tells_twice { revision.previous() } else { revision };
        self.groups.swap_remove(run.group, run.member);
        self.groups.set_apart(run.group);
        self.streams.set_apart(member.stream, member.row, true);
        self.catch_up.park(member, run.group, revision);
        #[cfg(test)]
        if self.planted.passes_swapped_by {
            run.member += 1;
        }
    }

    /// Takes out a member whose watch or stream is gone, on the way.
    pub(super) fn remove_stale_member(&mut self, group: u32, at: usize) {
        let member = self.groups.swap_remove(group, at);
        if self.streams.drop_entry(member.stream, member.row) {
            self.groups.exhume(group);
        }
    }
}

fn member_at(groups: &Groups, group: u32, at: usize) -> Option<Member> {
    groups.get(group).expect("groups stay while a batch is under way").members().get(at)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::types::{KeyRange, KeyValue, LeaseId, Time};
    use crate::watch::hub::{Create, HubConfig, Request};

    /// The ranges differ, so each watch has a group of its own, and nobody reads.
    #[test]
    fn a_large_event_is_held_once_for_all_who_are_told_it() {
        const VALUE_BYTES: usize = 1 << 20;
        let mut hub = Hub::new(HubConfig::default(), Revision(1));
        for number in 0..200 {
            let stream = hub.open_stream(number);
            let range = KeyRange::Span { start: "a".into(), end: format!("b{number}").into() };
            let create = Create { prev_kv: number % 2 == 0, ..Create::plain(range) };
            hub.request(stream, Revision(1), Request::Create(create));
        }
        let put = |revision: i64, key: &[u8], bytes: usize| {
            let (revision, value) = (Revision(revision), vec![b'v'; bytes]);
            let kv = KeyValue::new(key, &value, revision, revision, 0, 1, LeaseId::NONE);
            let changes = Box::new([Change::Put { kv, previous: None }]);
            Arc::new(Batch { revision, time: Time(0), changes })
        };
        hub.handle_batch(put(2, b"abc", VALUE_BYTES));
        while hub.turn(7) {}
        assert_eq!(hub.counters().events_sent, 200);
        let backlog = hub.bytes().backlog;
        assert!(backlog < 3 * VALUE_BYTES, "{backlog} bytes for one event");
        let taken = |hub: &mut Hub| {
            let streams: Vec<_> = std::iter::from_fn(|| hub.next_ready()).map(|(stream, _)| stream).collect();
            let taken = streams.iter().map(|stream| {
                std::iter::from_fn(|| hub.take_output(*stream, 1 << 14)).map(|bytes| bytes.len()).sum::<usize>()
            });
            taken.collect::<Vec<_>>()
        };
        let told = taken(&mut hub);
        assert!(told.len() == 200 && told.iter().all(|bytes| *bytes > VALUE_BYTES));
        hub.handle_batch(put(3, b"z", 1));
        while hub.turn(7) {}
        hub.keep_house();
        let backlog = hub.bytes().backlog;
        assert!(backlog < VALUE_BYTES, "{backlog} bytes are left of it");
    }

    #[test]
    fn a_change_that_many_spans_hold_is_held_against_some_at_a_time() {
        const SPANS: usize = 5_000;
        let mut hub = Hub::new(HubConfig::default(), Revision(1));
        let stream = hub.open_stream(0);
        for number in 0..SPANS {
            let range = KeyRange::Span { start: format!("a{number}").into(), end: "c".into() };
            hub.request(stream, Revision(1), Request::Create(Create::plain(range)));
        }
        let revision = Revision(2);
        let kv = KeyValue::new(b"b", b"v", revision, revision, 0, 1, LeaseId::NONE);
        let changes = Box::new([Change::Put { kv, previous: None }]);
        hub.handle_batch(Arc::new(Batch { revision, time: Time(0), changes }));
        let mut before = 0;
        while hub.fan_out.change == 0 {
            assert!(hub.turn(10));
            let hits = hub.fan_out.hits.len();
            assert!(hits <= before + 10, "{} in one turn", hits - before);
            before = hits;
        }
        assert_eq!(before, SPANS);
    }
}
