//! Peers that are slow, silent, broken or gone, and the end of the server under them.

use std::net::SocketAddr;
use std::time::{Duration, Instant};

use super::*;

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
        b"GET / HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n",
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
fn peers_with_many_calls_that_vanish_at_once_leave_nothing_and_disturb_no_one() {
    let server = start(|_| {});
    run(async {
        let client = &mut connect(server.address).await;
        let mut peers = Vec::new();
        for _ in 0..30 {
            let socket = tokio::net::TcpStream::connect(server.address).await.unwrap();
            let (mut peer, connection) = h2::client::handshake(socket).await.unwrap();
            let connection = tokio::spawn(connection);
            let calls: Vec<_> =
                (0..20).map(|_| peer.send_request(request("/test/Hold", &[]), false).unwrap()).collect();
            assert_eq!(call(&mut peer, request("/test/Unary", &[]), framed(b"x")).await.status().0, "0");
            peers.push((peer, calls, connection));
        }
        // Newcomers are heavy, and wait for their turns as it is.
        tokio::time::sleep(Duration::from_millis(200)).await;
        peers.iter().for_each(|(_, _, connection)| connection.abort());
        let deadline = Instant::now() + Duration::from_secs(10);
        while descriptors(server.address.port()) > 2 {
            assert_eq!(call(client, request("/test/Unary", &[]), framed(b"x")).await.status().0, "0");
            assert!(Instant::now() < deadline, "{} sockets left", descriptors(server.address.port()));
        }
    });
    assert_eq!(server.end().resets, 30 * 20);
}

#[test]
fn a_peer_that_never_speaks_is_cut_at_the_handshake_timeout() {
    use std::io::Read;
    let server = start(|config| config.handshake_timeout = Duration::from_millis(50));
    let mut socket = std::net::TcpStream::connect(server.address).unwrap();
    socket.set_read_timeout(Some(Duration::from_secs(10))).unwrap();
    let mut said = Vec::new();
    // It is told nothing: who speaks first is not known to be a peer of HTTP/2 yet.
    let _ = socket.read_to_end(&mut said);
    assert!(said.is_empty(), "{said:?}");
    let mut half = raw_peer_with(server.address, b"PRI * HTTP/2.0\r\n\r\nSM");
    let _ = half.read_to_end(&mut said);
    assert!(said.is_empty(), "{said:?}");
    server.end();
}

