//! The checkpoint on the failing disk: whatever a crash leaves, rows and log together give the store that was acknowledged.

use std::collections::HashSet;
use std::panic::AssertUnwindSafe;

use redb::ReadableTable;

use super::*;
use crate::random::Random;
use crate::sim::all_at;
use crate::sim::disk::{FakeDisk, Faults};
use crate::store::Store;
use crate::store::command::*;
use crate::store::restore::Restore;
use crate::types::{Alarm, AlarmKind, Change, Key, KeyRange, KeyValue, LeaseId, Time};
use crate::wal::checkpoint_remains::{self, Remains};
use crate::wal::checkpoint_rows::{decode_row, row_sum};

/// See [`Planted::revision_of_newest_row`].
pub(super) fn take_revision_of_newest_row(rows: &mut redb::Table<(u64, u32), &[u8]>, meta: &mut Meta) {
    let compacted = meta.compacted.unwrap_or_default();
    let mut gone = Vec::new();
    for row in rows.iter().unwrap() {
        let (key, row) = row.unwrap();
        let (id, row) = (row_id(key.value()), row.value());
        if id.revision <= compacted && matches!(decode_row(id, row).unwrap().change, Change::Delete { .. }) {
            gone.push((id, stored_crc(row)));
        }
    }
    for (id, crc) in gone {
        rows.remove(row_key(id)).unwrap();
        meta.rows -= 1;
        meta.sum = meta.sum.wrapping_sub(u64::from(crc));
    }
    let newest = rows.last().unwrap().map(|(key, _)| row_id(key.value()).revision);
    meta.revision = newest.unwrap_or(Revision::FIRST);
}

struct World {
    random: Random,
    planted: Planted,
    disk: Arc<FakeDisk>,
    store: Store,
    /// What the log holds, all of it.
    log: Vec<(Position, Vec<Entry>)>,
    checkpoint: Option<Checkpoint<FakeDisk>>,
    gathered: Gathered,
    /// The compaction that is in the log.
    compacted: Revision,
    alarms: Vec<Alarm>,
}

impl World {
    fn new(seed: u64, planted: Planted) -> World {
        let disk = Arc::new(FakeDisk::new(seed));
        let mut world = World {
            random: Random::new(seed),
            planted,
            disk,
            store: Store::new(),
            log: Vec::new(),
            checkpoint: None,
            gathered: Gathered::default(),
            compacted: Revision::ZERO,
            alarms: Vec::new(),
        };
        world.start();
        world
    }

    fn step(&mut self) {
        match self.random.below(12) {
            0..6 => self.write(),
            6 => self.compact(),
            7 => self.remove(),
            8 | 9 => self.commit(),
            10 if self.random.one_in(3) => self.alarm(),
            11 if self.random.one_in(4) => self.crash(),
            _ => self.disk.write_back(),
        }
    }

    fn key(&mut self) -> Key {
        Key::from(format!("{:02}", self.random.below(12)))
    }

    fn write(&mut self) {
        let ops = (0..1 + self.random.below(3)).map(|_| {
            let key = self.key();
            if self.random.one_in(3) {
                let range = if self.random.one_in(4) { KeyRange::From(key) } else { KeyRange::One(key) };
                return Op::DeleteRange(DeleteRange { range, prev_kv: false });
            }
            let length = *self.random.pick(&[0, 10, 300, 9_000]);
            let value = PutValue::Set(vec![self.random.next() as u8; length].into());
            Op::Put(Put { key, value, lease: PutLease::Set(LeaseId::NONE), prev_kv: false })
        });
        let success = ops.collect();
        let write = Write::Txn(Txn { compares: Vec::new(), success, failure: Vec::new() });
        let time = Time(self.random.below(1 << 40));
        if let Some(entry) = self.store.apply(&write, time).entry {
            self.log(vec![entry]);
        }
    }

    fn log(&mut self, entries: Vec<Entry>) {
        let position = Position(self.log.len() as u64 + 1);
        self.gathered.add(position, entries.clone());
        self.log.push((position, entries));
    }

    fn compact(&mut self) {
        let revision = Revision(self.store.revision().0 - self.random.below(5) as i64);
        if self.store.apply(&Write::Compact(revision), Time(0)).answer.is_ok() {
            self.compacted = revision;
            self.log(vec![Entry::Compaction(revision)]);
        }
    }

