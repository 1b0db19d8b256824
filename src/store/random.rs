//! Random writes, reads, compactions and removals against the store and the model, step by step the same.

mod kept;

use crate::random::Random;
use crate::sim::all_keys;
use crate::types::{Alarm, AlarmKind, Entry, Key, KeyRange, KeyValue, LeaseId, Revision, Time};

use super::command::*;
use super::model::Model;
use super::{CompactProgress, ReadJob, Store};

use self::kept::{Kept, Told};

const SEEDS: u64 = 64;
const STEPS: usize = 5_000;

struct World {
    random: Random,
    store: Store,
    model: Model,
    /// The committed revision: it follows the applied one with a delay.
    committed: Revision,
    /// Reads under way, with the answer that the model gave when they began.
    reads: Vec<(ReadJob, Result<Answer, Error>)>,
    keys: u64,
    /// What a disk holds of all this.
    kept: Kept,
}

impl World {
    fn new(seed: u64) -> World {
        let mut random = Random::new(seed);
        let keys = *random.pick(&[3, 12, 40]);
        let (store, model) = (Store::new(), Model::new());
        World { random, store, model, committed: Revision::FIRST, reads: Vec::new(), keys, kept: Kept::default() }
    }

    fn step(&mut self) {
        match self.random.below(22) {
            0..8 => self.write(),
            8..11 => self.start_read(),
            11..15 => self.step_reads(),
            15..17 => self.commit(),
            17 if self.random.one_in(4) => self.compact(),
            // Rare, and most of them taken back soon: what a store under an alarm does is quickly told.
            18 if self.random.one_in(20) => self.alarm(true),
            17 | 18 => self.remove(),
            19 if self.random.one_in(20) => self.restore(),
            19 | 20 => self.kept.take(self.random.below(8) as usize),
            _ if self.random.one_in(4) => self.alarm(false),
            _ => self.read_history(),
        }
        assert_eq!(self.store.revision(), self.model.revision());
    }

    fn write(&mut self) {
        let write = match self.random.below(10) {
            0..5 => Write::Put(self.put()),
            5..7 => Write::DeleteRange(self.delete()),
            _ => Write::Txn(self.txn(3)),
        };
        let time = Time(self.random.below(1 << 40));
        let before = self.store.bytes();
        let applied = self.store.apply(&write, time);
        let (answer, entry) = self.model.apply(&write, time);
        assert_eq!(applied.answer, answer, "{write:?}");
        assert_eq!(applied.entry, entry, "{write:?}");
        match applied.entry {
            Some(Entry::Batch(batch)) => self.kept.tell(Told::Batch(batch)),
            Some(entry) => panic!("no other write is drawn here: {entry:?}"),
            None => assert_eq!(self.store.bytes(), before, "what changed nothing takes nothing: {write:?}"),
        }
    }

    /// Raises one of four alarms, or takes back all; now and then also one that nobody raised.
    fn alarm(&mut self, active: bool) {
        let kind = *self.random.pick(&[AlarmKind::NoSpace, AlarmKind::NoSpace, AlarmKind::Corrupt]);
        let alarm = Alarm { member: self.random.below(2), kind };
        let mut writes = vec![Write::Alarm { alarm, active }];
        if !active {
            writes.extend(self.model.alarms().into_iter().map(|alarm| Write::Alarm { alarm, active }));
        }
        for write in writes {
            let applied = self.store.apply(&write, Time(0));
            assert_eq!((applied.answer, applied.entry), self.model.apply(&write, Time(0)));
            assert_eq!(self.store.alarms().collect::<Vec<_>>(), self.model.alarms());
        }
    }

    fn commit(&mut self) {
        let ahead = (self.store.revision().0 - self.committed.0) as u64;
        self.committed = Revision(self.committed.0 + self.random.below(ahead + 1) as i64);
    }

    fn compact(&mut self) {
        let revision = Revision(self.near_revision());
        let applied = self.store.apply(&Write::Compact(revision), Time(0));
        let is_done = applied.answer.is_ok();
        assert_eq!((applied.answer, applied.entry), self.model.apply(&Write::Compact(revision), Time(0)));
        if is_done {
            self.kept.tell(Told::Compaction(revision));
        }
        assert_eq!(self.store.compacted().unwrap_or(Revision(-1)), self.model.compacted());
    }

