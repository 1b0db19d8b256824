//! The storm: every client of very many watches is gone while its keys change, and all come back at once with the revision
//! at which they left.
//!
//! The witness is judged by two controls: alone, and beside threads that burn as much CPU time as the clients did, and do
//! nothing else. What the second one feels is the machine's, not the server's.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use super::Sizes;
use super::witness::Witness;
use crate::delivery::{self, put_all};
use crate::fault::Result;
use crate::fleet::{self, Fleet};
use crate::judge::events_due;
use crate::keys::{KeyChoice, Plan};
use crate::meter::Meter;
use crate::process;
use crate::report::Measured;
use crate::screen::count;
use crate::server::Server;
use crate::threads;

const STREAMS: u32 = 10;
const WATCHINGS: u32 = 100;

pub async fn storm(server: &mut Server, sizes: Sizes) -> Result<Measured> {
    let connections = (sizes.storm_watches / (STREAMS * WATCHINGS)).max(1);
    let plan = Plan {
        connections,
        streams: STREAMS,
        watchings: WATCHINGS,
        choice: KeyChoice::Pool,
        pool: sizes.storm_keys,
        range_keys: 1,
        prefix: "storm/",
        key_bytes: 32,
        seed: 1,
    };
    let revisions = count(u64::from(sizes.storm_revisions));
    let scene = format!("storm of {} watches over {revisions} revisions", count(plan.watches()));
    let pace = fleet::Pace { threads: sizes.threads, ramp: 64, window: 128, nice: 0 };
    let caller = server.caller().await?;
    let base_revision = caller.revision().await?;
    let gone = Fleet::launch(plan.clone(), &server.endpoint, pace, base_revision)?;
    gone.wait_created(sizes.patience, |_| server.check_alive()).await?;
    drop(gone);
    let keys = plan.put_keys(sizes.storm_revisions);
    let due = events_due(&plan, &keys);
    let puts = put_all(&caller, &plan, &keys, delivery::EVENT_VALUE_BYTES, 16).await?;
    server.wait_until_quiet().await?;

    let (witness, meter) = (Witness::start(&server.endpoint, sizes.puts_a_second)?, Meter::start(server.process)?);
    tokio::time::sleep(sizes.window).await;
    let control = meter.read()?;
    witness.next_phase();
    let (meter, begun) = (Meter::start(server.process)?, Instant::now());
    let back = fleet::Pace { nice: sizes.nice, ..pace };
    let back = Fleet::resume(plan, &server.endpoint, back, base_revision)?;
    back.wait_created(sizes.patience, |_| server.check_alive()).await?;
    let created = begun.elapsed();
    let complete = back.wait_delivered(due, sizes.patience, |_| server.check_alive()).await;
    let caught_up = begun.elapsed();
    let spent = meter.read()?;
    witness.next_phase();
    server.wait_until_quiet().await?;
    witness.next_phase();
    let share = spent.own.as_secs_f64() / spent.wall.as_secs_f64() / f64::from(sizes.threads);
    let burners = Burners::start(sizes, share)?;
    tokio::time::sleep(sizes.window).await;
    drop(burners);
    let tails = witness.finish().await?;

    let mut measured = Measured::default();
    measured.add(&scene, "all created, s", created.as_secs_f64());
    measured.headline(&scene, "all caught up, s", caught_up.as_secs_f64());
    measured.add(&scene, "CPU time of the load client, part of a core", share * f64::from(sizes.threads));
    measured.add(&scene, "events missed and caught up", due as f64);
    let cpu = spent.cpu_beyond(&control).as_secs_f64();
    measured.add(&scene, "server CPU beyond the quiet control's, us a watch", cpu * 1e6 / back.plan.watches() as f64);
    let quiet = format!("{scene}: quiet control");
    measured.add(&quiet, "server CPU, % of a core", control.cpu_per_cent());
    tails[0].add(&mut measured, &quiet);
    tails[3].add(&mut measured, &format!("{scene}: control beside as much CPU time as the clients take"));
    tails[1].add(&mut measured, &format!("{scene}: witness meanwhile"));
    measured.void = delivery::judge(&caller, &back, &puts, complete).await?;
    Ok(measured)
}

/// Threads that use a share of a core each, in slices as short as the turns of a client, until this is dropped.
struct Burners {
    stops: Arc<AtomicBool>,
    threads: Vec<JoinHandle<()>>,
}

impl Burners {
    const SLICE: Duration = Duration::from_millis(1);

    fn start(sizes: Sizes, share: f64) -> Result<Burners> {
        let mut burners = Burners { stops: Arc::default(), threads: Vec::new() };
        for _ in 0..sizes.threads {
            let stops = burners.stops.clone();
            let burn = move || {
                // Where the clients were refused it, the storm has ended with that fault.
                let _ = process::set_niceness(sizes.nice);
                while !stops.load(Ordering::Relaxed) {
                    let begun = Instant::now();
                    while begun.elapsed() < Self::SLICE.mul_f64(share.min(1.0)) {
                        std::hint::spin_loop();
                    }
                    std::thread::sleep(Self::SLICE.saturating_sub(begun.elapsed()));
                }
            };
            burners.threads.push(threads::spawn("burner".to_owned(), burn)?);
        }
        Ok(burners)
    }
}

impl Drop for Burners {
    fn drop(&mut self) {
        self.stops.store(true, Ordering::Relaxed);
        for thread in self.threads.drain(..) {
            // It cannot panic: it computes nothing.
            let _ = thread.join();
        }
    }
}
