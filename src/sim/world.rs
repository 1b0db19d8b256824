//! One seeded world: clients that write, read and watch through shards that run when the seed says.

use std::collections::{BTreeSet, HashMap};
use std::sync::Arc;

use bytes::Bytes;

use crate::backend::{Command, HistoryError, Identity, LeaseAnswer, LeaseCommand, Reply};
use crate::random::Random;
use crate::service::recipes::awaited::Awaited;
use crate::shard::embedded::Embedded;
use crate::shard::history::{Appender, Committed};
use crate::shard::intake::Intake;
use crate::shard::mesh::{self, Link, Request, Response};
use crate::shard::writer::{Origin, Pace, Writer};
use crate::sim::late_log::LateLog;
use crate::sim::leases;
use crate::sim::model::{Model, Op, Row};
use crate::sim::plain_range;
use crate::sim::rules::{Asked, Observer, Truth};
use crate::store::Store;
use crate::store::command::{self as store, Answer, Error, Outcome, Put, PutLease, PutValue, Read};
use crate::store::command::{Txn, Write};
use crate::types::{KeyRange, KeyValue, LeaseId, Position, Revision, Time};
use crate::watch::hub::{self, Hub, HubConfig, StreamId};

const HISTORY_TOKEN: u32 = u32::MAX;

/// Bugs that are switched on for a run, to show that it finds them.
#[derive(Clone, Copy, Default)]
pub struct Planted {
    pub watch: hub::Planted,
    pub store: crate::store::Planted,
    pub writer: crate::shard::writer::Planted,
}

pub struct SimShard {
    hub: Hub,
    intake: Intake,
    link: Link,
    next_token: u32,
    /// What each request under way must be answered with.
    pub asked: HashMap<u32, Expected>,
}

/// What is known of a request before its answer.
pub enum Expected {
    /// Filled when the writer has applied it: the revision, or the refusal.
    Write(Option<Result<i64, Refusal>>),
    Lease(Option<Result<LeaseAnswer, Error>>),
    /// The leases of each moment since it was asked for.
    List(Vec<BTreeSet<i64>>),
    Read {
        range: KeyRange,
        revision: i64,
        told_before: i64,
    },
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Refusal {
    Compacted,
    Future,
    NoLease,
}

/// A client with one watch stream on one shard.
struct Client {
    shard: usize,
    stream: StreamId,
    observer: Observer,
    /// It does not read at the moment.
    stalled: bool,
}

/// How wild this seed is.
struct Mood {
    shards: usize,
    late_log_percent: u64,
    stall_percent: u64,
    reconnect_percent: u64,
    compact_percent: u64,
    turn_budget_max: u64,
    clients: usize,
}

impl Mood {
    fn draw(random: &mut Random) -> Mood {
        Mood {
            shards: 1 + random.below(4) as usize,
            late_log_percent: random.below(90),
            stall_percent: *random.pick(&[0, 2, 10, 30]),
            reconnect_percent: *random.pick(&[0, 1, 5]),
            compact_percent: *random.pick(&[0, 1, 3]),
            turn_budget_max: *random.pick(&[1, 3, 10, 100, 1_000]),
            clients: 1 + random.below(8) as usize,
        }
    }
}

pub struct World {
    pub random: Random,
    mood: Mood,
    pub model: Model,
    /// The compaction that the writer has applied; -1 is never.
    compacted: i64,
    pub log: LateLog,
    pub embedded: Embedded,
    committed: Arc<Committed>,
    pub shards: Vec<SimShard>,
    clients: Vec<Client>,
    /// The highest revision anyone was told of.
    told: i64,
}

impl World {
    pub fn new(seed: u64, planted: Planted) -> World {
        let mut random = Random::new(seed);
        let mood = Mood::draw(&mut random);
        let pace = Pace { read_rows: 2, compact_visits: 3, history_batches: 5, history_bytes: 500 };
        let mut store = Store::new();
        store.planted = planted.store;
        let mut writer = Writer::new(store, pace, Position(1));
        writer.planted = planted.writer;
        let appender = Appender::new(Revision::FIRST, None);
        let committed = appender.committed();
        let mut ports = Vec::new();
        let shards = (0..mood.shards)
            .map(|_| {
                let (link, port) = mesh::pair();
                ports.push(port);
                let mut hub = Hub::new(hub_config(&mut random), Revision::FIRST);
                hub.planted = planted.watch;
                let intake = Intake::new(appender.reader(), Arc::clone(&committed), Revision::FIRST);
                SimShard { hub, intake, link, next_token: 0, asked: HashMap::new() }
            })
            .collect();
        let log = LateLog::default();
        leases::begin_time();
        let mut embedded = Embedded::new(writer, Box::new(log.clone()), appender, ports);
        embedded.start_clock(leases::uptime);
        let mut world = World {
            random,
            mood,
            model: Model::new(),
            compacted: -1,
            log,
            embedded,
            committed,
            shards,
            clients: Vec::new(),
            told: 1,
        };
        for _ in 0..world.mood.clients {
            world.connect();
        }
        world
    }

