//! The scenes of a comparison: each brings its own load to a running server and says what a unit of work cost.

use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::time::{Duration, Instant};

use hdrhistogram::Histogram;

use crate::bystander;
use crate::delivery::{self, EVENT_VALUE_BYTES, put_all};
use crate::disk::{Disk, DiskCounts};
use crate::fault::{Fault, Result};
use crate::fleet::{Fleet, Pace, Progress};
use crate::keys::{KeyChoice, Plan};
use crate::load::{self, Load, Shape, Work};
use crate::meter::Meter;
use crate::process::{Memory, Process};
use crate::report::Measured;
use crate::screen::count;
use crate::server::Server;

/// How large the scenes are.
#[derive(Clone, Copy, Debug)]
pub struct Scale {
    pub threads: u32,
    /// Length of a measured window.
    pub window: Duration,
    pub warm_up: Duration,
    /// Watches that a create scene creates.
    pub creates: u32,
    /// Events that an event scene causes, about.
    pub events: u32,
    /// Watches held by the idle scene.
    pub idle_watches: u32,
    /// Give up when nothing moves for so long.
    pub patience: Duration,
}

impl Scale {
    fn pace(&self) -> Pace {
        Pace { threads: self.threads, ramp: 64, window: 128 }
    }
}

/// Connections, streams of each, watches of each.
pub type WatchShape = (u32, u32, u32);

fn plan((connections, streams, watchings): WatchShape, choice: KeyChoice, prefix: &'static str) -> Plan {
    Plan { connections, streams, watchings, choice, pool: 100_000, range_keys: 10, prefix, key_bytes: 32, seed: 1 }
}

const CLIENTS: u32 = 1_000;
const CLIENT_CONNECTIONS: u32 = 100;
const VALUE_BYTES: usize = 256;

/// A closed loop of clients, and what is measured of it.
pub struct ClosedLoop {
    pub scene: &'static str,
    pub connections: u32,
    pub clients: u32,
    pub work: Work,
    pub warm_up: Duration,
    /// Counts what is written to this device meanwhile.
    pub disk: Option<Disk>,
}

/// Puts by 1,000 clients over 100 connections.
pub async fn put(server: &mut Server, scale: &Scale) -> Result<Measured> {
    let work = Work::Put { keys: 100_000, key_bytes: 32, value_bytes: VALUE_BYTES };
    many_clients("put, 1,000 clients over 100 connections, 256 B", work, scale).run(server, scale).await
}

/// Linearizable reads of one key by the same clients.
pub async fn read(server: &mut Server, scale: &Scale) -> Result<Measured> {
    let key = b"read/key".to_vec();
    server.caller().await?.put(&key, &[b'v'; VALUE_BYTES]).await?;
    let work = Work::Read { key };
    many_clients("linearizable read of one key, same clients", work, scale).run(server, scale).await
}

fn many_clients(scene: &'static str, work: Work, scale: &Scale) -> ClosedLoop {
    let (connections, clients) = (CLIENT_CONNECTIONS, CLIENTS);
    ClosedLoop { scene, connections, clients, work, warm_up: scale.warm_up, disk: None }
}

/// Puts to a million keys by many clients and by one, and what they write to the device. The warm-up is as long as the
/// window, so that what a server does later for what it has answered is under way.
pub async fn durable_put(server: &mut Server, scale: &Scale) -> Result<Measured> {
    let disk = Some(server.disk()?);
    let work = Work::Put { keys: 1_000_000, key_bytes: 32, value_bytes: VALUE_BYTES };
    let warm_up = scale.warm_up + scale.window;
    let scene = "put to 1M keys, 1,000 clients over 100 connections, 256 B";
    let many = ClosedLoop { warm_up, disk: disk.clone(), ..many_clients(scene, work.clone(), scale) };
    let mut measured = many.run(server, scale).await?;
    let scene = "put to 1M keys, one client, 256 B";
    let one = ClosedLoop { scene, connections: 1, clients: 1, work, warm_up, disk };
    measured.figures.extend(one.run(server, scale).await?.figures);
    Ok(measured)
}

impl ClosedLoop {
    async fn run(self, server: &mut Server, scale: &Scale) -> Result<Measured> {
        let ClosedLoop { scene, connections, clients, work, warm_up, disk } = self;
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
            return Err(if load.has_failed() { load.finish().err().unwrap_or_else(nothing) } else { nothing() });
        }
        let latency = load.finish()?;
        let mut measured = Measured::default();
        spent.figures(scene, units, &mut measured);
        add_latency(&mut measured, scene, &latency);
        if let Some((after, before)) = written {
            measured.add(scene, "p99.9, ms", latency.value_at_quantile(0.999) as f64 / 1e3);
            add_disk(&mut measured, scene, after.since(before), units, spent.wall);
        }
        Ok(measured)
    }
}

