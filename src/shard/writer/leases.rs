//! What the writer does with leases: it asks the lessor, and puts what changes into the open group like any write.
//!
//! - A grant and a revocation are entries of the log. What a revocation deletes is one revision in the same group, in front
//!   of it, so no crash leaves a lease without its keys or keys without their lease.
//! - A keep-alive is no entry: a start gives every lease its whole time again, as etcd's does. Where what leases have left is
//!   written down, the first keep-alive behind that takes it back by an entry, and its answer leaves behind that one.
//! - A keep-alive that comes too late revokes the lease on the spot, and its answer leaves behind that.
//! - What is only looked at leaves with the youngest group, like every answer about state that may not be durable yet. The
//!   lessor has no view of what may be told, so a log that is refused refuses these questions too.
//! - A list of all leases is made in turns, one list at a time, and shows one moment. What a lease's keys are, and their
//!   deletion, is one piece of work however many they are: etcd makes one message of the one and one revision of the other.

use std::collections::VecDeque;

use crate::backend::{LeaseAnswer, LeaseCommand, LeaseOutcome, Reply};
use crate::lease::{LISTED_BYTES, Lessor, Refused, list_bytes};
use crate::metrics::Histogram;
use crate::metrics::histogram::TTL;
use crate::store::CHANGE_BYTES;
use crate::store::command::{DeleteRange, Error, Op, Txn, Write};
use crate::types::{AlarmKind, Batch, Entry, Key, KeyRange, Lease, LeaseId, Revision, Time, Uptime};

use super::{Origin, Waiting, Writer};

/// A start gives each lease so much more, as etcd does by its election timeout: clients have to find the server first.
const START_GRACE_MILLISECONDS: u64 = 1_000;
/// What a grant costs against the quota: etcd's estimate.
const GRANT_BYTES: u64 = 64;
/// Leases that a list looks at in one turn: some 100 us of work.
const LISTED_PER_TURN: usize = 1_000;
/// Leases that are looked at in one turn, and keys that go with the expired of them: some 500 us of work.
const VISITS_PER_TURN: usize = 500;
const KEYS_PER_TURN: usize = 500;
/// When one that could not be revoked for want of room is looked at again.
const RETRY_MILLISECONDS: u64 = 1_000;
/// Leases of which is written down in one turn what they have left: some 500 us of work, and 8 KB of the log.
const REMAINING_PER_TURN: usize = 500;

/// A list of keys that is no longer is told however little memory there is, like a range of one turn.
const SHORT_LIST_BYTES: usize = 16 << 10;

/// How many were granted, revoked (expired ones as well), kept alive and found expired since the start.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct LeaseCounts {
    pub granted: u64,
    pub revoked: u64,
    pub renewed: u64,
    pub expired: u64,
    /// Keys that went with their leases. etcd counts each as a delete, and those of one lease as a transaction.
    pub deletes: u64,
    pub txns: u64,
}

/// The lessor, and what time it is for it.
pub(super) struct Leases {
    lessor: Lessor,
    counts: LeaseCounts,
    /// The times to live that were granted, in seconds.
    ttls: Histogram,
    /// Who waits for a list of all leases, and the revision at which that of the first began, if it did.
    lists: VecDeque<Origin>,
    list_began: Option<Revision>,
    /// What lists of keys hold that wait to be told.
    key_lists_bytes: usize,
    pub(super) now: Uptime,
}

impl Default for Leases {
    fn default() -> Leases {
        Leases::new(Lessor::new(0), Uptime::default())
    }
}

impl Leases {
    fn new(lessor: Lessor, now: Uptime) -> Leases {
        let (counts, ttls, lists) = (LeaseCounts::default(), Histogram::new(TTL), VecDeque::new());
        Leases { lessor, counts, ttls, lists, list_began: None, key_lists_bytes: 0, now }
    }

    pub(super) fn begin(mut lessor: Lessor, now: Uptime) -> Leases {
        lessor.begin(Uptime(now.0 + START_GRACE_MILLISECONDS));
        Leases::new(lessor, now)
    }

