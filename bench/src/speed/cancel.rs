//! Cancels of watches, as fast as they are answered, and the proof that they end what they name and nothing else.

use std::time::Duration;

use tokio::task::JoinSet;

use super::scenes::Scale;
use crate::caller::Caller;
use crate::fault::{Fault, Result};
use crate::harm::WatchCall;
use crate::link::Windows;
use crate::meter::Meter;
use crate::report::Measured;
use crate::server::Server;
use crate::tasks;

const CONNECTIONS: u32 = 100;
/// Requests of one stream that are unanswered.
const BATCH: usize = 128;
const SCENE: &str = "watch cancel, own keys";
/// How long an event that should not come is waited for.
const SETTLE: Duration = Duration::from_millis(200);

pub async fn cancel(server: &mut Server, scale: &Scale) -> Result<Measured> {
    let watches = (scale.creates / CONNECTIONS).max(2);
    let mut streams = Vec::new();
    for number in 0..CONNECTIONS {
        let call = WatchCall::open(&Caller::connect(&server.endpoint, Windows::SMALL).await?).await?;
        streams.push(Stream { call, number, watches });
    }
    let streams = all(streams, scale, |stream| stream.create()).await?;
    server.wait_until_quiet().await?;
    let meter = Meter::start(server.process)?;
    let streams = all(streams, scale, |stream| stream.cancel()).await?;
    let spent = meter.read()?;
    let mut measured = Measured::default();
    spent.figures(SCENE, u64::from(CONNECTIONS) * u64::from(watches - 1), &mut measured);
    let caller = server.caller().await?;
    for number in 0..CONNECTIONS {
        // The canceled ones first: an event of theirs would come before the survivor's.
        for watch in (0..watches).rev().take(10).chain([0]) {
            caller.put(&key(number, watch), b"after the cancels").await?;
        }
    }
    let outcome = all(streams, scale, |stream| stream.hear_the_survivor()).await;
    match outcome {
        Err(Fault::Broken(reason)) => measured.void = Some(reason),
        outcome => drop(outcome?),
    }
    Ok(measured)
}

/// The same work at all streams side by side, each in a task of its own so that an answer wakes one of them.
async fn all<F: Future<Output = Result<Stream>> + 'static>(
    streams: Vec<Stream>,
    scale: &Scale,
    work: impl Fn(Stream) -> F,
) -> Result<Vec<Stream>> {
    let mut side_by_side = JoinSet::new();
    for stream in streams {
        side_by_side.spawn_local(work(stream));
    }
    let late = |_| Fault::Stalled { waiting_for: "answers to cancels".to_owned(), seconds: scale.patience.as_secs() };
    tokio::time::timeout(scale.patience, tasks::all(&mut side_by_side)).await.map_err(late)?
}

fn key(stream: u32, watch: u32) -> Vec<u8> {
    format!("cancel/{stream:04}/{watch:020}").into_bytes()
}

/// A watch stream with watches of keys of their own; the first of them survives.
struct Stream {
    call: WatchCall,
    number: u32,
    watches: u32,
}

impl Stream {
    async fn create(mut self) -> Result<Stream> {
        let (mut sent, mut created) = (0, 0);
        while created < self.watches {
            let until = self.watches.min(created + BATCH as u32);
            for watch in sent..until {
                self.call.create(&key(self.number, watch), b"", 0);
            }
            if until > sent {
                self.call.flush()?;
            }
            sent = until;
            self.call
                .read(|reply| {
                    // The ids of a stream count from 0, so the id is the watch's number.
                    if !reply.created || reply.canceled || reply.watch_id != i64::from(created) {
                        return Err(Fault::Broken("a create was answered with something else".to_owned()));
                    }
                    created += 1;
                    Ok(())
                })
                .await?;
        }
        Ok(self)
    }

    /// Cancels all but the first; each cancel must be answered once.
    async fn cancel(mut self) -> Result<Stream> {
        let mut is_canceled = vec![false; self.watches as usize];
        let (mut sent, mut canceled) = (1, 1);
        while canceled < self.watches {
            let until = self.watches.min(canceled + BATCH as u32);
            (sent..until).for_each(|watch| self.call.cancel(i64::from(watch)));
            if until > sent {
                self.call.flush()?;
            }
            sent = until;
            self.call
                .read(|reply| {
                    let slot = usize::try_from(reply.watch_id).ok().and_then(|id| is_canceled.get_mut(id));
                    match slot {
                        Some(slot) if reply.canceled && !*slot && reply.watch_id > 0 => *slot = true,
                        _ => return Err(Fault::Broken("a cancel was answered with something else".to_owned())),
                    }
                    canceled += 1;
                    Ok(())
                })
                .await?;
        }
        Ok(self)
    }

    /// Waits for the one event of the first watch; the others have none, before it or after.
    async fn hear_the_survivor(mut self) -> Result<Stream> {
        let mut heard = 0;
        let mut look = |reply: &crate::wire::WatchReply<'_>| {
            for event in reply.events() {
                if reply.watch_id != 0 || event?.key != key(self.number, 0) {
                    return Err(Fault::Broken(format!(
                        "watch {} was told of an event after its cancel",
                        reply.watch_id
                    )));
                }
                heard += 1;
            }
            Ok(())
        };
        self.call.read(&mut look).await?;
        // That nothing more comes is the ordinary case.
        if let Ok(outcome) = tokio::time::timeout(SETTLE, self.call.read(&mut look)).await {
            outcome?;
        }
        match heard {
            1 => Ok(self),
            _ => Err(Fault::Broken(format!("a watch that was not canceled was told of {heard} events and not of one"))),
        }
    }
}
