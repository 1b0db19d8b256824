//! Watchers that are behind, and the passes over history that bring them forward together.
//!
//! A watcher that is behind holds one revision, the next it needs, and no events. Those of a stream without room are
//! *parked* under their stream until its outbox is half empty. The others stand by group, and a *pass* reads history once
//! for all of them, from the lowest revision needed up to the hub's: each change is held against the groups, and a group
//! that has watchers here gathers its events, encoded once. A group's events are *flushed*, one response for each watcher
//! with the part it still needs, when they are many enough and at the end. Whoever then meets the hub's revision joins the
//! synced members.
//!
//! What a group has gathered covers every revision from its *window* up to the pass's position. A watcher takes part in a
//! flush when it needs nothing before the window; others wait for the next pass. That one comparison keeps out both gaps
//! and repetitions.
//!
//! A compaction above the position ends the pass: what was gathered is still complete up to the position and is sent; the
//! next pass starts at the compacted revision, and whoever needs older ones is canceled.
//!
//! All of this runs between batches only, so that the hub's revision stands still while a watcher joins.

use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;

use bytes::Bytes;
use hashbrown::HashMap;

use super::fan_out::{previous_is_kept, put_tagged};
use super::group::{Member, Options};
use super::hub::Hub;
use super::message::{Events, Head, SHARED_BYTES_MIN};
use crate::types::{Batch, Revision};

/// Revisions a response holds at most (etcd: `watchBatchMaxRevs`).
const REVISIONS_PER_RESPONSE: usize = 1_000;
/// A group that has gathered this much is flushed before the end of the pass.
const GATHERED_BYTES_MAX: usize = 1 << 20;

/// A watcher that takes part in passes, with the next revision that it needs.
struct Behind {
    member: Member,
    next: Revision,
}

/// A watcher whose stream has no room.
struct Parked {
    row: u32,
    group: u32,
    next: Revision,
}

/// The events of one group since its window, encoded, and where those of each revision start.
#[derive(Default)]
struct Gathered {
    bytes: Vec<u8>,
    starts: Vec<(Revision, u32)>,
    /// The pass knows that it is full.
    listed: bool,
}

impl Gathered {
    fn is_full(&self) -> bool {
        self.starts.len() >= REVISIONS_PER_RESPONSE || self.bytes.len() >= GATHERED_BYTES_MAX
    }

    /// The events from a revision on.
    fn since(&self, next: Revision) -> &[u8] {
        let at = self.starts.partition_point(|(revision, _)| *revision < next);
        self.starts.get(at).map_or(&[], |(_, start)| &self.bytes[*start as usize..])
    }

    /// Forgets what was gathered of this revision and later ones.
    fn truncate(&mut self, end: Revision) {
        let at = self.starts.partition_point(|(revision, _)| *revision < end);
        if let Some((_, start)) = self.starts.get(at) {
            self.bytes.truncate(*start as usize);
            self.starts.truncate(at);
        }
    }
}

struct BehindGroup {
    members: Vec<Behind>,
    /// The pass that `window` and `gathered` belong to; in a later one they mean nothing.
    pass: u64,
    window: Revision,
    gathered: Option<Box<Gathered>>,
}

struct Pass {
    number: u64,
    start: Revision,
    /// The next revision to read.
    position: Revision,
    /// Changes of it that are held against the groups already.
    change: usize,
    /// Groups that gathered enough in the batch being read.
    full: Vec<u32>,
    /// Groups below are done with.
    cursor: u32,
    /// All groups together have gathered too much: those below are flushed.
    relief: Option<u32>,
    /// A compaction has overtaken it. Nothing more is read.
    overtaken: bool,
}

/// A group whose watchers are sent what it gathered.
struct Flush {
    group: u32,
    /// The next watcher.
    at: usize,
    window: Revision,
    /// What was gathered reaches up to here, exclusively.
    position: Revision,
    gathered: Box<Gathered>,
    shared: Option<Bytes>,
    /// The pass has read everything, and this group is in turn.
    visit: bool,
    /// A watcher took part and could not join.
    left: bool,
}

#[derive(Default)]
pub(super) struct CatchUp {
    groups: BTreeMap<u32, BehindGroup>,
    members: usize,
    /// The lowest revision needed by anyone who waits for the next pass.
    low: Option<Revision>,
    parked: HashMap<u32, Vec<Parked>>,
    parked_members: usize,
    /// Streams that have room again.
    drained: VecDeque<u32>,
    passes: u64,
    pass: Option<Pass>,
    flush: Option<Flush>,
    gathered_bytes: usize,
    /// History older than the hub's own, from the pass's position on.
    fetched: VecDeque<Arc<Batch>>,
    fetched_bytes: usize,
    wanted: Option<Revision>,
    asked: bool,
}

impl CatchUp {
    /// Watchers that are behind, parked ones included.
    pub(super) fn len(&self) -> usize {
        self.members + self.parked_members
    }

