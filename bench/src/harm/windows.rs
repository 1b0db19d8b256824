//! Streams whose windows stay closed, each with a watch of everything: what one costs, and what the others feel.

use super::Sizes;
use super::call::{deaf_streams, ended_among};
use super::witness::Witness;
use crate::fault::Result;
use crate::link::Windows;
use crate::report::Measured;
use crate::screen::count;
use crate::server::Server;

/// Enough for the answer to the create and closed soon after.
const WINDOWS: Windows = Windows { stream_bytes: 1 << 10, connection_bytes: 1 << 20 };

pub async fn windows(server: &mut Server, sizes: Sizes) -> Result<Measured> {
    let scene = format!("{} streams with closed windows", count(u64::from(sizes.closed_windows)));
    let witness = Witness::start(&server.endpoint, sizes.puts_a_second)?;
    tokio::time::sleep(sizes.window).await;
    // Opening them is no part of either figure.
    witness.next_phase();
    let before = server.process.memory()?;
    let mut deaf = deaf_streams(&server.endpoint, sizes.closed_windows, WINDOWS, 0).await?;
    witness.next_phase();
    tokio::time::sleep(sizes.window).await;
    let after = server.process.memory()?;
    let tails = witness.finish().await?;
    let void = ended_among("streams with closed windows", &mut deaf);
    drop(deaf);

    let mut measured = Measured { void, ..Measured::default() };
    let bytes = after.resident.saturating_sub(before.resident) as f64;
    measured.add(&scene, "VmRSS a stream, KiB", bytes / 1024.0 / f64::from(sizes.closed_windows));
    tails[0].add(&mut measured, &format!("{scene}: quiet control"));
    tails[2].add(&mut measured, &format!("{scene}: witness beside them"));
    Ok(measured)
}
