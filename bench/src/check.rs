//! `check`: the proof of delivery as a command. Beside each kind of load, watches of every kind must get what was put to
//! their keys: each event once, in order, and nothing else.
//!
//! The judge is [`judge`](crate::judge), the same that every figure of this program stands or falls by. What is here is
//! the company: clients that call without pause, that create and cancel, that hang on everything, or that leave and come
//! back with the revision at which they left.

use std::cell::Cell;
use std::path::PathBuf;
use std::rc::Rc;
use std::sync::Arc;
use std::time::{Duration, Instant};

use clap::{Args, ValueEnum};
use tokio::task::JoinSet;

use crate::caller::Caller;
use crate::delivery::{self, EVENT_VALUE_BYTES, put_all};
use crate::fault::{Fault, Result};
use crate::fleet::{Fleet, Pace};
use crate::harm::{WatchCall, create_and_cancel, deaf_streams, ended_among};
use crate::judge::{Put, events_due};
use crate::keys::{KeyChoice, Plan};
use crate::link::Windows;
use crate::load::{Load, Shape};
use crate::screen::count;
use crate::server::{ProgramFlags, Server};
use crate::subject::{Named, Subject};
use crate::tasks;
use crate::work::Work;

/// What goes on beside the watches.
#[derive(Clone, Copy, PartialEq, Eq, Debug, ValueEnum)]
pub enum Company {
    /// Nothing
    Quiet,
    /// Puts to other keys
    Put,
    /// Linearizable reads
    Read,
    /// Linearizable ranges
    Range,
    /// Transactions
    Txn,
    /// Keep-alives
    KeepAlive,
    /// Creates and cancels
    Churn,
    /// Watchers of everything that read nothing
    Stuck,
    /// The watches' own clients leave and come back
    Resume,
}

#[derive(Args, Clone, Debug)]
pub struct CheckArgs {
    /// An etcd program, started anew for each load
    #[arg(long)]
    etcd: Option<PathBuf>,
    /// A tarsier program, started anew for each load
    #[arg(long)]
    tarsier: Option<PathBuf>,
    /// A server that runs already, as NAME=HOST:PORT
    #[arg(long)]
    server: Vec<Named>,
    /// What goes on beside the watches, one after the other; all by default
    #[arg(long, value_enum, value_delimiter = ',')]
    beside: Vec<Company>,
    /// Seconds of each
    #[arg(long, default_value_t = 5)]
    seconds: u64,
    /// Clients that make calls beside the watches
    #[arg(long, default_value_t = 100, value_parser = clap::value_parser!(u32).range(1..))]
    clients: u32,
    /// Give up when nothing moves for so many seconds
    #[arg(long, default_value_t = 60)]
    patience: u64,
    #[command(flatten)]
    pace: Pace,
    /// First of four ports on 127.0.0.1 for the servers that are started
    #[arg(long, default_value_t = 23700, value_parser = clap::value_parser!(u16).range(1..=65532))]
    port: u16,
    #[command(flatten)]
    started: ProgramFlags,
}

const CHOICES: [KeyChoice; 4] = [KeyChoice::Pool, KeyChoice::Own, KeyChoice::One, KeyChoice::Range];
/// Keys that are put in one turn, of each kind of watches.
const PUTS_A_TURN: u32 = 50;
const LEASES: usize = 100;
const RANGED_KEYS: u32 = 1_000;
const STUCK: u32 = 100;
/// What a stuck watcher takes before it hangs.
const STUCK_WINDOWS: Windows = Windows { stream_bytes: 4 << 10, connection_bytes: 1 << 20 };

fn plan(choice: KeyChoice) -> Plan {
    let prefix = match choice {
        KeyChoice::Pool => "check/pool/",
        KeyChoice::Own => "check/own/",
        KeyChoice::One => "check/one/",
        KeyChoice::Range => "check/range/",
    };
    let (connections, streams, watchings) = (10, 5, 20);
    Plan { connections, streams, watchings, choice, pool: 500, range_keys: 10, prefix, key_bytes: 32, seed: 1 }
}

