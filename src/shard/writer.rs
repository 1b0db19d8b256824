//! The embedded backend: orders commands, applies them, and releases what is durable.
//!
//! The rules, which are pure so that the simulator can run them with a log that is late:
//!
//! - Commands are applied in the order of their arrival, into one open *group*. Sealing the group hands what it changed to
//!   the log; the next group gathers meanwhile.
//! - When the log says that a position is durable, every group up to it is released: first its batches, then the committed
//!   revision, then its replies. Nothing of a group is told before.
//! - A reply that only looked at applied state (a failed compare, a delete of nothing, an error) leaves with the youngest
//!   group under way: what it looked at may not be durable yet. A group that changed nothing is no group, and costs the log
//!   no write.
//! - A read runs at the committed revision of the moment it starts, in bounded turns, and owes the log nothing. Only when it
//!   fails it may have seen a compaction that is not durable, so its error leaves with the groups under way.
//! - What a compaction removes waits until the compaction is durable, and for the running reads that still need it. The
//!   checkpoint forgets what was removed, and must never forget more than the log says.
//! - When the disk refuses the log, what was applied and not told is never told: its callers hear of the refusal, further
//!   writes are refused before they are applied, and reads go on at the committed revision.

use std::collections::{BTreeSet, VecDeque};
use std::sync::Arc;

use crate::backend::{AlarmFilter, BackendStatus, Command, HistoryError, Reply};
use crate::shard::mesh::Token;
use crate::store::command::{Answer, Error, Read, Write};
use crate::store::quota::{self, Quota};
use crate::store::{Applied, CompactProgress, ReadJob, Store};
use crate::types::{Alarm, AlarmKind, Batch, ChangeId, Entry, Position, Revision, Time};

/// How much of the long work is done at a time. The simulator takes small steps, so that everything interleaves.
#[derive(Clone, Copy, Debug)]
pub struct Pace {
    /// Rows a read visits before the next one has its turn: some 100 us of work.
    pub read_rows: usize,
    /// Versions a compaction visits in a turn: some 100 us of work.
    pub compact_visits: usize,
    /// What one answer about history may carry. Late watchers ask again.
    pub history_batches: usize,
    pub history_bytes: usize,
}

impl Default for Pace {
    fn default() -> Pace {
        Pace { read_rows: 1_000, compact_visits: 500, history_batches: 1_000, history_bytes: 1 << 20 }
    }
}

/// Which request of which shard a reply belongs to.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Origin {
    pub shard: u16,
    pub token: Token,
}

/// What the commands of one turn did, and the replies that wait for it.
struct Group {
    position: Position,
    entries: Vec<Entry>,
    /// The revision and the compaction that may be told once this group is durable.
    revision: Revision,
    compacted: Option<Revision>,
    replies: Vec<Waiting>,
    /// Reads that came while a compaction above the committed revision was under way. They run when it may be told.
    reads: Vec<(Origin, Command)>,
}

impl Group {
    fn new(position: Position, revision: Revision, compacted: Option<Revision>) -> Group {
        Group { position, entries: Vec::new(), revision, compacted, replies: Vec::new(), reads: Vec::new() }
    }
}

struct Waiting {
    origin: Origin,
    reply: Reply,
    /// `physical` of a compaction: the reply waits until the removal is done as well.
    after_removal: bool,
}

/// What became durable and is to be published before any reply leaves.
#[derive(Default, Debug)]
pub struct Release {
    pub batches: Vec<Arc<Batch>>,
    pub revision: Revision,
    pub compacted: Option<Revision>,
    /// Alarms that were raised (true) or taken back, in their order.
    pub alarms: Vec<(Alarm, bool)>,
}

/// What a write that may put is held to beside the alarms.
struct Space {
    quota: Quota,
    /// Whose alarm it is.
    member: u64,
    /// The disk has no room for the log to grow into.
    is_short: bool,
}

struct RunningRead {
    origin: Origin,
    job: ReadJob,
}

