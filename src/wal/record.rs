//! The bytes of the log. Pure: bytes in, values out.
//!
//! A *segment* is a file whose length never changes. Block 0 is its header; behind it follow *frames* without a gap, each at
//! a multiple of 4 KiB, and behind the last frame whatever was there before. Numbers are little-endian.
//!
//! ```text
//! segment header, one block                        frame
//!  0   8  magic "TARSWAL\n"                          0   4  magic "tFrm"
//!  8   4  format version                             4   4  flags: 1 begins a group, 2 ends a group
//! 12   4  length of the segment in blocks            8   8  sequence of its segment
//! 16   8  cluster id                                16   8  salt of its segment
//! 24   8  sequence                                  24   8  position of the last group in the log before
//! 32   8  salt                                      32   8  position of its last group
//! 40   4  CRC32C of the whole block but this        40   4  block at which it lies
//! 44      zeros                                     44   4  length of the body
//!                                                   48   4  header CRC of the frame before: the chain
//!                                                   52   4  CRC32C of the body, and of zeros up to the next block
//!                                                   56   4  CRC32C of the 56 bytes above
//!                                                   60      body
//! ```
//!
//! What lies between a body and the next block is nobody's: a frame is written as far as its last sector, and the rest of its
//! block stays as it was. So a lone put writes one sector and not eight, and yet no disk, whatever it takes for a block, writes
//! anew what was told of. In version 2 the zeros that the checksum goes over lay there.
//!
//! The body holds whole groups (flags 3), or a piece of one group that is too long for a frame (flags 1, 0, ..., 2). Each
//! frame was synced before the next was written, so a group whose last piece is missing was never told to anybody: the next
//! frame begins a group and drops it. All numbers below are varints (LEB128, a negative one as ten bytes):
//!
//! ```text
//! group    position, as the distance from the group before; length of its entries in bytes; entries
//! entry    1 batch       revision, time, number of changes, changes
//!          2 compaction  revision
//!          3 alarm       member, kind (1 no space, 2 corrupt), 1 when raised
//!          4 start       term
//!          5 stop
//!          6 lease       id, time to live in seconds, 1 when granted and 0 when it is no more
//!          7 remaining   id of a lease, what it has left in seconds, 0 when nothing is to be known of that any more
//! change   1 put         length and bytes of the key, length and bytes of the value, create revision, version, lease
//!          2 delete      length and bytes of the key
//! ```
//!
//! Kind 7 came after the others, without a version: a log that has none is what it was, and a tarsier that does not know it
//! refuses one that has, as malformed. It is written only where operators ask for it.
//!
//! Both checksums of a frame start from the *salt*, a random number that is drawn whenever a file becomes a segment and
//! that no client ever sees. So neither what a recycled file held before nor a value that looks like a frame can pass for
//! one. The previous value of a change is not kept: replaying derives it.

use std::sync::Arc;

use bytes::Bytes;

use crate::net::ring::AlignedBuffer;
use crate::types::encode::{Sink, varint_len};
use crate::types::{
    Alarm, AlarmKind, Batch, Change, ChangeId, Entry, KeyValue, Lease, LeaseId, Position, Revision, Time,
};

/// Frames lie at multiples of this: what every disk takes in direct writes.
pub const BLOCK_BYTES: usize = 4_096;
pub const FORMAT_VERSION: u32 = 3;
/// The oldest that is read. Whoever wrote it cannot read what is added here.
const OLDEST_VERSION: u32 = 2;
pub const FRAME_HEADER_BYTES: usize = 60;

const SEGMENT_MAGIC: &[u8; 8] = b"TARSWAL\n";
const SEGMENT_CRC_AT: usize = 40;
const FRAME_MAGIC: &[u8; 4] = b"tFrm";
const FRAME_CRC_AT: usize = 56;
const BEGINS: u32 = 1;
const ENDS: u32 = 2;

/// What block 0 of a segment says.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct SegmentHeader {
    pub cluster_id: u64,
    pub sequence: u64,
    pub salt: u64,
    pub blocks: u32,
}

