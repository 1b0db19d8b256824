//! What lies between h2 and the socket, in plaintext: the frame meter, write gathering, and the give-back of h2's buffers.
//! It is also the place where HTTP/1.1 is told apart: [`Wire::poll_protocol`] looks at the first bytes and leaves them where
//! they are, for h2 or for [`http1`](super::http1) to read.
//!
//! h2 owns a [`Plain`] and speaks `AsyncRead` and `AsyncWrite` to it; the connection keeps the [`Wire`], the other handle
//! on the same state. Writes are gathered: h2 asks for a flush after each large DATA frame, and `poll_flush` only notes
//! it; the connection sends everything of its turn in one go with [`Wire::send`]. `poll_shutdown` really flushes. Reads
//! are metered: frame headers are counted by type before h2 sees them, and h2 gets a bounded number of frames a poll, since
//! its slabs never shrink. [`idle`](super::idle) says how a silent connection's buffers are given back, and why they can be.

use std::cell::{RefCell, RefMut};
use std::io;
use std::ops::Deref;
use std::os::fd::OwnedFd;
use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll, ready};

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

use super::counters::Counters;
use super::idle::{self, Buffers};
use super::pings::{self, PingRule, Pings};
use super::ring::Received;
use super::socket::Socket;

/// Frames that h2 is handed before the connection serves what they were about. h2 keeps 256 bytes a frame for the most
/// that ever waited at once: with 16, a connection that once began many calls together holds 2 kB more for ever.
const FRAMES_PER_POLL: u32 = 4;
/// Bytes gathered while nothing is in flight: what one send takes.
const OUTPUT_BYTES_MAX: usize = 64 * 1_024;
/// Bytes gathered behind a send that is in flight: the peer is slow, so h2 and the handler keep the rest.
const OUTPUT_BYTES_BEHIND_MAX: usize = 16 * 1_024;
/// A buffer that grew beyond this by one large frame is not kept.
const SPARE_BYTES_MAX: usize = 80 * 1_024;
/// Send buffers that a shard keeps for the next sends.
const SPARES_MAX: usize = 32;
/// What is thrown away at a time of a peer that still sends and is no longer heard.
const RECEIVES_PER_DISCARD: usize = 16;

/// h2's half.
pub struct Plain(Rc<RefCell<State>>);

/// The connection's half.
#[derive(Clone)]
pub struct Wire(Rc<RefCell<State>>);

struct State {
    socket: Socket,
    counters: Rc<Counters>,
    meter: Meter,
    ping_rule: PingRule,
    pings: Pings,
    /// The calls of the connection, and the last stream that its peer has begun, when its turn began.
    calls: usize,
    calls_up_to: u32,
    /// It has pinged too often and was told so: nothing of it is heard any more.
    is_told_to_go: bool,
    input: Option<Input>,
    input_taken: usize,
    frames_left: u32,
    is_cut_short: bool,
    output: Vec<u8>,
    bytes_in: u64,
    bytes_out: u64,
    sends_ended: u64,
    /// The length of the send in flight.
    sending_bytes: usize,
    buffers: Buffers,
    /// h2's read buffer is to be ended with a frame that it ignores, unless the peer has sent something.
    is_pad_due: bool,
    /// There are no frames here, and what comes and goes is not counted as gRPC's.
    is_http1: bool,
    failed: Option<io::ErrorKind>,
    /// The end of what the peer sends, of which h2 has not heard; and whether it may hear of it in this turn.
    end: Option<io::Result<()>>,
    may_end: bool,
    /// h2's last write was taken in part: its next one begins amid a frame.
    is_amid_output: bool,
}

/// What a peer speaks, by its first bytes.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Protocol {
    Http1,
    Http2,
}

/// What an HTTP/2 peer sends before its first frame (RFC 9113, section 3.4). It was chosen so that no request of HTTP/1.1
/// begins so.
const PREFACE: &[u8; 24] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";

