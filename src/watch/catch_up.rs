//! Watchers that are behind, and the passes over history that bring them forward together.
//!
//! A watcher that is behind holds one revision, the next it needs, and no events. Those of a stream without room are
//! *parked* under their stream until its outbox is half empty. The others stand by group, and a *pass* reads history once
//! for all of them, from the lowest revision needed up to the hub's: each change is held against the groups, and a group
//! that has watchers here gathers its events, encoded once. A group's events are *flushed*, one response for each watcher
//! with the part it still needs, when they are many enough and at the end. Whoever then meets the hub's revision joins the
//! synced members.
//!
//! What a group has gathered covers every revision from its *window* up to the pass's position. A watcher takes part in the
//! pass when it needs nothing before the window; others wait for the next one, in a list of their own. That one comparison
//! keeps out both gaps and repetitions. Nothing is gathered for a group while nobody of it takes part, and its window moves on.
//!
//! A compaction above the position ends the pass: what was gathered is still complete up to the position and is sent; the
//! next pass starts at the compacted revision, and whoever needs older ones is canceled. A pass in which nobody takes part any
//! more ends as well.
//!
//! All of this runs between batches only, so that the hub's revision stands still while a watcher joins.

use std::sync::Arc;

use bytes::Bytes;

use super::behind::{Behind, BehindGroup, CatchUp, FEW, Flush, Parked, Pass};
use super::fan_out::{EVENT_HEAD_BYTES_MAX, previous_is_kept, put_tagged};
use super::gathered::LARGE_BYTES_MIN;
use super::group::{Member, Options};
use super::hub::Hub;
use super::message::{Events, Head, SHARED_BYTES_MIN};
use super::refusal::Why;
use super::shared::Large;
use crate::types::encode::event_len;
use crate::types::{Batch, Revision};

/// Parked watchers of a stream that take part again at once. Each has an event due, so that more would mostly be parked again:
/// with all of them 400,000 watchers of one stream cost their shard 4.4 s of CPU for one event each, at a client that reads
/// 128 KiB at a time.
const LET_OUT_MAX: usize = 4_096;

impl Hub {
    /// A piece of catching up, of at most about `budget` changes or watchers. Only between batches. Gives how much it was;
    /// 0 is nothing to do.
    pub(super) fn catch_up_step(&mut self, budget: usize) -> usize {
        if let Some(flush) = self.catch_up.flush.take() {
            return self.flush_step(flush, budget);
        }
        if let Some(stream) = self.catch_up.drained.front().copied() {
            return self.unpark(stream, budget);
        }
        if !self.catch_up.has_work() {
            return 0;
        }
        let Some(pass) = &mut self.catch_up.pass else {
            self.start_pass();
            return 1;
        };
        if !pass.is_amid()
            && let Some(group) = pass.full.pop()
        {
            self.start_flush(group, false);
            return 1;
        }
        if let Some(cursor) = pass.relief {
            return self.relieve(cursor);
        }
        if !pass.is_over && pass.position <= self.revision {
            return self.read_history(budget);
        }
        self.visit_next_group()
    }

    fn start_pass(&mut self) {
        let catch_up = &mut self.catch_up;
        let low = catch_up.low.take().expect("whoever is behind is counted when no pass runs");
        let start = low.max(self.compacted);
        catch_up.passes += 1;
        catch_up.taking_part = catch_up.members;
        catch_up.pass = Some(Pass {
            number: catch_up.passes,
            start,
            // The revision of the empty store has no batch.
            position: start.max(Revision::FIRST.next()),
            change: 0,
            stabbed: None,
            large: [false; 2],
            large_bytes: 0,
            first: None,
            full: Vec::new(),
            cursor: 0,
            relief: None,
            is_over: false,
        });
    }

