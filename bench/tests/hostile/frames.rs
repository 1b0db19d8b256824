//! Peers that do not speak HTTP/2, or not for long.

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::time::Duration;

use prost::Message;
use rustix::process::{Pid, Signal, kill_process};
use tarsier_proto::etcdserverpb as pb;

use crate::client::{Client, SOON, WATCH, WIDE, create, on_key};
use crate::random::Random;
use crate::scene::among_bystanders;
use crate::server::{self, Server};

const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";
const DATA: u8 = 0;
const HEADERS: u8 = 1;
const RST_STREAM: u8 = 3;
const SETTINGS: u8 = 4;
const GOAWAY: u8 = 7;
const WINDOW_UPDATE: u8 = 8;
const CONTINUATION: u8 = 9;
const END_STREAM: u8 = 1;

fn frame(kind: u8, flags: u8, stream: u32, payload: &[u8]) -> Vec<u8> {
    let mut frame = (payload.len() as u32).to_be_bytes()[1..].to_vec();
    frame.extend([kind, flags]);
    frame.extend(stream.to_be_bytes());
    frame.extend(payload);
    frame
}

/// The header block of a call, in literals without indexing (RFC 7541, section 6.2.2).
fn head(path: &str) -> Vec<u8> {
    let mut block = vec![0x83, 0x86, 0x04, path.len() as u8];
    block.extend(path.as_bytes());
    for (name, value) in [("content-type", "application/grpc"), ("te", "trailers")] {
        block.extend([0, name.len() as u8]);
        block.extend(name.as_bytes());
        block.push(value.len() as u8);
        block.extend(value.as_bytes());
    }
    block
}

fn connect(address: SocketAddr) -> TcpStream {
    let socket = TcpStream::connect(address).expect("the server listens");
    socket.set_read_timeout(Some(SOON)).expect("the socket is open");
    socket.set_write_timeout(Some(SOON)).expect("the socket is open");
    socket
}

fn greet(address: SocketAddr) -> TcpStream {
    let mut socket = connect(address);
    socket.write_all(&[PREFACE, &frame(SETTINGS, 0, 0, &[])].concat()).expect("the server reads");
    socket
}

/// What is written after the server has cut the connection is lost, which is as it should be.
fn say(socket: &mut TcpStream, bytes: &[u8]) {
    let _ = socket.write_all(bytes);
}

#[test]
fn peers_that_do_not_speak_http2_are_cut_and_those_that_vanish_leave_nothing() {
    among_bystanders(async |server| {
        let address = server.address();
        let mut random = Random::new(1);
        for round in 0..40 {
            let noise: Vec<u8> = (0..random.below(3_000)).map(|_| random.next() as u8).collect();
            let garbled = [&PREFACE[..9 + round % 10], b"?", PREFACE].concat();
            let openings: [&[u8]; 5] = [
                b"GET /health HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n",
                b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03 a ClientHello of TLS 1.3 and then its random bytes.....",
                &garbled,
                &noise,
                &PREFACE[..round % 24],
            ];
            for opening in openings {
                let mut socket = connect(address);
                say(&mut socket, opening);
                if opening.len() > PREFACE.len() {
                    // The server ends it; a reset is an end too.
                    let _ = socket.read_to_end(&mut Vec::new());
                }
            }
        }
        for _ in 0..1_000 {
            drop(connect(address));
        }
    });
}

#[test]
fn random_frames_behind_a_valid_preface_end_their_own_connection_at_most() {
    among_bystanders(async |server| {
        let address = server.address();
        for seed in 0..300 {
            let mut random = Random::new(seed);
            let mut socket = greet(address);
            let watch = create(on_key("x"));
            for _ in 0..1 + random.below(60) {
                let stream = random.below(9) as u32;
                let bytes = match random.below(10) {
                    0 => frame(HEADERS, 4, stream | 1, &head(WATCH)),
                    1 => frame(HEADERS, 5, stream | 1, &head("/etcdserverpb.KV/Put")),
                    2 => frame(DATA, 0, stream | 1, &watch),
                    3 => vec![0xff, 0xff, 0xff, random.below(10) as u8, 0, 0, 0, 0, 1, 7, 7, 7],
                    _ => {
                        let payload: Vec<u8> = (0..random.below(80)).map(|_| random.next() as u8).collect();
                        frame(random.below(12) as u8, random.next() as u8, stream, &payload)
                    }
                };
                say(&mut socket, &bytes);
            }
        }
    });
}

