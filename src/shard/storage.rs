//! The data directory under a running server: read back before any shard starts, written by three threads, closed behind
//! the last shard.
//!
//! Shard 0 writes the log over its ring; a thread keeps segments ready for it; another moves what is durable into the
//! checkpoint. This file puts them together and is all that shard 0's writer sees of them ([`Logged`]).

use std::fmt;
use std::io;
use std::rc::Rc;
use std::sync::atomic::Ordering;
use std::sync::mpsc::{self, Receiver, Sender};
use std::time::{Duration, Instant};

use crate::backend::Identity;
use crate::config::Config;
use crate::lease::Lessor;
use crate::net::ring::Doorbell;
use crate::shard::durability::Durability;
use crate::shard::{clock, memory};
use crate::store::Store;
use crate::store::restore::Restore;
use crate::types::{Alarm, ChangeId, Entry, Lease, LeaseId, Position, Row, StoredLease, Uptime};
use crate::wal::LogFailure;
use crate::wal::Progress;
use crate::wal::checkpoint_rows::Meta;
use crate::wal::checkpoint_thread::{self, CheckpointHandle, CheckpointThread, Checkpointed, Mover};
use crate::wal::claim::{self, Claimed};
use crate::wal::disk::Disk;
use crate::wal::file_disk;
use crate::wal::log::{Device, Log};
use crate::wal::newest::Newest;
use crate::wal::recovery::{self, Files, Rebuild, Recovered, Refused, Stage};
use crate::wal::ring_device::RingDevice;
use crate::wal::segments::{self, SegmentsHandle, Supply};
use crate::wal::{identity, replay::TornTail};

/// A member that never ran before starts its term here, as etcd's first election does; each start adds one.
const TERM_FIRST: u64 = 2;

/// Why there is no data to serve.
#[derive(Debug)]
pub enum StorageError {
    Refused(Refused),
    System(io::Error),
}

impl fmt::Display for StorageError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            StorageError::Refused(refused) => refused.fmt(f),
            StorageError::System(error) => write!(f, "cannot start the threads that keep the data: {error}"),
        }
    }
}

impl From<Refused> for StorageError {
    fn from(refused: Refused) -> StorageError {
        StorageError::Refused(refused)
    }
}

impl From<io::Error> for StorageError {
    fn from(error: io::Error) -> StorageError {
        StorageError::System(error)
    }
}

/// What a server goes on with.
pub struct Opened {
    pub identity: Identity,
    pub storage: Storage,
    pub primed: Primed,
}

/// Shard 0's part, on its way to its thread.
pub struct Primed {
    pub store: Store,
    pub lessor: Lessor,
    /// Where the writer's first group will stand.
    pub next: Position,
    pub term: u64,
    supply: Supply<std::os::fd::OwnedFd>,
    progress: Sender<Progress>,
    pub checkpointed: Checkpointed,
    checkpoint: CheckpointHandle,
    segments: SegmentsHandle,
    disks: Box<dyn Fn() -> String + Send>,
    is_durable: bool,
    write_unit: usize,
}

/// The main thread's part: what outlives the shards.
pub struct Storage {
    /// Holds the lock of the directory.
    _claimed: Claimed,
    progress: Sender<Progress>,
    checkpoint: CheckpointThread,
}

impl Storage {
    /// Behind the last shard: writes what the checkpoint lacks, so that the next start has no log to replay.
    pub fn close(self) {
        // The thread ends early only when the process does.
        let _ = self.progress.send(Progress::Stop);
        self.checkpoint.join();
    }
}

