//! The files of the log: makes the next segment ready before it is needed, and gives up those that the checkpoint covers.
//!
//! A thread of its own does this, since it blocks; the ring thread takes open segments out of a queue and names closed ones
//! in another, without a lock. [`Keeper`] is the work without the thread, so that tests run it step by step.
//!
//! A segment is made under the name of a spare: filled with zeros, so that a sync of the log later changes no metadata, its
//! header written, synced, renamed, and the directory synced. So a file with the name of a segment has a whole header
//! whenever the power goes, and segments appear in the order of their numbers. One that is given up first gets the name of
//! a spare again, and that is synced before the next one goes or anything is written to it: those that are left are always
//! without a gap.
//!
//! One segment lies ready beyond the one in use. The next one is not made where the checkpoint would lack the room to take
//! what the log holds, the segment in use included: then neither could ever give way to the other. While
//! the checkpoint has something to take, the log waits for it, and the checkpoint is told to hurry. Where it has not, or no
//! file can be made, the disk is full, and what is left of the segment in use lets deletes and compactions through: the
//! writer is told once half of it is used.
//!
//! A commit of the checkpoint frees many segments at once, and until the next commit the log takes as many again. So as many
//! spares are kept as the log filled between the last two commits: filling a new file with zeros would write everything
//! twice. A disk with little room, and a log at rest, keep two.

use std::collections::VecDeque;
use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use rustix::io::Errno;

use crate::types::Position;
use crate::wal::disk::{Disk, DiskFile, SegmentDisk};
use crate::wal::is_refusal;
use crate::wal::newest::Newest;
use crate::wal::record::{BLOCK_BYTES, SegmentHeader};

/// The length of a segment, unless the disk is small: 16 MiB, some 0.1 s of the fastest log, so that what is held beyond need
/// stays small.
const SEGMENT_BLOCKS: u32 = 4_096;
/// And at the least: 1 MiB.
const SEGMENT_BLOCKS_MIN: u32 = 256;
/// A segment is no longer than this part of the room that a new log finds: two of them, and room for what they hold in the
/// checkpoint, are to leave most of a small disk to the rows.
const SEGMENTS_IN_ROOM: u64 = 32;
/// A row takes up to so many times the room in the checkpoint that it takes in the log: one of a little more than a page takes two.
const CHECKPOINT_SHARE: u64 = 2;
/// Spares kept for the next segments, whatever the log does.
const SPARES_MIN: usize = 2;
/// More are kept only while the file system has room for so many segments: 1 GiB.
const ROOM_SEGMENTS: u64 = 64;
/// With room for so many the disk is not taken for full any more in the log of the server.
const PLENTY_SEGMENTS: u64 = 4;
/// Looks, one each [`RETRY`] while nobody waits, at a log that takes no segment until one of the spares beyond [`SPARES_MIN`] goes: a minute.
const LOOKS_PER_SPARE: u32 = 60;
/// How often a full disk is tried again, and how often the checkpoint is looked at while segments wait for it.
const RETRY: Duration = Duration::from_secs(1);
/// The same while the log waits for a segment, or writes for room.
const RETRY_AWAITED: Duration = Duration::from_millis(10);

/// The length of the segments of a new log.
pub fn segment_blocks(free_bytes: u64) -> u32 {
    let blocks = free_bytes / SEGMENTS_IN_ROOM / BLOCK_BYTES as u64;
    blocks.clamp(SEGMENT_BLOCKS_MIN.into(), SEGMENT_BLOCKS.into()) as u32
}

/// What a new log takes: the segment in use, the one that lies ready, and room for what the first holds in the checkpoint.
pub fn first_bytes(free_bytes: u64) -> u64 {
    (2 + CHECKPOINT_SHARE) * u64::from(segment_blocks(free_bytes)) * BLOCK_BYTES as u64
}

pub fn segment_name(sequence: u64) -> String {
    format!("{sequence:016x}.wal")
}

/// The sequence that the name of a segment says.
pub fn sequence_of(name: &str) -> Option<u64> {
    let digits = name.strip_suffix(".wal").filter(|digits| digits.len() == 16)?;
    u64::from_str_radix(digits, 16).ok().filter(|&sequence| segment_name(sequence) == name)
}

