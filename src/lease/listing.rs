//! A list of all leases, made in turns: as they were when it began, the one that expires first in front.
//!
//! It walks the rows, which never move. What happens to those that it has not come to yet it is told: a lease that is
//! revoked is noted as it goes, and one that is granted is passed over. What was found is sorted run by run, and the runs
//! are merged in turns too. A keep-alive counts for the order if it comes before the walk.

use std::cmp::Reverse;
use std::collections::{BinaryHeap, HashSet};
use std::vec;

use super::Row;
use crate::types::arena::Arena;
use crate::types::{LeaseId, Uptime};

/// What a lease takes in it: with its deadline, and then by its id alone.
pub const LISTED_BYTES: usize = size_of::<Found>() + size_of::<LeaseId>();

type Found = (Uptime, LeaseId);

pub struct Listing {
    /// The row that is looked at next, and the first that is not looked at.
    next: u32,
    end: u32,
    /// Rows that were taken since it began.
    newcomers: HashSet<u32>,
    /// Leases that left before it came to them, since the last step.
    gone: Vec<Found>,
    runs: Vec<vec::IntoIter<Found>>,
    /// The first of what is left of each run.
    heads: BinaryHeap<Reverse<(Found, usize)>>,
    listed: Vec<LeaseId>,
    /// By the number of leases when it began.
    bytes: usize,
}

impl Listing {
    pub fn begin(rows: &Arena<Row>) -> Listing {
        Listing {
            next: 0,
            end: rows.end(),
            newcomers: HashSet::new(),
            gone: Vec::new(),
            runs: Vec::new(),
            heads: BinaryHeap::new(),
            listed: Vec::with_capacity(rows.len()),
            bytes: rows.len() * LISTED_BYTES,
        }
    }

    pub fn bytes(&self) -> usize {
        self.bytes
    }

    fn is_ahead(&self, at: u32) -> bool {
        (self.next..self.end).contains(&at)
    }

    pub fn granted(&mut self, at: u32) {
        if self.is_ahead(at) {
            self.newcomers.insert(at);
        }
    }

    pub fn revoked(&mut self, at: u32, row: &Row) {
        if self.is_ahead(at) && !self.newcomers.remove(&at) {
            self.gone.push((row.deadline, row.id));
        }
    }

    /// Looks at rows and then puts leases in their order, so many of both together. True once that was the rest.
    pub fn step(&mut self, rows: &Arena<Row>, visits: usize) -> bool {
        let first = self.next;
        self.walk(rows, visits);
        if self.next < self.end {
            return false;
        }
        for _ in (self.next - first) as usize..visits {
            let Some(Reverse(((_, id), run))) = self.heads.pop() else { return true };
            self.listed.push(id);
            self.heads.extend(self.runs[run].next().map(|found| Reverse((found, run))));
        }
        self.heads.is_empty()
    }

    fn walk(&mut self, rows: &Arena<Row>, visits: usize) {
        if self.next == self.end {
            return;
        }
        let end = self.end.min(self.next.saturating_add(u32::try_from(visits).unwrap_or(u32::MAX)));
        let found = (self.next..end).filter(|at| !self.newcomers.remove(at));
        let mut found: Vec<Found> = found.filter_map(|at| rows.get(at)).map(|row| (row.deadline, row.id)).collect();
        self.next = end;
        found.append(&mut self.gone);
        found.sort_unstable();
        let mut found = found.into_iter();
        self.heads.extend(found.next().map(|first| Reverse((first, self.runs.len()))));
        self.runs.push(found);
    }

    pub fn into_leases(self) -> Vec<LeaseId> {
        self.listed
    }
}
