//! How many log lines of one kind may be written.

use std::time::{Duration, Instant};

/// In each of these, at most so many lines: enough to see what goes on, and whoever misbehaves a million times a second
/// fills no disk.
const INTERVAL: Duration = Duration::from_secs(10);
const LINES_MAX: u32 = 10;

/// What is left of the present interval, and how many lines were left out since the last that was written.
#[derive(Clone, Copy, Default, Debug)]
pub struct LineBudget {
    since: Option<Instant>,
    written: u32,
    left_out: u64,
}

impl LineBudget {
    /// Whether a line may be written now; it is to tell how many were left out before it.
    pub fn admit(&mut self, now: Instant) -> Option<u64> {
        if self.since.is_none_or(|since| now.saturating_duration_since(since) >= INTERVAL) {
            *self = LineBudget { since: Some(now), written: 0, left_out: self.left_out };
        }
        if self.written == LINES_MAX {
            self.left_out += 1;
            return None;
        }
        self.written += 1;
        Some(std::mem::take(&mut self.left_out))
    }

    /// How many were left out in an interval that is over, when no line came behind it to tell.
    pub fn untold(&mut self, now: Instant) -> Option<u64> {
        let is_over = self.since.is_some_and(|since| now.saturating_duration_since(since) >= INTERVAL);
        (is_over && self.left_out > 0).then(|| std::mem::take(&mut self.left_out))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ten_lines_in_ten_seconds_and_then_a_count() {
        let start = Instant::now();
        let at = |milliseconds| start + Duration::from_millis(milliseconds);
        let mut budget = LineBudget::default();
        let admitted: Vec<_> = (0..100).map(|line| budget.admit(at(line))).collect();
        assert!(admitted[..10].iter().all(|line| *line == Some(0)) && admitted[10..].iter().all(Option::is_none));
        assert_eq!(budget.untold(at(9_999)), None, "a line may still come");
        assert_eq!(budget.admit(at(10_000)), Some(90));
        assert_eq!(budget.admit(at(10_001)), Some(0));
        assert_eq!((0..20).filter(|_| budget.admit(at(10_002)).is_some()).count(), 8);
        assert_eq!((budget.untold(at(20_000)), budget.untold(at(20_001))), (Some(12), None));
    }
}
