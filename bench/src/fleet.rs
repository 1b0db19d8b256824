//! Watches held open by load threads, and the events that reach them.
//!
//! A fleet is `connections x streams x watchings` watches, split by connection over the threads. Each thread runs one
//! event loop and judges its own events; the run that started it looks on through counters and asks for a verdict at the
//! end. A held watch costs 8 bytes of table (untouched until its first event), its stream a slot, its connection a task.
//!
//! Creates are pipelined within bounds, so that neither side buffers a whole fleet: `ramp` connections at once, a few
//! streams of each, `window` unanswered creates a stream.

use std::cell::RefCell;
use std::ops::Range;
use std::rc::Rc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use bytes::{Bytes, BytesMut};
use clap::Args;
use h2::SendStream;
use http::Request;
use tokio::sync::{Notify, OwnedSemaphorePermit, Semaphore, mpsc, oneshot};
use tokio::task::LocalSet;

use crate::fault::{Fault, Result};
use crate::judge::{Checker, Put, Verdict};
use crate::keys::Plan;
use crate::link::{self, Answer, Calls, Link, Piece, Turn, Windows};
use crate::process;
use crate::threads;
use crate::wire::{self, Deframer, WatchReply};

/// Streams of one connection that create their watches at the same time. h2 keeps the places of all the frames that ever waited
/// at once, some 560 bytes for each stream here.
const STREAMS_CREATING_MAX: u32 = 4;
/// How often a wait looks at the counters, the server and the screen.
const TICK: Duration = Duration::from_millis(100);

/// How a fleet creates its watches.
#[derive(Args, Clone, Copy, Debug)]
pub struct Pace {
    /// Threads of the load client
    #[arg(long, default_value_t = 1)]
    pub threads: u32,
    /// Connections that create watches at once
    #[arg(long, default_value_t = 64)]
    pub ramp: u32,
    /// Unanswered creates of one stream
    #[arg(long, default_value_t = 128)]
    pub window: u32,
    /// Niceness of the load threads; 19 leaves the cores to the server that shares them
    #[arg(long, default_value_t = 0, value_parser = clap::value_parser!(i32).range(0..=19))]
    pub nice: i32,
}

/// What the load threads tell while they work.
#[derive(Default)]
pub struct Progress {
    pub connected: AtomicU64,
    pub created: AtomicU64,
    pub delivered: AtomicU64,
    /// `delivered` at which the waiter wants to be woken at once.
    wanted: AtomicU64,
    reached: Notify,
    fault: Mutex<Option<Fault>>,
}

impl Progress {
    fn fail(&self, fault: Fault) {
        // The first fault is the cause; those behind it are its consequences.
        self.fault.lock().unwrap_or_else(PoisonError::into_inner).get_or_insert(fault);
        self.reached.notify_one();
    }

    fn take_fault(&self) -> Option<Fault> {
        self.fault.lock().unwrap_or_else(PoisonError::into_inner).take()
    }

    /// Of so many watches in all: the last of them wakes whoever waits for it, whose clock runs.
    fn create(&self, watches: u64, all: u64) {
        if self.created.fetch_add(watches, Ordering::Relaxed) + watches >= all {
            self.reached.notify_one();
        }
    }

    fn deliver(&self, events: u64) {
        let delivered = self.delivered.fetch_add(events, Ordering::Relaxed) + events;
        if delivered >= self.wanted.load(Ordering::Relaxed) {
            self.reached.notify_one();
        }
    }
}

enum Order {
    /// Compare with these puts; the next ones follow this revision.
    Judge { puts: Arc<[Put]>, base_revision: i64, verdict: oneshot::Sender<Verdict> },
}

/// The watches of a plan, held until this is dropped.
pub struct Fleet {
    pub plan: Arc<Plan>,
    pub progress: Arc<Progress>,
    orders: Vec<mpsc::UnboundedSender<Order>>,
    threads: Vec<JoinHandle<()>>,
}

impl Fleet {
    /// Starts to connect and create. `base_revision` is the store's revision before the first put that counts.
    pub fn launch(plan: Plan, endpoint: &Arc<str>, pace: Pace, base_revision: i64) -> Result<Fleet> {
        Fleet::start(plan, endpoint, pace, base_revision, 0)
    }

    /// The same for clients that come back: their watches start right behind `base_revision`, which lies in the past.
    pub fn resume(plan: Plan, endpoint: &Arc<str>, pace: Pace, base_revision: i64) -> Result<Fleet> {
        Fleet::start(plan, endpoint, pace, base_revision, base_revision.unsigned_abs() + 1)
    }

