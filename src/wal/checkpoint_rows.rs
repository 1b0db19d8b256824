//! The bytes of a checkpoint's rows and of the record beside them. Pure: values in, bytes out, and back.
//!
//! A row stands under the key (revision, sub revision). Numbers are little-endian:
//!
//! ```text
//!  0   4  CRC32C of the key (revision, 8 bytes; sub revision, 4 bytes) and of all that follows
//!  4   1  kind: 1 put, 2 delete; 128 more for the last change of its revision
//!  5   8  time
//! 13      a delete: the key
//! 13   8  a put: create revision
//! 21   8         version
//! 29   8         lease
//! 37   4         length of the key
//! 41             key, value
//! ```
//!
//! A lease stands under its id, bit for bit:
//!
//! ```text
//!  0   4  CRC32C of the id and of what follows
//!  4   8  time to live in seconds
//! 12   8  what it had left when that was written down, in seconds; absent where it never was, or was taken back
//! ```
//!
//! The record's sum over leases is of ids and times to live alone, so that the end of a lease, whose entry in the log says
//! no more, can be taken off it.
//!
//! The checksum covers the row's own key: a row that a damaged tree shows under another one is found as well.

use bytes::Bytes;

use crate::types::{
    Alarm, AlarmKind, Change, ChangeId, Entry, KeyValue, Lease, LeaseId, Position, Revision, Row, StoredLease, Time,
};

pub const FORMAT_VERSION: u32 = 2;

const PUT: u8 = 1;
const DELETE: u8 = 2;
const LAST: u8 = 128;
const HEAD_BYTES: usize = 13;
const PUT_HEAD_BYTES: usize = 41;

/// What is true of all rows together, written in the transaction that makes it true.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Meta {
    pub cluster_id: u64,
    pub member_id: u64,
    /// The last group of the log that is in the rows.
    pub position: Position,
    pub revision: Revision,
    pub compacted: Option<Revision>,
    /// Of the last start.
    pub term: u64,
    /// In ascending order of member and kind.
    pub alarms: Vec<Alarm>,
    /// How many rows there are, and the sum of their checksums: a row that a damaged tree hides is missed.
    pub rows: u64,
    pub sum: u64,
    /// The same of the leases.
    pub leases: u64,
    pub lease_sum: u64,
}

impl Meta {
    /// That of a store in which nothing has happened.
    pub fn new(cluster_id: u64, member_id: u64) -> Meta {
        Meta {
            cluster_id,
            member_id,
            position: Position(0),
            revision: Revision::FIRST,
            compacted: None,
            term: 0,
            alarms: Vec::new(),
            rows: 0,
            sum: 0,
            leases: 0,
            lease_sum: 0,
        }
    }

    /// What an entry of the log changes in it.
    pub fn note(&mut self, entry: &Entry) {
        match entry {
            Entry::Batch(batch) => self.revision = batch.revision,
            Entry::Compaction(revision) => self.compacted = Some(*revision),
            Entry::Alarm { alarm, active } => {
                self.alarms.retain(|other| other != alarm);
                if *active {
                    self.alarms.push(*alarm);
                    self.alarms.sort_unstable_by_key(|alarm| (alarm.member, alarm.kind as u8));
                }
            }
            Entry::Lease { lease, granted: true } => self.add_lease(*lease),
            Entry::Lease { lease, granted: false } => {
                self.leases = self.leases.wrapping_sub(1);
                self.lease_sum = self.lease_sum.wrapping_sub(lease_sum(*lease));
            }
            Entry::Start { term } => self.term = *term,
            Entry::Remaining { .. } | Entry::Stop => {}
        }
    }

    pub fn add_lease(&mut self, lease: Lease) {
        self.leases = self.leases.wrapping_add(1);
        self.lease_sum = self.lease_sum.wrapping_add(lease_sum(lease));
    }