/// Runs it. Must be called inside a `LocalSet`.
pub async fn run(args: CheckArgs) -> Result<()> {
    let programs = args.started.programs(args.etcd.clone(), args.tarsier.clone(), args.port)?;
    let subjects = Subject::all(programs, &args.server)?;
    for subject in &subjects {
        subject.try_out().await?;
    }
    let all = Company::value_variants();
    let companies = if args.beside.is_empty() { all } else { &args.beside };
    let watches = CHOICES.len() as u64 * plan(KeyChoice::Own).watches();
    println!("{} watches of {} kinds beside each load:\n", count(watches), CHOICES.len());
    println!("| beside | server | puts | events due | verdict |\n| --- | --- | --- | --- | --- |");
    let mut bad = 0;
    for &company in companies {
        for subject in &subjects {
            let name = company.to_possible_value().map_or_else(String::new, |value| value.get_name().to_owned());
            let mut told = Told::default();
            let outcome = beside(subject, company, &args, &mut told).await;
            bad += u32::from(!matches!(outcome, Ok(None)));
            let verdict = match outcome {
                Ok(None) => "complete, once each, in order".to_owned(),
                Ok(Some(reason)) => format!("**void**: {reason}"),
                Err(fault) => format!("**not proven**: {fault}"),
            };
            println!("| {name} | {} | {} | {} | {verdict} |", subject.name(), count(told.puts), count(told.events));
        }
    }
    match bad {
        0 => Ok(()),
        bad => Err(Fault::Refused(format!("{bad} of these are void or not proven"))),
    }
}

/// What was put and how many events that makes.
#[derive(Default)]
struct Told {
    puts: u64,
    events: u64,
}

async fn beside(subject: &Subject, company: Company, args: &CheckArgs, told: &mut Told) -> Result<Option<String>> {
    let (mut server, endpoint) = match subject {
        Subject::Running(named) => (None, named.endpoint.clone()),
        Subject::Program(program) => {
            let server = program.start().await?;
            let endpoint = server.endpoint.clone();
            (Some(server), endpoint)
        }
    };
    let outcome = prove(&endpoint, &mut server, company, args, told).await;
    match (server, outcome) {
        (Some(mut server), Err(fault)) => Err(server.explain(fault)),
        (Some(server), Ok(void)) => server.stop().await.map(|()| void),
        (None, outcome) => outcome,
    }
}

/// Why the run is void, if it is.
async fn prove(
    endpoint: &Arc<str>,
    server: &mut Option<Server>,
    company: Company,
    args: &CheckArgs,
    told: &mut Told,
) -> Result<Option<String>> {
    let patience = Duration::from_secs(args.patience);
    let mut still_alive = || server.as_mut().map_or(Ok(()), Server::check_alive);
    let caller = Caller::connect(endpoint, Windows::SMALL).await?;
    let base_revision = caller.revision().await?;
    let mut watched = Vec::new();
    for choice in CHOICES {
        let fleet = Fleet::launch(plan(choice), endpoint, args.pace, base_revision)?;
        fleet.wait_created(patience, |_| still_alive()).await?;
        watched.push(Watched { fleet, puts: Vec::new() });
    }
    let running = Running::start(company, endpoint, args.clients).await?;
    put_for(Duration::from_secs(args.seconds), &caller, &mut watched, &running, &mut still_alive, told).await?;
    if company == Company::Resume {
        if let Some(reason) = judge(&caller, &mut watched, patience, &mut still_alive).await? {
            return Ok(Some(reason));
        }
        let left_at = caller.revision().await?;
        let mut missed: Vec<(Plan, Vec<Put>)> = Vec::new();
        for gone in watched.drain(..) {
            missed.push((Plan::clone(&gone.fleet.plan), Vec::new()));
        }
        for (plan, puts) in &mut missed {
            let keys = plan.put_keys(PUTS_A_TURN);
            puts.extend(put_all(&caller, plan, &keys, EVENT_VALUE_BYTES, 16).await?);
            told.count(plan, &keys);
        }
        for (plan, puts) in missed {
            watched.push(Watched { fleet: Fleet::resume(plan, endpoint, args.pace, left_at)?, puts });
        }
        // Some puts come while the watches come back.
        put_for(Duration::ZERO, &caller, &mut watched, &running, &mut still_alive, told).await?;
    }
    let void = running.stop().await?;
    let found = judge(&caller, &mut watched, patience, &mut still_alive).await?;
    Ok(found.or(void))
}

impl Told {
    fn count(&mut self, plan: &Plan, keys: &[u32]) {
        self.puts += keys.len() as u64;
        self.events += events_due(plan, keys);
    }
}

/// Watches of one kind and what was put to their keys since the last verdict.
struct Watched {
    fleet: Fleet,
    puts: Vec<Put>,
}

