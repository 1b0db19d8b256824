//! Watches that are created and canceled at full speed, under one that survives: the memory must stay flat.

use std::cell::Cell;
use std::rc::Rc;
use std::sync::Arc;
use std::time::{Duration, Instant};

use tokio::task::JoinSet;

use super::Sizes;
use super::call::WatchCall;
use super::witness::Witness;
use crate::caller::Caller;
use crate::fault::{Fault, Result};
use crate::link::Windows;
use crate::meter::Meter;
use crate::report::Measured;
use crate::server::Server;
use crate::tasks;

const CONNECTIONS: u32 = 10;
/// Creates, and then cancels, of one connection at once.
const BATCH: u32 = 128;
/// Puts a second to the survivor. Each is a revision that stays in the store, and memory is what is measured.
const SURVIVOR_PUTS_A_SECOND: u32 = 2;

pub async fn churn(server: &mut Server, sizes: Sizes) -> Result<Measured> {
    let scene = format!("create and cancel for {} s", sizes.churn.as_secs());
    let survivor = Witness::start(&server.endpoint, SURVIVOR_PUTS_A_SECOND)?;
    let (cycles, is_over) = (Rc::<Cell<u64>>::default(), Rc::<Cell<bool>>::default());
    let mut clients = JoinSet::new();
    let meter = Meter::start(server.process)?;
    for connection in 0..CONNECTIONS {
        clients.spawn_local(create_and_cancel(server.endpoint.clone(), connection, cycles.clone(), is_over.clone()));
    }
    // The first tenth fills what the server keeps for reuse.
    let begun = Instant::now();
    let mut resident = Vec::new();
    while begun.elapsed() < sizes.churn {
        tokio::time::sleep(Duration::from_millis(500)).await;
        clients.try_join_next().map_or(Ok(()), tasks::ended)?;
        if begun.elapsed() >= sizes.churn / 10 {
            resident.push(server.process.memory()?.resident);
        }
    }
    let (spent, done) = (meter.read()?, cycles.get() as f64);
    is_over.set(true);
    tasks::all(&mut clients).await?;
    let tails = survivor.finish().await?;

    let mut measured = Measured::default();
    let (first, last) = (resident.first().copied().unwrap_or(0), resident.last().copied().unwrap_or(0));
    let greatest = resident.iter().copied().max().unwrap_or(0);
    measured.add(&scene, "watches created and canceled a second", done / spent.wall.as_secs_f64());
    measured.add(&scene, "server CPU, us each", spent.cpu.as_secs_f64() * 1e6 / done.max(1.0));
    measured.add(&scene, "VmRSS behind the first tenth, MB", first as f64 / 1e6);
    measured.add(&scene, "VmRSS at the end, MB", last as f64 / 1e6);
    measured.add(&scene, "VmRSS greatest, MB", greatest as f64 / 1e6);
    measured.add(&scene, "events of the survivor", tails.iter().map(|tails| tails.events.len()).sum::<u64>() as f64);
    Ok(measured)
}

/// Creates watches and cancels them, batch by batch, until it is over.
pub async fn create_and_cancel(
    endpoint: Arc<str>,
    connection: u32,
    cycles: Rc<Cell<u64>>,
    is_over: Rc<Cell<bool>>,
) -> Result<()> {
    let mut call = WatchCall::open(&Caller::connect(&endpoint, Windows::SMALL).await?).await?;
    let (mut number, mut ids) = (0u32, Vec::new());
    while !is_over.get() {
        for _ in 0..BATCH {
            // Keys come again, but not soon: half of the creates meet a group that is just gone.
            number = (number + 1) % 10_000;
            call.create(format!("churn/{connection:04}/{number:021}").as_bytes(), b"", 0);
        }
        call.flush()?;
        ids.clear();
        while ids.len() < BATCH as usize {
            call.read_answer(|reply| {
                match reply.created && !reply.canceled {
                    true => ids.push(reply.watch_id),
                    false => return Err(Fault::Refused("a create was answered with something else".to_owned())),
                }
                Ok(())
            })
            .await?;
        }
        ids.iter().for_each(|&id| call.cancel(id));
        call.flush()?;
        let mut canceled = 0;
        while canceled < BATCH {
            call.read_answer(|reply| {
                canceled += u32::from(reply.canceled);
                Ok(())
            })
            .await?;
        }
        cycles.set(cycles.get() + u64::from(BATCH));
    }
    Ok(())
}
