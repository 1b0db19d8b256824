//! Keys that one transaction would write twice.
//!
//! All changes of a transaction share one revision, so etcd refuses a key that is put twice, or put and deleted, in one
//! branch. This keeps etcd's rule with its two holes, because a transaction that etcd takes must work here:
//!
//! - a delete of "every key from this one on" (`range_end` is a zero byte) is compared as if it ended before the key
//!   `\0`, and so meets no put;
//! - nested transactions are looked at in order, and the deletes of one are remembered only after it: a put in one and
//!   a delete in a later sibling do not meet. The other way around they do.
//!
//! What slips through runs in order, and both events carry the one revision.

use std::collections::{BTreeMap, HashSet};
use std::ops::Bound;

use bytes::Bytes;

use crate::pb::etcdserverpb::{DeleteRangeRequest, RequestOp, TxnRequest, request_op::Request};
use crate::service::errors::Refusal;

/// Checks both branches of a transaction.
///
/// # Errors
/// [`Refusal::DuplicateKey`].
pub fn check_overlap(txn: &TxnRequest) -> Result<(), Refusal> {
    branch(&txn.success)?;
    branch(&txn.failure)?;
    Ok(())
}

/// What a list of operations writes, nested transactions included.
#[derive(Default)]
struct Written {
    puts: HashSet<Bytes>,
    deletes: Spans,
}

fn branch(ops: &[RequestOp]) -> Result<Written, Refusal> {
    let mut written = Written::default();
    for op in ops {
        if let Some(Request::RequestDeleteRange(delete)) = &op.request {
            written.deletes.insert_delete(delete);
        }
    }
    for op in ops {
        if let Some(Request::RequestTxn(txn)) = &op.request {
            written.nest(txn)?;
        }
    }
    for op in ops {
        if let Some(Request::RequestPut(put)) = &op.request
            && (written.deletes.contains(&put.key) || !written.puts.insert(put.key.clone()))
        {
            return Err(Refusal::DuplicateKey);
        }
    }
    Ok(written)
}

impl Written {
    /// Takes in both branches of a nested transaction. They exclude each other, so they may put the same key.
    fn nest(&mut self, txn: &TxnRequest) -> Result<(), Refusal> {
        let (success, failure) = (branch(&txn.success)?, branch(&txn.failure)?);
        for inner in [&success, &failure] {
            if self.puts_meet(&inner.puts) {
                return Err(Refusal::DuplicateKey);
            }
        }
        for inner in [success, failure] {
            self.puts = union(std::mem::take(&mut self.puts), inner.puts);
            self.deletes.union(inner.deletes);
        }
        Ok(())
    }

    fn puts_meet(&self, inner: &HashSet<Bytes>) -> bool {
        !self.puts.is_disjoint(inner) || inner.iter().any(|key| self.deletes.contains(key))
    }
}

/// The smaller set moves into the larger one, so that a chain of nested transactions does not copy its keys at each
/// level.
fn union(a: HashSet<Bytes>, b: HashSet<Bytes>) -> HashSet<Bytes> {
    let (mut large, small) = if a.len() < b.len() { (b, a) } else { (a, b) };
    large.extend(small);
    large
}

/// Spans of keys, joined where they touch: start to end, the end excluded.
#[derive(Default)]
struct Spans(BTreeMap<Bytes, Bytes>);

impl Spans {
    fn insert_delete(&mut self, delete: &DeleteRangeRequest) {
        let end = match &delete.range_end[..] {
            [] => [&delete.key[..], &[0]].concat().into(),
            _ => delete.range_end.clone(),
        };
        self.insert(delete.key.clone(), end);
    }

    /// A span that ends at or before its start holds no key; that is also how the first hole comes about.
    fn insert(&mut self, mut start: Bytes, mut end: Bytes) {
        if end <= start {
            return;
        }
        // Each span that is absorbed was inserted once, which bounds the loop over all insertions together.
        while let Some((other, other_end)) =
            self.0.range::<[u8], _>((Bound::Unbounded, Bound::Included(&end[..]))).next_back()
        {
            if *other_end < start {
                break;
            }
            let other = other.clone();
            let other_end = self.0.remove(&other).expect("the span was just found");
            start = start.min(other);
            end = end.max(other_end);
        }
        self.0.insert(start, end);
    }

    fn contains(&self, key: &[u8]) -> bool {
        let below = self.0.range::<[u8], _>((Bound::Unbounded, Bound::Included(key))).next_back();
        below.is_some_and(|(_, end)| key < &end[..])
    }

