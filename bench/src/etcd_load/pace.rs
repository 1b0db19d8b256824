//! How often calls may begin: etcd's tool has a bucket of tokens, filled at a rate.

use std::time::Duration;

use tokio::time::Instant;

/// The event loop's timer counts whole milliseconds, so a sleep ends late; what was overslept up to this is made up,
/// else no rate above some hundreds a second would be kept.
const OVERSLEPT_MAX: Duration = Duration::from_millis(2);

#[derive(Clone, Copy, Debug)]
pub struct Pace {
    /// None without a limit.
    interval: Option<Duration>,
    /// How far behind its schedule the next call may be and still keep its place in it.
    behind_max: Duration,
    next: Option<Instant>,
}

impl Pace {
    /// `rate` calls a second, 0 for as many as there can be; after a pause, at most `burst` at once.
    pub fn new(rate: u32, burst: u32) -> Pace {
        let interval = (rate > 0).then(|| Duration::from_secs(1) / rate);
        let behind_max = interval.unwrap_or_default() * burst.saturating_sub(1);
        Pace { interval, behind_max: behind_max.max(OVERSLEPT_MAX), next: None }
    }

    /// When the next call may begin, if not at once.
    pub fn reserve(&mut self, now: Instant) -> Option<Instant> {
        let interval = self.interval?;
        let earliest = now.checked_sub(self.behind_max).unwrap_or(now);
        let at = self.next.unwrap_or(now).max(earliest);
        self.next = Some(at + interval);
        (at > now).then_some(at)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn calls_are_spread_over_the_second() {
        let now = Instant::now();
        let mut pace = Pace::new(100, 1);
        assert_eq!(pace.reserve(now), None);
        assert_eq!(pace.reserve(now), Some(now + Duration::from_millis(10)));
        // After a pause the schedule begins anew, but for what a timer may oversleep.
        let later = now + Duration::from_secs(5);
        assert_eq!(pace.reserve(later), None);
        assert_eq!(pace.reserve(later), Some(later + Duration::from_millis(8)));
    }

    #[test]
    fn a_burst_is_allowed_after_a_pause() {
        let mut pace = Pace::new(10, 10);
        let now = Instant::now();
        assert_eq!(pace.reserve(now), None);
        let later = now + Duration::from_secs(60);
        let at_once = (0..20).take_while(|_| pace.reserve(later).is_none()).count();
        assert_eq!(at_once, 10);
        assert_eq!(Pace::new(0, 1).reserve(now), None, "0 is no limit");
    }
}
