//! The tables of watchers that are behind: by group, and parked under their stream; the pass under way; and what each
//! group has gathered in it.
//!
//! These are values and what keeps them consistent. How a pass goes on is in `catch_up`.

use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;

use bytes::Bytes;
use hashbrown::HashMap;

use super::group::Member;
use crate::types::{Batch, Revision};

/// Revisions a response holds at most (etcd: `watchBatchMaxRevs`).
const REVISIONS_PER_RESPONSE: usize = 1_000;
/// A group that has gathered this much is flushed before the end of the pass. A stream that does not read holds one such
/// response, and perhaps nobody else does.
const GATHERED_BYTES_MAX: usize = 64 << 10;

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

/// The events of one group since its window, encoded, and where those of each revision start.
#[derive(Default)]
pub(super) struct Gathered {
    pub(super) bytes: Vec<u8>,
    pub(super) starts: Vec<(Revision, u32)>,
    /// The pass knows that it is full.
    pub(super) listed: bool,
}

impl Gathered {
    pub(super) fn is_full(&self) -> bool {
        self.starts.len() >= REVISIONS_PER_RESPONSE || self.bytes.len() >= GATHERED_BYTES_MAX
    }

    /// The events from a revision on.
    pub(super) fn since(&self, next: Revision) -> &[u8] {
        let at = self.starts.partition_point(|(revision, _)| *revision < next);
        self.starts.get(at).map_or(&[], |(_, start)| &self.bytes[*start as usize..])
    }

    /// Forgets what was gathered of this revision and later ones.
    pub(super) fn truncate(&mut self, end: Revision) {
        let at = self.starts.partition_point(|(revision, _)| *revision < end);
        if let Some((_, start)) = self.starts.get(at) {
            self.bytes.truncate(*start as usize);
            self.starts.truncate(at);
        }
    }
}

pub(super) struct BehindGroup {
    pub(super) members: Vec<Behind>,
    /// The pass that `window` and `gathered` belong to; in a later one they mean nothing.
    pub(super) pass: u64,
    pub(super) window: Revision,
    pub(super) gathered: Option<Box<Gathered>>,
}

pub(super) struct Pass {
    pub(super) number: u64,
    pub(super) start: Revision,
    /// The next revision to read.
    pub(super) position: Revision,
    /// Changes of it that are held against the groups already.
    pub(super) change: usize,
    /// Groups that gathered enough in the batch being read.
    pub(super) full: Vec<u32>,
    /// Groups below are done with.
    pub(super) cursor: u32,
    /// All groups together have gathered too much: those below are flushed.
    pub(super) relief: Option<u32>,
    /// Nothing more is read: a compaction has overtaken it, or nobody takes part any more.
    pub(super) is_over: bool,
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

#[derive(Default)]
pub(super) struct CatchUp {
    pub(super) groups: BTreeMap<u32, BehindGroup>,
    pub(super) members: usize,
    /// The lowest revision needed by anyone who waits for the next pass.
    pub(super) low: Option<Revision>,
    pub(super) parked: HashMap<u32, Vec<Parked>>,
    pub(super) parked_members: usize,
    /// Streams that have room again.
    pub(super) drained: VecDeque<u32>,
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

    pub(super) fn wait_for_next_pass(&mut self, next: Revision) {
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

    pub(super) fn pop_parked(&mut self, stream: u32) -> Option<(Parked, bool)> {
        let list = self.parked.get_mut(&stream)?;
        let parked = list.pop().expect("a stream without parked watchers has no list");
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

    /// Nobody has anything to expect of the pass under way. With nobody behind, nobody waits for another one either: the next
    /// late watcher is not to find one that stands where this one stood.
    pub(super) fn end_pass(&mut self) {
        self.pass = None;
        self.forget_fetched();
        if self.groups.is_empty() {
            (self.low, self.wanted) = (None, None);
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

impl BehindGroup {
    /// Makes window and gathered events those of this pass.
    pub(super) fn enter(&mut self, pass: &Pass, gathered_bytes: &mut usize) {
        if self.pass != pass.number {
            *gathered_bytes -= self.gathered_len();
            self.gathered = None;
            self.pass = pass.number;
            self.window = pass.start;
        }
    }

    pub(super) fn gathered_in(&mut self, pass: &Pass, gathered_bytes: &mut usize) -> &mut Gathered {
        self.enter(pass, gathered_bytes);
        self.gathered.get_or_insert_default()
    }

    pub(super) fn gathered_len(&self) -> usize {
        self.gathered.as_ref().map_or(0, |gathered| gathered.bytes.len())
    }
}
