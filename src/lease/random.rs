//! Tests only: the lessor against a slow and obvious one, under seeded random operations, and what it costs.

use std::collections::BTreeMap;
use std::sync::Arc;

use super::*;
use crate::random::Random;
use crate::types::{KeyValue, Revision, Time};

/// One map of leases, one of keys; everything is looked for by walking.
#[derive(Default)]
struct Model {
    /// Time to live and deadline by id.
    leases: BTreeMap<LeaseId, (i64, u64)>,
    keys: BTreeMap<Vec<u8>, LeaseId>,
}

impl Model {
    fn keys_of(&self, id: LeaseId) -> Vec<Key> {
        let keys = self.keys.iter().filter(|(_, lease)| **lease == id);
        keys.map(|(key, _)| Key::copy_from_slice(key)).collect()
    }

    fn revoke(&mut self, id: LeaseId) -> Option<Vec<Key>> {
        let keys = self.leases.remove(&id).map(|_| self.keys_of(id));
        self.keys.retain(|_, lease| *lease != id);
        keys
    }

    fn leases(&self) -> Vec<LeaseId> {
        let mut found: Vec<_> = self.leases.iter().map(|(id, (_, deadline))| (*deadline, *id)).collect();
        found.sort_unstable();
        found.into_iter().map(|(_, id)| id).collect()
    }
}

fn keys(revoked: Option<(Lease, Vec<Key>)>) -> Option<Vec<Key>> {
    revoked.map(|(_, keys)| keys)
}

/// Whole seconds that are left for certain.
fn remaining(milliseconds: i64) -> i64 {
    if milliseconds > 0 { (milliseconds - 1) / 1_000 } else { milliseconds / 1_000 }
}

/// All leases, the one that expires first in front, at once.
fn listed(lessor: &Lessor) -> Vec<LeaseId> {
    let mut found = Vec::new();
    for list in lessor.slots.values() {
        let mut at = list.first;
        while at != NONE {
            found.push((lessor.rows[at].deadline, lessor.rows[at].id));
            at = lessor.rows[at].next;
        }
    }
    found.sort_unstable();
    found.into_iter().map(|(_, id)| id).collect()
}

/// One that cannot be revoked is put off for no longer, in milliseconds.
const POSTPONED_MAX: u64 = 1_000;

struct World {
    random: Random,
    lessor: Lessor,
    model: Model,
    now: Uptime,
    /// What the list under way has to hold, and whether in this order.
    listing: Option<(Vec<LeaseId>, bool)>,
}

impl World {
    fn new(seed: u64) -> World {
        let (lessor, now) = (Lessor::new(seed), Uptime(seed % 700));
        World { random: Random::new(seed), lessor, model: Model::default(), now, listing: None }
    }

    fn id(&mut self) -> LeaseId {
        LeaseId(self.random.below(12) as i64 - 3)
    }

    fn ttl(&mut self) -> i64 {
        match self.random.below(10) {
            0 => i64::MIN + self.random.below(5) as i64,
            1 => TTL_SECONDS_MAX - 1 + self.random.below(3) as i64,
            _ => self.random.below(20) as i64 - 3,
        }
    }

    fn step(&mut self) {
        let id = self.id();
        match self.random.below(24) {
            20.. => self.list(),
            0..4 => self.grant(id),
            4..5 => assert_eq!(keys(self.lessor.revoke(id)), self.model.revoke(id)),
            5..9 => self.keep_alive(id),
            9..15 => self.batch(),
            15..16 => self.begin(),
            _ => self.now.0 += self.random.below(2_000),
        }
        if self.random.chance(60) {
            let visits = self.random.below(4) as usize;
            self.expire(visits);
        }
        self.compare();
    }

    fn grant(&mut self, id: LeaseId) {
        let ttl = self.ttl();
        let granted = self.lessor.grant(id, ttl, self.now);
        let expected = if ttl > TTL_SECONDS_MAX {
            Err(Refused::TtlTooLarge)
        } else if self.model.leases.contains_key(&id) {
            Err(Refused::Exists)
        } else {
            let chosen = if id == LeaseId::NONE { granted.expect("an id is found").id } else { id };
            assert!(id != LeaseId::NONE || (chosen.0 > 0 && !self.model.leases.contains_key(&chosen)));
            let ttl = ttl.max(2);
            self.model.leases.insert(chosen, (ttl, self.now.0 + ttl as u64 * 1_000));
            Ok(Lease { id: chosen, ttl })
        };
        assert_eq!(granted, expected);
    }