fn spare_name(number: u64) -> String {
    format!("{number:016x}.spare")
}

pub fn is_spare(name: &str) -> bool {
    name.len() == 22 && name.ends_with(".spare")
}

/// A kill takes the process at once, and the write that its log had in flight goes on. Nothing is read before that is over:
/// the log would go on where it lands.
pub fn await_earlier_writes<D: Disk>(wal: &D) -> io::Result<()> {
    let names = wal.names()?.into_iter().filter(|name| sequence_of(name).is_some() || is_spare(name));
    for name in names {
        match wal.open(&name)?.await_earlier_writes() {
            // It has waited, and then found no room for a hole that a copy of the directory has, or a disk that takes no writes.
            Err(error) if is_refusal(&error) => {}
            awaited => awaited?,
        }
    }
    Ok(())
}

mod supply;

use supply::{Resumed, Shared};

pub use supply::Supply;

/// A segment that holds no frame yet, open.
#[derive(Debug)]
pub struct Ready<S> {
    pub header: SegmentHeader,
    pub segment: S,
}

/// A segment that gets no more frames, and the last group that has a piece in it.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Closed {
    pub sequence: u64,
    pub last: Position,
}

/// Where the log goes on after a start.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Resume {
    pub cluster_id: u64,
    /// The length of the segments that are made from now on.
    pub blocks: u32,
    pub closed: Vec<Closed>,
    /// The segment with the last frame, and the offset behind it.
    pub current: Option<(SegmentHeader, u64)>,
    /// Segments without a frame, in order.
    pub prepared: Vec<SegmentHeader>,
    pub next_sequence: u64,
    pub chain: u32,
    /// The last whole group.
    pub last: Position,
}

/// What a step did.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Step {
    /// A segment is ready that the log may be waiting for.
    Prepared,
    /// Nothing is to be done before the log takes a segment or the checkpoint moves.
    Idle,
    /// The next segment is made once the checkpoint has taken more of what the log holds.
    Awaiting,
    /// The disk is full, or there is no descriptor; the same again later.
    ShortOfSpace,
    /// The log is gone.
    Over,
}

/// The process or the system has no descriptor for one more file: the call did nothing, and may be tried again.
fn is_out_of_descriptors(error: &io::Error) -> bool {
    [Errno::MFILE, Errno::NFILE].iter().any(|errno| error.raw_os_error() == Some(errno.raw_os_error()))
}

/// Which closed segments may go, oldest first: those of which everything is in the checkpoint.
fn given_up(closed: &VecDeque<Closed>, checkpointed: Position) -> usize {
    closed.iter().take_while(|closed| closed.last <= checkpointed).count()
}

/// The work of the thread.
pub struct Keeper<D: SegmentDisk> {
    disk: Arc<D>,
    cluster_id: u64,
    blocks: u32,
    closed: VecDeque<Closed>,
    /// Segments that recovery found without a frame; they go out first.
    prepared: VecDeque<SegmentHeader>,
    spares: Vec<Spare>,
    /// Spares worth keeping: the segments that were closed between the last two times that some were given up.
    spares_wanted: usize,
    /// How often a log that took no segment was looked at since it took one.
    looks: u32,
    next_sequence: u64,
    /// The last that was given up, or the one before the first.
    given_up: u64,
    next_spare: u64,
    newly_closed: rtrb::Consumer<Closed>,
    ready: rtrb::Producer<Ready<D::Segment>>,
    shared: Arc<Shared>,
    checkpointed: Arc<AtomicU64>,
    salt: Box<dyn FnMut() -> u64 + Send>,
    newest: Newest<D>,
    /// The checkpoint is told here that it is awaited, and woken.
    is_awaiting: Arc<AtomicBool>,
    wake_checkpoint: Box<dyn Fn() + Send>,
    /// A call failed over a disk that has become read-only: the files are left as they are until the next start.
    has_turned_read_only: bool,
    has_told_of_descriptors: bool,
    has_told_of_space: bool,
}

struct Spare {
    name: String,
    /// Every block of it has been written.
    is_filled: bool,
}

