//! `table`: etcd's page on the memory of watches, measured again on this machine for any list of servers.
//!
//! Rows go from small to large, and at each row the servers take turns, so that a run that is stopped has compared what
//! it has measured. After every sample the folder of the report is whole: an hour of work does not hang on its last row.
//!
//! ```text
//! here ─► measure (one row at one server) ─► fleet, delivery, cgroup
//!      ─► results (kept from run to run)  ─► fit (what a connection, a stream, a watching, a key cost)
//!      ─► page (Markdown, pictures)       ─► plot
//! ```

mod fit;
mod measure;
mod page;
mod results;
mod rows;

use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use clap::Args;

use crate::cgroup;
use crate::fault::{Fault, Result};
use crate::files;
use crate::fleet::Pace;
use crate::keys::KeyChoice;
use crate::process;
use crate::server::ProgramFlags;
use crate::subject::{Named, Subject};

pub use fit::different;
use measure::Circumstances;
use results::{Keys, Outcome, Results, Sample};
use rows::{Chosen, Shape};

/// What a server is expected to take as long as its rows do not tell: so many times what the page says of etcd. A guess
/// decides only where no limit can be set, and there a row too many costs the machine.
const UNKNOWN_COSTS_FACTOR: f64 = 3.0;
/// Above what its smaller rows say.
const KNOWN_COSTS_FACTOR: f64 = 1.3;

#[derive(Args, Clone, Debug)]
pub struct TableArgs {
    /// An etcd program, started anew for each row
    #[arg(long)]
    etcd: Option<PathBuf>,
    /// A tarsier program, started anew for each row; the one beside this program by default
    #[arg(long)]
    tarsier: Option<PathBuf>,
    /// A server that runs already, as NAME=HOST:PORT or NAME=HOST:PORT@PID; it keeps what earlier rows left in it
    #[arg(long)]
    server: Vec<Named>,
    /// Leave tarsier out
    #[arg(long, conflicts_with = "tarsier")]
    without_tarsier: bool,
    /// Rows by number, such as 1-9,12; all fifteen by default
    #[arg(long, conflicts_with = "quick")]
    rows: Option<Chosen>,
    /// Small rows only: some minutes for two servers
    #[arg(long)]
    quick: bool,
    /// What the watchings watch
    #[arg(long, value_enum, default_value_t = KeyChoice::Pool)]
    keys: KeyChoice,
    /// Keys that `pool` and `range` draw from
    #[arg(long, default_value_t = 100_000)]
    pool: u32,
    /// Length of a key
    #[arg(long, default_value_t = 32)]
    key_bytes: usize,
    /// Folder for the report; rows that it holds already are kept until they are measured again
    #[arg(long)]
    output: Option<PathBuf>,
    /// Memory for a server, such as 7GiB; what the machine has to spare by default
    #[arg(long, value_parser = cgroup::parse_bytes)]
    memory_limit: Option<u64>,
    /// Keys to put once each when all watchings are held, to prove that events arrive
    #[arg(long, default_value_t = 1_000, value_parser = clap::value_parser!(u32).range(1..))]
    puts: u32,
    /// Seconds without anything to do before memory is read: tarsier gives the buffers of a connection back after 8
    #[arg(long, default_value_t = 10)]
    idle: u64,
    /// Give up a row when nothing moves for so many seconds
    #[arg(long, default_value_t = 60)]
    patience: u64,
    #[command(flatten)]
    pace: Pace,
    /// First of four ports on 127.0.0.1 for the servers that are started
    #[arg(long, default_value_t = 23600, value_parser = clap::value_parser!(u16).range(1..=65532))]
    port: u16,
    #[command(flatten)]
    started: ProgramFlags,
}

impl TableArgs {
    fn subjects(&self) -> Result<Vec<Subject>> {
        Subject::all(self.started.programs(self.etcd.clone(), self.tarsier_program()?, self.port)?, &self.server)
    }

    fn tarsier_program(&self) -> Result<Option<PathBuf>> {
        if self.without_tarsier || self.tarsier.is_some() {
            return Ok(self.tarsier.clone());
        }
        let own = std::env::current_exe().map_err(|cause| Fault::Refused(format!("where am I? {cause}")))?;
        let beside = own.with_file_name("tarsier");
        if beside.is_file() {
            return Ok(Some(beside));
        }
        // Another server alone is a table too, if it was asked for. Cargo builds this program without the server beside it.
        let (shown, release) = (beside.display(), if cfg!(debug_assertions) { "" } else { " --release" });
        Err(Fault::Refused(format!(
            "there is no {shown}: build it with `cargo build{release} -p tarsier`, name another with --tarsier, or \
             leave it out with --without-tarsier"
        )))
    }

    fn chosen(&self) -> Chosen {
        match &self.rows {
            Some(rows) => rows.clone(),
            None if self.quick => Chosen::quick(),
            None => Chosen::all(),
        }
    }

