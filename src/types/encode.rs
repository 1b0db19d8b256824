//! Event and KeyValue to bytes by hand.
//!
//! An event is encoded once and its bytes are shared by all watchers that are told of it, so this does not go through a
//! message struct. The rules are proto3's: fields in the order of their numbers, a field with its default value left out,
//! lengths and numbers as varints, a negative int64 as ten bytes. Tested byte for byte against the generated messages.

use crate::types::{Change, KeyValue, Revision};

/// `mvccpb.KeyValue`: key 1, create_revision 2, mod_revision 3, version 4, value 5, lease 6.
const KEY: u8 = 0x0a;
const CREATE_REVISION: u8 = 0x10;
const MOD_REVISION: u8 = 0x18;
const VERSION: u8 = 0x20;
const VALUE: u8 = 0x2a;
const LEASE: u8 = 0x30;

/// `mvccpb.Event`: type 1, kv 2, prev_kv 3.
const EVENT_TYPE: u8 = 0x08;
const EVENT_KV: u8 = 0x12;
const EVENT_PREV_KV: u8 = 0x1a;
const DELETE: u64 = 1;

const VARINT_BYTES_MAX: usize = 10;

/// How many bytes a number takes as a varint.
pub fn varint_len(number: u64) -> usize {
    // Seven bits a byte; zero takes one byte as well.
    (70 - (number | 1).leading_zeros() as usize) / 7
}

/// Where encoded bytes go: a plain vector, or the tail of a stream's outbox.
pub trait Sink {
    fn put(&mut self, bytes: &[u8]);

    fn put_byte(&mut self, byte: u8) {
        self.put(&[byte]);
    }

    fn put_varint(&mut self, mut number: u64) {
        // Put at once: a sink looks after its room at each call.
        let (mut bytes, length) = ([0; VARINT_BYTES_MAX], varint_len(number));
        for byte in &mut bytes[..length - 1] {
            *byte = number as u8 | 0x80;
            number >>= 7;
        }
        bytes[length - 1] = number as u8;
        self.put(&bytes[..length]);
    }

    /// A number with its tag, left out when it is zero.
    fn put_number(&mut self, tag: u8, number: u64) {
        if number != 0 {
            self.put_byte(tag);
            self.put_varint(number);
        }
    }

    /// Bytes with their tag, left out when there are none.
    fn put_bytes(&mut self, tag: u8, bytes: &[u8]) {
        if !bytes.is_empty() {
            self.put_byte(tag);
            self.put_varint(bytes.len() as u64);
            self.put(bytes);
        }
    }
}

impl Sink for Vec<u8> {
    fn put(&mut self, bytes: &[u8]) {
        self.extend_from_slice(bytes);
    }
}

impl Sink for bytes::BytesMut {
    fn put(&mut self, bytes: &[u8]) {
        self.extend_from_slice(bytes);
    }
}

/// What a number with a one-byte tag takes.
pub fn number_len(number: u64) -> usize {
    if number == 0 { 0 } else { 1 + varint_len(number) }
}

/// What bytes with a one-byte tag take.
pub fn bytes_len(bytes: usize) -> usize {
    if bytes == 0 { 0 } else { 1 + varint_len(bytes as u64) + bytes }
}

/// The length of a `mvccpb.KeyValue`.
pub fn key_value_len(kv: &KeyValue) -> usize {
    bytes_len(kv.key().len())
        + number_len(kv.create_revision().0 as u64)
        + number_len(kv.mod_revision().0 as u64)
        + number_len(kv.version() as u64)
        + bytes_len(kv.value().len())
        + number_len(kv.lease().0 as u64)
}

/// A `mvccpb.KeyValue`, without tag and length.
pub fn put_key_value(out: &mut impl Sink, kv: &KeyValue) {
    out.put_bytes(KEY, kv.key());
    out.put_number(CREATE_REVISION, kv.create_revision().0 as u64);
    out.put_number(MOD_REVISION, kv.mod_revision().0 as u64);
    out.put_number(VERSION, kv.version() as u64);
    out.put_bytes(VALUE, kv.value());
    out.put_number(LEASE, kv.lease().0 as u64);
}

/// What etcd stores of a deleted key: a `mvccpb.KeyValue` with the key and nothing else.
pub fn put_deleted(out: &mut impl Sink, key: &[u8]) {
    out.put_bytes(KEY, key);
}

/// A message field is present even when the message in it is empty.
fn put_message_head(out: &mut impl Sink, tag: u8, length: usize) {
    out.put_byte(tag);
    out.put_varint(length as u64);
}

fn message_field_len(length: usize) -> usize {
    1 + varint_len(length as u64) + length
}