    pub fn encode(&self) -> Vec<u8> {
        let compacted = self.compacted.map_or(-1, |revision| revision.0);
        let mut bytes = vec![0; 4];
        bytes.extend_from_slice(&FORMAT_VERSION.to_le_bytes());
        for number in [self.cluster_id, self.member_id, self.position.0, self.term] {
            bytes.extend_from_slice(&number.to_le_bytes());
        }
        for number in [self.rows, self.sum, self.leases, self.lease_sum] {
            bytes.extend_from_slice(&number.to_le_bytes());
        }
        bytes.extend_from_slice(&self.revision.0.to_le_bytes());
        bytes.extend_from_slice(&compacted.to_le_bytes());
        for alarm in &self.alarms {
            bytes.extend_from_slice(&alarm.member.to_le_bytes());
            bytes.push(match alarm.kind {
                AlarmKind::NoSpace => 1,
                AlarmKind::Corrupt => 2,
            });
        }
        let crc = crc32c::crc32c(&bytes[4..]);
        bytes[..4].copy_from_slice(&crc.to_le_bytes());
        bytes
    }

    /// # Errors
    /// `None`: its checksum does not fit. `Some`: the format version, which is another one.
    pub fn decode(bytes: &[u8]) -> Result<Meta, Option<u32>> {
        let mut rest = bytes;
        let crc = take_u32(&mut rest).ok_or(None)?;
        if crc != crc32c::crc32c(rest) {
            return Err(None);
        }
        let version = take_u32(&mut rest).ok_or(None)?;
        if version != FORMAT_VERSION {
            return Err(Some(version));
        }
        let mut number = || take_u64(&mut rest).ok_or(None);
        let (cluster_id, member_id, position, term) = (number()?, number()?, Position(number()?), number()?);
        let (rows, sum, leases, lease_sum) = (number()?, number()?, number()?, number()?);
        let (revision, compacted) = (Revision(number()? as i64), number()? as i64);
        let alarms = rest.chunks(9).map(|alarm| {
            let (member, kind) = alarm.split_first_chunk().ok_or(None)?;
            let kind = match kind {
                [1] => AlarmKind::NoSpace,
                [2] => AlarmKind::Corrupt,
                _ => return Err(None),
            };
            Ok(Alarm { member: u64::from_le_bytes(*member), kind })
        });
        let alarms = alarms.collect::<Result<_, _>>()?;
        let compacted = (compacted >= 0).then_some(Revision(compacted));
        if revision < Revision::FIRST || compacted > Some(revision) {
            return Err(None);
        }
        Ok(Meta { cluster_id, member_id, position, revision, compacted, term, alarms, rows, sum, leases, lease_sum })
    }
}

fn take_u32(rest: &mut &[u8]) -> Option<u32> {
    let (number, after) = rest.split_first_chunk()?;
    *rest = after;
    Some(u32::from_le_bytes(*number))
}

fn take_u64(rest: &mut &[u8]) -> Option<u64> {
    let (number, after) = rest.split_first_chunk()?;
    *rest = after;
    Some(u64::from_le_bytes(*number))
}

fn lease_crc(id: LeaseId, body: &[u8]) -> u32 {
    crc32c::crc32c_append(crc32c::crc32c(&id.0.to_le_bytes()), body)
}

/// What a lease adds to the sum of the record.
fn lease_sum(Lease { id, ttl }: Lease) -> u64 {
    u64::from(lease_crc(id, &ttl.to_le_bytes()))
}

pub fn encode_lease(StoredLease { lease, remaining }: StoredLease) -> Vec<u8> {
    let mut bytes = vec![0; 4];
    for number in [Some(lease.ttl), remaining].into_iter().flatten() {
        bytes.extend_from_slice(&number.to_le_bytes());
    }
    let crc = lease_crc(lease.id, &bytes[4..]);
    bytes[..4].copy_from_slice(&crc.to_le_bytes());
    bytes
}

