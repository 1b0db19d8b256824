//! A server with a small memory limit, in a cgroup where one can be made; what it takes, looked at all the time; and a
//! well-behaved client that must be served whatever happens.
//!
//! The client watches a key, and does over and over: a put, which may be refused for want of space but must be answered, a
//! read, a delete. Everything is answered within [`ANSWER_MAX`], and the watch is told each change once and in order.

use std::fs;
use std::net::SocketAddr;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use prost::Message;
use rustix::process::{Pid, Resource, Signal, getrlimit, kill_process};
use tarsier_proto::etcdserverpb as pb;

use crate::cgroup::{MemoryGroup, Usage};
use crate::client::{Client, PUT, RANGE, SOON, WATCH, WIDE, create, framed, on_key, put};
use crate::server::{self, Server};

const GROUP_BYTES: u64 = 96 << 20;
/// What tarsier takes of it by default.
const LIMIT_BYTES: u64 = GROUP_BYTES / 100 * 80;
/// The machine has two cores, and the attackers take what they get.
const ANSWER_MAX: Duration = Duration::from_secs(5);

pub struct Scene {
    server: Server,
    group: Option<MemoryGroup>,
    /// A program that joins the group and becomes the server.
    script: Option<PathBuf>,
    is_over: Arc<AtomicBool>,
    watcher: Option<JoinHandle<u64>>,
    client: Option<JoinHandle<u64>>,
}

/// Whether this process, and so its server, may open so many files.
pub fn may_open(files: u64) -> bool {
    let limit = getrlimit(Resource::Nofile).current;
    let may = limit.is_none_or(|limit| limit >= files);
    if !may {
        eprintln!("skipped: {files} open files are needed, and the limit is {limit:?}");
    }
    may
}

/// Runs an attack on a server of its own, and checks what it did.
pub fn attack(attack: impl AsyncFnOnce(&Scene)) {
    let mut scene = Scene::start();
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build();
    runtime.expect("a runtime starts").block_on(attack(&scene));
    scene.end();
}

impl Scene {
    fn start() -> Scene {
        let binary = server::binary_under_test();
        let (group, script) = match MemoryGroup::new(GROUP_BYTES) {
            Ok(group) => {
                let script = joining(&group, &binary);
                (Some(group), Some(script))
            }
            Err(reason) => {
                eprintln!("without a cgroup, so only what is resident is looked at: {reason}");
                (None, None)
            }
        };
        let limit = format!("--memory-limit={LIMIT_BYTES}");
        let settings = if group.is_some() { Vec::new() } else { vec![&limit[..]] };
        let server = Server::start_with(script.as_deref().unwrap_or(&binary), &settings);
        let is_over = Arc::new(AtomicBool::new(false));
        let (address, process, over) = (server.address(), server.process(), is_over.clone());
        let client = thread::spawn(move || behave(address, &over));
        let over = is_over.clone();
        let watcher = thread::spawn(move || most_resident(process, &over));
        Scene { server, group, script, is_over, watcher: Some(watcher), client: Some(client) }
    }

    pub fn address(&self) -> SocketAddr {
        self.server.address()
    }

    /// A connection, unless there is no memory for one.
    pub async fn try_connect(&self) -> Option<Client> {
        crate::connect(self.address())?;
        Some(Client::connect(self.address(), WIDE).await)
    }

    fn usage(&self) -> Usage {
        self.group.as_ref().map(|group| group.usage().expect("the cgroup can be read")).unwrap_or_default()
    }

    /// The server refuses because it is full and not for another reason: it has used most of what it may.
    pub fn check_full(&self) {
        let used = self.account("used");
        // A quarter is kept free for the checkpoint, and what is left is handed out in shares.
        assert!(used > LIMIT_BYTES / 10 * 6, "{used} of {LIMIT_BYTES} bytes are used, and it refuses");
    }

    /// What the server says that it holds of a class, in bytes.
    pub fn account(&self, class: &str) -> u64 {
        self.server.account()[class].bytes
    }