pub struct Writer {
    store: Store,
    pace: Pace,
    open: Group,
    sealed: VecDeque<Group>,
    committed: Revision,
    /// The compaction that may be told; what it forgot may be removed.
    compacted: Option<Revision>,
    /// The alarms that may be told.
    alarms: BTreeSet<Alarm>,
    space: Space,
    /// The disk has refused the log.
    refusing: bool,
    reads: VecDeque<RunningRead>,
    removing: bool,
    waiting_for_removal: Vec<Waiting>,
    outbox: VecDeque<(Origin, Reply)>,
    #[cfg(test)]
    pub(crate) planted: Planted,
}

/// Bugs that the simulator must find.
#[cfg(test)]
#[derive(Clone, Copy, Default)]
pub(crate) struct Planted {
    /// Replies leave when they are applied, before the committed revision covers them.
    pub release_before_commit: bool,
}

impl Writer {
    /// A writer over a store whose every revision is durable; its first group will stand at `next` in the log.
    pub fn new(store: Store, pace: Pace, next: Position) -> Writer {
        let (revision, compacted) = (store.revision(), store.compacted());
        Writer {
            pace,
            open: Group::new(next, revision, compacted),
            sealed: VecDeque::new(),
            committed: revision,
            compacted,
            alarms: store.alarms().collect(),
            space: Space { quota: Quota::default(), member: 0, is_short: false },
            refusing: false,
            reads: VecDeque::new(),
            // A restart may have come before the last compaction's removal was done.
            removing: !store.is_compact(),
            store,
            waiting_for_removal: Vec::new(),
            outbox: VecDeque::new(),
            #[cfg(test)]
            planted: Planted::default(),
        }
    }

    /// Holds the store to a quota; the alarm that says it is reached names this member.
    pub fn with_quota(mut self, quota: Quota, member: u64) -> Writer {
        self.space = Space { quota, member, is_short: false };
        self
    }

    /// Whether the disk has no room for the log to grow into. A write that may put then raises the alarm for space, so
    /// that what is set aside is left to deletes and compactions.
    pub fn set_short_of_space(&mut self, is_short: bool) {
        self.space.is_short = is_short;
    }

    pub fn store(&self) -> &Store {
        &self.store
    }

    /// Takes one command of a shard. Its reply comes out of [`Writer::next_reply`] when it may be told.
    pub fn command(&mut self, origin: Origin, command: Command, time: Time) {
        match command {
            Command::Write(write) => self.write(origin, &write, time, false),
            Command::CompactPhysical(revision) => self.write(origin, &Write::Compact(revision), time, true),
            Command::Alarms(filter) => {
                let reply = self.list_alarms(filter);
                self.outbox.push_back((origin, reply));
            }
            Command::Status => {
                let reply = Reply::Status(self.status());
                self.outbox.push_back((origin, reply));
            }
            Command::Defragment => unreachable!("whoever keeps the disk answers it"),
            command if self.store.compacted() > Some(self.committed) && !self.refusing => {
                self.unreleased().reads.push((origin, command));
            }
            Command::Read(read) => self.read(origin, &read),
            Command::History { from } => {
                let batches =
                    self.store.history(from, self.committed, self.pace.history_batches, self.pace.history_bytes);
                let reply = batches.map_err(|refused| HistoryError::Compacted(refused.compacted));
                let is_refused = reply.is_err();
                self.reply_to_reader(origin, Reply::History(reply), is_refused);
            }
        }
    }

    fn write(&mut self, origin: Origin, write: &Write, time: Time, after_removal: bool) {
        if self.refusing {
            return self.outbox.push_back((origin, Reply::Answer(Err(Error::LogRefused))));
        }
        let applied = self.apply(write, time);
        self.open.entries.extend(applied.entry);
        (self.open.revision, self.open.compacted) = (self.store.revision(), self.store.compacted());
        let reply = Reply::Answer(applied.answer);
        #[cfg(test)]
        if self.planted.release_before_commit {
            return self.outbox.push_back((origin, reply));
        }
        self.open.replies.push(Waiting { origin, reply, after_removal });
    }

