//! The keys and values of etcd's tool, byte for byte: a key is its number as a zig-zag varint at the start of zeros.

use bytes::Bytes;

use crate::random::Random;

/// Shorter keys could not hold every number below 2^32.
pub const KEY_BYTES_MIN: u64 = 5;

/// Keys out of one buffer. What a longer number left behind a shorter one stays, as it does in etcd's tool: the second
/// turn through a key space so makes further keys.
pub struct Keys {
    buffer: Vec<u8>,
}

impl Keys {
    pub fn reused(key_bytes: usize) -> Keys {
        Keys { buffer: vec![0; key_bytes] }
    }

    pub fn write(&mut self, number: u64) -> Bytes {
        let mut rest = number << 1;
        for byte in &mut self.buffer {
            *byte = rest as u8 & 0x7f;
            rest >>= 7;
            if rest == 0 {
                break;
            }
            *byte |= 0x80;
        }
        assert_eq!(rest, 0, "a key of at least {KEY_BYTES_MIN} bytes holds a number below 2^32");
        Bytes::copy_from_slice(&self.buffer)
    }
}

/// A key out of a buffer of its own.
pub fn key(number: u64, key_bytes: usize) -> Bytes {
    Keys::reused(key_bytes).write(number)
}

/// Bytes that do not compress, the same in each run.
pub fn random_bytes(count: usize) -> Bytes {
    fresh_bytes(&mut Random::new(count as u64), count)
}

/// The next such bytes of a sequence.
pub fn fresh_bytes(random: &mut Random, count: usize) -> Bytes {
    (0..count).map(|_| random.next() as u8).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_number_is_a_zig_zag_varint_in_zeros() {
        assert_eq!(key(0, 5), [0u8; 5][..]);
        assert_eq!(key(1, 5), [2u8, 0, 0, 0, 0][..]);
        assert_eq!(key(64, 5), [0x80u8, 1, 0, 0, 0][..]);
        assert_eq!(key(u64::from(u32::MAX), 5), [0xfe_u8, 0xff, 0xff, 0xff, 0x1f][..]);
    }

    #[test]
    fn a_reused_buffer_keeps_what_a_longer_number_left() {
        let mut keys = Keys::reused(5);
        keys.write(64);
        assert_eq!(keys.write(1), [2u8, 1, 0, 0, 0][..]);
    }
}
