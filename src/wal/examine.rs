//! Reads a log that may be damaged, without stopping and without writing: what `check` and `salvage` ask for.
//!
//! A segment whose header is damaged is still read when a frame lies at its start: the frame names its segment and its
//! salt, and nothing but a frame ever begins at that place. Behind damage it goes on at the next good frame. Only whole
//! groups are handed out; of a group that was cut over frames, all pieces must be there and chained.

use crate::types::{Entry, Position};
use crate::wal::disk::{Disk, DiskFile};
use crate::wal::record::{self, BLOCK_BYTES, Frame, Look, SegmentHeader};
use crate::wal::replay::{Flaw, Joiner, ReplayError, look, read_header};
use crate::wal::segments::{segment_name, sequence_of};

/// What is found on the way, in the order of the log.
#[derive(Debug)]
pub enum Finding {
    /// A whole group, with where its last frame lies.
    Group { file: String, offset: u64, position: Position, entries: Vec<Entry> },
    /// Something that should be there and is not whole. Its Display is one line.
    Damage(ReplayError),
    /// The log ends here with the remains of a record that was never acknowledged, or with a damaged last one.
    TornTail { file: String, offset: u64 },
}

/// What was read.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Examined {
    pub segments: u64,
    pub frames: u64,
    pub bytes: u64,
    pub damages: u64,
    /// The first and the last whole group.
    pub first: Option<Position>,
    pub last: Option<Position>,
    /// The first and the last segment, by their names.
    pub oldest: Option<u64>,
    pub newest: Option<u64>,
    /// The one that was asked for, or that the first segment names.
    pub cluster_id: Option<u64>,
}

/// Walks all segments and hands every finding to `on_finding`. Of segments of another cluster than `cluster_id`, or, where
/// nobody knows that, than the first one's, nothing is handed out.
///
/// # Errors
/// When the directory itself cannot be read.
pub fn examine<D: Disk>(
    disk: &D,
    cluster_id: Option<u64>,
    on_finding: &mut dyn FnMut(Finding),
) -> std::io::Result<Examined> {
    let joiner = Joiner::new(Position(0), None);
    let examined = Examined { cluster_id, ..Examined::default() };
    let mut walk = Walk { examined, joiner, bad: None, torn: None, on_finding };
    let mut before = None;
    for name in disk.names()?.into_iter().filter(|name| name.ends_with(".wal")) {
        let Some(sequence) = sequence_of(&name) else {
            walk.damage(ReplayError::Foreign { file: name });
            continue;
        };
        if let Some(missing) = before.map(|before: u64| before.wrapping_add(1)).filter(|&next| next != sequence) {
            walk.damage(ReplayError::Missing { file: segment_name(missing) });
            walk.lose_chain();
        }
        before = Some(sequence);
        walk.examined.oldest = walk.examined.oldest.or(before);
        walk.examined.newest = before;
        walk.segment(disk, &name, sequence);
    }
    walk.end();
    Ok(walk.examined)
}

struct Walk<'a> {
    examined: Examined,
    joiner: Joiner,
    /// Where no frame was good, last, while none has followed.
    bad: Option<(String, u64)>,
    /// Where the remains of one lie, while none has followed.
    torn: Option<(String, u64)>,
    on_finding: &'a mut dyn FnMut(Finding),
}