/// Why block 0 of a file is not the header of a segment that can be read.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum HeaderFlaw {
    /// It was never a segment.
    Foreign,
    /// Its checksum does not fit.
    Damaged,
    Version(u32),
}

impl SegmentHeader {
    pub fn bytes(&self) -> u64 {
        u64::from(self.blocks) * BLOCK_BYTES as u64
    }

    pub fn encode(&self) -> Vec<u8> {
        let mut block = Vec::with_capacity(BLOCK_BYTES);
        block.extend_from_slice(SEGMENT_MAGIC);
        block.extend_from_slice(&FORMAT_VERSION.to_le_bytes());
        block.extend_from_slice(&self.blocks.to_le_bytes());
        for number in [self.cluster_id, self.sequence, self.salt] {
            block.extend_from_slice(&number.to_le_bytes());
        }
        block.resize(BLOCK_BYTES, 0);
        let crc = header_crc(&block);
        block[SEGMENT_CRC_AT..SEGMENT_CRC_AT + 4].copy_from_slice(&crc.to_le_bytes());
        block
    }

    /// # Errors
    /// When the block is no header, or not one of this version.
    pub fn decode(block: &[u8]) -> Result<SegmentHeader, HeaderFlaw> {
        if block.len() < BLOCK_BYTES {
            return Err(HeaderFlaw::Foreign);
        }
        let is_whole = u32_at(block, SEGMENT_CRC_AT) == header_crc(&block[..BLOCK_BYTES]);
        match (is_whole, u32_at(block, 8)) {
            (true, OLDEST_VERSION..=FORMAT_VERSION) if block.starts_with(SEGMENT_MAGIC) => {}
            (true, version) if block.starts_with(SEGMENT_MAGIC) => return Err(HeaderFlaw::Version(version)),
            // One flipped bit leaves most of the magic alone.
            _ if block.iter().zip(SEGMENT_MAGIC).filter(|(is, expected)| is == expected).count() >= 4 => {
                return Err(HeaderFlaw::Damaged);
            }
            _ => return Err(HeaderFlaw::Foreign),
        }
        Ok(SegmentHeader {
            cluster_id: u64_at(block, 16),
            sequence: u64_at(block, 24),
            salt: u64_at(block, 32),
            blocks: u32_at(block, 12),
        })
    }
}

fn header_crc(block: &[u8]) -> u32 {
    crc32c::crc32c_append(crc32c::crc32c(&block[..SEGMENT_CRC_AT]), &block[SEGMENT_CRC_AT + 4..])
}

fn u32_at(bytes: &[u8], at: usize) -> u32 {
    u32::from_le_bytes(bytes[at..at + 4].try_into().expect("the slice has 4 bytes"))
}

fn u64_at(bytes: &[u8], at: usize) -> u64 {
    u64::from_le_bytes(bytes[at..at + 8].try_into().expect("the slice has 8 bytes"))
}

/// What a frame's header says, beside what its place already tells.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct FrameHeader {
    /// The last group in the log before the first one of this body.
    pub after: Position,
    /// The last group of this body, or the one that it is a piece of.
    pub last: Position,
    pub previous_crc: u32,
    pub begins_group: bool,
    pub ends_group: bool,
}

/// What a body of this length takes in a segment.
pub fn frame_bytes(body_bytes: usize) -> usize {
    (FRAME_HEADER_BYTES + body_bytes).next_multiple_of(BLOCK_BYTES)
}

/// How much of it has to be written.
pub fn filled_bytes(body_bytes: usize) -> usize {
    FRAME_HEADER_BYTES + body_bytes
}

