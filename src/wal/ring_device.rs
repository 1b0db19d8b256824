//! Writes the frames of the log through the ring of its thread.

use std::cell::Cell;
use std::io;
use std::os::fd::OwnedFd;
use std::rc::Rc;
use std::sync::Arc;

use crate::net::ring::{self, AlignedBuffer};
use crate::shard::clock;
use crate::wal::LogFailure;
use crate::wal::log::Device;
use crate::wal::meter::Meter;

/// Lives inside of [`ring::Ring::run`].
pub struct RingDevice {
    done: Rc<Cell<Option<Done>>>,
    wake: Rc<dyn Fn()>,
    is_durable: bool,
    write_unit: usize,
    meter: Arc<Meter>,
}

type Done = (Result<(), LogFailure>, AlignedBuffer);

impl RingDevice {
    /// `wake` is called when a frame is done, so that the thread looks at its log. Unless `is_durable`, frames are written
    /// and not synced (`--unsafe-no-fsync`). What is written is a multiple of `write_unit`
    /// ([`FileDisk::write_unit`](super::file_disk::FileDisk::write_unit)).
    pub fn new(wake: Rc<dyn Fn()>, is_durable: bool, write_unit: usize, meter: Arc<Meter>) -> RingDevice {
        RingDevice { done: Rc::default(), wake, is_durable, write_unit, meter }
    }
}

impl Device for RingDevice {
    type Segment = OwnedFd;

    fn submit(&mut self, segment: &Rc<OwnedFd>, offset: u64, mut frame: AlignedBuffer, filled: usize) {
        let (segment, done, wake) = (segment.clone(), self.done.clone(), self.wake.clone());
        let (is_durable, unit, meter) = (self.is_durable, self.write_unit, self.meter.clone());
        frame.resize(filled.next_multiple_of(unit));
        ring::spawn(async move {
            meter.log_wrote(frame.len());
            done.set(Some(write(&segment, offset, frame, unit, is_durable, &meter).await));
            wake();
        });
    }

    fn poll(&mut self) -> Option<Done> {
        self.done.take()
    }
}

