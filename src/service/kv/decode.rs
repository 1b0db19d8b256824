//! Requests to commands.
//!
//! What etcd refuses before it proposes is refused here, with its words and in its order: a request that is wrong in
//! two ways is told the first. Only the shape of a request is judged; whether a key, lease or revision exists is the
//! store's matter.

use bytes::Bytes;
use prost::Message;
use prost::encoding::encoded_len_varint;

use crate::backend::Command;
use crate::grpc::status::Status;
use crate::pb::etcdserverpb as wire;
use crate::pb::etcdserverpb::compare::{CompareResult, CompareTarget, TargetUnion};
use crate::pb::etcdserverpb::request_op::Request;
use crate::service::errors::Refusal;
use crate::service::kv::overlap::check_overlap;
use crate::service::kv::scan::scan_txn;
use crate::service::message::parse;
use crate::store::command::{
    Compare, DeleteRange, Op, Operand, Put, PutLease, PutValue, Range, Read, Relation, SortOrder, SortTarget, Txn,
    Write,
};
use crate::types::{KeyRange, LeaseId, Revision};

/// The unary calls of the service.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum KvMethod {
    Range,
    Put,
    DeleteRange,
    Txn,
    Compact,
}

/// What a request may weigh. Both are flags of etcd's, with its defaults.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Limits {
    /// Bytes of a write as etcd would propose it.
    pub request_bytes_max: usize,
    /// Entries of each list of a transaction.
    pub txn_ops_max: usize,
}

impl Default for Limits {
    fn default() -> Limits {
        Limits { request_bytes_max: 1_572_864, txn_ops_max: 128 }
    }
}

/// etcd proposes `InternalRaftRequest { header: RequestHeader { ID }, .. }`: key and length of field 100, then key and
/// number of the id, whose upper 16 bits are those of the member and make its varint 9 bytes long.
const PROPOSAL_HEAD_BYTES: usize = 2 + 1 + 1 + 9;

/// Reads the request of one call.
///
/// # Errors
/// With what etcd would answer to it whatever the store holds.
pub fn decode(method: KvMethod, message: Bytes, limits: &Limits) -> Result<Command, Status> {
    match method {
        KvMethod::Range => {
            let request = parse::<wire::RangeRequest>(message)?;
            Ok(checked_range(request)?)
        }
        KvMethod::Put => {
            let request = parse::<wire::PutRequest>(message)?;
            check_put(&request)?;
            check_size(&request, limits)?;
            Ok(Command::Write(Write::Put(put(request))))
        }
        KvMethod::DeleteRange => {
            let request = parse::<wire::DeleteRangeRequest>(message)?;
            Ok(checked_delete(request, limits)?)
        }
        KvMethod::Txn => decode_txn(message, limits),
        KvMethod::Compact => {
            let request = parse::<wire::CompactionRequest>(message)?;
            check_size(&request, limits)?;
            let revision = Revision(request.revision);
            Ok(if request.physical {
                Command::CompactPhysical(revision)
            } else {
                Command::Write(Write::Compact(revision))
            })
        }
    }
}

fn decode_txn(message: Bytes, limits: &Limits) -> Result<Command, Status> {
    scan_txn(&message, limits.txn_ops_max).map_err(|error| error.status())?;
    let request = parse::<wire::TxnRequest>(message)?;
    Ok(checked_txn(request, limits)?)
}

/// # Errors
/// As [`decode`] for a range.
pub fn checked_range(request: wire::RangeRequest) -> Result<Command, Refusal> {
    check_range(&request)?;
    Ok(Command::Read(Read::Range(range(request)?)))
}

/// # Errors
/// As [`decode`] for a delete.
pub fn checked_delete(request: wire::DeleteRangeRequest, limits: &Limits) -> Result<Command, Refusal> {
    check_delete(&request)?;
    check_size(&request, limits)?;
    Ok(Command::Write(Write::DeleteRange(delete_range(request))))
}

