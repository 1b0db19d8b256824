//! The log and its recovery on a disk that fails: lives that end in a power cut, a kill or a failed sync, one after the
//! other on the same disk, and after each of them what recovery brings back against what was told.
//!
//! The promises: every group that was reported durable is back; what is back is a beginning of what was appended, in
//! order, and nothing else; a damaged log is refused, or cut where nobody was ever told of the rest.

use std::cell::Cell;
use std::collections::VecDeque;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::{Receiver, channel};

use crate::random::Random;
use crate::sim::device::FakeDevice;
use crate::sim::disk::{FakeDisk, Faults, SECTOR_BYTES};
use crate::sim::seeds;
use crate::types::{Alarm, AlarmKind, Batch, Change, Entry, KeyValue, Lease, LeaseId, Position, Revision, Time};
use crate::wal::disk::Disk;
use crate::wal::examine::{Finding, examine};
use crate::wal::log::{self, Log};
use crate::wal::newest::{self, Newest};
use crate::wal::record::{self, BLOCK_BYTES, Look, SegmentHeader, filled_bytes};
use crate::wal::replay::{self, Recovered, Replay, ReplayError};
use crate::wal::segments::{self, Keeper, Step};
use crate::wal::{LogFailure, Progress};

const CLUSTER: u64 = 0xc1;
/// Short, so that groups are cut over frames, frames over segments, and files are recycled all the time.
const BLOCKS: u32 = 8;

type Group = (Position, Vec<Entry>);

#[derive(Clone, Copy, Default)]
struct Planted {
    log: log::Planted,
    replay: replay::Planted,
}

/// Groups as a writer makes them.
struct Source {
    revision: Revision,
}

impl Source {
    fn entries(&mut self, random: &mut Random) -> Vec<Entry> {
        let count = *random.pick(&[0, 1, 1, 1, 2, 5]);
        (0..count).map(|_| self.entry(random)).collect()
    }

    fn entry(&mut self, random: &mut Random) -> Entry {
        match random.below(13) {
            0 => Entry::Compaction(self.revision),
            1 => Entry::Alarm {
                alarm: Alarm { member: random.next(), kind: *random.pick(&[AlarmKind::NoSpace, AlarmKind::Corrupt]) },
                active: random.chance(50),
            },
            2 => Entry::Start { term: random.next() },
            3 => Entry::Stop,
            4 => Entry::Lease {
                lease: Lease { id: LeaseId(random.next() as i64), ttl: random.below(9) as i64 },
                granted: random.chance(50),
            },
            5 => Entry::Remaining {
                lease: LeaseId(random.next() as i64),
                seconds: Some(random.below(3) as i64).filter(|seconds| *seconds > 0),
            },
            _ => self.batch(random),
        }
    }

    fn batch(&mut self, random: &mut Random) -> Entry {
        self.revision = self.revision.next();
        let changes = (0..1 + random.below(3) as u32).map(|sub| {
            let key = random.next().to_be_bytes();
            if random.one_in(4) {
                return Change::Delete { key: key.to_vec().into(), previous: None };
            }
            let length = *random.pick(&[0, 10, 100, 1_000, 4_000, 9_000, 40_000]);
            // Mostly zeros, so that whole sectors of different frames are the same.
            let mut value = vec![0; length];
            value.iter_mut().step_by(700).for_each(|byte| *byte = random.next() as u8);
            let (version, lease) = (random.below(9) as i64 + 1, LeaseId(random.below(3) as i64 - 1));
            let kv = KeyValue::new(&key, &value, Revision(2), self.revision, sub, version, lease);
            Change::Put { kv, previous: None }
        });
        let changes = changes.collect();
        Entry::Batch(Arc::new(Batch { revision: self.revision, time: Time(random.next()), changes }))
    }
}

struct World {
    random: Random,
    disk: FakeDisk,
    planted: Planted,
    source: Source,
    /// Everything with entries that was appended and not lost for certain, in order.
    groups: Vec<Group>,
    /// What was reported durable.
    told: Position,
    checkpointed: Arc<AtomicU64>,
}

/// How a life ended.
#[derive(Debug, PartialEq)]
enum End {
    Quiet,
    /// The log said that it is broken, or recovery failed.
    Failed,
}

