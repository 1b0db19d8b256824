//! The load generator of tarsier.
//!
//! `hold` keeps very many watches open against any etcd v3 server and proves that each gets its events exactly once, in
//! order. `table` does so at the fifteen sizes of etcd's own page on memory, for any list of servers. `speed` runs etcd
//! and tarsier in turn and measures what a unit of work costs each of them. `check` is the proof of delivery alone, beside
//! every kind of load. `size` says what a server needs for so many watches. `etcd-load` is the loads of etcd's own
//! `benchmark` tool, so that published figures can be repeated. `soak` stops a server under load, thousands of times, and
//! proves that nothing it told anybody is lost.
//!
//! The client shares the machine with what it measures, so it is lean before it is general: raw h2 instead of a gRPC
//! library, one task a connection, hand-written messages where they are many.
//!
//! ```text
//! main ─► hold    ─┬─► fleet (held watches)  ──┬─► link (one h2 connection) ─► transport (its socket)
//!      ─► speed ───┤   load (calls in a loop)  │                             ─► wire (bytes)
//!                  │   caller (single calls) ──┘
//!                  └─► delivery ─► judge  keys (who watches what)  process (what the kernel knows)
//!          speed ──► open_loop, bystander, leases, lanes ─► server (started and stopped)  cgroup  meter (what it cost)  disk  report
//!          speed ──► harm (who asks for everything, and what others feel) ─► plot (pictures)
//!      ─► table ─────► subject (what is asked), server, fleet, delivery  cgroup  plot (pictures)
//!      ─► check ─────► subject, fleet, load, harm, delivery (the proof beside every kind of load)
//!      ─► size (constants that the table has measured)
//!      ─► etcd_load ─► caller
//!      ─► soak ──────► proof (trials of durability) ─► server  caller  link  disk
//! ```

mod bystander;
mod caller;
mod cgroup;
mod check;
mod cpus;
mod delivery;
mod disk;
mod etcd_load;
mod fault;
mod files;
mod fleet;
mod harm;
mod heap;
mod hold;
// The server's rules and no second writing of them. The rest of its library stays out of what is to be its outside view.
#[path = "../../src/net/idle.rs"]
#[allow(dead_code, reason = "the server uses the rest")]
mod idle;
mod judge;
mod keys;
mod lanes;
mod latency;
mod leases;
mod link;
mod load;
mod locks;
mod meter;
mod numbers;
mod open_loop;
mod plot;
mod process;
mod proof;
mod quick;
mod random;
mod ranges;
mod report;
mod screen;
mod server;
mod size;
mod soak;
mod speed;
mod subject;
mod table;
mod tasks;
mod threads;
mod transport;
mod wire;
mod work;

use std::process::ExitCode;

use clap::{Parser, Subcommand};
use tokio::signal::unix::{SignalKind, signal};
use tokio::task::LocalSet;

use crate::fault::{Fault, Result};

/// Puts h2's buffers where they can be given back.
#[global_allocator]
static ALLOCATOR: heap::Heap = heap::Heap;

/// Load for servers of the etcd v3 API: very many watches, and what they cost
#[derive(Parser, Debug)]
#[command(version, max_term_width = 110)]
struct Arguments {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand, Debug)]
enum Command {
    /// Hold very many watches, print what they cost the server, and prove that each gets its events
    Hold(hold::HoldArgs),
    /// Measure the fifteen rows of etcd's page on the memory of watches, for any list of servers
    Table(Box<table::TableArgs>),
    /// Run etcd and tarsier in turn and print what a unit of work costs each of them
    Speed(Box<speed::SpeedArgs>),
    /// Prove beside each kind of load that watches get what was put to their keys, once and in order
    Check(check::CheckArgs),
    /// Say how much memory and how many cores a tarsier needs for so many watches
    Size(size::SizeArgs),
    /// The loads of etcd's own `benchmark` tool, by its names and flags
    EtcdLoad(etcd_load::EtcdLoadArgs),
    /// Stop a server under load thousands of times, and check after each start that nothing it told is lost
    Soak(soak::SoakArgs),
}