/// `None` as long as both are possible.
fn protocol(begin: &[u8]) -> Option<Protocol> {
    let common = begin.len().min(PREFACE.len());
    if begin[..common] != PREFACE[..common] {
        return Some(Protocol::Http1);
    }
    (common == PREFACE.len()).then_some(Protocol::Http2)
}

/// Bytes from the peer that h2 has not read yet.
enum Input {
    Pooled(Received),
    Own(Unread),
}

/// What a connection keeps of a receive buffer that it has to give back.
struct Unread {
    bytes: Vec<u8>,
    counters: Rc<Counters>,
}

impl Unread {
    fn new(bytes: &[u8], counters: &Rc<Counters>) -> Unread {
        counters.unread_bytes.add(bytes.len() as u64);
        Unread { bytes: bytes.to_vec(), counters: counters.clone() }
    }
}

impl Drop for Unread {
    fn drop(&mut self) {
        self.counters.unread_bytes.subtract(self.bytes.len() as u64);
    }
}

impl Deref for Input {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        match self {
            Input::Pooled(received) => received,
            Input::Own(unread) => &unread.bytes,
        }
    }
}

pub fn open(descriptor: OwnedFd, counters: Rc<Counters>, ping_rule: PingRule) -> (Plain, Wire) {
    let state = Rc::new(RefCell::new(State {
        socket: Socket::new(descriptor),
        counters,
        meter: Meter::default(),
        ping_rule,
        pings: Pings::default(),
        calls: 0,
        calls_up_to: 0,
        is_told_to_go: false,
        input: None,
        input_taken: 0,
        frames_left: FRAMES_PER_POLL,
        is_cut_short: false,
        output: Vec::new(),
        bytes_in: 0,
        bytes_out: 0,
        sends_ended: 0,
        sending_bytes: 0,
        buffers: Buffers::default(),
        is_pad_due: false,
        is_http1: false,
        failed: None,
        end: None,
        may_end: true,
        is_amid_output: false,
    }));
    (Plain(state.clone()), Wire(state))
}