    fn start(plan: Plan, endpoint: &Arc<str>, pace: Pace, base_revision: i64, start_revision: u64) -> Result<Fleet> {
        plan.check().map_err(Fault::Refused)?;
        let head = link::call_head(endpoint, wire::PATH_WATCH)?;
        let plan = Arc::new(plan);
        let progress = Arc::new(Progress::default());
        // Until events are waited for, nobody is woken for each.
        progress.wanted.store(u64::MAX, Ordering::Relaxed);
        let count = pace.threads.clamp(1, plan.connections);
        let mut fleet = Fleet { plan: plan.clone(), progress, orders: Vec::new(), threads: Vec::new() };
        for thread in 0..count {
            let start = |thread: u32| (u64::from(plan.connections) * u64::from(thread) / u64::from(count)) as u32;
            let crew = Crew {
                plan: plan.clone(),
                progress: fleet.progress.clone(),
                endpoint: endpoint.clone(),
                head: head.clone(),
                window: pace.window.max(1),
                nice: pace.nice,
                ramp: (pace.ramp / count).max(1),
                connections: start(thread)..start(thread + 1),
                base_revision,
                start_revision,
            };
            let (orders, inbox) = mpsc::unbounded_channel();
            fleet.threads.push(threads::spawn(format!("watches-{thread}"), move || crew.run(inbox))?);
            fleet.orders.push(orders);
        }
        Ok(fleet)
    }

    /// Waits until every watch is created. `tick` is called now and then and may end the wait with a fault.
    pub async fn wait_created(&self, patience: Duration, tick: impl FnMut(&Progress) -> Result<()>) -> Result<()> {
        self.wait(&self.progress.created, self.plan.watches(), "watches created", patience, tick).await
    }

    /// Announces the next wait for events before they are caused, so that none before it wakes the waiter.
    pub fn expect_delivered(&self, wanted: u64) {
        self.progress.wanted.store(wanted, Ordering::Relaxed);
    }

    /// Waits until so many events came in all.
    pub async fn wait_delivered(
        &self,
        wanted: u64,
        patience: Duration,
        tick: impl FnMut(&Progress) -> Result<()>,
    ) -> Result<()> {
        self.expect_delivered(wanted);
        self.wait(&self.progress.delivered, wanted, "events delivered", patience, tick).await
    }

    async fn wait(
        &self,
        counter: &AtomicU64,
        wanted: u64,
        what: &str,
        patience: Duration,
        mut tick: impl FnMut(&Progress) -> Result<()>,
    ) -> Result<()> {
        let (mut before, mut moved_at) = (u64::MAX, Instant::now());
        loop {
            if let Some(fault) = self.progress.take_fault() {
                // A dead server is the reason, and the broken connection only how it shows.
                tick(&self.progress)?;
                return Err(fault);
            }
            let now = counter.load(Ordering::Relaxed);
            if now >= wanted {
                return Ok(());
            }
            if now != before {
                (before, moved_at) = (now, Instant::now());
            } else if moved_at.elapsed() >= patience {
                let waiting_for = format!("{} of {wanted} {what}", wanted - now);
                return Err(Fault::Stalled { waiting_for, seconds: patience.as_secs() });
            }
            // A timeout is the ordinary case: then it is time for a tick.
            if tokio::time::timeout(TICK, self.progress.reached.notified()).await.is_err() {
                tick(&self.progress)?;
            }
        }
    }

    /// What went wrong since the last wait, if anything did.
    pub fn check_fault(&self) -> Result<()> {
        self.progress.take_fault().map_or(Ok(()), Err)
    }

    /// Compares all that came since the last verdict with the acknowledged puts.
    pub async fn judge(&self, puts: &[Put], base_revision: i64) -> Result<Verdict> {
        let puts: Arc<[Put]> = puts.into();
        let mut sum = Verdict::default();
        let mut asked = Vec::new();
        for orders in &self.orders {
            let (verdict, answer) = oneshot::channel();
            // A thread that is gone drops the sender, which the receiving end reports.
            let _ = orders.send(Order::Judge { puts: puts.clone(), base_revision, verdict });
            asked.push(answer);
        }
        for answer in asked {
            let gone = |_| Fault::Refused("a load thread ended before its verdict".to_owned());
            sum.add(answer.await.map_err(gone)?);
        }
        Ok(sum)
    }
}