    fn connect(&mut self) {
        let shard = self.random.below(self.shards.len() as u64) as usize;
        let token = self.clients.len() as u64;
        let stream = self.shards[shard].hub.open_stream(token);
        self.clients.push(Client { shard, stream, observer: Observer::default(), stalled: false });
    }

    /// One thing happens.
    pub fn step(&mut self) {
        match self.random.below(115) {
            100..110 => self.client_leases(),
            110.. => self.time_passes(),
            0..25 => self.client_writes(),
            25..30 => self.client_reads(),
            30..45 => self.client_watches(),
            45..60 => self.writer_turn(),
            60..80 => self.shard_turn(),
            80..95 => self.client_receives(),
            95..97 => self.client_stalls_or_goes_on(),
            _ => self.client_reconnects(),
        }
        if !self.random.chance(self.mood.late_log_percent) {
            self.log.complete(&mut self.random);
        }
    }

    fn any_client(&mut self) -> usize {
        self.random.below(self.clients.len() as u64) as usize
    }

    fn key(&mut self) -> Bytes {
        const KEYS: [&str; 9] = ["a", "aa", "ab", "b", "ba", "c", "d", "\u{1}", "zz"];
        Bytes::from(*self.random.pick(&KEYS))
    }

    fn range(&mut self) -> KeyRange {
        let (start, end) = (self.key(), self.key());
        match self.random.below(10) {
            0..5 => KeyRange::One(start),
            5..9 => KeyRange::Span { start: start.clone().min(end.clone()), end: end.max(start) },
            _ => KeyRange::From(start),
        }
    }

    fn client_writes(&mut self) {
        let write = if self.random.chance(self.mood.compact_percent) {
            let upto = self.model.revision() as u64 + 2;
            Write::Compact(Revision(self.random.below(upto) as i64))
        } else {
            Write::Txn(self.transaction())
        };
        let shard = self.random.below(self.shards.len() as u64) as usize;
        self.send(shard, Command::Write(write), Expected::Write(None));
    }

    /// One to four operations; no key is put twice, since the service refuses that.
    fn transaction(&mut self) -> Txn {
        let mut put = Vec::new();
        let mut success = Vec::new();
        for _ in 0..1 + self.random.below(4) {
            let key = self.key();
            if self.random.chance(75) && !put.contains(&key) {
                put.push(key.clone());
                let length = if self.random.chance(5) { 400 } else { self.random.below(12) };
                let value = Bytes::from(vec![b'0' + self.random.below(10) as u8; length as usize]);
                // Perhaps one that is not there.
                let lease = if self.random.chance(30) { self.any_lease() } else { LeaseId::NONE };
                let (value, lease) = (PutValue::Set(value), PutLease::Set(lease));
                success.push(store::Op::Put(Put { key, value, lease, prev_kv: false }));
            } else if put.is_empty() {
                let range = self.range();
                success.push(store::Op::DeleteRange(store::DeleteRange { range, prev_kv: false }));
            }
        }
        Txn { compares: Vec::new(), success, failure: Vec::new() }
    }

