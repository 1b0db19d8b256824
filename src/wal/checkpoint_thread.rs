//! Moves durable groups from the log into the checkpoint, on a thread of its own, since redb blocks.
//!
//! It polls a queue and sleeps, so that whoever feeds it meets no lock and wakes nobody. It commits seldom: each commit
//! writes the path to the end of the tree and redb's own notes again, and what it has not moved yet costs nothing but a
//! longer replay. It keeps to a [`Pace`](super::checkpoint_pace::Pace), which spares the disk and the core.
//!
//! A full disk stops it and nothing else: what it could not write stays in the log. It gives up the reserve file, which
//! lets deletes and compactions arrive in the checkpoint and free space there; with space back it makes the reserve anew.
//!
//! [`Mover`] is the work without the thread, so that tests run it step by step.

use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::mpsc::{Receiver, Sender, TryRecvError};
use std::thread::{JoinHandle, Thread};
use std::time::{Duration, Instant};

use crate::shard::clock;
use crate::types::ChangeId;

use super::Progress;
use super::checkpoint::{Checkpoint, Gathered};
use super::checkpoint_backend::CheckpointError;
use super::disk::{Disk, DiskFile};
use super::meter::Meter;

/// Space that is kept for redb's next commit on a full disk.
pub const RESERVE_NAME: &str = "reserve";
/// A commit of deletes writes the pages that they touch: 16 MiB are 4,000 of them.
pub const RESERVE_BYTES: u64 = 16 << 20;

/// A commit is due when the log holds this much behind the checkpoint: two segments, 0.2 s of replay.
const COMMIT_BYTES: usize = 32 << 20;
/// Or this part of what the disks of data and log have free: the log must not fill a small one before it begins.
const COMMITS_IN_ROOM: u64 = 16;
/// Or when the oldest of it has waited for so long: a quiet server has a short replay as well.
const COMMIT_AFTER: Duration = Duration::from_secs(10);
/// The same while puts are refused for want of memory: up to [`COMMIT_BYTES`] of what was put and compacted away are held here.
const COMMIT_AFTER_SHORT: Duration = Duration::from_secs(1);
/// Rows are forgotten when they are this share of all rows, so that most pages that a commit writes anew have several of
/// them: forgotten one by one, each would cost a page of 4 KiB. A start passes over those that are still there.
const FORGET_SHARE: u64 = 2;
const FORGET_MIN: u64 = 10_000;
/// And at the latest when so many are waiting: 16 MB of names.
const FORGET_MAX: u64 = 1_000_000;
/// What a commit may write a second while the log keeps up with a disk of its own class.
const WRITE_BYTES_PER_SECOND: u64 = 32 << 20;
/// Behind by several commits, several times as much; behind by so many, the pace is the disk's: memory must not grow with the
/// distance.
const COMMITS_BEHIND: usize = 16;
/// The same where a commit is as small as it is for want of room.
const COMMITS_BEHIND_SHORT: usize = 2;
/// Rows are forgotten until the log is this part of that ahead.
const FAR_PER_FORGETTING: usize = 4;

const POLL: Duration = Duration::from_millis(100);
/// The log or writes wait.
const POLL_AWAITED: Duration = Duration::from_millis(10);
/// Nothing is under way: two wakes a second.
const IDLE_POLL: Duration = Duration::from_millis(500);
const RETRY: Duration = Duration::from_secs(1);
/// A defragmentation waits for room through so many attempts: the log gives back what it keeps ready a little later.
const DEFRAGMENT_TRIES: u32 = 5;

/// 20 MB a second at [`POLL`], in rows of some 300 bytes.
const SCRUB_BYTES_PER_POLL: u64 = 2_000_000;
const SCRUB_ROWS: usize = 1_000;

/// What the thread shares with the others.
#[derive(Clone, Debug)]
pub struct Checkpointed {
    /// The last position that the checkpoint holds: segments of the log up to it are free.
    pub position: Arc<AtomicU64>,
    /// The checkpoint could not be written for want of space.
    pub is_short_of_space: Arc<AtomicBool>,
    /// The process has no memory for further puts.
    pub is_short_of_memory: Arc<AtomicBool>,
    /// The log has no place to go on, or writes none, before the checkpoint has taken some of what is in the log.
    pub is_awaited: Arc<AtomicBool>,
    /// For whoever wants to know how it stands.
    pub meter: Arc<Meter>,
}

/// When to come again.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Next {
    After(Duration),
    Over,
}