impl Wire {
    fn state(&self) -> RefMut<'_, State> {
        self.0.borrow_mut()
    }

    /// Waits for as many bytes as tell the protocol, at most those of the preface. They stay to be read.
    ///
    /// # Errors
    /// When the peer ends before that, or the socket fails.
    pub fn poll_protocol(&self, context: &mut Context<'_>) -> Poll<io::Result<Protocol>> {
        let state = &mut *self.state();
        loop {
            let begin = state.input.as_deref().unwrap_or_default();
            if let Some(protocol) = protocol(begin) {
                let bytes = begin.len();
                state.is_http1 = protocol == Protocol::Http1;
                state.count_received(bytes);
                return Poll::Ready(Ok(protocol));
            }
            let received = ready!(state.socket.poll_receive(context))?;
            if received.is_empty() {
                return Poll::Ready(Err(io::ErrorKind::UnexpectedEof.into()));
            }
            state.input = Some(match state.input.take() {
                None => Input::Pooled(received),
                Some(before) => Input::Own(Unread::new(&[&before[..], &received[..]].concat(), &state.counters)),
            });
        }
    }

    /// Throws away what comes until the peer has ended; ready then, or when a good deal of it has come and others should
    /// have their turn (`false`).
    pub fn poll_discard(&self, context: &mut Context<'_>) -> Poll<bool> {
        let state = &mut *self.state();
        state.input = None;
        for _ in 0..RECEIVES_PER_DISCARD {
            match ready!(state.poll_received(context)) {
                Ok(received) if !received.is_empty() => {}
                Ok(_) | Err(_) => return Poll::Ready(true),
            }
        }
        Poll::Ready(false)
    }

    /// Before each poll of h2: it may read the next few frames. True when it was stopped by their number before.
    pub fn allow_frames(&self) -> bool {
        let mut state = self.state();
        state.frames_left = FRAMES_PER_POLL;
        std::mem::take(&mut state.is_cut_short)
    }

    /// h2 was stopped by the number of frames and has more to read.
    pub fn is_cut_short(&self) -> bool {
        self.state().is_cut_short
    }

    /// Output waits for a peer that reads slowly; what is not yet given to h2 had better stay where it is.
    pub fn is_congested(&self) -> bool {
        let state = self.state();
        state.socket.is_sending() && state.output.len() >= OUTPUT_BYTES_BEHIND_MAX
    }

    /// Completes the send in flight, so that there is room for more. Call it before h2 writes.
    pub fn send_completed(&self, context: &mut Context<'_>) {
        let state = &mut *self.state();
        if let Poll::Ready(Ok(Some(buffer))) = state.poll_completed(context) {
            spare(buffer);
        }
    }

    pub fn is_sending(&self) -> bool {
        self.state().socket.is_sending()
    }

    /// How many sends have ended since the connection began.
    pub fn sends_ended(&self) -> u64 {
        self.state().sends_ended
    }

    /// Sends what was gathered, unless a send is in flight: its end begins the next turn.
    pub fn send(&self, context: &mut Context<'_>) {
        // An error shows in the next write of h2's.
        let _ = self.state().poll_send(context);
    }

    /// A turn of the connection, which has so many calls, begins: h2 may run from here on, and what is known of its buffers
    /// holds no more. Unless it `may_end`, the end of the connection is kept from h2: it goes through all calls then.
    pub fn begin_turn(&self, calls: usize, may_end: bool) {
        let state = &mut *self.state();
        state.may_end = may_end;
        (state.calls, state.calls_up_to) = (calls, state.meter.last_stream);
        state.buffers.forget();
        state.is_pad_due = false;
    }

    /// The end of the connection is here and kept from h2 in this turn.
    pub fn withholds_end(&self) -> bool {
        let state = self.state();
        state.end.is_some() && !state.may_end
    }

    /// In a turn, before h2 is polled: if the peer has still sent nothing, h2 is to end its read buffer and take a new one.
    pub fn renew_read_buffer(&self) {
        self.state().is_pad_due = true;
    }

    /// At the end of a turn: gives the pages of h2's buffers back, if nothing is half read or half written. `true` when some
    /// were given.
    pub fn give_buffers_back(&self) -> bool {
        let state = self.state();
        state.is_at_rest() && state.buffers.give_back()
    }

    /// In place of giving them back, at each turn's end.
    #[cfg(test)]
    pub fn poison_buffers(&self) {
        let state = self.state();
        if state.is_at_rest() {
            state.buffers.poison();
        }
    }

    /// At the end of a turn: what h2 has left unread moves out of the shard's receive buffer. h2 stops reading while it
    /// cannot write what it owes (an answer to a ping, say), for as long as the peer reads nothing; 256 such peers would
    /// hold all buffers of the shard, and nobody else would be heard.
    pub fn leave_receive_buffer(&self) {
        let state = &mut *self.state();
        if let Some(Input::Pooled(received)) = &state.input {
            let unread = Unread::new(&received[state.input_taken..], &state.counters);
            state.input = Some(Input::Own(unread));
            state.input_taken = 0;
        }
    }

    /// Bytes that have come and gone since the connection began: whether anything has happened since somebody last asked.
    pub fn traffic(&self) -> u64 {
        let state = self.state();
        state.bytes_in + state.bytes_out
    }

    /// Bytes received since the connection began: tells a peer that is alive from one that is gone.
    pub fn bytes_in(&self) -> u64 {
        self.state().bytes_in
    }

    /// Ends both directions, and is ready once nothing is in flight. h2's half must be dropped by then.
    pub fn poll_close(&self, context: &mut Context<'_>) -> Poll<()> {
        let mut state = self.state();
        ready!(state.socket.poll_close(context));
        state.input = None;
        let unsent = std::mem::take(&mut state.sending_bytes) + state.output.len();
        state.counters.output_bytes.subtract(unsent as u64);
        spare(std::mem::take(&mut state.output));
        Poll::Ready(())
    }
}

impl State {
    /// h2 holds no part of a frame, neither of the peer's nor of its own.
    fn is_at_rest(&self) -> bool {
        self.meter.is_at_boundary() && self.input.is_none()
    }

