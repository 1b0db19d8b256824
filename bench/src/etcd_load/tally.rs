//! What many calls took, printed in the shape of etcd's `benchmark` tool, so that two outputs can be laid side by side.
//!
//! Every latency is kept: the tool prints the exact fastest and slowest, and ten steps between those two.

use std::collections::BTreeMap;
use std::fmt::Write;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use crate::fault::{Fault, Result};

/// Steps of the histogram.
const STEPS: usize = 10;
/// Characters of its longest bar.
const BAR_MAX: usize = 40;
const PERCENTILES: [f64; 8] = [10.0, 25.0, 50.0, 75.0, 90.0, 95.0, 99.0, 99.9];

/// How it is printed.
#[derive(Clone, Copy, Default, Debug)]
pub struct Form {
    /// All digits.
    pub precise: bool,
    /// What each second has seen besides.
    pub sample: bool,
}

#[derive(Default, Debug)]
pub struct Tally {
    seconds: Vec<f64>,
    /// By the second in which they were begun, as Unix counts them.
    samples: BTreeMap<u64, Sample>,
    /// How often each refusal was heard.
    errors: BTreeMap<String, u64>,
}

/// The calls that one second has begun.
#[derive(Clone, Copy, Default, Debug)]
struct Sample {
    least: Duration,
    greatest: Duration,
    sum: Duration,
    calls: u32,
}

impl Tally {
    pub fn add(&mut self, latency: Duration) {
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        self.add_at(now.saturating_sub(latency).as_secs(), latency);
    }

    fn add_at(&mut self, second: u64, latency: Duration) {
        self.seconds.push(latency.as_secs_f64());
        let sample = self.samples.entry(second).or_default();
        sample.least = if sample.calls == 0 { latency } else { sample.least.min(latency) };
        sample.greatest = sample.greatest.max(latency);
        sample.sum += latency;
        sample.calls += 1;
    }

    /// A call that the server refused is counted, as in etcd's tool. Anything else ends the run: no later call would
    /// fare better on a connection that is gone.
    pub fn add_outcome(&mut self, latency: Duration, outcome: Result<()>) -> Result<()> {
        match outcome {
            Ok(()) => self.add(latency),
            Err(refusal @ Fault::Status { .. }) => *self.errors.entry(refusal.to_string()).or_default() += 1,
            Err(fault) => return Err(fault),
        }
        Ok(())
    }

    pub fn errors(&self) -> u64 {
        self.errors.values().sum()
    }

    /// The report over a run of `total`.
    pub fn text(&self, total: Duration, form: Form) -> String {
        let number = |value: f64| if form.precise { format!("{value}") } else { format!("{value:.4}") };
        let mut sorted = self.seconds.clone();
        sorted.sort_by(f64::total_cmp);
        let mut text = String::new();
        if let (Some(&fastest), Some(&slowest)) = (sorted.first(), sorted.last()) {
            let count = sorted.len() as f64;
            let average = sorted.iter().sum::<f64>() / count;
            let deviation = (sorted.iter().map(|value| (value - average).powi(2)).sum::<f64>() / count).sqrt();
            text += "\nSummary:\n";
            let lines = [
                ("Total", total.as_secs_f64()),
                ("Slowest", slowest),
                ("Fastest", fastest),
                ("Average", average),
                ("Stddev", deviation),
            ];
            for (name, value) in lines {
                let _ = writeln!(text, "  {name}:\t{} secs.", number(value));
            }
            let _ = writeln!(text, "  Requests/sec:\t{}", number(count / total.as_secs_f64()));
            text += "\nResponse time histogram:\n";
            for (bound, count, bar) in histogram(&sorted, fastest, slowest) {
                let _ = writeln!(text, "  {} [{count}]\t|{}", number(bound), "∎".repeat(bar));
            }
            text += "\nLatency distribution:\n";
            for percentile in PERCENTILES {
                let value = sorted[rank(percentile, sorted.len()) - 1];
                let _ = writeln!(text, "  {percentile}% in {} secs.", number(value));
            }
        }
        if form.sample {
            text += &self.sample_text();
        }
        if !self.errors.is_empty() {
            text += "\nError distribution:\n";
            for (error, count) in &self.errors {
                let _ = writeln!(text, "  [{count}]\t{error}");
            }
        }
        text
    }

    /// A line for each second from the first to the last, whether or not it has seen a call.
    fn sample_text(&self) -> String {
        let mut text = String::from("\nSample in one second (unix latency throughput):\n");
        text += "UNIX-SECOND,MIN-LATENCY-MS,AVG-LATENCY-MS,MAX-LATENCY-MS,AVG-THROUGHPUT\n";
        let ends = self.samples.keys().next().zip(self.samples.keys().next_back());
        for second in ends.into_iter().flat_map(|(first, last)| *first..=*last) {
            let Sample { least, greatest, sum, calls } = self.samples.get(&second).copied().unwrap_or_default();
            let average = sum / calls.max(1);
            let _ = writeln!(text, "{second},{least:?},{average:?},{greatest:?},{calls}");
        }
        text
    }
}