/// # Errors
/// As [`decode`] for a transaction whose operations were counted before.
pub fn checked_txn(request: wire::TxnRequest, limits: &Limits) -> Result<Command, Refusal> {
    check_txn(&request)?;
    check_overlap(&request)?;
    if is_read_only(&request) {
        return Ok(Command::Read(Read::Txn(txn(request)?)));
    }
    check_size(&request, limits)?;
    Ok(Command::Write(Write::Txn(txn(request)?)))
}

/// A write is held to its size as etcd would propose it. Fields that we do not know are not counted, and not kept.
fn check_size<M: Message>(request: &M, limits: &Limits) -> Result<(), Refusal> {
    let body = request.encoded_len();
    let proposal = PROPOSAL_HEAD_BYTES + 1 + encoded_len_varint(body as u64) + body;
    if proposal > limits.request_bytes_max { Err(Refusal::RequestTooLarge) } else { Ok(()) }
}

pub fn check_range(request: &wire::RangeRequest) -> Result<(), Refusal> {
    if request.key.is_empty() {
        return Err(Refusal::EmptyKey);
    }
    sort_order(request)?;
    sort_target(request)?;
    Ok(())
}

fn check_put(request: &wire::PutRequest) -> Result<(), Refusal> {
    if request.key.is_empty() {
        return Err(Refusal::EmptyKey);
    }
    if request.ignore_value && !request.value.is_empty() {
        return Err(Refusal::ValueProvided);
    }
    if request.ignore_lease && request.lease != 0 {
        return Err(Refusal::LeaseProvided);
    }
    Ok(())
}

fn check_delete(request: &wire::DeleteRangeRequest) -> Result<(), Refusal> {
    if request.key.is_empty() { Err(Refusal::EmptyKey) } else { Ok(()) }
}

/// The recursion is as deep as the transactions nest, which the scan has bounded; it has judged the counts, too.
fn check_txn(request: &wire::TxnRequest) -> Result<(), Refusal> {
    if request.compare.iter().any(|compare| compare.key.is_empty()) {
        return Err(Refusal::EmptyKey);
    }
    request.success.iter().chain(&request.failure).try_for_each(check_op)
}

fn check_op(op: &wire::RequestOp) -> Result<(), Refusal> {
    match op.request.as_ref().ok_or(Refusal::KeyNotFound)? {
        Request::RequestRange(request) => check_range(request),
        Request::RequestPut(request) => check_put(request),
        Request::RequestDeleteRange(request) => check_delete(request),
        Request::RequestTxn(request) => check_txn(request),
    }
}

/// A transaction without any operation only looks, too. One that nests another does not, whatever is in it: etcd
/// proposes it.
fn is_read_only(request: &wire::TxnRequest) -> bool {
    let mut ops = request.success.iter().chain(&request.failure);
    ops.all(|op| matches!(op.request, Some(Request::RequestRange(_))))
}

/// Builds the read; the same conversion of the enums is the check of them.
pub fn range(request: wire::RangeRequest) -> Result<Range, Refusal> {
    Ok(Range {
        revision: request.revision,
        // A negative limit is none, as 0 is.
        limit: usize::try_from(request.limit.max(0)).unwrap_or(usize::MAX),
        order: sort_order(&request)?,
        target: sort_target(&request)?,
        keys_only: request.keys_only,
        count_only: request.count_only,
        min_mod_revision: request.min_mod_revision,
        max_mod_revision: request.max_mod_revision,
        min_create_revision: request.min_create_revision,
        max_create_revision: request.max_create_revision,
        range: KeyRange::from_wire(request.key, request.range_end),
    })
}

fn sort_order(request: &wire::RangeRequest) -> Result<SortOrder, Refusal> {
    use wire::range_request::SortOrder as Wire;
    match Wire::try_from(request.sort_order).map_err(|_| Refusal::InvalidSortOption)? {
        Wire::None => Ok(SortOrder::None),
        Wire::Ascend => Ok(SortOrder::Ascend),
        Wire::Descend => Ok(SortOrder::Descend),
    }
}

