//! The encoding by hand against the generated one, byte for byte.

use prost::Message as _;

use super::*;
use crate::pb::etcdserverpb as wire;
use crate::pb::etcdserverpb::response_op::Response as OpResponse;
use crate::pb::mvccpb;
use crate::service::random::Random;
use crate::store::command::Rows;
use crate::types::Revision;

const IDENTITY: Identity =
    Identity { cluster_id: 0xcdf8_181e_3277_7e29, member_id: 0x8e9e_05c5_2164_694d, raft_term: 2 };

/// Steps of each turn of preparing, bytes of each piece.
const WHOLE: usize = usize::MAX;

fn random_kv(random: &mut Random) -> KeyValue {
    let (key, value) = (random.key(9), vec![b'v'; random.below(200)]);
    let [create, modified, version, lease] = [(); 4].map(|()| random.number());
    KeyValue::new(&key, &value, Revision(create), Revision(modified), 0, version, LeaseId(lease))
}

fn random_kvs(random: &mut Random) -> Vec<KeyValue> {
    (0..random.below(6)).map(|_| random_kv(random)).collect()
}

fn random_answer(random: &mut Random, depth: usize) -> Answer {
    let mut revision = Revision(1 + random.below(1 << 20) as i64);
    let result = match random.below(if depth > 0 { 6 } else { 3 }) {
        0 => Outcome::Range(Rows {
            rows: random_kvs(random),
            show: [Show::All, Show::WithoutValue, Show::WithoutValueAndLease][random.below(3)],
            more: random.one_in(2),
            count: random.below(300) as u64,
        }),
        1 => Outcome::Put { previous: random.one_in(2).then(|| random_kv(random)) },
        2 => Outcome::DeleteRange { deleted: random.below(300) as u64, previous: random_kvs(random) },
        _ => {
            let answers = (0..random.below(5)).map(|_| random_answer(random, depth - 1)).collect();
            revision = if random.one_in(2) { Revision::ZERO } else { revision };
            Outcome::Txn(TxnOutcome { succeeded: random.one_in(2), answers })
        }
    };
    Answer { revision, result }
}

/// The slow and obvious way to the same message.
fn to_wire(answer: &Answer, identity: Option<Identity>) -> OpResponse {
    let mut header = wire::ResponseHeader { revision: answer.revision.0, ..Default::default() };
    if let Some(identity) = identity {
        (header.cluster_id, header.member_id) = (identity.cluster_id, identity.member_id);
        header.raft_term = identity.raft_term;
    }
    let header = Some(header);
    let kv = |kv: &KeyValue, show: Show| mvccpb::KeyValue {
        key: kv.key().to_vec().into(),
        create_revision: kv.create_revision().0,
        mod_revision: kv.mod_revision().0,
        version: kv.version(),
        value: if show == Show::All { kv.value().to_vec().into() } else { Bytes::new() },
        lease: if show == Show::WithoutValueAndLease { 0 } else { kv.lease().0 },
    };
    match &answer.result {
        Outcome::Range(found) => OpResponse::ResponseRange(wire::RangeResponse {
            header,
            kvs: found.rows.iter().map(|row| kv(row, found.show)).collect(),
            more: found.more,
            count: found.count as i64,
        }),
        Outcome::Put { previous } => OpResponse::ResponsePut(wire::PutResponse {
            header,
            prev_kv: previous.as_ref().map(|row| kv(row, Show::All)),
        }),
        Outcome::DeleteRange { deleted, previous } => OpResponse::ResponseDeleteRange(wire::DeleteRangeResponse {
            header,
            deleted: *deleted as i64,
            prev_kvs: previous.iter().map(|row| kv(row, Show::All)).collect(),
        }),
        Outcome::Txn(txn) => OpResponse::ResponseTxn(wire::TxnResponse {
            header,
            succeeded: txn.succeeded,
            responses: (txn.answers.iter())
                .map(|answer| wire::ResponseOp { response: Some(to_wire(answer, None)) })
                .collect(),
        }),
        Outcome::Compact | Outcome::Alarm(_) | Outcome::Hash(_) => unreachable!("the test does not make one"),
    }
}

