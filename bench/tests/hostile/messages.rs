//! Well-formed HTTP/2 around messages that are cut, too long, or not what they should be.

use bytes::Bytes;
use prost::Message;
use tarsier_proto::etcdserverpb as pb;

use crate::client::{Client, PUT, RANGE, WATCH, WIDE, create, framed, on_key};
use crate::random::Random;
use crate::scene::among_bystanders;

const DELETE: &str = "/etcdserverpb.KV/DeleteRange";
const TXN: &str = "/etcdserverpb.KV/Txn";
const COMPACT: &str = "/etcdserverpb.KV/Compact";
const METHODS: [&str; 6] = [RANGE, PUT, DELETE, TXN, COMPACT, WATCH];

/// Status codes of gRPC.
const OK: i32 = 0;
const INVALID_ARGUMENT: i32 = 3;
const RESOURCE_EXHAUSTED: i32 = 8;

#[test]
fn lengths_that_lie_are_refused_before_anything_is_held_for_them() {
    among_bystanders(async |server| {
        let client = Client::connect(server.address(), WIDE).await;
        for path in METHODS {
            for length in [u32::MAX, 1 << 31, (2 << 20) + 1] {
                let body = [&[0][..], &length.to_be_bytes(), &[7; 100]].concat();
                let mut stream = client.start(path, body.into(), false).await.expect("the connection lives");
                assert_eq!(stream.status().await.expect("a status"), RESOURCE_EXHAUSTED, "{path} {length}");
            }
            let whole = [&[0][..], &((2_u32 << 20) + 1).to_be_bytes(), &vec![7; (2 << 20) + 1]].concat();
            // The refusal overtakes the body, whose rest is reset.
            if let Ok((_, status)) = client.call(path, whole.into()).await {
                assert_eq!(status, RESOURCE_EXHAUSTED, "{path}");
            }
            let client = Client::connect(server.address(), WIDE).await;
            for cut in [&[0][..], &[0, 0, 0], &[0, 0, 0, 0, 9], &[0, 0, 0, 0, 9, 1, 2], &[1, 0, 0, 0, 0], &[9; 5]] {
                // A watch stream whose client ends in the middle of a prefix goes on, as in grpc-go.
                if path == WATCH && cut.len() < 5 {
                    continue;
                }
                let (_, status) = client.call(path, Bytes::copy_from_slice(cut)).await.expect("the connection lives");
                assert_ne!(status, OK, "{path} {cut:?}");
            }
        }
    });
}

fn samples() -> Vec<(&'static str, Vec<u8>)> {
    use pb::request_op::Request;
    let range = pb::RangeRequest { key: "x".into(), range_end: "y".into(), limit: 3, ..Default::default() };
    let put = pb::PutRequest { key: "x".into(), value: "v".into(), prev_kv: true, ..Default::default() };
    let delete = pb::DeleteRangeRequest { key: "x".into(), range_end: "y".into(), prev_kv: true };
    let operations = [Request::RequestRange(range.clone()), Request::RequestPut(put.clone())];
    let operations = operations.map(|request| pb::RequestOp { request: Some(request) }).to_vec();
    let inner = pb::TxnRequest { success: operations.clone(), ..Default::default() };
    let nested = pb::RequestOp { request: Some(Request::RequestTxn(inner)) };
    let compare = pb::Compare { key: "x".into(), range_end: "y".into(), ..Default::default() };
    let txn = pb::TxnRequest { compare: vec![compare], success: operations, failure: vec![nested] };
    let compact = pb::CompactionRequest { revision: 1, physical: true };
    let create = pb::watch_request::RequestUnion::CreateRequest(on_key("x"));
    let watch = pb::WatchRequest { request_union: Some(create) };
    vec![
        (RANGE, range.encode_to_vec()),
        (PUT, put.encode_to_vec()),
        (DELETE, delete.encode_to_vec()),
        (TXN, txn.encode_to_vec()),
        (COMPACT, compact.encode_to_vec()),
        (WATCH, watch.encode_to_vec()),
    ]
}