    fn remove(&mut self) {
        let oldest = self.reads.iter().map(|(job, _)| job.oldest()).fold(self.committed, Revision::min);
        let oldest = oldest.min(self.kept.compacted());
        let visits_max = *self.random.pick(&[0, 1, 3, 1000]);
        self.store.compact_step(visits_max, Some(oldest));
        self.store.take_removed().into_iter().for_each(|id| self.kept.tell(Told::Removed(id)));
        let bytes = self.store.bytes();
        assert_eq!((bytes.keys, bytes.versions), self.store.index.recount());
        assert_eq!(bytes.history, self.store.history.recount());
    }

    fn restore(&mut self) {
        self.kept.check_restored(&self.store);
    }

    fn start_read(&mut self) {
        let read = match self.random.below(4) {
            0 => {
                let compares = (0..self.random.below(3)).map(|_| self.compare()).collect();
                let mut ranges = || (0..self.random.below(3)).map(|_| Op::Range(self.range())).collect::<Vec<_>>();
                let (success, failure) = (ranges(), ranges());
                Read::Txn(Txn { compares, success, failure })
            }
            _ => Read::Range(self.range()),
        };
        let expected = self.model.read(&read, self.committed);
        match self.store.read(&read, self.committed) {
            Ok(job) => self.reads.push((job, expected)),
            Err(error) => assert_eq!(Err(error), expected, "{read:?}"),
        }
    }

    fn step_reads(&mut self) {
        let rows_max = *self.random.pick(&[0, 1, 2, 7, 1000]);
        let mut at = 0;
        while at < self.reads.len() {
            let (job, expected) = &mut self.reads[at];
            match self.store.step(job, rows_max) {
                Some(answer) => {
                    assert_eq!(&answer, expected);
                    drop(self.reads.swap_remove(at));
                }
                None => at += 1,
            }
        }
    }

    fn read_history(&mut self) {
        let from = Revision(self.near_revision().max(0));
        let upto = Revision(self.near_revision());
        let batches_max = *self.random.pick(&[1, 3, 1000]);
        let bytes_max = *self.random.pick(&[1, 300, 1 << 30]);
        let read = self.store.history(from, upto, batches_max, bytes_max);
        let everything = KeyRange::From(Key::new());
        let expected = self.model.events(&everything, from, upto);
        let (batches, events) = match (read, expected) {
            (Ok(batches), Ok(events)) => (batches, events),
            (Err(compacted), Err(expected)) => return assert_eq!(compacted.compacted, expected),
            (read, expected) => panic!("history {from}..={upto}: {read:?}, model {expected:?}"),
        };
        let whole = batches.last().is_none_or(|last| last.revision == upto.min(self.store.revision()));
        assert!(whole || batches.len() == batches_max || bytes_max < 1 << 30, "history stops early");
        assert!(!batches.is_empty() || events.is_empty(), "history gives at least one batch");
        let mut expected = events.into_iter();
        for batch in &batches {
            for change in &batch.changes {
                assert_eq!(expected.next(), Some((batch.revision, change.clone())));
            }
        }
        assert!(!whole || expected.next().is_none());
    }

    /// Lets everything end, forgets all history, and asks for the bytes of the smallest store with these keys.
    fn settle(&mut self) {
        while !self.reads.is_empty() {
            self.step_reads();
        }
        self.committed = self.store.revision();
        self.alarm(false);
        if self.store.apply(&Write::Compact(self.committed), Time(0)).answer.is_ok() {
            self.kept.tell(Told::Compaction(self.committed));
        }
        while self.store.compact_step(5, Some(self.committed)) == CompactProgress::More {}
        assert!(self.store.compacted().is_none() || self.store.is_compact());
        self.store.take_removed().into_iter().for_each(|id| self.kept.tell(Told::Removed(id)));
        self.kept.take(usize::MAX);
        self.kept.check_exact(&self.store);
        self.kept.check_restored(&self.store);
        let rows = self.model.range(&all_keys(), self.committed).unwrap().rows;
        assert_eq!(self.store.keys(), rows.len(), "only live keys are left");
        let keys: usize = rows.iter().map(|kv| super::key_index::KEY_BYTES + kv.key().len()).sum();
        let versions: usize = rows.iter().map(KeyValue::bytes).sum();
        let bytes = self.store.bytes();
        assert_eq!((bytes.keys, bytes.versions), (keys, versions), "every byte that was counted is counted off");
        let last_batch = self.store.history(self.committed, self.committed, 9, 9).unwrap();
        assert!(last_batch.len() <= 1 && (bytes.history == 0) == last_batch.is_empty());
    }

    fn near_revision(&mut self) -> i64 {
        match self.random.below(8) {
            0 => self.random.below(5) as i64 - 2,
            1 => self.committed.0 + self.random.below(4) as i64,
            2 => self.model.compacted().0 + self.random.below(3) as i64 - 1,
            _ => self.store.revision().0 - self.random.below(60) as i64,
        }
    }

