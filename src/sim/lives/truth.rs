//! What must be true of a server that has lived several times: the slow model of the store, leases as a plain map, and what
//! both were behind each group of the log. A crash takes back to one of those moments, and the rules say to which.

use std::collections::BTreeMap;
use std::ops::RangeInclusive;
use std::sync::Arc;

use crate::backend::{Command, LeaseAnswer, LeaseCommand, LeaseOutcome};
use crate::lease::{Lessor, Standing};
use crate::sim::{all_at, all_keys};
use crate::store::Store;
use crate::store::command::{Answer, DeleteRange, Error, Op, Outcome, Read, Txn, Write};
use crate::store::model::Model;
use crate::store::quota;
use crate::types::{
    Alarm, AlarmKind, Batch, Change, Entry, Key, KeyRange, KeyValue, Lease, LeaseId, Position, Revision, Time, Uptime,
};
use crate::wal::checkpoint_rows::Meta;

/// What a start gives each lease beyond its time.
const START_GRACE_MILLISECONDS: u64 = 1_000;
/// What a grant costs against the space.
const GRANT_BYTES: u64 = 64;

/// What a request must be answered with.
#[derive(Debug)]
pub enum Due {
    Answer(Result<Answer, Error>),
    Lease(LeaseAnswer),
    /// A range over all keys at this revision, 0 for the newest.
    Read(i64),
    /// Batches from this revision on.
    History(Revision),
    Alarms,
    Defragmented,
}

/// An answer with the last group that it shows.
#[derive(Debug)]
pub struct Owed {
    pub due: Due,
    pub position: Position,
}

/// What happened in a turn of the writer.
pub struct Turn<'a> {
    pub commands: &'a [Command],
    /// The mark of a start or an end that stands in front.
    pub noted: Option<Entry>,
    /// What was handed to the log.
    pub group: Option<(Position, Vec<Entry>)>,
    pub is_short_of_space: bool,
    pub time: Time,
    pub now: Uptime,
}

#[derive(Clone, Copy)]
struct Held {
    ttl: i64,
    deadline: Uptime,
}

/// What is true behind a group.
#[derive(Clone)]
struct Mark {
    revision: Revision,
    /// -1 before the first compaction.
    compacted: Revision,
    alarms: Vec<Alarm>,
    leases: BTreeMap<LeaseId, i64>,
    term: u64,
}

pub struct Truth {
    member: u64,
    model: Model,
    leases: BTreeMap<LeaseId, Held>,
    term: u64,
    /// One for each position of the log, the first for that of nothing.
    marks: Vec<Mark>,
    /// The last group that anybody was told of.
    told: Position,
}

impl Truth {
    pub fn new(member: u64) -> Truth {
        let mut truth = Truth {
            member,
            model: Model::new(),
            leases: BTreeMap::new(),
            term: 0,
            marks: Vec::new(),
            told: Position(0),
        };
        truth.mark();
        truth
    }

    fn mark(&mut self) {
        self.marks.push(Mark {
            revision: self.model.revision(),
            compacted: self.model.compacted(),
            alarms: self.model.alarms(),
            leases: self.leases.iter().map(|(id, held)| (*id, held.ttl)).collect(),
            term: self.term,
        });
    }

    fn last(&self) -> Position {
        Position(self.marks.len() as u64 - 1)
    }

    pub fn revision(&self) -> Revision {
        self.model.revision()
    }

    pub fn leases(&self) -> usize {
        self.leases.len()
    }

    pub fn told(&self) -> Position {
        self.told
    }

    pub fn tell(&mut self, position: Position) {
        self.told = self.told.max(position);
    }

    /// Somebody was told of this revision.
    fn tell_revision(&mut self, revision: Revision) {
        let at = self.marks.partition_point(|mark| mark.revision < revision);
        assert!(at < self.marks.len(), "revision {revision} was never made");
        self.tell(Position(at as u64));
    }

    /// Does what the writer did, and compares what it has handed to the log. Gives what the commands are owed.
    pub fn turn(&mut self, turn: Turn<'_>) -> Vec<Owed> {
        let Turn { commands, noted, group, is_short_of_space, time, now } = turn;
        let before = self.last();
        if let Some(Entry::Start { term }) = &noted {
            assert!(*term > self.term, "the term rises with each start");
            self.term = *term;
        }
        let mut entries: Vec<Entry> = noted.into_iter().collect();
        let position = group.as_ref().map_or(before, |(position, _)| *position);
        let mut owed = Vec::new();
        for command in commands {
            let due = self.apply(command, is_short_of_space, (time, now), &mut entries);
            let position = match due {
                Due::Answer(_) | Due::Lease(_) if entries.is_empty() => before,
                Due::Answer(_) | Due::Lease(_) => position,
                // What is looked at where it may be told says by itself how new it is.
                Due::Read(_) | Due::History(_) | Due::Alarms | Due::Defragmented => Position(0),
            };
            owed.push(Owed { due, position });
        }
        let Some((position, written)) = group else {
            assert_eq!(entries, [], "what was changed is handed to the log");
            return owed;
        };
        assert_eq!(position, before.next(), "groups are numbered without a gap");
        assert!(written.len() >= entries.len(), "{written:?} is handed to the log for {entries:?}");
        assert_eq!(written[..entries.len()], entries);
        self.expire(&written[entries.len()..], (time, now));
        self.mark();
        owed
    }

