//! The lessor: which leases there are, when each expires, and which keys go with it.
//!
//! It is values in, values out: whoever calls says what time it is, and revokes what [`Lessor::next_expired`] names. It knows
//! neither the store nor the log: the writer shows it every batch, and it keeps for each key the lease of its newest version.
//!
//! A lease stands in the list of a *slot of time* of a quarter of a second, and the slots in a tree by their time. A slot is
//! due only behind the deadline of every lease in it, so nothing expires early. A keep-alive moves the deadline alone; the
//! lease is looked at when its old slot is due, and then goes into the right one. So a keep-alive is one look into a table,
//! a million leases of one time to live are one list, and no step takes longer than one lease. Two take as long as a lease
//! has keys: what is revoked is one revision by etcd's rule, and its keys are told in one message.
//!
//! What it costs, in bytes (a test holds the table true):
//!
//! | what | bytes |
//! | --- | --- |
//! | a lease | 48 for its row, 5 to 12 for its place in the table |
//! | a key of a lease | 32 for its row, the key, 5 to 12 for its place in the table |
//! | a slot of time | 34 |
//! | a lease that is long enough to have [what it has left](remaining) written down, where that is on | 84 |

mod keys;
mod listing;
#[cfg(test)]
mod random;
mod remaining;
mod table;

use std::collections::BTreeMap;
use std::hash::BuildHasher;
use std::time::Duration;

use hashbrown::DefaultHashBuilder;

use crate::types::arena::Arena;
use crate::types::{Batch, Change, Key, Lease, LeaseId, Uptime};

use keys::Keys;
use listing::Listing;
use remaining::Remaining;
use table::Table;

pub use listing::LISTED_BYTES;

const NONE: u32 = u32::MAX;

/// etcd raises a shorter one to this: one and a half election timeouts, rounded up to whole seconds.
pub const TTL_SECONDS_MIN: i64 = 2;
/// Some 285 years. etcd refuses a longer one.
pub const TTL_SECONDS_MAX: i64 = 9_000_000_000;
/// What a slot takes in the tree: its number and its list in a node that is half full, as those are into which times fall
/// that rise, and a share of the nodes above.
const SLOT_BYTES: usize = 34;
/// How finely expiry is cut.
const SLOT_MILLISECONDS: u64 = 250;

/// Why no lease is granted.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Refused {
    TtlTooLarge,
    Exists,
}

/// What is known of a lease at a moment.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Standing {
    /// In seconds, rounded towards zero; negative once the lease is overdue by a second.
    pub remaining: i64,
    pub granted: i64,
}

struct Row {
    id: LeaseId,
    /// In seconds.
    ttl: i64,
    deadline: Uptime,
    /// The slot of time in whose list it stands, which may be older than its deadline.
    slot: u32,
    previous: u32,
    next: u32,
    /// The first of its keys.
    keys: u32,
}

#[derive(Clone, Copy)]
struct List {
    first: u32,
    last: u32,
}

pub struct Lessor {
    rows: Arena<Row>,
    by_id: Table,
    slots: BTreeMap<u32, List>,
    keys: Keys,
    listing: Option<Listing>,
    remaining: Remaining,
    /// Seeded by the process, since clients choose ids and keys. Its order reaches no output.
    hasher: DefaultHashBuilder,
    /// The generator of ids that no client chose.
    ids: u64,
}

impl Lessor {
    /// `seed` is where the ids begin that no client chose.
    pub fn new(seed: u64) -> Lessor {
        Lessor {
            rows: Arena::new(),
            by_id: Table::new(),
            slots: BTreeMap::new(),
            keys: Keys::new(),
            listing: None,
            remaining: Remaining::default(),
            hasher: DefaultHashBuilder::default(),
            ids: seed,
        }
    }

    pub fn len(&self) -> usize {
        self.rows.len()
    }

    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// What leases and their keys take.
    pub fn bytes(&self) -> usize {
        let slots = self.slots.len() * SLOT_BYTES;
        self.rows.bytes() + self.by_id.bytes() + self.keys.bytes() + slots + self.remaining.bytes()
    }

