//! A server on a real ring, spoken to over real sockets by h2's client.

use std::cell::RefCell;
use std::collections::VecDeque;
use std::net::SocketAddr;
use std::rc::Rc;
use std::sync::mpsc;
use std::time::{Duration, Instant};

use bytes::{Bytes, BytesMut};
use h2::client::SendRequest;
use h2::{RecvStream, SendStream};
use http::{HeaderMap, Request, Response};
use slab::Slab;

use super::listener::Listener;
use super::ring::{self, Doorbell, Ring};
use super::{CallHead, CallId, CallKind, Handler, Intake, NetConfig, Opened, Output, Ready, Server};
use crate::grpc::frame;
use crate::grpc::status::{Code, Status};

/// A handler of three calls: one answers a request with itself, one answers each, one answers without end.
struct Echo {
    ready: Ready,
    calls: Rc<RefCell<Slab<Call>>>,
    report: mpsc::Sender<Report>,
}

struct Call {
    path: String,
    queue: VecDeque<Bytes>,
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
            "/test/Unary" | "/test/Never" | "/test/Numbers" | "/test/Late" => CallKind::OneRequest,
            "/test/Echo" | "/test/Endless" | "/test/Pause" => CallKind::RequestStream,
            _ => return Err(Status::new(Code::Unimplemented, "unknown service test")),
        };
        if head.path == "/test/Late" {
            let ready = self.ready.clone();
            ring::spawn(async move {
                tokio::time::sleep(Duration::from_millis(20)).await;
                ready.ready(call);
            });
        }
        let new = Call { path: head.path.to_owned(), queue: VecDeque::new(), is_half_closed: false, is_paused: false };
        Ok(Opened { kind, handle: self.calls.borrow_mut().insert(new) as u32 })
    }

    fn message(&self, call: CallId, handle: u32, message: Bytes) -> Intake {
        let mut calls = self.calls.borrow_mut();
        let row = &mut calls[handle as usize];
        row.queue.push_back(framed(&message));
        if row.path != "/test/Pause" {
            return Intake::Continue;
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

    fn end_of_requests(&self, _call: CallId, handle: u32) {
        self.calls.borrow_mut()[handle as usize].is_half_closed = true;
    }

    fn output(&self, _call: CallId, handle: u32, bytes_max: usize) -> Output {
        let mut calls = self.calls.borrow_mut();
        let call = &mut calls[handle as usize];
        let output = match call.path.as_str() {
            "/test/Never" => Output::Nothing,
            "/test/Endless" => {
                self.report.send(Report::Output(bytes_max)).unwrap();
                Output::Bytes(vec![7; bytes_max.min(1_000)].into())
            }
            "/test/Unary" | "/test/Late" => match call.queue.pop_front() {
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
}

struct End {
    calls: usize,
    streams: u64,
    connections: u64,
    slots: u64,
    resets: u64,
}

fn start(adjust: impl FnOnce(&mut NetConfig) + Send + 'static) -> Running {
    let stop = Doorbell::new().unwrap();
    let bell = stop.clone();
    let (report, reports) = mpsc::channel();
    let (tell, told) = mpsc::channel();
    let thread = std::thread::spawn(move || {
        Ring::new().unwrap().run(async move {
            let ready = Ready::new(3);
            let echo = Rc::new(Echo { ready: ready.clone(), calls: Rc::default(), report });
            let mut config = NetConfig::new(Instant::now);
            adjust(&mut config);
            let server = Server::new(echo.clone(), ready, config);
            let listener = Listener::bind("127.0.0.1:0".parse().unwrap()).unwrap();
            tell.send(listener.address()).unwrap();
            server.listen(listener);
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
                resets: counters.calls_reset.get(),
            }
        })
    });
    Running { address: told.recv().unwrap(), stop, thread, reports }
}

impl Running {
    /// Ends the server, which must have nothing left.
    fn end(self) -> End {
        self.stop.ring();
        let end = self.thread.join().unwrap();
        assert_eq!((end.calls, end.streams, end.connections, end.slots), (0, 0, 0, 0));
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
        let answer = call(client, request("/test/Unary", &[]), [message(), message()].concat()).await;
        assert_eq!(answer.status().0, "13");
        let answer = call(client, request("/test/Unary", &[]), vec![]).await;
        assert_eq!(answer.status().0, "13");
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

#[test]
fn a_peer_that_reads_nothing_is_asked_for_no_output_beyond_its_window() {
    let server = start(|_| {});
    run(async {
        let mut closed = h2::client::Builder::new();
        closed.initial_window_size(0);
        let client = &mut connect_with(server.address, &closed).await;
        let mut held = Vec::new();
        for _ in 0..100 {
            let (response, send) = client.send_request(request("/test/Endless", &[]), false).unwrap();
            held.push((response.await.unwrap(), send));
            held.last_mut().unwrap().1.send_data(framed(b"go"), false).unwrap();
        }
        tokio::time::sleep(Duration::from_millis(100)).await;
        assert!(server.reports.try_recv().is_err(), "a closed window asks for nothing");
    });
    let mut closed = 0;
    while let Ok(report) = server.reports.recv_timeout(Duration::from_millis(300)) {
        assert_eq!(report, Report::Closed("/test/Endless".into()));
        closed += 1;
    }
    assert_eq!(closed, 100);
    server.end();
}

#[test]
fn a_slow_reader_gets_what_it_reads_and_harms_no_one() {
    let server = start(|_| {});
    run(async {
        let client = &mut connect(server.address).await;
        let (response, mut send) = client.send_request(request("/test/Endless", &[]), false).unwrap();
        send.send_data(framed(b"go"), false).unwrap();
        let mut recv = response.await.unwrap().into_body();
        tokio::time::sleep(Duration::from_millis(100)).await;
        let mut other = connect(server.address).await;
        let answer = call(&mut other, request("/test/Unary", &[]), framed(b"x")).await;
        assert_eq!(answer.status().0, "0");
        let mut taken = 0;
        while taken < 1_000_000 {
            let data = recv.data().await.unwrap().unwrap();
            taken += data.len();
            recv.flow_control().release_capacity(data.len()).unwrap();
        }
        let asked: usize = server
            .reports
            .try_iter()
            .map(|report| match report {
                Report::Output(bytes_max) => bytes_max.min(1_000),
                Report::Closed(_) => 0,
            })
            .sum();
        // The window of a stream is 65,535 bytes, and h2 holds at most another 32 KiB for it.
        assert!((taken..=taken + 65_535 + 48 * 1_024).contains(&asked), "{asked} for {taken}");
    });
    server.end();
}

/// Sockets of this process towards one port.
fn descriptors(port: u16) -> usize {
    let needle = format!(":{port:04X}");
    let table = std::fs::read_to_string("/proc/net/tcp").unwrap();
    let inodes: Vec<&str> = table
        .lines()
        .filter(|line| line.split_whitespace().nth(1).is_some_and(|local| local.ends_with(&needle)))
        .filter_map(|line| line.split_whitespace().nth(9))
        .collect();
    let links =
        std::fs::read_dir("/proc/self/fd").unwrap().filter_map(|entry| std::fs::read_link(entry.ok()?.path()).ok());
    links.filter(|link| inodes.iter().any(|inode| link.to_string_lossy() == format!("socket:[{inode}]"))).count()
}

#[test]
fn garbage_and_vanishing_peers_leave_no_descriptor_and_disturb_no_one() {
    use std::io::{Read, Write};
    let server = start(|_| {});
    let settings = [&b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"[..], &[0, 0, 0, 4, 0, 0, 0, 0, 0]].concat();
    let garbage: [&[u8]; 7] = [
        b"",
        b"P",
        b"GET / HTTP/1.1\r\nhost: x\r\n\r\n",
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03",
        &[&settings[..], &[0xff, 0xff, 0xff, 0, 0, 0, 0, 0, 1]].concat(),
        &[&settings[..], &[0, 0, 4, 8, 0, 0, 0, 0, 0, 0, 0, 0, 0]].concat(),
        &[&settings[..], &[0, 0, 9, 1, 4, 0, 0, 0, 1, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff]].concat(),
    ];
    run(async {
        let client = &mut connect(server.address).await;
        for round in 0..20 {
            for bytes in garbage {
                let mut socket = std::net::TcpStream::connect(server.address).unwrap();
                socket.write_all(bytes).unwrap();
                if round % 2 == 0 && bytes.len() > 2 {
                    // Cut by the server: it says goodbye and ends the connection.
                    let mut answer = Vec::new();
                    socket.set_read_timeout(Some(Duration::from_secs(10))).unwrap();
                    let _ = socket.read_to_end(&mut answer);
                }
            }
            let answer = call(client, request("/test/Unary", &[]), framed(b"x")).await;
            assert_eq!(answer.status().0, "0");
        }
        let deadline = Instant::now() + Duration::from_secs(10);
        // The listener and the one good connection.
        while descriptors(server.address.port()) > 2 {
            assert!(Instant::now() < deadline, "{} sockets left", descriptors(server.address.port()));
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    });
    server.end();
}

#[test]
fn a_peer_that_never_speaks_is_cut_at_the_handshake_timeout() {
    use std::io::Read;
    let server = start(|config| config.handshake_timeout = Duration::from_millis(50));
    let mut socket = std::net::TcpStream::connect(server.address).unwrap();
    socket.set_read_timeout(Some(Duration::from_secs(10))).unwrap();
    let mut said = Vec::new();
    // The server's settings, then the end.
    let _ = socket.read_to_end(&mut said);
    assert!(said.len() >= 9);
    server.end();
}

/// A peer that speaks raw frames and answers nothing on its own.
fn raw_peer(address: SocketAddr) -> std::net::TcpStream {
    use std::io::Write;
    let mut socket = std::net::TcpStream::connect(address).unwrap();
    socket.set_read_timeout(Some(Duration::from_secs(10))).unwrap();
    socket.write_all(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\x04\0\0\0\0\0").unwrap();
    socket
}

/// The next frame: type, flags and payload. `None` at the end.
fn next_frame(socket: &mut std::net::TcpStream) -> Option<(u8, u8, Vec<u8>)> {
    use std::io::Read;
    let mut header = [0; 9];
    socket.read_exact(&mut header).ok()?;
    let mut payload = vec![0; u32::from_be_bytes([0, header[0], header[1], header[2]]) as usize];
    socket.read_exact(&mut payload).ok()?;
    Some((header[3], header[4], payload))
}

const PING: u8 = 6;
const GO_AWAY: u8 = 7;

#[test]
fn a_silent_peer_is_pinged_and_cut_when_it_does_not_answer() {
    use std::io::Write;
    let server = start(|config| {
        config.keepalive_interval = Duration::from_millis(100);
        config.keepalive_timeout = Duration::from_millis(200);
    });
    let mut socket = raw_peer(server.address);
    let mut answered = 0;
    let begun = Instant::now();
    while let Some((kind, flags, payload)) = next_frame(&mut socket) {
        if kind == PING && flags & 1 == 0 && answered < 3 {
            answered += 1;
            socket.write_all(&[&[0, 0, 8, PING, 1, 0, 0, 0, 0][..], &payload].concat()).unwrap();
        }
    }
    assert_eq!(answered, 3);
    assert!(begun.elapsed() >= Duration::from_millis(500), "{:?}", begun.elapsed());
    server.end();
}

#[test]
fn a_drain_says_goodbye_ends_streams_with_its_status_and_lets_unary_calls_finish() {
    let server = start(|_| {});
    let stop = server.stop.clone();
    run(async {
        let client = &mut connect(server.address).await;
        let (watch, mut send) = client.send_request(request("/test/Echo", &[]), false).unwrap();
        let watch = watch.await.unwrap();
        send.send_data(framed(b"x"), false).unwrap();
        let (unary, mut send) = client.send_request(request("/test/Late", &[]), false).unwrap();
        send.send_data(framed(b"late"), true).unwrap();
        tokio::time::sleep(Duration::from_millis(5)).await;
        stop.ring();
        let watch = read_all(watch).await.unwrap();
        assert_eq!(watch.status(), ("14".into(), "etcdserver: server stopped".into()));
        let unary = read_all(unary.await.unwrap()).await.unwrap();
        assert_eq!((unary.status().0.as_str(), &unary.body[..]), ("0", &framed(b"late")[..]));
        assert!(std::future::poll_fn(|context| client.poll_ready(context)).await.is_err(), "no new calls");
    });
    server.end();
}

#[test]
fn a_drain_cuts_what_is_still_there_after_its_grace() {
    let server = start(|_| {});
    let stop = server.stop.clone();
    let mut stuck = raw_peer(server.address);
    run(async {
        let client = &mut connect(server.address).await;
        let (_never, mut send) = client.send_request(request("/test/Never", &[]), false).unwrap();
        send.send_data(framed(b"x"), true).unwrap();
        tokio::time::sleep(Duration::from_millis(50)).await;
        let begun = Instant::now();
        stop.ring();
        let goodbye = tokio::task::spawn_blocking(move || {
            let mut kinds = Vec::new();
            while let Some((kind, ..)) = next_frame(&mut stuck) {
                kinds.push(kind);
            }
            kinds
        });
        assert!(goodbye.await.unwrap().contains(&GO_AWAY));
        assert!(begun.elapsed() >= Duration::from_millis(400), "{:?}", begun.elapsed());
    });
    assert_eq!(server.report(), Report::Closed("/test/Never".into()));
    server.end();
}

#[test]
fn a_connection_has_no_more_streams_than_it_may() {
    let server = start(|config| config.concurrent_streams_max = 4);
    run(async {
        let client = &mut connect(server.address).await;
        tokio::time::sleep(Duration::from_millis(50)).await;
        let mut held = Vec::new();
        for _ in 0..4 {
            let (response, send) = client.send_request(request("/test/Echo", &[]), false).unwrap();
            held.push((response.await.unwrap(), send));
        }
        // h2's client keeps the limit: it holds the fifth back until one of the four is gone.
        let (response, mut send) = client.send_request(request("/test/Unary", &[]), false).unwrap();
        send.send_data(framed(b"x"), true).unwrap();
        let mut response = std::pin::pin!(response);
        assert!(tokio::time::timeout(Duration::from_millis(50), response.as_mut()).await.is_err());
        held.pop();
        assert_eq!(read_all(response.await.unwrap()).await.unwrap().status().0, "0");
    });
    server.end();
}

#[test]
fn many_calls_at_once_on_many_connections_are_all_answered() {
    let server = start(|_| {});
    run(async {
        let mut tasks = Vec::new();
        for _ in 0..20 {
            let mut client = connect(server.address).await;
            tasks.push(tokio::spawn(async move {
                for round in 0..20 {
                    let calls: Vec<_> = (0..30_u8)
                        .map(|number| {
                            let mut client = client.clone();
                            let path = if number % 2 == 0 { "/test/Unary" } else { "/test/Late" };
                            let body = framed(&vec![number; usize::from(number) * 100 + round]);
                            tokio::spawn(async move {
                                client = client.ready().await.unwrap();
                                let answer =
                                    call(&mut client, request(path, &[("grpc-timeout", "20S")]), body.clone()).await;
                                assert!(answer.body == body && answer.status().0 == "0");
                            })
                        })
                        .collect();
                    for call in calls {
                        call.await.unwrap();
                    }
                }
                client = client.ready().await.unwrap();
                drop(client);
            }));
        }
        for task in tasks {
            task.await.unwrap();
        }
    });
    assert_eq!(server.end().resets, 0);
}