fn sort_target(request: &wire::RangeRequest) -> Result<SortTarget, Refusal> {
    use wire::range_request::SortTarget as Wire;
    match Wire::try_from(request.sort_target).map_err(|_| Refusal::InvalidSortOption)? {
        Wire::Key => Ok(SortTarget::Key),
        Wire::Version => Ok(SortTarget::Version),
        Wire::Create => Ok(SortTarget::Create),
        Wire::Mod => Ok(SortTarget::Mod),
        Wire::Value => Ok(SortTarget::Value),
    }
}

fn put(request: wire::PutRequest) -> Put {
    Put {
        value: if request.ignore_value { PutValue::Keep } else { PutValue::Set(request.value) },
        lease: if request.ignore_lease { PutLease::Keep } else { PutLease::Set(LeaseId(request.lease)) },
        key: request.key,
        prev_kv: request.prev_kv,
    }
}

fn delete_range(request: wire::DeleteRangeRequest) -> DeleteRange {
    DeleteRange { range: KeyRange::from_wire(request.key, request.range_end), prev_kv: request.prev_kv }
}

fn txn(request: wire::TxnRequest) -> Result<Txn, Refusal> {
    Ok(Txn {
        compares: request.compare.into_iter().map(compare).collect(),
        success: request.success.into_iter().map(op).collect::<Result<_, _>>()?,
        failure: request.failure.into_iter().map(op).collect::<Result<_, _>>()?,
    })
}

fn op(op: wire::RequestOp) -> Result<Op, Refusal> {
    Ok(match op.request.ok_or(Refusal::KeyNotFound)? {
        Request::RequestRange(request) => Op::Range(range(request)?),
        Request::RequestPut(request) => Op::Put(put(request)),
        Request::RequestDeleteRange(request) => Op::DeleteRange(delete_range(request)),
        Request::RequestTxn(request) => Op::Txn(txn(request)?),
    })
}

