//! Seeded numbers for the tests of this folder: splitmix64, so that a seed in a failure message replays the run.

pub struct Random(u64);

impl Random {
    pub fn new(seed: u64) -> Random {
        Random(seed)
    }

    pub fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
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