pub struct Mover<D: Disk> {
    disk: Arc<D>,
    /// The disk of the log.
    wal: Arc<D>,
    checkpoint: Checkpoint<D>,
    progress: Receiver<Progress>,
    checkpointed: Checkpointed,
    gathered: Gathered,
    /// As much behind the checkpoint makes a commit due, by what data and log had free at the last look.
    commit_bytes: usize,
    /// When the oldest group that is not written yet came.
    since: Option<Instant>,
    retry_at: Option<Instant>,
    /// Attempts since one last got anywhere.
    tries: u32,
    defragment: Vec<Sender<Result<(), String>>>,
    /// Somebody was answered in this step, and sleeps.
    has_answered: bool,
    is_stopping: bool,
    has_reserve: bool,
    /// When a reserve that could not be made is tried again.
    reserve_at: Instant,
    scrub_interval: Option<Duration>,
    /// When the next scrub begins.
    scrub_at: Option<Instant>,
    scrub: Option<Scrub>,
    write_bytes_per_second: u64,
    #[cfg(test)]
    pub(crate) planted: Planted,
}

/// Bugs that the simulator must find.
#[cfg(test)]
#[derive(Clone, Copy, Default)]
pub(crate) struct Planted {
    /// The log may give up what was gathered and is not committed.
    pub frees_before_commit: bool,
}

struct Scrub {
    cursor: Option<ChangeId>,
    begun: Instant,
    bytes: u64,
}

impl<D: Disk> Mover<D> {
    /// `gathered` is what recovery found behind the checkpoint, and rows that nothing needs. Every `scrub_interval`, the whole
    /// file is read.
    pub fn new(
        (disk, wal): (Arc<D>, Arc<D>),
        checkpoint: Checkpoint<D>,
        gathered: Gathered,
        progress: Receiver<Progress>,
        scrub_interval: Option<Duration>,
        now: Instant,
    ) -> Mover<D> {
        let meter = Meter::new(checkpoint.syncs(), clock::wall());
        meter.checkpoint_lacks(gathered.bytes());
        let checkpointed = Checkpointed {
            position: Arc::default(),
            is_short_of_space: Arc::default(),
            is_short_of_memory: Arc::default(),
            is_awaited: Arc::default(),
            meter: Arc::new(meter),
        };
        checkpointed.position.store(checkpoint.meta().position.0, Ordering::Release);
        let mut mover = Mover {
            disk,
            wal,
            checkpoint,
            progress,
            checkpointed,
            gathered,
            commit_bytes: COMMIT_BYTES,
            since: None,
            retry_at: None,
            tries: 0,
            defragment: Vec::new(),
            has_answered: false,
            is_stopping: false,
            has_reserve: false,
            reserve_at: now,
            scrub_interval,
            scrub_at: scrub_interval.map(|interval| now + interval),
            scrub: None,
            write_bytes_per_second: WRITE_BYTES_PER_SECOND,
            #[cfg(test)]
            planted: Planted::default(),
        };
        mover.ensure_reserve();
        mover
    }

    /// Commits in pieces as ever and never sleeps between them.
    #[cfg(test)]
    pub(crate) fn without_sleep(self) -> Mover<D> {
        Mover { write_bytes_per_second: u64::MAX, ..self }
    }

    pub fn checkpointed(&self) -> Checkpointed {
        self.checkpointed.clone()
    }

    /// One turn.
    ///
    /// # Errors
    /// When the disk failed: what it holds is open, and the process must end.
    pub fn step(&mut self, now: Instant) -> Result<Next, CheckpointError> {
        self.receive(now);
        self.checkpoint.pace().set(self.pace());
        let is_waiting = self.retry_at.is_some_and(|at| now < at) && !self.is_stopping;
        if !is_waiting && self.is_due(now) {
            self.commit(now)?;
            // Rows may have been forgotten meanwhile, and with the request to stop or to defragment more may have come.
            let is_asked = self.is_stopping || !self.defragment.is_empty();
            let has_more = self.gathered.has_groups() || (!self.is_stopping && self.gathered.removed() > 0);
            if is_asked && has_more && self.retry_at.is_none() {
                self.commit(now)?;
            }
        }
        if self.retry_at.is_none() && !self.defragment.is_empty() {
            self.defragment()?;
        }
        if self.is_stopping {
            return Ok(Next::Over);
        }
        // A reserve that is made anew before the commit has succeeded would take the space it was given up for.
        if !self.has_reserve && self.retry_at.is_none() && now >= self.reserve_at {
            self.reserve_at = now + RETRY;
            self.ensure_reserve();
        }
        Ok(Next::After(match (self.retry_at, self.since) {
            (Some(_), _) => RETRY,
            (None, Some(_)) if self.is_awaited() => POLL_AWAITED,
            (None, Some(_)) => self.scrub(now).min(POLL),
            (None, None) => self.scrub(now),
        }))
    }

