//! `hold`: keep very many watches open, say what they cost the server, and prove that each gets its events.

use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use clap::Args;

use crate::caller::{self, Caller};
use crate::cgroup::{self, MemoryGroup};
use crate::delivery::put_all;
use crate::fault::{Fault, Result};
use crate::fleet::{Fleet, Pace, Progress};
use crate::judge::{Verdict, events_due};
use crate::keys::{KeyChoice, Plan};
use crate::process::{self, Process};
use crate::screen::{Bar, count, megabytes};
use crate::server::{Program, Server, Side};

#[derive(Args, Clone, Debug)]
pub struct HoldArgs {
    /// Connections to open
    #[arg(long, short = 'c', default_value_t = 100)]
    connections: u32,
    /// Watch streams of each connection
    #[arg(long, short = 's', default_value_t = 1)]
    streams: u32,
    /// Watches of each stream
    #[arg(long, short = 'w', default_value_t = 1)]
    watchings: u32,
    /// What the watches watch
    #[arg(long, value_enum, default_value_t = KeyChoice::Pool)]
    keys: KeyChoice,
    /// Keys that `pool` and `range` draw from
    #[arg(long, default_value_t = 100_000)]
    pool: u32,
    /// Keys in a range, for `range`
    #[arg(long, default_value_t = 10)]
    range_keys: u32,
    /// Length of a key
    #[arg(long, default_value_t = 32)]
    key_bytes: usize,
    /// The server, any that speaks the etcd v3 API without TLS
    #[arg(long, default_value = "127.0.0.1:2379")]
    endpoint: String,
    /// The server's process; found by its port when it runs on this host
    #[arg(long)]
    pid: Option<u32>,
    /// Start this tarsier on an empty directory, in place of a server that runs already
    #[arg(long, conflicts_with_all = ["endpoint", "pid"])]
    tarsier: Option<PathBuf>,
    /// Start it in a memory cgroup of this size, such as 1GiB
    #[arg(long, requires = "tarsier", value_parser = cgroup::parse_bytes)]
    memory_cgroup: Option<u64>,
    /// Further flags for it, separated by spaces
    #[arg(long, requires = "tarsier", default_value = "", allow_hyphen_values = true)]
    tarsier_flags: String,
    /// Port of 127.0.0.1 for it
    #[arg(long, default_value_t = 23500, value_parser = clap::value_parser!(u16).range(1..))]
    port: u16,
    /// Where its data directory is made
    #[arg(long)]
    data_dir_root: Option<PathBuf>,
    /// Keys to put once each when all watches are held; 0 for none
    #[arg(long, default_value_t = 1_000)]
    puts: u32,
    /// Puts under way at once
    #[arg(long, default_value_t = 16)]
    puts_in_flight: u32,
    /// Length of a value
    #[arg(long, default_value_t = 64)]
    value_bytes: usize,
    /// Seconds without anything to do before memory is read
    #[arg(long, default_value_t = 5)]
    idle: u64,
    /// Seconds to wait after the last event for one that should not come
    #[arg(long, default_value_t = 1)]
    settle: u64,
    /// Give up when nothing moves for so many seconds
    #[arg(long, default_value_t = 60)]
    patience: u64,
    /// Close all at the end and read the server's memory 5 and 30 seconds later
    #[arg(long)]
    leave: bool,
    #[command(flatten)]
    pace: Pace,
    /// Seed of the key choice
    #[arg(long, default_value_t = 1)]
    seed: u64,
}

impl HoldArgs {
    fn plan(&self) -> Plan {
        Plan {
            connections: self.connections,
            streams: self.streams,
            watchings: self.watchings,
            choice: self.keys,
            pool: self.pool,
            range_keys: self.range_keys,
            prefix: "hold/",
            key_bytes: self.key_bytes,
            seed: self.seed,
        }
    }