fn expected(answer: &Answer) -> Vec<u8> {
    let body = match to_wire(answer, Some(IDENTITY)) {
        OpResponse::ResponseRange(response) => response.encode_to_vec(),
        OpResponse::ResponsePut(response) => response.encode_to_vec(),
        OpResponse::ResponseDeleteRange(response) => response.encode_to_vec(),
        OpResponse::ResponseTxn(response) => response.encode_to_vec(),
    };
    let mut message = vec![0];
    message.put_u32(body.len() as u32);
    message.extend(body);
    message
}

fn encoded(answer: Answer, mut steps: impl FnMut() -> usize, mut bytes: impl FnMut() -> usize) -> Vec<Bytes> {
    let mut response = Response::new(answer, IDENTITY);
    while !response.prepare(steps()).unwrap() {}
    std::iter::from_fn(|| response.next(bytes())).collect()
}

fn range_of(rows: usize) -> Answer {
    let row = KeyValue::new(b"key", &[b'v'; 50], Revision(2), Revision(2), 0, 1, LeaseId::NONE);
    let rows = Rows { rows: vec![row; rows], count: rows as u64, ..Rows::default() };
    Answer { revision: Revision(2), result: Outcome::Range(rows) }
}

#[test]
fn a_response_is_what_prost_encodes() {
    for seed in 0..20_000 {
        let answer = random_answer(&mut Random::new(seed), 3);
        let message = expected(&answer);
        assert_eq!(encoded(answer, || WHOLE, || WHOLE).concat(), message, "seed {seed}");
    }
}

#[test]
fn pieces_of_any_size_make_the_same_message() {
    for seed in 0..20_000 {
        let mut random = Random::new(seed);
        let answer = random_answer(&mut random, 3);
        let message = expected(&answer);
        let mut turns = Random::new(!seed);
        let pieces = encoded(answer, || 1 + turns.below(5), || 1 + random.below(400));
        assert_eq!(pieces.concat(), message, "seed {seed}");
        assert!(pieces.iter().all(|piece| !piece.is_empty()), "seed {seed}");
    }
}

#[test]
fn a_piece_is_no_longer_than_asked() {
    let pieces = encoded(range_of(1_000), || 100, || 1_000);
    assert!(pieces.iter().all(|piece| piece.len() <= 1_000));
    assert!(pieces.len() < 80, "and not much shorter: {}", pieces.len());
}

#[test]
fn a_list_of_leases_is_what_prost_encodes_in_pieces_of_any_size_and_counted_until_it_has_left() {
    for seed in 0..500 {
        let mut random = Random::new(seed);
        let leases: Vec<LeaseId> = (0..random.below(40)).map(|_| LeaseId(random.number())).collect();
        let header = crate::service::message::header(IDENTITY, Revision(7));
        let ids = leases.iter().map(|id| wire::LeaseStatus { id: id.0 }).collect();
        let message = crate::service::message::framed(&wire::LeaseLeasesResponse { header, leases: ids });
        let (sum, count) = (Rc::default(), leases.len());
        let mut response = Response::of_leases(leases, Revision(7), IDENTITY).counted_in(&sum);
        assert!(sum.get() >= count * 8);
        while !response.prepare(1 + random.below(5)).unwrap() {}
        let pieces: Vec<Bytes> = std::iter::from_fn(|| response.next(100 + random.below(200))).collect();
        assert_eq!(pieces.concat(), message, "seed {seed}");
        assert!(pieces.iter().all(|piece| piece.len() < 300), "seed {seed}");
        drop(response);
        assert_eq!(sum.get(), 0);
    }
}

