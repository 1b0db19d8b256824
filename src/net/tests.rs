//! A server on a real ring, spoken to over real sockets by h2's client.

mod idle;
mod paused;
mod peers;
mod retained;
mod stuck;

use std::cell::RefCell;
use std::collections::VecDeque;
use std::net::SocketAddr;
use std::rc::Rc;
use std::sync::atomic::{AtomicI64, AtomicU64, Ordering};
use std::sync::{Arc, mpsc};
use std::time::{Duration, Instant};

use bytes::{Bytes, BytesMut};
use h2::client::SendRequest;
use h2::{RecvStream, SendStream};
use http::{HeaderMap, Request, Response};
use slab::Slab;

use super::listener::Listener;
use super::plain;
use super::ring::{self, Doorbell, Ring};
use super::{CallHead, CallId, CallKind, Door, Handler, IdleBuffers, Intake, NetConfig, Opened, Output, Ready, Server};
use crate::grpc::frame;
use crate::grpc::status::{Code, Status};
use crate::heap;

/// A handler of some calls: one answers a request with itself, one answers each, one answers without end, one hears nothing
/// behind its first request until another call says so.
struct Echo {
    ready: Ready,
    calls: Rc<RefCell<Slab<Call>>>,
    report: mpsc::Sender<Report>,
}

struct Call {
    id: CallId,
    path: String,
    queue: VecDeque<Bytes>,
    /// The next messages, as far as a look ahead has shown them.
    foreseen: VecDeque<Vec<u8>>,
    is_half_closed: bool,
    is_paused: bool,
}

#[derive(Debug, PartialEq, Eq)]
enum Report {
    Closed(String),
    Output(usize),
}

fn framed(message: &[u8]) -> Bytes {
    [&frame::prefix(message.len()).unwrap()[..], message].concat().into()
}

impl Handler for Echo {
    fn open(&self, call: CallId, head: &CallHead<'_>) -> Result<Opened, Status> {
        let kind = match head.path {
            "/test/Unary" | "/test/Never" | "/test/Numbers" | "/test/Late" | "/test/Resume" => CallKind::OneRequest,
            "/test/Echo" | "/test/Endless" | "/test/Pause" | "/test/Hold" | "/test/Refuse" => CallKind::RequestStream,
            _ => return Err(Status::new(Code::Unimplemented, "unknown service test")),
        };
        if head.path == "/test/Late" {
            let ready = self.ready.clone();
            ring::spawn(async move {
                tokio::time::sleep(Duration::from_millis(20)).await;
                ready.ready(call);
            });
        }
        let new = Call {
            id: call,
            path: head.path.to_owned(),
            queue: VecDeque::new(),
            foreseen: VecDeque::new(),
            is_half_closed: false,
            is_paused: head.path == "/test/Hold",
        };
        Ok(Opened { kind, method: 0, handle: self.calls.borrow_mut().insert(new) as u32 })
    }

    fn message(&self, call: CallId, handle: u32, message: Bytes) -> Intake {
        let mut calls = self.calls.borrow_mut();
        let row = &mut calls[handle as usize];
        if let Some(foreseen) = row.foreseen.pop_front() {
            assert_eq!(message, foreseen);
        }
        row.queue.push_back(framed(&message));
        match row.path.as_str() {
            "/test/Refuse" => return Intake::Pause,
            "/test/Hold" if row.is_paused => return Intake::Pause,
            "/test/Resume" => {
                for (_, held) in calls.iter_mut().filter(|(_, call)| call.path == "/test/Hold") {
                    held.is_paused = false;
                    self.ready.ready(held.id);
                }
                return Intake::Continue;
            }
            "/test/Pause" => {}
            _ => return Intake::Continue,
        }
        // A message for each announcement.
        assert!(!row.is_paused);
        row.is_paused = true;
        let (ready, calls) = (self.ready.clone(), self.calls.clone());
        ring::spawn(async move {
            tokio::time::sleep(Duration::from_millis(1)).await;
            calls.borrow_mut()[handle as usize].is_paused = false;
            ready.ready(call);
        });
        Intake::Pause
    }