    /// Starts the server that is to be measured, when one was named, and says what memory it may take.
    async fn start(&self) -> Result<Option<Server>> {
        let Some(path) = &self.tarsier else { return Ok(None) };
        let group = self.memory_cgroup.map(MemoryGroup::new).transpose().map_err(Fault::Refused)?;
        let flags = self.tarsier_flags.split_whitespace().map(str::to_owned).collect();
        let data_root = self.data_dir_root.clone().unwrap_or_else(std::env::temp_dir);
        let (side, environment) = (Side::Tarsier, Vec::new());
        let program = Program { side, path: path.clone(), flags, environment, port: self.port, data_root, cpus: None };
        program.check()?;
        let server = program.start_in(group).await?;
        if let Some(group) = server.memory_group() {
            println!("memory cgroup of the server: {}", megabytes(group.limit_bytes()));
        }
        match server.memory_limit_bytes().await? {
            0 => println!("--memory-limit of the server: none"),
            limit => println!("--memory-limit of the server: {}", megabytes(limit)),
        }
        Ok(Some(server))
    }
}

/// Runs it. Must be called inside a `LocalSet`.
pub async fn run(args: HoldArgs) -> Result<()> {
    let plan = args.plan();
    plan.check().map_err(Fault::Refused)?;
    process::check_files(u64::from(plan.connections), "this many connections")?;
    let started = args.start().await?;
    let endpoint: Arc<str> = started.as_ref().map_or(args.endpoint.as_str().into(), |server| server.endpoint.clone());
    let patience = Duration::from_secs(args.patience);
    let caller = caller::wait_until_ready(&endpoint, Duration::from_secs(3), || Ok(())).await?;
    let server = match &started {
        Some(server) => Some(server.process),
        None => find_server(&args),
    };
    check_server_files(server, args.connections)?;
    let watched = Watched { server, own: Process::own(), started };
    watched.print("before")?;

    let held_from = Instant::now();
    let pace = args.pace;
    let base_revision = caller.revision().await?;
    let fleet = Fleet::launch(plan, &endpoint, pace, base_revision)?;
    let mut bar = Bar::new("watches created", fleet.plan.watches());
    let tick = |progress: &Progress| {
        bar.set(progress.created.load(Ordering::Relaxed));
        watched.check_alive()
    };
    fleet.wait_created(patience, tick).await?;
    drop(bar);
    let seconds = held_from.elapsed().as_secs_f64();
    let watches = fleet.plan.watches();
    let rate = count((watches as f64 / seconds) as u64);
    println!("created {} watches in {seconds:.1} s ({rate} a second)", count(watches));
    watched.print("all created")?;
    if args.idle > 0 {
        tokio::time::sleep(Duration::from_secs(args.idle)).await;
        watched.print(&format!("{} s later", args.idle))?;
    }
    if args.puts > 0 {
        prove(&args, &caller, &fleet, &watched).await?;
    }
    fleet.check_fault()?;
    if args.leave {
        leave(fleet, &watched).await?;
    }
    Ok(())
}

fn find_server(args: &HoldArgs) -> Option<Process> {
    args.pid.map(|id| Process { id }).or_else(|| Process::serving(&args.endpoint))
}

fn check_server_files(server: Option<Process>, connections: u32) -> Result<()> {
    let Some(server) = server else { return Ok(()) };
    let (limit, needed) = (server.files_max()?, u64::from(connections) + 20);
    if limit < needed {
        let text = format!("the server (process {}) may open {limit} files; {needed} are needed", server.id);
        return Err(Fault::Refused(text));
    }
    Ok(())
}

/// The processes whose cost is printed.
struct Watched {
    server: Option<Process>,
    own: Process,
    /// The server, if this run has started it.
    started: Option<Server>,
}

impl Watched {
    fn check_alive(&self) -> Result<()> {
        self.server.map_or(Ok(()), |server| server.memory().map(drop))
    }

    fn print(&self, when: &str) -> Result<()> {
        if let Some(server) = self.server {
            print_cost(&format!("server {}", server.id), when, server)?;
        }
        print_cost("load client", when, self.own)?;
        self.started.as_ref().and_then(Server::memory_group).map_or(Ok(()), print_group)
    }
}

