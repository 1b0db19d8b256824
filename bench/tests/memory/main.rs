//! The memory limit from outside: clients try to exceed every class of the account in turn, in a memory cgroup where one can
//! be made (it needs root, or systemd), and otherwise against `--memory-limit` alone.
//!
//! Each test has a server of its own with a well-behaved client on it, attacks until the server refuses, and looks: the
//! memory never passed that of the group, sockets included; the well-behaved client was served all the time; and when the attackers
//! are gone, what they were refused is granted again.
//!
//! ```text
//! cargo test -p tarsier-bench --test memory
//! ```

#[path = "../../src/cgroup.rs"]
#[allow(dead_code, reason = "the load generator uses the rest")]
mod cgroup;
#[path = "../hostile/client.rs"]
#[allow(dead_code, reason = "the tests of hostile clients use the rest")]
mod client;
mod scene;
#[path = "../server/mod.rs"]
mod server;

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::sync::mpsc;
use std::thread;
use std::time::{Duration, Instant};

use prost::Message;
use tarsier_proto::etcdserverpb as pb;
use tarsier_proto::v3electionpb::LeaderRequest;
use tokio::time::{sleep, timeout};

use crate::client::{Client, PUT, RANGE, SOON, WATCH, WIDE, create, framed, on_key, put};
use crate::scene::attack;

const NO_WATCH_MEMORY: &str = "tarsier: no memory for a further watch";
const RESOURCE_EXHAUSTED: i32 = 8;
const GRANT: &str = "/etcdserverpb.Lease/LeaseGrant";
const TIME_TO_LIVE: &str = "/etcdserverpb.Lease/LeaseTimeToLive";
const OBSERVE: &str = "/v3electionpb.Election/Observe";
/// Attackers that are never refused would fill the memory of the machine.
const PATIENCE: Duration = Duration::from_secs(120);

/// A connection that begins as it should; `None` when it was told to go.
fn connect(address: SocketAddr) -> Option<TcpStream> {
    let mut socket = TcpStream::connect(address).expect("the server listens");
    socket.set_read_timeout(Some(SOON)).expect("the socket is open");
    // One that is turned away may be gone by now.
    let _ = socket.write_all(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\x04\0\0\0\0\0");
    let mut head = [0; 9];
    socket.read_exact(&mut head).expect("a frame comes first");
    (head[3] == 4).then_some(socket)
}

/// Whether a watch is granted on a stream of its own.
async fn is_granted(client: &Client, watch: pb::WatchCreateRequest) -> bool {
    let mut stream = client.start(WATCH, create(watch), false).await.expect("the connection lives");
    let response = stream.next().await;
    assert!(response.created, "{response:?}");
    assert!(!response.canceled || response.cancel_reason == NO_WATCH_MEMORY, "{response:?}");
    !response.canceled
}

async fn is_granted_soon(client: &Client) {
    let deadline = Instant::now() + SOON;
    while !is_granted(client, on_key("again")).await {
        assert!(Instant::now() < deadline, "memory is free and watches are still refused");
        sleep(Duration::from_millis(100)).await;
    }
}

/// Creates watches on one stream until one is refused; gives the stream, which holds them.
async fn fill_with_watches(
    client: &Client,
    burst: u64,
    mut range: impl FnMut(u64) -> pb::WatchCreateRequest,
) -> client::Stream {
    let mut stream = client.start(WATCH, create(range(0)), false).await.expect("a watch begins");
    let (mut asked, mut answered, begun) = (1, 0, Instant::now());
    loop {
        if asked - answered <= burst {
            let more: Vec<u8> = (asked..asked + burst).flat_map(|number| create(range(number))).collect();
            stream.send(more.into());
            asked += burst;
        }
        let response = stream.next().await;
        answered += 1;
        if response.canceled {
            assert_eq!(response.cancel_reason, NO_WATCH_MEMORY);
            return stream;
        }
        assert!(begun.elapsed() < PATIENCE, "{answered} watches are held and none was refused");
    }
}

#[test]
fn connections() {
    if !scene::may_open(8_000) {
        return;
    }
    attack(async |scene| {
        let (mut held, begun) = (Vec::new(), Instant::now());
        while let Some(socket) = connect(scene.address()) {
            held.push(socket);
            assert!(begun.elapsed() < PATIENCE, "{} connections are held and none was refused", held.len());
        }
        scene.check_full();
        for _ in 0..100 {
            assert!(connect(scene.address()).is_none() || held.len() > 100, "there is no room for one more");
        }
        drop(held);
        let deadline = Instant::now() + SOON;
        while connect(scene.address()).is_none() {
            assert!(Instant::now() < deadline, "memory is free and connections are still refused");
            sleep(Duration::from_millis(100)).await;
        }
    });
}

#[test]
fn streams() {
    attack(async |scene| {
        let (mut clients, mut streams, begun) = (Vec::new(), Vec::new(), Instant::now());
        let other = Client::connect(scene.address(), WIDE).await;
        'full: loop {
            let Some(client) = scene.try_connect().await else { break };
            for _ in 0..10_000 {
                let mut stream = client.start(WATCH, create(on_key("x")), false).await.expect("the connection lives");
                match stream.try_next().await {
                    Some(response) if !response.canceled => streams.push(stream),
                    _ => break 'full,
                }
            }
            clients.push(client);
            assert!(begun.elapsed() < PATIENCE, "{} streams are held and none was refused", streams.len());
        }
        scene.check_full();
        drop((streams, clients));
        is_granted_soon(&other).await;
    });
}