    /// Applies a write, or raises the alarm for space in its place. etcd asks for the space before anything else, so the
    /// refusal does not depend on which alarms are active already.
    fn apply(&mut self, write: &Write, time: Time) -> Applied {
        let cost_bytes = quota::cost_bytes(write);
        let used_bytes = self.store.bytes().total() as u64;
        let has_space = self.space.quota.admits(used_bytes, cost_bytes) && (cost_bytes == 0 || !self.space.is_short);
        if has_space {
            return self.store.apply(write, time);
        }
        let alarm = Alarm { member: self.space.member, kind: AlarmKind::NoSpace };
        let raised = self.store.apply(&Write::Alarm { alarm, active: true }, time);
        Applied { answer: Err(Error::NoSpace), entry: raised.entry }
    }

    /// What is asked about alarms and state is answered at once, at what may be told.
    fn list_alarms(&self, filter: AlarmFilter) -> Reply {
        let alarms = self.alarms.iter().copied().filter(|alarm| filter.lists(*alarm));
        Reply::Alarms { revision: self.committed, alarms: alarms.collect() }
    }

    fn status(&self) -> BackendStatus {
        // Nothing is kept that is not in use: memory that is freed has been given back. An empty store has a size too.
        let bytes = self.store.bytes().total().max(1) as u64;
        BackendStatus {
            revision: self.committed,
            size_bytes: bytes,
            used_bytes: bytes,
            quota_bytes: self.space.quota.bytes,
            position: self.sealed.front().unwrap_or(&self.open).position.0 - 1,
            alarms: self.alarms.iter().copied().collect(),
            is_refusing_writes: self.refusing,
        }
    }

    fn read(&mut self, origin: Origin, read: &Read) {
        match self.store.read(read, self.committed) {
            Ok(mut job) => match self.store.step(&mut job, self.pace.read_rows) {
                Some(result) => self.finish_read(origin, result),
                None => self.reads.push_back(RunningRead { origin, job }),
            },
            Err(error) => self.finish_read(origin, Err(error)),
        }
    }

    fn finish_read(&mut self, origin: Origin, result: Result<Answer, Error>) {
        let is_refused = result.is_err();
        self.reply_to_reader(origin, Reply::Answer(result), is_refused);
    }

    /// What was read at the committed revision may leave at once. A refusal may have seen a compaction that is not durable.
    fn reply_to_reader(&mut self, origin: Origin, reply: Reply, is_refused: bool) {
        let all_told = self.open.replies.is_empty() && self.sealed.is_empty();
        if all_told || !is_refused {
            return self.outbox.push_back((origin, reply));
        }
        self.unreleased().replies.push(Waiting { origin, reply, after_removal: false });
    }

    /// The youngest group that is not durable yet.
    fn unreleased(&mut self) -> &mut Group {
        if self.open.entries.is_empty() { self.sealed.back_mut().unwrap_or(&mut self.open) } else { &mut self.open }
    }

    /// Closes the open group and names its place in the log, with what has to become durable. `None` when nothing was
    /// changed since the last one; replies that only looked then wait for that one.
    pub fn seal(&mut self) -> Option<(Position, &[Entry])> {
        if self.open.entries.is_empty() {
            let replies = std::mem::take(&mut self.open.replies);
            match self.sealed.back_mut() {
                Some(group) => group.replies.extend(replies),
                None => self.tell(replies),
            }
            return None;
        }
        let (position, revision, compacted) = (self.open.position, self.open.revision, self.open.compacted);
        let open = Group::new(position.next(), revision, compacted);
        self.sealed.push_back(std::mem::replace(&mut self.open, open));
        self.sealed.back().map(|group| (position, &group.entries[..]))
    }

    /// Puts a mark into the log that no command asked for.
    pub fn note(&mut self, entry: Entry) {
        self.open.entries.push(entry);
    }

    /// Replies that may leave, unless they wait for a removal.
    fn tell(&mut self, replies: Vec<Waiting>) {
        for waiting in replies {
            if waiting.after_removal && self.removing {
                self.waiting_for_removal.push(waiting);
            } else {
                self.outbox.push_back((waiting.origin, waiting.reply));
            }
        }
    }

