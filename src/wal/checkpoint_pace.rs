//! How the checkpoint's thread spares others: the disk, by what it writes a second, and the core, by resting.
//!
//! Its low priority alone does not do it. Beside an event loop that is always busy, the scheduler gives it its small share in
//! slices as long as its tick, 4 ms where that comes 250 times a second, and whoever waits for the loop waits for the whole
//! of one. So it ends its slices itself.

use std::sync::atomic::{AtomicU64, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use crate::shard::clock;

/// It rests when it has run for so long.
const SLICE: Duration = Duration::from_micros(200);
/// For as long as so many bytes would take to write: 0.7 ms at 32 MiB a second.
const REST_BYTES: u64 = 24 << 10;
/// What is written goes to the disk in pieces of so many bytes, and does not stand before the log's sync all at once.
const SYNC_BYTES: u64 = 256 << 10;

/// The thread itself and whoever sets it may be two, which nothing here waits for.
#[derive(Debug)]
pub struct Pace {
    begun: Instant,
    /// Bytes a second; 0 is as fast as it goes.
    rate: AtomicU64,
    written_bytes: AtomicU64,
    /// The end of the slice, in nanoseconds since `begun`, and how many of them it has rested since the last piece was synced.
    slice_end: AtomicU64,
    rested: AtomicU64,
}

impl Pace {
    pub fn new() -> Pace {
        let [rate, written_bytes, slice_end, rested] = Default::default();
        Pace { begun: clock::now(), rate, written_bytes, slice_end, rested }
    }

    pub fn set(&self, bytes_a_second: u64) {
        self.rate.store(bytes_a_second, Ordering::Relaxed);
    }

    pub fn written_bytes(&self) -> u64 {
        self.written_bytes.load(Ordering::Relaxed)
    }

    /// To be called again and again by whatever takes long. Sleeps when the slice is over.
    pub fn rest(&self) {
        let is_over = self.elapsed() >= self.slice_end.load(Ordering::Relaxed);
        if is_over && let Some(rest) = self.time_of(REST_BYTES) {
            thread::sleep(rest);
            self.rested.fetch_add(nanoseconds(rest), Ordering::Relaxed);
            self.slice_end.store(self.elapsed() + nanoseconds(SLICE), Ordering::Relaxed);
        }
    }

    /// So much was written. True when it should be synced, and [`Pace::synced`] told.
    pub fn wrote(&self, bytes: u64) -> bool {
        let before = self.written_bytes.fetch_add(bytes, Ordering::Relaxed);
        self.rate.load(Ordering::Relaxed) > 0 && before / SYNC_BYTES != (before + bytes) / SYNC_BYTES
    }

    /// Sleeps for as long as a piece should have taken and the rests since the last one have not.
    pub fn synced(&self) {
        let rested = Duration::from_nanos(self.rested.swap(0, Ordering::Relaxed));
        if let Some(time) = self.time_of(SYNC_BYTES) {
            thread::sleep(time.saturating_sub(rested));
        }
    }

    /// `None`: no time at all.
    fn time_of(&self, bytes: u64) -> Option<Duration> {
        let rate = self.rate.load(Ordering::Relaxed);
        let time = Duration::from_secs_f64(if rate == 0 { 0.0 } else { bytes as f64 / rate as f64 });
        Some(time).filter(|time| !time.is_zero())
    }

    fn elapsed(&self) -> u64 {
        nanoseconds(self.begun.elapsed())
    }
}

/// It would take centuries to overflow.
fn nanoseconds(time: Duration) -> u64 {
    time.as_nanos() as u64
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_rests_between_slices_and_writes_no_faster_than_it_may() {
        let (pace, begun) = (Pace::new(), Instant::now());
        pace.set(256 << 20);
        let mut synced = 0;
        // 4 MiB, which may take no less than a sixty-fourth of a second however little is computed.
        for _ in 0..1024 {
            pace.rest();
            if pace.wrote(4096) {
                synced += 1;
                pace.synced();
            }
        }
        assert_eq!((synced, pace.written_bytes()), (16, 4 << 20));
        assert!(begun.elapsed() >= Duration::from_secs(1) / 64, "{:?}", begun.elapsed());
    }

    #[test]
    fn without_a_pace_nothing_is_slowed_down() {
        let pace = Pace::new();
        for rate in [0, u64::MAX] {
            pace.set(rate);
            assert_eq!(pace.time_of(SYNC_BYTES), None);
            pace.rest();
            assert_eq!(pace.rested.load(Ordering::Relaxed), 0);
        }
    }
}