fn main() -> ExitCode {
    let arguments = Arguments::parse();
    match run(arguments) {
        Ok(()) => ExitCode::SUCCESS,
        Err(fault) => {
            eprintln!("tarsier-bench: {fault}");
            ExitCode::FAILURE
        }
    }
}

fn run(arguments: Arguments) -> Result<()> {
    process::raise_files_limit();
    let runtime = threads::event_loop()?;
    LocalSet::new().block_on(&runtime, async {
        let work = async {
            match arguments.command {
                Command::Hold(args) => hold::run(args).await,
                Command::Table(args) => table::run(*args).await,
                Command::Speed(args) => speed::run(*args).await,
                Command::Check(args) => check::run(args).await,
                Command::Size(args) => size::run(&args),
                Command::EtcdLoad(args) => etcd_load::run(args).await,
                Command::Soak(args) => soak::run(args).await,
            }
        };
        // Dropping the work closes its connections and stops the servers that it started.
        tokio::select! {
            outcome = work => outcome,
            stopped = interrupted() => stopped,
        }
    })
}

/// Waits for an interrupt or a request to end.
async fn interrupted() -> Result<()> {
    let no_handler = |cause| Fault::Refused(format!("no signal handler: {cause}"));
    let mut interrupt = signal(SignalKind::interrupt()).map_err(no_handler)?;
    let mut terminate = signal(SignalKind::terminate()).map_err(no_handler)?;
    tokio::select! {
        _ = interrupt.recv() => {}
        _ = terminate.recv() => {}
    }
    Err(Fault::Refused("interrupted".to_owned()))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(line: &str) -> std::result::Result<Arguments, clap::Error> {
        Arguments::try_parse_from(line.split_whitespace())
    }

    #[test]
    fn the_commands_of_the_readme_are_commands_of_this_program() {
        let readme = include_str!("../../README.md");
        let shown: Vec<&str> =
            readme.lines().filter(|line| line.starts_with("target/release/tarsier-bench ")).collect();
        assert!(shown.len() >= 5, "the README shows commands: {shown:?}");
        for line in shown {
            assert!(parse(line).is_ok(), "{line}: {}", parse(line).unwrap_err());
        }
    }

    #[test]
    fn what_the_tool_of_etcd_has_and_this_one_has_not_is_refused_with_a_reason() {
        for (line, reason) in [
            ("put --cacert ca.crt", "speaks no TLS"),
            ("--insecure-skip-tls-verify range k", "speaks no TLS"),
            ("--endpoints https://127.0.0.1:2379 put", "speaks no TLS"),
            ("put --user root:pass", "logs in as nobody"),
            ("put --compact-interval 5", "no duration"),
        ] {
            let refused = parse(&format!("bench etcd-load {line}")).unwrap_err().to_string();
            assert!(refused.contains(reason), "{line}: {refused}");
        }
        for line in [
            "put --sample --target-leader --compact-interval=1m --compact-index-delta=10 --check-hashkv",
            "--endpoints http://127.0.0.1:2379,127.0.0.1:22379 --conns 2 watch",
            "mvcc put --total 100",
        ] {
            assert!(parse(&format!("bench etcd-load {line}")).is_ok(), "{line}");
        }
    }

    #[test]
    fn ports_that_do_not_exist_are_refused() {
        for command in ["table", "speed --etcd x", "check --etcd x", "hold --tarsier x", "soak --server x"] {
            assert!(parse(&format!("bench {command} --port 23400")).is_ok(), "{command}");
            assert!(parse(&format!("bench {command} --port 0")).is_err(), "{command}");
        }
        // The first of four.
        for command in ["table", "speed --etcd x", "check --etcd x"] {
            assert!(parse(&format!("bench {command} --port 65532")).is_ok(), "{command}");
            assert!(parse(&format!("bench {command} --port 65533")).is_err(), "{command}");
        }
    }
}