    fn client_reads(&mut self) {
        let range = self.range();
        let revision = match self.random.below(3) {
            0 => 0,
            _ => self.random.below(self.told as u64 + 1) as i64,
        };
        let read = plain_range(range.clone(), revision);
        let shard = self.random.below(self.shards.len() as u64) as usize;
        let expected = Expected::Read { range, revision, told_before: self.told };
        self.send(shard, Command::Read(Read::Range(read)), expected);
    }

    pub fn send(&mut self, shard: usize, command: Command, expected: Expected) {
        let shard = &mut self.shards[shard];
        let token = shard.next_token;
        shard.next_token += 1;
        shard.asked.insert(token, expected);
        shard.link.send(Request { token, command });
    }

    fn client_watches(&mut self) {
        let client = self.any_client();
        let request = match self.random.below(10) {
            0..7 => {
                let asked = self.wish();
                let create = create_of(&asked);
                self.clients[client].observer.pending.push_back(asked);
                hub::Request::Create(create)
            }
            7..9 => {
                let mut ids: Vec<i64> = self.clients[client].observer.watches.keys().copied().collect();
                ids.sort_unstable();
                // Perhaps one that does not exist, or does not yet.
                ids.push(self.random.below(8) as i64);
                let watch_id = *self.random.pick(&ids);
                *self.clients[client].observer.canceling.entry(watch_id).or_default() += 1;
                hub::Request::Cancel { watch_id }
            }
            _ => hub::Request::Progress,
        };
        self.request(client, request);
    }

    fn request(&mut self, client: usize, request: hub::Request) {
        let Client { shard, stream, .. } = self.clients[client];
        let shard = &mut self.shards[shard];
        shard.hub.request(stream, shard.intake.committed(), request);
    }

    fn wish(&mut self) -> Asked {
        let head = self.model.revision();
        let start = match self.random.below(8) {
            0..4 => 0,
            4..6 => self.random.below(head as u64 + 1) as i64,
            6 => head + self.random.below(6) as i64,
            _ => *self.random.pick(&[-1, 1, head]),
        };
        let watch_id = if self.random.chance(15) { *self.random.pick(&[5, 7, -3, 2]) } else { 0 };
        let range = if self.random.chance(3) {
            KeyRange::Span { start: Bytes::from("b"), end: Bytes::from("a") }
        } else {
            self.range()
        };
        // An empty span other than the one meant to be refused would be refused as well; the rules know both.
        Asked {
            range,
            start,
            watch_id,
            no_put: self.random.chance(10),
            no_delete: self.random.chance(10),
            prev_kv: self.random.chance(30),
            progress_notify: self.random.chance(30),
            fragment: self.random.chance(30),
        }
    }

    fn writer_turn(&mut self) {
        for _ in 0..self.random.below(4) {
            let shard = self.random.below(self.shards.len() as u64) as usize;
            let Some(Request { token, command }) = self.embedded.receive(shard) else { continue };
            self.model_applies(shard, token, &command);
            let origin = Origin { shard: shard as u16, token };
            self.embedded.command(origin, command, Time(1));
        }
        if self.random.chance(50) {
            self.expire();
        }
        self.embedded.settle();
    }

    /// The model applies in the writer's order, at the moment the writer does.
    fn model_applies(&mut self, shard: usize, token: u32, command: &Command) {
        if let Command::Lease(command) = command {
            if !matches!(command, LeaseCommand::List) {
                let outcome = self.model_leases(command);
                self.shards[shard].asked.insert(token, Expected::Lease(Some(outcome)));
            }
            return;
        }
        let Command::Write(write) = command else { return };
        let is_leased = |op: &store::Op| match op {
            store::Op::Put(Put { lease: PutLease::Set(lease), .. }) => {
                *lease == LeaseId::NONE || self.model.leases.contains_key(&lease.0)
            }
            _ => true,
        };
        let outcome = match write {
            Write::Compact(revision) if revision.0 <= self.compacted => Err(Refusal::Compacted),
            Write::Compact(revision) if revision.0 > self.model.revision() => Err(Refusal::Future),
            Write::Compact(revision) => {
                self.compacted = revision.0;
                Ok(self.model.revision())
            }
            Write::Txn(txn) if !txn.success.iter().all(is_leased) => Err(Refusal::NoLease),
            Write::Txn(txn) => Ok(self.model.apply(&txn.success.iter().map(op_of).collect::<Vec<_>>())),
            Write::Put(_) | Write::DeleteRange(_) | Write::Alarm { .. } => {
                unreachable!("the world writes in transactions")
            }
        };
        let Some(Expected::Write(slot)) = self.shards[shard].asked.get_mut(&token) else { panic!("an unknown write") };
        *slot = Some(outcome);
    }