impl World {
    fn new(seed: u64, planted: Planted) -> World {
        World {
            random: Random::new(seed),
            disk: FakeDisk::new(seed),
            planted,
            source: Source { revision: Revision::FIRST },
            groups: Vec::new(),
            told: Position(0),
            checkpointed: Arc::default(),
        }
    }

    fn checkpointed(&self) -> Position {
        Position(self.checkpointed.load(Ordering::Relaxed))
    }

    fn replay(&self) -> (Result<Recovered, ReplayError>, Vec<Group>) {
        let mut groups = Vec::new();
        let mut replay = Replay::new(&self.disk, CLUSTER, self.checkpointed(), BLOCKS);
        replay.newest = newest::read(&self.disk.names().unwrap());
        replay.planted = self.planted.replay;
        let recovered = replay.run(&mut |position, entries| groups.push((position, entries)), &mut |_, _| {});
        (recovered, groups)
    }

    /// Starts, through any number of failures on the way, and compares.
    fn recover(&mut self) -> Result<Recovered, String> {
        for _ in 0..self.random.below(3) {
            let call = Some(self.random.below(8) + 1);
            let (cut_call, fail_call) = if self.random.chance(70) { (call, None) } else { (None, call) };
            self.disk.set_faults(Faults { cut_call, fail_call, ..Faults::default() });
            if self.replay().0.is_ok() {
                break;
            }
            self.end_life(cut_call.is_some());
        }
        self.disk.set_faults(Faults::default());
        let (recovered, groups) = self.replay();
        let recovered = recovered.map_err(|error| format!("refused: {error}"))?;
        self.compare(&groups, recovered.last)?;
        Ok(recovered)
    }

    fn compare(&mut self, found: &[Group], last: Position) -> Result<(), String> {
        let checkpointed = self.checkpointed();
        let expected: Vec<&Group> = self.groups.iter().filter(|(position, _)| *position > checkpointed).collect();
        let (lost, found_count) = (expected.len().checked_sub(found.len()), found.len());
        let lost = lost.ok_or_else(|| format!("{found_count} groups where {} were written", expected.len()))?;
        if let Some((found, expected)) = found.iter().zip(&expected).find(|(found, expected)| *found != **expected) {
            return Err(format!("another group: {:?} for {:?}", found.0, expected.0));
        }
        let kept = self.groups.len() - lost;
        if let Some((position, _)) = self.groups[kept..].iter().find(|(position, _)| *position <= self.told) {
            return Err(format!("{position:?} was told and is lost"));
        }
        self.groups.truncate(kept);
        if self.groups.last().map_or(Position(0), |(position, _)| *position) != last {
            return Err(format!("the log says it ends at {last:?}"));
        }
        self.told = last;
        Ok(())
    }

    fn end_life(&mut self, with_power: bool) {
        if with_power {
            self.disk.power_cut();
        } else {
            self.disk.restart();
        }
    }

    fn open(&mut self, recovered: Recovered) -> (Keeper<FakeDisk>, Log<FakeDevice>, FakeDevice, Receiver<Progress>) {
        let mut salts = Random::new(self.random.next());
        let salt = Box::new(move || salts.next());
        let disk = Arc::new(self.disk.clone());
        let newest = Newest::open(disk.clone()).unwrap();
        let opened = segments::open(disk, newest, recovered.resume, self.checkpointed.clone(), salt);
        let (keeper, supply) = opened.unwrap();
        let device = FakeDevice::default();
        let (sender, receiver) = channel();
        let mut log = Log::new(device.clone(), supply, sender);
        log.planted = self.planted.log;
        (keeper, log, device, receiver)
    }

    /// One life of the server up to a fault, or to its orderly end when there is none.
    fn live(&mut self, faults: Faults, steps: u64) -> Result<End, String> {
        let recovered = self.recover()?;
        let mut position = recovered.last;
        let (mut keeper, mut log, device, progress) = self.open(recovered);
        self.disk.set_faults(faults);
        let mut durable = VecDeque::new();
        for step in 0.. {
            if step > steps * 40 {
                return Err("the log does not come to rest".to_owned());
            }
            if step >= steps && log.is_idle() {
                break;
            }
            match self.random.below(10) {
                0..3 if step < steps => {
                    position = position.next();
                    let entries = self.source.entries(&mut self.random);
                    // Without entries the disk may learn nothing of it. With others before it under way, it does.
                    if !entries.is_empty() || !log.is_idle() {
                        self.groups.push((position, entries.clone()));
                    }
                    log.append(position, entries);
                }
                0..6 => device.advance(),
                6 => {
                    let step = keeper.step();
                    if step.is_err() {
                        return Ok(End::Failed);
                    }
                }
                7 => {
                    if let Some(position) = durable.pop_front() {
                        self.checkpointed.store(position, Ordering::Relaxed);
                    }
                }
                8 => self.disk.write_back(),
                _ => {}
            }
            while let Some(completed) = log.completed() {
                match completed {
                    Ok(position) => self.told = self.told.max(position),
                    Err(LogFailure::Broken(_)) => return Ok(End::Failed),
                    Err(LogFailure::Refused(error)) => return Err(format!("refused: {error}")),
                }
            }
            while let Ok(told) = progress.try_recv() {
                if let Progress::Durable { position, .. } = told {
                    durable.push_back(position.0);
                }
            }
        }
        Ok(End::Quiet)
    }