    /// As after a start, from now on.
    pub(super) fn begin_again(&mut self, now: Uptime) {
        self.lessor.begin(Uptime(now.0 + START_GRACE_MILLISECONDS));
        self.now = now;
    }

    pub(super) fn lessor(&self) -> &Lessor {
        &self.lessor
    }

    pub(super) fn has_lists(&self) -> bool {
        !self.lists.is_empty()
    }

    pub(super) fn scratch_bytes(&self) -> usize {
        self.lessor.listing_bytes() + self.key_lists_bytes
    }

    /// A reply leaves, or is thrown away.
    pub(super) fn let_go_of(&mut self, reply: &Reply) {
        if let Reply::Lease(LeaseAnswer { outcome: LeaseOutcome::TimeToLive { keys, .. }, .. }) = reply {
            self.key_lists_bytes -= list_bytes(keys);
        }
    }

    pub(super) fn note(&mut self, batch: &Batch) {
        self.lessor.note(batch);
    }
}

impl Writer {
    pub(super) fn lease(&mut self, origin: Origin, command: LeaseCommand, time: Time) {
        if self.refusing {
            return self.outbox.push_back((origin, Reply::Answer(Err(Error::LogRefused))));
        }
        if command == LeaseCommand::List {
            self.leases.lists.push_back(origin);
            if self.leases.lists.len() == 1 {
                // It begins here, and a short one ends here.
                self.step_list();
            }
            return;
        }
        let before = self.store.revision();
        let reply = match self.lease_outcome(command, time) {
            // etcd looks at the revision before it renews.
            Ok(outcome @ LeaseOutcome::KeptAlive { .. }) => Reply::Lease(LeaseAnswer { revision: before, outcome }),
            Ok(outcome) => Reply::Lease(LeaseAnswer { revision: self.store.revision(), outcome }),
            Err(error) => Reply::Answer(Err(error)),
        };
        self.open.replies.push(Waiting { origin, reply, after_removal: false });
    }

    fn lease_outcome(&mut self, command: LeaseCommand, time: Time) -> Result<LeaseOutcome, Error> {
        let now = self.leases.now;
        match command {
            LeaseCommand::Grant { id, ttl } => self.grant(id, ttl, time).map(LeaseOutcome::Granted),
            LeaseCommand::Revoke(id) => self.revoke(id, time).map(|_| LeaseOutcome::Revoked),
            LeaseCommand::KeepAlive(id) => {
                let ttl = self.leases.lessor.keep_alive(id, now);
                self.leases.counts.renewed += u64::from(ttl.is_some());
                if ttl.is_some() {
                    self.take_remaining_back(id, now);
                } else if self.leases.lessor.is_overdue(id, now)
                    && let Err(error) = self.revoke(id, time)
                    && error != Error::NoSpace
                {
                    return Err(error);
                }
                Ok(LeaseOutcome::KeptAlive { id, ttl })
            }
            LeaseCommand::TimeToLive { id, keys } => {
                let keys = if keys { self.list_keys(id)? } else { Vec::new() };
                let standing = self.leases.lessor.standing(id, now);
                Ok(LeaseOutcome::TimeToLive { id, standing, keys })
            }
            LeaseCommand::List => unreachable!("a list is made in turns"),
        }
    }

    fn take_remaining_back(&mut self, id: LeaseId, now: Uptime) {
        if self.leases.lessor.take_remaining_back(id, now) {
            #[cfg(test)]
            if self.planted.keep_remaining {
                return;
            }
            self.open.entries.push(Entry::Remaining { lease: id, seconds: None });
        }
    }

    /// A piece of the list of all leases that is first.
    pub(super) fn step_list(&mut self) {
        let Some(origin) = self.leases.lists.front().copied() else { return };
        let result = self.list();
        if let Some(result) = result.transpose() {
            self.leases.lists.pop_front();
            let reply = result.map_or_else(|error| Reply::Answer(Err(error)), Reply::Lease);
            if self.has_unreleased() {
                self.unreleased().replies.push(Waiting { origin, reply, after_removal: false });
            } else {
                self.outbox.push_back((origin, reply));
            }
        }
    }

