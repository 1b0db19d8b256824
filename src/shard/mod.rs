//! One thread, one ring, one shard: the turn of the loop.
//!
//! A shard owns its connections, its watch hub and its timers, and nobody else touches them. Connections run as tasks and
//! call in through [`Handler`]; everything else happens in [`Shard::turn`], a bounded piece of work in this order: the log
//! and the commands (shard 0 alone), replies, history into the hub, the hub's deliveries. A turn that leaves work behind
//! yields through the ring, so that socket operations are submitted in between; one that leaves none waits to be woken, by
//! a task of its own thread or by another shard's [`Doorbell`].

pub mod accounting;
pub mod auto_compact;
pub mod board;
pub mod budget;
pub mod cgroup;
pub mod clock;
mod control;
pub mod cores;
#[cfg(test)]
pub mod costs;
pub mod durability;
pub mod embedded;
mod handler;
pub mod hashes;
mod held_up;
pub mod history;
pub mod intake;
pub mod memory;
pub mod mesh;
mod meter;
mod numbers;
mod pages;
mod process;
mod progress;
mod signals;
mod space;
mod start;
pub(crate) mod storage;
mod supervisor;
pub mod writer;

pub use start::run;

use std::cell::{Cell, RefCell};
use std::collections::HashMap;
use std::future::poll_fn;
use std::rc::{Rc, Weak};
use std::sync::Arc;
use std::task::{Poll, Waker};
use std::time::{Duration, Instant};

use bytes::Bytes;

use crate::backend::{Command, HistoryError, Identity, Reply};
use crate::grpc::status::Status;
use crate::net::ring::{self, Doorbell};
use crate::net::{CallId, Intake, Ready, Server};
use crate::service::recipes::Telling;
use crate::service::{Limits, Member, Services, method_path, watch};
use crate::store::command::{Answer, Error, Write};
use crate::types::{Revision, WatchLimits};
use crate::wal::LogFailure;
use crate::watch::hub::{Hub, HubConfig, StreamId};
use crate::watch::refusal::Why;

use accounting::Account;
use auto_compact::AutoCompact;
use board::Boards;
use budget::{Budget, CACHES_FULL, Herald, Level, Looks};
use control::Control;
use embedded::Embedded;
use intake::Intake as HubIntake;
use mesh::{Link, Request as Sent, Response, Token};
use meter::Meter;
use numbers::About;
use pages::{QUESTION, Questions};
use progress::ProgressTimers;

/// Commands the writer takes in one turn, over all shards. Beyond it the other work of shard 0 would wait too long.
const COMMANDS_PER_TURN: usize = 512;
/// Replies a shard takes in one turn.
const REPLIES_PER_TURN: usize = 512;
/// Commands or batches of one turn that are few enough to be somebody's who waits; more are a load, for which short turns are
/// no help.
const FEW: usize = 8;
/// Members, list rows or changes that the hub touches between two looks at the clock: 1 us of work, and 5 where watchers catch
/// up.
const HUB_WORK_PER_CLOCK: usize = 10;
/// Calls that wait for a key and are told of a change in one turn.
const TOLD_PER_TURN: usize = 1_000;
/// Streams announced to their connections in one turn.
const READY_PER_TURN: usize = 4_096;

/// How often a shard looks at what no event announces.
const HOUSEKEEPING_INTERVAL: Duration = Duration::from_secs(1);
/// Expired leases are looked for no more often. A new one has at least two seconds, longer than any pause between looks.
const EXPIRY_INTERVAL_MIN: Duration = Duration::from_millis(50);
/// A disk that does not finish the last write by then is left alone; the log is as good as after a kill.
const LOG_STOP_MAX: Duration = Duration::from_secs(5);
/// While memory is short, the pages of the allocator are looked through this often, and no more.
const COLLECT_INTERVAL: Duration = Duration::from_secs(5);
/// What a further connection takes, its first stream and its socket included.
const CONNECTION_BYTES: usize = 22_000;
/// So many calls a connection may have open however little memory there is: deletes, compactions and keep-alives go on, and no
/// client fills the memory with requests that never end.
const CALLS_WITHOUT_MEMORY: usize = 100;
/// What a call may keep of its request without a look at the memory of this moment: no more than its stream takes.
const SHORT_REQUEST_BYTES: usize = 1_000;
/// Freed memory that is worth a walk of the allocator through its pages.
const COLLECT_BYTES: usize = 8 << 20;