    /// Positions that were told and never written carry nothing; they do not count against recovery.
    fn run(seed: u64, planted: Planted) -> Result<(), String> {
        let mut world = World::new(seed, planted);
        for _ in 0..4 {
            let call = Some(world.random.below(60) + 1);
            let (cut_call, fail_call) = match world.random.below(4) {
                0 | 1 => (call, None),
                2 => (None, call),
                _ => (None, None),
            };
            let steps = world.random.below(100) + 20;
            world.live(Faults { cut_call, fail_call, ..Faults::default() }, steps)?;
            let with_power = cut_call.is_some() || world.random.chance(50);
            world.end_life(with_power);
        }
        world.live(Faults::default(), 50)?;
        world.end_life(true);
        world.recover().map(drop)
    }
}

fn first_violation(planted: Planted, seeds: std::ops::Range<u64>) -> Option<(u64, String)> {
    seeds.into_iter().find_map(|seed| World::run(seed, planted).err().map(|violation| (seed, violation)))
}

#[test]
fn what_was_told_survives_every_crash_and_nothing_else_appears() {
    if let Some((seed, violation)) = first_violation(Planted::default(), seeds(1_500)) {
        panic!("seed {seed}: {violation}");
    }
}

#[test]
fn a_log_that_tells_before_it_has_synced_is_found() {
    let log = log::Planted { ack_before_sync: true, ..log::Planted::default() };
    let planted = Planted { log, ..Planted::default() };
    assert!(first_violation(planted, 0..200).is_some());
}

#[test]
fn a_log_that_overlooks_a_failed_sync_is_found() {
    let log = log::Planted { ignore_sync_error: true, ..log::Planted::default() };
    let planted = Planted { log, ..Planted::default() };
    assert!(first_violation(planted, 0..200).is_some());
}

impl World {
    /// What the offline look hands out is right, and it is silent only about a whole log.
    fn check_examined(&self, is_whole: bool) -> Result<(), String> {
        let (mut findings, mut last) = (0, Position(0));
        let mut wrong = None;
        let examined = examine(&self.disk, None, &mut |finding| match finding {
            Finding::Group { position, entries, .. } => {
                let is_right = position > last && self.groups.contains(&(position, entries));
                wrong = wrong.or((!is_right).then_some(position));
                last = position;
            }
            Finding::Damage(_) | Finding::TornTail { .. } => findings += 1,
        });
        let examined = examined.map_err(|error| error.to_string())?;
        let end = self.groups.last().map(|(position, _)| *position);
        match wrong {
            Some(position) => Err(format!("the offline look hands out a wrong {position:?}")),
            None if is_whole && findings > 0 => Err(format!("{findings} findings in a whole log")),
            None if is_whole && examined.last != end => Err("the end is not seen".to_owned()),
            None => Ok(()),
        }
    }

    /// The same log on a disk of its own.
    fn copy(&self, seed: u64) -> World {
        let mut world = World::new(seed, self.planted);
        world.disk = self.disk.copy(seed);
        world.source.revision = self.source.revision;
        world.groups = self.groups.clone();
        world.told = self.told;
        world.checkpointed = Arc::new(AtomicU64::new(self.checkpointed().0));
        world
    }
}

/// A disk with a log of some segments, at rest, and what is in it.
fn written(seed: u64) -> World {
    let mut world = World::new(seed, Planted::default());
    let steps = world.random.below(120) + 30;
    assert_eq!(world.live(Faults::default(), steps), Ok(End::Quiet), "seed {seed}");
    world.disk.restart();
    world
}

