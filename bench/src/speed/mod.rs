//! `speed`: etcd and tarsier in turn, on the same machine, under the same load, by the same client.
//!
//! The figure is the server's own CPU time for a unit of work. On a small machine the load client takes cores from what it
//! measures, so throughput flatters the slower server; it is printed beside it all the same. Each scene is
//! played to both, one right behind the other and each on fresh data, since a shared machine is another one a minute later;
//! the order turns from round to round. After each scene the folder of the report is whole, and a fault ends its scene
//! alone. Until the first figure it holds what it held before.
//!
//! ```text
//! here ─► calls (single calls) ─► work, load, open_loop      scenes (watches, recovery)      cancel
//!      ─► harm, bystander (what some clients do to others)    leases    locks    report (tables, pictures)
//! ```

mod calls;
mod cancel;
mod scenes;

use std::path::PathBuf;
use std::time::Duration;

use clap::{Args, ValueEnum};

use scenes::{Scale, State, WatchShape};

use crate::bystander::{self, Bystander};
use crate::disk::Disk;
use crate::fault::{Fault, Result};
use crate::files::prepare_folder;
use crate::harm;
use crate::keys::KeyChoice;
use crate::leases;
use crate::locks;
use crate::numbers;
use crate::process;
use crate::quick::Quick;
use crate::report::{self, Measured, Report};
use crate::server::{Program, ProgramFlags, Server, Side};

/// A group of scenes. The first ones are run when none is named.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug, ValueEnum)]
pub enum Group {
    /// Puts, by many clients, by one, and on a schedule
    Put,
    /// Linearizable reads of a key
    Read,
    /// Linearizable ranges of a hundred keys
    Range,
    /// Transactions of a comparison and a put
    Txn,
    /// Keep-alives of leases
    KeepAlive,
    /// Creates of watches, on own keys, one key and ranges
    Create,
    /// Cancels of watches
    Cancel,
    /// Events, at five shapes of connections, streams and watches
    Event,
    /// Watches that are held and nothing else
    Idle,
    /// All clients of very many watches gone and back with their old revisions
    Storm,
    /// Watchers of everything that read nothing, very far behind
    Stuck,
    /// Resident memory at some shapes; this and what follows only when named
    Memory,
    /// Puts on a schedule beside large ranges, writes and compactions
    Bystander,
    /// Puts to a million keys, by many clients, by one, and on a schedule, and what they write to the device
    Durable,
    /// The way back after a kill, and the memory of what comes back
    Recovery,
    /// Puts on a schedule beside checkpoint, compaction and scrub
    Upkeep,
    /// The clients of very many watches killed at once
    Teardown,
    /// Streams whose windows stay closed
    Windows,
    /// Creates and cancels at full speed under one watch that survives
    Churn,
    /// A million leases held
    Leases,
    /// Very many leases that expire together
    Expiry,
    /// Thousands who wait for one lock
    Locks,
}

impl Group {
    fn name(self) -> String {
        self.to_possible_value().map_or_else(String::new, |value| value.get_name().to_owned())
    }

    /// What stands behind the figures of its watches, if it has any: a server that does not tell them what it should is no
    /// faster for it.
    fn proof(self) -> Option<&'static str> {
        match self {
            Group::Create | Group::Event | Group::Idle | Group::Memory | Group::Storm => {
                Some("each watch had every event that was due, exactly once, in order, with its key and revision")
            }
            Group::Cancel => {
                Some("of each stream ten canceled watches had no event, and the one that was left had its own")
            }
            Group::Stuck | Group::Windows => Some(
                "the streams that read nothing were still held at the end, which says nothing of their events; the \
                 witness beside them had each of its own once",
            ),
            Group::Teardown => {
                Some("the watches that were torn down had only been created; the witness had each of its events once")
            }
            Group::Churn => Some("each create and each cancel was answered; the survivor had each of its events once"),
            Group::Expiry => Some("each key was seen deleted once, and not before its time"),
            Group::Put
            | Group::Read
            | Group::Range
            | Group::Txn
            | Group::KeepAlive
            | Group::Bystander
            | Group::Durable
            | Group::Recovery
            | Group::Upkeep
            | Group::Leases
            | Group::Locks => None,
        }
    }
}

