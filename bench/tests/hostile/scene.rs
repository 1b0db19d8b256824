//! A server with well-behaved clients on it, and what must hold for them and for the server's memory while others misbehave.
//!
//! The bystanders put to keys of their own and watch all of these keys. Whatever else happens, every put is answered, and
//! each of them is told every one of these puts once and in order. At the end the server holds nothing but the bystanders:
//! neither a descriptor nor a connection, call, watch stream or watching more, and about as much memory as before.

use std::collections::HashMap;
use std::fs;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use tarsier_proto::etcdserverpb as pb;
use tokio::task::JoinHandle;

use crate::client::{Client, SOON, Stream, WATCH, WIDE, create};
use crate::server::{self, Held, Server};

const BYSTANDERS: usize = 4;
/// What a server may keep in pools and slabs of what an attack made it hold.
const KEPT_BYTES_MAX: u64 = 100 << 20;

pub struct Scene {
    server: Server,
    watches: Vec<(Client, Stream)>,
    putters: Vec<JoinHandle<Vec<i64>>>,
    is_over: Arc<AtomicBool>,
    descriptors: usize,
    before: HashMap<String, Held>,
}

/// Runs an attack among bystanders, and checks what it left.
pub fn among_bystanders(attack: impl AsyncFnOnce(&Server)) {
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build();
    runtime.expect("a runtime starts").block_on(async {
        let mut scene = Scene::start().await;
        attack(&scene.server).await;
        scene.check().await;
    });
}

impl Scene {
    async fn start() -> Scene {
        let server = Server::start(&server::binary_under_test());
        all_shards_run(&server).await;
        let (is_over, mut watches, mut clients) = (Arc::new(AtomicBool::new(false)), Vec::new(), Vec::new());
        for _ in 0..BYSTANDERS {
            let client = Client::connect(server.address(), WIDE).await;
            let range = pb::WatchCreateRequest {
                key: "by/".into(),
                range_end: "by0".into(),
                // An attack may delete what it did not write.
                filters: vec![pb::watch_create_request::FilterType::Nodelete as i32],
                ..Default::default()
            };
            let mut watch = client.start(WATCH, create(range), false).await.expect("a watch begins");
            assert!(watch.next().await.created);
            watches.push((client, watch));
            clients.push(Client::connect(server.address(), WIDE).await);
        }
        // One answer each, so that everything a connection needs is there before it is counted.
        for client in &clients {
            client.put("warm", b"").await;
        }
        let descriptors = descriptors(server.process()).len();
        let before = server.account();
        let putters = clients.into_iter().enumerate();
        let putters = putters.map(|(index, client)| tokio::spawn(put_until(index, client, is_over.clone()))).collect();
        Scene { server, watches, putters, is_over, descriptors, before }
    }

    async fn check(&mut self) {
        self.is_over.store(true, Ordering::Relaxed);
        let mut expected = Vec::new();
        for putter in &mut self.putters {
            let revisions = putter.await.expect("every put is answered");
            expected.extend(revisions);
        }
        expected.sort_unstable();
        assert!(expected.len() >= BYSTANDERS, "each bystander has put something");
        for (_, watch) in &mut self.watches {
            let mut told = Vec::new();
            while told.len() < expected.len() {
                let response = watch.next().await;
                assert!(!response.canceled, "{}", response.cancel_reason);
                told.extend(response.events.iter().map(|event| event.kv.as_ref().expect("a key").mod_revision));
            }
            assert_eq!(told, expected, "every event once and in order");
        }
        self.nothing_is_left().await;
    }

    /// Connections end a moment after their peers, and what they held is swept in turns.
    async fn nothing_is_left(&mut self) {
        let deadline = Instant::now() + SOON;
        loop {
            assert!(self.server.ended().is_none(), "the server has ended: {:?}", self.server.ended());
            let (descriptors, account) = (descriptors(self.server.process()), self.server.account());
            let same = ["watch streams", "watchings", "groups and keys", "behind"];
            // The putters are gone, the watches are there.
            let is_same = same.iter().all(|class| account[*class].count == self.before[*class].count)
                && account["connections"].count == BYSTANDERS as u64
                && account["calls"].count == 0;
            if is_same
                && account["backlog"].bytes == 0
                && descriptors.len() + BYSTANDERS == self.descriptors
                && account["resident"].bytes < self.before["resident"].bytes + KEPT_BYTES_MAX
            {
                return;
            }
            assert!(
                Instant::now() < deadline,
                "left: {account:?}, {descriptors:?}; before: {:?}, {} descriptors",
                self.before,
                self.descriptors
            );
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
    }
}

/// The first shard serves while the others start, and each of them opens files of its own.
async fn all_shards_run(server: &Server) {
    let deadline = Instant::now() + SOON;
    while !server.log().contains("ready to serve client requests") {
        assert!(Instant::now() < deadline, "not all shards run");
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}

/// Puts until it is told to stop, and gives the revisions.
async fn put_until(index: usize, client: Client, is_over: Arc<AtomicBool>) -> Vec<i64> {
    let mut revisions = Vec::new();
    while !is_over.load(Ordering::Relaxed) || revisions.is_empty() {
        revisions.push(client.put(&format!("by/{index}"), format!("{}", revisions.len()).as_bytes()).await);
        tokio::time::sleep(Duration::from_millis(2)).await;
    }
    revisions
}

/// What the server has open, but for what comes and goes by itself: it looks its memory up in /proc every 10 ms, and a thread
/// keeps segments of the log ready, from some moment after the start on, of which as many are in use as goes by what was
/// written.
fn descriptors(process: u32) -> Vec<PathBuf> {
    let all = fs::read_dir(format!("/proc/{process}/fd")).expect("the server runs");
    let targets = all.filter_map(|entry| fs::read_link(entry.ok()?.path()).ok());
    let comes_and_goes =
        |target: &PathBuf| target.starts_with("/proc") || target.parent().is_some_and(|parent| parent.ends_with("wal"));
    targets.filter(|target| !comes_and_goes(target)).collect()
}