    fn remove(&mut self) {
        self.store.compact_step(self.random.below(30) as usize, Some(self.compacted));
        self.gathered.remove(self.store.take_removed());
    }

    fn alarm(&mut self) {
        let alarm = Alarm { member: self.random.below(2), kind: AlarmKind::NoSpace };
        let active = self.random.one_in(2);
        self.alarms.retain(|other| *other != alarm);
        if active {
            self.alarms.push(alarm);
            self.alarms.sort_unstable_by_key(|alarm| alarm.member);
        }
        self.log(vec![Entry::Alarm { alarm, active }]);
    }

    fn commit(&mut self) {
        if self.random.one_in(3) {
            // One of the next calls is the last one of this life, or fails, or finds no space.
            let call = Some(1 + self.random.below(40));
            self.disk.set_faults(match self.random.below(3) {
                0 => Faults { cut_call: call, ..Faults::default() },
                1 => Faults { fail_call: call, ..Faults::default() },
                _ => Faults { capacity_bytes: Some(self.disk.used_bytes() + 8_192), ..Faults::default() },
            });
        }
        let forget = self.random.one_in(2);
        let checkpoint = self.checkpoint.as_mut().unwrap();
        let result =
            if self.random.one_in(15) { checkpoint.compact() } else { checkpoint.commit(&mut self.gathered, forget) };
        match result {
            Ok(()) => self.disk.set_faults(Faults::default()),
            Err(CheckpointError::Full(_)) => {
                self.disk.set_faults(Faults::default());
                self.checkpoint.as_mut().unwrap().commit(&mut self.gathered, true).expect("space is back");
            }
            Err(CheckpointError::Disk(_)) => self.crash(),
            Err(error) => panic!("{error}"),
        }
    }

    fn crash(&mut self) {
        // Cut first: closing in order would write.
        if self.random.one_in(2) {
            self.disk.power_cut();
        } else {
            self.disk.restart();
        }
        self.checkpoint = None;
        self.start();
    }

    fn start(&mut self) {
        loop {
            if self.random.one_in(5) {
                let cut_call = Some(1 + self.random.below(20));
                self.disk.set_faults(Faults { cut_call, ..Faults::default() });
            }
            let has_file = self.disk.names().unwrap().iter().any(|name| name == FILE_NAME);
            let opened = match has_file {
                true => Checkpoint::end_compaction(&*self.disk).and_then(|()| Checkpoint::open(self.disk.clone())),
                false if self.log.is_empty() => Checkpoint::create(self.disk.clone(), Meta::new(1, 2)),
                false => panic!("the file is gone"),
            };
            match opened {
                Ok(mut checkpoint) => {
                    self.disk.set_faults(Faults::default());
                    checkpoint.planted = self.planted;
                    self.checkpoint = Some(checkpoint);
                    return self.check();
                }
                Err(CheckpointError::Disk(_)) => self.disk.power_cut(),
                Err(error) => panic!("{error}"),
            }
        }
    }

    /// A store comes back that answers like the one that lives, and goes on in its place.
    fn check(&mut self) {
        let checkpoint = self.checkpoint.as_ref().unwrap();
        let mut meta = checkpoint.meta().clone();
        let mut restore = Restore::new(meta.revision, meta.compacted, 0);
        checkpoint.load(|row| restore.row(row).map_err(|damage| CheckpointError::Damaged(damage.to_string()))).unwrap();
        let (mut store, superseded) = restore.finish().unwrap();
        self.gathered = Gathered::default();
        self.gathered.remove(superseded);
        let checkpointed = meta.position;
        for (position, entries) in self.log.iter().filter(|(position, _)| *position > checkpointed).cloned() {
            for entry in &entries {
                meta.note(entry);
                match entry {
                    Entry::Batch(batch) => drop(store.replay_batch(batch).unwrap()),
                    Entry::Compaction(revision) => store.replay_compaction(*revision).unwrap(),
                    _ => {}
                }
            }
            self.gathered.add(position, entries);
        }
        assert_eq!((meta.revision, &meta.alarms), (self.store.revision(), &self.alarms));
        assert_eq!((store.revision(), store.compacted()), (self.store.revision(), self.store.compacted()));
        let first = store.compacted().unwrap_or_default();
        let history = |store: &Store| store.history(first, store.revision(), usize::MAX, usize::MAX).unwrap();
        assert_eq!(history(&store), history(&self.store));
        for revision in first.0.max(1)..=store.revision().0 {
            let revision = Revision(revision);
            assert_eq!(all_at(&store, revision), all_at(&self.store, revision));
        }
        self.store = store;
    }
}

