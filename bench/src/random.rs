//! Seeded numbers: the same seed gives the same keys, the same puts and the same tests.

/// The splitmix64 step: a good hash of its argument, which is what key choices need.
pub fn mix(value: u64) -> u64 {
    let mut z = value.wrapping_add(0x9e37_79b9_7f4a_7c15);
    z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}

/// A uniform number below `bound` made of a hash, by the multiply-and-shift rule.
pub fn scale(hash: u64, bound: u64) -> u64 {
    ((u128::from(hash) * u128::from(bound)) >> 64) as u64
}

/// A sequence of numbers.
pub struct Random {
    state: u64,
}

impl Random {
    pub fn new(seed: u64) -> Random {
        Random { state: seed }
    }

    pub fn next(&mut self) -> u64 {
        let number = mix(self.state);
        self.state = self.state.wrapping_add(0x9e37_79b9_7f4a_7c15);
        number
    }

    /// A number below `bound`; 0 when there is none below it.
    pub fn below(&mut self, bound: u64) -> u64 {
        scale(self.next(), bound)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_stay_below_their_bound_and_reach_all_of_it() {
        let mut random = Random::new(1);
        let mut hits = [0u32; 7];
        for _ in 0..7_000 {
            hits[random.below(7) as usize] += 1;
        }
        assert!(hits.iter().all(|&count| (800..1_200).contains(&count)), "{hits:?}");
        assert_eq!(random.below(0), 0);
    }
}
