//! What the log holds after a start, and whether it may be believed. Pure over a [`Disk`].
//!
//! The log syncs each frame before it writes the next. So of all frames only the last can be in doubt, and one rule tells a
//! torn end from damage: **a bad frame with a good one behind it is damage**, and the start is refused; a bad frame with
//! none behind it was never told to anybody, and the log goes on in its place. Where one segment ends short and its
//! successor goes on, the chain says whether a frame is missing between them.
//!
//! Behind a bad frame in the same segment the header of a frame is proof enough, since all before it was synced once. In a
//! later segment only a whole frame is: the remains of a torn frame may lie at its start, while the log goes on in the
//! segment before it.
//!
//! Before anything is served, the segments with groups that the checkpoint lacks are written again in place, the same bytes
//! to the same offsets, and synced. After a failed sync the page cache shows what the disk lacks, and the kernel takes it
//! for clean; only writing it again makes it true. A crash in the middle changes nothing, since no byte changes.

use std::fmt;
use std::io;
use std::path::Path;

use crate::types::{Entry, Position};
use crate::wal::disk::{Disk, DiskFile};
use crate::wal::record::{self, BLOCK_BYTES, Frame, HeaderFlaw, Look, SegmentHeader};
use crate::wal::segments::{Closed, Resume, segment_name, sequence_of};

/// No segment was ever made longer than this. A length beyond it is damage that a checksum missed, or a foreign file.
const SEGMENT_BYTES_MAX: u64 = 1 << 30;

/// The name of the directory itself, seen from within.
const DIRECTORY: &str = ".";

/// Why the log cannot be replayed. One line that names the file and what to do.
#[derive(Debug)]
pub enum ReplayError {
    Io {
        file: String,
        error: io::Error,
    },
    /// A file has the name of a segment, and its content is something else.
    Foreign {
        file: String,
    },
    Missing {
        file: String,
    },
    Version {
        file: String,
        found: u32,
    },
    Cluster {
        file: String,
        found: u64,
        expected: u64,
    },
    Damage {
        file: String,
        offset: u64,
        flaw: Flaw,
    },
    /// The first group that is left comes too late: this file, in front of it, is missing, or the checkpoint is an old one.
    Gap {
        file: String,
        after: Position,
        checkpointed: Position,
    },
    /// The checkpoint knows groups that the log does not.
    Behind {
        last: Position,
        checkpointed: Position,
    },
}

/// What is wrong with a place in the log.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Flaw {
    /// The header of the segment does not fit its checksum.
    Header,
    /// The file is not as long as its header says.
    Length,
    /// A frame does not fit its checksums, and a good one lies behind it.
    Frame,
    /// A frame is good and does not continue the one before it.
    Chain,
    /// The oldest segment holds no good frame, and a log that ever held one is never without.
    First,
    /// The checksums fit, and the content is none that this version can read.
    Content,
}

impl fmt::Display for Flaw {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Flaw::Header => "the header does not fit its checksum",
            Flaw::Length => "the file is not as long as its header says",
            Flaw::Frame => "a record does not fit its checksum and good ones follow it",
            Flaw::Chain => "a record does not continue the one before it",
            Flaw::First => "it begins with no good record: either that is damaged, or the file before it is missing",
            Flaw::Content => "a record fits its checksum and cannot be read",
        })
    }
}

impl std::error::Error for ReplayError {}

impl ReplayError {
    /// The same with the place at which the file lies.
    pub fn under(mut self, directory: &Path) -> ReplayError {
        match &mut self {
            ReplayError::Io { file, .. }
            | ReplayError::Foreign { file }
            | ReplayError::Missing { file }
            | ReplayError::Version { file, .. }
            | ReplayError::Cluster { file, .. }
            | ReplayError::Damage { file, .. }
            | ReplayError::Gap { file, .. } => *file = placed(directory, file),
            ReplayError::Behind { .. } => {}
        }
        self
    }
}

fn placed(directory: &Path, file: &str) -> String {
    if file == DIRECTORY { directory.display().to_string() } else { directory.join(file).display().to_string() }
}