    fn circumstances(&self) -> Circumstances {
        Circumstances {
            choice: self.keys,
            pool: self.pool,
            key_bytes: self.key_bytes,
            pace: self.pace,
            idle: Duration::from_secs(self.idle),
            patience: Duration::from_secs(self.patience),
            puts: self.puts,
            limit_bytes: self.memory_limit,
        }
    }
}

/// Runs it. Must be called inside a `LocalSet`.
pub async fn run(args: TableArgs) -> Result<()> {
    let subjects = args.subjects()?;
    let circumstances = args.circumstances();
    let keys = circumstances.keys();
    let chosen = args.chosen();
    let smallest = chosen.shapes().next().ok_or_else(|| Fault::Refused("no row was chosen".to_owned()))?;
    circumstances.plan(smallest).check().map_err(Fault::Refused)?;
    let mut report = Report::open(args.output.as_deref())?;
    for subject in &subjects {
        subject.try_out().await?;
    }
    let (machine, command) = (process::machine(), std::env::args().collect::<Vec<_>>().join(" "));
    let (mut troubles, mut measured_rows) = (0, 0);
    for (at, shape) in chosen.shapes().enumerate() {
        // The order turns from row to row, so that neither always has the machine that the other has warmed.
        let mut order: Vec<&Subject> = subjects.iter().collect();
        order.rotate_left(at % subjects.len());
        for subject in order {
            eprintln!("row {} of {}: {shape}, {}", at + 1, chosen.0.len(), subject.name());
            let guess = guess(&report.results, &keys, subject.name(), shape);
            let measured = measure::measure(subject, shape, &circumstances, guess).await;
            let outcome = measured.outcome;
            eprintln!("  {}", page::sentence(&outcome));
            let is_bad = matches!(outcome, Outcome::Void { .. } | Outcome::Failed { .. });
            troubles += u32::from(is_bad || measured.lacks_files);
            measured_rows += u32::from(!matches!(outcome, Outcome::Skipped { .. }));
            report.add(Sample {
                server: subject.name().to_owned(),
                version: measured.version,
                shape,
                keys: keys.clone(),
                empty_resident_bytes: measured.empty_resident_bytes,
                limit_bytes: measured.limit_bytes,
                outcome,
                measured_at: SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs()),
                machine: machine.to_string(),
                kernel: machine.kernel.clone(),
                command: command.clone(),
            })?;
        }
    }
    report.finish()?;
    println!("{}", page::markdown(&report.results, false));
    match troubles {
        0 if measured_rows == 0 => Err(Fault::Refused("every row was skipped; the reasons stand above".to_owned())),
        0 => Ok(()),
        rows => {
            let what = "void, have failed or found too few open files";
            Err(Fault::Refused(format!("{rows} rows are {what}; their reasons stand above")))
        }
    }
}

/// Bytes that a server will take at a row, by its smaller rows or else by the page.
fn guess(results: &Results, keys: &Keys, server: &str, shape: Shape) -> u64 {
    let bytes = match results.costs(keys, server) {
        Some(known) => known.bytes(shape) * KNOWN_COSTS_FACTOR,
        None => fit::Costs::published().bytes(shape) * UNKNOWN_COSTS_FACTOR,
    };
    bytes.max(0.0) as u64
}

/// The results, and the folder that always shows them.
struct Report<'a> {
    folder: Option<&'a Path>,
    results: Results,
}

impl Report<'_> {
    /// Before anything is measured, so that a folder that cannot be written costs no hour.
    fn open(folder: Option<&Path>) -> Result<Report<'_>> {
        let mut results = match folder {
            Some(folder) => {
                files::make_folder(folder)?;
                Results::read(folder)?
            }
            None => Results::default(),
        };
        results.is_finished = false;
        let report = Report { folder, results };
        report.write()?;
        Ok(report)
    }

    fn add(&mut self, sample: Sample) -> Result<()> {
        self.results.add(sample);
        self.write()
    }

    fn finish(&mut self) -> Result<()> {
        self.results.is_finished = true;
        self.write()
    }

    fn write(&self) -> Result<()> {
        let Some(folder) = self.folder else { return Ok(()) };
        self.results.write(folder)?;
        page::write(&self.results, folder)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_guess_follows_the_rows_that_were_held() {
        let keys = results::tests::sample("tarsier", 1, results::tests::held(1)).keys;
        let mut results = Results::default();
        let largest = rows::ROWS[14].shape;
        let blind = guess(&results, &keys, "tarsier", largest);
        let made = fit::Costs { each: [20_000.0, 1_000.0, 20.0, 0.0], drawn_from: None, miss_max: 0.0 };
        for (at, row) in rows::ROWS.iter().enumerate().take(13) {
            let bytes = 5_000_000 + made.bytes(row.shape) as u64;
            results.add(results::tests::sample("tarsier", at + 1, results::tests::held(bytes)));
        }
        let seeing = guess(&results, &keys, "tarsier", largest);
        assert!(seeing < blind / 10, "{seeing} after {blind}");
        assert!((seeing as f64 / made.bytes(largest) / KNOWN_COSTS_FACTOR - 1.0).abs() < 0.01);
    }
}
