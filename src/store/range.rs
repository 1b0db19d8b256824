//! Reads of a range at one revision, in bounded turns: filters, limit, order, count.
//!
//! A scan holds no borrow of the index between two turns, only the last key that it visited; whatever was written in
//! between is newer than its revision, and removal waits for it. It knows nothing of requests in flight or of headers.
//!
//! The states: *walking* the keys, then, when the order is not that of the keys, *merging* sorted runs, then *done*.

use crate::types::{Key, KeyRange, KeyValue, Revision};

use super::command::{Range, Rows, Show, SortOrder, SortTarget};
use super::key_index::KeyIndex;
use super::sort::{Merge, Order};

/// Rows that are moved when a run grows for the last time: 256 KiB, some 50 us.
const LARGE_RUN_ROWS: usize = 16_384;

/// How many more visits this turn may make.
#[derive(Debug)]
pub struct Budget(usize);

impl Budget {
    /// At least one visit, or a caller that passes 0 would never get on.
    pub fn new(visits_max: usize) -> Budget {
        Budget(visits_max.max(1))
    }

    /// Takes one visit if there is one left.
    pub fn take(&mut self) -> bool {
        let left = self.0 > 0;
        self.0 = self.0.saturating_sub(1);
        left
    }

    /// Takes what a row of so many bytes is worth, when a visit pays for `bytes_per_visit` of them, if there is any left.
    pub fn take_bytes(&mut self, bytes: usize, bytes_per_visit: usize) -> bool {
        let left = self.0 > 0;
        self.0 = self.0.saturating_sub(1 + bytes / bytes_per_visit);
        left
    }

    pub fn is_spent(&self) -> bool {
        self.0 == 0
    }

    pub fn left(&self) -> usize {
        self.0
    }
}

/// Where a walk over the keys of a range stands.
#[derive(Debug)]
pub struct Walk {
    range: KeyRange,
    at: Revision,
    descending: bool,
    visited: Option<Key>,
}

impl Walk {
    pub fn new(range: KeyRange, at: Revision, descending: bool) -> Walk {
        Walk { range, at, descending, visited: None }
    }

    /// Shows the live keys to `found` until it returns false, the range ends, or the budget is spent. True: the walk is
    /// over; false: come again.
    pub fn turn(&mut self, index: &KeyIndex, budget: &mut Budget, mut found: impl FnMut(&KeyValue) -> bool) -> bool {
        let mut last: Option<&[u8]> = None;
        let mut over = true;
        let visited = self.visited.as_deref();
        let (after, before) = if self.descending { (None, visited) } else { (visited, None) };
        let mut keys = index.scan(&self.range, after, before);
        while let Some((key, versions)) = if self.descending { keys.next_back() } else { keys.next() } {
            if !budget.take() {
                over = false;
                break;
            }
            last = Some(key);
            if let Some(kv) = versions.at(self.at)
                && !found(kv)
            {
                break;
            }
        }
        // Copied only when the walk goes on: most reads end in their first turn.
        if !over && let Some(last) = last {
            self.visited = Some(Key::copy_from_slice(last));
        }
        over
    }
}

#[derive(Debug)]
enum Phase {
    Walking { walk: Walk, runs: Vec<Vec<KeyValue>> },
    Merging(Merge),
}

#[derive(Debug)]
pub struct RangeJob {
    request: Range,
    order: Order,
    /// How many rows in key order are worth keeping; one more than the limit tells whether there are more.
    collect_max: usize,
    collected: usize,
    count: u64,
    /// The walk ends once enough rows are collected.
    is_part: bool,
    phase: Phase,
}

impl RangeJob {
    pub fn new(request: &Range, at: Revision) -> RangeJob {
        let order = Order::of(request);
        let filtered = request.has_revision_bounds();
        // etcd lets the limit cut by key first when no order is named, even if it then sorts by another target.
        let cut_by_key = order == Order::Key || (request.order == SortOrder::None && !filtered);
        let collect_max = match request.limit {
            _ if request.count_only => 0,
            0 => usize::MAX,
            limit if cut_by_key || order == Order::KeyDescending => limit.saturating_add(1),
            _ => usize::MAX,
        };
        let walk = Walk::new(request.range.clone(), at, order == Order::KeyDescending);
        let phase = Phase::Walking { walk, runs: Vec::new() };
        RangeJob { request: request.clone(), order, collect_max, collected: 0, count: 0, is_part: false, phase }
    }