impl fmt::Display for ReplayError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            ReplayError::Io { file, error } => {
                write!(
                    f,
                    "cannot read or rewrite the log file {file}: {error}; nothing was changed, so cure the disk and start again"
                )
            }
            ReplayError::Foreign { file } => {
                write!(f, "{file} is not a file of this log: move it away, or name another directory for the log")
            }
            ReplayError::Missing { file } => {
                write!(f, "the log file {file} is missing: put it back, or keep what is whole with tarsier salvage")
            }
            ReplayError::Version { file, found } => write!(
                f,
                "the log file {file} has format version {found} and this tarsier reads {}: start the version that wrote it",
                record::FORMAT_VERSION
            ),
            ReplayError::Cluster { file, found, expected } => write!(
                f,
                "the log file {file} belongs to cluster {found:x} and the data directory to {expected:x}: name the log directory that belongs to it"
            ),
            ReplayError::Damage { file, offset, flaw } => write!(
                f,
                "the log file {file} is damaged at offset {offset}: {flaw}; look with tarsier check, and keep what is whole with tarsier salvage"
            ),
            ReplayError::Gap { file, after, checkpointed } => write!(
                f,
                "the log file {file} is missing: the log begins behind it after group {}, and the checkpoint ends at group {}; put it and those before it back, or the newer checkpoint, or keep what is whole with tarsier salvage",
                after.0, checkpointed.0
            ),
            ReplayError::Behind { last, checkpointed } => write!(
                f,
                "the log ends at group {} and the checkpoint at group {}: put the newer log files back, or keep what is whole with tarsier salvage",
                last.0, checkpointed.0
            ),
        }
    }
}

/// What was cut off the end of the log: a record whose write a crash interrupted.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct TornTail {
    pub file: String,
    pub offset: u64,
}

impl TornTail {
    pub fn under(self, directory: &Path) -> TornTail {
        TornTail { file: placed(directory, &self.file), ..self }
    }
}

#[derive(Debug)]
pub struct Recovered {
    /// The last whole group.
    pub last: Position,
    pub torn: Option<TornTail>,
    /// What [`crate::wal::segments::open`] goes on with.
    pub resume: Resume,
}

#[derive(Clone, Copy, Debug)]
pub struct Replay<'a, D> {
    pub disk: &'a D,
    pub cluster_id: u64,
    /// The last group that the checkpoint holds; only later ones are handed out.
    pub checkpointed: Position,
    /// The length of segments in a log that has none yet; one that has keeps its own.
    pub blocks: u32,
    /// The segment that must be there at the least, when that was noted.
    pub newest: Option<u64>,
    #[cfg(test)]
    pub(crate) planted: Planted,
}

/// Bugs that the simulator must find.
#[cfg(test)]
#[derive(Clone, Copy, Default, Debug)]
pub(crate) struct Planted {
    /// The first bad frame is the end of the log, whatever follows.
    pub damage_is_an_end: bool,
}

/// Takes frames in the order of the log and joins them to groups.
pub(crate) struct Joiner {
    /// The checksum that the next frame must chain to; none before the first one, whose predecessor may be gone.
    pub chain: Option<u32>,
    pub last: Position,
    wanted_after: Position,
    pieces: Option<Pieces>,
}

enum Pieces {
    Wanted(Vec<u8>),
    /// Of a group that the checkpoint holds. Its first pieces may be gone with their segment.
    Known,
}

impl Joiner {
    pub fn new(wanted_after: Position, chain: Option<u32>) -> Joiner {
        Joiner { chain, last: Position(0), wanted_after, pieces: None }
    }

    pub fn is_amid_group(&self) -> bool {
        self.pieces.is_some()
    }

