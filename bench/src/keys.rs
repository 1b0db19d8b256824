//! Which watch watches which keys, and what a key looks like.
//!
//! Nothing is stored: the keys of watch `w` are a function of the seed and `w`, so ten million watches cost the load
//! client no table. A key is a prefix, zeros, and its index in ten digits, so that index order is byte order and a range
//! of indexes is a range of keys.

use clap::ValueEnum;
use serde::{Deserialize, Serialize};

use crate::random::{mix, scale};

/// Digits that every index fits in.
const INDEX_DIGITS: usize = 10;

/// What the watches watch.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug, ValueEnum, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum KeyChoice {
    /// A key drawn from a pool.
    Pool,
    /// A key of its own for each watch.
    Own,
    /// The same key for all.
    One,
    /// A range of neighbouring keys of the pool, begun at a random one.
    Range,
}

impl KeyChoice {
    /// As flags and files write it.
    pub fn name(self) -> &'static str {
        match self {
            KeyChoice::Pool => "pool",
            KeyChoice::Own => "own",
            KeyChoice::One => "one",
            KeyChoice::Range => "range",
        }
    }
}

/// The layout of a set of watches and their keys.
#[derive(Clone, Debug)]
pub struct Plan {
    pub connections: u32,
    pub streams: u32,
    pub watchings: u32,
    pub choice: KeyChoice,
    /// How many keys `pool` and `range` draw from.
    pub pool: u32,
    /// How many keys a range holds.
    pub range_keys: u32,
    pub prefix: &'static str,
    pub key_bytes: usize,
    pub seed: u64,
}

impl Plan {
    /// What is wrong with the numbers, in one sentence.
    pub fn check(&self) -> Result<(), String> {
        let shortest = self.prefix.len() + INDEX_DIGITS;
        if self.key_bytes < shortest {
            return Err(format!("--key-bytes {} is too short: a key needs {shortest} bytes", self.key_bytes));
        }
        if self.connections == 0 || self.streams == 0 || self.watchings == 0 {
            return Err("connections, streams and watchings must each be at least 1".to_owned());
        }
        if self.watches() > u64::from(u32::MAX) {
            return Err(format!("{} watches are more than this client can number (2^32 - 1)", self.watches()));
        }
        if self.pool == 0 || self.range_keys == 0 || self.range_keys > self.pool {
            return Err("--pool must be at least 1, and --range-keys between 1 and --pool".to_owned());
        }
        Ok(())
    }

    pub fn watches_a_connection(&self) -> u64 {
        u64::from(self.streams) * u64::from(self.watchings)
    }

    pub fn watches(&self) -> u64 {
        u64::from(self.connections) * self.watches_a_connection()
    }

    /// How many different keys the watches may speak of.
    pub fn key_count(&self) -> u32 {
        match self.choice {
            KeyChoice::Pool | KeyChoice::Range => self.pool,
            KeyChoice::Own => self.watches() as u32,
            KeyChoice::One => 1,
        }
    }

    /// The key indexes of a watch: `first..past`.
    pub fn span(&self, watch: u64) -> (u32, u32) {
        let drawn = |bound: u32| scale(mix(self.seed ^ mix(watch)), u64::from(bound)) as u32;
        match self.choice {
            KeyChoice::Pool => {
                let index = drawn(self.pool);
                (index, index + 1)
            }
            KeyChoice::Own => (watch as u32, watch as u32 + 1),
            KeyChoice::One => (0, 1),
            KeyChoice::Range => {
                let first = drawn(self.pool - self.range_keys + 1);
                (first, first + self.range_keys)
            }
        }
    }

    /// Writes the key of an index into `key`, whose length is then `key_bytes`.
    pub fn write_key(&self, index: u32, key: &mut Vec<u8>) {
        key.clear();
        key.extend_from_slice(self.prefix.as_bytes());
        key.resize(self.key_bytes, b'0');
        let mut rest = index;
        for digit in key.iter_mut().rev().take(INDEX_DIGITS) {
            *digit = b'0' + (rest % 10) as u8;
            rest /= 10;
        }
    }

