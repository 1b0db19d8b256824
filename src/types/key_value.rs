//! One stored version of a key, in one allocation.
//!
//! A store of a million small values has a million of these, so the numbers beside key and value take only the bytes they
//! need: some 10 where fixed fields would take 40. The widths stand in front:
//!
//! ```text
//! byte  0       1       2       3 ..
//!       mmmmcccc vvvvllll sssskkkk  mod_revision, mod - create, version, lease, sub, key length, key, value
//! ```
//!
//! Each nibble is the width of one number in bytes, 0 to 8, in the order of the numbers behind; 0 is the number 0. Numbers
//! are little-endian. This is memory only: log, checkpoint and wire have formats of their own.

use std::fmt;
use std::sync::Arc;

use bytes::Bytes;

use super::{ChangeId, LeaseId, Revision};

/// One version of a key. Cloning copies a handle; the bytes are shared between the store, history and every reader.
///
/// One allocation holds the numbers and then key and value, because a separate allocation each would cost 50 bytes more a
/// stored version.
#[derive(Clone, PartialEq, Eq)]
pub struct KeyValue(Arc<[u8]>);

const NUMBERS: usize = 6;
const WIDTH_BYTES: usize = NUMBERS / 2;
/// The two reference counts in front of the bytes.
const COUNT_BYTES: usize = 16;

/// The places of the numbers.
const MOD: usize = 0;
const CREATED_BEFORE: usize = 1;
const VERSION: usize = 2;
const LEASE: usize = 3;
const SUB: usize = 4;
const KEY_LEN: usize = 5;

/// The bytes that a number needs.
fn width(number: u64) -> usize {
    (64 - number.leading_zeros() as usize).div_ceil(8)
}

impl KeyValue {
    /// `mod_revision` and `sub` together name the change that wrote this version.
    pub fn new(
        key: &[u8],
        value: &[u8],
        create_revision: Revision,
        mod_revision: Revision,
        sub: u32,
        version: i64,
        lease: LeaseId,
    ) -> KeyValue {
        let created_before = mod_revision.0.wrapping_sub(create_revision.0);
        let signed = [mod_revision.0, created_before, version, lease.0];
        let mut numbers = [0; NUMBERS];
        for (number, signed) in numbers.iter_mut().zip(signed) {
            // Bit for bit: a client may choose a negative lease.
            *number = signed.cast_unsigned();
        }
        numbers[SUB] = u64::from(sub);
        numbers[KEY_LEN] = key.len() as u64;
        let widths = numbers.map(width);
        let head = WIDTH_BYTES + widths.iter().sum::<usize>();
        // Filled in place: a vector that becomes an `Arc` is allocated and copied twice, on the path of every put.
        let mut shared: Arc<[u8]> = std::iter::repeat_n(0, head + key.len() + value.len()).collect();
        let bytes = Arc::get_mut(&mut shared).expect("nobody else has the handle yet");
        for (at, pair) in widths.chunks_exact(2).enumerate() {
            bytes[at] = (pair[0] << 4 | pair[1]) as u8;
        }
        let mut at = WIDTH_BYTES;
        for (number, width) in numbers.into_iter().zip(widths) {
            bytes[at..at + width].copy_from_slice(&number.to_le_bytes()[..width]);
            at += width;
        }
        let (key_bytes, value_bytes) = bytes[head..].split_at_mut(key.len());
        key_bytes.copy_from_slice(key);
        value_bytes.copy_from_slice(value);
        KeyValue(shared)
    }

    fn width(&self, place: usize) -> usize {
        let pair = self.0[place / 2];
        usize::from(if place.is_multiple_of(2) { pair >> 4 } else { pair & 15 })
    }

    /// Where the number of this place begins.
    fn start(&self, place: usize) -> usize {
        WIDTH_BYTES + (0..place).map(|before| self.width(before)).sum::<usize>()
    }

