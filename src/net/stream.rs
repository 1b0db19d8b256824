//! One call on one stream: a row in its connection's slab, not a future.
//!
//! An idle watch stream is this row, h2's slot for it, and one byte of marks. The row holds no buffer: what arrived is
//! handed on or cut short in the deframer, and what is to be sent stays with the handler until the peer's window has room.
//! Only what comes while the handler wants no requests waits with the row, a window at most.
//!
//! States: a row *reads* until the client's half-close (or is paused by the handler), and *writes* first headers, then
//! messages, then trailers. It ends when the trailers are queued, or when the stream is reset under it.

use std::task::{Context, Poll};
use std::time::Instant;

use bytes::Bytes;
use h2::server::SendResponse;
use h2::{RecvStream, SendStream};
use http::{Response, StatusCode};
use slab::Slab;

use super::{CallId, CallKind, Handler, Intake, Output};
use crate::grpc::frame::Deframer;
use crate::grpc::head;
use crate::grpc::status::{Code, Status};
use crate::heap;

/// What one look at a stream may hand to h2; h2 holds at most twice that of a stream (`max_send_buffer_size`).
const OUTPUT_BYTES: usize = 16 * 1_024;
/// The first bytes of a unary answer are asked for before its window is known, since an error must be able to leave
/// without headers in front of it. A peer with a closed window makes us hold this much for it.
const FIRST_OUTPUT_BYTES: usize = 4 * 1_024;
/// Pieces of output, and request messages, in one look at a stream; then the others have their turn.
const OUTPUTS_PER_LOOK: usize = 8;
const MESSAGES_PER_LOOK: usize = 256;
/// Messages between two looks at the clock. They are answered together, and h2's clients end a connection on which some two
/// hundred small frames wait to be read. Sixteen creates took longer than a short turn may: beside a storm puts were late by 10 ms
/// and more, and with four by 4 to 6.
const MESSAGES_PER_CLOCK: usize = 4;

pub struct Row {
    body: RecvStream,
    sender: Sender,
    deframer: Deframer,
    held: Option<Box<Held>>,
    pub deadline: Option<Instant>,
    pub handle: u32,
    pub kind: CallKind,
    reading: Reading,
    /// The handler may have something to send.
    is_output_due: bool,
    /// How many checks in a row have found it blocked.
    blocked_checks: u8,
    /// How it is counted.
    pub method: u8,
}

/// Requests that a pause keeps waiting.
#[derive(Default)]
struct Held {
    /// What the pause has cut off a chunk.
    chunk: Bytes,
    /// How many of its messages the handler has looked ahead at.
    foreseen: usize,
    /// What has come since. The stream's window stays closed for it, which bounds it.
    behind: Vec<u8>,
}

/// No method has this number: of a request that became no call.
const UNCOUNTED: u8 = u8::MAX;

enum Sender {
    /// No headers have left.
    Response(SendResponse<Bytes>),
    Stream(SendStream<Bytes>),
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Reading {
    Open,
    Paused,
    Ended,
}

/// What a look at a stream found.
pub enum Look {
    /// It waits for the peer or for the handler.
    Waits,
    /// There is more to do at once.
    More,
    /// The handler has ended the call, with this code.
    Ended(Code),
    /// The call ended without the handler, which is to be told.
    Broken(Broken),
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Broken {
    ByPeer,
    /// Ended by a status of ours, with this code.
    ByUs(Code),
}

/// What every look needs.
pub struct Surroundings<'a> {
    pub handler: &'a dyn Handler,
    pub call: CallId,
    pub request_bytes_max: u32,
    pub now: fn() -> Instant,
    /// The end of the connection's turn.
    pub until: Instant,
}

/// The head of an answer: for the first one of its connection, h2 makes its places for frames to send.
fn send_head(
    respond: &mut SendResponse<Bytes>,
    head: Response<()>,
    is_last: bool,
) -> Result<SendStream<Bytes>, h2::Error> {
    heap::within_h2(|| respond.send_response(head, is_last))
}

/// Doubling would leave a connection with fifty streams room for 14 more, 1.2 kB that most never use.
pub fn make_room_for_a_row(rows: &mut Slab<Row>) {
    if rows.len() == rows.capacity() {
        rows.reserve_exact((rows.len() / 8).max(4));
    }
}

impl Row {
    pub fn new(body: RecvStream, respond: SendResponse<Bytes>) -> Row {
        Row {
            body,
            sender: Sender::Response(respond),
            deframer: Deframer::default(),
            held: None,
            deadline: None,
            handle: 0,
            kind: CallKind::OneRequest,
            reading: Reading::Open,
            is_output_due: false,
            blocked_checks: 0,
            method: UNCOUNTED,
        }
    }