    /// Hands out the groups that the frame completes.
    pub fn take(&mut self, frame: &Frame<'_>, on_group: &mut dyn FnMut(Position, Vec<Entry>)) -> Result<(), Flaw> {
        let header = &frame.header;
        let is_known = header.last <= self.wanted_after;
        match self.chain {
            Some(chain) if chain != header.previous_crc || header.after != self.last => return Err(Flaw::Chain),
            // The log begins here, maybe amid a group.
            None if !header.begins_group && is_known => self.pieces = Some(Pieces::Known),
            _ => {}
        }
        if header.last <= header.after {
            return Err(Flaw::Content);
        }
        let pieces = match (header.begins_group, self.pieces.take()) {
            // What was begun and never ended was never told to anybody.
            (true, _) if is_known => Pieces::Known,
            (true, _) => Pieces::Wanted(Vec::new()),
            (false, Some(pieces)) => pieces,
            (false, None) => return Err(Flaw::Chain),
        };
        self.chain = Some(frame.crc);
        self.last = header.after;
        match (pieces, header.ends_group) {
            (Pieces::Known, false) => self.pieces = Some(Pieces::Known),
            (Pieces::Known, true) => self.last = header.last,
            (Pieces::Wanted(mut joined), false) => {
                joined.extend_from_slice(frame.body);
                self.pieces = Some(Pieces::Wanted(joined));
            }
            (Pieces::Wanted(joined), true) if joined.is_empty() => self.hand_out(frame.body, frame, on_group)?,
            (Pieces::Wanted(mut joined), true) => {
                joined.extend_from_slice(frame.body);
                self.hand_out(&joined, frame, on_group)?;
            }
        }
        Ok(())
    }

    fn hand_out(
        &mut self,
        body: &[u8],
        frame: &Frame<'_>,
        on_group: &mut dyn FnMut(Position, Vec<Entry>),
    ) -> Result<(), Flaw> {
        let groups = record::groups(body, frame.header.after).map_err(|_| Flaw::Content)?;
        if groups.last().map(|(position, _)| *position) != Some(frame.header.last) {
            return Err(Flaw::Content);
        }
        for (position, entries) in groups {
            if position > self.wanted_after {
                on_group(position, entries);
            }
        }
        self.last = frame.header.last;
        Ok(())
    }
}

/// A segment that was read, up to where its frames end.
struct Scanned {
    header: SegmentHeader,
    /// Behind the last frame.
    end: u64,
    /// The last group that has a piece in it; none when there is no frame.
    last: Option<Position>,
    /// Of everything up to `end`.
    crc: u32,
    /// The header of a torn frame lies at the end.
    has_remains: bool,
}

