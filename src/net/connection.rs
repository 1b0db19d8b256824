//! One connection: one task that drives h2 and all of its streams, or hyper for a peer that speaks HTTP/1.1.
//!
//! A *turn* is one poll of the task: complete the send in flight, let h2 read a few frames, look at the streams that are
//! due (h2 or the handler named them), let h2 write, and so on for a bounded number of rounds; then everything gathered
//! leaves in one send. A turn that ends with work left passes through the ring, so that others run and operations are
//! submitted in between.
//!
//! States: *new* until the peer's first bytes tell its protocol; *shaking hands* and *open* are those of HTTP/2, *http1* and
//! *lingering* the other's; *closing*: h2 is dropped, every call still open has been reported to the handler, the socket is
//! shut down, and the task ends once no operation is in flight. Nothing is freed while the kernel may still write to it.

use std::collections::BTreeSet;
use std::future::Future;
use std::net::SocketAddr;
use std::os::fd::OwnedFd;
use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll, Waker};
use std::time::{Duration, Instant};

use bytes::Bytes;
use h2::server::{Connection as H2, Handshake, SendResponse};
use h2::{Ping, RecvStream};
use http::{Request, StatusCode};
use slab::Slab;

use super::http1::{self, Http1};
use super::limits::Admitted;
use super::pace::{Left, Pace};
use super::patience::{Liveness, LivenessStep, Quiet, STALL_CHECKS, Stall};
use super::plain::{self, Plain, Protocol, Wire};
use super::ready::Due;
use super::server::{Drain, Server};
use super::stream::{self, Broken, Look, Row, Surroundings};
use super::{CallHead, CallId, CallKind, Door, IdleBuffers, settings};
use crate::backend::Caller;
use crate::grpc::head::{self, Head, Refusal};
use crate::grpc::status::{Code, Status};
use crate::heap;

/// Rounds of reading, serving and writing in one turn.
const ROUNDS_PER_TURN: usize = 32;
/// Streams that are looked at before h2 writes what they queued: its slabs never shrink.
const STREAMS_PER_ROUND: usize = 16;
/// Streams that are looked at between two looks at the clock.
const LOOKS_PER_CLOCK: usize = 2;
/// Calls that are accepted before h2 writes.
const CALLS_PER_ROUND: usize = 16;

const STALLED: &str = "tarsier: the client took nothing of what was due to it for too long";

pub struct Connection {
    server: Rc<Server>,
    slot: u32,
    peer: SocketAddr,
    wire: Wire,
    state: State,
    rows: Slab<Row>,
    rows_high_water: usize,
    deadlines: BTreeSet<(Instant, u32)>,
    liveness: Liveness,
    quiet: Quiet,
    stall: Stall,
    /// The time at which the shard's timers wake this connection.
    alarm: Option<Instant>,
    /// What this connection does about the end of the server; `None` until then.
    drain_until: Option<Instant>,
    pace: Pace,
    /// What this turn has left to do.
    left: Left,
    /// Looks at due streams before h2 is handed more frames.
    looks_left: usize,
    /// Bytes that paused streams keep, for which h2 has not opened the windows again.
    unreleased: u32,
    /// Its peer is gone, and its calls are still to be ended.
    has_ended: bool,
    has_been_at_stream_limit: bool,
    /// At the end of the last turn its peer had not taken what was due to it.
    is_slow: bool,
    /// Its place among those that the process and its address may have, unless it needs none.
    _admitted: Option<Admitted>,
}

// A connection has one state, which lies in its task: a box would only add to what it holds.
#[allow(clippy::large_enum_variant)]
enum State {
    New(Plain),
    Shaking(Handshake<Plain, Bytes>),
    Open(H2<Plain, Bytes>),
    /// In a box, so that the connections that matter have no room set aside for it.
    Http1(Box<Http1>),
    /// The last answer has left; what the peer still sends is taken and thrown away. To close over bytes that nobody has
    /// read resets the connection, and the reset can overtake the answer that says why.
    Lingering,
    Closing,
}

