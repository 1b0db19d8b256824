//! Scenes of single calls: what each costs the server with as many under way as it bears, and how late its answers come
//! when calls arrive on a schedule.
//!
//! The schedules ask the same of both servers, at a rate that either bears on two cores beside the load client: a tail
//! of a server that is overrun would say how long it was overrun.

use std::time::Duration;

use super::scenes::{Scale, VALUE_BYTES};
use crate::disk::{Disk, DiskCounts};
use crate::fault::{Fault, Result};
use crate::load::{Load, Shape};
use crate::meter::Meter;
use crate::open_loop::{self, Schedule};
use crate::report::Measured;
use crate::screen::count;
use crate::server::Server;
use crate::work::Work;

const CLIENTS: u32 = 1_000;
const CLIENT_CONNECTIONS: u32 = 100;
const SCHEDULE_CONNECTIONS: u32 = 10;
const KEYS: u32 = 100_000;
const KEY_BYTES: usize = 32;
const RANGE_KEYS: u32 = 100;
/// Keys that lie below the ranges.
const RANGED_KEYS: u32 = 10_000;
const LEASES: usize = 1_000;
const WRITES_A_SECOND: u32 = 2_000;
const READS_A_SECOND: u32 = 5_000;
const RANGES_A_SECOND: u32 = 1_000;

/// A closed loop of clients, and what is measured of it.
struct ClosedLoop {
    scene: &'static str,
    connections: u32,
    clients: u32,
    work: Work,
    warm_up: Duration,
}

/// Puts by 1,000 clients over 100 connections, by one client, and on a schedule.
pub async fn put(server: &mut Server, scale: &Scale) -> Result<Measured> {
    let work = Work::Put { keys: KEYS, key_bytes: KEY_BYTES, value_bytes: VALUE_BYTES };
    let mut measured = Measured::default();
    let scene = "put, 1,000 clients over 100 connections, 256 B";
    many_clients(scene, work.clone(), scale).run(server, scale, &mut measured).await?;
    let one = ClosedLoop {
        scene: "put, one client, 256 B",
        connections: 1,
        clients: 1,
        work: work.clone(),
        warm_up: scale.warm_up,
    };
    one.run(server, scale, &mut measured).await?;
    on_schedule("put", WRITES_A_SECOND, work, server, scale, &mut measured).await?;
    Ok(measured)
}

/// Linearizable reads of one key by the same clients.
pub async fn read(server: &mut Server, scale: &Scale) -> Result<Measured> {
    let key = b"read/key".to_vec();
    server.caller().await?.put(&key, &[b'v'; VALUE_BYTES]).await?;
    let names = ["linearizable read of one key, same clients", "read of one key"];
    both(names, READS_A_SECOND, Work::Read { key }, server, scale).await
}

/// Linearizable reads of a hundred keys.
pub async fn range(server: &mut Server, scale: &Scale) -> Result<Measured> {
    let work = Work::ranges(&server.endpoint, RANGED_KEYS, RANGE_KEYS, &[b'v'; VALUE_BYTES]).await?;
    server.wait_until_quiet().await?;
    let names = ["linearizable range of 100 keys of 256 B, same clients", "range of 100 keys"];
    both(names, RANGES_A_SECOND, work, server, scale).await
}

/// Transactions of one comparison and one put.
pub async fn transaction(server: &mut Server, scale: &Scale) -> Result<Measured> {
    let work = Work::Transaction { keys: KEYS, key_bytes: KEY_BYTES, value_bytes: VALUE_BYTES };
    let names = ["transaction: compare and put, 256 B, same clients", "transaction"];
    both(names, WRITES_A_SECOND, work, server, scale).await
}

/// Keep-alives of 1,000 leases, each a call of its own.
pub async fn keep_alive(server: &mut Server, scale: &Scale) -> Result<Measured> {
    let work = Work::keep_alives(&server.endpoint, LEASES).await?;
    let names = ["keep-alive of a lease, same clients", "keep-alive"];
    both(names, READS_A_SECOND, work, server, scale).await
}

