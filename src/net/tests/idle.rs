//! What becomes of h2's buffers in silence, and that nobody misses what they held.
//!
//! All tests of this folder run with the buffers overwritten at each turn's end, and given back after a millisecond.

use super::*;
use crate::random::Random;

/// The connections whose buffers are given back, once there are as many as expected.
async fn until_idle(server: &Running, expected: u64) {
    let deadline = Instant::now() + Duration::from_secs(10);
    while server.idle.load(Ordering::Relaxed) != expected {
        assert!(Instant::now() < deadline, "{} are idle", server.idle.load(Ordering::Relaxed));
        tokio::time::sleep(Duration::from_millis(2)).await;
    }
}

#[test]
fn a_silent_connection_gives_its_buffers_back_and_speaks_again() {
    let server = start(|_| {});
    run(async {
        let client = &mut connect(server.address).await;
        let (response, mut send) = client.send_request(request("/test/Echo", &[]), false).unwrap();
        let mut recv = response.await.unwrap().into_body();
        for number in 0..50_u8 {
            let message = framed(&vec![number; usize::from(number) * 20]);
            send.send_data(message.clone(), false).unwrap();
            let mut got = Vec::new();
            while got.len() < message.len() {
                got.extend_from_slice(&recv.data().await.unwrap().unwrap());
            }
            assert!(got == message, "message {number}");
            recv.flow_control().release_capacity(got.len()).unwrap();
            until_idle(&server, 1).await;
        }
    });
    server.end();
}

#[test]
fn a_connection_with_a_stream_fills_its_place_in_the_heap_and_takes_no_second_one() {
    let server = start(|_| {});
    run(async {
        let mut clients = Vec::new();
        for _ in 0..3 {
            let mut client = connect(server.address).await;
            let (response, mut send) = client.send_request(request("/test/Echo", &[]), false).unwrap();
            send.send_data(framed(b"x"), false).unwrap();
            let mut body = response.await.unwrap().into_body();
            body.data().await.unwrap().unwrap();
            clients.push((client, send, body));
        }
    });
    // Each size that heap.rs knows is one that h2 asks for, once a connection.
    assert_eq!(server.end().parts, [3; heap::PARTS.len()]);
}

#[test]
fn buffers_are_kept_when_the_operator_says_so() {
    let server = start(|config| config.idle_buffers = IdleBuffers::Keep);
    run(async {
        let client = &mut connect(server.address).await;
        let answer = call(client, request("/test/Unary", &[]), framed(b"x")).await;
        assert_eq!(answer.status().0, "0");
        tokio::time::sleep(Duration::from_millis(50)).await;
        assert_eq!(server.idle.load(Ordering::Relaxed), 0);
    });
    server.end();
}

#[test]
fn no_buffer_is_given_back_inside_of_a_frame_or_of_a_block_of_headers() {
    use std::io::{Read, Write};
    let server = start(|_| {});
    let cut: [&[u8]; 4] = [
        // Part of a head, part of a payload, and a whole HEADERS frame that a CONTINUATION is to end.
        &[0, 0, 8, 6],
        &[0, 0, 8, 6, 0, 0, 0, 0, 0, 1, 2, 3],
        &[0, 0, 1, 1, 0, 0, 0, 0, 1, 0x83],
        &[0, 0, 1, 1, 0, 0, 0, 0, 1, 0x83, 0, 0, 1, 9, 0, 0, 0, 0, 1, 0x86],
    ];
    for bytes in cut {
        let mut socket = std::net::TcpStream::connect(server.address).unwrap();
        socket.write_all(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\x04\0\0\0\0\0").unwrap();
        run(until_idle(&server, 1));
        socket.write_all(bytes).unwrap();
        std::thread::sleep(Duration::from_millis(30));
        assert_eq!(server.idle.load(Ordering::Relaxed), 0, "{bytes:?}");
        drop(socket);
    }
    // What the cut frame held is still there when its end comes: the answer to a ping repeats it.
    let mut socket = std::net::TcpStream::connect(server.address).unwrap();
    socket.write_all(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\x04\0\0\0\0\0").unwrap();
    for byte in [0, 0, 8, 6, 0, 0, 0, 0, 0, 1, 2, 3, 4, 5, 6, 7, 8] {
        std::thread::sleep(Duration::from_millis(5));
        socket.write_all(&[byte]).unwrap();
    }
    let mut said = Vec::new();
    let mut chunk = [0; 1_000];
    while !said.ends_with(&[1, 2, 3, 4, 5, 6, 7, 8]) {
        let length = socket.read(&mut chunk).unwrap();
        assert!(length > 0, "the connection ended: {said:?}");
        said.extend_from_slice(&chunk[..length]);
    }
    drop(socket);
    server.end();
}

/// Requests of all sizes with silences between, several calls at once, and header fields that fill h2's table.
#[test]
fn a_long_exchange_with_silences_survives_the_loss_of_all_buffers() {
    let server = start(|_| {});
    run(async {
        let mut tasks = Vec::new();
        for seed in 0..8_u64 {
            let mut client = connect(server.address).await;
            tasks.push(tokio::spawn(async move {
                let mut random = Random::new(seed);
                for round in 0..200_u32 {
                    let length = [0, 1, 30, 200, 3_000, 9_000, 40_000][random.below(7) as usize];
                    let body = framed(&vec![random.below(256) as u8; length]);
                    let path = ["/test/Unary", "/test/Late", "/test/Echo"][random.below(3) as usize];
                    let name = format!("field-{}", random.below(40));
                    let value = format!("{round}-{}", "v".repeat(random.below(60) as usize));
                    let answer = call(&mut client, request(path, &[(&name, &value)]), body.clone()).await;
                    assert!(answer.body == body && answer.status().0 == "0", "seed {seed} round {round}");
                    if random.below(4) == 0 {
                        tokio::time::sleep(Duration::from_millis(random.below(12))).await;
                    }
                }
            }));
        }
        for task in tasks {
            task.await.unwrap();
        }
    });
    server.end();
}
