//! A server without its sockets on a disk that fails, from its first start on an empty disk through one life after the
//! other: writer, leases, log, segments, checkpoint and recovery together, as they are put together for a real start.
//!
//! A life ends by an order to stop, a kill, a power cut or a failed call, at any call to the disk, those of a start
//! included. After each: what anybody was told of is there; what nobody was told of is there as a whole or not at all, and
//! then nothing behind it either; keys at every revision, history back to the last compaction, leases with their keys,
//! alarms and term are those of that moment. What a lease had left by what was written
//! down is what a start gives it, and never less than it was promised last. On the way every answer and everything that goes to the log is what the
//! model says. Now and then a bit of a copy rots, and the copy must be refused or be right.

mod truth;

use std::cell::{Cell, RefCell};
use std::collections::HashMap;
use std::ops::RangeInclusive;
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::path::Path;
use std::rc::Rc;
use std::sync::Arc;
use std::sync::mpsc::{Sender, channel};
use std::time::{Duration, Instant};

use crate::backend::{AlarmFilter, Command, HistoryError, LeaseCommand, Reply};
use crate::lease::Lessor;
use crate::random::Random;
use crate::shard::clock;
use crate::shard::durability::Durability;
use crate::shard::embedded::Embedded;
use crate::shard::history::Appender;
use crate::shard::mesh::{self, Link, Request, Response};
use crate::shard::storage::{self, Logged, Restored};
use crate::shard::writer::{self, Pace, Writer};
use crate::sim::crash::frames;
use crate::sim::device::FakeDevice;
use crate::sim::disk::{FakeDisk, Faults};
use crate::sim::{all_keys, seeds};
use crate::store::command::*;
use crate::store::quota::Quota;
use crate::types::{Alarm, AlarmKind, ChangeId, Entry, Key, KeyRange, LeaseId, Position, Revision, Time, Uptime};
use crate::wal::checkpoint;
use crate::wal::checkpoint_thread::{self, Mover, Next};
use crate::wal::claim::identify;
use crate::wal::disk::Disk;
use crate::wal::identity::{self, Identity};
use crate::wal::log::{self, Log};
use crate::wal::newest::Newest;
use crate::wal::recovery::{Files, Refused};
use crate::wal::segments::{self, Keeper, SegmentsHandle};
use crate::wal::{LogFailure, Progress, replay};

use truth::{Due, Owed, Truth, Turn};

const IDENTITY: Identity = Identity { cluster_id: 5, member_id: 6 };
/// Short, so that groups are cut over frames, frames over segments, and files are recycled all the time.
const BLOCKS: u32 = 8;
const LIVES: u64 = 4;
/// Longer than the checkpoint waits.
const CHECKPOINT_AFTER: Duration = Duration::from_secs(11);
const SCRUB_INTERVAL: Duration = Duration::from_secs(5);
/// Shorter than most leases live.
const REMAINING_INTERVAL: Duration = Duration::from_secs(5);

thread_local! {
    /// The clock of the leases.
    static UPTIME: Cell<u64> = const { Cell::new(0) };
}

fn uptime() -> Uptime {
    Uptime(UPTIME.get())
}

/// Bugs that are switched on for a run, to show that it finds them.
#[derive(Clone, Copy, Default)]
struct Planted {
    writer: writer::Planted,
    log: log::Planted,
    mover: checkpoint_thread::Planted,
    checkpoint: checkpoint::Planted,
    replay: replay::Planted,
}

/// The log as the writer sees it, and what the writer handed to it.
#[derive(Clone)]
struct Watched(Rc<RefCell<Inner>>);

struct Inner {
    logged: Logged<FakeDevice>,
    appended: Option<(Position, Vec<Entry>)>,
    /// What the writer was last told of the space: the log's answer changes with what it sends out.
    was_short_of_space: bool,
}