#[test]
fn each_call_in_turn_fails_or_is_the_last_before_the_power_goes() {
    let mut calls = 0;
    let mut call = 0;
    while call <= calls {
        for is_cut in [false, true] {
            let mut world = World::new(5, Planted::default());
            let (cut_call, fail_call) = if is_cut { (Some(call), None) } else { (None, Some(call)) };
            // The first round, at call 0, fails nowhere and counts.
            let faults =
                if call == 0 { Faults::default() } else { Faults { cut_call, fail_call, ..Faults::default() } };
            let mut run = |world: &mut World| {
                world.live(faults, 60)?;
                calls = calls.max(world.disk.calls());
                world.end_life(is_cut);
                world.live(Faults::default(), 30)?;
                world.end_life(true);
                world.recover().map(drop)
            };
            run(&mut world).unwrap_or_else(|violation| panic!("call {call}, cut {is_cut}: {violation}"));
        }
        call += 1;
    }
    assert!(calls > 50, "{calls} calls");
}

/// Every frame of the log with its segment, offset and length as far as it is filled, and the last group before it.
pub fn frames(disk: &FakeDisk) -> Vec<(String, u64, u64, Position)> {
    let mut frames = Vec::new();
    for name in disk.names().unwrap().into_iter().filter(|name| name.ends_with(".wal")) {
        let bytes = disk.contents(&name);
        let header = SegmentHeader::decode(&bytes).unwrap();
        let mut offset = BLOCK_BYTES;
        while let Look::Frame(frame) = replay::look(&bytes, &header, offset) {
            frames.push((name.clone(), offset as u64, filled_bytes(frame.body.len()) as u64, frame.header.after));
            offset += frame.bytes;
        }
    }
    frames
}

/// One flipped bit in the part of the log that is in use: refused, or cut where it hit the last frame.
fn flip(seed: u64, planted: replay::Planted) -> Result<(), String> {
    let mut world = written(seed);
    world.check_examined(true)?;
    world.planted.replay = planted;
    let frames = frames(&world.disk);
    let Some((last_name, last_offset, _, last_after)) = frames.last().cloned() else { return Ok(()) };
    let (name, offset, bytes, _) = world.random.pick(&frames).clone();
    // Now and then into the header of the segment.
    let (from, length) = if world.random.one_in(8) { (0, BLOCK_BYTES as u64) } else { (offset, bytes) };
    let at = from + world.random.below(length);
    let is_last = name == last_name && from == last_offset;
    world.disk.flip(&name, at, 1 << world.random.below(8));
    world.check_examined(false)?;
    let (recovered, found) = world.replay();
    match recovered {
        Err(ReplayError::Damage { file, offset, .. }) => {
            // Where the first segment holds one frame, its loss shows as the start of its frames.
            if file != name || (offset != from && offset != 0) {
                return Err(format!("damage at {name} {from} is reported at {file} {offset}"));
            }
            Ok(())
        }
        Err(ReplayError::Version { .. } | ReplayError::Cluster { .. } | ReplayError::Foreign { .. }) if from == 0 => {
            Ok(())
        }
        Err(ReplayError::Behind { .. }) if is_last => Ok(()),
        Err(error) => Err(format!("refused otherwise: {error}")),
        Ok(_) if !is_last => Err(format!("{name} is damaged at {at} and was served")),
        Ok(recovered) => {
            world.told = world.told.min(last_after);
            if recovered.torn.is_none() && at >= last_offset + 64 {
                return Err("cut without a word".to_owned());
            }
            world.compare(&found, recovered.last)
        }
    }
}

#[test]
fn a_flipped_bit_is_found_wherever_it_is() {
    for seed in seeds(1_500) {
        flip(seed, replay::Planted::default()).unwrap_or_else(|violation| panic!("seed {seed}: {violation}"));
    }
}

#[test]
fn a_replay_that_takes_damage_for_the_end_is_found() {
    let planted = replay::Planted { damage_is_an_end: true };
    assert!((0..200).any(|seed| flip(seed, planted).is_err()));
}

