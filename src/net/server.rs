//! What the connections of one shard share: the handler, the settings, the counters, the timers, and the end of it all.

use std::cell::{Cell, RefCell};
use std::future::poll_fn;
use std::net::SocketAddr;
use std::os::fd::OwnedFd;
use std::rc::Rc;
use std::sync::Arc;
use std::task::{Poll, Waker};
use std::time::{Duration, Instant};

use rustix::net::{SendFlags, Shutdown};

use super::connection::Connection;
use super::costs;
use super::counters::Counters;
use super::lane::Lane;
use super::limits::{ConnectionLimits, OverLimit};
use super::listener::{self, Listener};
use super::pings::PingRule;
use super::ready::Ready;
use super::timers::Timers;
use super::{Door, Handler, IdleBuffers, ring};
use crate::grpc::status::Status;
use crate::types::lines::LineBudget;

/// The limits of connections and calls. Every field has a default that suits an etcd server.
#[derive(Clone, Debug)]
pub struct NetConfig {
    /// The shard's clock; nothing in here reads time on its own.
    pub now: fn() -> Instant,
    /// Streams that a peer may have open at once. Waiting locks and watches each hold one.
    pub concurrent_streams_max: u32,
    /// The longest request message, prefix aside. etcd: `--max-request-bytes` and 512 KiB for what surrounds it.
    pub request_bytes_max: u32,
    /// What this shard holds for requests that have not arrived whole. Beyond it, a call that holds some is refused:
    /// otherwise one peer with 16,384 streams could have 32 GiB held for it.
    pub partial_bytes_max: u64,
    /// Connections of this shard; a client beyond is closed at once. Bounded by descriptors.
    pub connections_max: u64,
    /// How many connections the process may have, and how many of one address: shared by all shards.
    pub limits: Arc<ConnectionLimits>,
    /// A peer that does not finish its connection preface and settings in this time is cut.
    pub handshake_timeout: Duration,
    /// Silence after which a peer is asked whether it lives (etcd: `--grpc-keepalive-interval`); `None` never asks.
    pub keepalive_interval: Option<Duration>,
    /// How long it has to answer (etcd: `--grpc-keepalive-timeout`).
    pub keepalive_timeout: Duration,
    /// The least time between a peer's pings (etcd: `--grpc-keepalive-min-time`); `None` holds peers to nothing.
    pub ping_interval_min: Option<Duration>,
    /// How long something may be due to a stream that takes no byte of it; `None` waits for ever.
    pub stalled_stream_timeout: Option<Duration>,
    /// What the kernel may hold for a peer that does not take it.
    pub send_buffer_bytes: usize,
    pub idle_buffers: IdleBuffers,
    /// Silence after which a connection's buffers count as idle. Shorter would give back what the next event takes again.
    pub idle_after: Duration,
}

/// Clients beyond a limit come again and again.
const LIMIT_LINE_INTERVAL: Duration = Duration::from_secs(60);

/// Where the next look at a peer is set when none is wanted: beyond any uptime.
const NEVER: Duration = Duration::from_secs(100 * 365 * 86_400);

impl NetConfig {
    /// The time to the next look at a peer that has spoken.
    pub(super) fn silence_max(&self) -> Duration {
        self.keepalive_interval.unwrap_or(NEVER)
    }

    pub(super) fn ping_rule(&self) -> PingRule {
        PingRule { now: self.now, interval_min: self.ping_interval_min }
    }

    pub fn new(now: fn() -> Instant) -> NetConfig {
        NetConfig {
            now,
            concurrent_streams_max: 16_384,
            request_bytes_max: 2_097_152,
            partial_bytes_max: 256 << 20,
            connections_max: 1 << 20,
            limits: ConnectionLimits::new(None, None),
            handshake_timeout: Duration::from_secs(10),
            keepalive_interval: Some(Duration::from_secs(2 * 3_600)),
            keepalive_timeout: Duration::from_secs(20),
            ping_interval_min: None,
            stalled_stream_timeout: Some(Duration::from_secs(600)),
            send_buffer_bytes: listener::SEND_BUFFER_BYTES,
            idle_buffers: IdleBuffers::GiveBack,
            idle_after: Duration::from_secs(2),
        }
    }
}

