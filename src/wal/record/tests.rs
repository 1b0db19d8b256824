use super::*;
use crate::random::Random;

const SEGMENT: SegmentHeader = SegmentHeader { cluster_id: 7, sequence: 3, salt: 0x5a17_5a17_5a17_5a17, blocks: 16 };

fn entry(random: &mut Random) -> Entry {
    match random.below(10) {
        0 => Entry::Compaction(Revision(random.below(1_000) as i64)),
        1 => Entry::Alarm {
            alarm: Alarm { member: random.next(), kind: *random.pick(&[AlarmKind::NoSpace, AlarmKind::Corrupt]) },
            active: random.chance(50),
        },
        2 => Entry::Start { term: random.next() },
        3 => Entry::Stop,
        4 => Entry::Lease {
            lease: Lease { id: LeaseId(random.next() as i64), ttl: random.next() as i64 },
            granted: random.chance(50),
        },
        5 => Entry::Remaining {
            lease: LeaseId(random.next() as i64),
            seconds: Some(random.below(3) as i64).filter(|seconds| *seconds > 0),
        },
        _ => {
            let revision = Revision(random.below(1 << 40) as i64);
            let changes = (0..random.below(4)).map(|sub| change(random, revision, sub as u32)).collect();
            Entry::Batch(Arc::new(Batch { revision, time: Time(random.next()), changes }))
        }
    }
}

fn change(random: &mut Random, revision: Revision, sub: u32) -> Change {
    let mut text = |lengths: &[usize]| -> Vec<u8> { (0..*random.pick(lengths)).map(|_| random.next() as u8).collect() };
    let (key, value) = (text(&[1, 16, 127, 128]), text(&[0, 1, 300, 5_000]));
    if random.one_in(3) {
        return Change::Delete { key: key.into(), previous: None };
    }
    let lease = LeaseId(random.next() as i64);
    let (create, version) = (Revision(random.below(99) as i64), random.below(99) as i64);
    let kv = KeyValue::new(&key, &value, create, revision, sub, version, lease);
    Change::Put { kv, previous: None }
}

fn some_groups(random: &mut Random) -> (Position, Vec<(Position, Vec<Entry>)>) {
    let after = Position(random.below(1 << 50));
    let mut last = after;
    let groups = (0..1 + random.below(4)).map(|_| {
        last = Position(last.0 + 1 + random.below(3));
        (last, (0..random.below(4)).map(|_| entry(random)).collect())
    });
    let groups = groups.collect();
    (after, groups)
}

fn body(after: Position, groups: &[(Position, Vec<Entry>)]) -> Vec<u8> {
    let (mut body, mut last) = (Vec::new(), after);
    for (position, entries) in groups {
        let (start, bytes) = (body.len(), entries_len(entries));
        put_group(&mut body, last, *position, entries, bytes);
        assert_eq!(body.len() - start, group_len(last, *position, bytes));
        last = *position;
    }
    body
}

fn frame(body: &[u8], header: &FrameHeader, offset: u64) -> Vec<u8> {
    let mut frame = vec![0; FRAME_HEADER_BYTES];
    frame.extend_from_slice(body);
    frame.resize(frame_bytes(body.len()), 0);
    seal(&mut frame, body.len(), header, &SEGMENT, offset);
    frame
}

const HEADER: FrameHeader =
    FrameHeader { after: Position(4), last: Position(5), previous_crc: 77, begins_group: true, ends_group: false };

#[test]
fn groups_come_back_as_they_went_in() {
    for seed in 0..2_000 {
        let random = &mut Random::new(seed);
        let (after, groups) = some_groups(random);
        assert_eq!(super::groups(&body(after, &groups), after), Ok(groups), "seed {seed}");
    }
}

#[test]
fn a_body_that_is_cut_or_random_is_refused_or_read_and_never_more() {
    for seed in 0..300 {
        let random = &mut Random::new(seed);
        let (after, groups) = some_groups(random);
        let mut bytes = body(after, &groups);
        for _ in 0..20 {
            let end = random.below(bytes.len() as u64) as usize;
            // A cut between two groups leaves a whole one before it.
            if let Ok(read) = super::groups(&bytes[..end], after) {
                assert!(groups.starts_with(&read) && read.len() < groups.len(), "seed {seed}");
            }
        }
        for _ in 0..20 {
            let at = random.below(bytes.len() as u64) as usize;
            bytes[at] = random.next() as u8;
            let _ = super::groups(&bytes, after);
        }
        let noise: Vec<u8> = (0..random.below(200)).map(|_| random.next() as u8).collect();
        let _ = super::groups(&noise, after);
        let _ = look(&noise, &SEGMENT, 4_096);
    }
}

