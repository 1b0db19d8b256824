//! Whole, cut and damaged directories, through what an operator calls.

use super::*;
use crate::random::Random;
use crate::sim::Folder;
use crate::store::Store;
use crate::store::command::{DeleteRange, Op, Put, PutLease, PutValue, Txn, Write as Command};
use crate::store::restore::Restore;
use crate::types::{Key, KeyRange, KeyValue, Lease, LeaseId, Position, StoredLease, Time};
use crate::wal::checkpoint::Gathered;
use crate::wal::checkpoint_backend::CheckpointError;
use crate::wal::claim::claim;
use crate::wal::disk::DiskFile;
use crate::wal::record::{self, SegmentHeader};
use crate::wal::salvage::salvage;
use crate::wal::segments::segment_name;

const IDENTITY: Identity = Identity { cluster_id: 5, member_id: 6 };

/// What becomes of leases, by group. The checkpoint ends at group 45.
const LEASES: [(u64, Entry); 9] = [
    (10, lease(7, true)),
    (20, lease(8, true)),
    (25, remaining(7, Some(50))),
    (26, remaining(8, Some(40))),
    (40, lease(7, false)),
    (48, lease(-9, true)),
    (49, lease(7, true)),
    (50, remaining(-9, Some(30))),
    (52, remaining(8, None)),
];

const fn remaining(id: i64, seconds: Option<i64>) -> Entry {
    Entry::Remaining { lease: LeaseId(id), seconds }
}

const fn lease(id: i64, granted: bool) -> Entry {
    Entry::Lease { lease: Lease { id: LeaseId(id), ttl: 60 + id }, granted }
}

/// Id, time to live, and what was left by what was written down.
fn leases(data: &Path) -> Vec<(i64, i64, Option<i64>)> {
    let claimed = claim(data, None, || IDENTITY).unwrap();
    let leases = Checkpoint::open(claimed.files.data.clone()).unwrap().leases().unwrap();
    leases.into_iter().map(|StoredLease { lease, remaining }| (lease.id.0, lease.ttl, remaining)).collect()
}

/// A store in a directory: some of it in the checkpoint, all of it in a log of one segment.
fn filled(data: &Path, seed: u64) -> Store {
    let claimed = claim(data, None, || IDENTITY).unwrap();
    let mut checkpoint = Checkpoint::create(claimed.files.data.clone(), Meta::new(5, 6)).unwrap();
    Identity::settle(&*claimed.files.data).unwrap();
    let mut random = Random::new(seed);
    let (mut store, mut gathered) = (Store::new(), Gathered::default());
    let header = SegmentHeader { cluster_id: 5, sequence: 1, salt: seed, blocks: 256 };
    let mut segment = header.encode();
    let mut chain = 0;
    for position in 1..=60 {
        let position = Position(position);
        let entry = if position.0 == 30 {
            let revision = Revision(store.revision().0 - 5);
            store.replay_compaction(revision).unwrap();
            Entry::Compaction(revision)
        } else {
            Entry::Batch(write(&mut store, &mut random))
        };
        let mut body = Vec::new();
        let mut entries = vec![entry];
        if let Some((_, entry)) = LEASES.iter().find(|(at, _)| *at == position.0) {
            entries.push(entry.clone());
        }
        let entries_len = record::entries_len(&entries);
        record::put_group(&mut body, Position(position.0 - 1), position, &entries, entries_len);
        chain = append(&mut segment, &header, position, chain, &body);
        gathered.add(position, entries);
        if position.0 == 45 {
            store.compact_step(1_000, None);
            gathered.remove(store.take_removed());
            checkpoint.commit(&mut gathered, true).unwrap();
        }
    }
    segment.resize(header.bytes() as usize, 0);
    let file = claimed.files.wal.create(&segment_name(1)).unwrap();
    file.write_at(0, &segment).unwrap();
    store
}

fn append(segment: &mut Vec<u8>, header: &SegmentHeader, position: Position, chain: u32, body: &[u8]) -> u32 {
    let frame_header = record::FrameHeader {
        after: position.0.checked_sub(1).map(Position).unwrap(),
        last: position,
        previous_crc: chain,
        begins_group: true,
        ends_group: true,
    };
    let offset = segment.len() as u64;
    let mut frame = vec![0; record::FRAME_HEADER_BYTES];
    frame.extend_from_slice(body);
    frame.resize(record::frame_bytes(body.len()), 0);
    let crc = record::seal(&mut frame, body.len(), &frame_header, header, offset);
    segment.extend_from_slice(&frame);
    crc
}