/// What stands behind the figures, for each kind of proof with the groups that it is of.
fn proofs(groups: impl Iterator<Item = Group>) -> Vec<String> {
    let mut proofs: Vec<(&str, Vec<String>)> = Vec::new();
    for (group, proof) in groups.filter_map(|group| Some((group, group.proof()?))) {
        match proofs.iter_mut().find(|(known, _)| *known == proof) {
            Some((_, names)) => names.push(group.name()),
            None => proofs.push((proof, vec![group.name()])),
        }
    }
    proofs.into_iter().map(|(proof, names)| format!("{}: {proof}", names.join(", "))).collect()
}

#[derive(Args, Clone, Debug)]
pub struct SpeedArgs {
    /// The etcd program
    #[arg(long)]
    etcd: Option<PathBuf>,
    /// The tarsier program
    #[arg(long)]
    tarsier: Option<PathBuf>,
    /// Rounds; the table shows medians
    #[arg(long, default_value_t = 3)]
    rounds: u32,
    /// Folder for the report: Markdown, JSON and pictures
    #[arg(long)]
    output: Option<PathBuf>,
    /// What to measure; what clients do day by day by default
    #[arg(long, value_enum, value_delimiter = ',')]
    scenes: Vec<Group>,
    /// A tenth of the load wherever no flag says how much: for trying out, not for publishing
    #[arg(long)]
    quick: bool,
    /// Add the memory rows of 250,000 streams and of 10 million watches
    #[arg(long)]
    full: bool,
    /// With --full, measure etcd at 10 million watches too: it needs 13 GB
    #[arg(long)]
    etcd_full: bool,
    /// Seconds of a measured window; 10, or 3 with --quick
    #[arg(long, value_parser = clap::value_parser!(u64).range(1..))]
    seconds: Option<u64>,
    /// Threads of the load client
    #[arg(long, default_value_t = 1)]
    threads: u32,
    /// First of four ports on 127.0.0.1
    #[arg(long, default_value_t = 23400, value_parser = clap::value_parser!(u16).range(1..=65532))]
    port: u16,
    #[command(flatten)]
    started: ProgramFlags,
    /// Give up when nothing moves for so many seconds
    #[arg(long, default_value_t = 60)]
    patience: u64,
    /// Keys that lie in the store of the bystander scene
    #[arg(long)]
    bystander_keys: Option<u32>,
    /// Revisions that are written and compacted beside the bystander
    #[arg(long)]
    bystander_revisions: Option<u32>,
    /// Keys that come back in the recovery scene; a tenth of them with ten revisions each is the second part
    #[arg(long)]
    recovery_keys: Option<u32>,
    /// Puts of the bystander
    #[arg(long, default_value_t = 200)]
    bystander_rate: u32,
    #[command(flatten)]
    harm: harm::HarmArgs,
    #[command(flatten)]
    leases: leases::LeaseArgs,
    #[command(flatten)]
    locks: locks::LockArgs,
}

/// The groups with a latency of clients that wait for each other's answers, or for their own.
const CLOSED_LOOPS: [Group; 8] =
    [Group::Put, Group::Read, Group::Range, Group::Txn, Group::KeepAlive, Group::Event, Group::Stuck, Group::Durable];
/// "100 watches on one stream", "10 streams of 10", "100 streams of one", "a thousand connections of one", and very many on
/// one key.
const EVENT_SHAPES: [WatchShape; 5] = [(100, 1, 100), (100, 10, 10), (100, 100, 1), (1_000, 1, 1), (10, 10, 1_000)];
const CREATE_CHOICES: [KeyChoice; 3] = [KeyChoice::Own, KeyChoice::One, KeyChoice::Range];
const MEMORY_SHAPE: WatchShape = (1_000, 1, 1);
const MEMORY_SHAPES_FULL: [WatchShape; 2] = [(5_000, 50, 1), TEN_MILLION];
const TEN_MILLION: WatchShape = (2_000, 50, 100);

