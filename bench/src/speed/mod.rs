//! `speed`: etcd and tarsier in turn, on the same machine, under the same load, by the same client.
//!
//! The figure is the server's own CPU time for a unit of work. On a small machine the load client takes cores from what it
//! measures, so throughput flatters the slower server; it is printed beside it all the same. In each round both sides
//! run, each on fresh data; the order turns from round to round.

use std::path::{Path, PathBuf};
use std::time::Duration;

use clap::{Args, ValueEnum};

use crate::bystander::{self, Bystander};
use crate::disk::Disk;
use crate::fault::{Fault, Result};
use crate::harm;
use crate::keys::KeyChoice;
use crate::leases;
use crate::process;
use crate::report::{Measured, Report};
use crate::scenes::{self, Scale, State, WatchShape};
use crate::server::{Program, ProgramFlags, Server, Side};

/// A group of scenes.
#[derive(Clone, Copy, PartialEq, Eq, Debug, ValueEnum)]
pub enum Group {
    Put,
    Read,
    Create,
    Event,
    Idle,
    Memory,
    Bystander,
    /// Puts to a million keys, and what they write to the device
    Durable,
    /// The way back after a kill, and the memory of what comes back
    Recovery,
    /// Puts on a schedule beside checkpoint, compaction and scrub
    Upkeep,
    /// All clients of very many watches gone and back with their old revisions; this and what follows only when named
    Storm,
    /// Watchers of everything that read nothing, very far behind
    Stuck,
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
    /// Write the result here; a name that ends in .json gets JSON, any other Markdown. May be repeated
    #[arg(long)]
    output: Vec<PathBuf>,
    /// What to measure; all by default
    #[arg(long, value_enum, value_delimiter = ',')]
    scenes: Vec<Group>,
    /// A tenth of the load: for trying out, not for publishing
    #[arg(long)]
    quick: bool,
    /// Add the memory rows of 250,000 streams and of 10 million watches
    #[arg(long)]
    full: bool,
    /// With --full, measure etcd at 10 million watches too: it needs 13 GB
    #[arg(long)]
    etcd_full: bool,
    /// Seconds of a measured window
    #[arg(long, default_value_t = 10)]
    seconds: u64,
    /// Threads of the load client
    #[arg(long, default_value_t = 1)]
    threads: u32,
    /// First of four ports on 127.0.0.1
    #[arg(long, default_value_t = 23400)]
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
}

/// "100 watches on one stream", "10 streams of 10", "100 streams of one", "a thousand connections of one".
const EVENT_SHAPES: [WatchShape; 4] = [(100, 1, 100), (100, 10, 10), (100, 100, 1), (1_000, 1, 1)];
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

    fn scale(&self) -> Scale {
        let part = if self.quick { 10 } else { 1 };
        Scale {
            threads: self.threads,
            window: Duration::from_secs((self.seconds / if self.quick { 3 } else { 1 }).max(1)),
            warm_up: Duration::from_secs(if self.quick { 1 } else { 2 }),
            creates: 500_000 / part,
            events: 1_000_000 / part,
            idle_watches: 100_000 / part,
            patience: Duration::from_secs(self.patience),
        }
    }

    fn bystander(&self) -> Bystander {
        let part = if self.quick { 20 } else { 1 };
        Bystander {
            keys: self.bystander_keys.unwrap_or(1_000_000 / part).max(1),
            revisions: self.bystander_revisions.unwrap_or(1_000_000 / part).max(1),
            puts_a_second: self.bystander_rate,
            alone: self.scale().window,
        }
    }

    fn states(&self) -> [State; 2] {
        let keys = self.recovery_keys.unwrap_or(if self.quick { 100_000 } else { 1_000_000 }).max(10);
        [State { keys, revisions_each: 1 }, State { keys: keys / 10, revisions_each: 10 }]
    }

    fn harm(&self, side: Side) -> harm::Sizes {
        let scale = self.scale();
        self.harm.sizes(side, self.quick, scale.window, scale.threads, scale.patience)
    }

    fn leases(&self, side: Side) -> leases::Sizes {
        let scale = self.scale();
        self.leases.sizes(side, self.quick, scale.window, scale.patience, self.harm.witness_rate)
    }

    fn has(&self, group: Group) -> bool {
        self.scenes.is_empty() || self.scenes.contains(&group)
    }
}

