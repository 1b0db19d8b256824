//! Tests only: many calls over a real store, whose replies and batches come late and in any order that a shard allows.
//!
//! Clients lock, campaign, observe, let go, go away, and lose their leases; in between the store is compacted. The promises:
//! a lock is told to be held at a revision at which its key is the oldest, and by none twice; a campaign is won only when
//! nobody is in front; an observer misses no proclamation of whoever it follows; in the end everybody is answered, and
//! nothing is held for nobody.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::sync::Arc;

use prost::Message;

use super::*;
use crate::backend::{HistoryError, Identity, LeaseAnswer, LeaseOutcome, Reply};
use crate::net::{CallId, Output};
use crate::pb::{v3electionpb, v3lockpb};
use crate::service::errors::{not_leader, observe_closed_early, session_expired};
use crate::service::random::Random;
use crate::service::{Member, Method, Services};
use crate::store::Store;
use crate::store::command::{DeleteRange, Write};
use crate::types::{Batch, Change, Entry, KeyRange, Lease, Revision, Time};

const IDENTITY: Identity = Identity { cluster_id: 3, member_id: 7, raft_term: 2 };
const NAMES: [&str; 2] = ["l", "l/m"];
const LEASES: i64 = 6;

/// The keys of the store with the revision at which each was made.
type Keys = BTreeMap<Key, Revision>;

struct Client {
    handle: u32,
    recipe: Recipe,
    name: &'static str,
    /// What an observer was told and what it follows.
    followed: Option<Key>,
    at: Revision,
}

struct World {
    random: Random,
    services: Services,
    store: Store,
    leases: BTreeSet<LeaseId>,
    granted: i64,
    batches: Vec<Arc<Batch>>,
    /// By revision.
    states: Vec<Keys>,
    shown: usize,
    asked: VecDeque<(u32, Command)>,
    replies: VecDeque<(u32, Reply)>,
    clients: BTreeMap<u32, Client>,
    next_client: u32,
    won: BTreeSet<Key>,
    tally: BTreeMap<&'static str, u32>,
}

impl World {
    fn new(seed: u64) -> World {
        let member = Member { name: String::new(), peer_urls: Vec::new(), client_urls: Vec::new() };
        World {
            random: Random::new(seed),
            services: Services::new(IDENTITY, Arc::new(member), Limits::default(), Revision::FIRST),
            store: Store::new(),
            leases: (1..=LEASES).map(LeaseId).collect(),
            granted: 1_000,
            batches: Vec::new(),
            states: vec![Keys::new(); 2],
            shown: 0,
            asked: VecDeque::new(),
            replies: VecDeque::new(),
            clients: BTreeMap::new(),
            next_client: 0,
            won: BTreeSet::new(),
            tally: BTreeMap::new(),
        }
    }

    fn count(&mut self, what: &'static str) {
        *self.tally.entry(what).or_default() += 1;
    }

    fn keys(&self) -> &Keys {
        self.states.last().expect("an empty store has a state")
    }

    fn step(&mut self) {
        match self.random.below(14) {
            0 | 1 if self.clients.len() < 12 => self.open(),
            2 => self.let_go(),
            3 if self.random.one_in(3) => self.go_away(),
            4 if self.random.one_in(8) => self.lose_a_lease(),
            5 if self.random.one_in(20) => self.compact(),
            _ => drop(self.go_on()),
        }
    }

    /// One of the things that happen by themselves. False: there was nothing to do.
    fn go_on(&mut self) -> bool {
        let kinds: [fn(&mut World) -> bool; 4] = [World::execute, World::reply, World::show, World::tell];
        let first = self.random.below(kinds.len());
        (0..kinds.len()).any(|at| kinds[(first + at) % kinds.len()](self))
    }