impl Durability for Watched {
    fn append(&mut self, position: Position, entries: &[Entry]) {
        let inner = &mut *self.0.borrow_mut();
        let before = inner.appended.replace((position, entries.to_vec()));
        assert!(before.is_none(), "one group a turn");
        inner.logged.append(position, entries);
    }

    fn completed(&mut self) -> Option<Result<Position, LogFailure>> {
        self.0.borrow_mut().logged.completed()
    }

    fn removed(&mut self, changes: Vec<ChangeId>) {
        self.0.borrow_mut().logged.removed(changes);
    }

    /// The model knows no segments, and no write of a life is as long as one.
    fn room_bytes(&self) -> usize {
        usize::MAX
    }

    fn is_room_coming(&self) -> bool {
        self.0.borrow().logged.is_room_coming()
    }

    fn set_held_up(&mut self, is_held_up: bool) {
        self.0.borrow_mut().logged.set_held_up(is_held_up);
    }

    fn disks(&self) -> String {
        self.0.borrow().logged.disks()
    }

    fn is_short_of_space(&self) -> bool {
        let inner = &mut *self.0.borrow_mut();
        inner.was_short_of_space = inner.logged.is_short_of_space();
        inner.was_short_of_space
    }

    fn set_short_of_memory(&mut self, is_short: bool) {
        self.0.borrow_mut().logged.set_short_of_memory(is_short);
    }

    fn defragment(&mut self) {
        self.0.borrow_mut().logged.defragment();
    }

    fn defragmented(&mut self) -> Option<Result<(), String>> {
        self.0.borrow_mut().logged.defragmented()
    }
}

/// One life.
struct Server {
    embedded: Embedded,
    log: Watched,
    device: FakeDevice,
    keeper: Keeper<FakeDisk>,
    mover: Mover<FakeDisk>,
    progress: Sender<Progress>,
    link: Link,
    /// Sent, and not taken by the writer yet.
    queued: Vec<(u32, Command)>,
    next_token: u32,
    owed: HashMap<u32, Owed>,
    /// The mark of this start, which goes to the log in front of everything.
    noted: Option<Entry>,
}

/// The process ends over a disk that failed.
struct Died;

type Lived = Result<(), Died>;

struct World {
    random: Random,
    disk: FakeDisk,
    planted: Planted,
    truth: Truth,
    now: Instant,
    keys: u64,
    /// After how long what a lease has left is written down, in this life.
    remaining_interval: Option<Duration>,
}

impl World {
    fn new(seed: u64, planted: Planted) -> World {
        let mut random = Random::new(seed);
        let keys = *random.pick(&[3, 8, 20]);
        UPTIME.set(seed % 5_000);
        let truth = Truth::new(IDENTITY.member_id);
        let (disk, remaining_interval) = (FakeDisk::new(seed), None);
        World { random, disk, planted, truth, now: clock::now(), keys, remaining_interval }
    }

    fn pass(&mut self, time: Duration) {
        self.now += time;
        UPTIME.set(UPTIME.get() + time.as_millis() as u64);
    }

    /// Reads a disk back, as a start does.
    fn read_back(&self, disk: &FakeDisk) -> Result<Restored<FakeDisk>, Refused> {
        let (data, wal) = (Path::new("data"), Path::new("wal"));
        let identity = identify(disk, data, || IDENTITY)?;
        let disk = Arc::new(disk.clone());
        let mut files = Files::new((disk.clone(), disk), identity, data, wal).with_segment_blocks(BLOCKS);
        files.planted = self.planted.replay;
        storage::restore(&files, Lessor::new(1), &mut |_| {})
    }

