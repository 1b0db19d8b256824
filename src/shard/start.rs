//! From a checked configuration to running shards, and from a signal to their end.
//!
//! The main thread serves nobody: it claims the addresses, reads the data, plans the shards, waits until all of them listen,
//! and then sleeps in what the signals ask for: the account of the memory, or the end.

use std::fmt;
use std::io::{self, Write as _};
use std::net::SocketAddr;
use std::rc::{Rc, Weak};
use std::sync::Arc;
use std::sync::mpsc::{self, Sender};
use std::thread;
use std::time::Duration;

use rtrb::Producer;

use crate::backend::Identity;
use crate::config::Config;
use crate::grpc::status::{Code, Status};
use crate::net::limits::ConnectionLimits;
use crate::net::listener::{self, Claim, ListenError, Listener};
use crate::net::ring::{Doorbell, Ring, RingRefused};
use crate::net::{Door, IdleBuffers, NetConfig, Ready, Server};
use crate::service::{self, Limits, Member};
use crate::shard::accounting::Account;
use crate::shard::auto_compact::AutoCompact;
use crate::shard::board::Boards;
use crate::shard::budget::Budget;
use crate::shard::control::{self, Control, Order};
use crate::shard::embedded::Embedded;
use crate::shard::history::{Appender, Committed, Reader};
use crate::shard::intake::Intake;
use crate::shard::mesh::{self, Link};
use crate::shard::meter::Meter;
use crate::shard::numbers::About;
use crate::shard::signals::{Wish, Wishes};
use crate::shard::storage::{self, Opened, Primed, StorageError};
use crate::shard::supervisor::{State, Supervisor};
use crate::shard::writer::{Pace, Writer};
use crate::shard::{Parts, Shard, clock, cores, memory, process};
use crate::store::quota::{self, Quota};
use crate::types::{Entry, Revision, Uptime};

/// Connections that have not ended by then are cut when the server stops.
const DRAIN_MAX: Duration = Duration::from_secs(5);
/// A disk that has not taken the first record by then is served all the same: reads and watches need it no further.
const START_MAX: Duration = Duration::from_secs(10);
/// etcd allows a message this much beyond `--max-request-bytes` (grpcOverheadBytes).
const MESSAGE_OVERHEAD_BYTES: usize = 512 * 1024;
/// Peers that take nothing, each with a full socket, that a small memory limit has room for.
const SLOW_PEERS: usize = 4_096;
/// What is not for clients: the log and the checkpoint, the rings, whoever reads metrics. etcd keeps as many.
const DESCRIPTORS_RESERVED: u64 = 150;
/// A port that is taken is tried again for two seconds.
const TAKEN_PROBES: u32 = 40;
const TAKEN_PROBE_INTERVAL: Duration = Duration::from_millis(50);
/// etcd's text for calls that a stopping server cuts.
const STOPPED: &str = "etcdserver: server stopped";

/// Why the server does not run. Each is one line that says what to change.
#[derive(Debug)]
pub enum StartError {
    Listen(ListenError),
    Ring(RingRefused),
    Storage(StorageError),
    System { what: &'static str, error: io::Error },
}

impl fmt::Display for StartError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            StartError::Listen(error) => error.fmt(f),
            StartError::Ring(error) => error.fmt(f),
            StartError::Storage(error) => error.fmt(f),
            StartError::System { what, error } => write!(f, "cannot {what}: {error}"),
        }
    }
}

impl std::error::Error for StartError {}

impl From<ListenError> for StartError {
    fn from(error: ListenError) -> StartError {
        StartError::Listen(error)
    }
}

fn system(what: &'static str) -> impl FnOnce(io::Error) -> StartError {
    move |error| StartError::System { what, error }
}

/// What a shard's thread starts with.
struct Plan {
    index: usize,
    core: Option<usize>,
    config: Arc<Config>,
    limits: Arc<ConnectionLimits>,
    identity: Identity,
    link: Link,
    reader: Reader,
    /// The revision that the reader stands behind. By the time this shard starts, others may have committed more.
    at: Revision,
    committed: Arc<Committed>,
    writer: Option<WriterPlan>,
    bells: Vec<Doorbell>,
    control: Control,
    budget: Arc<Budget>,
    boards: Arc<Boards>,
    about: About,
}