#[test]
fn watchings_of_one_key() {
    attack(async |scene| {
        let (client, other) =
            (Client::connect(scene.address(), WIDE).await, Client::connect(scene.address(), WIDE).await);
        let stream = fill_with_watches(&client, 2_000, |_| on_key("x")).await;
        scene.check_full();
        drop((stream, client));
        is_granted_soon(&other).await;
    });
}

#[test]
fn watchings_on_long_keys_of_their_own() {
    attack(async |scene| {
        let (client, other) =
            (Client::connect(scene.address(), WIDE).await, Client::connect(scene.address(), WIDE).await);
        let stream = fill_with_watches(&client, 500, |number| on_key(&format!("{number:05000}"))).await;
        scene.check_full();
        drop((stream, client));
        is_granted_soon(&other).await;
        // A key of a mebibyte takes as much as ten thousand watches.
        let long = "k".repeat(1 << 20);
        let stream = fill_with_watches(&other, 20, |number| on_key(&format!("{number}{long}"))).await;
        drop(stream);
        is_granted_soon(&other).await;
    });
}

/// Puts until one is refused; none may be answered otherwise.
async fn fill_with_puts(client: &Client, mut put: impl FnMut(u64) -> bytes::Bytes) -> u64 {
    let begun = Instant::now();
    for number in 0.. {
        let (_, status) = client.call(PUT, put(number)).await.expect("the connection lives");
        if status != 0 {
            assert_eq!(status, RESOURCE_EXHAUSTED);
            return number;
        }
        assert!(begun.elapsed() < PATIENCE, "{number} puts were taken and none was refused");
    }
    unreachable!("numbers do not end")
}

async fn compact(client: &Client, revision: i64) {
    let request = pb::CompactionRequest { revision, physical: true };
    let answer = client.call("/etcdserverpb.KV/Compact", framed(&request.encode_to_vec())).await;
    assert_eq!(answer.expect("the connection lives").1, 0, "a compaction is the way out");
}

#[test]
fn keys_and_history_of_large_values() {
    attack(async |scene| {
        let client = Client::connect(scene.address(), WIDE).await;
        let value = vec![7; 100_000];
        fill_with_puts(&client, |number| put(&format!("put/{number}"), &value)).await;
        scene.check_full();
        let request = pb::DeleteRangeRequest { key: "put/".into(), range_end: "put0".into(), ..Default::default() };
        let answer = client.call("/etcdserverpb.KV/DeleteRange", framed(&request.encode_to_vec())).await;
        let (body, status) = answer.expect("the connection lives");
        assert_eq!(status, 0, "a delete is the way out");
        let response = pb::DeleteRangeResponse::decode(&body[5..]).expect("a whole response");
        compact(&client, response.header.expect("a header").revision).await;
        // The history of one key, in the largest values there are.
        let revision = scene.put_soon(&client, "again").await;
        assert!(revision > 0);
        let value = vec![7; 1_400_000];
        fill_with_puts(&client, |_| put("one", &value)).await;
        scene.check_full();
        let (body, _) = client.call(RANGE, range("one", "")).await.expect("the connection lives");
        let response = pb::RangeResponse::decode(&body[5..]).expect("a whole response");
        compact(&client, response.header.expect("a header").revision).await;
        scene.put_soon(&client, "again").await;
    });
}

