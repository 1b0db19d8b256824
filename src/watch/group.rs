//! Groups: all synced watchings of one range with one set of options.
//!
//! A range is kept once, however many watch it. A group whose range is one key is found by hash, a span by stabbing the
//! interval tree. Groups with the same range and other options hang behind each other in a chain, and the table and the
//! tree name only the first of them.
//!
//! A group lives while it has members or while something apart (a watcher that is behind, or starts in the future) counts
//! on it. Nothing here is removed while a fan-out looks at it; the hub sees to that.

use std::hash::{BuildHasher, Hasher};
use std::hint::black_box;

use hashbrown::{DefaultHashBuilder, HashTable};

use super::foresight::{FORESIGHT, FORESIGHT_MIN, Foreseen};
use super::interval::{Bounds, Interval, Span};
pub use super::members::Member;
use super::members::Members;
use crate::types::arena::Arena;
use crate::types::{Change, KeyRange};

const NONE: u32 = u32::MAX;

/// The map of ranges is cut into tables, so that growing one of them never needs the whole map twice.
const TABLES: usize = 256;

/// Stream lists keep a group in 30 bits, and the last number stands for no group.
const GROUPS_MAX: usize = (1 << 30) - 2;

/// What a watch asks for beside its range.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Options(u8);

impl Options {
    pub const NO_PUT: Options = Options(1);
    pub const NO_DELETE: Options = Options(2);
    pub const PREV_KV: Options = Options(4);
    pub const PROGRESS: Options = Options(8);
    pub const FRAGMENT: Options = Options(16);

    pub fn with(self, option: Options, on: bool) -> Options {
        if on { Options(self.0 | option.0) } else { self }
    }

    pub fn has(self, option: Options) -> bool {
        self.0 & option.0 != 0
    }

    /// Whether the filters let this change through.
    pub fn let_through(self, change: &Change) -> bool {
        match change {
            Change::Put { .. } => !self.has(Options::NO_PUT),
            Change::Delete { .. } => !self.has(Options::NO_DELETE),
        }
    }
}

/// The shape of a range; it stands beside the bytes.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Kind {
    One,
    From,
    /// The bytes are the length of the start (four bytes), the start, the end.
    Span,
}

pub struct Group {
    bytes: Box<[u8]>,
    members: Members,
    /// The next group of the same range.
    next: u32,
    /// Members whose watch is gone; a sweep takes them out.
    dead: u32,
    /// Watchings of this group that are kept elsewhere.
    apart: u32,
    kind: Kind,
    options: Options,
    /// It waits for its sweep.
    sweeping: bool,
}

impl Group {
    fn start(&self) -> &[u8] {
        match self.kind {
            Kind::One | Kind::From => &self.bytes,
            Kind::Span => &self.bytes[4..self.start_end()],
        }
    }

    fn end(&self) -> Option<&[u8]> {
        match self.kind {
            Kind::One | Kind::From => None,
            Kind::Span => Some(&self.bytes[self.start_end()..]),
        }
    }

    fn start_end(&self) -> usize {
        4 + u32::from_le_bytes(self.bytes[..4].try_into().expect("a span starts with four bytes of length")) as usize
    }

    /// The bytes are about to be read. They are longer than a line of the cache now and then.
    fn foresee_bytes(&self) {
        black_box((self.bytes.first().copied(), self.bytes.last().copied()));
    }

    pub fn options(&self) -> Options {
        self.options
    }

    pub fn dead(&self) -> u32 {
        self.dead
    }

    pub fn members(&self) -> &Members {
        &self.members
    }
}

impl Bounds for Arena<Group> {
    fn span(&self, group: u32) -> Span<'_> {
        let group = &self[group];
        Span { start: group.start(), end: group.end() }
    }

    fn foresee(&self, group: u32) {
        black_box(self[group].bytes.as_ptr());
    }
}

/// All groups of a shard.
pub struct Groups {
    arena: Arena<Group>,
    tables: Box<[HashTable<u32>]>,
    spans: Interval,
    /// Seeded by the process, since clients choose the keys. Its order reaches no output: nothing walks the tables.
    hasher: DefaultHashBuilder,
    member_bytes: usize,
    range_bytes: usize,
    table_bytes: usize,
}