    /// Ready when all that was gathered has left.
    fn poll_send(&mut self, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        loop {
            if let Some(kind) = self.failed {
                return Poll::Ready(Err(kind.into()));
            }
            if let Some(buffer) = ready!(self.poll_completed(context))? {
                spare(buffer);
            }
            if self.output.is_empty() {
                return Poll::Ready(Ok(()));
            }
            let output = std::mem::take(&mut self.output);
            self.sending_bytes = output.len();
            let bytes_out = if self.is_http1 { &self.counters.http1_bytes_out } else { &self.counters.bytes_out };
            bytes_out.add(output.len() as u64);
            self.counters.sends.add(1);
            self.socket.send(output);
        }
    }

    /// Remembers an error for h2's next write.
    fn poll_completed(&mut self, context: &mut Context<'_>) -> Poll<io::Result<Option<Vec<u8>>>> {
        let sent = ready!(self.socket.poll_sent(context));
        self.counters.output_bytes.subtract(std::mem::take(&mut self.sending_bytes) as u64);
        match &sent {
            Ok(buffer) => self.sends_ended += u64::from(buffer.is_some()),
            Err(error) => self.failed = Some(error.kind()),
        }
        Poll::Ready(sent)
    }

    /// How many bytes may be gathered now. Zero waits for the send in flight.
    fn poll_room(&mut self, context: &mut Context<'_>) -> Poll<io::Result<usize>> {
        if let Some(kind) = self.failed {
            return Poll::Ready(Err(kind.into()));
        }
        if self.output.len() >= OUTPUT_BYTES_MAX && !self.socket.is_sending() {
            let _ = self.poll_send(context);
        }
        let bound = if self.socket.is_sending() { OUTPUT_BYTES_BEHIND_MAX } else { OUTPUT_BYTES_MAX };
        if self.output.len() < bound {
            return Poll::Ready(Ok(bound - self.output.len()));
        }
        // The connection polls the send in flight in each turn, and polls h2 behind it.
        Poll::Pending
    }

    fn gather(&mut self, slice: &[u8], room: usize) -> usize {
        if self.output.capacity() == 0 {
            self.output = SPARES.with_borrow_mut(Vec::pop).unwrap_or_default();
        }
        let taken = slice.len().min(room);
        self.output.extend_from_slice(&slice[..taken]);
        self.counters.output_bytes.add(taken as u64);
        self.bytes_out += taken as u64;
        taken
    }
}

thread_local! {
    static SPARES: RefCell<Vec<Vec<u8>>> = const { RefCell::new(Vec::new()) };
}

fn spare(mut buffer: Vec<u8>) {
    buffer.clear();
    if (1..=SPARE_BYTES_MAX).contains(&buffer.capacity()) {
        SPARES.with_borrow_mut(|spares| {
            if spares.len() < SPARES_MAX {
                spares.push(buffer);
            }
        });
    }
}

/// What the shard keeps for the next sends, whoever they go to.
#[cfg(test)]
pub fn spare_bytes() -> usize {
    SPARES.with_borrow(|spares| spares.iter().map(Vec::capacity).sum())
}

impl Drop for Plain {
    /// h2 is gone, and its buffers with it.
    fn drop(&mut self) {
        self.0.borrow_mut().buffers.forget();
    }
}

impl AsyncRead for Plain {
    fn poll_read(self: Pin<&mut Self>, context: &mut Context<'_>, into: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let state = &mut *self.0.borrow_mut();
        let has_preface = state.meter.has_preface();
        let read = state.poll_read(context, into);
        // The preface is read into memory that is not the buffer's.
        if has_preface && read.is_pending() {
            state.buffers.read_waits(into);
        } else {
            state.buffers.read_goes_on();
        }
        read
    }
}