    fn open(&mut self) {
        let name = NAMES[self.random.below(NAMES.len())];
        let lease = self.random.below(LEASES as usize + 2) as i64;
        let value = Bytes::from(vec![b'v'; self.random.below(2) * 3_000]);
        let (recipe, message) = match self.random.below(5) {
            0 | 1 => (Recipe::Lock, v3lockpb::LockRequest { name: name.into(), lease }.encode_to_vec()),
            2 | 3 => {
                (Recipe::Campaign, v3electionpb::CampaignRequest { name: name.into(), lease, value }.encode_to_vec())
            }
            _ => (Recipe::Observe, v3electionpb::LeaderRequest { name: name.into() }.encode_to_vec()),
        };
        let id = CallId { connection: 1, stream: self.next_client };
        let handle = self.services.open(id, Method::Recipe(recipe));
        let at = Revision::ZERO;
        self.clients.insert(self.next_client, Client { handle, recipe, name, followed: None, at });
        self.next_client += 1;
        let command = self.services.request(handle, message.into()).expect("every recipe asks something");
        self.asked.push_back((handle, command));
    }

    /// A key is deleted by its client, or changed by a leader.
    fn let_go(&mut self) {
        let count = self.won.len();
        let Some(key) = self.won.iter().nth(self.random.below(count.max(1))).cloned() else { return };
        let Some(created) = self.keys().get(&key).copied() else {
            self.won.remove(&key);
            return;
        };
        if self.random.one_in(2) {
            let put = crate::pb::etcdserverpb::PutRequest {
                key: key.clone(),
                value: vec![b'p'; 1_500].into(),
                ..Default::default()
            };
            let put = if_created_at(key, created.0, Request::RequestPut(put), &Limits::default());
            let Ok(Command::Write(put)) = put else { panic!("a put is in order") };
            return drop(self.write(&put));
        }
        self.won.remove(&key);
        self.delete(key);
    }

    fn delete(&mut self, key: Key) {
        let delete = Write::DeleteRange(DeleteRange { range: KeyRange::One(key), prev_kv: false });
        let Reply::Answer(Ok(_)) = self.write(&delete) else { panic!("a delete is never refused") };
    }

    fn go_away(&mut self) {
        let count = self.clients.len();
        let Some(client) = self.clients.keys().nth(self.random.below(count.max(1))).copied() else { return };
        self.close(client);
    }

    fn close(&mut self, client: u32) {
        let client = self.clients.remove(&client).expect("it is there");
        self.services.closed(client.handle);
        self.take_commands();
        self.count("gone");
    }

    fn lose_a_lease(&mut self) {
        let lease = LeaseId(1 + self.random.below(LEASES as usize) as i64);
        let keys = NAMES.map(|name| key_of(name.as_bytes(), lease));
        keys.into_iter().for_each(|key| self.delete(key));
    }

    fn compact(&mut self) {
        let revision = self.store.revision();
        // One that is compacted already is refused, which is as good.
        drop(self.write(&Write::Compact(revision)));
    }

    fn write(&mut self, write: &Write) -> Reply {
        let leases = &self.leases;
        let applied = self.store.apply_with(write, Time(0), &|lease| leases.contains(&lease));
        if let Some(Entry::Batch(batch)) = applied.entry {
            let mut keys = self.keys().clone();
            for change in &batch.changes {
                match change {
                    Change::Put { kv, .. } => keys.insert(Key::copy_from_slice(kv.key()), kv.create_revision()),
                    Change::Delete { key, .. } => keys.remove(key),
                };
            }
            assert_eq!(batch.revision.0, self.states.len() as i64);
            self.states.push(keys);
            self.batches.push(batch);
        }
        Reply::Answer(applied.answer)
    }

    fn execute(&mut self) -> bool {
        let Some((handle, command)) = self.asked.pop_front() else { return false };
        let reply = match command {
            Command::Write(write) => self.write(&write),
            Command::Read(read) => {
                let answer = self.store.read(&read, self.store.revision()).and_then(|mut job| {
                    std::iter::from_fn(|| Some(self.store.step(&mut job, 1))).flatten().next().expect("it ends")
                });
                Reply::Answer(answer)
            }
            Command::History { from } => {
                self.count("history");
                let history = self.store.history(from, self.store.revision(), 1 + self.random.below(3), 10_000);
                Reply::History(history.map_err(|refused| HistoryError::Compacted(refused.compacted)))
            }
            Command::Lease(LeaseCommand::Grant { id: LeaseId::NONE, ttl }) => {
                self.granted += 1;
                let lease = Lease { id: LeaseId(self.granted), ttl };
                self.leases.insert(lease.id);
                Reply::Lease(LeaseAnswer { revision: self.store.revision(), outcome: LeaseOutcome::Granted(lease) })
            }
            other => panic!("no recipe asks {other:?}"),
        };
        self.replies.push_back((handle, reply));
        true
    }