    /// Holds changes against the groups. The pass stands at a revision that the hub has handled.
    fn read_history(&mut self, budget: usize) -> usize {
        self.catch_up.skip_ahead(self.revision);
        let mut used = 0;
        while used < budget {
            let pass = self.catch_up.pass.as_ref().expect("only a pass reads history");
            if pass.position > self.revision || (!pass.is_amid() && !pass.full.is_empty()) || pass.relief.is_some() {
                break;
            }
            let position = pass.position;
            let Some(batch) = self.batch_at(position) else {
                self.catch_up.wanted = Some(position);
                break;
            };
            used += self.gather(&batch, budget - used);
        }
        used.max(1)
    }

    /// The batch of a revision, from what the hub keeps or what it was sent.
    fn batch_at(&mut self, revision: Revision) -> Option<Arc<Batch>> {
        if let Some(first) = self.recent.front()
            && revision >= first.revision
        {
            return self.recent.get((revision.0 - first.revision.0) as usize).cloned();
        }
        let catch_up = &mut self.catch_up;
        while let Some(first) = catch_up.fetched.front() {
            if first.revision == revision {
                return Some(Arc::clone(first));
            }
            let gone = catch_up.fetched.pop_front().expect("looked at above");
            catch_up.fetched_bytes -= gone.bytes();
        }
        None
    }

    fn gather(&mut self, batch: &Batch, budget: usize) -> usize {
        let Hub { catch_up, groups, fan_out, compacted, config, .. } = self;
        let CatchUp { pass, groups: behind, gathered_bytes, taking_part, low, .. } = catch_up;
        let pass = pass.as_mut().expect("only a pass reads history");
        let keeps_previous = previous_is_kept(batch.revision, *compacted);
        let mut used = 0;
        while pass.change < batch.changes.len() && used < budget {
            let change = &batch.changes[pass.change];
            let mut hit = |pass: &mut Pass, group: u32, entry: &mut BehindGroup, options: Options| {
                if !options.let_through(change) || !entry.takes_part(pass) {
                    return;
                }
                entry.enter(pass, gathered_bytes);
                if batch.revision < entry.low {
                    // Nobody needs it, and who comes later and does waits for the next pass.
                    entry.window = entry.window.max(batch.revision.next());
                    return;
                }
                if *pass.first.get_or_insert(group) != group && *gathered_bytes > config.gathered_bytes_max {
                    // One value may concern thousands of groups, and each would have a copy of its own here.
                    let (aside, lowest) = entry.step_aside(batch.revision, gathered_bytes);
                    *taking_part -= aside;
                    *low = [*low, lowest].into_iter().flatten().min();
                    return;
                }
                let gathered = entry.gathered.get_or_insert_default();
                let before = gathered.own_bytes();
                let with_previous = keeps_previous && options.has(Options::PREV_KV);
                let length = event_len(batch.revision, change, with_previous);
                if length < LARGE_BYTES_MIN {
                    put_tagged(gathered.small(batch.revision), batch.revision, change, with_previous);
                } else {
                    let large = Large { revision: batch.revision, change: pass.change as u32, with_previous };
                    let event = fan_out.shared.large(large, || {
                        let mut encoded = Vec::with_capacity(length + EVENT_HEAD_BYTES_MAX);
                        put_tagged(&mut encoded, batch.revision, change, with_previous);
                        Bytes::from(encoded)
                    });
                    if !std::mem::replace(&mut pass.large[usize::from(with_previous)], true) {
                        pass.large_bytes += event.len();
                    }
                    gathered.push_large(batch.revision, event);
                }
                *gathered_bytes += gathered.own_bytes() - before;
                if gathered.is_full() && !gathered.listed {
                    gathered.listed = true;
                    pass.full.push(group);
                }
            };
            if behind.len() <= FEW && pass.stabbed.is_none() {
                for (group, entry) in behind.range_mut(pass.cursor..) {
                    used += 1;
                    if let Some(options) = groups.options_for(*group, change.key()) {
                        hit(pass, *group, entry, options);
                    }
                }
            } else {
                let left = budget - used;
                let stabbed = groups.stab(change.key(), pass.stabbed, left, &mut |group, options| {
                    used += 1;
                    if group >= pass.cursor
                        && let Some(entry) = behind.get_mut(&group)
                    {
                        hit(pass, group, entry, options);
                    }
                });
                if let Some(group) = stabbed {
                    groups.set_apart(group);
                }
                if let Some(group) = std::mem::replace(&mut pass.stabbed, stabbed) {
                    groups.back(group);
                    if !behind.contains_key(&group) {
                        groups.release(group);
                    }
                }
                if stabbed.is_some() {
                    return used;
                }
            }
            used += 1;
            pass.change += 1;
            pass.large = [false; 2];
        }
        if pass.change == batch.changes.len() {
            (pass.change, pass.first) = (0, None);
            pass.position = pass.position.next();
            // At half of it: within the next batch whoever comes behind the bound would drop what it has, and read it again.
            if *gathered_bytes + pass.large_bytes > config.gathered_bytes_max / 2 {
                (pass.relief, pass.large_bytes) = (Some(pass.cursor), 0);
            }
        }
        used
    }