impl Drop for Fleet {
    /// Closes all connections and waits until they are closed.
    fn drop(&mut self) {
        self.orders.clear();
        for thread in self.threads.drain(..) {
            if thread.join().is_err() {
                eprintln!("a load thread panicked");
            }
        }
    }
}

/// What one load thread needs.
struct Crew {
    plan: Arc<Plan>,
    progress: Arc<Progress>,
    endpoint: Arc<str>,
    head: Request<()>,
    window: u32,
    nice: i32,
    ramp: u32,
    connections: Range<u32>,
    base_revision: i64,
    /// Of each watch; 0 is from now on.
    start_revision: u64,
}

impl Crew {
    fn run(self, mut inbox: mpsc::UnboundedReceiver<Order>) {
        if self.nice > 0
            && let Err(cause) = process::set_niceness(self.nice)
        {
            return self.progress.fail(Fault::Refused(format!("niceness {} is refused: {cause}", self.nice)));
        }
        let runtime = match threads::event_loop() {
            Ok(runtime) => runtime,
            Err(fault) => return self.progress.fail(fault),
        };
        let crew = Rc::new(self);
        LocalSet::new().block_on(&runtime, async move {
            let of_one = crew.plan.watches_a_connection();
            let first_watch = u64::from(crew.connections.start) * of_one;
            let count = crew.connections.len() as u64 * of_one;
            let checker = Checker::new(crew.plan.clone(), first_watch, count, crew.base_revision);
            let checker = Rc::new(RefCell::new(checker));
            let ramp = Arc::new(Semaphore::new(crew.ramp as usize));
            for connection in crew.connections.clone() {
                tokio::task::spawn_local(hold(crew.clone(), checker.clone(), ramp.clone(), connection));
            }
            while let Some(Order::Judge { puts, base_revision, verdict }) = inbox.recv().await {
                // Whoever asked may have given up meanwhile.
                let _ = verdict.send(checker.borrow_mut().finish(&puts, base_revision));
            }
        });
    }
}

/// One connection, from connecting to the end of the run.
async fn hold(crew: Rc<Crew>, checker: Rc<RefCell<Checker>>, ramp: Arc<Semaphore>, connection: u32) {
    let permit = ramp.acquire_owned().await.expect("the semaphore is never closed");
    // In boxes: a task keeps room for whatever it has ever held, and for each place where it held it.
    let opened = Box::pin(Link::open(&crew.endpoint, Windows::SMALL, crew.plan.streams)).await.map(Box::new);
    let outcome = match opened {
        Err(fault) => Err(fault),
        Ok(mut link) => {
            crew.progress.connected.fetch_add(1, Ordering::Relaxed);
            let first_watch = u64::from(connection) * crew.plan.watches_a_connection();
            let streams = (0..crew.plan.streams).map(|_| None).collect();
            let missing = crew.plan.streams;
            let mut held =
                Held { crew: crew.clone(), checker, first_watch, streams, creating: 0, missing, permit: Some(permit) };
            link.drive(&mut held).await
        }
    };
    if let Err(fault) = outcome {
        crew.progress.fail(fault);
    }
}

/// The watch streams of one connection.
struct Held {
    crew: Rc<Crew>,
    checker: Rc<RefCell<Checker>>,
    first_watch: u64,
    /// By slot; `None` until opened.
    streams: Box<[Option<WatchStream>]>,
    /// Streams whose creates are under way.
    creating: u32,
    /// Streams whose watches are not all created.
    missing: u32,
    /// Given back when all watches of the connection are created, so that the next one may begin.
    permit: Option<OwnedSemaphorePermit>,
}

struct WatchStream {
    answer: Answer,
    send: SendStream<Bytes>,
    deframer: Deframer,
    sent: u32,
    created: u32,
}

impl Calls for Held {
    fn poll_slot(&mut self, turn: &mut Turn<'_>, slot: u32, cx: &mut Context<'_>) -> Result<()> {
        if self.streams[slot as usize].is_none() && !self.open(turn, slot, cx)? {
            return Ok(());
        }
        let watchings = self.crew.plan.watchings;
        let first_watch = self.first_watch + u64::from(slot) * u64::from(watchings);
        let stream = self.streams[slot as usize].as_mut().expect("opened above");
        let was_complete = stream.created == watchings;
        loop {
            match stream.answer.poll_piece(&self.crew.endpoint, wire::PATH_WATCH, cx) {
                Poll::Pending => break,
                Poll::Ready(Ok(Piece::End)) => return Err(Fault::NoAnswer { path: wire::PATH_WATCH }),
                Poll::Ready(Err(fault)) => return Err(fault),
                Poll::Ready(Ok(Piece::Data(data))) => {
                    stream.read(&self.crew, &mut self.checker.borrow_mut(), first_watch, &data)?;
                }
            }
        }
        stream.send_creates(&self.crew, first_watch)?;
        if !was_complete && stream.created == watchings {
            self.completed(turn);
        }
        Ok(())
    }

