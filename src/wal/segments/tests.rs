use super::*;
use crate::sim::disk::{FakeDisk, Faults};
use crate::wal::disk::Disk;

const BLOCKS: u32 = 2;
const SEGMENT_BYTES: u64 = BLOCKS as u64 * BLOCK_BYTES as u64;

struct Bench {
    disk: FakeDisk,
    keeper: Keeper<FakeDisk>,
    supply: Supply<<FakeDisk as SegmentDisk>::Segment>,
    checkpointed: Arc<AtomicU64>,
    closed: u64,
}

fn bench() -> Bench {
    let (disk, checkpointed) = (FakeDisk::new(1), Arc::new(AtomicU64::new(0)));
    let resume = Resume {
        cluster_id: 1,
        blocks: BLOCKS,
        closed: Vec::new(),
        current: None,
        prepared: Vec::new(),
        next_sequence: 1,
        chain: 0,
        last: Position(0),
    };
    let newest = Newest::open(Arc::new(disk.clone())).unwrap();
    let (keeper, supply) = open(Arc::new(disk.clone()), newest, resume, checkpointed.clone(), Box::new(|| 7)).unwrap();
    Bench { disk, keeper, supply, checkpointed, closed: 0 }
}

impl Bench {
    /// The log fills segments, and then the checkpoint holds all of them.
    fn fill_and_commit(&mut self, segments: u64) {
        for _ in 0..segments {
            while self.keeper.step().unwrap() != Step::Idle {}
            let ready = self.supply.next().expect("one lies ready");
            self.closed += 1;
            self.supply.close(Closed { sequence: ready.header.sequence, last: Position(self.closed) });
        }
        self.keeper.step().unwrap();
        self.checkpointed.store(self.closed, Ordering::Relaxed);
        while self.keeper.step().unwrap() != Step::Idle {}
    }

    /// Takes the next segment and closes it, as if one durable group filled it.
    fn take(&mut self) -> bool {
        let Some(ready) = self.supply.next() else { return false };
        self.closed += 1;
        self.supply.close(Closed { sequence: ready.header.sequence, last: Position(self.closed) });
        self.supply.note_durable(Position(self.closed));
        true
    }

    /// How many further segments a group may fill behind so many others that wait.
    fn promised(&self, before: u64) -> usize {
        let body_bytes = (BLOCKS as usize - 1) * BLOCK_BYTES;
        self.supply.room_bytes(0, before as usize * body_bytes) / body_bytes
    }

    fn leave_free(&self, segments: u64) {
        let capacity_bytes = Some(self.disk.used_bytes() + segments * SEGMENT_BYTES);
        self.disk.set_faults(Faults { capacity_bytes, ..Faults::default() });
    }

    fn spares(&self) -> usize {
        self.disk.names().unwrap().iter().filter(|name| is_spare(name)).count()
    }
}

#[test]
fn as_many_spares_are_kept_as_the_log_filled_between_two_commits() {
    let mut bench = bench();
    bench.fill_and_commit(12);
    let used = bench.disk.used_bytes();
    for _ in 0..5 {
        bench.fill_and_commit(12);
        assert_eq!(bench.disk.used_bytes(), used, "no file is made and none is removed");
    }
    bench.fill_and_commit(3);
    assert!(bench.spares() <= 3, "{} spares for a log that fills 3", bench.spares());
}

#[test]
fn a_log_at_rest_keeps_two_spares_in_the_end() {
    let mut bench = bench();
    bench.fill_and_commit(12);
    let before = bench.spares();
    assert!(before > SPARES_MIN);
    for _ in 0..before as u32 * LOOKS_PER_SPARE {
        assert_eq!(bench.keeper.step().unwrap(), Step::Idle);
    }
    assert_eq!(bench.spares(), SPARES_MIN);
}

