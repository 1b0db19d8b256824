//! One row at one server: hold it, look at it, prove it, let go.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use super::results::{Grouped, Held, Keys, Outcome};
use super::rows::Shape;
use crate::caller::Caller;
use crate::cgroup::MemoryGroup;
use crate::delivery;
use crate::fault::{Fault, Result};
use crate::fleet::{Fleet, Pace, Progress};
use crate::keys::{KeyChoice, Plan};
use crate::link::Windows;
use crate::numbers;
use crate::process::{self, Process};
use crate::screen::Bar;
use crate::server::Server;
use crate::subject::{Named, Subject};

/// What the load client takes at most: for a connection, for a further stream, for a watching. Measured on 2026-11-26: 21.0 KB
/// (16.9 once it has been silent), of which h2 has three pages for its buffers and 3.6 KB for its first places of streams and
/// frames; 0.7 KB (50 streams a connection) to 0.9 KB (10); 9.4 bytes.
pub const CLIENT_BYTES: [u64; 3] = [21_500, 1_000, 100];
/// Left to the rest of the machine beside server and client.
const RESERVE_BYTES: u64 = 512 << 20;

/// What all rows of a run share.
pub struct Circumstances {
    pub choice: KeyChoice,
    pub pool: u32,
    pub key_bytes: usize,
    pub pace: Pace,
    /// Silence before memory is read.
    pub idle: Duration,
    pub patience: Duration,
    pub puts: u32,
    pub limit_bytes: Option<u64>,
}

impl Circumstances {
    pub fn keys(&self) -> Keys {
        Keys { choice: self.choice, pool: self.pool, key_bytes: self.key_bytes }
    }

    pub fn plan(&self, shape: Shape) -> Plan {
        Plan {
            connections: shape.clients,
            streams: shape.streams,
            watchings: shape.watchings,
            choice: self.choice,
            pool: self.pool,
            range_keys: 10.min(self.pool),
            prefix: "table/",
            key_bytes: self.key_bytes,
            seed: 1,
        }
    }
}

/// What a row gave, whatever its end.
pub struct Measured {
    pub version: String,
    pub empty_resident_bytes: u64,
    pub limit_bytes: Option<u64>,
    /// Skipped for want of open files. What memory does not hold is left out by rule; this is for the user to mend.
    pub lacks_files: bool,
    pub outcome: Outcome,
}

impl Measured {
    fn ended(outcome: Outcome) -> Measured {
        Measured { version: String::new(), empty_resident_bytes: 0, limit_bytes: None, lacks_files: false, outcome }
    }
}

/// Measures one row. A fault is an outcome of the row, not the end of the table; `guess` is what the server is expected
/// to take, for where no limit can be set.
pub async fn measure(subject: &Subject, shape: Shape, circumstances: &Circumstances, guess: u64) -> Measured {
    let skip = |reason: String| Measured::ended(Outcome::Skipped { reason });
    let plan = circumstances.plan(shape);
    if let Err(reason) = plan.check() {
        return skip(reason);
    }
    if let Err(fault) = process::check_files(u64::from(shape.clients), "this row") {
        return Measured { lacks_files: true, ..skip(fault.to_string()) };
    }
    let room = process::memory_available().saturating_sub(client_bytes(shape) + RESERVE_BYTES);
    if room == 0 {
        return skip("the load client alone would not fit in this machine's memory".to_owned());
    }
    let mut target = match Target::start(subject, circumstances, room, guess).await {
        Ok(Ok(target)) => target,
        Ok(Err(reason)) => return skip(reason),
        Err(fault) => return Measured::ended(Outcome::Failed { watchings: 0, reason: fault.to_string() }),
    };
    // Until the row has an end of its own; nothing reads it before.
    let mut measured = Measured::ended(Outcome::Failed { watchings: 0, reason: String::new() });
    measured.limit_bytes = target.limit_bytes();
    let mut created = 0;
    let outcome = hold(&mut target, plan, circumstances, &mut measured, &mut created).await;
    measured.outcome = match outcome {
        Err(fault) => target.ending(fault, created),
        Ok(outcome) => target
            .stop()
            .await
            .map_or_else(|fault| Outcome::Failed { watchings: created, reason: fault.to_string() }, |()| outcome),
    };
    measured
}

fn client_bytes(shape: Shape) -> u64 {
    let [connection, stream, watching] = CLIENT_BYTES;
    u64::from(shape.clients) * connection + shape.stream_total() * stream + shape.watching_total() * watching
}