    /// Flushes the next group that has gathered anything, because all together have gathered too much.
    fn relieve(&mut self, cursor: u32) -> usize {
        let number = self.catch_up.pass.as_ref().expect("asked in a pass").number;
        let next = self.catch_up.groups.range(cursor..).next();
        let next = next.map(|(group, entry)| (*group, entry.pass == number && entry.gathered.is_some()));
        let pass = self.catch_up.pass.as_mut().expect("asked in a pass");
        pass.relief = next.map(|(group, _)| group + 1);
        if let Some((group, true)) = next {
            self.start_flush(group, false);
        }
        1
    }

    /// The pass has read everything: each group in turn is flushed and its watchers join, and then the pass is over.
    fn visit_next_group(&mut self) -> usize {
        let pass = self.catch_up.pass.as_mut().expect("asked in a pass");
        match self.catch_up.groups.range(pass.cursor..).next() {
            Some((&group, entry)) if entry.takes_part(pass) => {
                pass.cursor = group;
                self.start_flush(group, true);
            }
            Some((group, _)) => pass.cursor = group + 1,
            None => self.end_pass(),
        }
        1
    }

    fn end_pass(&mut self) {
        for stream in std::mem::take(&mut self.catch_up.rest) {
            // One without room is named when it has some.
            if self.catch_up.parked.contains_key(&stream) && !self.streams.refuses(stream) {
                self.catch_up.drained.push_back(stream);
            }
        }
        if let Some(group) = self.catch_up.end_pass() {
            self.let_go(group);
        }
    }

    /// Something apart counts on this group no more.
    fn let_go(&mut self, group: u32) {
        self.groups.back(group);
        if !self.catch_up.groups.contains_key(&group) {
            self.groups.release(group);
        }
    }

    fn start_flush(&mut self, group: u32, visit: bool) {
        let CatchUp { pass, groups, flush, gathered_bytes, .. } = &mut self.catch_up;
        let pass = pass.as_ref().expect("flushes happen in a pass");
        let Some(entry) = groups.get_mut(&group) else { return };
        entry.enter(pass, gathered_bytes);
        let mut gathered = entry.gathered.take().unwrap_or_default();
        *gathered_bytes -= gathered.own_bytes();
        // A pass that ended in the middle of a batch has gathered a part of that revision.
        gathered.truncate(pass.position);
        let shared = gathered.share(SHARED_BYTES_MIN);
        let (window, position) = (entry.window, pass.position);
        *flush = Some(Flush { group, at: 0, window, position, gathered, shared, visit, left: false });
    }