#[test]
fn leases_and_the_keys_that_go_with_them() {
    attack(async |scene| {
        let client = Client::connect(scene.address(), WIDE).await;
        let grant = framed(&pb::LeaseGrantRequest { ttl: 600, ..Default::default() }.encode_to_vec());
        let granted = async || client.call(GRANT, grant.clone()).await.expect("the connection lives");
        let (body, status) = granted().await;
        assert_eq!(status, 0);
        let lease = pb::LeaseGrantResponse::decode(&body[5..]).expect("a whole response").id;
        let long = "k".repeat(100_000);
        let key = |number: u64| format!("{number}{long}").into_bytes();
        let with_lease = |number| pb::PutRequest { key: key(number).into(), lease, ..Default::default() };
        fill_with_puts(&client, |number| framed(&with_lease(number).encode_to_vec())).await;
        scene.check_full();
        assert!(scene.account("leases") > 1 << 20, "the keys of a lease are counted");
        // What a put of that size left is room for some.
        let begun = Instant::now();
        while granted().await.1 != RESOURCE_EXHAUSTED {
            assert!(begun.elapsed() < PATIENCE, "no lease was refused");
        }
        let keep = framed(&pb::LeaseKeepAliveRequest { id: lease }.encode_to_vec());
        let (body, status) =
            client.call("/etcdserverpb.Lease/LeaseKeepAlive", keep).await.expect("the connection lives");
        let kept = pb::LeaseKeepAliveResponse::decode(&body[5..]).expect("a whole response");
        assert_eq!((status, kept.id, kept.ttl), (0, lease, 600), "what is held goes on");
        let revoke = framed(&pb::LeaseRevokeRequest { id: lease }.encode_to_vec());
        let (body, status) =
            client.call("/etcdserverpb.Lease/LeaseRevoke", revoke).await.expect("the connection lives");
        assert_eq!(status, 0, "the end of a lease is a way out");
        let response = pb::LeaseRevokeResponse::decode(&body[5..]).expect("a whole response");
        compact(&client, response.header.expect("a header").revision).await;
        scene.put_soon(&client, "again").await;
        assert_eq!(granted().await.1, 0);
    });
}

fn range(key: &'static str, range_end: &'static str) -> bytes::Bytes {
    let request = pb::RangeRequest { key: key.into(), range_end: range_end.into(), ..Default::default() };
    framed(&request.encode_to_vec())
}

#[test]
fn answers_to_large_ranges_that_nobody_reads() {
    attack(async |scene| {
        let writer = Client::connect(scene.address(), WIDE).await;
        let mut puts = Vec::new();
        for number in 0..20_000 {
            puts.push(
                writer.start(PUT, put(&format!("row/{number}"), b"v"), true).await.expect("the connection lives"),
            );
            if puts.len() == 500 {
                for mut put in puts.drain(..) {
                    assert_eq!(put.status().await.expect("the connection lives"), 0);
                }
            }
        }
        let client = Client::connect(scene.address(), 0).await;
        let (mut held, begun) = (Vec::new(), Instant::now());
        // An answer that is granted waits for a window; one that is refused is a status alone.
        let is_refused = async || {
            let (_, status) = writer.call(RANGE, range("row/", "row0")).await.expect("the connection lives");
            assert!(status == 0 || status == RESOURCE_EXHAUSTED, "{status}");
            status != 0
        };
        while !is_refused().await {
            for _ in 0..10 {
                held.push(client.start(RANGE, range("row/", "row0"), true).await.expect("the connection lives"));
            }
            assert!(begun.elapsed() < PATIENCE, "{} answers are held and none was refused", held.len());
        }
        scene.check_full();
        drop((held, client));
        let deadline = Instant::now() + SOON;
        while is_refused().await {
            assert!(Instant::now() < deadline, "memory is free and ranges are still refused");
            sleep(Duration::from_millis(100)).await;
        }
    });
}