/// The length of the `mvccpb.Event` of a change made at `revision`.
pub fn event_len(revision: Revision, change: &Change, with_previous: bool) -> usize {
    let previous = change.previous().filter(|_| with_previous).map_or(0, |kv| message_field_len(key_value_len(kv)));
    match change {
        Change::Put { kv, .. } => message_field_len(key_value_len(kv)) + previous,
        Change::Delete { key, .. } => number_len(DELETE) + message_field_len(deleted_len(revision, key)) + previous,
    }
}

/// The `mvccpb.Event` of a change made at `revision`, without tag and length.
pub fn put_event(out: &mut impl Sink, revision: Revision, change: &Change, with_previous: bool) {
    match change {
        Change::Put { kv, .. } => {
            put_message_head(out, EVENT_KV, key_value_len(kv));
            put_key_value(out, kv);
        }
        Change::Delete { key, .. } => {
            out.put_number(EVENT_TYPE, DELETE);
            // etcd fills only key and mod_revision of a deleted key, the latter with the revision of the delete.
            put_message_head(out, EVENT_KV, deleted_len(revision, key));
            out.put_bytes(KEY, key);
            out.put_number(MOD_REVISION, revision.0 as u64);
        }
    }
    if let Some(previous) = change.previous().filter(|_| with_previous) {
        put_message_head(out, EVENT_PREV_KV, key_value_len(previous));
        put_key_value(out, previous);
    }
}

fn deleted_len(revision: Revision, key: &[u8]) -> usize {
    bytes_len(key.len()) + number_len(revision.0 as u64)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::pb::mvccpb;
    use crate::types::LeaseId;
    use bytes::Bytes;
    use prost::Message;

    fn wire(kv: &KeyValue) -> mvccpb::KeyValue {
        mvccpb::KeyValue {
            key: kv.key().to_vec().into(),
            create_revision: kv.create_revision().0,
            mod_revision: kv.mod_revision().0,
            version: kv.version(),
            value: kv.value().to_vec().into(),
            lease: kv.lease().0,
        }
    }

    fn next(state: &mut u64) -> u64 {
        *state = state.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mixed = (*state ^ (*state >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed ^ (mixed >> 27)
    }

    fn number(state: &mut u64) -> i64 {
        match next(state) % 4 {
            0 => 0,
            1 => (next(state) % 300) as i64,
            2 => -((next(state) % 300) as i64),
            _ => next(state) as i64,
        }
    }

    fn text(state: &mut u64) -> Vec<u8> {
        let length = [0, 1, 3, 127, 128, 20_000][next(state) as usize % 6];
        (0..length).map(|_| next(state) as u8).collect()
    }

    fn key_value(state: &mut u64) -> KeyValue {
        let (key, value) = (text(state), text(state));
        let numbers = [number(state), number(state), number(state), number(state)];
        KeyValue::new(&key, &value, Revision(numbers[0]), Revision(numbers[1]), 0, numbers[2], LeaseId(numbers[3]))
    }

    #[test]
    fn events_and_key_values_are_the_bytes_that_prost_writes() {
        for seed in 0..2_000 {
            let mut state = seed;
            let revision = Revision(number(&mut state));
            let previous = (next(&mut state).is_multiple_of(2)).then(|| key_value(&mut state));
            let with_previous = next(&mut state).is_multiple_of(2);
            let (change, r#type, kv) = if next(&mut state).is_multiple_of(3) {
                let key = Bytes::from(text(&mut state));
                let kv = KeyValue::new(&key, b"", Revision::ZERO, revision, 0, 0, LeaseId::NONE);
                (Change::Delete { key, previous: previous.clone() }, 1, kv)
            } else {
                let kv = key_value(&mut state);
                (Change::Put { kv: kv.clone(), previous: previous.clone() }, 0, kv)
            };
            let prev_kv = previous.filter(|_| with_previous).as_ref().map(wire);
            let event = mvccpb::Event { r#type, kv: Some(wire(&kv)), prev_kv };
            let mut out = Vec::new();
            put_event(&mut out, revision, &change, with_previous);
            assert_eq!(out, event.encode_to_vec(), "seed {seed}");
            assert_eq!(out.len(), event_len(revision, &change, with_previous), "seed {seed}");
        }
    }

    #[test]
    fn a_varint_is_as_long_as_it_says() {
        for shift in 0..64 {
            for number in [1u64 << shift, (1 << shift) - 1, u64::MAX >> shift] {
                let mut out = Vec::new();
                out.put_varint(number);
                assert_eq!(out.len(), varint_len(number), "{number}");
            }
        }
    }
}