/// Puts to the keys of all watches, turn by turn, at least once.
async fn put_for(
    length: Duration,
    caller: &Caller,
    watched: &mut [Watched],
    running: &Running,
    still_alive: &mut impl FnMut() -> Result<()>,
    told: &mut Told,
) -> Result<()> {
    let begun = Instant::now();
    loop {
        for Watched { fleet, puts } in &mut *watched {
            // One key that all watch makes an event for each of them with a single put.
            let keys = fleet.plan.put_keys(if fleet.plan.choice == KeyChoice::One { 2 } else { PUTS_A_TURN });
            puts.extend(put_all(caller, &fleet.plan, &keys, EVENT_VALUE_BYTES, 16).await?);
            told.count(&fleet.plan, &keys);
        }
        still_alive()?;
        running.check()?;
        if begun.elapsed() >= length {
            return Ok(());
        }
    }
}

/// The first reason why what came to the watches is not what was put.
async fn judge(
    caller: &Caller,
    watched: &mut [Watched],
    patience: Duration,
    still_alive: &mut impl FnMut() -> Result<()>,
) -> Result<Option<String>> {
    let mut void = None;
    for Watched { fleet, puts } in watched {
        fleet.wait_created(patience, |_| still_alive()).await?;
        let keys: Vec<u32> = puts.iter().map(|put| put.key).collect();
        let complete = fleet.wait_delivered(events_due(&fleet.plan, &keys), patience, |_| still_alive()).await;
        let found = delivery::judge(caller, fleet, puts, complete).await?;
        void = void.or_else(|| found.map(|reason| format!("watches of {}: {reason}", fleet.plan.choice.name())));
        puts.clear();
    }
    Ok(void)
}

/// The company while it is there.
enum Running {
    Nothing,
    Calls(Load),
    Churn {
        clients: JoinSet<Result<()>>,
        is_over: Rc<Cell<bool>>,
    },
    /// They hold their streams and read nothing.
    Stuck(Vec<WatchCall>),
}

impl Running {
    async fn start(company: Company, endpoint: &Arc<str>, clients: u32) -> Result<Running> {
        let (keys, key_bytes, value_bytes) = (10_000, 32, 64);
        let work = match company {
            Company::Quiet | Company::Resume => return Ok(Running::Nothing),
            Company::Churn => return Ok(Running::churn(endpoint)),
            Company::Stuck => return Ok(Running::Stuck(deaf_streams(endpoint, STUCK, STUCK_WINDOWS, 0).await?)),
            Company::Put => Work::Put { keys, key_bytes, value_bytes },
            Company::Txn => Work::Transaction { keys, key_bytes, value_bytes },
            Company::Read => {
                let key = b"read/key".to_vec();
                Caller::connect(endpoint, Windows::SMALL).await?.put(&key, b"value").await?;
                Work::Read { key }
            }
            Company::Range => Work::ranges(endpoint, RANGED_KEYS, 100, b"value").await?,
            Company::KeepAlive => Work::keep_alives(endpoint, LEASES).await?,
        };
        let shape = Shape { connections: clients.div_ceil(10), clients, threads: 1 };
        Ok(Running::Calls(Load::launch(endpoint, shape, work)?))
    }

    fn churn(endpoint: &Arc<str>) -> Running {
        let (mut clients, is_over) = (JoinSet::new(), Rc::<Cell<bool>>::default());
        for connection in 0..4 {
            clients.spawn_local(create_and_cancel(endpoint.clone(), connection, Rc::default(), is_over.clone()));
        }
        Running::Churn { clients, is_over }
    }

    /// A proof beside a load that has ended early would be one of something else.
    fn check(&self) -> Result<()> {
        match self {
            Running::Calls(load) if load.has_failed() => Err(Fault::Refused("the load beside has ended".to_owned())),
            _ => Ok(()),
        }
    }

    /// Why nothing was proven beside it, if it was not there to the end.
    async fn stop(self) -> Result<Option<String>> {
        match self {
            Running::Nothing => {}
            Running::Stuck(mut deaf) => return Ok(ended_among("stuck streams", &mut deaf)),
            Running::Calls(load) => drop(load.finish().await?),
            Running::Churn { mut clients, is_over } => {
                is_over.set(true);
                tasks::all(&mut clients).await?;
            }
        }
        Ok(None)
    }
}