/// Opens what recovery found and makes the two ends. `newest` is told of each segment; `checkpointed` is the last position
/// that the checkpoint holds; `salt` draws random numbers.
///
/// # Errors
/// When a file that recovery just read cannot be opened, or the newest one not be noted.
pub fn open<D: SegmentDisk>(
    disk: Arc<D>,
    mut newest: Newest<D>,
    resume: Resume,
    checkpointed: Arc<AtomicU64>,
    salt: Box<dyn FnMut() -> u64 + Send>,
) -> io::Result<(Keeper<D>, Supply<D::Segment>)> {
    // Recovery has made the names durable, and a power cut may have come before the last of them was noted.
    match newest.note(resume.next_sequence.wrapping_sub(1)) {
        // The thread tries again, and makes no further segment before.
        Err(error) if is_refusal(&error) => {}
        noted => noted?,
    }
    let is_beside_data = disk.file_system()? == newest.disk().file_system()?;
    let (to_log, ready) = rtrb::RingBuffer::new(1);
    let (closed, newly_closed) = rtrb::RingBuffer::new(64);
    let shared = Arc::new(Shared::new(resume.last, is_beside_data));
    let current = match resume.current {
        Some((header, offset)) => {
            let segment = disk.open_segment(&segment_name(header.sequence))?;
            Some((Ready { header, segment }, offset))
        }
        None => None,
    };
    let names: Vec<String> = disk.names()?.into_iter().filter(|name| is_spare(name)).collect();
    let next_spare = names.iter().filter_map(|name| u64::from_str_radix(&name[..16], 16).ok()).max();
    let spares = names.into_iter().map(|name| Spare { name, is_filled: false }).collect();
    let supply = Supply {
        ready,
        closed,
        waiting: VecDeque::new(),
        shared: shared.clone(),
        segment_bytes: resume.blocks as usize * BLOCK_BYTES,
        resumed: Some(Resumed { current, chain: resume.chain, last: resume.last }),
    };
    let closed = resume.closed.first().map(|closed| closed.sequence);
    let first = closed.or_else(|| resume.current.map(|(header, _)| header.sequence));
    let first = first.or_else(|| resume.prepared.first().map(|header| header.sequence)).unwrap_or(resume.next_sequence);
    let keeper = Keeper {
        disk,
        cluster_id: resume.cluster_id,
        blocks: resume.blocks,
        given_up: first.wrapping_sub(1),
        closed: resume.closed.into(),
        prepared: resume.prepared.into(),
        spares,
        spares_wanted: SPARES_MIN,
        looks: 0,
        next_sequence: resume.next_sequence,
        next_spare: next_spare.map_or(0, |number| number.wrapping_add(1)),
        newly_closed,
        ready: to_log,
        shared,
        checkpointed,
        salt,
        newest,
        is_awaiting: Arc::default(),
        wake_checkpoint: Box::new(|| {}),
        has_turned_read_only: false,
        has_told_of_descriptors: false,
        has_told_of_space: false,
    };
    keeper.look_at_room()?;
    Ok((keeper, supply))
}

impl<D: SegmentDisk> Keeper<D> {
    /// With the place where the checkpoint is told that the log or writes wait for it, and what wakes it.
    pub fn telling(self, is_awaiting: Arc<AtomicBool>, wake_checkpoint: Box<dyn Fn() + Send>) -> Keeper<D> {
        Keeper { is_awaiting, wake_checkpoint, ..self }
    }

    /// Does what is to be done: gives up one segment, or makes one ready.
    ///
    /// # Errors
    /// When the disk failed: what it holds is open, and the process must end.
    pub fn step(&mut self) -> io::Result<Step> {
        if self.ready.is_abandoned() {
            return Ok(Step::Over);
        }
        let durable = self.shared.durable.load(Ordering::Acquire);
        let step = if self.has_turned_read_only { Ok(Step::ShortOfSpace) } else { self.look_and_step() };
        // Behind all numbers: until then they count for nothing.
        self.shared.looked.store(durable, Ordering::Release);
        step
    }