/// The request for history that the hub has under way. Calls have the indexes from 0, and pages those from [`QUESTION`].
const HISTORY_TOKEN: Token = Token::MAX;
/// The compaction that nobody asked for.
const COMPACTION_TOKEN: Token = Token::MAX - 1;
/// Tells the handle of a watch stream from that of another call.
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
    /// What the pages of plain HTTP ask.
    questions: Questions,
    meter: Meter,
    progress: ProgressTimers,
    /// On shard 0, when history is to be forgotten by itself.
    auto_compact: Option<AutoCompact>,
}

/// One shard. It lives on its thread and never leaves it.
pub struct Shard {
    index: usize,
    core: RefCell<Core>,
    ready: Ready,
    /// Rings the shard of that index.
    bells: Vec<Doorbell>,
    control: Control,
    boards: Arc<Boards>,
    about: About,
    /// Itself: an answer that takes its time keeps it.
    itself: Weak<Shard>,
    /// The connections of this shard, for the account alone: they call in, nobody calls out.
    server: RefCell<Weak<Server>>,
    woken: Cell<bool>,
    sleeper: RefCell<Option<Waker>>,
    /// The most bytes held since the allocator was last told to give memory back, and those of the last look.
    peak_bytes: Cell<usize>,
    last_bytes: Cell<usize>,
    budget: Arc<Budget>,
    /// What connections and their sockets may take before further clients are turned away.
    connection_bytes_max: Cell<usize>,
    /// The same, before further watch streams are refused.
    stream_bytes_max: Cell<usize>,
    herald: RefCell<Herald>,
    looks: RefCell<Looks>,
    collected_at: Cell<Option<Instant>>,
}

/// What a shard is put together from.
pub struct Parts {
    pub index: usize,
    pub identity: Identity,
    pub member: Arc<Member>,
    pub limits: Limits,
    pub watch_limits: WatchLimits,
    pub history_bytes_max: usize,
    pub message_bytes_max: usize,
    pub progress_interval: Duration,
    pub link: Link,
    pub intake: HubIntake,
    pub embedded: Option<Embedded>,
    pub auto_compact: Option<AutoCompact>,
    pub ready: Ready,
    pub bells: Vec<Doorbell>,
    pub control: Control,
    pub budget: Arc<Budget>,
    pub boards: Arc<Boards>,
    pub meter: Meter,
    pub about: About,
    pub itself: Weak<Shard>,
}

impl Shard {
    pub fn new(parts: Parts) -> Shard {
        let config = HubConfig {
            identity: parts.identity.into(),
            fragment_bytes: parts.message_bytes_max,
            history_bytes_max: parts.history_bytes_max,
            watches: parts.watch_limits,
            ..HubConfig::default()
        };
        let core = Core {
            hub: Hub::new(config, parts.intake.received()),
            services: Services::new(parts.identity, parts.member, parts.limits, parts.intake.received()),
            link: parts.link,
            intake: parts.intake,
            embedded: parts.embedded,
            ending: HashMap::new(),
            questions: Questions::default(),
            meter: parts.meter,
            progress: ProgressTimers::new(parts.progress_interval),
            auto_compact: parts.auto_compact,
        };
        Shard {
            index: parts.index,
            core: RefCell::new(core),
            ready: parts.ready,
            bells: parts.bells,
            control: parts.control,
            boards: parts.boards,
            about: parts.about,
            itself: parts.itself,
            server: RefCell::default(),
            woken: Cell::new(false),
            sleeper: RefCell::default(),
            peak_bytes: Cell::new(0),
            last_bytes: Cell::new(0),
            budget: parts.budget,
            connection_bytes_max: Cell::new(usize::MAX),
            stream_bytes_max: Cell::new(usize::MAX),
            herald: RefCell::new(Herald::default()),
            looks: RefCell::new(Looks::default()),
            collected_at: Cell::new(None),
        }
    }