    fn keep_alive(&mut self, id: LeaseId) {
        let now = self.now.0;
        let alive = self.model.leases.get_mut(&id).filter(|(_, deadline)| *deadline >= now);
        let expected = alive.map(|lease| {
            lease.1 = now + lease.0 as u64 * 1_000;
            lease.0
        });
        assert_eq!(self.lessor.keep_alive(id, self.now), expected);
        if let Some((_, is_ordered)) = &mut self.listing {
            *is_ordered = false;
        }
    }

    /// A piece of a list, which shows the leases of the moment at which it began.
    fn list(&mut self) {
        let (expected, is_ordered) = self.listing.take().unwrap_or_else(|| (self.model.leases(), true));
        // The walk sees 512 rows, used or not.
        let visits = *self.random.pick(&[1, 3, 100, 400]);
        match self.lessor.list(visits) {
            None => {
                assert_eq!(self.lessor.listing_bytes(), expected.len() * LISTED_BYTES);
                self.listing = Some((expected, is_ordered));
            }
            Some(found) if is_ordered => assert_eq!(found, expected),
            Some(mut found) => {
                let mut expected = expected;
                found.sort_unstable();
                expected.sort_unstable();
                assert_eq!(found, expected);
            }
        }
    }

    /// Changes of one revision, which may name a key more than once.
    fn batch(&mut self) {
        let mut changes = Vec::new();
        for _ in 0..1 + self.random.below(3) {
            let key = vec![b'a' + self.random.below(6) as u8; 1 + self.random.below(2) as usize];
            // Perhaps a lease that is not there, which keeps no keys.
            let lease = self.id();
            if self.random.one_in(4) {
                self.model.keys.remove(&key);
                changes.push(Change::Delete { key: key.into(), previous: None });
            } else {
                if self.model.leases.contains_key(&lease) {
                    self.model.keys.insert(key.clone(), lease);
                } else {
                    self.model.keys.remove(&key);
                }
                let kv = KeyValue::new(&key, b"", Revision(2), Revision(2), 0, 1, lease);
                changes.push(Change::Put { kv, previous: None });
            }
        }
        let batch = Batch { revision: Revision(2), time: Time(1), changes: changes.into() };
        self.lessor.note(&Arc::new(batch));
    }

    fn begin(&mut self) {
        self.lessor.begin(self.now);
        if let Some((_, is_ordered)) = &mut self.listing {
            *is_ordered = false;
        }
        for (ttl, deadline) in self.model.leases.values_mut() {
            *deadline = self.now.0 + *ttl as u64 * 1_000;
        }
    }

    /// What is named is over by the model as well; without a bound, everything that is over by a slot is named.
    fn expire(&mut self, mut visits: usize) {
        while let Some(id) = self.lessor.next_expired(self.now, &mut visits) {
            let (_, deadline) = self.model.leases[&id];
            assert!(deadline < self.now.0, "{id:?} expires at {:?} and not before {deadline}", self.now);
            assert!(self.lessor.is_overdue(id, self.now));
            if visits < 4 && self.random.one_in(4) {
                self.lessor.postpone(id, Uptime(self.now.0 + self.random.below(POSTPONED_MAX)));
                continue;
            }
            assert_eq!(keys(self.lessor.revoke(id)), self.model.revoke(id));
        }
    }

    fn expire_all(&mut self) {
        self.expire(usize::MAX);
        let late = self.model.leases.values().find(|(_, deadline)| deadline + SLOT_MILLISECONDS <= self.now.0);
        assert_eq!(late, None, "at {:?}", self.now);
        assert!(self.lessor.next_deadline().is_none_or(|deadline| deadline > self.now));
    }