    fn foresee(&self, handle: u32, chunk: &[u8]) -> usize {
        let row = &mut self.calls.borrow_mut()[handle as usize];
        row.foreseen = frame::whole_messages(chunk).take(3).map(<[u8]>::to_vec).collect();
        row.foreseen.len()
    }

    fn can_take_requests(&self, _call: CallId, handle: u32) -> bool {
        !self.calls.borrow()[handle as usize].is_paused
    }

    fn end_of_requests(&self, _call: CallId, handle: u32) {
        self.calls.borrow_mut()[handle as usize].is_half_closed = true;
    }

    fn output(&self, _call: CallId, handle: u32, bytes_max: usize) -> Output {
        let mut calls = self.calls.borrow_mut();
        let call = &mut calls[handle as usize];
        let output = match call.path.as_str() {
            "/test/Never" => Output::Nothing,
            "/test/Refuse" if call.queue.is_empty() => Output::Nothing,
            "/test/Refuse" => Output::End(Status::new(Code::InvalidArgument, "no")),
            "/test/Endless" => {
                self.report.send(Report::Output(bytes_max)).unwrap();
                Output::Bytes(vec![7; bytes_max.min(1_000)].into())
            }
            "/test/Unary" | "/test/Late" | "/test/Resume" => match call.queue.pop_front() {
                Some(mut first) if first.len() > bytes_max => {
                    let piece = first.split_to(bytes_max);
                    call.queue.push_front(first);
                    Output::Bytes(piece)
                }
                Some(last) => Output::Last(last),
                None => Output::Nothing,
            },
            _ => {
                let mut out = BytesMut::new();
                while out.len() < bytes_max
                    && let Some(mut piece) = call.queue.pop_front()
                {
                    let room = bytes_max - out.len();
                    if piece.len() > room {
                        call.queue.push_front(piece.split_off(room));
                    }
                    out.extend_from_slice(&piece);
                }
                match out.is_empty() {
                    false => Output::Bytes(out.freeze()),
                    true if call.is_half_closed => Output::End(Status::ok()),
                    true => Output::Nothing,
                }
            }
        };
        if matches!(output, Output::End(_) | Output::Last(_)) {
            calls.remove(handle as usize);
        }
        output
    }

    fn closed(&self, _call: CallId, handle: u32) {
        let call = self.calls.borrow_mut().remove(handle as usize);
        self.report.send(Report::Closed(call.path)).unwrap();
    }
}

/// A server on a thread of its own; `stop` drains it and hands back what it counted.
struct Running {
    address: SocketAddr,
    stop: Doorbell,
    thread: std::thread::JoinHandle<End>,
    reports: mpsc::Receiver<Report>,
    /// Connections whose buffers are given back, as counted a moment ago.
    idle: Arc<AtomicU64>,
    /// Bytes that the server's thread holds, as counted by the allocator a moment ago.
    held: Arc<AtomicI64>,
}

struct End {
    calls: usize,
    streams: u64,
    connections: u64,
    slots: u64,
    partial: u64,
    idle: u64,
    resets: u64,
    /// How often each thing was allocated that the heap keeps in one place for each connection.
    parts: [u32; heap::PARTS.len()],
}

