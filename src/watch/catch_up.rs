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
use super::fan_out::{previous_is_kept, put_tagged};
use super::group::{Member, Options};
use super::hub::Hub;
use super::message::{Events, Head, SHARED_BYTES_MIN};
use super::refusal::Why;
use crate::types::{Batch, Revision};

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
        if pass.change == 0
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
            if pass.position > self.revision || (pass.change == 0 && !pass.full.is_empty()) || pass.relief.is_some() {
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
        let Hub { catch_up, groups, compacted, config, .. } = self;
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
                let before = gathered.bytes.len();
                if gathered.starts.last().is_none_or(|(revision, _)| *revision < batch.revision) {
                    gathered.starts.push((batch.revision, before as u32));
                }
                let with_previous = keeps_previous && options.has(Options::PREV_KV);
                put_tagged(&mut gathered.bytes, batch.revision, change, with_previous);
                *gathered_bytes += gathered.bytes.len() - before;
                if gathered.is_full() && !gathered.listed {
                    gathered.listed = true;
                    pass.full.push(group);
                }
            };
            if behind.len() <= FEW {
                for (group, entry) in behind.range_mut(pass.cursor..) {
                    used += 1;
                    if let Some(options) = groups.options_for(*group, change.key()) {
                        hit(pass, *group, entry, options);
                    }
                }
            } else {
                groups.stab(change.key(), &mut |group, options| {
                    used += 1;
                    if group >= pass.cursor
                        && let Some(entry) = behind.get_mut(&group)
                    {
                        hit(pass, group, entry, options);
                    }
                });
            }
            used += 1;
            pass.change += 1;
        }
        if pass.change == batch.changes.len() {
            (pass.change, pass.first) = (0, None);
            pass.position = pass.position.next();
            if *gathered_bytes > config.gathered_bytes_max {
                pass.relief = Some(pass.cursor);
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
            None => self.catch_up.end_pass(),
        }
        1
    }

    fn start_flush(&mut self, group: u32, visit: bool) {
        let CatchUp { pass, groups, flush, gathered_bytes, .. } = &mut self.catch_up;
        let pass = pass.as_ref().expect("flushes happen in a pass");
        let Some(entry) = groups.get_mut(&group) else { return };
        entry.enter(pass, gathered_bytes);
        let mut gathered = entry.gathered.take().unwrap_or_default();
        *gathered_bytes -= gathered.bytes.len();
        // A pass that ended in the middle of a batch has gathered a part of that revision.
        gathered.truncate(pass.position);
        let shared = (gathered.bytes.len() >= SHARED_BYTES_MIN).then(|| {
            // It may lie for long with a stream that does not read.
            gathered.bytes.shrink_to_fit();
            Bytes::from(std::mem::take(&mut gathered.bytes))
        });
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
            if self.streams.get(member.stream).is_stale(member.row) {
                self.catch_up.take(flush.group, flush.at);
                self.drop_apart(member, flush.group);
            } else if next < flush.window {
                self.wait_or_cancel(&flush, member, next);
            } else if self.streams.refuses(member.stream) {
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
        let bytes = match &flush.shared {
            Some(shared) => {
                let at = flush.gathered.starts.partition_point(|(revision, _)| *revision < next);
                flush.gathered.starts.get(at).map_or(&[][..], |(_, start)| &shared[*start as usize..])
            }
            None => flush.gathered.since(next),
        };
        if bytes.is_empty() {
            return;
        }
        let events = Events { bytes, shared: flush.shared.as_ref() };
        let options = self.groups.get(flush.group).expect("it counts on the watcher").options();
        // While catching up the header tells the hub's revision, also when more is to follow (etcd).
        let header = self.config.identity.header(self.revision);
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
        // Mostly their streams are full. Who came too late for this pass does not wait for its end.
        if catch_up.taking_part == 0 {
            catch_up.end_pass();
        }
        if let Some(shared) = flush.shared.filter(|shared| !shared.is_unique()) {
            self.fan_out.keep_count(shared);
        }
        self.groups.release(flush.group);
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
        self.groups.back(group);
        self.streams.drop_entry(member.stream, member.row);
        if !self.catch_up.groups.contains_key(&group) {
            self.groups.release(group);
        }
    }

    /// Lets the parked watchers of a stream with room take part again.
    fn unpark(&mut self, stream: u32, budget: usize) -> usize {
        let mut used = 0;
        while used < budget {
            used += 1;
            let Some((Parked { row, group, next }, emptied)) = self.catch_up.pop_parked(stream) else {
                self.catch_up.drained.pop_front();
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
            }
        }
        used
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::types::{Change, KeyRange, KeyValue, LeaseId, Time};
    use crate::watch::hub::{Create, HubConfig, Request};

    /// The ranges differ, so each watch has a group of its own.
    #[test]
    fn a_large_event_is_gathered_for_a_few_late_groups_at_a_time() {
        const VALUE_BYTES: usize = 256 << 10;
        const GATHERED_BYTES_MAX: usize = 1 << 20;
        let mut hub =
            Hub::new(HubConfig { gathered_bytes_max: GATHERED_BYTES_MAX, ..HubConfig::default() }, Revision(1));
        for revision in (2..52).map(Revision) {
            let bytes = if revision == Revision(40) { VALUE_BYTES } else { 1 };
            let kv = KeyValue::new(b"abc", &vec![b'v'; bytes], Revision(2), revision, 0, revision.0 - 1, LeaseId::NONE);
            let changes = Box::new([Change::Put { kv, previous: None }]);
            hub.handle_batch(Arc::new(Batch { revision, time: Time(0), changes }));
        }
        while hub.turn(100) {}
        let stream = hub.open_stream(0);
        for number in 0..200 {
            let range = KeyRange::Span { start: "a".into(), end: format!("b{number}").into() };
            let create = Create { start: 2 + number % 45, ..Create::plain(range) };
            hub.request(stream, Revision(51), Request::Create(create));
        }
        let (mut most, mut told) = (0, 0);
        while hub.counters().behind > 0 || told == 0 {
            while hub.turn(7) {
                most = most.max(hub.bytes().apart);
            }
            told += std::iter::from_fn(|| hub.take_output(stream, 1 << 20)).map(|bytes| bytes.len()).sum::<usize>();
        }
        assert!(most < GATHERED_BYTES_MAX + 2 * VALUE_BYTES, "{most} bytes at most");
        let with_large = (0..200).filter(|number| 2 + number % 45 <= 40).count();
        assert!((with_large * VALUE_BYTES..(with_large + 1) * VALUE_BYTES).contains(&told), "{told} bytes were told");
    }
}
