//! Peers that take nothing, in whatever way.

use std::io::Write;
use std::net::TcpStream;

use super::*;

/// A frame of HTTP/2.
fn frame_of(kind: u8, flags: u8, stream: u32, payload: &[u8]) -> Vec<u8> {
    let mut bytes = (payload.len() as u32).to_be_bytes()[1..].to_vec();
    bytes.extend_from_slice(&[kind, flags]);
    bytes.extend_from_slice(&stream.to_be_bytes());
    bytes.extend_from_slice(payload);
    bytes
}

/// Opens windows as wide as they go and begins a call that is answered without end, so that its socket fills; then sends
/// as many pings as the kernel takes, and reads nothing.
fn stuck_peer(address: SocketAddr) -> TcpStream {
    let socket = socket2::Socket::new(socket2::Domain::IPV4, socket2::Type::STREAM, None).unwrap();
    socket.set_recv_buffer_size(4_096).unwrap();
    socket.connect(&address.into()).unwrap();
    let mut socket: TcpStream = socket.into();
    let mut bytes = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n".to_vec();
    // SETTINGS_INITIAL_WINDOW_SIZE, then the connection's window.
    bytes.extend(frame_of(4, 0, 0, &[0, 4, 0x7f, 0xff, 0xff, 0xff]));
    bytes.extend(frame_of(8, 0, 0, &[0x7f, 0, 0, 0]));
    // POST http /test/Endless, each field as a literal without a name's compression but for the static table's.
    let mut headers = vec![0x83, 0x86, 0x04, 13];
    headers.extend_from_slice(b"/test/Endless");
    headers.extend_from_slice(&[0x01, 1, b't', 0x0f, 0x10, 16]);
    headers.extend_from_slice(b"application/grpc");
    bytes.extend(frame_of(1, 4, 1, &headers));
    bytes.extend(frame_of(0, 0, 1, &framed(b"go")));
    socket.write_all(&bytes).unwrap();
    socket
}

#[test]
fn peers_that_read_nothing_and_are_owed_pongs_keep_no_receive_buffer_from_the_others() {
    let server = start(|_| {});
    let peers: Vec<TcpStream> = (0..300).map(|_| stuck_peer(server.address)).collect();
    // Their sockets are full once none of them is asked for output any more.
    while server.reports.recv_timeout(Duration::from_millis(300)).is_ok() {}
    for mut peer in &peers {
        peer.set_nonblocking(true).unwrap();
        let pings = frame_of(6, 0, 0, &[7; 8]).repeat(4_000);
        // A kernel that takes no more is as good.
        let _ = peer.write(&pings).unwrap();
    }
    std::thread::sleep(Duration::from_millis(300));
    run(async {
        let client = &mut connect(server.address).await;
        for _ in 0..100 {
            let answer = call(client, request("/test/Unary", &[]), framed(b"x")).await;
            assert_eq!(answer.status().0, "0");
        }
    });
    drop(peers);
    server.end();
}