    /// Grants a lease; id 0 leaves the choice to the lessor. A time to live below the least is raised to it.
    ///
    /// # Errors
    /// When the time to live is too large, or else the id is in use.
    pub fn grant(&mut self, id: LeaseId, ttl: i64, now: Uptime) -> Result<Lease, Refused> {
        if ttl > TTL_SECONDS_MAX {
            return Err(Refused::TtlTooLarge);
        }
        let id = if id == LeaseId::NONE { self.unused_id() } else { id };
        if self.row_of(id).is_some() {
            return Err(Refused::Exists);
        }
        let lease = Lease { id, ttl: ttl.max(TTL_SECONDS_MIN) };
        self.insert(lease, now);
        self.remaining.plan(lease.id, lease.ttl, now);
        Ok(lease)
    }

    /// A positive id that no lease has.
    fn unused_id(&mut self) -> LeaseId {
        loop {
            self.ids = self.ids.wrapping_add(0x9e37_79b9_7f4a_7c15);
            // The finisher of SplitMix64: ids that follow each other look unlike each other.
            let mixed = (self.ids ^ (self.ids >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
            let mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
            let id = LeaseId(((mixed ^ (mixed >> 31)) >> 1) as i64);
            if id != LeaseId::NONE && self.row_of(id).is_none() {
                return id;
            }
        }
    }

    /// Takes a lease as it is. False: there is one of that id.
    pub fn restore(&mut self, lease: Lease, now: Uptime) -> bool {
        let is_new = self.row_of(lease.id).is_none();
        if is_new {
            self.insert(lease, now);
        }
        is_new
    }

    /// Has what leases have left written down once in so long. It is for a lessor whose time has not begun.
    pub fn write_remaining_every(&mut self, interval: Option<Duration>) {
        self.remaining.set_interval(interval);
    }

    /// Takes over what a lease had left by what was written down. False: there is no such lease.
    pub fn restore_remaining(&mut self, id: LeaseId, seconds: Option<i64>) -> bool {
        let is_there = self.contains(id);
        if is_there {
            self.remaining.write(id, seconds);
        }
        is_there
    }

    /// What was last written down of what a lease has left, in seconds, and not taken back.
    pub fn written_remaining(&self, id: LeaseId) -> Option<i64> {
        self.remaining.written(id)
    }

    fn insert(&mut self, Lease { id, ttl }: Lease, now: Uptime) {
        let row = Row { id, ttl, deadline: deadline(now, ttl), slot: 0, previous: NONE, next: NONE, keys: NONE };
        let at = self.rows.insert(row);
        let hash = self.hasher.hash_one(id);
        self.by_id.insert(hash, at, |other| self.hasher.hash_one(self.rows[other].id));
        self.enlist(at);
        if let Some(listing) = &mut self.listing {
            listing.granted(at);
        }
    }

    fn row_of(&self, id: LeaseId) -> Option<u32> {
        self.by_id.find(self.hasher.hash_one(id), |at| self.rows[at].id == id)
    }

    pub fn contains(&self, id: LeaseId) -> bool {
        self.row_of(id).is_some()
    }

    /// Every lease begins anew, as after a start, with what it had left by what was written down, or else with all its time.
    pub fn begin(&mut self, now: Uptime) {
        self.remaining.forget_plans();
        let mut listed = Vec::with_capacity(self.len());
        for list in std::mem::take(&mut self.slots).into_values() {
            let mut at = list.first;
            while at != NONE {
                listed.push(at);
                at = self.rows[at].next;
            }
        }
        for at in listed {
            let row = &mut self.rows[at];
            let seconds = self.remaining.written(row.id).unwrap_or(row.ttl);
            row.deadline = deadline(now, seconds);
            self.remaining.plan(row.id, seconds, now);
            self.enlist(at);
        }
    }

    /// Puts a row behind the others of the slot of its deadline.
    fn enlist(&mut self, at: u32) {
        self.enlist_in(slot_behind(self.rows[at].deadline), at);
    }

    fn enlist_in(&mut self, slot: u32, at: u32) {
        let list = self.slots.entry(slot).or_insert(List { first: at, last: NONE });
        let previous = std::mem::replace(&mut list.last, at);
        let row = &mut self.rows[at];
        (row.slot, row.previous, row.next) = (slot, previous, NONE);
        if previous != NONE {
            self.rows[previous].next = at;
        }
    }

    fn delist(&mut self, at: u32) {
        let Row { slot, previous, next, .. } = self.rows[at];
        if previous != NONE {
            self.rows[previous].next = next;
        }
        if next != NONE {
            self.rows[next].previous = previous;
        }
        if previous == NONE && next == NONE {
            self.slots.remove(&slot);
        } else if previous == NONE || next == NONE {
            let list = self.slots.get_mut(&slot).expect("a row stands in the list of its slot");
            if previous == NONE {
                list.first = next;
            } else {
                list.last = previous;
            }
        }
    }

    /// Gives a lease its whole time again, and tells how much that is. `None`: there is none, or its time is over.
    pub fn keep_alive(&mut self, id: LeaseId, now: Uptime) -> Option<i64> {
        let at = self.row_of(id)?;
        let row = &mut self.rows[at];
        if row.deadline < now {
            return None;
        }
        row.deadline = deadline(now, row.ttl);
        Some(row.ttl)
    }

    /// A lease that was just kept alive takes back what was written down of what it had left. True: there was something.
    pub fn take_remaining_back(&mut self, id: LeaseId, now: Uptime) -> bool {
        let is_taken_back = self.remaining.write(id, None);
        if is_taken_back && let Some(at) = self.row_of(id) {
            self.remaining.plan(id, self.rows[at].ttl, now);
        }
        is_taken_back
    }

    /// A lease of which it is time to write down what it has left, with that in seconds, rounded up. Each lease that is
    /// looked at costs one of `visits`.
    pub fn next_remaining(&mut self, now: Uptime, visits: &mut usize) -> Option<(LeaseId, i64)> {
        while *visits > 0 {
            let id = self.remaining.take_due(now)?;
            *visits -= 1;
            let row = &self.rows[self.row_of(id).expect("a lease that ends is forgotten here as well")];
            let seconds = row.deadline.0.saturating_sub(now.0).div_ceil(1_000) as i64;
            let is_news = (1..row.ttl).contains(&seconds);
            self.remaining.plan(id, seconds, now);
            if is_news {
                self.remaining.write(id, Some(seconds));
                return Some((id, seconds));
            }
        }
        None
    }

    /// When to ask for [`Lessor::next_remaining`] again.
    pub fn next_remaining_due(&self) -> Option<Uptime> {
        self.remaining.next_due()
    }

    /// Whether there is such a lease and its time is over.
    pub fn is_overdue(&self, id: LeaseId, now: Uptime) -> bool {
        self.row_of(id).is_some_and(|at| self.rows[at].deadline < now)
    }

    pub fn standing(&self, id: LeaseId, now: Uptime) -> Option<Standing> {
        let row = &self.rows[self.row_of(id)?];
        let left = row.deadline.0 as i64 - now.0 as i64;
        // Part of the millisecond that counts has passed already, so a lease never has its whole time left.
        Some(Standing { remaining: (left - i64::from(left > 0)) / 1_000, granted: row.ttl })
    }

    /// Begins a list of all leases, or goes on with the one that is begun, for so many looks at a lease. Its end is the
    /// leases that there were when it began, the one that expires first in front.
    pub fn list(&mut self, visits: usize) -> Option<Vec<LeaseId>> {
        let mut listing = self.listing.take().unwrap_or_else(|| Listing::begin(&self.rows));
        if listing.step(&self.rows, visits) {
            return Some(listing.into_leases());
        }
        self.listing = Some(listing);
        None
    }

    /// What a list that is begun holds.
    pub fn listing_bytes(&self) -> usize {
        self.listing.as_ref().map_or(0, Listing::bytes)
    }

    /// What [`Lessor::keys_of`] would take.
    pub fn keys_of_bytes(&self, id: LeaseId) -> usize {
        let Some(at) = self.row_of(id) else { return 0 };
        self.keys.list(self.rows[at].keys).map(key_bytes).sum()
    }

    /// Whether the keys of a lease, each with so much more, come to no more than so many bytes. It looks at no more keys than
    /// tell.
    pub fn has_keys_within(&self, id: LeaseId, each: usize, bytes_max: usize) -> bool {
        let mut keys = self.row_of(id).into_iter().flat_map(|at| self.keys.list(self.rows[at].keys));
        keys.try_fold(bytes_max, |left, key| left.checked_sub(key.len() + each)).is_some()
    }

    /// The keys of a lease, in ascending order.
    pub fn keys_of(&self, id: LeaseId) -> Vec<Key> {
        let Some(at) = self.row_of(id) else { return Vec::new() };
        let mut keys: Vec<Key> = self.keys.list(self.rows[at].keys).map(Key::copy_from_slice).collect();
        keys.sort_unstable();
        keys
    }

    /// Takes a lease away and gives its keys, in ascending order. `None`: there is none.
    pub fn revoke(&mut self, id: LeaseId) -> Option<(Lease, Vec<Key>)> {
        let hash = self.hasher.hash_one(id);
        let at = self.row_of(id)?;
        self.delist(at);
        self.by_id.remove(hash, at, |other| self.hasher.hash_one(self.rows[other].id));
        let row = self.rows.remove(at);
        self.remaining.forget(id);
        if let Some(listing) = &mut self.listing {
            listing.revoked(at, &row);
        }
        let mut keys = self.keys.take_list(row.keys, &self.hasher);
        keys.sort_unstable();
        Some((Lease { id, ttl: row.ttl }, keys))
    }

    /// The lease that is due first, which the caller revokes before it asks again. Each lease that is looked at costs one of
    /// `visits`; without any left there is no answer, and more may be due.
    pub fn next_expired(&mut self, now: Uptime, visits: &mut usize) -> Option<LeaseId> {
        while *visits > 0 {
            let (slot, list) = self.slots.first_key_value()?;
            if starts(*slot) > now {
                return None;
            }
            *visits -= 1;
            let at = list.first;
            if self.rows[at].deadline < now {
                return Some(self.rows[at].id);
            }
            // It was kept alive since. Its new slot lies behind the deadline, which is not over: never the same slot again.
            self.delist(at);
            self.enlist(at);
        }
        None
    }

    /// One that was named by [`Lessor::next_expired`], and cannot be revoked now, is named again behind that moment.
    pub fn postpone(&mut self, id: LeaseId, until: Uptime) {
        if let Some(at) = self.row_of(id) {
            self.delist(at);
            self.enlist_in(slot_behind(until), at);
        }
    }

    /// When to look again.
    pub fn next_deadline(&self) -> Option<Uptime> {
        self.slots.first_key_value().map(|(slot, _)| starts(*slot))
    }

    /// Takes note of what a batch did to the keys of leases. Changes come in their order, so the last of a key counts.
    pub fn note(&mut self, batch: &Batch) {
        for change in &batch.changes {
            match change {
                Change::Put { kv, .. } => self.attach(kv.key(), kv.lease()),
                Change::Delete { key, .. } => self.attach(key, LeaseId::NONE),
            }
        }
    }

    /// The key goes with this lease from here on, and with no other. A lease that is not there has no keys.
    pub fn attach(&mut self, key: &[u8], id: LeaseId) {
        if id == LeaseId::NONE && self.keys.is_empty() {
            return;
        }
        let lease = if id == LeaseId::NONE { None } else { self.row_of(id) };
        let hash = self.hasher.hash_one(key);
        if let Some(at) = self.keys.find(hash, key) {
            let owner = self.keys.owner(at);
            if Some(owner) == lease {
                return;
            }
            let first = self.keys.remove(at, hash, &self.hasher);
            if let Some(first) = first {
                self.rows[owner].keys = first;
            }
        }
        if let Some(lease) = lease {
            let first = self.rows[lease].keys;
            self.rows[lease].keys = self.keys.insert(key, hash, lease, first, &self.hasher);
        }
    }
}

/// What a list of keys takes.
pub fn list_bytes(keys: &[Key]) -> usize {
    keys.iter().map(|key| key_bytes(key)).sum()
}

/// A handle, and an allocation of its own.
fn key_bytes(key: &[u8]) -> usize {
    size_of::<Key>() + key.len().next_multiple_of(16)
}

fn deadline(now: Uptime, ttl: i64) -> Uptime {
    Uptime(now.0.saturating_add(ttl.unsigned_abs().saturating_mul(1_000)))
}

/// The first slot that begins behind a deadline. One that lies too far ahead to be counted is looked at in 34 years.
fn slot_behind(deadline: Uptime) -> u32 {
    u32::try_from(deadline.0 / SLOT_MILLISECONDS + 1).unwrap_or(u32::MAX)
}

fn starts(slot: u32) -> Uptime {
    Uptime(u64::from(slot) * SLOT_MILLISECONDS)
}