fn run(seed: u64, planted: Planted) -> std::thread::Result<()> {
    std::panic::catch_unwind(AssertUnwindSafe(|| {
        let mut world = World::new(seed, planted);
        for _ in 0..150 {
            world.step();
        }
        world.crash();
    }))
}

#[test]
fn whatever_a_crash_leaves_gives_back_what_the_log_acknowledged() {
    for seed in 0..100 {
        if let Err(panic) = run(seed, Planted::default()) {
            eprintln!("seed {seed}");
            std::panic::resume_unwind(panic);
        }
    }
}

#[test]
fn a_record_saved_apart_from_its_rows_is_found() {
    let planted = Planted { record_apart: true, ..Planted::default() };
    assert!((0..200).any(|seed| run(seed, planted).is_err()));
}

#[test]
fn a_revision_that_goes_down_after_a_crash_in_a_compaction_is_found() {
    let planted = Planted { revision_of_newest_row: true, ..Planted::default() };
    assert!((0..200).any(|seed| run(seed, planted).is_err()));
}

/// A checkpoint with pages that a compaction moves.
fn with_holes(seed: u64) -> World {
    let mut world = World::new(seed, Planted::default());
    for _ in 0..40 {
        world.write();
        if world.random.one_in(4) {
            world.compact();
            world.remove();
            world.checkpoint.as_mut().unwrap().commit(&mut world.gathered, true).unwrap();
        }
    }
    world
}

/// The process goes on behind a call that found no space, so the file must be whole without a cure. A sync that says so is
/// another matter.
#[test]
fn a_compaction_without_space_leaves_a_whole_file_and_no_note_and_one_whose_sync_says_so_is_a_failed_disk() {
    let (mut full, mut failed) = (0, 0);
    // The first call makes the note, and one that could not be made notes nothing.
    for (seed, call) in (0..20).flat_map(|seed| (2..60).map(move |call| (seed, call))) {
        let mut world = with_holes(seed);
        let faults = Faults { fail_call: Some(call), fails_for_space: true, ..Faults::default() };
        world.disk.set_faults(faults);
        match world.checkpoint.as_mut().unwrap().compact() {
            Ok(()) => continue,
            Err(CheckpointError::Full(_)) => full += 1,
            Err(CheckpointError::Disk(_)) => {
                failed += 1;
                continue;
            }
            Err(error) => panic!("seed {seed}, call {call}: {error}"),
        }
        let has_note = world.disk.names().unwrap().iter().any(|name| name == COMPACTING_NAME);
        // Its removal is followed by a sync, so where nothing followed it was this that failed.
        assert!(!has_note || world.disk.calls() == call, "seed {seed}, call {call}");
        world.write();
        if world.random.chance(50) {
            world.checkpoint.as_mut().unwrap().commit(&mut world.gathered, true).unwrap();
        }
        world.checkpoint = None;
        world.disk.power_cut();
        if let Err(error) = Checkpoint::open(world.disk.clone()) {
            panic!("seed {seed}, call {call}: {error}");
        }
    }
    assert!(full > 50 && failed > 50, "{full} found no space, {failed} failed");
}

/// A call of a compaction fails, the process ends and starts again on the page cache, and then the power goes. Whether all
/// that leaves a file that opens.
fn outlives_a_failed_compaction(seed: u64, call: u64, ends_compaction: bool) -> bool {
    let mut world = with_holes(seed);
    world.disk.set_faults(Faults { fail_call: Some(call), ..Faults::default() });
    let failed = world.checkpoint.as_mut().unwrap().compact().is_err();
    let open = |disk: &Arc<FakeDisk>| {
        if ends_compaction {
            Checkpoint::end_compaction(&**disk)?;
        }
        Checkpoint::open(disk.clone())
    };
    world.disk.restart();
    world.checkpoint = None;
    let checkpoint = open(&world.disk).expect("the page cache shows a whole file");
    checkpoint.release_held().expect("nothing fails any more");
    world.disk.power_cut();
    drop(checkpoint);
    let opened = open(&world.disk);
    assert!(failed || opened.is_ok(), "nothing failed but the power");
    opened.is_ok()
}