    fn flush_step(&mut self, mut flush: Flush, budget: usize) -> usize {
        let mut used = 0;
        loop {
            let entry = self.catch_up.groups.get(&flush.group).expect("a group is flushed while it is in the table");
            let Some(Behind { member, next }) = entry.members.get(flush.at) else { break };
            let (member, next) = (*member, *next);
            if used >= budget {
                self.catch_up.flush = Some(flush);
                return used;
            }
            used += 1;
            let reads_on = self.catch_up.pass.as_ref().is_some_and(|pass| !pass.is_over);
            if flush.visit && reads_on && flush.position <= self.revision && flush.gathered.first().is_none() {
                // A batch came in between, and there is nothing to tell: nobody else could join. The window stays, or those
                // who were not visited would look too old.
                (flush.left, flush.position) = (true, flush.window);
                break;
            }
            if self.streams.get(member.stream).is_stale(member.row) {
                self.catch_up.take(flush.group, flush.at);
                self.drop_apart(member, flush.group);
            } else if next < flush.window {
                self.wait_or_cancel(&flush, member, next);
            } else if !flush.since(next).is_empty() && self.streams.refuses(member.stream) {
                self.catch_up.take(flush.group, flush.at);
                self.catch_up.park(member, flush.group, next);
            } else {
                self.bring_forward(&mut flush, member, next);
            }
        }
        self.end_flush(flush);
        used + 1
    }

    /// The watcher needs more than what was gathered: an older revision, which may be gone for good.
    fn wait_or_cancel(&mut self, flush: &Flush, member: Member, next: Revision) {
        if next >= self.compacted {
            return self.catch_up.set_waiting(flush.group, flush.at);
        }
        self.catch_up.take(flush.group, flush.at);
        // etcd leaves the header's revision and the reason empty here. The id is free from here on, and a cancel for it
        // that is under way finds nothing.
        let head = Head {
            watch_id: self.streams.get(member.stream).id_of(member.row),
            canceled: true,
            compact_revision: self.compacted.0,
            ..Head::default()
        };
        self.streams.send(member.stream, &self.config.identity.header(Revision::ZERO), &head, Events::NONE);
        self.refused(member.stream, Why::Compacted(self.compacted));
        self.end_watch(member, flush.group);
        self.drop_apart(member, flush.group);
    }

    /// Sends the watcher what it needs of what was gathered, and lets it join when that reaches the hub's revision.
    fn bring_forward(&mut self, flush: &mut Flush, member: Member, next: Revision) {
        self.send_gathered(flush, member, next);
        let next = next.max(flush.position);
        if next == self.revision.next() {
            self.catch_up.take(flush.group, flush.at);
            self.join(member, flush.group);
            return;
        }
        let entry = self.catch_up.groups.get_mut(&flush.group).expect("a group is flushed while it is in the table");
        entry.members[flush.at].next = next;
        flush.at += 1;
        flush.left = true;
    }

    fn send_gathered(&mut self, flush: &Flush, member: Member, next: Revision) {
        let events = flush.since(next);
        if events.is_empty() {
            return;
        }
        let options = self.groups.get(flush.group).expect("it counts on the watcher").options();
        // While catching up the header tells the hub's revision, also when more is to follow (etcd).
        let header = self.header;
        let watch_id = self.streams.get(member.stream).id_of(member.row);
        self.events_sent += 1;
        if options.has(Options::FRAGMENT) {
            let bytes_max = self.config.fragment_bytes;
            self.streams.send_fragments(member.stream, &header, watch_id, events, bytes_max);
        } else {
            self.streams.send(member.stream, &header, &Head { watch_id, ..Head::default() }, events);
        }
        if options.has(Options::PROGRESS) {
            self.streams.set_told(member.stream, member.row);
        }
    }