    /// What no command asked for is the end of leases whose time is over.
    fn expire(&mut self, mut written: &[Entry], (time, now): (Time, Uptime)) {
        while !written.is_empty() {
            let lease = written.iter().find_map(|entry| match entry {
                Entry::Lease { lease, granted: false } => Some(*lease),
                _ => None,
            });
            let Lease { id, .. } = lease.unwrap_or_else(|| panic!("nobody asked for {written:?}"));
            let deadline = self.leases.get(&id).expect("a lease that ends was there").deadline;
            assert!(deadline < now, "{id:?} ends at {now:?}, before {deadline:?}");
            let mut entries = Vec::new();
            self.revoke(id, time, &mut entries).expect("it is there, and no alarm is");
            assert_eq!(written[..entries.len()], entries);
            written = &written[entries.len()..];
        }
    }

    fn apply(&mut self, command: &Command, is_short: bool, at: (Time, Uptime), entries: &mut Vec<Entry>) -> Due {
        match command {
            Command::Write(write) => Due::Answer(self.write(write, is_short, at.0, entries)),
            Command::CompactPhysical(revision) => {
                Due::Answer(self.write(&Write::Compact(*revision), is_short, at.0, entries))
            }
            Command::Lease(command) => {
                let before = self.model.revision();
                match self.lease(*command, is_short, at, entries) {
                    Ok(outcome @ LeaseOutcome::KeptAlive { .. }) => {
                        Due::Lease(LeaseAnswer { revision: before, outcome })
                    }
                    Ok(outcome) => Due::Lease(LeaseAnswer { revision: self.model.revision(), outcome }),
                    Err(error) => Due::Answer(Err(error)),
                }
            }
            Command::Read(Read::Range(range)) => Due::Read(range.revision),
            Command::History { from } => Due::History(*from),
            Command::Alarms(_) => Due::Alarms,
            Command::Defragment => Due::Defragmented,
            Command::Read(_) | Command::Status => unreachable!("nobody asks"),
        }
    }

    fn write(&mut self, write: &Write, is_short: bool, time: Time, entries: &mut Vec<Entry>) -> Result<Answer, Error> {
        self.check_space(quota::cost_bytes(write), is_short, entries)?;
        let leases = &self.leases;
        let (answer, entry) = self.model.apply_with(write, time, &|lease| leases.contains_key(&lease));
        entries.extend(entry);
        answer
    }

    fn check_space(&mut self, cost_bytes: u64, is_short: bool, entries: &mut Vec<Entry>) -> Result<(), Error> {
        if cost_bytes == 0 || !is_short {
            return Ok(());
        }
        let alarm = Alarm { member: self.member, kind: AlarmKind::NoSpace };
        entries.extend(self.model.apply(&Write::Alarm { alarm, active: true }, Time(0)).1);
        Err(Error::NoSpace)
    }

    fn check_alarm(&self, kind: AlarmKind, error: Error) -> Result<(), Error> {
        if self.model.alarms().iter().any(|alarm| alarm.kind == kind) { Err(error) } else { Ok(()) }
    }

