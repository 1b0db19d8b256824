//! The mover step by step, over a disk that can be full or fail.

use std::sync::mpsc::channel;

use super::*;
use crate::sim::disk::{FakeDisk, Faults};
use crate::types::{Batch, Change, Entry, KeyValue, LeaseId, Position, Revision, Time};
use crate::wal::checkpoint_rows::Meta;

struct Bench {
    disk: Arc<FakeDisk>,
    mover: Mover<FakeDisk>,
    progress: Sender<Progress>,
    now: Instant,
    position: u64,
}

fn bench() -> Bench {
    let disk = Arc::new(FakeDisk::new(1));
    let checkpoint = Checkpoint::create(disk.clone(), Meta::new(1, 2)).unwrap();
    let (progress, receiver) = channel();
    let now = clock::now();
    let mover = Mover::new((disk.clone(), disk.clone()), checkpoint, Gathered::default(), receiver, None, now);
    Bench { disk, mover, progress, now, position: 0 }
}

/// A put of so many bytes, at the revision behind its number.
fn group(number: u64, bytes: usize) -> Progress {
    let revision = Revision(number as i64 + 1);
    let kv = KeyValue::new(b"key", &vec![b'v'; bytes], revision, revision, 0, 1, LeaseId::NONE);
    let changes = Box::new([Change::Put { kv, previous: None }]);
    let batch = Arc::new(Batch { revision, time: Time(1), changes });
    Progress::Durable { position: Position(number), entries: vec![Entry::Batch(batch)] }
}

impl Bench {
    /// One more group: a put of so many bytes.
    fn put(&mut self, bytes: usize) {
        self.position += 1;
        self.progress.send(group(self.position, bytes)).unwrap();
    }

    fn after(&mut self, pause: Duration) -> Next {
        self.now += pause;
        self.mover.step(self.now).unwrap()
    }

    fn checkpointed(&self) -> u64 {
        self.mover.checkpointed().position.load(Ordering::Acquire)
    }

    fn has_reserve(&self) -> bool {
        self.disk.names().unwrap().iter().any(|name| name == RESERVE_NAME)
    }

    fn is_short(&self) -> bool {
        self.mover.checkpointed().is_short_of_space.load(Ordering::Acquire)
    }
}

#[test]
fn a_commit_waits_for_its_time_or_for_much_to_do() {
    let mut bench = bench();
    bench.put(10);
    assert_eq!(bench.after(Duration::ZERO), Next::After(POLL));
    assert_eq!(bench.after(COMMIT_AFTER - POLL), Next::After(POLL));
    assert_eq!(bench.checkpointed(), 0);
    assert_eq!(bench.after(POLL), Next::After(IDLE_POLL));
    assert_eq!(bench.checkpointed(), 1);
    for _ in 0..34 {
        bench.put(1 << 20);
    }
    assert_eq!(bench.after(POLL), Next::After(IDLE_POLL));
    assert_eq!(bench.checkpointed(), 35);
}

#[test]
fn a_commit_waits_less_while_memory_is_short() {
    let mut bench = bench();
    bench.put(10);
    bench.after(Duration::ZERO);
    bench.mover.checkpointed().is_short_of_memory.store(true, Ordering::Relaxed);
    bench.after(COMMIT_AFTER_SHORT - POLL);
    assert_eq!(bench.checkpointed(), 0);
    bench.after(POLL);
    assert_eq!(bench.checkpointed(), 1);
}

#[test]
fn stopping_writes_what_is_left_and_the_next_life_finds_it() {
    let mut bench = bench();
    bench.put(10);
    bench.progress.send(Progress::Stop).unwrap();
    assert_eq!(bench.after(Duration::ZERO), Next::Over);
    drop(bench.mover);
    let checkpoint = Checkpoint::open(bench.disk.clone()).unwrap();
    assert_eq!((checkpoint.meta().position, checkpoint.meta().rows), (Position(1), 1));
}

#[test]
fn a_full_disk_costs_the_reserve_and_then_waits_until_there_is_space() {
    let mut bench = bench();
    let used = bench.disk.used_bytes();
    bench.disk.set_faults(Faults { capacity_bytes: Some(used), ..Faults::default() });
    bench.put(1 << 20);
    bench.after(Duration::ZERO);
    bench.after(COMMIT_AFTER);
    assert_eq!(bench.checkpointed(), 1, "what the reserve held is enough for this one");
    assert!(!bench.has_reserve());
    bench.after(RETRY);
    assert!(bench.is_short() && !bench.has_reserve(), "there is no room for another");
    bench.disk.set_faults(Faults { capacity_bytes: Some(bench.disk.used_bytes()), ..Faults::default() });
    bench.put(1 << 20);
    for _ in 0..5 {
        bench.after(COMMIT_AFTER);
    }
    assert_eq!(bench.checkpointed(), 1, "nothing fits any more");
    bench.disk.set_faults(Faults::default());
    bench.after(RETRY);
    bench.after(RETRY);
    assert_eq!(bench.checkpointed(), 2);
    assert!(!bench.is_short() && bench.has_reserve());
}