    /// The log is durable up to this position. The caller publishes the release before it takes the replies.
    pub fn durable(&mut self, position: Position) -> Option<Release> {
        let mut release: Option<Release> = None;
        while self.sealed.front().is_some_and(|group| group.position <= position)
            && let Some(group) = self.sealed.pop_front()
        {
            let Group { entries, revision, compacted, replies, reads, .. } = group;
            let told = release.get_or_insert_with(Release::default);
            (told.revision, told.compacted) = (revision, compacted);
            for entry in entries {
                match entry {
                    Entry::Batch(batch) => told.batches.push(batch),
                    Entry::Alarm { alarm, active } => {
                        told.alarms.push((alarm, active));
                        if active {
                            self.alarms.insert(alarm)
                        } else {
                            self.alarms.remove(&alarm)
                        };
                    }
                    Entry::Compaction(_) | Entry::Start { .. } | Entry::Stop => {}
                }
            }
            self.committed = revision;
            if compacted != self.compacted {
                self.compacted = compacted;
                self.removing = true;
            }
            self.tell(replies);
            for (origin, command) in reads {
                self.command(origin, command, Time::default());
            }
        }
        release
    }

    /// The disk has refused the log: nothing that is not durable by now ever will be.
    pub fn refuse(&mut self) {
        self.refusing = true;
        let next = Group::new(self.open.position, self.committed, self.compacted);
        let open = std::mem::replace(&mut self.open, next);
        for Group { replies, reads, .. } in std::mem::take(&mut self.sealed).into_iter().chain([open]) {
            let refused = Reply::Answer(Err(Error::LogRefused));
            self.outbox.extend(replies.into_iter().map(|waiting| (waiting.origin, refused.clone())));
            for (origin, command) in reads {
                self.command(origin, command, Time::default());
            }
        }
    }

    pub fn is_refusing(&self) -> bool {
        self.refusing
    }

    /// Something is applied that is not durable yet.
    pub fn has_unreleased(&self) -> bool {
        !self.open.entries.is_empty() || !self.sealed.is_empty()
    }

    /// A bounded piece of the long work: one turn of one read, and one of the removal. True when there is more.
    pub fn step(&mut self) -> bool {
        if let Some(mut read) = self.reads.pop_front() {
            match self.store.step(&mut read.job, self.pace.read_rows) {
                Some(result) => self.finish_read(read.origin, result),
                None => self.reads.push_back(read),
            }
        }
        self.remove() || !self.reads.is_empty()
    }

    /// A bounded piece of the removal behind a compaction. What running reads or the committed revision still need waits
    /// for the turn in which they have gone on.
    fn remove(&mut self) -> bool {
        if !self.removing {
            return false;
        }
        let oldest = self.reads.iter().map(|read| read.job.oldest()).min();
        // The next read will begin at the committed revision.
        let pinned = oldest.map_or(self.committed, |oldest| oldest.min(self.committed));
        let pinned = pinned.min(self.compacted.unwrap_or(Revision::ZERO));
        let progress = self.store.compact_step(self.pace.compact_visits, Some(pinned));
        if self.store.is_compact() {
            self.end_removal();
        }
        progress == CompactProgress::More
    }

    /// What a compaction that may be told has forgotten is not all gone yet.
    pub fn is_removing(&self) -> bool {
        self.removing
    }

    fn end_removal(&mut self) {
        self.removing = false;
        for waiting in self.waiting_for_removal.drain(..) {
            self.outbox.push_back((waiting.origin, waiting.reply));
        }
    }

    /// The changes that left with the removal since the last call.
    pub fn take_removed(&mut self) -> Vec<ChangeId> {
        self.store.take_removed()
    }

