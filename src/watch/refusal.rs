//! What was refused or ended against the will of its client: counted by reason, and told to whoever keeps the log.

use std::collections::VecDeque;

use crate::types::Revision;

/// Refusals that wait to be logged. A client that causes more of them in one turn is not worth more lines.
const PENDING_MAX: usize = 64;

/// A watch that was not begun, or that was ended.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Refusal {
    /// Of its stream.
    pub token: u64,
    pub why: Why,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Why {
    /// A limit that an operator has set, in the words that the client is told.
    Limit(&'static str),
    /// There is no memory for it.
    Memory(&'static str),
    /// What was asked makes no sense.
    Request(&'static str),
    /// It needed what is forgotten, up to this revision.
    Compacted(Revision),
}

impl Why {
    pub fn text(self) -> &'static str {
        match self {
            Why::Limit(text) | Why::Memory(text) | Why::Request(text) => text,
            // Those who are canceled for it are told the revision and no text (etcd).
            Why::Compacted(_) => "mvcc: required revision has been compacted",
        }
    }
}

/// How many there were since the start.
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug)]
pub struct RefusalCounts {
    pub limit: u64,
    pub memory: u64,
    pub request: u64,
    pub compacted: u64,
}

#[derive(Default)]
pub struct Refusals {
    counts: RefusalCounts,
    pending: VecDeque<Refusal>,
}

impl Refusals {
    pub fn add(&mut self, refusal: Refusal) {
        match refusal.why {
            Why::Limit(_) => self.counts.limit += 1,
            Why::Memory(_) => self.counts.memory += 1,
            Why::Request(_) => self.counts.request += 1,
            Why::Compacted(_) => self.counts.compacted += 1,
        }
        if self.pending.len() < PENDING_MAX {
            self.pending.push_back(refusal);
        }
    }

    pub fn take_next(&mut self) -> Option<Refusal> {
        self.pending.pop_front()
    }

    pub fn counts(&self) -> RefusalCounts {
        self.counts
    }
}