    /// The index of a key, if it is one of this plan.
    pub fn key_index(&self, key: &[u8]) -> Option<u32> {
        let (prefix, digits) = key.split_at_checked(self.prefix.len())?;
        if key.len() != self.key_bytes || prefix != self.prefix.as_bytes() {
            return None;
        }
        let (zeros, digits) = digits.split_at(digits.len() - INDEX_DIGITS);
        if zeros.iter().any(|&byte| byte != b'0') || !digits.iter().all(u8::is_ascii_digit) {
            return None;
        }
        let index = digits.iter().fold(0u64, |number, digit| number * 10 + u64::from(digit - b'0'));
        u32::try_from(index).ok().filter(|&index| index < self.key_count())
    }

    /// Key indexes to put: `count` distinct ones spread over all keys, or, where there are fewer keys, each in turn.
    pub fn put_keys(&self, count: u32) -> Vec<u32> {
        let keys = u64::from(self.key_count());
        if u64::from(count) > keys {
            return (0..count).map(|at| (u64::from(at) % keys) as u32).collect();
        }
        let part_start = |part: u64| part * keys / u64::from(count);
        let chosen = (0..u64::from(count)).map(|part| {
            let (start, end) = (part_start(part), part_start(part + 1));
            (start + scale(mix(self.seed.wrapping_add(1) ^ mix(part)), end - start)) as u32
        });
        chosen.collect()
    }
}

#[cfg(test)]
pub mod tests {
    use super::*;

    pub fn plan(choice: KeyChoice) -> Plan {
        Plan {
            connections: 3,
            streams: 4,
            watchings: 50,
            choice,
            pool: 100,
            range_keys: 10,
            prefix: "hold/",
            key_bytes: 32,
            seed: 5,
        }
    }

    #[test]
    fn a_key_gives_its_index_back_and_keys_sort_like_their_indexes() {
        let plan = Plan { connections: 4_000, streams: 100, ..plan(KeyChoice::Own) };
        let (mut key, mut before) = (Vec::new(), Vec::new());
        for index in (0..plan.key_count()).step_by(9_973) {
            plan.write_key(index, &mut key);
            assert_eq!((key.len(), plan.key_index(&key)), (32, Some(index)));
            assert!(before < key);
            before.clone_from(&key);
        }
    }

    #[test]
    fn a_foreign_key_has_no_index() {
        let plan = plan(KeyChoice::Pool);
        let mut key = Vec::new();
        plan.write_key(99, &mut key);
        assert_eq!(plan.key_index(&key), Some(99));
        plan.write_key(100, &mut key);
        assert_eq!(plan.key_index(&key), None, "past the pool");
        for (at, byte) in [(0, b'x'), (6, b'1'), (31, b'x')] {
            plan.write_key(1, &mut key);
            key[at] = byte;
            assert_eq!(plan.key_index(&key), None, "byte {at}");
        }
        assert_eq!(plan.key_index(b""), None);
        assert_eq!(plan.key_index(&[b'0'; 31]), None);
    }

    #[test]
    fn spans_are_the_same_each_time_and_lie_within_the_keys() {
        for choice in [KeyChoice::Pool, KeyChoice::Own, KeyChoice::One, KeyChoice::Range] {
            let plan = plan(choice);
            for watch in 0..plan.watches() {
                let (first, past) = plan.span(watch);
                assert_eq!((first, past), plan.span(watch));
                assert!(first < past && past <= plan.key_count(), "{choice:?} {watch}");
                assert_eq!(past - first, if choice == KeyChoice::Range { 10 } else { 1 });
            }
        }
    }

    #[test]
    fn puts_go_to_distinct_keys_while_there_are_enough() {
        let plan = plan(KeyChoice::Own);
        for count in [1, 7, 599, 600] {
            let mut keys = plan.put_keys(count);
            keys.sort_unstable();
            keys.dedup();
            assert_eq!(keys.len(), count as usize);
            assert!(keys.iter().all(|&key| key < 600));
        }
        assert_eq!(self::plan(KeyChoice::One).put_keys(3), [0, 0, 0]);
    }

    #[test]
    fn senseless_numbers_are_refused_with_a_sentence() {
        assert_eq!(plan(KeyChoice::Pool).check(), Ok(()));
        assert!(Plan { key_bytes: 8, ..plan(KeyChoice::Pool) }.check().unwrap_err().contains("15"));
        assert!(Plan { streams: 0, ..plan(KeyChoice::Pool) }.check().is_err());
        assert!(Plan { range_keys: 101, ..plan(KeyChoice::Range) }.check().is_err());
        assert!(Plan { connections: 1 << 20, streams: 1 << 20, ..plan(KeyChoice::Own) }.check().is_err());
    }
}
