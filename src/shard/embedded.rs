//! The writer with its surroundings: the queues of all shards, the step that makes groups durable, and shared history.
//!
//! It lives on shard 0. What it does is deterministic, given the order in which requests stand in the queues and the
//! moments at which the log reports: so the simulator drives it as the loop does.

use crate::backend::{Command, Reply};
use crate::shard::durability::Durability;
use crate::shard::held_up::{self, HeldUp};
use crate::shard::history::Appender;
use crate::shard::mesh::{Port, Request, Response};
use crate::shard::space::RUNBOOK;
use crate::shard::writer::{Origin, Writer};
use crate::store::command::{Op, Read, Txn, Write};
use crate::types::{Alarm, AlarmKind, Batch, Change, Entry, Time, Uptime};
use crate::wal::LogFailure;
use crate::wal::log::BODY_BYTES_MAX;

pub struct Embedded {
    writer: Writer,
    durability: Box<dyn Durability>,
    appender: Appender,
    /// One port a shard, by its index.
    ports: Vec<Port>,
    /// The shards that have something new to look at since the last turn.
    told: Vec<bool>,
    /// Whose commands are taken first in the next turn.
    first_shard: usize,
    held_up: HeldUp,
    /// Commands of the last turn.
    commands_taken: usize,
    failure: Option<LogFailure>,
    defragmenting: Defragmenting,
    /// The clock of the leases. Each of their commands asks it: a turn may be long, and no lease may end early by that.
    uptime: fn() -> Uptime,
    /// Keys and values of all puts that were told, in bytes.
    put_bytes: u64,
}

/// Who waits for a defragmentation. One that comes while it runs is answered with the others.
#[derive(Default)]
struct Defragmenting {
    waiting: Vec<Origin>,
    is_running: bool,
}

impl Embedded {
    pub fn new(writer: Writer, durability: Box<dyn Durability>, appender: Appender, ports: Vec<Port>) -> Embedded {
        let (told, held_up) = (vec![false; ports.len()], HeldUp::new(ports.len()));
        let defragmenting = Defragmenting::default();
        let uptime = Uptime::default;
        Embedded {
            writer,
            durability,
            appender,
            ports,
            told,
            first_shard: 0,
            held_up,
            commands_taken: 0,
            failure: None,
            defragmenting,
            uptime,
            put_bytes: 0,
        }
    }

    /// Until then time stands still for leases: no client can keep one alive before the server listens. From here on each has
    /// its whole time.
    pub fn start_clock(&mut self, uptime: fn() -> Uptime) {
        self.uptime = uptime;
        self.writer.begin_leases(uptime());
    }