/// Reads the data directory, makes it if there is none, and starts the threads that keep it. `bell` rings shard 0.
///
/// # Errors
/// When the directory cannot be served; one line that says what to do.
pub fn open(config: &Config, bell: &Doorbell) -> Result<Opened, StorageError> {
    let claimed = claim::claim(&config.data_dir, config.wal_dir.as_deref(), identity::Identity::random)?;
    let start = clock::now();
    let lessor = Lessor::new(file_disk::random_salt());
    let Restored { store, lessor, recovered } = restore(&claimed.files, lessor, &mut log_stage)?;
    let Recovered { checkpoint, gathered, meta, resume, torn } = recovered;
    claimed.has_room_for(&resume)?;
    log_recovered(&store, &lessor, &meta, torn.as_ref(), clock::now() - start);
    // What it took to put the store together is not needed again.
    memory::collect();

    let (progress, receiver) = mpsc::channel();
    let files = &claimed.files;
    let mover = Mover::new(
        (files.data.clone(), files.wal.clone()),
        checkpoint,
        gathered,
        receiver,
        config.scrub_interval,
        clock::now(),
    );
    let checkpointed = mover.checkpointed();
    let [answered, has_segment] = [bell.clone(), bell.clone()];
    let answered = Box::new(move || answered.ring());
    let checkpoint = checkpoint_thread::spawn(mover, answered, Box::new(|error| end_process(&error)))?;
    let salt = Box::new(file_disk::random_salt);
    let newest = Newest::open(files.data.clone())?;
    let (keeper, supply) = segments::open(files.wal.clone(), newest, resume, checkpointed.position.clone(), salt)?;
    let awaited = checkpoint.handle();
    let keeper = keeper.telling(checkpointed.is_awaited.clone(), Box::new(move || awaited.wake()));
    let broken =
        |error: &io::Error| end_process(&format_args!("a segment of the log cannot be made or given up: {error}"));
    let segments = segments::spawn(keeper, Box::new(move || has_segment.ring()), Box::new(broken))?;

    let identity::Identity { cluster_id, member_id } = files.identity;
    let term = next_term(&meta);
    Ok(Opened {
        identity: Identity { cluster_id, member_id, raft_term: term },
        primed: Primed {
            store,
            lessor,
            next: meta.position.next(),
            term,
            supply,
            progress: progress.clone(),
            checkpointed,
            checkpoint: checkpoint.handle(),
            segments,
            disks: claimed.free_space(),
            is_durable: config.fsync,
            write_unit: claimed.files.wal.write_unit(),
        },
        storage: Storage { _claimed: claimed, progress, checkpoint },
    })
}

/// A disk has failed. The log has everything that was told; what else the disk holds is known only to the next start.
fn end_process(error: &dyn fmt::Display) {
    tracing::error!(%error, "the process ends");
    std::process::exit(1);
}

/// What the directory holds, put together.
pub(crate) struct Restored<D: Disk> {
    pub store: Store,
    pub lessor: Lessor,
    pub recovered: Recovered<D>,
}

/// Reads it all back. `lessor` is an empty one.
pub(crate) fn restore<D: Disk>(
    files: &Files<D>,
    lessor: Lessor,
    on_stage: &mut dyn FnMut(Stage),
) -> Result<Restored<D>, Refused> {
    let mut rebuilding = Rebuilding::new(lessor);
    let recovered = recovery::recover(files, &mut rebuilding, on_stage)?;
    let store = rebuilding.store.expect("the end of the rows makes the store");
    Ok(Restored { store, lessor: rebuilding.lessor, recovered })
}

pub(crate) fn next_term(meta: &Meta) -> u64 {
    (meta.term + 1).max(TERM_FIRST)
}

fn log_stage(stage: Stage) {
    match stage {
        Stage::Rows { done, total, seconds_left } => {
            tracing::info!(rows = done, of = total, seconds_left, "reading the checkpoint");
        }
        Stage::Log { done, total, seconds_left } => {
            tracing::info!(bytes = done, of = total, seconds_left, "reading the log");
        }
    }
}