#[test]
fn a_disk_with_little_room_gets_the_spares_back_at_once() {
    let mut bench = bench();
    bench.fill_and_commit(12);
    assert!(bench.spares() > SPARES_MIN);
    let room = (ROOM_SEGMENTS - 1) * u64::from(BLOCKS) * BLOCK_BYTES as u64;
    let capacity_bytes = Some(bench.disk.used_bytes() + room - 10 * u64::from(BLOCKS) * BLOCK_BYTES as u64);
    bench.disk.set_faults(Faults { capacity_bytes, ..Faults::default() });
    assert_eq!(bench.keeper.step().unwrap(), Step::Idle);
    assert_eq!(bench.spares(), SPARES_MIN);
}

#[test]
fn on_a_disk_that_is_all_but_full_the_checkpoint_has_the_room_and_the_log_goes_on_behind_it() {
    let mut bench = bench();
    bench.fill_and_commit(4);
    for _ in 0..2 {
        let ready = bench.supply.next().expect("one lies ready");
        bench.closed += 1;
        bench.supply.close(Closed { sequence: ready.header.sequence, last: Position(bench.closed) });
        bench.keeper.step().unwrap();
    }
    assert!(bench.spares() > 0 && bench.supply.next().is_some());
    bench.disk.set_faults(Faults { capacity_bytes: Some(bench.disk.used_bytes()), ..Faults::default() });
    assert_eq!(bench.keeper.step().unwrap(), Step::ShortOfSpace);
    assert!(bench.supply.is_short_of_space(), "what the log holds has no room elsewhere");
    assert_eq!(bench.spares(), 0, "spares are room for the checkpoint");
    bench.checkpointed.store(bench.closed, Ordering::Relaxed);
    while bench.keeper.step().unwrap() != Step::Idle {}
    assert!(!bench.supply.is_short_of_space() && bench.supply.next().is_some());
}

#[test]
fn a_segment_whose_successor_is_not_written_yet_counts_among_those_that_need_room() {
    let mut bench = bench();
    while bench.keeper.step().unwrap() != Step::Idle {}
    let _first = bench.supply.next().expect("one lies ready");
    while bench.keeper.step().unwrap() != Step::Idle {}
    // The first is full; it is named closed once the second has a durable frame.
    let _second = bench.supply.next().expect("one lies ready");
    let segment_bytes = u64::from(BLOCKS) * BLOCK_BYTES as u64;
    for (free_segments, expected) in [(4, Step::ShortOfSpace), (5, Step::Prepared)] {
        let capacity_bytes = Some(bench.disk.used_bytes() + free_segments * segment_bytes);
        bench.disk.set_faults(Faults { capacity_bytes, ..Faults::default() });
        assert_eq!(bench.keeper.step().unwrap(), expected, "{free_segments} segments are free");
    }
}

#[test]
fn what_the_log_holds_needs_room_where_the_checkpoint_is() {
    let (data, log) = (FakeDisk::new(1), FakeDisk::new(2));
    let newest = Newest::open(Arc::new(data.clone())).unwrap();
    let resume = Resume {
        cluster_id: 1,
        blocks: BLOCKS,
        closed: vec![Closed { sequence: 1, last: Position(1) }],
        current: None,
        prepared: Vec::new(),
        next_sequence: 2,
        chain: 0,
        last: Position(1),
    };
    let (mut keeper, _supply) =
        open(Arc::new(log.clone()), newest, resume, Arc::new(AtomicU64::new(0)), Box::new(|| 7)).unwrap();
    let segment_bytes = u64::from(BLOCKS) * BLOCK_BYTES as u64;
    let limit = |disk: &FakeDisk, free_bytes| {
        disk.set_faults(Faults { capacity_bytes: Some(disk.used_bytes() + free_bytes), ..Faults::default() });
    };
    limit(&log, segment_bytes);
    limit(&data, 2 * segment_bytes - 1);
    assert_eq!(keeper.step().unwrap(), Step::Awaiting, "the checkpoint may have no room for it");
    limit(&data, 2 * segment_bytes);
    limit(&log, segment_bytes - 1);
    assert_eq!(keeper.step().unwrap(), Step::Awaiting, "the log has none for another before the first is given up");
    limit(&log, segment_bytes);
    assert_eq!(keeper.step().unwrap(), Step::Prepared);
}

