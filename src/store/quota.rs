//! What a write costs against the space quota, by etcd's rule.
//!
//! Only puts cost anything: 256 bytes beside key and value, an estimate for what etcd keeps with each. A transaction costs
//! what the dearer of its two branches does, whichever it takes, so one that would take a branch without a put is refused
//! with the other. Deletes and compactions cost nothing: they are the way out.

use super::command::{Op, Put, PutValue, Txn, Write};

/// etcd's estimate for what stands beside a key and its value.
pub const PUT_OVERHEAD_BYTES: u64 = 256;

/// etcd suggests no more, since its own work grows with the size of its file.
pub const SUGGESTED_BYTES_MAX: u64 = 8 << 30;

/// What a write costs, in bytes; 0 for one that every alarm for want of space lets pass.
pub fn cost_bytes(write: &Write) -> u64 {
    match write {
        Write::Put(put) => put_bytes(put),
        Write::Txn(txn) => txn_bytes(txn),
        Write::DeleteRange(_) | Write::Compact(_) | Write::Alarm { .. } => 0,
    }
}

fn put_bytes(put: &Put) -> u64 {
    let value_bytes = match &put.value {
        PutValue::Set(value) => value.len(),
        PutValue::Keep => 0,
    };
    PUT_OVERHEAD_BYTES + (put.key.len() + value_bytes) as u64
}

/// The recursion is as deep as the transactions nest, which the service has bounded.
fn txn_bytes(txn: &Txn) -> u64 {
    branch_bytes(&txn.success).max(branch_bytes(&txn.failure))
}

fn branch_bytes(ops: &[Op]) -> u64 {
    let costs = ops.iter().map(|op| match op {
        Op::Put(put) => put_bytes(put),
        Op::Txn(txn) => txn_bytes(txn),
        Op::Range(_) | Op::DeleteRange(_) => 0,
    });
    costs.sum()
}

/// How much the store may hold.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Quota {
    /// `None`: there is no quota.
    pub bytes: Option<u64>,
}

impl Quota {
    /// Whether a write of this cost may go on while the store holds so much. What costs nothing always may.
    pub fn admits(self, used_bytes: u64, cost_bytes: u64) -> bool {
        cost_bytes == 0 || self.bytes.is_none_or(|quota| used_bytes.saturating_add(cost_bytes) < quota)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::store::command::{DeleteRange, PutLease};
    use crate::types::{KeyRange, LeaseId, Revision};

    fn put(key: &'static str, value: &'static str) -> Put {
        let (value, lease) = (PutValue::Set(value.into()), PutLease::Set(LeaseId::NONE));
        Put { key: key.into(), value, lease, prev_kv: false }
    }

    fn txn(success: Vec<Op>, failure: Vec<Op>) -> Txn {
        Txn { compares: Vec::new(), success, failure }
    }

    fn delete() -> DeleteRange {
        DeleteRange { range: KeyRange::One("a".into()), prev_kv: false }
    }

    #[test]
    fn a_put_costs_256_bytes_beside_its_key_and_value() {
        assert_eq!(cost_bytes(&Write::Put(put("key", "value"))), 256 + 3 + 5);
        assert_eq!(cost_bytes(&Write::Put(Put { value: PutValue::Keep, ..put("key", "") })), 256 + 3);
        assert_eq!(cost_bytes(&Write::DeleteRange(delete())), 0);
        assert_eq!(cost_bytes(&Write::Compact(Revision(2))), 0);
    }

    #[test]
    fn a_transaction_costs_its_dearer_branch_whichever_it_takes() {
        let nested = txn(vec![Op::Put(put("b", "1"))], vec![Op::Put(put("b", "1")), Op::Put(put("c", "1"))]);
        let outer = txn(vec![Op::DeleteRange(delete())], vec![Op::Put(put("a", "1")), Op::Txn(nested)]);
        assert_eq!(cost_bytes(&Write::Txn(outer)), 3 * 258);
        assert_eq!(cost_bytes(&Write::Txn(txn(vec![Op::DeleteRange(delete())], Vec::new()))), 0);
    }

    #[test]
    fn a_write_that_would_reach_the_quota_is_refused() {
        let quota = Quota { bytes: Some(1_000) };
        assert!(quota.admits(742, 257) && !quota.admits(742, 258));
        assert!(quota.admits(5_000, 0), "what costs nothing passes however much there is");
        assert!(Quota { bytes: None }.admits(u64::MAX, u64::MAX));
    }
}