#[test]
fn frames_on_closed_streams_and_half_header_blocks_disturb_nobody() {
    among_bystanders(async |server| {
        let address = server.address();
        let mut silent = Vec::new();
        for round in 0..50_u32 {
            let mut socket = greet(address);
            say(&mut socket, &frame(HEADERS, 4, 1, &head(WATCH)));
            say(&mut socket, &frame(DATA, 0, 1, &create(on_key("x"))));
            match round % 5 {
                // Data, a reset and headers again on a stream that was reset.
                0 => {
                    say(&mut socket, &frame(RST_STREAM, 0, 1, &8_u32.to_be_bytes()));
                    say(&mut socket, &frame(DATA, 0, 1, &create(on_key("x"))));
                    say(&mut socket, &frame(RST_STREAM, 0, 1, &8_u32.to_be_bytes()));
                    say(&mut socket, &frame(HEADERS, 4, 1, &head(WATCH)));
                }
                // Data behind the half-close.
                1 => {
                    say(&mut socket, &frame(DATA, 1, 1, &[]));
                    say(&mut socket, &frame(DATA, 0, 1, &create(on_key("x"))));
                }
                // A stream that was never opened, and one with an even number.
                2 => say(&mut socket, &[frame(DATA, 0, 9, b"x"), frame(HEADERS, 4, 2, &head(WATCH))].concat()),
                // Half a header block, and another stream's frame in the middle of one (RFC 9113, section 6.10).
                3 => say(&mut socket, &[frame(HEADERS, 0, 3, &head(WATCH)[..9]), frame(DATA, 0, 1, b"x")].concat()),
                _ => {
                    say(&mut socket, &frame(HEADERS, 0, 3, &head(WATCH)[..9]));
                    for _ in 0..200 {
                        say(&mut socket, &frame(CONTINUATION, 0, 3, &[]));
                    }
                }
            }
            if round % 2 == 0 {
                silent.push(socket);
            }
        }
        tokio::time::sleep(Duration::from_millis(200)).await;
    });
}

#[test]
fn resets_that_follow_their_calls_at_once_leave_nothing() {
    among_bystanders(async |server| {
        let address = server.address();
        let put = crate::client::put("x", &[7; 2_000]);
        for round in 0..10_u32 {
            let mut socket = greet(address);
            for stream in (1..400).step_by(2) {
                let path = if round % 2 == 0 { WATCH } else { "/etcdserverpb.KV/Put" };
                say(&mut socket, &frame(HEADERS, 4, stream, &head(path)));
                say(&mut socket, &frame(DATA, u8::from(round % 2 == 1), stream, &put));
                say(&mut socket, &frame(RST_STREAM, 0, stream, &8_u32.to_be_bytes()));
            }
        }
    });
}

/// The next frame: type, flags and stream. `None` at the end of the connection.
fn next_frame(socket: &mut TcpStream) -> Option<(u8, u8, u32)> {
    next_payload(socket).map(|(kind, flags, stream, _)| (kind, flags, stream))
}

fn next_payload(socket: &mut TcpStream) -> Option<(u8, u8, u32, Vec<u8>)> {
    let mut header = [0; 9];
    socket.read_exact(&mut header).ok()?;
    let mut payload = vec![0; u32::from_be_bytes([0, header[0], header[1], header[2]]) as usize];
    socket.read_exact(&mut payload).ok()?;
    Some((header[3], header[4], u32::from_be_bytes([header[5], header[6], header[7], header[8]]), payload))
}

#[test]
fn a_window_that_is_opened_byte_by_byte_gets_the_answer_byte_by_byte() {
    const INITIAL_WINDOW_SIZE: u8 = 4;
    among_bystanders(async |server| {
        let mut socket = connect(server.address());
        socket.set_nodelay(true).expect("the socket is open");
        let closed = frame(SETTINGS, 0, 0, &[0, INITIAL_WINDOW_SIZE, 0, 0, 0, 0]);
        let call = [frame(HEADERS, 4, 1, &head(WATCH)), frame(DATA, 0, 1, &create(on_key("x")))].concat();
        say(&mut socket, &[PREFACE, &closed, &call].concat());
        let mut answer = Vec::new();
        let writer = Client::connect(server.address(), WIDE).await;
        let value = [7; 500];
        // The answer to the create is far shorter, so the event is told while the window is opened.
        while answer.len() < 500 {
            if answer.len() == 10 {
                writer.put("x", &value).await;
            }
            say(&mut socket, &frame(WINDOW_UPDATE, 0, 1, &1_u32.to_be_bytes()));
            let payload = loop {
                match next_payload(&mut socket).expect("the connection lives") {
                    (DATA, _, 1, payload) => break payload,
                    (kind, ..) => assert!([SETTINGS, HEADERS, WINDOW_UPDATE].contains(&kind), "a frame of kind {kind}"),
                }
            };
            assert_eq!(payload.len(), 1, "no byte more than the window allows");
            answer.extend(payload);
        }
        let length = u32::from_be_bytes([answer[1], answer[2], answer[3], answer[4]]) as usize;
        let created = pb::WatchResponse::decode(&answer[5..5 + length]).expect("a whole response");
        assert!(created.created && !created.canceled, "{created:?}");
        assert!(answer[5 + length..].windows(400).any(|bytes| bytes == &value[..400]), "the event follows");
    });
}

#[test]
fn a_watch_that_crosses_the_goodbye_of_the_server_is_told_so() {
    let server = Server::start(&server::binary_under_test());
    let mut socket = greet(server.address());
    assert_eq!(next_frame(&mut socket).map(|frame| frame.0), Some(SETTINGS));
    let process = Pid::from_raw(server.process() as i32).expect("a process has a number");
    kill_process(process, Signal::TERM).expect("the server runs");
    while next_frame(&mut socket).expect("the server says goodbye first").0 != GOAWAY {}
    // The ping behind the first GOAWAY is not answered yet, so calls may still come (RFC 9113, section 6.8).
    say(&mut socket, &frame(HEADERS, 4, 1, &head(WATCH)));
    let mut frames = std::iter::from_fn(|| next_frame(&mut socket));
    assert!(frames.any(|(kind, flags, stream)| kind == HEADERS && flags & END_STREAM != 0 && stream == 1));
}