impl SpeedArgs {
    fn programs(&self) -> Result<Vec<Program>> {
        let programs = self.started.programs(self.etcd.clone(), self.tarsier.clone(), self.port)?;
        if programs.is_empty() {
            return Err(Fault::Refused("name at least one program: --etcd PATH, --tarsier PATH".to_owned()));
        }
        Ok(programs)
    }

    fn quick(&self) -> Quick {
        Quick(self.quick)
    }

    fn scale(&self) -> Scale {
        let size = |usual| self.quick().size(None, usual);
        Scale {
            threads: self.threads,
            window: Duration::from_secs(self.seconds.unwrap_or(if self.quick { 3 } else { 10 })),
            warm_up: Duration::from_secs(if self.quick { 1 } else { 2 }),
            creates: size(500_000),
            events: size(1_000_000),
            idle_watches: size(100_000),
            patience: Duration::from_secs(self.patience),
        }
    }

    fn bystander(&self) -> Bystander {
        Bystander {
            keys: self.quick().size(self.bystander_keys, 1_000_000),
            revisions: self.quick().size(self.bystander_revisions, 1_000_000),
            puts_a_second: self.bystander_rate,
            alone: self.scale().window,
        }
    }

    fn states(&self) -> [State; 2] {
        let keys = self.quick().size(self.recovery_keys, 1_000_000).max(10);
        [State { keys, revisions_each: 1 }, State { keys: keys / 10, revisions_each: 10 }]
    }

    fn harm(&self, side: Side) -> harm::Sizes {
        let scale = self.scale();
        self.harm.sizes(side, self.quick(), scale.window, scale.threads, scale.patience)
    }

    fn leases(&self, side: Side) -> leases::Sizes {
        let scale = self.scale();
        self.leases.sizes(side, self.quick(), scale.window, scale.patience, self.harm.witness_rate)
    }

    fn has(&self, group: Group) -> bool {
        if self.scenes.is_empty() { group <= Group::Stuck } else { self.scenes.contains(&group) }
    }
}

/// Runs it. Must be called inside a `LocalSet`.
pub async fn run(args: SpeedArgs) -> Result<()> {
    let programs = args.programs()?;
    let connections = if args.full { 5_000 } else { 1_000 };
    process::check_files(connections, "the scene with the most connections")?;
    let mut run = Run { args: &args, report: Report::default(), rates: None };
    run.describe();
    args.output.as_deref().map_or(Ok(()), prepare_folder)?;
    for program in &programs {
        let mut server = program.start().await?;
        let version = async { numbers::version(&server.caller().await?).await }.await;
        let version = version.map_err(|fault| server.explain(fault))?;
        server.stop().await?;
        run.report.circumstances.versions.push((program.side, version));
    }
    for round in 0..args.rounds.max(1) {
        let mut order: Vec<&Program> = programs.iter().collect();
        if round % 2 == 1 {
            order.reverse();
        }
        eprintln!("round {} of {}", round + 1, args.rounds.max(1));
        run.calls(&order).await?;
        run.watches(&order).await?;
        run.disk(&order).await?;
        run.harm(&order).await?;
    }
    run.report.is_finished = true;
    run.write()?;
    println!("{}", run.report.markdown(false));
    match (run.report.voids(), run.report.failures()) {
        (0, 0) => Ok(()),
        (0, failures) => Err(Fault::Refused(format!("{failures} scenes were not measured; the report says why"))),
        (voids, _) => Err(Fault::Refused(format!("{voids} figures are void, and the report says why"))),
    }
}

struct Run<'a> {
    args: &'a SpeedArgs,
    report: Report,
    /// Durable puts on a schedule, of many connections and of one: set by the first round and the same in all, since the rounds
    /// of one figure must ask for the same.
    rates: Option<[u32; 2]>,
}

