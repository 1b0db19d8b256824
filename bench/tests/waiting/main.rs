//! Thousands of calls that wait for one lock, from outside: handed over one by one, never to two at once, some of them gone
//! in the middle of the line, and nothing left behind.
//!
//! ```text
//! cargo test -p tarsier-bench --test waiting                            # against the tarsier of this workspace
//! TARSIER_BIN=/path/to/etcd cargo test -p tarsier-bench --test waiting  # a check of the test itself
//! ```

#[path = "../hostile/client.rs"]
#[allow(dead_code, reason = "the tests of hostile clients use the rest")]
mod client;
#[path = "../server/mod.rs"]
mod server;

use std::collections::HashMap;
use std::time::{Duration, Instant};

use prost::Message;
use tarsier_proto::{etcdserverpb as pb, v3lockpb};
use tokio::sync::mpsc;
use tokio::time::{sleep, timeout};

use crate::client::{Client, RANGE, SOON, Stream, WIDE, framed};
use crate::server::Server;

const LOCK: &str = "/v3lockpb.Lock/Lock";
const UNLOCK: &str = "/v3lockpb.Lock/Unlock";
const GRANT: &str = "/etcdserverpb.Lease/LeaseGrant";
const TXN: &str = "/etcdserverpb.KV/Txn";

const WAITERS: usize = 5_000;
/// On the first connection, and on each of the others.
const WAITERS_TOGETHER: usize = 500;
const WAITERS_APART: usize = 50;
/// Every so manieth waiter goes before its turn.
const GOES: usize = 17;
/// All have to be in line by then, also with a server that reads all keys for each of them.
const LINE_WITHIN: Duration = Duration::from_secs(120);

/// Of a call, for whoever reads the key that it made.
fn key(lease: usize) -> String {
    format!("line/{lease:x}")
}

async fn ask<T: Message + Default>(client: &Client, path: &str, request: &impl Message) -> T {
    let (body, status) = client.call(path, framed(&request.encode_to_vec())).await.expect("the connection lives");
    assert_eq!(status, 0, "{path} is answered");
    T::decode(&body[5..]).expect("a whole response")
}

async fn keys(client: &Client) -> i64 {
    let request =
        pb::RangeRequest { key: "line/".into(), range_end: "line0".into(), count_only: true, ..Default::default() };
    ask::<pb::RangeResponse>(client, RANGE, &request).await.count
}

async fn wait_for_keys(client: &Client, count: usize, within: Duration) {
    let deadline = Instant::now() + within;
    loop {
        let keys = keys(client).await;
        if keys == count as i64 {
            return;
        }
        assert!(Instant::now() < deadline, "{keys} keys stand in line, and not {count}");
        sleep(Duration::from_millis(100)).await;
    }
}

async fn grant(client: &Client, lease: usize) {
    let request = pb::LeaseGrantRequest { ttl: 3_600, id: lease as i64 };
    ask::<pb::LeaseGrantResponse>(client, GRANT, &request).await;
}

async fn start(client: &Client, lease: usize) -> Stream {
    let request = v3lockpb::LockRequest { name: "line".into(), lease: lease as i64 };
    client.start(LOCK, framed(&request.encode_to_vec()), true).await.expect("the connection lives")
}

/// The memory that a class of the account has, from the page of metrics.
async fn memory(server: &Server) -> HashMap<String, u64> {
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    let mut socket = tokio::net::TcpStream::connect(server.address()).await.expect("the server listens");
    socket.write_all(b"GET /metrics HTTP/1.1\r\nhost: t\r\nconnection: close\r\n\r\n").await.expect("it reads");
    let mut page = String::new();
    socket.read_to_string(&mut page).await.expect("a page of text");
    let classes = page.lines().filter_map(|line| {
        let (class, bytes) = line.strip_prefix("tarsier_memory_bytes{class=\"")?.split_once("\"} ")?;
        Some((class.to_owned(), bytes.parse().ok()?))
    });
    classes.collect()
}