    fn number(&self, place: usize) -> u64 {
        let (at, width) = (self.start(place), self.width(place));
        // Nearly always key and value lie behind the number: one load and a shift instead of a loop.
        if let (Some(eight), 1..) = (self.0.get(at..at + 8), width) {
            let eight = u64::from_le_bytes(eight.try_into().expect("the slice has 8 bytes"));
            return eight & (u64::MAX >> (64 - 8 * width));
        }
        self.0[at..at + width].iter().rev().fold(0, |number, &byte| number << 8 | u64::from(byte))
    }

    fn key_start(&self) -> usize {
        self.start(NUMBERS)
    }

    fn key_len(&self) -> usize {
        self.number(KEY_LEN) as usize
    }

    pub fn key(&self) -> &[u8] {
        let start = self.key_start();
        &self.0[start..start + self.key_len()]
    }

    pub fn value(&self) -> &[u8] {
        &self.0[self.key_start() + self.key_len()..]
    }

    /// The revision of the put that created the key or created it anew.
    pub fn create_revision(&self) -> Revision {
        Revision(self.mod_revision().0.wrapping_sub(self.number(CREATED_BEFORE).cast_signed()))
    }

    /// The revision of the put that wrote this version.
    pub fn mod_revision(&self) -> Revision {
        Revision(self.number(MOD).cast_signed())
    }

    /// The index of that put among the changes of its revision.
    pub fn sub(&self) -> u32 {
        self.number(SUB) as u32
    }

    /// The change that wrote this version.
    pub fn id(&self) -> ChangeId {
        ChangeId { revision: self.mod_revision(), sub: self.sub() }
    }

    /// 1 at creation, one more with each put.
    pub fn version(&self) -> i64 {
        self.number(VERSION).cast_signed()
    }

    pub fn lease(&self) -> LeaseId {
        LeaseId(self.number(LEASE).cast_signed())
    }

    /// What one stored version takes, in bytes: the two reference counts, the numbers, key and value.
    pub fn bytes(&self) -> usize {
        COUNT_BYTES + self.0.len()
    }
}

impl fmt::Debug for KeyValue {
    /// Values stay out of logs; the key and the numbers tell which version it is.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("KeyValue")
            .field("key", &Bytes::copy_from_slice(self.key()))
            .field("create_revision", &self.create_revision().0)
            .field("mod_revision", &self.mod_revision().0)
            .field("sub", &self.sub())
            .field("version", &self.version())
            .field("lease", &self.lease().0)
            .field("value_bytes", &self.value().len())
            .finish()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::random::Random;

    fn check(key: &[u8], value: &[u8], numbers: (i64, i64, u32, i64, i64)) {
        let (create, revision, sub, version, lease) = numbers;
        let kv = KeyValue::new(key, value, Revision(create), Revision(revision), sub, version, LeaseId(lease));
        let found = (kv.create_revision().0, kv.mod_revision().0, kv.sub(), kv.version(), kv.lease().0);
        assert_eq!((kv.key(), kv.value(), found), (key, value, numbers));
    }

    #[test]
    fn a_key_value_gives_back_what_went_in() {
        check(b"key", b"value", (2, 9, 3, 4, -7));
        check(b"k", b"", (2, 2, 0, 1, 0));
        check(b"", b"", (0, 0, 0, 0, 0));
        check(b"", b"", (i64::MAX, i64::MIN, u32::MAX, i64::MIN, i64::MAX));
        check(&[1; 70_000], b"v", (1, i64::MAX, 1, i64::MAX, i64::MIN));
    }

    #[test]
    fn numbers_of_every_width_come_back() {
        let mut random = Random::new(1);
        for _ in 0..10_000 {
            let mut number = |bits: u64| (random.next() >> (64 - bits)) >> random.below(bits);
            let numbers =
                (number(64) as i64, number(64) as i64, number(32) as u32, number(64) as i64, number(64) as i64);
            let (key, value) = (vec![1; number(9) as usize], vec![2; number(9) as usize]);
            check(&key, &value, numbers);
        }
    }
}