impl Connection {
    pub fn new(
        server: Rc<Server>,
        slot: u32,
        client: OwnedFd,
        peer: SocketAddr,
        (door, admitted): (Door, Option<Admitted>),
    ) -> Connection {
        let (plain, wire) = plain::open(client, server.counters.clone(), server.config.ping_rule());
        let now = (server.config.now)();
        let (state, at, step) = match door {
            Door::Clients => (State::New(plain), now + server.config.handshake_timeout, LivenessStep::CutHandshake),
            Door::Pages => {
                let http1 = Box::new(Http1::new(server.clone(), plain, wire.clone(), door, peer));
                (State::Http1(http1), now + http1::look_interval(&server.config), LivenessStep::LookAtHttp1)
            }
        };
        Connection {
            server,
            slot,
            peer,
            wire,
            state,
            rows: Slab::new(),
            rows_high_water: 0,
            deadlines: BTreeSet::new(),
            liveness: Liveness { at, step, bytes_in: 0, pings: None },
            quiet: Quiet::default(),
            stall: Stall::default(),
            alarm: None,
            drain_until: None,
            pace: Pace::new(now),
            left: Left::Nothing,
            looks_left: 0,
            unreleased: 0,
            has_ended: false,
            has_been_at_stream_limit: false,
            is_slow: false,
            _admitted: admitted,
        }
    }

    fn turn(&mut self, context: &mut Context<'_>) -> Poll<()> {
        if matches!(self.state, State::Closing) {
            return self.wire.poll_close(context);
        }
        // This turn serves what has woken it. The lane's call would else look like more to do, and call for another turn for ever.
        self.server.ready.take_woken(self.slot);
        self.wire.begin_turn(self.rows.len(), self.pace.may_end(self.rows.len()));
        self.look_at_the_time();
        for _ in 0..ROUNDS_PER_TURN {
            self.wire.send_completed(context);
            if self.has_ended || self.poll_protocol(context).is_ready() {
                if !self.has_ended && !self.pace.may_end(self.rows.len()) {
                    self.has_ended = true;
                    break;
                }
                self.close();
                return self.wire.poll_close(context);
            }
            if self.wire.withholds_end() {
                break;
            }
            self.look_at_due_streams();
            if !self.has_more() {
                self.wire.send(context);
                self.set_slow(self.wire.is_congested());
                self.wire.leave_receive_buffer();
                self.expect_progress_of_the_send();
                self.rest();
                self.set_alarm();
                return Poll::Pending;
            }
            if self.now() >= self.pace.until() {
                break;
            }
        }
        self.wire.send(context);
        self.set_alarm();
        self.left = if self.has_ended || self.wire.withholds_end() { Left::Ends } else { Left::Work };
        Poll::Pending
    }

    /// A turn of bounded time, once it has come: a heavy connection waits for it in the lane. Beside the outcome, whose turn in
    /// the lane comes next.
    fn paced_turn(&mut self, context: &mut Context<'_>) -> (Poll<()>, Option<u32>) {
        let server = self.server.clone();
        if !self.pace.begins(&server.lane, self.slot, self.rows.len(), self.now()) {
            return (Poll::Pending, None);
        }
        self.left = Left::Nothing;
        let polled = self.turn(context);
        (polled, self.pace.ended(&server.lane, self.slot, self.left, self.now()))
    }

    fn now(&self) -> Instant {
        (self.server.config.now)()
    }

    /// While output waits for a slow peer streams stay due, since what they have to send had better stay with the handler; and
    /// frames with them, which h2 would have to keep. The end of the send in flight wakes the connection.
    fn has_more(&self) -> bool {
        let has_due = self.server.ready.has_due(self.slot);
        let waits = has_due && self.wire.is_congested();
        self.server.ready.take_woken(self.slot) || !waits && (has_due || self.wire.is_cut_short())
    }