impl Run<'_> {
    async fn calls(&mut self, programs: &[&Program]) -> Result<()> {
        let scale = self.args.scale();
        self.scene(Group::Put, programs, async |server| calls::put(server, &scale).await).await?;
        self.scene(Group::Read, programs, async |server| calls::read(server, &scale).await).await?;
        self.scene(Group::Range, programs, async |server| calls::range(server, &scale).await).await?;
        self.scene(Group::Txn, programs, async |server| calls::transaction(server, &scale).await).await?;
        self.scene(Group::KeepAlive, programs, async |server| calls::keep_alive(server, &scale).await).await
    }

    async fn watches(&mut self, programs: &[&Program]) -> Result<()> {
        let scale = self.args.scale();
        for choice in CREATE_CHOICES {
            self.scene(Group::Create, programs, async |server| scenes::create(server, &scale, choice).await).await?;
        }
        self.scene(Group::Cancel, programs, async |server| cancel::cancel(server, &scale).await).await?;
        for shape in EVENT_SHAPES {
            self.scene(Group::Event, programs, async |server| scenes::event(server, &scale, shape).await).await?;
        }
        self.scene(Group::Idle, programs, async |server| scenes::idle(server, &scale).await).await?;
        let full: &[WatchShape] = if self.args.full { &MEMORY_SHAPES_FULL } else { &[] };
        for &shape in [MEMORY_SHAPE].iter().chain(full) {
            let is_left_out = |side| shape == TEN_MILLION && side == Side::Etcd && !self.args.etcd_full;
            let programs: Vec<&Program> = programs.iter().copied().filter(|one| !is_left_out(one.side)).collect();
            self.scene(Group::Memory, &programs, async |server| scenes::memory(server, &scale, shape).await).await?;
        }
        Ok(())
    }

    /// The scenes that ask what lasting costs.
    async fn disk(&mut self, programs: &[&Program]) -> Result<()> {
        let (scale, sizes) = (self.args.scale(), self.args.bystander());
        self.scene(Group::Bystander, programs, async |server| bystander::run(server, sizes).await).await?;
        let mut capacities = Vec::new();
        let durable = async |server: &mut Server| {
            let measured = calls::durable_put(server, &scale).await?;
            capacities.extend(calls::Capacity::of(&measured));
            Ok(measured)
        };
        self.scene(Group::Durable, programs, durable).await?;
        self.rates = self.rates.or_else(|| calls::scheduled_rates(&capacities));
        if let Some(rates) = self.rates {
            let durable = async |server: &mut Server| calls::durable_put_on_schedule(server, &scale, rates).await;
            self.scene(Group::Durable, programs, durable).await?;
        }
        for state in self.args.states() {
            self.scene(Group::Recovery, programs, async |server| scenes::recovery(server, state).await).await?;
        }
        self.scene(Group::Upkeep, programs, async |server| bystander::beside_upkeep(server, sizes).await).await
    }

    /// The scenes in which some do harm, and those of very many leases and locks.
    async fn harm(&mut self, programs: &[&Program]) -> Result<()> {
        let args = self.args;
        self.scene(Group::Leases, programs, async |server| leases::held(server, args.leases(server.side)).await)
            .await?;
        self.scene(Group::Expiry, programs, async |server| leases::expiry(server, args.leases(server.side)).await)
            .await?;
        let waiters = args.locks.sizes(args.quick(), args.scale().patience);
        self.scene(Group::Locks, programs, async |server| locks::locks(server, waiters).await).await?;
        self.scene(Group::Storm, programs, async |server| harm::storm(server, args.harm(server.side)).await).await?;
        self.scene(Group::Teardown, programs, async |server| harm::teardown(server, args.harm(server.side)).await)
            .await?;
        self.scene(Group::Windows, programs, async |server| harm::windows(server, args.harm(server.side)).await)
            .await?;
        self.scene(Group::Churn, programs, async |server| harm::churn(server, args.harm(server.side)).await).await?;
        if !args.has(Group::Stuck) {
            return Ok(());
        }
        for program in programs {
            match harm::stuck(program, args.harm(program.side)).await {
                Ok(all) => {
                    all.into_iter().try_for_each(|measured| self.keep(Group::Stuck, program.side, Ok(measured)))?
                }
                Err(fault) => self.keep(Group::Stuck, program.side, Err(fault))?,
            }
        }
        Ok(())
    }

    /// One scene on a fresh server of each program, right behind each other, if it is wanted.
    async fn scene(
        &mut self,
        group: Group,
        programs: &[&Program],
        mut play: impl AsyncFnMut(&mut Server) -> Result<Measured>,
    ) -> Result<()> {
        if !self.args.has(group) {
            return Ok(());
        }
        for program in programs {
            let outcome = match program.start().await {
                Err(fault) => Err(fault),
                Ok(mut server) => match play(&mut server).await {
                    Err(fault) => Err(server.explain(fault)),
                    // What a server measured that has died meanwhile is no figure.
                    Ok(measured) => server.stop().await.map(|()| measured),
                },
            };
            self.keep(group, program.side, outcome)?;
        }
        Ok(())
    }

    /// Takes what came of a scene into the report, and shows it at once. A fault is the scene's own: what the others
    /// measure does not hang on it.
    fn keep(&mut self, group: Group, side: Side, outcome: Result<Measured>) -> Result<()> {
        match outcome {
            Ok(measured) => {
                show(side, &measured);
                self.report.add(side, measured);
            }
            Err(fault) => {
                let text = format!("{}, {}: {fault}", side.name(), group.name());
                eprintln!("  {text}");
                self.report.fail(text);
            }
        }
        // A run that has measured nothing yet must not replace the report of one that has.
        if self.report.has_figures() { self.write() } else { Ok(()) }
    }

    fn write(&self) -> Result<()> {
        self.args.output.as_deref().map_or(Ok(()), |folder| self.report.write(folder))
    }

    fn describe(&mut self) {
        let (args, machine) = (self.args, process::machine());
        let circumstances = &mut self.report.circumstances;
        circumstances.machine = machine.to_string();
        circumstances.kernel = machine.kernel;
        circumstances.command = std::env::args().collect::<Vec<_>>().join(" ");
        let notes = &mut circumstances.notes;
        notes.push(format!("one load client of {} thread(s) on the same machine, without TLS", args.threads.max(1)));
        notes.extend(proofs(Group::value_variants().iter().copied().filter(|group| args.has(*group))));
        notes.push(match Disk::under(&args.started.data_root()) {
            Ok(disk) => format!("the data lies on {}; all that is written to it is counted", disk.name),
            Err(fault) => format!("what puts write was not counted, and nothing was synced to a disk: {fault}"),
        });
        if [Group::Storm, Group::Teardown, Group::Windows, Group::Stuck].iter().any(|group| args.has(*group)) {
            notes.push(args.harm.note());
        }
        if CLOSED_LOOPS.iter().any(|group| args.has(*group)) {
            notes.push(report::CLOSED_LOOP_NOTE.to_owned());
        }
        notes.push(process::preference_note());
        notes.extend(args.started.note());
        if args.quick {
            notes.push("--quick: a tenth of the load wherever no flag says how much".to_owned());
        }
        if args.full && !args.etcd_full {
            notes.push("etcd was left out at 10 million watches, where it needs 13 GB (--etcd-full)".to_owned());
        }
    }
}

fn show(side: Side, measured: &Measured) {
    for figure in &measured.figures {
        eprintln!("  {}: {}, {}: {:.3}", side.name(), figure.scene, figure.measure, figure.value);
    }
    if let Some(reason) = &measured.void {
        eprintln!("  {}: void: {reason}", side.name());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_proven_is_said_of_the_scenes_that_prove_it() {
        let proofs = proofs([Group::Put, Group::Create, Group::Cancel, Group::Idle, Group::Stuck].into_iter());
        assert_eq!(proofs.len(), 3, "{proofs:?}");
        assert!(proofs[0].starts_with("create, idle: each watch had every event"), "{proofs:?}");
        assert!(proofs[2].starts_with("stuck: the streams that read nothing were still held"), "{proofs:?}");
    }
}
