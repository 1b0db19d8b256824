//! Peers that take nothing, in whatever way.

use std::io::Write;
use std::net::TcpStream;

use super::*;

/// A frame of HTTP/2.
pub(super) fn frame_of(kind: u8, flags: u8, stream: u32, payload: &[u8]) -> Vec<u8> {
    let mut bytes = (payload.len() as u32).to_be_bytes()[1..].to_vec();
    bytes.extend_from_slice(&[kind, flags]);
    bytes.extend_from_slice(&stream.to_be_bytes());
    bytes.extend_from_slice(payload);
    bytes
}

/// Opens windows as wide as they go and begins a call that is answered without end, so that its socket fills; then sends
/// as many pings as the kernel takes, and reads nothing.
pub(super) fn stuck_peer(address: SocketAddr) -> TcpStream {
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

/// An endless answer, of which the client takes as much as its window lets it.
async fn endless(client: &mut SendRequest<Bytes>) -> (RecvStream, SendStream<Bytes>) {
    let (response, mut send) = client.send_request(request("/test/Endless", &[]), false).unwrap();
    send.send_data(framed(b"go"), false).unwrap();
    (response.await.unwrap().into_body(), send)
}

#[test]
fn a_stream_that_takes_nothing_is_ended_and_the_other_streams_of_its_connection_go_on() {
    let server = start(|config| config.stalled_stream_timeout = Some(Duration::from_millis(400)));
    run(async {
        let mut wide = h2::client::Builder::new();
        wide.initial_connection_window_size(16 << 20);
        let client = &mut connect_with(server.address, &wide).await;
        let begun = Instant::now();
        let (mut hung, _kept) = endless(client).await;
        let (mut slow, _kept) = endless(client).await;
        let (silent, mut silent_send) = client.send_request(request("/test/Echo", &[]), false).unwrap();
        let mut silent = silent.await.unwrap().into_body();
        // A reader of a window each 100 ms is slow, and not stalled. Nor is a stream to which nothing is due.
        while begun.elapsed() < Duration::from_secs(2) {
            let mut taken = 0;
            while taken < 60_000 {
                let data = slow.data().await.expect("the stream goes on").unwrap();
                taken += data.len();
                slow.flow_control().release_capacity(data.len()).unwrap();
            }
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
        silent_send.send_data(framed(b"here"), false).unwrap();
        assert_eq!(silent.data().await.unwrap().unwrap(), framed(b"here"));
        let mut taken = 0;
        while let Some(data) = hung.data().await {
            taken += data.unwrap().len();
        }
        assert_eq!(taken, 65_535, "what its window had let through");
        let trailers = hung.trailers().await.unwrap().unwrap();
        assert_eq!(trailers["grpc-status"], "14");
        let text = "tarsier: the client took nothing of what was due to it for too long";
        assert_eq!(trailers["grpc-message"], text);
    });
    server.end();
}

#[test]
fn a_stream_may_hang_for_ever_where_no_timeout_is_set() {
    let server = start(|config| config.stalled_stream_timeout = None);
    run(async {
        let client = &mut connect(server.address).await;
        let (mut hung, _kept) = endless(client).await;
        tokio::time::sleep(Duration::from_millis(500)).await;
        let mut taken = 0;
        while taken < 1_000_000 {
            let data = hung.data().await.expect("the stream goes on").unwrap();
            taken += data.len();
            hung.flow_control().release_capacity(data.len()).unwrap();
        }
    });
    server.end();
}

#[test]
fn a_connection_whose_socket_takes_nothing_is_cut() {
    let server = start(|config| config.stalled_stream_timeout = Some(Duration::from_millis(400)));
    let begun = Instant::now();
    let peer = stuck_peer(server.address);
    let closed = |report| matches!(report, Report::Closed(_));
    while !closed(server.report()) {}
    assert!((400..5_000).contains(&begun.elapsed().as_millis()), "{:?}", begun.elapsed());
    drop(peer);
    server.end();
}

/// The payload of a frame is read as a frame where a goodbye was written into the middle of one.
#[test]
fn a_peer_that_pings_too_often_while_a_frame_waits_to_leave_is_sent_the_rest_of_it_and_then_cut() {
    use std::io::Read;
    let server = start(|config| config.ping_interval_min = Some(Duration::from_secs(5)));
    let mut peer = stuck_peer(server.address);
    while server.reports.recv_timeout(Duration::from_millis(300)).is_ok() {}
    // The first may come, two should not, and the next is one too many.
    peer.write_all(&frame_of(6, 0, 0, &[7; 8]).repeat(4)).unwrap();
    std::thread::sleep(Duration::from_millis(100));
    peer.set_read_timeout(Some(Duration::from_secs(10))).unwrap();
    let mut bytes = Vec::new();
    let end = peer.read_to_end(&mut bytes);
    assert!(!matches!(&end, Err(error) if error.kind() == std::io::ErrorKind::WouldBlock), "it is cut: {end:?}");
    let (mut rest, mut kinds) = (&bytes[..], std::collections::BTreeMap::new());
    while let Some((header, behind)) = rest.split_at_checked(9) {
        let length = u32::from_be_bytes([0, header[0], header[1], header[2]]) as usize;
        let (kind, payload) = (header[3], &behind[..length.min(behind.len())]);
        assert!(matches!(kind, 0 | 1 | 3 | 4 | 6 | 7 | 8), "a frame of the kind {kind}, {length} bytes long");
        assert!(kind != 0 || payload.iter().all(|byte| *byte == 7), "the answer is what it was");
        *kinds.entry(kind).or_insert(0) += 1;
        rest = &behind[payload.len()..];
    }
    assert!(kinds[&0] > 100, "{kinds:?}");
    assert!(server.reports.try_iter().any(|report| matches!(report, Report::Closed(_))));
    server.end();
}
