//! From a checked configuration to running shards, and from a signal to their end.

use std::fmt;
use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::mpsc::{self, Receiver, Sender};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use signal_hook::consts::{SIGINT, SIGTERM, SIGUSR1};
use signal_hook::iterator::Signals;

use crate::backend::Identity;
use crate::config::Config;
use crate::net::listener::{self, BindError, Listeners};
use crate::net::ring::{Doorbell, RingError};
use crate::shard::accounting::Account;
use crate::shard::history::Appender;
use crate::shard::{clock, cores, memory, mesh};
use crate::types::Revision;

/// Connections that have not ended by then are cut when the server stops.
pub const DRAIN_MAX: Duration = Duration::from_secs(5);

/// Why the server does not run. Each says what to change.
#[derive(Debug)]
pub enum StartError {
    Bind(BindError),
    Ring(RingError),
    System { what: &'static str, error: io::Error },
}

/// What the main thread tells the shards.
#[derive(Default)]
pub struct Control {
    pub stopping: AtomicBool,
    /// Counts requests for an account; a shard answers each once.
    pub accounts: AtomicUsize,
}