fn write(store: &mut Store, random: &mut Random) -> std::sync::Arc<crate::types::Batch> {
    loop {
        let ops = (0..1 + random.below(3)).map(|_| {
            let key = Key::from(format!("{:02}", random.below(12)));
            if random.one_in(4) {
                return Op::DeleteRange(DeleteRange { range: KeyRange::One(key), prev_kv: false });
            }
            let value = PutValue::Set(vec![b'v'; random.below(400) as usize].into());
            Op::Put(Put { key, value, lease: PutLease::Set(LeaseId::NONE), prev_kv: false })
        });
        let write = Command::Txn(Txn { compares: Vec::new(), success: ops.collect(), failure: Vec::new() });
        if let Some(Entry::Batch(batch)) = store.apply(&write, Time(7)).entry {
            return batch;
        }
    }
}

fn checked(data: &Path) -> (bool, String) {
    let mut out = Vec::new();
    let is_whole = check(data, None, &mut out).unwrap();
    (is_whole, String::from_utf8(out).unwrap())
}

fn salvaged(data: &Path, new: &Path) -> (bool, String) {
    let mut out = Vec::new();
    let is_whole = salvage(data, None, new, || IDENTITY, &mut out).unwrap();
    (is_whole, String::from_utf8(out).unwrap())
}

/// The store of a directory without a log.
fn restored(data: &Path) -> Store {
    let checkpoint = Checkpoint::open(Arc::new(FileDisk::open(data).unwrap())).unwrap();
    let meta = checkpoint.meta();
    let mut restore = Restore::new(meta.revision, meta.compacted, 0);
    checkpoint.load(|row| restore.row(row).map_err(|damage| CheckpointError::Damaged(damage.to_string()))).unwrap();
    restore.finish().unwrap().0
}

fn live(store: &Store) -> Vec<KeyValue> {
    store.live().cloned().collect()
}

fn flip(path: &Path, offset: u64) {
    let file = File::options().read(true).write(true).open(path).unwrap();
    let mut byte = [0];
    DiskFile::read_at(&file, offset, &mut byte).unwrap();
    DiskFile::write_at(&file, offset, &[byte[0] ^ 4]).unwrap();
}

fn find(path: &Path, needle: &[u8]) -> Vec<u64> {
    let bytes = std::fs::read(path).unwrap();
    let found = bytes.windows(needle.len()).enumerate().filter(|(_, window)| *window == needle);
    found.map(|(at, _)| at as u64).collect()
}

#[test]
fn a_whole_directory_is_said_to_be_whole_and_is_not_touched() {
    let (data, new) = (Folder::new("check-whole"), Folder::new("check-whole-new"));
    let store = filled(&data.0, 1);
    let before = std::fs::read(data.0.join(checkpoint::FILE_NAME)).unwrap();
    let (is_whole, text) = checked(&data.0);
    assert!(is_whole && text.contains(" 1 leases,") && text.ends_with("everything is whole\n"), "{text}");
    let (is_whole, text) = salvaged(&data.0, &new.0);
    assert!(is_whole, "{text}");
    assert_eq!(std::fs::read(data.0.join(checkpoint::FILE_NAME)).unwrap(), before);
    let copy = restored(&new.0);
    assert_eq!((copy.revision(), copy.compacted()), (store.revision(), store.compacted()));
    assert_eq!(live(&copy), live(&store));
    let history = |store: &Store| store.history(store.compacted().unwrap(), store.revision(), 999, 1 << 30).unwrap();
    assert_eq!(history(&copy), history(&store));
    let expected = [(7, 67, None), (8, 68, None), (-9, 51, Some(30))];
    assert_eq!(leases(&new.0), expected, "in the order of their bits");
    assert_eq!(leases(&data.0), [(8, 68, Some(40))], "those of the checkpoint");
    assert!(checked(&new.0).0, "{}", checked(&new.0).1);
}