/// The last frame as a power cut may leave it, each sector kept as `kept` says and otherwise as it was before.
fn cut_last_frame(seed: u64, whole: &World, mut kept: impl FnMut(u64, u64) -> bool) {
    let mut world = whole.copy(seed);
    let Some((name, offset, bytes, after)) = frames(&world.disk).pop() else { return };
    if world.checkpointed() > after {
        return;
    }
    let mut contents = world.disk.contents(&name);
    let sectors = bytes.div_ceil(SECTOR_BYTES as u64);
    let mut old = Random::new(seed);
    let mut is_whole = true;
    for sector in (0..sectors).filter(|&sector| !kept(sector, sectors)) {
        let start = (offset + sector * SECTOR_BYTES as u64) as usize;
        let fill = if old.chance(50) { 0 } else { old.next() as u8 };
        let before = &mut contents[start..start + SECTOR_BYTES];
        is_whole &= before.iter().all(|&byte| byte == fill);
        before.fill(fill);
    }
    world.disk.plant(&name, &contents);
    if !is_whole {
        world.told = world.told.min(after);
    }
    let (recovered, found) = world.replay();
    let recovered = match recovered {
        // It was the only frame left; that it is gone cannot be a torn end.
        Err(ReplayError::Damage { flaw: replay::Flaw::First, .. }) => return,
        recovered => recovered.unwrap_or_else(|error| panic!("seed {seed}: {error}")),
    };
    world.compare(&found, recovered.last).unwrap_or_else(|violation| panic!("seed {seed}: {violation}"));
    world.live(Faults::default(), 10).unwrap_or_else(|violation| panic!("seed {seed}: {violation}"));
}

#[test]
fn a_record_that_is_cut_at_any_sector_is_cut_off_and_the_log_goes_on() {
    for seed in seeds(25) {
        let whole = written(seed);
        for end in 0..=64 {
            cut_last_frame(seed, &whole, |sector, sectors| sector < end.min(sectors));
        }
    }
}

#[test]
fn a_record_that_lacks_any_one_sector_is_cut_off_and_the_log_goes_on() {
    for seed in seeds(25) {
        let whole = written(seed);
        for hole in 0..64 {
            cut_last_frame(seed, &whole, |sector, sectors| sector != hole % sectors);
        }
    }
}

#[test]
fn a_full_disk_leaves_a_segment_of_reserve_and_says_so_and_recovers() {
    let mut awaited = 0;
    for seed in seeds(200) {
        let mut world = World::new(seed, Planted::default());
        let recovered = world.recover().unwrap();
        let (mut keeper, mut log, device, _progress) = world.open(recovered);
        let segment_bytes = u64::from(BLOCKS) * BLOCK_BYTES as u64;
        let mut capacity_bytes = (15 + world.random.below(8)) * segment_bytes + 5_000;
        let set_capacity = |disk: &FakeDisk, bytes| {
            disk.set_faults(Faults { capacity_bytes: Some(bytes), ..Faults::default() });
        };
        set_capacity(&world.disk, capacity_bytes);
        let (mut position, mut durable) = (Position(0), Position(0));
        let has_room = Cell::new(false);
        let (disk, checkpointed) = (world.disk.clone(), world.checkpointed.clone());
        // The checkpoint takes nothing that the log does not wait for, and its rows are as large as they can be.
        let mut turn = |log: &mut Log<FakeDevice>, keeper: &mut Keeper<FakeDisk>, random: Option<&mut Random>| {
            if let Some(random) = random.filter(|_| log.is_idle()) {
                position = position.next();
                let entries = vec![Source { revision: Revision(1) }.batch(random)];
                has_room.set(record::entries_len(&entries) <= log.room_bytes());
                log.append(position, entries);
            }
            let step = keeper.step().unwrap();
            if step == Step::Awaiting {
                awaited += 1;
                capacity_bytes = capacity_bytes.saturating_sub(2 * keeper.to_be_given_up() * segment_bytes);
                set_capacity(&disk, capacity_bytes);
                checkpointed.store(durable.0, Ordering::Relaxed);
            }
            device.advance();
            match log.completed() {
                Some(Ok(position)) => durable = position,
                Some(Err(_)) => panic!("seed {seed}"),
                None => {}
            }
            step
        };
        while !log.is_short_of_space() {
            turn(&mut log, &mut keeper, Some(&mut world.random));
        }
        let before = position_of(&world.disk);
        for _ in 0..100 {
            turn(&mut log, &mut keeper, Some(&mut world.random));
        }
        assert!(log.is_short_of_space() && position_of(&world.disk) >= before, "seed {seed}");
        for _ in 0..20 {
            turn(&mut log, &mut keeper, None);
        }
        assert!(log.is_idle() || !has_room.get(), "seed {seed}: what had room waits");
        // Others make room, and the checkpoint goes on.
        set_capacity(&world.disk, u64::MAX);
        world.checkpointed.store(u64::MAX, Ordering::Relaxed);
        for _ in 0..100 {
            keeper.step().unwrap();
            device.advance();
            assert!(!matches!(log.completed(), Some(Err(_))), "seed {seed}");
        }
        assert!(!log.is_short_of_space() && log.is_idle(), "seed {seed}");
        assert!(matches!(keeper.step().unwrap(), Step::Idle | Step::Prepared), "seed {seed}");
    }
    assert!(awaited > 200, "{awaited}");
}

