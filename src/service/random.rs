//! Seeded requests and junk for the tests of this folder.

use crate::random;

pub struct Random(random::Random);

impl Random {
    pub fn new(seed: u64) -> Random {
        Random(random::Random::new(seed))
    }

    pub fn next(&mut self) -> u64 {
        self.0.next()
    }

    /// Below `end`, which is not 0.
    pub fn below(&mut self, end: usize) -> usize {
        (self.next() % end as u64) as usize
    }

    /// True once in `times`.
    pub fn one_in(&mut self, times: usize) -> bool {
        self.below(times) == 0
    }

    /// A number that is small, negative, huge or 0, each often.
    pub fn number(&mut self) -> i64 {
        match self.below(5) {
            0 => 0,
            1 => self.below(8) as i64,
            2 => -(self.below(8) as i64),
            3 => 1 << self.below(63),
            _ => self.next() as i64,
        }
    }

    /// At most `len_max` bytes of a small alphabet, so that keys meet.
    pub fn key(&mut self, len_max: usize) -> Vec<u8> {
        let len = self.below(len_max + 1);
        (0..len).map(|_| [0, b'a', b'b', b'c', 0xff][self.below(5)]).collect()
    }

    /// At most `len_max` bytes that look like fields more often than chance makes them.
    pub fn junk(&mut self, len_max: usize) -> Vec<u8> {
        let len = self.below(len_max + 1);
        (0..len)
            .map(|_| match self.below(4) {
                0 => self.next() as u8,
                1 => (1 + self.below(9) as u8) << 3 | self.below(6) as u8,
                2 => self.below(4) as u8,
                _ => 0x80 | self.below(3) as u8,
            })
            .collect()
    }

    /// The message with some bytes flipped, cut, doubled or inserted.
    pub fn damage(&mut self, message: &mut Vec<u8>) {
        for _ in 0..=self.below(3) {
            let at = self.below(message.len() + 1);
            match self.below(5) {
                0 => message.truncate(at),
                1 if at < message.len() => message[at] = self.next() as u8,
                2 if at < message.len() => message[at] ^= 1 << self.below(8),
                3 => drop(message.splice(at..at, self.junk(6))),
                _ => message.extend_from_within(at..),
            }
        }
    }
}