/// The writer's side, on shard 0.
struct WriterPlan {
    appender: Appender,
    /// Its queues from all shards.
    ports: Vec<mesh::Port>,
    primed: Primed,
}

/// Runs the server until it is told to stop.
///
/// # Errors
/// When it cannot start.
pub fn run(config: Config) -> Result<(), StartError> {
    let started_at = clock::wall();
    memory::without_huge_pages().map_err(system("switch transparent huge pages off"))?;
    memory::return_pages_at_once();
    process::raise_descriptors_max();
    let wishes = Wishes::listen().map_err(system("listen for signals"))?;
    let claims = claim(&config)?;
    log_quota(&config);
    let cores = cores::plan(config.shards).map_err(system("read the cores this process may use"))?;
    let bells = (0..cores.shards.get()).map(|_| Doorbell::new()).collect::<io::Result<Vec<_>>>();
    let bells = bells.map_err(system("make an eventfd for each shard"))?;
    let Opened { identity, storage, primed } = storage::open(&config, &bells[0]).map_err(StartError::Storage)?;
    let restored_bytes = primed.store.bytes().total() + primed.lessor.bytes();
    let about = About {
        started_at,
        member_id: identity.member_id,
        methods: service::methods().into(),
        disk: Some(primed.checkpointed.meter.clone()),
    };
    let boards = Boards::new(bells.len(), about.methods.len(), clock::now());
    let budget = budget(&config, bells.len())?;
    let (plans, mut orders) = plan_shards(config, &cores, bells, identity, primed, (&budget, &boards, &about));
    wishes.serve();
    let (started_sender, started) = mpsc::channel();
    // The writer's shard first, which has the term of this start on the disk before it is ready.
    let mut threads = Vec::new();
    for plan in plans {
        threads.push(spawn_shard(plan, started_sender.clone()));
        started.recv().expect("each shard reports before its thread ends")?;
    }
    // The addresses are kept by those who listen there.
    drop(claims);
    // What text, stacks, rings and empty pools take is known only by looking, before the first client takes more.
    let resident = memory::resident_bytes().map_err(system("read how much memory is resident"))?;
    let base = resident.saturating_sub(restored_bytes);
    budget.set_base(base);
    let supervisor = Supervisor::of_this_process();
    tracing::info!(shards = threads.len(), "ready to serve client requests");
    supervisor.tell(State::Ready);
    while wishes.next() == Wish::Account {
        print_account(&mut orders, base, &budget);
    }
    supervisor.tell(State::Stopping);
    drain(&mut orders, threads);
    storage.close();
    tracing::info!("all connections closed");
    Ok(())
}

/// All shards let their clients go at the same time, and shard 0 ends last: the others still wait for its writer's replies.
fn drain(orders: &mut Orders, threads: Vec<thread::JoinHandle<()>>) {
    let ends = "a shard ends the process when it panics";
    orders.give(&Order::Drain);
    let mut threads = threads.into_iter();
    let writer = threads.next();
    threads.for_each(|thread| thread.join().expect(ends));
    orders.give(&Order::End);
    writer.into_iter().for_each(|thread| thread.join().expect(ends));
}

/// Says what the process may hold: an operator who reads that watches are refused looks here for the reason.
fn budget(config: &Config, shards: usize) -> Result<Arc<Budget>, StartError> {
    let Some(limit) = config.memory_limit else { return Ok(Budget::new(None, shards)) };
    let available_bytes = memory::available_bytes().map_err(system("read how much memory there is"))?;
    let limit_bytes = limit.bytes(available_bytes);
    tracing::info!(limit_bytes, available_bytes, "memory limit");
    if limit_bytes > available_bytes {
        let why = "the kernel would end the process, or hold it up, before the limit is reached: set a smaller --memory-limit";
        tracing::warn!(limit_bytes, available_bytes, why, "the memory limit is more than there is");
    }
    Ok(Budget::new(Some(limit_bytes), shards))
}

