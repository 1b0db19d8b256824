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
mod late_log;
mod leases;
mod lives;
mod model;
mod rules;
mod script;
mod world;

use std::path::PathBuf;

use crate::store::Store;
use crate::store::command::{Outcome, Range, Read, Rows, SortOrder, SortTarget};
use crate::types::{Key, KeyRange, Revision};

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

pub fn all_keys() -> Range {
    plain_range(KeyRange::From(Key::new()), 0)
}

/// All keys as they were at a revision that is not compacted.
pub fn all_at(store: &Store, revision: Revision) -> Rows {
    let mut job = store.read(&Read::Range(all_keys()), revision).expect("the newest is never refused");
    match store.step(&mut job, usize::MAX).map(|answer| answer.map(|answer| answer.result)) {
        Some(Ok(Outcome::Range(rows))) => rows,
        other => panic!("not rows: {other:?}"),
    }
}

/// A directory for one test, beside its binary, so that it is on a real disk. It does not exist yet, and goes with the test.
pub struct Folder(pub PathBuf);

impl Folder {
    pub fn new(name: &str) -> Folder {
        let binary = std::env::current_exe().expect("a test has a binary");
        let path = binary.with_file_name(format!("tarsier-{name}-{}", std::process::id()));
        // One that an earlier process of this id left behind.
        let _ = std::fs::remove_dir_all(&path);
        Folder(path)
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        // It may never have been made.
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

/// The seeds of a run: fixed ones, or `TARSIER_SEEDS=FIRST..END` for a longer search.
pub fn seeds(count: u64) -> std::ops::Range<u64> {
    let Ok(text) = std::env::var("TARSIER_SEEDS") else { return 0..count };
    let (first, end) = text.split_once("..").expect("TARSIER_SEEDS is FIRST..END");
    first.parse().expect("FIRST is a number")..end.parse().expect("END is a number")
}
