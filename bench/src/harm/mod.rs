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

use crate::server::Side;

pub use call::{WatchCall, deaf_streams};
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
    /// Watches of the storm
    #[arg(long, default_value_t = 1_000_000)]
    storm_watches: u32,
    /// The same for etcd, at a size it can bear
    #[arg(long, default_value_t = 100_000)]
    storm_watches_etcd: u32,
    /// Watches that are torn down
    #[arg(long, default_value_t = 10_000_000)]
    teardown_watches: u32,
    /// The same for etcd, at a size it can bear
    #[arg(long, default_value_t = 500_000)]
    teardown_watches_etcd: u32,
    /// Revisions that the stuck watchers are behind
    #[arg(long, default_value_t = 524_288)]
    behind: u32,
    /// Seconds after which the stuck watchers are measured as far behind as they are
    #[arg(long, default_value_t = 120)]
    behind_seconds: u64,
    /// Stuck watchers where there are many
    #[arg(long, default_value_t = 10_000)]
    stuck: u32,
    /// The same for etcd: beside 1,000 that come back with the first revision, its puts time out
    #[arg(long, default_value_t = 10)]
    stuck_etcd: u32,
    /// Streams with closed windows
    #[arg(long, default_value_t = 5_000)]
    closed_windows: u32,
    /// Seconds of creates and cancels
    #[arg(long, default_value_t = 600)]
    churn_seconds: u64,
    /// Puts a second of the witness beside those that do harm
    #[arg(long, default_value_t = 500)]
    pub witness_rate: u32,
    /// Niceness of the clients that come back: a real million of them does not compute on the server's cores
    #[arg(long, default_value_t = 19, value_parser = clap::value_parser!(i32).range(0..=19))]
    client_nice: i32,
}

impl HarmArgs {
    /// What a reader of the figures should know.
    pub fn notes(&self) -> [String; 2] {
        let clients = format!("the clients of the storm run at niceness {}", self.client_nice);
        [witness::note(), clients]
    }

    pub fn sizes(&self, side: Side, quick: bool, window: Duration, threads: u32, patience: Duration) -> Sizes {
        let part = if quick { 10 } else { 1 };
        let of_side = |etcd: u32, tarsier: u32| (if side == Side::Etcd { etcd } else { tarsier } / part).max(1);
        Sizes {
            storm_watches: of_side(self.storm_watches_etcd, self.storm_watches),
            teardown_watches: of_side(self.teardown_watches_etcd, self.teardown_watches),
            behind: self.behind / part,
            behind_at_most: Duration::from_secs(self.behind_seconds / u64::from(part)),
            stuck: of_side(self.stuck_etcd, self.stuck),
            closed_windows: (self.closed_windows / part).max(1),
            churn: Duration::from_secs((self.churn_seconds / u64::from(part)).max(1)),
            window,
            threads,
            patience,
            puts_a_second: self.witness_rate,
            nice: self.client_nice,
        }
    }
}