    fn key(&mut self) -> Key {
        let key = self.random.below(self.keys);
        Key::from(format!("{:02}", key))
    }

    fn key_range(&mut self) -> KeyRange {
        match self.random.below(8) {
            0..4 => KeyRange::One(self.key()),
            4..7 => KeyRange::Span { start: self.key(), end: self.key() },
            _ => KeyRange::From(self.key()),
        }
    }

    fn put(&mut self) -> Put {
        let value = if self.random.one_in(8) {
            PutValue::Keep
        } else {
            PutValue::Set(format!("v{}", self.random.below(30)).into())
        };
        let lease = match self.random.below(40) {
            0 => PutLease::Set(LeaseId(7)),
            1..4 => PutLease::Keep,
            _ => PutLease::Set(LeaseId::NONE),
        };
        Put { key: self.key(), value, lease, prev_kv: self.random.one_in(2) }
    }

    fn delete(&mut self) -> DeleteRange {
        DeleteRange { range: self.key_range(), prev_kv: self.random.one_in(2) }
    }

    fn range(&mut self) -> Range {
        let mut range = all_keys();
        if !self.random.one_in(3) {
            range.range = self.key_range();
        }
        if self.random.one_in(2) {
            range.revision = self.near_revision();
        }
        range.limit = *self.random.pick(&[0, 0, 1, 2, 5, usize::MAX]);
        range.order = *self.random.pick(&[SortOrder::None, SortOrder::Ascend, SortOrder::Descend]);
        range.target = *self.random.pick(&[
            SortTarget::Key,
            SortTarget::Key,
            SortTarget::Version,
            SortTarget::Create,
            SortTarget::Mod,
            SortTarget::Value,
        ]);
        range.keys_only = self.random.one_in(4);
        range.count_only = self.random.one_in(8);
        let mut bound = || if self.random.one_in(10) { self.near_revision() } else { 0 };
        range.min_mod_revision = bound();
        range.max_mod_revision = bound();
        range.min_create_revision = bound();
        range.max_create_revision = bound();
        range
    }

    fn compare(&mut self) -> Compare {
        let relation = *self.random.pick(&[
            Relation::Equal,
            Relation::Greater,
            Relation::Less,
            Relation::NotEqual,
            Relation::Unknown,
        ]);
        let operand = match self.random.below(6) {
            0 => Operand::Version(self.random.below(3) as i64),
            1 => Operand::Create(self.near_revision() * self.random.below(2) as i64),
            2 => Operand::Mod(self.near_revision() * self.random.below(2) as i64),
            3 => Operand::Value(format!("v{}", self.random.below(30)).into()),
            4 => Operand::Lease(self.random.below(2) as i64),
            _ => Operand::Unknown,
        };
        Compare { range: self.key_range(), relation, operand }
    }

    /// Also what the services refuse (a key put twice): the store must keep its order even then.
    fn txn(&mut self, depth: u64) -> Txn {
        let compares = (0..self.random.below(3)).map(|_| self.compare()).collect();
        let mut branch = || (0..self.random.below(5)).map(|_| self.op(depth)).collect::<Vec<_>>();
        let (success, failure) = (branch(), branch());
        Txn { compares, success, failure }
    }

    fn op(&mut self, depth: u64) -> Op {
        match self.random.below(9) {
            0..4 => Op::Put(self.put()),
            4..6 => Op::DeleteRange(self.delete()),
            6 | 7 => Op::Range(self.range()),
            _ if depth > 0 => Op::Txn(self.txn(depth - 1)),
            _ => Op::Put(self.put()),
        }
    }
}

#[test]
fn the_store_answers_what_the_model_says() {
    for seed in 0..SEEDS {
        let run = std::panic::AssertUnwindSafe(|| {
            let mut world = World::new(seed);
            for _ in 0..STEPS {
                world.step();
            }
            world.settle();
        });
        if let Err(panic) = std::panic::catch_unwind(run) {
            eprintln!("seed {seed}");
            std::panic::resume_unwind(panic);
        }
    }
}

#[test]
fn the_model_notices_a_delete_that_is_lost_when_compacting_at_it() {
    let noticed = (0..SEEDS).any(|seed| {
        let run = std::panic::AssertUnwindSafe(|| {
            let mut world = World::new(seed);
            world.store.planted.lost_delete_at_compaction = true;
            for _ in 0..STEPS {
                world.step();
            }
        });
        std::panic::catch_unwind(run).is_err()
    });
    assert!(noticed);
}