    /// Starts, through any number of failures on the way, and compares.
    fn start(&mut self) -> Result<Server, String> {
        for _ in 0..self.random.below(3) {
            let call = self.random.below(50) + 1;
            let is_cut = self.random.chance(70);
            let (cut_call, fail_call) = if is_cut { (Some(call), None) } else { (None, Some(call)) };
            self.disk.set_faults(Faults { cut_call, fail_call, ..Faults::default() });
            match self.read_back(&self.disk) {
                // Whatever was not reached is left for the next attempt.
                Ok(_) => break,
                Err(refused) if self.disk.calls() < call => return Err(format!("a start is refused: {refused}")),
                Err(_) => self.end_life(is_cut),
            }
        }
        self.disk.restart();
        let mut restored = self.read_back(&self.disk).map_err(|refused| format!("refused: {refused}"))?;
        let position = restored.recovered.meta.position;
        if position < self.truth.told() {
            return Err(format!("{:?} was told, and the log is back at {position:?}", self.truth.told()));
        }
        self.truth.check_found(&restored.recovered.meta, &restored.store, &mut restored.lessor)?;
        // An operator may switch it on and off from one start to the next.
        self.remaining_interval = self.random.chance(75).then_some(REMAINING_INTERVAL);
        self.truth.take_back(position, uptime(), self.remaining_interval);
        Ok(self.serve(restored))
    }

    fn serve(&mut self, restored: Restored<FakeDisk>) -> Server {
        let Restored { store, mut lessor, recovered } = restored;
        let mut checkpoint = recovered.checkpoint;
        checkpoint.planted = self.planted.checkpoint;
        let disk = Arc::new(self.disk.clone());
        let (progress, receiver) = channel();
        let mover = Mover::new(
            (disk.clone(), disk.clone()),
            checkpoint,
            recovered.gathered,
            receiver,
            Some(SCRUB_INTERVAL),
            self.now,
        );
        let mut mover = mover.without_sleep();
        mover.planted = self.planted.mover;
        let checkpointed = mover.checkpointed();
        let mut salts = Random::new(self.random.next());
        let salt = Box::new(move || salts.next());
        let opened = segments::open(
            disk.clone(),
            Newest::open(disk).expect("looking never fails"),
            recovered.resume,
            checkpointed.position.clone(),
            salt,
        );
        let (keeper, supply) = opened.expect("what was just read can be opened");
        let keeper = keeper.telling(checkpointed.is_awaited.clone(), Box::new(|| {}));
        let device = FakeDevice::default();
        let mut log = Log::new(device.clone(), supply, progress.clone());
        log.planted = self.planted.log;
        let disks = Box::new(|| "it is in memory".to_owned());
        let logged =
            Logged::new(log, progress.clone(), checkpointed, Box::new(|| {}), SegmentsHandle::of(&keeper), disks);
        let log = Watched(Rc::new(RefCell::new(Inner { logged, appended: None, was_short_of_space: false })));
        let appender = Appender::new(store.revision(), store.compacted());
        let (link, port) = mesh::pair();
        let pace = Pace { read_rows: 2, compact_visits: 3, history_batches: 5, history_bytes: 500 };
        lessor.write_remaining_every(self.remaining_interval);
        let writer = Writer::new(store, pace, recovered.meta.position.next());
        let writer = writer.with_quota(Quota::default(), IDENTITY.member_id);
        let mut writer = writer.with_leases(lessor, uptime());
        writer.planted = self.planted.writer;
        let start = Entry::Start { term: storage::next_term(&recovered.meta) };
        writer.note(start.clone());
        let mut embedded = Embedded::new(writer, Box::new(log.clone()), appender, vec![port]);
        embedded.start_clock(uptime);
        Server {
            embedded,
            log,
            device,
            keeper,
            mover,
            progress,
            link,
            queued: Vec::new(),
            next_token: 0,
            owed: HashMap::new(),
            noted: Some(start),
        }
    }

    fn end_life(&mut self, with_power: bool) {
        if with_power {
            self.disk.power_cut();
        } else {
            self.disk.restart();
        }
    }