    fn list(&mut self) -> Result<Option<LeaseAnswer>, Error> {
        if self.refusing {
            return Err(Error::LogRefused);
        }
        if self.leases.list_began.is_none() {
            self.admit_list(self.leases.lessor.len() * LISTED_BYTES)?;
        }
        let revision = *self.leases.list_began.get_or_insert(self.store.revision());
        let Some(leases) = self.leases.lessor.list(LISTED_PER_TURN) else { return Ok(None) };
        self.leases.list_began = None;
        Ok(Some(LeaseAnswer { revision, outcome: LeaseOutcome::List(leases) }))
    }

    fn list_keys(&mut self, id: LeaseId) -> Result<Vec<Key>, Error> {
        let bytes = self.leases.lessor.keys_of_bytes(id);
        if bytes > SHORT_LIST_BYTES {
            self.admit_list(bytes)?;
        }
        self.leases.key_lists_bytes += bytes;
        Ok(self.leases.lessor.keys_of(id))
    }

    /// There must be memory for a list, by the most that it can be.
    fn admit_list(&self, bytes: usize) -> Result<(), Error> {
        let is_admitted = self.space.admits_scratch(self.scratch_bytes() + bytes);
        if is_admitted { Ok(()) } else { Err(Error::NoMemory) }
    }

    fn grant(&mut self, id: LeaseId, ttl: i64, time: Time) -> Result<Lease, Error> {
        if let Some(raised) = self.refuse_for_space(GRANT_BYTES, time) {
            self.note_applied(raised);
            return Err(Error::NoSpace);
        }
        self.check_corrupt()?;
        if self.store.has_alarm(AlarmKind::NoSpace) {
            return Err(Error::NoSpace);
        }
        let lease = self.leases.lessor.grant(id, ttl, self.leases.now).map_err(|refused| match refused {
            Refused::TtlTooLarge => Error::LeaseTtlTooLarge,
            Refused::Exists => Error::LeaseExists,
        })?;
        self.leases.counts.granted += 1;
        self.leases.ttls.count(lease.ttl.unsigned_abs());
        self.open.entries.push(Entry::Lease { lease, granted: true });
        Ok(lease)
    }

    fn check_corrupt(&self) -> Result<(), Error> {
        if self.store.has_alarm(AlarmKind::Corrupt) { Err(Error::Corrupt) } else { Ok(()) }
    }

    /// Takes a lease away, and with it all its keys, in ascending order and at one revision. Tells how many these were. There
    /// must be room for them in the log, as for every delete.
    fn revoke(&mut self, id: LeaseId, time: Time) -> Result<usize, Error> {
        self.check_corrupt()?;
        if !self.leases.lessor.has_keys_within(id, CHANGE_BYTES, self.store.log_bytes_max()) {
            return Err(Error::NoSpace);
        }
        let Some((lease, keys)) = self.leases.lessor.revoke(id) else {
            return Err(Error::LeaseNotFound { lease: id });
        };
        let count = keys.len();
        if count > 0 {
            let delete = |key| Op::DeleteRange(DeleteRange { range: KeyRange::One(key), prev_kv: false });
            let success = keys.into_iter().map(delete).collect();
            let write = Write::Txn(Txn { compares: Vec::new(), success, failure: Vec::new() });
            // The lessor has let go of the keys, so it need not be told.
            let applied = self.store.apply_with(&write, time, &|_| false);
            assert!(applied.answer.is_ok(), "nothing refuses deletes but what was just looked at");
            self.note_applied(applied.entry);
        }
        let counts = &mut self.leases.counts;
        counts.revoked += 1;
        counts.deletes += count as u64;
        counts.txns += u64::from(count > 1);
        self.open.entries.push(Entry::Lease { lease, granted: false });
        Ok(count)
    }

