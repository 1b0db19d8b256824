//! Reads a log that may be damaged, without stopping and without writing: what `check` and `salvage` ask for.
//!
//! A segment whose header is damaged is still read when a frame lies at its start: the frame names its segment and its
//! salt, and nothing but a frame ever begins at that place. Behind damage it goes on at the next good frame. Only whole
//! groups are handed out; of a group that was cut over frames, all pieces must be there and chained.

use crate::types::{Entry, Position};
use crate::wal::disk::{Disk, DiskFile};
use crate::wal::record::{self, BLOCK_BYTES, Look, SegmentHeader};
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
    /// Of the segments that say so; all of one log are the same.
    pub cluster_id: Option<u64>,
}

/// Walks all segments and hands every finding to `on_finding`.
///
/// # Errors
/// When the directory itself cannot be read.
pub fn examine<D: Disk>(disk: &D, on_finding: &mut dyn FnMut(Finding)) -> std::io::Result<Examined> {
    let mut walk =
        Walk { examined: Examined::default(), joiner: Joiner::new(Position(0), None), bad: None, on_finding };
    let mut before = None;
    for name in disk.names()?.into_iter().filter(|name| name.ends_with(".wal")) {
        let Some(sequence) = sequence_of(&name) else {
            walk.damage(ReplayError::Foreign { file: name });
            continue;
        };
        if let Some(missing) = before.map(|before| before + 1).filter(|&next| next != sequence) {
            walk.damage(ReplayError::Missing { file: segment_name(missing) });
            walk.lose_chain();
        }
        before = Some(sequence);
        walk.segment(disk, &name, sequence);
    }
    walk.end();
    Ok(walk.examined)
}

struct Walk<'a> {
    examined: Examined,
    joiner: Joiner,
    /// Where no frame was good, until one follows or nothing does.
    bad: Option<(String, u64, bool)>,
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
        self.examined.cluster_id = self.examined.cluster_id.or((header.cluster_id != 0).then_some(header.cluster_id));
        self.frames(name, &header, &bytes);
    }

    fn frames(&mut self, name: &str, header: &SegmentHeader, bytes: &[u8]) {
        let mut offset = BLOCK_BYTES;
        let mut has_frames = false;
        while offset < bytes.len() {
            let frame = match look(bytes, header, offset) {
                Look::Frame(frame) => frame,
                other => {
                    if self.bad.is_none() || has_frames {
                        self.settle_bad_in_segment(name, has_frames);
                        self.bad = Some((name.to_owned(), offset as u64, other == Look::BadBody));
                    }
                    // Good frames further on in this segment prove that one is missing here.
                    let Some(next) = next_frame(bytes, header, offset) else { break };
                    self.damage(ReplayError::Damage {
                        file: name.to_owned(),
                        offset: offset as u64,
                        flaw: Flaw::Frame,
                    });
                    self.bad = None;
                    self.lose_chain();
                    offset = next;
                    continue;
                }
            };
            has_frames = true;
            self.frame(name, &frame, offset as u64);
            offset += frame.bytes;
        }
    }

    /// A second bad place in one walk over a segment replaces the first, which was reported when a frame followed it.
    fn settle_bad_in_segment(&mut self, _name: &str, _has_frames: bool) {}

    fn frame(&mut self, name: &str, frame: &record::Frame<'_>, offset: u64) {
        self.examined.frames += 1;
        self.examined.bytes += frame.bytes as u64;
        let on_finding = &mut *self.on_finding;
        let examined = &mut self.examined;
        let mut on_group = |position, entries| {
            examined.first.get_or_insert(position);
            examined.last = Some(position);
            on_finding(Finding::Group { file: name.to_owned(), offset, position, entries });
        };
        let mut taken = self.joiner.take(frame, &mut on_group);
        if taken == Err(Flaw::Chain) {
            // Something is missing in front of it. It may still begin a group.
            let amid_log = self.joiner.chain.is_some();
            self.joiner = Joiner::new(Position(0), None);
            if frame.header.begins_group {
                taken = self.joiner.take(frame, &mut on_group).and(if amid_log { Err(Flaw::Chain) } else { Ok(()) });
            }
        }
        let bad = self.bad.take();
        if let Err(flaw) = taken {
            let (file, offset) = match bad {
                Some((file, offset, _)) if flaw == Flaw::Chain => (file, offset),
                _ => (name.to_owned(), offset),
            };
            self.damage(ReplayError::Damage { file, offset, flaw });
        }
    }

    fn end(&mut self) {
        let is_amid_group = self.joiner.is_amid_group();
        if let Some((file, offset, has_remains)) =
            self.bad.take().filter(|(_, _, has_remains)| *has_remains || is_amid_group)
        {
            let _ = has_remains;
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