    fn receive(&mut self, now: Instant) {
        loop {
            match self.progress.try_recv() {
                Ok(Progress::Defragment(reply)) => self.defragment.push(reply),
                Ok(Progress::Stop) | Err(TryRecvError::Disconnected) => self.is_stopping = true,
                Ok(Progress::Durable { position, entries }) => {
                    #[cfg(test)]
                    if self.planted.frees_before_commit {
                        self.checkpointed.position.store(position.0, Ordering::Release);
                    }
                    self.gathered.add(position, entries);
                }
                Ok(Progress::Removed(ids)) => self.gathered.remove(ids),
                Err(TryRecvError::Empty) => break,
            }
            if self.is_stopping {
                break;
            }
        }
        if self.gathered.has_groups() {
            self.since.get_or_insert(now);
            // A disk that does not say what it has free is taken for a large one.
            let free = [&self.disk, &self.wal].map(|disk| disk.free_bytes().unwrap_or(u64::MAX));
            let part = free[0].min(free[1]) / COMMITS_IN_ROOM;
            self.commit_bytes = usize::try_from(part).map_or(COMMIT_BYTES, |part| part.min(COMMIT_BYTES));
            self.checkpointed.meter.checkpoint_lacks(self.gathered.bytes());
        }
    }

    fn is_due(&self, now: Instant) -> bool {
        let is_short_of_memory = self.checkpointed.is_short_of_memory.load(Ordering::Relaxed);
        let commit_after = if is_short_of_memory { COMMIT_AFTER_SHORT } else { COMMIT_AFTER };
        let has_waited = self.since.is_some_and(|since| now >= since + commit_after);
        let is_asked = self.is_stopping || !self.defragment.is_empty() || self.retry_at.is_some() || self.is_awaited();
        // Rows may be waiting to be forgotten without any group behind them: a commit by the clock leaves few of them alone.
        let has_removed = self.gathered.removed() > 0 && (!self.defragment.is_empty() || self.retry_at.is_some());
        (self.gathered.has_groups() && (has_waited || is_asked || self.gathered.bytes() >= self.commit_bytes))
            || has_removed
            || self.gathered.removed() as u64 >= FORGET_MAX
    }

    fn commit(&mut self, now: Instant) -> Result<(), CheckpointError> {
        let before = self.checkpoint.meta().position;
        let mut result = self.write(now);
        // A reserve that cannot be removed either changes nothing: the next attempt comes anyway.
        if let Err(CheckpointError::Full(_)) = &result
            && self.has_reserve
            && self.disk.remove(RESERVE_NAME).is_ok()
        {
            self.has_reserve = false;
            self.reserve_at = now + RETRY;
            result = self.write(now);
        }
        match result {
            Ok(()) => {
                (self.retry_at, self.tries) = (None, 0);
                // What came meanwhile waits from here on.
                self.since = self.gathered.has_groups().then_some(now);
                self.checkpointed.meter.checkpointed(clock::wall(), self.gathered.bytes());
                Ok(())
            }
            Err(CheckpointError::Full(error)) => {
                self.is_full(&error, now);
                self.tries = if self.checkpoint.meta().position > before { 0 } else { self.tries + 1 };
                if self.tries >= DEFRAGMENT_TRIES {
                    self.answer_defragment(&Err(error.to_string()));
                }
                Ok(())
            }
            Err(error) => Err(error),
        }
    }

