//! The few etcd messages of the load, to bytes and back, by hand.
//!
//! A load client that decodes every event into owned messages measures its own allocator. What is sent and received
//! millions of times is therefore written and read here without an allocation a message; what is rare goes through the
//! generated messages. This file knows bytes only: no connection, no watch, no key layout.
//!
//! A gRPC message on the wire is one byte "compressed", four bytes of length, big endian, and the protobuf body.

use bytes::{BufMut, Bytes, BytesMut};
use prost::Message;
use tarsier_proto::etcdserverpb as pb;

/// The gRPC prefix in front of each message.
pub const PREFIX_BYTES: usize = 5;

pub const PATH_RANGE: &str = "/etcdserverpb.KV/Range";
pub const PATH_RANGE_STREAM: &str = "/etcdserverpb.KV/RangeStream";
pub const PATH_PUT: &str = "/etcdserverpb.KV/Put";
pub const PATH_DELETE_RANGE: &str = "/etcdserverpb.KV/DeleteRange";
pub const PATH_TXN: &str = "/etcdserverpb.KV/Txn";
pub const PATH_COMPACT: &str = "/etcdserverpb.KV/Compact";
pub const PATH_WATCH: &str = "/etcdserverpb.Watch/Watch";
pub const PATH_LEASE_GRANT: &str = "/etcdserverpb.Lease/LeaseGrant";
pub const PATH_LEASE_KEEP_ALIVE: &str = "/etcdserverpb.Lease/LeaseKeepAlive";
pub const PATH_LEASE_REVOKE: &str = "/etcdserverpb.Lease/LeaseRevoke";
pub const PATH_LOCK: &str = "/v3lockpb.Lock/Lock";
pub const PATH_UNLOCK: &str = "/v3lockpb.Lock/Unlock";
pub const PATH_HASH_KV: &str = "/etcdserverpb.Maintenance/HashKV";
pub const PATH_STATUS: &str = "/etcdserverpb.Maintenance/Status";

/// Bytes that are not the message they should be, and where that was noticed.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Malformed(pub &'static str);

/// Appends one gRPC message whose body `body` writes.
pub fn message(out: &mut BytesMut, body: impl FnOnce(&mut BytesMut)) {
    let start = out.len();
    out.put_bytes(0, PREFIX_BYTES);
    body(out);
    let length = u32::try_from(out.len() - start - PREFIX_BYTES).expect("a request of the load is far below 4 GiB");
    out[start + 1..start + PREFIX_BYTES].copy_from_slice(&length.to_be_bytes());
}

/// Appends a generated message, for what is sent too seldom to be written by hand.
pub fn encode(out: &mut BytesMut, request: &impl Message) {
    message(out, |out| request.encode(out).expect("a BytesMut grows as needed"));
}

/// One operation of a transaction.
pub fn operation(request: pb::request_op::Request) -> pb::RequestOp {
    pb::RequestOp { request: Some(request) }
}

/// The same as a message of its own.
pub fn framed(request: &impl Message) -> Bytes {
    let mut out = BytesMut::new();
    encode(&mut out, request);
    out.freeze()
}

/// `WatchRequest { create_request { key, range_end, start_revision } }`: from that revision, or from now on if it is 0;
/// the server chooses the id.
pub fn watch_create(out: &mut BytesMut, key: &[u8], range_end: &[u8], start_revision: u64) {
    let revision_len = if start_revision == 0 { 0 } else { 1 + varint_len(start_revision) };
    message(out, |out| {
        out.put_u8(1 << 3 | 2);
        put_varint(out, (bytes_field_len(key) + bytes_field_len(range_end) + revision_len) as u64);
        put_bytes_field(out, 1, key);
        put_bytes_field(out, 2, range_end);
        if start_revision != 0 {
            out.put_u8(3 << 3);
            put_varint(out, start_revision);
        }
    });
}

