//! `stm`: transactions in memory, as etcd's client library makes them out of the server's own.
//!
//! An attempt reads its keys one by one, each with a call, then commits what it writes under the condition that what it
//! has read still holds; if that fails, it begins anew. Which reads are linearizable and what the condition says is the
//! isolation. As in etcd's tool the time of a transaction holds all its attempts, the lock around it, and the waiting
//! that `--rate` asks for.

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::rc::Rc;

use bytes::Bytes;
use tarsier_proto::etcdserverpb as pb;
use tarsier_proto::etcdserverpb::compare::{CompareResult, CompareTarget, TargetUnion};

use super::calls::{closed_loop, put_request, wait_for};
use super::keys::{fresh_bytes, key};
use super::lock::Locks;
use super::pace::Pace;
use super::{Common, Isolation, SEED, StmArgs};
use crate::caller::Caller;
use crate::fault::{Fault, Result};
use crate::random::Random;
use crate::wire::{self, operation};

const KEY_BYTES: usize = 16;

/// What an attempt has read: of each key the revision that wrote it, 0 for none, and the store's at that time.
type Reads = BTreeMap<Bytes, Read>;

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
struct Read {
    mod_revision: i64,
    store_revision: i64,
}

pub async fn stm(common: &Common, args: StmArgs) -> Result<()> {
    if args.keys_per_txn > args.keys {
        return Err(Fault::Refused(format!("--keys-per-txn must lie between 0 and --keys, which is {}", args.keys)));
    }
    let callers = common.callers().await?;
    let locks = Locks::open(args.stm_locker, &callers).await?;
    let pace = Rc::new(RefCell::new(Pace::new(args.rate, 1)));
    let (mut random, held, total) = (Random::new(SEED), locks.clone(), args.total);
    let begin = move |caller: Caller, worker: usize, _| {
        let transaction = Transaction::draw(&args, &mut random);
        let (locks, pace) = (held.clone(), pace.clone());
        (0, async move {
            locks.lock(worker).await?;
            let outcome = transaction.run(&caller, &pace).await;
            // Also behind a refusal, or everybody else would wait for the lease to end.
            locks.unlock(worker).await?;
            outcome
        })
    };
    let outcome = closed_loop(common, callers, total, Pace::new(0, 1), &[""], begin).await;
    outcome.and(locks.close().await)
}

/// What one transaction reads and writes, the same in each attempt.
struct Transaction {
    isolation: Isolation,
    keys: Vec<Bytes>,
    /// Of the keys, so many first ones are overwritten.
    writes: Vec<Bytes>,
}

impl Transaction {
    fn draw(args: &StmArgs, random: &mut Random) -> Transaction {
        let mut keys: Vec<Bytes> = Vec::with_capacity(args.keys_per_txn as usize);
        while keys.len() < args.keys_per_txn as usize {
            let drawn = key(random.below(u64::from(args.keys)), KEY_BYTES);
            if !keys.contains(&drawn) {
                keys.push(drawn);
            }
        }
        let count = u64::from(args.keys_per_txn) * u64::from(args.txn_wr_percent) / 100;
        let writes = (0..count).map(|_| fresh_bytes(random, args.val_size)).collect();
        Transaction { isolation: args.isolation, keys, writes }
    }

    async fn run(&self, caller: &Caller, pace: &RefCell<Pace>) -> Result<()> {
        // What a failed commit has read of the present spares the next attempt its reads.
        let mut known = Reads::new();
        loop {
            wait_for(pace).await;
            let reads = self.read(caller, std::mem::take(&mut known)).await?;
            let commit = self.commit(&reads);
            let answer: pb::TxnResponse = caller.ask(wire::PATH_TXN, &commit).await?;
            if answer.succeeded {
                return Ok(());
            }
            known = self.reads(&answer)?;
        }
    }

    fn reads_one_revision(&self) -> bool {
        matches!(self.isolation, Isolation::Serializable | Isolation::Snapshot)
    }

    async fn read(&self, caller: &Caller, known: Reads) -> Result<Reads> {
        let mut reads = Reads::new();
        let mut revision = 0;
        for key in &self.keys {
            let read = match known.get(key) {
                Some(read) => *read,
                None => self.read_one(caller, key, revision).await?,
            };
            if self.reads_one_revision() && revision == 0 {
                // The first read says of which revision all are.
                revision = read.store_revision;
            }
            reads.insert(key.clone(), read);
        }
        Ok(reads)
    }

    async fn read_one(&self, caller: &Caller, key: &Bytes, revision: i64) -> Result<Read> {
        let serializable = !self.reads_one_revision() || revision > 0;
        let get = pb::RangeRequest { key: key.clone(), revision, serializable, ..Default::default() };
        let request = pb::TxnRequest { success: vec![get_operation(get)], ..Default::default() };
        let answer: pb::TxnResponse = caller.ask(wire::PATH_TXN, &request).await?;
        read_in(&answer, 0)
    }

