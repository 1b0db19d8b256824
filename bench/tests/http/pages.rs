//! Version, health and checks.

use std::net::{Ipv4Addr, SocketAddr, TcpListener};

use crate::client::{Answer, Client};
use crate::server::{self, Server};

fn start(settings: &[&str]) -> Server {
    Server::start_with(&server::binary_under_test(), settings)
}

fn get(address: SocketAddr, target: &str) -> Answer {
    Client::connect(address).request("GET", target)
}

fn check(address: SocketAddr, target: &str, status: u16, body: &str) {
    let answer = get(address, target);
    assert_eq!((answer.status, answer.body.as_str()), (status, body), "{target}");
}

/// An address for `--listen-metrics-urls`, free a moment ago.
pub fn free_address() -> SocketAddr {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).expect("a loopback port is free");
    listener.local_addr().expect("a bound socket has an address")
}

#[test]
fn probes_and_tools_find_etcds_pages_on_the_port_of_the_clients() {
    let server = start(&[]);
    let at = server.address();
    check(at, "/health", 200, "{\"health\":\"true\",\"reason\":\"\"}");
    check(at, "/health?serializable=true&exclude=NOSPACE", 200, "{\"health\":\"true\",\"reason\":\"\"}");
    check(at, "/livez", 200, "ok\n");
    check(at, "/readyz", 200, "ok\n");
    check(at, "/livez/serializable_read?verbose", 200, "[+]serializable_read ok\nok\n");
    check(at, "/readyz/linearizable_read", 200, "ok\n");
    check(at, "/readyz?verbose&exclude=non_learner&exclude=data_corruption&exclude=serializable_read", 200, {
        "[+]linearizable_read ok\nok\n"
    });
    check(at, "/version", 200, "{\"etcdserver\":\"3.7.3\",\"etcdcluster\":\"3.7.0\",\"storage\":\"3.7.0\"}");
    for target in ["/", "/nope", "/health/", "/livez/ping", "/readyz/shards"] {
        check(at, target, 404, "404 page not found\n");
    }
    let variables: serde_json::Value = serde_json::from_str(&get(at, "/debug/vars").body).expect("it is JSON");
    assert!(variables["cmdline"].as_array().is_some_and(|words| words.len() > 4), "{variables}");
    assert!(variables["file_descriptor_limit"].as_u64().is_some_and(|max| max > 100), "{variables}");
}

#[test]
fn a_method_that_a_page_does_not_have_is_405() {
    let server = start(&[]);
    let mut client = Client::connect(server.address());
    for target in ["/health", "/livez", "/readyz/non_learner", "/version"] {
        for method in ["POST", "PUT", "DELETE"] {
            let answer = client.request(method, target);
            assert_eq!((answer.status, answer.header("allow")), (405, Some("GET")), "{method} {target}");
            assert_eq!(answer.body, "Method Not Allowed\n");
        }
        let answer = client.request("HEAD", target);
        assert_eq!((answer.status, answer.header("content-length")), (405, Some("19")), "HEAD {target}");
    }
}

#[test]
fn requests_come_one_behind_the_other_on_one_connection() {
    let server = start(&[]);
    let mut client = Client::connect(server.address());
    let mut pipelined = String::new();
    for _ in 0..200 {
        pipelined += "GET /version HTTP/1.1\r\nHost: a\r\n\r\nGET /livez HTTP/1.1\r\nHost: a\r\n\r\n";
    }
    client.send(pipelined + "GET /nope HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n");
    for _ in 0..200 {
        assert!(client.answer(false).body.starts_with("{\"etcdserver\""));
        assert_eq!(client.answer(false).body, "ok\n");
    }
    assert_eq!(client.answer(false).status, 404);
    assert!(client.is_at_end());
}

#[test]
fn a_request_of_http_1_0_is_answered_and_one_of_1_1_names_its_host() {
    let server = start(&[]);
    let mut old = Client::connect(server.address());
    old.send("GET /livez HTTP/1.0\r\n\r\n");
    assert_eq!(old.answer(false).body, "ok\n");
    assert!(old.is_at_end());
    let mut nameless = Client::connect(server.address());
    nameless.send("GET /livez HTTP/1.1\r\n\r\n");
    let answer = nameless.answer(false);
    assert_eq!(answer.status, 400);
}

#[test]
fn the_pages_are_served_on_addresses_of_their_own_and_nothing_else_is() {
    let pages = free_address();
    let server = start(&[&format!("--listen-metrics-urls=http://{pages}")]);
    check(pages, "/health", 200, "{\"health\":\"true\",\"reason\":\"\"}");
    check(pages, "/readyz", 200, "ok\n");
    check(server.address(), "/readyz", 200, "ok\n");
    check(pages, "/version", 404, "404 page not found\n");
    let mut grpc = Client::connect(pages);
    grpc.send("PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\x04\0\0\0\0\0");
    while !grpc.is_at_end() {}
}

#[test]
fn whoever_looks_is_not_turned_away_with_the_clients() {
    if server::is_real_etcd(&server::binary_under_test()) {
        // It has no such limit.
        return;
    }
    let pages = free_address();
    let url = format!("--listen-metrics-urls=http://{pages}");
    let server = start(&["--max-connections=1", &url]);
    // The connection that found the server ready still counts for a moment.
    let held = loop {
        let mut client = Client::connect(server.address());
        client.send("GET /livez HTTP/1.1\r\nHost: a\r\n\r\n");
        let mut first = [0; 4];
        if client.peek(&mut first) && first == *b"HTTP" {
            assert_eq!(client.answer(false).body, "ok\n");
            break client;
        }
    };
    for _ in 0..10 {
        check(pages, "/livez", 200, "ok\n");
    }
    drop(held);
}