/// `PutRequest { key, value }`.
pub fn put(out: &mut BytesMut, key: &[u8], value: &[u8]) {
    message(out, |out| {
        put_bytes_field(out, 1, key);
        put_bytes_field(out, 2, value);
    });
}

/// `RangeRequest { key, range_end }`: linearizable, at the newest revision, everything.
pub fn range(out: &mut BytesMut, key: &[u8], range_end: &[u8]) {
    message(out, |out| {
        put_bytes_field(out, 1, key);
        put_bytes_field(out, 2, range_end);
    });
}

fn put_varint(out: &mut BytesMut, mut value: u64) {
    while value >= 0x80 {
        out.put_u8(value as u8 | 0x80);
        value >>= 7;
    }
    out.put_u8(value as u8);
}

fn varint_len(value: u64) -> usize {
    (64 - (value | 1).leading_zeros() as usize).div_ceil(7)
}

fn bytes_field_len(bytes: &[u8]) -> usize {
    if bytes.is_empty() { 0 } else { 1 + varint_len(bytes.len() as u64) + bytes.len() }
}

/// Proto3 leaves out what has its default value, so an empty field is no field. The number must be below 16.
fn put_bytes_field(out: &mut BytesMut, number: u8, bytes: &[u8]) {
    if !bytes.is_empty() {
        out.put_u8(number << 3 | 2);
        put_varint(out, bytes.len() as u64);
        out.put_slice(bytes);
    }
}

/// One field of a message.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Field<'a> {
    Number(u64),
    Bytes(&'a [u8]),
}

/// Walks the fields of a message body in the order in which they stand.
#[derive(Clone)]
pub struct Fields<'a> {
    rest: &'a [u8],
}

impl<'a> Fields<'a> {
    pub fn new(body: &'a [u8]) -> Fields<'a> {
        Fields { rest: body }
    }

    fn varint(&mut self) -> Result<u64, Malformed> {
        let mut value = 0u64;
        for (at, byte) in self.rest.iter().take(10).enumerate() {
            value |= u64::from(byte & 0x7f) << (7 * at);
            if byte & 0x80 == 0 {
                self.rest = &self.rest[at + 1..];
                return Ok(value);
            }
        }
        Err(Malformed("a varint that does not end"))
    }

    fn take(&mut self, count: u64) -> Result<&'a [u8], Malformed> {
        if count > self.rest.len() as u64 {
            return Err(Malformed("a field longer than its message"));
        }
        let (taken, rest) = self.rest.split_at(count as usize);
        self.rest = rest;
        Ok(taken)
    }

    fn field(&mut self) -> Result<(u64, Field<'a>), Malformed> {
        let tag = self.varint()?;
        let field = match tag & 7 {
            0 => Field::Number(self.varint()?),
            1 => Field::Bytes(self.take(8)?),
            2 => {
                let length = self.varint()?;
                Field::Bytes(self.take(length)?)
            }
            5 => Field::Bytes(self.take(4)?),
            _ => return Err(Malformed("a wire type that protobuf does not have")),
        };
        Ok((tag >> 3, field))
    }
}

impl<'a> Iterator for Fields<'a> {
    type Item = Result<(u64, Field<'a>), Malformed>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.rest.is_empty() {
            return None;
        }
        let field = self.field();
        if field.is_err() {
            self.rest = &[];
        }
        Some(field)
    }
}

/// A `WatchResponse`, its events still in bytes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct WatchReply<'a> {
    pub watch_id: i64,
    pub created: bool,
    pub canceled: bool,
    pub compact_revision: i64,
    pub cancel_reason: &'a [u8],
    pub fragment: bool,
    body: &'a [u8],
}

