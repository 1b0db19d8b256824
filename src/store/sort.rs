//! The orders in which a range can be asked for, and the merge of sorted runs in bounded turns.
//!
//! Rows that compare as equal stay in ascending key order, whichever way is sorted: etcd leaves their order open, and a
//! page that repeats must not shuffle them.

use std::cmp::Ordering;
use std::collections::BinaryHeap;
use std::vec::IntoIter;

use crate::types::KeyValue;

use super::command::{Range, SortOrder, SortTarget};
use super::range::Budget;

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Order {
    /// The order in which the index is walked.
    Key,
    /// The index is walked backwards.
    KeyDescending,
    /// That in which the versions were written. No request can name it.
    Change,
    Target {
        target: SortTarget,
        descending: bool,
    },
}

impl Order {
    /// etcd takes a target without an order as ascending.
    pub fn of(request: &Range) -> Order {
        match (request.target, request.order) {
            (SortTarget::Key, SortOrder::Descend) => Order::KeyDescending,
            (SortTarget::Key, _) => Order::Key,
            (target, order) => Order::Target { target, descending: order == SortOrder::Descend },
        }
    }

    pub fn by_key(self) -> bool {
        matches!(self, Order::Key | Order::KeyDescending)
    }

    pub fn compare(self, left: &KeyValue, right: &KeyValue) -> Ordering {
        let (target, descending) = match self {
            Order::Key => return left.key().cmp(right.key()),
            Order::KeyDescending => return right.key().cmp(left.key()),
            Order::Change => return left.id().cmp(&right.id()),
            Order::Target { target, descending } => (target, descending),
        };
        let ordering = match target {
            SortTarget::Key => left.key().cmp(right.key()),
            SortTarget::Version => left.version().cmp(&right.version()),
            SortTarget::Create => left.create_revision().cmp(&right.create_revision()),
            SortTarget::Mod => left.mod_revision().cmp(&right.mod_revision()),
            SortTarget::Value => left.value().cmp(right.value()),
        };
        let ordering = if descending { ordering.reverse() } else { ordering };
        ordering.then_with(|| left.key().cmp(right.key()))
    }
}

/// The first row that is left of one run.
#[derive(Debug)]
struct Head {
    row: KeyValue,
    order: Order,
    run: usize,
}

impl Ord for Head {
    /// Reversed, because the heap gives its greatest first.
    fn cmp(&self, other: &Head) -> Ordering {
        self.order.compare(&other.row, &self.row)
    }
}

impl PartialOrd for Head {
    fn partial_cmp(&self, other: &Head) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl PartialEq for Head {
    fn eq(&self, other: &Head) -> bool {
        self.cmp(other).is_eq()
    }
}

impl Eq for Head {}

/// Merges runs, each sorted, into one row list of bounded length.
#[derive(Debug)]
pub struct Merge {
    runs: Vec<IntoIter<KeyValue>>,
    heads: BinaryHeap<Head>,
    order: Order,
    rows: Vec<KeyValue>,
    rows_max: usize,
}

impl Merge {
    pub fn new(mut runs: Vec<Vec<KeyValue>>, order: Order, rows_max: usize) -> Merge {
        // One run is the usual case and already the answer.
        if runs.len() <= 1 {
            let mut rows = runs.pop().unwrap_or_default();
            rows.truncate(rows_max);
            return Merge { runs: Vec::new(), heads: BinaryHeap::new(), order, rows, rows_max };
        }
        let rows_in_all = runs.iter().map(Vec::len).sum::<usize>();
        let mut runs: Vec<IntoIter<KeyValue>> = runs.into_iter().map(Vec::into_iter).collect();
        let heads = runs.iter_mut().enumerate().filter_map(|(run, rows)| Some(Head { row: rows.next()?, order, run }));
        let heads = heads.collect();
        Merge { runs, heads, order, rows: Vec::with_capacity(rows_in_all.min(rows_max)), rows_max }
    }

    /// One turn; the rows once all are merged.
    pub fn turn(&mut self, budget: &mut Budget) -> Option<Vec<KeyValue>> {
        while self.rows.len() < self.rows_max && !self.heads.is_empty() {
            if !budget.take() {
                return None;
            }
            let Some(Head { row, run, .. }) = self.heads.pop() else { break };
            self.rows.push(row);
            if let Some(row) = self.runs[run].next() {
                self.heads.push(Head { row, order: self.order, run });
            }
        }
        Some(std::mem::take(&mut self.rows))
    }
}
