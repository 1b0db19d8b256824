//! Calls on a schedule: each begins when it is due, whether or not those before it are answered, and its latency counts
//! from then. A server that stalls is so charged with all the calls that came meanwhile, and not with one a client.
//!
//! A thread that only sleeps keeps the schedule, since the event loop's timers know milliseconds only; another makes the
//! calls. Both are preferred where that is allowed: a clock or a client that waits for a core of the server's machine makes
//! its calls late, and that would count as the server's.

use std::cell::RefCell;
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use hdrhistogram::Histogram;
use tokio::sync::mpsc;
use tokio::task::JoinSet;

use crate::caller::Caller;
use crate::fault::{Fault, PATIENCE, Result, within};
use crate::latency::{latencies, record};
use crate::link::Windows;
use crate::process;
use crate::random::Random;
use crate::tasks;
use crate::threads::{self, finished, on_preferred_thread};
use crate::work::Work;

/// Calls that may be unanswered; past it the server is taken for stuck.
const UNANSWERED_MAX: usize = 200_000;

/// How often and for how long.
#[derive(Clone, Copy, Debug)]
pub struct Schedule {
    pub calls_a_second: u32,
    pub connections: u32,
    /// Not counted.
    pub warm_up: Duration,
    pub window: Duration,
}

/// The latencies of calls that were due in the window.
pub async fn run(endpoint: &Arc<str>, work: Work, schedule: Schedule) -> Result<Histogram<u64>> {
    let stops = Arc::new(AtomicBool::new(false));
    let due = start_pacer(schedule.calls_a_second, &stops)?;
    let endpoint = endpoint.clone();
    let mut calls = on_preferred_thread("schedule", move || make_calls(endpoint, work, schedule, due))?;
    tokio::select! {
        () = tokio::time::sleep(schedule.warm_up + schedule.window) => {}
        // Only a fault ends the calls before they are stopped.
        early = finished(&mut calls) => return early,
    }
    stops.store(true, Ordering::Relaxed);
    finished(calls).await
}

async fn make_calls(
    endpoint: Arc<str>,
    work: Work,
    schedule: Schedule,
    due: mpsc::UnboundedReceiver<Instant>,
) -> Result<Histogram<u64>> {
    let counts_from = Instant::now() + schedule.warm_up;
    let mut callers = Vec::new();
    for _ in 0..schedule.connections {
        callers.push(Caller::connect(&endpoint, Windows::SMALL).await?);
    }
    let (latency, work, mut random) = (Rc::new(RefCell::new(latencies())), Rc::new(work), Random::new(1));
    let begin = |due: Instant, number: u64| {
        let caller = callers[(number % callers.len() as u64) as usize].clone();
        let (latency, work, request) = (latency.clone(), work.clone(), work.request(&mut random).freeze());
        async move {
            let body = caller.call(work.path(), request).await?;
            work.check(&body)?;
            if due >= counts_from {
                record(&mut latency.borrow_mut(), due.elapsed());
            }
            Ok(())
        }
    };
    begin_when_due(due, begin).await?;
    Ok(latency.replace(latencies()))
}

/// Begins a call at each time of the schedule, and waits for all of them when it has ended. `begin` is told when the call
/// was due and its number.
pub async fn begin_when_due<F: Future<Output = Result<()>> + 'static>(
    mut schedule: mpsc::UnboundedReceiver<Instant>,
    mut begin: impl FnMut(Instant, u64) -> F,
) -> Result<()> {
    let (mut calls, mut number) = (JoinSet::new(), 0);
    while let Some(at) = schedule.recv().await {
        calls.spawn_local(begin(at, number));
        number += 1;
        while let Some(ended) = calls.try_join_next() {
            tasks::ended(ended)?;
        }
        if calls.len() > UNANSWERED_MAX {
            return Err(Fault::Refused(format!("{UNANSWERED_MAX} calls on schedule are unanswered")));
        }
    }
    within(PATIENCE, "the last calls on schedule", tasks::all(&mut calls)).await.map(drop)
}

/// The times at which calls are due, until told to stop.
pub fn start_pacer(calls_a_second: u32, stops: &Arc<AtomicBool>) -> Result<mpsc::UnboundedReceiver<Instant>> {
    let (due, schedule) = mpsc::unbounded_channel();
    let stops = stops.clone();
    let pause = Duration::from_secs(1) / calls_a_second.max(1);
    let pacer = move || {
        process::prefer_this_thread();
        let mut at = Instant::now() + pause;
        while !stops.load(Ordering::Relaxed) {
            std::thread::sleep(at.saturating_duration_since(Instant::now()));
            if due.send(at).is_err() {
                break;
            }
            at += pause;
        }
    };
    threads::spawn("pacer".to_owned(), pacer)?;
    Ok(schedule)
}

#[cfg(test)]
mod tests {
    use super::*;
    use tokio::sync::oneshot;
    use tokio::task::LocalSet;

    #[test]
    fn a_call_that_hangs_keeps_no_other_from_its_time() {
        let runtime = threads::event_loop().unwrap();
        let begun = Rc::new(RefCell::new(Vec::new()));
        let noted = begun.clone();
        LocalSet::new().block_on(&runtime, async move {
            let (due, schedule) = mpsc::unbounded_channel();
            let (free, hangs) = oneshot::channel::<()>();
            let mut hangs = Some(hangs);
            let calls = begin_when_due(schedule, move |_, number| {
                noted.borrow_mut().push(number);
                let hangs = hangs.take();
                async move {
                    if let Some(hangs) = hangs {
                        hangs.await.unwrap();
                    }
                    Ok(())
                }
            });
            let send = async move {
                for _ in 0..3 {
                    due.send(Instant::now()).unwrap();
                    tokio::task::yield_now().await;
                }
                free.send(()).unwrap();
            };
            tokio::join!(calls, send).0.unwrap();
        });
        assert_eq!(*begun.borrow(), [0, 1, 2]);
    }

    #[test]
    fn a_refused_call_ends_the_schedule() {
        let runtime = threads::event_loop().unwrap();
        let outcome = LocalSet::new().block_on(&runtime, async {
            let (due, schedule) = mpsc::unbounded_channel();
            due.send(Instant::now()).unwrap();
            let refuse = |_, _| async { Err(Fault::Refused("no".to_owned())) };
            // The sender stays open: nothing but the fault ends it.
            let calls = begin_when_due(schedule, refuse);
            tokio::select! {
                outcome = calls => outcome,
                () = async {
                    loop {
                        tokio::time::sleep(Duration::from_millis(1)).await;
                        due.send(Instant::now()).unwrap();
                    }
                } => unreachable!("the loop has no end"),
            }
        });
        assert_eq!(outcome.unwrap_err().to_string(), "no");
    }
}