    fn step(&mut self, server: &mut Server) -> Lived {
        match self.random.below(100) {
            0..30 => self.send(server),
            30..50 => self.turn(server)?,
            50..75 => server.device.advance(),
            75..83 => self.prepare(server)?,
            83..88 => self.check_point(server, Duration::ZERO)?,
            88..91 => self.check_point(server, CHECKPOINT_AFTER)?,
            91..97 => {
                let time = Duration::from_millis(self.random.below(900));
                self.pass(time);
            }
            _ => self.disk.write_back(),
        }
        Ok(())
    }

    fn prepare(&mut self, server: &mut Server) -> Lived {
        server.keeper.step().map(drop).map_err(|_| Died)
    }

    fn check_point(&mut self, server: &mut Server, later: Duration) -> Lived {
        self.pass(later);
        server.mover.step(self.now).map(drop).map_err(|_| Died)
    }

    /// A turn of the writer, and the answers that leave with it.
    fn turn(&mut self, server: &mut Server) -> Lived {
        let time = Time(self.random.below(1 << 40));
        server.embedded.turn(time, usize::MAX);
        let is_short_of_space = server.log.0.borrow().was_short_of_space;
        self.note_turn(server, time, is_short_of_space)
    }

    fn note_turn(&mut self, server: &mut Server, time: Time, is_short_of_space: bool) -> Lived {
        if server.embedded.take_failure().is_some() {
            // What was applied in this turn was told to nobody, and will not be.
            return Err(Died);
        }
        let group = server.log.0.borrow_mut().appended.take();
        let (tokens, commands): (Vec<u32>, Vec<Command>) = server.queued.drain(..).unzip();
        let noted = server.noted.take();
        let turn = Turn { commands: &commands, noted, group, is_short_of_space, time, now: uptime() };
        server.owed.extend(tokens.into_iter().zip(self.truth.turn(turn)));
        let (before, committed) = (self.truth.told(), server.embedded.writer().committed_position());
        assert!(before <= committed, "{before:?} was told, and {committed:?} is durable");
        self.truth.tell(committed);
        while let Some(Response { token, reply }) = server.link.receive() {
            let Owed { due, position } = server.owed.remove(&token).expect("one answer a request");
            self.check_reply(due, reply, before..=committed);
            self.truth.tell(position);
        }
        Ok(())
    }

    fn check_reply(&mut self, due: Due, reply: Reply, committed: RangeInclusive<Position>) {
        match (due, reply) {
            (Due::Answer(expected), Reply::Answer(answer)) => assert_eq!(answer, expected),
            (Due::Lease(expected), Reply::Lease(answer)) => assert_eq!(answer, expected),
            (Due::Read(asked), Reply::Answer(answer)) => self.truth.check_read(asked, answer),
            (Due::History(from), Reply::History(batches)) => {
                let batches = batches.map_err(|HistoryError::Compacted(revision)| revision);
                self.truth.check_history(from, batches);
            }
            (Due::Alarms, Reply::Alarms { revision, alarms }) => self.truth.check_alarms(revision, &alarms, committed),
            (Due::Defragmented, Reply::Defragmented(_)) => {}
            (due, reply) => panic!("{reply:?} is no answer to {due:?}"),
        }
    }

    fn send(&mut self, server: &mut Server) {
        let command = self.command();
        let token = server.next_token;
        server.next_token += 1;
        server.link.send(Request { token, command: command.clone() });
        // What the queue has no room for is taken by the turn behind the answers that make it.
        server.queued.push((token, command));
    }