    /// Everything that was due is done. After a silence the buffers go; after traffic the next silence is looked for.
    fn rest(&mut self) {
        let server = self.server.clone();
        let config = &server.config;
        #[cfg(test)]
        if config.idle_buffers == IdleBuffers::Poison {
            self.wire.poison_buffers();
        }
        if config.idle_buffers == IdleBuffers::Keep || !matches!(self.state, State::Open(_)) {
            return;
        }
        let traffic = self.wire.traffic();
        if self.quiet.is_due {
            self.quiet.is_due = false;
            if self.quiet.traffic == traffic && self.wire.give_buffers_back() {
                self.quiet.have_given_back = true;
                server.counters.idle_connections.add(1);
            }
        }
        if self.quiet.traffic != traffic && self.quiet.at.is_none() {
            self.wake_from_idle();
            self.quiet.traffic = traffic;
            self.quiet.at = (config.now)().checked_add(config.idle_after);
        }
    }

    fn set_slow(&mut self, is_slow: bool) {
        if std::mem::replace(&mut self.is_slow, is_slow) != is_slow {
            let slow = &self.server.counters.slow_connections;
            if is_slow { slow.add(1) } else { slow.subtract(1) }
        }
    }

    fn wake_from_idle(&mut self) {
        if std::mem::take(&mut self.quiet.have_given_back) {
            self.server.counters.idle_connections.subtract(1);
        }
    }

    /// Without traffic since the last look, this turn renews h2's read buffer and then gives the pages of both back.
    fn look_for_silence(&mut self, now: Instant) {
        let traffic = self.wire.traffic();
        self.quiet.is_due = self.quiet.traffic == traffic;
        self.quiet.at = if self.quiet.is_due { None } else { now.checked_add(self.server.config.idle_after) };
        self.quiet.traffic = traffic;
        if self.quiet.is_due {
            self.wire.renew_read_buffer();
        }
    }

    /// Lets h2 or hyper read and write. Ready at the end of the connection.
    fn poll_protocol(&mut self, context: &mut Context<'_>) -> Poll<()> {
        if let State::New(_) = self.state {
            match self.wire.poll_protocol(context) {
                Poll::Pending => return Poll::Pending,
                Poll::Ready(Ok(protocol)) => self.begin(protocol),
                Poll::Ready(Err(_)) => return Poll::Ready(()),
            }
        }
        if let State::Http1(http1) = &mut self.state {
            if http1.poll(context).is_pending() {
                return Poll::Pending;
            }
            self.state = State::Lingering;
            self.look_at_the_peer_in(http1::LINGER, LivenessStep::EndLingering);
        }
        if let State::Lingering = self.state {
            return match self.wire.poll_discard(context) {
                Poll::Ready(true) => Poll::Ready(()),
                Poll::Ready(false) => {
                    context.waker().wake_by_ref();
                    Poll::Pending
                }
                Poll::Pending => Poll::Pending,
            };
        }
        self.poll_h2(context)
    }

    /// The peer's first bytes are here.
    fn begin(&mut self, protocol: Protocol) {
        let State::New(plain) = std::mem::replace(&mut self.state, State::Closing) else {
            unreachable!("a connection begins once")
        };
        self.state = match protocol {
            Protocol::Http2 => State::Shaking(settings::handshake(self.server.config.concurrent_streams_max, plain)),
            Protocol::Http1 => {
                self.look_at_the_peer_in(http1::look_interval(&self.server.config), LivenessStep::LookAtHttp1);
                let (server, wire) = (self.server.clone(), self.wire.clone());
                State::Http1(Box::new(Http1::new(server, plain, wire, Door::Clients, self.peer)))
            }
        };
    }

    fn look_at_the_peer_in(&mut self, time: Duration, step: LivenessStep) {
        self.liveness.at = (self.server.config.now)() + time;
        self.liveness.step = step;
    }