fn log_recovered(store: &Store, lessor: &Lessor, meta: &Meta, torn: Option<&TornTail>, took: Duration) {
    if let Some(TornTail { file, offset }) = torn {
        tracing::warn!(
            file,
            offset,
            "cut a record off the end of the log whose write was interrupted: nobody was told of it"
        );
    }
    tracing::info!(
        revision = store.revision().0,
        keys = store.keys(),
        leases = lessor.len(),
        position = meta.position.0,
        milliseconds = took.as_millis() as u64,
        "read the data directory"
    );
}

/// The store and the leases under construction.
pub struct Rebuilding {
    rows: Option<Restore>,
    alarms: Vec<Alarm>,
    store: Option<Store>,
    lessor: Lessor,
}

impl Rebuilding {
    fn new(lessor: Lessor) -> Rebuilding {
        Rebuilding { rows: None, alarms: Vec::new(), store: None, lessor }
    }

    /// Time begins for all leases when the writer takes them over.
    fn take_lease(&mut self, lease: Lease) -> Result<(), String> {
        let is_new = self.lessor.restore(lease, Uptime::default());
        if is_new { Ok(()) } else { Err(format!("lease {:016x} is granted twice", lease.id.0)) }
    }

    fn take_remaining(&mut self, lease: LeaseId, seconds: Option<i64>) -> Result<(), String> {
        let is_there = self.lessor.restore_remaining(lease, seconds);
        if is_there { Ok(()) } else { Err(format!("lease {:016x} has time left, and is not there", lease.0)) }
    }
}

const IN_ORDER: &str = "recovery begins, then shows rows, then ends them, then shows entries";

impl Rebuild for Rebuilding {
    fn begin(&mut self, meta: &Meta) {
        self.rows = Some(Restore::new(meta.revision, meta.compacted, meta.rows as usize));
        self.alarms.clone_from(&meta.alarms);
    }

    fn leases(&mut self, leases: Vec<StoredLease>) -> Result<(), String> {
        leases.into_iter().try_for_each(|StoredLease { lease, remaining }| {
            self.take_lease(lease)?;
            self.take_remaining(lease.id, remaining)
        })
    }

    fn row(&mut self, row: Row) -> Result<(), String> {
        self.rows.as_mut().expect(IN_ORDER).row(row).map_err(|damage| damage.to_string())
    }

    fn end_rows(&mut self) -> Result<Vec<ChangeId>, String> {
        let (mut store, superseded) =
            self.rows.take().expect(IN_ORDER).finish().map_err(|damage| damage.to_string())?;
        for alarm in self.alarms.drain(..) {
            store.replay_alarm(alarm, true);
        }
        if !self.lessor.is_empty() {
            store.live().for_each(|kv| self.lessor.attach(kv.key(), kv.lease()));
        }
        self.store = Some(store);
        Ok(superseded)
    }

    fn entry(&mut self, entry: &Entry) -> Result<(), String> {
        let store = self.store.as_mut().expect(IN_ORDER);
        let replayed = match entry {
            Entry::Batch(batch) => {
                self.lessor.note(batch);
                store.replay_batch(batch).map(drop)
            }
            Entry::Compaction(revision) => store.replay_compaction(*revision),
            Entry::Alarm { alarm, active } => {
                store.replay_alarm(*alarm, *active);
                Ok(())
            }
            Entry::Lease { lease, granted: true } => return self.take_lease(*lease),
            Entry::Lease { lease, granted: false } => {
                let revoked = self.lessor.revoke(lease.id).map(drop);
                return revoked.ok_or_else(|| format!("lease {:016x} ends, and is not there", lease.id.0));
            }
            Entry::Remaining { lease, seconds } => return self.take_remaining(*lease, *seconds),
            Entry::Start { .. } | Entry::Stop => Ok(()),
        };
        replayed.map_err(|damage| damage.to_string())
    }
}

/// The log and the checkpoint, as the writer sees them.
pub struct Logged<D: Device> {
    log: Log<D>,
    progress: Sender<Progress>,
    checkpointed: Checkpointed,
    wake_checkpoint: Box<dyn Fn()>,
    segments: SegmentsHandle,
    /// What is free where, in words.
    disks: Box<dyn Fn() -> String>,
    defragmenting: Option<Defragmenting>,
}