/// The lease under an id. `None`: it is not what was written there.
pub fn decode_lease(id: LeaseId, mut bytes: &[u8]) -> Option<StoredLease> {
    let crc = take_u32(&mut bytes)?;
    if crc != lease_crc(id, bytes) {
        return None;
    }
    let lease = Lease { id, ttl: take_u64(&mut bytes)? as i64 };
    let remaining = take_u64(&mut bytes).map(|seconds| seconds as i64);
    bytes.is_empty().then_some(StoredLease { lease, remaining })
}

fn row_crc(id: ChangeId, body: &[u8]) -> u32 {
    let mut key = [0; 12];
    key[..8].copy_from_slice(&id.revision.0.to_le_bytes());
    key[8..].copy_from_slice(&id.sub.to_le_bytes());
    crc32c::crc32c_append(crc32c::crc32c(&key), body)
}

/// Writes a change over what `into` held, and returns its checksum.
pub fn encode_row(id: ChangeId, is_last: bool, time: Time, change: &Change, into: &mut Vec<u8>) -> u32 {
    into.clear();
    into.extend_from_slice(&[0; 4]);
    let kind = match change {
        Change::Put { .. } => PUT,
        Change::Delete { .. } => DELETE,
    };
    into.push(if is_last { kind | LAST } else { kind });
    into.extend_from_slice(&time.0.to_le_bytes());
    match change {
        Change::Put { kv, .. } => {
            for number in [kv.create_revision().0, kv.version(), kv.lease().0] {
                into.extend_from_slice(&number.to_le_bytes());
            }
            into.extend_from_slice(&(kv.key().len() as u32).to_le_bytes());
            into.extend_from_slice(kv.key());
            into.extend_from_slice(kv.value());
        }
        Change::Delete { key, .. } => into.extend_from_slice(key),
    }
    let crc = row_crc(id, &into[4..]);
    into[..4].copy_from_slice(&crc.to_le_bytes());
    crc
}

/// What a row adds to the sum of the record.
pub fn row_sum(row: &Row) -> u64 {
    u64::from(encode_row(row.id, row.is_last, row.time, &row.change, &mut Vec::new()))
}

/// The checksum that a row carries.
pub fn stored_crc(row: &[u8]) -> u32 {
    row.first_chunk().map_or(0, |crc| u32::from_le_bytes(*crc))
}

/// Whether the row is what was written under this key.
pub fn is_whole(id: ChangeId, row: &[u8]) -> bool {
    row.len() >= HEAD_BYTES && stored_crc(row) == row_crc(id, &row[4..])
}