/// Refuses addresses that another process has, and keeps the others from everybody else until our shards listen.
fn claim(config: &Config) -> Result<Vec<Claim>, StartError> {
    let mut listens: Vec<_> = config.listen.iter().chain(&config.listen_metrics).collect();
    // Those that hold others first.
    listens.sort_by_key(|listen| !listen.address.ip().is_unspecified());
    let mut claims: Vec<Claim> = Vec::new();
    for listen in listens {
        if claims.iter().any(|claim| claim.holds(listen.address)) {
            continue;
        }
        match claim_patiently(listen.address) {
            Ok(claim) => claims.push(claim),
            Err(error) if listen.required || matches!(error, ListenError::Taken(_)) => return Err(error.into()),
            // The shards will say that it is not served.
            Err(_) => {}
        }
    }
    Ok(claims)
}

/// A predecessor that was killed keeps its sockets for a moment, until the kernel has taken its rings apart; a supervisor that
/// starts the next one at once must not fail for that.
fn claim_patiently(address: SocketAddr) -> Result<Claim, ListenError> {
    let mut tries = TAKEN_PROBES;
    loop {
        match Claim::new(address) {
            Err(ListenError::Taken(_)) if tries > 0 => {
                tries -= 1;
                thread::sleep(TAKEN_PROBE_INTERVAL);
            }
            claimed => return claimed,
        }
    }
}

/// The main thread's way to the shards.
struct Orders(Vec<(Producer<Order>, Doorbell)>);

impl Orders {
    fn give(&mut self, order: &Order) {
        for (queue, bell) in &mut self.0 {
            if queue.push(order.clone()).is_err() {
                tracing::warn!("a shard has not read its last orders; this one is dropped");
            }
            bell.ring();
        }
    }
}

fn plan_shards(
    config: Config,
    cores: &cores::Plan,
    bells: Vec<Doorbell>,
    identity: Identity,
    primed: Primed,
    (budget, boards, about): (&Arc<Budget>, &Arc<Boards>, &About),
) -> (Vec<Plan>, Orders) {
    let config = Arc::new(config);
    let connections_max = connections_max(&config);
    let limits = ConnectionLimits::new(Some(connections_max), config.connections_per_address_max);
    let at = primed.store.revision();
    let appender = Appender::new(at, primed.store.compacted());
    let (links, ports): (Vec<_>, Vec<_>) = (0..bells.len()).map(|_| mesh::pair()).unzip();
    let mut orders = Vec::new();
    let mut plans: Vec<Plan> = links
        .into_iter()
        .enumerate()
        .map(|(index, link)| {
            let (order, control) = control::pair();
            orders.push((order, bells[index].clone()));
            Plan {
                index,
                core: cores.pins.get(index).copied(),
                config: Arc::clone(&config),
                limits: Arc::clone(&limits),
                identity,
                link,
                reader: appender.reader(),
                at,
                committed: appender.committed(),
                writer: None,
                bells: bells.clone(),
                control,
                budget: Arc::clone(budget),
                boards: Arc::clone(boards),
                about: About { disk: about.disk.clone().filter(|_| index == 0), ..about.clone() },
            }
        })
        .collect();
    plans[0].writer = Some(WriterPlan { appender, ports, primed });
    (plans, Orders(orders))
}

/// No more than there are descriptors for: the log needs some as well, and so does whoever looks why clients are turned away.
fn connections_max(config: &Config) -> u64 {
    let descriptors = process::descriptors_max();
    let there_are = descriptors.saturating_sub(DESCRIPTORS_RESERVED).max(descriptors / 2);
    tracing::info!(descriptors, connections_max = there_are, "room for connections");
    config.connections_max.map_or(there_are, |asked| asked.min(there_are))
}