/// The same work by many clients, then on a schedule.
async fn both(
    [many, scheduled]: [&'static str; 2],
    calls_a_second: u32,
    work: Work,
    server: &mut Server,
    scale: &Scale,
) -> Result<Measured> {
    let mut measured = Measured::default();
    many_clients(many, work.clone(), scale).run(server, scale, &mut measured).await?;
    on_schedule(scheduled, calls_a_second, work, server, scale, &mut measured).await?;
    Ok(measured)
}

fn many_clients(scene: &'static str, work: Work, scale: &Scale) -> ClosedLoop {
    ClosedLoop { scene, connections: CLIENT_CONNECTIONS, clients: CLIENTS, work, warm_up: scale.warm_up }
}

/// Puts to a million keys by many clients and by one. The warm-up is as long as the window, so that what a server does
/// later for what it has answered is under way.
pub async fn durable_put(server: &mut Server, scale: &Scale) -> Result<Measured> {
    let work = Work::Put { keys: 1_000_000, key_bytes: KEY_BYTES, value_bytes: VALUE_BYTES };
    let warm_up = scale.warm_up + scale.window;
    let scene = "put to 1M keys, 1,000 clients over 100 connections, 256 B";
    let mut measured = Measured::default();
    let many = ClosedLoop { warm_up, ..many_clients(scene, work.clone(), scale) };
    many.run(server, scale, &mut measured).await?;
    let scene = "put to 1M keys, one client, 256 B";
    let one = ClosedLoop { scene, connections: 1, clients: 1, work, warm_up };
    one.run(server, scale, &mut measured).await?;
    Ok(measured)
}

impl ClosedLoop {
    async fn run(self, server: &mut Server, scale: &Scale, measured: &mut Measured) -> Result<()> {
        let ClosedLoop { scene, connections, clients, work, warm_up } = self;
        // A report says once that a tmpfs has no device; its figures stand without one.
        let disk = work.syncs().then(|| server.disk().ok()).flatten();
        let load = Load::launch(&server.endpoint, Shape { connections, clients, threads: scale.threads }, work)?;
        tokio::time::sleep(warm_up).await;
        load.open_window();
        let (meter, before) = (Meter::start(server.process)?, load.completed());
        let disk_before = disk.as_ref().map(Disk::counts).transpose()?;
        tokio::time::sleep(scale.window).await;
        let (spent, units) = (meter.read()?, load.completed() - before);
        let written = disk.as_ref().map(Disk::counts).transpose()?.zip(disk_before);
        if load.has_failed() || units == 0 {
            let waiting_for = format!("an answer ({scene})");
            let nothing = || Fault::Stalled { waiting_for, seconds: scale.window.as_secs() };
            return Err(if load.has_failed() { load.finish().await.err().unwrap_or_else(nothing) } else { nothing() });
        }
        let latency = load.finish().await?;
        spent.figures(scene, units, measured);
        measured.tail(scene, &latency);
        if let Some((after, before)) = written {
            add_disk(measured, scene, after.since(before), units, spent.wall);
        }
        Ok(())
    }
}

async fn on_schedule(
    name: &str,
    calls_a_second: u32,
    work: Work,
    server: &mut Server,
    scale: &Scale,
    measured: &mut Measured,
) -> Result<()> {
    server.wait_until_quiet().await?;
    let scene = format!("{name} on a schedule, {} a second", count(u64::from(calls_a_second)));
    let (warm_up, window, connections) = (scale.warm_up, scale.window, SCHEDULE_CONNECTIONS);
    let schedule = Schedule { calls_a_second, connections, warm_up, window };
    let latency = open_loop::run(&server.endpoint, work, schedule).await?;
    measured.tail(&scene, &latency);
    measured.stands_for(&scene, "p99, ms");
    measured.latencies.push((scene, latency));
    Ok(())
}

/// What was written to the whole device: nothing else on the machine may write meanwhile.
fn add_disk(measured: &mut Measured, scene: &str, counts: DiskCounts, units: u64, wall: Duration) {
    let units = units as f64;
    measured.add(scene, "bytes written to the device, each", counts.written_bytes as f64 / units);
    measured.add(scene, "flushes of the device, each", counts.flushes as f64 / units);
    measured.add(scene, "device busy, % of the time", counts.busy.as_secs_f64() / wall.as_secs_f64() * 100.0);
}
