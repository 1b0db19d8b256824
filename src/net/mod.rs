//! The kernel's edge: sockets, and the HTTP/2 connections on them.
//!
//! A connection hands whole calls to a [`Handler`] and knows no service; the handler knows no socket. All of it runs on
//! one thread, so nothing here is `Send` and nothing is locked.
//!
//! From the kernel up: [`ring`] (operations), [`listener`], `socket`, `plain` (frame meter, write gathering), `idle` (what
//! becomes of h2's buffers while a connection is silent), `http1` (hyper, for peers that speak no HTTP/2), `connection` (one task that drives h2 and all its streams), `stream` (a row for each call), `lane` (whose
//! turn it is among connections that take much time), `pace` (how much one takes), [`server`] (what the
//! connections of a shard share). A shard is put together so, inside of [`ring::Ring::run`]:
//!
//! ```ignore
//! let ready = Ready::new(shard);                                   // the handler announces calls with a clone of it
//! let server = Server::new(handler, ready, NetConfig::new(clock::now));
//! server.listen(Listener::bind(address)?, Door::Clients);          // serves from here on
//! server.drain(status, Duration::from_secs(5)).await;              // closes listeners, ends calls, ends connections
//! ```

mod connection;
mod costs;
pub mod counters;
mod http1;
mod idle;
mod lane;
pub mod limits;
pub mod listener;
mod pace;
mod patience;
mod pings;
mod plain;
mod ready;
pub mod ring;
pub mod server;
mod settings;
mod socket;
mod stream;
mod timers;

use std::future::{Future, ready};
use std::net::SocketAddr;
use std::pin::Pin;
use std::time::Duration;

use bytes::Bytes;
use http::request::Parts;
use http::{Response, StatusCode};

use crate::backend::Caller;
use crate::grpc::status::Status;

pub use idle::IdleBuffers;
pub use ready::Ready;
pub use server::{NetConfig, Server};

/// One call: the slot of its connection in this shard, and the slot of its stream in that connection. Slots are reused, so
/// an id that outlives its call may name another one: what it can do is wake it, which is harmless.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct CallId {
    pub connection: u32,
    pub stream: u32,
}

/// What a call opens with.
#[derive(Debug)]
pub struct CallHead<'a> {
    /// `/package.Service/Method`
    pub path: &'a str,
    pub caller: &'a Caller,
    /// The first value of the metadata key `hasleader` is `true`.
    pub requires_leader: bool,
    /// The metadata key `client-api-version`, when it is not valid UTF-8.
    pub client_api_version_is_garbled: bool,
    /// `grpc-timeout`; the connection keeps it and ends the call with DEADLINE_EXCEEDED.
    pub timeout: Option<Duration>,
    /// How many others its connection has open.
    pub calls: usize,
}

/// How the connection reads a call.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum CallKind {
    /// Exactly one request message (unary and server-streaming calls). The handler sees it, and the end of requests, when
    /// it is whole; like grpc-go, nobody reads what follows.
    OneRequest,
    /// The same, but the answer takes as long as the client waits for it: the end of the server ends the call too.
    LongAnswer,
    /// Any number of request messages, each handed over as it arrives; response headers leave at once.
    RequestStream,
}

/// What the handler makes of a call it accepts. `handle` is the handler's own index and comes back with each call of it.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Opened {
    pub kind: CallKind,
    pub handle: u32,
    /// The number by which it is counted, at most [`counters::METHODS_MAX`]. One beyond is not counted.
    pub method: u8,
}

/// Whether the handler can take more request messages of this call now.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Intake {
    Continue,
    /// Hand over no more until [`Ready`] names the call again and [`Handler::can_take_requests`] agrees. Flow control slows
    /// the peer.
    Pause,
}

/// What a call has to send.
#[derive(Debug)]
pub enum Output {
    /// Nothing now; [`Ready`] will name the call when that changes.
    Nothing,
    /// Bytes of length-prefixed messages, cut anywhere. Ask again for more.
    Bytes(Bytes),
    /// The call ends with these trailers.
    End(Status),
    /// These bytes are the last; the call ends with OK behind them.
    Last(Bytes),
}

/// Which listener a client came through.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Door {
    /// gRPC, and plain HTTP as well.
    Clients,
    /// `--listen-metrics-urls`: HTTP/1.1 alone.
    Pages,
}

/// The answer to a request of plain HTTP, once there is one.
pub type Page = Pin<Box<dyn Future<Output = Response<Bytes>>>>;

/// Who serves the calls of a shard's connections.
///
/// The connection asks and the handler answers at once; what takes longer is announced through [`Ready`]. A handler must
/// never call back into the connection from inside these methods.
pub trait Handler {
    /// Whether there is memory for one more connection.
    fn has_room(&self) -> bool {
        true
    }

    /// A call has begun. An error ends it with that status, and its handle is never used.
    fn open(&self, call: CallId, head: &CallHead<'_>) -> Result<Opened, Status>;

    /// One whole request message, without its five-byte prefix.
    fn message(&self, call: CallId, handle: u32, message: Bytes) -> Intake;

    /// Whole messages may lie at the start of this, and are about to be handed over one by one: a chance to look up together
    /// what they will need. Nobody has judged them, and a pause or the end of the call may come before any of them. Gives
    /// after how many it wants to be asked again.
    fn foresee(&self, _handle: u32, _chunk: &[u8]) -> usize {
        usize::MAX
    }

    /// Whether a call that was paused can take requests again; asked when [`Ready`] names it. The name alone does not say
    /// so: a call that is named for its output would take one more request each time, and a request that causes output
    /// would then let the next one in, whether the peer reads or not.
    fn can_take_requests(&self, call: CallId, handle: u32) -> bool;

    /// The client has half-closed; for [`CallKind::OneRequest`] this follows its message at once.
    fn end_of_requests(&self, call: CallId, handle: u32);

    /// What is there to send, at most `bytes_max` bytes of it, given that the peer's window has room.
    fn output(&self, call: CallId, handle: u32, bytes_max: usize) -> Output;

    /// The call is over without a word from the handler: reset, vanished, timed out. The handle is free from here on. Not
    /// called behind [`Output::End`] and [`Output::Last`]: there the handler knows.
    fn closed(&self, call: CallId, handle: u32);

    /// Answers a request of HTTP/1.1. Nobody reads its body.
    fn page(&self, _door: Door, _peer: SocketAddr, _request: Parts) -> Page {
        let mut nothing = Response::new(Bytes::new());
        *nothing.status_mut() = StatusCode::NOT_FOUND;
        Box::pin(ready(nothing))
    }
}

#[cfg(test)]
mod tests;