    /// Lets h2 read and write, and opens the calls that it brings. Ready at the end of the connection.
    fn poll_h2(&mut self, context: &mut Context<'_>) -> Poll<()> {
        if self.looks_left == 0 || !self.server.ready.has_due(self.slot) {
            self.wire.allow_frames();
            self.looks_left = STREAMS_PER_ROUND;
        }
        if let State::Shaking(handshake) = &mut self.state {
            match heap::within_h2(|| Pin::new(handshake).poll(context)) {
                Poll::Pending => return Poll::Pending,
                Poll::Ready(Ok(open)) => self.opened(open),
                Poll::Ready(Err(error)) => {
                    self.server.counters.connections_broken.add(1);
                    tracing::debug!(peer = %self.peer, %error, "no HTTP/2 handshake");
                    return Poll::Ready(());
                }
            }
        }
        for _ in 0..CALLS_PER_ROUND {
            let State::Open(open) = &mut self.state else { return Poll::Ready(()) };
            // What h2 allocates once is there when the first call is.
            let mut poll = || open.poll_accept(context);
            match if self.rows_high_water == 0 { heap::within_h2(poll) } else { poll() } {
                Poll::Pending => return Poll::Pending,
                Poll::Ready(Some(Ok((request, respond)))) => self.open_call(request, respond),
                Poll::Ready(Some(Err(error))) => {
                    if !error.is_io() {
                        self.server.counters.connections_broken.add(1);
                        tracing::debug!(peer = %self.peer, %error, "connection broken");
                    }
                    return Poll::Ready(());
                }
                Poll::Ready(None) => return Poll::Ready(()),
            }
        }
        // There may be more calls behind these.
        self.server.ready.wake_connection(self.slot);
        Poll::Pending
    }

    fn opened(&mut self, open: H2<Plain, Bytes>) {
        self.state = State::Open(open);
        let at = (self.server.config.now)() + self.server.config.silence_max();
        self.liveness = Liveness { at, step: LivenessStep::Ask, bytes_in: self.wire.bytes_in(), pings: None };
    }

    fn call(&self, stream: u32) -> CallId {
        CallId { connection: self.slot, stream }
    }

    fn open_call(&mut self, request: Request<RecvStream>, respond: SendResponse<Bytes>) {
        let (parts, body) = request.into_parts();
        self.server.counters.calls_opened.add(1);
        let mut row = Row::new(body, respond);
        let head = match Head::read(&parts) {
            Ok(head) => head,
            Err(Refusal { http, status }) => return row.end_with(http, &status),
        };
        let stream = u32::try_from(self.rows.vacant_key()).expect("a peer has at most 2^31 streams");
        let caller = Caller { peer: self.peer, token: head.token, certificate_name: None };
        let opened = self.server.handler.open(
            self.call(stream),
            &CallHead {
                path: head::path(&parts.uri),
                caller: &caller,
                requires_leader: head.requires_leader,
                client_api_version_is_garbled: head.client_api_version_is_garbled,
                timeout: head.timeout,
                calls: self.rows.len(),
            },
        );
        let opened = match opened {
            Ok(opened) => opened,
            Err(status) => return row.end_with(StatusCode::OK, &status),
        };
        row.open(opened.kind, opened.handle);
        row.method = opened.method;
        self.server.counters.methods.started(row.method);
        if opened.kind == CallKind::OneRequest && !self.pace.is_heavy() {
            self.server.lane.call_came(self.now());
        }
        if let Some(timeout) = head.timeout {
            // A time that the clock cannot say never comes.
            row.deadline = (self.server.config.now)().checked_add(timeout);
            self.deadlines.extend(row.deadline.map(|at| (at, stream)));
        }
        stream::make_room_for_a_row(&mut self.rows);
        self.rows.insert(row);
        self.count_stream();
        if opened.kind != CallKind::OneRequest
            && let Some(drain) = self.server.draining()
        {
            // It crossed the GOAWAY, and nothing else would end it before the end of the grace.
            return self.end_call(stream, &drain.status);
        }
        self.look(Due { stream, announced: false });
    }