#[test]
fn a_length_beyond_what_is_there_reserves_nothing() {
    let mut bytes = Vec::new();
    bytes.put_varint(1);
    let mut group = vec![1];
    group.put_varint(5);
    group.put_varint(6);
    group.put_varint(u64::from(u32::MAX));
    bytes.put_varint(group.len() as u64);
    bytes.put(&group);
    assert_eq!(groups(&bytes, Position(0)), Err(Malformed));
    assert_eq!(groups(&[1, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 1], Position(0)), Err(Malformed));
    assert_eq!(groups(&[0, 0], Position(0)), Err(Malformed), "positions rise");
    assert_eq!(groups(&[1, 0], Position(u64::MAX)), Err(Malformed), "positions do not wrap");
}

#[test]
fn a_frame_is_found_at_its_place_in_its_segment_and_nowhere_else() {
    let bytes = frame(b"body", &HEADER, 8_192);
    let Look::Frame(found) = look(&bytes, &SEGMENT, 8_192) else { panic!("not found") };
    assert_eq!((found.header, found.body, found.bytes), (HEADER, &b"body"[..], 4_096));
    assert_eq!(look(&bytes, &SEGMENT, 4_096), Look::NoFrame);
    assert_eq!(look(&bytes, &SegmentHeader { sequence: 4, ..SEGMENT }, 8_192), Look::NoFrame);
    assert_eq!(look(&bytes, &SegmentHeader { salt: 1, ..SEGMENT }, 8_192), Look::NoFrame);
    assert_eq!(look(&bytes[..4_095], &SEGMENT, 8_192), Look::BadBody);
}

#[test]
fn every_flipped_bit_of_a_frame_is_found() {
    for length in [4, 4_000, 4_036, 4_037, 9_000] {
        let mut bytes = frame(&vec![0xa5; length], &HEADER, 8_192);
        for bit in 0..filled_bytes(length) * 8 {
            bytes[bit / 8] ^= 1 << (bit % 8);
            assert!(!matches!(look(&bytes, &SEGMENT, 8_192), Look::Frame(_)), "bit {bit}");
            bytes[bit / 8] ^= 1 << (bit % 8);
        }
    }
}

#[test]
fn what_lies_behind_a_body_is_nobodys() {
    for length in [4, 4_000, 4_036, 4_037, 9_000] {
        let mut bytes = frame(&vec![0xa5; length], &HEADER, 8_192);
        bytes[filled_bytes(length)..].fill(0x5a);
        assert!(matches!(look(&bytes, &SEGMENT, 8_192), Look::Frame(found) if found.body.len() == length), "{length}");
    }
}

#[test]
fn every_flipped_bit_of_a_segment_header_is_found() {
    let mut block = SEGMENT.encode();
    assert_eq!(SegmentHeader::decode(&block), Ok(SEGMENT));
    for bit in 0..block.len() * 8 {
        block[bit / 8] ^= 1 << (bit % 8);
        assert_eq!(SegmentHeader::decode(&block), Err(HeaderFlaw::Damaged), "bit {bit}");
        block[bit / 8] ^= 1 << (bit % 8);
    }
}

#[test]
fn a_header_of_another_version_or_kind_says_so() {
    let mut block = SEGMENT.encode();
    for (version, decoded) in [(1, Err(HeaderFlaw::Version(1))), (2, Ok(SEGMENT)), (4, Err(HeaderFlaw::Version(4)))] {
        block[8] = version;
        let crc = header_crc(&block);
        block[SEGMENT_CRC_AT..SEGMENT_CRC_AT + 4].copy_from_slice(&crc.to_le_bytes());
        assert_eq!(SegmentHeader::decode(&block), decoded);
    }
    assert_eq!(SegmentHeader::decode(&[b'x'; BLOCK_BYTES]), Err(HeaderFlaw::Foreign));
    assert_eq!(SegmentHeader::decode(&block[..100]), Err(HeaderFlaw::Foreign));
}