    fn end_flush(&mut self, flush: Flush) {
        let catch_up = &mut self.catch_up;
        let pass = catch_up.pass.as_mut().expect("flushes happen in a pass");
        let entry = catch_up.groups.get_mut(&flush.group).expect("a group is flushed while it is in the table");
        entry.window = flush.position;
        // Watchers that could not join because a batch came in between are looked at again, once it has been read; by the
        // next pass where this one reads no more.
        if flush.visit && (!flush.left || pass.is_over) {
            pass.cursor = flush.group + 1;
            catch_up.set_all_waiting(flush.group);
        }
        if catch_up.groups[&flush.group].is_empty() {
            let gone = catch_up.groups.remove(&flush.group).expect("looked at above");
            catch_up.gathered_bytes -= gone.gathered_len();
        }
        // While the pass holds it: its end lets go of the group for good, when nobody else does.
        self.groups.release(flush.group);
        // Mostly their streams are full. Who came too late for this pass does not wait for its end.
        if self.catch_up.taking_part == 0 {
            self.end_pass();
        }
        if let Some(shared) = flush.shared.filter(|shared| !shared.is_unique()) {
            self.fan_out.shared.keep(shared);
        }
    }

    /// A watcher stands at the live edge.
    pub(super) fn join(&mut self, member: Member, group: u32) {
        debug_assert!(!self.fan_out.is_active(), "watchers join between batches");
        self.groups.back(group);
        self.groups.add(group, member);
        self.streams.set_apart(member.stream, member.row, false);
    }

    /// The entry of a watcher that stood apart is gone, and its watch was before.
    pub(super) fn drop_apart(&mut self, member: Member, group: u32) {
        self.streams.drop_entry(member.stream, member.row);
        self.let_go(group);
    }

    /// Lets parked watchers of a stream with room take part again: as many as may find room for an event.
    fn unpark(&mut self, stream: u32, budget: usize) -> usize {
        let mut used = 0;
        while used < budget {
            used += 1;
            if self.catch_up.let_out == LET_OUT_MAX {
                self.catch_up.rest.push(stream);
                self.unparked();
                break;
            }
            let Some((Parked { row, group, next }, emptied)) = self.catch_up.pop_parked(stream) else {
                self.unparked();
                break;
            };
            if emptied {
                self.catch_up.parked.remove(&stream);
            }
            let member = Member { stream, row };
            if self.streams.get(stream).is_stale(row) {
                self.drop_apart(member, group);
            } else if next == self.revision.next() {
                self.join(member, group);
            } else {
                self.catch_up.insert(member, group, next, self.compacted);
                self.catch_up.let_out += 1;
            }
        }
        used
    }