    /// Tells the shard whose memory its connections are to be counted by.
    pub fn attach(&self, server: &Rc<Server>) {
        self.server.replace(Rc::downgrade(server));
    }

    /// Starts the tasks that live as long as the shard.
    pub fn spawn_loops(self: &Rc<Self>, bell: Doorbell) {
        let shard = Rc::clone(self);
        ring::spawn(async move { shard.run().await });
        let shard = Rc::clone(self);
        ring::spawn(async move {
            loop {
                bell.wait().await;
                shard.wake();
            }
        });
        let shard = Rc::clone(self);
        ring::spawn(async move {
            loop {
                clock::sleep(shard.keep_house()).await;
            }
        });
        if self.core.borrow().embedded.is_some() {
            let shard = Rc::clone(self);
            ring::spawn(async move {
                loop {
                    clock::sleep(shard.until_expiry()).await;
                }
            });
        }
    }

    /// Until the main thread has told this shard to drain.
    pub async fn drained(&self) {
        self.control.drained().await;
    }

    /// Until the main thread has told this shard that no other needs it any more.
    pub async fn ended(&self) {
        self.control.ended().await;
    }

    /// Ends the log in order, so that the next start knows that nothing is missing behind it.
    pub async fn stop_log(&self) {
        if let Some(embedded) = &mut self.core.borrow_mut().embedded {
            embedded.stop();
        }
        self.settled(LOG_STOP_MAX).await;
    }

    /// Until everything that this shard's writer has applied is durable, or never will be; but no longer than `max`.
    pub async fn settled(&self, max: Duration) {
        let start = clock::now();
        while !self.core.borrow().embedded.as_ref().is_none_or(Embedded::is_settled) && clock::now() - start < max {
            self.wake();
            clock::sleep(Duration::from_millis(1)).await;
        }
    }

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
    async fn run(&self) {
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
        self.look_at_budget(core);
        let mut more = self.turn_writer(core);
        more |= self.take_replies(core);
        core.meter.before_feed(core.hub.revision(), core.hub.counters().events_sent, &self.boards, clock::now);
        let received = core.intake.received();
        more |= self.feed(core);
        self.note_call((core.intake.received().0 - received.0) as usize);
        more |= self.turn_hub(&mut core.hub);
        if let Some(from) = core.hub.next_history_request() {
            self.send(core, HISTORY_TOKEN, Command::History { from });
        }
        more |= self.announce(core);
        if !core.hub.has_ready() {
            more |= core.meter.after_turn(core.hub.revision(), core.hub.counters().events_sent);
        }
        while let Some(refusal) = core.hub.next_refusal() {
            let peer = self.ready.peer((refusal.token >> 32) as u32);
            core.meter.log_refusal(refusal, peer, clock::now());
        }
        while let Some(stream) = core.hub.next_progress_stream() {
            core.progress.start(stream, clock::now());
        }
        while let Some(account) = self.control.next_account() {
            // Nobody waits any more when the send fails: then nobody wants the account.
            let _ = account.send(self.account(core));
        }
        if let Some(question) = self.boards.question(self.index) {
            self.boards.answer(self.index, question, &self.numbers(core));
        }
        more
    }

    /// Few commands or batches came: somebody waits for what becomes of them, and turns are short.
    fn note_call(&self, came: usize) {
        if (1..=FEW).contains(&came)
            && let Some(server) = self.server.borrow().upgrade()
        {
            server.call_passed(clock::now());
        }
    }

    /// A piece of the hub's work, of bounded time. True when there is more.
    fn turn_hub(&self, hub: &mut Hub) -> bool {
        if !hub.has_work() {
            return false;
        }
        let begun = clock::now();
        let server = self.server.borrow().upgrade();
        let time_max = server.as_ref().map_or(Some(Duration::ZERO), |server| server.hub_time_max(begun));
        let Some(time_max) = time_max else { return true };
        while hub.turn(HUB_WORK_PER_CLOCK) {
            if clock::now() - begun >= time_max {
                if let Some(server) = server {
                    server.hub_goes_on();
                }
                return true;
            }
        }
        false
    }