    fn lease(
        &mut self,
        command: LeaseCommand,
        is_short: bool,
        (time, now): (Time, Uptime),
        entries: &mut Vec<Entry>,
    ) -> Result<LeaseOutcome, Error> {
        match command {
            LeaseCommand::Grant { id, ttl } => {
                self.check_space(GRANT_BYTES, is_short, entries)?;
                self.check_alarm(AlarmKind::Corrupt, Error::Corrupt)?;
                self.check_alarm(AlarmKind::NoSpace, Error::NoSpace)?;
                if self.leases.contains_key(&id) {
                    return Err(Error::LeaseExists);
                }
                let lease = Lease { id, ttl: ttl.max(2) };
                self.leases.insert(id, Held { ttl: lease.ttl, deadline: deadline(now, lease.ttl) });
                entries.push(Entry::Lease { lease, granted: true });
                Ok(LeaseOutcome::Granted(lease))
            }
            LeaseCommand::Revoke(id) => self.revoke(id, time, entries).map(|()| LeaseOutcome::Revoked),
            LeaseCommand::KeepAlive(id) => {
                let ttl = match self.leases.get_mut(&id) {
                    Some(held) if held.deadline < now => {
                        self.revoke(id, time, entries)?;
                        None
                    }
                    Some(held) => {
                        held.deadline = deadline(now, held.ttl);
                        Some(held.ttl)
                    }
                    None => None,
                };
                Ok(LeaseOutcome::KeptAlive { id, ttl })
            }
            LeaseCommand::TimeToLive { id, keys } => {
                let standing = self.leases.get(&id).map(|held| {
                    let left = held.deadline.0 as i64 - now.0 as i64;
                    let remaining = if left > 0 { (left - 1) / 1_000 } else { left / 1_000 };
                    Standing { remaining, granted: held.ttl }
                });
                Ok(LeaseOutcome::TimeToLive { id, standing, keys: if keys { self.keys_of(id) } else { Vec::new() } })
            }
            LeaseCommand::List => {
                let mut leases: Vec<_> = self.leases.iter().map(|(id, held)| (held.deadline, *id)).collect();
                leases.sort_unstable();
                Ok(LeaseOutcome::List(leases.into_iter().map(|(_, id)| id).collect()))
            }
        }
    }

    fn revoke(&mut self, id: LeaseId, time: Time, entries: &mut Vec<Entry>) -> Result<(), Error> {
        self.check_alarm(AlarmKind::Corrupt, Error::Corrupt)?;
        let keys = self.keys_of(id);
        let ttl = self.leases.remove(&id).ok_or(Error::LeaseNotFound { lease: id })?.ttl;
        let delete = |key| Op::DeleteRange(DeleteRange { range: KeyRange::One(key), prev_kv: false });
        let success = keys.into_iter().map(delete).collect();
        let write = Write::Txn(Txn { compares: Vec::new(), success, failure: Vec::new() });
        entries.extend(self.model.apply(&write, time).1);
        entries.push(Entry::Lease { lease: Lease { id, ttl }, granted: false });
        Ok(())
    }

    fn rows_at(&self, revision: Revision) -> Vec<KeyValue> {
        self.model.range(&all_keys(), revision).expect("the newest is never refused").rows
    }

    /// The keys of a lease: those whose newest version has it.
    fn keys_of(&self, id: LeaseId) -> Vec<Key> {
        let rows = self.rows_at(self.model.revision());
        let keys = rows.iter().filter(|kv| kv.lease() == id && id != LeaseId::NONE);
        keys.map(|kv| Key::copy_from_slice(kv.key())).collect()
    }

    /// What a range over all keys at `asked` may be answered. Who hears it is told of what it shows.
    pub fn check_read(&mut self, asked: i64, answer: Result<Answer, Error>) {
        match answer {
            Ok(Answer { revision, result: Outcome::Range(rows) }) => {
                let at = if asked > 0 { Revision(asked) } else { revision };
                assert!(at <= revision, "{at} is read at {revision}");
                assert_eq!(rows.rows, self.rows_at(at), "a read at {at}");
                self.tell_revision(revision);
            }
            Err(Error::Compacted { compacted, .. }) => {
                assert!(asked < compacted.0, "{asked} is not below {compacted}");
                self.tell_compacted(compacted);
            }
            Err(Error::FutureRevision { current, .. }) => {
                assert!(asked > current.0, "{asked} is not above {current}");
                self.tell_revision(current);
            }
            answer => panic!("no answer to a range: {answer:?}"),
        }
    }

    fn tell_compacted(&mut self, compacted: Revision) {
        let at = self.marks.partition_point(|mark| mark.compacted < compacted);
        assert!(at < self.marks.len(), "nobody has compacted at {compacted}");
        self.tell(Position(at as u64));
    }

    /// What a question for batches may be answered.
    pub fn check_history(&mut self, from: Revision, batches: Result<Vec<Arc<Batch>>, Revision>) {
        let batches = match batches {
            Ok(batches) => batches,
            Err(compacted) => {
                assert!(from < compacted);
                return self.tell_compacted(compacted);
            }
        };
        let expected = self.model.batches().iter().filter(|batch| batch.revision >= from);
        for (batch, expected) in batches.iter().zip(expected) {
            assert_eq!((batch.revision, batch.time), (expected.revision, expected.time));
            assert_eq!(keys_of(&batch.changes), keys_of(&expected.changes));
        }
        if let Some(last) = batches.last() {
            self.tell_revision(last.revision);
        }
    }