#[test]
fn a_compaction_that_fails_and_a_start_and_a_power_cut_leave_the_file_whole() {
    let runs = || (0..20).flat_map(|seed| (1..60).map(move |call| (seed, call)));
    for (seed, call) in runs() {
        assert!(outlives_a_failed_compaction(seed, call, true), "seed {seed}, call {call}");
    }
    assert!(runs().any(|(seed, call)| !outlives_a_failed_compaction(seed, call, false)), "there is nothing to cure");
}

#[test]
fn a_flipped_bit_anywhere_is_found_or_harmless() {
    let mut world = World::new(3, Planted::default());
    for _ in 0..60 {
        world.write();
    }
    let checkpoint = world.checkpoint.as_mut().unwrap();
    checkpoint.commit(&mut world.gathered, true).unwrap();
    world.checkpoint = None;
    let length = world.disk.contents(FILE_NAME).len() as u64;
    let (mut found, mut panicked) = (0, 0);
    for attempt in 0..300 {
        let disk = Arc::new(world.disk.copy(attempt));
        disk.flip(FILE_NAME, world.random.below(length), 1 << world.random.below(8));
        let result = std::panic::catch_unwind(|| -> Result<Vec<Row>, CheckpointError> {
            let checkpoint = Checkpoint::open(disk)?;
            let mut rows = Vec::new();
            checkpoint.load(|row| {
                rows.push(row);
                Ok::<(), CheckpointError>(())
            })?;
            assert_eq!(checkpoint.meta().position, Position(world.log.len() as u64));
            Ok(rows)
        });
        match result {
            Err(_) => panicked += 1,
            Ok(Err(_)) => found += 1,
            Ok(Ok(rows)) => {
                let batches = world.log.iter().flat_map(|(_, entries)| entries).filter_map(|entry| match entry {
                    Entry::Batch(batch) => Some(batch.changes.len()),
                    _ => None,
                });
                assert_eq!(rows.len(), batches.sum::<usize>(), "a row is missing and nobody says so");
            }
        }
    }
    assert!(found > 50 && panicked == 0, "{found} found, {panicked} panicked");
}

fn loaded(checkpoint: &Checkpoint<FakeDisk>) -> Result<Vec<Row>, CheckpointError> {
    let mut rows = Vec::new();
    checkpoint.load(|row| {
        rows.push(row);
        Ok::<(), CheckpointError>(())
    })?;
    Ok(rows)
}

/// Adds so many puts, in groups of about a transaction.
fn fill(world: &mut World, puts: u64) {
    for at in 0..puts {
        let key = Key::from(format!("fill/{at:08}"));
        let (value, lease) = (PutValue::Set(vec![b'v'; 40].into()), PutLease::Set(LeaseId::NONE));
        let entry = world.store.apply(&Write::Put(Put { key, value, lease, prev_kv: false }), Time(7)).entry.unwrap();
        world.log(vec![entry]);
    }
    world.checkpoint.as_mut().unwrap().commit(&mut world.gathered, true).unwrap();
}

#[test]
fn rows_are_read_from_the_pages_as_redb_reads_them() {
    let mut rows_max = 0;
    for seed in 0..20 {
        let mut world = World::new(seed, Planted::default());
        for _ in 0..100 {
            world.step();
        }
        let is_closed = world.random.one_in(2);
        if !is_closed {
            world.disk.restart();
        }
        world.checkpoint = None;
        world.disk.set_faults(Faults::default());
        Checkpoint::end_compaction(&*world.disk).unwrap();
        let mut checkpoint = Checkpoint::open(world.disk.clone()).unwrap();
        assert!(checkpoint.leaves.is_some(), "seed {seed}: it is as a commit left it, closed: {is_closed}");
        let rows = loaded(&checkpoint).unwrap();
        checkpoint.leaves = None;
        assert_eq!(loaded(&checkpoint).unwrap(), rows, "seed {seed}");
        rows_max = rows_max.max(rows.len());

        // What is written from here on is read as well.
        drop(checkpoint);
        world.start();
        assert!(world.checkpoint.as_ref().unwrap().leaves.is_some());
        fill(&mut world, 3);
        let rows = loaded(world.checkpoint.as_ref().unwrap()).unwrap();
        assert_eq!(rows.last().unwrap().id.revision, world.store.revision(), "seed {seed}");
    }
    assert!(rows_max > 50);
}