fn start(adjust: impl FnOnce(&mut NetConfig) + Send + 'static) -> Running {
    let stop = Doorbell::new().unwrap();
    let bell = stop.clone();
    let (report, reports) = mpsc::channel();
    let (tell, told) = mpsc::channel();
    let idle = Arc::new(AtomicU64::new(0));
    let held = Arc::new(AtomicI64::new(0));
    let seen = (idle.clone(), held.clone());
    let thread = std::thread::spawn(move || {
        Ring::new().unwrap().run(async move {
            let ready = Ready::new(3);
            let echo = Rc::new(Echo { ready: ready.clone(), calls: Rc::default(), report });
            let mut config = NetConfig::new(Instant::now);
            // Every test runs with h2's buffers overwritten whenever they hold nothing, and taken away again and again.
            config.idle_buffers = IdleBuffers::Poison;
            config.idle_after = Duration::from_millis(1);
            adjust(&mut config);
            let server = Server::new(echo.clone(), ready, config);
            let listener = Listener::bind("127.0.0.1:0".parse().unwrap()).unwrap();
            tell.send(listener.address()).unwrap();
            server.listen(listener, Door::Clients);
            let counters = server.counters().clone();
            ring::spawn(async move {
                loop {
                    seen.0.store(counters.idle_connections.get(), Ordering::Relaxed);
                    // How large the buffers of sends become is a matter of how much happens to leave together.
                    let held = crate::shard::costs::held() as i64 - plain::spare_bytes() as i64;
                    seen.1.store(held, Ordering::Relaxed);
                    tokio::time::sleep(Duration::from_millis(1)).await;
                }
            });
            bell.wait().await;
            server
                .drain(Status::new(Code::Unavailable, "etcdserver: server stopped"), Duration::from_millis(500))
                .await;
            let counters = server.counters();
            End {
                calls: echo.calls.borrow().len(),
                streams: counters.streams_open.get(),
                connections: counters.connections_open.get(),
                slots: counters.stream_slots.get(),
                partial: counters.partial_bytes.get(),
                idle: counters.idle_connections.get(),
                resets: counters.calls_reset.get(),
                parts: crate::shard::costs::parts_taken(),
            }
        })
    });
    Running { address: told.recv().unwrap(), stop, thread, reports, idle, held }
}

impl Running {
    /// Ends the server, which must have nothing left.
    fn end(self) -> End {
        self.stop.ring();
        let end = self.thread.join().unwrap();
        assert_eq!((end.calls, end.streams, end.connections), (0, 0, 0));
        assert_eq!((end.slots, end.partial, end.idle), (0, 0, 0));
        end
    }

    fn report(&self) -> Report {
        self.reports.recv_timeout(Duration::from_secs(10)).unwrap()
    }
}

fn run<F: Future>(future: F) -> F::Output {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    runtime.block_on(async { tokio::time::timeout(Duration::from_secs(30), future).await.unwrap() })
}

async fn connect(address: SocketAddr) -> SendRequest<Bytes> {
    connect_with(address, &h2::client::Builder::new()).await
}

async fn connect_with(address: SocketAddr, builder: &h2::client::Builder) -> SendRequest<Bytes> {
    let socket = tokio::net::TcpStream::connect(address).await.unwrap();
    let (client, connection) = builder.handshake(socket).await.unwrap();
    tokio::spawn(async move {
        // How it ends is what the calls tell.
        let _ = connection.await;
    });
    client.ready().await.unwrap()
}

fn request(path: &str, fields: &[(&str, &str)]) -> Request<()> {
    let mut request = Request::builder().method("POST").uri(format!("http://test{path}"));
    if !fields.iter().any(|(name, _)| *name == "content-type") {
        request = request.header("content-type", "application/grpc");
    }
    for (name, value) in fields {
        request = request.header(*name, *value);
    }
    request.body(()).unwrap()
}

struct Answer {
    head: Response<()>,
    body: Vec<u8>,
    trailers: HeaderMap,
}

impl Answer {
    /// Code and message, from the trailers or, in a response of nothing else, from the headers.
    fn status(&self) -> (String, String) {
        let text = |name: &str| {
            let value = self.trailers.get(name).or(self.head.headers().get(name));
            value.map_or("", |value| value.to_str().unwrap()).to_owned()
        };
        (text("grpc-status"), text("grpc-message"))
    }
}

