//! One h2 connection driven by one task, with any number of calls on it.
//!
//! A task for each call would cost half a kilobyte a stream. Here a call is a slot: its waker only notes the slot's number
//! in a list, and the connection's one task polls the slots that were noted and then the connection, until nothing is
//! ready. What the slots send in one turn therefore leaves in one write. This file knows HTTP/2 and gRPC statuses; what
//! the calls say is theirs.

use std::future::poll_fn;
use std::pin::Pin;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, Wake, Waker, ready};

use bytes::Bytes;
use h2::client::{Connection, ResponseFuture, SendRequest};
use h2::{RecvStream, SendStream};
use http::{HeaderMap, HeaderValue, Method, Request, Uri, header};
use tokio::net::TcpStream;

use crate::fault::{Fault, Result};
use crate::transport::{self, Silence, Transport};

/// Stands for the connection itself in the list of ready slots.
const CONNECTION: u32 = u32::MAX;
/// Rounds of one turn. The socket reports itself ready without end once the runtime's budget for this task is spent, so
/// a turn must end by itself.
const ROUNDS_MAX: u32 = 8;

/// The windows that a connection offers. A client that reads all it gets loses nothing by wide ones.
#[derive(Clone, Copy, Debug)]
pub struct Windows {
    pub stream_bytes: u32,
    pub connection_bytes: u32,
}

impl Windows {
    /// For events and small answers.
    pub const SMALL: Windows = Windows { stream_bytes: 256 << 10, connection_bytes: 4 << 20 };
    /// For answers of many megabytes.
    pub const WIDE: Windows = Windows { stream_bytes: 16 << 20, connection_bytes: 16 << 20 };
}

/// A connection that has shaken hands. Its two halves are driven by a [`Link`] or by a task.
pub struct Connected {
    pub requests: SendRequest<Bytes>,
    pub connection: Connection<Transport, Bytes>,
    pub silence: Silence,
}

/// Connects and shakes hands.
pub async fn connect(endpoint: &str, windows: Windows) -> Result<Connected> {
    if endpoint.contains('/') {
        return Err(Fault::Refused(format!("{endpoint} is not of the form HOST:PORT: leave http:// and paths out")));
    }
    let refused = |cause| Fault::Connect { endpoint: endpoint.to_owned(), cause };
    let socket = TcpStream::connect(endpoint).await.map_err(refused)?;
    socket.set_nodelay(true).map_err(refused)?;
    let (transport, silence) = transport::open(socket);
    let (requests, connection) = h2::client::Builder::new()
        .initial_window_size(windows.stream_bytes)
        .initial_connection_window_size(windows.connection_bytes)
        // Until the server's SETTINGS arrive, h2 would open 100 streams only.
        .initial_max_send_streams(1 << 20)
        .enable_push(false)
        .handshake(transport)
        .await
        .map_err(|cause| Fault::Http { endpoint: endpoint.to_owned(), cause })?;
    Ok(Connected { requests, connection, silence })
}

/// The head of a gRPC call. Cloned for each call, so that nothing is parsed again.
pub fn call_head(endpoint: &str, path: &'static str) -> Result<Request<()>> {
    let uri: Uri = format!("http://{endpoint}{path}")
        .parse()
        .map_err(|_| Fault::Refused(format!("{endpoint} is not of the form host:port")))?;
    let mut request = Request::new(());
    *request.method_mut() = Method::POST;
    *request.uri_mut() = uri;
    request.headers_mut().insert(header::TE, HeaderValue::from_static("trailers"));
    request.headers_mut().insert(header::CONTENT_TYPE, HeaderValue::from_static("application/grpc"));
    Ok(request)
}

/// The calls of one connection.
pub trait Calls {
    /// This slot was woken: do what can be done. Called once for each slot at the start.
    fn poll_slot(&mut self, turn: &mut Turn<'_>, slot: u32, cx: &mut Context<'_>) -> Result<()>;

    /// Whether the connection has done all it was made for.
    fn is_done(&self) -> bool;
}

/// What a slot may use while it is polled.
pub struct Turn<'a> {
    requests: &'a mut SendRequest<Bytes>,
    blocked: &'a mut Vec<u32>,
    slots: &'a [Arc<SlotWaker>],
}