    /// The handler has taken the call.
    pub fn open(&mut self, kind: CallKind, handle: u32) {
        (self.kind, self.handle) = (kind, handle);
        if kind == CallKind::RequestStream {
            // Clients of a watch wait for the headers before they count the stream as open. A stream that is reset
            // already shows that to the first look.
            let _ = self.send_headers();
        }
    }

    /// One bounded look: requests in, output out. `announced` when the handler named the call.
    pub fn look(&mut self, around: &Surroundings<'_>, context: &mut Context<'_>, announced: bool) -> Look {
        self.is_output_due |= announced;
        match self.read_and_write(around, context, announced) {
            Err(look) => look,
            Ok(more) => self.look_for_reset(context, more),
        }
    }

    /// Output goes first: a handler that paused the call makes room by it, and names the call again.
    fn read_and_write(
        &mut self,
        around: &Surroundings<'_>,
        context: &mut Context<'_>,
        announced: bool,
    ) -> Result<bool, Look> {
        if announced && self.reading == Reading::Paused && around.handler.can_take_requests(around.call, self.handle) {
            self.reading = Reading::Open;
        }
        if self.is_output_due && self.write(around, context)? {
            return Ok(true);
        }
        // What a closed window has left due waits for its wake, whatever is read meanwhile.
        let blocked = std::mem::take(&mut self.is_output_due);
        let mut more = false;
        match self.reading {
            Reading::Open => more = self.read(around, context)?,
            Reading::Paused => self.hold(context)?,
            Reading::Ended => {}
        }
        if self.reading == Reading::Ended {
            self.discard(context)?;
        }
        if self.is_output_due && !blocked {
            more |= self.write(around, context)?;
        }
        self.is_output_due |= blocked;
        Ok(more)
    }

    fn look_for_reset(&mut self, context: &mut Context<'_>, more: bool) -> Look {
        let reset = match &mut self.sender {
            Sender::Response(respond) => respond.poll_reset(context),
            Sender::Stream(stream) => stream.poll_reset(context),
        };
        match reset {
            Poll::Ready(_) => Look::Broken(Broken::ByPeer),
            Poll::Pending if more => Look::More,
            Poll::Pending => Look::Waits,
        }
    }

    /// Takes request messages until there are none. `Ok(true)` when it stopped for the sake of others.
    fn read(&mut self, around: &Surroundings<'_>, context: &mut Context<'_>) -> Result<bool, Look> {
        let mut messages_left = MESSAGES_PER_LOOK;
        let held = self.held.as_mut().map(|held| (std::mem::take(&mut held.chunk), std::mem::take(&mut held.foreseen)));
        let (mut chunk, mut foreseen) = held.unwrap_or_default();
        loop {
            loop {
                if foreseen == 0 {
                    foreseen = self.foresee(&chunk, around);
                }
                let Some(message) = self.next_message(&mut chunk, around)? else { break };
                foreseen = foreseen.saturating_sub(1);
                let intake = self.take(message, around);
                messages_left -= 1;
                if self.reading == Reading::Ended {
                    return Ok(false);
                }
                if intake == Intake::Pause {
                    self.reading = Reading::Paused;
                }
                let is_over = messages_left.is_multiple_of(MESSAGES_PER_CLOCK)
                    && (messages_left == 0 || (around.now)() >= around.until);
                if intake == Intake::Pause || is_over {
                    if !chunk.is_empty() {
                        let held = self.held.get_or_insert_default();
                        (held.chunk, held.foreseen) = (chunk, foreseen);
                    }
                    if intake == Intake::Pause {
                        self.hold(context)?;
                    }
                    return Ok(self.reading == Reading::Open);
                }
            }
            if let Some(held) = self.held.take().filter(|held| !held.behind.is_empty()) {
                chunk = held.behind.into();
                foreseen = 0;
                self.open_window(chunk.len());
                continue;
            }
            match self.body.poll_data(context) {
                Poll::Pending => return Ok(false),
                Poll::Ready(Some(Ok(data))) => {
                    self.open_window(data.len());
                    chunk = data;
                    foreseen = 0;
                }
                Poll::Ready(Some(Err(_))) => return Err(Look::Broken(Broken::ByPeer)),
                Poll::Ready(None) => return self.end_of_requests(around).map(|()| false),
            }
        }
    }

