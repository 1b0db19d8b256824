//! A look at a transaction's bytes before it is built.
//!
//! An operation that names nothing takes two bytes on the wire and 140 once decoded: 1.5 MiB of them would become more
//! than 100 MB. So the operations are counted first, and the count stops at the limit. A scan that passes bounds what
//! the decoder builds; it does not say that the message is valid, since it reads only what nests.
//!
//! The counts are etcd's: each list of a transaction is held to an allowance, and a nested transaction to what the
//! longest list around it left. Three things differ. etcd judges the counts of a nested transaction only after the keys
//! of the comparisons around it, so of two mistakes we may name the other. etcd has no limit on all lists together,
//! which nested transactions can multiply to as many operations as fit the message; ours is [`TOTAL_PER_ALLOWED`] times
//! the allowance. And the generated decoder holds 50 levels of nesting, where etcd's allowance ends at 128; we stop at
//! [`DEPTH_MAX`].

use crate::grpc::status::Status;
use crate::service::errors::{Refusal, malformed_request};
use crate::service::wire::{Fields, Malformed};

/// Levels of nested transactions.
const DEPTH_MAX: usize = 48;

/// Comparisons and operations of all levels together, for each one that a single list may have: 8,192 by default.
const TOTAL_PER_ALLOWED: usize = 64;

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum ScanError {
    Malformed,
    TooManyOps,
}

impl From<Malformed> for ScanError {
    fn from(Malformed: Malformed) -> ScanError {
        ScanError::Malformed
    }
}

impl ScanError {
    pub fn status(self) -> Status {
        match self {
            ScanError::Malformed => malformed_request(),
            ScanError::TooManyOps => Refusal::TooManyOps.into(),
        }
    }
}

/// Counts what a TxnRequest holds.
///
/// # Errors
/// When it holds too much, or when its bytes do not even nest.
pub fn scan_txn(message: &[u8], ops_max: usize) -> Result<(), ScanError> {
    let mut total_left = ops_max.saturating_mul(TOTAL_PER_ALLOWED);
    scan(&[Fields::new(message)], ops_max, DEPTH_MAX, &mut total_left)
}