#[test]
fn damage_in_the_log_leaves_out_what_lies_behind_it() {
    let (data, new) = (Folder::new("check-log"), Folder::new("check-log-new"));
    let store = filled(&data.0, 2);
    let segment = data.0.join(WAL_NAME).join(segment_name(1));
    // The frame of group 51: one block each, behind that of the header.
    flip(&segment, 51 * 4_096 + 70);
    let (is_whole, text) = checked(&data.0);
    assert!(!is_whole && text.contains("0000000000000001.wal is damaged at offset 208896"), "{text}");
    // The hole itself, the group behind it, and no word about those that follow that one.
    assert!(text.contains("damages found: 2;"), "{text}");
    let (is_whole, text) = salvaged(&data.0, &new.0);
    assert!(!is_whole && text.contains("9 groups of the log behind group 50 are left out"), "{text}");
    // Group 30 is a compaction.
    let copy = restored(&new.0);
    assert_eq!(copy.revision(), Revision(50), "{text}");
    assert_eq!(copy.compacted(), store.compacted());
    assert!(checked(&new.0).0);
}

#[test]
fn a_directory_of_another_version_is_not_called_damaged() {
    let (data, new) = (Folder::new("check-version"), Folder::new("check-version-new"));
    filled(&data.0, 6);
    let path = data.0.join(identity::FILE_NAME);
    let text = std::fs::read_to_string(&path).unwrap();
    let lines = text.split_once("checksum").unwrap().0.replace("format 2", "format 1");
    std::fs::write(&path, format!("{lines}checksum {:08x}\n", crc32c::crc32c(lines.as_bytes()))).unwrap();
    let mut out = Vec::new();
    let refused = [
        check(&data.0, None, &mut out).unwrap_err().0,
        salvage(&data.0, None, &new.0, || IDENTITY, &mut out).unwrap_err().0,
        claim(&data.0, None, || IDENTITY).unwrap_err().0,
    ];
    for line in refused {
        assert!(line.ends_with("has format 1 and this tarsier reads 2: start the version that wrote it"), "{line}");
    }
    assert!(out.is_empty() && !new.0.exists(), "{}", String::from_utf8_lossy(&out));
}

#[test]
fn a_damaged_row_is_named_and_no_history_with_a_hole_is_told() {
    let (data, new) = (Folder::new("check-row"), Folder::new("check-row-new"));
    filled(&data.0, 3);
    let path = data.0.join(checkpoint::FILE_NAME);
    let flipped = find(&path, &[b'v'; 64]);
    flip(&path, flipped[flipped.len() / 2]);
    let (is_whole, text) = checked(&data.0);
    assert!(!is_whole && text.contains("DAMAGED"), "{text}");
    let (is_whole, text) = salvaged(&data.0, &new.0);
    assert!(!is_whole, "{text}");
    let (is_whole, checked) = checked(&new.0);
    assert!(is_whole, "{checked}\n{text}");
    restored(&new.0);
}

#[test]
fn wherever_bits_rot_what_is_salvaged_is_whole() {
    let data = Folder::new("check-anywhere");
    filled(&data.0, 4);
    let path = data.0.join(checkpoint::FILE_NAME);
    let whole = std::fs::read(&path).unwrap();
    let mut random = Random::new(4);
    for round in 0..60 {
        let offset = random.below(whole.len() as u64);
        flip(&path, offset);
        let new = Folder::new(&format!("check-anywhere-{round}"));
        salvaged(&data.0, &new.0);
        restored(&new.0);
        assert!(checked(&new.0).0);
        std::fs::write(&path, &whole).unwrap();
    }
}

#[test]
fn behind_a_damaged_header_everything_is_salvaged() {
    let (data, new) = (Folder::new("check-header"), Folder::new("check-header-new"));
    let store = filled(&data.0, 8);
    let path = data.0.join(checkpoint::FILE_NAME);
    let mut bytes = std::fs::read(&path).unwrap();
    bytes[..4_096].fill(0xff);
    std::fs::write(&path, bytes).unwrap();
    assert!(!checked(&data.0).0);
    let (is_whole, text) = salvaged(&data.0, &new.0);
    assert!(!is_whole && text.contains("checkpoint.redb is damaged") && !text.contains("left out"), "{text}");
    assert!(text.contains("the newest that is found is taken, up to group 45"), "{text}");
    let copy = restored(&new.0);
    assert_eq!((copy.revision(), copy.compacted()), (store.revision(), store.compacted()));
    assert_eq!(live(&copy), live(&store));
    assert_eq!(leases(&new.0), [(7, 67, None), (8, 68, None), (-9, 51, Some(30))]);
}