    /// Whole messages go on at once and a cut one is bounded by its limit, so the window opens again for what is read.
    fn open_window(&mut self, bytes: usize) {
        // An error says that the stream is closed, which the next poll tells.
        let _ = self.body.flow_control().release_capacity(bytes);
    }

    /// Takes over from h2 what comes while nobody hears it. What h2 holds counts against the window of the connection, and one
    /// stream's window is as large: the other streams would not be heard either.
    fn hold(&mut self, context: &mut Context<'_>) -> Result<(), Look> {
        loop {
            match self.body.poll_data(context) {
                Poll::Ready(Some(Ok(data))) => self.held.get_or_insert_default().behind.extend_from_slice(&data),
                Poll::Ready(Some(Err(_))) => return Err(Look::Broken(Broken::ByPeer)),
                // The end is told again once it is read.
                Poll::Ready(None) | Poll::Pending => return Ok(()),
            }
        }
    }

    /// What comes behind the last request is heard by nobody. In h2 it would count against the window of the connection, and
    /// each frame take its place.
    fn discard(&mut self, context: &mut Context<'_>) -> Result<(), Look> {
        while let Poll::Ready(Some(data)) = self.body.poll_data(context) {
            let data = data.map_err(|_| Look::Broken(Broken::ByPeer))?;
            self.open_window(data.len());
        }
        Ok(())
    }

    /// Lets the handler look ahead; gives for how many messages that is.
    fn foresee(&self, chunk: &[u8], around: &Surroundings<'_>) -> usize {
        match self.kind {
            CallKind::RequestStream if !self.deframer.is_between_messages() => 0,
            CallKind::RequestStream => around.handler.foresee(self.handle, chunk),
            CallKind::OneRequest | CallKind::LongAnswer => usize::MAX,
        }
    }

    fn next_message(&mut self, chunk: &mut Bytes, around: &Surroundings<'_>) -> Result<Option<Bytes>, Look> {
        self.deframer.next(chunk, around.request_bytes_max).map_err(|error| self.fail(&error.status()))
    }

    fn take(&mut self, message: Bytes, around: &Surroundings<'_>) -> Intake {
        self.is_output_due = true;
        let intake = around.handler.message(around.call, self.handle, message);
        match self.kind {
            CallKind::RequestStream => intake,
            CallKind::OneRequest | CallKind::LongAnswer => {
                self.reading = Reading::Ended;
                around.handler.end_of_requests(around.call, self.handle);
                intake
            }
        }
    }

    /// In the words of grpc-go, as etcd 3.7 answers.
    fn end_of_requests(&mut self, around: &Surroundings<'_>) -> Result<(), Look> {
        self.reading = Reading::Ended;
        let is_cut = self.deframer.is_amid_message();
        match self.kind {
            CallKind::RequestStream if is_cut => return Err(self.fail(&Status::new(Code::Internal, "unexpected EOF"))),
            CallKind::RequestStream => {}
            CallKind::OneRequest | CallKind::LongAnswer => {
                let text = if is_cut { "unexpected EOF" } else { "EOF" };
                return Err(self.fail(&Status::new(Code::Unknown, text)));
            }
        }
        around.handler.end_of_requests(around.call, self.handle);
        self.is_output_due = true;
        Ok(())
    }