/// One transaction, which may come in several parts: a member of a oneof that is given twice is merged.
fn scan(parts: &[Fields<'_>], ops_max: usize, depth_left: usize, total_left: &mut usize) -> Result<(), ScanError> {
    let longest = count(parts, ops_max, total_left)?;
    for part in parts {
        let mut fields = part.clone();
        while let Some((number, value)) = fields.next()? {
            if number == 2 || number == 3 {
                scan_op(fields.nested(value.bytes()?)?, ops_max - longest, depth_left, total_left)?;
            }
        }
    }
    Ok(())
}

/// The length of the longest of the three lists.
fn count(parts: &[Fields<'_>], ops_max: usize, total_left: &mut usize) -> Result<usize, ScanError> {
    let mut counts = [0; 3];
    for part in parts {
        let mut fields = part.clone();
        while let Some((number, _)) = fields.next()? {
            if let number @ 1..=3 = number {
                let count = &mut counts[number as usize - 1];
                *count += 1;
                if *count > ops_max {
                    return Err(ScanError::TooManyOps);
                }
                *total_left = total_left.checked_sub(1).ok_or(ScanError::TooManyOps)?;
            }
        }
    }
    Ok(counts.into_iter().max().unwrap_or(0))
}

/// A RequestOp. All transactions in it count as one, also those that another member between them replaces, since the
/// decoder builds them before it drops them.
fn scan_op(mut op: Fields<'_>, ops_max: usize, depth_left: usize, total_left: &mut usize) -> Result<(), ScanError> {
    let mut parts = Vec::new();
    while let Some((number, value)) = op.next()? {
        if number == 4 {
            parts.push(op.nested(value.bytes()?)?);
            *total_left = total_left.checked_sub(1).ok_or(ScanError::TooManyOps)?;
        }
    }
    if parts.is_empty() {
        return Ok(());
    }
    let depth_left = depth_left.checked_sub(1).ok_or(ScanError::TooManyOps)?;
    scan(&parts, ops_max, depth_left, total_left)
}

#[cfg(test)]
mod tests {
    use prost::Message as _;

    use super::*;
    use crate::pb::etcdserverpb::{Compare, RangeRequest, RequestOp, TxnRequest, request_op::Request};
    use crate::service::random::Random;

    fn op(request: Request) -> RequestOp {
        RequestOp { request: Some(request) }
    }

    fn ranges(count: usize) -> TxnRequest {
        let range = op(Request::RequestRange(RangeRequest { key: "a".into(), ..Default::default() }));
        TxnRequest { success: vec![range; count], ..Default::default() }
    }

    fn nest(inner: TxnRequest) -> TxnRequest {
        TxnRequest { success: vec![op(Request::RequestTxn(inner))], ..Default::default() }
    }

    fn scan_of(txn: &TxnRequest) -> Result<(), ScanError> {
        scan_txn(&txn.encode_to_vec(), 128)
    }

    #[test]
    fn each_list_is_held_to_the_allowance() {
        assert_eq!(scan_of(&ranges(128)), Ok(()));
        assert_eq!(scan_of(&ranges(129)), Err(ScanError::TooManyOps));
        let failure = TxnRequest { failure: ranges(129).success, ..Default::default() };
        assert_eq!(scan_of(&failure), Err(ScanError::TooManyOps));
        let compare = TxnRequest { compare: vec![Compare::default(); 129], ..Default::default() };
        assert_eq!(scan_of(&compare), Err(ScanError::TooManyOps));
        let full = TxnRequest { compare: vec![Compare::default(); 128], failure: ranges(128).success, ..ranges(128) };
        assert_eq!(scan_of(&full), Ok(()), "the lists are counted apart");
    }

    #[test]
    fn a_nested_transaction_may_hold_what_the_longest_list_around_it_left() {
        assert_eq!(scan_of(&nest(ranges(127))), Ok(()));
        assert_eq!(scan_of(&nest(ranges(128))), Err(ScanError::TooManyOps));
        assert_eq!(scan_of(&nest(nest(ranges(126)))), Ok(()));
        assert_eq!(scan_of(&nest(nest(ranges(127)))), Err(ScanError::TooManyOps));
        let compares = |count| TxnRequest { compare: vec![Compare::default(); count], ..nest(ranges(28)) };
        assert_eq!(scan_of(&compares(100)), Ok(()));
        assert_eq!(scan_of(&compares(101)), Err(ScanError::TooManyOps));
        let siblings = TxnRequest { success: vec![nest(ranges(64)).success.remove(0); 64], ..Default::default() };
        assert_eq!(scan_of(&siblings), Ok(()), "each nested transaction has the allowance to itself");
    }

    #[test]
    fn all_levels_together_are_bounded() {
        let wide = |count: usize, inner: TxnRequest| TxnRequest {
            success: vec![op(Request::RequestTxn(inner)); count],
            ..Default::default()
        };
        assert_eq!(scan_of(&wide(60, wide(6, ranges(20)))), Ok(()), "some 8,000");
        assert_eq!(scan_of(&wide(60, wide(7, ranges(20)))), Err(ScanError::TooManyOps), "some 9,000");
        let built_bytes = 128 * TOTAL_PER_ALLOWED * (size_of::<RequestOp>() + size_of::<crate::store::command::Op>());
        assert!(built_bytes <= 4 << 20, "what the decoder builds and the command together: {built_bytes}");
    }

    #[test]
    fn nesting_ends_before_the_decoder_gives_up() {
        let deep = |depth| (0..depth).fold(ranges(1), |inner, _| nest(inner));
        assert_eq!(scan_of(&deep(DEPTH_MAX)), Ok(()));
        assert!(TxnRequest::decode(&deep(DEPTH_MAX).encode_to_vec()[..]).is_ok());
        assert_eq!(scan_of(&deep(DEPTH_MAX + 1)), Err(ScanError::TooManyOps));
        let mut message = Vec::new();
        for _ in 0..10_000 {
            let op = [varint_field(4, &message), message].concat();
            message = [varint_field(2, &op), op].concat();
        }
        assert_eq!(scan_txn(&message, usize::MAX >> 8), Err(ScanError::TooManyOps));
    }

    /// Key and length of a length-delimited field.
    fn varint_field(number: u8, content: &[u8]) -> Vec<u8> {
        let mut head = vec![number << 3 | 2];
        prost::encode_length_delimiter(content.len(), &mut head).unwrap();
        head
    }

    #[test]
    fn a_message_of_empty_operations_is_refused_after_a_few_of_them() {
        let message = [0x12, 0].repeat(786_432);
        assert_eq!(scan_txn(&message, 128), Err(ScanError::TooManyOps));
        let hidden = [varint_field(4, &message), message].concat();
        let nested = [varint_field(2, &hidden), hidden].concat();
        assert_eq!(scan_txn(&nested, 128), Err(ScanError::TooManyOps));
    }

    #[test]
    fn parts_of_one_transaction_are_counted_together() {
        let part = op(Request::RequestTxn(ranges(80))).encode_to_vec();
        let merged = [&part[..], &part].concat();
        let message = [varint_field(2, &merged), merged].concat();
        assert_eq!(scan_txn(&message, 128), Err(ScanError::TooManyOps));
        let split_by_range = [&part[..], &ranges(1).success[0].encode_to_vec(), &part].concat();
        let message = [varint_field(2, &split_by_range), split_by_range].concat();
        assert_eq!(scan_txn(&message, 128), Err(ScanError::TooManyOps));
    }

    /// What the decoder built: comparisons and operations, and the longest list.
    fn built(txn: &TxnRequest) -> (usize, usize) {
        let lists = [txn.compare.len(), txn.success.len(), txn.failure.len()];
        let mut all = (lists.iter().sum(), lists.into_iter().max().unwrap_or(0));
        for op in txn.success.iter().chain(&txn.failure) {
            if let Some(Request::RequestTxn(inner)) = &op.request {
                let (total, longest) = built(inner);
                all = (all.0 + total, all.1.max(longest));
            }
        }
        all
    }

    fn random_txn(random: &mut Random, depth: usize) -> TxnRequest {
        let ops = |random: &mut Random| {
            (0..random.below(4))
                .map(|_| match random.below(3) {
                    0 => RequestOp::default(),
                    1 if depth > 0 => op(Request::RequestTxn(random_txn(random, depth - 1))),
                    _ => op(Request::RequestRange(RangeRequest { key: random.key(3).into(), ..Default::default() })),
                })
                .collect()
        };
        let (success, failure) = (ops(random), ops(random));
        TxnRequest { compare: vec![Compare::default(); random.below(4)], success, failure }
    }

    #[test]
    fn a_scan_that_passes_bounds_what_is_built_and_one_that_fails_is_right() {
        for seed in 0..40_000 {
            let mut random = Random::new(seed);
            let mut message = random_txn(&mut random, 3).encode_to_vec();
            if random.one_in(8) {
                message = random.junk(40);
            } else if !random.one_in(4) {
                random.damage(&mut message);
            }
            let ops_max = 1 + random.below(12);
            match (scan_txn(&message, ops_max), TxnRequest::decode(&message[..])) {
                (Err(ScanError::Malformed), Ok(_)) => panic!("seed {seed}: prost takes {message:02x?}"),
                (Ok(()), Ok(txn)) => {
                    let (total, longest) = built(&txn);
                    assert!(total <= ops_max * TOTAL_PER_ALLOWED && longest <= ops_max, "seed {seed}");
                }
                _ => {}
            }
        }
    }
}