    fn count_stream(&mut self) {
        let counters = &self.server.counters;
        counters.streams_open.add(1);
        if self.rows.len() > self.rows_high_water {
            self.rows_high_water = self.rows.len();
            counters.stream_slots.add(1);
        }
        if self.rows.len() >= self.server.config.concurrent_streams_max as usize && !self.has_been_at_stream_limit {
            self.has_been_at_stream_limit = true;
            counters.at_stream_limit.add(1);
            tracing::warn!(peer = %self.peer, streams = self.rows.len(), "a client has reached its limit of streams");
        }
    }

    /// A bounded number of streams, and time. What the clock leaves over comes before h2 is handed more frames: else the
    /// requests of short turns would pile up in h2, whose slabs never shrink.
    fn look_at_due_streams(&mut self) {
        while self.looks_left > 0 && !self.wire.is_congested() {
            let Some(due) = self.server.ready.next(self.slot) else { return };
            self.look(due);
            self.looks_left -= 1;
            if self.looks_left.is_multiple_of(LOOKS_PER_CLOCK) && self.now() >= self.pace.until() {
                return;
            }
        }
    }

    fn look(&mut self, due: Due) {
        let Due { stream, announced } = due;
        let around = Surroundings {
            handler: &*self.server.handler,
            call: self.call(stream),
            request_bytes_max: self.server.config.request_bytes_max,
            now: self.server.config.now,
            until: self.pace.until(),
        };
        let Some(row) = self.rows.get_mut(stream as usize) else { return };
        self.pace.serves(row.kind == CallKind::OneRequest);
        let waker = self.server.ready.stream_waker(self.slot, stream);
        let partial = &self.server.counters.partial_bytes;
        partial.subtract(row.held_bytes() as u64);
        let unreleased_before = row.unreleased_bytes();
        self.server.ready.serve(self.slot, Some(stream));
        let look = row.look(&around, &mut Context::from_waker(&waker), announced);
        self.server.ready.serve(self.slot, None);
        let (method, held, unreleased) = (row.method, row.held_bytes(), row.unreleased_bytes());
        partial.add(held as u64);
        if matches!(look, Look::Waits) && row.is_blocked() {
            self.stall.expect_progress(&self.server.config);
        }
        self.keep_window_open(unreleased_before, unreleased);
        match look {
            // The handler has ended the call and given its handle away, whatever the row still holds.
            Look::Ended(code) => {
                self.server.counters.methods.handled(method, code);
                self.remove(stream);
            }
            Look::Broken(by) => self.break_off(stream, by),
            _ if self.server.counters.partial_bytes.get() > self.server.config.partial_bytes_max && held > 0 => {
                let text = "too many requests are arriving at once";
                self.end_call(stream, &Status::new(Code::ResourceExhausted, text));
            }
            Look::Waits => {}
            Look::More => waker.wake(),
        }
    }

    /// What a stream that nobody hears has sent must not count against the others of its connection.
    fn keep_window_open(&mut self, unreleased_before: usize, unreleased: usize) {
        if unreleased_before == unreleased {
            return;
        }
        self.unreleased = self.unreleased + unreleased as u32 - unreleased_before as u32;
        if let State::Open(open) = &mut self.state {
            open.set_target_window_size((settings::CONNECTION_WINDOW + self.unreleased).min(i32::MAX as u32));
        }
    }

    fn break_off(&mut self, stream: u32, by: Broken) {
        let Row { handle, method, .. } = self.rows[stream as usize];
        self.remove(stream);
        let counters = &self.server.counters;
        match by {
            Broken::ByUs(code) => counters.methods.handled(method, code),
            Broken::ByPeer => {
                counters.methods.handled(method, Code::Canceled);
                counters.calls_reset.add(1);
            }
        }
        self.server.handler.closed(self.call(stream), handle);
    }

    fn remove(&mut self, stream: u32) {
        let row = self.rows.remove(stream as usize);
        if let Some(at) = row.deadline {
            self.deadlines.remove(&(at, stream));
        }
        self.server.counters.partial_bytes.subtract(row.held_bytes() as u64);
        self.server.counters.streams_open.subtract(1);
        let unreleased = row.unreleased_bytes();
        // With the stream, h2 opens the window for what it has sent.
        drop(row);
        self.keep_window_open(unreleased, 0);
    }