#[test]
fn names_that_observers_wait_for() {
    attack(async |scene| {
        let client = Client::connect(scene.address(), WIDE).await;
        let long = "n".repeat(1_300_000);
        let observe = async |number: usize| {
            let request = LeaderRequest { name: format!("{number}{long}").into() };
            let body = framed(&request.encode_to_vec());
            let mut call = client.start(OBSERVE, body, true).await.expect("the connection lives");
            // Nobody leads, so nothing comes but a refusal.
            let answer = timeout(Duration::from_millis(100), call.read_all()).await;
            match answer.map(|answer| answer.expect("the connection lives").1) {
                Ok(status) => Err(status),
                Err(_) => Ok(call),
            }
        };
        let mut held = Vec::new();
        loop {
            match observe(held.len()).await {
                Ok(call) => held.push(call),
                Err(status) => break assert_eq!(status, RESOURCE_EXHAUSTED),
            }
            assert!(held.len() < 1_000, "a gigabyte is held and nobody was refused");
        }
        assert!(held.len() > 5, "{} names are held", held.len());
        drop(held);
        let deadline = Instant::now() + SOON;
        while observe(0).await.is_err() {
            assert!(Instant::now() < deadline, "memory is free and observers are still refused");
            sleep(Duration::from_millis(100)).await;
        }
    });
}

#[test]
fn lists_of_the_keys_of_a_lease_that_nobody_reads() {
    attack(async |scene| {
        let writer = Client::connect(scene.address(), WIDE).await;
        let (lease, mut puts) = (7, Vec::new());
        let grant = framed(&pb::LeaseGrantRequest { ttl: 600, id: lease }.encode_to_vec());
        assert_eq!(writer.call(GRANT, grant).await.expect("the connection lives").1, 0);
        for number in 0..5_000 {
            let put = pb::PutRequest { key: format!("{number:0200}").into(), lease, ..Default::default() };
            puts.push(writer.start(PUT, framed(&put.encode_to_vec()), true).await.expect("the connection lives"));
        }
        for mut put in puts {
            assert_eq!(put.status().await.expect("the connection lives"), 0);
        }
        let request = framed(&pb::LeaseTimeToLiveRequest { id: lease, keys: true }.encode_to_vec());
        let client = Client::connect(scene.address(), 0).await;
        let (mut held, begun) = (Vec::new(), Instant::now());
        let is_refused = async || {
            let (_, status) = writer.call(TIME_TO_LIVE, request.clone()).await.expect("the connection lives");
            assert!(status == 0 || status == RESOURCE_EXHAUSTED, "{status}");
            status != 0
        };
        while !is_refused().await {
            for _ in 0..10 {
                held.push(client.start(TIME_TO_LIVE, request.clone(), true).await.expect("the connection lives"));
            }
            assert!(begun.elapsed() < PATIENCE, "{} lists are held and none was refused", held.len());
        }
        drop((held, client));
        let deadline = Instant::now() + SOON;
        while is_refused().await {
            assert!(Instant::now() < deadline, "memory is free and lists are still refused");
            sleep(Duration::from_millis(100)).await;
        }
    });
}

#[test]
fn connections_and_streams_that_read_nothing() {
    attack(async |scene| {
        let address = scene.address();
        let (told, is_ready) = mpsc::channel();
        let (end, ended) = mpsc::channel::<()>();
        // Its event loop stands still from here on, so its sockets are never read.
        let stuck = thread::spawn(move || {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime starts");
            let clients = runtime.block_on(async {
                let mut clients = Vec::new();
                for _ in 0..200 {
                    let client = Client::connect(address, WIDE).await;
                    let mut streams = Vec::new();
                    for _ in 0..10 {
                        let mut stream = client.start(WATCH, create(on_key("noise")), false).await.expect("a stream");
                        assert!(stream.next().await.created);
                        streams.push(stream);
                    }
                    clients.push((client, streams));
                }
                clients
            });
            told.send(()).expect("the test waits");
            // An error is the end of the test as well.
            let _ = ended.recv();
            drop(clients);
        });
        is_ready.recv().expect("the stuck clients are there");
        let writer = Client::connect(address, WIDE).await;
        let begun = Instant::now();
        let mut revision = 0;
        while begun.elapsed() < Duration::from_secs(10) {
            let (body, status) = writer.call(PUT, put("noise", &[7; 50_000])).await.expect("the connection lives");
            if status == 0 {
                let response = pb::PutResponse::decode(&body[5..]).expect("a whole response");
                revision = response.header.expect("a header").revision;
            } else {
                assert_eq!(status, RESOURCE_EXHAUSTED);
            }
            if revision % 100 == 99 {
                compact(&writer, revision).await;
                revision = 0;
            }
        }
        drop(end);
        stuck.join().expect("the stuck clients end");
        is_granted_soon(&writer).await;
    });
}
