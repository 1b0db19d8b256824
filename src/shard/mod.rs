//! One thread, one ring, one shard.

pub mod clock;
pub mod cores;

use crate::config::Config;

/// Runs the server until it is told to stop.
pub fn run(config: Config) -> Result<(), String> {
    Err(format!("{}: no shards in this build", config.name))
}
