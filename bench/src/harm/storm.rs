//! The storm: every client of very many watches is gone while its keys change, and all come back at once with the revision
//! at which they left.

use std::time::Instant;

use super::Sizes;
use super::witness::Witness;
use crate::check::events_due;
use crate::delivery::{self, put_all};
use crate::fault::Result;
use crate::fleet::{self, Fleet};
use crate::keys::{KeyChoice, Plan};
use crate::meter::Meter;
use crate::report::Measured;
use crate::screen::count;
use crate::server::Server;

/// Puts that are missed, each on a key of its own.
const MISSED_PUTS: u32 = 10_000;
const STREAMS: u32 = 10;
const WATCHINGS: u32 = 100;

pub async fn storm(server: &mut Server, sizes: Sizes) -> Result<Measured> {
    let connections = (sizes.storm_watches / (STREAMS * WATCHINGS)).max(1);
    let plan = Plan {
        connections,
        streams: STREAMS,
        watchings: WATCHINGS,
        choice: KeyChoice::Pool,
        pool: 100_000,
        range_keys: 1,
        prefix: "storm/",
        key_bytes: 32,
        seed: 1,
    };
    let scene = format!("storm of {} watches", count(plan.watches()));
    let pace = fleet::Pace { threads: sizes.threads, ramp: 64, window: 128 };
    let caller = server.caller().await?;
    let base_revision = caller.revision().await?;
    let gone = Fleet::launch(plan.clone(), &server.endpoint, pace, base_revision)?;
    gone.wait_created(sizes.patience, |_| server.check_alive()).await?;
    drop(gone);
    let keys = plan.put_keys(MISSED_PUTS);
    let due = events_due(&plan, &keys);
    let puts = put_all(&caller, &plan, &keys, delivery::EVENT_VALUE_BYTES, 16).await?;
    server.wait_until_quiet().await?;

    let witness = Witness::start(&server.endpoint, sizes.puts_a_second)?;
    tokio::time::sleep(sizes.window).await;
    witness.next_phase();
    let (meter, begun) = (Meter::start(server.process)?, Instant::now());
    let back = Fleet::resume(plan, &server.endpoint, pace, base_revision)?;
    back.wait_created(sizes.patience, |_| server.check_alive()).await?;
    let created = begun.elapsed();
    let complete = back.wait_delivered(due, sizes.patience, |_| server.check_alive()).await;
    let caught_up = begun.elapsed();
    let spent = meter.read()?;
    witness.next_phase();
    let tails = witness.finish().await?;

    let mut measured = Measured::default();
    measured.add(&scene, "all created, s", created.as_secs_f64());
    measured.headline(&scene, "all caught up, s", caught_up.as_secs_f64());
    measured.add(&scene, "events missed and caught up", due as f64);
    measured.add(&scene, "server CPU, us a watch", spent.cpu.as_secs_f64() * 1e6 / back.plan.watches() as f64);
    tails[0].add(&mut measured, &format!("{scene}: quiet control"));
    tails[1].add(&mut measured, &format!("{scene}: witness meanwhile"));
    measured.void = delivery::judge(&caller, &back, &puts, complete).await?;
    Ok(measured)
}