/// A peer that speaks raw frames and answers nothing on its own.
fn raw_peer(address: SocketAddr) -> std::net::TcpStream {
    raw_peer_with(address, b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\x04\0\0\0\0\0")
}

fn raw_peer_with(address: SocketAddr, opening: &[u8]) -> std::net::TcpStream {
    use std::io::Write;
    let mut socket = std::net::TcpStream::connect(address).unwrap();
    socket.set_read_timeout(Some(Duration::from_secs(10))).unwrap();
    socket.write_all(opening).unwrap();
    socket
}

#[test]
fn a_preface_that_comes_byte_by_byte_is_one() {
    use std::io::{Read, Write};
    let server = start(|_| {});
    let mut socket = std::net::TcpStream::connect(server.address).unwrap();
    socket.set_nodelay(true).unwrap();
    socket.set_read_timeout(Some(Duration::from_secs(10))).unwrap();
    for byte in b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\x04\0\0\0\0\0" {
        socket.write_all(&[*byte]).unwrap();
        std::thread::sleep(Duration::from_millis(1));
    }
    let mut said = [0; 9];
    socket.read_exact(&mut said).unwrap();
    assert_eq!(said[3], 4, "SETTINGS");
    drop(socket);
    server.end();
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
        config.keepalive_interval = Some(Duration::from_millis(100));
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
fn a_peer_that_pings_too_often_hears_why_it_has_to_go() {
    use std::io::Write;
    let server = start(|config| config.ping_interval_min = Some(Duration::from_secs(5)));
    let mut socket = raw_peer(server.address);
    let (mut answered, mut goodbye) = (0, None);
    // What the server says of its settings takes strikes back, so nobody counts pings before it is quiet.
    std::thread::sleep(Duration::from_millis(100));
    let ping = [&[0, 0, 8, PING, 0, 0, 0, 0, 0][..], &[7; 8]].concat();
    socket.write_all(&ping).unwrap();
    while let Some((kind, flags, payload)) = next_frame(&mut socket) {
        match kind {
            PING if flags & 1 == 1 => {
                answered += 1;
                socket.write_all(&ping).unwrap();
            }
            GO_AWAY => goodbye = Some(payload),
            _ => {}
        }
    }
    assert_eq!(goodbye.as_deref(), Some(&b"\0\0\0\0\0\0\0\x0btoo_many_pings"[..]), "no stream, ENHANCE_YOUR_CALM");
    assert_eq!(answered, 3, "the one that may come, and two that should not");
    server.end();
}

#[test]
fn a_peer_may_ping_between_the_answers_to_its_calls() {
    let server = start(|config| config.ping_interval_min = Some(Duration::from_secs(5)));
    run(async {
        let (client, mut connection) =
            h2::client::handshake(tokio::net::TcpStream::connect(server.address).await.unwrap()).await.unwrap();
        let mut pings = connection.ping_pong().unwrap();
        let connection = tokio::spawn(connection);
        let client = &mut client.ready().await.unwrap();
        for _ in 0..20 {
            pings.ping(h2::Ping::opaque()).await.unwrap();
            let answer = call(client, request("/test/Unary", &[]), framed(b"x")).await;
            assert_eq!(answer.status().0, "0");
        }
        assert!(!connection.is_finished());
    });
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

#[test]
fn an_idle_stream_and_a_connection_stay_small() {
    let (row, connection) = (size_of::<crate::net::stream::Row>(), size_of::<crate::net::connection::Connection>());
    println!("a row takes {row} bytes, a connection {connection}");
    assert!(row <= 104, "{row}");
    assert!(connection <= 2_048, "{connection}");
}

#[test]
fn requests_that_never_become_whole_are_bounded_in_sum() {
    let server = start(|config| config.partial_bytes_max = 100_000);
    run(async {
        let mut held = Vec::new();
        let client = &mut connect(server.address).await;
        for index in 0..20 {
            let (response, mut send) = client.send_request(request("/test/Unary", &[]), false).unwrap();
            let cut = framed(&[1; 20_000]).slice(..10_000);
            send_all(&mut send, cut, false).await;
            tokio::time::sleep(Duration::from_millis(5)).await;
            held.push((index, response, send));
        }
        let refused = held.pop().unwrap();
        let answer = read_all(refused.1.await.unwrap()).await.unwrap();
        assert_eq!(answer.status().0, "8");
        let (_, response, mut send) = held.swap_remove(0);
        send_all(&mut send, vec![1; 10_005].into(), true).await;
        assert_eq!(read_all(response.await.unwrap()).await.unwrap().status().0, "0");
    });
    server.end();
}

#[test]
fn a_call_that_its_handler_ends_is_over_once_whatever_it_still_holds() {
    let server = start(|config| config.partial_bytes_max = 1_000);
    run(async {
        let client = &mut connect(server.address).await;
        let (response, mut send) = client.send_request(request("/test/Refuse", &[]), false).unwrap();
        // The second message is held behind the first, which ends the call.
        let messages = [framed(b"x"), framed(&[1; 5_000])].concat();
        send.send_data(messages.into(), false).unwrap();
        assert_eq!(read_all(response.await.unwrap()).await.unwrap().status(), ("3".into(), "no".into()));
        let answer = call(client, request("/test/Unary", &[]), framed(b"x")).await;
        assert_eq!(answer.status().0, "0");
    });
    assert!(server.reports.try_recv().is_err(), "the handler has ended it and is told nothing");
    server.end();
}