impl Turn<'_> {
    /// Polls another slot soon.
    pub fn wake(&self, slot: u32) {
        self.slots[slot as usize].wake_by_ref();
    }

    /// Opens a stream, or `None` while the server allows no further one; the slot is then woken later.
    pub fn open(
        &mut self,
        slot: u32,
        head: &Request<()>,
        end_of_stream: bool,
        cx: &mut Context<'_>,
    ) -> std::result::Result<Option<(ResponseFuture, SendStream<Bytes>)>, h2::Error> {
        match self.requests.poll_ready(cx)? {
            Poll::Pending => {
                // h2 remembers the waker of the last to ask; the others are remembered here.
                self.blocked.push(slot);
                Ok(None)
            }
            Poll::Ready(()) => {
                for slot in std::mem::take(self.blocked) {
                    self.wake(slot);
                }
                self.requests.send_request(head.clone(), end_of_stream).map(Some)
            }
        }
    }
}

/// A connection with the slots of its calls.
pub struct Link {
    endpoint: Arc<str>,
    connection: Connection<Transport, Bytes>,
    pub silence: Silence,
    requests: SendRequest<Bytes>,
    ready: Arc<Ready>,
    connection_waker: Arc<SlotWaker>,
    slots: Vec<Arc<SlotWaker>>,
    blocked: Vec<u32>,
    /// The list being worked on, kept for its memory.
    round: Vec<u32>,
}

impl Link {
    pub async fn open(endpoint: &Arc<str>, windows: Windows, slots: u32) -> Result<Link> {
        let Connected { requests, connection, silence } = connect(endpoint, windows).await?;
        let ready = Arc::new(Ready::default());
        let slot_waker = |slot| Arc::new(SlotWaker { ready: ready.clone(), slot, is_queued: AtomicBool::new(false) });
        let connection_waker = slot_waker(CONNECTION);
        connection_waker.wake_by_ref();
        let slots: Vec<_> = (0..slots).map(slot_waker).collect();
        slots.iter().for_each(Wake::wake_by_ref);
        let endpoint = endpoint.clone();
        Ok(Link {
            endpoint,
            connection,
            silence,
            requests,
            ready: ready.clone(),
            connection_waker,
            slots,
            blocked: Vec::new(),
            round: Vec::new(),
        })
    }

    /// Drives the calls until they are done.
    pub async fn drive(&mut self, calls: &mut impl Calls) -> Result<()> {
        poll_fn(|cx| self.poll_turn(calls, cx)).await
    }

    fn poll_turn(&mut self, calls: &mut impl Calls, cx: &mut Context<'_>) -> Poll<Result<()>> {
        self.ready.begin_turn();
        for _ in 0..ROUNDS_MAX {
            self.ready.take(&mut self.round);
            if self.round.is_empty() {
                break;
            }
            if let Err(fault) = self.poll_round(calls) {
                return Poll::Ready(Err(fault));
            }
            if calls.is_done() {
                return Poll::Ready(Ok(()));
            }
        }
        if self.silence.has_begun(cx) {
            self.connection_waker.wake_by_ref();
        }
        self.ready.end_turn(cx.waker());
        Poll::Pending
    }

    /// Polls what is ready, the connection last, so that it writes what the slots gave it in one go.
    fn poll_round(&mut self, calls: &mut impl Calls) -> Result<()> {
        let mut connection_is_ready = false;
        for at in 0..self.round.len() {
            let slot = self.round[at];
            if slot == CONNECTION {
                connection_is_ready = true;
                continue;
            }
            let waker = &self.slots[slot as usize];
            waker.is_queued.store(false, Ordering::Relaxed);
            let waker = Waker::from(waker.clone());
            let mut turn = Turn { requests: &mut self.requests, blocked: &mut self.blocked, slots: &self.slots };
            calls.poll_slot(&mut turn, slot, &mut Context::from_waker(&waker))?;
        }
        if connection_is_ready {
            self.connection_waker.is_queued.store(false, Ordering::Relaxed);
            let waker = Waker::from(self.connection_waker.clone());
            let endpoint = || self.endpoint.to_string();
            let connection = Pin::new(&mut self.connection);
            return match self.silence.drive(|| connection.poll(&mut Context::from_waker(&waker))) {
                Poll::Pending => Ok(()),
                Poll::Ready(Ok(())) => Err(Fault::Closed { endpoint: endpoint() }),
                Poll::Ready(Err(cause)) => Err(Fault::Http { endpoint: endpoint(), cause }),
            };
        }
        Ok(())
    }
}