#[test]
fn rows_of_a_large_file_are_read_by_several_threads_in_their_order() {
    let disk = Arc::new(FakeDisk::new(1));
    let row = |at: i64| {
        let revision = Revision(at + 2);
        let kv = KeyValue::new(b"key", &[b'v'; 100], Revision(2), revision, 0, at + 1, LeaseId::NONE);
        let change = Change::Put { kv, previous: None };
        Row { id: ChangeId { revision, sub: 0 }, is_last: true, time: Time(7), change }
    };
    let rows: Vec<Row> = (0..30_000).map(row).collect();
    let meta = Meta { revision: rows[rows.len() - 1].id.revision, ..Meta::new(1, 2) };
    let mut checkpoint = Checkpoint::create(disk.clone(), meta.clone()).unwrap();
    checkpoint.fill(meta, rows.iter().cloned(), std::iter::empty()).unwrap();
    drop(checkpoint);
    let checkpoint = Checkpoint::open(disk.clone()).unwrap();
    let leaves = checkpoint.leaves.as_ref().expect("it is as a commit left it");
    assert!(leaves.len() > 300, "{} leaves are a tree of three levels", leaves.len());
    assert!(disk.contents(FILE_NAME).len() as u64 >= checkpoint_pages::TWO_THREADS_BYTES_MIN);
    assert!(loaded(&checkpoint).unwrap() == rows);
}

#[test]
fn a_flipped_bit_is_judged_as_redb_judges_it() {
    let mut world = World::new(5, Planted::default());
    for _ in 0..40 {
        world.write();
    }
    fill(&mut world, 300);
    world.checkpoint = None;
    let length = world.disk.contents(FILE_NAME).len() as u64;
    let judge = |disk: FakeDisk, open: fn(Arc<FakeDisk>) -> Result<Checkpoint<FakeDisk>, CheckpointError>| {
        let rows = std::panic::catch_unwind(AssertUnwindSafe(|| {
            let checkpoint = open(Arc::new(disk)).map_err(|error| error.to_string())?;
            Ok((loaded(&checkpoint).map_err(|error| error.to_string())?, checkpoint.meta().clone()))
        }));
        rows.unwrap_or_else(|_| Err("it panics".to_owned()))
    };
    // Every byte of the header, where not all has a checksum, and some of the pages.
    let (mut whole, mut found) = (0, 0);
    for attempt in 0..1_000 {
        let at = if attempt < 320 { attempt } else { world.random.below(length) };
        let bit = 1 << world.random.below(8);
        let copy = || {
            let disk = world.disk.copy(attempt);
            disk.flip(FILE_NAME, at, bit);
            disk
        };
        let ours = judge(copy(), Checkpoint::open);
        let theirs = judge(copy(), |disk| Checkpoint::open_as(disk, None, true));
        assert!(ours == theirs || (ours.is_err() && theirs.is_err()), "bit {bit} of byte {at}: {ours:?}, {theirs:?}");
        // What has a checksum is not left to redb, which panics over pages that contradict each other.
        assert!(ours != Err("it panics".to_owned()), "bit {bit} of byte {at}");
        *if ours.is_ok() { &mut whole } else { &mut found } += 1;
    }
    assert!(whole > 100 && found > 100, "{whole} whole, {found} found");
}

/// As it is left by a crash while it grew: longer than its header says.
#[test]
fn a_start_that_is_refused_leaves_the_file_as_it_was_and_as_long() {
    let mut world = World::new(1, Planted::default());
    fill(&mut world, 2_000);
    // Still open, as a kill leaves it.
    let mut left = world.disk.contents(FILE_NAME);
    left.resize(left.len() + (1 << 20), 0);
    world.disk.restart();
    world.checkpoint = None;
    let disk = Arc::new(FakeDisk::new(1));
    disk.plant(FILE_NAME, &left);
    let checkpoint = Checkpoint::open(disk.clone()).unwrap();
    let rows = loaded(&checkpoint).unwrap();
    assert!(rows.len() >= 2_000);
    // What a refused start does.
    drop(checkpoint);
    assert!(disk.contents(FILE_NAME) == left, "{} bytes were {}", disk.contents(FILE_NAME).len(), left.len());

    let checkpoint = Checkpoint::open(disk.clone()).unwrap();
    checkpoint.release_held().unwrap();
    drop(checkpoint);
    assert!(disk.contents(FILE_NAME).len() < left.len(), "redb gives back what the header does not name");
    assert_eq!(loaded(&Checkpoint::open(disk).unwrap()).unwrap().len(), rows.len());
}