fn print_account(orders: &mut Orders, base: usize, budget: &Budget) {
    let (sender, accounts) = mpsc::channel();
    orders.give(&Order::Account(sender));
    let mut sum = Account { base, ..Account::default() };
    for account in accounts.iter() {
        sum.add(&account);
    }
    let limit = budget.limit().map_or("none".to_owned(), |limit| limit.to_string());
    let (uncounted, used) = (budget.uncounted(), budget.used());
    let sum = format!("{sum}{:<16} {:>12} {uncounted:>16}\n{:<16} {:>12} {used:>16}\n", "uncounted", "", "used", limit);
    let page = match memory::resident_bytes() {
        Ok(resident) => format!("{sum}{:<16} {:>12} {resident:>16}\n", "resident", ""),
        Err(error) => format!("{sum}resident memory is unknown: {error}\n"),
    };
    // Who asked may have gone, or its disk may be full.
    let _ = io::stderr().write_all(page.as_bytes());
}

fn spawn_shard(plan: Plan, started: Sender<Result<(), StartError>>) -> thread::JoinHandle<()> {
    let name = format!("shard-{}", plan.index);
    thread::Builder::new()
        .name(name)
        .spawn(move || {
            let ring = match prepare(&plan) {
                Ok(ring) => ring,
                Err(error) => return report(&started, Err(error)),
            };
            ring.run(serve(plan, started));
        })
        .expect("a process that could start can start a thread for each core")
}

/// Nobody listens to a second report: the first error has ended the start.
fn report(started: &Sender<Result<(), StartError>>, result: Result<(), StartError>) {
    let _ = started.send(result);
}

fn prepare(plan: &Plan) -> Result<Ring, StartError> {
    if let Some(core) = plan.core {
        cores::pin(core).map_err(system("pin a shard to its core"))?;
    }
    Ring::new().map_err(StartError::Ring)
}

/// Every shard has every address, so that the pages of one that hangs do not take those of the others along.
fn bind(config: &Config) -> Result<Vec<(Listener, Door)>, StartError> {
    let mut listeners = Vec::new();
    let clients = config.listen.iter().map(|listen| (listen, Door::Clients));
    let pages = config.listen_metrics.iter().map(|listen| (listen, Door::Pages));
    for (listen, door) in clients.chain(pages) {
        match Listener::bind(listen.address) {
            Ok(listener) => listeners.push((listener, door)),
            Err(error) if listen.required => return Err(error.into()),
            Err(error) => tracing::warn!(%error, "an address of the other family is not served"),
        }
    }
    Ok(listeners)
}

async fn serve(plan: Plan, started: Sender<Result<(), StartError>>) {
    let listeners = match bind(&plan.config) {
        Ok(listeners) => listeners,
        Err(error) => return report(&started, Err(error)),
    };
    let config = Arc::clone(&plan.config);
    let limits = Arc::clone(&plan.limits);
    let is_writer = plan.writer.is_some();
    let bell = plan.bells[plan.index].clone();
    let budget = Arc::clone(&plan.budget);
    let ready = Ready::new(u8::try_from(plan.index).expect("there are at most 256 shards"));
    let shard = Rc::new_cyclic(|shard| self::shard(plan, ready.clone(), shard.clone()));
    let server = Server::new(shard.clone(), ready, net_config(&config, limits, &budget));
    shard.attach(&server);
    shard.spawn_loops(bell);
    // The term of this start is in every answer, so it must be on the disk before the first one: the next start goes on
    // from there.
    shard.settled(START_MAX).await;
    if let Some(embedded) = &mut shard.core.borrow_mut().embedded {
        embedded.start_clock(clock::uptime);
    }
    for (listener, door) in listeners {
        server.listen(listener, door);
    }
    report(&started, Ok(()));
    drop(started);
    shard.drained().await;
    server.drain(Status::new(Code::Unavailable, STOPPED), DRAIN_MAX).await;
    if is_writer {
        shard.ended().await;
        shard.stop_log().await;
    }
}