#[test]
fn as_many_segments_as_are_promised_can_be_made_while_the_checkpoint_takes_nothing() {
    for free in 0..60 {
        let mut bench = bench();
        bench.leave_free(free);
        bench.keeper.step().unwrap();
        let (promised, mut made) = (bench.promised(0), 0);
        assert!(promised as u64 >= free / 4, "{promised} of {free}");
        loop {
            while bench.keeper.step().unwrap() == Step::Prepared {}
            let Some(ready) = bench.supply.next() else { break };
            made += 1;
            bench.supply.close(Closed { sequence: ready.header.sequence, last: Position(1) });
        }
        assert!(made >= promised, "{made} of {promised} that were promised, {free} were free");
    }
}

#[test]
fn the_room_is_looked_at_again_once_the_checkpoint_has_made_some() {
    let mut bench = bench();
    bench.leave_free(40);
    bench.keeper.step().unwrap();
    let before = bench.promised(0);
    while bench.keeper.step().unwrap() != Step::ShortOfSpace {
        let Some(ready) = bench.supply.next() else { continue };
        bench.closed += 1;
        bench.supply.close(Closed { sequence: ready.header.sequence, last: Position(bench.closed) });
    }
    assert_eq!(bench.promised(0), 0);
    bench.checkpointed.store(bench.closed, Ordering::Relaxed);
    while bench.keeper.step().unwrap() != Step::Idle {}
    assert!(bench.promised(0) + 1 >= before, "{} of {before}", bench.promised(0));
}

#[test]
fn a_log_that_is_ahead_of_its_checkpoint_waits_for_it_and_says_so_and_the_disk_is_not_full() {
    let mut bench = bench();
    let is_awaiting = Arc::new(AtomicBool::new(false));
    bench.keeper = bench.keeper.telling(is_awaiting.clone(), Box::new(|| {}));
    bench.leave_free(40);
    let mut held = 0;
    while bench.keeper.step().unwrap() != Step::Awaiting {
        held += u64::from(bench.take());
    }
    assert!(held >= 10 && !bench.supply.is_short_of_space() && bench.supply.next().is_none(), "{held}");
    assert!(is_awaiting.load(Ordering::Relaxed) && bench.promised(0) > 0);
    assert_eq!(bench.keeper.step().unwrap(), Step::Awaiting, "nothing has come of it yet");
    // The rows of five take twice their room.
    bench.checkpointed.store(5, Ordering::Relaxed);
    bench.leave_free(bench.disk.free_bytes().unwrap() / SEGMENT_BYTES - CHECKPOINT_SHARE * 5);
    assert_eq!(bench.keeper.step().unwrap(), Step::Prepared);
    assert!(!is_awaiting.load(Ordering::Relaxed) && bench.supply.next().is_some());
}

#[test]
fn what_is_promised_behind_groups_that_the_checkpoint_can_take_is_kept_however_much_room_their_rows_need() {
    for (free, held, waiting) in (0..60 * 8 * 4).map(|case| (case / 32, case / 4 % 8, case % 4)) {
        let mut bench = bench();
        bench.leave_free(free);
        let mut before = 0;
        while before < held && matches!(bench.keeper.step().unwrap(), Step::Prepared | Step::Idle) {
            before += u64::from(bench.take());
        }
        while bench.keeper.step().unwrap() == Step::Prepared {}
        let (promised, mut made, mut ahead) = (bench.promised(waiting), 0, 0);
        if promised == 0 {
            continue;
        }
        loop {
            match bench.keeper.step().unwrap() {
                Step::Awaiting => {
                    let taken = bench.closed - bench.checkpointed.swap(bench.closed, Ordering::Relaxed);
                    assert!(taken > 0, "it waits for what does not come");
                    let free = bench.disk.free_bytes().unwrap() / SEGMENT_BYTES;
                    bench.leave_free(free.saturating_sub(CHECKPOINT_SHARE * taken));
                }
                Step::ShortOfSpace if bench.supply.ready.slots() == 0 => break,
                _ => {}
            }
            if ahead < waiting {
                ahead += u64::from(bench.take());
            } else if let Some(ready) = bench.supply.next() {
                // Of one group, which is not durable before it is over.
                made += 1;
                bench.supply.close(Closed { sequence: ready.header.sequence, last: Position(bench.closed + 1) });
            }
        }
        assert!(made >= promised, "{made} of {promised}: {free} free, {held} held and {waiting} waiting");
    }
}