/// Fills in the header of a frame whose body is in place behind zeros for the header, and before zeros up to a whole
/// number of blocks. Answers the CRC that the next frame chains to.
pub fn seal(frame: &mut [u8], body_bytes: usize, header: &FrameHeader, segment: &SegmentHeader, offset: u64) -> u32 {
    assert_eq!(frame.len(), frame_bytes(body_bytes), "a frame is as long as its body says");
    let flags = if header.begins_group { BEGINS } else { 0 } | if header.ends_group { ENDS } else { 0 };
    let block = u32::try_from(offset / BLOCK_BYTES as u64).expect("a segment has less than 2^32 blocks");
    let body_crc = body_crc(segment.salt, &frame[FRAME_HEADER_BYTES..filled_bytes(body_bytes)]);
    frame[0..4].copy_from_slice(FRAME_MAGIC);
    frame[4..8].copy_from_slice(&flags.to_le_bytes());
    frame[8..16].copy_from_slice(&segment.sequence.to_le_bytes());
    frame[16..24].copy_from_slice(&segment.salt.to_le_bytes());
    frame[24..32].copy_from_slice(&header.after.0.to_le_bytes());
    frame[32..40].copy_from_slice(&header.last.0.to_le_bytes());
    frame[40..44].copy_from_slice(&block.to_le_bytes());
    frame[44..48].copy_from_slice(&(body_bytes as u32).to_le_bytes());
    frame[48..52].copy_from_slice(&header.previous_crc.to_le_bytes());
    frame[52..56].copy_from_slice(&body_crc.to_le_bytes());
    let crc = salted(segment.salt, &frame[..FRAME_CRC_AT]);
    frame[FRAME_CRC_AT..FRAME_HEADER_BYTES].copy_from_slice(&crc.to_le_bytes());
    crc
}

/// Of a body, and of zeros up to the next block whatever lies there.
fn body_crc(salt: u64, body: &[u8]) -> u32 {
    const ZEROS: [u8; BLOCK_BYTES] = [0; BLOCK_BYTES];
    let rest = frame_bytes(body.len()) - filled_bytes(body.len());
    crc32c::crc32c_append(salted(salt, body), &ZEROS[..rest])
}

fn salted(salt: u64, bytes: &[u8]) -> u32 {
    crc32c::crc32c_append(crc32c::crc32c(&salt.to_le_bytes()), bytes)
}

/// What lies at one block of a segment.
#[derive(PartialEq, Eq, Debug)]
pub enum Look<'a> {
    Frame(Frame<'a>),
    /// The header of a frame of this segment, whose body does not fit its checksum.
    BadBody,
    /// No header of a frame of this segment.
    NoFrame,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Frame<'a> {
    pub header: FrameHeader,
    pub body: &'a [u8],
    pub crc: u32,
    /// With its header, up to the next block.
    pub bytes: usize,
}

/// Looks at a block of a segment, given from there to its end.
pub fn look<'a>(bytes: &'a [u8], segment: &SegmentHeader, offset: u64) -> Look<'a> {
    if bytes.len() < FRAME_HEADER_BYTES || !bytes.starts_with(FRAME_MAGIC) {
        return Look::NoFrame;
    }
    let crc = u32_at(bytes, FRAME_CRC_AT);
    let is_of_segment = u64_at(bytes, 8) == segment.sequence && u64_at(bytes, 16) == segment.salt;
    let is_at_place = u64::from(u32_at(bytes, 40)) * BLOCK_BYTES as u64 == offset;
    let flags = u32_at(bytes, 4);
    if !is_of_segment || !is_at_place || flags > BEGINS | ENDS || crc != salted(segment.salt, &bytes[..FRAME_CRC_AT]) {
        return Look::NoFrame;
    }
    let body_bytes = u32_at(bytes, 44) as usize;
    let Some(frame) = bytes.get(..frame_bytes(body_bytes)) else { return Look::BadBody };
    let body = &frame[FRAME_HEADER_BYTES..filled_bytes(body_bytes)];
    if u32_at(bytes, 52) != body_crc(segment.salt, body) {
        return Look::BadBody;
    }
    let header = FrameHeader {
        after: Position(u64_at(bytes, 24)),
        last: Position(u64_at(bytes, 32)),
        previous_crc: u32_at(bytes, 48),
        begins_group: flags & BEGINS != 0,
        ends_group: flags & ENDS != 0,
    };
    Look::Frame(Frame { header, body, crc, bytes: frame.len() })
}