    /// Writes what is gathered by now, piece by piece, and forgets what was removed by now, as far as the log lets it. What comes meanwhile counts for the
    /// pace and waits for the next commit, unless somebody waits for it.
    fn write(&mut self, now: Instant) -> Result<(), CheckpointError> {
        let (mut upto, mut removed, mut asked) = (None, 0, None);
        loop {
            if asked != Some(self.defragment.len()) || self.is_stopping {
                asked = Some(self.defragment.len());
                // A row is forgotten behind the compaction that says so, and behind its own group.
                (upto, removed) = (self.gathered.last_position(), self.gathered.removed());
            }
            if upto.is_none_or(|upto| self.checkpoint.meta().position >= upto) {
                break;
            }
            self.checkpoint.pace().set(self.pace());
            let written = self.checkpoint.commit_piece(&mut self.gathered);
            // Also when the disk has no room for the rest: what it took frees segments of the log, and these make room.
            self.checkpointed.position.store(self.checkpoint.meta().position.0, Ordering::Release);
            written?;
            self.receive(now);
        }
        let share = self.checkpoint.meta().rows / FORGET_SHARE;
        let is_worth_it = removed as u64 >= share.clamp(FORGET_MIN, FORGET_MAX) && !self.is_stopping;
        if is_worth_it || !self.defragment.is_empty() || !self.has_reserve {
            self.forget(removed, now)?;
        }
        Ok(())
    }

    /// Takes out the rows that were removed first, so many of them. What comes meanwhile is waiting: once that is much, the rest
    /// of the rows waits for the next commit, unless there are too many or too little room for them.
    fn forget(&mut self, rows: usize, now: Instant) -> Result<(), CheckpointError> {
        self.gathered.sort_removed(rows, self.checkpoint.pace());
        let (mut done, mut result) = (0, Ok(()));
        while done < rows && result.is_ok() {
            self.checkpoint.pace().set(self.pace());
            result = self.checkpoint.forget(&self.gathered, done, rows).map(|upto| done = upto);
            self.receive(now);
            let is_asked = !self.defragment.is_empty() || !self.has_reserve;
            let are_too_many = self.gathered.removed() as u64 >= FORGET_MAX || self.commit_bytes < COMMIT_BYTES;
            let is_far_behind = self.behind() >= COMMITS_BEHIND / FAR_PER_FORGETTING;
            if self.is_stopping || (is_far_behind && !is_asked && !are_too_many) {
                break;
            }
        }
        self.gathered.forgot(done);
        result
    }

    fn is_awaited(&self) -> bool {
        self.checkpointed.is_awaited.load(Ordering::Relaxed)
    }

    /// What may be written a second; 0 is as fast as the disk. It grows with the distance to the log: a burst that would fill
    /// the disk with log first meets a checkpoint that hurries, and so does whoever waits for a defragmentation.
    fn pace(&self) -> u64 {
        let behind = self.behind();
        if self.is_stopping || self.is_awaited() || behind >= self.far_behind() {
            return 0;
        }
        let hurry = if self.defragment.is_empty() { behind.max(1) as u64 } else { COMMITS_BEHIND as u64 };
        self.write_bytes_per_second.saturating_mul(hurry)
    }

    /// How many commits the log is ahead.
    fn behind(&self) -> usize {
        self.gathered.bytes() / self.commit_bytes.max(1)
    }

    /// As many are far.
    fn far_behind(&self) -> usize {
        if self.commit_bytes < COMMIT_BYTES { COMMITS_BEHIND_SHORT } else { COMMITS_BEHIND }
    }

    fn answer_defragment(&mut self, result: &Result<(), String>) {
        for reply in self.defragment.drain(..) {
            // Whoever asked may have gone.
            let _ = reply.send(result.clone());
            self.has_answered = true;
        }
    }

    fn is_full(&mut self, error: &io::Error, now: Instant) {
        if !self.checkpointed.is_short_of_space.swap(true, Ordering::AcqRel) {
            tracing::warn!(%error, "the disk is full: the checkpoint waits for space, and the log keeps what it lacks");
        }
        self.retry_at = Some(now + RETRY);
    }

    /// Makes the reserve when it is not there. Only with it the checkpoint has space again.
    fn ensure_reserve(&mut self) {
        let made = (|| {
            let file = match self.disk.open(RESERVE_NAME) {
                Ok(file) => file,
                Err(error) if error.kind() == io::ErrorKind::NotFound => self.disk.create(RESERVE_NAME)?,
                Err(error) => return Err(error),
            };
            file.allocate(RESERVE_BYTES)?;
            file.sync_data()
        })();
        self.has_reserve = made.is_ok();
        if self.has_reserve {
            if self.checkpointed.is_short_of_space.swap(false, Ordering::AcqRel) {
                tracing::info!("the disk has space again");
            }
        } else {
            if let Err(error) = made
                && !self.checkpointed.is_short_of_space.swap(true, Ordering::AcqRel)
            {
                tracing::warn!(%error, "the disk has no room for the checkpoint's reserve: puts are refused until it has");
            }
            // What a failed attempt took goes back to those who need it now.
            let _ = self.disk.remove(RESERVE_NAME);
        }
    }