    fn shard_turn(&mut self) {
        let index = self.random.below(self.shards.len() as u64) as usize;
        let budget = 1 + self.random.below(self.mood.turn_budget_max) as usize;
        self.turn(index, budget);
    }

    /// What the loop of a shard does in a turn. True when something is left.
    fn turn(&mut self, index: usize, budget: usize) -> bool {
        while let Some(Response { token, reply }) = self.shards[index].link.receive() {
            match reply {
                Reply::History(history) => {
                    assert_eq!(token, HISTORY_TOKEN);
                    let history = history.map_err(|HistoryError::Compacted(revision)| revision);
                    self.shards[index].hub.handle_history(history);
                }
                Reply::Answer(answer) => match answer {
                    Err(error) if self.asked_of_leases(index, token) => self.lease_answered(index, token, Err(error)),
                    answer => self.answered(index, token, answer),
                },
                Reply::Lease(answer) => self.lease_answered(index, token, Ok(answer)),
                Reply::Alarms { .. } | Reply::Status(_) | Reply::Defragmented(_) => {
                    unreachable!("nobody asks")
                }
            }
        }
        let shard = &mut self.shards[index];
        shard.link.refill();
        let mut more = shard.intake.feed(&mut shard.hub, &mut Awaited::new(shard.intake.received()));
        more |= shard.hub.turn(budget);
        if let Some(from) = shard.hub.next_history_request() {
            shard.link.send(Request { token: HISTORY_TOKEN, command: Command::History { from } });
            more = true;
        }
        while shard.hub.next_ready().is_some() {}
        more
    }

    fn answered(&mut self, shard: usize, token: u32, answer: Result<Answer, Error>) {
        let expected = self.shards[shard].asked.remove(&token).expect("one answer a request");
        if let Ok(answer) = &answer {
            self.told(answer.revision);
        }
        match expected {
            Expected::Write(applied) => {
                let answer = answer.map(|answer| answer.revision.0).map_err(refusal_of);
                assert_eq!(Some(answer), applied, "the answer to a write is what the model says");
            }
            Expected::Read { range, revision, told_before } => {
                self.read_answered(answer, &range, revision, told_before)
            }
            Expected::Lease(_) | Expected::List(_) => unreachable!("that has answers of its own"),
        }
    }

    pub fn told(&mut self, revision: Revision) {
        let committed = self.committed.revision();
        assert!(revision <= committed, "a reply of {revision} left before it was committed");
        self.told = self.told.max(revision.0);
    }

    fn read_answered(&self, answer: Result<Answer, Error>, range: &KeyRange, revision: i64, told_before: i64) {
        match answer {
            Ok(Answer { revision: header, result: Outcome::Range(rows) }) => {
                assert!(header.0 >= told_before, "a read at {header} although {told_before} had been told");
                let at = if revision > 0 { revision } else { header.0 };
                let rows: Vec<Row> = rows.rows.iter().map(row_of).collect();
                assert_eq!(rows, self.model.range(range, at), "a read shows the state of one revision");
            }
            Ok(answer) => panic!("no answer to a range: {answer:?}"),
            Err(Error::Compacted { .. }) => assert!(revision > 0 && revision < self.compacted),
            Err(error) => panic!("a read of {revision} with {told_before} told was refused: {error:?}"),
        }
    }

    fn client_receives(&mut self) {
        let client = self.any_client();
        if !self.clients[client].stalled {
            let bytes_max = 1 + self.random.below(600) as usize;
            self.receive(client, bytes_max);
        }
    }