    /// A bounded turn: the log first, then commands, an even share for each shard so that one's flood leaves room for the
    /// others' (a transaction counts as its operations, a write by what it looked at as well), then a piece of the long work.
    /// True when there is more to do.
    pub fn turn(&mut self, time: Time, commands_max: usize) -> bool {
        self.told.fill(false);
        self.commands_taken = 0;
        self.release();
        self.writer.set_short_of_space(self.durability.is_short_of_space());
        // In this order: what ceases to be coming has come.
        let is_coming = self.durability.is_room_coming();
        let room = self.durability.room_bytes();
        self.writer.set_log_bytes_max(room);
        self.writer.set_room_coming(is_coming);
        // Where the alarm stands they are refused in any case.
        let has_alarm = || self.writer.store().has_alarm(AlarmKind::NoSpace);
        let holds_up = is_coming && room < held_up::SCARCE_BYTES && !has_alarm();
        let (share, shards) = (commands_max.div_ceil(self.ports.len()), self.ports.len());
        self.take_held_up(room, share, holds_up, time);
        let first = std::mem::take(&mut self.first_shard);
        'shards: for shard in (first..shards).chain(0..first) {
            let mut left = share;
            while left > 0 {
                if room - self.writer.log_bytes_max() >= GROUP_BYTES {
                    // The others had to stand back, and begin the next one.
                    self.first_shard = if left == share { shard } else { (shard + 1) % shards };
                    break 'shards;
                }
                let Some(Request { token, command }) = self.receive(shard) else { break };
                left = left.saturating_sub(weight(&command));
                self.commands_taken += 1;
                let origin = Origin { shard: shard as u16, token };
                let command = if holds_up || !self.held_up.is_empty() {
                    self.held_up.take(origin, command, self.writer.log_bytes_max(), (self.uptime)())
                } else {
                    Some(command)
                };
                if let Some(command) = command {
                    self.command(origin, command, time);
                    // What no request says of itself: a delete may have gone through a million tombstones.
                    left = left.saturating_sub(self.writer.take_visits() / VISITS_PER_COMMAND);
                }
            }
        }
        let more_expired = self.expire(time);
        let more = self.settle();
        let is_held_up = !self.held_up.is_empty();
        self.durability.set_held_up(holds_up && is_held_up);
        let more_held_up = is_held_up && !holds_up;
        more || more_expired || more_held_up || self.ports.iter().any(Port::has_request)
    }

    /// Writes that came while room was scarce go first once it is not, or is not coming any more; and those that have waited
    /// for too long in any case.
    fn take_held_up(&mut self, room: usize, share: usize, holds_up: bool, time: Time) {
        if self.held_up.is_empty() {
            return;
        }
        let now = holds_up.then(self.uptime);
        let mut left = share;
        while left > 0 && room - self.writer.log_bytes_max() < GROUP_BYTES {
            let Some((origin, command)) = self.held_up.next(now) else { break };
            left = left.saturating_sub(weight(&command));
            self.command(origin, command, time);
            left = left.saturating_sub(self.writer.take_visits() / VISITS_PER_COMMAND);
        }
    }

    /// What reads, lists and writes that are held up keep beside the store.
    pub fn scratch_bytes(&self) -> usize {
        self.writer.scratch_bytes() + self.held_up.bytes()
    }

    /// A piece of the revocation of what has expired. True when there is more.
    pub fn expire(&mut self, time: Time) -> bool {
        self.writer.next_expiry().is_some() && {
            self.writer.set_uptime((self.uptime)());
            self.writer.expire(time)
        }
    }

    /// The next request of a shard.
    pub fn receive(&mut self, shard: usize) -> Option<Request> {
        self.ports[shard].receive()
    }

    pub fn command(&mut self, origin: Origin, command: Command, time: Time) {
        match command {
            Command::Defragment => self.defragmenting.waiting.push(origin),
            command @ Command::Lease(_) => {
                self.writer.set_uptime((self.uptime)());
                self.writer.command(origin, command, time);
            }
            command => self.writer.command(origin, command, time),
        }
    }

    /// Seals what came, releases what is durable, does a piece of the long work, and sends the replies that may leave.
    pub fn settle(&mut self) -> bool {
        if let Some((position, entries)) = self.writer.seal() {
            self.durability.append(position, entries);
        }
        self.release();
        let more = self.writer.step();
        let removed = self.writer.take_removed();
        if !removed.is_empty() {
            self.durability.removed(removed);
        }
        self.defragment();
        while let Some((origin, reply)) = self.writer.next_reply() {
            self.reply(origin, reply);
        }
        more
    }

    fn reply(&mut self, origin: Origin, reply: Reply) {
        let shard = usize::from(origin.shard);
        self.ports[shard].reply(Response { token: origin.token, reply });
        self.told[shard] = true;
    }

    /// Begins with a defragmentation that is asked for once there is nothing left to remove, and answers when it is done.
    fn defragment(&mut self) {
        if !self.defragmenting.is_running && !self.defragmenting.waiting.is_empty() && !self.writer.is_removing() {
            self.defragmenting.is_running = true;
            self.durability.defragment();
        }
        if let Some(result) = self.durability.defragmented() {
            self.defragmenting.is_running = false;
            for origin in std::mem::take(&mut self.defragmenting.waiting) {
                self.reply(origin, Reply::Defragmented(result.clone()));
            }
        }
    }

    /// A defragmentation is under way on another thread. Its end wakes this one, unless it was without space.
    pub fn is_defragmenting(&self) -> bool {
        self.defragmenting.is_running
    }

    /// Publishes what became durable. Replies leave only behind it.
    fn release(&mut self) {
        while let Some(completed) = self.durability.completed() {
            match completed {
                Ok(position) => {
                    if let Some(release) = self.writer.durable(position) {
                        release.alarms.iter().for_each(|(alarm, active)| self.log_alarm(*alarm, *active));
                        self.put_bytes += release.batches.iter().map(|batch| put_bytes(batch)).sum::<u64>();
                        self.appender.publish(release.batches.into_iter(), release.revision, release.compacted);
                        self.told.fill(true);
                    }
                }
                Err(failure) => {
                    self.writer.refuse();
                    self.failure = Some(failure);
                    return;
                }
            }
        }
    }

    /// How many commands the last turn took.
    pub fn commands_taken(&self) -> usize {
        self.commands_taken
    }

    /// An operator looks here for the reason when writes are refused.
    fn log_alarm(&mut self, Alarm { member, kind }: Alarm, active: bool) {
        if !active {
            return tracing::info!(member, alarm = ?kind, "alarm disarmed");
        }
        let raised_for = match kind {
            AlarmKind::NoSpace => self.writer.take_raised_for(&self.durability.disks()),
            AlarmKind::Corrupt => None,
        };
        match raised_for {
            Some(reason) => tracing::warn!(member, alarm = ?kind, reason, runbook = RUNBOOK, "alarm raised"),
            None => tracing::warn!(member, alarm = ?kind, reason = "a call has raised it", "alarm raised"),
        }
    }

    /// At a start: which alarms stand, and how it looks now. Nobody knows any more why they were raised.
    pub fn log_standing_alarms(&mut self) {
        self.writer.set_short_of_space(self.durability.is_short_of_space());
        for Alarm { member, kind } in self.writer.store().alarms() {
            match kind {
                AlarmKind::NoSpace => {
                    let now = self.writer.explain_space(&self.durability.disks());
                    tracing::warn!(member, alarm = ?kind, now, runbook = RUNBOOK, "an alarm stands and refuses writes");
                }
                AlarmKind::Corrupt => tracing::warn!(member, alarm = ?kind, "an alarm stands and refuses writes"),
            }
        }
    }

    pub fn put_bytes(&self) -> u64 {
        self.put_bytes
    }

    /// Why the log takes nothing any more, told once.
    pub fn take_failure(&mut self) -> Option<LogFailure> {
        self.failure.take()
    }

    /// Puts the mark of an orderly end into the log.
    pub fn stop(&mut self) {
        self.held_up.clear();
        if !self.writer.is_refusing() {
            self.writer.note(Entry::Stop);
            self.settle();
        }
    }

    /// Everything that was ever applied is durable, or never will be.
    pub fn is_settled(&self) -> bool {
        !self.writer.has_unreleased()
    }

    /// Whether the last turn left this shard something to look at.
    pub fn has_told(&self, shard: usize) -> bool {
        self.told[shard]
    }

    /// See [`Writer::set_memory_room`].
    pub fn set_memory_room(&mut self, room: usize) {
        self.writer.set_memory_room(room);
        self.durability.set_short_of_memory(room == 0);
    }

    pub fn writer(&self) -> &Writer {
        &self.writer
    }
}