async fn read_all(response: Response<RecvStream>) -> Result<Answer, h2::Error> {
    let (head, mut recv) = response.into_parts();
    let mut body = Vec::new();
    while let Some(data) = recv.data().await {
        let data = data?;
        recv.flow_control().release_capacity(data.len()).unwrap();
        body.extend_from_slice(&data);
    }
    let trailers = recv.trailers().await?.unwrap_or_default();
    Ok(Answer { head: Response::from_parts(head, ()), body, trailers })
}

async fn call(client: &mut SendRequest<Bytes>, request: Request<()>, body: impl Into<Bytes>) -> Answer {
    let (response, mut send) = client.send_request(request, false).unwrap();
    send_all(&mut send, body.into(), true).await;
    read_all(response.await.unwrap()).await.unwrap()
}

async fn send_all(send: &mut SendStream<Bytes>, mut bytes: Bytes, is_last: bool) {
    while !bytes.is_empty() {
        send.reserve_capacity(bytes.len());
        let Some(room) = std::future::poll_fn(|context| send.poll_capacity(context)).await else { return };
        // A server that has refused the call already has reset the rest of its body.
        let Ok(room) = room else { return };
        let taken = room.min(bytes.len());
        send.send_data(bytes.split_to(taken), false).unwrap();
    }
    if is_last {
        let _ = send.send_data(Bytes::new(), true);
    }
}

#[test]
fn a_unary_call_is_answered_with_headers_message_and_trailers() {
    let server = start(|_| {});
    run(async {
        let client = &mut connect(server.address).await;
        for path in ["/test/Unary", "/test/Late"] {
            for length in [0, 1, 5_000, 300_000] {
                let body = framed(&vec![9; length]);
                let answer = call(client, request(path, &[]), body.clone()).await;
                assert_eq!(answer.head.status(), 200);
                assert_eq!(answer.head.headers()["content-type"], "application/grpc");
                assert_eq!(answer.head.headers()["grpc-accept-encoding"], "identity");
                assert!(answer.body == body, "{path} {length}");
                assert_eq!(answer.status(), ("0".into(), String::new()));
            }
        }
    });
    assert_eq!(server.end().resets, 0);
}

#[test]
fn five_thousand_messages_in_one_write_come_back_in_order() {
    let server = start(|_| {});
    run(async {
        let client = &mut connect(server.address).await;
        let body: Bytes = (0..5_000_u32).flat_map(|number| framed(&number.to_be_bytes())).collect();
        let answer = call(client, request("/test/Echo", &[]), body.clone()).await;
        assert!(answer.body == body);
        assert_eq!(answer.status().0, "0");
    });
    server.end();
}

#[test]
fn headers_of_a_request_stream_come_before_any_message() {
    let server = start(|_| {});
    run(async {
        let client = &mut connect(server.address).await;
        let (response, mut send) = client.send_request(request("/test/Echo", &[]), false).unwrap();
        let mut recv = response.await.unwrap().into_body();
        for number in 0..50_u8 {
            send.send_data(framed(&[number]), false).unwrap();
            assert_eq!(recv.data().await.unwrap().unwrap(), framed(&[number]));
        }
        send.send_data(Bytes::new(), true).unwrap();
        assert!(recv.data().await.is_none());
        assert_eq!(recv.trailers().await.unwrap().unwrap()["grpc-status"], "0");
    });
    server.end();
}