fn compare(request: wire::Compare) -> Compare {
    let relation = match CompareResult::try_from(request.result) {
        Ok(CompareResult::Equal) => Relation::Equal,
        Ok(CompareResult::Greater) => Relation::Greater,
        Ok(CompareResult::Less) => Relation::Less,
        Ok(CompareResult::NotEqual) => Relation::NotEqual,
        Err(_) => Relation::Unknown,
    };
    // A union member that is not the target's counts as absent, hence as 0 or as empty bytes.
    let operand = match (CompareTarget::try_from(request.target), request.target_union) {
        (Ok(CompareTarget::Version), Some(TargetUnion::Version(version))) => Operand::Version(version),
        (Ok(CompareTarget::Version), _) => Operand::Version(0),
        (Ok(CompareTarget::Create), Some(TargetUnion::CreateRevision(revision))) => Operand::Create(revision),
        (Ok(CompareTarget::Create), _) => Operand::Create(0),
        (Ok(CompareTarget::Mod), Some(TargetUnion::ModRevision(revision))) => Operand::Mod(revision),
        (Ok(CompareTarget::Mod), _) => Operand::Mod(0),
        (Ok(CompareTarget::Value), Some(TargetUnion::Value(value))) => Operand::Value(value),
        (Ok(CompareTarget::Value), _) => Operand::Value(Bytes::new()),
        (Ok(CompareTarget::Lease), Some(TargetUnion::Lease(lease))) => Operand::Lease(lease),
        (Ok(CompareTarget::Lease), _) => Operand::Lease(0),
        (Err(_), _) => Operand::Unknown,
    };
    Compare { range: KeyRange::from_wire(request.key, request.range_end), relation, operand }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::grpc::status::Code;

    fn decoded<M: Message>(method: KvMethod, request: &M) -> Result<Command, Status> {
        decode(method, request.encode_to_vec().into(), &Limits::default())
    }

    fn refused<M: Message>(method: KvMethod, request: &M) -> String {
        let status = decoded(method, request).expect_err("the request is wrong");
        assert_eq!(status.code, Code::InvalidArgument);
        status.message.into_owned()
    }

    fn range_of(key: &'static str) -> wire::RangeRequest {
        wire::RangeRequest { key: key.into(), ..Default::default() }
    }

    fn put_of(key: &'static str, value: usize) -> wire::PutRequest {
        wire::PutRequest { key: key.into(), value: vec![b'v'; value].into(), ..Default::default() }
    }

    fn op_of(request: Request) -> wire::RequestOp {
        wire::RequestOp { request: Some(request) }
    }

    fn txn_of(success: Vec<wire::RequestOp>) -> wire::TxnRequest {
        wire::TxnRequest { success, ..Default::default() }
    }

    #[test]
    fn a_request_without_a_key_is_refused() {
        let text = "etcdserver: key is not provided";
        assert_eq!(refused(KvMethod::Range, &wire::RangeRequest { sort_order: 9, ..Default::default() }), text);
        let put = wire::PutRequest { value: "v".into(), ignore_value: true, ..Default::default() };
        assert_eq!(refused(KvMethod::Put, &put), text, "before anything else is looked at");
        assert_eq!(refused(KvMethod::DeleteRange, &wire::DeleteRangeRequest::default()), text);
        let compare = wire::TxnRequest { compare: vec![wire::Compare::default()], ..txn_of(vec![Default::default()]) };
        assert_eq!(refused(KvMethod::Txn, &compare), text, "comparisons come before operations");
        assert_eq!(refused(KvMethod::Txn, &txn_of(vec![op_of(Request::RequestPut(put_of("", 0)))])), text);
    }

    #[test]
    fn an_unknown_sort_order_or_target_is_refused() {
        for request in [
            wire::RangeRequest { sort_order: 3, ..range_of("a") },
            wire::RangeRequest { sort_order: -1, ..range_of("a") },
            wire::RangeRequest { sort_target: 5, ..range_of("a") },
        ] {
            assert_eq!(refused(KvMethod::Range, &request), "etcdserver: invalid sort option");
            let txn = txn_of(vec![op_of(Request::RequestRange(request))]);
            assert_eq!(refused(KvMethod::Txn, &txn), "etcdserver: invalid sort option");
        }
    }

    #[test]
    fn a_put_that_keeps_what_it_also_gives_is_refused() {
        let value = wire::PutRequest { ignore_value: true, ignore_lease: true, lease: 3, ..put_of("a", 1) };
        assert_eq!(refused(KvMethod::Put, &value), "etcdserver: value is provided");
        let lease = wire::PutRequest { ignore_lease: true, lease: 3, ..put_of("a", 1) };
        assert_eq!(refused(KvMethod::Put, &lease), "etcdserver: lease is provided");
        let keep = wire::PutRequest { ignore_value: true, ignore_lease: true, ..put_of("a", 0) };
        let Ok(Command::Write(Write::Put(put))) = decoded(KvMethod::Put, &keep) else { panic!("a put") };
        assert!(matches!((put.value, put.lease), (PutValue::Keep, PutLease::Keep)));
    }

    /// The sizes are those at which etcd 3.7.3 changes its answer.
    #[test]
    fn a_write_is_refused_past_the_size_that_etcd_would_propose() {
        let text = "etcdserver: request is too large";
        assert!(decoded(KvMethod::Put, &put_of("a", 1_572_864 - 24)).is_ok());
        assert_eq!(refused(KvMethod::Put, &put_of("a", 1_572_864 - 23)), text);
        let large = vec![b'k'; 1_572_864];
        let delete = wire::DeleteRangeRequest { key: large.clone().into(), ..Default::default() };
        assert_eq!(refused(KvMethod::DeleteRange, &delete), text);
        let txn = txn_of(vec![op_of(Request::RequestPut(put_of("a", 1_572_864)))]);
        assert_eq!(refused(KvMethod::Txn, &txn), text);
        let range = wire::RangeRequest { key: large.into(), ..Default::default() };
        assert!(decoded(KvMethod::Range, &range).is_ok(), "a read is not proposed");
        let read = txn_of(vec![op_of(Request::RequestRange(range))]);
        assert!(decoded(KvMethod::Txn, &read).is_ok(), "nor is a transaction that only reads");
    }

    #[test]
    fn the_shape_of_a_write_is_judged_before_its_size() {
        let put = wire::PutRequest { ignore_value: true, ..put_of("a", 1_572_864) };
        assert_eq!(refused(KvMethod::Put, &put), "etcdserver: value is provided");
    }

    #[test]
    fn bytes_that_are_no_message_are_refused_with_the_words_of_grpc() {
        for method in [KvMethod::Range, KvMethod::Put, KvMethod::DeleteRange, KvMethod::Txn, KvMethod::Compact] {
            for junk in [&b"\xff\xff"[..], b"\x0a\x05a", b"\x12\x02\x22\x09"] {
                // The last one is a limit or a value to the others, but an operation that is cut to a transaction.
                if junk[0] == 0x12 && method != KvMethod::Txn {
                    continue;
                }
                let status = decode(method, Bytes::from_static(junk), &Limits::default()).unwrap_err();
                assert_eq!(status.code, Code::Internal);
                let text = "grpc: error unmarshalling request: proto: cannot parse invalid wire-format data";
                assert_eq!(status.message, text);
            }
        }
    }

    #[test]
    fn an_operation_that_names_nothing_is_a_key_that_is_not_found() {
        assert_eq!(refused(KvMethod::Txn, &txn_of(vec![Default::default()])), "etcdserver: key not found");
    }

    #[test]
    fn operations_past_the_limit_are_refused() {
        let ranges = |count| txn_of(vec![op_of(Request::RequestRange(range_of("a"))); count]);
        assert!(decoded(KvMethod::Txn, &ranges(128)).is_ok());
        assert_eq!(refused(KvMethod::Txn, &ranges(129)), "etcdserver: too many operations in txn request");
    }

    #[test]
    fn a_key_written_twice_is_refused_after_all_else() {
        let put = || op_of(Request::RequestPut(put_of("a", 0)));
        assert_eq!(
            refused(KvMethod::Txn, &txn_of(vec![put(), put()])),
            "etcdserver: duplicate key given in txn request"
        );
        let shape_too = txn_of(vec![put(), put(), Default::default()]);
        assert_eq!(refused(KvMethod::Txn, &shape_too), "etcdserver: key not found");
    }

    #[test]
    fn only_a_transaction_of_ranges_alone_is_a_read() {
        let range = || op_of(Request::RequestRange(range_of("a")));
        let is_read =
            |txn: wire::TxnRequest| matches!(decoded(KvMethod::Txn, &txn).unwrap(), Command::Read(Read::Txn(_)));
        assert!(is_read(wire::TxnRequest::default()), "one without any operation");
        assert!(is_read(wire::TxnRequest { failure: vec![range()], ..txn_of(vec![range()]) }));
        let put = op_of(Request::RequestPut(put_of("a", 0)));
        assert!(!is_read(wire::TxnRequest { failure: vec![put], ..txn_of(vec![range()]) }), "both branches count");
        assert!(!is_read(txn_of(vec![op_of(Request::RequestTxn(txn_of(vec![range()])))])), "a nested one is proposed");
    }

    #[test]
    fn a_range_keeps_what_the_request_says() {
        let request = wire::RangeRequest {
            range_end: "b".into(),
            limit: 7,
            revision: -3,
            sort_order: 2,
            sort_target: 4,
            keys_only: true,
            count_only: true,
            min_mod_revision: 1,
            max_mod_revision: 2,
            min_create_revision: 3,
            max_create_revision: 4,
            ..range_of("a")
        };
        let Ok(Command::Read(Read::Range(range))) = decoded(KvMethod::Range, &request) else { panic!("a range") };
        assert_eq!(range.range, KeyRange::Span { start: "a".into(), end: "b".into() });
        assert_eq!((range.limit, range.revision), (7, -3));
        assert_eq!((range.order, range.target), (SortOrder::Descend, SortTarget::Value));
        assert!(range.keys_only && range.count_only);
        assert_eq!((range.min_mod_revision, range.max_mod_revision), (1, 2));
        assert_eq!((range.min_create_revision, range.max_create_revision), (3, 4));
        let unlimited = wire::RangeRequest { limit: -1, ..range_of("a") };
        let Ok(Command::Read(Read::Range(range))) = decoded(KvMethod::Range, &unlimited) else { panic!("a range") };
        assert_eq!(range.limit, 0, "a negative limit is none");
    }

    #[test]
    fn a_comparison_takes_the_operand_of_its_target_and_else_zero() {
        let operand = |target, target_union| {
            compare(wire::Compare { key: "a".into(), target, target_union, ..Default::default() }).operand
        };
        assert!(matches!(operand(0, Some(TargetUnion::Version(5))), Operand::Version(5)));
        assert!(matches!(operand(1, Some(TargetUnion::CreateRevision(5))), Operand::Create(5)));
        assert!(matches!(operand(2, Some(TargetUnion::ModRevision(5))), Operand::Mod(5)));
        assert!(matches!(operand(3, Some(TargetUnion::Value("v".into()))), Operand::Value(value) if value == "v"));
        assert!(matches!(operand(4, Some(TargetUnion::Lease(5))), Operand::Lease(5)));
        assert!(matches!(operand(2, Some(TargetUnion::Version(5))), Operand::Mod(0)));
        assert!(matches!(operand(3, Some(TargetUnion::Version(5))), Operand::Value(value) if value.is_empty()));
        assert!(matches!(operand(5, Some(TargetUnion::Version(5))), Operand::Unknown));
        let relation = |result| compare(wire::Compare { result, ..Default::default() }).relation;
        let all = [0, 1, 2, 3, 4, -1].map(relation);
        use Relation::*;
        assert_eq!(all, [Equal, Greater, Less, NotEqual, Unknown, Unknown]);
    }

    #[test]
    fn a_compaction_that_waits_for_the_removal_is_a_command_of_its_own() {
        let compact = |physical| decoded(KvMethod::Compact, &wire::CompactionRequest { revision: 5, physical });
        assert!(matches!(compact(false), Ok(Command::Write(Write::Compact(Revision(5))))));
        assert!(matches!(compact(true), Ok(Command::CompactPhysical(Revision(5)))));
    }

    #[test]
    fn keys_and_values_are_slices_of_the_message() {
        let message = Bytes::from(put_of("a", 3).encode_to_vec());
        let Ok(Command::Write(Write::Put(put))) = decode(KvMethod::Put, message.clone(), &Limits::default()) else {
            panic!("a put")
        };
        assert!(message.as_ptr_range().contains(&put.key.as_ptr()));
    }

    #[test]
    fn no_bytes_make_it_panic() {
        use crate::service::random::Random;
        for seed in 0..60_000 {
            let mut random = Random::new(seed);
            let nested =
                txn_of(vec![op_of(Request::RequestPut(put_of("b", 2))), op_of(Request::RequestRange(range_of("c")))]);
            let ops = vec![op_of(Request::RequestTxn(nested)), op_of(Request::RequestPut(put_of("a", 1)))];
            let mut message = if random.one_in(4) { random.junk(40) } else { txn_of(ops).encode_to_vec() };
            random.damage(&mut message);
            let message = Bytes::from(message);
            for method in [KvMethod::Range, KvMethod::Put, KvMethod::DeleteRange, KvMethod::Txn, KvMethod::Compact] {
                let valid = match method {
                    KvMethod::Range => wire::RangeRequest::decode(message.clone()).is_ok(),
                    KvMethod::Put => wire::PutRequest::decode(message.clone()).is_ok(),
                    KvMethod::DeleteRange => wire::DeleteRangeRequest::decode(message.clone()).is_ok(),
                    KvMethod::Txn => wire::TxnRequest::decode(message.clone()).is_ok(),
                    KvMethod::Compact => wire::CompactionRequest::decode(message.clone()).is_ok(),
                };
                let result = decode(method, message.clone(), &Limits::default());
                let malformed = result.is_err_and(|status| status.code == Code::Internal);
                assert_eq!(malformed, !valid, "seed {seed}, {method:?}: {message:?}");
            }
        }
    }
}