#[test]
fn rows_are_let_go_as_they_are_encoded() {
    let mut response = Response::new(range_of(1_000), IDENTITY);
    assert!(response.prepare(WHOLE).unwrap());
    let row_count = |response: &Response| {
        let count = |item: &Item| if let Item::Rows { rows, .. } = item { rows.len() } else { 0 };
        response.items.as_slice().iter().map(count).sum::<usize>()
    };
    let total = response.remaining_bytes();
    let piece = response.next(10_000).unwrap();
    assert!(row_count(&response) < 900);
    assert_eq!(response.remaining_bytes(), total - piece.len() as u64);
    let left = row_count(&response);
    assert!(!response.discard(10));
    assert_eq!(row_count(&response), left - 10);
    assert!(response.discard(left));
    assert_eq!((row_count(&response), response.next(WHOLE)), (0, None));
}

#[test]
fn preparing_takes_as_many_turns_as_asked() {
    let mut response = Response::new(range_of(1_000), IDENTITY);
    let turns = std::iter::from_fn(|| (!response.prepare(100).unwrap()).then_some(())).count();
    assert!((10..=11).contains(&turns), "{turns}");
}

#[test]
fn a_put_is_answered_in_one_small_piece() {
    let answer = Answer { revision: Revision(7), result: Outcome::Put { previous: None } };
    let pieces = encoded(answer, || WHOLE, || 16_384);
    assert_eq!(pieces.len(), 1);
    let response = wire::PutResponse::decode(&pieces[0][PREFIX_BYTES..]).unwrap();
    let header = response.header.unwrap();
    assert_eq!((header.cluster_id, header.member_id), (IDENTITY.cluster_id, IDENTITY.member_id));
    assert_eq!((header.revision, header.raft_term), (7, 2));
}

#[test]
fn a_compaction_is_answered_with_a_header() {
    let answer = Answer { revision: Revision(7), result: Outcome::Compact };
    let message = encoded(answer, || WHOLE, || WHOLE).concat();
    let response = wire::CompactionResponse::decode(&message[PREFIX_BYTES..]).unwrap();
    assert_eq!(response.header.unwrap().revision, 7);
}

#[test]
fn operations_have_a_revision_alone_in_their_header_and_nested_transactions_an_empty_one() {
    let put = || Answer { revision: Revision(9), result: Outcome::Put { previous: None } };
    let txn = |revision, answers| Answer { revision, result: Outcome::Txn(TxnOutcome { succeeded: true, answers }) };
    let answer = txn(Revision(9), vec![put(), txn(Revision::ZERO, vec![put()])]);
    let message = encoded(answer, || WHOLE, || WHOLE).concat();
    let response = wire::TxnResponse::decode(&message[PREFIX_BYTES..]).unwrap();
    assert_eq!(response.header.unwrap().raft_term, 2);
    let only_revision = wire::ResponseHeader { revision: 9, ..Default::default() };
    let [put, nested] = &response.responses[..] else { panic!("two responses") };
    let Some(OpResponse::ResponsePut(put)) = &put.response else { panic!("a put") };
    assert_eq!(put.header, Some(only_revision));
    let Some(OpResponse::ResponseTxn(nested)) = &nested.response else { panic!("a transaction") };
    assert_eq!(nested.header, Some(wire::ResponseHeader::default()), "present and empty");
}

#[test]
fn a_message_that_grpc_would_not_send_is_refused() {
    let row = KeyValue::new(b"key", &vec![b'v'; 1 << 20], Revision(2), Revision(2), 0, 1, LeaseId::NONE);
    let rows = Rows { rows: vec![row; 2_048], count: 2_048, ..Rows::default() };
    let mut response = Response::new(Answer { revision: Revision(2), result: Outcome::Range(rows) }, IDENTITY);
    assert_eq!(response.prepare(1_000), Ok(false));
    let status = response.prepare(WHOLE).unwrap_err();
    assert_eq!(status.code, crate::grpc::status::Code::ResourceExhausted);
    assert!(status.message.starts_with("grpc: trying to send message larger than max (21"), "{}", status.message);
    assert!(response.discard(WHOLE));
}