    fn unparked(&mut self) {
        self.catch_up.drained.pop_front();
        self.catch_up.let_out = 0;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::types::{Change, KeyRange, KeyValue, LeaseId, Time};
    use crate::watch::hub::{Create, HubConfig, Request, StreamId};

    fn put(hub: &mut Hub, keys: &[&[u8]], value_bytes: usize) {
        let revision = Revision(hub.revision().0 + 1);
        let value = vec![b'v'; value_bytes];
        let put = |key: &&[u8]| Change::Put {
            kv: KeyValue::new(key, &value, revision, revision, 0, 1, LeaseId::NONE),
            previous: None,
        };
        let changes = keys.iter().map(put).collect();
        hub.handle_batch(Arc::new(Batch { revision, time: Time(0), changes }));
        while hub.turn(100) {}
    }

    /// A stream that reads nothing, with a late watch on a range of its own that holds "a" and what begins with it.
    fn create_late(hub: &mut Hub, number: usize, start: i64) -> StreamId {
        let stream = hub.open_stream(0);
        let range = KeyRange::Span { start: "a".into(), end: format!("b{number}").into() };
        hub.request(stream, hub.revision(), Request::Create(Create { start, ..Create::plain(range) }));
        stream
    }

    fn take_all(hub: &mut Hub, stream: StreamId) -> usize {
        std::iter::from_fn(|| hub.take_output(stream, 1 << 20)).map(|bytes| bytes.len()).sum()
    }

    #[test]
    fn a_transaction_of_many_events_is_gathered_for_a_few_late_groups_at_a_time() {
        const EVENTS: usize = 64;
        const VALUE_BYTES: usize = 4 << 10;
        const GATHERED_BYTES_MAX: usize = 1 << 20;
        let mut hub =
            Hub::new(HubConfig { gathered_bytes_max: GATHERED_BYTES_MAX, ..HubConfig::default() }, Revision(1));
        let keys: Vec<String> = (0..EVENTS).map(|number| format!("a{number}")).collect();
        let keys: Vec<&[u8]> = keys.iter().map(|key| key.as_bytes()).collect();
        for revision in 2..52 {
            put(
                &mut hub,
                if revision == 40 { &keys } else { &keys[..1] },
                if revision == 40 { VALUE_BYTES } else { 1 },
            );
        }
        let streams: Vec<_> = (0..200).map(|number| create_late(&mut hub, number, 2 + number as i64 % 45)).collect();
        let (mut most, mut told) = (0, 0);
        while hub.counters().behind > 0 || told == 0 {
            while hub.turn(7) {
                most = most.max(hub.bytes().apart);
            }
            told += streams.iter().map(|stream| take_all(&mut hub, *stream)).sum::<usize>();
        }
        let large = EVENTS * VALUE_BYTES;
        assert!(most < GATHERED_BYTES_MAX + 2 * large, "{most} bytes at most");
        let with_large = (0..200).filter(|number| 2 + number % 45 <= 40).count();
        assert!((with_large * large..(with_large + 5) * large).contains(&told), "{told} bytes were told");
    }

    #[test]
    fn a_large_event_of_history_is_held_once_for_all_who_are_told_it() {
        const VALUE_BYTES: usize = 1 << 20;
        let mut hub = Hub::new(HubConfig::default(), Revision(1));
        for (key, value_bytes) in [(&b"a"[..], 1), (b"a", VALUE_BYTES), (b"a", 3_000), (b"z", 1)] {
            put(&mut hub, &[key], value_bytes);
        }
        let (mut streams, mut most) = (Vec::new(), 0);
        // Most come when others have been told and do not read.
        for number in 0..200 {
            streams.push(create_late(&mut hub, number, 2));
            while number % 7 == 0 && hub.turn(7) {
                most = most.max(hub.bytes().apart + hub.bytes().backlog);
            }
        }
        // The event itself, and what each is told beside it.
        assert!(most < VALUE_BYTES + 200 * 8_000, "{most} bytes for one event");
        let mut told = vec![0; streams.len()];
        while hub.counters().behind > 0 {
            streams.iter().zip(&mut told).for_each(|(stream, told)| *told += take_all(&mut hub, *stream));
            while hub.turn(7) {}
        }
        streams.iter().zip(&mut told).for_each(|(stream, told)| *told += take_all(&mut hub, *stream));
        let expected = VALUE_BYTES + 3_000..VALUE_BYTES + 4_000;
        assert!(told.iter().all(|told| expected.contains(told)), "{told:?} bytes");
        hub.keep_house();
        let backlog = hub.bytes().backlog;
        assert!(backlog < VALUE_BYTES, "{backlog} bytes are left of it");
    }

    #[test]
    fn many_watchers_of_a_stream_that_is_read_slowly_cost_no_more_each_than_a_few() {
        let work = |watches: usize| {
            let mut hub = Hub::new(HubConfig::default(), Revision(1));
            let stream = hub.open_stream(0);
            for _ in 0..watches {
                hub.request(stream, Revision(1), Request::Create(Create::plain(KeyRange::One("a".into()))));
                take_all(&mut hub, stream);
            }
            put(&mut hub, &[b"a"], 1);
            put(&mut hub, &[b"a"], 1);
            let mut turns = 0;
            while hub.counters().behind > 0 {
                hub.take_output(stream, 16 << 10);
                while hub.turn(64) {
                    turns += 1;
                }
            }
            turns
        };
        let (few, many) = (work(20_000), work(80_000));
        assert!(many < 6 * few, "{many} turns for four times as many as need {few}");
    }
}
