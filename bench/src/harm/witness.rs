//! The witness: a modest client beside those that do harm. It puts on a schedule and watches its own keys.
//!
//! Both latencies count from the time at which a put was due, so a stall counts with all the puts that it delayed. A put
//! belongs to the phase in which it was due, whenever it is answered. Each put must have exactly one event: what comes
//! twice or not at all is a fault and no figure.
//!
//! It stands for a client on another machine, so it must not wait for a core that the load client holds: its thread is
//! preferred, where that is allowed. The server's are not.

use std::cell::RefCell;
use std::collections::HashMap;
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use hdrhistogram::Histogram;
use tokio::sync::{mpsc, oneshot};

use crate::bystander::put_on_schedule;
use crate::caller::Caller;
use crate::fault::{Fault, PATIENCE, Result};
use crate::harm::call::WatchCall;
use crate::latency::{latencies, record};
use crate::link::Windows;
use crate::open_loop::start_pacer;
use crate::report::Measured;
use crate::threads::{finished, on_preferred_thread};

const PREFIX: &str = "witness/";
const PREFIX_END: &[u8] = b"witness0";

/// Latencies of one phase.
pub struct Tails {
    pub puts: Histogram<u64>,
    pub events: Histogram<u64>,
}

impl Tails {
    pub fn add(&self, measured: &mut Measured, scene: &str) {
        measured.tail_of(scene, "put ", &self.puts);
        measured.tail_of(scene, "event ", &self.events);
    }
}

pub struct Witness {
    phase: Arc<AtomicUsize>,
    stops: Arc<AtomicBool>,
    tails: oneshot::Receiver<Result<Vec<Tails>>>,
}

impl Witness {
    pub fn start(endpoint: &Arc<str>, puts_a_second: u32) -> Result<Witness> {
        let (phase, stops) = (Arc::<AtomicUsize>::default(), Arc::<AtomicBool>::default());
        let schedule = start_pacer(puts_a_second, &stops)?;
        let tails = {
            let (endpoint, phase) = (endpoint.clone(), phase.clone());
            on_preferred_thread("witness", move || bear_witness(endpoint, schedule, phase))?
        };
        Ok(Witness { phase, stops, tails })
    }

    /// Puts that are due from here on belong to the next phase.
    pub fn next_phase(&self) {
        self.phase.fetch_add(1, Ordering::Relaxed);
    }

    /// Stops, waits for what is under way, and gives the latencies of each phase.
    pub async fn finish(mut self) -> Result<Vec<Tails>> {
        self.stops.store(true, Ordering::Relaxed);
        finished(&mut self.tails).await
    }
}

impl Drop for Witness {
    fn drop(&mut self) {
        self.stops.store(true, Ordering::Relaxed);
    }
}

/// What is known of the puts under way.
#[derive(Default)]
struct Book {
    tails: Vec<Tails>,
    /// Answered puts whose event has not come, by revision.
    awaited: HashMap<i64, (Instant, usize)>,
    /// Events that were faster than the answers of their puts.
    early: HashMap<i64, Instant>,
}

impl Book {
    fn tails(&mut self, phase: usize) -> &mut Tails {
        while self.tails.len() <= phase {
            self.tails.push(Tails { puts: latencies(), events: latencies() });
        }
        &mut self.tails[phase]
    }

    fn answered(&mut self, revision: i64, due: Instant, phase: usize) {
        record(&mut self.tails(phase).puts, due.elapsed());
        match self.early.remove(&revision) {
            Some(at) => record(&mut self.tails(phase).events, at.saturating_duration_since(due)),
            None => drop(self.awaited.insert(revision, (due, phase))),
        }
    }

    fn event(&mut self, revision: i64) -> Result<()> {
        if let Some((due, phase)) = self.awaited.remove(&revision) {
            record(&mut self.tails(phase).events, due.elapsed());
        } else if self.early.insert(revision, Instant::now()).is_some() {
            return Err(Fault::Refused(format!("the witness got the event of revision {revision} twice")));
        }
        Ok(())
    }
}

async fn bear_witness(
    endpoint: Arc<str>,
    schedule: mpsc::UnboundedReceiver<Instant>,
    phase: Arc<AtomicUsize>,
) -> Result<Vec<Tails>> {
    let book = Rc::new(RefCell::new(Book::default()));
    let mut watch = WatchCall::open(&Caller::connect(&endpoint, Windows::SMALL).await?).await?;
    watch.watch(PREFIX.as_bytes(), PREFIX_END, 0).await?;
    let putting = async {
        let noted = |due| {
            let (book, phase) = (book.clone(), phase.load(Ordering::Relaxed));
            move |revision| book.borrow_mut().answered(revision, due, phase)
        };
        put_on_schedule(&endpoint, schedule, PREFIX, noted).await?;
        let asked = Instant::now();
        while !book.borrow().awaited.is_empty() {
            if asked.elapsed() > PATIENCE {
                let waiting_for = format!("{} events of the witness", book.borrow().awaited.len());
                return Err(Fault::Stalled { waiting_for, seconds: PATIENCE.as_secs() });
            }
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        Ok(())
    };
    let watching = async {
        loop {
            let each = |reply: &crate::wire::WatchReply<'_>| {
                reply.events().try_for_each(|event| book.borrow_mut().event(event?.mod_revision))
            };
            if let Err(fault) = watch.read(each).await {
                return fault;
            }
        }
    };
    tokio::select! {
        put = putting => put?,
        fault = watching => return Err(fault),
    }
    let mut book = book.borrow_mut();
    // A phase without a put has its empty latencies.
    book.tails(phase.load(Ordering::Relaxed));
    if let Some(revision) = book.early.keys().next() {
        return Err(Fault::Refused(format!("the witness got an event of revision {revision}, which it did not put")));
    }
    Ok(std::mem::take(&mut book.tails))
}
