//! The only file that reads time.
//!
//! Everything else takes a [`Time`] or an [`Instant`] as an argument, so that a simulator can hand in its own.

use std::sync::OnceLock;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use crate::types::{Time, Uptime};

/// The monotonic clock: for deadlines and measurements.
pub fn now() -> Instant {
    Instant::now()
}

/// The monotonic clock once more, for leases: since the first call.
pub fn uptime() -> Uptime {
    static START: OnceLock<Instant> = OnceLock::new();
    let since = now() - *START.get_or_init(now);
    Uptime(u64::try_from(since.as_millis()).unwrap_or(u64::MAX))
}

/// The wall clock: for people. A clock before 1970 reads as 1970.
pub fn wall() -> Time {
    let since_epoch = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    // 2^64 milliseconds are 584 million years.
    Time(u64::try_from(since_epoch.as_millis()).unwrap_or(u64::MAX))
}

/// Waits, on the timers of this thread's runtime.
pub async fn sleep(duration: Duration) {
    tokio::time::sleep(duration).await;
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_wall_clock_counts_milliseconds_since_1970() {
        // 2025-01-01 and 2200-01-01: a unit mixed up is off by a factor of a thousand.
        assert!((1_735_689_600_000..7_258_118_400_000).contains(&wall().0), "{:?}", wall());
    }

    #[test]
    fn the_monotonic_clock_never_goes_back() {
        let first = now();
        assert!(now() >= first);
    }
}