/// Writes until all of it is written, then syncs. A write that was cut short goes on behind.
async fn write(
    segment: &Rc<OwnedFd>,
    offset: u64,
    mut frame: AlignedBuffer,
    unit: usize,
    is_durable: bool,
    meter: &Meter,
) -> Done {
    let mut written = 0;
    while written < frame.len() {
        let (result, buffer) = ring::Write::submit(segment, frame, written, offset + written as u64).await;
        frame = buffer;
        match result {
            Ok(0) => return (Err(LogFailure::Broken(io::ErrorKind::WriteZero.into())), frame),
            // A direct write can only go on at a whole unit.
            Ok(bytes) => written = (written + bytes) / unit * unit,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return (Err(LogFailure::of_write(error)), frame),
        }
    }
    if !is_durable {
        return (Ok(()), frame);
    }
    let begun = clock::now();
    let synced = ring::SyncData::submit(segment).await;
    meter.log_syncs.observe(clock::now() - begun);
    (synced.map_err(LogFailure::Broken), frame)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::metrics::Histogram;
    use crate::metrics::histogram::{DISK, WORDS};
    use crate::metrics::numbers::totals;
    use crate::net::ring::{Doorbell, Ring};
    use crate::sim::Folder;
    use crate::types::{Entry, Position};
    use crate::wal::Progress;
    use crate::wal::disk::Disk;
    use crate::wal::file_disk::{FileDisk, random_salt};
    use crate::wal::log::Log;
    use crate::wal::newest::Newest;
    use crate::wal::replay::{Recovered, Replay};
    use crate::wal::segments;
    use std::sync::atomic::{AtomicU64, Ordering};
    use std::sync::mpsc::channel;

    const BLOCKS: u32 = 64;

    fn recover(disk: &FileDisk, checkpointed: u64) -> (Recovered, Vec<(Position, Vec<Entry>)>) {
        let mut groups = Vec::new();
        let replay = Replay::new(disk, 9, Position(checkpointed), BLOCKS);
        let recovered = replay.run(&mut |position, entries| groups.push((position, entries)), &mut |_, _| {});
        (recovered.unwrap(), groups)
    }

    /// Appends groups up to a position, eight at a time, and waits until all are durable.
    /// Gives the bytes that were written.
    async fn live(disk: &Arc<FileDisk>, checkpointed: &Arc<AtomicU64>, groups: u64, bell: Doorbell) -> u64 {
        let (recovered, _) = recover(disk, checkpointed.load(Ordering::Relaxed));
        let mut position = recovered.last;
        let salt = Box::new(random_salt);
        let newest = Newest::open(disk.clone()).unwrap();
        let (keeper, supply) =
            segments::open(disk.clone(), newest, recovered.resume, checkpointed.clone(), salt).unwrap();
        let far = bell.clone();
        let broken = Box::new(|error: &std::io::Error| panic!("{error}"));
        let handle = segments::spawn(keeper, Box::new(move || far.ring()), broken).unwrap();
        let (sender, progress) = channel();
        let near = bell.clone();
        let meter = Arc::new(Meter::new(Arc::new(Histogram::new(DISK)), clock::wall()));
        let device = RingDevice::new(Rc::new(move || near.ring()), true, disk.write_unit(), meter.clone());
        let mut log = Log::new(device, supply, sender);
        let end = position.0 + groups;
        let mut durable = position;
        while durable.0 < end {
            while position.0 < end.min(durable.0 + 8) {
                position = position.next();
                let term = position.0;
                // Some are longer than a segment.
                let count = if term.is_multiple_of(50) { 40_000 } else { 1 + term as usize % 300 };
                log.append(position, vec![Entry::Start { term }; count]);
            }
            match log.completed() {
                Some(Ok(done)) => durable = done,
                Some(Err(LogFailure::Broken(error) | LogFailure::Refused(error))) => panic!("{error}"),
                None => bell.wait().await,
            }
            while let Ok(Progress::Durable { position, .. }) = progress.try_recv() {
                checkpointed.store(position.0.saturating_sub(100), Ordering::Release);
            }
            handle.wake();
        }
        assert!(log.is_idle());
        let mut words = [0; WORDS];
        meter.log_syncs.read(&mut words);
        let syncs = totals(&words).0;
        assert!(syncs >= groups / 8, "{syncs} syncs");
        let (written, unit) = (meter.log_written_bytes(), disk.write_unit() as u64);
        assert!(written >= syncs * unit && written.is_multiple_of(unit), "{syncs} syncs of {written} bytes");
        written
    }

    #[test]
    fn a_lone_group_is_written_as_far_as_the_disk_must() {
        let directory = Folder::new("ring-lone");
        std::fs::create_dir(&directory.0).unwrap();
        let disk = Arc::new(FileDisk::open(&directory.0).unwrap());
        let unit = disk.write_unit();
        assert!(unit.is_power_of_two() && (512..=4_096).contains(&unit), "{unit}");
        let written = Ring::new().unwrap().run(live(&disk, &Arc::default(), 1, Doorbell::new().unwrap()));
        assert_eq!(written, unit as u64);
        let (recovered, groups) = recover(&disk, 0);
        assert_eq!((recovered.last, groups.len()), (Position(1), 1));
    }

    #[test]
    fn a_log_on_the_ring_comes_back_and_its_files_are_recycled() {
        let directory = Folder::new("ring");
        std::fs::create_dir(&directory.0).unwrap();
        let disk = Arc::new(FileDisk::open(&directory.0).unwrap());
        let checkpointed = Arc::new(AtomicU64::new(0));
        for life in 1..=3 {
            Ring::new().unwrap().run(live(&disk, &checkpointed, 400, Doorbell::new().unwrap()));
            let (recovered, groups) = recover(&disk, checkpointed.load(Ordering::Relaxed));
            assert_eq!(recovered.last, Position(400 * life));
            assert!(groups.len() >= 100);
            let first = checkpointed.load(Ordering::Relaxed) + 1;
            for (at, (position, entries)) in groups.iter().enumerate() {
                assert_eq!(position.0, first + at as u64);
                assert!(entries.iter().all(|entry| *entry == Entry::Start { term: position.0 }));
            }
        }
        let files = disk.names().unwrap().len();
        assert!(files < 20, "{files} files: they are not given up");
    }
}