    /// The alarms that may be listed are those behind a group that was the last to be told in this turn.
    pub fn check_alarms(&self, revision: Revision, alarms: &[Alarm], committed: RangeInclusive<Position>) {
        let marks = &self.marks[committed.start().0 as usize..=committed.end().0 as usize];
        let is_true = marks.iter().any(|mark| (mark.revision, &mark.alarms[..]) == (revision, alarms));
        assert!(is_true, "{alarms:?} are listed at {revision}");
    }

    /// What a start found must be one of the moments that were, with all in it.
    pub fn check_found(&self, meta: &Meta, store: &Store, lessor: &mut Lessor) -> Result<(), String> {
        let Some(mark) = self.marks.get(meta.position.0 as usize) else {
            return Err(format!("{:?} is found, and was never written", meta.position));
        };
        let found = (store.revision(), store.compacted().unwrap_or(Revision(-1)), meta.term);
        if found != (mark.revision, mark.compacted, mark.term) || meta.revision != mark.revision {
            let expected = (mark.revision, mark.compacted, mark.term);
            return Err(format!("revision, compaction and term are {found:?} and were {expected:?}"));
        }
        let alarms: Vec<Alarm> = store.alarms().collect();
        if alarms != mark.alarms {
            return Err(format!("the alarms are {alarms:?} and were {:?}", mark.alarms));
        }
        self.check_states(store, mark)?;
        self.check_batches(store, mark)?;
        self.check_leases(lessor, mark)
    }

    fn check_states(&self, store: &Store, mark: &Mark) -> Result<(), String> {
        for revision in mark.compacted.0.max(1)..=mark.revision.0 {
            if all_at(store, Revision(revision)).rows != self.rows_at(Revision(revision)) {
                return Err(format!("the keys at revision {revision} are not what they were"));
            }
        }
        Ok(())
    }

    fn check_batches(&self, store: &Store, mark: &Mark) -> Result<(), String> {
        let first = mark.compacted.max(Revision(2));
        let batches = store.history(first, mark.revision, usize::MAX, usize::MAX);
        let batches = batches.map_err(|refused| format!("history from {first} on is refused: {refused:?}"))?;
        let expected =
            self.model.batches().iter().filter(|batch| first <= batch.revision && batch.revision <= mark.revision);
        // A change at the compacted revision has lost what was before it.
        let expected = expected
            .map(|batch| if batch.revision == mark.compacted { batch.without_previous() } else { batch.clone() });
        if batches.iter().map(|batch| Batch::clone(batch)).eq(expected) {
            Ok(())
        } else {
            Err(format!("history from {first} on is not what it was"))
        }
    }

    fn check_leases(&self, lessor: &mut Lessor, mark: &Mark) -> Result<(), String> {
        let listed = lessor.list(usize::MAX).ok_or("a list without a bound has an end")?;
        let granted = |id| lessor.standing(id, Uptime(0)).map_or(-1, |standing| standing.granted);
        let found: BTreeMap<LeaseId, i64> = listed.into_iter().map(|id| (id, granted(id))).collect();
        if found != mark.leases {
            return Err(format!("the leases are {found:?} and were {:?}", mark.leases));
        }
        let mut attached: BTreeMap<LeaseId, Vec<Key>> = BTreeMap::new();
        for kv in self.rows_at(mark.revision).iter().filter(|kv| kv.lease() != LeaseId::NONE) {
            attached.entry(kv.lease()).or_default().push(Key::copy_from_slice(kv.key()));
        }
        for id in mark.leases.keys() {
            let (found, expected) = (lessor.keys_of(*id), attached.remove(id).unwrap_or_default());
            if found != expected {
                return Err(format!("the keys of {id:?} are {found:?} and were {expected:?}"));
            }
        }
        if attached.is_empty() { Ok(()) } else { Err(format!("{attached:?} have no lease any more")) }
    }

    /// A start has made this the last group: what came behind it never was. All leases begin anew.
    pub fn take_back(&mut self, position: Position, now: Uptime) {
        assert!(position >= self.told);
        self.told = position;
        self.marks.truncate(position.0 as usize + 1);
        let mark = self.marks[position.0 as usize].clone();
        self.model.take_back(mark.revision, mark.compacted, mark.alarms);
        self.term = mark.term;
        let begin = Uptime(now.0 + START_GRACE_MILLISECONDS);
        let held = |(id, ttl)| (id, Held { ttl, deadline: deadline(begin, ttl) });
        self.leases = mark.leases.into_iter().map(held).collect();
    }
}

fn deadline(now: Uptime, ttl: i64) -> Uptime {
    Uptime(now.0 + ttl as u64 * 1_000)
}

fn keys_of(changes: &[Change]) -> Vec<&[u8]> {
    changes.iter().map(Change::key).collect()
}