    /// What the rows that are collected take, their versions aside: those are the store's.
    pub fn scratch_bytes(&self) -> usize {
        self.collected * size_of::<KeyValue>()
    }

    /// The first rows alone, without a walk over what is behind them.
    pub fn part(request: &Range, at: Revision) -> RangeJob {
        RangeJob { is_part: true, ..RangeJob::new(request, at) }
    }

    /// One turn. `None`: the budget is spent and there is more to do.
    pub fn turn(&mut self, index: &KeyIndex, budget: &mut Budget) -> Option<Rows> {
        if let Phase::Walking { walk, runs } = &mut self.phase {
            let (request, collect_max, is_part) = (&self.request, self.collect_max, self.is_part);
            let (count, collected) = (&mut self.count, &mut self.collected);
            let mut run = Vec::new();
            let over = walk.turn(index, budget, |kv| {
                // The count ignores limit and filters, so the walk goes on when enough rows are collected.
                *count += 1;
                if *collected < collect_max && passes_filters(request, kv) {
                    *collected += 1;
                    run.push(kv.clone());
                }
                !is_part || *collected < collect_max
            });
            let rows_in_all_max = index.keys_held().min(collect_max);
            keep_run(runs, run, self.order, self.request.limit, rows_in_all_max);
            if !over {
                return None;
            }
            let merge = Merge::new(std::mem::take(runs), self.order, rows_max(&self.request));
            self.phase = Phase::Merging(merge);
        }
        let Phase::Merging(merge) = &mut self.phase else { return None };
        let rows = merge.turn(budget)?;
        Some(self.rows(rows))
    }

    fn rows(&self, rows: Vec<KeyValue>) -> Rows {
        let more = !self.request.count_only && self.collected > rows_max(&self.request);
        Rows { rows, show: show(&self.request), more, count: self.count }
    }
}

/// Sorts what one turn collected, so that no turn sorts more than it walked, and forgets rows that cannot come first.
/// `rows_max` are the rows that all turns may collect.
pub fn keep_run(runs: &mut Vec<Vec<KeyValue>>, mut run: Vec<KeyValue>, order: Order, limit: usize, rows_max: usize) {
    if order.by_key() {
        // Runs in key order follow one another: one growing run, cut at the end.
        match runs.first_mut() {
            Some(first) => {
                make_room(first, run.len(), rows_max);
                first.append(&mut run);
            }
            None => runs.push(run),
        }
        return;
    }
    run.sort_by(|left, right| order.compare(left, right));
    if limit > 0 && run.len() > limit {
        run.truncate(limit);
        run.shrink_to_fit();
    }
    if !run.is_empty() {
        runs.push(run);
    }
}

/// A large run takes room for all that may come at once: to double the place of half a million rows moves them all in one
/// turn, 5 ms in which nobody else is served. Memory that is reserved and never written to stays with the kernel.
fn make_room(run: &mut Vec<KeyValue>, more: usize, rows_max: usize) {
    if run.len() >= LARGE_RUN_ROWS && run.capacity() - run.len() < more {
        run.reserve_exact(more.max(rows_max.saturating_sub(run.len())));
    }
}

/// The read of one key, by far the most frequent one: no job, no allocation but the row.
pub fn read_one(index: &KeyIndex, request: &Range, key: &Key, at: Revision) -> Rows {
    let Some(kv) = index.at(key, at) else { return Rows { show: show(request), ..Rows::default() } };
    let collect = !request.count_only && passes_filters(request, kv);
    let rows = if collect { vec![kv.clone()] } else { Vec::new() };
    Rows { rows, show: show(request), more: false, count: 1 }
}

fn rows_max(request: &Range) -> usize {
    if request.limit == 0 { usize::MAX } else { request.limit }
}

fn passes_filters(request: &Range, kv: &KeyValue) -> bool {
    let within = |number: i64, min: i64, max: i64| (min == 0 || number >= min) && (max == 0 || number <= max);
    within(kv.mod_revision().0, request.min_mod_revision, request.max_mod_revision)
        && within(kv.create_revision().0, request.min_create_revision, request.max_create_revision)
}

/// etcd 3.7 answers a keys-only range from its index, which knows no leases, unless it needs the values to sort by.
fn show(request: &Range) -> Show {
    match (request.keys_only, request.target) {
        (false, _) => Show::All,
        (true, SortTarget::Value) => Show::WithoutValue,
        (true, _) => Show::WithoutValueAndLease,
    }
}