impl Sink for AlignedBuffer {
    fn put(&mut self, bytes: &[u8]) {
        self.extend_from_slice(bytes);
    }
}

/// The salt that a frame names, to be believed only once its checksum fits.
pub fn salt_of_frame(bytes: &[u8]) -> Option<u64> {
    (bytes.len() >= FRAME_HEADER_BYTES && bytes.starts_with(FRAME_MAGIC)).then(|| u64_at(bytes, 16))
}

/// Counts what would be written.
struct Count(usize);

impl Sink for Count {
    fn put(&mut self, bytes: &[u8]) {
        self.0 += bytes.len();
    }

    fn put_varint(&mut self, number: u64) {
        self.0 += varint_len(number);
    }
}

/// How many bytes the entries of a group take.
pub fn entries_len(entries: &[Entry]) -> usize {
    let mut count = Count(0);
    entries.iter().for_each(|entry| put_entry(&mut count, entry));
    count.0
}

/// How many bytes a group takes behind the group before, given what its entries take.
pub fn group_len(after: Position, position: Position, entries_bytes: usize) -> usize {
    varint_len(position.0 - after.0) + varint_len(entries_bytes as u64) + entries_bytes
}

pub fn put_group(out: &mut impl Sink, after: Position, position: Position, entries: &[Entry], entries_bytes: usize) {
    assert!(after < position, "positions rise");
    out.put_varint(position.0 - after.0);
    out.put_varint(entries_bytes as u64);
    entries.iter().for_each(|entry| put_entry(out, entry));
}

fn put_entry(out: &mut impl Sink, entry: &Entry) {
    match entry {
        Entry::Batch(batch) => {
            out.put_byte(1);
            out.put_varint(batch.revision.0 as u64);
            out.put_varint(batch.time.0);
            out.put_varint(batch.changes.len() as u64);
            batch.changes.iter().for_each(|change| put_change(out, change));
        }
        Entry::Compaction(revision) => {
            out.put_byte(2);
            out.put_varint(revision.0 as u64);
        }
        Entry::Alarm { alarm, active } => {
            out.put_byte(3);
            out.put_varint(alarm.member);
            out.put_byte(match alarm.kind {
                AlarmKind::NoSpace => 1,
                AlarmKind::Corrupt => 2,
            });
            out.put_byte(u8::from(*active));
        }
        Entry::Start { term } => {
            out.put_byte(4);
            out.put_varint(*term);
        }
        Entry::Stop => out.put_byte(5),
        Entry::Lease { lease, granted } => {
            out.put_byte(6);
            out.put_varint(lease.id.0 as u64);
            out.put_varint(lease.ttl as u64);
            out.put_byte(u8::from(*granted));
        }
        Entry::Remaining { lease, seconds } => {
            out.put_byte(7);
            out.put_varint(lease.0 as u64);
            out.put_varint(seconds.unwrap_or(0) as u64);
        }
    }
}

fn put_change(out: &mut impl Sink, change: &Change) {
    match change {
        Change::Put { kv, .. } => {
            out.put_byte(1);
            put_text(out, kv.key());
            put_text(out, kv.value());
            out.put_varint(kv.create_revision().0 as u64);
            out.put_varint(kv.version() as u64);
            out.put_varint(kv.lease().0 as u64);
        }
        Change::Delete { key, .. } => {
            out.put_byte(2);
            put_text(out, key);
        }
    }
}

fn put_text(out: &mut impl Sink, text: &[u8]) {
    out.put_varint(text.len() as u64);
    out.put(text);
}

/// The bytes of a body that pass their checksum are no groups: another version wrote them, or this one has a bug.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Malformed;

/// Reads the groups of a whole body, or of the joined pieces of one group.
///
/// # Errors
/// When the bytes are not what [`put_group`] writes. No length is believed beyond what is there.
pub fn groups(body: &[u8], after: Position) -> Result<Vec<(Position, Vec<Entry>)>, Malformed> {
    let mut reader = Reader(body);
    let mut last = after;
    let mut groups = Vec::new();
    while !reader.0.is_empty() {
        let distance = reader.varint()?;
        last = Position(last.0.checked_add(distance).filter(|_| distance > 0).ok_or(Malformed)?);
        let mut group = Reader(reader.text()?);
        let mut entries = Vec::new();
        while !group.0.is_empty() {
            entries.push(group.entry()?);
        }
        groups.push((last, entries));
    }
    Ok(groups)
}