impl Walk<'_> {
    fn damage(&mut self, error: ReplayError) {
        self.examined.damages += 1;
        (self.on_finding)(Finding::Damage(error));
    }

    /// The next frame need not continue anything, and what was begun cannot be ended.
    fn lose_chain(&mut self) {
        self.joiner = Joiner::new(Position(0), None);
    }

    fn segment<D: Disk>(&mut self, disk: &D, name: &str, sequence: u64) {
        self.examined.segments += 1;
        let bytes = match read(disk, name) {
            Ok(bytes) => bytes,
            Err(error) => {
                self.lose_chain();
                return self.damage(ReplayError::Io { file: name.to_owned(), error });
            }
        };
        let header = match read_header(disk, name) {
            Ok(header) if header.sequence == sequence => header,
            Ok(_) => {
                self.lose_chain();
                return self.damage(ReplayError::Foreign { file: name.to_owned() });
            }
            Err(error) => {
                self.damage(error);
                let Some(header) = header_of_first_frame(&bytes, sequence) else { return self.lose_chain() };
                header
            }
        };
        // Of one whose header is damaged it is not known. The salt tells its frames from those of others.
        if header.cluster_id != 0 {
            let expected = *self.examined.cluster_id.get_or_insert(header.cluster_id);
            if header.cluster_id != expected {
                self.lose_chain();
                let found = header.cluster_id;
                return self.damage(ReplayError::Cluster { file: name.to_owned(), found, expected });
            }
        }
        self.frames(name, &header, &bytes);
    }

    fn frames(&mut self, name: &str, header: &SegmentHeader, bytes: &[u8]) {
        let mut offset = BLOCK_BYTES;
        while offset < bytes.len() {
            let has_remains = match look(bytes, header, offset) {
                Look::Frame(frame) => {
                    self.frame(name, &frame, offset as u64);
                    offset += frame.bytes;
                    continue;
                }
                other => other == Look::BadBody,
            };
            let place = (name.to_owned(), offset as u64);
            let Some(next) = next_frame(bytes, header, offset) else {
                if has_remains {
                    self.torn.get_or_insert_with(|| place.clone());
                }
                self.bad = Some(place);
                return;
            };
            // Frames further on in this segment prove that one is missing here.
            self.bad = None;
            self.lose_chain();
            self.damage(ReplayError::Damage { file: place.0, offset: place.1, flaw: Flaw::Frame });
            offset = next;
        }
    }

    fn frame(&mut self, name: &str, frame: &Frame<'_>, offset: u64) {
        self.examined.frames += 1;
        self.examined.bytes += frame.bytes as u64;
        let (bad, _) = (self.bad.take(), self.torn.take());
        if self.joiner.chain.is_none() && !frame.header.begins_group {
            // A piece whose beginning is gone: given up with its segment, or reported as damage already.
            return;
        }
        let mut result = self.take(name, frame, offset);
        if result == Err(Flaw::Chain) {
            // Something is missing in front of it, but what it begins may be whole.
            self.lose_chain();
            if frame.header.begins_group {
                result = self.take(name, frame, offset).and(result);
            }
        }
        let Err(flaw) = result else { return };
        if flaw == Flaw::Content {
            self.lose_chain();
        }
        let (file, offset) = bad.filter(|_| flaw == Flaw::Chain).unwrap_or_else(|| (name.to_owned(), offset));
        self.damage(ReplayError::Damage { file, offset, flaw });
    }

    fn take(&mut self, name: &str, frame: &Frame<'_>, offset: u64) -> Result<(), Flaw> {
        let examined = &mut self.examined;
        self.joiner.take(frame, &mut |position, entries| {
            examined.first.get_or_insert(position);
            examined.last = Some(position);
            (self.on_finding)(Finding::Group { file: name.to_owned(), offset, position, entries });
        })
    }

    /// Pieces without an end are a torn record too, though each of them is good.
    fn end(&mut self) {
        let unfinished = self.bad.take().filter(|_| self.joiner.is_amid_group());
        if let Some((file, offset)) = self.torn.take().or(unfinished) {
            (self.on_finding)(Finding::TornTail { file, offset });
        }
    }
}

fn read<D: Disk>(disk: &D, name: &str) -> std::io::Result<Vec<u8>> {
    let file = disk.open(name)?;
    // A file of another kind may be of any length.
    let mut bytes = vec![0; file.len()?.min(1 << 30) as usize];
    file.read_at(0, &mut bytes)?;
    Ok(bytes)
}

fn next_frame(bytes: &[u8], header: &SegmentHeader, offset: usize) -> Option<usize> {
    let mut behind = (offset + BLOCK_BYTES..bytes.len()).step_by(BLOCK_BYTES);
    behind.find(|&offset| look(bytes, header, offset) != Look::NoFrame)
}

/// What the header of a segment must have said, by the frame at its start.
fn header_of_first_frame(bytes: &[u8], sequence: u64) -> Option<SegmentHeader> {
    let salt = record::salt_of_frame(bytes.get(BLOCK_BYTES..)?)?;
    let header = SegmentHeader { cluster_id: 0, sequence, salt, blocks: (bytes.len() / BLOCK_BYTES) as u32 };
    (look(bytes, &header, BLOCK_BYTES) != Look::NoFrame).then_some(header)
}