#[test]
fn requests_that_are_no_calls_are_told_so() {
    let server = start(|_| {});
    run(async {
        let client = &mut connect(server.address).await;
        let message = || framed(b"x");
        let answer = call(client, request("/test/Unary", &[("content-type", "text/plain")]), message()).await;
        assert_eq!(answer.head.status(), 415);
        let answer = call(client, request("/test/Missing", &[]), message()).await;
        assert_eq!((answer.head.status().as_u16(), answer.status().0.as_str()), (200, "12"));
        let answer = call(client, request("/test/Unary", &[("grpc-encoding", "gzip")]), message()).await;
        assert_eq!(answer.status().0, "12");
        let answer = call(client, request("/test/Unary", &[("grpc-timeout", "1x")]), message()).await;
        assert_eq!((answer.head.status().as_u16(), answer.status().0.as_str()), (400, "13"));
        let answer = call(client, request("/test/Unary", &[]), vec![1, 0, 0, 0, 1, 7]).await;
        assert_eq!(answer.status().0, "13");
        let answer = call(client, request("/test/Unary", &[]), vec![0, 0xff, 0xff, 0xff, 0xff]).await;
        let text = "grpc: received message larger than max (4294967295 vs. 2097152)";
        assert_eq!(answer.status(), ("8".into(), text.into()));
        for (body, text) in [(0, "EOF"), (3, "EOF"), (5, "unexpected EOF")] {
            let answer = call(client, request("/test/Unary", &[]), message().slice(..body)).await;
            assert_eq!(answer.status(), ("2".into(), text.into()), "{body} bytes");
        }
        let answer = call(client, request("/test/Echo", &[]), message().slice(..5)).await;
        assert_eq!(answer.status(), ("13".into(), "unexpected EOF".into()));
        // The first message counts, and nobody reads what follows.
        let answer = call(client, request("/test/Unary", &[]), [message(), framed(b"yy")].concat()).await;
        assert_eq!((answer.status().0.as_str(), &answer.body[..]), ("0", &message()[..]));
        let answer = call(client, request("/test/Unary", &[]), message()).await;
        assert_eq!(answer.status().0, "0");
    });
    server.end();
}

#[test]
fn a_call_ends_at_its_deadline_and_the_handler_hears_of_it() {
    let server = start(|_| {});
    run(async {
        let client = &mut connect(server.address).await;
        let begun = Instant::now();
        let answer = call(client, request("/test/Never", &[("grpc-timeout", "50m")]), framed(b"")).await;
        assert_eq!(answer.status(), ("4".into(), "context deadline exceeded".into()));
        assert!(begun.elapsed() >= Duration::from_millis(50));
    });
    assert_eq!(server.report(), Report::Closed("/test/Never".into()));
    server.end();
}

#[test]
fn a_reset_and_a_peer_that_vanishes_free_everything() {
    let server = start(|_| {});
    run(async {
        let client = &mut connect(server.address).await;
        let (_response, mut send) = client.send_request(request("/test/Echo", &[]), false).unwrap();
        send.send_data(framed(b"x"), false).unwrap();
        tokio::time::sleep(Duration::from_millis(50)).await;
        send.send_reset(h2::Reason::CANCEL);
        tokio::time::sleep(Duration::from_millis(50)).await;
        // Half-closed, the reset shows in another way.
        let (_response, mut send) = client.send_request(request("/test/Never", &[]), false).unwrap();
        send.send_data(framed(b"x"), true).unwrap();
        tokio::time::sleep(Duration::from_millis(50)).await;
        send.send_reset(h2::Reason::CANCEL);
        tokio::time::sleep(Duration::from_millis(50)).await;
        let mut held = Vec::new();
        for _ in 0..100 {
            let (response, send) = client.send_request(request("/test/Echo", &[]), false).unwrap();
            held.push((response.await.unwrap(), send));
        }
    });
    for _ in 0..102 {
        assert!(matches!(server.report(), Report::Closed(_)));
    }
    assert_eq!(server.end().resets, 102);
}

#[test]
fn a_paused_call_is_read_again_when_it_is_announced() {
    let server = start(|_| {});
    run(async {
        let client = &mut connect(server.address).await;
        let body: Bytes = (0..100_u8).flat_map(|number| framed(&[number; 2_000])).collect();
        let answer = call(client, request("/test/Pause", &[]), body.clone()).await;
        assert!(answer.body == body);
        assert_eq!(answer.status().0, "0");
    });
    server.end();
}