impl<'a> WatchReply<'a> {
    pub fn decode(body: &'a [u8]) -> Result<WatchReply<'a>, Malformed> {
        let mut reply = WatchReply {
            watch_id: 0,
            created: false,
            canceled: false,
            compact_revision: 0,
            cancel_reason: &[],
            fragment: false,
            body,
        };
        for field in Fields::new(body) {
            match field? {
                (2, Field::Number(id)) => reply.watch_id = id as i64,
                (3, Field::Number(flag)) => reply.created = flag != 0,
                (4, Field::Number(flag)) => reply.canceled = flag != 0,
                (5, Field::Number(revision)) => reply.compact_revision = revision as i64,
                (6, Field::Bytes(reason)) => reply.cancel_reason = reason,
                (7, Field::Number(flag)) => reply.fragment = flag != 0,
                _ => {}
            }
        }
        Ok(reply)
    }

    /// The events in order.
    pub fn events(&self) -> impl Iterator<Item = Result<Event<'a>, Malformed>> + use<'a> {
        Fields::new(self.body).filter_map(|field| match field {
            Ok((11, Field::Bytes(event))) => Some(Event::decode(event)),
            Ok(_) => None,
            Err(malformed) => Some(Err(malformed)),
        })
    }
}

/// One `mvccpb.Event`; of its key-value only what the checks need.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Event<'a> {
    pub deleted: bool,
    pub key: &'a [u8],
    pub mod_revision: i64,
    pub value_bytes: usize,
}

impl<'a> Event<'a> {
    fn decode(body: &'a [u8]) -> Result<Event<'a>, Malformed> {
        let mut event = Event { deleted: false, key: &[], mod_revision: 0, value_bytes: 0 };
        for field in Fields::new(body) {
            match field? {
                (1, Field::Number(kind)) => event.deleted = kind == 1,
                (2, Field::Bytes(key_value)) => event.read_key_value(key_value)?,
                _ => {}
            }
        }
        Ok(event)
    }

    fn read_key_value(&mut self, body: &'a [u8]) -> Result<(), Malformed> {
        for field in Fields::new(body) {
            match field? {
                (1, Field::Bytes(key)) => self.key = key,
                (3, Field::Number(revision)) => self.mod_revision = revision as i64,
                (5, Field::Bytes(value)) => self.value_bytes = value.len(),
                _ => {}
            }
        }
        Ok(())
    }
}

/// The store's revision in the header of any response: field 1 everywhere, its revision field 3.
pub fn header_revision(body: &[u8]) -> Result<i64, Malformed> {
    let mut revision = 0;
    for field in Fields::new(body) {
        if let (1, Field::Bytes(header)) = field? {
            for field in Fields::new(header) {
                if let (3, Field::Number(number)) = field? {
                    revision = number as i64;
                }
            }
            break;
        }
    }
    Ok(revision)
}

/// The last of a message's own numbers with this field number; 0 if there is none.
pub fn number(body: &[u8], wanted: u64) -> Result<u64, Malformed> {
    let mut found = 0;
    for field in Fields::new(body) {
        if let (number, Field::Number(value)) = field?
            && number == wanted
        {
            found = value;
        }
    }
    Ok(found)
}

/// How many keys stand in a `RangeResponse`, and its `count`.
pub fn range_counts(body: &[u8]) -> Result<(u64, u64), Malformed> {
    let (mut keys, mut count) = (0, 0);
    for field in Fields::new(body) {
        match field? {
            (2, Field::Bytes(_)) => keys += 1,
            (4, Field::Number(number)) => count = number,
            _ => {}
        }
    }
    Ok((keys, count))
}

/// Puts gRPC messages together that DATA frames cut apart. Between messages it holds no memory.
#[derive(Default, Debug)]
pub struct Deframer {
    /// The beginning of a message, prefix included.
    partial: Vec<u8>,
}

impl Deframer {
    /// Hands each whole message body of `partial + chunk` to `each`, in order.
    pub fn feed<E: From<Malformed>>(
        &mut self,
        mut chunk: &[u8],
        mut each: impl FnMut(&[u8]) -> Result<(), E>,
    ) -> Result<(), E> {
        if !self.partial.is_empty() {
            if !self.complete(&mut chunk)? {
                return Ok(());
            }
            let whole = std::mem::take(&mut self.partial);
            each(&whole[PREFIX_BYTES..])?;
        }
        while let Some(length) = body_len(chunk)? {
            let end = PREFIX_BYTES + length;
            if chunk.len() < end {
                break;
            }
            each(&chunk[PREFIX_BYTES..end])?;
            chunk = &chunk[end..];
        }
        self.partial.extend_from_slice(chunk);
        Ok(())
    }

