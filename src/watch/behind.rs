//! The tables of watchers that are behind: by group, and parked under their stream; the pass under way; and what each
//! group has gathered in it.
//!
//! These are values and what keeps them consistent. How a pass goes on is in `catch_up`.

use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;

use bytes::Bytes;
use hashbrown::HashMap;

use super::gathered::Gathered;
use super::group::Member;
use super::message::Events;
use crate::types::{Batch, Revision};

/// So many late groups are held against a change one by one: fewer than the groups that its key may hit.
pub(super) const FEW: usize = 16;

/// A watcher that takes part in passes, with the next revision that it needs.
pub(super) struct Behind {
    pub(super) member: Member,
    pub(super) next: Revision,
}

/// A watcher whose stream has no room.
pub(super) struct Parked {
    pub(super) row: u32,
    pub(super) group: u32,
    pub(super) next: Revision,
}

#[derive(Default)]
pub(super) struct BehindGroup {
    /// Those who take part in the pass.
    pub(super) members: Vec<Behind>,
    /// Those who need what was read before they came, and wait for the next pass.
    pub(super) waiting: Vec<Behind>,
    /// The pass that `window` and `gathered` belong to; in a later one they mean nothing.
    pub(super) pass: u64,
    pub(super) window: Revision,
    /// Nobody of those who take part needs less.
    pub(super) low: Revision,
    pub(super) gathered: Option<Box<Gathered>>,
}

pub(super) struct Pass {
    pub(super) number: u64,
    pub(super) start: Revision,
    /// The next revision to read.
    pub(super) position: Revision,
    /// Changes of it that are held against the groups already.
    pub(super) change: usize,
    /// The last span that the next one of them was held against. Its group is kept until the others have been.
    pub(super) stabbed: Option<u32>,
    /// Whether that one is large and counted, without the previous version and with it.
    pub(super) large: [bool; 2],
    /// Large events that were gathered since all groups were flushed, each once.
    pub(super) large_bytes: usize,
    /// The first group that gathered any of it.
    pub(super) first: Option<u32>,
    /// Groups that gathered enough in the batch being read.
    pub(super) full: Vec<u32>,
    /// Groups below are done with.
    pub(super) cursor: u32,
    /// All groups together have gathered too much: those below are flushed.
    pub(super) relief: Option<u32>,
    /// Nothing more is read: a compaction has overtaken it, or nobody takes part any more.
    pub(super) is_over: bool,
}

impl Pass {
    /// A part of the batch that it stands at is held against the groups.
    pub(super) fn is_amid(&self) -> bool {
        self.change > 0 || self.stabbed.is_some()
    }
}

/// A group whose watchers are sent what it gathered.
pub(super) struct Flush {
    pub(super) group: u32,
    /// The next watcher.
    pub(super) at: usize,
    pub(super) window: Revision,
    /// What was gathered reaches up to here, exclusively.
    pub(super) position: Revision,
    pub(super) gathered: Box<Gathered>,
    pub(super) shared: Option<Bytes>,
    /// The pass has read everything, and this group is in turn.
    pub(super) visit: bool,
    /// A watcher took part and could not join.
    pub(super) left: bool,
}

impl Flush {
    /// The events from a revision on.
    pub(super) fn since(&self, next: Revision) -> Events<'_> {
        self.gathered.since(next, self.shared.as_ref())
    }
}