/// Runs it. Must be called inside a `LocalSet`.
pub async fn run(args: SpeedArgs) -> Result<()> {
    if args.harm.plot.is_some() && !args.scenes.contains(&Group::Stuck) {
        return Err(Fault::Refused("--plot draws the scene of stuck watchers: add --scenes stuck".to_owned()));
    }
    let programs = args.programs()?;
    let connections = if args.full { 5_000 } else { 1_000 };
    process::check_files(connections, "the scene with the most connections")?;
    let mut report = Report::default();
    describe(&mut report, &args)?;
    if args.has(Group::Durable) {
        // Now, and not when the other scenes have run for an hour.
        let disk = Disk::under(&args.started.data_root())?;
        report
            .circumstances
            .notes
            .push(format!("the data lies on {}; all that is written to it is counted", disk.name));
    }
    for program in &programs {
        let mut server = program.start().await?;
        let version = server.caller().await?.version().await.map_err(|fault| server.explain(fault))?;
        report.circumstances.versions.push((program.side, version));
    }
    for round in 0..args.rounds.max(1) {
        let mut order: Vec<&Program> = programs.iter().collect();
        if round % 2 == 1 {
            order.reverse();
        }
        for program in order {
            eprintln!("round {} of {}: {}", round + 1, args.rounds.max(1), program.side.name());
            run_side(&args, program, &mut report).await?;
        }
    }
    println!("{}", report.markdown());
    for path in &args.output {
        write(path, &report)?;
    }
    if let Some(path) = &args.harm.plot {
        write_text(path, &harm::plot(&report.paces)?)?;
    }
    match report.voids() {
        0 => Ok(()),
        voids => Err(Fault::Refused(format!("{voids} figures are void: events were lost, doubled or out of order"))),
    }
}

/// All scenes of one side in one round. Those that share a server are ordered so that the light ones come first.
async fn run_side(args: &SpeedArgs, program: &Program, report: &mut Report) -> Result<()> {
    let scale = args.scale();
    let side = program.side;
    if args.has(Group::Put) || args.has(Group::Read) {
        let mut server = program.start().await?;
        if args.has(Group::Read) {
            let outcome = scenes::read(&mut server, &scale).await;
            keep(report, &mut server, outcome)?;
        }
        if args.has(Group::Put) {
            let outcome = scenes::put(&mut server, &scale).await;
            keep(report, &mut server, outcome)?;
        }
    }
    if args.has(Group::Create) {
        for choice in [KeyChoice::Own, KeyChoice::One, KeyChoice::Range] {
            let mut server = program.start().await?;
            let outcome = scenes::create(&mut server, &scale, choice).await;
            keep(report, &mut server, outcome)?;
        }
    }
    if args.has(Group::Event) {
        for shape in EVENT_SHAPES {
            let mut server = program.start().await?;
            let outcome = scenes::event(&mut server, &scale, shape).await;
            keep(report, &mut server, outcome)?;
        }
    }
    if args.has(Group::Idle) {
        let mut server = program.start().await?;
        let outcome = scenes::idle(&mut server, &scale).await;
        keep(report, &mut server, outcome)?;
    }
    if args.has(Group::Memory) {
        let full: &[WatchShape] = if args.full { &MEMORY_SHAPES_FULL } else { &[] };
        for &shape in [MEMORY_SHAPE].iter().chain(full) {
            if shape == TEN_MILLION && side == Side::Etcd && !args.etcd_full {
                continue;
            }
            let mut server = program.start().await?;
            let outcome = scenes::memory(&mut server, &scale, shape).await;
            keep(report, &mut server, outcome)?;
        }
    }
    if args.has(Group::Bystander) {
        let mut server = program.start().await?;
        let outcome = bystander::run(&mut server, args.bystander()).await;
        keep(report, &mut server, outcome)?;
    }
    run_disk(args, program, report).await?;
    run_leases(args, program, report).await?;
    run_harm(args, program, report).await
}

