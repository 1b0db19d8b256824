//! `soak`: the proof of durability as a long run, with kills and with power cuts.

use std::path::PathBuf;
use std::time::{Duration, Instant};

use clap::Args;

use crate::fault::{Fault, Result};
use crate::process;
use crate::proof::Trial;
use crate::proof::image::Image;
use crate::server::{Program, Server, Side};

#[derive(Args, Clone, Debug)]
pub struct SoakArgs {
    /// The server's program: tarsier or etcd
    #[arg(long)]
    server: PathBuf,
    /// Kills with SIGKILL
    #[arg(long, default_value_t = 1_000)]
    kills: u64,
    /// Power cuts: the server's disk is a loop-mounted image, and goes on from a copy of it. Needs root
    #[arg(long, default_value_t = 0)]
    power_cuts: u64,
    /// Size of the image in MiB
    #[arg(long, default_value_t = 512)]
    image: u64,
    /// The first seed; each server has the next
    #[arg(long, default_value_t = 1)]
    seed: u64,
    /// Stops of one server, before the next begins on an empty directory
    #[arg(long, default_value_t = 100)]
    stops: u64,
    /// The longest load between a start and a stop, in milliseconds
    #[arg(long, default_value_t = 400)]
    load: u64,
    /// First of two ports on 127.0.0.1
    #[arg(long, default_value_t = 25400, value_parser = clap::value_parser!(u16).range(1..=65534))]
    port: u16,
    /// Where data directories and images are made
    #[arg(long)]
    data_dir_root: Option<PathBuf>,
    /// Further flags for the server, separated by spaces
    #[arg(long, default_value = "", allow_hyphen_values = true)]
    flags: String,
}

impl SoakArgs {
    fn program(&self) -> Result<Program> {
        let side = Side::of(&self.server)?;
        let flags = self.flags.split_whitespace().map(str::to_owned).collect();
        let (path, environment, data_root) = (self.server.clone(), Vec::new(), self.root());
        Ok(Program { side, path, flags, environment, port: self.port, data_root, cpus: None })
    }

    fn root(&self) -> PathBuf {
        self.data_dir_root.clone().unwrap_or_else(std::env::temp_dir)
    }
}

/// How the stops of a trial are made.
enum Stops<'a> {
    Kills,
    PowerCuts(&'a Image),
}

/// Runs it. Must be called inside a `LocalSet`.
pub async fn run(args: SoakArgs) -> Result<()> {
    let program = args.program()?;
    let machine = process::machine();
    println!("{} on {} cores of {}, kernel {}", args.server.display(), machine.cores, machine.model, machine.kernel);
    let mut seed = args.seed;
    many(&args, "kills", args.kills, &mut seed, || Ok((program.clone(), None))).await?;
    let folder = args.root().join(format!("tarsier-bench-{}-image", std::process::id()));
    let with_image = || {
        let image = Image::new(&folder, args.image << 20)?;
        Ok((Program { data_root: image.mount.clone(), ..program.clone() }, Some(image)))
    };
    many(&args, "power cuts", args.power_cuts, &mut seed, with_image).await
}

/// So many stops, spread over servers of their own.
async fn many(
    args: &SoakArgs,
    kind: &str,
    count: u64,
    seed: &mut u64,
    place: impl Fn() -> Result<(Program, Option<Image>)>,
) -> Result<()> {
    let (begun, mut done) = (Instant::now(), 0);
    while done < count {
        let stops_max = args.stops.clamp(1, count - done);
        // Declared before the trial, so that the server ends before its disk goes.
        let (program, image) = place()?;
        let stops = image.as_ref().map_or(Stops::Kills, Stops::PowerCuts);
        let broken = |fault: Fault| match fault {
            Fault::Broken(text) => Fault::Broken(format!("seed {seed}, after {done} {kind}: {text}")),
            fault => fault,
        };
        let mut trial = Trial::begin(&program, *seed).await?;
        let outcome = stop_often(&mut trial, &stops, stops_max, args.load).await;
        if outcome.is_err() {
            let log = trial.server.log();
            let lines: Vec<&str> = log.lines().collect();
            eprintln!(
                "seed {seed}: {}; the server's last words:\n{}",
                trial.figures,
                lines[lines.len().saturating_sub(20)..].join("\n")
            );
        }
        outcome.map_err(broken)?;
        done += stops_max;
        println!("seed {seed}: {}", trial.figures);
        *seed += 1;
    }
    if count > 0 {
        println!("{count} {kind}, nothing lost; {:.0} s", begun.elapsed().as_secs_f64());
    }
    Ok(())
}

async fn stop_often(trial: &mut Trial, stops: &Stops<'_>, count: u64, load_milliseconds: u64) -> Result<()> {
    while trial.figures.stops < count {
        let length = trial.milliseconds(20, load_milliseconds.max(21));
        match stops {
            // Among the kills are some clean ends, which write what a kill does not let them.
            Stops::Kills if trial.once_in(10) => {
                let end = async |server: &mut Server| server.end().await.map(drop);
                trial.load_and_stop(length, end).await?;
            }
            Stops::Kills => trial.load_and_kill(length).await?,
            Stops::PowerCuts(image) => trial.load_and_stop(length, async |server| image.cut_power(server)).await?,
        }
        if trial.figures.stops < count && trial.once_in(4) {
            let length = trial.milliseconds(0, 100);
            trial.start_and_kill(length).await?;
        }
        trial.start_and_verify().await?;
        // The load is not the same after each start: sometimes the server is left alone for a while.
        if trial.once_in(10) {
            tokio::time::sleep(Duration::from_millis(300)).await;
        }
    }
    Ok(())
}
