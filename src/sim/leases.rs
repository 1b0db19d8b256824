//! Leases in the world: granted, kept alive, revoked, looked at, attached to by puts, and over when the clock says so.
//!
//! The model is told of each command at the moment at which the writer applies it. What expires the writer decides by
//! itself, in an order of its own; so the world reads it off the log and holds it to the rules:
//!
//! | rule | what it says |
//! | --- | --- |
//! | never early | a lease that expires is over by the model's clock |
//! | in time | what is over by a slot of time has been revoked once the writer says that nothing more is due |
//! | one revision | all keys of a lease go at one revision, in ascending order, in front of the end of the lease |
//! | no others | those are the keys whose newest version names the lease |
//! | one moment | a list shows the leases of one moment between its request and its answer |

use std::cell::Cell;
use std::collections::BTreeSet;

use super::world::{Expected, World};
use crate::backend::{Command, LeaseAnswer, LeaseCommand, LeaseOutcome};
use crate::lease::{Standing, TTL_SECONDS_MIN};
use crate::sim::model::Held;
use crate::store::command::Error;
use crate::types::{Change, Entry, Key, Lease, LeaseId, Revision, Time, Uptime};

/// Leases that the world knows, so few that they meet again and again.
const LEASES: u64 = 5;
/// How much later than its time a lease may be seen to be over.
const SLOT_MILLISECONDS: u64 = 250;

thread_local! {
    static NOW: Cell<u64> = const { Cell::new(0) };
}

/// The clock of the world that runs on this thread.
pub fn uptime() -> Uptime {
    Uptime(NOW.get())
}

pub fn begin_time() {
    NOW.set(0);
}

/// Milliseconds that a lease has left.
fn left(held: &Held) -> i64 {
    held.deadline as i64 - NOW.get() as i64
}

impl World {
    pub fn any_lease(&mut self) -> LeaseId {
        LeaseId(1 + self.random.below(LEASES) as i64)
    }

    pub fn time_passes(&mut self) {
        let most = *self.random.pick(&[50, 1_000, 3_000]);
        NOW.set(NOW.get() + self.random.below(most));
    }

    pub fn client_leases(&mut self) {
        let id = self.any_lease();
        let command = match self.random.below(10) {
            0..4 => LeaseCommand::Grant { id, ttl: self.random.below(9) as i64 - 2 },
            4 => LeaseCommand::Revoke(id),
            5..8 => LeaseCommand::KeepAlive(id),
            8 => LeaseCommand::TimeToLive { id, keys: true },
            _ => LeaseCommand::List,
        };
        let expected = match &command {
            LeaseCommand::List => Expected::List(vec![self.leases()]),
            _ => Expected::Lease(None),
        };
        let shard = self.random.below(self.shards.len() as u64) as usize;
        self.send(shard, Command::Lease(command), expected);
    }

    fn leases(&self) -> BTreeSet<i64> {
        self.model.leases.keys().copied().collect()
    }

    /// Whoever waits for a list may see them as they are now.
    fn leases_changed(&mut self) {
        let now = self.leases();
        for expected in self.shards.iter_mut().flat_map(|shard| shard.asked.values_mut()) {
            if let Expected::List(moments) = expected {
                moments.push(now.clone());
            }
        }
    }

    /// What the writer has to answer.
    pub fn model_leases(&mut self, command: &LeaseCommand) -> Result<LeaseAnswer, Error> {
        let before = self.model.revision();
        let outcome = match *command {
            LeaseCommand::Grant { id, .. } if self.model.leases.contains_key(&id.0) => return Err(Error::LeaseExists),
            LeaseCommand::Grant { id, ttl } => {
                let ttl = ttl.max(TTL_SECONDS_MIN);
                self.model.leases.insert(id.0, Held { ttl, deadline: NOW.get() + ttl as u64 * 1_000 });
                LeaseOutcome::Granted(Lease { id, ttl })
            }
            LeaseCommand::Revoke(lease) => match self.model.revoke(lease.0) {
                true => LeaseOutcome::Revoked,
                false => return Err(Error::LeaseNotFound { lease }),
            },
            LeaseCommand::KeepAlive(id) => {
                let ttl = match self.model.leases.get_mut(&id.0) {
                    Some(held) if left(held) >= 0 => {
                        held.deadline = NOW.get() + held.ttl as u64 * 1_000;
                        Some(held.ttl)
                    }
                    _ => None,
                };
                if ttl.is_none() {
                    self.model.revoke(id.0);
                }
                self.leases_changed();
                let outcome = LeaseOutcome::KeptAlive { id, ttl };
                return Ok(LeaseAnswer { revision: Revision(before), outcome });
            }
            LeaseCommand::TimeToLive { id, .. } => {
                let standing = self.model.leases.get(&id.0).map(|held| {
                    // What counts is whole seconds that are left for certain.
                    let left = left(held);
                    Standing { remaining: (left - i64::from(left > 0)) / 1_000, granted: held.ttl }
                });
                let keys = self.model.keys_of(id.0).into_iter().map(Key::from).collect();
                LeaseOutcome::TimeToLive { id, standing, keys }
            }
            LeaseCommand::List => unreachable!("a list is judged by its answer"),
        };
        self.leases_changed();
        Ok(LeaseAnswer { revision: Revision(self.model.revision()), outcome })
    }