    /// Sends what the handler has, as far as the peer's window goes. `Ok(true)` when it stopped for the sake of others.
    fn write(&mut self, around: &Surroundings<'_>, context: &mut Context<'_>) -> Result<bool, Look> {
        for _ in 0..OUTPUTS_PER_LOOK {
            let Some(room) = self.room(context) else { return Ok(false) };
            match around.handler.output(around.call, self.handle, room) {
                Output::Nothing => {
                    self.is_output_due = false;
                    self.release_room();
                    return Ok(false);
                }
                Output::Bytes(bytes) => self.send(bytes)?,
                Output::End(status) => {
                    self.end(&status);
                    return Err(Look::Ended(status.code));
                }
                Output::Last(bytes) => {
                    // A stream that broke at this moment is over either way, and the handler knows.
                    if self.send(bytes).is_ok() {
                        self.end(&Status::ok());
                    }
                    return Err(Look::Ended(Code::Ok));
                }
            }
        }
        Ok(true)
    }

    /// How many bytes to ask the handler for; `None` while the peer's window is closed, and a wake follows when it opens.
    ///
    /// Room is reserved only around the question: a stream that kept some would take it from its connection's others.
    fn room(&mut self, context: &mut Context<'_>) -> Option<usize> {
        let Sender::Stream(stream) = &mut self.sender else { return Some(FIRST_OUTPUT_BYTES) };
        stream.reserve_capacity(OUTPUT_BYTES);
        loop {
            // Read before polled: `poll_capacity` speaks of changes only.
            let room = stream.capacity();
            if room > 0 {
                return Some(room.min(OUTPUT_BYTES));
            }
            match stream.poll_capacity(context) {
                Poll::Ready(Some(Ok(_))) => {}
                // Closed: the reset shows next.
                Poll::Ready(_) | Poll::Pending => return None,
            }
        }
    }

    fn release_room(&mut self) {
        if let Sender::Stream(stream) = &mut self.sender {
            stream.reserve_capacity(0);
        }
    }

    fn send_headers(&mut self) -> Result<(), Look> {
        if let Sender::Response(respond) = &mut self.sender {
            let stream = send_head(respond, head::response(), false).map_err(|_| Look::Broken(Broken::ByPeer))?;
            self.sender = Sender::Stream(stream);
        }
        Ok(())
    }

    fn send(&mut self, bytes: Bytes) -> Result<(), Look> {
        self.send_headers()?;
        self.blocked_checks = 0;
        let Sender::Stream(stream) = &mut self.sender else { unreachable!("headers have just been sent") };
        stream.send_data(bytes, false).map_err(|_| Look::Broken(Broken::ByPeer))
    }

    /// After a look that waits: something is due, and the peer's window is closed.
    pub fn is_blocked(&self) -> bool {
        self.is_output_due
    }

    /// One of the checks at equal times. `true` when more than `checks_max` in a row have found it blocked, with nothing
    /// taken in between.
    pub fn is_stalled(&mut self, checks_max: u8) -> bool {
        self.blocked_checks = if self.is_blocked() { self.blocked_checks.saturating_add(1) } else { 0 };
        self.blocked_checks > checks_max
    }

    /// What is held of requests, in bytes.
    pub fn held_bytes(&self) -> usize {
        self.deframer.bytes() + self.held.as_ref().map_or(0, |held| held.chunk.len() + held.behind.len())
    }

    /// The part of it for which the windows are still closed, in bytes.
    pub fn unreleased_bytes(&self) -> usize {
        self.held.as_ref().map_or(0, |held| held.behind.len())
    }

    /// The last that the peer hears of this call. A stream that is reset already hears nothing, and needs nothing.
    pub fn end(&mut self, status: &Status) {
        self.end_with(StatusCode::OK, status);
    }

    pub fn end_with(&mut self, http: StatusCode, status: &Status) {
        let _ = match &mut self.sender {
            Sender::Response(respond) if status.code == Code::Ok => send_head(respond, head::response(), false)
                .and_then(|mut stream| stream.send_trailers(status.trailers())),
            Sender::Response(respond) => send_head(respond, head::trailers_only(http, status), true).map(drop),
            Sender::Stream(stream) => stream.send_trailers(status.trailers()),
        };
    }

    fn fail(&mut self, status: &Status) -> Look {
        self.end(status);
        Look::Broken(Broken::ByUs(status.code))
    }
}