    /// Memory is being freed: a put is taken soon. Gives its revision.
    pub async fn put_soon(&self, client: &Client, key: &str) -> i64 {
        let deadline = Instant::now() + SOON;
        loop {
            let (body, status) = client.call(PUT, put(key, b"v")).await.expect("the connection lives");
            if status == 0 {
                let response = pb::PutResponse::decode(&body[5..]).expect("a whole response");
                return response.header.expect("a header").revision;
            }
            assert!(Instant::now() < deadline, "memory is free and puts are still refused");
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    }

    fn end(&mut self) {
        self.is_over.store(true, Ordering::Relaxed);
        let rounds = self.client.take().map(JoinHandle::join).expect("it was started");
        let resident = self.watcher.take().map(JoinHandle::join).expect("it was started");
        assert!(self.server.ended().is_none(), "the server has ended: {:?}", self.server.ended());
        let (rounds, resident) = (rounds.expect("the client was served"), resident.expect("the server lives"));
        let usage = self.usage();
        println!("{rounds} rounds of the client, {resident} bytes resident at most of {LIMIT_BYTES}, {usage:?}");
        assert!(rounds > 10, "the client had {rounds} rounds");
        assert_eq!(usage.killed, 0);
        // Both peaks together are more than there ever was at one time.
        let most = resident + usage.socket_peak_bytes;
        assert!(most < GROUP_BYTES, "{most} bytes at most, sockets included, of {GROUP_BYTES}");
    }
}

impl Drop for Scene {
    fn drop(&mut self) {
        self.is_over.store(true, Ordering::Relaxed);
        if let Some(script) = &self.script {
            let _ = fs::remove_file(script);
        }
        // The group can go once nobody is in it, and the server is killed again when it is dropped.
        if let Some(process) = Pid::from_raw(self.server.process() as i32) {
            let _ = kill_process(process, Signal::KILL);
        }
    }
}

/// A script that joins the group and becomes the binary, with the arguments it is given.
fn joining(group: &MemoryGroup, binary: &Path) -> PathBuf {
    let command = group.command(binary);
    let words = std::iter::once(command.get_program()).chain(command.get_args());
    let words: Vec<String> = words.map(|word| format!("'{}'", word.to_string_lossy().replace('\'', "'\\''"))).collect();
    let path = std::env::temp_dir().join(format!("{}.sh", group.name()));
    fs::write(&path, format!("#!/bin/sh\nexec {} \"$@\"\n", words.join(" ")))
        .expect("the temporary directory is writable");
    fs::set_permissions(&path, fs::Permissions::from_mode(0o755)).expect("the file is ours");
    path
}

/// The most that is resident, by looks every few milliseconds.
fn most_resident(process: u32, is_over: &AtomicBool) -> u64 {
    let mut most = 0;
    while !is_over.load(Ordering::Relaxed) {
        let status = fs::read_to_string(format!("/proc/{process}/status")).expect("the server runs");
        let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"));
        let kilobytes = line.and_then(|line| line.trim().strip_suffix(" kB")?.parse::<u64>().ok());
        most = most.max(kilobytes.expect("a process that runs has memory") * 1024);
        thread::sleep(Duration::from_millis(5));
    }
    most
}

/// The well-behaved client, on a thread of its own; gives the number of its rounds.
fn behave(address: SocketAddr, is_over: &AtomicBool) -> u64 {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime starts");
    runtime.block_on(async {
        let client = Client::connect(address, WIDE).await;
        let mut watch = client.start(WATCH, create(on_key("good")), false).await.expect("a watch begins");
        assert!(watch.next().await.created);
        let delete = pb::DeleteRangeRequest { key: "good".into(), ..Default::default() }.encode_to_vec();
        let read = pb::RangeRequest { key: "good".into(), ..Default::default() }.encode_to_vec();
        let mut rounds = 0;
        while !is_over.load(Ordering::Relaxed) {
            let (put, read, delete) = (put("good", b"v"), framed(&read), framed(&delete));
            let calls = [(PUT, put), (RANGE, read), ("/etcdserverpb.KV/DeleteRange", delete)];
            let mut has_put = false;
            for (path, body) in calls {
                let begun = Instant::now();
                let (body, status) = client.call(path, body).await.expect("the connection lives");
                let took = begun.elapsed();
                assert!(took < ANSWER_MAX, "{path} took {took:?}");
                match path {
                    PUT if status == 0 => has_put = true,
                    PUT => assert_eq!(status, crate::RESOURCE_EXHAUSTED),
                    RANGE => {
                        let found = pb::RangeResponse::decode(&body[5..]).expect("a whole response").count;
                        assert_eq!((status, found), (0, i64::from(has_put)));
                    }
                    _ => assert_eq!(status, 0, "a delete is never refused"),
                }
            }
            // A watch that fell behind is told several revisions in one response.
            let mut told = Vec::new();
            while has_put && told.len() < 2 {
                told.extend(watch.next().await.events.iter().map(|event| event.r#type == 0));
            }
            assert!(!has_put || told == [true, false], "{told:?}");
            rounds += 1;
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        rounds
    })
}