fn net_config(config: &Config, limits: Arc<ConnectionLimits>, budget: &Budget) -> NetConfig {
    let mut net = NetConfig::new(clock::now);
    if let (Some(limit), Some(share)) = (budget.limit(), budget.share()) {
        let send_buffer_bytes = limit / SLOW_PEERS / 2;
        net.send_buffer_bytes = send_buffer_bytes.clamp(listener::SEND_BUFFER_BYTES_MIN, listener::SEND_BUFFER_BYTES);
        net.partial_bytes_max = net.partial_bytes_max.min(share as u64 / 8);
    }
    net.concurrent_streams_max = config.concurrent_streams_max;
    net.request_bytes_max = u32::try_from(config.request_bytes_max + MESSAGE_OVERHEAD_BYTES).unwrap_or(u32::MAX);
    net.limits = limits;
    net.stalled_stream_timeout = config.stalled_stream_timeout;
    net.idle_buffers = if config.idle_buffers_are_kept { IdleBuffers::Keep } else { IdleBuffers::GiveBack };
    net.ping_interval_min = Some(config.keepalive_min_time);
    net.keepalive_interval = config.keepalive_ping.map(|ping| ping.interval);
    if let Some(ping) = config.keepalive_ping {
        net.keepalive_timeout = ping.timeout;
    }
    net
}

/// etcd's words. Here the quota bounds memory, so what matters more is whether the machine has that much.
fn log_quota(config: &Config) {
    if let Some(bytes) = config.quota_backend_bytes
        && bytes > quota::SUGGESTED_BYTES_MAX
    {
        let maximum = quota::SUGGESTED_BYTES_MAX;
        tracing::warn!(quota_size_bytes = bytes, quota_maximum_size_bytes = maximum, "quota exceeds the maximum value");
    }
}

/// `itself` is the shard that this becomes: its log wakes it.
fn shard(plan: Plan, ready: Ready, itself: Weak<Shard>) -> Shard {
    let config = &plan.config;
    let logged_to = itself.clone();
    let embedded = plan.writer.map(|WriterPlan { appender, ports, primed }| {
        let wake = move || {
            if let Some(shard) = logged_to.upgrade() {
                shard.wake();
            }
        };
        let (store, mut lessor, next, term, logged) = primed.into_parts(Rc::new(wake));
        lessor.write_remaining_every(config.lease_checkpoint_interval);
        let quota = Quota { bytes: config.quota_backend_bytes };
        let writer = Writer::new(store, Pace::default(), next).with_quota(quota, plan.identity.member_id);
        let mut writer = writer.with_leases(lessor, Uptime::default());
        writer.note(Entry::Start { term });
        let mut embedded = Embedded::new(writer, Box::new(logged), appender, ports);
        embedded.log_standing_alarms();
        embedded
    });
    // The writer's shard asks, as clients do.
    let auto_compact = config.auto_compaction.filter(|_| embedded.is_some());
    let auto_compact = auto_compact.map(|mode| AutoCompact::new(mode, clock::now(), plan.at));
    Shard::new(Parts {
        index: plan.index,
        identity: plan.identity,
        member: Arc::new(Member {
            name: config.name.clone(),
            peer_urls: config.advertise_peer_urls.clone(),
            client_urls: config.advertise_client_urls.clone(),
        }),
        limits: Limits { request_bytes_max: config.request_bytes_max, txn_ops_max: config.txn_operations_max },
        watch_limits: config.watch_limits,
        history_bytes_max: config.history_bytes_max,
        message_bytes_max: config.request_bytes_max + MESSAGE_OVERHEAD_BYTES,
        progress_interval: config.watch_progress_interval,
        link: plan.link,
        intake: Intake::new(plan.reader, plan.committed, plan.at),
        auto_compact,
        embedded,
        ready,
        bells: plan.bells,
        control: plan.control,
        budget: plan.budget,
        boards: plan.boards,
        meter: Meter::new(config.warn_after, plan.about.methods.len(), config.metrics_are_extensive),
        about: plan.about,
        itself,
    })
}