    fn command(&mut self) -> Command {
        match self.random.below(100) {
            0..35 => Command::Write(Write::Put(self.put())),
            35..43 => Command::Write(Write::DeleteRange(self.delete())),
            43..58 => Command::Write(Write::Txn(self.txn())),
            58..63 => Command::Write(Write::Compact(self.revision())),
            63 => Command::CompactPhysical(self.revision()),
            64..67 => {
                let kind = *self.random.pick(&[AlarmKind::NoSpace, AlarmKind::NoSpace, AlarmKind::Corrupt]);
                let alarm = Alarm { member: IDENTITY.member_id, kind };
                // Most of what is tried meets none.
                Command::Write(Write::Alarm { alarm, active: self.random.one_in(4) })
            }
            67..76 => Command::Lease(LeaseCommand::Grant { id: self.lease(), ttl: self.random.below(30) as i64 }),
            76..80 => Command::Lease(LeaseCommand::Revoke(self.lease())),
            80..84 => Command::Lease(LeaseCommand::KeepAlive(self.lease())),
            84..87 => Command::Lease(LeaseCommand::TimeToLive { id: self.lease(), keys: true }),
            87 => Command::Lease(LeaseCommand::List),
            88..93 => {
                let revision = if self.random.chance(50) { 0 } else { self.revision().0.max(0) };
                Command::Read(Read::Range(Range { revision, ..all_keys() }))
            }
            93..97 => Command::History { from: self.revision() },
            97 | 98 => Command::Alarms(AlarmFilter::All),
            _ => Command::Defragment,
        }
    }

    fn revision(&mut self) -> Revision {
        let newest = self.truth.revision().0;
        Revision(newest - self.random.below(12) as i64 + 1).max(Revision(1))
    }

    fn lease(&mut self) -> LeaseId {
        LeaseId(self.random.below(6) as i64 + 1)
    }

    fn key(&mut self) -> Key {
        Key::from(format!("{:02}", self.random.below(self.keys)))
    }

    fn put(&mut self) -> Put {
        let length = *self.random.pick(&[0, 10, 10, 100, 100, 300, 1_000, 4_000, 9_000, 40_000]);
        let value = vec![self.random.next() as u8; length];
        let value = if self.random.one_in(12) { PutValue::Keep } else { PutValue::Set(value.into()) };
        let lease = match self.random.below(10) {
            0..6 => PutLease::Set(LeaseId::NONE),
            6..9 => PutLease::Set(self.lease()),
            _ => PutLease::Keep,
        };
        Put { key: self.key(), value, lease, prev_kv: self.random.one_in(3) }
    }

    fn delete(&mut self) -> DeleteRange {
        let key = self.key();
        let range = if self.random.one_in(5) { KeyRange::From(key) } else { KeyRange::One(key) };
        DeleteRange { range, prev_kv: self.random.one_in(3) }
    }

    fn txn(&mut self) -> Txn {
        let compare = Compare {
            range: KeyRange::One(self.key()),
            relation: Relation::Greater,
            operand: Operand::Version(self.random.below(2) as i64),
        };
        let mut branch = || {
            let ops = (0..self.random.below(4)).map(|_| match self.random.below(3) {
                0 => Op::DeleteRange(self.delete()),
                _ => Op::Put(self.put()),
            });
            ops.collect::<Vec<_>>()
        };
        let (success, failure) = (branch(), branch());
        Txn { compares: vec![compare], success, failure }
    }

    /// What the disk will do in this life.
    fn faults(&mut self) -> Faults {
        let bound = *self.random.pick(&[20, 100, 400]);
        let call = Some(self.random.below(bound) + 1);
        match self.random.below(8) {
            0..4 => Faults { cut_call: call, ..Faults::default() },
            4 | 5 => Faults { fail_call: call, ..Faults::default() },
            6 => {
                let left = self.random.below(40) * 4_096;
                Faults { capacity_bytes: Some(self.disk.used_bytes() + left), ..Faults::default() }
            }
            _ => Faults::default(),
        }
    }

    fn live(&mut self, server: &mut Server) -> Lived {
        let faults = self.faults();
        self.disk.set_faults(faults);
        let steps = self.random.below(250) + 20;
        for _ in 0..steps {
            self.step(server)?;
            if faults.capacity_bytes.is_some() && self.random.one_in(100) {
                self.disk.set_faults(Faults::default());
            }
        }
        if faults.capacity_bytes.is_none() && self.random.one_in(3) { self.stop(server) } else { Ok(()) }
    }