    fn reply(&mut self) -> bool {
        let Some((handle, reply)) = self.replies.pop_front() else { return false };
        let ready = self.services.reply(handle, reply);
        self.look(ready);
        while self.services.has_work() {
            self.services.turn();
        }
        true
    }

    fn show(&mut self) -> bool {
        let awaited = self.services.awaited();
        let Some(batch) = self.batches.get(self.shown).filter(|_| !awaited.is_behind()) else { return false };
        awaited.batch(batch);
        self.shown += 1;
        true
    }

    fn tell(&mut self) -> bool {
        let Telling::Call(ready) = self.services.tell_next() else { return false };
        self.look(ready);
        true
    }

    fn take_commands(&mut self) {
        self.asked.extend(std::iter::from_fn(|| self.services.next_command()));
    }

    /// A call has something to send: its client reads it, or an observer lets it lie for a while.
    fn look(&mut self, ready: Option<CallId>) {
        self.take_commands();
        let Some(CallId { stream, .. }) = ready else { return };
        let client = &self.clients[&stream];
        if client.recipe != Recipe::Observe || self.random.one_in(3) {
            self.read(stream);
        }
    }

    fn read(&mut self, stream: u32) {
        let Client { handle, recipe, .. } = self.clients[&stream];
        let mut bytes = Vec::new();
        loop {
            match self.services.output(handle, 4_000) {
                Output::Nothing => break,
                Output::Bytes(piece) => bytes.extend_from_slice(&piece),
                Output::Last(piece) => {
                    bytes.extend_from_slice(&piece);
                    let client = self.clients.remove(&stream).expect("it is there");
                    self.won(&client, &bytes[5..]);
                    bytes.clear();
                    break;
                }
                Output::End(status) => {
                    assert!(
                        [not_leader(), session_expired(), observe_closed_early(), lease_not_found()].contains(&status),
                        "{status:?}"
                    );
                    self.count(if recipe == Recipe::Observe { "closed early" } else { "refused" });
                    // What an observer was told before is no less true.
                    self.observed(stream, std::mem::take(&mut bytes));
                    self.clients.remove(&stream);
                    break;
                }
            }
        }
        self.observed(stream, bytes);
        self.take_commands();
    }

    fn oldest(keys: &Keys, name: &str) -> Option<(Key, Revision)> {
        let below = below(name.as_bytes());
        let of_name = keys.iter().filter(|(key, _)| key.starts_with(&below));
        of_name.min_by_key(|(_, created)| **created).map(|(key, created)| (key.clone(), *created))
    }

    fn won(&mut self, client: &Client, message: &[u8]) {
        match client.recipe {
            Recipe::Lock => {
                let told = v3lockpb::LockResponse::decode(message).expect("a message");
                let at = told.header.expect("a header").revision;
                let oldest = World::oldest(&self.states[at as usize], client.name);
                assert_eq!(oldest.map(|(key, _)| key), Some(told.key.clone()), "whoever is the oldest holds it");
                self.won.insert(told.key);
                self.count("locked");
            }
            _ => {
                let told = v3electionpb::CampaignResponse::decode(message).expect("a message");
                let leader = told.leader.expect("a leader");
                let in_front = World::oldest(self.keys(), client.name).filter(|(_, created)| created.0 < leader.rev);
                assert_eq!(in_front, None, "nobody leads twice");
                assert_eq!(&leader.name[..], client.name.as_bytes());
                self.won.insert(leader.key);
                self.count("elected");
            }
        }
    }

