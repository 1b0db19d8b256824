//! One thread, one ring, one shard: the turn of the loop.
//!
//! A shard owns its connections, its watch hub and its timers, and nobody else touches them. Connections run as tasks and
//! call in through [`Handler`]; everything else happens in [`Shard::turn`], a bounded piece of work in this order: the log
//! and the commands (shard 0 alone), replies, history into the hub, the hub's deliveries. A turn that leaves work behind
//! yields through the ring, so that socket operations are submitted in between; one that leaves none waits to be woken, by
//! a task of its own thread or by another shard's [`Doorbell`].

pub mod clock;
pub mod cores;
pub mod durability;
pub mod embedded;
pub mod history;
pub mod intake;
pub mod memory;
pub mod mesh;
pub mod start;
pub mod writer;

use std::cell::{Cell, RefCell};
use std::collections::{BTreeSet, HashMap};
use std::future::poll_fn;
use std::sync::Arc;
use std::task::{Poll, Waker};
use std::time::{Duration, Instant};

use bytes::Bytes;

use crate::backend::{Command, Reply};
use crate::grpc::status::Status;
use crate::net::{CallHead, CallId, CallKind, Handler, Intake, Opened, Output, Ready};
use crate::service::kv::decode::KvMethod;
use crate::service::{Route, Services};
use crate::types::Revision;
use crate::watch::hub::{Hub, StreamId};

use embedded::Embedded;
use history::Committed;
use intake::Intake as HubIntake;
use mesh::{Link, Request, Response, Token};

/// Commands the writer takes in one turn, over all shards. Beyond it the other work of shard 0 would wait too long.
const COMMANDS_PER_TURN: usize = 512;
/// Replies a shard takes in one turn.
const REPLIES_PER_TURN: usize = 512;
/// Members, list rows or changes that the hub touches in one turn: some 200 us of work.
const HUB_WORK_PER_TURN: usize = 2_000;
/// Streams announced to their connections in one turn.
const READY_PER_TURN: usize = 4_096;

/// The request for history that the hub has under way; calls have the indexes below.
const HISTORY_TOKEN: Token = Token::MAX;
/// Tells the handle of a watch stream from that of a unary call.
const WATCH_HANDLE: u32 = 1 << 31;

/// What the connections and the turn share on this thread.
struct Core {
    hub: Hub,
    services: Services,
    link: Link,
    intake: HubIntake,
    embedded: Option<Embedded>,
    /// Watch streams that end with a status once what is queued for them has left.
    ending: HashMap<u32, Status>,
    /// When each stream with progress watches has its next tick.
    progress: BTreeSet<(Instant, StreamId)>,
}

/// One shard. It lives on its thread and never leaves it.
pub struct Shard {
    index: u16,
    core: RefCell<Core>,
    committed: Arc<Committed>,
    ready: Ready,
    /// Rings the shard of that index.
    bells: Vec<Doorbell>,
    progress_interval: Duration,
    woken: Cell<bool>,
    sleeper: RefCell<Option<Waker>>,
}

impl Shard {
    /// Work is due: the loop takes another turn before it sleeps.
    pub fn wake(&self) {
        if !self.woken.replace(true)
            && let Some(sleeper) = self.sleeper.take()
        {
            sleeper.wake();
        }
    }

    /// Until [`Shard::wake`] is called, unless it was since the last turn began.
    async fn woken(&self) {
        poll_fn(|context| {
            if self.woken.get() {
                return Poll::Ready(());
            }
            self.sleeper.replace(Some(context.waker().clone()));
            Poll::Pending
        })
        .await
    }

    /// Turns for as long as the shard lives.
    pub async fn run(&self) {
        loop {
            self.woken.set(false);
            if self.turn() {
                ring::yield_through_ring().await;
            } else {
                self.woken().await;
            }
        }
    }

    /// A bounded piece of everything that is due. True when there is more.
    fn turn(&self) -> bool {
        let core = &mut *self.core.borrow_mut();
        let mut more = self.turn_writer(core);
        more |= self.take_replies(core);
        more |= core.intake.feed(&mut core.hub);
        more |= core.hub.turn(HUB_WORK_PER_TURN);
        if let Some(from) = core.hub.next_history_request() {
            self.send(core, HISTORY_TOKEN, Command::History { from });
        }
        more |= self.announce(core);
        more
    }