    /// Ends a call with a status of ours, and tells the handler.
    fn end_call(&mut self, stream: u32, status: &Status) {
        self.rows[stream as usize].end(status);
        self.break_off(stream, Broken::ByUs(status.code));
    }

    /// Everything that happens because time passes: deadlines, keep-alive, and the end of the server.
    fn look_at_the_time(&mut self) {
        if self.drain_until.is_none() && self.server.is_draining() {
            let drain = self.server.draining().expect("it was asked just now");
            self.begin_drain(&drain);
        }
        let Some(alarm) = self.alarm else { return self.set_alarm() };
        let now = (self.server.config.now)();
        if now < alarm {
            return;
        }
        self.alarm = None;
        while let Some(&(_, stream)) = self.deadlines.first().filter(|(at, _)| *at <= now) {
            self.server.counters.calls_past_deadline.add(1);
            self.end_call(stream, &Status::new(Code::DeadlineExceeded, "context deadline exceeded"));
        }
        if self.liveness.at <= now {
            self.check_liveness(now);
        }
        if self.stall.at.is_some_and(|at| at <= now) {
            self.check_for_stalls();
        }
        if self.quiet.at.is_some_and(|at| at <= now) {
            self.look_for_silence(now);
        }
        if self.drain_until.is_some_and(|until| until <= now) {
            self.cut("still busy at the end of the grace");
        }
    }

    fn next_time(&self) -> Option<Instant> {
        let deadline = self.deadlines.first().map(|&(at, _)| at);
        [Some(self.liveness.at), deadline, self.stall.at, self.quiet.at, self.drain_until].into_iter().flatten().min()
    }

    /// Asks to be woken at the next time that matters. An alarm that comes too early is cheaper than one moved each time.
    fn set_alarm(&mut self) {
        let Some(next) = self.next_time() else { return };
        if self.alarm.is_some_and(|alarm| alarm <= next) {
            return;
        }
        if let Some(alarm) = self.alarm.replace(next) {
            self.server.timers.remove(alarm, self.slot);
        }
        self.server.timers.add(next, self.slot);
    }

    fn expect_progress_of_the_send(&mut self) {
        if self.wire.is_sending() {
            self.stall.expect_progress(&self.server.config);
        }
    }

    /// Ends the streams that have had something due for so long and took nothing of it, so that their clients come back;
    /// the other streams go on. A connection whose socket took nothing cannot even be told.
    fn check_for_stalls(&mut self) {
        self.stall.at = None;
        let sends = self.wire.sends_ended();
        let is_stuck = self.wire.is_sending() && self.stall.sends == sends;
        self.stall.sends = sends;
        self.stall.stuck_checks = if is_stuck { self.stall.stuck_checks + 1 } else { 0 };
        if self.stall.stuck_checks > STALL_CHECKS {
            self.server.counters.connections_stalled.add(1);
            self.server.log_stalled(self.peer, "connection ended");
            return self.cut("its peer has taken nothing for too long");
        }
        let mut stalled = Vec::new();
        for (stream, row) in &mut self.rows {
            if row.is_stalled(STALL_CHECKS) {
                stalled.push(stream as u32);
            } else if row.is_blocked() {
                self.stall.expect_progress(&self.server.config);
            }
        }
        self.server.counters.streams_stalled.add(stalled.len() as u64);
        for stream in stalled {
            self.server.log_stalled(self.peer, "stream ended");
            self.end_call(stream, &Status::new(Code::Unavailable, STALLED));
        }
        self.expect_progress_of_the_send();
    }