/// The server side of one shard's connections.
pub struct Server {
    pub(super) handler: Rc<dyn Handler>,
    pub(super) ready: Ready,
    pub(super) config: NetConfig,
    pub(super) counters: Rc<Counters>,
    pub(super) timers: Timers,
    pub(super) lane: Lane,
    listeners: RefCell<Vec<Listener>>,
    drain: RefCell<Option<Drain>>,
    emptied: RefCell<Option<Waker>>,
    has_tasks: Cell<bool>,
    told_of_limit: Cell<Option<Instant>>,
    stall_lines: Cell<LineBudget>,
}

/// The end of all connections.
#[derive(Clone, Debug)]
pub(super) struct Drain {
    /// What calls that would go on for ever end with.
    pub status: Status,
    /// When whatever is left is cut.
    pub until: Instant,
}

impl Server {
    pub fn new(handler: Rc<dyn Handler>, ready: Ready, config: NetConfig) -> Rc<Server> {
        Rc::new(Server {
            handler,
            ready,
            config,
            counters: Rc::default(),
            timers: Timers::default(),
            lane: Lane::default(),
            listeners: RefCell::default(),
            drain: RefCell::default(),
            emptied: RefCell::default(),
            has_tasks: Cell::new(false),
            told_of_limit: Cell::new(None),
            stall_lines: Cell::default(),
        })
    }

    /// Accepts clients from a listener until it is closed, and serves them.
    pub fn listen(self: &Rc<Self>, listener: Listener, door: Door) {
        listener.set_send_buffer_bytes(self.config.send_buffer_bytes);
        self.listeners.borrow_mut().push(listener.clone());
        let server = self.clone();
        ring::spawn(async move {
            let counters = server.counters.clone();
            let accepted = |client, peer| server.serve(client, peer, door);
            listener.accept_all(accepted, || counters.connections_refused.add(1)).await;
        });
    }

    /// Serves one client that is connected already.
    pub fn serve(self: &Rc<Self>, client: OwnedFd, peer: SocketAddr, door: Door) {
        if !self.has_tasks.replace(true) {
            let server = self.clone();
            ring::spawn(async move {
                server.timers.run(server.config.now, |connection| server.ready.wake_connection(connection)).await;
            });
            let server = self.clone();
            ring::spawn(async move {
                server.lane.run(server.config.now, |connection| server.ready.wake_connection(connection)).await;
            });
        }
        let is_full = self.counters.connections_open.get() >= self.config.connections_max;
        let slot = if is_full || self.drain.borrow().is_some() { None } else { self.ready.add(peer) };
        let Some(slot) = slot else {
            self.counters.connections_refused.add(1);
            return;
        };
        if self.config.keepalive_interval.is_some() {
            // As grpc-go does: a peer that acknowledges nothing for so long is gone. A kernel that knows no such timeout
            // leaves that to the pings.
            let timeout = u32::try_from(self.config.keepalive_timeout.as_millis()).unwrap_or(u32::MAX);
            let _ = rustix::net::sockopt::set_tcp_user_timeout(&client, timeout);
        }
        // Whoever looks why clients are turned away must not be turned away with them.
        let admitted = match door {
            Door::Clients if !self.handler.has_room() => Err(OverLimit::Memory),
            Door::Clients => self.config.limits.admit(peer.ip()).map(Some),
            Door::Pages => Ok(None),
        };
        let admitted = match admitted {
            Ok(admitted) => admitted,
            Err(limit) => {
                self.ready.remove(slot);
                return self.turn_away(&client, peer, limit);
            }
        };
        self.counters.connections_accepted.add(1);
        self.counters.connections_open.add(1);
        ring::spawn(Connection::new(self.clone(), slot, client, peer, (door, admitted)));
    }