    fn receive(&mut self, client: usize, bytes_max: usize) -> bool {
        let Client { shard, stream, observer, .. } = &mut self.clients[client];
        let Some(bytes) = self.shards[*shard].hub.take_output(*stream, bytes_max) else { return false };
        assert!(bytes.len() <= bytes_max, "no more than the window takes");
        let committed = self.committed.revision().0;
        let compacted = self.committed.compacted().map_or(-1, |revision| revision.0);
        observer.receive(&bytes, &Truth { model: &self.model, committed, compacted });
        true
    }

    fn client_stalls_or_goes_on(&mut self) {
        let client = self.any_client();
        if self.clients[client].stalled {
            self.clients[client].stalled = false;
        } else if self.random.chance(self.mood.stall_percent) {
            self.clients[client].stalled = true;
        }
        if self.random.chance(50) {
            let Client { shard, stream, .. } = self.clients[client];
            self.shards[shard].hub.progress_due(stream);
        }
    }

    /// The client goes and comes back on any shard, with its watches from where it stood.
    fn client_reconnects(&mut self) {
        if !self.random.chance(self.mood.reconnect_percent) {
            return;
        }
        let index = self.any_client();
        let Client { shard, stream, .. } = self.clients[index];
        self.shards[shard].hub.close_stream(stream);
        let shard = self.random.below(self.shards.len() as u64) as usize;
        let stream = self.shards[shard].hub.open_stream(index as u64);
        let client = Client { shard, stream, observer: Observer::default(), stalled: false };
        let before = std::mem::replace(&mut self.clients[index], client).observer;
        let mut resumed: Vec<(i64, Asked)> =
            before.watches.into_iter().map(|(id, seen)| (id, Asked { start: seen.next, ..seen.asked })).collect();
        resumed.sort_by_key(|(id, _)| *id);
        for (_, asked) in resumed {
            let create = create_of(&asked);
            self.clients[index].observer.pending.push_back(asked);
            self.request(index, hub::Request::Create(create));
        }
    }

    /// From here on nothing fails: everyone reads, the disk keeps up, and everything gets its turn until nothing is left.
    pub fn heal_and_run_until_quiet(&mut self) {
        for _ in 0..100_000 {
            let mut busy = false;
            for shard in 0..self.shards.len() {
                while let Some(Request { token, command }) = self.embedded.receive(shard) {
                    self.model_applies(shard, token, &command);
                    self.embedded.command(Origin { shard: shard as u16, token }, command, Time(1));
                    busy = true;
                }
            }
            busy |= self.expire();
            busy |= self.embedded.settle();
            self.log.complete_all();
            busy |= self.embedded.settle();
            for shard in 0..self.shards.len() {
                busy |= self.turn(shard, 50);
            }
            for client in 0..self.clients.len() {
                while self.receive(client, 10_000) {
                    busy = true;
                }
            }
            if !busy {
                return self.everyone_is_at_the_head();
            }
        }
        panic!("the world does not come to rest");
    }