#[test]
fn a_defragmentation_that_finds_no_room_says_so_in_the_end() {
    let mut bench = bench();
    bench.disk.set_faults(Faults { capacity_bytes: Some(bench.disk.used_bytes()), ..Faults::default() });
    bench.put(20 << 20);
    let (reply, answer) = channel();
    bench.progress.send(Progress::Defragment(reply)).unwrap();
    for _ in 0..DEFRAGMENT_TRIES {
        assert!(answer.try_recv().is_err());
        bench.disk.set_faults(Faults { capacity_bytes: Some(bench.disk.used_bytes()), ..Faults::default() });
        bench.after(RETRY);
    }
    assert!(answer.try_recv().unwrap().unwrap_err().contains("space"));
    bench.disk.set_faults(Faults::default());
    let (reply, answer) = channel();
    bench.progress.send(Progress::Defragment(reply)).unwrap();
    bench.after(RETRY);
    assert_eq!((answer.try_recv(), bench.checkpointed()), (Ok(Ok(())), 1));
}

#[test]
fn a_defragmentation_forgets_rows_with_no_group_behind_them() {
    let mut bench = bench();
    bench.put(3 << 20);
    bench.put(10);
    bench.after(Duration::ZERO);
    bench.after(COMMIT_AFTER);
    let gone = ChangeId { revision: Revision(2), sub: 0 };
    bench.progress.send(Progress::Removed(vec![gone])).unwrap();
    bench.after(COMMIT_AFTER);
    assert_eq!(bench.mover.checkpoint.meta().rows, 2, "one row alone is not worth a page");
    let (reply, answer) = channel();
    bench.progress.send(Progress::Defragment(reply)).unwrap();
    bench.after(POLL);
    assert_eq!((answer.try_recv(), bench.mover.checkpoint.meta().rows), (Ok(Ok(())), 1));
    assert!(bench.mover.checkpoint.file_bytes().unwrap() < 3 << 20);
}

#[test]
fn the_pace_grows_with_the_distance_to_the_log() {
    let mut bench = bench();
    let mut pace_behind = |mebibytes: usize| {
        while bench.position < mebibytes as u64 {
            bench.put(1 << 20);
        }
        bench.mover.receive(bench.now);
        bench.mover.pace()
    };
    assert_eq!(pace_behind(1), WRITE_BYTES_PER_SECOND);
    assert_eq!(pace_behind(33), WRITE_BYTES_PER_SECOND);
    assert_eq!(pace_behind(130), 4 * WRITE_BYTES_PER_SECOND);
    assert_eq!(pace_behind(520), 0, "as fast as the disk");
}

/// Whoever feeds the mover does so while it writes: each key is put and then superseded.
#[test]
fn what_comes_during_a_commit_is_forgotten_behind_its_own_group() {
    const PUTS: u64 = 60;
    let mut bench = bench();
    bench.put(3 << 20);
    let progress = bench.progress.clone();
    let feeder = std::thread::spawn(move || {
        for number in 2..=PUTS {
            let put = group(number, 1 << 20);
            progress.send(put).unwrap();
            let superseded = ChangeId { revision: Revision(number as i64), sub: 0 };
            progress.send(Progress::Removed(vec![superseded])).unwrap();
            if number % 7 == 0 {
                // Nobody waits for the answer; it makes a commit due.
                progress.send(Progress::Defragment(channel().0)).unwrap();
            }
            std::thread::yield_now();
        }
    });
    while bench.checkpointed() < PUTS {
        bench.after(COMMIT_AFTER);
    }
    feeder.join().unwrap();
    bench.progress.send(Progress::Defragment(channel().0)).unwrap();
    bench.after(POLL);
    assert_eq!(bench.mover.checkpoint.meta().rows, 1, "every row but the last is superseded");
}

/// A bench whose rows are in the checkpoint, all but the last of them removed.
fn bench_with_removed_rows(rows: u64) -> Bench {
    let mut bench = bench();
    bench.mover.write_bytes_per_second = u64::MAX;
    for _ in 0..rows {
        bench.put(10);
    }
    bench.after(Duration::ZERO);
    bench.after(COMMIT_AFTER);
    assert_eq!(bench.checkpointed(), rows);
    let superseded = (2..=rows as i64).map(|revision| ChangeId { revision: Revision(revision), sub: 0 });
    bench.progress.send(Progress::Removed(superseded.collect())).unwrap();
    bench.mover.receive(bench.now);
    bench
}