impl Plain {
    /// For HTTP/1.1, which has no frames to count: hands over at most `bytes_max` bytes; none at the end of the stream.
    pub fn poll_read_http1(
        &self,
        context: &mut Context<'_>,
        bytes_max: usize,
        take: impl FnOnce(&[u8]),
    ) -> Poll<io::Result<()>> {
        let state = &mut *self.0.borrow_mut();
        state.is_http1 = true;
        if state.input.is_none() {
            let received = ready!(state.poll_received(context))?;
            if received.is_empty() {
                return Poll::Ready(Ok(()));
            }
            state.input = Some(Input::Pooled(received));
        }
        let Some(input) = &state.input else { unreachable!("it was filled above") };
        let bytes = &input[state.input_taken..];
        let taken = bytes.len().min(bytes_max);
        take(&bytes[..taken]);
        state.input_taken += taken;
        if state.input_taken == input.len() {
            state.input = None;
        }
        Poll::Ready(Ok(()))
    }

    /// Ready when everything has left and the peer has been told that nothing follows. It may still send.
    pub fn poll_end_sending(&self, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        let state = &mut *self.0.borrow_mut();
        ready!(state.poll_send(context))?;
        Poll::Ready(state.socket.end_sending())
    }
}

impl State {
    /// The next bytes of the socket, counted; the caller keeps them, and begins to read them at their start.
    fn poll_received(&mut self, context: &mut Context<'_>) -> Poll<io::Result<Received>> {
        let received = ready!(self.socket.poll_receive(context))?;
        self.count_received(received.len());
        self.input_taken = 0;
        Poll::Ready(Ok(received))
    }

    fn count_received(&mut self, bytes: usize) {
        self.bytes_in += bytes as u64;
        let bytes_in = if self.is_http1 { &self.counters.http1_bytes_in } else { &self.counters.bytes_in };
        bytes_in.add(bytes as u64);
    }

    /// The peer hears why it has to go, and h2 that there is no more to read. It then sends all that was gathered.
    fn tell_to_go(&mut self) {
        self.is_told_to_go = true;
        self.counters.connections_pinging.add(1);
        // Amid a frame nothing can be said.
        if !self.is_amid_output {
            let frame = pings::goaway(self.meter.last_stream);
            self.gather(&frame, frame.len());
        }
    }

    fn poll_end(&mut self) -> Poll<io::Result<()>> {
        let may_end = self.may_end;
        self.end.take_if(|_| may_end).map_or(Poll::Pending, Poll::Ready)
    }

    fn poll_read(&mut self, context: &mut Context<'_>, into: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let state = self;
        if state.is_told_to_go {
            return Poll::Ready(Ok(()));
        }
        if state.frames_left == 0 {
            // Not woken for it: the connection sees the mark and polls again once it has served these.
            state.is_cut_short = true;
            return Poll::Pending;
        }
        if state.end.is_some() {
            return state.poll_end();
        }
        if state.input.is_none() {
            let Poll::Ready(received) = state.poll_received(context) else {
                let pads = std::mem::take(&mut state.is_pad_due) && state.meter.is_at_boundary();
                return if pads && idle::pad(into) { Poll::Ready(Ok(())) } else { Poll::Pending };
            };
            match received {
                Ok(received) if !received.is_empty() => state.input = Some(Input::Pooled(received)),
                end => {
                    state.end = Some(end.map(drop));
                    return state.poll_end();
                }
            }
        }
        let Some(input) = &state.input else { unreachable!("it was filled above") };
        let bytes = &input[state.input_taken..];
        let bytes = &bytes[..bytes.len().min(into.remaining())];
        let passed = state.meter.pass(bytes, &mut state.frames_left, &state.counters);
        for _ in 0..std::mem::take(&mut state.meter.pings) {
            let has_call = state.calls > 0 || state.meter.last_stream != state.calls_up_to;
            if state.pings.is_one_too_many(state.ping_rule, has_call, state.bytes_out) {
                state.input = None;
                state.tell_to_go();
                return Poll::Ready(Ok(()));
            }
        }
        into.put_slice(&bytes[..passed]);
        state.input_taken += passed;
        if state.input_taken == input.len() {
            state.input = None;
        }
        Poll::Ready(Ok(()))
    }
}