    /// Watches are held until the fleet is dropped.
    fn is_done(&self) -> bool {
        false
    }
}

impl Held {
    /// Opens the stream of a slot unless enough are at work; the one that completes wakes the next.
    fn open(&mut self, turn: &mut Turn<'_>, slot: u32, cx: &mut Context<'_>) -> Result<bool> {
        if self.creating >= STREAMS_CREATING_MAX {
            return Ok(false);
        }
        let opened = turn.open(slot, &self.crew.head, false, cx);
        let http = |cause| Fault::Http { endpoint: self.crew.endpoint.to_string(), cause };
        let Some((response, send)) = opened.map_err(http)? else { return Ok(false) };
        let stream =
            WatchStream { answer: Answer::Head(response), send, deframer: Deframer::default(), sent: 0, created: 0 };
        self.streams[slot as usize] = Some(stream);
        self.creating += 1;
        Ok(true)
    }

    fn completed(&mut self, turn: &Turn<'_>) {
        self.creating -= 1;
        self.missing -= 1;
        if self.missing == 0 {
            self.permit = None;
        } else if let Some(next) = self.streams.iter().position(Option::is_none) {
            turn.wake(next as u32);
        }
    }
}

impl WatchStream {
    fn read(&mut self, crew: &Crew, checker: &mut Checker, first_watch: u64, data: &[u8]) -> Result<()> {
        let (mut created, mut delivered) = (0, 0);
        let known = &mut self.created;
        self.deframer.feed(data, |message| {
            let malformed = |cause| Fault::Malformed { path: wire::PATH_WATCH, cause };
            let reply = WatchReply::decode(message).map_err(malformed)?;
            if reply.canceled {
                let watch = first_watch + reply.watch_id.max(0) as u64;
                let reason = String::from_utf8_lossy(reply.cancel_reason).into_owned();
                return Err(Fault::Canceled { watch, reason });
            }
            if reply.created {
                // The server counts the ids of a stream from 0 and answers creates in order.
                if reply.watch_id != i64::from(*known) {
                    return Err(Fault::WatchId { expected: i64::from(*known), found: reply.watch_id });
                }
                *known += 1;
                created += 1;
            }
            for event in reply.events() {
                let event = event.map_err(malformed)?;
                let Some(id) = u32::try_from(reply.watch_id).ok().filter(|id| id < known) else {
                    let id = reply.watch_id;
                    return Err(Fault::Refused(format!(
                        "an event came for watch id {id}, which its stream does not have"
                    )));
                };
                checker.event(first_watch + u64::from(id), &event);
                delivered += 1;
            }
            Ok(())
        })?;
        if created > 0 {
            crew.progress.create(created, crew.plan.watches());
        }
        if delivered > 0 {
            crew.progress.deliver(delivered);
        }
        Ok(())
    }

    /// Tops the unanswered creates up to the window once half of it is answered: few writes of many creates.
    fn send_creates(&mut self, crew: &Crew, first_watch: u64) -> Result<()> {
        let plan = &*crew.plan;
        let unanswered = self.sent - self.created;
        if self.sent == plan.watchings || unanswered > crew.window / 2 {
            return Ok(());
        }
        let until = plan.watchings.min(self.created + crew.window);
        let create_bytes = plan.key_bytes + 28;
        let mut out = BytesMut::with_capacity((until - self.sent) as usize * create_bytes);
        let (mut key, mut range_end) = (Vec::new(), Vec::new());
        for id in self.sent..until {
            let (first, past) = plan.span(first_watch + u64::from(id));
            plan.write_key(first, &mut key);
            if past - first > 1 {
                plan.write_key(past, &mut range_end);
            }
            wire::watch_create(&mut out, &key, &range_end, crew.start_revision);
        }
        self.sent = until;
        let http = |cause| Fault::Http { endpoint: crew.endpoint.to_string(), cause };
        self.send.send_data(out.freeze(), false).map_err(http)
    }
}

impl From<wire::Malformed> for Fault {
    fn from(cause: wire::Malformed) -> Fault {
        Fault::Malformed { path: wire::PATH_WATCH, cause }
    }
}