    /// What the tables of watchers that are behind and their gathered events take, about.
    pub(super) fn bytes(&self) -> usize {
        self.members * size_of::<Behind>()
            + self.groups.len() * (size_of::<BehindGroup>() + size_of::<u32>())
            + self.parked_members * size_of::<Parked>()
            + self.parked.len() * size_of::<(u32, Vec<Parked>)>()
            + self.gathered_bytes
    }

    pub(super) fn fetched_bytes(&self) -> usize {
        self.fetched_bytes
    }

    /// The stream of this watcher has no room.
    pub(super) fn park(&mut self, member: Member, group: u32, next: Revision) {
        self.parked.entry(member.stream).or_default().push(Parked { row: member.row, group, next });
        self.parked_members += 1;
    }

    /// The stream has room again.
    pub(super) fn drained(&mut self, stream: u32) {
        if self.parked.contains_key(&stream) {
            self.drained.push_back(stream);
        }
    }

    /// A watcher that takes part in the next pass, or in this one when it needs nothing that has been read.
    pub(super) fn insert(&mut self, member: Member, group: u32, next: Revision, compacted: Revision) {
        let (pass, window, too_late) = match &self.pass {
            None => (0, Revision::ZERO, true),
            Some(pass) => {
                let position = if pass.change > 0 { pass.position.next() } else { pass.position };
                (pass.number, position.max(compacted), group < pass.cursor)
            }
        };
        let new = || BehindGroup { members: Vec::new(), pass, window, gathered: None };
        self.groups.entry(group).or_insert_with(new).members.push(Behind { member, next });
        self.members += 1;
        if too_late {
            self.wait_for_next_pass(next);
        }
    }

    fn wait_for_next_pass(&mut self, next: Revision) {
        self.low = Some(self.low.map_or(next, |low| low.min(next)));
    }

    /// Takes one parked watcher of a stream that is gone.
    pub(super) fn take_parked(&mut self, stream: u32) -> Option<(u32, u32)> {
        let (parked, emptied) = self.pop_parked(stream)?;
        if emptied {
            self.parked.remove(&stream);
        }
        Some((parked.row, parked.group))
    }

    fn pop_parked(&mut self, stream: u32) -> Option<(Parked, bool)> {
        let list = self.parked.get_mut(&stream)?;
        let parked = list.pop().expect("a stream without parked watchers has no list");
        self.parked_members -= 1;
        Some((parked, list.is_empty()))
    }

    /// The revision from which history is to be read, once for each time it is needed.
    pub(super) fn next_history_request(&mut self) -> Option<Revision> {
        if self.asked {
            return None;
        }
        let wanted = self.wanted?;
        self.asked = true;
        Some(wanted)
    }

    pub(super) fn handle_history(&mut self, batches: Vec<Arc<Batch>>) {
        self.asked = false;
        let wanted = self.wanted.take();
        let continues = batches.first().is_some_and(|batch| Some(batch.revision) == wanted);
        // A pass that was overtaken meanwhile needs it no more.
        if self.pass.as_ref().is_some_and(|pass| !pass.overtaken) && continues {
            for pair in batches.windows(2) {
                assert_eq!(pair[0].revision.next(), pair[1].revision, "history has no holes");
            }
            self.fetched_bytes += batches.iter().map(|batch| batch.bytes()).sum::<usize>();
            self.fetched.extend(batches);
        }
    }

    pub(super) fn history_refused(&mut self) {
        self.asked = false;
        self.wanted = None;
    }

    /// Everything below this revision may be gone.
    pub(super) fn handle_compaction(&mut self, compacted: Revision) {
        if let Some(pass) = &mut self.pass
            && pass.position < compacted
        {
            pass.overtaken = true;
            pass.full.clear();
            self.wanted = None;
            self.forget_fetched();
        }
    }

    fn forget_fetched(&mut self) {
        self.fetched.clear();
        self.fetched_bytes = 0;
    }