/// What the kernel counts for the server, with the buffers of its sockets. Version 1 of cgroups counts those apart.
fn print_group(group: &MemoryGroup) -> Result<()> {
    let usage = group.usage().map_err(Fault::Refused)?;
    let [now, peak, file] = [usage.now_bytes, usage.peak_bytes, usage.file_bytes].map(megabytes);
    let [sockets, sockets_peak] = [usage.socket_bytes, usage.socket_peak_bytes].map(megabytes);
    println!(
        "its cgroup: {now} (files {file}), peak {peak}; sockets {sockets}, peak {sockets_peak}; {} times at the limit, {} killed",
        usage.at_limit, usage.killed
    );
    Ok(())
}

fn print_cost(who: &str, when: &str, process: Process) -> Result<()> {
    let (memory, cpu) = (process.memory()?, process.cpu()?.as_secs_f64());
    let (resident, anonymous) = (megabytes(memory.resident), megabytes(memory.anonymous));
    println!("{who}, {when}: VmRSS {resident}, RssAnon {anonymous}, CPU {cpu:.2} s");
    Ok(())
}

/// Puts, waits for all events that are due, and judges what came.
async fn prove(args: &HoldArgs, caller: &Caller, fleet: &Fleet, watched: &Watched) -> Result<()> {
    let keys = fleet.plan.put_keys(args.puts);
    let due = events_due(&fleet.plan, &keys);
    let cpu_before = watched.server.map(Process::cpu).transpose()?;
    let started = Instant::now();
    let puts = put_all(caller, &fleet.plan, &keys, args.value_bytes, args.puts_in_flight).await;
    let puts = match puts {
        // A dead server is the better explanation of a failed put.
        Err(fault) => return Err(watched.check_alive().err().unwrap_or(fault)),
        Ok(puts) => puts,
    };
    let mut bar = Bar::new("events delivered", due);
    let tick = |progress: &Progress| {
        bar.set(progress.delivered.load(Ordering::Relaxed));
        watched.check_alive()
    };
    let complete = fleet.wait_delivered(due, Duration::from_secs(args.patience), tick).await;
    drop(bar);
    let seconds = started.elapsed().as_secs_f64();
    match complete {
        // What is missing is named by the verdict.
        Ok(()) | Err(Fault::Stalled { .. }) => {}
        Err(fault) => return Err(fault),
    }
    tokio::time::sleep(Duration::from_secs(args.settle)).await;
    let base_revision = caller.revision().await?;
    let verdict = fleet.judge(&puts, base_revision).await?;
    report(&verdict, puts.len(), seconds, fleet.plan.watches())?;
    if let (Some(before), Some(server)) = (cpu_before, watched.server)
        && verdict.received > 0
    {
        let cpu = server.cpu()?.saturating_sub(before).as_secs_f64();
        println!("server CPU for puts and events: {cpu:.2} s, {:.2} us an event", cpu * 1e6 / verdict.received as f64);
    }
    watched.print("after the events")
}

fn report(verdict: &Verdict, puts: usize, seconds: f64, watches: u64) -> Result<()> {
    let (received, expected) = (count(verdict.received), count(verdict.expected));
    println!(
        "delivered {received} of {expected} events of {puts} puts in {seconds:.2} s to {} watches",
        count(watches)
    );
    if verdict.is_clean() {
        println!("each exactly once, in order, with its key and revision, and nothing else to anybody");
        return Ok(());
    }
    for difference in &verdict.shown {
        eprintln!("  {difference}");
    }
    Err(Fault::Refused(format!("{} watches or events differ from what was put", verdict.differences)))
}

async fn leave(fleet: Fleet, watched: &Watched) -> Result<()> {
    let started = Instant::now();
    drop(fleet);
    println!("all connections closed");
    for seconds in [5, 30] {
        tokio::time::sleep(Duration::from_secs(seconds).saturating_sub(started.elapsed())).await;
        watched.print(&format!("{seconds} s after all have left"))?;
    }
    Ok(())
}