impl Groups {
    pub fn new() -> Groups {
        Groups {
            arena: Arena::new(),
            tables: (0..TABLES).map(|_| HashTable::new()).collect(),
            spans: Interval::new(),
            hasher: DefaultHashBuilder::default(),
            member_bytes: 0,
            range_bytes: 0,
            table_bytes: 0,
        }
    }

    pub fn len(&self) -> usize {
        self.arena.len()
    }

    /// What groups, their keys and the ways to find them take.
    pub fn bytes(&self) -> usize {
        self.arena.bytes() + self.range_bytes + self.table_bytes + self.spans.bytes()
    }

    /// What the lists of members take.
    pub fn member_bytes(&self) -> usize {
        self.member_bytes
    }

    pub fn get(&self, group: u32) -> Option<&Group> {
        self.arena.get(group)
    }

    /// Names every group whose range holds the key, or about `count` of them: then it gives the group of the last span that was
    /// named, behind which it goes on when it is given that. Groups that come and go in between are named or not.
    pub fn stab(
        &self,
        key: &[u8],
        behind: Option<u32>,
        count: usize,
        found: &mut impl FnMut(u32, Options),
    ) -> Option<u32> {
        let mut left = count;
        let mut chain = |first: u32| {
            let mut at = first;
            while at != NONE {
                let group = &self.arena[at];
                found(at, group.options);
                at = group.next;
                left = left.saturating_sub(1);
            }
            left > 0
        };
        if behind.is_none() {
            let hash = self.hash(Kind::One, key, None);
            if let Some(first) = self.table(hash).find(hash, |group| self.is(*group, Kind::One, key, None)) {
                chain(*first);
            }
        }
        self.spans.stab(&self.arena, key, behind, &mut chain)
    }

    /// The options of a group, if its range holds the key.
    pub fn options_for(&self, group: u32, key: &[u8]) -> Option<Options> {
        let group = self.get(group)?;
        let is_hit = match group.kind {
            Kind::One => group.start() == key,
            Kind::From => group.start() <= key,
            Kind::Span => group.start() <= key && group.end().is_some_and(|end| key < end),
        };
        is_hit.then_some(group.options)
    }