    pub fn next_reply(&mut self) -> Option<(Origin, Reply)> {
        self.outbox.pop_front()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::store::command::{DeleteRange, Outcome, Put, PutLease, PutValue};
    use crate::types::{KeyRange, LeaseId};

    fn put(key: &'static str) -> Command {
        let (value, lease) = (PutValue::Set("v".into()), PutLease::Set(LeaseId::NONE));
        Command::Write(Write::Put(Put { key: key.into(), value, lease, prev_kv: false }))
    }

    fn compact(revision: i64) -> Command {
        Command::Write(Write::Compact(Revision(revision)))
    }

    fn history(from: i64) -> Command {
        Command::History { from: Revision(from) }
    }

    fn origin(token: u32) -> Origin {
        Origin { shard: 0, token }
    }

    fn tokens(writer: &mut Writer) -> Vec<u32> {
        std::iter::from_fn(|| writer.next_reply()).map(|(origin, _)| origin.token).collect()
    }

    #[test]
    fn a_reply_waits_for_its_group_and_a_batch_is_told_first() {
        let mut writer = Writer::new(Store::new(), Pace::default(), Position(1));
        writer.command(origin(1), put("a"), Time(1));
        let (first, batches) = writer.seal().map(|(position, batches)| (position, batches.len())).expect("a group");
        assert_eq!(batches, 1);
        writer.command(origin(2), put("b"), Time(1));
        let (second, _) = writer.seal().expect("another group");
        assert_eq!(tokens(&mut writer), Vec::<u32>::new(), "nothing is told before it is durable");
        let release = writer.durable(first).expect("the first group");
        assert_eq!((release.revision, release.batches.len()), (Revision(2), 1));
        assert_eq!(tokens(&mut writer), [1]);
        assert_eq!(writer.durable(second).map(|release| release.revision), Some(Revision(3)));
        assert_eq!(tokens(&mut writer), [2]);
        assert!(writer.durable(second).is_none() && writer.seal().is_none());
    }

    #[test]
    fn a_refusal_leaves_with_the_group_it_depends_on() {
        let mut writer = Writer::new(Store::new(), Pace::default(), Position(1));
        writer.command(origin(1), put("a"), Time(1));
        writer.command(origin(2), compact(2), Time(1));
        writer.command(origin(3), compact(2), Time(1));
        let (position, _) = writer.seal().expect("a group");
        assert_eq!(tokens(&mut writer), Vec::<u32>::new());
        let release = writer.durable(position).expect("the group");
        assert_eq!((release.revision, release.compacted), (Revision(2), Some(Revision(2))));
        let replies: Vec<_> = std::iter::from_fn(|| writer.next_reply()).map(|(_, reply)| reply).collect();
        assert!(matches!(&replies[1], Reply::Answer(Ok(Answer { result: Outcome::Compact, .. }))));
        assert!(matches!(&replies[2], Reply::Answer(Err(Error::Compacted { .. }))));
    }

    #[test]
    fn a_read_beside_a_compaction_that_is_not_durable_waits_for_it() {
        let mut writer = Writer::new(Store::new(), Pace::default(), Position(1));
        writer.command(origin(1), put("a"), Time(1));
        writer.command(origin(2), compact(2), Time(1));
        writer.command(origin(3), history(2), Time(1));
        let (position, _) = writer.seal().expect("a group");
        assert_eq!(tokens(&mut writer), Vec::<u32>::new(), "at the committed revision 1 it would be refused wrongly");
        writer.durable(position);
        assert_eq!(tokens(&mut writer), [1, 2, 3]);
    }

    #[test]
    fn history_ends_at_the_committed_revision() {
        let mut writer = Writer::new(Store::new(), Pace::default(), Position(1));
        writer.command(origin(1), put("a"), Time(1));
        let (position, _) = writer.seal().expect("a group");
        writer.durable(position);
        writer.command(origin(2), put("a"), Time(1));
        assert_eq!(tokens(&mut writer), [1]);
        writer.command(origin(3), history(2), Time(1));
        let (_, reply) = writer.next_reply().expect("history owes the log nothing");
        let Reply::History(Ok(batches)) = reply else { panic!("history was asked") };
        assert_eq!(batches.iter().map(|batch| batch.revision).collect::<Vec<_>>(), [Revision(2)]);
    }
    #[test]
    fn what_only_looked_costs_the_log_nothing_and_leaves_with_what_it_saw() {
        let mut writer = Writer::new(Store::new(), Pace::default(), Position(1));
        let nothing =
            || Command::Write(Write::DeleteRange(DeleteRange { range: KeyRange::One("x".into()), prev_kv: false }));
        writer.command(origin(1), nothing(), Time(1));
        assert!(writer.seal().is_none());
        assert_eq!(tokens(&mut writer), [1], "nothing is under way");
        writer.command(origin(2), put("a"), Time(1));
        let (position, _) = writer.seal().expect("a group");
        assert_eq!(position, Position(1));
        writer.command(origin(3), nothing(), Time(1));
        assert!(writer.seal().is_none());
        assert_eq!(tokens(&mut writer), Vec::<u32>::new());
        writer.durable(position);
        assert_eq!(tokens(&mut writer), [2, 3]);
    }

    #[test]
    fn removal_waits_until_its_compaction_is_durable() {
        let mut writer = Writer::new(Store::new(), Pace::default(), Position(1));
        for token in 1..=3 {
            writer.command(origin(token), put("a"), Time(1));
        }
        let (position, _) = writer.seal().expect("a group");
        writer.durable(position);
        writer.command(origin(4), Command::CompactPhysical(Revision(4)), Time(1));
        let (position, _) = writer.seal().expect("a compaction is logged");
        assert!(!writer.step());
        assert_eq!(writer.store().bytes().history, 3 * 112, "the log may yet lose the compaction");
        assert_eq!(tokens(&mut writer), [1, 2, 3]);
        writer.durable(position);
        while writer.step() {}
        assert_eq!(tokens(&mut writer), [4], "told once the removal is done");
        assert_eq!(writer.store().bytes().history, 112);
    }

    #[test]
    fn a_refused_log_answers_what_waits_and_leaves_reads_at_the_committed_revision() {
        let mut writer = Writer::new(Store::new(), Pace::default(), Position(1));
        writer.command(origin(1), put("a"), Time(1));
        let (position, _) = writer.seal().expect("a group");
        writer.durable(position);
        writer.command(origin(2), put("a"), Time(1));
        writer.seal().expect("a group");
        writer.command(origin(3), compact(3), Time(1));
        writer.command(origin(4), history(2), Time(1));
        assert_eq!(tokens(&mut writer), [1]);
        writer.refuse();
        writer.command(origin(5), put("b"), Time(1));
        let replies: Vec<_> = std::iter::from_fn(|| writer.next_reply()).collect();
        assert_eq!(replies.iter().map(|(origin, _)| origin.token).collect::<Vec<_>>(), [2, 3, 4, 5]);
        for refused in [0, 1, 3] {
            assert!(matches!(&replies[refused].1, Reply::Answer(Err(Error::LogRefused))));
        }
        writer.command(origin(6), Command::Read(all()), Time(1));
        let (_, reply) = writer.next_reply().expect("reads go on");
        let Reply::Answer(Ok(answer)) = reply else { panic!("a range was asked: {reply:?}") };
        assert_eq!(answer.revision, Revision(2), "what was not durable is never shown");
    }

    fn alarm(member: u64, kind: AlarmKind, active: bool) -> Command {
        Command::Write(Write::Alarm { alarm: Alarm { member, kind }, active })
    }

    /// Seals and releases what came, and gives the answers in their order.
    fn replies(writer: &mut Writer) -> Vec<Reply> {
        if let Some((position, _)) = writer.seal() {
            writer.durable(position);
        }
        std::iter::from_fn(|| writer.next_reply()).map(|(_, reply)| reply).collect()
    }

    fn alarms(writer: &mut Writer) -> Vec<Alarm> {
        writer.command(origin(99), Command::Alarms(AlarmFilter::All), Time(1));
        let Some((_, Reply::Alarms { alarms, .. })) = writer.next_reply() else { panic!("it is answered at once") };
        alarms
    }

    fn is_refused(reply: &Reply) -> bool {
        matches!(reply, Reply::Answer(Err(Error::NoSpace)))
    }

    #[test]
    fn a_write_that_would_reach_the_quota_raises_the_alarm_through_the_log() {
        let quota = Quota { bytes: Some(600) };
        let mut writer = Writer::new(Store::new(), Pace::default(), Position(1)).with_quota(quota, 7);
        // A put costs 258 bytes, and one that is held takes some 195.
        for token in 1..=2 {
            writer.command(origin(token), put("a"), Time(1));
        }
        assert!(!replies(&mut writer).iter().any(is_refused));
        writer.command(origin(3), put("b"), Time(1));
        let raised = Alarm { member: 7, kind: AlarmKind::NoSpace };
        let (position, entries) = writer.seal().expect("the alarm is in the log");
        assert_eq!(entries, [Entry::Alarm { alarm: raised, active: true }]);
        assert_eq!(alarms(&mut writer), [], "an alarm that is not durable is not told");
        let release = writer.durable(position).expect("a group");
        assert_eq!((release.alarms, release.revision), (vec![(raised, true)], Revision(3)));
        assert!(writer.next_reply().is_some_and(|(_, reply)| is_refused(&reply)));
        assert_eq!(alarms(&mut writer), [raised]);
        writer.command(origin(4), put("b"), Time(1));
        assert!(writer.seal().is_none(), "it is not raised twice");
        // The way out: forget, wait until it is gone, disarm.
        writer.command(origin(5), compact(3), Time(1));
        assert!(!is_refused(&replies(&mut writer)[1]));
        assert!(writer.is_removing());
        while writer.step() {}
        assert!(!writer.is_removing());
        writer.command(origin(6), put("a"), Time(1));
        writer.command(origin(7), alarm(7, AlarmKind::NoSpace, false), Time(1));
        writer.command(origin(8), put("a"), Time(1));
        let replies: Vec<bool> = replies(&mut writer).iter().map(is_refused).collect();
        assert_eq!(replies, [true, false, false], "an alarm never clears by itself");
    }

    #[test]
    fn a_disk_without_room_refuses_puts_and_leaves_deletes() {
        let mut writer = Writer::new(Store::new(), Pace::default(), Position(1));
        writer.command(origin(1), put("a"), Time(1));
        assert!(!is_refused(&replies(&mut writer)[0]));
        writer.set_short_of_space(true);
        let delete = DeleteRange { range: KeyRange::One("a".into()), prev_kv: false };
        writer.command(origin(2), put("a"), Time(1));
        writer.command(origin(3), Command::Write(Write::DeleteRange(delete)), Time(1));
        let replies: Vec<bool> = replies(&mut writer).iter().map(is_refused).collect();
        assert_eq!(replies, [true, false]);
        assert_eq!(alarms(&mut writer), [Alarm { member: 0, kind: AlarmKind::NoSpace }]);
    }

    #[test]
    fn the_status_tells_what_is_committed_and_is_never_empty() {
        let quota = Quota { bytes: Some(1 << 20) };
        let mut writer = Writer::new(Store::new(), Pace::default(), Position(5)).with_quota(quota, 7);
        let status = |writer: &mut Writer| {
            writer.command(origin(9), Command::Status, Time(1));
            let Some((_, Reply::Status(status))) = writer.next_reply() else { panic!("it is answered at once") };
            status
        };
        let empty = status(&mut writer);
        assert_eq!((empty.size_bytes, empty.position, empty.revision), (1, 4, Revision(1)));
        writer.command(origin(1), put("a"), Time(1));
        writer.command(origin(2), alarm(1, AlarmKind::Corrupt, true), Time(1));
        let (position, _) = writer.seal().expect("a group");
        writer.command(origin(3), put("b"), Time(1));
        let applied = status(&mut writer);
        assert_eq!((applied.position, applied.revision, applied.alarms.len()), (4, Revision(1), 0));
        writer.durable(position);
        while writer.next_reply().is_some() {}
        let told = status(&mut writer);
        assert_eq!((told.position, told.revision, told.alarms.len()), (5, Revision(2), 1));
        assert_eq!(told.quota_bytes, Some(1 << 20));
    }

    fn all() -> Read {
        Read::Range(crate::sim::plain_range(KeyRange::From("a".into()), 0))
    }
}