    fn defragment(&mut self) -> Result<(), CheckpointError> {
        // Somebody waits: etcdctl for 5 s.
        self.checkpoint.pace().set(0);
        let result = self.checkpoint.compact();
        self.answer_defragment(&result.as_ref().copied().map_err(CheckpointError::to_string));
        match result {
            Err(CheckpointError::Full(_)) | Ok(()) => Ok(()),
            Err(error) => Err(error),
        }
    }

    /// Reads a little of the file, to find bits that rotted before a start needs them. Damage raises no alarm: what is served
    /// comes from memory and is right, and an alarm would refuse the writes that are right as well. It is told in the log
    /// and counted, again with each reading, until somebody has seen to it.
    fn scrub(&mut self, now: Instant) -> Duration {
        // A file that was closed over an error is opened again by the next commit.
        if !self.checkpoint.is_open() || (self.scrub.is_none() && self.scrub_at.is_none_or(|at| now < at)) {
            return IDLE_POLL;
        }
        let scrub = self.scrub.get_or_insert_with(|| {
            tracing::info!(rows = self.checkpoint.meta().rows, "begin to read the whole checkpoint");
            Scrub { cursor: None, begun: now, bytes: 0 }
        });
        let mut bytes = 0;
        while bytes < SCRUB_BYTES_PER_POLL {
            let read = self.checkpoint.scrub(&mut scrub.cursor, SCRUB_ROWS);
            // Behind the last row come the leases, in one piece.
            let read = read.and_then(|read| match scrub.cursor {
                Some(_) => Ok(read),
                None => self.checkpoint.leases().map(|_| read),
            });
            match read {
                Ok(read) => {
                    bytes += read;
                    scrub.bytes += read;
                    if scrub.cursor.is_none() {
                        let milliseconds = (now - scrub.begun).as_millis() as u64;
                        tracing::info!(bytes = scrub.bytes, milliseconds, "the whole checkpoint is what was written");
                        self.checkpointed.meter.scrubbed(true);
                    }
                }
                Err(error) => {
                    tracing::error!(
                        "{error}; what is served is right, but the next start will refuse the file: copy the keys to another server before it (etcdctl make-mirror)"
                    );
                    scrub.cursor = None;
                    if let CheckpointError::Disk(_) = error {
                        self.checkpoint.close();
                    }
                    self.checkpointed.meter.scrubbed(false);
                }
            }
            if scrub.cursor.is_none() {
                self.scrub = None;
                self.scrub_at = self.scrub_interval.map(|interval| now + interval);
                break;
            }
        }
        POLL
    }
}

/// Wakes the thread before it would look by itself: behind a request to stop or to defragment, and when the log waits for it.
#[derive(Clone, Debug)]
pub struct CheckpointHandle(Thread);

impl CheckpointHandle {
    pub fn wake(&self) {
        self.0.unpark();
    }
}

/// The thread, for whoever sees to its end.
#[derive(Debug)]
pub struct CheckpointThread(JoinHandle<()>);

impl CheckpointThread {
    pub fn handle(&self) -> CheckpointHandle {
        CheckpointHandle(self.0.thread().clone())
    }

    /// Waits for the end of the thread, which a [`Progress::Stop`] brings about.
    pub fn join(self) {
        self.handle().wake();
        self.0.join().expect("a panic of ours stops the process");
    }
}

/// Starts the thread. `answered` wakes whoever asked for a defragmentation. `broken` hears when the disk failed; it must end
/// the process.
///
/// # Errors
/// When the system gives no thread.
pub fn spawn<D: Disk>(
    mut mover: Mover<D>,
    answered: Box<dyn Fn() + Send>,
    broken: Box<dyn Fn(&CheckpointError) + Send>,
) -> io::Result<CheckpointThread> {
    let run = move || {
        // On Linux a priority belongs to the thread. Without the right to change it, it only competes more.
        let _ = rustix::process::setpriority_process(None, 10);
        loop {
            let stepped = mover.step(clock::now());
            if std::mem::take(&mut mover.has_answered) {
                answered();
            }
            match stepped {
                Ok(Next::After(pause)) => std::thread::park_timeout(pause),
                Ok(Next::Over) => return,
                Err(error) => return broken(&error),
            }
        }
    };
    let thread = std::thread::Builder::new().name("checkpoint".to_owned()).spawn(run)?;
    Ok(CheckpointThread(thread))
}

#[cfg(test)]
mod tests;