    fn everyone_is_at_the_head(&mut self) {
        let committed = self.committed.revision().0;
        assert_eq!(committed, self.model.revision(), "everything written is committed");
        let compacted = self.compacted;
        for client in &self.clients {
            let truth = Truth { model: &self.model, committed, compacted };
            assert!(client.observer.pending.is_empty(), "every create is answered: {:?}", client.observer.pending);
            let behind = client.observer.behind(&truth);
            assert!(behind.is_empty(), "live: watches {behind:?} never reached {committed}");
        }
        self.leases_are_those_of_the_model();
        for shard in &self.shards {
            assert!(shard.asked.is_empty(), "every request is answered");
            assert_eq!(shard.hub.revision().0, committed);
        }
    }
}

fn hub_config(random: &mut Random) -> HubConfig {
    HubConfig {
        identity: Identity { cluster_id: 1, member_id: 2, raft_term: 3 }.into(),
        backlog_bytes_max: *random.pick(&[100, 400, 4_000]),
        fragment_bytes: 300,
        history_bytes_max: *random.pick(&[0, 1_000, 1_000_000]),
        ..HubConfig::default()
    }
}

fn create_of(asked: &Asked) -> hub::Create {
    hub::Create {
        range: asked.range.clone(),
        start: asked.start,
        watch_id: asked.watch_id,
        no_put: asked.no_put,
        no_delete: asked.no_delete,
        prev_kv: asked.prev_kv,
        progress_notify: asked.progress_notify,
        fragment: asked.fragment,
    }
}

fn op_of(op: &store::Op) -> Op {
    match op {
        store::Op::Put(Put { key, value: PutValue::Set(value), lease: PutLease::Set(lease), .. }) => {
            Op::Put { key: key.to_vec(), value: value.to_vec(), lease: lease.0 }
        }
        store::Op::DeleteRange(delete) => Op::Delete(delete.range.clone()),
        other => unreachable!("the world does not write {other:?}"),
    }
}

fn row_of(kv: &KeyValue) -> Row {
    Row {
        key: kv.key().to_vec(),
        value: kv.value().to_vec(),
        create_revision: kv.create_revision().0,
        mod_revision: kv.mod_revision().0,
        version: kv.version(),
        lease: kv.lease().0,
    }
}

fn refusal_of(error: Error) -> Refusal {
    match error {
        Error::Compacted { .. } => Refusal::Compacted,
        Error::FutureRevision { .. } => Refusal::Future,
        Error::LeaseNotFound { .. } => Refusal::NoLease,
        other => panic!("no write of the world is refused with {other:?}"),
    }
}

fn run(seed: u64, planted: Planted) {
    let mut world = World::new(seed, planted);
    for _ in 0..1_500 {
        world.step();
    }
    world.heal_and_run_until_quiet();
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sim::seeds;

    #[test]
    fn watchers_and_readers_see_what_the_model_says() {
        for seed in seeds(300) {
            let outcome = std::panic::catch_unwind(|| run(seed, Planted::default()));
            assert!(outcome.is_ok(), "seed {seed} fails: TARSIER_SEEDS={seed}..{}", seed + 1);
        }
    }

    /// Whether one of the first 200 seeds finds the planted bug.
    fn finds(planted: Planted) -> bool {
        (0..200).any(|seed| std::panic::catch_unwind(|| run(seed, planted)).is_err())
    }

    fn watch_bug(plant: impl FnOnce(&mut hub::Planted)) -> Planted {
        let mut planted = Planted::default();
        plant(&mut planted.watch);
        planted
    }

    #[test]
    fn progress_told_before_queued_events_is_found() {
        assert!(finds(watch_bug(|planted| planted.progress_before_events = true)));
    }

    #[test]
    fn a_resume_that_replays_from_an_older_revision_is_found() {
        assert!(finds(watch_bug(|planted| planted.resumes_too_early = true)));
    }

    #[test]
    fn an_event_told_twice_is_found() {
        assert!(finds(watch_bug(|planted| planted.tells_twice = true)));
    }

    #[test]
    fn events_dropped_for_a_slow_watcher_are_found() {
        assert!(finds(watch_bug(|planted| planted.drops_when_slow = true)));
    }

    #[test]
    fn a_delete_lost_at_the_compacted_revision_is_found() {
        let mut planted = Planted::default();
        planted.store.lost_delete_at_compaction = true;
        assert!(finds(planted));
    }

    #[test]
    fn an_old_event_told_to_a_watch_from_the_future_is_found() {
        assert!(finds(watch_bug(|planted| planted.future_sees_present = true)));
    }

    #[test]
    fn a_transaction_split_over_two_responses_is_found() {
        assert!(finds(watch_bug(|planted| planted.splits_transactions = true)));
    }

    #[test]
    fn a_member_passed_over_because_of_a_removal_behind_the_cursor_is_found() {
        assert!(finds(watch_bug(|planted| planted.passes_swapped_by = true)));
    }

    #[test]
    fn a_reply_released_before_the_committed_revision_is_found() {
        let mut planted = Planted::default();
        planted.writer.release_before_commit = true;
        assert!(finds(planted));
    }
}