/// What was written to the whole device: nothing else on the machine may write meanwhile.
fn add_disk(measured: &mut Measured, scene: &str, counts: DiskCounts, units: u64, wall: Duration) {
    let units = units as f64;
    measured.add(scene, "bytes written to the device, each", counts.written_bytes as f64 / units);
    measured.add(scene, "flushes of the device, each", counts.flushes as f64 / units);
    measured.add(scene, "device busy, % of the time", counts.busy.as_secs_f64() / wall.as_secs_f64() * 100.0);
}

/// The state that a server comes back with.
#[derive(Clone, Copy, Debug)]
pub struct State {
    pub keys: u32,
    pub revisions_each: u32,
}

/// Fills a store, kills its server and measures the way back; wants a fresh server.
pub async fn recovery(server: &mut Server, state: State) -> Result<Measured> {
    let State { keys, revisions_each } = state;
    let scene = format!("{} keys, {} revisions each, 256 B", count(u64::from(keys)), count(u64::from(revisions_each)));
    for _ in 0..revisions_each {
        bystander::load(&server.endpoint, keys, &[b'v'; VALUE_BYTES]).await?;
    }
    server.wait_until_quiet().await?;
    let mut measured = Measured::default();
    add_memory(&mut measured, &format!("{scene}: filled"), server.process.memory()?);
    let revision = server.caller().await?.revision().await?;
    server.kill();
    let bytes = bytes_below(&server.data())?;
    server.spawn_again()?;
    let ready = server.wait_until_ready().await?;
    let scene = format!("{scene}: after kill -9");
    measured.add(&scene, "s until the first answer", ready.as_secs_f64());
    measured.add(&scene, "data directory, MB", bytes as f64 / 1e6);
    let found = server.caller().await?.revision().await?;
    if found != revision {
        measured.void = Some(format!("revision {revision} came back as {found}"));
    }
    server.wait_until_quiet().await?;
    add_memory(&mut measured, &scene, server.process.memory()?);
    Ok(measured)
}

fn add_memory(measured: &mut Measured, scene: &str, memory: Memory) {
    measured.add(scene, "VmRSS, MB", memory.resident as f64 / 1e6);
    measured.add(scene, "RssAnon, MB", memory.anonymous as f64 / 1e6);
    measured.add(scene, "RssFile, MB", memory.file as f64 / 1e6);
}

/// What the files of a directory take on the disk.
fn bytes_below(directory: &Path) -> Result<u64> {
    let unreadable = |cause| Fault::Refused(format!("{} cannot be read: {cause}", directory.display()));
    let mut bytes = 0;
    for entry in std::fs::read_dir(directory).map_err(unreadable)? {
        let entry = entry.map_err(unreadable)?;
        let metadata = entry.metadata().map_err(unreadable)?;
        bytes += if metadata.is_dir() { bytes_below(&entry.path())? } else { metadata.blocks() * 512 };
    }
    Ok(bytes)
}

fn add_latency(measured: &mut Measured, scene: &str, latency: &Histogram<u64>) {
    measured.add(scene, "p50, ms", latency.value_at_quantile(0.5) as f64 / 1e3);
    measured.add(scene, "p99, ms", latency.value_at_quantile(0.99) as f64 / 1e3);
}

/// Creates of watches over 100 connections of one stream.
pub async fn create(server: &mut Server, scale: &Scale, choice: KeyChoice) -> Result<Measured> {
    let (scene, prefix) = match choice {
        KeyChoice::Own => ("watch create, own keys", "create-own/"),
        KeyChoice::One => ("watch create, one key", "create-one/"),
        KeyChoice::Range => ("watch create, ranges of 10 of 100,000 keys", "create-range/"),
        KeyChoice::Pool => ("watch create, keys of a pool", "create-pool/"),
    };
    server.wait_until_quiet().await?;
    let plan = plan((100, 1, (scale.creates / 100).max(1)), choice, prefix);
    let watches = plan.watches();
    let revision = server.caller().await?.revision().await?;
    let meter = Meter::start(server.process)?;
    let fleet = Fleet::launch(plan, &server.endpoint, scale.pace(), revision)?;
    fleet.wait_created(scale.patience, |_| server.check_alive()).await?;
    let spent = meter.read()?;
    let mut measured = Measured::default();
    spent.figures(scene, watches, &mut measured);
    measured.void = prove(server, scale, &fleet, 100).await?;
    Ok(measured)
}