/// A defragmentation makes room, and whoever asked for it writes next. So its end waits until the threads that were short
/// of space have looked again.
struct Defragmenting {
    ended: Receiver<Result<(), String>>,
    /// With the moment from which it is told in any case.
    result: Option<(Result<(), String>, Instant)>,
}

/// Both threads try again once a second.
const SPACE_PATIENCE: Duration = Duration::from_secs(3);

impl<D: Device> Logged<D> {
    pub(crate) fn new(
        log: Log<D>,
        progress: Sender<Progress>,
        checkpointed: Checkpointed,
        wake_checkpoint: Box<dyn Fn()>,
        segments: SegmentsHandle,
        disks: Box<dyn Fn() -> String>,
    ) -> Logged<D> {
        Logged { log, progress, checkpointed, wake_checkpoint, segments, disks, defragmenting: None }
    }
}

impl Primed {
    /// Takes it apart on the thread it was made for, inside of its ring. `wake` makes the shard take another turn.
    pub fn into_parts(self, wake: Rc<dyn Fn()>) -> (Store, Lessor, Position, u64, Logged<RingDevice>) {
        let Primed { store, lessor, next, term, supply, progress, checkpointed, checkpoint, segments, disks, .. } =
            self;
        let device = RingDevice::new(wake, self.is_durable, self.write_unit, checkpointed.meter.clone());
        let log = Log::new(device, supply, progress.clone());
        let wake_checkpoint = Box::new(move || checkpoint.wake());
        (store, lessor, next, term, Logged::new(log, progress, checkpointed, wake_checkpoint, segments, disks))
    }
}

impl<D: Device> Durability for Logged<D> {
    fn append(&mut self, position: Position, entries: &[Entry]) {
        self.log.append(position, entries.to_vec());
    }

    fn completed(&mut self) -> Option<Result<Position, LogFailure>> {
        self.log.completed()
    }

    fn removed(&mut self, changes: Vec<ChangeId>) {
        self.log.removed(changes);
    }

    fn is_short_of_space(&self) -> bool {
        self.log.is_short_of_space() || self.checkpointed.is_short_of_space.load(Ordering::Acquire)
    }

    fn room_bytes(&self) -> usize {
        self.log.room_bytes()
    }

    fn is_room_coming(&self) -> bool {
        self.log.is_room_coming() && !self.checkpointed.is_short_of_space.load(Ordering::Acquire)
    }

    fn set_held_up(&mut self, is_held_up: bool) {
        self.log.set_held_up(is_held_up);
    }

    fn disks(&self) -> String {
        (self.disks)()
    }

    fn set_short_of_memory(&mut self, is_short: bool) {
        self.checkpointed.is_short_of_memory.store(is_short, Ordering::Relaxed);
    }

    fn defragment(&mut self) {
        let (sender, ended) = mpsc::channel();
        // A thread that is gone shows below.
        let _ = self.progress.send(Progress::Defragment(sender));
        (self.wake_checkpoint)();
        self.defragmenting = Some(Defragmenting { ended, result: None });
    }

    fn defragmented(&mut self) -> Option<Result<(), String>> {
        let is_short = self.is_short_of_space();
        let defragmenting = self.defragmenting.as_mut()?;
        if defragmenting.result.is_none() {
            let result = match defragmenting.ended.try_recv() {
                Ok(result) => result,
                Err(mpsc::TryRecvError::Empty) => return None,
                Err(mpsc::TryRecvError::Disconnected) => Err("the checkpoint is closed".to_owned()),
            };
            defragmenting.result = Some((result, clock::now() + SPACE_PATIENCE));
            self.segments.wake();
        }
        let (_, patience) = defragmenting.result.as_ref()?;
        if is_short && clock::now() < *patience {
            return None;
        }
        self.defragmenting.take()?.result.map(|(result, _)| result)
    }
}