impl AsyncWrite for Plain {
    fn poll_write(self: Pin<&mut Self>, context: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        self.poll_write_vectored(context, &[io::IoSlice::new(bytes)])
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
        slices: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let state = &mut *self.0.borrow_mut();
        state.buffers.write_begins();
        let room = ready!(state.poll_room(context))?;
        let mut taken = 0;
        for slice in slices {
            taken += state.gather(slice, room - taken);
        }
        state.is_amid_output = taken < slices.iter().map(|slice| slice.len()).sum();
        state.buffers.wrote(slices, taken);
        Poll::Ready(Ok(taken))
    }

    /// h2 then leaves payloads of more than 256 bytes where they are instead of copying them twice.
    fn is_write_vectored(&self) -> bool {
        true
    }

    fn poll_flush(self: Pin<&mut Self>, _context: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.0.borrow_mut().buffers.flushed();
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.0.borrow_mut().poll_send(context)
    }
}

/// Follows the frames of a peer by their nine-byte headers (RFC 9113, section 4.1), whatever h2 makes of them.
#[derive(Default)]
struct Meter {
    header: [u8; 9],
    header_bytes: u8,
    preface_bytes: u8,
    payload_left: u32,
    is_amid_headers: bool,
    /// Pings that were passed and not looked at yet.
    pings: u32,
    /// The last stream that the peer has begun.
    last_stream: u32,
}

const PREFACE_BYTES: u8 = PREFACE.len() as u8;
const HEADERS: u8 = 1;
const PUSH_PROMISE: u8 = 5;
const PING: u8 = 6;
const CONTINUATION: u8 = 9;
const END_HEADERS: u8 = 4;
/// Of a ping: it is the answer to one.
const ACK: u8 = 1;

impl Meter {
    /// Passes bytes until `frames_left` frames have ended, and says how many bytes that were.
    fn pass(&mut self, bytes: &[u8], frames_left: &mut u32, counters: &Counters) -> usize {
        let mut at = 0;
        while at < bytes.len() && *frames_left > 0 {
            let rest = bytes.len() - at;
            if self.preface_bytes < PREFACE_BYTES {
                let taken = rest.min(usize::from(PREFACE_BYTES - self.preface_bytes));
                self.preface_bytes += taken as u8;
                at += taken;
            } else if self.payload_left > 0 {
                let taken = rest.min(self.payload_left as usize);
                self.payload_left -= taken as u32;
                at += taken;
                *frames_left -= u32::from(self.payload_left == 0);
            } else {
                let have = usize::from(self.header_bytes);
                let taken = rest.min(self.header.len() - have);
                self.header[have..have + taken].copy_from_slice(&bytes[at..at + taken]);
                self.header_bytes += taken as u8;
                at += taken;
                if usize::from(self.header_bytes) == self.header.len() {
                    self.header_bytes = 0;
                    self.payload_left = u32::from_be_bytes([0, self.header[0], self.header[1], self.header[2]]);
                    counters.frame(self.header[3]);
                    self.note_headers(self.header[3], self.header[4]);
                    self.pings += u32::from(self.header[3] == PING && self.header[4] & ACK == 0);
                    *frames_left -= u32::from(self.payload_left == 0);
                }
            }
        }
        at
    }

    /// A block of headers may come in several frames, with no other between them (RFC 9113, section 4.3).
    fn note_headers(&mut self, kind: u8, flags: u8) {
        if matches!(kind, HEADERS | PUSH_PROMISE | CONTINUATION) {
            self.is_amid_headers = flags & END_HEADERS == 0;
        }
        if kind == HEADERS {
            let [.., a, b, c, d] = self.header;
            self.last_stream = self.last_stream.max(u32::from_be_bytes([a & 0x7f, b, c, d]));
        }
    }

    fn has_preface(&self) -> bool {
        self.preface_bytes == PREFACE_BYTES
    }

    /// Nothing is half read here: h2's read buffer holds no part of a frame, and any frame may follow.
    fn is_at_boundary(&self) -> bool {
        self.has_preface() && self.header_bytes == 0 && self.payload_left == 0 && !self.is_amid_headers
    }
}

#[cfg(test)]
mod tests;
