//! Durability from outside: the real binary is stopped in every way we can, and what it told must be there.
//!
//! ```text
//! cargo test -p tarsier-bench --test durability                          # the tarsier of this workspace
//! TARSIER_BIN=/path/to/etcd cargo test -p tarsier-bench --test durability   # a real etcd: a check of the checks
//! TARSIER_SEED=7 TARSIER_KILLS=500 cargo test ...                        # another run, a longer one
//! ```
//!
//! What concerns tarsier's own files is not asked of another server. A longer run, with power cuts, is
//! `tarsier-bench soak`.

#[path = "../server/mod.rs"]
#[allow(dead_code, reason = "only the choice of the binary is used here")]
mod binary;
#[path = "../../src/caller.rs"]
#[allow(dead_code, reason = "the load generator uses the rest")]
mod caller;
#[path = "../../src/cgroup.rs"]
#[allow(dead_code, reason = "the load generator uses the rest")]
mod cgroup;
#[path = "../../src/cpus.rs"]
#[allow(dead_code, reason = "the load generator uses the rest")]
mod cpus;
mod damage;
#[path = "../../src/disk.rs"]
#[allow(dead_code, reason = "the load generator uses the rest")]
mod disk;
#[path = "../../src/fault.rs"]
#[allow(dead_code, reason = "the load generator uses the rest")]
mod fault;
mod full;
#[path = "../../../src/net/idle.rs"]
#[allow(dead_code, reason = "the server uses the rest")]
mod idle;
mod leases;
#[path = "../../src/link.rs"]
#[allow(dead_code, reason = "the load generator uses the rest")]
mod link;
#[path = "../../src/numbers.rs"]
#[allow(dead_code, reason = "the load generator uses the rest")]
mod numbers;
#[path = "../../src/process.rs"]
#[allow(dead_code, reason = "the load generator uses the rest")]
mod process;
#[path = "../../src/proof/mod.rs"]
#[allow(dead_code, reason = "the load generator uses the rest")]
mod proof;
#[path = "../../src/random.rs"]
#[allow(dead_code, reason = "the load generator uses the rest")]
mod random;
#[path = "../../src/ranges.rs"]
#[allow(dead_code, reason = "the load generator uses the rest")]
mod ranges;
mod scene;
#[path = "../../src/server.rs"]
#[allow(dead_code, reason = "the load generator uses the rest")]
mod server;
mod starts;
#[path = "../../src/tasks.rs"]
#[allow(dead_code, reason = "the load generator uses the rest")]
mod tasks;
#[path = "../../src/transport.rs"]
#[allow(dead_code, reason = "the load generator uses the rest")]
mod transport;
#[path = "../../src/wire.rs"]
#[allow(dead_code, reason = "the load generator uses the rest")]
mod wire;

use crate::proof::Trial;
use crate::scene::{number, program, say, with_log};
use crate::server::{Server, Side};

#[test]
fn a_server_that_is_killed_again_and_again_loses_nothing_it_told() {
    let (seed, kills) = (number("TARSIER_SEED", 1), number("TARSIER_KILLS", 60));
    say(&format!("seed {seed}, {kills} kills"));
    scene::run(async {
        let mut trial = Trial::begin(&program(), seed).await?;
        while trial.figures.stops < kills {
            let length = trial.milliseconds(20, 400);
            trial.load_and_kill(length).await?;
            // Now and then the next start is cut off too.
            if trial.once_in(4) {
                let length = trial.milliseconds(0, 100);
                trial.start_and_kill(length).await?;
            }
            let verified = trial.start_and_verify().await;
            with_log(&trial.server, verified)?;
        }
        say(&trial.figures.to_string());
        Ok(())
    });
}

#[test]
fn a_server_that_is_asked_to_end_keeps_everything() {
    scene::run(async {
        let mut trial = Trial::begin(&program(), 2).await?;
        for _ in 0..5 {
            let length = trial.milliseconds(100, 300);
            let end = async |server: &mut Server| {
                let status = server.end().await?;
                // A real etcd ends itself by the signal that it was sent.
                assert!(status.code() == Some(0) || server.side == Side::Etcd, "{status}");
                Ok(())
            };
            trial.load_and_stop(length, end).await?;
            let verified = trial.start_and_verify().await;
            with_log(&trial.server, verified)?;
        }
        say(&trial.figures.to_string());
        Ok(())
    });
}