    /// Revokes what has expired, each lease at a revision of its own, and writes down what others have left, as far as one
    /// turn goes. True when there may be more.
    pub fn expire(&mut self, time: Time) -> bool {
        if !self.may_expire() {
            return false;
        }
        let (mut visits, mut keys) = (VISITS_PER_TURN, KEYS_PER_TURN);
        while keys > 0 {
            let Some(id) = self.leases.lessor.next_expired(self.leases.now, &mut visits) else { break };
            let count = match self.revoke(id, time) {
                Ok(count) => count,
                Err(Error::NoSpace) => {
                    // Others have fewer keys. So many at the most were looked at to see that it has too many.
                    self.leases.lessor.postpone(id, Uptime(self.leases.now.0 + RETRY_MILLISECONDS));
                    keys = keys.saturating_sub(self.store.log_bytes_max() / CHANGE_BYTES + 1);
                    continue;
                }
                Err(_) => break,
            };
            self.leases.counts.expired += 1;
            keys = keys.saturating_sub(count);
        }
        let more_remaining = self.write_remaining();
        visits == 0 || keys == 0 || more_remaining
    }

    fn write_remaining(&mut self) -> bool {
        if !self.may_write_remaining() {
            return false;
        }
        let mut visits = REMAINING_PER_TURN;
        while let Some((lease, seconds)) = self.leases.lessor.next_remaining(self.leases.now, &mut visits) {
            self.open.entries.push(Entry::Remaining { lease, seconds: Some(seconds) });
        }
        visits == 0
    }

    pub fn lease_counts(&self) -> LeaseCounts {
        self.leases.counts
    }

    pub fn lease_ttls(&self) -> &Histogram {
        &self.leases.ttls
    }

    fn may_expire(&self) -> bool {
        !self.refusing && self.check_corrupt().is_ok()
    }

    /// What was written down before stays true, so while space is short the log is left to what makes some.
    fn may_write_remaining(&self) -> bool {
        self.may_expire() && !self.space.is_short && !self.store.has_alarm(AlarmKind::NoSpace)
    }