    fn look_and_step(&mut self) -> io::Result<Step> {
        let stepped = self.try_step();
        // What is not durable yet makes room without it.
        let is_held_up = self.is_held_up() && self.to_be_given_up() > 0;
        let is_awaiting = matches!(stepped, Ok(Step::Awaiting)) || is_held_up;
        if self.is_awaiting.swap(is_awaiting, Ordering::Relaxed) != is_awaiting && is_awaiting {
            (self.wake_checkpoint)();
        }
        if let Err(error) = &stepped
            && is_out_of_descriptors(error)
        {
            // Clients have taken all of them. The log goes on with what is ready, and the disk lacks nothing.
            if !std::mem::replace(&mut self.has_told_of_descriptors, true) {
                tracing::warn!(%error, "a segment of the log waits for a descriptor");
            }
            return Ok(Step::ShortOfSpace);
        }
        let is_short = match &stepped {
            Ok(step) => *step == Step::ShortOfSpace,
            Err(error) => is_refusal(error) || self.look_whether_read_only(),
        };
        self.shared.is_short_of_space.store(is_short, Ordering::Relaxed);
        if is_short && !self.has_told_of_space {
            self.has_told_of_space = true;
            tracing::warn!("the disk has no room for a further segment of the log");
        } else if !is_short
            && self.has_told_of_space
            && self.shared.room_segments(0, self.segment_bytes()) >= PLENTY_SEGMENTS
        {
            self.has_told_of_space = false;
            tracing::info!("the disk has room for the log again");
        }
        if is_short { Ok(Step::ShortOfSpace) } else { stepped }
    }

    /// A file system that turns read-only over an error of its own may answer the call that meets it with another one. What
    /// was told does not depend on that call, and reads go on over such a disk. But what the call left is open, as it is
    /// with every failed call: should the disk take writes again, the next start must look at it first.
    fn look_whether_read_only(&mut self) -> bool {
        let name = self.new_spare_name();
        let changed = self.disk.create(&name).and_then(|_| self.disk.remove(&name));
        self.has_turned_read_only = changed.is_err_and(|error| error.kind() == io::ErrorKind::ReadOnlyFilesystem);
        self.has_turned_read_only
    }

    fn try_step(&mut self) -> io::Result<Step> {
        while let Ok(closed) = self.newly_closed.pop() {
            self.closed.push_back(closed);
        }
        self.look_at_room()?;
        self.newest.note(self.next_sequence.wrapping_sub(1))?;
        let given_up = given_up(&self.closed, Position(self.checkpointed.load(Ordering::Acquire)));
        if given_up > 0 {
            self.spares_wanted = self.closed.len().max(SPARES_MIN);
            let spares_max = self.spares_max()?;
            for _ in 0..given_up {
                self.give_up_first(spares_max)?;
            }
            self.look_at_room()?;
        }
        if self.ready.slots() == 0 {
            self.shed_spare()?;
            return Ok(Step::Idle);
        }
        let header = match self.prepared.front() {
            Some(header) => *header,
            None => {
                self.shed_spare()?;
                let takes_none = self.spares.last().is_some_and(|spare| spare.is_filled);
                let new_bytes = if takes_none { 0 } else { self.segment_bytes() };
                if !self.has_headroom(new_bytes)? {
                    // What the checkpoint can still take turns out to need less room than it may; if not, that says so.
                    return Ok(if self.to_be_given_up() > 0 { Step::Awaiting } else { Step::ShortOfSpace });
                }
                self.prepare()?
            }
        };
        self.looks = 0;
        let segment = self.disk.open_segment(&segment_name(header.sequence))?;
        self.prepared.pop_front();
        // Before the log sees it: else it would count twice.
        let looked = self.look_at_room();
        let pushed = self.ready.push(Ready { header, segment });
        assert!(pushed.is_ok(), "only this side fills the slot");
        looked.map(|()| Step::Prepared)
    }