#[test]
fn rows_are_forgotten_until_the_log_is_far_ahead() {
    let mut bench = bench_with_removed_rows(3_001);
    for _ in 0..130 {
        bench.put(1 << 20);
    }
    bench.mover.forget(3_000, bench.now).unwrap();
    assert_eq!(
        (bench.mover.gathered.removed(), bench.mover.checkpoint.meta().rows),
        (2_000, 2_001),
        "one piece of them"
    );
    bench.after(COMMIT_AFTER);
    assert_eq!(bench.checkpointed(), 3_131);
    bench.mover.forget(2_000, bench.now).unwrap();
    assert_eq!((bench.mover.gathered.removed(), bench.mover.checkpoint.meta().rows), (0, 131), "and then the others");
}

#[test]
fn what_comes_with_a_defragmentation_while_rows_are_forgotten_is_written_first() {
    let mut bench = bench_with_removed_rows(2_001);
    bench.put(10);
    let gone = ChangeId { revision: Revision(2_002), sub: 0 };
    bench.progress.send(Progress::Removed(vec![gone])).unwrap();
    let (reply, answer) = channel();
    bench.progress.send(Progress::Defragment(reply)).unwrap();
    bench.mover.forget(1_000, bench.now).unwrap();
    assert_eq!((bench.mover.defragment.len(), bench.mover.gathered.removed()), (1, 1_001));
    bench.after(Duration::ZERO);
    assert_eq!((answer.try_recv(), bench.mover.checkpoint.meta().rows), (Ok(Ok(())), 1));
}

#[test]
fn what_comes_with_the_stop_while_rows_are_forgotten_is_written() {
    let mut bench = bench_with_removed_rows(2_001);
    bench.put(10);
    bench.progress.send(Progress::Stop).unwrap();
    bench.mover.forget(2_000, bench.now).unwrap();
    assert!(bench.mover.is_stopping && bench.mover.gathered.removed() == 1_000, "it leaves the rest");
    assert_eq!(bench.after(Duration::ZERO), Next::Over);
    assert_eq!(bench.checkpointed(), 2_002);
}

#[test]
fn a_commit_is_due_sooner_on_a_small_disk() {
    let mut bench = bench();
    let capacity_bytes = Some(bench.disk.used_bytes() + (32 << 20));
    bench.disk.set_faults(Faults { capacity_bytes, ..Faults::default() });
    bench.put(1 << 20);
    bench.after(Duration::ZERO);
    assert_eq!(bench.checkpointed(), 0);
    bench.put(1 << 20);
    bench.after(POLL);
    assert_eq!(bench.checkpointed(), 2);
}

#[test]
fn a_scrub_waits_while_the_file_is_closed() {
    let mut bench = bench();
    bench.mover.scrub_interval = Some(Duration::from_secs(1));
    bench.mover.scrub_at = Some(bench.now);
    bench.mover.checkpoint.close();
    assert_eq!(bench.after(POLL), Next::After(IDLE_POLL), "a closed file is not read");
    bench.put(10);
    bench.after(Duration::ZERO);
    bench.after(COMMIT_AFTER);
    assert_eq!(bench.checkpointed(), 1);
    assert!(bench.mover.checkpoint.is_open());
}

#[test]
fn a_failed_sync_ends_it() {
    let mut bench = bench();
    bench.put(10);
    bench.after(Duration::ZERO);
    bench.disk.set_faults(Faults { fail_call: Some(3), ..Faults::default() });
    assert!(matches!(bench.mover.step(bench.now + COMMIT_AFTER), Err(CheckpointError::Disk(_))));
}

#[test]
fn a_defragmentation_writes_what_came_before_and_answers() {
    let mut bench = bench();
    bench.put(3 << 20);
    bench.after(Duration::ZERO);
    bench.after(COMMIT_AFTER);
    let large = bench.mover.checkpoint.file_bytes().unwrap();
    bench.put(10);
    let gone = crate::types::ChangeId { revision: Revision(2), sub: 0 };
    bench.progress.send(Progress::Removed(vec![gone])).unwrap();
    let (reply, answer) = channel();
    bench.progress.send(Progress::Defragment(reply)).unwrap();
    bench.after(POLL);
    assert_eq!(answer.try_recv(), Ok(Ok(())));
    assert_eq!((bench.checkpointed(), bench.mover.checkpoint.meta().rows), (2, 1));
    let small = bench.mover.checkpoint.file_bytes().unwrap();
    assert!(small < large / 2, "{large} bytes became {small}");
}
