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
use crate::lease::Lessor;
use crate::shard::hashes::Hashes;
use crate::shard::mesh::Token;
use crate::shard::space::{Shortage, Space, Verdict};
use crate::store::command::{Answer, Error, Read, Write};
use crate::store::quota::{self, Quota};
use crate::store::{Applied, CompactProgress, ReadJob, Store};
use crate::types::{Alarm, AlarmKind, Batch, Change, ChangeId, Entry, LeaseId, Position, Revision, Time, Uptime};

use leases::Leases;

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

/// Alarms that calls may raise. etcd takes one for any number that a member could have; a cluster has seven members and two
/// kinds of them.
const ALARMS_MAX: usize = 100;

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

struct RunningRead {
    origin: Origin,
    job: ReadJob,
}

pub struct Writer {
    store: Store,
    leases: Leases,
    pace: Pace,
    open: Group,
    sealed: VecDeque<Group>,
    committed: Revision,
    /// The compaction that may be told; what it forgot may be removed.
    compacted: Option<Revision>,
    /// The alarms that may be told.
    alarms: BTreeSet<Alarm>,
    space: Space,
    /// What is under way will make more room in the log.
    is_room_coming: bool,
    /// The disk has refused the log.
    refusing: bool,
    reads: VecDeque<RunningRead>,
    hashes: Hashes,
    /// What the running reads hold beside the store.
    scratch_bytes: usize,
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
    /// What a compaction forgot is removed, and the checkpoint told so, before the compaction is durable.
    pub remove_before_commit: bool,
    /// A keep-alive leaves what was written down of the time that its lease had left.
    pub keep_remaining: bool,
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
            space: Space::new(Quota::default(), 0),
            scratch_bytes: 0,
            is_room_coming: false,
            refusing: false,
            reads: VecDeque::new(),
            hashes: Hashes::default(),
            // A restart may have come before the last compaction's removal was done.
            removing: !store.is_compact(),
            store,
            leases: Leases::default(),
            waiting_for_removal: Vec::new(),
            outbox: VecDeque::new(),
            #[cfg(test)]
            planted: Planted::default(),
        }
    }

    /// Holds the store to a quota; the alarm that says it is reached names this member.
    pub fn with_quota(mut self, quota: Quota, member: u64) -> Writer {
        self.space = Space::new(quota, member);
        self
    }

    /// Takes over leases, and has the time of each begin anew: nobody could keep them alive meanwhile.
    pub fn with_leases(mut self, lessor: Lessor, now: Uptime) -> Writer {
        self.leases = Leases::begin(lessor, now);
        self
    }

    /// Clients can be heard from now on: each lease has its whole time from here.
    pub fn begin_leases(&mut self, now: Uptime) {
        self.leases.begin_again(now);
    }

    pub fn leases(&self) -> &Lessor {
        self.leases.lessor()
    }

    pub fn set_uptime(&mut self, now: Uptime) {
        self.leases.now = now;
    }

    /// Whether the disk has no room for the log to grow into. A write that may put then raises the alarm for space, so
    /// that what is set aside is left to deletes and compactions.
    pub fn set_short_of_space(&mut self, is_short: bool) {
        self.space.is_short = is_short;
    }

    pub fn is_short_of_space(&self) -> bool {
        self.space.is_short
    }

    /// Why the alarm for space was raised just now, in words; nothing when a call has raised it.
    pub fn take_raised_for(&mut self, disks: &str) -> Option<String> {
        let shortage = self.space.take_raised_for()?;
        Some(self.space.explain(Some(shortage), self.held_bytes() as u64, disks))
    }

    /// What there is too little of now, in words.
    pub fn explain_space(&self, disks: &str) -> String {
        let used_bytes = self.held_bytes() as u64;
        let shortage = match self.space.judge(used_bytes, quota::PUT_OVERHEAD_BYTES) {
            Verdict::Alarm(shortage) => Some(shortage),
            Verdict::Admitted | Verdict::NoMemory => None,
        };
        self.space.explain(shortage, used_bytes, disks)
    }

    /// From here on the store may grow by so many bytes, and so may what reads hold, before puts and large reads are refused.
    pub fn set_memory_room(&mut self, room: usize) {
        self.space.set_memory_room(self.held_bytes(), self.scratch_bytes(), room);
    }

    /// What the quota counts.
    fn held_bytes(&self) -> usize {
        self.store.bytes().total() + self.leases().bytes()
    }

    pub fn store(&self) -> &Store {
        &self.store
    }

    /// What the running reads and lists hold beside the store, in bytes.
    pub fn scratch_bytes(&self) -> usize {
        self.scratch_bytes + self.hashes.scratch_bytes() + self.leases.scratch_bytes()
    }

    /// Takes one command of a shard. Its reply comes out of [`Writer::next_reply`] when it may be told.
    pub fn command(&mut self, origin: Origin, command: Command, time: Time) {
        match command {
            Command::Write(write) => self.write(origin, &write, time, false),
            Command::Lease(command) => self.lease(origin, command, time),
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
        if let Some(Entry::Batch(batch)) = &applied.entry
            && batch.changes.iter().any(is_leased)
        {
            self.leases.note(batch);
        }
        self.note_applied(applied.entry);
        let reply = Reply::Answer(applied.answer);
        #[cfg(test)]
        if self.planted.release_before_commit {
            return self.outbox.push_back((origin, reply));
        }
        self.open.replies.push(Waiting { origin, reply, after_removal });
    }

    fn note_applied(&mut self, entry: Option<Entry>) {
        self.open.entries.extend(entry);
        (self.open.revision, self.open.compacted) = (self.store.revision(), self.store.compacted());
    }

    /// Applies a write, or raises the alarm for space in its place. etcd asks for the space before anything else, so the
    /// refusal does not depend on which alarms are active already.
    fn apply(&mut self, write: &Write, time: Time) -> Applied {
        let cost_bytes = quota::cost_bytes(write);
        if let Some(entry) = self.refuse_for_space(cost_bytes, time) {
            return Applied { answer: Err(Error::NoSpace), entry };
        }
        if let Write::Alarm { alarm, active: true } = write
            && self.store.alarms().len() >= ALARMS_MAX
            && !self.store.alarms().any(|active| active == *alarm)
        {
            return Applied { answer: Err(Error::TooManyAlarms), entry: None };
        }
        let lessor = self.leases.lessor();
        let applied = self.store.apply_with(write, time, &|lease| lessor.contains(lease));
        // Where room is coming it has only come too soon.
        let is_for_room = matches!(applied.answer, Err(Error::NoSpace)) && !self.store.has_alarm(AlarmKind::NoSpace);
        if is_for_room && cost_bytes > 0 && !self.is_room_coming {
            return Applied { entry: self.raise(Shortage::Disk, time), ..applied };
        }
        applied
    }

    /// `None`: there is space for what costs so much. Else the alarm that was raised, if one was.
    fn refuse_for_space(&mut self, cost_bytes: u64, time: Time) -> Option<Option<Entry>> {
        let shortage = match self.space.judge(self.held_bytes() as u64, cost_bytes) {
            Verdict::Admitted => return None,
            Verdict::NoMemory => return Some(None),
            Verdict::Alarm(shortage) => shortage,
        };
        Some(self.raise(shortage, time))
    }

    /// Raises the alarm for space. None when it stands already.
    fn raise(&mut self, shortage: Shortage, time: Time) -> Option<Entry> {
        let alarm = Alarm { member: self.space.member, kind: AlarmKind::NoSpace };
        let raised = self.store.apply_with(&Write::Alarm { alarm, active: true }, time, &|_| false).entry;
        if raised.is_some() {
            self.space.note_raised(shortage);
        }
        raised
    }

    /// What is asked about alarms and state is answered at once, at what may be told.
    fn list_alarms(&self, filter: AlarmFilter) -> Reply {
        let alarms = self.alarms.iter().copied().filter(|alarm| filter.lists(*alarm));
        Reply::Alarms { revision: self.committed, alarms: alarms.collect() }
    }

    /// The last group that was sealed, and the last that may be told.
    pub fn sealed_position(&self) -> Position {
        Position(self.open.position.0 - 1)
    }

    pub fn committed_position(&self) -> Position {
        Position(self.sealed.front().unwrap_or(&self.open).position.0 - 1)
    }

    /// Groups of writes that are applied and may not be told yet.
    pub fn groups_under_way(&self) -> usize {
        self.sealed.len() + usize::from(!self.open.entries.is_empty())
    }

    pub fn status(&self) -> BackendStatus {
        // Nothing is kept that is not in use: memory that is freed has been given back. An empty store has a size too.
        let bytes = self.held_bytes().max(1) as u64;
        BackendStatus {
            revision: self.committed,
            size_bytes: bytes,
            used_bytes: bytes,
            quota_bytes: self.space.quota.bytes,
            position: self.committed_position().0,
            alarms: self.alarms.iter().copied().collect(),
            is_refusing_writes: self.refusing,
        }
    }

    fn read(&mut self, origin: Origin, read: &Read) {
        if matches!(read, Read::Hash { .. }) {
            return self.hashes.wait(origin, read.clone());
        }
        match self.store.read(read, self.committed) {
            Ok(mut job) => match self.store.step(&mut job, self.pace.read_rows) {
                Some(result) => self.finish_read(origin, result),
                None => self.read_on(RunningRead { origin, job }),
            },
            Err(error) => self.finish_read(origin, Err(error)),
        }
    }

    /// A read that takes several turns holds rows meanwhile. One for which there is no memory ends here.
    fn read_on(&mut self, read: RunningRead) {
        let scratch_bytes = read.job.scratch_bytes();
        if !self.space.admits_scratch(self.scratch_bytes() + scratch_bytes) {
            return self.finish_read(read.origin, Err(Error::NoMemory));
        }
        self.scratch_bytes += scratch_bytes;
        self.reads.push_back(read);
    }

    fn finish_read(&mut self, origin: Origin, result: Result<Answer, Error>) {
        let is_refused = result.is_err();
        self.reply_to_reader(origin, Reply::Answer(result), is_refused);
    }

    /// One turn of the hash that is first, if there is one. It names the compaction that it was made under.
    fn step_hash(&mut self) {
        // None begins under a compaction that is not committed, above what is: there is nothing to hash.
        let sees_too_much = self.store.compacted() > Some(self.committed) && !self.refusing;
        if sees_too_much && self.hashes.oldest().is_none() {
            return;
        }
        let (space, held) = (&self.space, self.scratch_bytes + self.leases.scratch_bytes());
        let admits = |bytes| space.admits_scratch(held + bytes);
        if let Some((origin, result)) = self.hashes.turn(&self.store, self.committed, self.pace.read_rows, admits) {
            self.reply_to_reader(origin, Reply::Answer(result), true);
        }
    }

    /// What was read at the committed revision may leave at once. A refusal may have seen a compaction that is not durable.
    fn reply_to_reader(&mut self, origin: Origin, reply: Reply, saw_compaction: bool) {
        let all_told = self.open.replies.is_empty() && self.sealed.is_empty();
        if all_told || !saw_compaction {
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
                    Entry::Compaction(_)
                    | Entry::Lease { .. }
                    | Entry::Remaining { .. }
                    | Entry::Start { .. }
                    | Entry::Stop => {}
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
        self.store.take_back_compaction(self.compacted);
        let next = Group::new(self.open.position, self.committed, self.compacted);
        let open = std::mem::replace(&mut self.open, next);
        for Group { replies, reads, .. } in std::mem::take(&mut self.sealed).into_iter().chain([open]) {
            replies.iter().for_each(|waiting| self.leases.let_go_of(&waiting.reply));
            self.outbox.extend(replies.into_iter().map(|Waiting { origin, reply, .. }| match reply {
                // It told of a compaction that is none. Without any batches the hub asks again.
                Reply::History(_) => (origin, Reply::History(Ok(Vec::new()))),
                _ => (origin, Reply::Answer(Err(Error::LogRefused))),
            }));
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

    /// A bounded piece of the long work: one turn of one read, one of a hash, one of a list of leases, and one of the
    /// removal. True when there is more.
    pub fn step(&mut self) -> bool {
        if let Some(mut read) = self.reads.pop_front() {
            self.scratch_bytes -= read.job.scratch_bytes();
            match self.store.step(&mut read.job, self.pace.read_rows) {
                Some(result) => self.finish_read(read.origin, result),
                None => self.read_on(read),
            }
        }
        self.step_hash();
        self.step_list();
        self.remove() || !self.reads.is_empty() || !self.hashes.is_idle() || self.leases.has_lists()
    }

    /// A bounded piece of the removal behind a compaction. What running reads or the committed revision still need waits
    /// for the turn in which they have gone on.
    fn remove(&mut self) -> bool {
        #[cfg(test)]
        if self.planted.remove_before_commit {
            self.removing = true;
            self.compacted = self.store.compacted();
        }
        if !self.removing {
            return false;
        }
        let oldest = self.reads.iter().map(|read| read.job.oldest()).chain(self.hashes.oldest()).min();
        // The next read will begin at the committed revision.
        let pinned = oldest.map_or(self.committed, |oldest| oldest.min(self.committed));
        let pinned = pinned.min(self.compacted.unwrap_or(Revision::ZERO));
        let progress = self.store.compact_step(self.pace.compact_visits, Some(pinned));
        if self.store.is_compact() {
            self.end_removal();
        }
        progress == CompactProgress::More
    }

    /// What the open group may take in the log. See [`Store::set_log_bytes_max`].
    pub fn set_log_bytes_max(&mut self, bytes: usize) {
        self.store.set_log_bytes_max(bytes);
    }

    pub fn set_room_coming(&mut self, is_coming: bool) {
        self.is_room_coming = is_coming;
    }

    pub fn log_bytes_max(&self) -> usize {
        self.store.log_bytes_max()
    }

    /// See [`Store::take_visits`].
    pub fn take_visits(&mut self) -> usize {
        self.store.take_visits()
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
        let next = self.outbox.pop_front()?;
        self.leases.let_go_of(&next.1);
        Some(next)
    }
}

/// Whether a lease has to do with a change: most have none, and cost the lessor nothing.
fn is_leased(change: &Change) -> bool {
    let is_put_with_one = matches!(change, Change::Put { kv, .. } if kv.lease() != LeaseId::NONE);
    is_put_with_one || change.previous().is_some_and(|kv| kv.lease() != LeaseId::NONE)
}

mod leases;
#[cfg(test)]
mod tests;