/// A call that waits on a task of its own tells with what it ended, and goes when it is told to.
fn wait_on_a_task(mut stream: Stream, lease: usize, told: mpsc::UnboundedSender<usize>) -> tokio::task::JoinHandle<()> {
    tokio::spawn(async move {
        // It goes with its connection.
        let Ok((body, status)) = stream.read_all().await else { return };
        assert_eq!(status, 0, "the lock of {lease}");
        let locked = v3lockpb::LockResponse::decode(&body[5..]).expect("a whole response");
        assert_eq!(locked.key, key(lease));
        // Nobody listens once the test is over.
        let _ = told.send(lease);
    })
}

#[test]
fn five_thousand_wait_for_a_lock_and_get_it_one_after_the_other() {
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build();
    runtime.expect("a runtime starts").block_on(line());
}

async fn line() {
    let binary = server::binary_under_test();
    let is_etcd = server::is_real_etcd(&binary);
    let server = Server::start_with(&binary, &["--unsafe-no-fsync"]);
    let main = Client::connect(server.address(), WIDE).await;
    let before = memory(&server).await;

    // Whoever holds it first.
    grant(&main, WAITERS + 1).await;
    let request = v3lockpb::LockRequest { name: "line".into(), lease: WAITERS as i64 + 1 };
    let mut held = ask::<v3lockpb::LockResponse>(&main, LOCK, &request).await.key;

    let (told, mut holders) = mpsc::unbounded_channel();
    let (mut connections, mut tasks) = (Vec::new(), HashMap::new());
    let mut lease = 0;
    while lease < WAITERS {
        let client = Client::connect(server.address(), WIDE).await;
        let waiters = if connections.is_empty() { WAITERS_TOGETHER } else { WAITERS_APART };
        for _ in 0..waiters.min(WAITERS - lease) {
            lease += 1;
            grant(&client, lease).await;
            tasks.insert(lease, wait_on_a_task(start(&client, lease).await, lease, told.clone()));
        }
        connections.push(client);
    }
    wait_for_keys(&main, WAITERS + 1, LINE_WITHIN).await;
    assert!(holders.is_empty(), "it is held");
    if !is_etcd {
        let waiting = memory(&server).await;
        assert!(waiting["calls"] >= before["calls"] + WAITERS as u64 * 300, "{waiting:?}, and before {before:?}");
    }

    // Some go before their turn, one connection as a whole.
    let mut gone: Vec<usize> = (1..=WAITERS).filter(|lease| lease % GOES == 0).collect();
    let of_the_last = WAITERS - WAITERS_APART + 1..=WAITERS;
    drop(connections.pop());
    gone.extend(of_the_last.filter(|lease| lease % GOES != 0));
    for lease in &gone {
        tasks.remove(lease).expect("it was started").abort();
    }
    let mut left = WAITERS - gone.len();
    wait_for_keys(&main, left + 1, SOON).await;

    while left > 0 {
        assert!(holders.is_empty(), "nobody was to hold it yet");
        let unlock = v3lockpb::UnlockRequest { key: held };
        ask::<v3lockpb::UnlockResponse>(&main, UNLOCK, &unlock).await;
        let lease = timeout(SOON, holders.recv()).await.expect("the next has its turn").expect("tasks are left");
        assert!(!gone.contains(&lease), "whoever has gone is passed over");
        held = key(lease).into();
        left -= 1;
    }
    assert_eq!(keys(&main).await, 1, "the key of the last one");
    let unlock = v3lockpb::UnlockRequest { key: held };
    ask::<v3lockpb::UnlockResponse>(&main, UNLOCK, &unlock).await;
    assert_eq!(keys(&main).await, 0);
    // A transaction that does nothing is answered: the server goes on.
    ask::<pb::TxnResponse>(&main, TXN, &pb::TxnRequest::default()).await;
    drop(connections);
    if is_etcd {
        return;
    }
    let deadline = Instant::now() + SOON;
    loop {
        let after = memory(&server).await;
        // What the connection of this test takes is there before and after; a further call of its may have made room.
        if after["calls"] <= before["calls"] + 2_000 && after["connections"] <= before["connections"] + 20_000 {
            return;
        }
        assert!(Instant::now() < deadline, "{after:?}, and before {before:?}");
        sleep(Duration::from_millis(100)).await;
    }
}
