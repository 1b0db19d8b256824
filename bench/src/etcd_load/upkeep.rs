//! What `put` may have done beside it and behind it: compactions, and a look at the hash of all keys.

use std::convert::Infallible;
use std::time::{Duration, Instant};

use clap::Args;
use tarsier_proto::etcdserverpb as pb;

use crate::caller::Caller;
use crate::fault::Result;
use crate::wire;

#[derive(Args, Clone, Copy, Debug)]
pub struct Upkeep {
    /// Compact now and then, such as each 5m; 0 for never
    #[arg(long, default_value = "0", value_parser = duration)]
    compact_interval: Duration,
    /// Revisions that a compaction leaves
    #[arg(long, default_value_t = 1_000)]
    compact_index_delta: i64,
    /// Print the hash of all keys at the end, and how large the database is
    #[arg(long)]
    check_hashkv: bool,
}

impl Upkeep {
    /// Compacts until it is dropped or refused.
    pub async fn compact(&self, caller: &Caller) -> Result<Infallible> {
        if self.compact_interval.is_zero() {
            std::future::pending::<()>().await;
        }
        let mut compacted = 0;
        loop {
            tokio::time::sleep(self.compact_interval).await;
            let revision = caller.revision().await? - self.compact_index_delta;
            // Nothing new to forget would be refused.
            if revision > compacted {
                let request = pb::CompactionRequest { revision, physical: false };
                caller.call_message(wire::PATH_COMPACT, &request).await?;
                compacted = revision;
            }
        }
    }

    pub async fn print_hash(&self, caller: &Caller) -> Result<()> {
        if !self.check_hashkv {
            return Ok(());
        }
        let begun = Instant::now();
        let hash: pb::HashKvResponse = caller.ask(wire::PATH_HASH_KV, &pb::HashKvRequest { revision: 0 }).await?;
        let status: pb::StatusResponse = caller.ask(wire::PATH_STATUS, &pb::StatusRequest::default()).await?;
        println!("HashKV Summary:\n\tHashKV: {}\n\tEndpoint: {}", hash.hash, caller.endpoint());
        println!("\tTime taken to get hashkv: {:?}\n\tDB size: {:.1} MB", begun.elapsed(), status.db_size as f64 / 1e6);
        Ok(())
    }
}

/// A duration as Go writes it: numbers with units, such as `1h30m` or `1.5s`; 0 needs none.
fn duration(text: &str) -> std::result::Result<Duration, String> {
    let malformed = || format!("{text} is no duration such as 5m, 1.5s or 100ms");
    if text == "0" {
        return Ok(Duration::ZERO);
    }
    let (mut rest, mut seconds) = (text, 0.0);
    // Each turn takes a number and a unit.
    loop {
        let unit_at = rest.find(|letter: char| !letter.is_ascii_digit() && letter != '.').ok_or_else(malformed)?;
        let number: f64 = rest[..unit_at].parse().map_err(|_| malformed())?;
        rest = &rest[unit_at..];
        let unit = &rest[..rest.find(|letter: char| letter.is_ascii_digit()).unwrap_or(rest.len())];
        seconds += number
            * match unit {
                "h" => 3_600.0,
                "m" => 60.0,
                "s" => 1.0,
                "ms" => 1e-3,
                "us" | "µs" => 1e-6,
                "ns" => 1e-9,
                _ => return Err(malformed()),
            };
        rest = &rest[unit.len()..];
        if rest.is_empty() {
            return Duration::try_from_secs_f64(seconds).map_err(|_| malformed());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations_are_written_as_in_go() {
        for (text, milliseconds) in [("0", 0), ("5m", 300_000), ("1.5s", 1_500), ("1h30m", 5_400_000), ("100ms", 100)] {
            assert_eq!(duration(text), Ok(Duration::from_millis(milliseconds)), "{text}");
        }
        for text in ["", "5", "m", "5 m", "-5m", "5m3", "1..5s", "1d", "99999999999999999999h"] {
            assert!(duration(text).unwrap_err().ends_with("is no duration such as 5m, 1.5s or 100ms"), "{text}");
        }
    }
}