/// What a row says whose checksum fits.
pub fn decode_row(id: ChangeId, row: &[u8]) -> Option<Row> {
    let mut rest = row.get(4..)?;
    let (&kind, after) = rest.split_first()?;
    rest = after;
    let time = Time(take_u64(&mut rest)?);
    debug_assert_eq!(row.len() - rest.len(), HEAD_BYTES);
    let change = match kind & !LAST {
        PUT => {
            let mut number = || take_u64(&mut rest).map(|number| number as i64);
            let (create, version, lease) = (Revision(number()?), number()?, LeaseId(number()?));
            let key_len = take_u32(&mut rest)? as usize;
            debug_assert_eq!(row.len() - rest.len(), PUT_HEAD_BYTES);
            let (key, value) = rest.split_at_checked(key_len)?;
            let kv = KeyValue::new(key, value, create, id.revision, id.sub, version, lease);
            Change::Put { kv, previous: None }
        }
        DELETE => Change::Delete { key: Bytes::copy_from_slice(rest), previous: None },
        _ => return None,
    };
    Some(Row { id, is_last: kind & LAST != 0, time, change })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::random::Random;

    fn row(change: Change, is_last: bool) -> Row {
        Row { id: ChangeId { revision: Revision(7), sub: 3 }, is_last, time: Time(99), change }
    }

    #[test]
    fn a_row_comes_back_as_it_went_in_and_a_flipped_bit_is_found() {
        let kv = KeyValue::new(b"key", b"value", Revision(2), Revision(7), 3, 4, LeaseId(-9));
        let rows = [
            row(Change::Put { kv, previous: None }, true),
            row(Change::Delete { key: "key".into(), previous: None }, false),
        ];
        for row in rows {
            let mut bytes = Vec::new();
            let crc = encode_row(row.id, row.is_last, row.time, &row.change, &mut bytes);
            assert!(is_whole(row.id, &bytes) && stored_crc(&bytes) == crc);
            assert_eq!(decode_row(row.id, &bytes), Some(row.clone()));
            assert!(!is_whole(ChangeId { sub: 2, ..row.id }, &bytes), "another key");
            for bit in 0..bytes.len() * 8 {
                bytes[bit / 8] ^= 1 << (bit % 8);
                assert!(!is_whole(row.id, &bytes));
                bytes[bit / 8] ^= 1 << (bit % 8);
            }
            for length in 0..bytes.len() {
                assert!(!is_whole(row.id, &bytes[..length]));
            }
        }
    }

    #[test]
    fn the_record_comes_back_and_a_flipped_bit_is_found() {
        let alarm = |kind| Alarm { member: u64::MAX, kind };
        let mut meta = Meta::new(1, 2);
        (meta.position, meta.revision, meta.compacted) = (Position(9), Revision(8), Some(Revision(0)));
        (meta.rows, meta.sum, meta.term) = (3, 1 << 40, 5);
        meta.add_lease(Lease { id: LeaseId(-3), ttl: 60 });
        meta.alarms = vec![alarm(AlarmKind::NoSpace), alarm(AlarmKind::Corrupt)];
        let mut bytes = meta.encode();
        assert_eq!(Meta::decode(&bytes), Ok(meta));
        for bit in 0..bytes.len() * 8 {
            bytes[bit / 8] ^= 1 << (bit % 8);
            assert_eq!(Meta::decode(&bytes), Err(None));
            bytes[bit / 8] ^= 1 << (bit % 8);
        }
    }

    #[test]
    fn a_lease_comes_back_under_its_id_alone_and_a_flipped_bit_is_found() {
        let id = LeaseId(-3);
        for remaining in [None, Some(1), Some(8_999_999_999)] {
            let stored = StoredLease { lease: Lease { id, ttl: 9_000_000_000 }, remaining };
            let mut bytes = encode_lease(stored);
            assert_eq!(decode_lease(id, &bytes), Some(stored));
            assert_eq!(decode_lease(LeaseId(3), &bytes), None, "another id");
            for bit in 0..bytes.len() * 8 {
                bytes[bit / 8] ^= 1 << (bit % 8);
                assert_eq!(decode_lease(id, &bytes), None);
                bytes[bit / 8] ^= 1 << (bit % 8);
            }
            for length in 0..bytes.len() {
                assert_eq!(decode_lease(id, &bytes[..length]), None);
            }
        }
    }

    #[test]
    fn leases_that_come_and_go_leave_the_record_as_it_was() {
        let mut meta = Meta::new(1, 2);
        let lease = |id| Lease { id: LeaseId(id), ttl: 60 };
        for granted in [true, false] {
            for id in 0..3 {
                meta.note(&Entry::Lease { lease: lease(id), granted });
            }
            assert_eq!(meta.leases, if granted { 3 } else { 0 });
        }
        assert_eq!(meta, Meta::new(1, 2));
    }

    #[test]
    fn no_bytes_make_a_decoder_panic() {
        let mut random = Random::new(1);
        for _ in 0..20_000 {
            let length = random.below(80);
            let mut bytes: Vec<u8> = (0..length).map(|_| random.below(4) as u8).collect();
            let _ = Meta::decode(&bytes);
            if let Some(kind) = bytes.get_mut(4) {
                *kind = 1 + random.below(2) as u8;
            }
            let _ = decode_row(ChangeId { revision: Revision(2), sub: 0 }, &bytes);
            let _ = is_whole(ChangeId { revision: Revision(2), sub: 0 }, &bytes);
        }
    }
}