async fn hold(
    target: &mut Target,
    plan: Plan,
    circumstances: &Circumstances,
    measured: &mut Measured,
    created: &mut u64,
) -> Result<Outcome> {
    let caller = Caller::connect(&target.endpoint, Windows::SMALL).await?;
    measured.version = numbers::version(&caller).await?;
    let process = target.process.ok_or_else(no_process)?;
    if let Some(limit) = process.files_max().ok().filter(|limit| *limit < u64::from(plan.connections) + 20) {
        let connections = plan.connections;
        let text = format!("the server may open {limit} files, too few for {connections} connections: raise ulimit -n");
        measured.lacks_files = true;
        return Ok(Outcome::Skipped { reason: text });
    }
    measured.empty_resident_bytes = process.memory()?.resident;
    let own = Process::own();
    let (own_before, own_cpu) = (own.memory()?.resident, own.cpu()?);
    let base_revision = caller.revision().await?;
    let (begun, cpu_before) = (Instant::now(), process.cpu()?);
    let fleet = Fleet::launch(plan, &target.endpoint, circumstances.pace, base_revision)?;
    let mut bar = Bar::new("watchings created", fleet.plan.watches());
    let tick = |progress: &Progress| {
        bar.set(progress.created.load(Ordering::Relaxed));
        target.check_alive()
    };
    let all = fleet.wait_created(circumstances.patience, tick).await;
    drop(bar);
    *created = fleet.progress.created.load(Ordering::Relaxed);
    all?;
    let create_seconds = begun.elapsed().as_secs_f64();
    let create_server_cpu_seconds = process.cpu()?.saturating_sub(cpu_before).as_secs_f64();
    tokio::time::sleep(circumstances.idle).await;
    let (memory, cgroup) = (process.memory()?, target.grouped()?);
    let own_after = own.memory()?.resident;
    let proof = delivery::prove(&caller, &fleet, circumstances.puts, circumstances.patience, || target.check_alive());
    let proof = proof.await?;
    if let Some(reason) = proof.void {
        return Ok(Outcome::Void { reason });
    }
    Ok(Outcome::Held(Held {
        resident_bytes: memory.resident,
        anonymous_bytes: memory.anonymous,
        create_seconds,
        create_server_cpu_seconds,
        cgroup,
        client_resident_bytes: own_after,
        client_grown_bytes: own_after.saturating_sub(own_before),
        client_cpu_seconds: own.cpu()?.saturating_sub(own_cpu).as_secs_f64(),
        events_proven: proof.events,
    }))
}

fn no_process() -> Fault {
    Fault::Refused("its process is not known: name it, as in --server NAME=HOST:PORT@PID".to_owned())
}

/// A server while its row is measured.
struct Target {
    endpoint: Arc<str>,
    process: Option<Process>,
    /// If this run has started it.
    server: Option<Server>,
}

impl Target {
    /// The server, or why the row is not tried.
    async fn start(
        subject: &Subject,
        circumstances: &Circumstances,
        room: u64,
        guess: u64,
    ) -> Result<std::result::Result<Target, String>> {
        let program = match subject {
            Subject::Running(Named { endpoint, process, .. }) => {
                let process = process.or_else(|| Process::serving(endpoint));
                return Ok(Ok(Target { endpoint: endpoint.clone(), process, server: None }));
            }
            Subject::Program(program) => program,
        };
        let group = match MemoryGroup::new(circumstances.limit_bytes.unwrap_or(room).min(room)) {
            Ok(group) => Some(group),
            // Without a limit a row that does not fit would take the machine with it.
            Err(reason) if circumstances.limit_bytes.is_some() || guess > room => return Ok(Err(reason)),
            Err(_) => None,
        };
        let server = program.start_in(group).await?;
        Ok(Ok(Target { endpoint: server.endpoint.clone(), process: Some(server.process), server: Some(server) }))
    }

    fn check_alive(&mut self) -> Result<()> {
        match (&mut self.server, self.process) {
            (Some(server), _) => server.check_alive(),
            (None, Some(process)) => process.memory().map(drop),
            (None, None) => Ok(()),
        }
    }

    /// Ends the server, if it is ours.
    async fn stop(self) -> Result<()> {
        match self.server {
            Some(server) => server.stop().await,
            None => Ok(()),
        }
    }

    fn group(&self) -> Option<&MemoryGroup> {
        self.server.as_ref().and_then(Server::memory_group)
    }

    fn limit_bytes(&self) -> Option<u64> {
        self.group().map(MemoryGroup::limit_bytes)
    }

    fn grouped(&self) -> Result<Option<Grouped>> {
        let Some(group) = self.group() else { return Ok(None) };
        let usage = group.usage().map_err(Fault::Refused)?;
        // Version 1 counts the buffers of sockets apart; version 2 has no peak of theirs, since they are in the sum.
        let (sockets, sockets_peak) =
            if usage.socket_peak_bytes > 0 { (usage.socket_bytes, usage.socket_peak_bytes) } else { (0, 0) };
        Ok(Some(Grouped {
            peak_bytes: usage.peak_bytes + sockets_peak,
            held_bytes: usage.now_bytes.saturating_sub(usage.file_bytes) + sockets,
            socket_bytes: usage.socket_bytes,
        }))
    }

    /// What a fault in the middle of a row means.
    fn ending(&mut self, fault: Fault, watchings: u64) -> Outcome {
        let fault = match &mut self.server {
            Some(server) => server.explain(fault),
            None => fault,
        };
        let killed = self.group().and_then(|group| group.usage().ok()).map_or(0, |usage| usage.killed);
        match fault {
            Fault::ServerDied(_) if killed > 0 => Outcome::Killed { watchings },
            Fault::Canceled { reason, .. } => Outcome::Refused { watchings, reason },
            // A server that has no room for a further connection says so with a GOAWAY (RFC 9113, 6.8 and 7).
            Fault::Http { cause, .. } if cause.is_remote() && cause.reason() == Some(h2::Reason::ENHANCE_YOUR_CALM) => {
                Outcome::Refused { watchings, reason: cause.to_string() }
            }
            fault => Outcome::Failed { watchings, reason: fault.to_string() },
        }
    }
}