struct Reader<'a>(&'a [u8]);

impl<'a> Reader<'a> {
    fn byte(&mut self) -> Result<u8, Malformed> {
        let (&byte, rest) = self.0.split_first().ok_or(Malformed)?;
        self.0 = rest;
        Ok(byte)
    }

    fn varint(&mut self) -> Result<u64, Malformed> {
        let mut number = 0;
        for shift in (0..70).step_by(7) {
            let byte = self.byte()?;
            // The tenth byte has room for one bit.
            if shift == 63 && byte > 1 {
                return Err(Malformed);
            }
            number |= u64::from(byte & 0x7f) << shift;
            if byte < 0x80 {
                return Ok(number);
            }
        }
        Err(Malformed)
    }

    fn truth(&mut self) -> Result<bool, Malformed> {
        match self.byte()? {
            0 => Ok(false),
            1 => Ok(true),
            _ => Err(Malformed),
        }
    }

    fn text(&mut self) -> Result<&'a [u8], Malformed> {
        let length = usize::try_from(self.varint()?).map_err(|_| Malformed)?;
        let (text, rest) = self.0.split_at_checked(length).ok_or(Malformed)?;
        self.0 = rest;
        Ok(text)
    }

    fn revision(&mut self) -> Result<Revision, Malformed> {
        Ok(Revision(self.varint()? as i64))
    }

    fn entry(&mut self) -> Result<Entry, Malformed> {
        match self.byte()? {
            1 => self.batch(),
            2 => Ok(Entry::Compaction(self.revision()?)),
            3 => {
                let member = self.varint()?;
                let kind = match self.byte()? {
                    1 => AlarmKind::NoSpace,
                    2 => AlarmKind::Corrupt,
                    _ => return Err(Malformed),
                };
                Ok(Entry::Alarm { alarm: Alarm { member, kind }, active: self.truth()? })
            }
            4 => Ok(Entry::Start { term: self.varint()? }),
            5 => Ok(Entry::Stop),
            6 => {
                let lease = Lease { id: LeaseId(self.varint()? as i64), ttl: self.varint()? as i64 };
                Ok(Entry::Lease { lease, granted: self.truth()? })
            }
            7 => {
                let (lease, seconds) = (LeaseId(self.varint()? as i64), self.varint()? as i64);
                Ok(Entry::Remaining { lease, seconds: (seconds != 0).then_some(seconds) })
            }
            _ => Err(Malformed),
        }
    }

    fn batch(&mut self) -> Result<Entry, Malformed> {
        let (revision, time) = (self.revision()?, Time(self.varint()?));
        let count = self.varint()?;
        // The shortest change is a delete of two bytes; a larger count would reserve memory for what is not there.
        if count > self.0.len() as u64 / 2 || count > u64::from(u32::MAX) {
            return Err(Malformed);
        }
        let changes = (0..count as u32).map(|sub| self.change(ChangeId { revision, sub }));
        let changes = changes.collect::<Result<_, _>>()?;
        Ok(Entry::Batch(Arc::new(Batch { revision, time, changes })))
    }

    fn change(&mut self, id: ChangeId) -> Result<Change, Malformed> {
        match self.byte()? {
            1 => {
                let (key, value) = (self.text()?, self.text()?);
                let create_revision = self.revision()?;
                let (version, lease) = (self.varint()? as i64, LeaseId(self.varint()? as i64));
                let kv = KeyValue::new(key, value, create_revision, id.revision, id.sub, version, lease);
                Ok(Change::Put { kv, previous: None })
            }
            2 => Ok(Change::Delete { key: Bytes::copy_from_slice(self.text()?), previous: None }),
            _ => Err(Malformed),
        }
    }
}

#[cfg(test)]
mod tests;