    /// Moves bytes of `chunk` into `partial` until that is one whole message; says whether it is.
    fn complete(&mut self, chunk: &mut &[u8]) -> Result<bool, Malformed> {
        let mut take = |partial: &mut Vec<u8>, until: usize| {
            let count = until.saturating_sub(partial.len()).min(chunk.len());
            partial.extend_from_slice(&chunk[..count]);
            *chunk = &chunk[count..];
        };
        take(&mut self.partial, PREFIX_BYTES);
        let Some(length) = body_len(&self.partial)? else { return Ok(false) };
        take(&mut self.partial, PREFIX_BYTES + length);
        Ok(self.partial.len() == PREFIX_BYTES + length)
    }
}

fn body_len(bytes: &[u8]) -> Result<Option<usize>, Malformed> {
    let Some(prefix) = bytes.first_chunk::<PREFIX_BYTES>() else { return Ok(None) };
    if prefix[0] != 0 {
        return Err(Malformed("a compressed message, though no encoding was offered"));
    }
    Ok(Some(u32::from_be_bytes([prefix[1], prefix[2], prefix[3], prefix[4]]) as usize))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::random::Random;
    use tarsier_proto::mvccpb;

    /// The one message of `framed`, prefix checked and removed.
    fn body(framed: &BytesMut) -> &[u8] {
        assert_eq!(body_len(framed), Ok(Some(framed.len() - PREFIX_BYTES)));
        &framed[PREFIX_BYTES..]
    }

    fn sample(random: &mut Random, bytes_max: u64) -> Vec<u8> {
        (0..random.below(bytes_max + 1)).map(|_| random.next() as u8).collect()
    }

    #[test]
    fn what_is_written_by_hand_reads_back_through_prost() {
        let seed = 7;
        let mut random = Random::new(seed);
        for round in 0..500 {
            let (key, end) = (sample(&mut random, 300), sample(&mut random, 200));
            let mut out = BytesMut::new();
            let start = if round % 2 == 0 { 0 } else { random.next() >> (1 + random.below(63)) };
            watch_create(&mut out, &key, &end, start);
            let create = pb::WatchCreateRequest {
                key: key.clone().into(),
                range_end: end.clone().into(),
                start_revision: start as i64,
                ..Default::default()
            };
            let union = pb::watch_request::RequestUnion::CreateRequest(create);
            let expected = pb::WatchRequest { request_union: Some(union) };
            assert_eq!(body(&out), expected.encode_to_vec(), "seed {seed}, round {round}");

            let mut out = BytesMut::new();
            put(&mut out, &key, &end);
            let expected = pb::PutRequest { key: key.clone().into(), value: end.clone().into(), ..Default::default() };
            assert_eq!(body(&out), expected.encode_to_vec(), "seed {seed}, round {round}");

            let mut out = BytesMut::new();
            range(&mut out, &key, &end);
            let expected = pb::RangeRequest { key: key.into(), range_end: end.into(), ..Default::default() };
            assert_eq!(body(&out), expected.encode_to_vec(), "seed {seed}, round {round}");
        }
    }

    fn watch_response(random: &mut Random) -> pb::WatchResponse {
        let events = (0..random.below(4)).map(|_| mvccpb::Event {
            r#type: random.below(2) as i32,
            kv: Some(mvccpb::KeyValue {
                key: sample(random, 40).into(),
                value: sample(random, 300).into(),
                mod_revision: random.next() as i64,
                create_revision: 3,
                version: 9,
                lease: -1,
            }),
            prev_kv: None,
        });
        let events = events.collect();
        pb::WatchResponse {
            header: Some(pb::ResponseHeader { cluster_id: 1, member_id: u64::MAX, revision: 77, raft_term: 2 }),
            watch_id: random.next() as i64,
            created: random.below(2) == 1,
            canceled: random.below(2) == 1,
            compact_revision: random.below(9) as i64,
            cancel_reason: "why".repeat(random.below(3) as usize),
            fragment: random.below(2) == 1,
            events,
        }
    }

    #[test]
    fn what_prost_writes_reads_back_by_hand() {
        let seed = 11;
        let mut random = Random::new(seed);
        for round in 0..500 {
            let expected = watch_response(&mut random);
            let bytes = expected.encode_to_vec();
            let reply = WatchReply::decode(&bytes).unwrap();
            assert_eq!(reply.watch_id, expected.watch_id, "seed {seed}, round {round}");
            assert_eq!((reply.created, reply.canceled), (expected.created, expected.canceled));
            assert_eq!((reply.compact_revision, reply.fragment), (expected.compact_revision, expected.fragment));
            assert_eq!(reply.cancel_reason, expected.cancel_reason.as_bytes());
            let events: Vec<_> = reply.events().map(Result::unwrap).collect();
            assert_eq!(events.len(), expected.events.len());
            for (event, expected) in events.iter().zip(&expected.events) {
                let kv = expected.kv.as_ref().unwrap();
                assert_eq!((event.key, event.mod_revision), (&kv.key[..], kv.mod_revision));
                assert_eq!((event.value_bytes, event.deleted), (kv.value.len(), expected.r#type == 1));
            }
            assert_eq!(header_revision(&bytes), Ok(77));
        }
    }

    #[test]
    fn cut_and_random_bytes_are_refused_or_read_but_never_panic() {
        let mut random = Random::new(13);
        for _ in 0..2_000 {
            let mut bytes = watch_response(&mut random).encode_to_vec();
            bytes.truncate(random.below(bytes.len() as u64 + 1) as usize);
            if let Some(at) = (bytes.len() as u64).checked_sub(1) {
                bytes[random.below(at + 1) as usize] = random.next() as u8;
            }
            if let Ok(reply) = WatchReply::decode(&bytes) {
                assert!(reply.events().count() <= bytes.len());
            }
            let _ = (header_revision(&bytes), range_counts(&bytes));
        }
        assert!(WatchReply::decode(&[1 << 3 | 2, 200]).is_err());
    }

    #[test]
    fn messages_come_out_whole_however_the_chunks_are_cut() {
        let seed = 17;
        let mut random = Random::new(seed);
        for round in 0..300 {
            let expected: Vec<Vec<u8>> = (0..1 + random.below(6)).map(|_| sample(&mut random, 60)).collect();
            let mut stream = BytesMut::new();
            for body in &expected {
                message(&mut stream, |out| out.put_slice(body));
            }
            let (mut deframer, mut found, mut rest) = (Deframer::default(), Vec::new(), &stream[..]);
            while !rest.is_empty() {
                let (chunk, tail) = rest.split_at((1 + random.below(20) as usize).min(rest.len()));
                rest = tail;
                deframer
                    .feed(chunk, |body| {
                        found.push(body.to_vec());
                        Ok::<(), Malformed>(())
                    })
                    .unwrap();
            }
            assert_eq!(found, expected, "seed {seed}, round {round}");
            assert_eq!(deframer.partial.capacity(), 0, "nothing is held between messages");
        }
    }

    #[test]
    fn a_range_response_is_counted() {
        let kvs = vec![mvccpb::KeyValue { key: "k".into(), ..Default::default() }; 3];
        let response = pb::RangeResponse { header: None, kvs, more: false, count: 7 };
        assert_eq!(range_counts(&response.encode_to_vec()), Ok((3, 7)));
    }
}
