//! Clients beyond the limits that an operator has set, and streams that take nothing.

use std::fs;
use std::io::{Read, Write};
use std::net::TcpStream;
use std::os::unix::fs::PermissionsExt;
use std::time::{Duration, Instant};

use crate::client::{Client, SOON, WATCH, WIDE, cancel, create, on_key};
use crate::server::{self, Server};

fn with(settings: &[&str], attack: impl AsyncFnOnce(&Server)) {
    let server = Server::start_with(&server::binary_under_test(), settings);
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build();
    runtime.expect("a runtime starts").block_on(attack(&server));
}

/// A client that begins as it should, and everything that it is sent up to the end of its first frame.
fn connect(server: &Server) -> (TcpStream, Vec<u8>) {
    let mut socket = TcpStream::connect(server.address()).expect("the server listens");
    socket.set_read_timeout(Some(SOON)).expect("the socket is open");
    // One that is turned away may be gone by now.
    let _ = socket.write_all(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\x04\0\0\0\0\0");
    let mut said = vec![0; 9];
    socket.read_exact(&mut said).expect("a frame comes first");
    let mut payload = vec![0; usize::from(said[2])];
    socket.read_exact(&mut payload).expect("the frame is whole");
    said.extend(payload);
    (socket, said)
}

/// It was sent SETTINGS.
fn is_served(said: &[u8]) -> bool {
    said[3] == 4
}

/// A GOAWAY with ENHANCE_YOUR_CALM and nothing in front of it.
fn check_goodbye(said: &[u8], text: &str) {
    assert_eq!(said[3], 7, "{said:?}");
    assert_eq!(said[9..17], [0, 0, 0, 0, 0, 0, 0, 0xb], "{said:?}");
    assert_eq!(String::from_utf8_lossy(&said[17..]), text);
}

/// The answer to a ping.
fn check_alive(socket: &mut TcpStream) {
    socket.write_all(&[0, 0, 8, 6, 0, 0, 0, 0, 0, 1, 2, 3, 4, 5, 6, 7, 8]).expect("the connection lives");
    let (mut said, mut byte) = (Vec::new(), [0]);
    while !said.ends_with(&[1, 2, 3, 4, 5, 6, 7, 8]) {
        socket.read_exact(&mut byte).expect("the connection lives");
        said.extend(byte);
    }
}

fn connections_are_limited(setting: &str, text: &str) {
    with(&[setting], async |server| {
        let deadline = Instant::now() + SOON;
        let mut held = Vec::new();
        while held.len() < 3 {
            // The connection that found the server ready still counts for a moment.
            let (socket, said) = connect(server);
            if is_served(&said) {
                held.push(socket);
            }
            assert!(Instant::now() < deadline, "there is room for three");
        }
        for _ in 0..50 {
            check_goodbye(&connect(server).1, text);
        }
        held.iter_mut().for_each(check_alive);
        held.pop();
        while !is_served(&connect(server).1) {
            assert!(Instant::now() < deadline, "a connection that ends makes room");
        }
    });
}

#[test]
fn a_connection_beyond_the_limit_is_told_to_go_and_the_others_are_served() {
    connections_are_limited("--max-connections=3", "tarsier: too many connections");
}

#[test]
fn an_address_beyond_its_limit_is_told_to_go() {
    connections_are_limited("--max-connections-per-address=3", "tarsier: too many connections from this address");
}

#[test]
fn a_watch_beyond_the_limit_of_its_stream_is_created_and_canceled_and_the_stream_goes_on() {
    with(&["--max-watches-per-stream=2"], async |server| {
        let client = Client::connect(server.address(), WIDE).await;
        for _ in 0..2 {
            let mut watch = client.start(WATCH, create(on_key("x")), false).await.expect("a watch begins");
            assert!(watch.next().await.created);
            watch.send(create(on_key("y")));
            assert!(!watch.next().await.canceled);
            for _ in 0..100 {
                watch.send(create(on_key("z")));
                let refused = watch.next().await;
                assert!(refused.created && refused.canceled && refused.watch_id == -1, "{refused:?}");
                assert_eq!(refused.cancel_reason, "tarsier: too many watches on this stream");
            }
            let revision = client.put("x", b"").await;
            assert_eq!(watch.next().await.events[0].kv.as_ref().map(|kv| kv.mod_revision), Some(revision));
            watch.send(cancel(0));
            assert!(watch.next().await.canceled);
            watch.send(create(on_key("z")));
            let created = watch.next().await;
            assert!(created.created && !created.canceled, "{created:?}");
        }
    });
}

#[test]
fn the_watches_of_a_connection_are_limited_over_all_its_streams() {
    with(&["--max-watches-per-connection=2"], async |server| {
        let client = Client::connect(server.address(), WIDE).await;
        let mut first = client.start(WATCH, create(on_key("x")), false).await.expect("a watch begins");
        assert!(!first.next().await.canceled);
        let mut second = client.start(WATCH, create(on_key("x")), false).await.expect("a watch begins");
        assert!(!second.next().await.canceled);
        for watch in [&mut first, &mut second] {
            watch.send(create(on_key("z")));
            let refused = watch.next().await;
            assert!(refused.created && refused.canceled && refused.watch_id == -1, "{refused:?}");
            assert_eq!(refused.cancel_reason, "tarsier: too many watches on this connection");
        }
        let other = Client::connect(server.address(), WIDE).await;
        let mut elsewhere = other.start(WATCH, create(on_key("x")), false).await.expect("a watch begins");
        assert!(!elsewhere.next().await.canceled, "another connection has watches of its own");
        second.reset();
        let deadline = Instant::now() + SOON;
        loop {
            first.send(create(on_key("z")));
            if !first.next().await.canceled {
                break;
            }
            assert!(Instant::now() < deadline, "a stream that ends makes room");
        }
    });
}

#[test]
fn a_watch_stream_that_takes_no_event_is_ended_as_unavailable_and_its_neighbour_goes_on() {
    with(&["--stalled-stream-timeout=1s"], async |server| {
        let client = Client::connect(server.address(), 4_096).await;
        let mut hung = client.start(WATCH, create(on_key("x")), false).await.expect("a watch begins");
        let mut reads = client.start(WATCH, create(on_key("x")), false).await.expect("a watch begins");
        assert!(hung.next().await.created && reads.next().await.created);
        let begun = Instant::now();
        while begun.elapsed() < Duration::from_secs(3) {
            let revision = client.put("x", &[7; 1_000]).await;
            assert_eq!(reads.next().await.events[0].kv.as_ref().map(|kv| kv.mod_revision), Some(revision));
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        assert_eq!(hung.status().await.expect("it ends by a status"), 14);
    });
}

/// Connections that say nothing take a descriptor each. The log needs some for its next files, and no client may take those.
#[test]
fn clients_that_take_all_descriptors_take_none_of_the_logs() {
    let script = std::env::temp_dir().join(format!("tarsier-few-descriptors-{}.sh", std::process::id()));
    let binary = server::binary_under_test();
    let text = format!("#!/bin/sh\nulimit -n 128\nexec '{}' \"$@\"\n", binary.display());
    fs::write(&script, text).expect("the temporary directory is writable");
    fs::set_permissions(&script, fs::Permissions::from_mode(0o755)).expect("the file is ours");
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build();
    runtime.expect("a runtime starts").block_on(async {
        let server = Server::start_with(&script, &[]);
        let client = Client::connect(server.address(), WIDE).await;
        let silent: Vec<TcpStream> =
            (0..200).map(|_| TcpStream::connect(server.address()).expect("the server listens")).collect();
        let (_, said) = connect(&server);
        check_goodbye(&said, "tarsier: too many connections");
        // More than the log has ready in any number of segments.
        for number in 0..80 {
            client.put(&format!("large/{}", number % 3), &vec![7; 1_400_000]).await;
        }
        drop(silent);
        let deadline = Instant::now() + SOON;
        while !is_served(&connect(&server).1) {
            assert!(Instant::now() < deadline, "there are descriptors again");
        }
    });
    fs::remove_file(&script).expect("it was written above");
}