    /// The oldest goes first, and its name is synced away before the next: those that are left never have a gap.
    fn give_up_first(&mut self, spares_max: usize) -> io::Result<()> {
        let name = segment_name(self.closed[0].sequence);
        if self.spares.len() < spares_max {
            let spare = self.new_spare_name();
            self.disk.rename(&name, &spare)?;
            self.spares.push(Spare { name: spare, is_filled: true });
        } else {
            self.disk.remove(&name)?;
        }
        self.given_up = self.closed.pop_front().expect("the caller has looked").sequence;
        self.disk.sync_names()
    }

    /// On a disk that is all but full the checkpoint has the room of all spares.
    fn spares_max(&self) -> io::Result<usize> {
        let has_room = self.disk.free_bytes()? >= ROOM_SEGMENTS * self.segment_bytes();
        Ok(match has_room {
            true => self.spares_wanted,
            false if self.has_headroom(0)? => SPARES_MIN,
            false => 0,
        })
    }

    fn segment_bytes(&self) -> u64 {
        u64::from(self.blocks) * BLOCK_BYTES as u64
    }

    /// What there is for further segments once the checkpoint has taken what it can: the segments that it gives back, less
    /// the room of their rows and of those in the others, the one that lies ready included. Filled spares and prepared
    /// segments have their own room already.
    fn look_at_room(&self) -> io::Result<()> {
        let segment_bytes = self.segment_bytes();
        let filled = self.spares.iter().filter(|spare| spare.is_filled).count();
        let prepared = self.prepared.len() as u64;
        let to_be_given_up = self.to_be_given_up();
        let own = filled as u64 + prepared + to_be_given_up;
        let log_room = self.disk.free_bytes()?.saturating_add(own * segment_bytes);
        let rows_bytes = CHECKPOINT_SHARE * (self.named() - prepared) * segment_bytes;
        if self.shared.is_beside_data {
            self.shared.log_room.store(log_room.saturating_sub(rows_bytes), Ordering::Relaxed);
        } else {
            let rows_room = self.newest.disk().free_bytes()?.saturating_sub(rows_bytes);
            self.shared.log_room.store(log_room, Ordering::Relaxed);
            self.shared.rows_room.store(rows_room, Ordering::Relaxed);
        }
        self.shared.to_be_given_up.store(to_be_given_up, Ordering::Release);
        Ok(())
    }

    /// Closed segments that the checkpoint can take whatever comes behind them.
    pub(crate) fn to_be_given_up(&self) -> u64 {
        given_up(&self.closed, Position(self.shared.durable.load(Ordering::Acquire))) as u64
    }

    /// What the rows of the log may take where the checkpoint is.
    fn held_rows_bytes(&self) -> u64 {
        CHECKPOINT_SHARE * self.held() * self.segment_bytes()
    }

    fn is_held_up(&self) -> bool {
        self.shared.is_held_up.load(Ordering::Relaxed)
    }

    /// Whether a file of so many bytes leaves the checkpoint the room to take what the log holds.
    fn has_headroom(&self, new_bytes: u64) -> io::Result<bool> {
        let held_bytes = self.held_rows_bytes();
        Ok(if self.shared.is_beside_data {
            self.disk.free_bytes()? >= new_bytes.saturating_add(held_bytes)
        } else {
            self.disk.free_bytes()? >= new_bytes && self.newest.disk().free_bytes()? >= held_bytes
        })
    }

    /// Segments that have frames and are not given up. The log names a segment closed only once its successor has a durable
    /// frame, so that those named are not all of them.
    fn held(&self) -> u64 {
        let not_taken = self.prepared.len() as u64 + u64::from(self.ready.slots() == 0);
        self.named() - not_taken
    }

    /// Segments that are not given up, with frames or without.
    fn named(&self) -> u64 {
        self.next_sequence.wrapping_sub(1).wrapping_sub(self.given_up)
    }

    /// Removes one spare when the disk has no room for it or the log rests.
    fn shed_spare(&mut self) -> io::Result<()> {
        if self.spares.is_empty() {
            return Ok(());
        }
        self.looks += 1;
        if self.looks >= LOOKS_PER_SPARE && self.spares.len() > SPARES_MIN {
            self.looks = 0;
            self.spares_wanted = self.spares.len() - 1;
        }
        while self.spares.len() > self.spares_max()? {
            self.disk.remove(&self.spares[0].name)?;
            self.spares.remove(0);
        }
        Ok(())
    }

