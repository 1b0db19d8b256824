//! Hashes of the whole store, one after the other.
//!
//! A hash holds a handle of every key while it runs, so there is one at a time. Those that wait have not begun: they hold
//! nothing and keep no removal back, however many are asked for.

use std::collections::VecDeque;

use crate::shard::writer::Origin;
use crate::store::command::{Answer, Error, Read};
use crate::store::{ReadJob, Store};
use crate::types::Revision;

#[derive(Default)]
pub struct Hashes {
    running: Option<(Origin, ReadJob)>,
    waiting: VecDeque<(Origin, Read)>,
}

impl Hashes {
    pub fn wait(&mut self, origin: Origin, read: Read) {
        self.waiting.push_back((origin, read));
    }

    pub fn is_idle(&self) -> bool {
        self.running.is_none() && self.waiting.is_empty()
    }

    /// What a removal must not pass.
    pub fn oldest(&self) -> Option<Revision> {
        self.running.as_ref().map(|(_, job)| job.oldest())
    }

    /// What the one that runs holds beside the store.
    pub fn scratch_bytes(&self) -> usize {
        self.running.as_ref().map_or(0, |(_, job)| job.scratch_bytes())
    }

    /// A turn of the one that is first. Gives its end; one that holds more than `admits` allows ends with that.
    pub fn turn(
        &mut self,
        store: &Store,
        now: Revision,
        rows_max: usize,
        admits: impl Fn(usize) -> bool,
    ) -> Option<(Origin, Result<Answer, Error>)> {
        let (origin, mut job) = match self.running.take() {
            Some(running) => running,
            None => {
                let (origin, read) = self.waiting.pop_front()?;
                match store.read(&read, now) {
                    Ok(job) => (origin, job),
                    Err(error) => return Some((origin, Err(error))),
                }
            }
        };
        match store.step(&mut job, rows_max) {
            Some(result) => Some((origin, result)),
            None if !admits(job.scratch_bytes()) => Some((origin, Err(Error::NoMemory))),
            None => {
                self.running = Some((origin, job));
                None
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::store::command::{Outcome, Put, PutLease, PutValue, Write};
    use crate::types::{LeaseId, Time};

    fn filled() -> Store {
        let mut store = Store::new();
        for at in 0..10 {
            let (value, lease) = (PutValue::Set("v".into()), PutLease::Set(LeaseId::NONE));
            let put = Put { key: format!("key {at}").into(), value, lease, prev_kv: false };
            store.apply(&Write::Put(put), Time(0)).answer.expect("a put");
        }
        store.apply(&Write::Compact(Revision(9)), Time(0)).answer.expect("a compaction");
        store
    }

    fn origin(token: u32) -> Origin {
        Origin { shard: 0, token }
    }

    #[test]
    fn hashes_run_one_by_one_and_those_that_wait_hold_nothing() {
        let store = filled();
        let mut hashes = Hashes::default();
        for token in 1..=3 {
            hashes.wait(origin(token), Read::Hash { revision: 0 });
        }
        assert_eq!((hashes.oldest(), hashes.is_idle()), (None, false));
        let mut told = Vec::new();
        while !hashes.is_idle() {
            if let Some((origin, result)) = hashes.turn(&store, store.revision(), 3, |_| true) {
                let Outcome::Hash(hash) = result.expect("a hash").result else { panic!("a hash was asked") };
                told.push((origin.token, hash.hash));
                assert_eq!((hashes.oldest(), hashes.scratch_bytes()), (None, 0));
            } else {
                assert_eq!(hashes.oldest(), Some(Revision(9)));
            }
        }
        assert_eq!(told.iter().map(|(token, _)| *token).collect::<Vec<_>>(), [1, 2, 3]);
        assert!(told.iter().all(|(_, hash)| *hash == told[0].1));
    }

    #[test]
    fn a_hash_for_which_there_is_no_memory_ends_and_the_next_one_begins() {
        let store = filled();
        let mut hashes = Hashes::default();
        hashes.wait(origin(1), Read::Hash { revision: 3 });
        hashes.wait(origin(2), Read::Hash { revision: 0 });
        hashes.wait(origin(3), Read::Hash { revision: 0 });
        let compacted = Error::Compacted { asked: 3, compacted: Revision(9) };
        assert_eq!(hashes.turn(&store, store.revision(), 3, |_| true), Some((origin(1), Err(compacted))));
        assert_eq!(hashes.turn(&store, store.revision(), 3, |_| false), Some((origin(2), Err(Error::NoMemory))));
        assert_eq!(hashes.turn(&store, store.revision(), 1_000, |_| false).map(|(origin, _)| origin.token), Some(3));
    }
}