    /// An orderly end.
    fn stop(&mut self, server: &mut Server) -> Lived {
        self.turn(server)?;
        server.embedded.stop();
        server.noted = Some(Entry::Stop);
        self.note_turn(server, Time(0), false)?;
        self.settle(server)?;
        server.progress.send(Progress::Stop).expect("the other end is here");
        match server.mover.step(self.now) {
            Ok(next) => assert_eq!(next, Next::Over),
            Err(_) => return Err(Died),
        }
        Ok(())
    }

    fn settle(&mut self, server: &mut Server) -> Lived {
        for _ in 0..1_000 {
            if server.embedded.is_settled() {
                return Ok(());
            }
            server.device.advance();
            self.prepare(server)?;
            self.turn(server)?;
        }
        panic!("the log does not come to rest");
    }

    /// On a disk that does all it is asked for, everybody is answered and every lease ends.
    fn rest(&mut self, server: &mut Server) -> Lived {
        for kind in [AlarmKind::NoSpace, AlarmKind::Corrupt] {
            let alarm = Alarm { member: IDENTITY.member_id, kind };
            let command = Command::Write(Write::Alarm { alarm, active: false });
            server.link.send(Request { token: server.next_token, command: command.clone() });
            server.queued.push((server.next_token, command));
            server.next_token += 1;
        }
        for _ in 0..1_000 {
            if server.owed.is_empty() && server.embedded.is_settled() && self.truth.leases() == 0 {
                return Ok(());
            }
            self.check_point(server, CHECKPOINT_AFTER)?;
            self.turn(server)?;
            self.settle(server)?;
        }
        panic!("{:?} are not answered, {} leases never end", server.owed, self.truth.leases());
    }

    /// Without the newest file of the log there is no start, once it may hold anything that was told.
    fn lose_newest(&mut self) -> Result<(), String> {
        let disk = self.disk.copy(self.random.next());
        let names = disk.names().expect("looking never fails");
        let Some(newest) = names.iter().rfind(|name| name.ends_with(".wal")) else { return Ok(()) };
        disk.remove(newest).expect("nothing fails");
        let Ok(restored) = self.read_back(&disk) else { return Ok(()) };
        let position = restored.recovered.meta.position;
        if position < self.truth.told() {
            return Err(format!("{newest} is lost, and the server goes on from {position:?}"));
        }
        Ok(())
    }

    /// One bit of a copy rots. A start from it is refused, or is right; and only damage to the last frame of the log may be
    /// taken for its end.
    fn rot(&mut self) -> Result<(), String> {
        let disk = self.disk.copy(self.random.next());
        let names = disk.names().expect("looking never fails");
        let is_read = |name: &&String| [checkpoint::FILE_NAME, identity::FILE_NAME].contains(&&***name);
        let files: Vec<&String> = names.iter().filter(is_read).collect();
        let frames = frames(&disk);
        let bits = 1 << self.random.below(8);
        if self.random.chance(50) && !frames.is_empty() {
            let (name, offset, bytes, _) = self.random.pick(&frames).clone();
            disk.flip(&name, offset + self.random.below(bytes), bits);
        } else if !files.is_empty() {
            let name = *self.random.pick(&files);
            disk.flip(name, self.random.below(disk.contents(name).len() as u64), bits);
        }
        let Ok(mut restored) = self.read_back(&disk) else { return Ok(()) };
        let position = restored.recovered.meta.position;
        let least = frames.last().map_or(Position(0), |(.., after)| *after);
        if position < self.truth.told().min(least) {
            return Err(format!("a bit rots, and the server goes on from {position:?}"));
        }
        self.truth.check_found(&restored.recovered.meta, &restored.store, &mut restored.lessor)
    }

