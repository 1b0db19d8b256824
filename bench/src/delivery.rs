//! The proof behind a figure: what was put came to every watch that was due, or the figure is void.

use std::time::Duration;

use crate::caller::Caller;
use crate::fault::{Fault, Result};
use crate::fleet::Fleet;
use crate::judge::{Put, events_due};
use crate::keys::{KeyChoice, Plan};
use crate::screen::count;

pub const EVENT_VALUE_BYTES: usize = 64;
/// How long an event that should not come is waited for.
const SETTLE: Duration = Duration::from_millis(200);

/// What the watches of a fleet were told.
pub struct Proof {
    pub events: u64,
    /// Why the run has measured nothing, if events were lost, doubled or out of order.
    pub void: Option<String>,
}

/// Puts to keys of the fleet and judges the events.
pub async fn prove(
    caller: &Caller,
    fleet: &Fleet,
    puts: u32,
    patience: Duration,
    mut still_alive: impl FnMut() -> Result<()>,
) -> Result<Proof> {
    // One key that all watch makes an event for each of them with a single put.
    let puts = if fleet.plan.choice == KeyChoice::One { 1 } else { puts };
    let keys = fleet.plan.put_keys(puts);
    let due = events_due(&fleet.plan, &keys);
    let puts = put_all(caller, &fleet.plan, &keys, EVENT_VALUE_BYTES, 16).await?;
    let complete = fleet.wait_delivered(due, patience, |_| still_alive()).await;
    Ok(Proof { events: due, void: judge(caller, fleet, &puts, complete).await? })
}

/// The verdict over all that came; a stall is no fault here, because the verdict names what is missing.
pub async fn judge(caller: &Caller, fleet: &Fleet, puts: &[Put], complete: Result<()>) -> Result<Option<String>> {
    match complete {
        Ok(()) | Err(Fault::Stalled { .. }) => {}
        Err(fault) => return Err(fault),
    }
    tokio::time::sleep(SETTLE).await;
    let revision = caller.revision().await?;
    let verdict = fleet.judge(puts, revision).await?;
    if verdict.is_clean() {
        return Ok(None);
    }
    let first = verdict.shown.first().cloned().unwrap_or_default();
    let (received, expected) = (count(verdict.received), count(verdict.expected));
    Ok(Some(format!("{received} of {expected} events, {} differences, first: {first}", verdict.differences)))
}

/// Puts each key once over one connection, `in_flight` at a time. The result is in the order of `keys`' lanes.
pub async fn put_all(
    caller: &Caller,
    plan: &Plan,
    keys: &[u32],
    value_bytes: usize,
    in_flight: u32,
) -> Result<Vec<Put>> {
    let lanes = (in_flight.max(1) as usize).min(keys.len());
    let mut tasks = Vec::new();
    for lane in 0..lanes {
        let keys: Vec<u32> = keys.iter().copied().skip(lane).step_by(lanes).collect();
        let (caller, plan) = (caller.clone(), plan.clone());
        tasks.push(tokio::task::spawn_local(async move {
            let (value, mut key) = (vec![b'v'; value_bytes], Vec::new());
            let mut puts = Vec::with_capacity(keys.len());
            for index in keys {
                plan.write_key(index, &mut key);
                puts.push(Put { key: index, revision: caller.put(&key, &value).await? });
            }
            Ok::<_, Fault>(puts)
        }));
    }
    let mut puts = Vec::with_capacity(keys.len());
    for task in tasks {
        puts.extend(task.await.map_err(|cause| Fault::Refused(format!("a put ended badly: {cause}")))??);
    }
    Ok(puts)
}