/// The slots that were woken, and the task that polls them.
#[derive(Default)]
struct Ready {
    state: Mutex<ReadyState>,
}

#[derive(Default)]
struct ReadyState {
    list: Vec<u32>,
    /// Set between turns, taken by the first wake.
    task: Option<Waker>,
}

impl Ready {
    fn lock(&self) -> MutexGuard<'_, ReadyState> {
        // No code that can panic runs under this lock, so a poisoned one still guards a whole list.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn begin_turn(&self) {
        self.lock().task = None;
    }

    /// Swaps the list with `round`, which keeps the memory of both in use. `round` was taken empty.
    fn take(&self, round: &mut Vec<u32>) {
        round.clear();
        std::mem::swap(&mut self.lock().list, round);
    }

    fn end_turn(&self, task: &Waker) {
        let mut state = self.lock();
        if state.list.is_empty() {
            state.task = Some(task.clone());
        } else {
            drop(state);
            task.wake_by_ref();
        }
    }
}

/// Notes its slot when woken; a slot stands in the list once.
struct SlotWaker {
    ready: Arc<Ready>,
    slot: u32,
    is_queued: AtomicBool,
}

impl Wake for SlotWaker {
    fn wake(self: Arc<Self>) {
        self.wake_by_ref();
    }

    fn wake_by_ref(self: &Arc<Self>) {
        if self.is_queued.swap(true, Ordering::Relaxed) {
            return;
        }
        let task = {
            let mut state = self.ready.lock();
            state.list.push(self.slot);
            state.task.take()
        };
        if let Some(task) = task {
            task.wake();
        }
    }
}

/// Where the answer of a call stands.
pub enum Answer {
    Head(ResponseFuture),
    Body(RecvStream),
}

/// A step in an answer.
pub enum Piece {
    Data(Bytes),
    /// The call ended with OK.
    End,
}

impl Answer {
    /// The next piece. Credit for its bytes is given back at once.
    pub fn poll_piece(&mut self, endpoint: &str, path: &'static str, cx: &mut Context<'_>) -> Poll<Result<Piece>> {
        let http = |cause| Fault::Http { endpoint: endpoint.to_owned(), cause };
        loop {
            match self {
                Answer::Head(head) => {
                    let response = ready!(Pin::new(head).poll(cx)).map_err(http)?;
                    if response.status() != http::StatusCode::OK {
                        let status = response.status();
                        return Poll::Ready(Err(Fault::NotGrpc { endpoint: endpoint.to_owned(), status }));
                    }
                    // An answer that is only a status has it in its one header block.
                    if response.headers().contains_key("grpc-status") {
                        grpc_status(path, Some(response.headers()))?;
                    }
                    *self = Answer::Body(response.into_body());
                }
                Answer::Body(body) => {
                    return Poll::Ready(match ready!(body.poll_data(cx)) {
                        Some(Ok(data)) => {
                            body.flow_control().release_capacity(data.len()).map_err(http)?;
                            Ok(Piece::Data(data))
                        }
                        Some(Err(cause)) => Err(http(cause)),
                        None => {
                            let trailers = ready!(body.poll_trailers(cx)).map_err(http)?;
                            grpc_status(path, trailers.as_ref()).map(|()| Piece::End)
                        }
                    });
                }
            }
        }
    }
}

fn grpc_status(path: &'static str, trailers: Option<&HeaderMap>) -> Result<()> {
    let text = |name| {
        let value = trailers.and_then(|trailers| trailers.get(name));
        value.map(|value| String::from_utf8_lossy(value.as_bytes()).into_owned()).unwrap_or_default()
    };
    match &text("grpc-status")[..] {
        "0" => Ok(()),
        "" if trailers.is_none() => Err(Fault::NoAnswer { path }),
        code => Err(Fault::Status { path, code: code.to_owned(), message: text("grpc-message") }),
    }
}
