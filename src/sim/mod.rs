//! The simulator: writer, hubs, log and clients in one thread, driven by a seed.
//!
//! It runs the code of the shards without their threads, sockets and clock: the queues of the mesh, the writer with a log
//! that is late, shared history, and the hubs of one to four shards. Each seed draws its own mix of faults. While it runs
//! everything interleaves as the seed says; then nothing fails any more, and everyone must catch up.
//!
//! Two more worlds are about the disk: `crash` is the log alone, `lives` the whole server behind its sockets, from one start
//! to the next on a disk that fails.

mod crash;
mod device;
pub mod disk;
mod lives;
mod model;
mod rules;
mod script;
mod world;

use crate::store::command::{Range, SortOrder, SortTarget};
use crate::types::KeyRange;

/// A read of a range that asks for nothing special; revision 0 is now.
pub fn plain_range(range: KeyRange, revision: i64) -> Range {
    Range {
        range,
        revision,
        limit: 0,
        order: SortOrder::None,
        target: SortTarget::Key,
        keys_only: false,
        count_only: false,
        min_mod_revision: 0,
        max_mod_revision: 0,
        min_create_revision: 0,
        max_create_revision: 0,
    }
}

/// The seeds of a run: fixed ones, or `TARSIER_SEEDS=FIRST..END` for a longer search.
pub fn seeds(count: u64) -> std::ops::Range<u64> {
    let Ok(text) = std::env::var("TARSIER_SEEDS") else { return 0..count };
    let (first, end) = text.split_once("..").expect("TARSIER_SEEDS is FIRST..END");
    first.parse().expect("FIRST is a number")..end.parse().expect("END is a number")
}