    /// Tells the others what this shard holds, and what of this shard may grow, how far it may.
    fn look_at_budget(&self, core: &mut Core) -> Account {
        let account = self.account(core);
        let mut standing = self.budget.tell(self.index, account.sum(), account.socket_bytes);
        if self.budget.limit().is_some() && self.looks.borrow_mut().is_due(clock::now(), account.sum()) {
            match memory::resident_bytes() {
                Ok(resident) => self.budget.look(resident),
                Err(error) => tracing::debug!(%error, "how much memory is resident is unknown"),
            }
            standing = self.budget.standing();
        }
        core.hub.set_memory(standing.room, standing.caches, CACHES_FULL);
        if let Some(embedded) = &mut core.embedded {
            embedded.set_memory_room(standing.store_room);
        }
        let connection_bytes = account.connection_bytes + account.socket_bytes;
        self.connection_bytes_max.set(connection_bytes.saturating_add(standing.room));
        self.stream_bytes_max.set(connection_bytes.saturating_add(standing.reserve));
        account
    }

    /// Shard 0: the log and the commands.
    fn turn_writer(&self, core: &mut Core) -> bool {
        let Some(embedded) = &mut core.embedded else { return false };
        let begun = clock::now();
        let more = embedded.turn(clock::wall(), COMMANDS_PER_TURN);
        self.note_call(embedded.commands_taken());
        let (sealed, committed) = (embedded.writer().sealed_position(), embedded.writer().committed_position());
        core.meter.writer_turned(sealed, committed, core.intake.committed(), begun, &self.boards);
        match embedded.take_failure() {
            None => {}
            Some(refused @ LogFailure::Refused(_)) => {
                tracing::error!(error = %refused, "writes are refused from here on, reads and watches are served");
            }
            Some(broken @ LogFailure::Broken(_)) => {
                // What the disk holds is unknown now. Only a start that reads it back may go on: nothing here is told,
                // retried or tidied up.
                tracing::error!(error = %broken, "the process ends");
                std::process::exit(1);
            }
        }
        for (index, bell) in self.bells.iter().enumerate() {
            if embedded.has_told(index) && index != self.index {
                bell.ring();
            }
        }
        more
    }

    fn take_replies(&self, core: &mut Core) -> bool {
        let mut now = None;
        for _ in 0..REPLIES_PER_TURN {
            let Some(Response { token, reply }) = core.link.receive() else { break };
            match (token, reply) {
                (HISTORY_TOKEN, Reply::History(history)) => core.hub.handle_history(history.map_err(compacted)),
                (COMPACTION_TOKEN, Reply::Answer(answer)) => end_compaction(core, &answer),
                (token, reply) if token & QUESTION != 0 => core.questions.reply(token, reply),
                (token, reply) => {
                    if let Reply::Answer(answer) = &reply {
                        core.meter.answered(answer);
                    }
                    self.call_answered(core, token, *now.get_or_insert_with(clock::now));
                    if let Some(call) = core.services.reply(token, reply) {
                        self.ready.ready(call);
                    }
                }
            }
        }
        if let Some(call) = core.services.turn() {
            self.ready.ready(call);
        }
        self.send_next_commands(core);
        if core.link.refill() {
            self.wake_writer();
        }
        core.link.has_response() || core.services.has_work()
    }

    /// Hands what was committed to the watch hub and to those who wait for a key, and tells these.
    fn feed(&self, core: &mut Core) -> bool {
        let Core { intake, hub, services, .. } = core;
        let mut more = intake.feed(hub, services.awaited());
        for _ in 0..TOLD_PER_TURN {
            match core.services.tell_next() {
                Telling::Nothing => break,
                Telling::Call(call) => call.into_iter().for_each(|call| self.ready.ready(call)),
            }
        }
        more |= core.services.has_tellings();
        self.send_next_commands(core);
        more
    }

    /// What calls of several steps ask next.
    fn send_next_commands(&self, core: &mut Core) {
        while let Some((handle, command)) = core.services.next_command() {
            self.send(core, handle, command);
        }
    }

    fn call_answered(&self, core: &mut Core, handle: u32, now: Instant) {
        if let Some(slow) = core.meter.call_answered(handle, now) {
            core.meter.log_slow(&slow, method_path(slow.method), self.ready.peer(slow.connection));
        }
    }

