//! Peers of the client port that speak HTTP/1.1 badly, slowly, at length or without end.

use std::io::{Read, Write};
use std::net::TcpStream;
use std::time::{Duration, Instant};

use crate::client::SOON;
use crate::scene::among_bystanders;
use crate::server::Server;

fn connect(server: &Server) -> TcpStream {
    let socket = TcpStream::connect(server.address()).expect("the server listens");
    socket.set_read_timeout(Some(SOON)).expect("the socket is open");
    socket.set_write_timeout(Some(SOON)).expect("the socket is open");
    socket
}

/// Sends all of it, as far as the server takes it, and gives what comes until the end of the connection.
fn say(server: &Server, bytes: &[u8]) -> String {
    let mut socket = connect(server);
    let _ = socket.write_all(bytes);
    let mut said = Vec::new();
    socket.read_to_end(&mut said).expect("the answer comes before the end, and no reset overtakes it");
    String::from_utf8_lossy(&said).into_owned()
}

#[test]
fn what_is_no_request_is_answered_with_4xx_and_the_connection_ends() {
    among_bystanders(async |server| {
        let field = |bytes: usize| format!("GET /health HTTP/1.1\r\nHost: a\r\nX: {}\r\n\r\n", "x".repeat(bytes));
        let fields = "GET /health HTTP/1.1\r\nHost: a\r\n".to_owned() + &"X: y\r\n".repeat(2_000) + "\r\n";
        let line = format!("GET /{} HTTP/1.1\r\nHost: a\r\n\r\n", "x".repeat(1 << 20));
        for _ in 0..5 {
            for (request, status) in [
                (field(1 << 20), "431"),
                (field(20_000), "431"),
                (fields.clone(), "431"),
                (line.clone(), "4"),
                ("GARBAGE\r\n\r\n".to_owned(), "400"),
                ("GET /health\r\n\r\n".to_owned(), "400"),
                ("GET /health HTTP/3.0\r\nHost: a\r\n\r\n".to_owned(), "400"),
                ("GET /hea lth HTTP/1.1\r\nHost: a\r\n\r\n".to_owned(), "400"),
                ("GET /health HTTP/1.1\r\nHo st: a\r\n\r\n".to_owned(), "400"),
                ("GET /health HTTP/1.1\r\nHost: a\r\nContent-Length: x\r\n\r\n".to_owned(), "400"),
            ] {
                let said = say(server, request.as_bytes());
                let begin = &request[..request.len().min(60)];
                assert!(said.starts_with(&format!("HTTP/1.1 {status}")), "{begin:?}: {said:?}");
            }
        }
    });
}

#[test]
fn a_body_that_nobody_asked_for_is_not_waited_for() {
    among_bystanders(async |server| {
        for framing in
            ["Content-Length: 1000000000", "Transfer-Encoding: chunked", "Content-Length: 5\r\nExpect: 100-continue"]
        {
            for (method, status) in [("GET", "200"), ("POST", "405")] {
                let mut socket = connect(server);
                let head = format!("{method} /health HTTP/1.1\r\nHost: a\r\n{framing}\r\n\r\n");
                socket.write_all(head.as_bytes()).expect("the server takes a head");
                let mut said = [0; 12];
                socket.read_exact(&mut said).expect("an answer comes");
                assert_eq!(String::from_utf8_lossy(&said), format!("HTTP/1.1 {status}"), "{head}");
            }
        }
    });
}

#[test]
fn a_request_that_comes_byte_by_byte_is_cut_and_so_is_one_that_stops_halfway() {
    among_bystanders(async |server| {
        let begun = Instant::now();
        let mut slow: Vec<TcpStream> = (0..50).map(|_| connect(server)).collect();
        let mut stopped: Vec<TcpStream> = (0..50).map(|_| connect(server)).collect();
        // The first request of these is whole; it is the next one that does not end.
        for socket in &mut stopped[25..] {
            socket.write_all(b"GET /livez HTTP/1.1\r\nHost: a\r\n\r\n").expect("the server listens");
        }
        tokio::time::sleep(Duration::from_millis(200)).await;
        for socket in &mut stopped {
            socket.write_all(b"GET /livez HTTP/1.1\r\nHost: a\r\nX: ").expect("the server listens");
        }
        let mut at = 0;
        while begun.elapsed() < Duration::from_secs(16) {
            let byte =
                b"GET /livez HTTP/1.1\r\nHost: a\r\nX: yyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyy".get(at);
            at += 1;
            for socket in &mut slow {
                // Cut ones are what is hoped for.
                let _ = socket.write_all(std::slice::from_ref(byte.unwrap_or(&b'z')));
            }
            tokio::time::sleep(Duration::from_millis(200)).await;
        }
        for socket in slow.iter_mut().chain(&mut stopped) {
            socket.set_read_timeout(Some(Duration::from_millis(100))).expect("the socket is open");
            let mut said = Vec::new();
            let is_open =
                socket.read_to_end(&mut said).is_err_and(|error| error.kind() == std::io::ErrorKind::WouldBlock);
            assert!(!is_open, "still open after {:?}", begun.elapsed());
        }
    });
}

#[test]
fn requests_without_end_from_a_peer_that_reads_no_answer_are_bounded() {
    among_bystanders(async |server| {
        let mut sockets: Vec<TcpStream> = (0..20).map(|_| connect(server)).collect();
        let requests = "GET /debug/vars HTTP/1.1\r\nHost: a\r\n\r\n".repeat(2_000);
        for socket in &mut sockets {
            socket.set_nonblocking(true).expect("the socket is open");
        }
        let begun = Instant::now();
        while begun.elapsed() < Duration::from_secs(3) {
            for socket in &mut sockets {
                // The server stops taking them; that is the point.
                let _ = socket.write(requests.as_bytes());
            }
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    });
}

#[test]
fn peers_that_vanish_in_the_middle_of_an_answer_leave_nothing() {
    among_bystanders(async |server| {
        for round in 0..300 {
            let mut socket = connect(server);
            let target = ["/health", "/readyz?verbose", "/debug/vars", "/livez"][round % 4];
            let requests = format!("GET {target} HTTP/1.1\r\nHost: a\r\n\r\n").repeat(1 + round % 7);
            socket.write_all(requests.as_bytes()).expect("the server listens");
        }
    });
}