#[test]
fn a_directory_without_a_checkpoint_is_salvaged_from_a_log_that_begins_at_the_beginning() {
    let (data, new) = (Folder::new("check-only-log"), Folder::new("check-only-log-new"));
    let store = filled(&data.0, 5);
    std::fs::remove_file(data.0.join(checkpoint::FILE_NAME)).unwrap();
    assert!(!checked(&data.0).0);
    let (is_whole, text) = salvaged(&data.0, &new.0);
    assert!(!is_whole, "{text}");
    assert_eq!(live(&restored(&new.0)), live(&store));
}

#[test]
fn groups_that_are_missing_behind_the_checkpoint_are_missed_where_no_revision_tells() {
    let (data, new) = (Folder::new("check-gap"), Folder::new("check-gap-new"));
    filled(&data.0, 1);
    let header = SegmentHeader { cluster_id: 5, sequence: 2, salt: 1, blocks: 256 };
    let write_from = |first: u64| {
        let mut segment = header.encode();
        let mut chain = 0xbad;
        for position in (first..first + 3).map(Position) {
            let entries = [lease(position.0 as i64, true)];
            let mut body = Vec::new();
            record::put_group(&mut body, Position(position.0 - 1), position, &entries, record::entries_len(&entries));
            chain = append(&mut segment, &header, position, chain, &body);
        }
        segment.resize(256 * record::BLOCK_BYTES, 0);
        std::fs::write(data.0.join(WAL_NAME).join(segment_name(2)), segment).unwrap();
    };
    std::fs::remove_file(data.0.join(WAL_NAME).join(segment_name(1))).unwrap();
    write_from(46);
    assert!(checked(&data.0).0, "{}", checked(&data.0).1);
    write_from(47);
    let (is_whole, text) = checked(&data.0);
    assert!(!is_whole && text.contains("group 47: it follows group 45"), "{text}");
    let (is_whole, text) = salvaged(&data.0, &new.0);
    assert!(!is_whole && text.contains("3 groups of the log behind group 45 are left out"), "{text}");
}

#[test]
fn what_is_etcds_own_is_neither_checked_nor_salvaged() {
    let (data, new) = (Folder::new("check-etcd"), Folder::new("check-etcd-new"));
    std::fs::create_dir_all(data.0.join("member/snap")).unwrap();
    let mut out = Vec::new();
    let checked = check(&data.0, None, &mut out).unwrap_err();
    let salvaged = salvage(&data.0, None, &new.0, || IDENTITY, &mut out).unwrap_err();
    for refused in [checked, salvaged] {
        assert!(refused.0.contains("is a data directory of etcd itself"), "{refused}");
    }
    assert!(out.is_empty() && !new.0.exists());
}

#[test]
fn without_a_log_the_checkpoint_is_salvaged_once_somebody_says_so() {
    let (data, new) = (Folder::new("check-no-log"), Folder::new("check-no-log-new"));
    filled(&data.0, 10);
    let log = data.0.join(WAL_NAME);
    std::fs::remove_dir_all(&log).unwrap();
    let refused = salvage(&data.0, None, &new.0, || IDENTITY, &mut Vec::new()).unwrap_err();
    assert!(refused.0.contains("is missing: put it back") && !new.0.exists(), "{refused}");
    std::fs::create_dir(&log).unwrap();
    let (is_whole, text) = checked(&data.0);
    assert!(!is_whole && text.contains("the log ends at group 0 and the checkpoint at group 45"), "{text}");
    let (_, text) = salvaged(&data.0, &new.0);
    let checkpointed = Checkpoint::open(Arc::new(FileDisk::open(&data.0).unwrap())).unwrap().meta().revision;
    assert_eq!(restored(&new.0).revision(), checkpointed, "{text}");
}

#[test]
fn a_directory_in_use_is_left_alone() {
    let data = Folder::new("check-used");
    let claimed = claim(&data.0, None, || IDENTITY).unwrap();
    let refused = check(&data.0, None, &mut Vec::new()).unwrap_err();
    assert!(refused.0.contains("stop it first"), "{refused}");
    drop(claimed);
}