    /// When to look at leases again; none without any that may expire, or has something to be written down.
    pub fn next_expiry(&self) -> Option<Uptime> {
        let remaining = self.leases.lessor.next_remaining_due().filter(|_| self.may_write_remaining());
        let expiry = self.leases.lessor.next_deadline().filter(|_| self.may_expire());
        [expiry, remaining].into_iter().flatten().min()
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::shard::writer::Pace;
    use crate::sim::all_keys;
    use crate::store::Store;
    use crate::store::command::{Answer, Outcome, Put, PutLease, PutValue, Range, Read};
    use crate::types::{Alarm, Change, Position, Revision};

    fn writer() -> Writer {
        let lessor = Lessor::new(1);
        Writer::new(Store::new(), Pace::default(), Position(1)).with_leases(lessor, Uptime(0))
    }

    fn origin(token: u32) -> Origin {
        Origin { shard: 0, token }
    }

    /// Seals what is open, makes it durable, and gives the entries and the replies.
    fn settle(writer: &mut Writer) -> (Vec<Entry>, Vec<Reply>) {
        let sealed = writer.seal().map(|(position, entries)| (position, entries.to_vec()));
        let entries = sealed.map_or(Vec::new(), |(position, entries)| {
            writer.durable(position);
            entries
        });
        (entries, std::iter::from_fn(|| writer.next_reply()).map(|(_, reply)| reply).collect())
    }

    fn ask(writer: &mut Writer, command: LeaseCommand) -> (Vec<Entry>, Result<LeaseAnswer, Error>) {
        writer.lease(origin(1), command, Time(1));
        match settle(writer) {
            (entries, replies) if replies.len() == 1 => match &replies[0] {
                Reply::Lease(answer) => (entries, Ok(answer.clone())),
                Reply::Answer(Err(error)) => (entries, Err(*error)),
                other => panic!("{other:?}"),
            },
            (_, replies) => panic!("{replies:?}"),
        }
    }

    fn grant(writer: &mut Writer, id: i64, ttl: i64) {
        let (_, answer) = ask(writer, LeaseCommand::Grant { id: LeaseId(id), ttl });
        let lease = Lease { id: LeaseId(id), ttl };
        assert_eq!(answer.map(|answer| answer.outcome), Ok(LeaseOutcome::Granted(lease)));
    }

    fn put(writer: &mut Writer, key: &'static str, lease: i64) -> Result<Answer, Error> {
        let (value, lease) = (PutValue::Set("v".into()), PutLease::Set(LeaseId(lease)));
        let put = Put { key: key.into(), value, lease, prev_kv: false };
        writer.write(origin(2), &Write::Put(put), Time(1), false);
        match settle(writer).1.pop() {
            Some(Reply::Answer(answer)) => answer,
            other => panic!("{other:?}"),
        }
    }

    fn keys(writer: &mut Writer) -> u64 {
        let range = Range { count_only: true, ..all_keys() };
        writer.read(origin(3), &Read::Range(range));
        match settle(writer).1.pop() {
            Some(Reply::Answer(Ok(Answer { result: Outcome::Range(rows), .. }))) => rows.count,
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn the_keep_alive_behind_a_written_remaining_time_is_an_entry_and_the_next_one_is_none() {
        let mut lessor = Lessor::new(1);
        lessor.write_remaining_every(Some(Duration::from_secs(5)));
        let mut writer = Writer::new(Store::new(), Pace::default(), Position(1)).with_leases(lessor, Uptime(0));
        grant(&mut writer, 7, 60);
        assert_eq!(writer.next_expiry(), Some(Uptime(5_000)));
        writer.set_uptime(Uptime(5_000));
        writer.set_short_of_space(true);
        assert!(!writer.expire(Time(1)));
        assert_eq!(settle(&mut writer).0, [], "a log that is short of space is left to others");
        writer.set_short_of_space(false);
        assert!(!writer.expire(Time(1)));
        let remaining = |seconds| Entry::Remaining { lease: LeaseId(7), seconds };
        assert_eq!(settle(&mut writer).0, [remaining(Some(55))]);
        let outcome = LeaseOutcome::KeptAlive { id: LeaseId(7), ttl: Some(60) };
        let kept = Ok(LeaseAnswer { revision: Revision(1), outcome });
        assert_eq!(ask(&mut writer, LeaseCommand::KeepAlive(LeaseId(7))), (vec![remaining(None)], kept.clone()));
        assert_eq!(ask(&mut writer, LeaseCommand::KeepAlive(LeaseId(7))), (Vec::new(), kept));
    }

    #[test]
    fn the_keys_of_a_lease_leave_in_their_order_at_one_revision_in_front_of_it() {
        let mut writer = writer();
        grant(&mut writer, 7, 60);
        for key in ["c", "a", "b"] {
            put(&mut writer, key, 7).expect("a put");
        }
        put(&mut writer, "b", 0).expect("a put that takes the key from the lease");
        let (entries, answer) = ask(&mut writer, LeaseCommand::Revoke(LeaseId(7)));
        let expected = LeaseAnswer { revision: Revision(6), outcome: LeaseOutcome::Revoked };
        assert_eq!(answer, Ok(expected));
        let [Entry::Batch(batch), Entry::Lease { lease, granted: false }] = &entries[..] else { panic!("{entries:?}") };
        assert_eq!((lease.id, batch.revision), (LeaseId(7), Revision(6)));
        assert!(batch.changes.iter().all(|change| matches!(change, Change::Delete { .. })));
        assert_eq!(batch.changes.iter().map(Change::key).collect::<Vec<_>>(), [b"a", b"c"]);
        assert_eq!((writer.lease_counts().deletes, writer.lease_counts().txns), (2, 1));
        let again = ask(&mut writer, LeaseCommand::Revoke(LeaseId(7)));
        assert_eq!(again, (Vec::new(), Err(Error::LeaseNotFound { lease: LeaseId(7) })));
        assert_eq!(put(&mut writer, "d", 7), Err(Error::LeaseNotFound { lease: LeaseId(7) }));
    }

    #[test]
    fn a_lease_expires_behind_its_time_and_a_keep_alive_costs_no_entry() {
        let mut writer = writer();
        grant(&mut writer, 7, 2);
        put(&mut writer, "a", 7).expect("a put");
        writer.set_uptime(Uptime(1_500));
        let (entries, kept) = ask(&mut writer, LeaseCommand::KeepAlive(LeaseId(7)));
        assert_eq!(entries, []);
        let outcome = LeaseOutcome::KeptAlive { id: LeaseId(7), ttl: Some(2) };
        assert_eq!(kept, Ok(LeaseAnswer { revision: Revision(2), outcome }));
        for now in [2_001, 2_500, 3_500] {
            writer.set_uptime(Uptime(now));
            assert!(!writer.expire(Time(1)));
            assert_eq!(keys(&mut writer), 1, "at {now}");
        }
        assert!(writer.next_expiry() > Some(Uptime(3_500)));
        writer.set_uptime(Uptime(4_000));
        writer.expire(Time(1));
        assert_eq!(settle(&mut writer).0.len(), 2);
        assert_eq!((keys(&mut writer), writer.leases().len(), writer.next_expiry()), (0, 0, None));
    }

    #[test]
    fn a_lease_of_more_keys_than_the_log_has_room_for_ends_once_it_has_and_holds_no_other_up() {
        let mut writer = writer();
        [(7, ["a", "b"]), (8, ["c", "d"])].into_iter().for_each(|(id, keys)| {
            grant(&mut writer, id, 2);
            keys.into_iter().for_each(|key| drop(put(&mut writer, key, id).expect("a put")));
        });
        put(&mut writer, "e", 7).expect("a put");
        let room = 2 * (1 + CHANGE_BYTES);
        writer.set_log_bytes_max(room);
        assert_eq!(ask(&mut writer, LeaseCommand::Revoke(LeaseId(7))), (Vec::new(), Err(Error::NoSpace)));
        writer.set_uptime(Uptime(2_500));
        let (entries, late) = ask(&mut writer, LeaseCommand::KeepAlive(LeaseId(7)));
        let outcome = LeaseOutcome::KeptAlive { id: LeaseId(7), ttl: None };
        assert_eq!(
            (entries, late.map(|late| late.outcome)),
            (Vec::new(), Ok(outcome)),
            "its time is over all the same"
        );
        assert!(!writer.expire(Time(1)), "nothing more can be done now");
        assert_eq!(settle(&mut writer).0.len(), 2);
        assert_eq!((keys(&mut writer), writer.leases().len(), writer.store().log_bytes_max()), (3, 1, 0));
        assert!(writer.next_expiry() > Some(Uptime(3_500)), "it is not looked at all the time");
        writer.set_log_bytes_max(room + 1 + CHANGE_BYTES);
        writer.set_uptime(Uptime(3_750));
        writer.expire(Time(1));
        settle(&mut writer);
        assert_eq!((keys(&mut writer), writer.leases().len(), writer.next_expiry()), (0, 0, None));
    }

    #[test]
    fn a_lease_whose_time_is_over_is_revoked_by_the_keep_alive_that_comes_too_late() {
        let mut writer = writer();
        grant(&mut writer, 7, 2);
        put(&mut writer, "a", 7).expect("a put");
        writer.set_uptime(Uptime(2_001));
        let (entries, late) = ask(&mut writer, LeaseCommand::KeepAlive(LeaseId(7)));
        assert_eq!(entries.len(), 2, "the deletion and the end of the lease");
        let outcome = LeaseOutcome::KeptAlive { id: LeaseId(7), ttl: None };
        assert_eq!(late, Ok(LeaseAnswer { revision: Revision(2), outcome }), "the revision before");
    }

    #[test]
    fn leases_of_one_time_expire_in_bounded_turns() {
        let mut writer = writer();
        for id in 1..=10_000 {
            grant(&mut writer, id, 5);
        }
        writer.set_uptime(Uptime(9_000));
        let mut turns = 0;
        while writer.expire(Time(1)) {
            turns += 1;
            assert!(settle(&mut writer).0.len() <= VISITS_PER_TURN);
        }
        settle(&mut writer);
        assert_eq!((turns, writer.leases().len()), (10_000 / VISITS_PER_TURN, 0));
    }

    #[test]
    fn a_list_takes_turns_shows_the_moment_it_began_and_waits_for_what_is_not_durable() {
        let mut writer = writer();
        for id in 1..=5_000 {
            writer.lease(origin(1), LeaseCommand::Grant { id: LeaseId(id), ttl: 60 }, Time(1));
        }
        settle(&mut writer);
        writer.lease(origin(7), LeaseCommand::List, Time(1));
        writer.lease(origin(8), LeaseCommand::List, Time(1));
        assert!(writer.step() && writer.scratch_bytes() >= 5_000 * LISTED_BYTES);
        writer.lease(origin(2), LeaseCommand::Revoke(LeaseId(5_000)), Time(1));
        let mut turns = 1;
        while writer.step() {
            turns += 1;
        }
        assert!((20..=30).contains(&turns), "two lists in {turns} turns");
        assert!(writer.next_reply().is_none(), "the revocation is not durable");
        let lists: Vec<usize> = settle(&mut writer)
            .1
            .into_iter()
            .filter_map(|reply| match reply {
                Reply::Lease(LeaseAnswer { outcome: LeaseOutcome::List(leases), .. }) => Some(leases.len()),
                _ => None,
            })
            .collect();
        assert_eq!((lists, writer.scratch_bytes()), (vec![5_000, 4_999], 0));
        writer.lease(origin(9), LeaseCommand::List, Time(1));
        writer.refuse();
        assert!(!writer.step());
        assert!(matches!(writer.next_reply(), Some((_, Reply::Answer(Err(Error::LogRefused))))));
    }

    #[test]
    fn lists_of_keys_are_held_until_they_are_told_and_refused_without_memory() {
        let mut writer = writer();
        (1..3).for_each(|id| grant(&mut writer, id, 60));
        let keys = ["a", "b"].map(|key| key.repeat(10_000));
        for key in &keys {
            let (value, lease) = (PutValue::Set("v".into()), PutLease::Set(LeaseId(1)));
            let put = Put { key: key.clone().into(), value, lease, prev_kv: false };
            writer.write(origin(2), &Write::Put(put), Time(1), false);
        }
        assert!(put(&mut writer, "short", 2).is_ok());
        let ask_for = |writer: &mut Writer, id| {
            writer.lease(origin(1), LeaseCommand::TimeToLive { id: LeaseId(id), keys: true }, Time(1));
        };
        ask_for(&mut writer, 1);
        let bytes = writer.scratch_bytes();
        assert!((20_000..20_200).contains(&bytes), "{bytes}");
        writer.set_memory_room(bytes - 1);
        ask_for(&mut writer, 1);
        ask_for(&mut writer, 2);
        let lists = settle(&mut writer).1.into_iter().map(|reply| match reply {
            Reply::Lease(LeaseAnswer { outcome: LeaseOutcome::TimeToLive { keys, .. }, .. }) => Ok(keys.len()),
            Reply::Answer(Err(error)) => Err(error),
            other => panic!("{other:?}"),
        });
        assert_eq!(lists.collect::<Vec<_>>(), [Ok(2), Err(Error::NoMemory), Ok(1)]);
        assert_eq!(writer.scratch_bytes(), 0);
        // What is thrown away is held no longer either.
        ask_for(&mut writer, 2);
        writer.refuse();
        assert_eq!((settle(&mut writer).1.len(), writer.scratch_bytes()), (1, 0));
    }

    #[test]
    fn an_alarm_for_space_refuses_grants_and_lets_revocations_pass() {
        let mut writer = writer();
        grant(&mut writer, 7, 60);
        let alarm = |kind| Write::Alarm { alarm: Alarm { member: 1, kind }, active: true };
        writer.write(origin(4), &alarm(AlarmKind::NoSpace), Time(1), false);
        settle(&mut writer);
        let refused = ask(&mut writer, LeaseCommand::Grant { id: LeaseId(8), ttl: 60 });
        assert_eq!(refused.1, Err(Error::NoSpace));
        assert!(ask(&mut writer, LeaseCommand::Revoke(LeaseId(7))).1.is_ok());
        writer.write(origin(4), &alarm(AlarmKind::Corrupt), Time(1), false);
        settle(&mut writer);
        assert_eq!(writer.next_expiry(), None, "nothing is looked for that may not be revoked");
        for command in [LeaseCommand::Grant { id: LeaseId(8), ttl: 60 }, LeaseCommand::Revoke(LeaseId(7))] {
            assert_eq!(ask(&mut writer, command).1.map(drop), Err(Error::Corrupt));
        }
    }
}
