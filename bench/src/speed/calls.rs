//! Scenes of single calls: what each costs the server with as many under way as it bears, and how late its answers come
//! when calls arrive on a schedule.
//!
//! The schedules ask the same of both servers, at a rate that either bears on two cores beside the load client: a tail
//! of a server that is overrun would say how long it was overrun. Where the disk sets what a server bears, the rate is taken
//! from the closed loops of the run itself.

use std::time::Duration;

use hdrhistogram::Histogram;

use super::scenes::{Scale, VALUE_BYTES};
use crate::disk::{Disk, DiskCounts};
use crate::fault::{Fault, Result};
use crate::load::{Load, Shape};
use crate::meter::{A_SECOND, Meter, Spent};
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

const DURABLE_PUT: Work = Work::Put { keys: 1_000_000, key_bytes: KEY_BYTES, value_bytes: VALUE_BYTES };
const DURABLE_MANY: &str = "put to 1M keys, 1,000 clients over 100 connections, 256 B";
const DURABLE_ONE: &str = "put to 1M keys, one client, 256 B";

/// Puts to a million keys by many clients and by one. The warm-up is as long as the window, so that what a server does
/// later for what it has answered is under way.
pub async fn durable_put(server: &mut Server, scale: &Scale) -> Result<Measured> {
    let warm_up = scale.warm_up + scale.window;
    let mut measured = Measured::default();
    let many = ClosedLoop { warm_up, ..many_clients(DURABLE_MANY, DURABLE_PUT, scale) };
    many.run(server, scale, &mut measured).await?;
    let one = ClosedLoop { scene: DURABLE_ONE, connections: 1, clients: 1, work: DURABLE_PUT, warm_up };
    one.run(server, scale, &mut measured).await?;
    Ok(measured)
}

/// What the closed loops of one server say that it bears: calls a second of many clients, and of one.
#[derive(Clone, Copy, Debug)]
pub struct Capacity([f64; 2]);

impl Capacity {
    pub fn of(measured: &Measured) -> Option<Capacity> {
        let of_scene = |scene| measured.value(scene, A_SECOND);
        Some(Capacity([of_scene(DURABLE_MANY)?, of_scene(DURABLE_ONE)?]))
    }
}

/// Half of what the slower of these servers bears, in two digits: the calls a second that all of them are asked for.
pub fn scheduled_rates(of_servers: &[Capacity]) -> Option<[u32; 2]> {
    let half_of_least = |at: usize| {
        let least = of_servers.iter().map(|capacity| capacity.0[at]).reduce(f64::min)?;
        let half = (least / 2.0) as u32;
        let unit = 10_u32.pow(half.checked_ilog10().unwrap_or(0).saturating_sub(1));
        Some((half / unit * unit).max(1))
    };
    Some([half_of_least(0)?, half_of_least(1)?])
}

/// The puts of [`durable_put`] on a schedule, over as many connections as the clients had there.
pub async fn durable_put_on_schedule(server: &mut Server, scale: &Scale, rates: [u32; 2]) -> Result<Measured> {
    let mut measured = Measured::default();
    for (calls_a_second, connections) in rates.into_iter().zip([CLIENT_CONNECTIONS, 1]) {
        server.wait_until_quiet().await?;
        let over = if connections == 1 { "one connection".to_owned() } else { format!("{connections} connections") };
        let rate = count(u64::from(calls_a_second));
        let scene = format!("put to 1M keys on a schedule, {rate} a second over {over}, 256 B");
        let (warm_up, window) = (scale.warm_up + scale.window, scale.window);
        let schedule = Schedule { calls_a_second, connections, warm_up, window };
        let (latency, cost) =
            tokio::join!(open_loop::run(&server.endpoint, DURABLE_PUT, schedule), cost_of(server, schedule));
        let (latency, (spent, written)) = (latency?, cost?);
        spent.figures_on_schedule(&scene, latency.len(), &mut measured);
        add_scheduled(scene.clone(), latency, &mut measured);
        if let Some(written) = written {
            let units = u64::from(calls_a_second) * window.as_secs();
            add_disk(&mut measured, &scene, written, units, spent.wall);
        }
    }
    Ok(measured)
}

/// What the window of a schedule costs the server and the disk that begins now.
async fn cost_of(server: &Server, schedule: Schedule) -> Result<(Spent, Option<DiskCounts>)> {
    let disk = server.disk().ok();
    let counts = || disk.as_ref().map(Disk::counts).transpose();
    tokio::time::sleep(schedule.warm_up).await;
    let (meter, before) = (Meter::start(server.process)?, counts()?);
    tokio::time::sleep(schedule.window).await;
    let written = counts()?.zip(before).map(|(after, before)| after.since(before));
    Ok((meter.read()?, written))
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
        measured.closed_loop_tail(scene, &latency);
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
    add_scheduled(scene, latency, measured);
    Ok(())
}

fn add_scheduled(scene: String, latency: Histogram<u64>, measured: &mut Measured) {
    measured.tail(&scene, &latency);
    measured.stands_for(&scene, "p99, ms");
    measured.latencies.push((scene, latency));
}

/// What was written to the whole device: nothing else on the machine may write meanwhile.
fn add_disk(measured: &mut Measured, scene: &str, counts: DiskCounts, units: u64, wall: Duration) {
    let units = units as f64;
    measured.add(scene, "bytes written to the device, each", counts.written_bytes as f64 / units);
    measured.add(scene, "flushes of the device, each", counts.flushes as f64 / units);
    measured.add(scene, "device busy, % of the time", counts.busy.as_secs_f64() / wall.as_secs_f64() * 100.0);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_schedule_asks_for_half_of_what_the_slower_server_bears() {
        let capacities = [Capacity([62_802.0, 2_100.0]), Capacity([17_029.0, 1_540.0])];
        assert_eq!(scheduled_rates(&capacities), Some([8_500, 770]));
        assert_eq!(scheduled_rates(&capacities[..1]), Some([31_000, 1_000]));
        assert_eq!(scheduled_rates(&[Capacity([9.0, 0.5])]), Some([4, 1]));
        assert_eq!(scheduled_rates(&[]), None);
    }
}