fn put_bytes(batch: &Batch) -> u64 {
    let puts = batch.changes.iter().map(|change| match change {
        Change::Put { kv, .. } => kv.key().len() + kv.value().len(),
        Change::Delete { .. } => 0,
    });
    puts.sum::<usize>() as u64
}

/// A turn takes no further command when its group has so much for the log: a group that is longer than a frame is durable later,
/// and the checkpoint can take nothing of it before. Groups that wait share frames.
const GROUP_BYTES: usize = BODY_BYTES_MAX / 2;
/// Keys that a write looks at in the time of a plain command.
const VISITS_PER_COMMAND: usize = 100;

/// How many operations a transaction may come to, those of the nested ones included.
fn operations(txn: &Txn) -> usize {
    let of_branch = |ops: &[Op]| -> usize {
        let nested = |op: &Op| if let Op::Txn(inner) = op { operations(inner) } else { 0 };
        ops.iter().map(|op| 1 + nested(op)).sum()
    };
    txn.compares.len() + of_branch(&txn.success).max(of_branch(&txn.failure))
}

/// How many plain commands the work of this one is worth.
fn weight(command: &Command) -> usize {
    match command {
        Command::Write(Write::Txn(txn)) | Command::Read(Read::Txn(txn)) => operations(txn).max(1),
        Command::Write(_)
        | Command::CompactPhysical(_)
        | Command::Read(_)
        | Command::History { .. }
        | Command::Lease(_)
        | Command::Alarms(_)
        | Command::Status
        | Command::Defragment => 1,
    }
}

#[cfg(test)]
mod tests {
    use std::cell::RefCell;
    use std::rc::Rc;

    use super::*;
    use crate::backend::LeaseCommand;
    use crate::shard::mesh::{self, Link};
    use crate::shard::writer::Pace;
    use crate::store::Store;
    use crate::store::command::{DeleteRange, Error, Put, PutLease, PutValue};
    use crate::types::{ChangeId, KeyRange, LeaseId, Position, Revision};

    /// What the test and the disk it plays tell each other.
    #[derive(Default)]
    struct Disk {
        appended: Option<Position>,
        /// What the log has room for, and whether more is coming.
        room: Option<(usize, bool)>,
        is_held_up: bool,
        is_short: bool,
        defragmentations: usize,
        end: Option<Result<(), String>>,
    }