    fn announce(&self, core: &mut Core) -> bool {
        for _ in 0..READY_PER_TURN {
            let Some((_, token)) = core.hub.next_ready() else { return false };
            self.ready.ready(CallId { connection: (token >> 32) as u32, stream: token as u32 });
        }
        true
    }

    /// One message of a watch stream. The hub judges it by the committed revision of this moment.
    fn watch_request(&self, core: &mut Core, call: CallId, stream: StreamId, message: &Bytes) -> Intake {
        match watch::request(message) {
            Ok(None) => {}
            Ok(Some(request)) => {
                core.hub.request(stream, core.intake.committed(), request);
                self.wake();
            }
            Err(status) => {
                core.hub.refused(stream.0, Why::Request("a message that is no watch request"));
                self.wake();
                core.ending.insert(stream.0 | WATCH_HANDLE, status);
                self.ready.ready(call);
                return Intake::Pause;
            }
        }
        if core.hub.can_take_requests(stream) { Intake::Continue } else { Intake::Pause }
    }

    fn close_stream(&self, core: &mut Core, stream: StreamId) {
        core.progress.stop(stream);
        core.hub.close_stream(stream);
        // What its watches leave behind is swept in turns.
        self.wake();
    }

    /// What is due by the clock alone. Gives the time until the next look.
    fn keep_house(&self) -> Duration {
        let core = &mut *self.core.borrow_mut();
        let time = clock::now();
        self.boards.turned(self.index, time);
        core.meter.keep_house(time);
        if core.services.bytes().0 == 0 {
            core.meter.give_back();
        }
        if let Some(server) = self.server.borrow().upgrade() {
            server.keep_house(time);
        }
        while let Some(stream) = core.progress.next_due(time) {
            if core.hub.progress_due(stream) {
                self.wake();
            } else {
                core.progress.stop(stream);
            }
        }
        if let Some(auto_compact) = &mut core.auto_compact
            && let Some(revision) = auto_compact.look(time, core.intake.committed())
        {
            self.send(core, COMPACTION_TOKEN, Command::Write(Write::Compact(revision)));
        }
        if core.embedded.as_ref().is_some_and(Embedded::is_defragmenting) {
            self.wake();
        }
        core.hub.keep_house();
        if self.index == 0 {
            self.tell_of_memory(time);
        }
        let bytes = self.look_at_budget(core).sum();
        self.give_memory_back(bytes, time);
        // Streams that may ask again are announced in a turn.
        if core.hub.has_ready() {
            self.wake();
        }
        core.progress.until_next(time).min(HOUSEKEEPING_INTERVAL)
    }

    /// Shard 0: how long until the next lease may have expired. Those that have are revoked in a turn.
    fn until_expiry(&self) -> Duration {
        let core = self.core.borrow();
        let next = core.embedded.as_ref().and_then(|embedded| embedded.writer().next_expiry());
        let Some(next) = next else { return HOUSEKEEPING_INTERVAL };
        let left = next.0.saturating_sub(clock::uptime().0);
        if left == 0 {
            self.wake();
        }
        Duration::from_millis(left).clamp(EXPIRY_INTERVAL_MIN, HOUSEKEEPING_INTERVAL)
    }

    /// After a mass exit, once it is over, has the allocator return what was freed; and now and then while memory is short,
    /// quiet or not.
    fn give_memory_back(&self, bytes: usize, time: Instant) {
        let is_quiet = self.last_bytes.replace(bytes) == bytes;
        self.peak_bytes.set(self.peak_bytes.get().max(bytes));
        let is_freed = is_quiet && self.peak_bytes.get() - bytes > COLLECT_BYTES;
        let is_short = self.budget.is_short()
            && self.budget.uncounted() > COLLECT_BYTES
            && self.collected_at.get().is_none_or(|at| time.duration_since(at) >= COLLECT_INTERVAL);
        if is_freed || is_short {
            memory::collect();
            self.peak_bytes.set(bytes);
            self.collected_at.set(Some(time));
        }
    }

    /// By the numbers of this moment: a burst of connections or streams comes between two turns.
    fn connection_bytes(&self) -> usize {
        let server = self.server.borrow().upgrade();
        server.map_or(0, |server| (server.bytes() + server.socket_bytes()) as usize)
    }