/// The file after a commit, and what it holds.
struct Committed {
    contents: Vec<u8>,
    meta: Meta,
    rows: Vec<Row>,
}

/// What some commits leave, and the sums of all rows that ever were.
fn commits(seed: u64) -> (Vec<Committed>, HashSet<(ChangeId, u64)>) {
    let mut world = World::new(seed, Planted::default());
    let commit = |world: &mut World| {
        for _ in 0..world.random.below(30) {
            match world.random.below(9) {
                0 => world.compact(),
                1 => world.remove(),
                2 => world.alarm(),
                _ => world.write(),
            }
        }
        let checkpoint = world.checkpoint.as_mut().unwrap();
        checkpoint.commit(&mut world.gathered, true).unwrap();
        let rows = loaded(checkpoint).unwrap();
        Committed { contents: world.disk.contents(FILE_NAME), meta: checkpoint.meta().clone(), rows }
    };
    let commits = (0..12).map(|_| commit(&mut world)).collect();
    let mut all = HashSet::new();
    for entry in world.log.iter().flat_map(|(_, entries)| entries) {
        let Entry::Batch(batch) = entry else { continue };
        for (sub, change) in (0..).zip(&batch.changes) {
            let id = ChangeId { revision: batch.revision, sub };
            let is_last = sub as usize + 1 == batch.changes.len();
            all.insert((id, row_sum(&Row { id, is_last, time: batch.time, change: change.clone() })));
        }
    }
    (commits, all)
}

fn remains(contents: &[u8]) -> Option<Remains> {
    let disk = FakeDisk::new(1);
    disk.plant(FILE_NAME, contents);
    checkpoint_remains::read(&disk.open(FILE_NAME).unwrap()).unwrap()
}

#[test]
fn a_file_without_its_header_gives_back_the_last_commit() {
    for seed in 0..10 {
        for Committed { mut contents, meta, rows } in commits(seed).0 {
            for is_blank in [false, true] {
                if is_blank {
                    contents[..4_096].fill(0);
                }
                let remains = remains(&contents).unwrap();
                assert_eq!(remains.meta, meta, "seed {seed}, without header: {is_blank}");
                assert!(remains.rows.into_values().eq(rows.iter().cloned()), "seed {seed}, without header: {is_blank}");
                assert!(remains.lost.is_empty() && remains.leases.is_some());
                assert_eq!(remains.is_last_commit, !is_blank, "seed {seed}");
            }
        }
    }
}

#[test]
fn what_is_left_of_a_damaged_file_is_of_one_commit_and_true() {
    let mut random = Random::new(3);
    let (mut most, mut none) = (0, 0);
    for seed in 0..4 {
        let (commits, all) = commits(seed);
        let last = commits.last().unwrap();
        for round in 0..100 {
            let mut contents = last.contents.clone();
            for _ in 0..1 + random.below(4) {
                let at = random.below(contents.len() as u64) as usize;
                match random.below(3) {
                    0 => contents[at] ^= 1 << random.below(8),
                    1 => contents[at / 4_096 * 4_096..][..4_096].fill(0),
                    _ => contents[..4_096].fill(random.next() as u8),
                }
            }
            let Some(remains) = remains(&contents) else {
                none += 1;
                continue;
            };
            // A commit goes in several steps, each of which may be what is found.
            let found =
                commits.iter().find(|committed| committed.meta == remains.meta).map(|committed| &committed.rows);
            for row in remains.rows.values() {
                let is_true = found.map_or(all.contains(&(row.id, row_sum(row))), |rows| rows.contains(row));
                assert!(is_true, "seed {seed}, round {round}: revision {}", row.id.revision);
            }
            most += usize::from(remains.meta == last.meta && remains.rows.len() * 4 >= last.rows.len() * 3);
        }
    }
    assert!(most > 200 && none < 100, "{most} gave back most of the last commit, {none} nothing");
}
