//! The scenes of watches, and what lasting costs: each brings its own load to a running server.

use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::time::{Duration, Instant};

use crate::bystander;
use crate::delivery::{self, EVENT_VALUE_BYTES, put_all};
use crate::fault::{Fault, Result};
use crate::fleet::{Fleet, Pace, Progress};
use crate::keys::{KeyChoice, Plan};
use crate::latency::{latencies, record};
use crate::meter::Meter;
use crate::process::{Memory, Process};
use crate::report::Measured;
use crate::screen::count;
use crate::server::Server;

pub const VALUE_BYTES: usize = 256;

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
        Pace { threads: self.threads, ramp: 64, window: 128, nice: 0 }
    }
}

/// Connections, streams of each, watches of each.
pub type WatchShape = (u32, u32, u32);

fn plan((connections, streams, watchings): WatchShape, choice: KeyChoice, prefix: &'static str) -> Plan {
    Plan { connections, streams, watchings, choice, pool: 100_000, range_keys: 10, prefix, key_bytes: 32, seed: 1 }
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
    let (mut puts, mut to_last, mut complete) = (Vec::new(), latencies(), Ok(()));
    let meter = Meter::start(server.process)?;
    for put in 1..=puts_due {
        let begun = Instant::now();
        fleet.expect_delivered(put * watches);
        puts.extend(put_all(&caller, &fleet.plan, &[0], EVENT_VALUE_BYTES, 1).await?);
        complete = fleet.wait_delivered(put * watches, scale.patience, |_: &Progress| server.check_alive()).await;
        if complete.is_err() {
            break;
        }
        record(&mut to_last, begun.elapsed());
    }
    let spent = meter.read()?;
    let mut measured = Measured::default();
    spent.figures(&scene, puts.len() as u64 * watches, &mut measured);
    let scene = format!("{scene}: put to last event");
    measured.closed_loop_tail(&scene, &to_last);
    measured.stands_for(&scene, "closed loop p50, ms");
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