    /// As [`Handler::has_room`], for a watch stream.
    fn admits_stream(&self, core: &mut Core) -> bool {
        self.connection_bytes() <= self.stream_bytes_max.get() || {
            self.look_at_budget(core);
            self.connection_bytes() <= self.stream_bytes_max.get()
        }
    }

    /// Whether a call may keep so much of its request. A burst of them comes between two turns, so long ones are judged by what
    /// is held now.
    fn admits_request(&self, core: &mut Core, kept: usize) -> bool {
        let admits = || self.connection_bytes() + kept <= self.stream_bytes_max.get();
        (kept <= SHORT_REQUEST_BYTES && admits()) || {
            self.look_at_budget(core);
            admits()
        }
    }

    /// Shard 0: what an operator should know.
    fn tell_of_memory(&self, time: Instant) {
        let Some(level) = self.herald.borrow_mut().look(time, self.budget.level()) else { return };
        let (used_bytes, limit_bytes) = (self.budget.used(), self.budget.limit());
        match level {
            Level::Plenty => tracing::info!(used_bytes, limit_bytes, "there is memory again"),
            Level::Noticed => tracing::warn!(used_bytes, limit_bytes, "70% of the memory limit is used"),
            Level::Pressed => tracing::warn!(used_bytes, limit_bytes, "85% of the memory limit is used, caches shrink"),
            Level::Full => {
                let what = "the memory limit is reached: watches, connections, puts and large ranges are refused";
                tracing::warn!(used_bytes, limit_bytes, "{what}");
            }
        }
    }

    /// What this shard holds. Everything is counted as it comes and goes; this only adds up.
    fn account(&self, core: &Core) -> Account {
        let (hub, counters) = (core.hub.bytes(), core.hub.counters());
        let (calls, call_bytes) = core.services.bytes();
        let call_bytes = call_bytes + core.meter.bytes();
        let mut account = Account {
            calls,
            call_bytes,
            streams: counters.streams as usize,
            stream_bytes: hub.streams,
            watchings: counters.watches as usize,
            watching_bytes: hub.watchings,
            groups: counters.groups as usize,
            group_bytes: hub.groups,
            behind: counters.behind as usize,
            behind_bytes: hub.apart,
            backlog_bytes: hub.backlog,
            ..Account::default()
        };
        if let Some(server) = self.server.borrow().upgrade() {
            account.connections = server.counters().connections_open.get() as usize;
            account.connection_bytes = server.bytes() as usize;
            account.socket_bytes = server.socket_bytes() as usize;
        }
        account.scratch_bytes = core.services.scratch_bytes();
        if let Some(embedded) = &core.embedded {
            let store = embedded.writer().store();
            let bytes = store.bytes();
            account.store_keys = store.keys();
            account.store_bytes = bytes.keys + bytes.versions;
            account.leases = embedded.writer().leases().len();
            account.lease_bytes = embedded.writer().leases().bytes();
            // The recent history of the hubs consists of the same batches; what a compaction forgets leaves all of them.
            account.history_bytes = bytes.history;
            account.scratch_bytes += embedded.scratch_bytes();
        }
        account
    }

    fn send(&self, core: &mut Core, token: Token, command: Command) {
        if core.link.send(Sent { token, command }) {
            self.wake_writer();
        }
    }

    fn wake_writer(&self) {
        if self.index == 0 { self.wake() } else { self.bells[0].ring() }
    }
}

fn end_compaction(core: &mut Core, answer: &Result<Answer, Error>) {
    let auto_compact = core.auto_compact.as_mut().expect("only it asks with this token");
    let is_done = matches!(answer, Ok(_) | Err(Error::Compacted { .. }));
    match answer {
        Ok(_) => tracing::info!("completed auto compaction"),
        Err(error) => tracing::warn!(?error, "failed auto compaction"),
    }
    auto_compact.finished(clock::now(), core.intake.committed(), is_done);
}

/// What the hub is told of a history that is gone.
fn compacted(HistoryError::Compacted(revision): HistoryError) -> Revision {
    revision
}
