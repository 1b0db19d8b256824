//! The server: flags, log, start. Everything else is the library.

use std::fmt::Display;
use std::io::{self, Write as _};
use std::process::ExitCode;

use tarsier::config::{Asked, Config, Warning};
use tarsier::heap::Heap;
use tarsier::wal::check::check;
use tarsier::wal::identity::Identity;
use tarsier::wal::salvage::salvage;
use tarsier::{log, shard};

/// Gives memory back after a mass exit, which the system's allocator does not.
#[global_allocator]
static ALLOCATOR: Heap = Heap;

/// Runs before the allocator begins, which is long before `main`: it reserves its memory with the advice to use huge
/// pages, and the first touches of it took three of those, 6 MB for 0.5 MB in use, before anybody could object.
///
/// Unsafe because the linker's table of such functions has no safe spelling. It is sound since the function does one
/// system call and neither allocates nor unwinds; the section's number puts it before the allocator's own entry.
#[used]
#[allow(unsafe_code)]
#[unsafe(link_section = ".init_array.00000")]
static BEFORE_THE_ALLOCATOR: extern "C" fn() = {
    extern "C" fn without_huge_pages() {
        // The start does it again and reports an error.
        let _ = shard::memory::without_huge_pages();
    }
    without_huge_pages
};

/// The library that reads a checkpoint may panic over a file whose pages contradict each other, and ends the process.
const STOPPED_BY_DAMAGE: &str = "the checkpoint is damaged in a way that ends this program. Move checkpoint.redb away and \
                                 call it again: it then keeps what the log holds";

fn main() -> ExitCode {
    match Config::read(std::env::args_os().skip(1), std::env::vars_os()) {
        Ok(Asked::Help(text) | Asked::Version(text)) => {
            // Whoever reads it may have enough, as `head` has.
            let _ = writeln!(io::stdout(), "{text}");
            ExitCode::SUCCESS
        }
        Ok(Asked::Serve(config, warnings)) => serve(*config, &warnings),
        Ok(Asked::Check { dir, wal_dir }) => tell(check(&dir, wal_dir.as_deref(), &mut io::stdout())),
        Ok(Asked::Salvage { dir, new, wal_dir }) => {
            std::panic::set_hook(Box::new(|panic| eprintln!("tarsier: {STOPPED_BY_DAMAGE}\n{panic}")));
            // What was left out is in the report; the new directory is whole.
            let salvaged = salvage(&dir, wal_dir.as_deref(), &new, Identity::random, &mut io::stdout());
            tell(salvaged.map(|_| true))
        }
        // The log does not stand yet, and its format is one of the things that may be wrong.
        Err(error) => {
            eprintln!("tarsier: {error}");
            ExitCode::FAILURE
        }
    }
}

/// The exit code of what was printed already.
fn tell(is_whole: Result<bool, impl Display>) -> ExitCode {
    match is_whole {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(error) => {
            eprintln!("tarsier: {error}");
            ExitCode::FAILURE
        }
    }
}

fn serve(config: Config, warnings: &[Warning]) -> ExitCode {
    let log_config = config.log;
    if let Err(error) = log::start(log_config) {
        eprintln!("tarsier: the log cannot be started: {error}");
        return ExitCode::FAILURE;
    }
    print_start(&config, warnings);
    match shard::run(config) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            log::fatal(log_config, &error.to_string());
            ExitCode::FAILURE
        }
    }
}

fn print_start(config: &Config, warnings: &[Warning]) {
    let addresses: Vec<String> = config.listen.iter().map(|listen| listen.address.to_string()).collect();
    tracing::info!(
        version = env!("CARGO_PKG_VERSION"),
        etcd_api_version = tarsier::config::ETCD_API_VERSION,
        name = config.name,
        listen = addresses.join(","),
        "starting tarsier"
    );
    let reaches_nobody = |url: &&String| url.contains("//0.0.0.0:") || url.contains("//[::]:");
    if let Some(url) = config.advertise_client_urls.iter().find(reaches_nobody) {
        let why =
            "clients that ask who the members are get no address that they can reach: set --advertise-client-urls";
        tracing::warn!(url, why, "an unspecified address is advertised");
    }
    for Warning { what, why } in warnings {
        tracing::warn!(setting = what, reason = why, "setting has no effect");
    }
}