    fn run(seed: u64, planted: Planted) -> Result<(), String> {
        let mut world = World::new(seed, planted);
        for _ in 0..LIVES {
            let mut server = world.start()?;
            let lived = world.live(&mut server);
            let with_power = world.random.chance(if lived.is_ok() { 50 } else { 75 });
            world.end_life(with_power);
            drop(server);
            if world.random.one_in(3) {
                world.rot()?;
            }
            // What is noted of the newest segment is there a moment later than the segment.
            if !with_power && world.random.one_in(3) {
                world.lose_newest()?;
            }
        }
        let mut server = world.start()?;
        world.disk.set_faults(Faults::default());
        assert!(world.rest(&mut server).is_ok(), "nothing fails any more");
        world.end_life(true);
        drop(server);
        world.start().map(drop)
    }
}

/// A rule is broken by an error or by an assertion.
fn violation(seed: u64, planted: Planted) -> Option<String> {
    match catch_unwind(AssertUnwindSafe(|| World::run(seed, planted))) {
        Ok(outcome) => outcome.err(),
        Err(panic) => Some(panic.downcast_ref::<String>().cloned().unwrap_or("an assertion".to_owned())),
    }
}

fn is_found(planted: Planted) -> bool {
    (0..200).any(|seed| violation(seed, planted).is_some())
}

#[test]
fn what_was_told_is_there_in_every_life() {
    for seed in seeds(2_000) {
        match catch_unwind(AssertUnwindSafe(|| World::run(seed, Planted::default()))) {
            Ok(outcome) => outcome.unwrap_or_else(|violation| panic!("seed {seed}: {violation}")),
            Err(panic) => {
                eprintln!("seed {seed}");
                resume_unwind(panic);
            }
        }
    }
}

#[test]
fn answers_that_leave_before_their_group_is_durable_are_found() {
    let writer = writer::Planted { release_before_commit: true, ..writer::Planted::default() };
    assert!(is_found(Planted { writer, ..Planted::default() }));
}

#[test]
fn a_lease_that_is_kept_alive_and_then_ends_by_what_it_had_left_before_is_found() {
    let writer = writer::Planted { keep_remaining: true, ..writer::Planted::default() };
    assert!(is_found(Planted { writer, ..Planted::default() }));
}

#[test]
fn a_log_that_tells_before_it_has_synced_is_found() {
    let log = log::Planted { ack_before_sync: true, ..log::Planted::default() };
    assert!(is_found(Planted { log, ..Planted::default() }));
}

#[test]
fn a_log_that_overlooks_a_failed_sync_is_found() {
    let log = log::Planted { ignore_sync_error: true, ..log::Planted::default() };
    assert!(is_found(Planted { log, ..Planted::default() }));
}

#[test]
fn a_record_saved_apart_from_its_rows_is_found() {
    let checkpoint = checkpoint::Planted { record_apart: true, ..checkpoint::Planted::default() };
    assert!(is_found(Planted { checkpoint, ..Planted::default() }));
}

#[test]
fn a_revision_that_goes_down_after_a_crash_in_a_compaction_is_found() {
    let checkpoint = checkpoint::Planted { revision_of_newest_row: true, ..checkpoint::Planted::default() };
    assert!(is_found(Planted { checkpoint, ..Planted::default() }));
}

#[test]
fn a_replay_that_takes_damage_for_the_end_is_found() {
    let replay = replay::Planted { damage_is_an_end: true };
    assert!(is_found(Planted { replay, ..Planted::default() }));
}

#[test]
fn a_log_that_is_given_up_before_the_checkpoint_has_it_is_found() {
    let mover = checkpoint_thread::Planted { frees_before_commit: true };
    assert!(is_found(Planted { mover, ..Planted::default() }));
}

#[test]
fn a_removal_in_front_of_its_compaction_is_found() {
    let writer = writer::Planted { remove_before_commit: true, ..writer::Planted::default() };
    assert!(is_found(Planted { writer, ..Planted::default() }));
}