    /// Something could be done now.
    pub(super) fn has_work(&self) -> bool {
        let waits_for_history = self.wanted.is_some();
        self.flush.is_some() || !self.drained.is_empty() || (!self.groups.is_empty() && !waits_for_history)
    }
}

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
        if !pass.overtaken && pass.position <= self.revision {
            return self.read_history(budget);
        }
        self.visit_next_group()
    }

    fn start_pass(&mut self) {
        let catch_up = &mut self.catch_up;
        let low = catch_up.low.take().expect("whoever is behind is counted when no pass runs");
        let start = low.max(self.compacted);
        catch_up.passes += 1;
        catch_up.pass = Some(Pass {
            number: catch_up.passes,
            start,
            // The revision of the empty store has no batch.
            position: start.max(Revision::FIRST.next()),
            change: 0,
            full: Vec::new(),
            cursor: 0,
            relief: None,
            overtaken: false,
        });
    }

    /// Holds changes against the groups. The pass stands at a revision that the hub has handled.
    fn read_history(&mut self, budget: usize) -> usize {
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
        let CatchUp { pass, groups: behind, gathered_bytes, .. } = catch_up;
        let pass = pass.as_mut().expect("only a pass reads history");
        let keeps_previous = previous_is_kept(batch.revision, *compacted);
        let mut used = 0;
        while pass.change < batch.changes.len() && used < budget {
            let change = &batch.changes[pass.change];
            groups.stab(change.key(), &mut |group, options| {
                used += 1;
                if group < pass.cursor || !options.let_through(change) {
                    return;
                }
                let Some(entry) = behind.get_mut(&group) else { return };
                let gathered = entry.gathered_in(pass, gathered_bytes);
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
            });
            used += 1;
            pass.change += 1;
        }
        if pass.change == batch.changes.len() {
            pass.change = 0;
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
            Some((group, _)) => {
                pass.cursor = *group;
                let group = *group;
                self.start_flush(group, true);
            }
            None => {
                self.catch_up.pass = None;
                self.catch_up.forget_fetched();
            }
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
        // A pass that was overtaken in the middle of a batch has gathered a part of that revision.
        gathered.truncate(pass.position);
        let shared =
            (gathered.bytes.len() >= SHARED_BYTES_MIN).then(|| Bytes::from(std::mem::take(&mut gathered.bytes)));
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
                self.take_behind(&flush);
                self.drop_apart(member, flush.group);
            } else if next < flush.window {
                self.wait_or_cancel(&mut flush, member, next);
            } else if self.streams.refuses(member.stream) {
                self.take_behind(&flush);
                self.catch_up.park(member, flush.group, next);
            } else {
                self.bring_forward(&mut flush, member, next);
            }
        }
        self.end_flush(flush);
        used + 1
    }

    /// The watcher needs more than what was gathered: an older revision, which may be gone for good.
    fn wait_or_cancel(&mut self, flush: &mut Flush, member: Member, next: Revision) {
        if next >= self.compacted {
            self.catch_up.wait_for_next_pass(next);
            flush.at += 1;
            return;
        }
        self.take_behind(flush);
        // etcd leaves the header's revision and the reason empty here. The id is free from here on, and a cancel for it
        // that is under way finds nothing.
        let head = Head {
            watch_id: self.streams.get(member.stream).id_of(member.row),
            canceled: true,
            compact_revision: self.compacted.0,
            ..Head::default()
        };
        self.streams.send(member.stream, &self.config.identity.header(Revision::ZERO), &head, Events::NONE);
        self.end_watch(member, flush.group);
        self.drop_apart(member, flush.group);
    }

    /// Sends the watcher what it needs of what was gathered, and lets it join when that reaches the hub's revision.
    fn bring_forward(&mut self, flush: &mut Flush, member: Member, next: Revision) {
        self.send_gathered(flush, member, next);
        let next = next.max(flush.position);
        if next == self.revision.next() {
            self.take_behind(flush);
            self.join(member, flush.group);
            return;
        }
        let entry = self.catch_up.groups.get_mut(&flush.group).expect("a group is flushed while it is in the table");
        entry.members[flush.at].next = next;
        flush.at += 1;
        flush.left = true;
        if self.catch_up.pass.as_ref().is_some_and(|pass| pass.overtaken) {
            self.catch_up.wait_for_next_pass(next);
        }
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

    /// Takes the watcher at the cursor out of its group's list; the last one comes to its place.
    fn take_behind(&mut self, flush: &Flush) {
        let entry = self.catch_up.groups.get_mut(&flush.group).expect("a group is flushed while it is in the table");
        entry.members.swap_remove(flush.at);
        self.catch_up.members -= 1;
    }

    fn end_flush(&mut self, flush: Flush) {
        let CatchUp { pass, groups, gathered_bytes, .. } = &mut self.catch_up;
        let pass = pass.as_mut().expect("flushes happen in a pass");
        let entry = groups.get_mut(&flush.group).expect("a group is flushed while it is in the table");
        entry.window = flush.position;
        if entry.members.is_empty() {
            *gathered_bytes -= entry.gathered_len();
            groups.remove(&flush.group);
        }
        // Watchers that could not join because a batch came in between are looked at again, once it has been read.
        if flush.visit && (!flush.left || pass.overtaken) {
            pass.cursor = flush.group + 1;
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

impl BehindGroup {
    /// Makes window and gathered events those of this pass.
    fn enter(&mut self, pass: &Pass, gathered_bytes: &mut usize) {
        if self.pass != pass.number {
            *gathered_bytes -= self.gathered_len();
            self.gathered = None;
            self.pass = pass.number;
            self.window = pass.start;
        }
    }

    fn gathered_in(&mut self, pass: &Pass, gathered_bytes: &mut usize) -> &mut Gathered {
        self.enter(pass, gathered_bytes);
        self.gathered.get_or_insert_default()
    }

    fn gathered_len(&self) -> usize {
        self.gathered.as_ref().map_or(0, |gathered| gathered.bytes.len())
    }
}
