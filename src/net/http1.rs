//! HTTP/1.1 on one connection: hyper over the plaintext layer, for health checks and metrics.
//!
//! hyper parses and frames, one request after the other; the handler answers each with a whole [`Page`](super::Page).
//! Nobody reads a request's body. hyper has no timers here, so [`Http1::look`] is called at equal times and ends peers
//! that send a request byte by byte, or none at all. What a peer sends beyond [`HEAD_BYTES_MAX`] without an end of its head
//! is answered 431 by hyper, and what is no HTTP 400.

use std::cell::Cell;
use std::convert::Infallible;
use std::future::Future;
use std::io;
use std::net::SocketAddr;
use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::Bytes;
use http::{Request, Response};
use http_body_util::Full;
use hyper::body::Incoming;
use hyper::rt::ReadBufCursor;
use hyper::server::conn::http1;
use tokio::io::AsyncWrite;

use super::Door;
use super::plain::{Plain, Wire};
use super::server::{NetConfig, Server};

/// Line and headers of a request, as for HTTP/2. etcd takes 1 MiB, and no client of these pages sends more than some lines.
const HEAD_BYTES_MAX: usize = 16 * 1_024;
const HEADERS_MAX: usize = 100;
/// A connection without a request for so long is ended. Prometheus itself gives up idle connections after five minutes.
const IDLE_MAX: Duration = Duration::from_secs(600);
/// How long a peer that still sends is heard behind the last answer.
pub const LINGER: Duration = Duration::from_secs(1);

/// The time from one [`Http1::look`] to the next: a head that takes longer than the handshake may is found at the second.
pub fn look_interval(config: &NetConfig) -> Duration {
    config.handshake_timeout / 2
}

pub struct Http1 {
    exchange: http1::Connection<Io, Service>,
    wire: Wire,
    exchanges: Rc<Exchanges>,
    seen: Seen,
}

/// What the service knows and the looks need.
#[derive(Default)]
struct Exchanges {
    begun: Cell<u64>,
    answered: Cell<u64>,
    /// Bytes of the peer when its last request began to be answered. More than these belong to the next one.
    bytes_in: Cell<u64>,
}

/// What the last look found, and for how many looks in a row nothing has changed.
#[derive(Default)]
struct Seen {
    begun: u64,
    unchanged: u32,
    has_begun_a_head: bool,
}

impl Http1 {
    pub fn new(server: Rc<Server>, plain: Plain, wire: Wire, door: Door, peer: SocketAddr) -> Http1 {
        let exchanges = Rc::<Exchanges>::default();
        let service = Service { server, wire: wire.clone(), door, peer, exchanges: exchanges.clone() };
        let exchange = http1::Builder::new()
            // A client may end its direction and still wait for the answer.
            .half_close(true)
            .max_headers(HEADERS_MAX)
            .max_buf_size(HEAD_BYTES_MAX)
            .serve_connection(Io(plain), service);
        Http1 { exchange, wire, exchanges, seen: Seen::default() }
    }

    /// Ready when the last answer has left.
    pub fn poll(&mut self, context: &mut Context<'_>) -> Poll<()> {
        // How it ended changes nothing: whoever sent what is no request has been told.
        Pin::new(&mut self.exchange).poll(context).map(drop)
    }

    /// The answer under way is the last.
    pub fn end(&mut self) {
        Pin::new(&mut self.exchange).graceful_shutdown();
    }

    /// Why the connection is to be cut, if it is. Called every [`look_interval`].
    pub fn look(&mut self, head_time_max: Duration) -> Option<&'static str> {
        let begun = self.exchanges.begun.get();
        if begun > self.exchanges.answered.get() {
            // Answers have their own times, and a peer that does not read them is found as any other.
            self.seen = Seen { begun, ..Seen::default() };
            return None;
        }
        // The first request is expected, as the next ones are once their first byte has come. Bytes that came together with
        // the request before are not seen; a peer that stops there costs no more than an idle one.
        let has_begun_a_head = begun == 0 || self.wire.bytes_in() > self.exchanges.bytes_in.get();
        let is_same = begun == self.seen.begun && has_begun_a_head == self.seen.has_begun_a_head;
        let unchanged = if is_same { self.seen.unchanged + 1 } else { 0 };
        self.seen = Seen { begun, unchanged, has_begun_a_head };
        if has_begun_a_head {
            return (unchanged >= 1).then_some("its request does not end");
        }
        let waited = head_time_max / 2 * unchanged;
        (waited >= IDLE_MAX).then_some("no further request in time")
    }
}

struct Service {
    server: Rc<Server>,
    wire: Wire,
    door: Door,
    peer: SocketAddr,
    exchanges: Rc<Exchanges>,
}

impl hyper::service::Service<Request<Incoming>> for Service {
    type Response = Response<Full<Bytes>>;
    type Error = Infallible;
    type Future = Pin<Box<dyn Future<Output = Result<Self::Response, Infallible>>>>;

    fn call(&self, request: Request<Incoming>) -> Self::Future {
        self.server.counters.pages.add(1);
        let exchanges = self.exchanges.clone();
        exchanges.begun.set(exchanges.begun.get() + 1);
        exchanges.bytes_in.set(self.wire.bytes_in());
        let page = self.server.handler.page(self.door, self.peer, request.into_parts().0);
        Box::pin(async move {
            let answer = page.await.map(Full::new);
            exchanges.answered.set(exchanges.begun.get());
            Ok(answer)
        })
    }
}

/// The plaintext layer as hyper reads and writes it.
struct Io(Plain);

impl hyper::rt::Read for Io {
    fn poll_read(self: Pin<&mut Self>, context: &mut Context<'_>, mut into: ReadBufCursor<'_>) -> Poll<io::Result<()>> {
        let room = into.remaining();
        self.0.poll_read_http1(context, room, |bytes| into.put_slice(bytes))
    }
}

impl hyper::rt::Write for Io {
    fn poll_write(mut self: Pin<&mut Self>, context: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.0).poll_write(context, bytes)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        slices: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.0).poll_write_vectored(context, slices)
    }

    fn is_write_vectored(&self) -> bool {
        self.0.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.0).poll_flush(context)
    }

    fn poll_shutdown(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.0.poll_end_sending(context)
    }
}