    fn check_liveness(&mut self, now: Instant) {
        let has_spoken = self.wire.bytes_in() != self.liveness.bytes_in;
        let config = &self.server.config;
        self.liveness.bytes_in = self.wire.bytes_in();
        match self.liveness.step {
            LivenessStep::CutHandshake => self.cut("no HTTP/2 preface in time"),
            LivenessStep::EndLingering => self.cut("its peer goes on sending behind the last answer"),
            LivenessStep::LookAtHttp1 => {
                let State::Http1(http1) = &mut self.state else { unreachable!("the step belongs to the state") };
                match http1.look(config.handshake_timeout) {
                    Some(why) => self.cut(why),
                    None => self.liveness.at = now + http1::look_interval(config),
                }
            }
            LivenessStep::CutUnlessAnswered if !has_spoken => self.cut("no answer to a keep-alive ping"),
            LivenessStep::Ask if !has_spoken => {
                self.liveness.at = now + config.keepalive_timeout;
                self.liveness.step = LivenessStep::CutUnlessAnswered;
                self.ping();
            }
            LivenessStep::Ask | LivenessStep::CutUnlessAnswered => {
                self.liveness.at = now + config.silence_max();
                self.liveness.step = LivenessStep::Ask;
            }
        }
    }

    fn ping(&mut self) {
        let State::Open(open) = &mut self.state else { return };
        if self.liveness.pings.is_none() {
            self.liveness.pings = open.ping_pong();
        }
        if let Some(pings) = &mut self.liveness.pings {
            // The pong of the ping before must be taken; the bytes that it came in have already counted.
            let _ = pings.poll_pong(&mut Context::from_waker(Waker::noop()));
            // One that is still under way asks the same.
            let _ = pings.send_ping(Ping::opaque());
        }
    }

    /// GOAWAY first, so that no new calls come; then the calls that would go on for ever.
    fn begin_drain(&mut self, drain: &Drain) {
        self.drain_until = Some(drain.until);
        match &mut self.state {
            State::Open(open) => open.graceful_shutdown(),
            State::Http1(http1) => http1.end(),
            // It has no call; there is nothing to wait for.
            State::New(_) | State::Shaking(_) => return self.cut("the server ends"),
            State::Lingering | State::Closing => return,
        }
        let streams = self.rows.iter().filter(|(_, row)| row.kind != CallKind::OneRequest);
        let streams: Vec<u32> = streams.map(|(stream, _)| stream as u32).collect();
        for stream in streams {
            self.end_call(stream, &drain.status);
        }
        self.set_alarm();
    }

    /// Ends the connection without the peer's consent.
    fn cut(&mut self, why: &str) {
        tracing::debug!(peer = %self.peer, why, "connection cut");
        self.close();
        self.server.ready.wake_connection(self.slot);
    }

    /// From here on only the socket is left. Every call still open is over.
    fn close(&mut self) {
        self.state = State::Closing;
        self.wake_from_idle();
        self.set_slow(false);
        self.deadlines.clear();
        if let Some(alarm) = self.alarm.take() {
            self.server.timers.remove(alarm, self.slot);
        }
        for (stream, row) in std::mem::take(&mut self.rows) {
            self.server.counters.partial_bytes.subtract(row.held_bytes() as u64);
            self.server.counters.streams_open.subtract(1);
            self.server.counters.calls_reset.add(1);
            self.server.counters.methods.handled(row.method, Code::Canceled);
            self.server.handler.closed(self.call(stream as u32), row.handle);
        }
        self.server.counters.stream_slots.subtract(self.rows_high_water as u64);
        self.rows_high_water = 0;
    }
}

impl Future for Connection {
    type Output = ();

    fn poll(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<()> {
        let this = &mut *self;
        let server = this.server.clone();
        server.ready.enter(this.slot, context.waker());
        // h2 and the ring wake the connection through its slot, so a wake during the turn costs no second turn.
        let waker = server.ready.connection_waker(this.slot);
        let (polled, next) = this.paced_turn(&mut Context::from_waker(&waker));
        server.ready.leave(this.slot);
        // It may be this one.
        next.into_iter().for_each(|next| server.ready.wake_connection(next));
        if polled.is_ready() {
            server.gone(this.slot);
        }
        polled
    }
}