/// Which of so many sorted latencies, counted from 1, is a percentile: as in etcd's tool, that of one latency more than there
/// are.
fn rank(percentile: f64, count: usize) -> usize {
    ((percentile * (count + 1) as f64 / 100.0).ceil() as usize).clamp(1, count)
}

/// Upper bound, count and length of the bar of each step; the first step is the fastest alone.
fn histogram(sorted: &[f64], fastest: f64, slowest: f64) -> Vec<(f64, usize, usize)> {
    let step = (slowest - fastest) / STEPS as f64;
    // The last bound is the slowest itself: a sum could round below it.
    let bound = |at: usize| if at == STEPS { slowest } else { fastest + step * at as f64 };
    let below: Vec<usize> = (0..=STEPS).map(|at| sorted.partition_point(|&value| value <= bound(at))).collect();
    let counts: Vec<usize> = (0..=STEPS).map(|at| below[at] - if at == 0 { 0 } else { below[at - 1] }).collect();
    let most = counts.iter().copied().max().unwrap_or(0).max(1);
    counts.iter().enumerate().map(|(at, &count)| (bound(at), count, count * BAR_MAX / most)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_report_has_the_shape_of_etcds() {
        let mut tally = Tally::default();
        for milliseconds in 1..=100 {
            tally.add(Duration::from_millis(milliseconds));
        }
        let text = tally.text(Duration::from_secs(2), Form::default());
        for line in [
            "\nSummary:\n  Total:\t2.0000 secs.\n  Slowest:\t0.1000 secs.\n  Fastest:\t0.0010 secs.\n",
            "  Average:\t0.0505 secs.\n  Stddev:\t0.0289 secs.\n  Requests/sec:\t50.0000\n",
            "\nResponse time histogram:\n  0.0010 [1]\t|∎∎∎∎\n  0.0109 [9]\t|",
            "\nLatency distribution:\n  10% in 0.0110 secs.\n",
            "  99% in 0.1000 secs.\n  99.9% in 0.1000 secs.\n",
        ] {
            assert!(text.contains(line), "{line:?} is not in {text}");
        }
        assert!(!text.contains("Error"));
    }

    #[test]
    fn percentiles_have_the_ranks_of_etcds() {
        assert_eq!(PERCENTILES.map(|percentile| rank(percentile, 1)), [1; 8]);
        assert_eq!(PERCENTILES.map(|percentile| rank(percentile, 10)), [2, 3, 6, 9, 10, 10, 10, 10]);
        assert_eq!(PERCENTILES.map(|percentile| rank(percentile, 999)), [100, 250, 500, 750, 900, 950, 990, 999]);
        assert_eq!(PERCENTILES.map(|percentile| rank(percentile, 1_000))[4..], [901, 951, 991, 1_000]);
    }

    #[test]
    fn each_second_has_a_line_of_its_calls() {
        let mut tally = Tally::default();
        for (second, milliseconds) in [(10, 4), (10, 2), (12, 5)] {
            tally.add_at(second, Duration::from_millis(milliseconds));
        }
        let text = tally.text(Duration::from_secs(3), Form { sample: true, ..Form::default() });
        assert!(text.contains("AVG-THROUGHPUT\n10,2ms,3ms,4ms,2\n11,0ns,0ns,0ns,0\n12,5ms,5ms,5ms,1\n"), "{text}");
        assert!(!tally.text(Duration::from_secs(3), Form::default()).contains("UNIX-SECOND"));
    }

    #[test]
    fn equal_latencies_all_lie_in_the_first_step() {
        let steps = histogram(&[0.5; 7], 0.5, 0.5);
        assert_eq!(steps.iter().map(|step| step.1).sum::<usize>(), 7);
        assert_eq!(steps[0], (0.5, 7, BAR_MAX));
    }

    #[test]
    fn a_refusal_is_counted_and_a_broken_connection_ends_the_run() {
        let mut tally = Tally::default();
        let refusal = Fault::Status { path: "/p", code: "8".to_owned(), message: "no space".to_owned() };
        tally.add_outcome(Duration::ZERO, Err(refusal)).unwrap();
        assert_eq!(tally.errors(), 1);
        assert!(tally.text(Duration::from_secs(1), Form::default()).contains("[1]\t/p ended with status 8: no space"));
        let gone = Fault::Closed { endpoint: "here".to_owned() };
        assert!(tally.add_outcome(Duration::ZERO, Err(gone)).is_err());
    }
}