    /// Shard 0: the log and the commands.
    fn turn_writer(&self, core: &mut Core) -> bool {
        let Some(embedded) = &mut core.embedded else { return false };
        let more = embedded.turn(clock::wall(), COMMANDS_PER_TURN);
        for (index, bell) in self.bells.iter().enumerate() {
            if embedded.has_told(index) && index != usize::from(self.index) {
                bell.ring();
            }
        }
        more
    }

    fn take_replies(&self, core: &mut Core) -> bool {
        for _ in 0..REPLIES_PER_TURN {
            let Some(Response { token, reply }) = core.link.receive() else { break };
            match (token, reply) {
                (HISTORY_TOKEN, Reply::History(history)) => core.hub.handle_history(history),
                (token, reply) => {
                    if let Some(call) = core.services.reply(token, reply) {
                        self.ready.ready(call);
                    }
                }
            }
        }
        if let Some(call) = core.services.turn() {
            self.ready.ready(call);
        }
        if core.link.refill() {
            self.wake_writer();
        }
        core.link.has_response() || core.services.has_work()
    }

    fn announce(&self, core: &mut Core) -> bool {
        for _ in 0..READY_PER_TURN {
            let Some((_, token)) = core.hub.next_ready() else { return false };
            self.ready.ready(CallId { connection: (token >> 32) as u32, stream: token as u32 });
        }
        true
    }

    fn send(&self, core: &mut Core, token: Token, command: Command) {
        if core.link.send(Request { token, command }) {
            self.wake_writer();
        }
    }

    fn wake_writer(&self) {
        if self.index == 0 { self.wake() } else { self.bells[0].ring() }
    }
}

impl Handler for Shard {
    fn open(&self, call: CallId, head: &CallHead<'_>) -> Result<Opened, Status> {
        let route = Route::of(head.path)?;
        Services::admit(head)?;
        let core = &mut *self.core.borrow_mut();
        Ok(match route {
            Route::Kv(method) => Opened { kind: CallKind::OneRequest, handle: core.services.open(call, method) },
            Route::Watch => {
                let stream = core.hub.open_stream(u64::from(call.connection) << 32 | u64::from(call.stream));
                Opened { kind: CallKind::RequestStream, handle: stream.0 | WATCH_HANDLE }
            }
        })
    }

    fn message(&self, _call: CallId, handle: u32, message: Bytes) -> Intake {
        let core = &mut *self.core.borrow_mut();
        if handle & WATCH_HANDLE == 0 {
            if let Some(command) = core.services.request(handle, message) {
                self.send(core, handle, command);
            }
            return Intake::Continue;
        }
        self.watch_request(core, StreamId(handle & !WATCH_HANDLE), message)
    }

    fn end_of_requests(&self, _call: CallId, _handle: u32) {
        // A unary call is answered when its reply comes. A watch stream that its client has half-closed goes on, as in
        // etcd: an HTTP gateway sends one create request and then only listens.
    }

    fn output(&self, _call: CallId, handle: u32, bytes_max: usize) -> Output {
        let core = &mut *self.core.borrow_mut();
        if handle & WATCH_HANDLE == 0 {
            return core.services.output(handle, bytes_max);
        }
        let stream = StreamId(handle & !WATCH_HANDLE);
        if let Some(bytes) = core.hub.take_output(stream, bytes_max) {
            return Output::Bytes(bytes);
        }
        match core.ending.remove(&handle) {
            Some(status) => {
                core.hub.close_stream(stream);
                self.wake();
                Output::End(status)
            }
            None => Output::Nothing,
        }
    }

    fn closed(&self, _call: CallId, handle: u32) {
        let core = &mut *self.core.borrow_mut();
        if handle & WATCH_HANDLE == 0 {
            return core.services.closed(handle);
        }
        core.ending.remove(&handle);
        core.hub.close_stream(StreamId(handle & !WATCH_HANDLE));
        self.wake();
    }
}