impl<'a, D: Disk> Replay<'a, D> {
    pub fn new(disk: &'a D, cluster_id: u64, checkpointed: Position, blocks: u32) -> Replay<'a, D> {
        Replay {
            disk,
            cluster_id,
            checkpointed,
            blocks,
            newest: None,
            #[cfg(test)]
            planted: Planted::default(),
        }
    }

    /// Hands out the groups behind the checkpoint, in order, makes them durable once more, and says where the log goes on.
    /// What was handed out is worth nothing when an error follows. `on_progress` hears of bytes done and bytes in all.
    ///
    /// # Errors
    /// When the log cannot be read, is not whole, or does not belong here.
    pub fn run(
        &self,
        on_group: &mut dyn FnMut(Position, Vec<Entry>),
        on_progress: &mut dyn FnMut(u64, u64),
    ) -> Result<Recovered, ReplayError> {
        let headers = self.headers()?;
        let total: u64 = headers.iter().map(SegmentHeader::bytes).sum();
        let first = headers.first().map_or(1, |header| header.sequence);
        let mut joiner = Joiner::new(self.checkpointed, (first == 1).then_some(0));
        let mut scanned: Vec<Scanned> = Vec::new();
        let mut bad: Option<TornTail> = None;
        let mut torn = None;
        for (at, header) in headers.iter().enumerate() {
            let bytes = self.read(header)?;
            let segment = self.scan(header, &bytes, &mut joiner, on_group, &mut bad, &mut torn)?;
            scanned.push(segment);
            on_progress((at as u64 + 1) * header.bytes(), total);
        }
        self.judge_ends(&scanned, &joiner)?;
        if joiner.is_amid_group() && torn.is_none() {
            // The pieces are good and stay where they are; the next frame drops them.
            let last = scanned.iter().rfind(|segment| segment.last.is_some());
            torn = last.map(|last| TornTail { file: segment_name(last.header.sequence), offset: last.end });
        }
        let resume = self.resume(&scanned, &joiner);
        self.rewrite(&scanned, on_progress)?;
        Ok(Recovered { last: joiner.last, torn, resume })
    }

    /// Reads every header, and checks that they make one log.
    fn headers(&self) -> Result<Vec<SegmentHeader>, ReplayError> {
        let io = |error| ReplayError::Io { file: DIRECTORY.to_owned(), error };
        let mut headers: Vec<SegmentHeader> = Vec::new();
        for name in self.disk.names().map_err(io)?.into_iter().filter(|name| name.ends_with(".wal")) {
            let Some(sequence) = sequence_of(&name) else { return Err(ReplayError::Foreign { file: name }) };
            if let Some(before) = headers.last().filter(|before| before.sequence.wrapping_add(1) != sequence) {
                return Err(ReplayError::Missing { file: segment_name(before.sequence.wrapping_add(1)) });
            }
            let header = read_header(self.disk, &name)?;
            if header.cluster_id != self.cluster_id {
                let (found, expected) = (header.cluster_id, self.cluster_id);
                return Err(ReplayError::Cluster { file: name, found, expected });
            }
            // Whole, of this cluster, and under the name of another or of another length: somebody has moved files.
            if header.sequence != sequence || headers.first().is_some_and(|first| first.blocks != header.blocks) {
                return Err(ReplayError::Foreign { file: name });
            }
            headers.push(header);
        }
        match missing_newest(headers.last().map(|header| header.sequence), self.newest) {
            Some(file) => Err(ReplayError::Missing { file }),
            None => Ok(headers),
        }
    }

    fn read(&self, header: &SegmentHeader) -> Result<Vec<u8>, ReplayError> {
        let name = segment_name(header.sequence);
        let io = |error| ReplayError::Io { file: name.clone(), error };
        let mut bytes = vec![0; header.bytes() as usize];
        self.disk.open(&name).and_then(|file| file.read_at(0, &mut bytes)).map_err(io)?;
        Ok(bytes)
    }

    /// Takes the frames of one segment. `bad` is where one was missing, if another follows; `torn` is where the remains of
    /// one lie.
    fn scan(
        &self,
        header: &SegmentHeader,
        bytes: &[u8],
        joiner: &mut Joiner,
        on_group: &mut dyn FnMut(Position, Vec<Entry>),
        bad: &mut Option<TornTail>,
        torn: &mut Option<TornTail>,
    ) -> Result<Scanned, ReplayError> {
        let file = segment_name(header.sequence);
        let mut offset = BLOCK_BYTES;
        let mut last = None;
        let damage = |offset: usize, flaw| ReplayError::Damage { file: file.clone(), offset: offset as u64, flaw };
        while let Look::Frame(frame) = look(bytes, header, offset) {
            let starts_late = frame.header.after > self.checkpointed
                || (!frame.header.begins_group && frame.header.last > self.checkpointed);
            if joiner.chain.is_none() && starts_late && bad.is_none() {
                let (after, checkpointed) = (frame.header.after, self.checkpointed);
                let file = segment_name(header.sequence.saturating_sub(1));
                return Err(ReplayError::Gap { file, after, checkpointed });
            }
            let is_cut_off = joiner.chain.is_none() && bad.is_some();
            if let Err(flaw) = if is_cut_off { Err(Flaw::Chain) } else { joiner.take(&frame, on_group) } {
                // What it does not continue is where the frames before it ended.
                return Err(match bad.take() {
                    Some(end) => ReplayError::Damage { file: end.file, offset: end.offset, flaw: Flaw::Frame },
                    None => damage(offset, flaw),
                });
            }
            *bad = None;
            *torn = None;
            last = Some(frame.header.last);
            offset += frame.bytes;
        }
        if has_frame_behind(bytes, header, offset) && !self.damage_is_an_end() {
            return Err(damage(offset, Flaw::Frame));
        }
        let end = TornTail { file, offset: offset as u64 };
        // Remains without their first sector look like what a recycled file held before, and can do as little.
        let has_remains = look(bytes, header, offset) == Look::BadBody;
        if torn.is_none() && has_remains {
            *torn = Some(end.clone());
        }
        // A full segment lacks nothing. One without a frame surely does if another follows, whatever came before it.
        if offset < bytes.len() {
            *bad = Some(end);
        }
        let crc = crc32c::crc32c(&bytes[..offset]);
        Ok(Scanned { header: *header, end: offset as u64, last, crc, has_remains })
    }

    fn damage_is_an_end(&self) -> bool {
        #[cfg(test)]
        return self.planted.damage_is_an_end;
        #[cfg(not(test))]
        false
    }

    /// The frames must fill one segment after the other, and reach at least as far as the checkpoint.
    fn judge_ends(&self, scanned: &[Scanned], joiner: &Joiner) -> Result<(), ReplayError> {
        let with_frames = scanned.iter().filter(|segment| segment.last.is_some()).count();
        if let Some(hole) = scanned[..with_frames].iter().find(|segment| segment.last.is_none()) {
            let file = segment_name(hole.header.sequence);
            return Err(ReplayError::Damage { file, offset: BLOCK_BYTES as u64, flaw: Flaw::Frame });
        }
        match scanned.first() {
            // A log that ever held a frame is never without one.
            Some(first) if with_frames == 0 && first.header.sequence != 1 => {
                let sequence = first.header.sequence;
                if let Some(file) = missing_oldest(sequence, self.checkpointed) {
                    return Err(ReplayError::Missing { file });
                }
                let file = segment_name(sequence);
                return Err(ReplayError::Damage { file, offset: BLOCK_BYTES as u64, flaw: Flaw::First });
            }
            _ => {}
        }
        if joiner.last < self.checkpointed {
            return Err(ReplayError::Behind { last: joiner.last, checkpointed: self.checkpointed });
        }
        Ok(())
    }

    fn resume(&self, scanned: &[Scanned], joiner: &Joiner) -> Resume {
        let with_frames = scanned.iter().filter(|segment| segment.last.is_some()).count();
        let (filled, prepared) = scanned.split_at(with_frames);
        let closed = |segment: &Scanned| Some(Closed { sequence: segment.header.sequence, last: segment.last? });
        let (current, before) = match filled.split_last() {
            Some((current, before)) => (Some((current.header, current.end)), before),
            None => (None, filled),
        };
        Resume {
            cluster_id: self.cluster_id,
            blocks: scanned.first().map_or(self.blocks, |segment| segment.header.blocks),
            closed: before.iter().filter_map(closed).collect(),
            current,
            prepared: prepared.iter().map(|segment| segment.header).collect(),
            next_sequence: scanned.last().map_or(1, |segment| segment.header.sequence.wrapping_add(1)),
            chain: joiner.chain.unwrap_or(0),
            last: joiner.last,
        }
    }

    /// Writes again what the checkpoint lacks, segment by segment, and syncs it.
    fn rewrite(&self, scanned: &[Scanned], on_progress: &mut dyn FnMut(u64, u64)) -> Result<(), ReplayError> {
        let lacking: Vec<&Scanned> =
            scanned.iter().filter(|segment| segment.last.is_some_and(|last| last > self.checkpointed)).collect();
        let total: u64 = lacking.iter().map(|segment| segment.end).sum();
        let mut done = 0;
        for segment in lacking {
            let file = segment_name(segment.header.sequence);
            let io = |error| ReplayError::Io { file: file.clone(), error };
            let handle = self.disk.open(&file).map_err(io)?;
            let mut bytes = vec![0; segment.end as usize];
            handle.read_at(0, &mut bytes).map_err(io)?;
            if crc32c::crc32c(&bytes) != segment.crc {
                // Writing it would make the second answer the truth.
                let error = io::Error::other("two reads of the same bytes gave different answers");
                return Err(ReplayError::Io { file, error });
            }
            handle.write_at(0, &bytes).and_then(|()| handle.sync_data()).map_err(io)?;
            done += segment.end;
            on_progress(done, total);
        }
        self.wipe_remains(scanned)?;
        self.disk.sync_names().map_err(|error| ReplayError::Io { file: DIRECTORY.to_owned(), error })
    }

    /// A torn frame whose missing sectors the next frame happens to fill in, zeros as a rule, would come to life if that
    /// frame were torn in its turn: a group that was taken for lost. Without its header it cannot.
    fn wipe_remains(&self, scanned: &[Scanned]) -> Result<(), ReplayError> {
        for segment in scanned.iter().filter(|segment| segment.has_remains) {
            let file = segment_name(segment.header.sequence);
            let wipe = |handle: D::File| {
                handle.write_at(segment.end, &[0; BLOCK_BYTES])?;
                handle.sync_data()
            };
            self.disk.open(&file).and_then(wipe).map_err(|error| ReplayError::Io { file, error })?;
        }
        Ok(())
    }
}

/// Of a log that holds no group, or not the first one, the segment in front of the first that is there, if that is what is wrong
/// with it: the checkpoint has taken nothing, so what was told of stood in front. (With the first group it may be gone
/// all the same: it held pieces of one that was never told to anybody.)
pub(crate) fn missing_oldest(first: u64, checkpointed: Position) -> Option<String> {
    (first > 1 && checkpointed == Position(0)).then(|| segment_name(first - 1))
}

/// The first segment behind the last one that is there, or the last of all when none is, if it was noted that it must be.
pub(crate) fn missing_newest(last: Option<u64>, noted: Option<u64>) -> Option<String> {
    let noted = noted.filter(|&noted| noted > last.unwrap_or(0))?;
    Some(segment_name(last.map_or(noted, |last| last + 1)))
}

/// Reads and checks block 0 of a segment, and that the file is as long as it says.
pub(crate) fn read_header<D: Disk>(disk: &D, name: &str) -> Result<SegmentHeader, ReplayError> {
    let io = |error| ReplayError::Io { file: name.to_owned(), error };
    let damage = |flaw| ReplayError::Damage { file: name.to_owned(), offset: 0, flaw };
    let file = disk.open(name).map_err(io)?;
    let length = file.len().map_err(io)?;
    if length < BLOCK_BYTES as u64 {
        return Err(damage(Flaw::Length));
    }
    let mut block = vec![0; BLOCK_BYTES];
    file.read_at(0, &mut block).map_err(io)?;
    let header = SegmentHeader::decode(&block).map_err(|flaw| match flaw {
        HeaderFlaw::Foreign if block.iter().all(|&byte| byte == 0) => damage(Flaw::Header),
        HeaderFlaw::Foreign => ReplayError::Foreign { file: name.to_owned() },
        HeaderFlaw::Damaged => damage(Flaw::Header),
        HeaderFlaw::Version(found) => ReplayError::Version { file: name.to_owned(), found },
    })?;
    if header.bytes() != length || length > SEGMENT_BYTES_MAX {
        return Err(damage(Flaw::Length));
    }
    Ok(header)
}

pub(crate) fn look<'a>(bytes: &'a [u8], header: &SegmentHeader, offset: usize) -> Look<'a> {
    record::look(&bytes[offset.min(bytes.len())..], header, offset as u64)
}

/// Whether the header of a frame of this segment lies behind a place at which none is good.
fn has_frame_behind(bytes: &[u8], header: &SegmentHeader, offset: usize) -> bool {
    let behind = (offset + BLOCK_BYTES..bytes.len()).step_by(BLOCK_BYTES);
    behind.into_iter().any(|offset| look(bytes, header, offset) != Look::NoFrame)
}
