//! Scenes of harm: some clients ask for everything, hang, leave or come back all at once, and one modest client beside
//! them says what it felt.
//!
//! Storm, teardown and windows have their quiet control on the same server, stuck on a fresh one, and churn has none. The latencies are open loop: see [`witness`].

mod call;
mod churn;
mod storm;
mod stuck;
mod teardown;
mod windows;
mod witness;

use std::time::Duration;

use clap::Args;

use crate::quick::Quick;
use crate::server::Side;

pub use call::{WatchCall, deaf_streams, ended_among};
pub use churn::{churn, create_and_cancel};
pub use storm::storm;
pub use stuck::stuck;
pub use teardown::teardown;
pub use windows::windows;
pub use witness::Witness;

/// How large the scenes are.
#[derive(Clone, Copy, Debug)]
pub struct Sizes {
    /// Watches that leave and come back in the storm, and that are torn down.
    pub storm_watches: u32,
    /// Revisions that the clients of the storm miss, and the keys that these and the watches are spread over.
    pub storm_revisions: u32,
    pub storm_keys: u32,
    pub teardown_watches: u32,
    /// Revisions that a stuck watcher is behind.
    pub behind: u32,
    /// The longest time to get it there: a server that its stuck watchers slow down does not hold the scene up for hours.
    pub behind_at_most: Duration,
    pub stuck: u32,
    pub closed_windows: u32,
    pub churn: Duration,
    /// Length of the control and of what stands beside it.
    pub window: Duration,
    pub threads: u32,
    pub patience: Duration,
    /// Puts of the witness.
    pub puts_a_second: u32,
    /// Niceness of the clients that come back.
    pub nice: i32,
}

#[derive(Args, Clone, Debug)]
pub struct HarmArgs {
    /// Watches of the storm [default: 1,000,000, or a tenth with --quick]
    #[arg(long)]
    storm_watches: Option<u32>,
    /// The same for etcd, at a size it can bear [default: 100,000, or a tenth with --quick]
    #[arg(long)]
    storm_watches_etcd: Option<u32>,
    /// Revisions that the clients of the storm miss [default: 10,000, or a tenth with --quick]
    #[arg(long)]
    storm_revisions: Option<u32>,
    /// Keys that these revisions and the watches of the storm are spread over
    #[arg(long, default_value_t = 100_000, value_parser = clap::value_parser!(u32).range(1..))]
    storm_keys: u32,
    /// Watches that are torn down [default: 10,000,000, or a tenth with --quick]
    #[arg(long)]
    teardown_watches: Option<u32>,
    /// The same for etcd, at a size it can bear [default: 500,000, or a tenth with --quick]
    #[arg(long)]
    teardown_watches_etcd: Option<u32>,
    /// Revisions that the stuck watchers are behind [default: 524,288, or a tenth with --quick]
    #[arg(long)]
    behind: Option<u32>,
    /// Seconds after which the stuck watchers are measured as far behind as they are [default: 120, or a tenth with --quick]
    #[arg(long)]
    behind_seconds: Option<u32>,
    /// Stuck watchers where there are many [default: 10,000, or a tenth with --quick]
    #[arg(long)]
    stuck: Option<u32>,
    /// The same for etcd: beside 1,000 that come back with the first revision, its puts time out [default: 10, or a tenth with --quick]
    #[arg(long)]
    stuck_etcd: Option<u32>,
    /// Streams with closed windows [default: 5,000, or a tenth with --quick]
    #[arg(long)]
    closed_windows: Option<u32>,
    /// Seconds of creates and cancels [default: 600, or a tenth with --quick]
    #[arg(long)]
    churn_seconds: Option<u32>,
    /// Puts a second of the witness beside those that do harm
    #[arg(long, default_value_t = 500)]
    pub witness_rate: u32,
    /// Niceness of the clients that come back: a real million of them does not compute on the server's cores
    #[arg(long, default_value_t = 19, value_parser = clap::value_parser!(i32).range(0..=19))]
    client_nice: i32,
}

impl HarmArgs {
    /// What a reader of the figures should know.
    pub fn note(&self) -> String {
        format!("the clients of the storm run at niceness {}", self.client_nice)
    }

    pub fn sizes(&self, side: Side, quick: Quick, window: Duration, threads: u32, patience: Duration) -> Sizes {
        let seconds = |asked, usual| Duration::from_secs(u64::from(quick.size(asked, usual)));
        let of_side = |etcd, tarsier| quick.size_of_side(side, etcd, tarsier);
        Sizes {
            storm_watches: of_side((self.storm_watches_etcd, 100_000), (self.storm_watches, 1_000_000)),
            storm_revisions: quick.size(self.storm_revisions, 10_000),
            storm_keys: self.storm_keys,
            teardown_watches: of_side((self.teardown_watches_etcd, 500_000), (self.teardown_watches, 10_000_000)),
            behind: quick.size(self.behind, 524_288),
            behind_at_most: seconds(self.behind_seconds, 120),
            stuck: of_side((self.stuck_etcd, 10), (self.stuck, 10_000)),
            closed_windows: quick.size(self.closed_windows, 5_000),
            churn: seconds(self.churn_seconds, 600),
            window,
            threads,
            patience,
            puts_a_second: self.witness_rate,
            nice: self.client_nice,
        }
    }
}