    /// The socket is new and its buffer empty, so the kernel takes the few bytes at once or never.
    fn turn_away(&self, client: &OwnedFd, peer: SocketAddr, limit: OverLimit) {
        match limit {
            OverLimit::Connections | OverLimit::Address => self.counters.connections_over_limit.add(1),
            OverLimit::Memory => self.counters.connections_without_memory.add(1),
        }
        let flags = SendFlags::NOSIGNAL | SendFlags::DONTWAIT;
        if rustix::net::send(client, &limit.goaway(), flags).is_ok() {
            // The end of the stream goes out behind them; a reset in its place could overtake them.
            let _ = rustix::net::shutdown(client, Shutdown::Write);
        }
        let now = (self.config.now)();
        let is_news = self.told_of_limit.get().is_none_or(|at| now.duration_since(at) >= LIMIT_LINE_INTERVAL);
        if is_news {
            self.told_of_limit.set(Some(now));
            tracing::warn!(%peer, limit = limit.text(), "a client was turned away; more are not logged for a minute");
        }
    }

    /// One line for a peer that takes nothing, unless there were many.
    pub(super) fn log_stalled(&self, peer: SocketAddr, what: &'static str) {
        let mut lines = self.stall_lines.get();
        if let Some(left_out) = lines.admit((self.config.now)()) {
            tracing::warn!(remote = %peer, reason = "its client took nothing of what was due to it", left_out, "{what}");
        }
        self.stall_lines.set(lines);
    }

    /// Tells how many lines were left out, when no line came to tell. To be called from time to time.
    pub fn keep_house(&self, now: Instant) {
        let mut lines = self.stall_lines.get();
        if let Some(left_out) = lines.untold(now) {
            tracing::warn!(left_out, of = "stalled streams", "lines were left out");
        }
        self.stall_lines.set(lines);
    }

    /// Somebody waits for what has come to this shard from another. See [`lane`](super::lane).
    pub fn call_passed(&self, now: Instant) {
        self.lane.call_passed(now);
    }

    /// As [`Lane::hub_time_max`].
    pub fn hub_time_max(&self, now: Instant) -> Option<Duration> {
        self.lane.hub_time_max(now)
    }

    /// As [`Lane::hub_goes_on`].
    pub fn hub_goes_on(&self) {
        self.lane.hub_goes_on();
    }

    pub fn counters(&self) -> &Rc<Counters> {
        &self.counters
    }

    /// What the connections hold in memory, in bytes, h2's share by measured constants.
    pub fn bytes(&self) -> u64 {
        costs::bytes(&self.counters)
    }

    /// What the kernel holds for their sockets, in bytes.
    pub fn socket_bytes(&self) -> u64 {
        costs::socket_bytes(&self.counters, self.config.send_buffer_bytes)
    }

    /// Ends everything in order: no new clients, a GOAWAY on every connection, calls with a stream of requests end with
    /// `status`, calls with one request are answered; what is left after `grace` is cut. Returns when the last
    /// connection is gone.
    pub async fn drain(&self, status: Status, grace: Duration) {
        for listener in self.listeners.borrow_mut().drain(..) {
            listener.close();
        }
        self.drain.replace(Some(Drain { status, until: (self.config.now)() + grace }));
        self.ready.wake_all();
        poll_fn(|context| {
            if self.counters.connections_open.get() == 0 {
                return Poll::Ready(());
            }
            self.emptied.replace(Some(context.waker().clone()));
            Poll::Pending
        })
        .await;
    }

    pub(super) fn draining(&self) -> Option<Drain> {
        self.drain.borrow().clone()
    }

    pub(super) fn is_draining(&self) -> bool {
        self.drain.borrow().is_some()
    }

    /// A connection's task is over.
    pub(super) fn gone(&self, slot: u32) {
        self.ready.remove(slot);
        self.counters.connections_open.subtract(1);
        if self.counters.connections_open.get() == 0
            && let Some(waiter) = self.emptied.take()
        {
            waiter.wake();
        }
    }
}