    /// Looks at what [`Groups::intern`] and [`Groups::add`] will look at for each of these ranges: see [`super::foresight`].
    pub fn foresee(&self, ranges: &[Foreseen<'_>]) {
        if ranges.len() < FORESIGHT_MIN {
            return;
        }
        for ranges in ranges.chunks(FORESIGHT) {
            self.foresee_some(ranges);
        }
    }

    fn foresee_some(&self, ranges: &[Foreseen<'_>]) {
        let mut hashes = [0; FORESIGHT];
        for (hash, range) in hashes.iter_mut().zip(ranges) {
            let (kind, start, end) = kind_of(range);
            *hash = self.hash(kind, start, end);
        }
        let mut groups = [None; FORESIGHT];
        for ((group, hash), _) in groups.iter_mut().zip(hashes).zip(ranges) {
            // One with the same few bits of the hash is the one nearly always.
            *group = self.table(hash).find(hash, |_| true).copied();
        }
        groups.iter().flatten().for_each(|group| self.arena.foresee(*group));
        let mut new = [None; FORESIGHT];
        for ((new, group), range) in new.iter_mut().zip(groups).zip(ranges) {
            match (group, kind_of(range)) {
                (None, (Kind::One, ..)) => {}
                (None, (_, start, end)) => *new = Some(Span { start, end }),
                (Some(group), _) => {
                    let group = &self.arena[group];
                    group.foresee_bytes();
                    group.members.foresee();
                }
            }
        }
        self.spans.foresee(&self.arena, &new);
    }

    /// The group of a range with these options; made when there is none. `None`: there are as many as a list can name.
    pub fn intern(&mut self, range: &KeyRange, options: Options) -> Option<u32> {
        let (kind, start, end) = parts(range);
        let hash = self.hash(kind, start, end);
        let first = self.table(hash).find(hash, |group| self.is(*group, kind, start, end)).copied();
        let mut at = first.unwrap_or(NONE);
        while at != NONE {
            if self.arena[at].options == options {
                return Some(at);
            }
            at = self.arena[at].next;
        }
        if self.arena.len() >= GROUPS_MAX {
            return None;
        }
        let bytes = bytes_of(start, end);
        self.range_bytes += bytes.len();
        let group =
            Group { bytes, members: Members::new(), next: NONE, dead: 0, apart: 0, kind, options, sweeping: false };
        let group = self.arena.insert(group);
        match first {
            Some(first) => {
                self.arena[group].next = self.arena[first].next;
                self.arena[first].next = group;
            }
            None => self.enter(hash, group),
        }
        Some(group)
    }

    /// Makes the first group of a range known to the table, and to the tree when it is a span.
    fn enter(&mut self, hash: u64, group: u32) {
        let Groups { arena, tables, hasher, .. } = self;
        let table = &mut tables[table_of(hash)];
        let before = table.allocation_size();
        if table.len() == table.capacity() {
            // It doubles, unless most of what fills it is gone.
            *table = resized(arena, hasher, table, table.len() + table.len() / 4 * 3 + 1);
        }
        table.insert_unique(hash, group, |_| unreachable!("it has room"));
        self.table_bytes += table.allocation_size() - before;
        if self.arena[group].kind != Kind::One {
            self.spans.insert(&self.arena, group);
        }
    }

    pub fn add(&mut self, group: u32, member: Member) {
        let entry = &mut self.arena[group];
        let before = entry.members.bytes();
        entry.members.push(member);
        self.member_bytes = self.member_bytes + entry.members.bytes() - before;
    }

    /// Takes a member out; the last one takes its place. The group stays, even when it is empty: see [`Groups::release`].
    pub fn swap_remove(&mut self, group: u32, at: usize) -> Member {
        let entry = &mut self.arena[group];
        let before = entry.members.bytes();
        let member = entry.members.swap_remove(at);
        self.member_bytes = self.member_bytes + entry.members.bytes() - before;
        member
    }

    /// A watching of this group is kept elsewhere from now on.
    pub fn set_apart(&mut self, group: u32) {
        self.arena[group].apart += 1;
    }

    /// It no longer is. The group may be free after that.
    pub fn back(&mut self, group: u32) {
        self.arena[group].apart -= 1;
    }

    /// Notes that a member is dead. True when so many are that a sweep pays, and none waits yet.
    pub fn bury(&mut self, group: u32) -> bool {
        let entry = &mut self.arena[group];
        entry.dead += 1;
        debug_assert!(entry.dead as usize <= entry.members().len());
        let due = entry.dead as usize * 8 >= entry.members().len() && !entry.sweeping;
        entry.sweeping |= due;
        due
    }

    /// A dead member has been taken out.
    pub fn exhume(&mut self, group: u32) {
        self.arena[group].dead -= 1;
    }

    /// The sweep is over; the next death that is one too many asks for another.
    pub fn swept(&mut self, group: u32) {
        self.arena[group].sweeping = false;
    }

    /// Frees the group when nothing is in it and nothing counts on it.
    pub fn release(&mut self, group: u32) {
        let entry = &self.arena[group];
        if !entry.members().is_empty() || entry.apart > 0 {
            return;
        }
        assert_eq!(entry.dead, 0, "an empty group has no dead members");
        let (kind, next) = (entry.kind, entry.next);
        let hash = self.hash(kind, entry.start(), entry.end());
        let first = *self.tables[table_of(hash)]
            .find(hash, |other| self.is_same(*other, group))
            .expect("the range of a group in place is in the table");
        if first != group {
            self.unchain(first, group);
        } else if next != NONE {
            if kind != Kind::One {
                self.spans.replace(&self.arena, group, next);
            }
            self.replace(hash, group, next);
        } else {
            if kind != Kind::One {
                self.spans.remove(&self.arena, group);
            }
            self.forget(hash, group);
        }
        self.range_bytes -= self.arena.remove(group).bytes.len();
    }

    fn unchain(&mut self, first: u32, group: u32) {
        let mut at = first;
        while self.arena[at].next != group {
            at = self.arena[at].next;
        }
        self.arena[at].next = self.arena[group].next;
    }

    fn replace(&mut self, hash: u64, old: u32, new: u32) {
        let entry = self.tables[table_of(hash)].find_mut(hash, |group| *group == old);
        *entry.expect("the first group of a range is in the table") = new;
    }

    fn forget(&mut self, hash: u64, group: u32) {
        let Groups { arena, tables, hasher, .. } = self;
        let table = &mut tables[table_of(hash)];
        let before = table.allocation_size();
        let entry = table.find_entry(hash, |other| *other == group);
        entry.unwrap_or_else(|_| panic!("the first group of a range is in the table")).remove();
        // A table shrinks when three quarters of it are empty, so that a mass exit gives its memory back.
        if table.len() * 4 < table.capacity() {
            *table = resized(arena, hasher, table, table.len() * 2);
        }
        self.table_bytes = self.table_bytes + table.allocation_size() - before;
    }

    fn is(&self, group: u32, kind: Kind, start: &[u8], end: Option<&[u8]>) -> bool {
        let group = &self.arena[group];
        group.kind == kind && group.start() == start && group.end() == end
    }

    fn is_same(&self, one: u32, other: u32) -> bool {
        let (one, other) = (&self.arena[one], &self.arena[other]);
        one.kind == other.kind && one.bytes == other.bytes
    }

    fn hash(&self, kind: Kind, start: &[u8], end: Option<&[u8]>) -> u64 {
        hash_of(&self.hasher, kind, start, end)
    }

    fn table(&self, hash: u64) -> &HashTable<u32> {
        &self.tables[table_of(hash)]
    }
}

/// The table with room for so many groups. It needs the bytes of all, which lie anywhere: see [`super::foresight`]. To wait for
/// one after the other was a third of what creates on keys of their own took.
fn resized(
    arena: &Arena<Group>,
    hasher: &DefaultHashBuilder,
    table: &HashTable<u32>,
    capacity: usize,
) -> HashTable<u32> {
    let mut resized = HashTable::with_capacity(capacity);
    let mut groups = table.iter().copied();
    loop {
        let mut some = [NONE; FORESIGHT];
        let count = some.iter_mut().zip(&mut groups).map(|(place, group)| *place = group).count();
        let some = &some[..count];
        some.iter().for_each(|group| arena.foresee(*group));
        some.iter().for_each(|group| arena[*group].foresee_bytes());
        for group in some {
            let entry = &arena[*group];
            let hash = hash_of(hasher, entry.kind, entry.start(), entry.end());
            resized.insert_unique(hash, *group, |_| unreachable!("it was made large enough"));
        }
        if count < FORESIGHT {
            return resized;
        }
    }
}

fn hash_of(hasher: &DefaultHashBuilder, kind: Kind, start: &[u8], end: Option<&[u8]>) -> u64 {
    let mut hasher = hasher.build_hasher();
    hasher.write_u8(kind as u8);
    hasher.write(start);
    hasher.write(end.unwrap_or_default());
    hasher.finish()
}

/// Bits of the hash that a table itself does not look at first: it takes its position from the lowest and its tags from
/// the highest.
fn table_of(hash: u64) -> usize {
    (hash >> 44) as usize % TABLES
}

fn parts(range: &KeyRange) -> (Kind, &[u8], Option<&[u8]>) {
    match range {
        KeyRange::One(key) => (Kind::One, key, None),
        KeyRange::From(start) => (Kind::From, start, None),
        KeyRange::Span { start, end } => (Kind::Span, start, Some(end)),
    }
}

fn kind_of<'a>(range: &Foreseen<'a>) -> (Kind, &'a [u8], Option<&'a [u8]>) {
    let Foreseen { key, range_end } = *range;
    match range_end {
        [] => (Kind::One, key, None),
        [0] => (Kind::From, key, None),
        end => (Kind::Span, key, Some(end)),
    }
}

fn bytes_of(start: &[u8], end: Option<&[u8]>) -> Box<[u8]> {
    let Some(end) = end else { return start.into() };
    let length = u32::try_from(start.len()).expect("request limits keep a key below 4 GiB");
    [&length.to_le_bytes(), start, end].concat().into()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::random::Random;
    use bytes::Bytes;

    #[test]
    fn a_group_takes_56_bytes_and_a_lone_member_none() {
        assert_eq!(size_of::<Group>(), 56);
        assert_eq!(size_of::<Member>(), 8);
        let mut groups = Groups::new();
        let group = groups.intern(&KeyRange::One(Bytes::from("a")), Options::default()).unwrap();
        groups.add(group, Member { stream: 1, row: 2 });
        assert_eq!(groups.member_bytes(), 0);
        assert_eq!(groups.arena.bytes(), 512 * 56);
    }

    #[test]
    fn tables_that_grow_and_shrink_lose_nobody() {
        let mut groups = Groups::new();
        let range = |number: u32| KeyRange::One(Bytes::from(format!("{number}")));
        let intern = |groups: &mut Groups, number| groups.intern(&range(number), Options::default()).unwrap();
        // A hundred a table: more than are looked at together.
        let indexes: Vec<u32> = (0..25_600).map(|number| intern(&mut groups, number)).collect();
        let full = groups.table_bytes;
        assert!(full <= 12 * indexes.len(), "{full} bytes");
        for (number, index) in (0..).zip(&indexes) {
            assert_eq!(intern(&mut groups, number), *index);
            // Eight of nine go.
            if number % 9 > 0 {
                groups.release(*index);
            }
        }
        assert!(groups.table_bytes < full / 2, "{} of {full} bytes", groups.table_bytes);
        let left = || (0..).zip(&indexes).filter(|(number, _)| number % 9 == 0);
        assert_eq!(groups.len(), left().count());
        left().for_each(|(number, index)| assert_eq!(intern(&mut groups, number), *index));
    }

    #[test]
    fn groups_are_interned_found_and_freed() {
        for seed in 0..50 {
            let random = &mut Random::new(seed);
            let mut groups = Groups::new();
            let mut live: Vec<(KeyRange, Options, u32, u32)> = Vec::new();
            for row in 0..500 {
                let mut key = || Bytes::from(vec![b'a' + random.below(5) as u8; 1 + random.below(2) as usize]);
                let (start, end) = (key(), key());
                let range = match random.below(3) {
                    0 => KeyRange::One(start),
                    1 => KeyRange::From(start),
                    _ => KeyRange::Span { start, end },
                };
                let options = Options::default().with(Options::PREV_KV, random.below(3) == 0);
                // Ranges that are there, and others: to look at them takes nothing but a way to each.
                let keys: Vec<Vec<u8>> = (0..40).map(|_| vec![b'a' + random.below(6) as u8]).collect();
                let ends: [&[u8]; 4] = [b"", b"\0", b"b", b"d"];
                let foreseen = keys.iter().map(|key| Foreseen { key, range_end: ends[random.below(4) as usize] });
                groups.foresee(&foreseen.take(row as usize % 41).collect::<Vec<_>>());
                let group = groups.intern(&range, options).unwrap();
                for (other_range, other_options, other, _) in &live {
                    assert_eq!((*other_range == range) && (*other_options == options), *other == group);
                }
                groups.add(group, Member { stream: 0, row });
                live.push((range, options, group, row));
                if random.below(5) < 3 {
                    let (_, _, group, row) = live.swap_remove(random.below(live.len() as u64) as usize);
                    let at = groups.get(group).unwrap().members().position(Member { stream: 0, row }).unwrap();
                    groups.swap_remove(group, at);
                    groups.release(group);
                }
                let key = [b'a' + random.below(5) as u8];
                let mut found = Vec::new();
                groups.stab(&key, None, usize::MAX, &mut |group, _| found.push(group));
                found.sort_unstable();
                let mut expected: Vec<u32> = live.iter().filter(|one| one.0.contains(&key)).map(|one| one.2).collect();
                expected.sort_unstable();
                expected.dedup();
                assert_eq!(found, expected, "seed {seed}");
            }
            for (_, _, group, row) in live {
                let at = groups.get(group).unwrap().members().position(Member { stream: 0, row }).unwrap();
                groups.swap_remove(group, at);
                groups.release(group);
            }
            assert_eq!((groups.len(), groups.member_bytes(), groups.range_bytes), (0, 0, 0));
        }
    }
}