    pub fn asked_of_leases(&self, shard: usize, token: u32) -> bool {
        matches!(self.shards[shard].asked.get(&token), Some(Expected::Lease(_) | Expected::List(_)))
    }

    pub fn lease_answered(&mut self, shard: usize, token: u32, answer: Result<LeaseAnswer, Error>) {
        let expected = self.shards[shard].asked.remove(&token).expect("one answer a request");
        if let Ok(answer) = &answer {
            self.told(answer.revision);
        }
        match expected {
            Expected::Lease(applied) => assert_eq!(Some(answer), applied, "the answer is what the model says"),
            Expected::List(moments) => list_answered(answer, &moments),
            Expected::Write(_) | Expected::Read { .. } => panic!("the answer of another request"),
        }
    }

    /// The writer revokes what is over. True when there was anything.
    pub fn expire(&mut self) -> bool {
        // What was applied before goes to the log by itself.
        self.embedded.settle();
        self.log.take_last();
        let more = self.embedded.expire(Time(1));
        self.embedded.settle();
        let entries = self.log.take_last();
        self.check_expired(&entries);
        if !more {
            let now = NOW.get();
            let late = self.model.leases.iter().find(|(_, held)| held.deadline + SLOT_MILLISECONDS <= now);
            assert!(late.is_none(), "in time: {late:?} at {now}");
        }
        !entries.is_empty()
    }

    fn check_expired(&mut self, entries: &[Entry]) {
        let mut batch = None;
        for entry in entries {
            match entry {
                Entry::Batch(changes) => {
                    assert!(batch.replace(changes).is_none(), "one revision: the keys of a lease go at once");
                }
                Entry::Lease { lease, granted: false } => {
                    let held = self.model.leases.get(&lease.id.0).expect("only what is there expires");
                    assert!(left(held) < 0, "never early: {lease:?} has {} ms left", left(held));
                    let keys = self.model.keys_of(lease.id.0);
                    assert!(self.model.revoke(lease.id.0));
                    let Some(batch) = batch.take() else {
                        assert!(keys.is_empty(), "no others: {keys:?} stay behind");
                        continue;
                    };
                    assert_eq!(batch.revision.0, self.model.revision(), "one revision");
                    let are_deletes = batch.changes.iter().all(|change| matches!(change, Change::Delete { .. }));
                    assert!(are_deletes && batch.changes.iter().map(Change::key).eq(&keys), "no others, in order");
                }
                other => panic!("an expiry writes no {other:?}"),
            }
        }
        assert!(batch.is_none(), "keys go without their lease");
        self.leases_changed();
    }

    pub fn leases_are_those_of_the_model(&self) {
        let lessor = self.embedded.writer().leases();
        assert_eq!(lessor.len(), self.model.leases.len());
        for id in self.model.leases.keys() {
            let keys: Vec<Key> = self.model.keys_of(*id).into_iter().map(Key::from).collect();
            assert_eq!(lessor.keys_of(LeaseId(*id)), keys);
        }
    }
}

fn list_answered(answer: Result<LeaseAnswer, Error>, moments: &[BTreeSet<i64>]) {
    let Ok(LeaseAnswer { outcome: LeaseOutcome::List(listed), .. }) = answer else { panic!("a list: {answer:?}") };
    let found: BTreeSet<i64> = listed.iter().map(|id| id.0).collect();
    assert_eq!(found.len(), listed.len(), "a lease is listed once: {listed:?}");
    assert!(moments.contains(&found), "one moment: {found:?} is none of {moments:?}");
}