fn mutated(random: &mut Random, sample: &[u8]) -> Vec<u8> {
    let mut body = sample.to_vec();
    for _ in 0..1 + random.below(4) {
        let at = random.below(body.len() as u64) as usize;
        match random.below(5) {
            0 => body.truncate(at + 1),
            1 => body[at] ^= 1 << random.below(8),
            2 => body[at] = random.next() as u8,
            3 => body.insert(at, [0xff, 0x80, 0x0b, 0x12][random.below(4) as usize]),
            _ => {
                let piece = body[at..].to_vec();
                body.extend(piece);
            }
        }
    }
    body
}

#[test]
fn garbage_in_place_of_a_message_is_answered() {
    among_bystanders(async |server| {
        let client = Client::connect(server.address(), WIDE).await;
        for seed in 0..400 {
            let mut random = Random::new(seed);
            for (path, sample) in samples() {
                let body = framed(&mutated(&mut random, &sample));
                if path != WATCH {
                    client.call(path, body).await.unwrap_or_else(|error| panic!("seed {seed}, {path}: {error}"));
                    continue;
                }
                // A mutation may well be a request, so the stream need not end; that it lives or ends is enough.
                let mut stream = client.start(path, body, false).await.expect("the connection lives");
                if random.below(2) == 0 {
                    // The server may have ended the stream by now.
                    let _ = stream.requests.send_data(framed(&mutated(&mut random, &sample)), false);
                }
            }
        }
        client.put("x", b"still here").await;
    });
}

fn nested(depth: usize) -> Vec<u8> {
    let mut body = Vec::new();
    for _ in 0..depth {
        // A transaction with one operation, which is the transaction before.
        let operation = pb::RequestOp { request: None }.encode_to_vec();
        assert!(operation.is_empty());
        let field = |tag: u8, inner: &[u8]| {
            let mut bytes = vec![tag];
            prost::encoding::encode_varint(inner.len() as u64, &mut bytes);
            bytes.extend_from_slice(inner);
            bytes
        };
        // `RequestOp.request_txn` is field 4, `TxnRequest.success` is field 2.
        body = field(2 << 3 | 2, &field(4 << 3 | 2, &body));
    }
    body
}

#[test]
fn transactions_that_are_deep_or_long_are_answered_and_never_unfolded() {
    among_bystanders(async |server| {
        let client = Client::connect(server.address(), WIDE).await;
        for depth in [1, 10, 30, 48, 49, 50, 51, 99, 100, 101, 5_000] {
            let (_, status) = client.call(TXN, framed(&nested(depth))).await.expect("the connection lives");
            assert!(depth < 100 || status != OK, "depth {depth} gave {status}");
        }
        for operation in [[0x12, 0], [0x1a, 0], [0x0a, 0]] {
            let body = operation.repeat(750_000);
            let (_, status) = client.call(TXN, framed(&body)).await.expect("the connection lives");
            assert_ne!(status, OK);
        }
        let range = pb::RangeRequest { limit: -1, revision: i64::MIN, ..Default::default() };
        let (_, status) = client.call(RANGE, framed(&range.encode_to_vec())).await.expect("the connection lives");
        assert_eq!(status, INVALID_ARGUMENT);
        let put = pb::PutRequest { lease: i64::MIN, ..Default::default() };
        let (_, status) = client.call(PUT, framed(&put.encode_to_vec())).await.expect("the connection lives");
        assert_eq!(status, INVALID_ARGUMENT);
        let compact = pb::CompactionRequest { revision: i64::MIN, physical: true };
        client.call(COMPACT, framed(&compact.encode_to_vec())).await.expect("the connection lives");
    });
}

#[test]
fn a_malformed_message_ends_its_watch_stream_and_what_stood_behind_it_is_not_heard() {
    among_bystanders(async |server| {
        // With a closed window the end has to wait behind the answer to the first request.
        let client = Client::connect(server.address(), 0).await;
        let mut stream = client.start(WATCH, create(on_key("x")), false).await.expect("a watch begins");
        stream.send(framed(&[0x0f]));
        for _ in 0..100 {
            stream.send(create(on_key("y")));
        }
        tokio::time::sleep(std::time::Duration::from_millis(100)).await;
        client.set_window(WIDE);
        assert!(stream.next().await.created);
        let mut more = 0;
        while stream.try_next().await.is_some() {
            more += 1;
        }
        assert_eq!(more, 0, "creates behind a malformed message are answered");
    });
}