#[derive(Default)]
pub(super) struct CatchUp {
    pub(super) groups: BTreeMap<u32, BehindGroup>,
    pub(super) members: usize,
    /// Those of them who take part in the pass under way.
    pub(super) taking_part: usize,
    /// The lowest revision needed by anyone who waits for the next pass.
    pub(super) low: Option<Revision>,
    pub(super) parked: HashMap<u32, VecDeque<Parked>>,
    pub(super) parked_members: usize,
    /// Streams that have room again.
    pub(super) drained: VecDeque<u32>,
    /// Watchers of the first of them that take part again.
    pub(super) let_out: usize,
    /// Streams of which some were let out: the others are looked at when the pass is over.
    pub(super) rest: Vec<u32>,
    pub(super) passes: u64,
    pub(super) pass: Option<Pass>,
    pub(super) flush: Option<Flush>,
    pub(super) gathered_bytes: usize,
    /// History older than the hub's own, from the pass's position on.
    pub(super) fetched: VecDeque<Arc<Batch>>,
    pub(super) fetched_bytes: usize,
    pub(super) wanted: Option<Revision>,
    pub(super) asked: bool,
    /// History was refused for a compaction that the hub has not been told of. It is told only once it is durable, and
    /// until then nobody may hear of it.
    pub(super) refused: Option<Revision>,
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
            + self.parked.len() * size_of::<(u32, VecDeque<Parked>)>()
            + self.gathered_bytes
    }

    pub(super) fn fetched_bytes(&self) -> usize {
        self.fetched_bytes
    }

    /// The stream of this watcher has no room.
    pub(super) fn park(&mut self, member: Member, group: u32, next: Revision) {
        self.parked.entry(member.stream).or_default().push_back(Parked { row: member.row, group, next });
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
        let entry = self.groups.entry(group).or_default();
        self.members += 1;
        if let Some(pass) = self.pass.as_ref().filter(|pass| group >= pass.cursor) {
            entry.enter(pass, &mut self.gathered_bytes);
            if entry.members.is_empty() {
                // Nothing was gathered for it since nobody took part.
                let position = if pass.is_amid() { pass.position.next() } else { pass.position };
                self.gathered_bytes -= entry.gathered_len();
                (entry.gathered, entry.window) = (None, position.max(compacted));
                entry.low = next;
            }
            if next >= entry.window {
                entry.low = entry.low.min(next);
                entry.members.push(Behind { member, next });
                self.taking_part += 1;
                return;
            }
        }
        entry.waiting.push(Behind { member, next });
        self.wait_for_next_pass(next);
    }

    fn wait_for_next_pass(&mut self, next: Revision) {
        self.low = Some(self.low.map_or(next, |low| low.min(next)));
    }

    /// Takes a watcher out of those of a group that take part; the last one comes to its place.
    pub(super) fn take(&mut self, group: u32, at: usize) -> Behind {
        self.members -= 1;
        self.taking_part -= 1;
        self.groups.get_mut(&group).expect("its watchers are here").members.swap_remove(at)
    }

    /// A watcher that took part waits for the next pass; the last one of its group comes to its place.
    pub(super) fn set_waiting(&mut self, group: u32, at: usize) {
        let entry = self.groups.get_mut(&group).expect("its watchers are here");
        let behind = entry.members.swap_remove(at);
        let next = behind.next;
        entry.waiting.push(behind);
        self.taking_part -= 1;
        self.wait_for_next_pass(next);
    }

    /// The same for all of a group, which may be a million: they move as a whole.
    pub(super) fn set_all_waiting(&mut self, group: u32) {
        let entry = self.groups.get_mut(&group).expect("its watchers are here");
        let Some(lowest) = entry.members.iter().map(|behind| behind.next).min() else { return };
        self.taking_part -= entry.members.len();
        if entry.waiting.len() < entry.members.len() {
            std::mem::swap(&mut entry.waiting, &mut entry.members);
        }
        entry.waiting.append(&mut entry.members);
        self.wait_for_next_pass(lowest);
    }

    /// Takes one parked watcher of a stream that is gone.
    pub(super) fn take_parked(&mut self, stream: u32) -> Option<(u32, u32)> {
        let (parked, emptied) = self.pop_parked(stream)?;
        if emptied {
            self.parked.remove(&stream);
        }
        Some((parked.row, parked.group))
    }

    pub(super) fn pop_parked(&mut self, stream: u32) -> Option<(Parked, bool)> {
        let list = self.parked.get_mut(&stream)?;
        let parked = list.pop_front().expect("a stream without parked watchers has no list");
        self.parked_members -= 1;
        Some((parked, list.is_empty()))
    }

    /// The revision from which history is to be read, once for each time it is needed.
    pub(super) fn next_history_request(&mut self) -> Option<Revision> {
        if self.asked || self.refused.is_some() {
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
        // A pass that has ended meanwhile needs it no more.
        if self.pass.as_ref().is_some_and(|pass| !pass.is_over) && continues {
            for pair in batches.windows(2) {
                assert_eq!(pair[0].revision.next(), pair[1].revision, "history has no holes");
            }
            self.fetched_bytes += batches.iter().map(|batch| batch.bytes()).sum::<usize>();
            self.fetched.extend(batches);
        }
    }

    /// Everything below this revision is gone, or about to be; the hub knows of `known`.
    pub(super) fn history_refused(&mut self, compacted: Revision, known: Revision) {
        self.asked = false;
        self.refused = Some(compacted).filter(|compacted| *compacted > known);
        if self.refused.is_none() {
            self.wanted = None;
        }
    }

    /// Everything below this revision may be gone.
    pub(super) fn handle_compaction(&mut self, compacted: Revision) {
        self.refused = self.refused.filter(|refused| *refused > compacted);
        if let Some(pass) = &mut self.pass
            && pass.position < compacted
        {
            pass.is_over = true;
            pass.full.clear();
            self.wanted = None;
            self.forget_fetched();
        }
    }

    /// What nobody needs of those who take part in a pass is not read, where these are few: slow readers of a long history may
    /// stand far apart, and each waits for the other.
    pub(super) fn skip_ahead(&mut self, newest: Revision) {
        let CatchUp { pass: Some(pass), groups, gathered_bytes, .. } = self else { return };
        if self.taking_part > FEW || groups.len() > FEW || pass.is_amid() {
            return;
        }
        let mut low = newest.next();
        for entry in groups.range_mut(pass.cursor..).map(|(_, entry)| entry) {
            entry.enter(pass, gathered_bytes);
            low = entry.members.iter().fold(low, |low, behind| low.min(behind.next));
        }
        if low > pass.position {
            pass.position = low;
            groups.range_mut(pass.cursor..).for_each(|(_, entry)| entry.window = entry.window.max(low));
        }
    }

    /// Nobody has anything to expect of the pass under way. With nobody behind, nobody waits for another one either: the next
    /// late watcher is not to find one that stands where this one stood. Gives the group that was kept for it.
    pub(super) fn end_pass(&mut self) -> Option<u32> {
        let kept = self.pass.take().and_then(|pass| pass.stabbed);
        self.wanted = None;
        self.forget_fetched();
        if self.groups.is_empty() {
            self.low = None;
        }
        kept
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

impl BehindGroup {
    pub(super) fn is_empty(&self) -> bool {
        self.members.is_empty() && self.waiting.is_empty()
    }

    /// Whether anybody takes part in this pass.
    pub(super) fn takes_part(&self, pass: &Pass) -> bool {
        !self.members.is_empty() || (self.pass != pass.number && !self.waiting.is_empty())
    }

    /// There is no memory for what this group is told of a revision: all who take part wait for the next pass, which reads it
    /// again. Gives how many these are, and what the first of them needs.
    pub(super) fn step_aside(&mut self, revision: Revision, gathered_bytes: &mut usize) -> (usize, Option<Revision>) {
        *gathered_bytes -= self.gathered_len();
        let gathered = self.gathered.take();
        // Without any events before it they need nothing before it; but who needs what is compacted is still to be told so.
        let first = gathered.as_ref().and_then(|gathered| gathered.first());
        let has_earlier = first.is_some_and(|first| first < revision);
        let window = std::mem::replace(&mut self.window, revision.next());
        if !has_earlier {
            let complete = self.members.iter_mut().filter(|behind| behind.next >= window);
            complete.for_each(|behind| behind.next = behind.next.max(revision));
        }
        let (count, low) = (self.members.len(), self.members.iter().map(|behind| behind.next).min());
        self.waiting.append(&mut self.members);
        (count, low)
    }

    /// Makes window and gathered events those of this pass, in which all take part who were there when it began.
    pub(super) fn enter(&mut self, pass: &Pass, gathered_bytes: &mut usize) {
        if self.pass != pass.number {
            *gathered_bytes -= self.gathered_len();
            self.gathered = None;
            self.pass = pass.number;
            self.window = pass.start;
            self.members.append(&mut std::mem::take(&mut self.waiting));
            self.low = self.members.iter().map(|behind| behind.next).min().unwrap_or(pass.start);
        }
    }

    pub(super) fn gathered_len(&self) -> usize {
        self.gathered.as_ref().map_or(0, |gathered| gathered.own_bytes())
    }
}