    fn compare(&mut self) {
        assert_eq!(listed(&self.lessor), self.model.leases());
        assert_eq!(self.lessor.len(), self.model.leases.len());
        let id = self.id();
        assert_eq!(self.lessor.keys_of(id), self.model.keys_of(id));
        let now = self.now.0 as i64;
        let expected = self.model.leases.get(&id);
        let expected =
            expected.map(|(ttl, deadline)| Standing { remaining: remaining(*deadline as i64 - now), granted: *ttl });
        assert_eq!(self.lessor.standing(id, self.now), expected);
    }
}

#[test]
fn the_lessor_does_what_the_model_does() {
    for seed in 0..300 {
        let mut world = World::new(seed);
        for _ in 0..400 {
            world.step();
        }
        world.now.0 += POSTPONED_MAX + SLOT_MILLISECONDS;
        world.expire_all();
        world.now.0 += 30_000;
        world.expire_all();
        world.now.0 += 2 * TTL_SECONDS_MAX as u64 * 1_000;
        world.expire_all();
        assert!(world.lessor.is_empty(), "seed {seed}: even the longest is over");
        let (rows, keys) = (world.lessor.rows.bytes(), world.lessor.keys.is_empty());
        assert_eq!((rows, keys), (0, true), "seed {seed}: nothing is left behind");
    }
}

#[test]
fn a_million_leases_of_one_time_to_live_are_one_list_and_expire_in_bounded_steps() {
    const LEASES: usize = 1_000_000;
    let mut lessor = Lessor::new(1);
    for number in 1..=LEASES as i64 {
        lessor.grant(LeaseId(number), 60, Uptime(0)).expect("the ids are all different");
    }
    assert_eq!(lessor.slots.len(), 1);
    // Half of them are kept alive: the first look moves those on and names the others, one visit for each lease.
    for number in 1..=LEASES as i64 / 2 {
        assert_eq!(lessor.keep_alive(LeaseId(number), Uptime(30_000)), Some(60));
    }
    let (mut expired, mut turns) = (0, 0);
    loop {
        let mut visits = 1_000;
        while let Some(id) = lessor.next_expired(Uptime(60_250), &mut visits) {
            assert!(id.0 > LEASES as i64 / 2, "what was kept alive does not expire");
            assert_eq!(keys(lessor.revoke(id)), Some(Vec::new()));
            expired += 1;
        }
        turns += 1;
        if visits > 0 {
            break;
        }
    }
    assert_eq!((expired, lessor.len()), (LEASES / 2, LEASES / 2));
    assert!((1_000..=1_001).contains(&turns), "{turns} turns of a thousand visits");
}

#[test]
fn a_list_of_very_many_leases_is_made_in_bounded_steps_and_in_their_order() {
    const LEASES: i64 = 50_000;
    let mut lessor = Lessor::new(1);
    for number in 1..=LEASES {
        lessor.grant(LeaseId(number), 2 + number * 7_919 % LEASES, Uptime(0)).expect("the ids are all different");
    }
    let expected = listed(&lessor);
    assert_eq!(lessor.list(1_000), None);
    let mut steps = 1;
    let found = loop {
        // What goes and what comes meanwhile changes nothing of it.
        lessor.revoke(LeaseId(LEASES - steps)).expect("it is there");
        lessor.grant(LeaseId(LEASES + steps), 60, Uptime(0)).expect("the ids are all different");
        steps += 1;
        if let Some(found) = lessor.list(1_000) {
            break found;
        }
    };
    assert!((100..=103).contains(&steps), "{steps} steps of a thousand rows, and then of a thousand leases");
    assert!(found == expected && lessor.listing_bytes() == 0);
}

#[test]
fn a_lease_of_an_hour_is_not_over_a_millisecond_early() {
    let mut lessor = Lessor::new(1);
    let now = Uptime(12_345);
    let lease = lessor.grant(LeaseId(7), 3_600, now).expect("it is the only one");
    for early in [0, 1, 249, 250] {
        assert_eq!(lessor.next_expired(Uptime(now.0 + 3_600_000 - early), &mut 10), None);
    }
    let late = lessor.next_deadline().expect("there is a lease");
    assert!(late.0 > now.0 + 3_600_000 && late.0 <= now.0 + 3_600_000 + SLOT_MILLISECONDS);
    assert_eq!(lessor.next_expired(late, &mut 10), Some(lease.id));
    assert_eq!(lessor.keep_alive(lease.id, late), None, "what is over is not brought back");
}