    fn observed(&mut self, stream: u32, bytes: Vec<u8>) {
        let mut rest = &bytes[..];
        while !rest.is_empty() {
            let len = u32::from_be_bytes(rest[1..5].try_into().expect("four bytes")) as usize;
            let told = v3electionpb::LeaderResponse::decode(&rest[5..5 + len]).expect("a message");
            rest = &rest[5 + len..];
            let client = self.clients.get_mut(&stream).expect("it is there");
            let (at, kv) = (Revision(told.header.expect("a header").revision), told.kv.expect("a leader"));
            let next = client.followed.as_ref().and_then(|key| next_of(&self.batches, key, client.at));
            if client.followed.as_ref() == Some(&kv.key) && next.is_some_and(|(_, is_put)| is_put) {
                assert_eq!(next, Some((at, true)), "no proclamation is passed over");
                assert_eq!(kv.mod_revision, at.0);
            } else {
                let is_over = client.followed.is_none() || next.is_some_and(|(end, is_put)| !is_put && end <= at);
                assert!(is_over, "a leader is followed to the end");
                let oldest = World::oldest(&self.states[at.0 as usize], client.name);
                assert_eq!(oldest, Some((kv.key.clone(), Revision(kv.create_revision))));
            }
            (client.followed, client.at) = (Some(kv.key), at);
            self.count("observed");
        }
    }

    /// From here on nobody comes, and whoever holds or leads lets go.
    fn heal(&mut self) {
        for _ in 0..100_000 {
            while self.go_on() {}
            let observers = self.clients.iter().filter(|(_, client)| client.recipe == Recipe::Observe);
            let observers: Vec<u32> = observers.map(|(stream, _)| *stream).collect();
            observers.into_iter().for_each(|stream| self.read(stream));
            if !self.asked.is_empty() {
                continue;
            }
            // A key of a client that has gone ends with its lease, and so does that of one that holds it.
            let oldest = NAMES.iter().find_map(|name| World::oldest(self.keys(), name));
            let Some((key, _)) = oldest else { return };
            self.delete(key);
        }
        panic!("it never ends");
    }

    fn check_end(&mut self) {
        for client in self.clients.values() {
            assert_eq!(client.recipe, Recipe::Observe, "nobody waits for nothing");
            let missed = client.followed.as_ref().and_then(|key| next_of(&self.batches, key, client.at));
            assert!(missed.is_none_or(|(_, is_put)| !is_put), "an observer was told everything");
        }
        let observers: Vec<u32> = self.clients.keys().copied().collect();
        observers.into_iter().for_each(|client| self.close(client));
        let (calls, _) = self.services.bytes();
        let apart = (self.services.request_bytes, self.services.awaited.bytes(), self.services.scratch_bytes());
        assert_eq!((calls, apart), (0, (0, 0, 0)));
    }
}

/// What is the next that happens to a key behind a revision, and whether it is a put.
fn next_of(batches: &[Arc<Batch>], key: &Key, at: Revision) -> Option<(Revision, bool)> {
    let later = batches.iter().filter(|batch| batch.revision > at);
    later
        .flat_map(|batch| batch.changes.iter().map(move |change| (batch.revision, change)))
        .find(|(_, change)| change.key() == key)
        .map(|(revision, change)| (revision, matches!(change, Change::Put { .. })))
}

fn lease_not_found() -> Status {
    without_status(Refusal::LeaseNotFound)
}

#[test]
fn whatever_comes_late_locks_exclude_and_everybody_is_answered() {
    let mut tally: BTreeMap<&'static str, u32> = BTreeMap::new();
    for seed in 0..200 {
        let mut world = World::new(seed);
        for _ in 0..2_000 {
            world.step();
        }
        world.heal();
        world.check_end();
        for (what, count) in world.tally {
            *tally.entry(what).or_default() += count;
        }
    }
    let rare = ["locked", "elected", "observed", "gone", "refused", "history", "closed early"];
    assert!(rare.iter().all(|what| tally.get(what).is_some_and(|count| *count > 50)), "{tally:?}");
}