#[test]
fn a_small_disk_has_small_segments() {
    let blocks = |free_mib: u64| segment_blocks(free_mib << 20);
    assert_eq!([blocks(10), blocks(96), blocks(512), blocks(1 << 20)], [256, 768, 4_096, 4_096]);
    assert_eq!(first_bytes(96 << 20), 12 << 20);
}

#[test]
fn a_failed_call_ends_it_and_if_the_disk_has_turned_read_only_only_its_work() {
    for turns_read_only in [false, true] {
        for call in 1..9 {
            let mut bench = bench();
            bench.disk.set_faults(Faults { fail_call: Some(call), turns_read_only, ..Faults::default() });
            match bench.keeper.step() {
                Ok(step) => assert_eq!((step, turns_read_only), (Step::ShortOfSpace, true), "call {call}"),
                Err(_) => assert!(!turns_read_only, "call {call}"),
            }
            assert_eq!(bench.supply.is_short_of_space(), turns_read_only);
            let spares = bench.spares();
            assert!(spares <= 1, "call {call} leaves {spares} spares of one segment");
            bench.disk.set_faults(Faults::default());
            if turns_read_only {
                let step = bench.keeper.step().unwrap();
                assert_eq!(step, Step::ShortOfSpace, "nobody knows what call {call} left, and a start will look");
            }
        }
    }
}

#[test]
fn a_sync_that_fails_for_want_of_space_is_a_failed_sync() {
    let mut failed_syncs = 0;
    for call in 1.. {
        let mut bench = bench();
        bench.disk.set_faults(Faults { fail_call: Some(call), fails_for_space: true, ..Faults::default() });
        match bench.keeper.step() {
            Ok(Step::ShortOfSpace) => {}
            Ok(_) => break,
            Err(error) => {
                assert!(error.to_string().starts_with("a sync failed: "), "call {call}: {error}");
                failed_syncs += 1;
            }
        }
    }
    assert_eq!(failed_syncs, 3, "of the zeros, of the header, of the name");
}

#[test]
fn a_segment_goes_once_all_of_it_is_in_the_checkpoint_and_none_goes_before_an_older_one() {
    let closed = |lasts: &[u64]| -> VecDeque<Closed> {
        let lasts = lasts.iter().enumerate();
        lasts.map(|(sequence, &last)| Closed { sequence: sequence as u64, last: Position(last) }).collect()
    };
    for (lasts, checkpointed, gone) in [
        (&[][..], 9, 0),
        (&[4, 9, 12], 3, 0),
        (&[4, 9, 12], 4, 1),
        (&[4, 9, 12], 11, 2),
        (&[4, 9, 12], 12, 3),
        // One group fills several segments.
        (&[9, 9, 12], 9, 2),
    ] {
        assert_eq!(given_up(&closed(lasts), Position(checkpointed)), gone, "{lasts:?} at {checkpointed}");
    }
}

#[test]
fn the_name_of_a_segment_says_its_sequence_and_no_other_name_does() {
    assert_eq!(segment_name(0x1f), "000000000000001f.wal");
    assert_eq!(sequence_of("000000000000001f.wal"), Some(0x1f));
    for other in ["000000000000001F.wal", "1f.wal", "+00000000000001f.wal", "000000000000001f.spare"] {
        assert_eq!(sequence_of(other), None, "{other}");
    }
    assert!(is_spare(&spare_name(7)) && !is_spare("lost+found"));
}