#[test]
fn what_a_lease_has_left_is_written_once_an_interval_and_taken_back_when_it_is_kept_alive() {
    let mut lessor = Lessor::new(1);
    lessor.write_remaining_every(Some(Duration::from_secs(300)));
    let [long, kept, short] = [(LeaseId(1), 1_000), (LeaseId(2), 1_000), (LeaseId(3), 300)].map(|(id, ttl)| {
        lessor.grant(id, ttl, Uptime(100)).expect("the ids are all different");
        id
    });
    let written = |lessor: &mut Lessor, now| {
        std::iter::from_fn(|| lessor.next_remaining(Uptime(now), &mut 10)).collect::<Vec<_>>()
    };
    assert_eq!(lessor.next_remaining_due(), Some(Uptime(300_500)), "in whole half seconds");
    assert_eq!(lessor.keep_alive(kept, Uptime(300_499)), Some(1_000));
    assert!(!lessor.take_remaining_back(kept, Uptime(300_499)), "nothing was written yet");
    assert_eq!(written(&mut lessor, 300_499), []);
    // One has its whole time, of which nothing need be known. What the other has is rounded up.
    assert_eq!(written(&mut lessor, 300_500), [(long, 700)]);
    assert_eq!((lessor.written_remaining(long), lessor.written_remaining(kept)), (Some(700), None));
    assert_eq!(written(&mut lessor, 600_500), [(long, 400), (kept, 700)]);
    assert!(lessor.take_remaining_back(kept, Uptime(600_600)) && !lessor.take_remaining_back(kept, Uptime(600_600)));
    // The last has less left than the interval, and is not due again.
    assert_eq!(written(&mut lessor, 900_500), [(long, 100), (kept, 400)]);
    assert_eq!(written(&mut lessor, 1_300_500), [], "what is over, or will be before the interval is");

    lessor.begin(Uptime(5_000));
    let left = |lessor: &Lessor, id| lessor.standing(id, Uptime(5_000)).map(|standing| standing.remaining);
    assert_eq!([long, kept, short].map(|id| left(&lessor, id)), [Some(99), Some(399), Some(299)]);
    assert_eq!(lessor.next_remaining_due(), Some(Uptime(305_000)), "of the one that has more than the interval left");
    for id in [long, kept, short] {
        lessor.revoke(id);
    }
    assert_eq!((lessor.next_remaining_due(), lessor.remaining.bytes()), (None, 0), "nothing is left behind");
}

#[test]
fn what_a_million_leases_have_left_is_written_in_bounded_steps() {
    const LEASES: usize = 1_000_000;
    let mut lessor = Lessor::new(1);
    lessor.write_remaining_every(Some(Duration::from_secs(300)));
    let base = lessor.bytes();
    for _ in 0..LEASES {
        lessor.grant(LeaseId::NONE, 3_600, Uptime(0)).expect("an id is found");
    }
    let (mut written, mut turns) = (0, 0);
    loop {
        let mut visits = 500;
        written += std::iter::from_fn(|| lessor.next_remaining(Uptime(300_000), &mut visits)).count();
        turns += 1;
        if visits > 0 {
            break;
        }
    }
    assert_eq!((written, turns), (LEASES, LEASES / 500 + 1));
    let each = (lessor.bytes() - base) as f64 / LEASES as f64;
    assert!((129.0..=144.0).contains(&each), "{each} bytes a lease");
}

#[test]
fn the_cost_table_is_true() {
    assert_eq!((size_of::<Row>(), keys::ROW_BYTES), (40, 32));
    let mut lessor = Lessor::new(1);
    let base = lessor.bytes();
    for number in 0..200_000 {
        lessor.grant(LeaseId::NONE, number % 1_000 + 60, Uptime(0)).expect("an id is found");
    }
    let leases = lessor.bytes();
    let each = (leases - base) as f64 / 200_000.0;
    assert!((45.0..=60.0).contains(&each), "{each} bytes a lease");
    for (number, id) in listed(&lessor).into_iter().enumerate() {
        lessor.attach(format!("{number:032}").as_bytes(), id);
    }
    let each = (lessor.bytes() - leases) as f64 / 200_000.0;
    assert!((69.0..=76.0).contains(&each), "{each} bytes a key of 32");
}