    fn union(&mut self, mut other: Spans) {
        if self.0.len() < other.0.len() {
            std::mem::swap(self, &mut other);
        }
        for (start, end) in other.0 {
            self.insert(start, end);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::pb::etcdserverpb::PutRequest;
    use crate::service::random::Random;

    fn op(request: Request) -> RequestOp {
        RequestOp { request: Some(request) }
    }

    fn put(key: &'static str) -> RequestOp {
        op(Request::RequestPut(PutRequest { key: key.into(), ..Default::default() }))
    }

    fn delete(key: &'static str, range_end: &'static str) -> RequestOp {
        let (key, range_end) = (key.into(), range_end.into());
        op(Request::RequestDeleteRange(DeleteRangeRequest { key, range_end, prev_kv: false }))
    }

    fn txn(success: Vec<RequestOp>, failure: Vec<RequestOp>) -> RequestOp {
        op(Request::RequestTxn(TxnRequest { compare: vec![], success, failure }))
    }

    fn overlaps(ops: Vec<RequestOp>) -> bool {
        let [success, failure] = [
            TxnRequest { success: ops.clone(), ..Default::default() },
            TxnRequest { failure: ops, ..Default::default() },
        ]
        .map(|txn| check_overlap(&txn).is_err());
        assert_eq!(success, failure, "both branches are held to the rule");
        success
    }

    #[test]
    fn a_key_put_twice_or_put_and_deleted_is_refused() {
        assert!(overlaps(vec![put("a"), put("a")]));
        assert!(overlaps(vec![delete("a", "c"), put("b")]));
        assert!(overlaps(vec![put("a"), delete("a", "")]), "whatever the order");
        assert!(!overlaps(vec![put("a"), put("b"), delete("c", "")]));
        assert!(!overlaps(vec![delete("a", "c"), put("c")]), "the end is excluded");
        assert!(!overlaps(vec![delete("a", "c"), delete("b", "d")]), "deletes may overlap");
        assert!(!overlaps(vec![delete("c", "a"), put("b")]), "an empty range");
    }

    #[test]
    fn branches_that_exclude_each_other_may_put_the_same_key() {
        assert!(
            check_overlap(&TxnRequest { success: vec![put("a")], failure: vec![put("a")], ..Default::default() })
                .is_ok()
        );
        assert!(!overlaps(vec![txn(vec![put("a")], vec![put("a")])]));
        assert!(!overlaps(vec![txn(vec![put("a")], vec![delete("a", "")])]));
        assert!(overlaps(vec![txn(vec![put("a")], vec![]), txn(vec![], vec![put("a")])]), "siblings do not");
        assert!(overlaps(vec![put("a"), txn(vec![], vec![txn(vec![put("a")], vec![])])]));
    }

    #[test]
    fn a_delete_of_every_key_from_one_on_meets_no_put() {
        assert!(!overlaps(vec![delete("a", "\0"), put("b")]));
        assert!(!overlaps(vec![delete("\0", "\0"), put("b")]));
    }

    #[test]
    fn a_delete_in_a_nested_transaction_is_seen_by_what_is_looked_at_later() {
        assert!(!overlaps(vec![txn(vec![put("a")], vec![]), txn(vec![delete("a", "")], vec![])]));
        assert!(overlaps(vec![txn(vec![delete("a", "")], vec![]), txn(vec![put("a")], vec![])]));
        assert!(overlaps(vec![put("a"), txn(vec![delete("a", "")], vec![])]));
        assert!(overlaps(vec![delete("a", ""), txn(vec![put("a")], vec![])]));
    }

    #[test]
    fn joined_spans_hold_the_keys_that_were_inserted() {
        for seed in 0..5_000 {
            let mut random = Random::new(seed);
            let mut spans = Spans::default();
            let mut other = Spans::default();
            let mut plain = Vec::new();
            for _ in 0..random.below(12) {
                let (start, end) = (Bytes::from(random.key(3)), Bytes::from(random.key(3)));
                if random.one_in(2) { &mut spans } else { &mut other }.insert(start.clone(), end.clone());
                plain.push((start, end));
            }
            spans.union(other);
            for _ in 0..40 {
                let key = random.key(4);
                let expected = plain.iter().any(|(start, end)| start <= &key && &key < end);
                assert_eq!(spans.contains(&key), expected, "seed {seed}, key {key:?}, spans {plain:?}");
            }
        }
    }
}