#[test]
fn a_log_of_another_cluster_is_damage_and_nothing_of_it_is_taken() {
    let (data, new) = (Folder::new("check-other-log"), Folder::new("check-other-log-new"));
    filled(&data.0, 9);
    let segment = data.0.join(WAL_NAME).join(segment_name(1));
    let mut bytes = std::fs::read(&segment).unwrap();
    let header = SegmentHeader { cluster_id: 0xbad, sequence: 1, salt: 9, blocks: 256 }.encode();
    bytes[..header.len()].copy_from_slice(&header);
    std::fs::write(&segment, bytes).unwrap();
    let (is_whole, text) = checked(&data.0);
    assert!(!is_whole && text.contains("cluster bad"), "{text}");
    let checkpointed = Checkpoint::open(Arc::new(FileDisk::open(&data.0).unwrap())).unwrap().meta().revision;
    let (is_whole, text) = salvaged(&data.0, &new.0);
    assert!(!is_whole && text.contains("cluster bad"), "{text}");
    assert_eq!(restored(&new.0).revision(), checkpointed);
    // Without the file of the ids the checkpoint says whose log it is, and not the log.
    std::fs::remove_file(data.0.join(identity::FILE_NAME)).unwrap();
    std::fs::remove_dir_all(&new.0).unwrap();
    let (is_whole, text) = salvaged(&data.0, &new.0);
    assert!(!is_whole && text.contains("cluster bad"), "{text}");
    assert_eq!(restored(&new.0).revision(), checkpointed);
}

#[test]
fn nothing_is_salvaged_into_what_is_read() {
    let (data, link) = (Folder::new("check-inside"), Folder::new("check-inside-link"));
    filled(&data.0, 11);
    std::os::unix::fs::symlink(&data.0, &link.0).unwrap();
    // The last one would lie outside, but be made by way of the directory.
    for new in ["new", "wal/new", "made/../../new"] {
        for new in [data.0.join(new), link.0.join(new)] {
            let refused = salvage(&data.0, None, &new, || IDENTITY, &mut Vec::new()).unwrap_err();
            assert!(refused.0.contains("which must not change"), "{}: {refused}", new.display());
            assert!(!new.exists());
        }
    }
    std::fs::remove_file(&link.0).unwrap();
}

#[test]
fn a_directory_that_may_not_be_written_is_checked_and_salvaged() {
    let (data, new) = (Folder::new("check-read-only"), Folder::new("check-read-only-new"));
    filled(&data.0, 12);
    let disk = open(&data.0, None).unwrap().data;
    let file = disk.open(checkpoint::FILE_NAME).unwrap();
    assert!(file.write_at(0, b"x").is_err() && disk.create("x").is_err());
    assert!(checked(&data.0).0 && salvaged(&data.0, &new.0).0);
}

#[test]
fn the_first_segment_of_a_log_from_which_the_checkpoint_has_taken_nothing_is_missed() {
    let (data, new) = (Folder::new("check-no-first"), Folder::new("check-no-first-new"));
    let claimed = claim(&data.0, None, || IDENTITY).unwrap();
    drop(Checkpoint::create(claimed.files.data.clone(), Meta::new(5, 6)).unwrap());
    Identity::settle(&*claimed.files.data).unwrap();
    drop(claimed);
    let header = SegmentHeader { cluster_id: 5, sequence: 2, salt: 1, blocks: 256 };
    let mut segment = header.encode().to_vec();
    segment.resize(256 * record::BLOCK_BYTES, 0);
    std::fs::write(data.0.join(WAL_NAME).join(segment_name(2)), segment).unwrap();
    let missed = format!("{} is missing", segment_name(1));
    let (is_whole, text) = checked(&data.0);
    assert!(!is_whole && text.contains(&missed), "{text}");
    let mut out = Vec::new();
    let refused = salvage(&data.0, None, &new.0, || IDENTITY, &mut out).unwrap_err();
    assert!(refused.0.contains("nothing that is whole is left"), "{}", refused.0);
    assert!(String::from_utf8(out).unwrap().contains(&missed));
    // With the first group it is whole: what stood before was the beginning of one that was told to nobody.
    let mut segment = header.encode();
    let entries = [Entry::Batch(write(&mut Store::new(), &mut Random::new(1)))];
    let mut body = Vec::new();
    record::put_group(&mut body, Position(0), Position(1), &entries, record::entries_len(&entries));
    append(&mut segment, &header, Position(1), 0xbad, &body);
    segment.resize(256 * record::BLOCK_BYTES, 0);
    std::fs::write(data.0.join(WAL_NAME).join(segment_name(2)), segment).unwrap();
    assert!(checked(&data.0).0, "{}", checked(&data.0).1);
}