    fn new_spare_name(&mut self) -> String {
        self.next_spare = self.next_spare.wrapping_add(1);
        spare_name(self.next_spare)
    }

    /// Makes a segment out of a spare, or out of a new file.
    fn prepare(&mut self) -> io::Result<SegmentHeader> {
        if self.spares.is_empty() {
            let name = self.new_spare_name();
            self.disk.create(&name)?;
            self.spares.push(Spare { name, is_filled: false });
        }
        let sequence = self.next_sequence;
        let header = SegmentHeader { cluster_id: self.cluster_id, sequence, salt: (self.salt)(), blocks: self.blocks };
        let spare = self.spares.last_mut().expect("one was made if there was none");
        let file = self.disk.open(&spare.name)?;
        if !spare.is_filled {
            fill(&file, header.bytes())?;
            spare.is_filled = true;
        }
        file.write_at(0, &header.encode())?;
        file.sync_data()?;
        self.disk.rename(&spare.name, &segment_name(sequence))?;
        self.spares.pop();
        // The name is in use from here on, whatever becomes of the sync.
        self.next_sequence += 1;
        self.disk.sync_names()?;
        self.prepared.push_back(header);
        self.newest.note(sequence)?;
        Ok(header)
    }
}

/// Writes zeros over the whole file. Reserving its blocks is not enough: the first write to a reserved block changes
/// metadata, which the sync behind it would have to wait for.
fn fill<F: DiskFile>(file: &F, bytes: u64) -> io::Result<()> {
    if file.len()? != bytes {
        file.set_len(bytes)?;
    }
    file.allocate(bytes)?;
    let zeros = vec![0; 256 << 10];
    let mut offset = 0;
    while offset < bytes {
        let length = (bytes - offset).min(zeros.len() as u64);
        file.write_at(offset, &zeros[..length as usize])?;
        offset += length;
        // A shard may share this core, and would else wait behind whole slices of the scheduler, 4 ms each.
        std::thread::yield_now();
    }
    file.sync_data()
}

/// Wakes the thread, so that it looks at the checkpoint now.
#[derive(Clone, Debug)]
pub struct SegmentsHandle(Arc<Shared>);

impl SegmentsHandle {
    /// Of a keeper without a thread.
    #[cfg(test)]
    pub(crate) fn of<D: SegmentDisk>(keeper: &Keeper<D>) -> SegmentsHandle {
        SegmentsHandle(keeper.shared.clone())
    }

    pub fn wake(&self) {
        self.0.wake();
    }
}

/// Starts the thread. `wake` tells the log's thread that a segment is ready, or that there is no space for one. `broken`
/// hears when the disk failed; it must end the process. The thread ends when the log is dropped.
///
/// # Errors
/// When the system gives no thread.
pub fn spawn<D: SegmentDisk>(
    mut keeper: Keeper<D>,
    wake: Box<dyn Fn() + Send>,
    broken: Box<dyn Fn(&io::Error) + Send>,
) -> io::Result<SegmentsHandle> {
    let shared = keeper.shared.clone();
    let run = move || {
        let set = keeper.shared.thread.set(std::thread::current());
        assert!(set.is_ok(), "a keeper has one thread");
        loop {
            match keeper.step() {
                Ok(Step::Prepared) => wake(),
                Ok(Step::Idle | Step::Awaiting) if keeper.is_held_up() => {
                    wake();
                    std::thread::park_timeout(RETRY_AWAITED);
                }
                // A flag that rises is news for the writer.
                Ok(Step::ShortOfSpace) => {
                    wake();
                    std::thread::park_timeout(RETRY);
                }
                Ok(Step::Awaiting) => std::thread::park_timeout(RETRY_AWAITED),
                // Others may take the room meanwhile.
                Ok(Step::Idle) => std::thread::park_timeout(RETRY),
                Ok(Step::Over) => return,
                Err(error) => return broken(&error),
            }
        }
    };
    std::thread::Builder::new().name("wal segments".to_owned()).spawn(run)?;
    Ok(SegmentsHandle(shared))
}

#[cfg(test)]
mod tests;