/// The scenes of leases; too long to run unasked.
async fn run_leases(args: &SpeedArgs, program: &Program, report: &mut Report) -> Result<()> {
    let sizes = args.leases(program.side);
    if args.scenes.contains(&Group::Leases) {
        let mut server = program.start().await?;
        let outcome = leases::held(&mut server, sizes).await;
        keep(report, &mut server, outcome)?;
    }
    if args.scenes.contains(&Group::Expiry) {
        let mut server = program.start().await?;
        let outcome = leases::expiry(&mut server, sizes).await;
        keep(report, &mut server, outcome)?;
    }
    Ok(())
}

/// The scenes in which some do harm; too long to run unasked.
async fn run_harm(args: &SpeedArgs, program: &Program, report: &mut Report) -> Result<()> {
    let sizes = args.harm(program.side);
    for group in [Group::Storm, Group::Teardown, Group::Windows, Group::Churn] {
        if !args.scenes.contains(&group) {
            continue;
        }
        let mut server = program.start().await?;
        let outcome = match group {
            Group::Storm => harm::storm(&mut server, sizes).await,
            Group::Teardown => harm::teardown(&mut server, sizes).await,
            Group::Windows => harm::windows(&mut server, sizes).await,
            _ => harm::churn(&mut server, sizes).await,
        };
        keep(report, &mut server, outcome)?;
    }
    if args.scenes.contains(&Group::Stuck) {
        let (measured, paces) = harm::stuck(program, sizes).await?;
        show(program.side, &measured);
        report.add(program.side, measured);
        report.paces.extend(paces.into_iter().map(|pace| (program.side, pace)));
    }
    Ok(())
}

/// The scenes that ask what lasting costs.
async fn run_disk(args: &SpeedArgs, program: &Program, report: &mut Report) -> Result<()> {
    if args.has(Group::Durable) {
        let mut server = program.start().await?;
        let outcome = scenes::durable_put(&mut server, &args.scale()).await;
        keep(report, &mut server, outcome)?;
    }
    if args.has(Group::Recovery) {
        for state in args.states() {
            let mut server = program.start().await?;
            let outcome = scenes::recovery(&mut server, state).await;
            keep(report, &mut server, outcome)?;
        }
    }
    if args.has(Group::Upkeep) {
        let mut server = program.start().await?;
        let outcome = bystander::beside_upkeep(&mut server, args.bystander()).await;
        keep(report, &mut server, outcome)?;
    }
    Ok(())
}

/// Takes what a scene measured into the report, and shows it at once.
fn keep(report: &mut Report, server: &mut Server, outcome: Result<Measured>) -> Result<()> {
    let measured = outcome.map_err(|fault| server.explain(fault))?;
    server.check_alive()?;
    show(server.side, &measured);
    report.add(server.side, measured);
    Ok(())
}

fn show(side: Side, measured: &Measured) {
    for figure in &measured.figures {
        eprintln!("  {}: {}, {}: {:.3}", side.name(), figure.scene, figure.measure, figure.value);
    }
    if let Some(reason) = &measured.void {
        eprintln!("  {}: void: {reason}", side.name());
    }
}

fn describe(report: &mut Report, args: &SpeedArgs) -> Result<()> {
    let machine = process::machine();
    report.circumstances.machine = machine.to_string();
    report.circumstances.kernel = machine.kernel;
    report.circumstances.command = std::env::args().collect::<Vec<_>>().join(" ");
    let notes = &mut report.circumstances.notes;
    notes.push(format!("one load client of {} thread(s) on the same machine, without TLS", args.threads.max(1)));
    notes.push("each watch's events were checked: exactly once, in order, with their key and revision".to_owned());
    if args.quick {
        notes.push("--quick: a tenth of the load".to_owned());
    }
    if args.full && !args.etcd_full {
        notes.push("etcd was left out at 10 million watches, where it needs 13 GB (--etcd-full)".to_owned());
    }
    Ok(())
}

fn write(path: &Path, report: &Report) -> Result<()> {
    let text = if path.extension().is_some_and(|extension| extension == "json") {
        format!("{:#}\n", report.json())
    } else {
        report.markdown()
    };
    write_text(path, &text)
}

fn write_text(path: &Path, text: &str) -> Result<()> {
    std::fs::write(path, text).map_err(|cause| Fault::Refused(format!("{} cannot be written: {cause}", path.display())))
}
