//! Locks: how long the next of very many waiters waits once a lock is let go.
//!
//! All wait for one lock, each with a lease of its own, and one connection carries many of them. The clock of a handover
//! starts when the unlock is sent and stops when the next call is answered; the one that was answered lets go in its turn,
//! so nobody ever waits for anything but the server. That two hold the lock at once ends the scene.

use std::time::{Duration, Instant};

use bytes::Bytes;
use clap::Args;
use tarsier_proto::etcdserverpb as pb;
use tokio::sync::mpsc;
use tokio::task::JoinSet;

use crate::caller::Caller;
use crate::fault::{Fault, Result, within};
use crate::latency::{latencies, record};
use crate::leases;
use crate::link::Windows;
use crate::meter::Meter;
use crate::quick::Quick;
use crate::report::Measured;
use crate::screen::count;
use crate::server::Server;
use crate::wire;

const NAME: &str = "line";
/// Waiters on the first connection, and on each of the others.
const WAITERS_TOGETHER: u32 = 500;
const WAITERS_APART: u32 = 50;
const LEASE_TTL: Duration = Duration::from_secs(7_200);
const LOOK: Duration = Duration::from_millis(10);

#[derive(Args, Clone, Debug)]
pub struct LockArgs {
    /// Calls that wait for one lock [default: 5,000, or a tenth with --quick]
    #[arg(long)]
    lock_waiters: Option<u32>,
    /// How often it is handed over [default: 1,000, or a tenth with --quick]
    #[arg(long)]
    handovers: Option<u32>,
}

/// How large the scene is.
#[derive(Clone, Copy, Debug)]
pub struct Sizes {
    waiters: u32,
    handovers: u32,
    patience: Duration,
}

impl LockArgs {
    pub fn sizes(&self, quick: Quick, patience: Duration) -> Sizes {
        let waiters = quick.size(self.lock_waiters, 5_000);
        Sizes { waiters, handovers: quick.size(self.handovers, 1_000).min(waiters), patience }
    }
}

/// A call that was answered.
struct Held {
    key: Bytes,
    at: Instant,
}

/// Wants a fresh server.
pub async fn locks(server: &mut Server, sizes: Sizes) -> Result<Measured> {
    let scene = format!("a lock with {} waiters", count(u64::from(sizes.waiters)));
    let mut measured = Measured::default();
    // The leases have the numbers from 1 on; the last is that of whoever holds first.
    leases::grant(&server.endpoint, sizes.waiters + 1, LEASE_TTL).await?;
    let main = Caller::connect(&server.endpoint, Windows::SMALL).await?;
    let mut held = within(sizes.patience, "a lock that nobody holds", lock(&main, sizes.waiters + 1)).await?;

    let (begun, meter) = (Instant::now(), Meter::start(server.process)?);
    let (told, mut holders) = mpsc::unbounded_channel();
    // The calls end with the scene.
    let _waiters = line_up(server, sizes, &main, &told).await?;
    measured.add(&scene, "all in line within, s", begun.elapsed().as_secs_f64());
    server.wait_until_quiet().await?;
    let spent = meter.read()?;
    measured.add(
        &scene,
        "server CPU to stand in line, us each",
        spent.cpu.as_secs_f64() * 1e6 / f64::from(sizes.waiters),
    );

    let (meter, mut took) = (Meter::start(server.process)?, latencies());
    for _ in 0..sizes.handovers {
        if let Ok(answered) = holders.try_recv() {
            answered?;
            return Err(Fault::Refused("two hold one lock".to_owned()));
        }
        let begun = Instant::now();
        main.unlock(held.key).await?;
        let next = tokio::time::timeout(sizes.patience, holders.recv()).await.map_err(|_| Fault::Stalled {
            waiting_for: "the next holder of the lock".to_owned(),
            seconds: sizes.patience.as_secs(),
        })?;
        held = next.ok_or(Fault::Refused("nobody waits any more".to_owned()))??;
        record(&mut took, held.at - begun);
    }
    let spent = meter.read()?;
    measured.tail_of(&scene, "handover ", &took);
    spent.figures(&format!("{scene}: handovers"), u64::from(sizes.handovers), &mut measured);
    Ok(measured)
}

async fn lock(caller: &Caller, lease: u32) -> Result<Held> {
    let key = caller.lock(NAME, i64::from(lease)).await?;
    Ok(Held { key, at: Instant::now() })
}

/// Starts the calls, those of a connection when those of the one before stand in line: etcd refuses some of 5,000 that
/// come at once ("request timed out").
async fn line_up(
    server: &Server,
    sizes: Sizes,
    looks: &Caller,
    told: &mpsc::UnboundedSender<Result<Held>>,
) -> Result<JoinSet<()>> {
    let (mut calls, mut lease) = (JoinSet::new(), 0);
    while lease < sizes.waiters {
        let caller = Caller::connect(&server.endpoint, Windows::SMALL).await?;
        let together = if lease == 0 { WAITERS_TOGETHER } else { WAITERS_APART };
        for _ in 0..together.min(sizes.waiters - lease) {
            lease += 1;
            let (caller, told, lease) = (caller.clone(), told.clone(), lease);
            calls.spawn_local(async move {
                // Whoever listens is gone when the scene is over.
                let _ = told.send(lock(&caller, lease).await);
            });
        }
        wait_for_line(looks, lease, sizes.patience).await?;
    }
    Ok(calls)
}

/// Until the keys of so many and of the holder stand below the name.
async fn wait_for_line(caller: &Caller, waiters: u32, patience: Duration) -> Result<()> {
    let (key, range_end) = (format!("{NAME}/").into_bytes().into(), format!("{NAME}0").into_bytes().into());
    let request = pb::RangeRequest { key, range_end, count_only: true, ..Default::default() };
    let (mut there, mut last) = (0, Instant::now());
    while there <= i64::from(waiters) {
        let answer: pb::RangeResponse = caller.ask(wire::PATH_RANGE, &request).await?;
        if answer.count > there {
            (there, last) = (answer.count, Instant::now());
        } else if last.elapsed() > patience {
            let waiting_for = format!("{} keys in line, of which {there} are there", waiters + 1);
            return Err(Fault::Stalled { waiting_for, seconds: patience.as_secs() });
        }
        tokio::time::sleep(LOOK).await;
    }
    Ok(())
}