#[test]
fn a_disk_that_turns_read_only_is_a_refusal_and_the_next_start_has_what_was_told() {
    for seed in seeds(100) {
        let mut world = World::new(seed, Planted::default());
        let steps = world.random.below(50);
        assert_eq!(world.live(Faults::default(), steps), Ok(End::Quiet), "seed {seed}");
        world.disk.restart();
        let recovered = world.recover().unwrap();
        let mut position = recovered.last;
        let (mut keeper, mut log, device, _progress) = world.open(recovered);
        keeper.step().unwrap();
        world.disk.set_faults(Faults { is_read_only: true, ..Faults::default() });
        for _ in 0..3 {
            position = position.next();
            let entries = vec![world.source.batch(&mut world.random)];
            world.groups.push((position, entries.clone()));
            log.append(position, entries);
            for _ in 0..2 {
                keeper.step().unwrap();
                device.advance();
            }
            assert!(matches!(log.completed(), Some(Err(LogFailure::Refused(_)))), "seed {seed}");
            assert!(log.completed().is_none() && log.is_idle(), "seed {seed}");
        }
        world.disk.restart();
        world.recover().unwrap_or_else(|violation| panic!("seed {seed}: {violation}"));
    }
}

fn position_of(disk: &FakeDisk) -> Option<Position> {
    frames(disk).last().map(|frame| frame.3)
}

#[test]
fn files_that_do_not_belong_are_named() {
    let world = written(9);
    let names: Vec<String> = world.disk.names().unwrap().into_iter().filter(|name| name.ends_with(".wal")).collect();
    let refusal = |change: &dyn Fn(&FakeDisk)| {
        let changed = world.copy(9);
        change(&changed.disk);
        changed.replay().0.map(drop).unwrap_err().to_string()
    };
    assert!(names.len() >= 3, "{names:?}");
    let missing = refusal(&|disk| disk.remove(&names[1]).unwrap());
    assert!(missing.contains(&names[1]) && missing.contains("is missing"), "{missing}");
    for kept in 1..names.len() {
        let newest = refusal(&|disk| names[kept..].iter().for_each(|name| disk.remove(name).unwrap()));
        assert!(newest.contains(&names[kept]) && newest.contains("is missing"), "{newest}");
    }
    let all = refusal(&|disk| names.iter().for_each(|name| disk.remove(name).unwrap()));
    assert!(all.contains(names.last().unwrap()) && all.contains("is missing"), "{all}");
    let foreign = refusal(&|disk| disk.plant(&names[0], &[b'x'; 9_000]));
    assert!(foreign.contains(&names[0]) && foreign.contains("not a file of this log"), "{foreign}");
    let etcd = refusal(&|disk| disk.plant("0000000000000000-0000000000000000.wal", b"etcd"));
    assert!(etcd.contains("not a file of this log"), "{etcd}");
    let short = refusal(&|disk| disk.plant(&names[0], &world.disk.contents(&names[0])[..BLOCK_BYTES * 2]));
    assert!(short.contains("not as long as"), "{short}");
    let older = refusal(&|disk| disk.remove(&names[0]).unwrap());
    assert!(older.contains(&names[0]) && older.contains("is missing"), "{older}");
    let cluster = Replay::new(&world.disk, CLUSTER + 1, Position(0), BLOCKS).run(&mut |_, _| {}, &mut |_, _| {});
    assert!(cluster.unwrap_err().to_string().contains("belongs to cluster c1"));
    let behind = Replay::new(&world.disk, CLUSTER, Position(1 << 40), BLOCKS).run(&mut |_, _| {}, &mut |_, _| {});
    assert!(behind.unwrap_err().to_string().contains("the log ends at group"));
}