    fn commit(&self, reads: &Reads) -> pb::TxnRequest {
        let writes = || self.keys.iter().zip(&self.writes);
        let is = |key: &Bytes, result: CompareResult, revision| pb::Compare {
            key: key.clone(),
            result: result.into(),
            target: CompareTarget::Mod.into(),
            target_union: Some(TargetUnion::ModRevision(revision)),
            ..Default::default()
        };
        let mut compare: Vec<pb::Compare> = Vec::new();
        if self.isolation != Isolation::ReadCommitted {
            compare.extend(reads.iter().map(|(key, read)| is(key, CompareResult::Equal, read.mod_revision)));
        }
        if self.isolation == Isolation::Snapshot
            && let Some(first) = reads.values().map(|read| read.store_revision).min()
        {
            compare.extend(writes().map(|(key, _)| is(key, CompareResult::Less, first + 1)));
        }
        let put = |(key, value): (&Bytes, &Bytes)| {
            operation(pb::request_op::Request::RequestPut(put_request(key.clone(), value)))
        };
        let success = writes().map(put).collect();
        // The next attempt reads all at one revision, so a conflict may bring it along.
        let again = self.keys.iter().filter(|_| self.reads_one_revision());
        let failure = again.map(|key| get_operation(pb::RangeRequest { key: key.clone(), ..Default::default() }));
        pb::TxnRequest { compare, success, failure: failure.collect() }
    }

    /// What a commit that failed has read instead.
    fn reads(&self, answer: &pb::TxnResponse) -> Result<Reads> {
        let keys = self.keys.iter().enumerate().take(answer.responses.len());
        keys.map(|(at, key)| Ok((key.clone(), read_in(answer, at)?))).collect()
    }
}

fn get_operation(get: pb::RangeRequest) -> pb::RequestOp {
    operation(pb::request_op::Request::RequestRange(get))
}

fn read_in(answer: &pb::TxnResponse, at: usize) -> Result<Read> {
    let response = answer.responses.get(at).and_then(|response| response.response.as_ref());
    let Some(pb::response_op::Response::ResponseRange(range)) = response else {
        return Err(Fault::Broken("a transaction that reads was answered without what it read".to_owned()));
    };
    let mod_revision = range.kvs.first().map_or(0, |found| found.mod_revision);
    let store_revision = answer.header.as_ref().map_or(0, |header| header.revision);
    Ok(Read { mod_revision, store_revision })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::etcd_load::Locker;

    fn args(isolation: Isolation, keys_per_txn: u32, txn_wr_percent: u32) -> StmArgs {
        let (keys, total, stm_locker, val_size, rate) = (100, 1, Locker::Stm, 8, 0);
        StmArgs { isolation, keys, total, keys_per_txn, txn_wr_percent, stm_locker, val_size, rate }
    }

    fn transaction(isolation: Isolation, keys_per_txn: u32, txn_wr_percent: u32) -> Transaction {
        Transaction::draw(&args(isolation, keys_per_txn, txn_wr_percent), &mut Random::new(7))
    }

    #[test]
    fn so_many_per_cent_of_the_keys_are_overwritten_rounded_down() {
        for (keys, percent, writes) in [(1, 50, 0), (1, 100, 1), (10, 25, 2), (100, 100, 100), (0, 100, 0)] {
            let transaction = transaction(Isolation::RepeatableReads, keys, percent);
            assert_eq!(transaction.writes.len(), writes, "{percent} % of {keys}");
            let mut distinct = transaction.keys.clone();
            distinct.sort_unstable();
            distinct.dedup();
            assert_eq!(distinct.len(), keys as usize);
        }
    }

    #[test]
    fn the_isolation_says_what_a_commit_asks_for() {
        let expected = [
            (Isolation::ReadCommitted, 0, 0),
            (Isolation::RepeatableReads, 4, 0),
            (Isolation::Serializable, 4, 4),
            (Isolation::Snapshot, 4 + 2, 4),
        ];
        for (isolation, compares, reads_again) in expected {
            let transaction = transaction(isolation, 4, 50);
            let read = Read { mod_revision: 5, store_revision: 9 };
            let reads: Reads = transaction.keys.iter().map(|key| (key.clone(), read)).collect();
            let commit = transaction.commit(&reads);
            let counts = (commit.compare.len(), commit.success.len(), commit.failure.len());
            assert_eq!(counts, (compares, 2, reads_again), "{isolation:?}");
            let since = commit.compare.iter().filter(|compare| compare.result == i32::from(CompareResult::Less));
            assert!(since.map(|compare| &compare.target_union).all(|at| *at == Some(TargetUnion::ModRevision(10))));
        }
    }

    #[test]
    fn a_conflict_brings_along_what_the_next_attempt_reads() {
        let transaction = transaction(Isolation::Serializable, 2, 50);
        let response = |kvs| pb::ResponseOp {
            response: Some(pb::response_op::Response::ResponseRange(pb::RangeResponse { kvs, ..Default::default() })),
        };
        let found = tarsier_proto::mvccpb::KeyValue { mod_revision: 8, ..Default::default() };
        let header = Some(pb::ResponseHeader { revision: 12, ..Default::default() });
        let mut answer =
            pb::TxnResponse { header, succeeded: false, responses: vec![response(vec![found]), response(vec![])] };
        let reads = transaction.reads(&answer).unwrap();
        let expected = [8, 0].map(|mod_revision| Read { mod_revision, store_revision: 12 });
        assert_eq!(transaction.keys.iter().map(|key| reads[key]).collect::<Vec<_>>(), expected);
        answer.responses.clear();
        assert_eq!(transaction.reads(&answer).unwrap(), Reads::new());
    }
}