/// Says why the scene is void, if it is.
async fn prove(server: &mut Server, scale: &Scale, fleet: &Fleet, puts: u32) -> Result<Option<String>> {
    let caller = server.caller().await?;
    let proof = delivery::prove(&caller, fleet, puts, scale.patience, || server.check_alive()).await?;
    Ok(proof.void)
}

/// Events of one key that every watch of the shape watches. The next put leaves when all have the event of the last, so
/// neither side can gather the events of several puts into one message.
pub async fn event(server: &mut Server, scale: &Scale, shape: WatchShape) -> Result<Measured> {
    let (connections, streams, watchings) = shape;
    let scene =
        format!("event, {} connections x {streams} streams x {watchings} watches", count(u64::from(connections)));
    server.wait_until_quiet().await?;
    let caller = server.caller().await?;
    let base_revision = caller.revision().await?;
    let fleet = Fleet::launch(plan(shape, KeyChoice::One, "event/"), &server.endpoint, scale.pace(), base_revision)?;
    fleet.wait_created(scale.patience, |_| server.check_alive()).await?;
    server.wait_until_quiet().await?;

    let watches = fleet.plan.watches();
    let puts_due = (u64::from(scale.events) / watches).max(3);
    let (mut puts, mut to_last, mut complete) = (Vec::new(), load::latencies(), Ok(()));
    let meter = Meter::start(server.process)?;
    for put in 1..=puts_due {
        let begun = Instant::now();
        fleet.expect_delivered(put * watches);
        puts.extend(put_all(&caller, &fleet.plan, &[0], EVENT_VALUE_BYTES, 1).await?);
        complete = fleet.wait_delivered(put * watches, scale.patience, |_: &Progress| server.check_alive()).await;
        if complete.is_err() {
            break;
        }
        load::record(&mut to_last, begun.elapsed());
    }
    let spent = meter.read()?;
    let mut measured = Measured::default();
    spent.figures(&scene, puts.len() as u64 * watches, &mut measured);
    let scene = format!("{scene}: put to last event");
    add_latency(&mut measured, &scene, &to_last);
    measured.void = delivery::judge(&caller, &fleet, &puts, complete).await?;
    Ok(measured)
}

/// CPU of a server that holds watches and is asked for nothing.
pub async fn idle(server: &mut Server, scale: &Scale) -> Result<Measured> {
    let plan = plan((100, 10, (scale.idle_watches / 1_000).max(1)), KeyChoice::Pool, "idle/");
    let scene = format!("idle, {} watches held", count(plan.watches()));
    let revision = server.caller().await?.revision().await?;
    let fleet = Fleet::launch(plan, &server.endpoint, scale.pace(), revision)?;
    fleet.wait_created(scale.patience, |_| server.check_alive()).await?;
    server.wait_until_quiet().await?;
    let meter = Meter::start(server.process)?;
    // CPU time is counted in hundredths of a second, so an idle server needs a long window.
    tokio::time::sleep(scale.window * 2).await;
    let spent = meter.read()?;
    let mut measured = Measured::default();
    let millis = spent.cpu.as_secs_f64() * 1e3 / spent.wall.as_secs_f64();
    measured.add(&scene, "server CPU, ms a second", millis);
    measured.void = prove(server, scale, &fleet, 1_000).await?;
    Ok(measured)
}

/// Resident memory with so many watches; wants a fresh server, since a used one keeps what it freed.
pub async fn memory(server: &mut Server, scale: &Scale, shape: WatchShape) -> Result<Measured> {
    let plan = plan(shape, KeyChoice::Pool, "memory/");
    let (connections, streams, watchings) = shape;
    let scene = format!("memory, {} x {streams} x {watchings} watches", count(u64::from(connections)));
    let empty = server.process.memory()?;
    let revision = server.caller().await?.revision().await?;
    let fleet = Fleet::launch(plan, &server.endpoint, scale.pace(), revision)?;
    fleet.wait_created(scale.patience, |_| server.check_alive()).await?;
    // Long enough for a server that gives idle buffers back after some seconds of silence.
    tokio::time::sleep(Duration::from_secs(10)).await;
    let held = server.process.memory()?;
    let mut measured = Measured::default();
    measured.add(&scene, "VmRSS, MB", held.resident as f64 / 1e6);
    measured.add(&scene, "RssAnon, MB", held.anonymous as f64 / 1e6);
    measured.add("memory, empty server", "VmRSS, MB", empty.resident as f64 / 1e6);
    measured.add(&scene, "load client itself, VmRSS, MB", Process::own().memory()?.resident as f64 / 1e6);
    measured.void = prove(server, scale, &fleet, 1_000).await?;
    Ok(measured)
}