    struct Played(Rc<RefCell<Disk>>);

    impl Durability for Played {
        fn append(&mut self, position: Position, _entries: &[Entry]) {
            self.0.borrow_mut().appended = Some(position);
        }

        fn completed(&mut self) -> Option<Result<Position, LogFailure>> {
            self.0.borrow_mut().appended.take().map(Ok)
        }

        fn removed(&mut self, _changes: Vec<ChangeId>) {}

        fn room_bytes(&self) -> usize {
            self.0.borrow().room.map_or(usize::MAX, |(bytes, _)| bytes)
        }

        fn is_room_coming(&self) -> bool {
            self.0.borrow().room.is_some_and(|(_, is_coming)| is_coming)
        }

        fn set_held_up(&mut self, is_held_up: bool) {
            self.0.borrow_mut().is_held_up = is_held_up;
        }

        fn disks(&self) -> String {
            "5 bytes are free in /data".to_owned()
        }

        fn is_short_of_space(&self) -> bool {
            self.0.borrow().is_short
        }

        fn set_short_of_memory(&mut self, _is_short: bool) {}

        fn defragment(&mut self) {
            self.0.borrow_mut().defragmentations += 1;
        }

        fn defragmented(&mut self) -> Option<Result<(), String>> {
            self.0.borrow_mut().end.take()
        }
    }

    fn stage() -> (Embedded, Link, Rc<RefCell<Disk>>) {
        let disk = Rc::<RefCell<Disk>>::default();
        let (link, port) = mesh::pair();
        // A removal of one change a turn, so that it takes several.
        let pace = Pace { compact_visits: 1, ..Pace::default() };
        let writer = Writer::new(Store::new(), pace, Position(1));
        let appender = Appender::new(Revision::FIRST, None);
        (Embedded::new(writer, Box::new(Played(disk.clone())), appender, vec![port]), link, disk)
    }

    fn put() -> Command {
        let (value, lease) = (PutValue::Set("v".into()), PutLease::Set(LeaseId::NONE));
        Command::Write(Write::Put(Put { key: "a".into(), value, lease, prev_kv: false }))
    }

    fn large() -> Command {
        let (value, lease) = (PutValue::Set(vec![0; 1 << 20].into()), PutLease::Set(LeaseId::NONE));
        Command::Write(Write::Put(Put { key: "b".into(), value, lease, prev_kv: false }))
    }

    fn send(link: &mut Link, token: u32, command: Command) {
        link.send(Request { token, command });
    }

    #[test]
    fn writes_wait_for_room_that_is_coming_in_their_order_and_reads_pass_them() {
        let (mut embedded, mut link, disk) = stage();
        let told = |link: &mut Link| std::iter::from_fn(|| link.receive()).map(|one| one.token).collect::<Vec<_>>();
        let room = |room| disk.borrow_mut().room = room;
        room(Some((held_up::SCARCE_BYTES - 1, true)));
        send(&mut link, 1, large());
        send(&mut link, 2, Command::Lease(LeaseCommand::Revoke(LeaseId(7))));
        send(&mut link, 3, Command::Status);
        send(&mut link, 9, put());
        assert!(!embedded.turn(Time(1), 10), "nothing can be done before there is room");
        assert!(disk.borrow().is_held_up);
        embedded.turn(Time(1), 10);
        assert_eq!(told(&mut link), [3, 9], "many as small would find room");
        room(Some((held_up::SCARCE_BYTES, true)));
        send(&mut link, 4, put());
        while embedded.turn(Time(1), 10) {}
        embedded.turn(Time(1), 10);
        assert_eq!((told(&mut link), disk.borrow().is_held_up), (vec![1, 2, 4], false));
        assert_eq!(embedded.writer().store().revision(), Revision(4));
        // And where none is coming after all, they hear so.
        room(Some((10, true)));
        send(&mut link, 5, put());
        assert!(!embedded.turn(Time(1), 10) && told(&mut link).is_empty() && embedded.scratch_bytes() > 0);
        room(Some((10, false)));
        while embedded.turn(Time(1), 10) {}
        embedded.turn(Time(1), 10);
        assert_eq!((told(&mut link), embedded.writer().store().alarms().count()), (vec![5], 1));
    }

