//! The simulator: writer, hubs, log and clients in one thread, driven by a seed.
//!
//! It runs the code of the shards without their threads, sockets and clock: the queues of the mesh, the writer with a log
//! that is late, shared history, and the hubs of one to four shards. Each seed draws its own mix of faults. While it runs
//! everything interleaves as the seed says; then nothing fails any more, and everyone must catch up.

mod model;
mod rules;
mod script;
mod world;

/// A small generator (SplitMix64), so that a seed means the same on every machine and with every version of a library.
pub struct Random(u64);

impl Random {
    pub fn new(seed: u64) -> Random {
        Random(seed)
    }

    pub fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mixed = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^ (mixed >> 31)
    }

    /// A number below `bound`.
    pub fn below(&mut self, bound: u64) -> u64 {
        self.next() % bound
    }

    /// True in `percent` of 100 cases.
    pub fn chance(&mut self, percent: u64) -> bool {
        self.below(100) < percent
    }

    pub fn pick<'a, T>(&mut self, from: &'a [T]) -> &'a T {
        &from[self.below(from.len() as u64) as usize]
    }
}

/// The seeds of a run: fixed ones, or `TARSIER_SEEDS=FIRST..END` for a longer search.
pub fn seeds(count: u64) -> std::ops::Range<u64> {
    let Ok(text) = std::env::var("TARSIER_SEEDS") else { return 0..count };
    let (first, end) = text.split_once("..").expect("TARSIER_SEEDS is FIRST..END");
    first.parse().expect("FIRST is a number")..end.parse().expect("END is a number")
}
