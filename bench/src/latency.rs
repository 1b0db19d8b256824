//! Latencies: how they are kept, and which of their quantiles are told.

use std::time::Duration;

use hdrhistogram::Histogram;

/// Latencies are kept in microseconds up to this, with three digits.
const LATENCY_MAX: Duration = Duration::from_secs(600);

/// An empty histogram of microseconds.
pub fn latencies() -> Histogram<u64> {
    Histogram::new_with_bounds(1, LATENCY_MAX.as_micros() as u64, 3).expect("the bounds are constants and in order")
}

/// Records a latency; what is longer than the longest counts as that.
pub fn record(histogram: &mut Histogram<u64>, latency: Duration) {
    histogram.saturating_record(latency.as_micros().max(1) as u64);
}

/// The latency, in milliseconds, that one in so many exceeds.
pub fn milliseconds(histogram: &Histogram<u64>, one_in: f64) -> f64 {
    histogram.value_at_quantile(1.0 - 1.0 / one_in) as f64 / 1e3
}

/// The greatest, in milliseconds.
pub fn greatest_milliseconds(histogram: &Histogram<u64>) -> f64 {
    histogram.max() as f64 / 1e3
}

/// Whether so many latencies tell what one in so many exceeds: of fewer, none need be that slow.
pub fn is_told(histogram: &Histogram<u64>, one_in: f64) -> bool {
    histogram.len() as f64 >= one_in
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_one_in_a_hundred_exceeds_needs_a_hundred() {
        let mut histogram = latencies();
        (1..100).for_each(|at| record(&mut histogram, Duration::from_millis(at)));
        assert!(is_told(&histogram, 2.0) && !is_told(&histogram, 100.0));
        record(&mut histogram, Duration::from_millis(100));
        assert!(is_told(&histogram, 100.0));
        assert!((milliseconds(&histogram, 2.0) - 50.0).abs() < 0.1, "{}", milliseconds(&histogram, 2.0));
        assert!((milliseconds(&histogram, 100.0) - 99.0).abs() < 0.1, "{}", milliseconds(&histogram, 100.0));
        assert!((greatest_milliseconds(&histogram) - 100.0).abs() < 0.1);
    }
}