    #[test]
    fn a_defragmentation_begins_behind_the_removal_and_answers_all_who_wait() {
        let (mut embedded, mut link, disk) = stage();
        for token in 1..=5 {
            send(&mut link, token, put());
        }
        while embedded.turn(Time(1), 10) {}
        send(&mut link, 6, Command::Write(Write::Compact(Revision(6))));
        send(&mut link, 7, Command::Defragment);
        assert!(embedded.turn(Time(1), 10), "there is more to remove");
        assert_eq!(disk.borrow().defragmentations, 0);
        while embedded.turn(Time(1), 10) {}
        embedded.turn(Time(1), 10);
        send(&mut link, 8, Command::Defragment);
        embedded.turn(Time(1), 10);
        assert_eq!(disk.borrow().defragmentations, 1);
        while link.receive().is_some_and(|response| response.token != 6) {}
        assert!(link.receive().is_none(), "nobody is answered before it is done");
        disk.borrow_mut().end = Some(Err("no room for a copy".to_owned()));
        embedded.turn(Time(1), 10);
        for token in [7, 8] {
            let response = link.receive().expect("an answer");
            assert_eq!(response.token, token);
            assert!(matches!(response.reply, Reply::Defragmented(Err(reason)) if reason.contains("room")));
        }
        send(&mut link, 9, Command::Defragment);
        embedded.turn(Time(1), 10);
        assert_eq!(disk.borrow().defragmentations, 2, "the next one is one of its own");
    }

    #[test]
    fn a_turn_takes_no_more_than_a_group_may_have_and_the_next_one_begins_with_the_others() {
        let disk = Rc::<RefCell<Disk>>::default();
        let ((mut one, port), (mut other, other_port)) = (mesh::pair(), mesh::pair());
        let writer = Writer::new(Store::new(), Pace::default(), Position(1));
        let appender = Appender::new(Revision::FIRST, None);
        let mut embedded = Embedded::new(writer, Box::new(Played(disk)), appender, vec![port, other_port]);
        let large = || {
            let Command::Write(Write::Put(put)) = put() else { unreachable!("it makes puts") };
            Command::Write(Write::Put(Put { value: PutValue::Set(vec![b'v'; 300_000].into()), ..put }))
        };
        for token in 1..=4 {
            send(&mut one, token, large());
            send(&mut other, token, large());
        }
        let taken = |embedded: &mut Embedded| {
            assert!(embedded.turn(Time(1), 512) || !embedded.ports.iter().any(Port::has_request));
            embedded.commands_taken()
        };
        assert_eq!((taken(&mut embedded), embedded.first_shard), (2, 1));
        assert_eq!((taken(&mut embedded), embedded.first_shard), (2, 0));
        assert_eq!((taken(&mut embedded), taken(&mut embedded), taken(&mut embedded)), (2, 2, 0));
    }

    #[test]
    fn a_transaction_weighs_what_the_nested_ones_hold() {
        let txn = |success| Txn { compares: Vec::new(), success, failure: Vec::new() };
        let delete = || Op::DeleteRange(DeleteRange { range: KeyRange::One("a".into()), prev_kv: false });
        let inner = txn(vec![delete(), delete(), delete()]);
        let outer = txn(vec![delete(), Op::Txn(inner)]);
        assert_eq!(weight(&Command::Write(Write::Txn(outer))), 5);
        assert_eq!(weight(&Command::Write(Write::Txn(txn(Vec::new())))), 1);
    }

    #[test]
    fn a_delete_that_goes_through_many_tombstones_leaves_the_others_their_turn() {
        let (mut embedded, mut link, _) = stage();
        let put = |number: usize| {
            let Command::Write(Write::Put(put)) = put() else { unreachable!("it makes puts") };
            Op::Put(Put { key: format!("{number:04}").into(), ..put })
        };
        let txn = Txn { compares: Vec::new(), success: (0..1_000).map(put).collect(), failure: Vec::new() };
        send(&mut link, 1, Command::Write(Write::Txn(txn)));
        let delete = || {
            let range = KeyRange::From("0".into());
            Command::Write(Write::DeleteRange(DeleteRange { range, prev_kv: false }))
        };
        send(&mut link, 2, delete());
        while embedded.turn(Time(1), 20) {}
        while link.receive().is_some() {}
        for token in 3..=12 {
            send(&mut link, token, delete());
        }
        embedded.turn(Time(1), 20);
        assert_eq!(embedded.commands_taken(), 2, "each is worth eleven");
    }

    #[test]
    fn a_disk_that_runs_out_of_room_is_heard_before_the_next_put() {
        let (mut embedded, mut link, disk) = stage();
        disk.borrow_mut().is_short = true;
        send(&mut link, 1, put());
        while embedded.turn(Time(1), 10) {}
        let refused = link.receive().map(|response| response.reply);
        assert!(matches!(refused, Some(Reply::Answer(Err(Error::NoSpace)))), "{refused:?}");
    }
}
